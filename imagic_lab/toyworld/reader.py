"""The reader: which scene does a picture show?

A small convolutional network reads a scene from its picture, with the four attributes of the caption and with the
details that no caption names. `fitting` then makes the details exact. The reader only measures pictures, by three
questions (`Reader.report`). Is the picture right in all four attributes? Is it drawn well, so that a drawing of the
scene explains it? Does it keep the details, so that it is still the same dog in front of the same hills?
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from imagic_lab.toyworld.dataset import to_batch
from imagic_lab.toyworld.details import AMOUNTS, COLLAR_COLOURS, SWITCHES, from_numbers, share_kept, to_numbers, visible
from imagic_lab.toyworld.fitting import fit_scene
from imagic_lab.toyworld.scene import Scene
from imagic_lab.toyworld.training import train_network
from imagic_lab.toyworld.world import ATTRIBUTES, POSES_OF
from imagic_lib.files import load_tensors, save_tensors
from imagic_lib.models import DATA

STEPS, LR, BATCH = 2000, 2e-3, 48
MEDIAN, SHIFT, WINDOW = 5, 1, 11  # pixels; see `unexplained`
LIKELY = 0.1  # the smallest probability at which another subject, colour or pose is also tried
BOUND_FROM, MONSTERS = 160, 12  # drawings, and monsters of each kind, from which the bound of "drawn well" is found


class Block(nn.Module):
    """Two convolutions and a shortcut around them."""

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
        self.switches = nn.Linear(384, len(SWITCHES))
        self.collar_colour = nn.Linear(384, len(COLLAR_COLOURS))
        self.amounts = nn.Linear(384, len(AMOUNTS))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.trunk(pictures)
        found = {name: head(features) for name, head in self.attributes.items()}
        found |= {"switches": self.switches(features), "amounts": self.amounts(features)}
        return found | {"collar colour": self.collar_colour(features)}


def targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """Return what the network should say about each scene and, under names that end in '?', what the picture shows."""
    numbers, shown = [to_numbers(s) for s in scenes], [visible(s) for s in scenes]

    def table(names) -> tuple[Tensor, Tensor]:
        values = torch.tensor([[n[name] for name in names] for n in numbers], dtype=torch.float32)
        return values, torch.tensor([[name in v for name in names] for v in shown], dtype=torch.float32)

    wanted = {k: torch.tensor([v.index(getattr(s, k)) for s in scenes]) for k, v in ATTRIBUTES.items()}
    wanted["switches"], wanted["switches?"] = table(SWITCHES)
    wanted["amounts"], wanted["amounts?"] = table(AMOUNTS)
    colour, there = table(("collar colour",))
    wanted["collar colour"], wanted["collar colour?"] = colour[:, 0].long(), there[:, 0]
    return wanted


def reading_loss(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Add the cross-entropy of choices and a smooth L1 loss of amounts, only for what the picture shows."""

    def mean(values: Tensor, shown: Tensor) -> Tensor:
        return (values * shown).sum() / shown.sum().clamp(min=1)

    loss = sum(F.cross_entropy(found[k], wanted[k]) for k in ATTRIBUTES)
    switches = F.binary_cross_entropy_with_logits(found["switches"], wanted["switches"], reduction="none")
    loss = loss + len(SWITCHES) * mean(switches, wanted["switches?"])
    colours = F.cross_entropy(found["collar colour"], wanted["collar colour"], reduction="none")
    amounts = F.smooth_l1_loss(found["amounts"], wanted["amounts"], reduction="none", beta=0.05)
    return loss + mean(colours, wanted["collar colour?"]) + 2 * len(AMOUNTS) * mean(amounts, wanted["amounts?"])


def roughen(x: Tensor, generator: torch.Generator) -> Tensor:
    """Soften, lighten and speckle some of the pictures (n, 3, h, w), so that the reader can also read soft samples."""
    n = len(x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, soft, torch.rand(n, 1, 1, 1, generator=generator))
    light = 0.05 * torch.randn(n, 1, 1, 1, generator=generator)
    speckle = torch.randn(x.shape, generator=generator) * 0.08 * torch.rand(n, 1, 1, 1, generator=generator)
    rough = torch.rand(n, 1, 1, 1, generator=generator) < 0.7
    return torch.where(rough, x + speckle, x) + light


def unexplained(picture: Tensor, drawing: Tensor) -> Tensor:
    """Map where two pictures differ by more than a shift of one pixel: (128, 128), from 0 (they agree) to 1.

    picture, drawing: (3, 128, 128) in [-1, 1]. A median over 5 x 5 pixels removes stars and snowflakes. Each pixel is
    compared with the 3 x 3 pixels around the same place in the other picture. The most similar one counts and, of both
    directions, the worse. Means over windows of 11 x 11 pixels, the size of a paw, keep a missing leg and remove an
    edge that is soft or a pixel off.
    """
    both = around(torch.stack([picture, drawing]), MEDIAN).median(dim=2).values
    near = around(both, 2 * SHIFT + 1)
    nearest = [(a[:, None] - others).square().mean(0).amin(0) for a, others in zip(both, near.flip(0), strict=True)]
    worse = torch.stack(nearest).amax(0).sqrt() / 2
    return F.avg_pool2d(worse[None, None], WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)[0, 0]


def around(pictures: Tensor, size: int) -> Tensor:
    """Return, for each pixel, the pixels in the square around it: (n, c, h, w) -> (n, c, size², h, w)."""
    padded = F.pad(pictures, (size // 2,) * 4, mode="replicate")
    n, c, h, w = pictures.shape
    return F.unfold(padded, size).view(n, c, size**2, h, w)


class Report(NamedTuple):
    """The measurements of one picture of an edit against the ground truth."""

    right: bool  # in all four attributes
    well: bool  # drawn well
    kept: float  # details kept: the share of the unnamed details that agree with the truth, in [0, 1]
    distance: float  # RMSE to the truth, drawn where this picture has its subject, in [0, 1]

    @property
    def success(self) -> bool:
        return self.right and self.well


class Reader:
    """The trained network, and a bound: a picture is drawn well if a drawing leaves less of it unexplained.

    Two heads, missing legs and a smear leave more. The bound is between held-back drawings and monsters, both after
    the VAE (`with_bound`, data/reader/README.md).

    >>> reader = load_reader()
    >>> reader.scene(picture).attributes        # {'subject': 'dog', 'colour': 'brown', ...}

    Pictures are Pillow images of 128x128 or tensors (3, 128, 128) in [-1, 1], or a stack (n, 3, 128, 128) if a method
    takes several. Raises ValueError for any other size.
    """

    def __init__(self, net: ReaderNet, bound: float):
        self.net, self.bound = net.eval(), bound

    @torch.no_grad()
    def guesses(self, pictures: Image.Image | Tensor) -> list[list[Scene]]:
        """For each picture, return the scene that the network reads, then the same scene with another subject, colour
        or pose that the network finds likely enough to try. Stars and snowflakes are not read."""
        stack = as_stack(pictures)
        found = {name: values.float() for name, values in self.net(stack).items()}
        return [
            [from_numbers(attributes, best_numbers(found, k)) for attributes in likely_attributes(found, k)]
            for k in range(len(stack))
        ]

    def glance(self, pictures: Tensor) -> list[Scene]:
        """Return the scene of each picture as the network reads it. Its details are a first guess."""
        return [scenes[0] for scenes in self.guesses(pictures)]

    def scene(self, picture: Image.Image | Tensor) -> Scene:
        """Return the scene that a picture shows, read at a glance and then fitted by drawing it (about a second)."""
        return fit_scene(as_stack(picture)[0], self.guesses(picture)[0])

    def may_be(self, picture: Image.Image | Tensor, truth: Scene) -> bool:
        """Whether it could be right in all four attributes. This takes only a glance, while `scene` needs a second."""
        return any(scene.attributes == truth.attributes for scene in self.guesses(picture)[0])

    def left(self, picture: Image.Image | Tensor, scene: Scene) -> float:
        """Return how much of the picture a drawing of this scene leaves unexplained in the worst window, in [0, 1]."""
        return unexplained(as_stack(picture)[0], as_stack(scene.render())[0]).max().item()

    def drawn_well(self, picture: Image.Image | Tensor) -> bool:
        """Whether a drawing explains the picture. The scene that was read is drawn and compared with it."""
        return self.left(picture, self.scene(picture)) <= self.bound

    def success(self, picture: Image.Image | Tensor, truth: Scene) -> bool:
        """Whether it is right in all four attributes and drawn well, as in `report`; a glance finds most failures."""
        return self.may_be(picture, truth) and self.report(picture, truth).success

    def report(self, picture: Image.Image | Tensor, truth: Scene, before: Scene | None = None) -> Report:
        """Measure one picture of an edit against the ground truth, with one reading.

        before: scene of the input. Details that it did not show (the socks of a bird that becomes a cat) don't count in
        `kept`.
        """
        scene = self.scene(picture)
        right = scene.attributes == truth.attributes
        moved = replace(truth, identity=replace(truth.identity, x=scene.identity.x, depth=scene.identity.depth))
        distance = ((as_stack(picture)[0] - as_stack(moved.render())[0]) / 2).square().mean().sqrt().item()
        well = self.left(picture, scene) <= self.bound
        return Report(right, well, share_kept(scene, truth, before), distance)

    def save(self, path: Path) -> None:
        """Write the weights in half precision, and the bound, to a safetensors file."""
        half = {name: weights.half() for name, weights in self.net.state_dict().items()}
        save_tensors(path, half, {"bound": self.bound})


def as_stack(picture: Image.Image | Tensor) -> Tensor:
    """Return a stack of pictures, (n, 3, 128, 128) in [-1, 1]. Raises ValueError for another size."""
    if not isinstance(picture, Tensor):
        picture = to_batch(np.asarray(picture.convert("RGB"))[None])
    stack = picture if picture.ndim == 4 else picture[None]
    if stack.shape[1:] != (3, 128, 128):
        raise ValueError(f"the reader reads pictures of 128x128 in RGB, not of shape {tuple(stack.shape[1:])}")
    return stack.float()


def best_attributes(found: dict[str, Tensor], k: int) -> dict[str, str]:
    """Return the most likely subject, colour and place, and the most likely of this subject's poses."""
    chosen = {name: values[int(found[name][k].argmax())] for name, values in ATTRIBUTES.items()}
    poses = POSES_OF[chosen["subject"]]
    scores = {pose: found["pose"][k][i].item() for i, pose in enumerate(ATTRIBUTES["pose"]) if pose in poses}
    return chosen | {"pose": max(scores, key=scores.get)}


def likely_attributes(found: dict[str, Tensor], k: int) -> list[dict[str, str]]:
    """Return the best attributes first, then the same with one of them replaced by another that is at least LIKELY."""
    best, others = best_attributes(found, k), []
    for name in ("subject", "colour", "pose"):
        chances = found[name][k].softmax(0).tolist()
        others += [best | {name: v} for v, p in zip(ATTRIBUTES[name], chances, strict=True) if p >= LIKELY]
    return [best, *(o for o in others if o != best and o["pose"] in POSES_OF[o["subject"]])]


def best_numbers(found: dict[str, Tensor], k: int) -> dict[str, float]:
    numbers = {name: float(logit > 0) for name, logit in zip(SWITCHES, found["switches"][k], strict=True)}
    numbers |= {name: value.item() for name, value in zip(AMOUNTS, found["amounts"][k], strict=True)}
    return numbers | {"collar colour": float(found["collar colour"][k].argmax())}


def train_reader(
    drawings: np.ndarray, softened: np.ndarray, scenes: list[Scene], folder: Path, *, steps=STEPS, seed=0
) -> tuple[ReaderNet, dict]:
    """Learn to read drawings (n, 128, 128, 3) uint8 of *all* combinations. Returns (net, history).

    softened: what the VAE makes of the first drawings, which are a third of each batch.
    """
    torch.manual_seed(seed)
    net = ReaderNet().to(memory_format=torch.channels_last)
    wanted = targets(scenes)
    third = BATCH // 3

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(scenes), (BATCH,), generator=generator)
        which[:third] %= len(softened)
        pixels = np.concatenate([softened[which[:third].numpy()], drawings[which[third:].numpy()]])
        pictures = roughen(to_batch(pixels), generator).contiguous(memory_format=torch.channels_last)
        found = {name: values.float() for name, values in net(pictures).items()}
        return reading_loss(found, {name: values[which] for name, values in wanted.items()})

    history = train_network("reader", net, loss_of, folder, steps=steps, lr=LR, ema=0.995, seed=seed)
    return net.eval().to(memory_format=torch.contiguous_format), history


def with_bound(net: ReaderNet, softened: np.ndarray, spoiled: np.ndarray) -> Reader:
    """Make a reader whose bound separates held-back drawings (softened) from monsters (spoiled), by how much of them a
    drawing leaves unexplained. Both are (n, 128, 128, 3) uint8, as the VAE reconstructs them."""
    reader = Reader(net, 0.0)
    good, bad = ([reader.left(p, reader.scene(p)) for p in to_batch(pictures)] for pictures in (softened, spoiled))
    return Reader(net, best_bound(good, bad))


def best_bound(good: list[float], bad: list[float]) -> float:
    """Return the bound that maximises the smaller of two shares: of `good` up to the bound, and of `bad` above it."""
    good, bad = np.array(good), np.array(bad)
    return max(sorted([*good, *bad]), key=lambda bound: min(np.mean(good <= bound), np.mean(bad > bound)))


def load_reader(path: Path = DATA / "reader" / "reader.safetensors") -> Reader:
    """Load a reader, by default the shipped one. Raises FileNotFoundError, or ValueError for a damaged file."""
    tensors, facts = load_tensors(path)
    net = ReaderNet()
    net.load_state_dict(tensors)
    return Reader(net, facts["bound"])
