"""What 'wrong' means for a predicted noise. One signature: loss(prediction, target) -> a number."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, Imagic eq. 2 and every diffusion model's training loss. Both (n, 4, h, w)."""
    return F.mse_loss(prediction, target)
