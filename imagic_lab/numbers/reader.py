"""How well does the reader read, what does it call well drawn, and does it catch monsters?

python -m imagic_lab.numbers.reader        # about 10 minutes on 2 cores; writes the tables of data/reader/README.md
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

import imagic_lib as imagic
from imagic_lab.numbers.report import put, table
from imagic_lab.toyworld import ATTRIBUTES, Scene, dataset, vae
from imagic_lab.toyworld.details import DETAILS, NUMBERS, SWITCHES, share_kept, to_numbers, visible
from imagic_lab.toyworld.monsters import KINDS, monsters
from imagic_lab.toyworld.reader import load_reader
from imagic_lab.toyworld.recipe import HELD_BACK
from imagic_lib.models import DATA

COUNT, EACH = 160, 12
CARD = DATA / "reader" / "README.md"
BAD = DATA / "reader" / "bad-samples.jpg"  # of this model half-way through its training, picked by eye


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def accuracies(found: list[Scene], scenes: list[Scene]) -> dict[str, str]:
    """By name: the share that is read rightly, or for amounts the error that 95 % of the readings stay below."""
    pairs = list(zip(found, scenes, strict=True))
    result = {k: percent(np.mean([getattr(f, k) == getattr(s, k) for f, s in pairs])) for k in ATTRIBUTES}
    numbers = [(to_numbers(f), to_numbers(s), visible(s)) for f, s in pairs]
    for name in (*SWITCHES, "collar colour"):
        result[name] = percent(np.mean([f[name] == s[name] for f, s, shown in numbers if name in shown]))
    for name in NUMBERS:
        errors = [abs(f[name] - s[name]) for f, s, shown in numbers if name in shown]
        result[name] = f"± {np.quantile(errors, 0.95):.2f}"
    result["all details kept, of 1"] = f"{np.mean([share_kept(f, s) for f, s in pairs]):.3f}"
    return result


def votes(found: list[Scene], scenes: list[Scene]) -> dict[str, str]:
    """By detail: the share of pictures whose reading agrees with the scene, where the scene shows it."""
    result = {}
    for detail, parts in DETAILS.items():
        agree = []
        for f, s in zip(found, scenes, strict=True):
            asked = [name for name in parts if name in visible(s)]
            if asked:
                here, there = to_numbers(f), to_numbers(s)
                agree.append(all(abs(here[name] - there[name]) <= parts[name] for name in asked))
        result[detail] = percent(np.mean(agree))
    return result


def main() -> None:
    reader, pipe = load_reader(), imagic.load_pipeline("tiny")
    scenes = dataset.test_scenes(HELD_BACK + COUNT)[HELD_BACK:]  # the bound was chosen on the first ones
    drawings = vae.to_tensor(np.stack([dataset.pixels(s) for s in scenes]))
    softened = torch.cat([vae.reconstruct(pipe.vae, part) for part in drawings.split(32)])
    read = {
        "drawings, at a glance": [scene for part in drawings.split(64) for scene in reader.glance(part)],
        "drawings": [reader.scene(picture) for picture in drawings],
        "through the VAE": [reader.scene(picture) for picture in softened],
    }
    columns = {name: accuracies(found, scenes) for name, found in read.items()}
    rows = [[name, *(column[name] for column in columns.values())] for name in columns["drawings"]]
    put(CARD, "accuracy", table(["read", *columns], rows))
    agreed = {name: votes(found, scenes) for name, found in read.items()}
    put(CARD, "details", table(["detail", *agreed], [[n, *(c[n] for c in agreed.values())] for n in DETAILS]))

    passed = np.mean(
        [reader.left(p, s) <= reader.bound for p, s in zip(softened, read["through the VAE"], strict=True)]
    )
    caught = {kind: [] for kind in KINDS}
    shown = monsters(EACH, seed=1)  # the bound was chosen on the other ones
    blurred = vae.reconstruct(pipe.vae, torch.cat([vae.to_tensor(np.asarray(p)[None]) for _, _, p in shown]))
    for (kind, _, _), picture in zip(shown, blurred, strict=True):
        caught[kind].append(not reader.drawn_well(picture))
    everything = [c for kind in caught.values() for c in kind]
    lines = [[kind, f"{sum(c)} of {len(c)}"] for kind, c in caught.items()]
    vae.save_rows(DATA / "reader" / "monsters.jpg", [blurred[k::EACH] for k in range(3)])
    sheet = np.asarray(Image.open(BAD).convert("RGB"))
    tiles = [
        sheet[y : y + 128, x : x + 128] for y in range(0, sheet.shape[0], 128) for x in range(0, sheet.shape[1], 128)
    ]
    bad = [not reader.drawn_well(Image.fromarray(tile)) for tile in tiles]
    lines.append(["bad samples", f"{sum(bad)} of {len(bad)}"])
    text = f"The bound is {reader.bound:.3f}: {percent(passed)} of {COUNT} held-back drawings pass after the VAE.\n"
    text += f"Of {len(everything)} monsters **{percent(np.mean(everything))}** are caught.\n\n"
    put(CARD, "monsters", text + table(["monster", "caught"], lines))


if __name__ == "__main__":
    main()
