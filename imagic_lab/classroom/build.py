"""Run the notebooks and store their outputs. Badges and Colab cells get the address in pyproject.toml.

python -m imagic_lab.classroom.build              # all notebooks; this is `make notebooks`
python -m imagic_lab.classroom.build 02 04        # these only
python -m imagic_lab.classroom.build --address    # badges and Colab cells only, nothing is run
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS, PYPROJECT = ROOT / "notebooks", ROOT / "pyproject.toml"
BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)")
# While notebooks are built or checked, nothing is downloaded, all numbers come from a CPU, and no reader's predictions
# and points are used.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "IMAGIC_PROGRESS": ""}
WIDGET = "application/vnd.jupyter.widget-view+json"
PLACEHOLDER = "/OWNER/"  # marks a repository that has no address yet; a stranger could take the name
COLAB_CELL = Path(__file__).with_name("colab.txt")  # its code, with blanks for the address and the version
LAST = "sys.path.insert(0, str(found[0]))"  # the last line of that code; a notebook can add its own lines below


def address() -> tuple[str | None, str]:
    """Return the repository's address, or None while it has none, and the tag of this version, from pyproject.toml."""
    text = PYPROJECT.read_text(encoding="utf-8")
    repository = re.search(r'^Repository = "(.+)"', text, re.MULTILINE).group(1)
    version = re.search(r'^version = "(.+)"', text, re.MULTILINE).group(1)
    return None if PLACEHOLDER in repository else repository, "v" + version


def badge(name: str) -> str:
    """Return the Markdown of a button that opens this version of a notebook in Colab; without an address, Colab."""
    repository, tag = address()
    target = "https://colab.research.google.com/"
    if repository:
        target += f"github/{repository.removeprefix('https://github.com/')}/blob/{tag}/notebooks/{name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({target})"


def colab_cell() -> str:
    """Return the code that finds the library. On Colab it clones the repository, or keeps asking for its address or a
    zip of it."""
    repository, tag = address()
    return COLAB_CELL.read_text(encoding="utf-8").strip().format(address=repository or "", tag=tag, last=LAST)


def put_address(notebook: nbformat.NotebookNode, name: str) -> None:
    """Write the badge into the first cell and the Colab cell into the cell that is tagged "colab", below its title."""
    notebook.cells[0].source = BADGE.sub(lambda _: badge(name), notebook.cells[0].source)
    for cell in notebook.cells:
        if "colab" in cell.metadata.get("tags", []):
            title = re.match(r"(# @title .*\n)?", cell.source)[0]
            cell.source = title + colab_cell() + cell.source.partition(LAST)[2]


def without_widgets(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return the outputs without widgets, which do nothing in a stored notebook. Their HTML, if any, stays."""
    for output in outputs:
        if output.get("data", {}).pop(WIDGET, None) and "text/html" not in output.data:
            output.data = {}
    return [output for output in outputs if output.get("data", True)]


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Remove what changes from run to run or what no reader sees: times, versions, progress bars, widgets. Fold the
    solutions, other code that is tagged "folded" (in JupyterLab and, by a title, in Colab), and the results that
    readers predict."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if {"solution", "folded"} & {*tags}:
            cell.metadata |= {"jupyter": {"source_hidden": True}, "cellView": "form"}
        if "reveal" in tags:
            cell.metadata |= {"jupyter": {"outputs_hidden": True}, "collapsed": True}
        if cell.cell_type == "code":
            cell.outputs = [o for o in without_widgets(cell.outputs) if o.get("name") != "stderr"]


def build(path: Path, run: bool = True) -> None:
    """Put the address into the notebook, run it if `run`, and store it. If it fails, the file stays as it was."""
    notebook = nbformat.read(path, as_version=4)
    put_address(notebook, path.name)
    if run:
        began = time.monotonic()
        client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
        client.execute(env=os.environ | ENVIRONMENT)
        print(f"{path.name}: {time.monotonic() - began:.0f} s", flush=True)
        tidy(notebook)
    whole = path.with_suffix(".tmp")
    nbformat.write(notebook, whole)
    os.replace(whole, path)  # in one move, so that an interrupted write leaves the old file


def main(arguments: list[str]) -> None:
    chosen = [a for a in arguments if not a.startswith("-")]
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not chosen or path.name[:2] in chosen:
            build(path, run="--address" not in arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
