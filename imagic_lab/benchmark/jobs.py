"""The benchmark as jobs of a sweep, one for each edit and method. Only this module uses `imagic_lab.sweep`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from functools import cache, partial
from pathlib import Path

from PIL import Image

from imagic_lab.benchmark.measuring import NOISE_SEEDS, cell_of, measure_edit
from imagic_lab.benchmark.rows import add_rows
from imagic_lab.benchmark.versions import hash_of_settings, versions_of
from imagic_lab.methods import METHODS, Method, community_methods
from imagic_lab.sweep import Job, sweep
from imagic_lab.sweep.work import FACTS, Setup
from imagic_lab.toyworld.edits import toyedit
from imagic_lab.toyworld.reader import load_reader
from imagic_lab.toyworld.scene import Scene
from imagic_lib.files import write_atomically
from imagic_lib.models import load_pipeline

MEASURE_JOB = "imagic_lab.benchmark.jobs:measure_job"
PICTURE_SHEET, COMMUNITY_COPY = "sheet.png", "community.py"
SHEET_LINES = 2  # seeds whose pictures are on a job's sheet

# made once in each process
the_model, the_reader, edits_of = cache(partial(load_pipeline, "tiny")), cache(load_reader), cache(toyedit)


def methods_by_name(community: str | Path | None = None) -> dict[str, Method]:
    """Return every method by its name, with diffusers' community pipeline if a copy of its file is given."""
    return METHODS | (community_methods(community) if community else {})


def missing_jobs(
    split: str, count: int, methods: dict[str, Method], rows: Sequence[dict], trainings: Sequence[int] = (0,)
) -> list[Job]:
    """Return a job for each of the first `count` edits and each method that the rows don't have yet. A method that
    trains has one job for each training seed."""
    wanted = {name: set(cell_of(method.values).split()) for name, method in methods.items()}
    good = [r for r in rows if not r["error"] and wanted.get(r["method"], {"another"}) <= set(r["values"].split())]
    done = {(int(r["edit"]), r["method"], int(r["training"])) for r in good}
    every = [(index, name, seed) for index in range(count) for name, method in methods.items()
             for seed in (trainings if method.trains else [0])]  # fmt: skip
    return [
        job_for(split, index, name, methods[name], seed)
        for index, name, seed in every
        if (index, name, seed) not in done
    ]


def run_jobs(jobs: Sequence[Job], folder: Path, rows: Sequence[dict], out: Path, engine: str) -> tuple[list[dict], int]:
    """Run these jobs as a sweep in `folder`, where their results stay. Returns all rows, which are also in the file
    `out`, and how many jobs are still open because workers were lost.

    If a method fails on an edit, its row has the reason, and the next start tries it again. Rows are also written if
    the sweep is interrupted.
    """
    if not jobs:
        return list(rows), 0
    try:
        left = sweep(jobs, folder / "sweep", engine, cores=1, work=MEASURE_JOB).left  # the seconds are of one core
    finally:
        rows = add_rows(out, rows, list(rows_of_jobs(jobs, folder / "sweep")))
    return rows, left


def job_for(split: str, index: int, name: str, method: Method, training: int = 0) -> Job:
    """Make the job of one edit by one method. Other settings, or other values of the knob, make another job."""
    scene, change = edits_of(split)[index]
    edit, text = f"{split}-{index}", scene.edit(**change).caption()
    weights = hash_of_settings(method)
    return Job(f"{edit}.png", text, method=name, seed=training, seeds=NOISE_SEEDS[split], etas=method.values,
               picture=edit, weights=weights)  # fmt: skip


def rows_of_jobs(jobs: Sequence[Job], out: Path) -> Iterator[dict]:
    """Yield the rows of those jobs that are done or have failed."""
    setup = Setup(str(out), run="")
    for job in jobs:
        done, failed = setup.folder(job) / FACTS, setup.error_file(job)
        if done.is_file():
            yield json.loads(done.read_text(encoding="utf-8"))["row"]
        elif failed.is_file():
            reason = " ".join(json.loads(failed.read_text(encoding="utf-8"))["error"].split())
            yield edit_of(job)[1] | {"error": reason, "date": date.today().isoformat()}


def edit_of(job: Job) -> tuple[tuple[Scene, dict], dict]:
    """Return the edit, and the cells of a row that describe it. test-3.png is the fourth edit of the test split."""
    split, _, index = Path(job.image).stem.partition("-")
    scene, change = edit = edits_of(split)[int(index)]
    about = {"split": split, "edit": int(index), "kind": next(iter(change)), "from": scene.caption(), "to": job.text}
    return edit, about | {"method": job.method, "training": job.seed}


def measure_job(job: Job, folder: Path, setup: Setup) -> dict:
    """Do one job, in a worker. Returns its row, and leaves a sheet of its pictures in the folder."""
    (scene, change), about = edit_of(job)
    copied = Path(setup.out).parent / COMMUNITY_COPY
    method = methods_by_name(copied if copied.is_file() else None)[job.method]
    method = replace(method, values=tuple(job.etas))
    row, drawn = measure_edit(method, the_model(), (scene, change), the_reader(), job.seeds, job.seed)
    sheet = picture_sheet(scene.render(), scene.edit(**change).render(), drawn)
    write_atomically(folder / PICTURE_SHEET, lambda temporary: sheet.save(temporary, format="PNG"))
    row |= about | versions_of(the_model(), the_reader()) | {"date": date.today().isoformat()}
    return {"row": row}


def picture_sheet(before: Image.Image, truth: Image.Image, drawn: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Draw a sheet: the input, the ground truth, and a picture for each value of the knob, in a line for each seed."""
    side, lines = before.width, min(SHEET_LINES, len(drawn[0]))
    sheet = Image.new("RGB", (side * (2 + len(drawn)), side * lines), "white")
    for line in range(lines):
        for column, picture in enumerate([before, truth, *(row[line] for row in drawn)]):
            sheet.paste(picture, (side * column, side * line))
    return sheet
