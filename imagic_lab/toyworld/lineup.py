"""Is it exactly this car? In a line-up, cut-outs of several cars slide over a picture, and the best fit wins.

A text names a car's colour, pose and place. Its identity is its roof, rack, stripe and emblem, which no text names. The
reader reads only some of these; the line-up compares them at any position in the picture.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagic_lab.toyworld.drawing import FIGURE, OVERSAMPLING, SIZE, Coat, Pen, draw_car
from imagic_lab.toyworld.scene import Scene

MARKS = ("size", "shade", "spots", "belly", "collar", "collar_colour", "ears")  # the numbers that belong to the car
CAR_SCALES = tuple(FIGURE * (0.80 + 0.02 * k) for k in range(15))  # cars in the drawn world: 0.81 to 1.08 of FIGURE


def seen_again(scene: Scene, seed: int, **attributes: str) -> Scene:
    """Return a scene with the same car (or animal), but with sky, hills and position from `seed`."""
    other = Scene.sample(seed, **scene.attributes | attributes)
    return replace(other, identity=replace(other.identity, **{name: getattr(scene.identity, name) for name in MARKS}))


def cutout(scene: Scene, scale: float) -> tuple[Tensor, Tensor]:
    """Cut out the car, facing right. Returns its colours (3, h, w) in [0, 1], and its mask (1, h, w), 0 or 1.

    Dust, streaks and light beams of a driving car are left out. Raises ValueError for any other subject.
    """
    if scene.subject != "car":
        raise ValueError(f"this is a {scene.subject}: the line-up is for cars")
    black, white = (_alone(scene, scale, fill) for fill in (0, 255))
    still = scene.edit(pose="parked")
    cover = 1 - (_alone(still, scale, 255) - _alone(still, scale, 0)).mean(0, keepdim=True)
    rows, columns = (torch.nonzero(cover[0].amax(dim) > 0.5).flatten() for dim in (1, 0))
    window = (slice(None), slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    solid = (cover[window] > 0.5).float()
    return ((black + white) / 2)[window] * solid, solid


def _alone(scene: Scene, scale: float, fill: int) -> Tensor:
    image = Image.new("RGB", (SIZE * OVERSAMPLING,) * 2, (fill,) * 3)
    draw_car(Pen(image, (SIZE / 2, SIZE / 2 + 20), scale), scene, Coat(scene))
    return _colours_of(image.reduce(OVERSAMPLING))


def _colours_of(picture: Image.Image) -> Tensor:
    """Return the colours of a picture, (3, h, w) in [0, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255


class Lineup:
    """Cut-outs of several cars, in all sizes and facing both ways, to slide over pictures.

    >>> lineup = Lineup([car.edit(place="beach"), *others])
    >>> lineup.distances(picture)      # one number per car; the smallest is the best fit
    """

    def __init__(self, scenes: Sequence[Scene], scales: Sequence[float] = CAR_SCALES):
        self.cars = []
        for scene in scenes:
            right = [cutout(scene, scale) for scale in scales]
            left = [(colours.flip(2), cover.flip(2)) for colours, cover in right]
            self.cars.append([self._prepared(*one) for one in right + left])

    @staticmethod
    def _prepared(colours: Tensor, cover: Tensor):
        spectrum = torch.fft.rfft2(colours, s=(SIZE, SIZE)).conj()
        covered = torch.fft.rfft2(cover, s=(SIZE, SIZE)).conj()
        room = (SIZE - cover.shape[1] + 1, SIZE - cover.shape[2] + 1)
        return spectrum, covered, room, colours.square().sum().item(), 3 * cover.sum().item()

    def distances(self, picture: Image.Image) -> list[float]:
        """Return, for each car, the RMSE of picture and cut-out, inside the cut-out where it fits best, in [0, 1].

        Fourier transforms give Σ m(I - T)² = Σ m I² - 2 Σ I T + Σ T² for all positions at once.
        """
        pixels = _colours_of(picture)
        plain, squared = torch.fft.rfft2(pixels), torch.fft.rfft2(pixels.square().sum(0, keepdim=True))
        best = []
        for car in self.cars:
            errors = []
            for spectrum, covered, (rows, columns), own, count in car:
                both = squared[0] * covered[0] - 2 * (plain * spectrum).sum(0)
                error = torch.fft.irfft2(both, s=(SIZE, SIZE))[:rows, :columns].min().item()
                errors.append(max(0.0, (error + own) / count) ** 0.5)
            best.append(min(errors))
        return best
