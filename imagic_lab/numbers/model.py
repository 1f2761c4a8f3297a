"""How good is tiny-sd? Its VAE, CLIP and text -> picture, on scenes that training never saw, judged by the reader.

python -m imagic_lab.numbers.model              # about 20 minutes on 2 cores; writes the tables of the model card
python -m imagic_lab.numbers.model runs/data    # another model, in a folder like data/; the tables are printed
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table
from imagic_lab.numbers.report import TINY_CARD, command_line, put
from imagic_lab.numbers.results import in_percent, save_rows
from imagic_lab.toyworld import ATTRIBUTES, clip, dataset, load_reader, vae
from imagic_lab.toyworld.details import share_kept
from imagic_lib.models import DATA
from imagic_lib.pictures import to_tensor
from imagic_lib.stage4_inference import DEFAULTS

SAMPLES, JUDGED = 256, 64
SHIPPED_SAMPLER = NAME, TINY_GUIDANCE = "sde-dpm++", DEFAULTS["tiny"]["guidance_scale"]  # the model's folder names it
COMPARED_SAMPLERS = [SHIPPED_SAMPLER, ("ddim", TINY_GUIDANCE), ("dpm++", TINY_GUIDANCE), (NAME, 1.0), (NAME, 4.0)]


def pixels_of(scenes) -> torch.Tensor:
    return torch.cat([to_tensor(scene.render()) for scene in scenes])


def held_out_scenes() -> list:
    """Return one scene for each of the 64 combinations that training never saw."""
    found = {tuple(s.attributes.values()): s for s in dataset.test_scenes(4000, held_out=True)}
    return [found[key] for key in sorted(found)]


def samples_of(pipe, count: int, sampler: str | None = None, guidance: float | None = None) -> tuple[list, list]:
    """Return scenes and a picture for each caption, every held-out combination equally often, all with other seeds."""
    scenes, drawn = held_out_scenes() * (count // 64), []
    for seed, scene in enumerate(scenes):
        drawn += imagic.sample_text(pipe, scene.caption(), [seed], scheduler=sampler, guidance_scale=guidance)
    return scenes, drawn


def judge(reader, scenes, pictures) -> tuple[list, list, list]:
    """Return, for each picture: which attributes are right, by name; whether it is drawn well; its details kept."""
    found = [reader.scene(picture) for picture in pictures]
    right = [{k: getattr(f, k) == getattr(s, k) for k in ATTRIBUTES} for f, s in zip(found, scenes, strict=True)]
    well = [reader.left(p, f) <= reader.bound for p, f in zip(pictures, found, strict=True)]
    return right, well, [share_kept(f, s) for f, s in zip(found, scenes, strict=True)]


def attributes_table(reader, parts: dict[str, tuple[list, Sequence]], samples: tuple[list, list, list]) -> str:
    """Return a table of what the reader finds in (scenes, pictures), by name, and what `judge` found in the samples."""
    lines = []
    for name, (scenes, pictures) in parts.items():
        right, well, kept = judge(reader, scenes, pictures)
        shares = [in_percent(np.mean([one[k] for one in right])) for k in ATTRIBUTES]
        lines.append([f"{len(scenes)} {name}", *shares, in_percent(np.mean(well)), in_percent(np.mean(kept))])
    right, well, _ = samples
    shares = [in_percent(np.mean([one[k] for one in right])) for k in ATTRIBUTES]
    lines.append([f"{SAMPLES} samples of held-out combinations", *shares, in_percent(np.mean(well)), "–"])
    return markdown_table(["read as the caption says", *ATTRIBUTES, "drawn well", "details kept"], lines)


def samplers_table(pipe, reader) -> str:
    """Return a table of other samplers and guidance scales, each on one sample of every held-out combination."""
    lines = []
    for sampler, guidance in COMPARED_SAMPLERS:
        right, well, _ = judge(reader, *samples_of(pipe, 64, sampler, guidance))
        name = f"**{sampler}**" if (sampler, guidance) == SHIPPED_SAMPLER else sampler
        whole = in_percent(np.mean([all(one.values()) for one in right]))
        lines.append([name, f"{guidance:g}", whole, in_percent(np.mean(well))])
    return markdown_table(["sampler", "guidance", "all four right", "drawn well"], lines)


@torch.no_grad()
def retrieval(model: CLIPModel, tokenizer: CLIPTokenizer, pictures: Tensor, captions: list[str]) -> float:
    """Return the share of pictures (n, 3, 128, 128) whose own caption scores highest of all captions, in [0, 1]."""
    scores = model(input_ids=clip.tokenize(tokenizer, captions), pixel_values=pictures).logits_per_image
    best = scores.argmax(dim=1)
    return sum(captions[i] == captions[k] for k, i in enumerate(best.tolist())) / len(captions)


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("data", nargs="?", type=Path, default=DATA, help="a folder like data/ (default: data/ itself)")
    data = options.parse_args().data
    pipe, reader = imagic.load_pipeline(data / "tiny-sd"), load_reader(data / "reader" / "reader.safetensors")
    unseen = dataset.test_scenes(512)
    pictures = pixels_of(unseen)
    rebuilt = torch.cat([vae.reconstruct(pipe.vae, part) for part in pictures.split(32)])
    psnr = vae.psnr_per_picture(rebuilt, pictures)
    save_rows(data / "tiny-sd" / "vae.jpg", [pictures[:8], rebuilt[:8]])
    mini_clip = CLIPModel.from_pretrained(data / "tiny-clip", dtype=torch.float32)
    found = retrieval(mini_clip, pipe.tokenizer, pictures[:256], [s.caption() for s in unseen[:256]])
    scenes, drawn = samples_of(pipe, SAMPLES)
    save_rows(data / "tiny-sd" / "samples.jpg", list(torch.cat([to_tensor(p) for p in drawn[:64]]).split(8)))

    parts = {"held-back drawings": (unseen[:JUDGED], pictures[:JUDGED])}
    parts["the same through the VAE"] = unseen[:JUDGED], rebuilt[:JUDGED]
    right, well, _ = samples = judge(reader, scenes, drawn)
    scores, steps = attributes_table(reader, parts, samples), DEFAULTS["tiny"]["steps"]
    whole = in_percent(np.mean([all(one.values()) for one in right]))
    text = (
        f"VAE on {len(pictures)} held-back drawings: PSNR **{psnr.mean():.1f} dB** on average, {psnr.min():.1f} dB at "
        f"worst.\nSamples with all four attributes right: **{whole}**, drawn well: **{in_percent(np.mean(well))}** "
        f"({steps} steps, guidance {TINY_GUIDANCE:g}, no picking).\nmini-CLIP: for {in_percent(found)} of 256 "
        f"held-back drawings the right caption scores highest.\n\n{scores}"
    )
    for name, page in {"model": text, "samplers": samplers_table(pipe, reader)}.items():
        put(TINY_CARD, name, page) if data == DATA else print(page)


if __name__ == "__main__":
    main()
