"""From the wire to an `Ask`: sampling defaults, content parts, response formats, sessions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request

from visiongate.engine.types import Grammar, SamplingParams, TokenLogprob
from visiongate.errors import InvalidParameter
from visiongate.gateway.media import decode_base64, decode_data_url
from visiongate.gateway.problems import not_found
from visiongate.gateway.schemas import (
    ChatMessage,
    ChatRequest,
    ImageUrl,
    ResponseFormat,
    TextPart,
)
from visiongate.gateway.sessions import Picture, Role, Turn
from visiongate.gateway.settings import Settings
from visiongate.model.config import GenerationDefaults

if TYPE_CHECKING:
    from visiongate.gateway.service import Service

MAX_STOPS: Final = 16
MAX_STOP_CHARACTERS: Final = 200
MAX_SCHEMA_CHARACTERS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request says about sampling; None where it says nothing."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    num_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    repetition_guard: bool = True


def sampling_params(service: Service, wish: Sampling) -> SamplingParams:
    """As `params_of`, for the loaded model."""
    return params_of(service.settings, service.answers.check_ready().generation, wish)


def params_of(settings: Settings, defaults: GenerationDefaults, wish: Sampling) -> SamplingParams:
    """The request's wishes over the checkpoint's defaults, within the server's limits."""
    max_tokens = wish.max_tokens
    if max_tokens is None:
        max_tokens = min(settings.default_max_tokens, settings.max_tokens)
    if max_tokens > settings.max_tokens:
        raise InvalidParameter(
            f"max_tokens is {max_tokens}; this server allows 1 to {settings.max_tokens}",
            param="max_tokens",
        )
    is_sampled = defaults.do_sample
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_or(wish.temperature, defaults.temperature if is_sampled else 0.0),
        top_p=_or(wish.top_p, defaults.top_p if is_sampled else 1.0),
        top_k=_or(wish.top_k, defaults.top_k if is_sampled else 0),
        min_p=_or(wish.min_p, 0.0),
        repetition_penalty=_or(wish.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_or(wish.presence_penalty, 0.0),
        frequency_penalty=_or(wish.frequency_penalty, 0.0),
        seed=None if wish.seed is None else wish.seed % 2**63,
        stop=_stops(wish.stop),
        num_logprobs=wish.num_logprobs,
        grammar=_grammar(wish.response_format),
        guard=wish.repetition_guard,
    )


async def turns_of(service: Service, messages: Sequence[ChatMessage]) -> list[Turn]:
    """The conversation; raises what is wrong with a message, naming it."""
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        name = f"messages[{index}].content"
        role: Role = "system" if message.role == "developer" else message.role
        content = message.content
        if content is None:
            if role != "assistant":
                raise InvalidParameter(f"{name} is missing", param=name)
            content = ""
        if isinstance(content, str):
            turns.append(Turn(role, (content,)))
            continue
        parts: list[str | Picture] = []
        for number, part in enumerate(content):
            if isinstance(part, TextPart):
                parts.append(part.text)
                continue
            param = f"{name}[{number}].image_url.url"
            if role != "user":
                raise InvalidParameter(
                    f"{param} stands in a message of {role}; images belong into user messages",
                    param=param,
                )
            parts.append(await picture_of_url(service, part.image_url, param=param))
        turns.append(Turn(role, tuple(parts)))
    last = turns[-1]
    if last.role != "user" or not _has_content(last):
        name = f"messages[{len(turns) - 1}].content"
        raise InvalidParameter(f"{name} must be a question: text of the user", param=name)
    return turns


async def picture_of_url(service: Service, image: ImageUrl, *, param: str) -> Picture:
    """The picture behind a data: URL, or an http(s) URL where its host is allowed."""
    url = image.url.strip()
    limit = service.settings.image_bytes
    wishes = image.detail, image.min_pixels, image.max_pixels
    if url[:5].lower() == "data:":

        def read() -> Picture:
            return Picture(decode_data_url(url, param=param, limit=limit), "", *wishes)

        return service.known.picture(url, *wishes, read=read)
    if url[:7].lower() == "http://" or url[:8].lower() == "https://":
        data = await service.fetcher.fetch(url, param=param)
    else:
        raise InvalidParameter(
            f"{param} must be a data: URL such as data:image/png;base64,…", param=param
        )
    return Picture(data, "", *wishes)


def turn_of_chat(service: Service, body: ChatRequest, *, has_history: bool) -> Turn:
    """The user's turn of /api/chat: pictures first, then the question."""
    question = required_text(body.prompt, "prompt")
    encoded = [(body.image, "image")] if body.image else []
    encoded += [(image, f"images[{i}]") for i, image in enumerate(body.images or [])]
    if not encoded and not has_history:
        raise InvalidParameter(
            "image is missing; send the picture as base64, or a session_id to go on about an "
            "earlier one",
            param="image",
        )
    limit = service.settings.image_bytes
    sizes = body.detail, body.min_pixels, body.max_pixels
    pictures = [
        Picture(decode_base64(text, param=param, limit=limit), "", *sizes)
        for text, param in encoded
    ]
    return Turn("user", (*pictures, question))


def required_text(text: str, param: str) -> str:
    """A text that is not blank."""
    if not text.strip():
        raise InvalidParameter(f"{param} is empty; ask a question", param=param)
    return text


def check_model(service: Service, model: str) -> None:
    """Raises 404 for a model that is not the served one, its alias or empty."""
    if not model or model in service.model_aliases():
        return
    raise not_found(f"the model {model[:100]!r}", param="model")


def wants_queue_events(request: Request) -> bool:
    """Whether the caller asked to see its place in the queue."""
    return "queue" in request.headers.get("x-visiongate-events", "").lower()


def logprobs_wire(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Log probabilities in OpenAI's shape."""
    return {"content": [_logprob(item) for item in logprobs], "refusal": None}


def _logprob(item: TokenLogprob) -> dict[str, Any]:
    return {
        "token": item.text,
        "logprob": item.logprob,
        "bytes": list(item.text.encode()),
        "top_logprobs": [
            {"token": text, "logprob": logprob, "bytes": list(text.encode())}
            for _, text, logprob in item.top
        ],
    }


def _has_content(turn: Turn) -> bool:
    return any(isinstance(part, Picture) or part.strip() for part in turn.parts)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(found) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in found):
        raise InvalidParameter(
            f"stop may have up to {MAX_STOPS} strings of {MAX_STOP_CHARACTERS} characters",
            param="stop",
        )
    if any(not text for text in found):
        raise InvalidParameter("stop has an empty string", param="stop")
    return found


def _grammar(wish: ResponseFormat | None) -> Grammar | None:
    if wish is None or wish.type == "text":
        return None
    if wish.type == "json_object":
        return Grammar("json_object")
    if wish.json_schema is None:
        name = "response_format.json_schema"
        raise InvalidParameter(f"{name} is missing", param=name)
    text = json.dumps(wish.json_schema.schema_, ensure_ascii=False)
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise InvalidParameter(
            f"response_format.json_schema has {len(text)} characters; up to "
            f"{MAX_SCHEMA_CHARACTERS} are accepted",
            param="response_format",
        )
    return Grammar("json_schema", text)
