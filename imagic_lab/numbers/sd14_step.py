"""What does a step of Stable Diffusion take? The exact architecture of 1.4 with random weights, at 512 px on the CPU.

    python -m imagic_lab.numbers.sd14_step     # about 10 minutes on 2 cores, 16 GB of memory, 4.3 GB of disk
    python -m imagic_lab.numbers.sd14_step "stages 3 and 4: one picture"    # only this line of the table

The model is built, saved as a folder, and loaded by the code that loads a hub id. Then each stage runs real steps, each
in a new process. The table of imagic_lab/numbers/README.md compares their peak memory with the prediction of
imagic_lab/numbers/memory.py. The C library is told to return freed memory (MALLOC_…), because otherwise the resident
memory would be larger than the memory in use.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from imagic_lab.benchmark import markdown_table
from imagic_lab.numbers.report import README, ROOT, command_line, put

SD_JOBS = {  # a line of the table: stage, method, optimizer, gradient checkpointing
    "stage 1: embedding": (1, "full", "Adam", False),
    "stage 1: embedding, checkpointing": (1, "full", "Adam", True),
    "stage 2: all weights": (2, "full", "Adam", False),
    "stage 2: all weights, stepping in backward": (2, "full", "Adam in backward", False),
    "stage 2: LoRA of rank 4, float32": (2, "lora", "Adam", False),
    "stages 3 and 4: one picture": (4, "full", "Adam", False),
}
SD_STEPS = 2
FRUGAL_MALLOC = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def build_sd14(folder: Path) -> None:
    """Save random weights of exactly this architecture as a folder in diffusers format."""
    import torch
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    from imagic_lab.toyworld import clip, dataset
    from imagic_lib.planning import memory

    torch.manual_seed(0)
    parts = memory.on_meta("CompVis/stable-diffusion-v1-4")
    for part in parts.values():
        part.to_empty(device="cpu")
        for p in part.parameters():
            torch.nn.init.normal_(p, std=0.02)
        for name, buffer in part.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1])[None])
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipe = StableDiffusionPipeline(
        **parts,
        tokenizer=clip.train_tokenizer(dataset.training_scenes(500), folder / "words"),
        scheduler=PNDMScheduler(**noise, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)


class PeakWatch(threading.Thread):
    """Watches the resident memory of this process in a `with` block, 50 times a second; `most` is its peak in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.over = 0, threading.Event()

    def run(self) -> None:
        import psutil

        process = psutil.Process()
        while not self.over.wait(0.02):
            self.most = max(self.most, process.memory_info().rss)

    def __enter__(self) -> PeakWatch:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.join()


def print_step(folder: Path, job: str) -> None:
    """Run the job's steps in a new process, and print the seconds of a step and the peak in GiB above the memory of the
    interpreter and its libraries."""
    import psutil
    import torch

    import imagic_lib as imagic
    from imagic_lab.toyworld import Scene
    from imagic_lib.training.strategies import Strategy

    torch.randn(64, 64) @ torch.randn(64, 64)  # starts the libraries' threads and buffers
    libraries = psutil.Process().memory_info().rss
    stage, method, optimizer, checkpointing = SD_JOBS[job]
    pipe = imagic.load_pipeline(folder, device="cpu", safety_checker=False)
    image = imagic.load_image(Scene.sample(0).render(), pipe)
    e = imagic.encode_text(pipe, "a brown dog jumping on the grass").detach()
    strategy = Strategy(torch.float32, optimizer, checkpointing)
    run = drawing_of(pipe, e) if stage == 4 else steps_of(pipe, image, e, stage, method, strategy)
    pipe = image = None
    gc.collect()
    began = time.monotonic()
    with PeakWatch() as watch:
        run()
        seconds = (time.monotonic() - began) / SD_STEPS
    print(seconds, (watch.most - libraries) / 2**30)


def drawing_of(pipe, e):
    """Return a function that draws a picture in `SD_STEPS` steps with guidance; its seconds include the decoding."""
    import imagic_lib as imagic

    return lambda: imagic.generate(pipe, imagic.interpolate(e, e.flip(1), eta=0.5), seeds=[0], steps=SD_STEPS)


def steps_of(pipe, image, e, stage: int, method: str, strategy):
    """Return a function that runs steps of a stage with only its UNet in memory, as the prediction assumes, because
    with a GPU all other networks are in the computer's memory."""
    import torch

    from imagic_lib import stage1_embedding, stage2_finetuning
    from imagic_lib.diffusion import denoising_loss, encode_image, forward_process
    from imagic_lib.training.strategies import stepping
    from imagic_lib.unets import LoRA, add_lora

    process, latents = forward_process(pipe), encode_image(pipe, image)
    unet, generator = pipe.unet, torch.Generator().manual_seed(0)
    pipe.vae = pipe.text_encoder = None
    unet.requires_grad_(stage == 2 and method == "full")
    if strategy.checkpointing:
        unet.enable_gradient_checkpointing()
    if stage == 2 and method == "lora":
        add_lora(unet, LoRA())
    learned = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    weights = learned if stage == 2 else {"e": e.requires_grad_(True)}
    defaults = stage2_finetuning.DEFAULTS[method] if stage == 2 else stage1_embedding.DEFAULTS

    def run() -> None:
        with stepping(weights, defaults["stable-diffusion"]["lr"], strategy) as adam:
            for _ in range(SD_STEPS):
                denoising_loss(unet, process, latents, e, 1, generator).backward()
                adam.step()
                adam.zero_grad(set_to_none=True)

    return run


def predicted_gib(stage: int, method: str, optimizer: str, checkpointing: bool) -> float:
    """Return the prediction of imagic_lab/numbers/memory.py for a job, in GiB."""
    import torch

    from imagic_lab.numbers import memory
    from imagic_lib.training.strategies import Strategy

    parts = memory.on_meta("CompVis/stable-diffusion-v1-4")
    if stage == 4:
        return memory.sampling_peak(parts, torch.float32) / 2**30
    way = memory.Way(method, Strategy(torch.float32, optimizer, checkpointing))
    peak, learning = memory.training_peak(parts["unet"], stage, way)
    return (peak + learning * memory.STATE_BYTES[optimizer] * (stage == 2)) / 2**30


def stored_lines() -> dict[str, list[str]]:
    """Return the current lines of the table, by job."""
    lines = README.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| stage")]
    return {row[0]: row for row in cells}


def measure_jobs(folder: Path, jobs: list[str]) -> None:
    """Measure these jobs and write the table, leaving its other lines unchanged."""
    rows = stored_lines()
    for job in jobs:
        command = [sys.executable, "-m", "imagic_lab.numbers.sd14_step", "--model", str(folder), job]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=FRUGAL_MALLOC)
        seconds, peak = map(float, done.stdout.split())
        predicted = predicted_gib(*SD_JOBS[job])
        rows[job] = [job, f"{seconds:.0f} s", f"{peak:.2f}", f"{predicted:.2f}", f"{peak / predicted - 1:+.0%}"]
        print(rows[job], flush=True)
    header = ["512×512, float32, one timestep a step", "a step", "measured, GiB", "predicted, GiB", "off by"]
    put(README, "sd14", markdown_table(header, [rows[job] for job in SD_JOBS if job in rows]))


def main() -> None:
    options = command_line(__doc__)
    lines = ", ".join(SD_JOBS)
    options.add_argument("jobs", nargs="*", metavar="LINE", help=f"lines of the table (default: all): {lines}")
    options.add_argument("--model", type=Path, help=argparse.SUPPRESS)  # the folder, for the process of one job
    asked = options.parse_args()
    if unknown := [job for job in asked.jobs if job not in SD_JOBS]:
        options.error(f"the table has no line {unknown[0]!r}")
    if asked.model:
        return print_step(asked.model, asked.jobs[0])
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        build_sd14(Path(folder))
        size = sum(p.stat().st_size for p in Path(folder).rglob("*.safetensors")) / 1e9
        print(f"built and saved {size:.2f} GB in {time.monotonic() - began:.0f} s", flush=True)
        measure_jobs(Path(folder), asked.jobs or list(SD_JOBS))


if __name__ == "__main__":
    main()
