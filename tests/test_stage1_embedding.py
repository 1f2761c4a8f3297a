"""Stage 1 against ground truth: float64 differences, a loop written out, the paper's settings."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F

import imagic_lib as imagic
from imagic_lib import Run
from imagic_lib.diffusion import Probe, denoising_loss, encode_image, forward_process, mse
from imagic_lib.files import load_tensors
from imagic_lib.unets import with_unet
from tests.common import loss_by_hand, same, seeded, weights


def test_stage_1_gradient_equals_float64_finite_differences(pipe, image, e_tgt):
    double = copy.deepcopy(pipe).to(torch.float64)
    process, latents = forward_process(double), encode_image(double, image.double())
    e = e_tgt.double().clone().requires_grad_(True)

    def loss(value):
        return denoising_loss(double.unet, process, latents, value, 2, seeded(3))

    torch.testing.assert_close(loss(e), loss_by_hand(double, double.unet, latents, e, 2, seeded(3)))
    (gradient,) = torch.autograd.grad(loss(e), e)
    direction = torch.randn(e.shape, generator=seeded(1), dtype=torch.float64)
    with torch.no_grad():
        slope = (loss(e + 1e-5 * direction) - loss(e - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-12)


def test_stage_1_is_plain_adam_on_the_paper_s_loss(pipe, image, e_tgt):
    """The library must give the same numbers as the loop of the notebook, which is written out here."""
    e_opt, history = imagic.optimize_embedding(pipe, image, e_tgt, steps=3, lr=0.01, batch=2, generator=seeded())
    z, e, generator = encode_image(pipe, image), e_tgt.clone().requires_grad_(True), seeded()
    adam = torch.optim.Adam([e], lr=0.01)
    for step in range(3):
        loss = loss_by_hand(pipe, pipe.unet, z, e, 2, generator)
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert history.loss[step] == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(e_opt, e.detach(), rtol=1e-6, atol=1e-7)
    pipe.unet.zero_grad(set_to_none=True)


def test_the_loss_of_a_run_is_the_one_that_is_minimised(pipe, image, e_tgt):
    run = Run(loss=F.l1_loss)
    _, history = imagic.optimize_embedding(pipe, image, e_tgt, steps=1, batch=2, generator=seeded(), run=run)
    z, process = encode_image(pipe, image), forward_process(pipe)
    with torch.no_grad():
        loss = denoising_loss(pipe.unet, process, z, e_tgt, 2, seeded(), F.l1_loss)
        assert loss != denoising_loss(pipe.unet, process, z, e_tgt, 2, seeded())
    assert history.loss[0] == pytest.approx(loss.item(), rel=1e-6)


def test_the_embedding_is_optimised_in_float32_whatever_precision_the_text_has(pipe, image, e_tgt):
    """In half precision a small step would be rounded away."""
    half = e_tgt.to(torch.bfloat16)
    e_opt, _ = imagic.optimize_embedding(pipe, image, half, steps=1, lr=1e-5, generator=seeded())
    assert e_opt.dtype == torch.float32
    assert 0 < (e_opt - half.float()).abs().max() < 1.1e-5


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
    one = imagic.optimize_embedding(pipe, image, e_tgt, steps=2, batch=1, generator=seeded(7))[0]
    torch.manual_seed(2)
    two = imagic.optimize_embedding(pipe, image, e_tgt, steps=2, batch=1, generator=seeded(7))[0]
    three = imagic.optimize_embedding(pipe, image, e_tgt, steps=2, batch=1, generator=seeded(8))[0]
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_the_probe_loss_falls_and_is_not_a_running_mean(pipe, image, e_tgt):
    """Bug 13: a running mean falls by construction. The probe at a step is that of the embedding then."""
    e_opt, history = imagic.optimize_embedding(
        pipe, image, e_tgt, steps=9, lr=0.05, batch=2, generator=seeded(), run=Run(probe_every=4)
    )
    assert history.probe_step == [0, 4, 8, 9] and len(history.loss) == len(history.learning_rate) == 9
    probe = Probe(forward_process(pipe), encode_image(pipe, image))
    assert history.probe_loss[0] == probe(pipe.unet, e_tgt) and history.probe_loss[-1] == probe(pipe.unet, e_opt)
    assert history.probe_loss[-1] < history.probe_loss[0]


FOUR_STEPS = {"steps": 4, "batch": 2}


@pytest.fixture(scope="module")
def stopped(pipe, image, e_tgt, tmp_path_factory):
    """The checkpoint of a fit that was stopped after two of four steps."""
    path = tmp_path_factory.mktemp("stopped") / "c"
    run = Run(checkpoint=path, watch=lambda name, history: len(history.loss) == 2)
    imagic.optimize_embedding(pipe, image, e_tgt, **FOUR_STEPS, generator=seeded(), run=run)
    return path


@pytest.fixture
def continued(pipe, image, e_tgt, stopped, tmp_path):
    """Continue that fit: what is changed -> (e_opt, history)."""

    def go_on(loss=mse, bias=None, **changes):
        run = Run(checkpoint=shutil.copy(stopped, tmp_path / "c"), loss=loss, bias=bias)
        given = {"pipe": pipe, "image": image, "e_tgt": e_tgt, **FOUR_STEPS, "generator": seeded(), "run": run}
        return imagic.optimize_embedding(**given | changes)

    return go_on


def test_a_fit_that_was_begun_on_one_machine_goes_on_on_another(pipe, image, e_tgt, continued):
    """There the text encoder's last digits differ, and the model can be loaded in another precision."""
    whole, history = imagic.optimize_embedding(pipe, image, e_tgt, **FOUR_STEPS, generator=seeded())
    same, again = continued()
    assert torch.equal(same, whole) and again.loss == history.loss
    there = e_tgt * (1 + 1e-5 * torch.randn(e_tgt.shape, generator=seeded(1)))
    e_opt, again = continued(e_tgt=there, image=image.half().float())
    assert again.loss[:2] == history.loss[:2] and again.loss == pytest.approx(history.loss, rel=1e-2)
    torch.testing.assert_close(e_opt, whole, rtol=1e-2, atol=1e-2)


def test_another_fit_is_refused_by_name(pipe, image, e_tgt, continued):
    other = with_unet(pipe, copy.deepcopy(pipe.unet))
    with torch.no_grad():
        other.unet.conv_out.bias += 0.1
    changes = {
        "another text": {"e_tgt": imagic.encode_text(pipe, "a brown dog jumping on the beach")},
        "another picture": {"image": (image + 2 / 255).clamp(-1, 1)},
        "another model": {"pipe": other},
        "another seed": {"generator": seeded(1)},
        "batch 2, not 3": {"batch": 3},
        "loss 'mse', not 'l1_loss'": {"loss": F.l1_loss},
    }
    for name, change in changes.items():
        with pytest.raises(ValueError, match=f"from a training with {name}: choose another folder, or delete"):
            continued(**change)


def test_a_fit_with_another_bias_is_refused_with_and_without_one(pipe, image, e_tgt, continued, tmp_path):
    with pytest.raises(ValueError, match=r"from a training with "):
        continued(bias=1.0)
    assert len(continued(bias=0.0)[1].loss) == 4, "which is what is left out"
    run = Run(checkpoint=tmp_path / "biased", bias=1.0)
    given = {"steps": 1, "batch": 1}
    imagic.optimize_embedding(pipe, image, e_tgt, generator=seeded(), run=run, **given)
    with pytest.raises(ValueError, match=r"from a training with "):
        imagic.optimize_embedding(pipe, image, e_tgt, generator=seeded(), run=Run(checkpoint=run.checkpoint), **given)


def test_a_checkpoint_of_stage_2_is_refused(pipe, image, e_tgt, tmp_path):
    given = {"steps": 1, "lr": 1e-3, "batch": 2, "run": Run(checkpoint=tmp_path / "a")}
    imagic.fine_tune(pipe, image, e_tgt, generator=seeded(), **given)
    with pytest.raises(ValueError, match="from a training with another method"):
        imagic.optimize_embedding(pipe, image, e_tgt, generator=seeded(), **given)


def test_a_checkpoint_names_the_embedding(pipe, image, e_tgt, tmp_path):
    """Files of one version are read by the next."""
    run = Run(checkpoint=tmp_path / "a")
    e_opt, _ = imagic.optimize_embedding(pipe, image, e_tgt, steps=1, generator=seeded(), run=run)
    tensors, _ = load_tensors(tmp_path / "a")
    assert torch.equal(tensors["trained.e_opt"], e_opt)
