"""The judge: which subject, colour, pose and place does a picture show?

A plain convolutional classifier of drawings. It has no part in making pictures; it only counts how
many of them are right, so that 'this edit worked' is a measurement and not an opinion.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagic_lib.models import DATA
from imagic_lib.toyworld.scene import ATTRIBUTES, Scene
from imagic_lib.toyworld.training import train
from imagic_lib.toyworld.vae import to_tensor
from imagic_lib.training.checkpoints import load_tensors

STEPS, LR, BATCH = 2000, 2e-3, 64


class Judge(nn.Module):
    """(n, 3, 128, 128) in [-1, 1] -> one vector of logits for each attribute."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        for a, b in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
        layers += [nn.Conv2d(128, 128, 3, padding=1), nn.GroupNorm(8, 128), nn.SiLU(), nn.Flatten()]
        layers += [nn.Dropout(0.2), nn.Linear(128 * 16, 256), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({k: nn.Linear(256, len(v)) for k, v in ATTRIBUTES.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.trunk(pictures)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[dict[str, str]]:
        """What each picture shows, e.g. {'subject': 'dog', 'colour': 'brown', ...}."""
        self.eval()
        best = {name: logits.argmax(dim=1).tolist() for name, logits in self(pictures).items()}
        return [{k: ATTRIBUTES[k][best[k][i]] for k in ATTRIBUTES} for i in range(len(pictures))]


def roughen(x: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, noise and a shift of brightness, so that the judge reads soft pictures as well as crisp ones."""
    n = len(x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = torch.rand(n, 1, 1, 1, generator=generator)
    x = torch.lerp(x, soft, amount)
    light = 0.06 * torch.randn(n, 1, 1, 1, generator=generator)
    noise = torch.randn(x.shape, generator=generator) * 0.08 * torch.rand(n, 1, 1, 1, generator=generator)
    return x + light + noise


def train_judge(pictures: np.ndarray, scenes: list[Scene], folder: Path, *, steps=STEPS, seed=0, bf16=False):
    """Learn to read drawings of *all* combinations, the held-out ones too: it must judge those."""
    torch.manual_seed(seed)
    judge = Judge()
    labels = {k: torch.tensor([v.index(getattr(s, k)) for s in scenes]) for k, v in ATTRIBUTES.items()}

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(scenes), (BATCH,), generator=generator)
        logits = judge(roughen(to_tensor(pictures[which.numpy()]), generator))
        return sum(F.cross_entropy(logits[k], labels[k][which]) for k in ATTRIBUTES)

    history = train("judge", judge, loss_of, folder, steps=steps, lr=LR, ema=0.99, seed=seed, bf16=bf16)
    return judge.eval(), history


def accuracy(judge: Judge, pictures: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share of pictures in which the judge reads what the scene says, attribute by attribute."""
    read = judge.read(pictures)
    return {k: sum(r[k] == getattr(s, k) for r, s in zip(read, scenes, strict=True)) / len(scenes) for k in ATTRIBUTES}


def load_judge(path: Path = DATA / "judge" / "judge.safetensors") -> Judge:
    """The judge that is shipped. Raises ValueError if its file is damaged."""
    judge = Judge()
    judge.load_state_dict(load_tensors(path)[0])
    return judge.eval()
