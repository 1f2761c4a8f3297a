"""Stage 1: optimise the text embedding until it describes the input picture. e_tgt -> e_opt."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib.diffusion import History, Probe, denoising_loss, descend, encode_image, frozen, training_noise
from imagic_lib.models import family

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
    generator: torch.Generator | None = None,
    probe_every: int = 10,
) -> tuple[Tensor, History]:
    """Imagic eq. 2: e_opt = argmin_e E_{t,ε} ‖ε - f_θ(z_t, t, e)‖², started at e_tgt, all weights frozen.

    image: (1, 3, size, size) in [-1, 1] (`load_image`). e_tgt: (1, tokens, width) (`encode_text`).
    batch: timesteps per step, stratified; 1 is the paper's way. Left out, a setting is the model's own
    (`embedding.DEFAULTS`). generator: makes it repeatable. Returns e_opt, shaped like e_tgt, and the
    history. The pipeline stays as it was. Taught in notebooks/02_embedding.ipynb.
    """
    settings = DEFAULTS[family(pipe)]
    steps, lr, batch = (settings[k] if v is None else v for k, v in (("steps", steps), ("lr", lr), ("batch", batch)))
    generator = generator or torch.Generator().manual_seed(0)
    process, latents = training_noise(pipe), encode_image(pipe, image)
    probe = Probe(process, latents)
    e = e_tgt.detach().clone().requires_grad_(True)
    with frozen(pipe.unet):
        history = descend(
            torch.optim.Adam([e], lr=lr),
            lambda: denoising_loss(pipe.unet, process, latents, e, batch, generator),
            lambda: probe(pipe.unet, e.detach()),
            steps,
            probe_every=probe_every,
            name="stage 1, embedding",
        )
    return e.detach(), history
