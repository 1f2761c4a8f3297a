"""The studio without its widgets: a picture, its crop, a text, an edit, and a gallery of pictures.

`Studio` holds the choices and the results. The functions below it are the steps from a picture to a saved edit; each
can be called from Python alone. `app` adds the buttons.
"""

from __future__ import annotations

import html
import re
import shutil
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageEnhance
from torch import Tensor, nn

from imagic_lab.studio.forecast import Forecast, forecast
from imagic_lab.studio.shelf import Kept, edits_in
from imagic_lib import suggestion
from imagic_lib.arguments import check_text
from imagic_lib.diffusion import decode_latents
from imagic_lib.edit import ImagicEdit, out_of_memory_explained, run_edit, settings_of
from imagic_lib.files import load_tensors, save_tensors, write_atomically
from imagic_lib.folder import (
    INPUT_FILE,
    KOHYA_FILE,
    LORA_FILE,
    begin,
    claim,
    files_of,
    history_so_far,
    new_folder,
    picture_name,
    read_facts,
    read_ledger,
    write_facts,
)
from imagic_lib.models import DATA, encode_text, family, fingerprint, settings_for, unknown_words
from imagic_lib.pictures import SMALLEST_SIDE, load_image, open_image, picture_size, rmse, square, to_picture, to_tensor
from imagic_lib.planning.memory import Plan, plan
from imagic_lib.stage3_interpolation import interpolate
from imagic_lib.stage4_inference import (
    DEFAULTS,
    FAST,
    denoise,
    denoiser,
    embedding_of_negative,
    initial_noise,
    safety_checked,
    sampler,
)
from imagic_lib.storage import identity_of_edit
from imagic_lib.training.loop import History, Run
from imagic_lib.training.strategies import Strategy

DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts a Google Drive
GALLERY_ETAS = (0.0, 0.4, 0.6, 0.7, 0.8, 1.0)
GALLERY_SEEDS = (0, 1)
GALLERY_SCALES = (1.0, 0.75, 0.5)  # tuning strengths λ, offered one after the other
MOST_SEEDS = 16
FINEST = 0.02  # two η nearer than this show the same picture
PREVIEW_ETA = 0.8  # until an η is suggested for the edit; one of `suggestion.ETAS`
PREVIEW_STEPS = 8  # of the sampler, for a sketch
PREVIEW_SHARE = 0.15  # of the training's time, for sketches
MOST_SKETCHES = 6  # that stay on the page
SAMPLER_CHOICES = {"25 steps of DPM-Solver++": FAST, "the model's own sampler": {}}

NUMBER = r"-?[\d.]+(?:e-?\d+)?"
PICTURE_FILE = re.compile(rf"eta-({NUMBER})(?:-scale-({NUMBER}))?-seed-(\d+)\.png")

MADE = (  # the fields that belong to one edit; the next edit resets them
    *("folder", "settings", "phase", "histories", "sketches", "edit", "forecast"),
    *("suggested", "etas", "seeds", "scales", "pictures", "chosen"),
)
Key = tuple[float, float, int]  # η, scale and seed of a picture in the gallery
Tell = Callable[[], object]  # called after every change that can be shown


class Stopped(Exception):
    """The training was stopped by its user; it can go on."""


@dataclass(frozen=True)
class Crop:
    """A square in a picture. across, down: position, from 0 (left, top) to 1 (right, bottom). size: length of a side,
    as a share of the picture's shorter side."""

    across: float = 0.5
    down: float = 0.5
    size: float = 1.0


class Sketch(NamedTuple):
    """Pictures that the model drew during its training."""

    stage: str
    step: int
    pictures: list[Image.Image]  # at η = 0 and at `PREVIEW_ETA`


@dataclass
class Studio:
    """The current choices and results. pipe: as loaded. place: the folder that holds the edits' folders."""

    pipe: StableDiffusionPipeline
    place: Path
    embedding_steps: int | None = None
    unet_steps: int | None = None
    # the choices
    picture: Image.Image | None = None  # whole and upright
    name: str = ""
    crop: Crop = Crop()
    text: str = ""
    method: str = "full"
    sampling: dict = field(default_factory=dict)
    # the predictions
    plan: Plan | None = None
    forecast: Forecast | None = None
    # the results
    folder: Path | None = None
    settings: dict = field(default_factory=dict)  # of the edit in `folder`
    phase: str = "choosing"  # then "training", perhaps "stopped", "drawing", "finished"
    histories: dict[str, History] = field(default_factory=dict)
    sketches: list[Sketch] = field(default_factory=list)
    edit: ImagicEdit | None = None
    suggested: suggestion.Suggestion | None = None
    etas: list[float] = field(default_factory=lambda: list(GALLERY_ETAS))
    seeds: list[int] = field(default_factory=lambda: list(GALLERY_SEEDS))
    scales: list[float] = field(default_factory=lambda: [GALLERY_SCALES[0]])
    pictures: dict[Key, Image.Image] = field(default_factory=dict)
    chosen: Key | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    next_sketch: float = 0.0  # time on the monotonic clock


def new_studio(pipe: StableDiffusionPipeline, place: str | Path | None = None, **steps) -> Studio:
    """An empty studio. place: default `usual_place()`. steps: embedding_steps, unet_steps."""
    sampling = {} if family(pipe) == "tiny" else FAST | {"half": True}
    return Studio(pipe, Path(place) if place else usual_place(), **steps, sampling=sampling)


def usual_place() -> Path:
    """Where edits are kept: in a mounted Google Drive on Colab, otherwise in out/studio."""
    return DRIVE / "imagic" if "google.colab" in sys.modules and DRIVE.is_dir() else Path("out/studio")


# -- a picture and its crop


def drawing_names() -> list[str]:
    """The drawings that come with the embedded model, each with a known caption."""
    return sorted(path.name for path in (DATA / "images").glob("*.png"))


def choose_drawing(studio: Studio, name: str) -> None:
    """Take a drawing, and its caption as the text, in which a word or two remain to be changed."""
    from imagic_lab.toyworld import load_scene

    take_picture(studio, open_image(DATA / "images" / name), name)
    studio.text = load_scene(DATA / "images" / name).caption()


def take_picture(studio: Studio, picture: Image.Image, name: str) -> None:
    """Begin with a new picture, cropped to its central square."""
    studio.picture, studio.name, studio.crop, studio.forecast = picture, name, Crop(), None


def take_file(studio: Studio, name: str, content: bytes) -> None:
    """Begin with an uploaded file. Raises ValueError, in one sentence, if it is not a usable picture."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "uploaded"
        path.write_bytes(content)
        try:
            picture = open_image(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from None
    take_picture(studio, picture, name)


def box_of(crop: Crop, width: int, height: int) -> tuple[int, int, int, int]:
    """The square in pixels (left, top, right, bottom), at least as large as the smallest valid picture."""
    side = min(width, height, max(SMALLEST_SIDE, round(crop.size * min(width, height))))
    left, top = round(crop.across * (width - side)), round(crop.down * (height - side))
    return left, top, left + side, top + side


def framed(picture: Image.Image, crop: Crop, side: int) -> Image.Image:
    """The whole picture, its longer side `side` pixels long, with the parts outside the crop darkened."""
    factor = side / max(picture.size)
    small = picture.resize([max(1, round(factor * length)) for length in picture.size], Image.Resampling.LANCZOS)
    box = box_of(crop, *small.size)
    dark = ImageEnhance.Brightness(small).enhance(0.35)
    dark.paste(small.crop(box), box[:2])
    ImageDraw.Draw(dark).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline="white")
    return dark


def cropped(studio: Studio) -> Image.Image:
    """The square that will be edited. Raises ValueError if no picture is chosen."""
    if studio.picture is None:
        raise ValueError("choose a drawing or upload a photo first")
    return studio.picture.crop(box_of(studio.crop, *studio.picture.size))


# -- a text


class Reading(NamedTuple):
    """How the model reads a text: as tokens (some cut off), and with words that it never saw."""

    tokens: list[str]
    cut: list[str]
    unknown: list[str]


def reading_of(pipe: StableDiffusionPipeline, text: str) -> Reading:
    """Raises ValueError for a text that is empty or far too long."""
    check_text(text)
    ids = pipe.tokenizer(text, truncation=False).input_ids[1:-1]
    pieces = [piece.removesuffix("</w>") for piece in pipe.tokenizer.convert_ids_to_tokens(ids)]
    room = pipe.tokenizer.model_max_length - 2  # next to the start and end tokens
    return Reading(pieces[:room], pieces[room:], unknown_words(text) if family(pipe) == "tiny" else [])


@contextmanager
def notes_kept(notes: list[str]):
    """Inside, warnings of the library are added to `notes` rather than printed. Only for the main thread, because the
    filters of warnings hold for the whole process."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    notes += [str(w.message) for w in caught if w.category is UserWarning]


# -- before the run: memory and time


def strategy_of(studio: Studio) -> Strategy | None:
    """How to train on this GPU according to the memory plan; None on a CPU. Raises ValueError if the chosen method does
    not fit."""
    if studio.pipe.device.type != "cuda":
        return None
    studio.plan = studio.plan or plan(studio.pipe)
    if not studio.plan.fitting():
        raise ValueError(studio.plan.advice)
    if not (ways := studio.plan.fitting(studio.method)):
        raise ValueError("this GPU has too little memory for training all weights: choose LoRA")
    return ways[0].strategy


def foretell(studio: Studio) -> Forecast:
    """Time some real steps on this device, to predict the edit or the rest of a stopped one. Half a minute on a GPU."""
    folder = studio.folder if studio.phase == "stopped" else None
    image = as_input(studio, open_image(folder / INPUT_FILE) if folder else cropped(studio))
    strategy, settings = strategy_of(studio), settings_now(studio)
    with out_of_memory_explained(studio.method, Run(strategy=strategy), studio.pipe.unet.device, folder):
        studio.forecast = forecast(
            studio.pipe, image, settings, strategy=strategy, folder=folder, sampling=studio.sampling
        )
    return studio.forecast


def pictures_ahead(studio: Studio) -> int:
    """How many pictures are drawn after the training, including those for the suggestion."""
    return len(GALLERY_ETAS) * len(GALLERY_SEEDS) + (8 if suggests_by_itself(studio) else 0)


def suggests_by_itself(studio: Studio) -> bool:
    """Only for drawings, whose reader is included; for photos, CLIP would be downloaded unasked."""
    return family(studio.pipe) == "tiny"


def settings_now(studio: Studio) -> dict:
    """The settings of the edit in the studio's folder, or of the one that would begin now."""
    if studio.folder is not None:
        return studio.settings
    return settings_of(studio.pipe, studio.method, studio.embedding_steps, studio.unet_steps, 0)


def as_input(studio: Studio, picture: Image.Image) -> Tensor:
    """A square picture as a tensor for the model, without the warnings, which `prepare` returns."""
    pipe = studio.pipe
    return to_tensor(square(picture, picture_size(pipe))).to(pipe.unet.device, pipe.unet.dtype)


# -- the run


def prepare(studio: Studio) -> list[str]:
    """Make a new folder for the chosen edit, with everything that a later process needs to go on. Returns notes on
    picture and text. Raises ValueError for an invalid picture or text, and then makes no folder."""
    notes: list[str] = []
    with notes_kept(notes):
        image = load_image(cropped(studio), studio.pipe)
        settings = settings_of(studio.pipe, studio.method, studio.embedding_steps, studio.unet_steps, 0)
        e_tgt = encode_text(studio.pipe, studio.text)
        identity = identity_of_edit(studio.pipe, image, studio.text, settings)
    folder = new_folder(studio.place, studio.text)
    begin(folder, identity, e_tgt)
    claim(folder, [INPUT_FILE])
    write_atomically(folder / INPUT_FILE, lambda tmp: to_picture(image).save(tmp, format="PNG"))
    forget(studio)
    studio.folder, studio.settings, studio.phase = folder, settings, "stopped"  # “Go on” starts it
    return notes


def forget(studio: Studio) -> None:
    """Leave the current edit; its folder keeps it."""
    fresh = Studio(studio.pipe, studio.place)
    for name in MADE:
        setattr(studio, name, getattr(fresh, name))


def train(studio: Studio, tell: Tell) -> None:
    """Stages 1 and 2 of the edit in the studio's folder, from where they stopped. Raises Stopped if `studio.stopping`
    is set meanwhile; after this or any other error they can go on."""
    studio.stopping.clear()
    strategy = strategy_of(studio)
    image, settings = as_input(studio, open_image(studio.folder / INPUT_FILE)), studio.settings
    # encoded now, because the text encoder may be offloaded during the training
    ends = read_ledger(studio.folder)[0], embedding_of_negative(studio.pipe)
    studio.phase, studio.next_sketch = "training", 0.0
    tell()

    def watch(stage: str, history: History) -> bool:
        studio.histories["embedding" if "embedding" in stage else "unet"] = history
        tell()
        return studio.stopping.is_set()

    def preview(unet: nn.Module, embedding: Tensor) -> None:
        if sketch(studio, unet, embedding, *ends):
            tell()

    try:
        studio.edit = run_edit(
            studio.pipe,
            image,
            studio.text,
            embedding_steps=settings["embedding_steps"],
            unet_steps=settings["unet_steps"],
            method=settings["method"],
            seed=settings["seed"],
            folder=studio.folder,
            run=Run(strategy=strategy, watch=watch, preview=preview),
        )
    except KeyboardInterrupt:
        raise Stopped from None
    finally:
        studio.phase = "stopped"
    studio.histories = {"embedding": studio.edit.embedding_history, "unet": studio.edit.unet_history}
    studio.phase = "drawing"
    tell()


def stop(studio: Studio) -> None:
    """Ask the training, or the drawing of the gallery, to end after the current step or row."""
    studio.stopping.set()


def sketch(studio: Studio, unet: nn.Module, embedding: Tensor, e_tgt: Tensor, empty: Tensor) -> bool:
    """Draw with the UNet in training, unless the last sketch is too recent. True if a sketch was drawn."""
    began = time.monotonic()
    if began < studio.next_sketch:
        return False
    stage = "unet" if "unet" in studio.histories else "embedding"
    history = studio.histories.get(stage, History())
    e = interpolate(e_tgt.to(embedding), embedding, [0.0, PREVIEW_ETA])
    try:
        pictures = quick_pictures(studio.pipe, unet, e, empty)
    except torch.OutOfMemoryError:
        studio.next_sketch = float("inf")  # the training needs all the memory: no more sketches
        return False
    studio.sketches.append(Sketch(stage, len(history.loss), pictures))
    thin(studio.sketches)
    studio.next_sketch = time.monotonic() + (time.monotonic() - began) / PREVIEW_SHARE
    return True


def thin(sketches: list[Sketch]) -> None:
    """Keep `MOST_SKETCHES`: drop those whose neighbours are nearest in time, but never the first or the last."""
    while len(sketches) > MOST_SKETCHES:
        order = [s.step + (10**6 if s.stage == "unet" else 0) for s in sketches]
        gaps = [after - before for before, after in zip(order[:-2], order[2:], strict=True)]
        del sketches[1 + gaps.index(min(gaps))]


@torch.no_grad()
def quick_pictures(
    pipe: StableDiffusionPipeline, unet: nn.Module, embeddings: Tensor, empty: Tensor, steps: int = PREVIEW_STEPS
) -> list[Image.Image]:
    """One rough picture for each embedding, from the noise of seed 0. If the pipeline's other networks are offloaded to
    the CPU, the VAE moves to the GPU for these pictures and back."""
    guidance = settings_for(pipe, DEFAULTS, guidance_scale=None)["guidance_scale"]
    e, scheduler = embeddings.to(unet.device, unet.dtype), sampler(pipe, "dpm++")
    scheduler.set_timesteps(steps, device=unet.device)
    z = initial_noise(pipe, 0).to(unet.device, unet.dtype).repeat(len(e), 1, 1, 1)
    z = denoise(denoiser(unet, e, empty.to(e), guidance), z, scheduler)
    home = pipe.vae.device
    try:
        nn.Module.to(pipe.vae, unet.device)
        return safety_checked(pipe, [to_picture(decode_latents(pipe, one[None])) for one in z])
    finally:
        nn.Module.to(pipe.vae, home)


def seconds_left(studio: Studio) -> float | None:
    """Seconds left of the training, from its pace so far or from the forecast; None without either. The pace counts
    from the fourth step of a stage, because the first one is slow."""
    left = 0.0
    for stage, wanted in (("embedding", "embedding_steps"), ("unet", "unet_steps")):
        steps, history = settings_now(studio)[wanted], studio.histories.get(stage)
        if history and len(history.loss) > 3:
            left += history.seconds / len(history.loss) * (steps - len(history.loss))
        elif studio.forecast:
            left += studio.forecast.embedding if stage == "embedding" else studio.forecast.fine_tuning
        else:
            return None
    return left


# -- the gallery


def missing(studio: Studio) -> list[Key]:
    """The keys of the pictures that are not drawn yet, among all seeds, η and scales."""
    keys = [(eta, scale, seed) for scale in studio.scales for seed in studio.seeds for eta in studio.etas]
    return [key for key in keys if key not in studio.pictures]


def draw_gallery(studio: Studio, tell: Tell) -> None:
    """Draw the missing pictures."""
    studio.stopping.clear()
    draw_until_stopped(studio, tell)


def draw_until_stopped(studio: Studio, tell: Tell) -> None:
    """Draw the missing pictures row by row until `studio.stopping` is set, and save each picture at once. The first
    time, the picture at the suggestion becomes the choice."""
    studio.phase = "drawing"
    tell()
    try:
        for scale in studio.scales:
            for seed in studio.seeds:
                etas = [key[0] for key in missing(studio) if key[1:] == (scale, seed)]
                if etas and not studio.stopping.is_set():
                    [row] = studio.edit.pictures(etas, [seed], scale=scale, **studio.sampling)
                    for eta, picture in zip(etas, row, strict=True):
                        keep_picture(studio, (eta, scale, seed), picture)
                    tell()
    finally:
        studio.phase = "finished"
    if studio.chosen is None and (key := best_key(studio)):
        choose(studio, key)


def keep_picture(studio: Studio, key: Key, picture: Image.Image) -> None:
    eta, scale, seed = key
    name = picture_name(eta, seed, scale)
    claim(studio.folder, [name])
    write_atomically(studio.folder / name, lambda tmp: picture.save(tmp, format="PNG"))
    studio.pictures[key] = picture


def add_suggestion(studio: Studio) -> None:
    """Let the edit suggest η and scale, and add both to the gallery. Other models than the embedded one download CLIP
    for it, 1.7 GB."""
    studio.suggested = found = studio.edit.suggest()
    if found.scores[found.eta, found.scale] > 0:
        others = studio.scales if studio.pictures else []
        studio.etas = sorted({*studio.etas, found.eta})
        studio.scales = list(dict.fromkeys([found.scale, *others]))


def best_key(studio: Studio) -> Key | None:
    """Which picture to show first (at the suggestion, if there is one)."""
    eta, scale = (studio.suggested.eta, studio.suggested.scale) if studio.suggested else (PREVIEW_ETA, 1.0)
    keys = sorted(studio.pictures, key=lambda key: (abs(key[0] - eta), abs(key[1] - scale), key[2]))
    return keys[0] if keys else None


def turn_of(studio: Studio) -> tuple[float, float]:
    """The two neighbouring η between which the pictures change most, averaged over all rows.

    Raises ValueError if fewer than two pictures are drawn."""
    steps: dict[tuple[float, float], list[float]] = {}
    etas = sorted(studio.etas)
    for low, high in zip(etas[:-1], etas[1:], strict=True):
        for scale in studio.scales:
            for seed in studio.seeds:
                pair = [studio.pictures.get((eta, scale, seed)) for eta in (low, high)]
                if None not in pair:
                    steps.setdefault((low, high), []).append(rmse(*pair))
    if not steps:
        raise ValueError("fewer than two pictures to compare: draw the gallery first")
    return max(steps, key=lambda pair: fmean(steps[pair]))


def finer(studio: Studio) -> None:
    """Add two η between those where the pictures change most. Raises ValueError if these are too close already."""
    low, high = turn_of(studio)
    new = {round(low + share * (high - low), 2) for share in (1 / 3, 2 / 3)} - set(studio.etas)
    if high - low < 2 * FINEST or not new:
        raise ValueError(f"η = {low:g} and {high:g} are too close: finer steps would show the same pictures")
    studio.etas = sorted({*studio.etas, *new})


def more_seeds(studio: Studio, count: int = 2) -> None:
    """Add the next seeds. Raises ValueError if there would be more than `MOST_SEEDS`."""
    if len(studio.seeds) + count > MOST_SEEDS:
        raise ValueError(f"the gallery has {len(studio.seeds)} seeds: choose among these")
    first = max(studio.seeds, default=-1) + 1
    studio.seeds = [*studio.seeds, *range(first, first + count)]


def less_fine_tuning(studio: Studio) -> None:
    """Add the next smaller tuning strength λ. Raises ValueError after the last one."""
    rest = [scale for scale in GALLERY_SCALES if scale not in studio.scales]
    if not rest:
        raise ValueError("the gallery shows all three tuning strengths already")
    studio.scales = [*studio.scales, rest[0]]


def choose(studio: Studio, key: Key) -> None:
    """Choose a picture, and record the choice in edit.json."""
    if key not in studio.pictures:
        raise ValueError(f"the picture at η = {key[0]:g}, scale {key[1]:g}, seed {key[2]} is missing: draw it first")
    studio.chosen = key
    facts = read_facts(studio.folder)
    write_facts(studio.folder, facts | {"chosen": dict(zip(("eta", "scale", "seed"), key, strict=True))})


# -- earlier edits


def shelf(studio: Studio) -> list[Kept]:
    """All edits in the studio's place, the newest first."""
    return edits_in(studio.place)


def cover(kept: Kept) -> Image.Image | None:
    """The chosen picture of an edit, or else its input; None if neither can be read."""
    names = [picture_name(eta, seed, scale) for eta, scale, seed in chosen_keys(kept.facts)]
    for name in [*names, INPUT_FILE]:
        try:
            return open_image(kept.folder / name)
        except (ValueError, OSError):
            continue
    return None


def reopen(studio: Studio, folder: str | Path) -> None:
    """Bring back an edit from its folder: a finished one with its gallery, an unfinished one ready to go on. Raises
    ValueError or FileNotFoundError in one sentence, and then leaves the studio unchanged."""
    folder = Path(folder)
    finished = (folder / "edit.json").is_file()
    facts = read_facts(folder) if finished else read_ledger(folder)[1]
    picture = open_image(folder / INPUT_FILE)
    edit = ImagicEdit.load(folder, studio.pipe) if finished else None
    if not finished and fingerprint(studio.pipe) != facts["base_model"]["fingerprint"]:
        name = facts["base_model"]["name"][:60]
        raise ValueError(f"the edit in {folder} was begun with another model ({name}): load that model")
    take_picture(studio, picture, folder.name)
    forget(studio)
    studio.text, studio.method, studio.folder, studio.edit = facts["text"], facts["settings"]["method"], folder, edit
    studio.settings = facts["settings"]
    if finished:
        studio.phase = "finished"
        studio.histories = {"embedding": edit.embedding_history, "unet": edit.unet_history}
        read_gallery(studio, facts)
    else:
        studio.phase = "stopped"
        for stage, name in (("embedding", "embedding"), ("unet", studio.method)):
            if found := history_so_far(folder, name):
                studio.histories[stage] = History(**found)


def chosen_keys(facts: dict) -> list[Key]:
    """The picture that the edit's maker chose, or none: anyone can have written the entry."""
    try:
        chosen = facts["chosen"]
        return [(float(chosen["eta"]), float(chosen["scale"]), int(chosen["seed"]))]
    except (KeyError, TypeError, ValueError, OverflowError):
        return []


def key_of(name: str) -> Key | None:
    """The key of a picture, from a file name by `picture_name`; None for any other file."""
    found = PICTURE_FILE.fullmatch(name)
    return (float(found[1]), float(found[2] or 1), int(found[3])) if found else None


def read_gallery(studio: Studio, facts: dict) -> None:
    """Read the pictures in the folder, and the choice."""
    for name in sorted(files_of(studio.folder)):
        if (key := key_of(name)) is None or not (studio.folder / name).is_file():
            continue
        try:
            studio.pictures[key] = open_image(studio.folder / name)
        except (ValueError, OSError):
            continue
    if studio.pictures:
        etas, scales, seeds = (sorted({key[at] for key in studio.pictures}) for at in range(3))
        studio.etas, studio.scales, studio.seeds = etas, scales[::-1], seeds
    studio.chosen = next((key for key in chosen_keys(facts) if key in studio.pictures), None)


# -- files to keep


def chosen_file(studio: Studio) -> Path:
    """The PNG of the chosen picture. Raises ValueError if none is chosen."""
    if studio.chosen is None:
        raise ValueError("choose a picture first: click one in the gallery")
    eta, scale, seed = studio.chosen
    return studio.folder / picture_name(eta, seed, scale)


def zipped(studio: Studio) -> Path:
    """Write the folder of the edit as a zip file next to it, under an unused name."""
    folder = folder_of_edit(studio)
    path = free_name(folder.with_name(folder.name + ".zip"))

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:  # weights and PNG don't compress
            for name in ["edit.json", *sorted(files_of(folder))]:
                if (folder / name).is_file():
                    file.write(folder / name, f"{folder.name}/{name}")

    need = sum((folder / name).stat().st_size for name in files_of(folder) if (folder / name).is_file())
    if need > (free := shutil.disk_usage(folder).free):
        raise ValueError(f"the zip takes {need / 1e9:.1f} GB, and {folder.parent} has room for {free / 1e9:.1f} GB")
    write_atomically(path, write)
    return path


def free_name(path: Path) -> Path:
    """The path, or path-2, path-3 …: the first that does not exist."""
    count, found = 1, path
    while found.exists():
        count += 1
        found = path.with_name(f"{path.stem}-{count}{path.suffix}")
    return found


def folder_of_edit(studio: Studio) -> Path:
    if studio.edit is None:
        raise ValueError("run an edit first, or open a finished one")
    return studio.folder


def lora_files(studio: Studio) -> list[Path]:
    """The LoRA of the edit in the format of diffusers and in that of kohya-ss, which ComfyUI and the web UIs read.
    Raises ValueError if the edit trained all weights."""
    folder = folder_of_edit(studio)
    if studio.edit.settings["method"] != "lora":
        raise ValueError("this edit trained all weights: run it with LoRA to get a LoRA file")
    if not (folder / KOHYA_FILE).is_file():
        layers, _ = load_tensors(folder / LORA_FILE)
        claim(folder, [KOHYA_FILE])
        save_tensors(folder / KOHYA_FILE, kohya(layers), {})
    return [folder / LORA_FILE, folder / KOHYA_FILE]


def kohya(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under kohya-ss' names: unet.a.b.lora_A.weight becomes lora_unet_a_b.lora_down.weight, B becomes up. α
    is the rank, as in `add_lora`."""
    found = {}
    for name, value in layers.items():
        layer, half = name.removesuffix(".weight").rsplit(".", 1)
        own = "lora_unet_" + layer.removeprefix("unet.").replace(".", "_")
        found[f"{own}.{ {'lora_A': 'lora_down', 'lora_B': 'lora_up'}[half] }.weight"] = value
        if half == "lora_A":
            found[f"{own}.alpha"] = torch.tensor(float(len(value)))
    return found


MODEL_CARD = """---
base_model: {model}
tags: [imagic, text-to-image]
---
# {text}

An edit of a picture by its text with Imagic (arXiv 2210.09276), made with `imagic-taught`. Every picture here but
`input.png` is **edited by a machine**. `edit.json` records the settings and the model.
"""


def push(studio: Studio, repository: str, api=None, *, private: bool = True) -> str:
    """Upload the edit's folder to the Hugging Face hub, and return its address. The login is the hub's own.

    repository: "your-name/any-name", created if it does not exist. api: a `huggingface_hub.HfApi`, or a stand-in for
    it. Raises ValueError, in one sentence, without a login or if the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    folder, api, facts = folder_of_edit(studio), api or HfApi(), read_facts(studio.folder)
    card = MODEL_CARD.format(model=facts["base_model"]["name"], text=html.escape(facts["text"]))
    files = ["edit.json", *sorted(files_of(folder))]
    try:
        api.whoami()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=files, commit_message="an Imagic edit")
        api.upload_file(repo_id=repository, path_or_fileobj=card.encode(), path_in_repo="README.md")
    except LocalTokenNotFoundError:
        raise ValueError("not logged in to the hub: run `hf auth login` in a terminal, then push again") from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"the hub refused: {str(error).strip().splitlines()[0]}") from error
    return f"https://huggingface.co/{repository}"


def run_all(studio: Studio, tell: Tell) -> None:
    """Training, the suggestion if it needs no download, and the gallery."""
    train(studio, tell)
    if suggests_by_itself(studio):
        add_suggestion(studio)
    draw_until_stopped(studio, tell)  # a Stop during the suggestion counts


def labels(keys: Iterable[Key] | Sequence[Key]) -> list[str]:
    """A caption for each picture."""
    return [f"η = {eta:g}, seed {seed}" + (f", λ = {scale:g}" if scale != 1 else "") for eta, scale, seed in keys]
