"""Train the head for HL-Gauss: the UNet of tiny-sd stays as it is, the head learns what shape its doubt has.

python -m imagic_lab.numbers.hl_gauss_head         # about 4 minutes on 1 core; writes data/hl-gauss/head.safetensors
"""

from __future__ import annotations

import numpy as np
import torch

import imagic_lib as imagic
from imagic_lab.experiments import distribution, losses
from imagic_lab.numbers.report import README, ROOT, put, table
from imagic_lab.toyworld import dataset, unet
from imagic_lab.toyworld.training import train
from imagic_lib.diffusion import forward_process, frozen, noised, stratified_timesteps
from imagic_lib.training.checkpoints import load_tensors, save_tensors

SCENES, HELD_BACK, STEPS, LR, BATCH = 800, 96, 300, 3e-3, 16
RUNS = ROOT / "runs" / "hl-gauss"


@torch.no_grad()
def latents_of(pipe, scenes, path) -> tuple[torch.Tensor, torch.Tensor]:
    """(means, deviations) of the scenes' latents, kept in a file."""
    if not path.exists():
        drawings = np.stack([dataset.pixels(scene) for scene in scenes])
        means, deviations = unet.encode_all(pipe.vae, drawings)
        save_tensors(path, {"means": means, "deviations": deviations}, {})
    tensors, _ = load_tensors(path)
    return tensors["means"], tensors["deviations"]


def batch_of(pipe, process, latents, scenes, step: int, generator: torch.Generator):
    """(noised latents, timesteps, embeddings, noise), drawn as in the UNet's own training."""
    means, deviations = latents
    which = torch.randint(len(scenes), (BATCH,), generator=generator)
    empty = torch.rand(BATCH, generator=generator) < unet.EMPTY_CAPTIONS
    pairs = enumerate(zip(which.tolist(), empty.tolist(), strict=True))
    captions = ["" if none else scenes[i].caption(step * BATCH + k) for k, (i, none) in pairs]
    with torch.no_grad():
        text = pipe.text_encoder(unet.tokenize(pipe.tokenizer, captions)).last_hidden_state
    x = means[which] + deviations[which] * torch.randn(means[which].shape, generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    t = stratified_timesteps(BATCH, 1000, generator)
    return noised(process, x, noise, t)[0], t, text, noise


@torch.no_grad()
def held_back_losses(pipes: dict, process, latents, scenes, batches: int = 12) -> dict[str, dict[str, float]]:
    """For each pipeline: HL-Gauss and the squared error of the mean, on scenes that nobody saw."""
    scores = {name: {"hl_gauss": 0.0, "mse": 0.0} for name in pipes}
    for number in range(batches):
        generator = torch.Generator().manual_seed(number)
        z_t, t, text, noise = batch_of(pipes["start"], process, latents, scenes, number, generator)
        for name, pipe in pipes.items():
            answer = pipe.unet(z_t, t, text).sample
            scores[name]["hl_gauss"] += losses.hl_gauss(answer, noise).item() / batches
            scores[name]["mse"] += losses.mse(answer, noise).item() / batches
    return scores


def main() -> None:
    pipe = imagic.load_pipeline("tiny")
    process = forward_process(pipe)
    start, learned = (distribution.with_distribution(pipe, learned=False) for _ in range(2))
    scenes, others = dataset.training_scenes(SCENES), dataset.test_scenes(HELD_BACK)
    latents = latents_of(pipe, scenes, RUNS / "latents.safetensors")
    held_back = latents_of(pipe, others, RUNS / "held-back.safetensors")
    head = learned.unet.conv_out

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        z_t, t, text, noise = batch_of(pipe, process, latents, scenes, step, generator)
        return losses.hl_gauss(learned.unet(z_t, t, text).sample, noise)

    with frozen(pipe.text_encoder, learned.unet):
        head.learned.requires_grad_(True)
        history = train("head", head.learned, loss_of, RUNS, steps=STEPS, lr=LR, warmup=50, ema=0.99)
    scores = held_back_losses({"start": start, "learned": learned}, process, held_back, others)
    distribution.save_head(head, distribution.HEAD, {"history": history, "held_back": scores})
    names = {"start": "the Gaussian around the guess (start)", "learned": "the learned head"}
    rows = [[names[k], f"{v['hl_gauss']:.4f}", f"{v['mse']:.4f}"] for k, v in scores.items()]
    header = [f"{HELD_BACK} held-back drawings, {STEPS} steps of training", "HL-Gauss", "MSE of the mean"]
    put(README, "hl-gauss", table(header, rows))


if __name__ == "__main__":
    main()
