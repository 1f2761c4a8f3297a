"""The training of both stages: gradient descent that can be watched, stopped and resumed, and that reports divergence.

Each stage writes the loop itself:

    with Training("stage 1", {"e_opt": e}, adam, generator, job, run, look) as training:
        for step in training.steps(40):
            step(denoising_loss(unet, process, z, e, 8, generator))
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from imagic_lib.arguments import check_setting, whole_number
from imagic_lib.diffusion import Loss, mse
from imagic_lib.training.checkpoint import CheckpointFile, TrainingJob, weights_in
from imagic_lib.training.history import History
from imagic_lib.training.strategies import Strategy

PROBE_EVERY = 10  # steps
Watch = Callable[[str, History], object]  # (stage, history so far) -> true to end the stage here
Preview = Callable[[nn.Module, Tensor], object]  # (the UNet in training, its embedding), to draw with


@dataclass(frozen=True)
class Run:
    """Options of a training that the method leaves open, as in `fine_tune(..., run=Run(probe_every=5))`.

    loss: measures the error of a predicted noise; `imagic_lab.experiments.losses` has others than the paper's. bias:
    with 0, all timesteps are equally frequent, as in the paper; with 1, those with much noise are more frequent
    (`stratified_timesteps`), because they decide where the sun and the clouds are but weigh little in the loss.
    strategy: from `planning.memory.plan`, for a GPU that is short of memory. checkpoint: a file that keeps the state,
    so that a stopped or killed training continues with the same bits. watch: called as watch(name, history) after each
    step; a true answer ends the stage. preview: called as preview(unet, embedding) before each probe; it must change
    neither. probe_every: steps between two probes. bar: whether to show a progress bar; by default only in the main
    thread, because elsewhere it would appear in the notebook cell that ran last. For each None, the stage has its
    default. Raises ValueError for an invalid number."""

    loss: Loss = mse
    bias: float | None = None
    strategy: Strategy | None = None
    checkpoint: Path | str | None = None
    watch: Watch | None = None
    preview: Preview | None = None
    probe_every: int | None = None
    bar: bool | None = None

    def __post_init__(self):
        check_setting("bias", self.bias or 0.0, zero=True)
        if self.probe_every is not None and whole_number("probe_every", self.probe_every) < 1:
            raise ValueError(f"probe_every is {self.probe_every}: it must be 1 or more, or be left out")

    def look(self, probe: Callable[[nn.Module, Tensor], float], unet: nn.Module, embedding: Tensor) -> float:
        """Call the preview, then return the current probe loss."""
        e = embedding.detach().to(next(unet.parameters()).dtype)
        if self.preview is not None:
            self.preview(unet, e)
        return probe(unet, e)


class Training:
    """A training and its state. Used with `with`, it has a stop button and a progress bar, and saves at the end.

    weights: those that learn, by name; they are saved and must stay finite. optimizer: with the highest learning rate
    in each group. job: identifies the training in a checkpoint. look: returns the probe loss. scaler: for float16."""

    def __init__(self, name: str, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer,
                 generator: torch.Generator, job: TrainingJob = TrainingJob({}, {}), run: Run = Run(),
                 look: Callable[[], float] | None = None, scaler: torch.amp.GradScaler | None = None):  # fmt: skip
        self.name, self.weights, self.optimizer, self.generator = name, weights, optimizer, generator
        self.job, self.run, self.look, self.scaler = job, run, look, scaler or torch.amp.GradScaler(enabled=False)
        self.facts = job.facts | {"optimizer": type(optimizer).__name__}  # an 8-bit Adam can't read the state of Adam
        self.history, self.file = History(), CheckpointFile(run.checkpoint, self)
        self.bar, self.resumed_at, self.context, self.stop_pressed = None, 0, ExitStack(), None

    def __enter__(self) -> "Training":
        self.stop_pressed = self.context.enter_context(stop_button())
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self.context:  # restores Ctrl-C and closes the bar in any case
            if kind is None and self.done > self.resumed_at:
                self.save()

    def steps(self, count: int, decay: float = 0.0, warmup: int = 0) -> Iterator[Callable[[Tensor], None]]:
        """For each step that remains of `count`, yield the function that takes the step. Call it with the loss.

        decay, warmup: of the learning rate (`rate_at`). The loop ends early, with the weights as they are, if the stop
        button (Ctrl-C) is pressed or `run.watch` asks for it. Raises ValueError for a checkpoint of another training,
        and FloatingPointError as soon as a loss, a gradient or the probe is not finite.
        """
        if self.stop_pressed is None:
            raise RuntimeError(f"{self.name} has not begun: use it in `with Training(…) as training:`")
        self.file.open()
        if (planned := self.history.steps or count) != count:
            other = f"{self.file.path} is of a training of {planned} steps, not {count}"
            raise ValueError(f"{other}: ask for {planned}, or delete this file")
        history, called_off, self.resumed_at = self.history, False, self.done
        history.steps, self.began = count, time.monotonic() - history.seconds
        shown = in_main_thread() if self.run.bar is None else self.run.bar
        self.bar = self.context.enter_context(tqdm(total=count, initial=self.done, desc=self.name, disable=not shown))
        if not history.probe_step:
            self.probe()
        while self.done < count and not (self.stop_pressed() or called_off):
            number = self.done + 1
            for group in self.optimizer.param_groups:
                group["lr"] = rate_at(number, count, group.setdefault("initial_lr", group["lr"]), decay, warmup)
            yield self.step
            if self.done != number:
                raise RuntimeError(f"step {number} of {self.name} was not taken: call step(loss) once in the loop")
            if number % (self.run.probe_every or PROBE_EVERY) == 0 or number == count:
                self.probe()
            called_off = self.run.watch is not None and bool(self.run.watch(self.name, history))
            if self.file.path is not None and time.monotonic() >= self.file.due:
                self.save()
        history.stopped = (self.stop_pressed() or called_off) and self.done < count
        if history.stopped and shown:
            self.bar.write(f"{self.name}: stopped after {self.done} of {count} steps; what was learned is kept")

    def step(self, loss: Tensor) -> None:
        """Take one step of gradient descent on this loss, and write the loss into the history."""
        if not torch.isfinite(loss) or not self.descend(loss):
            self.give_up(self.done + 1, loss.item())
        self.history.loss.append(loss.item())
        self.history.learning_rate.append(self.optimizer.param_groups[0]["lr"])
        self.history.seconds = time.monotonic() - self.began
        self.bar.update()

    def descend(self, loss: Tensor) -> bool:
        """Run the backward pass and the optimizer. If a gradient is not finite, it is not used: return False.

        With a scaler, a step that overflows float16 is skipped and the scale halved, as in AMP; that isn't a failure.
        If the optimizer steps inside the backward pass, no gradients are left, and `optimizer.step` does nothing."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            self.scaler.scale(loss).backward()
            total = sum(p.grad.sum() for p in weights_in(self.optimizer) if p.grad is not None)  # as finite as all
            finite = self.scaler.is_enabled() or math.isfinite(total)
        except FloatingPointError:  # from `stepping_in_backward`
            finite = False
        if finite:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return finite

    def probe(self) -> None:
        """Measure the probe loss and write it down."""
        if self.look is None:
            return
        if not math.isfinite(value := self.look()):
            self.give_up(self.done, value)
        self.history.probe_step.append(self.done)
        self.history.probe_loss.append(value)
        self.bar.set_postfix(probe=f"{value:.4f}")

    def save(self) -> None:
        """Write the checkpoint, if one is wanted. Raises FloatingPointError if a weight is not finite."""
        if not all(torch.isfinite(v).all() for v in self.weights.values()):
            self.give_up(self.done, self.history.loss[-1])
        self.file.save()

    def give_up(self, step: int, value: float) -> None:
        """Raise FloatingPointError, because the loss, a gradient, the probe or a weight is not finite."""
        if step == 0:
            why = f"its loss is {value:g}: the model or the picture is damaged"
            raise FloatingPointError(f"{self.name} can't start, {why}")
        there = self.file.path is not None and self.file.path.exists()
        kept = f"the last good state is in {self.file.path}" if there else "nothing is kept"
        what = f"{self.name} diverged at step {step} (loss {value:g})"
        raise FloatingPointError(f"{what}: lower the learning rate; {kept}")

    @property
    def done(self) -> int:
        return len(self.history.loss)

    def bytes_on_disk(self) -> int:
        """Return the size of a checkpoint, with Adam's two moments for each weight."""
        each = 1 if "8bit" in type(self.optimizer).__name__ else 4
        return sum(v.nbytes + 2 * each * v.numel() for v in self.weights.values())


def rate_at(step: int, steps: int, lr: float, decay: float, warmup: int = 0) -> float:
    """Return the learning rate of a step from 1 to `steps`. It rises linearly to lr in the first `warmup` steps, and
    falls linearly to 0 in the last share `decay` of all steps. With a constant rate the last step can go too far."""
    falling = (steps - step + 1) / (decay * steps) if decay else 1.0
    return lr * min(1.0, step / warmup if warmup else 1.0, falling)


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def stop_button():
    """A context in which the first Ctrl-C only sets a flag, so that no step is cut short, and the second one raises."""
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
