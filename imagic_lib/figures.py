"""Figures whose labels are readable on a projector: grids of pictures, the sheet of one edit, loss curves."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from imagic_lib.training.loop import History

RAW, PROBE = "#999999", "#0072B2"  # from Okabe and Ito's palette, which colour-blind readers can tell apart


def picture_grid(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str] = (), labels: Sequence[str] = (),
                 title: str = "", inch: float = 1.6) -> Figure:  # fmt: skip
    """Draw rows of pictures, each `inch` wide, with a title above each column and a label to the left of each row.

    A $ in these texts is a dollar sign. Users write them, so they are never read as formulas."""
    columns = max(len(row) for row in rows)
    size = inch * columns + 0.3, (inch + 0.12) * len(rows) + (0.75 if title else 0.35)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            axes[r, c].imshow(picture)
    for axis, text in zip(axes[0], titles, strict=False):
        axis.set_title(text, fontsize=12, parse_math=False)
    for axis, text in zip(axes[:, 0], labels, strict=False):
        axis.set_ylabel(text, fontsize=11, parse_math=False)
    figure.suptitle(title, fontsize=14, parse_math=False)
    return figure


def edit_sheet(edit, etas: Sequence[float], seeds: Sequence[int], rows: list[list[Image.Image]]) -> Figure:
    """Draw the sheet of an `ImagicEdit`. Each row has the input, the VAE's reconstruction and one picture per η."""
    first, titles = [edit.input_picture, edit.reconstruction], ["input", "VAE only", *(f"η = {eta:g}" for eta in etas)]
    return picture_grid([first + row for row in rows], titles, [f"seed {seed}" for seed in seeds], f"“{edit.text}”")


def loss_curve(axis: Axes, history: History, title: str) -> None:
    """Plot the raw loss of each step, which is noisy, and the probe loss, whose noise and timesteps are fixed."""
    axis.plot(range(1, len(history.loss) + 1), history.loss, color=RAW, linewidth=1, label="raw loss")
    probe = {"color": PROBE, "linewidth": 2.5, "marker": "o", "markersize": 4, "label": "probe loss"}
    axis.plot(history.probe_step, history.probe_loss, **probe)
    axis.set_xlabel("step", fontsize=12)
    axis.set_ylabel("mean squared error of the noise", fontsize=12)
    axis.set_yscale("log")
    axis.set_title(title, fontsize=13)
    axis.legend(fontsize=11)


def loss_curves(embedding_history: History, unet_history: History) -> Figure:
    """Plot both trainings of an edit on one scale: stage 2 starts at the loss where stage 1 stopped."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    loss_curve(left, embedding_history, "stage 1: the embedding learns")
    loss_curve(right, unet_history, "stage 2: the UNet learns")
    return figure
