"""Load a Stable Diffusion model from this package (tiny), the Hugging Face hub or a local folder; encode texts."""

import hashlib
import importlib
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn

from imagic_lib.arguments import check_setting, check_text, warn_caller, whole_number

DATA = Path(__file__).resolve().parent.parent / "data"
TINY = DATA / "tiny-sd"
MOST_GUIDANCE = 100.0  # above this, pictures are black or noise
MOST_SIDE = 256  # of the latents, for 2048 pixels


def load_pipeline(model: str | Path = "tiny", device: str | torch.device | None = None, *,
                  safety_checker: bool = True) -> StableDiffusionPipeline:  # fmt: skip
    """Load a `StableDiffusionPipeline` in float32. Weights are read from safetensors only.

    model: "tiny" (embedded, 128x128 drawings), a hub id such as "CompVis/stable-diffusion-v1-4" or its address, or a
    folder in diffusers format. device: by default the GPU if there is one; for "tiny" the CPU, which is fast enough.
    safety_checker: False leaves out the model's safety checker. Raises FileNotFoundError or ValueError, in one
    sentence, if the model is missing, damaged or not a text-to-image model."""
    model = re.sub("^https?://(www\\.)?(huggingface\\.co|hf\\.co)/", "", str(model)).rstrip("/")
    folder = TINY if model == "tiny" else Path(model).expanduser()
    variant = variant_of(folder) if folder == TINY or folder.exists() else None
    source = str(folder) if folder.exists() else model
    quiet = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        how = {} if safety_checker else {"safety_checker": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline.from_pretrained(source, variant=variant, use_safetensors=True, **how)
        pipe.to(torch.float32)
    except Exception as error:  # diffusers raises many kinds; a student needs one sentence
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if folder.exists():
            needed = "each part needs its .safetensors, which can run no code"
            raise ValueError(f"the model in {folder} is damaged or incomplete ({needed}): {reason}") from error
        raise FileNotFoundError(
            f"{model!r} is not a folder here, and the Hugging Face hub did not provide it ({reason}): a first use "
            f"downloads some 5 GB, so where there is a network run `hf download {model} --local-dir FOLDER "
            f'--exclude "*.bin" --exclude "*.msgpack" --exclude "*fp16*"` and give that FOLDER; "tiny" works now'
        ) from error
    finally:
        diffusers_logging.set_verbosity(quiet)
    check_pipeline(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() and folder != TINY else "cpu"))


def variant_of(folder: Path) -> str | None:
    """Return "fp16" if the model has its weights in half precision only, else None. Raises ValueError, and says what to
    do, if the path has no model in diffusers format."""
    if folder.is_file():
        how = f"StableDiffusionPipeline.from_single_file({folder.name!r}).save_pretrained(FOLDER)"
        raise ValueError(f"{folder} is a single file: convert it with {how}, and give that FOLDER")
    if not (folder / "model_index.json").is_file():
        advice = ": clone again, and install with `pip install -e .`" if folder == TINY else ""
        raise ValueError(f"{folder} is not a diffusers model, because it has no model_index.json{advice}")
    weights = [path.name for path in (folder / "unet").glob("*.safetensors")]
    return "fp16" if weights and all(".fp16." in name for name in weights) else None


def check_pipeline(pipe: StableDiffusionPipeline) -> None:
    """Normalise the configuration. Raises ValueError for a model that loads but that the stages can't use, because it
    is of another kind or its configuration has an invalid number."""
    name, process = name_of(pipe), pipe.scheduler.config
    pipe.unet.register_to_config(sample_size=checked_side(name, pipe.unet.config, pipe.vae.config, pipe.vae))
    if not hasattr(pipe.scheduler, "alphas_cumprod") or process.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"{name} has the noise process of {type(pipe.scheduler).__name__}: Imagic needs that of DDPM")
    limit = pipe.text_encoder.config.max_position_embeddings
    pipe.tokenizer.model_max_length = min(pipe.tokenizer.model_max_length, limit)


def checked_side(name: str, unet: dict, vae: dict, kind: object = None) -> int:
    """Return the side of the latents. Raises ValueError unless this is the configuration of a text-to-image model."""
    more = [unet.get(key) for key in ("class_embed_type", "num_class_embeds", "addition_embed_type")]
    if unet.get("in_channels", 4) != vae.get("latent_channels", 4) or any(more):
        others = "as models for inpainting, depth or upscaling do"
        raise ValueError(f"{name} needs more than a text, {others}: Imagic needs a text-to-image model")
    if (kind := vae.get("_class_name") or type(kind).__name__) != "AutoencoderKL":
        raise ValueError(f"{name} has an {kind} as its VAE: Imagic needs an AutoencoderKL")
    if not 0 < (factor := vae.get("scaling_factor", 0.18215)) < math.inf:
        raise ValueError(f"{name} has the scaling_factor {factor}: it must be above 0")
    side = unet.get("sample_size")
    side = side[0] if isinstance(side, list | tuple) and len({*side}) == 1 else side
    if not isinstance(side, int) or not 1 <= side <= MOST_SIDE:
        raise ValueError(f"{name} has the sample_size {side}: it must be one whole number from 1 to {MOST_SIDE}")
    return side


def name_of(pipe: StableDiffusionPipeline) -> str:
    """Return the name with which `load_pipeline` loads this model: "tiny", a hub id or a folder."""
    name = str(pipe.config.get("_name_or_path") or "an unnamed pipeline")
    return "tiny" if name == str(TINY) else name


def plugin_of(pipe: StableDiffusionPipeline, name: str, default: str | None = None) -> Callable | None:
    """Return the function of `imagic_lab` that the model's folder names in its imagic.json, for example the measure for
    drawings, `{"measure": "imagic_lab.toyworld.edits:read_by"}`. Names from any other package are ignored."""
    listed = (TINY if name_of(pipe) == "tiny" else Path(name_of(pipe))) / "imagic.json"
    try:
        found = str(json.loads(listed.read_text()).get(name)) if listed.is_file() else ""
        found = found if re.fullmatch(r"imagic_lab(\.\w+)+:\w+", found) else default or ""
        module, _, function = found.partition(":")
        return getattr(importlib.import_module(module), function) if module else None
    except (AttributeError, ImportError, ValueError) as error:
        raise ValueError(f"{listed} is damaged ({error}): delete it, or take it from a whole copy") from error


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers of a network by name. A compiled network has the same names."""
    return {name.replace("_orig_mod.", ""): value for name, value in network.state_dict().items()}


def fingerprint(pipe: StableDiffusionPipeline) -> str:
    """Return a short hash of a model's weights, which does not depend on the model's name, its precision or the library
    version. It covers the shape and first 1024 numbers of each tensor, so a 4 GB model takes less than a minute."""
    digest = hashlib.sha256()
    for part in (pipe.text_encoder, pipe.vae, pipe.unet):
        tensors = {k.removeprefix("text_model."): v for k, v in weights_of(part).items() if v.is_floating_point()}
        for name, value in sorted(tensors.items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().flatten()[:1024].half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def family(pipe: StableDiffusionPipeline) -> str:
    """Return which defaults fit the model, "tiny" or "stable-diffusion". Their UNets differ 80-fold in size."""
    return "tiny" if sum(p.numel() for p in pipe.unet.parameters()) < 50e6 else "stable-diffusion"


def settings_for(pipe: StableDiffusionPipeline, defaults: dict[str, dict], **given) -> dict:
    """Return the settings of a stage: those given, with this model's default for each None.

    Raises ValueError for a value that a stage can't use. A training may have 0 steps; a sampler needs at least 1, and
    at most one for each timestep."""
    drawing = "guidance_scale" in given
    most = {"guidance_scale": MOST_GUIDANCE, "decay": 1.0}  # a decay is a share of the steps
    most |= {"steps": pipe.scheduler.config.num_train_timesteps} if drawing else {}
    for name, value in given.items():
        if value is None:
            continue
        if name in ("steps", "batch"):
            given[name] = value = whole_number(name, value)
        zero = name in ("guidance_scale", "decay", "bias") or (name == "steps" and not drawing)
        check_setting(name, value, zero, most.get(name, math.inf))
    return defaults[family(pipe)] | {name: value for name, value in given.items() if value is not None}


@cache
def vocabulary() -> frozenset[str]:
    """Return every word in the captions on which the embedded model was trained, from the list in its folder."""
    return frozenset(json.loads((TINY / "vocabulary.json").read_text(encoding="utf-8")))


def unknown_words(text: str) -> list[str]:
    """Return the words of a text that no caption of the toy world has. The embedded model can't know what they mean."""
    words = (word.strip(".,;:!?\"'()–-").lower() for word in text.split())
    return [word for word in dict.fromkeys(words) if word and word not in vocabulary()]


@torch.no_grad()
def encode_text(pipe: StableDiffusionPipeline, text: str) -> Tensor:
    """Encode a text into the embedding that the UNet reads, (1, tokens, width); for the target text this is e_tgt.

    Raises ValueError as `check_text` does. Warns if the text is longer than the model reads, and says what is cut off.
    With the embedded model, also warns of words that the model never saw."""
    check_text(text)
    unknown = [word for word in unknown_words(text) if word not in pipe.tokenizer.get_added_vocab()]
    ids, limit = token_ids(pipe, text), pipe.tokenizer.model_max_length
    if len(ids) > limit:
        cut = pipe.tokenizer.decode(ids[limit - 1 : -1]).strip()
        warn_caller(f"the text has {len(ids) - 2} tokens and the model reads {limit - 2}: cut off is {cut!r}")
    if family(pipe) == "tiny" and unknown:
        warn_caller(
            f"the embedded model never saw {', '.join(map(repr, unknown))}: it knows dogs, cats, rabbits, birds "
            "and cars, eight colours, their poses, and grass, beach, snow and night. For any text, use "
            "Stable Diffusion 1.4"
        )
    return encode_ids(pipe, ids)


def token_ids(pipe: StableDiffusionPipeline, text: str) -> list[int]:
    """Return all tokens of a text. A textual inversion with several vectors has several tokens."""
    return pipe.tokenizer(pipe.maybe_convert_prompt(text, pipe.tokenizer), truncation=False).input_ids


@torch.no_grad()
def encode_ids(pipe: StableDiffusionPipeline, ids: list[int]) -> Tensor:
    """Encode tokens, cut and padded to the model's length, as (1, tokens, width).

    We pad here, because the padding of a tokenizer is a state that all threads share."""
    limit, device = pipe.tokenizer.model_max_length, pipe.text_encoder.device
    ids = ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]
    padded = torch.tensor([ids + [pipe.tokenizer.pad_token_id] * (limit - len(ids))], device=device)
    masked = getattr(pipe.text_encoder.config, "use_attention_mask", None)
    mask = (torch.arange(limit, device=device)[None] < len(ids)).long() if masked else None
    return pipe.text_encoder(padded, attention_mask=mask).last_hidden_state
