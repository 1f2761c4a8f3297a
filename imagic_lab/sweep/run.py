"""A whole sweep: the table checked, the folder taken, the engine run, the report written."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from imagic_lab.sweep.engines import run_local, run_ray, run_slurm
from imagic_lab.sweep.report import write_report
from imagic_lab.sweep.table import Job, read_table
from imagic_lab.sweep.work import DONE, EDIT, Setup, read_json, write_json
from imagic_lib.folder import SYSTEM

ENGINES = {"local": run_local, "ray": run_ray, "slurm": run_slurm}
MARK = "sweep.json"  # says that a folder is a sweep's, and of what work


@dataclass(frozen=True)
class Summary:
    """How many jobs of the table are finished, failed in this run, or are open because workers were lost."""

    done: int
    failed: int
    left: int


def sweep(
    table: str | Path | Sequence[Job],
    out: str | Path,
    engine: str = "local",
    *,
    cores: int = 2,
    keep: bool = False,
    work: str = EDIT,
    **options,
) -> Summary:
    """Do all edits of a table (`read_table`), in a folder of their own that goes on where it was.

    engine: "local", "ray" or "slurm"; options go to it (`engines`): devices; address; workers, cluster, options.
    cores: threads of a worker on a CPU; with the same number, and on the same kind of machine, all engines give the
    same bits. keep: the trained weights too. work: what a job is, "module:function". An edit that fails is a row of
    errors.csv, and is tried again at the next start. Stopped or killed, call it again. Raises `Faults` for a table with
    faults, and ValueError for a folder that is not a sweep's or an engine that isn't there.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown: choose {', '.join(ENGINES)}")
    if cores < 1:
        raise ValueError(f"cores is {cores}: it must be 1 or more")
    jobs = read_table(table) if isinstance(table, (str, Path)) else list(table)
    out = take(Path(out).absolute(), work)
    finished = {entry.name for entry in os.scandir(out / "edits")}
    models = {job.model: k for k, job in reversed(list(enumerate(jobs)))}
    # one model after the other: a worker loads each once
    to_do = sorted((job for job in jobs if job.name not in finished), key=lambda job: models[job.model])
    setup = Setup(str(out), uuid.uuid4().hex, cores, keep, work)
    bar = Bar(len(jobs), len(jobs) - len(to_do))
    try:
        if to_do:
            ENGINES[engine](to_do, setup, bar.note, **options)
    finally:
        bar.close()
        done, failed = write_report(out, jobs, setup)
    return Summary(done, failed, len(jobs) - done - failed)


def take(out: Path, work: str) -> Path:
    """The folder of a sweep, made if need be. Raises ValueError, and touches nothing, if it holds files of the user's
    or a sweep of other work."""
    if (out / MARK).is_file():
        if (other := read_json(out / MARK).get("work")) != work:
            raise ValueError(f"the folder {out} holds a sweep of other work, {other!r}: choose another folder")
    elif out.exists() and not out.is_dir():
        raise ValueError(f"{out} is no folder: choose another name")
    elif strangers := sorted(p.name for p in out.glob("*") if not (p.name.startswith(".") or p.name in SYSTEM)):
        raise ValueError(f"the folder {out} holds files of yours, such as {strangers[0]!r}: choose a new or empty one")
    else:
        write_json(out / MARK, {"work": work})
    for name in ("edits", "errors"):
        (out / name).mkdir(exist_ok=True)
    return out


class Bar:
    """The progress of a sweep. Its time left is that of the jobs that are really done in this run: what was finished
    before is no speed, and neither is a job that fails."""

    def __init__(self, total: int, finished: int):
        self.failed = 0
        self.bar = tqdm(total=total, initial=finished, desc="sweep", unit="edit", smoothing=0)

    def note(self, job: Job, state: str) -> None:
        if state == DONE:
            self.bar.update()
            return
        self.failed += 1
        self.bar.total -= 1
        self.bar.set_postfix(failed=self.failed)

    def close(self) -> None:
        self.bar.close()
