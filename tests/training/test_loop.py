"""A training that is stopped, killed or diverges loses nothing, and one that is resumed gives the same bits."""

import math
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from imagic_lib import files
from imagic_lib.files import load_tensors, save_tensors
from imagic_lib.training import checkpoint as checkpoints
from imagic_lib.training.checkpoint import CheckpointFile, TrainingJob
from imagic_lib.training.loop import Run, Training, rate_at
from imagic_lib.training.strategies import stepping_in_backward
from tests.common import no_more_steps, seeded

ROOT = Path(__file__).resolve().parents[2]
GOAL = torch.tensor([1.0, 2.0, 3.0])


def training_of(x, run=Run(), lr=0.05, look=lambda: 0.0, **facts):
    """A training of one vector, with a probe loss that can be given."""
    optimizer = torch.optim.Adam([x], lr=lr)
    return Training("a fit", {"x": x}, optimizer, seeded(), TrainingJob(facts, {}), run, look)


def fit(checkpoint=None, steps=40, pause=0.0, on_step=None, lr=0.05, decay=0.0, facts=(), probe_every=5, **run):
    """Find the vector (1, 2, 3) by looking at it through noise: (what was found, the history)."""
    x = torch.zeros(3, requires_grad=True)
    run = Run(checkpoint=checkpoint, probe_every=probe_every, **run)
    look = lambda: (x - GOAL).square().sum().item()  # noqa: E731
    with training_of(x, run, lr, look, **dict(facts)) as training:
        for step in training.steps(steps, decay):
            time.sleep(pause)
            if on_step:
                on_step(training)
            noise = 0.1 * torch.randn(3, generator=training.generator)
            step((x - GOAL + noise).square().sum())
    return x.detach(), training.history


def stop_after(step: int):
    """A `watch` that ends the training after this step."""
    return lambda name, history: len(history.loss) == step


def loaded(path, run=Run(), **changes):
    """A training with the state of a checkpoint, as it is before its next step."""
    training = training_of(torch.zeros(3, requires_grad=True), Run(checkpoint=path))
    for name, value in changes.items():
        setattr(training, name, value)
    training.file.open()
    return training


@pytest.fixture
def save_at_every_step(monkeypatch):
    monkeypatch.setattr(checkpoints, "SAVING_SHARE", math.inf)
    monkeypatch.setattr(checkpoints, "SAVE_AFTER", 0.0)


@pytest.fixture
def saved(monkeypatch):
    """For each checkpoint that is written, the time and the number of steps. Nothing is written."""
    written = []

    def write(path, tensors, facts):
        written.append((time.monotonic(), len(facts["history"]["loss"])))

    monkeypatch.setattr(files, "save_tensors", write)
    return written


# ------------------------------------------------------------------------------------ stopped and resumed

SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from imagic_lib.training import checkpoint
from tests.training.test_loop import fit
checkpoint.SAVE_AFTER, place, choose = 0.1, Path(sys.argv[1]), random.Random(4)

def begin(name, pause):
    # in another process, for which everything is imported already
    if (process := os.fork()) == 0:
        result, history = fit(place / name, steps=40, pause=pause)
        print(name, result.tolist(), history.loss, history.probe_loss, flush=True)
        os._exit(0)
    return process

os.waitpid(begin("a", 0), 0)
for _ in range(3):
    process, stamp, wanted = begin("b", 0.05), 0, choose.randint(1, 3)
    while wanted:  # kill it after so many new checkpoints
        now = (place / "b").stat().st_mtime_ns if (place / "b").exists() else 0
        wanted, stamp = wanted - (now != stamp), now
        assert os.waitpid(process, os.WNOHANG) == (0, 0), "it ended before it could be killed"
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
os.waitpid(begin("b", 0), 0)
"""


@pytest.mark.slow
def test_killed_at_random_steps_and_resumed_gives_the_same_bits(tmp_path):
    script = [sys.executable, "-c", SCRIPT.format(root=str(ROOT)), tmp_path]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    whole, resumed = done.stdout.splitlines()
    assert resumed[1:] == whole[1:] and resumed[0] == "b" and whole.count(",") > 40
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".tmp")) == ["a", "b"]


@pytest.fixture
def ctrl_c():
    """Ctrl-C works in this test, even if a shell started pytest in the background, which switches it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_stop_button_ends_after_the_step_and_keeps_the_result_and_it_can_go_on(tmp_path, ctrl_c):
    def press(training):
        if len(training.history.loss) == 10:
            signal.raise_signal(signal.SIGINT)

    whole, all_steps = fit(tmp_path / "whole")
    part, stopped = fit(tmp_path / "part", on_step=press)
    assert len(stopped.loss) == 11 and stopped.stopped and not torch.equal(part, torch.zeros(3))
    rest, resumed = fit(tmp_path / "part")
    assert torch.equal(rest, whole) and resumed.loss == all_steps.loss and not resumed.stopped
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_watch_sees_every_step_and_can_end_the_training_which_can_go_on(tmp_path):
    seen = []

    def watch(stage, history):
        seen.append((stage, len(history.loss)))
        return len(history.loss) == 7

    checkpoint = tmp_path / "fit.safetensors"
    result, history = fit(checkpoint, watch=watch)
    assert seen == [("a fit", step) for step in range(1, 8)] and history.stopped
    assert torch.equal(result, fit(steps=7)[0])
    assert torch.equal(fit(checkpoint)[0], fit()[0]), "the same bits as without a stop"


def test_ended_one_step_early_is_stopped_and_ended_at_the_last_step_is_done():
    early, last = (fit(steps=5, watch=stop_after(at))[1] for at in (4, 5))
    assert (early.stopped, len(early.loss)) == (True, 4)
    assert (last.stopped, len(last.loss)) == (False, 5)


def test_a_checkpoint_with_all_its_steps_is_not_written_again(tmp_path, monkeypatch):
    fit(tmp_path / "c", steps=5)
    monkeypatch.setattr(CheckpointFile, "save", lambda file: pytest.fail("written again"))
    no_more_steps(monkeypatch)
    assert len(fit(tmp_path / "c", steps=5)[1].loss) == 5


def test_a_second_press_raises_at_once(ctrl_c):
    def press(training):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(on_step=press)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Fault(Exception):
    pass


def fails(*_, **__):
    raise Fault


@pytest.mark.parametrize("where", ["stage", "watch", "probe", "save", "bar", "break", "suspended"])
def test_ctrl_c_is_the_users_again_however_the_loop_ends(where, ctrl_c, tmp_path, monkeypatch):
    """An exception in the body of the loop leaves the generator suspended, with its own `finally` still to come."""
    x = torch.zeros(3, requires_grad=True)
    run = Run(checkpoint=tmp_path / "c", watch=fails if where == "watch" else None, probe_every=1)
    training = training_of(x, run, look=lambda: fails() if where == "probe" and x.any() else 0.0)
    if where == "save":
        monkeypatch.setattr(CheckpointFile, "save", fails)
    if where == "bar":
        monkeypatch.setattr("imagic_lib.training.loop.tqdm", fails)
    held, taken = None, 0
    with pytest.raises(Fault), training:
        held = training.steps(3)
        for step in held:
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            if where == "stage":
                fails()
            step((x - GOAL).square().sum())
            taken += 1
            if where == "break":
                break
            if where == "suspended":
                fails()
        fails()  # where the loop itself did not
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert taken == {"stage": 0, "bar": 0, "save": 3}.get(where, 1)
    assert training.bar is None or training.bar.disable, "the bar is closed"
    held.close()  # the generator was still there, and changes nothing any more
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("times", [0, 2])
def test_a_loop_that_does_not_take_each_step_once_is_an_error(times):
    x = torch.zeros(3, requires_grad=True)
    words = r"^step 2 of a fit was not taken: call step\(loss\) once in the loop$"
    with pytest.raises(RuntimeError, match=words), training_of(x) as training:
        for turn, step in enumerate(training.steps(5)):
            assert turn < 2, "it would never end"
            for _ in range(times if turn else 1):
                step((x - GOAL).square().sum())


# ------------------------------------------------------------------------------------- the learning rate


def test_the_rate_is_kept_and_then_falls_in_a_line_to_nearly_0():
    assert [rate_at(step, 8, 2.0, 0.5) for step in range(1, 9)] == [2, 2, 2, 2, 2, 1.5, 1, 0.5]
    assert [rate_at(step, 4, 2.0, 1.0) for step in range(1, 5)] == [2, 1.5, 1, 0.5]
    assert {rate_at(step, 8, 2.0, 0.0) for step in range(1, 9)} == {2.0}
    assert [rate_at(step, 8, 2.0, 0.5, warmup=4) for step in range(1, 9)] == [0.5, 1, 1.5, 2, 2, 1.5, 1, 0.5]


def test_a_falling_rate_is_written_down_and_survives_a_stop(tmp_path):
    result, whole = fit(decay=0.5)
    assert whole.learning_rate == [rate_at(step, 40, 0.05, 0.5) for step in range(1, 41)]
    fit(tmp_path / "a", decay=0.5, watch=stop_after(33))
    resumed, history = fit(tmp_path / "a", decay=0.5)
    assert torch.equal(resumed, result) and history.learning_rate == whole.learning_rate


def test_the_rate_of_each_group_of_weights_falls_from_its_own_start():
    x, y = (torch.ones(1, requires_grad=True) for _ in "xy")
    sgd = torch.optim.SGD([{"params": [x], "lr": 0.5}, {"params": [y], "lr": 0.25}])
    with Training("a fit", {"x": x, "y": y}, sgd, seeded()) as training:
        for step in training.steps(2, decay=1.0):
            step((x + y).sum())
    assert (x.item(), y.item()) == (1 - 0.5 - 0.25, 1 - 0.25 - 0.125)


# ------------------------------------------------------------------------------------------- divergence


def test_divergence_stops_at_once_and_says_where_the_last_good_state_is(tmp_path, save_at_every_step):
    x = torch.zeros(3, requires_grad=True)
    words = r"diverged at step 13 .*lower the learning rate.*the last good state is in .*c$"
    with pytest.raises(FloatingPointError, match=words), training_of(x, Run(checkpoint=tmp_path / "c")) as training:
        for step in training.steps(20):
            step((x - 1).square().sum() * (float("nan") if training.done == 12 else 1.0))
    again = loaded(tmp_path / "c")
    assert again.done == 12 and torch.equal(again.weights["x"], x) and torch.isfinite(x).all()


def test_a_divergence_without_a_checkpoint_promises_nothing():
    x = torch.zeros(3, requires_grad=True)
    words = r"^a fit diverged at step 8 \(loss nan\): lower the learning rate; nothing is kept$"
    with pytest.raises(FloatingPointError, match=words), training_of(x) as training:
        for step in training.steps(20):
            step((x - 1).square().sum() * (float("nan") if training.done == 7 else 1.0))


def test_a_model_that_is_not_finite_before_the_first_step_is_not_blamed_on_the_rate():
    training = training_of(torch.zeros(3, requires_grad=True), look=lambda: float("nan"))
    words = r"can't start, its loss is nan.* the model or the picture is damaged"
    with pytest.raises(FloatingPointError, match=words), training:
        for _ in training.steps(3):
            pytest.fail("it began")


def test_a_probe_that_is_not_finite_ends_the_training():
    x = torch.zeros(3, requires_grad=True)
    training = training_of(x, Run(probe_every=2), look=lambda: float("inf") if x.any() else 1.0)
    with pytest.raises(FloatingPointError, match=r"diverged at step 2 \(loss inf\)"), training:
        for step in training.steps(3):
            step((x - 1).square().sum())


def test_a_gradient_that_is_not_finite_changes_nothing():
    x = torch.zeros(3, requires_grad=True)
    with pytest.raises(FloatingPointError, match="step 1"), training_of(x) as training:
        for step in training.steps(3):
            step(x.sqrt().sum() * 0 + x.sum() * 0)
    assert torch.equal(x.detach(), torch.zeros(3)) and not training.history.loss


def test_a_state_that_is_not_finite_never_reaches_the_checkpoint(tmp_path, save_at_every_step):
    """An optimizer that steps in the backward pass has changed the weights before its gradients can be looked at."""
    x, run = torch.zeros(3, requires_grad=True), Run(checkpoint=tmp_path / "c", probe_every=100)
    with pytest.raises(FloatingPointError, match="diverged at step 9"), training_of(x, run) as training:
        for step in training.steps(20):
            step((x - 1).square().sum())
            with torch.no_grad():
                x += float("nan") if training.done == 9 else 0.1
    again = loaded(tmp_path / "c")
    assert again.done == 8 and torch.isfinite(again.weights["x"]).all()


def test_in_the_backward_pass_a_gradient_that_is_not_finite_stops_at_its_own_step():
    """There each weight steps as soon as it has its gradient, and the check must come before that."""
    x = torch.ones(3, requires_grad=True)
    training = training_of(x)
    with (
        pytest.raises(FloatingPointError, match=r"diverged at step 2 \(loss 0\)"),
        stepping_in_backward(training.optimizer),
        training,
    ):
        for step in training.steps(3):
            good = training.done == 0
            step(x.sum() if good else ((x - x.detach()).sqrt()).sum())
            kept = x.detach().clone()
    assert torch.equal(x.detach(), kept) and torch.isfinite(kept).all() and not torch.equal(kept, torch.ones(3))
    assert x.grad is None


def test_weights_that_are_not_finite_after_the_last_step_are_not_given_back():
    x = torch.zeros(3, requires_grad=True)
    with pytest.raises(FloatingPointError, match=r"diverged at step 1 .*; nothing is kept"), training_of(x) as training:
        for step in training.steps(1):
            step((x - 1).square().sum())
            with torch.no_grad():
                x += float("nan")


# ------------------------------------------------------------------------------ which training, how long


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    fit(tmp_path / "c", steps=5, facts={"images": "dog"})
    with pytest.raises(ValueError, match=r"from a training with another picture: choose another folder"):
        fit(tmp_path / "c", steps=5, facts={"images": "cat"})
    fit(tmp_path / "d", steps=5, facts={"batch": 4})
    with pytest.raises(ValueError, match=r"from a training with batch 4, not 2"):
        fit(tmp_path / "d", steps=5, facts={"batch": 2})


def test_a_checkpoint_goes_on_to_the_number_of_steps_that_it_was_planned_for(tmp_path):
    """Another number would be another training, where the rate falls at its end."""
    seen = []
    fit(tmp_path / "c", steps=4, watch=lambda name, history: seen.append(history.steps) or len(seen) == 2)
    kept = (tmp_path / "c").read_bytes()
    for other in (1, 3, 8):
        words = rf"c is of a training of 4 steps, not {other}: ask for 4, or delete this file$"
        with pytest.raises(ValueError, match=words):
            fit(tmp_path / "c", steps=other)
    assert (tmp_path / "c").read_bytes() == kept and seen == [4, 4]
    assert len(fit(tmp_path / "c", steps=4)[1].loss) == 4


def test_a_run_with_an_invalid_setting_is_refused():
    for value in (0, -1):
        with pytest.raises(ValueError, match=rf"probe_every is {value}: it must be 1 or more, or be left out"):
            Run(probe_every=value)
    with pytest.raises(ValueError, match=r"probe_every is 2\.5: it must be a whole number"):
        Run(probe_every=2.5)


@pytest.mark.parametrize("bias", [-1, float("nan"), float("inf")])
def test_an_invalid_bias_is_refused(bias):
    with pytest.raises(ValueError, match=f"bias is {bias}: it must be 0 or more"):
        Run(bias=bias)


def test_no_steps_change_nothing_and_probe_once():
    result, history = fit(steps=0)
    assert torch.equal(result, torch.zeros(3)) and history.probe_step == [0] and not history.loss


def test_the_probe_looks_before_the_first_step_at_intervals_and_after_the_last(tmp_path):
    result, history = fit(steps=12)
    assert history.probe_step == [0, 5, 10, 12] and history.probe_loss[0] == GOAL.square().sum()
    assert history.probe_loss[-1] == (result - GOAL).square().sum()
    fit(tmp_path / "c", steps=12, watch=stop_after(7))
    assert fit(tmp_path / "c", steps=12)[1].probe_loss == history.probe_loss
    with Training("a fit", {}, torch.optim.Adam([torch.zeros(1, requires_grad=True)]), seeded()) as training:
        assert not list(training.steps(0)) and not training.history.probe_step, "without a probe there is none"


# ------------------------------------------------------------------------- when a checkpoint is written


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless the test moves it: [seconds]."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_checkpoints_come_by_the_clock_even_if_a_step_is_slow(tmp_path, monkeypatch, clock, saved):
    """A training of a large model makes a step a minute and takes two minutes to write its state: a tenth of the time
    goes into writing."""
    write = files.save_tensors

    def slowly(*given):
        write(*given)
        clock[0] += 120

    def step(training):
        clock[0] += 60

    monkeypatch.setattr(files, "save_tensors", slowly)
    fit(tmp_path / "c", steps=30, on_step=step)
    assert [done for _, done in saved] == [1, 21, 30], "two minutes of writing, twenty of training"


def test_a_training_with_quick_steps_does_not_write_at_every_one_of_them(tmp_path, clock, saved):
    def step(training):
        clock[0] += 1

    fit(tmp_path / "c", steps=75, on_step=step)
    assert [done for _, done in saved] == [30, 60, 75]  # after every half minute, and at the end


def test_the_seconds_of_all_sittings_are_added(tmp_path, clock):
    def step(training):
        clock[0] += 2

    _, history = fit(tmp_path / "c", steps=10, on_step=step, watch=stop_after(4))
    assert history.seconds == 8
    clock[0] += 10_000  # a night
    assert fit(tmp_path / "c", steps=10, on_step=step)[1].seconds == 20


def test_the_bar_counts_the_steps_in_the_main_thread_and_is_not_drawn_elsewhere(tmp_path, capsys):
    fit(tmp_path / "c", steps=10, watch=stop_after(4))
    shown = capsys.readouterr()
    assert "a fit" in shown.err and "4/10" in shown.err
    assert "a fit: stopped after 4 of 10 steps; " in shown.out
    _, history = fit(tmp_path / "c", steps=10)
    again = capsys.readouterr()
    assert "4/10" in again.err and "10/10" in again.err and "stopped" not in again.out
    assert re.findall(r"probe=(\d+\.\d{4})\b", again.err)[-1] == f"{history.probe_loss[-1]:.4f}"
    other = threading.Thread(target=fit, kwargs={"steps": 3})
    other.start()
    other.join()
    fit(steps=3, bar=False)
    assert capsys.readouterr() == ("", "")
    other = threading.Thread(target=fit, kwargs={"steps": 3, "bar": True})
    other.start()
    other.join()
    assert "3/3" in capsys.readouterr().err


def test_the_scale_of_float16_gradients_is_kept_over_a_stop(tmp_path):
    """Started again at 65,536, a T4 might have to leave out steps after each stop until the scale is low again."""
    x = torch.zeros(3, requires_grad=True)
    first = training_of(x, Run(checkpoint=tmp_path / "c"))
    first.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    with first:
        for step in first.steps(1):
            step((x - 1).square().sum())
    again = loaded(tmp_path / "c", scaler=torch.amp.GradScaler("cpu", init_scale=2.0))
    assert again.scaler.get_scale() == 128.0
    without = loaded(tmp_path / "c")  # on a machine that computes in float32
    assert torch.equal(without.weights["x"], x) and x.any()


def test_a_step_that_overflows_float16_is_left_out_and_the_scale_halved():
    x = torch.zeros(1, requires_grad=True)
    sgd, scaler = torch.optim.SGD([x], lr=1e-36), torch.amp.GradScaler("cpu", init_scale=2.0**13)
    seen = []
    with Training("a fit", {"x": x}, sgd, seeded(), scaler=scaler) as training:
        for step in training.steps(3):
            step(1e35 * x.sum())  # times 2**13 or 2**12 it is more than float32 holds
            seen.append((scaler.get_scale(), round(x.item(), 3)))
    assert seen == [(2.0**12, 0), (2.0**11, 0), (2.0**11, -0.1)] and len(training.history.loss) == 3


def test_a_preview_is_given_the_unet_in_training_and_its_embedding_before_the_probe():
    seen = []
    run = Run(preview=lambda unet, embedding: seen.append(("preview", unet, embedding)))
    unet, e = torch.nn.Linear(1, 1).bfloat16(), torch.ones(1, requires_grad=True)
    assert run.look(lambda *given: seen.append(("probe", *given)) or 0.25, unet, e) == 0.25
    assert [(who, where) for who, where, _ in seen] == [("preview", unet), ("probe", unet)]
    for *_, shown in seen:
        assert torch.equal(shown, e.bfloat16()) and shown.dtype == torch.bfloat16 and not shown.requires_grad


# ---------------------------------------------------------------------------------- room on the disk


def test_a_disk_without_room_for_the_checkpoint_is_found_out_before_the_first_step(tmp_path, monkeypatch):
    """Three numbers and two moments of each take 36 bytes."""
    monkeypatch.setattr(checkpoints, "free_on_disk", lambda path: 40)
    fit(tmp_path / "c", steps=0)
    monkeypatch.setattr(checkpoints, "free_on_disk", lambda path: 20)
    with pytest.raises(ValueError, match=r"takes 0.0 GB on disk, and .* has room for 0.0 GB: choose another folder"):
        fit(tmp_path / "full" / "c", on_step=lambda training: pytest.fail("it began"))


def test_a_disk_with_room_for_one_checkpoint_holds_one(tmp_path, monkeypatch):
    path, there = tmp_path / "c", []
    training = training_of(torch.zeros(1000, requires_grad=True), Run(checkpoint=path))
    write = files.save_tensors

    def look(*given):
        there.append(path.exists())
        write(*given)

    monkeypatch.setattr(files, "save_tensors", look)
    for free in (10**9, 10**9, 11_000):
        monkeypatch.setattr(checkpoints, "free_on_disk", lambda path, free=free: free)
        training.save()
    assert there == [False, True, False] and training.bytes_on_disk() == 12_000
    monkeypatch.setattr(checkpoints, "free_on_disk", lambda path: 100)
    training.save()
    assert there[-1], "if even one had no room, the old one would be better than none"


def test_a_full_disk_ends_no_training_but_says_that_nothing_is_kept(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_tensors", full)
    words = r"could not be written .*No space left.*a stop would lose the training"
    with pytest.warns(UserWarning, match=words) as seen:
        result, history = fit(tmp_path / "c")
    assert torch.equal(result, fit()[0]) and len(history.loss) == 40
    assert Path(seen[0].filename).name == Path(__file__).name


# --------------------------------------------------------------------------- not a checkpoint of this kind


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    fit(path := tmp_path_factory.mktemp("two steps") / "c", steps=2)
    return load_tensors(path)


def test_the_optimizer_s_state_must_fit_its_weights(two_steps, tmp_path):
    """A fused Adam reads and writes beyond a moment that is smaller than its weight."""
    tensors, facts = two_steps
    for name, value in (("optimizer.0.exp_avg", torch.ones(1)), ("optimizer.1.step", torch.ones(()))):
        save_tensors(tmp_path / "c", tensors | {name: value}, facts)
        with pytest.raises(ValueError, match=rf"c is damaged .*{name.rpartition('.')[0]}.*: delete it"):
            fit(tmp_path / "c", steps=3)


@pytest.mark.parametrize("change", ["shape", "missing", "history", "generator", "identity"])
def test_a_file_that_is_not_a_whole_checkpoint_is_one_clear_sentence(two_steps, tmp_path, change):
    path, tensors, facts = tmp_path / "c", dict(two_steps[0]), dict(two_steps[1])
    if change == "shape":
        tensors["trained.x"] = torch.ones(1)  # would be broadcast
    if change == "missing":
        del tensors["trained.x"]
    if change == "generator":
        del tensors["generator"]
    if change == "history":
        facts["history"] = {"no such": 1}
    if change == "identity":
        facts["identity"] = "a dog"
    save_tensors(path, tensors, facts)
    words = r"c is damaged \(.*\): delete it"
    with pytest.raises(ValueError, match=words) as caught:
        fit(path, steps=2)
    assert "\n" not in str(caught.value)
    assert change != "shape" or "x has the shape (1,)" in str(caught.value)


def test_the_state_of_one_optimizer_is_not_given_to_another(tmp_path):
    fit(tmp_path / "c", steps=2)

    class Adam8bit(torch.optim.Adam):
        pass

    x = torch.zeros(3, requires_grad=True)
    training = Training("a fit", {"x": x}, Adam8bit([x], lr=0.05), seeded(), run=Run(checkpoint=tmp_path / "c"))
    with pytest.raises(ValueError, match="from a training with optimizer 'Adam', not 'Adam8bit'"):
        training.file.open()
    assert training.bytes_on_disk() == 3 * 4 + 2 * 3
