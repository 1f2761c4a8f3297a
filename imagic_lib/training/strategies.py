"""How stages 1 and 2 are run where memory is short: in half precision, with other optimizers, by checkpointing.
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
    """One way to run the stages. dtype: of the UNet's weights and of all computing; adapters stay float32."""

    dtype: torch.dtype = torch.float32
    optimizer: str = "Adam"  # one of OPTIMIZERS
    checkpointing: bool = False  # activations are computed a second time instead of being kept


def precision(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the GPU has it, float16 (with a GradScaler) where it is only emulated (T4), else float32."""
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


@contextmanager
def stepping(weights: dict[str, Tensor], lr: float, strategy: Strategy | None):
    """Adam in the form that the strategy asks for. After the block its moments are gone, to make room."""
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
    """float16 needs a GradScaler, or small gradients vanish; for bfloat16 and float32 it does nothing."""
    weight = next(unet.parameters())
    return torch.amp.GradScaler(weight.device.type, enabled=weight.dtype == torch.float16)


@contextmanager
def stepping_in_backward(optimizer: torch.optim.Optimizer):
    """Inside the block `loss.backward()` steps, too: every weight as soon as it has its gradient, which is then freed.

    The numbers are those of backward and step, if the optimizer treats each weight separately, as Adam does. Not for a
    GradScaler or clipping. After PyTorch's tutorial 'fusing the optimizer step into the backward pass'."""
    optimizer.zero_grad(set_to_none=True)

    def step(p: nn.Parameter) -> None:
        if not torch.isfinite(p.grad.sum()):
            raise FloatingPointError("a gradient is not finite")
        optimizer.step()  # an optimizer skips weights without a gradient: now all but p
        p.grad = None

    hooks = [p.register_post_accumulate_grad_hook(step) for g in optimizer.param_groups for p in g["params"]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def networks(pipe: StableDiffusionPipeline, but: nn.Module | None = None) -> list[nn.Module]:
    """The UNet, VAE, text encoder and safety checker of a pipeline, or all but one of them."""
    return [m for m in pipe.components.values() if isinstance(m, nn.Module) and m is not but]


@contextmanager
def offloaded_to_cpu(*modules: nn.Module):
    """Inside, these networks are in the computer's memory and leave the GPU to what is trained."""
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
    """The UNet for a training that changes none of its weights: a frozen copy, which shares the pipeline's tensors or,
    if the strategy says so, saves memory. Meanwhile the other networks are offloaded."""
    how = (strategy.dtype, strategy.checkpointing) if strategy else (pipe.unet.dtype, False)
    device, own = pipe.unet.device, how == (pipe.unet.dtype, False)
    with offloaded_to_cpu(*networks(pipe, but=pipe.unet if own else None)):
        yield unet_copy(pipe.unet, device, *how, share=own).requires_grad_(False)


@contextmanager
def learning_copy(pipe: StableDiffusionPipeline, strategy: Strategy | None, lora: LoRA | None, *, seed: int):
    """(a copy of the UNet, its weights that learn by name): all of them, or those of a LoRA.

    Meanwhile the pipeline's networks are offloaded. After the block nothing of the copy learns. Raises ValueError for a
    UNet that has a LoRA already: the new one would replace it, and the finished edit could not be opened again."""
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
