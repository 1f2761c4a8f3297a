"""Write a finished edit into its folder and read it back; also the weights of stage 2 alone."""

import copy
import dataclasses
import platform
import re
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from torch import Tensor

from imagic_lib import folder as folders
from imagic_lib.arguments import check_text
from imagic_lib.files import check_regular, damage_explained, load_tensors, save_tensors
from imagic_lib.folder import DIFFERENCE_FILE, EMBEDDINGS_FILE, INPUT_FILE, LORA_FILE
from imagic_lib.models import fingerprint, name_of, weights_of
from imagic_lib.pictures import load_image, open_image, picture_size, save_picture
from imagic_lib.training.checkpoint import hash_of_picture
from imagic_lib.training.history import History
from imagic_lib.unets import with_unet


def identity_of_edit(pipe: StableDiffusionPipeline, image: Tensor, text: str, settings: dict) -> dict:
    """Return what identifies an edit: text, settings, hash of the picture, and model. It does not depend on machine or
    precision; if the model is a folder, only its name counts. Raises ValueError for an invalid image or text."""
    size, name = picture_size(pipe), name_of(pipe)
    if tuple(image.shape) != (1, 3, size, size):
        raise ValueError(f"image is {tuple(image.shape)}, not {(1, 3, size, size)}: give what `load_image` returns")
    if not torch.isfinite(image).all():
        raise ValueError("the picture has values that are not finite")
    check_text(text)
    name = "".join(letter for letter in Path(name).name if letter.isprintable()) if Path(name).is_dir() else name
    model = {"name": name, "fingerprint": fingerprint(pipe)}
    return {"text": text, "settings": settings, "input": hash_of_picture(image), "base_model": model}


def save_edit(edit, folder: str | Path) -> Path:
    """Write an `edit.ImagicEdit` into a folder, and return that. Its files are input.png, embeddings.safetensors, the
    UNet's difference or a LoRA in diffusers' format, and last edit.json, which marks a complete edit. Raises
    ValueError, and changes nothing, if the folder holds another edit or files of the user's (`folder.state_of`)."""
    folder, identity = Path(folder), identity_of_edit(edit.pipe, edit.image, edit.text, edit.settings)
    history = {"embedding": dataclasses.asdict(edit.embedding_history), "unet": dataclasses.asdict(edit.unet_history)}
    with folders.locked(folder):
        state = folders.state_of(folder, identity)
        if state == "finished":
            if any(folders.read_facts(folder)["history"][stage]["loss"] != history[stage]["loss"] for stage in history):
                raise ValueError(f"the folder {folder} holds another training of this edit: choose another folder")
            return folder
        if state == "new":
            folders.begin(folder, identity, edit.e_tgt)
        lora = edit.settings["method"] == "lora"
        save_picture(folder / INPUT_FILE, edit.input_picture)
        save_tensors(folder / EMBEDDINGS_FILE, {"e_tgt": edit.e_tgt, "e_opt": edit.e_opt}, {})
        if lora:
            save_lora(edit.tuned, folder)
        else:
            base, tuned = weights_of(edit.pipe.unet), weights_of(edit.tuned.unet)
            save_tensors(folder / DIFFERENCE_FILE, {k: v - base[k] for k, v in tuned.items()}, {})
        folders.write_facts(folder, identity | {"versions": versions(), "history": history})
        folders.remove_checkpoints(folder)
    return folder


def load_edit(kind: type, folder: str | Path, pipe: StableDiffusionPipeline):
    """Load a saved edit, ready to sample from. kind: `edit.ImagicEdit`. Raises FileNotFoundError if there is none, and
    ValueError if it was made with a base model other than `pipe`, or is damaged."""
    folder, facts = Path(folder), folders.read_facts(folder)
    if facts["base_model"]["fingerprint"] != fingerprint(pipe):
        other = f"was made with other weights ({facts['base_model']['name']}) than those loaded ({name_of(pipe)})"
        raise ValueError(f"the edit in {folder} {other}: load the model it was made with")
    with damage_explained(f"the edit in {folder}", folders.AGAIN):
        size = picture_size(pipe)
        check_regular(folder / INPUT_FILE)
        if (picture := open_image(folder / INPUT_FILE)).size != (size, size):
            raise ValueError(f"{INPUT_FILE} is not {size}x{size} pixels")
        e = torch.empty(1, pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim, device="meta")
        embeddings, _ = load_tensors(folder / EMBEDDINGS_FILE, {"e_tgt": e, "e_opt": e})
        tuned = (load_lora if facts["settings"]["method"] == "lora" else load_difference)(pipe, folder)
    parts = {"text": facts["text"], "settings": facts["settings"], "pipe": pipe, "tuned": tuned}
    parts |= {f"{stage}_history": History(**history) for stage, history in facts["history"].items()}
    parts |= {name: value.to(pipe.unet.device) for name, value in embeddings.items()}
    return kind(**parts, image=load_image(picture, pipe))


def load_difference(pipe: StableDiffusionPipeline, folder: Path) -> StableDiffusionPipeline:
    """Return `pipe` with a copy of its UNet to which the saved difference is added: θ + (θ* - θ)."""
    loaded, unet = weights_of(pipe.unet), copy.deepcopy(pipe.unet)
    difference, _ = load_tensors(folder / DIFFERENCE_FILE, loaded)
    for name, weight in weights_of(unet).items():
        weight.copy_(loaded[name] + difference[name].to(weight))
    return with_unet(pipe, unet)


def load_lora(pipe: StableDiffusionPipeline, folder: Path) -> StableDiffusionPipeline:
    """Return `pipe` with a copy of its UNet that has the saved adapters. The file may hold adapters of the UNet only,
    because both pipelines share the text encoder. Its metadata is not read."""
    layers, _ = load_tensors(folder / LORA_FILE, largest=sum(p.nbytes for p in pipe.unet.parameters()))
    named = all(re.fullmatch(r"unet\..+\.lora_[AB]\.weight", name) for name in layers)
    if not layers or not named or not all(value.is_floating_point() for value in layers.values()):
        raise ValueError(f"{LORA_FILE} holds other things than adapters of the UNet")
    tuned = with_unet(pipe, copy.deepcopy(pipe.unet))
    tuned.unet.load_lora_adapter(layers, prefix="unet")
    if sum("lora_" in name for name in tuned.unet.state_dict()) != len(layers):
        raise ValueError(f"{LORA_FILE} is for layers that this UNet does not have")
    return tuned


def save_lora(tuned: StableDiffusionPipeline, folder: Path) -> None:
    """Save only the adapters, in the file that `pipe.load_lora_weights(folder)` opens.

    All layers keep peft's names. diffusers' `convert_state_dict_to_diffusers` would rename those of attention but not
    those of convolutions, and from such a mixture the loader silently takes only the convolutions."""
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(tuned.unet)
    save_tensors(folder / LORA_FILE, {f"unet.{name}": value for name, value in layers.items()}, {})


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that compute."""
    libraries = {library.__name__: library.__version__ for library in (torch, diffusers, transformers)}
    return {"python": platform.python_version()} | libraries
