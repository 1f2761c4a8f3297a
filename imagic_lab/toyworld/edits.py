"""ToyEdit: a hundred edits with their right answers, to measure a way of editing on.

An edit is the scene of the input and what the text changes in it: pose, colour, place or subject, as many of
each. The answer is `scene.edit(**change)`. 40 edits are for development, where settings are chosen, and 60 for the
test, which is measured when they are. The seeds are fixed and far from those that any model was trained on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from imagic_lab.toyworld.captions import named
from imagic_lab.toyworld.reader import Reader, load_reader
from imagic_lab.toyworld.scene import ATTRIBUTES, POSES_OF, Scene
from imagic_lib.pictures import to_tensor

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


def goal(before: Scene, text: str) -> Scene:
    """The scene that an edit by this text should show: what the text names is changed, all else stays.

    A subject that can't have the pose of the input takes its own first one.
    """
    wanted = before.attributes | named(text)
    if wanted["pose"] not in POSES_OF[wanted["subject"]]:
        wanted["pose"] = POSES_OF[wanted["subject"]][0]
    return before.edit(**wanted)


def worth(reader: Reader, picture: torch.Tensor, truth: Scene, before: Scene) -> float:
    """The share of details kept, if the picture is right in all attributes and drawn well; else 0."""
    if not reader.may_be(picture, truth):  # as `report` would find, without its second
        return 0.0
    report = reader.report(picture, truth, before)
    return report.kept * report.success


def read_by(edit) -> Callable[[list[Image.Image]], list[float]]:
    """The measure of `ImagicEdit.suggest` for drawings: `worth`, with the input's scene as the reader finds it."""
    reader = load_reader()
    before = reader.scene(edit.image)
    truth = goal(before, edit.text)
    return lambda pictures: [worth(reader, to_tensor(picture), truth, before) for picture in pictures]
