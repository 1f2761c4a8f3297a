"""Files that are never half-written: tensors and facts as safetensors, replaced in one move."""

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
from torch import Tensor

FORGOTTEN = 3600  # seconds; an older temporary folder was left by a process that was killed
TEMPORARY = r"\.{}(\.[0-9a-f]+-\d+)?\.[a-z0-9_]{{8}}\.tmp"  # the folders of `write_atomically`
PART = r"{}\.[0-9a-f]{{1,16}}-\d{{1,6}}"  # version 0.1 wrote more than 1 GiB into several files
DTYPES = {  # their names in a safetensors file
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call write(temporary path), then rename it to `path`: readers see the old file or the new one.

    The temporary file is in a private folder next to `path`. Folders that a killed process left go an hour later."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path, older_than=FORGOTTEN)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary = folder / path.name
    try:
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777  # what the user's umask gives to a new file
        write(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _beside(path: Path, pattern: str) -> Iterator[Path]:
    """The files and folders next to `path` whose names are made of its own."""
    wanted = re.compile(pattern.format(re.escape(path.name)))
    found = list(path.parent.iterdir()) if path.parent.is_dir() else []
    yield from (other for other in found if wanted.fullmatch(other.name) and not other.is_symlink())


def remove_leftovers(path: Path, older_than: float = 0.0) -> None:
    """Delete the temporary folders of this file that are older than so many seconds."""
    for folder in _beside(Path(path), TEMPORARY):
        if time.time() - folder.lstat().st_mtime >= older_than:
            shutil.rmtree(folder, ignore_errors=True)


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    """Named tensors and JSON facts as one safetensors file.

    Tensors are written one by one: of a GPU's 10 GB no more than one tensor is in the computer's memory, while
    `safetensors.torch.save_file` would need all of them at once. A full disk is an OSError."""
    metadata = {"format": "pt", "facts": json.dumps(facts)}
    write_atomically(path, lambda temporary: _write(temporary, tensors, metadata))
    for part in _beside(Path(path), PART):
        part.unlink(missing_ok=True)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The format: 8 bytes with the header's length, the header as JSON, then the tensors' bytes without a gap."""
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())  # so that each number is aligned
    header, end = {"__metadata__": metadata}, 0
    for name in order:
        start, end, t = end, end + tensors[name].nbytes, tensors[name]
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def remove_tensors(path: Path) -> None:
    """Delete what `save_tensors` wrote, with what a killed process left of it."""
    for file in [*_beside(Path(path), PART), Path(path)]:
        file.unlink(missing_ok=True)
    remove_leftovers(path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """What `save_tensors` wrote. Raises FileNotFoundError, or ValueError if the file is damaged."""
    path, tensors, facts = Path(path), {}, load_facts(path, parts=True)
    own, parts = {part.name: part for part in _beside(path, PART)}, facts.pop("parts", [])
    try:
        if not isinstance(parts, list) or not all(isinstance(name, str) and name in own for name in parts):
            raise ValueError("it names parts that are missing or not its own")
        for file in [path, *(own[name] for name in parts)]:
            with safe_open(str(file), "pt") as f:
                tensors |= {name: f.get_tensor(name) for name in f.keys()}
    except (SafetensorError, ValueError, OSError) as error:
        raise damaged(path, error) from error
    return tensors, facts


def load_facts(path: Path, parts: bool = False) -> dict:
    """The facts alone, without the tensors. Raises as `load_tensors`."""
    try:
        with safe_open(str(path), "pt") as f:
            facts = json.loads((f.metadata() or {}).get("facts", "{}"))
        if not isinstance(facts, dict):
            raise ValueError("its facts are not a JSON object")
    except (SafetensorError, ValueError, OSError) as error:
        if not Path(path).exists():
            raise
        raise damaged(path, error) from error
    return facts if parts else {key: value for key, value in facts.items() if key != "parts"}


def damaged(path: Path, error: Exception) -> ValueError:
    """The error to raise for a file that can't be read."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"{path} is damaged and can't be read ({reason}): delete it")


def free_on_disk(path: Path) -> int:
    """Bytes that are free where the file is, or will be."""
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
