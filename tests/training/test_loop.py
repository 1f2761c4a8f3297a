"""Training that is stopped, killed or diverges: nothing is lost, and resuming gives the same bits."""

import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from imagic_lib.training import loop
from imagic_lib.training.checkpoints import load_tensors, save_tensors
from imagic_lib.training.identity import Identity
from imagic_lib.training.loop import History, Progress, Run, descend, pause_after, rate_at

HERE = Path(__file__).resolve().parent
SCRIPT = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from test_loop import fit
from imagic_lib.training import loop
loop.SAVE_AFTER = 0.1
result, history = fit(Path(sys.argv[1]), steps=40, pause=float(sys.argv[2]))
print(result.tolist(), history.loss, history.probe_loss)
"""


def progress_of(x, lr=0.05, **facts):
    optimizer, generator = torch.optim.Adam([x], lr=lr), torch.Generator().manual_seed(0)
    return Progress("a fit", {"x": x}, optimizer, generator, Identity(facts, {}))


def fit(
    checkpoint=None, steps=40, pause=0.0, on_step=None, lr=0.05, patience=None, watch=None, decay=0.0, bar=None, **facts
):
    """Find the vector (1, 2, 3) from noisy looks at it."""
    x = torch.zeros(3, requires_grad=True)
    goal, progress = torch.tensor([1.0, 2.0, 3.0]), progress_of(x, lr, **facts)

    def loss():
        time.sleep(pause)
        if on_step:
            on_step(progress)
        return (x - goal + 0.1 * torch.randn(3, generator=progress.generator)).square().sum()

    run = Run(checkpoint=checkpoint, watch=watch, patience=patience, probe_every=5, bar=bar)
    history = descend(progress, loss, lambda: (x - goal).square().sum().item(), steps=steps, decay=decay, run=run)
    return x.detach(), history


@pytest.mark.slow
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


def test_ended_one_step_early_is_stopped_ended_at_the_last_step_is_done():
    early, last = (fit(steps=5, watch=lambda name, h, at=at: len(h.loss) == at)[1] for at in (4, 5))
    assert (early.stopped, len(early.loss)) == (True, 4)
    assert (last.stopped, len(last.loss)) == (False, 5)


def test_a_checkpoint_that_is_done_is_not_written_again(tmp_path, monkeypatch):
    fit(tmp_path / "c", steps=5)
    monkeypatch.setattr(Progress, "save", lambda progress, path: pytest.fail("written again"))
    assert len(fit(tmp_path / "c", steps=5)[1].loss) == 5


def test_a_second_press_raises_at_once(ctrl_c):
    def press(progress):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(on_step=press)


def test_divergence_stops_at_once_and_says_where_the_last_good_state_is(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "pause_after", lambda took: 0.0)
    monkeypatch.setattr(loop, "SAVE_AFTER", 0.0)
    x = torch.zeros(3, requires_grad=True)
    progress = progress_of(x)

    def loss():
        bad = len(progress.history.loss) == 12
        return (x - 1).square().sum() * (float("nan") if bad else 1.0)

    with pytest.raises(FloatingPointError, match=r"diverged at step 13 .*lower the learning rate.*is in .*c"):
        descend(progress, loss, lambda: x.sum().item(), steps=20, run=Run(checkpoint=tmp_path / "c", probe_every=5))
    again = progress_of(torch.zeros(3, requires_grad=True))
    again.load(tmp_path / "c")
    assert len(again.history.loss) == 12 and torch.equal(again.trained["x"], x) and torch.isfinite(x).all()


def test_a_divergence_without_a_checkpoint_promises_nothing():
    x = torch.zeros(3, requires_grad=True)
    progress = progress_of(x)

    def loss():
        return (x - 1).square().sum() * (float("nan") if len(progress.history.loss) == 7 else 1.0)

    with pytest.raises(FloatingPointError, match=r"^a fit diverged at step 8 \(loss nan\): .*; nothing of it is kept$"):
        descend(progress, loss, lambda: x.sum().item(), steps=20, run=Run(probe_every=5))


def test_a_model_that_is_no_number_before_the_first_step_is_not_blamed_on_the_rate():
    with pytest.raises(FloatingPointError, match=r"can't start, its loss is nan: the model or the picture is damaged"):
        descend(progress_of(torch.zeros(3, requires_grad=True)), lambda: 1 / 0, lambda: float("nan"), steps=3)


def test_a_gradient_that_is_no_number_changes_nothing():
    x = torch.zeros(3, requires_grad=True)
    with pytest.raises(FloatingPointError, match="step 1"):
        descend(progress_of(x), lambda: x.sqrt().sum() * 0 + x.sum() * 0, lambda: 0.0, steps=3)
    assert torch.equal(x.detach(), torch.zeros(3))


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    fit(tmp_path / "c", steps=5, images="dog")
    with pytest.raises(ValueError, match=r"from a training with another picture: choose another folder"):
        fit(tmp_path / "c", steps=5, images="cat")
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
    assert not History(probe_loss=[4.0, 1.0, 5.0]).has_settled(2), "the best of the last two counts"


def test_a_fit_that_settled_and_is_started_again_stays_settled(tmp_path):
    first, history = fit(tmp_path / "c", steps=400, patience=4)
    again, same = fit(tmp_path / "c", steps=400, patience=4)
    assert torch.equal(first, again) and history.loss == same.loss


def test_a_state_that_is_no_number_never_reaches_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "pause_after", lambda took: 0.0)
    monkeypatch.setattr(loop, "SAVE_AFTER", 0.0)
    x = torch.zeros(3, requires_grad=True)
    progress = progress_of(x)

    def spoil(loss, progress):
        with torch.no_grad():
            progress.trained["x"] += float("nan") if len(progress.history.loss) == 8 else 0.1
        return True

    monkeypatch.setattr(loop, "one_step", spoil)
    with pytest.raises(FloatingPointError, match="diverged at step 9"):
        run = Run(checkpoint=tmp_path / "c", probe_every=100)
        descend(progress, lambda: torch.tensor(1.0), lambda: 0.0, steps=20, run=run)
    again = progress_of(torch.zeros(3, requires_grad=True))
    again.load(tmp_path / "c")
    assert len(again.history.loss) == 8 and again.is_finite()


def test_fewer_steps_than_the_checkpoint_has_done_are_refused(tmp_path):
    fit(tmp_path / "c", watch=lambda name, history: len(history.loss) == 6)
    with pytest.raises(ValueError, match=r"has done 6 steps, not 3: ask for 6, or delete this file"):
        fit(tmp_path / "c", steps=3)
    assert len(fit(tmp_path / "c", steps=6)[1].loss) == 6


def test_the_history_knows_how_many_steps_were_asked_for(tmp_path):
    seen = []
    fit(tmp_path / "c", steps=4, watch=lambda name, history: seen.append(history.steps))
    assert seen == [4] * 4 and fit(tmp_path / "c", steps=6)[1].steps == 6


@pytest.mark.parametrize("name", ["patience", "probe_every"])
def test_a_run_of_settings_that_can_t_be_is_refused(name):
    for value in (0, -1):
        with pytest.raises(ValueError, match=rf"{name} is {value}: it must be 1 or more, or be left out"):
            Run(**{name: value})
    with pytest.raises(ValueError, match=f"{name} is 2.5: it must be a whole number"):
        Run(**{name: 2.5})


def test_no_steps_change_nothing_and_probe_once():
    result, history = fit(steps=0)
    assert torch.equal(result, torch.zeros(3)) and history.probe_step == [0] and not history.loss


# ------------------------------------------------------------------------- when a checkpoint is written


def test_a_small_checkpoint_comes_every_half_minute_a_large_one_within_ten_minutes():
    assert pause_after(0.01) == loop.SAVE_AFTER
    assert pause_after(5.0) == pytest.approx(5.0 / loop.SAVING_SHARE)
    for took in (40.0, 120.0, 250.0):
        assert pause_after(took) + 2 * took <= loop.LOSE_AT_MOST
    assert pause_after(120.0) == loop.LOSE_AT_MOST - 2 * 120, "the time of writing counts before and after the pause"
    assert pause_after(1000.0) == loop.SAVE_AFTER, "a disk as slow as that leaves no choice"


def test_checkpoints_come_by_the_clock_also_if_a_step_is_slow(tmp_path, monkeypatch):
    """A training of a large model makes a step a minute and takes two minutes to write its state."""
    now, saved = [0.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def save(progress, path):
        saved.append((now[0], len(progress.history.loss)))
        now[0] += 120

    def step(progress):
        now[0] += 60

    monkeypatch.setattr(Progress, "save", save)
    fit(tmp_path / "c", steps=30, on_step=step)
    assert saved[0] == (60, 1) and saved[-1][1] == 30
    for (before, _), (after, _) in zip(saved, saved[1:], strict=False):
        assert after + 120 - before <= loop.LOSE_AT_MOST + 60, "ten minutes, and the step that was not finished"


def test_a_training_with_quick_steps_does_not_write_at_every_one_of_them(tmp_path, monkeypatch):
    now, saved = [1000.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Progress, "save", lambda progress, path: saved.append(len(progress.history.loss)))

    def step(progress):
        now[0] += 1

    fit(tmp_path / "c", steps=75, on_step=step)
    assert saved == [30, 60, 75]  # after every half minute, and at the end


def test_the_seconds_of_all_sittings_are_added(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def step(progress):
        now[0] += 2

    _, history = fit(tmp_path / "c", steps=10, on_step=step, watch=lambda name, history: len(history.loss) == 4)
    assert history.seconds == 8
    now[0] += 10_000  # a night
    assert fit(tmp_path / "c", steps=10, on_step=step)[1].seconds == 20


def test_the_bar_counts_the_steps_in_the_main_thread_and_is_not_drawn_elsewhere(tmp_path, capsys):
    fit(tmp_path / "c", steps=10, watch=lambda name, history: len(history.loss) == 4)
    shown = capsys.readouterr()
    assert "a fit" in shown.err and "4/10" in shown.err
    assert "a fit: stopped after 4 of 10 steps; what was learned is kept" in shown.out
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
    """Begun again at 65,536, a T4 may have to leave out steps after each stop until the scale is low again."""
    first, again, without = (progress_of(torch.zeros(3, requires_grad=True)) for _ in range(3))
    first.scaler, again.scaler = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (128.0, 2.0))
    assert loop.one_step((first.trained["x"] - 1).square().sum(), first)
    first.save(tmp_path / "c")
    again.load(tmp_path / "c")
    assert again.scaler.get_scale() == 128.0
    without.load(tmp_path / "c")  # on a machine that computes in float32
    assert torch.equal(without.trained["x"], first.trained["x"])


def test_who_previews_is_given_the_unet_in_training_and_its_embedding_before_the_probe():
    seen = []
    run = Run(preview=lambda unet, embedding: seen.append(("preview", unet, embedding)))
    unet, e = torch.nn.Linear(1, 1), torch.ones(1)
    assert run.look(lambda *given: seen.append(("probe", *given)) or 0.25, unet, e) == 0.25
    assert seen == [("preview", unet, e), ("probe", unet, e)]


def test_what_a_large_checkpoint_takes_is_said_before_the_first_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "LARGE", 30)  # bytes: three numbers and two moments of each take 36
    for free, words in (
        (10**9, "has room for 1.0 GB\n"),
        (40, "so the old one is deleted before a new one is written"),
    ):
        monkeypatch.setattr(loop, "free_on_disk", lambda path, free=free: free)
        fit(tmp_path / str(free) / "c", steps=0)
        said = capsys.readouterr()
        assert f"a fit: its checkpoint takes 0.0 GB on disk; {tmp_path / str(free)} has" in said.out + said.err
        assert words in said.out + said.err
    monkeypatch.setattr(loop, "free_on_disk", lambda path: 20)
    with pytest.raises(ValueError, match=r"takes 0.0 GB on disk, and .* has room for 0.0 GB: choose another folder"):
        fit(tmp_path / "full" / "c", on_step=lambda progress: pytest.fail("it began"))


def test_a_disk_with_room_for_one_checkpoint_holds_one(tmp_path, monkeypatch):
    x = torch.zeros(1000, requires_grad=True)
    progress, path, there = progress_of(x), tmp_path / "c", []
    write = loop.save_tensors

    def look(*args):
        there.append(path.exists())
        write(*args)

    monkeypatch.setattr(loop, "save_tensors", look)
    for free in (10**9, 10**9, 11_000):
        monkeypatch.setattr(loop, "free_on_disk", lambda path, free=free: free)
        progress.save(path)
    assert there == [False, True, False] and progress.bytes_on_disk() == 12_000
    monkeypatch.setattr(loop, "free_on_disk", lambda path: 100)
    progress.save(path)
    assert there[-1], "if even one had no room, the old one would be better than none"


def test_a_disk_that_is_full_ends_no_training_but_says_that_nothing_is_kept(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "save_tensors", full)
    with pytest.warns(
        UserWarning, match=r"could not be written .*No space left.*a stop would lose the training"
    ) as seen:
        result, history = fit(tmp_path / "c")
    assert torch.equal(result, fit()[0]) and len(history.loss) == 40
    assert Path(seen[0].filename).name == Path(__file__).name


# ----------------------------------------------------------------------------- what is no checkpoint


@pytest.mark.parametrize("change", ["shape", "missing", "history", "generator", "identity"])
def test_a_file_that_is_no_whole_checkpoint_is_one_clear_sentence(tmp_path, change):
    path = tmp_path / "c"
    fit(path, steps=2)
    tensors, facts = load_tensors(path)
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
    with pytest.raises(ValueError, match=r"no whole checkpoint of a fit .*: delete it|an older version") as caught:
        fit(path, steps=2)
    assert "\n" not in str(caught.value)
    assert change != "shape" or "x has the shape (1,)" in str(caught.value)


def test_the_state_of_one_optimizer_is_not_given_to_another(tmp_path):
    fit(tmp_path / "c", steps=2)

    class Adam8bit(torch.optim.Adam):
        pass

    x = torch.zeros(3, requires_grad=True)
    progress = progress_of(x)
    progress.optimizer = Adam8bit([x], lr=0.05)
    with pytest.raises(ValueError, match="from a training with optimizer 'Adam', not 'Adam8bit'"):
        progress.load(tmp_path / "c")
    assert progress.bytes_on_disk() == 3 * 4 + 2 * 3
