"""The loop of stages 1 and 2: gradient descent that can be watched, stopped, resumed, and that tells when it fails."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from imagic_lib.training.checkpoints import load_tensors, pack_optimizer, save_tensors, unpack_optimizer

SMALL = 50_000_000  # numbers; up to here a copy of the last good state is kept in memory
SAVING_SHARE = 0.05  # of the time, at most: a large model's checkpoint takes a minute to write


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

    def to_dict(self) -> dict:
        return asdict(self)

    def has_settled(self, patience: int) -> bool:
        """True if none of the last `patience` probes was more than 1 % below the best one before them."""
        if len(self.probe_loss) <= patience:
            return False
        return min(self.probe_loss[-patience:]) > 0.99 * min(self.probe_loss[:-patience])


def hash_of(tensor: Tensor) -> str:
    """Sixteen hexadecimal digits that stand for these very numbers."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def identity_of(image: Tensor, start: Tensor, given: dict, loss: Callable, generator: torch.Generator) -> dict:
    """What a training is of, as JSON; the number of steps may change when it is continued."""
    settings = {name: value for name, value in given.items() if name != "steps"}
    named = getattr(loss, "__name__", repr(loss))
    tensors = {"image": hash_of(image), "start": hash_of(start.float())}
    return {**tensors, **settings, "loss": named, "seed": generator.initial_seed()}


Watch = Callable[[str, History], object]  # (stage, history so far) -> true to end the stage here

DIFFERENT = {"image": "another picture", "start": "another text", "method": "another method", "seed": "another seed"}


@dataclass
class Progress:
    """Everything that a training is at one moment: what goes into a checkpoint, and comes out of it."""

    name: str
    trained: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    checkpoint: Path | None
    identity: dict  # what must be equal for a checkpoint to be continued: input, text, settings
    scaler: torch.amp.GradScaler | None = None  # for float16, whose small gradients would vanish
    history: History = field(default_factory=History)
    good: dict[str, Tensor] | None = None

    def save(self) -> None:
        if self.checkpoint is not None:
            tensors = {f"trained.{k}": v for k, v in self.trained.items()} | pack_optimizer(self.optimizer)
            facts = {"stage": self.name, "identity": self.identity, "history": self.history.to_dict()}
            facts["scaler"] = self.scaler.state_dict() if self.scaler else {}
            save_tensors(self.checkpoint, tensors | {"generator": self.generator.get_state()}, facts)

    def load(self) -> None:
        """Go on from the checkpoint if there is one. Raises ValueError if it is of another training."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        tensors, facts = load_tensors(self.checkpoint)
        for key, value in self.identity.items():
            if facts["identity"].get(key) != value:
                what = DIFFERENT.get(key, f"{key} {facts['identity'].get(key)!r}, not {value!r}")
                raise ValueError(
                    f"{self.checkpoint} is from a training with {what}: choose another folder, or delete this file"
                )
        self._copy({k[8:]: v for k, v in tensors.items() if k.startswith("trained.")})
        unpack_optimizer(self.optimizer, tensors)
        self.generator.set_state(tensors["generator"])
        if self.scaler and facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        self.history = History(**facts["history"] | {"stopped": False})

    def remember(self) -> None:
        """Keep a copy of this state as the last good one, unless it is too large to copy."""
        if sum(v.numel() for v in self.trained.values()) <= SMALL:
            self.good = {k: v.detach().clone() for k, v in self.trained.items()}

    def is_finite(self) -> bool:
        return all(torch.isfinite(v).all() for v in self.trained.values())

    def give_up(self, step: int, loss: float) -> None:
        """Raise FloatingPointError, with the last good state put back."""
        kept = "nothing of it is kept"
        if self.good is not None:
            self._copy(self.good)
            kept = f"the state of step {self.history.probe_step[-1]} is kept"
        if self.checkpoint is not None and self.checkpoint.exists():
            kept = f"the last good state is in {self.checkpoint}"
        raise FloatingPointError(
            f"{self.name} diverged at step {step} (loss {loss:g}): lower the learning rate; {kept}"
        )

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for key, value in values.items():
            self.trained[key].copy_(value)


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
    probe_every: int,
    patience: int | None = None,
    checkpoint_every: int = 100,
    decay: float = 0.0,
    step_with: Callable[[Tensor, Progress], bool] | None = None,
    watch: Watch | None = None,
) -> History:
    """Gradient descent on `progress.trained`, with a window into it.

    The stop button (Ctrl-C) ends it after the present step and keeps what was learned. patience: end it
    when the probe has not fallen by 1 % for so many probes. watch: called as watch(name, history) after each
    step; what it returns, if true, is a stop button too. With a checkpoint file the state is written
    about every `checkpoint_every` steps, at the end and at a stop; if it is there at the start, training
    goes on from it, with the same bits as if it had never stopped. decay: see `rate_at`. Raises
    FloatingPointError at once when the loss, a gradient or the probe is no number, with the last good state kept.
    """
    progress.load()
    history, began = progress.history, time.monotonic() - progress.history.seconds
    step_with, save_again, called_off = step_with or plain_step, 0.0, False

    def look(step: int) -> None:
        if (value := probe_of()) != value or abs(value) == float("inf"):
            progress.give_up(step, value)
        history.probe_step.append(step)
        history.probe_loss.append(value)
        progress.remember()

    def settled() -> bool:
        return patience is not None and history.has_settled(patience)

    if not history.probe_step:
        look(0)
    bar = tqdm(total=steps, initial=len(history.loss), desc=progress.name)
    with stop_button() as stopped, bar:
        while (step := len(history.loss) + 1) <= steps and not (stopped() or called_off or settled()):
            for group in progress.optimizer.param_groups:
                group["lr"] = rate_at(step, steps, progress.optimizer.defaults["lr"], decay)
            loss = loss_of()
            if not torch.isfinite(loss) or not step_with(loss, progress):
                progress.give_up(step, loss.item())
            history.loss.append(loss.item())
            history.learning_rate.append(progress.optimizer.param_groups[0]["lr"])
            history.seconds = time.monotonic() - began
            bar.update()
            if step % probe_every == 0 or step == steps:
                look(step)
                bar.set_postfix(probe=f"{history.probe_loss[-1]:.4f}")
            called_off = watch is not None and bool(watch(progress.name, history))
            if step % checkpoint_every == 0 and time.monotonic() > save_again:
                if not progress.is_finite():
                    progress.give_up(step, loss.item())
                began_saving = time.monotonic()
                progress.save()
                save_again = time.monotonic() + (time.monotonic() - began_saving) / SAVING_SHARE
        history.stopped = (stopped() or called_off) and step <= steps
        if history.stopped:
            bar.write(f"{progress.name}: stopped after {step - 1} of {steps} steps; what was learned is kept")
    if not progress.is_finite():
        progress.give_up(len(history.loss), history.loss[-1])
    progress.save()
    return history


def plain_step(loss: Tensor, progress: Progress) -> bool:
    """One step of the optimizer; False, with nothing changed, if a gradient is no number. With a scaler a
    step that overflows float16 is left out and the scale halved, as AMP does; that is no divergence."""
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


@contextmanager
def stop_button():
    """Inside, the first Ctrl-C only raises a flag, so that no step is cut in half; the second one raises."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
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
