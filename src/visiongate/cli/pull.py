"""`visiongate pull`: a published checkpoint onto this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from visiongate.errors import InvalidParameter

if TYPE_CHECKING:
    from visiongate import hub


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("pull", help="Fetch a published model; goes on where it stopped.")(pull)


def pull(
    model: Annotated[str, typer.Argument(help="A hub's id, such as Qwen/Qwen3-VL-2B-Instruct.")],
    source: Annotated[str, typer.Option("--from", help="The hub: hf or modelscope.")] = "hf",
    revision: Annotated[
        Optional[str],  # noqa: UP045  # see options.py
        typer.Option(help="A branch, tag or commit."),
    ] = None,
    cache_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where to keep it; else HF_HUB_CACHE, HF_HOME or the user's cache."),
    ] = None,
    to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also make a folder of plain files, to copy or to mount."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash what is there again.")] = False,
) -> None:
    """Prints the folder on stdout, everything else on stderr."""
    from visiongate import hub
    from visiongate.hub.cache import copy_to

    if source not in {"hf", "modelscope"}:
        raise InvalidParameter(f"--from {source} is not a hub: hf or modelscope", param="from")
    chosen: hub.Source = "hf" if source == "hf" else "modelscope"
    folder = hub.find_cached(model, revision=revision, cache_dir=cache_dir)
    if folder is None:
        folder = _pull(model, chosen, revision, cache_dir)
    if verify:
        _verify(folder, model)
    print(copy_to(folder, to) if to else folder)


def _pull(model: str, source: hub.Source, revision: str | None, cache_dir: Path | None) -> Path:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    from visiongate import hub

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(model, total=None)

        def show(progress: hub.Progress) -> None:
            bar.update(
                task,
                completed=progress.done_bytes,
                total=progress.total_bytes,
                description=progress.file,
            )

        return hub.resolve(
            model, source=source, revision=revision, cache_dir=cache_dir, progress=show
        )


def _verify(folder: Path, model: str) -> None:
    import sys

    from visiongate import hub

    words = {True: "good", False: "WRONG", None: "unknown"}
    bad = []
    for verdict in hub.verify(folder):
        print(f"{words[verdict.is_good]:8} {verdict.digest}  {verdict.name}", file=sys.stderr)
        if verdict.is_good is False:
            bad.append(verdict.name)
    if bad:
        raise hub.DownloadFailed(
            f"{', '.join(bad)} of {model} differ from what was published: delete {folder} and "
            "pull again"
        )
