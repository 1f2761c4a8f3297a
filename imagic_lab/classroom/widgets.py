"""Things to play with in a notebook. They only swap pictures that were made before; `studio` makes new ones.

Stock widgets, in the part that ipywidgets 7 (Colab) and 8 share. An error in a callback is raised when Python moves
the widget (`sweep`), but when the reader's mouse does, ipywidgets sends it to a log that nobody opens.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import ipywidgets as widgets
from PIL import Image, ImageDraw

SIDE = 256  # pixels on the screen, about
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
    knob: str = "seed",
) -> widgets.VBox:
    """A slider for η and a list of seeds over finished pictures.

    rows: one row a seed, one picture an η, as `ImagicEdit.pictures` returns them. beside: pictures that
    stay next to it, by caption, e.g. {"input": ..., "ground truth": ...}. knob: what the list is called, where `seeds`
    are values of something else, e.g. "λ". The result has the attributes slider, seed and picture. Raises ValueError
    if the rows are not one a seed and one picture an η.
    """
    if len(rows) != len(seeds) or any(len(row) != len(etas) for row in rows):
        found = f"{len(rows)} rows of {sorted({len(row) for row in rows})} pictures"
        raise ValueError(f"{found} for {len(seeds)} seeds and {len(etas)} η: give a row a seed, a picture an η")
    if len(set(etas)) < len(etas) or len(set(seeds)) < len(seeds):
        raise ValueError("every η and every seed may stand there once only")
    files = {(s, e): png(p) for s, row in zip(seeds, rows, strict=True) for e, p in zip(etas, row, strict=True)}
    slider = widgets.SelectionSlider(options=[(f"{eta:g}", eta) for eta in etas], description="η", style=WIDE)
    seed = widgets.Dropdown(options=list(seeds), description=knob, style=WIDE)
    middle = shown(files[seed.value, slider.value], "")
    picture, caption = middle.children

    def swap(_change=None) -> None:
        picture.value = files[seed.value, slider.value]
        caption.value = f"η = {slider.value:g}, {knob} {seed.value}"

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
    box = widgets.VBox([slider, picture], layout={"align_items": "flex-start"})  # else the picture fills the page
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
