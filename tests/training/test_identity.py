"""What a checkpoint is of: the same on every machine, and of nothing else."""

import pytest
import torch

from imagic_lib.diffusion import mse
from imagic_lib.training.identity import NEAR, hash_of_picture, identity_of, is_near, thumbnails
from tests.common import seeded


@pytest.fixture
def identity(pipe, image, e_tgt):
    def make(image=image, e=e_tgt, seed=0, settings=None):
        given = {"steps": 5, "lr": 1.0} | (settings or {})
        return identity_of(pipe, [image], given, mse, seeded(seed), near={"text": e})

    return make


def test_facts_say_what_the_user_gave(identity, image):
    base = identity()
    assert base.facts.keys() == {"model", "images", "lr", "loss", "seed"} and base.facts["loss"] == "mse"
    assert base.difference(identity(settings={"steps": 9}).facts, base.near) is None
    assert identity(image=image.bfloat16().float().half()).facts["images"] != []
    assert base.difference(identity(settings={"lr": 2.0}).facts, base.near) == "lr 2.0, not 1.0"
    assert base.difference(identity(image=-image).facts, base.near) == "another picture"
    assert base.difference(identity(seed=1).facts, base.near) == "another seed"
    assert base.difference(base.facts, {}) == "another text"
    for broken in (None, "a dog", {}, {"model": base.facts["model"]}):
        assert base.difference(broken, base.near) == "an older version of this library"


def test_a_picture_is_its_bytes_in_every_precision(image):
    assert len(hash_of_picture(image)) == 16
    assert hash_of_picture(image) == hash_of_picture(image.half()) == hash_of_picture(image.double())
    changed = image.clone()
    changed[0, 0, 5, 5] += 2 / 255 if changed[0, 0, 5, 5] < 0 else -2 / 255
    assert hash_of_picture(changed) != hash_of_picture(image)


def test_near_is_row_by_row():
    rows = torch.randn(1, 5, 64, generator=seeded())
    rows[0, 0] *= 100  # one long row must not hide a change in the others
    assert is_near(rows, rows * (1 + 0.5 * NEAR)) and is_near(rows.half(), rows)
    other = rows.clone()
    other[0, 3] = torch.randn(64, generator=seeded(1))
    assert not is_near(rows, other) and not is_near(rows, rows[:, :4]) and not is_near(rows, rows * float("nan"))


def test_near_is_a_hundredth_of_each_row_s_own_length_and_a_row_of_zeros_is_near_itself():
    rows = torch.tensor([[100.0, 0.0], [1.0, 0.0]])
    assert is_near(rows * 1.009, rows)
    assert not is_near(rows + torch.tensor([[0.0], [0.05]]), rows)
    assert is_near(torch.zeros(2, 3), torch.zeros(2, 3))


def test_what_is_near_is_kept_in_half_precision(identity):
    """A checkpoint of an embedding for a large model stays small."""
    assert identity().near["text"].dtype == torch.float16


def test_a_loss_without_a_name_has_the_name_of_its_class(pipe, image):
    class Huber:
        def __call__(self, prediction, target):
            return (prediction - target).abs().mean()

    assert identity_of(pipe, [image], {}, Huber(), seeded(), near={}).facts["loss"] == "Huber"


def test_thumbnails_are_near_for_a_picture_that_differs_by_a_shade(image):
    small = thumbnails([image, image])
    assert small.shape == (2, 192)
    assert is_near(small, thumbnails([image + 1 / 255, image])) and not is_near(
        small, thumbnails([image, image.flip(3)])
    )
