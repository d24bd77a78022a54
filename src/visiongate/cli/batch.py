"""`visiongate batch`: one question about every picture of a folder, or the lines of a JSONL file.

Results are appended to a journal as they come, so a run that was stopped goes on where it was; at
the end they are put in the order of the items.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from visiongate.cli import options
from visiongate.cli.items import COLUMNS, Item, answer_of, model_of, server_at
from visiongate.cli.locations import beside, is_folder, is_uri, list_files, read_bytes, shown
from visiongate.errors import InvalidParameter, InvalidRequest

if TYPE_CHECKING:
    from visiongate.gateway.settings import Settings

SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".jfif"}
)

Keep = Callable[[dict[str, Any]], None]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("batch", help="Ask about many pictures; resumes where it was stopped.")(batch)


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|JSONL",
            help="Pictures, or lines of {image, prompt}; a path, or a bucket such as s3://shop/in.",
        ),
    ],
    prompt: Annotated[str, typer.Option(help="The question, where a line names none.")] = "",
    out: Annotated[Path, typer.Option(help="Results: a .jsonl, .csv or .xlsx file.")] = Path(
        "results.jsonl"
    ),
    parallel: Annotated[
        int, typer.Option(min=1, max=256, help="Requests at once; with --ray, of each replica.")
    ] = 3,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    base_url: Annotated[
        str,
        typer.Option(envvar="VISIONGATE_BASE_URL", help="Ask this server; empty loads a model."),
    ] = "",
    key: Annotated[str, typer.Option(envvar="VISIONGATE_API_KEY", help="Its key.")] = "",
    ray: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Ask on the machines of this Ray cluster: auto, an address, or local.",
        ),
    ] = "",
    replicas: Annotated[
        int, typer.Option(min=0, help="With --ray: the most models at once; 0 fills the cluster.")
    ] = 0,
    replica_cpus: Annotated[
        float, typer.Option(min=0, help="With --ray: CPUs of one; 0 takes a whole machine's.")
    ] = 0,
    replica_gpus: Annotated[
        float | None, typer.Option(min=0, help="With --ray: GPUs of one; by default 1 if any.")
    ] = None,
    preset: options.Preset = None,
    model: options.Model = None,
    precision: options.Precision = None,
    config: options.Config = None,
    pairs: options.Set = None,
) -> None:
    """Ends with status 1 when a picture could not be answered."""
    if out.suffix not in {".jsonl", ".csv", ".xlsx"}:
        raise InvalidParameter(f"--out {out} must end in .jsonl, .csv or .xlsx", param="out")
    if ray and base_url:
        raise InvalidParameter("--ray loads models of its own; leave --base-url out", param="ray")
    items = list(read_items(source, prompt, max_tokens))
    journal = out if out.suffix == ".jsonl" else out.with_suffix(out.suffix + ".jsonl")
    done = _read_done(journal)
    waiting = [item for item in items if item.name not in done]
    if done:
        print(f"{len(items) - len(waiting)} of {len(items)} were done before")
    settings = options.settings_of(config, pairs, preset=preset, model=model, precision=precision)
    with _journal(journal, len(waiting)) as keep:
        if waiting and ray:
            from visiongate.cli.ray_batch import Replicas, ask_cluster

            share = Replicas(replicas, replica_cpus, replica_gpus)
            for result in ask_cluster(ray, settings, waiting, parallel, share):
                keep(result)
        elif waiting:
            asyncio.run(_run(settings, base_url, key, waiting, parallel, keep))
    found = {result["name"]: result for result in _read_lines(journal)}
    results = [found.pop(item.name) for item in items if item.name in found]
    _replace_lines(journal, [*results, *found.values()])
    _write_table(out, results)
    failed = sum(1 for result in results if result["error"])
    print(f"{len(results) - failed} answered, {failed} failed; written to {out}")
    if failed:
        raise typer.Exit(1)


def read_items(source: str, prompt: str, max_tokens: int | None) -> Iterable[Item]:
    """The pictures of a folder by name, or the lines of a file; raises InvalidRequest."""
    source = source if is_uri(source) else str(Path(source).absolute())
    try:
        files = list_files(source) if is_folder(source) else None
    except OSError:
        raise InvalidRequest(f"{shown(source)} cannot be reached") from None
    if files is not None:
        _need_prompt(prompt)
        for name, location in files:
            if Path(name).suffix.lower() in SUFFIXES:
                yield Item(name, location, prompt, max_tokens)
        return
    try:
        lines = read_bytes(source).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InvalidRequest(
            f"{shown(source)} is neither a folder nor a file that can be read"
        ) from None
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            image, question = str(found["image"]), str(found.get("prompt", prompt))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidRequest(
                f"line {number} of {shown(source)} must be {{image, prompt}}"
            ) from None
        _need_prompt(question)
        name = str(found.get("id", f"{number}:{image}"))
        if name in seen:
            raise InvalidRequest(
                f"line {number} of {shown(source)} has the id {name!r} of another line"
            )
        seen.add(name)
        location = beside(source, image)
        yield Item(name, location, question, found.get("max_tokens", max_tokens))


@contextlib.contextmanager
def _journal(path: Path, number: int) -> Iterator[Keep]:
    """Writes each result at once and moves the bar; `number` results are expected."""
    from rich.progress import Progress

    path.parent.mkdir(parents=True, exist_ok=True)
    with Progress() as bar, path.open("a", encoding="utf-8") as file:
        task = bar.add_task("asking", total=number)

        def keep(result: dict[str, Any]) -> None:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
            file.flush()
            bar.advance(task)

        yield keep


async def _run(
    settings: Settings, base_url: str, key: str, items: list[Item], parallel: int, keep: Keep
) -> None:
    remaining = iter(items)
    async with server_at(base_url, key) if base_url else model_of(settings) as ask_one:

        async def work() -> None:
            for item in remaining:
                keep(await answer_of(ask_one, item))

        await asyncio.gather(*(work() for _ in range(parallel)))


def _need_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise InvalidParameter("--prompt is missing; ask a question", param="prompt")


def _read_done(journal: Path) -> set[str]:
    """The names that an earlier run answered; failures and cut lines are dropped, to be retried."""
    good = [result for result in _read_lines(journal) if not result["error"]]
    if journal.is_file():
        _replace_lines(journal, good)
    return {str(result["name"]) for result in good}


def _replace_lines(journal: Path, results: Sequence[dict[str, Any]]) -> None:
    """Writes a file anew, whole or not at all: a kill leaves the old one or the new one."""
    fresh = journal.with_name(f".{journal.name}.new")
    lines = (json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    fresh.write_text("".join(lines), encoding="utf-8")
    os.replace(fresh, journal)


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
