"""A new word for one particular thing, learned from a few pictures: LoRA for one's own car, dog or mug."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib.diffusion import Loss, Probe, cpu_generator, denoising_loss, encode_image, mse, training_noise
from imagic_lib.models import encode_text, settings_for
from imagic_lib.pictures import load_image
from imagic_lib.stage2_finetuning import RANK, TARGETS, add_lora, with_unet
from imagic_lib.stage4_inference import sample_text
from imagic_lib.training.loop import History, Progress, Watch, descend, hash_of, identity_of
from imagic_lib.training.strategies import Strategy, networks, scaler_for, stepping, unet_copy, waiting

DEFAULTS = {
    "tiny": {"steps": 200, "lr": 5e-3, "batch": 2, "decay": 0.5},  # measured: benchmarks/new_word.py
    # README of diffusers' train_dreambooth_lora.py
    "stable-diffusion": {"steps": 500, "lr": 1e-4, "batch": 1, "decay": 0.0},
}
PRIOR_WEIGHT = 1.0  # λ of Ruiz et al. 2022, eq. 2

Prior = tuple[Sequence[Tensor], str | Sequence[str]]  # pictures of the class, and its text or texts


def personalize(
    pipe: StableDiffusionPipeline,
    images: Sequence[Tensor],
    text: str | Sequence[str],
    *,
    prior: Prior | None = None,
    prior_weight: float = PRIOR_WEIGHT,
    rank: int = RANK,
    targets: Sequence[str] = TARGETS,
    steps: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    decay: float | None = None,
    loss: Loss = mse,
    strategy: Strategy | None = None,
    generator: torch.Generator | None = None,
    probe_every: int = 50,
    patience: int | None = None,
    checkpoint: Path | None = None,
    watch: Watch | None = None,
) -> tuple[StableDiffusionPipeline, History]:
    """min_φ E ‖ε - f_φ(z_t, t, e)‖² + λ E ‖ε' - f_φ(z'_t, t', e')‖², φ the weights of a LoRA.

    images: n pictures of one thing, (1, 3, size, size) in [-1, 1] each (`load_image`). text: what they show, with a
    new word for the thing ('a photo of sks car'), or n texts. prior: pictures of the thing's class and their text
    (z', e'), from `class_pictures`: they hold the class where it was (Ruiz et al. 2022, DreamBooth, arXiv 2208.12242);
    prior_weight: λ. batch: pictures a step, of either kind. Everything else as in `fine_tune`; defaults in
    `personalization.DEFAULTS`. The probe is of the pictures, without the prior. Returns a new pipeline, whose UNet
    alone is new, and the history. `edit.save_lora` writes the adapters. Taught in notebooks/10_lora.ipynb.
    """
    if strategy and strategy.method != "lora":
        raise ValueError(f"the strategy “{strategy.name}” trains all weights: choose one with method 'lora'")
    if prior_weight < 0:
        raise ValueError(f"prior_weight is {prior_weight}: it must be 0 or more")
    given = settings_for(pipe, DEFAULTS, steps=steps, lr=lr, batch=batch, decay=decay)
    generator, process, device = cpu_generator(generator), training_noise(pipe), pipe.unet.device
    own = lessons(pipe, images, text)
    kept = lessons(pipe, *prior) if prior and prior_weight else None
    with waiting(*networks(pipe)):
        unet = unet_copy(pipe.unet, strategy, device).requires_grad_(False)
        add_lora(unet, rank, targets, seed=generator.initial_seed())
        own, kept = moved(own, unet), kept and moved(kept, unet)
        trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        identity = identity_of(own[0], own[1], given, loss, generator) | {"rank": rank, "targets": list(targets)}
        identity |= {"prior": [hash_of(x) for x in kept] + [prior_weight] if kept else None}
        probes = [(Probe(process, z[None]), e[None]) for z, e in zip(*own, strict=True)]

        def loss_of() -> Tensor:
            here = loss_on(unet, process, own, given["batch"], generator, loss)
            if kept is None:
                return here
            return here + prior_weight * loss_on(unet, process, kept, given["batch"], generator, loss)

        with stepping(trained, given["lr"], strategy) as (optimizer, step_with):
            history = descend(
                Progress(
                    f"a new word, LoRA of rank {rank}",
                    trained,
                    optimizer,
                    generator,
                    checkpoint,
                    identity,
                    scaler_for(unet),
                ),
                loss_of,
                lambda: sum(probe(unet, e) for probe, e in probes) / len(probes),
                steps=given["steps"],
                probe_every=probe_every,
                patience=patience,
                decay=given["decay"],
                step_with=step_with,
                watch=watch,
            )
        optimizer.state.clear()  # before the others come back to the GPU
    unet.disable_gradient_checkpointing()
    return with_unet(pipe, unet.requires_grad_(False)), history


def lessons(
    pipe: StableDiffusionPipeline, images: Sequence[Tensor], text: str | Sequence[str]
) -> tuple[Tensor, Tensor]:
    """(latents (n, 4, h, w), embeddings (n, tokens, width)) of n pictures and their one text or n texts.

    Raises ValueError if there is no picture, or if the texts are neither one nor n.
    """
    if len(images) == 0:
        raise ValueError("there is no picture: give at least one, from load_image")
    texts = [text] * len(images) if isinstance(text, str) else list(text)
    if len(texts) != len(images):
        raise ValueError(f"{len(images)} pictures and {len(texts)} texts: give one text for all, or one for each")
    for image in images:
        if image.ndim != 4 or len(image) != 1:
            raise ValueError(f"a picture has the shape {tuple(image.shape)}, not (1, 3, size, size): use load_image")
    embeddings = {one: encode_text(pipe, one) for one in dict.fromkeys(texts)}
    latents = torch.cat([encode_image(pipe, image.to(pipe.vae.device)) for image in images])
    return latents, torch.cat([embeddings[one] for one in texts])


def moved(pair: tuple[Tensor, Tensor], unet: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Both to where the UNet is, in its precision."""
    return tuple(x.detach().to(unet.device, unet.dtype) for x in pair)


def loss_on(unet, process, pair: tuple[Tensor, Tensor], batch: int, generator: torch.Generator, loss: Loss) -> Tensor:
    """Imagic's eq. 2 over `batch` pictures that are drawn at random, each with its own noise and time."""
    which = torch.randint(len(pair[0]), (batch,), generator=generator)
    return denoising_loss(unet, process, pair[0][which], pair[1][which], batch, generator, loss)


def class_pictures(
    pipe: StableDiffusionPipeline,
    text: str | Sequence[str],
    count: int,
    *,
    seed: int = 0,
    **settings,
) -> Prior:
    """What the model itself draws for a class ('a photo of a car'), ready to be the `prior` of `personalize`.

    count pictures from the seeds seed, seed + 1, …, of the texts in turn if there are several; settings go to
    `generate`. Ruiz et al. 2022 take about 1000 of one text.
    """
    texts = [text] if isinstance(text, str) else list(text)
    if not texts or count < len(texts):
        raise ValueError(f"count is {count}: a prior needs at least one text, and one picture for each text")
    pictures = {}
    for k, one in enumerate(texts):
        seeds = range(seed + k, seed + count, len(texts))
        pictures |= zip(seeds, sample_text(pipe, one, seeds, **settings), strict=True)
    images = [load_image(pictures[k], pipe) for k in sorted(pictures)]
    return images, [texts[k % len(texts)] for k in range(count)]
