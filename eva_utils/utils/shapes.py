"""The embedded dataset: ten classes of drawn 32x32 colour shapes, each with the mask of its object.

A shape has a random colour, place, size and turn, on a random texture, under noise. Nothing is stored:
the same seed draws the same images in a few seconds.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CLASSES = ("circle", "ring", "triangle", "square", "bar", "cross", "star", "heart", "crescent", "arrow")
COUNTS = {"train": 10_000, "test": 2_000}
SIDE = 32


class Shapes(NamedTuple):
    """`images` uint8 (N, 3, 32, 32), `labels` int64 (N,), `masks` bool (N, 32, 32): the object's pixels."""

    images: Tensor
    labels: Tensor
    masks: Tensor


def make_shapes(split: str = "train", seed: int = 0) -> Shapes:
    """Draw the training set (10,000 images) or the test set (2,000), as many of each class.

    Args:
        split: "train" or "test"; they share no image.
        seed: another seed is another dataset.

    Raises:
        ValueError: the split is neither.
    """
    import cv2

    if split not in COUNTS:
        raise ValueError(f"split is 'train' or 'test', not {split!r}")
    count = COUNTS[split]
    rng = np.random.default_rng([seed, list(COUNTS).index(split)])
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    masks = np.empty((count, SIDE, SIDE), bool)
    outlines = [_outline(name) for name in CLASSES]
    for image, mask, label in zip(images, masks, labels, strict=True):
        solid, hole = outlines[label]
        place = _random_place(rng)
        cover = np.zeros((SIDE, SIDE), np.uint8)
        cv2.fillPoly(cover, [place(solid)], 255, cv2.LINE_AA, shift=4)
        if hole is not None:
            cv2.fillPoly(cover, [place(hole)], 0, cv2.LINE_AA, shift=4)
        back, front = _contrasting_colours(rng)
        texture = cv2.resize(rng.normal(0, 30, (5, 5, 3)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        share = cover[..., None] / 255
        painted = (back + texture) * (1 - share) + (front + 0.3 * texture[::-1]) * share
        image[:] = np.clip(painted + rng.normal(0, 10, painted.shape), 0, 255)
        mask[:] = cover > 127
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Shapes(pixels, torch.from_numpy(labels), torch.from_numpy(masks))


def _random_place(rng: np.random.Generator):
    """Draw a turn, a size and a centre; return the map from unit coordinates to pixels in 1/16."""
    angle, radius = rng.uniform(0, 2 * math.pi), rng.uniform(7, 12)
    centre = rng.uniform(radius, SIDE - 1 - radius, 2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return lambda points: np.rint(16 * (radius * points @ turn.T + centre)).astype(np.int32)


def _contrasting_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw two colours of which at least one channel differs by 90 levels or more."""
    while True:
        back, front = rng.uniform(20, 235, (2, 3))
        if abs(front - back).max() >= 90:
            return back, front


def _outline(name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a shape's polygon within the unit circle, and the polygon of its hole."""
    steps = np.linspace(0, 2 * math.pi, 50, endpoint=False)
    circle = np.stack([np.cos(steps), np.sin(steps)], axis=1)
    if name == "circle":
        return 0.9 * circle, None
    if name == "ring":
        return circle, 0.55 * circle
    if name == "crescent":
        return circle, 0.85 * circle + [0.5, 0]
    if name == "star":
        return circle[::5] * np.where(np.arange(10) % 2, 0.42, 1)[:, None], None
    if name == "heart":
        x = 16 * np.sin(steps) ** 3
        y = 13 * np.cos(steps) - 5 * np.cos(2 * steps) - 2 * np.cos(3 * steps) - np.cos(4 * steps)
        return np.stack([x, -y], axis=1) / 17, None
    return np.array(_CORNERS[name]), None


_CORNERS = {
    "triangle": [(0, -1), (0.87, 0.5), (-0.87, 0.5)],
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "bar": [(-0.97, -0.24), (0.97, -0.24), (0.97, 0.24), (-0.97, 0.24)],
    "cross": [(-0.27, -0.96), (0.27, -0.96), (0.27, -0.27), (0.96, -0.27), (0.96, 0.27), (0.27, 0.27),
              (0.27, 0.96), (-0.27, 0.96), (-0.27, 0.27), (-0.96, 0.27), (-0.96, -0.27), (-0.27, -0.27)],
    "arrow": [(-0.95, -0.2), (0.1, -0.2), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.2), (-0.95, 0.2)],
}  # fmt: skip
