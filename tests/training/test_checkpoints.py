import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from imagic_lib.training import checkpoints
from imagic_lib.training.checkpoints import (
    load_tensors,
    pack_optimizer,
    save_tensors,
    unpack_optimizer,
    write_atomically,
)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------- writing


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    write_atomically(path, lambda tmp: tmp.write_text("new"))
    assert path.read_text() == "new" and names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("stop", [OSError("disk full"), KeyboardInterrupt()])
def test_a_writer_that_fails_halfway_keeps_the_old_file_and_leaves_no_other(tmp_path, stop):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def write(tmp):
        tmp.write_text("ha")
        raise stop

    with pytest.raises(type(stop)):
        write_atomically(path, write)
    assert path.read_text() == "old" and names(tmp_path) == ["out.txt"]


def test_a_writer_that_fails_at_once_leaves_no_file(tmp_path):
    def write(tmp):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "out.txt", write)
    assert names(tmp_path) == []


def test_a_reader_never_sees_the_new_file_before_it_is_whole(tmp_path):
    path, seen = tmp_path / "out.txt", []
    path.write_text("old")

    def write(tmp):
        tmp.write_text("ne")
        seen.append(path.read_text())
        tmp.write_text("new")
        assert tmp.parent.parent == path.parent  # on one disk, or the rename would be a copy

    write_atomically(path, write)
    assert seen == ["old"]


def test_missing_folders_are_made_for_the_file(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "out.txt", lambda tmp: tmp.write_text("new"))
    assert (tmp_path / "a" / "b" / "out.txt").read_text() == "new"


def test_a_new_file_has_the_users_mode_and_no_other_thread_ever_has_another_umask(tmp_path, monkeypatch):
    def changed(mask):
        raise AssertionError("the umask is the whole process's")

    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", changed)
            save_tensors(tmp_path / "c.safetensors", {"a": torch.ones(2)}, {})
            write_atomically(tmp_path / "out.txt", lambda tmp: tmp.write_text("new"))
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("c.safetensors", "out.txt")} == {0o640}


def test_a_link_that_somebody_laid_in_wait_is_not_written_through(tmp_path):
    victim, path = tmp_path / "thesis.txt", tmp_path / "out" / "out.txt"
    victim.write_text("a year of work")
    path.parent.mkdir()
    for name in (f".{path.name}.{os.getpid()}.tmp", f".{path.name}.tmp", f"{path.name}.tmp"):
        (path.parent / name).symlink_to(victim)
    write_atomically(path, lambda tmp: tmp.write_text("new"))
    assert victim.read_text() == "a year of work" and path.read_text() == "new"


def test_the_temporary_file_is_in_a_private_folder_with_a_name_that_changes(tmp_path):
    seen = []
    for _ in range(2):
        write_atomically(tmp_path / "out.txt", lambda tmp: seen.append((tmp.parent, tmp.parent.stat().st_mode & 0o777)))
    assert seen[0][0] != seen[1][0] and {mode for _, mode in seen} == {0o700}


def test_what_a_killed_write_left_is_removed_an_hour_later_and_not_before(tmp_path):
    old, young, foreign = (tmp_path / f".out.txt.{name}.tmp" for name in ("abcdefgh", "12345678", "my notes"))
    for folder in (old, young, foreign):
        folder.mkdir()
        (folder / "out.txt").write_text("half")
    long_ago = time.time() - 2 * checkpoints.FORGOTTEN
    os.utime(old, (long_ago, long_ago))
    os.utime(foreign, (long_ago, long_ago))
    write_atomically(tmp_path / "out.txt", lambda tmp: tmp.write_text("new"))
    assert names(tmp_path) == sorted([young.name, foreign.name, "out.txt"])


# ------------------------------------------------------------------------------------------- tensors


def test_tensors_and_facts_come_back_as_they_were(tmp_path):
    weights = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "weights": weights.clone().requires_grad_(),
        "transposed": weights.T,  # not contiguous
        "shared": weights[0],  # a view of another one
        "half": torch.tensor([0.1, float("inf")], dtype=torch.float16),
        "brain": torch.tensor([1 / 3], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
    }
    facts = {"done": 3, "lr": 1e-3, "history": {"loss": [0.1, 0.2]}, "text": "η · e_tgt", "nothing": None}
    save_tensors(tmp_path / "c.safetensors", tensors, facts)
    loaded, loaded_facts = load_tensors(tmp_path / "c.safetensors")
    assert loaded_facts == facts
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def test_a_file_of_another_program_has_tensors_and_no_facts(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    tensors, facts = load_tensors(tmp_path / "other.safetensors")
    assert torch.equal(tensors["a"], torch.ones(2)) and facts == {}


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "c.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"done": 1})
    with pytest.raises(TypeError):
        save_tensors(path, {"a": torch.zeros(2)}, {"done": object()})  # no JSON
    assert load_tensors(path)[1] == {"done": 1} and names(tmp_path) == ["c.safetensors"]


def refusal(path) -> str:
    with pytest.raises(ValueError) as caught:
        load_tensors(path)
    message = str(caught.value)
    assert type(caught.value) is ValueError and message.startswith(f"{path} is damaged")
    assert "delete it" in message
    assert "\n" not in message and not re.search(r"[.!?] ", message)
    return message


@pytest.mark.parametrize("length", [0, 5, 8, 40, -1])
def test_a_file_cut_short_is_called_damaged_in_one_sentence(tmp_path, length):
    path = tmp_path / "c.safetensors"
    save_tensors(path, {"a": torch.ones(100)}, {"done": 1})
    path.write_bytes(path.read_bytes()[:length])
    refusal(path)


def test_a_file_of_something_else_is_called_damaged(tmp_path):
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"<html>404 not found</html>" * 20)
    refusal(path)


def test_facts_that_cannot_be_read_are_damage_too(tmp_path):
    path = tmp_path / "c.safetensors"
    save_file({"a": torch.ones(2)}, path, {"facts": '{"done": '})
    refusal(path)


def test_a_missing_file_is_missing_and_not_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load_tensors(tmp_path / "none.safetensors")


# ----------------------------------------------------------------------------------------- optimizers


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


# ------------------------------------------------------------------------------ large checkpoints


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(checkpoints, "PART", 100)  # bytes


def test_large_tensors_go_into_parts_and_come_back(tmp_path, small_parts):
    path = tmp_path / "c.safetensors"
    tensors = {f"t{k}": torch.full((20,), float(k)) for k in range(3)} | {"small": torch.tensor(7)}
    checkpoints.save_tensors(path, tensors, {"step": 1})
    assert len(list(tmp_path.iterdir())) == 3
    found, facts = checkpoints.load_tensors(path)
    assert facts == {"step": 1} and all(torch.equal(found[k], v) for k, v in tensors.items())
    checkpoints.save_tensors(path, {"t0": torch.zeros(40), "t1": torch.ones(40)}, {"step": 2})
    assert len(list(tmp_path.iterdir())) == 2 and checkpoints.load_tensors(path)[1] == {"step": 2}
    checkpoints.remove_tensors(path)
    assert not list(tmp_path.iterdir())


def test_a_save_that_dies_between_its_parts_leaves_the_old_state_whole(tmp_path, small_parts, monkeypatch):
    path = tmp_path / "c.safetensors"
    old = {"a": torch.zeros(40), "b": torch.zeros(40)}
    checkpoints.save_tensors(path, old, {"step": 1})
    write = checkpoints._write

    def die(target, tensors, facts):
        if target == path:
            raise OSError("no space left")
        write(target, tensors, facts)

    monkeypatch.setattr(checkpoints, "_write", die)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save_tensors(path, {"a": torch.ones(40), "b": torch.ones(40)}, {"step": 2})
    found, facts = checkpoints.load_tensors(path)
    assert facts == {"step": 1} and torch.equal(found["b"], old["b"])
    assert len(names(tmp_path)) == 2, "the new parts belong to nothing and are gone"


KILLED = """
import os, sys, torch
sys.path.insert(0, {root!r})
from pathlib import Path
from imagic_lib.training import checkpoints
checkpoints.PART = 100
path = Path({path!r})
checkpoints.save_tensors(path, {{"a": torch.zeros(40), "b": torch.zeros(40)}}, {{"step": 1}})
write = checkpoints.save_file

def die(tensors, file, facts):
    write(tensors, file, facts)
    if len(list(path.parent.glob("c.safetensors.*"))) == {parts}:
        os._exit(9)

checkpoints.save_file = die
checkpoints.save_tensors(path, {{"a": torch.ones(40), "b": torch.ones(40), "c": torch.ones(40)}}, {{"step": 2}})
"""


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_what_a_killed_save_left_is_gone_after_the_next_one(tmp_path, small_parts, parts):
    path = tmp_path / "c.safetensors"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    script = KILLED.format(root=root, path=str(path), parts=parts)
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    assert len(names(tmp_path)) > 2 and load_tensors(path)[1] == {"step": 1}
    (tmp_path / "c.safetensors.notes").write_text("foreign")
    if parts == 2:
        checkpoints.remove_tensors(path)
        assert names(tmp_path) == ["c.safetensors.notes"]
    else:
        save_tensors(path, {"a": torch.ones(40)}, {"step": 3})
        assert names(tmp_path) == ["c.safetensors", "c.safetensors.notes"]


@pytest.mark.parametrize("parts", [["thesis.docx"], ["../thesis.docx"], ["c.safetensors.notes"], "thesis.docx", [7]])
def test_a_file_that_names_foreign_parts_is_damaged_and_nothing_foreign_is_deleted(tmp_path, parts):
    path, thesis = tmp_path / "c.safetensors", tmp_path / "thesis.docx"
    thesis.write_text("a year of work")
    (tmp_path / "c.safetensors.notes").write_text("foreign")
    save_file({"a": torch.ones(2)}, path, {"facts": json.dumps({"parts": parts})})
    assert "parts that are not its own" in refusal(path)
    save_tensors(path, {"a": torch.ones(2)}, {})
    save_file({"a": torch.ones(2)}, path, {"facts": json.dumps({"parts": parts})})
    checkpoints.remove_tensors(path)
    assert names(tmp_path) == ["c.safetensors.notes", "thesis.docx"]


def test_facts_that_are_no_object_are_damage(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "c.safetensors", {"facts": "[1, 2]"})
    assert "no JSON object" in refusal(tmp_path / "c.safetensors")


def test_sizes_on_disk(tmp_path, small_parts):
    path = tmp_path / "c.safetensors"
    assert checkpoints.size_on_disk(path) == 0
    save_tensors(path, {"a": torch.zeros(40), "b": torch.zeros(40)}, {})
    assert checkpoints.size_on_disk(path) == sum(p.stat().st_size for p in tmp_path.iterdir()) > 320
    assert checkpoints.free_on_disk(tmp_path / "not" / "there" / "yet") > 0


def test_a_part_holds_as_much_as_is_allowed_and_not_more(small_parts):
    def sizes(*counts: int) -> list[int]:
        groups = checkpoints.in_parts({f"t{k}": torch.zeros(n, dtype=torch.uint8) for k, n in enumerate(counts)})
        return [sum(t.nbytes for t in group.values()) for group in groups]

    assert sizes(40, 60, 40, 59, 1) == [100, 100]
    assert sizes(40, 30, 31, 70) == [70, 31, 70]
    assert sizes(250, 100, 1) == [250, 100, 1], "a tensor that is larger has a part to itself"


def test_a_part_that_somebody_deleted_does_not_keep_the_next_save_from_working(tmp_path, small_parts):
    path = tmp_path / "c.safetensors"
    checkpoints.save_tensors(path, {"a": torch.zeros(40), "b": torch.zeros(40)}, {})
    checkpoints.further_parts(path)[0].unlink()
    checkpoints.save_tensors(path, {"a": torch.ones(40), "b": torch.ones(40)}, {"step": 2})
    found, facts = checkpoints.load_tensors(path)
    assert facts == {"step": 2} and torch.equal(found["b"], torch.ones(40))
    checkpoints.remove_tensors(path)
    checkpoints.remove_tensors(path)  # nothing there is no error


def test_a_missing_part_is_one_clear_sentence(tmp_path, small_parts):
    path = tmp_path / "c.safetensors"
    checkpoints.save_tensors(path, {"a": torch.zeros(40), "b": torch.zeros(40)}, {})
    checkpoints.further_parts(path)[0].unlink()
    with pytest.raises(ValueError, match="is damaged and can't be read"):
        checkpoints.load_tensors(path)


def test_moments_of_channels_last_weights_lie_in_memory_as_the_weights_do():
    """Fused Adam ignores strides: moments in another order would be other weights' moments."""
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    adam = torch.optim.Adam([weight], fused=True)
    weight.grad = torch.randn_like(weight)
    adam.step()
    packed = {k: v.clone(memory_format=torch.contiguous_format) for k, v in checkpoints.pack_optimizer(adam).items()}
    other = torch.optim.Adam([weight], fused=True)
    checkpoints.unpack_optimizer(other, packed)
    moments = other.state[weight]["exp_avg"]
    assert moments.stride() == weight.stride() and torch.equal(moments, adam.state[weight]["exp_avg"])


class KeepsWholeNumbers(torch.optim.Adam):
    """Like bitsandbytes's optimizers; torch's own turn their state into the kind of number that the weight is."""

    def load_state_dict(self, state):
        [weight] = self.param_groups[0]["params"]
        self.state[weight] = dict(state["state"][0])


def test_8_bit_moments_stay_whole_numbers_when_they_are_laid_as_the_weight_is():
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    first, second = KeepsWholeNumbers([weight]), KeepsWholeNumbers([weight])
    first.state[weight] = {"step": 1, "state1": torch.arange(108, dtype=torch.uint8).reshape(weight.shape)}
    packed = checkpoints.pack_optimizer(first)
    checkpoints.unpack_optimizer(second, packed)
    found = second.state[weight]["state1"]
    assert found.dtype == torch.uint8 and found.stride() == weight.stride()
    assert torch.equal(found, packed["optimizer.0.state1"])
