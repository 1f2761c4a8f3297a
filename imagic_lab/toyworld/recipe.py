"""The whole recipe of tiny-sd, from random weights to a diffusers folder: `python -m imagic_lab.toyworld train`."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from imagic_lab.toyworld import clip, dataset, reader, unet, vae
from imagic_lab.toyworld.captions import caption_words
from imagic_lab.toyworld.monsters import monsters
from imagic_lab.toyworld.scene import TEST_SEEDS, Scene
from imagic_lib.arguments import check_setting
from imagic_lib.files import load_facts, load_tensors, save_tensors
from imagic_lib.models import load_pipeline

NETWORKS = ("vae", "clip", "unet", "reader")  # in the order of their training
SCENES, READER_SCENES, SOFTENED, HELD_BACK = 48_000, 24_000, 6_000, 512
PLUGINS = {"measure": "imagic_lab.toyworld.edits:read_by"}  # for `models.plugin_of`


def make(runs: Path, out: Path, *, start: Path | None = None, only: Sequence[str] = NETWORKS, scale: float = 1.0,
         seed: int = 0, device: str = "cpu") -> None:  # fmt: skip
    """Train the VAE, the mini-CLIP, the UNet and the reader on drawings, and write them to `out`, laid out like data/.

    runs: a work folder, where every network continues from its checkpoint, or is skipped if it is finished. start: a
    folder like data/ whose networks are trained further; None starts from random weights. only: networks to train;
    `start` provides the others. scale: share of all scenes and steps to use, for trials. device: "cpu" (a day) or
    "cuda" (an hour). Raises ValueError for an invalid number, or if a network is neither trained nor in `start`.
    """
    if start is None and set(only) != set(NETWORKS):
        raise ValueError("without a model to start from, all networks are trained: leave out --only, or give --start")
    check_setting("scale", scale, zero=True)
    check_setting("seed", seed, zero=True)
    steps = {name: share_of(part.STEPS, scale) for name, part in zip(NETWORKS, (vae, clip, unet, reader), strict=True)}
    scenes = dataset.training_scenes(share_of(SCENES, scale, 32))
    drawings, held_back = map(dataset.render, (scenes, dataset.test_scenes(share_of(HELD_BACK, scale, 8))))
    before = load_pipeline(start / "tiny-sd", device="cpu") if start else None
    the_vae, the_unet = (before.vae, before.unet) if before else (None, None)
    history = {}
    if "vae" in only:
        the_vae, history["vae"] = vae.train_vae(
            drawings, runs, start_from=the_vae, steps=steps["vae"], device=device, seed=seed
        )
    if "clip" in only:
        tokenizer = clip.train_tokenizer(scenes, runs / "tokenizer")
        the_clip, history["clip"] = clip.train_clip(drawings, scenes, tokenizer, runs, steps=steps["clip"], seed=seed)
        text_encoder = text_tower(the_clip)
    else:
        tokenizer, text_encoder = before.tokenizer, before.text_encoder
        the_clip = CLIPModel.from_pretrained(start / "tiny-clip", dtype=torch.float32)
    if "unet" in only:
        latents = cached_latents(the_vae, drawings, runs / "latents.safetensors")
        more = {"start_from": the_unet, "steps": steps["unet"], "device": device}
        the_unet, history["unet"] = unet.train_unet(latents, scenes, tokenizer, text_encoder, runs, **more, seed=seed)
    pipe = assemble(the_vae, text_encoder, tokenizer, the_unet)
    if "reader" in only:
        the_reader, history["reader"] = make_reader(the_vae, held_back, runs, scale, steps=steps["reader"], seed=seed)
    else:
        the_reader = reader.load_reader(start / "reader" / "reader.safetensors")
    export(out, pipe, the_clip, the_reader, history)


def share_of(full: int, scale: float, least: int = 10) -> int:
    return max(least, round(full * scale))


def cached_latents(the_vae: AutoencoderKL, drawings: np.ndarray, path: Path) -> tuple[Tensor, Tensor]:
    """Return the latents of all drawings, (means, deviations). A file keeps them, because they take five minutes.

    A file from another VAE or from other drawings is replaced.
    """
    made_of = hashlib.sha256(np.ascontiguousarray(drawings))
    for name, weights in sorted(the_vae.state_dict().items()):
        made_of.update(name.encode() + weights.numpy().tobytes())
    facts = {"made_of": made_of.hexdigest()}
    if not path.exists() or load_facts(path) != facts:
        means, deviations = unet.encode_all(the_vae, drawings)
        save_tensors(path, {"means": means, "deviations": deviations}, facts)
    tensors, _ = load_tensors(path)
    return tensors["means"], tensors["deviations"]


def make_reader(
    the_vae: AutoencoderKL, held_back: np.ndarray, runs: Path, scale: float, **how
) -> tuple[reader.Reader, dict]:
    """Train a reader for drawings, before and after this VAE. Returns (reader, history)."""
    first = TEST_SEEDS // 2  # so that it learns all combinations, also those held out from the other networks
    scenes = [Scene.sample(seed) for seed in range(first, first + share_of(READER_SCENES, scale, 32))]
    drawings = dataset.render(scenes)
    softened = vae.reconstruct_pixels(the_vae, drawings[: share_of(SOFTENED, scale, 16)])
    net, history = reader.train_reader(drawings, softened, scenes, runs, **how)
    good = held_back[: share_of(reader.BOUND_FROM, scale, 8)]
    spoiled = np.stack([np.asarray(picture) for *_, picture in monsters(share_of(reader.MONSTERS, scale, 1))])
    return reader.with_bound(net, *(vae.reconstruct_pixels(the_vae, part) for part in (good, spoiled))), history


def text_tower(model: CLIPModel) -> CLIPTextModel:
    """Return the text encoder of a CLIP in the class that Stable Diffusion uses, with the same weights."""
    tower = CLIPTextModel(model.config.text_config)
    inner = getattr(tower, "text_model", tower)  # older versions of transformers wrap it
    inner.load_state_dict(model.text_model.state_dict())
    return tower.eval()


def assemble(
    the_vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, the_unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Make a Stable Diffusion pipeline from these networks, with tiny-sd's sampler."""
    pipe = StableDiffusionPipeline(
        vae=the_vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=the_unet,
        scheduler=unet.scheduler(),
        safety_checker=None,  # drawings need no check
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def export(
    out: Path, pipe: StableDiffusionPipeline, the_clip: CLIPModel, the_reader: reader.Reader, history: dict
) -> None:
    """Write tiny-sd/ with the training curves, tiny-clip/ and reader/, all in half precision."""
    fresh = out / f".{out.name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    quiet = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    pipe.to(torch.float16).save_pretrained(fresh / "tiny-sd", safe_serialization=True)
    diffusers_logging.set_verbosity(quiet)
    half = [0.5, 0.5, 0.5]  # puts pixels into [-1, 1], as in training
    sizes = {"size": {"shortest_edge": 128}, "crop_size": {"height": 128, "width": 128}}
    for part in (the_clip.half(), pipe.tokenizer, CLIPImageProcessor(**sizes, image_mean=half, image_std=half)):
        part.save_pretrained(fresh / "tiny-clip")
    for part in ("tiny-sd/text_encoder", "tiny-clip", "tiny-sd/unet", "tiny-sd/vae"):
        facts = json.loads((config := fresh / part / "config.json").read_text())
        facts.pop("_name_or_path", None)  # a path on the computer that trained it
        if "dtype" in facts:  # transformers would obey it, but all parts should open in float32
            facts["dtype"] = "float32"
        config.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    (fresh / "tiny-sd" / "vocabulary.json").write_text(json.dumps(sorted(caption_words()), indent=0))
    (fresh / "tiny-sd" / "training.json").write_text(json.dumps(history))
    (fresh / "tiny-sd" / "imagic.json").write_text(json.dumps(PLUGINS) + "\n")
    the_reader.save(fresh / "reader" / "reader.safetensors")
    shutil.copytree(fresh, out, copy_function=os.replace, dirs_exist_ok=True)  # each file replaces its old one
    shutil.rmtree(fresh)
