"""The command line as a student meets it: bad input gets one sentence and exit 2, and leaves no half-written output."""

import json
import os
import runpy
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
from imagic_lab.toyworld import Scene
from imagic_lib import __main__ as command_line
from imagic_lib import edit as edits
from imagic_lib import stage4_inference
from imagic_lib.__main__ import main
from imagic_lib.edit import ETAS
from imagic_lib.folder import LORA_FILE
from imagic_lib.planning import memory
from imagic_lib.planning.memory import Way
from imagic_lib.suggestion import Suggestion
from imagic_lib.training.loop import Training
from imagic_lib.training.strategies import Strategy
from tests.common import disk_of, no_more_steps

STEPS = ["--steps", "2"]
TEXT = "a brown dog"


def quick(patch: pytest.MonkeyPatch, pipe) -> None:
    """Pictures of two steps, a small random model under the name "small", and sheets that are not drawn."""
    patch.setitem(stage4_inference.DEFAULTS, "tiny", stage4_inference.DEFAULTS["tiny"] | {"steps": 2})
    load = imagic.load_pipeline
    patch.setattr(imagic, "load_pipeline", lambda model, **_: pipe if model == "small" else load(model))
    blank = SimpleNamespace(savefig=lambda path, **_: path.write_bytes(b"a figure"))
    for figure in ("edit_sheet", "loss_curves"):
        patch.setattr(command_line, figure, lambda *_: blank)


@pytest.fixture(autouse=True)
def quick_edits(monkeypatch, pipe):
    quick(monkeypatch, pipe)


@pytest.fixture
def true_figures(monkeypatch):
    """The sheets are drawn after all."""
    for figure in ("edit_sheet", "loss_curves"):
        monkeypatch.setattr(command_line, figure, getattr(imagic.figures, figure))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "in.png"
    Scene.sample(1).render().save(path)
    return str(path)


@pytest.fixture(scope="module")
def made(pipe, tmp_path_factory):
    """The folder of an edit that the command line made of `picture` and TEXT. No test may change it."""
    place = tmp_path_factory.mktemp("made")
    Scene.sample(1).render().save(place / "in.png")
    command = ["edit", str(place / "in.png"), TEXT, "--model", "small", *STEPS, "--eta", "0.5"]
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, pipe)
        assert main([*command, "--out", str(place / "out")]) == 0
    return place / "out"


@pytest.fixture
def out(made, tmp_path):
    """A copy of that folder, which a test may change."""
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture
def edit(tmp_path):
    """Run `edit` with the folder tmp_path/out: arguments -> exit."""

    def run(*arguments):
        return main(["edit", *arguments, "--model", "small", "--out", str(tmp_path / "out"), *STEPS])

    return run


@pytest.fixture
def again(edit, picture, out, monkeypatch):
    """`edit` once more on a finished edit, which draws and trains nothing."""
    no_more_steps(monkeypatch)
    return lambda *arguments: edit(picture, TEXT, *arguments)


def test_edit_writes_sheet_curves_pictures_and_prints_where(edit, picture, tmp_path, capsys, true_figures):
    assert edit(picture, "a brown dog jumping", "--eta", "0", "0.7", "--seed", "0", "3") == 0
    out = tmp_path / "out"
    assert {p.name for p in out.glob("*.png")} == {"edit.png", "losses.png", "input.png"} | {
        f"eta-{eta}-seed-{seed}.png" for eta in ("0", "0.7") for seed in (0, 3)
    }
    for path in out.glob("eta*.png"):
        assert Image.open(path).size == (128, 128) and np.asarray(Image.open(path)).std() > 0
    assert all(min(Image.open(out / name).size) > 300 for name in ("edit.png", "losses.png"))
    printed = capsys.readouterr().out
    assert str(out / "edit.png") in printed and "stage 1, embedding" in printed and "distance to input" in printed
    assert not list(out.glob(".*"))


# ----------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.png", "a cat"], "no file nowhere.png"),
        ([".", "a cat"], "is a folder"),
        (["PICTURE", ""], "the text is empty"),
        (["PICTURE", "   "], "the text is empty"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(edit, picture, tmp_path, capsys, arguments, sentence):
    assert edit(*(picture if a == "PICTURE" else a for a in arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("imagic: ") and sentence in error
    assert not list((tmp_path / "out").rglob("*.*"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--eta", "much"], "argument --eta: invalid float value: 'much'"),
        (["--eta", "nan"], "imagic: η must be a number within ±10"),
        (["--eta", "1e30"], "imagic: η must be a number within ±10"),
        (["--eta", "-10", "-11.5"], "imagic: η must be a number within ±10"),
        (["--eta"], "argument --eta: expected at least one argument"),
        (["--scale", "2.5"], "imagic: scale is 2.5: it goes from 0"),
        (["--scale", "nan"], "imagic: scale is nan"),
        (["--scale", "half"], "argument --scale: invalid float value: 'half'"),
        (["--seed", "-1"], "imagic: seeds must be a list of one or more whole numbers from 0"),
        (["--seed", str(2**63)], "imagic: seeds must be a list of one or more whole numbers from 0"),
        (["--seed", "0.5"], "argument --seed: invalid int value: '0.5'"),
        (["--steps", "1.5"], "argument --steps: invalid int value: '1.5'"),
        (["--fit", "--method", "lora"], "argument --method: not allowed with argument --fit"),
    ],
)
def test_bad_options_say_what_they_take_and_nothing_is_written(
    picture, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imagic, "load_pipeline", lambda model, **_: pytest.fail("a model was loaded"))
    try:
        code = main(["edit", picture, "a cat", "--model", "small", *arguments])
    except SystemExit as stop:  # from argparse
        code = stop.code
    assert code == 2 and sentence in capsys.readouterr().err.splitlines()[-1]
    assert not Path("out").exists()


def test_a_number_of_steps_below_0_is_refused_before_a_folder_is_taken(edit, picture, tmp_path, capsys):
    assert main(["edit", picture, "a cat", "--model", "small", "--steps", "-1", "--out", str(tmp_path / "out")]) == 2
    assert "imagic: steps is -1: it must be 0 or more" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_show_checks_its_numbers_too(out, capsys):
    assert main(["show", str(out), "--model", "small", "--scale", "3"]) == 2
    assert "imagic: scale is 3.0: it goes from 0" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_found_out_before_training(picture, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["edit", picture, "a cat", "--model", "small", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "can't write to the folder" in capsys.readouterr().err


def test_broken_pictures_leave_nothing_behind(edit, tmp_path, capsys):
    for name, content in {"empty.png": b"", "text.png": b"hello", "cut.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF"}.items():
        (tmp_path / name).write_bytes(content)
        assert edit(str(tmp_path / name), "a cat") == 2
        assert name in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.*"))


def test_a_model_that_is_nowhere_is_one_sentence(picture, tmp_path, capsys):
    assert main(["edit", picture, "a cat", "--model", "no/such-model", "--out", str(tmp_path / "out")]) == 2
    assert "imagic: 'no/such-model' is not a folder here" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(edit, picture, tmp_path, capsys, monkeypatch):
    """There is room for the checkpoint of stage 1 alone."""
    with (
        disk_of(300_000),
        pytest.warns(UserWarning, match=r"checkpoint-full.* could not be written .*a stop would lose"),
    ):
        assert edit(picture, TEXT, "--eta", "1") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("imagic: ") and "File too large" in error
    trained, take = [], Training.step
    monkeypatch.setattr(Training, "step", lambda now, loss: trained.append(now.name) or take(now, loss))
    assert edit(picture, TEXT, "--eta", "1") == 0
    assert trained == ["stage 2, all weights"] * 2 and (tmp_path / "out" / "edit.json").is_file()


def test_long_texts_and_unknown_words_are_noted_and_run(edit, picture):
    with pytest.warns(UserWarning) as notes:
        assert edit(picture, "a zebra " + "and a dog " * 40, "--eta", "1") == 0
    said = " ".join(str(note.message) for note in notes)
    assert "never saw 'zebra', 'and'" in said and "cut off is '" in said and "a dog and" in said


@pytest.fixture(scope="module")
def on_a_poor_terminal(model_folder, tmp_path_factory):
    """The whole command in a process, in a notebook's environment, with a terminal that has neither η nor 犬."""
    place = tmp_path_factory.mktemp("poor")
    Scene.sample(1).render().save(place / "in.png")
    command = [sys.executable, "-m", "imagic_lib", "edit", str(place / "in.png"), "a zebra 犬", "--eta", "1", *STEPS]
    command += ["--model", str(model_folder), "--out", str(place / "out")]
    more = {"PYTHONIOENCODING": "cp1252", "MPLBACKEND": "inline"}
    return subprocess.run(command, env=os.environ | more, capture_output=True, encoding="cp1252", check=True)


def test_a_note_is_one_line_without_python_s_own_words(on_a_poor_terminal):
    said = on_a_poor_terminal.stderr  # notes and progress bars alone
    assert all(line.startswith("note: ") or "%|" in line for line in said.splitlines() if line.strip())
    assert any(line.startswith("note: ") and "never saw 'zebra'" in line for line in said.splitlines())
    assert not any(word in said for word in ("UserWarning", "torchvision", "http"))


def test_a_terminal_that_lacks_letters_and_a_notebooks_backend_lose_no_work(on_a_poor_terminal):
    assert "?  distance to input" in on_a_poor_terminal.stdout and "'?'" in on_a_poor_terminal.stderr


# --------------------------------------------------------------------------------- what is drawn, and where


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--eta", "0.5", "0.50", "5e-1", "--seed", "0", "0"], {"eta-0.5-seed-0.png"}),
        (["--eta", "0.5", "--scale", "0.7"], {"eta-0.5-scale-0.7-seed-0.png"}),
        (["--eta", "0.5", "0.5000001"], {"eta-0.5-seed-0.png", "eta-0.5000001-seed-0.png"}),
        (["--eta", "-0.1", "-.5", "1"], {"eta--0.1-seed-0.png", "eta--0.5-seed-0.png", "eta-1-seed-0.png"}),
    ],
)
def test_every_picture_is_drawn_once_and_has_its_own_name(again, out, capsys, arguments, names):
    (out / "eta-0.5-seed-0.png").unlink()
    assert again(*arguments) == 0
    assert {p.name for p in out.glob("eta*")} == names
    assert f"for {len(names)} pictures" in capsys.readouterr().out


@pytest.fixture
def suggestion(monkeypatch):
    """What an edit suggests, or a failure if it was not asked for: found by a model's own measure."""

    def suggest(*found):
        monkeypatch.setattr(command_line, "plugin_of", lambda pipe, name: name == "measure" or None)
        failure = lambda self, noise: pytest.fail("it was not asked for")  # noqa: E731
        monkeypatch.setattr(
            imagic.ImagicEdit, "suggest", (lambda self, noise: Suggestion(*found)) if found else failure
        )

    return suggest


def test_without_an_eta_the_pictures_are_drawn_at_the_scale_that_the_models_own_measure_suggests(
    again, out, suggestion, capsys, monkeypatch
):
    suggestion(0.8, 0.5, {(0.8, 0.5): 0.9})
    assert again() == 0
    drawn = {f"eta-{eta:g}-scale-0.5-seed-0.png" for eta in ETAS}
    assert {p.name for p in out.glob("eta*")} == {"eta-0.5-seed-0.png"} | drawn
    assert "suggested: η = 0.8, scale 0.5 (the share of the fine-tuning)" in capsys.readouterr().out
    monkeypatch.setattr(command_line, "ETAS", (1.0,))
    suggestion(0.6, 1.0, {(0.6, 1.0): 0.0})
    assert again() == 0
    assert "no picture of a first try shows what the text says" in capsys.readouterr().out
    suggestion()
    assert again("--scale", "1") == again("--eta", "1") == 0
    monkeypatch.setattr(command_line, "plugin_of", lambda pipe, name: None)
    assert again() == 0, "a model that names no measure suggests nothing unasked"


def test_a_suggestion_can_be_asked_for(again, out, suggestion, capsys):
    suggestion(0.8, 0.5, {(0.8, 0.5): 0.9})
    assert again("--eta", "1", "--suggest") == 0
    assert "suggested: η = 0.8" in capsys.readouterr().out
    assert (out / "eta-1-scale-0.5-seed-0.png").is_file()


def test_pictures_start_from_the_noise_that_was_asked_for_in_half_precision_on_a_gpu(again, monkeypatch):
    drawn, pictures = [], imagic.ImagicEdit.pictures

    def note(self, etas, seeds, **how):
        drawn.append(how)
        return pictures(self, etas, seeds, **how | {"steps": 1})

    monkeypatch.setattr(imagic.ImagicEdit, "pictures", note)
    for more in (["--noise", "random"], []):
        assert again("--eta", "1", *more) == 0
    assert drawn == [{"scale": 1.0, "noise": noise, "half": True} for noise in ("random", "own")]


@pytest.fixture
def unnamed(picture, tmp_path, monkeypatch):
    """`edit` without --out, in a working directory of its own: arguments -> exit."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, steps=STEPS: main(
        ["edit", picture, "A brown dog!", "--model", "small", *steps, *arguments]
    )


def test_each_edit_gets_a_folder_named_by_time_and_text(unnamed, capsys):
    for _ in range(2):
        assert unnamed("--eta", "1", steps=["--steps", "0"]) == 0
    folders = sorted(Path("out").iterdir())
    assert len(folders) == 2 and all("-a-brown-dog" in folder.name for folder in folders)
    assert f"folder: {folders[0]}" in capsys.readouterr().out
    assert all((folder / "edit.png").is_file() for folder in folders)


@pytest.fixture
def stopped(monkeypatch):
    """Stage 2 is stopped at once."""

    def stop(*args, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(edits, "fine_tune", stop)
        yield patch


def test_resume_goes_on_with_the_edit_that_was_stopped_and_with_no_other(unnamed, stopped, monkeypatch, capsys):
    assert unnamed("--resume") == 2
    assert "unfinished edit of this picture and text" in capsys.readouterr().err
    assert unnamed("--eta", "1") == 130
    assert "stopped; the same command with --resume goes on where it was" in capsys.readouterr().err
    stopped.undo()
    assert unnamed("--eta", "1", "--resume", steps=["--steps", "3"]) == 2
    trained, take = [], Training.step
    monkeypatch.setattr(Training, "step", lambda now, loss: trained.append(now.name) or take(now, loss))
    assert unnamed("--eta", "1", "--resume") == 0
    assert trained == ["stage 2, all weights"] * 2
    assert len(list(Path("out").iterdir())) == 1
    assert unnamed("--resume", "--out", "elsewhere") == 2
    assert "no edit in elsewhere that could go on: leave out --resume" in capsys.readouterr().err


def test_a_bad_text_makes_no_folder(unnamed, picture):
    assert main(["edit", picture, " ", "--model", "small"]) == 2
    assert list(Path("out").iterdir()) == []


def read_edit(folder):
    return json.loads((folder / "edit.json").read_text())


def test_each_seed_s_pictures_bear_its_name_and_the_first_is_the_training_s(edit, picture, pipe, tmp_path):
    assert edit(picture, TEXT, "--eta", "0", "1", "--seed", "3", "8") == 0
    assert read_edit(tmp_path / "out")["settings"]["seed"] == 3
    rows = imagic.ImagicEdit.load(tmp_path / "out", pipe).pictures([0, 1], [3, 8])
    for seed, row in zip((3, 8), rows, strict=True):
        for eta, expected in zip((0, 1), row, strict=True):
            found = np.asarray(Image.open(tmp_path / "out" / f"eta-{eta}-seed-{seed}.png"), dtype=int)
            assert np.abs(found - np.asarray(expected)).max() <= 2
    assert np.abs(np.asarray(rows[0][1], dtype=int) - np.asarray(rows[1][1])).max() > 2


def test_the_method_is_the_one_that_was_asked_for(edit, picture, tmp_path):
    assert edit(picture, TEXT, "--eta", "1", "--method", "lora") == 0
    assert read_edit(tmp_path / "out")["settings"]["method"] == "lora"
    assert (tmp_path / "out" / LORA_FILE).is_file()


def test_fit_takes_what_the_plan_chose_and_refuses_if_nothing_fits(edit, picture, tmp_path, monkeypatch, capsys):
    way, used = Way("lora", Strategy(torch.float32, checkpointing=True)), []
    chosen = memory.Plan("small", 128, 16.0, [way])
    monkeypatch.setattr(command_line, "plan", lambda pipe: chosen)
    for stage in ("optimize_embedding", "fine_tune"):
        monkeypatch.setattr(edits, stage, noting(getattr(edits, stage), used))
    assert edit(picture, TEXT, "--eta", "1", "--fit") == 0
    assert used == [way.strategy] * 2 and read_edit(tmp_path / "out")["settings"]["method"] == "lora"
    assert "chosen: LoRA, float32, Adam, checkpointing" in capsys.readouterr().out
    chosen = chosen._replace(gpu_gb=1.0)
    assert edit(picture, TEXT, "--fit") == 2
    assert "imagic: nothing fits into 1.00 GiB" in capsys.readouterr().err


def noting(stage, used):
    def noted(*args, **settings):
        used.append(settings["run"].strategy)
        return stage(*args, **settings)

    return noted


@pytest.mark.filterwarnings("ignore:the embedded model never saw")
def test_a_text_with_a_formula_in_it_is_only_a_text(edit, picture, tmp_path, true_figures):
    """matplotlib would read $…$ as TeX and fail, after the training."""
    assert edit(picture, r"a dog for $\foo{$ and 5$", "--eta", "1") == 0
    assert Image.open(tmp_path / "out" / "edit.png").size[1] > 100


# ----------------------------------------------------------------------------------- the user's files


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("name", ["input.png", "cat.png", "edit.png"])
def test_a_picture_in_the_output_folder_stays_there(edit, picture, tmp_path, capsys, name):
    out = tmp_path / "out"
    out.mkdir()
    Path(picture).rename(out / name)
    before = contents(out)
    assert edit(str(out / name), TEXT) == 2
    assert f"holds files of yours, such as '{name}': choose a new or empty one" in capsys.readouterr().err
    assert contents(out) == before


def test_a_second_text_does_not_take_the_first_ones_folder(edit, picture, out, capsys):
    before = contents(out)
    assert edit(picture, "a red car", "--eta", "1") == 2
    assert f"holds a finished edit of another text, '{TEXT}'" in capsys.readouterr().err
    assert contents(out) == before


def test_the_input_of_a_finished_edit_can_be_edited_on_in_its_folder(edit, out, monkeypatch):
    """The crop that an edit kept is the same picture: nothing is trained, and nothing lost."""
    no_more_steps(monkeypatch)
    kept = (out / "input.png").read_bytes()
    assert edit(str(out / "input.png"), TEXT, "--eta", "1", "0.25") == 0
    assert (out / "input.png").read_bytes() == kept and (out / "eta-0.25-seed-0.png").is_file()


# -------------------------------------------------------------------------------------------- show


@pytest.fixture
def shown(out, monkeypatch, capsys):
    """How to show a finished edit: arguments -> (exit, printed, errors)."""
    no_more_steps(monkeypatch)

    def show(*arguments, model=("--model", "small")):
        code = main(["show", str(out), *model, *arguments])
        return code, *capsys.readouterr()

    return show


def test_show_draws_a_saved_edit_again_without_training(shown, out, tmp_path, capsys):
    path = out / "eta-0.5-seed-0.png"
    before = np.asarray(Image.open(path), dtype=int)
    path.write_bytes(b"not a picture")
    code, printed, _ = shown("--eta", "0.5")
    assert code == 0 and f'"text": "{TEXT}"' in printed and "unet: 2 steps, probe loss" in printed
    assert np.abs(np.asarray(Image.open(path), dtype=int) - before).max() <= 2
    assert main(["show", str(tmp_path / "nothing")]) == 2
    assert "no finished edit" in capsys.readouterr().err


def test_show_adds_pictures_and_leaves_other_files_alone(shown, out):
    (out / "my-eta-1.png").write_bytes(b"mine")
    for _ in range(2):
        assert shown("--eta", "0.25")[0] == 0
    assert (out / "eta-0.25-seed-0.png").is_file() and (out / "my-eta-1.png").read_bytes() == b"mine"


def renamed(folder, name: str) -> dict:
    """The edit says that it was made with a model of this name."""
    facts = read_edit(folder)
    facts["base_model"]["name"] = name
    (folder / "edit.json").write_text(json.dumps(facts))
    return facts


def test_show_loads_no_model_that_an_edit_of_a_stranger_names(shown, out, monkeypatch):
    renamed(out, "evil/model")
    monkeypatch.setattr(imagic, "load_pipeline", lambda *_, **__: pytest.fail("it was loaded"))
    code, _, errors = shown(model=())
    assert code == 2 and "names 'evil/model' as its model: if you trust that, say so with --model" in errors


def test_show_finds_the_embedded_model_without_its_name(shown, out, pipe, monkeypatch):
    renamed(out, "tiny")
    asked = []
    monkeypatch.setattr(imagic, "load_pipeline", lambda name, **_: asked.append(name) or pipe)
    assert shown("--eta", "1", model=())[0] == 0 and asked == ["tiny"]


def test_show_in_a_folder_that_can_t_be_written_gives_advice_that_works(shown, out, tmp_path, monkeypatch):
    def read_only(**_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", read_only)
        code, _, errors = shown()
    assert code == 2 and "(Permission denied): copy it to a place of your own, and show the copy" in errors
    assert "--out" not in errors
    shutil.copytree(out, tmp_path / "copy")
    shutil.rmtree(out)
    (tmp_path / "copy").rename(out)
    assert shown("--eta", "1")[0] == 0


ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_stranger_s_text_does_not_reach_the_terminal_raw(shown, out, true_figures):
    facts = read_edit(out)
    (out / "edit.json").write_text(json.dumps(facts | {"text": f"a dog {ESCAPE}"}))
    code, printed, errors = shown("--eta", "1")
    assert code == 0 and "a dog" in printed
    assert not any(raw in printed + errors for raw in ("\x1b]", "\x07", "\x1b[2J", "\x9b", "\u202e"))
    facts["base_model"] = {"name": ESCAPE, "fingerprint": "x"}
    (out / "edit.json").write_text(json.dumps(facts))
    code, printed, errors = shown("--eta", "1")
    sentence = errors.splitlines()[-1]
    assert code == 2 and "edit.json is damaged" in sentence and sentence.isascii() and "\x1b" not in printed + sentence


def test_an_error_about_a_file_with_a_strange_name_is_one_printable_line(edit, tmp_path, capsys):
    (tmp_path / "a\x1b[31m\nb.png").write_bytes(b"x")
    assert edit(str(tmp_path / "a\x1b[31m\nb.png"), "a cat") == 2
    errors = capsys.readouterr().err
    assert r"a\x1b[31m\nb.png is not a picture" in errors and errors.count("\n") == 1 and "\x1b" not in errors


# --------------------------------------------------------------------------------- the other commands


@pytest.mark.parametrize(("command", "goes_on"), [("plan", False), ("show", False), ("edit", True)])
def test_a_stopped_command_promises_only_what_it_keeps(monkeypatch, capsys, command, goes_on):
    def stop(*_):
        raise KeyboardInterrupt

    for name in ("plan", "run_show_command", "run_edit_command"):
        monkeypatch.setattr(command_line, name, stop)
    arguments = {"plan": [], "show": ["folder"], "edit": ["in.png", "a cat"]}
    assert main([command, *arguments[command]]) == 130
    assert ("goes on" in capsys.readouterr().err) == goes_on


def test_plan_prints_the_table_and_what_is_chosen(model_folder, capsys):
    assert main(["plan", "--model", str(model_folder), "--gpu-gb", "14.75"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{model_folder}, 128 x 128 pixels, 14.75 GiB of memory")
    assert printed.splitlines()[-1] == "chosen: full, float32, Adam"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpu-gb", "0"], "imagic: gpu_gb is 0.0: give the GPU's memory in GiB, e.g. 14.75 for a T4"),
        (["--gpu-gb", "much"], "argument --gpu-gb: invalid float value: 'much'"),
        (["--model", "no/such-model"], "imagic: 'no/such-model' is not a complete diffusers model ("),
    ],
)
def test_a_plan_of_something_invalid_is_one_sentence(capsys, arguments, sentence):
    try:
        code = main(["plan", *arguments])
    except SystemExit as stop:  # from argparse
        code = stop.code
    assert code == 2 and sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["demo", "sweep", "benchmark", "train"])
def test_other_commands_are_handed_to_the_lab_with_their_arguments(monkeypatch, command):
    handed = []
    lab = {"main": lambda arguments: handed.append(arguments) or 7}
    monkeypatch.setattr(runpy, "run_module", {"imagic_lab": lab}.__getitem__)
    assert main([command, "--out", "x", "-1e-1"]) == 7 and handed == [[command, "--out", "x", "-1e-1"]]


@pytest.mark.parametrize("command", ["demo", "sweep", "benchmark", "train"])
def test_the_lab_has_every_command(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and command in capsys.readouterr().out


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(command in shown for command in ("edit", "show", "plan", "demo", "sweep", "benchmark", "train"))


def test_what_is_said_of_the_sampler_is_said_before_the_training(model_folder, tmp_path, monkeypatch, capsys):
    other = shutil.copytree(model_folder, tmp_path / "other")
    facts = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    facts |= {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(facts))
    index = json.loads((other / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    (other / "model_index.json").write_text(json.dumps(index))

    def training(*given, **settings):
        assert any("EulerDiscreteScheduler can't be followed" in str(note.message) for note in notes)
        raise ValueError("as far as this test goes")

    monkeypatch.setattr(imagic, "run_edit", training)
    picture = str(imagic.DATA / "images" / "dog-sitting.png")
    words = ["edit", picture, "a cat", "--model", str(other), "--out", str(tmp_path / "x")]
    with pytest.warns(UserWarning) as notes:
        assert main(words) == 2 and "as far as this test goes" in capsys.readouterr().err
