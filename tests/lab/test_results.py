"""The scripts of imagic_lab/numbers/: what they stored, that they are whole, and what `house` counts."""

import ast
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from imagic_lab.benchmark import measured_rows
from imagic_lab.numbers import cross_entropy, house, lora, methods, new_word, results, schedules
from imagic_lab.numbers.report import README
from tests.test_surface import missing

SCRIPTS = sorted(path.stem for path in Path(results.__file__).parent.glob("[a-z]*.py"))
SHARED = ("report", "results")


# -- what is stored


def test_the_tables_of_lora_are_made_of_the_stored_runs():
    found = lora.Results(lora.LORA_RESULTS).found
    assert found["tables"] == lora.lora_tables(found)
    assert len(found["edits"]) == len(lora.EDIT_PAIRS) * len(lora.configurations())
    assert f"{len(found['edits'])} runs in all" in found["tables"]["edits"]


def test_the_table_of_the_losses_is_made_of_the_stored_runs():
    found = json.loads(cross_entropy.LOSS_RESULTS.read_text(encoding="utf-8"))
    assert found["table"] == cross_entropy.losses_table(found["runs"])
    assert found["table"] in README.read_text(encoding="utf-8")


def test_a_stopped_run_leaves_no_numbers_in_the_table():
    runs = json.loads(cross_entropy.LOSS_RESULTS.read_text(encoding="utf-8"))["runs"]
    for run in cross_entropy.tried(runs, "stage_1", "hl_gauss")[:2]:
        run["diverged"] = "stage 2: …"
    [line] = [line for line in cross_entropy.losses_table(runs).splitlines() if line.startswith("| 1 | HL-Gauss")]
    assert line == "| 1 | HL-Gauss | 2 of 5 | – | – | – |"


def test_the_tables_of_the_new_word_are_made_of_the_stored_runs():
    found = new_word.Results(new_word.WORD_RESULTS).found
    assert found["tables"] == new_word.word_tables(found)
    trained = [run for run in found["words"].values() if "probe" in run]
    assert f"{len(trained)} trainings" in found["tables"]["words"]


def test_a_car_that_is_not_measured_to_its_end_is_not_counted():
    found = new_word.Results(new_word.WORD_RESULTS).found["words"]
    first, second = list(new_word.CARS)[:2]
    assert new_word.measured_cars(found) == [first, second]
    del found[f"{second} / {list(new_word.TABLE_CELLS)[-1]}"]
    assert new_word.measured_cars(found) == [first]
    assert "each line is of 1 cars" in new_word.words_table(found)


def test_the_table_of_schedules_is_made_of_the_stored_runs():
    runs = schedules.Results("faster.json").found["runs"]
    assert len(runs) == schedules.DEV_EDITS * len(schedules.SCHEDULES)
    assert schedules.schedules_table(runs) in README.read_text(encoding="utf-8")
    for key, run in runs.items():  # measured as the schedules are now
        schedule = schedules.SCHEDULES[key.partition(" / ")[2]]
        assert run["schedule"] == {name: str(value) for name, value in schedules.asdict(schedule).items()}, key


def test_the_stored_sheets_are_small_and_whole():
    sheets = sorted(results.FOLDER.glob("*.jpg"))
    assert [sheet.name for sheet in sheets] == ["cross-entropy.jpg", "lora-edits.jpg", "methods.jpg", "new-word.jpg"]
    for sheet in sheets:
        room = 3 if sheet.stem == "methods" else 1  # nine columns of twelve edits
        assert sheet.stat().st_size <= room * results.LARGEST_SHEET
        with Image.open(sheet) as opened:
            opened.load()


# -- the scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_finds_all_that_it_imports(name):
    """Inside its functions as well: most scripts take too long to run in a test."""
    text = (Path(results.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    assert not missing(ast.parse(text), {})


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in SHARED])
def test_a_script_says_how_to_use_it_and_is_in_the_list(name, monkeypatch, capsys):
    script = importlib.import_module(f"imagic_lab.numbers.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        script.main()
    assert "usage" in capsys.readouterr().out and f"python -m imagic_lab.numbers.{name}" in script.__doc__
    assert f"| `{name}` |" in README.read_text(encoding="utf-8")


def test_differences_are_given_by_their_range_and_their_counts():
    assert results.paired_difference([3, 4, 5], [1, 2, 5.1], unit=" dB") == "+1.3 dB (-0.1 to +2.0; 2 of 3 above zero)"
    assert results.paired_difference([0.0, 1.0], [0.1, 1.1], ".1f").endswith("0 of 2 above zero)")


def test_equal_runs_get_a_count_and_no_interval_of_width_zero():
    assert results.paired_difference([1.0, 2.0], [1.0, 2.0]) == "0 of 2 differ"
    assert results.paired_difference([1.004, 2.0], [1.0, 2.004], ".2f") == "0 of 2 differ"


def test_counts_show_their_clusters():
    """Fourteen of two cars can be seven each, or one car alone."""
    assert results.count_with_parts([2, 12], 24) == "14 of 24 (2 + 12)"


def test_tiles_of_a_sheet_come_back_in_their_places(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    colours = [["red", "white"], ["blue", "black"], ["yellow", "green"]]
    results.write_tiles("sheet.jpg", [[Image.new("RGB", (100, 100), one) for one in row] for row in colours])
    for row, found in zip(colours, results.read_tiles("sheet.jpg"), strict=True):
        for colour, tile in zip(row, found, strict=True):
            off = np.subtract(tile.getpixel((64, 64)), ImageColor.getrgb(colour))
            assert tile.size == (128, 128) and abs(off).max() < 12


def test_an_experiment_that_is_stopped_keeps_what_it_has_and_refuses_other_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    first = results.Results("some.json", "versions", "runs")
    first.check_versions({"torch": "1"})
    first.keep("runs", "first", {"loss": 1})
    again = results.Results("some.json", "versions", "runs", "more")
    assert again.found == {"versions": {"torch": "1"}, "runs": {"first": {"loss": 1}}, "more": {}}
    again.check_versions({"torch": "1"})
    with pytest.raises(ValueError, match=r"some.json was measured with other versions"):
        again.check_versions({"torch": "2"})


# -- the house


def modules(**texts):
    return {name: ast.parse(text) for name, text in texts.items()}


def test_a_way_of_calls_goes_through_imports_but_not_through_a_lambda():
    code = {"a": "from b import g\nimport c\ndef f(): return g(1)\ndef late(): run(lambda: c.h())\ndef run(x): x()"}
    code |= {"b": "from c import h as k\ndef g(x):\n    def inner(): return nowhere()\n    return k(x) + 1"}
    found = modules(**code, c="def h(x): return x\ndef nowhere(): ...")
    assert house.shortest_way(found, "a.f", "c.h") == ["a.f", "b.g", "c.h"]
    assert house.shortest_way(found, "a.late", "c.h") == house.shortest_way(found, "a.f", "c.nowhere") == []


def test_a_cycle_is_found_in_functions_but_not_among_imports_for_types():
    two = modules(a="import b", b="def f():\n    from a import x", c="import a")
    assert house.import_cycles(two) == [("a", "b")]
    typed = modules(a="import b", b="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a")
    assert house.import_cycles(typed) == []
    assert house.imports_of(ast.parse("def f():\n    from a.b import c as d")) == {"d": "a.b.c"}


def test_a_name_counts_as_defined_twice_if_two_modules_define_it_at_their_top():
    found = modules(
        a="X, Y = 1, 2\ndef f(): z = 1\ndef main(): ...\n_p = 1", b="Y = 3\nclass f: ...\ndef main(): ...\n_p = 2"
    )
    assert house.defined_twice(found) == [("Y", ["a", "b"]), ("f", ["a", "b"])]


def test_the_counts_of_the_house_are_of_its_files():
    counts = {what: found for what, found, _ in house.house_counts()}
    texts = house.texts_of("imagic_lib")
    assert counts["lines of imagic_lib"] == sum(text.count("\n") for text in texts.values()) > 1000
    assert {"imagic_lib", "imagic_lib.edit", "imagic_lib.training.loop"} <= set(texts)
    assert all(what.startswith(("lines", "longest", "parameters")) or isinstance(counts[what], list) for what in counts)


def test_the_table_of_forty_edits_is_made_of_the_stored_rows():
    rows = measured_rows(methods.stored_rows("dev40"), "imagic-own")
    assert len(rows) == 40 and methods.values_table(rows) in README.read_text(encoding="utf-8")
