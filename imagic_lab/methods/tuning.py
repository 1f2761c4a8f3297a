"""Imagic over the library's stages, with parts of it left out, and the text alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from imagic_lab.methods.method import Draw
from imagic_lib.models import encode_text, family
from imagic_lib.stage1_embedding import optimize_embedding
from imagic_lib.stage2_finetuning import fine_tune
from imagic_lib.stage3_interpolation import interpolate
from imagic_lib.stage4_inference import generate, sample_text
from imagic_lib.training.loop import Run

# Kavar et al. 2022, appendix B: one timestep a step, and many steps. The steps are the paper's. For the embedded model
# the rates are such that steps x rate is what suits it (2.5 for the embedding, 0.03 for the weights), not the paper's.
PAPER = {
    "tiny": (
        {"steps": 1000, "lr": 2.5e-3, "batch": 1},
        {"steps": 1500, "lr": 2e-5, "batch": 1, "decay": 0.0, "bias": 0.0},
    ),
    "stable-diffusion": ({"steps": 1000, "lr": 2e-3, "batch": 1}, {"steps": 1500, "lr": 5e-7, "batch": 1, "decay": 0}),
}

# For the embedded model a sixth of the paper's samples, at rates that were chosen on ToyEdit dev. For Stable Diffusion
# nothing was measured, and the stages' own defaults hold.
FAST = {"tiny": ({"steps": 12, "lr": 0.1}, {"steps": 40, "lr": 4e-4}), "stable-diffusion": ({}, {})}

UNWATCHED = Run(probe_every=10**6)  # a method is not to pay for the curves that we look at


def trained(
    pipe: StableDiffusionPipeline, image: Tensor, text: str, first: dict | None = None, second: dict | None = None
):
    """(e_tgt, e_opt, the pipeline with the tuned UNet): stages 1 and 2. first, second: their settings, where they are
    not the library's own."""
    generator = torch.Generator().manual_seed(0)
    e_tgt = encode_text(pipe, text)
    # e_opt = argmin_e E ‖ε - f_θ(z_t, t, e)‖²
    e_opt, _ = optimize_embedding(pipe, image, e_tgt, generator=generator, run=UNWATCHED, **first or {})
    # θ* = argmin_θ E ‖ε - f_θ(z_t, t, e_opt)‖²
    tuned, _ = fine_tune(pipe, image, e_opt, generator=generator, run=UNWATCHED, **second or {})
    return e_tgt, e_opt, tuned


def imagic(
    pipe: StableDiffusionPipeline, image: Tensor, text: str, *, first: dict | None = None, second: dict | None = None
) -> Draw:
    """Imagic (Kavar et al. 2022, arXiv 2210.09276). Knob: the way from the input to the text alone (`pair_at`)."""
    return along(*trained(pipe, image, text, first, second))


def along(e_tgt: Tensor, e_opt: Tensor, tuned: StableDiffusionPipeline) -> Draw:
    """Draw on the way from the input, 0, to the text alone, 2: ē = η·e_tgt + (1-η)·e_opt, θ_λ = θ + λ(θ* - θ)."""

    def draw(way: float, seeds: Sequence[int]) -> list[Image.Image]:
        eta, scale = pair_at(way)
        return generate(tuned, interpolate(e_tgt, e_opt, eta), seeds, scale=scale)

    return draw


def pair_at(way: float) -> tuple[float, float]:
    """(η, λ): first η grows from 0 to 1, with all of the fine-tuning; then λ falls from 1 to 0, with η = 1."""
    return min(way, 1.0), min(2.0 - way, 1.0)


def pair_in_words(way: float) -> str:
    return "η = {:g}, λ = {:g}".format(*pair_at(way))


def fast_imagic(pipe: StableDiffusionPipeline, image: Tensor, text: str) -> Draw:
    """Imagic in a few large steps (`FAST`)."""
    first, second = FAST[family(pipe)]
    return imagic(pipe, image, text, first=first, second=second)


def paper_imagic(pipe: StableDiffusionPipeline, image: Tensor, text: str) -> Draw:
    """Imagic the paper's way: one timestep a step, 1000 steps of stage 1 and 1500 of stage 2 (`PAPER`)."""
    first, second = PAPER[family(pipe)]
    return imagic(pipe, image, text, first=first, second=second)


def without_stage_1(pipe: StableDiffusionPipeline, image: Tensor, text: str) -> Draw:
    """The UNet fine-tuned at e_tgt itself. Then η means nothing, and the knob is how much of the fine-tuning is used:
    θ_λ = θ + λ(θ* - θ). So far UniTune goes with it (Valevski et al. 2022, arXiv 2210.09477)."""
    e_tgt = encode_text(pipe, text)
    tuned, _ = fine_tune(pipe, image, e_tgt, generator=torch.Generator().manual_seed(0), run=UNWATCHED)
    return lambda scale, seeds: generate(tuned, e_tgt, seeds, scale=scale)


def without_stage_2(pipe: StableDiffusionPipeline, image: Tensor, text: str) -> Draw:
    """Imagic with the UNet as it was loaded: the ablation of the paper's Fig. 8. Knob η."""
    e_tgt = encode_text(pipe, text)
    e_opt, _ = optimize_embedding(pipe, image, e_tgt, generator=torch.Generator().manual_seed(0), run=UNWATCHED)
    return lambda eta, seeds: generate(pipe, interpolate(e_tgt, e_opt, eta), seeds)


def text_alone(pipe: StableDiffusionPipeline, image: Tensor, text: str) -> Draw:
    """No edit at all: what the model draws for the text. A method that keeps no more of the input than this keeps
    nothing of it. Knob: the guidance scale s (Ho & Salimans 2022, arXiv 2207.12598)."""
    return lambda guidance, seeds: sample_text(pipe, text, seeds, guidance_scale=guidance)
