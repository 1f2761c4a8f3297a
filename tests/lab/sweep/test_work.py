"""One job: done once, by one process, whole or not at all, wherever it was killed."""

import gc
import os
import re
import shutil
import signal
import sys
import time
import warnings
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm.auto import tqdm

from imagic_lab.sweep import run, work
from imagic_lab.sweep.table import read_table
from imagic_lab.sweep.work import CLAIMED, DONE, EDIT_WORK, FAILED, TRIES, Setup, attempt, read_results, work_through
from imagic_lab.toyworld import Scene
from imagic_lib import edit as edits
from imagic_lib.__main__ import main
from imagic_lib.files import save_tensors
from imagic_lib.pictures import load_image
from tests.lab.sweep.stub import DRAW, errors_of, finished, jobs_in, marks, pictures, write_table


@pytest.fixture
def setup(tmp_path):
    run.take(tmp_path / "out", DRAW)
    return Setup(str(tmp_path / "out"), run="first", cores=1, work=DRAW)


@pytest.fixture
def work_is(monkeypatch):
    """Gives all jobs this function as their work."""
    return lambda function: monkeypatch.setattr(work, "resolve_name", lambda name: function)


def in_a_child(function, *arguments) -> int:
    """How a child process that calls this function ends: its exit code, or minus the signal that killed it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        function(*arguments)
        os._exit(0)
    finally:
        os._exit(1)


def test_a_job_is_done_once(tmp_path, setup):
    [job] = jobs_in(tmp_path, ["a car"])
    assert attempt(job, setup) == DONE
    before = marks(tmp_path / "out")
    assert attempt(job, setup) == DONE
    assert before.keys() == {job.name} and marks(tmp_path / "out") == before
    assert [p.name for p in (tmp_path / "out" / "edits").iterdir()] == [job.name]


def test_a_job_that_another_process_has_is_left_to_it_until_that_is_killed(tmp_path, setup):
    """The lock is the kernel's, so a process that was killed leaves none, though it leaves its file."""
    [job] = jobs_in(tmp_path, ["waits"])
    child = os.fork()
    if not child:
        attempt(job, setup)
    part = setup.hidden(job, "part")
    while not (part / ".tries").exists():
        time.sleep(0.01)
    assert attempt(job, setup) == CLAIMED and not setup.folder(job).exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (tmp_path / "out" / "go").touch()
    assert setup.hidden(job, "lock").exists() and attempt(job, setup) == DONE


@pytest.mark.parametrize("errno", [38, 37], ids=["ENOSYS, where filelock takes files for locks", "ENOLCK"])
def test_a_disk_without_locks_is_said(tmp_path, setup, monkeypatch, errno):
    import fcntl

    def none(descriptor, how):
        raise OSError(errno, os.strerror(errno))

    monkeypatch.setattr(fcntl, "flock", none)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="has no file locks"):
        warnings.simplefilter("ignore")
        work_through(jobs_in(tmp_path, ["a car"]), setup)


def test_a_bad_job_fails_once_in_a_start_and_is_tried_again_in_the_next(tmp_path, setup, work_is):
    [job] = jobs_in(tmp_path, ["bad"])
    assert attempt(job, setup) == FAILED
    assert errors_of(tmp_path / "out") == ["a bad job: bad"]
    work_is(lambda *arguments: pytest.fail("it failed in this start"))
    assert attempt(job, setup) == FAILED
    work_is(lambda *arguments: {})
    assert attempt(job, replace(setup, run="second")) == DONE
    assert not setup.error_file(job).exists()


def test_a_job_that_kills_its_workers_is_given_up_even_if_each_is_of_another_start(tmp_path, setup):
    jobs = jobs_in(tmp_path, ["deadly", "a car"])
    for start in range(TRIES):
        mine = replace(setup, run=f"start {start}")
        assert in_a_child(work_through, jobs, mine) == -signal.SIGKILL and not finished(tmp_path / "out")
    assert in_a_child(work_through, jobs, setup) == 0
    assert len(finished(tmp_path / "out")) == 1
    assert errors_of(tmp_path / "out") == ["its worker was lost 3 times: killed, or out of the computer's memory"]
    # the next start tries it again: the reason can be gone
    assert in_a_child(attempt, jobs[0], replace(setup, run="next")) == -signal.SIGKILL


def test_a_stop_is_no_loss_of_a_worker(tmp_path, setup, work_is):
    [job] = jobs_in(tmp_path, ["a car"])

    def stopped(*arguments):
        raise KeyboardInterrupt

    for _ in range(TRIES + 1):
        work_is(stopped)
        with pytest.raises(KeyboardInterrupt):
            attempt(job, setup)
    work_is(lambda *arguments: {})
    assert attempt(job, setup) == DONE


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError])
def test_an_error_of_any_kind_leaves_whole_checkpoints_where_they_are(tmp_path, setup, work_is, error):
    """A full disk is a ValueError: once it cost hours of training."""
    [job] = jobs_in(tmp_path, ["a car"])
    part = setup.hidden(job, "part")
    save_tensors(part / "checkpoint-full.safetensors", {"weights": torch.ones(9)}, {"step": 900})
    before = (part / "checkpoint-full.safetensors").read_bytes()

    def full(*arguments):
        raise error("its checkpoint takes 10.3 GB on disk, and there is room for 0.1 GB")

    work_is(full)
    assert attempt(job, setup) == FAILED
    assert (part / "checkpoint-full.safetensors").read_bytes() == before
    seen = []
    work_is(lambda job, folder, setup: seen.extend(p.name for p in folder.glob("*.safetensors")) or {})
    assert attempt(job, replace(setup, run="second")) == DONE and seen == ["checkpoint-full.safetensors"]


def test_an_edit_that_another_worker_finished_meanwhile_stands(tmp_path, setup, work_is):
    """As on a network disk, whose folders are seen late."""
    [job] = jobs_in(tmp_path, ["a car"])

    def overtaken(job, folder, setup):
        shutil.copytree(folder, setup.folder(job))
        (setup.folder(job) / "theirs").touch()
        return {}

    work_is(overtaken)
    assert attempt(job, setup) == DONE
    assert [p.name for p in (tmp_path / "out" / "edits").iterdir()] == [job.name]
    assert (setup.folder(job) / "theirs").exists()


def test_jobs_that_others_hold_are_waited_for(tmp_path, setup, monkeypatch):
    jobs, tried = jobs_in(tmp_path, ["a car", "a cat", "a dog"]), []

    def held_twice(job, setup):
        tried.append(job.text)
        return CLAIMED if job.text == "a cat" and tried.count("a cat") < 3 else DONE

    monkeypatch.setattr(work, "attempt", held_twice)
    monkeypatch.setattr(work, "LOOK", -1)
    monkeypatch.setattr(work.time, "sleep", lambda seconds: None)
    looks = []
    work_through(jobs, setup, lambda: looks.append(len(tried)))
    assert tried == ["a car", "a cat", "a dog", "a cat", "a cat"] and looks == [1, 2, 3, 4, 5]


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(ValueError, match="it must be on a disk that all machines share"):
        work_through([], Setup(str(tmp_path / "nowhere"), "first"))


def test_no_bar_is_shown_while_a_job_is_done_whichever_module_makes_it(tmp_path, setup, work_is, capsys):
    from imagic_lib import stage4_inference
    from imagic_lib.training import loop

    def shows(*arguments):
        for module in (stage4_inference, loop):
            list(module.tqdm(range(3), desc="of a module"))
        with tqdm(total=3, desc="of nobody", disable=False) as bar:
            bar.update(2)
        return {}

    work_is(shows)
    assert attempt(jobs_in(tmp_path, ["a car"])[0], setup) == DONE
    assert capsys.readouterr().err == ""
    shows()
    assert "of a module" in capsys.readouterr().err


# --- killed


OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")


def kill_myself_before(number: int, jobs: list, setup: Setup) -> None:
    """Work, until the file operation of this number: there it is kill -9."""
    count = 0

    def audit(event, arguments):
        nonlocal count
        if event in OPERATIONS and setup.out in str(arguments[0]):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    work_through(jobs, setup)


def test_killed_before_any_of_its_file_operations_it_goes_on(tmp_path, setup):
    """Nothing that was finished is lost or done again, and what is seen under its own name is whole."""
    jobs = jobs_in(tmp_path, ["a car", "bad"])
    kills, killed = 0, True
    while killed:
        kills += 1
        out = tmp_path / f"out{kills}"
        run.take(out, DRAW)
        mine = replace(setup, out=str(out))
        killed = in_a_child(kill_myself_before, kills, jobs, mine) == -signal.SIGKILL
        before = marks(out)
        assert all((out / "edits" / name / "eta-0.5-seed-0.png").is_file() for name in before)
        work_through(jobs, replace(mine, run="second"))
        after = marks(out)
        assert after.keys() == {jobs[0].name} and before.items() <= after.items()
        beside = {p.name for p in (out / "edits").iterdir()} - after.keys()
        assert all(name.endswith(".lock") or name == f".{jobs[1].name}.part" for name in beside)
    assert kills > 20


def test_a_sweep_that_is_killed_goes_on_and_does_nothing_twice(tmp_path):
    """The whole sweep, at the moments when one and two edits are finished."""
    table, out = write_table(tmp_path, [f"a car {k}" for k in range(5)]), tmp_path / "out"
    options, known = {"work": "tests.lab.sweep.stub:one_at_a_time"}, {}
    for count in (1, 2):
        child = os.fork()
        if not child:
            run.sweep(table, out, **options)
        while len(finished(out)) < count:
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        now = marks(out)
        assert known.items() <= now.items() and len(now) == count
        known = now
        (out / f"let-{count}").touch()
    for count in (3, 4):
        (out / f"let-{count}").touch()
    assert run.sweep(table, out, **options).done == 5
    assert known.items() <= marks(out).items()


# --- the edit itself


@pytest.fixture
def edit_jobs(tmp_path, model_folder):
    Scene.sample(1).render().save(tmp_path / "in.png")
    rows = ["full,a brown dog,1", "lora,a zebra,0.5"]
    lines = "".join(f"in.png,{model_folder},2,2,0 0.7,0 3,{row}\n" for row in rows)
    (tmp_path / "jobs.csv").write_text(
        f"image,model,embedding_steps,unet_steps,etas,seeds,method,text,scale\n{lines}", encoding="utf-8"
    )
    return read_table(tmp_path / "jobs.csv")


def test_an_edit_s_folder_has_its_pictures_and_what_they_measure(tmp_path, edit_jobs, pipe):
    run.take(tmp_path / "out", EDIT_WORK)
    setup = Setup(str(tmp_path / "out"), "first", cores=1)
    for job, much in zip(edit_jobs, ("", "-scale-0.5"), strict=True):
        assert attempt(job, setup) == DONE, read_results(setup.error_file(job))
        folder = setup.folder(job)
        facts = read_results(folder / "job.json")
        names = {f"eta-{eta}{much}-seed-{seed}.png" for eta in ("0", "0.7") for seed in (0, 3)}
        assert {p.name for p in folder.iterdir()} == names | {"input.png", "embeddings.safetensors", "job.json"}
        assert {one["file"] for one in facts["pictures"]} == names and facts.get("strategy") is None
        made = edits.run_edit(
            pipe,
            load_image(tmp_path / "in.png", pipe),
            job.text,
            embedding_steps=2,
            unet_steps=2,
            method=job.method,
        )
        drawn = [picture for row in made.pictures(job.etas, job.seeds, scale=job.scale) for picture in row]
        for one, expected in zip(facts["pictures"], drawn, strict=True):
            found = Image.open(folder / one["file"])
            assert np.abs(np.asarray(found, dtype=int) - np.asarray(expected, dtype=int)).max() <= 2
            assert one["distance"] == pytest.approx(edits_distance(found, made), abs=2e-4)
    assert any("never saw 'zebra'" in note for note in facts["notes"])


def edits_distance(picture, made) -> float:
    difference = np.asarray(picture, dtype=float) - np.asarray(made.input_picture, dtype=float)
    return float(np.sqrt((difference**2).mean()) / 255)


def test_an_edit_that_was_killed_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path, edit_jobs, monkeypatch):
    for name in ("out", "whole"):
        run.take(tmp_path / name, EDIT_WORK)
    setup, job = Setup(str(tmp_path / "out"), "first", cores=1), edit_jobs[0]
    real = edits.fine_tune
    monkeypatch.setattr(edits, "fine_tune", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        attempt(job, setup)
    monkeypatch.setattr(edits, "fine_tune", real)
    part = setup.hidden(job, "part")
    assert (part / "checkpoint-embedding.safetensors").is_file()
    losses = []
    descend = edits.stage1_embedding.denoising_loss
    monkeypatch.setattr(edits.stage1_embedding, "denoising_loss", lambda *a: losses.append(1) or descend(*a))
    assert attempt(job, setup) == DONE and not losses
    assert attempt(job, Setup(str(tmp_path / "whole"), "first", cores=1)) == DONE and len(losses) == 2
    assert pictures(tmp_path / "out") == pictures(tmp_path / "whole")


def test_kept_weights_let_show_draw_again(tmp_path, edit_jobs, model_folder, capsys):
    run.take(tmp_path / "out", EDIT_WORK)
    setup = Setup(str(tmp_path / "out"), "first", cores=1, keep=True)
    assert attempt(edit_jobs[0], setup) == DONE
    folder = str(setup.folder(edit_jobs[0]))
    assert main(["show", folder, "--model", str(model_folder), "--eta", "0.3"]) == 0
    assert (setup.folder(edit_jobs[0]) / "eta-0.3-seed-0.png").is_file()


@pytest.fixture
def no_models_yet():
    work.model_and_plan.cache_clear()
    yield
    work.model_and_plan.cache_clear()


def test_on_a_gpu_the_first_way_of_the_method_that_fits_is_taken(tmp_path, edit_jobs, monkeypatch, no_models_yet):
    fitting = {"full": [SimpleNamespace(strategy="the first", name="first"), "the second"], "lora": []}
    gpu, runs = SimpleNamespace(unet=SimpleNamespace(device=torch.device("cuda"))), []
    monkeypatch.setattr(work, "load_pipeline", lambda model: gpu)
    monkeypatch.setattr(work, "load_image", lambda path, pipe: None)
    monkeypatch.setattr(work, "plan", lambda pipe: SimpleNamespace(fitting=fitting.get, advice="take a larger GPU"))
    monkeypatch.setattr(work, "run_edit", lambda *arguments, run, **settings: runs.append(run) or 1 / 0)
    setup = Setup(str(tmp_path / "out"), "first")
    with pytest.raises(ZeroDivisionError):
        work.edit_and_draw(edit_jobs[0], tmp_path, setup)
    assert [run.strategy for run in runs] == ["the first"]
    with pytest.raises(MemoryError, match=re.escape("the method 'lora' does not fit into this GPU: take a larger GPU")):
        work.edit_and_draw(edit_jobs[1], tmp_path, setup)


def test_of_two_models_never_more_than_one_is_in_memory(monkeypatch, no_models_yet):
    class Pipe:
        unet = SimpleNamespace(device=torch.device("cpu"))

    alive, loads = weakref.WeakSet(), []

    def load(model):
        gc.collect()
        assert not alive, "the model before it is still there"
        loads.append(model)
        alive.add(pipe := Pipe())
        return pipe

    monkeypatch.setattr(work, "load_pipeline", load)
    for model in ("a/b", "a/b", "c/d", "a/b"):
        work.model_and_plan(model)
    assert loads == ["a/b", "c/d", "a/b"]


# ------------------------------------------------------------------------- damaged and hostile folders of a sweep


def done_once(tmp_path, setup):
    """A sweep of one job that is done: the job and its folder."""
    [job] = jobs_in(tmp_path, ["a cat"])
    assert attempt(job, setup) == DONE
    return job, setup.folder(job)


@pytest.mark.parametrize("kind", ["lock", "part"])
def test_a_link_in_the_place_of_a_lock_or_a_part_leads_nowhere(tmp_path, setup, kind):
    [job] = jobs_in(tmp_path, ["a cat"])
    (victim := tmp_path / "mine").mkdir()
    (victim / "thesis.txt").write_text("a year of work")
    setup.hidden(job, kind).symlink_to(victim if kind == "part" else victim / "thesis.txt")
    assert attempt(job, setup) == DONE
    assert [path.name for path in victim.iterdir()] == ["thesis.txt"]
    assert (victim / "thesis.txt").read_text() == "a year of work" and not setup.folder(job).is_symlink()


DAMAGED = {
    "cut": '{"pictures": [',
    "deep": "[" * 100_000,
    "list": "[]",
    "null picture": '{"pictures": [null]}',
    "missing keys": '{"pictures": [{"eta": 0.5}]}',
    "path": '{"pictures": [{"eta": 0.5, "seed": 0, "file": "/etc/private.png", "distance": 0.1, "psnr": 1.0}]}',
    "up": '{"pictures": [{"eta": 0.5, "seed": 0, "file": "../../private.png", "distance": 0.1, "psnr": 1.0}]}',
    "gone": None,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_results_are_done_again(tmp_path, setup, content):
    job, folder = done_once(tmp_path, setup)
    (folder / "job.json").unlink()
    if content is not None:
        (folder / "job.json").write_text(content)
    found = run.sweep([job], setup.out, cores=1, work=setup.work)
    assert (found.done, found.failed, found.left) == (1, 0, 0) and read_results(folder / "job.json")["pictures"]


def test_a_link_in_the_place_of_an_edit_is_set_aside_and_the_edit_done(tmp_path, setup):
    job, folder = done_once(tmp_path, setup)
    folder.rename(elsewhere := tmp_path / "elsewhere")
    folder.symlink_to(elsewhere)
    assert run.sweep([job], setup.out, cores=1, work=setup.work).done == 1 and not folder.is_symlink()


@pytest.mark.parametrize("content", ['{"run": 7}', "[]", '{"run": "first"}', "{", '{"run": "first", "error": null}'])
def test_a_damaged_error_counts_as_none(tmp_path, setup, content):
    [job] = jobs_in(tmp_path, ["a cat"])
    setup.error_file(job).write_text(content)
    assert attempt(job, setup) == DONE


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"work": 7}'])
def test_a_damaged_mark_is_named(tmp_path, setup, content):
    (tmp_path / "out" / run.MARK).write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json is damaged \(") as refused:
        run.take(tmp_path / "out", setup.work)
    assert "\n" not in str(refused.value)


def test_names_that_are_not_utf_8_and_formulas_kill_no_sweep(tmp_path, setup):
    [job] = jobs_in(tmp_path, ["=cmd|' /C calc'!A0"])
    named = replace(job, image=os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff/in.png"))
    assert run.sweep([named], setup.out, cores=1, work=setup.work).done == 1
    rows = (tmp_path / "out" / "results.csv").read_text(encoding="utf-8")
    assert "'=cmd" in rows and str(tmp_path) not in rows
    for path in (tmp_path / "out").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path


def test_a_pipe_in_a_folder_stops_no_job(tmp_path, setup):
    [job] = jobs_in(tmp_path, ["a cat"])
    setup.hidden(job, "part").mkdir()
    os.mkfifo(setup.hidden(job, "part") / "job.json")
    assert attempt(job, setup) == DONE
