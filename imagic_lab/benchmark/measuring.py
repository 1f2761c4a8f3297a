"""Make one edit of ToyEdit by one method, and measure whether it succeeds, what it keeps and what it costs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from imagic_lab.benchmark.versions import hash_of_settings
from imagic_lab.methods import Method
from imagic_lab.toyworld.reader import Reader, Report
from imagic_lab.toyworld.scene import Scene
from imagic_lib.diffusion import decode_latents, encode_image
from imagic_lib.pictures import load_image, psnr, to_picture

NOISE_SEEDS = {"dev": (0, 1), "test": (0, 1, 2, 3)}  # of the pictures, if a method depends on a seed
READINGS = ("success", "right", "kept", "distance")  # fields of the reader's `Report`


@dataclass
class Evaluations:
    """The number of latents that a UNet has processed, which is the sum of the batch sizes of its passes."""

    count: int = 0
    with_gradient: int = 0  # those followed by a backward pass, which costs about twice as much again


@contextmanager
def counted(unet: UNet2DConditionModel):
    """A context that counts every pass of this UNet, and of its copies, because a copy inherits the hook."""
    found = Evaluations()

    def count(module: torch.nn.Module, arguments: tuple, named: dict) -> None:
        latents = arguments[0] if arguments else named["sample"]
        found.count += len(latents)
        found.with_gradient += len(latents) * torch.is_grad_enabled()

    hook = unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


def measure_edit(
    method: Method, pipe: StableDiffusionPipeline, edit: tuple, reader: Reader, seeds: Sequence[int], training: int = 0
) -> tuple[dict, list[list[Image.Image]]]:
    """Make one edit, (scene, change) as in `toyedit`. Returns its row, and the pictures for each value of the knob.
    training: seed of the method's training, if it trains.

    A cell of `READINGS` has a number for each value. For `right` and `success` it is a share of the pictures, for
    `kept` and `distance` the mean over the successful pictures ("nan" if there are none). psnr: in dB, of the pictures
    at the first value and the VAE's reconstruction of the input.
    """
    scene, change = edit
    truth, image = scene.edit(**change), load_image(scene.render(), pipe)
    seeds = list(seeds) if method.seeded else [0]
    drawn, cost = draw_all(method, pipe, image, scene, truth, seeds, training)
    reports = [[read_picture(reader, picture, truth, scene) for picture in row] for row in drawn]
    found = {name: cell_of(mean_of_known([getattr(one, name) for one in row]) for row in reports) for name in READINGS}
    rebuilt = to_picture(decode_latents(pipe, encode_image(pipe, image)))
    found["psnr"] = round(float(np.mean([psnr(picture, rebuilt) for picture in drawn[0]])), 2)
    about = {"settings": hash_of_settings(method), "knob": method.knob, "values": cell_of(method.values)}
    return about | {"training": training, "pictures": len(seeds)} | found | cost, drawn


def draw_all(method: Method, pipe: StableDiffusionPipeline, image: Tensor, scene: Scene, truth: Scene, seeds: list[int],
             training: int) -> tuple[list[list[Image.Image]], dict]:  # fmt: skip
    """Return the pictures for each value of the knob, and their cost. seconds, evaluations: what the method needs once,
    before its first picture. `…_a_picture`: for each further picture, at each value. Seconds are of one core."""
    drawn = []
    with counted(pipe.unet) as evaluations:
        marks = [(time.process_time(), replace(evaluations))]
        draw = method.start(pipe, image, truth.caption(), scene.caption(), training)
        marks.append((time.process_time(), replace(evaluations)))
        for value in method.values:
            drawn.append([draw(value, [seed])[0] for seed in seeds])  # one by one, as some take only one
            marks.append((time.process_time(), replace(evaluations)))
    seconds, counts = np.diff([moment for moment, _ in marks]), np.diff([done.count for _, done in marks])
    cost = {"seconds": round(float(seconds[0]), 2), "seconds_a_picture": cell_of(seconds[1:] / len(seeds))}
    cost |= {"evaluations": int(counts[0]), "evaluations_a_picture": cell_of(counts[1:] / len(seeds))}
    return drawn, cost | {"with_gradient": marks[1][1].with_gradient}


def read_picture(reader: Reader, picture: Image.Image, truth: Scene, before: Scene) -> Report:
    """Return the reader's report, for a failure without `kept` and `distance`. A glance finds most failures."""
    report = reader.report(picture, truth, before) if reader.may_be(picture, truth) else None
    if report is None or not report.success:
        return Report(report is not None and report.right, False, math.nan, math.nan)
    return report


def mean_of_known(values: Sequence[float]) -> float:
    """Return the mean of the values that are not nan, or nan if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def cell_of(numbers: Iterable[float]) -> str:
    """Put several numbers into one cell of the table."""
    return " ".join(f"{number:.4g}" for number in numbers)
