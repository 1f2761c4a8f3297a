"""A loss is a number that is 0 for the right answer and grows with the error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagic_lib import losses

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


def noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None)
@given(shapes, st.integers(0, 99))
def test_mse_is_the_mean_of_squares_zero_for_equal_and_symmetric(shape, seed):
    a, b = noise(shape, seed), noise(shape, seed + 100)
    assert losses.mse(a, a) == 0 < losses.mse(a, b) == losses.mse(b, a)
    assert losses.mse(a, b).item() == pytest.approx(((a - b) ** 2).sum().item() / a.numel())


@settings(deadline=None)
@given(st.integers(0, 99), st.floats(0.1, 10))
def test_mse_grows_with_the_square_of_the_error(seed, scale):
    a, error = noise((1, 4, 3, 3), seed), noise((1, 4, 3, 3), seed + 1)
    assert losses.mse(a + scale * error, a).item() == pytest.approx(scale**2 * losses.mse(a + error, a).item())


def test_gradients_equal_finite_differences():
    a, b = noise((2, 4, 3, 3), 0).requires_grad_(True), noise((2, 4, 3, 3), 1)
    assert torch.autograd.gradcheck(lambda x: losses.mse(x, b), a)
