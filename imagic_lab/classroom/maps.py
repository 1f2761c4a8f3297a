"""Drawings of the whole method (the map that opens notebooks 00 to 06), of the UNet, and of latents.

They are SVG files in this folder. Each has a light background, so that it looks the same in a dark theme, and is shown
as a picture with an `alt=`.
"""

from __future__ import annotations

from pathlib import Path
from string import Template

from PIL import Image
from torch import Tensor

from imagic_lab.classroom.plots import Html, img, url_of, webp_of

MODEL = ("model", "text", "embedding", "unet", "latents", "vae")
PARTS = ("everything", *MODEL, "stage 1", "stage 2", "stage 3", "stage 4")
MAP = (
    "The map of the method. A text goes through the text encoder and becomes the embedding e. A picture goes through "
    "the encoder of the VAE and becomes latents. The UNet, which looks at the embedding by cross-attention, removes "
    "noise from the latents in a loop, and the decoder of the VAE turns the last ones into a picture. Stage 1 moves e, "
    "stage 2 moves θ, the weights of the UNet, stage 3 slides η between two embeddings, stage 4 samples. In colour: "
)
LATENTS = (
    "Left the picture, cut into 16 × 16 blocks of 8 × 8 pixels; right its latents, a stack of four grey maps of "
    "16 × 16. One block, and the same place in each map, is marked."
)


def drawing(name: str, alt: str, **values) -> Html:
    """Fill in a drawing: each $name gets its value."""
    text = Template(Path(__file__).with_name(f"{name}.svg").read_text(encoding="utf-8")).substitute(values)
    return Html(img(text.encode(), "svg+xml", alt, "width:720px"), alt)


def the_map(lit: str = "everything") -> Html:
    """Draw the map of Imagic on Stable Diffusion, with one part in colour and the others pale.

    lit: "everything", "model" (all but the stages), "text", "embedding", "unet", "latents", "vae", or "stage 1" to
    "stage 4". Raises ValueError for another name.
    """
    if lit not in PARTS:
        raise ValueError(f"the map has no part “{lit}”: choose from {', '.join(PARTS)}")
    style = "" if lit == "everything" else f"svg > g:not(.{lit.replace(' ', '')}) {{ opacity: .28 }}"
    if lit in MODEL:
        style += " .edit { display: none } .plain { display: inline }"  # e_tgt itself enters the UNet
    return drawing("map", f"{MAP}{lit}.", style=style)


def unet_map(unet) -> Html:
    """Draw the levels of a UNet from its config, with the size and channels of their maps, and where the text enters.

    Raises ValueError unless it has three levels, as tiny-sd does.
    """
    config, levels = unet.config, len(unet.config.block_out_channels)
    if levels != 3:
        raise ValueError(f"the drawing has three levels, this UNet has {levels}")
    kinds = {f"down{k}": kind for k, kind in enumerate(config.down_block_types)}
    kinds |= {f"up{2 - k}": kind for k, kind in enumerate(config.up_block_types)}
    plain = [block for block, kind in kinds.items() if "Attn" not in kind]
    rule = "path.{0} {{ display: none }} rect.{0} {{ fill: #64748b; stroke: #64748b }} "
    sizes = [f"{config.sample_size >> k} × {config.sample_size >> k}" for k in range(levels)]
    told = [f"{size}, {channels}" for size, channels in zip(sizes, config.block_out_channels, strict=True)]
    told[0] += " channels"
    alt = (
        f"The UNet: on the way down its maps have {', then '.join(told)}, and on the way up the same; a skip "
        f"connection joins each pair of levels. The embedding enters the middle and "
        f"{len(kinds) - len(plain)} of the 6 other blocks."
    )
    told = {f"level{k}": text for k, text in enumerate(told)}
    return drawing("unet", alt, style="".join(map(rule.format, plain)), width=config.cross_attention_dim, **told)


def latents_stack(picture: Image.Image, z: Tensor, row: int = 8, column: int = 8) -> Html:
    """Draw a picture in blocks of 8×8 pixels, and its latents (1, 4, 16, 16) as a stack of maps, one place marked."""
    lowest, highest = z.amin((2, 3), keepdim=True), z.amax((2, 3), keepdim=True)
    greys = (255 * (z - lowest) / (highest - lowest)).byte().cpu().numpy()[0]
    files = {f"map{k}": url_of(webp_of([Image.fromarray(grey)], lossless=True), "webp") for k, grey in enumerate(greys)}
    x, y = 15 * column, 15 * row
    end = f"{326 + 0.3 * x} {118 + 0.74 * (y - 0.445 * x)}"
    files["picture"] = url_of(webp_of([picture], lossless=True), "webp")
    return drawing("latents", LATENTS, x=x, y=y, start=f"{38 + x} {48 + y}", end=end, **files)
