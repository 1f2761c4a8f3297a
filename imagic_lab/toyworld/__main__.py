"""The commands of the toy world: `python -m imagic_lab.toyworld train | demo`, each with --help."""

import argparse
import sys
from pathlib import Path

import imagic_lib as imagic
from imagic_lab.toyworld import load_scene, recipe
from imagic_lib.__main__ import Parser, exit_code_of, report, writable
from imagic_lib.pictures import rmse

TRAIN = """Train an embedded model from random weights, or train an existing one further: drawings, VAE, CLIP, UNet and
reader. If it was stopped, the same command draws the drawings again, which takes minutes, and continues from the last
checkpoint. It takes hours on two cores: data/tiny-sd/README.md."""
DEMO = "The edit of the README: a sitting dog jumps, shown next to its ground truth."


def parser() -> Parser:
    main = Parser("python -m imagic_lab.toyworld", description="The drawn world, and its model.")
    commands = main.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="make the embedded model", description=TRAIN)
    train.set_defaults(run=run_train)
    train.add_argument("--runs", type=Path, default=Path("runs"), help="work folder of the checkpoints")
    train.add_argument("--out", type=Path, default=Path("runs/data"), help="where the finished models go")
    train.add_argument("--start", type=Path, help="folder like data/ whose model is trained further (default: none)")
    only = {"choices": recipe.NETWORKS, "default": recipe.NETWORKS, "nargs": "+"}
    train.add_argument("--only", **only, help="train only these, and take the others from --start")
    train.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    train.add_argument("--scale", type=float, default=1.0, help="share of the full steps and scenes (0.01: a trial)")
    train.add_argument("--seed", type=int, default=0, help="of the weights and the batches (default: 0)")

    demo = commands.add_parser("demo", help="one edit with its ground truth", description=DEMO)
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results (default: out/demo)")
    # options of `edit`
    demo.set_defaults(run=run_demo, eta=None, seed=[0, 1], scale=None, suggest=True, noise="own")
    return main


def run_train(args: argparse.Namespace) -> None:
    how = {name: getattr(args, name) for name in ("start", "only", "scale", "seed", "device")}
    recipe.make(writable(args.runs), writable(args.out), **how)


def run_demo(args: argparse.Namespace) -> None:
    folder = writable(args.out)
    path = imagic.DATA / "images" / "dog-sitting.png"
    truth = load_scene(path).edit(pose="jumping")
    pipe = imagic.load_pipeline("tiny")
    print(f"input: {path.name}, {load_scene(path).caption()!r}\ntext:  {truth.caption()!r}\n")
    edit = imagic.run_edit(pipe, imagic.load_image(path, pipe), truth.caption(), folder=folder)
    rows = report(edit, args, folder)
    away = min(rmse(picture, truth.render()) for row in rows for picture in row)
    print(f"\nthe drawing of the text itself is the ground truth: the nearest picture is {away:.3f} from it (RMSE)")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code_of(lambda: args.run(args), "; the same command goes on where it was")


if __name__ == "__main__":
    sys.exit(main())
