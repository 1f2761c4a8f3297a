"""Methods without training: start from the picture's own noise (`own_noise`), or draw the edit alongside the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from imagic_lab.methods.inversion import with_steps
from imagic_lab.methods.method import Draw
from imagic_lib.diffusion import decode_latents, encode_image
from imagic_lib.models import encode_text
from imagic_lib.pictures import to_picture
from imagic_lib.stage4_inference import (
    ddpm_mean,
    denoiser,
    embedding_of_negative,
    generate,
    initial_noise,
    own_noise,
    sampler,
)

SOURCE_SHARE = 2 / 3  # of the guidance, for the source text in h-Edit: 5 of 7.5 in its authors' code


def edit_friendly(pipe: StableDiffusionPipeline, image: Tensor, text: str, source: str) -> Draw:
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023, arXiv 2304.06140): find the noise with which the
    input's caption draws the input, and draw the target text with it. The knob is the target's guidance scale."""
    e_tgt, e_src = encode_text(pipe, text), encode_text(pipe, source)

    def draw(guidance: float, seeds: Sequence[int]) -> list[Image.Image]:
        return generate(pipe, e_tgt, seeds, guidance_scale=guidance, noise=own_noise(pipe, image, e_src, seeds))

    return draw


@torch.no_grad()
def h_edit(pipe: StableDiffusionPipeline, image: Tensor, text: str, source: str) -> Draw:
    """h-Edit-R (Nguyen et al. 2025, arXiv 2503.02187, eq. 25), implicit, one step, without attention control.

    Step to z_base with the source and its own noise, then add c_t · (f_text(z_base) - f_source(z_base)), where c_t is
    the factor of the noise in the mean of a DDPM step. The knob is the guidance scale of the text; the source gets
    `SOURCE_SHARE` of it."""
    e_tgt, e_src, empty = encode_text(pipe, text), encode_text(pipe, source), embedding_of_negative(pipe)

    @torch.no_grad()
    def draw(guidance: float, seeds: Sequence[int]) -> list[Image.Image]:
        path, ddim = own_noise(pipe, image, e_src, seeds), with_steps(pipe, sampler(pipe, "ddim"))
        e_text, e_source = (e.expand(len(seeds), -1, -1) for e in (e_tgt, e_src))
        along = denoiser(pipe.unet, e_source, empty, 1)
        wanted = denoiser(pipe.unet, e_text, empty, guidance)
        given = denoiser(pipe.unet, e_source, empty, SOURCE_SHARE * guidance)
        z, times = path.start, [*ddim.timesteps.tolist(), 0]
        for index, t in enumerate(ddim.timesteps):
            base = ddpm_mean(ddim, z, along(z, t), index) + path.added[index]
            later = torch.tensor(times[index + 1])
            factor = ddpm_mean(ddim, torch.zeros(1), torch.ones(1), index)  # the mean for z = 0 and a noise of 1
            z = base + factor * (wanted(base, later) - given(base, later))
        return [to_picture(decode_latents(pipe, one[None])) for one in z]

    return draw


@torch.no_grad()
def ddcm(pipe: StableDiffusionPipeline, image: Tensor, text: str, source: str) -> Draw:
    """Denoising diffusion consistent models (InfEdit; Xu et al. 2023, arXiv 2312.04965), without attention control.

    At every level, noise the input afresh, z_t = √ᾱ_t z + √(1-ᾱ_t) ε, and the edit with the same noise, z'_t. Then
    ẑ'_0 = z + (z'_t - z_t - √(1-ᾱ_t) (f_text(z'_t) - f_source(z_t))) / √ᾱ_t. The knob is the text's guidance scale."""
    e_tgt, e_src, empty = encode_text(pipe, text), encode_text(pipe, source), embedding_of_negative(pipe)
    z_0 = encode_image(pipe, image)

    @torch.no_grad()
    def draw(guidance: float, seeds: Sequence[int]) -> list[Image.Image]:
        ddim, edited = with_steps(pipe, sampler(pipe, "ddim")), z_0.expand(len(seeds), -1, -1, -1)
        e_text, e_source = (e.expand(len(seeds), -1, -1) for e in (e_tgt, e_src))
        wanted, given = denoiser(pipe.unet, e_text, empty, guidance), denoiser(pipe.unet, e_source, empty, 1)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for t in ddim.timesteps:
            noise = torch.cat([initial_noise(pipe, generator) for generator in generators])
            z, z_edit = (ddim.add_noise(clean, noise, t) for clean in (z_0.expand_as(edited), edited))
            a = ddim.alphas_cumprod[t]
            edited = z_0 + (z_edit - z - (1 - a).sqrt() * (wanted(z_edit, t) - given(z, t))) / a.sqrt()
        return [to_picture(decode_latents(pipe, one[None])) for one in edited]

    return draw
