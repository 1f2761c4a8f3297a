"""One job: lock it, do it in a hidden folder, rename that when it is whole. All engines' workers use `work_through`.

In the folder of a sweep, `edits/NAME` is a finished edit, `edits/.NAME.part` an unfinished one, and `edits/.NAME.lock`
is locked by the process that works on it. The kernel unlocks it when that process ends, even by a kill. The finished
folder appears by one rename, so it is either complete or missing. `.NAME.part/.tries` has one byte for each try.
"""

import os
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, product
from pathlib import Path
from pkgutil import resolve_name
from unittest.mock import patch

import filelock
import torch
from diffusers import StableDiffusionPipeline
from pydantic import Field
from tqdm import tqdm

from imagic_lab.sweep.table import Job
from imagic_lib.edit import run_edit
from imagic_lib.files import Finite, Stored, Whole, read_json, write_json
from imagic_lib.folder import DIFFERENCE_FILE, LOCK, LORA_FILE, picture_name
from imagic_lib.models import load_pipeline
from imagic_lib.pictures import load_image, psnr, rmse, save_picture
from imagic_lib.planning.memory import Plan, plan
from imagic_lib.storage import versions
from imagic_lib.training.loop import Run

FACTS = "job.json"  # in a finished edit: its settings, and a row for each picture
DONE, FAILED, CLAIMED = "done", "failed", "claimed"  # results of an attempt; if CLAIMED, another process has the job
EDIT_WORK = "imagic_lab.sweep.work:edit_and_draw"
LOOK = 0.5  # seconds between two looks at what other processes have done
TRIES = 3  # after this many lost workers, we assume that the job kills them
HIGHEST_PSNR = 100.0  # dB, for identical pictures


class StoredPicture(Stored):
    eta: Finite
    seed: Whole
    file: str = Field(pattern=r"^[\w+-][\w.+-]*$", max_length=250)  # in the folder of the edit
    distance: Finite
    psnr: Finite


class StoredFacts(Stored):
    pictures: list[StoredPicture] | None = None
    notes: list[str] | None = None


class StoredError(Stored):
    run: str
    error: str


@dataclass(frozen=True)
class Setup:
    """The settings that every worker gets, on any machine. out: folder of the sweep, on a disk that all workers see."""

    out: str
    run: str  # identifies this start, in which a failed job is not tried again
    cores: int = 2  # threads of one worker; the last digits on a CPU depend on it
    keep: bool = False  # also keep the trained weights, so that `show` can draw from the edit
    work: str = EDIT_WORK  # "module:function" that does a job: function(job, folder, setup) -> facts

    def folder(self, job: Job) -> Path:
        return Path(self.out) / "edits" / job.name

    def hidden(self, job: Job, kind: str) -> Path:
        return Path(self.out) / "edits" / f".{job.name}.{kind}"

    def error_file(self, job: Job) -> Path:
        return Path(self.out) / "errors" / f"{job.name}.json"


def error_of(job: Job, setup: Setup) -> str | None:
    """Return why a job failed since this start, or None if it did not. The next start tries it again."""
    with suppress(OSError, ValueError):
        found = read_json(setup.error_file(job), StoredError)
        return found["error"] if found["run"] == setup.run else None


def settled_jobs(jobs: Sequence[Job], setup: Setup) -> tuple[list[Job], list[tuple[Job, str]]]:
    """Read from the sweep's folder which jobs are done, and which have failed since this start, with their errors."""
    edits, errors = (set(os.listdir(Path(setup.out) / name)) for name in ("edits", "errors"))
    maybe = [job for job in jobs if f"{job.name}.json" in errors and job.name not in edits]
    return [job for job in jobs if job.name in edits], [(job, e) for job in maybe if (e := error_of(job, setup))]


def work_through(jobs: Sequence[Job], setup: Setup, look: Callable[[], object] = lambda: None) -> None:
    """Do every job that is not done yet, in order, alongside any number of other workers.

    It also waits for jobs that other workers have claimed, because workers can die. look: called now and then. Raises
    ValueError for a folder that this worker does not see, or that has no locks.
    """
    check_folder(Path(setup.out))
    torch.set_num_threads(setup.cores)
    looked = time.monotonic()
    while jobs:
        held = []
        for job in jobs:
            if attempt(job, setup) == CLAIMED:
                held.append(job)
            if time.monotonic() > looked + LOOK:
                look()
                looked = time.monotonic()
        if jobs := held:
            time.sleep(LOOK)


def check_folder(out: Path) -> None:
    if not (out / "edits").is_dir():
        raise ValueError(f"a worker does not see the folder {out}: it must be on a disk that all machines share")
    try:
        with filelock.FileLock(out / ".lock") as lock:
            if isinstance(lock, filelock.SoftFileLock):  # filelock's substitute, which would outlive a killed process
                raise NotImplementedError("no flock")
    except (OSError, NotImplementedError) as error:
        raise ValueError(f"the disk of {out} has no file locks ({error}): choose a folder on another one") from error


def attempt(job: Job, setup: Setup) -> str:
    """Do a job, unless it is done, another process has it, or it has failed since this start. Returns DONE, FAILED or
    CLAIMED. An exception in the job becomes a file in errors/."""
    if setup.folder(job).exists():
        return DONE
    for kind in ("lock", "part"):
        if (planted := setup.hidden(job, kind)).is_symlink():
            planted.unlink()
    try:
        with filelock.FileLock(setup.hidden(job, "lock"), timeout=0):
            return attempt_alone(job, setup)
    except filelock.Timeout:
        return CLAIMED


def attempt_alone(job: Job, setup: Setup) -> str:
    """Attempt a job in the process that has its lock. A job that has lost `TRIES` workers fails."""
    part = setup.hidden(job, "part")
    if setup.folder(job).exists():
        return DONE
    if error_of(job, setup):
        return FAILED
    part.mkdir(exist_ok=True)
    tries = part / ".tries"
    try:
        if tries.exists() and tries.stat().st_size >= TRIES:
            raise ChildProcessError(f"its worker was lost {TRIES} times: killed, or out of the computer's memory")
        with tries.open("ab") as file:
            file.write(b"x")
        finish_in(part, job, setup)
    except Exception as error:
        said, trace = str(error).strip() or type(error).__name__, "".join(traceback.format_exception(error)[-6:])
        write_json(setup.error_file(job), {"run": setup.run, "error": said[:2000], "trace": trace[-6000:]})
        return FAILED
    finally:
        tries.unlink(missing_ok=True)  # so that it stays only after a kill
    for path in (setup.error_file(job), setup.hidden(job, "lock")):
        path.unlink(missing_ok=True)
    return DONE


def finish_in(part: Path, job: Job, setup: Setup) -> None:
    """Do the job in the folder `part`, or continue it, and rename the folder once it is whole and on the disk."""
    try:
        read_results(part / FACTS)  # a kill can come between this file and the rename
    except (OSError, ValueError):
        settings = asdict(job) | {"image": public(job.image), "model": public(job.model)}
        write_json(part / FACTS, {"settings": settings, **facts_of(job, part, setup)})
    for name in (".tries", LOCK, *(() if setup.keep else ("edit.json", DIFFERENCE_FILE, LORA_FILE))):
        (part / name).unlink(missing_ok=True)
    for path in (*part.iterdir(), part):
        if path.is_dir() or path.is_file():
            wait_for_disk(path)
    try:
        part.rename(setup.folder(job))
    except OSError:
        if not setup.folder(job).exists():
            raise
        shutil.rmtree(part)  # another worker had finished it, which a network disk has shown late
    wait_for_disk(part.parent)


def public(path: str) -> str:
    """Return a path without its user's folders. Names of other things stay as they are."""
    return Path(path).name if Path(path).is_absolute() else path


def wait_for_disk(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk, as it must be before a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    with suppress(OSError):  # some network disks can't do this for a folder
        os.fsync(descriptor)
    os.close(descriptor)


def facts_of(job: Job, part: Path, setup: Setup) -> dict:
    """Return the facts from the work function, with its seconds and its notes."""
    work, began = resolve_name(setup.work), time.monotonic()
    no_bars = patch.object(tqdm, "__init__", begin_without_bar)  # thousands would hide the sweep's
    with warnings.catch_warnings(record=True) as notes, no_bars:
        warnings.simplefilter("always", UserWarning)
        facts = work(job, part, setup)
    said = dict.fromkeys(str(note.message) for note in notes if issubclass(note.category, UserWarning))
    return {**facts, "notes": list(said), "seconds": round(time.monotonic() - began, 2), "versions": versions()}


def begin_without_bar(bar: tqdm, *arguments, _begin=tqdm.__init__, **options) -> None:
    """Start a progress bar of any kind, switched off."""
    _begin(bar, *arguments, **options | {"disable": True})


def read_results(path: Path) -> dict:
    """Read the facts of a finished edit. Raises FileNotFoundError if they are missing, ValueError if damaged."""
    return read_json(path, StoredFacts)


def set_damaged_aside(jobs: Sequence[Job], setup: Setup) -> None:
    """Rename finished edits whose facts are unreadable, and links with such names, so that the jobs are done again."""
    for job in jobs:
        folder = setup.folder(job)
        try:
            if os.path.lexists(folder) and not folder.is_symlink():
                read_results(folder / FACTS)
                continue
        except (OSError, ValueError):
            pass
        with suppress(FileNotFoundError):
            folder.rename(setup.hidden(job, f"damaged-{time.time_ns()}"))


@lru_cache(maxsize=1)
def model_and_plan(model: str) -> tuple[StableDiffusionPipeline, Plan | None]:
    """Load a model and, on a GPU, plan the ways of training that fit into it. Both are kept while jobs need the same
    model; the previous one is dropped first."""
    model_and_plan.cache_clear()
    pipe = load_pipeline(model)
    return pipe, plan(pipe) if pipe.unet.device.type == "cuda" else None


def edit_and_draw(job: Job, folder: Path, setup: Setup) -> dict:
    """Train one edit and draw its pictures, as `edit` on the command line does; on a GPU, in the method's first way
    that fits. Returns a row for each picture: η, seed, file, RMSE to the input (0 to 1), and PSNR in dB to the VAE's
    reconstruction of the input. Raises MemoryError if no way fits."""
    pipe, found = model_and_plan(job.model)
    way = next(iter(found.fitting(job.method)), None) if found else None
    if found and not way:
        raise MemoryError(f"the method {job.method!r} does not fit into this GPU: {found.advice}")
    steps = {"embedding_steps": job.embedding_steps, "unet_steps": job.unet_steps}
    how = {"method": job.method, "seed": job.seed, "folder": folder, "run": Run(strategy=way and way.strategy)}
    edit = run_edit(pipe, load_image(job.image, pipe), job.text, **steps, **how)
    names = {(seed, eta): picture_name(eta, seed, job.scale) for seed, eta in product(job.seeds, job.etas)}
    drawn, near, rows = edit.pictures(job.etas, job.seeds, scale=job.scale), edit.reconstruction, []
    for ((seed, eta), file), picture in zip(names.items(), chain(*drawn), strict=True):
        save_picture(folder / file, picture)
        db = min(psnr(picture, near), HIGHEST_PSNR)
        measured = {"distance": round(rmse(picture, edit.input_picture), 4), "psnr": round(db, 2)}
        rows.append({"eta": eta, "seed": seed, "file": file, **measured})
    history = {"embedding": asdict(edit.embedding_history), "unet": asdict(edit.unet_history)}
    return {"pictures": rows, "history": history, "strategy": way and way.name}
