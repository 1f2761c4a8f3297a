"""How a notebook shows a figure: as a small PNG with an alternative text. The figures themselves are the library's."""

import io

from matplotlib.figure import Figure
from PIL import Image

from imagic_lib.figures import PROBE, RAW, edit_sheet, loss_curve, loss_curves, picture_grid

__all__ = ["PROBE", "RAW", "edit_sheet", "loss_curve", "loss_curves", "picture_grid", "png_of", "show"]


def png_of(figure: Figure | Image.Image, dpi: int = 80) -> bytes:
    """A figure or picture as a small PNG of 256 colours: a notebook with ten of them stays under 1 MB.

    Pillow chooses the colours by how many pixels have them; `kmeans` then corrects this choice, or else a small red
    collar would turn orange.
    """
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
