"""Making the embedded model: the shared loop, and the whole recipe in miniature."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

import imagic_lib as imagic
from imagic_lab.toyworld import Scene, clip, dataset, recipe, training, unet, vae
from imagic_lab.toyworld.reader import load_reader
from imagic_lib.training.checkpoints import load_tensors


class Killed(BaseException):
    pass


def fit(folder, steps=120, die_at=None, ema=0.9, seed=0):
    """Learn to brighten pictures, by a network like ours: convolutions in channels_last, and dropout.
    `die_at`: like a kill, in the middle of that step."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Dropout(0.2), torch.nn.Conv2d(8, 3, 3, padding=1)
    model = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def loss(step, generator):
        if step == die_at:
            raise Killed
        x = torch.randn(4, 3, 8, 8, generator=generator)
        return (model(x) - (2 * x + 1)).square().mean()

    history = training.train("fit", model, loss, folder, steps=steps, lr=0.01, warmup=5, ema=ema, seed=seed)
    return model.state_dict(), history


def test_a_killed_training_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    whole, history = fit(tmp_path / "a")
    for step in (70, 110):
        with pytest.raises(Killed):
            fit(tmp_path / "b", die_at=step)
    resumed, again = fit(tmp_path / "b")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole) and history["loss"] == again["loss"]
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def test_a_run_may_be_made_longer_as_long_as_its_rate_is_level(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    whole, history = fit(tmp_path / "a", steps=200)
    with pytest.raises(Killed):
        fit(tmp_path / "b", steps=120, die_at=70)  # the rate of 120 steps begins to fall at 84
    longer, again = fit(tmp_path / "b", steps=200)
    assert all(torch.equal(whole[k], longer[k]) for k in whole) and history["loss"] == again["loss"]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    fit(tmp_path)
    for other in ({"steps": 130}, {"seed": 1}):
        with pytest.raises(ValueError, match="continue it with the same settings, or delete the file"):
            fit(tmp_path, **other)


def test_a_loss_that_is_no_number_stops_at_once(tmp_path):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0"):
        training.train("x", model, lambda s, g: model.weight.sum() * float("nan"), tmp_path, steps=3, lr=0.1)


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [training.learning_rate(s, 100, 1.0, 10) for s in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 == rates[10] and rates[100] == pytest.approx(0)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_rendered_parts_are_reused_and_equal_the_drawings(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "PART", 3)
    scenes = dataset.training_scenes(5)
    drawn = dataset.render(scenes, tmp_path)
    assert drawn.shape == (5, 128, 128, 3) and np.array_equal(drawn[4], np.asarray(scenes[4].render()))
    first = min(tmp_path.iterdir())
    np.save(first.open("wb"), np.zeros((3, 128, 128, 3), np.uint8))
    assert not dataset.render(scenes, tmp_path)[:3].any() and len(list(tmp_path.iterdir())) == 2


@torch.no_grad()
def test_stretching_the_latents_changes_no_reconstruction():
    torch.manual_seed(0)
    model = vae.build().eval()
    pictures = vae.to_tensor(np.stack([dataset.pixels(Scene.sample(s)) for s in range(4)]))
    before, spread = vae.reconstruct(model, pictures), model.encode(pictures).latent_dist.std.mean()
    vae.stretch_latents(model, pictures)
    torch.testing.assert_close(vae.reconstruct(model, pictures), before, rtol=1e-3, atol=1e-4)
    latents = model.encode(pictures).latent_dist
    assert (vae.SCALING_FACTOR * latents.mode()).std() == pytest.approx(1.0, rel=1e-3)
    assert latents.std.mean() != pytest.approx(spread)


def test_psnr_is_20_log10_of_one_over_the_error():
    a = torch.zeros(1, 3, 4, 4)
    assert vae.psnr(a, a + 0.2).item() == pytest.approx(20.0)  # 0.2 of [-1, 1] is a tenth of the range


def test_the_clip_towers_ignore_what_comes_after_the_end_mark():
    """So that training may read only as far as the longest caption."""
    torch.manual_seed(0)
    model = clip.build(300).eval()
    ids = torch.tensor([[298, 5, 6, 299, 299, 299], [298, 7, 299, 299, 299, 299]])
    both = [model.get_text_features(input_ids=part) for part in (ids, ids[:, :4])]
    long, short = (getattr(part, "pooler_output", part) for part in both)
    torch.testing.assert_close(long, short)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The whole recipe: 64 scenes and 10 steps a network, stopped once on the way."""
    patch = pytest.MonkeyPatch()
    patch.setattr(unet, "BATCH", 4)
    patch.setattr(clip, "BATCH", 8)
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("out")
    recipe.make(runs, out, scale=0.0)
    stamp = (runs / "unet.safetensors").stat().st_mtime_ns
    recipe.make(runs, out, scale=0.0)  # everything is finished: nothing is trained again
    patch.undo()
    assert (runs / "unet.safetensors").stat().st_mtime_ns == stamp
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


def test_the_recipe_writes_curves_previews_and_a_reader(made):
    runs, out = made
    history = json.loads((out / "tiny-sd" / "training.json").read_text())
    assert list(history) == ["vae", "clip", "unet", "reader"]
    assert all(h["step"] == [10] and h["loss"][0] > 0 for h in history.values())
    assert (runs / "vae-000010.png").exists() and (runs / "unet-000010.png").exists()
    reader = load_reader(out / "reader" / "reader.safetensors")
    assert 0 < reader.bound < 1
    assert list(reader.scene(Scene.sample(0).render()).attributes) == ["subject", "colour", "pose", "place"]


def test_a_model_can_be_trained_on(made, tmp_path, monkeypatch):
    """Its VAE and UNet go on from their weights, its mini-CLIP and tokenizer stay."""
    monkeypatch.setattr(unet, "BATCH", 4)
    runs, start = made
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "scenes").symlink_to(runs / "scenes")
    only = ("vae", "unet", "reader")
    recipe.make(tmp_path / "runs", tmp_path / "out", start=start, only=only, scale=0.0)
    old, new = (imagic.load_pipeline(folder / "tiny-sd", device="cpu") for folder in (start, tmp_path / "out"))
    for part, moved in (("unet", True), ("vae", True), ("text_encoder", False)):
        before, after = getattr(old, part).state_dict(), getattr(new, part).state_dict()
        far = max((after[k] - before[k]).abs().max().item() for k in before)
        near = {"unet": 0.05, "vae": 2.0}.get(part, 0.0)  # the VAE's latents are stretched anew
        assert (far > 0) == moved and far <= near, (part, far)
    assert "clip" not in json.loads((tmp_path / "out" / "tiny-sd" / "training.json").read_text())
    texts = [path.read_text(encoding="utf-8") for path in (tmp_path / "out").rglob("*.json")]
    assert not any(str(start) in text for text in texts)  # no folder of the maker's stands in what is handed on


def test_without_a_start_all_networks_are_trained(tmp_path):
    with pytest.raises(ValueError, match="leave out --only, or give --start"):
        recipe.make(tmp_path, tmp_path, only=("unet",))
