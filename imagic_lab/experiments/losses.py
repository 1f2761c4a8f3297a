"""Losses for a predicted noise, all with one signature: loss(prediction, target) -> a number.

prediction and target are (n, 4, h, w), with a standard deviation of about 1. Means are over all numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from imagic_lib.diffusion import mse as mse

BIN_WIDTH = 0.25
REACH = 6.0  # the bins go from -REACH to REACH
SIGMA = 0.25  # of the Gaussian that we spread over the bins
VARIANCE = SIGMA**2 + BIN_WIDTH**2 / 12  # of that Gaussian, blurred by the bins (Sheppard's correction)


def naive_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """`F.cross_entropy` on raw noise, which is **unbounded below**; this loss is here to show that it diverges.

    It treats the four channels as classes and the noise as their probabilities, -Σ_c ε_c log softmax(ε̂)_c. PyTorch
    does not object that some of these are negative and that they don't sum to 1. Where the noise is negative, the loss
    falls without bound as the logit falls.
    """
    return F.cross_entropy(prediction, target)


def log_mass(mean: Tensor, edges: Tensor, sigma: float) -> Tensor:
    """Return the log of the probability that N(mean, σ²) gives to each bin: (..., bins), for edges (bins + 1,).

    All steps use logarithms, so that a bin ten σ away still has a gradient.
    """
    a, b = ((edge - mean[..., None]) / sigma for edge in (edges[:-1], edges[1:]))
    flip = a + b > 0  # Φ is precise in its left tail, so bins on the right are mirrored
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    upper = torch.special.log_ndtr(b)
    return upper + torch.log(-torch.expm1(torch.special.log_ndtr(a) - upper))


def bin_edges(like: Tensor) -> Tensor:
    """Return the edges of the bins, (bins + 1,), from -`REACH` to `REACH`, with the dtype of `like`."""
    return torch.arange(-REACH, REACH + BIN_WIDTH / 2, BIN_WIDTH, dtype=like.dtype, device=like.device)


def bin_centres(like: Tensor) -> Tensor:
    """Return the centres c_k of the bins, (bins,)."""
    return bin_edges(like)[:-1] + BIN_WIDTH / 2


def discretised_gaussian(prediction: Tensor, target: Tensor) -> Tensor:
    """A proper cross-entropy for noise, which is again the MSE: 2σ² (CE - H) = d² away from the outermost bins.

    We divide the range of noise into bins of width `BIN_WIDTH` and replace the true value ε by the distribution
    p = N(ε, σ²) over the bins, the guess ε̂ by q = N(ε̂, σ²). Then CE = -Σ_k p_k log q_k, and its smallest value is H,
    the entropy of p. The difference CE - H is a Kullback-Leibler divergence. Between Gaussians of equal σ it is
    (ε - ε̂)² / 2σ². The bins blur both Gaussians a little, hence `VARIANCE` = σ² + BIN_WIDTH²/12 instead of σ².
    """
    edges = bin_edges(target)
    log_p, log_q = log_mass(target, edges, SIGMA), log_mass(prediction, edges, SIGMA)
    excess = (log_p.exp() * (log_p - log_q)).sum(dim=-1)  # CE - H
    return 2 * VARIANCE * excess.mean()


def gaussian_logits(prediction: Tensor) -> Tensor:
    """Return logits of the Gaussian around a prediction, -(c_k - ε̂)² / 2σ²: (n, 4, h, w) -> (n, 4, h, w, bins).

    Except for a constant, which a softmax ignores, they are c_k ε̂ / σ² - c_k² / 2σ², and so linear in ε̂. For σ² we
    take `VARIANCE`, because of the bins' width.
    """
    return -(bin_centres(prediction) - prediction[..., None]).square() / (2 * VARIANCE)


def expectation(logits: Tensor) -> Tensor:
    """ε̂ = Σ_k q_k c_k with q = softmax(logits): (n, 4, h, w, bins) -> (n, 4, h, w), an ordinary prediction.

    Its attribute `logits` keeps the logits for `hl_gauss`.
    """
    prediction = (logits.softmax(dim=-1) * bin_centres(logits)).sum(dim=-1)
    prediction.logits = logits
    return prediction


def hl_gauss(prediction: Tensor, target: Tensor) -> Tensor:
    """2σ² (CE - H) between N(ε, σ²) over the bins and the *predicted* distribution, which can have any shape.

    This is HL-Gauss, the histogram loss with Gaussian targets (Imani & White 2018, arXiv 1806.04613; Farebrother et al.
    2024, arXiv 2403.03950). It is scaled as `discretised_gaussian`, so if the predicted distribution is that Gaussian,
    this is the MSE. prediction: from a model whose head has a logit for each bin (`distribution.with_distribution`),
    in float32 or better. Raises ValueError for any other.
    """
    logits = getattr(prediction, "logits", None)
    if logits is None:
        raise ValueError(
            "hl_gauss needs a model that predicts distributions, and this prediction has no logits: use the pipeline "
            "that imagic_lab.experiments.distribution.with_distribution(pipe) returns, in float32"
        )
    log_p, log_q = log_mass(target, bin_edges(target), SIGMA), logits.log_softmax(dim=-1)
    return 2 * VARIANCE * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


def spatial_kl(prediction: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """2τ² KL(p ‖ q), with p, q = softmax of each channel over its places. Bounded, but **blind to a channel's mean**.

    A softmax ignores an added constant, so nothing controls the mean of the predicted noise. This loss is channel-wise
    distillation (Shu et al. 2021, arXiv 2011.13256). For large τ it approaches the variance of the difference over the
    places.
    """
    log_p, log_q = ((x.flatten(2) / temperature).log_softmax(dim=-1) for x in (target, prediction))
    return 2 * temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


def spatial_kl_with_mean(prediction: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """`spatial_kl`, plus the squared difference of the channels' means, which that loss ignores.

    Variance + mean² is the mean square, so for large τ this is the MSE.
    """
    missed = (prediction - target).mean(dim=(2, 3)).square().mean()
    return spatial_kl(prediction, target, temperature) + missed
