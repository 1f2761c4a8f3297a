"""How stages 1 and 2 are run where memory is short. `memory.plan` chooses a strategy; this module lists
them and carries one out."""

from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from imagic_lib.diffusion import frozen

OPTIMIZERS = ("Adam", "Adam in backward", "Adam 8-bit")


@dataclass(frozen=True)
class Strategy:
    """One way to run the stages. dtype: of the UNet's weights and of all computing; adapters stay float32."""

    method: str  # "full" or "lora", as in `fine_tune`
    dtype: torch.dtype
    optimizer: str  # one of OPTIMIZERS
    checkpointing: bool  # activations are computed a second time instead of being kept

    @property
    def name(self) -> str:
        words = ["LoRA" if self.method == "lora" else self.method, str(self.dtype)[6:], self.optimizer]
        return ", ".join(words + ["checkpointing"] * self.checkpointing)


def by_preference(half: torch.dtype = torch.float16) -> tuple[Strategy, ...]:
    """All strategies, the preferred first. half: of the weights under a LoRA (`precision`)."""
    ways = [("full", torch.float32, optimizer) for optimizer in OPTIMIZERS] + [("lora", half, "Adam")]
    return tuple(Strategy(*way, checkpointing) for way in ways for checkpointing in (False, True))


def precision(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the GPU has it, float16 (with a GradScaler) where it is only emulated (T4), else float32."""
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def unet_copy(unet: UNet2DConditionModel, strategy: Strategy | None, device: torch.device) -> UNet2DConditionModel:
    """The UNet again, on `device`, as frugal as the strategy asks: in its precision and with its checkpointing.

    Each tensor is written where it will stay, one by one. Copied first and moved later, the UNet would be in the
    computer's memory twice, beside all that waits there: a free Colab has 12.7 GB of it.
    """

    def placed(tensor: Tensor) -> Tensor:
        dtype = strategy.dtype if strategy and tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(device, dtype, copy=True)

    known = {id(p): nn.Parameter(placed(p), requires_grad=p.requires_grad) for p in unet.parameters()}
    known |= {id(b): placed(b) for b in unet.buffers()}
    other = copy.deepcopy(unet, known)  # `known` says which tensor of the copy stands for which of the original
    if strategy and strategy.checkpointing:
        other.enable_gradient_checkpointing()
    return other


@contextmanager
def stepping(trained: dict[str, Tensor], lr: float, strategy: Strategy | None):
    """Adam in the form that the strategy asks for. After the block its moments are gone, to make room."""
    kind, weights = strategy.optimizer if strategy else "Adam", list(trained.values())
    if kind == "Adam 8-bit":
        from bitsandbytes.optim import Adam8bit

        optimizer = Adam8bit(weights, lr=lr)
    else:
        optimizer = torch.optim.Adam(weights, lr=lr, fused=True)
    try:
        with stepping_in_backward(optimizer) if kind == "Adam in backward" else nullcontext():
            yield optimizer
    finally:
        optimizer.state.clear()


def scaler_for(unet: nn.Module) -> torch.amp.GradScaler | None:
    """float16 needs a GradScaler, or small gradients vanish; bfloat16 and float32 don't."""
    half = next(unet.parameters()).dtype == torch.float16
    return torch.amp.GradScaler(next(unet.parameters()).device.type) if half else None


@contextmanager
def stepping_in_backward(optimizer: torch.optim.Optimizer):
    """Inside the block `loss.backward()` steps, too: every weight as soon as it has its gradient, which is then freed.

    The optimizer must treat each weight for itself, as Adam does: then the numbers are those of backward and step. Its
    own `step` finds nothing to do afterwards. Not for a GradScaler or gradient clipping, which see all gradients
    first. After PyTorch's tutorial 'fusing the optimizer step into the backward pass'.
    """
    optimizer.zero_grad(set_to_none=True)

    def step(p: nn.Parameter) -> None:
        optimizer.step()  # an optimizer passes over weights without a gradient: at this moment, all but p
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
def waiting(*modules: nn.Module):
    """Inside, these networks wait in the computer's memory and leave the GPU to what is trained. If there is
    no room for them to come back, they stay in the computer's memory, all of them.

    diffusers' `offload_models` does the same but for this: it would leave some here and some there.
    """
    homes = [(module, next(module.parameters()).device) for module in modules]
    moved = [(module, device) for module, device in homes if device.type != "cpu"]
    for module, _ in moved:
        nn.Module.to(module, "cpu")
    if moved:
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        try:
            for module, device in moved:
                nn.Module.to(module, device)
        except torch.OutOfMemoryError:
            for module, _ in moved:
                nn.Module.to(module, "cpu")
            raise


@contextmanager
def looking_through(pipe: StableDiffusionPipeline, strategy: Strategy | None):
    """The UNet for a training that changes none of its weights: frozen, the pipeline's own, or a copy that is as
    frugal as the strategy asks. Meanwhile the other networks wait."""
    as_it_is = strategy is None or (strategy.dtype == pipe.unet.dtype and not strategy.checkpointing)
    device = pipe.unet.device
    with waiting(*networks(pipe, but=pipe.unet if as_it_is else None)):
        unet = pipe.unet if as_it_is else unet_copy(pipe.unet, strategy, device)
        with frozen(unet):
            yield unet
