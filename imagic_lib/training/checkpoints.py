"""Files that are never half-written: tensors and facts as safetensors, replaced in one move."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PART = 2**30  # bytes; more than this goes into several files, so that it need not be in memory twice
FORGOTTEN = 3600  # seconds; a temporary folder that is older was left by a process that was killed


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call write(temporary path), then rename it to `path`: readers see the old file or the new one.

    The temporary file has a folder of its own beside `path`, private and with a name that nobody can guess. What a
    killed process left there, safetensors' own temporary files too, is in that folder, and is removed an hour later.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in leftovers(path):
        if time.time() - folder.lstat().st_mtime > FORGOTTEN:
            remove_leftover(folder)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary = folder / path.name
    try:
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777  # what the user's umask gives to a new file
        write(temporary)
        temporary.chmod(mode)  # safetensors writes for the owner alone
        os.replace(temporary, path)
    finally:
        remove_leftover(folder)


def leftovers(path: Path) -> Iterator[Path]:
    """The temporary folders of `write_atomically` for this file and its further parts."""
    pattern = re.compile(rf"\.{re.escape(path.name)}(\.[0-9a-f]+-\d+)?\.[a-z0-9_]{{8}}\.tmp")
    if path.parent.is_dir():
        yield from (p for p in path.parent.iterdir() if pattern.fullmatch(p.name) and p.is_dir() and not p.is_symlink())


def remove_leftover(folder: Path) -> None:
    """Delete a temporary folder and the files in it; one that is gone already, or holds folders, is left alone."""
    try:
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        pass


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    """Named tensors and JSON facts as one safetensors file, or, if they are large, one that names its
    further parts. It is written last: until then the old state is whole, and after it the new one. What an
    earlier save left behind because it was killed is removed first."""
    path, groups = Path(path), in_parts(tensors)
    remove_orphans(path)
    old = further_parts(path)
    names = [f"{path.name}.{time.time_ns():x}-{k}" for k in range(1, len(groups))]
    try:
        for name, group in zip(names, groups[1:], strict=True):
            _write(path.with_name(name), group, {})
        _write(path, groups[0], facts | {"parts": names})
    except BaseException:  # a full disk, or the stop button: the parts that were written belong to nothing
        for name in names:
            path.with_name(name).unlink(missing_ok=True)
        raise
    for part in old:
        part.unlink(missing_ok=True)


def _write(path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    # small tensors are copied, because safetensors refuses tensors that share their memory
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
    facts = load_facts(path)
    try:
        for file in [path, *further_parts(path)]:
            with safe_open(str(file), "pt") as f:
                tensors |= {name: f.get_tensor(name) for name in f.keys()}
    except (SafetensorError, ValueError, OSError) as error:
        raise damaged(path, error) from error
    return tensors, facts


def load_facts(path: Path) -> dict:
    """The facts alone, without the tensors. Raises as `load_tensors`."""
    try:
        facts = _facts(Path(path))
    except (SafetensorError, ValueError, OSError) as error:
        if not Path(path).exists():
            raise
        raise damaged(path, error) from error
    facts.pop("parts", None)
    return facts


def damaged(path: Path, error: Exception | str) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"{path} is damaged and can't be read ({reason}): delete it")


def _facts(path: Path) -> dict:
    with safe_open(str(path), "pt") as f:
        facts = json.loads((f.metadata() or {}).get("facts", "{}"))
    if not isinstance(facts, dict):
        raise ValueError("its facts are no JSON object")
    parts = facts.get("parts", [])
    # a name from a file may be anything: only this file's own parts are ever read or deleted
    if not isinstance(parts, list) or not all(isinstance(name, str) and is_part(path, name) for name in parts):
        raise ValueError("it names parts that are not its own")
    return facts


def is_part(path: Path, name: str) -> bool:
    """Is this the name of a further part of the file `path`?"""
    return re.fullmatch(rf"{re.escape(path.name)}\.[0-9a-f]{{1,16}}-\d{{1,6}}", name) is not None


def further_parts(path: Path) -> list[Path]:
    """The files that a large checkpoint has beside its first one."""
    try:
        return [path.with_name(name) for name in _facts(path).get("parts", [])]
    except (SafetensorError, ValueError, OSError):
        return []


def remove_orphans(path: Path) -> None:
    """Delete what saves that were killed have left: parts that the file doesn't name, and temporary folders."""
    path = Path(path)
    if path.parent.is_dir():
        own = further_parts(path)
        for file in [p for p in path.parent.iterdir() if is_part(path, p.name) and p not in own]:
            file.unlink(missing_ok=True)
        for folder in list(leftovers(path)):
            remove_leftover(folder)


def remove_tensors(path: Path) -> None:
    """Delete what `save_tensors` wrote."""
    path = Path(path)
    path.unlink(missing_ok=True)
    remove_orphans(path)  # without the file, all its parts are


def size_on_disk(path: Path) -> int:
    """Bytes of what `save_tensors` wrote; 0 if there is nothing."""
    return sum(file.stat().st_size for file in [Path(path), *further_parts(Path(path))] if file.is_file())


def free_on_disk(path: Path) -> int:
    """Bytes that are free where the file is, or will be."""
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


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
