"""Does Imagic work, and what does fine-tuning add? Measure five edits whose ground truth is known.

python -m imagic_lab.numbers.edits     # about 10 minutes on 1 core

It writes a table of the model card and two figures.
"""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table
from imagic_lab.classroom.plots import picture_grid
from imagic_lab.numbers.report import ROOT, TINY_CARD, command_line, put
from imagic_lab.toyworld import Scene, load_reader, load_scene
from imagic_lib.models import DATA
from imagic_lib.pictures import psnr

EDITS = {  # for each picture, the change
    "dog-sitting.png": {"pose": "jumping"},
    "car-parked.png": {"place": "snow"},
    "cat-standing.png": {"colour": "orange"},
    "rabbit-lying.png": {"pose": "jumping"},
    "bird-standing.png": {"subject": "cat"},
}
UNSEEN_SEEDS = tuple(range(10, 18))  # the suggestion looks at other seeds
ROWS_OF_EDIT = 2  # the number of these seeds in the figure of the card
CARD_FIGURE, README_FIGURE = ROOT / "data" / "tiny-sd" / "edits.jpg", ROOT / "data" / "edits.jpg"


class DrawingWay(NamedTuple):
    """A way to draw with a trained edit."""

    name: str
    eta: float
    scale: float
    noise: str = "own"


def count_successes(reader, pictures, truth: Scene) -> int:
    """Count the pictures that show the attributes of the ground truth and are drawn well."""
    return sum(reader.success(p, truth) for p in pictures)


def ways_of(edit: imagic.ImagicEdit) -> list[DrawingWay]:
    """Return three ways: the paper's (random noise, λ = 1, η with the best score), untuned, and the suggested one."""
    chosen, random = edit.suggest(), edit.suggest(noise="random")
    _, eta = max((score, eta) for (eta, scale), score in random.scores.items() if scale == 1)
    return [
        DrawingWay("random noise, λ = 1", eta, 1.0, "random"),
        DrawingWay("own noise, not fine-tuned", chosen.eta, 0.0),
        DrawingWay("own noise, suggested", chosen.eta, chosen.scale),
    ]


def measure_ways(pipe, reader, name: str, change: dict[str, str]) -> tuple[list[list[str]], list[list[Image.Image]]]:
    """Return the lines of the table, and a row for each seed (input, VAE only, η = 0, the three ways, ground truth)."""
    path = DATA / "images" / name
    before = load_scene(path)
    truth = before.edit(**change)
    edit = imagic.run_edit(pipe, imagic.load_image(path, pipe), truth.caption())
    rebuilt = [row[0] for row in edit.pictures([0.0], UNSEEN_SEEDS, noise="random")]
    near = [psnr(picture, edit.reconstruction) for picture in rebuilt]
    lines, columns = [], [[edit.input_picture] * len(UNSEEN_SEEDS), [edit.reconstruction] * len(UNSEEN_SEEDS), rebuilt]
    for way in ways_of(edit):
        drawn = edit.pictures([way.eta], UNSEEN_SEEDS, scale=way.scale, noise=way.noise)
        columns.append([row[0] for row in drawn])
        reports = [reader.report(picture, truth, before) for picture in columns[-1]]
        right, success = (sum(getattr(report, what) for report in reports) for what in ("right", "success"))
        kept = sum(report.kept for report in reports) / len(reports)
        about = [f"{before.caption()} → {', '.join(change.values())}", f"{min(near):.1f}–{max(near):.1f}"]
        pair = [f"{way.eta:g}", f"{way.scale:g}"]
        lines.append([*(about if not lines else ["", ""]), way.name, *pair])
        lines[-1] += [f"{right} of {len(UNSEEN_SEEDS)}", f"{success} of {len(UNSEEN_SEEDS)}", f"{100 * kept:.0f} %"]
    columns.append([truth.render()] * len(UNSEEN_SEEDS))
    return lines, [list(row) for row in zip(*columns, strict=True)]


def main() -> None:
    command_line(__doc__).parse_args()
    pipe, reader = imagic.load_pipeline("tiny"), load_reader()
    lines, sheet, best = [], [], []
    for name, change in EDITS.items():
        more, rows = measure_ways(pipe, reader, name, change)
        lines, sheet = lines + more, sheet + rows[:ROWS_OF_EDIT]
        best.append([rows[0][0], rows[0][-2]])  # the input, and the first picture of the suggested pair, good or bad
    titles = ["input", "VAE only", "η = 0", "random noise", "not fine-tuned", "suggested", "truth"]
    labels = [word for change in EDITS.values() for word in [next(iter(change.values()))] + [""] * (ROWS_OF_EDIT - 1)]
    options = {"quality": 88, "optimize": True}
    picture_grid(sheet, titles, labels, inch=1.45).savefig(CARD_FIGURE, dpi=90, pil_kwargs=options)
    targets = [f"“… {next(iter(change.values()))} …”" for change in EDITS.values()]
    rows = [list(row) for row in zip(*best, strict=True)]
    picture_grid(rows, targets, ["input", "edited"], inch=2.0).savefig(README_FIGURE, dpi=96, pil_kwargs=options)
    header = [
        "edit",
        "η = 0 from random noise against the VAE's own, PSNR in dB",
        "way",
        "η",
        "λ",
        "right",
        "success",
        "details kept",
    ]
    put(TINY_CARD, "edits", markdown_table(header, lines))


if __name__ == "__main__":
    main()
