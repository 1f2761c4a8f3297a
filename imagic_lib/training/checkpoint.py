"""The checkpoint of a training. One file keeps the whole state, and only the same training can continue from it."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib import files
from imagic_lib.arguments import warn_caller
from imagic_lib.files import Finite, Whole, damage_explained
from imagic_lib.models import fingerprint
from imagic_lib.pictures import to_picture
from imagic_lib.training.history import History

SAVE_AFTER = 30.0  # seconds between two checkpoints of a small model
SAVING_SHARE = 0.1  # of the time at most; a large model's checkpoint takes a minute to write
MOMENTS = {"exp_avg", "exp_avg_sq"}, {"state1"}  # of Adam, and of an 8-bit Adam
NEAR = 0.01  # of a row's length; machines differ by a thousandth at most, two texts by a tenth at least
DIFFERENT = {"model": "another model", "method": "another method", "images": "another picture", "seed": "another seed"}


class StoredCheckpoint(files.Stored):
    identity: dict
    history: History
    scaler: dict[str, Whole | Finite]


class TrainingJob(NamedTuple):
    """Identifies a training, so that no other continues its checkpoint. facts: JSON, equal on every machine. near:
    tensors computed by a network, which must agree row by row (along the last dimension) within `NEAR`."""

    facts: dict
    near: dict[str, Tensor]

    def difference(self, found: dict, near: dict[str, Tensor]) -> str | None:
        """Say in words how a checkpoint's job differs from this one, or return None if it is the same training."""
        found = {"bias": 0.0} | found  # if left out, it is 0
        for key, value in (self.facts | {"bias": self.facts.get("bias", 0.0)}).items():
            if key not in found:
                return "an older version of this library"
            if found[key] != value:
                return DIFFERENT.get(key, f"{key} {found[key]!r}, not {value!r}")
        if self.near.keys() != near.keys():
            return f"another {next(iter(self.near.keys() ^ near.keys()))}"
        return next((f"another {name}" for name, value in self.near.items() if not is_near(value, near[name])), None)


def job_of(pipe: StableDiffusionPipeline, images: Iterable[Tensor], settings: dict, generator: torch.Generator,
           run, *, near: dict[str, Tensor], **more) -> TrainingJob:  # fmt: skip
    """Return the job: hashes of the pictures, settings (the steps are in the history), model, loss, seed, and `near`,
    such as the embedding of the text. run: a `loop.Run`."""
    facts = {"model": fingerprint(pipe), **more, "images": [hash_of_picture(image) for image in images]}
    facts |= {name: value for name, value in settings.items() if name != "steps"}
    facts |= {"loss": getattr(run.loss, "__name__", type(run.loss).__name__), "seed": generator.initial_seed()}
    return TrainingJob(facts, {name: value.detach().to("cpu", torch.float16) for name, value in near.items()})


def hash_of_picture(image: Tensor) -> str:
    """Return sixteen hexadecimal digits for a picture, (1, 3, size, size), which are the same in every precision."""
    return hashlib.sha256(to_picture(image).tobytes()).hexdigest()[:16]


def is_near(a: Tensor, b: Tensor) -> bool:
    """Whether all rows, the vectors along the last dimension, agree within `NEAR` of their length."""
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    return bool(((a - b).norm(dim=-1) <= NEAR * b.norm(dim=-1) + 1e-6).all())


class CheckpointFile:
    """The checkpoint file of one `loop.Training`. With the path None, nothing is kept."""

    def __init__(self, path: Path | str | None, training):
        self.path, self.training = Path(path) if path else None, training
        self.due = time.monotonic() + SAVE_AFTER

    def open(self) -> None:
        """Restore the state, if there is a file. Raises ValueError if it is damaged or from another training, or if the
        disk has no room for a checkpoint."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(self.path):
            self._load()
        check_room(self.path, self.training.bytes_on_disk(), f"{self.training.name}: its checkpoint")

    def _load(self) -> None:
        training, path = self.training, self.path
        with damage_explained(path):
            facts = files.parse(StoredCheckpoint, files.load_facts(path))
            if not facts["history"]["loss"]:
                raise ValueError("its history has no step")
        other = TrainingJob(training.facts, {}).difference(facts["identity"], {})  # before gigabytes are read
        tensors, _ = ({}, {}) if other else files.load_tensors(path, largest=2 * training.bytes_on_disk() + files.SMALL)
        near = {k.removeprefix("near."): v for k, v in tensors.items() if k.startswith("near.")}
        if other := other or training.job.difference(facts["identity"], near):
            raise ValueError(f"{path} is from a training with {other}: choose another folder, or delete this file")
        with damage_explained(path):
            for key, weight in training.weights.items():
                if (value := tensors[f"trained.{key}"]).shape != weight.shape:
                    raise ValueError(f"{key} has the shape {tuple(value.shape)}")
                weight.data.copy_(value)
            unpack_optimizer(training.optimizer, tensors)
            training.generator.set_state(tensors["generator"])
            if facts["scaler"]:
                training.scaler.load_state_dict(facts["scaler"])
        training.history = History(**facts["history"] | {"stopped": False})

    def save(self) -> None:
        """Write the state. If that fails, for example because the disk is full, warn and let the training go on."""
        if self.path is None:
            return
        began = time.monotonic()
        try:
            self._write()
        except OSError as error:
            warn_caller(f"{self.path} could not be written ({error}): a stop would lose the training")
        self.due = (now := time.monotonic()) + max(SAVE_AFTER, (now - began) / SAVING_SHARE)

    def _write(self) -> None:
        """Write the new file, keeping the old one until it is complete, unless the disk has no room for both. Raises
        OSError if the folder was moved or deleted meanwhile."""
        training, path = self.training, self.path
        os.stat(path.parent)
        tensors = {f"trained.{k}": v for k, v in training.weights.items()} | pack_optimizer(training.optimizer)
        tensors |= {f"near.{k}": v for k, v in training.job.near.items()}
        facts = {"identity": training.facts, "history": asdict(training.history)}
        facts["scaler"] = training.scaler.state_dict()  # nothing without float16
        free = free_on_disk(path)
        if free < training.bytes_on_disk() <= free + size_on_disk(path):
            path.unlink()
        files.save_tensors(path, tensors | {"generator": training.generator.get_state()}, facts)


def check_room(path: Path, need: int, what: str) -> None:
    """Raise ValueError if the disk can't hold `need` bytes once this file is replaced. what: named in the error."""
    room = free_on_disk(path) + size_on_disk(path)
    if need > room:
        takes, where = f"{what} takes {need / 1e9:.1f} GB on disk", f"{path.parent} has room for {room / 1e9:.1f} GB"
        raise ValueError(f"{takes}, and {where}: choose another folder, or train a LoRA, whose files are small")


def free_on_disk(path: Path) -> int:
    return shutil.disk_usage(path.parent).free


def size_on_disk(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def weights_in(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an Adam-like optimizer as named tensors."""
    states = ((index, optimizer.state.get(weight, {})) for index, weight in enumerate(weights_in(optimizer)))
    return {f"optimizer.{index}.{key}": torch.as_tensor(x) for index, state in states for key, x in state.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `pack_optimizer`; ignores other names. Raises ValueError if the state is incomplete, or a moment
    has another shape than its weight, because a fused Adam would then read and write beyond its end."""
    weights, state = weights_in(optimizer), {}
    for key, value in tensors.items():
        if not key.startswith("optimizer."):
            continue
        _, index, name = key.split(".")
        if not 0 <= int(index) < len(weights):
            raise ValueError(f"{key} belongs to no weight")
        weight, is_moment = weights[int(index)], name.startswith(("exp_avg", "max_exp_avg", "state"))
        if value.shape != (weight.shape if is_moment else value.shape) or (name == "step" and value.numel() != 1):
            raise ValueError(f"{key} has the shape {tuple(value.shape)}")
        # fused Adam walks through memory, so the moments need the weight's memory format (channels_last or not)
        laid = torch.empty_like(weight, dtype=value.dtype).copy_(value) if is_moment else value
        state.setdefault(int(index), {})[name] = laid
    for index, values in state.items():
        if not any({"step", *moments} <= values.keys() for moments in MOMENTS):
            raise ValueError(f"optimizer.{index} lacks a moment")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
