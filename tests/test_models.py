"""Either the right model is loaded, or one clear sentence says why not."""

import copy
import importlib
import json
import shutil
from contextlib import suppress

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNet2DConditionModel

import imagic_lib as imagic
from imagic_lab.measures import by_clip
from imagic_lab.toyworld import Scene, captions, edits
from imagic_lib import models
from imagic_lib.unets import with_unet


def test_a_folder_loads_by_path_in_float32(model_folder, pipe):
    loaded = imagic.load_pipeline(model_folder, device="cpu")
    assert isinstance(loaded, StableDiffusionPipeline) and loaded.unet.dtype == torch.float32
    for name, value in pipe.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], value), name


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_corrupt_or_missing_weights_are_one_clear_sentence(model_folder, tmp_path, part):
    broken = tmp_path / "model"
    shutil.copytree(model_folder, broken)
    (weights,) = (broken / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"model is damaged or incomplete") as error:
        imagic.load_pipeline(broken)
    assert "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(ValueError, match="damaged or incomplete"):
        imagic.load_pipeline(broken)


def test_weights_come_from_safetensors_only(model_folder, tmp_path):
    """A pickle can run code; it must not even be opened."""
    pickled = tmp_path / "model"
    shutil.copytree(model_folder, pickled)
    (weights,) = (pickled / "unet").glob("*.safetensors")
    torch.save({"conv_in.weight": torch.zeros(1)}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"each part needs its \.safetensors, which can run no code"):
        imagic.load_pipeline(pickled)


@pytest.mark.parametrize(
    ("key", "entry", "file"),
    [
        ("_class_name", ["pipeline", "Evil"], "pipeline.py"),
        ("unet", ["evil", "Evil"], "unet/evil.py"),
        ("tokenizer", ["evil", "Evil"], "tokenizer/evil.py"),
    ],
)
def test_no_code_from_a_models_folder_is_run(model_folder, tmp_path, key, entry, file):
    folder, ran = shutil.copytree(model_folder, tmp_path / "model"), tmp_path / "ran"
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {key: entry}))
    (folder / file).write_text(f"open({str(ran)!r}, 'w')\nclass Evil:\n    pass\n")
    with suppress(ValueError):  # one sentence, or the folder's weights in our own classes
        imagic.load_pipeline(folder, "cpu")
    assert not ran.exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a diffusers model.* has no model_index\.json"):
        imagic.load_pipeline(tmp_path)


def test_a_hub_id_without_network_says_what_to_do(monkeypatch):
    def no_network(*args, **settings):
        raise OSError("couldn't connect\nto the hub")

    monkeypatch.setattr(models.StableDiffusionPipeline, "from_pretrained", no_network)
    with pytest.raises(FileNotFoundError) as error:
        imagic.load_pipeline("CompVis/stable-diffusion-v1-4")
    sentence = str(error.value)
    assert all(word in sentence for word in ("5 GB", "hf download", '"tiny" works now')) and "\n" not in sentence


def test_a_hub_id_is_asked_for_safetensors_by_its_own_name(monkeypatch, pipe):
    asked = []
    monkeypatch.setattr(
        models.StableDiffusionPipeline, "from_pretrained", lambda name, **kw: asked.append((name, kw)) or pipe
    )
    imagic.load_pipeline("CompVis/stable-diffusion-v1-4", device="cpu")
    imagic.load_pipeline("CompVis/stable-diffusion-v1-4", device="cpu", safety_checker=False)
    assert asked[0] == ("CompVis/stable-diffusion-v1-4", {"use_safetensors": True, "variant": None})
    assert asked[1][1]["safety_checker"] is None


def test_without_the_embedded_model_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "TINY", tmp_path)
    with pytest.raises(ValueError, match=r"has no model_index\.json: clone again, and install with"):
        imagic.load_pipeline("tiny")


# ------------------------------------------------------------------- the embedded model, as shipped


@pytest.fixture(scope="module")
def tiny():
    return imagic.load_pipeline("tiny", device="cpu")


def test_tiny_stays_on_the_cpu_where_there_is_a_gpu(monkeypatch):
    """The notebooks mix its tensors with noise that they draw on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert imagic.load_pipeline("tiny").device.type == "cpu"


def test_the_models_list_has_all_words_of_its_captions_and_no_others():
    assert models.vocabulary() == captions.caption_words()


def test_tiny_is_small_and_half_precision_safetensors():
    files = [p for p in models.TINY.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 40e6
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    half = StableDiffusionPipeline.from_pretrained(models.TINY, torch_dtype=torch.float16)
    assert half.unet.dtype == torch.float16


def test_tiny_has_the_shape_and_schedule_of_stable_diffusion(tiny):
    assert tiny.vae_scale_factor == 8 and tiny.vae.config.latent_channels == 4
    assert tiny.vae.config.scaling_factor == 0.18215 and imagic.pictures.picture_size(tiny) == 128
    schedule = tiny.scheduler.config
    assert (schedule.beta_schedule, schedule.beta_start, schedule.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert schedule.num_train_timesteps == 1000 and schedule.prediction_type == "epsilon"
    assert models.family(tiny) == "tiny"


@pytest.fixture(scope="module")
def drawings(tiny):
    """Drawings that the model was not trained on, and their latents."""
    pictures = [imagic.pictures.to_tensor(Scene.sample(1_000_000 + seed).render()) for seed in range(16)]
    return torch.cat(pictures), imagic.encode_image(tiny, torch.cat(pictures))


def test_tiny_latents_have_unit_deviation_after_scaling(drawings):
    assert drawings[1].std() == pytest.approx(1.0, abs=0.1)


def test_code_that_hard_codes_8_and_0_18215_runs_on_tiny(tiny):
    z = tiny.vae.encode(torch.zeros(1, 3, 128, 128)).latent_dist.mode() * 0.18215
    assert z.shape == (1, 4, 128 // 8, 128 // 8)
    assert tiny.vae.decode(z / 0.18215).sample.shape == (1, 3, 128, 128)


def test_diffusers_own_pipelines_run_on_tiny_unmodified(tiny):
    plain = StableDiffusionPipeline.from_pretrained(models.TINY)
    plain.set_progress_bar_config(disable=True)
    picture = plain("a red car", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert picture.size == (128, 128)
    repaint = StableDiffusionImg2ImgPipeline(**plain.components, requires_safety_checker=False)
    repaint.set_progress_bar_config(disable=True)
    other = repaint("a red car", image=picture, strength=0.5, num_inference_steps=4).images[0]
    assert other.size == (128, 128)


def test_the_vae_keeps_held_back_drawings(tiny, drawings):
    """The model card's number, on a few drawings. Broken weights or a wrong scaling would be far below."""
    drawn, latents = (tensor[:8] for tensor in drawings)
    rebuilt = imagic.decode_latents(tiny, latents)
    assert -10 * torch.log10(((rebuilt - drawn) / 2).square().mean()) > 27


SHAPES = {  # what sets other Stable Diffusions apart, in a small width
    "SD 2: linear projections, v-prediction": ({"use_linear_projection": True}, "v_prediction"),
    "BK-SDM small: no mid block": ({"mid_block_type": None}, "epsilon"),
    "SD 1.4: attention at the top level": (
        {
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        },
        "epsilon",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_other_shapes_of_stable_diffusion_run_all_stages(pipe, image, name, tmp_path):
    changes, prediction = SHAPES[name]
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, **changes}).eval()
    other = with_unet(pipe, unet)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction)
    other.save_pretrained(tmp_path)
    loaded = imagic.load_pipeline(tmp_path, device="cpu")
    for method in ("full", "lora"):
        edit = imagic.run_edit(loaded, image, "a cat", embedding_steps=1, unet_steps=1, method=method)
        assert len(edit.pictures([0.0, 1.5], [0], steps=2)[0]) == 2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_pipeline_of_another_prediction_type_runs_all_stages(pipe, image, prediction):
    """The configurations of SD 1.x and of SD 2: nothing is hard-coded."""
    other = with_unet(pipe, copy.deepcopy(pipe.unet))
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction)
    edit = imagic.run_edit(other, image, "a cat", embedding_steps=1, unet_steps=1)
    assert len(edit.pictures([0.0, 1.5], [0], steps=2)[0]) == 2


# --------------------------------------------------------------------------- functions that a model names


@pytest.fixture
def named(monkeypatch, tmp_path):
    """The text of imagic.json in a model's folder -> the function that `plugin_of` finds."""
    monkeypatch.setattr(models, "name_of", lambda pipe: str(tmp_path))

    def find(text: str, *default):
        (tmp_path / "imagic.json").write_text(text)
        return models.plugin_of(None, "measure", *default)

    return find


def test_the_embedded_model_names_the_measure_for_drawings(tiny):
    assert models.plugin_of(tiny, "measure") is edits.read_by
    assert models.plugin_of(tiny, "no_such_name") is None


def test_a_model_without_names_has_no_functions(pipe, named):
    assert models.plugin_of(pipe, "measure") is None
    assert named("{}") is None and named('{"measure": null}') is None


def test_a_model_in_a_folder_can_name_a_function_of_the_lab(named):
    assert named('{"measure": "imagic_lab.toyworld.edits:read_by"}') is edits.read_by
    other = "imagic_lab.measures:by_clip"
    assert named('{"measure": "imagic_lab.toyworld.edits:read_by"}', other) is edits.read_by
    assert named("{}", other) is named('{"measure": "os:system"}', other) is by_clip, "the default"


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"measure": "imagic_lab.measures:no_such_name"}'])
def test_a_damaged_list_of_functions_is_one_clear_sentence(named, text):
    with pytest.raises(ValueError, match=r"imagic\.json"):
        named(text)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "subprocess:run",
        "evil:measure",
        "imagic_lab:measure",
        "imagic_lab_evil.module:measure",
        "evil.imagic_lab.module:measure",
        "imagic_lib.edit:run_edit",
        ".imagic_lab.toyworld.edits:read_by",
        "imagic_lab..toyworld:read_by",
        "imagic_lab.toyworld.edits\n:read_by",
        "imagic_lab/toyworld/edits:read_by",
        "",
    ],
)
def test_a_foreign_name_in_a_model_folder_is_not_imported(named, monkeypatch, tmp_path, name):
    """A model folder can come from anyone, and importing a module runs it."""
    for evil in ("evil.py", "imagic_lab_evil/module.py", "evil/imagic_lab/module.py"):
        (tmp_path / evil).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / evil).write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importlib, "import_module", lambda module: pytest.fail(f"{module} was imported"))
    assert named(json.dumps({"measure": name})) is None


# ------------------------------------------------------------------------------------ texts and settings


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the text is empty"),
        (" \n", "the text is empty"),
        (None, "the text is empty"),
        ("a" * 1_000_000, "the text has 1000000 characters"),  # the tokenizer would take 83 s
        (
            "a \udcff dog",
            "bytes that are not letters: write it in UTF-8",
        ),  # what Python makes of a byte that is not UTF-8
    ],
)
def test_a_text_that_says_nothing_is_one_sentence(pipe, monkeypatch, text, sentence):
    other = with_unet(pipe, pipe.unet)
    other.tokenizer = None  # not even asked
    with pytest.raises(ValueError, match=sentence) as error:
        imagic.encode_text(other, text)
    assert len(str(error.value)) < 200


def test_warnings_of_a_text_point_at_the_line_that_called(pipe):
    with pytest.warns(UserWarning) as caught:
        imagic.encode_text(pipe, "a zebra " + "and a dog " * 40)
    assert len(caught) == 2 and {warning.filename for warning in caught} == {__file__}


DEFAULTS = {"tiny": {"steps": 40, "lr": 0.1, "decay": 0.5}}


@pytest.mark.parametrize(
    "given",
    [
        *({"steps": value} for value in (-1, 2.5, "2")),
        *({"lr": value} for value in (0.0, float("nan"), float("inf"))),
        {"batch": 0},
        {"decay": 1.5},
        {"steps": 0, "guidance_scale": 3.0},  # a training may have no steps, a picture not
        {"guidance_scale": -1.0},
    ],
)
def test_an_invalid_setting_is_refused_by_its_name(pipe, given):
    with pytest.raises(ValueError, match=f"^{next(iter(given))} is "):
        models.settings_for(pipe, DEFAULTS, **given)


def test_settings_are_the_defaults_except_those_that_are_given(pipe):
    assert models.settings_for(pipe, DEFAULTS, steps=None, lr=None) == DEFAULTS["tiny"]
    found = models.settings_for(pipe, DEFAULTS, steps=np.int64(0), lr=2, decay=None)
    assert found == {"steps": 0, "lr": 2, "decay": 0.5} and type(found["steps"]) is int


@pytest.mark.parametrize("text", ["a cat", "a brown dog jumping on the grass", "a dog " * 60])
@pytest.mark.filterwarnings("ignore:the text has")
def test_a_text_is_cut_and_padded_as_the_tokenizer_does_it(pipe, text):
    expected = pipe.encode_prompt(text, "cpu", 1, False)[0]
    assert torch.equal(imagic.encode_text(pipe, text), expected)


def test_no_text_leaves_a_state_in_the_tokenizer(model_folder):
    """A tokenizer keeps the padding of its last call: two threads that pad differently get texts of wrong lengths."""
    pipe = imagic.load_pipeline(model_folder, "cpu")
    imagic.generate(pipe, imagic.encode_text(pipe, "a cat"), steps=1, guidance_scale=2)
    assert pipe.tokenizer.backend_tokenizer.padding is None and pipe.tokenizer.backend_tokenizer.truncation is None
