"""The judge: which subject, colour, pose and place does a picture show?

A plain convolutional classifier of drawings. It has no part in making pictures; it only counts how
many of them are right, so that 'this edit worked' is a measurement and not an opinion.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from imagic_lib.models import DATA
from imagic_lib.toyworld.scene import ATTRIBUTES, Scene
from imagic_lib.training.checkpoints import load_tensors


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


def accuracy(judge: Judge, pictures: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share of pictures in which the judge reads what the scene says, attribute by attribute."""
    read = judge.read(pictures)
    return {k: sum(r[k] == getattr(s, k) for r, s in zip(read, scenes, strict=True)) / len(scenes) for k in ATTRIBUTES}


def load_judge(path: Path = DATA / "judge" / "judge.safetensors") -> Judge:
    """The judge that is shipped. Raises ValueError if its file is damaged."""
    judge = Judge()
    judge.load_state_dict(load_tensors(path)[0])
    return judge.eval()
