"""Monsters: pictures that no drawing of the toy world explains, to test the reader's eye on.

Each kind spoils a drawing in one way that models do: two heads, missing legs, half an animal, no head, a smear, a
ghost, a creature of two kinds, two animals in one place. A reader that lets them pass counts failures as successes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image

from imagic_lab.toyworld.drawing import OVERSAMPLING, SIZE, Pen, draw, draw_flakes, draw_place
from imagic_lab.toyworld.scene import Scene

FIRST_SEED = 5_000_000  # seeds from here on are for monsters alone


class Figure(NamedTuple):
    """A drawing taken apart. Arrays are (128, 128, 3) float, the mask (128, 128) bool; the box is in pixels."""

    picture: np.ndarray
    empty: np.ndarray  # the same place without the figure and its shadow
    mask: np.ndarray
    box: tuple[int, int, int, int]  # left, right, top, bottom
    looks_right: bool

    @property
    def middle(self) -> int:
        return (self.box[0] + self.box[1]) // 2

    def without(self, left: int, right: int, top: int, bottom: int) -> np.ndarray:
        """The drawing with the empty place in this rectangle."""
        spoiled = self.picture.copy()
        spoiled[top:bottom, left:right] = self.empty[top:bottom, left:right]
        return spoiled


def figure(scene: Scene) -> Figure:
    image = Image.new("RGB", (SIZE * OVERSAMPLING,) * 2)
    draw_place(image, scene)
    if scene.place == "snow":
        draw_flakes(Pen(image), scene)
    empty = np.asarray(image.reduce(OVERSAMPLING)).astype(float)
    picture = np.asarray(draw(scene)).astype(float)
    mask = np.abs(picture - empty).max(axis=2) > 6
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = (int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1)
    return Figure(picture, empty, mask, box, scene.identity.flip >= 0.5)


def two_heads(f: Figure, scene: Scene) -> np.ndarray:
    left, right, top, bottom = f.box
    half, spoiled = min(f.middle - left, right - f.middle), f.picture.copy()
    west, east = slice(f.middle - half, f.middle), slice(f.middle, f.middle + half)
    behind, front = (west, east) if f.looks_right else (east, west)
    spoiled[top:bottom, behind] = f.picture[top:bottom, front][:, ::-1]
    return spoiled


def no_legs(f: Figure, scene: Scene) -> np.ndarray:
    left, right, top, bottom = f.box
    return f.without(left, right, bottom - int(0.36 * (bottom - top)), bottom - int(0.07 * (bottom - top)))


def half_of_it(f: Figure, scene: Scene) -> np.ndarray:
    left, right, top, bottom = f.box
    return f.without(left, f.middle, top, bottom) if f.looks_right else f.without(f.middle, right, top, bottom)


def no_head(f: Figure, scene: Scene) -> np.ndarray:
    left, right, top, bottom = f.box
    wide, low = int(0.36 * (right - left)), top + int(0.55 * (bottom - top))
    return f.without(right - wide, right, top, low) if f.looks_right else f.without(left, left + wide, top, low)


def smear(f: Figure, scene: Scene) -> np.ndarray:
    moved = [np.where(np.roll(f.mask, d, 1)[..., None], np.roll(f.picture, d, 1), f.empty) for d in range(-9, 10)]
    return np.mean(moved, axis=0)


def ghost(f: Figure, scene: Scene) -> np.ndarray:
    return 0.45 * f.picture + 0.55 * f.empty


def two_kinds(f: Figure, scene: Scene) -> np.ndarray:
    """The west half of another subject, which is a car unless this is one."""
    other = scene.edit(subject="car", pose="parked")
    spoiled = f.picture.copy()
    spoiled[:, : f.middle] = figure(other).picture[:, : f.middle]
    return spoiled


def two_in_one_place(f: Figure, scene: Scene) -> np.ndarray:
    turned = replace(scene, identity=replace(scene.identity, flip=1 - scene.identity.flip))
    return 0.5 * f.picture + 0.5 * figure(turned).picture


KINDS: dict[str, Callable[[Figure, Scene], np.ndarray]] = {
    "two heads": two_heads,
    "no legs": no_legs,
    "half of it": half_of_it,
    "no head": no_head,
    "smear": smear,
    "ghost": ghost,
    "two kinds": two_kinds,
    "two in one place": two_in_one_place,
}


def monsters(each: int = 8, seed: int = 0) -> list[tuple[str, Scene, Image.Image]]:
    """`each` monsters of every kind: (kind, the scene that was spoiled, the picture). seed: 0 or 1, two lists that have
    no picture in common; each is the same every time."""
    found = []
    for k, (kind, spoil) in enumerate(KINDS.items()):
        first = FIRST_SEED + 10_000 * k + 5_000 * seed
        suited = (s for s in map(Scene.sample, range(first, first + 5_000)) if suits(s, kind))
        for scene in islice(suited, each):
            spoiled = spoil(figure(scene), scene)
            found.append((kind, scene, Image.fromarray(spoiled.round().astype(np.uint8))))
    return found


def suits(scene: Scene, kind: str) -> bool:
    """Cars are left out: they look much the same from both sides. Legs can only be missed where they are seen."""
    return scene.subject != "car" and (kind != "no legs" or (scene.pose == "standing" and scene.subject != "bird"))
