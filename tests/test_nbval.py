"""The command that runs the notebooks, `pytest -p tests.notebook_run`, fails where it should: shown on made-up ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbval", reason="nbval runs the notebooks; Colab has none")

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests.notebook_run import near, settled
from tests.test_notebooks import CHECKED, Notebook, checked_cells, read

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "-m pytest -p tests.notebook_run"

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
        stored("import random, sys\nprint(random.random(), file=sys.stderr)\nprint(random.random())", "0.5\n"),
        picture,
    )
    assert code == 0 and "3 passed" in said, said


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


@pytest.mark.parametrize(
    ("printed", "before"),
    [
        ("probe loss 0.21 at η = 0.8", "probe loss 0.17 at η = 0.8"),  # another loss
        ("7 of 8 are right", "8 of 8 are right"),
        ("it took 500 s", "it took 3 s"),
        ("not yet: think once more", "right: so it is"),  # a solution that is wrong
    ],
)
def test_another_number_or_verdict_fails(tmp_path, printed, before):
    code, said = run(tmp_path, stored(f"print({printed!r})", before + "\n", checked=True))
    assert code == 1 and "Cell outputs differ" in said, said


def test_a_number_that_only_another_processor_rounds_differently_passes(tmp_path):
    cells = stored("print('probe loss 0.21, PSNR 31.4 dB')", "probe loss 0.20, PSNR 30.2 dB\n", checked=True)
    code, said = run(tmp_path, cells)
    assert code == 0 and "1 passed" in said, said


def test_near_is_five_percent_or_one_unit_of_the_last_digit():
    assert near("0.21", "0.20") and near("0.19", "0.20") and not near("0.22", "0.20")
    assert near("31.5", "30.0") and not near("31.6", "30.0") and not near("-30.0", "30.0")
    assert near("-0.1", "0.0") and not near("0.2", "0.0")


def test_only_decimals_in_the_same_words_are_settled():
    assert settled("a  9.9, b 5.0", "a 10.1, b 7.0") == "a 10.1, b 5.0"
    assert settled("of 31 the mean 0.51", "of 30 the mean 0.50") == "of 31 the mean 0.51"
    assert settled("version 1.2.3", "version 1.2.4") == "version 1.2.3"
    assert settled("0.5", "0.5 0.5") == "0.5"


def test_solutions_run_after_all_other_cells(tmp_path):
    """So what runs before them is the student's edition: a cell that needs a name of the solution fails."""
    solution = stored("answer = 2\nassert late == 1")
    solution.metadata["tags"] = ["solution"]
    code, said = run(tmp_path, solution, stored("print(answer)"), stored("late = 1"))
    assert code == 1 and "NameError: name 'answer'" in said and "1 failed, 2 passed" in said, said


def test_the_words_of_a_page_are_compared_but_not_its_pixels(tmp_path):
    source = """from IPython.display import HTML\nHTML('<img alt="A dog" src="data:image/png;base64,bXk=">')"""
    cells = [stored(source, checked=True) for _ in range(2)]
    for cell, alt in zip(cells, ("A dog", "A cat"), strict=True):
        page = f'<img alt="{alt}" src="data:image/png;base64,aGk=">'
        data = {"text/html": page, "text/plain": "<IPython.core.display.HTML object>"}
        cell.outputs = [new_output("execute_result", data, execution_count=1)]
    code, said = run(tmp_path, *cells)
    assert code == 1 and "1 failed, 1 passed" in said and "A cat" in said, said


@pytest.mark.parametrize(("new", "code"), [("0.41", 0), ("0.61", 1)])
def test_a_number_in_a_caption_may_differ_as_a_printed_one_may(tmp_path, new, code):
    cell = stored(f"from IPython.display import HTML\nHTML('<b>seed 0: {new}</b>')", checked=True)
    data = {"text/html": "<b>seed 0: 0.40</b>", "text/plain": "<IPython.core.display.HTML object>"}
    cell.outputs = [new_output("execute_result", data, execution_count=1)]
    assert run(tmp_path, cell)[0] == code


WARNS = "import warnings\nwarnings.warn('nobody expects this')"


def test_a_new_warning_fails_wherever_it_comes(tmp_path):
    code, said = run(tmp_path, stored(WARNS))
    assert code == 1 and "UserWarning: nobody expects this" in said, said


def test_a_warning_that_the_text_speaks_of_passes(tmp_path):
    cell = stored(WARNS)
    cell.metadata["tags"] = ["warns"]
    code, said = run(tmp_path, cell)
    assert code == 0 and "1 passed" in said, said


def test_a_progress_bar_in_a_checked_cell_is_not_compared(tmp_path):
    source = "from tqdm.auto import tqdm\nprint(sum(tqdm(range(4))))"
    code, said = run(tmp_path, stored(source, "6\n", checked=True))
    assert code == 0 and "1 passed" in said, said


def test_the_notebooks_run_offline_and_without_a_gpu(tmp_path, monkeypatch):
    """On a machine with a GPU notebook 07 would download 5.5 GB, and all numbers would be others than the stored."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    asked = "import os\nprint(os.environ.get('HF_HUB_OFFLINE'), repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    code, said = run(tmp_path, stored(asked, "1 ''\n", checked=True))
    assert code == 0 and "1 passed" in said, said
