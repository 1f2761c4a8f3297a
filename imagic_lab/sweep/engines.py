"""Three ways to run the same workers: on this machine, as an array of Slurm, on a Ray cluster.

Each is a function (jobs, setup, note, ...) that returns when nothing is left to do. note(job, state) is called for
every job that was done or that failed. The bookkeeping is in the folder of the sweep, so a worker may be lost at any
moment: its job is free again as soon as its process is gone.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from imagic_lab.sweep.table import Job
from imagic_lab.sweep.work import (
    CLAIMED,
    DONE,
    FAILED,
    TRIES,
    Setup,
    attempt,
    begin_worker,
    failed_before,
    job_from,
    plain,
    work_through,
)

LOSSES = 100  # so many workers of Ray may be lost without a single job done: machines come and go
LOOK = 0.5  # seconds between two looks at what other processes have done
Note = Callable[[Job, str], None]


# -- this machine


def run_local(jobs: Sequence[Job], setup: Setup, note: Note, devices: Sequence[str] | None = None) -> None:
    """In this process, or, where there are several GPUs, in one process for each. devices: default all GPUs, or the
    CPU. The embedded model stays on the CPU everywhere."""
    if devices is None:
        devices = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
        devices = devices if len(devices) > 1 else [None]
    if len(devices) == 1:
        threads = torch.get_num_threads()
        try:
            begin_worker(setup)
            work_through(jobs, dataclasses.replace(setup, device=devices[0]), note)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")  # CUDA allows no other

    def start(device: str) -> multiprocessing.Process:
        own = dataclasses.replace(setup, device=device)
        process = context.Process(target=local_worker, args=(plain(jobs), own, list(sys.path), os.getpid()))
        process.start()
        return process

    watch_processes({device: start(device) for device in devices}, start, Watcher(jobs, setup, note))


def local_worker(jobs: list[dict], setup: Setup, path: list[str], parent: int) -> None:
    """The process of one device."""
    sys.path[:] = path
    begin_worker(setup)

    def alone(job: Job, state: str) -> None:
        if os.getppid() != parent:
            sys.exit("the sweep is gone")

    try:
        work_through(map(job_from, jobs), setup, alone)
    except KeyboardInterrupt:
        sys.exit(130)


def watch_processes(processes: dict, start: Callable, watcher: Watcher) -> None:
    """Until all are at their end. One that was lost is started again, as long as there is progress: `attempt` gives
    up a job that kills its workers."""
    lost = 0
    try:
        while processes:
            lost = 0 if watcher.look() else lost
            for device, process in list(processes.items()):
                process.join(LOOK)
                if process.exitcode is None:
                    continue
                del processes[device]
                if process.exitcode != 0 and (lost := lost + 1) <= TRIES * (len(processes) + 1):
                    processes[device] = start(device)
        watcher.look()
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


class Watcher:
    """Looks into the folder of a sweep and notes each job once that other processes have done, or that failed."""

    def __init__(self, jobs: Sequence[Job], setup: Setup, note: Note):
        self.left = {job.name: job for job in jobs}
        self.setup, self.note = setup, note

    def look(self) -> int:
        """Notes what is new, and says how much it was."""
        out, before = Path(self.setup.out), len(self.left)
        for entry in os.scandir(out / "edits"):
            if entry.name in self.left:
                self.note(self.left.pop(entry.name), DONE)
        for entry in os.scandir(out / "errors"):
            job = self.left.get(entry.name.removesuffix(".json"))
            if job and failed_before(job, self.setup):
                self.note(self.left.pop(job.name), FAILED)
        return before - len(self.left)


# -- Slurm


class ArrayWorker:
    """One task of the array. submitit sends it again, by `checkpoint`, if Slurm takes its machine away."""

    def __call__(self, jobs: list[dict], setup: Setup, path: list[str]) -> None:
        sys.path[:] = path + [entry for entry in sys.path if entry not in path]
        begin_worker(setup)
        work_through(map(job_from, jobs), setup)

    def checkpoint(self, *arguments):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def run_slurm(
    jobs: Sequence[Job], setup: Setup, note: Note, workers: int = 8, cluster: str = "slurm", options: dict | None = None
) -> None:
    """An array of `workers` tasks over the same table, by submitit. options: of its `update_parameters`, such as
    slurm_partition, timeout_min, gpus_per_node. cluster: "local" runs the tasks as processes of this machine. This
    process only watches: if it is stopped, the tasks go on. Raises ValueError where there is no submitit or no Slurm.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}: it must be 1 or more")
    try:
        import submitit
    except ImportError:
        raise ValueError('the engine slurm needs submitit: pip install "imagic-taught[cluster]"') from None
    logging.getLogger("submitit").setLevel(logging.ERROR)  # at every look it warns of a Slurm without accounting
    watcher, idle = Watcher(jobs, setup, note), 0
    while watcher.left and idle <= TRIES:  # the tasks end when nothing is left; those that were lost are sent again
        before, left = len(watcher.left), plain(watcher.left.values())
        count = min(workers, before)
        try:
            executor = submitit.AutoExecutor(folder=Path(setup.out) / "slurm" / "%j", cluster=cluster)
            executor.update_parameters(name="imagic-sweep", cpus_per_task=setup.cores, **options or {})
            tasks = executor.map_array(ArrayWorker(), [left] * count, [setup] * count, [list(sys.path)] * count)
        except (RuntimeError, NameError, TypeError, OSError) as error:  # no sbatch, an unknown option, Slurm's refusal
            raise ValueError(f"submitit can't send the array: {error}") from error
        while not all(task.done() for task in tasks):
            time.sleep(LOOK)
            watcher.look()
        watcher.look()
        idle = 0 if len(watcher.left) < before else idle + 1


# -- Ray


def run_ray(jobs: Sequence[Job], setup: Setup, note: Note, address: str | None = None) -> None:
    """Actors that load the model once: one for each GPU of the cluster, or for each `setup.cores` cores where it has
    no GPU. Machines may come and go. address: of a cluster, "auto" for the one of this machine; left out, Ray is
    started here. Raises ValueError where there is no Ray or no cluster."""
    try:
        import ray
    except ImportError:
        raise ValueError('the engine ray needs Ray: pip install "imagic-taught[cluster]"') from None
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
        except ConnectionError as error:
            raise ValueError(f"there is no Ray cluster at {address!r} ({error}): start it with `ray start`") from error
    try:
        Hands(ray, jobs, setup, note).run()
    finally:
        if started:
            ray.shutdown()


class Hands:
    """The actors of a sweep, and which job each has in hand: one at a time, so that no more is ever in memory."""

    def __init__(self, ray, jobs: Sequence[Job], setup: Setup, note: Note):
        self.ray, self.setup, self.note = ray, setup, note
        self.queue, self.losses = deque(jobs), 0  # losses: since the last job was done
        self.busy = {}  # reference to a result -> (actor, job), or (actor, None) while it starts

    def run(self) -> None:
        try:
            while self.queue or any(job for _, job in self.busy.values()):
                self.hire()
                ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=LOOK)
                for reference in ready:
                    self.take(reference)
        finally:
            for actor, _ in self.busy.values():
                self.ray.kill(actor)

    def hire(self) -> None:
        """As many actors as the cluster holds now, and no more than there are jobs."""
        total = self.ray.cluster_resources()
        gpus = int(total.get("GPU", 0))
        room = gpus or sum(
            int(node["Resources"].get("CPU", 0)) // self.setup.cores for node in self.ray.nodes() if node["Alive"]
        )
        if not room and not self.busy:
            raise ValueError(f"no machine of the Ray cluster has {self.setup.cores} cores: choose fewer with --cores")
        for _ in range(min(room, len(self.queue) + len(self.busy)) - len(self.busy)):
            kind = actor_class(self.ray).options(num_cpus=0 if gpus else self.setup.cores, num_gpus=1 if gpus else 0)
            actor = kind.remote(asdict(self.setup), [entry or os.getcwd() for entry in sys.path])
            self.busy[actor.ready.remote()] = actor, None

    def take(self, reference) -> None:
        """What one actor gives back; then its next job."""
        actor, job = self.busy.pop(reference)
        try:
            state = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # none of the job's own: those are files in errors/
            raise ValueError(f"a worker can't go on: {error.cause}") from error
        except self.ray.exceptions.RayError as error:
            self.ray.kill(actor)
            self.lost(job, error)
            return
        if job and state == CLAIMED:
            self.queue.append(job)
        elif job:
            self.losses = 0
            self.note(job, state)
        if self.queue:
            job = self.queue.popleft()
            self.busy[actor.attempt.remote(asdict(job))] = actor, job
        else:
            self.ray.kill(actor)

    def lost(self, job: Job | None, error: Exception) -> None:
        """A worker is gone: its job goes to another one, at once. `attempt` gives it up if it kills its workers."""
        self.losses += 1
        if job:
            self.queue.appendleft(job)
        if self.losses > LOSSES:
            raise ValueError(f"the workers are lost one after the other, the last one so: {error}")


def actor_class(ray):
    """The actor, made here so that it travels as a whole: on its machine the library is found by `path` only."""

    class Worker:
        def __init__(self, setup: dict, path: list[str]):
            sys.path.extend(entry for entry in path if entry not in sys.path)
            os.environ["TQDM_DISABLE"] = "1"
            self.values = setup

        def ready(self) -> None:
            from imagic_lab.sweep.work import Setup, begin_worker

            self.setup = Setup(**self.values)
            begin_worker(self.setup)

        def attempt(self, job: dict) -> str:
            from imagic_lab.sweep.work import CLAIMED, job_from

            state = attempt(job_from(job), self.setup)
            if state == CLAIMED:
                time.sleep(LOOK)
            return state

    return ray.remote(Worker)
