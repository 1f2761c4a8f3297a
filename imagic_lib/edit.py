"""One edit from start to end: the four stages in a row, and what they left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from imagic_lib.diffusion import History, decode_latents, encode_image
from imagic_lib.embedding import optimize_embedding
from imagic_lib.finetuning import fine_tune
from imagic_lib.images import to_picture
from imagic_lib.inference import generate
from imagic_lib.interpolation import interpolate
from imagic_lib.models import encode_text

ETAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)


@dataclass
class ImagicEdit:
    """A trained edit: from here every η and every seed costs one sampling, no training."""

    text: str
    pipe: StableDiffusionPipeline  # as it was loaded
    tuned: StableDiffusionPipeline  # with the UNet of stage 2
    image: Tensor  # (1, 3, size, size) in [-1, 1]
    e_tgt: Tensor  # (1, tokens, width)
    e_opt: Tensor
    embedding_history: History
    unet_history: History

    @property
    def input_picture(self) -> Image.Image:
        return to_picture(self.image)

    @property
    def reconstruction(self) -> Image.Image:
        """The input through the VAE and back: the most that any edit can keep."""
        return to_picture(decode_latents(self.pipe, encode_image(self.pipe, self.image)))

    def pictures(
        self, etas: Sequence[float] = ETAS, seeds: Sequence[int] = (0,), *, fine_tuned: bool = True, **settings
    ) -> list[list[Image.Image]]:
        """One row of pictures a seed, one column an η. `fine_tuned=False`: what stage 2 is good for."""
        pipe = self.tuned if fine_tuned else self.pipe
        flat = generate(pipe, interpolate(self.e_tgt, self.e_opt, etas), seeds, **settings)
        return [flat[row :: len(seeds)] for row in range(len(seeds))]


def run_edit(
    pipe: StableDiffusionPipeline,
    image: Tensor,
    text: str,
    *,
    embedding_steps: int | None = None,
    unet_steps: int | None = None,
    seed: int = 0,
) -> ImagicEdit:
    """Stages 1 and 2 for one picture and one text. image: from `load_image`. seed: of the training noise."""
    generator = torch.Generator().manual_seed(seed)
    e_tgt = encode_text(pipe, text)
    e_opt, embedding_history = optimize_embedding(pipe, image, e_tgt, steps=embedding_steps, generator=generator)
    tuned, unet_history = fine_tune(pipe, image, e_opt, steps=unet_steps, generator=generator)
    return ImagicEdit(text, pipe, tuned, image, e_tgt, e_opt, embedding_history, unet_history)
