"""Why does the embedded model have these defaults? One edit, trained with other settings as well.

python -m imagic_lab.numbers.defaults      # about 10 minutes on 2 cores; writes the table of the model card
"""

from __future__ import annotations

import torch

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table
from imagic_lab.numbers.edits import EDITS, count_successes
from imagic_lab.numbers.report import TINY_CARD, command_line, put
from imagic_lab.toyworld import load_reader, load_scene
from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.pictures import psnr

PICTURE = "dog-sitting.png"
CHANGES = (  # what differs from the defaults, in stage 1 and in stage 2
    ({}, {}),
    ({"steps": 6}, {}),
    ({"steps": 40, "lr": 5e-2}, {}),
    ({}, {"bias": 0.0}),
    ({}, {"steps": 20}),
    ({}, {"steps": 10, "lr": 8e-4}),
    ({"steps": 40, "lr": 5e-2}, {"steps": 100, "lr": 2e-4}),
)
FOUR_SEEDS = tuple(range(4))
WAYS = ((1.0, 1.0, "random"), (1.0, 0.75, "random"), (1.0, 0.5, "own"), (1.0, 0.25, "own"))  # (η, λ, noise)


def settings_in_words(default: dict, change: dict) -> str:
    """Write settings into a cell of the table. Those that differ from the default are bold."""
    shown = {"steps": "{} steps", "lr": "{:g}", "decay": "decay {:g}", "bias": "bias {:g}"}
    values = {name: form.format((default | change)[name]) for name, form in shown.items() if name in default}
    return ", ".join(f"**{text}**" if name in change else text for name, text in values.items())


def measure_settings(pipe, reader, first: dict, second: dict) -> list[str]:
    """Train once with these settings, and draw all seeds. Returns a line of the table."""
    path = imagic.DATA / "images" / PICTURE
    truth, image = load_scene(path).edit(**EDITS[PICTURE]), imagic.load_image(path, pipe)
    e_tgt = imagic.encode_text(pipe, truth.caption())
    generator = torch.Generator().manual_seed(0)
    e_opt, one = imagic.optimize_embedding(pipe, image, e_tgt, generator=generator, **first)
    tuned, two = imagic.fine_tune(pipe, image, e_opt, generator=generator, **second)
    edit = imagic.ImagicEdit(truth.caption(), pipe, tuned, image, e_tgt, e_opt, one, two, {})
    rebuilt = [psnr(row[0], edit.reconstruction) for row in edit.pictures([0.0], FOUR_SEEDS, noise="random")]
    drawn = [
        [row[0] for row in edit.pictures([eta], FOUR_SEEDS, scale=scale, noise=noise)] for eta, scale, noise in WAYS
    ]
    counts = [count_successes(reader, pictures, truth) for pictures in drawn]
    defaults = stage1_embedding.DEFAULTS["tiny"], stage2_finetuning.DEFAULTS["full"]["tiny"]
    line = [settings_in_words(*both) for both in zip(defaults, (first, second), strict=True)]
    line += [f"{history.probe_loss[-1]:.4f}" for history in (one, two)]
    return [*line, f"{min(rebuilt):.1f}–{max(rebuilt):.1f}", *map(str, counts)]


def main() -> None:
    command_line(__doc__).parse_args()
    pipe, reader = imagic.load_pipeline("tiny"), load_reader()
    rows = [measure_settings(pipe, reader, *change) for change in CHANGES]
    header = ["stage 1", "stage 2", "probe after 1", "after 2", "η = 0, random noise, PSNR in dB"]
    header += [f"{noise} noise, η = {eta:g}, λ = {scale:g}" for eta, scale, noise in WAYS]
    count = len(FOUR_SEEDS)
    note = f"\nThe last columns count the successes (right and drawn well) among the pictures of {count} seeds.\n"
    put(TINY_CARD, "defaults", markdown_table(header, rows) + note)


if __name__ == "__main__":
    main()
