"""`make mutants`: which tests belong to which module, and how its report reads. The tool itself is not run here."""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType

import pytest

from imagic_lib import arguments
from tests import mutants

DECORATED = """
class Row:
    @property
    def peak(self):
        return 3

    @classmethod
    def made(cls):
        return cls()

@contextmanager
@with_word("a")
def given(word):
    yield word

def plain():
    return 1
"""


def test_every_module_of_the_method_is_given_faults_and_has_its_tests():
    assert {"stage1_embedding", "stage4_inference", "edit", "pictures", "training/loop"} <= set(mutants.modules())
    assert "training/__init__" not in mutants.modules() and len(set(mutants.modules())) == len(mutants.modules())
    for module in mutants.modules():
        assert mutants.tests_of(module)
    assert mutants.tests_of("pictures") == ["tests/test_pictures.py"]
    assert "tests/training/test_loop.py" in mutants.tests_of("training/loop")


def test_a_wrong_name_and_a_module_without_tests_are_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no module 'stage9' is given faults: choose among diffusion"):
        mutants.tests_of("stage9")
    (tmp_path / "imagic_lib").mkdir()
    (tmp_path / "imagic_lib" / "edit.py").touch()
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"tests/test_edit\*\.py is missing"):
        mutants.tests_of("edit")


def test_without_its_decorator_a_function_does_the_same():
    """So mutmut, which skips decorated functions, finds faults for `generate` and the context managers, too."""

    def with_word(word):
        return lambda function: lambda other: function(word + other)

    source = mutants.undecorated(DECORATED)
    assert source.count("@") == 1 and "@classmethod" in source
    names = {"contextmanager": contextlib.contextmanager, "with_word": with_word}
    exec(source, names)
    assert names["Row"].made().peak == 3 and names["plain"]() == 1
    with names["given"]("b") as word:
        assert word == "ab"


def test_a_warning_points_at_the_caller_though_a_wrapper_stands_between(monkeypatch):
    wrapper = ModuleType("mutmut.mutation.trampoline")
    monkeypatch.setitem(sys.modules, wrapper.__name__, wrapper)
    exec("def call(function, text):\n    return function(text)", wrapper.__dict__)
    mutants.hide_wrapper()
    with pytest.warns(UserWarning, match="look") as caught:
        wrapper.call(arguments.warn_caller, "look")
    assert [warning.filename for warning in caught] == [__file__]


def test_a_score_counts_and_names_the_survivors():
    states = {
        "imagic_lib.edit.x_run__mutmut_1": "killed",
        "imagic_lib.edit.xǁEditǁsave__mutmut_12": "survived",
        "imagic_lib.edit.x_run__mutmut_2": "timeout",
        "imagic_lib.edit.x_run__mutmut_3": "no tests",
    }
    changes = {"imagic_lib.edit.xǁEditǁsave__mutmut_12": "`1` → `2`", "imagic_lib.edit.x_run__mutmut_3": "`a` → `b`"}
    assert mutants.score(states, changes) == (4, 2, ["- edit.Edit.save: `1` → `2`", "- edit.run: `a` → `b`"])


def test_the_report_has_a_row_a_module_and_reads_back():
    lines = ["- training.loop.train: `1` → `2`"]
    scores = {"edit": (2, 2, []), "training/loop": (4, 3, lines)}
    text = mutants.report(scores)
    assert text.splitlines()[2:] == [
        "| edit | 2 | 2 | 100% |",
        "| training/loop | 4 | 3 | 75% |",
        "| all | 6 | 5 | 83% |",
    ]
    assert mutants.scores_in(text, "\n".join(lines)) == scores


def test_a_survivor_is_told_by_what_was_changed():
    diff = "# name: survived\n--- a.py\n+++ a.py\n@@ -1,3 +1,3 @@\n def f():\n-    return -1\n+    return +1\n"
    assert mutants.change_of(diff) == "`return -1` → `return +1`"
    long = "-" + 60 * "a" + " / " + 60 * "b" + "\n+" + 60 * "a" + " * " + 60 * "b"
    cut = "`…" + 24 * "a" + " {} " + 24 * "b" + "…`"
    assert mutants.change_of(long) == cut.format("/") + " → " + cut.format("*")


def test_the_report_replaces_the_old_one_and_lists_the_survivors_elsewhere(tmp_path, monkeypatch):
    page, scores = tmp_path / "README.md", {"edit": (2, 1, [r"- edit.run: `\\1` → `2`"])}
    page.write_text("Before.\n<!-- mutants -->\nold\n<!-- /mutants -->\nAfter.\n")
    monkeypatch.setattr(mutants, "README", page)
    monkeypatch.setattr(mutants, "SURVIVORS", tmp_path / "survivors.md")
    mutants.write_report(scores)
    assert page.read_text() == f"Before.\n<!-- mutants -->\n{mutants.report(scores)}\n<!-- /mutants -->\nAfter.\n"
    assert (tmp_path / "survivors.md").read_text() == r"- edit.run: `\\1` → `2`" + "\n"
