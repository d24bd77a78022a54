"""Gathers what training needs beside this package: large word lists and small font files.

The packages to install and the commands to run stand in README.md beside this file.

    python -m visiongate.mini.prepare --jieba dict.txt --out /tmp/mini-data

Nothing of this is part of the package: fonts and lists stay with their owners.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from visiongate.mini.scenes import asking
from visiongate.mini.scenes.fonts import (
    BUILTIN,
    CJK_COLLECTION_INDEX,
    FontBook,
    system_fonts,
)

NUM_COMMON_CHARACTERS = 1200
NUM_CHINESE_WORDS = 9000
NUM_ENGLISH_WORDS = 30000
PUNCTUATION = "，。？！：；（）、¥￥·％—“”《》【】／元"
CHINESE = re.compile("[\u4e00-\u9fff]")


def main() -> None:
    """Writes OUT/words.json and OUT/fonts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jieba", type=Path, required=True, help="dict.txt of the jieba package")
    parser.add_argument("--english", type=Path, default=Path("/usr/share/dict/american-english"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    characters, chinese = chinese_words(options.jieba)
    lists = {
        "english": english_words(options.english),
        "chinese": chinese,
        "characters": characters,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "words.json").write_text(json.dumps(lists, ensure_ascii=False), "utf-8")
    cut_fonts(characters, options.out / "fonts")


def own_characters() -> set[str]:
    """Every Chinese character in this package's own sentences and labels."""
    folder = Path(asking.__file__).parent
    return set(CHINESE.findall("".join(f.read_text("utf-8") for f in sorted(folder.glob("*.py")))))


def chinese_words(dictionary: Path) -> tuple[str, list[str]]:
    """The characters that the model learns, and frequent words made of them."""
    frequency: Counter[str] = Counter()
    words: list[tuple[int, str]] = []
    for line in dictionary.read_text("utf-8").splitlines():
        word, count = line.split(" ")[:2]
        if re.fullmatch("[\u4e00-\u9fff]{1,4}", word):
            for character in word:
                frequency[character] += int(count)
            if len(word) >= 2:
                words.append((int(count), word))
    common = {c for c, _ in frequency.most_common(NUM_COMMON_CHARACTERS)}
    known = common | own_characters()
    kept = [w for _, w in sorted(words, reverse=True) if set(w) <= known]
    return "".join(sorted(known)), kept[:NUM_CHINESE_WORDS]


def english_words(dictionary: Path) -> list[str]:
    """Lower-case words of two to ten letters."""
    words = sorted(
        {w for w in dictionary.read_text("utf-8").split() if re.fullmatch("[a-z]{2,10}", w)}
    )
    random.Random(1).shuffle(words)
    return words[:NUM_ENGLISH_WORDS]


def cut_fonts(characters: str, out: Path) -> None:
    """Subsets of this machine's known faces that hold the learnt characters; names stay."""
    out.mkdir(parents=True, exist_ok=True)
    ascii_text = "".join(map(chr, range(32, 127))) + "€£¥°"
    books = (system_fonts(), system_fonts(held_out=True))
    for source in sorted({f for book in books for f in (*book.latin, *book.chinese)} - {BUILTIN}):
        stem = Path(source).stem
        is_chinese = any(source in book.chinese for book in books)
        text = ascii_text + (characters + PUNCTUATION if is_chinese else "")
        target = out / (stem + (".otf" if "CJK" in stem else ".ttf"))
        _subset(source, text, target)


def _subset(source: str, text: str, target: Path) -> None:
    stem = target.stem.split("-")[0]
    number = (
        [f"--font-number={CJK_COLLECTION_INDEX.get(stem, 0)}"] if source.endswith(".ttc") else []
    )
    command = [sys.executable, "-m", "fontTools.subset", source, *number, f"--text={text}"]
    command += ["--no-hinting", "--desubroutinize", "--layout-features=", f"--output-file={target}"]
    command += ["--drop-tables+=GSUB,GPOS,kern,vhea,vmtx,VORG,BASE"]
    subprocess.run(command, check=True)  # noqa: S603 - a fixed command over local files


__all__ = ["FontBook", "main"]

if __name__ == "__main__":
    main()
