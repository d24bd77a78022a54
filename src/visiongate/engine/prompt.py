"""Messages to a `Prompt`: the checkpoint's chat template, picture pads, 3-D positions."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import numpy.typing as npt

from visiongate.engine.tokenizer import Tokenizer
from visiongate.engine.types import Image, ImageSpan, Prompt
from visiongate.errors import InvalidCheckpoint, InvalidParameter
from visiongate.model.config import ModelConfig, read_json


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One turn: a role and its parts in order, texts and pictures."""

    role: str
    parts: tuple[str | Image, ...]


class PromptBuilder:
    """Builds prompts for one checkpoint.

    Text of users cannot act: a control token's name inside a message is encoded as its letters, so
    `<|im_end|>` in a question does not end the turn.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, chat_template: str) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._template = _compile(chat_template)
        self.opens_thinking = self._opens_thinking()
        """Whether the template begins answers with reasoning, as those of Thinking models do."""

    @classmethod
    def from_pretrained(cls, path: str | Path) -> PromptBuilder:
        """Reads tokenizer and template of a folder; raises InvalidCheckpoint."""
        folder = Path(path)
        return cls(
            ModelConfig.from_pretrained(folder),
            Tokenizer.from_pretrained(folder),
            read_chat_template(folder),
        )

    def build(
        self,
        messages: Sequence[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        thinks: bool = True,
    ) -> Prompt:
        """Renders, tokenises, and puts one pad for every visual token.

        Where the template opens a model's reasoning, `thinks` False closes it again.

        Raises InvalidParameter when the template refuses the messages.
        """
        images = [part for message in messages for part in message.parts if isinstance(part, Image)]
        escape = _Escape(self.tokenizer.special_pattern)
        turns = [_turn(message, escape) for message in messages]
        try:
            rendered = self._template.render(
                messages=turns, add_generation_prompt=True, tools=tools
            )
        except jinja2.TemplateError as error:
            raise InvalidParameter(
                "the model's chat template does not accept these messages; "
                "check the roles and their order",
                param="messages",
            ) from error
        if self.opens_thinking and not thinks:
            rendered = rendered.rstrip() + "\n\n</think>\n\n"
        return self._expand(escape.encode(rendered, self.tokenizer), images)

    def _opens_thinking(self) -> bool:
        question = [{"role": "user", "content": "?"}]
        try:
            rendered = self._template.render(messages=question, add_generation_prompt=True)
        except jinja2.TemplateError:
            return False
        return rendered.rstrip().endswith("<think>")

    def _expand(self, tokens: list[int], images: list[Image]) -> Prompt:
        """Puts `num_tokens` pads where each picture's single pad stands."""
        pad = self.config.image_token_id
        if tokens.count(pad) != len(images):
            raise InvalidParameter(
                "the model's chat template does not place pictures in these messages "
                "(pictures belong into user messages)",
                param="messages",
            )
        token_ids: list[int] = []
        spans: list[ImageSpan] = []
        for token in tokens:
            if token == pad:
                image = images[len(spans)]
                spans.append(ImageSpan(len(token_ids), image))
                token_ids += [pad] * image.num_tokens
            else:
                token_ids.append(token)
        positions, rope_delta = prompt_positions(len(token_ids), spans)
        return Prompt(token_ids, positions, rope_delta, tuple(spans))


def prompt_positions(
    num_tokens: int, spans: Sequence[ImageSpan]
) -> tuple[npt.NDArray[np.int32], int]:
    """Time, height and width of every token, int32 (3, T), and what to add for generated tokens.

    Text advances all three by one. A picture that begins at p has time p everywhere, height
    p + row, width p + column; text goes on after the larger of its sides.
    Source: Qwen3-VL get_rope_index (transformers, models/qwen3_vl).
    """
    positions = np.empty((3, num_tokens), dtype=np.int32)
    place = token = 0
    for span in spans:
        text = span.start - token
        positions[:, token : span.start] = np.arange(place, place + text)
        place += text
        rows, columns = span.image.height // 32, span.image.width // 32
        here = positions[:, span.start : span.end]
        here[0] = place
        here[1] = place + np.repeat(np.arange(rows), columns)
        here[2] = place + np.tile(np.arange(columns), rows)
        place += max(rows, columns)
        token = span.end
    positions[:, token:] = np.arange(place, place + num_tokens - token)
    return positions, place + (num_tokens - token) - num_tokens


def read_chat_template(folder: Path) -> str:
    """The chat template from wherever checkpoints of different age keep it."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(folder / name, default={}).get("chat_template")
        if isinstance(template, list):  # named templates
            template = next((t["template"] for t in template if t.get("name") == "default"), None)
        if isinstance(template, str):
            return template
    raise InvalidCheckpoint(f"{folder} has no chat template")


# Noncharacters: no text has them, and the tokenizer never sees them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


class _Escape:
    """Carries control tokens' names through the template as numbered marks."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._literals: list[str] = []

    def hide(self, text: str) -> str:
        """The text with every control token's name replaced by a mark."""
        clean = text.replace(_OPEN, "\ufffd").replace(_CLOSE, "\ufffd")
        return self._pattern.sub(self._mark, clean)

    def encode(self, rendered: str, tokenizer: Tokenizer) -> list[int]:
        """Tokens of the rendered prompt, each mark as the letters that it stands for."""
        tokens: list[int] = []
        pieces = re.split(f"{_OPEN}([0-9]+){_CLOSE}", rendered)
        for index, piece in enumerate(pieces):
            if index % 2:
                tokens += tokenizer.encode_literally(self._literals[int(piece)])
            elif piece:
                tokens += tokenizer.encode(piece)
        return tokens

    def _mark(self, match: re.Match[str]) -> str:
        self._literals.append(match.group())
        return f"{_OPEN}{len(self._literals) - 1}{_CLOSE}"


def _turn(message: Message, escape: _Escape) -> dict[str, Any]:
    """A message as templates expect it: one string where there is only text."""
    if all(isinstance(part, str) for part in message.parts):
        text = "".join(escape.hide(str(part)) for part in message.parts)
        return {"role": message.role, "content": text}
    content = [
        {"type": "image"}
        if isinstance(part, Image)
        else {"type": "text", "text": escape.hide(part)}
        for part in message.parts
    ]
    return {"role": message.role, "content": content}


def _compile(source: str) -> jinja2.Template:
    """The template in a sandbox, with the helpers that published templates use."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)  # noqa: DTZ005  # local time is meant
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise InvalidCheckpoint("the checkpoint's chat template cannot be parsed") from error


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
