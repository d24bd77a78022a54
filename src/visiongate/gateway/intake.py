"""What the gateway knows of the loaded model: its template and tokenizer, limits and defaults."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from visiongate.engine.image import DEFAULT_FORMATS, ImageLimits
from visiongate.engine.prompt import Message, PromptBuilder
from visiongate.engine.types import ModelInfo, Prompt
from visiongate.gateway.backend import Backend
from visiongate.gateway.settings import Settings
from visiongate.gateway.upstream import Upstream
from visiongate.model.config import GenerationDefaults


class Builder(Protocol):
    """Turns messages into a prompt."""

    def build(self, messages: Sequence[Message], *, thinks: bool = True) -> Prompt:
        """Raises InvalidParameter when the template refuses the messages."""
        ...


@dataclass(frozen=True, slots=True)
class Intake:
    """Everything that stands between a wire request and an engine request.

    Attributes:
        model_name: the name that the API shows.
        generation: sampling where a request names nothing.
        thinks: answers begin with reasoning, up to `</think>`.
    """

    builder: Builder
    model_name: str
    image_limits: ImageLimits
    generation: GenerationDefaults
    max_context_tokens: int
    thinks: bool = False

    @classmethod
    async def load(cls, backend: Backend, settings: Settings) -> Intake:
        """What there is to know of a backend that has loaded its model."""
        assert backend.model is not None
        if isinstance(backend, Upstream):
            return cls.from_upstream(backend, settings)
        return await asyncio.to_thread(cls.from_model, backend.model, settings)

    @classmethod
    def from_upstream(cls, upstream: Upstream, settings: Settings) -> Intake:
        """Another server's model: its own template and tokenizer stay over there."""
        return cls(
            builder=upstream,
            model_name=settings.model_name or upstream.model_name,
            image_limits=limits_of(settings, min_pixels=4096, max_pixels=16_777_216),
            generation=GenerationDefaults(do_sample=True),
            max_context_tokens=settings.max_context_tokens or 1_000_000,
        )

    @classmethod
    def from_model(cls, model: ModelInfo, settings: Settings) -> Intake:
        """Reads tokenizer and template of the model's folder; takes a second for large ones."""
        builder = PromptBuilder.from_pretrained(model.path)
        vision = builder.config.vision
        return cls(
            builder=builder,
            model_name=settings.model_name or model.model_id,
            image_limits=limits_of(
                settings, min_pixels=vision.min_pixels, max_pixels=vision.max_pixels
            ),
            generation=builder.config.generation,
            max_context_tokens=model.max_context_tokens,
            thinks=builder.opens_thinking,
        )

    def build(self, messages: Sequence[Message], *, thinks: bool = True) -> Prompt:
        """The prompt of a conversation; `thinks` False asks for the answer without reasoning."""
        return self.builder.build(messages, thinks=thinks)


def limits_of(settings: Settings, *, min_pixels: int, max_pixels: int) -> ImageLimits:
    """The operator's and the checkpoint's limits together."""
    return ImageLimits(
        max_bytes=settings.image_bytes,
        max_source_pixels=settings.max_pixels,
        budget_pixels=min(settings.image_area, max_pixels),
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        formats=("JPEG", "PNG") if settings.strict_formats else DEFAULT_FORMATS,
    )
