"""Stage 2: fine-tune the UNet at e_opt, until e_opt draws exactly this picture rather than one like it."""

from functools import partial

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib.arguments import check_one_image_one_embedding, cpu_generator, method_of
from imagic_lib.diffusion import Probe, denoising_loss, encode_image, forward_process
from imagic_lib.models import settings_for
from imagic_lib.training.checkpoint import job_of
from imagic_lib.training.loop import History, Run, Training
from imagic_lib.training.strategies import learning_copy, scaler_for, stepping
from imagic_lib.unets import LoRA, with_unet

DEFAULTS = {
    "full": {
        "tiny": {"steps": 40, "lr": 4e-4, "batch": 8, "decay": 0.5, "bias": 1.0},  # see data/tiny-sd/README.md
        "stable-diffusion": {"steps": 1500, "lr": 5e-7, "batch": 1, "decay": 0.0, "bias": 0.0},  # the paper, appendix B
    },
    "lora": {
        "tiny": {"steps": 100, "lr": 1e-2, "batch": 8, "decay": 0.5, "bias": 1.0},  # see data/experiments/lora.json
        # the rate of diffusers' train_text_to_image_lora.py
        "stable-diffusion": {"steps": 1500, "lr": 1e-4, "batch": 1, "decay": 0.0, "bias": 0.0},
    },
}


def fine_tune(pipe: StableDiffusionPipeline, image: Tensor, e_opt: Tensor, *, method: str | LoRA = "full",
              steps: int | None = None, lr: float | None = None, batch: int | None = None, decay: float | None = None,
              generator: torch.Generator | None = None,
              run: Run = Run()) -> tuple[StableDiffusionPipeline, History]:  # fmt: skip
    """Imagic's eq. 2 again, now over θ: θ* = argmin_θ E_{t,ε} ‖ε - f_θ(z_t, t, e_opt)‖², with e_opt fixed.

    method: "full" (all weights of the UNet), "lora" (low-rank adapters, Hu et al. 2021) or, for example, LoRA(rank=8).
    decay: share of the steps, at the end, in which the learning rate falls to 0 (`training.loop.rate_at`). All else
    is as in `optimize_embedding`, with `stage2_finetuning.DEFAULTS`. Returns a new pipeline with the tuned UNet (its
    other parts are shared with `pipe`) and the history. The UNet of `pipe` is left unchanged, so a second training
    starts afresh. Raises ValueError for an invalid setting or shape. Taught in notebooks/03_finetuning.ipynb."""
    check_one_image_one_embedding(image, e_opt)
    lora = LoRA() if method == "lora" else method if isinstance(method, LoRA) else None
    kind = "lora" if lora else method_of(method)
    for dtype in (pipe.unet.dtype, (run.strategy or pipe.unet).dtype):
        if kind == "full" and dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"steps as small as these vanish in {dtype} weights: load the model in float32")
    s = settings_for(pipe, DEFAULTS[kind], steps=steps, lr=lr, batch=batch, decay=decay, bias=run.bias)
    generator, process, z = cpu_generator(generator), forward_process(pipe), encode_image(pipe, image)
    about = {"method": kind} | (vars(lora) if lora else {})
    job = job_of(pipe, [image], s, generator, run, near={"text": e_opt}, **about)
    probe, name = Probe(process, z), f"stage 2, LoRA of rank {lora.rank}" if lora else "stage 2, all weights"
    with learning_copy(pipe, run.strategy, lora, seed=generator.initial_seed()) as (unet, weights):
        e = e_opt.to(unet.device, unet.dtype)
        look = partial(run.look, probe, unet, e)
        with (
            stepping(weights, s["lr"], run.strategy) as adam,
            Training(name, weights, adam, generator, job, run, look, scaler_for(unet)) as training,
        ):
            for step in training.steps(s["steps"], s["decay"]):
                step(denoising_loss(unet, process, z, e, s["batch"], generator, run.loss, s["bias"]))
    return with_unet(pipe, unet), training.history
