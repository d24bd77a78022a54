"""Every setting of VisionGate in one table, and how a value is found.

    flags  >  environment  >  TOML file  >  preset  >  default

`load()` is the only door: it returns frozen `Settings` or raises InvalidSettings with the name, the
value and the allowed range. `origin(name)` tells which layer a value came from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
)

from visiongate.errors import InvalidSettings

Preset = Literal["mini", "cpu", "pro"]
Precision = Literal["float32", "bfloat16", "int8", "float8"]
Device = Literal["auto", "cpu", "cuda"]

PREFIX: Final = "VISIONGATE_"
MIB: Final = 1024 * 1024

PLAIN_NAMES: Final = {
    "max_concurrency": "MAX_CONCURRENCY",
    "batch_size": "BATCH_SIZE",
    "use_onnx_runtime": "USE_ONNX_RUNTIME",
    "model": "MODEL_PATH",
}
"""Variables that are promised without the prefix; the prefixed name wins when both are set."""

PRESETS: Final[Mapping[Preset, Mapping[str, object]]] = {
    "mini": {},
    "cpu": {"model": "Qwen/Qwen3-VL-2B-Instruct", "device": "cpu"},
    "pro": {
        "model": "Qwen/Qwen3-VL-4B-Instruct",
        "port": 8501,
        "precision": "bfloat16",
        "device": "cuda",
        "max_concurrency": 64,
        "max_queue": 512,
    },
}

TITLES: Final[Mapping[Preset, str]] = {
    "mini": "VisionGate mini",
    "cpu": "Qwen3-VL-2B",
    "pro": "Qwen3-VL-4B Pro · 多模态理解引擎",
}


def _split(value: object) -> object:
    """Commas separate the items of a list that is written as one string."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_split)]


class Settings(BaseModel):
    """Every setting; frozen, complete and within its range."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    # What runs
    preset: Preset = Field("mini", description="The edition: which model, port and numeric type.")
    model: str = Field(
        "", description="A model folder or a hub's id; empty is the preset's own model."
    )
    model_name: str = Field("", description="The name that the API shows; empty derives it.")
    precision: Precision = Field(
        "float32", description="Numeric type of the weights; float8 is for GPUs."
    )
    device: Device = Field("auto", description="Where the model runs; auto prefers a GPU.")
    threads: int = Field(
        0, ge=0, le=1024, description="Compute threads; 0 follows the CPU quota of the container."
    )
    use_onnx_runtime: bool = Field(
        False, description="Encode pictures in ONNX Runtime on the CPU (extra `onnx`)."
    )
    cache_tokens: int = Field(
        0, ge=0, le=100_000_000, description="Tokens in the key-value cache; 0 sizes it by memory."
    )
    max_context_tokens: int = Field(
        0, ge=0, le=1_000_000, description="Longest prompt and answer; 0 is the model's own limit."
    )
    cpu_fallback: bool = Field(
        True, description="Serve on the CPU, marked degraded, when a GPU cannot load the model."
    )
    upstream: str = Field(
        "", description="Base URL of another OpenAI-compatible engine to stand in front of."
    )
    upstream_key: SecretStr = Field(SecretStr(""), description="The key sent to the upstream.")

    # The door
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    insecure: bool = Field(
        False, description="Allow everybody who reaches the port when no key exists."
    )
    api_keys: Secrets = Field((), description="Keys with every scope, separated by commas.")
    public_metrics: bool = Field(False, description="Serve /metrics without a key.")
    cors_origins: Names = Field((), description="Web origins that browsers may call from.")
    trusted_proxies: Names = Field(
        (), description="Proxy addresses whose X-Forwarded-For header is believed."
    )
    image_hosts: Names = Field(
        (), description="Hosts that image URLs may name; empty refuses every URL."
    )
    private_image_hosts: bool = Field(
        False, description="Let allow-listed hosts resolve to private addresses."
    )

    # Limits
    max_concurrency: int = Field(3, ge=1, le=4096, description="Requests that run together.")
    batch_size: int = Field(1, ge=1, le=256, description="Waiting prompts prefilled together.")
    max_queue: int = Field(64, ge=0, le=100_000, description="Requests that may wait.")
    max_tokens: int = Field(2048, ge=1, le=1_000_000, description="Most tokens of one answer.")
    default_max_tokens: int = Field(
        512, ge=1, le=1_000_000, description="Answer length where the request names none."
    )
    max_choices: int = Field(4, ge=1, le=64, description="Largest n of one request.")
    max_images: int = Field(8, ge=1, le=1000, description="Pictures in one request.")
    max_batch_items: int = Field(64, ge=1, le=10_000, description="Items in one /api/batch call.")
    image_bytes: int = Field(
        10 * MIB, ge=1024, le=1024 * MIB, description="Bytes of one picture before decoding."
    )
    body_bytes: int = Field(
        64 * MIB, ge=4096, le=4096 * MIB, description="Bytes of one request's body."
    )
    file_bytes: int = Field(
        256 * MIB, ge=4096, le=4096 * MIB, description="Bytes of one uploaded batch file."
    )
    max_pixels: int = Field(
        64_000_000, ge=1024, le=1_000_000_000, description="Pixels of one picture before scaling."
    )
    image_area: int = Field(
        1024 * 1024,
        ge=1024,
        le=64_000_000,
        description="Pixels that the model sees of one picture; larger ones are scaled down.",
    )
    strict_formats: bool = Field(False, description="Accept only JPEG and PNG.")
    upload_seconds: float = Field(
        30.0, gt=0, le=3600, description="Longest pause while a body is received."
    )
    upload_bytes_per_second: int = Field(
        1024, ge=0, le=1_000_000_000, description="Slowest upload after the first ten seconds."
    )
    deadline_seconds: float = Field(
        0.0, ge=0, le=86400, description="Time for one answer where it names none; 0 has no end."
    )
    drain_seconds: int = Field(
        60, ge=0, le=3600, description="After a stop signal, answers under way may take this long."
    )
    memory_limit: int = Field(
        0, ge=0, description="Bytes that the service may use; 0 follows the container or machine."
    )
    gpu_memory_limit: int = Field(
        0, ge=0, description="Bytes of each card that its worker may use; 0 is all that is free."
    )
    heartbeat_seconds: float = Field(
        10.0, gt=0, le=300, description="Pause between comment lines of a silent stream."
    )
    stuck_seconds: float = Field(
        10.0, gt=0, le=3600, description="A worker silent for this long makes /health/ready false."
    )

    # What is kept
    session_seconds: float = Field(
        3600.0, gt=0, le=30 * 86400, description="A session is forgotten this long after its use."
    )
    session_bytes: int = Field(
        256 * MIB, ge=MIB, description="Memory for sessions; the oldest go first."
    )
    max_sessions: int = Field(1000, ge=1, le=1_000_000, description="Sessions kept at once.")
    redis_url: SecretStr = Field(
        SecretStr(""),
        description="Keep sessions, rates and quotas in this Redis, shared by gateways.",
    )
    data_dir: Path = Field(
        Path("data"), description="Folder of the database: keys, audit, files, batches."
    )
    log_dir: Path = Field(Path("logs"), description="Folder of the three log files.")
    log_bytes: int = Field(10 * MIB, ge=4096, description="A log file is rotated at this size.")
    log_files: int = Field(5, ge=1, le=1000, description="Rotated files kept of each log.")
    audit: bool = Field(True, description="Keep a hash-chained record of every request.")
    debug: bool = Field(False, description="Say more on the terminal.")

    def origin(self, name: str) -> str:
        """The layer that gave a setting its value."""
        return self._origins.get(name, "default")

    @property
    def title(self) -> str:
        """The page's title."""
        if self.model and self.model != PRESETS[self.preset].get("model", ""):
            return self.model_name or Path(self.model.rstrip("/")).name
        return TITLES[self.preset]

    @property
    def is_demo(self) -> bool:
        """Whether the embedded demonstration model answers."""
        return not self.model and not self.upstream

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the port."""
        return self.host in {"127.0.0.1", "::1", "localhost"} or self.host.startswith("127.")


def load(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> Settings:
    """The settings of this start; None among the flags means that a flag was not given.

    Raises InvalidSettings for an unknown name in a file or flag, and for a value out of its range.
    """
    environ = os.environ if environ is None else environ
    if config is None and environ.get(f"{PREFIX}CONFIG"):
        config = Path(environ[f"{PREFIX}CONFIG"])
    layers: list[tuple[str, Mapping[str, object]]] = [
        ("file", _from_file(config) if config else {}),
        ("environment", _from_environment(environ)),
        ("flag", {k: v for k, v in (flags or {}).items() if v is not None}),
    ]
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for layer, found in layers:
        values.update(found)
        origins.update(dict.fromkeys(found, layer))
    preset = values.get("preset", "cpu" if values.get("model") else "mini")
    values["preset"] = preset
    for name, value in PRESETS.get(preset, {}).items():  # type: ignore[call-overload]  # any value
        if values.get(name) in (None, ""):
            values[name] = value
            origins[name] = "preset"
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise InvalidSettings(_explain(error, origins)) from None
    settings._origins.update(origins)
    return settings


def environment_names(name: str) -> list[str]:
    """The variables that set a setting, the stronger one first."""
    plain = PLAIN_NAMES.get(name)
    return [PREFIX + name.upper(), *([plain] if plain else [])]


def allowed_values(name: str) -> str:
    """The range of a setting in words, such as "1 to 4096"."""
    schema = Settings.model_json_schema()["properties"][name]
    if "enum" in schema:
        return ", ".join(schema["enum"])
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    above = "more than " if "exclusiveMinimum" in schema else ""
    if low is not None and high is not None:
        return f"{above}{low:g} to {high:g}" if isinstance(low, float) else f"{low} to {high}"
    if low is not None:
        return f"{above}{low} or more"
    words = {"boolean": "true or false", "array": "a list, separated by commas"}
    return words.get(schema.get("type", ""), "text")


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in Settings.model_fields:
        for variable in environment_names(name):
            if environ.get(variable, "") != "":
                found[name] = environ[variable]
                break
    return found


def _from_file(path: Path) -> Mapping[str, object]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # Python 3.10 has no TOML reader of its own
    try:
        with path.open("rb") as file:
            found: dict[str, object] = tomllib.load(file)
    except OSError:
        raise InvalidSettings(f"the settings file {path} cannot be read") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidSettings(f"the settings file {path} is not TOML: {error}") from None
    return found


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    """One sentence for each wrong value: the name, the value, the range, where it came from."""
    sentences: list[str] = []
    for fault in error.errors():
        name = str(fault["loc"][0])
        if fault["type"] == "extra_forbidden":
            sentences.append(f"{name} is not a setting; `visiongate config show` lists them all")
            continue
        value: Any = fault["input"]
        shown = "(hidden)" if name in _SECRET else repr(value)
        where = origins.get(name, "default")
        source = environment_names(name)[0] if where == "environment" else name
        sentences.append(f"{source}={shown} ({where}) is not allowed: {allowed_values(name)}")
    return "; ".join(sentences)


_SECRET: Final = frozenset({"api_keys", "upstream_key", "redis_url"})
