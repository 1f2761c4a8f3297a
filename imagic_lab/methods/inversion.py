"""Methods that search for the noise of a picture: DDIM backwards, and two ways to make guidance agree with it."""

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
from imagic_lib.stage4_inference import DEFAULTS, Guess, checked, denoise, denoiser, guided, sampler
from imagic_lib.training import loop

NULL_STEPS = 10  # Mokady et al. 2022, section 4, and their published code, as are the next ones
NULL_LR = {"tiny": 1e-1, "stable-diffusion": 1e-2}  # at their rate the embedded model hardly moves in 10 steps
NULL_FALL = 100  # the rate falls by one part in so many from step to step of the sampling
NULL_ENOUGH, NULL_MORE = 1e-5, 2e-5  # the error at which a step is good, and how much is added from step to step


@torch.no_grad()
def empty_text(pipe: StableDiffusionPipeline) -> Tensor:
    """∅ of classifier-free guidance: the embedding of no text, (1, tokens, width)."""
    return pipe.encode_prompt("", pipe.unet.device, 1, False)[0]


def with_steps(pipe: StableDiffusionPipeline, scheduler: SchedulerMixin) -> SchedulerMixin:
    """The scheduler, set to as many steps as a picture of this model takes."""
    scheduler.set_timesteps(settings_for(pipe, DEFAULTS)["steps"], device=pipe.unet.device)
    return scheduler


@torch.no_grad()
def invert(pipe: StableDiffusionPipeline, image: Tensor, e: Tensor) -> list[Tensor]:
    """DDIM inversion (Song et al. 2020, arXiv 2010.02502, section 4.3): the noise that DDIM turns into this picture.

    z_{t+1} = √ᾱ_{t+1} · ẑ_0 + √(1-ᾱ_{t+1}) · f(z_t, t+1, e), with ẑ_0 = (z_t - √(1-ᾱ_t) · f) / √ᾱ_t: DDIM's own step
    with its direction turned round. image: (1, 3, size, size) in [-1, 1]; e: (1, tokens, width), the text under which
    the picture is looked at, without guidance. Returns [z_0, ..., z_T], one more than there are steps, (1, 4, h, w)
    each. A step is exact where f changes little between t and t+1; hence the error that the methods below fight.
    """
    path = []
    backwards = with_steps(pipe, DDIMInverseScheduler.from_config(sampler(pipe, "ddim").config))
    guess = denoiser(pipe.unet, e, e, scale=1)
    z_T = denoise(guess, encode_image(pipe, image), backwards, callback=lambda step: path.append(step.z_t))
    return [*path, z_T]


@torch.no_grad()
def sample(pipe: StableDiffusionPipeline, guess: Guess, z_T: Tensor) -> Image.Image:
    """The picture that DDIM, which adds no noise on its way, makes of these latents."""
    z_0 = denoise(guess, z_T, with_steps(pipe, sampler(pipe, "ddim")))
    return checked(pipe, [to_picture(decode_latents(pipe, z_0))])[0]


def ddim_inversion(pipe: StableDiffusionPipeline, image: Tensor, text: str) -> Draw:
    """DDIM inversion without a text, then DDIM with the target text. Knob: the guidance s in ε_∅ + s·(ε_text - ε_∅); 0
    rebuilds the input, up to the error of inversion."""
    e_tgt, empty = encode_text(pipe, text), empty_text(pipe)
    z_T = invert(pipe, image, empty)[-1]

    def draw(guidance: float, seeds: Sequence[int]) -> list[Image.Image]:
        return [sample(pipe, denoiser(pipe.unet, e_tgt, empty, guidance), z_T)] * len(seeds)

    return draw


def negative_prompt_inversion(pipe: StableDiffusionPipeline, image: Tensor, text: str, source: str) -> Draw:
    """Negative-prompt inversion (Miyake et al. 2023, arXiv 2305.16807): the caption of the input takes the place of the
    empty text, ε_source + s·(ε_text - ε_source). If the text is the caption, guidance then changes nothing, and the
    inversion holds for every s. Knob: s; 0 rebuilds the input, up to the error of inversion."""
    e_tgt, e_src = encode_text(pipe, text), encode_text(pipe, source)
    z_T = invert(pipe, image, e_src)[-1]

    def draw(guidance: float, seeds: Sequence[int]) -> list[Image.Image]:
        return [sample(pipe, denoiser(pipe.unet, e_tgt, e_src, guidance), z_T)] * len(seeds)

    return draw


def null_texts(pipe: StableDiffusionPipeline, path: Sequence[Tensor], e_src: Tensor, guidance: float) -> list[Tensor]:
    """Null-text optimisation (Mokady et al. 2022, arXiv 2211.09794, eq. 3): for every step an 'empty' text of its own.

    ∅_t = argmin_∅ ‖z*_{t-1} - z_{t-1}(z_t, ∅, e_source)‖², z_{t-1} by DDIM's step with guidance. path: of `invert`,
    [z*_0, ..., z*_T]. Returns them in the order of sampling, from T down, (1, tokens, width) each: with them, guidance
    and the caption of the input, sampling walks back on the path.
    """
    scheduler = with_steps(pipe, sampler(pipe, "ddim"))
    z, null, found = path[-1], empty_text(pipe), []
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
