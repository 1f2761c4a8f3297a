"""Predict, before anything runs, the peak memory of each stage for every way of training, and choose one that fits."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from imagic_lib.models import DATA, TINY, checked_side, family, name_of
from imagic_lib.training.strategies import OPTIMIZERS, Strategy, precision

GIB = 2**30
MARGIN = 3.0  # GiB; real CUDA runs exceed the counted peak by 1.7 to 3 (context, workspaces, fragments)
PEAKS = DATA / "memory.json"  # for each kind of model and way, counted tensor by tensor by imagic_lab/numbers/memory.py
SD_1_4 = DATA / "stable-diffusion-v1-4"  # its shapes, without weights
PARTS = ("unet", "vae", "text_encoder")


class Way(NamedTuple):
    """A way to train, as in `run_edit(..., method=way.method, run=Run(strategy=way.strategy))`, and the peak memory of
    each stage in GiB, without the margin."""

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
        """Whether everything that it needs is installed."""
        return self.strategy.optimizer != "Adam 8-bit" or find_spec("bitsandbytes") is not None

    @property
    def peak(self) -> float:
        return max(self.embedding, self.fine_tuning, self.sampling)


def ways_by_preference(half: torch.dtype = torch.float16) -> list[Way]:
    """Return all ways, the preferred ones first. half: dtype of the weights under a LoRA (`strategies.precision`)."""
    kinds = [("full", torch.float32, optimizer) for optimizer in OPTIMIZERS] + [("lora", half, "Adam")]
    return [Way(method, Strategy(*how, checkpointing)) for method, *how in kinds for checkpointing in (False, True)]


class Plan(NamedTuple):
    """All ways, the preferred ones first; print it. size: in pixels. gpu_gb: in GiB; MARGIN stays free."""

    model: str
    size: int
    gpu_gb: float
    ways: list[Way]

    def fits(self, way: Way) -> bool:
        return way.peak + MARGIN <= self.gpu_gb

    def fitting(self, method: str | None = None) -> list[Way]:
        """Return the ways that fit and can be used here, for one method or for all."""
        return [way for way in self.ways if way.usable and self.fits(way) and method in (None, way.method)]

    @property
    def chosen(self) -> Way | None:
        """The first way that fits, or None."""
        return next(iter(self.fitting()), None)

    @property
    def advice(self) -> str:
        """One sentence that says what to use, or what to do if nothing fits."""
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


def on_meta(model: str | Path) -> dict[str, nn.Module]:
    """Return {"unet", "vae", "text_encoder"} with shapes but without weights, for a folder, "tiny", or the hub id of
    Stable Diffusion 1.x (nothing is downloaded). Raises ValueError, in one sentence, for any other model."""
    folder = TINY if str(model) == "tiny" else Path(model).expanduser()
    folder = SD_1_4 if "/stable-diffusion-v1-" in str(model) and not folder.is_dir() else folder
    try:
        unet, vae, text = (json.loads((folder / part / "config.json").read_text()) for part in PARTS)
    except (OSError, ValueError) as error:
        known = '"tiny", "CompVis/stable-diffusion-v1-4" or a folder'
        raise ValueError(f"{str(model)!r} is not a complete diffusers model ({error}): give {known}") from error
    unet["sample_size"] = checked_side(str(model), unet, vae)
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(unet), AutoencoderKL.from_config(vae)
        return {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(CLIPTextConfig(**text))}


def plan(model: StableDiffusionPipeline | str | Path = "tiny", gpu_gb: float | None = None) -> Plan:
    """Predict the peak memory of each stage for every way of training, without a GPU, weights or network, and choose.

    model: a pipeline, or as in `on_meta`. The figures are those of its kind (the embedded model, or Stable Diffusion
    1.4 at 512 pixels). gpu_gb: GiB to fit into; by default the memory of the pipeline's device or, without a pipeline,
    that of the GPU if there is one, else the computer's. In training, only the UNet that learns counts, because the
    other networks are offloaded to the computer's memory. Raises ValueError for an invalid setting."""
    if isinstance(model, StableDiffusionPipeline):
        unet, vae, device, name = model.unet, model.vae, model.device, name_of(model)
    else:
        (unet, vae, _), name = on_meta(model).values(), str(model)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = precision(device)
    if gpu_gb is None:
        cuda = device.type == "cuda"
        total = torch.cuda.get_device_properties(device).total_memory if cuda else psutil.virtual_memory().total
        gpu_gb = total / GIB
    elif not gpu_gb > 0:
        raise ValueError(f"gpu_gb is {gpu_gb}: give the GPU's memory in GiB, e.g. 14.75 for a T4")
    elif half == torch.float32:
        half = torch.float16  # for a GPU that isn't here
    size = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    peaks = json.loads(PEAKS.read_text())[family(SimpleNamespace(unet=unet))]
    ways = [Way(*way[:2], *peaks[way.name.replace("bfloat16", "float16")]) for way in ways_by_preference(half)]
    return Plan(name, size, gpu_gb, ways)
