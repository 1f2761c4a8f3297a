"""Stage 2: fine-tune the UNet at e_opt, until e_opt draws this very picture and not just one like it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor

from imagic_lib.diffusion import Probe, cpu_generator, denoising_loss, encode_image, forward_process, one_each
from imagic_lib.models import settings_for, whole_number
from imagic_lib.training.identity import identity_of
from imagic_lib.training.loop import History, Progress, Run, descend
from imagic_lib.training.strategies import Strategy, networks, scaler_for, stepping, unet_copy, waiting

DEFAULTS = {
    "full": {
        "tiny": {"steps": 100, "lr": 2e-4, "batch": 8, "decay": 0.5, "bias": 1.0},  # see data/tiny-sd/README.md
        "stable-diffusion": {"steps": 1500, "lr": 5e-7, "batch": 1, "decay": 0.0, "bias": 0.0},  # the paper, appendix B
    },
    "lora": {
        "tiny": {"steps": 100, "lr": 1e-2, "batch": 8, "decay": 0.5, "bias": 1.0},  # see data/experiments/lora.json
        # the rate of diffusers' train_text_to_image_lora.py
        "stable-diffusion": {"steps": 1500, "lr": 1e-4, "batch": 1, "decay": 0.0, "bias": 0.0},
    },
}
MOST_SCALE = 2.0


@dataclass(frozen=True)
class LoRA:
    """What a LoRA adds to the UNet: adapters of this rank on the layers with these names. The two layers, and a rank
    that small, suffice by Hu et al. 2021, tables 5 and 6. Raises ValueError for a rank that can't be."""

    rank: int = 4
    targets: Sequence[str] = ("to_q", "to_v")

    def __post_init__(self):
        if whole_number("rank", self.rank) < 1:
            raise ValueError(f"rank is {self.rank}: it must be 1 or more")
        if isinstance(self.targets, str) or not self.targets:
            raise ValueError(f"targets is {self.targets!r}: give a list of layers, e.g. targets=['to_q', 'to_v']")


def fine_tune(
    pipe: StableDiffusionPipeline,
    image: Tensor,
    e_opt: Tensor,
    *,
    method: str | LoRA = "full",
    steps: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    decay: float | None = None,
    bias: float | None = None,
    generator: torch.Generator | None = None,
    run: Run = Run(),
) -> tuple[StableDiffusionPipeline, History]:
    """θ* = argmin_θ E_{t,ε} ‖ε - f_θ(z_t, t, e_opt)‖², e_opt held fixed.

    method: "full" (all weights of the UNet), "lora" (low-rank adapters, Hu et al. 2021), or e.g. LoRA(rank=8); with
    a strategy in `run` it is the strategy's. decay: the last part of the steps, over which the rate falls to 0
    (`training.loop.rate_at`). bias: 0 draws all timesteps equally often, as the paper does; with 1 those with much
    noise come more often (`stratified_timesteps`): they decide where the sun and the clouds stand, but weigh little in
    the loss. Everything else as in `optimize_embedding`; defaults in `stage2_finetuning.DEFAULTS`. Returns a new
    pipeline with the tuned UNet (its other parts are shared) and the history; the UNet of `pipe` stays as it was, so a
    second fit starts clean. Taught in notebooks/03_finetuning.ipynb.
    """
    one_each(image, e_opt)
    lora = lora_of(method, run.strategy)
    kind = "lora" if lora else "full"
    if kind == "full" and pipe.unet.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"steps as small as these vanish in {pipe.unet.dtype} weights: load the model in float32")
    given = settings_for(pipe, DEFAULTS[kind], steps=steps, lr=lr, batch=batch, decay=decay, bias=bias)
    generator, process, z = cpu_generator(generator), forward_process(pipe), encode_image(pipe, image)
    about = {"method": kind} | (facts_of(lora) if lora else {})
    identity = identity_of(pipe, [image], given, run.loss, generator, near={"text": e_opt}, **about)
    with learning_copy(pipe, run.strategy, lora, seed=generator.initial_seed()) as (unet, trained):
        z, e = z.to(unet.dtype), e_opt.to(unet.device, unet.dtype)
        probe = Probe(process, z)
        with stepping(trained, given["lr"], run.strategy) as adam:
            name = f"stage 2, LoRA of rank {lora.rank}" if lora else "stage 2, all weights"
            history = descend(
                Progress(name, trained, adam, generator, identity, scaler_for(unet)),
                lambda: denoising_loss(unet, process, z, e, given["batch"], generator, run.loss, given["bias"]),
                lambda: run.look(probe, unet, e),
                steps=given["steps"],
                decay=given["decay"],
                run=run,
            )
    return with_unet(pipe, unet), history


def lora_of(method: str | LoRA, strategy: Strategy | None) -> LoRA | None:
    """The adapters to train, or None for all weights. Raises ValueError for an unknown method."""
    kind = "lora" if isinstance(method, LoRA) else method
    if kind not in DEFAULTS:
        raise ValueError(f"method {method!r} is unknown: choose 'full' or 'lora'")
    if (strategy.method if strategy else kind) == "full":
        return None
    return method if isinstance(method, LoRA) else LoRA()


def facts_of(lora: LoRA) -> dict:
    """The adapters as JSON, for a checkpoint's identity."""
    return asdict(lora) | {"targets": list(lora.targets)}


@contextmanager
def learning_copy(pipe: StableDiffusionPipeline, strategy: Strategy | None, lora: LoRA | None, *, seed: int):
    """(a copy of the UNet, its weights that learn by name): all of them, or those of a LoRA.

    Meanwhile the pipeline's networks wait in the computer's memory. After the block nothing of the copy learns.
    """
    device = pipe.unet.device
    with waiting(*networks(pipe)):
        unet = unet_copy(pipe.unet, strategy, device).requires_grad_(lora is None)
        if lora:
            add_lora(unet, lora, seed=seed)
        yield unet, {name: p for name, p in unet.named_parameters() if p.requires_grad}
    unet.disable_gradient_checkpointing()
    unet.requires_grad_(False)


def add_lora(unet: UNet2DConditionModel, lora: LoRA, *, seed: int = 0) -> None:
    """Freeze the UNet and add trainable adapters W + (α/r)·B·A, with α = r, in float32.

    Raises ValueError if no layer has such a name. The adapters' start is drawn from `seed`.
    """
    from peft import LoraConfig

    names = [name for name, _ in unet.named_modules()]
    for target in lora.targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise ValueError(f"this UNet has no layer named {target!r}: try to_q, to_k, to_v, to_out.0")
    r, layers = lora.rank, list(lora.targets)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=r, lora_alpha=r, init_lora_weights="gaussian", target_modules=layers))
    cast_training_params(unet, torch.float32)


def with_unet(pipe: StableDiffusionPipeline, unet: torch.nn.Module) -> StableDiffusionPipeline:
    """A pipeline that shares every part with `pipe` but its UNet, and remembers that one as `loaded_unet`."""
    other = StableDiffusionPipeline(**{**pipe.components, "unet": unet}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    other.loaded_unet = pipe.unet
    return other


@contextmanager
def scaled(pipe: StableDiffusionPipeline, scale: float):
    """The UNet of a fine-tuned pipeline with so much of its fine-tuning: θ_λ = θ + λ(θ* - θ), λ = `scale`.

    1 is the tuned UNet itself, 0 draws as the loaded one. A LoRA is scaled where it is; of a UNet whose weights were
    all trained it is a copy. Raises ValueError for a scale outside [0, 2], or if `pipe` was not fine-tuned.
    """
    if not 0 <= scale <= MOST_SCALE:
        raise ValueError(f"scale is {scale}: it goes from 0, no fine-tuning, over 1, all of it, to {MOST_SCALE:g}")
    if scale == 1:
        yield pipe.unet
        return
    if not hasattr(pipe, "loaded_unet"):
        raise ValueError(f"scale is {scale}, but this model was not fine-tuned: leave scale out")
    if getattr(pipe.unet, "peft_config", None):
        scale_lora_layers(pipe.unet, scale)
        try:
            yield pipe.unet
        finally:
            unscale_lora_layers(pipe.unet, scale)
        return
    unet = unet_copy(pipe.unet, None, pipe.unet.device)
    with torch.no_grad():
        for weight, loaded in zip(unet.parameters(), pipe.loaded_unet.parameters(), strict=True):
            weight.copy_(torch.lerp(loaded.to(weight), weight, scale))
    yield unet
