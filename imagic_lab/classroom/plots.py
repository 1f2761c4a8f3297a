"""Show figures, pictures and films in a notebook, each with its alternative text from `notebooks/alt.toml`.

They are displayed as HTML, because only there an `alt=` reaches JupyterLab, Colab and exported pages.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from imagic_lab.classroom.course import entry
from imagic_lib.figures import PROBE, RAW, edit_sheet, loss_curve, loss_curves, picture_grid

__all__ = ["PROBE", "RAW", "edit_sheet", "film", "loss_curve", "loss_curves", "picture_grid", "png_of", "show", "slide"]

COLUMNS = 6  # more would be too small on a projector
WIDTH = 136, 260  # smallest and largest width of a picture in a row, in pixels on the page, except on phones
LARGEST_FILM = 300_000  # bytes
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
SLIDE = (
    "const at=+this.value,box=this.parentNode;box.querySelector('output').value=this.dataset.stops.split('|')[at];"
    "for(const row of box.querySelectorAll('figure')){const all=[...row.querySelectorAll('img')];"
    "if(all.length>1)all.forEach((one,k)=>one.style.display=k==at?'block':'none')}"
)
Pictures = Sequence[Image.Image] | Mapping[str, Image.Image]


class Html:
    """HTML that a notebook displays, and a text where HTML can't be shown."""

    def __init__(self, code: str, text: str):
        self.html, self.text = code, text

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}


def show_page(code: str, text: str) -> None:
    from IPython.display import display

    display(Html(code, text))


def png_of(figure: Figure | Image.Image, dpi: int = 80) -> bytes:
    """Return a figure or picture as a small PNG of 256 colours, so that a notebook with ten of them stays under 1 MB.

    Pillow chooses the colours by their number of pixels. `kmeans` then corrects this choice; otherwise a small red
    collar would turn orange.
    """
    buffer = io.BytesIO()
    picture_of(figure, dpi).quantize(256, kmeans=1).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def webp_of(pictures: Sequence[Image.Image], **options) -> bytes:
    """Return the WebP file of a picture, or of several as a film."""
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:]} if len(pictures) > 1 else {}
    pictures[0].convert("RGB").save(buffer, format="WebP", **more, **options)
    return buffer.getvalue()


def picture_of(figure: Figure | Image.Image, dpi: int = 80) -> Image.Image:
    if not isinstance(figure, Image.Image):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        figure = Image.open(buffer)
    return figure.convert("RGB")


def url_of(data: bytes, kind: str) -> str:
    """Return a data: URL that contains the file. kind: such as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def img(data: bytes, kind: str, alt: str, style: str) -> str:
    return f'<img alt="{html.escape(alt)}" src="{url_of(data, kind)}" style="max-width:100%;height:auto;{style}">'


def grid(columns: int) -> str:
    """Return the style of a grid with this many columns, as wide as the page allows; on a phone it has two."""
    smallest = f"max(min({WIDTH[0]}px,45%),calc((100% - {12 * (columns - 1)}px)/{columns}))"
    widest = WIDTH[1] * columns + 12 * (columns - 1)
    tracks = f"display:grid;grid-template-columns:repeat(auto-fit,minmax({smallest},1fr));gap:12px"
    return f"{tracks};max-width:{widest}px;margin:6px 0;font-size:1.15em"


def one_tile(pictures: Sequence[Image.Image], alts: Sequence[str], caption: str, **options) -> str:
    """Return the HTML of a picture with a caption below it. Of several pictures, only the first is visible."""
    code = "".join(
        img(webp_of([picture], **options), "webp", alt, f"width:100%;display:{'none' if k else 'block'}")
        for k, (picture, alt) in enumerate(zip(pictures, alts, strict=True))
    )
    caption = f'<figcaption style="text-align:center">{html.escape(caption)}</figcaption>' if caption else ""
    return f'<figure style="margin:0">{code}{caption}</figure>'


def row_of(pictures: Pictures, captions: Sequence[str], alt: str, label: str = "") -> str:
    """Return the HTML of pictures side by side, which wrap on narrow screens. `alt` describes them all."""
    if isinstance(pictures, Mapping):
        captions, pictures = list(pictures), list(pictures.values())
    if len(pictures) > COLUMNS:
        raise ValueError(f"{len(pictures)} pictures in a row: at most {COLUMNS} can be seen from the last row")
    captions = captions or [""] * len(pictures)
    alts = [alt, *(caption or f"picture {k}" for k, caption in enumerate(captions[1:], 2))]
    tiles = (one_tile([p], [a], c, quality=90) for p, a, c in zip(pictures, alts, captions, strict=True))
    return (
        f"<b>{html.escape(label)}</b>" if label else ""
    ) + f'<div style="{grid(len(pictures))}">{"".join(tiles)}</div>'


def show(shown: Figure | Image.Image | Pictures | Mapping[str, Pictures], key: str, titles: Sequence[str] = ()) -> None:
    """Show a figure, or pictures in rows of six at most, with the alternative text "02.rebuilt" of alt.toml.

    shown: a figure, a picture, pictures, {caption: picture}, or {label: pictures} for several rows. titles: captions of
    the pictures in each row. A key with spaces is itself the alternative text. Raises ValueError for a row that is too
    long, and for a key without a text.
    """
    if " " in key:
        from IPython.display import Image as Shown
        from IPython.display import display

        return display(Shown(data=png_of(shown), format="png", metadata={"alt": key}))  # IPython 7 has no alt=
    alt = entry("alt", key)
    if isinstance(shown, Figure):
        style = f"width:{96 * shown.get_figwidth():.0f}px;background:white"
        return show_page(img(png_of(shown, dpi=144), "png", alt, style), alt)
    if isinstance(shown, Mapping) and not any(isinstance(one, Image.Image) for one in shown.values()):
        alts = [alt, *list(shown)[1:]]
        rows = (row_of(row, titles, a, label) for (label, row), a in zip(shown.items(), alts, strict=True))
        return show_page("".join(rows), alt)
    return show_page(row_of([shown] if isinstance(shown, Image.Image) else shown, titles, alt), alt)


def slide(rows: Mapping[str, Sequence[Image.Image]], stops: Sequence[str], key: str) -> None:
    """Show a slider that changes between finished pictures. It needs no kernel, so it also works on an exported page.

    rows: lists of pictures by caption, shown side by side, such as {"input": [x], "edit": edits}; a single picture does
    not change. stops: text of the slider at each picture, such as "η = 0.5". key: of the alternative text in
    alt.toml. Raises ValueError unless each row has one picture, or one for each stop.
    """
    alt, figures = entry("alt", key), ""
    for caption, row in rows.items():
        if len(row) not in (1, len(stops)):
            raise ValueError(f"{caption}: {len(row)} pictures for {len(stops)} stops: give one per stop, or one")
        alts = [f"{caption}, {stop}" for stop in stops[: len(row)]]
        alts[0] = alts[0] if figures else alt
        figures += one_tile(row, alts, caption, quality=88)
    stops = [html.escape(stop) for stop in stops]
    knob = f'<input type="range" value="0" max="{len(stops) - 1}" data-stops="{"|".join(stops)}" oninput="{SLIDE}"'
    knob += f' style="width:60%" aria-label="{html.escape(alt)}"> <output>{stops[0]}</output>'
    show_page(f'<div>{knob}<div style="{grid(len(rows))}">{figures}</div></div>', alt)


def film(frames: Sequence[Figure | Image.Image], key: str, fps: float = 4, labels: Sequence[str] = ()) -> None:
    """Show frames of one size as an animated picture, at least 320 pixels wide, that pauses and then starts again.

    key: of the alternative text in alt.toml. labels: a text below each frame. Raises ValueError without frames, with
    more or fewer labels than frames, and for a film of more than 300 kB.
    """
    alt, labels = entry("alt", key), list(labels) or [""] * len(frames)
    if not len(frames) == len(labels) > 0:
        raise ValueError(f"{len(frames)} frames and {len(labels)} labels: give as many labels as frames, at least one")
    pictures = [labelled(picture_of(frame), label) for frame, label in zip(frames, labels, strict=True)]
    times = [round(1000 / fps)] * (len(frames) - 1) + [1500]  # milliseconds
    for quality in (90, 75, 60, 40):
        data = webp_of(pictures, quality=quality, method=4, duration=times, loop=0)
        if len(data) <= LARGEST_FILM:
            return show_page(img(data, "webp", alt, f"width:{pictures[0].width}px"), alt)
    raise ValueError(f"the film “{key}” has {len(data) // 1000} kB, at most 300: take fewer or smaller frames")


def labelled(picture: Image.Image, label: str) -> Image.Image:
    """Return the picture, enlarged to at least 320 pixels, with a line of text below it."""
    factor = max(1, -(-320 // picture.width))
    picture = picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.LANCZOS)
    if not label:
        return picture
    sheet = Image.new("RGB", (picture.width, picture.height + 36), "white")
    sheet.paste(picture)
    font = ImageFont.truetype(str(FONT), 20)
    ImageDraw.Draw(sheet).text((sheet.width / 2, sheet.height - 18), label, "black", font, anchor="mm")
    return sheet
