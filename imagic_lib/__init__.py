"""Imagic: text-based editing of a real picture with a diffusion model (Kavar et al., arXiv 2210.09276).

The names below are in the order in which the method uses them.
"""

from transformers.utils import logging as _logging

_verbosity = _logging.get_verbosity()
_logging.set_verbosity_error()  # nothing here needs torchvision, but without it the imports below print two warnings

from imagic_lib.models import DATA, encode_text, load_pipeline
from imagic_lib.pictures import load_image, open_image
from imagic_lib.diffusion import decode_latents, encode_image
from imagic_lib.training.loop import History, Run
from imagic_lib.stage1_embedding import optimize_embedding
from imagic_lib.unets import LoRA
from imagic_lib.stage2_finetuning import fine_tune
from imagic_lib.stage3_interpolation import interpolate
from imagic_lib.stage4_inference import generate, own_noise, sample_text
from imagic_lib.suggestion import suggest
from imagic_lib.edit import ImagicEdit, run_edit

_logging.set_verbosity(_verbosity)
