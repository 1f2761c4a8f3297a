"""The cells of notebooks 07 and 10 for a GPU or Colab alone: their code runs here, with stand-ins for Colab and GPU."""

import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
import torch
from PIL import Image

import imagic_lib as imagic
from imagic_lib.classroom import plots
from imagic_lib.edit import LORA_FILE, save_lora
from imagic_lib.experiments import personalization
from imagic_lib.toyworld import Scene
from imagic_lib.training import memory

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def gpu_cells(name: str) -> list[str]:
    return [c.source for c in nbformat.read(FOLDER / name, 4).cells if "gpu" in c.metadata.get("tags", [])]


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
    picture = Image.new("RGB", (8, 8))
    names |= {"seeds": [3, 4], "etas": [0.0, 0.7], "rows": [[picture, picture], [picture, picture]]}
    found = gpu_cells("07_stable_diffusion.ipynb")
    assert len(found) == 4
    return SimpleNamespace(upload=found[0], drive=found[1], plan=found[2], keep=found[3]), names


def test_an_uploaded_photo_becomes_the_input(cells):
    source, names = cells
    exec(source.upload, names | {"upload": True}, result := {})
    assert result["photo"] == Path("my photo.jpg")
    exec(source.upload, names, untouched := {})
    assert "photo" not in untouched


def test_an_upload_that_is_cancelled_leaves_the_photo(cells, monkeypatch):
    source, names = cells
    monkeypatch.setattr(sys.modules["google.colab"].files, "upload", dict)
    exec(source.upload, names | {"upload": True}, result := {})
    assert result["photo"] == Path("old.jpg")


def test_without_a_network_a_gpu_alone_asks_for_no_large_model(monkeypatch, capsys):
    """Else the check of notebook 07 would fetch 5.5 GB on a machine with a GPU."""
    [first] = [c.source for c in nbformat.read(FOLDER / "07_stable_diffusion.ipynb", 4).cells if "on_gpu =" in c.source]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for offline, model in ((True, "tiny"), (False, "CompVis/stable-diffusion-v1-4")):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        exec(first, names := {})
        assert names["model"] == model and ("embedded model" in capsys.readouterr().out) == offline


def test_drive_is_mounted_only_if_asked_for(cells):
    source, names = cells
    exec(source.drive, names, result := {})
    assert names["mounted"] == [] and "folder" not in result
    exec(source.drive, names | {"use_drive": True}, result)
    assert names["mounted"] == ["/content/drive"] and result["folder"].parts[:3] == ("/", "content", "drive")


def test_the_plan_or_the_reader_chooses_the_strategy_and_nothing_starts_that_does_not_fit(cells, pipe):
    source, names = cells
    names |= {"pipe": pipe, "strategy": None, "use_lora": False}

    def run(gpu_gb, **changes):
        planner = SimpleNamespace(plan=lambda model: memory.plan(model, gpu_gb=gpu_gb))
        planner.strategies, planner.precision = memory.strategies, memory.precision
        exec(source.plan, found := names | {"memory": planner} | changes)
        return found["strategy"]

    assert run(40).method == "full" and run(40, use_lora=True).method == "lora"
    assert run(40, on_gpu=False) is None
    with pytest.raises(ValueError, match=r"nothing fits into 1\.00 GiB"):
        run(1)


def test_the_chosen_picture_and_all_others_are_kept_and_listed(cells, tmp_path, capsys):
    source, names = cells
    exec(source.keep, names)
    wanted = {f"eta-{eta}-seed-{seed}.png" for eta in ("0", "0.7") for seed in (3, 4)}
    assert wanted <= {path.name for path in tmp_path.iterdir()}
    assert Image.open(tmp_path / "chosen-eta-0.7-seed-3.png").size == (8, 8)
    assert "chosen-eta-0.7-seed-3.png" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:the embedded model")
def test_a_new_word_is_learned_from_photos_and_kept_as_a_lora_file(pipe, tmp_path, monkeypatch):
    """Notebook 10's recipe for Stable Diffusion 1.4, whole, with a small random model in its place."""
    [source] = gpu_cells("10_lora.ipynb")
    photos, asked, seen = [], [], []
    for seed in (1, 2):
        Scene.sample(seed, subject="car").render().save(photo := tmp_path / f"{seed}.jpg")
        photos.append(photo)
    monkeypatch.setattr(imagic, "load_pipeline", lambda name: asked.append(name) or pipe)
    monkeypatch.setitem(personalization.DEFAULTS, "tiny", personalization.DEFAULTS["tiny"] | {"steps": 2})
    monkeypatch.setattr(personalization, "class_pictures", _few(personalization.class_pictures, seen))
    monkeypatch.setattr(plots, "show", lambda figure, alt: seen.append(alt))
    names = {"on_gpu": True, "imagic": imagic, "memory": memory, "personalization": personalization, "plots": plots}
    names |= {"save_lora": save_lora}
    monkeypatch.setattr(imagic, "sample_text", partial(imagic.sample_text, steps=2))
    names |= {"my_photos": photos, "folder": tmp_path / "out", "own": "a photo of sks car"}
    names |= {"its_class": "a photo of a car", "wanted": "a photo of sks car on the beach", "layers": ["to_q", "conv1"]}
    exec(source, result := dict(names))
    assert asked == ["CompVis/stable-diffusion-v1-4"] and seen[0] == 50 and len(seen) == 2
    assert (tmp_path / "out" / LORA_FILE).is_file() and (tmp_path / "out" / "checkpoint.safetensors").is_file()
    assert len(result["pictures"]) == 4 and len(result["sd_history"].loss) == 2
    for missing in ({"on_gpu": False}, {"my_photos": []}):
        exec(source, untouched := names | missing)
        assert "sd" not in untouched


def _few(make, seen: list):
    """`class_pictures`, but two of them in two steps; what was asked for is noted."""

    def few(pipe, text, count):
        seen.append(count)
        return make(pipe, text, 2, steps=2)

    return few
