"""The studio without a browser: every step from a file to a saved edit, by function and by the messages of its page."""

import copy
import io
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import imagic_lib as imagic
from imagic_lab.studio import app, shelf
from imagic_lab.studio import state as do
from imagic_lib import stage4_inference, suggestion
from imagic_lib.folder import INPUT_FILE, LORA_FILE, picture_name, read_facts
from imagic_lib.planning import memory
from imagic_lib.training import loop
from imagic_lib.training.strategies import Strategy

TEXT = "a yellow car parked in the snow"
STEPS = {"embedding_steps": 3, "unet_steps": 3}


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Few sampler steps, a small gallery, no reader: these tests are not about the quality of the pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stage4_inference.DEFAULTS, "tiny", stage4_inference.DEFAULTS["tiny"] | {"steps": 2})
        tries = suggestion.Tries({"tiny": (0.8, 1.0)}, (0.5, 0.75, 1.0), {"steps": 2})
        patch.setitem(suggestion.TRIES, "own", tries)
        patch.setattr(do, "TRIES", tries)
        patch.setattr(do, "GALLERY_ETAS", (0.0, 0.5, 1.0))
        patch.setattr(do, "PREVIEW_STEPS", 2)
        patch.setattr(do, "plugin_of", lambda *names: lambda edit: lambda drawn: [0.9 for _ in drawn])
        yield


def with_drawing(pipe, place: Path) -> do.Studio:
    found = do.new_studio(pipe, place, **STEPS)
    do.choose_drawing(found, "car-parked.png", place="snow")
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
def finished(made, pipe, tmp_path) -> do.Studio:
    state = do.new_studio(pipe, shutil.copytree(made.place, tmp_path / "studio"), **STEPS)
    do.reopen(state, state.place / made.folder.name)
    return state


@pytest.fixture(scope="module")
def reference(pipe) -> imagic.ImagicEdit:
    """The same edit, made by the library alone."""
    image = imagic.load_image(imagic.DATA / "images" / "car-parked.png", pipe)
    return imagic.run_edit(pipe, image, TEXT, **STEPS)


@pytest.fixture
def page(pipe, tmp_path):
    yield app.studio(pipe, place=tmp_path / "studio", **STEPS)
    for one in app.PAGES:
        do.stop(one.state)
        if one.state.thread is not None:
            one.state.thread.join(60)
    app.PAGES.clear()


def say(page, action: str, *buffers: bytes, **fields) -> None:
    """A message, as studio.js sends it."""
    page.hear(page, {"do": action, "id": page.heard + 1, **fields}, list(buffers))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=int)


# ------------------------------------------------------------------------------------ picture and text


def encoded(picture: Image.Image, kind: str, **settings) -> bytes:
    picture.save(buffer := io.BytesIO(), format=kind, **settings)
    return buffer.getvalue()


def photo(width: int = 48, height: int = 32) -> Image.Image:
    """Red at the left, green at the right."""
    picture = Image.new("RGB", (width, height), "green")
    picture.paste("red", (0, 0, width // 2, height))
    return picture


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees, clockwise
    return encoded(photo(), "JPEG", exif=exif.tobytes(), quality=95)


def test_an_upload_comes_in_parts_and_is_turned_upright(page):
    whole = turned()
    say(page, "file", whole[:100], name="a <b>ünï.jpg", part=0, parts=2)
    assert page.now["picture"] is None
    say(page, "file", whole[100:], name="a <b>ünï.jpg", part=1, parts=2)
    assert page.now["picture"]["name"] == "a <b>ünï.jpg" and page.now["picture"]["size"] == (32, 48)
    top, bottom = pixels(page.state.picture)[5, 16], pixels(page.state.picture)[42, 16]
    assert top[0] > 200 > top[1] + 100 and bottom[1] > 100 > bottom[0] + 50


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty (0 bytes)"),
        (b"This is text", "not a picture that can be read"),
        (turned()[:400], "damaged or cut short"),
        (encoded(photo(8, 8), "PNG"), "each side must have at least 16"),
        (b"\0\0\0\x18ftypheic" + bytes(64), "HE"),
    ],
)
def test_a_bad_file_is_one_sentence_where_it_was_chosen_and_the_next_one_works(page, content, sentence):
    say(page, "example", name="dog-sitting.png")
    say(page, "file", *[content] * bool(content), name="mine.png", part=0, parts=1)
    error = page.now["error"]
    assert error["at"] == "picture" and error["text"].startswith("mine.png") and sentence in error["text"]
    assert page.now["picture"]["name"] == "dog-sitting.png"
    say(page, "file", encoded(photo(), "PNG"), name="good.png", part=0, parts=1)
    assert page.now["picture"]["name"] == "good.png" and page.now["error"] == {}


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        ((0.5, 0.5, 1), (50, 0, 150, 100)),
        ((0, 0, 1), (0, 0, 100, 100)),
        ((1, 1, 0.5), (150, 50, 200, 100)),
        ((0.5, 0.5, 0.01), (92, 42, 108, 58)),  # 16 pixels at least
    ],
)
def test_the_square_that_is_seen_is_the_one_that_is_edited(page, crop, box):
    picture = Image.effect_noise((200, 100), 60).convert("RGB")
    say(page, "file", encoded(picture, "PNG"), name="noise.png", part=0, parts=1)
    say(page, "crop", crop=list(crop))
    page.state.text = TEXT
    do.prepare(page.state)
    kept = Image.open(page.state.folder / INPUT_FILE)
    wanted = imagic.pictures.square(picture.crop(box), 128)
    assert np.array_equal(pixels(kept), pixels(wanted)) and page.now["picture"]["crop"] == crop


def test_what_is_wrong_with_picture_and_text_is_said_before_the_run(page):
    say(page, "example", name="dog-sitting.png")
    assert page.now["text"] == "a brown dog jumping on the grass" and page.now["notes"] == []
    say(page, "text", text="a brown dog sitting on the grass")
    assert page.now["notes"] == ["The text describes the picture as it is: change a word."]
    say(page, "text", text="a giraffe " + "and a dog " * 90)
    assert "never seen giraffe" in page.now["notes"][0] and "will not read" in page.now["notes"][1]
    say(page, "text", text="x" * 20_000)
    assert "20" in page.now["notes"][-1]
    say(page, "text", text="  ")
    assert page.now["notes"] == [] and not page.now["can_run"]
    say(page, "file", encoded(Image.effect_noise((90, 60), 90), "PNG"), name="mine.png", part=0, parts=1)
    assert "can't hold this picture" in page.now["notes"][0] and "60 pixels wide" in page.now["notes"][1]


def test_the_vocabulary_changes_one_word_and_a_surprise_one_thing(page):
    say(page, "example", name="dog-sitting.png")
    say(page, "chip", colour="red")
    say(page, "chip", subject="car")
    assert page.now["text"] == "a red car parked on the grass" and page.now["chips"]["pose"] == ("parked", "driving")
    say(page, "surprise")
    before, after = page.state.caption.split(), page.now["text"].split()
    assert before != after and page.now["picture"]["square"] and page.now["notes"] == []


# ------------------------------------------------------------------------------------- run, stop, go on


def same_bits(edit: imagic.ImagicEdit, other: imagic.ImagicEdit) -> bool:
    return torch.equal(edit.e_opt, other.e_opt) and edit.unet_history.loss == other.unet_history.loss


def test_it_is_the_edit_that_run_edit_makes_with_every_picture_in_its_folder(made, reference):
    assert same_bits(made.edit, reference) and made.phase == "finished"
    assert made.folder.name.endswith("-a-yellow-car-parked-in-the-snow")
    names = {picture_name(eta, seed) for eta in (0.0, 0.5, 0.8, 1.0) for seed in (0, 1)}
    files = {path.name for path in made.folder.iterdir() if not path.name.startswith(".")}
    assert names | {"edit.json", INPUT_FILE} < files and not [name for name in files if "checkpoint" in name]
    [[picture]] = reference.pictures([0.5], [1])
    assert np.abs(pixels(picture) - pixels(made.pictures[0.5, 1.0, 1])).max() <= 2
    assert made.chosen == (0.8, 1.0, 0)


def test_sketches_come_from_the_start_and_change_nothing(state, monkeypatch, reference):
    monkeypatch.setattr(do, "PREVIEW_SHARE", 1e9)  # at every probe
    do.prepare(state)
    do.train(state, lambda: None)
    assert [(s.stage, s.step) for s in state.sketches] == [
        ("embedding", 0), ("embedding", 3), ("embedding", 3), ("unet", 3)
    ]  # fmt: skip
    assert all(len(s.pictures) == 2 and s.pictures[0].size == (128, 128) for s in state.sketches)
    assert same_bits(state.edit, reference)


def stopped_in(state, phase: str, calls: int) -> None:
    """Run until this phase has called so often, then stop."""
    seen = []

    def tell() -> None:
        if state.phase == phase and seen.append(phase) is None and len(seen) == calls:
            do.stop(state)

    with pytest.raises(do.Stopped):
        do.run_all(state, tell)


def test_a_stop_counts_in_every_phase_and_going_on_gives_the_same_bits(state, reference, monkeypatch):
    do.prepare(state)
    stopped_in(state, "embedding", 3)
    assert state.phase == "stopped" and not state.edit and len(state.histories["embedding"].loss) < 3
    stopped_in(state, "unet", 2)
    assert len(state.histories["unet"].loss) == 2
    monkeypatch.setattr(do, "plugin_of", lambda *names: lambda edit: lambda drawn: do.stop(state) or [0.9])
    with pytest.raises(do.Stopped):  # while the reader reads the first picture
        do.run_all(state, lambda: None)
    assert state.edit and state.suggested is None and state.phase == "finished"
    monkeypatch.undo()
    stopped_in(state, "gallery", 2)
    assert len(state.pictures) == 4 and len(do.missing(state)) == 4
    do.run_all(state, lambda: None, "gallery")
    assert not do.missing(state) and same_bits(state.edit, reference)


def test_a_stop_before_the_first_step_is_not_forgotten(state):
    do.prepare(state)
    do.stop(state)
    with pytest.raises(do.Stopped):
        do.run_all(state, lambda: None)
    assert state.phase == "stopped" and state.histories == {}


KILLED = """
import sys, os
import imagic_lib as imagic
from imagic_lab.studio import state as do
from imagic_lib.training import checkpoint, loop
checkpoint.SAVE_AFTER, do.PREVIEW_STEPS = 0.0, 1
pipe = imagic.load_pipeline(sys.argv[1])
studio = do.new_studio(pipe, sys.argv[2], embedding_steps=3, unet_steps=3)
do.choose_drawing(studio, "car-parked.png", place="snow")
do.prepare(studio)
do.train(studio, lambda: os._exit(9) if len(studio.histories.get("unet", loop.History()).loss) == 2 else None)
"""


def test_after_a_kill_the_history_offers_the_edit_and_it_goes_on(model_folder, tmp_path, reference):
    place = tmp_path / "studio"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, str(model_folder), str(place)], check=False)
    assert done.returncode == 9
    page = app.studio(imagic.load_pipeline(model_folder), place=place)  # with other step counts of its own
    [card] = page.history["edits"]
    assert card["state"] == "unfinished" and card["text"] == TEXT and card["size"] > 10**5
    say(page, "open", name=card["name"])
    assert page.now["first"] == "go_on" and "unfinished" in page.now["words"]
    page.click("go_on")
    edit = page.wait(600)
    assert len(edit.unet_history.loss) == 3 and len(page.tiles) == 8
    assert reference.unet_history.loss == pytest.approx(edit.unet_history.loss)


def test_go_on_means_the_edit_that_was_begun_whatever_was_typed_since(page):
    say(page, "example", name="car-parked.png")
    do.prepare(page.state)
    begun = page.state.folder
    say(page, "text", text="a blue car parked at night")
    say(page, "method", method="lora")
    assert page.now["first"] == "run" and f"“Go on” continues “{TEXT}”" in page.now["words"]
    page.click("go_on")
    edit = page.wait(600)
    assert (edit.text, edit.settings["method"], page.state.folder) == (TEXT, "full", begun)
    assert page.now["text"] == TEXT and page.now["method"] == "full" and page.now["words"] == "✓ done"


def test_another_picture_leaves_the_edit_before_to_the_history(page):
    say(page, "example", name="car-parked.png")
    page.click("run")
    page.wait(600)
    assert page.now["rows"] and page.stage.keys() == {"source", "input", "result"}
    say(page, "example", name="dog-sitting.png")
    assert page.now["rows"] == [] and page.stage.keys() == {"source"} and page.now["curves"] == {}
    assert [one["text"] for one in page.history["edits"]] == [TEXT]


def test_without_a_picture_or_a_text_no_folder_is_made(state):
    for change, sentence in (({"text": " "}, "the text is empty"), ({"picture": None}, "choose a picture first")):
        with pytest.raises(ValueError, match=sentence):
            do.prepare(do.Studio(**vars(state) | change))
    assert not state.place.exists()


# ------------------------------------------------------------------- one edit, several studios


def test_nobody_else_works_on_an_edit(finished, page):
    with FileLock(finished.folder / ".lock"):
        with pytest.raises(ValueError, match=r"another run is at work here, in .*snow: wait for it"):
            do.run_all(finished, lambda: None, "gallery")
        page.state.place = finished.place
        say(page, "delete", names=[finished.folder.name])
        assert page.now["error"]["at"] == "history" and finished.folder.is_dir()
    do.run_all(finished, lambda: None, "gallery")


@pytest.fixture
def held(monkeypatch):
    """Trainings wait after their second step, until `held.go` is set."""
    found, step = SimpleNamespace(reached=threading.Event(), go=threading.Event()), loop.Training.step

    def wait(training, loss) -> None:
        if training.done == 1 and not found.go.is_set():
            found.reached.set()
            assert found.go.wait(600)
        step(training, loss)

    monkeypatch.setattr(loop.Training, "step", wait)
    yield found
    found.go.set()


def test_a_second_studio_shows_the_running_edit_and_can_stop_it(page, pipe, held):
    before = app.studio(pipe, place=page.state.place)
    say(page, "example", name="car-parked.png")
    page.click("run")
    assert held.reached.wait(600)
    after = app.studio(pipe, place=page.state.place)  # as after a reload of the page, when the cell is run again
    assert after.state is page.state and after.now["busy"] and after.now["text"] == TEXT
    before.show(history=True)
    [card] = before.history["edits"]
    assert card["state"] == "running"
    say(before, "open", name=card["name"])
    assert before.state is page.state
    with pytest.raises(TimeoutError, match="still working"):
        page.wait(0.01)
    page.click("run")
    assert "something is running" in page.now["error"]["text"]
    before.click("stop")
    assert page.now["words"] == "stopping after this step …"
    held.go.set()
    page.state.thread.join(600)
    assert all("■ stopped" in one.now["words"] and one.now["can_go_on"] for one in (page, after, before))
    page.click("go_on")
    assert len(page.wait(600).embedding_history.loss) == 3 and page.now["error"] == {}


def test_the_bar_goes_over_all_phases_and_the_time_left_is_said(page, monkeypatch):
    seen, clock = [], [0.0]
    monkeypatch.setattr(do, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    run = do.run_all

    def watched(state, tell, *phases):
        def note() -> None:
            clock[0] += 10
            seen.append((state.phase, do.share_done(state), do.progress_words(state)))

        run(state, note, *phases)

    monkeypatch.setattr(do, "run_all", watched)
    say(page, "example", name="car-parked.png")
    page.click("run")
    page.wait(600)
    shares = [share for _, share, _ in seen]
    assert list(dict.fromkeys(phase for phase, *_ in seen)) == list(do.PHASES)
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(1)
    assert all("left" in words for _, share, words in seen if share > 0.02) and "step 2 of 3" in seen[3][2]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "5 s"), (12, "15 s"), (54, "55 s"), (55, "1 min"), (61, "2 min"), (3600, "1 h 00 min"), (5000, "1 h 24 min")],
)
def test_seconds_are_spoken_and_rounded_up(seconds, words):
    assert do.spoken(seconds) == words


def test_an_error_is_a_sentence_where_it_was_caused_and_raised_by_wait(page, monkeypatch):
    """Also if the thread has ended before the click has; and it is gone with the next action."""
    monkeypatch.setattr(do, "run_edit", lambda *args, **more: 1 / 0)
    say(page, "example", name="car-parked.png")
    page.click("run")
    with pytest.raises(ZeroDivisionError):
        page.wait(600)
    assert page.now["error"] == {"at": "run", "text": "division by zero"} and not page.now["busy"]
    assert page.now["words"] == "" and page.now["can_go_on"]
    say(page, "open", name="not there")
    assert page.now["error"]["at"] == "history" and "not there" in page.now["error"]["text"]
    say(page, "text", text="a dog")
    say(page, "example", name="dog-sitting.png")
    assert page.now["error"] == {}


# ---------------------------------------------------------------------------------------- the gallery


def test_only_missing_pictures_are_drawn(finished, monkeypatch):
    drawn, draw = [], imagic.ImagicEdit.pictures

    def noted(self, etas, seeds, **settings):
        drawn.append((etas, seeds, settings["scale"]))
        return draw(self, etas, seeds, **settings)

    monkeypatch.setattr(imagic.ImagicEdit, "pictures", noted)
    do.run_all(finished, lambda: None, "gallery")
    assert drawn == []
    do.widen(finished, eta=0.25)
    do.widen(finished, seeds=1)
    do.widen(finished, scale=0.5)
    do.run_all(finished, lambda: None, "gallery")
    every = [0.0, 0.25, 0.5, 0.8, 1.0]
    assert drawn == [([0.25], [0], 1.0), ([0.25], [1], 1.0), (every, [2], 1.0), *((every, [s], 0.5) for s in (0, 1, 2))]


@pytest.mark.parametrize(
    ("more", "sentence"), [({"seeds": 20}, "choose among these"), ({"eta": 11}, "within"), ({"scale": 3}, "from 0")]
)
def test_the_gallery_grows_by_sensible_numbers_only(finished, more, sentence):
    before = finished.etas, finished.seeds, finished.scales
    with pytest.raises(ValueError, match=sentence):
        do.widen(finished, **more)
    assert (finished.etas, finished.seeds, finished.scales) == before


def test_by_click_a_picture_is_chosen_and_the_choice_is_kept(page, finished):
    page.state.place = finished.place
    say(page, "open", name=finished.folder.name)
    name = picture_name(0.0, 1)
    say(page, "choose", name=name)
    assert page.now["chosen"] == name and page.stage["result"] == page.url(page.state.pictures[0.0, 1.0, 1], app.LARGE)
    assert read_facts(finished.folder)["chosen"] == {"eta": 0.0, "scale": 1.0, "seed": 1}
    say(page, "choose", name=picture_name(9.0, 1))
    assert page.now["error"]["at"] == "gallery" and "draw it first" in page.now["error"]["text"]
    say(page, "draw", eta=0.25)
    page.wait(600)
    assert len(page.tiles) == 10 and [tile[0] for tile in page.now["rows"][0]["tiles"]][1] == "0.25"
    say(page, "suggest")
    page.wait(600)
    assert page.now["suggested"] == ["0.8", "1", True] and page.now["chosen"] == name
    [kept] = do.shelf(page.state)
    assert np.array_equal(pixels(kept.cover), pixels(page.state.pictures[0.0, 1.0, 1]))


@pytest.mark.parametrize("key", [(0.5, 1.0, 1), (-0.25, 0.75, 0), (1e-7, 0.5, 3), (10.0, 2.0, 2**62)])
def test_the_name_of_a_picture_s_file_is_read_back(key):
    eta, scale, seed = key
    assert shelf.key_of(picture_name(eta, seed, scale)) == key
    assert shelf.key_of("input.png") is None and shelf.key_of("eta-.png") is None


# -------------------------------------------------------------------------------- history and files


def test_edits_are_renamed_duplicated_binned_and_brought_back(page, finished):
    page.state.place, name = finished.place, finished.folder.name
    say(page, "open", name=name)
    say(page, "duplicate", name=name)
    say(page, "rename", name=name, to="my/../best car!")
    names = {one["name"] for one in page.history["edits"]}
    assert names == {"my-..-best car", f"{name}-copy"} and page.state.folder.name == "my-..-best car"
    say(page, "rename", name=f"{name}-copy", to="my-..-best car")
    assert "already" in page.now["error"]["text"] and page.now["error"]["at"] == "history"
    say(page, "rename", name=f"{name}-copy", to="...")
    assert "the name is empty" in page.now["error"]["text"]
    for again in range(2):
        say(page, "delete", names=["my-..-best car"])
        assert page.state.folder is None and page.history["binned"] == 1 and page.history["size"] > 10**5
        say(page, "undo")
        assert page.history["binned"] == 0 and len(page.history["edits"]) == 2, again
    say(page, "delete", names=[one["name"] for one in page.history["edits"]])
    say(page, "empty")
    assert page.history == {"edits": [], "binned": 0, "size": 0}
    say(page, "undo")
    assert page.now["error"]["text"] == "the bin is empty"


def test_an_edit_of_another_model_or_a_damaged_one_leaves_the_studio_unchanged(finished, state):
    facts = read_facts(finished.folder)
    facts["base_model"] = {"name": "evil/model", "fingerprint": "x"}
    (finished.folder / "edit.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="other weights"):
        do.reopen(state, finished.folder)
    assert state.folder is None and state.name == "car-parked.png"
    (finished.folder / "edit.json").write_text("{")
    assert shelf.edits_in(finished.place) == []


def test_an_edit_that_the_command_line_began_says_how_it_goes_on(state):
    do.prepare(state)
    (state.folder / INPUT_FILE).unlink()
    with pytest.raises(ValueError, match=r"begun on the command line.*--resume"):
        do.reopen(state, state.folder)


def downloads(page, monkeypatch, what: str) -> tuple[str, bytes]:
    """What the browser gets."""
    sent = []
    monkeypatch.setattr(page, "send", lambda message, buffers: sent.append((message, buffers[0])))
    say(page, "save", what=what)
    assert page.now["error"] == {} and [m["part"] for m, _ in sent] == list(range(sent[0][0]["parts"]))
    assert all(len(content) <= app.PART for _, content in sent)
    return sent[0][0]["file"], b"".join(content for _, content in sent)


def test_the_picture_and_the_whole_edit_are_downloaded_in_parts(page, finished, monkeypatch):
    page.state.place = finished.place
    monkeypatch.setattr(app, "PART", 50_000)
    say(page, "open", name=finished.folder.name)
    name, content = downloads(page, monkeypatch, "png")
    assert name == f"{finished.folder.name}-{picture_name(0.8, 0)}"
    assert content == (finished.folder / picture_name(0.8, 0)).read_bytes()
    name, content = downloads(page, monkeypatch, "zip")
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert file.testzip() is None and name == f"{finished.folder.name}.zip"
        files = {path.name for path in finished.folder.iterdir() if path.name != ".lock"}
        assert {Path(name).name for name in file.namelist()} == files
        assert {Path(name).parent.name for name in file.namelist()} == {finished.folder.name}


def test_the_lora_is_downloaded_as_diffusers_reads_it(page, pipe, tmp_path, monkeypatch):
    say(page, "example", name="car-parked.png")
    say(page, "method", method="lora")
    page.click("run")
    edit = page.wait(600)
    assert page.now["lora"]
    name, content = downloads(page, monkeypatch, "lora")
    (tmp_path / name).write_bytes(content)
    other = imagic.stage2_finetuning.with_unet(pipe, copy.deepcopy(pipe.unet))
    other.load_lora_weights(str(tmp_path), weight_name=name)
    [[wanted]] = edit.pictures([1.0], [0], noise="random")
    [found] = imagic.generate(other, edit.e_tgt, [0])
    assert name.endswith(LORA_FILE) and np.abs(pixels(found) - pixels(wanted)).max() <= 2


def test_without_an_edit_there_is_nothing_to_keep(page):
    say(page, "save", what="zip")
    assert page.now["error"] == {"at": "gallery", "text": "run an edit first, or open a finished one"}


# ------------------------------------------------------------------------------------ GPU and Colab


def test_on_a_gpu_the_plan_chooses_and_names_the_reason_if_nothing_fits(state):
    state.pipe = SimpleNamespace(device=torch.device("cuda"), unet=state.pipe.unet)
    full, lora = (Strategy(torch.float32, "Adam", checkpointing) for checkpointing in (False, True))
    ways = [memory.Way("full", full, 1, 9, 1), memory.Way("lora", lora, 1, 2, 1)]

    def chosen(method: str, gpu_gb: float) -> Strategy:
        state.settings, state.plan = {"method": method}, memory.Plan("m", 512, gpu_gb + memory.MARGIN, ways)
        return do.strategy_of(state)

    assert chosen("full", 10) == full and chosen("lora", 3) == lora
    with pytest.raises(ValueError, match="too little memory for training all weights: choose LoRA"):
        chosen("full", 3)
    with pytest.raises(ValueError, match="nothing fits"):
        chosen("lora", 1)


def test_colab_uses_a_drive_only_if_it_is_mounted(pipe, monkeypatch, tmp_path):
    assert do.new_studio(pipe).place == Path("out/studio")
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    monkeypatch.setattr(do, "DRIVE", tmp_path)
    assert do.new_studio(pipe).place == tmp_path / "imagic"
    monkeypatch.setattr(do, "DRIVE", tmp_path / "not mounted")
    assert do.new_studio(pipe).place == Path("out/studio")


def test_a_photo_is_shown_at_first_if_the_call_names_one(pipe, tmp_path):
    photo(96, 64).save(tmp_path / "my <photo>.png")
    page = app.studio(pipe, tmp_path / "my <photo>.png", "a red giraffe", place=tmp_path / "s")
    assert page.now["picture"]["name"] == "my <photo>.png" and not page.now["picture"]["square"]
    assert page.now["picture"]["open"] and page.now["text"] == "a red giraffe" and len(page.now["notes"]) == 3


def test_a_message_that_is_sent_again_is_answered_once(model_folder, tmp_path):
    page = app.studio(imagic.load_pipeline(model_folder), place=tmp_path)
    for _ in range(2):
        page.hear(page, {"do": "surprise", "id": 7}, [])
        first = getattr(page, "first", page.state.name)
        page.first = first
    assert page.state.name == first and page.now["heard"] == 7
