"""Pictures from anywhere, made right: opened, checked, turned upright, cropped; and to tensors and back."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SMALLEST_SIDE = 16  # pixels; below this there is nothing to edit


def open_image(path: str | Path) -> Image.Image:
    """Any picture file as RGB: rotated as its EXIF says, transparency on white, first frame of many.

    Raises FileNotFoundError or ValueError, each with one sentence, for what is no usable picture.
    """
    path = Path(path)
    if not os.path.exists(path):  # unlike Path.exists, False for a name that is too long
        raise FileNotFoundError(f"there is no file {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the path of a picture in it")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                upright = _to_rgb(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"{path} unpacks to more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels: shrink it first"
        ) from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no picture that can be read: use PNG, JPEG, WebP, GIF or BMP") from None
    except PermissionError:
        raise ValueError(f"{path} may not be read by you: change its permissions") from None
    except Exception as error:  # Pillow's decoders raise many kinds for a broken file
        raise ValueError(f"{path} is damaged or cut short ({str(error) or type(error).__name__})") from error
    _check_size(upright, str(path))
    return upright


def _check_size(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if min(width, height) < SMALLEST_SIDE:
        raise ValueError(f"{name} is {width}x{height} pixels: each side must have {SMALLEST_SIDE} at least")


def _to_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits or more: Pillow would clip, not scale
        values = np.asarray(picture, dtype=np.float64)
        # only I;16 says where white is; elsewhere the values do
        likely = (65535,) if picture.mode.startswith("I;16") else (1, 255, 65535)
        top = next((t for t in likely if values.max() <= t), 65535)
        picture = Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def picture_size(pipe: StableDiffusionPipeline) -> int:
    """The side of the model's square pictures in pixels: 128 for tiny-sd, 512 for Stable Diffusion 1.4."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def fit(picture: Image.Image, size: int) -> Image.Image:
    """The central square of a picture, resized to size x size. A crop is said out loud, never stretched."""
    width, height = picture.size
    if width != height:
        lost = 1 - min(width, height) / max(width, height)
        warnings.warn(
            f"the picture is {width}x{height}: its central square is used, {lost:.0%} is cut off", stacklevel=3
        )
    if picture.size == (size, size):
        return picture
    return ImageOps.fit(picture, (size, size), method=Image.Resampling.LANCZOS)


def load_image(source: str | Path | Image.Image, pipe: StableDiffusionPipeline) -> Tensor:
    """A picture as the model wants it: (1, 3, size, size) in [-1, 1], on the model's device."""
    picture = _to_rgb(source) if isinstance(source, Image.Image) else open_image(source)
    _check_size(picture, "the picture")
    return to_tensor(fit(picture, picture_size(pipe))).to(pipe.unet.device, pipe.unet.dtype)


def to_tensor(picture: Image.Image) -> Tensor:
    """(1, 3, height, width) in [-1, 1]."""
    array = np.array(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def to_picture(tensor: Tensor) -> Image.Image:
    """The inverse of `to_tensor`, for one picture; values outside [-1, 1] are clamped."""
    array = ((tensor.detach().float().cpu().squeeze(0).clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(array.permute(1, 2, 0).numpy())
