"""Files are written whole or not at all, tensors and facts come back as they were, and damage is called damage."""

import json
import os
import re
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagic_lib import files
from imagic_lib.files import (
    DTYPES,
    load_facts,
    load_tensors,
    save_tensors,
    write_atomically,
)
from tests.common import Killed, disk_of


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------- writing


def test_a_written_file_replaces_the_old_one_and_leaves_no_other_behind(tmp_path):
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


def test_a_link_that_lies_in_wait_is_not_written_through(tmp_path):
    victim, path = tmp_path / "thesis.txt", tmp_path / "out" / "out.txt"
    victim.write_text("a year of work")
    path.parent.mkdir()
    for name in (f".{path.name}.{os.getpid()}.tmp", f".{path.name}.tmp", f"{path.name}.tmp"):
        (path.parent / name).symlink_to(victim)
    write_atomically(path, lambda tmp: tmp.write_text("new"))
    assert victim.read_text() == "a year of work" and path.read_text() == "new"


def test_the_temporary_file_is_in_a_private_folder_with_a_name_that_changes(tmp_path):
    seen = []

    def write(tmp):
        seen.append((tmp.parent, tmp.parent.stat().st_mode & 0o777))
        tmp.write_text("new")

    for _ in range(2):
        write_atomically(tmp_path / "out.txt", write)
    assert seen[0][0] != seen[1][0] and {mode for _, mode in seen} == {0o700}


def test_the_remains_of_killed_writes_are_removed_and_nothing_else(tmp_path):
    left, foreign = (tmp_path / f".out.txt.{name}.tmp" for name in ("abcdefgh", "my notes"))
    for folder in (left, foreign):
        folder.mkdir()
        (folder / "out.txt").write_text("half")
    (tmp_path / ".a.12345678.tmp").write_text("a file")
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([".a.12345678.tmp", foreign.name])


# ------------------------------------------------------------------------------------------- tensors


def test_tensors_and_facts_come_back_as_they_were(tmp_path):
    weights = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "weights": weights.clone().requires_grad_(),
        "transposed": weights.T,  # not contiguous
        "shared": weights[0],  # a view of another one
        "half": torch.tensor([0.1, 65504.0], dtype=torch.float16),
        "brain": torch.tensor([1 / 3], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
    }
    facts = {"done": 3, "lr": 1e-3, "history": {"loss": [0.1, 0.2]}, "text": "η · e_tgt", "nothing": None}
    save_tensors(tmp_path / "c.safetensors", tensors, facts)
    loaded, loaded_facts = load_tensors(tmp_path / "c.safetensors")
    assert loaded_facts == facts == load_facts(tmp_path / "c.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def test_a_file_of_another_program_has_tensors_and_no_facts(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    tensors, facts = load_tensors(tmp_path / "other.safetensors")
    assert torch.equal(tensors["a"], torch.ones(2)) and facts == {}


def test_every_kind_of_number_is_written_as_the_format_says(tmp_path):
    """Other programs read the files. The header ends at a multiple of 8 bytes, and every number at one of its size."""
    path = tmp_path / "c.safetensors"
    tensors = {str(kind)[6:]: torch.arange(3).to(kind) for kind in DTYPES}  # of odd length, so that order matters
    save_tensors(path, tensors, {"done": 1})
    for name, value in load_file(path).items():
        assert value.dtype == tensors[name].dtype and torch.equal(value, tensors[name]), name
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and header.pop("__metadata__").keys() == {"format", "facts"}
    places = sorted((*entry["data_offsets"], tensors[name].element_size()) for name, entry in header.items())
    assert all(start % size == 0 for start, _, size in places)
    ends = [0, *(end for _, end, _ in places)]
    assert [start for start, *_ in places] == ends[:-1] and ends[-1] == len(content) - 8 - length, "without a gap"


def test_no_more_than_one_tensor_of_a_gpu_is_in_the_computers_memory(tmp_path):
    """A free Colab has 12.7 GB, and the state of Stable Diffusion takes 10."""
    copies, most = [], []

    class OnGpu:
        """What `save_tensors` asks a tensor for, and `cpu`, which makes a copy."""

        dtype, shape, nbytes = torch.float32, (1000,), 4000

        def __init__(self, value: float):
            self.value = value

        def element_size(self) -> int:
            return 4

        def detach(self):
            return self

        def cpu(self):
            copies.append(weakref.ref(copied := torch.full((1000,), self.value)))
            most.append(sum(copy() is not None for copy in copies))
            return copied

    path = tmp_path / "c.safetensors"
    save_tensors(path, {f"t{k}": OnGpu(float(k)) for k in range(4)}, {})
    assert most == [1, 1, 1, 1]
    assert all(torch.equal(value, torch.full((1000,), float(name[1]))) for name, value in load_tensors(path)[0].items())


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "c.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"done": 1})
    with pytest.raises(TypeError):
        save_tensors(path, {"a": torch.zeros(2)}, {"done": object()})  # not JSON
    assert load_tensors(path)[1] == {"done": 1} and names(tmp_path) == ["c.safetensors"]


@pytest.mark.parametrize("room", [0, 100, 300_000])
def test_a_full_disk_is_an_oserror_and_the_old_file_stays(tmp_path, room):
    path = tmp_path / "c.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"done": 1})
    with disk_of(room), pytest.raises(OSError):
        save_tensors(path, {"a": torch.zeros(100_000), "b": torch.zeros(7)}, {"done": 2})
    assert load_tensors(path)[1] == {"done": 1} and names(tmp_path) == ["c.safetensors"]


@pytest.mark.parametrize("written", [0, 8, 200, 420, -1])
def test_a_save_that_is_killed_leaves_the_old_state_whole_and_its_remains_go(tmp_path, monkeypatch, written):
    path = tmp_path / "c.safetensors"
    save_tensors(path, {"a": torch.zeros(40)}, {"step": 1})
    write = files._write

    def die(target, tensors, metadata):
        write(target, tensors, metadata)
        target.write_bytes(target.read_bytes()[:written])
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(files, "_write", die)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process cleans up nothing
        save_tensors(path, {"a": torch.ones(40), "b": torch.ones(40)}, {"step": 2})
    assert len(names(tmp_path)) == 2 and load_tensors(path)[1] == {"step": 1}
    (tmp_path / "c.safetensors.notes").write_text("foreign")
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["c.safetensors", "c.safetensors.notes"]


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


def test_facts_that_are_not_an_object_are_damage(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "c.safetensors", {"facts": "[1, 2]"})
    assert "not a JSON object" in refusal(tmp_path / "c.safetensors")
