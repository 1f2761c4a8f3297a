"""The picture's compressor: `AutoencoderKL`, 128x128 pixels <-> 16x16 latents of 4 channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from imagic_lab.toyworld.training import train

SCALING_FACTOR = 0.18215  # Stable Diffusion 1.4's; the latents are stretched until it is right
STEPS, LR, BATCH = 12_000, 8e-4, 4
KL_WEIGHT = 1e-4
LATENT_NOISE = 0.06  # at most, in standard deviations of the latents: samples are never quite on the spot


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


def saliency(x: Tensor) -> Tensor:
    """(n, 1, h, w): 1 on plain ground, up to 4 where a picture changes within a few pixels, as at eyes and collars."""
    soft = F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    return 1 + 3 * ((x - soft).abs().mean(dim=1, keepdim=True) / 0.25).clamp(max=1)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squares (what PSNR counts) and L1, both heavier on details, and L1 of the gradients (edges stay sharp)."""
    error, weight = output - target, saliency(target)
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return 8 * (weight * error.square()).mean() + 0.5 * (weight * error.abs()).mean() + 0.5 * edges


def train_vae(
    pictures: np.ndarray,
    held_back: np.ndarray,
    folder: Path,
    *,
    start_from: AutoencoderKL | None = None,
    steps=STEPS,
    seed=0,
    bf16=False,
    device="cpu",
):
    """Learn to compress pictures. A little noise in the latents makes the decoder forgiving.

    Returns (vae, history).
    """
    torch.manual_seed(seed)
    vae = (start_from or build()).to(device, memory_format=torch.channels_last)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(pictures), (BATCH,), generator=generator)
        x = to_tensor(pictures[which.numpy()]).to(device).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(device)
        amount = LATENT_NOISE / SCALING_FACTOR * torch.rand(len(z), 1, 1, 1, generator=generator)
        y = vae.decode(z + (amount * torch.randn(z.shape, generator=generator)).to(device)).sample.float()
        return reconstruction_loss(y, x) + KL_WEIGHT * divergence(posterior)

    def preview(model, path):
        save_rows(path, [to_tensor(held_back[:8]), reconstruct(model, to_tensor(held_back[:8]).to(device)).cpu()])

    history = train("vae", vae, loss_of, folder, steps=steps, lr=LR, ema=0.998, seed=seed, bf16=bf16, preview=preview)
    vae.eval().to("cpu", memory_format=torch.contiguous_format)
    stretch_latents(vae, to_tensor(pictures[:256]))
    return vae, history


def divergence(posterior) -> Tensor:
    """Kullback-Leibler divergence of the latents from a normal distribution of standard deviation 1 / 0.18215."""
    mean, variance = SCALING_FACTOR * posterior.mean.float(), SCALING_FACTOR**2 * posterior.var.float()
    return 0.5 * (mean.square() + variance - 1 - variance.log()).mean()


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
