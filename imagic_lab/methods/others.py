"""Methods in other people's code: SDEdit and LEDITS++ from diffusers, and Imagic from its community."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from diffusers import DiffusionPipeline, LEditsPPPipelineStableDiffusion, StableDiffusionImg2ImgPipeline
from diffusers import StableDiffusionPipeline as Pipeline
from PIL import Image
from torch import Tensor

from imagic_lab.methods.method import Draw
from imagic_lib.models import family, settings_for
from imagic_lib.pictures import picture_size, to_picture
from imagic_lib.stage4_inference import AT_ONCE, DEFAULTS, sampler
from imagic_lib.unets import unet_copy

# diffusers' community pipeline has 500 steps at 1e-3 and 1000 at 2e-6, for Stable Diffusion. These rates are far too
# low for the embedded model, which is 80 times smaller. The following did best on the first three edits of ToyEdit dev;
# we also tried (1e-2, 1e-4) and (1e-2, 5e-5).
COMMUNITY = {
    "tiny": {
        "text_embedding_optimization_steps": 250,
        "embedding_learning_rate": 3e-3,
        "model_fine_tuning_optimization_steps": 250,
        "diffusion_model_learning_rate": 1e-4,
    },
    "stable-diffusion": {},
}
LEDITS_THRESHOLD = {"tiny": 0.5, "stable-diffusion": 0.9}  # diffusers has 0.9; a large change needs less
COMMUNITY_FILE = "examples/community/imagic_stable_diffusion.py"  # in the repository huggingface/diffusers
COMMUNITY_SCALING = 0.18215  # of the latents, hard-coded in that file


def sdedit(pipe: Pipeline, image: Tensor, text: str) -> Draw:
    """SDEdit (Meng et al. 2021, arXiv 2108.01073), by diffusers' img2img: go part of the way into the noise, and back.

    Noise the picture, z_t0 = √ᾱ_t0 · z + √(1-ᾱ_t0) · ε with t0 = strength · T, and denoise it with the text. The knob
    is the strength."""
    given, picture = settings_for(pipe, DEFAULTS), to_picture(image)
    other = without_bar(StableDiffusionImg2ImgPipeline(**components_of(pipe), requires_safety_checker=False))

    def draw(strength: float, seeds: Sequence[int]) -> list[Image.Image]:
        if math.floor(strength * given["steps"]) < 1:
            raise ValueError(f"a strength of {strength:g} leaves none of {given['steps']} steps: choose a larger one")
        drawn, at_once = [], AT_ONCE[family(pipe)]
        for some in (seeds[k : k + at_once] for k in range(0, len(seeds), at_once)):
            drawn += other(
                prompt=[text] * len(some),
                image=picture,
                strength=strength,
                num_inference_steps=given["steps"],
                guidance_scale=given["guidance_scale"],
                generator=[torch.Generator().manual_seed(seed) for seed in some],
            ).images
        return drawn

    return draw


def ledits(pipe: Pipeline, image: Tensor, text: str) -> Draw:
    """LEDITS++ (Brack et al. 2023, arXiv 2311.16711), by diffusers.

    The sampler adds noise at every step, and this noise is chosen so that it ends near the input. For the edit,
    ε = ε_∅ + M · s·(ε_text - ε_∅), where the mask M has the places in which the text matters, at most a share of
    1 - `LEDITS_THRESHOLD`. The knob is s. s = 0 nearly rebuilds the input.

    We use the paper's sampler, because with DDIM the code of diffusers computes timesteps as floats and ends in an
    IndexError. With transformers 5 it also takes the padding of the text for words, and then its mask allows hardly any
    change; hence the `encode_prompt` below.
    """
    steps, picture = settings_for(pipe, DEFAULTS)["steps"], to_picture(image)
    own = components_of(pipe) | {
        "unet": unet_copy(pipe.unet, pipe.unet.device),  # the pipeline replaces its attention layers
        "scheduler": sampler(pipe, "sde-dpm++"),
    }
    own.pop("image_encoder", None)
    other = without_bar(LEditsPPPipelineStableDiffusion(**own, requires_safety_checker=False))
    encode, words = other.encode_prompt, len(pipe.tokenizer(text, truncation=True).input_ids) - 2  # no start, no end
    other.encode_prompt = lambda *given, **named: (*encode(*given, **named)[:2], torch.tensor([words]))

    def draw(guidance: float, seeds: Sequence[int]) -> list[Image.Image]:
        drawn = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            other.invert(image=picture, num_inversion_steps=steps, generator=generator)
            drawn += other(
                editing_prompt=[text],
                edit_guidance_scale=guidance,
                edit_threshold=LEDITS_THRESHOLD[family(pipe)],
                generator=generator,
            ).images
        return drawn

    return draw


def community(pipe: Pipeline, image: Tensor, text: str, *, path: str | Path, as_it_comes: bool = False) -> Draw:
    """Imagic by diffusers' community, in full precision. The knob is its alpha, which is our η. path: a copy of
    `COMMUNITY_FILE`. as_it_comes: use the steps and rates of that file instead of those that suit this model.

    It trains with a DDIM scheduler, because diffusers' DPM-Solver adds the noise of a wrong timestep before its steps
    are set. It draws with the pipeline's scheduler.
    """
    given, size = settings_for(pipe, DEFAULTS), picture_size(pipe)
    if pipe.vae.config.scaling_factor != COMMUNITY_SCALING:
        raise ValueError(f"the community pipeline scales latents by {COMMUNITY_SCALING}, this model does not")
    unet = unet_copy(pipe.unet, pipe.unet.device)  # it trains the UNet that it is given
    own = {name: part for name, part in components_of(pipe).items() if name != "image_encoder"}
    own |= {"unet": unet, "scheduler": sampler(pipe, "ddim")}
    other = without_bar(community_module(path).ImagicStableDiffusionPipeline(**own))
    with torch.random.fork_rng():  # it takes its training noise from the global generator
        torch.manual_seed(0)
        settings = {} if as_it_comes else COMMUNITY[family(pipe)]
        other.train(text, image, size, size, torch.Generator(image.device).manual_seed(0), **settings)
    unet.eval()
    other.scheduler = copy.deepcopy(pipe.scheduler)

    def draw(alpha: float, seeds: Sequence[int]) -> list[Image.Image]:
        drawn, (steps, guidance) = [], (given["steps"], given["guidance_scale"])
        for seed in seeds:
            noise = torch.Generator(image.device).manual_seed(seed)
            with torch.random.fork_rng():  # and the noise of a sampler's steps
                torch.manual_seed(seed)
                drawn += other(alpha, size, size, steps, noise, guidance_scale=guidance).images
        return drawn

    return draw


def community_module(path: str | Path) -> ModuleType:
    """Import the file as a module, without its progress bars and its mixed precision, which does not work on a CPU.

    Raises FileNotFoundError if the file does not exist, and ValueError if it is another file.
    """
    path = Path(path)
    where = f"give the path of diffusers' {COMMUNITY_FILE}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {where}")
    spec = importlib.util.spec_from_file_location("imagic_stable_diffusion", path)
    if spec is None:
        raise ValueError(f"{path} is not a Python file: {where}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        plain, bar = module.Accelerator, module.tqdm
        module.ImagicStableDiffusionPipeline  # noqa: B018
    except Exception as error:  # another file can fail in any way
        raise ValueError(f"{path} can't be used ({error}): {where}") from error
    module.Accelerator = lambda **given: plain(**given | {"mixed_precision": "no"})
    module.tqdm = lambda *arguments, **given: bar(*arguments, **given | {"disable": True})
    return module


def components_of(pipe: Pipeline) -> dict:
    """Return the parts for another pipeline. The scheduler is a copy, because every pipeline sets its steps."""
    return pipe.components | {"scheduler": copy.deepcopy(pipe.scheduler)}


def without_bar(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe
