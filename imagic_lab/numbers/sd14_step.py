"""The real architecture, here: Stable Diffusion 1.4's exact shape with random weights, at 512 px on the CPU.

    python -m imagic_lab.numbers.sd14_step     # about 10 minutes on 2 cores, 16 GB of memory, 4.3 GB of disk
    python -m imagic_lab.numbers.sd14_step "stages 3 and 4: one picture"    # this line of the table only

Builds it, saves it as a folder, loads it through the very code that loads the hub id, and runs real
steps of each stage, each in a process of its own: seconds and peak memory of a step against the
prediction of imagic_lib/planning/memory.py. Writes the table of imagic_lab/numbers/README.md. Where the C library keeps
freed memory to itself, resident memory says more than is in use: it is told not to (MALLOC_…).
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from imagic_lab.numbers.report import README, ROOT, put, table

JOBS = {  # what is run: stage, method, optimizer, gradient checkpointing
    "stage 1: embedding": (1, "full", "Adam", False),
    "stage 1: embedding, checkpointing": (1, "full", "Adam", True),
    "stage 2: all weights": (2, "full", "Adam", False),
    "stage 2: all weights, stepping in backward": (2, "full", "Adam in backward", False),
    "stage 2: LoRA of rank 4, float32": (2, "lora", "Adam", False),
    "stages 3 and 4: one picture": (4, "full", "Adam", False),
}
STEPS = 2


def build(folder: Path) -> None:
    """Random weights in the exact shape, as a diffusers folder."""
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


class Peak(threading.Thread):
    """Watches the resident memory of this process, 50 times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.over = 0, threading.Event()

    def run(self) -> None:
        import psutil

        process = psutil.Process()
        while not self.over.wait(0.02):
            self.most = max(self.most, process.memory_info().rss)


def measure(folder: str, job: str) -> None:
    """In a process of its own: run the job's steps; print seconds a step, and the peak in GiB above what
    the interpreter and its libraries take."""
    import psutil
    import torch

    import imagic_lib as imagic
    from imagic_lab.toyworld import Scene
    from imagic_lib.training.strategies import Strategy

    torch.randn(64, 64) @ torch.randn(64, 64)  # the libraries' own threads and buffers
    libraries = psutil.Process().memory_info().rss
    stage, method, optimizer, checkpointing = JOBS[job]
    pipe = imagic.load_pipeline(folder, device="cpu", safety_checker=False)
    latents_of = imagic.load_image(Scene.sample(0).render(), pipe)
    e = imagic.encode_text(pipe, "a brown dog jumping on the grass").detach()
    strategy = Strategy(method, torch.float32, optimizer, checkpointing)
    run = drawing(pipe, e) if stage == 4 else steps_of(pipe, latents_of, e, stage, strategy)
    pipe = latents_of = None
    gc.collect()
    watch = Peak()
    watch.start()
    began = time.monotonic()
    run()
    seconds = (time.monotonic() - began) / STEPS
    watch.over.set()
    print(seconds, (watch.most - libraries) / 2**30)


def drawing(pipe, e):
    """A function that draws a picture in `STEPS` steps, with guidance; the seconds include the decoding."""
    import imagic_lib as imagic

    return lambda: imagic.generate(pipe, imagic.interpolate(e, e.flip(1), eta=0.5), seeds=[0], steps=STEPS)


def steps_of(pipe, image, e, stage: int, strategy):
    """A function that runs the stage's own steps while nothing but its UNet is in memory, as the
    prediction assumes: on a GPU, all else waits in the computer's memory."""
    import torch

    from imagic_lib import stage1_embedding, stage2_finetuning
    from imagic_lib.diffusion import denoising_loss, encode_image, forward_process
    from imagic_lib.training.identity import Identity
    from imagic_lib.training.loop import Progress, Run, descend
    from imagic_lib.training.strategies import stepping

    process, latents = forward_process(pipe), encode_image(pipe, image)
    unet, generator = pipe.unet, torch.Generator().manual_seed(0)
    pipe.vae = pipe.text_encoder = None
    unet.requires_grad_(stage == 2 and strategy.method == "full")
    if strategy.checkpointing:
        unet.enable_gradient_checkpointing()
    if stage == 2 and strategy.method == "lora":
        stage2_finetuning.add_lora(unet, stage2_finetuning.LoRA())
    learned = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    trained = learned if stage == 2 else {"e": e.requires_grad_(True)}
    defaults = stage2_finetuning.DEFAULTS[strategy.method] if stage == 2 else stage1_embedding.DEFAULTS

    def run() -> None:
        with stepping(trained, defaults["stable-diffusion"]["lr"], strategy) as optimizer:
            descend(
                Progress("steps", trained, optimizer, generator, Identity({}, {})),
                lambda: denoising_loss(unet, process, latents, e, 1, generator),
                lambda: 0.0,
                steps=STEPS,
                run=Run(probe_every=STEPS),
            )

    return run


def predict(stage: int, method: str, optimizer: str, checkpointing: bool) -> float:
    """What imagic_lib/planning/memory.py says of a job, in GiB."""
    import torch

    from imagic_lib.planning import memory
    from imagic_lib.training.strategies import Strategy

    parts = memory.on_meta("CompVis/stable-diffusion-v1-4")
    if stage == 4:
        return memory.sampling_peak(parts, torch.float32) / 2**30
    strategy = Strategy(method, torch.float32, optimizer, checkpointing)
    peak, learning = memory.training_peak(parts["unet"], stage, strategy)
    return (peak + learning * memory.STATE_BYTES[optimizer] * (stage == 2)) / 2**30


def measured_before() -> dict[str, list[str]]:
    """The lines that the table has now, by job."""
    lines = (README).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| stage")]
    return {row[0]: row for row in cells}


def main(jobs: list[str]) -> None:
    rows = measured_before()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        build(Path(folder))
        size = sum(p.stat().st_size for p in Path(folder).rglob("*.safetensors")) / 1e9
        print(f"built and saved {size:.2f} GB in {time.monotonic() - began:.0f} s", flush=True)
        quiet = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        for job in jobs:
            command = [sys.executable, __file__, folder, job]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=quiet)
            seconds, peak = map(float, done.stdout.split())
            predicted = predict(*JOBS[job])
            rows[job] = [job, f"{seconds:.0f} s", f"{peak:.2f}", f"{predicted:.2f}", f"{peak / predicted - 1:+.0%}"]
            print(rows[job], flush=True)
    header = ["512×512, float32, one timestep a step", "a step", "measured, GiB", "predicted, GiB", "off by"]
    put(README, "sd14", table(header, [rows[job] for job in JOBS if job in rows]))


if __name__ == "__main__":
    given = sys.argv[1:]  # its own call for one job brings the model's folder
    measure(*given) if given and Path(given[0]).is_dir() else main(given or list(JOBS))
