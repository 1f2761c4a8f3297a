"""What a sweep shows: one row a picture, a page that needs no network, an honest time left, exit codes."""

import csv
import re
from pathlib import Path

import pytest
from markupsafe import escape

from imagic_lab import sweep as package
from imagic_lab.sweep import run, sweep
from imagic_lab.sweep.work import Setup, attempt, write_json
from imagic_lab.toyworld import Scene
from imagic_lib import stage1_embedding
from imagic_lib.__main__ import main
from tests.lab.sweep.stub import DRAW, jobs_in, marks, write_table

NASTY = '<script>alert("1")</script> & "a cat" \'\u202e'

STEPS = str(stage1_embedding.DEFAULTS["tiny"]["steps"])


def rows_of(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def swept(tmp_path):
    """Two edits with four pictures each, and one that failed."""
    table = write_table(tmp_path, ["a car", "bad", NASTY], etas="0 0.7", seeds="1 2")
    assert sweep(table, tmp_path / "out", work=DRAW).failed == 1
    return tmp_path / "out"


def test_browser_filters_the_edits_by_text_and_eta(swept, browser):
    page = browser.new_page(offline=True)
    page.goto((swept / "report.html").as_uri())

    def seen():
        return page.inner_text("#shown"), page.locator("figure:visible").count()

    assert seen() == ("2 of 2 edits", 8)
    page.select_option("#eta", "0.7")
    assert seen() == ("2 of 2 edits", 4)
    page.fill("#text", "CAR a")
    assert seen() == ("1 of 2 edits", 2) and page.inner_text("h2:visible") == "a car"
    page.fill("#text", "rabbit")
    assert seen() == ("0 of 2 edits", 0)
    page.close()


def test_results_have_a_row_for_each_picture(swept):
    rows = rows_of(swept / "results.csv")
    assert len(rows) == 8 and {row["text"] for row in rows} == {"a car", NASTY}
    assert [(row["eta"], row["noise_seed"]) for row in rows[:4]] == [
        (eta, seed) for seed in ("1", "2") for eta in ("0.0", "0.7")
    ]
    for row in rows:
        assert (swept / row["file"]).is_file() and (row["distance"], row["psnr"]) == ("0.5", "20.0")
        assert row["job"] in row["file"] and row["model"] == "tiny" and row["embedding_steps"] == STEPS


def test_errors_have_a_row_for_each_job_that_failed(swept):
    [row] = rows_of(swept / "errors.csv")
    assert (row["row"], row["text"], row["error"]) == ("3", "bad", "a bad job: bad")


def test_after_the_fault_is_gone_errors_are_empty(tmp_path, swept):
    sweep(write_table(tmp_path, ["a car", NASTY], etas="0 0.7", seeds="1 2"), swept, work=DRAW)
    assert rows_of(swept / "errors.csv") == [] and "<h1>Failed" not in (swept / "report.html").read_text("utf-8")


def test_the_page_needs_no_network_and_takes_no_text_for_html(swept):
    page = (swept / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|<link|<iframe|fetch\(", page)
    assert page.count("<script>") == 1 and str(escape(NASTY)) in page and NASTY not in page
    assert page.count('src="edits/') == 8 and page.count("<section data-text=") == 2
    assert [float(eta) for eta in re.findall(r'<option value="([\d.]+)">', page)] == [0, 0.7]
    for link in re.findall(r'(?:href|src)="([^"]+)"', page):
        assert (swept / link).is_file()
    assert "a bad job: bad" in page


def test_the_time_left_counts_only_what_is_done_in_this_start(tmp_path, monkeypatch):
    jobs = jobs_in(tmp_path, [f"a car {k}" for k in range(100)])
    setup = Setup(str(run.take(tmp_path / "out", DRAW)), "second")
    bar = run.tqdm(total=100, initial=60)
    monkeypatch.setattr(bar, "_time", lambda now=bar.start_t: now + 50.0)
    for job in jobs[:70]:
        setup.folder(job).mkdir()
    for number, job in enumerate(jobs[70:]):
        write_json(setup.error_file(job), {"run": "second" if number < 20 else "first", "error": "bad"})
    assert run.show_on(bar, jobs, setup) == 10
    shown = bar.format_dict
    assert (shown["n"], shown["initial"], shown["total"]) == (70, 60, 80)
    # ten in 50 s; of 40 at the start ten more are to be done, for twenty failed: 50 s
    assert "<00:50" in str(bar)
    bar.close()


def test_a_folder_with_files_of_the_user_s_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files of yours, such as 'thesis"):
        sweep(write_table(tmp_path, ["a car"]), tmp_path / "out", work=DRAW)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_file_instead_of_the_folder_and_a_sweep_of_other_work_are_refused(tmp_path, swept):
    table = write_table(tmp_path, ["a car"])
    with pytest.raises(ValueError, match=r"in\.png is not a folder"):
        sweep(table, tmp_path / "in.png", work=DRAW)
    with pytest.raises(ValueError, match="holds a sweep of other work"):
        sweep(table, swept)


# --- the command line


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`sweep` on the command line, with the stub's work."""
    real = run.sweep
    monkeypatch.setattr(package, "sweep", lambda *args, **options: real(*args, **options, work=DRAW))
    return lambda table, *more: main(["sweep", str(table), "--out", str(tmp_path / "out"), *more])


def test_exit_codes_say_whether_all_is_done(tmp_path, command, capsys):
    assert command(write_table(tmp_path, ["a car", "bad"])) == 1
    assert "1 done, 1 failed, 0 open" in capsys.readouterr().out
    before = marks(tmp_path / "out")
    assert command(write_table(tmp_path, ["a car", "a cat"])) == 0
    assert before.items() <= marks(tmp_path / "out").items()


def test_faults_are_a_line_each_and_one_sentence_and_nothing_is_started(tmp_path, command, capsys):
    assert command(write_table(tmp_path, ["a car", "", "a car"])) == 2
    *faults, sentence = capsys.readouterr().err.strip().splitlines()
    assert faults == ["row 3: text: " + faults[0].partition("text: ")[2], "row 4: it is the same edit as row 2"]
    assert sentence.endswith("jobs.csv has 2 faults, nothing was started") and sentence.startswith("imagic: ")
    assert not (tmp_path / "out").exists()


def test_a_stop_keeps_what_is_done_and_says_how_to_go_on(tmp_path, command, capsys, monkeypatch):
    def stopped(jobs, setup, look):
        attempt(jobs[0], setup)
        raise KeyboardInterrupt

    monkeypatch.setitem(run.ENGINES, "local", stopped)
    assert command(write_table(tmp_path, ["a car", "a cat"])) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert {row["text"] for row in rows_of(tmp_path / "out" / "results.csv")} == {"a car"}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--ray", "auto"], "--ray is for --engine ray"),
        (["--cores", "0"], "cores is 0"),
    ],
)
def test_options_that_do_not_fit_are_a_sentence(tmp_path, command, capsys, more, sentence):
    assert command(write_table(tmp_path, ["a car"]), *more) == 2
    assert sentence in capsys.readouterr().err


def test_options_of_slurm_reach_it(tmp_path, command, monkeypatch, capsys):
    seen = {}
    monkeypatch.setitem(run.ENGINES, "slurm", lambda jobs, setup, look, **options: seen.update(options))
    more = ["--engine", "slurm", "--workers", "3", "--slurm", "timeout_min=60", "slurm_partition=gpu"]
    assert command(write_table(tmp_path, ["a car"]), *more) == 1
    assert seen == {"workers": 3, "options": {"timeout_min": 60, "slurm_partition": "gpu"}}
    with pytest.raises(SystemExit):
        command(tmp_path / "jobs.csv", "--engine", "slurm", "--slurm", "partition")
    assert "'partition' is not NAME=VALUE" in capsys.readouterr().err


def test_the_command_makes_a_real_edit(tmp_path, model_folder, capsys):
    write_table(tmp_path, ["a brown dog"], model=str(model_folder), embedding_steps="1", unet_steps="1", etas="1")
    Scene.sample(1).render().save(tmp_path / "in.png")
    assert main(["sweep", str(tmp_path / "jobs.csv"), "--out", str(tmp_path / "out"), "--cores", "1"]) == 0
    assert "1 done, 0 failed, 0 open" in capsys.readouterr().out and len(rows_of(tmp_path / "out" / "results.csv")) == 1
    assert 'alt="input"' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_nothing_of_ray_and_submitit_is_loaded_before_it_is_needed():
    """The command needs neither; so no module of the room imports them at its top."""
    for path in Path(package.__file__).parent.glob("*.py"):
        assert not re.search(r"^(import|from) (ray|submitit)", path.read_text(encoding="utf-8"), re.MULTILINE)
