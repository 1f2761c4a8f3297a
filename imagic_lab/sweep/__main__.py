"""The command `sweep`: `python -m imagic_lab.sweep --help`."""

import argparse
import sys
from pathlib import Path

from imagic_lab.sweep import Faults, sweep
from imagic_lib.__main__ import Parser, exit_code_of, printable

ABOUT = """Do every edit of a table: on this machine, on Slurm or on a Ray cluster. Start it again after any stop and it
continues; finished edits are not done twice. The results are in report.html, results.csv and errors.csv in
the folder. docs/cluster.md explains the table and the engines."""


def parser() -> Parser:
    options = Parser(prog="python -m imagic_lab sweep", description=ABOUT)
    options.add_argument("table", metavar="TABLE", type=Path, help="CSV file with the columns image and text")
    options.add_argument("--out", type=Path, required=True, help="folder of the sweep, new or its own")
    options.add_argument("--engine", choices=("local", "ray", "slurm"), default="local", help="(default: local)")
    options.add_argument("--ray", metavar="ADDRESS", help="of a running Ray cluster: auto, or HEAD:6379")
    options.add_argument("--cores", type=int, default=2, help="threads of one worker on a CPU (default: 2)")
    options.add_argument("--workers", type=int, default=8, help="tasks of the Slurm array (default: 8)")
    names = "for Slurm, as submitit names it: timeout_min=240 gpus_per_node=1 slurm_partition=gpu"
    options.add_argument("--slurm", metavar="NAME=VALUE", type=slurm_option, nargs="+", default=[], help=names)
    options.add_argument("--keep", action="store_true", help="keep the trained weights, so that show can draw again")
    return options


def slurm_option(text: str) -> tuple[str, str | int]:
    name, _, value = text.partition("=")
    if not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, int(value) if value.isdigit() else value


def run_sweep(args: argparse.Namespace) -> int:
    """Run the sweep. Returns 0 if all edits of the table are done, 1 if some have failed or are open."""
    if args.ray and args.engine != "ray":
        raise ValueError("--ray is for --engine ray: give both")
    slurm = {"workers": args.workers, "options": dict(args.slurm)}
    options = {"local": {}, "ray": {"address": args.ray}, "slurm": slurm}[args.engine]
    try:
        found = sweep(args.table, args.out, args.engine, cores=args.cores, keep=args.keep, **options)
    except Faults as faults:
        print(*map(printable, faults.faults), sep="\n", file=sys.stderr)
        raise ValueError(faults.verdict) from None
    print(f"{found.done} done, {found.failed} failed, {found.left} open: {printable(args.out / 'report.html')}")
    return 1 if found.failed or found.left else 0


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code_of(lambda: run_sweep(args), "; the same command goes on where it was")


if __name__ == "__main__":
    sys.exit(main())
