"""Work for sweeps that test the bookkeeping, not the edits: a picture of one colour, at once. The text says what else
happens."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
import time
import uuid
from pathlib import Path

from PIL import Image

from imagic_lab.sweep.table import Job, read_table
from imagic_lab.sweep.work import Setup

DRAW = "tests.lab.sweep.stub:draw"


def draw(job: Job, folder: Path, setup: Setup) -> dict:
    """A picture for each η and seed, whose colour is the job's name, and a mark that no second run would give."""
    if "bad" in job.text:
        raise ValueError(f"a bad job: {job.text}")
    if "deadly" in job.text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "waits" in job.text:  # for the test to let it go on, or to kill it
        while not (Path(setup.out) / "go").exists():
            time.sleep(0.02)
    pictures = []
    for seed in job.seeds:
        for eta in job.etas:
            file = f"eta-{eta:g}-seed-{seed}.png"
            color = hashlib.sha256(f"{job.name} {eta} {seed}".encode()).digest()[:3]
            Image.new("RGB", (16, 16), tuple(color)).save(folder / file)
            pictures.append({"eta": eta, "seed": seed, "file": file, "distance": 0.5, "psnr": 20.0})
    return {"pictures": pictures, "mark": uuid.uuid4().hex, "worker": os.getpid()}


def one_at_a_time(job: Job, folder: Path, setup: Setup) -> dict:
    """The k-th edit waits for the file let-k, once k edits are finished: so the test knows when it can kill."""
    out = Path(setup.out)
    count = len(list(out.glob("edits/[0-9a-f]*")))
    while count and not (out / f"let-{count}").exists():
        time.sleep(0.02)
    return draw(job, folder, setup)


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


def marks(out: Path) -> dict[str, str]:
    """The mark of each finished job."""
    from imagic_lab.sweep.work import read_json

    return {p.parent.name: read_json(p)["mark"] for p in (out / "edits").glob("[0-9a-f]*/job.json")}


def pictures(out: Path) -> dict[str, bytes]:
    """Every finished picture's bytes, by its path in the sweep."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "edits").glob("[0-9a-f]*/eta-*.png"))}
