"""Stage 1: optimise the text embedding until it describes the input picture. e_tgt -> e_opt."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib.diffusion import Loss, Probe, cpu_generator, denoising_loss, encode_image, frozen, mse, training_noise
from imagic_lib.models import settings_for
from imagic_lib.training.loop import History, Progress, Watch, descend, identity_of
from imagic_lib.training.strategies import Strategy, networks, scaler_for, unet_copy, waiting

DEFAULTS = {
    "tiny": {"steps": 40, "lr": 5e-2, "batch": 8},  # what it gives: data/tiny-sd/README.md
    "stable-diffusion": {"steps": 1000, "lr": 2e-3, "batch": 1},  # Kavar et al. 2022, appendix B
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
    watch: Watch | None = None,
) -> tuple[Tensor, History]:
    """Imagic eq. 2: e_opt = argmin_e E_{t,ε} ‖ε - f_θ(z_t, t, e)‖², started at e_tgt, all weights frozen.

    image: (1, 3, size, size) in [-1, 1] (`load_image`). e_tgt: (1, tokens, width) (`encode_text`).
    batch: timesteps per step, stratified; 1 is the paper's way. Left out, steps, lr and batch are the
    model's own (`stage1_embedding.DEFAULTS`). strategy: from `training.memory.plan`, for a GPU that is short of memory.
    generator: makes it repeatable. patience, checkpoint, watch: see `training.loop.descend`. Returns e_opt, shaped
    like e_tgt, and the history. The pipeline stays as it was. Taught in notebooks/02_embedding.ipynb.
    """
    given = settings_for(pipe, DEFAULTS, steps=steps, lr=lr, batch=batch)
    generator = cpu_generator(generator)
    process, latents, device = training_noise(pipe), encode_image(pipe, image), pipe.unet.device
    as_it_is = strategy is None or (strategy.dtype == pipe.unet.dtype and not strategy.checkpointing)
    with waiting(*networks(pipe, but=pipe.unet if as_it_is else None)):
        unet = pipe.unet if as_it_is else unet_copy(pipe.unet, strategy, device)
        latents = latents.to(unet.dtype)
        probe = Probe(process, latents)
        e = e_tgt.detach().to(device, torch.float32, copy=True).requires_grad_(True)
        progress = Progress(
            name="stage 1, embedding",
            trained={"e_opt": e},
            optimizer=torch.optim.Adam([e], lr=given["lr"]),
            generator=generator,
            checkpoint=checkpoint,
            identity=identity_of(image, e_tgt, given, loss, generator),
            scaler=scaler_for(unet),
        )
        with frozen(unet):
            history = descend(
                progress,
                lambda: denoising_loss(unet, process, latents, e.to(unet.dtype), given["batch"], generator, loss),
                lambda: probe(unet, e.detach().to(unet.dtype)),
                steps=given["steps"],
                probe_every=probe_every,
                patience=patience,
                watch=watch,
            )
    return e.detach(), history
