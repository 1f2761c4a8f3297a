"""What the scripts of imagic_lab/numbers/ stored, and notebooks 10 and 11 show."""

from PIL import Image

from imagic_lab.numbers import faster, lora, new_word, results
from imagic_lab.numbers.report import README


def test_the_tables_of_lora_are_made_of_the_stored_runs():
    found = lora.Results(lora.RESULTS).found
    assert found["tables"] == lora.tables_of(found)
    assert len(found["edits"]) == len(lora.PAIRS) * len(lora.configurations())
    assert f"{len(found['edits'])} runs in all" in found["tables"]["edits"]


def test_the_tables_of_the_new_word_are_made_of_the_stored_runs():
    found = new_word.Results(new_word.RESULTS).found
    assert found["tables"] == new_word.tables_of(found)
    trained = [run for run in found["words"].values() if "probe" in run]
    assert f"{len(trained)} trainings" in found["tables"]["words"]


def test_the_table_of_schedules_is_made_of_the_stored_runs():
    runs = faster.Results("faster.json").found["runs"]
    assert len(runs) == faster.COUNT * len(faster.SCHEDULES)
    assert faster.page_of(runs) in README.read_text(encoding="utf-8")
    for key, run in runs.items():  # measured as the schedules are now
        schedule = faster.SCHEDULES[key.partition(" / ")[2]]
        assert run["schedule"] == {name: str(value) for name, value in faster.asdict(schedule).items()}, key


def test_the_stored_sheets_are_small_and_whole():
    sheets = sorted(results.FOLDER.glob("*.jpg"))
    assert [sheet.name for sheet in sheets] == ["cross-entropy.jpg", "lora-edits.jpg", "methods.jpg", "new-word.jpg"]
    for sheet in sheets:
        room = 3 if sheet.stem == "methods" else 1  # nine columns of twelve edits
        assert sheet.stat().st_size <= room * results.LARGEST_SHEET
        with Image.open(sheet) as opened:
            opened.load()


def test_a_verdict_says_when_no_difference_is_shown():
    clear = results.compared("a minus b", [3, 4, 5], [1, 2, 3.1], " dB")
    unclear = results.compared("a minus b", [3, 1, 5], [1, 2, 3], " dB")
    assert "no difference" not in clear and "3 pairs" in clear and "no difference is shown" in unclear
    assert results.portion(0, 10) == "0 of 10 (0–28 %)" and results.portion(10, 10) == "10 of 10 (72–100 %)"


def test_a_stopped_sweep_keeps_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    results.Results("some.json", "runs").keep("runs", "first", {"loss": 1})
    again = results.Results("some.json", "runs", "more")
    assert again.found == {"runs": {"first": {"loss": 1}}, "more": {}}
