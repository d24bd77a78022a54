"""Every kernel test runs under torch and under every level that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from visiongate import kernels
from visiongate.kernels import native

LEVELS = ("avx512", "avx2", "scalar", "torch")


def in_use(level: str) -> Iterator[str]:
    """A fixture's body: the level is in use as long as the fixture lives."""
    before = kernels.backend()
    try:
        native.use_backend(level)
    except ValueError as missing:
        pytest.skip(str(missing))
    yield level
    native.use_backend(before)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The level in use during one test."""
    yield from in_use(request.param)


@pytest.fixture
def native_level(level: str) -> str:
    """A level of the library; its promises are stronger than torch's."""
    if level == "torch":
        pytest.skip("torch does not promise this")
    return level


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20)
