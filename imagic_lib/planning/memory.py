"""What will fit, before it runs: the peak memory of every stage, counted on tensors without contents."""

from __future__ import annotations

import copy
import json
import weakref
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.diffusion import decode_latents, denoising_loss
from imagic_lib.models import TINY, family, name_of
from imagic_lib.stage2_finetuning import LoRA
from imagic_lib.stage4_inference import AT_ONCE, guided
from imagic_lib.training.strategies import Strategy, by_preference, precision

GIB = 2**30
MARGIN = 3.0  # GiB: real CUDA runs exceed the counted peak by 1.7 to 3 (context, workspaces, fragments)
STATE_BYTES = {"Adam": 8, "Adam in backward": 8, "Adam 8-bit": 2}  # both moments of one learning number
SAFETY_CHECKER = 1_215_981_830  # bytes of SD 1.4's own, in float32
SD_1_4 = {  # CompVis/stable-diffusion-v1-4: where its parts differ from the libraries' defaults
    "unet": {"sample_size": 64, "cross_attention_dim": 768},
    "vae": {
        "sample_size": 512,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all living storages: `now`, and the most there ever were at once, `peak`."""

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


@dataclass(frozen=True)
class Row:
    """What a strategy needs: the peak of each stage in GiB, without margin."""

    strategy: Strategy
    embedding: float
    fine_tuning: float
    sampling: float

    @property
    def peak(self) -> float:
        return max(self.embedding, self.fine_tuning, self.sampling)


@dataclass(frozen=True)
class Plan:
    """All strategies, the preferred first; print it. gpu_gb, margin: GiB. size: pixels."""

    model: str
    size: int
    gpu_gb: float
    margin: float
    rows: tuple[Row, ...]

    def fits(self, row: Row) -> bool:
        return row.peak + self.margin <= self.gpu_gb

    @property
    def chosen(self) -> Strategy | None:
        """The first strategy that fits; None if none does."""
        return next((row.strategy for row in self.rows if usable(row.strategy) and self.fits(row)), None)

    @property
    def advice(self) -> str:
        """One sentence: what to use, or what to do if nothing fits."""
        if self.chosen:
            return f"chosen: {self.chosen.name}"
        least = min(row.peak for row in self.rows if usable(row.strategy)) + self.margin
        smaller = 'take a larger GPU, or the model "tiny"'
        return f"nothing fits into {self.gpu_gb:.2f} GiB, the least is {least:.2f} with the margin: {smaller}"

    def table(self) -> str:
        title = f"{self.model}, {self.size} x {self.size} pixels, {self.gpu_gb:.2f} GiB of memory"
        lines = [f"{title}, of which {self.margin:g} stay free", f"{'peak of each stage, GiB':50}  1    2   3+4"]
        for row in self.rows:
            mark = "→" if row.strategy == self.chosen else " "
            peaks = f"{row.embedding:5.2f} {row.fine_tuning:5.2f} {row.sampling:5.2f}"
            verdict = ("fits" if self.fits(row) else "does not fit") + ", needs bitsandbytes" * (
                not usable(row.strategy)
            )
            lines.append(f"{mark} {row.strategy.name:46} {peaks}  {verdict}")
        return "\n".join([*lines, self.advice])

    __str__ = table


def usable(strategy: Strategy) -> bool:
    """Is everything installed that it needs?"""
    return strategy.optimizer != "Adam 8-bit" or find_spec("bitsandbytes") is not None


def next_smaller(strategy: Strategy, half: torch.dtype = torch.float16) -> Strategy | None:
    """What to try when this one ran out of memory, of those that `plan` shows; None after the last.

    half: as in `by_preference`, of the GPU that is there now. A LoRA in float32 is in no GPU's plan: after it comes the
    first LoRA, whose weights are half as large.
    """
    order = by_preference(half)
    if strategy.method == "lora" and strategy.dtype != torch.float32:
        strategy = replace(strategy, dtype=half)  # planned for another GPU
    at = order.index(strategy) + 1 if strategy in order else next(k for k, s in enumerate(order) if s.method == "lora")
    return next((other for other in order[at:] if usable(other)), None)


def on_meta(model: StableDiffusionPipeline | str | Path) -> dict[str, nn.Module]:
    """{"unet", "vae", "text_encoder"} with shapes and no contents: of a pipeline, a folder, "tiny", or SD 1.x by
    its hub id, without a download. Raises ValueError or FileNotFoundError in one sentence for any other."""
    folder = TINY if str(model) == "tiny" else Path(str(model))
    if isinstance(model, StableDiffusionPipeline):
        text = model.text_encoder.config.to_dict()
        parts = {"unet": model.unet.config, "vae": model.vae.config, "text_encoder": text}
    elif folder.is_dir():
        try:
            parts = {part: json.loads((folder / part / "config.json").read_text()) for part in SD_1_4}
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is no complete diffusers model: {error}") from error
    elif folder == TINY:
        raise FileNotFoundError(f"the embedded model is missing: there is no {folder}; clone again")
    elif "/stable-diffusion-v1-" in str(model):
        parts = SD_1_4
    else:
        raise ValueError(f'no plan for {model!r}: give "tiny", "CompVis/stable-diffusion-v1-4", a folder or a pipeline')
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(parts["unet"]), AutoencoderKL.from_config(parts["vae"])
        return {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(CLIPTextConfig(**parts["text_encoder"]))}


def faked(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Inside a FakeTensorMode: meta parameters become fake ones, which `.to(dtype)` can't do. LoRA stays float32."""
    for name, part in module.named_modules():
        for key, p in part._parameters.items():
            if p is not None:
                weights = torch.empty(p.shape, dtype=torch.float32 if "lora_" in name else dtype)
                part._parameters[key] = nn.Parameter(weights, requires_grad=p.requires_grad)
    return module


def training_peak(
    unet: nn.Module, stage: int, strategy: Strategy, *, batch=1, side=64, tokens=77, lora=LoRA()
) -> tuple[int, int]:
    """One step of stage 1 or 2: (bytes at its peak, without the optimizer's moments; numbers that learn).

    unet: on the meta device, stays as it is. side: of the latents. lora: the adapters, if it trains any. The step is
    the stages' own `denoising_loss`; a fused optimizer step allocates nothing but, the first time, the moments.
    """
    unet = copy.deepcopy(unet).train().requires_grad_(stage == 2)  # in eval mode checkpointing may be off
    if stage == 2 and strategy.method == "lora":
        stage2_finetuning.add_lora(unet, lora)
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
    """Bytes at the peak of stages 3 and 4: guidance with a batch of 2 x at_once, then the VAE, picture by picture.
    The tuned UNet has the given dtype, the rest of the pipeline float32; `encode_image` and the probe need less."""
    unet, vae, text_encoder = (copy.deepcopy(modules[part]) for part in SD_1_4)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        faked(unet, dtype), faked(vae, torch.float32), faked(text_encoder, torch.float32)
        z = torch.empty(at_once, unet.config.in_channels, side, side, dtype=dtype)
        tokens = text_encoder.config.max_position_embeddings
        text = torch.empty(2 * at_once, tokens, unet.config.cross_attention_dim, dtype=dtype)
        answer = unet(torch.cat([z, z]), torch.zeros(1, dtype=torch.long), text).sample
        z = z - guided(*answer.chunk(2), 7.5)
        decode_latents(SimpleNamespace(vae=vae), z[:1])
    return live.peak


def checker_bytes(model: StableDiffusionPipeline | str | Path) -> int:
    """What the model's safety checker takes on the device while pictures are drawn."""
    if isinstance(model, StableDiffusionPipeline):
        return sum(p.nbytes for p in model.safety_checker.parameters()) if model.safety_checker else 0
    folder = TINY if str(model) == "tiny" else Path(str(model))
    files = [p.stat().st_size for p in (folder / "safety_checker").glob("*.safetensors") if "fp16" not in p.name]
    return sum(files) if folder.is_dir() else SAFETY_CHECKER


def plan(
    model: StableDiffusionPipeline | str | Path = "tiny",
    gpu_gb: float | None = None,
    device: torch.device | str | None = None,
    *,
    size: int | None = None,
    batch: int | None = None,
    margin: float = MARGIN,
) -> Plan:
    """Predict each stage's peak for every strategy, and choose. Needs no GPU, no weights, no network.

    model: as in `on_meta`. gpu_gb: GiB to fit into; default: all that `device` has. device: default is that of a
    pipeline, else the GPU if there is one, else the computer. size: of the picture, pixels; batch: timesteps per
    training step; left out, the model's own.
    For training, only the UNet that learns counts: all else is taken to wait in the computer's memory.
    Twelve counted steps, about 25 s in all for SD 1.4. Raises ValueError for a setting that can't be.
    """
    if device is None and isinstance(model, StableDiffusionPipeline):
        device = model.device
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    half = precision(device)
    if gpu_gb is not None:
        half = torch.float16 if half == torch.float32 else half  # a GPU that isn't here
    elif torch.device(device).type == "cuda":
        gpu_gb = torch.cuda.get_device_properties(device).total_memory / GIB
    else:
        gpu_gb = psutil.virtual_memory().total / GIB
    if not gpu_gb > 0:
        raise ValueError(f"gpu_gb is {gpu_gb}: give the GPU's memory in GiB, e.g. 14.75 for a T4")
    modules = on_meta(model)
    unet, vae, text_encoder = modules.values()
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    unit = factor * 2 ** (len(unet.config.block_out_channels) - 1)
    size = unet.config.sample_size * factor if size is None else size
    if size <= 0 or size % unit:
        raise ValueError(f"size is {size}: this model needs a multiple of {unit} pixels")
    kind, tokens = family(SimpleNamespace(unet=unet)), text_encoder.config.max_position_embeddings

    @cache
    def trained(stage: int, s: Strategy) -> tuple[int, int]:
        default = stage1_embedding.DEFAULTS if stage == 1 else stage2_finetuning.DEFAULTS[s.method]
        n = batch or default[kind]["batch"]
        return training_peak(unet, stage, s, batch=n, side=size // factor, tokens=tokens)

    @cache
    def sampled(dtype: torch.dtype) -> float:
        return (sampling_peak(modules, dtype, at_once=AT_ONCE[kind], side=size // factor) + checker_bytes(model)) / GIB

    def row(s: Strategy) -> Row:
        plain = replace(s, optimizer="Adam")
        peak, learning = trained(2, s if s.optimizer == "Adam in backward" else plain)
        second = (peak + learning * STATE_BYTES[s.optimizer]) / GIB
        return Row(s, trained(1, replace(plain, method="full"))[0] / GIB, second, sampled(s.dtype))

    rows = tuple(row(s) for s in tqdm(by_preference(half), desc="planning", leave=False))
    name = name_of(model) if isinstance(model, StableDiffusionPipeline) else str(model)
    return Plan(name, size, gpu_gb, margin, rows)
