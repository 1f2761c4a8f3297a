"""Does another loss edit better than the MSE? Each loss in stage 1 (then MSE), and in stage 2 (after MSE).

    python -m imagic_lab.numbers.cross_entropy         # about 40 minutes on 1 core; continues where it was stopped

Pictures, texts, noises, steps and learning rates are equal. The losses are scaled to agree with the MSE for small
errors. Adam would hardly notice another scale, because it divides each gradient by its usual size. The outermost loop
is over pairs (picture, training seed), so an experiment that was stopped is balanced as well.
"""

from __future__ import annotations

import json

import torch
from PIL import Image

import imagic_lib as imagic
from imagic_lab.classroom.plots import picture_grid
from imagic_lab.experiments import distribution, losses
from imagic_lab.numbers.edits import EDITS, count_successes
from imagic_lab.numbers.report import ROOT, command_line
from imagic_lab.numbers.results import LONGER, SCRATCH, strip, strips, write_sheet
from imagic_lab.toyworld import load_reader, load_scene
from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.diffusion import Probe, forward_process
from imagic_lib.edit import ImagicEdit
from imagic_lib.files import load_tensors, save_tensors, write_atomically
from imagic_lib.models import DATA
from imagic_lib.pictures import psnr, rmse

LOSS_RESULTS = DATA / "experiments" / "cross-entropy.json"
EMBEDDINGS = ROOT / "runs" / "cross-entropy"
PICTURES = list(EDITS)
FIRST_SETTINGS = stage1_embedding.DEFAULTS["tiny"] | LONGER[0]
SECOND_SETTINGS = stage2_finetuning.DEFAULTS["full"]["tiny"] | LONGER[1]
TRAINING_SEEDS, PICTURE_SEEDS, PICTURE_ETAS, PICTURE_STEPS = (0,), (0, 1), (0.0, 0.6, 0.8, 1.0), 15
UNET_STEPS = 50  # half of the default, so that all runs take 40 minutes on one core
SLOW = "naive_cross_entropy_slow"  # a control: does it also diverge at a tenth of the rate?
MSE_SLOW = "mse_slow"  # a control for that control, in stage 1: what does the MSE do at this rate?
RATE_FACTORS = {SLOW: 0.1, MSE_SLOW: 0.1}  # of the default learning rate; 1 for all others
LOSSES_BY_NAME = {
    "mse": losses.mse,
    "discretised_gaussian": losses.discretised_gaussian,
    "hl_gauss": losses.hl_gauss,
    "spatial_kl": losses.spatial_kl,
    "spatial_kl_with_mean": losses.spatial_kl_with_mean,
    "naive_cross_entropy": losses.naive_cross_entropy,
    SLOW: losses.naive_cross_entropy,
}
RUN_PAIRS = [("mse", "mse")]
RUN_PAIRS += [("mse", name) for name in LOSSES_BY_NAME if name != "mse"]
RUN_PAIRS += [(name, "mse") for name in LOSSES_BY_NAME if name != "mse"]
LOSSES_BY_NAME[MSE_SLOW] = losses.mse
RUN_PAIRS.append((MSE_SLOW, "mse"))
SHEET_LABELS = {  # (losses of both stages): label. In stage 2 every naive run diverged before its pictures
    ("mse", "mse"): "MSE",
    ("mse", "discretised_gaussian"): "binned\nGaussian",
    ("mse", "hl_gauss"): "HL-Gauss",
    ("mse", "spatial_kl"): "spatial KL",
    ("mse", "spatial_kl_with_mean"): "spatial KL\n+ mean",
    ("naive_cross_entropy", "mse"): "stage 1:\nnaive CE",
    (SLOW, "mse"): "stage 1: naive\nCE, rate / 10",
    (MSE_SLOW, "mse"): "stage 1: MSE,\nrate / 10",
}


def five_digits(values):
    """Numbers, also in lists, with five digits: enough for us, and the file stays small."""
    if isinstance(values, (list, tuple)):
        return [five_digits(v) for v in values]
    return float(f"{values:.5g}") if isinstance(values, float) else values


def has_diverged(stage: str, history) -> bool:
    """A stage counts as diverged, and ends, when the probe loss is twice as large as at its start."""
    return history.probe_loss[-1] > 2 * history.probe_loss[0]


def raise_if_diverged(stage: str, curve: dict) -> None:
    if curve["probe"][-1] > 2 * curve["probe"][0]:
        raise FloatingPointError(f"{stage}: the probe loss has doubled after {curve['step'][-1]} steps")


def rate_for(defaults: dict, name: str) -> float:
    return defaults["lr"] * RATE_FACTORS.get(name, 1.0)


def stage_curve(history, raw: bool) -> dict:
    """The curve of the probe loss; with `raw` that of the training loss as well."""
    curve = {"step": history.probe_step, "probe": five_digits(history.probe_loss)}
    return curve | ({"loss": five_digits(history.loss)} if raw else {})


@torch.no_grad()
def missed_mean(pipe, image, e) -> float:
    """The squared error of the channels' means on the probe, which is the part of the MSE that `spatial_kl` ignores."""
    probe = Probe(forward_process(pipe), imagic.encode_image(pipe, image))
    answer = pipe.unet(probe.z_t, probe.t, e.expand(len(probe.t), -1, -1)).sample
    return (answer - probe.target).mean(dim=(2, 3)).square().mean().item()


def cached_embedding(pipe, image, e_tgt, name: str, seed: int, path) -> tuple[torch.Tensor, dict]:
    """(e_opt, its curve) of stage 1. They are kept in a file, because all runs of a pair need those of the MSE."""
    if not path.exists():
        generator = torch.Generator().manual_seed(seed)
        how = imagic.Run(loss=LOSSES_BY_NAME[name], watch=has_diverged)
        settings = {"steps": FIRST_SETTINGS["steps"], "lr": rate_for(FIRST_SETTINGS, name)}
        e_opt, history = imagic.optimize_embedding(pipe, image, e_tgt, **settings, generator=generator, run=how)
        save_tensors(path, {"e_opt": e_opt}, stage_curve(history, raw=name.startswith("naive")))
    tensors, curve = load_tensors(path)
    return tensors["e_opt"], curve


def judge_pictures(edit: ImagicEdit, reader, truth, name: str) -> dict:
    """Compare the pictures at η = 0 with what the VAE makes of the input, and those at the best other η with the truth.

    For the sheet, keeps a strip of the first seed (the input, η = 0, the best η, the truth)."""
    rows = edit.pictures(PICTURE_ETAS, PICTURE_SEEDS, steps=PICTURE_STEPS, noise="random")
    counts = {
        eta: count_successes(reader, [row[c] for row in rows], truth) for c, eta in enumerate(PICTURE_ETAS) if eta > 0
    }
    distances = {eta: min(rmse(row[PICTURE_ETAS.index(eta)], truth.render()) for row in rows) for eta in counts}
    best = min(counts, key=lambda eta: (-counts[eta], distances[eta]))
    strip(name, [edit.input_picture, rows[0][0], rows[0][PICTURE_ETAS.index(best)], truth.render()])
    return {
        "psnr": [psnr(row[0], edit.reconstruction) for row in rows],
        "best_eta": best,
        "success": counts[best] / len(PICTURE_SEEDS),
        "rmse_to_truth": distances[best],
    }


def strip_of(picture: str, seed: int, first: str, second: str) -> str:
    return f"loss-{picture}-{seed}-{first}-{second}"


def loss_sheet() -> None:
    """First the input and the truth of each picture. Then a row for each pair of losses, with η = 0 and the best η."""
    rows, blank = [[] for _ in range(len(SHEET_LABELS) + 1)], Image.new("RGB", (128, 128), "white")
    for picture in PICTURES:
        names = [strip_of(picture, TRAINING_SEEDS[0], *pair) for pair in SHEET_LABELS]
        found = [strips(name) if (SCRATCH / f"{name}.png").exists() else [blank] * 4 for name in names]
        rows[0] += [found[0][0], found[0][3]]
        for row, pictures in zip(rows[1:], found, strict=True):
            row += pictures[1:3]
    labels = ["input | truth", *SHEET_LABELS.values()]
    write_sheet("cross-entropy.jpg", picture_grid(rows, ["η = 0", "best η"] * len(PICTURES), labels, inch=1.25))


def edit_with_losses(pipes: dict, reader, picture: str, seed: int, first: str, second: str) -> dict:
    """One edit with these two losses, as a line of the results."""
    path, pipe = DATA / "images" / picture, pipes["plain"]
    truth = load_scene(path).edit(**EDITS[picture])
    image, text = imagic.load_image(path, pipe), truth.caption()
    e_tgt = imagic.encode_text(pipe, text)
    probe = Probe(forward_process(pipe), imagic.encode_image(pipe, image))
    line = {"picture": picture, "seed": seed, "stage_1": first, "stage_2": second, "diverged": None}
    line["probe"] = [probe(pipe.unet, e_tgt)]
    try:
        kept = EMBEDDINGS / f"{picture}-{seed}-{first}.safetensors"
        one, two = (pipes["head" if name == "hl_gauss" else "plain"] for name in (first, second))
        e_opt, line["curve_1"] = cached_embedding(one, image, e_tgt, first, seed, kept)
        line["probe"].append(probe(pipe.unet, e_opt))
        line["moved"] = (e_opt - e_tgt).norm(dim=-1).mean().item()  # a token
        raise_if_diverged("stage 1", line["curve_1"])
        generator = torch.Generator().manual_seed(1000 + seed)
        settings = {"steps": UNET_STEPS, "lr": rate_for(SECOND_SETTINGS, second)}
        how = imagic.Run(loss=LOSSES_BY_NAME[second], watch=has_diverged)
        tuned, history = imagic.fine_tune(two, image, e_opt, **settings, generator=generator, run=how)
        line["curve_2"] = stage_curve(history, raw=second.startswith("naive"))
        line["probe"].append(probe(tuned.unet, e_opt))
        raise_if_diverged("stage 2", line["curve_2"])
        line["missed_mean"] = missed_mean(tuned, image, e_opt)
        edit = ImagicEdit(text, pipe, tuned, image, e_tgt, e_opt, None, history, {})
        line |= judge_pictures(edit, reader, truth, strip_of(picture, seed, first, second))
    except FloatingPointError as error:
        line["diverged"] = str(error)
    return {key: five_digits(value) for key, value in line.items()}


def main() -> None:
    command_line(__doc__).parse_args()
    plain = imagic.load_pipeline("tiny")
    pipes, reader = {"plain": plain, "head": distribution.with_distribution(plain)}, load_reader()
    settings = {
        "stage_1": FIRST_SETTINGS,
        "stage_2": SECOND_SETTINGS | {"steps": UNET_STEPS},
        "sampling": {"steps": PICTURE_STEPS, "etas": PICTURE_ETAS, "seeds": PICTURE_SEEDS},
    }
    settings = json.loads(json.dumps(settings))
    results = json.loads(LOSS_RESULTS.read_text()) if LOSS_RESULTS.exists() else {"settings": settings, "runs": []}
    if results["settings"] != settings:
        raise ValueError(
            f"{LOSS_RESULTS} was measured with other settings: delete it and {EMBEDDINGS} to measure again"
        )
    done = {(r["picture"], r["seed"], r["stage_1"], r["stage_2"]) for r in results["runs"]}
    for seed in TRAINING_SEEDS:
        for picture in PICTURES:
            for first, second in RUN_PAIRS:
                if (picture, seed, first, second) not in done:
                    results["runs"].append(edit_with_losses(pipes, reader, picture, seed, first, second))
                    text = json.dumps(results).replace('{"picture"', '\n{"picture"')  # a line each
                    write_atomically(LOSS_RESULTS, lambda tmp, text=text: tmp.write_text(text + "\n", encoding="utf-8"))
                    print({k: v for k, v in results["runs"][-1].items() if not k.startswith("curve")}, flush=True)
    loss_sheet()


if __name__ == "__main__":
    main()
