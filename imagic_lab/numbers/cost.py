"""What do the stages' loops cost beyond the networks, and how does the time grow with steps, η values and seeds?

python -m imagic_lab.numbers.cost      # about 5 minutes on 2 idle cores; writes a table of README.md
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table
from imagic_lab.numbers.report import README, command_line, put
from imagic_lib.diffusion import encode_image, forward_process
from imagic_lib.models import DATA
from imagic_lib.stage2_finetuning import DEFAULTS
from imagic_lib.unets import unet_copy

STEP_COUNTS, COUNTS, REPEATS = (10, 20, 40), (1, 2, 4, 8), 3
COST_BATCH = DEFAULTS["full"]["tiny"]["batch"]
QUIET = imagic.Run(bar=False, probe_every=10**6)  # one probe at the start and one at the end


def slope(work: Callable[[int], object], counts: Sequence[int]) -> tuple[float, float]:
    """Fit a straight line to the fastest of several runs of work(count). Returns (seconds for one more, R²)."""
    seconds = np.full(len(counts), np.inf)
    for _ in range(REPEATS):
        for k, count in enumerate(counts):
            began = time.monotonic()
            work(count)
            seconds[k] = min(seconds[k], time.monotonic() - began)
    rate, start = np.polyfit(counts, seconds, 1)
    residual = seconds - (rate * np.array(counts) + start)
    return float(rate), float(1 - residual.var() / seconds.var())


def train_bare(pipe, image: torch.Tensor, e: torch.Tensor, steps: int, learn: str) -> None:
    """Train with the bare minimum: forward pass, backward pass and Adam. learn: "embedding" or "unet"."""
    unet = unet_copy(pipe.unet, pipe.unet.device).requires_grad_(learn == "unet")
    e = e.clone().requires_grad_(learn == "embedding")
    weights = list(unet.parameters()) if learn == "unet" else [e]
    adam = torch.optim.Adam(weights, lr=1e-5, fused=True)
    process, z = forward_process(pipe), encode_image(pipe, image).expand(COST_BATCH, -1, -1, -1)
    for _ in range(steps):
        noise, t = torch.randn_like(z), torch.randint(1000, (COST_BATCH,))
        answer = unet(process.add_noise(z, noise, t), t, e.expand(COST_BATCH, -1, -1)).sample
        (answer - noise).square().mean().backward()
        adam.step()
        adam.zero_grad(set_to_none=True)


def main() -> None:
    command_line(__doc__).parse_args()
    pipe = imagic.load_pipeline("tiny")
    image, e = imagic.load_image(DATA / "images" / "dog-sitting.png", pipe), imagic.encode_text(pipe, "a brown dog")
    ours = {
        "stage 1": lambda n: imagic.optimize_embedding(pipe, image, e, steps=n, batch=COST_BATCH, run=QUIET),
        "stage 2": lambda n: imagic.fine_tune(pipe, image, e, steps=n, batch=COST_BATCH, run=QUIET),
    }
    theirs = {
        "stage 1": lambda n: train_bare(pipe, image, e, n, "embedding"),
        "stage 2": lambda n: train_bare(pipe, image, e, n, "unet"),
    }
    rows = []
    for name, work in ours.items():
        (rate, straight), (least, _) = slope(work, STEP_COUNTS), slope(theirs[name], STEP_COUNTS)
        rows.append([f"a step of {name}, batch {COST_BATCH}", f"{rate:.3f} s", f"{straight:.3f}"])
        rows[-1] += [f"{least:.3f} s", f"{100 * (rate / least - 1):+.1f} %"]
    etas = {n: torch.cat([e] * n) for n in COUNTS}
    for name, work in (
        ("one more η", lambda n: imagic.generate(pipe, etas[n])),
        ("one more seed", lambda n: imagic.generate(pipe, e, range(n))),
        ("one more step of sampling", lambda n: imagic.generate(pipe, e, steps=5 * n)),
    ):
        rate, straight = slope(work, COUNTS)
        rate = rate / 5 if "step" in name else rate
        rows.append([name, f"{rate:.3f} s", f"{straight:.3f}", "–", "–"])
    header = ["what", "costs", "R² of the line", "the networks alone", "what our loop adds"]
    put(README, "cost", markdown_table(header, rows))


if __name__ == "__main__":
    main()
