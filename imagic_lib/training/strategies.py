"""Run stages 1 and 2 where memory is short: in half precision, with other optimizers, or with checkpointing.
`planning.memory.plan` chooses a strategy; this module carries it out."""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from imagic_lib.unets import LoRA, add_lora, unet_copy

OPTIMIZERS = ("Adam", "Adam in backward", "Adam 8-bit")


@dataclass(frozen=True)
class Strategy:
    """A way to train. dtype: of the UNet's weights and of all computation; the adapters of a LoRA stay in float32."""

    dtype: torch.dtype = torch.float32
    optimizer: str = "Adam"  # one of OPTIMIZERS
    checkpointing: bool = False  # recompute activations in the backward pass instead of storing them


def precision(device: torch.device | str) -> torch.dtype:
    """Return bfloat16 for a GPU that has it, float16 for one that only emulates it (T4), and float32 for a CPU."""
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


@contextmanager
def stepping(weights: dict[str, Tensor], lr: float, strategy: Strategy | None):
    """A context with the form of Adam that the strategy asks for. On exit, its moments are freed to make room."""
    kind, learning = strategy.optimizer if strategy else "Adam", list(weights.values())
    if kind == "Adam 8-bit":
        from bitsandbytes.optim import Adam8bit

        optimizer = Adam8bit(learning, lr=lr)
    else:
        optimizer = torch.optim.Adam(learning, lr=lr, fused=True)
    try:
        with stepping_in_backward(optimizer) if kind == "Adam in backward" else nullcontext():
            yield optimizer
    finally:
        optimizer.state.clear()


def scaler_for(unet: nn.Module) -> torch.amp.GradScaler:
    """Make a GradScaler, without which small gradients vanish in float16. For bfloat16 and float32 it does nothing."""
    weight = next(unet.parameters())
    return torch.amp.GradScaler(weight.device.type, enabled=weight.dtype == torch.float16)


@contextmanager
def stepping_in_backward(optimizer: torch.optim.Optimizer):
    """A context in which `loss.backward()` also takes the step of each weight, and frees its gradient right after that.

    The result is the same as with separate steps if the optimizer treats each weight separately, as Adam does. Not for
    a GradScaler or clipping. After PyTorch's tutorial 'fusing the optimizer step into the backward pass'."""
    optimizer.zero_grad(set_to_none=True)

    def step(p: nn.Parameter) -> None:
        if not torch.isfinite(p.grad.sum()):
            raise FloatingPointError("a gradient is not finite")
        optimizer.step()  # this updates p alone, because optimizers skip weights without a gradient
        p.grad = None

    hooks = [p.register_post_accumulate_grad_hook(step) for g in optimizer.param_groups for p in g["params"]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def networks(pipe: StableDiffusionPipeline, but: nn.Module | None = None) -> list[nn.Module]:
    """Return the UNet, VAE, text encoder and safety checker of a pipeline, or all of them but one."""
    return [m for m in pipe.components.values() if isinstance(m, nn.Module) and m is not but]


@contextmanager
def offloaded_to_cpu(*modules: nn.Module):
    """A context in which these networks are in the computer's memory, so that the GPU is free for the training."""
    moved = [(m, device) for m in modules if (device := next(m.parameters()).device).type != "cpu"]
    for module, _ in moved:
        nn.Module.to(module, "cpu")
    torch.cuda.empty_cache()  # without a GPU it does nothing
    try:
        yield
    finally:
        for module, device in moved:
            nn.Module.to(module, device)


@contextmanager
def frozen_unet(pipe: StableDiffusionPipeline, strategy: Strategy | None):
    """A context with a frozen copy of the UNet, for a training that changes none of its weights. The copy shares the
    pipeline's tensors, unless a strategy asks for a different UNet. Meanwhile the other networks are offloaded."""
    how = (strategy.dtype, strategy.checkpointing) if strategy else (pipe.unet.dtype, False)
    device, own = pipe.unet.device, how == (pipe.unet.dtype, False)
    with offloaded_to_cpu(*networks(pipe, but=pipe.unet if own else None)):
        yield unet_copy(pipe.unet, device, *how, share=own).requires_grad_(False)


@contextmanager
def learning_copy(pipe: StableDiffusionPipeline, strategy: Strategy | None, lora: LoRA | None, *, seed: int):
    """A context with (a copy of the UNet, the weights in it that learn, by name): all of them, or those of a LoRA.

    Meanwhile the pipeline's networks are offloaded. On exit, the copy is frozen. Raises ValueError for a UNet that
    already has a LoRA, because the new one would replace it, and the finished edit could not be opened again."""
    if getattr(pipe.unet, "peft_config", None):
        raise ValueError("this model has a LoRA already: call fuse_lora() and unload_lora_weights() on it first")
    device = pipe.unet.device
    how = (strategy.dtype, strategy.checkpointing) if strategy else ()
    with offloaded_to_cpu(*networks(pipe)):
        unet = unet_copy(pipe.unet, device, *how).requires_grad_(lora is None)
        if lora:
            add_lora(unet, lora, seed=seed)
        yield unet, {name: p for name, p in unet.named_parameters() if p.requires_grad}
    unet.disable_gradient_checkpointing()
    unet.requires_grad_(False)
