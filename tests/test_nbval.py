"""The command that runs the notebooks, `pytest -p tests.notebook_run`, fails where it should: shown on made-up ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

pytest.importorskip("nbval", reason="nbval runs the notebooks; Colab has none")

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests.notebook_run import near, settled
from tests.test_notebooks import CHECKED, Notebook, checked_cells, read

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "-m pytest -p tests.notebook_run"
COLOUR = re.compile(r"#x1B\[\d*m")  # as JUnit's XML has the codes of a terminal
MADE_UP: dict[str, tuple[nbformat.NotebookNode, ...]] = {}  # the cells of each notebook, by its name

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


def stored(source: str, text: str | None = None, *tags: str, checked: bool = False, count: int | None = 1):
    """A cell, and the text that it printed when it was stored."""
    outputs = [] if text is None else [new_output("stream", name="stdout", text=text)]
    tags = [*tags, CHECKED] if checked else list(tags)
    return new_code_cell(source, outputs=outputs, execution_count=count, metadata={"tags": tags} if tags else {})


def stored_page(html: str, before: str):
    """A checked cell that shows a page, and the page that it showed when it was stored."""
    cell = stored(f"from IPython.display import HTML\nHTML({html!r})", checked=True)
    data = {"text/html": before, "text/plain": "<IPython.core.display.HTML object>"}
    cell.outputs = [new_output("execute_result", data, execution_count=1)]
    return cell


def made_up(name: str, *cells: nbformat.NotebookNode) -> str:
    MADE_UP[name] = cells
    return name


class Result(NamedTuple):
    """How many cells of a notebook passed and failed, and what was said of the failed ones."""

    passed: int
    failed: int
    said: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict[str, Result]:
    """The results of all made-up notebooks: each has a kernel of its own, and the command runs once for all."""
    folder = tmp_path_factory.mktemp("notebooks")
    for name, cells in MADE_UP.items():
        nbformat.write(new_notebook(cells=list(cells)), folder / f"{name}.ipynb")
    command = [sys.executable, *COMMAND.split(), str(folder), f"--junitxml={folder / 'results.xml'}"]
    outside = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        command, cwd=ROOT, env=outside | {"CUDA_VISIBLE_DEVICES": "0"}, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 1, done.stdout + done.stderr  # some cells failed, and nothing else went wrong
    found, results = {}, list(ElementTree.parse(folder / "results.xml").iter("testcase"))
    for name in MADE_UP:
        cells = [cell for cell in results if f"{name}.ipynb" in cell.get("classname")]
        said = [COLOUR.sub("", "".join(failure.itertext())) for cell in cells for failure in cell.iter("failure")]
        found[name] = Result(len(cells) - len(said), len(said), "\n".join(said))
    return found


def test_make_runs_the_notebooks_by_this_command():
    assert f"$(PYTEST) {COMMAND.removeprefix('-m pytest ')} notebooks" in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )


PICTURE = stored(SHOWN_PICTURE)
PICTURE.outputs = [new_output("display_data", {"image/png": "aGk=", "text/plain": "<Figure>"})]
GOOD = made_up(
    "good",
    stored("print(1 + 1)", "2\n", checked=True),
    stored("import random, sys\nprint(random.random(), file=sys.stderr)\nprint(random.random())", "0.5\n"),
    PICTURE,
)


def test_a_good_notebook_passes(ran):
    """Only checked cells are compared: others may print, warn and draw what they like."""
    assert ran[GOOD] == (3, 0, "")


WRONG = made_up("wrong", stored("print(1 + 1)", "3\n", checked=True))


def test_a_wrong_stored_output_fails(ran):
    assert ran[WRONG].failed == 1 and "Cell outputs differ" in ran[WRONG].said


TO_STDERR = made_up("stderr", stored("import sys\nprint(2)\nprint(3, file=sys.stderr)", "2\n", checked=True))


def test_a_warning_in_a_checked_cell_fails(ran):
    _, failed, said = ran[TO_STDERR]
    assert failed == 1 and "Unexpected output fields" in said and "stderr" in said, said


SLIDER = made_up("slider", stored(MOVED_SLIDER))


def test_a_raising_widget_callback_fails(ran):
    """It raises at the slider's second value: who moves a slider through all of them in a cell finds it."""
    assert ran[SLIDER].failed == 1 and "ZeroDivisionError" in ran[SLIDER].said


NEVER_RUN = made_up("never", stored("print(1 + 1)", checked=True, count=None))


def test_a_checked_cell_that_was_never_run_is_found_by_its_rule_alone(ran, tmp_path):
    assert ran[NEVER_RUN] == (1, 0, "")  # nbval has nothing to compare with
    nbformat.write(new_notebook(cells=list(MADE_UP[NEVER_RUN])), tmp_path / "made_up.ipynb")
    notebook = read(tmp_path / "made_up.ipynb")
    assert isinstance(notebook, Notebook) and any("wants a count" in problem for problem in checked_cells(notebook))


CHANGED = {
    "another loss": ("probe loss 0.21 at η = 0.8", "probe loss 0.17 at η = 0.8"),
    "another count": ("7 of 8 are right", "8 of 8 are right"),
    "another time": ("it took 500 s", "it took 3 s"),
    "a wrong solution": ("not yet: think once more", "right: so it is"),
}
for name, (printed, before) in CHANGED.items():
    made_up(name, stored(f"print({printed!r})", before + "\n", checked=True))


@pytest.mark.parametrize("name", CHANGED)
def test_another_number_or_verdict_fails(ran, name):
    assert ran[name].failed == 1 and "Cell outputs differ" in ran[name].said


ROUNDED = made_up(
    "rounded", stored("print('probe loss 0.21, PSNR 31.4 dB')", "probe loss 0.20, PSNR 30.2 dB\n", checked=True)
)


def test_a_number_that_only_another_processor_rounds_differently_passes(ran):
    assert ran[ROUNDED] == (1, 0, "")


def test_near_is_five_percent_or_one_unit_of_the_last_digit():
    assert near("0.21", "0.20") and near("0.19", "0.20") and not near("0.22", "0.20")
    assert near("31.5", "30.0") and not near("31.6", "30.0") and not near("-30.0", "30.0")
    assert near("-0.1", "0.0") and not near("0.2", "0.0")


def test_only_decimals_in_the_same_words_are_settled():
    assert settled("a  9.9, b 5.0", "a 10.1, b 7.0") == "a 10.1, b 5.0"
    assert settled("of 31 the mean 0.51", "of 30 the mean 0.50") == "of 31 the mean 0.51"
    assert settled("version 1.2.3", "version 1.2.4") == "version 1.2.3"
    assert settled("0.5", "0.5 0.5") == "0.5"


UNFILLED = made_up(
    "unfilled", stored("answer = 2\nassert late == 1", None, "solution"), stored("print(answer)"), stored("late = 1")
)


def test_solutions_run_after_all_other_cells(ran):
    """So what runs before them is the student's edition: a cell that needs a name of the solution fails."""
    passed, failed, said = ran[UNFILLED]
    assert (passed, failed) == (2, 1) and "NameError: name 'answer'" in said, said


NEW_PIXELS, OLD_PIXELS = ('<img alt="A dog" src="data:image/png;base64,' + code + '">' for code in ("bXk=", "aGk="))
PAGES = made_up(
    "pages", stored_page(NEW_PIXELS, OLD_PIXELS), stored_page(NEW_PIXELS, OLD_PIXELS.replace("A dog", "A cat"))
)


def test_the_words_of_a_page_are_compared_but_not_its_pixels(ran):
    passed, failed, said = ran[PAGES]
    assert (passed, failed) == (1, 1) and "A cat" in said, said


CAPTIONS = made_up(
    "captions", *(stored_page(f"<b>seed 0: {new}</b>", "<b>seed 0: 0.40</b>") for new in ("0.41", "0.61"))
)


def test_a_number_in_a_caption_may_differ_as_a_printed_one_may(ran):
    passed, failed, said = ran[CAPTIONS]
    assert (passed, failed) == (1, 1) and "0.61" in said, said


WARNS = "import warnings\nwarnings.warn('nobody expects this')"
WARNINGS = made_up("warnings", stored(WARNS), stored(WARNS, None, "warns"))


def test_a_new_warning_fails_wherever_it_comes_unless_the_text_speaks_of_it(ran):
    passed, failed, said = ran[WARNINGS]
    assert (passed, failed) == (1, 1) and "UserWarning: nobody expects this" in said, said


BAR = made_up("bar", stored("from tqdm.auto import tqdm\nprint(sum(tqdm(range(4))))", "6\n", checked=True))


def test_a_progress_bar_in_a_checked_cell_is_not_compared(ran):
    assert ran[BAR] == (1, 0, "")


OFFLINE = made_up(
    "offline",
    stored(
        "import os\nprint(os.environ.get('HF_HUB_OFFLINE'), repr(os.environ['CUDA_VISIBLE_DEVICES']))",
        "1 ''\n",
        checked=True,
    ),
)


def test_the_notebooks_run_offline_and_without_a_gpu(ran):
    """On a machine with a GPU notebook 07 would download 5.5 GB, and all numbers would be others than the stored. The
    command was told of a GPU and of no hub to stay away from."""
    assert ran[OFFLINE] == (1, 0, "")
