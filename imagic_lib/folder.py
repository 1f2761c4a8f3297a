"""The folder of an edit: whose it is, which files in it may be replaced, and why a stranger's is refused.

A folder is the user's. It is taken for an edit if it is empty, and stays that edit's: `checkpoint-edit.safetensors`,
the ledger, says which one while it is made, edit.json afterwards. Both list the files that were written for it, and no
other file is ever replaced or deleted.
"""

import itertools
import json
import re
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from imagic_lib.files import load_facts, load_tensors, remove_tensors, save_tensors, write_atomically

INPUT_FILE, EMBEDDINGS_FILE = "input.png", "embeddings.safetensors"
DIFFERENCE_FILE = "unet-difference.safetensors"  # tuned minus loaded weights
LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' own name: pipe.load_lora_weights(folder) finds it
KOHYA_FILE = "lora-kohya.safetensors"  # the same under the names that other programs look for
LEDGER = "checkpoint-edit.safetensors"
CHECKPOINTS = {stage: f"checkpoint-{stage}.safetensors" for stage in ("embedding", "full", "lora")}
WRITTEN = re.compile(  # what a list of files may name; anyone can have written the list
    rf"{INPUT_FILE}|{EMBEDDINGS_FILE}|{DIFFERENCE_FILE}|{LORA_FILE}|{KOHYA_FILE}|edit\.png|losses\.png"
    r"|eta-[-+.e\d]+(-scale-[-+.e\d]+)?-seed-\d+\.png"
)
SYSTEM = {"Thumbs.db", "desktop.ini"}  # what a file manager leaves in a folder, besides names with a dot
LONGEST_NAME = 48  # letters of the text in a folder's name
LARGEST_JSON = 32 * 2**20  # bytes; the history of 1500 steps takes 0.1 MB

Finite = Annotated[float, Field(gt=-1e300, lt=1e300)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Stored(BaseModel):
    """JSON of known types. Keys that this version does not know are kept; null is the same as a missing key."""

    model_config = ConfigDict(strict=True, extra="allow")


class StoredHistory(Stored):
    loss: list[Finite]
    probe_step: list[Whole]
    probe_loss: list[Finite]
    learning_rate: list[Finite]
    seconds: Finite
    stopped: bool | None = None
    steps: Whole | None = None


class StoredSettings(Stored):
    method: Literal["full", "lora"]
    seed: Whole
    embedding_steps: Whole | None = None
    unet_steps: Whole | None = None


class StoredModel(Stored):
    name: str
    fingerprint: str


class EditIdentity(Stored):
    text: str
    settings: StoredSettings
    input: str
    base_model: StoredModel
    files: list[str] | None = None


class EditFacts(EditIdentity):
    history: dict[Literal["embedding", "unet"], StoredHistory] = Field(min_length=2)
    versions: dict[str, str | None] | None = None


def parse(model: type[Stored], value: object) -> dict:
    """A value from JSON as a dict of the model's types. Raises ValueError, in one sentence, for any other."""
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # what it holds can be printed and written again
    try:
        return model.model_validate(value).model_dump(exclude_none=True, exclude_unset=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(key) for key in first["loc"][:4])
        raise ValueError(f"{place or 'it'}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def read_identity(folder: str | Path) -> dict:
    """The identity of an unfinished edit, with its files. Raises ValueError if it is damaged."""
    path = Path(folder) / LEDGER
    with damage_explained(path):
        return parse(EditIdentity, load_facts(path))


def read_ledger(folder: str | Path) -> tuple[Tensor, dict]:
    """e_tgt, and what `read_identity` returns."""
    path, facts = Path(folder) / LEDGER, read_identity(folder)
    with damage_explained(path):
        tensors, _ = load_tensors(path)
        check_tensors(tensors, {})
        return tensors["e_tgt"], facts


def read_facts(folder: str | Path) -> dict:
    """The edit.json of a saved edit, whole and of the right types. Raises FileNotFoundError if there is none, and
    ValueError in one sentence if it is not what `finish` writes."""
    path = Path(folder) / "edit.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no finished edit in {folder}: it has no edit.json")
    with damage_explained(path):
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError("it is too large")
        facts = parse(EditFacts, json.loads(path.read_text(encoding="utf-8")))
        for history in facts["history"].values():
            if not len(history["probe_step"]) == len(history["probe_loss"]) > 0:
                raise ValueError("its history has no probe")
    return facts


def write_facts(folder: Path, facts: dict) -> None:
    write_atomically(folder / "edit.json", lambda tmp: tmp.write_text(json.dumps(facts, indent=1), encoding="utf-8"))


@contextmanager
def damage_explained(what: str | Path):
    """Any error while a file is read becomes one sentence."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, RecursionError, SafetensorError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
        raise ValueError(f"{what} is damaged ({reason}): make the edit again in another folder") from error


def check_tensors(tensors: dict[str, Tensor], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless each wanted tensor is there by its name and of its shape, and all are finite."""
    for name, shape in wanted.items():
        if name not in tensors:
            raise ValueError(f"it has no {name}")
        if tuple(tensors[name].shape) != tuple(shape):
            raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(shape)}")
    for name, value in tensors.items():
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise ValueError(f"{name} has values that are not finite")


def state_of(folder: str | Path, identity: dict) -> str:
    """ "new", "begun" or "finished": how far this very edit has come here. Raises ValueError, and touches nothing, if
    the folder holds another edit or files that no edit wrote.

    identity: text, settings, input and base model (`storage.identity_of_edit`). It has no trace of the machine."""
    folder = Path(folder)
    if (folder / "edit.json").is_file():
        found, state = read_facts(folder), "finished"
    elif (folder / LEDGER).is_file():
        found, state = read_identity(folder), "begun"
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: choose another name")
    elif strangers := sorted(p.name for p in folder.glob("*") if not (p.name.startswith(".") or p.name in SYSTEM)):
        yours = f"the folder {folder} holds files of yours, such as {strangers[0]!r}"
        raise ValueError(f"{yours}: choose a new or empty one")
    else:
        return "new"
    if other := difference(found, identity):
        holds = f"the folder {folder} holds {'a finished' if state == 'finished' else 'an unfinished'} edit {other}"
        raise ValueError(f"{holds}: choose another folder, or delete that one if you no longer want it")
    return state


def difference(found: dict, wanted: dict) -> str | None:
    """How an edit differs from the wanted one, in words; None if it is the same."""
    if found["text"] != wanted["text"]:
        return f"of another text, {found['text'][:60]!r}"
    if found["input"] != wanted["input"]:
        return "of another picture"
    if found["base_model"]["fingerprint"] != wanted["base_model"]["fingerprint"]:
        return f"with another model, {found['base_model']['name'][:60]!r}"
    for name, value in wanted["settings"].items():
        if found["settings"].get(name) != value:
            return f"with {name} {repr(found['settings'].get(name))[:60]} instead of {value!r}"
    return None


def files_of(folder: Path) -> set[str]:
    """The names in a folder that were written for its edit. Only names of our own kind count, whatever is listed."""
    facts = read_facts(folder) if (folder / "edit.json").is_file() else {}
    if not facts and (folder / LEDGER).is_file():
        facts = read_identity(folder)
    return {name for name in facts.get("files", []) if WRITTEN.fullmatch(name)}


def claim(folder: str | Path, names: Iterable[str]) -> None:
    """List these files as the edit's, before they are written. Raises ValueError, and writes nothing, if one of them
    is there already and is not the edit's."""
    folder, own = Path(folder), files_of(Path(folder))
    for name in names:
        path = folder / name
        if name not in own and (path.exists() or path.is_symlink()):
            raise ValueError(f"{path} already exists and is not this edit's: move it away, then try again")
    files = sorted(own | set(names))
    if (folder / "edit.json").is_file():
        write_facts(folder, read_facts(folder) | {"files": files})
    else:
        e_tgt, facts = read_ledger(folder)
        save_tensors(folder / LEDGER, {"e_tgt": e_tgt}, facts | {"files": files})


def begin(folder: str | Path, identity: dict, e_tgt: Tensor) -> None:
    """Take a new folder for an edit. e_tgt is kept, because another processor would compute other last bits."""
    save_tensors(Path(folder) / LEDGER, {"e_tgt": e_tgt}, identity | {"files": []})


def finish(folder: Path, facts: dict) -> None:
    """Write edit.json, which marks a whole edit, and delete the checkpoints."""
    write_facts(folder, facts | {"files": sorted(files_of(folder))})
    remove_checkpoints(folder)


def remove_checkpoints(folder: Path) -> None:
    """Delete what a finished edit no longer needs."""
    if (Path(folder) / LEDGER).is_file():
        for name in (*CHECKPOINTS.values(), LEDGER):
            remove_tensors(Path(folder) / name)


def picture_name(eta: float, seed: int, scale: float = 1.0) -> str:
    """The file of a picture: eta-0.5-seed-0.png; different for different numbers."""
    eta, scale = (str(float(number)).removesuffix(".0") for number in (eta, scale))
    return f"eta-{eta}{'' if scale == '1' else f'-scale-{scale}'}-seed-{seed}.png"


def new_folder(place: str | Path, text: str) -> Path:
    """Make a new empty folder, named by time and text: place/2026-11-25-1403-a-cat-in-the-snow."""
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


def unfinished(place: str | Path, identity: dict) -> Path:
    """The folder in which this very edit was begun last. Raises ValueError if there is none."""
    for ledger in sorted(Path(place).glob(f"*/{LEDGER}"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(ValueError):
            if state_of(ledger.parent, identity) == "begun":
                return ledger.parent
    raise ValueError(f"{place} holds no unfinished edit of this picture and text, these settings and this model")


def history_so_far(folder: str | Path, stage: str) -> dict | None:
    """The history in the checkpoint of a stage ("embedding", "full", "lora") of an unfinished edit; None if there is
    none. Raises ValueError if it is damaged."""
    path = Path(folder) / CHECKPOINTS[stage]
    if not path.is_file():
        return None
    with damage_explained(path):
        return parse(StoredHistory, load_facts(path)["history"])
