"""One edit from start to end, and as a folder that can be kept, opened again and handed on."""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from imagic_lib.diffusion import decode_latents, encode_image
from imagic_lib.models import encode_text, fingerprint, name_of
from imagic_lib.pictures import load_image, to_picture
from imagic_lib.stage1_embedding import optimize_embedding
from imagic_lib.stage2_finetuning import fine_tune, with_unet
from imagic_lib.stage3_interpolation import interpolate
from imagic_lib.stage4_inference import generate
from imagic_lib.training.checkpoints import load_tensors, remove_tensors, save_tensors, write_atomically
from imagic_lib.training.identity import hash_of_picture
from imagic_lib.training.loop import History, Run, Watch
from imagic_lib.training.strategies import Strategy, waiting

ETAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
DIFFERENCE_FILE = "unet-difference.safetensors"  # tuned minus loaded weights
LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' own name: pipe.load_lora_weights(folder) finds it


@dataclass
class ImagicEdit:
    """A trained edit: from here every η and every seed costs one sampling, no training."""

    text: str
    pipe: StableDiffusionPipeline  # as it was loaded
    tuned: StableDiffusionPipeline  # with the UNet of stage 2
    image: Tensor  # (1, 3, size, size) in [-1, 1]
    e_tgt: Tensor  # (1, tokens, width)
    e_opt: Tensor
    embedding_history: History
    unet_history: History
    settings: dict  # method, steps and seed that `run_edit` was called with

    @property
    def input_picture(self) -> Image.Image:
        return to_picture(self.image)

    @property
    def reconstruction(self) -> Image.Image:
        """The input through the VAE and back: the most that any edit can keep."""
        return to_picture(decode_latents(self.pipe, encode_image(self.pipe, self.image)))

    def pictures(
        self, etas: Sequence[float] = ETAS, seeds: Sequence[int] = (0,), *, fine_tuned: bool = True, **settings
    ) -> list[list[Image.Image]]:
        """One row of pictures a seed, one column an η. `fine_tuned=False`: what stage 2 is good for.
        Further settings go to `generate`."""
        pipe, idle = (self.tuned, self.pipe) if fine_tuned else (self.pipe, self.tuned)
        with waiting(idle.unet):
            flat = generate(pipe, interpolate(self.e_tgt, self.e_opt, etas), seeds, **settings)
        return [flat[row :: len(seeds)] for row in range(len(seeds))]

    def save(self, folder: str | Path) -> Path:
        """Write the edit into a folder: input.png, embeddings.safetensors, the LoRA in diffusers' own file or
        the UNet's difference, and edit.json, last, so that it marks a whole edit. An older edit in the
        folder is taken away first, with its pictures."""
        folder = Path(folder)
        remove_edit(folder)
        write_atomically(folder / "input.png", lambda tmp: self.input_picture.save(tmp, format="PNG"))
        save_tensors(folder / "embeddings.safetensors", {"e_tgt": self.e_tgt, "e_opt": self.e_opt}, {})
        if self.settings["method"] == "lora":
            save_lora(self.tuned, folder)
        else:
            base, tuned = self.pipe.unet.state_dict(), self.tuned.unet.state_dict()
            save_tensors(folder / DIFFERENCE_FILE, {k: v - base[k] for k, v in tuned.items()}, {})
        facts = {
            "text": self.text,
            "settings": self.settings,
            "base_model": {"name": name_of(self.pipe), "fingerprint": fingerprint(self.pipe)},
            "input": hash_of_picture(self.image),
            "versions": versions(),
            "history": {"embedding": self.embedding_history.to_dict(), "unet": self.unet_history.to_dict()},
        }
        write_atomically(folder / "edit.json", lambda tmp: tmp.write_text(json.dumps(facts, indent=1)))
        return folder

    @classmethod
    def load(cls, folder: str | Path, pipe: StableDiffusionPipeline) -> ImagicEdit:
        """An edit that was saved, ready to sample from. Raises FileNotFoundError if there is none, and
        ValueError if it was made with another base model than `pipe`."""
        folder, facts = Path(folder), read_facts(folder)
        if facts["base_model"]["fingerprint"] != fingerprint(pipe):
            raise ValueError(
                f"the edit in {folder} was made with other weights ({facts['base_model']['name']}) than those that "
                f"are loaded ({name_of(pipe)}): load the model it was made with"
            )
        embeddings, _ = load_tensors(folder / "embeddings.safetensors")
        unet = copy.deepcopy(pipe.unet)
        tuned = with_unet(pipe, unet)
        if facts["settings"]["method"] == "lora":
            tuned.load_lora_weights(str(folder), weight_name=LORA_FILE)
        else:
            difference, _ = load_tensors(folder / DIFFERENCE_FILE)
            unet.load_state_dict({k: v + difference[k].to(v) for k, v in unet.state_dict().items()})
        device = pipe.unet.device
        return cls(
            text=facts["text"],
            pipe=pipe,
            tuned=tuned,
            image=load_image(folder / "input.png", pipe),
            e_tgt=embeddings["e_tgt"].to(device),
            e_opt=embeddings["e_opt"].to(device),
            embedding_history=History(**facts["history"]["embedding"]),
            unet_history=History(**facts["history"]["unet"]),
            settings=facts["settings"],
        )


def read_facts(folder: str | Path) -> dict:
    """The edit.json of a saved edit. Raises FileNotFoundError or ValueError if there is none to read."""
    path = Path(folder) / "edit.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no finished edit in {folder}: it has no edit.json")
    try:
        facts = json.loads(path.read_text())
        if missing := {"text", "settings", "base_model", "input", "history"} - set(facts):
            raise ValueError(f"it has no {sorted(missing)[0]!r}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): make the edit again") from error
    return facts


def remove_edit(folder: Path) -> None:
    """Take an older edit out of a folder, edit.json first; checkpoints stay."""
    for name in ("edit.json", LORA_FILE, "embeddings.safetensors", "input.png", "edit.png", "losses.png"):
        (folder / name).unlink(missing_ok=True)
    remove_tensors(folder / DIFFERENCE_FILE)
    for picture in folder.glob("eta-*-seed-*.png"):
        picture.unlink()


def run_edit(
    pipe: StableDiffusionPipeline,
    image: Tensor,
    text: str,
    *,
    embedding_steps: int | None = None,
    unet_steps: int | None = None,
    method: str = "full",
    strategy: Strategy | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    watch: Watch | None = None,
) -> ImagicEdit:
    """Stages 1 and 2 for one picture and one text.

    image: from `load_image`. method: "full" or "lora"; strategy: from `training.memory.plan`, brings its own. seed:
    of the training noise. folder: keep checkpoints and the finished edit there; called again after a stop
    or a kill, it goes on where it was, with the same result, and a finished edit is only loaded. The stop
    button ends the present stage early; with a folder it ends all, as KeyboardInterrupt, to be continued.
    `watch` may end them, too (see `training.loop.Run`). If the GPU runs out of memory, a MemoryError
    names the next smaller strategy.
    """
    method = strategy.method if strategy else method
    settings = {"embedding_steps": embedding_steps, "unet_steps": unet_steps, "method": method, "seed": seed}
    if folder and is_finished(folder, pipe, image, text, settings):
        return ImagicEdit.load(folder, pipe)
    generator = torch.Generator().manual_seed(seed)
    files = [Path(folder) / f"checkpoint-{part}.safetensors" if folder else None for part in ("embedding", method)]
    e_tgt = encode_text(pipe, text)
    with out_of_memory_explained(strategy, method, folder):
        e_opt, embedding_history = optimize_embedding(
            pipe,
            image,
            e_tgt,
            steps=embedding_steps,
            generator=generator,
            run=Run(strategy=strategy, checkpoint=files[0], watch=watch),
        )
        stop_if_asked(embedding_history, folder)
        tuned, unet_history = fine_tune(
            pipe,
            image,
            e_opt,
            method=method,
            steps=unet_steps,
            generator=generator,
            run=Run(strategy=strategy, checkpoint=files[1], watch=watch),
        )
        stop_if_asked(unet_history, folder)
    edit = ImagicEdit(text, pipe, tuned, image, e_tgt, e_opt, embedding_history, unet_history, settings)
    if folder:
        edit.save(folder)
        for file in files:
            remove_tensors(file)
    return edit


def is_finished(folder: str | Path, pipe: StableDiffusionPipeline, image: Tensor, text: str, settings: dict) -> bool:
    """Does the folder hold this very edit: of this picture, text, settings and model?"""
    if not (Path(folder) / "edit.json").is_file():
        return False
    facts = read_facts(folder)
    found = facts["text"], facts["settings"], facts["input"], facts["base_model"]["fingerprint"]
    return found == (text, settings, hash_of_picture(image), fingerprint(pipe))


def stop_if_asked(history: History, folder: str | Path | None) -> None:
    if history.stopped and folder:
        raise KeyboardInterrupt(f"stopped; the same call goes on with the checkpoint in {folder}")


@contextmanager
def out_of_memory_explained(strategy: Strategy | None, method: str, folder: str | Path | None):
    """Turn CUDA's out-of-memory into a MemoryError of one sentence: what to try next."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        from imagic_lib.training.memory import next_smaller, strategies

        now = strategy or next(s for s in strategies() if s.method == method)
        smaller = next_smaller(now)
        advice = f"try the strategy “{smaller.name}”" if smaller else "only a larger GPU will do"
        kept = f"; the checkpoint in {folder} is kept" if folder else ""
        raise MemoryError(
            f"the GPU is out of memory: {advice} (imagic_lib.training.memory.plan shows all){kept}"
        ) from error


def save_lora(tuned: StableDiffusionPipeline, folder: Path) -> None:
    """The adapters alone, in the file that `pipe.load_lora_weights(folder)` opens.

    The names are peft's, for all layers: diffusers' `convert_state_dict_to_diffusers` would rename those of attention
    and not those of convolutions, and of such a mixture the loader takes the convolutions alone, without a word.
    """
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(tuned.unet)

    def write(temporary: Path) -> None:
        StableDiffusionPipeline.save_lora_weights(
            temporary.parent, unet_lora_layers=layers, weight_name=temporary.name, safe_serialization=True
        )

    write_atomically(folder / LORA_FILE, write)


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
