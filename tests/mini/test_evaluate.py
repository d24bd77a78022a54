"""The evaluation's metrics against values worked out by hand, and runs with known answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

from visiongate.mini import evaluate
from visiongate.mini.evaluate import Case, run_evaluation


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval_equals_the_textbook(
    right: int, total: int, low: float, high: float
) -> None:
    assert evaluate.wilson_interval(right, total) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "abc", 0), ("kitten", "sitting", 3), ("", "abc", 3), ("合计", "总计", 1)],
)
def test_edit_distance_counts_single_changes(a: str, b: str, distance: int) -> None:
    assert evaluate.edit_distance(a, b) == distance


def test_box_overlap_is_intersection_over_union() -> None:
    truth = '[{"bbox_2d": [0, 0, 100, 100], "label": "a"}]'
    assert evaluate.box_overlap(truth, truth) == 1.0
    assert evaluate.box_overlap('[{"bbox_2d": [50, 0, 150, 100]}]', truth) == pytest.approx(1 / 3)
    assert evaluate.box_overlap("no box", truth) == 0.0
    two = '[{"bbox_2d": [0, 0, 100, 100]}, {"bbox_2d": [1, 1, 2, 2]}]'
    assert evaluate.box_overlap(two, truth) == 0.5


def test_field_f1_counts_leaves() -> None:
    truth = '{"a": "1", "b": ["x", "y"]}'
    assert evaluate.field_f1(truth, truth) == 1.0
    assert evaluate.field_f1('{"a": "1"}', truth) == pytest.approx(2 * 1 / (1 + 3))
    assert evaluate.field_f1("not json", truth) == 0.0


@pytest.mark.parametrize(
    ("kind", "truth", "answer", "is_right"),
    [
        ("lookup", "$20.47", " $20.47\n", True),
        ("lookup", "$20.47", "$20.48", False),
        ("average", "1 + 2 = 3, 3 / 2 = 1.5", "1.5", True),
        ("point", '{"point_2d": [500, 500]}', '{"point_2d": [520, 480]}', True),
        ("point", '{"point_2d": [500, 500]}', '{"point_2d": [600, 480]}', False),
        ("json", '{"a": "1", "b": "2"}', '{"b":"2","a":"1"}', True),
    ],
)
def test_marks(kind: str, truth: str, answer: str, is_right: bool) -> None:
    case = Case(kind, "form", (), ({"role": "user", "content": "?"},), truth, False)
    assert evaluate.mark(case, answer).is_right == is_right


def test_a_perfect_answerer_gets_everything_right() -> None:
    truths = iter([c.truth for c in evaluate.make_cases(40, seed=3)])
    seen: list[int] = []
    report = run_evaluation(
        lambda images, messages: next(truths),
        num_questions=40,
        seed=3,
        progress=lambda done, total: seen.append(done),
    )
    assert report.overall.right == report.overall.total == 40
    assert seen == list(range(1, 41))
    body = json.loads(report.to_json(with_results=True))
    assert body["overall"]["share"] == 1.0
    assert len(body["results"]) == 40
    assert "all" in report.table()


def test_a_mute_answerer_gets_nothing_right() -> None:
    report = run_evaluation(lambda images, messages: "", num_questions=20, seed=3)
    assert report.overall.right == 0


def test_kinds_can_be_chosen() -> None:
    report = run_evaluation(lambda images, messages: "", num_questions=6, seed=1, kinds=["box"])
    assert {score.name for score in report.by_kind()} == {"box"}


def test_cases_are_the_same_for_a_seed() -> None:
    first, again = (evaluate.make_cases(30, seed=9) for _ in range(2))
    assert [c.truth for c in first] == [c.truth for c in again]
    assert [c.images[0].tobytes() for c in first if c.images] == [
        c.images[0].tobytes() for c in again if c.images
    ]


def test_pictures_travel_to_a_served_model_in_order() -> None:
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    message: dict[str, Any] = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}],
    }
    sent = evaluate._with_pictures(message, list(images))
    urls = [part["image_url"]["url"] for part in sent["content"][:2]]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    assert urls[0] != urls[1]
