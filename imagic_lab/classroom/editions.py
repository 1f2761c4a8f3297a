"""Write two editions of the notebooks from the one set in notebooks/. This is `make editions`.

build/student/   without outputs, solutions and the lecturer's notes; the exercises are stubs that run as they are
build/teacher/   everything, with outputs, and nothing folded

A cell's tags say where it belongs. Cells tagged `solution` or `teacher` are for the lecturer, all others are for both.
The tests run the solutions after all other cells of a notebook (tests/notebook_run.py), and so they also run the
student's edition with its stubs.
"""

from __future__ import annotations

import re
from copy import deepcopy

import nbformat

from imagic_lab.classroom.build import BADGE, NOTEBOOKS, ROOT

BUILD = ROOT / "build"
LEFT_OUT = {"student": {"solution", "teacher"}, "teacher": set()}
OUTSIDE = re.compile(r"(\]\(|(?:src|href)=\")\.\./")  # a link to a file outside the folder of the notebooks


def edition(notebook: nbformat.NotebookNode, kind: str) -> nbformat.NotebookNode:
    """Return the "student" or "teacher" edition of a notebook, which itself is left unchanged.

    An edition is one folder deeper, so its links out of the folder get longer. It has no badge, because that would open
    the notebook with the solutions.
    """
    mine = deepcopy(notebook)
    mine.cells = [cell for cell in mine.cells if not LEFT_OUT[kind] & set(cell.metadata.get("tags", []))]
    for cell in mine.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        if cell.cell_type == "code" and kind == "student":
            cell.outputs, cell.execution_count = [], None
        if cell.cell_type == "markdown":
            cell.source = OUTSIDE.sub(r"\1../../", re.sub(rf"{BADGE.pattern}\s*", "", cell.source))
    return mine


def main() -> None:
    for kind in LEFT_OUT:
        (BUILD / kind).mkdir(parents=True, exist_ok=True)
        for old in (BUILD / kind).glob("*.ipynb"):
            old.unlink()
        for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
            nbformat.write(edition(nbformat.read(path, as_version=4), kind), BUILD / kind / path.name)
        print(f"{len(list((BUILD / kind).glob('*.ipynb')))} notebooks in build/{kind}")


if __name__ == "__main__":
    main()
