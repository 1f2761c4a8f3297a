"""A head for the UNet that predicts a distribution for each number of the noise: what `losses.hl_gauss` needs."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from imagic_lab.experiments.losses import bin_centres, expectation, gaussian_logits
from imagic_lib.models import DATA
from imagic_lib.stage2_finetuning import with_unet
from imagic_lib.training.checkpoints import load_tensors, save_tensors

HEAD = DATA / "hl-gauss" / "head.safetensors"  # trained for tiny-sd: imagic_lab/numbers/hl_gauss_head.py


class DistributionHead(nn.Module):
    """In the place of a UNet's `conv_out`: (n, width, h, w) -> (n, 4, h, w), with logits for every bin beside it.

    logits = sharpness · those of the Gaussian around the old prediction + shape. Sharpness (a number for each
    prediction) starts at 1 and shape (a number for each bin) at 0. So it starts as the same model, read as a
    distribution, and learns what a Gaussian of one width can't say. What it returns is the distribution's mean:
    sampling, the probe and every other loss see an ordinary UNet.
    """

    def __init__(self, conv_out: nn.Conv2d):
        super().__init__()
        self.bins = len(bin_centres(conv_out.weight))
        self.guess = copy.deepcopy(conv_out)
        self.learned = nn.ModuleDict(
            {
                "sharpness": zero_convolution(conv_out, conv_out.out_channels),
                "shape": zero_convolution(conv_out, conv_out.out_channels * self.bins),
            }
        )

    def forward(self, features: Tensor) -> Tensor:
        sharpness = self.learned["sharpness"](features).exp()[..., None]
        shape = self.learned["shape"](features).unflatten(1, (-1, self.bins)).movedim(2, -1)
        return expectation(sharpness * gaussian_logits(self.guess(features)) + shape)


def zero_convolution(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A convolution that looks at the same places, with so many output channels, all weights zero."""
    place = {"dtype": conv.weight.dtype, "device": conv.weight.device}
    other = nn.Conv2d(conv.in_channels, channels, conv.kernel_size, padding=conv.padding, **place)
    for weight in other.parameters():
        nn.init.zeros_(weight)
    return other


def with_distribution(pipe: StableDiffusionPipeline, learned: bool = True) -> StableDiffusionPipeline:
    """A pipeline whose UNet, a copy, predicts distributions; `pipe` stays as it was, its other parts are shared.

    learned: with the head that was trained for the embedded model; raises ValueError for another model.
    False: any model, with the Gaussian around its own prediction, all of one width. Taught in
    notebooks/09_cross_entropy.ipynb.
    """
    unet = copy.deepcopy(pipe.unet)
    head = DistributionHead(unet.conv_out)
    if learned:
        load_head(head)
    unet.conv_out = head
    return with_unet(pipe, unet)


def hash_of(weights: Tensor) -> str:
    """Sixteen hexadecimal digits that stand for these very numbers."""
    return hashlib.sha256(weights.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def save_head(head: DistributionHead, path: Path, facts: dict) -> None:
    """What was learned alone, in half precision, and for which model it was trained."""
    half = {name: weight.half() for name, weight in head.learned.state_dict().items()}
    save_tensors(path, half, facts | {"model": hash_of(head.guess.weight.float())})


def load_head(head: DistributionHead, path: Path = HEAD) -> dict:
    """Put what a trained head learned into the head; returns the facts that were saved with it.

    Raises ValueError if it was trained for another model, or if the file is damaged."""
    tensors, facts = load_tensors(path)
    if facts["model"] != hash_of(head.guess.weight.float()):
        raise ValueError(f"the head in {path.name} was trained for another model: use with_distribution(learned=False)")
    with torch.no_grad():
        for name, weight in head.learned.state_dict().items():
            weight.copy_(tensors[name])
    return facts
