"""All edits in one place, finished or not: the history of the studio, with its bin."""

import re
import shutil
from contextlib import nullcontext, suppress
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from imagic_lib.folder import INPUT_FILE, LEDGER, LOCK, LONGEST_NAME, locked, picture_name, state_and_facts
from imagic_lib.pictures import open_image

BIN = ".bin"  # a folder in the place; its edits can come back until it is emptied
PICTURE_FILE = re.compile(r"eta-(-?[\de.-]+?)(?:-scale-([\de.-]+))?-seed-(\d+)\.png")
Key = tuple[float, float, int]  # η, scale and seed of a picture in the gallery


class Kept(NamedTuple):
    """An edit on the shelf. state: "begun" or "finished"."""

    folder: Path
    state: str
    facts: dict  # its identity: text, settings, input, base_model; of a finished one the whole edit.json
    time: float  # of its last change, as `time.time`

    @property
    def cover(self) -> Image.Image | None:
        """The chosen picture, or else the input; None if neither can be read."""
        for name in (chosen_name(self.facts), INPUT_FILE):
            with suppress(ValueError, OSError):
                return open_image(self.folder / name)
        return None


def edits_in(place: str | Path) -> list[Kept]:
    """The edits in the folders of a place, the newest first; damaged ones and other things are skipped."""
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
    """The file of the picture that the edit's maker chose, or the input's: anyone can have written the entry."""
    try:
        chosen = facts["chosen"]
        return picture_name(float(chosen["eta"]), int(chosen["seed"]), float(chosen["scale"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return INPUT_FILE


def key_of(name: str) -> Key | None:
    """The key of a picture, from a file name by `picture_name`; None for any other file."""
    found = PICTURE_FILE.fullmatch(name)
    return (float(found[1]), float(found[2] or 1), int(found[3])) if found else None


def size_of(folder: Path) -> int:
    """Bytes on the disk; 0 if there is no such folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def unused(path: Path) -> Path:
    """The path, or path-2, path-3 …: the first that does not exist."""
    others = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(found for found in chain([path], others) if not found.exists())


def renamed(folder: Path, name: str) -> Path:
    """The folder under another name. Raises ValueError for a name without a letter or digit, or one that is used."""
    name = re.sub(r"[^\w ().,+-]+", "-", name).strip(" .-")[:LONGEST_NAME].strip()
    if not re.search(r"\w", name):
        raise ValueError("the name is empty: give one with letters or digits")
    if (target := folder.with_name(name)).exists() and target != folder:
        raise ValueError(f"there is an edit named {name!r} already: choose another name")
    return folder.rename(target)


def duplicated(folder: Path) -> Path:
    """A copy next to the folder."""
    return Path(shutil.copytree(folder, unused(folder.with_name(f"{folder.name}-copy"))))


def binned(folder: Path) -> Path:
    """Move the folder to the bin of its place."""
    (place := folder.parent / BIN).mkdir(exist_ok=True)
    return Path(shutil.move(folder, unused(place / folder.name)))


def restored(place: Path) -> Path:
    """Bring back what came into the bin last. Raises ValueError if it is empty."""
    if not (found := sorted((place / BIN).glob("*"), key=lambda folder: folder.stat().st_ctime)):
        raise ValueError("the bin is empty")
    return Path(shutil.move(found[-1], unused(place / found[-1].name)))
