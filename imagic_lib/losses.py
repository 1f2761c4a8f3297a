"""What 'wrong' means for a predicted noise. One signature: loss(prediction, target) -> a number.

prediction and target are (n, 4, h, w), of standard deviation about 1; all means are over every number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
WIDTH, REACH, SIGMA = 0.25, 6.0, 0.25  # of the bins, of all bins to either side, of the Gaussian on them


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, Imagic eq. 2 and every diffusion model's training loss. Both (n, 4, h, w)."""
    return F.mse_loss(prediction, target)


def naive_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """`F.cross_entropy` on raw noise: **unbounded below**, here to show that it diverges.

    It takes the four channels for classes and the noise for their probabilities, -Σ_c ε_c log softmax(ε̂)_c,
    and PyTorch does not object that these are negative and sum to no 1. A large logit where the noise is
    negative costs nothing and gains without end.
    """
    return F.cross_entropy(prediction, target)


def log_mass(mean: Tensor, edges: Tensor, sigma: float) -> Tensor:
    """log of the probability that N(mean, σ²) gives to each bin; (..., bins) for edges (bins + 1,).

    In logarithms throughout, so that a bin ten σ away still has a gradient.
    """
    a, b = ((edge - mean[..., None]) / sigma for edge in (edges[:-1], edges[1:]))
    flip = a + b > 0  # Φ is precise in its left tail: look at bins on the right in a mirror
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    upper = torch.special.log_ndtr(b)
    return upper + torch.log(-torch.expm1(torch.special.log_ndtr(a) - upper))


def discretised_gaussian(prediction: Tensor, target: Tensor) -> Tensor:
    """A cross-entropy for noise done right, and it is the MSE: 2σ² (CE - H) = d² away from the outermost bins.

    Noise is cut into bins of width `WIDTH`. Instead of the true value we take the distribution N(ε, σ²) over
    the bins, instead of the guess N(ε̂, σ²): CE = -Σ_k p_k log q_k, and H, the entropy of p, is its smallest
    value. Between two Gaussians of one σ that excess, a Kullback-Leibler divergence, is (ε - ε̂)² / 2σ². The bins
    blur both a little: σ² + WIDTH²/12 stands for σ² (Sheppard's correction).
    """
    edges = torch.arange(-REACH, REACH + WIDTH / 2, WIDTH, dtype=target.dtype, device=target.device)
    log_p, log_q = log_mass(target, edges, SIGMA), log_mass(prediction, edges, SIGMA)
    excess = (log_p.exp() * (log_p - log_q)).sum(dim=-1)  # CE - H
    return 2 * (SIGMA**2 + WIDTH**2 / 12) * excess.mean()


def spatial_kl(prediction: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """2τ² KL(p ‖ q), with p, q = softmax of each channel over its places: bounded, and **blind to a channel's mean**.

    A softmax does not change when a constant is added, so nothing holds the mean of the predicted noise.
    Channel-wise distillation (Shu et al. 2021, arXiv 2011.13256). For large τ it becomes the variance of the
    difference over the places.
    """
    log_p, log_q = ((x.flatten(2) / temperature).log_softmax(dim=-1) for x in (target, prediction))
    return 2 * temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


def spatial_kl_with_mean(prediction: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """`spatial_kl` and the squared difference of the channels' means, which it can't see.

    Variance + mean² is the mean square: for large τ this is the MSE.
    """
    missed = (prediction - target).mean(dim=(2, 3)).square().mean()
    return spatial_kl(prediction, target, temperature) + missed
