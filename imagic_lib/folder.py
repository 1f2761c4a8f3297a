"""The folder of an edit: whose it is, which files in it may be replaced, and why a stranger's is refused.

A folder is taken for an edit if it is empty, and stays that edit's: `checkpoint-edit.safetensors`, the ledger, says
which one while it is made, edit.json afterwards. In it the names of `WRITTEN` are the edit's, and no file of another
name is ever replaced, deleted or sent on.
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
WRITTEN = re.compile(  # the names of an edit's files, besides edit.json and its checkpoints
    rf"{INPUT_FILE}|{EMBEDDINGS_FILE}|{DIFFERENCE_FILE}({files.PART})?|{LORA_FILE}|edit\.png|losses\.png"
    r"|eta-[-+.e\d]+(-scale-[-+.e\d]+)?-seed-\d+\.png"
)
SYSTEM = {"Thumbs.db", "desktop.ini"}  # what a file manager leaves in a folder, besides names with a dot
LONGEST_NAME = 48  # letters of the text in a folder's name
AGAIN = "make the edit again in another folder"


class StoredSettings(files.Stored):
    method: Literal["full", "lora"]
    seed: Whole
    embedding_steps: Whole | None = None
    unet_steps: Whole | None = None


class StoredModel(files.Stored):
    name: str = Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")  # one line, of a model card too
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
    """Inside, no other process or thread writes into the folder of an edit. It may be entered twice by one thread.

    Raises ValueError if another run is at work there. A disk without locks has none."""
    folder = Path(folder)
    lock = filelock.FileLock(folder / LOCK, timeout=0, is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        files.remove_leftovers(folder)
    except filelock.Timeout:
        raise ValueError(f"another run is at work here, in {folder}: wait for it, or choose another folder") from None
    except (OSError, NotImplementedError):  # of a folder that can't be written, or a link in the place of the lock
        pass
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):
                (folder / LOCK).unlink()
        lock.release()


def read_identity(folder: str | Path) -> dict:
    """The identity of an unfinished edit. Raises ValueError if it is damaged."""
    path = Path(folder) / LEDGER
    with damage_explained(path, AGAIN):
        return files.parse(EditIdentity, files.load_facts(path))


def read_ledger(folder: str | Path) -> tuple[Tensor, dict]:
    """e_tgt, and what `read_identity` returns."""
    path, facts = Path(folder) / LEDGER, read_identity(folder)
    with damage_explained(path, AGAIN):
        return files.load_tensors(path, largest=files.SMALL)[0]["e_tgt"], facts


def read_facts(folder: str | Path) -> dict:
    """The edit.json of a saved edit, whole and of the right types. Raises FileNotFoundError if there is none, and
    ValueError in one sentence if it is not what `storage.save_edit` writes."""
    path = Path(folder) / "edit.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no finished edit in {folder}: it has no edit.json")
    return files.read_json(path, EditFacts, AGAIN)


def write_facts(folder: Path, facts: dict) -> None:
    files.write_json(folder / "edit.json", facts)


def state_and_facts(folder: Path) -> tuple[str, dict]:
    """How far the edit in a folder has come, and its facts: "finished", "begun" (those of the ledger) or "new"."""
    if (folder / "edit.json").is_file():
        return "finished", read_facts(folder)
    return ("begun", read_identity(folder)) if (folder / LEDGER).is_file() else ("new", {})


def state_of(folder: str | Path, identity: dict) -> str:
    """ "new", "begun" or "finished": how far this very edit has come here. Raises ValueError, and touches nothing, if
    the folder holds another edit or files that no edit wrote.

    identity: text, settings, input and base model (`storage.identity_of_edit`). It has no trace of the machine."""
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
    """The names in a folder that are its edit's. No links, which could lead to any file."""
    return {path.name for path in folder.iterdir() if WRITTEN.fullmatch(path.name) and not path.is_symlink()}


def begin(folder: str | Path, identity: dict, e_tgt: Tensor) -> None:
    """Take a new folder for an edit. e_tgt is kept, because another processor would compute other last bits."""
    files.save_tensors(Path(folder) / LEDGER, {"e_tgt": e_tgt}, identity)


def remove_checkpoints(folder: Path) -> None:
    """Delete what a finished edit no longer needs."""
    if (Path(folder) / LEDGER).is_file():
        for name in (*CHECKPOINTS.values(), LEDGER):
            (Path(folder) / name).unlink(missing_ok=True)


def picture_name(eta: float, seed: int, scale: float = 1.0) -> str:
    """The file of a picture: eta-0.5-seed-0.png; different for different numbers."""
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
    """The folder in which this very edit was begun last. Raises ValueError if there is none."""
    for ledger in sorted(Path(place).glob(f"*/{LEDGER}"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(ValueError):
            if state_of(ledger.parent, identity) == "begun":
                return ledger.parent
    raise ValueError(f"{place} holds no unfinished edit of this picture and text, these settings and this model")
