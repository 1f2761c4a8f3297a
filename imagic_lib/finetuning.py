"""Stage 2: fine-tune the UNet at e_opt, until e_opt draws the very input and not just its like."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from imagic_lib.diffusion import Probe, denoising_loss, encode_image, training_noise
from imagic_lib.losses import Loss, mse
from imagic_lib.models import settings_for
from imagic_lib.optimization import (
    History,
    Progress,
    Strategy,
    backward_alone,
    descend,
    identity_of,
    optimizer_in_backward,
    waiting,
)

DEFAULTS = {
    "full": {
        "tiny": {"steps": 150, "lr": 1e-4, "batch": 4},
        "stable-diffusion": {"steps": 1500, "lr": 5e-7, "batch": 1},  # arXiv 2210.09276, appendix B
    },
    "lora": {
        "tiny": {"steps": 150, "lr": 2e-3, "batch": 4},
        "stable-diffusion": {"steps": 1500, "lr": 1e-4, "batch": 1},
    },
}
RANK, TARGETS = 4, ("to_q", "to_v")  # of the report that this project follows


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
    loss: Loss = mse,
    strategy: Strategy | None = None,
    generator: torch.Generator | None = None,
    probe_every: int = 10,
    patience: int | None = None,
    checkpoint: Path | None = None,
) -> tuple[StableDiffusionPipeline, History]:
    """θ* = argmin_θ E_{t,ε} ‖ε - f_θ(z_t, t, e_opt)‖², e_opt held fixed.

    method: "full" (all weights of the UNet) or "lora" (low-rank adapters of this rank on these layers,
    Hu et al. 2021). strategy: from `memory.plan`, for a GPU that is short of memory; it brings its own
    method. Everything else as in `optimize_embedding`; defaults in `finetuning.DEFAULTS`. Returns a new
    pipeline with the tuned UNet (its other parts are shared) and the history; the UNet of `pipe` stays as
    it was, so a second fit starts clean. Taught in notebooks/03_finetuning.ipynb.
    """
    method = strategy.method if strategy else method
    if method not in DEFAULTS:
        raise ValueError(f"method {method!r} is unknown: choose 'full' or 'lora'")
    given = settings_for(pipe, DEFAULTS[method], steps=steps, lr=lr, batch=batch)
    generator = generator or torch.Generator().manual_seed(0)
    unet = trainable_copy(pipe.unet, method, rank, targets, strategy, seed=generator.initial_seed())
    process, latents = training_noise(pipe), encode_image(pipe, image).to(unet.dtype)
    probe, e_opt = Probe(process, latents), e_opt.to(unet.dtype)
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    with ExitStack() as stack:
        optimizer, step = optimizer_for(trained, given["lr"], strategy, stack)
        progress = Progress(
            name=f"stage 2, {'all weights' if method == 'full' else f'LoRA of rank {rank}'}",
            trained=trained,
            optimizer=optimizer,
            generator=generator,
            checkpoint=checkpoint,
            identity=identity_of(
                image=image,
                start=e_opt,
                lr=given["lr"],
                batch=given["batch"],
                loss=loss.__name__,
                method=method if method == "full" else [method, rank, *targets],
            ),
            scaler=torch.amp.GradScaler(latents.device.type) if unet.dtype == torch.float16 else None,
        )
        stack.enter_context(waiting(pipe.unet, pipe.vae, pipe.text_encoder))
        history = descend(
            progress,
            lambda: denoising_loss(unet, process, latents, e_opt, given["batch"], generator, loss),
            lambda: probe(unet, e_opt),
            steps=given["steps"],
            probe_every=probe_every,
            patience=patience,
            backward=step,
        )
    unet.disable_gradient_checkpointing()
    return with_unet(pipe, unet.requires_grad_(False)), history


def trainable_copy(
    unet: UNet2DConditionModel, method: str, rank: int, targets: Sequence[str], strategy: Strategy | None, *, seed: int
) -> UNet2DConditionModel:
    """The UNet again, with the weights that are to learn marked, and as frugal as the strategy asks."""
    unet = copy.deepcopy(unet).requires_grad_(method == "full")
    if strategy and method == "lora":
        torch.nn.Module.to(unet, strategy.dtype)  # the frozen base; the adapters below are float32
    if method == "lora":
        add_lora(unet, rank, targets, seed=seed)
    if strategy and strategy.checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def optimizer_for(trained: dict[str, Tensor], lr: float, strategy: Strategy | None, stack: ExitStack):
    """(Adam in the form that the strategy asks for, how to step with it or None for the plain way)."""
    kind = strategy.optimizer if strategy else "Adam"
    if kind == "Adam in backward":
        make = partial(torch.optim.Adam, lr=lr, fused=True)
        return stack.enter_context(optimizer_in_backward(trained.values(), make)), backward_alone
    if kind == "Adam 8-bit":
        from bitsandbytes.optim import Adam8bit

        return Adam8bit(trained.values(), lr=lr), None
    return torch.optim.Adam(trained.values(), lr=lr, fused=True), None


def add_lora(unet: UNet2DConditionModel, rank: int, targets: Sequence[str], *, seed: int = 0) -> None:
    """Freeze the UNet and add trainable adapters W + (α/r)·B·A, with α = r, to the named layers.

    Raises ValueError if no layer has such a name. The adapters' start is drawn from `seed`.
    """
    from peft import LoraConfig

    names = [name for name, _ in unet.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise ValueError(f"this UNet has no layer named {target!r}: try to_q, to_k, to_v, to_out.0")
    with torch.random.fork_rng(devices=[]):
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
