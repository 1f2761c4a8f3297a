"""The commands around the method: `python -m imagic_lab demo | sweep | benchmark | train`, each with --help."""

from __future__ import annotations

import runpy
import sys

ROOMS = {
    "demo": "imagic_lab.toyworld",
    "train": "imagic_lab.toyworld",
    "sweep": "imagic_lab.sweep",
    "benchmark": "imagic_lab.benchmark",
}


def main(argv: list[str] | None = None) -> int:
    """Hand the arguments to the `__main__` of the room that has the command."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] not in ROOMS:
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    return runpy.run_module(ROOMS[arguments[0]])["main"](arguments)


if __name__ == "__main__":
    sys.exit(main())
