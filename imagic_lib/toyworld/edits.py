"""ToyEdit: a hundred edits with their right answers, to measure a way of editing on.

An edit is the scene of the input and what the text changes in it: pose, colour, place or subject, as many of
each. The answer is `scene.edit(**change)`. 40 edits are for development, where settings are chosen, and 60 for the
test, which is measured when they are. The seeds are fixed and far from those that any model was trained on.
"""

from __future__ import annotations

import numpy as np

from imagic_lib.toyworld.scene import ATTRIBUTES, POSES_OF, Scene

VERSION = "1"  # of the list of edits; results of different versions can't be compared
KINDS = ("pose", "colour", "place", "subject")
SIZES = {"dev": 40, "test": 60}
FIRST_SEED = {"dev": 3_000_000, "test": 4_000_000}


def toyedit(split: str) -> list[tuple[Scene, dict[str, str]]]:
    """The edits of a split, "dev" or "test": (scene of the input, what is changed), the four kinds in turn.

    >>> scene, change = toyedit("dev")[0]
    >>> scene.edit(**change).caption()      # the target text
    """
    if split not in SIZES:
        raise ValueError(f"ToyEdit has no part {split!r}: choose 'dev' or 'test'")
    return [one_edit(FIRST_SEED[split] + k, KINDS[k % len(KINDS)]) for k in range(SIZES[split])]


def one_edit(seed: int, kind: str) -> tuple[Scene, dict[str, str]]:
    """A scene by this seed, and another value of this attribute for it. A car is never to become an animal."""
    rng = np.random.default_rng((seed, 11))
    for attempt in range(100):
        scene = Scene.sample(seed + 1000 * attempt)
        if choices := other_values(scene, kind):
            return scene, {kind: choices[int(rng.random() * len(choices))]}
    raise AssertionError(f"no scene near seed {seed} can change its {kind}")


def other_values(scene: Scene, kind: str) -> list[str]:
    """What this attribute of the scene could be instead, all else as it is."""
    values = POSES_OF[scene.subject] if kind == "pose" else ATTRIBUTES[kind]
    others = [value for value in values if value != getattr(scene, kind)]
    return [value for value in others if kind != "subject" or scene.pose in POSES_OF[value]]
