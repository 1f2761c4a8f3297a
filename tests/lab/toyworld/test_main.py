"""The commands of the toy world: what they hand on, what they write, and how they end."""

import runpy
import sys
from pathlib import Path

import pytest

import imagic_lib as imagic
from imagic_lab.toyworld import recipe
from imagic_lab.toyworld.__main__ import main
from imagic_lib import __main__ as command_line
from imagic_lib import edit as edits
from imagic_lib import stage1_embedding, stage2_finetuning, stage4_inference
from imagic_lib.suggestion import Suggestion


@pytest.fixture
def made(monkeypatch):
    """The calls of the recipe, which itself trains nothing here."""
    calls = []
    monkeypatch.setattr(recipe, "make", lambda *args, **settings: calls.append((args, settings)))
    return calls


@pytest.fixture
def quick_demo(monkeypatch, pipe):
    """The demo with two steps of each training and of each picture, and with a fixed suggestion."""
    for defaults in (stage1_embedding.DEFAULTS, stage2_finetuning.DEFAULTS["full"], stage4_inference.DEFAULTS):
        monkeypatch.setitem(defaults, "tiny", defaults["tiny"] | {"steps": 2})
    monkeypatch.setattr(command_line, "ETAS", (0.0, 1.0))
    monkeypatch.setattr(imagic, "load_pipeline", {"tiny": pipe}.__getitem__)
    monkeypatch.setattr(command_line, "suggested", lambda edit, noise: Suggestion(1.0, 0.5, {(1.0, 0.5): 1.0}))


def test_train_hands_its_options_to_the_recipe(made, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "data"
    where = ["train", "--runs", str(runs), "--out", str(out)]
    assert main([*where, "--scale", "0.01", "--seed", "7"]) == 0
    assert main([*where, "--start", "data", "--only", "unet", "reader", "--device", "cuda"]) == 0
    first = {"start": None, "only": recipe.NETWORKS, "scale": 0.01, "seed": 7, "device": "cpu"}
    second = {"start": Path("data"), "only": ["unet", "reader"], "device": "cuda"}
    assert made == [((runs, out), first), ((runs, out), first | second | {"scale": 1.0, "seed": 0})]


def test_what_the_recipe_refuses_is_one_sentence_and_exit_2(tmp_path, capsys):
    assert main(["train", "--runs", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--only", "unet"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("imagic: without a model to start from") and errors.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_trained(made, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", "--out", str(tmp_path / "file"), "--runs", str(tmp_path)]) == 2
    assert "can't write to the folder" in capsys.readouterr().err and not made


@pytest.mark.parametrize("option", ["--scale=nan", "--scale=-1", "--seed=-1", "--only=gan"])
def test_an_invalid_option_ends_in_one_sentence_before_anything_is_drawn(tmp_path, monkeypatch, capsys, option):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe.dataset, "render", lambda scenes: pytest.fail("it is drawn"))
    try:
        assert main(["train", option]) == 2
    except SystemExit as error:  # from argparse
        assert error.code == 2
    assert "must be 0 or more" in (said := capsys.readouterr().err) or "invalid choice: 'gan'" in said


def test_the_demo_shows_an_edit_next_to_its_ground_truth(quick_demo, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    assert (
        "text:  'a brown dog jumping on the grass'" in printed
        and "is the ground truth: the nearest picture is 0." in printed
    )
    written = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"edit.png", "losses.png", "edit.json"} <= written
    assert len([name for name in written if name.startswith("eta-") and "0.5" in name]) == 4, "2 η, 2 seeds, scale 0.5"


def test_a_stopped_demo_says_how_to_continue_and_does(quick_demo, tmp_path, monkeypatch, capsys):
    def stopped(*args, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(edits, "fine_tune", stopped)
        assert main(["demo", "--out", str(tmp_path / "demo")]) == 130
    assert "imagic: stopped; the same command goes on where it was\n" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert (tmp_path / "demo" / "edit.png").exists()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_help_names_every_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("imagic_lab.toyworld", run_name="__main__")
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("train", "demo", "python -m imagic_lab.toyworld"))
