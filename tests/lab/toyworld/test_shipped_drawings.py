"""The drawings in data/images and the list of their scenes."""

import numpy as np
import pytest
from PIL import Image

import imagic_lib as imagic
from imagic_lab.toyworld import load_scene


def test_every_shipped_picture_is_the_drawing_of_its_scene():
    folder = imagic.models.DATA / "images"
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) >= 5
    for path in pictures:
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(load_scene(path).render())), path.name
    assert load_scene(folder / "dog-sitting.png").edit(pose="jumping").held_out


def test_a_picture_that_is_not_listed_is_refused(tmp_path):
    (tmp_path / "scenes.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.png is not listed"):
        load_scene(tmp_path / "x.png")
