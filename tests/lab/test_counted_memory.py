"""The counted memory against measured peaks: of Stable Diffusion 1.4, written down, and of a small model, here."""

import copy
import inspect
import json
from functools import cache

import pytest
import torch
from diffusers import DDPMScheduler

from imagic_lab.numbers import memory
from imagic_lab.numbers.memory import MODELS, STATE_BYTES, LiveBytes, counted_peaks, sampling_peak, training_peak
from imagic_lib import stage1_embedding, stage4_inference
from imagic_lib.diffusion import denoising_loss
from imagic_lib.planning.memory import GIB, PEAKS, Way, on_meta, ways_by_preference
from imagic_lib.training.strategies import Strategy, stepping_in_backward
from imagic_lib.unets import LoRA, add_lora

TINY, SD = MODELS
FULL, HALF = torch.float32, torch.float16
ORDER = ways_by_preference()
STORED = json.loads(PEAKS.read_text())

MEASURED = [  # number of the way, stage, GiB of a real step on random weights
    (0, 2, 13.25),
    (1, 2, 13.01),
    (2, 2, 11.3),
    (4, 2, 8.45),
    (5, 2, 8.21),
    (6, 2, 2.46),
    (7, 2, 1.83),
    (0, 1, 4.62),
    (1, 1, 3.62),
    (6, 1, 2.31),
]


def test_the_stored_peaks_are_the_measured_ones():
    for index, stage, measured in MEASURED:
        assert STORED["stable-diffusion"][ORDER[index].name][stage - 1] == pytest.approx(measured, rel=0.03)
    float32_lora = Way("lora", Strategy()).name
    assert STORED["stable-diffusion"][float32_lora][1] == pytest.approx(4.74, rel=0.03)
    moments = STATE_BYTES["Adam"] * 859_520_964 / GIB
    assert STORED["stable-diffusion"][ORDER[0].name][1] - moments == pytest.approx(6.85, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind", "some"),
    [(TINY, "tiny", slice(None)), (SD, "stable-diffusion", slice(5, 7))],  # of the large model two that share no step
)
def test_the_stored_peaks_are_what_is_counted_today(model, kind, some):
    found = counted_peaks(model, HALF, some)
    assert len(found) == len(ORDER[some])
    for name, peaks in found.items():
        assert peaks == pytest.approx(STORED[kind][name], rel=0.01), name


def test_every_way_on_every_device_has_its_peaks_stored():
    names = {way.name for half in (HALF, FULL) for way in ways_by_preference(half)}
    assert {kind: set(peaks) for kind, peaks in STORED.items()} == {"tiny": names, "stable-diffusion": names}


def test_a_lora_of_rank_4_is_the_reports_one():
    unet = on_meta(SD)["unet"]
    _, learning = training_peak(unet, 2, Way("lora", Strategy()))
    assert learning == 398_592
    assert round(100 * learning / 859_520_964, 3) == 0.046
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964  # the caller's has no adapter


def test_each_step_is_counted_once_and_the_moments_are_added(monkeypatch):
    """Stage 1 depends on precision and checkpointing alone, an 8-bit Adam computes as Adam does: ten steps, not 16."""
    asked, drawn = [], []

    def training(unet, stage, way, *, batch, side, tokens):
        asked.append((stage, way, batch, side, tokens))
        strategy = way.strategy
        return (10 * stage + 2 * strategy.checkpointing + (strategy.optimizer == "Adam in backward")) * GIB, GIB

    def sampling(modules, dtype, *, at_once, side):
        drawn.append((sorted(modules), dtype, at_once, side))
        return (5 if dtype == FULL else 3) * GIB

    monkeypatch.setattr(memory, "training_peak", training)
    monkeypatch.setattr(memory, "sampling_peak", sampling)
    monkeypatch.setattr(memory, "CHECKER_BYTES", {"tiny": 0, "stable-diffusion": GIB})
    peaks = counted_peaks(SD, HALF)
    assert list(peaks) == [way.name for way in ORDER]
    assert [embedding for embedding, _, _ in peaks.values()] == [10, 12] * 4
    assert [fine_tuning for _, fine_tuning, _ in peaks.values()] == [28, 30, 29, 31, 22, 24, 28, 30]
    assert [drawing for _, _, drawing in peaks.values()] == [6] * 6 + [4] * 2
    assert len(asked) == len(set(asked)) == 10
    assert {(batch, side, tokens) for _, _, batch, side, tokens in asked} == {(1, 64, 77)}  # the model's own
    assert all((way.method, way.strategy.optimizer) == ("full", "Adam") for stage, way, *_ in asked if stage == 1)
    assert drawn == [(["text_encoder", "unet", "vae"], dtype, 1, 64) for dtype in (FULL, HALF)]
    monkeypatch.setitem(stage1_embedding.DEFAULTS["tiny"], "batch", 5)
    asked.clear(), drawn.clear()
    assert [drawing for _, _, drawing in counted_peaks(TINY, HALF).values()] == [5] * 6 + [3] * 2
    assert {(stage, batch) for stage, _, batch, *_ in asked} == {(1, 5), (2, 8)} and drawn[0][2] == 16


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
def predicted(model_folder):
    """(stage, way, batch=, side=) -> (the predicted peak in bytes, numbers that learn), counted once."""
    unet = on_meta(model_folder)["unet"]
    return cache(lambda stage, way, batch=2, side=16: training_peak(unet, stage, way, batch=batch, side=side, tokens=8))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("stage", "method", "optimizer"),
    [(1, "full", "Adam"), (2, "full", "Adam"), (2, "full", "Adam in backward"), (2, "lora", "Adam")],
)
def test_prediction_against_a_real_step(pipe, predicted, stage, method, optimizer, checkpointing):
    way = Way(method, Strategy(FULL, optimizer, checkpointing))
    peak, learning = predicted(stage, way, batch=2, side=16)
    assert counted(pipe.unet, stage, way) == pytest.approx(peak + learning * STATE_BYTES[optimizer], rel=0.15)


def test_sampling_against_a_real_one(pipe, model_folder):
    predicted = sampling_peak(on_meta(model_folder), FULL, at_once=2, side=16)
    e = torch.zeros(2, pipe.text_encoder.config.max_position_embeddings, pipe.unet.config.cross_attention_dim)
    with LiveBytes() as live:
        live.watch(*(p for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()))
        stage4_inference.generate(pipe, e, steps=2)
    assert live.peak == pytest.approx(predicted, rel=0.15)


def test_a_half_precision_unet_draws_in_less_by_half_its_weights(model_folder):
    modules = on_meta(model_folder)
    numbers = sum(p.numel() for p in modules["unet"].parameters())
    full, half = (sampling_peak(modules, dtype, side=16) for dtype in (FULL, HALF))
    assert full - half == pytest.approx(2 * numbers, rel=0.02)
    assert all(p.is_meta for module in modules.values() for p in module.parameters())  # the caller's stay as they were


def test_a_larger_batch_and_larger_pictures_take_more(predicted):
    large, small, single = (predicted(2, ORDER[0], batch=b, side=s)[0] for b, s in ((2, 16), (2, 8), (1, 8)))
    assert large > small > single


def test_left_out_sizes_are_stable_diffusion_s():
    def default(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    assert default(training_peak) == {"batch": 1, "side": 64, "tokens": 77, "lora": LoRA()}
    assert default(sampling_peak) == {"at_once": 1, "side": 64}
