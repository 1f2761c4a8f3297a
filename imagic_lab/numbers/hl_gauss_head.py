"""Train the head for HL-Gauss, which learns the shape of the error while the UNet of tiny-sd stays frozen.

python -m imagic_lab.numbers.hl_gauss_head         # about 4 minutes on 1 core; writes
data/hl-gauss/head.safetensors
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table
from imagic_lab.experiments import distribution, losses
from imagic_lab.numbers.report import README, ROOT, command_line, put
from imagic_lab.toyworld import dataset, unet
from imagic_lab.toyworld.training import train_network
from imagic_lib.diffusion import forward_process, frozen, noised, stratified_timesteps
from imagic_lib.files import load_tensors, save_tensors

HEAD_SCENES, HELD_BACK_SCENES, HEAD_STEPS, HEAD_LR, HEAD_BATCH = 800, 96, 300, 3e-3, 16
HEAD_FOLDER = ROOT / "runs" / "hl-gauss"


@torch.no_grad()
def stored_latents(pipe, scenes, path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (means, deviations) of the scenes' latents, which are kept in a file."""
    if not path.exists():
        drawings = np.stack([dataset.pixels(scene) for scene in scenes])
        means, deviations = unet.encode_all(pipe.vae, drawings)
        save_tensors(path, {"means": means, "deviations": deviations}, {})
    tensors, _ = load_tensors(path)
    return tensors["means"], tensors["deviations"]


def draw_batch(pipe, process, latents, scenes, step: int, generator: torch.Generator):
    """Draw (noised latents, timesteps, embeddings, noise) as in the training of the UNet."""
    means, deviations = latents
    which = torch.randint(len(scenes), (HEAD_BATCH,), generator=generator)
    empty = torch.rand(HEAD_BATCH, generator=generator) < unet.EMPTY_CAPTIONS
    pairs = enumerate(zip(which.tolist(), empty.tolist(), strict=True))
    captions = ["" if none else scenes[i].caption(step * HEAD_BATCH + k) for k, (i, none) in pairs]
    with torch.no_grad():
        text = pipe.text_encoder(unet.tokenize(pipe.tokenizer, captions)).last_hidden_state
    x = means[which] + deviations[which] * torch.randn(means[which].shape, generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    t = stratified_timesteps(HEAD_BATCH, 1000, generator)
    return noised(process, x, noise, t)[0], t, text, noise


@torch.no_grad()
def held_back_losses(pipes: dict, process, latents, scenes, batches: int = 12) -> dict[str, dict[str, float]]:
    """Return, for each pipeline, HL-Gauss and the squared error of the mean on new scenes."""
    scores = {name: {"hl_gauss": 0.0, "mse": 0.0} for name in pipes}
    for number in range(batches):
        generator = torch.Generator().manual_seed(number)
        z_t, t, text, noise = draw_batch(pipes["start"], process, latents, scenes, number, generator)
        for name, pipe in pipes.items():
            answer = pipe.unet(z_t, t, text).sample
            scores[name]["hl_gauss"] += losses.hl_gauss(answer, noise).item() / batches
            scores[name]["mse"] += losses.mse(answer, noise).item() / batches
    return scores


def save_head(head: distribution.DistributionHead, path: Path, facts: dict) -> None:
    """Save the head's weights in half precision, with a hash of the model for which it was trained."""
    half = {name: weight.half() for name, weight in head.learned.state_dict().items()}
    save_tensors(path, half, facts | {"model": distribution.hash_of(head.guess.weight.float())})


def main() -> None:
    command_line(__doc__).parse_args()
    pipe = imagic.load_pipeline("tiny")
    process = forward_process(pipe)
    start, learned = (distribution.with_distribution(pipe, learned=False) for _ in range(2))
    scenes, others = dataset.training_scenes(HEAD_SCENES), dataset.test_scenes(HELD_BACK_SCENES)
    latents = stored_latents(pipe, scenes, HEAD_FOLDER / "latents.safetensors")
    held_back = stored_latents(pipe, others, HEAD_FOLDER / "held-back.safetensors")
    head = learned.unet.conv_out

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        z_t, t, text, noise = draw_batch(pipe, process, latents, scenes, step, generator)
        return losses.hl_gauss(learned.unet(z_t, t, text).sample, noise)

    with frozen(pipe.text_encoder, learned.unet):
        head.learned.requires_grad_(True)
        history = train_network(
            "head", head.learned, loss_of, HEAD_FOLDER, steps=HEAD_STEPS, lr=HEAD_LR, warmup=50, ema=0.99
        )
    scores = held_back_losses({"start": start, "learned": learned}, process, held_back, others)
    save_head(head, distribution.HEAD_FILE, {"history": history, "held_back": scores})
    names = {"start": "the Gaussian around the guess (start)", "learned": "the learned head"}
    rows = [[names[k], f"{v['hl_gauss']:.4f}", f"{v['mse']:.4f}"] for k, v in scores.items()]
    header = [f"{HELD_BACK_SCENES} held-back drawings, {HEAD_STEPS} steps of training", "HL-Gauss", "MSE of the mean"]
    put(README, "hl-gauss", markdown_table(header, rows))


if __name__ == "__main__":
    main()
