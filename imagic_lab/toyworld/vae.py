"""The VAE, which compresses pictures: an `AutoencoderKL`, 128x128 pixels <-> 16x16 latents of 4 channels."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from imagic_lab.toyworld.dataset import to_batch
from imagic_lab.toyworld.training import train_network

SCALING_FACTOR = 0.18215  # as in Stable Diffusion 1.4; `stretch_latents` makes it right for these latents
STEPS, LR, BATCH = 12_000, 8e-4, 4
KL_WEIGHT = 1e-4
LATENT_NOISE = 0.06  # at most, in standard deviations of the latents, because samples are never exact


def build_vae() -> AutoencoderKL:
    """Build the VAE with random weights."""
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


def saliency(x: Tensor) -> Tensor:
    """Return weights (n, 1, h, w): 1 in plain areas, up to 4 where colours change within a few pixels, as at an eye."""
    soft = F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    return 1 + 3 * ((x - soft).abs().mean(dim=1, keepdim=True) / 0.25).clamp(max=1)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Add the squared error (for PSNR) and L1, both weighted by `saliency`, and L1 of the gradients for sharp edges."""
    error, weight = output - target, saliency(target)
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return 8 * (weight * error.square()).mean() + 0.5 * (weight * error.abs()).mean() + 0.5 * edges


def train_vae(
    pictures: np.ndarray, folder: Path, *, start_from: AutoencoderKL | None = None, steps=STEPS, seed=0, device="cpu"
):
    """Learn to compress pictures (n, 128, 128, 3) uint8. Returns (vae, history).

    A little noise in the latents makes the decoder robust. start_from: a VAE to train further, in place; None starts
    from random weights.
    """
    torch.manual_seed(seed)
    vae = (start_from or build_vae()).requires_grad_(True).to(device, memory_format=torch.channels_last)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(pictures), (BATCH,), generator=generator)
        x = to_batch(pictures[which.numpy()]).to(device).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(device)
        amount = LATENT_NOISE / SCALING_FACTOR * torch.rand(len(z), 1, 1, 1, generator=generator)
        y = vae.decode(z + (amount * torch.randn(z.shape, generator=generator)).to(device)).sample.float()
        return reconstruction_loss(y, x) + KL_WEIGHT * divergence(posterior)

    history = train_network("vae", vae, loss_of, folder, steps=steps, lr=LR, ema=0.998, seed=seed)
    vae.eval().to("cpu", memory_format=torch.contiguous_format)
    stretch_latents(vae, to_batch(pictures[:256]))
    return vae, history


def divergence(posterior) -> Tensor:
    """Kullback-Leibler divergence of the latents from a normal distribution with standard deviation 1 / 0.18215."""
    mean, variance = SCALING_FACTOR * posterior.mean.float(), SCALING_FACTOR**2 * posterior.var.float()
    return 0.5 * (mean.square() + variance - 1 - variance.log()).mean()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Encode and decode pictures (n, 3, h, w) in [-1, 1], and clamp them to [-1, 1]."""
    return vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)


@torch.no_grad()
def stretch_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Give the latents of pictures (n, 3, h, w) a standard deviation of 1 / 0.18215, and leave all pictures unchanged.
    Scales the last layer before the bottleneck, and the first one after it inversely, in place."""
    factor = 1 / (SCALING_FACTOR * vae.encode(pictures).latent_dist.mode().std())
    channels = vae.config.latent_channels
    vae.quant_conv.weight[:channels] *= factor
    vae.quant_conv.bias[:channels] *= factor
    vae.quant_conv.bias[channels:] += 2 * torch.log(factor)
    vae.post_quant_conv.weight /= factor


def reconstruct_pixels(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 32) -> np.ndarray:
    """Encode and decode pictures (n, 128, 128, 3) uint8. Returns them in the same form."""
    parts = []
    for start in range(0, len(pictures), batch):
        rebuilt = reconstruct(vae, to_batch(pictures[start : start + batch]))
        parts.append(((rebuilt + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def psnr_per_picture(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair of pictures in dB, (n,). a, b: (n, 3, h, w) in [-1, 1]."""
    return -10 * torch.log10((a / 2 - b / 2).square().mean(dim=(1, 2, 3)).clamp(min=1e-10))
