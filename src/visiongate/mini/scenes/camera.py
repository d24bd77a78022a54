"""What a camera does to a page: perspective, light, blur and noise."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Box = tuple[float, float, float, float]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Camera:
    """A view of a flat page: where each pixel of the photo comes from, and how its pixels suffer.

    Attributes:
        to_page: 3 x 3 matrix from photo pixels to page pixels.
        to_photo: its inverse.
    """

    to_page: Matrix
    to_photo: Matrix

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the page lies in the photo."""
        u, v, w = self.to_photo @ (x, y, 1.0)
        return float(u / w), float(v / w)

    def box(self, box: Box) -> Box:
        """The upright box in the photo around a box of the page."""
        x1, y1, x2, y2 = box
        corners = [self.point(x, y) for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


def random_camera(rng: random.Random, width: int, height: int) -> Camera:
    """A hand-held view: the page's corners move in by up to 6 %, and it turns a little."""
    angle = rng.gauss(0, 0.022)
    cos, sin = np.cos(angle), np.sin(angle)
    corners = []
    for x, y in ((0, 0), (width, 0), (width, height), (0, height)):
        inward = rng.uniform(-0.01, 0.06)
        dx, dy = (x - width / 2) * (1 - inward), (y - height / 2) * (1 - rng.uniform(-0.01, 0.06))
        corners.append((width / 2 + dx * cos - dy * sin, height / 2 + dx * sin + dy * cos))
    page = ((0, 0), (width, 0), (width, height), (0, height))
    to_photo = _homography(page, corners)
    return Camera(np.asarray(np.linalg.inv(to_photo), np.float64), to_photo)


def photograph(
    picture: Image.Image, camera: Camera | None, rng: random.Random, *, wear: float = 1.0
) -> Image.Image:
    """The picture seen through the camera, with uneven light, blur and noise scaled by `wear`."""
    if camera is not None:
        to_page = (camera.to_page / camera.to_page[2, 2]).ravel()
        desk = tuple(rng.randint(60, 245) for _ in range(3))
        picture = picture.transform(
            picture.size,
            Image.Transform.PERSPECTIVE,
            tuple(to_page[:8]),
            Image.Resampling.BICUBIC,
            fillcolor=desk,
        )
    if rng.random() < 0.5 * wear:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
    noise = np.random.default_rng(rng.getrandbits(32))
    pixels = np.asarray(picture, np.float32)
    light = noise.uniform(1 - 0.3 * wear, 1.0, (3, 3)).astype(np.float32)
    shade = np.asarray(Image.fromarray(light).resize(picture.size, Image.Resampling.BICUBIC))
    pixels = pixels * shade[..., None]
    pixels += noise.normal(0, 6 * wear, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _homography(
    source: tuple[tuple[float, float], ...], target: list[tuple[float, float]]
) -> Matrix:
    """The 3 x 3 matrix that takes four points to four points."""
    rows, right = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    solution = np.linalg.solve(np.array(rows, float), np.array(right, float))
    return np.append(solution, 1.0).reshape(3, 3)
