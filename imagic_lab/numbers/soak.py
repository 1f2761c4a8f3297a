"""Make edits under bad luck: random kills, full disks, two processes in one folder, damaged folders. Is anything lost?

python -m imagic_lab.numbers.soak [MINUTES]     # default 30; prints its counts; the exit code is 1 if anything was lost
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import imagic_lib as imagic
from imagic_lab.numbers.report import command_line
from imagic_lib.edit import ImagicEdit, run_edit
from imagic_lib.models import load_pipeline

TEXT, STEPS = "a brown dog jumping on the grass", {"embedding_steps": 2, "unet_steps": 3}
MINE = "thesis.txt"  # a file of the user's, next to the edits; links lead to it
WORKER = "from imagic_lab.numbers.soak import work; import sys; work(*sys.argv[1:])"


def work(folder: str, method: str, room: str = "0") -> None:
    """Make one edit, with a checkpoint after every step, in this process. room: the bytes that a file may have."""
    from imagic_lib.training import checkpoint

    checkpoint.SAVE_AFTER, checkpoint.SAVING_SHARE = 0.0, math.inf
    if int(room):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), resource.RLIM_INFINITY))
    pipe = load_pipeline("tiny")
    image = imagic.load_image(imagic.DATA / "images" / "dog-sitting.png", pipe)
    try:
        run_edit(pipe, image, TEXT, **STEPS, method=method, folder=folder)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(2)


def start(folder: Path, method: str, room: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", "-c", WORKER, str(folder), method, str(room)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen, counts: Counter, what: str) -> None:
    """Wait for a process, and count how it ended. A traceback is a fault."""
    said, trace = process.communicate()
    kind = {0: "done", 2: "refused in a sentence", -signal.SIGKILL: "killed"}.get(process.returncode, "TRACEBACK")
    if kind == "refused in a sentence" and len(said.strip().splitlines()) != 1:
        kind = "REFUSED IN MANY LINES"
    counts[f"{what}: {kind}"] += 1
    if kind.isupper():
        print(said, trace[-2000:], file=sys.stderr)


def damage(folder: Path, luck: random.Random) -> None:
    """Damage one file in the folder: cut it, change a byte, replace it by a link, or remove it."""
    path = luck.choice(sorted(path for path in folder.iterdir() if path.is_file()) or [folder / "edit.json"])
    content, how = path.read_bytes() if path.is_file() else b"", luck.randrange(4)
    path.unlink(missing_ok=True)
    if how == 0:
        path.write_bytes(content[: luck.randrange(max(len(content), 1))])
    elif how == 1 and content:
        at = luck.randrange(min(len(content), 2000))
        path.write_bytes(content[:at] + bytes([luck.randrange(256)]) + content[at + 1 :])
    elif how == 2:
        path.symlink_to(folder.parent / MINE)


def tuned_weights(folder: Path, pipe) -> dict:
    return ImagicEdit.load(folder, pipe).tuned.unet.state_dict()


def bad_luck(place: Path, luck: random.Random, counts: Counter, expected: dict, pipe) -> None:
    """Make one edit, killed a few times, once with a full disk or alongside a second process; then damage it."""
    method, folder = luck.choice(["full", "lora"]), place / f"{counts['edits']}"
    counts["edits"] += 1
    for _ in range(luck.randrange(3)):
        process = start(folder, method)
        time.sleep(luck.uniform(2, 25))
        process.kill()
        ended(process, counts, "a kill")
    if luck.random() < 0.4:
        ended(start(folder, method, luck.randrange(100_000, 60_000_000)), counts, "a full disk")
    both = [start(folder, method) for _ in range(luck.choice([1, 2]))]
    for process in both:
        ended(process, counts, "two processes" if len(both) == 2 else "alone")
    found = tuned_weights(folder, pipe)
    same = found.keys() == expected[method].keys() and all((found[k] == v).all() for k, v in expected[method].items())
    counts["the same bits" if same else "OTHER BITS"] += 1
    left = {path.name for path in folder.iterdir() if path.name.startswith((".", "checkpoint"))}
    counts["LEFTOVERS" if left else "nothing left over"] += 1
    for _ in range(5):
        damage(copied := Path(shutil.copytree(folder, place / "damaged", symlinks=True)), luck)
        try:
            ImagicEdit.load(copied, pipe)
            counts["a damaged folder: opens"] += 1
        except (ValueError, FileNotFoundError) as error:
            counts["a damaged folder: refused" if "\n" not in str(error) else "MANY LINES"] += 1
        shutil.rmtree(copied)
    shutil.rmtree(folder)


def main() -> int:
    options = command_line(__doc__)
    options.add_argument("minutes", nargs="?", type=float, default=30.0)
    end = time.monotonic() + 60 * options.parse_args().minutes
    luck, counts, pipe = random.Random(0), Counter(), load_pipeline("tiny")
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers, because the last bits depend on the number of threads
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / MINE).write_text("a year of work")
        for method in ("full", "lora"):
            ended(start(place / method, method), counts, "undisturbed")
        expected = {method: tuned_weights(place / method, pipe) for method in ("full", "lora")}
        while time.monotonic() < end:
            bad_luck(place, luck, counts, expected, pipe)
        counts["THE USER'S FILE CHANGED"] += (place / MINE).read_text() != "a year of work"
    print(json.dumps({what: count for what, count in sorted(counts.items()) if count}, indent=1))
    return int(any(count for what, count in counts.items() if what.split(": ")[-1].isupper()))


if __name__ == "__main__":
    sys.exit(main())
