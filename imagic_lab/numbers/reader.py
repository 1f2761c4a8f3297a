"""How well does the reader read, what does it call well drawn, and does it find monsters?

python -m imagic_lab.numbers.reader        # about 10 minutes on 2 cores; writes the tables of data/reader/README.md
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table
from imagic_lab.numbers.report import command_line, put
from imagic_lab.numbers.results import in_percent, save_rows
from imagic_lab.toyworld import ATTRIBUTES, Scene, dataset, vae
from imagic_lab.toyworld.details import AMOUNTS, DETAILS, SWITCHES, share_kept, to_numbers, visible
from imagic_lab.toyworld.monsters import MONSTER_KINDS, monsters
from imagic_lab.toyworld.reader import load_reader
from imagic_lab.toyworld.recipe import HELD_BACK
from imagic_lib.models import DATA
from imagic_lib.pictures import to_tensor

SCENES_READ, EACH_MONSTER = 160, 12
READER_CARD = DATA / "reader" / "README.md"
BAD_SAMPLES = DATA / "reader" / "bad-samples.jpg"  # of this model half-way through its training, picked by eye


def accuracies(found: list[Scene], scenes: list[Scene]) -> dict[str, str]:
    """Return, by name, the share of correct readings; for amounts, the error below which 95 % of the readings are."""
    pairs = list(zip(found, scenes, strict=True))
    result = {k: in_percent(np.mean([getattr(f, k) == getattr(s, k) for f, s in pairs])) for k in ATTRIBUTES}
    numbers = [(to_numbers(f), to_numbers(s), visible(s)) for f, s in pairs]
    for name in (*SWITCHES, "collar colour"):
        result[name] = in_percent(np.mean([f[name] == s[name] for f, s, shown in numbers if name in shown]))
    for name in AMOUNTS:
        errors = [abs(f[name] - s[name]) for f, s, shown in numbers if name in shown]
        result[name] = f"± {np.quantile(errors, 0.95):.2f}"
    result["all details kept, of 1"] = f"{np.mean([share_kept(f, s) for f, s in pairs]):.3f}"
    return result


def votes(found: list[Scene], scenes: list[Scene]) -> dict[str, str]:
    """Return, by detail, the share of pictures whose reading agrees with the scene, if the scene shows that detail."""
    result = {}
    for detail, parts in DETAILS.items():
        agree = []
        for f, s in zip(found, scenes, strict=True):
            asked = [name for name in parts if name in visible(s)]
            if asked:
                here, there = to_numbers(f), to_numbers(s)
                agree.append(all(abs(here[name] - there[name]) <= parts[name] for name in asked))
        result[detail] = in_percent(np.mean(agree))
    return result


def caught_monsters(reader, vae_of_model) -> tuple[dict[str, list[bool]], torch.Tensor]:
    """Return, for each kind of monster, which of them are not drawn well; and their pictures after the VAE."""
    caught, shown = {kind: [] for kind in MONSTER_KINDS}, monsters(EACH_MONSTER, seed=1)  # not those that set the bound
    blurred = vae.reconstruct(vae_of_model, torch.cat([to_tensor(picture) for _, _, picture in shown]))
    for (kind, _, _), picture in zip(shown, blurred, strict=True):
        caught[kind].append(not reader.drawn_well(picture))
    return caught, blurred


def tiles_of(sheet: Image.Image) -> list[Image.Image]:
    corners = [(x, y) for y in range(0, sheet.height, 128) for x in range(0, sheet.width, 128)]
    return [sheet.crop((x, y, x + 128, y + 128)) for x, y in corners]


def main() -> None:
    command_line(__doc__).parse_args()
    reader, pipe = load_reader(), imagic.load_pipeline("tiny")
    scenes = dataset.test_scenes(HELD_BACK + SCENES_READ)[HELD_BACK:]  # the bound was chosen on the first ones
    drawings = torch.cat([to_tensor(scene.render()) for scene in scenes])
    softened = torch.cat([vae.reconstruct(pipe.vae, part) for part in drawings.split(32)])
    read = {
        "drawings, at a glance": [scene for part in drawings.split(64) for scene in reader.glance(part)],
        "drawings": [reader.scene(picture) for picture in drawings],
        "through the VAE": [reader.scene(picture) for picture in softened],
    }
    columns = {name: accuracies(found, scenes) for name, found in read.items()}
    rows = [[name, *(column[name] for column in columns.values())] for name in columns["drawings"]]
    put(READER_CARD, "accuracy", markdown_table(["read", *columns], rows))
    agreed = {name: votes(found, scenes) for name, found in read.items()}
    rows = [[name, *(column[name] for column in agreed.values())] for name in DETAILS]
    put(READER_CARD, "details", markdown_table(["detail", *agreed], rows))

    pairs = zip(softened, read["through the VAE"], strict=True)
    passed = np.mean([reader.left(picture, scene) <= reader.bound for picture, scene in pairs])
    caught, blurred = caught_monsters(reader, pipe.vae)
    save_rows(DATA / "reader" / "monsters.jpg", [blurred[k::EACH_MONSTER] for k in range(3)])
    everything = [one for kind in caught.values() for one in kind]
    bad = [not reader.drawn_well(tile) for tile in tiles_of(Image.open(BAD_SAMPLES).convert("RGB"))]
    lines = [[kind, f"{sum(some)} of {len(some)}"] for kind, some in (caught | {"bad samples": bad}).items()]
    text = (
        f"The bound is {reader.bound:.3f}: {in_percent(passed)} of {SCENES_READ} held-back drawings pass after the VAE."
    )
    text += f"\nOf {len(everything)} monsters **{in_percent(np.mean(everything))}** are caught.\n\n"
    put(READER_CARD, "monsters", text + markdown_table(["monster", "caught"], lines))


if __name__ == "__main__":
    main()
