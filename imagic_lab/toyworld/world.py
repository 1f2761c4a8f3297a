"""The toy world: attributes and their values, the combinations held out from training, and the facts of one scene.

Drawings and captions need only these facts. `scene.Scene` adds methods to sample, edit and draw a scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

ANIMAL_POSES = ("sitting", "standing", "jumping", "lying down")
POSES_OF = {
    "dog": ANIMAL_POSES,
    "cat": ANIMAL_POSES,
    "rabbit": ANIMAL_POSES,
    "bird": ("standing", "flying"),
    "car": ("parked", "driving"),
}
RGB = {  # the middle shade of each colour
    "brown": (139, 84, 42),
    "black": (50, 48, 54),
    "white": (245, 243, 238),
    "grey": (146, 149, 156),
    "orange": (243, 138, 38),
    "yellow": (246, 214, 58),
    "red": (206, 46, 44),
    "blue": (62, 104, 212),
}
ATTRIBUTES = {  # every labelled attribute with its values, in the reader's order
    "subject": tuple(POSES_OF),
    "colour": tuple(RGB),
    "pose": (*ANIMAL_POSES, "flying", "parked", "driving"),
    "place": ("grass", "beach", "snow", "night"),
}
COMBINATIONS = tuple((s, c, pose, p) for s, c, pose, p in product(*ATTRIBUTES.values()) if pose in POSES_OF[s])


def held_out(subject: str, colour: str, pose: str, place: str) -> bool:
    """Whether this combination is held out from training. 64 of the 512 are, one colour for each subject, pose and
    place, so that every *pair* of attributes is still learned (a Latin square)."""
    posed = [(s, p) for s, poses in POSES_OF.items() for p in poses].index((subject, pose))
    return (posed + 3 * list(RGB).index(colour) + 2 * ATTRIBUTES["place"].index(place)) % 8 == 2


@dataclass(frozen=True)
class SceneIdentity:
    """Everything that no caption names and an edit must keep. Each field is a number in [0, 1), or a tuple of them."""

    x: float
    depth: float
    size: float
    flip: float
    shade: float
    spots: tuple[float, ...]
    belly: float
    collar: float
    collar_colour: float
    socks: float
    eye_patch: float
    ears: float
    tail: float
    horizon: float
    light: tuple[float, float]
    sky: float
    hills: tuple[float, ...]
    clouds: tuple[float, ...]
    sparks: tuple[float, ...]

    @classmethod
    def sample(cls, rng: np.random.Generator) -> SceneIdentity:
        def some(count: int) -> tuple[float, ...]:
            return tuple(float(v) for v in rng.random(count))

        first, spots, rest = some(5), some(9), some(8)
        return cls(*first, spots, *rest, some(2), *some(1), some(6), some(6), some(16))


@dataclass(frozen=True)
class SceneFacts:
    """Four labelled attributes and an identity. Raises ValueError for a value that the world does not have."""

    subject: str
    colour: str
    pose: str
    place: str
    identity: SceneIdentity

    def __post_init__(self):
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(values)}")
        if self.pose not in (poses := POSES_OF[self.subject]):
            raise ValueError(f"a {self.subject} can't be {self.pose!r}: choose one of {', '.join(poses)}")
