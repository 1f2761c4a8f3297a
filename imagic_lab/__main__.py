"""The commands around the method: `python -m imagic_lab demo | sweep | benchmark | train`, each with --help."""

from __future__ import annotations

import runpy
import sys

ROOMS = dict.fromkeys(("demo", "train"), "imagic_lab.toyworld")
ROOMS |= {"sweep": "imagic_lab.sweep", "benchmark": "imagic_lab.benchmark"}


def main(argv: list[str] | None = None) -> int:
    """Pass the arguments to the `__main__` of the package that has the command, and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] not in ROOMS:
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    room = ROOMS[arguments[0]]  # the toy world has two commands, the others are one
    return runpy.run_module(room)["main"](arguments[not room.endswith("toyworld") :])


if __name__ == "__main__":
    sys.exit(main())
