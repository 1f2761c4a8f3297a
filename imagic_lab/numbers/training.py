"""The recipe and the curves of the shipped model, from the log of its training.

python -m imagic_lab.numbers.training      # a second; writes the recipe of the model card and curves.png
"""

from __future__ import annotations

import json

from matplotlib.figure import Figure
from transformers import CLIPModel

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table
from imagic_lab.classroom.plots import PROBE
from imagic_lab.numbers.report import TINY_CARD, command_line, put
from imagic_lab.toyworld import clip, reader, recipe, unet, vae
from imagic_lib.models import DATA, TINY

NETWORK_NAMES = {"vae": "VAE", "clip": "mini-CLIP", "unet": "UNet", "reader": "reader"}
BATCHES = {
    "vae": f"{vae.BATCH} drawings",
    "clip": f"{clip.BATCH} pictures with captions",
    "unet": f"{unet.BATCH} latents, min-SNR weights (γ = {unet.MIN_SNR:g}), average of the weights",
    "reader": f"{reader.BATCH} drawings of all combinations, a third of them through the VAE",
}
TRAINED_PARTS = {"vae": vae, "clip": clip, "unet": unet, "reader": reader}


def main() -> None:
    command_line(__doc__).parse_args()
    pipe = imagic.load_pipeline("tiny")
    networks = {"vae": pipe.vae, "unet": pipe.unet, "reader": reader.load_reader().net}
    networks["clip"] = CLIPModel.from_pretrained(DATA / "tiny-clip")
    rows = []
    for name, part in TRAINED_PARTS.items():
        count = sum(p.numel() for p in networks[name].parameters()) / 1e6
        rows.append([NETWORK_NAMES[name], f"{count:.2f} M", f"{part.STEPS:,}", f"{part.LR:g}", BATCHES[name]])
    text = f"{recipe.SCENES:,} drawings, AdamW, the rate level, then straight down to 0.\n\n"
    header = ["network", "parameters", "steps", "peak learning rate", "batch"]
    put(TINY_CARD, "recipe", text + markdown_table(header, rows))

    history = json.loads((TINY / "training.json").read_text())
    figure = Figure(figsize=(4.5 * len(history), 3.2), layout="constrained")
    for axis, (name, h) in zip(figure.subplots(1, len(history)), history.items(), strict=True):
        axis.plot(h["step"], h["loss"], color=PROBE, linewidth=1.5)
        axis.set(yscale="log", xlabel="step", title=NETWORK_NAMES[name])
    figure.axes[0].set_ylabel("training loss, mean of 50 steps")
    figure.savefig(TINY / "curves.png", dpi=80)


if __name__ == "__main__":
    main()
