"""Notebook 07's cells for a GPU or Colab alone: their code runs here, with stand-ins for Colab."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from PIL import Image

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "07_stable_diffusion.ipynb"


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """The GPU cells' code, and a namespace as the notebook would have it there."""
    calls = []
    colab = ModuleType("google.colab")
    colab.files = SimpleNamespace(upload=lambda: {"my photo.jpg": b"..."})
    colab.drive = SimpleNamespace(mount=calls.append)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    names = {"on_gpu": True, "Path": Path, "upload": False, "use_drive": False, "photo": Path("old.jpg")}
    names |= {"folder": tmp_path, "chosen": Image.new("RGB", (8, 8)), "eta": 0.7, "seed": 3, "mounted": calls}
    found = [c.source for c in nbformat.read(NOTEBOOK, 4).cells if "gpu" in c.metadata.get("tags", [])]
    assert len(found) == 3
    return SimpleNamespace(upload=found[0], drive=found[1], keep=found[2]), names


def test_an_uploaded_photo_becomes_the_input(cells):
    source, names = cells
    exec(source.upload, names | {"upload": True}, result := {})
    assert result["photo"] == Path("my photo.jpg")
    exec(source.upload, names, untouched := {})
    assert "photo" not in untouched


def test_drive_is_mounted_only_if_asked_for(cells):
    source, names = cells
    exec(source.drive, names, result := {})
    assert names["mounted"] == [] and "folder" not in result
    exec(source.drive, names | {"use_drive": True}, result)
    assert names["mounted"] == ["/content/drive"] and result["folder"].parts[:3] == ("/", "content", "drive")


def test_the_chosen_picture_is_kept_and_what_is_kept_is_listed(cells, tmp_path, capsys):
    source, names = cells
    exec(source.keep, names)
    assert Image.open(tmp_path / "chosen-eta-0.7-seed-3.png").size == (8, 8)
    assert "chosen-eta-0.7-seed-3.png" in capsys.readouterr().out
