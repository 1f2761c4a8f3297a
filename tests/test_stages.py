"""The four stages against ground truth: diffusers' own pipeline, float64 differences, the paper's equations."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

import imagic_lib as imagic
from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.diffusion import (
    Probe,
    decode_latents,
    denoising_loss,
    encode_image,
    noised,
    stratified_timesteps,
    training_noise,
)
from imagic_lib.stage2_finetuning import with_unet
from imagic_lib.stage4_inference import predicted_original
from imagic_lib.toyworld import Scene
from imagic_lib.training import strategies
from imagic_lib.training.loop import plain_step
from imagic_lib.training.memory import LiveBytes
from imagic_lib.training.strategies import Strategy, unet_copy, waiting


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def image(pipe):
    return imagic.load_image(Scene.sample(5).render(), pipe)


@pytest.fixture(scope="module")
def e_tgt(pipe):
    return imagic.encode_text(pipe, "a brown dog jumping on the grass")


# ------------------------------------------------------------------------------- what stages share


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
    expected = training_noise(pipe).add_noise(x, noise, t)
    other = copy.deepcopy(pipe)
    other.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(training_noise(other).add_noise(x, noise, t), expected)
    a = pipe.scheduler.alphas_cumprod[t][:, None, None, None]
    torch.testing.assert_close(expected, a.sqrt() * x + (1 - a).sqrt() * noise)


def test_prediction_target_follows_the_config(pipe):
    """Bug 7: ε-prediction taken for granted."""
    x, noise, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([100, 900])
    assert torch.equal(noised(training_noise(pipe), x, noise, t)[1], noise)
    other = copy.deepcopy(pipe)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    a = pipe.scheduler.alphas_cumprod[t][:, None, None, None]
    torch.testing.assert_close(noised(training_noise(other), x, noise, t)[1], a.sqrt() * noise - (1 - a).sqrt() * x)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="sample")
    with pytest.raises(ValueError, match="'sample' is not supported"):
        noised(training_noise(other), x, noise, t)


def test_timesteps_cover_every_stratum_of_the_models_own_range():
    """Bug 7: 1000 timesteps taken for granted."""
    for total in (1000, 40):
        t = stratified_timesteps(8, total, seeded())
        assert [int(v) * 8 // total for v in t] == list(range(8)) and t.max() < total
    drawn = torch.cat([stratified_timesteps(1, 1000, seeded(s)) for s in range(2000)])
    assert 470 < drawn.float().mean() < 530 and drawn.min() < 10 and drawn.max() > 990


def test_probe_is_the_same_number_twice_and_is_the_mean_of_its_pairs(pipe, image, e_tgt):
    process, latents = training_noise(pipe), encode_image(pipe, image)
    probe = Probe(process, latents)
    assert probe(pipe.unet, e_tgt) == Probe(process, latents)(pipe.unet, e_tgt)
    with torch.no_grad():
        answer = pipe.unet(probe.z_t, probe.t, e_tgt.expand(8, -1, -1)).sample
    assert probe(pipe.unet, e_tgt) == pytest.approx((answer - probe.target).square().mean().item(), rel=1e-5)


# ------------------------------------------------------------------------------------------ stage 1


def test_stage_1_gradient_equals_float64_finite_differences(pipe, image, e_tgt):
    double = copy.deepcopy(pipe).to(torch.float64)
    process, latents = training_noise(double), encode_image(double, image.double())
    e = e_tgt.double().clone().requires_grad_(True)

    def loss(value):
        return denoising_loss(double.unet, process, latents, value, 2, seeded(3))

    (gradient,) = torch.autograd.grad(loss(e), e)
    direction = torch.randn(e.shape, generator=seeded(1), dtype=torch.float64)
    with torch.no_grad():
        slope = (loss(e + 1e-5 * direction) - loss(e - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-12)


def test_stage_1_is_plain_adam_on_the_paper_s_loss(pipe, image, e_tgt):
    """The loop of the notebook, written out: the library must give the same numbers."""
    e_opt, history = imagic.optimize_embedding(pipe, image, e_tgt, steps=5, lr=0.01, batch=2, generator=seeded())
    process, z, e, generator = training_noise(pipe), encode_image(pipe, image), e_tgt.clone(), seeded()
    e.requires_grad_(True)
    adam = torch.optim.Adam([e], lr=0.01)
    for step in range(5):
        t = stratified_timesteps(2, 1000, generator)
        noise = torch.randn((2, *z.shape[1:]), generator=generator)
        z_t = process.add_noise(z.expand(2, -1, -1, -1), noise, t)
        loss = (pipe.unet(z_t, t, e.expand(2, -1, -1)).sample - noise).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert history.loss[step] == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(e_opt, e.detach(), rtol=1e-6, atol=1e-7)
    pipe.unet.zero_grad(set_to_none=True)


def test_stage_1_leaves_the_model_and_the_text_as_they_were(pipe, image):
    """Bugs 5 and 9: e_tgt keeps its graph; an unfrozen UNet gathers gradients, and is left in train mode."""
    e_tgt = imagic.encode_text(pipe, "a cat").requires_grad_(True)
    before, start = weights(pipe.unet), e_tgt.detach().clone()
    e_opt, _ = imagic.optimize_embedding(pipe, image, e_tgt, steps=2, generator=seeded())
    assert same(weights(pipe.unet), before) and torch.equal(e_tgt, start)
    assert all(p.grad is None and p.requires_grad for p in pipe.unet.parameters())
    assert e_tgt.grad is None and not e_opt.requires_grad and not pipe.unet.training
    assert not torch.equal(e_opt, start)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(pipe, image, e_tgt):
    """Bug 2: noise drawn without the caller's generator."""
    torch.manual_seed(1)
    one = imagic.optimize_embedding(pipe, image, e_tgt, steps=3, generator=seeded(7))[0]
    torch.manual_seed(2)
    two = imagic.optimize_embedding(pipe, image, e_tgt, steps=3, generator=seeded(7))[0]
    three = imagic.optimize_embedding(pipe, image, e_tgt, steps=3, generator=seeded(8))[0]
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_probe_loss_falls_and_is_no_running_mean(pipe, image, e_tgt):
    """Bug 13: a running mean falls by construction. The probe at a step is that of the embedding then."""
    e_opt, history = imagic.optimize_embedding(
        pipe, image, e_tgt, steps=20, lr=0.05, batch=4, probe_every=7, generator=seeded()
    )
    assert history.probe_step == [0, 7, 14, 20] and len(history.loss) == len(history.learning_rate) == 20
    probe = Probe(training_noise(pipe), encode_image(pipe, image))
    assert history.probe_loss[0] == probe(pipe.unet, e_tgt) and history.probe_loss[-1] == probe(pipe.unet, e_opt)
    assert history.probe_loss[-1] < history.probe_loss[0]


def test_defaults_of_stable_diffusion_are_the_paper_s():
    assert stage1_embedding.DEFAULTS["stable-diffusion"] == {"steps": 1000, "lr": 2e-3, "batch": 1}
    assert stage2_finetuning.DEFAULTS["full"]["stable-diffusion"] == {
        "steps": 1500,
        "lr": 5e-7,
        "batch": 1,
        "decay": 0.0,
    }


# ------------------------------------------------------------------------------------------ stage 2


def test_fine_tuning_changes_a_copy_and_a_second_fit_starts_clean(pipe, image, e_tgt):
    """Bug 6: the second fit starts from the tuned UNet."""
    before = weights(pipe.unet)
    tuned, first = imagic.fine_tune(pipe, image, e_tgt, steps=3, lr=1e-3, generator=seeded())
    again, second = imagic.fine_tune(pipe, image, e_tgt, steps=3, lr=1e-3, generator=seeded())
    assert same(weights(pipe.unet), before) and not same(weights(tuned.unet), before)
    assert first.loss == second.loss and same(weights(tuned.unet), weights(again.unet))
    assert tuned.vae is pipe.vae and not tuned.unet.training
    assert not any(p.requires_grad for p in tuned.unet.parameters())
    assert all(p.requires_grad for p in pipe.unet.parameters())


def test_stage_2_gradient_equals_float64_finite_differences(pipe, image, e_tgt):
    double = copy.deepcopy(pipe).to(torch.float64)
    process, latents = training_noise(double), encode_image(double, image.double())
    weight = double.unet.conv_out.weight

    def loss():
        return denoising_loss(double.unet, process, latents, e_tgt.double(), 2, seeded(3))

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
        pipe, image, e_tgt, method="lora", rank=2, steps=4, lr=1e-2, batch=4, generator=seeded()
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
        imagic.fine_tune(pipe, image, e_tgt, method="lora", targets=["to_z"], steps=1)


# ------------------------------------------------------------------------------------------ stage 4


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_generate_equals_diffusers_bit_for_bit(pipe, e_tgt, guidance):
    ours = imagic.generate(pipe, e_tgt, [11], steps=5, guidance_scale=guidance, negative_prompt="a cat")
    theirs = pipe(
        prompt_embeds=e_tgt,
        negative_prompt="a cat" if guidance > 1 else None,
        num_inference_steps=5,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(11),
        height=128,
        width=128,
    ).images[0]
    assert ours[0].tobytes() == theirs.tobytes()


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
        z_t, answer = noised(training_noise(other), z, noise, torch.tensor([t]))
        torch.testing.assert_close(predicted_original(other, z_t, answer, t), z, rtol=1e-4, atol=1e-4)
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


# ------------------------------------------------------------------------- strategies for small GPUs


def strategy(**changes):
    given = {"method": "full", "dtype": torch.float32, "optimizer": "Adam", "checkpointing": False}
    return Strategy(**(given | changes))


def test_a_fit_encodes_the_picture_once_and_asks_the_unet_once_a_step_without_guidance(pipe, image, e_tgt, monkeypatch):
    """Bug 12: the VAE run at every step, and guidance inside the training loss."""
    encoded, asked = [], []
    encode, ask = pipe.vae.encode, pipe.unet.forward
    monkeypatch.setattr(pipe.vae, "encode", lambda x: encoded.append(len(x)) or encode(x))
    monkeypatch.setattr(pipe.unet, "forward", lambda z, *rest, **more: asked.append(len(z)) or ask(z, *rest, **more))
    imagic.optimize_embedding(pipe, image, e_tgt, steps=3, batch=2, probe_every=100, generator=seeded())
    assert encoded == [1]
    assert asked == [4, 4, 2, 2, 2, 4, 4]  # the probe before and after in two halves, and one question a step


def test_the_copy_that_learns_is_made_where_it_stays(pipe):
    """Copied first and moved to the GPU later, the UNet would for a while be in the computer's memory twice."""

    class InTheComputer(LiveBytes):
        def watch(self, *tensors):
            super().watch(*(t for t in tensors if t.device.type == "cpu"))

    size = sum(p.nbytes for p in pipe.unet.parameters())
    with InTheComputer() as live:
        live.watch(*pipe.unet.parameters())
        elsewhere = unet_copy(pipe.unet, strategy(checkpointing=True), torch.device("meta"))
    assert live.peak == size == sum(p.nbytes for p in elsewhere.parameters())


def test_a_copy_shares_nothing_and_has_the_strategys_precision(pipe):
    half = unet_copy(pipe.unet, strategy(dtype=torch.bfloat16), torch.device("cpu"))
    same = unet_copy(pipe.unet, None, torch.device("cpu"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    for (name, old), new in zip(pipe.unet.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(old, new) and old.data_ptr() != new.data_ptr(), name
        assert new.requires_grad == old.requires_grad and new.stride() == old.stride()


@pytest.mark.parametrize("train_mode", [True, False])
def test_gradient_checkpointing_works_in_eval_mode_too(pipe, image, e_tgt, train_mode):
    """Bug 10: gradient checkpointing that is silently off in eval mode."""
    kept = {}
    for checkpointing in (False, True):
        unet = unet_copy(pipe.unet, strategy(checkpointing=checkpointing), torch.device("cpu"))
        unet.train(train_mode)
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            denoising_loss(unet, training_noise(pipe), encode_image(pipe, image), e_tgt, 2, seeded())
        kept[checkpointing] = sum(sizes)
    assert kept[True] < 0.7 * kept[False]


def test_every_full_strategy_gives_the_same_weights(pipe, image, e_tgt):
    fits = [
        imagic.fine_tune(pipe, image, e_tgt, steps=3, lr=1e-3, strategy=s, generator=seeded())
        for s in (None, strategy(checkpointing=True), strategy(optimizer="Adam in backward"))
    ]
    plain = weights(fits[0][0].unet)
    for tuned, history in fits[1:]:
        assert history.loss == pytest.approx(fits[0][1].loss, rel=1e-4)
        for name, value in weights(tuned.unet).items():
            torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-5)
        assert all(p.grad is None for p in tuned.unet.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_precision_is_real_or_absent(pipe, image, e_tgt, dtype, monkeypatch):
    """Bug 1: a loss that is scaled for half precision while everything runs in single precision."""
    seen = []

    def step(loss, progress):
        seen.append((loss.item(), progress.scaler))
        return plain_step(loss, progress)

    monkeypatch.setattr(strategies, "plain_step", step)
    frugal = strategy(method="lora", dtype=dtype)
    tuned, history = imagic.fine_tune(pipe, image, e_tgt, strategy=frugal, steps=2, generator=seeded())
    losses, scalers = zip(*seen, strict=True)
    assert list(losses) == history.loss  # in the units of the loss: nobody scaled it on the way
    assert {type(s) for s in scalers} == {torch.amp.GradScaler if dtype == torch.float16 else type(None)}
    assert tuned.unet.conv_in.weight.dtype == dtype and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_lora_trains_and_draws(pipe, image, e_tgt, dtype):
    """Bug 2: noise drawn in single precision crashes in float16. Here adapters and optimizer stay in float32."""
    frugal = strategy(method="lora", dtype=dtype, checkpointing=True)
    tuned, history = imagic.fine_tune(
        pipe, image, e_tgt, strategy=frugal, steps=12, lr=2e-2, batch=4, probe_every=6, generator=seeded()
    )
    assert tuned.unet.dtype == dtype and pipe.unet.dtype == torch.float32
    adapters = [p for n, p in tuned.unet.named_parameters() if "lora" in n]
    assert {p.dtype for p in adapters} == {torch.float32}
    assert history.probe_loss[-1] < history.probe_loss[0]
    assert imagic.generate(tuned, e_tgt, [0], steps=2)[0].size == (128, 128)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stage_1_in_half_precision_keeps_e_opt_in_float32(pipe, image, e_tgt, dtype):
    frugal = strategy(method="lora", dtype=dtype, checkpointing=True)
    e_opt, history = imagic.optimize_embedding(
        pipe, image, e_tgt, strategy=frugal, steps=12, lr=0.05, batch=4, generator=seeded()
    )
    assert e_opt.dtype == torch.float32 and history.probe_loss[-1] < history.probe_loss[0]
    assert not pipe.unet.is_gradient_checkpointing


def test_what_is_not_trained_waits_in_the_computers_memory_and_comes_back(monkeypatch):
    class Part(torch.nn.Linear):
        moves, full = (), False

        def parameters(self, recurse=True):
            yield SimpleNamespace(device=torch.device("cuda:1"))

        def to(self, device):
            self.moves += (str(device),)
            if self.full and device != "cpu":
                raise torch.OutOfMemoryError("no room")
            return self

    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module.to(device))
    part, here = Part(1, 1), torch.nn.Linear(1, 1)
    with pytest.raises(KeyError), waiting(part, here):
        assert part.moves == ("cpu",)
        raise KeyError
    assert part.moves == ("cpu", "cuda:1")
    full = Part(1, 1)
    full.full = True
    with pytest.raises(torch.OutOfMemoryError), waiting(full):
        pass
    assert full.moves == ("cpu", "cuda:1", "cpu")


def test_running_out_of_memory_names_the_next_smaller_strategy(pipe, image, monkeypatch, tmp_path):
    def no_memory(*args, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(imagic.edit, "fine_tune", no_memory)
    with pytest.raises(MemoryError, match=r"“full, float32, Adam, checkpointing” .*; the checkpoint in .* is kept"):
        imagic.run_edit(pipe, image, "a cat", embedding_steps=1, unet_steps=1, folder=tmp_path)
    assert (tmp_path / "checkpoint-embedding.safetensors").exists()
    with pytest.raises(MemoryError, match=r"“LoRA, .*checkpointing” \(imagic_lib.training.memory.plan shows all\)$"):
        imagic.run_edit(pipe, image, "a cat", embedding_steps=1, method="lora")
    last = strategy(method="lora", dtype=torch.float16, checkpointing=True)
    with pytest.raises(MemoryError, match="only a larger GPU will do"):
        imagic.run_edit(pipe, image, "a cat", embedding_steps=1, strategy=last)


def test_full_fine_tuning_of_half_precision_weights_is_refused(pipe, image, e_tgt):
    half = with_unet(pipe, copy.deepcopy(pipe.unet).half())
    with pytest.raises(ValueError, match=r"vanish in torch.float16 weights: load the model in float32"):
        imagic.fine_tune(half, image, e_tgt, steps=1)


def test_settings_that_can_t_be_are_one_clear_sentence(pipe, image, e_tgt):
    for bad in ({"steps": -1}, {"lr": 0.0}, {"batch": 0}):
        with pytest.raises(ValueError, match=rf"{next(iter(bad))} is .*: it must be"):
            imagic.optimize_embedding(pipe, image, e_tgt, **bad)
    for decay in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"decay is {decay}: it (must be 0 or more|is a share)"):
            imagic.fine_tune(pipe, image, e_tgt, decay=decay)
    for seeds in ([], 0, [-1], [0.5], [2**63]):
        with pytest.raises(ValueError, match="seeds must be a list"):
            imagic.generate(pipe, e_tgt, seeds)


# ---------------------------------------------------------------------------- samplers and the checker


def test_samplers_by_name_share_the_models_noise_process(pipe, e_tgt):
    pictures = set()
    for name in ("ddim", "pndm", "dpm++"):
        scheduler = imagic.stage4_inference.sampler(pipe, name)
        assert torch.equal(scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod)
        pictures.add(imagic.generate(pipe, e_tgt, [0], steps=4, scheduler=name)[0].tobytes())
    assert len(pictures) == 3
    pndm = imagic.stage4_inference.sampler(pipe, "pndm")
    pndm.set_timesteps(4)
    assert len(pndm.timesteps) == 5  # one call more than steps; with its Runge-Kutta start it would be 13
    with pytest.raises(ValueError, match="'euler' is unknown: choose one of ddim, pndm"):
        imagic.generate(pipe, e_tgt, [0], scheduler="euler")
    with pytest.raises(ValueError, match=r"EulerDiscreteScheduler is not supported: give scheduler= one of ddim"):
        imagic.generate(pipe, e_tgt, [0], scheduler=EulerDiscreteScheduler.from_config(pipe.scheduler.config))


def test_a_safety_checker_that_the_model_ships_stays_on(pipe, e_tgt):
    other = with_unet(pipe, pipe.unet)
    calls = []

    class Checker(torch.nn.Linear):
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, images, clip_input):
            calls.append((images.shape, clip_input.shape))
            return images, [True, False]

    def look(pictures, return_tensors):
        return SimpleNamespace(pixel_values=torch.zeros(len(pictures), 3, 8, 8))

    other.safety_checker, other.feature_extractor = Checker(1, 1), look
    with pytest.warns(UserWarning, match="flagged 1 of 2 pictures"):
        flagged, fine = imagic.generate(other, e_tgt, [0, 1], steps=1)
    assert flagged.getextrema() == ((0, 0),) * 3 and fine.getextrema() != ((0, 0),) * 3
    assert calls == [((2, 128, 128, 3), (2, 3, 8, 8))]
