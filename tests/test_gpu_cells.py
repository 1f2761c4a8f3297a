"""The cells of notebooks 07, 10 and 11 for a GPU or Colab alone: their code runs here, with stand-ins for both."""

import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

import imagic_lib as imagic
from imagic_lab import measures
from imagic_lab.classroom import plots
from imagic_lab.experiments import personalization
from imagic_lab.studio import app as studio
from imagic_lab.studio import state as studio_state
from imagic_lab.toyworld import Scene
from imagic_lib import models, stage1_embedding, stage2_finetuning, stage4_inference, suggestion
from imagic_lib.folder import LORA_FILE
from imagic_lib.planning import memory
from imagic_lib.storage import save_lora
from imagic_lib.training import strategies
from imagic_lib.training.strategies import Strategy
from imagic_lib.unets import with_unet

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def gpu_cells(name: str) -> list[str]:
    return [c.source for c in nbformat.read(FOLDER / name, 4).cells if "gpu" in c.metadata.get("tags", [])]


@pytest.fixture
def cells(monkeypatch):
    """The GPU cells' code, and a namespace as the notebook would have it there."""
    calls = []
    colab = ModuleType("google.colab")
    colab.files = SimpleNamespace(upload=lambda: {"my photo.jpg": b"..."})
    colab.drive = SimpleNamespace(mount=calls.append)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    names = {"on_gpu": True, "Path": Path, "upload": False, "use_drive": False, "photo": Path("old.jpg")}
    found = gpu_cells("07_stable_diffusion.ipynb")
    assert len(found) == 2
    return SimpleNamespace(upload=found[0], drive=found[1]), names | {"mounted": calls}


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
    exec(source.drive, dict(names))
    assert names["mounted"] == []
    exec(source.drive, names | {"use_drive": True})
    assert names["mounted"] == ["/content/drive"]


def test_with_a_gpu_the_notebook_waits_until_run_is_pressed(tmp_path):
    """And says so instead of going on without an edit."""
    cells = [c.source for c in nbformat.read(FOLDER / "07_stable_diffusion.ipynb", 4).cells if c.cell_type == "code"]
    [waits] = [source for source in cells if "desk.wait()" in source]
    pressed = []
    desk = SimpleNamespace(wait=lambda: None, click=pressed.append)
    with pytest.raises(ValueError, match="press Run in the studio"):
        exec(waits, {"on_gpu": True, "desk": desk})
    assert pressed == []


@pytest.fixture
def large(pipe, monkeypatch):
    """Stable Diffusion 1.4's own architecture at a twentieth of its width, with random weights; to the library it is a
    Stable Diffusion."""
    for module in (models, stage4_inference, suggestion, studio_state):
        monkeypatch.setattr(module, "family", lambda pipe: "stable-diffusion")
    for defaults in (stage1_embedding.DEFAULTS, stage2_finetuning.DEFAULTS["full"], stage4_inference.DEFAULTS):
        monkeypatch.setitem(defaults, "stable-diffusion", defaults["stable-diffusion"] | {"steps": 2})
    monkeypatch.setitem(stage4_inference.FAST, "steps", 2)
    monkeypatch.setattr(studio_state, "PREVIEW_STEPS", 2)
    config = json.loads((memory.SD_1_4 / "unet" / "config.json").read_text()) | {
        "block_out_channels": [16, 32, 64, 64],
        "cross_attention_dim": 32,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(config | {"sample_size": 16, "norm_num_groups": 8}).eval()
    return with_unet(pipe, unet)


def test_the_studio_edits_with_the_large_architecture_stops_and_goes_on_on_another_gpu(large, tmp_path, monkeypatch):
    """A photo, cropped; begun with the optimizer in the backward pass, gone on with a plain one; no suggestion unasked;
    drawn with DPM-Solver++ in half precision, where there is a GPU."""
    Image.effect_noise((96, 64), 80).convert("RGB").save(photo := tmp_path / "photo.jpg")
    drawn, pictures = [], imagic.ImagicEdit.pictures
    monkeypatch.setattr(imagic.ImagicEdit, "pictures", lambda self, *a, **k: drawn.append(k) or pictures(self, *a, **k))
    monkeypatch.setattr(suggestion, "suggest", lambda *edit: pytest.fail("it would download CLIP"))
    monkeypatch.setattr(studio_state, "GALLERY_ETAS", (0.0, 1.0))
    desk = studio.studio(large, photo, "a photo of a house in the snow", place=tmp_path / "edits")
    assert desk.now["sampling"] == "fast" and not desk.now["picture"]["square"] and desk.now["chips"] == {}
    ways = [Strategy(optimizer="Adam in backward", checkpointing=True), Strategy()]
    monkeypatch.setattr(studio_state, "strategy_of", lambda state: ways[0])
    studio_state.prepare(desk.state)

    def stop() -> None:
        if len(desk.state.histories.get("unet", imagic.History()).loss) == 1:
            studio_state.stop(desk.state)

    with pytest.raises(studio_state.Stopped):
        studio_state.train(desk.state, stop)
    ways.reverse()
    later = studio.studio(large, place=tmp_path / "edits")
    studio.ANSWERS["open"][0](later, desk.state.folder.name)
    later.click("go_on")
    assert len(later.wait(600).unet_history.loss) == 2 and len(later.state.pictures) == 4
    assert drawn and all(how["scheduler"] == "dpm++" and how["half"] for how in drawn)
    later.hear(later, {"do": "sampling", "sampling": "own"}, [])
    later.hear(later, {"do": "example", "name": "cat-photo.jpg"}, [])
    assert later.state.sampling == {"half": True} and later.now["text"] == "a photo of a cat in the snow"


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
    names = {
        "on_gpu": True,
        "imagic": imagic,
        "memory": memory,
        "strategies": strategies,
        "personalization": personalization,
        "plots": plots,
    }
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


def test_an_edited_photo_is_measured_with_clip_and_lpips_along_eta(pipe, tmp_path, monkeypatch, capsys):
    """Notebook 11's cell, with stand-ins for Stable Diffusion 1.4 and for the two networks that judge."""
    [source] = gpu_cells("11_evaluation.ipynb")
    image, text, seen = imagic.load_image(Scene.sample(1).render(), pipe), "a red car on the beach", []

    def lpips(net_type):
        return lambda picture, other: seen.append((net_type, picture, other)) or torch.tensor(0.5)

    def clip_scores(model, processor, pictures, asked):
        seen.append((model, pictures, asked))
        return [0.3125]

    module = ModuleType("torchmetrics.image.lpip")
    module.LearnedPerceptualImagePatchSimilarity = lpips
    for parent in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", module)
    monkeypatch.setattr(imagic, "load_pipeline", lambda name: pipe)
    monkeypatch.setitem(stage4_inference.DEFAULTS, "tiny", stage4_inference.DEFAULTS["tiny"] | {"steps": 2})
    few = {"embedding_steps": 1, "unet_steps": 1}
    imagic.run_edit(pipe, image, text, folder=tmp_path / "edit", **few)
    hub = SimpleNamespace(from_pretrained=lambda name: name)
    names = {"on_gpu": True, "imagic": imagic, "CLIP": measures.CLIP, "Path": Path, "photo_etas": (0.0, 0.7)}
    names |= {"CLIPModel": hub, "CLIPProcessor": hub, "clip_scores": clip_scores}
    exec(source, names | {"edit_folder": str(tmp_path / "edit")})
    assert [line.split() for line in capsys.readouterr().out.splitlines()][-2:] == [
        ["0.0", "0.312", "0.500"],
        ["0.7", "0.312", "0.500"],
    ]
    assert [name for name, *_ in seen] == [measures.CLIP, "alex"] * 2
    (_, [picture], asked), (_, x, near) = seen[:2]
    assert isinstance(picture, Image.Image) and asked == text
    assert x.shape == near.shape and x.min() < 0  # from -1 to 1
    for missing in ({"on_gpu": False}, {"edit_folder": str(tmp_path / "nowhere")}):
        exec(source, untouched := names | {"edit_folder": str(tmp_path / "edit")} | missing)
        assert "own" not in untouched
