"""How long does a person wait for the demo, a picture or the import? Run it on an idle machine.

    python -m imagic_lab.numbers.speed         # about 2 minutes on 2 cores

It writes a table of the model card.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

from imagic_lab.benchmark import markdown_table
from imagic_lab.numbers.report import ROOT, TINY_CARD, command_line, put
from imagic_lib.stage4_inference import DEFAULTS

ONE_PICTURE = """
import imagic_lib as imagic
pipe = imagic.load_pipeline("tiny")
e = imagic.encode_text(pipe, "a red car")
imagic.generate(pipe, e)
imagic.generate(pipe, e)
"""
IMPORT = """
import torch
from diffusers import StableDiffusionPipeline
import imagic_lib
"""


def seconds_of(code: str) -> float:
    """Return the wall time of the last line of `code`, measured in a new interpreter."""
    *before, last = code.strip().splitlines()
    lines = [*before, "import time; began = time.monotonic()", last, "print(time.monotonic() - began)"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    command_line(__doc__).parse_args()
    if (ROOT / "out" / "demo").exists():
        raise SystemExit("out/demo exists, so the demo would not train again: move it away first")
    began = time.monotonic()
    demo_run = [sys.executable, "-m", "imagic_lab", "demo"]
    subprocess.run(demo_run, cwd=ROOT, check=True, capture_output=True)
    demo = time.monotonic() - began
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    rows = [
        ["the whole demo: both trainings, 16 pictures, all files", f"{demo:.1f} s"],
        ["its peak resident memory", f"{memory:.2f} GiB"],
        [f"one picture from text, {DEFAULTS['tiny']['steps']} steps", f"{seconds_of(ONE_PICTURE):.2f} s"],
        ["`import imagic_lib` beyond torch and diffusers", f"{seconds_of(IMPORT):.2f} s"],
    ]
    put(TINY_CARD, "speed", markdown_table(["what (2 cores)", "measured"], rows))


if __name__ == "__main__":
    main()
