"""`visiongate doctor`: is this machine fit, and does the model really see?

Every verdict has what was measured, what is needed and, where it is not good, what to do. Facts
come from `checks/facts.py`, judgement from `checks/machine.py`, pictures from `checks/sight.py`.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Optional

import typer

from visiongate.cli import options
from visiongate.cli.checks import Verdict
from visiongate.errors import InvalidCheckpoint, VisionGateError

if TYPE_CHECKING:
    import httpx

    from visiongate.cli.checks.facts import Facts
    from visiongate.engine.budget import Budget
    from visiongate.gateway.settings import Settings
    from visiongate.model.config import ModelConfig

SMALL_WEIGHTS: Final = 500_000_000
"""Weights up to this size are hashed without being asked: it takes a second or two."""

_MARKS: Final = {"ok": "ok  ", "warning": "warn", "failed": "FAIL"}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor", help="Check this machine and the model.")(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    skips_model: Annotated[
        bool, typer.Option("--skip-model", help="Check the machine only; load nothing.")
    ] = False,
    base_url: Annotated[
        Optional[str],  # noqa: UP045  # see options.py
        typer.Option(help="Ask this running server instead of loading the model here."),
    ] = None,
    key: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(envvar="VISIONGATE_API_KEY", help="A key of the running server."),
    ] = None,
    hashes: Annotated[
        bool, typer.Option("--hashes", help="Hash large weights too (seconds a gigabyte).")
    ] = False,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Draw the same pictures again."),
    ] = None,
    preset: options.Preset = None,
    model: options.Model = None,
    precision: options.Precision = None,
    device: options.Device = None,
    config: options.Config = None,
    pairs: options.Set = None,
) -> None:
    """Ends with status 1 when something would keep the service from working."""
    settings = options.settings_of(
        config, pairs, preset=preset, model=model, precision=precision, device=device
    )
    number = int(time.time()) if seed is None else seed
    verdicts: list[Verdict] = []

    async def collect() -> None:
        async for verdict in _checks(settings, base_url, key, hashes, skips_model, number):
            verdicts.append(verdict)
            if not as_json:
                _print(verdict)

    asyncio.run(collect())
    is_fit = all(verdict.level != "failed" for verdict in verdicts)
    if as_json:
        found = [dataclasses.asdict(verdict) for verdict in verdicts]
        print(json.dumps({"ok": is_fit, "checks": found}, indent=2, ensure_ascii=False))
    else:
        counts = [sum(v.level == level for v in verdicts) for level in ("failed", "warning")]
        print(f"\n{len(verdicts)} checks, {counts[0]} failed, {counts[1]} with a warning")
    if not is_fit:
        raise typer.Exit(1)


async def _checks(
    settings: Settings,
    base_url: str | None,
    key: str | None,
    hashes: bool,
    skips_model: bool,
    seed: int,
) -> AsyncIterator[Verdict]:
    if base_url:
        async for verdict in _server_checks(base_url.rstrip("/"), key, seed):
            yield verdict
        return
    for verdict in machine_checks(settings, hashes=hashes):
        yield verdict
    if not skips_model:
        async for verdict in _model_checks(settings, seed):
            yield verdict


def machine_checks(settings: Settings, *, hashes: bool = False) -> Iterator[Verdict]:
    """What can be known without loading a model."""
    from visiongate.cli.checks import machine
    from visiongate.cli.checks.facts import measure

    facts = measure(settings)
    yield from machine.judge_machine(facts, settings.preset)
    folder, weights = _find_weights(settings)
    yield weights
    config = _config(settings, folder)
    is_gpu = settings.device != "cpu" and bool(facts.gpus) and not settings.upstream
    if config is not None:
        budgets = _budgets(settings, config, has_kernels=facts.has_kernels)
        yield machine.judge_memory(facts, budgets, settings.precision, is_gpu=is_gpu)
        for place in facts.places:
            download = 0 if folder else budgets[1].weights_bytes + 3 * 10**9
            needed = download if place.name == "cache" else machine.LOG_BYTES
            yield machine.judge_place(place, needed)
    if is_gpu:
        yield from card_checks(settings, config, facts)
    if folder and (hashes or _weights_bytes(folder) <= SMALL_WEIGHTS):
        yield judge_hashes(folder)


def card_checks(settings: Settings, config: ModelConfig | None, facts: Facts) -> Iterator[Verdict]:
    """The cards: memory against the model, then what they do when they are asked to work."""
    from visiongate.cli.checks import cards, machine

    budgets = _card_budgets(settings, config) if config is not None else ()
    for index, gpu in enumerate(facts.gpus if budgets else ()):
        limit = min(gpu.memory_bytes, settings.gpu_memory_limit or gpu.memory_bytes)
        yield machine.judge_card_memory(index, limit, budgets, settings.precision)
    if facts.torch_cuda:
        yield from machine.judge_card_speeds(cards.measure_cards(), facts, settings.preset)


def judge_hashes(folder: Path) -> Verdict:
    """Every file's hash against what was published."""
    from visiongate import hub

    started = time.monotonic()
    verdicts = list(hub.verify(folder))
    seconds = time.monotonic() - started
    bad = [verdict.name for verdict in verdicts if verdict.is_good is False]
    known = sum(verdict.is_good is not None for verdict in verdicts)
    if bad:
        fix = "the download is damaged: delete the folder and pull again"
        return Verdict("hashes", "failed", f"wrong: {', '.join(bad)}", "as published", fix)
    digest = next((v.digest[:16] for v in verdicts if v.name.endswith(".safetensors")), "")
    measured = f"{known} of {len(verdicts)} files compared in {seconds:.1f} s; weights {digest}…"
    return Verdict("hashes", "ok", measured, "as published")


def _find_weights(settings: Settings) -> tuple[Path | None, Verdict]:
    """The checkpoint's folder, where it is on this machine and complete."""
    from importlib import resources

    from visiongate import hub
    from visiongate.hub.cache import missing_files

    if settings.upstream:
        return None, Verdict("weights", "ok", f"none: the engine is {settings.upstream}")
    needed = "a complete checkpoint on this machine"
    if not settings.model:
        folder = Path(str(resources.files("visiongate"))) / "mini" / "weights"
        measured = "the embedded demonstration model"
        return folder, Verdict("weights", "ok", measured, needed)
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        missing = missing_files(folder)
        if missing:
            fix = "copy the whole folder, or `visiongate pull MODEL --to FOLDER`"
            measured = f"{folder} lacks {', '.join(missing[:3])}"
            return None, Verdict("weights", "failed", measured, needed, fix)
        return folder, Verdict("weights", "ok", str(folder), needed)
    found = hub.find_cached(settings.model)
    if found is None:
        fix = f"visiongate pull {settings.model} (a mirror: HF_ENDPOINT, or --from modelscope)"
        measured = f"{settings.model} is not in {hub.cache_folder()}"
        return None, Verdict("weights", "warning", measured, needed, fix)
    return found, Verdict("weights", "ok", f"{settings.model} at {found}", needed)


def _config(settings: Settings, folder: Path | None) -> ModelConfig | None:
    """The model's shape; None where neither a folder nor a published name tells it."""
    from visiongate.engine.budget import published
    from visiongate.model.config import ModelConfig

    try:
        return ModelConfig.from_pretrained(folder) if folder else published(settings.model)
    except InvalidCheckpoint:
        return None


def _budgets(settings: Settings, config: ModelConfig, *, has_kernels: bool) -> tuple[Budget, ...]:
    """The memory table of this machine."""
    from visiongate.engine.budget import PRECISIONS, budget
    from visiongate.gateway.launch import wanted_cache_tokens

    return tuple(
        budget(
            config,
            precision,
            cache_tokens=wanted_cache_tokens(settings),
            image_area=settings.image_area,
            has_kernels=has_kernels,
        )
        for precision in PRECISIONS
    )


def _card_budgets(settings: Settings, config: ModelConfig) -> tuple[Budget, ...]:
    """The memory table of a card."""
    from visiongate.engine.budget import GPU_PRECISIONS, gpu_budget
    from visiongate.gateway.launch import wanted_cache_tokens

    return tuple(
        gpu_budget(
            config,
            precision,
            cache_tokens=wanted_cache_tokens(settings),
            max_rows=settings.max_concurrency,
            image_area=settings.image_area,
        )
        for precision in GPU_PRECISIONS
    )


async def _model_checks(settings: Settings, seed: int) -> AsyncIterator[Verdict]:
    """Loads the model here and asks it."""
    from visiongate.cli.checks.sight import check_sight
    from visiongate.gateway.local import local_model
    from visiongate.gateway.wire import Sampling

    started = time.monotonic()
    try:
        async with local_model(settings) as model:
            info = model.info
            measured = (
                f"{info.model_id} {info.revision[:16]}, {info.num_parameters / 1e6:.0f} M "
                f"parameters, {info.precision} on {info.device} ({info.backend}), "
                f"{info.num_threads} threads, loaded in {time.monotonic() - started:.1f} s"
            )
            fix = info.degraded and f"{info.degraded}; check `nvidia-smi`"
            yield Verdict("model", "warning" if fix else "ok", measured, "loaded", fix)

            async def ask(picture: bytes, question: str) -> str:
                wish = Sampling(temperature=0, max_tokens=64)
                return (await model.answer([picture], question, wish)).text

            for verdict in await check_sight(ask, seed):
                yield verdict
    except VisionGateError as error:
        fix = "see the verdicts above; `visiongate serve --debug` says more"
        yield Verdict("model", "failed", error.message, "loaded", fix)


async def _server_checks(base_url: str, key: str | None, seed: int) -> AsyncIterator[Verdict]:
    """Asks a running server: is it there, is it ready, does it see?"""
    import httpx

    from visiongate.cli.checks.sight import check_sight

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=120) as client:
        started = time.monotonic()
        try:
            health = await client.get("/health")
        except httpx.HTTPError:
            fix = "not running, another port, or a firewall: docker ps; docker logs NAME | tail -20"
            yield Verdict("server", "failed", f"{base_url} does not answer", "an answer", fix)
            return
        seconds = time.monotonic() - started
        yield judge_health(health.status_code, health.text, seconds)
        if health.status_code != 200:
            return
        details = await client.get("/health/details")
        if details.status_code in {401, 403}:
            fix = "give a key: --key or VISIONGATE_API_KEY"
            yield Verdict("key", "failed", f"answered {details.status_code}", "a key", fix)
            return
        yield judge_details(details.json())

        async def ask(picture: bytes, question: str) -> str:
            return await _ask_server(client, picture, question)

        try:
            for verdict in await check_sight(ask, seed):
                yield verdict
        except httpx.HTTPError:
            fix = "docker logs NAME | tail -20, and error.log"
            yield Verdict("sight", "failed", "a question was not answered", "answers", fix)


def judge_health(status: int, text: str, seconds: float) -> Verdict:
    """What /health says."""
    measured = f"{status} {text.strip()[:60]} in {seconds:.2f} s"
    needed = '200 {"status":"healthy"}'
    if status == 200:
        return Verdict("server", "ok", measured, needed)
    fix = "loading: wait, and read model_loading.log; unhealthy: read error.log"
    return Verdict("server", "failed", measured, needed, fix)


def judge_details(details: dict[str, Any]) -> Verdict:
    """What /health/details says of the model."""
    measured = (
        f"{details.get('model')} {details.get('precision')} on {details.get('device')}, "
        f"version {details.get('version')}"
    )
    if details.get("demo"):
        measured += " (the embedded demonstration model)"
    if details.get("state") != "ready":
        fix = f"{details.get('reason')}; check `nvidia-smi` on the server"
        return Verdict("model", "warning", measured, "ready", fix)
    return Verdict("model", "ok", measured, "ready")


async def _ask_server(client: httpx.AsyncClient, picture: bytes, question: str) -> str:
    url = "data:image/*;base64," + base64.b64encode(picture).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question},
    ]
    body = {
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 64,
    }
    response = await client.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        return f"(answered {response.status_code})"
    return str(response.json()["choices"][0]["message"]["content"])


def _weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _print(verdict: Verdict) -> None:
    print(f"{_MARKS[verdict.level]}  {verdict.name:<18} {verdict.measured}", flush=True)
    for line in verdict.details:
        print(f"      {'':<18} {line}")
    if verdict.level != "ok":
        print(f"      {'':<18} needed: {verdict.needed}")
    if verdict.fix and verdict.level != "ok":
        print(f"      {'':<18} -> {verdict.fix}", flush=True)
