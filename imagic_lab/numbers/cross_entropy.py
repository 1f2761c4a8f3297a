"""Each loss in stage 1 (then MSE) and in stage 2 (after MSE): does any of them edit better than the MSE?

python -m imagic_lab.numbers.cross_entropy         # about 40 minutes on 1 core; goes on where it was stopped

Everything else is equal: pictures, texts, noises, steps, learning rates. The losses are scaled to agree with the MSE
for small errors; and Adam, which divides each gradient by its usual size, would hardly notice another scale.
The loop over pairs (picture, training seed) is the outermost: a part of the runs is balanced, too.
"""

from __future__ import annotations

import json

import torch
from PIL import Image

import imagic_lib as imagic
from imagic_lab.classroom.plots import picture_grid
from imagic_lab.experiments import distribution, losses
from imagic_lab.numbers.edits import EDITS, successes
from imagic_lab.numbers.report import ROOT
from imagic_lab.numbers.results import SCRATCH, strip, strips, write_sheet
from imagic_lab.toyworld import load_reader, load_scene
from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.diffusion import Probe, forward_process
from imagic_lib.edit import ImagicEdit
from imagic_lib.models import DATA
from imagic_lib.pictures import psnr, rmse
from imagic_lib.training.checkpoints import load_tensors, save_tensors, write_atomically

RESULTS = DATA / "experiments" / "cross-entropy.json"
RUNS = ROOT / "runs" / "cross-entropy"
PICTURES = list(EDITS)
TRAINING_SEEDS, SEEDS, ETAS, SAMPLING_STEPS = (0,), (0, 1), (0.0, 0.6, 0.8, 1.0), 15
UNET_STEPS = 50  # half of the default, for every loss: all runs together in 40 minutes on one core
SLOW = "naive_cross_entropy_slow"  # its control: does it diverge at a tenth of the rate, too?
MSE_SLOW = "mse_slow"  # and the control of that one, in stage 1: what does the MSE do at such a rate?
RATE = {SLOW: 0.1, MSE_SLOW: 0.1}  # of the default learning rate, where it is not 1
LOSSES = {
    "mse": losses.mse,
    "discretised_gaussian": losses.discretised_gaussian,
    "hl_gauss": losses.hl_gauss,
    "spatial_kl": losses.spatial_kl,
    "spatial_kl_with_mean": losses.spatial_kl_with_mean,
    "naive_cross_entropy": losses.naive_cross_entropy,
    SLOW: losses.naive_cross_entropy,
}
RUN_PAIRS = [("mse", "mse"), *(("mse", b) for b in LOSSES if b != "mse"), *((a, "mse") for a in LOSSES if a != "mse")]
LOSSES[MSE_SLOW] = losses.mse
RUN_PAIRS.append((MSE_SLOW, "mse"))
SHOWN = {  # on the sheet: (losses of both stages): label. In stage 2 no naive run came to its pictures
    ("mse", "mse"): "MSE",
    ("mse", "discretised_gaussian"): "binned\nGaussian",
    ("mse", "hl_gauss"): "HL-Gauss",
    ("mse", "spatial_kl"): "spatial KL",
    ("mse", "spatial_kl_with_mean"): "spatial KL\n+ mean",
    ("naive_cross_entropy", "mse"): "stage 1:\nnaive CE",
    (SLOW, "mse"): "stage 1: naive\nCE, rate / 10",
    (MSE_SLOW, "mse"): "stage 1: MSE,\nrate / 10",
}


def rounded(values):
    """Five digits are enough, and the file stays small."""
    if isinstance(values, (list, tuple)):
        return [rounded(v) for v in values]
    return float(f"{values:.5g}") if isinstance(values, float) else values


def lost(stage: str, history) -> bool:
    """The rule by which a stage counts as diverged, and is ended: the probe is at twice its start."""
    return history.probe_loss[-1] > 2 * history.probe_loss[0]


def stop_if_lost(stage: str, curve: dict) -> None:
    if curve["probe"][-1] > 2 * curve["probe"][0]:
        raise FloatingPointError(f"{stage}: the probe is at twice its start after {curve['step'][-1]} steps")


def rate(defaults: dict, name: str) -> float:
    return defaults["lr"] * RATE.get(name, 1.0)


def curve_of(history, raw: bool) -> dict:
    """The probe's curve; for the loss that diverges the raw one, too."""
    curve = {"step": history.probe_step, "probe": rounded(history.probe_loss)}
    return curve | ({"loss": rounded(history.loss)} if raw else {})


@torch.no_grad()
def missed_mean(pipe, image, e) -> float:
    """The squared error of the channels' means on the probe: what `spatial_kl` can't see, a part of the MSE."""
    probe = Probe(forward_process(pipe), imagic.encode_image(pipe, image))
    answer = pipe.unet(probe.z_t, probe.t, e.expand(len(probe.t), -1, -1)).sample
    return (answer - probe.target).mean(dim=(2, 3)).square().mean().item()


def stage_1(pipe, image, e_tgt, name: str, seed: int, path) -> tuple[torch.Tensor, dict]:
    """(e_opt, the curve), kept in a file: the one of the MSE is needed by all runs of a pair."""
    if not path.exists():
        generator = torch.Generator().manual_seed(seed)
        how, lr = imagic.Run(loss=LOSSES[name], watch=lost), rate(stage1_embedding.DEFAULTS["tiny"], name)
        e_opt, history = imagic.optimize_embedding(pipe, image, e_tgt, lr=lr, generator=generator, run=how)
        save_tensors(path, {"e_opt": e_opt}, curve_of(history, raw=name.startswith("naive")))
    tensors, curve = load_tensors(path)
    return tensors["e_opt"], {k: v for k, v in curve.items() if k != "parts"}


def look(edit: ImagicEdit, reader, truth, name: str) -> dict:
    """How the pictures are: at η = 0 against the VAE's own, and at the best of the other η against the truth. Those of
    the first seed are kept for the sheet: the input, η = 0, the best η, the truth."""
    rows = edit.pictures(ETAS, SEEDS, steps=SAMPLING_STEPS)
    counts = {eta: successes(reader, [row[c] for row in rows], truth) for c, eta in enumerate(ETAS) if eta > 0}
    distances = {eta: min(rmse(row[ETAS.index(eta)], truth.render()) for row in rows) for eta in counts}
    best = min(counts, key=lambda eta: (-counts[eta], distances[eta]))
    strip(name, [edit.input_picture, rows[0][0], rows[0][ETAS.index(best)], truth.render()])
    return {
        "psnr": [psnr(row[0], edit.reconstruction) for row in rows],
        "best_eta": best,
        "success": counts[best] / len(SEEDS),
        "rmse_to_truth": distances[best],
    }


def strip_of(picture: str, seed: int, first: str, second: str) -> str:
    return f"loss-{picture}-{seed}-{first}-{second}"


def sheet() -> None:
    """Input and truth of each picture; then a row for each way, with η = 0 and the best η, of the first seeds."""
    rows, blank = [[] for _ in range(len(SHOWN) + 1)], Image.new("RGB", (128, 128), "white")
    for picture in PICTURES:
        names = [strip_of(picture, TRAINING_SEEDS[0], *way) for way in SHOWN]
        found = [strips(name) if (SCRATCH / f"{name}.png").exists() else [blank] * 4 for name in names]
        rows[0] += [found[0][0], found[0][3]]
        for row, pictures in zip(rows[1:], found, strict=True):
            row += pictures[1:3]
    labels = ["input | truth", *SHOWN.values()]
    write_sheet("cross-entropy.jpg", picture_grid(rows, ["η = 0", "best η"] * len(PICTURES), labels, inch=1.25))


def run(pipes: dict, reader, picture: str, seed: int, first: str, second: str) -> dict:
    """One edit with these two losses, as a line of the results."""
    path, pipe = DATA / "images" / picture, pipes["plain"]
    truth = load_scene(path).edit(**EDITS[picture])
    image, text = imagic.load_image(path, pipe), truth.caption()
    e_tgt = imagic.encode_text(pipe, text)
    probe = Probe(forward_process(pipe), imagic.encode_image(pipe, image))
    line = {"picture": picture, "seed": seed, "stage_1": first, "stage_2": second, "diverged": None}
    line["probe"] = [probe(pipe.unet, e_tgt)]
    try:
        kept = RUNS / f"{picture}-{seed}-{first}.safetensors"
        one, two = (pipes["head" if name == "hl_gauss" else "plain"] for name in (first, second))
        e_opt, line["curve_1"] = stage_1(one, image, e_tgt, first, seed, kept)
        line["probe"].append(probe(pipe.unet, e_opt))
        line["moved"] = (e_opt - e_tgt).norm(dim=-1).mean().item()  # a token
        stop_if_lost("stage 1", line["curve_1"])
        generator = torch.Generator().manual_seed(1000 + seed)
        settings = {"steps": UNET_STEPS, "lr": rate(stage2_finetuning.DEFAULTS["full"]["tiny"], second)}
        how = imagic.Run(loss=LOSSES[second], watch=lost)
        tuned, history = imagic.fine_tune(two, image, e_opt, **settings, generator=generator, run=how)
        line["curve_2"] = curve_of(history, raw=second.startswith("naive"))
        line["probe"].append(probe(tuned.unet, e_opt))
        stop_if_lost("stage 2", line["curve_2"])
        line["missed_mean"] = missed_mean(tuned, image, e_opt)
        edit = ImagicEdit(text, pipe, tuned, image, e_tgt, e_opt, None, history, {})
        line |= look(edit, reader, truth, strip_of(picture, seed, first, second))
    except FloatingPointError as error:
        line["diverged"] = str(error)
    return {key: rounded(value) for key, value in line.items()}


def main() -> None:
    plain = imagic.load_pipeline("tiny")
    pipes, reader = {"plain": plain, "head": distribution.with_distribution(plain)}, load_reader()
    settings = {
        "stage_1": stage1_embedding.DEFAULTS["tiny"],
        "stage_2": stage2_finetuning.DEFAULTS["full"]["tiny"] | {"steps": UNET_STEPS},
        "sampling": {"steps": SAMPLING_STEPS, "etas": ETAS, "seeds": SEEDS},
    }
    settings = json.loads(json.dumps(settings))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"settings": settings, "runs": []}
    if results["settings"] != settings:
        raise ValueError(f"{RESULTS} was measured with other settings: delete it and {RUNS} to measure anew")
    done = {(r["picture"], r["seed"], r["stage_1"], r["stage_2"]) for r in results["runs"]}
    for seed in TRAINING_SEEDS:
        for picture in PICTURES:
            for first, second in RUN_PAIRS:
                if (picture, seed, first, second) not in done:
                    results["runs"].append(run(pipes, reader, picture, seed, first, second))
                    text = json.dumps(results).replace('{"picture"', '\n{"picture"')  # a line each
                    write_atomically(RESULTS, lambda tmp, text=text: tmp.write_text(text + "\n", encoding="utf-8"))
                    print({k: v for k, v in results["runs"][-1].items() if not k.startswith("curve")}, flush=True)
    sheet()


if __name__ == "__main__":
    main()
