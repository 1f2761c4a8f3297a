"""Five real edits with their ground truth: does Imagic work, and what is fine-tuning good for?

python benchmarks/edits.py         # about 10 minutes on 2 cores; writes the table of the model card
"""

from __future__ import annotations

from report import CARD, ROOT, put, table

import imagic_lib as imagic
from imagic_lib.classroom.plots import picture_grid
from imagic_lib.models import DATA
from imagic_lib.pictures import psnr, rmse
from imagic_lib.toyworld import Scene, load_reader, load_scene

EDITS = {  # picture: what is changed
    "dog-sitting.png": {"pose": "jumping"},
    "car-parked.png": {"place": "snow"},
    "cat-standing.png": {"colour": "orange"},
    "rabbit-lying.png": {"pose": "jumping"},
    "bird-standing.png": {"subject": "cat"},
}
SEEDS = tuple(range(8))
ETAS = (0.0, 0.4, 0.6, 0.8, 1.0)


def successes(reader, pictures, truth: Scene) -> int:
    """How many pictures show what the ground truth shows, and are drawn well?"""
    return sum(reader.success(p, truth) for p in pictures)


def measure(pipe, reader, name: str, change: dict[str, str]) -> tuple[list[list[str]], list]:
    path = DATA / "images" / name
    truth = load_scene(path).edit(**change)
    edit = imagic.run_edit(pipe, imagic.load_image(path, pipe), truth.caption())
    lines, sheet = [], []
    for scale in (1, 0):
        rows = edit.pictures(ETAS, SEEDS, scale=scale)
        rebuilt = [psnr(row[0], edit.reconstruction) for row in rows]
        counts = {eta: successes(reader, [row[c] for row in rows], truth) for c, eta in enumerate(ETAS) if eta >= 0.4}
        eta = max(counts, key=lambda e: counts[e])
        column = ETAS.index(eta)
        best = min((row[column] for row in rows), key=lambda p: rmse(p, truth.render()))
        to_truth, to_input = rmse(best, truth.render()), rmse(best, edit.input_picture)
        lines.append(
            [
                f"{load_scene(path).caption()} → {', '.join(change.values())}"
                if scale
                else "the same without fine-tuning",
                f"{min(rebuilt):.1f}–{max(rebuilt):.1f}",
                f"{eta:g}",
                f"{counts[eta]} of {len(SEEDS)}",
                f"{to_truth:.3f}",
                f"{to_input:.3f}",
            ]
        )
        sheet.append([edit.input_picture, *min(rows, key=lambda r: rmse(r[column], truth.render())), truth.render()])
    return lines, sheet


def main() -> None:
    pipe, reader = imagic.load_pipeline("tiny"), load_reader()
    lines, sheet, labels = [], [], []
    for name, change in EDITS.items():
        more, rows = measure(pipe, reader, name, change)
        lines, sheet, labels = lines + more, sheet + rows, [*labels, next(iter(change.values())), "not tuned"]
    titles = ["input", *(f"η = {eta:g}" for eta in ETAS), "truth"]
    figure = picture_grid(sheet, titles, labels, inch=1.15)
    figure.savefig(ROOT / "data" / "tiny-sd" / "edits.jpg", dpi=90)
    header = [
        "edit",
        "η = 0 against the VAE's own, PSNR in dB",
        "best η",
        "success at it",
        "best of 8 to truth",
        "to input",
    ]
    put(CARD, "edits", table(header, lines))


if __name__ == "__main__":
    main()
