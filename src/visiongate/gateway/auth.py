"""Decides who may call what: keys, scopes and rates, denied by default.

The decision is made on the ASGI scope's path, the same that the router sees; nothing else of the
request (Host, slashes, queries) can change it. A path that is not listed as public needs a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from starlette.types import ASGIApp, Receive, Scope, Send

from visiongate.errors import InvalidSettings, Unavailable
from visiongate.gateway.logs import note_of
from visiongate.gateway.problems import Problem, ProblemError, problem_of
from visiongate.gateway.rates import Rates
from visiongate.gateway.settings import Settings
from visiongate.gateway.store import KeyRecord, Store

ScopeName = Literal["chat", "batch", "metrics", "admin"]
ALL_SCOPES: Final[frozenset[str]] = frozenset(get_args(ScopeName))

PUBLIC_PATHS: Final = frozenset(
    {
        "/",
        "/favicon.ico",
        "/health",
        "/health/live",
        "/health/ready",
        "/version",
        "/docs",
        "/docs/style.css",
        "/openapi.json",
        "/api/status",
        "/api/status/stream",
        "/samples/index.json",
    }
)
PUBLIC_PREFIXES: Final = ("/assets/", "/samples/")

_SCOPES: Final[tuple[tuple[str, ScopeName], ...]] = (
    ("/metrics", "metrics"),
    ("/health/details", "admin"),
    ("/api/batch", "batch"),
    ("/v1/files", "batch"),
    ("/v1/batches", "batch"),
)
"""The scope that a path needs; all others need `chat`."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request belongs to.

    Attributes:
        id: owns sessions, files and batches.
        salt: keeps cached prefixes of different keys apart.
        max_running: requests of this key that run together; None for no bound.
        tokens_per_day: 0 for no bound.
    """

    id: str = "-"
    name: str = ""
    scopes: frozenset[str] = ALL_SCOPES
    salt: bytes = b""
    requests_per_minute: int = 0
    tokens_per_day: int = 0
    max_running: int | None = None


ANYBODY: Final = Caller()


class Keys:
    """The keys of the settings and of the store, found by their digest."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._fixed = {
            digest_of(key.get_secret_value()): Caller(
                id=f"key_{digest_of(key.get_secret_value())[:12]}",
                name="settings",
                salt=_salt(digest_of(key.get_secret_value())),
            )
            for key in settings.api_keys
        }
        self._is_public_metrics = settings.public_metrics

    @property
    def is_open(self) -> bool:
        """Whether no key exists, so that nobody is asked for one."""
        return not self._fixed and not self._store.has_keys()

    def find(self, key: str) -> Caller | None:
        """The caller whose key this is."""
        digest = digest_of(key)
        fixed = self._fixed.get(digest)
        if fixed is not None:
            return fixed
        record = self._store.find_key(digest)
        return _caller(record) if record is not None else None

    def caller_by_id(self, caller_id: str) -> Caller:
        """The caller with this id; work that a key left behind goes on after the key ended."""
        for caller in self._fixed.values():
            if caller.id == caller_id:
                return caller
        for record in self._store.list_keys():
            if record.id == caller_id:
                return _caller(record)
        return replace(ANYBODY, id=caller_id)

    def is_public(self, path: str) -> bool:
        """Whether a path is served without a key."""
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIXES):
            return True
        return path == "/metrics" and self._is_public_metrics


class Authorisation:
    """ASGI middleware: finds the caller, or answers 401, 403 or 429."""

    def __init__(self, app: ASGIApp, *, keys: Keys, rates: Rates) -> None:
        self.app = app
        self.keys = keys
        self.rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the request pass with `scope["visiongate.caller"]` set."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        note = note_of(scope)
        try:
            caller = self._caller(scope, path)
            scope["visiongate.caller"] = caller
            note.who = caller.id
            if not self.keys.is_public(path):
                await self.rates.count_request(caller)
        except (ProblemError, Unavailable) as error:
            response = problem_of(error, path).response(path, note.request_id)
            response.headers["connection"] = "close"  # an unread body may follow
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _caller(self, scope: Scope, path: str) -> Caller:
        if self.keys.is_open:
            return ANYBODY
        key = key_of(scope)
        caller = self.keys.find(key) if key else None
        if self.keys.is_public(path):
            return caller or Caller(id="-", scopes=frozenset())
        if caller is None:
            raise _unauthorised(is_missing=not key)
        needed = scope_of(path)
        if needed not in caller.scopes:
            raise ProblemError(
                Problem(403, f"this key does not have the scope {needed!r}", "missing_scope")
            )
        return caller


def caller_of(scope: Scope) -> Caller:
    """Who the request of a scope belongs to."""
    caller: Caller = scope["visiongate.caller"]
    return caller


def key_of(scope: Scope) -> str:
    """The key that a request carries: Bearer, Basic (as the password) or X-API-Key; "" for none."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, rest = value.decode("latin-1").partition(" ")
            if kind.lower() == "bearer":
                return str(rest.strip())
            if kind.lower() == "basic":
                return _basic_password(rest.strip())
        if name == b"x-api-key":
            return str(value.decode("latin-1").strip())
    return ""


def scope_of(path: str) -> ScopeName:
    """The scope that a path needs."""
    for prefix, name in _SCOPES:
        if path == prefix or path.startswith(f"{prefix}/"):
            return name
    return "chat"


def new_key() -> str:
    """A key with 256 random bits."""
    return f"vg_{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> str:
    """What is stored of a key. Keys are random and long, so one round of SHA-256 is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def check_door(settings: Settings, *, has_keys: bool) -> None:
    """Raises InvalidSettings when everybody on the network could call without a key."""
    if settings.is_loopback or has_keys or settings.insecure:
        return
    raise InvalidSettings(
        f"refusing to listen on {settings.host} without a key: set VISIONGATE_API_KEYS, make a key "
        "with `visiongate keys create`, or pass --insecure to let everybody in"
    )


def _caller(record: KeyRecord) -> Caller:
    return Caller(
        id=record.id,
        name=record.name,
        scopes=frozenset(record.scopes),
        salt=_salt(record.digest),
        requests_per_minute=record.requests_per_minute,
        tokens_per_day=record.tokens_per_day,
        max_running=record.max_running or None,
    )


def _salt(digest: str) -> bytes:
    return hashlib.sha256(b"cache" + digest.encode()).digest()[:16]


def _basic_password(encoded: str) -> str:
    try:
        pair = base64.b64decode(encoded, validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""
    return pair.partition(":")[2]


def _unauthorised(*, is_missing: bool) -> ProblemError:
    text = (
        "a key is required: send `Authorization: Bearer KEY`"
        if is_missing
        else "this key is not valid"
    )
    code = "missing_api_key" if is_missing else "invalid_api_key"
    headers = (("WWW-Authenticate", 'Bearer realm="VisionGate", Basic realm="VisionGate"'),)
    return ProblemError(Problem(401, text, code, headers=headers))
