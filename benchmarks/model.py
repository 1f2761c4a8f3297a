"""How good is tiny-sd? VAE, judge, CLIP and text -> picture, all on what training never saw.

python benchmarks/model.py         # about 5 minutes on 2 cores; writes the tables of the model card
"""

from __future__ import annotations

import numpy as np
import torch
from report import CARD, ROOT, put, table
from transformers import CLIPModel

import imagic_lib as imagic
from imagic_lib.models import DATA
from imagic_lib.toyworld import ATTRIBUTES, clip, dataset, vae
from imagic_lib.toyworld.judge import accuracy, load_judge

SAMPLES, STEPS = 256, 30


def drawings(scenes) -> torch.Tensor:
    return vae.to_tensor(np.stack([dataset.pixels(scene) for scene in scenes]))


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def main() -> None:
    pipe, judge = imagic.load_pipeline("tiny"), load_judge()
    seen_by_nobody = dataset.test_scenes(1024)
    pictures = drawings(seen_by_nobody)

    rebuilt = torch.cat([vae.reconstruct(pipe.vae, part) for part in pictures[:512].split(32)])
    psnr = vae.psnr(rebuilt, pictures[:512])
    vae.save_rows(ROOT / "data" / "tiny-sd" / "vae.jpg", [pictures[:8], rebuilt[:8]])

    mini_clip = CLIPModel.from_pretrained(DATA / "tiny-clip", dtype=torch.float32)
    found = clip.retrieval(mini_clip, pipe.tokenizer, pictures[:256], [s.caption() for s in seen_by_nobody[:256]])

    # every one of the 64 held-out combinations four times
    combinations = {tuple(s.attributes.values()): s for s in dataset.test_scenes(4000, held_out=True)}
    scenes = [combinations[key] for key in sorted(combinations)] * (SAMPLES // len(combinations))
    drawn = []
    for number, scene in enumerate(scenes):
        drawn += imagic.sample_text(pipe, scene.caption(), [number], steps=STEPS)
    samples = torch.cat([vae.to_tensor(np.asarray(p)[None]) for p in drawn])
    rows = list(samples[:64].split(8))
    vae.save_rows(ROOT / "data" / "tiny-sd" / "samples.jpg", rows)

    on_drawings = accuracy(judge, pictures, seen_by_nobody)
    on_vae = accuracy(judge, rebuilt, seen_by_nobody[:512])
    on_samples = accuracy(judge, samples, scenes)
    read = judge.read(samples)
    whole = sum(r == s.attributes for r, s in zip(read, scenes, strict=True)) / len(scenes)
    scores = table(
        ["share that the judge reads as the caption says", *ATTRIBUTES],
        [
            [f"{len(pictures)} held-back drawings", *(percent(on_drawings[k]) for k in ATTRIBUTES)],
            ["512 of them through the VAE", *(percent(on_vae[k]) for k in ATTRIBUTES)],
            [
                f"**{len(samples)} samples of held-out combinations**",
                *(f"**{percent(on_samples[k])}**" for k in ATTRIBUTES),
            ],
        ],
    )
    put(
        CARD,
        "model",
        f"VAE on 512 held-back drawings: PSNR **{psnr.mean():.1f} dB** on average, {psnr.min():.1f} dB at worst.\n"
        f"Samples with all four attributes right: **{percent(whole)}** ({STEPS} steps, guidance "
        f"{imagic.stage4_inference.DEFAULTS['tiny']['guidance_scale']:g}, no picking).\n"
        f"mini-CLIP: for {percent(found)} of 256 held-back drawings the right caption scores highest.\n\n{scores}",
    )


if __name__ == "__main__":
    main()
