"""The folder of an edit: which edit it belongs to, and which of its files we may replace.

An edit claims an empty folder, and the folder stays with that edit. While the edit is made, the ledger
(`checkpoint-edit.safetensors`) says which one it is; afterwards edit.json does. Only files named as in `WRITTEN` belong
to the edit. Files with other names are never replaced, deleted or passed on.
"""

import itertools
import re
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import filelock
from pydantic import Field, model_validator
from torch import Tensor

from imagic_lib import files
from imagic_lib.arguments import LONGEST_TEXT
from imagic_lib.files import Whole, damage_explained
from imagic_lib.training.history import History

INPUT_FILE, EMBEDDINGS_FILE = "input.png", "embeddings.safetensors"
DIFFERENCE_FILE = "unet-difference.safetensors"  # tuned minus loaded weights
LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' own name: pipe.load_lora_weights(folder) finds it
LEDGER = "checkpoint-edit.safetensors"
LOCK = ".lock"
CHECKPOINTS = {stage: f"checkpoint-{stage}.safetensors" for stage in ("embedding", "full", "lora")}
WRITTEN = re.compile(  # the names of an edit's files, apart from edit.json and the checkpoints
    rf"{INPUT_FILE}|{EMBEDDINGS_FILE}|{DIFFERENCE_FILE}({files.PART})?|{LORA_FILE}|edit\.png|losses\.png"
    r"|eta-[-+.e\d]+(-scale-[-+.e\d]+)?-seed-\d+\.png"
)
SYSTEM = {"Thumbs.db", "desktop.ini"}  # left by file managers, as are names that begin with a dot
LONGEST_NAME = 48  # letters of the text in a folder's name
AGAIN = "make the edit again in another folder"


class StoredSettings(files.Stored):
    method: Literal["full", "lora"]
    seed: Whole
    embedding_steps: Whole | None = None
    unet_steps: Whole | None = None


class StoredModel(files.Stored):
    name: str = Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")  # one line, as it also goes into a model card
    fingerprint: str


class EditIdentity(files.Stored):
    text: str = Field(max_length=LONGEST_TEXT)
    settings: StoredSettings
    input: str
    base_model: StoredModel


class EditFacts(EditIdentity):
    history: dict[Literal["embedding", "unet"], History] = Field(min_length=2)

    @model_validator(mode="after")
    def check_history(self):
        if not all(history.probe_loss for history in self.history.values()):
            raise ValueError("its history has no probe")
        return self


@contextmanager
def locked(folder: str | Path):
    """A context in which no other process or thread writes into the folder of an edit. A thread can enter it twice.

    Raises ValueError if another run is at work there. On a disk without support for locks, nothing is locked."""
    folder = Path(folder)
    lock = filelock.FileLock(folder / LOCK, timeout=0, is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        files.remove_leftovers(folder)
    except filelock.Timeout:
        raise ValueError(f"another run is at work here, in {folder}: wait for it, or choose another folder") from None
    except (OSError, NotImplementedError):  # the folder can't be written, or a link has the lock's name
        pass
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):
                (folder / LOCK).unlink()
        lock.release()


def read_identity(folder: str | Path) -> dict:
    """Read the identity of an unfinished edit. Raises ValueError if it is damaged."""
    path = Path(folder) / LEDGER
    with damage_explained(path, AGAIN):
        return files.parse(EditIdentity, files.load_facts(path))


def read_ledger(folder: str | Path) -> tuple[Tensor, dict]:
    """Read e_tgt and the identity of an unfinished edit. Raises ValueError if they are damaged."""
    path, facts = Path(folder) / LEDGER, read_identity(folder)
    with damage_explained(path, AGAIN):
        return files.load_tensors(path, largest=files.SMALL)[0]["e_tgt"], facts


def read_facts(folder: str | Path) -> dict:
    """Read the edit.json of a saved edit. Raises FileNotFoundError if it is missing, and ValueError, in one sentence,
    unless it is as `storage.save_edit` writes it."""
    path = Path(folder) / "edit.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no finished edit in {folder}: it has no edit.json")
    return files.read_json(path, EditFacts, AGAIN)


def write_facts(folder: Path, facts: dict) -> None:
    files.write_json(folder / "edit.json", facts)


def state_and_facts(folder: Path) -> tuple[str, dict]:
    """Return the state of a folder's edit ("new", "begun" or "finished"), and its facts; if begun, the ledger's."""
    if (folder / "edit.json").is_file():
        return "finished", read_facts(folder)
    return ("begun", read_identity(folder)) if (folder / LEDGER).is_file() else ("new", {})


def state_of(folder: str | Path, identity: dict) -> str:
    """Return how far this particular edit has come in the folder: "new", "begun" or "finished".

    identity: text, settings, input and base model, the same on every machine (`storage.identity_of_edit`). Raises
    ValueError, and touches nothing, if the folder holds another edit or files that no edit wrote."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: choose another name")
    state, found = state_and_facts(folder)
    if state == "new":
        if strangers := sorted(p.name for p in folder.glob("*") if not (p.name.startswith(".") or p.name in SYSTEM)):
            yours = f"the folder {folder} holds files of yours, such as {strangers[0]!r}"
            raise ValueError(f"{yours}: choose a new or empty one")
        return state
    theirs, ours = ({"text": f["text"], "picture": f["input"], "model": f["base_model"]["fingerprint"]} | f["settings"]
                    for f in (found, identity))  # fmt: skip
    if other := next((name for name, value in ours.items() if theirs.get(name) != value), None):
        holds = f"the folder {folder} holds {'a finished' if state == 'finished' else 'an unfinished'} edit"
        differs = f"of another {other}, {str(theirs.get(other))[:60]!r} instead of {str(ours[other])[:60]!r}"
        raise ValueError(f"{holds} {differs}: choose another folder, or delete that one if you no longer want it")
    return state


def files_of(folder: Path) -> set[str]:
    """Return the names of the edit's files in a folder. Links are left out, because they could lead to any file."""
    return {path.name for path in folder.iterdir() if WRITTEN.fullmatch(path.name) and not path.is_symlink()}


def begin(folder: str | Path, identity: dict, e_tgt: Tensor) -> None:
    """Claim a new folder for an edit. e_tgt is stored, because on another processor its last bits would differ."""
    files.save_tensors(Path(folder) / LEDGER, {"e_tgt": e_tgt}, identity)


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints, which a finished edit no longer needs."""
    if (Path(folder) / LEDGER).is_file():
        for name in (*CHECKPOINTS.values(), LEDGER):
            (Path(folder) / name).unlink(missing_ok=True)


def picture_name(eta: float, seed: int, scale: float = 1.0) -> str:
    """Return the file name of a picture, such as eta-0.5-seed-0.png. Different numbers give different names."""
    eta, scale = (str(float(number) + 0.0).removesuffix(".0") for number in (eta, scale))  # -0 is 0
    return f"eta-{eta}{'' if scale == '1' else f'-scale-{scale}'}-seed-{seed}.png"


def new_folder(place: str | Path, text: str) -> Path:
    """Make a new empty folder, named by time and text: place/2026-11-25-1403-a-cat-in-the-snow."""
    words = re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:LONGEST_NAME].strip("-")
    name = time.strftime("%Y-%m-%d-%H%M-") + (words or "edit")
    Path(place).mkdir(parents=True, exist_ok=True)
    for count in itertools.count(1):
        folder = Path(place) / (name if count == 1 else f"{name}-{count}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def unfinished(place: str | Path, identity: dict) -> Path:
    """Return the folder in which this particular edit was last begun. Raises ValueError if there is none."""
    for ledger in sorted(Path(place).glob(f"*/{LEDGER}"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(ValueError):
            if state_of(ledger.parent, identity) == "begun":
                return ledger.parent
    raise ValueError(f"{place} holds no unfinished edit of this picture and text, these settings and this model")
