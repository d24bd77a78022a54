"""`visiongate doctor`: is this machine fit, and does the model really see?

Every verdict has the measured value, and where it is not good, what to do.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import os
import platform
import random
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from visiongate.cli import options
from visiongate.errors import VisionGateError

if TYPE_CHECKING:
    from visiongate.gateway.settings import Settings

Level = Literal["ok", "warning", "failed"]

GIB: Final = 1024**3
NUM_PICTURES: Final = 3
NEEDED_GIB: Final = {"mini": 1.0, "cpu": 8.0, "pro": 16.0}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check: what was measured, what it means, what to do."""

    name: str
    level: Level
    value: str
    fix: str = ""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor", help="Check this machine and the model.")(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    skips_model: Annotated[
        bool, typer.Option("--skip-model", help="Check the machine only.")
    ] = False,
    preset: options.Preset = None,
    model: options.Model = None,
    precision: options.Precision = None,
    config: options.Config = None,
    pairs: options.Set = None,
) -> None:
    """Ends with status 1 when something would keep the service from working."""
    settings = options.settings_of(config, pairs, preset=preset, model=model, precision=precision)
    verdicts: list[Verdict] = []
    for verdict in _checks(settings, skips_model=skips_model):
        verdicts.append(verdict)
        if not as_json:
            _print(verdict)
    if as_json:
        found = [dataclasses.asdict(verdict) for verdict in verdicts]
        print(json.dumps({"ok": _is_fit(verdicts), "checks": found}, indent=2, ensure_ascii=False))
    if not _is_fit(verdicts):
        raise typer.Exit(1)


def _checks(settings: Settings, *, skips_model: bool) -> Iterator[Verdict]:
    yield from machine_checks(settings)
    if not skips_model:
        yield from asyncio.run(_model_checks(settings))


def machine_checks(settings: Settings) -> Iterator[Verdict]:
    """What can be known without loading a model."""
    from visiongate.gateway.health import versions

    yield Verdict("system", "ok", f"{platform.system()} {platform.release()}, {_libc()}")
    yield _python()
    yield _architecture()
    yield from (
        Verdict(
            f"library {name}", "failed" if version == "missing" else "ok", version, "pip install ."
        )
        for name, version in versions().items()
        if name not in {"python", "visiongate"}
    )
    yield _cores()
    yield _memory(settings)
    for name, folder in (("logs", settings.log_dir), ("data", settings.data_dir)):
        yield _disk(name, folder)
    yield _port(settings)


def draw_known_answer(seed: int) -> tuple[bytes, str, str]:
    """A receipt drawn now: its PNG, a question, and the only right answer."""
    from PIL import Image, ImageDraw, ImageFont

    rng = random.Random(seed)
    cents = [rng.randint(100, 990) for _ in range(3)]
    names = rng.sample(["Bread", "Milk", "Apples", "Coffee", "Sugar", "Rice"], 3)
    picture = Image.new("RGB", (384, 448), "white")
    pen = ImageDraw.Draw(picture)
    font, large = ImageFont.load_default(26), ImageFont.load_default(34)
    pen.text((24, 20), "Corner Store", fill="black", font=large)
    rows = [(name, price, font) for name, price in zip(names, cents, strict=True)]
    for number, (name, price, size) in enumerate([*rows, ("Total", sum(cents), large)]):
        y = 100 + 60 * number
        pen.text((24, y), name, fill="black", font=size)
        pen.text((360, y), f"${price / 100:.2f}", fill="black", font=size, anchor="ra")
    png = io.BytesIO()
    picture.save(png, "PNG")
    return png.getvalue(), "What is the total?", f"${sum(cents) / 100:.2f}"


async def _model_checks(settings: Settings) -> list[Verdict]:
    from visiongate.gateway.local import local_model
    from visiongate.gateway.wire import Sampling

    found: list[Verdict] = []
    started = time.monotonic()
    try:
        async with local_model(settings) as model:
            info = model.info
            value = (
                f"{info.model_id} {info.revision[:16]}, "
                f"{info.num_parameters / 1e6:.0f} M parameters, "
                f"{info.precision} on {info.device} ({info.backend}), {info.num_threads} threads, "
                f"loaded in {time.monotonic() - started:.1f} s"
            )
            level: Level = "warning" if info.degraded else "ok"
            found.append(Verdict("model", level, value, info.degraded))
            seed = int(time.time())
            for number in range(NUM_PICTURES):
                png, question, truth = draw_known_answer(seed + number)
                answer = await model.answer([png], question, Sampling(temperature=0, max_tokens=64))
                is_right = truth.strip("$") in answer.text
                seconds = answer.usage().total_time_ms / 1000
                found.append(
                    Verdict(
                        f"known answer {number + 1}",
                        "ok" if is_right else "warning",
                        f"{answer.text[:60]!r}, true is {truth!r}, {seconds:.2f} s "
                        f"(seed {seed + number})",
                        "" if is_right else "the model misread this picture; see `visiongate eval`",
                    )
                )
    except VisionGateError as error:
        found.append(Verdict("model", "failed", error.message, "name a model that is there"))
    if sum(v.level == "warning" for v in found if v.name.startswith("known")) == NUM_PICTURES:
        fix = "every known answer was wrong: check the weights and --precision"
        found.append(Verdict("sight", "failed", f"0 of {NUM_PICTURES} right", fix))
    return found


def _python() -> Verdict:
    return Verdict("python", "ok", f"{platform.python_version()} (3.10 or later is supported)")


def _architecture() -> Verdict:
    machine = platform.machine()
    flags = _cpu_flags()
    wide = [
        name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd") if name in flags
    ]
    value = f"{machine}, {', '.join(wide) or 'no vector extension found'}"
    if machine not in {"x86_64", "AMD64"}:
        return Verdict("cpu", "warning", value, "works, slower: x86-64 has the fast kernels")
    if "avx2" not in flags:
        return Verdict("cpu", "warning", value, "a CPU with AVX2 is several times faster")
    return Verdict("cpu", "ok", value)


def _cores() -> Verdict:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cpu_quota()
    value = f"{usable} usable" + (f", container quota {quota:g}" if quota else "")
    return Verdict("cores", "ok", value)


def _memory(settings: Settings) -> Verdict:
    from visiongate.gateway.memory import memory_limit, memory_used

    limit, used = memory_limit() / GIB, memory_used() / GIB
    value = f"{limit:.1f} GB limit, {used:.1f} GB used"
    needed = NEEDED_GIB[settings.preset]
    if limit < needed * 0.9:
        return Verdict("memory", "failed", value, f"{settings.preset} needs {needed:g} GB")
    if limit - used < needed * 0.5:
        return Verdict(
            "memory", "warning", value, f"free some: {settings.preset} needs {needed:g} GB"
        )
    return Verdict("memory", "ok", value)


def _disk(name: str, folder: Path) -> Verdict:
    place = next((p for p in (folder, *folder.resolve().parents) if p.is_dir()), Path("/"))
    free = shutil.disk_usage(place).free / GIB
    value = f"{folder}: {free:.1f} GB free"
    if not os.access(place, os.W_OK):
        return Verdict(f"disk {name}", "failed", f"{folder} cannot be written", "change its owner")
    if free < 1:
        return Verdict(f"disk {name}", "warning", value, "free some space")
    return Verdict(f"disk {name}", "ok", value)


def _port(settings: Settings) -> Verdict:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            fix = "stop what runs there, or choose another with --port"
            return Verdict("port", "warning", f"{settings.port}: {error.strerror}", fix)
    return Verdict("port", "ok", f"{settings.port} is free")


def _libc() -> str:
    return " ".join(platform.libc_ver()) or "unknown C library"


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def _cpu_quota() -> float:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return 0.0
    return 0.0 if quota == "max" else int(quota) / int(period)


def _is_fit(verdicts: list[Verdict]) -> bool:
    return all(verdict.level != "failed" for verdict in verdicts)


def _print(verdict: Verdict) -> None:
    mark = {"ok": "ok  ", "warning": "warn", "failed": "FAIL"}[verdict.level]
    print(f"{mark}  {verdict.name:<20} {verdict.value}", flush=True)
    if verdict.fix and verdict.level != "ok":
        print(f"      {'':<20} -> {verdict.fix}", flush=True)
