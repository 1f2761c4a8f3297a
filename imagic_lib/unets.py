"""Copy a UNet, add a LoRA to it, put it into a pipeline, or take only a share of its fine-tuning."""

import copy
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from diffusers.utils import scale_lora_layers
from torch import Tensor, nn

from imagic_lib.arguments import whole_number

MOST_SCALE, MOST_RANK = 2.0, 1024


@dataclass(frozen=True)
class LoRA:
    """Adapters of this rank for the layers with these names (in Hu et al. 2021, tables 5 and 6, two kinds of layers and
    a small rank suffice). Raises ValueError for an invalid rank, or if the names are not a list."""

    rank: int = 4
    targets: Sequence[str] = ("to_q", "to_v")

    def __post_init__(self):
        if not 1 <= whole_number("rank", self.rank) <= MOST_RANK:
            raise ValueError(f"rank is {self.rank}: it must be 1 or more, up to {MOST_RANK}")
        if isinstance(self.targets, str) or not self.targets:
            raise ValueError(f"targets is {self.targets!r}: give a list of layers, e.g. targets=['to_q', 'to_v']")
        object.__setattr__(self, "targets", list(self.targets))  # as JSON has it, in the job of a checkpoint


def unet_copy(unet: UNet2DConditionModel, device: torch.device, dtype: torch.dtype | None = None,
              checkpointing: bool = False, share: bool = False) -> UNet2DConditionModel:  # fmt: skip
    """Copy the UNet to `device`, in the precision `dtype`, with or without gradient checkpointing. Each tensor goes
    straight to its device, so that the computer's memory never holds two UNets. share: tensors that keep their device
    and precision are shared with the UNet; their flags and a LoRA's scale are not."""

    def placed(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else None, copy=not share)

    known = {id(p): nn.Parameter(placed(p), requires_grad=p.requires_grad) for p in unet.parameters()}
    known |= {id(b): placed(b) for b in unet.buffers()}
    other = copy.deepcopy(unet, known)  # `known` maps each tensor of the original to that of the copy
    if checkpointing:
        other.enable_gradient_checkpointing()
    return other


def add_lora(unet: UNet2DConditionModel, lora: LoRA, *, seed: int = 0) -> None:
    """Freeze the UNet and add trainable adapters in float32: W + (α/r)·B·A, with α = r. seed: of A; B starts at 0.
    Raises ValueError if no layer has a name in `lora.targets`."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    names = [name for name, _ in unet.named_modules()]
    for target in lora.targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise ValueError(f"this UNet has no layer named {target!r}: try to_q, to_k, to_v, to_out.0")
    r = lora.rank
    with torch.device("meta"):  # so that nothing is drawn from the random state that all threads share
        unet.add_adapter(LoraConfig(r=r, lora_alpha=r, init_lora_weights=False, target_modules=lora.targets))
    generator = torch.Generator().manual_seed(seed)
    for layer in (module for module in unet.modules() if isinstance(module, LoraLayer)):
        halves = layer.lora_A["default"], layer.lora_B["default"]
        # draw from a uniform distribution first, as peft does, so that a seed gives the same numbers
        a, b = (torch.empty(half.weight.shape).uniform_(generator=generator) for half in halves)
        for half, value in zip(halves, (a.normal_(std=1 / r, generator=generator), b.zero_()), strict=True):
            half.weight = nn.Parameter(value.to(layer.get_base_layer().weight))
    cast_training_params(unet, torch.float32)


def with_unet(pipe: StableDiffusionPipeline, unet: nn.Module) -> StableDiffusionPipeline:
    """Return a pipeline with this UNet. All other parts are shared with `pipe`, whose UNet is kept as `loaded_unet`."""
    other = StableDiffusionPipeline(**{**pipe.components, "unet": unet}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    other.loaded_unet = pipe.unet
    return other


def check_scale(scale: float) -> None:
    """Raise ValueError for a tuning strength outside [0, 2]."""
    if not 0 <= scale <= MOST_SCALE:
        raise ValueError(f"scale is {scale}: it goes from 0, no fine-tuning, over 1, all of it, to {MOST_SCALE:g}")


@contextmanager
def scaled(pipe: StableDiffusionPipeline, scale: float, dtype: torch.dtype | None = None):
    """A context with the UNet of a fine-tuned pipeline at the tuning strength λ = `scale`: θ_λ = θ + λ(θ* - θ).

    The tuned UNet itself is left unchanged, since other threads may draw with it; a LoRA is scaled in a copy that
    shares its weights. Raises ValueError for a scale outside [0, 2], or if `pipe` was not fine-tuned."""
    check_scale(scale)
    if scale != 1 and not hasattr(pipe, "loaded_unet"):
        raise ValueError(f"scale is {scale}, but this model was not fine-tuned: leave scale out")
    tuned, has_lora = pipe.unet, bool(getattr(pipe.unet, "peft_config", None))
    unet = tuned
    if scale != 1 or dtype not in (None, tuned.dtype):
        unet = unet_copy(tuned, tuned.device, dtype, share=has_lora or scale == 1)
    if has_lora and scale != 1:
        scale_lora_layers(unet, scale)  # in the copy, as another thread may be using the original
    elif scale != 1:
        for weight, a, b in zip(*(u.parameters() for u in (unet, pipe.loaded_unet, tuned)), strict=True):
            weight.data.copy_(torch.lerp(a.to(b), b, scale))
    yield unet
