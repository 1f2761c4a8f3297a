"""What several tests use: a seeded generator, the weights of a network as they are now, the loss of the paper."""

import torch


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
