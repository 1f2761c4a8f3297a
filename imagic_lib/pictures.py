"""Pictures: open, check, turn upright and crop them, convert them to tensors and back, and measure distances."""

import io
import os
import warnings
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from imagic_lib.arguments import warn_caller
from imagic_lib.diffusion import decode_latents, encode_image
from imagic_lib.files import write_atomically
from imagic_lib.models import family

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "HEIF")  # others can start programs
TURNS = dict(enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE",
                        "ROTATE_90"), 2))  # fmt: skip
FOREIGN = 22.0  # dB; the embedded VAE rebuilds drawings better than this, photos worse
SMALLEST_SIDE = 16  # pixels; below this there is nothing to edit
MOST_PIXELS = 80_000_000  # more than cameras have; a file of a few kB can claim any number
TOO_LARGE = f"unpacks to more than {MOST_PIXELS / 1e6:.0f} megapixels: shrink it first"
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks of a PNG on which its pixels depend
RAW_TAGS = 330, 50706  # of a camera's raw TIFF: the pictures inside it, and the version of DNG
MOST_FRAMES = 50  # of an animation that we look at
MOST_BYTES = 2**29  # of a file; `MOST_PIXELS` with 16 bits per channel are 480 MB


def open_image(path: str | Path) -> Image.Image:
    """Open a picture file as RGB in sRGB. It is rotated as its EXIF says, and transparent parts become white. Of an
    animation, the first frame that is not white is used. Damaged metadata is ignored, because no pixel depends on it.

    Reads PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, and HEIC if pillow-heif is installed. The size is checked
    before anything is unpacked. Raises FileNotFoundError or ValueError, each with one sentence, for anything else."""
    path = Path(path)
    if str(path).lower().startswith(("http:/", "https:/")):
        raise ValueError(f"{path} is an address: download the picture, and give its file")
    if not os.path.exists(path):  # unlike Path.exists, False for a name that is too long
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}: give the path of a picture")
    if not 0 < path.stat().st_size <= MOST_BYTES:
        empty = path.stat().st_size == 0
        raise ValueError(f"{path} is empty (0 bytes)" if empty else f"{path} has more than {MOST_BYTES >> 20} MiB")
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    try:
        return _decoded(path, path)
    except ValueError:
        content = path.read_bytes()
        for exif in (b"eXIf", b"") if content.startswith((PNG, JPEG)) else ():
            with suppress(ValueError):
                return _decoded(io.BytesIO(_without_metadata(content, exif)), path)
        raise


def _decoded(source: Path | io.BytesIO, path: Path) -> Image.Image:
    with _refused_in_a_sentence(path):
        picture = Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])  # the header alone
    with picture:
        _check_picture(picture, str(path))
        tags = picture.tag_v2 if picture.format == "TIFF" else {}
        if tags.get(254) == 1 or any(tag in tags for tag in RAW_TAGS):
            raise ValueError(f"{path} is a camera's raw file, and what opens is its preview: export it as a JPEG")
        with _refused_in_a_sentence(path):
            for number in range(min(getattr(picture, "n_frames", 1), MOST_FRAMES)):
                picture.seek(number)
                picture.load()
                if (frame := _to_rgb(picture)).getextrema() != ((255, 255),) * 3:
                    break
    if number:
        warn_caller(f"{path} is an animation that begins with white frames: frame {number + 1} is used")
    return frame


def _without_metadata(content: bytes, exif: bytes) -> bytes:
    """Return a PNG or JPEG file without its metadata. exif: b"eXIf" keeps the EXIF, which may say which way is up."""
    at = 8 if (png := content.startswith(PNG)) else 2
    kept = bytearray(content[:at])
    while at < len(content) and (png or content[at : at + 2] != b"\xff\xda"):
        size = content[at : at + 4] if png else content[at + 2 : at + 4]
        name = content[at + 4 : at + 8]  # below: the segments APP0 to APP15 and comments of a JPEG
        needed = name in (*PIXELS, exif) if png else content[at + 1 : at + 2] < b"\xe0" or (name == b"Exif" and exif)
        end = at + int.from_bytes(size, "big") + (12 if png else 2)
        kept += content[at:end] if needed else b""
        at = max(end, at + 1)
    return bytes(kept + content[at:])


@contextmanager
def _refused_in_a_sentence(path: Path):
    """Turn any error from Pillow into a ValueError that a student understands."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            yield
    except Image.DecompressionBombError:
        raise ValueError(f"{path} {TOO_LARGE}") from None
    except UnidentifiedImageError:
        phone = "JPEG XL can't be read, a phone's HEIC with `pip install pillow-heif`"
        raise ValueError(f"{path} is not a picture that can be read: save it as PNG or JPEG ({phone})") from None
    except PermissionError:
        raise ValueError(f"{path} can't be read, because you lack the permission") from None
    except Exception as error:  # Pillow's decoders raise many kinds for a broken file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged or cut short ({reason}): save it anew, or take another") from error


def _check_picture(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if min(width, height) < SMALLEST_SIDE:
        raise ValueError(f"{name} is {width}x{height} pixels: each side must have at least {SMALLEST_SIDE}")
    if width * height > MOST_PIXELS:
        raise ValueError(f"{name} {TOO_LARGE}")
    if picture.mode.startswith("I") or picture.mode == "F":  # Pillow would clip them
        raise ValueError(f"{name} has more than 8 bits for a shade of grey: save it with 8")


def _upright(picture: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF says. Ignores everything else in the EXIF, damaged or not."""
    with suppress(Exception):  # Pillow's reader raises many kinds
        return picture.transpose(Image.Transpose[TURNS[picture.getexif()[0x0112]]])
    return picture


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert RGB from another colour space to sRGB, on which the models were trained."""
    with suppress(OSError, ImageCms.PyCMSError):  # there is none, or it is damaged
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        if found.profile.xcolor_space.strip() == "RGB" and "sRGB" not in (found.profile.profile_description or ""):
            return ImageCms.profileToProfile(picture, found, ImageCms.createProfile("sRGB"))
    return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    picture, profile = _upright(picture), picture.info.get("icc_profile")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    rgb = _in_srgb(picture.convert("RGB"), profile)
    rgb.info.clear()  # without this, `load_image` would turn it a second time
    return rgb


def picture_size(pipe: StableDiffusionPipeline) -> int:
    """Return the side of the model's square pictures in pixels: 128 for tiny-sd, 512 for Stable Diffusion 1.4."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def square(picture: Image.Image, size: int) -> Image.Image:
    """Crop a picture to its central square and resize that to size x size. Warns if anything is cut off."""
    width, height = picture.size
    if width != height:
        share = 1 - min(width, height) / max(width, height)
        warn_caller(f"the picture is {width}x{height}: its central square is used, {share:.0%} is cut off")
    return ImageOps.fit(picture, (size, size), method=Image.Resampling.LANCZOS)


def load_image(source: str | Path | Image.Image, pipe: StableDiffusionPipeline) -> Tensor:
    """Load a picture as the tensor that the model needs: (1, 3, size, size) in [-1, 1], on the model's device.

    Warns if it crops a picture that is not square, if it enlarges a small one, and if the embedded model can't draw it,
    as with a photo. Raises the same errors as `open_image`."""
    if isinstance(source, Image.Image):
        _check_picture(source, "the picture")
        picture = _to_rgb(source)
    else:
        picture = open_image(source)
    size = picture_size(pipe)
    if min(picture.size) < size:
        warn_caller(f"the picture is {picture.width}x{picture.height}: it is enlarged to the model's {size}x{size}")
    tensor = to_tensor(square(picture, size)).to(pipe.unet.device, pipe.unet.dtype)
    if family(pipe) == "tiny" and (kept := rebuilt_psnr(pipe, tensor)) < FOREIGN:
        warn_caller(
            f"the embedded model can't hold this picture (its VAE keeps {kept:.0f} dB of it): it knows drawings of the "
            f"toy world, as in data/images; for a photo, use Stable Diffusion 1.4 on a GPU"
        )
    return tensor


def rebuilt_psnr(pipe: StableDiffusionPipeline, image: Tensor) -> float:
    """Return the PSNR of the VAE's reconstruction in dB, to say how much of a picture the VAE keeps."""
    return psnr(to_picture(decode_latents(pipe, encode_image(pipe, image))), to_picture(image))


def to_tensor(picture: Image.Image) -> Tensor:
    """Return a picture as a tensor, (1, 3, height, width) in [-1, 1]."""
    array = np.array(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def to_picture(tensor: Tensor) -> Image.Image:
    """The inverse of `to_tensor`, for one picture; values outside [-1, 1] are clamped."""
    array = ((tensor.detach().float().cpu().squeeze(0).clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(array.permute(1, 2, 0).numpy())


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as a PNG, whole or not at all."""
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def rmse(a: Image.Image, b: Image.Image) -> float:
    """Root mean square difference of two pictures, from 0 to 1 (black against white). They must have the same size."""
    if a.size != b.size:
        raise ValueError(f"the pictures differ in size: {a.size} and {b.size}")
    x, y = (np.asarray(p.convert("RGB"), dtype=np.float64) / 255 for p in (a, b))
    return float(np.sqrt(np.mean((x - y) ** 2)))


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB: 20·log10(1 / RMSE); infinite for equal pictures."""
    error = rmse(a, b)
    return float("inf") if error == 0 else -20 * float(np.log10(error))
