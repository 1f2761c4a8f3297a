"""The studio without a browser: every step from a file to a saved edit, by function and by the messages of its page."""

import io
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
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
from imagic_lib import stage1_embedding, stage2_finetuning, stage4_inference, suggestion
from imagic_lib.folder import INPUT_FILE, picture_name, read_facts
from imagic_lib.planning import memory
from imagic_lib.training import loop
from imagic_lib.training.strategies import Strategy

TEXT = "a yellow car parked in the snow"


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Few steps, a small gallery, no reader: these tests are not about the quality of the pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for defaults in (stage1_embedding.DEFAULTS, stage2_finetuning.DEFAULTS["full"]):
            patch.setitem(defaults, "tiny", defaults["tiny"] | {"steps": 3})
        patch.setitem(stage4_inference.DEFAULTS, "tiny", stage4_inference.DEFAULTS["tiny"] | {"steps": 2})
        tries = suggestion.Tries({"tiny": (0.8, 1.0)}, (0.5, 0.75, 1.0), {"steps": 2})
        patch.setitem(suggestion.TRIES, "own", tries)
        patch.setattr(do, "TRIES", tries)
        patch.setattr(do, "TRIED", 12)
        patch.setattr(do, "GALLERY_ETAS", (0.0, 0.5, 1.0))
        patch.setattr(do, "PREVIEW_STEPS", 2)
        patch.setattr(do, "plugin_of", lambda *names: lambda edit: lambda drawn: [0.9 for _ in drawn])
        yield


def with_drawing(pipe, place: Path) -> do.Studio:
    found = do.Studio(pipe, place)
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
    do.run_all(state)
    return state


@pytest.fixture
def finished(made, pipe, tmp_path) -> do.Studio:
    state = do.Studio(pipe, shutil.copytree(made.place, tmp_path / "studio"))
    do.reopen(state, state.place / made.folder.name)
    return state


@pytest.fixture(scope="module")
def reference(pipe) -> imagic.ImagicEdit:
    """The same edit, made by the library alone."""
    image = imagic.load_image(imagic.DATA / "images" / "car-parked.png", pipe)
    return imagic.run_edit(pipe, image, TEXT)


@pytest.fixture
def page(pipe, tmp_path):
    yield app.studio(pipe, place=tmp_path / "studio")
    for one in app.PAGES:
        one.state.stopping.set()
        if one.state.thread is not None:
            one.state.thread.join(60)
    app.PAGES.clear()


def say(page, action: str, *buffers: bytes, **fields) -> None:
    """A message, as studio.js sends it."""
    page.hear(page, {"do": action, "id": page.heard + 1, **fields}, list(buffers))


def ended(page) -> imagic.ImagicEdit | None:
    """The edit, when nothing runs any more."""
    if (thread := page.state.thread) is not None:
        thread.join(600)
    assert page.state.thread is None
    return page.state.edit


class Button(threading.Event):
    """A stop button that first calls a function, in every step of the work: this is when the work looks at it."""

    def __init__(self, act):
        super().__init__()
        self.act, self.inside = act, False

    def is_set(self) -> bool:
        if not self.inside:  # `act` may look at it as well
            self.inside = True
            self.act()
            self.inside = False
        return super().is_set()


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


def upload(page, name: str, content: bytes, start: int = 0, size: int | None = None) -> None:
    """A whole file, or the part of it that begins there."""
    say(page, "file", *[content] * bool(content), name=name, start=start, size=len(content) if size is None else size)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees, clockwise
    return encoded(photo(), "JPEG", exif=exif.tobytes(), quality=95)


def test_an_upload_comes_in_parts_and_is_turned_upright(page):
    whole = turned()
    upload(page, "a <b>ünï.jpg", whole[:100], size=len(whole))
    assert page.now["picture"] is None
    upload(page, "a <b>ünï.jpg", whole[100:], size=len(whole), start=100)
    assert page.now["picture"]["name"] == "a <b>ünï.jpg" and page.now["picture"]["size"] == (32, 48)
    top, bottom = pixels(page.state.picture)[5, 16], pixels(page.state.picture)[42, 16]
    assert top[0] > 200 > top[1] + 100 and bottom[1] > 100 > bottom[0] + 50


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_file_of_which_a_part_is_lost_is_refused_and_can_be_sent_again(page, lost):
    whole = encoded(photo(), "BMP")
    parts = [(start, whole[start : start + 2000]) for start in range(0, len(whole), 2000)]
    assert len(parts) == 3
    for start, content in parts[:lost] + parts[lost + 1 :]:
        upload(page, "mine.bmp", content, start, len(whole))
    assert page.now["picture"] is None
    if lost < 2:  # without the last one it is still being sent
        assert page.now["error"] == {
            "at": "picture",
            "text": "a part of mine.bmp was lost on the way: choose the file again",
        }
    for start, content in parts:
        upload(page, "mine.bmp", content, start, len(whole))
    assert page.now["picture"]["name"] == "mine.bmp" and page.now["error"] == {}


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
    upload(page, "mine.png", content)
    error = page.now["error"]
    assert error["at"] == "picture" and error["text"].startswith("mine.png") and sentence in error["text"]
    assert page.now["picture"]["name"] == "dog-sitting.png"
    upload(page, "good.png", encoded(photo(), "PNG"))
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
    upload(page, "noise.png", encoded(picture, "PNG"))
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
    upload(page, "mine.png", encoded(Image.effect_noise((90, 60), 90), "PNG"))
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
    do.run_all(state, "embedding", "unet")
    assert [when for when, _ in state.sketches] == ["stage 1, step 0", *["stage 1, step 3"] * 2, "stage 2, step 3"]
    assert all([picture.size for picture in pair] == [(128, 128)] * 2 for _, pair in state.sketches)
    assert same_bits(state.edit, reference)


def stopped_when(state, ready) -> None:
    """Run, and press stop in the first step in which this is true."""
    state.stopping = Button(lambda: ready() and state.stopping.set())
    with pytest.raises(KeyboardInterrupt):
        do.run_all(state)


def test_a_stop_counts_in_every_phase_and_going_on_gives_the_same_bits(state, reference, monkeypatch):
    do.prepare(state)
    for stage, count in (("embedding", 1), ("unet", 2)):
        at = partial(lambda s, n: s in state.histories and len(state.histories[s].loss) == n, stage, count)
        stopped_when(state, at)
        assert state.phase == "stopped" and not state.edit and len(state.histories[stage].loss) == count
    stopped_when(state, lambda: state.edit and state.phase == "suggestion")
    assert state.edit and state.suggested is None and state.phase == "finished"
    monkeypatch.setattr(do, "plugin_of", lambda *names: lambda edit: lambda drawn: state.stopping.set() or [0.9])
    state.stopping = threading.Event()
    with pytest.raises(KeyboardInterrupt):  # while the reader reads the first picture
        do.run_all(state)
    assert state.suggested is None
    monkeypatch.undo()
    stopped_when(state, lambda: len(state.pictures) == 4)
    assert len(state.pictures) == 4 and len(do.missing(state)) == 4
    state.stopping = threading.Event()
    do.run_all(state, "gallery")
    assert not do.missing(state) and same_bits(state.edit, reference)


def test_a_stop_before_the_first_step_is_not_forgotten(state):
    do.prepare(state)
    state.stopping.set()
    with pytest.raises(KeyboardInterrupt):
        do.run_all(state)
    assert state.phase == "stopped" and state.histories == {}


KILLED = """
import os, sys, threading
import imagic_lib as imagic
from imagic_lab.studio import state as do
from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.training import checkpoint, loop

class Button(threading.Event):
    def is_set(self):
        if len(studio.histories.get("unet", loop.History()).loss) == 2:
            os._exit(9)

checkpoint.SAVE_AFTER, do.PREVIEW_STEPS = 0.0, 1
stage1_embedding.DEFAULTS["tiny"]["steps"] = stage2_finetuning.DEFAULTS["full"]["tiny"]["steps"] = 3
studio = do.Studio(imagic.load_pipeline(sys.argv[1]), do.Path(sys.argv[2]), stopping=Button())
do.choose_drawing(studio, "car-parked.png", place="snow")
do.prepare(studio)
do.run_all(studio)
"""


def test_after_a_kill_the_history_offers_the_edit_and_it_goes_on(model_folder, tmp_path, reference, monkeypatch):
    place = tmp_path / "studio"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, str(model_folder), str(place)], check=False)
    assert done.returncode == 9
    defaults = stage2_finetuning.DEFAULTS["full"]
    monkeypatch.setitem(defaults, "tiny", defaults["tiny"] | {"steps": 9})  # the edit keeps its own
    page = app.studio(imagic.load_pipeline(model_folder), place=place)
    [card] = page.history["edits"]
    assert card["state"] == "unfinished" and card["text"] == TEXT and card["size"] > 10**5
    say(page, "open", name=card["name"])
    assert page.now["first"] == "go_on" and "unfinished" in page.now["words"]
    say(page, "go_on")
    edit = ended(page)
    assert len(edit.unet_history.loss) == 3 and len(page.tiles) == 8
    assert reference.unet_history.loss == pytest.approx(edit.unet_history.loss)


def test_go_on_means_the_edit_that_was_begun_whatever_was_typed_since(page):
    say(page, "example", name="car-parked.png")
    do.prepare(page.state)
    begun = page.state.folder
    say(page, "text", text="a blue car parked at night")
    assert page.now["first"] == "run" and f"“Go on” continues “{TEXT}”" in page.now["words"]
    say(page, "go_on")
    edit = ended(page)
    assert (edit.text, page.state.folder, page.now["text"], page.now["words"]) == (TEXT, begun, TEXT, "✓ done")


def test_another_picture_leaves_the_edit_before_to_the_history(page):
    say(page, "example", name="car-parked.png")
    say(page, "run")
    ended(page)
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
            do.run_all(finished, "gallery")
        page.state.place = finished.place
        say(page, "delete", names=[finished.folder.name])
        assert page.now["error"]["at"] == "history" and finished.folder.is_dir()
    do.run_all(finished, "gallery")


def test_an_edit_of_another_process_is_shown_and_opened_when_it_has_ended_there(page, state, finished, pipe):
    do.prepare(state)
    with FileLock(state.folder / ".lock"):
        other = app.studio(pipe, place=state.place)
        assert (other.now["words"], other.now["text"], other.now["can_go_on"]) == (app.ELSEWHERE, TEXT, False)
        assert other.now["elsewhere"] and [one["state"] for one in other.history["edits"]] == ["running", "finished"]
        say(other, "text", text="a blue car")
        say(other, "look")
        say(other, "go_on")
        assert (other.now["words"], other.now["busy"], other.now["error"]) == (app.ELSEWHERE, False, {})
        shutil.copytree(finished.folder, state.folder, dirs_exist_ok=True)
        say(other, "open", name=state.folder.name)
        assert other.now["rows"] and not other.now["made"]  # its pictures so far; none can be added from here
        say(other, "text", text="a blue car")
    say(other, "look")
    assert not other.now["elsewhere"] and other.now["made"] and other.now["text"] == "a blue car"
    assert [one["state"] for one in other.history["edits"]] == ["finished"] * 2


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
    say(page, "run")
    assert held.reached.wait(600)
    after = app.studio(pipe, place=page.state.place)  # as after a reload of the page, when the cell is run again
    assert after.state is page.state and after.now["busy"] and after.now["text"] == TEXT
    before.show(history=True)
    [card] = before.history["edits"]
    assert card["state"] == "running"
    say(before, "open", name=card["name"])
    assert before.state is page.state
    say(page, "run")
    assert "something is running" in page.now["error"]["text"]
    say(before, "stop")
    assert page.now["words"] == "stopping after this step …"
    held.go.set()
    page.state.thread.join(600)
    assert all("■ stopped" in one.now["words"] and one.now["can_go_on"] for one in (page, after, before))
    say(page, "go_on")
    assert len(ended(page).embedding_history.loss) == 3 and page.now["error"] == {}


def test_the_bar_goes_over_all_phases_and_the_time_left_is_said(state, monkeypatch):
    seen, clock = [], [0.0]
    monkeypatch.setattr(do, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def note() -> None:
        clock[0] += 10
        seen.append((state.phase, do.share_done(state), do.progress_words(state)))

    do.prepare(state)
    state.stopping = Button(note)
    do.run_all(state)
    shares = [share for _, share, _ in seen]
    assert list(dict.fromkeys(phase for phase, *_ in seen)) == list(do.PHASES)
    assert shares == sorted(shares) and shares[0] == 0 and 0.95 < shares[-1] <= 1
    assert all("left" in words for _, share, words in seen if share > 0.02)
    assert any("stage 2, the UNet: step 2 of 3 · about" in words for *_, words in seen)


def test_the_time_left_after_going_on_is_not_that_of_the_steps_before(state, monkeypatch):
    said, clock, tuned = [], [0.0], stage2_finetuning.DEFAULTS["full"]
    monkeypatch.setitem(tuned, "tiny", tuned["tiny"] | {"steps": 8})
    do.prepare(state)
    stopped_when(state, lambda: "unet" in state.histories and len(state.histories["unet"].loss) == 6)
    monkeypatch.setattr(do, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(do, "spoken", "{:.0f} s".format)

    def note() -> None:
        clock[0] += 10
        if found := re.search(r"about (\d+) s left", do.progress_words(state)):
            said.append((clock[0], int(found[1])))

    do.reopen(state, state.folder)
    state.stopping = Button(note)
    do.run_all(state)
    assert len(said) > 10 and all(left > (clock[0] - now) / 3 for now, left in said), (clock, said)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "5 s"), (12, "15 s"), (54, "55 s"), (55, "1 min"), (61, "2 min"), (3600, "1 h 00 min"), (5000, "1 h 24 min")],
)
def test_seconds_are_spoken_and_rounded_up(seconds, words):
    assert do.spoken(seconds) == words


def test_an_error_is_a_sentence_where_it_was_caused(page, monkeypatch):
    """Also if the thread has ended before the click has; and it is gone with the next action."""
    monkeypatch.setattr(do, "run_edit", lambda *args, **more: 1 / 0)
    say(page, "example", name="car-parked.png")
    say(page, "run")
    ended(page)
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
    do.run_all(finished, "gallery")
    assert drawn == []
    do.widen(finished, eta=0.25)
    do.widen(finished, seeds=1)
    do.widen(finished, scale=0.5)
    do.run_all(finished, "gallery")
    every = [0.0, 0.25, 0.5, 0.8, 1.0]
    assert drawn == [([0.25], [0], 1.0), ([0.25], [1], 1.0), (every, [2], 1.0), *((every, [s], 0.5) for s in (0, 1, 2))]


@pytest.mark.parametrize(("more", "sentence"), [({"eta": 11}, "within"), ({"scale": 3}, "from 0")])
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
    ended(page)
    assert len(page.tiles) == 10 and [tile[0] for tile in page.now["rows"][0]["tiles"]][1] == "0.25"
    assert page.now["chosen"] == name
    [kept] = shelf.edits_in(page.state.place)
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


def test_the_chosen_picture_is_downloaded(page, finished, monkeypatch):
    page.state.place, sent = finished.place, []
    say(page, "open", name=finished.folder.name)
    monkeypatch.setattr(page, "send", lambda *message: sent.append(message))
    say(page, "save")
    name = picture_name(0.8, 0)
    assert sent == [({"file": f"{finished.folder.name}-{name}"}, [(finished.folder / name).read_bytes()])]


def test_an_upload_takes_the_text_of_a_drawing_away_but_none_that_was_typed(page):
    say(page, "surprise")
    upload(page, "mine.png", encoded(photo(), "PNG"))
    assert page.now["text"] == ""
    say(page, "text", text="a raccoon")
    upload(page, "mine.png", encoded(photo(), "PNG"))
    assert page.now["text"] == "a raccoon"
    do.prepare(page.state)
    upload(page, "mine.png", encoded(photo(), "PNG"))
    assert page.now["text"] == ""  # that of the edit before


# ------------------------------------------------------------------------------------ GPU and Colab


def test_on_a_gpu_the_plan_chooses_and_names_the_reason_if_nothing_fits(pipe, monkeypatch):
    gpu = SimpleNamespace(device=torch.device("cuda"))
    full, lora = (Strategy(torch.float32, "Adam", checkpointing) for checkpointing in (False, True))
    ways = [memory.Way("full", full, 1, 9, 1), memory.Way("lora", lora, 1, 2, 1)]

    def chosen(gpu_gb: float, *method: str) -> memory.Way:
        monkeypatch.setattr(do, "plan", lambda pipe: memory.Plan("m", 512, gpu_gb + memory.MARGIN, ways))
        return do.best_way(gpu, *method)

    assert [chosen(10), chosen(10, "lora"), chosen(3)] == [ways[0], ways[1], ways[1]]
    with pytest.raises(ValueError, match="nothing fits"):
        chosen(1)
    assert do.best_way(pipe)[:2] == ("full", None)


def test_colab_uses_a_drive_only_if_it_is_mounted(monkeypatch, tmp_path):
    assert do.usual_place() == Path("out/studio")
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    monkeypatch.setattr(do, "DRIVE", tmp_path)
    assert do.usual_place() == tmp_path / "imagic"
    monkeypatch.setattr(do, "DRIVE", tmp_path / "not mounted")
    assert do.usual_place() == Path("out/studio")


def test_a_message_that_is_sent_again_is_answered_once(model_folder, tmp_path, monkeypatch):
    page, drawn = app.studio(imagic.load_pipeline(model_folder), place=tmp_path), []
    monkeypatch.setattr(do, "choose_drawing", lambda state: drawn.append(state))
    for number in (7, 7, 8):
        page.hear(page, {"do": "surprise", "id": number}, [])
    assert len(drawn) == 2 and page.now["heard"] == 8


def test_messages_go_to_the_main_loop_whatever_page_asked_before(model_folder, tmp_path):
    """ipykernel 7 asks the comm, and by itself the comm names the loop of a page that a reload may have ended."""
    page = app.studio(imagic.load_pipeline(model_folder), place=tmp_path)
    assert page.comm._reply_subshell_for({"method": "custom"}, "the loop of a closed page") is None
