"""The drawings to learn from: rendered once, in parts, so that a stopped run goes on where it was."""

from __future__ import annotations

import multiprocessing
from itertools import islice
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL
from tqdm.auto import tqdm

from imagic_lab.toyworld.drawing import draw
from imagic_lab.toyworld.scene import TEST_SEEDS, Scene
from imagic_lab.toyworld.vae import reconstruct, to_tensor
from imagic_lib.training.checkpoints import write_atomically

PART = 1000


def training_scenes(count: int) -> list[Scene]:
    """The first `count` scenes by seed whose combination of attributes is not held out."""
    every = (Scene.sample(seed) for seed in range(TEST_SEEDS))
    return list(islice((scene for scene in every if not scene.held_out), count))


def test_scenes(count: int, held_out: bool | None = None) -> list[Scene]:
    """Scenes by seeds that training never sees; by `held_out`, only (un)seen combinations."""
    every = (Scene.sample(seed) for seed in range(TEST_SEEDS, 2 * TEST_SEEDS))
    return list(islice((s for s in every if held_out is None or s.held_out == held_out), count))


def any_scenes(count: int) -> list[Scene]:
    """`count` training scenes of all combinations, the held-out ones too: for the reader."""
    return [Scene.sample(seed) for seed in range(TEST_SEEDS // 2, TEST_SEEDS // 2 + count)]


def pixels(scene: Scene) -> np.ndarray:
    """(128, 128, 3) uint8."""
    return np.asarray(draw(scene))


def render(scenes: list[Scene], folder: Path) -> np.ndarray:
    """All scenes as (count, 128, 128, 3) uint8, rendered on all cores and kept in `folder`."""
    parts = []
    with multiprocessing.get_context("spawn").Pool() as pool:
        for start in tqdm(range(0, len(scenes), PART), desc="drawing scenes", unit="k"):
            file = folder / f"{start:06d}-{len(scenes[start : start + PART])}.npy"
            if not file.exists():
                drawn = np.stack(pool.map(pixels, scenes[start : start + PART], chunksize=50))
                write_atomically(file, lambda tmp, drawn=drawn: _save_array(tmp, drawn))
            parts.append(np.load(file))
    return np.concatenate(parts)


def through(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 32) -> np.ndarray:
    """What the VAE keeps of pictures, (n, 128, 128, 3) uint8 like themselves."""
    kept = []
    for start in range(0, len(pictures), batch):
        rebuilt = reconstruct(vae, to_tensor(pictures[start : start + batch]))
        kept.append(((rebuilt + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(kept)


def _save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as f:
        np.save(f, array)
