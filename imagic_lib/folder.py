"""The folder of an edit: whose it is, which files in it may be replaced, and what a stranger's is refused for.

A folder is the user's. It is taken for an edit if it is empty, and it stays that edit's: `checkpoint-edit.safetensors`,
the ledger, says which one while it is made, edit.json afterwards. Both list the files that were written for it, and
no other file is ever replaced or deleted.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from imagic_lib.training.checkpoints import load_facts, load_tensors, remove_tensors, save_tensors, write_atomically

INPUT_FILE, EMBEDDINGS_FILE = "input.png", "embeddings.safetensors"
DIFFERENCE_FILE = "unet-difference.safetensors"  # tuned minus loaded weights
LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' own name: pipe.load_lora_weights(folder) finds it
KOHYA_FILE = "lora-kohya.safetensors"  # the same under the names that other programs look for
LEDGER = "checkpoint-edit.safetensors"
CHECKPOINTS = {stage: f"checkpoint-{stage}.safetensors" for stage in ("embedding", "full", "lora")}
WRITTEN = re.compile(  # what a list of files may name, whoever wrote the list
    rf"{INPUT_FILE}|{EMBEDDINGS_FILE}|{DIFFERENCE_FILE}|{LORA_FILE}|{KOHYA_FILE}|edit\.png|losses\.png"
    r"|eta-[-+.e\d]+(-scale-[-+.e\d]+)?-seed-\d+\.png"
)
PICTURE = re.compile(r"eta-(?P<eta>-?[\d.]+(e-?\d+)?)(-scale-(?P<scale>[\d.]+(e-?\d+)?))?-seed-(?P<seed>\d+)\.png")
SYSTEM = {"Thumbs.db", "desktop.ini"}  # what a file manager leaves in a folder, beside names with a dot
LONGEST_NAME = 48  # letters of the text in a folder's name
LARGEST_JSON = 32 * 2**20  # bytes; the history of 1500 steps takes 0.1 MB


# -- whose folder it is


def state_of(folder: str | Path, identity: dict) -> str:
    """ "new", "begun" or "finished": how far this very edit has come here. Raises ValueError, and touches nothing, if
    the folder holds another edit or files that no edit wrote.

    identity: text, settings, input (`edit.identity_of`) and base model. It has no trace of the machine.
    """
    folder = Path(folder)
    if (folder / "edit.json").is_file():
        found, state = read_facts(folder), "finished"
    elif (folder / LEDGER).is_file():
        found, state = read_ledger(folder)[1], "begun"
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder: choose another name")
    elif strangers := sorted(p.name for p in folder.glob("*") if not (p.name.startswith(".") or p.name in SYSTEM)):
        raise ValueError(
            f"the folder {folder} holds files of yours, such as {strangers[0]!r}: choose a new or empty one"
        )
    else:
        return "new"
    if other := difference(found, identity):
        stage = "a finished" if state == "finished" else "an unfinished"
        raise ValueError(
            f"the folder {folder} holds {stage} edit {other}: choose another folder, or delete that one if you don't "
            "want it any more"
        )
    return state


def difference(found: dict, wanted: dict) -> str | None:
    """In words, how one edit is another than what was wanted; None if it is the same."""
    if found["text"] != wanted["text"]:
        return f"of another text, {found['text'][:60]!r}"
    if found["input"] != wanted["input"]:
        return "of another picture"
    if found["base_model"]["fingerprint"] != wanted["base_model"]["fingerprint"]:
        return f"with another model, {found['base_model']['name'][:60]!r}"
    for name, value in wanted["settings"].items():
        if found["settings"].get(name) != value:
            return f"with {name} {repr(found['settings'].get(name))[:60]} in place of {value!r}"
    return None


def files_of(folder: Path) -> set[str]:
    """The names in a folder that were written for its edit. Only names of our own kind count, whatever is listed."""
    if (folder / "edit.json").is_file():
        listed = read_facts(folder).get("files")
    else:
        listed = read_ledger(folder)[1].get("files") if (folder / LEDGER).is_file() else []
    return {name for name in listed or [] if WRITTEN.fullmatch(name)}


def picture_name(eta: float, seed: int, scale: float = 1.0) -> str:
    """The file of a picture: eta-0.5-seed-0.png; different for different numbers."""
    much = "" if scale == 1 else f"-scale-{short(scale)}"
    return f"eta-{short(eta)}{much}-seed-{seed}.png"


def short(value: float) -> str:
    """An η or a scale in a file's name: 0.5, 1, -0.25."""
    return str(float(value)).removesuffix(".0")


def number_of(name: str) -> tuple[float, float, int] | None:
    """The η, scale and seed that `picture_name` wrote into a file's name; None for any other file."""
    found = PICTURE.fullmatch(name)
    return (float(found["eta"]), float(found["scale"] or 1), int(found["seed"])) if found else None


def claim(folder: str | Path, names: Iterable[str]) -> None:
    """List these files as the edit's, before they are written. Raises ValueError if one of them is there already
    and is not the edit's: then nothing was written."""
    folder, own = Path(folder), files_of(Path(folder))
    for name in names:
        path = folder / name
        if name not in own and (path.exists() or path.is_symlink()):
            raise ValueError(f"{path} is there already and is not this edit's: move it away, then try again")
    files = sorted(own | set(names))
    if (folder / "edit.json").is_file():
        write_facts(folder, read_facts(folder) | {"files": files})
    else:
        e_tgt, facts = read_ledger(folder)
        save_tensors(folder / LEDGER, {"e_tgt": e_tgt}, facts | {"files": files})


def begin(folder: str | Path, identity: dict, e_tgt: Tensor) -> None:
    """Take a new folder for an edit. e_tgt is kept: another kind of processor would compute other last bits of it."""
    save_tensors(Path(folder) / LEDGER, {"e_tgt": e_tgt}, identity | {"files": []})


def finish(folder: Path, facts: dict) -> None:
    """Write edit.json, which marks a whole edit, and take away what was needed on the way."""
    write_facts(folder, facts | {"files": sorted(files_of(folder))})
    remove_checkpoints(folder)


def remove_checkpoints(folder: Path) -> None:
    """Take away what was needed on the way to an edit that is finished."""
    if (folder / LEDGER).is_file():
        for name in (*CHECKPOINTS.values(), LEDGER):
            remove_tensors(folder / name)


# -- many edits in one place


class Kept(NamedTuple):
    """An edit on its shelf. state: "begun" or "finished", as in `state_of`."""

    folder: Path
    state: str
    facts: dict  # its identity: text, settings, input, base_model; of a finished one the whole edit.json
    time: float  # of its last change, as `time.time`


def new_folder(place: str | Path, text: str) -> Path:
    """Make an empty folder that nobody has yet, named by time and text: place/2026-11-25-1403-a-cat-in-the-snow."""
    words = re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:LONGEST_NAME].strip("-")
    name = time.strftime("%Y-%m-%d-%H%M-") + (words or "edit")
    for count in itertools.count(1):
        folder = Path(place) / (name if count == 1 else f"{name}-{count}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.exists():  # it is `place` that is a file
                raise


def edits_in(place: str | Path) -> list[Kept]:
    """The edits in the folders of a place, the newest first; what is damaged, or no edit, is passed over."""
    found = []
    for folder in Path(place).iterdir() if Path(place).is_dir() else ():
        try:
            if (folder / "edit.json").is_file():
                found.append(Kept(folder, "finished", read_facts(folder), (folder / "edit.json").stat().st_mtime))
            elif (folder / LEDGER).is_file():
                found.append(Kept(folder, "begun", read_ledger(folder)[1], (folder / LEDGER).stat().st_mtime))
        except (ValueError, OSError):
            continue
    return sorted(found, key=lambda kept: kept.time, reverse=True)


def unfinished(place: str | Path, identity: dict) -> Path:
    """The folder in which this very edit was begun last. Raises ValueError if there is none."""
    for kept in edits_in(place):
        if kept.state == "begun" and difference(kept.facts, identity) is None:
            return kept.folder
    raise ValueError(f"{place} holds no unfinished edit of this picture and text, these settings and this model")


def steps_done(folder: str | Path, stage: str) -> int:
    """How many steps of a stage ("embedding", "full", "lora") an unfinished edit has in its checkpoint."""
    history = history_so_far(folder, stage)
    return len(history["loss"]) if history else 0


def history_so_far(folder: str | Path, stage: str) -> dict | None:
    """The history in the checkpoint of a stage; None if there is none. Raises ValueError if it is damaged."""
    path = Path(folder) / CHECKPOINTS[stage]
    if not path.is_file():
        return None
    with damage_explained(path):
        return known(load_facts(path)["history"], HISTORY)


# -- what is read, whoever wrote it


def read_ledger(folder: str | Path) -> tuple[Tensor, dict]:
    """e_tgt, and the identity of the edit with its files, of an unfinished edit. Raises ValueError if damaged."""
    path = Path(folder) / LEDGER
    with damage_explained(path):
        tensors, facts = load_tensors(path)
        check_finite(tensors)
        return tensors["e_tgt"], known(facts, IDENTITY)


def read_facts(folder: str | Path) -> dict:
    """The edit.json of a saved edit, whole and of the right types. Raises FileNotFoundError if there is none, and
    ValueError in one sentence if it is not what `finish` writes."""
    path = Path(folder) / "edit.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no finished edit in {folder}: it has no edit.json")
    with damage_explained(path):
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError("it is too large")
        facts = known(json.loads(path.read_text(encoding="utf-8")), FACTS)
        if facts["settings"]["method"] not in ("full", "lora"):
            raise ValueError(f"its method is {facts['settings']['method'][:20]!r}")
        for history in facts["history"].values():
            if not len(history["probe_step"]) == len(history["probe_loss"]) > 0:
                raise ValueError("its history has no probe")
    return facts


def write_facts(folder: Path, facts: dict) -> None:
    write_atomically(folder / "edit.json", lambda tmp: tmp.write_text(json.dumps(facts, indent=1), encoding="utf-8"))


@contextmanager
def damage_explained(what: str | Path):
    """Whatever goes wrong while it is read becomes one sentence."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, RecursionError, SafetensorError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
        raise ValueError(f"{what} is damaged ({reason}): make the edit again in another folder") from error


@dataclasses.dataclass(frozen=True)
class Optional:
    """A value that may be missing, or null, which is the same."""

    shape: object


def known(value: object, shape: object, name: str = "it") -> object:
    """The part of a value from JSON that has this shape: a type, [type], or a dict with these keys; others are left
    out. Raises ValueError where it has another one."""
    if isinstance(shape, dict):
        found = {}
        for key, inner in shape.items():
            optional = isinstance(inner, Optional)
            if key not in known(value, dict, name) and not optional:
                raise ValueError(f"{name} has no {key!r}")
            if not optional or value.get(key) is not None:
                found[key] = known(value[key], inner.shape if optional else inner, key)
        return found
    if isinstance(shape, list):
        return [known(one, shape[0], name) for one in known(value, list, name)]
    if shape is float:
        if type(value) not in (int, float) or not abs(value) < 1e300:
            raise ValueError(f"{name} holds what is no number")
    elif type(value) is not shape:
        raise ValueError(f"{name} is no {shape.__name__}")
    elif shape is str:
        value.encode("utf-8")  # half of a surrogate pair could not be printed
    elif shape is int and abs(value) >= 2**63:
        raise ValueError(f"{name} is too large")
    return value


HISTORY = {
    "loss": [float],
    "probe_step": [int],
    "probe_loss": [float],
    "learning_rate": [float],
    "seconds": float,
    "stopped": Optional(bool),
    "steps": Optional(int),
}
IDENTITY = {
    "text": str,
    "settings": {"method": str, "seed": int, "embedding_steps": Optional(int), "unet_steps": Optional(int)},
    "input": str,
    "base_model": {"name": str, "fingerprint": str},
    "files": Optional([str]),
}
VERSIONS = {name: Optional(str) for name in ("python", "torch", "diffusers", "transformers")}
CHOICE = {"eta": float, "scale": float, "seed": int}  # the picture that its maker liked best
FACTS = IDENTITY | {
    "versions": Optional(VERSIONS),
    "history": {"embedding": HISTORY, "unet": HISTORY},
    "chosen": Optional(CHOICE),
}


def check_tensors(tensors: dict[str, Tensor], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless these are the tensors that are wanted, name by name, each of its shape and finite."""
    for name, shape in wanted.items():
        if name not in tensors:
            raise ValueError(f"it has no {name}")
        if tuple(tensors[name].shape) != tuple(shape):
            raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(shape)}")
    check_finite(tensors)


def check_finite(tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise ValueError(f"{name} holds what is no number")
