"""The methods that edit one picture: their equations, what they cost, that the model stays as it was, bad input."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, StableDiffusionPipeline

import imagic_lib as imagic
from imagic_lab.benchmark import counted
from imagic_lab.methods import METHODS, attention, community_methods, inversion, others, tuning
from imagic_lab.methods.attention import aligned, changed_attention, prompt_to_prompt, take_maps
from imagic_lab.methods.inversion import invert, null_texts, with_steps
from imagic_lab.toyworld import Scene
from imagic_lib import stage1_embedding, stage2_finetuning, stage4_inference
from imagic_lib.diffusion import decode_latents, encode_image, forward_process, noised
from imagic_lib.pictures import psnr, to_picture
from imagic_lib.stage4_inference import denoise, denoiser, embedding_of_negative, generate, sampler
from imagic_lib.unets import with_unet
from tests.common import same, weights

TEXT, SOURCE = "a brown dog jumping on the grass", "a brown dog sitting on the grass"
STEPS = 4

# What diffusers' community pipeline has of an interface, and what it does to its UNet.
PEER = """
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm


class ImagicStableDiffusionPipeline:
    def __init__(self, vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor):
        self.unet, self.vae, self.scheduler = unet, vae, scheduler

    def set_progress_bar_config(self, **settings):
        pass

    def train(self, prompt, image, height=512, width=512, generator=None, **settings):
        assert Accelerator(mixed_precision="fp16").mixed_precision == "no"
        self.seen = prompt, tuple(image.shape), height, width, settings
        self.noised = self.scheduler.add_noise(torch.ones(1), torch.zeros(1), torch.tensor([900]))
        list(tqdm(range(2)))
        self.unet.requires_grad_(True).train()
        with torch.no_grad():
            next(self.unet.parameters()).add_(torch.randn(()))

    def __call__(self, alpha=1.2, height=512, width=512, num_inference_steps=50, generator=None, guidance_scale=7.5):
        from types import SimpleNamespace
        from PIL import Image

        shade = int(torch.randint(255, (), generator=generator))
        assert not self.unet.training
        color = shade, int(50 * alpha), int(torch.randint(255, ()))
        self.drawn = num_inference_steps, type(self.scheduler)
        return SimpleNamespace(images=[Image.new("RGB", (width, height), color)])
"""


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """A picture in four steps, a training of two."""
    tiny = stage4_inference.DEFAULTS["tiny"] | {"steps": STEPS}
    monkeypatch.setitem(stage4_inference.DEFAULTS, "tiny", tiny)
    for defaults in (stage1_embedding.DEFAULTS, *stage2_finetuning.DEFAULTS.values()):
        monkeypatch.setitem(defaults, "tiny", defaults["tiny"] | {"steps": 2, "batch": 2})
    first, second = tuning.PAPER["tiny"]
    monkeypatch.setitem(tuning.PAPER, "tiny", (first | {"steps": 3}, second | {"steps": 4}))
    monkeypatch.setattr(inversion, "NULL_STEPS", 2)


@pytest.fixture
def peer(tmp_path):
    path = tmp_path / "imagic_stable_diffusion.py"
    path.write_text(PEER, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tiny():
    """The embedded model: only one that knows pictures can be inverted."""
    return imagic.load_pipeline("tiny")


@pytest.fixture(scope="module")
def drawing(tiny):
    return imagic.load_image(
        Scene.sample(5, subject="dog", pose="sitting", colour="brown", place="grass").render(), tiny
    )


def steps_of(monkeypatch, count):
    monkeypatch.setitem(stage4_inference.DEFAULTS, "tiny", stage4_inference.DEFAULTS["tiny"] | {"steps": count})


def distance(a, b):
    return float((a - b).square().mean().sqrt())


def through_vae(pipe, image):
    """The input as the VAE keeps it."""
    return to_picture(decode_latents(pipe, encode_image(pipe, image)))


def drawn_again(pipe, z_T, guess):
    """The latents that DDIM makes of these, without gradients."""
    with torch.no_grad():
        return denoise(guess, z_T, with_steps(pipe, sampler(pipe, "ddim")))


# -- inversion


def test_ddim_walks_back_on_the_path_of_its_inversion(tiny, drawing, monkeypatch):
    steps_of(monkeypatch, 10)
    empty, z = embedding_of_negative(tiny), encode_image(tiny, drawing)
    path = invert(tiny, drawing, empty)
    assert len(path) == 11 and torch.equal(path[0], z)
    guess = denoiser(tiny.unet, empty, empty, 1)
    far, near = z.square().mean().sqrt(), distance(drawn_again(tiny, path[-1], guess), z)
    assert near < 0.1 * far


def test_a_broken_inversion_does_not_come_back(tiny, drawing, monkeypatch):
    steps_of(monkeypatch, 10)
    empty, z = embedding_of_negative(tiny), encode_image(tiny, drawing)
    plain = DDIMInverseScheduler.step
    monkeypatch.setattr(DDIMInverseScheduler, "step", lambda self, answer, t, z: plain(self, -answer, t, z))
    guess = denoiser(tiny.unet, empty, empty, 1)
    assert distance(drawn_again(tiny, invert(tiny, drawing, empty)[-1], guess), z) > 0.1 * z.square().mean().sqrt()


def test_a_step_of_the_inversion_is_ddims_equation(tiny, drawing):
    """z_{t+1} = √ᾱ_{t+1} ẑ_0 + √(1-ᾱ_{t+1}) f, written down."""
    e = imagic.encode_text(tiny, SOURCE)
    path, times = invert(tiny, drawing, e), with_steps(tiny, sampler(tiny, "ddim")).timesteps.flip(0).tolist()
    a = tiny.scheduler.alphas_cumprod
    before, after = a[times[0]], a[times[1]]
    with torch.no_grad():
        f = tiny.unet(path[1], times[1], e).sample
    z_0 = (path[1] - (1 - before).sqrt() * f) / before.sqrt()
    torch.testing.assert_close(path[2], after.sqrt() * z_0 + (1 - after).sqrt() * f, rtol=1e-4, atol=1e-5)


def test_null_texts_and_the_caption_both_bring_guidance_back_to_the_picture(tiny, drawing, monkeypatch):
    steps_of(monkeypatch, 4)
    monkeypatch.setattr(inversion, "NULL_STEPS", 5)
    e_src, empty, z = imagic.encode_text(tiny, SOURCE), embedding_of_negative(tiny), encode_image(tiny, drawing)
    path, times = invert(tiny, drawing, e_src), with_steps(tiny, sampler(tiny, "ddim")).timesteps.tolist()
    found = null_texts(tiny, path, e_src, 7.5)
    assert len(found) == 4 and all(one.shape == e_src.shape for one in found)

    def error(negative):
        guess = lambda z, t: denoiser(tiny.unet, e_src, negative(times.index(int(t))), 7.5)(z, t)  # noqa: E731
        return distance(drawn_again(tiny, path[-1], guess), z)

    plain, optimised, caption = error(lambda k: empty), error(lambda k: found[k]), error(lambda k: e_src)
    assert optimised < 0.8 * plain and caption < 0.8 * plain


@pytest.mark.parametrize("name", ["ddim-inversion", "npi"])
def test_guidance_0_rebuilds_the_input_and_another_seed_changes_nothing(tiny, drawing, monkeypatch, name):
    steps_of(monkeypatch, 6)
    draw, near = METHODS[name].start(tiny, drawing, TEXT, SOURCE), through_vae(tiny, drawing)
    [rebuilt], [edited, other] = draw(0, [0]), draw(7.5, [0, 5])
    assert psnr(rebuilt, near) > 30 > psnr(edited, near)
    assert np.array_equal(np.asarray(edited), np.asarray(other))


def test_negative_prompt_inversion_of_the_caption_itself_is_the_same_at_every_guidance(tiny, drawing):
    draw = METHODS["npi"].start(tiny, drawing, SOURCE, SOURCE)
    assert np.abs(np.asarray(draw(0)[0], dtype=int) - np.asarray(draw(7.5)[0], dtype=int)).max() <= 1


# -- prompt-to-prompt


def test_tokens_find_their_partners(pipe):
    def words(source, target):
        ids = [pipe.tokenizer(text).input_ids for text in (source, target)]
        return aligned(pipe.tokenizer, source, target)[: len(ids[1])].tolist()

    assert words("a dog", "a dog") == [0, 1, 2, 3]
    assert words("a dog sitting", "a dog jumping") == [0, 1, 2, 3, 4]  # a word swap
    assert words("a dog", "a brown dog") == [0, 1, -1, 2, 3]  # a new word has none
    assert words("a brown dog", "a dog") == [0, 1, 3, 4]


def test_new_tokens_keep_their_own_maps_and_all_others_take_the_old_ones(pipe):
    cross = next(m for name, m in pipe.unet.named_modules() if name.endswith("attn2"))
    own = next(m for name, m in pipe.unet.named_modules() if name.endswith("attn1"))
    maps, taken = torch.rand(6, 9, 3), torch.tensor([1, -1, 0])  # three samples, two heads
    changed = take_maps(cross, maps, taken=taken, own_self=True)
    assert torch.equal(changed[:4], maps[:4])
    assert torch.equal(changed[4:, :, 0], maps[:2, :, 1]) and torch.equal(changed[4:, :, 2], maps[:2, :, 0])
    assert torch.equal(changed[4:, :, 1], maps[4:, :, 1])
    assert torch.equal(take_maps(own, maps, taken=taken, own_self=True), maps)
    assert torch.equal(take_maps(own, maps, taken=taken, own_self=False)[4:], maps[:2])
    large = torch.rand(6, attention.LARGEST_SELF + 1, 3)
    assert torch.equal(take_maps(own, large, taken=taken, own_self=False), large)


def test_attention_that_is_left_as_it_is_answers_as_before_and_is_put_back(pipe, e_tgt):
    z, before = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), pipe.unet.attn_processors
    seen = []
    with torch.no_grad():
        plain = pipe.unet(z, 500, e_tgt).sample
        with changed_attention(pipe.unet, lambda layer, maps: seen.append(maps.sum(-1)) or maps):
            torch.testing.assert_close(pipe.unet(z, 500, e_tgt).sample, plain, rtol=1e-4, atol=1e-5)
        with pytest.raises(KeyError), changed_attention(pipe.unet, lambda layer, maps: {}["no map"]):
            pipe.unet(z, 500, e_tgt)
        assert torch.equal(pipe.unet(z, 500, e_tgt).sample, plain)
    assert len(seen) == len(before) and all(torch.allclose(one, torch.ones_like(one), atol=1e-5) for one in seen)
    assert pipe.unet.attn_processors == before


def test_share_0_is_plain_sampling_and_share_1_is_not(tiny, drawing):
    draw = METHODS["p2p"].start(tiny, drawing, TEXT, SOURCE)
    e_src, e_tgt = imagic.encode_text(tiny, SOURCE), imagic.encode_text(tiny, TEXT)
    guess = denoiser(tiny.unet, e_tgt, e_src, stage4_inference.DEFAULTS["tiny"]["guidance_scale"])
    plain = inversion.draw_from(tiny, invert(tiny, drawing, e_src)[-1], guess)
    assert np.array_equal(np.asarray(draw(0)[0]), np.asarray(plain))
    assert not np.array_equal(np.asarray(draw(1)[0]), np.asarray(plain))


@pytest.mark.parametrize("empty", ["caption", "optimised"])
def test_share_1_with_the_same_text_is_the_inverted_picture(tiny, drawing, monkeypatch, empty):
    steps_of(monkeypatch, 6)
    near = through_vae(tiny, drawing)
    same_text = prompt_to_prompt(tiny, drawing, SOURCE, SOURCE, empty=empty)
    assert psnr(same_text(1, [0])[0], near) > 28
    if empty == "caption":
        other_text = prompt_to_prompt(tiny, drawing, "a red car on the snow", SOURCE)
        assert psnr(other_text(0, [0])[0], near) < 22


def test_pnp_inversion_leads_away_from_no_text_and_its_old_picture_walks_along_the_inversion(tiny, drawing):
    [found] = METHODS["pnp-inversion"].start(tiny, drawing, TEXT, SOURCE)(0, [0])
    e_tgt, e_src, empty = (
        imagic.encode_text(tiny, TEXT),
        imagic.encode_text(tiny, SOURCE),
        embedding_of_negative(tiny),
    )
    guess = denoiser(tiny.unet, e_tgt, empty, stage4_inference.DEFAULTS["tiny"]["guidance_scale"])
    plain = inversion.draw_from(tiny, invert(tiny, drawing, e_src)[-1], guess)
    assert np.array_equal(np.asarray(found), np.asarray(plain))
    [held] = METHODS["pnp-inversion"].start(tiny, drawing, TEXT, SOURCE)(1, [0])
    assert not np.array_equal(np.asarray(held), np.asarray(plain))


# -- the picture's own noise


@pytest.mark.parametrize(("name", "guidance"), [("edit-friendly", 1), ("ddcm", 1), ("h-edit", 0)])
def test_where_the_texts_do_not_differ_the_input_comes_back(pipe, image, name, guidance):
    for picture in METHODS[name].start(pipe, image, SOURCE, SOURCE)(guidance, [0, 1]):
        assert psnr(picture, through_vae(pipe, image)) > 45
    [edited] = METHODS[name].start(pipe, image, TEXT, SOURCE)(5, [0])
    assert psnr(edited, through_vae(pipe, image)) < 45


def levels(pipe):
    """(ᾱ_t, ᾱ_{t-1}, t) of every DDIM step, written down."""
    times, a = with_steps(pipe, sampler(pipe, "ddim")).timesteps.tolist(), pipe.scheduler.alphas_cumprod
    return [(a[t], a[later], t, later) for t, later in zip(times, [*times[1:], 0], strict=True)]


@torch.no_grad()
def test_h_edit_is_equation_25_as_its_authors_code_has_it(pipe, image):
    unet, e = pipe.unet, {name: imagic.encode_text(pipe, name) for name in (TEXT, SOURCE)}
    empty, w = embedding_of_negative(pipe), 3.0

    def f(z, t, text, guidance):
        return unet(z, t, empty).sample + guidance * (unet(z, t, e[text]).sample - unet(z, t, empty).sample)

    path = stage4_inference.own_noise(pipe, image, e[SOURCE], [4])
    z = path.start
    for index, (a, b, t, later) in enumerate(levels(pipe)):
        omega = ((1 - b) / (1 - a)).sqrt() / b.sqrt() * (b - a).sqrt()
        along, c = unet(z, t, e[SOURCE]).sample, (1 - b - omega**2).clamp(min=0).sqrt()
        base = b.sqrt() * (z - (1 - a).sqrt() * along) / a.sqrt() + c * along + path.added[index]
        change = f(base, later, TEXT, w) - f(base, later, SOURCE, w * 5 / 7.5)
        z = base + (c - (1 - a).sqrt() * (b / a).sqrt()) * change
    [found] = METHODS["h-edit"].start(pipe, image, TEXT, SOURCE)(w, [4])
    assert np.abs(np.asarray(found, int) - np.asarray(to_picture(decode_latents(pipe, z)), int)).max() <= 1


@torch.no_grad()
def test_ddcm_is_the_sampler_of_its_authors_code_with_eta_1(pipe, image):
    unet, e_tgt, e_src = pipe.unet, imagic.encode_text(pipe, TEXT), imagic.encode_text(pipe, SOURCE)
    generator, x_0 = torch.Generator().manual_seed(4), encode_image(pipe, image)
    noise = stage4_inference.initial_noise(pipe, generator)
    first = levels(pipe)[0][0]
    x_s = x_t = first.sqrt() * x_0 + (1 - first).sqrt() * noise
    for a, b, t, _ in levels(pipe):
        e_s, e_t = unet(x_s, t, e_src).sample, unet(x_t, t, e_tgt).sample
        pred_x0 = x_0 + ((x_t - x_s) - (1 - a).sqrt() * (e_t - e_s)) / a.sqrt()
        noise = (1 - b).sqrt() * stage4_inference.initial_noise(pipe, generator)
        x_t, x_s = b.sqrt() * pred_x0 + noise, b.sqrt() * x_0 + noise
    [found] = METHODS["ddcm"].start(pipe, image, TEXT, SOURCE)(1, [4])
    assert np.abs(np.asarray(found, int) - np.asarray(to_picture(decode_latents(pipe, pred_x0)), int)).max() <= 1


# -- what diffusers has


def test_sdedit_is_its_equation(pipe, image):
    """Half-way into the noise, and the model's own sampler with guidance from there: by the library's own stages."""
    [found] = METHODS["sdedit"].start(pipe, image, TEXT)(0.5, [3])
    generator = torch.Generator().manual_seed(3)
    scheduler = with_steps(pipe, copy.deepcopy(pipe.scheduler))
    scheduler.set_begin_index(STEPS // 2)
    times = scheduler.timesteps[STEPS // 2 :]
    with torch.no_grad():
        z = pipe.vae.encode(image).latent_dist.sample(generator) * pipe.vae.config.scaling_factor
        noise = torch.randn(z.shape, generator=generator)
        z_t, _ = noised(scheduler, z, noise, times[:1])
        guess = denoiser(
            pipe.unet,
            imagic.encode_text(pipe, TEXT),
            embedding_of_negative(pipe),
            stage4_inference.DEFAULTS["tiny"]["guidance_scale"],
        )
        for t in times:
            z_t = scheduler.step(guess(z_t, t), t, z_t, generator=[generator]).prev_sample
        by_hand = to_picture(decode_latents(pipe, z_t))
    assert np.abs(np.asarray(found, dtype=int) - np.asarray(by_hand, dtype=int)).max() <= 1


def test_ledits_rebuilds_the_input_at_guidance_0_and_not_at_12(tiny, drawing, monkeypatch):
    steps_of(monkeypatch, 6)
    near = through_vae(tiny, drawing)
    draw = METHODS["ledits"].start(tiny, drawing, TEXT)
    [again], [edited] = draw(0, [0]), draw(12, [0])
    assert psnr(again, near) > 28 > psnr(edited, near)
    assert np.array_equal(np.asarray(draw(12, [0])[0]), np.asarray(edited))


def test_ledits_takes_the_words_of_the_text_for_words_and_not_its_padding(tiny, drawing, monkeypatch):
    """Its mask is where the UNet attends to them. Attention to the padding is everywhere."""
    steps_of(monkeypatch, 2)
    made, seen, kind = [], [], others.LEditsPPPipelineStableDiffusion
    monkeypatch.setattr(
        others, "LEditsPPPipelineStableDiffusion", lambda **parts: made.append(kind(**parts)) or made[-1]
    )
    draw = METHODS["ledits"].start(tiny, drawing, TEXT)
    encode = made[0].encode_prompt
    made[0].encode_prompt = lambda *given, **named: seen.append(encode(*given, **named)) or seen[-1]
    draw(8, [0])
    assert seen[0][2].tolist() == [len(TEXT.split())]
    # and no more of it is free than the threshold allows; the half that attends most, not diffusers' tenth
    assert 0.3 < made[0].activation_mask[0].mean() <= 0.5


def test_the_community_pipeline_gets_its_rates_and_a_copy_of_the_unet(pipe, image, peer, monkeypatch):
    made = []
    module_of = others.community_module

    def watched(path):
        module = module_of(path)
        kind = module.ImagicStableDiffusionPipeline
        module.ImagicStableDiffusionPipeline = lambda **parts: made.append(kind(**parts)) or made[-1]
        return module

    monkeypatch.setattr(others, "community_module", watched)
    pipe = StableDiffusionPipeline(**pipe.components | {"scheduler": sampler(pipe, "sde-dpm++")})
    before, state = weights(pipe.unet), torch.random.get_rng_state()
    methods = community_methods(peer)
    pictures = [method.start(pipe, image, TEXT)(1.2, [0, 1]) for method in methods.values()]
    tuned, plain = (one.seen for one in made)
    assert tuned[:4] == plain[:4] == (TEXT, (1, 3, 128, 128), 128, 128)
    assert tuned[4] == others.COMMUNITY["tiny"] and plain[4] == {}
    assert same(before, weights(pipe.unet)) and torch.equal(state, torch.random.get_rng_state())
    assert same(*(weights(one.unet) for one in made)) and not same(before, weights(made[0].unet))
    first, second = (p.getpixel((0, 0)) for p in pictures[0])
    assert first[0] != second[0] and first[1] == 60
    # noise of the timestep that was asked for; pictures by the model's own sampler
    torch.testing.assert_close(made[0].noised, forward_process(pipe).alphas_cumprod[[900]].sqrt())
    assert made[0].drawn == (STEPS, type(pipe.scheduler))


# -- Imagic, whole and in parts


def test_imagic_is_run_edit(pipe, image):
    edit = imagic.run_edit(pipe, image, TEXT)
    [expected] = edit.pictures([0.7], [2], noise="random")
    assert np.array_equal(np.asarray(METHODS["imagic"].start(pipe, image, TEXT)(0.7, [2])[0]), np.asarray(expected[0]))
    without = METHODS["no-stage-2"].start(pipe, image, TEXT)(0.7, [2])
    assert np.array_equal(np.asarray(without[0]), np.asarray(edit.pictures([0.7], [2], scale=0, noise="random")[0][0]))


def test_imagic_from_its_own_noise_is_that_of_an_edit_at_eta_1(pipe, image):
    e_tgt, e_opt, tuned = tuning.run_both_stages(pipe, image, TEXT)
    edit = imagic.ImagicEdit(TEXT, pipe, tuned, image, e_tgt, e_opt, None, None, {})
    [found] = METHODS["imagic-own"].start(pipe, image, TEXT)(0.5, [2])
    assert np.array_equal(np.asarray(found), np.asarray(edit.pictures([1.0], [2], scale=0.5)[0][0]))
    edit.tuned = with_unet(pipe, pipe.unet)
    [found] = METHODS["own-no-stage-2"].start(pipe, image, TEXT)(2, [2])
    assert np.array_equal(np.asarray(found), np.asarray(edit.pictures([1.0], [2], guidance_scale=2)[0][0]))


def test_another_sampler_draws_the_same_method(pipe, image):
    other = with_unet(pipe, pipe.unet)
    other.scheduler = sampler(pipe, "ddim")
    [expected] = METHODS["imagic"].start(other, image, TEXT)(0.7, [2])
    [found] = METHODS["imagic-ddim"].start(pipe, image, TEXT)(0.7, [2])
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_without_stage_1_and_without_fine_tuning_there_is_the_text_alone(pipe, image):
    draw, alone = METHODS["no-stage-1"].start(pipe, image, TEXT), METHODS["text"].start(pipe, image, TEXT)
    guidance = stage4_inference.DEFAULTS["tiny"]["guidance_scale"]
    assert np.array_equal(np.asarray(draw(0)[0]), np.asarray(alone(guidance)[0]))
    tuned, _ = imagic.fine_tune(pipe, image, imagic.encode_text(pipe, TEXT))
    [expected] = generate(tuned, imagic.encode_text(pipe, TEXT), [0])
    assert np.array_equal(np.asarray(draw(1)[0]), np.asarray(expected))


# -- all of them


@pytest.mark.parametrize("name", [*METHODS, "community", "community-as-it-comes"])
def test_a_method_draws_for_every_seed_and_leaves_the_model_as_it_was(pipe, image, peer, name):
    method = (METHODS | community_methods(peer))[name]
    before, processors, times = weights(pipe.unet), pipe.unet.attn_processors, pipe.scheduler.timesteps.clone()
    learning = [p.requires_grad for p in pipe.unet.parameters()]
    draw = method.start(pipe, image, TEXT, SOURCE)
    pictures = draw(method.values[3], [0, 1])
    assert [p.size for p in pictures] == [(128, 128)] * 2
    assert np.array_equal(np.asarray(pictures[0]), np.asarray(pictures[1])) != method.seeded
    again = method.start(pipe, image, TEXT, SOURCE)(method.values[3], [0, 1])
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(pictures, again, strict=True))
    assert same(before, weights(pipe.unet)) and torch.equal(times, pipe.scheduler.timesteps)
    assert pipe.unet.attn_processors == processors and not pipe.unet.training
    assert learning == [p.requires_grad for p in pipe.unet.parameters()]


def test_every_method_has_five_values_of_its_knob_a_title_of_its_own_and_a_paper():
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    for method in METHODS.values():
        assert len(set(method.values)) == 5 and all(method.checked_knob(value) == value for value in method.values)
        assert "arXiv" in method.paper


PROBE = 8  # pictures in a probe; it looks before the first step and after the last


@pytest.mark.parametrize(
    ("name", "prepared", "learning", "each"),
    [
        ("text", 0, 0, 2 * STEPS),
        ("imagic", 2 * (2 * 2 + 2 * PROBE), 2 * 2 * 2, 2 * STEPS),
        ("imagic-lora", 2 * (2 * 2 + 2 * PROBE), 2 * 2 * 2, 2 * STEPS),
        ("imagic-paper", 3 + 4 + 4 * PROBE, 3 + 4, 2 * STEPS),
        ("no-stage-2", 2 * 2 + 2 * PROBE, 2 * 2, 2 * STEPS),
        ("sdedit", 0, 0, 2 * 2),  # half of the steps
        ("ddim-inversion", STEPS, 0, 2 * STEPS),
        ("npi", STEPS, 0, 2 * STEPS),
        ("p2p", STEPS, 0, 3 * 2 + 2 * 2),  # with the old picture beside it in half of the steps
    ],
)
def test_evaluations_are_samples_times_passes(pipe, image, name, prepared, learning, each):
    method, knob = METHODS[name], 0.5 if name in ("sdedit", "p2p") else 0.7
    with counted(pipe.unet) as found:
        draw = method.start(pipe, image, TEXT, SOURCE)
        assert (found.count, found.with_gradient) == (prepared, learning)
        draw(knob, [0])
        assert (found.count, found.with_gradient) == (prepared + each, learning)
    draw(knob, [0])
    if name in ("text", "sdedit", "npi"):  # nothing counts on in the pipeline's own UNet
        assert found.count == prepared + each


# -- bad input


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.caption])
def test_a_method_that_needs_a_caption_says_so(pipe, image, name):
    with pytest.raises(ValueError, match="needs a caption of the input"):
        METHODS[name].start(pipe, image, TEXT)


def test_a_missing_knob_a_wrong_one_and_no_text_are_one_sentence(pipe, image):
    draw = METHODS["sdedit"].start(pipe, image, TEXT)
    with pytest.raises(ValueError, match="SDEdit needs its knob, strength, from 0 to 1: none was given"):
        draw()
    for wrong in (1.2, -0.1, float("nan"), "half"):
        with pytest.raises(ValueError, match="from 0 to 1: it is"):
            draw(wrong)
    with pytest.raises(ValueError, match="leaves none of 4 steps"):
        draw(0.1)
    with pytest.raises(ValueError, match="seeds must be a list"):
        draw(0.5, [])
    with pytest.raises(ValueError, match="the text is empty"):
        METHODS["sdedit"].start(pipe, image, " ")


def test_a_file_that_is_not_the_community_pipeline_is_one_sentence(pipe, image, tmp_path):
    start = partial(community_methods(tmp_path / "none.py")["community"].start, pipe, image, TEXT)
    with pytest.raises(FileNotFoundError, match=r"none.py does not exist: give the path of diffusers'"):
        start()
    for content in ("x = 1", "not Python at all", "no_such_name", "import no_such_package"):
        (tmp_path / "none.py").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"none.py can't be used \("):
            start()
    (tmp_path / "none.txt").write_text("x = 1", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a Python file"):
        community_methods(tmp_path / "none.txt")["community"].start(pipe, image, TEXT)
