import copy
import os
import re
import struct
import sys
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagic_lab.toyworld import Scene
from imagic_lib import pictures
from imagic_lib.models import load_pipeline
from imagic_lib.pictures import SMALLEST_SIDE, load_image, open_image, picture_size, square, to_picture, to_tensor

FOREIGN = pictures.FOREIGN


@pytest.fixture(autouse=True, scope="module")
def no_picture_is_foreign():
    """The untrained model of these tests can't hold any picture. That it says so is tested with tiny-sd."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "FOREIGN", 0.0)
        yield


def noise(height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def map_of_positions(width: int, height: int) -> Image.Image:
    """Each pixel says where it is: red is its column, green its row."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def refusal(path, kind=ValueError) -> str:
    """The message with which `open_image` refuses the file: one sentence that names it."""
    with pytest.raises(kind) as caught:
        open_image(path)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert str(path) in message
    rest = message.replace(str(path), "FILE")
    assert "\n" not in rest and not re.search(r"[.!?] ", rest) and not rest.endswith(".")
    return rest


# ------------------------------------------------------------------------------- anything but a picture


def test_a_missing_file_is_called_missing(tmp_path):
    assert "no file" in refusal(tmp_path / "dog.png", FileNotFoundError)


def test_a_name_too_long_for_the_disk_is_a_missing_file(tmp_path):
    refusal(tmp_path / ("x" * 300), FileNotFoundError)


def test_a_folder_is_called_a_folder(tmp_path):
    assert "is a folder" in refusal(tmp_path)


def test_an_empty_file_is_called_empty(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    assert "0 bytes" in refusal(path)


def test_text_with_the_name_of_a_picture_is_refused_with_the_formats_that_work(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("I am not a picture. " * 100)
    assert "not a picture" in refusal(path) and "PNG" in refusal(path)


def test_a_truncated_jpeg_is_called_damaged_and_not_shown_half_grey(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise(64, 64)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut short (image file is truncated" in refusal(path)


@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypisom", b"\xff\x0a"], ids=["a film", "JPEG XL"])
def test_what_pillow_cannot_open_is_refused_with_what_to_do(tmp_path, start):
    (tmp_path / "other").write_bytes(start + bytes(100))
    assert "not a picture that can be read: save it as PNG or JPEG" in refusal(tmp_path / "other")


@pytest.mark.parametrize("error", [struct.error("bad"), RuntimeError("bad"), EOFError(), IndexError("bad")])
def test_any_error_of_a_decoder_becomes_one_sentence(tmp_path, monkeypatch, error):
    path = tmp_path / "odd.png"
    Image.fromarray(noise()).save(path)

    def broken(*_):
        raise error

    monkeypatch.setattr(Image.Image, "load", broken)
    assert f"({str(error) or 'EOFError'})" in refusal(path)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "mine.png"
    Image.fromarray(noise()).save(path)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", forbidden)
    assert "you lack the permission" in refusal(path) and "damaged" not in refusal(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp"])
def test_no_damage_to_a_file_leaks_an_error_of_another_kind(tmp_path, suffix):
    path = tmp_path / f"damaged.{suffix}"
    Image.fromarray(noise()).save(path)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(60):
        broken = bytearray(whole[: rng.integers(1, len(whole))] if trial % 2 else whole)
        for at in rng.integers(0, min(len(broken), 200), 3):
            broken[at] = rng.integers(256)
        path.write_bytes(broken)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                open_image(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("size", [(1, 1), (SMALLEST_SIDE - 1, 500), (500, SMALLEST_SIDE - 1)])
def test_a_picture_too_small_to_edit_is_refused_with_its_size_and_not_called_damaged(tmp_path, size):
    path = tmp_path / "small.png"
    Image.new("RGB", size).save(path)
    message = refusal(path)
    assert f"{size[0]}x{size[1]}" in message and str(SMALLEST_SIDE) in message and "damaged" not in message


def test_the_smallest_size_that_is_promised_is_accepted(tmp_path):
    path = tmp_path / "just.png"
    Image.new("RGB", (SMALLEST_SIDE, SMALLEST_SIDE)).save(path)
    assert open_image(path).size == (SMALLEST_SIDE, SMALLEST_SIDE)


@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow alone only warns of the first
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, side):
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit a pixel
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    assert "megapixels" in refusal(path)


@pytest.mark.parametrize("suffix", ["eps", "ico", "ppm", "tga"])
def test_a_format_that_is_not_for_photos_is_not_even_tried(tmp_path, monkeypatch, suffix):
    """Behind the name of a PNG, Pillow would start Ghostscript for an EPS."""
    path = tmp_path / "cat.png"
    Image.fromarray(noise(32, 32)).save(path, format={"ppm": "PPM"}.get(suffix, suffix.upper()))
    assert Image.open(path).size == (32, 32)  # Pillow by itself would take it
    assert "not a picture that can be read" in refusal(path)


def test_a_size_is_refused_before_a_pixel_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (9_000, 9_000)).save(path)  # 81 megapixels in 10 kB: below the limit at which Pillow warns
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was unpacked"))
    assert "megapixels" in refusal(path)


def test_a_picture_object_is_measured_before_it_is_unpacked(pipe, tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (9_000, 9_000)).save(path)
    with Image.open(path) as lazy:
        monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was unpacked"))
        with pytest.raises(ValueError, match="megapixels"):
            load_image(lazy, pipe)


def test_a_pipe_that_never_ends_is_not_a_picture(tmp_path):
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    assert "no regular file" in refusal(path)


HEIC_START = b"\0\0\0\x18ftypheic\0\0\0\0"


def test_the_heic_of_a_phone_is_called_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(HEIC_START + bytes(100))
    message = refusal(path)
    assert "HEIC" in message and "JPEG" in message and "pillow-heif" in message


def test_heic_is_read_where_its_package_is_installed(tmp_path, monkeypatch):
    """pillow-heif adds a format to Pillow; here a stand-in does."""

    def is_heic(start):
        return start[4:12] == b"ftypheic"

    def register_heif_opener():
        Image.register_open("HEIF", lambda file, name: Image.new("RGB", (40, 20), "red"), is_heic)

    for table in ("ID", "OPEN"):
        monkeypatch.setattr(Image, table, type(known := getattr(Image, table))(known))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register_heif_opener))
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(HEIC_START + bytes(100))
    assert open_image(path).getpixel((0, 0)) == (255, 0, 0)
    (tmp_path / "text.png").write_text("I am not a picture. " * 10)
    assert "not a picture" in refusal(tmp_path / "text.png")


# ------------------------------------------------------------------------ every kind becomes true RGB


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_grey_of_more_than_8_bits_is_refused_and_not_clipped(tmp_path, pipe, kind):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((20, 20), 300, dtype=kind)).save(path)
    assert "more than 8 bits" in refusal(path)
    with pytest.raises(ValueError, match="the picture has more than 8 bits"):
        load_image(Image.open(path), pipe)


@pytest.mark.parametrize(("suffix", "tolerance"), [("tif", 0), ("jpg", 8)])
def test_cmyk_keeps_its_colours(tmp_path, suffix, tolerance):
    path = tmp_path / f"print.{suffix}"
    Image.new("CMYK", (32, 32), (255, 0, 0, 0)).save(path)  # cyan ink alone
    difference = pixels(open_image(path)).astype(int) - (0, 255, 255)
    assert abs(difference).max() <= tolerance


def test_palette_transparency_becomes_white(tmp_path):
    picture = Image.new("P", (20, 20), 0)
    picture.putpalette([0, 0, 0, 200, 10, 20])
    picture.paste(1, (10, 0, 20, 20))
    path = tmp_path / "palette.png"
    picture.save(path, transparency=0)
    opened = open_image(path)
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((15, 5)) == (200, 10, 20)


def test_rgba_is_laid_on_white(tmp_path):
    """Bug 4: transparent, palette, grey or EXIF-turned pictures fail or come out wrong (see the tests around)."""
    picture = noise(20, 20, 4)
    picture[:10, :, 3], picture[10:, :, 3] = 0, 255
    picture[0, 0] = (255, 0, 0, 51)  # a fifth of red
    path = tmp_path / "glass.png"
    Image.fromarray(picture, "RGBA").save(path)
    opened = pixels(open_image(path))
    assert tuple(opened[0, 0]) == (255, 204, 204)
    assert (opened[1:10] == 255).all()
    assert np.array_equal(opened[10:], picture[10:, :, :3])


def test_grey_with_alpha_is_laid_on_white(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("LA", (20, 20), (0, 0)).save(path)
    assert pixels(open_image(path)).min() == 255


def test_of_an_animated_gif_the_first_frame_is_taken(tmp_path):
    red, blue = Image.new("RGB", (20, 20), (255, 0, 0)), Image.new("RGB", (20, 20), (0, 0, 255))
    path = tmp_path / "moves.gif"
    red.save(path, save_all=True, append_images=[blue], duration=100)
    with Image.open(path) as picture:
        assert picture.n_frames == 2
    assert (pixels(open_image(path)) == (255, 0, 0)).all()


STORED = {  # how a camera stores an upright picture under each EXIF orientation
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_as_its_exif_says_pixel_by_pixel(tmp_path, pipe, orientation):
    upright, exif = noise(), Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif)
    assert np.array_equal(pixels(open_image(path)), upright)
    with warnings.catch_warnings(), Image.open(path) as picture:
        warnings.simplefilter("ignore")  # of the crop
        from_file, from_picture = load_image(path, pipe), load_image(picture, pipe)
        twice = load_image(open_image(path), pipe)
    assert torch.equal(from_file, from_picture) and torch.equal(from_file, twice)


def test_an_rgb_picture_is_not_changed_by_opening_it(tmp_path):
    path = tmp_path / "plain.png"
    Image.fromarray(noise()).save(path)
    opened = open_image(str(path))
    assert opened.mode == "RGB" and np.array_equal(pixels(opened), noise())


# ------------------------------------------------------------------------------------- crop and size


@given(width=st.integers(16, 255), height=st.integers(16, 255), size=st.sampled_from([16, 64, 128]))
@settings(max_examples=40, deadline=None)
def test_any_shape_is_cropped_to_its_centre_and_scaled_equally_in_both_directions(width, height, size):
    """Bug 11: a random crop of the one picture, or a picture that is stretched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = square(map_of_positions(width, height), size)
    assert fitted.size == (size, size)
    inner = pixels(fitted).astype(float)[size // 4 : -(size // 4), size // 4 : -(size // 4)]
    columns, rows = inner[..., 0], inner[..., 1]
    assert abs(columns.mean() - (width - 1) / 2) < 0.6 and abs(rows.mean() - (height - 1) / 2) < 0.6
    step = min(width, height) / size  # source pixels for one pixel, across and down
    reach = step * (len(inner) - 1)
    assert abs((columns[:, -1] - columns[:, 0]).mean() - reach) < 1.1
    assert abs((rows[-1] - rows[0]).mean() - reach) < 1.1


@given(long=st.integers(17, 3000), tall=st.booleans())
@settings(max_examples=15, deadline=None)
def test_even_a_strip_becomes_a_square_with_a_warning(long, tall):
    picture = Image.new("RGB", (16, long) if tall else (long, 16))
    with pytest.warns(UserWarning, match=f"{picture.width}x{picture.height}"):
        assert square(picture, 32).size == (32, 32)


def test_a_crop_warns_and_says_how_much_is_lost(pipe):
    with pytest.warns(UserWarning, match=r"400x200.*central square.*50% is cut off") as caught:
        load_image(map_of_positions(400, 200), pipe)
    assert len(caught) == 1
    assert Path(caught[0].filename).name == Path(__file__).name  # points at the caller's line


def test_a_wide_picture_loses_its_sides_and_keeps_its_shapes(pipe):
    picture = Image.new("RGB", (300, 128), "white")
    picture.paste((255, 0, 0), (0, 0, 86, 128))  # left of the central square
    picture.paste((0, 0, 0), (118, 32, 182, 96))  # a black square of 64x64 in the middle
    with pytest.warns(UserWarning):
        image = load_image(picture, pipe)[0]
    black = (image.max(dim=0).values < 0).nonzero()
    assert (black.max(dim=0).values - black.min(dim=0).values + 1).tolist() == [64, 64]
    assert black.float().mean(dim=0).tolist() == [63.5, 63.5]
    assert not ((image[0] > 0.9) & (image[1] < 0)).any()  # no red is left, so nothing was squeezed in


def test_a_square_picture_is_taken_whole_without_a_warning(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(map_of_positions(128, 128), pipe)
    assert torch.equal(image, to_tensor(map_of_positions(128, 128)))


def test_the_size_of_pictures_is_the_models(pipe):
    """Bug 3: a height and width that are asked for, checked and never used. Here the model decides, and it holds."""
    assert picture_size(pipe) == 128
    assert load_image(map_of_positions(300, 300), pipe).shape == (1, 3, 128, 128)


def test_load_image_gives_one_float_batch_from_minus_1_to_1(tmp_path, pipe):
    path = tmp_path / "white-and-black.png"
    Image.fromarray(np.repeat(np.uint8([[0], [255]]), 64, axis=0).repeat(128, axis=1)).save(path)
    image = load_image(path, pipe)
    assert image.shape == (1, 3, 128, 128)
    assert image.dtype == torch.float32 and image.device == pipe.unet.device
    assert (image[..., :64, :] == -1).all() and (image[..., 64:, :] == 1).all()


def test_load_image_refuses_a_picture_object_that_is_too_small(pipe):
    with pytest.raises(ValueError, match=r"^the picture is 1x1 pixels"):
        load_image(Image.new("RGB", (1, 1)), pipe)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "PA"])
def test_load_image_lays_a_transparent_picture_object_on_white(pipe, mode):
    picture = Image.new("PA", (128, 128), (0, 0)) if mode == "PA" else Image.new(mode[:-1] + "A", (128, 128))
    assert (load_image(picture.convert(mode), pipe) == 1).all()


def test_load_image_has_the_precision_of_the_model(pipe):
    half = SimpleNamespace(unet=copy.deepcopy(pipe.unet).to(torch.bfloat16), vae=pipe.vae, vae_scale_factor=8)
    assert load_image(Image.new("RGB", (128, 128)), half).dtype == torch.bfloat16


def test_a_picture_is_scaled_by_lanczos(pipe):
    """Sharper than Pillow's default, and what diffusers does."""
    wide = Image.fromarray(noise(64, 64))
    expected = wide.resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(square(wide, 32)), pixels(expected))


def test_the_most_pixels_that_are_promised_are_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 32 * 32)
    for side in (32, 33):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    assert open_image(tmp_path / "32.png").size == (32, 32)
    assert "unpacks to more than 80 megapixels: shrink it first" in refusal(tmp_path / "33.png")


def test_a_grey_picture_has_three_channels_as_a_tensor():
    assert to_tensor(Image.new("L", (16, 16), 255)).shape == (1, 3, 16, 16)


# --------------------------------------------------------------------------------- to tensors and back


def test_all_256_values_survive_the_way_to_a_tensor_and_back():
    every = np.arange(256 * 3, dtype=np.uint16).reshape(16, 16, 3).astype(np.uint8)
    assert set(every.ravel()) == set(range(256))
    tensor = to_tensor(Image.fromarray(every))
    assert tensor.shape == (1, 3, 16, 16) and tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(pixels(to_picture(tensor)), every)


def test_rows_stay_rows_and_columns_columns():
    tensor = to_tensor(map_of_positions(40, 20))
    assert tensor.shape == (1, 3, 20, 40)
    assert to_picture(tensor).size == (40, 20)
    assert to_picture(tensor).getpixel((31, 7)) == (31, 7, 0)


def test_values_out_of_range_are_clamped_and_do_not_wrap_around():
    tensor = torch.tensor([-7.0, 7.0, 1.001]).view(1, 3, 1, 1).expand(1, 3, 16, 16).clone().requires_grad_()
    assert to_picture(tensor).getpixel((0, 0)) == (0, 255, 255)


# ------------------------------------------------------------------------------------------- and photos


def test_a_warning_points_at_the_line_that_called(pipe, monkeypatch):
    monkeypatch.setattr(pictures, "FOREIGN", 1000.0)
    for call in (
        lambda: load_image(map_of_positions(128, 128), pipe),  # the embedded model can't hold it
        lambda: load_image(map_of_positions(200, 128), pipe),  # cropped
        lambda: square(map_of_positions(200, 128), 64),
    ):
        with pytest.warns(UserWarning) as caught:
            call()
        assert {(w.filename, w.lineno) for w in caught} == {(__file__, call.__code__.co_firstlineno)}


def test_the_embedded_model_says_what_it_can_t_hold(monkeypatch):
    monkeypatch.setattr(pictures, "FOREIGN", FOREIGN)
    tiny = load_pipeline("tiny", device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    with pytest.warns(UserWarning, match=r"can't hold this picture .* Stable Diffusion 1.4 on a GPU"):
        load_image(Image.fromarray(noise), tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(6):
            load_image(Scene.sample(1_000_000 + seed).render(), tiny)


def flat(value: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (value,) * 3)


def test_distances_are_plain():
    assert pictures.rmse(flat(0), flat(255)) == 1.0 and pictures.rmse(flat(7), flat(7)) == 0.0
    assert pictures.psnr(flat(0), flat(51)) == pytest.approx(-20 * np.log10(0.2))
    assert pictures.psnr(flat(3), flat(3)) == float("inf")
    with pytest.raises(ValueError, match="differ in size"):
        pictures.rmse(flat(0), Image.new("RGB", (9, 8)))
