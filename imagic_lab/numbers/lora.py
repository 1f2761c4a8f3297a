"""LoRA as stage 2 of an edit, compared with full fine-tuning: which rank, which layers, and what does it save?

    python -m imagic_lab.numbers.lora          # half an hour of one core; continues where it was stopped

A larger rank learns faster, because the factor alpha / rank is 1 here. Every LoRA is trained at two rates: the one
found at rank 4, and LORA_RATE * sqrt(4 / rank), which keeps the size of the update (Kalajdzievski 2023, arXiv
2312.03732). Each run is written into data/experiments/lora.json at once; the sheet and the tables follow at the end.
The most important configurations come first, each for all (picture, seed) pairs. Seconds are of one processor core
(`time.process_time`), so other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable

import numpy as np
import torch

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table
from imagic_lab.numbers.edits import EDITS, count_successes
from imagic_lab.numbers.memory import training_peak
from imagic_lab.numbers.report import README, ROOT, command_line, put
from imagic_lab.numbers.results import (
    LONGER,
    SCRATCH,
    Results,
    chance_of_one_sign,
    count_with_parts,
    mean_and_deviation,
    paired_difference,
    rounded,
    strip,
    strips,
    write_tiles,
)
from imagic_lab.numbers.sd14_step import FRUGAL_MALLOC, PeakWatch
from imagic_lab.toyworld import Scene, load_reader, load_scene
from imagic_lib import stage2_finetuning
from imagic_lib.models import DATA
from imagic_lib.pictures import psnr, rmse, to_picture
from imagic_lib.planning.memory import Way, on_meta
from imagic_lib.training.strategies import Strategy

LORA_RESULTS = "lora.json"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS = {
    "to_q, to_v": ("to_q", "to_v"),
    "all of attention": ATTENTION,
    "attention and convolutions": (*ATTENTION, "conv1", "conv2"),
}
RANKS = {"to_q, to_v": (4, 64), "all of attention": (4,), "attention and convolutions": (4, 64)}
LORA_RATE = stage2_finetuning.DEFAULTS["lora"]["tiny"]["lr"]  # found at rank 4
RATES_BY_RANK = {64: 0.0025}  # LORA_RATE * sqrt(4 / rank)
MOST_IMPORTANT = ("full", "to_q, to_v / 4", "attention and convolutions / 4", "to_q, to_v / 64", "all of attention / 4")
EDIT_PAIRS = [(name, seed) for seed, name in enumerate(list(EDITS)[:4])]  # each picture with another training seed
LORA_ETAS, LORA_SEEDS, LORA_SAMPLING = (0.0, 0.6, 0.8, 1.0), (0, 1), 15


def configurations() -> dict[str, dict]:
    """Return the arguments of `fine_tune` by label: full, and each LoRA with the one rate and the rate for its rank."""
    made = {"full": {"method": "full"} | LONGER[1]}
    for name, targets in TARGETS.items():
        for rank in RANKS[name]:
            made[f"{name} / {rank}"] = {"method": imagic.LoRA(rank, targets)}
            if rate := RATES_BY_RANK.get(rank):
                made[f"{name} / {rank} / {rate}"] = made[f"{name} / {rank}"] | {"lr": rate}
    return made


def rank_of(settings: dict) -> int:
    """Return the rank of the LoRA that a configuration trains, or 0 if it trains all weights."""
    return getattr(settings["method"], "rank", 0)


def differs_by_rate(settings: dict) -> bool:
    """Whether another configuration trains the same LoRA at another rate, and so needs the same memory."""
    return rank_of(settings) > 0 and "lr" in settings


def parts_of(label: str) -> tuple[str, str, str]:
    """Return (layers, rank, learning rate) of a configuration, for the table."""
    layers, rank, rate, *_ = [*label.split(" / "), "", ""]
    return layers, rank or "–", rate or str(LORA_RATE if rank else LONGER[1]["lr"])


def prepared_edit(pipe, name: str, seed: int):
    """Return (scene of the ground truth, image, e_tgt, e_opt). e_opt is kept, so a second call costs nothing."""
    path = DATA / "images" / name
    truth = load_scene(path).edit(**EDITS[name])
    image, e_tgt = imagic.load_image(path, pipe), imagic.encode_text(pipe, truth.caption())
    generator = torch.Generator().manual_seed(seed)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    checkpoint = SCRATCH / f"stage-1-{name}-{seed}.safetensors"
    run = imagic.Run(checkpoint=checkpoint)
    e_opt, _ = imagic.optimize_embedding(pipe, image, e_tgt, **LONGER[0], generator=generator, run=run)
    return truth, image, e_tgt, e_opt


def measure_edits(results: Results, pipe, reader, pair: tuple[str, int], labels: Iterable[str]) -> None:
    name, seed = pair
    missing = [c for c in labels if f"{name} / {seed} / {c}" not in results.found["edits"]]
    if not missing:
        return
    truth, image, e_tgt, e_opt = prepared_edit(pipe, name, seed)
    goal = to_picture(imagic.decode_latents(pipe, imagic.encode_image(pipe, image)))
    for label in missing:
        began = time.process_time()
        generator = torch.Generator().manual_seed(1000 + seed)
        tuned, history = imagic.fine_tune(pipe, image, e_opt, generator=generator, **configurations()[label])
        seconds = time.process_time() - began
        line = imagic.interpolate(e_tgt, e_opt, LORA_ETAS)
        flat = imagic.generate(tuned, line, LORA_SEEDS, steps=LORA_SAMPLING)
        columns = {eta: flat[k * len(LORA_SEEDS) : (k + 1) * len(LORA_SEEDS)] for k, eta in enumerate(LORA_ETAS)}
        success = {eta: count_successes(reader, ps, truth) for eta, ps in columns.items() if eta}
        best = max(success, key=lambda eta: (success[eta], -eta))  # if equal, the nearest to the input
        strip(f"edit-{name}-{label.replace('/', '-')}", [columns[eta][0] for eta in LORA_ETAS])
        distance = [rmse(p, truth.render()) for p in columns[best]]
        found = {"probe": [rounded(history.probe_loss[0]), rounded(history.probe_loss[-1])]}
        found |= {"steps": len(history.loss), "seconds": rounded(seconds, 1)}
        found |= {"psnr": rounded(np.mean([psnr(p, goal) for p in columns[0.0]]), 2), "best_eta": best}
        found |= {"success": success[best], "of": len(LORA_SEEDS), "rmse": rounded(np.mean(distance))}
        results.keep("edits", f"{name} / {seed} / {label}", found)


# --- memory


def counted_memory(unet, settings: dict, *, batch: int, side: int) -> tuple[float, int]:
    """Count (GiB at the peak of a float32 step with Adam's moments, numbers that learn), instead of measuring them."""
    lora = settings["method"] if rank_of(settings) else imagic.LoRA()
    way = Way("lora" if rank_of(settings) else "full", Strategy(torch.float32, "Adam", False))
    peak, learning = training_peak(unet, 2, way, batch=batch, side=side, lora=lora)
    return (peak + 8 * learning) / 2**30, learning


def resident_memory(label: str) -> float:
    """Measure the resident memory at the peak of three steps on tiny, in a new process, in GiB above that of the
    interpreter, its libraries and the loaded model."""
    command = [sys.executable, "-m", "imagic_lab.numbers.lora", "--peak", label]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=FRUGAL_MALLOC)
    return float(done.stdout.split()[-1])


def print_peak(label: str) -> None:
    """Do the work of `resident_memory` in its process."""
    import psutil

    pipe = imagic.load_pipeline("tiny")
    image = imagic.load_image(Scene.sample(0).render(), pipe)
    e = imagic.encode_text(pipe, "a brown dog jumping on the grass")
    imagic.encode_image(pipe, image)
    before = psutil.Process().memory_info().rss
    with PeakWatch() as watch:
        imagic.fine_tune(pipe, image, e, **configurations()[label] | {"steps": 3, "batch": 8})
    print((watch.most - before) / 2**30)


def measure_memory(results: Results) -> None:
    parts = {"tiny": (on_meta("tiny")["unet"], 8, 16)}
    parts["SD 1.4"] = (on_meta("CompVis/stable-diffusion-v1-4")["unet"], 1, 64)
    for label, settings in configurations().items():
        if label in results.found["memory"] or differs_by_rate(settings):
            continue
        found = {}
        for model, (unet, batch, side) in parts.items():
            if model != "tiny" and rank_of(settings) not in (0, 4, 64):
                continue  # each takes some seconds, and the rank hardly matters
            peak, learning = counted_memory(unet, settings, batch=batch, side=side)
            whole = sum(p.numel() for p in unet.parameters())
            found[model] = {"learn": learning, "share": learning / whole, "counted_GiB": rounded(peak)}
        if rank_of(settings) in (0, 4):
            found["tiny"]["resident_GiB"] = rounded(resident_memory(label))
        results.keep("memory", label, found)


# --- sheet and tables


SHEET = {  # the rows of the sheet
    "full": "full",
    "to_q, to_v, rank 4": "to_q, to_v / 4",
    "to_q, to_v, rank 64": "to_q, to_v / 64 / 0.0025",
    "all of attention, rank 4": "all of attention / 4",
    "attention and convolutions, rank 4": "attention and convolutions / 4",
    "attention and convolutions, rank 64": "attention and convolutions / 64 / 0.0025",
}
SHEET_ETAS = (0.0, 0.8, 1.0)


def lora_sheet() -> None:
    """Draw the sheet of the dog, with a row for each configuration in SHEET and a column for each η in SHEET_ETAS."""
    rows = [strips(f"edit-{EDIT_PAIRS[0][0]}-{label.replace('/', '-')}") for label in SHEET.values()]
    write_tiles("lora-edits.jpg", [[row[LORA_ETAS.index(eta)] for eta in SHEET_ETAS] for row in rows])


def edit_runs(found: dict) -> dict[str, dict[str, dict]]:
    """Return the runs of each configuration, by 'picture / seed'."""
    pairs = [f"{name} / {seed}" for name, seed in EDIT_PAIRS]
    return {c: {pair: found[f"{pair} / {c}"] for pair in pairs} for c in configurations()}


def two_digits(share: float) -> str:
    """Write a share as '0.32 %'."""
    return f"{100 * share:.2g} %" if share < 0.99 else "100 %"


def edits_table(found: dict, learning: dict) -> str:
    rows, every = [], edit_runs(found)
    for c, by_pair in every.items():
        layers, rank, rate = parts_of(c)
        runs = list(by_pair.values())
        probe = [run["probe"][1] / run["probe"][0] for run in runs]
        success = count_with_parts([run["success"] for run in runs], sum(run["of"] for run in runs))
        share = learning[" / ".join(c.split(" / ")[:2])]["tiny"]["share"]
        rows.append([layers, rank, f"{1000 * float(rate):g}", two_digits(share)])
        rows[-1] += [f"{np.mean([run['seconds'] for run in runs]):.0f} s", mean_and_deviation(probe, ".2f")]
        rows[-1] += [mean_and_deviation([run["psnr"] for run in runs], ".1f"), success]
        rows[-1] += [mean_and_deviation([run["rmse"] for run in runs], ".3f")]
    header = ["layers", "rank", "rate × 1000", "learn", "CPU time", "probe", "PSNR, dB", "success", "RMSE"]
    count = sum(map(len, every.values()))
    note = f"Mean ± standard deviation over {len(EDIT_PAIRS)} edits, each of another picture with another training "
    note += f"seed; {count} runs in all. Successes of {len(LORA_SEEDS)} pictures an edit, in parentheses edit by "
    note += f"edit: {', '.join(name.partition('-')[0] for name, _ in EDIT_PAIRS)}.\n\n"
    return note + markdown_table(header, rows)


def memory_table(found: dict) -> str:
    rows = []
    for c, settings in configurations().items():
        if differs_by_rate(settings) or "SD 1.4" not in found[c]:
            continue
        layers, rank, _ = parts_of(c)
        tiny, sd = found[c]["tiny"], found[c]["SD 1.4"]
        rows.append([layers, rank, f"{tiny['counted_GiB']:.3f}"])
        rows[-1] += [f"{tiny['resident_GiB']:.3f}" if "resident_GiB" in tiny else "–"]
        rows[-1] += [f"{sd['learn']:,}", two_digits(sd["share"]), f"{sd['counted_GiB']:.2f}"]
    header = ["layers", "rank", "tiny: counted, GiB", "tiny: resident, GiB", "SD 1.4: learn", "share"]
    return markdown_table([*header, "SD 1.4: counted, GiB"], rows)


def lora_verdicts(found: dict) -> list[str]:
    """Return sentences that compare two configurations, edit by edit, and one on how far to trust them."""
    runs, small, conv = edit_runs(found), "to_q, to_v / 4", "attention and convolutions / 4"
    compared = {
        "full minus LoRA of rank 4 on to_q and to_v": ("full", small),
        "full minus LoRA of rank 4 on attention and convolutions": ("full", conv),
        "LoRA of rank 4, attention and convolutions minus to_q and to_v": (conv, small),
        "LoRA of rank 4, all of attention minus to_q and to_v": ("all of attention / 4", small),
    }
    for rank, rate in RATES_BY_RANK.items():
        for layers, four in (("to_q, to_v", small), ("attention and convolutions", conv)):
            what = f"LoRA on {layers}, rank {rank} minus rank 4"
            compared |= {f"{what}, one rate": (f"{layers} / {rank}", four)}
            compared |= {f"{what}, rate by rank": (f"{layers} / {rank} / {rate}", four)}
    lines = []
    for what, both in compared.items():
        psnr_of_both = ([run["psnr"] for run in runs[label].values()] for label in both)
        lines.append(f"PSNR at η = 0, {what}: {paired_difference(*psnr_of_both, unit=' dB')}.")
    chance = f"chance alone puts all {len(EDIT_PAIRS)} on one side in {chance_of_one_sign(len(EDIT_PAIRS))}"
    return [*lines, f"{len(compared)} comparisons of {len(EDIT_PAIRS)} edits each: in every comparison {chance}."]


def lora_tables(found: dict) -> dict:
    made = {"edits": edits_table(found["edits"], found["memory"]), "memory": memory_table(found["memory"])}
    return made | {"verdicts": lora_verdicts(found["edits"])}


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("--peak", choices=configurations(), help=argparse.SUPPRESS)  # for `resident_memory`
    if label := options.parse_args().peak:
        return print_peak(label)
    results = Results(LORA_RESULTS, "edits", "memory")
    pipe, reader = imagic.load_pipeline("tiny"), load_reader()
    for labels in (MOST_IMPORTANT, configurations()):
        for pair in EDIT_PAIRS:
            measure_edits(results, pipe, reader, pair, labels)
    measure_memory(results)
    lora_sheet()
    made = results.found["tables"] = lora_tables(results.found)
    results.write()
    verdict = "\n".join(f"- {line}" for line in made["verdicts"])
    put(README, "lora", "\n".join([made["edits"], made["memory"], verdict]))


if __name__ == "__main__":
    main()
