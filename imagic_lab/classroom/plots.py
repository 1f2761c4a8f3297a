"""Figures of the notebooks: grids of pictures, the sheet of one edit, loss curves. Large enough for a projector."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from imagic_lib.training.loop import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# two colours of Okabe and Ito, which colour-blind readers can tell apart
RAW, PROBE = "#999999", "#0072B2"


def png_of(figure: Figure | Image.Image, dpi: int = 80) -> bytes:
    """A figure or picture as a small PNG of 256 colours: a notebook with ten of them stays under 1 MB.

    Pillow chooses the colours by their counts, and `kmeans` corrects them: else a small red collar turns orange."""
    if not isinstance(figure, Image.Image):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        figure = Image.open(buffer)
    buffer = io.BytesIO()
    figure.convert("RGB").quantize(256, kmeans=1).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def show(figure: Figure | Image.Image, alt: str) -> None:
    """Show a figure in a notebook, with a sentence for readers who can't see it."""
    from IPython.display import Image as Shown
    from IPython.display import display

    display(Shown(data=png_of(figure), format="png", metadata={"alt": alt}))  # IPython 7, Colab's, has no alt=


def picture_grid(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str] = (), labels: Sequence[str] = (),
                 title: str = "", inch: float = 1.6) -> Figure:  # fmt: skip
    """Rows of pictures with a title over each column and a label before each row. The words may be a user's own, and
    are no formulas: a $ in them is a dollar."""
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    figure = Figure(
        figsize=(inch * columns + 0.3, (inch + 0.12) * len(rows) + (0.75 if title else 0.35)), layout="constrained"
    )
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for r, row in enumerate(rows):
        for c in range(columns):
            axis = axes[r, c]
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if c < len(row):
                axis.imshow(row[c])
            if r == 0 and c < len(titles):
                axis.set_title(titles[c], fontsize=12, parse_math=False)
        if r < len(labels):
            axes[r, 0].set_ylabel(labels[r], fontsize=11, parse_math=False)
    figure.suptitle(title, fontsize=14, parse_math=False)
    return figure


def edit_sheet(edit, etas: Sequence[float], seeds: Sequence[int], rows: list[list[Image.Image]],
               truth: Image.Image | None = None) -> Figure:  # fmt: skip
    """Input, the VAE's reconstruction, one picture an η, and the ground truth where it is known."""
    first, last = [edit.input_picture, edit.reconstruction], [truth] if truth else []
    titles = ["input", "VAE only", *(f"η = {eta:g}" for eta in etas), *(["ground truth"] if truth else [])]
    labels = [f"seed {seed}" for seed in seeds]
    return picture_grid([first + row + last for row in rows], titles, labels, f"“{edit.text}”")


def loss_curve(axis: Axes, history: History, title: str) -> None:
    """The raw loss of each step (random timesteps, so noisy) and the probe (always the same ones)."""
    axis.plot(range(1, len(history.loss) + 1), history.loss, color=RAW, linewidth=1, label="raw loss")
    axis.plot(
        history.probe_step, history.probe_loss, color=PROBE, linewidth=2.5, marker="o", markersize=4, label="probe loss"
    )
    axis.set_xlabel("step", fontsize=12)
    axis.set_ylabel("mean squared error of the noise", fontsize=12)
    axis.set_yscale("log")
    axis.set_title(title, fontsize=13)
    axis.legend(fontsize=11)


def loss_curves(embedding_history: History, unet_history: History) -> Figure:
    """Both trainings of an edit side by side, on one scale: stage 2 starts at the loss where stage 1 stopped."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    loss_curve(left, embedding_history, "stage 1: the embedding learns")
    loss_curve(right, unet_history, "stage 2: the UNet learns")
    return figure


def probe_curves(histories: dict[str, History], width: int = 300, height: int = 150) -> str:
    """The probe losses of stages 1 ("embedding") and 2 ("unet") as far as they are, on one logarithmic scale: an SVG,
    drawn in a millisecond while a training runs beside it."""
    values = [value for history in histories.values() for value in history.probe_loss] or [1.0]
    low, high = math.log(min(values) / 1.05), math.log(max(values) * 1.05)
    panels = []
    for number, (stage, title) in enumerate((("embedding", "stage 1: the embedding"), ("unet", "stage 2: the UNet"))):
        left, top, history = 52 + number * (width + 24), 24, histories.get(stage, History())
        steps = max(1, history.steps)
        points = [
            (left + width * step / steps, top + height * (high - math.log(value)) / (high - low))
            for step, value in zip(history.probe_step, history.probe_loss, strict=True)
        ]
        panels.append(
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="{RAW}"/>'
            f'<text x="{left + width / 2}" y="15" text-anchor="middle" font-weight="bold">{title}</text>'
            f'<text x="{left}" y="{top + height + 16}">0</text>'
            f'<text x="{left + width}" y="{top + height + 16}" text-anchor="end">step {steps if points else ""}</text>'
            f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" '
            f'stroke="{PROBE}" stroke-width="2.5"/>'
            + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{PROBE}"/>' for x, y in points)
        )
    scale = (
        f'<text x="46" y="{24 + 10}" text-anchor="end">{math.exp(high):.3f}</text>'
        f'<text x="46" y="{24 + height}" text-anchor="end">{math.exp(low):.3f}</text>'
        f'<text x="14" y="{24 + height / 2}" text-anchor="middle" transform="rotate(-90 14 {24 + height / 2})">'
        "probe loss</text>"
    )
    whole = f"0 0 {52 + 2 * width + 32} {height + 46}"
    return (
        f'<svg viewBox="{whole}" style="width:100%;max-width:{52 + 2 * width + 32}px" font-size="12" '
        f'fill="currentColor" role="img" aria-label="probe loss of both stages">{scale}{"".join(panels)}</svg>'
    )
