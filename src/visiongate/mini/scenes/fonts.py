"""Typefaces that happen to be on this machine; none is part of the package but Pillow's builtin one."""

# ruff: noqa: E501, SIM905 - lists of words read better whole
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import ImageFont

SYSTEM_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
BUILTIN = "builtin"

# File stems of Debian's font packages. Training never sees the held-out ones.
LATIN_STEMS = (
    "LiberationSans-Regular LiberationSans-Bold LiberationSerif-Regular LiberationSerif-Bold LiberationMono-Regular "
    "LiberationMono-Bold LiberationSansNarrow-Regular LiberationSans-Italic Lato-Regular Lato-Bold Lato-Black "
    "Roboto-Regular Roboto-Bold Roboto-Medium RobotoCondensed-Regular OpenSans-Regular OpenSans-Bold OpenSans-Light "
    "Inconsolata DejaVuSans DejaVuSans-Bold DejaVuSansMono DejaVuSerif DejaVuSansCondensed Carlito-Regular Carlito-Bold "
    "Cantarell-Regular FreeSans FreeSerif FreeMonoBold Hack-Regular Lato-Heavy LiberationSerif-Italic"
).split()
LATIN_HELD_OUT_STEMS = (
    "OpenSans-Semibold DejaVuSerif-Bold Lato-Medium FreeSansBold Cantarell-Bold RobotoCondensed-Medium"
).split()
CHINESE_STEMS = (
    "NotoSansCJK-Regular NotoSansCJK-Bold NotoSerifCJK-Regular NotoSerifCJK-Bold wqy-microhei wqy-zenhei ukai"
).split()
CHINESE_HELD_OUT_STEMS = ("uming",)
CJK_COLLECTION_INDEX = {"NotoSansCJK": 2, "NotoSerifCJK": 2}  # the simplified Chinese member


class Typeface:
    """One face at one size, with the advances that place each glyph.

    Attributes:
        size: the nominal size in pixels.
        cap_height: the height of a capital letter, or of a Chinese character.
    """

    def __init__(self, source: str, size: int, *, is_chinese: bool) -> None:
        self.size = size
        self.font = _open(source, size)
        self._advances: dict[str, float] = {}
        _, top, _, bottom = self.font.getbbox("国" if is_chinese else "E", anchor="ls")
        self.cap_height = bottom - top
        self.cap_middle = (bottom + top) / 2  # below the baseline, so negative

    def advance(self, character: str) -> float:
        """How far the pen moves over the character, in pixels."""
        width = self._advances.get(character)
        if width is None:
            width = self._advances[character] = self.font.getlength(character)
        return width

    def width(self, text: str) -> float:
        """The width of the text in pixels."""
        return sum(map(self.advance, text))


@dataclass(frozen=True, slots=True)
class FontBook:
    """The faces a scene may choose from, by language; each is a file or the builtin face."""

    latin: tuple[str, ...]
    chinese: tuple[str, ...]

    def face(self, source: str, size: int) -> Typeface:
        """The face at a size in pixels, made once per process."""
        return _typeface(source, size, source in self.chinese)

    def bold(self, source: str) -> str:
        """The bold sister of a face, or the face itself."""
        sister = source.replace("-Regular", "-Bold")
        return sister if sister in self.latin or sister in self.chinese else source


@cache
def system_fonts(*, held_out: bool = False) -> FontBook:
    """The known faces on this machine; the builtin face alone where none is installed."""
    return fonts_in(SYSTEM_FOLDERS, held_out=held_out)


@cache
def fonts_in(folders: tuple[Path, ...], *, held_out: bool = False) -> FontBook:
    """The known faces below the folders, plus the builtin one."""
    files = {
        file.stem: str(file) for folder in folders for file in sorted(folder.rglob("*.[to]t[fc]"))
    }
    latin = [files[s] for s in LATIN_STEMS if s in files]
    chinese = [files[s] for s in CHINESE_STEMS if s in files]
    if held_out:
        latin = [files[s] for s in LATIN_HELD_OUT_STEMS if s in files] or latin
        chinese += [files[s] for s in CHINESE_HELD_OUT_STEMS if s in files]
    return FontBook((*latin, BUILTIN), tuple(chinese))


@cache
def _typeface(source: str, size: int, is_chinese: bool) -> Typeface:
    return Typeface(source, size, is_chinese=is_chinese)


def _open(source: str, size: int) -> ImageFont.FreeTypeFont:
    if source == BUILTIN:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("this Pillow was built without FreeType; install a Pillow wheel")
        return font
    stem = Path(source).stem.split("-")[0]
    index = CJK_COLLECTION_INDEX.get(stem, 0) if source.endswith(".ttc") else 0
    return ImageFont.truetype(source, size, index, layout_engine=ImageFont.Layout.BASIC)
