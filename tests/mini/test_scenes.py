"""The drawn pictures: pure functions of their seed, with truths that hold."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from visiongate.mini import scenes
from visiongate.mini.scenes.asking import ABSENT, NO_PICTURE, TEMPLATES
from visiongate.mini.scenes.camera import random_camera
from visiongate.mini.scenes.fonts import BUILTIN, FontBook
from visiongate.mini.scenes.table import average_steps

BUILTIN_ONLY = FontBook((BUILTIN,), ())


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_a_seed_is_a_picture(kind: str) -> None:
    first, again, other = (scenes.draw(kind, seed, fonts=BUILTIN_ONLY) for seed in (5, 5, 6))
    assert first.picture.tobytes() == again.picture.tobytes()
    assert first.questions == again.questions
    assert first.picture.tobytes() != other.picture.tobytes()


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_every_kind_draws_without_any_installed_font(kind: str) -> None:
    for seed in range(6):
        scene = scenes.draw(kind, seed, fonts=BUILTIN_ONLY)
        assert not scene.is_chinese
        assert scene.questions
        assert np.asarray(scene.picture).std() > 0


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_text_lies_inside_the_picture(kind: str) -> None:
    for seed in range(8):
        scene = scenes.draw(kind, seed)
        width, height = scene.picture.size
        for run in scene.texts:
            x1, y1, x2, y2 = run.box
            assert -4 <= x1 < x2 <= width + 4, (seed, run)
            assert -4 <= y1 < y2 <= height + 4, (seed, run)


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_text_is_really_drawn(kind: str) -> None:
    """Inside the box of every piece of text there is more than one colour."""
    scene = scenes.draw(kind, 3)
    pixels = np.asarray(scene.picture.convert("L"))
    for run in scene.texts:
        x1, y1, x2, y2 = (max(0, int(v)) for v in run.box)
        assert np.ptp(pixels[y1 : y2 + 1, x1 : x2 + 1]) > 20, run


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_boxes_are_thousandths_and_upright(kind: str) -> None:
    for seed in range(6):
        scene = scenes.draw(kind, seed, seen_by_camera=seed % 2 == 0)
        for question in scene.questions:
            if question.kind == "box":
                for item in json.loads(question.answer):
                    x1, y1, x2, y2 = item["bbox_2d"]
                    assert 0 <= x1 < x2 <= 1000
                    assert 0 <= y1 < y2 <= 1000


def test_answers_are_on_the_page() -> None:
    """What a lookup answers stands in the page's text, or is the refusal."""
    for kind in ("receipt", "form", "card", "label", "repair", "menu"):
        for seed in range(6):
            scene = scenes.draw(kind, seed)
            page = " ".join(run.text for run in scene.texts)
            for question in scene.questions:
                if question.kind == "lookup":
                    assert question.answer in page, (kind, seed, question)
                if question.kind == "absent":
                    assert question.answer in ABSENT


def test_json_answers_parse() -> None:
    for kind in ("receipt", "menu", "repair", "form"):
        for question in scenes.draw(kind, 11).questions:
            if question.kind.endswith("json"):
                assert json.loads(question.answer)


def test_every_use_has_its_kind_of_question() -> None:
    found = {
        question.kind
        for kind in scenes.KINDS
        for seed in range(12)
        for question in scenes.draw(kind, seed).questions
    }
    wanted = (
        "absent amounts average box cell chart_fact chart_value check colour compare count exists "
        "items json line lookup menu_json ocr point position price_sense relation repair_json "
        "shape summary table_text title"
    )
    assert found >= set(wanted.split())


def test_summaries_are_one_sentence() -> None:
    for kind in scenes.KINDS:
        for question in scenes.draw(kind, 2).questions:
            if question.kind == "summary":
                assert question.answer[-1] in ".。"
                assert not re.search(r"[a-z]\. [A-Z]|。.", question.answer), question.answer


def test_a_camera_moves_points_and_back() -> None:
    import random

    camera = random_camera(random.Random(4), 400, 300)
    x, y = camera.point(120, 80)
    back = camera.to_page @ (x, y, 1.0)
    assert back[:2] / back[2] == pytest.approx([120, 80])
    assert (x, y) != (120, 80)


def test_text_without_a_picture_is_declined() -> None:
    answers = {scenes.talk(seed).answer for seed in range(200)}
    assert set(NO_PICTURE) <= answers
    assert all(scenes.off_topic(seed).answer in ABSENT for seed in range(20))


def test_pairs_ask_about_both() -> None:
    import random

    first, second = scenes.draw("receipt", 1), scenes.draw("receipt", 2)
    asked = scenes.questions_about_both(first, second, random.Random(1))
    assert {q.kind for q in asked} == {"two_images"}
    assert any("econd" in q.text or "二" in q.text or "2" in q.text for q in asked)


@pytest.mark.parametrize(
    ("column", "steps"),
    [
        ([40, 52, 61], "40 + 52 = 92, 92 + 61 = 153, 153 / 3 = 51"),
        ([1, 2], "1 + 2 = 3, 3 / 2 = 1.5"),
        ([1, 0, 0], "1 + 0 = 1, 1 + 0 = 1, 1 / 3 = 0.33"),
    ],
)
def test_averages_are_worked_out_sum_by_sum(column: list[int], steps: str) -> None:
    assert average_steps(column) == steps


def test_templates_have_both_languages() -> None:
    for key, template in TEMPLATES.items():
        assert template.english, key
        assert all(re.search("[\u4e00-\u9fff?？]", t) for t in template.chinese), key
