"""Figures: each picture and curve in its place, and pictures that keep their colours."""

import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from imagic_lab.classroom import plots
from imagic_lab.toyworld import Scene
from imagic_lib.training.loop import History


def flat(value):
    return Image.new("RGB", (8, 8), (value,) * 3)


def test_the_sheet_has_input_etas_and_truth_in_order():
    edit = SimpleNamespace(text="a dog", input_picture=flat(0), reconstruction=flat(10))
    rows = [[flat(30), flat(37)], [flat(40), flat(47)]]
    figure = plots.edit_sheet(edit, [0, 0.7], [3, 4], rows, truth=flat(200))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["input", "VAE only", "η = 0", "η = 0.7", "ground truth"]
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == ["seed 3", "seed 4"]
    shown = [np.asarray(axis.images[0].get_array())[0, 0, 0] for axis in figure.axes]
    assert shown == [0, 10, 30, 37, 200, 0, 10, 40, 47, 200] and figure.get_suptitle() == "“a dog”"


def test_a_dollar_in_a_text_does_not_start_a_formula():
    grid = plots.picture_grid([[flat(0)]], [r"5$ and \foo{$"], [r"$\bar$"], r"$\foo{$")
    assert plots.png_of(grid).startswith(b"\x89PNG")  # as a formula, \foo would be an error


def test_a_small_thing_keeps_its_colour():
    """Chosen by the counts of pixels alone, 256 colours turned a green emblem grey, and a red collar orange."""
    cars = [Scene.sample(seed, subject="car", colour="yellow", place="beach").render() for seed in range(8)]
    plots.picture_grid([cars[:4], cars[4:]], inch=1.9).savefig(buffer := io.BytesIO(), format="png", dpi=80)
    exact = Image.open(buffer).convert("RGB")
    shown = Image.open(io.BytesIO(plots.png_of(exact))).convert("RGB")
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(exact)).max() < 70


def test_curves_show_raw_and_probe_loss_with_labels():
    history = History([3.0, 2.0, 1.0], [0, 2, 3], [3.0, 2.0, 1.0], [0.1] * 3, 1.0)
    figure = plots.loss_curves(history, history)
    for axis in figure.axes:
        raw, probe = axis.lines
        assert raw.get_ydata().tolist() == [3, 2, 1] and probe.get_xdata().tolist() == [0, 2, 3]
        assert axis.get_xlabel() == "step" and axis.get_legend() is not None
    assert "mean squared error" in figure.axes[0].get_ylabel()
