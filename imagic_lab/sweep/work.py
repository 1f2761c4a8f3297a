"""One job: claimed, done in a folder of its own, renamed when it is whole. All engines call `attempt`, nothing else.

In the folder of a sweep, `edits/NAME` is a finished edit, `edits/.NAME.part` one that is being made, and
`edits/.NAME.lock` is locked by the process that makes it. The lock is the kernel's: it falls with the process. The
finished folder appears by one rename, so there is either a whole edit or none.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from imagic_lab.sweep.table import Job
from imagic_lib.edit import ImagicEdit, run_edit, versions
from imagic_lib.folder import DIFFERENCE_FILE, LORA_FILE, claim, picture_name
from imagic_lib.models import load_pipeline
from imagic_lib.pictures import load_image, psnr, rmse
from imagic_lib.training import loop
from imagic_lib.training.checkpoints import write_atomically
from imagic_lib.training.strategies import Strategy

FACTS = "job.json"  # in a finished edit: what was asked for, and a row for each picture
DONE, FAILED, CLAIMED = "done", "failed", "claimed"  # what comes of an attempt; CLAIMED: another process is at it
EDIT = "imagic_lab.sweep.work:edit"
TRIES = 3  # so often a job may lose its worker in one run before it counts as one that kills workers


@dataclass(frozen=True)
class Setup:
    """What every worker is told, wherever it runs. out: the folder of the sweep, on a disk that all workers see."""

    out: str
    run: str  # of this start: a job that failed in it is not tried again
    cores: int = 2  # threads of one worker; the last digits on a CPU depend on it
    keep: bool = False  # the trained weights too, so that `show` can draw from the edit
    work: str = EDIT  # "module:function" that does a job in a folder: function(job, folder, setup) -> facts
    device: str | None = None  # as for `load_pipeline`

    def folder(self, job: Job) -> Path:
        return Path(self.out) / "edits" / job.name

    def error_file(self, job: Job) -> Path:
        return Path(self.out) / "errors" / f"{job.name}.json"


def attempt(job: Job, setup: Setup) -> str:
    """Do a job, unless it is done, or another process is at it, or it failed in this run. Returns DONE, FAILED or
    CLAIMED. An exception of the job becomes a file in errors/, and so does a job whose workers were lost `TRIES` times
    in this run; what is none of the job's, a full disk say, is raised.
    """
    folder = setup.folder(job)
    if folder.exists():
        lock_of(folder).unlink(missing_ok=True)  # left by a worker that was killed just after the rename
        return DONE
    with claimed(folder) as lock:
        if folder.exists():
            return DONE
        if lock is None:
            return CLAIMED
        if failed_before(job, setup):
            return FAILED
        if one_more_try(lock, setup.run) > TRIES:
            note_failure(job, setup, f"its worker was lost {TRIES} times: killed, or out of the computer's memory")
            return FAILED
        try:
            finish_in(folder.with_name(f".{job.name}.part"), job, setup)
        except Exception as error:
            note_failure(job, setup, error)
            return FAILED
        setup.error_file(job).unlink(missing_ok=True)
    return DONE


def lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def claimed(folder: Path):
    """Holds the lock of a job; inside, the descriptor of its file, or None if another process holds it. Raises
    ValueError where the disk knows no locks."""
    import fcntl  # not on Windows

    path = lock_of(folder)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    mine = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the one before may have deleted the file between our two calls: then the lock is of nothing
            mine = path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino
        except BlockingIOError:
            pass
        except OSError as error:
            raise ValueError(
                f"{folder.parent} is on a disk without locks ({error.strerror}): choose another"
            ) from error
        yield descriptor if mine else None
        if mine:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def one_more_try(lock: int, run: str) -> int:
    """How often the job was begun in this run, now included: the file of a lock outlives a worker that is lost."""
    before = os.pread(lock, 100, 0).decode("ascii", "replace").split()
    count = int(before[1]) + 1 if len(before) == 2 and before[0] == run and before[1].isdigit() else 1
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{run} {count}\n".encode(), 0)
    return count


def finish_in(part: Path, job: Job, setup: Setup) -> None:
    """Do the job in the folder `part`, or go on in it, and rename it. If what a kill left there can't be used, it is
    made once more from nothing."""
    function = named(setup.work)
    begun = part.is_dir()
    if not (part / FACTS).is_file():
        try:
            facts = done_in(part, function, job, setup)
        except ValueError:
            if not begun:
                raise
            shutil.rmtree(part)
            facts = done_in(part, function, job, setup)
        facts = {"settings": job.settings | {"image": job.image, "model": job.model}, **facts}
        write_json(part / FACTS, facts)
    if not setup.keep:
        # edit.json stands for a whole edit, so it goes first
        for name in ("edit.json", DIFFERENCE_FILE, LORA_FILE):
            for path in part.glob(f"{name}*"):
                path.unlink()
    settle(part)
    try:
        os.rename(part, part.with_name(job.name))
    except OSError:
        if not part.with_name(job.name).exists():
            raise
        shutil.rmtree(part)  # a network disk showed late that another worker had finished it
    sync(part.parent)


def done_in(part: Path, function: Callable, job: Job, setup: Setup) -> dict:
    """What the work function returns, with the time it took and the notes it gave, each once."""
    part.mkdir(exist_ok=True)
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as notes, quiet():
        warnings.simplefilter("always", UserWarning)
        facts = function(job, part, setup)
    said = dict.fromkeys(str(note.message) for note in notes if issubclass(note.category, UserWarning))
    return {**facts, "notes": list(said), "seconds": round(time.monotonic() - began, 2), "versions": versions()}


class NoBar(loop.tqdm):
    """A progress bar that is not shown."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings | {"disable": True})


@contextmanager
def quiet():
    """The bars of the stages are not shown inside: thousands of them would push away the sweep's own."""
    shown, loop.tqdm = loop.tqdm, NoBar
    try:
        yield
    finally:
        loop.tqdm = shown


def named(work: str) -> Callable:
    module, _, function = work.partition(":")
    return getattr(importlib.import_module(module), function)


def settle(folder: Path) -> None:
    """Wait until all of a folder is on the disk: a rename must not be there before what it names."""
    for path in folder.iterdir():
        if path.is_file():
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks can't, for a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: dict) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    write_atomically(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# -- jobs that fail


def note_failure(job: Job, setup: Setup, error: BaseException | str) -> None:
    """Write down why a job failed; `report` makes errors.csv of it."""
    said = error if isinstance(error, str) else (str(error).strip() or type(error).__name__)
    trace = [] if isinstance(error, str) else traceback.format_exception(error)[-6:]
    write_json(setup.error_file(job), {"run": setup.run, "error": said[:2000], "trace": "".join(trace)[-6000:]})


def failed_before(job: Job, setup: Setup) -> bool:
    """Did this job fail in this run? A new start tries it again: what was wrong may be right by now."""
    try:
        return read_json(setup.error_file(job))["run"] == setup.run
    except (OSError, ValueError, KeyError):
        return False


# -- the work itself


def edit(job: Job, folder: Path, setup: Setup) -> dict:
    """Train one edit and draw its pictures. Returns a row for each picture: η, seed, file, RMSE to the input
    (0 to 1), and PSNR in dB to what the VAE makes of the input."""
    pipe = pipeline(job.model, setup.device)
    strategy = strategy_for(pipe, job.method)
    made = run_edit(
        pipe,
        load_image(job.image, pipe),
        job.text,
        embedding_steps=job.embedding_steps,
        unet_steps=job.unet_steps,
        method=job.method,
        strategy=strategy,
        seed=job.seed,
        folder=folder,
    )
    history = {"embedding": made.embedding_history.to_dict(), "unet": made.unet_history.to_dict()}
    return {"pictures": draw(made, job, folder), "history": history, "strategy": strategy and strategy.name}


def draw(made: ImagicEdit, job: Job, folder: Path) -> list[dict]:
    """Draw and measure the pictures of a job and write them into its folder, named as `edit` on the command line
    does."""
    name = {(eta, seed): picture_name(eta, seed, job.scale) for seed in job.seeds for eta in job.etas}
    claim(folder, name.values())
    drawn, near, rows = made.pictures(job.etas, job.seeds, scale=job.scale), made.reconstruction, []
    for seed, pictures in zip(job.seeds, drawn, strict=True):
        for eta, picture in zip(job.etas, pictures, strict=True):
            file = name[eta, seed]
            write_atomically(folder / file, lambda tmp, picture=picture: picture.save(tmp, format="PNG"))
            distance, kept = rmse(picture, made.input_picture), psnr(picture, near)
            rows.append(
                {"eta": eta, "seed": seed, "file": file, "distance": round(distance, 4), "psnr": round(kept, 2)}
            )
    return rows


@lru_cache(maxsize=1)
def pipeline(model: str, device: str | None) -> StableDiffusionPipeline:
    """The model, loaded once for as long as the jobs ask for the same."""
    return load_pipeline(model, None if model == "tiny" else device)


@lru_cache(maxsize=4)
def strategy_for(pipe: StableDiffusionPipeline, method: str) -> Strategy | None:
    """On a GPU the first way of training by this method that fits into its memory; on a CPU the plain one. Raises
    MemoryError if none fits."""
    if pipe.unet.device.type != "cuda":
        return None
    from imagic_lib.planning.memory import plan, usable

    found = plan(pipe)
    fitting = [row.strategy for row in found.rows if usable(row.strategy) and found.fits(row)]
    if method not in [strategy.method for strategy in fitting]:
        raise MemoryError(f"the method {method!r} does not fit into this GPU: {found.advice}")
    return next(strategy for strategy in fitting if strategy.method == method)


# -- a worker


def begin_worker(setup: Setup) -> None:
    """What a process does before its first job. Raises ValueError if it doesn't see the folder of the sweep."""
    torch.set_num_threads(setup.cores)
    if not (Path(setup.out) / "edits").is_dir():
        raise ValueError(f"a worker does not see the folder {setup.out}: it must lie on a disk that all machines share")


def work_through(
    jobs: Iterable[Job], setup: Setup, note: Callable[[Job, str], None] = lambda job, state: None, pause: float = 1.0
) -> None:
    """Do what is not done of the jobs, in their order, beside any number of other workers: each takes the next one
    that is free. note: called with each job and what came of it. pause: seconds between two looks at jobs that others
    hold; they are waited for, because their workers may die."""
    left = list(jobs)
    while left:
        held = []
        for job in left:
            state = attempt(job, setup)
            if state == CLAIMED:
                held.append(job)
            else:
                note(job, state)
        left = held
        if left:
            time.sleep(pause)


def job_from(values: dict) -> Job:
    """The inverse of `dataclasses.asdict`, after a journey as plain values."""
    return Job(**values | {"seeds": tuple(values["seeds"]), "etas": tuple(values["etas"])})


def plain(jobs: Iterable[Job]) -> list[dict]:
    return [asdict(job) for job in jobs]
