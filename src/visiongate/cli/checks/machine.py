"""Judges the facts of a machine; every function is plain: facts in, verdict out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from visiongate.cli.checks import Level, Verdict
from visiongate.cli.checks.cards import CardSpeed
from visiongate.cli.checks.facts import Facts, Place
from visiongate.engine.budget import MIN_CACHE_TOKENS, PRECISIONS, Budget

MIN_GLIBC: Final = (2, 28)
MIN_DRIVERS: Final = {"12": 525, "13": 580}
"""The oldest NVIDIA driver for each CUDA generation that torch may be built for."""

MIN_DOCKER: Final = 24
MIN_GPU_BYTES: Final = 8 * 10**9
MIN_CAPABILITY: Final = 7.5
DISK_BYTES: Final = 15 * 10**9
LOG_BYTES: Final = 10**9
GOOD_READ_SHARE: Final = 0.7
"""Of what a card's memory could give; an idle, healthy card reads 85 to 95 percent."""


def judge_machine(facts: Facts, preset: str) -> Iterator[Verdict]:
    """Everything that does not depend on the model."""
    yield judge_system(facts)
    yield judge_python(facts)
    yield judge_cpu(facts)
    yield judge_cores(facts)
    yield from judge_libraries(facts)
    yield judge_locale(facts)
    yield judge_port(facts)
    yield judge_door(facts)
    yield judge_egress(facts)
    if preset == "pro" or facts.gpus:
        yield from judge_gpu(facts, preset)
    if preset == "pro" and not facts.is_container:
        yield from judge_containers(facts)


def judge_system(facts: Facts) -> Verdict:
    """Linux with glibc 2.28; others by way of Linux."""
    measured = f"{facts.distribution or facts.system} (kernel {facts.release})"
    measured += f", glibc {facts.glibc}" if facts.glibc else ""
    needed = "Linux with glibc 2.28 (Ubuntu 20.04, Debian 10, CentOS/RHEL 8 or later)"
    if facts.system == "Windows":
        return Verdict("system", "warning", measured, needed, "run it in WSL2 with Ubuntu")
    if facts.system == "Darwin":
        fix = "not supported; the embedded model works, for all else use a Linux machine"
        return Verdict("system", "warning", measured, needed, fix)
    if not facts.glibc:
        fix = "this C library (musl?) has no torch wheels; use the container image"
        return Verdict("system", "warning", measured, needed, fix)
    if _numbers(facts.glibc)[:2] < MIN_GLIBC:
        fix = "CentOS 7 is too old for current torch: use the container image, which brings its own"
        return Verdict("system", "failed", measured, needed, fix)
    return Verdict("system", "ok", measured, needed)


def judge_python(facts: Facts) -> Verdict:
    """3.10 to 3.13: what current torch has wheels for; 3.9 ended in October 2025."""
    measured, needed = ".".join(str(part) for part in facts.python), "3.10 to 3.13"
    if facts.python[:2] < (3, 10):
        return Verdict("python", "failed", measured, needed, "install Python 3.11 beside this one")
    if facts.python[:2] > (3, 13):
        fix = "untested; a venv of Python 3.11 is the safe choice"
        return Verdict("python", "warning", measured, needed, fix)
    return Verdict("python", "ok", measured, needed)


def judge_cpu(facts: Facts) -> Verdict:
    """x86-64 with AVX2 has fast kernels; the rest works through torch."""
    measured = f"{facts.machine}, {', '.join(facts.features) or 'no vector extension found'}"
    needed = "x86-64 with AVX2; AVX-512 or AMX is faster"
    if facts.machine not in {"x86_64", "AMD64"}:
        fix = "experimental: it works through torch, several times slower than on x86-64"
        return Verdict("cpu", "warning", measured, needed, fix)
    if "avx2" not in facts.features:
        fix = "it works through torch, several times slower; a virtual machine may hide AVX2: set "
        return Verdict("cpu", "warning", measured, needed, fix + "its CPU type to host")
    if not facts.has_kernels:
        fix = "the native kernels were not built: install the wheel, or a C++ compiler and again"
        return Verdict("cpu", "warning", f"{measured}, kernels missing", needed, fix)
    return Verdict("cpu", "ok", measured, needed)


def judge_cores(facts: Facts) -> Verdict:
    """Threads follow the quota, so one core is possible and slow."""
    usable = min(facts.num_cores, facts.cpu_quota or facts.num_cores)
    measured = f"{facts.num_cores} cores"
    measured += f", container quota {facts.cpu_quota:g}" if facts.cpu_quota else ""
    if usable < 2:
        return Verdict("cores", "warning", measured, "2, better 4", "raise --cpus")
    return Verdict("cores", "ok", measured, "2, better 4")


def judge_libraries(facts: Facts) -> Iterator[Verdict]:
    """One line while all is well, one for each that is missing."""
    missing = [name for name, version in facts.libraries.items() if version == "missing"]
    shown = ", ".join(f"{k} {v}" for k, v in facts.libraries.items() if v != "missing")
    yield Verdict("libraries", "ok", shown)
    for name in missing:
        fix = "install the package again: pip install visiongate"
        yield Verdict(f"library {name}", "failed", "missing", "installed", fix)


def judge_locale(facts: Facts) -> Verdict:
    """UTF-8 everywhere: file names and logs in Chinese need it."""
    is_good = facts.encoding.lower().replace("-", "") == "utf8"
    fix = "set LANG=C.UTF-8 (or zh_CN.UTF-8); answers over HTTP are UTF-8 all the same"
    level: Level = "ok" if is_good else "warning"
    return Verdict("locale", level, facts.encoding, "UTF-8", "" if is_good else fix)


def judge_port(facts: Facts) -> Verdict:
    """A port in use is what "Connection refused" and a blank page often come from."""
    measured = f"{facts.port} is free"
    if facts.port_owner == "visiongate":
        measured = f"{facts.port} is served by VisionGate"
        return Verdict("port", "ok", measured, "a free port", "it runs already: --base-url asks it")
    if facts.port_owner:
        measured = f"{facts.port} is taken by another program"
        fix = "stop it, or choose another with --port (containers: -p 8081:8080)"
        return Verdict("port", "failed", measured, "a free port", fix)
    return Verdict("port", "ok", measured, "a free port")


def judge_door(facts: Facts) -> Verdict:
    """Beyond loopback everybody may use a service without keys."""
    is_local = facts.host in {"localhost", "::1"} or facts.host.startswith("127.")
    measured = f"listens on {facts.host}, {'with' if facts.has_keys else 'without'} keys"
    needed = "keys beyond this machine"
    if is_local or facts.has_keys:
        return Verdict("door", "ok", measured, needed)
    fix = "set VISIONGATE_API_KEYS=…, or `visiongate keys create`"
    return Verdict("door", "warning", measured, needed, fix)


def judge_egress(facts: Facts) -> Verdict:
    """What the service may call while it runs: nothing, unless it was told to."""
    measured = "; ".join(facts.outgoing) or "nothing is called; no telemetry"
    return Verdict("egress", "ok", measured, "only what you allow")


def judge_memory(
    facts: Facts, budgets: tuple[Budget, ...], precision: str, *, is_gpu: bool = False
) -> Verdict:
    """The limit against what the chosen precision needs, with the whole table."""
    limit, used = facts.memory_limit_bytes, facts.memory_used_bytes
    where = "container limit" if limit < facts.memory_total_bytes else "memory"
    measured = f"{where} {_gb(limit)}, {_gb(used)} in use"
    if is_gpu:
        return _judge_host_memory(measured, limit)
    chosen = next((budget for budget in budgets if budget.precision == precision), None)
    if chosen is None:
        fix = "--precision int8 is as small"
        return Verdict("memory", "failed", measured, f"a GPU for {precision}", fix)
    tokens = chosen.fitting_cache_tokens(limit)
    needed = f"{_gb(chosen.total_bytes)} for {precision}"
    details = tuple(
        f"{'fits    ' if budget.total_bytes <= limit else 'too much'}  {budget}"
        for budget in budgets
    )
    if chosen.total_bytes <= limit:
        return _judge_free(Verdict("memory", "ok", measured, needed, details=details), limit - used)
    if tokens:
        fix = f"it starts with a smaller cache by itself (VISIONGATE_CACHE_TOKENS={tokens}); "
        fix += f"MAX_CONCURRENCY={_places(tokens)} suits it"
        return Verdict("memory", "warning", measured, needed, fix, details)
    smaller = next(
        (b for b in budgets if b.fitting_cache_tokens(limit) and b.precision != precision), None
    )
    if smaller is not None:
        tokens = smaller.fitting_cache_tokens(limit)
        fix = f"--precision {smaller.precision} with VISIONGATE_CACHE_TOKENS={tokens}"
    else:
        least = min(b.fixed_bytes + b.bytes_per_token * MIN_CACHE_TOKENS for b in budgets)
        fix = f"at least {_gb(least)} (--precision int8), or a smaller model"
    return Verdict("memory", "failed", measured, needed, f"too small: {fix}", details)


def judge_place(place: Place, needed_bytes: int) -> Verdict:
    """Room and rights of one folder."""
    name, needed = f"disk {place.name}", f"{_gb(needed_bytes)}, writable"
    measured = f"{place.path}: {_gb(place.free_bytes)} free"
    if not place.is_writable:
        fix = "give it to this user: chown -R 10001 FOLDER for the container, or another folder"
        return Verdict(name, "failed", f"{place.path} cannot be written", needed, fix)
    if place.free_bytes < needed_bytes:
        level: Level = "failed" if place.name == "cache" else "warning"
        fix = "make room, or set HF_HOME" if place.name == "cache" else "make room"
        return Verdict(name, level, measured, needed, fix)
    return Verdict(name, "ok", measured, needed)


def judge_gpu(facts: Facts, preset: str) -> Iterator[Verdict]:
    """Driver, cards and the torch build."""
    oldest = MIN_DRIVERS.get(facts.torch_cuda.partition(".")[0], MIN_DRIVERS["12"])
    needed = f"an NVIDIA card with 8 GB or more, driver {oldest} or later"
    level: Level = "failed" if preset == "pro" else "warning"
    if not facts.gpus:
        measured = "no NVIDIA card answers" + (", a driver is there" if facts.has_driver else "")
        fix = (
            "the Pro preset would run on the CPU: very slow, and large in memory. Containers need "
            "--gpus all; check `nvidia-smi`; or use --preset cpu"
        )
        yield Verdict("gpu", "warning", measured, needed, fix)
        return
    for index, gpu in enumerate(facts.gpus):
        measured = (
            f"{gpu.name}, {_gb(gpu.memory_bytes)}, driver {gpu.driver}, "
            f"compute capability {gpu.capability}"
        )
        fix = ""
        if gpu.memory_bytes < MIN_GPU_BYTES:
            fix = "too small: a card with 8 GB holds the 2B model in bfloat16"
        elif _numbers(gpu.driver)[:1] < (oldest,):
            fix = "update the NVIDIA driver"
        elif gpu.capability < MIN_CAPABILITY:
            fix = "older than Turing: use --device cpu"
        yield Verdict(f"gpu {index}", level if fix else "ok", measured, needed, fix)
    if not facts.torch_cuda:
        fix = "this torch is a CPU build: install the CUDA build, or use the Pro image"
        yield Verdict("torch", level, f"torch {facts.libraries.get('torch')}", "CUDA build", fix)


def judge_card_memory(
    index: int, limit: int, budgets: tuple[Budget, ...], precision: str
) -> Verdict:
    """A card's memory, or what may be used of it, against what the model takes at a precision."""
    name, measured = f"gpu {index} memory", _gb(limit)
    details = tuple(f"{_fit(budget, limit):8}  {budget}" for budget in budgets)
    chosen = next(budget for budget in budgets if budget.precision == precision)
    least = chosen.fixed_bytes + chosen.bytes_per_token * MIN_CACHE_TOKENS
    needed = f"{_gb(least)} or more for {precision}"
    tokens = chosen.fitting_cache_tokens(limit)
    if not tokens:
        smaller = [b for b in budgets if b.fitting_cache_tokens(limit) and b.precision != precision]
        advice = f"--precision {smaller[0].precision}" if smaller else "a smaller model"
        return Verdict(name, "failed", measured, needed, f"too small: {advice}", details)
    room = min(tokens, chosen.cache_tokens)
    measured += f": room for {room:,} tokens of {chosen.cache_tokens:,}"
    if tokens < chosen.cache_tokens // 8:
        fix = f"it runs; long requests wait for one another: MAX_CONCURRENCY={_places(tokens)} fits"
        return Verdict(name, "warning", measured, needed, fix, details)
    return Verdict(name, "ok", measured, needed, details=details)


def _fit(budget: Budget, limit: int) -> str:
    """Whether a budget fits a card: wholly, with a smaller cache, or not at all."""
    tokens = budget.fitting_cache_tokens(limit)
    if tokens >= budget.cache_tokens:
        return "fits"
    return f"{tokens} tokens" if tokens else "too much"


def judge_card_speeds(cards: Sequence[CardSpeed], facts: Facts, preset: str) -> Iterator[Verdict]:
    """Whether cards work, how fast they read, and whether their kernels can be compiled."""
    level: Level = "failed" if preset == "pro" else "warning"
    if not cards and facts.gpus:
        fix = "the driver may be too old for this torch, or CUDA_VISIBLE_DEVICES hides the cards"
        yield Verdict("gpu at work", level, "torch sees no card", "a card that computes", fix)
    for card in cards:
        name = f"gpu {card.device.removeprefix('cuda:')}"
        if card.failure:
            fix = "another program may hold its memory: nvidia-smi; else restart the driver"
            yield Verdict(f"{name} at work", level, card.failure, "a card that computes", fix)
            continue
        yield _judge_read(f"{name} bandwidth", card)
        yield _judge_compilers(f"{name} kernels", card, level)


def _judge_read(name: str, card: CardSpeed) -> Verdict:
    """Decoding is reading: a card's tokens a second follow its bandwidth."""
    needed = f"{GOOD_READ_SHARE:.0%} of what its memory could give"
    if not card.read_bytes_per_second:
        return Verdict(name, "warning", "not measured", needed, "mend its kernels first")
    measured = f"reads {card.read_bytes_per_second / 1e9:,.0f} GB/s"
    if not card.peak_bytes_per_second:
        return Verdict(name, "ok", f"{measured}; what it could read is unknown (extra gpu)", needed)
    share = card.read_bytes_per_second / card.peak_bytes_per_second
    measured += f" of {card.peak_bytes_per_second / 1e9:,.0f} ({share:.0%})"
    if share < GOOD_READ_SHARE:
        fix = "another program uses it, or it is throttled: nvidia-smi -q -d PERFORMANCE,CLOCK"
        return Verdict(name, "warning", measured, needed, fix)
    return Verdict(name, "ok", measured, needed)


def _judge_compilers(name: str, card: CardSpeed, level: Level) -> Verdict:
    """Triton is needed; without NVRTC decoding is slower."""
    needed = "Triton and NVRTC, which come with torch for CUDA"
    if card.triton:
        fix = "install torch for CUDA, and a C compiler for Triton (apt-get install gcc)"
        return Verdict(name, level, f"Triton: {card.triton}", needed, fix)
    if card.nvrtc:
        fix = "slower decoding: through torch's own products"
        return Verdict(name, "warning", f"Triton works; {card.nvrtc}", needed, fix)
    return Verdict(name, "ok", "Triton and NVRTC work", needed)


def judge_containers(facts: Facts) -> Iterator[Verdict]:
    """Docker and the NVIDIA Container Toolkit, where Pro is to run in a container."""
    if not facts.docker:
        fix = "only needed for the container image"
        yield Verdict("docker", "ok", "not installed", "24 or later", fix)
        return
    is_old = _numbers(facts.docker)[:1] < (MIN_DOCKER,)
    level: Level = "warning" if is_old else "ok"
    fix = "update Docker" if is_old else ""
    yield Verdict("docker", level, facts.docker, "24 or later", fix)
    if not facts.container_toolkit:
        fix = "install nvidia-container-toolkit (it replaced nvidia-docker2), then restart Docker"
        yield Verdict("container toolkit", "warning", "not installed", "for --gpus all", fix)
    else:
        yield Verdict("container toolkit", "ok", facts.container_toolkit, "for --gpus all")


def table(budgets: tuple[Budget, ...]) -> tuple[str, ...]:
    """The memory table as lines."""
    assert tuple(budget.precision for budget in budgets) == PRECISIONS
    return tuple(str(budget) for budget in budgets)


def _judge_free(verdict: Verdict, free_bytes: int) -> Verdict:
    """It fits the limit; does it also fit beside what runs now?"""
    needed = float(verdict.needed.split()[0]) * 1e9
    if free_bytes >= needed:
        return verdict
    fix = f"only {_gb(free_bytes)} are free now: stop what else runs here"
    return Verdict("memory", "warning", verdict.measured, verdict.needed, fix, verdict.details)


def _judge_host_memory(measured: str, limit: int) -> Verdict:
    if limit < 15 * 10**9:
        fix = "loading may be slow; 16 GB beside the card are advised"
        return Verdict("memory", "warning", measured, "16 GB beside the card", fix)
    return Verdict("memory", "ok", measured, "16 GB beside the card")


def _places(cache_tokens: int) -> int:
    return max(1, cache_tokens // 6144)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _gb(num_bytes: int) -> str:
    return f"{max(0, num_bytes) / 1e9:.1f} GB"
