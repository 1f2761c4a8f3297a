"""Stage 4: turn noise into a picture, in steps that can be watched. The noise is random, or the input picture's own."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusers.schedulers import SchedulerMixin
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from imagic_lib.arguments import check_one_image_one_embedding, seeds_of, warn_caller
from imagic_lib.diffusion import decode_latents, encode_image
from imagic_lib.models import encode_ids, encode_text, family, settings_for, token_ids
from imagic_lib.pictures import to_picture
from imagic_lib.training.loop import in_main_thread
from imagic_lib.training.strategies import precision
from imagic_lib.unets import scaled

DEFAULTS = {
    "tiny": {"steps": 20, "guidance_scale": 2.0},
    "stable-diffusion": {"steps": 50, "guidance_scale": 7.5},  # StableDiffusionPipeline's own
}
OWN_GUIDANCE = {"tiny": 1.0, "stable-diffusion": 7.5}  # with the picture's own noise; the first was measured on dev
AT_ONCE = {"tiny": 16, "stable-diffusion": 1}  # pictures in one batch
FAST = {"scheduler": "dpm++", "steps": 25}  # half of Stable Diffusion's 50 steps
Guess = Callable[[Tensor, Tensor], Tensor]  # guess(z_t, t) -> the noise in z_t, or v
SAMPLERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),  # Stable Diffusion's settings
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),  # Stable Diffusion's settings
    "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "sde-dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),  # new noise at every step
}


class Step(NamedTuple):
    """One denoising step, as a callback sees it; latents are (n, 4, h, w)."""

    index: int
    timestep: int
    z_t: Tensor  # before the step
    z_0: Tensor  # the UNet's current guess of the finished latents


class NoisePath(NamedTuple):
    """The noise of whole paths from z_T to z_0, for n pictures: where they start, and what is added at every step."""

    start: Tensor  # z_T, (n, 4, h, w)
    added: Tensor  # (steps, n, 4, h, w)


def sampler(pipe: StableDiffusionPipeline, name: str) -> SchedulerMixin:
    """Make a sampler by its name in `SAMPLERS`, with the model's noise process. Raises ValueError for another name."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown: choose one of {', '.join(SAMPLERS)}")
    kind, settings = SAMPLERS[name]
    return kind.from_config(pipe.scheduler.config, **settings)


def scheduler_of(pipe: StableDiffusionPipeline, chosen: SchedulerMixin | str | None) -> SchedulerMixin:
    """Return a copy of the chosen scheduler; without a choice, of the pipeline's, or DDIM if `denoise` doesn't support
    that. Raises ValueError if `denoise` doesn't support the chosen one."""
    known = tuple(kind for kind, _ in SAMPLERS.values())
    if chosen is None and not isinstance(pipe.scheduler, known):
        own = type(pipe.scheduler).__name__
        warn_caller(f"the model's own {own} can't be followed step by step: DDIM draws instead")
        chosen = "ddim"
    scheduler = sampler(pipe, chosen) if isinstance(chosen, str) else chosen or pipe.scheduler
    if not isinstance(scheduler, known):
        raise ValueError(f"{type(scheduler).__name__} is not supported: give scheduler= one of {', '.join(SAMPLERS)}")
    return copy.deepcopy(scheduler)


def initial_noise(pipe: StableDiffusionPipeline, seed: int | torch.Generator) -> Tensor:
    """Draw the noise of a seed, or a generator's next, as diffusers' pipeline does: (1, 4, h, w) in float32."""
    side = pipe.unet.config.sample_size
    shape = (1, pipe.unet.config.in_channels, side, side)
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(pipe.unet.device)


def guided(noise_text: Tensor, noise_empty: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): ε_∅ + s·(ε_text - ε_∅)."""
    return noise_empty + scale * (noise_text - noise_empty)


def predicted_original(scheduler: SchedulerMixin, z_t: Tensor, answer: Tensor, timestep: int) -> Tensor:
    """Return the z_0 that the UNet's answer implies: (z_t - sqrt(1 - ᾱ) ε) / sqrt(ᾱ), or the same for v."""
    a = scheduler.alphas_cumprod[int(timestep)].to(z_t)
    if scheduler.config.prediction_type == "v_prediction":
        return a.sqrt() * z_t - (1 - a).sqrt() * answer
    return (z_t - (1 - a).sqrt() * answer) / a.sqrt()


def ddpm_mean(scheduler: SchedulerMixin, z_t: Tensor, answer: Tensor, index: int) -> Tensor:
    """μ_t, the mean of DDPM step number `index`, before noise is added (Song et al. 2021, eq. 12 with η_DDIM = 1).

    μ_t = √ᾱ_{t-1} ẑ_0 + √(1 - ᾱ_{t-1} - σ_t²) ε̂, with σ_t² = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) · (1 - ᾱ_t / ᾱ_{t-1})."""
    times = [*scheduler.timesteps.tolist(), 0]
    a, b = (scheduler.alphas_cumprod[t].to(z_t) for t in times[index : index + 2])  # ᾱ_t, ᾱ_{t-1}
    z_0 = predicted_original(scheduler, z_t, answer, times[index])
    noise = (z_t - a.sqrt() * z_0) / (1 - a).sqrt()
    variance = (1 - b) / (1 - a) * (1 - a / b)
    return b.sqrt() * z_0 + (1 - b - variance).clamp(min=0).sqrt() * noise


@torch.no_grad()
def own_noise(pipe: StableDiffusionPipeline, image: Tensor, embedding: Tensor, seeds: Sequence[int] = (0,), *,
              steps: int | None = None, guidance_scale: float | None = None, scale: float = 1.0,
              half: bool = False) -> NoisePath:  # fmt: skip
    """Find the noise that leads the model, with this embedding, to exactly this picture: one path for each seed.

    Noise the picture to every level, each time afresh, z_t = √ᾱ_t z + √(1 - ᾱ_t) ε_t. Then record what each DDPM step
    is missing to reach the next level: z_{t-1} - μ_t(z_t, embedding). This is the edit-friendly inversion of
    Huberman-Spiegelglas et al. (arXiv 2304.06140), here at e_opt with θ_λ. `generate` with this path and the same
    embedding draws the picture again, whatever λ is; from another embedding, it changes only what that embedding
    describes differently. Give `generate` the same settings as here. Raises ValueError for invalid settings."""
    guidance = OWN_GUIDANCE[family(pipe)] if guidance_scale is None else guidance_scale
    given, seeds = settings_for(pipe, DEFAULTS, steps=steps, guidance_scale=guidance), seeds_of(seeds)
    check_one_image_one_embedding(image, embedding)
    scheduler, z_0 = sampler(pipe, "ddim"), encode_image(pipe, image).float()
    scheduler.set_timesteps(given["steps"], device=z_0.device)
    generators, levels, added = [torch.Generator().manual_seed(seed) for seed in seeds], [], []
    for t in scheduler.timesteps:
        noise = torch.cat([initial_noise(pipe, generator) for generator in generators])
        levels.append(scheduler.add_noise(z_0, noise, t))
    with scaled(pipe, scale, precision(z_0.device) if half else None) as unet:
        e, empty = (x.to(unet.device, unet.dtype) for x in (embedding, embedding_of_negative(pipe)))
        for index, (z_t, t) in enumerate(zip(levels, scheduler.timesteps, strict=True)):
            some = z_t.split(AT_ONCE[family(pipe)])
            guesses = [denoiser(unet, e.expand(len(z), -1, -1), empty, given["guidance_scale"])(z, t) for z in some]
            goal = levels[index + 1] if index + 1 < len(levels) else z_0
            added.append(goal - ddpm_mean(scheduler, z_t, torch.cat(guesses), index))
    return NoisePath(levels[0], torch.stack(added))


def generate(pipe: StableDiffusionPipeline, embeddings: Tensor, seeds: Sequence[int] = (0,), *,
             steps: int | None = None, guidance_scale: float | None = None, scale: float = 1.0,
             scheduler: SchedulerMixin | str | None = None, noise: NoisePath | None = None,
             callback: Callable[[Step], None] | None = None, half: bool = False) -> list[Image.Image]:  # fmt: skip
    """Draw a picture for every embedding and seed: n x len(seeds) of them, all seeds of the first embedding first.

    embeddings: (n, tokens, width), e.g. from `interpolate`. Each seed has the same noise for every embedding, also the
    noise that a sampler adds on its way. guidance_scale: 1 uses the text without guidance, 0 no text (`guided`).
    scale: tuning strength λ from 0 to 2, the share of the fine-tuning (`unets.scaled`). scheduler: a sampler's name,
    or a scheduler; by default the pipeline's. noise: from `own_noise`, with one path for each seed; it replaces the
    random noise and the sampler, and guidance has another default (`OWN_GUIDANCE`). callback: called with a `Step` at
    each denoising step of each batch. half: on a GPU, draw with a UNet in half precision (`strategies.precision`); on
    a CPU, where that is slower, ignored. If the model has a safety checker, flagged pictures are black, with a
    warning. Raises ValueError for invalid settings. Taught in notebooks/05_inference.ipynb."""
    seeds = seeds_of(seeds)
    if embeddings.ndim != 3 or len(embeddings) == 0:
        raise ValueError(f"the embeddings have the shape {tuple(embeddings.shape)}, not (n, tokens, width) with n > 0")
    if not torch.isfinite(embeddings).all():
        raise ValueError("the embeddings have values that are not finite")
    if noise is not None:
        steps = len(noise.added) if steps is None else steps
        guidance_scale = OWN_GUIDANCE[family(pipe)] if guidance_scale is None else guidance_scale
    given = settings_for(pipe, DEFAULTS, steps=steps, guidance_scale=guidance_scale)
    if noise is not None:
        check_noise(pipe, noise, given["steps"], len(seeds), scheduler)
    scheduler, device = scheduler_of(pipe, "ddim" if noise else scheduler), pipe.unet.device
    text = embeddings.repeat_interleave(len(seeds), dim=0)
    generators, pictures = [torch.Generator().manual_seed(seed) for _ in embeddings for seed in seeds], []
    silent = family(pipe) == "tiny" or not in_main_thread()
    bar = tqdm(total=len(text), desc="drawing", unit="picture", leave=False, disable=silent)
    with torch.no_grad(), scaled(pipe, scale, precision(device) if half else None) as unet, bar:
        text, empty = (x.to(device, unet.dtype) for x in (text, embedding_of_negative(pipe)))
        for rows in torch.arange(len(text)).split(AT_ONCE[family(pipe)]):
            guess = denoiser(unet, text[rows], empty, given["guidance_scale"])
            scheduler.set_timesteps(given["steps"], device=device)
            own, added = [generators[row] for row in rows], None
            if noise is None:
                start = torch.cat([initial_noise(pipe, generator) for generator in own]).to(unet.dtype)
            else:
                start, added = noise.start[rows % len(seeds)], noise.added[:, rows % len(seeds)]
            z = denoise(guess, start, scheduler, callback, own, added)
            pictures += [to_picture(decode_latents(pipe, one[None])) for one in z]
            bar.update(len(rows))
        return safety_checked(pipe, pictures)


def embedding_of_negative(pipe: StableDiffusionPipeline) -> Tensor:
    """Return the embedding of the empty text, (1, tokens, width), from which guidance leads away."""
    return encode_ids(pipe, token_ids(pipe, ""))


def check_noise(pipe: StableDiffusionPipeline, noise: NoisePath, steps: int, seeds: int, scheduler) -> None:
    """Raise ValueError if the noise path has other steps or seeds, or if a scheduler is given as well."""
    if scheduler is not None:
        raise ValueError("a noise path is made of DDPM's steps: leave scheduler out, or leave noise out")
    wanted = (steps, seeds, *initial_noise(pipe, 0).shape[1:])
    if tuple(noise.added.shape) != wanted or tuple(noise.start.shape) != wanted[1:]:
        found = f"a start of {tuple(noise.start.shape)} and additions of {tuple(noise.added.shape)}"
        raise ValueError(f"this noise path has {found}, not {wanted[1:]} and {wanted}: use the same steps and seeds")


def safety_checked(pipe: StableDiffusionPipeline, pictures: list[Image.Image]) -> list[Image.Image]:
    """Return the pictures. Those that the model's safety checker flags become black, with a warning."""
    if pipe.safety_checker is None:
        return pictures
    arrays = np.stack([np.asarray(p, dtype=np.float32) / 255 for p in pictures])
    _, flags = pipe.run_safety_checker(arrays, pipe.safety_checker.device, pipe.safety_checker.dtype)
    if any(flags):
        warn_caller(f"the model's safety checker flagged {sum(flags)} of {len(flags)} pictures: they are black")
    return [Image.new("RGB", p.size) if flag else p for p, flag in zip(pictures, flags, strict=True)]


def denoiser(unet: nn.Module, text: Tensor, empty: Tensor, scale: float) -> Guess:
    """Return guess(z_t, t): the UNet's guided answer. text: (n, tokens, width); empty: (1, tokens, width)."""
    both = torch.cat([empty.expand(len(text), -1, -1), text])

    def guess(z_t: Tensor, t: Tensor) -> Tensor:
        z_t = z_t.to(text.dtype)
        if scale == 1:  # the text alone, at half the cost
            return unet(z_t, t, text).sample
        answer_empty, answer_text = unet(torch.cat([z_t, z_t]), t, both).sample.chunk(2)
        return guided(answer_text, answer_empty, scale)

    return guess


def denoise(guess: Guess, z: Tensor, scheduler: SchedulerMixin, callback=None, generators=None, added=None) -> Tensor:
    """The sampling loop, from z_T to z_0, (n, 4, h, w), with a function guess(z_t, t) and a scheduler whose steps are
    already set. generators: one for each picture, for the noise that some samplers add at every step. added: noise to
    add instead, (steps, n, 4, h, w)."""
    more = {} if generators is None or isinstance(scheduler, PNDMScheduler) else {"generator": generators}
    z = z * scheduler.init_noise_sigma
    for index, t in enumerate(scheduler.timesteps):
        answer = guess(scheduler.scale_model_input(z, t), t)
        if callback is not None:
            callback(Step(index, int(t), z, predicted_original(scheduler, z, answer, t)))
        if added is None:
            z = scheduler.step(answer, t, z, **more).prev_sample
        else:
            z = ddpm_mean(scheduler, z, answer, index) + added[index]
    return z


def sample_text(pipe: StableDiffusionPipeline, text: str, seeds: Sequence[int] = (0,), **settings) -> list[Image.Image]:
    """Draw pictures of a text without any edit, one for each seed. settings: as in `generate`."""
    return generate(pipe, encode_text(pipe, text), seeds, **settings)
