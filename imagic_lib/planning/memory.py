"""What will fit, before it runs, by the peak memory of every stage, counted on tensors without contents."""

import copy
import json
import weakref
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

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
from imagic_lib.models import DATA, TINY, checked_side, family, name_of
from imagic_lib.stage4_inference import AT_ONCE, guided
from imagic_lib.training.strategies import OPTIMIZERS, Strategy, precision
from imagic_lib.unets import LoRA, add_lora

GIB = 2**30
MARGIN = 3.0  # GiB: real CUDA runs exceed the counted peak by 1.7 to 3 (context, workspaces, fragments)
STATE_BYTES = {"Adam": 8, "Adam in backward": 8, "Adam 8-bit": 2}  # both moments of one learning number
SAFETY_CHECKER = 1_215_981_830  # bytes of SD 1.4's own, in float32
SD_1_4 = DATA / "stable-diffusion-v1-4"  # its shapes, without weights
PARTS = ("unet", "vae", "text_encoder")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all living storages: `now`, and the largest number so far, `peak`."""

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


class Way(NamedTuple):
    """One way to train, `run_edit(..., method=way.method, run=Run(strategy=way.strategy))`, and the peak of each stage
    in GiB, without margin."""

    method: str  # "full" or "lora", as in `fine_tune`
    strategy: Strategy
    embedding: float = 0.0
    fine_tuning: float = 0.0
    sampling: float = 0.0

    @property
    def name(self) -> str:
        method, dtype = "LoRA" if self.method == "lora" else self.method, str(self.strategy.dtype)[6:]
        return ", ".join([method, dtype, self.strategy.optimizer] + ["checkpointing"] * self.strategy.checkpointing)

    @property
    def usable(self) -> bool:
        """Is everything installed that it needs?"""
        return self.strategy.optimizer != "Adam 8-bit" or find_spec("bitsandbytes") is not None

    @property
    def peak(self) -> float:
        return max(self.embedding, self.fine_tuning, self.sampling)


def ways_by_preference(half: torch.dtype = torch.float16) -> list[Way]:
    """All ways, the preferred first. half: of the weights under a LoRA (`strategies.precision`)."""
    kinds = [("full", torch.float32, optimizer) for optimizer in OPTIMIZERS] + [("lora", half, "Adam")]
    return [Way(method, Strategy(*how, checkpointing)) for method, *how in kinds for checkpointing in (False, True)]


class Plan(NamedTuple):
    """All ways, the preferred first; print it. size: pixels. gpu_gb: GiB; MARGIN stays free."""

    model: str
    size: int
    gpu_gb: float
    ways: list[Way]

    def fits(self, way: Way) -> bool:
        return way.peak + MARGIN <= self.gpu_gb

    def fitting(self, method: str | None = None) -> list[Way]:
        """The ways that fit and can be used here, of one method or of all."""
        return [way for way in self.ways if way.usable and self.fits(way) and method in (None, way.method)]

    @property
    def chosen(self) -> Way | None:
        """The first way that fits; None if none does."""
        return next(iter(self.fitting()), None)

    @property
    def advice(self) -> str:
        """One sentence: what to use, or what to do if nothing fits."""
        if self.chosen:
            return f"chosen: {self.chosen.name}"
        least = min(way.peak for way in self.ways if way.usable) + MARGIN
        smaller = 'take a larger GPU, or the model "tiny"'
        return f"nothing fits into {self.gpu_gb:.2f} GiB, the least is {least:.2f} with the margin: {smaller}"

    def __str__(self) -> str:
        title = f"{self.model}, {self.size} x {self.size} pixels, {self.gpu_gb:.2f} GiB of memory"
        lines = [f"{title}, of which {MARGIN:g} stay free", f"{'peak of each stage, GiB':50}  1    2   3+4"]
        for way in self.ways:
            mark = "→" if way == self.chosen else " "
            peaks = f"{way.embedding:5.2f} {way.fine_tuning:5.2f} {way.sampling:5.2f}"
            verdict = ("fits" if self.fits(way) else "does not fit") + ", needs bitsandbytes" * (not way.usable)
            lines.append(f"{mark} {way.name:46} {peaks}  {verdict}")
        return "\n".join([*lines, self.advice])


def advice_after(method: str, strategy: Strategy | None, device: torch.device) -> str:
    """The sentence for a training that ran out of memory on this device: what to try next, of those that `plan` shows.
    A LoRA in float32 is in no GPU's plan: after it comes the first LoRA, whose weights are half as large."""
    order, now = ways_by_preference(precision(device)), strategy or Strategy()
    if method == "lora" and now.dtype != torch.float32:
        now = replace(now, dtype=precision(device))  # planned for another GPU
    known = Way(method, now)
    at = order.index(known) + 1 if known in order else next(k for k, way in enumerate(order) if way.method == "lora")
    smaller = next((way for way in order[at:] if way.usable), None)
    advice = f"try the strategy “{smaller.name}”" if smaller else "only a larger GPU will do"
    return f"the GPU is out of memory: {advice} (imagic_lib.planning.memory.plan shows all)"


def folder_of(model: str | Path) -> Path:
    """Where the configurations of a model are: a folder, "tiny", or SD 1.x by its hub id, without a download. Raises
    ValueError or FileNotFoundError in one sentence for any other."""
    folder = TINY if str(model) == "tiny" else Path(model).expanduser()
    if folder == TINY and not folder.is_dir():
        raise FileNotFoundError(f"the embedded model is missing: there is no {folder}; clone again")
    if folder.is_dir():
        return folder
    if "/stable-diffusion-v1-" in str(model):
        return SD_1_4
    raise ValueError(f'no plan for {model!r}: give "tiny", "CompVis/stable-diffusion-v1-4", a folder or a pipeline')


def on_meta(model: StableDiffusionPipeline | str | Path) -> dict[str, nn.Module]:
    """{"unet", "vae", "text_encoder"} with shapes and no contents, of a pipeline or of a model as in `folder_of`."""
    if isinstance(model, StableDiffusionPipeline):
        unet, vae, text = model.unet.config, model.vae.config, model.text_encoder.config.to_dict()
    else:
        folder = folder_of(model)
        try:
            unet, vae, text = (json.loads((folder / part / "config.json").read_text()) for part in PARTS)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is not a complete diffusers model: {error}") from error
        unet["sample_size"] = checked_side(str(model), unet, vae)
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(unet), AutoencoderKL.from_config(vae)
        return {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(CLIPTextConfig(**text))}


def faked(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Inside a FakeTensorMode: meta parameters become fake ones, which `.to(dtype)` can't do. LoRA stays float32."""
    for name, part in module.named_modules():
        for key, p in part._parameters.items():
            if p is not None:
                weights = torch.empty(p.shape, dtype=torch.float32 if "lora_" in name else dtype)
                part._parameters[key] = nn.Parameter(weights, requires_grad=p.requires_grad)
    return module


def training_peak(
    unet: nn.Module, stage: int, way: Way, *, batch=1, side=64, tokens=77, lora=LoRA()
) -> tuple[int, int]:
    """One step of stage 1 or 2, by the stages' own `denoising_loss`: (bytes at its peak, without the optimizer's
    moments; numbers that learn). unet: on the meta device, stays as it is. side: of the latents."""
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
    """Bytes at the peak of stages 3 and 4: guidance with a batch of 2 x at_once, then the VAE, picture by picture.
    The tuned UNet has the given dtype, the rest of the pipeline float32; `encode_image` and the probe need less."""
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


def checker_bytes(model: StableDiffusionPipeline | str | Path) -> int:
    """Bytes of the model's safety checker on the device while pictures are drawn."""
    if isinstance(model, StableDiffusionPipeline):
        return sum(p.nbytes for p in model.safety_checker.parameters()) if model.safety_checker else 0
    if (folder := folder_of(model)) == SD_1_4:
        return SAFETY_CHECKER
    files = (folder / "safety_checker").glob("*.safetensors")
    return sum(file.stat().st_size for file in files if "fp16" not in file.name)


def plan(model: StableDiffusionPipeline | str | Path = "tiny", gpu_gb: float | None = None,
         device: torch.device | str | None = None) -> Plan:  # fmt: skip
    """Predict each stage's peak for every way of training, and choose. Needs no GPU, no weights, no network.

    model: as in `on_meta`. gpu_gb: GiB to fit into; default: all that `device` has. device: default is that of a
    pipeline, else the GPU if there is one, else the computer. For training, only the UNet that learns counts: the other
    networks are offloaded to the computer's memory. Twelve counted steps, about 25 s in all for SD 1.4. Raises
    ValueError for an invalid setting."""
    if device is None and isinstance(model, StableDiffusionPipeline):
        device = model.device
    gpu_gb, half = room(gpu_gb, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    modules = on_meta(model)
    unet, vae, text_encoder = modules.values()
    side, size = unet.config.sample_size, unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    kind, tokens = family(SimpleNamespace(unet=unet)), text_encoder.config.max_position_embeddings

    @cache
    def trained(stage: int, way: Way) -> tuple[int, int]:
        defaults = stage1_embedding.DEFAULTS if stage == 1 else stage2_finetuning.DEFAULTS[way.method]
        return training_peak(unet, stage, way, batch=defaults[kind]["batch"], side=side, tokens=tokens)

    @cache
    def sampled(dtype: torch.dtype) -> float:
        return (sampling_peak(modules, dtype, at_once=AT_ONCE[kind], side=side) + checker_bytes(model)) / GIB

    def counted(way: Way) -> Way:
        strategy, plain = way.strategy, replace(way.strategy, optimizer="Adam")
        peak, learning = trained(2, way if strategy.optimizer == "Adam in backward" else Way(way.method, plain))
        second = (peak + learning * STATE_BYTES[strategy.optimizer]) / GIB
        return Way(way.method, strategy, trained(1, Way("full", plain))[0] / GIB, second, sampled(strategy.dtype))

    ways = [counted(way) for way in tqdm(ways_by_preference(half), desc="planning", leave=False)]
    name = name_of(model) if isinstance(model, StableDiffusionPipeline) else str(model)
    return Plan(name, size, gpu_gb, ways)


def room(gpu_gb: float | None, device: torch.device) -> tuple[float, torch.dtype]:
    """(GiB to fit into, the half precision there): of the device, or of a GPU that isn't here, with so many GiB."""
    half = precision(device)
    if gpu_gb is None:
        cuda = device.type == "cuda"
        total = torch.cuda.get_device_properties(device).total_memory if cuda else psutil.virtual_memory().total
        return total / GIB, half
    if not gpu_gb > 0:
        raise ValueError(f"gpu_gb is {gpu_gb}: give the GPU's memory in GiB, e.g. 14.75 for a T4")
    return gpu_gb, torch.float16 if half == torch.float32 else half
