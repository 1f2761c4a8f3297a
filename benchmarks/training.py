"""The recipe and the curves of the shipped model, from what its training wrote down.

python benchmarks/training.py      # a second; writes the recipe of the model card and curves.png
"""

from __future__ import annotations

import json

from matplotlib.figure import Figure
from report import CARD, put, table
from transformers import CLIPModel

import imagic_lib as imagic
from imagic_lib.classroom.plots import PROBE
from imagic_lib.models import DATA, TINY
from imagic_lib.toyworld import clip, reader, recipe, unet, vae

NAMES = {"vae": "VAE", "clip": "mini-CLIP", "unet": "UNet", "reader": "reader"}
BATCHES = {
    "vae": f"{vae.BATCH} crops of {vae.CROP}×{vae.CROP}",
    "clip": f"{clip.BATCH} pictures with captions",
    "unet": f"{unet.BATCH} latents, min-SNR weights (γ = {unet.MIN_SNR:g}), average of the weights",
    "reader": f"{reader.BATCH} drawings of all combinations, a third of them through the VAE",
}
RATES = {"vae": vae.LR, "clip": clip.LR, "unet": unet.LR, "reader": reader.LR}


def main() -> None:
    history = json.loads((TINY / "training.json").read_text())
    pipe = imagic.load_pipeline("tiny")
    parts = {"vae": pipe.vae, "unet": pipe.unet, "reader": reader.load_reader().net}
    parts["clip"] = CLIPModel.from_pretrained(DATA / "tiny-clip")
    count = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    rows = [
        [
            NAMES[k],
            f"{count[k]:.2f} M",
            f"{h['step'][-1]:,}",
            f"{RATES[k]:g}",
            BATCHES[k],
            f"{h['seconds'] / 60:.0f} min",
        ]
        for k, h in history.items()
    ]
    hours = sum(h["seconds"] for h in history.values()) / 3600
    header = ["network", "parameters", "steps", "peak learning rate", "batch", "time"]
    text = (
        f"{recipe.SCENES:,} drawings, AdamW, the rate level, then straight down to 0; **{hours:.1f} hours** in all.\n\n"
    )
    put(CARD, "recipe", text + table(header, rows))

    figure = Figure(figsize=(15, 3.2), layout="constrained")
    for axis, (name, h) in zip(figure.subplots(1, len(history)), history.items(), strict=True):
        axis.plot(h["step"], h["loss"], color=PROBE, linewidth=1.5)
        axis.set(yscale="log", xlabel="step", title=NAMES[name])
    figure.axes[0].set_ylabel("training loss, mean of 50 steps")
    figure.savefig(TINY / "curves.png", dpi=80)


if __name__ == "__main__":
    main()
