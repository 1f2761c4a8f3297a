"""The benchmark on ToyEdit: rows that go on after a stop, failures as rows, versions, the arithmetic of its tables."""

import csv
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import imagic_lib as imagic
from imagic_lab.benchmark import benchmark as bench
from imagic_lab.benchmark.benchmark import COLUMNS, LISTS, Rows, best_value, interval, tables
from imagic_lab.methods import METHODS
from imagic_lab.sweep.work import read_json
from imagic_lab.toyworld.edits import VERSION, toyedit
from imagic_lab.toyworld.reader import Report, load_reader
from imagic_lib import stage1_embedding, stage2_finetuning, stage4_inference
from imagic_lib.__main__ import main
from imagic_lib.diffusion import PROBE_PAIRS, decode_latents, encode_image
from imagic_lib.models import DATA
from imagic_lib.pictures import load_image, to_picture

HERE = dict.fromkeys(bench.VERSIONS, "1")


class QuickReader:
    """Reads nothing: a picture is right if its first pixel is light, and keeps as much as that pixel is red."""

    bound, net = 0.1, torch.nn.Linear(1, 1)

    def report(self, picture, truth, before):
        red = picture.getpixel((0, 0))[0]
        return Report(red > 100, True, red / 255, 0.125)

    def may_be(self, picture, truth):
        return picture.getpixel((0, 0))[0] > 20


def grey(shade):
    return Image.new("RGB", (128, 128), (shade,) * 3)


def drawing(title, fails=()):
    """A method that draws at once: the higher its knob, the lighter; with seed 1 always dark. `calls` says for which
    texts it was started."""
    calls = []

    def prepare(pipe, image, text):
        calls.append(text)
        if len(calls) in fails:
            raise RuntimeError(f"{title} can't do\nthat")
        return lambda knob, seeds: [grey(0 if seed == 1 else int(255 * knob)) for seed in seeds]

    return replace(METHODS["sdedit"], title=title, prepare=prepare, values=(0.2, 0.5, 1.0)), calls


@pytest.fixture
def two(pipe, monkeypatch):
    """Two methods that draw at once, a model that nobody trained, and a reader that reads nothing."""
    found = {"quick": drawing("Quick"), "failing": drawing("Failing", fails=(2,))}
    monkeypatch.setattr(bench, "METHODS", {name: method for name, (method, _) in found.items()})
    monkeypatch.setattr(bench, "pipeline", lambda model, device: pipe)
    monkeypatch.setattr(bench, "the_reader", QuickReader)
    monkeypatch.setattr(bench, "SEEDS", (0, 1))
    return SimpleNamespace(**{name: calls for name, (_, calls) in found.items()})


@pytest.fixture
def command(tmp_path):
    def start(*arguments, split="dev"):
        files = ["--out", str(tmp_path / f"{split}.csv"), "--dev", str(tmp_path / "dev.csv")]
        return main(["benchmark", "--split", split, *files, "--runs", str(tmp_path / "runs"), *arguments])

    return start


def rows_in(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def row(method="imagic", index=0, success="0 1", **more):
    lists = dict.fromkeys(LISTS, "0.5 0.25") | {"success": success}
    about = {
        "split": "dev",
        "edit": index,
        "kind": "pose",
        "method": method,
        "values": "0 1",
        "psnr": 30,
        "settings": "1",
    }
    cost = {
        "seconds": 10,
        "seconds_a_picture": "9 0.5",
        "evaluations": 100,
        "evaluations_a_picture": "9 60",
        "with_gradient": 90,
    }
    return {name: str((about | lists | cost | HERE | more).get(name, "")) for name in COLUMNS}


# -- the command


def test_a_row_for_each_edit_and_method_with_a_sheet_of_pictures(two, command, tmp_path, capsys):
    assert command("--edits", "3") == 0
    rows = rows_in(tmp_path / "dev.csv")
    pairs = [(str(k), name) for k in range(3) for name in ("failing", "quick")]
    assert [(one["edit"], one["method"]) for one in rows] == pairs
    first, (scene, change) = rows[1], toyedit("dev")[0]
    assert first["from"] == scene.caption() and first["to"] == scene.edit(**change).caption()
    assert (first["kind"], first["values"], first["pictures"]) == ("pose", "0.2 0.5 1", "2")
    assert first["success"] == first["right"] == "0 0.5 0.5"
    assert first["kept"] == "nan 0.498 1" and first["distance"] == "nan 0.125 0.125"  # of the pictures that are right
    assert first["toyedit"] == VERSION and first["torch"] in torch.__version__ and len(first["model"]) == 16
    assert all(first[name] for name in COLUMNS if name != "error") and float(first["psnr"]) > 3
    sheets = [Image.open(path) for path in tmp_path.glob("runs/*/sweep/edits/*/sheet.png")]
    assert len(sheets) == 5 and all(one.size == (5 * 128, 2 * 128) for one in sheets)
    assert [sheets[0].getpixel((x, 5))[0] for x in (260, 390, 520)] == [51, 127, 255]
    assert "| Quick | strength = 1 | 50 % (50–50) | 100 % (100–100) | 50 % (50–50) | – |" in capsys.readouterr().out


def test_a_method_that_fails_is_a_row_with_its_reason_and_is_tried_again(two, command, tmp_path, capsys):
    assert command("--edits", "2") == 0
    failed = [one for one in rows_in(tmp_path / "dev.csv") if one["error"]]
    assert [(one["method"], one["edit"], one["error"]) for one in failed] == [("failing", "1", "Failing can't do that")]
    assert "| Failing | strength = 1 | 25 % (0–50) |" in capsys.readouterr().out
    assert command("--edits", "2") == 0
    assert not any(one["error"] for one in rows_in(tmp_path / "dev.csv"))
    assert len(two.failing) == 3 and len(two.quick) == 2


def test_stopped_it_goes_on_with_what_is_missing(two, command, tmp_path, monkeypatch):
    measure = bench.measure

    def stopping(method, *arguments):
        if method.title == "Quick" and len(two.quick) == 1:
            raise KeyboardInterrupt
        return measure(method, *arguments)

    monkeypatch.setattr(bench, "measure", stopping)
    assert command("--edits", "3", "--methods", "quick") == 130
    assert [one["edit"] for one in rows_in(tmp_path / "dev.csv")] == ["0"]
    monkeypatch.setattr(bench, "measure", measure)
    (tmp_path / "dev.csv").unlink()  # the jobs are there, so the file can be made again
    assert command("--edits", "3", "--methods", "quick") == 0
    assert len(two.quick) == 3 and [one["edit"] for one in rows_in(tmp_path / "dev.csv")] == ["0", "1", "2"]
    assert command("--edits", "3", "--methods", "quick") == 0 and len(two.quick) == 3


def test_other_values_of_a_knob_are_measured_anew(two, command, tmp_path, monkeypatch):
    command("--edits", "1", "--methods", "quick")
    other = replace(bench.METHODS["quick"], values=(0.1, 0.9))
    monkeypatch.setitem(bench.METHODS, "quick", other)
    assert command("--edits", "1", "--methods", "quick") == 0
    assert [one["values"] for one in rows_in(tmp_path / "dev.csv")] == ["0.1 0.9"] and len(two.quick) == 2


def test_other_settings_of_a_method_are_measured_anew_for_that_method_alone(two, command, tmp_path, monkeypatch):
    command("--edits", "1")
    before = {one["method"]: one["settings"] for one in rows_in(tmp_path / "dev.csv")}
    monkeypatch.setitem(bench.METHODS, "quick", replace(bench.METHODS["quick"], settings=({"lr": 0.1},)))
    assert command("--edits", "1") == 0
    after = {one["method"]: one["settings"] for one in rows_in(tmp_path / "dev.csv")}
    assert after["quick"] != before["quick"] and after["failing"] == before["failing"]
    assert (len(two.quick), len(two.failing)) == (2, 1)
    monkeypatch.setitem(stage4_inference.DEFAULTS, "tiny", stage4_inference.DEFAULTS["tiny"] | {"steps": 7})
    assert command("--edits", "1") == 0 and (len(two.quick), len(two.failing)) == (3, 2)


def test_a_name_of_settings_tells_methods_apart_but_not_where_the_community_pipeline_lies():
    settings = {name: bench.settings_of(method) for name, method in METHODS.items()}
    assert settings["sdedit"] == settings["text"]  # sampling alone
    assert len({settings[name] for name in ("imagic", "imagic-paper", "imagic-lora", "no-stage-1", "no-stage-2")}) == 5
    here, there = (bench.settings_of(bench.community_methods(path)["community"]) for path in ("a.py", "b.py"))
    assert here == there != settings["sdedit"]


def test_knobs_of_other_settings_are_refused(two, command, tmp_path, monkeypatch, capsys):
    assert command("--edits", "1", "--methods", "quick") == 0
    monkeypatch.setitem(bench.METHODS, "quick", replace(bench.METHODS["quick"], values=(0.1, 0.9)))
    assert command("--edits", "1", "--methods", "quick", split="test") == 2
    assert "has no rows of quick, as they are now" in capsys.readouterr().err


def test_the_test_takes_its_knobs_from_dev_and_is_refused_without(two, command, tmp_path, capsys):
    assert command("--edits", "1", split="test") == 2
    assert "has no rows of quick, failing, as they are now: run --split dev with them first" in capsys.readouterr().err
    command("--edits", "1", "--methods", "quick")
    rows = rows_in(tmp_path / "dev.csv")
    rows[0]["success"] = "0 0 1"
    Rows(tmp_path / "dev.csv", {name: rows[0][name] for name in bench.VERSIONS}).put(rows)
    assert command("--edits", "1", "--methods", "quick", split="test") == 0
    assert "| Quick | strength = 1 | 50 % (50–50) |" in capsys.readouterr().out
    assert rows_in(tmp_path / "test.csv")[0]["split"] == "test"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "magic"], "the method 'magic' is unknown: choose from quick, failing"),
        (
            ["--methods", "community"],
            "the method 'community' needs diffusers' imagic_stable_diffusion.py",
        ),
        (["--community", "nowhere.py"], "there is no file nowhere.py"),
        (["--edits", "0"], "edits is 0: 'dev' has from 1 to 40"),
        (["--edits", "41"], "edits is 41: 'dev' has from 1 to 40"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(two, command, tmp_path, capsys, arguments, sentence):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_community_pipeline_travels_with_the_sweep(two, command, tmp_path, monkeypatch):
    path, seen = tmp_path / "imagic_stable_diffusion.py", []

    def rows_of(copied):
        if str(copied) not in ("", str(path)):
            seen.append(copied.read_text(encoding="utf-8"))
        return {"community": bench.METHODS["quick"]}

    path.write_text("x = 1", encoding="utf-8")
    monkeypatch.setattr(bench, "community_methods", rows_of)
    assert command("--edits", "1", "--methods", "community", "--community", str(path)) == 0
    assert seen == ["x = 1"] and rows_in(tmp_path / "dev.csv")[0]["method"] == "community"


# -- measuring


def test_psnr_is_that_of_the_knobs_first_value(pipe):
    near = to_picture(decode_latents(pipe, encode_image(pipe, load_image(toyedit("dev")[0][0].render(), pipe))))
    kept = replace(METHODS["sdedit"], prepare=lambda *given: lambda knob, seeds: [near if knob == 0.5 else grey(0)])
    for values, psnr in (((0.5, 0.2), float("inf")), ((0.2, 0.5), 10)):
        found, _ = bench.measure(replace(kept, values=values), pipe, toyedit("dev")[0], QuickReader(), seeds=[0])
        assert found["psnr"] == psnr or found["psnr"] < psnr == 10


def test_one_picture_is_drawn_where_seeds_change_nothing_and_the_cost_is_that_of_one(pipe, monkeypatch):
    monkeypatch.setitem(stage4_inference.DEFAULTS, "tiny", stage4_inference.DEFAULTS["tiny"] | {"steps": 2})
    method = replace(METHODS["ddim-inversion"], values=(0.0, 5.0))
    found, drawn = bench.measure(method, pipe, toyedit("dev")[0], QuickReader(), seeds=[0, 1, 2])
    assert [len(some) for some in drawn] == [1, 1] and found["pictures"] == 1
    assert (found["evaluations"], found["with_gradient"], found["evaluations_a_picture"]) == (2, 0, "4 4")


def test_a_failure_keeps_nothing(pipe, monkeypatch):
    """Neither a wrong picture nor a right one that is badly drawn."""
    bad = Report(True, False, 0.9, 0.1)
    monkeypatch.setattr(QuickReader, "report", lambda self, picture, truth, before: bad)
    found, _ = bench.measure(drawing("Quick")[0], pipe, toyedit("dev")[0], QuickReader(), seeds=[0])
    assert (found["right"], found["success"]) == ("1 1 1", "0 0 0")
    assert found["kept"] == found["distance"] == "nan nan nan"


def test_training_is_counted_without_the_curves_that_we_look_at(pipe, monkeypatch):
    for defaults in (stage1_embedding.DEFAULTS, stage2_finetuning.DEFAULTS["full"]):
        monkeypatch.setitem(defaults, "tiny", defaults["tiny"] | {"steps": 25, "batch": 2})
    monkeypatch.setitem(stage4_inference.DEFAULTS, "tiny", stage4_inference.DEFAULTS["tiny"] | {"steps": 1})
    method = replace(METHODS["imagic"], values=(1.0,))
    found, _ = bench.measure(method, pipe, toyedit("dev")[0], QuickReader(), seeds=[0])
    ends = 2 * 2 * PROBE_PAIRS  # a probe before and after each stage
    assert (found["with_gradient"], found["evaluations"]) == (100, 100 + ends)


def test_the_shipped_reader_has_a_name_that_its_bound_and_weights_change():
    reader = load_reader()
    name = bench.hash_of_reader(reader)
    reader.bound *= 1.1
    assert bench.hash_of_reader(reader) != name
    reader.bound /= 1.1
    with torch.no_grad():
        next(reader.net.parameters()).mul_(1.1)
    assert bench.hash_of_reader(reader) != name


def test_the_version_of_a_folder_is_that_of_its_pyproject(monkeypatch):
    def missing(name):
        raise bench.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(bench.metadata, "version", missing)
    assert bench.library_version().count(".") == 2


# -- rows and tables


@pytest.mark.parametrize("name", bench.VERSIONS)
def test_rows_of_another_version_are_refused(tmp_path, name):
    path = tmp_path / "rows.csv"
    Rows(path, HERE).put([row()])
    assert len(Rows(path, HERE).rows) == 1
    with pytest.raises(ValueError, match=rf"was measured with {name} 1 \(here 2\): move it away"):
        Rows(path, HERE | {name: "2"})


def test_a_file_that_is_not_of_the_benchmark_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "rows.csv"
    for content in (b"a,b\n1,2\n", b"\xff\xfe\x00", ",".join(COLUMNS).encode() + b"\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"has not the columns|is no CSV file"):
            Rows(path, HERE)
        assert path.read_bytes() == content


def test_the_knob_is_chosen_for_success_and_details_kept_and_of_equal_ones_the_more_faithful():
    rows = [row(success="0 1 0.5", kept="nan 0.5 0.5"), row(success="0.5 0 1", kept="0.5 nan 0.5", index=1)]
    rows.append(row(success="1 1 1", kept="1 0 0", error="no", index=2))
    assert best_value(rows, "imagic") == 2
    assert best_value([row(success="0.5 0.5", kept="0.5 0.5")], "imagic") == 0
    # a little less success, and much more kept
    assert best_value([row(success="0.75 1", kept="0.8 0.5")], "imagic") == 0


def test_along_the_knob_details_count_by_successful_picture():
    rows = [row(success="0 1", kept="nan 0.5"), row(success="0 0.5", kept="nan 0.2", index=1)]
    success, kept = bench.along_knob(rows, "imagic")
    assert success.tolist() == [0, 0.75] and np.isnan(kept[0]) and kept[1] == pytest.approx(0.4)  # two of three at 0.5


def test_the_table_counts_a_failure_as_no_success_and_adds_training_to_drawing():
    methods = {"imagic": METHODS["imagic"], "text": METHODS["text"]}
    rows = [row(success="0 1"), row(success="0 0.5", index=1, psnr=20), row(index=2, error="no", success="")]
    told = tables(methods, rows, [row(success="0 1")])
    assert "| Imagic | η = 0.8, λ = 1 | 50 % (0–100) | 25 % (25–25) | 12 % (0–25) | 25.0 | 10.5 | 70 + 90 | 1 |" in told
    assert "| The text alone | – |" in told and "| success | pose | colour | place | subject |" in told
    assert re.search(r"^\| Imagic (\| – )*\| 50 % (\| – )*\|$", told, re.MULTILINE), "a mean, without interval"


def test_an_interval_holds_the_mean_of_the_pictures_in_19_of_20_draws():
    rng, hits = np.random.default_rng(3), 0
    for _ in range(100):
        low, high = interval(rng.random(40) < 0.6, repeats=400).split("(")[1].strip(")").split("–")
        hits += float(low) <= 60 <= float(high)
    assert 88 <= hits <= 99
    assert interval([1, 1, 1]) == "100 % (100–100)"


def test_the_row_of_a_job_lies_in_its_folder(two, command, tmp_path):
    command("--edits", "1", "--methods", "quick")
    [facts] = tmp_path.glob("runs/*/sweep/edits/*/job.json")
    assert read_json(facts)["row"]["method"] == "quick" and read_json(facts)["settings"]["seeds"] == [0, 1]


# -- the rows in the repository


def shipped(split):
    return rows_in(DATA / "experiments" / f"toyedit-{split}.csv")


def test_the_shipped_rows_are_whole_and_of_one_model():
    methods = METHODS | bench.community_methods("")
    for split, count in (("dev", 4), ("test", 12)):
        rows = shipped(split)
        assert bench.current(rows, methods) == rows and not any(one["error"] for one in rows)
        assert {(one["method"], int(one["edit"])) for one in rows} == {(m, k) for m in methods for k in range(count)}
    assert len({tuple(one[name] for name in bench.VERSIONS) for one in shipped("dev") + shipped("test")}) == 1


@pytest.mark.parametrize(("name", "edit"), [("npi", 3), ("sdedit", 3), ("imagic-fast", 2)])
def test_a_shipped_row_is_what_its_edit_gives_today(name, edit):
    """At the first value of the knob, of which PSNR speaks, and at the one that the table has. One picture of four may
    be another on another processor, since a training amplifies how it rounds."""
    method, [row] = METHODS[name], [r for r in shipped("test") if (r["method"], r["edit"]) == (name, str(edit))]
    best = best_value(shipped("dev"), name)
    few = replace(method, values=(method.values[0], method.values[best]))
    found, _ = bench.measure(few, imagic.load_pipeline("tiny"), toyedit("test")[edit], load_reader())
    assert [found[what] for what in ("settings", "evaluations")] == [row["settings"], int(row["evaluations"])]
    assert abs(found["psnr"] - float(row["psnr"])) < 1
    for what, near in (("success", 0.26), ("kept", 0.1)):
        assert abs(bench.numbers_in(found[what])[1] - bench.numbers_in(row[what])[best]) < near
