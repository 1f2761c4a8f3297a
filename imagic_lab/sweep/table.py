"""The table of a sweep: one edit a row, checked as a whole before anything is started."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.edit import ETAS, etas_of
from imagic_lib.models import TINY, check_text, family
from imagic_lib.pictures import open_image
from imagic_lib.stage2_finetuning import MOST_SCALE
from imagic_lib.stage4_inference import seeds_of

NEEDED = ("image", "text")
LARGEST_TABLE = 64 * 2**20  # bytes; ten thousand rows take one or two
SLICE = 2**20  # bytes of a weights file, at its start and at its end, that tell two models apart
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class Faults(ValueError):
    """Everything that is wrong with a table. str: one sentence; faults: each with its row."""

    def __init__(self, path: Path, faults: list[str]):
        self.faults = faults
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{path} has {count}, nothing was started: {'; '.join(faults)}")

    @property
    def verdict(self) -> str:
        """The sentence without the list."""
        return str(self).partition(": ")[0]


@dataclass(frozen=True)
class Job:
    """One edit: a row of the table, every default filled in."""

    image: str  # path of the picture
    text: str
    model: str = "tiny"  # as for `load_pipeline`
    method: str = "full"
    embedding_steps: int | None = None
    unet_steps: int | None = None
    seed: int = 0  # of the training
    seeds: tuple[int, ...] = (0,)  # noises to start from
    etas: tuple[float, ...] = ETAS
    scale: float = 1.0
    row: int = 0  # as a spreadsheet counts: the header is row 1
    picture: str = ""  # hash of the file's bytes
    weights: str = ""  # what tells the model from others, whatever its folder is called

    @property
    def settings(self) -> dict:
        """What the edit depends on: neither the row nor where the files lie."""
        return {name: value for name, value in asdict(self).items() if name not in ("row", "image", "model")}

    @property
    def name(self) -> str:
        """Sixteen hexadecimal digits that stand for the settings, the picture's bytes and the model: the folder of
        the finished edit."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]


def read_table(path: str | Path) -> list[Job]:
    """The jobs of a CSV file, in its order. Pictures and folders of models are relative to the file's own folder.

    Columns: image and text; and, with the library's defaults, model, method, embedding_steps, unet_steps, seed, seeds,
    etas, scale. Lists in a cell are separated by spaces. Raises `Faults` with all that is wrong in all rows,
    FileNotFoundError, or ValueError for what is no table.
    """
    path = Path(path)
    header, rows = cells(path)
    for known in (known_picture, known_model):  # a file may be another one since the last table
        known.cache_clear()
    faults = header_faults(header)
    if faults:
        raise Faults(path, faults)
    jobs, first = [], {}
    for number, row in rows:
        job, wrong = job_of(dict(zip(header, row, strict=False)), path.parent, number)
        if len(row) > len(header):
            wrong.append(f"it has {len(row)} cells, the header has {len(header)}")
        if not wrong and (same := first.setdefault(job.name, number)) != number:
            wrong.append(f"it is the same edit as row {same}")
        faults += [f"row {number}: {fault}" for fault in wrong]
        jobs.append(job)
    if faults:
        raise Faults(path, faults)
    if not jobs:
        raise ValueError(f"{path} has no rows: write one edit a row, under the header image,text")
    return jobs


def cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows that are not empty with their numbers. Commas, semicolons and tabs separate cells:
    what the header has most of."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: a sweep needs a table, in CSV")
    if path.stat().st_size > LARGEST_TABLE:
        raise ValueError(f"{path} has more than {LARGEST_TABLE // 2**20} MiB: it is no table of edits")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8 ({error}): save it as one") from error
    stripped = [[cell.strip() for cell in row] for row in rows]
    return (stripped[0] if stripped else []), [(n, row) for n, row in enumerate(stripped[1:], 2) if any(row)]


def header_faults(header: list[str]) -> list[str]:
    """What is wrong with the names of the columns."""
    faults = [f"there is no column {name!r}" for name in NEEDED if name not in header]
    faults += [f"the column {name!r} is there twice" for name in dict.fromkeys(header) if header.count(name) > 1]
    for name in header:
        if name not in COLUMNS:
            faults.append(f"the column {name!r} is unknown: there are {', '.join(COLUMNS)}")
    return faults


def job_of(row: dict[str, str], folder: Path, number: int) -> tuple[Job, list[str]]:
    """The job of one row, and what is wrong with it."""
    values, faults = {}, []
    for name, cell in row.items():
        if cell or name in NEEDED:
            try:
                values[name] = COLUMNS[name](cell, folder)
            except (ValueError, OSError) as error:
                faults.append(f"{name}: {error}")
    job = Job(**dict.fromkeys(NEEDED, "") | values, row=number)
    if not faults:
        kind, weights = known_model(job.model)
        first, second = stage1_embedding.DEFAULTS[kind], stage2_finetuning.DEFAULTS[job.method][kind]
        steps = {"embedding_steps": first["steps"], "unet_steps": second["steps"]}
        steps |= {name: values[name] for name in steps if name in values}
        job = replace(job, **steps, picture=known_picture(job.image), weights=weights)
    return job, faults


# -- one cell


def picture_cell(cell: str, folder: Path) -> str:
    if not cell:
        raise ValueError("the cell is empty: give the path of a picture")
    path = str((folder / cell).resolve())
    known_picture(path)
    return path


def text_cell(cell: str, folder: Path) -> str:
    check_text(cell)
    return cell


def model_cell(cell: str, folder: Path) -> str:
    if cell != "tiny" and (folder / cell).exists():
        cell = str((folder / cell).resolve())
    known_model(cell)
    return cell


def method_cell(cell: str, folder: Path) -> str:
    if cell not in stage2_finetuning.DEFAULTS:
        raise ValueError(f"{cell!r} is unknown: choose {' or '.join(stage2_finetuning.DEFAULTS)}")
    return cell


def whole_cell(cell: str, folder: Path | None = None) -> int:
    if not re.fullmatch(r"\d{1,18}", cell, re.ASCII):
        raise ValueError(f"{cell!r} is not a whole number of 0 or more")
    return int(cell)


def seeds_cell(cell: str, folder: Path) -> tuple[int, ...]:
    return tuple(dict.fromkeys(seeds_of([whole_cell(part) for part in cell.split()])))


def number_of(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{cell!r} is not a number") from None


def etas_cell(cell: str, folder: Path) -> tuple[float, ...]:
    return tuple(dict.fromkeys(etas_of([number_of(part) for part in cell.split()])))


def scale_cell(cell: str, folder: Path) -> float:
    if not 0 <= (value := number_of(cell)) <= MOST_SCALE:
        raise ValueError(f"{cell!r} is not from 0 to {MOST_SCALE:g}")
    return value


COLUMNS: dict[str, Callable[[str, Path], object]] = {
    "image": picture_cell,
    "text": text_cell,
    "model": model_cell,
    "method": method_cell,
    "embedding_steps": whole_cell,
    "unet_steps": whole_cell,
    "seed": whole_cell,
    "seeds": seeds_cell,
    "etas": etas_cell,
    "scale": scale_cell,
}


# -- what many rows share is looked at once


@cache
def known_picture(path: str) -> str:
    """A hash of the bytes of a picture that can be opened. Raises as `open_image`."""
    open_image(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


@cache
def known_model(model: str) -> tuple[str, str]:
    """A model's kind (`models.family`), and what tells it from others: of a folder some bytes of each file, of the hub
    its id. Nothing is loaded. Raises ValueError for what is neither."""
    folder = TINY if model == "tiny" else Path(model)
    if not folder.is_dir():
        if not HUB_ID.fullmatch(model):
            raise ValueError(f"{model!r} is neither tiny, nor a folder, nor the id of a model on the hub")
        return "stable-diffusion", model
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is no diffusers model: it has no model_index.json")
    from imagic_lib.planning.memory import on_meta

    return family(SimpleNamespace(unet=on_meta(folder)["unet"])), stamp(folder)


def stamp(folder: Path) -> str:
    """A hash of a model's files: names, sizes, and the first and last bytes of each."""
    digest = hashlib.sha256()
    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        for path in sorted(p for p in (folder / part).rglob("*") if p.is_file() and not p.name.startswith(".")):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()} {size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(SLICE))
                file.seek(max(size - SLICE, 0))
                digest.update(file.read(SLICE))
    return digest.hexdigest()[:16]
