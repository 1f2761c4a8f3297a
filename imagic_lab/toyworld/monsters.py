"""Monsters, which are pictures that no drawing of the toy world explains. They test the reader.

Each kind has a fault that models make: two heads, missing legs, half an animal, no head, a smear, a ghost, a creature
of two kinds, two animals in one place. A reader that accepts monsters counts failures as successes.
"""

from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image

from imagic_lab.toyworld.drawing import draw_scene
from imagic_lab.toyworld.scene import Scene

MONSTER_SEEDS = 5_000_000  # seeds from here on are for monsters only


class Parts(NamedTuple):
    """A drawing taken apart. Arrays are (128, 128, 3) float, the mask (128, 128) bool; the box is in pixels."""

    picture: np.ndarray
    empty: np.ndarray  # the same place without the figure and its shadow
    mask: np.ndarray
    box: tuple[int, int, int, int]  # left, right, top, bottom
    middle: int  # between left and right
    faces_right: bool

    def without(self, left: int, right: int, top: int, bottom: int) -> np.ndarray:
        """Return the drawing with the empty place in this rectangle."""
        spoiled = self.picture.copy()
        spoiled[top:bottom, left:right] = self.empty[top:bottom, left:right]
        return spoiled


def taken_apart(scene: Scene) -> Parts:
    picture, empty = (np.asarray(draw_scene(scene, figure)).astype(float) for figure in (True, False))
    mask = np.abs(picture - empty).max(axis=2) > 6
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = (int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1)
    return Parts(picture, empty, mask, box, (box[0] + box[1]) // 2, scene.identity.flip >= 0.5)


def two_heads(parts: Parts, scene: Scene) -> np.ndarray:
    left, right, top, bottom = parts.box
    half, spoiled = min(parts.middle - left, right - parts.middle), parts.picture.copy()
    west, east = slice(parts.middle - half, parts.middle), slice(parts.middle, parts.middle + half)
    behind, front = (west, east) if parts.faces_right else (east, west)
    spoiled[top:bottom, behind] = parts.picture[top:bottom, front][:, ::-1]
    return spoiled


def no_legs(parts: Parts, scene: Scene) -> np.ndarray:
    left, right, top, bottom = parts.box
    return parts.without(left, right, bottom - int(0.36 * (bottom - top)), bottom - int(0.07 * (bottom - top)))


def half_of_it(parts: Parts, scene: Scene) -> np.ndarray:
    left, right, top, bottom = parts.box
    columns = (left, parts.middle) if parts.faces_right else (parts.middle, right)
    return parts.without(*columns, top, bottom)


def no_head(parts: Parts, scene: Scene) -> np.ndarray:
    left, right, top, bottom = parts.box
    wide, low = int(0.36 * (right - left)), top + int(0.55 * (bottom - top))
    columns = (right - wide, right) if parts.faces_right else (left, left + wide)
    return parts.without(*columns, top, low)


def smear(parts: Parts, scene: Scene) -> np.ndarray:
    moved = [(np.roll(parts.mask, d, 1)[..., None], np.roll(parts.picture, d, 1)) for d in range(-9, 10)]
    return np.mean([np.where(mask, picture, parts.empty) for mask, picture in moved], axis=0)


def ghost(parts: Parts, scene: Scene) -> np.ndarray:
    return 0.45 * parts.picture + 0.55 * parts.empty


def two_kinds(parts: Parts, scene: Scene) -> np.ndarray:
    """Replace the left half by a car's."""
    car = scene.edit(subject="car", pose="parked")
    return np.concatenate([taken_apart(car).picture[:, : parts.middle], parts.picture[:, parts.middle :]], axis=1)


def two_in_one_place(parts: Parts, scene: Scene) -> np.ndarray:
    mirrored = replace(scene, identity=replace(scene.identity, flip=1 - scene.identity.flip))
    return 0.5 * parts.picture + 0.5 * taken_apart(mirrored).picture


SPOILERS = (two_heads, no_legs, half_of_it, no_head, smear, ghost, two_kinds, two_in_one_place)
MONSTER_KINDS = {spoil.__name__.replace("_", " "): spoil for spoil in SPOILERS}  # name: function


def monsters(each: int = 8, seed: int = 0) -> list[tuple[str, Scene, Image.Image]]:
    """Return `each` monsters of every kind, as (kind, the scene that was spoiled, the picture); always the same ones.

    seed: 0 or 1, for two lists that have no picture in common.
    """
    found = []  # no cars, whose two ends look alike, and missing legs only where legs are visible
    for k, (kind, spoil) in enumerate(MONSTER_KINDS.items()):
        first = MONSTER_SEEDS + 10_000 * k + 5_000 * seed
        scenes = (s for s in map(Scene.sample, range(first, first + 5_000)) if s.subject != "car")
        suited = (s for s in scenes if kind != "no legs" or (s.pose == "standing" and s.subject != "bird"))
        for scene in islice(suited, each):
            spoiled = spoil(taken_apart(scene), scene)
            found.append((kind, scene, Image.fromarray(spoiled.round().astype(np.uint8))))
    return found
