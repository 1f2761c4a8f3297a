"""A new word from a few pictures: what learns and what stays, the prior, stops, files, and bad input."""

import copy
import shutil
import signal

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline

import imagic_lib as imagic
from imagic_lab.experiments import personalization
from imagic_lab.experiments.personalization import Prior, class_pictures, personalize
from imagic_lab.toyworld import Scene
from imagic_lib import LoRA, Run
from imagic_lib.diffusion import Probe, forward_process
from imagic_lib.folder import LORA_FILE
from imagic_lib.models import encode_text
from imagic_lib.storage import save_lora
from imagic_lib.training.strategies import Strategy
from imagic_lib.unets import add_lora
from tests.common import same, seeded, weights

pytestmark = pytest.mark.filterwarnings("ignore:the embedded model never saw 'sks'")
TEXT = "a photo of sks car"
QUICK = {"steps": 3, "lr": 1e-2, "batch": 2, "decay": 0.0}


def adapters(pipe):
    return {k: v for k, v in weights(pipe.unet).items() if "lora_" in k}


@pytest.fixture(scope="module")
def images(pipe):
    return [imagic.load_image(Scene.sample(seed, subject="car").render(), pipe) for seed in (5, 6, 7)]


@pytest.fixture(scope="module")
def prior(pipe, images):
    return Prior(images[1:], "a photo of a car")


@pytest.fixture(scope="module")
def plain(pipe, images):
    """The losses of a training without a prior."""
    return personalize(pipe, images, TEXT, generator=seeded(), **QUICK)[1].loss


@pytest.fixture(scope="module")
def with_prior(pipe, images, prior, tmp_path_factory):
    """(the UNet's weights before, the tuned pipeline, its history, its checkpoint)."""
    before, file = weights(pipe.unet), tmp_path_factory.mktemp("word") / "checkpoint.safetensors"
    run = Run(checkpoint=file)
    return before, *personalize(pipe, images, TEXT, prior=prior, generator=seeded(), run=run, **QUICK), file


def test_only_adapters_learn_and_the_loaded_model_stays(pipe, with_prior):
    before, tuned, history, _ = with_prior
    assert same(weights(pipe.unet), before) and not hasattr(pipe.unet, "peft_config")
    base = {k.replace(".base_layer", ""): v for k, v in weights(tuned.unet).items() if "lora" not in k}
    assert same(base, before) and adapters(tuned)
    assert not any(p.requires_grad for p in tuned.unet.parameters())
    assert tuned.vae is pipe.vae and tuned.text_encoder is pipe.text_encoder
    assert len(history.loss) == 3 and history.probe_step == [0, 3]


def test_it_is_plain_adam_on_the_sum_of_both_losses(pipe, images, prior):
    """Ruiz et al. 2022, eq. 2, written out: the pictures' loss plus λ times the prior's, the same noises."""
    weight = 0.5
    tuned, history = personalize(pipe, images, TEXT, prior=prior._replace(weight=weight), generator=seeded(), **QUICK)
    unet, generator, process = copy.deepcopy(pipe.unet).requires_grad_(False), seeded(), forward_process(pipe)
    add_lora(unet, LoRA(), seed=0)
    learning = {n: p for n, p in unet.named_parameters() if p.requires_grad}
    adam = torch.optim.Adam(learning.values(), lr=QUICK["lr"])

    def part(pictures, text):
        which = torch.randint(len(pictures), (2,), generator=generator)
        t = ((torch.arange(2) + torch.rand(2, generator=generator)) * 1000 / 2).long()
        noise = torch.randn(2, 4, 16, 16, generator=generator)
        z = torch.cat([imagic.encode_image(pipe, pictures[i]) for i in which])
        e = encode_text(pipe, text).expand(2, -1, -1)
        return F.mse_loss(unet(process.add_noise(z, noise, t), t, e).sample, noise)

    for expected in history.loss:
        loss = part(images, TEXT) + weight * part(*prior[:2])
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        adam.zero_grad()
        loss.backward()
        adam.step()
    for name, value in adapters(tuned).items():
        torch.testing.assert_close(value, learning[name], rtol=1e-3, atol=1e-5)


def test_a_larger_weight_of_the_prior_counts_more(pipe, images, prior, plain, with_prior):
    settings, one = QUICK | {"steps": 1}, with_prior[2].loss[0]
    two = personalize(pipe, images, TEXT, prior=prior._replace(weight=2), generator=seeded(), **settings)[1].loss[0]
    assert two - plain[0] == pytest.approx(2 * (one - plain[0]), rel=1e-4) and one > plain[0]


def test_the_probe_is_the_mean_over_the_pictures_without_the_prior(pipe, images, with_prior):
    process, e = forward_process(pipe), encode_text(pipe, TEXT)
    each = [Probe(process, imagic.encode_image(pipe, image))(pipe.unet, e) for image in images]
    assert with_prior[2].probe_loss[0] == pytest.approx(sum(each) / 3, rel=1e-5)


def test_each_picture_can_have_its_own_text(pipe, images, plain):
    texts = [f"{TEXT} {place}" for place in ("on the grass", "in the snow", "at night")]
    own = personalize(pipe, images, texts, generator=seeded(), **QUICK)[1].loss
    repeated = personalize(pipe, images, [TEXT] * 3, generator=seeded(), **QUICK)[1].loss
    assert own != plain == repeated


def test_the_same_seed_gives_the_same_bits_and_the_probe_falls(pipe, images):
    settings = QUICK | {"steps": 10}
    first, history = personalize(pipe, images[:1], TEXT, generator=seeded(1), **settings)
    second, _ = personalize(pipe, images[:1], TEXT, generator=seeded(1), **settings)
    other, _ = personalize(pipe, images[:1], TEXT, generator=seeded(2), **settings)
    assert same(adapters(first), adapters(second)) and not same(adapters(first), adapters(other))
    assert history.probe_loss[-1] < history.probe_loss[0]


def test_the_rate_falls_if_asked(pipe, images):
    _, history = personalize(pipe, images, TEXT, generator=seeded(), **QUICK | {"steps": 4, "decay": 0.5})
    assert history.learning_rate == pytest.approx([1e-2, 1e-2, 1e-2, 5e-3])


def test_rank_and_targets_are_taken(pipe, images):
    tuned, _ = personalize(pipe, images, TEXT, lora=LoRA(3, ["to_out.0", "conv1"]), generator=seeded(), **QUICK)
    found = adapters(tuned)
    assert all(".to_out.0." in name or ".conv1." in name for name in found)
    assert {value.shape[0] for name, value in found.items() if "lora_A" in name} == {3}


def test_a_stopped_training_goes_on_with_the_same_bits(pipe, images, prior, tmp_path):
    settings = QUICK | {"steps": 6, "prior": prior}
    whole, history = personalize(pipe, images, TEXT, generator=seeded(), **settings)
    file = tmp_path / "checkpoint.safetensors"
    half, stopped = personalize(
        pipe,
        images,
        TEXT,
        generator=seeded(),
        run=Run(checkpoint=file, watch=lambda _, h: len(h.loss) == 3),
        **settings,
    )
    assert stopped.stopped and len(stopped.loss) == 3 and not same(adapters(half), adapters(whole))
    resumed, again = personalize(pipe, images, TEXT, generator=seeded(), run=Run(checkpoint=file), **settings)
    assert same(adapters(resumed), adapters(whole)) and again.loss == history.loss and not again.stopped


def test_ctrl_c_keeps_what_was_learned(pipe, images):
    def press(name, history):
        if len(history.loss) == 2:
            signal.raise_signal(signal.SIGINT)

    tuned, history = personalize(pipe, images, TEXT, generator=seeded(), run=Run(watch=press), **QUICK | {"steps": 9})
    assert history.stopped and len(history.loss) == 2 and adapters(tuned)


@pytest.mark.parametrize(
    "other, named",
    [
        ({"images": 1}, "another picture"),
        ({"text": "a photo of a car"}, "another text"),
        ({"prior": None}, "prior"),
        ({"weight": 2.0}, "prior 1.0, not 2.0"),
        ({"other prior": 1}, "another prior"),
        ({"lora": LoRA(2)}, "rank 4, not 2"),
        ({"generator": 5}, "another seed"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(pipe, images, prior, with_prior, tmp_path, other, named):
    file = shutil.copy(with_prior[3], tmp_path)
    given = {"images": images, "text": TEXT, "prior": prior, "run": Run(checkpoint=file), "generator": seeded()} | QUICK
    if "images" in other:
        other = {"images": images[: other["images"]]}
    if "weight" in other:
        other = {"prior": prior._replace(weight=other["weight"])}
    if "other prior" in other:
        other = {"prior": prior._replace(images=images[:2])}
    if "generator" in other:
        other = {"generator": seeded(other["generator"])}
    with pytest.raises(ValueError, match=named):
        personalize(pipe, **given | other)


@pytest.mark.parametrize("targets", [("to_q", "to_v"), ("to_k", "to_out.0", "conv1", "conv2")], ids=" ".join)
def test_the_file_opens_in_plain_diffusers_and_draws_the_same(pipe, images, model_folder, tmp_path, targets):
    tuned, _ = personalize(pipe, images, TEXT, lora=LoRA(targets=targets), generator=seeded(), **QUICK | {"lr": 0.1})
    save_lora(tuned, tmp_path)
    assert (tmp_path / LORA_FILE).is_file()
    plain = StableDiffusionPipeline.from_pretrained(model_folder, use_safetensors=True)
    plain.load_lora_weights(str(tmp_path), weight_name=LORA_FILE)  # diffusers 0.39 asks for it without a network
    e = encode_text(pipe, TEXT)
    z, t = torch.randn(1, 4, 16, 16, generator=seeded()), torch.tensor([500])
    with torch.no_grad():
        ours, theirs, base = (p.unet(z, t, e).sample for p in (tuned, plain, pipe))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours, base, atol=1e-4)


def test_a_strategy_sets_the_precision(pipe, images):
    half = Strategy(torch.bfloat16, checkpointing=True)
    tuned, _ = personalize(pipe, images, TEXT, generator=seeded(), run=Run(strategy=half), **QUICK)
    kinds = {name: p.dtype for name, p in tuned.unet.named_parameters()}
    assert {d for n, d in kinds.items() if "lora_" in n} == {torch.float32}
    assert {d for n, d in kinds.items() if "lora_" not in n} == {torch.bfloat16}


def test_the_class_s_pictures_are_the_model_s_own(pipe):
    pictures, texts, weight = class_pictures(pipe, "a photo of a car", 2, seed=3, steps=2)
    drawn = imagic.sample_text(pipe, texts[0], [3, 4], steps=2)
    assert texts == ["a photo of a car"] * 2 and len(pictures) == 2 and weight == 1
    assert all(torch.equal(x, imagic.load_image(p, pipe)) for x, p in zip(pictures, drawn, strict=True))


def test_several_texts_of_the_class_take_turns(pipe):
    red, blue = "a photo of a red car", "a photo of a blue car"
    pictures, texts, _ = class_pictures(pipe, [red, blue], 3, seed=3, steps=2)
    drawn = [imagic.sample_text(pipe, text, [seed], steps=2)[0] for text, seed in ((red, 3), (blue, 4), (red, 5))]
    assert texts == [red, blue, red]
    for x, picture in zip(pictures, drawn, strict=True):
        assert (x - imagic.load_image(picture, pipe)).abs().max() < 0.02  # batches round in their own way


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"images": []}, "there is no picture"),
        ({"text": ["one", "two"]}, "3 pictures and 2 texts"),
        ({"text": " "}, "the text is empty"),
        ({"images": [torch.zeros(3, 128, 128)]}, r"shape \(3, 128, 128\)"),
        ({"prior": Prior([], "a photo", -1.0)}, "prior's weight is -1"),
        ({"prior": Prior([], "a photo of a car")}, "there is no picture"),
        ({"steps": -1}, "steps is -1"),
        ({"lora": LoRA(targets=["to_z"])}, "no layer named 'to_z'"),
    ],
)
def test_bad_input_is_one_clear_sentence(pipe, images, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        personalize(pipe, **{"images": images, "text": TEXT, **QUICK} | given)


@pytest.mark.parametrize("text, count", [("a photo of a car", 0), (["a red car", "a blue car"], 1), ([], 3)])
def test_too_few_class_pictures_are_one_clear_sentence(pipe, text, count):
    with pytest.raises(ValueError, match=f"count is {count}: .* one picture for each text"):
        class_pictures(pipe, text, count)


def test_defaults_name_both_families_and_the_reports_five_hundred_steps():
    assert set(personalization.DEFAULTS) == {"tiny", "stable-diffusion"}
    assert personalization.DEFAULTS["stable-diffusion"]["steps"] == 500
    assert personalization.PRIOR_WEIGHT == 1
