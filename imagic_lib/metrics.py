"""How near two pictures are. Distances are plain; nothing is downloaded."""

from __future__ import annotations

import numpy as np
from PIL import Image


def rmse(a: Image.Image, b: Image.Image) -> float:
    """Root mean square difference of two pictures of one size, in [0, 1] (1 is black against white)."""
    if a.size != b.size:
        raise ValueError(f"the pictures differ in size: {a.size} and {b.size}")
    x, y = (np.asarray(p.convert("RGB"), dtype=np.float64) / 255 for p in (a, b))
    return float(np.sqrt(np.mean((x - y) ** 2)))


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB: 20·log10(1 / RMSE); infinite for equal pictures."""
    error = rmse(a, b)
    return float("inf") if error == 0 else -20 * float(np.log10(error))
