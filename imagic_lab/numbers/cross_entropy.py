"""Does another loss edit better than the MSE? Each loss in stage 1 (then MSE), and in stage 2 (after MSE).

    python -m imagic_lab.numbers.cross_entropy         # about 40 minutes on 1 core; continues where it was stopped

All runs have the same pictures, texts, noise, steps and learning rates. The losses are scaled to agree with the MSE for
small errors. Another scale would change little, because Adam divides each gradient by its usual size. The outermost
loop is over pairs (picture, training seed), so an experiment that was stopped is still balanced.
"""

from __future__ import annotations

import json

import torch

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table
from imagic_lab.experiments import distribution, losses
from imagic_lab.numbers.edits import EDITS, count_successes
from imagic_lab.numbers.report import README, ROOT, command_line, put
from imagic_lab.numbers.results import LONGER, count_with_parts, paired_difference, strip, strips, write_tiles
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
LIMIT = 2  # a run stops at this multiple of the probe loss at the start of stage 2
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
NAMES = {
    "mse": "MSE",
    MSE_SLOW: "MSE, rate / 10",
    "discretised_gaussian": "binned Gaussian",
    "hl_gauss": "HL-Gauss",
    "spatial_kl": "spatial KL",
    "spatial_kl_with_mean": "spatial KL + mean",
    "naive_cross_entropy": "naive",
    SLOW: "naive, rate / 10",
}
SHEET = {  # the rows of the sheet below the inputs and the truths: losses of both stages
    "MSE": ("mse", "mse"),
    "stage 2: binned Gaussian": ("mse", "discretised_gaussian"),
    "stage 2: HL-Gauss": ("mse", "hl_gauss"),
    "stage 2: spatial KL": ("mse", "spatial_kl"),
    "stage 2: spatial KL + mean": ("mse", "spatial_kl_with_mean"),
    "stage 1: naive": ("naive_cross_entropy", "mse"),
    "stage 1: naive, rate / 10": (SLOW, "mse"),
    "stage 1: MSE, rate / 10": (MSE_SLOW, "mse"),
}


def five_digits(values):
    """Round numbers, also in lists, to five digits, which are enough for us and keep the file small."""
    if isinstance(values, (list, tuple)):
        return [five_digits(v) for v in values]
    return float(f"{values:.5g}") if isinstance(values, float) else values


def has_diverged(stage: str, history) -> bool:
    """Whether the probe loss is above `LIMIT` times its start. Stage 1 has no limit, as stage 2 repairs much of it."""
    return history.probe_loss[-1] > LIMIT * history.probe_loss[0]


def raise_if_diverged(curve: dict) -> None:
    if curve["probe"][-1] > LIMIT * curve["probe"][0]:
        raise FloatingPointError(f"stage 2: the probe is at twice its start after {curve['step'][-1]} steps")


def rate_for(defaults: dict, name: str) -> float:
    return defaults["lr"] * RATE_FACTORS.get(name, 1.0)


def stage_curve(history, raw: bool) -> dict:
    """Return the curve of the probe loss and, with `raw`, that of the training loss."""
    curve = {"step": history.probe_step, "probe": five_digits(history.probe_loss)}
    return curve | ({"loss": five_digits(history.loss)} if raw else {})


@torch.no_grad()
def missed_mean(pipe, image, e) -> float:
    """Return the squared error of the channels' means on the probe, the part of the MSE that `spatial_kl` ignores."""
    probe = Probe(forward_process(pipe), imagic.encode_image(pipe, image))
    answer = pipe.unet(probe.z_t, probe.t, e.expand(len(probe.t), -1, -1)).sample
    return (answer - probe.target).mean(dim=(2, 3)).square().mean().item()


def cached_embedding(pipe, image, e_tgt, name: str, seed: int, path) -> tuple[torch.Tensor, dict]:
    """Return (e_opt, its curve) of stage 1. A file keeps them, because all runs of a pair need those of the MSE."""
    if not path.exists():
        generator = torch.Generator().manual_seed(seed)
        how = imagic.Run(loss=LOSSES_BY_NAME[name])
        settings = {"steps": FIRST_SETTINGS["steps"], "lr": rate_for(FIRST_SETTINGS, name)}
        e_opt, history = imagic.optimize_embedding(pipe, image, e_tgt, **settings, generator=generator, run=how)
        save_tensors(path, {"e_opt": e_opt}, stage_curve(history, raw=name.startswith("naive")))
    tensors, curve = load_tensors(path)
    return tensors["e_opt"], curve


def judge_pictures(edit: ImagicEdit, reader, truth, name: str) -> dict:
    """Compare the pictures at η = 0 with the VAE's reconstruction, and those at the best other η with the ground truth.

    For the sheet, keeps a strip of the first seed (input, η = 0, best η, ground truth)."""
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
    """Draw a column for each picture: input, ground truth, and a row for each pair of losses, at the best η."""
    seed = TRAINING_SEEDS[0]
    found = [[strips(strip_of(picture, seed, *pair)) for picture in PICTURES] for pair in SHEET.values()]
    rows = [[pictures[k] for pictures in found[0]] for k in (0, 3)]
    write_tiles("cross-entropy.jpg", rows + [[pictures[2] for pictures in row] for row in found])


# --- the table

MEASURES = {
    "PSNR at η = 0, dB": (lambda run: sum(run["psnr"]) / len(run["psnr"]), ".2f"),
    "probe, thousandths": (lambda run: 1000 * run["probe"][2], ".1f"),
}


def tried(runs: list[dict], stage: str, loss: str) -> list[dict]:
    """Return the edits with this loss in this stage ("stage_1") and the MSE in the other, in the order of PICTURES."""
    wanted = {"stage_1": "mse", "stage_2": "mse", stage: loss}
    return sorted(
        (run for run in runs if wanted.items() <= run.items()), key=lambda run: PICTURES.index(run["picture"])
    )


def losses_table(runs: list[dict]) -> str:
    """Return the table: the MSE's means, and the differences of all other losses from it, picture by picture."""
    rows, usual = [], tried(runs, "stage_1", "mse")
    for stage in ("stage_1", "stage_2"):
        for loss in (name for name in NAMES if tried(runs, stage, name)):
            made = tried(runs, stage, loss)
            lost = sum(bool(run["diverged"]) for run in made)
            rows.append([stage[-1], NAMES[loss], f"{lost} of {len(made)}"])
            for measure, form in MEASURES.values():
                ours, mse = ([measure(run) for run in some] for some in (made, usual)) if not lost else ([], [])
                mean = f"mean {sum(mse) / max(len(mse), 1):{form}}"
                rows[-1].append("–" if lost else mean if made == usual else paired_difference(ours, mse, form))
            seeds = len(PICTURE_SEEDS)
            successes = [round(run["success"] * seeds) for run in made] if not lost else []
            rows[-1].append(count_with_parts(successes, seeds * len(made)) if successes else "–")
    note = "The loss in one stage, the MSE in the other. Other lines than the MSE’s: the difference to the MSE on the "
    note += f"same picture, its mean over {len(usual)} pictures, smallest and largest. One training seed, the same for "
    note += f"all pictures. Successes picture by picture: {', '.join(p.partition('-')[0] for p in PICTURES)}.\n\n"
    return note + markdown_table(["stage", "loss", "stopped", *MEASURES, "successes"], rows)


def edit_with_losses(pipes: dict, reader, picture: str, seed: int, first: str, second: str) -> dict:
    """Make one edit with these two losses. Returns a line of the results."""
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
        generator = torch.Generator().manual_seed(1000 + seed)
        settings = {"steps": UNET_STEPS, "lr": rate_for(SECOND_SETTINGS, second)}
        how = imagic.Run(loss=LOSSES_BY_NAME[second], watch=has_diverged)
        tuned, history = imagic.fine_tune(two, image, e_opt, **settings, generator=generator, run=how)
        line["curve_2"] = stage_curve(history, raw=second.startswith("naive"))
        line["probe"].append(probe(tuned.unet, e_opt))
        raise_if_diverged(line["curve_2"])
        line["missed_mean"] = missed_mean(tuned, image, e_opt)
        edit = ImagicEdit(text, pipe, tuned, image, e_tgt, e_opt, None, history, {})
        line |= judge_pictures(edit, reader, truth, strip_of(picture, seed, first, second))
    except FloatingPointError as error:
        line["diverged"] = str(error)
    return {key: five_digits(value) for key, value in line.items()}


def write_losses(results: dict) -> None:
    text = json.dumps(results, ensure_ascii=False).replace('{"picture"', '\n{"picture"')  # a line each
    write_atomically(LOSS_RESULTS, lambda tmp: tmp.write_text(text + "\n", encoding="utf-8"))


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
                    write_losses(results)
                    print({k: v for k, v in results["runs"][-1].items() if not k.startswith("curve")}, flush=True)
    loss_sheet()
    results["table"] = losses_table(results["runs"])
    write_losses(results)
    put(README, "losses", results["table"])


if __name__ == "__main__":
    main()
