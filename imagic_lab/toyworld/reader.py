"""The reader: which scene does a picture show?

A convolutional network reads from a picture every parameter of its scene: the four attributes that a caption
names, and the details that none names; `fitting` makes the details exact. The reader has no part in making
pictures, it measures them. Three questions follow from what it reads. Is the picture right? Is it drawn well, that
is: does the scene that was read, drawn again, look like this picture (`Reader.drawn_well`)? Is it still the same dog
before the same hills (`Reader.kept`)?
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from imagic_lab.toyworld.details import (
    COLLAR_COLOURS,
    NUMBERS,
    SWITCHES,
    from_numbers,
    share_kept,
    to_numbers,
    visible,
)
from imagic_lab.toyworld.drawing import draw
from imagic_lab.toyworld.fitting import fit
from imagic_lab.toyworld.scene import ATTRIBUTES, POSES_OF, Scene
from imagic_lab.toyworld.training import train
from imagic_lab.toyworld.vae import to_tensor
from imagic_lib.models import DATA
from imagic_lib.training.checkpoints import load_tensors, save_tensors

STEPS, LR, BATCH = 2000, 2e-3, 48
SWITCH_NAMES = tuple(SWITCHES)
MEDIAN, SHIFT, WINDOW = 5, 1, 11  # pixels: see `unexplained`
LIKELY = 0.1  # so likely must another subject, colour or pose be to be tried, too
BOUND_FROM, MONSTERS = 160, 12  # drawings, and monsters of each kind, between which the bound of 'drawn well' lies


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.body(x))


class ReaderNet(nn.Module):
    """(n, 3, 128, 128) in [-1, 1] -> logits of the attributes, switches and collar colours, and the amounts."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 24, 5, stride=2, padding=2), nn.GroupNorm(8, 24), nn.SiLU()]
        for a, b in ((24, 48), (48, 96), (96, 160)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU(), Block(b)]
        layers += [nn.Conv2d(160, 32, 1), nn.SiLU(), nn.Flatten(), nn.Dropout(0.1)]
        layers += [nn.Linear(32 * 64, 384), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.attributes = nn.ModuleDict({k: nn.Linear(384, len(v)) for k, v in ATTRIBUTES.items()})
        self.switches = nn.Linear(384, len(SWITCH_NAMES))
        self.collar_colour = nn.Linear(384, len(COLLAR_COLOURS))
        self.amounts = nn.Linear(384, len(NUMBERS))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.trunk(pictures)
        found = {name: head(features) for name, head in self.attributes.items()}
        found["switches"] = self.switches(features)
        found["collar colour"] = self.collar_colour(features)
        found["amounts"] = self.amounts(features)
        return found


def targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """What the network should say of each scene, and (names ending in '?') which of it the picture shows."""
    numbers, shown = [to_numbers(s) for s in scenes], [visible(s) for s in scenes]

    def table(names) -> tuple[Tensor, Tensor]:
        values = torch.tensor([[n[name] for name in names] for n in numbers], dtype=torch.float32)
        return values, torch.tensor([[name in v for name in names] for v in shown], dtype=torch.float32)

    wanted = {k: torch.tensor([v.index(getattr(s, k)) for s in scenes]) for k, v in ATTRIBUTES.items()}
    wanted["switches"], wanted["switches?"] = table(SWITCH_NAMES)
    wanted["amounts"], wanted["amounts?"] = table(NUMBERS)
    colour, there = table(("collar colour",))
    wanted["collar colour"], wanted["collar colour?"] = colour[:, 0].long(), there[:, 0]
    return wanted


def reading_loss(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Cross-entropy for what is one of several, squares for what is an amount, only where the picture shows it."""

    def mean(values: Tensor, shown: Tensor) -> Tensor:
        return (values * shown).sum() / shown.sum().clamp(min=1)

    loss = sum(F.cross_entropy(found[k], wanted[k]) for k in ATTRIBUTES)
    switches = F.binary_cross_entropy_with_logits(found["switches"], wanted["switches"], reduction="none")
    loss = loss + len(SWITCH_NAMES) * mean(switches, wanted["switches?"])
    colours = F.cross_entropy(found["collar colour"], wanted["collar colour"], reduction="none")
    amounts = F.smooth_l1_loss(found["amounts"], wanted["amounts"], reduction="none", beta=0.05)
    return loss + mean(colours, wanted["collar colour?"]) + 2 * len(NUMBERS) * mean(amounts, wanted["amounts?"])


def roughen(x: Tensor, generator: torch.Generator) -> Tensor:
    """Soften, lighten and speckle some of the pictures, so that soft samples are read as well as crisp drawings."""
    n = len(x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, soft, torch.rand(n, 1, 1, 1, generator=generator))
    light = 0.05 * torch.randn(n, 1, 1, 1, generator=generator)
    speckle = torch.randn(x.shape, generator=generator) * 0.08 * torch.rand(n, 1, 1, 1, generator=generator)
    rough = torch.rand(n, 1, 1, 1, generator=generator) < 0.7
    return torch.where(rough, x + speckle, x) + light


def unexplained(picture: Tensor, drawing: Tensor) -> Tensor:
    """Where two pictures differ by more than a pixel of shift: (128, 128), 0 where they agree.

    picture, drawing: (3, 128, 128) in [-1, 1]. A median over 5 x 5 pixels takes stars and snowflakes out of both. A
    pixel of one is compared with the 9 pixels around the same place in the other, and the nearest colour counts; the
    same the other way round. The differences are averaged over windows of 11 x 11 pixels, the size of a paw: a
    missing leg stays, an edge that is soft or a pixel off goes.
    """
    both = around(torch.stack([picture, drawing]), MEDIAN).median(dim=2).values
    near = around(both, 2 * SHIFT + 1)
    nearest = [(a[:, None] - others).square().mean(0).amin(0) for a, others in zip(both, near.flip(0), strict=True)]
    worse = torch.stack(nearest).amax(0).sqrt() / 2
    return F.avg_pool2d(worse[None, None], WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)[0, 0]


def around(pictures: Tensor, size: int) -> Tensor:
    """(n, c, h, w) -> (n, c, size², h, w): for each pixel, those in the square around it."""
    padded = F.pad(pictures, (size // 2,) * 4, mode="replicate")
    n, c, h, w = pictures.shape
    return F.unfold(padded, size).view(n, c, size**2, h, w)


class Report(NamedTuple):
    """One picture of an edit, measured against the ground truth."""

    right: bool  # in all four attributes
    well: bool  # drawn well
    kept: float  # share of the unnamed details that agree with the truth
    distance: float  # root mean square, to the truth drawn where this picture has its subject; in [0, 1]

    @property
    def success(self) -> bool:
        return self.right and self.well


class Reader:
    """The trained network and the bound of what counts as drawn well, in one.

    >>> reader = load_reader()
    >>> reader.scene(picture).attributes        # {'subject': 'dog', 'colour': 'brown', ...}

    Pictures are Pillow images of 128x128 or tensors (3, 128, 128) in [-1, 1]; a stack (n, 3, 128, 128) where a
    method takes several. Raises ValueError for any other size.
    """

    def __init__(self, net: ReaderNet, bound: float):
        self.net, self.bound = net.eval(), bound

    def drawn(self, scene: Scene) -> Tensor:
        """(3, 128, 128): the scene as the illustrator of this world draws it."""
        return as_stack(draw(scene))[0]

    @torch.no_grad()
    def glance(self, pictures: Tensor) -> list[Scene]:
        """The scene that each picture shows as the network reads it, all at once: the attributes as they
        count, the details as a first guess. Stars and snowflakes are not read."""
        found = {name: values.float() for name, values in self.net(as_stack(pictures)).items()}
        return [from_numbers(best_attributes(found, k), best_numbers(found, k)) for k in range(len(pictures))]

    @torch.no_grad()
    def candidates(self, picture: Image.Image | Tensor) -> list[Scene]:
        """The glance, and the same with another subject, colour or pose that the network finds not unlikely."""
        found = {name: values.float() for name, values in self.net(as_stack(picture)).items()}
        numbers = best_numbers(found, 0)
        return [from_numbers(attributes, numbers) for attributes in likely_attributes(found, 0)]

    def scene(self, picture: Image.Image | Tensor) -> Scene:
        """The scene that a picture shows: a glance, then fitted by drawing it (about a second)."""
        return fit(as_stack(picture)[0], self.candidates(picture))

    def may_be(self, picture: Image.Image | Tensor, truth: Scene) -> bool:
        """Can it be right in all four attributes? A glance tells, where `scene` needs a second."""
        return any(scene.attributes == truth.attributes for scene in self.candidates(picture))

    def drawn_well(self, picture: Image.Image | Tensor) -> bool:
        """Can a drawing explain the picture? The scene that was read is drawn again and compared with it.

        What no drawing explains fails: two heads, missing legs, a smear, half a cat. The bound lies between held-back
        drawings and monsters, both seen through the VAE (`with_bound`, data/reader/README.md).
        """
        return self.left(picture, self.scene(picture)) <= self.bound

    def success(self, picture: Image.Image | Tensor, truth: Scene) -> bool:
        """Right in all four attributes and drawn well, as in `report`; at a glance where it is wrong."""
        return self.may_be(picture, truth) and self.report(picture, truth).success

    def left(self, picture: Image.Image | Tensor, scene: Scene) -> float:
        """How much of the picture this scene, drawn, leaves unexplained: the worst window, in [0, 1]."""
        return unexplained(as_stack(picture)[0], self.drawn(scene)).max().item()

    def kept(self, picture: Image.Image | Tensor, truth: Scene, before: Scene | None = None) -> float:
        """The share of details that no text names on which the picture agrees with the ground truth, in [0, 1].

        before: the scene of the input. Details that it did not show (the socks of a bird that becomes a cat) are
        not asked for.
        """
        return share_kept(self.scene(picture), truth, before)

    def report(self, picture: Image.Image | Tensor, truth: Scene, before: Scene | None = None) -> Report:
        """Everything about one picture of an edit, from one reading."""
        scene = self.scene(picture)
        right = scene.attributes == truth.attributes
        moved = replace(truth, identity=replace(truth.identity, x=scene.identity.x, depth=scene.identity.depth))
        distance = ((as_stack(picture)[0] - self.drawn(moved)) / 2).square().mean().sqrt().item()
        well = self.left(picture, scene) <= self.bound
        return Report(right, well, share_kept(scene, truth, before), distance)

    def save(self, path: Path) -> None:
        """In half precision, with the bound beside the weights."""
        half = {name: weights.half() for name, weights in self.net.state_dict().items()}
        save_tensors(path, half, {"bound": self.bound})


def as_stack(picture: Image.Image | Tensor) -> Tensor:
    """(n, 3, 128, 128) in [-1, 1]. Raises ValueError for another size."""
    if not isinstance(picture, Tensor):
        picture = to_tensor(np.asarray(picture.convert("RGB"))[None])
    stack = picture if picture.ndim == 4 else picture[None]
    if stack.shape[1:] != (3, 128, 128):
        raise ValueError(f"the reader reads pictures of 128x128 in RGB, not of shape {tuple(stack.shape[1:])}")
    return stack.float()


def best_attributes(found: dict[str, Tensor], k: int) -> dict[str, str]:
    """The likeliest subject, colour and place, and the likeliest pose that this subject has."""
    chosen = {name: values[int(found[name][k].argmax())] for name, values in ATTRIBUTES.items()}
    poses = POSES_OF[chosen["subject"]]
    scores = {pose: found["pose"][k][i].item() for i, pose in enumerate(ATTRIBUTES["pose"]) if pose in poses}
    return chosen | {"pose": max(scores, key=scores.get)}


def likely_attributes(found: dict[str, Tensor], k: int) -> list[dict[str, str]]:
    """The best attributes first, then those with one of them exchanged for another that is at least LIKELY."""
    best, others = best_attributes(found, k), []
    for name in ("subject", "colour", "pose"):
        chances = found[name][k].softmax(0).tolist()
        others += [best | {name: v} for v, p in zip(ATTRIBUTES[name], chances, strict=True) if p >= LIKELY]
    return [best, *(o for o in others if o != best and o["pose"] in POSES_OF[o["subject"]])]


def best_numbers(found: dict[str, Tensor], k: int) -> dict[str, float]:
    numbers = {name: float(logit > 0) for name, logit in zip(SWITCH_NAMES, found["switches"][k], strict=True)}
    numbers |= {name: value.item() for name, value in zip(NUMBERS, found["amounts"][k], strict=True)}
    return numbers | {"collar colour": float(found["collar colour"][k].argmax())}


def train_reader(
    drawings: np.ndarray, softened: np.ndarray, scenes: list[Scene], folder: Path, *, steps=STEPS, seed=0, bf16=False
) -> tuple[ReaderNet, dict]:
    """Learn to read drawings of *all* combinations. softened: the first of the drawings, through the VAE."""
    torch.manual_seed(seed)
    net = ReaderNet().to(memory_format=torch.channels_last)
    wanted = targets(scenes)
    third = BATCH // 3

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(scenes), (BATCH,), generator=generator)
        which[:third] %= len(softened)
        pixels = np.concatenate([softened[which[:third].numpy()], drawings[which[third:].numpy()]])
        pictures = roughen(to_tensor(pixels), generator).contiguous(memory_format=torch.channels_last)
        found = {name: values.float() for name, values in net(pictures).items()}
        return reading_loss(found, {name: values[which] for name, values in wanted.items()})

    history = train("reader", net, loss_of, folder, steps=steps, lr=LR, ema=0.995, seed=seed, bf16=bf16)
    return net.eval().to(memory_format=torch.contiguous_format), history


def with_bound(net: ReaderNet, softened: np.ndarray, spoiled: np.ndarray) -> Reader:
    """A reader that tells well drawn pictures from spoiled ones by what these held-back drawings and these monsters
    leave unexplained, both seen through the VAE: as large a share of the drawings passes as of the monsters fails."""
    reader = Reader(net, 0.0)
    good, bad = ([reader.left(p, reader.scene(p)) for p in to_tensor(pictures)] for pictures in (softened, spoiled))
    return Reader(net, parting(good, bad))


def parting(good: list[float], bad: list[float]) -> float:
    """The bound at which the smaller of two shares is largest: of `good` not above it, of `bad` above it."""
    good, bad = np.array(good), np.array(bad)
    return max(sorted([*good, *bad]), key=lambda bound: min(np.mean(good <= bound), np.mean(bad > bound)))


def load_reader(path: Path = DATA / "reader" / "reader.safetensors") -> Reader:
    """The reader that is shipped. Raises FileNotFoundError or ValueError if its file is missing or damaged."""
    tensors, facts = load_tensors(path)
    net = ReaderNet()
    net.load_state_dict(tensors)
    return Reader(net, facts["bound"])
