"""Stage 3 is one line; these are the promises that the line makes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagic_lib import interpolate

E_TGT = torch.randn(1, 7, 5, generator=torch.Generator().manual_seed(0))
E_OPT = torch.randn(1, 7, 5, generator=torch.Generator().manual_seed(1))
etas = st.floats(-3, 3, width=32)


def test_eta_0_is_e_opt_and_eta_1_is_e_tgt_exactly():
    assert torch.equal(interpolate(E_TGT, E_OPT, 0), E_OPT) and torch.equal(interpolate(E_TGT, E_OPT, 1), E_TGT)


@given(etas, etas)
def test_it_is_linear_also_outside_0_to_1(a, b):
    middle = interpolate(E_TGT, E_OPT, (a + b) / 2)
    torch.testing.assert_close(
        middle, (interpolate(E_TGT, E_OPT, a) + interpolate(E_TGT, E_OPT, b)) / 2, rtol=1e-4, atol=1e-5
    )


@given(st.lists(etas, min_size=1, max_size=5))
def test_several_etas_are_the_same_as_one_by_one(values):
    together = interpolate(E_TGT, E_OPT, values)
    assert together.shape == (len(values), 7, 5)
    for value, row in zip(values, together, strict=True):
        assert torch.equal(row[None], interpolate(E_TGT, E_OPT, value))


@given(etas)
def test_swapping_the_ends_mirrors_eta(eta):
    torch.testing.assert_close(interpolate(E_TGT, E_OPT, eta), interpolate(E_OPT, E_TGT, 1 - eta), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eta", [float("nan"), float("inf"), [0.5, float("nan")]])
def test_an_eta_that_is_not_finite_is_refused(eta):
    with pytest.raises(ValueError, match="η must be a number within ±10"):
        interpolate(E_TGT, E_OPT, eta)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_result_keeps_the_precision_of_the_embeddings(dtype):
    assert interpolate(E_TGT.to(dtype), E_OPT.to(dtype), [0, 0.5]).dtype == dtype


def test_embeddings_of_two_models_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        interpolate(E_TGT, torch.zeros(1, 7, 6), 0.5)


def test_no_eta_is_one_clear_sentence():
    with pytest.raises(ValueError, match="or a list of at least one"):
        interpolate(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), [])
