"""Three engines, one result: the same edits, each exactly once, the same bits; and workers that are lost."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import Future

import pytest
import torch

from imagic_lab.sweep import engines, sweep
from imagic_lab.sweep.run import take
from imagic_lab.sweep.work import Setup
from imagic_lab.toyworld import Scene
from tests.lab.sweep.stub import DRAW, SLOW_EDIT, errors_of, finished, jobs_in, marks, pictures, write_table

TEXTS = [f"a car {k}" for k in range(4)]
PATIENCE = 300  # seconds, on a machine with much other work


@pytest.fixture(scope="module")
def edits(tmp_path_factory, model_folder):
    """A table of real edits, as small as can be."""
    folder = tmp_path_factory.mktemp("edits")
    Scene.sample(1).render().save(folder / "in.png")
    lines = "".join(f"in.png,{text},{model_folder},1,1,1,0.5\n" for text in ("a red car", "a black car", "a brown dog"))
    path = folder / "edits.csv"
    path.write_text(f"image,text,model,embedding_steps,unet_steps,etas,scale\n{lines}", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bits(edits, tmp_path_factory):
    """The pictures of these edits, made in this process without an engine."""
    out = tmp_path_factory.mktemp("alone")
    assert sweep(edits, out, cores=1).done == 3
    return pictures(out)


class InBackground(threading.Thread):
    """A sweep that goes on while the test does something to its workers."""

    def __init__(self, *arguments, **options):
        super().__init__(target=lambda: setattr(self, "found", sweep(*arguments, **options)), daemon=True)
        self.start()

    def wait_until(self, there) -> None:
        while not there():
            assert self.is_alive(), "the sweep has ended"
            time.sleep(0.02)

    def result(self) -> tuple[int, int, int]:
        self.join(PATIENCE)
        assert not self.is_alive(), "the sweep does not end"
        return self.found.done, self.found.failed, self.found.left


# --- this machine


def test_local_does_all_in_the_order_of_the_table_and_nothing_twice(tmp_path, monkeypatch):
    table, order = write_table(tmp_path, [*TEXTS, "bad"]), []
    real, threads = engines.work_through, torch.get_num_threads()
    monkeypatch.setattr(engines, "work_through", lambda jobs, *rest: order.extend(jobs) or real(jobs, *rest))
    found = sweep(table, tmp_path / "out", cores=threads + 1, work=DRAW)
    assert (found.done, found.failed, found.left) == (4, 1, 0) and [job.text for job in order] == [*TEXTS, "bad"]
    assert torch.get_num_threads() == threads
    before = marks(tmp_path / "out")
    assert len(before) == 4
    sweep(write_table(tmp_path, [*TEXTS, "one more"]), tmp_path / "out", work=DRAW)
    assert before.items() <= marks(tmp_path / "out").items() and len(marks(tmp_path / "out")) == 5
    assert [job.text for job in order[5:]] == ["one more"]


def test_jobs_of_one_model_come_one_after_the_other(tmp_path, monkeypatch, model_folder):
    rows = "".join(f"in.png,a car {k},{'tiny' if k % 2 else model_folder}\n" for k in range(4))
    write_table(tmp_path, []).write_text(f"image,text,model\n{rows}")
    order = []
    monkeypatch.setattr(engines, "work_through", lambda jobs, *rest: order.extend(jobs))
    assert sweep(tmp_path / "jobs.csv", tmp_path / "out", work=DRAW).left == 4
    assert [job.row for job in order] == [2, 4, 3, 5]


def test_workers_that_are_only_lost_end_the_sweep_in_a_sentence(monkeypatch):
    monkeypatch.setattr(engines, "LOOK", 0)

    lost, started = Future(), []
    lost.set_exception(ValueError("no such driver"))
    with pytest.raises(ValueError, match="lost one after the other, the last one by this: no such driver"):
        engines.supervise(lambda place: started.append(place) or lost, "ab", lambda: 1)
    assert len(started) == 2 + 2 * 3


def test_a_worker_that_ended_by_itself_ends_the_sweep_though_the_disk_shows_its_last_jobs_late(monkeypatch):
    monkeypatch.setattr(engines, "LOOK", 0)
    worker = Future()
    worker.set_result(None)
    engines.supervise(lambda place: worker, "ab", lambda: 1)


# --- Slurm, by submitit's local executor


def test_slurm_s_array_gives_the_same_bits_and_a_lost_task_is_sent_again(tmp_path, edits, bits, monkeypatch):
    submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install submitit")
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 0)  # so long a lost task's result is waited for
    out = tmp_path / "out"
    running = InBackground(edits, out, "slurm", cores=1, workers=2, cluster="local", work=SLOW_EDIT)
    running.wait_until(lambda: len(list(out.glob("pid-*"))) == 2)
    os.kill(int(next(out.glob("pid-*")).name[4:]), signal.SIGKILL)
    (out / "go").touch()
    assert running.result() == (3, 0, 0)
    assert pictures(out) == bits and len(bits) == 3


def test_a_task_that_slurm_takes_away_is_sent_again(tmp_path, monkeypatch):
    """submitit asks a task for its `checkpoint` before Slurm stops it; the answer is what is sent again."""
    submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install submitit")
    sent = []
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", lambda self, *arguments: sent.append(arguments) or [None])
    monkeypatch.setattr(engines, "supervise", lambda start, places, look: None)
    jobs, setup = jobs_in(tmp_path, TEXTS), Setup(str(take(tmp_path / "out", DRAW)), "first", cores=1, work=DRAW)
    engines.run_slurm(jobs, setup, lambda: 4, workers=3, cluster="local")
    [(task, places)] = sent
    assert list(places) == [0, 1, 2]
    again = task.checkpoint(1)
    assert again.function is task and again.args == (1,)
    again.result()
    assert len(finished(tmp_path / "out")) == 4


# --- Ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head and a second node, each with one core, as processes of this machine."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "ray[default]"')
    import ray
    from ray.cluster_utils import Cluster

    # 15 by Ray's default: next to other work on the same core such workers starve
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's own spelling)
    memory = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))  # Ray's workers find what is in its driver's folder
        made = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **memory})
        made.second = made.add_node(**memory)
        ray.init(address=made.address, log_to_driver=False)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def test_two_nodes_and_one_killed_every_edit_arrives_once_with_the_same_bits(tmp_path, edits, bits, cluster):
    """The second node is killed while it has an edit in hand and locked; the table goes on without it. The library is
    found on both, although their processes were started elsewhere."""
    out = tmp_path / "out"
    running = InBackground(edits, out, "ray", cores=1, work=SLOW_EDIT)
    running.wait_until(lambda: len(list(out.glob("pid-*"))) == 2)
    cluster.remove_node(cluster.second, allow_graceful=False)
    (out / "go").touch()
    assert running.result() == (3, 0, 0)
    assert len(finished(out)) == 3 and pictures(out) == bits


def test_a_bad_job_is_noted_and_the_job_of_a_lost_worker_is_done_by_the_next(tmp_path, cluster):
    table = write_table(tmp_path, ["bad", "mortal", *TEXTS])
    found = sweep(table, tmp_path / "out", "ray", work=DRAW, cores=1)
    assert (found.done, found.failed, found.left) == (5, 1, 0) and errors_of(tmp_path / "out") == ["a bad job: bad"]


def test_more_cores_than_any_machine_has_are_refused(tmp_path, cluster):
    with pytest.raises(ValueError, match="no machine of the Ray cluster has 999 cores"):
        sweep(write_table(tmp_path, TEXTS), tmp_path / "out", "ray", work=DRAW, cores=999)


def test_a_worker_that_can_t_go_on_ends_the_sweep_in_a_sentence(tmp_path, cluster):
    setup = Setup(str(tmp_path / "nowhere"), "first", cores=1, work=DRAW)
    with pytest.raises(ValueError, match="must be on a disk that all machines share"):
        engines.run_ray(jobs_in(tmp_path, TEXTS[:1]), setup, lambda: 1)


# --- engines that are not there


@pytest.mark.parametrize(
    ("engine", "package", "command"),
    [("ray", "ray", r'pip install "ray\[default\]"'), ("slurm", "submitit", "pip install submitit")],
)
def test_an_engine_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch, engine, package, command):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"the engine {engine} needs .*: {command}"):
        sweep(write_table(tmp_path, TEXTS), tmp_path / "out", engine, work=DRAW)


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
