"""The wire: what callers send and get, as pydantic models; nothing inside uses them.

`parse` turns a body into a model or raises InvalidParameter naming the field at fault.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from visiongate.errors import InvalidParameter, InvalidRequest

Model = TypeVar("Model", bound=BaseModel)


class Wire(BaseModel):
    """The base of all that is sent to us: unknown fields and infinite numbers are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


Temperature = Annotated[float, Field(ge=0, le=2)]
Probability = Annotated[float, Field(gt=0, le=1)]
Deadline = Annotated[int, Field(ge=1, le=86_400_000)]
Pixels = Annotated[int, Field(ge=1024, le=1_000_000_000)]
Detail = Literal["auto", "low", "high"]


class TextPart(Wire):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Wire):
    """A picture: a data: URL, or an http(s) URL of an allowed host."""

    url: str = Field(min_length=1)
    detail: Detail = "auto"
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None


class ImagePart(Wire):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(Wire):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None


class StreamOptions(Wire):
    """What a stream carries besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(Wire):
    """A JSON schema that the answer must follow."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    """Plain text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatCompletionRequest(Wire):
    """The body of POST /v1/chat/completions."""

    model: str = ""
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    session_id: str | None = Field(None, max_length=100)
    deadline_ms: Deadline | None = None
    annotate: bool = False
    repetition_guard: bool = True
    # Fields of OpenAI's API that change nothing here.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None
    tools: list[Any] | None = Field(None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    modalities: list[Literal["text"]] | None = None


class ChatRequest(Wire):
    """The body of POST /api/chat, and one item of POST /api/batch."""

    image: str | None = None
    images: list[str] | None = None
    prompt: str
    temperature: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    session_id: str | None = Field(None, max_length=100)
    stream: bool = False
    detail: Detail = "auto"
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None
    deadline_ms: Deadline | None = None
    annotate: bool = False


class PlanRequest(Wire):
    """The body of POST /v1/images/plan."""

    image: str = Field(min_length=1)
    detail: Detail = "auto"
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None


class PromptTokensDetails(BaseModel):
    """Where the prompt's tokens came from."""

    image_tokens: int
    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """What the answer's tokens were for."""

    reasoning_tokens: int


class UsageReport(BaseModel):
    """Tokens and time of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    total_time_ms: int


class ImageReceipt(BaseModel):
    """What the model saw of one picture."""

    format: str
    original_width: int
    original_height: int
    orientation: int
    width: int
    height: int
    scale: float
    tokens: int
    cache_hit: bool
    warnings: list[str]


class Timing(BaseModel):
    """The stages of one request, in milliseconds."""

    queue_ms: int
    decode_ms: int
    encode_ms: int
    prefill_ms: int
    first_token_ms: int
    total_ms: int


class VisionReceipt(BaseModel):
    """What the model saw, and how long each stage took."""

    images: list[ImageReceipt]
    timing: Timing


class BoxReport(BaseModel):
    """A box of the answer in pixels of the upright original: x1, y1, x2, y2."""

    label: str
    bbox: list[int]
    image: int


class AnswerMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None = None
    reasoning_content: str | None = None
    """What a thinking model thought first; absent where it thought nothing."""


class Choice(BaseModel):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: str


class ChatCompletion(BaseModel):
    """The response of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: UsageReport
    vision: VisionReceipt
    boxes: list[BoxReport]
    session_id: str | None = None
    annotated_image: str | None = None


class ChatReply(BaseModel):
    """The response of POST /api/chat."""

    response: str
    reasoning_content: str | None = None
    session_id: str
    finish_reason: str
    usage: UsageReport
    vision: VisionReceipt
    boxes: list[BoxReport]
    annotated_image: str | None = None


class PlanReply(BaseModel):
    """The response of POST /v1/images/plan."""

    format: str
    size_bytes: int
    original_width: int
    original_height: int
    orientation: int
    width: int
    height: int
    scale: float
    tokens: int
    fits: bool
    estimated_seconds: float | None
    warnings: list[str]


class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """Every error under /v1."""

    error: ErrorDetail


class AnthropicErrorDetail(BaseModel):
    """What went wrong, in Anthropic's words."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """Every error of /v1/messages."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str


class PlainError(BaseModel):
    """Every error outside /v1."""

    error: str


def parse(model: type[Model], body: bytes) -> Model:
    """The body as a wire type; raises InvalidRequest, or InvalidParameter naming the field."""
    if not body.strip():
        raise InvalidRequest("the body is empty; send a JSON object")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise explain(error) from None


def explain(error: ValidationError) -> InvalidRequest:
    """The first fault as a sentence of ours."""
    faults = error.errors(include_url=False)
    field = faults[0]["loc"][:1]
    # Of a union's alternatives, the fault that lies deepest is about the one that was meant.
    fault = max((f for f in faults if f["loc"][:1] == field), key=lambda f: len(f["loc"]))
    kind: str = fault["type"]
    if kind == "json_invalid":
        return InvalidRequest("the body is not valid JSON, or is nested too deeply")
    path = _without_tags(fault["loc"])
    name = _dotted(path)
    if not name:
        return InvalidRequest("the body must be a JSON object")
    context: dict[str, Any] = fault.get("ctx", {})
    text = _SENTENCES.get(kind)
    if text is None:
        text = _BY_TYPE.get(kind.removesuffix("_type").removesuffix("_parsing"), "is not valid")
    if kind == "too_long" and path[-1] in {"tools", "logit_bias"}:
        text = "is not supported by this server"
    return InvalidParameter(f"{name} {text.format_map(_Blank(context))}", param=name)


class _Blank(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"


def _without_tags(location: tuple[int | str, ...]) -> list[int | str]:
    """A fault's path without the names of union alternatives, which callers never wrote."""
    path: list[int | str] = []
    parts = iter(location)
    for part in parts:
        if part == "str":
            continue
        if str(part).startswith("list["):  # then comes the index, then the alternative's tag
            path += [index for index in [next(parts, None)] if index is not None]
            next(parts, None)
            continue
        path.append(part)
    return path


def _dotted(path: list[Any]) -> str:
    """A path in the caller's words: messages[0].content[1].text."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return name[:200]


_SENTENCES: Final = {
    "missing": "is missing",
    "extra_forbidden": "is not a field that this endpoint knows",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be one of {expected}",
    "string_too_short": "is empty",
    "string_too_long": "is longer than {max_length} characters",
    "too_short": "needs at least {min_length} item",
    "too_long": "has more than {max_length} items",
    "union_tag_invalid": "has an unknown type; it must be one of {expected_tags}",
    "union_tag_not_found": "has no type",
    "finite_number": "must be a finite number",
    "string_unicode": "is not valid Unicode text",
}

_BY_TYPE: Final = {
    "string": "must be a string",
    "int": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "list": "must be a list",
    "dict": "must be an object",
    "list[": "must be text or a list of parts",
    "model": "must be an object",
    "model_attributes": "must be an object",
}
