"""Stage 2: fine-tune the UNet at e_opt, until e_opt draws the very input and not just its like."""

from __future__ import annotations

import copy

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib.diffusion import History, Probe, denoising_loss, descend, encode_image, training_noise
from imagic_lib.models import family

DEFAULTS = {
    "tiny": {"steps": 150, "lr": 1e-4, "batch": 4},
    "stable-diffusion": {"steps": 1500, "lr": 5e-7, "batch": 1},  # arXiv 2210.09276, appendix B
}


def fine_tune(
    pipe: StableDiffusionPipeline,
    image: Tensor,
    e_opt: Tensor,
    *,
    steps: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    generator: torch.Generator | None = None,
    probe_every: int = 10,
) -> tuple[StableDiffusionPipeline, History]:
    """θ* = argmin_θ E_{t,ε} ‖ε - f_θ(z_t, t, e_opt)‖² over all weights of the UNet, e_opt held fixed.

    image, steps, lr, batch, generator: as in `optimize_embedding`; defaults in `finetuning.DEFAULTS`.
    Returns a new pipeline with the tuned UNet (its other parts are shared) and the history; the UNet of
    `pipe` stays as it was, so a second fit starts clean. Taught in notebooks/03_finetuning.ipynb.
    """
    settings = DEFAULTS[family(pipe)]
    steps, lr, batch = (settings[k] if v is None else v for k, v in (("steps", steps), ("lr", lr), ("batch", batch)))
    generator = generator or torch.Generator().manual_seed(0)
    process, latents = training_noise(pipe), encode_image(pipe, image)
    probe = Probe(process, latents)
    unet = copy.deepcopy(pipe.unet).requires_grad_(True)
    history = descend(
        torch.optim.Adam(unet.parameters(), lr=lr, fused=True),
        lambda: denoising_loss(unet, process, latents, e_opt, batch, generator),
        lambda: probe(unet, e_opt),
        steps,
        probe_every=probe_every,
        name="stage 2, fine-tuning",
    )
    return with_unet(pipe, unet.requires_grad_(False)), history


def with_unet(pipe: StableDiffusionPipeline, unet: torch.nn.Module) -> StableDiffusionPipeline:
    """A pipeline that shares every part with `pipe` but its UNet."""
    other = StableDiffusionPipeline(**{**pipe.components, "unet": unet}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other
