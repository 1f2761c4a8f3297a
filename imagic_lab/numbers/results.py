"""Shared by the experiments: results that are saved one by one, rows of pictures for the sheets, and intervals."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagic_lab.numbers.report import ROOT
from imagic_lib.files import write_atomically
from imagic_lib.models import DATA
from imagic_lib.pictures import to_picture, to_tensor

FOLDER, SCRATCH = DATA / "experiments", ROOT / "runs" / "experiments"
LARGEST_SHEET, TILE = 100_000, 128  # bytes of a sheet; pixels of a tile
LONGER = (
    {"steps": 40, "lr": 5e-2},
    {"steps": 100, "lr": 2e-4},
)  # both stages of notebooks 09 and 10: more, smaller steps


class Results:
    """A JSON file of named parts. Each result is written as soon as it is known, so an experiment can be stopped."""

    def __init__(self, name: str, *parts: str):
        self.path = FOLDER / name
        self.found = {part: {} for part in parts}
        if self.path.exists():
            self.found |= json.loads(self.path.read_text(encoding="utf-8"))

    def check_versions(self, versions: dict[str, str]) -> None:
        """Store the versions. Raises ValueError if the file has results from others."""
        if (self.found["versions"] or versions) != versions:
            raise ValueError(f"{self.path} was measured with other versions: delete it to measure again")
        self.found["versions"] = versions

    def keep(self, part: str, key: str, value: dict) -> None:
        self.found[part][key] = value
        self.write()
        print(f"{time.strftime('%H:%M:%S')} {part} {key}: {json.dumps(value)[:300]}", flush=True)

    def write(self) -> None:
        text = json.dumps(self.found, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def rounded(value: float, digits: int = 4) -> float:
    return round(float(value), digits)


def attributes_of(reader, pictures: list[Image.Image]) -> list[dict[str, str]]:
    """Return the four attributes of each picture, as the reader sees them at a glance."""
    return [scene.attributes for scene in reader.glance(torch.cat([to_tensor(picture) for picture in pictures]))]


# --- rows of pictures


def strip(name: str, pictures: list[Image.Image]) -> None:
    """Save a row of pictures for the sheets."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    row = Image.new("RGB", (TILE * len(pictures), TILE))
    for k, picture in enumerate(pictures):
        row.paste(picture, (TILE * k, 0))
    write_atomically(SCRATCH / f"{name}.png", lambda tmp: row.save(tmp, format="PNG"))


def strips(name: str) -> list[Image.Image]:
    row = Image.open(SCRATCH / f"{name}.png")
    return [row.crop((x, 0, x + TILE, TILE)) for x in range(0, row.width, TILE)]


def write_tiles(name: str, rows: list[list[Image.Image]]) -> None:
    """Save rows of tiles as the best JPEG of at most LARGEST_SHEET bytes. `read_tiles` cuts it up again."""
    sheet = Image.new("RGB", (TILE * len(rows[0]), TILE * len(rows)))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture.resize((TILE, TILE), Image.Resampling.LANCZOS), (TILE * x, TILE * y))
    for quality in range(90, 20, -5):
        sheet.save(buffer := io.BytesIO(), format="jpeg", quality=quality, optimize=True)
        if buffer.tell() <= LARGEST_SHEET:
            break
    write_atomically(FOLDER / name, lambda tmp: tmp.write_bytes(buffer.getvalue()))


def read_tiles(name: str) -> list[list[Image.Image]]:
    """Return the rows of tiles of a stored sheet."""
    with Image.open(FOLDER / name) as opened:
        sheet = opened.convert("RGB")
    across, down = range(0, sheet.width, TILE), range(0, sheet.height, TILE)
    return [[sheet.crop((x, y, x + TILE, y + TILE)) for x in across] for y in down]


# --- numbers as text


def mean_and_deviation(values: list[float], form: str) -> str:
    """Write mean ± standard deviation."""
    return f"{np.mean(values):{form}}" + (f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else "")


def in_percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def chance_of_one_sign(pairs: int) -> str:
    """Return how often all differences would have one sign by chance alone, such as '1 of 16' for five pairs."""
    return f"1 of {2 ** (pairs - 1)}"


def paired_difference(a: list[float], b: list[float], form: str = ".1f", unit: str = "") -> str:
    """Write mean, smallest and largest of a - b as '+15.7 dB (+13.5 to +17.7; 4 of 4 above zero)', or '0 of 4 differ'.

    From the smallest to the largest of n differences is an interval for their median, at the level 1 - 2^(1-n). It
    assumes that the pairs are independent, but nothing about the distribution of the differences.
    """
    digits = int(form[1:-1])
    d = np.round(np.array(a) - np.array(b), digits) + 0.0  # no -0.0
    if not d.any():
        return f"0 of {len(d)} differ"
    mean = np.round(d.mean(), digits) + 0.0
    return f"{mean:+{form}}{unit} ({d.min():+{form}} to {d.max():+{form}}; {(d > 0).sum()} of {len(d)} above zero)"


def count_with_parts(counts: list[int], total: int) -> str:
    """Write a sum with its parts, '14 of 24 (2 + 12)', because pictures of one car or one edit are not independent."""
    return f"{sum(counts)} of {total} ({' + '.join(f'{count:.0f}' for count in counts)})"


def save_rows(path: Path, rows: list[Tensor]) -> None:
    """Save rows of pictures, (n, 3, h, w) in [-1, 1] each, as one sheet. The file name decides between PNG and JPEG."""
    sheet = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
    to_picture(sheet).save(path, quality=90)  # quality is for JPEG
