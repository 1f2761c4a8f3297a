"""What all stages share: latents, noising, the prediction target, the probe."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from imagic_lib.arguments import check_one_image_one_embedding
from imagic_lib.diffusion import (
    Probe,
    decode_latents,
    encode_image,
    forward_process,
    frozen,
    noised,
    stratified_timesteps,
)
from tests.common import seeded


def test_latents_are_scaled_by_the_models_own_factor(pipe, image):
    """Bug 7: a hard-coded 0.18215."""
    raw = pipe.vae.encode(image).latent_dist.mode()
    torch.testing.assert_close(encode_image(pipe, image), raw * pipe.vae.config.scaling_factor)
    other = copy.deepcopy(pipe)
    other.vae.register_to_config(scaling_factor=0.5)
    torch.testing.assert_close(encode_image(other, image), raw * 0.5)
    torch.testing.assert_close(decode_latents(other, raw * 0.5), pipe.vae.decode(raw).sample.clamp(-1, 1))


def test_noising_is_the_models_own_process_whatever_the_sampler(pipe):
    """Bug 8: schedulers whose add_noise is sigma-based (Euler, LMS) used as if they were DDPM."""
    x, noise, t = torch.randn(3, 4, 16, 16), torch.randn(3, 4, 16, 16), torch.tensor([0, 500, 999])
    expected = forward_process(pipe).add_noise(x, noise, t)
    other = copy.deepcopy(pipe)
    other.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(forward_process(other).add_noise(x, noise, t), expected)
    a = pipe.scheduler.alphas_cumprod[t][:, None, None, None]
    torch.testing.assert_close(expected, a.sqrt() * x + (1 - a).sqrt() * noise)


def test_prediction_target_follows_the_config(pipe):
    """Bug 7: ε-prediction taken for granted."""
    x, noise, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([100, 900])
    assert torch.equal(noised(forward_process(pipe), x, noise, t)[1], noise)
    other = copy.deepcopy(pipe)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    a = pipe.scheduler.alphas_cumprod[t][:, None, None, None]
    torch.testing.assert_close(noised(forward_process(other), x, noise, t)[1], a.sqrt() * noise - (1 - a).sqrt() * x)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="sample")
    with pytest.raises(ValueError, match="'sample' is not supported"):
        noised(forward_process(other), x, noise, t)


def test_timesteps_cover_every_stratum_of_the_models_own_range():
    """Bug 7: 1000 timesteps taken for granted."""
    for total in (1000, 40):
        t = stratified_timesteps(8, total, seeded())
        assert [int(v) * 8 // total for v in t] == list(range(8)) and t.max() < total
    drawn = torch.cat([stratified_timesteps(1, 1000, seeded(s)) for s in range(2000)])
    assert 470 < drawn.float().mean() < 530 and drawn.min() < 10 and drawn.max() > 990


def test_a_bias_draws_late_timesteps_more_often():
    """With bias b the density is proportional to t^b, the mean is (b + 1) / (b + 2), the median 2^(-1 / (b + 1))."""
    for bias in (0.0, 1.0, 3.0):
        t = torch.cat([stratified_timesteps(8, 1000, seeded(s), bias) for s in range(500)]).float() / 1000
        assert t.mean().item() == pytest.approx((bias + 1) / (bias + 2), abs=0.01)
        assert t.median().item() == pytest.approx(2 ** (-1 / (bias + 1)), abs=0.01) and t.max() < 1


def test_probe_is_the_same_number_twice_and_is_the_mean_of_its_pairs(pipe, image, e_tgt):
    process, latents = forward_process(pipe), encode_image(pipe, image)
    probe = Probe(process, latents)
    assert probe(pipe.unet, e_tgt) == Probe(process, latents)(pipe.unet, e_tgt)
    with torch.no_grad():
        answer = pipe.unet(probe.z_t, probe.t, e_tgt.expand(8, -1, -1)).sample
    assert probe(pipe.unet, e_tgt) == pytest.approx((answer - probe.target).square().mean().item(), rel=1e-5)


def test_probe_looks_at_the_middle_of_every_eighth_of_the_time_and_asks_for_the_noise(pipe, image):
    z = encode_image(pipe, image)
    probe = Probe(forward_process(pipe), z)
    assert probe.t.tolist() == [62, 187, 312, 437, 562, 687, 812, 937]
    assert 0.95 < probe.target.std() < 1.05 and abs(probe.target.mean()) < 0.05
    assert len({float(noise[0, 0, 0]) for noise in probe.target}) == 8, "a noise for each"
    a = pipe.scheduler.alphas_cumprod[probe.t][:, None, None, None]
    torch.testing.assert_close(probe.z_t, a.sqrt() * z + (1 - a).sqrt() * probe.target)


def test_anything_but_one_picture_and_one_embedding_is_one_clear_sentence(image, e_tgt):
    check_one_image_one_embedding(image, e_tgt)
    for picture in (image[0], image.expand(2, -1, -1, -1), image[:, :1]):
        with pytest.raises(ValueError, match=r"the picture has the shape .*: use load_image"):
            check_one_image_one_embedding(picture, e_tgt)
    for embedding in (e_tgt[0], e_tgt.expand(2, -1, -1)):
        with pytest.raises(ValueError, match=r"the embedding has the shape .*, not \(1, tokens, width\)"):
            check_one_image_one_embedding(image, embedding)
    for pair in ((image * float("nan"), e_tgt), (image, e_tgt / 0)):
        with pytest.raises(ValueError, match="values that are not finite"):
            check_one_image_one_embedding(*pair)


def test_frozen_weights_need_no_gradients_and_are_as_before_afterwards():
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    two.bias.requires_grad_(False)  # it was frozen already, and stays so
    with pytest.raises(KeyError), frozen(one, two):
        assert not any(p.requires_grad for module in (one, two) for p in module.parameters())
        raise KeyError
    assert [p.requires_grad for module in (one, two) for p in module.parameters()] == [True, True, True, False]
