"""Why the embedded model's defaults are what they are: one edit, fitted with other settings.

python -m imagic_lab.numbers.defaults      # about 10 minutes on 2 cores; writes the table of the model card
"""

from __future__ import annotations

import torch

import imagic_lib as imagic
from imagic_lab.numbers.edits import EDITS, successes
from imagic_lab.numbers.report import CARD, put, table
from imagic_lab.toyworld import load_reader, load_scene
from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.pictures import psnr

NAME = "dog-sitting.png"
CHANGES = (  # what is other than the default, in stage 1 and in stage 2
    ({}, {}),
    ({"steps": 10}, {}),
    ({"steps": 100, "lr": 1e-2}, {}),
    ({}, {"bias": 0.0}),
    ({}, {"steps": 50}),
    ({}, {"lr": 1e-4}),
    ({}, {"lr": 4e-4}),
)
SEEDS = tuple(range(4))
PAIRS = ((0.8, 1.0), (1.0, 1.0), (0.8, 0.5), (1.0, 0.5))  # (η, λ)


def words(default: dict, change: dict) -> str:
    """Settings as a reader wants them: what differs from the default is bold."""
    shown = {"steps": "{} steps", "lr": "{:g}", "decay": "decay {:g}", "bias": "bias {:g}"}
    values = {name: form.format((default | change)[name]) for name, form in shown.items() if name in default}
    return ", ".join(f"**{text}**" if name in change else text for name, text in values.items())


def measure(pipe, reader, first: dict, second: dict) -> list[str]:
    """A line of the table: one training with these settings, and pictures from all seeds."""
    path = imagic.DATA / "images" / NAME
    truth, image = load_scene(path).edit(**EDITS[NAME]), imagic.load_image(path, pipe)
    e_tgt = imagic.encode_text(pipe, truth.caption())
    generator = torch.Generator().manual_seed(0)
    e_opt, one = imagic.optimize_embedding(pipe, image, e_tgt, generator=generator, **first)
    tuned, two = imagic.fine_tune(pipe, image, e_opt, generator=generator, **second)
    edit = imagic.ImagicEdit(truth.caption(), pipe, tuned, image, e_tgt, e_opt, one, two, {})
    rebuilt = [psnr(row[0], edit.reconstruction) for row in edit.pictures([0.0], SEEDS)]
    drawn = [[row[0] for row in edit.pictures([eta], SEEDS, scale=scale)] for eta, scale in PAIRS]
    counts = [successes(reader, pictures, truth) for pictures in drawn]
    line = [words(stage1_embedding.DEFAULTS["tiny"], first), words(stage2_finetuning.DEFAULTS["full"]["tiny"], second)]
    line += [f"{history.probe_loss[-1]:.4f}" for history in (one, two)]
    return [*line, f"{min(rebuilt):.1f}–{max(rebuilt):.1f}", *map(str, counts)]


def main() -> None:
    pipe, reader = imagic.load_pipeline("tiny"), load_reader()
    rows = [measure(pipe, reader, *change) for change in CHANGES]
    header = ["stage 1", "stage 2", "probe after 1", "after 2", "η = 0, PSNR in dB"]
    header += [f"η = {eta:g}, λ = {scale:g}" for eta, scale in PAIRS]
    note = f"\nThe last columns count the successes (right and drawn well) among the pictures of {len(SEEDS)} seeds.\n"
    put(CARD, "defaults", table(header, rows) + note)


if __name__ == "__main__":
    main()
