"""The UNet, which removes noise from 16x16 latents: a `UNet2DConditionModel`, guided by the text in cross-attention."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.training_utils import compute_snr
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from imagic_lab.toyworld.clip import EMBEDDING_WIDTH, tokenize
from imagic_lab.toyworld.dataset import to_batch
from imagic_lab.toyworld.scene import Scene
from imagic_lab.toyworld.training import train_network
from imagic_lab.toyworld.vae import SCALING_FACTOR
from imagic_lib.diffusion import noised, stratified_timesteps

STEPS, LR, BATCH = 40_000, 7e-4, 32
EMPTY_CAPTIONS = 0.1  # the share that is trained without text, for classifier-free guidance
MIN_SNR = 5.0  # γ in Hang et al. 2023, arXiv 2303.09556, which limits the weight of nearly noiseless timesteps


def build_unet() -> UNet2DConditionModel:
    """Build the UNet with random weights. More attention, at 16x16, would cost a third more and improve little."""
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=EMBEDDING_WIDTH,
        norm_num_groups=16,
    )


def scheduler() -> DPMSolverMultistepScheduler:
    """Make a sampler on Stable Diffusion 1.4's noise schedule. It adds new noise at every step, so that later steps can
    correct the errors of earlier ones (compared in data/tiny-sd/README.md)."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        timestep_spacing="leading",
        algorithm_type="sde-dpmsolver++",
    )


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Encode pictures (n, 128, 128, 3) uint8: means and standard deviations of scaled latents, (n, 4, 16, 16) each."""
    parts = []
    for start in range(0, len(pictures), batch):
        posterior = vae.encode(to_batch(pictures[start : start + batch])).latent_dist
        parts.append((SCALING_FACTOR * posterior.mean, SCALING_FACTOR * posterior.std))
    means, deviations = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(deviations)


def train_unet(latents: tuple[Tensor, Tensor], scenes: list[Scene], tokenizer: CLIPTokenizer,
               text_encoder: CLIPTextModel, folder: Path, *, steps=STEPS,
               start_from: UNet2DConditionModel | None = None, seed=0, device="cpu"):  # fmt: skip
    """Learn to predict the noise in noised latents, given their captions. Returns (unet, history).

    latents: those of the drawings of `scenes`, from `encode_all`. start_from: a UNet to train further, in place; None
    starts from random weights.
    """
    torch.manual_seed(seed)
    unet = (start_from or build_unet()).requires_grad_(True).to(device, memory_format=torch.channels_last)
    if unet.device.type == "cpu":  # with so few tokens, plain products are a fifth faster than the fused kernel
        unet.set_attn_processor(AttnProcessor())
    text_encoder = text_encoder.eval().requires_grad_(False).to(device)
    process = DDPMScheduler.from_config(scheduler().config)
    means, deviations = latents

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(scenes), (BATCH,), generator=generator)
        empty = torch.rand(BATCH, generator=generator) < EMPTY_CAPTIONS
        captions = [scenes[i].caption(step * BATCH + k) for k, i in enumerate(which.tolist())]
        captions = ["" if no_text else text for no_text, text in zip(empty.tolist(), captions, strict=True)]
        with torch.no_grad():
            text = text_encoder(tokenize(tokenizer, captions).to(device)).last_hidden_state
        x0 = means[which] + deviations[which] * torch.randn(means[which].shape, generator=generator)
        x0, noise = x0.to(device), torch.randn(x0.shape, generator=generator).to(device)
        # one timestep from each of BATCH equal strata, so that every batch covers the whole process
        t = stratified_timesteps(BATCH, process.config.num_train_timesteps, generator).to(device)
        x_t, target = noised(process, x0, noise, t)
        error = (unet(x_t, t, text).sample.float() - target).square().mean(dim=(1, 2, 3))
        return (error * (MIN_SNR / compute_snr(process, t)).clamp(max=1.0)).mean()

    about = {"latents": hashlib.sha256(b"".join(part.numpy().tobytes() for part in latents)).hexdigest()[:16]}
    how = {"steps": steps, "lr": LR, "ema": 0.999, "seed": seed}
    history = train_network("unet", unet, loss_of, folder, about=about, **how)
    unet.set_attn_processor(AttnProcessor2_0())
    return unet.eval().to("cpu", memory_format=torch.contiguous_format), history
