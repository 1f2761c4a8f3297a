"""The studio without its page: a picture, its crop, a text, an edit, and a gallery of pictures.

`Studio` holds choices and results; the functions below it lead from a picture to a saved edit. `app` shows them.
"""

from __future__ import annotations

import copy
import random
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from imagic_lab.studio.shelf import Key, chosen_name, key_of
from imagic_lab.toyworld import edits, load_scene
from imagic_lib import folder as folders
from imagic_lib import pictures, suggestion
from imagic_lib.arguments import check_text, etas_of
from imagic_lib.edit import ImagicEdit, begun, run_edit, settings_of
from imagic_lib.folder import INPUT_FILE, locked, picture_name, read_facts
from imagic_lib.models import DATA, family, plugin_of, token_ids, unknown_words
from imagic_lib.planning.memory import Way, plan
from imagic_lib.stage3_interpolation import interpolate
from imagic_lib.stage4_inference import DEFAULTS, FAST, generate
from imagic_lib.storage import identity_of_edit
from imagic_lib.training.loop import History, Run
from imagic_lib.unets import check_scale, with_unet

DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts a Google Drive
GALLERY_ETAS, GALLERY_SEEDS = (0.0, 0.4, 0.6, 0.7, 0.8, 1.0), (0, 1)
CENTRE = 0.5, 0.5, 1.0  # a crop: across, down (0 is left, top), and its side as a share of the picture's shorter side
PREVIEW_ETA = 0.8  # until an η is suggested for the edit
TRIES = suggestion.TRIES["own"]  # only drawings get a suggestion by default; photos need CLIP, a large download
TRIED = len(TRIES.etas["tiny"]) * len(TRIES.scales) * len(suggestion.SEEDS)  # pictures
QUICK = FAST | {"half": True, "noise": "random"}  # how a large model draws
PREVIEW_STEPS, PREVIEW_SHARE, MOST_SKETCHES = 8, 0.15, 6  # of the sampler; of the training's time; on the page
# The work of a step of stage 2, and of drawing a picture, in steps of stage 1, as measured with the embedded model.
UNET_STEP, PICTURE_STEP = {"full": 1.7, "lora": 1.0}, 1 / 6
READING = 5  # the reader's work for one picture, in steps of drawing a row of six
PHASES = {"embedding": "stage 1, the embedding", "unet": "stage 2, the UNet",
          "suggestion": "looking for the best η and λ", "gallery": "drawing the gallery"}  # fmt: skip
WRITING = threading.RLock()  # edit.json is read, changed and written by the work and by clicks


@dataclass
class Studio:
    """The current choices and results. pipe: as loaded. place: folder in which the edits have their folders."""

    pipe: StableDiffusionPipeline
    place: Path
    # the choices
    picture: Image.Image | None = None  # uncropped and upright
    name: str = ""
    caption: str = ""  # of the picture as it is, if known
    foreign: bool = False  # whether the model can't draw the picture
    crop: tuple[float, float, float] = CENTRE
    text: str = ""
    # the work: its phases, the share of each that is done and, for the time left, when it began and how far it was
    job: tuple[str, ...] = ()
    done: dict[str, float] = field(default_factory=dict)
    began: tuple[float, float] = (0.0, 0.0)
    ahead: int = 0  # pictures that were missing in the gallery at the beginning
    stopping: threading.Event = field(default_factory=threading.Event)
    next_sketch: float = 0.0  # on the monotonic clock
    thread: threading.Thread | None = None  # in which the page runs it
    said: str = ""  # about the last job
    error: dict = field(default_factory=dict)  # of the last action, with its sentence and its part of the page
    # the results, which the next edit resets
    folder: Path | None = None
    elsewhere: bool = False  # another notebook works on it
    input: Image.Image | None = None  # the square that is edited
    settings: dict = field(default_factory=dict)  # of the edit in `folder`
    edit_text: str = ""
    phase: str = "choosing"  # "stopped", "finished", or one of PHASES
    histories: dict[str, History] = field(default_factory=dict)
    sketches: list[tuple[str, list[Image.Image]]] = field(default_factory=list)  # (when, at η = 0 and `PREVIEW_ETA`)
    edit: ImagicEdit | None = None
    suggested: suggestion.Suggestion | None = None
    etas: list[float] = field(default_factory=lambda: list(GALLERY_ETAS))
    seeds: list[int] = field(default_factory=lambda: list(GALLERY_SEEDS))
    scales: list[float] = field(default_factory=lambda: [1.0])
    pictures: dict[Key, Image.Image] = field(default_factory=dict)
    chosen: Key | None = None

    @property
    def tiny(self) -> bool:
        return family(self.pipe) == "tiny"

    @property
    def sampling(self) -> dict:
        """The settings of `ImagicEdit.pictures` for the gallery."""
        return {"steps": DEFAULTS["tiny"]["steps"]} if self.tiny else QUICK


def usual_place() -> Path:
    """Return out/studio or, on Colab, a folder in a mounted Google Drive."""
    return DRIVE / "imagic" if "google.colab" in sys.modules and DRIVE.is_dir() else Path("out/studio")


def forget(studio: Studio) -> None:
    """Leave the current edit, which stays in its folder."""
    fresh = vars(Studio(studio.pipe, studio.place))
    for name in list(fresh)[list(fresh).index("folder") :]:
        setattr(studio, name, fresh[name])


# -- a picture, its crop, and a text


def choose_drawing(studio: Studio, name: str = "", **change: str) -> None:
    """Take a drawing and, as the text, its caption with some attributes changed; without a name, both are random."""
    if name:
        scene = load_scene(DATA / "images" / name)
    else:
        scene, change = edits.one_edit(5_000_000 + random.randrange(10**6), random.choice(edits.EDIT_KINDS))
    take_picture(studio, scene.render(), name or "a new drawing", scene.caption())
    studio.text = scene.edit(**change).caption()


def take_picture(studio: Studio, picture: Image.Image, name: str, caption: str = "") -> None:
    """Begin with a new picture, cropped to its central square. The previous edit stays in its folder."""
    forget(studio)
    studio.picture, studio.name, studio.caption, studio.said = picture, name, caption, ""
    move_crop(studio, CENTRE)


def take_file(studio: Studio, name: str, content: bytes) -> None:
    """Begin with an uploaded file, and clear a drawing's text. Raises ValueError if it is not a usable picture."""
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "uploaded").write_bytes(content)
        try:
            picture = pictures.open_image(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from None
    studio.text = "" if studio.caption or studio.text == studio.edit_text else studio.text
    take_picture(studio, picture, name)


def move_crop(studio: Studio, crop: tuple[float, float, float]) -> None:
    """Choose another square of the picture, and check whether the embedded model can draw it."""
    studio.crop, ask = crop, studio.tiny and not studio.caption
    studio.foreign = ask and pictures.rebuilt_psnr(studio.pipe, as_input(studio, cropped(studio))) < pictures.FOREIGN


def cropped(studio: Studio) -> Image.Image:
    """Return the square to edit, which has at least the smallest valid size. Raises ValueError without a picture."""
    if studio.picture is None:
        raise ValueError("choose a picture first")
    (width, height), (across, down, size) = studio.picture.size, studio.crop
    side = min(width, height, max(pictures.SMALLEST_SIDE, round(size * min(width, height))))
    left, top = round(across * (width - side)), round(down * (height - side))
    return studio.picture.crop((left, top, left + side, top + side))


def as_input(studio: Studio, picture: Image.Image) -> Tensor:
    """Return a square picture as a tensor for the model, without the warnings, which are in `notes`."""
    unet, side = studio.pipe.unet, pictures.picture_size(studio.pipe)
    return pictures.to_tensor(pictures.square(picture, side)).to(unet.device, unet.dtype)


def notes(studio: Studio) -> list[str]:
    """Return what the reader should know about picture and text before the run."""
    found, text, side, tokenizer = [], studio.text, pictures.picture_size(studio.pipe), studio.pipe.tokenizer
    if studio.foreign:
        found.append("The embedded model can't hold this picture: it knows drawings. Photos need Stable Diffusion.")
    if studio.picture is not None and (few := cropped(studio).width) < side:
        found.append(f"The square is {few} pixels wide and becomes {side}, so it will look soft.")
    try:
        check_text(text)
    except ValueError as error:
        return found + [str(error)] * bool(text.strip())
    if text.strip() == studio.caption:
        found.append("The text describes the picture as it is: change a word.")
    if studio.tiny and (words := unknown_words(text)):
        found.append(f"The embedded model has never seen {', '.join(words)}: to it, this is noise.")
    if len(ids := token_ids(studio.pipe, text)) > (room := tokenizer.model_max_length):
        found.append(f"Too long for the model, which will not read: {tokenizer.decode(ids[room - 1 : -1])}")
    return found


# -- the work and its progress


def run_all(studio: Studio, *phases: str) -> None:
    """Run some phases of the edit in the studio's folder, by default all. Raises KeyboardInterrupt when `stopping` is
    set. After this or any other error, the edit can be continued."""
    every = tuple(phase for phase in PHASES if studio.tiny or phase != "suggestion")
    studio.job, studio.done, studio.ahead = phases or every, {}, len(missing(studio))
    studio.began = time.monotonic(), share_done(studio)
    acts = {"unet": train_stages, "suggestion": add_suggestion, "gallery": draw_missing}
    try:
        with locked(studio.folder):
            for phase in studio.job:
                acts.get(phase, enter)(studio, phase)
    finally:
        studio.phase = "finished" if studio.edit else "stopped"
        studio.stopping.clear()


def enter(studio: Studio, phase: str, steps: float = 1) -> Callable[..., None]:
    """Enter a phase. Returns the function to call at each of its steps. Both raise KeyboardInterrupt after a stop."""

    def step_done(_step: object = None, weight: int = 1) -> None:
        if studio.stopping.is_set():
            raise KeyboardInterrupt
        studio.done[phase] = min(1.0, studio.done.get(phase, 0.0) + weight / steps)

    studio.phase = phase
    step_done(weight=0)
    return step_done


def share_done(studio: Studio) -> float:
    """Return the share of the whole job that is done, weighted by the work of each phase."""
    settings, job, picture = studio.settings, studio.job, studio.sampling["steps"] * PICTURE_STEP
    work = {"embedding": settings["embedding_steps"], "unet": settings["unet_steps"] * UNET_STEP[settings["method"]]}
    work |= {"suggestion": TRIED * (picture + READING / 2), "gallery": studio.ahead * picture}
    done = studio.done | dict.fromkeys(job[: job.index(studio.phase)] if studio.phase in job else (), 1.0)
    done |= {stage: len(history.loss) / max(1, history.steps) for stage, history in dict(studio.histories).items()}
    return sum(work[name] * done.get(name, 0.0) for name in job) / max(1e-9, sum(work[name] for name in job))


def progress_words(studio: Studio) -> str:
    """Say what is being done, and how much time is left at this job's pace so far."""
    if studio.stopping.is_set():
        return "stopping after this step …"
    if studio.phase not in PHASES:
        return "getting ready …"
    words, history = PHASES[studio.phase], studio.histories.get(studio.phase)
    words += f": step {len(history.loss)} of {history.steps}" if history else ""
    (clock, share), now = studio.began, share_done(studio)
    left = (time.monotonic() - clock) / (now - share) * (1 - now) if now > share + 0.01 else None
    return words + (" …" if left is None else f" · about {spoken(left)} left")


def spoken(seconds: float) -> str:
    """Write a time as people say it, 40 s, 3 min, 1 h 20 min, rounded up, because early is better than late."""
    if seconds < 55:
        return f"{max(5, 5 * -(-seconds // 5)):.0f} s"
    hours, minutes = divmod(int(-(-seconds // 60)), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def best_way(pipe: StableDiffusionPipeline, method: str | None = None) -> Way:
    """Return the way to train. On a GPU it is the first one in the memory plan that fits, for one method or for all; by
    default, a CPU trains all weights. Raises ValueError if none fits."""
    if pipe.device.type != "cuda":
        return Way(method or "full", None)
    found = plan(pipe)
    if not (ways := found.fitting(method)):
        raise ValueError(found.advice)
    return ways[0]


def prepare(studio: Studio) -> None:
    """Make a new folder for the chosen edit, with everything that a later process needs to continue it. For an invalid
    picture or text, raises ValueError and makes no folder."""
    image, text = as_input(studio, cropped(studio)), studio.text
    check_text(text)
    settings = settings_of(studio.pipe, best_way(studio.pipe).method, None, None, 0)
    folder = folders.new_folder(studio.place, text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the page has shown `notes`
        begun(studio.pipe, image, identity_of_edit(studio.pipe, image, text, settings), folder)
    forget(studio)
    studio.folder, studio.settings, studio.edit_text, studio.phase = folder, settings, text, "stopped"
    studio.input = pictures.to_picture(image)


def train_stages(studio: Studio, _phase: str) -> None:
    if studio.edit:
        return
    studio.phase, studio.next_sketch = "embedding", 0.0
    image, e_tgt = as_input(studio, studio.input), folders.read_ledger(studio.folder)[0]

    def watch(stage: str, history: History) -> bool:
        studio.phase = "embedding" if "embedding" in stage else "unet"
        studio.histories[studio.phase], known = history, studio.phase in studio.histories
        if not known and len(history.loss) > 1:  # the steps of an earlier run took no time in this one
            studio.began = time.monotonic(), share_done(studio)
        return studio.stopping.is_set()

    strategy = best_way(studio.pipe, studio.settings["method"]).strategy
    run = Run(strategy=strategy, watch=watch, preview=lambda unet, e: sketch(studio, unet, e, e_tgt))
    studio.edit = run_edit(studio.pipe, image, studio.edit_text, folder=studio.folder, run=run, **studio.settings)
    studio.histories = {"embedding": studio.edit.embedding_history, "unet": studio.edit.unet_history}


def sketch(studio: Studio, unet: nn.Module, embedding: Tensor, e_tgt: Tensor) -> None:
    """Draw with the UNet in training, unless the last sketch is too recent. If the other networks are offloaded to the
    CPU, the VAE is moved to the GPU for this, and back."""
    if (began := time.monotonic()) < studio.next_sketch:
        return
    pipe, home, history = studio.pipe, studio.pipe.vae.device, studio.histories.get(studio.phase, History())
    e = interpolate(e_tgt.to(embedding), embedding, [0.0, PREVIEW_ETA])
    try:
        check = enter(studio, studio.phase, float("inf"))
        nn.Module.to(pipe.vae, unet.device)
        drawn = generate(with_unet(pipe, unet), e, steps=PREVIEW_STEPS, scheduler="dpm++", callback=check)
    except KeyboardInterrupt:
        return  # the training ends after its next step, and keeps it
    except torch.OutOfMemoryError:
        studio.next_sketch = float("inf")  # no more sketches, because the training needs all the memory
        return
    finally:
        nn.Module.to(pipe.vae, home)
    stage = 1 if studio.phase == "embedding" else 2
    studio.sketches.append((f"stage {stage}, step {len(history.loss)}", drawn))
    if len(studio.sketches) > MOST_SKETCHES:
        del studio.sketches[1:-1:2]
    studio.next_sketch = time.monotonic() + (time.monotonic() - began) / PREVIEW_SHARE


# -- the gallery


def missing(studio: Studio) -> list[Key]:
    """Return the keys of the pictures that are not drawn yet, for all seeds, ηs and scales."""
    keys = [(eta, scale, seed) for scale in studio.scales for seed in studio.seeds for eta in studio.etas]
    return [key for key in keys if key not in studio.pictures]


def draw_missing(studio: Studio, phase: str) -> None:
    """Draw the missing pictures, row by row, and save each at once. The best of the first row is chosen."""
    rows, studio.ahead = list(dict.fromkeys(key[1:] for key in missing(studio))), len(missing(studio))
    done = enter(studio, phase, max(1, len(rows)) * studio.sampling["steps"])  # as if each batch were a row
    for scale, seed in rows:
        etas = [key[0] for key in missing(studio) if key[1:] == (scale, seed)]
        [row] = studio.edit.pictures(etas, [seed], scale=scale, callback=done, **studio.sampling)
        for eta, picture in zip(etas, row, strict=True):
            pictures.save_picture(studio.folder / picture_name(eta, seed, scale), picture)
            studio.pictures[eta, scale, seed] = picture
        if studio.chosen is None:
            choose(studio, best_key(studio))


def add_suggestion(studio: Studio, phase: str) -> None:
    """Let the edit suggest η and scale, and add both to the gallery."""
    done = enter(studio, phase, len(TRIES.scales) * studio.sampling["steps"] + TRIED * READING)
    (watched := copy.copy(studio.edit)).pictures = partial(studio.edit.pictures, callback=done)
    measure = plugin_of(studio.pipe, "measure", suggestion.MEASURE)(watched)

    def one_by_one(drawn: list[Image.Image]) -> list[float]:
        marks = []
        for picture in drawn:
            marks += measure([picture])
            done(weight=READING)
        return marks

    studio.suggested = found = suggestion.suggest(watched, one_by_one)
    if found.scores[found.eta, found.scale] > 0:
        studio.etas = sorted({*studio.etas, found.eta})
        studio.scales = list(dict.fromkeys([found.scale, *(studio.scales if studio.pictures else [])]))


def best_key(studio: Studio) -> Key | None:
    """Return the key of the picture to show first, which is the suggested one, if any."""
    eta, scale = (studio.suggested.eta, studio.suggested.scale) if studio.suggested else (PREVIEW_ETA, 1.0)
    return min(studio.pictures, key=lambda key: (abs(key[0] - eta), abs(key[1] - scale), key[2]), default=None)


def widen(studio: Studio, eta: float | None = None, scale: float | None = None, seeds: int = 0) -> None:
    """Add an η, a tuning strength λ, or the next seeds to the gallery. Raises ValueError for invalid ones."""
    if scale is not None:
        check_scale(scale)
        studio.scales = list(dict.fromkeys([*studio.scales, scale]))
    studio.etas = sorted({*studio.etas, *(etas_of([eta]) if eta is not None else [])})
    studio.seeds = [*studio.seeds, *range(studio.seeds[-1] + 1, studio.seeds[-1] + 1 + seeds)]


def choose(studio: Studio, key: Key) -> None:
    """Choose a picture, and record the choice in edit.json."""
    if key not in studio.pictures:
        raise ValueError(f"the picture at η = {key[0]:g}, scale {key[1]:g}, seed {key[2]} is missing: draw it first")
    studio.chosen = key
    with WRITING:
        chosen = dict(zip(("eta", "scale", "seed"), key, strict=True))
        folders.write_facts(studio.folder, read_facts(studio.folder) | {"chosen": chosen})


def reopen(studio: Studio, folder: Path) -> None:
    """Reopen an edit from its folder, a finished one with its gallery, an unfinished one ready to continue. Raises
    ValueError or FileNotFoundError, each in one sentence, and then leaves the studio unchanged."""
    finished = (folder / "edit.json").is_file()
    facts = read_facts(folder) if finished else folders.read_identity(folder)
    edit = ImagicEdit.load(folder, studio.pipe) if finished else None
    take_picture(studio, pictures.open_image(folder / INPUT_FILE), "the input")
    studio.text = studio.edit_text = facts["text"]
    studio.settings, studio.input = facts["settings"], studio.picture
    studio.folder, studio.edit, studio.phase = folder, edit, "finished" if finished else "stopped"
    if not finished:
        return
    studio.histories = {"embedding": edit.embedding_history, "unet": edit.unet_history}
    for name in sorted(folders.files_of(studio.folder)):
        with suppress(ValueError, OSError):
            if key := key_of(name):
                studio.pictures[key] = pictures.open_image(studio.folder / name)
    if studio.pictures:
        etas, scales, seeds = (sorted({key[at] for key in studio.pictures}) for at in range(3))
        studio.etas, studio.scales, studio.seeds = etas, scales[::-1], seeds
    chosen = key_of(chosen_name(facts))
    studio.chosen = chosen if chosen in studio.pictures else best_key(studio)
