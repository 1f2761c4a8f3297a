"""Widgets: each position shows its own picture, nothing is generated on a move, errors are seen, Stop stops."""

import ast
import inspect
import io
import re
import threading
import warnings

import ipywidgets
import numpy as np
import pytest
from PIL import Image

import imagic_lib as imagic
from imagic_lib.classroom import widgets
from imagic_lib.toyworld import Scene

ETAS, SEEDS = (0.0, 0.5, 1.0), (3, 7)
FEW = {"embedding_steps": 3, "unet_steps": 3, "etas": ETAS, "seeds": SEEDS, "sampling_steps": 2}
TEXT = "a yellow car parked in the snow"


@pytest.fixture(scope="module")
def drawings():
    """Twelve pictures, no two of them equal."""
    return [Scene.sample(seed).render() for seed in range(12)]


@pytest.fixture
def rows(drawings):
    return [drawings[0:3], drawings[3:6]]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def forbid(monkeypatch, *names):
    """From here on these functions of the library fail, wherever they are called."""

    def fail(*args, **kwargs):
        raise AssertionError("something was computed on a move")

    for module in (imagic.stage4_inference, imagic.edit, imagic.diffusion, widgets):
        for name in names:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, fail)


# -- pictures


def test_an_enlarged_picture_has_the_same_pixels_each_as_a_square(drawings):
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


def test_a_sweep_passes_every_combination_once_and_puts_all_back(rows):
    explorer = widgets.eta_explorer(rows, ETAS, SEEDS)
    explorer.slider.value, before = 0.5, None
    before = explorer.picture.value
    seen = widgets.sweep(explorer)
    assert len(seen) == len(set(seen)) == len(ETAS) * len(SEEDS)
    assert explorer.slider.value == 0.5 and explorer.picture.value == before


def test_the_pictures_beside_it_stay(rows, drawings):
    explorer = widgets.eta_explorer(rows, ETAS, SEEDS, beside={"input": drawings[8], "ground truth": drawings[9]})
    seen = widgets.sweep(explorer)
    left, middle, right = (set(pictures) for pictures in zip(*seen, strict=True))
    assert left == {widgets.png(drawings[8])} and right == {widgets.png(drawings[9])} and len(middle) == 6


def test_the_caption_says_what_is_seen(rows):
    explorer = widgets.eta_explorer(rows, ETAS, SEEDS)
    explorer.slider.value, explorer.seed.value = 0.5, 7
    assert any(getattr(part, "value", None) == "η = 0.5, seed 7" for part in widgets.parts(explorer))


def test_a_move_only_swaps_finished_files(rows, drawings, monkeypatch):
    made = [
        widgets.eta_explorer(rows, ETAS, SEEDS),
        widgets.denoising_player(drawings[:3], drawings[3:6], "abc"),
        widgets.before_after(drawings[0], drawings[1]),
    ]
    forbid(monkeypatch, "generate", "denoise", "decode_latents", "encode_image", "run_edit", "png", "enlarged", "wiped")
    for widget in made:
        widgets.sweep(widget)


@pytest.mark.parametrize(
    ("etas", "seeds", "message"),
    [((0, 1), SEEDS, "give a row a seed"), (ETAS, (1,), "give a row a seed"), ((0, 0, 1), SEEDS, "once only")],
)
def test_rows_that_do_not_fit_are_refused(rows, etas, seeds, message):
    with pytest.raises(ValueError, match=message):
        widgets.eta_explorer(rows, etas, seeds)


# -- the player and the wipe


def test_the_player_shows_each_step_of_both_pictures(drawings):
    labels = [f"t = {t}" for t in (901, 601, 301, 1)]
    player = widgets.denoising_player(drawings[:4], drawings[4:8], labels)
    seen = widgets.sweep(player)
    assert seen == [(widgets.png(a), widgets.png(b)) for a, b in zip(drawings[:4], drawings[4:8], strict=True)]
    player.play.value = 2  # as if it played
    assert player.slider.value == 2 and player.noisy.value == widgets.png(drawings[2])
    assert any(getattr(part, "value", None) == "t = 301" for part in widgets.parts(player))


def test_a_player_without_as_many_labels_is_refused(drawings):
    with pytest.raises(ValueError, match="3 noisy pictures, 3 guesses, 2 labels"):
        widgets.denoising_player(drawings[:3], drawings[:3], "ab")


def test_the_wipe_goes_from_one_picture_to_the_other(drawings):
    before, after = drawings[:2]
    wipe = widgets.before_after(before, after, stops=5)
    seen = [picture for (picture,) in widgets.sweep(wipe)]
    assert len(set(seen)) == 5
    assert seen[0] == widgets.png(before) and seen[-1] == widgets.png(after)
    half = np.asarray(opened(seen[2]))
    assert np.array_equal(half[:, :120], np.asarray(widgets.enlarged(after))[:, :120])
    assert np.array_equal(half[:, 136:], np.asarray(widgets.enlarged(before))[:, 136:])


def test_pictures_of_two_sizes_are_not_wiped(drawings):
    with pytest.raises(ValueError, match="differ in size"):
        widgets.before_after(drawings[0], Image.new("RGB", (64, 64)))


# -- sweep


def test_a_sweep_raises_what_a_callback_raises_at_a_value_that_nobody_tried():
    slider = ipywidgets.IntSlider(min=0, max=4)

    def callback(change):
        if change["new"] == 3:
            raise ZeroDivisionError("at three")

    slider.observe(callback, "value")
    with pytest.raises(ZeroDivisionError, match="at three"):
        widgets.sweep(ipywidgets.VBox([slider]))


def test_a_sweep_over_nothing_is_refused():
    with pytest.raises(ValueError, match="no slider"):
        widgets.sweep(ipywidgets.VBox([ipywidgets.HTML("text")]))


def test_ipywidgets_itself_swallows_what_a_button_raises():
    """Why the app shows its errors itself. If this fails, ipywidgets has got better."""
    button = ipywidgets.Button()
    button.on_click(lambda _button: 1 / 0)
    button.click()


# -- the app


def an_app(pipe):
    app = widgets.edit_app(pipe, **FEW)
    app.drawing.value, app.text.value = "car-parked.png", TEXT
    return app


@pytest.fixture
def app(pipe):
    app = an_app(pipe)
    yield app
    app.stop()
    if app.is_running():
        app._thread.join(600)


@pytest.fixture(scope="module")
def finished(pipe):
    """An app after a press on Run, and all that its status said meanwhile."""
    app, said = an_app(pipe), []
    app.status.observe(lambda change: said.append(change["new"]), "value")
    app.run_button.click()
    app.wait(timeout=600)
    return app, said


def test_the_app_makes_the_edit_that_run_edit_makes(finished, pipe):
    app, _ = finished
    image = imagic.load_image(imagic.DATA / "images" / "car-parked.png", pipe)
    same = imagic.run_edit(pipe, image, TEXT, embedding_steps=3, unet_steps=3)
    assert (app.result.e_opt == same.e_opt).all() and app.result.unet_history.loss == same.unet_history.loss
    assert app.explorer.picture.value == widgets.png(same.pictures(ETAS, SEEDS, steps=2)[0][0])


def test_afterwards_the_app_holds_an_explorer_with_a_picture_for_every_value(finished, monkeypatch):
    app, _ = finished
    assert app.explorer in widgets.parts(app)
    forbid(monkeypatch, "generate", "denoise", "decode_latents", "run_edit")
    assert len(set(widgets.sweep(app.explorer))) == len(ETAS) * len(SEEDS)


def test_the_busy_sign_names_stage_step_and_probe_loss(finished):
    app, said = finished
    assert any(re.search(r"stage 1, .*: step 2 of 3, probe loss \d\.\d", line) for line in said)
    assert any(re.search(r"stage 2, .*: step 3 of 3, probe loss \d\.\d", line) for line in said)
    assert "6 pictures" in said[-2] and said[-1].startswith("✓ done: stage 1: 3 steps")
    assert app.stop_button.disabled and not app.run_button.disabled


def test_choosing_a_drawing_shows_it_with_its_caption(app):
    seen = set()
    for name in app.drawing.options:
        app.drawing.value = name
        assert app.text.value == app.scene.caption() and app.text.value in app.input_caption.value
        seen.add(app.input_picture.value)
    assert len(seen) == len(app.drawing.options) == 6
    app.drawing.value = widgets.ANOTHER
    app.scene_seed.value += 1
    assert app.input_picture.value == widgets.png(Scene.sample(app.scene_seed.value).render())
    assert app.input_picture.value not in seen


def test_run_brings_the_result_and_the_app_can_be_used_again(app):
    app.settings = {"embedding_steps": 1, "unet_steps": 1}
    first = app.run()
    app.drawing.value = "dog-sitting.png"
    assert app.run() is app.result and app.result is not first and app.result.text == app.text.value


def started_and_held(app, monkeypatch, at_step):
    """Start the app in its thread and hold it at a step of stage 1; returns the event that lets it go."""
    reached, go, watch = threading.Event(), threading.Event(), app.watch

    def held(stage, history):
        if len(history.loss) == at_step:
            reached.set()
            assert go.wait(600)
        return watch(stage, history)

    monkeypatch.setattr(app, "watch", held)
    app.settings = {"embedding_steps": 500, "unet_steps": 500}
    app.start()
    assert reached.wait(600)
    return go


def test_stop_ends_the_training_and_keeps_what_was_learned(app, monkeypatch):
    go = started_and_held(app, monkeypatch, at_step=2)
    assert app.is_running() and app.run_button.disabled and not app.stop_button.disabled
    app.stop_button.click()
    go.set()
    result = app.wait(timeout=600)
    assert len(result.embedding_history.loss) == 2 and len(result.unet_history.loss) == 1
    assert result.embedding_history.stopped and not (result.e_opt == result.e_tgt).all()
    assert app.status.value.startswith("■ stopped: stage 1: 2 steps")
    assert len(set(widgets.sweep(app.explorer))) == len(ETAS) * len(SEEDS)


def test_while_an_edit_runs_no_second_one_starts_and_waiting_may_end(app, monkeypatch):
    go = started_and_held(app, monkeypatch, at_step=1)
    with pytest.raises(RuntimeError, match="an edit is running"):
        app.start()
    with pytest.raises(TimeoutError, match="still running"):
        app.wait(timeout=0.01)
    app.stop()
    go.set()
    app.wait(timeout=600)


def test_while_an_edit_runs_other_cells_may_warn(app, monkeypatch):
    filters = list(warnings.filters)
    go = started_and_held(app, monkeypatch, at_step=1)
    try:
        assert warnings.filters == filters
    finally:
        app.stop()
        go.set()
        app.wait(timeout=600)


@pytest.mark.parametrize("how", ["run", "click"])
def test_an_empty_text_is_one_sentence_in_the_app(app, how):
    app.text.value = "  "
    if how == "run":
        with pytest.raises(ValueError, match="the text is empty"):
            app.run()
    else:
        app.run_button.click()
        with pytest.raises(ValueError, match="the text is empty"):
            app.wait()
    assert "✗ the text is empty" in app.note.value and "\n" not in app.note.value
    assert not app.run_button.disabled and app.stop_button.disabled and app.result is None
    app.text.value = TEXT
    app.checked_input()
    assert "✗" not in app.note.value


def test_an_error_inside_the_thread_is_shown_and_raised_by_wait(app, monkeypatch):
    def diverge(*args, **kwargs):
        raise FloatingPointError("stage 1 diverged <at> step 3")

    monkeypatch.setattr(widgets, "run_edit", diverge)
    app.start()
    with pytest.raises(FloatingPointError):
        app.wait(timeout=600)
    assert "✗ stage 1 diverged &lt;at&gt; step 3" in app.note.value and not app.run_button.disabled


def test_unknown_words_and_an_unchanged_text_are_notes(app):
    app.text.value = "a yellow giraffe in the snow"
    app.checked_input()
    assert "never saw &#x27;giraffe&#x27;" in app.note.value
    app.text.value = app.scene.caption()
    app.checked_input()
    assert "change a word" in app.note.value and "giraffe" not in app.note.value


def test_nothing_started_is_nothing_to_wait_for(pipe):
    with pytest.raises(RuntimeError, match="no edit was started"):
        widgets.edit_app(pipe).wait()


# -- ipywidgets 7, as on Colab

STOCK = {"Widget", "Image", "HTML", "VBox", "HBox", "SelectionSlider", "Dropdown", "Play", "IntSlider", "link",
         "BoundedIntText", "Text", "Button", "IntProgress"}  # fmt: skip
SETTINGS_OF_7 = {
    "value", "min", "max", "format", "options", "description", "style", "layout", "disabled", "icon", "button_style",
    "interval"}  # fmt: skip


def test_only_widgets_and_settings_that_ipywidgets_7_has_too():
    tree = ast.parse(inspect.getsource(widgets))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    ours = [call for call in calls if getattr(call.func.value, "id", "") == "widgets"]
    assert len(ours) > 10 and {call.func.attr for call in ours} <= STOCK
    assert {keyword.arg for call in ours for keyword in call.keywords} <= SETTINGS_OF_7


def test_the_frontend_knows_every_widget(app):
    for part in widgets.parts(app):
        assert part._model_module == "@jupyter-widgets/controls" and part._model_name.removesuffix("Model") in STOCK
