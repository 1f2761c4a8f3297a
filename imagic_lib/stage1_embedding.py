"""Stage 1: optimise the text embedding until it describes the input picture. e_tgt -> e_opt."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib.diffusion import Probe, cpu_generator, denoising_loss, encode_image, forward_process, one_each
from imagic_lib.models import settings_for
from imagic_lib.training.identity import identity_of
from imagic_lib.training.loop import History, Progress, Run, descend
from imagic_lib.training.strategies import looking_through, scaler_for

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
    generator: torch.Generator | None = None,
    run: Run = Run(),
) -> tuple[Tensor, History]:
    """Imagic eq. 2: e_opt = argmin_e E_{t,ε} ‖ε - f_θ(z_t, t, e)‖², started at e_tgt, all weights frozen.

    image: (1, 3, size, size) in [-1, 1] (`load_image`). e_tgt: (1, tokens, width) (`encode_text`).
    batch: timesteps per step, stratified; 1 is the paper's way. Left out, steps, lr and batch are the
    model's own (`stage1_embedding.DEFAULTS`). generator: makes it repeatable. run: another loss, a checkpoint, a
    window into it, less memory (`training.loop.Run`). Returns e_opt, shaped like e_tgt, and the history. The pipeline
    stays as it was. Raises ValueError for a setting or a shape that can't be. Taught in notebooks/02_embedding.ipynb.
    """
    one_each(image, e_tgt)
    given = settings_for(pipe, DEFAULTS, steps=steps, lr=lr, batch=batch)
    generator, process, z = cpu_generator(generator), forward_process(pipe), encode_image(pipe, image)
    identity = identity_of(pipe, [image], given, run.loss, generator, near={"text": e_tgt}, method="embedding")
    e = e_tgt.detach().to(pipe.unet.device, torch.float32, copy=True).requires_grad_(True)
    with looking_through(pipe, run.strategy) as unet:
        z = z.to(unet.dtype)
        probe, adam = Probe(process, z), torch.optim.Adam([e], lr=given["lr"])
        history = descend(
            Progress("stage 1, embedding", {"e_opt": e}, adam, generator, identity, scaler_for(unet)),
            lambda: denoising_loss(unet, process, z, e.to(unet.dtype), given["batch"], generator, run.loss),
            lambda: run.look(probe, unet, e.detach().to(unet.dtype)),
            steps=given["steps"],
            run=run,
        )
    return e.detach(), history
