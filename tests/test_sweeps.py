"""What the scripts of benchmarks/ stored, and notebooks 10 and 11 show."""

import importlib
import sys
from pathlib import Path

import pytest
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def sweep(monkeypatch):
    """Import a script of benchmarks/ by name, for one test."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
            sys.modules.pop(name)


def test_the_tables_of_lora_are_made_of_the_stored_runs(sweep):
    lora = sweep("lora")
    found = lora.Results(lora.RESULTS).found
    assert found["tables"] == lora.tables_of(found)
    assert len(found["edits"]) == len(lora.PAIRS) * len(lora.configurations())
    assert f"{len(found['edits'])} runs in all" in found["tables"]["edits"]


def test_the_tables_of_the_new_word_are_made_of_the_stored_runs(sweep):
    new_word = sweep("new_word")
    found = new_word.Results(new_word.RESULTS).found
    assert found["tables"] == new_word.tables_of(found)
    trained = [run for run in found["words"].values() if "probe" in run]
    assert f"{len(trained)} trainings" in found["tables"]["words"]


def test_the_table_of_schedules_is_made_of_the_stored_runs(sweep):
    faster = sweep("faster")
    runs = faster.Results("faster.json").found["runs"]
    assert len(runs) == faster.COUNT * len(faster.SCHEDULES)
    assert faster.page_of(runs) in (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for key, run in runs.items():  # measured as the schedules are now
        schedule = faster.SCHEDULES[key.partition(" / ")[2]]
        assert run["schedule"] == {name: str(value) for name, value in faster.asdict(schedule).items()}, key


def test_the_stored_sheets_are_small_and_whole(sweep):
    sweeps = sweep("sweeps")
    sheets = sorted(sweeps.FOLDER.glob("*.jpg"))
    assert [sheet.name for sheet in sheets] == ["cross-entropy.jpg", "lora-edits.jpg", "methods.jpg", "new-word.jpg"]
    for sheet in sheets:
        room = 3 if sheet.stem == "methods" else 1  # nine columns of twelve edits
        assert sheet.stat().st_size <= room * sweeps.LARGEST_SHEET
        with Image.open(sheet) as opened:
            opened.load()


def test_a_verdict_says_when_no_difference_is_shown(sweep):
    sweeps = sweep("sweeps")
    clear = sweeps.compared("a minus b", [3, 4, 5], [1, 2, 3.1], " dB")
    unclear = sweeps.compared("a minus b", [3, 1, 5], [1, 2, 3], " dB")
    assert "no difference" not in clear and "3 pairs" in clear and "no difference is shown" in unclear
    assert sweeps.portion(0, 10) == "0 of 10 (0–28 %)" and sweeps.portion(10, 10) == "10 of 10 (72–100 %)"


def test_a_stopped_sweep_keeps_what_it_has(sweep, tmp_path, monkeypatch):
    sweeps = sweep("sweeps")
    monkeypatch.setattr(sweeps, "FOLDER", tmp_path)
    sweeps.Results("some.json", "runs").keep("runs", "first", {"loss": 1})
    again = sweeps.Results("some.json", "runs", "more")
    assert again.found == {"runs": {"first": {"loss": 1}}, "more": {}}
