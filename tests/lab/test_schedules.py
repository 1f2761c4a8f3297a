"""Other schedules of the two trainings: the plain one is the library's, the others change what they say they change."""

from functools import partial

import numpy as np
import pytest
import torch

import imagic_lib as imagic
from imagic_lab.benchmark import counted
from imagic_lab.methods import Method
from imagic_lab.numbers.schedules import Schedule, has_settled, scheduled, train_on_schedule
from imagic_lib.stage3_interpolation import interpolate
from imagic_lib.stage4_inference import generate
from tests.common import same, seeded, weights

TEXT = "a brown dog jumping on the grass"
PLAIN = Schedule(3, 4, (1e-2, 1e-3), batch=2, decay=0.5, bias=1.0)


def with_(**changes) -> Schedule:
    return Schedule(**{**PLAIN.__dict__, **changes})


def changed(pipe, tuned) -> set[str]:
    """The weights that are not those of the loaded UNet."""
    loaded = weights(pipe.unet)
    return {name for name, weight in weights(tuned.unet).items() if not torch.equal(weight, loaded[name])}


def test_one_after_the_other_it_is_the_librarys_own_stages(pipe, image, e_tgt):
    generator, off = seeded(), imagic.Run(bar=False)
    e_opt, _ = imagic.optimize_embedding(pipe, image, e_tgt, steps=3, lr=1e-2, batch=2, generator=generator, run=off)
    second = {"steps": 4, "lr": 1e-3, "batch": 2, "decay": 0.5, "run": imagic.Run(bar=False, bias=1.0)}
    tuned, history = imagic.fine_tune(pipe, image, e_opt, **second, generator=generator)
    _, ours, other, ours_history = train_on_schedule(pipe, image, TEXT, PLAIN)
    assert torch.allclose(ours, e_opt, atol=1e-6)
    for (name, weight), theirs in zip(weights(other.unet).items(), weights(tuned.unet).values(), strict=True):
        assert torch.allclose(weight, theirs, atol=1e-5), name
    assert ours_history.loss[3:] == pytest.approx(history.loss, rel=1e-4)


def test_together_both_move_in_every_step(pipe, image):
    with counted(pipe.unet) as found:
        e_tgt, e_opt, tuned, history = train_on_schedule(pipe, image, TEXT, with_(order="joint"))
    assert not torch.equal(e_tgt, e_opt) and changed(pipe, tuned)
    assert len(history.loss) == 4 and found.with_gradient == 4 * 2


def test_in_turns_each_has_its_own_steps(pipe, image):
    with counted(pipe.unet) as found:
        e_tgt, e_opt, tuned, history = train_on_schedule(pipe, image, TEXT, with_(order="alternating"))
    assert not torch.equal(e_tgt, e_opt) and changed(pipe, tuned)
    assert len(history.loss) == 8 and found.with_gradient == 8 * 2
    e_tgt, e_opt, tuned, _ = train_on_schedule(pipe, image, TEXT, with_(order="alternating", rates=(0.0, 1e-3)))
    assert torch.equal(e_tgt, e_opt) and changed(pipe, tuned)


def test_only_the_layers_that_are_named_learn(pipe, image):
    _, _, tuned, _ = train_on_schedule(pipe, image, TEXT, with_(layers="attn2"))
    assert changed(pipe, tuned) and all("attn2" in name for name in changed(pipe, tuned))


def test_without_strata_the_times_are_others_and_as_many(pipe, image):
    with counted(pipe.unet) as found:
        _, apart, _, _ = train_on_schedule(pipe, image, TEXT, with_(stratified=False))
    assert found.with_gradient == 7 * 2
    assert not torch.equal(apart, train_on_schedule(pipe, image, TEXT, PLAIN)[1])


def test_settled_means_no_new_best_by_one_percent():
    def settled(losses, patience=2):
        return has_settled(imagic.History(probe_step=list(range(len(losses))), probe_loss=losses), patience)

    assert not settled([5.0, 4.0, 3.0, 2.0])
    assert settled([5.0, 3.0, 2.99, 3.5])
    assert not settled([3.0, 3.0])
    assert not settled([4.0, 1.0, 5.0]), "the best of the last two counts"


def test_it_ends_when_the_probe_has_settled(pipe, image):
    still = with_(first=60, second=0, rates=(0.0, 0.0), patience=2, batch=1)
    *_, history = train_on_schedule(pipe, image, TEXT, still)
    assert len(history.loss) == 20  # the probe at the start, and two that are no better


def test_the_model_stays_as_it_was(pipe, image):
    before = weights(pipe.unet)
    train_on_schedule(pipe, image, TEXT, with_(order="joint"))
    assert same(before, weights(pipe.unet)) and not any(p.grad is not None for p in pipe.unet.parameters())


def test_it_is_a_method_like_the_others(pipe, image):
    draw = Method("ours", "-", partial(scheduled, schedule=PLAIN), "way", (0.0, 1.0), 2.0).start(pipe, image, TEXT)
    e_tgt, e_opt, tuned, _ = train_on_schedule(pipe, image, TEXT, PLAIN)
    for way, eta, scale in ((0.5, 0.5, 1), (1.0, 1, 1), (1.25, 1, 0.75), (2.0, 1, 0)):
        [expected] = generate(tuned, interpolate(e_tgt, e_opt, eta), [0], scale=scale)
        assert np.array_equal(np.asarray(draw(way, [0])[0]), np.asarray(expected))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"order": "at once"}, "at once"), ({"batch": 0}, "batch is 0"), ({"first": -1}, "first is -1")],
)
def test_a_schedule_that_can_not_be_is_one_sentence(changes, said):
    with pytest.raises(ValueError, match=said):
        with_(**changes)


def test_layers_that_are_not_there_are_one_sentence(pipe, image):
    with pytest.raises(ValueError, match="no layer"):
        train_on_schedule(pipe, image, TEXT, with_(layers="nowhere"))
