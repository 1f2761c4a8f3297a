"""All edits in one folder, finished or not, for the shelf of the studio."""

from pathlib import Path
from typing import NamedTuple

from imagic_lib.folder import LEDGER, read_facts, read_identity


class Kept(NamedTuple):
    """An edit on the shelf. state: "begun" or "finished", as in `folder.state_of`."""

    folder: Path
    state: str
    facts: dict  # its identity: text, settings, input, base_model; of a finished one the whole edit.json
    time: float  # of its last change, as `time.time`


def edits_in(place: str | Path) -> list[Kept]:
    """The edits in the folders of a place, the newest first; damaged ones and other things are skipped."""
    found = []
    for folder in Path(place).iterdir() if Path(place).is_dir() else ():
        for name, state, read in (("edit.json", "finished", read_facts), (LEDGER, "begun", read_identity)):
            try:
                if (folder / name).is_file():
                    found.append(Kept(folder, state, read(folder), (folder / name).stat().st_mtime))
                    break
            except (ValueError, OSError):
                break
    return sorted(found, key=lambda kept: kept.time, reverse=True)
