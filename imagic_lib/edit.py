"""One edit from start to finish: both trainings, after which any η and seed costs one sampling each."""

import traceback
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.arguments import etas_of, method_of, seeds_of
from imagic_lib.diffusion import decode_latents, encode_image
from imagic_lib.folder import CHECKPOINTS, INPUT_FILE, begin, locked, read_ledger, remove_checkpoints, state_of
from imagic_lib.models import encode_text, settings_for
from imagic_lib.pictures import save_picture, to_picture
from imagic_lib.stage1_embedding import optimize_embedding
from imagic_lib.stage2_finetuning import fine_tune
from imagic_lib.stage3_interpolation import interpolate
from imagic_lib.stage4_inference import generate, own_noise
from imagic_lib.storage import identity_of_edit, load_edit, save_edit
from imagic_lib.suggestion import suggest
from imagic_lib.training.checkpoint import check_room
from imagic_lib.training.loop import History, Run
from imagic_lib.training.strategies import networks, offloaded_to_cpu

ETAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
NOISES = ("own", "random")


@dataclass
class ImagicEdit:
    """A trained edit. From here on, any η and seed costs one sampling and no training."""

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
        """The input, encoded by the VAE and decoded again. No edit can keep more of it."""
        return to_picture(decode_latents(self.pipe, encode_image(self.pipe, self.image)))

    def pictures(self, etas: Sequence[float] = ETAS, seeds: Sequence[int] = (0,), *, scale: float = 1.0,
                 noise: str = "own", **settings) -> list[list[Image.Image]]:  # fmt: skip
        """Draw one row of pictures for each seed, with one column for each η. scale: tuning strength λ, the share of
        the fine-tuning. noise: "own" starts from the input's own noise at e_opt (`own_noise`), so that η = 0 draws the
        input and other ηs keep what the text does not change; "random" is the paper's way. Further settings go to
        `generate`. Raises ValueError for invalid settings."""
        etas, seeds = etas_of(etas), seeds_of(seeds)
        if noise not in NOISES:
            raise ValueError(f"noise is {noise!r}: choose 'own' or 'random'")
        with offloaded_to_cpu(self.pipe.unet):
            if noise == "own":
                how = {name: value for name, value in settings.items() if name not in ("scheduler", "callback")}
                settings["noise"] = own_noise(self.tuned, self.image, self.e_opt, seeds, scale=scale, **how)
            flat = generate(self.tuned, interpolate(self.e_tgt, self.e_opt, etas), seeds, scale=scale, **settings)
        return [flat[row :: len(seeds)] for row in range(len(seeds))]

    suggest, save, load = suggest, save_edit, classmethod(load_edit)


def run_edit(pipe: StableDiffusionPipeline, image: Tensor, text: str, *, embedding_steps: int | None = None,
             unet_steps: int | None = None, method: str = "full", seed: int = 0, folder: str | Path | None = None,
             run: Run = Run()) -> ImagicEdit:  # fmt: skip
    """Run stages 1 and 2 for one picture and one text.

    image: from `load_image`. method: "full" or "lora". seed: of the training noise. folder: keeps checkpoints and the
    finished edit. After a stop or a kill, the same call resumes the edit, on this machine or another; a finished edit
    is only loaded. run: options of both stages (`training.loop.Run`); the folder's checkpoint replaces its own. The
    stop button ends the current stage early; with a folder, it raises KeyboardInterrupt, and the edit can be resumed.
    Raises ValueError for a folder that holds anything else, and MemoryError if the GPU runs out of memory."""
    settings = settings_of(pipe, method, embedding_steps, unet_steps, seed)
    identity, kept = identity_of_edit(pipe, image, text, settings), Path(folder) if folder else None
    more = {"generator": torch.Generator().manual_seed(settings["seed"])}
    runs = {stage: replace(run, checkpoint=kept / name if kept else None) for stage, name in CHECKPOINTS.items()}
    with locked(kept) if kept else nullcontext(), out_of_memory_explained(pipe, folder):
        if kept and state_of(kept, identity) == "finished":
            edit = ImagicEdit.load(kept, pipe)
            remove_checkpoints(kept)  # in case it was killed before it could do so
            return edit
        e_tgt = begun(pipe, image, identity, kept) if kept else encode_text(pipe, text)
        e_opt, first = optimize_embedding(pipe, image, e_tgt, steps=embedding_steps, run=runs["embedding"], **more)
        stop_if_asked(first, folder)
        tuned, second = fine_tune(pipe, image, e_opt, method=method, steps=unet_steps, run=runs[method], **more)
        stop_if_asked(second, folder)
        edit = ImagicEdit(text, pipe, tuned, image, e_tgt, e_opt, first, second, settings)
        if kept:
            edit.save(kept)
    return edit


def begun(pipe: StableDiffusionPipeline, image: Tensor, identity: dict, folder: Path) -> Tensor:
    """Return e_tgt. A new edit claims the folder; the e_tgt of an unfinished one is read from it.

    Raises ValueError if all weights learn and the disk has no room for them, their two moments and their change."""
    if identity["settings"]["method"] == "full":
        numbers = sum(p.numel() for p in pipe.unet.parameters())
        check_room(folder / CHECKPOINTS["full"], 4 * 4 * numbers, "the edit")
    if state_of(folder, identity) == "begun":
        return read_ledger(folder)[0].to(pipe.unet.device)
    e_tgt = encode_text(pipe, identity["text"])
    begin(folder, identity, e_tgt)
    save_picture(folder / INPUT_FILE, to_picture(image))
    return e_tgt


def settings_of(pipe: StableDiffusionPipeline, method: str, embedding_steps: int | None, unet_steps: int | None,
                seed: int) -> dict:  # fmt: skip
    """Return the settings of both trainings, with every default filled in. Raises ValueError for an invalid setting."""
    first = settings_for(pipe, stage1_embedding.DEFAULTS, steps=embedding_steps)["steps"]
    second = settings_for(pipe, stage2_finetuning.DEFAULTS[method_of(method)], steps=unet_steps)["steps"]
    return {"embedding_steps": first, "unet_steps": second, "method": method, "seed": seeds_of([seed])[0]}


def stop_if_asked(history: History, folder: str | Path | None) -> None:
    if history.stopped and folder:
        raise KeyboardInterrupt(f"stopped; the same call goes on with the checkpoint in {folder}")


@contextmanager
def out_of_memory_explained(pipe: StableDiffusionPipeline, folder: str | Path | None):
    """Turn CUDA's out-of-memory error into a MemoryError with one sentence. Networks that did not fit on the device are
    moved back to it; otherwise the next attempt would train on the CPU."""
    device = pipe.unet.device
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold the training's tensors on the device
        for network in networks(pipe):
            network.to(device)
        kept = f"; the checkpoint in {folder} is kept" if folder else ""
        advice = "train in a way that needs less, of those that imagic_lib.planning.memory.plan shows"
        raise MemoryError(f"the GPU is out of memory: {advice}{kept}") from error
