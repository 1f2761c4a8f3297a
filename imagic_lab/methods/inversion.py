"""Methods that find the noise of a picture by running DDIM backwards, and two ways to use guidance despite that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDIMInverseScheduler, StableDiffusionPipeline
from diffusers.schedulers import SchedulerMixin
from PIL import Image
from torch import Tensor

from imagic_lab.methods.method import Draw
from imagic_lib.diffusion import decode_latents, encode_image, frozen, mse
from imagic_lib.models import encode_text, family, settings_for
from imagic_lib.pictures import to_picture
from imagic_lib.stage4_inference import (
    DEFAULTS,
    Guess,
    denoise,
    denoiser,
    embedding_of_negative,
    guided,
    safety_checked,
    sampler,
)
from imagic_lib.training import loop

# from section 4 of Mokady et al. 2022, and their published code
NULL_STEPS = 10
NULL_LR = {"tiny": 1e-1, "stable-diffusion": 1e-2}  # theirs is 1e-2; the embedded model hardly moves with it
NULL_FALL = 100  # from one step of sampling to the next, the rate falls by 1/100 of its start
NULL_ENOUGH, NULL_MORE = 1e-5, 2e-5  # an error that is good enough for the first step, and what each later step adds


def with_steps(pipe: StableDiffusionPipeline, scheduler: SchedulerMixin) -> SchedulerMixin:
    """Set the scheduler to this model's number of sampling steps, and return it."""
    scheduler.set_timesteps(settings_for(pipe, DEFAULTS)["steps"], device=pipe.unet.device)
    return scheduler


@torch.no_grad()
def invert(pipe: StableDiffusionPipeline, image: Tensor, e: Tensor) -> list[Tensor]:
    """DDIM inversion (Song et al. 2020, arXiv 2010.02502, section 4.3): find noise that DDIM turns into this picture.

    z_{t+1} = √ᾱ_{t+1} · ẑ_0 + √(1-ᾱ_{t+1}) · f(z_t, t+1, e), with ẑ_0 = (z_t - √(1-ᾱ_t) · f) / √ᾱ_t, which is DDIM's
    step in the other direction. image: (1, 3, size, size) in [-1, 1]. e: (1, tokens, width), the embedding that the
    UNet gets, without guidance. Returns [z_0, ..., z_T], one more than there are steps, (1, 4, h, w) each. A step is
    exact only if f does not change between t and t+1; the methods below correct the error that remains.
    """
    path = []
    backwards = with_steps(pipe, DDIMInverseScheduler.from_config(sampler(pipe, "ddim").config))
    guess = denoiser(pipe.unet, e, e, scale=1)
    z_T = denoise(guess, encode_image(pipe, image), backwards, callback=lambda step: path.append(step.z_t))
    return [*path, z_T]


@torch.no_grad()
def draw_from(pipe: StableDiffusionPipeline, z_T: Tensor, guess: Guess) -> Image.Image:
    """Draw the picture that DDIM makes of these latents, without adding noise on its way."""
    z_0 = denoise(guess, z_T, with_steps(pipe, sampler(pipe, "ddim")))
    return safety_checked(pipe, [to_picture(decode_latents(pipe, z_0))])[0]


def ddim_inversion(pipe: StableDiffusionPipeline, image: Tensor, text: str) -> Draw:
    """DDIM inversion with the empty text, then DDIM with the target text. The knob is the guidance scale s in
    ε_∅ + s·(ε_text - ε_∅). s = 0 rebuilds the input, except for the error of the inversion."""
    e_tgt, empty = encode_text(pipe, text), embedding_of_negative(pipe)
    z_T = invert(pipe, image, empty)[-1]

    def draw(guidance: float, seeds: Sequence[int]) -> list[Image.Image]:
        return [draw_from(pipe, z_T, denoiser(pipe.unet, e_tgt, empty, guidance))] * len(seeds)

    return draw


def negative_prompt_inversion(pipe: StableDiffusionPipeline, image: Tensor, text: str, source: str) -> Draw:
    """Negative-prompt inversion (Miyake et al. 2023, arXiv 2305.16807): guidance with the caption of the input instead
    of the empty text, ε_source + s·(ε_text - ε_source). If the text equals the caption, guidance changes nothing, and
    the inversion holds for every s. The knob is s. s = 0 rebuilds the input, except for the error of the inversion."""
    e_tgt, e_src = encode_text(pipe, text), encode_text(pipe, source)
    z_T = invert(pipe, image, e_src)[-1]

    def draw(guidance: float, seeds: Sequence[int]) -> list[Image.Image]:
        return [draw_from(pipe, z_T, denoiser(pipe.unet, e_tgt, e_src, guidance))] * len(seeds)

    return draw


def null_texts(pipe: StableDiffusionPipeline, path: Sequence[Tensor], e_src: Tensor, guidance: float) -> list[Tensor]:
    """Null-text optimisation (Mokady et al. 2022, arXiv 2211.09794, eq. 3): find an 'empty' embedding for every step.

    ∅_t = argmin_∅ ‖z*_{t-1} - z_{t-1}(z_t, ∅, e_source)‖², where z_{t-1} is DDIM's step with guidance. path: [z*_0,
    ..., z*_T] from `invert`. Returns the embeddings ∅_t in the order of sampling, from T down, (1, tokens, width) each.
    With them, guidance and the caption of the input lead sampling back along the path.
    """
    scheduler = with_steps(pipe, sampler(pipe, "ddim"))
    z, null, found = path[-1], embedding_of_negative(pipe), []
    with frozen(pipe.unet):
        for k, t in enumerate(loop.tqdm(scheduler.timesteps, desc="null-text optimisation")):
            with torch.no_grad():
                answer = pipe.unet(z, t, e_src).sample

            def one_step(null: Tensor, z=z, t=t, answer=answer) -> Tensor:
                return scheduler.step(guided(answer, pipe.unet(z, t, null).sample, guidance), t, z).prev_sample

            null = null.detach().clone().requires_grad_(True)
            adam = torch.optim.Adam([null], lr=NULL_LR[family(pipe)] * (1 - k / NULL_FALL))
            for _ in range(NULL_STEPS):
                loss = mse(one_step(null), path[-2 - k])
                if loss.item() < NULL_ENOUGH + k * NULL_MORE:
                    break
                adam.zero_grad()
                loss.backward()
                adam.step()
            with torch.no_grad():
                z = one_step(null)
            found.append(null.detach())
    return found
