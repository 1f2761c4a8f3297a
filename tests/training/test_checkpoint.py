"""The job of a checkpoint is the same on every machine and for no other training; an optimizer's state comes back."""

from functools import partial

import pytest
import torch

from imagic_lab.experiments.personalization import thumbnails
from imagic_lib import Run
from imagic_lib.files import load_tensors, save_tensors
from imagic_lib.training.checkpoint import (
    NEAR,
    hash_of_picture,
    is_near,
    job_of,
    pack_optimizer,
    size_on_disk,
    unpack_optimizer,
)
from tests.common import seeded


@pytest.fixture
def job(pipe, image, e_tgt):
    def make(image=image, e=e_tgt, seed=0, settings=None, **more):
        given = {"steps": 5, "lr": 1.0} | (settings or {})
        return job_of(pipe, [image], given, seeded(seed), Run(), near={"text": e}, **more)

    return make


def test_facts_say_what_the_user_gave(job, image):
    base = job()
    assert base.facts.keys() == {"model", "images", "lr", "loss", "seed"} and base.facts["loss"] == "mse"
    assert base.difference(job(settings={"steps": 9}).facts, base.near) is None
    assert job(image=image.bfloat16().float().half()).facts["images"] != []
    assert base.difference(job(settings={"lr": 2.0}).facts, base.near) == "lr 2.0, not 1.0"
    assert base.difference(job(image=-image).facts, base.near) == "another picture"
    assert base.difference(job(seed=1).facts, base.near) == "another seed"
    assert base.difference(base.facts, {}) == "another text"
    assert job(method="lora").difference(job(method="full").facts, base.near) == "another method"
    for broken in ({}, {"model": base.facts["model"]}):
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


def test_near_is_within_a_hundredth_of_a_row_s_length_and_a_row_of_zeros_is_near_another():
    rows = torch.tensor([[100.0, 0.0], [1.0, 0.0]])
    assert is_near(rows * 1.009, rows)
    assert not is_near(rows + torch.tensor([[0.0], [0.05]]), rows)
    assert is_near(torch.zeros(2, 3), torch.zeros(2, 3))


def test_near_tensors_are_kept_in_half_precision(job):
    """A checkpoint of an embedding for a large model stays small."""
    assert job().near["text"].dtype == torch.float16


def test_a_loss_without_a_name_has_the_name_of_its_class(pipe, image):
    class Huber:
        def __call__(self, prediction, target):
            return (prediction - target).abs().mean()

    named = partial(job_of, pipe, [image], {}, seeded(), near={})
    assert named(Run(loss=Huber())).facts["loss"] == "Huber" and named(Run()).facts["loss"] == "mse"


def test_thumbnails_are_near_for_a_picture_that_differs_by_a_shade(image):
    small = thumbnails([image, image])
    assert small.shape == (2, 192)
    assert is_near(small, thumbnails([image + 1 / 255, image])) and not is_near(
        small, thumbnails([image, image.flip(3)])
    )


# ------------------------------------------------------------------------------------------ optimizers


def small_model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.SiLU(), torch.nn.Linear(7, 3))


def optimizer_of(kind: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    if kind == "AdamW":  # as the training of tiny-sd has it
        return torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def walk(model, optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_a_continued_run_gives_the_same_bits_as_one_that_did_not_stop(tmp_path, kind):
    straight = small_model()
    walk(straight, optimizer_of(kind, straight), range(10))

    first = small_model()
    optimizer = optimizer_of(kind, first)
    walk(first, optimizer, range(6))
    weights = {f"model.{name}": value for name, value in first.state_dict().items()}
    save_tensors(tmp_path / "c.safetensors", weights | pack_optimizer(optimizer), {})

    loaded, _ = load_tensors(tmp_path / "c.safetensors")
    second = small_model()
    second.load_state_dict({k.removeprefix("model."): v for k, v in loaded.items() if k.startswith("model.")})
    forgetful, optimizer = small_model(), optimizer_of(kind, second)
    forgetful.load_state_dict(second.state_dict())
    unpack_optimizer(optimizer, loaded)
    walk(second, optimizer, range(6, 10))
    walk(forgetful, optimizer_of(kind, forgetful), range(6, 10))

    for name, value in straight.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
        assert not torch.equal(forgetful.state_dict()[name], value)  # without its state it would differ


def test_an_optimizer_that_has_not_stepped_has_nothing_to_pack():
    model = small_model()
    optimizer = optimizer_of("Adam", model)
    assert pack_optimizer(optimizer) == {}
    unpack_optimizer(optimizer, {"model.0.weight": torch.ones(1)})  # not an optimizer's: left alone
    walk(model, optimizer, range(1))


def test_moments_of_channels_last_weights_lie_in_memory_as_the_weights_do():
    """Fused Adam ignores strides: moments in another order would be other weights' moments."""
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    adam = torch.optim.Adam([weight], fused=True)
    weight.grad = torch.randn_like(weight)
    adam.step()
    packed = {k: v.clone(memory_format=torch.contiguous_format) for k, v in pack_optimizer(adam).items()}
    other = torch.optim.Adam([weight], fused=True)
    unpack_optimizer(other, packed)
    moments = other.state[weight]["exp_avg"]
    assert moments.stride() == weight.stride() and torch.equal(moments, adam.state[weight]["exp_avg"])


class LikeBitsandbytes(torch.optim.Adam):
    """Its 8-bit Adam keeps whole numbers, which torch's own would turn into the kind of number that the weight is. The
    tables next to the moments have other shapes than the weight. Since 0.49, `state_dict` has all that in a dict."""

    NESTED = "__bnb_optimizer_quant_state__"

    def state_dict(self):
        found = super().state_dict()
        for index, values in found["state"].items() if self.nested else ():
            inner = {name: value for name, value in values.items() if name != "step"}
            found["state"][index] = {"step": values["step"], self.NESTED: inner}
        return found

    def load_state_dict(self, state):
        weights = [p for group in self.param_groups for p in group["params"]]
        for index, values in state["state"].items():
            self.state[weights[index]] = {**values, **values.get(self.NESTED, {})}


@pytest.mark.parametrize("nested", [False, True], ids=["before 0.49", "since 0.49"])
def test_the_state_of_an_8_bit_adam_comes_back_in_whole_numbers_laid_as_the_weight_is(tmp_path, monkeypatch, nested):
    monkeypatch.setattr(LikeBitsandbytes, "nested", nested, raising=False)
    weight = torch.nn.Parameter(torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    small = torch.nn.Parameter(torch.randn(5))
    first, second = (LikeBitsandbytes([weight, small]) for _ in range(2))
    moments = torch.arange(weight.numel()).to(torch.uint8).reshape(weight.shape)
    tables = {"qmap1": torch.rand(256), "absmax1": torch.rand(weight.numel() // 256)}
    first.state[weight] = {"step": 3, "state1": moments, **tables}
    first.state[small] = {"step": 3, "state1": torch.rand(5)}
    save_tensors(tmp_path / "c", pack_optimizer(first), {})
    unpack_optimizer(second, load_tensors(tmp_path / "c")[0])
    found = second.state[weight]
    assert found["state1"].dtype == torch.uint8 and found["state1"].stride() == weight.stride()
    assert torch.equal(found["state1"], moments) and found["step"] == second.state[small]["step"] == 3
    assert all(torch.equal(found[name], value) for name, value in tables.items())
    assert torch.equal(second.state[small]["state1"], first.state[small]["state1"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.0.exp_avg", torch.ones(1)),
        ("optimizer.0.exp_avg_sq", torch.ones(5, 7)),
        ("optimizer.0.step", torch.ones(2)),
        ("optimizer.4.step", torch.ones(())),
    ],
)
def test_a_state_that_does_not_fit_the_weights_is_refused_and_not_loaded(name, value):
    """A fused Adam walks through memory: beyond a smaller moment it would read and write what is not its own."""
    model = small_model()
    optimizer = optimizer_of("AdamW", model)
    walk(model, optimizer, range(1))
    packed = pack_optimizer(optimizer) | {name: value}
    other = optimizer_of("AdamW", small_model())
    with pytest.raises(ValueError, match=f"^{name} (has the shape|belongs to no weight)"):
        unpack_optimizer(other, packed)
    assert not other.state


@pytest.mark.parametrize("gone", ["exp_avg", "exp_avg_sq", "step"])
def test_a_state_without_one_of_its_tensors_is_refused(gone):
    """Adam would end in a KeyError at its next step."""
    model = small_model()
    optimizer = optimizer_of("AdamW", model)
    walk(model, optimizer, range(1))
    packed = pack_optimizer(optimizer)
    del packed[f"optimizer.2.{gone}"]
    with pytest.raises(ValueError, match=r"optimizer\.2 lacks a moment"):
        unpack_optimizer(optimizer_of("AdamW", small_model()), packed)


def test_the_size_on_disk_is_that_of_the_file(tmp_path):
    path = tmp_path / "c.safetensors"
    assert size_on_disk(path) == 0
    save_tensors(path, {"a": torch.zeros(40)}, {})
    assert size_on_disk(path) == path.stat().st_size > 160
