"""`visiongate ask IMAGE… "question"`: one answer, streamed to the terminal."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from visiongate.cli import options
from visiongate.errors import InvalidRequest, Unavailable


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("ask", help="Ask a question about pictures.")(ask)


def ask(
    words: Annotated[
        list[str], typer.Argument(metavar='IMAGE… "QUESTION"', help="Pictures, then the question.")
    ],
    base_url: Annotated[
        str,
        typer.Option(envvar="VISIONGATE_BASE_URL", help="Ask this server; empty loads a model."),
    ] = "",
    key: Annotated[
        str, typer.Option(envvar="VISIONGATE_API_KEY", help="The key for that server.")
    ] = "",
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    preset: options.Preset = None,
    model: options.Model = None,
    precision: options.Precision = None,
    config: options.Config = None,
    pairs: options.Set = None,
) -> None:
    """Streams the answer to the terminal."""
    *names, question = words
    pictures = [read_picture(name) for name in names]
    if base_url:
        _ask_server(base_url, key, pictures, question, temperature, max_tokens)
        return
    settings = options.settings_of(
        config, pairs, preset=preset, model=model, precision=precision, max_concurrency=1
    )
    asyncio.run(_ask_here(settings, pictures, question, temperature, max_tokens))


def read_picture(name: str) -> bytes:
    """A picture's bytes, from a file or "-" for standard input."""
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError:
        raise InvalidRequest(f"{name} cannot be read; put the question last, in quotes") from None


async def _ask_here(
    settings: Any,
    pictures: list[bytes],
    question: str,
    temperature: float | None,
    max_tokens: int | None,
) -> None:
    from visiongate.gateway.local import local_model
    from visiongate.gateway.wire import Sampling

    wish = Sampling(temperature=temperature, max_tokens=max_tokens)
    async with local_model(settings) as model:
        async for text in model.stream(pictures, question, wish):
            print(text, end="", flush=True)
    print()


def _ask_server(
    base_url: str,
    key: str,
    pictures: list[bytes],
    question: str,
    temperature: float | None,
    max_tokens: int | None,
) -> None:
    import httpx

    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:;base64,{_base64(data)}"}}
        for data in pictures
    ]
    content.append({"type": "text", "text": question})
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "stream": True}
    body |= {} if temperature is None else {"temperature": temperature}
    body |= {} if max_tokens is None else {"max_tokens": max_tokens}
    url = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.stream("POST", url, json=body, headers=headers, timeout=300) as response:
            if response.status_code != 200:
                response.read()
                raise InvalidRequest(response.json()["error"]["message"])
            for line in response.iter_lines():
                _print_chunk(line)
    except httpx.HTTPError:
        raise Unavailable(f"no server answers at {base_url}") from None
    print()


def _print_chunk(line: str) -> None:
    if not line.startswith("data: {"):
        return
    chunk = json.loads(line[6:])
    if "error" in chunk:
        raise Unavailable(chunk["error"]["message"])
    for choice in chunk["choices"]:
        print(choice["delta"].get("content") or "", end="", flush=True)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
