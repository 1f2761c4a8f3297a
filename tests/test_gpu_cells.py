"""The cells of notebooks 07, 10 and 11 for a GPU or Colab alone: their code runs here, with stand-ins for both."""

import json
import re
import sys
import threading
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
from imagic_lab.numbers import photo
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


SD = "CompVis/stable-diffusion-v1-4"


def cell_of_07(part: str) -> str:
    [found] = [c.source for c in nbformat.read(FOLDER / "07_stable_diffusion.ipynb", 4).cells if part in c.source]
    return found


@pytest.fixture
def colab(monkeypatch):
    """Notebook 07's cell for Colab, run with these settings; returns what it leaves behind, and what was mounted."""
    [source], mounted = gpu_cells("07_stable_diffusion.ipynb"), []
    module = ModuleType("google.colab")
    module.files = SimpleNamespace(upload=lambda: {"my photo.jpg": b"..."})
    module.drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", module)

    def run(model=SD, upload=False, use_drive=False) -> str:
        exec(source, names := {"model": model, "upload": upload, "use_drive": use_drive, "my_photo": "old.jpg"})
        return names["my_photo"]

    return SimpleNamespace(run=run, mounted=mounted, files=module.files)


def test_an_uploaded_photo_becomes_the_input(colab):
    assert colab.run(upload=True) == "my photo.jpg"
    assert colab.run() == colab.run("tiny", upload=True) == "old.jpg"


def test_an_upload_that_is_cancelled_leaves_the_photo(colab):
    colab.files.upload = dict
    assert colab.run(upload=True) == "old.jpg"


def test_drive_is_mounted_only_if_asked_for(colab):
    colab.run()
    colab.run("tiny", use_drive=True)
    assert colab.mounted == []
    colab.run(use_drive=True)
    assert colab.mounted == ["/content/drive"]


def test_without_a_network_a_gpu_alone_asks_for_no_large_model(monkeypatch, capsys):
    """Else the check of notebook 07 would fetch 5.5 GB on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    for offline, model in ((True, "tiny"), (False, SD)):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        exec(cell_of_07("import HF_HUB_OFFLINE"), names := {})
        assert names["model"] == model and ("embedded model" in capsys.readouterr().out) == offline


def test_a_hub_that_does_not_answer_leaves_the_embedded_model_and_nothing_is_loaded_twice(pipe, capsys):
    """Run all goes on with a drawing, and the same cell, run again, keeps the pipeline."""
    asked = []

    def load(model):
        asked.append(model)
        if model == SD:
            raise FileNotFoundError("the hub did not provide it")
        return pipe

    library = SimpleNamespace(load_pipeline=load, load_image=imagic.load_image, DATA=imagic.DATA)
    names = {"imagic": library, "model": SD, "my_photo": "", "my_text": "", "Path": Path}
    names |= {"show": lambda *_: None, "to_picture": lambda image: image}
    for _ in range(2):
        exec(cell_of_07('"pipe" not in globals()'), names)
    assert asked == [SD, "tiny"] and names["photo"].name == "cat-standing.png" and not names["large"]
    assert "the hub did not provide it" in capsys.readouterr().out


def test_a_training_that_runs_out_of_memory_goes_on_with_lora(tmp_path, capsys):
    tried = []

    def run_edit(pipe, image, text, *, method, folder, run):
        tried.append((method, folder.name, run.strategy))
        if method == "full":
            raise MemoryError("the GPU is out of memory")
        return "an edit"

    ways = [memory.Way("full", Strategy(optimizer="Adam in backward")), memory.Way("lora", Strategy(torch.float16))]
    names = {"imagic": SimpleNamespace(Run=imagic.Run, run_edit=run_edit), "large": True, "use_drive": False}
    names |= {"photo": Path("house.jpg"), "text": "a house / in snow", "way": ways[0], "Path": Path, "re": re}
    names |= {"here": SimpleNamespace(fitting=lambda method: ways[1:]), "pipe": None, "image": None}
    exec(cell_of_07("except MemoryError"), names)
    assert names["edit"] == "an edit" and "out of memory" in capsys.readouterr().out
    assert tried == [(way.method, f"house-a-house-in-snow-{way.method}", way.strategy) for way in ways]


def test_what_notebook_07_keeps_fills_the_place_of_the_photo(tmp_path, capsys):
    folder, picture = tmp_path / "house-full", Image.new("RGB", (8, 8))
    folder.mkdir()
    picture.save(folder / "input.png")
    drawn = {(eta, scale, seed): picture for eta in (0.0, 1.0) for scale in (0.5, 1.0) for seed in (0, 1)}
    names = {"place": tmp_path, "name": "house", "way": SimpleNamespace(method="full"), "drawn": drawn, "seeds": (0, 1)}
    names |= {"first": SimpleNamespace(seconds=60.0), "second": SimpleNamespace(seconds=120.0), "json": json}
    names |= {"model": SD, "gpu": "T4", "large": False, "torch": torch}
    exec(cell_of_07('"photo.json").write_text'), names)
    assert "3 minutes" in capsys.readouterr().out
    made = json.loads((folder / photo.FACTS).read_text())
    assert photo.sheet([folder / name for name in made["pictures"]]).size == (776, 384)
    (books := tmp_path / "notebooks").mkdir()
    place = "Before. <!-- photo -->\nnothing\n<!-- /photo --> After."
    (tmp_path / "README.md").write_text(place)
    for name, text in (("07.ipynb", place), ("08.ipynb", "no place")):
        nbformat.write(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), tmp_path / "notebooks" / name
        )
    for _ in range(2):  # filled again, a place holds the last photo alone
        assert photo.fill(tmp_path, "a house in the snow", made) == ["README.md", "07.ipynb"]
    text = (tmp_path / "README.md").read_text()
    assert "nothing" not in text and text.count("](data/photo.jpg)") == 1 and "3 minutes on one T4" in text
    [cell] = nbformat.read(books / "07.ipynb", 4).cells
    assert "](../data/photo.jpg)" in cell.source and cell.source.endswith("After.")


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
    desk = studio.studio(large, place=tmp_path / "edits")
    desk.hear(desk, {"do": "file", "name": "photo.jpg", "start": 0, "size": photo.stat().st_size}, [photo.read_bytes()])
    desk.hear(desk, {"do": "text", "text": "a photo of a house in the snow"}, [])
    assert not desk.now["picture"]["square"] and desk.now["chips"] == {}
    ways = [Strategy(optimizer="Adam in backward", checkpointing=True), Strategy()]
    monkeypatch.setattr(studio_state, "best_way", lambda pipe, method=None: memory.Way("full", ways[0]))
    studio_state.prepare(desk.state)

    class Button(threading.Event):
        def is_set(self) -> bool:
            return len(desk.state.histories.get("unet", imagic.History()).loss) == 1

    desk.state.stopping = Button()
    with pytest.raises(KeyboardInterrupt):
        studio_state.run_all(desk.state)
    ways.reverse()
    later = studio.studio(large, place=tmp_path / "edits")
    studio.ANSWERS["open"][0](later, desk.state.folder.name)
    later.hear(later, {"do": "go_on"}, [])
    if (thread := later.state.thread) is not None:
        thread.join(600)
    assert len(later.state.edit.unet_history.loss) == 2 and len(later.state.pictures) == 4
    assert drawn and all(how["scheduler"] == "dpm++" and how["half"] for how in drawn)
    later.hear(later, {"do": "example", "name": "raccoon-photo.jpg"}, [])
    assert later.now["text"] == "a photo of a raccoon in the snow"


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
