"""Two pictures side by side in one conversation, and questions about both."""

from __future__ import annotations

import random
from dataclasses import replace

from visiongate.mini.scenes.asking import IN_IMAGE, TEMPLATES, Pair, Question
from visiongate.mini.scenes.scene import Scene

WHICH: tuple[Pair, Pair] = (("The first image.", "第一张。"), ("The second image.", "第二张。"))


def questions_about_both(first: Scene, second: Scene, rng: random.Random) -> list[Question]:
    """Questions about either picture by its place, and comparisons of the two."""
    asked = []
    for place, scene in enumerate((first, second)):
        some = [q for q in scene.questions if q.kind not in ("box", "point")]
        for question in rng.sample(some, min(3, len(some))):
            frame = rng.choice(IN_IMAGE[place])[question.is_chinese].format(q=question.text)
            asked.append(replace(question, text=frame, kind="two_images", follow_up=""))
    chinese = rng.random() < 0.35
    asked += _comparisons(first, second, chinese, rng)
    rng.shuffle(asked)
    return asked


def _comparisons(first: Scene, second: Scene, chinese: bool, rng: random.Random) -> list[Question]:
    found: list[Question] = []

    def add(key: str, answer: Pair, x: str = "") -> None:
        template = TEMPLATES[key]
        wording = rng.choice(template.chinese if chinese else template.english)
        found.append(Question(template.kind, key, wording.format(x=x), answer[chinese], chinese))

    kinds = [scene.facts["kind"] for scene in (first, second)]
    same = kinds[0] == kinds[1]
    add("same_kind", ("Yes", "是") if same else ("No", "否"))
    names: list[Pair] = [kind for kind in kinds if isinstance(kind, tuple)]
    add(
        "differences",
        (
            f"The first is {names[0][0]}, the second is {names[1][0]}.",
            f"第一张是{names[0][1]},第二张是{names[1][1]}。",
        ),
    )
    if not same:
        place = rng.randrange(2)
        add("which_kind", WHICH[place], x=names[place][chinese])
    totals = [scene.facts.get("total") for scene in (first, second)]
    if isinstance(totals[0], tuple) and isinstance(totals[1], tuple):
        a, b = totals[0][0], totals[1][0]
        if abs(a - b) > 0.001:
            add("higher_total", WHICH[int(b > a)])
        add("same_total", ("Yes", "是") if totals[0][1] == totals[1][1] else ("No", "否"))
    counts = [scene.facts.get("shapes") for scene in (first, second)]
    if isinstance(counts[0], int) and isinstance(counts[1], int) and counts[0] != counts[1]:
        add("more_shapes", WHICH[int(counts[1] > counts[0])])
    return found
