"""An edit as a folder: what was saved is what comes back."""

import copy
import json
import shutil
import signal

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import imagic_lib as imagic
from imagic_lab.toyworld import Scene
from imagic_lib.edit import LORA_FILE, fingerprint
from imagic_lib.folder import files_of
from imagic_lib.planning import memory
from imagic_lib.training.checkpoints import load_tensors, save_tensors
from imagic_lib.training.strategies import Strategy, by_preference

TEXT = "a brown dog jumping on the grass"


@pytest.fixture(scope="module")
def image(pipe):
    return imagic.load_image(Scene.sample(5).render(), pipe)


@pytest.fixture(scope="module", params=["full", "lora"])
def saved(request, pipe, image, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    edit = imagic.run_edit(pipe, image, TEXT, embedding_steps=3, unet_steps=3, method=request.param, folder=folder)
    return edit, folder


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


def test_the_folder_holds_what_it_promises_and_no_checkpoints(saved):
    edit, folder = saved
    weights = LORA_FILE if edit.settings["method"] == "lora" else "unet-difference.safetensors"
    assert {p.name for p in folder.iterdir()} == {"edit.json", "input.png", "embeddings.safetensors", weights}
    assert files_of(folder) == {"input.png", "embeddings.safetensors", weights}, "these alone may be written again"
    facts = json.loads((folder / "edit.json").read_text())
    assert facts["text"] == TEXT and facts["versions"].keys() == {"python", "torch", "diffusers", "transformers"}
    assert facts["versions"]["torch"] == torch.__version__
    assert len(facts["history"]["unet"]["loss"]) == 3 and facts["settings"]["seed"] == 0


def test_the_lora_opens_in_plain_diffusers(pipe, image, model_folder, tmp_path):
    edit = imagic.run_edit(pipe, image, TEXT, embedding_steps=1, unet_steps=3, method="lora", folder=tmp_path)
    plain = StableDiffusionPipeline.from_pretrained(model_folder)
    plain.load_lora_weights(str(tmp_path), weight_name=LORA_FILE)
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 128, "width": 128}
    theirs = plain(prompt_embeds=edit.e_opt, generator=torch.Generator().manual_seed(2), **settings).images[0]
    ours = imagic.generate(edit.tuned, edit.e_opt, [2], steps=3, guidance_scale=3.0)[0]
    assert abs(imagic.pictures.to_tensor(theirs) - imagic.pictures.to_tensor(ours)).max() <= 1.01 / 127.5


def test_the_wrong_base_model_is_refused_and_named(saved, pipe):
    other = imagic.stage2_finetuning.with_unet(pipe, copy.deepcopy(pipe.unet))
    with torch.no_grad():
        other.unet.conv_in.weight[0, 0, 0, 0] += 0.5
    assert fingerprint(other) != fingerprint(pipe)
    with pytest.raises(ValueError, match=r"was made with other weights .* than those that are loaded"):
        imagic.ImagicEdit.load(saved[1], other)


def test_no_edit_there_is_one_clear_sentence(pipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no finished edit in .*no edit\.json"):
        imagic.ImagicEdit.load(tmp_path, pipe)


@pytest.mark.parametrize("stage", ["stage 1", "stage 2"])
def test_an_edit_that_was_killed_goes_on_with_the_same_result(pipe, image, tmp_path, monkeypatch, stage):
    settings = {"embedding_steps": 4, "unet_steps": 4}
    whole = imagic.run_edit(pipe, image, TEXT, **settings)

    class Killed(BaseException):
        pass

    save = imagic.training.loop.Progress.save

    def save_and_die(progress, path):
        save(progress, path)
        if progress.name.startswith(stage):
            raise Killed

    monkeypatch.setattr(imagic.training.loop.Progress, "save", save_and_die)
    with pytest.raises(Killed):
        imagic.run_edit(pipe, image, TEXT, **settings, folder=tmp_path)
    assert not (tmp_path / "edit.json").exists()
    monkeypatch.undo()
    resumed = imagic.run_edit(pipe, image, TEXT, **settings, folder=tmp_path)
    assert torch.equal(resumed.e_opt, whole.e_opt) and resumed.unet_history.loss == whole.unet_history.loss
    base, ours = whole.tuned.unet.state_dict(), resumed.tuned.unet.state_dict()
    assert all(torch.equal(base[k], ours[k]) for k in base)


def press_stop_at_every_step(monkeypatch):
    look = imagic.training.loop.one_step

    def step(loss, progress):
        signal.raise_signal(signal.SIGINT)
        return look(loss, progress)

    monkeypatch.setattr(imagic.training.loop, "one_step", step)


def test_without_a_folder_the_stop_button_ends_each_stage_early(pipe, image, monkeypatch):
    press_stop_at_every_step(monkeypatch)
    edit = imagic.run_edit(pipe, image, TEXT, embedding_steps=5, unet_steps=5)
    assert len(edit.embedding_history.loss) == len(edit.unet_history.loss) == 1
    assert bits(edit.pictures([0.5], [0], steps=2))


def test_with_a_folder_the_stop_button_ends_all_and_the_same_call_goes_on(pipe, image, monkeypatch, tmp_path):
    settings = {"embedding_steps": 4, "unet_steps": 4}
    whole = imagic.run_edit(pipe, image, TEXT, **settings)
    press_stop_at_every_step(monkeypatch)
    for _ in range(6):  # each press ends it after a step; the fourth step is the last of stage 1, the eighth of all
        with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
            imagic.run_edit(pipe, image, TEXT, **settings, folder=tmp_path)
        assert not (tmp_path / "edit.json").exists()
    resumed = imagic.run_edit(pipe, image, TEXT, **settings, folder=tmp_path)
    assert torch.equal(resumed.e_opt, whole.e_opt) and resumed.unet_history.loss == whole.unet_history.loss


def test_a_finished_edit_is_loaded(pipe, image, tmp_path, monkeypatch):
    settings = {"embedding_steps": 2, "unet_steps": 2, "folder": tmp_path}
    first = imagic.run_edit(pipe, image, TEXT, method="lora", **settings)
    monkeypatch.setattr(imagic.edit, "optimize_embedding", None)  # would fail if it trained
    again = imagic.run_edit(pipe, image, TEXT, method="lora", **settings)
    assert torch.equal(again.e_opt, first.e_opt)


def test_pictures_are_the_tuned_unets_and_without_fine_tuning_the_loaded_ones(saved):
    """Stage 2 is worth nothing if the pictures are drawn by the UNet that it began with."""
    edit, _ = saved
    embeddings = imagic.interpolate(edit.e_tgt, edit.e_opt, [0.0, 1.0])
    tuned, loaded = (imagic.generate(pipe, embeddings, [1, 4], steps=2) for pipe in (edit.tuned, edit.pipe))
    assert bits([tuned]) != bits([loaded])
    assert bits(edit.pictures([0, 1], [1, 4], steps=2)) == bits([tuned[0::2], tuned[1::2]])
    assert bits(edit.pictures([0, 1], [1, 4], steps=2, scale=0)) == bits([loaded[0::2], loaded[1::2]])


def test_an_edit_suggests_with_the_settings_that_it_is_given(saved, monkeypatch):
    edit, _ = saved
    monkeypatch.setattr(imagic.edit, "suggest", lambda *given, **settings: (given, settings))
    assert edit.suggest(seeds=(3, 4)) == ((edit,), {"seeds": (3, 4)})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_seed_is_that_of_both_trainings(pipe, image, method):
    edit = imagic.run_edit(pipe, image, TEXT, embedding_steps=2, unet_steps=2, method=method, seed=5)
    generator = torch.Generator().manual_seed(5)
    e_opt, first = imagic.optimize_embedding(pipe, image, edit.e_tgt, steps=2, generator=generator)
    _, second = imagic.fine_tune(pipe, image, e_opt, steps=2, method=method, generator=generator)
    assert edit.embedding_history.loss == first.loss and edit.unet_history.loss == second.loss
    other = imagic.run_edit(pipe, image, TEXT, embedding_steps=2, unet_steps=2, method=method)
    assert edit.embedding_history.loss != other.embedding_history.loss


@pytest.mark.parametrize("etas", [[], [float("nan")], [1e30], [-11], ["much"], 0.5, None])
def test_an_eta_that_shows_nothing_is_one_sentence(saved, etas):
    with pytest.raises(ValueError, match=r"etas must be a list of one or more numbers within ±10, e\.g\."):
        saved[0].pictures(etas, [0], steps=1)


def test_who_watches_and_previews_sees_both_stages(pipe, image):
    steps, looked = [], []
    edit = imagic.run_edit(
        pipe,
        image,
        TEXT,
        embedding_steps=2,
        unet_steps=3,
        watch=lambda name, history: steps.append(name),
        preview=lambda unet, embedding: looked.append((unet is pipe.unet, embedding.clone())),
    )
    assert [name[:7] for name in steps] == ["stage 1"] * 2 + ["stage 2"] * 3
    assert [own for own, _ in looked] == [True, True, False, False], "before the first step and at the last"
    for (_, seen), e in zip(looked, (edit.e_tgt, edit.e_opt, edit.e_opt, edit.e_opt), strict=True):
        assert torch.equal(seen, e)


def test_ten_times_the_way_can_be_drawn(saved):
    assert bits(saved[0].pictures([-10, 10], [0], steps=1)) == bits(saved[0].pictures([-10.0, 10.0], [0], steps=1))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_out_of_memory_advises_what_the_plan_of_this_gpu_shows(pipe, image, tmp_path, monkeypatch, half, method):
    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(imagic.edit, "fine_tune", too_much)
    monkeypatch.setattr(memory, "precision", lambda device: half)
    with pytest.raises(MemoryError) as error:
        imagic.run_edit(pipe, image, TEXT, embedding_steps=1, unet_steps=1, method=method, folder=tmp_path)
    shown = by_preference(half)
    advised = shown[1] if method == "full" else shown[6]  # a LoRA of half precision is smaller than one of float32
    assert f"try the strategy “{advised.name}”" in str(error.value)
    assert f"the checkpoint in {tmp_path} is kept" in str(error.value) and list(tmp_path.glob("checkpoint-embedding*"))


# -------------------------------------------------------------------------------- a folder of a stranger


def damage(folder, name, change):
    """Write a tensor file of the folder again, its tensors changed."""
    tensors, facts = load_tensors(folder / name)
    save_tensors(folder / name, change(dict(tensors)), facts)


def first(tensors, change):
    name = next(iter(tensors))
    return tensors | {name: change(tensors[name])}


WEIGHTS = {"full": "unet-difference.safetensors", "lora": LORA_FILE}
CHANGES = {  # what is done to the tensors, and what a student reads
    "no number": (lambda t: first(t, lambda v: v * float("nan")), "holds what is no number"),
    "whole numbers": (lambda t: first(t, lambda v: v.long()), "holds what is no number"),
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


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["embeddings.safetensors", "weights"])
def test_tensors_that_are_not_the_edits_are_refused_and_the_model_stays(saved, pipe, tmp_path, name, change):
    """A difference of shape (1,) would be added to every weight, and NaN draws black."""
    edit, folder = saved
    folder = shutil.copytree(folder, tmp_path / "edit")
    if "unknown layers" in change and name != "weights":
        pytest.skip("an embedding has no layers")
    before = fingerprint(pipe)
    damage(folder, WEIGHTS[edit.settings["method"]] if name == "weights" else name, CHANGES[change][0])
    with pytest.raises(
        ValueError, match=rf"the edit in .* is damaged \(.*{CHANGES[change][1]}.*\): make the edit"
    ) as it:
        imagic.ImagicEdit.load(folder, pipe)
    assert "\n" not in str(it.value) and fingerprint(pipe) == before


@pytest.mark.parametrize("name", ["input.png", "embeddings.safetensors", "weights"])
@pytest.mark.parametrize("content", [None, b"", b"no file of this kind", b"\xff" * 100])
def test_files_that_are_gone_or_no_files_of_their_kind_are_one_sentence(saved, pipe, tmp_path, name, content):
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


def test_running_out_of_memory_names_the_next_smaller_strategy(pipe, image, monkeypatch, tmp_path):
    def no_memory(*args, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(imagic.edit, "fine_tune", no_memory)
    with pytest.raises(MemoryError, match=r"“full, float32, Adam, checkpointing” .*; the checkpoint in .* is kept"):
        imagic.run_edit(pipe, image, "a cat", embedding_steps=1, unet_steps=1, folder=tmp_path)
    assert (tmp_path / "checkpoint-embedding.safetensors").exists()
    with pytest.raises(MemoryError, match=r"“LoRA, .*checkpointing” \(imagic_lib.planning.memory.plan shows all\)$"):
        imagic.run_edit(pipe, image, "a cat", embedding_steps=1, method="lora")
    last = Strategy("lora", torch.float16, "Adam", checkpointing=True)
    with pytest.raises(MemoryError, match="only a larger GPU will do"):
        imagic.run_edit(pipe, image, "a cat", embedding_steps=1, strategy=last)
