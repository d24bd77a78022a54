"""The web page, its samples and the reference page; nothing loads from another host."""

from __future__ import annotations

import gzip
import html
import json
import mimetypes
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from visiongate.gateway.problems import not_found

router = APIRouter(include_in_schema=False)

CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_PACKAGE: Final = Path(str(resources.files("visiongate")))
_STATIC: Final = _PACKAGE / "static"
_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_READ: Final = ["GET", "HEAD"]  # the server sends no body to a HEAD
_FOREVER: Final = "public, max-age=31536000, immutable"


@router.api_route("/", methods=_READ)
async def index() -> Response:
    """The page."""
    file = _STATIC / "index.html"
    body = file.read_text(encoding="utf-8") if file.is_file() else _NO_PAGE
    return HTMLResponse(body, headers={"Content-Security-Policy": CSP, "Cache-Control": "no-cache"})


@router.api_route("/assets/{name}", methods=_READ)
async def asset(request: Request, name: str) -> Response:
    """A file of the page; its name changes with its content."""
    response = _file(_STATIC / "assets", name, _FOREVER)
    response.headers["Vary"] = "Accept-Encoding"
    if "gzip" in request.headers.get("accept-encoding", ""):
        path = _STATIC / "assets" / name
        packed = _compressed(path, path.stat().st_mtime_ns)
        response = Response(packed, headers={**response.headers, "Content-Encoding": "gzip"})
        response.headers["Content-Length"] = str(len(packed))
    return response


@router.api_route("/favicon.ico", methods=_READ)
async def favicon() -> Response:
    """The page names its own icon; browsers that ask here get nothing."""
    return Response(status_code=204)


@router.api_route("/samples/index.json", methods=_READ)
async def samples() -> Response:
    """The sample pictures with their questions and true answers."""
    truths = samples_folder() / "truths.json"
    if not truths.is_file():
        return JSONResponse({"pictures": []})
    return Response(truths.read_bytes(), media_type="application/json")


@router.api_route("/samples/{name}", methods=_READ)
async def sample(name: str) -> Response:
    """A sample picture."""
    return _file(samples_folder(), name, "public, max-age=3600")


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The reference, rendered from the OpenAPI document."""
    body = render_reference(request.app.openapi())
    return HTMLResponse(body, headers={"Content-Security-Policy": CSP})


@router.get("/docs/style.css")
async def docs_style() -> Response:
    """The reference's style sheet."""
    return Response(_STYLE, media_type="text/css")


def samples_folder() -> Path:
    """The samples in the package, or beside the sources."""
    packaged = _PACKAGE / "samples"
    return packaged if packaged.is_dir() else _PACKAGE.parent.parent / "examples"


def _file(folder: Path, name: str, cache_control: str) -> Response:
    """A file that is really in the folder; a name from outside matches none."""
    known = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if name not in known or not (folder / name).is_file():
        raise not_found("this file")
    path = folder / name
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(path.read_bytes(), media_type=kind, headers={"Cache-Control": cache_control})


@lru_cache(maxsize=64)
def _compressed(path: Path, changed_ns: int) -> bytes:
    """A file's gzip form, made once for each version of the file."""
    del changed_ns  # part of the key
    return gzip.compress(path.read_bytes(), 9, mtime=0)


def render_reference(document: dict[str, Any]) -> str:
    """The OpenAPI document as one plain HTML page."""
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        f'<details id="{html.escape(name)}"><summary>{html.escape(name)}</summary>'
        f"{_fields(schema)}</details>"
        for name, schema in sorted(document.get("components", {}).get("schemas", {}).items())
    ]
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(info['title'])} reference</title>"
        '<link rel="stylesheet" href="/docs/style.css"></head><body>'
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1>"
        f"<p>{html.escape(info.get('description', ''))}</p>"
        '<p><a href="/openapi.json">OpenAPI document</a> · <a href="/">Page</a></p>'
        f"<h2>Calls</h2>{''.join(operations)}<h2>Bodies</h2>{''.join(schemas)}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    bodies = "".join(
        f"<p>Takes <code>{html.escape(kind)}</code>: {_type(content.get('schema', {}))}</p>"
        for kind, content in operation.get("requestBody", {}).get("content", {}).items()
    )
    answers = "".join(
        f"<tr><td>{html.escape(code)}</td><td>{html.escape(answer.get('description', ''))}</td>"
        f"<td>{_answer_type(answer)}</td></tr>"
        for code, answer in operation.get("responses", {}).items()
    )
    text = html.escape(operation.get("description", ""))
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{html.escape(path)}</code> "
        f"{html.escape(operation.get('summary', ''))}</summary><p>{text}</p>{bodies}"
        f"<table><tr><th>Status</th><th>Meaning</th><th>Body</th></tr>{answers}</table></details>"
    )


def _answer_type(answer: dict[str, Any]) -> str:
    return ", ".join(_type(c.get("schema", {})) for c in answer.get("content", {}).values())


def _fields(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code>{' *' if name in required else ''}</td>"
        f"<td>{_type(field)}</td><td>{html.escape(_range(field))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<p>{html.escape(schema.get('description', ''))}</p><table>{rows}</table>"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = html.escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(item) for item in schema["anyOf"])
    if "oneOf" in schema:
        return " or ".join(_type(item) for item in schema["oneOf"])
    if "enum" in schema:
        return html.escape(", ".join(json.dumps(item) for item in schema["enum"]))
    if "const" in schema:
        return html.escape(json.dumps(schema["const"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return html.escape(str(schema.get("type", "any")))


def _range(schema: dict[str, Any]) -> str:
    words = {"minimum": "from", "maximum": "to", "exclusiveMinimum": "over", "default": "default"}
    found = {**schema, **next((s for s in schema.get("anyOf", []) if "minimum" in s), {})}
    return ", ".join(f"{word} {found[key]}" for key, word in words.items() if key in found)


_NO_PAGE: Final = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<title>VisionGate</title></head><body><h1>VisionGate</h1>
<p>The page was not built with this installation; the API works without it.</p>
<p><a href="/docs">Reference</a></p></body></html>"""

_STYLE: Final = """:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
summary{cursor:pointer;padding:.3rem 0}details{border-bottom:1px solid #8884}
code{font-family:ui-monospace,monospace}td,th{padding:.2rem .8rem .2rem 0;text-align:left;
vertical-align:top}table{border-collapse:collapse;margin:.5rem 0}
"""
