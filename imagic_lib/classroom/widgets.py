"""Things to play with in a notebook. All but the app only swap pictures that were made before.

Stock widgets, in the part that ipywidgets 7 (Colab) and 8 share. An error in a callback is raised when Python moves
the widget (`sweep`), but when the reader's mouse does, ipywidgets sends it to a log that nobody opens, and the callback
of a button is always caught: the app therefore shows its errors itself.
"""

from __future__ import annotations

import html
import io
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product

import ipywidgets as widgets
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.edit import ETAS, ImagicEdit, run_edit
from imagic_lib.models import DATA, encode_text, settings_for
from imagic_lib.pictures import load_image, open_image
from imagic_lib.toyworld import TEST_SEEDS, Scene, load_scene
from imagic_lib.training.loop import History

SIDE = 256  # pixels on the screen, about
ANOTHER = "another scene"  # in the app's list of drawings: the one of a seed
WIDE = {"description_width": "initial"}


# ---------------------------------------------------------------- pictures


def enlarged(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """The picture about `side` pixels wide: each of its pixels becomes a square, nothing is smoothed over."""
    factor = max(1, round(side / max(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)


def png(picture: Image.Image, side: int = SIDE) -> bytes:
    """What an Image widget takes: the enlarged picture (`side` 0: as it is) as a PNG file."""
    buffer = io.BytesIO()
    (enlarged(picture, side) if side else picture).save(buffer, format="PNG")
    return buffer.getvalue()


def sized(picture: Image.Image, most: int) -> Image.Image:
    """The picture, made smaller if a side is longer than `most` pixels."""
    small = picture.convert("RGB")
    small.thumbnail((most, most), Image.Resampling.LANCZOS)
    return small


def shown(picture: bytes, caption: str) -> widgets.VBox:
    """A picture in the format of `png`, with a caption under it."""
    return widgets.VBox([widgets.Image(value=picture, format="png"), widgets.HTML(html.escape(caption))])


# ---------------------------------------------------------------- widgets over finished pictures


def eta_explorer(
    rows: Sequence[Sequence[Image.Image]],
    etas: Sequence[float],
    seeds: Sequence[int] = (0,),
    *,
    beside: Mapping[str, Image.Image] | None = None,
) -> widgets.VBox:
    """A slider for η and a list of seeds over finished pictures.

    rows: one row a seed, one picture an η, as `ImagicEdit.pictures` returns them. beside: pictures that
    stay next to it, by caption, e.g. {"input": ..., "ground truth": ...}. The result has the attributes
    slider, seed and picture. Raises ValueError if the rows are not one a seed and one picture an η.
    """
    if len(rows) != len(seeds) or any(len(row) != len(etas) for row in rows):
        found = f"{len(rows)} rows of {sorted({len(row) for row in rows})} pictures"
        raise ValueError(f"{found} for {len(seeds)} seeds and {len(etas)} η: give a row a seed, a picture an η")
    if len(set(etas)) < len(etas) or len(set(seeds)) < len(seeds):
        raise ValueError("every η and every seed may stand there once only")
    files = {(s, e): png(p) for s, row in zip(seeds, rows, strict=True) for e, p in zip(etas, row, strict=True)}
    slider = widgets.SelectionSlider(options=[(f"{eta:g}", eta) for eta in etas], description="η", style=WIDE)
    seed = widgets.Dropdown(options=list(seeds), description="seed", style=WIDE)
    middle = shown(files[seed.value, slider.value], "")
    picture, caption = middle.children

    def swap(_change=None) -> None:
        picture.value = files[seed.value, slider.value]
        caption.value = f"η = {slider.value:g}, seed {seed.value}"

    swap()
    for control in (slider, seed):
        control.observe(swap, "value")
    fixed = [shown(png(p), name) for name, p in (beside or {}).items()]
    box = widgets.VBox([widgets.HBox([slider, seed]), widgets.HBox([*fixed[:1], middle, *fixed[1:]])])
    box.slider, box.seed, box.picture = slider, seed, picture
    return box


def denoising_player(
    noisy: Sequence[Image.Image],
    guesses: Sequence[Image.Image],
    labels: Sequence[str],
    *,
    interval: int = 300,
) -> widgets.VBox:
    """Play, or drag, through the steps of a denoising: z_t at the left, the guess of z_0 at the right.

    noisy, guesses: one picture a step each (latents as colours, or decoded). labels: a caption a step, e.g.
    "t = 967". interval: milliseconds a step. The result has the attributes slider, play, noisy and guess.
    Raises ValueError if the three are not of one length.
    """
    if not len(noisy) == len(guesses) == len(labels) > 0:
        raise ValueError(f"{len(noisy)} noisy pictures, {len(guesses)} guesses, {len(labels)} labels: give as many")
    left_files, right_files = [png(p) for p in noisy], [png(p) for p in guesses]
    last = len(labels) - 1
    play = widgets.Play(value=0, min=0, max=last, interval=interval)
    slider = widgets.IntSlider(value=0, min=0, max=last, description="step", style=WIDE)
    caption = widgets.HTML()
    left, right = shown(left_files[0], "z_t, what is there"), shown(right_files[0], "z_0, what the UNet sees in it")

    def swap(_change=None) -> None:
        left.children[0].value, right.children[0].value = left_files[slider.value], right_files[slider.value]
        caption.value = html.escape(labels[slider.value])

    swap()
    slider.observe(swap, "value")
    box = widgets.VBox([widgets.HBox([play, slider, caption]), widgets.HBox([left, right])])
    box.link = widgets.link((play, "value"), (slider, "value"))
    box.slider, box.play, box.noisy, box.guess = slider, play, left.children[0], right.children[0]
    return box


def wiped(before: Image.Image, after: Image.Image, share: float) -> Image.Image:
    """The left `share` of `after` laid over `before`, with a line between them."""
    edge = round(share * before.width)
    picture = before.copy()
    picture.paste(after.crop((0, 0, edge, after.height)), (0, 0))
    if 0 < edge < before.width:
        ImageDraw.Draw(picture).line([(edge, 0), (edge, before.height)], fill="white", width=2)
    return picture


def before_after(before: Image.Image, after: Image.Image, *, stops: int = 21) -> widgets.VBox:
    """A slider that wipes from one picture to the other: 0 shows `before`, 100 `after`.

    stops: how many positions the slider has. The result has the attributes slider and picture. Raises
    ValueError if the pictures differ in size.
    """
    if before.size != after.size:
        raise ValueError(f"the pictures differ in size: {before.size} and {after.size}")
    big = enlarged(before), enlarged(after)
    files = {f"{100 * i / (stops - 1):.0f} %": png(wiped(*big, i / (stops - 1))) for i in range(stops)}
    slider = widgets.SelectionSlider(options=list(files), description="edited", style=WIDE)
    picture = widgets.Image(value=files[slider.value], format="png")

    def swap(change) -> None:
        picture.value = files[change["new"]]

    slider.observe(swap, "value")
    box = widgets.VBox([slider, picture])
    box.slider, box.picture = slider, picture
    return box


# ---------------------------------------------------------------- every value once


def parts(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    """The widget and everything in it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts(child)


def positions(control: widgets.Widget) -> Iterator[Callable[[], None]]:
    """For each value of a slider or list, a function that moves it there."""
    if isinstance(control, widgets.IntSlider):
        for value in range(control.min, control.max + 1, control.step):
            yield lambda value=value: setattr(control, "value", value)
    else:
        for index in range(len(control.options)):
            yield lambda index=index: setattr(control, "index", index)


def sweep(widget: widgets.Widget) -> list[tuple[bytes, ...]]:
    """Move the sliders and lists in a widget through all their values, in all combinations, and back.

    Returns what its pictures showed at each stop. Raises whatever a callback raises. In a notebook this is
    the cell after a widget: it makes sure that no value fails that nobody tried.
    """
    kinds = (widgets.IntSlider, widgets.SelectionSlider, widgets.Dropdown)
    controls = [part for part in parts(widget) if isinstance(part, kinds)]
    if not controls:
        raise ValueError(f"there is no slider and no list in this {type(widget).__name__}")
    before, seen = [control.value for control in controls], []
    for moves in product(*(list(positions(control)) for control in controls)):
        for move in moves:
            move()
        seen.append(tuple(part.value for part in parts(widget) if isinstance(part, widgets.Image)))
    for control, value in zip(controls, before, strict=True):
        control.value = value
    return seen


# ---------------------------------------------------------------- the app


def edit_app(
    pipe: StableDiffusionPipeline,
    *,
    embedding_steps: int | None = None,
    unet_steps: int | None = None,
    etas: Sequence[float] = ETAS,
    seeds: Sequence[int] = (0, 1),
    sampling_steps: int | None = None,
) -> EditApp:
    """One edit with the mouse: choose a drawing, say what it should show, run, and move η.

    Steps left out are the model's own. From Python: set `app.drawing.value` and `app.text.value`, then
    `app.run()` returns the `ImagicEdit`, and raises what goes wrong; or `app.start()` as the Run button
    does, `app.stop()` as the Stop button does, and `app.wait()`. `app.explorer` is the η explorer of the result.
    """
    settings = {"embedding_steps": embedding_steps, "unet_steps": unet_steps}
    return EditApp(pipe, settings, {"etas": etas, "seeds": seeds, "steps": sampling_steps})


class EditApp(widgets.VBox):
    """What `edit_app` returns. Its children are stock widgets; `result` is the last edit, or None."""

    def __init__(self, pipe: StableDiffusionPipeline, settings: dict, sampling: dict):
        self.pipe, self.settings, self.sampling = pipe, settings, sampling
        self.result: ImagicEdit | None = None
        self.explorer: widgets.VBox | None = None
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        names = sorted(path.name for path in (DATA / "images").glob("*.png"))
        self.drawing = widgets.Dropdown(options=[*names, ANOTHER], description="drawing", style=WIDE)
        self.scene_seed = widgets.BoundedIntText(
            value=TEST_SEEDS, min=0, max=2**31 - 1, description="its seed", style=WIDE
        )
        self.text = widgets.Text(description="text", style=WIDE, layout={"width": "36em"})
        self.run_button = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.IntProgress(value=0, min=0, max=1)
        self.status, self.note = widgets.HTML(), widgets.HTML()
        self.input_picture, self.input_caption = widgets.Image(format="png"), widgets.HTML()
        self.output = widgets.VBox()
        self.show_input()
        for control in (self.drawing, self.scene_seed):
            control.observe(self.show_input, "value")
        self.run_button.on_click(lambda _button: self.start())
        self.stop_button.on_click(lambda _button: self.stop())
        super().__init__(
            [
                widgets.HBox([self.drawing, self.scene_seed]),
                widgets.HBox([self.text, self.run_button, self.stop_button]),
                widgets.HBox([self.progress, self.status]),
                self.note,
                widgets.HBox([widgets.VBox([self.input_picture, self.input_caption]), self.output]),
            ]
        )

    # -- what is chosen

    @property
    def scene(self) -> Scene:
        if self.drawing.value == ANOTHER:
            return Scene.sample(self.scene_seed.value)
        return load_scene(DATA / "images" / self.drawing.value)

    @property
    def source(self) -> Image.Image:
        if self.drawing.value == ANOTHER:
            return self.scene.render()
        return open_image(DATA / "images" / self.drawing.value)

    def show_input(self, _change=None) -> None:
        """Show the chosen drawing, and its caption as the text: the reader has a word or two to change."""
        caption = self.scene.caption()
        self.scene_seed.disabled = self.drawing.value != ANOTHER
        self.input_picture.value, self.text.value = png(self.source), caption
        self.input_caption.value = html.escape(f"input: {caption}")

    # -- run, stop, wait

    def run(self) -> ImagicEdit:
        """The whole edit, here and now. Raises what goes wrong, after showing it."""
        self.start(at_once=True)
        return self.wait()

    def start(self, at_once: bool = False) -> None:
        """Begin the edit in a thread, so that the Stop button is heard; or do it at once."""
        if self.is_running():
            raise RuntimeError("an edit is running: wait for it, or stop it")
        self.result = self.explorer = self.error = self._thread = None
        self.output.children = ()
        self._stopping.clear()
        with self.errors_shown():
            image = self.checked_input()
            self.busy(True)
            if at_once:
                self.work(image, self.text.value)
            else:
                self._thread = threading.Thread(target=self.work, args=(image, self.text.value), daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the training after its present step. What was learned is kept, and sampled."""
        self._stopping.set()
        self.say("stopping after this step …")

    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> ImagicEdit:
        """The result, as soon as it is there. Raises what went wrong, or TimeoutError after `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        if self.is_running():
            raise TimeoutError(f"the edit is still running after {timeout:g} seconds")
        if self.error is not None:
            raise self.error
        if self.result is None:
            raise RuntimeError("no edit was started: call run() or start() first")
        return self.result

    # -- the work

    def checked_input(self):
        """The picture as a tensor. What the library warns of, such as unknown words, becomes a note."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            image = load_image(self.source, self.pipe)
            encode_text(self.pipe, self.text.value)
        notes = [str(w.message) for w in caught if w.category is UserWarning]
        if self.text.value.strip() == self.scene.caption():
            notes.append("the text says what the picture shows already: change a word to see an edit")
        self.note.value = "<br>".join(f"note: {html.escape(note)}" for note in notes)
        return image

    def work(self, image, text: str) -> None:
        """Stages 1 to 4; runs in the thread."""
        with self.errors_shown():
            # no catch_warnings here: its filters hold for the whole process, other cells included
            result = run_edit(self.pipe, image, text, **self.settings, watch=self.watch)
            self.stop_button.disabled = True
            etas, seeds, steps = self.sampling.values()
            self.say(f"⏳ stages 3 and 4: {len(etas) * len(seeds)} pictures …")
            rows = result.pictures(etas, seeds, steps=steps)
            self.explorer = eta_explorer(rows, etas, seeds)
            self.output.children = (self.explorer,)
            self.result = result
            self.say(f"{'■ stopped' if self._stopping.is_set() else '✓ done'}: {learned(result)}")
            self.busy(False)

    def watch(self, stage: str, history: History) -> bool:
        """Called by the trainings after each step; True ends the stage."""
        first = "embedding" in stage
        defaults = stage1_embedding.DEFAULTS if first else stage2_finetuning.DEFAULTS["full"]
        given = self.settings["embedding_steps" if first else "unet_steps"]
        self.progress.max = max(1, settings_for(self.pipe, defaults, steps=given)["steps"])
        self.progress.value = len(history.loss)
        self.say(
            f"⏳ {stage}: step {len(history.loss)} of {self.progress.max}, probe loss {history.probe_loss[-1]:.4f}"
        )
        return self._stopping.is_set()

    # -- signs

    def say(self, words: str) -> None:
        self.status.value = html.escape(words)

    def busy(self, now: bool) -> None:
        """Nothing can be chosen while an edit runs, and nothing stopped while none does."""
        for control in (self.drawing, self.text, self.run_button):
            control.disabled = now
        self.scene_seed.disabled = now or self.drawing.value != ANOTHER
        self.stop_button.disabled = not now

    @contextmanager
    def errors_shown(self) -> Iterator[None]:
        """Inside, an exception becomes a sentence in the app, and `error`."""
        try:
            yield
        except Exception as error:
            self.error = error
            sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.note.value = f"<b>✗ {html.escape(sentence)}</b>"
            self.say("nothing was made")
            self.busy(False)


def learned(edit: ImagicEdit) -> str:
    """In words, how many steps each stage made, and what became of the probe loss."""
    stages = []
    for name, history in (("stage 1", edit.embedding_history), ("stage 2", edit.unet_history)):
        first, last = history.probe_loss[0], history.probe_loss[-1]
        stages.append(f"{name}: {len(history.loss)} steps, probe loss {first:.4f} → {last:.4f}")
    return "; ".join(stages)
