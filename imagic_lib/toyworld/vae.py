"""The picture's compressor: `AutoencoderKL`, 128x128 pixels <-> 16x16 latents of 4 channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from imagic_lib.toyworld.training import train

SCALING_FACTOR = 0.18215  # Stable Diffusion 1.4's; the latents are stretched until it is right
STEPS, LR, BATCH, CROP = 8000, 2e-3, 16, 64
KL_WEIGHT = 2e-4


def build() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=SCALING_FACTOR,
    )


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) float in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def crops(pictures: np.ndarray, generator: torch.Generator, count: int, size: int) -> Tensor:
    """Random squares: a convolutional network learns the whole from parts, at a quarter of the cost."""
    which = torch.randint(len(pictures), (count,), generator=generator)
    room = pictures.shape[1] - size
    corners = torch.randint(room + 1, (count, 2), generator=generator) if room else [(0, 0)] * count
    cut = [pictures[i, y : y + size, x : x + size] for i, (y, x) in zip(which, corners, strict=True)]
    return to_tensor(np.stack(cut))


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + squares (what PSNR counts) + L1 of the gradients (edges stay sharp)."""
    error = output - target
    edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
    return error.abs().mean() + 2 * error.square().mean() + edges


def train_vae(pictures: np.ndarray, held_back: np.ndarray, folder: Path, *, steps=STEPS, seed=0, bf16=False):
    """Learn to compress; the last 15 % of the steps see whole pictures. Returns (vae, history)."""
    torch.manual_seed(seed)
    vae = build().to(memory_format=torch.channels_last)
    whole_from = int(0.85 * steps)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        whole = step >= whole_from
        x = crops(pictures, generator, BATCH // 4 if whole else BATCH, 128 if whole else CROP)
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator)).sample.float()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).float().mean()
        return reconstruction_loss(y, x) + KL_WEIGHT * kl

    def preview(model, path):
        save_rows(path, [to_tensor(held_back[:8]), reconstruct(model, to_tensor(held_back[:8]))])

    history = train("vae", vae, loss_of, folder, steps=steps, lr=LR, seed=seed, bf16=bf16, preview=preview)
    vae.eval().to(memory_format=torch.contiguous_format)
    stretch_latents(vae, to_tensor(pictures[:256]))
    return vae, history


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """(n, 3, h, w) in [-1, 1] through the bottleneck and back, clamped."""
    return vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)


@torch.no_grad()
def stretch_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Make the latents' standard deviation 1 / 0.18215 without changing any reconstruction:
    scale the last layer before the bottleneck and, inversely, the first one after it."""
    factor = 1 / (SCALING_FACTOR * vae.encode(pictures).latent_dist.mode().std())
    channels = vae.config.latent_channels
    vae.quant_conv.weight[:channels] *= factor
    vae.quant_conv.bias[:channels] *= factor
    vae.quant_conv.bias[channels:] += 2 * torch.log(factor)
    vae.post_quant_conv.weight /= factor


@torch.no_grad()
def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB; inputs in [-1, 1]."""
    return -10 * torch.log10(F.mse_loss(a / 2, b / 2, reduction="none").mean(dim=(1, 2, 3)).clamp(min=1e-10))


def save_rows(path: Path, rows: list[Tensor]) -> None:
    """Rows of pictures in [-1, 1] under each other as one PNG or JPEG."""
    from PIL import Image

    sheet = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
    array = ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(path, quality=90)  # of a JPEG
