"""Imagic from the stages of the library, Imagic without one of them, and the text alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from imagic_lab.methods.method import Draw
from imagic_lib.models import encode_text, family
from imagic_lib.stage1_embedding import optimize_embedding
from imagic_lib.stage2_finetuning import fine_tune
from imagic_lib.stage3_interpolation import interpolate
from imagic_lib.stage4_inference import generate, own_noise, sample_text, sampler
from imagic_lib.training.loop import Run
from imagic_lib.unets import with_unet

# The steps are those of Kavar et al. 2022, appendix B: many, with one timestep each. For the embedded model the rates
# are chosen so that steps × rate suits it (2.5 for the embedding, 0.03 for the weights).
PAPER = {
    "tiny": (
        {"steps": 1000, "lr": 2.5e-3, "batch": 1},
        {"steps": 1500, "lr": 2e-5, "batch": 1, "decay": 0.0, "bias": 0.0},
    ),
    "stable-diffusion": ({"steps": 1000, "lr": 2e-3, "batch": 1}, {"steps": 1500, "lr": 5e-7, "batch": 1, "decay": 0}),
}

UNWATCHED = Run(probe_every=10**6)  # a method's cost should not include curves that only we look at


def run_both_stages(pipe: StableDiffusionPipeline, image: Tensor, text: str, training: int = 0,
                    first: dict | None = None, second: dict | None = None):  # fmt: skip
    """Run stages 1 and 2. Returns (e_tgt, e_opt, the pipeline with the tuned UNet). training: the seed. first, second:
    settings of the stages that differ from the library's defaults."""
    generator, second = torch.Generator().manual_seed(training), dict(second or {})
    later = replace(UNWATCHED, bias=second.pop("bias", None))
    e_tgt = encode_text(pipe, text)
    # e_opt = argmin_e E ‖ε - f_θ(z_t, t, e)‖²
    e_opt, _ = optimize_embedding(pipe, image, e_tgt, generator=generator, run=UNWATCHED, **first or {})
    # θ* = argmin_θ E ‖ε - f_θ(z_t, t, e_opt)‖²
    tuned, _ = fine_tune(pipe, image, e_opt, generator=generator, run=later, **second)
    return e_tgt, e_opt, tuned


def imagic(pipe: StableDiffusionPipeline, image: Tensor, text: str, training: int = 0, **settings: dict) -> Draw:
    """Imagic (Kavar et al. 2022, arXiv 2210.09276). The knob leads from the input to the text alone (`pair_at`).
    settings: first and second, as in `run_both_stages`."""
    return along(*run_both_stages(pipe, image, text, training, **settings))


def along(e_tgt: Tensor, e_opt: Tensor, tuned: StableDiffusionPipeline) -> Draw:
    """Draw on the way from the input (0) to the text alone (2), with ē = η·e_tgt + (1-η)·e_opt, θ_λ = θ + λ(θ* - θ)."""

    def draw(way: float, seeds: Sequence[int]) -> list[Image.Image]:
        eta, scale = pair_at(way)
        return generate(tuned, interpolate(e_tgt, e_opt, eta), seeds, scale=scale)

    return draw


def pair_at(way: float) -> tuple[float, float]:
    """Return (η, λ). First η grows from 0 to 1 with λ = 1; then the tuning strength λ falls from 1 to 0 with η = 1."""
    return min(way, 1.0), min(2.0 - way, 1.0)


def pair_in_words(way: float) -> str:
    return "η = {:g}, λ = {:g}".format(*pair_at(way))


def own_noise_imagic(
    pipe: StableDiffusionPipeline, image: Tensor, text: str, training: int = 0, tune: bool = True
) -> Draw:
    """Imagic drawn from the picture's own noise at e_opt, with η = 1. The knob is the tuning strength λ. tune: False
    leaves stage 2 out; then the knob is the guidance scale."""
    e_tgt, e_opt, tuned = run_both_stages(pipe, image, text, training, second=None if tune else {"steps": 0})

    def draw(knob: float, seeds: Sequence[int]) -> list[Image.Image]:
        how = {"scale": knob} if tune else {"guidance_scale": knob}
        return generate(tuned, e_tgt, seeds, noise=own_noise(tuned, image, e_opt, seeds, **how), **how)

    return draw


def drawn_by(prepare: Callable[..., Draw], pipe: StableDiffusionPipeline, *inputs, sampled: str, **more) -> Draw:
    """Run another method with the sampler of this name (`stage4_inference.sampler`) instead of the model's."""
    other = with_unet(pipe, pipe.unet)
    other.scheduler = sampler(pipe, sampled)
    return prepare(other, *inputs, **more)


def paper_imagic(pipe: StableDiffusionPipeline, image: Tensor, text: str, training: int = 0) -> Draw:
    """Imagic on the paper's schedule (`PAPER`): 1000 steps of stage 1 and 1500 of stage 2, with one timestep each."""
    first, second = PAPER[family(pipe)]
    return imagic(pipe, image, text, training, first=first, second=second)


def without_stage_1(pipe: StableDiffusionPipeline, image: Tensor, text: str, training: int = 0) -> Draw:
    """Imagic with e_tgt instead of e_opt. Then η has no meaning, and the knob is the tuning strength λ in
    θ_λ = θ + λ(θ* - θ). UniTune (Valevski et al. 2022, arXiv 2210.09477) also fine-tunes at the target text."""
    e_tgt = encode_text(pipe, text)
    tuned, _ = fine_tune(pipe, image, e_tgt, generator=torch.Generator().manual_seed(training), run=UNWATCHED)
    return lambda scale, seeds: generate(tuned, e_tgt, seeds, scale=scale)


def without_stage_2(pipe: StableDiffusionPipeline, image: Tensor, text: str, training: int = 0) -> Draw:
    """Imagic without fine-tuning, the ablation in the paper's Fig. 8. The knob is η."""
    e_tgt = encode_text(pipe, text)
    e_opt, _ = optimize_embedding(pipe, image, e_tgt, generator=torch.Generator().manual_seed(training), run=UNWATCHED)
    return lambda eta, seeds: generate(pipe, interpolate(e_tgt, e_opt, eta), seeds)


def text_alone(pipe: StableDiffusionPipeline, image: Tensor, text: str) -> Draw:
    """Draw the text without any edit, as a baseline for how much of the input is kept by chance. The knob is the
    guidance scale s (Ho & Salimans 2022, arXiv 2207.12598)."""
    return lambda guidance, seeds: sample_text(pipe, text, seeds, guidance_scale=guidance)
