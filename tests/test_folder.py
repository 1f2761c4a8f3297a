"""The folder of an edit is the user's: whatever runs into it, no file in it is lost, and an edit goes on in it."""

import copy
import json
import os
import shutil
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import imagic_lib as imagic
from imagic_lab.studio.shelf import edits_in
from imagic_lib import folder as folders
from imagic_lib.edit import ImagicEdit, run_edit
from imagic_lib.files import save_tensors
from imagic_lib.folder import (
    DIFFERENCE_FILE,
    EMBEDDINGS_FILE,
    LEDGER,
    LORA_FILE,
    picture_name,
    read_facts,
)
from imagic_lib.storage import identity_of_edit
from imagic_lib.unets import with_unet
from tests.common import Killed, kill_after_a_save, no_more_steps

TEXT = "a brown dog jumping on the grass"
STEPS = {"embedding_steps": 2, "unet_steps": 2}
ENDED = imagic.Run(watch=lambda stage, history: True)  # after one step of each stage


@pytest.fixture(scope="module")
def whole(pipe, image):
    return run_edit(pipe, image, TEXT, **STEPS)


@pytest.fixture
def no_training(monkeypatch):
    """Reaching a stage would be an error, because a refusal must come before any work."""
    for stage in ("optimize_embedding", "fine_tune"):
        monkeypatch.setattr(imagic.edit, stage, None)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def weights_of(edit) -> dict:
    return edit.tuned.unet.state_dict()


def assert_same(edit, other) -> None:
    assert torch.equal(edit.e_opt, other.e_opt) and edit.unet_history.loss == other.unet_history.loss
    assert all(torch.equal(value, weights_of(other)[name]) for name, value in weights_of(edit).items())


# ------------------------------------------------------------------------------- what is the user's


@pytest.mark.parametrize(
    "name", ["holiday.jpg", "input.png", "edit.png", "losses.png", LORA_FILE, "eta-0.5-seed-0.png", DIFFERENCE_FILE]
)
def test_a_folder_with_a_file_of_the_users_is_refused_before_any_work(pipe, image, tmp_path, no_training, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"holds files of yours, such as '{name}': choose a new or empty one"):
        run_edit(pipe, image, TEXT, **STEPS, folder=tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("name", ["holiday.jpg", "input.png", "embeddings.safetensors"])
def test_save_refuses_it_too(whole, tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds files of yours"):
        whole.save(tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_checkpoint_of_something_else_is_the_users(pipe, image, tmp_path, no_training):
    save_tensors(tmp_path / "checkpoint-embedding.safetensors", {"x": torch.ones(1)}, {})
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="holds files of yours"):
        run_edit(pipe, image, TEXT, **STEPS, folder=tmp_path)
    assert contents(tmp_path) == before


def test_files_of_a_file_manager_belong_to_no_one(pipe, image, tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    run_edit(pipe, image, TEXT, embedding_steps=0, unet_steps=0, folder=tmp_path)
    assert (tmp_path / ".DS_Store").read_bytes() == b"x" and (tmp_path / "edit.json").is_file()


def test_a_file_in_the_place_of_a_folder_is_called_so(pipe, image, tmp_path, no_training):
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(ValueError, match="is not a folder: choose another name"):
        run_edit(pipe, image, TEXT, **STEPS, folder=tmp_path / "out")


def others(pipe, image) -> dict[str, tuple]:
    """Calls of `run_edit` that ask for another edit, each with what a student reads."""
    model = with_unet(pipe, copy.deepcopy(pipe.unet))
    with torch.no_grad():
        model.unet.conv_in.weight[0, 0, 0, 0] += 0.5
    picture = image.clone()
    picture[..., 0, 0] = -picture[..., 0, 0].sign()  # one pixel
    return {
        "text": ((pipe, image, "a red car"), {}, f"of another text, '{TEXT}'"),
        "picture": ((pipe, picture, TEXT), {}, "of another picture"),
        "model": ((model, image, TEXT), {}, "of another model, "),
        "seed": ((pipe, image, TEXT), {"seed": 1}, "of another seed, '0' instead of '1'"),
        "steps": ((pipe, image, TEXT), {"unet_steps": 1}, "of another unet_steps, '2' instead of '1'"),
        "first steps": ((pipe, image, TEXT), {"embedding_steps": 3}, "of another embedding_steps, '2' instead of '3'"),
        "method": ((pipe, image, TEXT), {"method": "lora"}, "of another method, 'full' instead of 'lora'"),
    }


@pytest.fixture(scope="module")
def finished_folder(whole, tmp_path_factory):
    return whole.save(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def begun_folder(pipe, image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(KeyboardInterrupt):
        run_edit(pipe, image, TEXT, **STEPS, folder=folder, run=ENDED)
    return folder


@pytest.mark.parametrize("other", ["text", "picture", "model", "seed", "steps", "first steps", "method"])
@pytest.mark.parametrize("state", ["finished", "begun"])
def test_another_edit_is_never_written_over_one_that_is_there(
    pipe, image, finished_folder, begun_folder, no_training, state, other
):
    folder = finished_folder if state == "finished" else begun_folder
    before, (asked, changed, sentence) = contents(folder), others(pipe, image)[other]
    with pytest.raises(ValueError) as refused:
        run_edit(*asked, **STEPS | changed, folder=folder)
    assert f"holds {'a finished' if state == 'finished' else 'an unfinished'} edit {sentence}" in str(refused.value)
    assert "choose another folder" in str(refused.value) and contents(folder) == before


def test_saving_again_writes_nothing_and_another_training_of_it_is_refused(whole, finished_folder, pipe, image):
    before = {p.name: p.stat().st_mtime_ns for p in finished_folder.iterdir()}
    assert ImagicEdit.load(finished_folder, pipe).save(finished_folder) == finished_folder
    stopped = run_edit(pipe, image, TEXT, **STEPS, run=ENDED)
    with pytest.raises(ValueError, match="holds another training of this edit: choose another folder"):
        stopped.save(finished_folder)
    assert {p.name: p.stat().st_mtime_ns for p in finished_folder.iterdir()} == before


def test_a_file_of_another_name_that_was_put_there_while_the_edit_trained_is_left_alone(pipe, image, tmp_path):
    """The names of an edit's files are the edit's, and no other."""

    def drop(stage, history):
        for name in ("thesis.docx", EMBEDDINGS_FILE):
            (tmp_path / name).write_bytes(b"mine")

    run_edit(pipe, image, TEXT, **STEPS, folder=tmp_path, run=imagic.Run(watch=drop))
    assert (tmp_path / "thesis.docx").read_bytes() == b"mine" and ImagicEdit.load(tmp_path, pipe).text == TEXT


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_written_through(pipe, image, tmp_path):
    (tmp_path / "thesis.docx").write_bytes(b"mine")

    def plant(stage, history):
        for name in ("input.png", EMBEDDINGS_FILE, DIFFERENCE_FILE):
            (tmp_path / "edit" / name).unlink(missing_ok=True)
            (tmp_path / "edit" / name).symlink_to(tmp_path / "thesis.docx")

    run_edit(pipe, image, TEXT, **STEPS, folder=tmp_path / "edit", run=imagic.Run(watch=plant))
    assert (tmp_path / "thesis.docx").read_bytes() == b"mine"
    assert ImagicEdit.load(tmp_path / "edit", pipe).text == TEXT


# --------------------------------------------------------------------------------- it goes on


def kill_at(monkeypatch, module, name: str, which: int) -> None:
    """The process dies at the `which`-th call."""
    calls, real = [], getattr(module, name)

    def call(*args, **settings):
        calls.append(args)
        if len(calls) == which:
            raise Killed
        return real(*args, **settings)

    monkeypatch.setattr(module, name, call)


@pytest.fixture(scope="module")
def trained(pipe, image, tmp_path_factory):
    """method -> a folder in which both trainings are done and nothing is saved yet."""

    @cache
    def make(method):
        folder = tmp_path_factory.mktemp(method)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, ImagicEdit, "save", 1)
            run_edit(pipe, image, TEXT, **STEPS, method=method, folder=folder)
        return folder

    return make


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("which", range(1, 6))
def test_a_save_that_is_killed_at_any_file_is_done_again_and_leaves_no_orphans(
    pipe, image, whole, trained, tmp_path, monkeypatch, method, which
):
    folder = shutil.copytree(trained(method), tmp_path / "edit")
    no_more_steps(monkeypatch)
    run = partial(run_edit, pipe, image, TEXT, **STEPS, method=method, folder=folder)
    with monkeypatch.context() as patch:
        kill_at(patch, os, "replace", which)
        try:
            run()
            assert which > 4  # three files, edit.json: then there is nothing left to die at
        except Killed:
            assert which <= 4 and not (folder / "edit.json").exists()
    edit = run()
    weights = LORA_FILE if method == "lora" else DIFFERENCE_FILE
    assert {p.name for p in folder.iterdir()} == {"edit.json", "input.png", "embeddings.safetensors", weights}
    assert method == "lora" or torch.equal(edit.e_opt, whole.e_opt)


def test_a_kill_between_the_edit_and_its_checkpoints_leaves_no_orphans(pipe, image, trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained("full"), tmp_path / "edit")
    no_more_steps(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "remove_checkpoints", lambda folder: None)
        run_edit(pipe, image, TEXT, **STEPS, folder=folder)
    assert (folder / LEDGER).is_file()
    run_edit(pipe, image, TEXT, **STEPS, folder=folder)
    assert not list(folder.glob("checkpoint*")) and (folder / "edit.json").is_file()


def test_edit_json_is_never_half_written(whole, tmp_path, monkeypatch):
    write = Path.write_text

    def half(path, text, **settings):
        write(path, text[: len(text) // 2], **settings)
        raise Killed

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(Killed):
        whole.save(tmp_path)
    assert not (tmp_path / "edit.json").exists()


@pytest.mark.parametrize("stage", ["stage 1", "stage 2"])
def test_an_edit_goes_on_on_a_machine_whose_last_bits_differ(pipe, image, whole, tmp_path, monkeypatch, stage):
    """From a CPU to a GPU, from AVX2 to AVX512: the text's embedding is another one in its last bits."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_a_save(patch, stage)
        run_edit(pipe, image, TEXT, **STEPS, folder=tmp_path)
    encode = imagic.edit.encode_text
    monkeypatch.setattr(imagic.edit, "encode_text", lambda pipe, text: encode(pipe, text) * (1 + 1e-6))
    there = run_edit(pipe, image, TEXT, **STEPS, folder=tmp_path)
    assert_same(there, whole)
    assert torch.equal(there.e_tgt, whole.e_tgt)


# --------------------------------------------------------------------------------- what is written down


def test_settings_are_recorded_with_their_defaults_filled_in_and_numbers_are_pythons(pipe, image, tmp_path):
    edit = run_edit(pipe, image, TEXT, embedding_steps=np.int64(1), unet_steps=np.int32(0), seed=np.int64(7),
                    folder=tmp_path)  # fmt: skip
    facts = json.loads((tmp_path / "edit.json").read_text())
    assert facts["settings"] == {"embedding_steps": 1, "unet_steps": 0, "method": "full", "seed": 7} == edit.settings
    defaults = imagic.edit.settings_of(pipe, "full", None, None, 0)
    assert defaults["embedding_steps"] == imagic.stage1_embedding.DEFAULTS["tiny"]["steps"]
    assert defaults["unet_steps"] == imagic.stage2_finetuning.DEFAULTS["full"]["tiny"]["steps"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": -1}, "seeds must be"),
        ({"seed": 1.5}, "seeds must be"),
        ({"method": "half"}, "method 'half' is unknown: choose 'full' or 'lora'"),
        ({"unet_steps": 2.5}, "steps is 2.5"),
        ({"image": torch.zeros(1, 3, 64, 64)}, r"image is \(1, 3, 64, 64\), not \(1, 3, 128, 128\)"),
        ({"text": ""}, "the text is empty"),
    ],
)
def test_invalid_settings_are_refused_before_the_folder_is_taken(pipe, image, tmp_path, no_training, changed, sentence):
    asked = {"image": image, "text": TEXT} | STEPS | changed
    with pytest.raises(ValueError, match=sentence):
        run_edit(pipe, **asked, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


NEWER = {  # keys that a newer version might write
    "licence": "CC0",
    "ratings": [None, 1, {"by": "me", "stars": 5}],
    "history": {"gradients": {"mean": 0.5}},
    "settings": {"rank": 4},
    "base_model": {"licence": "RAIL"},
}


def with_newer_keys(facts: dict) -> dict:
    """An edit.json as a newer version might write it."""
    newer = facts | {key: NEWER[key] for key in ("licence", "ratings")}
    newer |= {key: facts[key] | NEWER[key] for key in ("settings", "base_model")}
    return newer | {"history": {stage: history | NEWER["history"] for stage, history in facts["history"].items()}}


def test_the_keys_of_a_newer_version_are_kept_and_its_edit_loads(whole, pipe, tmp_path):
    folder = whole.save(tmp_path / "edit")
    facts = json.loads((folder / "edit.json").read_text())
    newer = with_newer_keys(facts)
    (folder / "edit.json").write_text(json.dumps(newer))
    assert read_facts(folder) == newer | {"history": facts["history"]}
    edit = ImagicEdit.load(folder, pipe)
    assert edit.unet_history == whole.unet_history and edit.settings == whole.settings | {"rank": 4}


def test_a_ledger_keeps_them_too(whole, pipe, image, tmp_path):
    identity = identity_of_edit(pipe, image, TEXT, whole.settings)
    folders.begin(tmp_path, identity | {"licence": "CC0", "settings": identity["settings"] | {"rank": 4}}, whole.e_tgt)
    found = folders.read_identity(tmp_path)
    assert (found["licence"], found["settings"]["rank"]) == ("CC0", 4)
    assert folders.state_of(tmp_path, identity) == "begun", "a setting that this version does not know decides nothing"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text": 7}, r"text: input should be a valid string"),
        ({"settings": {"method": "half", "seed": 0}}, r"settings\.method: input should be 'full' or 'lora'"),
        ({"settings": {"method": "full", "seed": 1.0}}, r"settings\.seed: input should be a valid integer"),
        ({"settings": {"method": "full", "seed": 2**63}}, r"settings\.seed: input should be less than"),
        ({"history": {}}, r"history: "),
        ({"history": {"third": {}}}, r"history\.third"),
        ({"base_model": None}, r"base_model: "),
    ],
)
def test_a_value_of_another_type_is_named_in_one_sentence(finished_folder, tmp_path, change, sentence):
    facts = json.loads((finished_folder / "edit.json").read_text())
    (tmp_path / "edit.json").write_text(json.dumps(facts | change))
    with pytest.raises(ValueError, match=rf"edit\.json is damaged \({sentence}.*\): make the edit again") as refused:
        read_facts(tmp_path)
    assert "\n" not in str(refused.value)


def test_null_is_the_same_as_a_missing_key(finished_folder, tmp_path):
    facts = json.loads((finished_folder / "edit.json").read_text())
    (tmp_path / "edit.json").write_text(json.dumps(facts | {"versions": None, "chosen": None}))
    assert read_facts(tmp_path) == {key: value for key, value in facts.items() if key != "versions"}


# ------------------------------------------------------------------------------------ many edits in one place


def test_the_edits_of_a_place_are_listed_the_newest_first_and_strangers_are_passed_over(pipe, image, whole, tmp_path):
    assert edits_in(tmp_path / "nowhere") == []
    whole.save(tmp_path / "finished")
    e_tgt, identity = whole.e_tgt, identity_of_edit(pipe, image, "another text", whole.settings)
    folders.begin(tmp_path / "begun", identity, e_tgt)
    os.utime(tmp_path / "finished" / "edit.json", (1, 1))
    (tmp_path / "photos").mkdir()
    (tmp_path / "a file").write_text("not a folder")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "edit.json").write_text("{")
    found = edits_in(tmp_path)
    assert [(kept.folder.name, kept.state) for kept in found] == [("begun", "begun"), ("finished", "finished")]
    assert found[0].facts["text"] == "another text" and found[1].facts["settings"] == whole.settings
    assert folders.unfinished(tmp_path, identity) == tmp_path / "begun"
    with pytest.raises(ValueError, match="unfinished edit of this picture and text"):
        folders.unfinished(tmp_path, identity | {"text": "a third text"})


def test_a_place_that_is_a_file_does_not_make_the_search_endless(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        folders.new_folder(tmp_path / "file", "a dog")


PICTURE = st.tuples(st.floats(-10, 10), st.integers(0, 2**63 - 1), st.floats(0, 2))


@settings(max_examples=100)
@given(PICTURE, PICTURE)
def test_different_pictures_have_different_names_of_the_edits_own_kind(one, other):
    for eta, seed, scale in (one, other):
        assert folders.WRITTEN.fullmatch(picture_name(eta, seed, scale)), "so that it can be written again"
    same = str([number + 0 for number in one]) == str([number + 0 for number in other])  # -0.0 + 0 is 0.0
    assert (picture_name(*one) == picture_name(*other)) == same


def test_the_name_of_a_picture_says_its_numbers():
    assert picture_name(0.5, 1) == picture_name(np.float64(0.5), np.int64(1), 1) == "eta-0.5-seed-1.png"
    assert picture_name(1.0, 0, 0.75) == picture_name(1, 0, 0.75) == "eta-1-scale-0.75-seed-0.png"
