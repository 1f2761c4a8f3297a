"""Stage 4: from Gaussian noise to a picture, every step observable."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers import SchedulerMixin
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from imagic_lib.arguments import seeds_of, warn_caller
from imagic_lib.diffusion import decode_latents
from imagic_lib.models import encode_text, family, settings_for
from imagic_lib.pictures import to_picture
from imagic_lib.training.loop import in_main_thread
from imagic_lib.training.strategies import precision
from imagic_lib.unets import scaled

DEFAULTS = {
    "tiny": {"steps": 20, "guidance_scale": 2.0},
    "stable-diffusion": {"steps": 50, "guidance_scale": 7.5},  # StableDiffusionPipeline's own
}
AT_ONCE = {"tiny": 16, "stable-diffusion": 1}  # pictures in one batch, at least
MOST_AT_ONCE = 8  # more fill a GPU no better
FOR_ALL, FOR_EACH = 3.0, 0.5  # GiB of a GPU: for the VAE and CUDA's own; for one more 512 px picture in the batch
FAST = {"scheduler": "dpm++", "steps": 25}  # half of Stable Diffusion's 50 steps
Guess = Callable[[Tensor, Tensor], Tensor]  # guess(z_t, t) -> the noise in z_t, or v
SAMPLERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),  # as Stable Diffusion's
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),  # configurations have it
    "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "sde-dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),  # new noise at every step
}


class Step(NamedTuple):
    """What a callback sees of one denoising step; latents are (n, 4, h, w)."""

    index: int
    timestep: int
    z_t: Tensor  # before the step
    z_0: Tensor  # what the UNet takes for the finished latents


def sampler(pipe: StableDiffusionPipeline, name: str) -> SchedulerMixin:
    """A sampler by its name in `SAMPLERS`, over the model's own noise process, for `generate`."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown: choose one of {', '.join(SAMPLERS)}")
    kind, settings = SAMPLERS[name]
    return kind.from_config(pipe.scheduler.config, **settings)


def scheduler_of(pipe: StableDiffusionPipeline, chosen: SchedulerMixin | str | None) -> SchedulerMixin:
    """A copy of the chosen scheduler, or of the pipeline's own; DDIM if `denoise` can't follow that. Raises ValueError
    if it can't follow the chosen one."""
    scheduler, known = chosen or pipe.scheduler, tuple(kind for kind, _ in SAMPLERS.values())
    if chosen is None and not isinstance(scheduler, known):
        warn_caller(f"the model's own {type(scheduler).__name__} can't be followed step by step: DDIM draws instead")
        chosen = "ddim"
    if isinstance(chosen, str):
        scheduler = sampler(pipe, chosen)
    if not isinstance(scheduler, known):
        raise ValueError(f"{type(scheduler).__name__} is not supported: give scheduler= one of {', '.join(SAMPLERS)}")
    return copy.deepcopy(scheduler)


def initial_noise(pipe: StableDiffusionPipeline, seed: int | torch.Generator) -> Tensor:
    """The noise of a seed, (1, 4, h, w), drawn in float32 as diffusers' pipeline draws it; of a generator its next."""
    side = pipe.unet.config.sample_size
    shape = (1, pipe.unet.config.in_channels, side, side)
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(pipe.unet.device)


def guided(noise_text: Tensor, noise_empty: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): ε_∅ + s·(ε_text - ε_∅)."""
    return noise_empty + scale * (noise_text - noise_empty)


def predicted_original(scheduler: SchedulerMixin, z_t: Tensor, answer: Tensor, timestep: int) -> Tensor:
    """z_0 as the UNet's answer implies it: (z_t - sqrt(1 - ᾱ) ε) / sqrt(ᾱ), or the same for v."""
    a = scheduler.alphas_cumprod[int(timestep)].to(z_t)
    if scheduler.config.prediction_type == "v_prediction":
        return a.sqrt() * z_t - (1 - a).sqrt() * answer
    return (z_t - (1 - a).sqrt() * answer) / a.sqrt()


def generate(pipe: StableDiffusionPipeline, embeddings: Tensor, seeds: Sequence[int] = (0,), *,
             steps: int | None = None, guidance_scale: float | None = None, scale: float = 1.0,
             negative_prompt: str = "", scheduler: SchedulerMixin | str | None = None,
             callback: Callable[[Step], None] | None = None, half: bool = False) -> list[Image.Image]:  # fmt: skip
    """Pictures for every embedding and every seed, embedding by embedding: n x len(seeds) of them.

    embeddings: (n, tokens, width), e.g. from `interpolate`. The noise of a seed is the same for every embedding, and so
    is the noise that a sampler adds on its way. guidance_scale: 1 is the text alone, 0 the negative prompt alone
    (`guided`). scale: the share of the fine-tuning, λ in formulas, from 0 to 2 (`unets.scaled`). scheduler: a name for
    `sampler`, or a scheduler; the pipeline's own if left out. callback: called with a `Step` at each denoising step of
    each batch. half: on a GPU, draw with a UNet in half precision (`strategies.precision`); on a CPU, where that is
    slower, it changes nothing. A safety checker that the model ships blackens what it flags, and says so. Raises
    ValueError for invalid settings. Taught in notebooks/05_inference.ipynb."""
    scheduler, seeds = scheduler_of(pipe, scheduler), seeds_of(seeds)
    if embeddings.ndim != 3 or len(embeddings) == 0:
        raise ValueError(f"the embeddings have the shape {tuple(embeddings.shape)}, not (n, tokens, width) with n > 0")
    if not torch.isfinite(embeddings).all():
        raise ValueError("the embeddings have values that are not finite")
    given = settings_for(pipe, DEFAULTS, steps=steps, guidance_scale=guidance_scale)
    device = pipe.unet.device
    text = embeddings.repeat_interleave(len(seeds), dim=0)
    generators, pictures = [torch.Generator().manual_seed(seed) for _ in embeddings for seed in seeds], []
    half_of = precision(device) if half and device.type == "cuda" else None
    with torch.no_grad(), scaled(pipe, scale, half_of) as unet, drawing_bar(pipe, len(text)) as bar:
        dtype, at_once = unet.dtype, pictures_at_once(pipe)
        text, empty = text.to(device, dtype), embedding_of_negative(pipe, negative_prompt).to(device, dtype)
        for start in range(0, len(text), at_once):
            e, own = text[start : start + at_once], generators[start : start + at_once]
            guess = denoiser(unet, e, empty, given["guidance_scale"])
            z = torch.cat([initial_noise(pipe, generator) for generator in own]).to(dtype)
            scheduler.set_timesteps(given["steps"], device=device)
            z = denoise(guess, z, scheduler, callback, own)
            pictures += [to_picture(decode_latents(pipe, one[None])) for one in z]
            bar.update(len(e))
        return safety_checked(pipe, pictures)


@torch.no_grad()
def embedding_of_negative(pipe: StableDiffusionPipeline, negative_prompt: str = "") -> Tensor:
    """What guidance leads away from: (1, tokens, width), of no text if none is given."""
    return pipe.encode_prompt(negative_prompt, pipe.text_encoder.device, 1, False)[0]


def pictures_at_once(pipe: StableDiffusionPipeline) -> int:
    """How many pictures go into one batch: on a GPU as many as its free memory holds."""
    least, device = AT_ONCE[family(pipe)], pipe.unet.device
    if device.type != "cuda":
        return least
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps it for later
    free = (torch.cuda.mem_get_info(device)[0] + reusable) / 2**30
    return max(least, min(MOST_AT_ONCE, int((free - FOR_ALL) / FOR_EACH)))


def drawing_bar(pipe: StableDiffusionPipeline, pictures: int) -> tqdm:
    """A progress bar for a large model; the embedded one is done before anyone has read a bar."""
    shown = family(pipe) != "tiny" and in_main_thread()
    return tqdm(total=pictures, desc="drawing", unit="picture", leave=False, disable=not shown)


def safety_checked(pipe: StableDiffusionPipeline, pictures: list[Image.Image]) -> list[Image.Image]:
    """The pictures, with those that the model's safety checker flags made black, and a warning."""
    if pipe.safety_checker is None:
        return pictures
    arrays = np.stack([np.asarray(p, dtype=np.float32) / 255 for p in pictures])
    _, flags = pipe.run_safety_checker(arrays, pipe.safety_checker.device, pipe.safety_checker.dtype)
    if any(flags):
        warn_caller(f"the model's safety checker flagged {sum(flags)} of {len(flags)} pictures: they are black")
    return [Image.new("RGB", p.size) if flag else p for p, flag in zip(pictures, flags, strict=True)]


def denoiser(unet: UNet2DConditionModel, text: Tensor, empty: Tensor, scale: float) -> Guess:
    """guess(z_t, t): the UNet's answer for these texts, guided. text: (n, tokens, width); empty: (1, tokens, width)."""
    both = torch.cat([empty.expand(len(text), -1, -1), text])

    def guess(z_t: Tensor, t: Tensor) -> Tensor:
        if scale == 1:  # the text alone, at half the cost
            return unet(z_t, t, text).sample
        answer_empty, answer_text = unet(torch.cat([z_t, z_t]), t, both).sample.chunk(2)
        return guided(answer_text, answer_empty, scale)

    return guess


def denoise(guess: Guess, z: Tensor, scheduler: SchedulerMixin, callback=None, generators=None) -> Tensor:
    """The sampling loop: z_T (n, 4, h, w) -> z_0, by a function guess(z_t, t) and a scheduler whose steps are set.
    generators: one for each picture, of the noise that some samplers add at every step."""
    noisy = "generator" in inspect.signature(scheduler.step).parameters  # PNDM's step adds none
    more = {"generator": generators} if noisy else {}
    z = z * scheduler.init_noise_sigma
    for index, t in enumerate(scheduler.timesteps):
        answer = guess(scheduler.scale_model_input(z, t), t)
        if callback is not None:
            callback(Step(index, int(t), z, predicted_original(scheduler, z, answer, t)))
        z = scheduler.step(answer, t, z, **more).prev_sample
    return z


def sample_text(pipe: StableDiffusionPipeline, text: str, seeds: Sequence[int] = (0,), **settings) -> list[Image.Image]:
    """Pictures of a text, without any edit: what the model itself makes of it."""
    return generate(pipe, encode_text(pipe, text), seeds, **settings)
