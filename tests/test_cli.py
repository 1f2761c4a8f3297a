"""The command line as a student meets it: bad input gets one sentence, exit 2, and no half-written output."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import imagic_lib as imagic
from imagic_lab.toyworld import Scene, recipe
from imagic_lib import __main__ as command_line
from imagic_lib import edit as edits
from imagic_lib import stage1_embedding, stage2_finetuning, stage4_inference
from imagic_lib.__main__ import NETWORKS, main
from imagic_lib.edit import ETAS
from imagic_lib.folder import LORA_FILE
from imagic_lib.planning import memory
from imagic_lib.suggestion import Suggestion
from imagic_lib.training import loop
from imagic_lib.training.strategies import Strategy

STEPS = ["--steps", "2"]


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    monkeypatch.setitem(stage4_inference.DEFAULTS, "tiny", stage4_inference.DEFAULTS["tiny"] | {"steps": 2})


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "in.png"
    Scene.sample(1).render().save(path)
    return str(path)


@pytest.fixture
def edit(model_folder, tmp_path):
    def run(*arguments):
        return main(["edit", *arguments, "--model", str(model_folder), "--out", str(tmp_path / "out"), *STEPS])

    return run


def test_edit_writes_sheet_curves_pictures_and_prints_where(edit, picture, tmp_path, capsys):
    assert edit(picture, "a brown dog jumping", "--eta", "0", "0.7", "--seed", "0", "3") == 0
    out = tmp_path / "out"
    assert {p.name for p in out.glob("*.png")} == {"edit.png", "losses.png", "input.png"} | {
        f"eta-{eta}-seed-{seed}.png" for eta in ("0", "0.7") for seed in (0, 3)
    }
    for path in out.glob("eta*.png"):
        assert Image.open(path).size == (128, 128) and np.asarray(Image.open(path)).std() > 0
    printed = capsys.readouterr().out
    assert str(out / "edit.png") in printed and "stage 1, embedding" in printed and "distance to input" in printed
    assert not list(out.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.png", "a cat"], "there is no file nowhere.png"),
        ([".", "a cat"], "is a folder"),
        (["PICTURE", ""], "the text is empty"),
        (["PICTURE", "   "], "the text is empty"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(edit, picture, tmp_path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert edit(*(picture if a == "PICTURE" else a for a in arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("imagic: ") and sentence in error
    assert not list((tmp_path / "out").rglob("*.*"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--eta", "much"], "'much' is not a number"),
        (["--eta", "nan"], "'nan' is not a number"),
        (["--eta", "1e30"], "'1e30' is not within ±10"),
        (["--eta", "-1e1", "-1.1e1"], "'-11' is not within ±10"),
        (["--scale", "2.5"], "'2.5' is not from 0 to 2"),
        (["--scale", "half"], "'half' is not a number"),
        (["--eta"], "--eta: expected at least one argument"),
        (["--seed", "-1"], "'-1'"),
        (["--steps", "1.5"], "'1.5' is not a whole number"),
    ],
)
def test_bad_options_say_what_they_take(edit, picture, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        edit(picture, "a cat", *arguments)
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_found_out_before_training(picture, model_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    assert main(["edit", picture, "a cat", "--model", str(model_folder), "--out", str(out)]) == 2
    assert "can't write to the folder" in capsys.readouterr().err


def test_broken_pictures_leave_nothing_behind(edit, tmp_path, capsys):
    for name, content in {"empty.png": b"", "text.png": b"hello", "cut.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF"}.items():
        (tmp_path / name).write_bytes(content)
        assert edit(str(tmp_path / name), "a cat") == 2
        assert name in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.*"))


def test_a_model_that_is_nowhere_is_one_sentence(picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["edit", picture, "a cat", "--model", "no/such-model", "--out", str(tmp_path / "out")]) == 2
    assert "imagic: 'no/such-model' is no folder here" in capsys.readouterr().err


def test_long_texts_and_unknown_words_are_noted_and_run(edit, picture):
    with pytest.warns(UserWarning) as notes:
        assert edit(picture, "a zebra " + "and a dog " * 40, "--eta", "1") == 0
    said = " ".join(str(note.message) for note in notes)
    assert "never saw 'zebra', 'and'" in said and "cut off is '" in said and "a dog and" in said


def test_a_note_is_one_line_without_python_s_own_words(picture, model_folder, tmp_path):
    command = [sys.executable, "-m", "imagic_lib", "edit", picture, "a zebra", "--eta", "1", *STEPS]
    command += ["--model", str(model_folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\nnote: the embedded model never saw 'zebra'" in "\n" + done.stderr
    assert "UserWarning" not in done.stderr and "torchvision" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--eta", "0.5", "0.50", "5e-1", "--seed", "1", "1"], {"eta-0.5-seed-1.png"}),
        (["--eta", "0.5", "--scale", "0.7"], {"eta-0.5-scale-0.7-seed-0.png"}),
        (["--eta", "0.5", "0.5000001"], {"eta-0.5-seed-0.png", "eta-0.5000001-seed-0.png"}),
        (["--eta", "-1e-1", "-.5", "1"], {"eta--0.1-seed-0.png", "eta--0.5-seed-0.png", "eta-1-seed-0.png"}),
    ],
)
def test_every_picture_is_drawn_once_under_a_name_of_its_own(edit, picture, tmp_path, capsys, arguments, names):
    assert edit(picture, "a brown dog", *arguments) == 0
    assert {p.name for p in (tmp_path / "out").glob("eta*")} == names
    assert f"for {len(names)} pictures" in capsys.readouterr().out


def test_without_an_eta_the_embedded_model_s_pictures_are_drawn_at_the_suggested_scale(
    edit, picture, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(imagic.ImagicEdit, "suggest", lambda self: Suggestion(0.8, 0.5, {(0.8, 0.5): 0.9}))
    assert edit(picture, "a brown dog") == 0
    assert {p.name for p in (tmp_path / "out").glob("eta*")} == {f"eta-{e:g}-scale-0.5-seed-0.png" for e in ETAS}
    assert "suggested: η = 0.8 with 50 % of the fine-tuning (scale 0.5)" in capsys.readouterr().out
    monkeypatch.setattr(imagic.ImagicEdit, "suggest", lambda self: Suggestion(0.6, 1.0, {(0.6, 1.0): 0.0}))
    assert edit(picture, "a brown dog") == 0
    assert "no picture of a first try shows what the text says" in capsys.readouterr().out
    monkeypatch.setattr(imagic.ImagicEdit, "suggest", lambda self: pytest.fail("a scale was given"))
    assert edit(picture, "a brown dog", "--scale", "1") == 0


@pytest.fixture
def unnamed(picture, model_folder, tmp_path, monkeypatch):
    """`edit` without --out, in a working directory of its own: arguments -> exit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imagic.ImagicEdit, "suggest", lambda self: Suggestion(0.8, 0.5, {(0.8, 0.5): 0.9}))

    def run(*arguments, steps=STEPS):
        return main(["edit", picture, "A brown dog!", "--model", str(model_folder), *steps, *arguments])

    return run


def test_each_edit_gets_a_folder_named_by_time_and_text(unnamed, capsys):
    for _ in range(2):
        assert unnamed("--eta", "1") == 0
    folders = sorted(Path("out").iterdir())
    assert len(folders) == 2 and all("-a-brown-dog" in folder.name for folder in folders)
    assert f"folder: {folders[0]}" in capsys.readouterr().out
    assert all((folder / "edit.png").is_file() for folder in folders)


def test_resume_goes_on_with_the_edit_that_was_stopped_and_with_no_other(unnamed, monkeypatch, capsys):
    assert unnamed("--resume") == 2
    assert "out holds no unfinished edit of this picture and text" in capsys.readouterr().err
    fine_tune = edits.fine_tune

    def stopped(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(edits, "fine_tune", stopped)
    assert unnamed("--eta", "1") == 130
    assert "stopped; the same command with --resume goes on where it was" in capsys.readouterr().err
    monkeypatch.setattr(edits, "fine_tune", fine_tune)
    assert unnamed("--eta", "1", "--resume", steps=["--steps", "3"]) == 2
    trained, one_step = [], loop.one_step
    monkeypatch.setattr(loop, "one_step", lambda loss, now: trained.append(now.name) or one_step(loss, now))
    assert unnamed("--eta", "1", "--resume") == 0
    assert trained and not [name for name in trained if "stage 1" in name]
    assert len(list(Path("out").iterdir())) == 1
    assert unnamed("--resume", "--out", "elsewhere") == 2
    assert "there is no edit in elsewhere that could go on" in capsys.readouterr().err


def test_a_bad_text_makes_no_folder(picture, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["edit", picture, " ", "--model", str(model_folder)]) == 2
    assert list(Path("out").iterdir()) == []


def test_an_edit_begins_with_a_forecast_unless_it_is_as_short_as_that(unnamed, capsys):
    assert unnamed("--eta", "1") == 0
    assert "forecast" not in capsys.readouterr().out
    assert unnamed("--eta", "1", "--seed", "0", "1", steps=["--steps", "9"]) == 0
    assert re.search(
        r"forecast: about \d+ s in all \(stage 1 \d+ s, stage 2 \d+ s, 2 pictures ", capsys.readouterr().out
    )


def test_fast_draws_with_25_steps_of_dpm_solver(unnamed, monkeypatch):
    drawn, pictures = [], imagic.ImagicEdit.pictures
    monkeypatch.setattr(
        imagic.ImagicEdit, "pictures", lambda self, *a, **how: drawn.append(how) or pictures(self, *a, **how)
    )
    assert unnamed("--eta", "1", "--fast") == 0
    assert drawn == [{"scale": 1.0, "scheduler": "dpm++", "steps": 25}]


def test_a_suggestion_can_be_asked_for(unnamed, capsys):
    assert unnamed("--eta", "1", "--suggest") == 0
    assert "suggested: η = 0.8" in capsys.readouterr().out
    assert len(list(Path("out").rglob("eta-1-scale-0.5-seed-0.png"))) == 1


def read_edit(folder):
    return json.loads((folder / "edit.json").read_text())


def test_each_seed_s_pictures_bear_its_name_and_the_first_is_the_training_s(edit, picture, pipe, tmp_path):
    assert edit(picture, "a brown dog", "--eta", "0", "1", "--seed", "3", "8") == 0
    assert read_edit(tmp_path / "out")["settings"]["seed"] == 3
    rows = imagic.ImagicEdit.load(tmp_path / "out", pipe).pictures([0, 1], [3, 8])
    for seed, row in zip((3, 8), rows, strict=True):
        for eta, expected in zip((0, 1), row, strict=True):
            found = np.asarray(Image.open(tmp_path / "out" / f"eta-{eta}-seed-{seed}.png"), dtype=int)
            assert np.abs(found - np.asarray(expected)).max() <= 2
    assert np.abs(np.asarray(rows[0][0], dtype=int) - np.asarray(rows[1][0])).max() > 2


def test_the_method_is_the_one_that_was_asked_for(edit, picture, tmp_path):
    assert edit(picture, "a brown dog", "--eta", "1", "--method", "lora") == 0
    assert read_edit(tmp_path / "out")["settings"]["method"] == "lora"
    assert (tmp_path / "out" / LORA_FILE).is_file()


def test_fit_takes_what_the_plan_chose_and_refuses_if_nothing_fits(edit, picture, tmp_path, monkeypatch, capsys):
    strategy = Strategy("lora", torch.float32, "Adam", True)
    used = []
    monkeypatch.setattr(memory, "plan", lambda pipe: SimpleNamespace(chosen=strategy))
    for stage in ("optimize_embedding", "fine_tune"):
        monkeypatch.setattr(edits, stage, noting(getattr(edits, stage), used))
    assert edit(picture, "a brown dog", "--eta", "1", "--fit") == 0
    assert used == [strategy, strategy] and read_edit(tmp_path / "out")["settings"]["method"] == "lora"
    monkeypatch.setattr(memory, "plan", lambda pipe: SimpleNamespace(chosen=None, advice="nothing fits"))
    assert edit(picture, "a brown dog", "--fit") == 2
    assert "imagic: nothing fits" in capsys.readouterr().err


def noting(stage, used):
    def noted(*args, **settings):
        used.append(settings["run"].strategy)
        return stage(*args, **settings)

    return noted


def test_pad_keeps_the_whole_picture(edit, tmp_path):
    picture = Image.new("RGB", (128, 64), "white")
    picture.paste((255, 0, 0), (0, 0, 20, 64))  # where a crop would cut
    picture.save(tmp_path / "wide.png")
    with pytest.warns(UserWarning, match="50% is added as borders"):
        assert edit(str(tmp_path / "wide.png"), "a brown dog", "--eta", "1", "--pad") == 0
    assert Image.open(tmp_path / "out" / "input.png").getpixel((5, 64)) == (255, 0, 0)


def test_a_text_with_a_formula_in_it_is_only_a_text(edit, picture, tmp_path):
    """matplotlib would read $…$ as TeX and fail, after the training."""
    assert edit(picture, r"a dog for $\foo{$ and 5$", "--eta", "1") == 0
    assert (tmp_path / "out" / "edit.png").is_file()


# ----------------------------------------------------------------------------------- the user's files


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("name", ["input.png", "cat.png", "edit.png"])
def test_a_picture_in_the_output_folder_stays_there(edit, picture, tmp_path, capsys, name):
    out = tmp_path / "out"
    out.mkdir()
    Path(picture).rename(out / name)
    before = contents(out)
    assert edit(str(out / name), "a brown dog") == 2
    assert f"holds files of yours, such as '{name}': choose a new or empty one" in capsys.readouterr().err
    assert contents(out) == before


def test_a_second_text_does_not_take_the_first_ones_folder(edit, picture, tmp_path, capsys):
    assert edit(picture, "a brown dog", "--eta", "1") == 0
    before = contents(tmp_path / "out")
    assert edit(picture, "a red car", "--eta", "1") == 2
    assert "holds a finished edit of another text, 'a brown dog'" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_the_input_of_a_finished_edit_can_be_edited_on_in_its_folder(edit, picture, tmp_path, monkeypatch):
    """The crop that an edit kept is the same picture: nothing is trained, and nothing lost."""
    assert edit(picture, "a brown dog", "--eta", "1") == 0
    monkeypatch.setattr(edits, "optimize_embedding", None)
    kept = (tmp_path / "out" / "input.png").read_bytes()
    assert edit(str(tmp_path / "out" / "input.png"), "a brown dog", "--eta", "1", "0.25") == 0
    assert (tmp_path / "out" / "input.png").read_bytes() == kept and (
        tmp_path / "out" / "eta-0.25-seed-0.png"
    ).is_file()


# -------------------------------------------------------------------------------------------- show


@pytest.fixture
def shown(edit, picture, model_folder, tmp_path, capsys):
    """A finished edit, and how to show it: arguments -> (exit, printed, errors)."""
    assert edit(picture, "a brown dog", "--eta", "0.5") == 0
    capsys.readouterr()

    def show(*arguments, model=("--model", str(model_folder))):
        code = main(["show", str(tmp_path / "out"), *model, *arguments])
        return code, *capsys.readouterr()

    return show


def test_show_draws_a_saved_edit_again_without_training(shown, tmp_path, capsys):
    path = tmp_path / "out" / "eta-0.5-seed-0.png"
    before = np.asarray(Image.open(path), dtype=int)
    path.write_bytes(b"no picture")
    code, printed, _ = shown("--eta", "0.5")
    assert code == 0 and '"text": "a brown dog"' in printed and "unet: 2 steps, probe loss" in printed
    assert np.abs(np.asarray(Image.open(path), dtype=int) - before).max() <= 2
    assert main(["show", str(tmp_path / "nothing")]) == 2
    assert "no finished edit" in capsys.readouterr().err


def test_show_adds_pictures_and_leaves_those_of_the_user(shown, tmp_path):
    (tmp_path / "out" / "eta-1-seed-0.png").write_bytes(b"mine")
    code, _, errors = shown("--eta", "1", "0.25")
    assert code == 2 and "eta-1-seed-0.png is there already and is not this edit's: move it away" in errors
    assert (tmp_path / "out" / "eta-1-seed-0.png").read_bytes() == b"mine"
    for _ in range(2):
        assert shown("--eta", "0.25")[0] == 0
    assert (tmp_path / "out" / "eta-0.25-seed-0.png").is_file()


def test_show_loads_no_model_that_an_edit_of_a_stranger_names(shown, tmp_path, monkeypatch):
    facts = read_edit(tmp_path / "out")
    facts["base_model"]["name"] = "evil/model"
    (tmp_path / "out" / "edit.json").write_text(json.dumps(facts))
    monkeypatch.setattr(imagic, "load_pipeline", lambda *_: pytest.fail("it was loaded"))
    code, _, errors = shown(model=())
    assert code == 2 and "names 'evil/model' as its model: if you trust that, say so with --model" in errors


def test_show_finds_the_embedded_model_by_itself(shown, tmp_path, pipe, monkeypatch):
    facts = read_edit(tmp_path / "out")
    facts["base_model"]["name"] = "tiny"
    (tmp_path / "out" / "edit.json").write_text(json.dumps(facts))
    asked = []
    monkeypatch.setattr(imagic, "load_pipeline", lambda name: asked.append(name) or pipe)
    assert shown("--eta", "1", model=())[0] == 0 and asked == ["tiny"]


def test_show_in_a_folder_that_can_t_be_written_gives_advice_that_works(shown, tmp_path, monkeypatch):
    def read_only(**_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", read_only)
        code, _, errors = shown()
    assert code == 2 and "(Permission denied): copy it to a place of your own, and show the copy" in errors
    assert "--out" not in errors
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "copy").rename(tmp_path / "out")
    assert shown("--eta", "1")[0] == 0


ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


def test_what_a_stranger_wrote_does_not_reach_the_terminal_raw(shown, tmp_path):
    facts = read_edit(tmp_path / "out")
    (tmp_path / "out" / "edit.json").write_text(json.dumps(facts | {"text": f"a dog {ESCAPE}"}))
    code, printed, errors = shown("--eta", "1")
    assert code == 0 and "a dog" in printed
    assert not any(raw in printed + errors for raw in ("\x1b]", "\x07", "\x1b[2J", "\x9b", "\u202e"))
    facts["base_model"] = {"name": ESCAPE, "fingerprint": "x"}
    (tmp_path / "out" / "edit.json").write_text(json.dumps(facts))
    code, printed, errors = shown("--eta", "1")
    sentence = errors.splitlines()[-1]
    assert code == 2 and "other weights" in sentence and sentence.isascii() and "\x1b" not in printed + sentence


def test_an_error_about_a_file_with_a_strange_name_is_one_printable_line(edit, tmp_path, capsys):
    (tmp_path / "a\x1b[31m\nb.png").write_bytes(b"x")
    assert edit(str(tmp_path / "a\x1b[31m\nb.png"), "a cat") == 2
    errors = capsys.readouterr().err
    assert r"a\x1b[31m\nb.png is no picture" in errors and errors.count("\n") == 1 and "\x1b" not in errors


# ------------------------------------------------------------------------------------- demo, train, stop


@pytest.fixture
def quick_demo(monkeypatch, pipe):
    """The demo with two steps of each training."""
    for defaults in (stage1_embedding.DEFAULTS, stage2_finetuning.DEFAULTS["full"]):
        monkeypatch.setitem(defaults, "tiny", defaults["tiny"] | {"steps": 2})
    monkeypatch.setattr(edits, "ETAS", (0.0, 1.0))
    monkeypatch.setattr(imagic, "load_pipeline", {"tiny": pipe}.__getitem__)


def test_the_demo_shows_an_edit_beside_its_ground_truth(quick_demo, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    assert "text:  'a brown dog jumping on the grass'" in printed and "to ground truth" in printed
    names = {f"eta-{eta}-seed-{seed}.png" for eta in (0, 1) for seed in (0, 1)}
    assert names | {"edit.png", "losses.png", "edit.json"} <= {p.name for p in (tmp_path / "demo").iterdir()}


def test_the_demo_goes_on_where_it_was(quick_demo, tmp_path, monkeypatch, capsys):
    """As its message says when it is stopped."""
    fine_tune = edits.fine_tune

    def stopped(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(edits, "fine_tune", stopped)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 130
    assert "stopped; the same command goes on where it was" in capsys.readouterr().err
    monkeypatch.setattr(edits, "fine_tune", fine_tune)
    steps, one_step = [], loop.one_step
    monkeypatch.setattr(
        loop, "one_step", lambda loss, progress: steps.append(progress.name) or one_step(loss, progress)
    )
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert steps and not [name for name in steps if "stage 1" in name]


@pytest.mark.parametrize(("command", "goes_on"), [("plan", False), ("train", True)])
def test_a_stopped_command_promises_only_what_it_keeps(monkeypatch, capsys, command, goes_on):
    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(command_line.COMMANDS, command, stopped)
    assert main([command]) == 130
    assert ("goes on" in capsys.readouterr().err) == goes_on


def test_train_hands_its_options_to_the_recipe(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(recipe, "make", lambda *args, **settings: made.append((args, settings)))
    runs, out = tmp_path / "runs", tmp_path / "data"
    where = ["train", "--runs", str(runs), "--out", str(out)]
    assert main([*where, "--scale", "0.01", "--seed", "7", "--bf16"]) == 0
    assert main([*where, "--start", "data", "--only", "unet", "reader", "--device", "cuda"]) == 0
    first = {"start": None, "only": NETWORKS, "scale": 0.01, "seed": 7, "bf16": True, "device": "cpu"}
    second = {"start": Path("data"), "only": ["unet", "reader"], "device": "cuda"}
    assert made == [((runs, out), first), ((runs, out), first | second | {"scale": 1.0, "seed": 0, "bf16": False})]


def test_plan_prints_the_table_and_what_is_chosen(model_folder, capsys):
    assert main(["plan", "--model", str(model_folder), "--gpu-gb", "14.75"]) == 0
    assert "chosen: full, float32, Adam" in capsys.readouterr().out


def test_help_names_every_command():
    shown = subprocess.run([sys.executable, "-m", "imagic_lib", "--help"], capture_output=True, text=True, check=True)
    assert (
        all(command in shown.stdout for command in ("edit", "show", "plan", "demo", "train"))
        and "http" not in shown.stderr
    )
