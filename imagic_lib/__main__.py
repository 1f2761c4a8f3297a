"""The command line: `python -m imagic_lib edit | show | plan`, each with --help. Other commands are `imagic_lab`'s."""

import argparse
import json
import runpy
import sys
import tempfile
import time
import warnings
from itertools import chain
from pathlib import Path

import torch

import imagic_lib as imagic
from imagic_lib.arguments import check_text, etas_of, seeds_of
from imagic_lib.edit import ETAS, NOISES, settings_of
from imagic_lib.figures import edit_sheet, loss_curves
from imagic_lib.files import write_atomically
from imagic_lib.folder import locked, new_folder, picture_name, read_facts, state_of, unfinished
from imagic_lib.models import plugin_of
from imagic_lib.pictures import rmse, save_picture
from imagic_lib.planning.memory import plan
from imagic_lib.stage4_inference import scheduler_of
from imagic_lib.storage import identity_of_edit
from imagic_lib.unets import check_scale

PLACE = Path("out")  # each edit gets a new folder in here, named by time and text
LAB = ("demo", "sweep", "benchmark", "train")  # commands of `python -m imagic_lab`
EDIT = "Edit one picture by a text. A stopped or killed edit goes on with --resume, or with the same --out."
EXITS = "exit: 0 the edit is made; 2 one sentence says what was wrong; 130 stopped by Ctrl-C, what was learned is kept"
SHOW = "Print a saved edit's settings, and draw its curves and pictures again, for any η and seed, without training."
PLAN = "Predict each stage's peak memory for every way of training, and choose the best that leaves 3 GiB free."


class Parser(argparse.ArgumentParser):
    """A parser that prints a ? for each letter that the terminal can't show, such as η."""

    def parse_args(self, *args, **settings) -> argparse.Namespace:
        for stream in (sys.stdout, sys.stderr):
            getattr(stream, "reconfigure", dict)(errors="replace")  # a notebook's streams have none
        return super().parse_args(*args, **settings)


def home_or_path(text: str) -> Path:
    return Path(text).expanduser()  # the shell leaves the ~ of --out=~/edits alone


def parser() -> Parser:
    main = Parser(
        prog="python -m imagic_lib",
        description="Imagic: edit a picture by saying what it should show. Kavar et al., arXiv 2210.09276.",
        epilog="Also: demo, sweep, benchmark, train (python -m imagic_lab).",
    )
    commands = main.add_subparsers(dest="command", required=True)

    edit = commands.add_parser("edit", help="edit one picture by a text", description=EDIT, epilog=EXITS)
    edit.add_argument("image", metavar="IMAGE", help="the picture: PNG, JPEG, WebP, TIFF, HEIC …")
    edit.add_argument("text", metavar="TEXT", help="what the edited picture shows: 'a brown dog jumping on the grass'")
    edit.add_argument("--model", default="tiny", help="tiny (default), a hub id or a folder in diffusers format")
    way = edit.add_mutually_exclusive_group()
    way.add_argument("--method", choices=("full", "lora"), default="full", help="what stage 2 trains (default: full)")
    way.add_argument("--fit", action="store_true", help="choose the method by the memory of this machine (see plan)")
    edit.add_argument("--steps", type=int, help="steps of each of the two trainings (default: the model's own)")
    add_sampling(edit)
    edit.add_argument("--out", type=home_or_path, help="folder of the edit, new or its own (default: new, in out/)")
    edit.add_argument("--resume", action="store_true", help="go on with this edit where it was stopped")

    show = commands.add_parser("show", help="a saved edit again: settings, curves, new pictures", description=SHOW)
    show.add_argument("folder", metavar="FOLDER", type=home_or_path, help="what edit wrote")
    show.add_argument("--model", help="the model of the edit; tiny is found without it, others must be named")
    add_sampling(show)

    plan = commands.add_parser("plan", help="what will fit into a GPU, before it runs", description=PLAN)
    plan.add_argument("--model", default="CompVis/stable-diffusion-v1-4", help="tiny, a folder, or SD 1.4 (default)")
    plan.add_argument("--gpu-gb", type=float, help="GiB to fit into, e.g. 14.75 for a T4 (default: this machine's)")
    return main


def add_sampling(command: Parser) -> None:
    add = command.add_argument
    add("--eta", type=float, nargs="+", help="0 keeps the input, 1 follows the text (default: 0 to 1)")
    add("--scale", type=float, help="share of the fine-tuning, 0 to 2 (default: 1, or the suggestion of a model's own)")
    add("--suggest", action="store_true", help="try some pictures and use the best scale (may download 1.7 GB)")
    add("--noise", choices=NOISES, default="own", help="to start from: the picture's own (default), or the seed's")
    add("--no-safety-checker", dest="checked", action="store_false", help="leave out the one that a model ships")
    add("--seed", type=int, nargs="+", default=[0], help="noises to start from; training uses the first (default: 0)")


def printable(text: object) -> str:
    """Return one line that is safe to print: codes that move the cursor or change colours are spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def writable(folder: Path, advice: str = "choose another with --out") -> Path:
    """Return the folder, created if necessary. Raises ValueError if it can't be written, before any training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"can't write to the folder {folder} ({error.strerror}): {advice}") from error
    return folder


def run_edit_command(args: argparse.Namespace) -> None:
    writable(args.out or PLACE)
    picture = imagic.open_image(args.image)
    check_text(args.text)
    pipe = imagic.load_pipeline(args.model, safety_checker=args.checked)
    image = imagic.load_image(picture, pipe)
    scheduler_of(pipe, None)  # so that a warning about the sampler comes before the training
    method, strategy = args.method, None
    if args.fit:
        print(fitting := plan(pipe))
        if fitting.chosen is None:
            raise ValueError(fitting.advice)
        method, strategy = fitting.chosen[:2]
    settings = settings_of(pipe, method, args.steps, args.steps, args.seed[0])
    identity = identity_of_edit(pipe, image, args.text, settings)
    folder, run = folder_for(args, identity), imagic.Run(strategy=strategy)
    print(f"folder: {printable(folder)}")
    steps = {"embedding_steps": args.steps, "unet_steps": args.steps, "seed": args.seed[0]}
    edit = imagic.run_edit(pipe, image, args.text, method=method, folder=folder, run=run, **steps)
    report(edit, args, folder)


def folder_for(args: argparse.Namespace, identity: dict) -> Path:
    """Return the folder given by --out, the one of the edit to resume, or a new one named by time and text."""
    if args.out is None:
        return unfinished(PLACE, identity) if args.resume else new_folder(PLACE, args.text)
    if args.resume and state_of(args.out, identity) == "new":
        raise ValueError(f"there is no edit in {args.out} that could go on: leave out --resume")
    return args.out


def run_show_command(args: argparse.Namespace) -> None:
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
    pipe = imagic.load_pipeline(args.model or "tiny", safety_checker=args.checked)
    report(imagic.ImagicEdit.load(folder, pipe), args, folder)


def suggested(edit, args: argparse.Namespace):
    """Print and return a suggestion, or return None if none is wanted. If the model has its own measure, we suggest by
    default, unless η or the scale is given."""
    unasked = args.scale is None and not args.eta and plugin_of(edit.pipe, "measure") is not None
    if not (args.suggest or unasked):
        return None
    found = edit.suggest(noise=args.noise)
    if found.scores[found.eta, found.scale] == 0:
        print("\nno picture of a first try shows what the text says; other words or another seed may help")
    else:
        print(f"\nsuggested: η = {found.eta:g}, scale {found.scale:g} (the share of the fine-tuning)")
    return found


def report(edit, args: argparse.Namespace, folder: Path) -> list[list]:
    """Sample, write the sheet, the single pictures and the curves, and print the distances. Returns the pictures."""
    found = suggested(edit, args)
    scale = args.scale if args.scale is not None else found.scale if found else 1.0
    etas, seeds = list(dict.fromkeys(etas_of(args.eta or ETAS))), list(dict.fromkeys(args.seed))  # no picture twice
    names = [picture_name(eta, seed, scale) for seed in seeds for eta in etas]
    with locked(folder):
        began = time.monotonic()
        rows = edit.pictures(etas, seeds, scale=scale, noise=args.noise, half=True)
        sampling = time.monotonic() - began
        for name, picture in zip(names, chain(*rows), strict=True):
            save_picture(folder / name, picture)
        curves = loss_curves(edit.embedding_history, edit.unet_history)
        for name, figure in (("edit.png", edit_sheet(edit, etas, seeds, rows)), ("losses.png", curves)):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph")  # one for every letter that matplotlib's font lacks
                write_atomically(folder / name, lambda temporary, f=figure: f.savefig(temporary, format="png", dpi=110))
    print(f"\n{'η':>5}  distance to input (RMSE), seed by seed")
    for column, eta in enumerate(etas):
        print(f"{eta:5g}  {'  '.join(f'{rmse(row[column], edit.input_picture):.3f}' for row in rows)}")
    print(
        f"\nstage 1, embedding    {edit.embedding_history.seconds:5.1f} s"
        f"\nstage 2, fine-tuning  {edit.unet_history.seconds:5.1f} s"
        f"\nstages 3 and 4        {sampling:5.1f} s for {len(etas) * len(seeds)} pictures"
        f"\n\nthe sheet:  {printable(folder / 'edit.png')}\nthe curves: {printable(folder / 'losses.png')}"
    )
    return rows


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] and arguments[0] in LAB:
        return runpy.run_module("imagic_lab")["main"](arguments)
    args = parser().parse_args(arguments)

    def run() -> None:
        if args.command == "plan":
            print(plan(args.model, args.gpu_gb))
            return
        seeds_of(args.seed), etas_of(args.eta or [0]), check_scale(args.scale or 0)  # before any training
        (run_edit_command if args.command == "edit" else run_show_command)(args)

    goes_on = "; the same command with --resume goes on where it was"
    return exit_code_of(run, goes_on if args.command == "edit" else "")


def exit_code_of(run, goes_on: str = "") -> int:
    """Call `run` and return the exit code: 0 or its own, 2 after an error (with one sentence), 130 after Ctrl-C."""
    form, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"note: {printable(message)}\n"
    try:
        return run() or 0
    except (ValueError, OSError, FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"imagic: {printable(str(error) or type(error).__name__)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"imagic: stopped{goes_on}", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = form


if __name__ == "__main__":
    sys.exit(main())
