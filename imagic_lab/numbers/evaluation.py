"""What do CLIP, the distance to the input, and the ground truth say about an edit? After the paper's Fig. 9.

    python -m imagic_lab.numbers.evaluation         # about 80 minutes of one core; continues where it was stopped
    python -m imagic_lab.numbers.evaluation 4       # only the curves of the first 4 edits, without the ablation

Each edit of ToyEdit test is written into data/experiments/evaluation.json at once; notebook 11 draws the results. The
CLIP score is that of the mini-CLIP, which was trained together with tiny-sd.
"""

from __future__ import annotations

import torch
from transformers import CLIPModel, CLIPProcessor

import imagic_lib as imagic
from imagic_lab.benchmark import versions_of
from imagic_lab.measures import clip_scores
from imagic_lab.methods.tuning import PAPER, run_both_stages
from imagic_lab.numbers.report import command_line
from imagic_lab.numbers.results import Results, rounded
from imagic_lab.toyworld import load_reader
from imagic_lab.toyworld.edits import EDIT_KINDS, toyedit
from imagic_lib.models import DATA
from imagic_lib.pictures import psnr, rmse

CURVE_ETAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CURVE_SEEDS = (10, 11, 12, 13, 14, 15)
CURVE_SCALES = {"fine-tuned": 1.0, "not fine-tuned": 0.0}
COUNT = 16  # edits of the curves
ABLATED_STEPS = (10, 100, 1000)  # of stage 1 on the paper's schedule, with one timestep per step at a constant rate
ABLATION_SEEDS = CURVE_SEEDS[:3]


def score_picture(reader, clip, picture, edit, truth) -> dict:
    """Return what CLIP, the distance and the ground truth say about a picture."""
    [score] = clip_scores(*clip, [picture], edit.text)
    read = reader.report(picture, truth) if reader.may_be(picture, truth) else None  # a glance finds most failures
    return {
        "clip": rounded(score),
        "input": rounded(rmse(picture, edit.reconstruction)),
        "truth": rounded(rmse(picture, truth.render())),
        "right": bool(read and read.right),
        "success": bool(read and read.success),
    }


def measure_curves(pipe, reader, clip, before, change: dict[str, str]) -> dict:
    """Measure one edit along η, with and without stage 2. Returns lists over η of lists over the seeds."""
    truth = before.edit(**change)
    edit = imagic.run_edit(pipe, imagic.load_image(before.render(), pipe), truth.caption())
    found = {"kind": next(iter(change)), "text": edit.text}
    for name, scale in CURVE_SCALES.items():
        rows = edit.pictures(CURVE_ETAS, CURVE_SEEDS, scale=scale, noise="random")
        looked = [[score_picture(reader, clip, row[k], edit, truth) for row in rows] for k in range(len(CURVE_ETAS))]
        found[name] = {what: [[one[what] for one in drawn] for drawn in looked] for what in looked[0][0]}
    ends = clip_scores(*clip, [edit.reconstruction, truth.render()], edit.text)
    found["clip of the input"], found["clip of the truth"] = map(rounded, ends)
    return found


def ablate_steps(pipe, reader, before, change: dict[str, str], count: int) -> dict:
    """Make one edit with `count` steps in stage 1, and measure whether it rebuilds the input and succeeds."""
    truth, image = before.edit(**change), imagic.load_image(before.render(), pipe)
    first = PAPER["tiny"][0] | {"steps": count}
    e_tgt, e_opt, tuned = run_both_stages(pipe, image, truth.caption(), first)
    near = imagic.pictures.to_picture(imagic.decode_latents(pipe, imagic.encode_image(pipe, image)))
    rebuilt = imagic.generate(tuned, e_opt, ABLATION_SEEDS)
    found = {"psnr": [rounded(psnr(picture, near), 1) for picture in rebuilt]}
    found["moved"] = rounded((e_opt - e_tgt).norm(dim=-1).mean(), 2)
    for eta in (0.6, 0.8, 1.0):
        drawn = imagic.generate(tuned, imagic.interpolate(e_tgt, e_opt, eta), ABLATION_SEEDS)
        found[f"success at {eta:g}"] = sum(reader.success(picture, truth) for picture in drawn)
    return found


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("count", nargs="?", type=int, help="how many edits for the curves, without the ablation")
    asked, results = options.parse_args(), Results("evaluation.json", "versions", "curves", "steps")
    pipe, reader = imagic.load_pipeline("tiny"), load_reader()
    clip = [kind.from_pretrained(DATA / "tiny-clip") for kind in (CLIPModel, CLIPProcessor)]
    clip[0].to(torch.float32)
    results.check_versions(versions_of(pipe, reader))
    results.found |= {"etas": CURVE_ETAS, "seeds": CURVE_SEEDS}
    for index, (before, change) in enumerate(toyedit("test")[: asked.count or COUNT]):
        if str(index) not in results.found["curves"]:
            results.keep("curves", str(index), measure_curves(pipe, reader, clip, before, change))
    for index, (before, change) in enumerate([] if asked.count else toyedit("test")[: len(EDIT_KINDS)]):
        for count in ABLATED_STEPS:
            if (key := f"{index} / {count}") not in results.found["steps"]:
                results.keep("steps", key, ablate_steps(pipe, reader, before, change, count))


if __name__ == "__main__":
    main()
