"""How good is tiny-sd? VAE, CLIP and text -> picture, all on what training never saw, read by the reader.

python -m imagic_lab.numbers.model                 # about 20 minutes on 2 cores; writes the tables of the model card
python -m imagic_lab.numbers.model runs/tiny/out  # another model, laid out like data/: tables are printed
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPModel

import imagic_lib as imagic
from imagic_lab.numbers.report import CARD, put, table
from imagic_lab.toyworld import ATTRIBUTES, clip, dataset, load_reader, vae
from imagic_lab.toyworld.details import share_kept
from imagic_lib.models import DATA
from imagic_lib.stage4_inference import DEFAULTS

SAMPLES, READ = 256, 64
SHIPPED = ("sde-dpm++", DEFAULTS["tiny"]["guidance_scale"])  # the sampler is that of the model's own folder
COMPARED = [SHIPPED, ("ddim", SHIPPED[1]), ("dpm++", SHIPPED[1]), (SHIPPED[0], 1.0), (SHIPPED[0], 4.0)]


def drawings(scenes) -> torch.Tensor:
    return vae.to_tensor(np.stack([dataset.pixels(scene) for scene in scenes]))


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def held_out_scenes() -> list:
    """One scene for each of the 64 combinations that training never saw."""
    found = {tuple(s.attributes.values()): s for s in dataset.test_scenes(4000, held_out=True)}
    return [found[key] for key in sorted(found)]


def samples_of(pipe, count: int, sampler: str | None = None, guidance: float | None = None) -> tuple[list, list]:
    """(scenes, a picture of each one's caption): every held-out combination equally often, a seed for each."""
    scenes, drawn = held_out_scenes() * (count // 64), []
    for seed, scene in enumerate(scenes):
        drawn += imagic.sample_text(pipe, scene.caption(), [seed], scheduler=sampler, guidance_scale=guidance)
    return scenes, drawn


def read(reader, scenes, pictures) -> tuple[list, list, list]:
    """(which attributes are right, by name; is it drawn well? what share of the details is the scene's?), for each."""
    found = [reader.scene(picture) for picture in pictures]
    right = [{k: getattr(f, k) == getattr(s, k) for k in ATTRIBUTES} for f, s in zip(found, scenes, strict=True)]
    well = [reader.left(p, f) <= reader.bound for p, f in zip(pictures, found, strict=True)]
    return right, well, [share_kept(f, s) for f, s in zip(found, scenes, strict=True)]


def main(data: Path = DATA) -> None:
    pipe, reader = imagic.load_pipeline(data / "tiny-sd"), load_reader(data / "reader" / "reader.safetensors")
    seen_by_nobody = dataset.test_scenes(512)
    pictures = drawings(seen_by_nobody)
    rebuilt = torch.cat([vae.reconstruct(pipe.vae, part) for part in pictures.split(32)])
    psnr = vae.psnr(rebuilt, pictures)
    vae.save_rows(data / "tiny-sd" / "vae.jpg", [pictures[:8], rebuilt[:8]])

    def show(name: str, text: str) -> None:
        put(CARD, name, text) if data == DATA else print(text)

    mini_clip = CLIPModel.from_pretrained(data / "tiny-clip", dtype=torch.float32)
    found = clip.retrieval(mini_clip, pipe.tokenizer, pictures[:256], [s.caption() for s in seen_by_nobody[:256]])

    scenes, drawn = samples_of(pipe, SAMPLES)
    rows = list(torch.cat([vae.to_tensor(np.asarray(p)[None]) for p in drawn[:64]]).split(8))
    vae.save_rows(data / "tiny-sd" / "samples.jpg", rows)

    parts = {"held-back drawings": pictures[:READ], "the same through the VAE": rebuilt[:READ]}
    lines = []
    for name, some in parts.items():
        right, well, kept = read(reader, seen_by_nobody[:READ], some)
        shares = [percent(np.mean([r[k] for r in right])) for k in ATTRIBUTES]
        lines.append([f"{READ} {name}", *shares, percent(np.mean(well)), percent(np.mean(kept))])
    right, well, _ = read(reader, scenes, drawn)
    shares = [percent(np.mean([r[k] for r in right])) for k in ATTRIBUTES]
    lines.append([f"{SAMPLES} samples of held-out combinations", *shares, percent(np.mean(well)), "–"])
    scores = table(["read as the caption says", *ATTRIBUTES, "drawn well", "details kept"], lines)
    steps, guidance = DEFAULTS["tiny"]["steps"], DEFAULTS["tiny"]["guidance_scale"]
    show(
        "model",
        f"VAE on {len(pictures)} held-back drawings: PSNR **{psnr.mean():.1f} dB** on average, {psnr.min():.1f} dB at "
        f"worst.\nSamples with all four attributes right: **{percent(np.mean([all(r.values()) for r in right]))}**, "
        f"drawn well: **{percent(np.mean(well))}** ({steps} steps, guidance {guidance:g}, no picking).\n"
        f"mini-CLIP: for {percent(found)} of 256 held-back drawings the right caption scores highest.\n\n{scores}",
    )
    lines = []
    for sampler, guidance in COMPARED:
        right, well, _ = read(reader, *samples_of(pipe, 64, sampler, guidance))
        name = f"**{sampler}**" if (sampler, guidance) == SHIPPED else sampler
        whole = percent(np.mean([all(r.values()) for r in right]))
        lines.append([name, f"{guidance:g}", whole, percent(np.mean(well))])
    show("samplers", table(["sampler", "guidance", "all four right", "drawn well"], lines))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
