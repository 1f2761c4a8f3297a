"""The forecast is made of real steps, counts what is done already, and speaks as a person does."""

import time

import pytest

from imagic_lab.studio import forecast as module
from imagic_lab.studio.forecast import Forecast, Pace, forecast, pace, sampling_pace, spoken, worthwhile
from imagic_lib.edit import run_edit, settings_of
from imagic_lib.training.loop import History, Run


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "5 s"), (12, "15 s"), (54, "55 s"), (55, "1 min"), (61, "2 min"), (3600, "1 h 00 min"), (5000, "1 h 24 min")],
)
def test_seconds_are_spoken_and_rounded_up(seconds, words):
    assert spoken(seconds) == words


@pytest.mark.parametrize("unit", [1, 0.01], ids=["slow", "fast"])
def test_the_times_of_a_step_of_a_probe_and_of_the_rest_are_told_apart(monkeypatch, unit):
    """A training in which each takes its own time, by a clock that this test moves."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def train(run):
        assert run.bar is False and run.strategy == "a strategy" and run.probe_every > 1000
        now[0] += unit * (7 + 2 + 30)  # to set up, a first probe, and a first step that warms up
        for step, seconds in enumerate((0, 2, 4, 3 + 2), 1):  # two steps are timed, the last one has a probe
            now[0] += unit * seconds
            assert step <= module.TIMED
            run.watch("stage", History())
        now[0] += unit * 1  # to put away

    found = pace(train, "a strategy")
    expected = Pace(once=unit * (7 + 30 - 3 + 1), step=unit * 3, probe=unit * 2)
    assert found == Pace(*map(pytest.approx, expected))
    assert found.seconds(100) == pytest.approx(unit * (35 + 300 + 20))


@pytest.mark.parametrize("unit", [1, 0.01], ids=["slow", "fast"])
def test_a_picture_takes_its_steps_and_a_fixed_time(monkeypatch, unit):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def draw(steps):
        now[0] += unit * (4 + 2 * steps)

    assert sampling_pace(draw).seconds(50) == pytest.approx(unit * 104)


def test_the_timed_steps_are_those_of_the_edit(pipe, image, monkeypatch):
    """A few steps with its method, its strategy and its sampler."""
    calls = []
    monkeypatch.setattr(module, "optimize_embedding", lambda *_, run, **how: calls.append((1, run.strategy, how)))
    monkeypatch.setattr(module, "fine_tune", lambda *_, run, **how: calls.append((2, run.strategy, how)))
    monkeypatch.setattr(module, "generate", lambda *_, **how: calls.append((4, how)))
    monkeypatch.setattr(module, "pace", lambda train, strategy: (train(Run(strategy=strategy)), Pace(0, 1))[1])
    monkeypatch.setattr(module, "sampling_pace", lambda draw: (draw(3), Pace(0, 1))[1])
    settings = settings_of(pipe, "lora", None, None, 0)
    forecast(pipe, image, settings, strategy="frugal", sampling={"scheduler": "ddim", "steps": 9})
    assert calls == [
        (1, "frugal", {"steps": module.TIMED}),
        (2, "frugal", {"steps": module.TIMED, "method": "lora"}),
        (4, {"steps": 3, "scheduler": "ddim"}),
    ]


def test_steps_in_a_checkpoint_are_not_counted_again(pipe, image, tmp_path, monkeypatch):
    done = {(tmp_path, "embedding"): {"loss": [0.5] * 30}, (tmp_path, "full"): None}
    monkeypatch.setattr(module, "pace", lambda train, strategy: Pace(0, 1))
    monkeypatch.setattr(module, "sampling_pace", lambda draw: Pace(0, 1))
    monkeypatch.setattr(module, "history_so_far", lambda folder, stage: done[folder, stage])
    settings = settings_of(pipe, "full", None, None, 0)
    assert forecast(pipe, image, settings, sampling={"steps": 7}) == Forecast(40, 100, 7)
    assert forecast(pipe, image, settings, folder=tmp_path)[:2] == (10, 100)


def test_a_forecast_is_near_what_the_edit_then_takes(pipe, image, monkeypatch):
    """Within a factor, because people ask for the order of magnitude. A busy machine changes nothing, because the clock
    of this test is the processor's."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    found = forecast(pipe, image, settings_of(pipe, "full", 12, 12, 0))
    began = time.process_time()
    run_edit(pipe, image, "a brown dog", embedding_steps=12, unet_steps=12)
    took = time.process_time() - began
    assert 0.2 < (found.embedding + found.fine_tuning) / took < 5


def test_a_few_steps_need_no_forecast():
    assert not worthwhile({"embedding_steps": 8, "unet_steps": 8}) and worthwhile(
        {"embedding_steps": 40, "unet_steps": 60}
    )


def test_the_sentence_names_each_part():
    assert Forecast(60, 120, 2).sentence(16) == "about 4 min in all (stage 1 1 min, stage 2 2 min, 16 pictures 35 s)"
