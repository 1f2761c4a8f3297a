"""What 'wrong' means for a predicted noise. One signature: loss(prediction, target) -> a number.

prediction and target are (n, 4, h, w), of standard deviation about 1; all means are over every number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from imagic_lib.diffusion import mse

__all__ = [
    "discretised_gaussian",
    "hl_gauss",
    "mse",
    "naive_cross_entropy",
    "spatial_kl",
    "spatial_kl_with_mean",
]

WIDTH = 0.25  # of one bin
REACH = 6.0  # the bins go from -REACH to REACH
SIGMA = 0.25  # of the Gaussian that is laid over the bins
VARIANCE = SIGMA**2 + WIDTH**2 / 12  # of that Gaussian when the bins have blurred it: Sheppard's correction


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


def bin_edges(like: Tensor) -> Tensor:
    """The edges of the bins into which noise is cut, (bins + 1,), from -`REACH` to `REACH`, in the type of `like`."""
    return torch.arange(-REACH, REACH + WIDTH / 2, WIDTH, dtype=like.dtype, device=like.device)


def bin_centres(like: Tensor) -> Tensor:
    """Their centres c_k, (bins,)."""
    return bin_edges(like)[:-1] + WIDTH / 2


def discretised_gaussian(prediction: Tensor, target: Tensor) -> Tensor:
    """A cross-entropy for noise done right, and it is the MSE: 2σ² (CE - H) = d² away from the outermost bins.

    Noise is cut into bins of width `WIDTH`. Instead of the true value we take the distribution N(ε, σ²) over
    the bins, instead of the guess N(ε̂, σ²): CE = -Σ_k p_k log q_k, and H, the entropy of p, is its smallest
    value. Between two Gaussians of one σ that excess, a Kullback-Leibler divergence, is (ε - ε̂)² / 2σ². The bins
    blur both a little: `VARIANCE`, σ² + WIDTH²/12, stands for σ².
    """
    edges = bin_edges(target)
    log_p, log_q = log_mass(target, edges, SIGMA), log_mass(prediction, edges, SIGMA)
    excess = (log_p.exp() * (log_p - log_q)).sum(dim=-1)  # CE - H
    return 2 * VARIANCE * excess.mean()


def gaussian_logits(prediction: Tensor) -> Tensor:
    """The logits of the Gaussian around a prediction, -(c_k - ε̂)² / 2σ²: (n, 4, h, w) -> (n, 4, h, w, bins).

    Up to a constant, which a softmax does not see, they are c_k ε̂ / σ² - c_k² / 2σ²: linear in ε̂. σ² is
    `VARIANCE`, which allows for the bins' width.
    """
    return -(bin_centres(prediction) - prediction[..., None]).square() / (2 * VARIANCE)


def expectation(logits: Tensor) -> Tensor:
    """ε̂ = Σ_k q_k c_k with q = softmax(logits): (n, 4, h, w, bins) -> (n, 4, h, w), an ordinary prediction.

    It carries its logits along, as its attribute `logits`, for `hl_gauss`.
    """
    prediction = (logits.softmax(dim=-1) * bin_centres(logits)).sum(dim=-1)
    prediction.logits = logits
    return prediction


def hl_gauss(prediction: Tensor, target: Tensor) -> Tensor:
    """2σ² (CE - H) between N(ε, σ²) over the bins and the *predicted* distribution, which may have any shape.

    HL-Gauss, the histogram loss with Gaussian targets (Imani & White 2018, arXiv 1806.04613; Farebrother et al.
    2024, arXiv 2403.03950). prediction: from a model whose head has a logit for each bin
    (`distribution.with_distribution`), in float32 or better; raises ValueError for any other. Scaled like
    `discretised_gaussian`: as long as the predicted distribution is that Gaussian, this is the MSE.
    """
    logits = getattr(prediction, "logits", None)
    if logits is None:
        raise ValueError(
            "hl_gauss needs a model that predicts distributions, and this prediction has no logits: give the "
            "pipeline that imagic_lab.experiments.distribution.with_distribution(pipe) returns, in float32"
        )
    log_p, log_q = log_mass(target, bin_edges(target), SIGMA), logits.log_softmax(dim=-1)
    return 2 * VARIANCE * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


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
