"""Run a whole sweep: check the table, claim the folder, run the engine, write the report."""

import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from imagic_lab.sweep.engines import run_local, run_ray, run_slurm
from imagic_lab.sweep.report import write_report
from imagic_lab.sweep.table import Job, read_table
from imagic_lab.sweep.work import EDIT_WORK, Setup, set_damaged_aside, settled_jobs
from imagic_lib.files import Stored, read_json, write_json
from imagic_lib.folder import state_of

ENGINES = {"local": run_local, "ray": run_ray, "slurm": run_slurm}
MARK = "sweep.json"  # marks the folder of a sweep, and says which work it does


class StoredSweep(Stored):
    work: str


class Summary(NamedTuple):
    """The numbers of jobs that are done, that failed since this start, and that are open because workers were lost."""

    done: int
    failed: int
    left: int


def sweep(table: str | Path | Sequence[Job], out: str | Path, engine: str = "local", *, cores: int = 2,
          keep: bool = False, work: str = EDIT_WORK, **options) -> Summary:  # fmt: skip
    """Make all edits of a table (`read_table`) in the folder `out`. After a stop or a kill, the same call continues.

    engine: "local", "ray" (option: address) or "slurm" (options: workers, cluster, options); see `engines`. cores:
    threads of a worker on a CPU. With the same number, and on the same kind of machine, all engines give the same bits.
    keep: also keep the trained weights. work: "module:function" that does a job. An edit that fails becomes a row of
    errors.csv, and the next start tries it again. Raises `Faults` for a table with faults, and ValueError for a folder
    with other files or for an engine that isn't installed.
    """
    if cores < 1:
        raise ValueError(f"cores is {cores}: it must be 1 or more")
    jobs = read_table(table) if isinstance(table, (str, Path)) else list(table)
    setup = Setup(str(take(Path(out).absolute(), work)), uuid.uuid4().hex, cores, keep, work)
    models = list(dict.fromkeys(job.model for job in jobs))  # one by one, so that a worker loads each only once
    set_damaged_aside(settled_jobs(jobs, setup)[0], setup)
    done = set(settled_jobs(jobs, setup)[0])
    to_do = sorted((job for job in jobs if job not in done), key=lambda job: models.index(job.model))
    bar = tqdm(total=len(jobs), initial=len(done), desc="sweep", unit="edit", smoothing=0)
    try:
        if to_do:
            ENGINES[engine](to_do, setup, partial(show_on, bar, jobs, setup), **options)
    finally:
        show_on(bar, jobs, setup)
        bar.close()
        done, failed = write_report(Path(setup.out), jobs, setup)
    return Summary(done, failed, len(jobs) - done - failed)


def take(out: Path, work: str) -> Path:
    """Claim the folder of a sweep, and create it if necessary. Raises ValueError, and touches nothing, if the folder
    has files of the user's or a sweep of other work."""
    if not (out / MARK).is_file():
        state_of(out, {"text": None})  # raises if anything is there
        write_json(out / MARK, {"work": work})
    elif (other := read_json(out / MARK, StoredSweep)["work"]) != work:
        raise ValueError(f"the folder {out} holds a sweep of other work, {other!r}: choose another folder")
    for name in ("edits", "errors"):
        (out / name).mkdir(exist_ok=True)
    return out


def show_on(bar: tqdm, jobs: Sequence[Job], setup: Setup) -> int:
    """Show on the bar how many jobs are done, and return how many are open. A failed job is taken off the bar, because
    its time says nothing about the others'."""
    done, failed = settled_jobs(jobs, setup)
    bar.total = len(jobs) - len(failed)
    bar.update(len(done) - bar.n)
    if failed:
        bar.set_postfix(failed=len(failed))
    return bar.total - bar.n
