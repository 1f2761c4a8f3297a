"""What the experiments share: results that are saved one by one, rows of pictures for the sheets, and intervals."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import torch
from PIL import Image

from imagic_lab.numbers.report import ROOT
from imagic_lib.files import write_atomically
from imagic_lib.models import DATA
from imagic_lib.pictures import to_tensor

FOLDER, SCRATCH = DATA / "experiments", ROOT / "runs" / "experiments"
LARGEST_SHEET = 100_000  # bytes
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
        """Keep the versions. Raises ValueError if the file has results of others."""
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
    """The four attributes of each picture, as the reader sees them at a glance."""
    return [scene.attributes for scene in reader.glance(torch.cat([to_tensor(picture) for picture in pictures]))]


# --- rows of pictures


def strip(name: str, pictures: list[Image.Image]) -> None:
    """Save a row of pictures for the sheets."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    row = Image.new("RGB", (128 * len(pictures), 128))
    for k, picture in enumerate(pictures):
        row.paste(picture, (128 * k, 0))
    write_atomically(SCRATCH / f"{name}.png", lambda tmp: row.save(tmp, format="PNG"))


def strips(name: str) -> list[Image.Image]:
    row = Image.open(SCRATCH / f"{name}.png")
    return [row.crop((x, 0, x + 128, 128)) for x in range(0, row.width, 128)]


def write_sheet(name: str, figure) -> None:
    """Save a figure as the best JPEG of at most LARGEST_SHEET bytes."""
    for quality in range(90, 20, -5):
        figure.savefig(buffer := io.BytesIO(), format="jpg", dpi=80, pil_kwargs={"quality": quality, "optimize": True})
        if buffer.tell() <= LARGEST_SHEET:
            break
    write_atomically(FOLDER / name, lambda tmp: tmp.write_bytes(buffer.getvalue()))


# --- numbers as text


def mean_and_deviation(values: list[float], form: str) -> str:
    """Mean ± standard deviation."""
    return f"{np.mean(values):{form}}" + (f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else "")


def in_percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def paired_difference(what: str, a: list[float], b: list[float], unit: str = "", form: str = ".1f") -> str:
    """One sentence on the mean of a - b over pairs, with its 95 % interval by Student's t."""
    d = np.array(a) - np.array(b)
    t = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}[len(d) - 1]
    half = t * d.std(ddof=1) / len(d) ** 0.5
    shown = "" if abs(d.mean()) > half else ": no difference is shown"
    return f"{what}: {d.mean():+{form}} ± {half:{form}}{unit} (95 %, {len(d)} pairs){shown}."


def share_with_interval(count: float, total: int) -> str:
    """'3 of 8 (14–69 %)', with Wilson's 95 % interval."""
    p, z = count / total, 1.96
    middle, half = p + z * z / (2 * total), z * (p * (1 - p) / total + z * z / (4 * total**2)) ** 0.5
    low, high = ((middle + s * half) / (1 + z * z / total) for s in (-1, 1))
    return f"{count:.0f} of {total} ({100 * abs(low):.0f}–{100 * high:.0f} %)"
