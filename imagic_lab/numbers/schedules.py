"""What makes Imagic faster? The paper's schedule, the library's, and others that differ from these in one choice.

    python -m imagic_lab.numbers.schedules          # about ninety minutes of one core; continues where it was stopped
    python -m imagic_lab.numbers.schedules 1        # only the first edit

The library's stages train one after the other, in batches. Here the embedding and the weights can also learn together
or in turns, with timesteps drawn without strata, in some layers only, or until the probe settles.

Each edit of ToyEdit dev on each schedule is written into data/experiments/faster.json at once; the table goes into
imagic_lab/numbers/README.md.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import imagic_lib as imagic
from imagic_lab.benchmark import (
    markdown_table,
    mean_and_interval,
    measure_edit,
    numbers_in,
    success_times_kept,
    versions_of,
)
from imagic_lab.methods import IMAGIC, ON_THE_WAY, PAPER, WAY_VALUES, Method
from imagic_lab.methods.method import Draw
from imagic_lab.methods.tuning import along, pair_at
from imagic_lab.numbers.report import README, command_line, put
from imagic_lab.numbers.results import Results
from imagic_lab.toyworld import load_reader
from imagic_lab.toyworld.edits import toyedit
from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.arguments import check_one_image_one_embedding
from imagic_lib.diffusion import Probe, denoising_loss, encode_image, forward_process, frozen
from imagic_lib.models import encode_text
from imagic_lib.training.loop import History, Run, Training
from imagic_lib.training.strategies import learning_copy
from imagic_lib.unets import with_unet

ORDERS = ("apart", "joint", "alternating")


@dataclass(frozen=True)
class Schedule:
    """The schedule of both trainings. Raises ValueError for an invalid order or number.

    first, second: steps for the embedding e and for the weights θ. order: "apart" is the paper's, first all steps of
    e, then all of θ; "joint" moves both in each of `second` steps; "alternating" takes turns, `second` of each. batch:
    samples per step. decay, bias: as in `fine_tune`, for steps in which θ learns. stratified: draw one timestep from
    each of `batch` equal parts, or else all from the whole range. rates: of e and of θ. layers: a regular expression;
    only weights whose names match learn. patience: end after this many probes without a fall of 1 % (`has_settled`).
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
        """Return what learns in each step ("e", "θ" or both), phase by phase."""
        if self.order == "joint":
            return [["eθ"] * self.second]
        if self.order == "alternating":
            return [["e", "θ"] * self.second]
        return [["e"] * self.first, ["θ"] * self.second]


def train_on_schedule(
    pipe: StableDiffusionPipeline, image: Tensor, text: str, schedule: Schedule
) -> tuple[Tensor, Tensor, StableDiffusionPipeline, History]:
    """Train on the schedule. Returns (e_tgt, e_opt, the pipeline with the tuned UNet, the history of both trainings).

    Both trainings use the same loss, E_{t,ε} ‖ε - f_θ(z_t, t, e)‖². Raises ValueError if no layer has such a name.
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
    """Whether none of the last `patience` probes was more than 1 % below the best one before them."""
    if len(history.probe_loss) <= patience:
        return False
    return min(history.probe_loss[-patience:]) > 0.99 * min(history.probe_loss[:-patience])


def joined(first: History, later: History) -> History:
    """Join two histories."""
    shifted = [len(first.loss) + step for step in later.probe_step]
    return History(first.loss + later.loss, first.probe_step + shifted, first.probe_loss + later.probe_loss)


def layers_that_learn(weights: dict[str, Tensor], schedule: Schedule) -> list[Tensor]:
    """Return the weights whose names match the schedule's expression, and freeze the others."""
    for name, weight in weights.items():
        weight.requires_grad_(re.search(schedule.layers, name) is not None)
    learn = [weight for weight in weights.values() if weight.requires_grad]
    if not learn:
        raise ValueError(f"no layer of this UNet has a name with {schedule.layers!r} in it")
    return learn


def loss_of(schedule: Schedule, unet, process, z: Tensor, e: Tensor, generator: torch.Generator, bias: float) -> Tensor:
    """Return the loss of a step. Without strata, each sample has its own timestep and its own pass through the UNet."""
    if schedule.stratified:
        return denoising_loss(unet, process, z, e, schedule.batch, generator, bias=bias)
    each = [denoising_loss(unet, process, z, e, 1, generator, bias=bias) for _ in range(schedule.batch)]
    return torch.stack(each).mean()


def scheduled(pipe: StableDiffusionPipeline, image: Tensor, text: str, *, schedule: Schedule) -> Draw:
    """Imagic on this schedule, as a method to compare (`methods.Method`)."""
    e_tgt, e_opt, tuned, _ = train_on_schedule(pipe, image, text, schedule)
    return along(e_tgt, e_opt, tuned)


DEV_EDITS = 4  # one of each kind
STAGE_1, STAGE_2 = stage1_embedding.DEFAULTS["tiny"], stage2_finetuning.DEFAULTS["full"]["tiny"]
OURS = Schedule(
    STAGE_1["steps"],
    STAGE_2["steps"],
    (STAGE_1["lr"], STAGE_2["lr"]),
    batch=STAGE_2["batch"],
    decay=STAGE_2["decay"],
    bias=STAGE_2["bias"],
)
MORE_STEPS = replace(OURS, first=40, second=100, rates=(5e-2, 2e-4))
PAPERS = Schedule(
    PAPER["tiny"][0]["steps"], PAPER["tiny"][1]["steps"], (PAPER["tiny"][0]["lr"], PAPER["tiny"][1]["lr"])
)
ALL_STEPS = OURS.first + OURS.second
SCHEDULES = {
    "the paper's": PAPERS,
    "the paper's, a fifth of the steps, five times the rates": replace(
        PAPERS, first=200, second=300, rates=tuple(5 * lr for lr in PAPERS.rates)
    ),
    "more steps, smaller rates": MORE_STEPS,
    "the library's, few steps": OURS,
    "few steps, times without strata": replace(OURS, stratified=False),
    "few steps, the rate not lowered": replace(OURS, decay=0.0),
    "few steps, all times alike (no bias)": replace(OURS, bias=0.0),
    "e and θ together": replace(OURS, second=ALL_STEPS, order="joint"),
    "e and θ in turns": replace(OURS, second=ALL_STEPS // 2, order="alternating"),
    "few steps, attention only": replace(OURS, layers="attn"),
    "few steps, all but attention": replace(OURS, layers="^(?!.*attn)"),
    "more steps, until the probe settles": replace(MORE_STEPS, patience=2),
}


def best_values(found: list[dict]) -> tuple[int, list[float]]:
    """Return the index of the knob's value with the highest mean worth, and the worth of each edit there."""
    values = np.array([success_times_kept(one) for one in found])
    best = int(values.mean(axis=0).argmax())
    return best, values[:, best].tolist()


def schedule_row(name: str, found: list[dict], few: list[dict]) -> list[str]:
    """Return the line of a schedule, at its best value of the knob. few: runs with few steps, for the same edits."""
    success = [numbers_in(one["success"]) for one in found]
    best, values = best_values(found)
    kept = [numbers_in(one["kept"])[best] for one in found]
    evaluations, seconds = (fmean(float(one[what]) for one in found) for what in ("with_gradient", "seconds"))
    numbers = [f"{evaluations:.0f}", f"{seconds:.0f}", f"{fmean(float(one['psnr']) for one in found):.1f}"]
    eta, scale = pair_at(WAY_VALUES[best])
    differences = [a - b for a, b in zip(values, best_values(few)[1], strict=True)]
    shares = [mean_and_interval(share) for share in ([s[best] for s in success], kept, values)]
    return [name, *numbers, f"{eta:g}, {scale:g}", *shares, mean_and_interval(differences, share=False)]


def schedules_table(runs: dict[str, dict]) -> str:
    """Return the table of the stored runs, with its note."""
    header = [
        "schedule",
        "samples with gradient",
        "seconds",
        "PSNR at η = 0, dB",
        "η, λ",
        "success",
        "details kept",
        "worth",
        "minus few steps",
    ]
    of = {name: [run for key, run in runs.items() if key.endswith(f"/ {name}")] for name in SCHEDULES}
    count = min(len(found) for found in of.values())  # without the edit in which a run was stopped
    note = f"{count} edits of ToyEdit dev, 4 seeds each; in brackets 95 % intervals over the edits. The last column "
    note += "is the difference in worth, edit by edit, in points. The pair (η, λ) of each line, and the rates of the "
    note += "few steps, were chosen on these edits. The seconds are of one core while the other was busy.\n"
    few = of["the library's, few steps"][:count]
    return markdown_table(header, [schedule_row(name, found[:count], few) for name, found in of.items()]) + "\n" + note


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("count", nargs="?", type=int, default=DEV_EDITS, help="how many edits (default: 4)")
    asked = options.parse_args()
    pipe, reader, results = imagic.load_pipeline("tiny"), load_reader(), Results("faster.json", "versions", "runs")
    results.check_versions(versions_of(pipe, reader))
    for index, edit in enumerate(toyedit("dev")[: asked.count]):
        for name, schedule in SCHEDULES.items():
            key, about = f"{index} / {name}", {k: str(v) for k, v in asdict(schedule).items()}
            if results.found["runs"].get(key, {}).get("schedule") != about:
                method = Method(name, IMAGIC, partial(scheduled, schedule=schedule), **ON_THE_WAY)
                found, _ = measure_edit(method, pipe, edit, reader, seeds=range(4))
                results.keep("runs", key, found | {"schedule": about})
    put(README, "faster", schedules_table(results.found["runs"]))


if __name__ == "__main__":
    main()
