"""The command `benchmark`: `python -m imagic_lab.benchmark --help`."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imagic_lab.benchmark import jobs
from imagic_lab.benchmark.rows import best_value, current_rows, measured_rows, read_rows
from imagic_lab.benchmark.tables import method_tables
from imagic_lab.benchmark.versions import versions_of
from imagic_lab.methods import Method, community_methods
from imagic_lab.toyworld.edits import EDIT_COUNTS
from imagic_lib.__main__ import Parser, exit_code_of, printable
from imagic_lib.models import DATA

BENCHMARK = """Edit the pictures of ToyEdit by several methods and measure the results: success, details kept, seconds,
UNet evaluations. Start it again after any stop and it continues; rows that are in the CSV file are not measured twice.
Each method has one knob. All its values are tried on the edits of dev, with two seeds; on those of test only the value
that was best there is measured, with four seeds, and the first one, if it stands for the input."""
SHIPPED_DEV = DATA / "experiments" / "toyedit-dev.csv"


def parser() -> Parser:
    options = Parser(prog="python -m imagic_lab benchmark", description=BENCHMARK)
    options.add_argument("--split", choices=EDIT_COUNTS, default="dev", help="which edits of ToyEdit (default: dev)")
    options.add_argument("--methods", metavar="NAME", nargs="+", help="names in imagic_lab/methods (default: all)")
    options.add_argument("--edits", type=int, help="only this many, the first ones (default: 40 of dev, 60 of test)")
    options.add_argument("--trainings", type=int, nargs="+", default=[0], help="seeds of the trainings (default: 0)")
    options.add_argument("--out", type=Path, help="CSV file for the rows (default: runs/benchmark/toyedit-SPLIT.csv)")
    options.add_argument("--dev", type=Path, default=SHIPPED_DEV, help="rows that choose the knobs (default: in data/)")
    options.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="work folder: jobs and pictures")
    options.add_argument("--engine", choices=("local", "ray", "slurm"), default="local", help="(default: local)")
    options.add_argument("--community", metavar="PATH", help="diffusers' imagic_stable_diffusion.py, to measure it too")
    return options


def run_benchmark(args: argparse.Namespace) -> int:
    """Measure what is missing and print the tables. Returns 0, or 1 if lost workers left edits without a row."""
    methods, split, out = chosen_methods(args.methods, args.community), args.split, args.out
    count = EDIT_COUNTS[split] if args.edits is None else args.edits
    if not 1 <= count <= EDIT_COUNTS[split]:
        raise ValueError(f"edits is {count}: {split!r} has from 1 to {EDIT_COUNTS[split]}")
    out = out or Path("runs/benchmark") / f"toyedit-{split}.csv"
    versions = versions_of(jobs.the_model(), jobs.the_reader())
    rows = read_rows(out, versions)
    dev = [] if split == "dev" else knob_rows(args.dev, versions, methods)
    key = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:16]
    if args.community:
        args.runs.joinpath(key).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.community, args.runs / key / jobs.COMMUNITY_COPY)  # every worker sees this folder
    measured = {name: at_chosen_value(method, dev, name) for name, method in methods.items()} if dev else methods
    missing = jobs.missing_jobs(split, count, measured, current_rows(rows, methods), args.trainings)
    rows, left = jobs.run_jobs(missing, args.runs / key, rows, out, args.engine)
    rows = current_rows(rows, methods)
    print(method_tables(methods, rows, dev or rows))
    print(f"the rows: {printable(out)}" + (f"; {left} are open: start it again" if left else ""))
    return 1 if left else 0


def at_chosen_value(method: Method, dev: list[dict], name: str) -> Method:
    """Return the method with only the knob's best value on dev, and its first one if that rebuilds the input."""
    best, first = best_value(dev, name), method.values[0]
    return replace(method, values=(first, best) if method.rebuilds and best != first else (best,))


def knob_rows(path: Path, versions: dict[str, str], methods: dict[str, Method]) -> list[dict]:
    """Read the rows of dev from which the knobs are chosen. Raises ValueError if a method has none."""
    advice = "measure dev here, with --split dev, and give its rows with --dev"
    known = current_rows(read_rows(path, versions, advice), methods)
    if unknown := [name for name in methods if not measured_rows(known, name)]:
        raise ValueError(f"{path} has no rows of {', '.join(unknown)} with their current settings: {advice}")
    return known


def chosen_methods(names: Sequence[str] | None, community: str | None) -> dict[str, Method]:
    """Return the named methods, or all. Raises ValueError for an unknown name, FileNotFoundError for a missing file."""
    if community and not Path(community).is_file():
        raise FileNotFoundError(f"{community} does not exist: give the path of diffusers' imagic_stable_diffusion.py")
    known = jobs.methods_by_name(community)
    for name in names or ():
        if name in community_methods("") and name not in known:
            raise ValueError(f"the method {name!r} needs diffusers' imagic_stable_diffusion.py: give --community PATH")
        if name not in known:
            raise ValueError(f"the method {name!r} is unknown: choose from {', '.join(known)}")
    return {name: known[name] for name in names or known}


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code_of(lambda: run_benchmark(args), "; the same command continues where it was")


if __name__ == "__main__":
    sys.exit(main())
