"""Files that are never half-written: a checkpoint is one safetensors file, replaced in one move."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def write_atomically(path: Path, write) -> None:
    """Call write(temporary path), then rename it to `path`: readers see the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], facts: dict) -> None:
    """Named tensors and JSON facts in one safetensors file, atomically."""
    flat = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    write_atomically(path, lambda tmp: save_file(flat, tmp, {"facts": json.dumps(facts)}))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """What `save_tensors` wrote. Raises ValueError if the file is damaged."""
    try:
        with safe_open(str(path), "pt") as f:
            facts = json.loads((f.metadata() or {}).get("facts", "{}"))
            return {name: f.get_tensor(name) for name in f.keys()}, facts
    except (SafetensorError, ValueError) as error:  # ValueError: the facts are no JSON
        raise ValueError(f"{path} is damaged and can't be read ({error}): delete it") from error


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an Adam-like optimizer as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `pack_optimizer`; keys that are not an optimizer's are left alone."""
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
