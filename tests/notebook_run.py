"""How the checks run the notebooks and compare what they print: `pytest -p tests.notebook_run notebooks`.

Only cells tagged `nbval-check-output` are compared. In them a number with a decimal point may differ from the stored
one by 5 %, or by one unit of its last digit if that is more, because processors round differently and a training
amplifies it. Whole numbers and words must be the same. So a cell that prints a loss as 0.19 notices 0.25, and needs no
hand-made tolerance. Beyond that, a warning fails a cell, compared or not, unless the cell is tagged `warns`.
"""

from __future__ import annotations

import os
import re
from functools import partial

import pytest
from nbval import plugin
from nbval.plugin import IPyNbCell

# `--cov` counts what the tests run: a line that only a notebook runs isn't tested, and nbval's tracing stops a kernel
plugin.setup_coverage = plugin.teardown_coverage = lambda *_, **__: None

SHARE = 0.05
SILENCE = 60  # seconds that a kernel may say nothing while its output is read; nbval's 5 are too few on a busy machine
ALT = re.compile(r'<img [^>]*?alt="([^"]*)"[^>]*>')
TAG = re.compile(r"<style.*?</style>|<script.*?</script>|<[^>]*>", re.DOTALL)
DECIMAL = re.compile(r"(?<![\w.])(-?\d+\.\d+)(?![\d.])")
WARNING = re.compile(r"^.*\w*Warning: .*$", re.MULTILINE)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """The options of nbval (its names): compare tagged cells alone, in this environment, ten minutes a cell."""
    os.environ.update(package().ENVIRONMENT)  # the kernels inherit it
    config.option.nbval_lax = config.option.nbval_current_env = True
    config.option.nbval_cell_timeout = 600


def package():
    """`imagic_lab.classroom.build`, imported late: what is imported before `--cov` begins counts as never run."""
    from imagic_lab.classroom import build

    return build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The solutions of a notebook run after all its other cells: these are the student's edition, unfilled."""
    first = {item.parent: k for k, item in reversed(list(enumerate(items)))}
    tags = {item: item.cell.metadata.get("tags", []) for item in items if isinstance(item, IPyNbCell)}
    place = {item: (first[item.parent] if item in tags else k) for k, item in enumerate(items)}
    items.sort(key=lambda item: (place[item], "solution" in tags.get(item, [])))


def near(new: str, stored: str) -> bool:
    """Are two printed decimal numbers the same, up to `SHARE` or one unit of the last stored digit?"""
    unit = 10.0 ** -len(stored.partition(".")[2])
    return abs(float(new) - float(stored)) <= max(SHARE * abs(float(stored)), unit) * (1 + 1e-9)


def settled(new: str, stored: str) -> str:
    """`new` with each decimal number that is near its counterpart in `stored` replaced by that one.

    Where the words between the numbers differ, there are no counterparts, and `new` is returned as it is.
    """
    mine, theirs = DECIMAL.split(new), DECIMAL.split(stored)  # words, number, words, number, ..., words
    if [words.split() for words in mine[::2]] != [words.split() for words in theirs[::2]]:
        return new
    pairs = zip(mine, theirs, strict=True)
    return "".join(b if k % 2 == 0 or near(a, b) else a for k, (a, b) in enumerate(pairs))


def compare(cell: IPyNbCell, new: list, stored: list) -> bool:
    """nbval's comparison, with near numbers settled; of HTML the words and alt texts; without widgets."""
    new = package().without_widgets(new)
    for mine, theirs in zip(new, stored, strict=False):
        if mine.output_type == theirs.output_type == "stream":
            mine.text = settled(mine.text, theirs.text)
    for output in [*new, *stored]:
        if "text/html" in output.get("data", {}):
            words = TAG.sub(" ", ALT.sub(r" \1 ", output.data["text/html"]))
            output.data["text/html"] = " ".join(words.split())
    for mine, theirs in zip(new, stored, strict=False):
        pages = [output.get("data", {}).get("text/html") for output in (mine, theirs)]
        if all(pages):
            mine.data["text/html"] = settled(*pages)
    return IPyNbCell.compare_outputs(cell, new, stored)


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, IPyNbCell):
        item.compare_outputs = partial(compare, item)
        item.output_timeout = SILENCE


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    result = yield
    if isinstance(item, IPyNbCell) and "warns" not in item.cell.metadata.get("tags", []):
        texts = [output.text for output in item.test_outputs or [] if output.get("name") == "stderr"]
        if found := WARNING.search("\n".join(texts)):
            item.raise_cell_error(f"The cell warns, and has no tag 'warns': {found.group()}")
    return result
