"""The loop that all four networks share: resumable, seeded by step, curves and pictures on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from imagic_lib.training.checkpoints import load_tensors, pack_optimizer, save_tensors, unpack_optimizer

CHECKPOINT_SECONDS = 30.0  # then at the next 50th step: a kill loses at most a minute


DECAY = 0.3  # of the steps, the last ones: over them the rate falls in a straight line to 0


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Up to `peak` in a straight line, then level, then down to 0 in a straight line.

    As long as the rate is level, nothing in a run depends on its length: it may be made longer afterwards.
    """
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, DECAY * steps))


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    folder: Path,
    *,
    steps: int,
    lr: float,
    warmup: int = 200,
    ema: float | None = None,
    seed: int = 0,
    bf16: bool = False,
    preview: Callable[[nn.Module, Path], None] | None = None,
    preview_every: int = 1000,
) -> dict:
    """Train `model` in place with AdamW on `loss_of(step, generator)`; returns the history.

    Each step's randomness comes from (seed, step) alone, so a run that was killed and started again
    gives the same bits as one that was not. The checkpoint is `folder/name.safetensors`. With `ema`
    the model ends up with the moving average of its weights. `bf16` computes in half precision with
    float32 weights: about 1.4 times faster on processors with AVX512-BF16, slower on all others.
    """
    settings = {"steps": steps, "lr": lr, "seed": seed, "bf16": bf16}
    path = folder / f"{name}.safetensors"
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()} if ema else {}
    start, history = 0, {"step": [], "loss": [], "seconds": 0.0}
    if path.exists():
        start, history = resume(path, model, optimizer, average, settings)
    device = next(model.parameters()).device
    model.train()
    began, saved, losses = time.monotonic() - history["seconds"], time.monotonic(), []
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=5)
    for step in bar:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        torch.manual_seed(1_000_003 * seed + step)  # for dropout, which asks no generator
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr, warmup)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(step, generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}; {path} is still good")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if ema:
            decay = min(ema, (1 + step) / (10 + step))
            for key, value in model.state_dict().items():
                average[key].lerp_(value, 1 - decay) if value.is_floating_point() else average[key].copy_(value)
        losses.append(loss.item())
        done = step + 1
        if done % 50 == 0 or done == steps:
            history["step"].append(done)
            history["loss"].append(sum(losses) / len(losses))
            history["seconds"] = time.monotonic() - began
            bar.set_postfix(loss=f"{history['loss'][-1]:.4f}")
            losses = []
        if (done % 50 == 0 and time.monotonic() - saved > CHECKPOINT_SECONDS) or done == steps:
            state = {"done": done, "settings": settings, "history": history}
            save(path, model, optimizer, average, state)
            saved = time.monotonic()
        if preview and (done % preview_every == 0 or done == steps):
            with torch.no_grad():
                preview(model, folder / f"{name}-{done:06d}.png")
            model.train()
    if ema:
        model.load_state_dict(average)
    return history


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict, state: dict) -> None:
    """One checkpoint: weights, their average, the optimizer, and where the training is."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | pack_optimizer(optimizer)
    save_tensors(path, tensors | {f"ema.{k}": v for k, v in average.items()}, state)


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict, settings: dict):
    """Put a checkpoint back; returns (steps done, history). Raises ValueError if its settings were others; only
    the number of steps may change, as long as the rate is level in both runs (`learning_rate`)."""
    tensors, state = load_tensors(path)
    level = state["done"] <= (1 - DECAY) * min(settings["steps"], state["settings"]["steps"])
    for key, value in settings.items():
        if state["settings"][key] != value and not (key == "steps" and level):
            raise ValueError(
                f"{path} is of a run with {key} = {state['settings'][key]}, not {value}: continue it with the same "
                f"settings, or delete the file to start again"
            )
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    average.update({k[4:]: v.to(average[k[4:]].device) for k, v in tensors.items() if k.startswith("ema.")})
    unpack_optimizer(optimizer, tensors)
    return state["done"], state["history"]
