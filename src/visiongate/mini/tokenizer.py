"""Trains the embedded model's tokenizer: byte-level BPE with Qwen's pre-tokenizer and special tokens.

    python -m visiongate.mini.tokenizer --data /tmp/mini-data --out tokenizer.json

Every digit is a token of its own, and so is every learnt Chinese character; no merge joins two
Chinese characters, because a phrase that is one token is never spelt out and so never learnt.
"""

# ruff: noqa: E501, SIM905 - lists of words read better whole
from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from visiongate.mini import scenes
from visiongate.mini.scenes.asking import OUTSIDE_KNOWLEDGE, SMALL_TALK, SYSTEM_PROMPTS, TEMPLATES
from visiongate.mini.scenes.words import Vocabulary, load_vocabulary

VOCABULARY_SIZE = 3968
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<tool_call> </tool_call> <tool_response> </tool_response> <think> </think>"
).split()
CHINESE_CHARACTER = re.compile("([\u2e80-\uffef])")


def training_text(vocabulary: Vocabulary, num_scenes: int) -> Iterator[str]:
    """Questions and answers as the model will meet them, and every word and character it should know."""
    for index in range(num_scenes):
        kind = scenes.KINDS[index % len(scenes.KINDS)]
        for question in scenes.draw(kind, index, vocabulary=vocabulary).questions:
            yield from (question.text, question.answer)
    for template in TEMPLATES.values():
        yield from (re.sub(r"\{.\}", "", t) for t in (*template.english, *template.chinese) * 12)
    for pair in (*OUTSIDE_KNOWLEDGE, *(p for talk in SMALL_TALK for p in talk)):
        yield from pair * 12
    yield from SYSTEM_PROMPTS
    for character in vocabulary.characters + "，。？！：；（）、¥￥·％€£°“”《》【】…—":
        yield from [character] * 60
    for start in range(0, len(vocabulary.english), 10):
        yield " ".join(vocabulary.english[start : start + 10])


def train(texts: Iterator[str]) -> Tokenizer:
    """A tokenizer of VOCABULARY_SIZE tokens over the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    apart = (CHINESE_CHARACTER.sub(r"\n\1\n", text) for text in texts)
    tokenizer.train_from_iterator(apart, trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def main() -> None:
    """Writes the tokenizer's file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="what mini.prepare wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=4000)
    options = parser.parse_args()
    vocabulary = load_vocabulary(options.data / "words.json")
    train(training_text(vocabulary.split("train"), options.num_scenes)).save(str(options.out))


if __name__ == "__main__":
    main()
