"""Versions and hashes, as short strings, of everything on which a measured number depends."""

from __future__ import annotations

import hashlib
import json
import re

import diffusers
import torch
from diffusers import StableDiffusionPipeline

from imagic_lab.methods import Method
from imagic_lab.toyworld.edits import VERSION
from imagic_lab.toyworld.reader import Reader
from imagic_lib import stage4_inference
from imagic_lib.models import DATA, fingerprint


def versions_of(pipe: StableDiffusionPipeline, reader: Reader) -> dict[str, str]:
    """Return what a number depends on, apart from edit and method. torch's version is without the kind of build."""
    return {
        "toyedit": VERSION,
        "library": library_version(),
        "torch": torch.__version__.partition("+")[0],
        "diffusers": diffusers.__version__,
        "model": fingerprint(pipe),
        "reader": hash_of_reader(reader),
    }


def library_version() -> str:
    """Return the version in pyproject.toml, which is next to data/."""
    text = (DATA.parent / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^version = "(.+)"', text, re.MULTILINE)[1]


def hash_of_reader(reader: Reader) -> str:
    """Return a short hash of the reader's weights and its bound for 'drawn well'."""
    digest = hashlib.sha256(f"{reader.bound:.6g}".encode())
    for name, value in sorted(reader.net.state_dict().items()):
        digest.update(name.encode() + value.detach().half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_of_settings(method: Method) -> str:
    """Return a short hash of everything that a method's result depends on, such as steps and rates, except its knob."""
    given = getattr(method.prepare, "keywords", {}).items()
    facts = [stage4_inference.DEFAULTS, *method.settings, {name: str(value) for name, value in given if name != "path"}]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
