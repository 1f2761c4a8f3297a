"""One edit from start to end, and as a folder that can be kept, opened again and handed on."""

from __future__ import annotations

import copy
import platform
import re
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

from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.diffusion import decode_latents, encode_image
from imagic_lib.folder import (
    CHECKPOINTS,
    DIFFERENCE_FILE,
    EMBEDDINGS_FILE,
    INPUT_FILE,
    LORA_FILE,
    begin,
    check_finite,
    check_tensors,
    claim,
    damage_explained,
    finish,
    read_facts,
    read_ledger,
    remove_checkpoints,
    state_of,
)
from imagic_lib.models import encode_text, fingerprint, name_of, settings_for
from imagic_lib.pictures import load_image, open_image, picture_size, to_picture
from imagic_lib.stage1_embedding import optimize_embedding
from imagic_lib.stage2_finetuning import fine_tune, with_unet
from imagic_lib.stage3_interpolation import interpolate
from imagic_lib.stage4_inference import generate, seeds_of
from imagic_lib.suggestion import Suggestion, suggest
from imagic_lib.training.checkpoints import load_tensors, save_tensors, write_atomically
from imagic_lib.training.identity import hash_of_picture
from imagic_lib.training.loop import History, Preview, Run, Watch
from imagic_lib.training.strategies import Strategy, waiting

ETAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
FARTHEST_ETA = 10.0  # far beyond what shows anything; the sum of two embeddings times 1e30 draws black


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
    settings: dict  # method, steps and seed of the two trainings

    @property
    def input_picture(self) -> Image.Image:
        return to_picture(self.image)

    @property
    def reconstruction(self) -> Image.Image:
        """The input through the VAE and back: the most that any edit can keep."""
        return to_picture(decode_latents(self.pipe, encode_image(self.pipe, self.image)))

    def pictures(
        self, etas: Sequence[float] = ETAS, seeds: Sequence[int] = (0,), *, scale: float = 1.0, **settings
    ) -> list[list[Image.Image]]:
        """One row of pictures a seed, one column an η. scale: how much of stage 2 is used, λ in formulas; 0 shows what
        the pictures are without it. Further settings go to `generate`. Raises ValueError for what can't be drawn."""
        etas, seeds = etas_of(etas), seeds_of(seeds)
        with waiting(self.pipe.unet):
            flat = generate(self.tuned, interpolate(self.e_tgt, self.e_opt, etas), seeds, scale=scale, **settings)
        return [flat[row :: len(seeds)] for row in range(len(seeds))]

    def suggest(self, **settings) -> Suggestion:
        """The η and the scale that serve this edit best, found by drawing some pictures (`suggestion.suggest`)."""
        return suggest(self, **settings)

    def save(self, folder: str | Path) -> Path:
        """Write the edit into a folder: input.png, embeddings.safetensors, the LoRA in diffusers' own file or
        the UNet's difference, and edit.json, last, so that it marks a whole edit. Raises ValueError, and leaves all
        as it was, if the folder holds another edit or a file of the user's (`folder.state_of`)."""
        folder, identity = Path(folder), identity_of(self.pipe, self.image, self.text, self.settings)
        history = {"embedding": self.embedding_history.to_dict(), "unet": self.unet_history.to_dict()}
        state = state_of(folder, identity)
        if state == "finished":
            if any(read_facts(folder)["history"][stage]["loss"] != history[stage]["loss"] for stage in history):
                raise ValueError(f"the folder {folder} holds another training of this very edit: choose another folder")
            return folder
        if state == "new":
            begin(folder, identity, self.e_tgt)
        lora = self.settings["method"] == "lora"
        claim(folder, [INPUT_FILE, EMBEDDINGS_FILE, LORA_FILE if lora else DIFFERENCE_FILE])
        write_atomically(folder / INPUT_FILE, lambda tmp: self.input_picture.save(tmp, format="PNG"))
        save_tensors(folder / EMBEDDINGS_FILE, {"e_tgt": self.e_tgt, "e_opt": self.e_opt}, {})
        if lora:
            save_lora(self.tuned, folder)
        else:
            base, tuned = self.pipe.unet.state_dict(), self.tuned.unet.state_dict()
            save_tensors(folder / DIFFERENCE_FILE, {k: v - base[k] for k, v in tuned.items()}, {})
        finish(folder, identity | {"versions": versions(), "history": history})
        return folder

    @classmethod
    def load(cls, folder: str | Path, pipe: StableDiffusionPipeline) -> ImagicEdit:
        """An edit that was saved, ready to sample from. Raises FileNotFoundError if there is none, and
        ValueError if it was made with another base model than `pipe`, or is damaged."""
        folder, facts = Path(folder), read_facts(folder)
        if facts["base_model"]["fingerprint"] != fingerprint(pipe):
            raise ValueError(
                f"the edit in {folder} was made with other weights ({facts['base_model']['name']}) than those that "
                f"are loaded ({name_of(pipe)}): load the model it was made with"
            )
        with damage_explained(f"the edit in {folder}"):
            size, device = picture_size(pipe), pipe.unet.device
            if (picture := open_image(folder / INPUT_FILE)).size != (size, size):
                raise ValueError(f"{INPUT_FILE} is not {size}x{size} pixels")
            embeddings, _ = load_tensors(folder / EMBEDDINGS_FILE)
            shape = (1, pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim)
            check_tensors(embeddings, {"e_tgt": shape, "e_opt": shape})
            tuned = (load_lora if facts["settings"]["method"] == "lora" else load_difference)(pipe, folder)
        return cls(
            text=facts["text"],
            pipe=pipe,
            tuned=tuned,
            image=load_image(picture, pipe),
            e_tgt=embeddings["e_tgt"].to(device),
            e_opt=embeddings["e_opt"].to(device),
            embedding_history=History(**facts["history"]["embedding"]),
            unet_history=History(**facts["history"]["unet"]),
            settings=facts["settings"],
        )


def etas_of(etas: Sequence[float]) -> list[float]:
    """A list of at least one η, each from -10 to 10. Raises ValueError for anything else."""
    try:
        numbers = [float(eta) for eta in etas]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(abs(eta) <= FARTHEST_ETA for eta in numbers):
        raise ValueError(f"etas must be a list of one or more numbers within ±{FARTHEST_ETA:g}, e.g. [0, 0.5, 1]")
    return numbers


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
    preview: Preview | None = None,
) -> ImagicEdit:
    """Stages 1 and 2 for one picture and one text.

    image: from `load_image`. method: "full" or "lora"; strategy: from `training.memory.plan`, brings its own. seed:
    of the training noise. folder: keep checkpoints and the finished edit there; called again after a stop
    or a kill, on this machine or another, it goes on where it was, and a finished edit is only loaded. A folder
    that holds anything else is refused with a ValueError. The stop button ends the present stage early; with a
    folder it ends all, as KeyboardInterrupt, to be continued. `watch` may end them, too, and `preview` sees the UNet
    that is trained (`training.loop.Run`). If the GPU runs out of memory, a MemoryError names the next smaller strategy.
    """
    method = strategy.method if strategy else method
    settings = settings_of(pipe, method, embedding_steps, unet_steps, seed)
    identity = identity_of(pipe, image, text, settings)
    state = state_of(folder, identity) if folder else "new"
    if state == "finished":
        edit = ImagicEdit.load(folder, pipe)
        remove_checkpoints(folder)  # a kill may have come before that
        return edit
    e_tgt = read_ledger(folder)[0].to(pipe.unet.device) if state == "begun" else encode_text(pipe, text)
    if folder and state == "new":
        begin(folder, identity, e_tgt)
    generator = torch.Generator().manual_seed(settings["seed"])
    with out_of_memory_explained(strategy, method, pipe.unet.device, folder):
        e_opt, embedding_history = optimize_embedding(
            pipe,
            image,
            e_tgt,
            steps=embedding_steps,
            generator=generator,
            run=Run(strategy=strategy, checkpoint=checkpoint_in(folder, "embedding"), watch=watch, preview=preview),
        )
        stop_if_asked(embedding_history, folder)
        tuned, unet_history = fine_tune(
            pipe,
            image,
            e_opt,
            method=method,
            steps=unet_steps,
            generator=generator,
            run=Run(strategy=strategy, checkpoint=checkpoint_in(folder, method), watch=watch, preview=preview),
        )
        stop_if_asked(unet_history, folder)
    edit = ImagicEdit(text, pipe, tuned, image, e_tgt, e_opt, embedding_history, unet_history, settings)
    if folder:
        edit.save(folder)
    return edit


def settings_of(
    pipe: StableDiffusionPipeline, method: str, embedding_steps: int | None, unet_steps: int | None, seed: int
) -> dict:
    """What the trainings are asked for, every default filled in. Raises ValueError for what can't be."""
    if method not in stage2_finetuning.DEFAULTS:
        raise ValueError(f"method {method!r} is unknown: choose 'full' or 'lora'")
    first = settings_for(pipe, stage1_embedding.DEFAULTS, steps=embedding_steps)
    second = settings_for(pipe, stage2_finetuning.DEFAULTS[method], steps=unet_steps)
    [seed] = seeds_of([seed])
    return {"embedding_steps": first["steps"], "unet_steps": second["steps"], "method": method, "seed": seed}


def identity_of(pipe: StableDiffusionPipeline, image: Tensor, text: str, settings: dict) -> dict:
    """Which edit it is: text, settings, the picture's bytes and the model, and nothing of the machine or precision.
    Raises ValueError for an image that is not the model's."""
    size = picture_size(pipe)
    if tuple(image.shape) != (1, 3, size, size):
        raise ValueError(f"image is {tuple(image.shape)}, not {(1, 3, size, size)}: give what `load_image` returns")
    return {
        "text": text,
        "settings": settings,
        "input": hash_of_picture(image),
        "base_model": {"name": name_of(pipe), "fingerprint": fingerprint(pipe)},
    }


def checkpoint_in(folder: str | Path | None, stage: str) -> Path | None:
    return Path(folder) / CHECKPOINTS[stage] if folder else None


def stop_if_asked(history: History, folder: str | Path | None) -> None:
    if history.stopped and folder:
        raise KeyboardInterrupt(f"stopped; the same call goes on with the checkpoint in {folder}")


@contextmanager
def out_of_memory_explained(strategy: Strategy | None, method: str, device: torch.device, folder: str | Path | None):
    """Turn CUDA's out-of-memory into a MemoryError of one sentence: what to try next."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        from imagic_lib.planning.memory import next_smaller, precision

        now = strategy or Strategy(method, torch.float32, "Adam", False)
        smaller = next_smaller(now, precision(device))
        advice = f"try the strategy “{smaller.name}”" if smaller else "only a larger GPU will do"
        kept = f"; the checkpoint in {folder} is kept" if folder else ""
        raise MemoryError(
            f"the GPU is out of memory: {advice} (imagic_lib.planning.memory.plan shows all){kept}"
        ) from error


def load_difference(pipe: StableDiffusionPipeline, folder: Path) -> StableDiffusionPipeline:
    """`pipe` with a copy of its UNet, the saved difference added: θ + (θ* - θ)."""
    difference, _ = load_tensors(folder / DIFFERENCE_FILE)
    loaded = pipe.unet.state_dict()
    check_tensors(difference, {name: value.shape for name, value in loaded.items()})
    unet = copy.deepcopy(pipe.unet)
    unet.load_state_dict({k: v + difference[k].to(v) for k, v in loaded.items()})
    return with_unet(pipe, unet)


def load_lora(pipe: StableDiffusionPipeline, folder: Path) -> StableDiffusionPipeline:
    """`pipe` with a copy of its UNet, the saved adapters in it. The file's own metadata is not read, and its tensors
    may be the UNet's alone: the text encoder, which both pipelines share, stays as it was."""
    layers, _ = load_tensors(folder / LORA_FILE)
    check_finite(layers)
    if not layers or not all(re.fullmatch(r"unet\..+\.lora_[AB]\.weight", name) for name in layers):
        raise ValueError(f"{LORA_FILE} holds other things than adapters of the UNet")
    tuned = with_unet(pipe, copy.deepcopy(pipe.unet))
    tuned.unet.load_lora_adapter(layers, prefix="unet")
    if sum("lora_" in name for name in tuned.unet.state_dict()) != len(layers):
        raise ValueError(f"{LORA_FILE} is for layers that this UNet does not have")
    return tuned


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
