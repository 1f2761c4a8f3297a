"""Strategies for little memory give the same weights; half precision is real, and no other network is in the way."""

import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch

import imagic_lib as imagic
from imagic_lab.numbers.memory import LiveBytes
from imagic_lib import Run
from imagic_lib.diffusion import denoising_loss, encode_image, forward_process
from imagic_lib.training import strategies
from imagic_lib.training.loop import Training
from imagic_lib.training.strategies import Strategy, frozen_unet, networks, offloaded_to_cpu, stepping
from imagic_lib.unets import unet_copy
from tests.common import seeded, weights


def test_a_fit_encodes_the_picture_once_and_asks_the_unet_once_a_step_without_guidance(pipe, image, e_tgt, monkeypatch):
    """Bug 12: the VAE run at every step, and guidance inside the training loss."""
    encoded, asked = [], []
    encode, ask = pipe.vae.encode, pipe.unet.forward
    monkeypatch.setattr(pipe.vae, "encode", lambda x: encoded.append(len(x)) or encode(x))
    monkeypatch.setattr(pipe.unet, "forward", lambda z, *rest, **more: asked.append(len(z)) or ask(z, *rest, **more))
    imagic.optimize_embedding(pipe, image, e_tgt, steps=3, batch=2, generator=seeded(), run=Run(probe_every=100))
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
        elsewhere = unet_copy(pipe.unet, torch.device("meta"), checkpointing=True)
    assert live.peak == size == sum(p.nbytes for p in elsewhere.parameters())


def test_a_copy_shares_nothing_and_has_the_precision_that_was_asked_for(pipe):
    half = unet_copy(pipe.unet, torch.device("cpu"), torch.bfloat16)
    same = unet_copy(pipe.unet, torch.device("cpu"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    for (name, old), new in zip(pipe.unet.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(old, new) and old.data_ptr() != new.data_ptr(), name
        assert new.requires_grad == old.requires_grad and new.stride() == old.stride()


def test_frozen_weights_are_frozen_in_the_copy_and_counters_stay_whole_numbers():
    unet = torch.nn.BatchNorm1d(2).requires_grad_(False)
    copied = unet_copy(unet, torch.device("cpu"), torch.bfloat16)
    assert not any(p.requires_grad for p in copied.parameters())
    assert copied.running_mean.dtype == torch.bfloat16 and copied.num_batches_tracked.dtype == torch.long
    copied.running_mean += 1
    assert torch.equal(unet.running_mean, torch.zeros(2))


def test_the_frozen_unet_shares_the_pipelines_weights_or_is_a_frugal_copy_and_does_not_learn(pipe):
    for given in (None, Strategy()):
        with frozen_unet(pipe, given) as unet:
            shared = zip(unet.parameters(), pipe.unet.parameters(), strict=True)
            assert all(a.data_ptr() == b.data_ptr() and not a.requires_grad and b.requires_grad for a, b in shared)
    for given in (Strategy(dtype=torch.bfloat16), Strategy(checkpointing=True)):
        with frozen_unet(pipe, given) as unet:
            assert unet is not pipe.unet and unet.dtype == given.dtype and unet.device == pipe.unet.device
            assert unet.is_gradient_checkpointing == given.checkpointing
            assert not any(p.requires_grad for p in unet.parameters())


def test_only_the_unet_in_use_stays_on_the_gpu(pipe, monkeypatch):
    away = []
    monkeypatch.setattr(strategies, "offloaded_to_cpu", lambda *modules: away.append(modules) or nullcontext())
    with frozen_unet(pipe, None), frozen_unet(pipe, Strategy(checkpointing=True)):
        pass
    others = [pipe.vae, pipe.text_encoder]
    assert [m in away[0] for m in (*others, pipe.unet)] == [True, True, False]
    assert [m in away[1] for m in (*others, pipe.unet)] == [True, True, True]
    assert set(networks(pipe)) == {*others, pipe.unet}


def test_adam_in_backward_steps_at_once_and_frees_each_gradient():
    """Otherwise all gradients of SD 1.4 would be in memory together, 3.4 GB."""
    stepped = {}
    for optimizer in ("Adam", "Adam in backward"):
        weight = torch.nn.Parameter(torch.ones(3))
        with stepping({"w": weight}, 0.1, Strategy(optimizer=optimizer)) as adam:
            weight.sum().backward()
            assert (weight.grad is None) == (optimizer == "Adam in backward")
            adam.step()
        stepped[optimizer] = weight.detach()
    torch.testing.assert_close(stepped["Adam"], torch.full((3,), 0.9))
    assert torch.equal(*stepped.values())


@pytest.mark.parametrize("train_mode", [True, False])
def test_gradient_checkpointing_works_in_eval_mode_too(pipe, image, e_tgt, train_mode):
    """Bug 10: gradient checkpointing that is silently off in eval mode."""
    kept = {}
    for checkpointing in (False, True):
        unet = unet_copy(pipe.unet, torch.device("cpu"), checkpointing=checkpointing)
        unet.train(train_mode)
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            denoising_loss(unet, forward_process(pipe), encode_image(pipe, image), e_tgt, 2, seeded())
        kept[checkpointing] = sum(sizes)
    assert kept[True] < 0.7 * kept[False]


TWO_STEPS = {"steps": 2, "lr": 1e-3, "batch": 1}


@pytest.fixture(scope="module")
def plain(pipe, image, e_tgt):
    """(the weights, the history) of a fine-tuning without a strategy."""
    tuned, history = imagic.fine_tune(pipe, image, e_tgt, generator=seeded(), **TWO_STEPS)
    return weights(tuned.unet), history


def assert_same_training(tuned, history, plain):
    """The same up to the last digits."""
    assert history.loss == pytest.approx(plain[1].loss, rel=1e-4)
    for name, value in weights(tuned.unet).items():
        torch.testing.assert_close(value, plain[0][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [Strategy(checkpointing=True), Strategy(optimizer="Adam in backward")])
def test_every_full_strategy_gives_the_same_weights(pipe, image, e_tgt, plain, how):
    tuned, history = imagic.fine_tune(pipe, image, e_tgt, generator=seeded(), run=Run(strategy=how), **TWO_STEPS)
    assert_same_training(tuned, history, plain)
    assert all(p.grad is None for p in tuned.unet.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_precision_is_real_or_absent(pipe, image, e_tgt, dtype, monkeypatch):
    """Bug 1: a loss that is scaled for half precision while everything runs in single precision."""
    seen, real = [], Training.step

    def step(training, loss):
        seen.append((loss.item(), training.scaler.is_enabled()))
        real(training, loss)

    monkeypatch.setattr(Training, "step", step)
    frugal = Strategy(dtype=dtype)
    tuned, history = imagic.fine_tune(
        pipe, image, e_tgt, method="lora", steps=2, batch=1, generator=seeded(), run=Run(strategy=frugal)
    )
    losses, scaled = zip(*seen, strict=True)
    assert list(losses) == history.loss  # in the units of the loss, not scaled
    assert set(scaled) == {dtype == torch.float16}
    assert tuned.unet.conv_in.weight.dtype == dtype and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_lora_trains_and_draws(pipe, image, e_tgt, dtype):
    """Bug 2: noise drawn in single precision crashes in float16. Here adapters and optimizer stay in float32."""
    frugal = Strategy(dtype=dtype, checkpointing=True)
    given = {"steps": 6, "lr": 2e-2, "batch": 2, "generator": seeded()}
    run = Run(strategy=frugal, probe_every=6)
    tuned, history = imagic.fine_tune(pipe, image, e_tgt, method="lora", run=run, **given)
    assert tuned.unet.dtype == dtype and pipe.unet.dtype == torch.float32
    adapters = [p for n, p in tuned.unet.named_parameters() if "lora" in n]
    assert {p.dtype for p in adapters} == {torch.float32}
    assert history.probe_loss[-1] < history.probe_loss[0]
    assert imagic.generate(tuned, e_tgt, [0], steps=2)[0].size == (128, 128)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stage_1_in_half_precision_keeps_e_opt_in_float32(pipe, image, e_tgt, dtype):
    frugal = Strategy(dtype=dtype, checkpointing=True)
    e_opt, history = imagic.optimize_embedding(
        pipe, image, e_tgt, steps=5, lr=0.05, batch=2, generator=seeded(), run=Run(strategy=frugal)
    )
    assert e_opt.dtype == torch.float32 and history.probe_loss[-1] < history.probe_loss[0]
    assert not pipe.unet.is_gradient_checkpointing


def test_networks_that_are_offloaded_come_back(monkeypatch):
    class Part(torch.nn.Linear):
        moves = ()

        def parameters(self, recurse=True):
            yield SimpleNamespace(device=torch.device("cuda:1"))

        def to(self, device):
            self.moves += (str(device),)
            return self

    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module.to(device))
    part, here = Part(1, 1), torch.nn.Linear(1, 1)
    with pytest.raises(KeyError), offloaded_to_cpu(part, here):
        assert part.moves == ("cpu",)
        raise KeyError
    assert part.moves == ("cpu", "cuda:1")


class Adam8bit(torch.optim.Adam):
    """What bitsandbytes has under this name takes weights and a rate, too."""

    def __init__(self, weights, lr):
        super().__init__(weights, lr=lr)
        made.append((sum(p.numel() for p in self.param_groups[0]["params"]), lr))


made = []


def test_the_8_bit_optimizer_trains_and_a_plain_one_refuses_its_state(pipe, image, e_tgt, plain, monkeypatch, tmp_path):
    """bitsandbytes needs a GPU: a stand-in module shows that the branch does its work."""
    made.clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module := ModuleType("bitsandbytes.optim"))
    module.Adam8bit = Adam8bit
    run = Run(strategy=Strategy(optimizer="Adam 8-bit"), checkpoint=tmp_path / "c")
    tuned, history = imagic.fine_tune(pipe, image, e_tgt, generator=seeded(), run=run, **TWO_STEPS)
    assert made == [(sum(p.numel() for p in pipe.unet.parameters()), 1e-3)]
    assert_same_training(tuned, history, plain)
    with pytest.raises(ValueError, match="optimizer 'Adam8bit', not 'Adam'"):
        again = Run(checkpoint=tmp_path / "c")
        imagic.fine_tune(pipe, image, e_tgt, generator=seeded(), run=again, **TWO_STEPS)


def test_a_checkpoint_goes_on_with_another_strategy_that_has_the_same_optimizer(pipe, image, e_tgt, plain, tmp_path):
    """A T4 steps in the backward pass and a larger GPU need not, but the state is the same."""
    first = Run(
        strategy=Strategy(optimizer="Adam in backward"),
        checkpoint=tmp_path / "c",
        watch=lambda name, history: True,
    )
    _, history = imagic.fine_tune(pipe, image, e_tgt, generator=seeded(), run=first, **TWO_STEPS)
    assert len(history.loss) == 1
    then = Run(strategy=Strategy(checkpointing=True), checkpoint=tmp_path / "c")
    tuned, history = imagic.fine_tune(pipe, image, e_tgt, generator=seeded(), run=then, **TWO_STEPS)
    assert_same_training(tuned, history, plain)


def test_the_moments_are_gone_when_the_other_networks_come_back():
    weight = torch.nn.Parameter(torch.ones(3))
    with stepping({"w": weight}, 0.1, None) as adam:
        weight.sum().backward()
        adam.step()
        assert adam.state
    assert not adam.state
