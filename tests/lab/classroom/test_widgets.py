"""Widgets: each position shows its picture, a move generates nothing, and errors are raised."""

import ast
import inspect
import io

import ipywidgets
import numpy as np
import pytest
from PIL import Image

import imagic_lib as imagic
from imagic_lab.classroom import widgets
from imagic_lab.toyworld import Scene

ETAS, SEEDS = (0.0, 0.5, 1.0), (3, 7)


@pytest.fixture(scope="module")
def drawings():
    """Twelve different pictures."""
    return [Scene.sample(seed).render() for seed in range(12)]


@pytest.fixture
def rows(drawings):
    return [drawings[0:3], drawings[3:6]]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def forbid(monkeypatch, *names):
    """From here on these functions of the library fail in every module that calls them."""

    def fail(*args, **kwargs):
        raise AssertionError("something was computed on a move")

    for module in (imagic.stage4_inference, imagic.edit, imagic.diffusion, widgets):
        for name in names:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, fail)


# -- pictures


def test_an_enlarged_picture_shows_each_pixel_as_a_square(drawings):
    big = widgets.enlarged(drawings[0])
    assert big.size == (256, 256)
    for part in (np.asarray(big)[0::2, 0::2], np.asarray(big)[1::2, 1::2]):
        assert np.array_equal(part, np.asarray(drawings[0]))
    assert widgets.enlarged(Image.new("RGB", (16, 16))).size == (256, 256)
    assert widgets.enlarged(Image.new("RGB", (512, 512))).size == (512, 512)


# -- the η explorer


def test_every_eta_and_seed_shows_its_own_picture(rows):
    explorer = widgets.eta_explorer(rows, ETAS, SEEDS)
    for seed, row in zip(SEEDS, rows, strict=True):
        for eta, picture in zip(ETAS, row, strict=True):
            explorer.seed.value, explorer.slider.value = seed, eta
            assert np.array_equal(np.asarray(opened(explorer.picture.value)), np.asarray(widgets.enlarged(picture)))


def test_every_combination_is_tried_once_and_the_start_comes_back(rows):
    explorer = widgets.eta_explorer(rows, ETAS, SEEDS)
    explorer.slider.value = 0.5
    before = explorer.picture.value
    seen = widgets.try_all_values(explorer)
    assert len(seen) == len(set(seen)) == len(ETAS) * len(SEEDS)
    assert explorer.slider.value == 0.5 and explorer.picture.value == before


def test_the_pictures_next_to_it_stay(rows, drawings):
    explorer = widgets.eta_explorer(rows, ETAS, SEEDS, beside={"input": drawings[8], "ground truth": drawings[9]})
    seen = widgets.try_all_values(explorer)
    left, middle, right = (set(pictures) for pictures in zip(*seen, strict=True))
    assert left == {widgets.png(drawings[8])} and right == {widgets.png(drawings[9])} and len(middle) == 6


def test_the_caption_names_the_picture(rows):
    explorer = widgets.eta_explorer(rows, ETAS, SEEDS)
    explorer.slider.value, explorer.seed.value = 0.5, 7
    assert any(getattr(part, "value", None) == "η = 0.5, seed 7" for part in widgets.widgets_in(explorer))


def test_the_rows_may_be_values_of_another_knob(rows):
    explorer = widgets.eta_explorer(rows, ETAS, [0.5, 1.0], knob="λ")
    explorer.slider.value, explorer.seed.value = 0.5, 1.0
    assert explorer.seed.description == "λ"
    assert any(getattr(part, "value", None) == "η = 0.5, λ 1.0" for part in widgets.widgets_in(explorer))


def test_a_move_only_swaps_finished_files(rows, drawings, monkeypatch):
    made = [
        widgets.eta_explorer(rows, ETAS, SEEDS),
        widgets.denoising_player(drawings[:3], drawings[3:6], "abc"),
        widgets.before_after(drawings[0], drawings[1]),
    ]
    forbid(monkeypatch, "generate", "denoise", "decode_latents", "encode_image", "run_edit", "png", "enlarged", "wiped")
    for widget in made:
        widgets.try_all_values(widget)


@pytest.mark.parametrize(
    ("etas", "seeds", "message"),
    [((0, 1), SEEDS, "one row per seed"), (ETAS, (1,), "one row per seed"), ((0, 0, 1), SEEDS, "once only")],
)
def test_rows_that_do_not_fit_are_refused(rows, etas, seeds, message):
    with pytest.raises(ValueError, match=message):
        widgets.eta_explorer(rows, etas, seeds)


# -- the player and the wipe


def test_the_player_shows_each_step_of_both_pictures(drawings):
    labels = [f"t = {t}" for t in (901, 601, 301, 1)]
    player = widgets.denoising_player(drawings[:4], drawings[4:8], labels)
    seen = widgets.try_all_values(player)
    assert seen == [(widgets.png(a), widgets.png(b)) for a, b in zip(drawings[:4], drawings[4:8], strict=True)]
    player.play.value = 2  # as if it played
    assert player.slider.value == 2 and player.noisy.value == widgets.png(drawings[2])
    assert any(getattr(part, "value", None) == "t = 301" for part in widgets.widgets_in(player))


def test_a_player_with_too_few_labels_is_refused(drawings):
    with pytest.raises(ValueError, match="3 noisy pictures, 3 guesses, 2 labels"):
        widgets.denoising_player(drawings[:3], drawings[:3], "ab")


def test_the_wipe_goes_from_one_picture_to_the_other(drawings):
    before, after = drawings[:2]
    wipe = widgets.before_after(before, after, stops=5)
    seen = [picture for (picture,) in widgets.try_all_values(wipe)]
    assert len(set(seen)) == 5
    assert seen[0] == widgets.png(before) and seen[-1] == widgets.png(after)
    half = np.asarray(opened(seen[2]))
    assert np.array_equal(half[:, :120], np.asarray(widgets.enlarged(after))[:, :120])
    assert np.array_equal(half[:, 136:], np.asarray(widgets.enlarged(before))[:, 136:])


def test_pictures_of_two_sizes_are_not_wiped(drawings):
    with pytest.raises(ValueError, match="differ in size"):
        widgets.before_after(drawings[0], Image.new("RGB", (64, 64)))


# -- every value once


def test_the_error_of_a_callback_is_raised_whichever_value_it_is_for():
    slider = ipywidgets.IntSlider(min=0, max=4)

    def callback(change):
        if change["new"] == 3:
            raise ZeroDivisionError("at three")

    slider.observe(callback, "value")
    with pytest.raises(ZeroDivisionError, match="at three"):
        widgets.try_all_values(ipywidgets.VBox([slider]))


def test_a_widget_without_controls_is_refused():
    with pytest.raises(ValueError, match="neither a slider"):
        widgets.try_all_values(ipywidgets.VBox([ipywidgets.HTML("text")]))


def test_ipywidgets_itself_swallows_what_a_button_raises():
    """Why the studio shows its errors itself. If this fails, ipywidgets has improved."""
    button = ipywidgets.Button()
    button.on_click(lambda _button: 1 / 0)
    button.click()


# -- ipywidgets 7, as on Colab

STOCK = {"Widget", "Image", "HTML", "VBox", "HBox", "SelectionSlider", "Dropdown", "Play", "IntSlider", "link"}
SETTINGS_OF_7 = {"value", "min", "max", "format", "options", "description", "style", "layout", "interval"}


def test_only_widgets_and_settings_of_ipywidgets_7():
    tree = ast.parse(inspect.getsource(widgets))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    ours = [call for call in calls if getattr(call.func.value, "id", "") == "widgets"]
    assert len(ours) > 10 and {call.func.attr for call in ours} <= STOCK
    assert {keyword.arg for call in ours for keyword in call.keywords} <= SETTINGS_OF_7


def test_the_frontend_knows_every_widget(rows, drawings):
    made = [widgets.eta_explorer(rows, ETAS, SEEDS), widgets.before_after(*drawings[:2])]
    for part in [part for widget in made for part in widgets.widgets_in(widget)]:
        assert part._model_module == "@jupyter-widgets/controls" and part._model_name.removesuffix("Model") in STOCK
