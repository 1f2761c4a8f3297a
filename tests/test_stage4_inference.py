"""Stage 4 against ground truth: diffusers' own pipeline, bit for bit."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import BatchFeature

import imagic_lib as imagic
from imagic_lib import stage4_inference
from imagic_lib.diffusion import encode_image, forward_process, noised
from imagic_lib.stage4_inference import denoise, generate, initial_noise, predicted_original
from imagic_lib.unets import scaled, with_unet
from tests.common import seeded


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_generate_equals_diffusers_bit_for_bit(pipe, e_tgt, guidance):
    ours = imagic.generate(pipe, e_tgt, [11], steps=3, guidance_scale=guidance)
    theirs = pipe(
        prompt_embeds=e_tgt,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(11),
        height=128,
        width=128,
    ).images[0]
    assert ours[0].tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", imagic.stage4_inference.SAMPLERS)
def test_every_sampler_equals_diffusers_with_a_generator_for_each_picture(pipe, e_tgt, name):
    """A sampler that adds noise at every step, too: each seed has its own noise. Only the decoder, which gets one
    picture at a time here and two there, may round otherwise."""
    other = with_unet(pipe, pipe.unet)
    other.scheduler = imagic.stage4_inference.sampler(pipe, name)
    ours = imagic.generate(other, e_tgt, [3, 4], steps=3, guidance_scale=3)
    theirs = other(
        prompt_embeds=e_tgt,
        num_images_per_prompt=2,
        num_inference_steps=3,
        guidance_scale=3,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        height=128,
        width=128,
    ).images
    for one, other in zip(ours, theirs, strict=True):
        assert abs(np.asarray(one, dtype=int) - np.asarray(other)).max() <= 1


def test_the_first_noise_of_a_seed_is_that_of_diffusers_and_a_generator_gives_its_next(pipe):
    noise, generator = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(7)), seeded(7)
    assert torch.equal(initial_noise(pipe, 7), noise[0])
    assert torch.equal(torch.stack([initial_noise(pipe, generator), initial_noise(pipe, generator)]), noise)


def test_the_noise_of_every_step_belongs_to_the_seed(pipe, e_tgt):
    """The same for every embedding and in every batch; torch's own random numbers play no part."""

    def drawn(embeddings, seeds):
        ends = []
        imagic.generate(pipe, embeddings, seeds, steps=4, scheduler="sde-dpm++", callback=lambda s: ends.append(s.z_t))
        return ends[3::4]

    torch.manual_seed(5)
    [both] = drawn(torch.cat([e_tgt, e_tgt]), [1, 2])
    torch.manual_seed(6)
    [alone] = drawn(e_tgt, [2])
    assert torch.equal(both[:2], both[2:]) and not torch.allclose(both[0], both[1])
    torch.testing.assert_close(both[3:], alone, rtol=1e-4, atol=1e-4)


def test_pictures_come_embedding_by_embedding_with_the_same_noise_for_a_seed(pipe, e_tgt):
    other = imagic.encode_text(pipe, "a red car in the snow")
    starts = []
    both = imagic.generate(
        pipe,
        torch.cat([e_tgt, other]),
        [1, 2],
        steps=2,
        callback=lambda s: starts.append(s.z_t.clone()) if s.index == 0 else None,
    )
    assert len(both) == 4
    z = torch.cat(starts)
    assert torch.equal(z[0], z[2]) and torch.equal(z[1], z[3]) and not torch.equal(z[0], z[1])
    alone = imagic.generate(pipe, other, [2], steps=2)
    difference = abs(imagic.pictures.to_tensor(alone[0]) - imagic.pictures.to_tensor(both[3])).max()
    assert difference <= 2 / 127.5  # another batch size rounds otherwise


def test_the_callback_sees_the_predicted_original(pipe, image, e_tgt):
    """With the true noise as the answer, the predicted original is the original, for ε and for v."""
    z, noise, t = encode_image(pipe, image), torch.randn(1, 4, 16, 16), 400
    for kind in ("epsilon", "v_prediction"):
        other = copy.deepcopy(pipe)
        other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=kind)
        z_t, answer = noised(forward_process(other), z, noise, torch.tensor([t]))
        torch.testing.assert_close(predicted_original(other.scheduler, z_t, answer, t), z, rtol=1e-4, atol=1e-4)
    seen = []
    imagic.generate(pipe, e_tgt, [0], steps=4, callback=seen.append)
    assert [s.index for s in seen] == [0, 1, 2, 3] and seen[0].timestep > seen[-1].timestep
    assert seen[0].z_0.shape == seen[0].z_t.shape == (1, 4, 16, 16)


def test_sampling_leaves_the_pipelines_scheduler_untouched(pipe, e_tgt):
    pipe.scheduler.set_timesteps(7)
    imagic.generate(pipe, e_tgt, [0], steps=3)
    assert len(pipe.scheduler.timesteps) == 7


def test_the_model_is_a_drop_in_for_a_pipeline_built_anew(pipe, e_tgt):
    other = with_unet(pipe, copy.deepcopy(pipe.unet))
    assert isinstance(other, StableDiffusionPipeline)
    assert (
        imagic.generate(other, e_tgt, [0], steps=2)[0].tobytes()
        == imagic.generate(pipe, e_tgt, [0], steps=2)[0].tobytes()
    )


def test_samplers_by_name_share_the_models_noise_process(pipe, e_tgt):
    pictures = set()
    for name in imagic.stage4_inference.SAMPLERS:
        scheduler = imagic.stage4_inference.sampler(pipe, name)
        assert torch.equal(scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod)
        pictures.add(imagic.generate(pipe, e_tgt, [0], steps=4, scheduler=name)[0].tobytes())
    assert len(pictures) == 4
    pndm = imagic.stage4_inference.sampler(pipe, "pndm")
    pndm.set_timesteps(4)
    assert len(pndm.timesteps) == 5  # one call more than steps; with its Runge-Kutta start it would be 13
    with pytest.raises(ValueError, match=r"'euler' is unknown: choose one of ddim, pndm, dpm[+][+], sde"):
        imagic.generate(pipe, e_tgt, [0], scheduler="euler")
    with pytest.raises(ValueError, match=r"EulerDiscreteScheduler is not supported: give scheduler= one of ddim"):
        imagic.generate(pipe, e_tgt, [0], scheduler=EulerDiscreteScheduler.from_config(pipe.scheduler.config))


def test_a_safety_checker_that_the_model_ships_stays_on(pipe, e_tgt):
    other = with_unet(pipe, pipe.unet)
    calls, shown = [], []

    class Checker(torch.nn.Linear):
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, images, clip_input):
            assert images.min() >= 0 and 0.5 < images.max() <= 1, "as diffusers gives them"
            calls.append((images.shape, clip_input.shape))
            return images, [True, False]

    def look(pictures, return_tensors):
        shown.extend(pictures)
        return BatchFeature({"pixel_values": torch.zeros(len(pictures), 3, 8, 8)})

    other.safety_checker, other.feature_extractor = Checker(1, 1), look
    with pytest.warns(UserWarning, match="flagged 1 of 2 pictures") as caught:
        flagged, fine = imagic.generate(other, e_tgt, [0, 1], steps=1)
    [ours] = [one for one in caught if "flagged" in str(one.message)]  # diffusers' sampler warns, too, of NumPy
    assert ours.filename == __file__, "the warning points at the caller's line"
    assert flagged.getextrema() == ((0, 0),) * 3 and fine.getextrema() != ((0, 0),) * 3
    assert calls == [((2, 128, 128, 3), (2, 3, 8, 8))]
    assert [p.tobytes() for p in shown] == [p.tobytes() for p in imagic.generate(pipe, e_tgt, [0, 1], steps=1)]


def test_guidance_follows_its_formula_below_1_too(pipe, e_tgt):
    """ε_∅ + s·(ε_text - ε_∅): at 0 no text draws, at 1 the text alone."""

    def drawn(e, scale):
        steps = []
        imagic.generate(pipe, e, [0], steps=2, guidance_scale=scale, callback=steps.append)
        return steps[-1].z_t

    empty = stage4_inference.embedding_of_negative(pipe)
    torch.testing.assert_close(drawn(e_tgt, 0), drawn(empty, 1), rtol=1e-4, atol=1e-5)
    half = drawn(e_tgt, 0.5)
    assert not torch.allclose(half, drawn(e_tgt, 0), atol=1e-4) and not torch.allclose(half, drawn(e_tgt, 1), atol=1e-4)


def test_without_guidance_the_unet_is_asked_for_one_answer(pipe, e_tgt, monkeypatch):
    asked, ask = [], pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda z, *rest, **more: asked.append(len(z)) or ask(z, *rest, **more))
    for scale in (1, 3):
        imagic.generate(pipe, e_tgt, [0], steps=1, guidance_scale=scale)
    assert asked == [1, 2]


def test_the_sampling_loop_knows_only_a_function(pipe):
    """With an oracle that knows the noise, every sampler arrives at the latents that it was added to."""
    z, noise = torch.randn(2, 4, 16, 16, generator=seeded()), torch.randn(2, 4, 16, 16, generator=seeded(1))
    scheduler = imagic.stage4_inference.sampler(pipe, "ddim")
    scheduler.set_timesteps(10)
    start = forward_process(pipe).add_noise(z, noise, scheduler.timesteps[:1].expand(2))
    found = denoise(lambda z_t, t: noise, start, scheduler)
    last = forward_process(pipe).alphas_cumprod[0]
    torch.testing.assert_close(found, last.sqrt() * z + (1 - last).sqrt() * noise, rtol=1e-3, atol=1e-3)


def test_the_sampling_loop_scales_its_start_and_its_questions_as_the_scheduler_says():
    """Some schedulers begin with more noise than one, and show the network a smaller picture than they keep."""
    asked = []

    def step(answer, t, z, generator=None):
        return SimpleNamespace(prev_sample=z - answer)

    scheduler = SimpleNamespace(timesteps=[9, 4], init_noise_sigma=3.0, scale_model_input=lambda z, t: z / t, step=step)
    z = denoise(lambda z_t, t: asked.append((float(z_t), t)) or torch.ones(1), torch.tensor([6.0]), scheduler)
    assert asked == [(18 / 9, 9), (17 / 4, 4)] and z == 16


def test_more_pictures_than_one_batch_holds_all_come_in_order(pipe, e_tgt, monkeypatch):
    monkeypatch.setitem(stage4_inference.AT_ONCE, "tiny", 2)
    five = np.stack([np.asarray(p, dtype=int) for p in generate(pipe, e_tgt, range(5), steps=1)])
    for seed in range(5):
        [alone] = generate(pipe, e_tgt, [seed], steps=1)
        apart = np.abs(five - np.asarray(alone)).max(axis=(1, 2, 3))
        assert apart.argmin() == seed and apart[seed] <= 2, "up to the last digits of another batch size"


def test_a_text_is_drawn_as_its_embedding_is(pipe):
    how = {"steps": 1, "guidance_scale": 3.0}
    drawn = imagic.sample_text(pipe, "a brown dog", [3, 4], **how)
    expected = generate(pipe, imagic.encode_text(pipe, "a brown dog"), [3, 4], **how)
    assert [p.tobytes() for p in drawn] == [p.tobytes() for p in expected]


def test_guidance_leads_away_from_no_text(pipe):
    assert torch.equal(stage4_inference.embedding_of_negative(pipe), pipe.encode_prompt("", "cpu", 1, False)[0])


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"steps": 0}, "steps is 0: it must be above 0"),
        ({"steps": 2.5}, "steps is 2.5: it must be a whole number"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"embeddings": torch.zeros(0, 8, 32)}, r"the embeddings have the shape \(0, 8, 32\)"),
        ({"embeddings": torch.zeros(8, 32)}, r"the embeddings have the shape \(8, 32\)"),
    ],
)
def test_invalid_settings_are_one_clear_sentence(pipe, e_tgt, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        imagic.generate(pipe, **{"embeddings": e_tgt, "steps": 1} | given)


def test_the_largest_seed_is_the_generator_s(pipe, e_tgt):
    assert generate(pipe, e_tgt, [2**63 - 1], steps=1)
    for seeds in ([2**63], [], [1, -1], "ab"):
        with pytest.raises(ValueError, match=r"^seeds must be a list of one or more whole numbers from 0"):
            generate(pipe, e_tgt, seeds, steps=1)


def test_seeds_of_numpy_are_seeds(pipe, e_tgt):
    ours = imagic.generate(pipe, e_tgt, np.arange(2), steps=1)
    assert [p.tobytes() for p in ours] == [p.tobytes() for p in imagic.generate(pipe, e_tgt, [0, 1], steps=1)]


# -- speed on a GPU


@pytest.mark.parametrize(
    ("device", "half", "expected"),
    [("cuda", True, torch.bfloat16), ("cuda", False, None), ("cpu", True, torch.float32)],
)
def test_half_precision_is_for_a_gpu_and_if_it_is_asked_for(pipe, e_tgt, monkeypatch, device, half, expected):
    class Reached(Exception):
        pass

    def reached(pipe, scale, dtype):
        raise Reached(scale, dtype)

    monkeypatch.setattr(stage4_inference, "scaled", reached)
    monkeypatch.setattr(
        stage4_inference, "precision", lambda device: torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    monkeypatch.setattr(UNet2DConditionModel, "device", torch.device(device))
    with pytest.raises(Reached) as found:
        generate(pipe, e_tgt, half=half)
    assert found.value.args == (1.0, expected)


def test_half_precision_draws_nearly_the_same_picture(pipe, e_tgt, monkeypatch):
    [plain] = generate(pipe, e_tgt, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(stage4_inference, "scaled", lambda pipe, scale, dtype: scaled(pipe, scale, torch.bfloat16))
        [near] = generate(pipe, e_tgt, steps=2, half=True)
    [again] = generate(pipe, e_tgt, steps=2, half=True)  # on a CPU, where half precision is slower
    assert again.tobytes() == plain.tobytes() != near.tobytes()
    assert np.abs(np.asarray(near, dtype=int) - np.asarray(plain)).mean() < 3
    assert pipe.unet.dtype == torch.float32


def test_a_large_model_shows_a_bar_while_it_draws_and_the_embedded_one_none(pipe, e_tgt, monkeypatch, capsys):
    generate(pipe, e_tgt, steps=1)
    assert "drawing" not in capsys.readouterr().err
    monkeypatch.setattr(stage4_inference, "family", lambda pipe: "stable-diffusion")
    generate(pipe, e_tgt, [0, 1], steps=1)
    shown = capsys.readouterr().err
    assert "drawing: " in shown and " 0/2 " in shown and shown.endswith(" \r"), "it is wiped away"
