"""What comes from outside, and how each kind of it ends: files, disks, processes, pictures, models and texts."""

import copy
import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image, ImageCms

import imagic_lib as imagic
from imagic_lib import files, folder
from imagic_lib.__main__ import main, parser
from imagic_lib.edit import ImagicEdit, run_edit
from imagic_lib.files import load_tensors, save_tensors
from imagic_lib.folder import DIFFERENCE_FILE, EMBEDDINGS_FILE, LEDGER, LOCK, LORA_FILE, files_of, locked
from imagic_lib.models import check_pipeline, fingerprint
from imagic_lib.planning.memory import on_meta
from imagic_lib.stage4_inference import scheduler_of
from imagic_lib.storage import identity_of_edit
from imagic_lib.training import checkpoint
from imagic_lib.training.strategies import frozen_unet
from imagic_lib.unets import scaled, with_unet
from tests.common import Killed, disk_of, kill_after_a_save, seeded

TEXT, NO_STEPS = "a brown dog", {"embedding_steps": 0, "unet_steps": 0}


@pytest.fixture(scope="module")
def made(pipe, image, tmp_path_factory):
    """method -> the folder of a finished edit. No test may change it."""
    place = tmp_path_factory.mktemp("made")
    for method in ("full", "lora"):
        run_edit(pipe, image, TEXT, **NO_STEPS, method=method, folder=place / method)
    return place


@pytest.fixture
def edit_of(made, tmp_path):
    return lambda method: shutil.copytree(made / method, tmp_path / method)


def refused(call, words: str) -> str:
    """The one sentence of a refusal."""
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 800
    return str(error.value)


# ---------------------------------------------------------------- 1. the edit's files are known by one function


def test_an_edit_of_version_0_1_whose_weights_lie_in_parts_opens(edit_of, pipe):
    edit = edit_of("full")
    whole, facts = load_tensors(edit / DIFFERENCE_FILE)
    part, names = edit / f"{DIFFERENCE_FILE}.1a2b-1", sorted(whole)
    expected = ImagicEdit.load(edit, pipe).tuned.unet.state_dict()
    save_tensors(part, {name: whole[name] for name in names[::2]}, {})
    save_tensors(edit / DIFFERENCE_FILE, {name: whole[name] for name in names[1::2]}, facts | {"parts": [part.name]})
    assert part.name in files_of(edit)
    found = ImagicEdit.load(edit, pipe).tuned.unet.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    save_tensors(edit / DIFFERENCE_FILE, {name: whole[name] for name in names[1::2]}, {"parts": ["../" + part.name]})
    refused(lambda: ImagicEdit.load(edit, pipe), "it has no ")  # a name that leads out of the folder is not followed


def test_files_of_other_names_are_not_the_edits(edit_of):
    edit = edit_of("full")
    for name in ("thesis.docx", f"{DIFFERENCE_FILE}.mine", "my-input.png"):
        (edit / name).write_text("mine")
    assert files_of(edit) == {"input.png", EMBEDDINGS_FILE, DIFFERENCE_FILE}


@pytest.mark.parametrize("name", ["losses.png", "input.png", DIFFERENCE_FILE])
def test_a_link_in_a_folder_is_sent_to_no_one(edit_of, tmp_path, name):
    (tmp_path / "token").write_text("secret")
    edit = edit_of("full")
    (edit / name).unlink(missing_ok=True)
    (edit / name).symlink_to(tmp_path / "token")
    assert name not in files_of(edit)


@pytest.mark.parametrize("name", ["edit.json", "input.png", EMBEDDINGS_FILE, "weights"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_only_regular_files_of_a_folder_are_read(edit_of, pipe, tmp_path, name, kind):
    edit = edit_of("lora")
    path = edit / (LORA_FILE if name == "weights" else name)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere") if kind == "link" else os.mkfifo(path)
    words = (
        r"no finished edit"
        if (kind, name) == ("pipe", "edit.json")
        else rf"is damaged \(.*{kind if kind == 'link' else 'regular'}"
    )
    refused(lambda: ImagicEdit.load(edit, pipe), words)


def test_the_path_of_the_user_stands_in_no_file(pipe, image, model_folder):
    other = with_unet(pipe, pipe.unet)
    other.register_to_config(_name_or_path=str(model_folder))
    assert identity_of_edit(other, image, TEXT, {})["base_model"]["name"] == model_folder.name
    other.register_to_config(_name_or_path="CompVis/stable-diffusion-v1-4")
    assert identity_of_edit(other, image, TEXT, {})["base_model"]["name"] == "CompVis/stable-diffusion-v1-4"


@pytest.mark.parametrize("what", ["moved", "deleted"])
def test_a_folder_that_goes_during_a_run_loses_nothing(pipe, image, tmp_path, monkeypatch, what):
    monkeypatch.setattr(checkpoint, "SAVE_AFTER", 0.0)
    monkeypatch.setattr(checkpoint, "SAVING_SHARE", math.inf)
    edit = tmp_path / "edit"

    def go(stage, history):
        if "stage 2" in stage and edit.exists():
            edit.rename(tmp_path / "moved") if what == "moved" else shutil.rmtree(edit)

    with pytest.warns(UserWarning, match=r"could not be written .*a stop would lose the training"):
        run_edit(pipe, image, TEXT, embedding_steps=1, unet_steps=2, folder=edit, run=imagic.Run(watch=go))
    assert ImagicEdit.load(edit, pipe).text == TEXT
    assert {path.name for path in edit.iterdir()} == {"edit.json", "input.png", EMBEDDINGS_FILE, DIFFERENCE_FILE}


def test_an_edit_that_began_has_its_picture_for_the_studio(pipe, image, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_a_save(patch, "stage 1")
        run_edit(pipe, image, TEXT, embedding_steps=1, unet_steps=0, folder=tmp_path)
    assert imagic.open_image(tmp_path / "input.png").size == (128, 128) and "input.png" in files_of(tmp_path)


# ------------------------------------------------------------- 2. what is read is checked before it is used


HISTORIES = [
    {"loss": ["a"]},
    {"loss": [float("nan")]},
    {"seconds": float("inf")},
    {"probe_step": [1, 2, 3]},
    {"steps": "many"},
    [],
    None,
]


@pytest.mark.parametrize("change", HISTORIES, ids=str)
def test_a_history_in_a_checkpoint_is_checked_before_the_training_goes_on(pipe, image, e_tgt, tmp_path, change):
    """What `finish` would write, `read_facts` has to read."""
    fit = partial(imagic.optimize_embedding, pipe, image, e_tgt, run=imagic.Run(checkpoint=tmp_path / "c"), batch=1)
    fit(steps=1, generator=seeded())
    tensors, facts = load_tensors(tmp_path / "c")
    history = facts["history"] | change if isinstance(change, dict) else change
    save_tensors(tmp_path / "c", tensors, facts | {"history": history})
    refused(lambda: fit(steps=2, generator=seeded()), r"c is damaged \(")


def sparse(path: Path, name: str, shape: list[int], facts: dict) -> None:
    """A safetensors file whose tensor is a hole of the file system: it claims gigabytes and takes none."""
    size = 4 * int(np.prod(shape))
    header = {
        "__metadata__": {"facts": json.dumps(facts)},
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + size)


def test_files_that_claim_gigabytes_are_refused_unread(edit_of, pipe, image, tmp_path):
    edit, huge = edit_of("lora"), [2**29]
    sparse(edit / EMBEDDINGS_FILE, "e_tgt", huge, {})
    refused(lambda: ImagicEdit.load(edit, pipe), "has no e_opt|has the shape")
    shutil.copy(edit / "input.png", tmp_path / "kept.png")
    sparse(edit / EMBEDDINGS_FILE, "e_opt", huge, {})
    refused(lambda: ImagicEdit.load(edit, pipe), "has no e_tgt|has the shape")
    begun = tmp_path / "begun"
    folder.begin(begun, identity_of_edit(pipe, image, TEXT, {"method": "full", "seed": 0}), torch.ones(1, 2, 3))
    sparse(begun / LEDGER, "e_tgt", huge, files.load_facts(begun / LEDGER))
    refused(lambda: folder.read_ledger(begun), "too large")
    with (tmp_path / "kept.png").open("ab") as file:
        file.truncate(3 * 2**30)
    refused(lambda: imagic.open_image(tmp_path / "kept.png"), "has more than 512 MiB")


@pytest.mark.parametrize("change", ["a rank too high", "A alone", "one dimension", "a checkpoint"])
def test_adapters_that_cannot_be_are_refused(edit_of, pipe, image, change):
    edit = edit_of("lora")
    layers, _ = load_tensors(edit / LORA_FILE)
    if change == "a rank too high":
        layers = {name: torch.zeros(50_000, 32) if "lora_A" in name else torch.zeros(32, 50_000) for name in layers}
    if change == "A alone":
        layers = {name: value for name, value in layers.items() if "lora_A" in name}
    if change == "one dimension":
        layers = {name: value.flatten() for name, value in layers.items()}
    if change == "a checkpoint":
        layers = {f"trained.{name}": value for name, value in layers.items()}
    save_tensors(edit / LORA_FILE, layers, {})
    refused(lambda: ImagicEdit.load(edit, pipe), r"the edit in .* is damaged \(")


@pytest.mark.parametrize(
    "change",
    [
        {"text": "a" * 10_001},
        {"base_model": {"name": "tiny\nlicense: mit", "fingerprint": "0"}},
        {"base_model": {"name": "t" * 501, "fingerprint": "0"}},
        {"history": {"embedding": {}, "unet": {}}},
    ],
    ids=["long text", "two lines", "long name", "empty histories"],
)
def test_what_an_edit_json_says_is_bounded(edit_of, change):
    edit = edit_of("full")
    facts = json.loads((edit / "edit.json").read_text())
    (edit / "edit.json").write_text(json.dumps(facts | change))
    refused(lambda: folder.read_facts(edit), "is damaged")


@pytest.mark.parametrize("name", [EMBEDDINGS_FILE, "edit.json", "input.png"])
def test_a_file_without_permission_is_not_called_damaged(edit_of, pipe, monkeypatch, name):
    """As root every file can be read, so the refusal is the test's."""
    edit, stat = edit_of("full"), os.lstat

    def no(path, *args, **settings):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **settings)

    monkeypatch.setattr(files.os, "lstat", no)
    said = refused(lambda: ImagicEdit.load(edit, pipe), "can't be read, because you lack the permission")
    assert "damaged" not in said


# ---------------------------------------------------------- 3. disks fill, and what can be known is said first


def test_the_room_for_the_whole_edit_is_checked_before_the_first_step(pipe, image, tmp_path, monkeypatch):
    """There is room for every checkpoint, but not for the weights of the finished edit beside the last one."""
    weights = 4 * sum(p.numel() for p in pipe.unet.parameters())
    monkeypatch.setattr(checkpoint, "free_on_disk", lambda path: 3.5 * weights)
    monkeypatch.setattr(imagic.edit, "optimize_embedding", None)  # would fail if it trained
    refused(lambda: run_edit(pipe, image, TEXT, **NO_STEPS, folder=tmp_path / "x"), "the edit takes .* has room for")
    assert not list((tmp_path / "x").iterdir()), "nothing was begun"


def test_a_disk_that_fills_at_the_last_file_is_an_oserror_and_the_edit_goes_on(pipe, image, tmp_path):
    with disk_of(200_000), pytest.warns(UserWarning, match="could not be written"), pytest.raises(OSError):
        run_edit(pipe, image, TEXT, embedding_steps=1, unet_steps=1, folder=tmp_path)
    run_edit(pipe, image, TEXT, embedding_steps=1, unet_steps=1, folder=tmp_path)
    assert (tmp_path / "edit.json").is_file() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, UniPCMultistepScheduler])
def test_a_sampler_that_cannot_be_followed_is_replaced_with_a_note(pipe, e_tgt, kind):
    other = with_unet(pipe, pipe.unet)
    other.scheduler = kind.from_config(pipe.scheduler.config)
    with pytest.warns(UserWarning, match=f"{kind.__name__} can't be followed step by step: DDIM draws instead"):
        chosen = scheduler_of(other, None)
    assert torch.equal(chosen.alphas_cumprod, pipe.scheduler.alphas_cumprod)
    refused(lambda: scheduler_of(pipe, other.scheduler), "is not supported: give scheduler=")


@pytest.mark.parametrize("number", ["-1", "-.5", "-0.25"])
def test_a_negative_number_is_no_option(number):
    assert parser().parse_args(["show", "x", "--eta", number, "1"]).eta == [float(number), 1.0]


def test_a_command_leaves_the_warnings_of_its_process_alone(tmp_path):
    before = warnings.formatwarning
    assert main(["show", str(tmp_path)]) == 2 and warnings.formatwarning is before


# ------------------------------------------------ 4. one process a folder, one owner a random state and an adapter


def test_a_second_run_in_a_folder_is_told_so_and_touches_nothing(pipe, image, made, tmp_path):
    other = []

    def second():
        try:
            run_edit(pipe, image, TEXT, **NO_STEPS, folder=tmp_path)
        except ValueError as error:
            other.append(str(error))

    with locked(tmp_path), locked(tmp_path):  # a thread may enter its own lock again
        (thread := threading.Thread(target=second)).start()
        thread.join()
    assert "another run is at work here" in other[0] and "\n" not in other[0] and not list(tmp_path.iterdir())
    with locked(tmp_path):
        pass  # it was given back


def test_a_run_of_another_process_in_a_folder_is_noticed(pipe, image, tmp_path):
    holding = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]): print(flush=True), sys.stdin.read()"
    command = [sys.executable, "-c", holding, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()  # now it has the lock, until its input ends
        refused(lambda: run_edit(pipe, image, TEXT, **NO_STEPS, folder=tmp_path), "another run is at work here")
    run_edit(pipe, image, TEXT, **NO_STEPS, folder=tmp_path)


def test_the_lock_removes_what_a_killed_run_left_and_follows_no_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".edit.json.abcdefgh.tmp").mkdir()
    (tmp_path / ".c.safetensors.abcdefgh.tmp").mkdir()
    with locked(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "mine"]
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with locked(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_lora_draws_from_no_random_state_that_others_share(pipe, image, e_tgt):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (
        imagic.fine_tune(pipe, image, e_tgt, method="lora", steps=0, generator=seeded(seed))[0] for seed in (1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    a, b = ({k: v for k, v in p.unet.state_dict().items() if "lora_A" in k} for p in (first, second))
    assert a and all(not torch.equal(a[name], b[name]) for name in a)


def test_two_threads_can_draw_with_one_lora_at_two_scales(pipe, image, e_tgt):
    tuned, _ = imagic.fine_tune(pipe, image, e_tgt, method="lora", steps=1, lr=0.5, batch=1, generator=seeded())
    with scaled(tuned, 0.5) as half, scaled(tuned, 1) as whole, scaled(tuned, 0) as none, torch.no_grad():
        z, t = torch.randn(1, 4, 16, 16, generator=seeded()), torch.tensor([500])
        drawn = [unet(z, t, e_tgt).sample for unet in (none, half, whole, none)]
    assert torch.equal(drawn[0], drawn[3]) and not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2]) and whole is tuned.unet
    assert next(iter(half.parameters())).data_ptr() == next(iter(whole.parameters())).data_ptr(), "one copy in memory"


def test_two_trainings_of_an_embedding_leave_the_flags_of_the_unet_alone(pipe):
    first, second = frozen_unet(pipe, None), frozen_unet(pipe, None)
    first.__enter__(), second.__enter__(), first.__exit__(None, None, None), second.__exit__(None, None, None)
    assert all(p.requires_grad for p in pipe.unet.parameters())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_pipeline_with_a_lora_says_what_to_do(pipe, image, e_tgt, method):
    tuned, _ = imagic.fine_tune(pipe, image, e_tgt, method="lora", steps=0)
    words = r"has a LoRA already: call fuse_lora\(\) and unload_lora_weights\(\) on it first"
    refused(lambda: imagic.fine_tune(tuned, image, e_tgt, method=method, steps=0), words)
    own = with_unet(pipe, copy.deepcopy(tuned.unet))
    own.fuse_lora()
    own.unload_lora_weights()
    assert imagic.fine_tune(own, image, e_tgt, method=method, steps=0)


def test_a_compiled_unet_is_the_same_model(pipe, made):
    compiled = with_unet(pipe, pipe.unet)
    compiled.unet = torch.compile(copy.deepcopy(pipe.unet))  # nothing is compiled before its first call
    assert fingerprint(compiled) == fingerprint(pipe)
    assert ImagicEdit.load(made / "full", compiled).text == TEXT


def test_a_training_outside_with_says_what_is_missing(pipe):
    training = imagic.training.loop.Training("a fit", {}, torch.optim.Adam([torch.ones(1)]), seeded())
    with pytest.raises(RuntimeError, match="use it in `with"):
        next(training.steps(1))


def test_after_out_of_memory_all_networks_return_to_the_device(pipe, image, monkeypatch):
    """There was no room for them while the training still had its tensors."""
    asked = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *where, **how: asked.append((module, where)) or module)

    def too_much(*_, **__):
        asked.clear()
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(imagic.edit, "optimize_embedding", too_much)
    with pytest.raises(MemoryError, match="the GPU is out of memory"):
        run_edit(pipe, image, TEXT)
    assert {id(module) for module, where in asked if where == (pipe.unet.device,)} >= {id(pipe.unet), id(pipe.vae)}


# ------------------------------------------------------------------------ 6. a picture is its pixels, in sRGB


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)
    )


def encoded(kind: str, picture: Image.Image, **how) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


GRADIENT = Image.merge("RGB", [Image.linear_gradient("L").resize((40, 24)).rotate(angle) for angle in (0, 90, 180)])
ORIENTED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # EXIF: turn it by 90 degrees


@pytest.mark.parametrize(
    "damage",
    [
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b"\0\0"),
        chunk(b"cHRM", b"\0" * 5),
        chunk(b"sRGB", b""),
        chunk(b"acTL", b"\0"),
        chunk(b"eXIf", b"garbage"),
        chunk(b"tEXt", b"Comment\0hello", crc=7),
        chunk(b"iCCP", b"x"),
    ],
    ids=lambda data: data[4:8].decode(),
)
@pytest.mark.parametrize("oriented", [False, True])
def test_what_a_png_says_besides_its_pixels_never_decides_whether_it_opens(tmp_path, damage, oriented):
    content = encoded("PNG", GRADIENT)
    turn = chunk(b"eXIf", ORIENTED) if oriented and damage[4:8] != b"eXIf" else b""
    (tmp_path / "a.png").write_bytes(content[:33] + turn + damage + content[33:])
    expected = GRADIENT.transpose(Image.Transpose.ROTATE_270) if turn else GRADIENT
    assert imagic.open_image(tmp_path / "a.png").tobytes() == expected.tobytes()


def test_what_a_jpeg_says_besides_its_pixels_neither(tmp_path):
    plain = encoded("JPEG", GRADIENT)
    expected = imagic.pictures.to_tensor(Image.open(io.BytesIO(plain)))
    for number, segment in enumerate(
        (b"\xff\xee\0\x07Adobe", b"\xff\xe2\0\x10ICC_PROFILE\0\x09", b"\xff\xed\0\x0fPhotoshop 3")
    ):
        (tmp_path / f"{number}.jpg").write_bytes(plain[:2] + segment + plain[2:])
        assert torch.equal(imagic.pictures.to_tensor(imagic.open_image(tmp_path / f"{number}.jpg")), expected)
    rational = b"II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x1a\x01\x0a\0\x01\0\0\0\x26\0\0\0\0\0\0\0"
    exif = b"Exif\0\0" + rational + struct.pack("<ii", -1, 0)
    (tmp_path / "r.jpg").write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:])
    assert imagic.open_image(tmp_path / "r.jpg").size == (24, 40)


def test_a_jpeg_xl_is_named(tmp_path):
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + b"\0" * 30)
    refused(lambda: imagic.open_image(tmp_path / "a.jxl"), "save it as PNG or JPEG .JPEG XL can't be read")


def test_an_address_is_no_file():
    refused(lambda: imagic.open_image("https://example.org/a.png"), "is an address: download the picture")


def test_a_home_folder_is_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["show", "~/nothing"]) == 2 and f"in {tmp_path / 'nothing'}" in capsys.readouterr().err


def test_pixels_that_are_damaged_are_still_refused(tmp_path):
    content = encoded("PNG", Image.effect_noise((64, 64), 90))
    for broken in (
        content[: len(content) // 2],
        content.replace(b"IDAT", b"IDAX"),
        content[:60] + b"\0" * 50 + content[110:],
    ):
        (tmp_path / "a.png").write_bytes(broken)
        refused(lambda: imagic.open_image(tmp_path / "a.png"), "is damaged or cut short|not a picture")


def test_a_cameras_raw_file_is_refused_and_not_its_preview_taken(tmp_path):
    for number, tags in enumerate(({254: 1}, {50706: b"\x01\x04\0\0"})):
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        directory = ImageFileDirectory_v2()
        for tag, value in tags.items():
            directory[tag] = value
        GRADIENT.save(tmp_path / f"{number}.dng", "TIFF", tiffinfo=directory)
        refused(
            lambda number=number: imagic.open_image(tmp_path / f"{number}.dng"),
            "a camera's raw file.*export it as a JPEG",
        )
    GRADIENT.save(tmp_path / "plain.tif")
    assert imagic.open_image(tmp_path / "plain.tif").tobytes() == GRADIENT.tobytes()


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_newer_formats_open_where_pillow_reads_them(tmp_path, kind):
    path = tmp_path / "picture"
    path.write_bytes(encoded(kind, GRADIENT))
    assert imagic.open_image(path).size == GRADIENT.size


def test_the_first_frame_that_is_not_blank_is_the_picture(tmp_path):
    frames = [Image.new("RGB", (40, 24), "white")] * 2 + [GRADIENT]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    with pytest.warns(UserWarning, match=r"begins with white frames: frame \d is used"):
        assert imagic.open_image(tmp_path / "a.webp").tobytes() == GRADIENT.tobytes()
    frames[0].save(tmp_path / "blank.png")
    assert imagic.open_image(tmp_path / "blank.png").getextrema() == ((255, 255),) * 3


def test_a_small_picture_is_enlarged_with_a_note(pipe):
    with pytest.warns(UserWarning, match="the picture is 40x24: it is enlarged to the model's 128x128"):
        imagic.load_image(GRADIENT, pipe)


def test_colours_of_another_space_become_those_of_srgb(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = bytearray(srgb)
    at = {}
    count = int.from_bytes(wide[128:132], "big")
    for k in range(count):
        name = bytes(wide[132 + 12 * k : 136 + 12 * k])
        start = int.from_bytes(wide[136 + 12 * k : 140 + 12 * k], "big")
        if name in (b"rXYZ", b"bXYZ"):  # red and blue change places
            at[name] = start + 8
        if name == b"desc":
            wide[start:] = bytes(wide[start:]).replace(b"s\0R\0G\0B", b"w\0i\0d\0e").replace(b"sRGB", b"wide")
    red, blue = (bytes(wide[at[name] : at[name] + 12]) for name in (b"rXYZ", b"bXYZ"))
    wide[at[b"rXYZ"] : at[b"rXYZ"] + 12], wide[at[b"bXYZ"] : at[b"bXYZ"] + 12] = blue, red
    for name, profile in (("plain", None), ("srgb", srgb), ("wide", bytes(wide)), ("garbage", b"no profile")):
        Image.new("RGB", (40, 24), (200, 40, 20)).save(tmp_path / f"{name}.png", icc_profile=profile)
    found = {
        name: imagic.open_image(tmp_path / f"{name}.png").getpixel((5, 5))
        for name in ("plain", "srgb", "wide", "garbage")
    }
    assert found["plain"] == found["srgb"] == found["garbage"] == (200, 40, 20)
    assert found["wide"] == pytest.approx((20, 40, 200), abs=3)


# ----------------------------------------------------------- 7. models, texts and numbers that give no picture


def with_config(pipe, **changes):
    """A pipeline that shares all weights, whose UNet says something else of itself."""
    unet = copy.deepcopy(pipe.unet, {id(p): p for p in pipe.unet.parameters()})
    unet.register_to_config(**changes)
    return with_unet(pipe, unet)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 9}, "needs more than a text, as models for inpainting.*: Imagic needs a text-to-image model"),
        ({"num_class_embeds": 1000}, "needs more than a text"),
        ({"sample_size": 0}, "has the sample_size 0"),
        ({"sample_size": [16, 8]}, r"has the sample_size \[16, 8\]"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_loading_and_by_plan(pipe, model_folder, tmp_path, changes, words):
    refused(lambda: check_pipeline(with_config(pipe, **changes)), words)
    shutil.copytree(model_folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    config = tmp_path / "model" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    refused(lambda: on_meta(tmp_path / "model"), words)


def test_a_vae_without_a_scale_is_refused(pipe):
    other = with_config(pipe)
    other.vae = copy.deepcopy(pipe.vae)
    other.vae.register_to_config(scaling_factor=0)
    refused(lambda: check_pipeline(other), "has the scaling_factor 0")


def test_a_vae_or_a_noise_process_of_another_kind_is_refused(pipe):
    other = with_unet(pipe, pipe.unet)
    sizes = {f"{half}_block_out_channels": (8, 8) for half in ("encoder", "decoder")}
    other.vae = AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    refused(lambda: check_pipeline(other), "has an AutoencoderTiny as its VAE")
    other.vae, other.scheduler = pipe.vae, FlowMatchEulerDiscreteScheduler()
    refused(lambda: check_pipeline(other), "has the noise process of FlowMatch")


def test_what_is_written_in_other_ways_is_settled(pipe):
    other = with_config(pipe, sample_size=[16, 16])
    other.tokenizer = copy.deepcopy(pipe.tokenizer)
    other.tokenizer.model_max_length = 10**30
    check_pipeline(other)
    assert other.unet.config.sample_size == 16 and other.tokenizer.model_max_length == pipe.tokenizer.model_max_length
    assert imagic.encode_text(other, "a cat").shape == imagic.encode_text(pipe, "a cat").shape


def test_folders_of_weights_in_other_forms_load_or_say_what_to_do(model_folder, tmp_path):
    half = shutil.copytree(model_folder, tmp_path / "half")
    for weights in half.glob("*/*.safetensors"):
        weights.rename(weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")))
    assert imagic.load_pipeline(half, "cpu").unet.dtype == torch.float32
    for weights in half.glob("*/*.safetensors"):
        weights.rename(weights.with_name(weights.name.replace(".fp16.safetensors", ".bin")))
    refused(lambda: imagic.load_pipeline(half, "cpu"), r"each part needs its \.safetensors, which can run no code")
    (tmp_path / "model.ckpt").write_bytes(b"x")
    refused(
        lambda: imagic.load_pipeline(tmp_path / "model.ckpt"), "is a single file: convert it with .*from_single_file"
    )
    said = refused(lambda: imagic.load_pipeline("https://huggingface.co/no/such"), "'no/such' is not a folder")
    assert "hf download no/such" in said


def test_a_textual_inversion_of_three_vectors_is_read_as_diffusers_reads_it(model_folder):
    pipe = imagic.load_pipeline(model_folder, "cpu")
    vectors = torch.randn(3, pipe.text_encoder.config.hidden_size, generator=seeded())
    pipe.load_textual_inversion({"<my-dog>": vectors}, token="<my-dog>")
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        found = imagic.encode_text(pipe, "a <my-dog> on the grass")
    assert torch.equal(found, pipe.encode_prompt("a <my-dog> on the grass", "cpu", 1, False)[0])
    assert not [note for note in notes if "never saw" in str(note.message)]
    with pytest.warns(UserWarning, match="tokens and the model reads"):
        imagic.encode_text(pipe, "<my-dog> " * 30)  # 90 tokens


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda pipe, e: imagic.interpolate(e, e, 1e30), "η must be a number within ±10"),
        (lambda pipe, e: imagic.generate(pipe, e * float("nan")), "the embeddings have values that are not finite"),
        (
            lambda pipe, e: imagic.generate(pipe, e, guidance_scale=1e38),
            "guidance_scale is 1e.38: it must be 100 at most",
        ),
        (
            lambda pipe, e: imagic.generate(pipe, e, steps=1001, scheduler="dpm++"),
            "steps is 1001: it must be 1000 at most",
        ),
        (lambda pipe, e: imagic.LoRA(rank=50_000), "rank is 50000"),
    ],
)
def test_numbers_that_give_no_picture_are_refused(pipe, e_tgt, call, words):
    refused(lambda: call(pipe, e_tgt), words)


def test_an_image_that_is_not_finite_takes_no_folder(pipe, image, tmp_path):
    refused(lambda: run_edit(pipe, image * float("nan"), TEXT, folder=tmp_path / "x"), "not finite")
    assert not (tmp_path / "x").exists()


def test_minus_zero_is_zero():
    assert folder.picture_name(-0.0, 1) == folder.picture_name(0, 1)
