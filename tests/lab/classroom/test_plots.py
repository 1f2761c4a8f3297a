"""Figures, films and maps: each picture in its place, with an alt text that arrives, and colours that are kept."""

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from imagic_lab.classroom import film, latents_stack, plots, show, slide, the_map, unet_map
from imagic_lab.toyworld import Scene
from imagic_lib.training.loop import History


def flat(value):
    return Image.new("RGB", (8, 8), (value,) * 3)


def test_the_sheet_has_input_and_etas_in_order():
    edit = SimpleNamespace(text="a dog", input_picture=flat(0), reconstruction=flat(10))
    rows = [[flat(30), flat(37)], [flat(40), flat(47)]]
    figure = plots.edit_sheet(edit, [0, 0.7], [3, 4], rows)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["input", "VAE only", "η = 0", "η = 0.7"]
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == ["seed 3", "seed 4"]
    shown = [np.asarray(axis.images[0].get_array())[0, 0, 0] for axis in figure.axes]
    assert shown == [0, 10, 30, 37, 0, 10, 40, 47] and figure.get_suptitle() == "“a dog”"


def test_a_dollar_in_a_text_does_not_start_a_formula():
    grid = plots.picture_grid([[flat(0)]], [r"5$ and \foo{$"], [r"$\bar$"], r"$\foo{$")
    assert plots.png_of(grid).startswith(b"\x89PNG")  # as a formula, \foo would be an error


def test_a_small_thing_keeps_its_colour():
    """Chosen by the counts of pixels alone, 256 colours turned a green emblem grey, and a red collar orange."""
    cars = [Scene.sample(seed, subject="car", colour="yellow", place="beach").render() for seed in range(8)]
    plots.picture_grid([cars[:4], cars[4:]], inch=1.9).savefig(buffer := io.BytesIO(), format="png", dpi=80)
    exact = Image.open(buffer).convert("RGB")
    shown = Image.open(io.BytesIO(plots.png_of(exact))).convert("RGB")
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(exact)).max() < 70


def test_curves_show_raw_and_probe_loss_with_labels():
    history = History([3.0, 2.0, 1.0], [0, 2, 3], [3.0, 2.0, 1.0], [0.1] * 3, 1.0)
    figure = plots.loss_curves(history, history)
    for axis in figure.axes:
        raw, probe = axis.lines
        assert raw.get_ydata().tolist() == [3, 2, 1] and probe.get_xdata().tolist() == [0, 2, 3]
        assert axis.get_xlabel() == "step" and axis.get_legend() is not None
    assert "mean squared error" in figure.axes[0].get_ylabel()


ALT = "A dog that sits &amp; a dog that jumps."


def images_in(page: str) -> list[tuple[str, Image.Image]]:
    """(alt, picture) of each <img> of a page."""
    found = re.findall(r'<img alt="([^"]*)" src="data:image/[^;]+;base64,([^"]+)"', page)
    assert len(found) == page.count("<img")
    return [(alt, Image.open(io.BytesIO(base64.b64decode(data)))) for alt, data in found]


@pytest.mark.parametrize(
    ("shown", "titles", "alts", "captions"),
    [
        (flat(0), (), [ALT], []),
        ([flat(0), flat(90)], (), [ALT, "picture 2"], []),
        ({"input": flat(0), "the <edit>": flat(90)}, (), [ALT, "the &lt;edit&gt;"], ["input", "the &lt;edit&gt;"]),
        ({"seed 0": [flat(0)], "seed 1": [flat(90)]}, ["η = 1"], [ALT, "seed 1"], ["η = 1", "η = 1"]),
    ],
)
def test_pictures_are_shown_in_order_with_alt_text_and_captions(pages, shown, titles, alts, captions):
    show(shown, "02.dogs", titles)
    [page] = pages
    assert [alt for alt, _ in images_in(page)] == alts and re.findall(r"<figcaption[^>]*>([^<]*)<", page) == captions
    levels = [picture.convert("RGB").getpixel((0, 0))[0] for _, picture in images_in(page)]
    assert levels == [0, 90][: len(alts)]


def test_a_figure_is_as_wide_as_it_says_and_has_its_alt_text(pages):
    show(Figure(figsize=(5, 2)), "02.dogs")
    [(alt, picture)] = images_in(pages[0])
    assert alt == ALT and "width:480px" in pages[0] and picture.width == 720


def test_what_can_not_be_shown_is_a_sentence(pages, monkeypatch):
    with pytest.raises(ValueError, match=r"“02\.cats” is not in notebooks/alt\.toml: add “cats” under \[02\]"):
        show(flat(0), "02.cats")
    with pytest.raises(ValueError, match="7 pictures in a row: at most 6"):
        show(7 * [flat(0)], "02.dogs")
    with pytest.raises(ValueError, match="edits: 2 pictures for 3 stops"):
        slide({"edits": [flat(0), flat(1)]}, ["a", "b", "c"], "02.dogs")
    for frames, labels in (([], []), ([flat(0)], ["a", "b"])):
        with pytest.raises(ValueError, match=f"{len(frames)} frames and {len(labels)} labels"):
            film(frames, "02.dogs", labels=labels)
    monkeypatch.setattr(plots, "LARGEST_FILM", 1000)
    with pytest.raises(ValueError, match=r"film “02\.dogs” has \d kB, at most 300"):
        film([Scene.sample(k).render() for k in range(2)], "02.dogs")


def test_a_slide_begins_at_its_first_stop_and_names_every_picture(pages):
    slide({"input": [flat(0)], "edit": [flat(50), flat(90)]}, ["η = 0", "η = 1"], "02.dogs")
    assert [alt for alt, _ in images_in(pages[0])] == [ALT, "edit, η = 0", "edit, η = 1"]
    assert re.findall(r"display:(block|none)", pages[0])[-3:] == ["block", "block", "none"]
    assert 'max="1" data-stops="η = 0|η = 1"' in pages[0] and "<output>η = 0</output>" in pages[0]


def test_a_film_moves_is_small_and_has_the_same_bytes_each_time(pages):
    figure = Figure(figsize=(4, 4))
    frames = [Scene.sample(k).render() for k in range(6)]
    for _ in range(2):
        film(frames, "02.dogs", fps=5, labels=[f"η = {k}" for k in range(6)])
    film([figure, figure], "02.dogs")
    (alt, moving), (_, figures) = images_in(pages[0]) + images_in(pages[2])
    assert alt == ALT and moving.n_frames == 6 and moving.size == (384, 420) and figures.size == (320, 320)
    assert pages[0] == pages[1] and len(pages[0]) < 4 / 3 * plots.LARGEST_FILM + 200
    moving.seek(5)
    moving.load()
    assert moving.info["duration"] == 1500


def test_the_map_lights_one_part():
    whole, stage, model = the_map(), the_map("stage 1"), the_map("model")
    drawings = [
        base64.b64decode(re.search(r"base64,([^\"]+)", page.html)[1]).decode() for page in (whole, stage, model)
    ]
    assert "opacity: .28" not in drawings[0] and "svg > g:not(.stage1) { opacity: .28 }" in drawings[1]
    assert ".edit { display: none }" in drawings[2] and 'class="stage1"' in drawings[1]
    assert stage._repr_mimebundle_()["text/plain"].endswith("In colour: stage 1.") and 'alt="The map' in stage.html
    with pytest.raises(ValueError, match="no part “stage 5”: choose from everything, model"):
        the_map("stage 5")


def test_the_map_of_the_unet_tells_its_config(pipe):
    page = unet_map(pipe.unet)
    assert "16 × 16, 16 channels, then 8 × 8, 32, then 4 × 4, 32," in page.text
    assert "enters the middle and 4 of the 6 other blocks" in page.text
    deep = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1, 2, 3, 4)))
    with pytest.raises(ValueError, match="has three levels, this UNet has 4"):
        unet_map(deep)


def test_latents_are_a_stack_of_as_many_maps():
    page = latents_stack(
        Scene.sample(5).render(), torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    )
    drawing = base64.b64decode(re.search(r"base64,([^\"]+)", page.html)[1]).decode()
    assert drawing.count("<image") == 5 and "4 maps of 16 × 16 numbers" in drawing and "16 × 16 blocks" in page.text


def test_a_page_is_displayed_with_its_alt_text_where_there_is_no_html(tables, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    show(flat(0), "02.dogs")
    assert shown[0]._repr_mimebundle_()["text/plain"] == "A dog that sits & a dog that jumps."


def test_on_an_exported_page_every_picture_has_its_alt_text(pages):
    """nbconvert writes "No description has been provided for this image" where it finds none."""
    exporters = pytest.importorskip("nbconvert.exporters", reason="nbconvert is not installed")
    show([flat(0), flat(90)], "02.dogs")
    film([flat(0), flat(90)], "02.dogs")
    outputs = [new_output("display_data", {"text/html": page}) for page in [*pages, the_map().html]]
    page, _ = exporters.HTMLExporter().from_notebook_node(new_notebook(cells=[new_code_cell("1", outputs=outputs)]))
    assert re.findall(r'<img[^>]*alt="([^"]{9})', page) == ["A dog tha", "picture 2", "A dog tha", "The map o"]
    assert "No description" not in page
