"""Whatever a stranger's file holds, it opens or is refused in one sentence: fuzzed JSON, tensors and headers."""

import io
import json
import os
import struct
import warnings
from dataclasses import asdict
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from imagic_lab.sweep.run import MARK, take
from imagic_lab.sweep.table import Job
from imagic_lab.sweep.work import Setup, error_of, read_results
from imagic_lib.edit import ImagicEdit, run_edit
from imagic_lib.files import load_tensors, save_tensors
from imagic_lib.folder import EMBEDDINGS_FILE, LEDGER, files_of, read_facts, read_ledger, remove_checkpoints
from imagic_lib.pictures import open_image
from imagic_lib.stage1_embedding import optimize_embedding
from imagic_lib.training.loop import History, Run

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def opens_or_refuses(read) -> object:
    """What `read` gives, or None if it raised ValueError or FileNotFoundError with one printable sentence."""
    try:
        return read()
    except (ValueError, FileNotFoundError) as error:
        assert type(error) in (ValueError, FileNotFoundError)
        assert str(error).strip() and "\n" not in str(error) and len(str(error)) < 1000
        return None


@pytest.fixture(scope="module")
def edit(pipe, image, tmp_path_factory):
    return run_edit(pipe, image, "a cat", embedding_steps=1, unet_steps=1, folder=tmp_path_factory.mktemp("edit"))


@pytest.fixture(scope="module")
def folder(edit, tmp_path_factory):
    return edit.save(tmp_path_factory.mktemp("fuzz") / "edit")


@pytest.fixture(scope="module")
def facts(folder):
    return json.loads((folder / "edit.json").read_text())


def places(value, path=()) -> list[tuple]:
    """The paths of all values in a JSON table, lists taken as one."""
    inner = value.items() if isinstance(value, dict) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def with_change(facts: dict, place: tuple, value: object, gone: bool) -> object:
    if not place:
        return value
    changed = json.loads(json.dumps(facts))
    table = changed
    for key in place[:-1]:
        table = table[key]
    if gone:
        del table[place[-1]]
    else:
        table[place[-1]] = value
    return changed


@FEW
@given(data=st.data())
def test_an_edit_json_with_any_value_anywhere(folder, facts, data):
    place = data.draw(st.sampled_from(places(facts)))
    changed = with_change(facts, place, data.draw(JSON), data.draw(st.booleans()))
    (folder / "edit.json").write_text(json.dumps(changed))
    found = opens_or_refuses(lambda: read_facts(folder))
    opens_or_refuses(lambda: files_of(folder))
    if found:
        json.dumps(found, allow_nan=False).encode()  # no half of a surrogate pair, no NaN, nothing deep
        asdict(History(**found["history"]["unet"]))


@FEW
@given(st.binary(max_size=200) | st.text(max_size=50).map(lambda t: t.encode("utf-8", "replace")))
def test_an_edit_json_of_any_bytes(folder, content):
    (folder / "edit.json").write_bytes(content)
    opens_or_refuses(lambda: read_facts(folder))


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "NaN", "null", '"\\ud800"', "\ufeff{}", "{}" + " " * 2**25],
    ids=["deep list", "deep table", "long number", "NaN", "null", "surrogate", "byte order mark", "large"],
)
def test_an_edit_json_that_is_a_trap(tmp_path, content):
    (tmp_path / "edit.json").write_text(content)
    with pytest.raises(ValueError, match=r"edit\.json is damaged \(.+\): make the edit again in another folder$"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"text": "a \ud800 dog"}, {"licence": ["\ud800"]}, {"\ud800": "CC0"}, {"licence": {"since": float("nan")}}],
    ids=["text", "a newer version's value", "a newer version's key", "not a number"],
)
def test_half_a_surrogate_pair_or_nan_anywhere_is_refused(folder, facts, change):
    """They could neither be printed nor written again."""
    (folder / "edit.json").write_text(json.dumps(facts | change))
    with pytest.raises(ValueError, match=r"edit\.json is damaged \(.*(surrogates not allowed|not JSON compliant)"):
        read_facts(folder)


def test_every_field_of_a_history_comes_back(edit, folder, facts):
    (folder / "edit.json").write_text(json.dumps(facts))
    assert read_facts(folder)["history"]["unet"] == asdict(edit.unet_history)


def safetensors_file(header: object, body: bytes = b"\0" * 64) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


NAMES = st.sampled_from(
    [
        "thesis.docx",
        "../thesis.docx",
        "edit.json",
        "/etc/hostname",
        "",
        ".",
        "..",
        "a\0b",
        "x" * 300,
        7,
        None,
        f"{LEDGER}.1a-1",
        f"{EMBEDDINGS_FILE}.1a-1",
    ]
)
FACTS = st.dictionaries(st.sampled_from(["parts", "files", "text", "settings", "input"]), JSON | st.lists(NAMES))
HEADERS = st.dictionaries(st.sampled_from(["e_tgt", "e_opt", "__metadata__", "x"]), JSON, max_size=3) | FACTS.map(
    lambda facts: {
        "__metadata__": {"facts": json.dumps(facts)},
        "e_tgt": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
    }
)


@FEW
@given(header=HEADERS)
def test_tensors_with_any_header_open_or_are_refused_and_delete_no_other_file(tmp_path, header):
    for name in (LEDGER, EMBEDDINGS_FILE):
        (tmp_path / name).write_bytes(safetensors_file(header))
    mine = [tmp_path / "thesis.docx", tmp_path.parent / "thesis.docx"]
    for path in mine:
        path.write_bytes(b"mine")
    opens_or_refuses(lambda: load_tensors(tmp_path / EMBEDDINGS_FILE))
    opens_or_refuses(lambda: read_ledger(tmp_path))
    opens_or_refuses(lambda: remove_checkpoints(tmp_path))
    assert [path.read_bytes() for path in mine] == [b"mine"] * 2


def picture_file(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((40, 24)).convert("RGB").save(buffer, format=kind)
    return buffer.getvalue()


PICTURES = {kind: picture_file(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")}


@settings(FEW, max_examples=200)
@given(
    kind=st.sampled_from(sorted(PICTURES)),
    places=st.lists(st.tuples(st.integers(0, 120), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    length=st.integers(8, 4000),
)
def test_pictures_with_any_header_open_or_are_refused(tmp_path, kind, places, length):
    content = bytearray(PICTURES[kind])
    for at, new in places:
        content[at : at + len(new)] = new
    (tmp_path / "picture").write_bytes(content[:length])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = opens_or_refuses(lambda: open_image(tmp_path / "picture"))
    assert picture is None or (picture.mode == "RGB" and min(picture.size) >= 16)


def test_the_folder_of_the_fuzzing_is_still_whole(folder, facts, pipe):
    """So it was the header that was refused each time, not a folder without its other files."""
    (folder / "edit.json").write_text(json.dumps(facts))
    assert ImagicEdit.load(folder, pipe).text == "a cat" and os.listdir(folder)


@pytest.fixture(scope="module")
def checkpoint(pipe, image, e_tgt, tmp_path_factory):
    """A checkpoint's path and contents, and a function that goes on with it by no step."""
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    settings_of_it = {"steps": 1, "batch": 1, "run": Run(checkpoint=path)}
    go_on = partial(optimize_embedding, pipe, image, e_tgt, **settings_of_it)
    go_on(generator=torch.Generator().manual_seed(0))
    return path, *load_tensors(path), go_on


@settings(FEW, max_examples=30)
@given(data=st.data())
def test_a_checkpoint_with_any_value_anywhere_goes_on_or_is_refused(checkpoint, data):
    path, tensors, facts, go_on = checkpoint
    place = data.draw(st.sampled_from(places(facts)))
    value = data.draw(JSON)
    changed = with_change(facts, place, value, data.draw(st.booleans()))
    name = data.draw(st.sampled_from(sorted(tensors)))
    other = data.draw(st.sampled_from([torch.ones(1), torch.ones(()), tensors[name] * 2, torch.ones(2, 3).long()]))
    save_tensors(path, tensors | {name: other}, changed)
    opens_or_refuses(lambda: go_on(generator=torch.Generator().manual_seed(0)))


@FEW
@given(value=JSON | st.fixed_dictionaries({"run": st.just("r"), "error": JSON, "work": JSON, "pictures": JSON}))
def test_the_facts_of_a_sweep_with_any_value(tmp_path, value):
    job = Job(image="a.png", text="a cat")
    setup = Setup(str(tmp_path), "r")
    for path in (setup.folder(job) / "job.json", setup.error_file(job), tmp_path / MARK):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    found = opens_or_refuses(lambda: read_results(setup.folder(job) / "job.json"))
    assert all("/" not in one["file"] for one in (found or {}).get("pictures", []))
    assert isinstance(error_of(job, setup), str | None)
    opens_or_refuses(lambda: take(tmp_path, "a:b"))
