"""The studio: from a drawing or an uploaded photo to a finished edit, in one widget, with the mouse.

`state` holds what it knows and does; here are the panels, and the functions that their buttons call. All are stock
widgets that ipywidgets 7 (Colab) and 8 share. Training and drawing run in a thread, so that the notebook stays usable.
An error in a click or in the thread becomes a sentence on the page, because ipywidgets would hide it in a log.
"""

from __future__ import annotations

import base64
import html
import io
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import ipywidgets as widgets
from diffusers import StableDiffusionPipeline
from matplotlib.figure import Figure
from PIL import Image

from imagic_lab.classroom.widgets import WIDE, before_after, png
from imagic_lab.studio import state as do
from imagic_lab.studio.forecast import spoken
from imagic_lab.studio.state import Kept, Key, Sketch, Studio
from imagic_lib.figures import PROBE
from imagic_lib.models import family
from imagic_lib.pictures import open_image
from imagic_lib.training.loop import History

CHOOSE = "choose a drawing …"
TILE = 104  # screen pixels of a picture in the gallery
SMALL_TILE = 80  # screen pixels of a sketch
ON_SHELF = 6  # earlier edits that are shown at once
LARGEST_LINK = 8 * 2**20  # bytes; of a larger file the page shows only the path, without a link
PLAIN, MARKED = "3px solid transparent", "3px solid #D55E00"  # a frame; vermilion of Okabe and Ito
STAGES = {"embedding": "stage 1: the embedding", "unet": "stage 2: the UNet"}
METHOD_CHOICES = {"all weights": "full", "LoRA": "lora"}


def studio(
    pipe: StableDiffusionPipeline,
    picture: str | Path | None = None,
    text: str = "",
    *,
    place: str | Path | None = None,
    embedding_steps: int | None = None,
    unet_steps: int | None = None,
) -> widgets.VBox:
    """The studio as a widget, for the embedded model and for Stable Diffusion alike.

    picture, text: what it shows at first. place: each edit gets a new folder in it (default: `state.usual_place()`).
    Without step counts, the model's defaults are used. The result has the attributes `state` (a `state.Studio`), `view`
    (its controls by name), `click(name)`, which presses a button, and `wait(timeout)`, which returns the finished edit
    or raises the error that stopped it.
    """
    state = do.new_studio(pipe, place, embedding_steps=embedding_steps, unet_steps=unet_steps)
    view = panels(state)
    connect(state, view)
    if picture is not None:
        do.take_picture(state, open_image(picture), Path(picture).name)
    state.text = text
    show_source(state, view)
    view.text.value = state.text
    show_shelf(state, view)
    refresh(state, view)
    view.box.state, view.box.view = state, view
    view.box.click = lambda name: getattr(view, name).click()
    view.box.wait = lambda timeout=None: wait(state, view, timeout)
    return view.box


# -- the panels


def panels(state: Studio) -> SimpleNamespace:
    """All controls by name, and `box`, which holds them."""
    view = SimpleNamespace(thread=None, error=None, tiles={}, marked=None, link=None, shown={})
    sections = [shelf_panel(view), source_panel(view), text_panel(view), run_panel(view, state), gallery_panel(view),
                keep_panel(view)]  # fmt: skip
    view.box = widgets.VBox(sections)
    return view


def titled(title: str, *children: widgets.Widget) -> widgets.VBox:
    heading = widgets.HTML(f"<b style='font-size:1.15em'>{title}</b>")
    return widgets.VBox([heading, *children], layout={"margin": "0 0 12px 0"})


def flowing(*children: widgets.Widget) -> widgets.Box:
    """Side by side or, on a narrow page, one below the other."""
    return widgets.Box(list(children), layout={"display": "flex", "flex_flow": "row wrap", "align_items": "flex-start"})


def button(words: str, icon: str = "", style: str = "") -> widgets.Button:
    return widgets.Button(description=words, icon=icon, button_style=style, layout={"width": "auto"})


def shelf_panel(view: SimpleNamespace) -> widgets.VBox:
    view.shelf, view.older = flowing(), button("show older ones")
    view.shelf_panel = titled("Earlier edits", view.shelf, view.older)
    return view.shelf_panel


def source_panel(view: SimpleNamespace) -> widgets.VBox:
    view.drawing = widgets.Dropdown(options=[CHOOSE, *do.drawing_names()], description="drawing", style=WIDE)
    view.upload = widgets.FileUpload(description="Upload a photo", multiple=False, layout={"width": "auto"})
    view.source, view.source_note = widgets.Image(format="png"), widgets.HTML()
    view.size = percent_slider("square's size, %", 100, least=20)
    view.across = percent_slider("left ↔ right", 50)
    view.down = percent_slider("up ↕ down", 50)
    view.crop_controls = widgets.VBox([view.size, view.across, view.down])
    choice = flowing(view.drawing, widgets.HTML("&nbsp;or&nbsp;"), view.upload)
    return titled("1 · Picture", choice, view.source_note, flowing(view.source, view.crop_controls))


def percent_slider(words: str, value: int, least: int = 0) -> widgets.IntSlider:
    return widgets.IntSlider(value=value, min=least, max=100, description=words, style={"description_width": "116px"})


def text_panel(view: SimpleNamespace) -> widgets.VBox:
    view.text = widgets.Text(
        placeholder="describe the whole picture as it should be: a brown dog jumping on the grass",
        continuous_update=True,
        layout={"width": "96%", "max_width": "48em"},
    )
    view.reading = widgets.HTML()
    return titled("2 · What should it show?", view.text, view.reading)


def run_panel(view: SimpleNamespace, state: Studio) -> widgets.VBox:
    view.method = widgets.ToggleButtons(options=METHOD_CHOICES, style={"button_width": "auto"})
    drawing = do.SAMPLER_CHOICES if family(state.pipe) != "tiny" else {}
    view.sampler = widgets.Dropdown(options=drawing, description="draw with", style=WIDE)
    view.sampler.layout.display = "" if drawing else "none"
    view.forecast_button = button("Forecast: how long, how much memory?", "hourglass")
    view.run = button("Run", "play", "primary")
    view.stop, view.go_on = button("Stop", "stop"), button("Go on", "play", "primary")
    view.forecast = widgets.HTML()
    view.progress = widgets.IntProgress(value=0, min=0, max=1, layout={"width": "240px"})
    view.status, view.note = widgets.HTML(), widgets.HTML()
    view.curves, view.sketches = widgets.HTML(), widgets.HTML()
    view.curves.layout = {"flex": "0 1 540px", "width": "auto", "min_width": "280px"}
    view.sketches.layout = {"flex": "0 1 auto", "width": "auto"}
    buttons = flowing(view.run, view.go_on, view.stop, view.forecast_button)
    return titled(
        "3 · Run",
        flowing(widgets.HTML("train&nbsp;"), view.method, view.sampler),
        buttons,
        view.forecast,
        flowing(view.progress, view.status),
        view.note,
        flowing(view.curves, view.sketches),
    )


def gallery_panel(view: SimpleNamespace) -> widgets.VBox:
    view.grid = widgets.GridBox(layout={"grid_gap": "2px 4px", "overflow": "auto", "width": "100%"})
    view.draw = button("draw what is missing", "paint-brush")
    view.finer = button("finer η around the turn", "search-plus")
    view.more_seeds = button("two more seeds", "plus")
    view.less = button("with less of the fine-tuning (λ)", "adjust")
    view.suggest = button("suggest η and λ", "lightbulb-o")
    view.suggested = widgets.HTML()
    buttons = flowing(view.draw, view.finer, view.more_seeds, view.less, view.suggest)
    view.gallery_panel = titled("4 · Gallery: click the picture that you like best", view.suggested, view.grid, buttons)
    return view.gallery_panel


def keep_panel(view: SimpleNamespace) -> widgets.VBox:
    view.compare, view.choice = widgets.VBox(), widgets.HTML()
    view.save_png, view.save_zip = button("PNG", "picture-o"), button("whole folder as zip", "file-archive-o")
    view.save_lora = button("LoRA files", "file-o")
    view.repository = widgets.Text(placeholder="your-name/any-name", layout={"width": "16em"})
    view.push = button("push to the Hugging Face hub, private", "cloud-upload")
    view.kept = widgets.HTML()
    view.keep_panel = titled(
        "5 · Compare and keep",
        view.choice,
        view.compare,
        flowing(view.save_png, view.save_zip, view.save_lora),
        flowing(view.repository, view.push),
        view.kept,
    )
    return view.keep_panel


# -- the functions behind the controls


def connect(state: Studio, view: SimpleNamespace) -> None:
    def on_click(control: widgets.Button, act: Callable[[], object]) -> None:
        def press(_button) -> None:
            with sentences(state, view):
                act()

        control.on_click(press)

    def on_change(control: widgets.Widget, act: Callable[[], object]) -> None:
        def move(_change) -> None:
            with sentences(state, view):
                act()

        control.observe(move, "value")

    on_change(view.drawing, lambda: take_drawing(state, view))
    on_change(view.upload, lambda: take_upload(state, view))
    for slider in (view.across, view.down, view.size):
        on_change(slider, lambda: move_crop(state, view))
    on_change(view.text, lambda: read_text(state, view))
    on_change(view.method, lambda: choose_method(state, view))
    on_change(view.sampler, lambda: choose_sampler(state, view))
    on_click(view.forecast_button, lambda: in_background(state, view, lambda: press_forecast(state, view)))
    on_click(view.run, lambda: press_run(state, view))
    on_click(view.go_on, lambda: in_background(state, view, lambda: press_go_on(state, view)))
    on_click(view.stop, lambda: press_stop(state, view))
    on_click(view.draw, lambda: draw_more(state, view, lambda studio: None))
    on_click(view.finer, lambda: draw_more(state, view, do.finer))
    on_click(view.more_seeds, lambda: draw_more(state, view, do.more_seeds))
    on_click(view.less, lambda: draw_more(state, view, do.less_fine_tuning))
    on_click(view.suggest, lambda: in_background(state, view, lambda: press_suggest(state, view)))
    on_click(view.save_png, lambda: offer(view, do.chosen_file(state)))
    on_click(view.save_zip, lambda: offer(view, do.zipped(state)))
    on_click(view.save_lora, lambda: offer(view, *do.lora_files(state)))
    on_click(view.push, lambda: in_background(state, view, lambda: press_push(state, view)))
    on_click(view.older, lambda: show_shelf(state, view, count=None))


@contextmanager
def sentences(state: Studio, view: SimpleNamespace):
    """Inside, an exception becomes a sentence in the studio, and `view.error`."""
    view.error = None
    if "✗" in view.note.value:
        view.note.value = ""
    try:
        yield
    except do.Stopped:
        say(view, "■ stopped; nothing is lost, and “Go on” continues")
    except Exception as error:
        view.error = error
        sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
        view.note.value = f"<b style='color:#D55E00'>✗ {html.escape(sentence)}</b>"
    finally:
        refresh(state, view)


def in_background(state: Studio, view: SimpleNamespace, act: Callable[[], object], note: str = "") -> None:
    """Do it in a thread, so that the notebook and the Stop button stay usable. One thing at a time."""
    check_idle(view)
    view.note.value = note

    def run() -> None:
        with sentences(state, view):
            act()
        view.thread = None
        refresh(state, view)

    view.thread = threading.Thread(target=run, daemon=True)
    refresh(state, view)
    view.thread.start()


def is_busy(view: SimpleNamespace) -> bool:
    return view.thread is not None


def check_idle(view: SimpleNamespace) -> None:
    if is_busy(view):
        raise RuntimeError("something is running: wait for it, or stop it")


def wait(state: Studio, view: SimpleNamespace, timeout: float | None = None):
    """The edit, when nothing runs any more. Raises the error of the last action, or TimeoutError after `timeout` s."""
    if (thread := view.thread) is not None:
        thread.join(timeout)
        if thread.is_alive():
            raise TimeoutError(f"the studio is still working after {timeout:g} seconds")
    if view.error is not None:
        raise view.error
    return state.edit


def take_drawing(state: Studio, view: SimpleNamespace) -> None:
    if view.drawing.value != CHOOSE:
        do.choose_drawing(state, view.drawing.value)
        view.text.value = state.text
        show_source(state, view)


def take_upload(state: Studio, view: SimpleNamespace) -> None:
    if (found := uploaded(view.upload.value)) is not None:
        do.take_file(state, *found)
        view.note.value, view.drawing.value = "", CHOOSE
        show_source(state, view)


def uploaded(value) -> tuple[str, bytes] | None:
    """(name, content) of a FileUpload's value, which is a dict by name in ipywidgets 7 and a tuple of files in 8."""
    if not value:
        return None
    if isinstance(value, dict):
        [(name, file)] = list(value.items())[-1:]
    else:
        file = value[-1]
        name = file["name"]
    return name, bytes(file["content"])


def move_crop(state: Studio, view: SimpleNamespace) -> None:
    state.crop = do.Crop(view.across.value / 100, view.down.value / 100, view.size.value / 100)
    state.forecast = None
    show_crop(state, view)


def read_text(state: Studio, view: SimpleNamespace) -> None:
    state.text = view.text.value
    view.reading.value = reading(state)


def choose_method(state: Studio, view: SimpleNamespace) -> None:
    state.method, state.forecast = view.method.value, None


def choose_sampler(state: Studio, view: SimpleNamespace) -> None:
    state.sampling = view.sampler.value | {"half": True}


def press_forecast(state: Studio, view: SimpleNamespace) -> None:
    say(view, "▸ timing a few real steps on this device …")
    do.foretell(state)
    say(view, "")


def press_run(state: Studio, view: SimpleNamespace) -> None:
    """A new edit, in a new folder."""
    check_idle(view)
    notes = "<br>".join(f"note: {html.escape(note)}" for note in do.prepare(state))
    view.shown.clear()
    in_background(state, view, lambda: press_go_on(state, view), notes)


def press_go_on(state: Studio, view: SimpleNamespace) -> None:
    say(view, "▸ getting ready …")
    do.run_all(state, lambda: show_run(state, view))
    say_done(state, view)
    show_shelf(state, view)


def press_stop(state: Studio, view: SimpleNamespace) -> None:
    do.stop(state)
    say(view, "stopping after this step …")


def draw_more(state: Studio, view: SimpleNamespace, change: Callable[[Studio], None]) -> None:
    """Add rows or columns to the gallery, and draw their pictures."""
    check_idle(view)
    change(state)

    def drawing() -> None:
        say(view, "▸ drawing …")
        do.draw_gallery(state, lambda: show_run(state, view))
        say_done(state, view)

    in_background(state, view, drawing)


def press_suggest(state: Studio, view: SimpleNamespace) -> None:
    say(view, "▸ drawing and measuring some pictures …")
    do.add_suggestion(state)
    do.draw_gallery(state, lambda: show_run(state, view))
    say_done(state, view)


def press_push(state: Studio, view: SimpleNamespace) -> None:
    say(view, "▸ uploading …")
    address = do.push(state, view.repository.value.strip())
    view.kept.value = f"pushed: <a href='{html.escape(address)}' target='_blank'>{html.escape(address)}</a>"
    say(view, "✓ done")


def open_edit(state: Studio, view: SimpleNamespace, folder: Path) -> None:
    """Open an earlier edit; an unfinished one waits for “Go on”."""
    check_idle(view)
    do.reopen(state, folder)
    view.text.value, view.drawing.value = state.text, CHOOSE
    view.method.value = state.method
    view.shown.clear()
    view.note.value = ""
    show_source(state, view)
    words = {"stopped": "this edit is unfinished: “Go on” continues where it stopped", "finished": "opened"}
    say(view, words[state.phase])


# -- the display


def say(view: SimpleNamespace, words: str) -> None:
    view.status.value = html.escape(words)


def say_done(state: Studio, view: SimpleNamespace) -> None:
    say(view, "■ stopped; “draw what is missing” continues" if state.stopping.is_set() else "✓ done")


def refresh(state: Studio, view: SimpleNamespace) -> None:
    """Update everything that depends on the state."""
    enable(state, view)
    show_run(state, view)


def enable(state: Studio, view: SimpleNamespace) -> None:
    """Enable the buttons that can be pressed, and hide the panels that are empty."""
    busy, training = is_busy(view), state.phase in ("training", "drawing")
    unfinished = state.phase == "stopped" and state.folder is not None
    for control in (view.drawing, view.upload, view.text, view.across, view.down, view.size, view.sampler):
        control.disabled = busy
    view.method.disabled = busy
    view.run.disabled = busy or state.picture is None or not state.text.strip()
    view.forecast_button.disabled = busy or state.picture is None
    view.run.button_style = "" if unfinished else "primary"  # only the button to press next is highlighted
    view.go_on.layout.display = "" if unfinished and not busy else "none"
    view.stop.disabled = not (busy and training)
    made = state.edit is not None and state.phase == "finished"
    for control in (view.draw, view.finer, view.more_seeds, view.less, view.suggest, view.save_png, view.save_zip):
        control.disabled = busy or not made
    view.draw.layout.display = "" if made and do.missing(state) else "none"
    view.suggest.layout.display = "" if state.suggested is None else "none"
    view.save_lora.disabled = busy or not made or state.edit.settings["method"] != "lora"
    view.push.disabled = view.repository.disabled = busy or not made
    view.forecast.value = forecast_words(state)
    shown = state.histories or state.sketches
    view.progress.layout.display = "" if busy and training else "none"
    for control in (view.curves, view.sketches):
        control.layout.display = "" if shown else "none"
    view.gallery_panel.layout.display = "" if made or state.pictures else "none"
    view.keep_panel.layout.display = "" if state.pictures else "none"


def show_source(state: Studio, view: SimpleNamespace) -> None:
    """Show a new picture, with its crop controls in their initial positions."""
    state.crop, crop = do.Crop(), state.crop
    view.across.value, view.down.value, view.size.value = 50, 50, 100
    state.crop = crop
    show_crop(state, view)


def show_crop(state: Studio, view: SimpleNamespace) -> None:
    view.source.layout.display = "none" if state.picture is None else ""
    view.crop_controls.layout.display = "none" if state.picture is None or is_drawing(state) else ""
    if state.picture is None:
        view.source_note.value = "PNG, JPEG, WebP, or HEIC as phones make it"
        return
    side = 256 if is_drawing(state) else 320
    view.source.value = png(do.framed(state.picture, state.crop, side))
    width, height = state.picture.size
    left, _, right, _ = do.box_of(state.crop, width, height)
    room = f"{html.escape(state.name[:60])}: {width} x {height} pixels"
    size = do.picture_size(state.pipe)
    used = "" if is_drawing(state) else f"; the bright square, {right - left} pixels wide, becomes {size} x {size}"
    few = " (fewer than the model draws, so it will look soft)" if right - left < size else ""
    view.source_note.value = room + used + few


def is_drawing(state: Studio) -> bool:
    """Does the picture already have the size that the model draws, so that there is nothing to crop?"""
    size = do.picture_size(state.pipe)
    return state.picture is not None and state.picture.size == (size, size)


def reading(state: Studio) -> str:
    """The text as the model reads it, in HTML: tokens in boxes, the cut-off part struck through, unknown words red."""
    if not state.text.strip():
        return ""
    try:
        found = do.reading_of(state.pipe, state.text)
    except ValueError as error:
        return html.escape(str(error))
    box = (
        "<span style='border:1px solid #999;border-radius:4px;padding:0 4px;margin:1px;display:inline-block'>{}</span>"
    )
    words = [f"{len(found.tokens)} tokens: " + " ".join(box.format(html.escape(t)) for t in found.tokens)]
    if found.cut:
        words.append(f"<b>cut off, too long for the model:</b> <s>{html.escape(' '.join(found.cut))}</s>")
    if found.unknown:
        words.append(f"<b style='color:#D55E00'>never seen by this model: {html.escape(', '.join(found.unknown))}</b>")
    return f"<div style='line-height:1.7'>{'<br>'.join(words)}</div>"


def forecast_words(state: Studio) -> str:
    words = []
    if state.plan is not None:
        words.append(html.escape(f"memory: {state.plan.advice} (of {state.plan.gpu_gb:.1f} GiB)"))
    if state.forecast is not None:
        left = "the rest takes " if state.phase == "stopped" else ""
        words.append(html.escape(f"time: {left}{state.forecast.sentence(do.pictures_ahead(state))}"))
    return "<br>".join(words)


def show_run(state: Studio, view: SimpleNamespace) -> None:
    """Progress, curves, sketches and gallery. Draws again only the parts that have changed."""
    if once(view, "phase", (state.phase, bool(state.histories), bool(state.pictures))):
        enable(state, view)
    if state.phase == "training":
        show_progress(state, view)
    histories = {stage: len(history.probe_loss) for stage, history in state.histories.items()}
    if once(view, "curves", histories) and histories:
        view.curves.value = probe_curves(state.histories)
    if once(view, "sketches", [(s.stage, s.step) for s in state.sketches]):
        view.sketches.value = sketch_sheet(state.sketches) if state.sketches else ""
    if once(view, "gallery", (state.folder, sorted(state.pictures))):
        show_gallery(state, view)
    if once(view, "choice", (state.folder, state.chosen)):
        show_choice(state, view)
    view.suggested.value = suggestion_words(state)


def once(view: SimpleNamespace, name: str, value: object) -> bool:
    """True if the value differs from the last one under this name."""
    before, view.shown[name] = view.shown.get(name), value
    return before != value


def show_progress(state: Studio, view: SimpleNamespace) -> None:
    stage = "unet" if "unet" in state.histories and state.histories["unet"].loss else "embedding"
    history = state.histories.get(stage)
    if history is None:
        return
    view.progress.max, view.progress.value = max(1, history.steps), len(history.loss)
    name = "stage 2, the UNet" if stage == "unet" else "stage 1, the embedding"
    left = do.seconds_left(state)
    rest = f", about {spoken(left)} left" if left is not None else ""
    if not state.stopping.is_set():
        say(
            view,
            f"▸ {name}: step {len(history.loss)} of {history.steps}, probe loss {history.probe_loss[-1]:.4f}{rest}",
        )


def probe_curves(histories: dict[str, History]) -> str:
    """The probe losses of both stages so far, on one logarithmic scale, as an SVG. Only the ends of the axes have
    labels, because matplotlib is slow at ticks and a training draws this again at every probe."""
    figure = Figure(figsize=(7.2, 2.3))
    place = {"left": 0.1, "right": 0.98, "bottom": 0.12, "top": 0.88, "wspace": 0.08}
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw=place)
    for axis, (stage, title) in zip(panels, STAGES.items(), strict=True):
        history = histories.get(stage, History())
        axis.plot(history.probe_step, history.probe_loss, "o-", color=PROBE, linewidth=2.5, markersize=4)
        axis.set_title(title, fontsize=10)
        steps = max(1, history.steps)
        axis.set(yscale="log", xlim=(-0.02 * steps, 1.02 * steps))
        axis.set_xticks([0, steps], ["0", f"step {history.steps}" if history.steps else ""], ha="right")
        axis.minorticks_off()
    values = [value for history in histories.values() for value in history.probe_loss] or [1.0]
    low, high = min(values) / 1.05, max(values) * 1.05
    panels[0].set_ylim(low, high)
    panels[0].set_yticks([low, high], [f"{low:.3f}", f"{high:.3f}"])
    panels[0].set_ylabel("probe loss")
    figure.savefig(buffer := io.StringIO(), format="svg", metadata={"Date": None})
    drawn = buffer.getvalue().partition("<svg ")[2]
    look = "width:100%;height:auto;max-width:684px"
    return f'<svg role="img" aria-label="probe loss of both stages" style="{look}" {drawn}'


def sketch_sheet(sketches: list[Sketch]) -> str:
    """The sketches side by side as an HTML table, η = 0 above the other η."""
    stages = {"embedding": "stage 1", "unet": "stage 2"}
    heads = "".join(
        f"<td><center style='line-height:1.3'>{stages[s.stage]}<br>step {s.step}</center></td>" for s in sketches
    )
    rows = "".join(
        f"<tr><td>η = {eta:g}</td>{''.join(f'<td>{inline(s.pictures[row])}</td>' for s in sketches)}</tr>"
        for row, eta in enumerate((0, do.PREVIEW_ETA))
    )
    table = f"<table><tr><td></td>{heads}</tr>{rows}</table>"
    return f"<div style='overflow:auto'>sketches drawn during training, in a few sampling steps:{table}</div>"


def sized(picture: Image.Image, most: int) -> Image.Image:
    """The picture, made smaller if a side is longer than `most` pixels."""
    small = picture.convert("RGB")
    small.thumbnail((most, most), Image.Resampling.LANCZOS)
    return small


def inline(picture: Image.Image) -> str:
    """A picture as part of an HTML text."""
    data = base64.b64encode(png(sized(picture, 2 * SMALL_TILE), 0)).decode()
    return f"<img width='{SMALL_TILE}' src='data:image/png;base64,{data}'>"


def show_gallery(state: Studio, view: SimpleNamespace) -> None:
    """Lay out the empty tiles once; then fill each with its picture, so that a new one leaves the other tiles alone."""
    if once(view, "tiles", state.folder):
        view.tiles.clear()
    if once(view, "grid", (state.folder, sorted(state.etas), tuple(state.scales), tuple(state.seeds))):
        lay_out(state, view)
    for key, found in view.tiles.items():
        fill(found, state.pictures.get(key))


def lay_out(state: Studio, view: SimpleNamespace) -> None:
    """One block of rows per scale, one row per seed, one column per η."""
    etas, cells = sorted(state.etas), []
    for scale in state.scales:
        named = len(state.scales) > 1 or scale != 1
        head = f"<span style='white-space:nowrap'>λ = {scale:g}</span>" if named else ""
        cells += [widgets.HTML(head), *(widgets.HTML(f"<center>η = {eta:g}</center>") for eta in etas)]
        for seed in state.seeds:
            cells += [widgets.HTML(f"seed {seed}"), *(tile(state, view, (eta, scale, seed)) for eta in etas)]
    view.grid.layout.grid_template_columns = f"62px repeat({len(etas)}, {TILE + 8}px)"
    view.grid.children = cells


def tile(state: Studio, view: SimpleNamespace, key: Key) -> widgets.GridBox:
    """The place of a picture, with a transparent button over it, because a stock Image can't be clicked."""
    if key not in view.tiles:
        small = widgets.Image(format="png")
        small.layout = {"width": f"{TILE}px", "height": f"{TILE}px", "grid_area": "1 / 1", "margin": "0"}
        over = widgets.Button(style={"button_color": "transparent"})
        side = f"{TILE + 6}px"  # with the frame
        over.layout = {"width": side, "height": side, "grid_area": "1 / 1", "margin": "0", "border": PLAIN}
        over.on_click(lambda _button: pick(state, view, key))
        inside = {"align_items": "center", "justify_items": "center", "visibility": "hidden"}
        view.tiles[key] = found = widgets.GridBox([small, over], layout=inside)
        found.key, found.small, found.over, found.picture = key, small, over, None
    return view.tiles[key]


def fill(found: widgets.GridBox, picture: Image.Image | None) -> None:
    """Show this picture in a tile, unless it does already."""
    if picture is found.picture:
        return
    found.picture = picture
    found.small.value = b"" if picture is None else png(sized(picture, 2 * TILE), 0)
    found.layout.visibility = "hidden" if picture is None else "visible"


def pick(state: Studio, view: SimpleNamespace, key: Key) -> None:
    with sentences(state, view):
        do.choose(state, key)


def show_choice(state: Studio, view: SimpleNamespace) -> None:
    """Frame the chosen picture, and offer the wipe between it and the input."""
    if view.marked in view.tiles:
        view.tiles[view.marked].over.layout.border = PLAIN
    view.marked = state.chosen
    if state.chosen is None:
        view.compare.children, view.choice.value = (), "click a picture in the gallery"
        return
    if state.chosen in view.tiles:
        view.tiles[state.chosen].over.layout.border = MARKED
    [label] = do.labels([state.chosen])
    view.choice.value = html.escape(f"chosen: {label}. The edit is left of the line, the input right of it:")
    view.compare.children = (before_after(state.edit.input_picture, state.pictures[state.chosen], stops=11),)
    view.kept.value = ""


def suggestion_words(state: Studio) -> str:
    found = state.suggested
    if found is None:
        return ""
    if found.scores[found.eta, found.scale] == 0:
        return "no picture of the first try shows what the text says; try other words or more seeds"
    return f"suggested: η = {found.eta:g} with {100 * found.scale:.0f} % of the fine-tuning (λ = {found.scale:g})"


def show_shelf(state: Studio, view: SimpleNamespace, count: int | None = ON_SHELF) -> None:
    """The newest edits, each with a picture and a button that opens it."""
    kept = do.shelf(state)
    view.shelf.children = [card(state, view, one) for one in kept[:count]]
    view.older.layout.display = "" if count and len(kept) > count else "none"
    view.shelf_panel.layout.display = "" if kept else "none"


def card(state: Studio, view: SimpleNamespace, kept: Kept) -> widgets.Widget:
    picture = do.cover(kept)
    parts = (
        [widgets.Image(value=png(sized(picture, 160), 0), format="png", layout={"width": "80px"})] if picture else []
    )
    words = html.escape(kept.facts["text"][:60])
    unfinished = "<br><b style='color:#D55E00'>unfinished</b>" if kept.state == "begun" else ""
    parts.append(widgets.HTML(f"<div style='width:120px;line-height:1.25'>{words}{unfinished}</div>"))
    opening = button("Open" if kept.state == "finished" else "Open to go on")

    def press(_button) -> None:
        with sentences(state, view):
            open_edit(state, view, kept.folder)

    opening.on_click(press)
    found = widgets.VBox([*parts, opening], layout={"width": "132px", "margin": "0 8px 8px 0"})
    found.open = opening
    return found


def offer(view: SimpleNamespace, *paths: Path) -> None:
    """Show where the files are, with a link that downloads a small one; Colab downloads each file."""
    if "google.colab" in sys.modules:
        from google.colab import files

        for path in paths:
            files.download(str(path))
    view.kept.value = "<br>".join(file_line(path) for path in paths)


def file_line(path: Path) -> str:
    size, name = path.stat().st_size, html.escape(path.name)
    line = f"{html.escape(str(path))} ({size / 1e6:.1f} MB)"
    if size > LARGEST_LINK:
        return f"kept: {line}"
    data = base64.b64encode(path.read_bytes()).decode()
    link = f"<a download='{name}' href='data:application/octet-stream;base64,{data}'>download</a>"
    return f"kept: {line} · {link}"
