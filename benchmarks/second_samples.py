"""What does the second model draw by now, and does the sampler matter?

python benchmarks/second_samples.py    # about 4 minutes on 2 cores; writes the table of data/tiny-sd-2/README.md
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from report import put, table

import imagic_lib as imagic
from imagic_lib.models import DATA
from imagic_lib.toyworld import dataset
from imagic_lib.toyworld.reader import load_reader

SECOND, STEPS = DATA / "tiny-sd-2", 30


def main() -> None:
    pipe, reader = imagic.load_pipeline("tiny"), load_reader(SECOND / "reader" / "reader.safetensors")
    pipe.vae = AutoencoderKL.from_pretrained(SECOND / "vae", torch_dtype=torch.float32).eval()
    pipe.unet = UNet2DConditionModel.from_pretrained(SECOND / "unet", torch_dtype=torch.float32).eval()
    # every one of the 64 held-out combinations once
    combinations = {tuple(s.attributes.values()): s for s in dataset.test_scenes(4000, held_out=True)}
    scenes, lines = [combinations[key] for key in sorted(combinations)], []
    samplers = {
        "DDIM, as now": None,
        "DPM-Solver++ with new noise at each step": DPMSolverMultistepScheduler.from_config(
            pipe.scheduler.config, algorithm_type="sde-dpmsolver++"
        ),
    }
    for name, scheduler in samplers.items():
        torch.manual_seed(0)  # of the new noise
        right, well = [], []
        for number, scene in enumerate(scenes):
            [picture] = imagic.sample_text(pipe, scene.caption(), [number], steps=STEPS, scheduler=scheduler)
            found = reader.scene(picture)
            right.append(found.attributes == scene.attributes)
            well.append(reader.left(picture, found) <= reader.bound)
        lines.append([name, f"{100 * np.mean(right):.0f} %", f"{100 * np.mean(well):.0f} %"])
    put(SECOND / "README.md", "samples", table(["sampler", "all four attributes right", "drawn well"], lines))


if __name__ == "__main__":
    main()
