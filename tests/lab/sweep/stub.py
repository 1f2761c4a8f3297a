"""Work for sweeps that test the bookkeeping, not the edits: a picture of one colour, at once. The text says what else
happens."""

import csv
import hashlib
import json
import os
import signal
import time
import uuid
from pathlib import Path

from PIL import Image

from imagic_lab.sweep import Job, read_table
from imagic_lab.sweep.work import Setup, edit_and_draw

DRAW, SLOW_EDIT = "tests.lab.sweep.stub:draw", "tests.lab.sweep.stub:slow_edit"


def draw(job: Job, folder: Path, setup: Setup) -> dict:
    """A picture for each η and seed, whose colour is the job's name, and a mark that no second run would give."""
    if "bad" in job.text:
        raise ValueError(f"a bad job: {job.text}")
    if "deadly" in job.text or ("mortal" in job.text and not died_before(job, setup)):
        os.kill(os.getpid(), signal.SIGKILL)
    if "waits" in job.text:
        wait_for(Path(setup.out) / "go")
    pictures = []
    for seed in job.seeds:
        for eta in job.etas:
            file = f"eta-{eta:g}-seed-{seed}.png"
            color = hashlib.sha256(f"{job.name} {eta} {seed}".encode()).digest()[:3]
            Image.new("RGB", (16, 16), tuple(color)).save(folder / file)
            pictures.append({"eta": eta, "seed": seed, "file": file, "distance": 0.5, "psnr": 20.0})
    return {"pictures": pictures, "mark": uuid.uuid4().hex, "worker": os.getpid()}


def died_before(job: Job, setup: Setup) -> bool:
    """False the first time, true ever after."""
    try:
        (Path(setup.out) / f"died-{job.name}").touch(exist_ok=False)
        return False
    except FileExistsError:
        return True


def one_at_a_time(job: Job, folder: Path, setup: Setup) -> dict:
    """The k-th edit waits for the file let-k, once k edits are finished: so the test knows when it can kill."""
    out = Path(setup.out)
    if count := len(finished(out)):
        wait_for(out / f"let-{count}")
    return draw(job, folder, setup)


def slow_edit(job: Job, folder: Path, setup: Setup) -> dict:
    """A real edit. It says which process it is in, and waits until the test lets it go on, or kills it."""
    (Path(setup.out) / f"pid-{os.getpid()}").touch()
    wait_for(Path(setup.out) / "go")
    return edit_and_draw(job, folder, setup)


def wait_for(file: Path, seconds: float = 100.0) -> None:
    end = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{file} did not come")
        time.sleep(0.02)


def write_table(folder: Path, texts: list[str], **columns: str) -> Path:
    """A table in the folder, with a picture; columns are the same in all rows."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), "tan").save(folder / "in.png")
    with (folder / "jobs.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "text", *columns])
        rows.writerows(["in.png", text, *columns.values()] for text in texts)
    return folder / "jobs.csv"


def jobs_in(folder: Path, texts: list[str], etas: str = "0.5") -> list[Job]:
    return read_table(write_table(folder, texts, etas=etas))


def finished(out: Path) -> list[Path]:
    return sorted((out / "edits").glob("[0-9a-f]*"))


def marks(out: Path) -> dict[str, str]:
    """The mark of each finished job."""
    return {folder.name: json.loads((folder / "job.json").read_text("utf-8"))["mark"] for folder in finished(out)}


def pictures(out: Path) -> dict[str, bytes]:
    """Every finished picture's bytes, by its path in the sweep."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "edits").glob("[0-9a-f]*/eta-*.png"))}


def errors_of(out: Path) -> list[str]:
    return sorted(json.loads(path.read_text("utf-8"))["error"] for path in (out / "errors").glob("*.json"))
