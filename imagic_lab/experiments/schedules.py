"""What makes Imagic fast? Stages 1 and 2 on other schedules than the paper's, so that one choice at a time can change.

The library's own stages do them one after the other, in batches. Here the embedding and the weights may also learn
together or in turns, at times drawn without strata, in some layers only, or until the probe settles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lab.methods.method import Draw
from imagic_lab.methods.tuning import along
from imagic_lib.arguments import check_one_image_one_embedding
from imagic_lib.diffusion import Probe, denoising_loss, encode_image, forward_process, frozen
from imagic_lib.models import encode_text
from imagic_lib.training.loop import History, Run, Training
from imagic_lib.training.strategies import learning_copy
from imagic_lib.unets import with_unet

ORDERS = ("apart", "joint", "alternating")


@dataclass(frozen=True)
class Schedule:
    """How the two trainings are run. Raises ValueError for an invalid order or number.

    first, second: steps for the embedding e and for the weights θ. order: "apart" is the paper's, first all steps of
    e, then all of θ; "joint" moves both in each of `second` steps; "alternating" takes turns, `second` of each. batch:
    samples in a step. decay, bias: as in `fine_tune`, for steps in which θ learns. stratified: one time in each of
    `batch` equal parts, or all drawn alike. rates: of e and of θ. layers: a regular expression; only weights with it
    in their name learn. patience: end when the probe has not fallen by 1 % for so many probes (`has_settled`).
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


def train_on_schedule(
    pipe: StableDiffusionPipeline, image: Tensor, text: str, schedule: Schedule
) -> tuple[Tensor, Tensor, StableDiffusionPipeline, History]:
    """(e_tgt, e_opt, the pipeline with the tuned UNet, the history of both trainings), as the schedule says.

    Both descend the same loss, E_{t,ε} ‖ε - f_θ(z_t, t, e)‖². Raises ValueError if no layer has such a name.
    """
    e_tgt, generator = encode_text(pipe, text), torch.Generator().manual_seed(0)
    check_one_image_one_embedding(image, e_tgt)
    process, z = forward_process(pipe), encode_image(pipe, image)
    probe, e, history = Probe(process, z), e_tgt.clone().requires_grad_(True), History()
    settled = schedule.patience and (lambda _, history: has_settled(history, schedule.patience))
    run = Run(watch=settled, bar=False, probe_every=None if schedule.patience else 10**9)
    with learning_copy(pipe, None, None, seed=0) as (unet, weights):
        layers = layers_that_learn(weights, schedule)
        adam = torch.optim.Adam([{"params": [e], "lr": schedule.rates[0]}, {"params": layers, "lr": schedule.rates[1]}])
        for phase in schedule.phases():
            decay = schedule.decay if "θ" in "".join(phase) else 0.0
            with Training(
                "a schedule", {"e_opt": e}, adam, generator, run=run, look=lambda: probe(unet, e)
            ) as training:
                for step, learns in zip(training.steps(len(phase), decay), phase, strict=False):
                    if learns == "e":  # its rate does not fall, and the weights need no gradients
                        adam.param_groups[0]["lr"] = schedule.rates[0]
                        with frozen(unet):
                            step(loss_of(schedule, unet, process, z, e, generator, 0.0))
                    else:
                        now = e if learns == "eθ" else e.detach()
                        step(loss_of(schedule, unet, process, z, now, generator, schedule.bias))
            history = joined(history, training.history)
    return e_tgt, e.detach(), with_unet(pipe, unet), history


def has_settled(history: History, patience: int) -> bool:
    """True if none of the last `patience` probes was more than 1 % below the best one before them."""
    if len(history.probe_loss) <= patience:
        return False
    return min(history.probe_loss[-patience:]) > 0.99 * min(history.probe_loss[:-patience])


def joined(first: History, later: History) -> History:
    """Two histories as one."""
    shifted = [len(first.loss) + step for step in later.probe_step]
    return History(first.loss + later.loss, first.probe_step + shifted, first.probe_loss + later.probe_loss)


def layers_that_learn(weights: dict[str, Tensor], schedule: Schedule) -> list[Tensor]:
    """The weights whose names the schedule's expression is found in; the others are frozen."""
    for name, weight in weights.items():
        weight.requires_grad_(re.search(schedule.layers, name) is not None)
    learn = [weight for weight in weights.values() if weight.requires_grad]
    if not learn:
        raise ValueError(f"no layer of this UNet has a name with {schedule.layers!r} in it")
    return learn


def loss_of(schedule: Schedule, unet, process, z: Tensor, e: Tensor, generator: torch.Generator, bias: float) -> Tensor:
    """The loss of a step. Without strata each sample draws a time by itself, and so goes through the UNet alone."""
    if schedule.stratified:
        return denoising_loss(unet, process, z, e, schedule.batch, generator, bias=bias)
    each = [denoising_loss(unet, process, z, e, 1, generator, bias=bias) for _ in range(schedule.batch)]
    return torch.stack(each).mean()


def scheduled(pipe: StableDiffusionPipeline, image: Tensor, text: str, *, schedule: Schedule) -> Draw:
    """Imagic on this schedule as a method to compare (`experiments.methods.Method`)."""
    e_tgt, e_opt, tuned, _ = train_on_schedule(pipe, image, text, schedule)
    return along(e_tgt, e_opt, tuned)
