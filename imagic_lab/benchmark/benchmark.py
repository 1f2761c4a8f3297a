"""The methods of `experiments.methods` measured on ToyEdit, whose edits have a right answer.

Each edit with each method is a job of a sweep (`imagic_lab.sweep`) and becomes one row of a CSV file. The knob of a
method is chosen on the edits of "dev"; the table of "test" uses it. `python -m imagic_lib benchmark --help`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from imagic_lab.methods import METHODS, Method, community_methods
from imagic_lab.sweep import Job, sweep
from imagic_lab.sweep.table import read_table
from imagic_lab.sweep.work import FACTS, Setup, pipeline, read_json
from imagic_lab.toyworld.edits import KINDS, SIZES, VERSION, toyedit
from imagic_lab.toyworld.reader import Reader, Report, load_reader
from imagic_lab.toyworld.scene import Scene
from imagic_lib import stage4_inference
from imagic_lib.diffusion import decode_latents, encode_image
from imagic_lib.models import DATA, fingerprint
from imagic_lib.pictures import load_image, psnr, to_picture
from imagic_lib.training.checkpoints import write_atomically

SEEDS = tuple(range(4))
SHOWN = 2  # of them in a job's sheet of pictures
WORK = "imagic_lab.benchmark.benchmark:work"
SHEET, COMMUNITY_COPY = "sheet.png", "community.py"
VERSIONS = ("toyedit", "library", "torch", "diffusers", "model", "reader")  # rows that differ in one can't be compared
READ = ("success", "right", "kept", "distance")  # by the reader: its `Report`
LISTS = (*READ, "seconds_a_picture", "evaluations_a_picture")  # a number for each value of the knob
COLUMNS = (
    *("split", "edit", "kind", "from", "to", "method", "settings", "knob", "values", "pictures", *LISTS),
    *("psnr", "seconds", "evaluations", "with_gradient", "error", "date", *VERSIONS),
)
NOTE = """{} edits. Details kept: of the successful pictures. Both: success x details kept, where a failure keeps
nothing; for this the knob was chosen, on {} edits of dev. PSNR: to the input, where a value of the knob stands for it.
Seconds and evaluations are for one picture, training or inversion included; after the plus sign those that a backward
pass followed. In brackets 95 % intervals over the edits. The last table has too few edits of a kind for intervals.
"""


# -- one edit by one method


@dataclass
class Evaluations:
    """How many latents a UNet has looked at so far: the samples of each pass, added up over the passes."""

    count: int = 0
    with_gradient: int = 0  # of them, those that a backward pass followed, which costs twice as much again


@contextmanager
def counted(unet: UNet2DConditionModel):
    """Inside, every pass of this UNet is counted, and of every copy that is made of it: copies inherit the hook."""
    found = Evaluations()

    def count(module: torch.nn.Module, arguments: tuple, named: dict) -> None:
        latents = arguments[0] if arguments else named["sample"]
        found.count += len(latents)
        found.with_gradient += len(latents) * torch.is_grad_enabled()

    hook = unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


def measure(
    method: Method, pipe: StableDiffusionPipeline, edit: tuple, reader: Reader, seeds: Sequence[int] = SEEDS
) -> tuple[dict, list[list[Image.Image]]]:
    """One edit of ToyEdit by one method. edit: (scene, change) as in `toyedit`.

    Returns what its row says, and the pictures, a list for each value of the knob. Of `LISTS` there is a number for
    each value: shares over the seeds; of what is kept and how far the truth is, means over the successful pictures
    ("nan" if there is none). psnr: in dB to what the VAE makes of the input, at the knob's first value. seconds,
    evaluations (see `Evaluations`): of what is done once, before the first picture.
    """
    scene, change = edit
    truth, image = scene.edit(**change), load_image(scene.render(), pipe)
    seeds = list(seeds) if method.seeded else [0]
    drawn = []
    with counted(pipe.unet) as evaluations:
        marks = [(time.monotonic(), replace(evaluations))]
        draw = method.start(pipe, image, truth.caption(), scene.caption())
        marks.append((time.monotonic(), replace(evaluations)))
        for value in method.values:
            drawn.append([draw(value, [seed])[0] for seed in seeds])  # one by one, as not all methods can do several
            marks.append((time.monotonic(), replace(evaluations)))
    seconds = np.diff([moment for moment, _ in marks])
    counts = np.diff([done.count for _, done in marks])
    near = to_picture(decode_latents(pipe, encode_image(pipe, image)))
    reports = [[report_of(reader, picture, truth, scene) for picture in row] for row in drawn]
    found = {name: listed([mean([getattr(one, name) for one in row]) for row in reports]) for name in READ}
    return {
        "settings": settings_of(method),
        "knob": method.knob,
        "values": listed(method.values),
        "pictures": len(seeds),
        **found,
        "seconds_a_picture": listed(seconds[1:] / len(seeds)),
        "evaluations_a_picture": listed(counts[1:] / len(seeds)),
        "psnr": round(float(np.mean([psnr(picture, near) for picture in drawn[0]])), 2),
        "seconds": round(float(seconds[0]), 2),
        "evaluations": int(counts[0]),
        "with_gradient": marks[1][1].with_gradient,
    }, drawn


def report_of(reader: Reader, picture: Image.Image, truth: Scene, before: Scene) -> Report:
    """What the reader says of a picture; of a failure not what it keeps. One that is wrong at a glance is soon told."""
    report = reader.report(picture, truth, before) if reader.may_be(picture, truth) else None
    if report is None or not report.success:
        return Report(report is not None and report.right, False, math.nan, math.nan)
    return report


def mean(values: Sequence[float]) -> float:
    """Of those that are numbers; nan if none is."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def listed(numbers: Sequence[float]) -> str:
    """Several numbers in one cell."""
    return " ".join(f"{number:.4g}" for number in numbers)


def numbers_in(cell: str) -> list[float]:
    return [float(number) for number in cell.split()]


def sheet(input_picture: Image.Image, truth: Image.Image, drawn: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """The input, the right answer, and a picture for each value of the knob; a line for each of the first seeds."""
    side, lines = input_picture.width, min(SHOWN, len(drawn[0]))
    whole = Image.new("RGB", (side * (2 + len(drawn)), side * lines), "white")
    for line in range(lines):
        for column, picture in enumerate([input_picture, truth, *(row[line] for row in drawn)]):
            whole.paste(picture, (side * column, side * line))
    return whole


def all_methods(community: str | Path | None = None) -> dict[str, Method]:
    """Every method by its name; those of diffusers' community pipeline if a copy of its file is given."""
    return METHODS | (community_methods(community) if community else {})


the_reader = cache(load_reader)


def work(job: Job, folder: Path, setup: Setup) -> dict:
    """What the sweep does for each job: one edit by one method. Returns its row; a sheet of pictures lies beside it."""
    split, index = split_and_index(job)
    scene, change = toyedit(split)[index]
    copied = Path(setup.out).parent / COMMUNITY_COPY
    method = all_methods(copied if copied.is_file() else None)[job.method]
    pipe = pipeline(job.model, setup.device)
    row, drawn = measure(method, pipe, (scene, change), the_reader(), job.seeds)
    whole = sheet(scene.render(), scene.edit(**change).render(), drawn)
    write_atomically(folder / SHEET, lambda tmp: whole.save(tmp, format="PNG"))
    return {"row": facts_of(job) | row | versions_of(pipe, the_reader()) | {"date": date.today().isoformat()}}


def split_and_index(job: Job) -> tuple[str, int]:
    """test-3.png is the fourth edit of the test."""
    split, _, index = Path(job.image).stem.partition("-")
    return split, int(index)


def facts_of(job: Job) -> dict:
    """What a row says of its edit."""
    split, index = split_and_index(job)
    scene, change = toyedit(split)[index]
    kind = next(iter(change))
    about = {"split": split, "edit": index, "kind": kind, "from": scene.caption(), "to": job.text}
    return about | {"method": job.method}


def settings_of(method: Method) -> str:
    """A short name of the settings that a method works with: with other steps or rates it is measured anew."""
    given = getattr(method.prepare, "keywords", {}).items()
    facts = [stage4_inference.DEFAULTS, *method.settings, {name: str(value) for name, value in given if name != "path"}]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


# -- versions


def versions_of(pipe: StableDiffusionPipeline, reader: Reader) -> dict[str, str]:
    """What a number depends on beside its edit and its method (`VERSIONS`); of torch without its kind of build."""
    return {
        "toyedit": VERSION,
        "library": library_version(),
        "torch": torch.__version__.partition("+")[0],
        "diffusers": diffusers.__version__,
        "model": fingerprint(pipe),
        "reader": hash_of_reader(reader),
    }


def library_version() -> str:
    """That of the installed package, or of pyproject.toml where it is only a folder."""
    try:
        return metadata.version("imagic-taught")
    except metadata.PackageNotFoundError:
        text = (DATA.parent / "pyproject.toml").read_text(encoding="utf-8")
        return re.search(r'^version = "(.+)"', text, re.MULTILINE)[1]


def hash_of_reader(reader: Reader) -> str:
    """A short name of the reader's weights and of its bound of 'drawn well'."""
    digest = hashlib.sha256(f"{reader.bound:.6g}".encode())
    for name, value in sorted(reader.net.state_dict().items()):
        digest.update(name.encode() + value.detach().half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


# -- the rows


class Rows:
    """The CSV file: a row for each edit and method. After a kill, what it lacks is in the sweep's folder.

    Raises ValueError for a file that has other columns, or rows of other versions.
    """

    def __init__(self, path: Path, versions: dict[str, str]):
        self.path, self.rows = Path(path), []
        if not self.path.exists():
            return
        try:
            self.rows = list(csv.DictReader(self.path.read_text(encoding="utf-8").splitlines()))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{self.path} is no CSV file that can be read ({error})") from None
        for row in self.rows:
            if tuple(row) != COLUMNS or None in row.values():
                raise ValueError(f"{self.path} has not the columns of this benchmark: give another --out")
            # the row of a failure has none: whatever failed is tried again
            other = [name for name in VERSIONS if row[name] and row[name] != versions[name]]
            if other:
                said = ", ".join(f"{name} {row[name]} (here {versions[name]})" for name in other)
                raise ValueError(f"{self.path} was measured with {said}: move it away, or give another --out")

    def has(self, index: int, name: str, method: Method) -> bool:
        """Is this edit measured, with the settings and the values of the knob that the method has now?"""
        return any(fits(row, name, method) for row in self.rows if int(row["edit"]) == index)

    def put(self, rows: Sequence[dict]) -> None:
        """Add rows, each in place of the one that its edit and method had, and write the file."""
        known = {(int(row["edit"]), row["method"]): row for row in self.rows}
        for row in rows:
            known[int(row["edit"]), row["method"]] = {name: str(row.get(name, "")) for name in COLUMNS}
        self.rows = [known[key] for key in sorted(known)]
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lambda tmp: tmp.write_text(text.getvalue(), encoding="utf-8"))


def fits(row: dict, name: str, method: Method) -> bool:
    """Is it a row of this method that did not fail, with the settings and the values of the knob that it has now?"""
    found = row["method"], row["values"], row["settings"]
    return not row["error"] and found == (name, listed(method.values), settings_of(method))


def current(rows: Sequence[dict], methods: dict[str, Method]) -> list[dict]:
    """The rows of these methods that were not measured with other settings; failures as well."""
    named = [row for row in rows if row["method"] in methods]
    return [row for row in named if row["error"] or fits(row, row["method"], methods[row["method"]])]


# -- many edits


def run(
    split: str,
    methods: dict[str, Method],
    rows: Rows,
    folder: Path,
    *,
    count: int | None = None,
    engine: str = "local",
    community: str | Path | None = None,
) -> int:
    """Measure the first `count` edits of a split by these methods, where the file has no row yet.

    folder: for the sweep; its jobs stay there, with a sheet of pictures each. Returns how many rows are still missing
    because workers were lost. A method that fails on an edit gives a row with the reason; a new start tries it again.
    """
    edits = range(count or SIZES[split])
    missing = {k: [name for name, method in methods.items() if not rows.has(k, name, method)] for k in edits}
    missing = {k: names for k, names in missing.items() if names}
    if not missing:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    if community:
        shutil.copyfile(community, folder / COMMUNITY_COPY)  # where all workers see it
    base = read_table(write_table(split, list(missing), folder))
    jobs = [
        job_for(job, name, methods[name]) for job, names in zip(base, missing.values(), strict=True) for name in names
    ]
    try:
        return sweep(jobs, folder / "sweep", engine, work=WORK).left
    finally:
        rows.put(list(rows_of(jobs, folder / "sweep")))


def job_for(job: Job, name: str, method: Method) -> Job:
    """The job of an edit by this method. What is measured anew has another name: other values, other settings."""
    weights = f"{job.weights} {settings_of(method)}"
    return replace(job, method=name, etas=method.values, seeds=SEEDS, weights=weights)


def rows_of(jobs: Sequence[Job], out: Path) -> Iterator[dict]:
    """The rows of those jobs that are done or that failed."""
    for job in jobs:
        done, failed = out / "edits" / job.name / FACTS, out / "errors" / f"{job.name}.json"
        if done.is_file():
            yield read_json(done)["row"]
        elif failed.is_file():
            reason = " ".join(read_json(failed)["error"].split())
            yield facts_of(job) | {"error": reason, "date": date.today().isoformat()}


def write_table(split: str, indices: Sequence[int], folder: Path) -> Path:
    """The table of these edits, and their input pictures beside it: test-3.png is the fourth."""
    lines = [["image", "text"]]
    for index in indices:
        scene, change = toyedit(split)[index]
        scene.render().save(folder / f"{split}-{index}.png")
        lines.append([f"{split}-{index}.png", scene.edit(**change).caption()])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_atomically(folder / f"{split}.csv", lambda tmp: tmp.write_text(text.getvalue(), encoding="utf-8"))
    return folder / f"{split}.csv"


def benchmark(
    split: str,
    names: Sequence[str] | None,
    out: Path,
    dev: Path,
    runs: Path,
    *,
    count: int | None = None,
    engine: str = "local",
    community: str | Path | None = None,
) -> tuple[str, int]:
    """Measure, and return the tables as Markdown, and how many rows are still missing.

    names: of methods, or None for all. out: the CSV file of the split; dev: that of "dev", for the knobs. runs: the
    work folder. Raises ValueError for an unknown method, for rows of other versions, or if "dev" has not all methods;
    FileNotFoundError if the community pipeline's file isn't there.
    """
    methods = chosen_methods(names, community)
    if count is not None and not 1 <= count <= SIZES[split]:
        raise ValueError(f"edits is {count}: {split!r} has from 1 to {SIZES[split]}")
    versions = versions_of(pipeline("tiny", None), the_reader())
    rows = Rows(out, versions)
    knobs = rows if split == "dev" else Rows(dev, versions)
    known = current(knobs.rows, methods)
    if split != "dev" and (unknown := [name for name in methods if not measured(known, name)]):
        raise ValueError(
            f"{dev} has no rows of {', '.join(unknown)}, as they are now: "
            "run --split dev with them first, for their knobs"
        )
    key = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:16]
    left = run(split, methods, rows, runs / key, count=count, engine=engine, community=community)
    return tables(methods, current(rows.rows, methods), current(knobs.rows, methods)), left


def chosen_methods(names: Sequence[str] | None, community: str | Path | None) -> dict[str, Method]:
    """The methods by these names, all if there are none. Raises ValueError for one that is unknown."""
    if community and not Path(community).is_file():
        raise FileNotFoundError(f"there is no file {community}: it is to be diffusers' imagic_stable_diffusion.py")
    known = all_methods(community)
    for name in names or ():
        if name in community_methods("") and name not in known:
            raise ValueError(f"the method {name!r} needs diffusers' imagic_stable_diffusion.py: give --community PATH")
        if name not in known:
            raise ValueError(f"the method {name!r} is unknown: choose from {', '.join(known)}")
    return {name: known[name] for name in names or known}


# -- tables


def measured(rows: Sequence[dict], method: str) -> list[dict]:
    """The rows of a method that did not fail."""
    return [row for row in rows if row["method"] == method and not row["error"]]


def worth(row: dict) -> np.ndarray:
    """What an edit was worth, for each value of the knob: success x details kept. A failure keeps nothing."""
    success, kept = (np.array(numbers_in(row[name])) for name in ("success", "kept"))
    return success * np.nan_to_num(kept)


def best_value(rows: Sequence[dict], method: str) -> int:
    """Which value of its knob makes a method worth most, as its place in the list; of equal ones the first, which is
    the most faithful."""
    return int(np.argmax(np.mean([worth(row) for row in measured(rows, method)], axis=0)))


def along_knob(rows: Sequence[dict], method: str) -> tuple[np.ndarray, np.ndarray]:
    """(share of successes, details that these keep, nan if there are none), a number for each value of the knob."""
    own = measured(rows, method)
    success = np.mean([numbers_in(row["success"]) for row in own], axis=0)
    value = np.mean([worth(row) for row in own], axis=0)
    return success, np.divide(value, success, out=np.full_like(value, np.nan), where=success > 0)


def tables(methods: dict[str, Method], rows: Sequence[dict], dev: Sequence[dict]) -> str:
    """Two tables: what each method reaches at the value that was best on "dev", and its success for each kind of edit.

    A method that failed on an edit has not succeeded there; where nothing was measured, a dash stands.
    """
    whole, by_kind = [], []
    for name, method in methods.items():
        own, good = [row for row in rows if row["method"] == name], measured(rows, name)
        failed = str(len(own) - len(good))
        if not good or not measured(dev, name):
            whole.append([method.title, *["–"] * 7, failed])
            by_kind.append([method.title, *["–"] * len(KINDS)])
            continue
        best = best_value(dev, name)
        success = [0.0 if row["error"] else numbers_in(row["success"])[best] for row in own]
        whole.append(
            [
                method.title,
                method.said(method.values[best]),
                interval(success),
                interval([numbers_in(row["kept"])[best] for row in good]),
                interval([0.0 if row["error"] else worth(row)[best] for row in own]),
                f"{np.mean([float(row['psnr']) for row in good]):.1f}" if method.rebuilds else "–",
                f"{mean_cost(good, 'seconds', best):.1f}",
                cost_in_words(good, best),
                failed,
            ]
        )
        of_kind = [[s for s, row in zip(success, own, strict=True) if row["kind"] == kind] for kind in KINDS]
        by_kind.append([method.title, *(f"{100 * np.mean(some):.0f} %" if some else "–" for some in of_kind)])
    head = ["method", "knob", "success", "details kept", "both", "PSNR, dB", "seconds", "UNet evaluations", "failed"]
    note = NOTE.format(*(len({row["edit"] for row in some}) for some in (rows, dev)))
    return f"{table(head, whole)}\n{note}\n{table(['success', *KINDS], by_kind)}"


def mean_cost(rows: Sequence[dict], what: str, best: int) -> float:
    """Seconds or evaluations for one picture at a value of the knob, with what is done before it."""
    return float(np.mean([float(row[what]) + numbers_in(row[f"{what}_a_picture"])[best] for row in rows]))


def cost_in_words(rows: Sequence[dict], best: int) -> str:
    """'40 + 1120': UNet evaluations without and with a backward pass."""
    learning = float(np.mean([float(row["with_gradient"]) for row in rows]))
    alone = f"{mean_cost(rows, 'evaluations', best) - learning:.0f}"
    return f"{alone} + {learning:.0f}" if learning else alone


def interval(values: Sequence[float], repeats: int = 2000) -> str:
    """Mean and 95 % interval by a bootstrap over the pictures that were edited, in percent; a dash if there is none."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "–"
    means = np.random.default_rng(0).choice(values, (repeats, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{100 * np.mean(values):.0f} % ({100 * low:.0f}–{100 * high:.0f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
