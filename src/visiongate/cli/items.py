"""One picture and its question, and how a loaded model or a server answers it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from visiongate.cli.locations import read_bytes
from visiongate.errors import InvalidRequest, Unavailable, VisionGateError

if TYPE_CHECKING:
    from visiongate.gateway.settings import Settings

COLUMNS: Final = ("name", "prompt", "response", "error", "seconds", "tokens")
RETRIES: Final = 5

AskOne = Callable[["Item"], Coroutine[Any, Any, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Item:
    """One picture and its question.

    Attributes:
        name: what a result is known by; no other item has it.
        location: a path or a URI.
    """

    name: str
    location: str
    prompt: str
    max_tokens: int | None


async def answer_of(ask_one: AskOne, item: Item) -> dict[str, Any]:
    """The result of one item; waits and tries again while the service is busy."""
    result: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"name": item.name, "prompt": item.prompt}
    for attempt in range(RETRIES):
        try:
            return result | await ask_one(item)
        except Unavailable as error:
            if attempt + 1 == RETRIES:
                return result | {"error": error.message}
            await asyncio.sleep(error.retry_after_seconds)
        except VisionGateError as error:
            return result | {"error": error.message}
        except OSError:
            return result | {"error": f"{item.name} cannot be read"}
    return result


@asynccontextmanager
async def model_of(settings: Settings) -> AsyncIterator[AskOne]:
    """Asks a model that is loaded for it; raises ModelNotLoaded when it cannot be."""
    from visiongate.gateway.local import local_model
    from visiongate.gateway.wire import Sampling

    async with local_model(settings) as model:

        async def ask_one(item: Item) -> dict[str, Any]:
            data = await asyncio.to_thread(read_bytes, item.location)
            wish = Sampling(max_tokens=item.max_tokens)
            answer = await model.answer([data], item.prompt, wish)
            usage = answer.usage()
            return {
                "response": answer.text,
                "seconds": usage.total_time_ms / 1000,
                "tokens": usage.total_tokens,
            }

        yield ask_one


@asynccontextmanager
async def server_at(base_url: str, key: str) -> AsyncIterator[AskOne]:
    """Asks a running server."""
    import httpx

    url = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(headers=headers, timeout=600) as client:

        async def ask_one(item: Item) -> dict[str, Any]:
            data = await asyncio.to_thread(read_bytes, item.location)
            fields = {"prompt": item.prompt}
            fields |= {} if item.max_tokens is None else {"max_tokens": str(item.max_tokens)}
            files = {"image": (item.name.rpartition("/")[2], data)}
            try:
                response = await client.post(url, data=fields, files=files)
            except httpx.HTTPError:
                raise Unavailable(f"no server answers at {base_url}") from None
            if response.status_code in {429, 503}:
                after = float(response.headers.get("retry-after", "1"))
                raise Unavailable(_message(response.json()), retry_after_seconds=after)
            body = response.json()
            if response.status_code != 200:
                raise InvalidRequest(_message(body))
            return {
                "response": body["choices"][0]["message"]["content"],
                "seconds": body["usage"]["total_time_ms"] / 1000,
                "tokens": body["usage"]["total_tokens"],
            }

        yield ask_one


def _message(body: dict[str, Any]) -> str:
    return str(body["error"]["message"])
