"""The house: the core at the top of `imagic_lib/` stands without the rooms around it."""

import subprocess
import sys
from pathlib import Path

import imagic_lib as imagic

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*(name for name in sys.modules if name.startswith("imagic_lib.")))
"""


def loaded_with(*modules: str) -> set[str]:
    """The modules of imagic_lib that a fresh Python has after importing these."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *modules], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def rooms(modules: set[str]) -> set[str]:
    return {name.split(".")[1] for name in modules}


def test_the_core_imports_neither_toyworld_nor_classroom_nor_experiments():
    core = [f"imagic_lib.{path.stem}" for path in (ROOT / "imagic_lib").glob("*.py") if path.stem != "__init__"]
    core += [f"imagic_lib.training.{path.stem}" for path in (ROOT / "imagic_lib" / "training").glob("[a-z]*.py")]
    found = loaded_with(*core)
    assert set(core) <= found
    assert not rooms(found) & {"toyworld", "classroom", "experiments"}


def test_every_public_name_is_there():
    assert all(getattr(imagic, name) is not None for name in imagic.__all__)
    assert imagic.personalize.__module__ == "imagic_lab.experiments.personalization"
    assert not hasattr(imagic, "no_such_name")
