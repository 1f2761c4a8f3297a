"""Stage 2 against ground truth: float64 differences, a loop written out, what learns and what stays."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F

import imagic_lib as imagic
from imagic_lab.numbers.memory import LiveBytes
from imagic_lib import LoRA, Run, stage1_embedding, stage2_finetuning, unets
from imagic_lib.diffusion import denoising_loss, encode_image, forward_process
from imagic_lib.unets import add_lora, scaled, with_unet
from tests.common import loss_by_hand, same, seeded, weights


def test_defaults_of_stable_diffusion_are_the_paper_s():
    assert stage1_embedding.DEFAULTS["stable-diffusion"] == {"steps": 1000, "lr": 2e-3, "batch": 1}
    paper = {"steps": 1500, "lr": 5e-7, "batch": 1, "decay": 0.0, "bias": 0.0}
    assert stage2_finetuning.DEFAULTS["full"]["stable-diffusion"] == paper


def test_fine_tuning_changes_a_copy_and_a_second_fit_starts_clean(pipe, image, e_tgt):
    """Bug 6: the second fit starts from the tuned UNet."""
    before = weights(pipe.unet)
    tuned, first = imagic.fine_tune(pipe, image, e_tgt, steps=2, batch=1, lr=1e-3, generator=seeded())
    again, second = imagic.fine_tune(pipe, image, e_tgt, steps=2, batch=1, lr=1e-3, generator=seeded())
    assert same(weights(pipe.unet), before) and not same(weights(tuned.unet), before)
    assert first.loss == second.loss and same(weights(tuned.unet), weights(again.unet))
    assert tuned.vae is pipe.vae and not tuned.unet.training
    assert not any(p.requires_grad for p in tuned.unet.parameters())
    assert all(p.requires_grad for p in pipe.unet.parameters())


def test_stage_2_gradient_equals_float64_finite_differences(pipe, image, e_tgt):
    double = copy.deepcopy(pipe).to(torch.float64)
    process, latents = forward_process(double), encode_image(double, image.double())
    weight = double.unet.conv_out.weight

    def loss():
        return denoising_loss(double.unet, process, latents, e_tgt.double(), 2, seeded(3))

    by_hand = loss_by_hand(double, double.unet, latents, e_tgt.double(), 2, seeded(3))
    torch.testing.assert_close(loss(), by_hand)
    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn(weight.shape, generator=seeded(1), dtype=torch.float64)
    with torch.no_grad():
        weight += 1e-5 * direction
        above = loss()
        weight -= 2e-5 * direction
        slope = (above - loss()) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-12)


def test_lora_trains_only_its_adapters_and_leaves_the_loaded_model_alone(pipe, image, e_tgt):
    before = weights(pipe.unet)
    tuned, history = imagic.fine_tune(
        pipe, image, e_tgt, method=LoRA(rank=2), steps=2, lr=1e-2, batch=1, generator=seeded()
    )
    assert same(weights(pipe.unet), before) and not hasattr(pipe.unet, "peft_config")
    base = {k.replace(".base_layer", ""): v for k, v in weights(tuned.unet).items() if "lora" not in k}
    assert same(base, before) and history.probe_loss[-1] != history.probe_loss[0]
    adapters = [n for n, _ in tuned.unet.named_parameters() if "lora" in n]
    assert adapters and all(".to_q." in n or ".to_v." in n for n in adapters)


def test_unknown_method_or_layer_is_one_clear_sentence(pipe, image, e_tgt):
    with pytest.raises(ValueError, match="choose 'full' or 'lora'"):
        imagic.fine_tune(pipe, image, e_tgt, method="dreambooth", steps=1)
    with pytest.raises(ValueError, match="no layer named 'to_z'"):
        imagic.fine_tune(pipe, image, e_tgt, method=LoRA(targets=["to_z"]), steps=1)


def test_full_fine_tuning_of_half_precision_weights_is_refused(pipe, image, e_tgt):
    half = with_unet(pipe, copy.deepcopy(pipe.unet).half())
    with pytest.raises(ValueError, match=r"vanish in torch.float16 weights: load the model in float32"):
        imagic.fine_tune(half, image, e_tgt, steps=1)


def test_the_paper_s_timesteps_are_one_setting_away(pipe, image, e_tgt):
    given = {"steps": 1, "batch": 2}
    losses = {}
    for bias in (None, 0.0, stage2_finetuning.DEFAULTS["full"]["tiny"]["bias"]):
        generator = torch.Generator().manual_seed(0)
        losses[bias] = imagic.fine_tune(pipe, image, e_tgt, generator=generator, run=Run(bias=bias), **given)[1].loss
    assert losses[None] == losses[1.0] != losses[0.0]
    with pytest.raises(ValueError, match="bias is -1: it must be 0 or more"):
        imagic.fine_tune(pipe, image, e_tgt, run=Run(bias=-1))


def test_invalid_settings_are_one_clear_sentence(pipe, image, e_tgt):
    for bad in ({"steps": -1}, {"lr": 0.0}, {"batch": 0}):
        with pytest.raises(ValueError, match=rf"{next(iter(bad))} is .*: it must be"):
            imagic.optimize_embedding(pipe, image, e_tgt, **bad)
    for decay in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"decay is {decay}: it must be (0 or more|1 at most)"):
            imagic.fine_tune(pipe, image, e_tgt, decay=decay)
    for seeds in ([], 0, [-1], [0.5], [2**63]):
        with pytest.raises(ValueError, match="seeds must be a list"):
            imagic.generate(pipe, e_tgt, seeds)


@pytest.mark.parametrize("method", ["full", LoRA(rank=3, targets=["to_k", "conv1"])], ids=["full", "lora"])
def test_stage_2_is_plain_adam_on_the_paper_s_loss_with_a_rate_that_falls(pipe, image, e_tgt, method):
    """The library must give the same numbers as this loop, from the caller's noise."""
    given = {"steps": 4, "lr": 1e-3, "batch": 2, "decay": 0.5, "run": Run(bias=0.0)}
    tuned, history = imagic.fine_tune(pipe, image, e_tgt, method=method, generator=seeded(5), **given)
    unet, z, generator = copy.deepcopy(pipe.unet), encode_image(pipe, image), seeded(5)
    if method != "full":
        add_lora(unet, method, seed=5)
    learning = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    for step, rate in enumerate([1e-3, 1e-3, 1e-3, 5e-4]):
        if step == 0:
            adam = torch.optim.Adam(learning.values(), lr=rate)
        adam.param_groups[0]["lr"] = rate
        loss = loss_by_hand(pipe, unet, z, e_tgt, 2, generator)
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert history.loss[step] == pytest.approx(loss.item(), rel=1e-4)
        assert history.learning_rate[step] == pytest.approx(rate)
    found = weights(tuned.unet)
    for name, value in learning.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-3, atol=1e-5)
    start = dict(pipe.unet.named_parameters())
    moved = max((found[n] - start[n]).abs().max() for n in learning if n in start) if method == "full" else 1
    assert moved > 5e-4, "it did learn"


def test_the_adapters_have_the_rank_and_the_layers_that_were_asked_for(pipe, image, e_tgt):
    tuned, _ = imagic.fine_tune(pipe, image, e_tgt, method=LoRA(3, ["to_k"]), steps=0)
    found = {n: p.shape for n, p in tuned.unet.named_parameters() if "lora_A" in n}
    assert found and all(".to_k." in n and shape[0] == 3 for n, shape in found.items())
    tuned, _ = imagic.fine_tune(pipe, image, e_tgt, method="lora", steps=0)
    assert {p.shape[0] for n, p in tuned.unet.named_parameters() if "lora_A" in n} == {LoRA().rank} == {4}


def test_the_smallest_rank_is_1(pipe, image, e_tgt):
    tuned, _ = imagic.fine_tune(pipe, image, e_tgt, method=LoRA(1), steps=0)
    assert {p.shape[0] for n, p in tuned.unet.named_parameters() if "lora_A" in n} == {1}


def test_adapters_start_at_nothing_with_a_gaussian_a_and_alpha_equal_to_the_rank(pipe, image, e_tgt):
    """W + (α/r)·B·A with α = r, B = 0 and A ~ N(0, 1/r²), in float32, whatever the rank."""
    tuned, _ = imagic.fine_tune(pipe, image, e_tgt, method=LoRA(16), steps=0)
    layers = [m for m in tuned.unet.modules() if hasattr(m, "lora_A")]
    for layer in layers:
        assert layer.scaling["default"] == 1
        assert not layer.lora_B["default"].weight.any()
    start = torch.cat([layer.lora_A["default"].weight.flatten() for layer in layers])
    assert start.std().item() == pytest.approx(1 / 16, rel=0.05) and start.abs().max() > 3 / 16
    assert start.dtype == torch.float32


def test_the_adapters_of_half_precision_weights_learn_in_float32(pipe, image, e_tgt):
    half = copy.deepcopy(pipe).to(torch.bfloat16)
    tuned, _ = imagic.fine_tune(half, image, e_tgt, method="lora", steps=1, batch=1, generator=seeded())
    kinds = {("lora" in name): p.dtype for name, p in tuned.unet.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_a_training_tells_its_name_to_its_watch(pipe, image, e_tgt):
    names = []
    run = Run(watch=lambda name, history: names.append(name))
    imagic.optimize_embedding(pipe, image, e_tgt, steps=1, batch=1, run=run)
    for method in ("full", LoRA(3)):
        imagic.fine_tune(pipe, image, e_tgt, method=method, steps=1, batch=1, run=run)
    assert names == ["stage 1, embedding", "stage 2, all weights", "stage 2, LoRA of rank 3"]


def test_a_tuned_pipeline_shows_no_bar_and_no_warning(pipe, recwarn):
    other = with_unet(pipe, pipe.unet)
    assert other._progress_bar_config == {"disable": True}
    assert not recwarn.list


def test_a_pipeline_with_another_unet_keeps_its_safety_checker(pipe):
    checked = with_unet(pipe, pipe.unet)
    checked.safety_checker, checked.feature_extractor = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    other = with_unet(checked, copy.deepcopy(pipe.unet))
    assert other.safety_checker is checked.safety_checker and other.unet is not pipe.unet
    assert all(getattr(other, part) is getattr(checked, part) for part in set(pipe.components) - {"unet"})


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"rank": 0}, "rank is 0: it must be 1 or more"),
        ({"rank": 2.5}, "rank is 2.5: it must be a whole number"),
        ({"targets": "to_q"}, "targets is 'to_q': give a list of layers"),
        ({"targets": []}, "give a list of layers"),
    ],
)
def test_an_invalid_lora_is_one_clear_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        LoRA(**given)


def test_full_and_lora_are_different_trainings_for_a_checkpoint(pipe, image, e_tgt, tmp_path):
    run = Run(checkpoint=tmp_path / "c")
    imagic.fine_tune(pipe, image, e_tgt, steps=1, batch=1, method="lora", run=run)
    for method, name in (("full", "another method"), (LoRA(2), "rank 4, not 2"), (LoRA(4, ["to_k"]), "targets")):
        given = {"method": method, "lr": 1e-2, "decay": 0.5}
        with pytest.raises(ValueError, match=f"from a training with {name}"):
            imagic.fine_tune(pipe, image, e_tgt, steps=1, batch=1, run=run, **given)
    other = Run(checkpoint=run.checkpoint, loss=F.l1_loss)
    with pytest.raises(ValueError, match="from a training with loss 'mse', not 'l1_loss'"):
        imagic.fine_tune(pipe, image, e_tgt, steps=1, batch=1, method="lora", run=other)
    with pytest.raises(ValueError, match="from a training with another text"):
        imagic.fine_tune(pipe, image, -e_tgt, steps=1, batch=1, method="lora", run=run)


def test_a_lora_goes_on_from_its_checkpoint(pipe, image, e_tgt, tmp_path):
    given = {"method": LoRA(2, ("to_q", "conv1")), "steps": 2, "batch": 1}
    whole, _ = imagic.fine_tune(pipe, image, e_tgt, generator=seeded(), **given)
    stop = Run(checkpoint=tmp_path / "c", watch=lambda name, history: len(history.loss) == 1)
    imagic.fine_tune(pipe, image, e_tgt, generator=seeded(), run=stop, **given)
    again, history = imagic.fine_tune(
        pipe, image, e_tgt, generator=seeded(), run=Run(checkpoint=tmp_path / "c"), **given
    )
    assert len(history.loss) == 2 and same(weights(again.unet), weights(whole.unet))


@pytest.fixture(scope="module")
def tuned_by(pipe, image, e_tgt):
    """method -> a pipeline that was fine-tuned so with a large rate. No test may change it."""
    given = {"steps": 3, "batch": 2, "lr": 1e-1, "generator": seeded()}
    return cache(lambda method: imagic.fine_tune(pipe, image, e_tgt, method=method, **given)[0])


def test_a_scale_is_the_share_of_the_way_from_the_loaded_weights_to_the_tuned_ones(pipe, tuned_by):
    tuned = tuned_by("full")
    loaded, whole = weights(pipe.unet), weights(tuned.unet)
    for scale in (0.0, 0.3, 1.0, 2.0):
        with scaled(tuned, scale) as unet:
            for name, weight in unet.state_dict().items():
                expected = loaded[name] + scale * (whole[name] - loaded[name])
                torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)
    assert same(weights(tuned.unet), whole) and same(weights(pipe.unet), loaded)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_without_any_of_its_fine_tuning_a_tuned_model_draws_as_the_loaded_one(pipe, e_tgt, tuned_by, method):
    tuned = tuned_by(method)
    draw = {"steps": 2, "guidance_scale": 2.0}
    loaded, whole = (imagic.generate(p, e_tgt, [1], **draw)[0].tobytes() for p in (pipe, tuned))
    assert imagic.generate(tuned, e_tgt, [1], scale=0, **draw)[0].tobytes() == loaded
    assert imagic.generate(tuned, e_tgt, [1], scale=1, **draw)[0].tobytes() == whole
    assert imagic.generate(tuned, e_tgt, [1], scale=0.5, **draw)[0].tobytes() not in (loaded, whole)


def test_the_scale_of_a_lora_is_the_one_of_diffusers_and_is_put_back(e_tgt, tuned_by):
    tuned = tuned_by("lora")
    z, t = torch.randn(1, 4, 16, 16, generator=seeded(1)), torch.tensor([400])
    with torch.no_grad():
        theirs = tuned.unet(z, t, e_tgt, cross_attention_kwargs={"scale": 0.3}).sample
        whole = tuned.unet(z, t, e_tgt).sample
        with scaled(tuned, 0.3) as unet:
            assert torch.equal(unet(z, t, e_tgt).sample, theirs)
        with scaled(tuned, 0.3, torch.bfloat16) as half:
            torch.testing.assert_close(
                half(z.bfloat16(), t, e_tgt.bfloat16()).sample.float(), theirs, rtol=0.1, atol=0.1
            )
        with pytest.raises(KeyError), scaled(tuned, 0.3):
            raise KeyError
        assert torch.equal(tuned.unet(z, t, e_tgt).sample, whole) and not torch.equal(theirs, whole)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_part_of_the_fine_tuning_in_half_precision_is_one_copy_of_the_unet(tuned_by, monkeypatch, method):
    """A copy in each of both ways would take a float32 UNet more than the plan has counted."""
    tuned, copies = tuned_by(method), []
    copy_of = unets.unet_copy
    monkeypatch.setattr(unets, "unet_copy", lambda *given, **how: copies.append(given) or copy_of(*given, **how))
    size, largest = (how(p.nbytes for p in tuned.unet.parameters()) for how in (sum, max))
    with LiveBytes() as live:
        live.watch(*tuned.unet.parameters(), *tuned.loaded_unet.parameters())
        before = live.now
        with scaled(tuned, 0.5, torch.bfloat16) as unet:
            assert unet is not tuned.unet and {p.dtype for p in unet.parameters()} == {torch.bfloat16}
    assert len(copies) == 1 and size / 2 <= live.peak - before <= size / 2 + 2 * largest
    with scaled(tuned, 1, torch.bfloat16) as half:
        expected = copy.deepcopy(tuned.unet).to(torch.bfloat16)
        assert same(weights(half), weights(expected)) and len(copies) == 2
    with scaled(tuned, 1, torch.float32) as unet, scaled(tuned, 1) as also:
        assert unet is also is tuned.unet and len(copies) == 2, "a copy is made only if it is needed"
    if method == "full":
        with scaled(tuned, 0.5) as whole, scaled(tuned, 0.5, torch.bfloat16) as half:
            assert same(weights(half), {name: value.bfloat16() for name, value in weights(whole).items()})


@pytest.mark.parametrize("scale", [-0.1, 2.1, float("nan")])
def test_a_scale_outside_its_range_is_refused(pipe, e_tgt, scale):
    with pytest.raises(ValueError, match=r"scale is .*: it goes from 0, no fine-tuning, .* to 2"):
        imagic.generate(pipe, e_tgt, [0], steps=1, scale=scale)


def test_a_model_that_was_not_fine_tuned_has_no_scale(pipe, e_tgt):
    with pytest.raises(ValueError, match=r"scale is 0\.5, but this model was not fine-tuned"):
        imagic.generate(pipe, e_tgt, [0], steps=1, scale=0.5)
