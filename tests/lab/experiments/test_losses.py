"""The losses: what they measure, where they are smallest, and the one that has no smallest value."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import imagic_lib as imagic
from imagic_lab.experiments import distribution, losses
from imagic_lab.numbers.hl_gauss_head import save_head
from imagic_lab.toyworld import dataset
from imagic_lib.diffusion import Probe, forward_process

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
    """Bug 14 of the public implementations, whose loss falls and falls while the prediction gets worse."""
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


# --- HL-Gauss: a distribution is predicted, and a head for it is learned


def logits_of(seed: int, scale: float = 1.0) -> torch.Tensor:
    """Random logits for noise of shape (2, 4, 4, 4)."""
    return scale * noise(seed, 2, 4, 4, 4, len(losses.bin_centres(torch.zeros(1))))


@pytest.fixture(scope="module")
def tiny():
    return imagic.load_pipeline("tiny", device="cpu")


@pytest.fixture(scope="module")
def image(pipe):
    return torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.fixture(scope="module")
def e_tgt(pipe):
    return imagic.encode_text(pipe, "a brown dog jumping on the grass")


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0, 5))
def test_hl_gauss_is_never_negative_and_its_prediction_is_the_distributions_mean(seed, scale):
    prediction, target = losses.expectation(logits_of(seed, scale)), noise(seed + 1)
    assert losses.hl_gauss(prediction, target).item() > 0
    chances = prediction.logits.softmax(dim=-1)
    assert torch.allclose(prediction, chances @ losses.bin_centres(target), atol=1e-9)
    assert prediction.abs().max() < losses.REACH


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_hl_gauss_is_smallest_where_the_prediction_is_the_smoothed_target(seed):
    target = noise(seed).clamp(-3, 3)
    log_p = losses.log_mass(target, losses.bin_edges(target), losses.SIGMA)
    assert losses.hl_gauss(losses.expectation(log_p), target).item() == pytest.approx(0, abs=1e-9)
    assert losses.hl_gauss(losses.expectation(log_p + 0.3 * logits_of(seed + 1)), target).item() > 1e-4


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), distance=st.floats(0.1, 2))
def test_hl_gauss_of_a_gaussian_of_the_same_width_is_the_mse(seed, distance):
    target = noise(seed).clamp(-2, 2)
    guess = target + distance * noise(seed + 1).clamp(-1, 1)
    prediction = losses.expectation(losses.gaussian_logits(guess))
    assert torch.allclose(prediction, guess, atol=1e-6), "the mean over the bins is the guess"
    expected = losses.mse(guess, target).item()
    assert losses.hl_gauss(prediction, target).item() == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_hl_gauss_gradients_against_finite_differences_and_they_are_q_minus_p():
    target, logits = noise(0), logits_of(1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: losses.hl_gauss(losses.expectation(x), target), logits, fast_mode=True)
    losses.hl_gauss(losses.expectation(logits), target).backward()
    p = losses.log_mass(target, losses.bin_edges(target), losses.SIGMA).exp()
    expected = 2 * losses.VARIANCE * (logits.softmax(dim=-1) - p) / target.numel()
    assert torch.allclose(logits.grad, expected, atol=1e-9)


def test_hl_gauss_is_finite_with_a_gradient_far_away_in_float32():
    guess = torch.full((1, 4, 2, 2), 5.0, requires_grad=True)
    loss = losses.hl_gauss(losses.expectation(losses.gaussian_logits(guess)), torch.full((1, 4, 2, 2), -5.0))
    loss.backward()
    assert torch.isfinite(loss) and (guess.grad > 0).all()


def test_the_gaussian_around_a_linear_guess_is_a_linear_layer():
    """W_k = (c_k / σ²) W and b_k = (c_k b) / σ² - c_k² / 2σ²: a plain head of logits can begin as the old model."""
    weight, bias, x = noise(0, 5), noise(1, 1), noise(2, 7, 5)
    c = losses.bin_centres(x)
    logits = x @ (weight[:, None] * c / losses.VARIANCE) + bias * c / losses.VARIANCE - c**2 / (2 * losses.VARIANCE)
    expected = losses.gaussian_logits(x @ weight + bias)
    assert torch.allclose(logits.softmax(dim=-1), expected.softmax(dim=-1))


def test_a_model_without_the_head_is_refused_in_one_sentence(pipe, image, e_tgt):
    with pytest.raises(ValueError, match=r"with_distribution\(pipe\)"):
        losses.hl_gauss(noise(0), noise(1))
    with pytest.raises(ValueError, match="no logits"):
        imagic.optimize_embedding(pipe, image, e_tgt, steps=1, run=imagic.Run(loss=losses.hl_gauss))
    with pytest.raises(ValueError, match="another model"):
        distribution.with_distribution(pipe)  # the learned head is tiny-sd's


def test_the_head_starts_as_the_same_model_and_the_loaded_one_is_untouched(pipe, e_tgt):
    before, plain = pipe.unet.conv_out, {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    headed = distribution.with_distribution(pipe, learned=False)
    z, t = noise(0, 2, 4, 16, 16, dtype=torch.float32), torch.tensor([10, 900])
    with torch.no_grad():
        old = pipe.unet(z, t, e_tgt.expand(2, -1, -1)).sample
        new = headed.unet(z, t, e_tgt.expand(2, -1, -1)).sample
    assert torch.allclose(old, new, atol=1e-4) and not hasattr(old, "logits")
    assert new.logits.shape == (*new.shape, headed.unet.conv_out.bins)
    assert pipe.unet.conv_out is before and all(torch.equal(v, plain[k]) for k, v in pipe.unet.state_dict().items())


def test_both_stages_run_with_hl_gauss_and_stage_2_trains_the_head(pipe, image, e_tgt):
    headed = distribution.with_distribution(pipe, learned=False)
    hl_gauss = imagic.Run(loss=losses.hl_gauss)  # a probe at the start and one at the end
    e_opt, first = imagic.optimize_embedding(headed, image, e_tgt, steps=3, run=hl_gauss)
    assert not torch.equal(e_opt, e_tgt) and first.probe_loss[-1] < first.probe_loss[0]
    tuned, second = imagic.fine_tune(headed, image, e_opt, steps=3, run=hl_gauss)
    assert second.probe_loss[-1] < second.probe_loss[0]
    for name, layer in tuned.unet.conv_out.learned.items():
        assert layer.weight.abs().max() > 0 and headed.unet.conv_out.learned[name].weight.abs().max() == 0
    assert len(imagic.generate(tuned, e_opt, steps=2)) == 1
    adapted, third = imagic.fine_tune(headed, image, e_opt, method="lora", steps=2, run=hl_gauss)
    assert third.probe_loss[-1] < third.probe_loss[0]
    assert not adapted.unet.conv_out.learned["shape"].weight.any(), "LoRA leaves the head alone"


def test_a_head_is_saved_and_put_back_with_its_facts(pipe, tmp_path):
    one, other = (distribution.DistributionHead(pipe.unet.conv_out) for _ in range(2))
    with torch.no_grad():
        for weight in one.learned.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(0))
    save_head(one, tmp_path / "head.safetensors", {"steps": 7})
    assert distribution.load_head(other, tmp_path / "head.safetensors")["steps"] == 7
    pairs = zip(one.learned.parameters(), other.learned.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in pairs)


def test_the_shipped_head_is_small_and_fits_drawings_that_nobody_saw(tiny):
    """Its distributions fit better than a Gaussian of one width, and its mean is as good as the plain prediction."""
    assert distribution.HEAD_FILE.stat().st_size < 400_000
    plain, learned = (distribution.with_distribution(tiny, learned=one).unet for one in (False, True))
    start, better = torch.zeros(2), torch.zeros(2)
    for scene in dataset.test_scenes(2):
        z = imagic.encode_image(tiny, imagic.load_image(scene.render(), tiny))
        probe, e = Probe(forward_process(tiny), z), imagic.encode_text(tiny, scene.caption())
        for unet, scores in ((plain, start), (learned, better)):
            with torch.no_grad():
                answer = unet(probe.z_t, probe.t, e.expand(len(probe.t), -1, -1)).sample
            scores += torch.stack([losses.hl_gauss(answer, probe.target), losses.mse(answer, probe.target)])
    print(start, better, better / start)
    assert better[0] < 0.8 * start[0] and better[1] < 1.02 * start[1]


# --- the experiment


def test_the_stored_experiment_tries_every_loss_on_every_pair_in_both_stages():
    runs = json.loads((imagic.DATA / "experiments" / "cross-entropy.json").read_text())["runs"]
    tried = [(run["picture"], run["seed"], run["stage_1"], run["stage_2"]) for run in runs]
    names = [loss.__name__ for loss in (*EVERY, losses.hl_gauss)] + ["naive_cross_entropy_slow"]
    expected = {(a, "mse") for a in [*names, "mse_slow"]} | {("mse", b) for b in names}
    assert len(tried) == len(set(tried)) and {(a, b) for *_, a, b in tried} == expected
    for pair in {(picture, seed) for picture, seed, *_ in tried}:
        assert {(a, b) for *found, a, b in tried if tuple(found) == pair} == expected, pair
