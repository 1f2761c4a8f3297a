"""Drawings in SVG: the map of the whole method, which opens the notebooks from 00 to 06, the UNet, and latents.

They stand on a light card, so that they look the same in a dark theme, and are shown as pictures, with an `alt=`.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from imagic_lab.classroom.plots import Page, img

INK, GREY, BLUE, ORANGE = "#1f2937", "#64748b", "#0072B2", "#C24E00"  # after Okabe and Ito, dark enough for white
MODEL = ("model", "text", "embedding", "unet", "latents", "vae")
PARTS = ("everything", *MODEL, "stage 1", "stage 2", "stage 3", "stage 4")
ALT = (
    "The map of the method. A text goes through the text encoder and becomes the embedding e. A picture goes through "
    "the encoder of the VAE and becomes latents. The UNet, which looks at the embedding by cross-attention, removes "
    "noise from the latents in a loop, and the decoder of the VAE turns the last ones into a picture. Stage 1 moves e, "
    "stage 2 moves θ, the weights of the UNet, stage 3 slides η between two embeddings, stage 4 samples. In colour: "
)


def the_map(lit: str = "everything") -> Page:
    """The map of Imagic on Stable Diffusion, with one part in colour and the others pale.

    lit: "everything", "model" (all but the stages), "text", "embedding", "unet", "latents", "vae", or "stage 1" to
    "stage 4". Raises ValueError for another name.
    """
    if lit not in PARTS:
        raise ValueError(f"the map has no part “{lit}”: choose from {', '.join(PARTS)}")
    style = "" if lit == "everything" else f"svg > g:not(.{lit.replace(' ', '')}) {{ opacity: .28 }}"
    if lit in MODEL:
        style += " .edit { display: none } .plain { display: inline }"  # e_tgt itself enters the UNet
    drawing = Path(__file__).with_name("map.svg").read_text(encoding="utf-8").replace("/* lit */", style)
    return Page(img(drawing.encode(), "svg+xml", ALT + lit + ".", "width:720px"), ALT + lit + ".")


def svg(height: int, *parts: str) -> bytes:
    """A drawing on a light card, 640 wide, with an arrowhead for each colour of a line."""
    heads = "".join(
        f'<marker id="{colour[1:]}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="5.5" markerHeight="5.5" '
        f'orient="auto"><path d="M0 0 10 5 0 10z" fill="{colour}"/></marker>'
        for colour in (GREY, BLUE, ORANGE)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" width="640" height="{height}" '
        f'font-family="Helvetica,Arial,sans-serif" font-size="20" text-anchor="middle" fill="none" stroke-width="2.5">'
        f'<defs>{heads}</defs><rect width="640" height="{height}" rx="14" fill="#fbfbf9"/>{"".join(parts)}</svg>'
    ).encode()


def write(x: float, y: float, text: str, colour: str = INK) -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}">{text}</text>'


def arrow(path: str, colour: str = GREY) -> str:
    return f'<path d="{path}" stroke="{colour}" marker-end="url(#{colour[1:]})"/>'


def block(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A box around its centre."""
    place = f'x="{x - width / 2}" y="{y - height / 2}" width="{width}" height="{height}"'
    return f'<rect {place} rx="4" fill="{colour}" fill-opacity=".16" stroke="{colour}"/>'


def picture(x: float, y: float, side: float, shown: Image.Image) -> str:
    """A square picture in a frame, with sharp pixels."""
    shown.convert("RGB").save(buffer := io.BytesIO(), format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    place = f'x="{x}" y="{y}" width="{side}" height="{side}"'
    pixels = f'<image {place} href="data:image/png;base64,{data}" style="image-rendering:pixelated"/>'
    return f'{pixels}<rect {place} stroke="{INK}"/>'


def unet_map(unet) -> Page:
    """The levels of a UNet, from its own config: the size and the channels of their maps, and where the text enters."""
    config, levels, told, blocks, text_in = unet.config, len(unet.config.block_out_channels), [], [], []
    side = config.sample_size
    for k, channels in enumerate(config.block_out_channels):
        step = 140 / (levels - 1)
        x, y, height = 52 + step * k, 84 + 150 * k / (levels - 1), 100 - 56 * k / (levels - 1)
        width = min(step, 70) * (0.4 + 0.4 * channels / max(config.block_out_channels))
        for place, kind in ((x, config.down_block_types[k]), (640 - x, config.up_block_types[levels - 1 - k])):
            colour = BLUE if (attends := "Attn" in kind) else GREY
            blocks.append(block(place, y, width, height, colour))
            text_in += [(place, y + height / 2)] * attends
        told.append(f"{side >> k} × {side >> k}, {channels}" + " channels" * (k == 0))
        blocks += [arrow(f"M{x + width / 2 + 6} {y}H{634 - x - width / 2}"), write(320, y - 9, told[-1], GREY)]
    blocks += [block(320, 296, 96, 44, BLUE), write(320, 303, "middle", BLUE)]
    blocks += [arrow("M222 262 264 284"), arrow("M376 284 418 262")]
    bar = f'<rect x="30" y="384" width="580" height="40" rx="8" fill="{BLUE}"/>'
    blocks += [arrow(f"M{x} 384V{y + 8}", BLUE) for x, y in [*text_in, (320, 318)]]
    blocks += [bar, write(320, 411, f"embedding e: 77 × {config.cross_attention_dim}", "#fff")]
    blocks += [
        write(56, 24, 'z<tspan font-size="70%" dy="5">t</tspan><tspan dy="-5"> and t</tspan>'),
        write(584, 24, "noise"),
    ]
    alt = (
        f"The UNet: on the way down its maps have {', then '.join(told)}, and on the way up the same; a skip "
        f"connection joins each pair of levels. The embedding enters the middle "
        f"and {len(text_in)} of the {2 * levels} other blocks."
    )
    return Page(img(svg(440, *blocks), "svg+xml", alt, "width:720px"), alt)


def latents_stack(image: Image.Image, z: Tensor, row: int = 8, column: int = 8) -> Page:
    """A picture in its blocks of 8×8 pixels, and its latents (1, 4, h, w) as a stack of maps, with one place marked."""
    _, maps, rows, columns = z.shape
    cell, drawn = 240 / columns, [picture(20, 40, 240, image)]
    lines = "".join(f"M20 {40 + k * cell}h240M{20 + k * cell} 40v240" for k in range(1, rows))
    drawn.append(f'<path d="{lines}" stroke="#fff" stroke-width=".7" opacity=".8"/>')
    mark = f'width="{cell}" height="{cell}" stroke="{ORANGE}" stroke-width="3" vector-effect="non-scaling-stroke"'
    drawn.append(f'<rect x="{20 + column * cell}" y="{40 + row * cell}" {mark}/>')
    for k in range(maps):
        values = z[0, k] - z[0, k].min()
        grey = Image.fromarray((255 * values / values.max()).byte().cpu().numpy())
        sheet = picture(0, 0, 240, grey)
        inner = f'{sheet}<rect x="{column * cell}" y="{row * cell}" {mark}/>'
        drawn.append(f'<g transform="translate({330 + 76 * k} 112) scale(.3 .74) skewY(-24)">{inner}</g>')
    x, y = 330 + 0.3 * column * cell, 112 + 0.74 * (row * cell - 0.445 * column * cell)
    drawn.append(arrow(f"M{24 + (column + 1) * cell} {40 + (row + 0.5) * cell}L{x - 4} {y + 0.4 * cell}", ORANGE))
    drawn.append(write(150, 306, f"{columns} × {rows} blocks of 8 × 8"))
    drawn.append(write(480, 306, f"{maps} maps of {columns} × {rows} numbers"))
    alt = (
        f"Left the picture, cut into {columns} × {rows} blocks of 8 × 8 pixels; right its latents, a stack of {maps} "
        f"grey maps of {columns} × {rows}. One block, and the same place in each map, is marked."
    )
    return Page(img(svg(324, *drawn), "svg+xml", alt, "width:720px"), alt)
