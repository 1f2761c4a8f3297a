"""What several tests use: generators, weights, the loss of the paper, and trainings that die or must not go on."""

import resource
from contextlib import contextmanager

import torch

from imagic_lib.training.checkpoint import CheckpointFile
from imagic_lib.training.loop import Training


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def loss_by_hand(pipe, unet, z, e, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Imagic eq. 2 without a line of the library: one noise and one time in each of `batch` equal parts of 1000."""
    t = ((torch.arange(batch) + torch.rand(batch, generator=generator)) * 1000 / batch).long()
    noise = torch.randn((batch, *z.shape[1:]), generator=generator).to(z)
    a = pipe.scheduler.alphas_cumprod[t].to(z)[:, None, None, None]
    z_t = a.sqrt() * z + (1 - a).sqrt() * noise
    return (unet(z_t, t, e.expand(batch, -1, -1)).sample - noise).square().mean()


def no_more_steps(monkeypatch) -> None:
    """From here on, a training that takes a step fails."""

    def step(training, loss):
        raise AssertionError(f"{training.name} took a step")

    monkeypatch.setattr(Training, "step", step)


class Killed(BaseException):
    """Like SIGKILL, which nothing catches."""


def kill_after_a_save(monkeypatch, stage: str) -> None:
    """The process dies when the training of this name has written a checkpoint."""
    save = CheckpointFile.save

    def save_and_die(file):
        save(file)
        if file.training.name.startswith(stage):
            raise Killed

    monkeypatch.setattr(CheckpointFile, "save", save_and_die)


@contextmanager
def disk_of(size: int):
    """No file can grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def widgets_in(widget):
    """The widget and everything inside it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from widgets_in(child)
