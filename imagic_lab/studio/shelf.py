"""The history of the studio, with a bin: all edits in one place, finished or not."""

import re
import shutil
from contextlib import nullcontext, suppress
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from imagic_lib.folder import INPUT_FILE, LEDGER, LOCK, LONGEST_NAME, locked, picture_name, state_and_facts
from imagic_lib.pictures import open_image

BIN = ".bin"  # a folder in the place, whose edits can be restored until it is emptied
PICTURE_FILE = re.compile(r"eta-(-?[\de.-]+?)(?:-scale-([\de.-]+))?-seed-(\d+)\.png")
Key = tuple[float, float, int]  # η, scale and seed of a picture in the gallery


class Kept(NamedTuple):
    """An edit on the shelf. state: "begun" or "finished"."""

    folder: Path
    state: str
    facts: dict  # its identity (text, settings, input, base_model); if finished, the whole edit.json
    time: float  # of its last change, as in `time.time`

    @property
    def cover(self) -> Image.Image | None:
        """Open the chosen picture or, failing that, the input; None if neither can be read."""
        for name in (chosen_name(self.facts), INPUT_FILE):
            with suppress(ValueError, OSError):
                return open_image(self.folder / name)
        return None


def edits_in(place: str | Path) -> list[Kept]:
    """Return the edits in the folders of a place, the newest first. Damaged ones and anything else are skipped."""
    found = []
    for folder in Path(place).iterdir() if Path(place).is_dir() else ():
        with suppress(ValueError, OSError):
            state, facts = state_and_facts(folder)
            if state != "new":
                time = (folder / ("edit.json" if state == "finished" else LEDGER)).stat().st_mtime
                found.append(Kept(folder, state, facts, time))
    return sorted(found, key=lambda kept: kept.time, reverse=True)


def at_work(folder: Path) -> bool:
    """Does another thread or process work on this edit?"""
    with suppress(ValueError), locked(folder) if (folder / LOCK).exists() else nullcontext():
        return False
    return True


def chosen_name(facts: dict) -> str:
    """Return the file name of the chosen picture, or the input's if the entry, which anyone can write, is invalid."""
    try:
        chosen = facts["chosen"]
        return picture_name(float(chosen["eta"]), int(chosen["seed"]), float(chosen["scale"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return INPUT_FILE


def key_of(name: str) -> Key | None:
    """Return the key of a picture from its file name (see `picture_name`), or None for any other file."""
    found = PICTURE_FILE.fullmatch(name)
    return (float(found[1]), float(found[2] or 1), int(found[3])) if found else None


def size_of(folder: Path) -> int:
    """Return the bytes on the disk, or 0 if there is no such folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def unused(path: Path) -> Path:
    """Return the first of path, path-2, path-3 … that does not exist."""
    others = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(found for found in chain([path], others) if not found.exists())


def renamed(folder: Path, name: str) -> Path:
    """Rename the folder. Raises ValueError for a name without a letter or digit, or one that is in use."""
    name = re.sub(r"[^\w ().,+-]+", "-", name).strip(" .-")[:LONGEST_NAME].strip()
    if not re.search(r"\w", name):
        raise ValueError("the name is empty: give one with letters or digits")
    if (target := folder.with_name(name)).exists() and target != folder:
        raise ValueError(f"there is an edit named {name!r} already: choose another name")
    return folder.rename(target)


def duplicated(folder: Path) -> Path:
    """Copy the folder, next to it."""
    return Path(shutil.copytree(folder, unused(folder.with_name(f"{folder.name}-copy"))))


def binned(folder: Path) -> Path:
    """Move the folder to the bin of its place."""
    (place := folder.parent / BIN).mkdir(exist_ok=True)
    return Path(shutil.move(folder, unused(place / folder.name)))


def restored(place: Path) -> Path:
    """Restore what was binned last. Raises ValueError if the bin is empty."""
    if not (found := sorted((place / BIN).glob("*"), key=lambda folder: folder.stat().st_ctime)):
        raise ValueError("the bin is empty")
    return Path(shutil.move(found[-1], unused(place / found[-1].name)))
