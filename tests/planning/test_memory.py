"""The plan: its choice on every GPU, its advice, its errors. Its peaks are checked in lab/test_counted_memory.py."""

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from imagic_lib.diffusion import denoising_loss
from imagic_lib.models import load_pipeline
from imagic_lib.planning import memory
from imagic_lib.planning.memory import GIB, Plan, Way, plan, ways_by_preference
from imagic_lib.training.strategies import Strategy, stepping_in_backward

SD = "CompVis/stable-diffusion-v1-4"
FULL, HALF = torch.float32, torch.float16
ORDER = ways_by_preference()


@pytest.fixture(scope="module")
def sd_modules():
    return memory.on_meta(SD)


@pytest.fixture(scope="module")
def sd_plan():
    return plan(SD, gpu_gb=14.75)


@pytest.fixture
def eight_bit(monkeypatch):
    """Switch bitsandbytes on or off, whatever is installed."""
    return lambda there: monkeypatch.setattr(memory, "find_spec", lambda name: object() if there else None)


def how(way: Way | None) -> tuple | None:
    """A way without its peaks."""
    return way and way[:2]


# --- Stable Diffusion 1.4, without its weights ---


def test_the_built_in_configuration_is_exact(sd_modules):
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in sd_modules.items()}
    assert counts == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    assert all(p.is_meta for module in sd_modules.values() for p in module.parameters())


@pytest.mark.parametrize(
    ("gpu_gb", "installed", "index"),
    [
        (24, False, 0),
        (16.1, False, 1),
        (14.75, False, 2),  # a free Colab T4
        (13.5, True, 3),  # preferred to 8-bit, which would fit, too
        (12, True, 4),
        (11.3, True, 5),
        (12, False, 6),
        (7.2, True, None),  # the drawing itself, with its safety checker, takes more
    ],
)
def test_each_branch_of_the_choice(sd_plan, eight_bit, gpu_gb, installed, index):
    eight_bit(installed)
    made = sd_plan._replace(gpu_gb=gpu_gb)
    assert how(made.chosen) == (None if index is None else how(ORDER[index]))
    assert made.advice in str(made)


def test_checkpointing_a_lora_is_the_last_resort_where_drawing_is_not_the_limit(sd_plan):
    elsewhere = sd_plan._replace(ways=[way._replace(sampling=0.0) for way in sd_plan.ways])
    assert how(elsewhere._replace(gpu_gb=5.4).chosen) == how(ORDER[7])
    assert elsewhere._replace(gpu_gb=4.8).chosen is None


def test_a_full_fine_tune_fits_a_t4_with_three_gib_to_spare(sd_plan):
    assert memory.MARGIN == 3
    assert sd_plan.chosen.method == "full" and sd_plan.chosen.peak + 3 <= 14.75


def test_the_ways_of_one_method_that_fit_and_can_be_used(sd_plan, eight_bit):
    for installed, full in ((True, [2, 3, 4, 5]), (False, [2, 3])):
        eight_bit(installed)
        assert sd_plan.fitting("full") == [sd_plan.ways[k] for k in full]
        assert sd_plan.fitting("lora") == sd_plan.ways[6:]
        assert sd_plan.fitting() == sd_plan.fitting("full") + sd_plan.ways[6:]
        assert sd_plan._replace(gpu_gb=4.0).fitting() == []


def test_the_name_of_a_way_says_how_it_trains():
    assert Way("lora", Strategy(torch.bfloat16, checkpointing=True)).name == "LoRA, bfloat16, Adam, checkpointing"
    assert Way("full", Strategy(optimizer="Adam 8-bit")).name == "full, float32, Adam 8-bit"


def test_the_printed_plan(sd_plan, eight_bit):
    eight_bit(False)
    lines = str(sd_plan).splitlines()
    assert len(lines) == 2 + len(ORDER) + 1
    assert lines[2].startswith("  full, float32, Adam ") and lines[2].endswith("13.26  5.86  does not fit")
    assert lines[4].startswith("→ full, float32, Adam in backward") and lines[4].endswith("fits")
    assert lines[6].endswith("fits, needs bitsandbytes")
    assert lines[-1] == "chosen: full, float32, Adam in backward"
    none = sd_plan._replace(gpu_gb=4.0)
    assert "nothing fits into 4.00 GiB" in none.advice and "a larger GPU" in none.advice and '"tiny"' in none.advice


@pytest.mark.parametrize("largest", ["embedding", "fine_tuning", "sampling"])
def test_the_peak_of_a_way_is_that_of_its_largest_stage_and_can_fill_the_room_to_the_margin(largest, monkeypatch):
    monkeypatch.setattr(memory, "MARGIN", 2.0)
    way = ORDER[0]._replace(**({"embedding": 1.0, "fine_tuning": 1.0, "sampling": 1.0} | {largest: 4.0}))
    assert way.peak == 4
    made = Plan("sd", 512, gpu_gb=6.0, ways=[way])
    assert made.fits(way) and made.chosen == way
    tight = made._replace(gpu_gb=5.5)
    assert tight.chosen is None
    assert tight.advice == (
        'nothing fits into 5.50 GiB, the least is 6.00 with the margin: take a larger GPU, or the model "tiny"'
    )
    head = str(made).splitlines()[:2]
    assert head[0].startswith("sd, 512 x 512 pixels, 6.00 GiB of memory, ") and head[0].endswith(" 2 stay free")
    assert head[1].split() == ["peak", "of", "each", "stage,", "GiB", "1", "2", "3+4"]


def test_the_8_bit_optimizer_needs_its_package_and_no_other_does(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "find_spec", lambda name: asked.append(name))
    assert [way.usable for way in ORDER] == [way.strategy.optimizer != "Adam 8-bit" for way in ORDER]
    assert set(asked) == {"bitsandbytes"}


def test_the_plan_of_the_embedded_model_bears_its_name():
    made = plan(load_pipeline("tiny", device="cpu"))
    assert str(made).startswith("tiny, 128 x 128 pixels")  # no path of this machine
    assert plan(gpu_gb=15) == plan("tiny", gpu_gb=15) and plan(gpu_gb=15).model == "tiny"


# --- the helper that steps in the backward pass ---


@pytest.mark.parametrize("checkpointing", [False, True])
def test_stepping_in_the_backward_pass_gives_the_same_weights(pipe, checkpointing):
    def fit(in_backward):
        unet, generator = copy.deepcopy(pipe.unet).train().requires_grad_(True), torch.Generator().manual_seed(0)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        e = torch.randn(1, 8, pipe.unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))

        def backward():
            denoising_loss(unet, DDPMScheduler(), torch.ones(1, 4, 16, 16), e, 2, generator).backward()

        if in_backward:
            adam = torch.optim.Adam(unet.parameters(), lr=1e-3, fused=True)
            with stepping_in_backward(adam):
                for _ in range(4):
                    backward()
                    assert all(p.grad is None for p in unet.parameters())
        else:
            adam = torch.optim.Adam(unet.parameters(), lr=1e-3, fused=True)
            for _ in range(4):
                backward()
                adam.step()
                adam.zero_grad(set_to_none=True)
        return unet, adam

    (plain, adam), (lean, lean_adam) = fit(False), fit(True)
    assert max((a - b).abs().max() for a, b in zip(plain.parameters(), lean.parameters(), strict=True)) <= 1e-6
    assert max((a - b).abs().max() for a, b in zip(plain.parameters(), pipe.unet.parameters(), strict=True)) > 1e-4
    assert all(p.grad is None for p in lean.parameters())
    for a, b in zip(adam.state.values(), lean_adam.state.values(), strict=True):  # so a checkpoint is the same, too
        assert a["step"] == b["step"] == 4


def test_after_the_block_a_backward_pass_only_differentiates():
    layer = torch.nn.Linear(3, 1)
    layer.bias.requires_grad_(False)
    with pytest.raises(KeyError), stepping_in_backward(torch.optim.SGD([layer.weight], lr=1.0)):
        raise KeyError
    before = layer.weight.clone()
    layer(torch.ones(1, 3)).sum().backward()
    assert torch.equal(layer.weight, before) and layer.weight.grad is not None


# --- which model, which device ---


def test_a_folder_and_tiny_are_read_as_the_pipeline_is(pipe, model_folder, monkeypatch):
    def shapes(model):
        parts = [getattr(pipe, name) for name in memory.PARTS] if model is pipe else memory.on_meta(model).values()
        return [(n, p.shape) for part in parts for n, p in part.named_parameters()]

    monkeypatch.setattr(memory, "TINY", model_folder)
    assert shapes(pipe) == shapes(model_folder) == shapes("tiny")


def test_the_device_decides_the_memory_and_the_precision(pipe, monkeypatch):
    here = plan(pipe)
    assert 0.5 < here.gpu_gb < 10_000 and {way.strategy.dtype for way in here.ways} == {FULL}
    gpus = {"cuda": SimpleNamespace(total_memory=15 * GIB)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpus[str(device)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, half in ((True, torch.bfloat16), (False, HALF)):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native or including_emulation
        )
        assert memory.precision("cuda") == half
        assert plan(SD, gpu_gb=9).ways[-1].strategy.dtype == half
    there = plan(SD)  # for a GPU, if there is one
    assert there.gpu_gb == 15 and [how(way) for way in there.ways] == [how(way) for way in ORDER]
    assert memory.precision("cpu") == FULL


def test_a_pipeline_is_planned_for_where_it_is(pipe, monkeypatch):
    """The embedded model stays on the CPU of a machine with a GPU, so float16 is not for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pipe.device.type == "cpu" and {way.strategy.dtype for way in plan(pipe).ways} == {FULL}


def test_errors_say_what_to_do(pipe, model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"'some/other-model' is not a complete diffusers model .*: give "):
        plan("some/other-model", 16)
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="give the GPU's memory in GiB"):
            plan(pipe, gpu_gb=bad)
    damaged = shutil.copytree(model_folder, tmp_path / "damaged")
    (damaged / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"damaged' is not a complete diffusers model \("):
        plan(damaged, 16)
    with pytest.raises(ValueError, match=r"nowhere' is not a complete diffusers model \(.*No such file"):
        plan(tmp_path / "nowhere", 16)
