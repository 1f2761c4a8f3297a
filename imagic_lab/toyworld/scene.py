"""A scene of the toy world: what its caption names, and the identity that no caption names.

Imagic must change the first and keep the second. Because a scene knows both, the exact right answer
of an edit can be drawn, which no photograph offers: `scene.edit(pose="jumping").render()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from PIL import Image

ANIMAL_POSES = ("sitting", "standing", "jumping", "lying down")
POSES_OF = {
    "dog": ANIMAL_POSES,
    "cat": ANIMAL_POSES,
    "rabbit": ANIMAL_POSES,
    "bird": ("standing", "flying"),
    "car": ("parked", "driving"),
}
COLOURS = {  # RGB of the middle shade
    "brown": (139, 84, 42),
    "black": (50, 48, 54),
    "white": (245, 243, 238),
    "grey": (146, 149, 156),
    "orange": (243, 138, 38),
    "yellow": (246, 214, 58),
    "red": (206, 46, 44),
    "blue": (62, 104, 212),
}
PLACES = ("grass", "beach", "snow", "night")

ATTRIBUTES = {  # every labelled attribute with its values, in the order in which the reader counts
    "subject": tuple(POSES_OF),
    "colour": tuple(COLOURS),
    "pose": (*ANIMAL_POSES, "flying", "parked", "driving"),
    "place": PLACES,
}
COMBINATIONS = tuple(
    (subject, colour, pose, place)
    for subject, poses in POSES_OF.items()
    for colour, pose, place in product(COLOURS, poses, PLACES)
)
TEST_SEEDS = 1_000_000  # seeds from here on are never drawn for training


def held_out(subject: str, colour: str, pose: str, place: str) -> bool:
    """Is this combination kept from training? 64 of the 512 are: for each subject, pose and place
    one colour, so that every *pair* of attributes is still learned. (A Latin square.)"""
    posed = [(s, p) for s, poses in POSES_OF.items() for p in poses].index((subject, pose))
    return (posed + 3 * list(COLOURS).index(colour) + 2 * PLACES.index(place)) % 8 == 2


@dataclass(frozen=True)
class Identity:
    """What makes this very scene itself. Every field is in [0, 1) or a tuple of such numbers."""

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
    def sample(cls, rng: np.random.Generator) -> Identity:
        def some(count: int) -> tuple[float, ...]:
            return tuple(float(v) for v in rng.random(count))

        one = [float(v) for v in rng.random(5)]
        spots = some(9)
        rest = [float(v) for v in rng.random(8)]
        return cls(*one, spots, *rest, some(2), some(1)[0], some(6), some(6), some(16))


@dataclass(frozen=True)
class Scene:
    """One drawn picture, 128x128: four labelled attributes and an identity.

    >>> scene = Scene.sample(7, subject="dog", pose="sitting")
    >>> truth = scene.edit(pose="jumping")      # the same dog, the same hills, another pose
    """

    subject: str
    colour: str
    pose: str
    place: str
    identity: Identity

    def __post_init__(self):
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(values)}")
        if self.pose not in POSES_OF[self.subject]:
            raise ValueError(
                f"a {self.subject} can't be {self.pose!r}: choose one of {', '.join(POSES_OF[self.subject])}"
            )

    @classmethod
    def sample(cls, seed: int, **attributes: str) -> Scene:
        """The scene that this seed stands for; named attributes are fixed, the rest is drawn.

        Raises ValueError for an attribute or a value that the world does not have.
        """
        if unknown := set(attributes) - set(ATTRIBUTES):
            raise ValueError(f"unknown attribute {sorted(unknown)[0]!r}: choose from {', '.join(ATTRIBUTES)}")
        fixed = {name: value for name, value in attributes.items() if value is not None}
        rng = np.random.default_rng(seed)
        identity = Identity.sample(rng)
        pose = fixed.get("pose")
        subjects = [s for s, poses in POSES_OF.items() if pose is None or pose in poses] or list(POSES_OF)
        subject = fixed["subject"] if "subject" in fixed else _choose(rng, subjects)
        choices = ATTRIBUTES | {"pose": POSES_OF.get(subject, ANIMAL_POSES)}  # __post_init__ checks the fixed ones
        chosen = {k: fixed[k] if k in fixed else _choose(rng, choices[k]) for k in ("colour", "pose", "place")}
        return cls(subject=subject, identity=identity, **chosen)

    @property
    def attributes(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ATTRIBUTES}

    @property
    def held_out(self) -> bool:
        """True when this combination of attributes is never trained on."""
        return held_out(*self.attributes.values())

    def edit(self, **attributes: str) -> Scene:
        """The same identity with some attributes changed: the ground truth of an edit."""
        if unknown := set(attributes) - set(ATTRIBUTES):
            raise ValueError(f"unknown attribute {sorted(unknown)[0]!r}: choose from {', '.join(ATTRIBUTES)}")
        return replace(self, **attributes)

    def render(self) -> Image.Image:
        """The picture: RGB, 128x128, anti-aliased. The same scene gives the same bits."""
        from imagic_lab.toyworld.drawing import draw

        return draw(self)

    def caption(self, seed: int | None = None) -> str:
        """What a person would write under the picture: the plain form, or by `seed` a varied one."""
        from imagic_lab.toyworld.captions import plain, varied

        return plain(self) if seed is None else varied(self, seed)


def _choose(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.random() * len(values))]
