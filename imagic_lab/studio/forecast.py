"""How long will it take? A few real steps are timed on this device; the rest is multiplication."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib.folder import history_so_far
from imagic_lib.models import settings_for
from imagic_lib.stage1_embedding import optimize_embedding
from imagic_lib.stage2_finetuning import fine_tune
from imagic_lib.stage4_inference import DEFAULTS, embedding_of_negative, generate
from imagic_lib.training.loop import PROBE_EVERY, History, Run
from imagic_lib.training.strategies import Strategy

TIMED = 4  # steps of each stage: one to warm up, two to be timed, one whose probe is timed with it
NEVER = 10**9  # steps
FEW = 4 * TIMED  # so few steps are done before their forecast would be


class Pace(NamedTuple):
    """Seconds that something takes: once, for each step, and for each probe."""

    once: float
    step: float
    probe: float = 0.0

    def seconds(self, steps: int) -> float:
        return self.once + steps * self.step + steps / PROBE_EVERY * self.probe


class Forecast(NamedTuple):
    """Seconds: of the rest of stage 1, of the rest of stage 2, and of each picture."""

    embedding: float
    fine_tuning: float
    picture: float

    def sentence(self, pictures: int) -> str:
        """In words, for so many pictures."""
        drawn = pictures * self.picture
        parts = f"stage 1 {spoken(self.embedding)}, stage 2 {spoken(self.fine_tuning)}, {pictures} pictures"
        return f"about {spoken(self.embedding + self.fine_tuning + drawn)} in all ({parts} {spoken(drawn)})"


def spoken(seconds: float) -> str:
    """As a person says it: 40 s, 3 min, 1 h 20 min. Rounded up, because early is better than late."""
    if seconds < 55:
        return f"{max(5, 5 * math.ceil(seconds / 5))} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def forecast(pipe: StableDiffusionPipeline, image: Tensor, settings: dict, *, strategy: Strategy | None = None,
             folder: str | Path | None = None, sampling: dict | None = None) -> Forecast:  # fmt: skip
    """Time some steps of each stage on this device and predict the seconds that are left of an edit.

    image: (1, 3, size, size); settings: from `edit.settings_of`; strategy: as for the edit. The text does not matter.
    folder: steps in its checkpoints are done already. sampling: settings of `generate`. The model stays as it was."""

    def left(steps: int, stage: str) -> int:
        found = history_so_far(folder, stage) if folder else None
        return steps - (len(found["loss"]) if found else 0)

    method, e = settings["method"], embedding_of_negative(pipe)
    first = pace(lambda run: optimize_embedding(pipe, image, e, steps=TIMED, run=run), strategy)
    second = pace(lambda run: fine_tune(pipe, image, e, method=method, steps=TIMED, run=run), strategy)
    sampling = dict(sampling or {})
    count = settings_for(pipe, DEFAULTS, steps=sampling.pop("steps", None), guidance_scale=None)["steps"]
    drawing = sampling_pace(lambda n: generate(pipe, e, steps=n, **sampling))
    embedding = first.seconds(left(settings["embedding_steps"], "embedding"))
    return Forecast(embedding, second.seconds(left(settings["unet_steps"], method)), drawing.seconds(count))


def worthwhile(settings: dict) -> bool:
    """Does an edit take longer than its forecast?"""
    return settings["embedding_steps"] + settings["unet_steps"] > FEW


def pace(train: Callable[[Run], object], strategy: Strategy | None) -> Pace:
    """Time `TIMED` steps. The first one warms up (memory, kernels), the last one ends with a probe; between them are
    plain steps."""
    ticks = [time.perf_counter()]

    def watch(stage: str, history: History) -> None:
        ticks.append(time.perf_counter())

    train(Run(strategy=strategy, watch=watch, probe_every=NEVER, bar=False))
    took = [after - before for before, after in zip(ticks[:-1], ticks[1:], strict=True)]
    step = fmean(took[1:-1])
    probe = max(0.0, took[-1] - step)
    return Pace(max(0.0, took[0] - step - probe) + time.perf_counter() - ticks[-1], step, probe)


def sampling_pace(draw: Callable[[int], object]) -> Pace:
    """Draw one picture in 2 steps and in 5; the difference is three steps."""
    took = []
    for steps in (2, 2, 5):  # the first time warms up
        began = time.perf_counter()
        draw(steps)
        took.append(time.perf_counter() - began)
    step = max(0.0, took[2] - took[1]) / 3
    return Pace(max(0.0, took[1] - 2 * step), step)
