"""One job: done once, by one process, whole or not at all, wherever it was killed."""

import fcntl
import os
import re
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from imagic_lab.sweep import run, work
from imagic_lab.sweep.table import read_table
from imagic_lab.sweep.work import CLAIMED, DONE, EDIT, FAILED, Setup, attempt, read_json, work_through
from imagic_lab.toyworld import Scene
from imagic_lib import edit as edits
from imagic_lib.__main__ import main
from imagic_lib.planning.memory import Plan, Row
from imagic_lib.training.strategies import Strategy
from tests.lab.sweep.stub import DRAW, jobs_in, marks, pictures


@pytest.fixture
def setup(tmp_path):
    run.take(tmp_path / "out", DRAW)
    return Setup(str(tmp_path / "out"), run="first", cores=1, work=DRAW)


def test_a_job_is_done_once(tmp_path, setup):
    [job] = jobs_in(tmp_path, ["a car"])
    assert attempt(job, setup) == DONE
    before = marks(tmp_path / "out")
    assert attempt(job, setup) == DONE
    assert before.keys() == {job.name} and marks(tmp_path / "out") == before
    assert [p.name for p in (tmp_path / "out" / "edits").iterdir()] == [job.name]


def test_the_lock_of_a_worker_killed_after_its_rename_is_taken_away(tmp_path, setup):
    [job] = jobs_in(tmp_path, ["a car"])
    assert attempt(job, setup) == DONE
    lock = work.lock_of(setup.folder(job))
    lock.touch()
    assert attempt(job, setup) == DONE and not lock.exists()


def test_a_job_that_another_process_has_is_left_to_it(tmp_path, setup):
    [job] = jobs_in(tmp_path, ["a car"])
    lock = setup.folder(job).with_name(f".{job.name}.lock")
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert attempt(job, setup) == CLAIMED
        assert not setup.folder(job).exists()
    assert attempt(job, setup) == DONE


def test_a_lock_that_was_deleted_meanwhile_is_no_claim(tmp_path, setup, monkeypatch):
    """Its owner ends between our opening the file and our locking it: we hold the lock of a file that is gone."""
    [job] = jobs_in(tmp_path, ["a car"])
    real = fcntl.flock

    def late(descriptor, how):
        os.unlink(setup.folder(job).with_name(f".{job.name}.lock"))
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert attempt(job, setup) == CLAIMED
    monkeypatch.setattr(fcntl, "flock", real)
    assert attempt(job, setup) == DONE


def test_a_disk_without_locks_is_said(tmp_path, setup, monkeypatch):
    def none(descriptor, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(ValueError, match="is on a disk without locks"):
        attempt(jobs_in(tmp_path, ["a car"])[0], setup)


def test_a_bad_job_fails_once_in_a_run_and_is_tried_again_in_the_next(tmp_path, setup, monkeypatch):
    [job] = jobs_in(tmp_path, ["bad"])
    assert attempt(job, setup) == FAILED
    assert read_json(setup.error_file(job))["error"] == "a bad job: bad"
    monkeypatch.setattr(work, "named", lambda name: pytest.fail("it failed in this run"))
    assert attempt(job, setup) == FAILED
    monkeypatch.setattr(work, "named", lambda name: lambda job, folder, setup: {})
    assert attempt(job, replace(setup, run="second")) == DONE
    assert not setup.error_file(job).exists()


def test_what_can_t_be_used_of_a_killed_run_is_made_again(tmp_path, setup, monkeypatch):
    [job] = jobs_in(tmp_path, ["a car"])
    part = setup.folder(job).with_name(f".{job.name}.part")
    part.mkdir()
    (part / "checkpoint").write_text("torn")

    def reads(job, folder, setup):
        if (folder / "checkpoint").exists():
            raise ValueError("the checkpoint is damaged")
        return {}

    monkeypatch.setattr(work, "named", lambda name: reads)
    assert attempt(job, setup) == DONE
    assert [p.name for p in setup.folder(job).iterdir()] == ["job.json"]


def test_an_edit_that_another_worker_finished_meanwhile_stands(tmp_path, setup, monkeypatch):
    """As on a network disk, whose folders are seen late."""
    [job] = jobs_in(tmp_path, ["a car"])

    def overtaken(job, folder, setup):
        shutil.copytree(folder, setup.folder(job))
        (setup.folder(job) / "theirs").touch()
        return {}

    monkeypatch.setattr(work, "named", lambda name: overtaken)
    assert attempt(job, setup) == DONE
    assert [p.name for p in (tmp_path / "out" / "edits").iterdir()] == [job.name]
    assert (setup.folder(job) / "theirs").exists()


def test_jobs_that_others_hold_are_waited_for(tmp_path, setup, monkeypatch):
    jobs, tried = jobs_in(tmp_path, ["a car", "a cat", "a dog"]), []

    def held_twice(job, setup):
        tried.append(job.text)
        return CLAIMED if job.text == "a cat" and tried.count("a cat") < 3 else DONE

    monkeypatch.setattr(work, "attempt", held_twice)
    seen = []
    work_through(jobs, setup, lambda job, state: seen.append(job.text), pause=0)
    assert tried == ["a car", "a cat", "a dog", "a cat", "a cat"] and seen == ["a car", "a dog", "a cat"]


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(ValueError, match="it must lie on a disk that all machines share"):
        work.begin_worker(Setup(str(tmp_path / "nowhere"), "first", cores=torch.get_num_threads()))


# --- killed


OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")


def killed_before(number: int, jobs: list, setup: Setup) -> bool:
    """Work in a process of its own, which kills itself (-9) before its file operation of this number. False if it
    came to its end before that."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
        return os.WIFSIGNALED(status)
    try:
        count = 0

        def audit(event, arguments):
            nonlocal count
            if event in OPERATIONS and setup.out in str(arguments[0]):
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        work_through(jobs, setup)
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_before_any_of_its_file_operations_it_goes_on(tmp_path, setup):
    """Nothing that was finished is lost or done again, and what is seen under its own name is whole."""
    jobs = jobs_in(tmp_path, ["a car", "bad", "a cat"])
    kills = 0
    for number in range(1, 1000):
        out = tmp_path / f"out{number}"
        run.take(out, DRAW)
        mine = replace(setup, out=str(out))
        killed = killed_before(number, jobs, mine)
        before = marks(out)
        assert all((out / "edits" / name / "eta-0.5-seed-0.png").is_file() for name in before)
        work_through(jobs, replace(mine, run="second"))
        after = marks(out)
        assert after.keys() == {jobs[0].name, jobs[2].name} and before.items() <= after.items()
        beside = {p.name for p in (out / "edits").iterdir()} - after.keys()
        assert all(name.endswith(".lock") or name == f".{jobs[1].name}.part" for name in beside)
        if not killed:
            break
        kills += 1
    assert kills > 20


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
    run.take(tmp_path / "out", EDIT)
    setup = Setup(str(tmp_path / "out"), "first", cores=1)
    for job, much in zip(edit_jobs, ("", "-scale-0.5"), strict=True):
        assert attempt(job, setup) == DONE, read_json(setup.error_file(job))
        folder = setup.folder(job)
        facts = read_json(folder / "job.json")
        names = {f"eta-{eta}{much}-seed-{seed}.png" for eta in ("0", "0.7") for seed in (0, 3)}
        assert {p.name for p in folder.iterdir()} == names | {"input.png", "embeddings.safetensors", "job.json"}
        assert {one["file"] for one in facts["pictures"]} == names and facts["strategy"] is None
        made = edits.run_edit(
            pipe,
            edits.load_image(tmp_path / "in.png", pipe),
            job.text,
            embedding_steps=2,
            unet_steps=2,
            method=job.method,
        )
        for one in facts["pictures"]:
            expected = made.pictures([one["eta"]], [one["seed"]], scale=job.scale)[0][0]
            found = Image.open(folder / one["file"])
            assert np.abs(np.asarray(found, dtype=int) - np.asarray(expected, dtype=int)).max() <= 2
            assert one["distance"] == pytest.approx(edits_distance(found, made), abs=2e-4)
    assert any("never saw 'zebra'" in note for note in facts["notes"])


def edits_distance(picture, made) -> float:
    difference = np.asarray(picture, dtype=float) - np.asarray(made.input_picture, dtype=float)
    return float(np.sqrt((difference**2).mean()) / 255)


def test_an_edit_that_was_killed_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path, edit_jobs, monkeypatch):
    for name in ("out", "whole"):
        run.take(tmp_path / name, EDIT)
    setup, job = Setup(str(tmp_path / "out"), "first", cores=1), edit_jobs[0]
    real = edits.fine_tune
    monkeypatch.setattr(edits, "fine_tune", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        attempt(job, setup)
    monkeypatch.setattr(edits, "fine_tune", real)
    part = setup.folder(job).with_name(f".{job.name}.part")
    assert (part / "checkpoint-embedding.safetensors").is_file()
    losses = []
    descend = edits.stage1_embedding.denoising_loss
    monkeypatch.setattr(edits.stage1_embedding, "denoising_loss", lambda *a: losses.append(1) or descend(*a))
    assert attempt(job, setup) == DONE and not losses
    assert attempt(job, Setup(str(tmp_path / "whole"), "first", cores=1)) == DONE and len(losses) == 2
    assert pictures(tmp_path / "out") == pictures(tmp_path / "whole")


def test_kept_weights_let_show_draw_again(tmp_path, edit_jobs, model_folder, capsys):
    run.take(tmp_path / "out", EDIT)
    setup = Setup(str(tmp_path / "out"), "first", cores=1, keep=True)
    assert attempt(edit_jobs[0], setup) == DONE
    folder = str(setup.folder(edit_jobs[0]))
    assert main(["show", folder, "--model", str(model_folder), "--eta", "0.3"]) == 0
    assert (setup.folder(edit_jobs[0]) / "eta-0.3-seed-0.png").is_file()


def test_on_a_gpu_the_first_way_of_the_method_that_fits_is_taken(monkeypatch):
    ways = [Strategy("full", torch.float32, "Adam", False), Strategy("full", torch.float32, "Adam in backward", False)]
    rows = (Row(ways[0], 9, 9, 9), Row(ways[1], 5, 5, 5), Row(Strategy("lora", torch.float16, "Adam", True), 8, 8, 8))
    monkeypatch.setattr("imagic_lib.planning.memory.plan", lambda pipe: Plan("some", 512, 9.0, 3.0, rows))

    class Gpu:
        unet = torch.nn.Linear(1, 1)

    Gpu.unet.device = torch.device("cuda")
    assert work.strategy_for(Gpu, "full") == ways[1]
    with pytest.raises(MemoryError, match=re.escape("the method 'lora' does not fit into this GPU")):
        work.strategy_for(Gpu, "lora")
