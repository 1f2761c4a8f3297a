"""Stage 1: optimise the text embedding until it describes the input picture. e_tgt -> e_opt."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from imagic_lib.diffusion import Probe, denoising_loss, encode_image, frozen, training_noise
from imagic_lib.losses import Loss, mse
from imagic_lib.models import settings_for
from imagic_lib.optimization import History, Progress, Strategy, descend, identity_of, waiting

DEFAULTS = {
    "tiny": {"steps": 150, "lr": 1e-2, "batch": 4},
    "stable-diffusion": {"steps": 1000, "lr": 2e-3, "batch": 1},  # arXiv 2210.09276, appendix B
}


def optimize_embedding(
    pipe: StableDiffusionPipeline,
    image: Tensor,
    e_tgt: Tensor,
    *,
    steps: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    loss: Loss = mse,
    strategy: Strategy | None = None,
    generator: torch.Generator | None = None,
    probe_every: int = 10,
    patience: int | None = None,
    checkpoint: Path | None = None,
) -> tuple[Tensor, History]:
    """Imagic eq. 2: e_opt = argmin_e E_{t,ε} ‖ε - f_θ(z_t, t, e)‖², started at e_tgt, all weights frozen.

    image: (1, 3, size, size) in [-1, 1] (`load_image`). e_tgt: (1, tokens, width) (`encode_text`).
    batch: timesteps per step, stratified; 1 is the paper's way. Left out, steps, lr and batch are the
    model's own (`embedding.DEFAULTS`). strategy: from `memory.plan`, for a GPU that is short of memory.
    generator: makes it repeatable. patience, checkpoint: see `optimization.descend`. Returns e_opt, shaped
    like e_tgt, and the history. The pipeline stays as it was. Taught in notebooks/02_embedding.ipynb.
    """
    given = settings_for(pipe, DEFAULTS, steps=steps, lr=lr, batch=batch)
    generator = generator or torch.Generator().manual_seed(0)
    unet = frugal(pipe.unet, strategy)
    process, latents = training_noise(pipe), encode_image(pipe, image).to(unet.dtype)
    probe = Probe(process, latents)
    e = e_tgt.detach().float().clone().requires_grad_(True)
    progress = Progress(
        name="stage 1, embedding",
        trained={"e_opt": e},
        optimizer=torch.optim.Adam([e], lr=given["lr"]),
        generator=generator,
        checkpoint=checkpoint,
        identity=identity_of(image=image, start=e_tgt, lr=given["lr"], batch=given["batch"], loss=loss.__name__),
        scaler=torch.amp.GradScaler(latents.device.type) if unet.dtype == torch.float16 else None,
    )
    idle = [pipe.vae, pipe.text_encoder] + ([] if unet is pipe.unet else [pipe.unet])
    with frozen(unet), waiting(*idle):
        history = descend(
            progress,
            lambda: denoising_loss(unet, process, latents, e.to(unet.dtype), given["batch"], generator, loss),
            lambda: probe(unet, e.detach().to(unet.dtype)),
            steps=given["steps"],
            probe_every=probe_every,
            patience=patience,
        )
    return e.detach(), history


def frugal(unet: UNet2DConditionModel, strategy: Strategy | None) -> UNet2DConditionModel:
    """The UNet itself, or a copy in the strategy's precision and with its checkpointing."""
    if strategy is None or (strategy.dtype == unet.dtype and not strategy.checkpointing):
        return unet
    other = torch.nn.Module.to(copy.deepcopy(unet), strategy.dtype)
    if strategy.checkpointing:
        other.enable_gradient_checkpointing()
    return other
