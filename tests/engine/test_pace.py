"""How long a step works on prompts and pictures, and how a prompt is cut on a GPU."""

from __future__ import annotations

import pytest

from visiongate.engine.pace import MOST_PATIENCE, PATIENCE, Load, Pace
from visiongate.engine.scheduler import prompt_part
from visiongate.engine.types import EngineSettings

STREAMING, IDLE = Load(1, 1), Load(0, 1)
GPU = EngineSettings(slice_seconds=0.005, max_step_tokens=2048)


def parts_of(left: int, most: int) -> list[int]:
    parts = []
    while left:
        parts.append(prompt_part(left, most))
        left -= parts[-1]
    return parts


@pytest.mark.parametrize(
    ("left", "parts"),
    [
        (1, [1]),
        (640, [640]),
        (641, [257, 384]),
        (1056, [544, 512]),
        (1280, [640, 640]),
        (1281, [513, 384, 384]),
        (2000, [464, 512, 512, 512]),
    ],
)
def test_a_prompt_is_cut_in_steps_of_128(left: int, parts: list[int]) -> None:
    assert parts_of(left, 640) == parts


@pytest.mark.parametrize("most", [100, 128, 576, 640])
def test_every_part_fits_and_there_are_as_few_as_can_be(most: int) -> None:
    for left in range(1, 3000, 7):
        parts = parts_of(left, most)
        assert sum(parts) == left
        assert all(0 < part <= most for part in parts)
        assert len(parts) == -(-left // most)


def measured(answers: float, prompt: float, *, is_beside: bool) -> Pace:
    """A pace that saw a step of answers, and one with a prompt of 500 tokens."""
    pace = Pace(GPU, is_beside=is_beside)
    assert pace.note(prompt, 500)
    assert not pace.note(answers, 0)
    return pace


def test_on_a_gpu_the_slice_grows_with_the_streams_step() -> None:
    few = measured(0.003, 0.007, is_beside=True)
    many = measured(0.008, 0.007, is_beside=True)
    assert few.prompt_tokens(STREAMING) == int(PATIENCE * 0.003 / (0.007 / 500))
    assert many.prompt_tokens(STREAMING) == int(PATIENCE * 0.008 / (0.007 / 500))
    assert few.picture_seconds(STREAMING, is_one_key=True, num_prompt_tokens=0) == pytest.approx(
        PATIENCE * 0.003
    )


@pytest.mark.parametrize(
    ("streaming", "others", "patience"),
    [(8, 8, PATIENCE), (8, 1, PATIENCE), (8, 12, 1.5 * PATIENCE), (2, 60, MOST_PATIENCE)],
)
def test_on_a_gpu_streams_wait_longer_where_more_requests_wait_than_stream(
    streaming: int, others: int, patience: float
) -> None:
    pace = measured(0.004, 0.007, is_beside=True)
    assert pace.prompt_tokens(Load(streaming, others)) == int(patience * 0.004 / (0.007 / 500))


def test_on_a_gpu_pictures_get_what_prompts_leave_of_the_slice() -> None:
    pace = measured(0.008, 0.007, is_beside=True)
    left = pace.picture_seconds(STREAMING, is_one_key=True, num_prompt_tokens=500)
    assert left == pytest.approx(PATIENCE * 0.008 - 0.007)
    assert pace.picture_seconds(STREAMING, is_one_key=True, num_prompt_tokens=1400) is None


def test_on_the_cpu_a_step_with_a_prompt_does_nothing_for_pictures_while_answers_stream() -> None:
    pace = measured(0.1, 3.0, is_beside=False)
    for num_prompt_tokens, wanted in ((0, GPU.slice_seconds), (1, None)):
        found = pace.picture_seconds(
            STREAMING, is_one_key=True, num_prompt_tokens=num_prompt_tokens
        )
        assert found == wanted


def test_on_the_cpu_a_prompt_costs_what_it_takes_beyond_the_answers_of_its_step() -> None:
    pace = Pace(EngineSettings(slice_seconds=0.5), is_beside=False)
    pace.note(0.1, 0)
    pace.note(0.1 + 100 * 0.004, 100)
    assert pace.prompt_tokens(STREAMING) == 125
    pace.forget()
    pace.note(10.0, 0)  # a step of answers that something held up
    pace.note(0.4, 100)
    assert pace.prompt_tokens(STREAMING) == 250  # half of it is the prompt's at least


@pytest.mark.parametrize("is_beside", [False, True])
def test_slices_are_short_beside_another_key(is_beside: bool) -> None:
    pace = Pace(EngineSettings(slice_seconds=0.3), is_beside=is_beside)
    pace.note(0.05, 0)
    alone = pace.picture_seconds(STREAMING, is_one_key=True, num_prompt_tokens=0)
    beside = pace.picture_seconds(STREAMING, is_one_key=False, num_prompt_tokens=0)
    assert (alone, beside) == (0.3, 0.05)


def test_before_anything_is_known_a_step_takes_few_tokens() -> None:
    pace = measured(0.003, 0.007, is_beside=True)
    pace.forget()
    assert pace.prompt_tokens(STREAMING) < pace.prompt_tokens(IDLE) <= 256
