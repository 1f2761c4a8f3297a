"""LoRA: as stage 2 of an edit, and as a new word for one particular car. What rank, which layers, how many pictures?

    python benchmarks/lora.py          # what is stored: about half an hour of one core; goes on where it was stopped

Each run is written into data/experiments/lora.json at once, and the sheets beside it are made of what was drawn. Its
loops go over (picture, seed) and over cars outside, so that half a run is a balanced half. Seconds are of one
processor core (`time.process_time`), so that other work on the machine does not count.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from edits import EDITS
from PIL import Image
from report import ROOT, put, table

import imagic_lib as imagic
from imagic_lib import memory, personalization
from imagic_lib.checkpoints import write_atomically
from imagic_lib.images import to_picture
from imagic_lib.metrics import psnr, rmse
from imagic_lib.models import DATA
from imagic_lib.plots import picture_grid
from imagic_lib.strategies import Strategy
from imagic_lib.toyworld import Scene, load_scene, vae
from imagic_lib.toyworld.judge import load_judge
from imagic_lib.toyworld.lineup import Lineup, seen_again

FOLDER, SCRATCH = DATA / "experiments", ROOT / "runs" / "lora"
RESULTS = FOLDER / "lora.json"
LARGEST_SHEET = 60_000  # bytes

# --- stage 2 of an edit
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS = {
    "to_q, to_v": ("to_q", "to_v"),
    "all of attention": ATTENTION,
    "attention and convolutions": (*ATTENTION, "conv1", "conv2"),
}
RANKS = (1, 4, 16, 64)
ROUNDS = (("full", "to_q, to_v / 4", "attention and convolutions / 4"), ("to_q, to_v / 64", "all of attention / 4"))
PAIRS = [(name, seed) for seed, name in enumerate(list(EDITS)[:4])]  # a picture each, a training seed each
ETAS, SEEDS, SAMPLING_STEPS = (0.0, 0.6, 0.8, 1.0), (0, 1), 15

# --- a new word
CARS = {"green emblem, roof rack": 1_500_033, "stripe, blue emblem": 1_600_235}  # scenes by seed, of no training
WORD, CLASS = "a photo of sks car", "a photo of a car"
PLACES = {"beach": "on the beach", "snow": "in the snow", "night": "at night", "grass": "on the grass"}
# the beach is never shown
SHOWN = [("grass", "parked"), ("snow", "driving"), ("night", "parked"), ("grass", "driving"),
         ("snow", "parked"), ("night", "driving"), ("grass", "parked"), ("snow", "driving")]  # fmt: skip
FINE, RICH = TARGETS["to_q, to_v"], TARGETS["attention and convolutions"]
WORDS = {  # by label: pictures, with a prior, layers; in the order in which they are run
    "1": (1, False, FINE),
    "8 with convolutions": (8, False, RICH),
    "8 with convolutions and prior": (8, True, RICH),
    "8": (8, False, FINE),
    "1 with prior": (1, True, FINE),
    "1 with convolutions": (1, False, RICH),
    "4 with convolutions": (4, False, RICH),
    "2 with convolutions": (2, False, RICH),
}
PRIOR_COUNT, WORD_SEEDS, OTHERS = 16, (0, 1, 2), 9


def results() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"edits": {}, "words": {}, "memory": {}}


def keep(part: str, key: str, value: dict) -> None:
    found = results()
    found[part][key] = value
    write_atomically(RESULTS, lambda tmp: tmp.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n"))
    print(f"{time.strftime('%H:%M:%S')} {part} {key}: {json.dumps(value)[:300]}", flush=True)


def rounded(value: float, digits: int = 4) -> float:
    return round(float(value), digits)


def read(judge, pictures: list[Image.Image]) -> list[dict[str, str]]:
    return judge.read(vae.to_tensor(np.stack([np.asarray(p) for p in pictures])))


def strip(name: str, pictures: list[Image.Image]) -> None:
    """Keep a row of pictures for the sheets."""
    row = Image.new("RGB", (128 * len(pictures), 128))
    for k, picture in enumerate(pictures):
        row.paste(picture, (128 * k, 0))
    write_atomically(SCRATCH / f"{name}.png", lambda tmp: row.save(tmp, format="PNG"))


def strips(name: str) -> list[Image.Image]:
    row = Image.open(SCRATCH / f"{name}.png")
    return [row.crop((x, 0, x + 128, 128)) for x in range(0, row.width, 128)]


def write_sheet(name: str, figure) -> None:
    """As the best JPEG of at most LARGEST_SHEET bytes."""
    for quality in range(90, 20, -5):
        figure.savefig(buffer := io.BytesIO(), format="jpg", dpi=80, pil_kwargs={"quality": quality, "optimize": True})
        if buffer.tell() <= LARGEST_SHEET:
            break
    write_atomically(FOLDER / name, lambda tmp: tmp.write_bytes(buffer.getvalue()))


# --- stage 2 of an edit, full and with LoRA


def configurations() -> dict[str, dict]:
    """By label, what `fine_tune` is called with."""
    lora = {f"{n} / {r}": {"method": "lora", "rank": r, "targets": t} for n, t in TARGETS.items() for r in RANKS}
    return {"full": {"method": "full"}} | lora


def stage_1(pipe, name: str, seed: int):
    """(scene of the truth, image, e_tgt, e_opt); the embedding is kept, a second call costs nothing."""
    path = DATA / "images" / name
    truth = load_scene(path).edit(**EDITS[name])
    image, e_tgt = imagic.load_image(path, pipe), imagic.encode_text(pipe, truth.caption())
    generator = torch.Generator().manual_seed(seed)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    checkpoint = SCRATCH / f"stage-1-{name}-{seed}.safetensors"
    e_opt, _ = imagic.optimize_embedding(pipe, image, e_tgt, generator=generator, checkpoint=checkpoint)
    return truth, image, e_tgt, e_opt


def edits(pipe, judge, pair: tuple[str, int], labels: Iterable[str]) -> None:
    name, seed = pair
    missing = [c for c in labels if f"{name} / {seed} / {c}" not in results()["edits"]]
    if not missing:
        return
    truth, image, e_tgt, e_opt = stage_1(pipe, name, seed)
    goal = to_picture(imagic.decode_latents(pipe, imagic.encode_image(pipe, image)))
    for label in missing:
        began = time.process_time()
        generator = torch.Generator().manual_seed(1000 + seed)
        tuned, history = imagic.fine_tune(pipe, image, e_opt, generator=generator, **configurations()[label])
        seconds = time.process_time() - began
        line = imagic.interpolate(e_tgt, e_opt, ETAS)
        flat = imagic.generate(tuned, line, SEEDS, steps=SAMPLING_STEPS)
        columns = {eta: flat[k * len(SEEDS) : (k + 1) * len(SEEDS)] for k, eta in enumerate(ETAS)}
        right = {eta: sum(r == truth.attributes for r in read(judge, ps)) for eta, ps in columns.items() if eta}
        best = max(right, key=lambda eta: (right[eta], -eta))  # of equals the smallest, nearest to the input
        strip(f"edit-{name}-{label.replace('/', '-')}", [columns[eta][0] for eta in ETAS])
        distance = [rmse(p, truth.render()) for p in columns[best]]
        found = {"probe": [rounded(history.probe_loss[0]), rounded(history.probe_loss[-1])]}
        found |= {"steps": len(history.loss), "seconds": rounded(seconds, 1)}
        found |= {"psnr": rounded(np.mean([psnr(p, goal) for p in columns[0.0]]), 2), "best_eta": best}
        found |= {"right": right[best], "of": len(SEEDS), "rmse": rounded(np.mean(distance))}
        keep("edits", f"{name} / {seed} / {label}", found)


# --- memory


def counted(unet, settings: dict, *, batch: int, side: int) -> tuple[float, int]:
    """(GiB at the peak of a float32 step with Adam's moments, numbers that learn): counted, not measured."""
    settings = dict(settings)
    strategy = Strategy(settings.pop("method"), torch.float32, "Adam", False)
    peak, learning = memory.training_peak(unet, 2, strategy, batch=batch, side=side, **settings)
    return (peak + 8 * learning) / 2**30, learning


def resident(label: str) -> float:
    """GiB of resident memory at the peak of three steps on tiny, above the interpreter, its libraries and the loaded
    model; in a process of its own."""
    command = [sys.executable, __file__, label]
    quiet = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=quiet)
    return float(done.stdout.split()[-1])


def measure(label: str) -> None:
    import psutil
    from sd14_step import Peak

    pipe = imagic.load_pipeline("tiny", device="cpu")
    image = imagic.load_image(Scene.sample(0).render(), pipe)
    e = imagic.encode_text(pipe, "a brown dog jumping on the grass")
    imagic.encode_image(pipe, image)
    before = psutil.Process().memory_info().rss
    watch = Peak()
    watch.start()
    imagic.fine_tune(pipe, image, e, steps=3, batch=8, probe_every=10, **configurations()[label])
    watch.over.set()
    watch.join()
    print((watch.most - before) / 2**30)


def memories() -> None:
    parts = {"tiny": (memory.on_meta("tiny")["unet"], 8, 16)}
    parts["SD 1.4"] = (memory.on_meta("CompVis/stable-diffusion-v1-4")["unet"], 1, 64)
    for label, settings in configurations().items():
        if label in results()["memory"]:
            continue
        found = {}
        for model, (unet, batch, side) in parts.items():
            if model != "tiny" and settings.get("rank", 4) not in (4, 64):
                continue  # each takes some seconds, and the rank hardly shows
            peak, learning = counted(unet, settings, batch=batch, side=side)
            whole = sum(p.numel() for p in unet.parameters())
            found[model] = {"learn": learning, "share": learning / whole, "counted_GiB": rounded(peak)}
        if settings.get("rank", 4) == 4:
            found["tiny"]["resident_GiB"] = rounded(resident(label))
        keep("memory", label, found)


# --- a new word for one car


def car_of(label: str, place="grass", pose="parked") -> Scene:
    return Scene.sample(CARS[label], subject="car", colour="yellow", pose=pose, place=place)


def shown(label: str, count: int) -> list[Scene]:
    """The pictures of the car that are learned from: the first is its own scene, the rest other views."""
    car = car_of(label)
    return [car] + [seen_again(car, 1_800_000 + k, place=p, pose=q) for k, (p, q) in enumerate(SHOWN[1:count])]


@lru_cache(maxsize=1)
def lineups(label: str) -> dict[str, Lineup]:
    """For each place the car itself, first, and other yellow cars."""
    others = [Scene.sample(1_700_000 + k, subject="car", colour="yellow", pose="driving") for k in range(OTHERS)]
    cars = [car_of(label), *others]
    return {place: Lineup([scene.edit(place=place, pose="driving") for scene in cars]) for place in PLACES}


def judged(judge, label: str, place: str, pictures: list[Image.Image]) -> list[dict]:
    """Of each picture: how far from this car, is it picked in the line-up, and does the text hold?"""
    found = []
    for picture, seen in zip(pictures, read(judge, pictures), strict=True):
        distances = lineups(label)[place].distances(picture)
        found.append({"distance": rounded(distances[0]), "picked": distances[0] == min(distances)})
        found[-1] |= {"text": (seen["subject"], seen["pose"], seen["place"]) == ("car", "driving", place)}
        found[-1] |= {"yellow": seen["colour"] == "yellow"}
    return found


def mean_of(rows: list[dict]) -> dict:
    return {key: rounded(np.mean([row[key] for row in rows]), 3) for key in rows[0]} | {"n": len(rows)}


def judge_words(pipe, judge, label: str, subject: str) -> tuple[dict, list[Image.Image]]:
    """Four places, and what has become of other cars; the pictures of one seed for the sheet."""
    found, row = {}, []
    for place, phrase in PLACES.items():
        drawn = imagic.sample_text(pipe, f"{subject} driving {phrase}", WORD_SEEDS, steps=SAMPLING_STEPS)
        found[place] = mean_of(judged(judge, label, place, drawn))
        row.append(drawn[0])
    red = imagic.sample_text(pipe, "a photo of a red car", WORD_SEEDS, steps=SAMPLING_STEPS)
    some = imagic.sample_text(pipe, CLASS, WORD_SEEDS, steps=SAMPLING_STEPS)
    found["red car is red"] = rounded(np.mean([r["colour"] == "red" for r in read(judge, red)]), 3)
    found["a car is yellow"] = rounded(np.mean([r["colour"] == "yellow" for r in read(judge, some)]), 3)
    return found, [*row, red[0], some[0]]


def words(pipe, judge, label: str, kinds: Iterable[str]) -> None:
    def record(name: str, make) -> None:
        if f"{label} / {name}" not in results()["words"]:
            found, row = make()
            strip(f"word-{label}-{name}", row)
            keep("words", f"{label} / {name}", found)

    def limits() -> tuple[dict, list[Image.Image]]:
        """The best that is possible: other views of the very car, drawn, then through the VAE."""
        found, row = {}, []
        for place in PLACES:
            scenes = [seen_again(car_of(label), 1_900_000 + k, place=place, pose="driving") for k in WORD_SEEDS]
            images = [imagic.load_image(scene.render(), pipe) for scene in scenes]
            drawn = [to_picture(imagic.decode_latents(pipe, imagic.encode_image(pipe, x))) for x in images]
            found[place] = mean_of(judged(judge, label, place, drawn))
            row.append(scenes[0].render())
        return found, [*row, car_of(label).render(), car_of(label).render()]

    def trained(count: int, with_prior: bool, targets: tuple[str, ...]):
        began = time.process_time()
        prior = personalization.class_pictures(pipe, CLASS, PRIOR_COUNT, seed=5000, steps=15) if with_prior else None
        images = [imagic.load_image(scene.render(), pipe) for scene in shown(label, count)]
        generator = torch.Generator().manual_seed(count)
        tuned, history = imagic.personalize(
            pipe, images, WORD, prior=prior, targets=targets, generator=generator, probe_every=250
        )
        found = {"pictures": count, "prior": with_prior, "seconds": rounded(time.process_time() - began, 1)}
        found |= {"probe": [rounded(history.probe_loss[0]), rounded(history.probe_loss[-1])]}
        more, row = judge_words(tuned, judge, label, WORD)
        return found | more, row

    record("limit", limits)
    record("loaded, a yellow car", lambda: judge_words(pipe, judge, label, "a photo of a yellow car"))
    record("loaded, sks car", lambda: judge_words(pipe, judge, label, WORD))
    for kind in kinds:
        record(kind, lambda settings=WORDS[kind]: trained(*settings))


# --- sheets and tables


def sheets() -> None:
    name = PAIRS[0][0]
    short = dict(zip(TARGETS, ("q, v", "attention", "+ conv."), strict=True))
    rows, labels = [], []
    for c in configurations():
        target, _, rank = c.partition(" / ")
        if rank in ("", "4", "64") and (SCRATCH / f"edit-{name}-{c.replace('/', '-')}.png").exists():
            rows.append(strips(f"edit-{name}-{c.replace('/', '-')}"))
            labels.append(f"{short[target]}\nrank {rank}" if rank else c)
    if rows:
        write_sheet("lora-edits.jpg", picture_grid(rows, [f"η = {eta:g}" for eta in ETAS], labels, inch=0.95))
    for number, label in enumerate(CARS):
        order = ["limit", "loaded, a yellow car", *sorted(WORDS)]
        there = [one for one in order if (SCRATCH / f"word-{label}-{one}.png").exists()]
        short = {"limit": "truth", "loaded, a yellow car": "loaded model"}
        labels = [short.get(one, one.replace(" with ", "\n+ ").replace("convolutions", "conv.")) for one in there]
        rows = [strips(f"word-{label}-{one}")[: len(PLACES) if one == "limit" else None] for one in there]
        titles = [*PLACES, "red car", "a car"]
        write_sheet(f"lora-car-{number + 1}.jpg", picture_grid(rows, titles, labels, inch=1.15))


def spread(values: list[float], form: str) -> str:
    """Mean ± standard deviation."""
    return f"{np.mean(values):{form}}" + (f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else "")


def percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.99 else "100 %"


def compared(what: str, a: list[float], b: list[float], unit: str = "", form: str = ".1f") -> str:
    """One sentence on a paired difference, with its 95 % interval by Student's t."""
    d = np.array(a) - np.array(b)
    t = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}[len(d) - 1]
    half = t * d.std(ddof=1) / len(d) ** 0.5
    shown = "" if abs(d.mean()) > half else ": no difference is shown"
    return f"{what}: {d.mean():+{form}} ± {half:{form}}{unit} (95 %, {len(d)} pairs){shown}."


def portion(count: float, total: int) -> str:
    """k of n with Wilson's 95 % interval."""
    p, z = count / total, 1.96
    middle, half = p + z * z / (2 * total), z * (p * (1 - p) / total + z * z / (4 * total**2)) ** 0.5
    low, high = ((middle + s * half) / (1 + z * z / total) for s in (-1, 1))
    return f"{count:.0f} of {total} ({100 * abs(low):.0f}–{100 * high:.0f} %)"


def edit_runs(found: dict) -> dict[str, dict[str, dict]]:
    """By configuration its runs, by (picture, seed)."""
    runs = {c: {f"{n} / {seed}": found.get(f"{n} / {seed} / {c}") for n, seed in PAIRS} for c in configurations()}
    return {c: made for c, some in runs.items() if (made := {pair: run for pair, run in some.items() if run})}


def edits_table(found: dict, learning: dict) -> str:
    rows, every = [], edit_runs(found)
    for c, by_pair in every.items():
        target, _, rank = c.partition(" / ")
        runs = list(by_pair.values())
        probe = [run["probe"][1] / run["probe"][0] for run in runs]
        right, total = sum(run["right"] for run in runs), sum(run["of"] for run in runs)
        rows.append([target, rank or "–", percent(learning[c]["tiny"]["share"]), str(len(runs))])
        rows[-1] += [f"{np.mean([run['seconds'] for run in runs]):.0f} s", spread(probe, ".2f")]
        rows[-1] += [spread([run["psnr"] for run in runs], ".1f"), f"{right} of {total}"]
        rows[-1] += [spread([run["rmse"] for run in runs], ".3f")]
    header = ["layers", "rank", "learn", "pairs", "CPU time", "probe", "PSNR, dB", "right", "RMSE"]
    count = sum(map(len, every.values()))
    note = f"Mean ± standard deviation over the (picture, seed) pairs; {count} runs in all.\n\n"
    return note + table(header, rows)


def memory_table(found: dict) -> str:
    rows = []
    for c in configurations():
        target, _, rank = c.partition(" / ")
        if "SD 1.4" not in found[c]:
            continue
        tiny, sd = found[c]["tiny"], found[c]["SD 1.4"]
        rows.append([target, rank or "–", f"{tiny['counted_GiB']:.3f}"])
        rows[-1] += [f"{tiny['resident_GiB']:.3f}" if "resident_GiB" in tiny else "–"]
        rows[-1] += [f"{sd['learn']:,}", percent(sd["share"]), f"{sd['counted_GiB']:.2f}"]
    header = ["layers", "rank", "tiny: counted, GiB", "tiny: resident, GiB", "SD 1.4: learn", "share"]
    return table([*header, "SD 1.4: counted, GiB"], rows)


NAMES = {"limit": "the car itself, drawn, through the VAE", "loaded, a yellow car": "loaded model, ‘a yellow car’",
         "loaded, sks car": "loaded model, ‘sks car’"}  # fmt: skip


def word_runs(found: dict) -> dict[str, dict[str, dict]]:
    """By kind of run its results, by car."""
    runs = {kind: {car: found.get(f"{car} / {kind}") for car in CARS} for kind in (*NAMES, *sorted(WORDS))}
    return {kind: made for kind, some in runs.items() if (made := {car: run for car, run in some.items() if run})}


def share_of(runs: Iterable[dict], key: str, places: Iterable[str]) -> tuple[int, int]:
    """(in how many pictures it is so, of how many)."""
    cells = [run[place] for run in runs for place in places]
    return sum(round(cell[key] * cell["n"]) for cell in cells), sum(cell["n"] for cell in cells)


def words_table(found: dict) -> str:
    rows = []
    for kind, by_car in word_runs(found).items():
        runs = list(by_car.values())
        rows.append([NAMES.get(kind, f"pictures: {kind.replace(' with', ', with')}"), str(len(runs))])
        rows[-1] += [f"{np.mean([run[place]['distance'] for run in runs for place in PLACES]):.3f}"]
        for key in ("picked", "text"):
            rows[-1] += ["{} of {}".format(*share_of(runs, key, places)) for places in (["beach"], PLACES)]
        for key in ("red car is red", "a car is yellow"):
            rows[-1] += [f"{100 * np.mean([run[key] for run in runs]):.0f} %" if key in runs[0] else "–"]
    header = ["trained on", "cars", "distance", "picked: beach", "picked: all places"]
    header += ["text holds: beach", "text holds: all places", "‘a red car’ is red", "‘a car’ is yellow"]
    note = f"{len(WORD_SEEDS)} seeds in each of {len(PLACES)} places; a line-up of {OTHERS + 1} yellow cars.\n\n"
    return note + table(header, rows)


PRIORS = ("8 with convolutions and prior", "8 with convolutions")


def verdicts(found: dict) -> list[str]:
    runs, words = edit_runs(found["edits"]), word_runs(found["words"])

    def psnr_of(what: str, a: str, b: str) -> list[str]:
        """The comparison over the pairs that both have, if there are at least three."""
        pairs = [pair for pair in runs.get(a, {}) if pair in runs.get(b, {})]
        both = ([runs[c][pair]["psnr"] for pair in pairs] for c in (a, b))
        return [compared(f"PSNR at η = 0, {what}", *both, " dB")] if len(pairs) > 2 else []

    def distances(what: str, a: str, b: str) -> list[str]:
        """The comparison over the places and the cars that both have."""
        cars = [car for car in words.get(a, {}) if car in words.get(b, {})]
        both = [[words[kind][car][place]["distance"] for car in cars for place in PLACES] for kind in (a, b)]
        return [compared(f"Distance to the car, {what}", *both, "", ".3f")] if cars else []

    small, conv = "to_q, to_v / 4", "attention and convolutions / 4"
    lines = psnr_of("full minus LoRA of rank 4 on to_q and to_v", "full", small)
    lines += psnr_of("full minus LoRA of rank 4 on attention and convolutions", "full", conv)
    lines += psnr_of("LoRA of rank 4, with convolutions minus to_q and to_v alone", conv, small)
    lines += psnr_of("LoRA on to_q and to_v, rank 64 minus rank 4", "to_q, to_v / 64", small)
    lines += psnr_of("LoRA of rank 4, all of attention minus to_q and to_v alone", "all of attention / 4", small)
    for c in ("full", small, conv):
        right = portion(sum(r["right"] for r in runs[c].values()), sum(r["of"] for r in runs[c].values()))
        lines.append(f"Edits judged right at the best η, {c.replace(' /', ', rank')}: {right}.")
    for kind in (kind for kind in WORDS if kind in words):
        made = words[kind].values()
        picked, text = (portion(*share_of(made, key, PLACES)) for key in ("picked", "text"))
        count = len(made) * len(WORD_SEEDS)
        red = portion(sum(round(run["red car is red"] * len(WORD_SEEDS)) for run in made), count)
        lines.append(
            f"Pictures: {kind}. Picked in the line-up {picked}; text holds {text}, at the beach "
            f"{portion(*share_of(made, 'text', ['beach']))}; a red car is red {red}."
        )
    lines += distances("one picture minus the loaded model’s yellow cars", "1", "loaded, a yellow car")
    lines += distances("eight pictures minus one", "8", "1")
    lines += distances("eight pictures, with convolutions minus to_q and to_v alone", "8 with convolutions", "8")
    lines += distances("eight pictures with convolutions, with prior minus without", *PRIORS)
    return lines


def tables_of(found: dict) -> dict:
    made = {"edits": edits_table(found["edits"], found["memory"]), "memory": memory_table(found["memory"])}
    return made | {"words": words_table(found["words"]), "verdicts": verdicts(found)}


def tables() -> None:
    found = results()
    made = found["tables"] = tables_of(found)
    write_atomically(RESULTS, lambda tmp: tmp.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n"))
    text = "\n".join([made["edits"], made["memory"], made["words"], *(f"- {line}" for line in made["verdicts"])])
    put(ROOT / "benchmarks" / "README.md", "lora", text)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    pipe, judge = imagic.load_pipeline("tiny", device="cpu"), load_judge()
    one, two = CARS
    for pair, label, kinds in zip(PAIRS, (one, one, two, one), (1, 2, 2, 3), strict=True):  # a part is a balanced part
        edits(pipe, judge, pair, ROUNDS[0])
        words(pipe, judge, label, list(WORDS)[:kinds])
    memories()
    for label in CARS:
        words(pipe, judge, label, list(WORDS)[:5])
    for labels, some in ((ROUNDS[1], list(WORDS)[:6]), (configurations(), WORDS)):
        sheets()
        tables()
        for pair in PAIRS:
            edits(pipe, judge, pair, labels)
        for label in CARS:
            words(pipe, judge, label, some)
    sheets()
    tables()


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
