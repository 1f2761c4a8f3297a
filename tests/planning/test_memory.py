"""The plan's numbers against measured ones, its choice on every size of GPU, its advice, and its errors."""

import copy
import inspect
import shutil
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from imagic_lib import stage1_embedding, stage4_inference
from imagic_lib.diffusion import denoising_loss
from imagic_lib.models import load_pipeline
from imagic_lib.planning import memory
from imagic_lib.planning.memory import GIB, STATE_BYTES, LiveBytes, Plan, Way, advice_after, plan, ways_by_preference
from imagic_lib.training.strategies import Strategy, stepping_in_backward
from imagic_lib.unets import LoRA, add_lora

SD = "CompVis/stable-diffusion-v1-4"
FULL, HALF = torch.float32, torch.float16
ORDER = ways_by_preference()
FLOAT32_LORA = Way("lora", Strategy())  # in no plan for a GPU


@pytest.fixture(scope="module")
def sd_modules():
    return memory.on_meta(SD)


SD_PEAKS = (  # GiB of stage 1, stage 2 and drawing, one row per way: what `plan` counts, as a test below checks
    (4.62, 13.26, 5.86),
    (3.62, 13.01, 5.86),
    (4.62, 11.38, 5.86),
    (3.62, 10.06, 5.86),
    (4.62, 8.45, 5.86),
    (3.62, 8.21, 5.86),
    (2.31, 2.46, 4.25),
    (1.81, 1.83, 4.25),
)


@pytest.fixture
def sd_plan():
    """Written out, so that a test of the choice need not count for half a minute."""
    ways = [
        way._replace(embedding=e, fine_tuning=f, sampling=s) for way, (e, f, s) in zip(ORDER, SD_PEAKS, strict=True)
    ]
    return Plan(SD, 512, gpu_gb=14.75, ways=ways)


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


def test_a_lora_of_rank_4_is_the_reports_one_and_in_float32_its_peak_is_the_measured_one(sd_modules):
    peak, learning = memory.training_peak(sd_modules["unet"], 2, FLOAT32_LORA)
    assert learning == 398_592
    assert round(100 * learning / 859_520_964, 3) == 0.046
    assert sum(p.numel() for p in sd_modules["unet"].parameters()) == 859_520_964  # the caller's has no adapter
    assert peak / GIB == pytest.approx(4.74, rel=0.03)


MEASURED = [  # number of the way, stage, GiB of a real step on random weights
    (0, "fine_tuning", 13.25),
    (1, "fine_tuning", 13.01),
    (2, "fine_tuning", 11.3),
    (4, "fine_tuning", 8.45),
    (5, "fine_tuning", 8.21),
    (6, "fine_tuning", 2.46),
    (7, "fine_tuning", 1.83),
    (0, "embedding", 4.62),
    (1, "embedding", 3.62),
    (6, "embedding", 2.31),
]


@pytest.mark.slow
def test_predicted_peaks_are_the_measured_ones(sd_plan):
    made = plan(SD, gpu_gb=14.75)
    for index, stage, measured in MEASURED:
        assert getattr(made.ways[index], stage) == pytest.approx(measured, rel=0.03), (index, stage)
    assert made._replace(ways=[]) == sd_plan._replace(ways=[])
    for way, written in zip(made.ways, sd_plan.ways, strict=True):
        assert how(way) == how(written) and way[2:] == pytest.approx(written[2:], rel=0.01)
    moments = STATE_BYTES["Adam"] * 859_520_964 / GIB
    assert made.ways[0].fine_tuning - moments == pytest.approx(6.85, rel=0.03)


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


def test_the_bytes_of_the_safety_checker(pipe, tmp_path):
    """It is on the GPU while pictures are drawn: 1.2 GB with SD 1.4."""
    size = memory.checker_bytes
    assert size(pipe) == size("tiny") == 0
    checked = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    checked.safety_checker = torch.nn.Linear(9, 1)
    assert size(checked) == 4 * 10
    assert size(SD) == memory.SAFETY_CHECKER > 10**9
    folder = tmp_path / "safety_checker"
    folder.mkdir()
    assert size(tmp_path) == 0
    for name, count in (("model.safetensors", 7), ("model.fp16.safetensors", 3), ("config.json", 2)):
        (folder / name).write_bytes(bytes(count))
    assert size(tmp_path) == size(str(tmp_path)) == 7  # it is loaded in float32


def advised(method: str, strategy: Strategy | None, half=HALF) -> str | None:
    """The name of the way that is to be tried after this one ran out of memory, on a GPU with this half precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "precision", lambda device: half)
        sentence = advice_after(method, strategy, torch.device("cuda"))
    assert sentence.startswith("the GPU is out of memory: ") and sentence.endswith("memory.plan shows all)")
    _, quote, rest = sentence.partition("try the strategy “")
    assert quote or "only a larger GPU will do" in sentence
    return rest.partition("”")[0] or None


def test_the_advice_walks_through_ever_smaller_ways_to_the_end(sd_plan, eight_bit):
    for installed, expected in ((True, sd_plan.ways), (False, sd_plan.ways[:4] + sd_plan.ways[6:])):
        eight_bit(installed)
        names, walk = {way.name: way for way in sd_plan.ways}, [sd_plan.ways[0]]
        while smaller := advised(*how(walk[-1])):
            walk.append(names[smaller])
        assert walk == expected
        needs = [way.fine_tuning for way in walk]
        assert needs == sorted(needs, reverse=True)


@pytest.mark.parametrize("half", [HALF, torch.bfloat16])
def test_the_advice_is_always_a_way_that_the_plan_shows(eight_bit, half):
    eight_bit(False)
    shown = ways_by_preference(half)
    for way in {*ORDER, *shown, FLOAT32_LORA}:
        assert advised(*how(way), half) in {*(other.name for other in shown), None}
    assert advised("full", None, half) == shown[1].name
    assert advised(*how(FLOAT32_LORA), half) == advised("lora", None, half) == shown[6].name  # smaller by its precision
    assert advised("lora", Strategy(HALF), half) == shown[7].name  # planned for another GPU
    assert advised("lora", Strategy(HALF, checkpointing=True), half) is None


def test_the_plan_of_the_embedded_model_bears_its_name(monkeypatch):
    monkeypatch.setattr(memory, "training_peak", lambda *_, **__: (GIB, 0))
    monkeypatch.setattr(memory, "sampling_peak", lambda *_, **__: GIB)
    made = plan(load_pipeline("tiny", device="cpu"))
    assert str(made).startswith("tiny, 128 x 128 pixels")  # no path of this machine
    assert plan(gpu_gb=15) == plan("tiny", gpu_gb=15) and plan(gpu_gb=15).model == "tiny"


# --- a small model, predicted and then really run ---


def counted(unet, stage, way, batch=2, side=16, tokens=8):
    """The peak of the second of two real steps on this CPU, in bytes."""
    unet, strategy = copy.deepcopy(unet).train().requires_grad_(stage == 2), way.strategy
    if stage == 2 and way.method == "lora":
        add_lora(unet, LoRA())
    if strategy.checkpointing:
        unet.enable_gradient_checkpointing()
    e = torch.zeros(1, tokens, unet.config.cross_attention_dim).requires_grad_(stage == 1)
    latents = torch.zeros(1, 4, side, side)
    learning = [p for p in unet.parameters() if p.requires_grad] or [e]
    generator = torch.Generator().manual_seed(0)

    def backward():
        denoising_loss(unet, DDPMScheduler(), latents, e, batch, generator).backward()

    def adam(parameters):
        return torch.optim.Adam(parameters, fused=True)

    with LiveBytes() as live:
        live.watch(*unet.parameters(), e, latents)
        if strategy.optimizer == "Adam in backward":
            with stepping_in_backward(adam(learning)):
                backward()
                live.peak = live.now
                backward()
        else:
            optimizer = adam(learning)
            for _ in range(2):
                live.peak = live.now
                backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return live.peak


@pytest.fixture(scope="module")
def predicted(pipe):
    """(stage, way, batch=, side=) -> (the predicted peak in bytes, numbers that learn), counted once."""
    unet = memory.on_meta(pipe)["unet"]
    return cache(
        lambda stage, way, batch=2, side=16: memory.training_peak(unet, stage, way, batch=batch, side=side, tokens=8)
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("stage", "method", "optimizer"),
    [(1, "full", "Adam"), (2, "full", "Adam"), (2, "full", "Adam in backward"), (2, "lora", "Adam")],
)
def test_prediction_against_a_real_step(pipe, predicted, stage, method, optimizer, checkpointing):
    way = Way(method, Strategy(FULL, optimizer, checkpointing))
    peak, learning = predicted(stage, way, batch=2, side=16)
    assert counted(pipe.unet, stage, way) == pytest.approx(peak + learning * STATE_BYTES[optimizer], rel=0.15)


def test_sampling_against_a_real_one(pipe):
    predicted = memory.sampling_peak(memory.on_meta(pipe), FULL, at_once=2, side=16)
    e = torch.zeros(2, pipe.text_encoder.config.max_position_embeddings, pipe.unet.config.cross_attention_dim)
    with LiveBytes() as live:
        live.watch(*(p for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()))
        stage4_inference.generate(pipe, e, steps=2)
    assert live.peak == pytest.approx(predicted, rel=0.15)


def test_a_half_precision_unet_draws_in_less_by_half_its_weights(pipe):
    modules = memory.on_meta(pipe)
    numbers = sum(p.numel() for p in modules["unet"].parameters())
    full, half = (memory.sampling_peak(modules, dtype, side=16) for dtype in (FULL, HALF))
    assert full - half == pytest.approx(2 * numbers, rel=0.02)
    assert all(p.is_meta for module in modules.values() for p in module.parameters())  # the caller's stay as they were


def test_a_larger_batch_and_larger_pictures_take_more(predicted):
    large, small, single = (predicted(2, ORDER[0], batch=b, side=s)[0] for b, s in ((2, 16), (2, 8), (1, 8)))
    assert large > small > single


def test_left_out_sizes_are_stable_diffusion_s():
    def default(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    assert default(memory.training_peak) == {"batch": 1, "side": 64, "tokens": 77, "lora": LoRA()}
    assert default(memory.sampling_peak) == {"at_once": 1, "side": 64}


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


@pytest.mark.slow
def test_a_pipeline_is_planned_for_and_stays_as_it_was(pipe, monkeypatch):
    monkeypatch.setattr(memory, "ways_by_preference", lambda half: [ORDER[7]])  # each more takes seconds
    weights, state = [p.clone() for p in pipe.unet.parameters()], torch.get_rng_state()
    made = plan(pipe, gpu_gb=6)
    assert made.size == 128 and how(made.chosen) == how(ORDER[7]) and len(made.ways) == 1
    assert all(0 < peak < 1 for peak in made.chosen[2:])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, pipe.unet.parameters(), strict=True))
    assert all(p.requires_grad for p in pipe.unet.parameters())


def test_a_folder_and_tiny_are_read_as_the_pipeline_is(pipe, model_folder, monkeypatch):
    def shapes(model):
        return [(n, p.shape) for part in memory.on_meta(model).values() for n, p in part.named_parameters()]

    monkeypatch.setattr(memory, "TINY", model_folder)
    assert shapes(pipe) == shapes(model_folder) == shapes("tiny")


def test_the_device_decides_the_memory_and_the_precision(pipe, monkeypatch):
    monkeypatch.setattr(memory, "training_peak", lambda *_, **__: (GIB, 0))
    monkeypatch.setattr(memory, "sampling_peak", lambda *_, **__: GIB)
    here = plan(pipe, device="cpu")
    assert 0.5 < here.gpu_gb < 10_000 and {way.strategy.dtype for way in here.ways} == {FULL}
    gpus = {"cuda": SimpleNamespace(total_memory=15 * GIB)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpus[str(device)])
    for native, half in ((True, torch.bfloat16), (False, HALF)):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native or including_emulation
        )
        assert memory.precision("cuda") == half
        assert plan(pipe, gpu_gb=9, device="cuda").ways[-1].strategy.dtype == half
    there = plan(pipe, device="cuda")
    assert there.gpu_gb == 15 and [how(way) for way in there.ways] == [how(way) for way in ORDER]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert plan(SD).gpu_gb == 15  # a GPU that is there is planned for
    assert memory.precision("cpu") == FULL


def test_a_pipeline_is_planned_for_where_it_is(pipe, monkeypatch):
    """The embedded model stays on the CPU of a machine with a GPU, so float16 is not for it."""
    monkeypatch.setattr(memory, "training_peak", lambda *_, **__: (GIB, 0))
    monkeypatch.setattr(memory, "sampling_peak", lambda *_, **__: GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pipe.device.type == "cpu" and {way.strategy.dtype for way in plan(pipe).ways} == {FULL}


def test_a_plan_asks_for_each_stage_once_and_adds_the_moments(monkeypatch):
    """Stage 1 depends on precision and checkpointing alone, an 8-bit Adam computes as Adam does: ten steps, not 16."""
    asked, drawn = [], []

    def training_peak(unet, stage, way, *, batch, side, tokens):
        asked.append((stage, way, batch, side, tokens))
        strategy = way.strategy
        return (10 * stage + 2 * strategy.checkpointing + (strategy.optimizer == "Adam in backward")) * GIB, GIB

    def sampling_peak(modules, dtype, *, at_once, side):
        drawn.append((sorted(modules), dtype, at_once, side))
        return (5 if dtype == FULL else 3) * GIB

    monkeypatch.setattr(memory, "training_peak", training_peak)
    monkeypatch.setattr(memory, "sampling_peak", sampling_peak)
    monkeypatch.setattr(memory, "checker_bytes", lambda model: {SD: GIB}[model])
    made = plan(SD, gpu_gb=16)
    assert made[:3] == (SD, 512, 16) and [how(way) for way in made.ways] == [how(way) for way in ORDER]
    assert [way.embedding for way in made.ways] == [10, 12] * 4
    assert [way.fine_tuning for way in made.ways] == [28, 30, 29, 31, 22, 24, 28, 30]
    assert [way.sampling for way in made.ways] == [6] * 6 + [4] * 2
    assert len(asked) == len(set(asked)) == 10
    assert {(batch, side, tokens) for _, _, batch, side, tokens in asked} == {(1, 64, 77)}  # the model's own
    assert all((way.method, way.strategy.optimizer) == ("full", "Adam") for stage, way, *_ in asked if stage == 1)
    assert drawn == [(["text_encoder", "unet", "vae"], dtype, 1, 64) for dtype in (FULL, HALF)]
    monkeypatch.setattr(memory, "checker_bytes", lambda model: 0)
    monkeypatch.setitem(stage1_embedding.DEFAULTS["tiny"], "batch", 5)
    asked.clear(), drawn.clear()
    assert plan("tiny", gpu_gb=16).size == 128
    assert {(stage, batch) for stage, _, batch, *_ in asked} == {(1, 5), (2, 8)} and drawn[0][2] == 16


def test_errors_say_what_to_do(pipe, model_folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no plan for 'some/other-model': give"):
        plan("some/other-model", 16)
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="give the GPU's memory in GiB"):
            plan(pipe, gpu_gb=bad)
    damaged = shutil.copytree(model_folder, tmp_path / "damaged")
    (damaged / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not a complete diffusers model"):
        plan(damaged, 16)
    monkeypatch.setattr(memory, "TINY", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="clone again"):
        plan("tiny", 16)
