"""One edit from start to end, and as a folder that can be kept, opened again and handed on."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from PIL import Image
from torch import Tensor

from imagic_lib.checkpoints import load_tensors, save_tensors, write_atomically
from imagic_lib.diffusion import decode_latents, encode_image
from imagic_lib.embedding import optimize_embedding
from imagic_lib.finetuning import fine_tune, with_unet
from imagic_lib.images import load_image, to_picture
from imagic_lib.inference import generate
from imagic_lib.interpolation import interpolate
from imagic_lib.models import encode_text
from imagic_lib.optimization import History, Strategy, hash_of

ETAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
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
    settings: dict = field(default_factory=dict)  # what `run_edit` was called with

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
        pipe = self.tuned if fine_tuned else self.pipe
        flat = generate(pipe, interpolate(self.e_tgt, self.e_opt, etas), seeds, **settings)
        return [flat[row :: len(seeds)] for row in range(len(seeds))]

    def save(self, folder: str | Path) -> Path:
        """Write the edit into a folder: edit.json (last, so that it marks a whole edit), input.png,
        embeddings.safetensors, and the LoRA in diffusers' own file or the UNet's difference."""
        folder = Path(folder)
        write_atomically(folder / "input.png", lambda tmp: self.input_picture.save(tmp, format="PNG"))
        save_tensors(folder / "embeddings.safetensors", {"e_tgt": self.e_tgt, "e_opt": self.e_opt}, {})
        if getattr(self.tuned.unet, "peft_config", None):
            save_lora(self.tuned, folder)
        else:
            base, tuned = self.pipe.unet.state_dict(), self.tuned.unet.state_dict()
            save_tensors(folder / "unet-difference.safetensors", {k: v - base[k] for k, v in tuned.items()}, {})
        facts = {
            "text": self.text,
            "settings": self.settings,
            "base_model": {"name": self.pipe.config.get("_name_or_path"), "fingerprint": fingerprint(self.pipe)},
            "input": hash_of(self.image),
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
                f"the edit in {folder} was made with {facts['base_model']['name']}, whose weights are not those of "
                f"the model that is loaded now ({pipe.config.get('_name_or_path')}): load that one"
            )
        embeddings, _ = load_tensors(folder / "embeddings.safetensors")
        unet = copy.deepcopy(pipe.unet)
        tuned = with_unet(pipe, unet)
        if (folder / LORA_FILE).is_file():
            tuned.load_lora_weights(str(folder), weight_name=LORA_FILE)
        else:
            difference, _ = load_tensors(folder / "unet-difference.safetensors")
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
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): make the edit again") from error


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
) -> ImagicEdit:
    """Stages 1 and 2 for one picture and one text.

    image: from `load_image`. method: "full" or "lora"; strategy: from `memory.plan`, brings its own. seed:
    of the training noise. folder: keep checkpoints there and the finished edit; called again after a stop,
    it goes on where it was, with the same result as without the stop. If the GPU runs out of memory, a
    MemoryError names the next smaller strategy, and the checkpoint stays.
    """
    generator = torch.Generator().manual_seed(seed)
    files = [Path(folder) / f"stage-{stage}.safetensors" if folder else None for stage in (1, 2)]
    e_tgt = encode_text(pipe, text)
    with out_of_memory_explained(strategy):
        e_opt, embedding_history = optimize_embedding(
            pipe, image, e_tgt, steps=embedding_steps, strategy=strategy, generator=generator, checkpoint=files[0]
        )
        tuned, unet_history = fine_tune(
            pipe,
            image,
            e_opt,
            method=method,
            strategy=strategy,
            steps=unet_steps,
            generator=generator,
            checkpoint=files[1],
        )
    method = strategy.method if strategy else method
    settings = {"embedding_steps": embedding_steps, "unet_steps": unet_steps, "method": method, "seed": seed}
    edit = ImagicEdit(text, pipe, tuned, image, e_tgt, e_opt, embedding_history, unet_history, settings)
    if folder:
        edit.save(folder)
        for file in files:
            file.unlink(missing_ok=True)
    return edit


@contextmanager
def out_of_memory_explained(strategy: Strategy | None):
    """Turn CUDA's out-of-memory into a MemoryError of one sentence: what to try next."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        from imagic_lib.memory import next_smaller, strategies

        smaller = next_smaller(strategy or strategies()[0])
        advice = f"try strategy: {smaller.name}" if smaller else "take a smaller picture or a larger GPU"
        raise MemoryError(
            f"the GPU is out of memory; {advice} (imagic_lib.memory.plan shows all); the checkpoint is kept"
        ) from error


def save_lora(tuned: StableDiffusionPipeline, folder: Path) -> None:
    """The adapters alone, in the file that `pipe.load_lora_weights(folder)` opens."""
    from peft import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(tuned.unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, weight_name=LORA_FILE)


def fingerprint(pipe: StableDiffusionPipeline) -> str:
    """A short name of a model's weights: equal for equal models, whatever they are called. It looks at
    the shape and the first 1024 numbers of every tensor, so that a 4 GB model takes no minute."""
    digest = hashlib.sha256()
    for part in (pipe.text_encoder, pipe.vae, pipe.unet):
        for name, value in sorted(part.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().flatten()[:1024].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
