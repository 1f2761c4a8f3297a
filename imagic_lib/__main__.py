"""The command line: `python -m imagic_lib edit | show | sweep | benchmark | plan | demo | train`, each with --help."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import warnings
from decimal import Decimal
from pathlib import Path

NETWORKS = ("vae", "clip", "unet", "reader")  # what `train` trains


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="python -m imagic_lib",
        description="Imagic: edit a picture by saying what it should show. Kavar et al., arXiv 2210.09276.",
    )
    commands = main.add_subparsers(dest="command", required=True)

    edit = commands.add_parser("edit", help="edit one picture by a text", description=EDIT, epilog=EXITS)
    edit.add_argument("image", metavar="IMAGE", help="the picture: PNG, JPEG, WebP, GIF, BMP, TIFF or HEIC")
    edit.add_argument("text", metavar="TEXT", help="what the edited picture shows: 'a brown dog jumping on the grass'")
    edit.add_argument("--model", default="tiny", help="tiny (default), a hub id or a folder in diffusers format")
    way = edit.add_mutually_exclusive_group()
    way.add_argument("--method", choices=("full", "lora"), default="full", help="what stage 2 trains (default: full)")
    way.add_argument("--fit", action="store_true", help="choose the method by the memory of this machine (see plan)")
    edit.add_argument("--pad", action="store_true", help="pad a picture that is not square instead of cropping it")
    edit.add_argument("--steps", type=whole, help="steps of each of the two trainings (default: the model's own)")
    add_sampling(edit)
    edit.add_argument("--out", type=Path, help="folder of the edit, new or its own (default: a new one in out/)")
    edit.add_argument("--resume", action="store_true", help="go on with this edit where it was stopped")

    show = commands.add_parser("show", help="a saved edit again: settings, curves, new pictures", description=SHOW)
    show.add_argument("folder", metavar="FOLDER", type=Path, help="what edit wrote")
    show.add_argument("--model", help="the model of the edit; tiny is found without it, and no other is loaded unasked")
    add_sampling(show)

    many = commands.add_parser("sweep", help="many edits, from a table", description=SWEEP)
    many.add_argument("table", metavar="TABLE", type=Path, help="CSV file with the columns image and text (more: docs)")
    many.add_argument("--out", type=Path, required=True, help="folder of the sweep, new or its own")
    many.add_argument("--engine", choices=("local", "ray", "slurm"), default="local", help="(default: local)")
    many.add_argument("--ray", metavar="ADDRESS", help="of a running Ray cluster: auto, or HEAD:6379")
    many.add_argument("--cores", type=whole, default=2, help="threads of one worker on a CPU (default: 2)")
    many.add_argument("--workers", type=whole, default=8, help="tasks of the Slurm array (default: 8)")
    many.add_argument(
        "--slurm",
        metavar="NAME=VALUE",
        type=slurm_option,
        nargs="+",
        default=[],
        help="for Slurm, as submitit names it: timeout_min=240 gpus_per_node=1 slurm_partition=gpu",
    )
    many.add_argument("--keep", action="store_true", help="keep the trained weights, so that show can draw again")

    bench = commands.add_parser("benchmark", help="methods compared, on edits with a right answer", description=BENCH)
    bench.add_argument("--split", choices=("dev", "test"), default="dev", help="which edits of ToyEdit (default: dev)")
    bench.add_argument("--methods", metavar="NAME", nargs="+", help="see imagic_lab/experiments/methods (default: all)")
    bench.add_argument("--edits", type=whole, help="only so many, the first (default: all, 40 of dev and 60 of test)")
    bench.add_argument("--out", type=Path, help="CSV file, one row an edit and method (default: data/experiments/...)")
    bench.add_argument("--dev", type=Path, help="CSV file of dev, where the knobs are chosen (the same default)")
    bench.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="work folder: jobs, their pictures")
    bench.add_argument("--engine", choices=("local", "ray", "slurm"), default="local", help="(default: local)")
    bench.add_argument(
        "--community", metavar="PATH", help="of diffusers' imagic_stable_diffusion.py, to compare with it as well"
    )

    plan = commands.add_parser("plan", help="what will fit into a GPU, before it runs", description=PLAN)
    plan.add_argument("--model", default="CompVis/stable-diffusion-v1-4", help="tiny, a folder, or SD 1.4 (default)")
    plan.add_argument("--gpu-gb", type=number, help="GiB to fit into, e.g. 14.75 for a T4 (default: this machine's)")

    demo = commands.add_parser("demo", help="one edit with its ground truth", description="The edit of the README.")
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results (default: out/demo)")

    train = commands.add_parser("train", help="make the embedded model from nothing", description=TRAIN)
    train.add_argument("--runs", type=Path, default=Path("runs"), help="work folder: drawings, checkpoints, previews")
    train.add_argument("--out", type=Path, default=Path("runs/data"), help="where the finished models go")
    train.add_argument("--start", type=Path, help="folder like data/, whose model is trained on (default: nothing)")
    train.add_argument(
        "--only", nargs="+", choices=NETWORKS, default=NETWORKS, help="train these, the others are those of --start"
    )
    train.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    train.add_argument("--scale", type=number, default=1.0, help="share of the full steps and scenes (0.01: a trial)")
    train.add_argument("--seed", type=whole, default=0)
    train.add_argument("--bf16", action="store_true", help="faster with AVX512-BF16, slower without")
    return main


PLACE = Path("out")  # where an edit gets a folder of its own, named by time and text
EDIT = """Edit one picture by a text. First some steps are timed on this device, and what the edit will take is said.
A stopped or killed edit goes on with --resume, or with the same --out."""
EXITS = """exit: 0 the edit is made, 2 something was wrong and is said in one sentence, 130 stopped by Ctrl-C, what was
learned is kept"""
SHOW = "Print a saved edit's settings, and draw its curves and pictures again, for any η and seed, without training."
SWEEP = """Do every edit of a table: on this machine, on Slurm or on a Ray cluster. Started again after any stop it
goes on, and finished edits are not done twice. The results are in report.html, results.csv, contact-sheet.png and
errors.csv in the folder. docs/cluster.md explains the table and the engines."""
BENCH = """Edit the pictures of ToyEdit by several methods and measure the results: success, details kept, time, UNet
evaluations. Started again after any stop it goes on; finished rows are not measured twice. A method's knob is chosen on
dev, so measure dev before test."""
PLAN = """Predict the peak memory of each stage for every way of training, without a GPU, and choose the best that fits
with a margin of 3 GiB."""
TRAIN = """Make an embedded model, or train on from one: drawings, VAE, CLIP, UNet and the reader. Start it again after
any stop and it goes on from its last checkpoint, at most a minute back. Hours on two cores: data/tiny-sd/README.md."""


def add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--eta", type=eta, nargs="+", help="0 keeps the input, 1 follows the text (default: 0 to 1)")
    command.add_argument(
        "--scale",
        type=scale,
        help="how much of the fine-tuning is used, 0 to 1 (default: 1; tiny tries some pictures and takes the best)",
    )
    command.add_argument(
        "--suggest",
        action="store_true",
        help="try some pictures and draw with the scale that served best (tiny: by itself; others download 1.7 GB)",
    )
    command.add_argument("--fast", action="store_true", help="draw with 25 steps of DPM-Solver++")
    command.add_argument(
        "--seed",
        type=whole,
        nargs="+",
        default=[0],
        help="noises to start from, the first is also the training's (default: 0)",
    )


def whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or abs(value) == float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def eta(text: str) -> float:
    from imagic_lib.edit import FARTHEST_ETA

    if abs(value := number(text)) > FARTHEST_ETA:
        raise argparse.ArgumentTypeError(f"{text!r} is not within ±{FARTHEST_ETA:g}")
    return value


def scale(text: str) -> float:
    from imagic_lib.stage2_finetuning import MOST_SCALE

    if not 0 <= (value := number(text)) <= MOST_SCALE:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to {MOST_SCALE:g}")
    return value


def slurm_option(text: str) -> tuple[str, str | int]:
    name, _, value = text.partition("=")
    if not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, int(value) if value.isdigit() else value


def without_exponents(arguments: list[str]) -> list[str]:
    """argparse takes -1e-1 for the name of an option; -0.1 is a number to it."""
    exponent = re.compile(r"-(\d+\.?\d*|\.\d+)[eE][+-]?\d{1,2}")
    return [f"{Decimal(a):f}" if exponent.fullmatch(a) else a for a in arguments]


def printable(text: object) -> str:
    """One line that a terminal only prints: what would move its cursor or change its colours is spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def writable(folder: Path, advice: str = "choose another with --out") -> Path:
    """The folder, made if need be. Found out before any training, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"can't write to the folder {folder} ({error.strerror}): {advice}") from error
    return folder


def save_figure(figure, path: Path) -> None:
    """As PNG, large enough for a slide."""
    from imagic_lib.training.checkpoints import write_atomically

    write_atomically(path, lambda tmp: figure.savefig(tmp, format="png", dpi=110))


def run_edit_command(args: argparse.Namespace) -> None:
    import imagic_lib as imagic
    from imagic_lib.edit import ETAS, identity_of, settings_of
    from imagic_lib.models import check_text

    writable(args.out or PLACE)
    picture = imagic.open_image(args.image)
    check_text(args.text)
    pipe = imagic.load_pipeline(args.model)
    image = imagic.load_image(picture, pipe, how="pad" if args.pad else "crop")
    strategy = None
    if args.fit:
        from imagic_lib.planning.memory import plan

        print(fitting := plan(pipe))
        strategy = fitting.chosen
        if strategy is None:
            raise ValueError(fitting.advice)
    method = strategy.method if strategy else args.method
    settings = settings_of(pipe, method, args.steps, args.steps, args.seed[0])
    identity = identity_of(pipe, image, args.text, settings)
    folder = folder_for(args, identity)
    print(f"folder: {printable(folder)}")
    say_forecast(pipe, image, identity, strategy, folder, args)
    edit = imagic.run_edit(
        pipe,
        image,
        args.text,
        embedding_steps=args.steps,
        unet_steps=args.steps,
        method=args.method,
        strategy=strategy,
        seed=args.seed[0],
        folder=folder,
    )
    report(edit, args.eta or ETAS, args.seed, folder, scale=scale_for(edit, args), **sampling_of(edit.pipe, args))


def folder_for(args: argparse.Namespace, identity: dict) -> Path:
    """A new folder named by time and text, the one where this very edit is to go on, or the one that was named."""
    from imagic_lib.folder import new_folder, state_of, unfinished

    if args.out is None:
        return unfinished(PLACE, identity) if args.resume else new_folder(PLACE, args.text)
    if args.resume and state_of(args.out, identity) == "new":
        raise ValueError(f"there is no edit in {args.out} that could go on: leave out --resume")
    return args.out


def say_forecast(pipe, image, identity: dict, strategy, folder: Path, args: argparse.Namespace) -> None:
    """Print how long the edit will take, unless it takes no longer than the forecast, or is made already."""
    from imagic_lib.edit import ETAS, out_of_memory_explained
    from imagic_lib.folder import state_of
    from imagic_lib.planning.forecast import forecast, worthwhile
    from imagic_lib.suggestion import TRIED

    settings = identity["settings"]
    if not worthwhile(settings) or state_of(folder, identity) == "finished":
        return
    with out_of_memory_explained(strategy, settings["method"], pipe.unet.device, folder):
        found = forecast(pipe, image, settings, strategy=strategy, folder=folder, sampling=sampling_of(pipe, args))
    pictures = len(set(args.eta or ETAS)) * len(set(args.seed)) + (TRIED if suggests(pipe, args) else 0)
    print(f"forecast: {found.sentence(pictures)}, by some steps on this device", flush=True)


def sampling_of(pipe, args: argparse.Namespace) -> dict:
    """How pictures are drawn: a large model's in half precision where there is a GPU."""
    from imagic_lib.models import family
    from imagic_lib.stage4_inference import FAST

    return (FAST if args.fast else {}) | ({} if family(pipe) == "tiny" else {"half": True})


def run_show_command(args: argparse.Namespace) -> None:
    import json

    import imagic_lib as imagic
    from imagic_lib.edit import ETAS
    from imagic_lib.folder import read_facts

    facts = read_facts(args.folder)
    folder = writable(args.folder, "copy it to a place of your own, and show the copy")
    history, made_with = facts.pop("history"), facts["base_model"]["name"]
    for line in json.dumps(facts, indent=1, ensure_ascii=False).splitlines():
        print(printable(line))
    for stage in ("embedding", "unet"):
        probes = history[stage]["probe_loss"]
        print(f"{stage}: {len(history[stage]['loss'])} steps, probe loss {probes[0]:.4f} -> {probes[-1]:.4f}")
    if not args.model and made_with != "tiny":
        raise ValueError(f"the edit names {made_with!r} as its model: if you trust that, say so with --model")
    edit = imagic.ImagicEdit.load(folder, imagic.load_pipeline(args.model or "tiny"))
    report(edit, args.eta or ETAS, args.seed, folder, scale=scale_for(edit, args), **sampling_of(edit.pipe, args))


def run_sweep_command(args: argparse.Namespace) -> int:
    """0 if all edits of the table are done, 1 if some failed or are open."""
    from imagic_lab.sweep import Faults, sweep

    if args.ray and args.engine != "ray":
        raise ValueError("--ray is for --engine ray: give both")
    options = {
        "local": {},
        "ray": {"address": args.ray},
        "slurm": {"workers": args.workers, "options": dict(args.slurm)},
    }[args.engine]
    try:
        found = sweep(args.table, args.out, args.engine, cores=args.cores, keep=args.keep, **options)
    except Faults as faults:
        for fault in faults.faults:
            print(printable(fault), file=sys.stderr)
        raise ValueError(faults.verdict) from None
    print(f"{found.done} done, {found.failed} failed, {found.left} open: {printable(args.out / 'report.html')}")
    return 1 if found.failed or found.left else 0


def run_benchmark_command(args: argparse.Namespace) -> int:
    """0 if every edit has its row, 1 if some are open because workers were lost."""
    from imagic_lab.benchmark.benchmark import benchmark
    from imagic_lib.models import DATA

    standard = DATA / "experiments" / "toyedit-{}.csv"
    out, dev = args.out or Path(str(standard).format(args.split)), args.dev or Path(str(standard).format("dev"))
    how = {"count": args.edits, "engine": args.engine, "community": args.community}
    tables, left = benchmark(args.split, args.methods, out, dev, args.runs, **how)
    print(f"{tables}\nthe rows: {printable(out)}" + (f"; {left} are open: start it again" if left else ""))
    return 1 if left else 0


def run_plan_command(args: argparse.Namespace) -> None:
    from imagic_lib.planning.memory import plan

    print(plan(args.model, args.gpu_gb))


def scale_for(edit, args: argparse.Namespace) -> float:
    """What was asked for; else the suggestion where that takes no download, unless η was chosen by hand."""
    found = suggested(edit) if suggests(edit.pipe, args) else None
    return args.scale if args.scale is not None else found.scale if found else 1.0


def suggests(pipe, args: argparse.Namespace) -> bool:
    """Is the suggestion wanted? The embedded model has its reader here, and gives one unasked."""
    from imagic_lib.models import family

    return args.suggest or (args.scale is None and not args.eta and family(pipe) == "tiny")


def suggested(edit):
    """The suggestion, said aloud."""
    found = edit.suggest()
    if found.scores[found.eta, found.scale] == 0:
        print("\nno picture of a first try shows what the text says; other words or another seed may")
        return found
    print(f"\nsuggested: η = {found.eta:g} with {100 * found.scale:.0f} % of the fine-tuning (scale {found.scale:g})")
    return found


def report(edit, etas, seeds, folder: Path, truth=None, scale: float = 1.0, **sampling) -> list[list]:
    """Sample, write the sheet, the single pictures and the curves, print the distances."""
    from imagic_lab.classroom.plots import edit_sheet, loss_curves
    from imagic_lib.folder import claim, picture_name
    from imagic_lib.pictures import rmse
    from imagic_lib.training.checkpoints import write_atomically

    etas, seeds = list(dict.fromkeys(etas)), list(dict.fromkeys(seeds))  # each picture once
    names = [[picture_name(eta, seed, scale) for eta in etas] for seed in seeds]
    claim(folder, [*(name for row in names for name in row), "edit.png", "losses.png"])
    began = time.monotonic()
    rows = edit.pictures(etas, seeds, scale=scale, **sampling)
    sampling = time.monotonic() - began
    for row_of_names, row in zip(names, rows, strict=True):
        for name, picture in zip(row_of_names, row, strict=True):
            write_atomically(folder / name, lambda tmp, picture=picture: picture.save(tmp, format="PNG"))
    save_figure(edit_sheet(edit, etas, seeds, rows, truth), folder / "edit.png")
    save_figure(loss_curves(edit.embedding_history, edit.unet_history), folder / "losses.png")
    print(
        f"\n{'η':>5}  {'distance to input':>18}"
        + (f"  {'to ground truth':>16}" if truth else "")
        + "   (RMSE, seed by seed)"
    )
    for column, eta in enumerate(etas):
        pictures = [row[column] for row in rows]
        line = f"{eta:5g}  " + f"{'  '.join(f'{rmse(p, edit.input_picture):.3f}' for p in pictures):>18}"
        print(line + (f"  {'  '.join(f'{rmse(p, truth):.3f}' for p in pictures):>16}" if truth else ""))
    print(
        f"\nstage 1, embedding    {edit.embedding_history.seconds:5.1f} s"
        f"\nstage 2, fine-tuning  {edit.unet_history.seconds:5.1f} s"
        f"\nstages 3 and 4        {sampling:5.1f} s for {len(etas) * len(seeds)} pictures"
        f"\n\nthe sheet:  {printable(folder / 'edit.png')}\nthe curves: {printable(folder / 'losses.png')}"
    )
    return rows


def run_demo_command(args: argparse.Namespace) -> None:
    import imagic_lib as imagic
    from imagic_lab.toyworld import load_scene
    from imagic_lib.edit import ETAS
    from imagic_lib.models import DATA

    folder = writable(args.out)
    path = DATA / "images" / "dog-sitting.png"
    truth = load_scene(path).edit(pose="jumping")
    pipe = imagic.load_pipeline("tiny")
    print(f"input: {path.name}, {load_scene(path).caption()!r}\ntext:  {truth.caption()!r}\n")
    edit = imagic.run_edit(pipe, imagic.load_image(path, pipe), truth.caption(), folder=folder)
    report(edit, ETAS, (0, 1), folder, truth.render(), suggested(edit).scale)


def run_train_command(args: argparse.Namespace) -> None:
    from imagic_lab.toyworld.recipe import make

    how = {"only": args.only, "scale": args.scale, "seed": args.seed, "bf16": args.bf16, "device": args.device}
    make(writable(args.runs), writable(args.out), start=args.start, **how)


COMMANDS = {
    "edit": run_edit_command,
    "show": run_show_command,
    "sweep": run_sweep_command,
    "benchmark": run_benchmark_command,
    "plan": run_plan_command,
    "demo": run_demo_command,
    "train": run_train_command,
}


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(without_exponents(sys.argv[1:] if argv is None else argv))
    import torch

    warnings.formatwarning = lambda message, *_, **__: f"note: {printable(message)}\n"
    try:
        return COMMANDS[args.command](args) or 0
    except (ValueError, OSError, FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"imagic: {printable(str(error) or type(error).__name__)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        more = " with --resume" if args.command == "edit" and args.out is None and not args.resume else ""
        goes_on = "" if args.command in ("show", "plan") else f"; the same command{more} goes on where it was"
        print(f"imagic: stopped{goes_on}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
