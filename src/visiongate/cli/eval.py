"""`visiongate eval`: how often a model is right on pictures whose truth is known."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visiongate.cli import options

if TYPE_CHECKING:
    from PIL import Image

    from visiongate.gateway.local import LocalModel
    from visiongate.gateway.settings import Settings
    from visiongate.mini.evaluate import Answer, EvalReport, Progress


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("eval", help="Measure a model on drawings whose truth is known.")(evaluate)


def evaluate(
    questions: Annotated[int, typer.Option(min=1, help="How many questions.")] = 200,
    seed: Annotated[int, typer.Option(help="Another seed draws other pictures.")] = 777,
    kinds: Annotated[str, typer.Option(help="Only these kinds, separated by commas.")] = "",
    base_url: Annotated[
        str,
        typer.Option(envvar="VISIONGATE_BASE_URL", help="Measure this server, not a model."),
    ] = "",
    key: Annotated[str, typer.Option(envvar="VISIONGATE_API_KEY", help="Its key.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write every result to this JSON file.")] = None,
    preset: options.Preset = None,
    model: options.Model = None,
    precision: options.Precision = None,
    device: options.Device = None,
    config: options.Config = None,
    pairs: options.Set = None,
) -> None:
    """Prints the table; the same seed asks every model the same questions."""
    from rich.progress import Progress as Bar

    flags = {"preset": preset, "model": model, "precision": precision, "device": device}
    settings = options.settings_of(config, pairs, **flags)
    wanted = [kind.strip() for kind in kinds.split(",") if kind.strip()] or None
    with Bar(transient=True) as bar:
        task = bar.add_task("asking", total=questions)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if base_url:
            report = _of_server(base_url, key, questions, seed, wanted, show)
        else:
            report = asyncio.run(_of_model(settings, questions, seed, wanted, show))
    print(report.table())
    if out is not None:
        out.write_text(report.to_json(with_results=True), encoding="utf-8")
        print(f"written to {out}")


def _of_server(
    base_url: str, key: str, questions: int, seed: int, kinds: list[str] | None, show: Progress
) -> EvalReport:
    from visiongate.mini.evaluate import run_evaluation, served_model

    answer: Answer = served_model(base_url, api_key=key)
    facts = {"base_url": base_url}
    return run_evaluation(
        answer, num_questions=questions, seed=seed, kinds=kinds, progress=show, settings=facts
    )


async def _of_model(
    settings: Settings, questions: int, seed: int, kinds: list[str] | None, show: Progress
) -> EvalReport:
    from visiongate.gateway.local import local_model
    from visiongate.mini.evaluate import run_evaluation

    loop = asyncio.get_running_loop()
    async with local_model(settings) as model:

        def answer(images: list[Image.Image], messages: list[dict[str, Any]]) -> str:
            return asyncio.run_coroutine_threadsafe(_ask(model, images, messages), loop).result()

        facts = {
            "model": model.info.model_id,
            "revision": model.info.revision,
            "precision": model.info.precision,
            "device": model.info.device,
        }
        return await asyncio.to_thread(
            run_evaluation,
            answer,
            num_questions=questions,
            seed=seed,
            kinds=kinds,
            progress=show,
            settings=facts,
        )


async def _ask(model: LocalModel, images: list[Image.Image], messages: list[dict[str, Any]]) -> str:
    from visiongate.gateway.sessions import Picture, Turn
    from visiongate.gateway.wire import Sampling

    remaining = iter(images)
    turns: list[Turn] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            turns.append(Turn(message["role"], (content,)))
            continue
        parts = tuple(
            Picture(_png(next(remaining))) if part["type"] == "image" else str(part["text"])
            for part in content
        )
        turns.append(Turn(message["role"], parts))
    answer = await model.prepare_turns(turns, Sampling(temperature=0, max_tokens=512))
    await answer.complete()
    return answer.text


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
