"""The parts that all stages share: latents, noise, prediction target, loss, and a probe that makes runs comparable."""

from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # loss(prediction, target), both (n, 4, h, w) -> a number

PROBE_PAIRS = 8
PROBE_SEED = 20221017  # any fixed number; the day of the Imagic preprint


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, the loss of Imagic's eq. 2 and of diffusion models in general. Both (n, 4, h, w)."""
    return F.mse_loss(prediction, target)


def forward_process(pipe: StableDiffusionPipeline) -> DDPMScheduler:
    """The noise process (the betas) with which the model was trained, whatever sampler is set for generation."""
    return DDPMScheduler.from_config(pipe.scheduler.config)


@torch.no_grad()
def encode_image(pipe: StableDiffusionPipeline, image: Tensor) -> Tensor:
    """z = scaling factor * E(x): (1, 3, size, size) in [-1, 1] -> latents (1, 4, size / 8, size / 8)."""
    return pipe.vae.encode(image.to(pipe.vae.dtype)).latent_dist.mode() * pipe.vae.config.scaling_factor


@torch.no_grad()
def decode_latents(pipe: StableDiffusionPipeline, latents: Tensor) -> Tensor:
    """The inverse of `encode_image`, up to what the VAE loses; clamped to [-1, 1]."""
    return pipe.vae.decode(latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)


def stratified_timesteps(count: int, total: int, generator: torch.Generator, bias: float = 0.0) -> Tensor:
    """Draw `count` timesteps, one from each equal part of [0, total), so that they cover it evenly and the loss is less
    noisy. count = 1 is the paper's uniform choice. bias: above 0, late timesteps (much noise) come more often, with a
    density proportional to t^bias."""
    position = (torch.arange(count) + torch.rand(count, generator=generator)) * total / count
    if bias:
        position = total * (position / total) ** (1 / (1 + bias))  # the inverse of (t / total)^(1 + bias)
    return position.long().clamp(max=total - 1)


def noised(process: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Imagic eq. 1: return z_t = √ᾱ_t z + √(1 - ᾱ_t) ε, and the target that the UNet should predict: ε, or v."""
    z_t = process.add_noise(latents, noise, timesteps)
    kind = process.config.prediction_type
    if kind == "epsilon":
        return z_t, noise
    if kind == "v_prediction":
        return z_t, process.get_velocity(latents, noise, timesteps)
    raise ValueError(f"a model that predicts {kind!r} is not supported: epsilon and v_prediction are")


def denoising_loss(unet: UNet2DConditionModel, process: DDPMScheduler, latents: Tensor, embedding: Tensor, batch: int,
                   generator: torch.Generator, loss: Loss = mse, bias: float = 0.0) -> Tensor:  # fmt: skip
    """Imagic's eq. 2: E_{t,ε} ‖ε - f_θ(z_t, t, e)‖², over a batch of stratified timesteps.

    latents: (1 or batch, 4, h, w). embedding: (1 or batch, tokens, width). Both can be more precise than the UNet."""
    t = stratified_timesteps(batch, process.config.num_train_timesteps, generator, bias).to(latents.device)
    noise = torch.randn((batch, *latents.shape[1:]), generator=generator).to(latents)
    z_t, target = noised(process, latents.expand(batch, -1, -1, -1), noise, t)
    e = embedding.expand(batch, -1, -1)
    return loss(at_least_float32(unet(z_t.to(unet.dtype), t, e.to(unet.dtype)).sample), at_least_float32(target))


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32: a loss in half precision would have only three digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Probe:
    """The probe loss of one picture, which is the mean squared error for fixed noise at fixed timesteps."""

    def __init__(self, process: DDPMScheduler, latents: Tensor, pairs: int = PROBE_PAIRS):
        generator = torch.Generator().manual_seed(PROBE_SEED)
        total = process.config.num_train_timesteps
        self.t = ((torch.arange(pairs) + 0.5) * total / pairs).long().to(latents.device)
        noise = torch.randn((pairs, *latents.shape[1:]), generator=generator).to(latents)
        self.z_t, self.target = noised(process, latents.expand(pairs, -1, -1, -1), noise, self.t)

    @torch.no_grad()
    def __call__(self, unet: UNet2DConditionModel, embedding: Tensor) -> float:
        total = 0.0
        for z_t, t, target in zip(self.z_t.split(4), self.t.split(4), self.target.split(4), strict=True):
            e = embedding.expand(len(t), -1, -1).to(unet.dtype)
            answer = unet(z_t.to(unet.dtype), t, e).sample
            total += F.mse_loss(at_least_float32(answer), at_least_float32(target)).item() * len(t)
        return total / len(self.t)


@contextmanager
def frozen(*modules: torch.nn.Module):
    """A context in which the weights of these modules need no gradients. On exit, their flags are restored."""
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
