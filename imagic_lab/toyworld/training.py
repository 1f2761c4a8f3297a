"""Train the networks of the toy world, with `Training`, a seed for each step, and a moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from imagic_lib.training.checkpoint import TrainingJob
from imagic_lib.training.loop import History, Run, Training

DECAY = 0.3  # the share of the steps, at the end, in which the learning rate falls linearly to 0
EVERY = 50  # steps that share one point of the curve


def train_network(name: str, model: nn.Module, loss_of: Callable[[int, torch.Generator], Tensor], folder: Path, *,
                  steps: int, lr: float, warmup: int = 200, ema: float | None = None, seed: int = 0,
                  about: dict | None = None) -> dict:  # fmt: skip
    """Train `model` in place with AdamW on `loss_of(step, generator)`. Returns the curve (`curve_of`).

    The randomness of each step depends only on (seed, step), so a run that was killed and started again gives the same
    bits as one that was not. The checkpoint is `folder/name.safetensors`. With `ema` the model ends up with the moving
    average of its weights. about: JSON that identifies the data; a checkpoint with other data is refused.
    """
    adam = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    adam.register_step_pre_hook(clip_gradients)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()} if ema else {}
    weights = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"ema.{k}": v for k, v in average.items()}
    job, generator = TrainingJob({"lr": lr, "seed": seed} | (about or {}), {}), torch.Generator()
    run = Run(checkpoint=folder / f"{name}.safetensors", bar=True)
    model.train()
    with Training(name, weights, adam, generator, job, run) as training:
        for step in training.steps(steps, DECAY, warmup):
            number = training.done
            generator.manual_seed(1_000_003 * seed + number)
            torch.manual_seed(1_000_003 * seed + number)  # for dropout, which takes no generator
            step(loss_of(number, generator))
            follow(average, model, min(ema or 0.0, (1 + number) / (10 + number)))
    if training.history.stopped:
        raise KeyboardInterrupt(f"{name} stopped; the same command goes on with {run.checkpoint}")
    if ema:
        model.load_state_dict(average)
    return curve_of(training.history)


def clip_gradients(adam: torch.optim.Optimizer, *_) -> None:
    """Limit the norm of all gradients together to 1, before a step."""
    nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], 1.0)


@torch.no_grad()
def follow(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move the average towards the weights; whole numbers are copied."""
    if average:
        for key, value in model.state_dict().items():
            average[key].lerp_(value, 1 - decay) if value.is_floating_point() else average[key].copy_(value)


def curve_of(history: History) -> dict:
    """Return {"step": [50, 100, …], "loss": means over the steps since the last point, "seconds": of all steps}."""
    ends = [*range(EVERY, len(history.loss), EVERY), len(history.loss)] if history.loss else []
    means = [sum(part) / len(part) for end in ends if (part := history.loss[(end - 1) // EVERY * EVERY : end])]
    return {"step": ends, "loss": means, "seconds": history.seconds}
