"""Stage 2: fine-tune the UNet at e_opt, until e_opt draws the very input and not just its like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from imagic_lib.diffusion import Loss, Probe, cpu_generator, denoising_loss, encode_image, mse, training_noise
from imagic_lib.models import settings_for
from imagic_lib.training.loop import History, Progress, Watch, descend, identity_of
from imagic_lib.training.strategies import Strategy, networks, scaler_for, stepping, unet_copy, waiting

DEFAULTS = {
    "full": {
        "tiny": {"steps": 60, "lr": 4e-4, "batch": 8, "decay": 0.5},  # what it gives: data/tiny-sd/README.md
        "stable-diffusion": {"steps": 1500, "lr": 5e-7, "batch": 1, "decay": 0.0},  # Kavar et al. 2022, appendix B
    },
    "lora": {
        "tiny": {"steps": 60, "lr": 1e-2, "batch": 8, "decay": 0.5},  # what it gives: data/experiments/lora.json
        # the rate of diffusers' train_text_to_image_lora.py
        "stable-diffusion": {"steps": 1500, "lr": 1e-4, "batch": 1, "decay": 0.0},
    },
}
RANK, TARGETS = 4, ("to_q", "to_v")  # Hu et al. 2021, tables 5 and 6: these two, and a rank that small, suffice


def fine_tune(
    pipe: StableDiffusionPipeline,
    image: Tensor,
    e_opt: Tensor,
    *,
    method: str = "full",
    rank: int = RANK,
    targets: Sequence[str] = TARGETS,
    steps: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    decay: float | None = None,
    loss: Loss = mse,
    strategy: Strategy | None = None,
    generator: torch.Generator | None = None,
    probe_every: int = 10,
    patience: int | None = None,
    checkpoint: Path | None = None,
    watch: Watch | None = None,
) -> tuple[StableDiffusionPipeline, History]:
    """θ* = argmin_θ E_{t,ε} ‖ε - f_θ(z_t, t, e_opt)‖², e_opt held fixed.

    method: "full" (all weights of the UNet) or "lora" (low-rank adapters of this rank on these layers,
    Hu et al. 2021). decay: the last part of the steps, over which the rate falls to 0 (`training.loop.rate_at`).
    strategy: from `training.memory.plan`, for a GPU that is short of memory; it brings its own method. Everything else
    as in `optimize_embedding`; defaults in `stage2_finetuning.DEFAULTS`. Returns a new pipeline with the tuned UNet
    (its other parts are shared) and the history; the UNet of `pipe` stays as it was, so a second fit starts
    clean. Taught in notebooks/03_finetuning.ipynb.
    """
    method = strategy.method if strategy else method
    if method not in DEFAULTS:
        raise ValueError(f"method {method!r} is unknown: choose 'full' or 'lora'")
    if method == "full" and pipe.unet.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"steps as small as these vanish in {pipe.unet.dtype} weights: load the model in float32")
    given = settings_for(pipe, DEFAULTS[method], steps=steps, lr=lr, batch=batch, decay=decay)
    generator = cpu_generator(generator)
    process, latents, device = training_noise(pipe), encode_image(pipe, image), pipe.unet.device
    lora = {"rank": rank, "targets": list(targets)} if method == "lora" else {}
    with waiting(*networks(pipe)):
        unet = unet_copy(pipe.unet, strategy, device).requires_grad_(method == "full")
        if lora:
            add_lora(unet, rank, targets, seed=generator.initial_seed())
        latents, e_opt = latents.to(unet.dtype), e_opt.to(device, unet.dtype)
        identity = identity_of(image, e_opt, given, loss, generator) | {"method": method} | lora
        trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        probe = Probe(process, latents)
        with stepping(trained, given["lr"], strategy) as (optimizer, step_with):
            name = "stage 2, all weights" if method == "full" else f"stage 2, LoRA of rank {rank}"
            history = descend(
                Progress(name, trained, optimizer, generator, checkpoint, identity, scaler_for(unet)),
                lambda: denoising_loss(unet, process, latents, e_opt, given["batch"], generator, loss),
                lambda: probe(unet, e_opt),
                steps=given["steps"],
                probe_every=probe_every,
                patience=patience,
                decay=given["decay"],
                step_with=step_with,
                watch=watch,
            )
        optimizer.state.clear()  # before the others come back to the GPU
    unet.disable_gradient_checkpointing()
    return with_unet(pipe, unet.requires_grad_(False)), history


def add_lora(unet: UNet2DConditionModel, rank: int, targets: Sequence[str], *, seed: int = 0) -> None:
    """Freeze the UNet and add trainable adapters W + (α/r)·B·A, with α = r, to the named layers.

    Raises ValueError if no layer has such a name. The adapters' start is drawn from `seed`.
    """
    from peft import LoraConfig

    names = [name for name, _ in unet.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise ValueError(f"this UNet has no layer named {target!r}: try to_q, to_k, to_v, to_out.0")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))
        )
    for name, p in unet.named_parameters():
        if "lora_" in name:
            p.data = p.data.float()


def with_unet(pipe: StableDiffusionPipeline, unet: torch.nn.Module) -> StableDiffusionPipeline:
    """A pipeline that shares every part with `pipe` but its UNet."""
    other = StableDiffusionPipeline(**{**pipe.components, "unet": unet}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other
