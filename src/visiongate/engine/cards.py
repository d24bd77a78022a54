"""What an NVIDIA card says of itself: memory, its speed, temperature, how busy it is.

Read through NVML (the package nvidia-ml-py, extra `gpu`); without it only memory is known, and its
speed as far as torch tells it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CardState:
    """One reading.

    Attributes:
        memory_bytes, memory_total_bytes: in use by all processes, and there.
        temperature: degrees Celsius; None where unknown.
        utilisation: share of the last moments in which a kernel ran, 0 to 1; None where unknown.
    """

    memory_bytes: int
    memory_total_bytes: int
    temperature: int | None = None
    utilisation: float | None = None


class Card:
    """One card, by torch's name of it ("cuda:0")."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._nvml: Any = None
        self._handle: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            # torch counts the visible cards, NVML all of them: the name that both know is the UUID
            uuid = str(torch.cuda.get_device_properties(self._device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
            self._nvml = pynvml
        except Exception as error:  # a missing package, an old driver, a container without NVML
            logger.info("NVML is not available (%s): temperature and load are unknown", error)

    def read(self) -> CardState:
        """The card's state now."""
        free, total = torch.cuda.mem_get_info(self._device)
        if self._nvml is None:
            return CardState(total - free, total)
        try:
            rates = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
            temperature = self._nvml.nvmlDeviceGetTemperature(
                self._handle, self._nvml.NVML_TEMPERATURE_GPU
            )
        except self._nvml.NVMLError:
            return CardState(total - free, total)
        return CardState(total - free, total, int(temperature), rates.gpu / 100)

    def memory_bytes_per_second(self) -> float:
        """What the card's memory could give by its width and clock; 0 where neither is told.

        Two transfers a cycle of the clock that NVML and CUDA name, for HBM and GDDR alike.
        """
        properties = torch.cuda.get_device_properties(self._device)
        width: int = getattr(properties, "memory_bus_width", 0)
        hertz = 1000.0 * getattr(properties, "memory_clock_rate", 0)  # kHz; CUDA 13 may say 0
        if self._nvml is not None:
            try:
                clock = self._nvml.nvmlDeviceGetMaxClockInfo(
                    self._handle, self._nvml.NVML_CLOCK_MEM
                )
                hertz = 1e6 * clock
                width = self._nvml.nvmlDeviceGetMemoryBusWidth(self._handle)
            except self._nvml.NVMLError:
                pass
        return 2 * hertz * width / 8
