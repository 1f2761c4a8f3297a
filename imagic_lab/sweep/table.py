"""The table of a sweep, with one edit per row, which is checked as a whole before anything starts."""

import csv
import hashlib
import io
import json
import re
from dataclasses import asdict, replace
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.arguments import FARTHEST_ETA, check_text
from imagic_lib.edit import ETAS
from imagic_lib.models import TINY, family
from imagic_lib.pictures import open_image
from imagic_lib.planning.memory import on_meta
from imagic_lib.unets import MOST_SCALE

NEEDED = ("image", "text")
COLUMNS = (*NEEDED, "model", "method", "embedding_steps", "unet_steps", "seed", "seeds", "etas", "scale")
MUST_BE = dict.fromkeys(COLUMNS, "a whole number of 0 or more") | {
    "etas": f"a number within ±{FARTHEST_ETA:g}",
    "scale": f"a number from 0 to {MOST_SCALE:g}",
}
SLICE = 2**20  # bytes at the start and at the end of a file, enough to tell two models apart

Count = Annotated[int, Field(ge=0, lt=2**63)]
Eta = Annotated[float, Field(ge=-FARTHEST_ETA, le=FARTHEST_ETA), AfterValidator(lambda eta: eta + 0.0)]  # -0 is 0
SPLIT = BeforeValidator(lambda cell: cell.split() if isinstance(cell, str) else cell)
EACH_ONCE = AfterValidator(lambda values: tuple(dict.fromkeys(values)))


class Faults(ValueError):
    """All faults of a table, as one sentence. `faults` lists them with their rows, `verdict` counts them."""

    def __init__(self, path: Path, faults: list[str]):
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        self.faults, self.verdict = faults, f"{path} has {count}, nothing was started"
        super().__init__(f"{self.verdict}: {'; '.join(faults)}")


@dataclass(frozen=True)
class Job:
    """One edit: a row of the table, with every default filled in."""

    image: str  # path of the picture
    text: str
    model: str = "tiny"  # as for `load_pipeline`
    method: str = "full"
    embedding_steps: Count | None = None
    unet_steps: Count | None = None
    seed: Count = 0  # of the training
    seeds: Annotated[tuple[Count, ...], SPLIT, EACH_ONCE] = (0,)  # of the noise from which each picture starts
    etas: Annotated[tuple[Eta, ...], SPLIT, EACH_ONCE] = ETAS
    scale: Annotated[float, Field(ge=0, le=MOST_SCALE)] = 1.0
    row: int = 0  # as in a spreadsheet, where the header is row 1
    picture: str = ""  # hash of the file's bytes
    weights: str = ""  # identifies the model, whatever its folder is called

    @pydantic.field_validator("image", "text", "model", "method")
    @classmethod
    def check_cell(cls, cell: str, info: pydantic.ValidationInfo) -> str:
        """Check a cell of a table, whose folder is the context. Paths are relative to it, and must exist."""
        if (folder := info.context) is None:
            return cell
        if info.field_name == "image" or (info.field_name == "model" and cell != "tiny" and (folder / cell).exists()):
            cell = str((folder / cell).resolve())
        try:
            CHECKS[info.field_name](cell)
        except OSError as error:  # pydantic collects ValueErrors
            raise ValueError(str(error)) from error
        return cell

    @cached_property
    def name(self) -> str:
        """The name of the finished edit's folder: a hash of everything on which the edit depends."""
        settings = {name: value for name, value in asdict(self).items() if name not in ("row", "image", "model")}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


ROW = pydantic.TypeAdapter(Job)


def read_table(path: str | Path) -> list[Job]:
    """Read the jobs in a CSV file, in its order. Pictures and model folders are relative to the folder of the file.

    Columns: `COLUMNS`; all but image and text can be left out. A cell lists its seeds or etas with spaces between them.
    Raises `Faults` with the faults of all rows, FileNotFoundError, or ValueError for a file that is not a table.
    """
    path = Path(path)
    header, *rows = cells_of(path)
    for remembered in (hash_of_file, kind_and_stamp):  # files can have changed since the last table
        remembered.cache_clear()
    if faults := header_faults(header):
        raise Faults(path, faults)
    jobs, first = [], {}
    for number, row in enumerate(rows, 2):
        if any(row):
            job, wrong = job_in(dict(zip(header, row, strict=False)), path.parent, number)
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


def cells_of(path: Path) -> list[list[str]]:
    """Read the cells of all rows, header first. They are separated by what the header has most: , or ; or tabs."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a sweep needs a table, in CSV")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8 ({error}): save it as one") from error
    return [[cell.strip() for cell in row] for row in rows] or [[]]


def header_faults(header: list[str]) -> list[str]:
    missing = [f"the column {name!r} is missing" for name in NEEDED if name not in header]
    twice = [f"the column {name!r} is there twice" for name in dict.fromkeys(header) if header.count(name) > 1]
    unknown = [name for name in header if name not in COLUMNS]
    return missing + twice + [f"the column {name!r} is unknown: use {', '.join(COLUMNS)}" for name in unknown]


def job_in(row: dict[str, str], folder: Path, number: int) -> tuple[Job | None, list[str]]:
    """Return the job of one row, and all its faults. Without faults, its steps, picture and weights are filled in."""
    given = {name: cell for name, cell in row.items() if cell or name in NEEDED}
    try:
        job = ROW.validate_python(given | {"row": number}, context=folder)
    except pydantic.ValidationError as error:
        return None, [sentence_for(fault) for fault in error.errors()]
    kind, weights = kind_and_stamp(job.model)
    first, second = stage1_embedding.DEFAULTS[kind], stage2_finetuning.DEFAULTS[job.method][kind]
    steps = {"embedding_steps": first["steps"], "unet_steps": second["steps"]}
    steps = {name: default for name, default in steps.items() if name not in given}
    return replace(job, **steps, picture=hash_of_file(job.image), weights=weights), []


def sentence_for(fault: dict) -> str:
    """Put what pydantic found in a cell into our words."""
    column = fault["loc"][0]
    wrong = fault["ctx"]["error"] if fault["type"] == "value_error" else f"{fault['input']!r} is not {MUST_BE[column]}"
    return f"{column}: {wrong}"


def check_method(method: str) -> None:
    if method not in stage2_finetuning.DEFAULTS:
        raise ValueError(f"{method!r} is unknown: choose {' or '.join(stage2_finetuning.DEFAULTS)}")


@cache
def hash_of_file(path: str) -> str:
    """Return a hash of a picture's file. Raises the same errors as `open_image` if it can't be opened."""
    open_image(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


@cache
def kind_and_stamp(model: str) -> tuple[str, str]:
    """Return a model's kind (`models.family`), and a text that identifies it, which is its hub id or a hash of its
    folder's files (names, sizes, first and last bytes). Nothing is loaded. Raises ValueError for any other name.
    """
    folder = TINY if model == "tiny" else Path(model)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", model, re.ASCII):
            raise ValueError(f"{model!r} is not tiny, a folder, or the id of a model on the hub")
        return "stable-diffusion", model
    kind, digest = family(SimpleNamespace(unet=on_meta(folder)["unet"])), hashlib.sha256()
    for path in sorted(path for path in folder.glob("*/[!.]*") if path.is_file()):
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder).as_posix()} {size}".encode() + file.read(SLICE))
            file.seek(max(size - SLICE, 0))
            digest.update(file.read())
    return kind, digest.hexdigest()[:16]


CHECKS = {"image": hash_of_file, "text": check_text, "model": kind_and_stamp, "method": check_method}
