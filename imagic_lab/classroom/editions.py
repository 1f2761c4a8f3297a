"""Write two editions of the notebooks from the one set in notebooks/. This is `make editions`.

build/student/   without outputs, solutions and the lecturer's notes; the exercises are stubs that run as they are
build/teacher/   everything, with outputs, and nothing folded
build/imagic-student.zip   one file to hand out: the package, with the student's notebooks as its notebooks

A cell's tags say where it belongs. Cells tagged `solution` or `teacher` are for the lecturer, all others are for both.
The tests run the solutions after all other cells of a notebook (tests/notebook_run.py), and so they also run the
student's edition with its stubs.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import nbformat

from imagic_lab.classroom.build import BADGE, NOTEBOOKS, ROOT

BUILD = ROOT / "build"
LEFT_OUT = {"student": {"solution", "teacher"}, "teacher": set()}
HANDED_OUT = ("imagic_lib", "imagic_lab", "data", "docs/course", "docs/cluster.md", "notebooks/*.toml", "LICENSE",
              "notebooks/studio.ipynb", "README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml",
              "requirements.txt", "constraints.txt", "CITATION.cff")  # fmt: skip
OUTSIDE = re.compile(r"(\]\(|(?:src|href)=\")\.\./")  # a link to a file outside the folder of the notebooks


def edition(notebook: nbformat.NotebookNode, kind: str, deeper: bool = True) -> nbformat.NotebookNode:
    """Return the "student" or "teacher" edition of a notebook, which itself is left unchanged.

    deeper: an edition in build/ is one folder deeper, so its links out of the folder get longer. It has no badge,
    because that would open the notebook with the solutions.
    """
    mine = deepcopy(notebook)
    mine.cells = [cell for cell in mine.cells if not LEFT_OUT[kind] & set(cell.metadata.get("tags", []))]
    for cell in mine.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        if cell.cell_type == "code" and kind == "student":
            cell.outputs, cell.execution_count = [], None
        if cell.cell_type == "markdown":
            cell.source = re.sub(rf"{BADGE.pattern}\s*", "", cell.source)
            cell.source = OUTSIDE.sub(r"\1../../", cell.source) if deeper else cell.source
    return mine


def masters() -> Iterator[tuple[str, nbformat.NotebookNode]]:
    """Each notebook of the course, with the name of its file."""
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        yield path.name, nbformat.read(path, as_version=4)


def hand_out(path: Path) -> None:
    """Write everything that a student needs into one zip file: unpack it, and `make lab` works."""
    files = [file for name in HANDED_OUT for found in sorted(ROOT.glob(name)) for file in [found, *found.rglob("*")]]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                how = zipfile.ZIP_STORED if file.suffix == ".safetensors" else None  # weights don't get smaller
                archive.write(file, Path("imagic", file.relative_to(ROOT)), how)
        for name, notebook in masters():
            archive.writestr(f"imagic/notebooks/{name}", nbformat.writes(edition(notebook, "student", deeper=False)))


def main() -> None:
    for kind in LEFT_OUT:
        (BUILD / kind).mkdir(parents=True, exist_ok=True)
        for old in (BUILD / kind).glob("*.ipynb"):
            old.unlink()
        for name, notebook in masters():
            nbformat.write(edition(notebook, kind), BUILD / kind / name)
        print(f"{len(list((BUILD / kind).glob('*.ipynb')))} notebooks in build/{kind}")
    hand_out(BUILD / "imagic-student.zip")
    print(f"to hand out: build/imagic-student.zip ({(BUILD / 'imagic-student.zip').stat().st_size / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
