"""Files that are never half-written, and are checked as they are read: tensors and facts as safetensors, and JSON."""

import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

PART = r"\.[0-9a-f]{1,16}-\d{1,6}"  # version 0.1 split more than 1 GiB into several files with these endings
LARGEST_JSON = 32 * 2**20  # bytes; the history of 1500 steps takes 0.1 MB
SMALL = 64 * 2**20  # bytes; a file of embeddings has less than one million
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64",
          torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip
Finite = Annotated[float, Field(gt=-1e300, lt=1e300)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Stored(BaseModel):
    """JSON with known types. Keys that this version doesn't know are kept; null counts as a missing key."""

    model_config = ConfigDict(strict=True, extra="allow")


def parse(model: type[Stored], value: object) -> dict:
    """Return a value from JSON as a dict with the model's types. Raises ValueError, in one sentence, for any other."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # so it can be printed and written again
    try:
        return model.model_validate_json(text).model_dump(exclude_none=True, exclude_unset=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(key)[:40] for key in first["loc"][:4])
        raise ValueError(f"{place or 'it'}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


@contextmanager
def damage_explained(what: str | Path, advice: str = "delete it"):
    """Turn any error in reading a file into a ValueError of one sentence, or FileNotFoundError if `what` is missing."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OSError, LookupError, RecursionError, SafetensorError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, FileNotFoundError) and str(cause.filename) == str(what):
            raise FileNotFoundError(f"there is no file {what}") from cause
        if isinstance(cause, PermissionError):
            raise ValueError(f"{cause.filename} can't be read, because you lack the permission") from cause
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
        raise ValueError(f"{what} is damaged ({reason}): {advice}") from cause


def check_regular(path: Path, largest: float = math.inf) -> None:
    """Raise ValueError for a link, a pipe or too large a file, and FileNotFoundError if there is none. A link could
    lead to files elsewhere, which would be read and passed on with a folder; a pipe would never end."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is a link" if stat.S_ISLNK(found.st_mode) else "it is not a regular file")
    if found.st_size > largest:
        raise ValueError("it is too large")


def read_json(path: Path, model: type[Stored], advice: str = "delete it") -> dict:
    """Read a JSON file with the model's types. Raises FileNotFoundError if it is missing, and ValueError, in one
    sentence, if it is invalid."""
    with damage_explained(path, advice):
        check_regular(path, LARGEST_JSON)
        return parse(model, json.loads(Path(path).read_text(encoding="utf-8")))


def write_json(path: Path, value: dict) -> None:
    """Write any JSON value. Letters outside ASCII are escaped, so that it can hold any file name."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1), encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then rename that file to `path`, so that readers see the old file or the new one.

    The temporary file is in a private folder next to `path`. `folder.locked` removes what a killed process has left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = {"prefix": f".{path.name}.", "suffix": ".tmp"}
    with tempfile.TemporaryDirectory(**name, dir=path.parent, ignore_cleanup_errors=True) as folder:
        write(temporary := Path(folder) / path.name)
        os.replace(temporary, path)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary folders that a killed process has left in this folder. No other process may write there."""
    for leftover in Path(folder).glob(".*." + "[a-z0-9_]" * 8 + ".tmp"):
        shutil.rmtree(leftover, ignore_errors=True)  # a file or a link of this name is left alone


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    """Write named tensors and JSON facts into one safetensors file.

    Tensors are written one by one, so that the computer's memory holds only one of them at a time, even if the GPU has
    10 GB; `safetensors.torch.save_file` would need them all at once. Raises OSError if the disk is full."""
    metadata = {"format": "pt", "facts": json.dumps(facts)}
    write_atomically(path, lambda temporary: _write(temporary, tensors, metadata))


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The format: 8 bytes with the header's length, the header as JSON, then the tensors' bytes without a gap."""
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())  # keeps every number aligned
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


def _opened(path: Path, largest: float = math.inf) -> tuple[safe_open, dict]:
    """Open a safetensors file, reading only its header. Returns the file and its facts."""
    check_regular(path, largest)
    file = safe_open(str(path), "pt")
    text = (file.metadata() or {}).get("facts", "{}")
    if len(text) > LARGEST_JSON or not isinstance(facts := json.loads(text), dict):
        raise ValueError("its facts are too large, or not a JSON object")
    return file, facts


def load_facts(path: Path) -> dict:
    """Read the facts that `save_tensors` wrote, without the tensors. Raises FileNotFoundError if the file is missing,
    and ValueError if it is damaged."""
    with damage_explained(path):
        return _opened(path)[1]


def load_tensors(path: Path, like: dict[str, Tensor] | None = None,
                 largest: float = math.inf) -> tuple[dict[str, Tensor], dict]:  # fmt: skip
    """Read the tensors and facts that `save_tensors` wrote. Raises the same errors as `load_facts`.

    The header is compared with what we expect, because a file can claim any size. largest: bytes of the file. like: an
    example of each tensor to load, which must be there in this shape; others are skipped. Only finite numbers pass."""
    with damage_explained(path):
        file, facts = _opened(path, largest)
        own = re.compile(re.escape(Path(path).name) + PART)
        parts = [Path(path).with_name(part) for part in facts.pop("parts", []) if own.fullmatch(part)]
        where = {name: one for one in [file, *(_opened(part, largest)[0] for part in parts)] for name in one.keys()}
        for name, example in (like or {}).items():
            if name not in where:
                raise ValueError(f"it has no {name}")
            if (shape := where[name].get_slice(name).get_shape()) != [*example.shape]:
                raise ValueError(f"{name} has the shape {tuple(shape)}, not {tuple(example.shape)}")
        tensors = {name: one.get_tensor(name) for name, one in where.items() if like is None or name in like}
        for name, value in tensors.items():
            wanted = (like or tensors)[name].is_floating_point()
            if not torch.isfinite(value).all() or value.is_floating_point() != wanted:
                raise ValueError(f"{name} has values that are not finite")
        return tensors, facts
