"""What a training is of. A checkpoint is continued only by a training of the same, on whatever machine that runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib.models import fingerprint
from imagic_lib.pictures import to_picture

NEAR = 0.01  # of a row's length: machines differ by a thousandth at most, two texts by a tenth at least
DIFFERENT = {
    "model": "another model",
    "method": "another method",
    "images": "another picture",
    "seed": "another seed",
}


class Identity(NamedTuple):
    """facts: as JSON, equal on every machine. near: tensors that a network computed, with last digits that differ from
    machine to machine: each row of them, its last dimension, has to be the same up to `NEAR`."""

    facts: dict
    near: dict[str, Tensor]

    def difference(self, found: object, near: dict[str, Tensor]) -> str | None:
        """What a checkpoint's identity says otherwise, in words; None if it is the same training."""
        for key, value in self.facts.items():
            if not isinstance(found, dict) or key not in found:
                return "an older version of this library"
            if found[key] != value:
                return DIFFERENT.get(key, f"{key} {found[key]!r}, not {value!r}")
        if self.near.keys() != near.keys():
            return f"another {next(iter(self.near.keys() ^ near.keys()))}"
        return next((f"another {name}" for name, value in self.near.items() if not is_near(value, near[name])), None)


def identity_of(
    pipe: StableDiffusionPipeline,
    images: Iterable[Tensor],
    settings: dict,
    loss: Callable,
    generator: torch.Generator,
    *,
    near: dict[str, Tensor],
    **more,
) -> Identity:
    """The bytes of the pictures, the settings (but for the steps, of which there may be more next time), the model, and
    `near`, e.g. the text's embedding."""
    facts = {"model": fingerprint(pipe), **more, "images": [hash_of_picture(image) for image in images]}
    facts |= {name: value for name, value in settings.items() if name != "steps"}
    facts |= {"loss": getattr(loss, "__name__", type(loss).__name__), "seed": generator.initial_seed()}
    return Identity(facts, {name: value.detach().to("cpu", torch.float16) for name, value in near.items()})


def hash_of_picture(image: Tensor) -> str:
    """Sixteen hexadecimal digits that stand for the bytes of a picture, (1, 3, size, size) in [-1, 1]: the same in
    every precision."""
    return hashlib.sha256(to_picture(image).tobytes()).hexdigest()[:16]


def thumbnails(images: Iterable[Tensor]) -> Tensor:
    """(n, 192): small enough for a checkpoint, and near for pictures that two machines draw from one seed."""
    return torch.cat([F.adaptive_avg_pool2d(image.float().cpu(), 8).flatten(1) for image in images])


def is_near(a: Tensor, b: Tensor) -> bool:
    """Are all rows, vectors along the last dimension, the same up to `NEAR` of their length?"""
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    return bool(((a - b).norm(dim=-1) <= NEAR * b.norm(dim=-1) + 1e-6).all())
