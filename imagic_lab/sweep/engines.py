"""Three ways to run the same workers: on this machine, as a Slurm array, or on a Ray cluster.

Each engine is a function (jobs, setup, look, ...) that returns when no job is open. look() reads from the sweep's
folder how many are open. All state is in that folder, so a worker can be lost at any moment.
"""

import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

import torch

from imagic_lab.sweep.table import Job
from imagic_lab.sweep.work import LOOK, TRIES, Setup, work_through

SPARE = 32  # tasks that wait in Ray for machines that join later
Look = Callable[[], int]


def supervise(start: Callable[[object], object], places: Iterable[object], look: Look) -> None:
    """Keep a worker running in each place (such as a task of an array) until no job is open.

    start(place) returns the future (done, exception) of a worker, which ends when no job is open. Lost workers are
    started again. Raises ValueError if many are lost while no job is settled.
    """
    workers, left, lost = {place: start(place) for place in places}, look(), 0
    while left:
        time.sleep(LOOK)
        errors = {place: worker.exception() for place, worker in workers.items() if worker.done()}
        before, left = left, look()
        if None in errors.values():
            return
        lost = 0 if left < before else lost + len(errors)
        if lost > TRIES * len(workers):
            error = next(iter(errors.values()))
            raise ValueError(f"the workers are lost one after the other, the last one by this: {error}") from error
        workers |= {place: start(place) for place in errors if left}


def portable_worker(jobs: Sequence[Job], setup: Setup) -> Callable[[object], None]:
    """Make a worker for other machines. A nested function is sent as a whole; it finds this library by `path`."""
    path, packed = [entry or os.getcwd() for entry in sys.path], pickle.dumps((work_through, jobs, setup))

    def worker(place: object) -> None:
        sys.path.extend(entry for entry in path if entry not in sys.path)
        function, *arguments = pickle.loads(packed)
        function(*arguments)

    return worker


def run_local(jobs: Sequence[Job], setup: Setup, look: Look) -> None:
    """Run the jobs in this process, on its GPU or its CPU."""
    threads = torch.get_num_threads()
    try:
        work_through(jobs, setup, look)
    finally:
        torch.set_num_threads(threads)


def run_slurm(jobs: Sequence[Job], setup: Setup, look: Look, workers: int = 8, cluster: str = "slurm",
              options: dict | None = None) -> None:  # fmt: skip
    """Run an array of `workers` tasks over the same table, with submitit. options: for its `update_parameters`, such as
    slurm_partition, timeout_min, gpus_per_node. cluster: "local" runs the tasks as processes on this machine. This
    process only watches, so if it is stopped, the tasks continue. Raises ValueError without submitit or Slurm."""
    if workers < 1:
        raise ValueError(f"workers is {workers}: it must be 1 or more")
    try:
        import submitit
    except ImportError:
        raise ValueError("the engine slurm needs submitit: pip install submitit") from None
    logging.getLogger("submitit").setLevel(logging.ERROR)  # on a Slurm without accounting, it would warn at every look

    class Task(submitit.helpers.Checkpointable):  # submitted again if Slurm takes its machine away
        __call__ = staticmethod(portable_worker(jobs, setup))

    def send(places: Iterable[int]) -> list[submitit.Job]:
        how = {"name": "imagic-sweep", "cpus_per_task": setup.cores, "slurm_array_parallelism": workers}
        try:
            (Path(setup.out) / "slurm").mkdir(mode=0o700, exist_ok=True)  # the tasks are code, for no one else
            executor = submitit.AutoExecutor(Path(setup.out) / "slurm" / "%j", cluster)
            executor.update_parameters(**how | (options or {}))
            return executor.map_array(Task(), places)
        except (RuntimeError, NameError, TypeError, OSError) as error:  # no sbatch, an unknown option, Slurm's refusal
            raise ValueError(f"submitit can't send the array: {error}") from error

    places = range(min(workers, len(jobs)))
    sent = send(places)
    supervise(lambda place: sent.pop() if sent else send([place])[0], places, look)


def run_ray(jobs: Sequence[Job], setup: Setup, look: Look, address: str | None = None) -> None:
    """Run tasks that each load the model once, on a GPU, or on `setup.cores` cores if the cluster has no GPUs. Machines
    can come and go. address: of a cluster, or "auto" for this machine's; by default, Ray is started here. Raises
    ValueError without Ray, without that cluster, or if none of its machines is large enough."""

    ray, started = connected_ray(address)
    tasks = []

    def start(place: int):
        tasks.append(task.remote(place))
        return tasks[-1].future()

    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
        room = gpus or sum(int(machine.get("CPU", 0)) // setup.cores for machine in machines)
        if not room:
            raise ValueError(f"no machine of the Ray cluster has {setup.cores} cores: choose fewer with --cores")
        needs = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": setup.cores}
        task = ray.remote(**needs, max_retries=TRIES)(portable_worker(jobs, setup))
        supervise(start, range(min(len(jobs), room + SPARE)), look)
    finally:
        for reference in tasks:
            ray.cancel(reference)  # tasks that still wait for a machine and, after a stop, running ones as well
        ray.wait(tasks, num_returns=len(tasks), timeout=30)
        if started:
            ray.shutdown()


def connected_ray(address: str | None) -> tuple[ModuleType, bool]:
    """Return the module ray, and whether we have connected it here."""
    try:
        import ray
    except ImportError:
        raise ValueError('the engine ray needs Ray: pip install "ray[default]"') from None
    started = not ray.is_initialized()
    try:
        if started:
            ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster answers at {address!r} ({error}): start it with `ray start`") from error
    return ray, started
