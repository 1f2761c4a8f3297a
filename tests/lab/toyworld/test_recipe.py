"""Training the embedded model, first the shared loop, then the whole recipe in miniature."""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

import imagic_lib as imagic
from imagic_lab.toyworld import Scene, clip, dataset, load_reader, reader, recipe, training, unet, vae
from imagic_lab.toyworld.recipe import share_of
from imagic_lib.files import load_tensors
from imagic_lib.training import checkpoint

# ------------------------------------------------------------------------------------------- the shared loop


class Killed(BaseException):
    pass


@pytest.fixture
def saved_often(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr(checkpoint, "SAVE_AFTER", 0.0)
    monkeypatch.setattr(checkpoint, "SAVING_SHARE", math.inf)


def kill():
    raise Killed


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def brighten(folder, steps=60, at=None, stop=kill, seed=0, about=None):
    """Train a network like ours, with convolutions in channels_last and dropout, to brighten pictures. `stop` is called
    in step `at`."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Dropout(0.2), torch.nn.Conv2d(8, 3, 3, padding=1)
    model = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def loss(step, generator):
        if step == at:
            stop()
        x = torch.randn(4, 3, 8, 8, generator=generator)
        return (model(x) - (2 * x + 1)).square().mean()

    how = {"steps": steps, "lr": 0.01, "warmup": 5, "ema": 0.9, "seed": seed, "about": about}
    curve = training.train_network("brighten", model, loss, folder, **how)
    return model.state_dict(), curve


@pytest.mark.parametrize(("stop", "error"), [(kill, Killed), (press_ctrl_c, KeyboardInterrupt)])
def test_a_stopped_training_continues_with_the_same_bits(tmp_path, saved_often, stop, error):
    whole, curve = brighten(tmp_path / "a")
    for step in (30, 55):
        with pytest.raises(error):
            brighten(tmp_path / "b", at=step, stop=stop)
    resumed, again = brighten(tmp_path / "b")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole) and curve["loss"] == again["loss"]
    assert curve["step"] == again["step"] == [50, 60] and curve["loss"][-1] < 0.5 * curve["loss"][0]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    brighten(tmp_path)
    for other, said in (
        ({"steps": 70}, "of a training of 60 steps, not 70: ask for 60"),
        ({"seed": 1}, "another seed"),
    ):
        with pytest.raises(ValueError, match=f"{said}.*delete this file"):
            brighten(tmp_path, **other)


def test_a_checkpoint_for_other_latents_is_refused(tmp_path):
    """The VAE was trained anew, so that the UNet's latents are other ones."""
    brighten(tmp_path, steps=5, about={"latents": "one VAE's"})
    with pytest.raises(ValueError, match=r"is from a training with latents .*another VAE's"):
        brighten(tmp_path, steps=5, about={"latents": "another VAE's"})


def test_the_unet_is_trained_on_the_latents_that_it_names(monkeypatch):
    asked = []
    monkeypatch.setattr(unet, "train_network", lambda *_, about, **__: asked.append(about["latents"]) or {})
    for value in (0.0, 0.0, 1.0):
        latents = torch.full((2, 4, 16, 16), value), torch.ones(2, 4, 16, 16)
        unet.train_unet(latents, [], None, torch.nn.Linear(1, 1), Path("unused"), start_from=SmallUNet())
    assert asked[0] == asked[1] != asked[2]


class SmallUNet(torch.nn.Linear):
    """What `train_unet` asks a UNet for before its training."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__(1, 1)

    def set_attn_processor(self, processor):
        pass


def test_a_loss_that_is_not_finite_stops_at_once(tmp_path):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match=r"x diverged at step 1 \(loss nan"):
        training.train_network("x", model, lambda s, g: model.weight.sum() * float("nan"), tmp_path, steps=3, lr=0.1)


# ------------------------------------------------------------------------------------------- latents on disk


def test_latents_are_reused_only_for_the_same_vae_and_the_same_drawings(tmp_path):
    torch.manual_seed(0)
    one, other = vae.build_vae().eval(), vae.build_vae().eval()
    drawings = np.stack([dataset.pixels(Scene.sample(seed)) for seed in range(3)])
    path = tmp_path / "latents.safetensors"

    def means_of(model, pictures):
        found, expected = recipe.cached_latents(model, pictures, path), unet.encode_all(model, pictures)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        return path.stat().st_mtime_ns

    written = means_of(one, drawings)
    assert means_of(one, drawings) == written
    for model, pictures in ((other, drawings), (other, drawings[:2]), (other, drawings[::-1][:2])):
        assert written != (written := means_of(model, pictures))


# -------------------------------------------------------------------------------------------- the networks


@torch.no_grad()
def test_stretching_the_latents_changes_no_reconstruction():
    torch.manual_seed(0)
    model = vae.build_vae().eval()
    pictures = dataset.to_batch(np.stack([dataset.pixels(Scene.sample(s)) for s in range(4)]))
    before, spread = vae.reconstruct(model, pictures), model.encode(pictures).latent_dist.std.mean()
    vae.stretch_latents(model, pictures)
    torch.testing.assert_close(vae.reconstruct(model, pictures), before, rtol=1e-3, atol=1e-4)
    latents = model.encode(pictures).latent_dist
    assert (vae.SCALING_FACTOR * latents.mode()).std() == pytest.approx(1.0, rel=1e-3)
    assert latents.std.mean() != pytest.approx(spread)


def test_psnr_is_20_log10_of_one_over_the_error():
    a = torch.zeros(1, 3, 4, 4)
    assert vae.psnr_per_picture(a, a + 0.2).item() == pytest.approx(20.0)  # 0.2 of [-1, 1] is a tenth of the range


def test_the_clip_towers_ignore_what_comes_after_the_end_mark():
    """Training relies on this, because it reads only as far as the longest caption."""
    torch.manual_seed(0)
    model = clip.build_clip(300).eval()
    ids = torch.tensor([[298, 5, 6, 299, 299, 299], [298, 7, 299, 299, 299, 299]])
    both = [model.get_text_features(input_ids=part) for part in (ids, ids[:, :4])]
    long, short = (getattr(part, "pooler_output", part) for part in both)
    torch.testing.assert_close(long, short)


# -------------------------------------------------------------------------------------------- the recipe


@pytest.fixture(scope="module")
def quick():
    """Small batches, and four steps for each network. The bound of the reader comes from its first guesses: to fit them
    is the work of other tests."""
    with pytest.MonkeyPatch.context() as patch:
        for network in (vae, unet):
            patch.setattr(network, "BATCH", 2)
        patch.setattr(clip, "BATCH", 8)
        patch.setattr(reader, "BATCH", 12)
        patch.setattr(reader, "fit_scene", lambda picture, starts: starts[0])
        patch.setattr(recipe, "share_of", lambda full, scale, least=4: least)
        yield


@pytest.fixture(scope="module")
def made(quick, tmp_path_factory):
    """The whole recipe with 32 scenes and 4 steps for each network, started twice."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("out")
    recipe.make(runs, out, scale=0.0)
    written = {path: path.stat().st_mtime_ns for path in runs.rglob("*.*") if path.parent.name != "tokenizer"}
    recipe.make(runs, out, scale=0.0)
    assert written == {path: path.stat().st_mtime_ns for path in written}, "a second run repeats no work"
    return runs, out


def test_the_recipe_gives_a_model_that_diffusers_opens_in_half_precision(made):
    pipe = StableDiffusionPipeline.from_pretrained(made[1] / "tiny-sd")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a brown dog", num_inference_steps=2).images[0].size == (128, 128)
    weights, _ = load_tensors(made[1] / "tiny-sd" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    words = json.loads((made[1] / "tiny-sd" / "vocabulary.json").read_text(encoding="utf-8"))
    assert {"dog", "jumping", "meadow"} <= set(words)


def test_the_text_encoder_is_the_text_tower_of_the_mini_clip(made):
    pipe = imagic.load_pipeline(made[1] / "tiny-sd", device="cpu")
    model = CLIPModel.from_pretrained(made[1] / "tiny-clip", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(made[1] / "tiny-clip")
    ids = clip.tokenize(tokenizer, ["a brown dog jumping on the grass"])
    ours = imagic.encode_text(pipe, "a brown dog jumping on the grass")
    torch.testing.assert_close(ours, model.text_model(ids).last_hidden_state, rtol=1e-3, atol=1e-3)


def test_the_recipe_writes_curves_and_a_reader(made):
    _, out = made
    history = json.loads((out / "tiny-sd" / "training.json").read_text())
    assert list(history) == ["vae", "clip", "unet", "reader"]
    assert all(h["step"] == [4] and h["loss"][0] > 0 for h in history.values())
    found = load_reader(out / "reader" / "reader.safetensors")
    assert 0 < found.bound < 1
    assert list(found.scene(Scene.sample(0).render()).attributes) == ["subject", "colour", "pose", "place"]


def test_a_model_can_be_trained_further(made, tmp_path):
    """Its VAE and UNet start from their weights; its mini-CLIP, tokenizer and reader stay."""
    _, start = made
    recipe.make(tmp_path / "runs", tmp_path / "out", start=start, only=("vae", "unet"), scale=0.0)
    old, new = (imagic.load_pipeline(folder / "tiny-sd", device="cpu") for folder in (start, tmp_path / "out"))
    for part, moved in (("unet", True), ("vae", True), ("text_encoder", False)):
        before, after = getattr(old, part).state_dict(), getattr(new, part).state_dict()
        far = max((after[k] - before[k]).abs().max().item() for k in before)
        near = {"unet": 0.05, "vae": 2.0}.get(part, 0.0)  # the VAE's latents are stretched again
        assert (far > 0) == moved and far <= near, (part, far)
    assert list(json.loads((tmp_path / "out" / "tiny-sd" / "training.json").read_text())) == ["vae", "unet"]
    kept = [(folder / "reader" / "reader.safetensors").read_bytes() for folder in (start, tmp_path / "out")]
    assert kept[0] == kept[1]
    texts = [path.read_text(encoding="utf-8") for path in (tmp_path / "out").rglob("*.json")]
    assert not any(str(start) in text for text in texts)  # no path of the computer that trained it


def test_a_trial_takes_a_share_of_all_steps_but_ten_at_least():
    assert [share_of(1000, scale) for scale in (1.0, 0.5, 0.0)] == [1000, 500, 10]


def test_without_a_start_all_networks_are_trained(tmp_path):
    with pytest.raises(ValueError, match="leave out --only, or give --start"):
        recipe.make(tmp_path, tmp_path, only=("unet",))
