"""Five edits with their ground truth: does Imagic work, and what is fine-tuning good for?

python -m imagic_lab.numbers.edits  # about 10 minutes on 1 core; writes a table of the model card and two figures
"""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image

import imagic_lib as imagic
from imagic_lab.classroom.plots import picture_grid
from imagic_lab.numbers.report import CARD, ROOT, put, table
from imagic_lab.toyworld import Scene, load_reader, load_scene
from imagic_lib.models import DATA
from imagic_lib.pictures import psnr

EDITS = {  # picture: what is changed
    "dog-sitting.png": {"pose": "jumping"},
    "car-parked.png": {"place": "snow"},
    "cat-standing.png": {"colour": "orange"},
    "rabbit-lying.png": {"pose": "jumping"},
    "bird-standing.png": {"subject": "cat"},
}
SEEDS = tuple(range(10, 18))  # others than those that the suggestion looks at
SHOWN = 2  # of them in the figure of the card
CARD_FIGURE, README_FIGURE = ROOT / "data" / "tiny-sd" / "edits.jpg", ROOT / "data" / "edits.jpg"


class Way(NamedTuple):
    """A way to draw with a trained edit."""

    name: str
    eta: float
    scale: float


def successes(reader, pictures, truth: Scene) -> int:
    """How many pictures show what the ground truth shows, and are drawn well?"""
    return sum(reader.success(p, truth) for p in pictures)


def ways_of(edit: imagic.ImagicEdit) -> list[Way]:
    """Without fine-tuning, with all of it (the paper's way; the η with the best score), and as suggested."""
    chosen = edit.suggest()
    _, eta = max((score, eta) for (eta, scale), score in chosen.scores.items() if scale == 1)
    return [
        Way("not fine-tuned", chosen.eta, 0.0),
        Way("λ = 1, as in the paper", eta, 1.0),
        Way("suggested", chosen.eta, chosen.scale),
    ]


def measure(pipe, reader, name: str, change: dict[str, str]) -> tuple[list[list[str]], list[list[Image.Image]]]:
    """The lines of the table, and a row of pictures for each seed: input, VAE only, η = 0, the three ways, truth."""
    path = DATA / "images" / name
    before = load_scene(path)
    truth = before.edit(**change)
    edit = imagic.run_edit(pipe, imagic.load_image(path, pipe), truth.caption())
    rebuilt = [row[0] for row in edit.pictures([0.0], SEEDS)]
    near = [psnr(picture, edit.reconstruction) for picture in rebuilt]
    lines, columns = [], [[edit.input_picture] * len(SEEDS), [edit.reconstruction] * len(SEEDS), rebuilt]
    for way in ways_of(edit):
        columns.append([row[0] for row in edit.pictures([way.eta], SEEDS, scale=way.scale)])
        reports = [reader.report(picture, truth, before) for picture in columns[-1]]
        right, success = (sum(getattr(report, what) for report in reports) for what in ("right", "success"))
        kept = sum(report.kept for report in reports) / len(reports)
        about = [f"{before.caption()} → {', '.join(change.values())}", f"{min(near):.1f}–{max(near):.1f}"]
        pair = [f"{way.eta:g}", f"{way.scale:g}"]
        lines.append([*(about if not lines else ["", ""]), way.name, *pair])
        lines[-1] += [f"{right} of {len(SEEDS)}", f"{success} of {len(SEEDS)}", f"{100 * kept:.0f} %"]
    columns.append([truth.render()] * len(SEEDS))
    return lines, [list(row) for row in zip(*columns, strict=True)]


def main() -> None:
    pipe, reader = imagic.load_pipeline("tiny"), load_reader()
    lines, sheet, best = [], [], []
    for name, change in EDITS.items():
        more, rows = measure(pipe, reader, name, change)
        lines, sheet = lines + more, sheet + rows[:SHOWN]
        best.append([rows[0][0], rows[0][-2]])  # the input and the suggested pair's first picture, whatever it shows
    titles = ["input", "VAE only", "η = 0", "not fine-tuned", "λ = 1", "suggested", "truth"]
    labels = [word for change in EDITS.values() for word in [next(iter(change.values()))] + [""] * (SHOWN - 1)]
    options = {"quality": 88, "optimize": True}
    picture_grid(sheet, titles, labels, inch=1.45).savefig(CARD_FIGURE, dpi=90, pil_kwargs=options)
    targets = [f"“… {next(iter(change.values()))} …”" for change in EDITS.values()]
    rows = [list(row) for row in zip(*best, strict=True)]
    picture_grid(rows, targets, ["input", "edited"], inch=2.0).savefig(README_FIGURE, dpi=96, pil_kwargs=options)
    header = ["edit", "η = 0 against the VAE's own, PSNR in dB", "way", "η", "λ", "right", "success", "details kept"]
    put(CARD, "edits", table(header, lines))


if __name__ == "__main__":
    main()
