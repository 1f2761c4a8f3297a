"""Widgets to play with in a notebook. They only swap finished pictures; the studio makes new ones.

All are stock widgets that ipywidgets 7 (Colab) and 8 share. An error in a callback is raised when Python moves the
widget (`try_all_values`); when the reader moves it, ipywidgets hides the error in a log.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import ipywidgets as widgets
from PIL import Image, ImageDraw

WIDE = {"description_width": "initial"}


def enlarged(picture: Image.Image, side: int = 256) -> Image.Image:
    """The picture about `side` pixels wide: each of its pixels becomes a square, without smoothing."""
    factor = max(1, round(side / max(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)


def png(picture: Image.Image, side: int = 256) -> bytes:
    """The enlarged picture (as it is, if `side` is 0) as the PNG file that an Image widget shows."""
    buffer = io.BytesIO()
    (enlarged(picture, side) if side else picture).save(buffer, format="PNG")
    return buffer.getvalue()


def captioned(picture: bytes, caption: str) -> widgets.VBox:
    """A picture in the format of `png`, with a caption below it."""
    return widgets.VBox([widgets.Image(value=picture, format="png"), widgets.HTML(html.escape(caption))])


def eta_explorer(rows: Sequence[Sequence[Image.Image]], etas: Sequence[float], seeds: Sequence[int] = (0,), *,
                 beside: Mapping[str, Image.Image] | None = None, knob: str = "seed") -> widgets.VBox:  # fmt: skip
    """A slider for η and a list of seeds over finished pictures.

    rows: one row per seed, one picture per η, as `ImagicEdit.pictures` returns them. beside: pictures that stay next
    to it, by caption, e.g. {"input": ..., "ground truth": ...}. knob: a name for the list where `seeds` holds other
    values, e.g. "λ". The result has the attributes slider, seed and picture. Raises ValueError if the rows don't fit.
    """
    if len(rows) != len(seeds) or any(len(row) != len(etas) for row in rows):
        found = f"{len(rows)} rows of {sorted({len(row) for row in rows})} pictures"
        raise ValueError(f"{found} for {len(seeds)} seeds and {len(etas)} η: give one row per seed, one picture per η")
    if len(set(etas)) < len(etas) or len(set(seeds)) < len(seeds):
        raise ValueError("an η or a seed is there twice: give each of them once only")
    files = {(s, e): png(p) for s, row in zip(seeds, rows, strict=True) for e, p in zip(etas, row, strict=True)}
    slider = widgets.SelectionSlider(options=[(f"{eta:g}", eta) for eta in etas], description="η", style=WIDE)
    seed = widgets.Dropdown(options=list(seeds), description=knob, style=WIDE)
    middle = captioned(b"", "")
    picture, caption = middle.children

    def swap(_change=None) -> None:
        picture.value = files[seed.value, slider.value]
        caption.value = f"η = {slider.value:g}, {knob} {seed.value}"

    swap()
    for control in (slider, seed):
        control.observe(swap, "value")
    fixed = [captioned(png(p), name) for name, p in (beside or {}).items()]
    box = widgets.VBox([widgets.HBox([slider, seed]), widgets.HBox([*fixed[:1], middle, *fixed[1:]])])
    box.slider, box.seed, box.picture = slider, seed, picture
    return box


def denoising_player(
    noisy: Sequence[Image.Image], guesses: Sequence[Image.Image], labels: Sequence[str]
) -> widgets.VBox:
    """Play, or drag, through the steps of a denoising: z_t on the left, the guess of z_0 on the right.

    noisy, guesses: one picture per step (latents as colours, or decoded). labels: one caption per step, e.g.
    "t = 967". The result has the attributes slider, play, noisy and guess. Raises ValueError if the three differ in
    length.
    """
    if not len(noisy) == len(guesses) == len(labels) > 0:
        found = f"{len(noisy)} noisy pictures, {len(guesses)} guesses, {len(labels)} labels"
        raise ValueError(f"{found}: give the same number of each, at least one")
    files, last = [(png(a), png(b)) for a, b in zip(noisy, guesses, strict=True)], len(labels) - 1
    play = widgets.Play(value=0, min=0, max=last, interval=300)
    slider = widgets.IntSlider(value=0, min=0, max=last, description="step", style=WIDE)
    left, right = captioned(b"", "z_t, what is there"), captioned(b"", "z_0, what the UNet sees in it")
    caption = widgets.HTML()

    def swap(_change=None) -> None:
        left.children[0].value, right.children[0].value = files[slider.value]
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
    """A slider with `stops` positions that wipes from one picture to the other: 0 shows `before`, 100 `after`.

    The result has the attributes slider and picture. Raises ValueError if the pictures differ in size.
    """
    if before.size != after.size:
        raise ValueError(f"the pictures differ in size: {before.size} and {after.size}")
    pair, shares = (enlarged(before), enlarged(after)), [stop / (stops - 1) for stop in range(stops)]
    files = {f"{100 * share:.0f} %": png(wiped(*pair, share)) for share in shares}
    slider = widgets.SelectionSlider(options=list(files), description="edited", style=WIDE)
    picture = widgets.Image(value=files[slider.value], format="png")
    slider.observe(lambda change: setattr(picture, "value", files[change["new"]]), "value")
    box = widgets.VBox([slider, picture], layout={"align_items": "flex-start"})  # or else the picture fills the page
    box.slider, box.picture = slider, picture
    return box


def widgets_in(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    """The widget and everything inside it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from widgets_in(child)


def try_all_values(widget: widgets.Widget) -> list[tuple[bytes, ...]]:
    """Move the sliders and lists in a widget through all combinations of their values, and back.

    Returns what its pictures showed at each stop. Raises whatever a callback raises. In a notebook it is called in the
    cell after a widget, so that every value has been tried before a reader tries it.
    """
    stops, pictures, seen = [], [], []
    for part in widgets_in(widget):
        if isinstance(part, widgets.IntSlider):
            stops.append((part, "value", range(part.min, part.max + 1, part.step)))
        elif isinstance(part, widgets.SelectionSlider | widgets.Dropdown):
            stops.append((part, "index", range(len(part.options))))
        elif isinstance(part, widgets.Image):
            pictures.append(part)
    if not stops:
        raise ValueError(f"this {type(widget).__name__} has neither a slider nor a list")
    before = tuple(getattr(part, trait) for part, trait, _ in stops)
    for values in (*product(*(values for *_, values in stops)), before):
        for (part, trait, _), value in zip(stops, values, strict=True):
            setattr(part, trait, value)
        seen.append(tuple(picture.value for picture in pictures))
    return seen[:-1]  # the last one is `before`
