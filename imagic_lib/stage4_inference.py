"""Stage 4: from Gaussian noise to a picture, every step observable."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from diffusers.schedulers import SchedulerMixin
from PIL import Image
from torch import Tensor

from imagic_lib.diffusion import decode_latents, training_noise
from imagic_lib.models import encode_text, family, settings_for
from imagic_lib.pictures import to_picture

DEFAULTS = {
    "tiny": {"steps": 30, "guidance_scale": 3.0},
    "stable-diffusion": {"steps": 50, "guidance_scale": 7.5},  # StableDiffusionPipeline's own
}
AT_ONCE = {"tiny": 16, "stable-diffusion": 1}  # pictures in one batch
SAMPLERS = {"ddim": DDIMScheduler, "pndm": PNDMScheduler, "dpm++": DPMSolverMultistepScheduler}


class Step(NamedTuple):
    """What a callback sees of one denoising step; latents are (n, 4, h, w)."""

    index: int
    timestep: int
    z_t: Tensor  # before the step
    z_0: Tensor  # the UNet's present guess of the finished latents


def sampler(pipe: StableDiffusionPipeline, name: str) -> SchedulerMixin:
    """A sampler by name ("ddim", "pndm", "dpm++") over the model's own noise process, for `generate`."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown: choose one of {', '.join(SAMPLERS)}")
    own_way = {"skip_prk_steps": True} if name == "pndm" else {}  # as Stable Diffusion's configuration has it
    return SAMPLERS[name].from_config(pipe.scheduler.config, **own_way)


def initial_noise(pipe: StableDiffusionPipeline, seed: int) -> Tensor:
    """The noise that a seed stands for, (1, 4, h, w), drawn in float32: as diffusers' pipeline draws it."""
    side = pipe.unet.config.sample_size
    shape = (1, pipe.unet.config.in_channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(pipe.unet.device)


def seeds_of(seeds: Sequence[int]) -> list[int]:
    """A list of at least one whole number below 2**63; raises ValueError for anything else."""
    seeds = list(seeds) if isinstance(seeds, Iterable) else []
    if not seeds or not all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds):
        raise ValueError("seeds must be a list of one or more whole numbers from 0 up, e.g. seeds=[0, 1, 2]")
    return seeds


def guided(noise_text: Tensor, noise_empty: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): ε_∅ + s·(ε_text - ε_∅)."""
    return noise_empty + scale * (noise_text - noise_empty)


def predicted_original(pipe: StableDiffusionPipeline, z_t: Tensor, answer: Tensor, timestep: int) -> Tensor:
    """z_0 as the UNet's answer implies it: (z_t - sqrt(1 - ᾱ) ε) / sqrt(ᾱ), or the same for v."""
    a = training_noise(pipe).alphas_cumprod[int(timestep)].to(z_t)
    if pipe.scheduler.config.prediction_type == "v_prediction":
        return a.sqrt() * z_t - (1 - a).sqrt() * answer
    return (z_t - (1 - a).sqrt() * answer) / a.sqrt()


@torch.no_grad()
def generate(
    pipe: StableDiffusionPipeline,
    embeddings: Tensor,
    seeds: Sequence[int] = (0,),
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    scheduler: SchedulerMixin | str | None = None,
    callback: Callable[[Step], None] | None = None,
) -> list[Image.Image]:
    """Pictures for every embedding and every seed, embedding by embedding: n x len(seeds) of them.

    embeddings: (n, tokens, width), e.g. from `interpolate`. The noise of a seed is the same for every
    embedding. scheduler: a name for `sampler`, or a scheduler; the pipeline's own if left out. callback:
    called with a `Step` at each denoising step of each batch. A safety checker that the model ships
    blackens what it flags, and says so. Taught in notebooks/05_inference.ipynb.
    """
    scheduler, seeds = scheduler or pipe.scheduler, seeds_of(seeds)
    if isinstance(scheduler, str):
        scheduler = sampler(pipe, scheduler)
    if not isinstance(scheduler, tuple(SAMPLERS.values())):
        raise ValueError(f"{type(scheduler).__name__} is not supported: give scheduler= one of {', '.join(SAMPLERS)}")
    given = settings_for(pipe, DEFAULTS, steps=steps, guidance_scale=guidance_scale)
    device, dtype = pipe.unet.device, pipe.unet.dtype
    noise = torch.cat([initial_noise(pipe, seed) for seed in seeds]).repeat(len(embeddings), 1, 1, 1)
    text = embeddings.repeat_interleave(len(seeds), dim=0).to(device, dtype)
    empty = pipe.encode_prompt(negative_prompt, device, 1, False)[0].to(dtype)
    pictures = []
    at_once = AT_ONCE[family(pipe)]
    for z, e in zip(noise.to(dtype).split(at_once), text.split(at_once), strict=True):
        z = denoise(
            pipe,
            z,
            e,
            empty,
            given["steps"],
            given["guidance_scale"],
            copy.deepcopy(scheduler),
            callback,
        )
        pictures += [to_picture(decode_latents(pipe, one[None])) for one in z]
    return checked(pipe, pictures)


def checked(pipe: StableDiffusionPipeline, pictures: list[Image.Image]) -> list[Image.Image]:
    """The pictures, with those that the model's safety checker flags made black, and a warning."""
    if pipe.safety_checker is None:
        return pictures
    device, dtype = pipe.safety_checker.device, pipe.safety_checker.dtype
    seen = pipe.feature_extractor(pictures, return_tensors="pt").pixel_values.to(device, dtype)
    arrays = np.stack([np.asarray(p, dtype=np.float32) / 255 for p in pictures])
    _, flags = pipe.safety_checker(images=arrays, clip_input=seen)
    if any(flags):
        warnings.warn(
            f"the model's safety checker flagged {sum(flags)} of {len(flags)} pictures: they are black", stacklevel=3
        )
    return [Image.new("RGB", p.size) if flag else p for p, flag in zip(pictures, flags, strict=True)]


def denoise(pipe, z: Tensor, text: Tensor, empty: Tensor, steps: int, scale: float, scheduler, callback=None) -> Tensor:
    """The sampling loop: z_T (n, 4, h, w) -> z_0. text: (n, tokens, width); empty: (1, tokens, width)."""
    scheduler.set_timesteps(steps, device=z.device)
    z = z * scheduler.init_noise_sigma
    both = torch.cat([empty.expand(len(z), -1, -1), text])
    for index, t in enumerate(scheduler.timesteps):
        if scale > 1:
            seen = scheduler.scale_model_input(torch.cat([z, z]), t)
            answer_empty, answer_text = pipe.unet(seen, t, both).sample.chunk(2)
            answer = guided(answer_text, answer_empty, scale)
        else:  # no guidance: the text alone, at half the cost
            answer = pipe.unet(scheduler.scale_model_input(z, t), t, text).sample
        if callback is not None:
            callback(Step(index, int(t), z, predicted_original(pipe, z, answer, t)))
        z = scheduler.step(answer, t, z).prev_sample
    return z


def sample_text(pipe: StableDiffusionPipeline, text: str, seeds: Sequence[int] = (0,), **settings) -> list[Image.Image]:
    """Pictures of a text, without any edit: what the model itself makes of it."""
    return generate(pipe, encode_text(pipe, text), seeds, **settings)
