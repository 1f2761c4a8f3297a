"""A scene of the toy world has attributes, which its caption names, and an identity, which no caption names.

Imagic must change the attributes and keep the identity. We know both, so the ground truth of an edit can be drawn
exactly: `scene.edit(pose="jumping").render()`. A photo has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from imagic_lab.toyworld.captions import plain_caption, varied_caption
from imagic_lab.toyworld.drawing import draw_scene
from imagic_lab.toyworld.world import ANIMAL_POSES, ATTRIBUTES, POSES_OF, SceneFacts, SceneIdentity, held_out

TEST_SEEDS = 1_000_000  # seeds from here on are never used in training


@dataclass(frozen=True)
class Scene(SceneFacts):
    """One drawn picture, 128x128: four labelled attributes and an identity.

    >>> scene = Scene.sample(7, subject="dog", pose="sitting")
    >>> truth = scene.edit(pose="jumping")      # the same dog, the same hills, another pose
    """

    @classmethod
    def sample(cls, seed: int, **attributes: str) -> Scene:
        """Return the scene of this seed. Attributes that you name are fixed, the others are drawn at random.

        Raises ValueError for an attribute or a value that the world does not have.
        """
        _check_names(attributes)
        fixed = {name: value for name, value in attributes.items() if value is not None}
        rng = np.random.default_rng(seed)
        identity = SceneIdentity.sample(rng)

        def choose(values: Sequence[str]) -> str:
            return values[int(rng.random() * len(values))]

        pose = fixed.get("pose")
        subjects = [s for s, poses in POSES_OF.items() if pose is None or pose in poses] or list(POSES_OF)
        subject = fixed["subject"] if "subject" in fixed else choose(subjects)
        choices = ATTRIBUTES | {"pose": POSES_OF.get(subject, ANIMAL_POSES)}  # SceneFacts checks the fixed values
        chosen = {k: fixed[k] if k in fixed else choose(choices[k]) for k in ("colour", "pose", "place")}
        return cls(subject=subject, identity=identity, **chosen)

    @property
    def attributes(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ATTRIBUTES}

    @property
    def held_out(self) -> bool:
        """True if training never sees this combination of attributes."""
        return held_out(*self.attributes.values())

    def edit(self, **attributes: str) -> Scene:
        """Return the same identity with some attributes changed. This is the ground truth of an edit.

        Raises ValueError for an attribute or a value that the world does not have.
        """
        _check_names(attributes)
        return replace(self, **attributes)

    def render(self) -> Image.Image:
        """Draw the picture: RGB, 128x128, anti-aliased. The same scene gives the same bits."""
        return draw_scene(self)

    def caption(self, seed: int | None = None) -> str:
        """Describe the scene as a person would, in plain words or, with a seed, in varied ones."""
        return plain_caption(self) if seed is None else varied_caption(self, seed)


def _check_names(attributes: Iterable[str]) -> None:
    if unknown := set(attributes) - set(ATTRIBUTES):
        raise ValueError(f"unknown attribute {sorted(unknown)[0]!r}: choose from {', '.join(ATTRIBUTES)}")
