"""Training that is stopped, killed or diverges: nothing is lost, and resuming gives the same bits."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from imagic_lib.training import loop
from imagic_lib.training.loop import History, Progress, descend, hash_of, identity_of, rate_at

HERE = Path(__file__).resolve().parent
SCRIPT = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from test_loop import fit
result, history = fit(Path(sys.argv[1]), steps=40, pause=float(sys.argv[2]))
print(result.tolist(), history.loss, history.probe_loss)
"""


def progress_of(x, checkpoint=None, lr=0.05, **identity):
    generator = torch.Generator().manual_seed(0)
    return Progress("a fit", {"x": x}, torch.optim.Adam([x], lr=lr), generator, checkpoint, identity)


def fit(checkpoint=None, steps=40, pause=0.0, on_step=None, lr=0.05, patience=None, watch=None, decay=0.0, **identity):
    """Find the vector (1, 2, 3) from noisy looks at it."""
    x = torch.zeros(3, requires_grad=True)
    goal, progress = torch.tensor([1.0, 2.0, 3.0]), progress_of(x, checkpoint, lr, **identity)

    def loss():
        time.sleep(pause)
        if on_step:
            on_step(progress)
        return (x - goal + 0.1 * torch.randn(3, generator=progress.generator)).square().sum()

    history = descend(
        progress,
        loss,
        lambda: (x - goal).square().sum().item(),
        steps=steps,
        probe_every=5,
        patience=patience,
        checkpoint_every=3,
        watch=watch,
        decay=decay,
    )
    return x.detach(), history


def test_killed_at_random_steps_and_resumed_gives_the_same_bits(tmp_path):
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT.format(tests=str(HERE), root=str(HERE.parents[1])))
    whole = subprocess.run([sys.executable, script, tmp_path / "a", "0"], capture_output=True, text=True, check=True)
    kills, choose = 0, random.Random(4)
    while kills < 3:
        run = subprocess.Popen([sys.executable, script, tmp_path / "b", "0.05"], stdout=subprocess.DEVNULL)
        size, wanted = 0, choose.randint(1, 3)  # kill after one to three new checkpoints
        while wanted and run.poll() is None:
            stamp = (tmp_path / "b").stat().st_mtime_ns if (tmp_path / "b").exists() else 0
            wanted, size = (wanted - 1, stamp) if stamp != size else (wanted, size)
            time.sleep(0.005)
        assert run.poll() is None, "it ended before it could be killed"
        run.send_signal(signal.SIGKILL)
        run.wait()
        kills += 1
    last = subprocess.run([sys.executable, script, tmp_path / "b", "0"], capture_output=True, text=True, check=True)
    assert last.stdout == whole.stdout and whole.stdout.count(",") > 40
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".tmp")) == ["a", "b", "fit.py"]


def test_the_rate_is_kept_and_then_falls_in_a_line_to_nearly_0():
    assert [rate_at(step, 8, 2.0, 0.5) for step in range(1, 9)] == [2, 2, 2, 2, 2, 1.5, 1, 0.5]
    assert [rate_at(step, 4, 2.0, 1.0) for step in range(1, 5)] == [2, 1.5, 1, 0.5]
    assert {rate_at(step, 8, 2.0, 0.0) for step in range(1, 9)} == {2.0}


def test_a_falling_rate_is_written_down_and_survives_a_stop(tmp_path):
    result, whole = fit(decay=0.5)
    assert whole.learning_rate == [rate_at(step, 40, 0.05, 0.5) for step in range(1, 41)]
    fit(tmp_path / "a", decay=0.5, watch=lambda name, history: len(history.loss) == 33)
    resumed, history = fit(tmp_path / "a", decay=0.5)
    assert torch.equal(resumed, result) and history.learning_rate == whole.learning_rate


@pytest.fixture
def ctrl_c():
    """Ctrl-C works in the test, also where a shell started all of it in the background, which switches it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_stop_button_ends_after_the_step_keeps_the_result_and_can_go_on(tmp_path, ctrl_c):
    def press(progress):
        if len(progress.history.loss) == 10:
            signal.raise_signal(signal.SIGINT)

    whole, all_of_it = fit(tmp_path / "whole")
    part, stopped = fit(tmp_path / "part", on_step=press)
    assert len(stopped.loss) == 11 and not torch.equal(part, torch.zeros(3))
    rest, resumed = fit(tmp_path / "part")
    assert torch.equal(rest, whole) and resumed.loss == all_of_it.loss
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_watches_sees_every_step_and_may_end_it_which_can_go_on(tmp_path):
    seen = []

    def watch(stage, history):
        seen.append((stage, len(history.loss)))
        return len(history.loss) == 7

    checkpoint = tmp_path / "fit.safetensors"
    result, history = fit(checkpoint, watch=watch)
    assert seen == [("a fit", step) for step in range(1, 8)] and history.stopped
    assert torch.equal(result, fit(steps=7)[0])
    assert torch.equal(fit(checkpoint)[0], fit()[0]), "the same bits as one that nobody ended"


def test_a_second_press_raises_at_once(ctrl_c):
    def press(progress):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(on_step=press)


def test_divergence_stops_at_once_and_keeps_the_last_good_state(tmp_path):
    x = torch.zeros(3, requires_grad=True)
    progress = progress_of(x, tmp_path / "c")

    def loss():
        bad = len(progress.history.loss) == 12
        return (x - 1).square().sum() * (float("nan") if bad else 1.0)

    with pytest.raises(FloatingPointError, match=r"diverged at step 13 .*lower the learning rate.*is in .*c"):
        descend(progress, loss, lambda: x.sum().item(), steps=20, probe_every=5, checkpoint_every=4)
    assert torch.isfinite(x).all() and len(progress.history.loss) == 12
    assert x.sum().item() == progress.history.probe_loss[-1]  # the state of the probe at step 10


def test_a_gradient_that_is_no_number_changes_nothing():
    x = torch.zeros(3, requires_grad=True)
    with pytest.raises(FloatingPointError, match="step 1"):
        descend(progress_of(x), lambda: x.sqrt().sum() * 0 + x.sum() * 0, lambda: 0.0, steps=3, probe_every=1)
    assert torch.equal(x.detach(), torch.zeros(3))


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    fit(tmp_path / "c", steps=5, image="dog")
    with pytest.raises(ValueError, match=r"from a training with another picture: choose another folder"):
        fit(tmp_path / "c", steps=5, image="cat")
    fit(tmp_path / "d", steps=5, batch=4)
    with pytest.raises(ValueError, match=r"from a training with batch 4, not 2"):
        fit(tmp_path / "d", steps=5, batch=2)


def test_patience_stops_on_a_plateau_and_is_off_by_default():
    assert len(fit(steps=400)[1].loss) == 400
    early = fit(steps=400, patience=4)[1]
    assert len(early.loss) < 400 and early.probe_loss[-1] < 0.1


def test_settled_means_no_new_best_by_one_percent():
    assert not History(probe_loss=[5.0, 4.0, 3.0, 2.0]).has_settled(2)
    assert History(probe_loss=[5.0, 3.0, 2.99, 3.5]).has_settled(2)
    assert not History(probe_loss=[3.0, 3.0]).has_settled(2)


def test_a_fit_that_settled_and_is_started_again_stays_settled(tmp_path):
    first, history = fit(tmp_path / "c", steps=400, patience=4)
    again, same = fit(tmp_path / "c", steps=400, patience=4)
    assert torch.equal(first, again) and history.loss == same.loss


def test_a_probe_that_is_no_number_is_a_divergence_and_never_reaches_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVING_SHARE", 1e9)  # save whenever it is due
    x = torch.zeros(3, requires_grad=True)
    progress = progress_of(x, tmp_path / "c")

    def spoil(loss, progress):
        with torch.no_grad():
            progress.trained["x"] += float("nan") if len(progress.history.loss) == 8 else 0.1
        return True

    with pytest.raises(FloatingPointError, match="diverged at step 9"):
        descend(
            progress,
            lambda: torch.tensor(1.0),
            lambda: x.sum().item(),
            steps=20,
            probe_every=3,
            checkpoint_every=4,
            step_with=spoil,
        )
    again = progress_of(torch.zeros(3, requires_grad=True), tmp_path / "c")
    again.load()
    assert len(again.history.loss) == 8 and again.is_finite()


def test_identity_tells_pictures_texts_and_settings_apart():
    def loss():
        pass

    generator, a = torch.Generator().manual_seed(3), torch.zeros(3)
    base = identity_of(a, a, {"steps": 5, "lr": 1}, loss, generator)
    assert base == identity_of(torch.zeros(3), a, {"steps": 9, "lr": 1}, loss, generator) and base["seed"] == 3
    assert hash_of(a) != hash_of(torch.tensor([0.0, 0.0, 1e-30]))
    for other in (identity_of(a + 1, a, {"lr": 1}, loss, generator), identity_of(a, a, {"lr": 2}, loss, generator)):
        assert other != base
