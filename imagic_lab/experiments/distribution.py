"""A UNet head that predicts a distribution for each number of the noise, for `losses.hl_gauss`."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from imagic_lab.experiments.losses import bin_centres, expectation, gaussian_logits
from imagic_lib.files import load_tensors
from imagic_lib.models import DATA
from imagic_lib.unets import with_unet

HEAD_FILE = DATA / "hl-gauss" / "head.safetensors"  # trained for tiny-sd by imagic_lab/numbers/hl_gauss_head.py


class DistributionHead(nn.Module):
    """Replaces a UNet's `conv_out`: (n, width, h, w) -> (n, 4, h, w), with the logits of every bin as an attribute.

    logits = sharpness · (logits of the Gaussian around the old prediction) + shape. Sharpness, a number for each
    prediction, starts at 1; shape, a number for each bin, starts at 0. So the head begins as the loaded model, read as
    a distribution, and learns what a Gaussian of fixed width can't express. It returns the mean of the distribution, so
    for sampling, the probe and all other losses the UNet is an ordinary one.
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
    """Make a convolution of the same size with another number of output channels, and with all weights zero."""
    place = {"dtype": conv.weight.dtype, "device": conv.weight.device}
    other = nn.Conv2d(conv.in_channels, channels, conv.kernel_size, padding=conv.padding, **place)
    for weight in other.parameters():
        nn.init.zeros_(weight)
    return other


def with_distribution(pipe: StableDiffusionPipeline, learned: bool = True) -> StableDiffusionPipeline:
    """Return a pipeline with a copy of the UNet that predicts distributions. All other parts are shared with `pipe`.

    learned: True uses the head that was trained for the embedded model, and raises ValueError for another model. False
    works with any model, and predicts a Gaussian of fixed width around its prediction. Taught in
    notebooks/09_cross_entropy.ipynb.
    """
    unet = copy.deepcopy(pipe.unet)
    head = DistributionHead(unet.conv_out)
    if learned:
        load_head(head)
    unet.conv_out = head
    return with_unet(pipe, unet)


def hash_of(weights: Tensor) -> str:
    """Return sixteen hexadecimal digits that identify these numbers."""
    return hashlib.sha256(weights.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def load_head(head: DistributionHead, path: Path = HEAD_FILE) -> dict:
    """Load the weights of a trained head, and return the facts saved with them. Raises ValueError if it was trained for
    another model, or if the file is damaged."""
    tensors, facts = load_tensors(path)
    if facts["model"] != hash_of(head.guess.weight.float()):
        raise ValueError(f"the head in {path.name} was trained for another model: use with_distribution(learned=False)")
    with torch.no_grad():
        for name, weight in head.learned.state_dict().items():
            weight.copy_(tensors[name])
    return facts
