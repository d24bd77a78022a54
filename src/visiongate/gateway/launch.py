"""From settings to running parts: which folder holds the model, what each worker loads."""

from __future__ import annotations

import importlib.util
import os
from importlib import resources
from pathlib import Path
from typing import Final

from visiongate import hub
from visiongate.engine.budget import MIN_CACHE_TOKENS, budget
from visiongate.engine.types import EngineSettings, WorkerSettings
from visiongate.errors import InvalidSettings
from visiongate.gateway.backend import Backend
from visiongate.gateway.download import DownloadingBackend
from visiongate.gateway.memory import MIB, memory_limit
from visiongate.gateway.settings import Settings
from visiongate.gateway.upstream import Upstream
from visiongate.model.config import ModelConfig

MIN_BATCH_MEMORY: Final = 12 * 1024 * MIB
"""BATCH_SIZE over 1 needs this much memory beside a 2B model; below it, 1 is kept."""

EMBEDDED_ID: Final = "visiongate-mini"


def make_backend(settings: Settings) -> Backend:
    """The upstream server, or local workers, after a download where the model is not here yet."""
    if settings.upstream:
        return Upstream(settings)
    from visiongate.gateway.pool import WorkerPool

    folder = find_model(settings)
    if folder is None:
        return DownloadingBackend(
            settings.model, lambda path: WorkerPool(workers_of(settings, path))
        )
    return WorkerPool(workers_of(settings, folder))


def workers_of(settings: Settings, path: Path) -> list[WorkerSettings]:
    """One worker for each device, loading the checkpoint in `path`."""
    model_id = settings.model_name or (settings.model or EMBEDDED_ID)
    if Path(model_id).exists():
        model_id = Path(model_id).resolve().name
    return [
        WorkerSettings(
            model_path=str(path),
            model_id=model_id,
            engine=EngineSettings(
                precision=settings.precision,
                device=device,
                num_threads=settings.threads or None,
                max_num_seqs=settings.max_concurrency,
                max_prefills=batch_size_of(settings),
                cache_tokens=fitting_cache_tokens(settings, path, device),
                use_onnx_runtime=settings.use_onnx_runtime,
                device_memory_bytes=settings.gpu_memory_limit,
            ),
            fall_back_to_cpu=settings.cpu_fallback,
        )
        for device in devices_of(settings)
    ]


def find_model(settings: Settings) -> Path | None:
    """The checkpoint's folder; None for a hub's id that has to be downloaded.

    Raises InvalidSettings with what to do when there can be no such model.
    """
    if not settings.model:
        return Path(str(resources.files("visiongate"))) / "mini" / "weights"
    folder = Path(settings.model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or settings.model.startswith((".", "/", "~")):
        raise InvalidSettings(f"model={settings.model} is not a checkpoint folder (no config.json)")
    try:
        return hub.resolve(settings.model, offline=True)
    except hub.DownloadFailed as error:
        if hub.is_offline():
            raise InvalidSettings(error.message) from None
        return None


def devices_of(settings: Settings) -> list[str]:
    """One device for each worker: the CPU, or every visible NVIDIA GPU."""
    if settings.device == "cpu":
        return ["cpu"]
    num_gpus = count_gpus()
    if num_gpus == 0:
        return ["cuda:0" if settings.device == "cuda" else "cpu"]
    return [f"cuda:{index}" for index in range(num_gpus)]


def count_gpus() -> int:
    """Visible NVIDIA GPUs, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([item for item in visible.split(",") if item.strip() not in {"", "-1"}])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def batch_size_of(settings: Settings) -> int:
    """BATCH_SIZE, kept at 1 where memory is too short for more."""
    if settings.batch_size > 1 and not settings.is_demo and memory_limit() < MIN_BATCH_MEMORY:
        return 1
    return settings.batch_size


def wanted_cache_tokens(settings: Settings) -> int:
    """Room for every place at a usual length."""
    per_request = 4096 if settings.is_demo else 6144
    return settings.cache_tokens or min(262_144, per_request * (settings.max_concurrency + 1))


def fitting_cache_tokens(settings: Settings, path: Path, device: str) -> int:
    """`wanted_cache_tokens`, on the CPU no more than memory holds once they are all in use.

    A GPU's worker sizes its cache by the card's own memory.
    """
    wanted = wanted_cache_tokens(settings)
    if settings.cache_tokens or device != "cpu":
        return wanted
    need = budget(ModelConfig.from_pretrained(path), settings.precision, cache_tokens=wanted)
    limit = settings.memory_limit or memory_limit()
    return max(MIN_CACHE_TOKENS, min(wanted, need.fitting_cache_tokens(limit)))


def warnings_of(settings: Settings, *, has_keys: bool) -> list[str]:
    """What an operator should read at the start."""
    found: list[str] = []
    if settings.is_demo:
        found.append(
            "this is the small embedded demonstration model; --preset cpu or pro serves Qwen3-VL"
        )
    if not settings.is_loopback and not has_keys:
        found.append(
            f"everybody who reaches {settings.host}:{settings.port} may use this service; "
            "VISIONGATE_API_KEYS=… closes the door"
        )
    if batch_size_of(settings) != settings.batch_size:
        found.append(
            f"BATCH_SIZE={settings.batch_size} needs 12 GB of memory and there are "
            f"{memory_limit() // MIB} MB; it stays at 1"
        )
    if settings.use_onnx_runtime and importlib.util.find_spec("onnxruntime") is None:
        found.append(
            "USE_ONNX_RUNTIME=true has no effect: onnxruntime is not installed "
            "(pip install 'visiongate[onnx]'); our own kernels compute"
        )
    if settings.preset == "pro" and not settings.upstream and count_gpus() == 0:
        found.append("no NVIDIA GPU is visible; on the CPU this model is very slow")
    return found
