"""Figures: what a sheet shows is what was drawn."""

import io

import numpy as np
from PIL import Image

import imagic_lib as imagic
from imagic_lab.classroom import plots
from imagic_lab.toyworld import Scene
from imagic_lib.training.loop import History


def flat(value):
    return Image.new("RGB", (8, 8), (value,) * 3)


def test_the_sheet_has_input_etas_and_truth_in_order(pipe):
    image = imagic.load_image(Scene.sample(5).render(), pipe)
    edit = imagic.run_edit(pipe, image, "a dog", embedding_steps=2, unet_steps=2)
    rows = edit.pictures([0, 0.7], [3, 4], steps=2)
    figure = plots.edit_sheet(edit, [0, 0.7], [3, 4], rows, truth=flat(200))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["input", "VAE only", "η = 0", "η = 0.7", "ground truth"]
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == ["seed 3", "seed 4"]
    shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    assert np.array_equal(shown[3], np.asarray(rows[0][1])) and np.array_equal(shown[7], np.asarray(rows[1][0]))
    assert (shown[4] == 200).all() and figure.get_suptitle() == "“a dog”"


def test_a_dollar_in_a_text_is_no_formula():
    grid = plots.picture_grid([[flat(0)]], [r"5$ and \foo{$"], [r"$\bar$"], r"$\foo{$")
    assert plots.png_of(grid).startswith(b"\x89PNG")  # matplotlib would end in an error at the unknown \foo


def test_a_small_thing_keeps_its_colour():
    """By the counts of pixels alone, 256 colours turned a green emblem grey, and a red collar orange."""
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
