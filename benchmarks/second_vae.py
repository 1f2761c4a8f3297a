"""What does the second model's VAE keep that the first one lost?

python benchmarks/second_vae.py    # about 5 minutes on 2 cores; writes the table of data/tiny-sd-2/README.md
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from report import put, table

from imagic_lib.models import DATA, TINY
from imagic_lib.toyworld import dataset, vae
from imagic_lib.toyworld.details import share_kept, to_numbers
from imagic_lib.toyworld.drawing import BOLD, FINE
from imagic_lib.toyworld.reader import Reader, load_reader

COUNT, READ = 512, 128
SECOND = DATA / "tiny-sd-2"
ROWS = (
    ("first, fine strokes", TINY / "vae", FINE),
    ("first, bold strokes", TINY / "vae", BOLD),
    ("second, bold strokes", SECOND / "vae", BOLD),
)


def main() -> None:
    net, scenes, lines, shown = load_reader().net, dataset.test_scenes(COUNT), [], []
    for name, folder, strokes in ROWS:
        model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
        pictures = vae.to_tensor(np.stack([dataset.pixels(scene, strokes) for scene in scenes]))
        rebuilt = torch.cat([vae.reconstruct(model, part) for part in pictures.split(32)])
        psnr, reader = vae.psnr(rebuilt, pictures), Reader(net, 0.0, strokes)
        pairs = [(reader.scene(p), s) for p, s in zip(rebuilt[:READ], scenes[:READ], strict=True)]
        collars = [(to_numbers(f), to_numbers(s)) for f, s in pairs if to_numbers(s)["collar"]]
        seen = [f["collar"] == 1 for f, _ in collars]
        coloured = [f["collar"] == 1 and f["collar colour"] == s["collar colour"] for f, s in collars]
        lines.append(
            [
                name,
                f"{psnr.mean():.1f} ({psnr.min():.1f})",
                f"{100 * np.mean([share_kept(f, s) for f, s in pairs]):.1f} %",
                f"{100 * np.mean(seen):.0f} %",
                f"{100 * np.mean(coloured):.0f} %",
            ]
        )
        shown += [pictures[8:16], rebuilt[8:16]]
    vae.save_rows(SECOND / "vae.jpg", shown[:2] + shown[4:])
    header = ["VAE", "PSNR, mean (worst), dB", "details kept", "collars seen", "in their colour"]
    put(SECOND / "README.md", "vae", table(header, lines))


if __name__ == "__main__":
    main()
