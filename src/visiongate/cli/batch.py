"""`visiongate batch`: one question about every picture of a folder, or the lines of a JSONL file.

Results are appended as they come, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from visiongate.cli import options
from visiongate.errors import InvalidParameter, InvalidRequest, Unavailable, VisionGateError

if TYPE_CHECKING:
    from visiongate.gateway.settings import Settings

SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".jfif"}
)
COLUMNS: Final = ("name", "prompt", "response", "error", "seconds", "tokens")
RETRIES: Final = 5

AskOne = Callable[["Item"], Coroutine[Any, Any, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Item:
    """One picture and its question; `name` is what a result is known by."""

    name: str
    path: Path
    prompt: str
    max_tokens: int | None


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("batch", help="Ask about many pictures; resumes where it was stopped.")(batch)


def batch(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|JSONL", help="Pictures, or lines of {image, prompt}.")
    ],
    prompt: Annotated[str, typer.Option(help="The question, where a line names none.")] = "",
    out: Annotated[Path, typer.Option(help="Results: a .jsonl, .csv or .xlsx file.")] = Path(
        "results.jsonl"
    ),
    parallel: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 3,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    base_url: Annotated[
        str,
        typer.Option(envvar="VISIONGATE_BASE_URL", help="Ask this server; empty loads a model."),
    ] = "",
    key: Annotated[str, typer.Option(envvar="VISIONGATE_API_KEY", help="Its key.")] = "",
    preset: options.Preset = None,
    model: options.Model = None,
    precision: options.Precision = None,
    config: options.Config = None,
    pairs: options.Set = None,
) -> None:
    """Ends with status 1 when a picture could not be answered."""
    if out.suffix not in {".jsonl", ".csv", ".xlsx"}:
        raise InvalidParameter(f"--out {out} must end in .jsonl, .csv or .xlsx", param="out")
    items = list(read_items(source, prompt, max_tokens))
    journal = out if out.suffix == ".jsonl" else out.with_suffix(out.suffix + ".jsonl")
    done = _read_done(journal)
    waiting = [item for item in items if item.name not in done]
    if done:
        print(f"{len(items) - len(waiting)} of {len(items)} were done before")
    settings = options.settings_of(config, pairs, preset=preset, model=model, precision=precision)
    asyncio.run(_run(settings, base_url, key, waiting, parallel, journal))
    found = {result["name"]: result for result in _read_lines(journal)}
    results = [found[item.name] for item in items if item.name in found]
    _write_table(out, results)
    failed = sum(1 for result in results if result["error"])
    print(f"{len(results) - failed} answered, {failed} failed; written to {out}")
    if failed:
        raise typer.Exit(1)


def read_items(source: Path, prompt: str, max_tokens: int | None) -> Iterable[Item]:
    """The pictures of a folder by name, or the lines of a file; raises InvalidRequest."""
    if source.is_dir():
        _need_prompt(prompt)
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield Item(str(path.relative_to(source)), path, prompt, max_tokens)
        return
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise InvalidRequest(f"{source} is neither a folder nor a file that can be read") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            image, question = str(found["image"]), str(found.get("prompt", prompt))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidRequest(f"line {number} of {source} must be {{image, prompt}}") from None
        _need_prompt(question)
        name = str(found.get("id", f"{number}:{image}"))
        yield Item(name, source.parent / image, question, found.get("max_tokens", max_tokens))


async def _run(
    settings: Settings,
    base_url: str,
    key: str,
    items: list[Item],
    parallel: int,
    journal: Path,
) -> None:
    from rich.progress import Progress

    if not items:
        return
    remaining = iter(items)
    opened = _server(base_url, key) if base_url else _model(settings)
    journal.parent.mkdir(parents=True, exist_ok=True)
    with Progress() as bar, journal.open("a", encoding="utf-8") as file:
        task = bar.add_task("asking", total=len(items))
        async with opened as ask_one:

            async def work() -> None:
                for item in remaining:
                    result = await _answer(ask_one, item)
                    file.write(json.dumps(result, ensure_ascii=False) + "\n")
                    file.flush()
                    bar.advance(task)

            await asyncio.gather(*(work() for _ in range(parallel)))


async def _answer(ask_one: AskOne, item: Item) -> dict[str, Any]:
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
            return result | {"error": f"{item.path} cannot be read"}
    return result


@asynccontextmanager
async def _model(settings: Settings) -> AsyncIterator[AskOne]:
    from visiongate.gateway.local import local_model
    from visiongate.gateway.wire import Sampling

    async with local_model(settings) as model:

        async def ask_one(item: Item) -> dict[str, Any]:
            data = await asyncio.to_thread(item.path.read_bytes)
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
async def _server(base_url: str, key: str) -> AsyncIterator[AskOne]:
    import httpx

    url = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(headers=headers, timeout=600) as client:

        async def ask_one(item: Item) -> dict[str, Any]:
            data = await asyncio.to_thread(item.path.read_bytes)
            fields = {"prompt": item.prompt}
            fields |= {} if item.max_tokens is None else {"max_tokens": str(item.max_tokens)}
            files = {"image": (item.path.name, data)}
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


def _need_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise InvalidParameter("--prompt is missing; ask a question", param="prompt")


def _read_done(journal: Path) -> set[str]:
    """The names that an earlier run answered; failures and cut lines are dropped, to be retried."""
    good = [result for result in _read_lines(journal) if not result["error"]]
    if journal.is_file():
        lines = (json.dumps(result, ensure_ascii=False) + "\n" for result in good)
        journal.write_text("".join(lines), encoding="utf-8")
    return {str(result["name"]) for result in good}


def _read_lines(journal: Path) -> list[dict[str, Any]]:
    """The results in a file, without a last line that a kill cut off."""
    if not journal.is_file():
        return []
    found: list[dict[str, Any]] = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _write_table(out: Path, results: list[dict[str, Any]]) -> None:
    rows = [[result[column] for column in COLUMNS] for result in results]
    if out.suffix == ".csv":
        with out.open("w", encoding="utf-8-sig", newline="") as file:  # spreadsheets want the mark
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([_harmless(cell) for cell in row] for row in rows)
    elif out.suffix == ".xlsx":
        import openpyxl

        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet("results")
        sheet.append(list(COLUMNS))
        for row in rows:
            sheet.append([_harmless(cell) for cell in row])
        book.save(out)


def _harmless(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    if isinstance(cell, str) and cell[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        return f"'{cell}"
    return cell
