"""The whole recipe of tiny-sd, from nothing to a diffusers folder: `python -m imagic_lib train`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from imagic_lab.toyworld import clip, dataset, reader, unet, vae
from imagic_lab.toyworld.captions import vocabulary
from imagic_lab.toyworld.monsters import monsters
from imagic_lib.__main__ import NETWORKS
from imagic_lib.models import encode_text, load_pipeline
from imagic_lib.stage4_inference import generate
from imagic_lib.training.checkpoints import load_tensors, save_tensors, write_atomically

SCENES, READER_SCENES, SOFTENED, HELD_BACK = 48_000, 24_000, 6_000, 512
PREVIEW_TEXTS = (
    "a brown dog jumping on the grass", "a photo of an orange cat sitting on the beach",
    "a white rabbit in the snow", "a yellow bird flying at night", "a red car parked on the beach",
    "a black cat lying down on the grass", "a blue dog standing at night", "a grey car driving in the snow",
)  # fmt: skip


def make(
    runs: Path,
    out: Path,
    *,
    start: Path | None = None,
    only: Sequence[str] = NETWORKS,
    scale: float = 1.0,
    seed: int = 0,
    bf16: bool = False,
    device: str = "cpu",
) -> None:
    """Drawings -> VAE -> mini-CLIP -> UNet -> reader, then everything into `out`, laid out like data/.

    start: a folder like data/ whose networks are trained on; None begins with nothing. only: the networks to
    train; the others are those of `start`. Every network goes on from its checkpoint in `runs`, or is skipped if
    it is finished. scale: share of the full number of scenes and steps, for trials. device: "cpu", or "cuda" for
    an hour in place of a day. Raises ValueError if a network is neither to be trained nor in `start`.
    """
    if start is None and set(only) != set(NETWORKS):
        raise ValueError("without a model to start from, all networks are trained: leave out --only, or give --start")

    def part(full: int, least: int = 10) -> int:
        return max(least, round(full * scale))

    how = {"seed": seed, "bf16": bf16, "device": device}
    scenes = dataset.training_scenes(part(SCENES, 64))
    drawings = dataset.render(scenes, runs / "scenes" / "train")
    held_back = dataset.render(dataset.test_scenes(part(HELD_BACK, 16)), runs / "scenes" / "test")
    before, history = opened(start), {}

    the_vae, the_unet = (before.vae, before.unet) if before else (None, None)
    if "vae" in only:
        the_vae, history["vae"] = vae.train_vae(
            drawings, held_back, runs, start_from=the_vae, steps=part(vae.STEPS), **how
        )
    if "clip" in only:
        tokenizer = clip.train_tokenizer(scenes, runs / "tokenizer")
        the_clip, history["clip"] = clip.train_clip(
            drawings, scenes, tokenizer, runs, steps=part(clip.STEPS), seed=seed, bf16=bf16
        )
        text_encoder = text_tower(the_clip)
    else:
        tokenizer, text_encoder = before.tokenizer, before.text_encoder
        the_clip = CLIPModel.from_pretrained(start / "tiny-clip", dtype=torch.float32)

    def preview(model: UNet2DConditionModel, path: Path) -> None:
        draw_previews(assemble(the_vae, text_encoder, tokenizer, model.eval()).to(device), path)

    if "unet" in only:
        the_unet, history["unet"] = unet.train_unet(
            encoded(the_vae, drawings, runs / "latents.safetensors"),
            scenes,
            tokenizer,
            text_encoder,
            runs,
            start_from=the_unet,
            steps=part(unet.STEPS),
            preview=preview,
            **how,
        )
    pipe = assemble(the_vae, text_encoder, tokenizer, the_unet).to("cpu")  # the previews took its parts to the device
    if "reader" in only:
        every = dataset.any_scenes(part(READER_SCENES, 64))
        read = dataset.render(every, runs / "scenes" / "reader")
        soft = dataset.through(the_vae, read[: part(SOFTENED, 64)])
        net, history["reader"] = reader.train_reader(
            read, soft, every, runs, steps=part(reader.STEPS), seed=seed, bf16=bf16
        )
        spoiled = np.stack([np.asarray(picture) for *_, picture in monsters(part(reader.MONSTERS, 1))])
        good = held_back[: part(reader.BOUND_FROM, 16)]
        the_reader = reader.with_bound(net, *(dataset.through(the_vae, pictures) for pictures in (good, spoiled)))
    else:
        the_reader = reader.load_reader(start / "reader" / "reader.safetensors")
    export(out, pipe, the_clip, the_reader, history)


def opened(start: Path | None) -> StableDiffusionPipeline | None:
    """The model to train on, all its weights free to move."""
    if start is None:
        return None
    pipe = load_pipeline(start / "tiny-sd", device="cpu")
    for network in (pipe.vae, pipe.unet):
        network.requires_grad_(True)
    return pipe


def draw_previews(pipe: StableDiffusionPipeline, path: Path) -> None:
    """The same texts and noises every time: how training goes, to look at."""
    e = torch.cat([encode_text(pipe, text) for text in PREVIEW_TEXTS])
    flat = generate(pipe, e, [0, 1], steps=20)
    rows = [vae.to_tensor(np.stack([np.asarray(p) for p in flat[k::2]])) for k in (0, 1)]
    vae.save_rows(path, rows)


def encoded(the_vae: AutoencoderKL, drawings: np.ndarray, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents of all drawings, (means, deviations), kept in a file: five minutes that a stop need not cost."""
    if not path.exists():
        means, deviations = unet.encode_all(the_vae, drawings)
        save_tensors(path, {"means": means, "deviations": deviations}, {})
    tensors, _ = load_tensors(path)
    return tensors["means"], tensors["deviations"]


def text_tower(model: CLIPModel) -> CLIPTextModel:
    """The text half of a CLIP as the class that Stable Diffusion uses, with the same weights."""
    tower = CLIPTextModel(model.config.text_config)
    weights = model.text_model.state_dict()
    prefix = "text_model." if any(k.startswith("text_model.") for k in tower.state_dict()) else ""
    tower.load_state_dict({prefix + k: v for k, v in weights.items()})
    return tower.eval()


def assemble(
    the_vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, the_unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(
        vae=the_vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=the_unet,
        scheduler=unet.scheduler(),
        safety_checker=None,  # a drawn world has nothing to check
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def export(
    out: Path, pipe: StableDiffusionPipeline, the_clip: CLIPModel, the_reader: reader.Reader, history: dict
) -> None:
    """tiny-sd/, tiny-clip/ and reader/ in half precision, and the training curves beside tiny-sd."""
    fresh = out / f".{out.name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    quiet = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    pipe.to(torch.float16).save_pretrained(fresh / "tiny-sd", safe_serialization=True)
    diffusers_logging.set_verbosity(quiet)
    the_clip.half().save_pretrained(fresh / "tiny-clip")
    pipe.tokenizer.save_pretrained(fresh / "tiny-clip")
    clip.image_processor().save_pretrained(fresh / "tiny-clip")
    for config in (fresh / "tiny-sd" / "text_encoder" / "config.json", fresh / "tiny-clip" / "config.json"):
        # stored in half, to be opened in float32 as the UNet and the VAE are: transformers obeys this entry
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2))
    for config in (fresh / "tiny-sd" / "unet" / "config.json", fresh / "tiny-sd" / "vae" / "config.json"):
        facts = json.loads(config.read_text())
        facts.pop("_name_or_path", None)  # a path on the machine of whoever trained it
        config.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    words = json.dumps(sorted(vocabulary()), indent=0)
    (fresh / "tiny-sd" / "vocabulary.json").write_text(words, encoding="utf-8")  # what `models.unknown_words` reads
    the_reader.save(fresh / "reader" / "reader.safetensors")
    text = json.dumps(history)
    write_atomically(fresh / "tiny-sd" / "training.json", lambda tmp: tmp.write_text(text))
    for folder in ("tiny-sd", "tiny-clip", "reader"):
        (out / folder).mkdir(exist_ok=True)
        for path in (fresh / folder).rglob("*"):
            if path.is_file():
                target = out / folder / path.relative_to(fresh / folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    shutil.rmtree(fresh)
