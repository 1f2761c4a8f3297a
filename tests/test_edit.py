"""An edit comes back from its folder as it was saved or goes on where it was; a stranger's is refused in a sentence."""

import copy
import json
import shutil
import signal
from functools import cache

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import imagic_lib as imagic
from imagic_lib.files import load_tensors, save_tensors
from imagic_lib.folder import DIFFERENCE_FILE, LORA_FILE, files_of
from imagic_lib.models import fingerprint
from imagic_lib.pictures import psnr
from imagic_lib.training.loop import Training
from imagic_lib.training.strategies import Strategy
from imagic_lib.unets import with_unet
from tests.common import Killed, kill_after_a_save

TEXT = "a brown dog jumping on the grass"
STEPS = {"embedding_steps": 2, "unet_steps": 2}
WEIGHTS = {"full": DIFFERENCE_FILE, "lora": LORA_FILE}


@pytest.fixture(scope="module")
def trained(pipe, image, tmp_path_factory):
    """method -> (an edit, its folder), trained once. No test may change it."""

    @cache
    def make(method):
        folder = tmp_path_factory.mktemp(method)
        return imagic.run_edit(pipe, image, TEXT, **STEPS, method=method, folder=folder), folder

    return make


@pytest.fixture(params=["full", "lora"])
def saved(request, trained):
    return trained(request.param)


def bits(rows):
    return [[picture.tobytes() for picture in row] for row in rows]


def test_a_loaded_edit_draws_the_same_pictures_without_training(saved, model_folder):
    edit, folder = saved
    pipe = imagic.load_pipeline(model_folder, device="cpu")
    again = imagic.ImagicEdit.load(folder, pipe)
    assert torch.equal(again.e_opt, edit.e_opt) and torch.equal(again.image, edit.image)
    assert again.text == TEXT and again.unet_history == edit.unet_history
    for a, b in zip(again.pictures([0, 1], [3], steps=3)[0], edit.pictures([0, 1], [3], steps=3)[0], strict=True):
        assert abs(imagic.pictures.to_tensor(a) - imagic.pictures.to_tensor(b)).max() <= 1.01 / 127.5


def test_the_folder_holds_what_is_promised_and_no_checkpoints(saved):
    edit, folder = saved
    weights = WEIGHTS[edit.settings["method"]]
    assert {p.name for p in folder.iterdir()} == {"edit.json", "input.png", "embeddings.safetensors", weights}
    assert files_of(folder) == {"input.png", "embeddings.safetensors", weights}, "no other file is ever written again"
    facts = json.loads((folder / "edit.json").read_text())
    assert facts["text"] == TEXT and facts["versions"].keys() == {"python", "torch", "diffusers", "transformers"}
    assert facts["versions"]["torch"] == torch.__version__
    assert len(facts["history"]["unet"]["loss"]) == 2 and facts["settings"]["seed"] == 0


def test_the_lora_opens_in_plain_diffusers(trained, model_folder):
    edit, folder = trained("lora")
    plain = StableDiffusionPipeline.from_pretrained(model_folder)
    plain.load_lora_weights(str(folder), weight_name=LORA_FILE)
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 128, "width": 128}
    theirs = plain(prompt_embeds=edit.e_opt, generator=torch.Generator().manual_seed(2), **settings).images[0]
    ours, untuned = (
        imagic.generate(pipe, edit.e_opt, [2], steps=3, guidance_scale=3.0)[0] for pipe in (edit.tuned, edit.pipe)
    )
    assert abs(imagic.pictures.to_tensor(theirs) - imagic.pictures.to_tensor(ours)).max() <= 1.01 / 127.5
    assert abs(imagic.pictures.to_tensor(untuned) - imagic.pictures.to_tensor(ours)).max() > 4 / 127.5


def test_the_wrong_base_model_is_refused_and_named(saved, pipe):
    other = with_unet(pipe, copy.deepcopy(pipe.unet))
    with torch.no_grad():
        other.unet.conv_in.weight[0, 0, 0, 0] += 0.5
    assert fingerprint(other) != fingerprint(pipe)
    with pytest.raises(ValueError, match=r"was made with other weights .* than those loaded"):
        imagic.ImagicEdit.load(saved[1], other)


def test_no_edit_there_is_one_clear_sentence(pipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no finished edit in .*no edit\.json"):
        imagic.ImagicEdit.load(tmp_path, pipe)


def assert_same(edit, other) -> None:
    assert torch.equal(edit.e_opt, other.e_opt) and edit.unet_history.loss == other.unet_history.loss
    weights, others = (one.tuned.unet.state_dict() for one in (edit, other))
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


@pytest.mark.parametrize("stage", ["stage 1", "stage 2"])
def test_an_edit_that_was_killed_goes_on_with_the_same_result(pipe, image, trained, tmp_path, monkeypatch, stage):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_a_save(patch, stage)
        imagic.run_edit(pipe, image, TEXT, **STEPS, folder=tmp_path)
    assert not (tmp_path / "edit.json").exists()
    assert_same(imagic.run_edit(pipe, image, TEXT, **STEPS, folder=tmp_path), trained("full")[0])


@pytest.fixture
def press_stop_at_every_step(monkeypatch):
    take = Training.step

    def step(training, loss):
        signal.raise_signal(signal.SIGINT)
        take(training, loss)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(Training, "step", step)
    yield
    signal.signal(signal.SIGINT, before)


def test_without_a_folder_the_stop_button_ends_each_stage_early(pipe, image, press_stop_at_every_step):
    edit = imagic.run_edit(pipe, image, TEXT, embedding_steps=5, unet_steps=5)
    assert len(edit.embedding_history.loss) == len(edit.unet_history.loss) == 1
    assert bits(edit.pictures([0.5], [0], steps=2))


def test_with_a_folder_the_stop_button_ends_everything_and_the_same_call_goes_on(
    pipe, image, trained, press_stop_at_every_step, tmp_path
):
    for _ in range(2):  # each press ends it after a step; the second step is the last of stage 1, the fourth of all
        with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
            imagic.run_edit(pipe, image, TEXT, **STEPS, folder=tmp_path)
        assert not (tmp_path / "edit.json").exists()
    assert_same(imagic.run_edit(pipe, image, TEXT, **STEPS, folder=tmp_path), trained("full")[0])


def test_a_finished_edit_is_loaded(pipe, image, saved, monkeypatch):
    edit, folder = saved
    monkeypatch.setattr(imagic.edit, "optimize_embedding", None)  # would fail if it trained
    again = imagic.run_edit(pipe, image, TEXT, **STEPS, method=edit.settings["method"], folder=folder)
    assert torch.equal(again.e_opt, edit.e_opt)


def test_pictures_are_the_tuned_unets_and_without_fine_tuning_the_loaded_ones(saved):
    """Stage 2 is worth nothing if the pictures are drawn by the UNet that it began with."""
    edit, _ = saved
    embeddings = imagic.interpolate(edit.e_tgt, edit.e_opt, [0.0, 1.0])
    tuned, loaded = (imagic.generate(pipe, embeddings, [1, 4], steps=2) for pipe in (edit.tuned, edit.pipe))
    assert bits([tuned]) != bits([loaded])
    random = {"steps": 2, "noise": "random"}
    assert bits(edit.pictures([0, 1], [1, 4], **random)) == bits([tuned[0::2], tuned[1::2]])
    assert bits(edit.pictures([0, 1], [1, 4], scale=0, **random)) == bits([loaded[0::2], loaded[1::2]])


def test_by_default_pictures_start_from_the_input_s_own_noise(saved):
    edit, _ = saved
    how = {"steps": 3, "scale": 0.5, "guidance_scale": 2.0}
    path = imagic.own_noise(edit.tuned, edit.image, edit.e_opt, [1, 4], **how)
    expected = imagic.generate(edit.tuned, imagic.interpolate(edit.e_tgt, edit.e_opt, [0.0, 1.0]), [1, 4], noise=path,
                               **how)  # fmt: skip
    assert bits(edit.pictures([0, 1], [1, 4], **how)) == bits([expected[0::2], expected[1::2]])
    [[rebuilt]] = edit.pictures([0], [9], steps=3)
    assert psnr(rebuilt, edit.reconstruction) > 45, "η = 0 is the input, up to the VAE"
    with pytest.raises(ValueError, match="noise is 'mine': choose 'own' or 'random'"):
        edit.pictures([0], noise="mine")
    with pytest.raises(ValueError, match="leave scheduler out, or leave noise out"):
        edit.pictures([0], scheduler="ddim")


def test_an_edit_suggests_with_the_settings_that_it_is_given(saved, monkeypatch):
    edit, drawn = saved[0], []
    monkeypatch.setattr(
        imagic.ImagicEdit, "pictures", lambda self, etas, seeds, **how: drawn.append(seeds) or [etas for _ in seeds]
    )
    found = edit.suggest(lambda pictures: [1.0 for _ in pictures], seeds=(3, 4))
    assert set(drawn) == {(3, 4)} and set(found.scores.values()) == {1.0}


def test_the_seed_is_that_of_both_trainings(pipe, image, saved):
    method, steps = saved[0].settings["method"], {"embedding_steps": 1, "unet_steps": 1}
    edit = imagic.run_edit(pipe, image, TEXT, **steps, method=method, seed=5)
    generator = torch.Generator().manual_seed(5)
    e_opt, first = imagic.optimize_embedding(pipe, image, edit.e_tgt, steps=1, generator=generator)
    _, second = imagic.fine_tune(pipe, image, e_opt, steps=1, method=method, generator=generator)
    assert edit.embedding_history.loss == first.loss and edit.unet_history.loss == second.loss
    assert edit.embedding_history.loss[0] != saved[0].embedding_history.loss[0], "which has seed 0"


@pytest.mark.parametrize("etas", [[], [float("nan")], [1e30], [-11], ["much"], 0.5, None])
def test_an_eta_that_shows_nothing_is_one_sentence(saved, etas):
    with pytest.raises(ValueError, match=r"η must be a number within ±10, or a list of at least one, e\.g\."):
        saved[0].pictures(etas, [0], steps=1)


def test_a_watch_and_a_preview_see_both_stages(pipe, image):
    steps, looked = [], []

    def shared(unet) -> bool:
        """Are these the weights of the pipeline itself?"""
        return next(unet.parameters()).data_ptr() == next(pipe.unet.parameters()).data_ptr()

    run = imagic.Run(
        watch=lambda name, history: steps.append(name),
        preview=lambda unet, embedding: looked.append((shared(unet), embedding.clone())),
    )
    edit = imagic.run_edit(pipe, image, TEXT, embedding_steps=1, unet_steps=2, run=run)
    assert [name[:7] for name in steps] == ["stage 1"] + ["stage 2"] * 2
    assert [own for own, _ in looked] == [True, True, False, False], "before the first step and at the last"
    for (_, seen), e in zip(looked, (edit.e_tgt, edit.e_opt, edit.e_opt, edit.e_opt), strict=True):
        assert torch.equal(seen, e)


def test_a_run_is_that_of_both_stages_but_for_its_checkpoint(pipe, image, tmp_path, monkeypatch):
    """The folder of the edit has a checkpoint for each stage."""
    runs, strategy = [], Strategy(checkpointing=True)

    def stage(*_, run, **__):
        runs.append(run)
        return image, imagic.History()

    monkeypatch.setattr(imagic.edit, "optimize_embedding", stage)
    monkeypatch.setattr(imagic.edit, "fine_tune", stage)
    monkeypatch.setattr(imagic.ImagicEdit, "save", lambda edit, folder: folder)
    run = imagic.Run(strategy=strategy, probe_every=3, checkpoint=tmp_path / "mine")
    imagic.run_edit(pipe, image, TEXT, method="lora", run=run, folder=tmp_path)
    imagic.run_edit(pipe, image, TEXT, method="lora", run=run)
    assert {(run.strategy, run.probe_every) for run in runs} == {(strategy, 3)}
    kept = [tmp_path / f"checkpoint-{stage}.safetensors" for stage in ("embedding", "lora")]
    assert [run.checkpoint for run in runs] == [*kept, None, None]


def test_ten_times_the_way_can_be_drawn(saved):
    assert bits(saved[0].pictures([-10, 10], [0], steps=1)) == bits(saved[0].pictures([-10.0, 10.0], [0], steps=1))


@pytest.fixture
def out_of_memory(monkeypatch):
    """The name of a stage -> it asks for more memory than the GPU has."""

    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    return lambda stage: monkeypatch.setattr(imagic.edit, stage, too_much)


@pytest.mark.parametrize("stage", ["optimize_embedding", "fine_tune"])
def test_out_of_memory_says_what_to_do_and_keeps_what_was_learned(pipe, image, out_of_memory, tmp_path, stage):
    out_of_memory(stage)
    advice = r"^the GPU is out of memory: .* imagic_lib\.planning\.memory\.plan shows"
    with pytest.raises(MemoryError, match=rf"{advice}; the checkpoint in .* is kept$"):
        imagic.run_edit(pipe, image, "a cat", embedding_steps=1, unet_steps=1, folder=tmp_path)
    assert (tmp_path / "checkpoint-embedding.safetensors").exists() == (stage == "fine_tune")
    with pytest.raises(MemoryError, match=rf"{advice}$"):
        imagic.run_edit(pipe, image, "a cat", embedding_steps=1, method="lora")


# -------------------------------------------------------------------------------- a folder of a stranger


def damage(folder, name, change):
    """Write a tensor file of the folder again, its tensors changed."""
    tensors, facts = load_tensors(folder / name)
    save_tensors(folder / name, change(dict(tensors)), facts)


def first(tensors, change):
    name = next(iter(tensors))
    return tensors | {name: change(tensors[name])}


CHANGES = {  # what is done to the tensors, and what a student reads
    "not finite": (lambda t: first(t, lambda v: v * float("nan")), "has values that are not finite"),
    "whole numbers": (lambda t: first(t, lambda v: v.long()), "has values that are not finite|holds other things"),
    "nothing": (lambda t: {}, r"has no|holds other things"),
    "one number": (lambda t: first(t, lambda v: torch.ones(1)), ""),
    "one too few": (lambda t: dict(list(t.items())[1:]), ""),
    "foreign layers": (lambda t: {f"text_encoder.{name}": v for name, v in t.items()}, r"has no|holds other things"),
    "unknown layers": (
        lambda t: {name.replace("attn", "none"): v for name, v in t.items()},
        r"has no|not found in the base model",
    ),
    "some unknown layers": (
        lambda t: {name.replace("attn1.to_v", "attn1.none"): v for name, v in t.items()},
        r"has no|is for layers that this UNet does not have",
    ),
}


@pytest.mark.parametrize(
    ("name", "change"),
    [("weights", change) for change in CHANGES]
    + [("embeddings.safetensors", change) for change in CHANGES if "unknown layers" not in change],
)
def test_tensors_that_are_not_the_edits_are_refused_and_the_model_stays(saved, pipe, tmp_path, name, change):
    """A difference of shape (1,) would be added to every weight, and NaN draws black."""
    edit, folder = saved
    folder = shutil.copytree(folder, tmp_path / "edit")
    before = fingerprint(pipe)
    damage(folder, WEIGHTS[edit.settings["method"]] if name == "weights" else name, CHANGES[change][0])
    with pytest.raises(
        ValueError, match=rf"the edit in .* is damaged \(.*{CHANGES[change][1]}.*\): make the edit"
    ) as it:
        imagic.ImagicEdit.load(folder, pipe)
    assert "\n" not in str(it.value) and fingerprint(pipe) == before


@pytest.mark.parametrize("name", ["input.png", "embeddings.safetensors", "weights"])
@pytest.mark.parametrize("content", [None, b"", b"not such a file", b"\xff" * 100])
def test_files_that_are_gone_or_not_of_their_kind_are_one_sentence(saved, pipe, tmp_path, name, content):
    edit, folder = saved
    folder = shutil.copytree(folder, tmp_path / "edit")
    path = folder / (WEIGHTS[edit.settings["method"]] if name == "weights" else name)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=r"the edit in .* is damaged \(") as it:
        imagic.ImagicEdit.load(folder, pipe)
    assert "\n" not in str(it.value)


def test_an_input_of_another_size_is_refused_and_not_cropped(saved, pipe, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "edit")
    Image.new("RGB", (256, 128)).save(folder / "input.png")
    with pytest.raises(ValueError, match=r"is damaged \(input\.png is not 128x128 pixels\)"):
        imagic.ImagicEdit.load(folder, pipe)


def test_the_fingerprint_is_the_same_in_half_precision(model_folder):
    whole, half = (imagic.load_pipeline(model_folder, device="cpu") for _ in range(2))
    half.to(torch.float16)
    assert fingerprint(whole) == fingerprint(half)
