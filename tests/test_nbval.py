"""The command that runs the notebooks, `pytest @tests/nbval.args`, fails where it should: shown on made-up ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbval", reason="nbval runs the notebooks; Colab has none")

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns
from test_notebooks import CHECKED, Notebook, checked_cells, read

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "-m pytest @tests/nbval.args"

MOVED_SLIDER = """
import ipywidgets
slider = ipywidgets.SelectionSlider(options=[1, 0], continuous_update=False)
def look(eta):
    print(1 / eta)
shown = ipywidgets.interactive_output(look, {"eta": slider})
for eta in slider.options:
    slider.value = eta
""".strip()
SHOWN_PICTURE = """
import os
from IPython.display import Image, display
display(Image(data=os.urandom(64), format="png"))
""".strip()


def stored(source: str, text: str | None = None, *, checked: bool = False, count: int | None = 1):
    outputs = [] if text is None else [new_output("stream", name="stdout", text=text)]
    return new_code_cell(
        source, outputs=outputs, execution_count=count, metadata={"tags": [CHECKED]} if checked else {}
    )


def run(folder: Path, *cells: nbformat.NotebookNode) -> tuple[int, str]:
    """Exit code and output of the command for a notebook of these cells; 0: passed, 1: a cell failed."""
    nbformat.write(new_notebook(cells=list(cells)), folder / "made_up.ipynb")
    command = [sys.executable, *COMMAND.split(), str(folder / "made_up.ipynb")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    return done.returncode, re.sub(r"\x1b\[\d*m", "", done.stdout + done.stderr)


def test_make_runs_the_notebooks_by_this_command():
    assert f"$(PYTEST) {COMMAND.removeprefix('-m pytest ')} notebooks" in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )


def test_a_good_notebook_passes(tmp_path):
    """Only checked cells are compared: others may print, warn and draw what they like."""
    picture = stored(SHOWN_PICTURE)
    picture.outputs = [new_output("display_data", {"image/png": "aGk=", "text/plain": "<Figure>"})]
    code, said = run(
        tmp_path,
        stored("print(1 + 1)", "2\n", checked=True),
        stored("print(object())", "<object object at 0x7f0000000000>\n", checked=True),
        stored("import random, sys\nprint(random.random(), file=sys.stderr)\nprint(random.random())", "0.5\n"),
        picture,
    )
    assert code == 0 and "4 passed" in said, said


def test_a_wrong_stored_output_fails(tmp_path):
    code, said = run(tmp_path, stored("print(1 + 1)", "3\n", checked=True))
    assert code == 1 and "Cell outputs differ" in said, said


def test_a_warning_in_a_checked_cell_fails(tmp_path):
    code, said = run(tmp_path, stored("import sys\nprint(2)\nprint(3, file=sys.stderr)", "2\n", checked=True))
    assert code == 1 and "Unexpected output fields" in said and "stderr" in said, said


def test_a_raising_widget_callback_fails(tmp_path):
    """It raises at the slider's second value: who moves a slider through all of them in a cell finds it."""
    code, said = run(tmp_path, stored(MOVED_SLIDER))
    assert code == 1 and "ZeroDivisionError" in said, said


def test_a_checked_cell_that_was_never_run_is_found_by_its_rule_alone(tmp_path):
    code, said = run(tmp_path, stored("print(1 + 1)", checked=True, count=None))
    assert code == 0 and "1 passed" in said, said  # nbval has nothing to compare with
    notebook = read(tmp_path / "made_up.ipynb")
    assert isinstance(notebook, Notebook) and any("wants a count" in problem for problem in checked_cells(notebook))


def test_no_rule_for_sanitising_is_dropped():
    """A 'replace:' without its trailing space is dropped in silence."""
    text = (ROOT / "tests" / "nbval-sanitize.cfg").read_text(encoding="utf-8")
    assert len(get_sanitize_patterns(text)) == len(re.findall("^regex", text, re.MULTILINE)) > 0
