"""Imagic: text-based editing of a real picture with a diffusion model (Kavar et al., arXiv 2210.09276).

The names below stand in the order in which the method uses them.
"""

from transformers.utils import logging as _logging

_verbosity = _logging.get_verbosity()
_logging.set_verbosity_error()  # without torchvision, which nothing here needs, the imports below print two warnings

from imagic_lib.models import DATA, encode_text, load_pipeline
from imagic_lib.images import load_image, open_image
from imagic_lib.diffusion import decode_latents, encode_image
from imagic_lib.optimization import History
from imagic_lib.embedding import optimize_embedding
from imagic_lib.finetuning import fine_tune
from imagic_lib.interpolation import interpolate
from imagic_lib.inference import generate, sample_text
from imagic_lib.edit import ImagicEdit, run_edit
from imagic_lib.personalization import personalize

_logging.set_verbosity(_verbosity)

__all__ = [
    "DATA",
    "History",
    "ImagicEdit",
    "decode_latents",
    "encode_image",
    "encode_text",
    "fine_tune",
    "generate",
    "interpolate",
    "load_image",
    "load_pipeline",
    "open_image",
    "optimize_embedding",
    "personalize",
    "run_edit",
    "sample_text",
]
