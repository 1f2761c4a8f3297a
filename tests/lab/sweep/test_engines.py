"""Three engines, one result: the same edits, each exactly once, the same bits; and workers that are lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from imagic_lab.sweep import engines, sweep
from imagic_lab.sweep.run import take
from imagic_lab.sweep.work import DONE, Setup, read_json
from imagic_lab.toyworld import Scene
from tests.lab.sweep.stub import DRAW, jobs_in, marks, pictures, write_table

ROOT = Path(__file__).resolve().parents[3]
TEXTS = [f"a car {k}" for k in range(6)]


@pytest.fixture
def edits(tmp_path, model_folder):
    """A table of real edits, as small as can be."""
    Scene.sample(1).render().save(tmp_path / "in.png")
    texts = ["a brown dog", "a red car", "a black cat"]
    lines = "".join(f"in.png,{text},{model_folder},2,2,0 1,0.5\n" for text in texts)
    path = tmp_path / "edits.csv"
    path.write_text(f"image,text,model,embedding_steps,unet_steps,etas,scale\n{lines}", encoding="utf-8")
    return path


def wait_until(there) -> None:
    while not there():
        time.sleep(0.02)


def errors_of(out: Path) -> list[str]:
    return [read_json(path)["error"] for path in sorted((out / "errors").glob("*.json"))]


# --- this machine


def test_local_does_all_in_the_order_of_the_table_and_nothing_twice(tmp_path, monkeypatch):
    table, order = write_table(tmp_path, [*TEXTS, "bad"]), []
    real = engines.work_through
    monkeypatch.setattr(engines, "work_through", lambda jobs, *rest: order.extend(jobs) or real(jobs, *rest))
    found = sweep(table, tmp_path / "out", work=DRAW)
    assert (found.done, found.failed, found.left) == (6, 1, 0) and [job.text for job in order] == [*TEXTS, "bad"]
    before = marks(tmp_path / "out")
    assert len(before) == 6
    sweep(write_table(tmp_path, [*TEXTS, "one more"]), tmp_path / "out", work=DRAW)
    assert before.items() <= marks(tmp_path / "out").items() and len(marks(tmp_path / "out")) == 7
    assert [job.text for job in order[7:]] == ["one more"]


def test_jobs_of_one_model_come_one_after_the_other(tmp_path, monkeypatch):
    jobs = jobs_in(tmp_path, TEXTS)
    jobs = [replace(job, model="tiny" if k % 2 else "a/b", weights=str(k % 2)) for k, job in enumerate(jobs)]
    order = []
    monkeypatch.setattr(engines, "work_through", lambda jobs, *rest: order.extend(jobs))
    assert sweep(jobs, tmp_path / "out", work=DRAW).left == 6
    assert [job.model for job in order] == ["a/b"] * 3 + ["tiny"] * 3
    assert [job.row for job in order] == [2, 4, 6, 3, 5, 7]


def test_two_devices_are_two_processes_that_share_the_table_and_are_started_again_if_lost(tmp_path):
    table = write_table(tmp_path, ["waits 1", "waits 2", "deadly", "bad", *TEXTS])
    options, found = {"work": DRAW, "devices": ["cpu", "cpu:0"]}, []
    runner = threading.Thread(target=lambda: found.append(sweep(table, tmp_path / "out", **options)))
    runner.start()
    # both hold one of the jobs that wait: each is at work while the other is
    wait_until(lambda: len(list((tmp_path / "out" / "edits").glob(".*.part"))) == 2)
    (tmp_path / "out" / "go").touch()
    runner.join()
    assert (found[0].done, found[0].failed, found[0].left) == (8, 2, 0)
    assert "its worker was lost 3 times" in " ".join(errors_of(tmp_path / "out"))
    workers = {read_json(p)["worker"] for p in (tmp_path / "out" / "edits").glob("*/job.json")}
    assert len(workers) >= 2 and os.getpid() not in workers


# --- Slurm, by submitit's local executor


def test_slurm_s_array_gives_the_same_bits(tmp_path, edits):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install submitit")
    assert sweep(edits, tmp_path / "local", cores=1).done == 3
    found = sweep(edits, tmp_path / "slurm", "slurm", cores=1, workers=2, cluster="local")
    assert (found.done, found.failed, found.left) == (3, 0, 0)
    assert len(pictures(tmp_path / "local")) == 6 and pictures(tmp_path / "local") == pictures(tmp_path / "slurm")


def test_slurm_sends_lost_tasks_again_and_gives_up_a_job_that_kills_them(tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install submitit")
    table = write_table(tmp_path, ["deadly", "a cat", "bad"])
    found = sweep(table, tmp_path / "out", "slurm", work=DRAW, workers=1, cluster="local")
    assert (found.done, found.failed, found.left) == (1, 2, 0)
    assert "its worker was lost 3 times" in " ".join(errors_of(tmp_path / "out"))


# --- Ray


@pytest.fixture(scope="module")
def cluster():
    """A head and a second node, each with one core, as processes of this machine."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    import ray
    from ray.cluster_utils import Cluster

    # 15 by Ray's default: beside other work on the same core such workers starve
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's own spelling)
    memory = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **memory})
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def second(cluster):
    """The second node; the test may kill it."""
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


def test_two_nodes_and_one_killed_every_edit_arrives_once_with_the_same_bits(tmp_path, edits, cluster, second):
    """The second node is killed while its edit is half done: it holds the lock, and the table goes on without it."""
    table = write_table(tmp_path, ["waits 1", "waits 2", *TEXTS])
    out = tmp_path / "out"
    runner = threading.Thread(target=sweep, args=(table, out, "ray"), kwargs={"work": DRAW, "cores": 1})
    runner.start()
    wait_until(lambda: len(list((out / "edits").glob(".*.part"))) == 2)
    cluster.remove_node(second, allow_graceful=False)
    (out / "go").touch()
    runner.join()
    assert len(marks(out)) == 8 and not errors_of(out)
    assert len(list((out / "edits").iterdir())) == 8
    (take(tmp_path / "alone", DRAW) / "go").touch()
    sweep(table, tmp_path / "alone", work=DRAW)
    assert pictures(out) == pictures(tmp_path / "alone")


def test_real_edits_on_two_nodes_have_the_bits_of_this_machine(tmp_path, edits, cluster, second):
    assert sweep(edits, tmp_path / "ray", "ray", cores=1).done == 3
    assert sweep(edits, tmp_path / "local", cores=1).done == 3
    assert len(pictures(tmp_path / "ray")) == 6 and pictures(tmp_path / "ray") == pictures(tmp_path / "local")


def test_bad_jobs_are_not_tried_again_and_jobs_that_kill_their_worker_three_times(tmp_path, cluster):
    found = sweep(write_table(tmp_path, ["bad", "deadly", *TEXTS]), tmp_path / "out", "ray", work=DRAW, cores=1)
    assert (found.done, found.failed, found.left) == (6, 2, 0)
    bad, lost = sorted(errors_of(tmp_path / "out"))
    assert bad == "a bad job: bad" and lost.startswith("its worker was lost 3 times")


def test_no_more_jobs_are_in_hand_than_there_are_workers(tmp_path, cluster):
    """Back-pressure: a job leaves the queue when a worker is free, not before."""
    import ray

    jobs = jobs_in(tmp_path, TEXTS)
    setup = Setup(str(take(tmp_path / "out", DRAW)), "first", cores=1, work=DRAW)
    seen = []
    hands = engines.Hands(ray, jobs, setup, lambda job, state: seen.append((len(hands.queue), len(hands.busy))))
    hands.run()
    assert [waiting for waiting, _ in seen] == [5, 4, 3, 2, 1, 0] and all(busy == 0 for _, busy in seen)


def test_more_cores_than_any_machine_has_are_refused(tmp_path, cluster):
    with pytest.raises(ValueError, match="no machine of the Ray cluster has 999 cores"):
        sweep(write_table(tmp_path, TEXTS), tmp_path / "out", "ray", work=DRAW, cores=999)


def test_a_worker_that_can_t_go_on_ends_the_sweep_in_a_sentence(tmp_path, cluster):
    setup = Setup(str(take(tmp_path / "out", DRAW)), "first", cores=1, work="no.such.module:draw")
    (Path(setup.out) / "edits").rmdir()
    with pytest.raises(ValueError, match="must lie on a disk that all machines share"):
        engines.run_ray(jobs_in(tmp_path, TEXTS), setup, lambda job, state: None)


# --- engines that are not there


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"the engine {engine} needs .* pip install"):
        sweep(write_table(tmp_path, TEXTS), tmp_path / "out", engine, work=DRAW)


def test_nothing_of_ray_and_submitit_is_loaded_before_it_is_needed():
    code = "import sys, imagic_lab.sweep; sys.exit(bool({'ray', 'submitit'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_where_there_is_no_slurm_it_is_said_in_a_sentence(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"submitit can't send the array: .*(srun|sbatch)"):
        sweep(write_table(tmp_path, TEXTS), tmp_path / "out", "slurm", work=DRAW)
    with pytest.raises(ValueError, match=r"submitit can't send the array: .*no_such_option"):
        options = {"cluster": "local", "options": {"no_such_option": 1}}
        sweep(write_table(tmp_path, TEXTS), tmp_path / "out", "slurm", work=DRAW, **options)
    with pytest.raises(ValueError, match="workers is 0"):
        sweep(write_table(tmp_path, TEXTS), tmp_path / "out", "slurm", work=DRAW, workers=0)


# --- kill -9


def test_a_sweep_that_is_killed_goes_on_and_does_nothing_twice(tmp_path):
    """The whole command, three times at the moments when one, two and three more edits are finished."""
    table, out = write_table(tmp_path, TEXTS), tmp_path / "out"
    code = "import sys; from imagic_lab.sweep import sweep; sweep(sys.argv[1], sys.argv[2], work=sys.argv[3])"
    command = [sys.executable, "-c", code, str(table), str(out), "tests.lab.sweep.stub:one_at_a_time"]
    known = {}
    for count in (1, 2):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_until(lambda count=count: len(list(out.glob("edits/[0-9a-f]*"))) >= count)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = marks(out)
        assert known.items() <= now.items() and len(now) >= count
        known = now
        (out / f"let-{count}").touch()
    for count in range(3, 8):
        (out / f"let-{count}").touch()
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert known.items() <= marks(out).items() and len(marks(out)) == len(TEXTS)


def test_the_watcher_notes_each_job_once_and_failures_of_this_run_only(tmp_path):
    jobs = jobs_in(tmp_path, ["a car", "bad", "a cat"])
    setup = Setup(str(take(tmp_path / "out", DRAW)), "first", cores=1, work=DRAW)
    seen = []
    watcher = engines.Watcher(jobs, replace(setup, run="second"), lambda job, state: seen.append((job.text, state)))
    engines.work_through(jobs[:2], setup)
    assert watcher.look() == 1 and watcher.look() == 0 and seen == [("a car", DONE)]
    engines.work_through(jobs, replace(setup, run="second"))
    assert watcher.look() == 2 and not watcher.left
