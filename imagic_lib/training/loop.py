"""The loop of stages 1 and 2: gradient descent that can be watched, stopped, resumed, and that tells when it fails."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from imagic_lib.diffusion import Loss, mse
from imagic_lib.models import warn_caller, whole_number
from imagic_lib.training.checkpoints import (
    free_on_disk,
    load_facts,
    load_tensors,
    pack_optimizer,
    remove_orphans,
    remove_tensors,
    save_tensors,
    size_on_disk,
    unpack_optimizer,
)
from imagic_lib.training.identity import Identity
from imagic_lib.training.strategies import Strategy

PROBE_EVERY = 10  # steps
SAVE_AFTER = 30.0  # seconds between two checkpoints of a small model
LOSE_AT_MOST = 600.0  # seconds of work, if the process is killed
SAVING_SHARE = 0.05  # of the time, where `LOSE_AT_MOST` allows it: a large model's checkpoint takes a minute to write
LARGE = 10**9  # bytes of a checkpoint that are worth a word


@dataclass
class History:
    """How a stage went: the raw loss of every step, and the probe loss of every few.

    The raw loss is of random timesteps and so mostly noise; the probe is always the same eight
    (noise, timestep) pairs and shows whether the stage still learns. `learning_rate` has one entry a
    step; `seconds` is the wall time of all steps, also over several sittings.
    """

    loss: list[float] = field(default_factory=list)
    probe_step: list[int] = field(default_factory=list)
    probe_loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False  # by the stop button, before all steps were done
    steps: int = 0  # that were asked for

    def to_dict(self) -> dict:
        return asdict(self)

    def has_settled(self, patience: int) -> bool:
        """True if none of the last `patience` probes was more than 1 % below the best one before them."""
        if len(self.probe_loss) <= patience:
            return False
        return min(self.probe_loss[-patience:]) > 0.99 * min(self.probe_loss[:-patience])


Watch = Callable[[str, History], object]  # (stage, history so far) -> true to end the stage here
Preview = Callable[[nn.Module, Tensor], object]  # (the UNet in training, its embedding): to draw with


@dataclass(frozen=True)
class Run:
    """How a training is run, where the method leaves it open: `fine_tune(..., run=Run(patience=5))`. The same for all.

    loss: what "wrong" means for a predicted noise; others than the paper's are in `experiments.losses`. strategy: from
    `memory.plan`, for a GPU that is short of memory. checkpoint: a file that keeps the state, so that a training that
    was stopped or killed goes on with the same bits. watch: called as watch(name, history) after each step; what it
    returns, if true, is a stop button. preview: called as preview(unet, embedding) before each probe; it must change
    neither. patience: end when the probe has not fallen by 1 % for so many probes. probe_every: steps between two
    probes; left out, the stage's own. bar: show a progress bar; left out, in the main thread alone, because elsewhere
    it would stand in whichever cell of a notebook was run last. Raises ValueError for a number that can't be.
    """

    loss: Loss = mse
    strategy: Strategy | None = None
    checkpoint: Path | str | None = None
    watch: Watch | None = None
    preview: Preview | None = None
    patience: int | None = None
    probe_every: int | None = None
    bar: bool | None = None

    def __post_init__(self):
        for name in ("patience", "probe_every"):
            value = getattr(self, name)
            if value is not None and whole_number(name, value) < 1:
                raise ValueError(f"{name} is {value}: it must be 1 or more, or be left out")

    def look(self, probe: Callable[[nn.Module, Tensor], float], unet: nn.Module, embedding: Tensor) -> float:
        """The probe's loss now, after whoever wants a preview has had it."""
        if self.preview is not None:
            self.preview(unet, embedding)
        return probe(unet, embedding)


@dataclass
class Progress:
    """Everything that a training is at one moment: what goes into a checkpoint, and comes out of it."""

    name: str
    trained: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    identity: Identity  # of what: a checkpoint of something else is refused
    scaler: torch.amp.GradScaler | None = None  # for float16, whose small gradients would vanish
    history: History = field(default_factory=History)

    @property
    def facts(self) -> dict:
        """The identity's facts, with the kind of optimizer: the state of Adam means nothing to an 8-bit Adam."""
        return self.identity.facts | {"optimizer": type(self.optimizer).__name__}

    def bytes_on_disk(self) -> int:
        """What a checkpoint takes: the numbers that learn, and Adam's two moments for each of them."""
        each = 1 if "8bit" in type(self.optimizer).__name__ else 4
        return sum(v.nbytes + 2 * each * v.numel() for v in self.trained.values())

    def save(self, path: Path) -> None:
        """Write a checkpoint. The old one is kept until the new one is whole, unless the disk has no room for both."""
        tensors = {f"trained.{k}": v for k, v in self.trained.items()} | pack_optimizer(self.optimizer)
        tensors |= {f"near.{k}": v for k, v in self.identity.near.items()}
        facts = {"identity": self.facts, "history": self.history.to_dict()}
        facts["scaler"] = self.scaler.state_dict() if self.scaler else {}
        if free_on_disk(path) < self.bytes_on_disk() <= free_on_disk(path) + size_on_disk(path):
            remove_tensors(path)
        save_tensors(path, tensors | {"generator": self.generator.get_state()}, facts)

    def load(self, path: Path) -> None:
        """Go on from the checkpoint if there is one. Raises ValueError if it is damaged, or of another training."""
        remove_orphans(path)
        if not path.exists():
            return
        other = Identity(self.facts, {}).difference(load_facts(path).get("identity"), {})  # before gigabytes are read
        if not other:
            tensors, facts = load_tensors(path)
            near = {k[5:]: v for k, v in tensors.items() if k.startswith("near.")}
            other = self.identity.difference(facts["identity"], near)
        if other:
            raise ValueError(f"{path} is from a training with {other}: choose another folder, or delete this file")
        try:
            self._copy({k[8:]: v for k, v in tensors.items() if k.startswith("trained.")})
            unpack_optimizer(self.optimizer, tensors)
            self.generator.set_state(tensors["generator"])
            if self.scaler and facts["scaler"]:
                self.scaler.load_state_dict(facts["scaler"])
            self.history = History(**facts["history"] | {"stopped": False})
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is no whole checkpoint of {self.name} ({error!r}): delete it") from error

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for key, weight in self.trained.items():
            if values[key].shape != weight.shape:
                raise ValueError(f"{key} has the shape {tuple(values[key].shape)}")
            weight.copy_(values[key])

    def is_finite(self) -> bool:
        return all(torch.isfinite(v).all() for v in self.trained.values())


class Keeper:
    """The checkpoint file of a training: what it takes is said first, and it is written often enough."""

    def __init__(self, progress: Progress, path: Path | str | None):
        self.progress, self.path = progress, Path(path) if path else None
        self.due = time.monotonic() + SAVE_AFTER

    def open(self, steps: int) -> None:
        """Go on from the file if it is there. Raises ValueError if it is of another training or has done more steps, or
        if there is no room for it."""
        if self.path is None:
            return
        self.progress.load(self.path)
        if (done := len(self.progress.history.loss)) > steps:
            raise ValueError(f"{self.path} has done {done} steps, not {steps}: ask for {done}, or delete this file")
        need, free, own = self.progress.bytes_on_disk(), free_on_disk(self.path), size_on_disk(self.path)
        takes = f"{self.progress.name}: its checkpoint takes {need / 1e9:.1f} GB on disk"
        where = f"{self.path.parent} has room for {(free + own) / 1e9:.1f} GB"
        if need > free + own:
            raise ValueError(f"{takes}, and {where}: choose another folder, or train a LoRA, whose checkpoint is small")
        if need > LARGE:
            one = "" if 2 * need <= free + own else " (so the old one is deleted before a new one is written)"
            tqdm.write(f"{takes}; {where}{one}")

    def save_if_due(self) -> None:
        if self.path is not None and time.monotonic() >= self.due:
            self.save()

    def save(self) -> None:
        """Write the state, if it is one of numbers. A full disk ends no training, but that nothing is kept is said."""
        if not self.progress.is_finite():
            self.give_up(len(self.progress.history.loss), self.progress.history.loss[-1])
        if self.path is None:
            return
        began = time.monotonic()
        try:
            self.progress.save(self.path)
        except OSError as error:
            warn_caller(f"{self.path} could not be written ({error}): a stop would lose the training")
        took = time.monotonic() - began
        self.due = time.monotonic() + pause_after(took)

    def give_up(self, step: int, value: float) -> None:
        """Raise FloatingPointError: the loss, a gradient or the probe is no number."""
        name = self.progress.name
        if step == 0:
            raise FloatingPointError(f"{name} can't start, its loss is {value:g}: the model or the picture is damaged")
        there = self.path is not None and self.path.exists()
        kept = f"the last good state is in {self.path}" if there else "nothing of it is kept"
        raise FloatingPointError(f"{name} diverged at step {step} (loss {value:g}): lower the learning rate; {kept}")


def pause_after(took: float) -> float:
    """Seconds from one checkpoint to the next, if it takes so many to write one: its share of the time, but so
    that a kill loses `LOSE_AT_MOST` at most, the time of the writing before and after the pause included."""
    return max(SAVE_AFTER, min(took / SAVING_SHARE, LOSE_AT_MOST - 2 * took))


def rate_at(step: int, steps: int, lr: float, decay: float) -> float:
    """The learning rate of step 1, 2, … `steps`: lr, and over the last part `decay` of the way straight down to 0.

    decay: 0 keeps the rate, 0.5 lowers it over the second half. A rate that is kept may end on a step too far.
    """
    return lr * min(1.0, (steps - step + 1) / (decay * steps)) if decay else lr


def descend(
    progress: Progress,
    loss_of: Callable[[], Tensor],
    probe_of: Callable[[], float],
    *,
    steps: int,
    decay: float = 0.0,
    run: Run = Run(),
) -> History:
    """Gradient descent on `progress.trained`, with a window into it. What `run` can ask for: see there.

    decay: see `rate_at`. The stop button (Ctrl-C) ends it after the present step and keeps what was learned. The
    checkpoint is written every half minute, a large one every ten minutes at least, at the end and at a stop; if it
    is there at the start, training goes on from it. Raises FloatingPointError at once when the loss, a gradient or the
    probe is no number, and ValueError for a checkpoint that is not of this training.
    """
    keeper = Keeper(progress, run.checkpoint)
    keeper.open(steps)
    history, probe_every = progress.history, run.probe_every or PROBE_EVERY
    history.steps, done, called_off = steps, len(history.loss), False
    began = time.monotonic() - history.seconds

    def look(step: int) -> None:
        if not math.isfinite(value := probe_of()):
            keeper.give_up(step, value)
        history.probe_step.append(step)
        history.probe_loss.append(value)

    def settled() -> bool:
        return run.patience is not None and history.has_settled(run.patience)

    if not history.probe_step:
        look(0)
    shown = in_main_thread() if run.bar is None else run.bar
    bar = tqdm(total=steps, initial=len(history.loss), desc=progress.name, disable=not shown)
    with stop_button() as stopped, bar:
        while (step := len(history.loss) + 1) <= steps and not (stopped() or called_off or settled()):
            for group in progress.optimizer.param_groups:
                group["lr"] = rate_at(step, steps, progress.optimizer.defaults["lr"], decay)
            loss = loss_of()
            if not torch.isfinite(loss) or not one_step(loss, progress):
                keeper.give_up(step, loss.item())
            history.loss.append(loss.item())
            history.learning_rate.append(progress.optimizer.param_groups[0]["lr"])
            history.seconds = time.monotonic() - began
            bar.update()
            if step % probe_every == 0 or step == steps:
                look(step)
                bar.set_postfix(probe=f"{history.probe_loss[-1]:.4f}")
            called_off = run.watch is not None and bool(run.watch(progress.name, history))
            keeper.save_if_due()
        history.stopped = (stopped() or called_off) and step <= steps
        if history.stopped and not bar.disable:
            bar.write(f"{progress.name}: stopped after {step - 1} of {steps} steps; what was learned is kept")
    if len(history.loss) > done:
        keeper.save()
    return history


def one_step(loss: Tensor, progress: Progress) -> bool:
    """One step of the optimizer; False, with nothing changed, if a gradient is no number.

    With a scaler a step that overflows float16 is left out and the scale halved, as AMP does; that is no divergence.
    An optimizer that steps inside the backward pass has freed the gradients by then; its own step finds none.
    """
    progress.optimizer.zero_grad(set_to_none=True)
    if progress.scaler is not None:
        progress.scaler.scale(loss).backward()
        progress.scaler.step(progress.optimizer)
        progress.scaler.update()
        finite = True
    else:
        loss.backward()
        finite = all(torch.isfinite(p.grad).all() for p in progress.trained.values() if p.grad is not None)
        if finite:
            progress.optimizer.step()
    progress.optimizer.zero_grad(set_to_none=True)
    return finite


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def stop_button():
    """Inside, the first Ctrl-C only raises a flag, so that no step is cut in half; the second one raises."""
    pressed = threading.Event()
    if not in_main_thread():
        yield pressed.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def press(number, frame):
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
