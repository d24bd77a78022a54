"""The one strict intake of pictures: bytes in, `Image` out, within limits checked before decoding.

bytes -> type by magic bytes -> header (size) -> limits -> pixels -> upright -> RGB on white
      -> size that the model accepts -> digest
"""

from __future__ import annotations

import hashlib
import io
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps

from visiongate.engine.types import Image
from visiongate.errors import InvalidImage, TooLarge

PIL.Image.MAX_IMAGE_PIXELS = None  # `_open` checks the size itself, with our own words
warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged metadata is not the operator's worry

FACTOR = 32
"""Sides are multiples of this: patches of 16 pixels, merged two by two."""

MAX_ASPECT_RATIO = 200

PREPROCESSING = b"visiongate/1 rgb-on-white bicubic 32"
"""Names everything that turns decoded pixels into the model's; part of every digest."""

ORIENTATION_TAG = 0x0112

Detail = Literal["auto", "low", "high"]

LOW_DETAIL_PIXELS = 512 * 512

DEFAULT_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a server accepts, and the area that it shows to the model.

    Attributes:
        max_bytes: of the file.
        max_source_pixels: width x height in the file's header.
        budget_pixels: area after scaling where a request asks for nothing else.
        min_pixels, max_pixels: the area that the checkpoint, or the operator, allows.
        formats: accepted types.
    """

    max_bytes: int = 10 * 1024 * 1024
    max_source_pixels: int = 64_000_000
    budget_pixels: int = 1024 * 1024
    min_pixels: int = 65536
    max_pixels: int = 16777216
    formats: tuple[str, ...] = DEFAULT_FORMATS


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """What would happen to a picture, known from its header alone.

    Attributes:
        original_width, original_height: upright, in pixels.
        width, height: as the model would see it.
    """

    format: str
    original_width: int
    original_height: int
    orientation: int
    width: int
    height: int
    warnings: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """Visual tokens in the prompt."""
        return self.width // FACTOR * (self.height // FACTOR)

    @property
    def scale(self) -> float:
        """Processed over original length, by the square root of the areas."""
        return math.sqrt(self.width * self.height / (self.original_width * self.original_height))


def decode(
    data: bytes,
    *,
    limits: ImageLimits | None = None,
    detail: Detail = "auto",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Image:
    """Reads a picture and scales it to what the model sees.

    Args:
        data: the file's bytes.
        limits: the server's.
        detail: "low" for 512 x 512 pixels of area, "high" for as much as the server allows.
        min_pixels, max_pixels: the request's own area; go before `detail`, within the limits.

    Raises:
        InvalidImage: damaged, unsupported, or over 200 times longer than wide.
        TooLarge: over the byte or pixel limit.
    """
    start = time.perf_counter()
    limits = limits or ImageLimits()
    source, plan = _open(data, limits, detail, min_pixels, max_pixels)
    with source:  # `rgb` may be `source` itself
        rgb = _read_pixels(source, plan.orientation)
        if rgb.size != (plan.width, plan.height):
            rgb = rgb.resize((plan.width, plan.height), PIL.Image.Resampling.BICUBIC)
        pixels = np.asarray(rgb)
    return Image(
        pixels=pixels,
        digest=picture_digest(pixels, plan.orientation),
        format=plan.format,
        original_width=plan.original_width,
        original_height=plan.original_height,
        orientation=plan.orientation,
        warnings=plan.warnings,
        decode_seconds=time.perf_counter() - start,
    )


def plan(
    data: bytes,
    *,
    limits: ImageLimits | None = None,
    detail: Detail = "auto",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> ImagePlan:
    """What `decode` would do, without decoding; raises the same for all that a header tells."""
    source, result = _open(data, limits or ImageLimits(), detail, min_pixels, max_pixels)
    source.close()
    return result


def smart_resize(
    height: int, width: int, *, min_pixels: int, max_pixels: int, factor: int = FACTOR
) -> tuple[int, int]:
    """The size nearest (height, width), in pixels, that the vision tower accepts.

    Both sides are multiples of `factor`, the area lies in [min_pixels, max_pixels], and the aspect
    ratio changes as little as that allows. Raises InvalidImage when one side is over 200 times the
    other.
    Source: Qwen3-VL image processor (transformers, models/qwen2_vl).
    """
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise InvalidImage(
            f"image is {width}x{height}, {ratio:.0f} times longer than wide; "
            f"up to {MAX_ASPECT_RATIO} times is supported: cut it into parts"
        )
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def sniff(data: bytes) -> str | None:
    """The picture type that the first bytes name, or None."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"heif"):
        return "HEIF"
    return None


def picture_digest(pixels: npt.NDArray[np.uint8], orientation: int = 1) -> bytes:
    """32 bytes over preprocessing, mode, size, orientation and pixels (height, width, 3)."""
    height, width, _ = pixels.shape
    digest = hashlib.blake2b(PREPROCESSING, digest_size=32)
    digest.update(f" RGB {width}x{height} {orientation} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)


def _open(
    data: bytes,
    limits: ImageLimits,
    detail: Detail,
    min_pixels: int | None,
    max_pixels: int | None,
) -> tuple[PIL.Image.Image, ImagePlan]:
    """The picture with its header read, and what is to be done with it."""
    if not data:
        raise InvalidImage("image is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise TooLarge(
            f"image is {len(data)} bytes; this server accepts up to {limits.max_bytes} "
            f"({limits.max_bytes / 2**20:g} MB)"
        )
    kind = sniff(data)
    if kind not in limits.formats:
        found = f"{kind} pictures are not" if kind else "the bytes are no picture type that is"
        raise InvalidImage(f"{found} accepted; send {', '.join(limits.formats)}")
    source = _guarded(lambda: PIL.Image.open(io.BytesIO(data), formats=[kind]))
    width, height = source.size
    if width * height > limits.max_source_pixels:
        raise TooLarge(
            f"image is {width}x{height}, {width * height / 1e6:.1f} megapixels; "
            f"this server accepts up to {limits.max_source_pixels / 1e6:g}"
        )
    orientation = _orientation(source)
    if orientation >= 5 and not _turns_itself(source):  # a quarter turn
        width, height = height, width
    low, high = _area(limits, detail, min_pixels, max_pixels)
    new_height, new_width = smart_resize(height, width, min_pixels=low, max_pixels=high)
    plan = ImagePlan(
        format=kind,
        original_width=width,
        original_height=height,
        orientation=orientation,
        width=new_width,
        height=new_height,
        warnings=_warnings(width, height, new_width, new_height),
    )
    return source, plan


def _area(
    limits: ImageLimits, detail: Detail, min_pixels: int | None, max_pixels: int | None
) -> tuple[int, int]:
    """The least and largest area in pixels: the request's, else the detail's, within the limits."""
    budget = {
        "auto": limits.budget_pixels,
        "low": LOW_DETAIL_PIXELS,
        "high": limits.max_pixels,
    }[detail]
    high = min(max_pixels if max_pixels is not None else budget, limits.max_pixels)
    high = max(high, FACTOR * FACTOR)
    low = max(min_pixels if min_pixels is not None else 0, min(limits.min_pixels, high))
    return min(low, high), high


def _orientation(source: PIL.Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or the EXIF block is broken."""
    try:
        value = source.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block raises anything; the pixels may still be good
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turns_itself(source: PIL.Image.Image) -> bool:
    """Whether Pillow makes this type upright while it decodes (TIFF, since Pillow 11)."""
    return source.format == "TIFF"


def _read_pixels(source: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """The first frame, upright, RGB."""

    def read() -> PIL.Image.Image:
        source.load()
        rgb = _to_rgb(source)
        turn = None if _turns_itself(source) else _TURNS.get(orientation)
        return rgb if turn is None else rgb.transpose(turn)

    return _guarded(read)


_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """RGB of any mode: transparent parts on white, 16-bit samples scaled, float samples clipped."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion would clip at 255
        wide = np.asarray(image).astype(np.int64)
        if wide.size and wide.max() > 255:
            wide = wide >> 8
        return PIL.Image.fromarray(np.clip(wide, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        samples = np.nan_to_num(np.asarray(image))
        scale = 255.0 if samples.size and samples.max() <= 1.0 else 1.0
        grey = np.clip(samples * scale, 0, 255).astype(np.uint8)
        return PIL.Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = PIL.Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _guarded(read: Callable[[], PIL.Image.Image]) -> PIL.Image.Image:
    """Runs a decoder; whatever it raises on hostile bytes becomes InvalidImage."""
    try:
        return read()
    except MemoryError:
        raise TooLarge("image needs more memory than this server has left") from None
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, ...
        raise InvalidImage("image is damaged or cut off and cannot be read") from error


def _warnings(width: int, height: int, new_width: int, new_height: int) -> tuple[str, ...]:
    """Sentences for the user about what scaling may cost."""
    found = []
    scale = math.sqrt(new_width * new_height / (width * height))
    if scale < 0.6:
        found.append(
            f"scaled to {scale:.0%} of its size: text under {round(11 / scale)} pixels high is "
            "probably lost; ask for more with max_pixels or detail=high, or cut out your part"
        )
    ratio = max(width, height) / min(width, height)
    if ratio > 6:
        found.append(
            f"{ratio:.0f} times longer than wide: positions may be inexact; cut it into parts"
        )
    return tuple(found)
