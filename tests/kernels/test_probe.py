"""The read-only stream that cards are measured by, interpreted where there is none."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from visiongate.kernels.cuda import probe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_every_number_is_read_once() -> None:
    """A stream that skipped some, or read some twice, would measure another bandwidth."""
    count = 3 * probe.ROWS * probe.WIDTH
    words = (torch.arange(count) % 7).to(DEVICE, torch.float32)
    expected = words.view(3, -1).sum(1)
    assert torch.equal(probe.read_sums(words), expected)


def test_rates_are_bytes_and_operations_a_second() -> None:
    assert probe.read_rate(DEVICE, num_bytes=1 << 18, repeats=1) > 1e4
    assert probe.product_rate(torch.float32, DEVICE, side=64, repeats=1) > 1e6


def test_a_kernel_that_computes_right_is_known() -> None:
    assert probe.is_right(DEVICE)
