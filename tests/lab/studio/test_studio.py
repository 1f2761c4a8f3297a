"""The studio without a browser: every step from a file to a saved edit, by function and by click, even after a kill."""

import ast
import copy
import dataclasses
import inspect
import io
import json
import shutil
import subprocess
import sys
import threading
import warnings
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalTokenNotFoundError
from PIL import Image

import imagic_lib as imagic
from imagic_lab.classroom.widgets import png, widgets_in
from imagic_lab.studio import app as view_of
from imagic_lab.studio import state as do
from imagic_lab.studio.shelf import edits_in
from imagic_lib import stage4_inference
from imagic_lib.folder import INPUT_FILE, KOHYA_FILE, LORA_FILE, new_folder, picture_name, read_facts
from imagic_lib.planning import memory
from imagic_lib.suggestion import Suggestion
from imagic_lib.training import loop
from imagic_lib.training.strategies import Strategy

TEXT = "a yellow car parked in the snow"
STEPS = {"embedding_steps": 3, "unet_steps": 3}


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Few sampler steps, a small gallery, no reader: these tests are not about the quality of the pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stage4_inference.DEFAULTS, "tiny", stage4_inference.DEFAULTS["tiny"] | {"steps": 2})
        patch.setattr(do, "GALLERY_ETAS", (0.0, 0.5, 1.0))
        patch.setattr(do, "PREVIEW_STEPS", 2)
        patch.setattr(imagic.ImagicEdit, "suggest", lambda self: Suggestion(0.8, 0.5, {(0.8, 0.5): 0.9}))
        yield


def with_drawing(pipe, place: Path) -> do.Studio:
    found = do.new_studio(pipe, place, **STEPS)
    do.choose_drawing(found, "car-parked.png")
    found.text = TEXT
    return found


@pytest.fixture
def state(pipe, tmp_path) -> do.Studio:
    """A studio with a drawing and a text."""
    return with_drawing(pipe, tmp_path / "studio")


@pytest.fixture(scope="module")
def made(pipe, tmp_path_factory) -> do.Studio:
    """A finished edit. No test may change it; `finished` is a copy."""
    state = with_drawing(pipe, tmp_path_factory.mktemp("made") / "studio")
    do.prepare(state)
    do.run_all(state, lambda: None)
    return state


@pytest.fixture
def finished(made, tmp_path) -> do.Studio:
    place = Path(shutil.copytree(made.place, tmp_path / "studio"))
    copies = {name: copy.copy(value) for name, value in vars(made).items() if isinstance(value, list | dict)}
    copies |= {"place": place, "folder": place / made.folder.name, "stopping": threading.Event()}
    return dataclasses.replace(made, **copies)


@pytest.fixture(scope="module")
def reference(pipe) -> imagic.ImagicEdit:
    """The same edit, made by the library alone."""
    image = imagic.load_image(imagic.DATA / "images" / "car-parked.png", pipe)
    return imagic.run_edit(pipe, image, TEXT, **STEPS)


@pytest.fixture
def box(pipe, tmp_path):
    found = view_of.studio(pipe, place=tmp_path / "studio", **STEPS)
    yield found
    do.stop(found.state)
    if found.view.thread is not None:
        found.view.thread.join(60)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=int)


# ------------------------------------------------------------------------------------ files of strangers


def encoded(picture: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **settings)
    return buffer.getvalue()


def photo(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    """Red at the left, green at the right."""
    picture = Image.new("RGB", (width, height), "green")
    picture.paste("red", (0, 0, width // 2, height))
    return picture.convert(mode)


def turned(**settings) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees, clockwise
    return encoded(photo(), "JPEG", exif=exif.tobytes(), quality=95, **settings)


def bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""
    whole = bytearray(encoded(photo(), "PNG"))
    whole[16:24] = (60_000).to_bytes(4, "big") * 2
    whole[29:33] = zlib.crc32(bytes(whole[12:29])).to_bytes(4, "big")
    return bytes(whole)


SIXTEEN = Image.fromarray((np.arange(48 * 32).reshape(32, 48) * 40).astype(np.uint16))
GOOD = {
    "animated.gif": lambda: encoded(photo(), "GIF", save_all=True, append_images=[photo().rotate(180)]),
    "cmyk.jpg": lambda: encoded(photo(mode="CMYK"), "JPEG"),
    "sixteen bits.png": lambda: encoded(SIXTEEN, "PNG"),
    "palette.png": lambda: encoded(photo(mode="P"), "PNG"),
    "see-through.png": lambda: encoded(photo(mode="RGBA"), "PNG"),
    "grey.webp": lambda: encoded(photo(mode="L"), "WEBP"),
    "turned.jpg": turned,
    "a name with <b> and ünï.png": lambda: encoded(photo(), "PNG"),
}
BAD = {
    "zero.png": (lambda: b"", "is empty (0 bytes)"),
    "text.png": (lambda: b"This is text", "not a picture that can be read"),
    "cut.jpg": (lambda: turned()[:400], "damaged or cut short"),
    "bomb.png": (bomb, "megapixels: shrink it first"),
    "small.png": (lambda: encoded(photo(8, 8), "PNG"), "each side must have at least 16"),
    "drawing.eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture that can be read"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_strange_file_becomes_a_picture(state, name):
    do.take_file(state, name, GOOD[name]())
    assert state.picture.mode == "RGB" and state.name == name
    assert state.picture.size == ((32, 48) if name == "turned.jpg" else (48, 32))
    if name == "turned.jpg":
        top, bottom = pixels(state.picture)[5, 16], pixels(state.picture)[42, 16]
        assert top[0] > 200 > top[1] + 100 and bottom[1] > 100 > bottom[0] + 50


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_sentence_with_its_name_and_the_old_picture_stays(state, name):
    before = state.picture
    content, sentence = BAD[name]
    with pytest.raises(ValueError) as caught:
        do.take_file(state, name, content())
    said = str(caught.value)
    assert sentence in said and said.startswith(name) and "uploaded" not in said and "\n" not in said
    assert state.picture is before and state.name == "car-parked.png"


def test_a_phone_s_heic_is_turned_upright_or_called_by_its_name(state):
    try:
        import pillow_heif
    except ImportError:
        with pytest.raises(ValueError, match=r"IMG_1\.HEIC is a HEIC picture: save it as JPEG first"):
            do.take_file(state, "IMG_1.HEIC", b"\0\0\0\x18ftypheic" + bytes(64))
        return
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    do.take_file(state, "IMG_1.HEIC", encoded(photo(), "HEIF", exif=exif.tobytes()))
    assert state.picture.size == (32, 48)


def test_the_value_of_an_upload_is_read_in_both_versions_of_ipywidgets():
    assert view_of.uploaded({}) is None and view_of.uploaded(()) is None
    assert view_of.uploaded({"a.png": {"metadata": {}, "content": b"x"}}) == ("a.png", b"x")
    assert view_of.uploaded(({"name": "a.png", "content": memoryview(b"x")},)) == ("a.png", b"x")


# ------------------------------------------------------------------------------------------- the crop


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        (do.Crop(), (50, 0, 150, 100)),
        (do.Crop(0, 0), (0, 0, 100, 100)),
        (do.Crop(1, 1, 0.5), (150, 50, 200, 100)),
        (do.Crop(0.5, 0.5, 0.01), (92, 42, 108, 58)),  # 16 pixels at least
    ],
)
def test_the_crop_is_a_square_in_the_picture(crop, box):
    assert do.box_of(crop, 200, 100) == box


def test_the_frame_shows_the_whole_picture_and_darkens_the_rest(state):
    shown = pixels(do.framed(photo(200, 100), do.Crop(0, 0, 1), 100))
    assert shown.shape == (50, 100, 3)
    assert shown[25, 10, 0] > 250 and 60 < shown[25, 90, 1] + 20 < 100


def test_the_visible_square_is_the_one_that_is_edited(state):
    state.picture, state.crop = photo(200, 100), do.Crop(0, 0, 1)
    do.prepare(state)
    kept = pixels(Image.open(state.folder / INPUT_FILE))
    assert kept.shape == (128, 128, 3) and (kept[:, :120, 0] > 200).all()


# ------------------------------------------------------------------------------------------- the text


def test_the_text_is_shown_as_the_model_reads_it(state):
    found = do.reading_of(state.pipe, "a brown dog " + "and a giraffe " * 30)
    room = state.pipe.tokenizer.model_max_length - 2
    assert len(found.tokens) == room and found.tokens[:3] == ["a", "brown", "dog"] and found.cut
    assert "giraffe" in found.unknown and "dog" not in found.unknown
    state.text = "a <b>dog</b> " + "and " * 90
    said = view_of.reading(state)
    assert "<b>dog" not in said and "cut off" in said and "never seen by this model" in said
    state.text = " "
    assert view_of.reading(state) == ""


# --------------------------------------------------------------------------------------- the forecast


def test_the_forecast_times_real_steps_and_changes_nothing(box, monkeypatch):
    steps, step = [], loop.Training.step
    monkeypatch.setattr(loop.Training, "step", lambda self, loss: steps.append(self.name) or step(self, loss))
    state, view = box.state, box.view
    view.drawing.value = "car-parked.png"
    state.embedding_steps, state.unet_steps = 400, 600
    before = [p.clone() for p in state.pipe.unet.parameters()]
    box.click("forecast_button")
    box.wait(600)
    found = state.forecast
    assert len(steps) == 8 and found.embedding > 0 < found.fine_tuning and found.picture > 0
    assert all(torch.equal(a, b) for a, b in zip(before, state.pipe.unet.parameters(), strict=True))
    assert state.folder is None and not state.place.exists()
    assert "time: about" in view.forecast.value and "stage 2" in view.forecast.value
    view.method.value = "lora"
    assert view.forecast.value == "" and state.method == "lora"


def test_on_a_gpu_the_plan_chooses_and_names_the_reason_if_nothing_fits(state, monkeypatch):
    state.pipe = SimpleNamespace(device=torch.device("cuda"), unet=state.pipe.unet)
    full, lora = (Strategy(torch.float32, "Adam", checkpointing) for checkpointing in (False, True))
    ways = [memory.Way("full", full, 1, 9, 1), memory.Way("lora", lora, 1, 2, 1)]

    def chosen(method: str, gpu_gb: float) -> Strategy:
        state.method, state.plan = method, memory.Plan("m", 512, gpu_gb + memory.MARGIN, ways)
        return do.strategy_of(state)

    assert chosen("full", 10) == full and chosen("lora", 3) == lora
    with pytest.raises(ValueError, match="too little memory for training all weights: choose LoRA"):
        chosen("full", 3)
    with pytest.raises(ValueError, match="nothing fits"):
        chosen("lora", 1)


# ------------------------------------------------------------------------------------- run, stop, go on


def test_an_edit_has_its_folder_with_every_picture_of_its_gallery(finished):
    assert finished.phase == "finished" and finished.folder.parent == finished.place
    assert finished.folder.name.endswith("-a-yellow-car-parked-in-the-snow")
    names = {picture_name(eta, seed, 0.5) for eta in (0.0, 0.5, 0.8, 1.0) for seed in (0, 1)}
    files = {path.name for path in finished.folder.iterdir()}
    assert names | {"edit.json", INPUT_FILE} <= files and not [name for name in files if "checkpoint" in name]
    assert finished.chosen == (0.8, 0.5, 0)


def same_bits(edit: imagic.ImagicEdit, other: imagic.ImagicEdit) -> bool:
    return torch.equal(edit.e_opt, other.e_opt) and edit.unet_history.loss == other.unet_history.loss


def test_it_is_the_edit_that_run_edit_makes(finished, reference):
    assert same_bits(finished.edit, reference)
    [[picture]] = reference.pictures([0.5], [1], scale=0.5)
    assert np.abs(pixels(picture) - pixels(finished.pictures[0.5, 0.5, 1])).max() <= 2


def test_a_second_edit_of_the_same_text_leaves_the_first_alone(finished):
    first = finished.folder
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    do.prepare(finished)
    assert finished.folder != first and finished.pictures == {} and finished.edit is None
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    assert {kept.state for kept in do.shelf(finished)} == {"begun", "finished"}


@pytest.mark.parametrize("text", ["…", "A/..\\b", "x" * 400, "猫 in the snow"])
def test_any_text_names_a_folder(tmp_path, text):
    folders = {new_folder(tmp_path, text) for _ in range(3)}
    assert len(folders) == 3 and all(folder.parent == tmp_path and folder.is_dir() for folder in folders)


def test_curves_and_sketches_of_two_eta_grow_while_it_trains_and_change_nothing(state, monkeypatch, reference):
    monkeypatch.setattr(do, "PREVIEW_SHARE", 1e9)  # at every probe
    seen = []
    do.prepare(state)
    do.train(state, lambda: seen.append((set(state.histories), len(state.sketches))))
    assert state.histories.keys() == {"embedding", "unet"} and seen[:2] == [(set(), 0), (set(), 1)]
    assert [s.stage for s in state.sketches] == ["embedding"] * 3 + ["unet"]
    assert all(len(s.pictures) == 2 and s.pictures[0].size == (128, 128) for s in state.sketches)
    assert same_bits(state.edit, reference)


def test_of_many_sketches_the_first_the_last_and_some_between_are_kept():
    sketches = [do.Sketch("embedding", step, []) for step in range(0, 10)]
    do.thin(sketches)
    assert len(sketches) == do.MOST_SKETCHES and sketches[0].step == 0 and sketches[-1].step == 9


def stopped_after(state, steps: int, stage: str = "embedding") -> None:
    def tell() -> None:
        if stage in state.histories and len(state.histories[stage].loss) == steps:
            do.stop(state)

    with pytest.raises(do.Stopped):
        do.train(state, tell)


def test_stopped_in_both_stages_and_gone_on_gives_the_same_bits(state, reference):
    do.prepare(state)
    for stage in ("embedding", "unet"):
        stopped_after(state, 2, stage)
        assert state.phase == "stopped" and state.edit is None
    do.train(state, lambda: None)
    assert same_bits(state.edit, reference)


def test_another_studio_finds_a_stopped_edit_and_goes_on(state, pipe):
    do.prepare(state)
    stopped_after(state, 2, "unet")
    other = do.new_studio(pipe, state.place)  # the edit keeps its steps
    [kept] = do.shelf(other)
    assert kept.state == "begun" and kept.facts["text"] == TEXT
    assert np.array_equal(pixels(do.cover(kept)), pixels(state.picture))
    do.reopen(other, kept.folder)
    assert other.phase == "stopped" and len(other.histories["unet"].loss) == 2 and other.text == TEXT
    do.run_all(other, lambda: None)
    assert len(other.edit.unet_history.loss) == 3 and other.pictures


KILLED = """
import sys, os
import torch
import imagic_lib as imagic
from imagic_lab.studio import state as do
from imagic_lib.training import checkpoint, loop
checkpoint.SAVE_AFTER = 0.0
pipe = imagic.load_pipeline(sys.argv[1])
studio = do.new_studio(pipe, sys.argv[2], embedding_steps=3, unet_steps=3)
do.choose_drawing(studio, "car-parked.png")
studio.text = "a yellow car parked in the snow"
do.prepare(studio)
do.train(studio, lambda: os._exit(9) if len(studio.histories.get("unet", loop.History()).loss) == 2 else None)
"""


@pytest.mark.filterwarnings("ignore:the embedded model")
def test_after_a_kill_the_studio_offers_to_go_on_and_does(model_folder, tmp_path, reference):
    place = tmp_path / "studio"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, str(model_folder), str(place)], check=False)
    assert done.returncode == 9
    box = view_of.studio(imagic.load_pipeline(model_folder), place=place)
    [card] = box.view.shelf.children
    assert card.open.description == "Open to go on" and any("unfinished" in str(getattr(part, "value", "")) for part in
                                                            widgets_in(card))  # fmt: skip
    card.open.click()
    assert box.view.go_on.layout.display == "" and "unfinished" in box.view.status.value
    assert {stage: len(history.loss) for stage, history in box.state.histories.items()} == {"embedding": 3, "unet": 1}
    box.click("go_on")
    edit = box.wait(600)
    assert len(edit.unet_history.loss) == 3 and len(box.state.pictures) == 8
    assert reference.unet_history.loss == pytest.approx(edit.unet_history.loss)


def test_without_a_picture_or_a_text_no_folder_is_made(state):
    for change, sentence in (
        ({"text": " "}, "the text is empty"),
        ({"picture": None}, "choose a drawing or upload a photo"),
    ):
        broken = do.Studio(**vars(state) | change)
        with pytest.raises(ValueError, match=sentence):
            do.prepare(broken)
    assert not state.place.exists()


# ---------------------------------------------------------------------------------------- the gallery


def test_only_missing_pictures_are_drawn(finished, monkeypatch):
    drawn, pictures = [], imagic.ImagicEdit.pictures

    def noted(self, etas, seeds, **settings):
        drawn.append((etas, seeds, settings["scale"]))
        return pictures(self, etas, seeds, **settings)

    monkeypatch.setattr(imagic.ImagicEdit, "pictures", noted)
    do.draw_gallery(finished, lambda: None)
    assert drawn == []
    do.more_seeds(finished)
    finished.etas = sorted([*finished.etas, 0.25])
    do.draw_gallery(finished, lambda: None)
    assert drawn == [([0.25], [s], 0.5) for s in (0, 1)] + [([0.0, 0.25, 0.5, 0.8, 1.0], [s], 0.5) for s in (2, 3)]
    do.less_fine_tuning(finished)
    assert finished.scales == [0.5, 1.0]


def test_finer_eta_lie_where_the_pictures_change_most(finished):
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    finished.etas, finished.seeds, finished.scales = [0.0, 0.4, 0.7, 1.0], [0, 1], [1.0]
    finished.pictures = {(eta, 1.0, seed): white if eta > 0.5 else black for eta in finished.etas for seed in (0, 1)}
    assert do.turn_of(finished) == (0.4, 0.7)
    do.finer(finished)
    assert finished.etas == [0.0, 0.4, 0.5, 0.6, 0.7, 1.0]
    finished.etas, finished.pictures = [0.5, 0.52], {(0.5, 1.0, 0): black, (0.52, 1.0, 0): white}
    with pytest.raises(ValueError, match="too close"):
        do.finer(finished)
    finished.pictures = {}
    with pytest.raises(ValueError, match="draw the gallery first"):
        do.finer(finished)


def test_seeds_and_scales_come_to_an_end(finished):
    with pytest.raises(ValueError, match="choose among these"):
        for _ in range(9):
            do.more_seeds(finished)
    with pytest.raises(ValueError, match="all three"):
        for _ in range(3):
            do.less_fine_tuning(finished)


def test_a_stop_ends_the_drawing_after_a_row(finished):
    do.more_seeds(finished)
    do.draw_gallery(finished, lambda: do.stop(finished) if len(finished.pictures) > 8 else None)
    assert len(do.missing(finished)) == 4 and finished.phase == "finished"


def test_a_stop_during_the_suggestion_counts(finished, monkeypatch):
    monkeypatch.setattr(do, "train", lambda studio, tell: None)
    monkeypatch.setattr(do, "add_suggestion", do.stop)
    do.more_seeds(finished)
    do.run_all(finished, lambda: None)
    assert finished.stopping.is_set() and len(do.missing(finished)) == 8


def test_the_choice_is_kept_and_becomes_the_thumbnail(finished, pipe):
    do.choose(finished, (0.0, 0.5, 1))
    assert read_facts(finished.folder)["chosen"] == {"eta": 0.0, "scale": 0.5, "seed": 1}
    [kept] = do.shelf(finished)
    assert np.array_equal(pixels(do.cover(kept)), pixels(finished.pictures[0.0, 0.5, 1]))
    other = do.new_studio(pipe, finished.place)
    do.reopen(other, finished.folder)
    assert other.chosen == finished.chosen and other.pictures.keys() == finished.pictures.keys()
    assert other.etas == finished.etas and other.phase == "finished" and not do.missing(other)
    with pytest.raises(ValueError, match="draw it first"):
        do.choose(other, (9.0, 1.0, 0))


@pytest.mark.parametrize("key", [(0.5, 1.0, 1), (-0.25, 0.75, 0), (1e-7, 0.5, 3), (10.0, 2.0, 2**62)])
def test_the_name_of_a_picture_s_file_is_read_back(key):
    eta, scale, seed = key
    assert do.key_of(picture_name(eta, seed, scale)) == key
    assert do.key_of("input.png") is None and do.key_of("eta-.png") is None


def test_an_edit_of_another_model_or_a_damaged_one_leaves_the_studio_unchanged(finished, state, pipe):
    facts = read_facts(finished.folder)
    facts["base_model"] = {"name": "evil/model", "fingerprint": "x"}
    (finished.folder / "edit.json").write_text(json.dumps(facts))
    other = do.new_studio(pipe, finished.place)
    with pytest.raises(ValueError, match="other weights"):
        do.reopen(other, finished.folder)
    assert other.folder is None and other.picture is None
    (finished.folder / "edit.json").write_text("{")
    assert edits_in(finished.place) == []


# ------------------------------------------------------------------------------------- files to keep


def test_the_zip_holds_the_whole_edit_and_overwrites_none(finished):
    paths = [do.zipped(finished) for _ in range(2)]
    assert paths[0] != paths[1] and all(path.is_file() for path in paths)
    with zipfile.ZipFile(paths[0]) as file:
        assert file.testzip() is None
        names = {Path(name).name for name in file.namelist()}
        assert names == {path.name for path in finished.folder.iterdir()}
        assert {Path(name).parent.name for name in file.namelist()} == {finished.folder.name}


def test_without_an_edit_or_a_choice_there_is_nothing_to_keep(state):
    for make in (do.zipped, do.lora_files):
        with pytest.raises(ValueError, match="run an edit first"):
            make(state)
    with pytest.raises(ValueError, match="choose a picture first"):
        do.chosen_file(state)


def test_diffusers_opens_both_files_of_a_lora(state, pipe):
    state.method = "lora"
    do.prepare(state)
    do.run_all(state, lambda: None)
    assert [path.name for path in do.lora_files(state)] == [LORA_FILE, KOHYA_FILE]
    [[wanted]] = state.edit.pictures([1.0], [0])
    for path in do.lora_files(state):
        other = imagic.stage2_finetuning.with_unet(pipe, copy.deepcopy(pipe.unet))
        other.load_lora_weights(str(path.parent), weight_name=path.name)
        [found] = imagic.generate(other, state.edit.e_tgt, [0])
        assert np.abs(pixels(found) - pixels(wanted)).max() <= 2, path.name


def test_an_edit_of_all_weights_has_no_lora(finished):
    with pytest.raises(ValueError, match="trained all weights"):
        do.lora_files(finished)


class Hub:
    """Stands in for `huggingface_hub.HfApi`, and records the requests."""

    def __init__(self, logged_in=True):
        self.logged_in, self.asked = logged_in, []

    def whoami(self):
        if not self.logged_in:
            raise LocalTokenNotFoundError("no token")

    def create_repo(self, repository, **settings):
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(repository)
        self.asked.append(("create", repository, settings))

    def upload_folder(self, **settings):
        self.asked.append(("folder", settings["repo_id"], settings))

    def upload_file(self, **settings):
        self.asked.append(("file", settings["repo_id"], settings))


def test_a_push_makes_a_private_repository_of_only_the_edit_s_files(finished):
    (finished.folder / "my notes.txt").write_text("private")
    hub = Hub()
    assert do.push(finished, "me/my-car", hub) == "https://huggingface.co/me/my-car"
    assert [kind for kind, *_ in hub.asked] == ["create", "folder", "file"]
    assert hub.asked[0][2] == {"private": True, "exist_ok": True}
    files = hub.asked[1][2]["allow_patterns"]
    assert "edit.json" in files and picture_name(0.5, 0, 0.5) in files and "my notes.txt" not in files
    card = hub.asked[2][2]["path_or_fileobj"].decode()
    assert TEXT in card and "edited by a machine" in card and hub.asked[2][2]["path_in_repo"] == "README.md"


@pytest.mark.parametrize(
    ("hub", "name", "sentence"),
    [(Hub(logged_in=False), "me/car", "not logged in"), (Hub(), "no good/name/at all", "the hub refused")],
)
def test_a_push_that_fails_is_one_sentence(finished, hub, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        do.push(finished, name, hub)
    assert not [kind for kind, *_ in hub.asked if kind != "create"]


# ---------------------------------------------------------------------------------------- by the mouse


def run_by_click(box, drawing: str, text: str = "") -> None:
    box.view.drawing.value = drawing
    box.view.text.value = text or box.view.text.value
    box.click("run")
    assert box.wait(600).text == box.view.text.value
    assert box.view.status.value == "✓ done" and box.view.gallery_panel.layout.display == ""


def pictures_on_tiles(box) -> dict:
    return {key: tile.small.value for key, tile in box.view.tiles.items() if tile.small.value}


def test_with_the_mouse_alone_from_a_drawing_to_a_zip_and_to_a_second_edit(box):
    view, grids = box.view, []
    assert view.run.disabled and view.gallery_panel.layout.display == "none"
    view.grid.observe(lambda change: grids.append(len(change["new"])), "children")
    run_by_click(box, "car-parked.png", TEXT)
    assert "tokens" in view.reading.value and view.source.value and view.curves.value and view.sketches.value
    assert len([tile for tile in view.grid.children if hasattr(tile, "key")]) == len(pictures_on_tiles(box)) == 8
    assert len(grids) <= 2  # laid out before the pictures come, and again after the suggestion of λ
    assert all(view.tiles[key].layout.visibility == "visible" for key in box.state.pictures)
    check_choice_and_files(box)
    box.click("more_seeds")
    box.wait(600)
    assert len(pictures_on_tiles(box)) == 16 and box.state.seeds == [0, 1, 2, 3]
    run_by_click(box, "dog-sitting.png")
    drawn = {key: png(view_of.sized(picture, 2 * view_of.TILE), 0) for key, picture in box.state.pictures.items()}
    assert pictures_on_tiles(box) == drawn and len(drawn) == 8


def check_choice_and_files(box) -> None:
    view = box.view
    view.tiles[0.0, 0.5, 1].over.click()
    assert box.state.chosen == (0.0, 0.5, 1) and "seed 1" in view.choice.value and view.compare.children
    framed = [key for key, tile in view.tiles.items() if view_of.MARKED in tile.over.layout.get_state().values()]
    assert framed == [(0.0, 0.5, 1)]
    for name in ("save_png", "save_zip"):
        box.click(name)
        assert "kept:" in view.kept.value and "download" in view.kept.value
    assert view.save_lora.disabled and len(view.shelf.children) == 1


def test_stop_and_go_on_by_click(box, monkeypatch):
    reached, go = threading.Event(), threading.Event()
    show = view_of.show_progress

    def held(state, view):
        show(state, view)
        here = threading.current_thread() is not threading.main_thread()
        if here and len(state.histories.get("embedding", loop.History()).loss) == 2 and not go.is_set():
            reached.set()
            assert go.wait(600)

    monkeypatch.setattr(view_of, "show_progress", held)
    box.view.drawing.value = "car-parked.png"
    box.click("run")
    assert reached.wait(600) and box.view.run.disabled and not box.view.stop.disabled
    with pytest.raises(TimeoutError, match="still working"):
        box.wait(0.01)
    box.click("run")
    assert "something is running" in box.view.note.value
    filters = list(warnings.filters)
    box.click("stop")
    go.set()
    box.wait(600)
    assert "■ stopped" in box.view.status.value and box.view.go_on.layout.display == ""
    assert warnings.filters == filters
    box.click("go_on")
    assert len(box.wait(600).embedding_history.loss) == 3
    assert box.view.go_on.layout.display == "none"


def test_an_error_is_a_sentence_in_the_studio_and_raised_by_wait(box, monkeypatch):
    def diverge(*args, **kwargs):
        raise FloatingPointError("stage 1 diverged <at> step 3")

    monkeypatch.setattr(do, "run_edit", diverge)
    box.view.drawing.value = "car-parked.png"
    box.click("run")
    with pytest.raises(FloatingPointError):
        box.wait(600)
    assert "✗ stage 1 diverged &lt;at&gt; step 3" in box.view.note.value
    assert not box.view.run.disabled and box.view.stop.disabled and box.view.go_on.layout.display == ""


def test_an_error_at_once_stays_on_the_page(box, monkeypatch):
    """Also if the thread has ended before the click has."""
    monkeypatch.setattr(view_of.threading, "Thread", lambda target, daemon: SimpleNamespace(start=target))
    monkeypatch.setattr(do, "run_all", lambda studio, tell: 1 / 0)
    box.view.drawing.value = "car-parked.png"
    box.click("run")
    assert "✗ division by zero" in box.view.note.value


def test_a_photo_comes_with_crop_and_unknown_words_with_a_note(pipe, tmp_path, recwarn):
    photo(96, 64).save(tmp_path / "my <photo>.png")
    box = view_of.studio(pipe, tmp_path / "my <photo>.png", "a red giraffe", place=tmp_path / "s", **STEPS)
    assert box.view.crop_controls.layout.display == "" and "my &lt;photo&gt;.png" in box.view.source_note.value
    before = box.view.source.value
    box.view.across.value = 0
    assert box.state.crop == do.Crop(0, 0.5, 1) and box.view.source.value != before
    assert "never seen by this model: giraffe" in box.view.reading.value
    box.click("run")
    assert "never saw &#x27;giraffe&#x27;" in box.view.note.value
    box.wait(600)
    assert (pixels(Image.open(box.state.folder / INPUT_FILE))[:, :, 0] > 100).mean() > 0.6
    assert not [w for w in recwarn if "giraffe" in str(w.message)]  # the note is shown rather than printed


def test_the_curves_are_one_picture_with_a_description():
    history = loop.History([0.3] * 20, [0, 10, 20], [0.3, 0.2, 0.1], steps=40)
    drawn = view_of.probe_curves({"embedding": history})
    assert drawn.startswith("<svg ") and 'aria-label="probe loss of both stages"' in drawn
    assert drawn.count("<use ") > view_of.probe_curves({}).count("<use ")  # a mark for each probe


# ------------------------------------------------------------------- ipywidgets 7, as on Colab

STOCK = {"Widget", "Image", "HTML", "VBox", "HBox", "Box", "GridBox", "Dropdown", "IntSlider", "Text", "Button",
         "IntProgress", "FileUpload", "ToggleButtons", "SelectionSlider"}  # fmt: skip
SETTINGS_OF_7 = {"value", "min", "max", "format", "options", "description", "style", "layout", "icon", "button_style",
                 "placeholder", "multiple", "continuous_update"}  # fmt: skip


def test_only_widgets_and_settings_of_ipywidgets_7():
    tree = ast.parse(inspect.getsource(view_of))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    ours = [call for call in calls if getattr(call.func.value, "id", "") == "widgets"]
    assert len(ours) > 20 and {call.func.attr for call in ours} <= STOCK
    assert {keyword.arg for call in ours for keyword in call.keywords} <= SETTINGS_OF_7


def test_the_frontend_knows_every_widget(box):
    for part in widgets_in(box):
        assert part._model_module == "@jupyter-widgets/controls" and part._model_name.removesuffix("Model") in STOCK


def test_a_sketch_moves_the_vae_to_the_gpu_and_back(state):
    """The VAE is where it was, and the noise is seed 0's."""
    empty = do.embedding_of_negative(state.pipe)
    e = imagic.encode_text(state.pipe, TEXT)
    [one] = do.quick_pictures(state.pipe, state.pipe.unet, e, empty, steps=2)
    [same] = imagic.generate(state.pipe, e, [0], steps=2, scheduler="dpm++")
    assert np.abs(pixels(one) - pixels(same)).max() <= 1


def test_colab_uses_a_drive_only_if_it_is_mounted(monkeypatch, tmp_path):
    assert do.usual_place() == Path("out/studio")
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    monkeypatch.setattr(do, "DRIVE", tmp_path)
    assert do.usual_place() == tmp_path / "imagic"
    monkeypatch.setattr(do, "DRIVE", tmp_path / "not mounted")
    assert do.usual_place() == Path("out/studio")
