"""Stage 1: optimise the text embedding, from e_tgt to e_opt, until it describes the input picture."""

from functools import partial

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib.arguments import check_one_image_one_embedding, cpu_generator
from imagic_lib.diffusion import Probe, denoising_loss, encode_image, forward_process
from imagic_lib.models import settings_for
from imagic_lib.training.checkpoint import job_of
from imagic_lib.training.loop import History, Run, Training
from imagic_lib.training.strategies import frozen_unet, scaler_for

DEFAULTS = {
    "tiny": {"steps": 12, "lr": 0.1, "batch": 8},  # measured: data/tiny-sd/README.md
    "stable-diffusion": {"steps": 1000, "lr": 2e-3, "batch": 1},  # Kavar et al. 2022, appendix B
}


def optimize_embedding(pipe: StableDiffusionPipeline, image: Tensor, e_tgt: Tensor, *, steps: int | None = None,
                       lr: float | None = None, batch: int | None = None, generator: torch.Generator | None = None,
                       run: Run = Run()) -> tuple[Tensor, History]:  # fmt: skip
    """Imagic's eq. 2: e_opt = argmin_e E_{t,ε} ‖ε - f_θ(z_t, t, e)‖², starting at e_tgt, with all weights frozen.

    image: (1, 3, size, size) in [-1, 1] (`load_image`). e_tgt: (1, tokens, width) (`encode_text`). batch: stratified
    timesteps per step; the paper has 1. steps, lr and batch have this model's defaults in `DEFAULTS`. generator: of the
    noise, on the CPU, by default with seed 0. run: another loss, a checkpoint, a preview, less memory
    (`training.loop.Run`). Returns e_opt, shaped like e_tgt, and the history; the pipeline is left unchanged. Raises
    ValueError for an invalid setting or shape. Taught in notebooks/02_embedding.ipynb."""
    check_one_image_one_embedding(image, e_tgt)
    s = settings_for(pipe, DEFAULTS, steps=steps, lr=lr, batch=batch, bias=run.bias)
    generator, process, z = cpu_generator(generator), forward_process(pipe), encode_image(pipe, image)
    job = job_of(pipe, [image], s, generator, run, near={"text": e_tgt}, method="embedding")
    e = e_tgt.detach().to(pipe.unet.device, torch.float32, copy=True).requires_grad_()
    adam, probe = torch.optim.Adam([e], lr=s["lr"]), Probe(process, z)
    with frozen_unet(pipe, run.strategy) as unet:
        look, scaler = partial(run.look, probe, unet, e), scaler_for(unet)
        with Training("stage 1, embedding", {"e_opt": e}, adam, generator, job, run, look, scaler) as training:
            for step in training.steps(s["steps"]):
                step(denoising_loss(unet, process, z, e, s["batch"], generator, run.loss, run.bias or 0.0))
    return e.detach(), training.history
