"""ToyEdit: a hundred edits with known ground truth, on which to measure a method.

An edit is an input scene and what the text changes in it: pose, colour, place or subject, equally often. The ground
truth is `scene.edit(**change)`. Settings are chosen on the 40 edits of the dev split, then measured on the 60 of the
test split. The seeds are fixed, and no model was trained on them.
"""

from collections.abc import Callable
from itertools import count

import numpy as np
import torch
from PIL import Image

from imagic_lab.toyworld.captions import attributes_in
from imagic_lab.toyworld.reader import Reader, load_reader
from imagic_lab.toyworld.scene import Scene
from imagic_lab.toyworld.world import ATTRIBUTES, POSES_OF
from imagic_lib.pictures import to_tensor

VERSION = "1"  # of the list of edits; results from different versions can't be compared
EDIT_KINDS = ("pose", "colour", "place", "subject")
EDIT_COUNTS = {"dev": 40, "test": 60}
EDIT_SEEDS = {"dev": 3_000_000, "test": 4_000_000}


def toyedit(split: str) -> list[tuple[Scene, dict[str, str]]]:
    """Return the edits of a split, "dev" or "test", as (input scene, change), with the four kinds in turn.

    >>> scene, change = toyedit("dev")[0]
    >>> scene.edit(**change).caption()      # the target text

    Raises ValueError for another split.
    """
    if split not in EDIT_COUNTS:
        raise ValueError(f"ToyEdit has no part {split!r}: choose 'dev' or 'test'")
    return [one_edit(EDIT_SEEDS[split] + k, EDIT_KINDS[k % len(EDIT_KINDS)]) for k in range(EDIT_COUNTS[split])]


def one_edit(seed: int, kind: str) -> tuple[Scene, dict[str, str]]:
    """Return a scene and another value of this attribute. The scene is that of the seed or, if it allows no edit of
    this kind, that of a later seed. A car never becomes an animal."""
    rng = np.random.default_rng((seed, 11))
    scene = next(scene for k in count() if other_values(scene := Scene.sample(seed + 1000 * k), kind))
    choices = other_values(scene, kind)
    return scene, {kind: choices[int(rng.random() * len(choices))]}


def other_values(scene: Scene, kind: str) -> list[str]:
    """Return the other values that this attribute can have while the rest of the scene stays."""
    values = POSES_OF[scene.subject] if kind == "pose" else ATTRIBUTES[kind]
    others = [value for value in values if value != getattr(scene, kind)]
    return [value for value in others if kind != "subject" or scene.pose in POSES_OF[value]]


def goal(before: Scene, text: str) -> Scene:
    """Return the scene that an edit by this text should show. Only the attributes that the text names change.

    If the new subject can't have the input's pose, it gets its first pose.
    """
    wanted = before.attributes | attributes_in(text)
    if wanted["pose"] not in POSES_OF[wanted["subject"]]:
        wanted["pose"] = POSES_OF[wanted["subject"]][0]
    return before.edit(**wanted)


def edit_score(reader: Reader, picture: torch.Tensor, truth: Scene, before: Scene) -> float:
    """Return the share of details kept if the picture is right in all attributes and drawn well, otherwise 0."""
    if not reader.may_be(picture, truth):  # `report` would say the same, but takes a second
        return 0.0
    report = reader.report(picture, truth, before)
    return report.kept * report.success


def read_by(edit) -> Callable[[list[Image.Image]], list[float]]:
    """Make a measure of drawings for `ImagicEdit.suggest`: `edit_score`, with the input as the reader sees it."""
    reader = load_reader()
    before = reader.scene(edit.image)
    truth = goal(before, edit.text)
    return lambda pictures: [edit_score(reader, to_tensor(picture), truth, before) for picture in pictures]
