"""What cards can do, measured on them: memory's speed and the compilers of their kernels.

Torch and the cards are touched here, and only here among the doctor's checks.
"""

from __future__ import annotations

from dataclasses import dataclass

PROBE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class CardSpeed:
    """One card at work.

    Attributes:
        device: torch's name of it, "cuda:0".
        read_bytes_per_second: of a stream that only reads; 0 where the card cannot be measured.
        peak_bytes_per_second: by its memory's width and clock; 0 where unknown.
        triton, nvrtc: why this compiler cannot be used; empty where it can.
        failure: why the card could not be used at all.
    """

    device: str
    name: str = ""
    read_bytes_per_second: float = 0.0
    peak_bytes_per_second: float = 0.0
    triton: str = ""
    nvrtc: str = ""
    failure: str = ""


def measure_cards() -> list[CardSpeed]:
    """Every card that torch sees; takes a second or two each. Empty where it sees none."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [_measure(f"cuda:{index}") for index in range(torch.cuda.device_count())]


def _measure(device: str) -> CardSpeed:
    import torch

    from visiongate.engine.cards import Card

    try:
        name = torch.cuda.get_device_name(device)
        free, _ = torch.cuda.mem_get_info(device)
        peak = Card(device).memory_bytes_per_second()
    except RuntimeError as error:
        return CardSpeed(device, failure=_first_line(error))
    triton = _triton_failure(device)
    rate = 0.0
    if not triton:
        from visiongate.kernels.cuda import probe

        try:
            rate = probe.read_rate(device, num_bytes=min(PROBE_BYTES, free // 4))
        except RuntimeError as error:
            return CardSpeed(device, name, 0.0, peak, failure=_first_line(error))
        finally:
            torch.cuda.empty_cache()
    return CardSpeed(device, name, rate, peak, triton, _nvrtc_failure(device))


def _triton_failure(device: str) -> str:
    """Compiles and runs a kernel by Triton, which needs a C compiler beside it."""
    try:
        from visiongate.kernels.cuda import probe

        if not probe.is_right(device):
            return "a kernel computed something wrong"
    except Exception as error:  # whatever is missing: the package, a compiler, a header
        return _first_line(error)
    return ""


def _nvrtc_failure(device: str) -> str:
    """Whether NVRTC, which compiles the streaming products, is there and the card new enough."""
    import torch

    from visiongate.kernels.cuda import nvrtc

    index = torch.device(device).index or 0
    if nvrtc.is_available(index):
        return ""
    if torch.cuda.get_device_capability(index) < (8, 0):
        return "the card is older than compute capability 8.0"
    return "NVRTC is not installed"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
