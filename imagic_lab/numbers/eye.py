"""Does the reader agree with people? Two people judge 100 edited pictures by eye; we compare them with the reader.

    python -m imagic_lab.numbers.eye draw runs/benchmark    # draws lots: numbered pictures without labels, in runs/eye/
    python -m imagic_lab.numbers.eye compare A.csv B.csv    # two people's answers -> data/reader/eye.*
    python -m imagic_lab.numbers.eye                        # seconds; the tables once more from data/reader/eye.csv

A picture to judge shows the input on the left and the edit on the right, with the target text below. The judges see
neither the method nor the reader's verdict. They write one line for each picture, `number,right,well,same`, with 1 for
yes and 0 for no. "right" means that the edit shows what the text says. "well" means that it is drawn well, without
smears, ghosts, missing or doubled parts. "same" means that, apart from what the text changes, it is the same individual
in the same scene.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from imagic_lab.benchmark import markdown_table
from imagic_lab.benchmark.jobs import PICTURE_SHEET, SHEET_LINES, edits_of, the_reader
from imagic_lab.benchmark.measuring import read_picture
from imagic_lab.numbers.report import ROOT, command_line, put
from imagic_lab.numbers.results import in_percent
from imagic_lab.sweep.work import FACTS
from imagic_lib.models import DATA

CARD, ANSWERS, SHEET = (DATA / "reader" / name for name in ("README.md", "eye.csv", "eye.jpg"))
HOME, PICTURES, TILE = ROOT / "runs" / "eye", 100, 128
QUESTIONS = ("right", "well", "same")
SAME = 0.75  # at or above this share of details kept, the reader's answer counts as "same"; chosen beforehand
COLUMNS = ("number", "method", "edit", "value", "seed", "text", "kept", *(f"reader {q}" for q in QUESTIONS))


def draw_by_lot(work: list[Path]) -> None:
    """Choose pictures by lot, equally often from each method, and store the reader's verdicts in a separate file."""
    jobs, lot = {}, random.Random(0)
    for facts in sorted(path for folder in work for path in folder.rglob(FACTS)):
        row = json.loads(facts.read_text(encoding="utf-8")).get("row")
        if row and (facts.parent / PICTURE_SHEET).is_file():
            jobs.setdefault(row["method"], []).append((row, facts.parent / PICTURE_SHEET))
    methods, lines = sorted(jobs), []
    HOME.mkdir(parents=True, exist_ok=True)
    order = lot.sample([methods[k % len(methods)] for k in range(PICTURES)], PICTURES)
    for number, name in enumerate(order):
        row, path = lot.choice(jobs[name])
        values, sheet = row["values"].split(), Image.open(path).convert("RGB")
        column, seed = lot.randrange(len(values)), lot.randrange(min(SHEET_LINES, row["pictures"]))
        left, top = TILE * (2 + column), TILE * seed
        picture = sheet.crop((left, top, left + TILE, top + TILE))
        scene, change = edits_of(row["split"])[row["edit"]]
        report = read_picture(the_reader(), picture, scene.edit(**change), scene)
        whole = the_reader().report(picture, scene.edit(**change), scene)  # also what a failure keeps
        answers = (int(report.right), int(whole.well), int(whole.kept >= SAME))
        lines.append((number, name, row["edit"], values[column], seed, row["to"], f"{whole.kept:.3f}", *answers))
        pair(sheet.crop((0, 0, TILE, TILE)), picture, row["to"]).save(HOME / f"{number:03}.png")
        picture.save(HOME / f"edit-{number:03}.png")
    write(HOME / "key.csv", COLUMNS, lines)
    print(f"{PICTURES} pictures of {len(methods)} methods in {HOME}; key.csv is not for those who judge")


def pair(before: Image.Image, after: Image.Image, text: str) -> Image.Image:
    whole = Image.new("RGB", (6 * TILE + 10, 3 * TILE + 24), "white")
    for k, picture in enumerate((before, after)):
        whole.paste(picture.resize((3 * TILE, 3 * TILE), Image.Resampling.LANCZOS), (k * (3 * TILE + 10), 0))
    ImageDraw.Draw(whole).text((6, 3 * TILE + 4), text, fill="black", font_size=16)
    return whole


def write(path: Path, header: tuple, lines: list) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *lines])


def read(path: Path) -> dict[int, dict]:
    return {int(row["number"]): row for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())}


def compare_answers(first: Path, second: Path) -> None:
    """Compare both people's answers with the reader's, and store the pictures on which not all agree."""
    key, people = read(HOME / "key.csv"), [read(path) for path in (first, second)]
    header = (*COLUMNS, *(f"{who} {q}" for who in "AB" for q in QUESTIONS))
    lines = [[*row.values(), *(person[n][q] for person in people for q in QUESTIONS)] for n, row in key.items()]
    write(ANSWERS, header, lines)
    odd = [n for n, row in read(ANSWERS).items() if any(row[f"reader {q}"] != row[f"{who} {q}"]
           for who in "AB" for q in QUESTIONS[:2])]  # fmt: skip
    tiles, across = [Image.open(HOME / f"{n:03}.png").reduce(2) for n in odd], 4
    sheet = Image.new("RGB", (across * tiles[0].width, -(-len(odd) // across) * tiles[0].height), "white")
    for k, tile in enumerate(tiles):
        ImageDraw.Draw(tile).text((4, 4), str(odd[k]), fill="black", stroke_width=2, stroke_fill="white", font_size=14)
        sheet.paste(tile, (k % across * tile.width, k // across * tile.height))
    sheet.save(SHEET, quality=70, optimize=True)


def kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Return Cohen's κ (1960), the agreement beyond that of two people who answer independently."""
    agreed, chance = np.mean(a == b), np.mean(a) * np.mean(b) + (1 - np.mean(a)) * (1 - np.mean(b))
    return float((agreed - chance) / (1 - chance)) if chance < 1 else float("nan")


def tables(rows: list[dict]) -> str:
    """Return agreement and κ of the reader with each person, and of both with each other; then every disagreement."""
    answers = {(who, q): np.array([int(row[f"{who} {q}"]) for row in rows])
               for who in ("reader", "A", "B") for q in QUESTIONS}  # fmt: skip
    lines, pairs = [], (("reader", "A"), ("reader", "B"), ("A", "B"))
    for q in QUESTIONS:
        cells = [f"{in_percent(np.mean(answers[a, q] == answers[b, q]))}, κ = {kappa(answers[a, q], answers[b, q]):.2f}"
                 for a, b in pairs]  # fmt: skip
        lines.append([q, *(f"{answers[who, q].sum()}" for who in ("reader", "A", "B")), *cells])
    text = markdown_table(["", "reader: yes", "A: yes", "B: yes", *(f"{a} and {b}" for a, b in pairs)], lines)
    kept = np.array([float(row["kept"]) for row in rows])
    both, neither = (np.mean(kept[answers["A", "same"] + answers["B", "same"] == n]) for n in (2, 0))
    text += f"\n{len(rows)} pictures. Details kept, by the reader: {in_percent(both)} where both people say that it is"
    text += f"\nthe same individual in the same scene, {in_percent(neither)} where neither does.\n\n"
    odd = []
    for row in rows:
        said = [f"{q}: reader {row[f'reader {q}']}, A {row[f'A {q}']}, B {row[f'B {q}']}" for q in QUESTIONS[:2]
                if len({row[f"{who} {q}"] for who in ("reader", "A", "B")}) > 1]  # fmt: skip
        if said:
            odd.append([row["number"], row["text"], "; ".join(said)])
    return text + markdown_table(["picture", "text", "who says yes (1) or no (0)"], odd)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("what", nargs="?", choices=["draw", "compare"])
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="work folders, or two files of answers")
    given = parser.parse_args()
    if given.what == "draw":
        return draw_by_lot(given.paths)
    if given.what == "compare":
        compare_answers(*given.paths)
    put(CARD, "eye", tables(list(read(ANSWERS).values())))


if __name__ == "__main__":
    main()
