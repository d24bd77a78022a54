"""How a picture enters its tower: cut and looked up exactly, positions near float64, rows alone."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.oracle import distance
from visiongate import kernels
from visiongate.kernels import reference


@pytest.mark.parametrize("patch", [1, 3, 16])
@pytest.mark.parametrize("merge", [1, 2, 3])
@pytest.mark.parametrize(("down", "across", "channels"), [(1, 1, 1), (2, 5, 3), (7, 3, 4)])
def test_patches_are_the_pixels_levels_in_merge_order(
    level: str, patch: int, merge: int, down: int, across: int, channels: int
) -> None:
    height, width = down * merge * patch, across * merge * patch
    pixels = torch.randint(0, 256, (height, width, channels), dtype=torch.uint8)
    levels = torch.randn(channels, 256)
    patches = kernels.cut_patches(pixels, levels, patch, merge)
    rows = []
    for y in range(0, height, merge * patch):
        for x in range(0, width, merge * patch):
            for inner in range(merge * merge):
                top, left = y + inner // merge * patch, x + inner % merge * patch
                part = pixels[top : top + patch, left : left + patch]
                rows += [levels[c][part[:, :, c].long()].flatten() for c in range(channels)]
    assert torch.equal(patches, torch.cat(rows).view(-1, channels * patch * patch))


def test_patches_of_pixels_that_lie_apart_are_cut_too(level: str) -> None:
    wide = torch.randint(0, 256, (8, 40, 3), dtype=torch.uint8)
    levels = torch.randn(3, 256)
    cut = kernels.cut_patches(wide[:, 4:36], levels, 4, 2)
    assert torch.equal(cut, kernels.cut_patches(wide[:, 4:36].contiguous(), levels, 4, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("C", [1, 8, 33, 320, 1024])
@pytest.mark.parametrize("num_taps", [1, 4])
def test_weighted_rows_are_near_float64(
    level: str, dtype: torch.dtype, C: int, num_taps: int
) -> None:
    table, y = torch.randn(50, C).to(dtype), torch.randn(37, C)
    ids, weights = torch.randint(0, 50, (37, num_taps)), torch.rand(37, num_taps)
    expected = y.double() + (table.double()[ids] * weights.double()[..., None]).sum(1)
    result = kernels.add_weighted_rows(y, table, ids, weights)
    assert distance(result, expected) < 1e-6
    assert result.data_ptr() == y.data_ptr()


def test_weighted_rows_do_not_depend_on_company(native_level: str) -> None:
    table, y = torch.randn(50, 70), torch.randn(300, 70)
    ids, weights = torch.randint(0, 50, (300, 4)), torch.rand(300, 4)
    together = kernels.add_weighted_rows(y.clone(), table, ids, weights)
    for row in (0, 1, 150, 299):
        one = slice(row, row + 1)
        alone = kernels.add_weighted_rows(y[one].clone(), table, ids[one], weights[one])
        assert torch.equal(alone, together[one])
    assert distance(together, reference.add_weighted_rows(y, table, ids, weights)) < 1e-6
