"""The peak memory of every stage and every way of training, counted on tensors without contents.

python -m imagic_lab.numbers.memory     # a minute, without a GPU or weights; writes data/memory.json for `plan`
"""

from __future__ import annotations

import copy
import json
import weakref
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imagic_lab.numbers.report import command_line
from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.diffusion import decode_latents, denoising_loss
from imagic_lib.files import write_json
from imagic_lib.models import family
from imagic_lib.planning.memory import GIB, PARTS, PEAKS, Way, on_meta, ways_by_preference
from imagic_lib.stage4_inference import AT_ONCE, guided
from imagic_lib.unets import LoRA, add_lora

MODELS = ("tiny", "CompVis/stable-diffusion-v1-4")  # one of each kind
STATE_BYTES = {"Adam": 8, "Adam in backward": 8, "Adam 8-bit": 2}  # both moments of one learning number
CHECKER_BYTES = {"tiny": 0, "stable-diffusion": 1_215_981_830}  # of SD 1.4's safety checker, in float32


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all living storages, as `now`, and their largest number so far, as `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._living: set[int] = set()

    def watch(self, *tensors: Tensor) -> None:
        for storage in (t.untyped_storage() for t in tensors):
            if storage._cdata not in self._living:
                self._living.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._living.discard(key)
        self.now -= size

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.watch(*(x for x in tree_leaves(result) if isinstance(x, Tensor)))
        return result


def faked(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """In a FakeTensorMode, make meta parameters fake ones, which `.to(dtype)` can't do. A LoRA stays in float32."""
    for name, part in module.named_modules():
        for key, p in part._parameters.items():
            if p is not None:
                weights = torch.empty(p.shape, dtype=torch.float32 if "lora_" in name else dtype)
                part._parameters[key] = nn.Parameter(weights, requires_grad=p.requires_grad)
    return module


def training_peak(
    unet: nn.Module, stage: int, way: Way, *, batch=1, side=64, tokens=77, lora=LoRA()
) -> tuple[int, int]:
    """Count one step of stage 1 or 2, with the stages' `denoising_loss`. Returns (bytes at its peak, without the
    optimizer's moments; numbers that learn). unet: on the meta device, left unchanged. side: of the latents."""
    unet = copy.deepcopy(unet).train().requires_grad_(stage == 2)  # in eval mode checkpointing may be off
    strategy = way.strategy
    if stage == 2 and way.method == "lora":
        add_lora(unet, lora)
    if strategy.checkpointing:
        unet.enable_gradient_checkpointing()
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        learning = [p for p in faked(unet, strategy.dtype).parameters() if p.requires_grad]
        for p in learning if strategy.optimizer == "Adam in backward" else ():
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        e = torch.empty(1, tokens, unet.config.cross_attention_dim, dtype=strategy.dtype).requires_grad_(stage == 1)
        latents = torch.empty(1, unet.config.in_channels, side, side, dtype=strategy.dtype)
        denoising_loss(unet, DDPMScheduler(), latents, e, batch, torch.Generator()).backward()
    return live.peak, sum(p.numel() for p in learning or [e])


@torch.no_grad()
def sampling_peak(modules: dict[str, nn.Module], dtype: torch.dtype, *, at_once=1, side=64) -> int:
    """Count the bytes at the peak of stages 3 and 4: guidance with a batch of 2 x at_once, then the VAE, picture by
    picture. The tuned UNet has this dtype, all else float32; `encode_image` and the probe need less."""
    unet, vae, text_encoder = (copy.deepcopy(modules[part]) for part in PARTS)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        faked(unet, dtype), faked(vae, torch.float32), faked(text_encoder, torch.float32)
        z = torch.empty(at_once, unet.config.in_channels, side, side, dtype=dtype)
        tokens = text_encoder.config.max_position_embeddings
        text = torch.empty(2 * at_once, tokens, unet.config.cross_attention_dim, dtype=dtype)
        answer = unet(torch.cat([z, z]), torch.zeros(1, dtype=torch.long), text).sample
        z = z - guided(*answer.chunk(2), 7.5)
        decode_latents(SimpleNamespace(vae=vae), z[:1])
    return live.peak


def counted_peaks(model: str, half: torch.dtype, some: slice = slice(None)) -> dict[str, list[float]]:
    """Return GiB at the peak of stage 1, of stage 2 and of drawing, by the name of the way, from ten counted steps.
    some: which of the ways."""
    modules = on_meta(model)
    unet, _, text_encoder = modules.values()
    kind, side, tokens = (
        family(SimpleNamespace(unet=unet)),
        unet.config.sample_size,
        text_encoder.config.max_position_embeddings,
    )

    @cache
    def trained(stage: int, way: Way) -> tuple[int, int]:
        defaults = stage1_embedding.DEFAULTS if stage == 1 else stage2_finetuning.DEFAULTS[way.method]
        return training_peak(unet, stage, way, batch=defaults[kind]["batch"], side=side, tokens=tokens)

    @cache
    def sampled(dtype: torch.dtype) -> int:
        return sampling_peak(modules, dtype, at_once=AT_ONCE[kind], side=side) + CHECKER_BYTES[kind]

    def counted(way: Way) -> list[float]:
        strategy, plain = way.strategy, replace(way.strategy, optimizer="Adam")  # an 8-bit Adam computes the same way
        peak, learning = trained(2, way if strategy.optimizer == "Adam in backward" else Way(way.method, plain))
        second = peak + learning * STATE_BYTES[strategy.optimizer]
        first = trained(1, Way("full", plain))[0]  # depends only on precision and checkpointing
        return [round(peak / GIB, 4) for peak in (first, second, sampled(strategy.dtype))]

    return {way.name: counted(way) for way in ways_by_preference(half)[some]}


def main() -> None:
    command_line(__doc__).parse_args()
    peaks = {}
    for model in MODELS:
        kind = family(SimpleNamespace(unet=on_meta(model)["unet"]))
        peaks[kind] = counted_peaks(model, torch.float16) | counted_peaks(model, torch.float32)
    write_json(PEAKS, peaks)
    print(json.dumps(peaks, indent=1))


if __name__ == "__main__":
    main()
