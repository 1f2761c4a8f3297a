"""Files that are never half-written: tensors and facts as safetensors, replaced in one move."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PART = 2**30  # bytes; more than this goes into several files, so that it need not be in memory twice


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call write(temporary path), then rename it to `path`: readers see the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors writes for the owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    """Named tensors and JSON facts as one safetensors file, or, if they are large, one that names its
    further parts. It is written last: until then the old state is whole, and after it the new one."""
    path, groups = Path(path), in_parts(tensors)
    old = further_parts(path)
    names = [f"{path.name}.{time.time_ns():x}-{k}" for k in range(1, len(groups))]
    for name, group in zip(names, groups[1:], strict=True):
        _write(path.with_name(name), group, {})
    _write(path, groups[0], facts | {"parts": names})
    for part in old:
        part.unlink(missing_ok=True)


def _write(path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    flat = {name: t.detach().to("cpu", copy=t.nbytes < PART // 64).contiguous() for name, t in tensors.items()}
    write_atomically(path, lambda tmp: save_file(flat, tmp, {"facts": json.dumps(facts)}))


def in_parts(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in groups of at most PART bytes (or one tensor), in their order."""
    groups, size = [{}], 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > PART:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    return groups


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """What `save_tensors` wrote. Raises FileNotFoundError, or ValueError if it is damaged or a part is missing."""
    path, tensors = Path(path), {}
    try:
        facts = read_facts(path)
        for file in [path, *(path.with_name(name) for name in facts.pop("parts", []))]:
            with safe_open(str(file), "pt") as f:
                tensors |= {name: f.get_tensor(name) for name in f.keys()}
    except (SafetensorError, ValueError, OSError) as error:
        if not path.exists():
            raise
        raise ValueError(f"{path} is damaged and can't be read ({error}): delete it") from error
    return tensors, facts


def read_facts(path: Path) -> dict:
    with safe_open(str(path), "pt") as f:
        return json.loads((f.metadata() or {}).get("facts", "{}"))


def further_parts(path: Path) -> list[Path]:
    """The files that a large checkpoint has beside its first one."""
    try:
        return [path.with_name(name) for name in read_facts(path).get("parts", [])]
    except (SafetensorError, ValueError, OSError):
        return []


def remove_tensors(path: Path) -> None:
    """Delete what `save_tensors` wrote."""
    for file in [*further_parts(path), path]:
        file.unlink(missing_ok=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an Adam-like optimizer as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `pack_optimizer`; keys that are not an optimizer's are left alone."""
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            # fused Adam walks through memory: its moments must lie as the weight does (channels_last or not)
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
