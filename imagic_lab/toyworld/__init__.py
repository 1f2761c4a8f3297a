"""The drawn world that tiny-sd knows, and the training of tiny-sd on it."""

import json
from pathlib import Path

from imagic_lab.toyworld.reader import load_reader
from imagic_lab.toyworld.scene import Scene
from imagic_lab.toyworld.world import ATTRIBUTES

__all__ = ["ATTRIBUTES", "Scene", "load_reader", "load_scene"]


def load_scene(path: str | Path) -> Scene:
    """Return the scene of a shipped drawing (data/images/*.png), from the list scenes.json in its folder.

    Raises ValueError if the picture is not on the list.
    """
    path = Path(path)
    listed = json.loads((path.parent / "scenes.json").read_text())
    if path.name not in listed:
        raise ValueError(f"{path.name} is not listed in {path.parent / 'scenes.json'}")
    return Scene.sample(**listed[path.name])
