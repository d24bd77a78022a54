"""Measures what the machine is; judges nothing. Every field can be set by hand in a test."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import locale
import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from visiongate.gateway.settings import Settings

LIBRARIES: Final = (
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "jinja2",
    "llguidance",
    "pillow",
    "fastapi",
    "uvicorn",
    "python-multipart",
    "prometheus-client",
    "httpx",
)
_FEATURES: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA card, as its driver tells it."""

    name: str
    memory_bytes: int
    driver: str
    capability: float


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that will be written: the room it has; `is_writable` for this user."""

    name: str
    path: Path
    free_bytes: int
    is_writable: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured.

    Attributes:
        glibc: "2.36", empty where the C library is another one.
        memory_limit_bytes: the container's limit, or the machine's memory.
        cpu_quota: cores that the container may use; 0 is all.
        port_owner: "" when the port is free, "visiongate" or "another" when something answers.
        libraries: versions, "missing" where one is not installed.
        torch_cuda: the CUDA version torch was built for; empty for a CPU build.
        docker, container_toolkit: versions, empty where the command is not there.
        outgoing: what the settings allow to be called.
    """

    system: str
    release: str
    distribution: str
    glibc: str
    python: tuple[int, int, int]
    machine: str
    features: tuple[str, ...]
    num_cores: int
    cpu_quota: float
    memory_limit_bytes: int
    memory_total_bytes: int
    memory_used_bytes: int
    shm_bytes: int
    places: tuple[Place, ...]
    host: str
    port: int
    port_owner: str
    gpus: tuple[Gpu, ...]
    has_driver: bool
    docker: str
    container_toolkit: str
    is_container: bool
    libraries: dict[str, str]
    torch_cuda: str
    has_kernels: bool
    encoding: str
    has_keys: bool
    outgoing: tuple[str, ...]


def measure(settings: Settings) -> Facts:
    """Measures this machine for these settings; takes about a second and writes nothing."""
    from visiongate import hub
    from visiongate.gateway.memory import memory_limit, memory_used

    smi = _run("nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap", *_CSV)
    cache = hub.cache_folder()
    return Facts(
        system=platform.system(),
        release=platform.release(),
        distribution=_distribution(),
        glibc=platform.libc_ver()[1] if platform.libc_ver()[0] == "glibc" else "",
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        machine=platform.machine(),
        features=_cpu_features(),
        num_cores=_num_cores(),
        cpu_quota=_cpu_quota(),
        memory_limit_bytes=settings.memory_limit or memory_limit(),
        memory_total_bytes=_total_memory(),
        memory_used_bytes=memory_used(),
        shm_bytes=_size_of(Path("/dev/shm")),  # noqa: S108  # measured, not written
        places=tuple(
            _place(name, path)
            for name, path in (
                ("cache", cache),
                ("logs", settings.log_dir),
                ("data", settings.data_dir),
            )
        ),
        host=settings.host,
        port=settings.port,
        port_owner=port_owner(settings.host, settings.port),
        gpus=_gpus(smi),
        has_driver=bool(smi) or Path("/proc/driver/nvidia/version").exists(),
        docker=_version(_run("docker", "--version")),
        container_toolkit=_version(_run("nvidia-ctk", "--version")),
        is_container=Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
        libraries={name: library_version(name) for name in LIBRARIES},
        torch_cuda=_torch_cuda(),
        has_kernels=_has_kernels(),
        encoding=locale.getpreferredencoding(False),
        has_keys=bool(settings.api_keys) or _has_stored_keys(settings),
        outgoing=_outgoing(settings),
    )


def port_owner(host: str, port: int) -> str:
    """Who listens on a port; asks politely, and only this machine."""
    if port == 0:
        return ""
    probe = "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104
    family = socket.AF_INET6 if ":" in probe else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(2)
        try:
            connection.connect((probe, port))
        except OSError:
            return ""
    import httpx

    shown = f"[{probe}]" if ":" in probe else probe
    try:
        found = httpx.get(f"http://{shown}:{port}/health/live", timeout=3).text
    except httpx.HTTPError:
        return "another"
    return "visiongate" if '"alive"' in found else "another"


def library_version(name: str) -> str:
    """An installed library's version, or "missing"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


_CSV: Final = ("--format=csv,noheader,nounits",)


def _run(*command: str) -> str:
    """What a command prints; empty when it is not there or fails."""
    found = shutil.which(command[0])
    if found is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603  # fixed commands
            [found, *command[1:]], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _gpus(text: str) -> tuple[Gpu, ...]:
    """Cards from nvidia-smi's lines: name, MiB, driver, compute capability."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[1].isdigit():
            capability = float(parts[3]) if parts[3].replace(".", "").isdigit() else 0.0
            found.append(Gpu(parts[0], int(parts[1]) * 1024 * 1024, parts[2], capability))
    return tuple(found)


def _version(text: str) -> str:
    """The first thing that looks like a version."""
    words = text.replace(",", " ").split()
    return next((word for word in words if word[0].isdigit() and "." in word), "")


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _cpu_features() -> tuple[str, ...]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    flags = set(line.partition(":")[2].split())
    return tuple(name for name in _FEATURES if name in flags)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_quota() -> float:
    cgroup = Path("/sys/fs/cgroup")
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return 0.0
    return int(quota) / int(period) if quota.isdigit() and int(period) else 0.0


def _total_memory() -> int:
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size_of(path: Path) -> int:
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return 0


def _place(name: str, path: Path) -> Place:
    """The room of a folder that may not exist yet: its nearest parent's."""
    full = path.expanduser().absolute()
    there = next((p for p in (full, *full.parents) if p.is_dir()), Path("/"))
    return Place(name, path, shutil.disk_usage(there).free, os.access(there, os.W_OK))


def _torch_cuda() -> str:
    """The CUDA version of the installed torch, read from its version file without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    line = next((line for line in text.splitlines() if line.startswith("cuda")), "")
    value = line.partition("=")[2].strip()
    return "" if value == "None" else value.strip("'\"")


def _has_kernels() -> bool:
    spec = importlib.util.find_spec("visiongate.kernels")
    folders = spec.submodule_search_locations if spec else None
    return any(list(Path(folder).glob("_native*")) for folder in folders or ())


def _has_stored_keys(settings: Settings) -> bool:
    """Whether the database holds a key; a database that does not exist is not made."""
    import sqlite3

    path = settings.data_dir / "visiongate.db"
    if not path.is_file():
        return False
    try:
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True) as database:
            found = database.execute("SELECT count(*) FROM keys").fetchone()[0]
    except sqlite3.Error:
        return False
    return bool(found)


def _outgoing(settings: Settings) -> tuple[str, ...]:
    found = []
    if settings.upstream:
        found.append(f"the engine at {settings.upstream}")
    if settings.image_hosts:
        found.append(f"pictures from {', '.join(settings.image_hosts)}")
    if settings.redis_url.get_secret_value():
        found.append("Redis")
    return tuple(found)
