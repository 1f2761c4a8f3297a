"""Teach a new word for one particular thing, such as your car, dog or mug, from a few pictures, with LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib.arguments import check_one_image_one_embedding, cpu_generator
from imagic_lib.diffusion import Probe, denoising_loss, encode_image, forward_process
from imagic_lib.models import encode_text, settings_for
from imagic_lib.pictures import load_image
from imagic_lib.stage4_inference import sample_text
from imagic_lib.training.checkpoint import job_of
from imagic_lib.training.loop import History, Run, Training
from imagic_lib.training.strategies import learning_copy, scaler_for, stepping
from imagic_lib.unets import LoRA, with_unet

DEFAULTS = {
    "tiny": {"steps": 200, "lr": 5e-3, "batch": 2, "decay": 0.5},  # measured by imagic_lab/numbers/new_word.py
    # from the README of diffusers' train_dreambooth_lora.py
    "stable-diffusion": {"steps": 500, "lr": 1e-4, "batch": 1, "decay": 0.0},
}
PRIOR_WEIGHT = 1.0  # λ of Ruiz et al. 2022, eq. 2
PROBE_EVERY = 50  # steps; a probe looks at every picture


class Prior(NamedTuple):
    """Pictures of the thing's class (`load_image`), their text or texts, and λ. They keep the class as it was."""

    images: Sequence[Tensor]
    text: str | Sequence[str]
    weight: float = PRIOR_WEIGHT


def personalize(pipe: StableDiffusionPipeline, images: Sequence[Tensor], text: str | Sequence[str], *,
                prior: Prior | None = None, lora: LoRA = LoRA(), steps: int | None = None, lr: float | None = None,
                batch: int | None = None, decay: float | None = None, generator: torch.Generator | None = None,
                run: Run = Run()) -> tuple[StableDiffusionPipeline, History]:  # fmt: skip
    """min_φ E ‖ε - f_φ(z_t, t, e)‖² + λ E ‖ε' - f_φ(z'_t, t', e')‖², where φ are the weights of a LoRA.

    images: n pictures of one thing, (1, 3, size, size) in [-1, 1] each (`load_image`). text: describes them, with a new
    word for the thing ('a photo of sks car'); or n texts. prior: pictures of the thing's class and their text (z', e'),
    from `class_pictures`, which keep the class as it was (Ruiz et al. 2022, DreamBooth, arXiv 2208.12242). batch:
    pictures per step, of either kind. All else is as in `fine_tune`, with `personalization.DEFAULTS`. The probe uses
    the pictures without the prior. Returns a new pipeline with the tuned UNet (its other parts are shared with `pipe`)
    and the history. `storage.save_lora` writes the adapters. Taught in notebooks/10_lora.ipynb.
    """
    if prior and not 0 < prior.weight < float("inf"):
        raise ValueError(f"the prior's weight is {prior.weight}: it must be above 0")
    s = settings_for(pipe, DEFAULTS, steps=steps, lr=lr, batch=batch, decay=decay, bias=run.bias)
    generator, process, bias = cpu_generator(generator), forward_process(pipe), run.bias or 0.0
    own, kept = encoded(pipe, images, text), encoded(pipe, *prior[:2]) if prior else None
    near = {"text": own[1]} | ({"prior": thumbnails(prior.images), "text of the prior": kept[1]} if prior else {})
    about = {"method": "a new word"} | vars(lora) | {"prior": prior.weight if prior else None}
    job = job_of(pipe, images, s, generator, run, near=near, **about)
    run, name = replace(run, probe_every=run.probe_every or PROBE_EVERY), f"a new word, LoRA of rank {lora.rank}"
    with learning_copy(pipe, run.strategy, lora, seed=generator.initial_seed()) as (unet, weights):
        own, kept = on_device_of(unet, own), kept and on_device_of(unet, kept)
        probes = [(Probe(process, z[None]), e[None]) for z, e in zip(*own, strict=True)]

        def look() -> float:
            return sum(probe(unet, e) for probe, e in probes) / len(probes)

        with (
            stepping(weights, s["lr"], run.strategy) as adam,
            Training(name, weights, adam, generator, job, run, look, scaler_for(unet)) as training,
        ):
            for step in training.steps(s["steps"], s["decay"]):
                z, e = drawn(own, s["batch"], generator)
                loss = denoising_loss(unet, process, z, e, s["batch"], generator, run.loss, bias)
                if kept:
                    z, e = drawn(kept, s["batch"], generator)
                    prior_loss = denoising_loss(unet, process, z, e, s["batch"], generator, run.loss, bias)
                    loss = loss + prior.weight * prior_loss
                step(loss)
    return with_unet(pipe, unet), training.history


def encoded(
    pipe: StableDiffusionPipeline, images: Sequence[Tensor], text: str | Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Encode n pictures and their one text or n texts: latents (n, 4, h, w), embeddings (n, tokens, width).

    Raises ValueError without a picture, or if the texts are neither one nor n.
    """
    if len(images) == 0:
        raise ValueError("there is no picture: give at least one, from load_image")
    texts = [text] * len(images) if isinstance(text, str) else list(text)
    if len(texts) != len(images):
        raise ValueError(f"{len(images)} pictures and {len(texts)} texts: give one text for all, or one for each")
    embeddings = {one: encode_text(pipe, one) for one in dict.fromkeys(texts)}
    for image, one in zip(images, texts, strict=True):
        check_one_image_one_embedding(image, embeddings[one])
    latents = torch.cat([encode_image(pipe, image.to(pipe.vae.device)) for image in images])
    return latents, torch.cat([embeddings[one] for one in texts])


def on_device_of(unet: torch.nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Move both tensors to the UNet's device and precision."""
    return tuple(x.detach().to(unet.device, unet.dtype) for x in pair)


def thumbnails(images: Sequence[Tensor]) -> Tensor:
    """Shrink pictures to (n, 192), small enough for a checkpoint. If two machines draw a picture, its rows are near."""
    return torch.cat([F.adaptive_avg_pool2d(image.float().cpu(), 8).flatten(1) for image in images])


def drawn(pair: tuple[Tensor, Tensor], batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the latents and embeddings of `batch` pictures, chosen at random."""
    which = torch.randint(len(pair[0]), (batch,), generator=generator)
    return pair[0][which], pair[1][which]


def class_pictures(
    pipe: StableDiffusionPipeline, text: str | Sequence[str], count: int, *, seed: int = 0, **settings
) -> Prior:
    """Draw pictures of a class ('a photo of a car') with the model itself, for the `prior` of `personalize`.

    There are `count` of them, from the seeds seed, seed + 1, …; several texts take turns. settings: go to `generate`.
    Ruiz et al. 2022 use about 1000 pictures of one text.
    """
    texts = [text] if isinstance(text, str) else list(text)
    if not texts or count < len(texts):
        raise ValueError(f"count is {count}: a prior needs at least one text, and one picture for each text")
    pictures = {}
    for k, one in enumerate(texts):
        seeds = range(seed + k, seed + count, len(texts))
        pictures |= zip(seeds, sample_text(pipe, one, seeds, **settings), strict=True)
    images = [load_image(pictures[k], pipe) for k in sorted(pictures)]
    return Prior(images, [texts[k % len(texts)] for k in range(count)])
