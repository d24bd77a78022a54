"""Answers that must follow a JSON schema, an expression or a grammar, on top of llguidance."""

from __future__ import annotations

import json
from collections.abc import Sequence

import llguidance
import numpy as np
import numpy.typing as npt
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from visiongate.engine.tokenizer import Tokenizer
from visiongate.engine.types import Grammar
from visiongate.errors import InvalidParameter

MAX_GRAMMAR_CHARACTERS = 200_000


class GrammarCompiler:
    """Compiles grammars for one tokenizer; the tokenizer's index is built on first use."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._index: llguidance.LLTokenizer | None = None

    def compile(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher at the beginning of an answer; raises InvalidParameter for a bad grammar."""
        if self._index is None:
            self._index = llguidance.LLTokenizer(
                self._tokenizer.backend.to_str(), n_vocab=self._vocab_size, eos_token=self._eos
            )
        matcher = llguidance.LLMatcher(self._index, _source(grammar), log_level=0)
        if matcher.is_error():
            raise InvalidParameter(
                "the schema or grammar cannot be enforced: " + _first_line(matcher.get_error()),
                param="response_format",
            )
        return GrammarMatcher(matcher, self._vocab_size)


class GrammarMatcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask = allocate_token_bitmask(1, vocab_size)
        self._vocab_size = vocab_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next: (vocabulary,)."""
        fill_next_token_bitmask(self._matcher, self._mask)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        return bits[: self._vocab_size].astype(bool)

    def accept(self, token_id: int) -> bool:
        """Moves on by a token; False when the grammar does not allow it."""
        return bool(self._matcher.consume_token(token_id))

    def forced(self) -> list[int]:
        """The tokens that must come next, already moved past; often none."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        accepted = []
        for token in tokens:
            if not self._matcher.consume_token(token):
                break
            accepted.append(token)
        return accepted

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow any more."""
        return bool(self._matcher.is_stopped())


def validate_grammar(grammar: Grammar) -> None:
    """Checks a grammar's form without a tokenizer; raises InvalidParameter."""
    if len(grammar.text) > MAX_GRAMMAR_CHARACTERS:
        raise InvalidParameter(
            f"the schema has {len(grammar.text)} characters; up to {MAX_GRAMMAR_CHARACTERS} "
            "are accepted",
            param="response_format",
        )
    try:
        error, _ = llguidance.LLMatcher.validate_grammar_with_warnings(_source(grammar), None)
    except ValueError:
        error = "it is not valid"
    if error:
        raise InvalidParameter(
            "the schema or grammar cannot be enforced: " + _first_line(error),
            param="response_format",
        )


def _source(grammar: Grammar) -> str:
    match grammar.kind:
        case "json_object":
            return _from_schema('{"type": "object"}')
        case "json_schema":
            try:
                json.loads(grammar.text)
            except (ValueError, RecursionError):
                raise InvalidParameter(
                    "json_schema.schema is not valid JSON", param="response_format"
                ) from None
            return _from_schema(grammar.text)
        case "regex":
            return str(llguidance.LLMatcher.grammar_from_regex(grammar.text))
        case "lark":
            return str(llguidance.LLMatcher.grammar_from_lark(grammar.text))


def _from_schema(schema: str) -> str:
    """JSON on one line: with free white space a model can stay in it for ever."""
    layout = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return str(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=layout))


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "unknown reason"
