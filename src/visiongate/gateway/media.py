"""Brings pictures from the wire into memory: multipart parts, base64, data URLs.

Nothing here touches the disk: a multipart body is parsed as it arrives and held in memory, within
its limits. What kind of picture it is, `engine.image` decides from the bytes.
"""

from __future__ import annotations

import base64
import re
import string
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message as HeaderParser
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from pydantic import ConfigDict, TypeAdapter, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from visiongate.errors import InvalidParameter, InvalidRequest, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_TEXT_BYTES: Final = 1024 * 1024
"""One text part of a multipart body."""

MAX_PARTS: Final = 64
_DATA_URL: Final = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.ASCII)
_SPACES: Final = re.compile(r"\s+")
_BASE64: Final = TypeAdapter(bytes, config=ConfigDict(val_json_bytes="base64"))
"""Decodes base64 as clients write it; what it does not take may still be base64."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart body; `filename` is None for a plain text field."""

    name: str
    data: bytes
    filename: str | None = None
    content_type: str = ""

    def text(self) -> str:
        """The part as text; raises InvalidParameter when it is not UTF-8."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise InvalidParameter(f"{self.name} is not UTF-8 text", param=self.name) from None


async def read_multipart(
    content_type: str, stream: AsyncIterator[bytes], *, file_parts: frozenset[str], file_bytes: int
) -> list[Part]:
    """The parts of a multipart/form-data body, in order, held in memory.

    Parts named in `file_parts` may have `file_bytes` bytes, all others MAX_TEXT_BYTES. Raises
    TooLarge while reading, and InvalidRequest for a body that is not well formed.
    """
    collector = _Collector(file_parts, file_bytes)
    try:
        parser = MultipartParser(_boundary(content_type), collector.callbacks())
        async for chunk in stream:
            parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise InvalidRequest("the multipart body is not well formed") from None
    if not collector.is_finished:
        raise InvalidRequest("the multipart body ends before its closing boundary")
    return collector.parts


def decode_base64(text: str, *, param: str, limit: int) -> bytes:
    """The bytes of a base64 text.

    Tolerates a `data:` prefix, the url-safe alphabet, missing padding and white space. Raises
    InvalidParameter naming what is wrong, and TooLarge above `limit` bytes.
    """
    if text[:5].lower() == "data:":
        return decode_data_url(text, param=param, limit=limit)
    if len(text) > limit * 2:
        raise _too_large(limit)
    try:
        data = _BASE64.validate_strings(text)  # what most clients send, at six times the speed
    except ValidationError:
        data = _decode_loosely(text, param)
    if not data:
        raise InvalidParameter(f"{param} is empty; send the picture as base64", param=param)
    if len(data) > limit:
        raise _too_large(limit)
    return data


def _decode_loosely(text: str, param: str) -> bytes:
    """Base64 with white space, of the url-safe alphabet or without its padding."""
    if text.isascii():
        compact = text.encode().translate(_URL_SAFE, delete=_WHITE).rstrip(b"=")
    else:  # a no-break space, or something that is named below
        compact = _SPACES.sub("", text).encode().translate(_URL_SAFE).rstrip(b"=")
    if compact.translate(None, delete=_ALPHABET):
        wrong = _NOT_BASE64.search(compact.decode())
        place = f"character {wrong.start() + 1}" if wrong else "a character"
        raise InvalidParameter(f"{param} is not base64: {place} is not allowed", param=param)
    if len(compact) % 4 == 1:
        raise InvalidParameter(f"{param} is not base64: it is cut off", param=param)
    return base64.b64decode(compact + b"=" * (-len(compact) % 4))


def decode_data_url(url: str, *, param: str, limit: int) -> bytes:
    """The bytes of a `data:` URL, base64 or percent-encoded; the media type is not believed."""
    match = _DATA_URL.match(url[:512])
    if match is None:
        raise InvalidParameter(f"{param} is not a complete data: URL", param=param)
    body = url[match.end() :]
    if "base64" in match.group(2).lower().split(";"):
        if body[:5].lower() == "data:":
            raise InvalidParameter(f"{param} has two data: prefixes", param=param)
        return decode_base64(body, param=param, limit=limit)
    data = unquote_to_bytes(body)
    if not data:
        raise InvalidParameter(f"{param} is an empty data: URL", param=param)
    if len(data) > limit:
        raise _too_large(limit)
    return data


class _Collector:
    """Gathers the parser's callbacks into parts and keeps their bounds."""

    def __init__(self, file_parts: frozenset[str], file_bytes: int) -> None:
        self.parts: list[Part] = []
        self.is_finished = False
        self._file_parts = file_parts
        self._file_bytes = file_bytes
        self._limit = 0
        self._data = bytearray()
        self._field = bytearray()
        self._value = bytearray()
        self._headers: dict[str, str] = {}
        self._name = ""
        self._filename: str | None = None

    def callbacks(self) -> MultipartCallbacks:
        """What the parser calls."""
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        if len(self.parts) >= MAX_PARTS:
            raise InvalidRequest(f"the multipart body has more than {MAX_PARTS} parts")
        self._data = bytearray()
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name = self._field.decode("latin-1").lower()
        self._headers[name] = self._value.decode("utf-8", "replace")
        self._field.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        parameters = _parameters(self._headers.get("content-disposition", ""))
        self._name = parameters.get("name", "")
        self._filename = parameters.get("filename")
        is_file = self._name in self._file_parts
        self._limit = self._file_bytes if is_file else MAX_TEXT_BYTES

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if len(self._data) + end - start > self._limit:
            if self._name in self._file_parts:
                raise _too_large(self._limit)
            raise TooLarge(f"the part {self._name[:40]!r} is over {self._limit} bytes")
        self._data += data[start:end]

    def _part_end(self) -> None:
        kind = self._headers.get("content-type", "")
        self.parts.append(Part(self._name, bytes(self._data), self._filename, kind))

    def _end(self) -> None:
        self.is_finished = True


def _boundary(content_type: str) -> bytes:
    boundary = _parameters(content_type).get("boundary", "")
    if not boundary:
        raise InvalidRequest("the Content-Type names no multipart boundary")
    return boundary.encode("latin-1", "replace")


def _parameters(header: str) -> dict[str, str]:
    """The parameters of a header such as `form-data; name="image"; filename="a.png"`."""
    parser = HeaderParser()
    parser["content-disposition"] = header.replace("\r", " ").replace("\n", " ")
    found: list[tuple[str, Any]] = parser.get_params([], header="content-disposition") or []
    values: dict[str, str] = {}
    for key, value in found[1:]:
        if isinstance(value, tuple):  # RFC 2231: (charset, language, text)
            values[key] = unquote_to_bytes(value[2]).decode(value[0] or "utf-8", "replace")
        else:
            values[key] = value
    return values


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the image is over {limit / 1048576:g} MB ({limit} bytes); send a smaller one")


_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_WHITE: Final = b" \t\n\r\f\v\x1c\x1d\x1e\x1f"
_ALPHABET: Final = string.ascii_letters.encode() + string.digits.encode() + b"+/"
_NOT_BASE64: Final = re.compile(r"[^A-Za-z0-9+/]")
