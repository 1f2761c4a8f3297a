"""The studio: from a drawing or a photo to a finished edit, in one cell, with the mouse.

This module has the page, which is one widget: what it shows of the `state` (studio.js draws it), and how it answers
what a reader does. The work runs in a thread, so that the notebook stays usable.
"""

from __future__ import annotations

import base64
import io
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets
from diffusers import StableDiffusionPipeline
from PIL import Image

from imagic_lab.studio import shelf
from imagic_lab.studio import state as do
from imagic_lab.studio.state import Studio
from imagic_lab.toyworld.captions import attributes_in, reworded, values_beside
from imagic_lib.folder import locked, picture_name
from imagic_lib.models import DATA
from imagic_lib.pictures import open_image, picture_size

HERE = Path(__file__).resolve().parent
EXAMPLES = {  # drawings, and what their texts change
    "dog-sitting.png": {"pose": "jumping"}, "car-parked.png": {"place": "snow"}, "cat-standing.png":
    {"colour": "orange"}, "rabbit-lying.png": {"pose": "jumping"}, "bird-standing.png": {"subject": "cat"},
}  # fmt: skip
PHOTOS = {"raccoon-photo.jpg": "a photo of a raccoon in the snow"}  # for a model that knows photos
SMALL, LARGE, MOST_KEPT = 192, 640, 300  # pixels of a picture on the page, at most; pictures whose URLs are kept
UNFINISHED = "■ this edit is unfinished: “Go on” continues where it stopped"
ELSEWHERE = "▶ another notebook is working on this edit: you can stop it there, and the result will appear here"
BEAT = 0.5  # seconds between two reports of the work
PAGES: list[Page] = []  # of this kernel


def studio(pipe: StableDiffusionPipeline, place: str | Path | None = None) -> Page:
    """Return the studio as a widget, for the embedded model or for Stable Diffusion.

    place: each edit gets a new folder in it (default: `state.usual_place`). If a studio is working on an edit there
    already, this one shows it. The attribute `state` of the result is a `state.Studio`."""
    page = Page(Studio(pipe, Path(place or do.usual_place()).resolve()))
    if name := next((one["name"] for one in page.history["edits"] if one["state"] == "running"), ""):
        page.hear(page, {"do": "open", "name": name}, [])
    return page


class Page(anywidget.AnyWidget):
    """The widget. studio.js shows its traits, in which pictures are data: URLs."""

    _esm, _css = HERE / "studio.js", HERE / "studio.css"
    examples = traitlets.Dict().tag(sync=True)
    now = traitlets.Dict().tag(sync=True)  # words, numbers and choices
    stage = traitlets.Dict().tag(sync=True)  # the large pictures: source, input, result
    tiles = traitlets.Dict().tag(sync=True)  # of the gallery, by file name
    sketches = traitlets.List().tag(sync=True)
    history = traitlets.Dict().tag(sync=True)

    def __init__(self, state: Studio):
        self.state, self.heard, self.answered, self.beats, self.upload, self.urls = state, 0, set(), 0, b"", {}
        self.writing = threading.RLock()
        names = EXAMPLES if state.tiny else PHOTOS
        super().__init__(examples={name: self.url(open_image(DATA / "images" / name), SMALL) for name in names})
        self.on_msg(self.hear)
        if self.comm is not None:  # ipykernel 7 would pass messages to the loop of a page that a reload has ended
            self.comm._reply_subshell_for = lambda data, asked: None  # to the main loop
        PAGES.append(self)
        self.show(history=True)

    def hear(self, _page: object, message: dict, buffers: list) -> None:
        """Answer a message from studio.js, once. An error becomes a sentence at the part of the page that caused it."""
        fields, state = dict(message), self.state
        name, sent = fields.pop("do"), fields.pop("id", 0)
        if sent in self.answered:
            return self.show()
        self.answered, self.heard = self.answered | ({sent} - {0}), max(self.heard, sent)
        act, place, always = ANSWERS[name]
        try:
            if state.thread and not always:
                raise RuntimeError("something is running: wait for it, or stop it")
            state.error = state.error if state.thread else {}
            act(self, **fields, **({"content": bytes(buffers[0])} if buffers else {}))
        except Exception as error:
            fail(state, error, place)
        show_all(self.state, history=place == "history")

    def work(self, place: str, *acts: Callable[[Studio], object]) -> None:
        """Do these acts in a thread, one after the other, and show meanwhile that it is alive."""
        state = self.state

        def beat() -> None:
            while state.thread is thread:
                time.sleep(BEAT)
                show_all(state)

        def run() -> None:
            try:
                for act in acts:
                    act(state)
                state.said = "✓ done"
            except KeyboardInterrupt:
                state.said = "■ stopped; nothing is lost, and it can go on"
            except Exception as error:
                state.said = ""
                fail(state, error, place)
            state.thread = None
            show_all(state, history=True)

        state.thread = thread = threading.Thread(target=run, daemon=True)
        thread.start()
        threading.Thread(target=beat, daemon=True).start()

    def receive(self, name: str, size: int, start: int, content: bytes = b"") -> None:
        """Receive a part of an uploaded file. With the last part, the file becomes the picture."""
        self.upload = self.upload if start else b""
        if len(self.upload) != start:
            raise ValueError(f"a part of {name} was lost on the way: choose the file again")
        self.upload += content
        if len(self.upload) == size:
            do.take_file(self.state, name, self.upload)

    def save(self) -> None:
        """Let the browser download the chosen picture."""
        file = self.state.folder / self.now["chosen"]
        self.send({"file": f"{file.parent.name}-{file.name}"}, [file.read_bytes()])

    def open_edit(self, name: str) -> None:
        """Open an earlier edit; if this kernel is working on it, show that work."""
        folder = self.state.place / name
        if busy := [page.state for page in PAGES if page.state.thread and page.state.folder == folder]:
            self.state = busy[0]
            return
        state, elsewhere = self.state, shelf.at_work(folder)
        do.reopen(state, folder)
        state.elsewhere, state.said = elsewhere, ELSEWHERE if elsewhere else "" if state.edit else UNFINISHED

    def look(self) -> None:
        """Open the edit once the other notebook has finished or stopped it. What was typed meanwhile stays."""
        state, text = self.state, self.state.text
        if state.elsewhere and not shelf.at_work(state.folder):
            self.open_edit(state.folder.name)
            state.text = text
            self.show(history=True)

    def change(self, act: Callable[[Path], Path], *names: str) -> None:
        """Rename or bin earlier edits. Raises ValueError if one of them is running."""
        for folder in [self.state.place / name for name in names]:
            with locked(folder):
                new = act(folder)
            if self.state.folder == folder:
                do.forget(self.state) if new.parent != folder.parent else do.reopen(self.state, new)

    def url(self, picture: Image.Image, most: int) -> str:
        """Return the picture as a data: URL, at most `most` pixels wide and high."""
        if (key := (id(picture), most)) not in self.urls:
            small = picture.convert("RGB")
            small.thumbnail((most, most), Image.Resampling.LANCZOS)
            small.save(buffer := io.BytesIO(), format="WEBP", quality=92)
            coded = base64.b64encode(buffer.getvalue()).decode()
            self.urls[key] = picture, f"data:image/webp;base64,{coded}"  # keeping the picture keeps its id
        return self.urls[key][1]

    def show(self, history: bool = False) -> None:
        """Send what has changed."""
        with self.writing:
            state, self.beats = self.state, self.beats + 1
            drawn, sketches = dict(state.pictures), list(state.sketches)
            self.tiles = {picture_name(e, seed, scale): self.url(p, SMALL) for (e, scale, seed), p in drawn.items()}
            self.sketches = [{"label": when, "pictures": [self.url(p, SMALL) for p in pair]} for when, pair in sketches]
            result = drawn.get(state.chosen, sketches[-1][1][1] if sketches else None)
            large = {"source": state.picture, "input": state.input, "result": result}
            self.stage = {name: self.url(picture, LARGE) for name, picture in large.items() if picture}
            self.now = words_of(state) | {"heard": self.heard, "beat": self.beats}
            if history:
                self.history = self.earlier()
            if len(self.urls) > MOST_KEPT:
                self.urls.clear()

    def earlier(self) -> dict:
        """Return the edits in this place, and its bin."""
        edits, place = [], self.state.place / shelf.BIN
        for kept in shelf.edits_in(self.state.place):
            state = "running" if shelf.at_work(kept.folder) else {"begun": "unfinished"}.get(kept.state, kept.state)
            cover = (picture := kept.cover) and self.url(picture, SMALL)
            facts = {"name": kept.folder.name, "text": kept.facts["text"], "state": state, "cover": cover}
            edits.append(facts | {"size": shelf.size_of(kept.folder)})
        return {"edits": edits, "binned": len(list(place.glob("*"))), "size": shelf.size_of(place)}


def show_all(state: Studio, history: bool = False) -> None:
    for page in [page for page in PAGES if page.state is state]:
        page.show(history)


def fail(state: Studio, error: Exception, place: str) -> None:
    state.error = {"at": place, "text": (str(error).strip() or type(error).__name__).splitlines()[0]}


def words_of(state: Studio) -> dict:
    """Return all words, numbers and choices of a page."""
    busy, made, found = state.thread is not None, state.edit is not None, state.suggested
    unfinished = state.folder is not None and not state.elsewhere and (not made or bool(do.missing(state)))
    changed = state.text != state.edit_text
    said = do.progress_words(state) if busy else state.said
    if unfinished and changed and not busy:
        said = f"“Go on” continues “{state.edit_text}”; “Run” begins a new edit."
    rows = [(scale, seed) for scale in state.scales for seed in state.seeds] if made else []
    trained = {stage: history for stage, history in dict(state.histories).items() if history.probe_loss}
    shown = {s: {"step": h.probe_step[:], "loss": h.probe_loss[:], "steps": h.steps} for s, h in trained.items()}
    size, full, tiny = state.picture and state.picture.size, (picture_size(state.pipe),) * 2, state.tiny
    info = {"name": state.name, "size": size, "crop": state.crop, "square": size == full, "open": state.folder is None}
    return {
        "busy": busy, "made": made and not state.elsewhere, "elsewhere": state.elsewhere, "text": state.text,
        "chips": values_beside(state.text) if tiny else {}, "named": attributes_in(state.text) if tiny else {},
        "can_run": state.picture is not None and bool(state.text.strip()), "can_go_on": unfinished,
        "first": "go_on" if unfinished and not changed else "run", "words": said, "error": state.error,
        "share": do.share_done(state) if state.settings and state.job and (busy or unfinished) else float(made),
        "picture": size and info, "edit": state.edit_text, "curves": shown,
        "notes": do.notes(state), "sketch": "" if state.chosen or not state.sketches else state.sketches[-1][0],
        "rows": [{"scale": f"{scale:g}", "seed": seed, "tiles": [[f"{eta:g}", picture_name(eta, seed, scale)]
                 for eta in sorted(state.etas)]} for scale, seed in rows],
        "chosen": state.chosen and picture_name(state.chosen[0], state.chosen[2], state.chosen[1]),
        "suggested": found and [f"{found.eta:g}", f"{found.scale:g}", found.scores[found.eta, found.scale] > 0],
    }  # fmt: skip


def example(page: Page, name: str) -> None:
    if page.state.tiny:
        return do.choose_drawing(page.state, name, **EXAMPLES[name])
    do.take_picture(page.state, open_image(DATA / "images" / name), name)
    page.state.text = PHOTOS[name]


def go_on(page: Page) -> None:
    """Continue the stopped edit as it was begun, whatever the controls say now."""
    if page.state.edit is None:
        page.open_edit(page.state.folder.name)
    if not page.state.elsewhere:
        page.work("run", lambda state: do.run_all(state, *["gallery"] * bool(state.pictures)))


def draw(page: Page, **more) -> None:
    do.widen(page.state, **more)
    page.work("gallery", lambda state: do.run_all(state, "gallery"))


def chip(page: Page, **change: str) -> None:
    page.state.text = reworded(page.state.text, page.state.caption, **change)


ANSWERS = {  # for each action: the function, where its errors are shown, and whether it works while something runs
    "run": (lambda page: page.work("run", do.prepare, do.run_all), "run", False),
    "go_on": (go_on, "run", False),
    "stop": (lambda page: page.state.stopping.set(), "run", True),
    "text": (lambda page, text: setattr(page.state, "text", text), "run", True),
    "chip": (chip, "run", False),
    "file": (Page.receive, "picture", False),
    "example": (example, "picture", False),
    "surprise": (lambda page: do.choose_drawing(page.state), "picture", False),
    "crop": (lambda page, crop: do.move_crop(page.state, tuple(crop)), "picture", False),
    "recrop": (lambda page: do.forget(page.state), "picture", False),
    "choose": (lambda page, name: do.choose(page.state, do.key_of(name)), "gallery", True),
    "draw": (draw, "gallery", False),
    "save": (Page.save, "gallery", True),
    "open": (Page.open_edit, "history", False),
    "look": (Page.look, "run", True),
    "rename": (lambda page, name, to: page.change(lambda f: shelf.renamed(f, to), name), "history", False),
    "duplicate": (lambda page, name: shelf.duplicated(page.state.place / name), "history", True),
    "delete": (lambda page, names: page.change(shelf.binned, *names), "history", False),
    "undo": (lambda page: shelf.restored(page.state.place), "history", True),
    "empty": (lambda page: shutil.rmtree(page.state.place / shelf.BIN, ignore_errors=True), "history", True),
}
