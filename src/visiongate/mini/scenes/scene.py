"""A finished picture and everything that is true about it."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from visiongate.mini.scenes.asking import Question
from visiongate.mini.scenes.camera import Camera
from visiongate.mini.scenes.canvas import Canvas, Mark, TextRun


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture with its truth.

    Attributes:
        kind: one of `scenes.KINDS`.
        questions: what can be asked, each with its one right answer.
        facts: values that pairs of scenes are compared by.
        canvas: the page it was drawn on.
    """

    kind: str
    is_chinese: bool
    questions: tuple[Question, ...]
    facts: dict[str, object]
    canvas: Canvas

    @property
    def picture(self) -> Image.Image:
        """RGB, as drawn; where there is a camera, `scenes.photo` gives it as seen."""
        return self.canvas.picture

    @property
    def camera(self) -> Camera | None:
        """How the picture is seen; boxes in the answers are those of the photo."""
        return self.canvas.camera

    @property
    def texts(self) -> list[TextRun]:
        """Every piece of text with its box in page pixels."""
        return self.canvas.text_runs()

    @property
    def marks(self) -> list[Mark]:
        """Every glyph, and facts about shapes, at their points in the photo."""
        return self.canvas.seen_marks()
