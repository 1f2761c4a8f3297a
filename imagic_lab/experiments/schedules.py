"""What makes Imagic fast? Stages 1 and 2 on other schedules than the paper's, so that one choice at a time can change.

The library's own stages do them one after the other, in batches. Here the embedding and the weights may also learn
together or in turns, at times drawn without strata, in some layers only, or until the probe settles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lab.methods.method import Draw
from imagic_lab.methods.tuning import along
from imagic_lib.diffusion import Probe, denoising_loss, encode_image, forward_process, frozen, one_each
from imagic_lib.models import encode_text
from imagic_lib.stage2_finetuning import learning_copy, with_unet
from imagic_lib.training.loop import PROBE_EVERY, History, rate_at

ORDERS = ("apart", "joint", "alternating")


@dataclass(frozen=True)
class Schedule:
    """How the two trainings are run. Raises ValueError for an order or a number that can't be.

    first, second: steps for the embedding e and for the weights θ. order: "apart" is the paper's, first all steps of
    e, then all of θ; "joint" moves both in each of `second` steps; "alternating" takes turns, `second` of each. batch:
    samples in a step. decay, bias: as in `fine_tune`, for steps in which θ learns. stratified: one time in each of
    `batch` equal parts, or all drawn alike. rates: of e and of θ. layers: a regular expression; only weights whose
    names it is found in learn. patience: as in `training.loop.Run`.
    """

    first: int
    second: int
    rates: tuple[float, float]
    batch: int = 1
    decay: float = 0.0
    bias: float = 0.0
    order: str = "apart"
    stratified: bool = True
    layers: str = ""
    patience: int | None = None

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"the order {self.order!r} is unknown: choose from {', '.join(ORDERS)}")
        for name in ("first", "second", "batch"):
            if (value := getattr(self, name)) < (name == "batch"):
                raise ValueError(f"{name} is {value}: it can't be so small")

    def phases(self) -> list[list[str]]:
        """What learns in each step: "e", "θ" or both, phase by phase."""
        if self.order == "joint":
            return [["eθ"] * self.second]
        if self.order == "alternating":
            return [["e", "θ"] * self.second]
        return [["e"] * self.first, ["θ"] * self.second]


def train(
    pipe: StableDiffusionPipeline, image: Tensor, text: str, schedule: Schedule
) -> tuple[Tensor, Tensor, StableDiffusionPipeline, History]:
    """(e_tgt, e_opt, the pipeline with the tuned UNet, the history of both trainings), as the schedule wants it.

    Both descend the same loss, E_{t,ε} ‖ε - f_θ(z_t, t, e)‖². Raises ValueError if no layer has such a name.
    """
    e_tgt, generator = encode_text(pipe, text), torch.Generator().manual_seed(0)
    one_each(image, e_tgt)
    process, z = forward_process(pipe), encode_image(pipe, image)
    probe, e, history = Probe(process, z), e_tgt.clone().requires_grad_(True), History()
    with learning_copy(pipe, None, None, seed=0) as (unet, weights):
        learn = {name: weight for name, weight in weights.items() if re.search(schedule.layers, name)}
        if not learn:
            raise ValueError(f"no layer of this UNet has a name with {schedule.layers!r} in it")
        for name, weight in weights.items():
            weight.requires_grad_(name in learn)
        adams = [torch.optim.Adam(what, lr=lr) for what, lr in zip(([e], learn.values()), schedule.rates, strict=True)]
        adam_of = dict(zip("eθ", adams, strict=True))
        for phase in schedule.phases():
            descend(schedule, phase, adam_of, unet, partial(loss_of, schedule, unet, process, z, e, generator),
                    lambda: probe(unet, e.detach()), history)  # fmt: skip
    return e_tgt, e.detach(), with_unet(pipe, unet), history


def descend(schedule: Schedule, phase: list[str], adam_of: dict, unet, loss, look, history: History) -> None:
    """One phase of the training: in each step what has its turn learns, at a rate that falls over the last part."""
    before, settled = len(history.loss), History()
    for step, learns in enumerate(phase, 1):
        for name in learns:
            adam_of[name].zero_grad(set_to_none=True)
            for group in adam_of[name].param_groups:
                lr, decay = adam_of[name].defaults["lr"], schedule.decay if "θ" in learns else 0.0
                group["lr"] = rate_at(step, len(phase), lr, decay)
        if "θ" in learns:
            (value := loss(schedule.bias)).backward()
        else:
            with frozen(unet):  # the weights need no gradients in this step
                (value := loss(0.0)).backward()
        for name in learns:
            adam_of[name].step()
        history.loss.append(value.item())
        if schedule.patience is not None and step % PROBE_EVERY == 0:  # else nobody pays for a probe
            for h in (history, settled):
                h.probe_step.append(before + step)
                h.probe_loss.append(look())
            if settled.has_settled(schedule.patience):
                return


def loss_of(schedule: Schedule, unet, process, z: Tensor, e: Tensor, generator: torch.Generator, bias: float) -> Tensor:
    """The loss of a step. Without strata each sample draws its time for itself, and so goes through the UNet alone."""
    if schedule.stratified:
        return denoising_loss(unet, process, z, e, schedule.batch, generator, bias=bias)
    each = [denoising_loss(unet, process, z, e, 1, generator, bias=bias) for _ in range(schedule.batch)]
    return torch.stack(each).mean()


def scheduled(pipe: StableDiffusionPipeline, image: Tensor, text: str, *, schedule: Schedule) -> Draw:
    """Imagic on this schedule as a method to compare (`experiments.methods.Method`)."""
    e_tgt, e_opt, tuned, _ = train(pipe, image, text, schedule)
    return along(e_tgt, e_opt, tuned)
