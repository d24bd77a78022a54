"""`visiongate bench`: how fast this model is on this machine, beside what the machine could do.

The model is loaded here as a worker of `serve` loads it, and asked; then the machine's limits are
measured in the same run. Measuring is `checks/speed.py`, limits are `engine/limits.py`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import visiongate
from visiongate.cli import options
from visiongate.errors import InvalidSettings

if TYPE_CHECKING:
    from visiongate.cli.checks.speed import Speeds, Streams
    from visiongate.engine.limits import Limits
    from visiongate.engine.types import ModelInfo, WorkerSettings
    from visiongate.gateway.settings import Settings
    from visiongate.model.config import ModelConfig


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench", help="Measure a model's speed here, and the machine's limits.")(bench)


def bench(
    pictures: Annotated[int, typer.Option(min=1, help="New pictures to ask about.")] = 5,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate in each round.")] = 64,
    streams: Annotated[int, typer.Option(min=1, help="Answers that run together.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    preset: options.Preset = None,
    model: options.Model = None,
    precision: options.Precision = None,
    device: options.Device = None,
    config: options.Config = None,
    pairs: options.Set = None,
) -> None:
    """Prints what was measured, the limit and the share of it."""
    from rich.console import Console

    from visiongate.gateway.launch import find_model, workers_of

    flags = {"preset": preset, "model": model, "precision": precision, "device": device}
    settings = options.settings_of(config, pairs, **flags)
    if streams > settings.max_concurrency:
        settings = options.settings_of(config, pairs, **flags, max_concurrency=streams)
    if settings.upstream:
        raise InvalidSettings(
            "upstream is set: `visiongate bench` measures a model of this machine"
        )
    folder = find_model(settings)
    if folder is None:
        raise InvalidSettings(f"{settings.model} is not here: visiongate pull {settings.model}")
    worker = measured_worker(workers_of(settings, folder)[0])
    with Console(stderr=True).status("loading") as status:
        report = measure(
            worker, settings, pictures, tokens, streams, lambda text: status.update(text)
        )
    print(report.to_json() if as_json else report.table())


def measured_worker(worker: WorkerSettings) -> WorkerSettings:
    """A worker without guesses, which repeated text would flatter, and on its own device only."""
    engine = dataclasses.replace(worker.engine, drafts=False)
    return dataclasses.replace(worker, engine=engine, fall_back_to_cpu=False)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        values: of each repetition; the median is shown.
        limit: what the device could do at best; None where there is no such figure.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    limit: float | None = None

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def share(self) -> float | None:
        """How near the value is to the limit, 1 at best: of times the inverse."""
        if not self.limit:
            return None
        is_rate = self.unit.endswith("/s")
        return self.value / self.limit if is_rate else self.limit / self.value


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found."""

    model: ModelInfo
    limits: Limits | None
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]

    def table(self) -> str:
        """For people."""
        info = self.model
        head = (
            f"{info.model_id} {info.revision[:16]}, {info.precision} on {info.device} "
            f"({info.backend}), {info.num_threads} threads"
        )
        lines = [head, limits_text(self.limits, info), ""]
        lines.append(f"{'':<28} {'measured':>15} {'from - to':>17} {'limit':>9} {'share':>6}")
        for figure in self.figures:
            spread = f"{_number(min(figure.values))} - {_number(max(figure.values))}"
            lines.append(
                f"{figure.name:<28} {_number(figure.value):>9} {figure.unit:<5} "
                f"{spread if len(figure.values) > 1 else '':>17} "
                f"{'' if figure.limit is None else _number(figure.limit):>9} "
                f"{'' if figure.share is None else f'{100 * figure.share:.0f} %':>6}".rstrip()
            )
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def to_json(self) -> str:
        """For programs, in one line."""
        info = dataclasses.asdict(self.model)
        del info["path"]
        figures = [
            {
                "name": figure.name,
                "unit": figure.unit,
                "value": figure.value,
                "least": min(figure.values),
                "most": max(figure.values),
                "limit": figure.limit,
                "share": figure.share,
            }
            for figure in self.figures
        ]
        found: dict[str, Any] = {
            "version": visiongate.__version__,
            "model": info,
            "limits": None if self.limits is None else dataclasses.asdict(self.limits),
            "figures": figures,
            "notes": list(self.notes),
        }
        return json.dumps(found, ensure_ascii=False)


def measure(
    worker: WorkerSettings,
    settings: Settings,
    num_pictures: int,
    num_tokens: int,
    num_streams: int,
    progress: Callable[[str], None],
) -> Report:
    """Loads, asks, lets the model go, and measures the device."""
    from visiongate.engine.processes import process_peak_bytes
    from visiongate.engine.worker import load_engine
    from visiongate.gateway.intake import Intake
    from visiongate.model.config import ModelConfig

    begin = time.perf_counter()
    engine, info = load_engine(worker, lambda loading: progress(f"loading: {loading.stage}"))
    start_seconds = time.perf_counter() - begin
    from visiongate.cli.checks import speed

    speeds = speed.measure(
        engine,
        Intake.from_model(info, settings),
        num_pictures=num_pictures,
        num_tokens=num_tokens,
        num_streams=num_streams,
        progress=progress,
    )
    memory = [Figure("peak memory, process", "GB", (process_peak_bytes() / 1e9,))]
    memory += card_memory(info.device)
    del engine  # a card's memory is needed for the probe
    progress("the device's limits")
    limits = device_limits(info.device)
    config = ModelConfig.from_pretrained(worker.model_path)
    figures = (
        Figure("start", "s", (start_seconds,)),
        *figures_of(speeds, config, info, limits),
        *memory,
    )
    return Report(info, limits, figures, tuple(notes_of(info, config, speeds, limits)))


def device_limits(device: str) -> Limits | None:
    """The device's limits, on a card with the memory that is free."""
    import gc

    from visiongate.engine import limits

    gc.collect()
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
    return limits.measure(device)


def card_memory(device: str) -> list[Figure]:
    """What torch took of a card at most."""
    if device == "cpu":
        return []
    import torch

    return [Figure("peak memory, card", "GB", (torch.cuda.max_memory_reserved(device) / 1e9,))]


def figures_of(
    speeds: Speeds, config: ModelConfig, info: ModelInfo, limits: Limits | None
) -> Iterator[Figure]:
    """The lines of the table, each beside the least time or the highest rate of the device."""
    from visiongate.engine import limits as least

    precision = _precision(info)
    first = None
    if limits is not None:
        shape = (speeds.num_patches, speeds.num_tokens)
        first = 1e3 * least.first_token_seconds(config, limits, precision, *shape)
    yield Figure("first token, new picture", "ms", _scaled(speeds.new_seconds, 1e3), first)
    yield Figure("first token, known picture", "ms", _scaled(speeds.known_seconds, 1e3))

    def rates(name: str, streams: Streams) -> Figure:
        highest = None
        if limits is not None:
            seconds = least.decode_seconds(
                config, limits, precision, streams.contexts, device=info.device
            )
            highest = len(streams.contexts) / seconds
        return Figure(name, "tok/s", tuple(streams.tokens_per_second), highest)

    yield rates("decode, 1 answer", speeds.alone)
    if speeds.together is not None:
        yield rates(f"decode, {len(speeds.together.contexts)} answers", speeds.together)
    step_bytes = least.decode_bytes(config, precision, speeds.alone.contexts, device=info.device)
    read = _scaled(speeds.alone.tokens_per_second, step_bytes / 1e9)
    highest = None if limits is None else limits.bytes_per_second / 1e9
    yield Figure("read from memory, 1 answer", "GB/s", read, highest)


def notes_of(
    info: ModelInfo, config: ModelConfig, speeds: Speeds, limits: Limits | None
) -> Iterator[str]:
    """What a reader would get wrong without being told."""
    from visiongate.engine import limits as least

    if limits is None:
        yield "no limits: the native kernels, which measure them, are not there; see the doctor"
        return
    yield (
        "limit: every product at the device's measured rate, every weight read once a step at its "
        "measured bandwidth; answers without guesses"
    )
    step = least.decode_bytes(config, _precision(info), speeds.alone.contexts, device=info.device)
    cache = cache_bytes() if info.device == "cpu" else 0
    if step < 2 * cache:
        yield (
            f"a step's {step / 1e6:.0f} MB partly stay in the processor's cache of "
            f"{cache / 1e6:.0f} MB, so memory's bandwidth is no limit for this small model"
        )


def cache_bytes() -> int:
    """The processor's largest cache, 0 where the system does not tell."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes)


def limits_text(limits: Limits | None, info: ModelInfo) -> str:
    """The device's own figures in one line."""
    if limits is None:
        return "limits not measured"
    rates = ", ".join(
        f"{precision} {rate / 1e9:,.0f} GFLOP/s"
        for precision, rate in limits.operations_per_second.items()
    )
    device = "processor" if info.device == "cpu" else "card"
    return f"this {device} reads {limits.bytes_per_second / 1e9:,.1f} GB/s; products: {rates}"


def _precision(info: ModelInfo) -> Any:
    return info.precision


def _scaled(values: Sequence[float], factor: float) -> tuple[float, ...]:
    return tuple(factor * value for value in values)


def _number(value: float) -> str:
    """Three digits that mean something, more before the point where there are more."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
