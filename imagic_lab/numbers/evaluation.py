"""What CLIP and the distance to the input say of an edit, beside the ground truth: the paper's Fig. 9 and ablations.

    python -m imagic_lab.numbers.evaluation         # about 80 minutes of one core; goes on where it was stopped
    python -m imagic_lab.numbers.evaluation 4       # the first 4 edits of the curves only

Each edit is written into data/experiments/evaluation.json at once; notebook 11 draws it. The CLIP score is that of the
mini-CLIP which was trained beside tiny-sd. The edits are those of ToyEdit test.
"""

from __future__ import annotations

import argparse

import torch
from transformers import CLIPModel, CLIPProcessor

import imagic_lib as imagic
from imagic_lab.benchmark.benchmark import versions_of
from imagic_lab.methods.tuning import PAPER, trained
from imagic_lab.numbers.results import Results, rounded
from imagic_lab.toyworld import load_reader
from imagic_lab.toyworld.edits import KINDS, toyedit
from imagic_lib.models import DATA
from imagic_lib.pictures import psnr, rmse
from imagic_lib.suggestion import clip_scores

RESULTS = "evaluation.json"
ETAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SEEDS = (10, 11, 12, 13, 14, 15)
SCALES = {"fine-tuned": 1.0, "not fine-tuned": 0.0}
COUNT = 16  # edits of the curves
STEPS = (10, 100, 1000)  # of stage 1 the paper's way: one timestep a step, always the same rate
STEPS_SEEDS = SEEDS[:3]


def seen(reader, clip, picture, edit, truth) -> dict:
    """One picture: what CLIP and the distance say, and what is true."""
    [score] = clip_scores(*clip, [picture], edit.text)
    read = reader.report(picture, truth) if reader.may_be(picture, truth) else None  # wrong at a glance is wrong
    return {
        "clip": rounded(score),
        "input": rounded(rmse(picture, edit.reconstruction)),
        "truth": rounded(rmse(picture, truth.render())),
        "right": bool(read and read.right),
        "success": bool(read and read.success),
    }


def curves(pipe, reader, clip, before, change: dict[str, str]) -> dict:
    """One edit along η, with and without stage 2: a list over η of lists over the seeds."""
    truth = before.edit(**change)
    edit = imagic.run_edit(pipe, imagic.load_image(before.render(), pipe), truth.caption())
    found = {"kind": next(iter(change)), "text": edit.text}
    for name, scale in SCALES.items():
        rows = edit.pictures(ETAS, SEEDS, scale=scale)
        looked = [[seen(reader, clip, row[k], edit, truth) for row in rows] for k in range(len(ETAS))]
        found[name] = {what: [[one[what] for one in drawn] for drawn in looked] for what in looked[0][0]}
    ends = clip_scores(*clip, [edit.reconstruction, truth.render()], edit.text)
    found["clip of the input"], found["clip of the truth"] = map(rounded, ends)
    return found


def steps(pipe, reader, before, change: dict[str, str], count: int) -> dict:
    """One edit with so many steps in stage 1: is the input rebuilt, and does the edit succeed?"""
    truth, image = before.edit(**change), imagic.load_image(before.render(), pipe)
    first = PAPER["tiny"][0] | {"steps": count}
    e_tgt, e_opt, tuned = trained(pipe, image, truth.caption(), first)
    near = imagic.pictures.to_picture(imagic.decode_latents(pipe, imagic.encode_image(pipe, image)))
    rebuilt = imagic.generate(tuned, e_opt, STEPS_SEEDS)
    found = {"psnr": [rounded(psnr(picture, near), 1) for picture in rebuilt]}
    found["moved"] = rounded((e_opt - e_tgt).norm(dim=-1).mean(), 2)
    for eta in (0.6, 0.8, 1.0):
        drawn = imagic.generate(tuned, imagic.interpolate(e_tgt, e_opt, eta), STEPS_SEEDS)
        found[f"success at {eta:g}"] = sum(reader.success(picture, truth) for picture in drawn)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, help="so many edits of the curves, and no ablation")
    asked = parser.parse_args()
    pipe, reader, results = imagic.load_pipeline("tiny"), load_reader(), Results(RESULTS, "versions", "curves", "steps")
    clip = [kind.from_pretrained(DATA / "tiny-clip") for kind in (CLIPModel, CLIPProcessor)]
    clip[0].to(torch.float32)
    versions = versions_of(pipe, reader)
    if (results.found["versions"] or versions) != versions:
        raise ValueError(f"{results.path} was measured with other versions: delete it to measure anew")
    results.found |= {"versions": versions, "etas": ETAS, "seeds": SEEDS}
    for index, (before, change) in enumerate(toyedit("test")[: asked.count or COUNT]):
        if str(index) not in results.found["curves"]:
            results.keep("curves", str(index), curves(pipe, reader, clip, before, change))
    for index, (before, change) in enumerate([] if asked.count else toyedit("test")[: len(KINDS)]):
        for count in STEPS:
            if (key := f"{index} / {count}") not in results.found["steps"]:
                results.keep("steps", key, steps(pipe, reader, before, change, count))


if __name__ == "__main__":
    main()
