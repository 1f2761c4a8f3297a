"""Stage 3: interpolate between the embedding of the picture (e_opt) and that of the text (e_tgt)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from imagic_lib.arguments import etas_of


def interpolate(e_tgt: Tensor, e_opt: Tensor, eta: float | Sequence[float]) -> Tensor:
    """Imagic's eq. 3: ē = η·e_tgt + (1-η)·e_opt.

    e_tgt, e_opt: (1, tokens, width). eta: with 0 we get e_opt, which rebuilds the input; with 1, e_tgt. The paper uses
    0.6 to 0.8; values outside [0, 1] extrapolate. One η gives (1, tokens, width), a sequence of n gives
    (n, tokens, width). Raises ValueError if the shapes differ, or unless there is at least one η, all from -10 to 10.
    Taught in notebooks/04_interpolation.ipynb."""
    if e_tgt.shape != e_opt.shape:
        raise ValueError(f"e_tgt is {tuple(e_tgt.shape)} and e_opt {tuple(e_opt.shape)}: they must be of one shape")
    etas = torch.tensor(etas_of([eta] if isinstance(eta, float | int) else eta)).to(e_tgt).reshape(-1, 1, 1)
    return etas * e_tgt + (1 - etas) * e_opt
