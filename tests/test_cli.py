"""The command line as a student meets it: bad input gets one sentence, exit 2, and no half-written output."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from imagic_lib.__main__ import main
from imagic_lib.toyworld import Scene

STEPS = ["--steps", "2"]


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


def test_show_draws_a_saved_edit_again_without_training(edit, picture, model_folder, tmp_path, capsys):
    assert edit(picture, "a brown dog", "--eta", "0.5") == 0
    before = Image.open(tmp_path / "out" / "eta-0.5-seed-0.png").copy()
    (tmp_path / "out" / "eta-0.5-seed-0.png").unlink()
    capsys.readouterr()
    arguments = ["show", str(tmp_path / "out"), "--model", str(model_folder), "--eta", "0.5"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert '"text": "a brown dog"' in printed and "unet: 2 steps, probe loss" in printed
    after = Image.open(tmp_path / "out" / "eta-0.5-seed-0.png")
    assert np.abs(np.asarray(after, dtype=int) - np.asarray(before, dtype=int)).max() <= 2
    assert main(["show", str(tmp_path / "nothing")]) == 2
    assert "no finished edit" in capsys.readouterr().err


def test_plan_prints_the_table_and_what_is_chosen(model_folder, capsys):
    assert main(["plan", "--model", str(model_folder), "--gpu-gb", "14.75"]) == 0
    assert "chosen: full, float32, Adam" in capsys.readouterr().out


def test_help_names_every_command():
    shown = subprocess.run([sys.executable, "-m", "imagic_lib", "--help"], capture_output=True, text=True, check=True)
    assert (
        all(command in shown.stdout for command in ("edit", "show", "plan", "demo", "train"))
        and "http" not in shown.stderr
    )
