"""The picture's own noise: it rebuilds the picture exactly, is diffusers' DDPM step, and says what it can't do."""

import pytest
import torch
from diffusers import DDIMScheduler

import imagic_lib as imagic
from imagic_lib.diffusion import encode_image
from imagic_lib.stage3_interpolation import interpolate
from imagic_lib.stage4_inference import NoisePath, ddpm_mean, generate, own_noise, sampler
from imagic_lib.training.loop import Run
from imagic_lib.unets import LoRA

STEPS = 4
QUICK = Run(bar=False)


@pytest.fixture(scope="module")
def e_opt(e_tgt):
    return e_tgt + 0.3 * torch.randn(e_tgt.shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["full", LoRA(2, ["to_q", "to_v"])], ids=["full", "lora"])
def tuned(request, pipe, image, e_opt):
    return imagic.fine_tune(pipe, image, e_opt, method=request.param, steps=2, lr=1e-2, run=QUICK)[0]


def last_latents(pipe, embedding, path, monkeypatch, **settings):
    """The latents that `generate` hands to the VAE, (n, 4, h, w)."""
    found, decode = [], imagic.stage4_inference.decode_latents
    monkeypatch.setattr(imagic.stage4_inference, "decode_latents", lambda p, z: found.append(z) or decode(p, z))
    generate(pipe, embedding, (3, 4), noise=path, **settings)
    return torch.cat(found)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.7])
def test_at_eta_0_the_latents_of_the_input_come_back_whatever_the_scale(tuned, image, e_tgt, e_opt, scale, monkeypatch):
    path = own_noise(tuned, image, e_opt, (3, 4), steps=STEPS, scale=scale)
    z = last_latents(tuned, interpolate(e_tgt, e_opt, 0), path, monkeypatch, scale=scale)
    assert (z - encode_image(tuned, image)).abs().max() < 1e-4
    edited = last_latents(tuned, e_tgt, path, monkeypatch, scale=scale)
    assert (edited - encode_image(tuned, image)).abs().max() > 1e-3  # another embedding does change it


@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_it_holds_with_guidance_and_for_both_predictions(pipe, image, e_opt, guidance, kind, monkeypatch):
    scheduler = pipe.scheduler
    pipe.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=kind)
    try:
        given = {"steps": STEPS, "guidance_scale": guidance}
        path = own_noise(pipe, image, e_opt, (3, 4), **given)
        z = last_latents(pipe, e_opt, path, monkeypatch, **given)
    finally:
        pipe.scheduler = scheduler
    assert (z - encode_image(pipe, image)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_mean_of_a_step_is_that_of_diffusers_ddim_with_eta_1(pipe, kind):
    scheduler = DDIMScheduler.from_config(sampler(pipe, "ddim").config, prediction_type=kind)
    scheduler.set_timesteps(STEPS)
    z, answer = torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for index, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(answer, t, z, eta=1.0, variance_noise=torch.zeros_like(z)).prev_sample
        assert torch.allclose(ddpm_mean(scheduler, z, answer, index), theirs, atol=1e-5)


def test_the_walk_passes_the_noised_picture_at_every_level_with_a_noise_of_its_own(pipe, image, e_opt):
    seen, path = [], own_noise(pipe, image, e_opt, (3,), steps=STEPS)
    generate(pipe, e_opt, (3,), noise=path, callback=seen.append)
    z_0, levels = encode_image(pipe, image), pipe.scheduler.alphas_cumprod
    noises = [(step.z_t - levels[step.timestep].sqrt() * z_0) / (1 - levels[step.timestep]).sqrt() for step in seen]
    assert all(abs(noise.std() - 1) < 0.1 for noise in noises)
    between = torch.corrcoef(torch.stack([noise.flatten() for noise in noises])) - torch.eye(len(noises))
    assert between.abs().max() < 0.15  # independent of each other


def test_a_seed_has_its_own_path_and_always_the_same(pipe, image, e_opt):
    both, second = (own_noise(pipe, image, e_opt, seeds, steps=STEPS) for seeds in ((3, 4), (4,)))
    assert torch.allclose(both.start[1:], second.start) and torch.allclose(both.added[:, 1:], second.added, atol=1e-4)
    assert not torch.allclose(both.start[0], both.start[1])


def test_every_embedding_is_drawn_along_the_path_of_its_seed(pipe, image, e_tgt, e_opt, monkeypatch):
    path = own_noise(pipe, image, e_opt, (3, 4), steps=STEPS)
    together = last_latents(pipe, interpolate(e_tgt, e_opt, [0.0, 1.0]), path, monkeypatch)
    alone = last_latents(pipe, e_tgt, path, monkeypatch)
    assert torch.allclose(together[2:], alone, atol=1e-4)
    monkeypatch.setitem(imagic.stage4_inference.AT_ONCE, "tiny", 1)
    assert torch.allclose(last_latents(pipe, e_tgt, path, monkeypatch), alone, atol=1e-4)
    one_by_one = own_noise(pipe, image, e_opt, (3, 4), steps=STEPS)
    assert torch.allclose(one_by_one.added, path.added, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 5}, "use the same steps and seeds"),
        ({"seeds": (3,)}, "use the same steps and seeds"),
        ({"scheduler": "ddim"}, "leave scheduler out, or leave noise out"),
    ],
)
def test_a_path_for_something_else_is_one_sentence(pipe, image, e_opt, settings, sentence):
    path = own_noise(pipe, image, e_opt, (3, 4), steps=STEPS)
    with pytest.raises(ValueError, match=sentence):
        generate(pipe, e_opt, **{"seeds": (3, 4), "noise": path} | settings)


def test_a_path_of_another_size_is_one_sentence(pipe, image, e_opt):
    path = own_noise(pipe, image, e_opt, steps=STEPS)
    with pytest.raises(ValueError, match="this noise path has a start of"):
        generate(pipe, e_opt, noise=NoisePath(path.start[..., :8], path.added[..., :8]))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps is 0: it must be above 0"),
        ({"scale": 2.5}, "scale is 2.5: it goes from 0"),
        ({"seeds": []}, "seeds must be a list"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_invalid_settings_are_one_sentence(pipe, image, e_opt, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        own_noise(pipe, image, e_opt, **settings)
    with pytest.raises(ValueError, match="the embedding has the shape"):
        own_noise(pipe, image, e_opt[0])
