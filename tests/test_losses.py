"""The losses: what they measure, where they are smallest, and the one that has no smallest value."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagic_lib import losses

PROPER = (losses.mse, losses.discretised_gaussian, losses.spatial_kl_with_mean)
EVERY = (*PROPER, losses.spatial_kl, losses.naive_cross_entropy)


def noise(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*(shape or (2, 4, 4, 4)), generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 3))
def test_mse_is_the_mean_square_zero_at_home_and_symmetric(seed, scale):
    a, b = noise(seed), scale * noise(seed + 1)
    assert losses.mse(a, b).item() == pytest.approx(((a - b) ** 2).mean().item())
    assert losses.mse(a, a) == 0 and losses.mse(a, b) == losses.mse(b, a)


@pytest.mark.parametrize("loss", PROPER, ids=lambda f: f.__name__)
@settings(deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.05, 1.5))
def test_a_proper_loss_is_zero_at_the_target_alone(loss, seed, scale):
    target = noise(seed)
    assert loss(target, target).item() == pytest.approx(0, abs=1e-12)
    assert loss(target + scale * noise(seed + 1), target).item() > 1e-4
    assert loss(target + scale, target).item() > 1e-4, "a shift of everything must cost, too"


@pytest.mark.parametrize("loss", EVERY, ids=lambda f: f.__name__)
def test_gradients_against_finite_differences(loss):
    target, prediction = noise(0, 1, 4, 2, 2), noise(1, 1, 4, 2, 2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), prediction)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), distance=st.floats(0.01, 2))
def test_the_discretised_gaussian_is_the_mse_away_from_the_outermost_bins(seed, distance):
    target = noise(seed).clamp(-2, 2)
    prediction = target + distance * noise(seed + 1).clamp(-1, 1)
    expected = losses.mse(prediction, target).item()
    assert losses.discretised_gaussian(prediction, target).item() == pytest.approx(expected, rel=0.02)


def test_the_discretised_gaussian_is_finite_with_a_gradient_ten_sigma_away_in_float32():
    prediction = torch.full((1, 4, 2, 2), 5.5, requires_grad=True)
    loss = losses.discretised_gaussian(prediction, torch.full((1, 4, 2, 2), -5.0))
    loss.backward()
    assert torch.isfinite(loss) and (prediction.grad > 0).all()


def test_the_spatial_divergence_is_blind_to_a_channels_mean_and_its_companion_is_not():
    target, prediction = noise(0), noise(1)
    shift = torch.tensor([3.0, -2.0, 1.0, 0.5], dtype=torch.float64)[:, None, None]
    plain = losses.spatial_kl(prediction, target).item()
    assert losses.spatial_kl(prediction + shift, target).item() == pytest.approx(plain)
    assert losses.spatial_kl_with_mean(prediction + shift, target) > losses.spatial_kl_with_mean(prediction, target) + 1


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_at_a_high_temperature_the_spatial_divergence_with_mean_is_the_mse(seed):
    target, prediction = noise(seed), noise(seed + 1)
    expected = losses.mse(prediction, target).item()
    assert losses.spatial_kl_with_mean(prediction, target, 1000.0).item() == pytest.approx(expected, rel=0.02)


def test_the_naive_cross_entropy_has_no_smallest_value_and_leads_away_from_the_noise():
    """Bug 14 of the public implementations: the loss falls and falls while the prediction gets worse."""
    target, free = noise(0, 1, 4, 8, 8), torch.zeros(1, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([free], lr=1.0)
    values = []
    for _ in range(400):
        loss = losses.naive_cross_entropy(free, target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        values.append(loss.item())
    assert values[-1] < -100 and values[-1] < values[200] < values[50] < 0, "a true cross-entropy is never below 0"
    assert losses.mse(free, target).item() > 1000, "while the squared error starts at 1"
