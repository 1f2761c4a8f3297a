"""The drawings to learn from, as scenes and as pixels."""

from itertools import islice

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from imagic_lab.toyworld.scene import TEST_SEEDS, Scene


def training_scenes(count: int) -> list[Scene]:
    """Return the first `count` scenes by seed whose combination of attributes is not held out."""
    every = (Scene.sample(seed) for seed in range(TEST_SEEDS))
    return list(islice((scene for scene in every if not scene.held_out), count))


def test_scenes(count: int, held_out: bool | None = None) -> list[Scene]:
    """Return scenes whose seeds training never sees. held_out: whether the attributes are held out, too."""
    every = (Scene.sample(seed) for seed in range(TEST_SEEDS, 2 * TEST_SEEDS))
    return list(islice((s for s in every if held_out is None or s.held_out == held_out), count))


def pixels(scene: Scene) -> np.ndarray:
    """Return the pixels of a scene, (128, 128, 3) uint8."""
    return np.asarray(scene.render())


def to_batch(pictures: np.ndarray) -> Tensor:
    """Convert pixels for a network: (n, h, w, 3) uint8 -> (n, 3, h, w) float in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def render(scenes: list[Scene]) -> np.ndarray:
    """Draw all scenes, 500 a second: (n, 128, 128, 3) uint8."""
    return np.stack([pixels(scene) for scene in tqdm(scenes, desc="drawing scenes", mininterval=5)])
