"""The table of a sweep: what it means, and that all its faults come at once, before anything is started."""

import shutil
from dataclasses import asdict, replace

import pytest
from PIL import Image

from imagic_lab.sweep import Faults, Job, read_table
from imagic_lib import stage1_embedding, stage2_finetuning
from imagic_lib.edit import ETAS
from imagic_lib.models import TINY


@pytest.fixture
def table(tmp_path):
    """Write a table next to two pictures and a file that is not a picture."""
    for name, color in {"red.png": "red", "blue.png": "blue"}.items():
        Image.new("RGB", (32, 32), color).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")

    def write(text, encoding="utf-8"):
        (tmp_path / "jobs.csv").write_text(text, encoding=encoding)
        return tmp_path / "jobs.csv"

    return write


def test_columns_left_out_have_the_library_s_defaults(table, tmp_path):
    [job] = read_table(table("image,text\nred.png,a red car\n"))
    assert (job.image, job.text, job.row) == (str(tmp_path / "red.png"), "a red car", 2)
    assert (job.model, job.method, job.seed, job.seeds, job.etas, job.scale) == ("tiny", "full", 0, (0,), ETAS, 1.0)
    assert job.embedding_steps == stage1_embedding.DEFAULTS["tiny"]["steps"]
    assert job.unet_steps == stage2_finetuning.DEFAULTS["full"]["tiny"]["steps"]


def test_every_column_is_read_and_lists_are_separated_by_spaces(table):
    columns = "text,image,scale,etas,seeds,seed,unet_steps,embedding_steps,method,model"
    [job] = read_table(table(f"{columns}\na cat,blue.png,0.5,0  1 -0.5 1,3 4 3,7,5,6,lora,tiny\n"))
    assert (job.etas, job.seeds, job.seed, job.scale) == ((0.0, 1.0, -0.5), (3, 4), 7, 0.5)
    assert (job.unet_steps, job.embedding_steps, job.method, job.model) == (5, 6, "lora", "tiny")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image;text\nred.png;a car, red\n", "utf-8"),
        ("image\ttext\r\nred.png\ta car, red\r\n", "utf-8"),
        ('image,text\n\n\nred.png,"a car, red"\n,\n', "utf-8-sig"),
    ],
    ids=["semicolons", "tabs", "a spreadsheet's mark, and empty rows"],
)
def test_what_spreadsheets_write_is_read(table, text, encoding):
    [job] = read_table(table(text, encoding))
    assert job.text == "a car, red"


def test_a_row_keeps_the_number_that_a_spreadsheet_shows(table):
    rows = 'image,text\n\nred.png,"a car\nof two lines"\nblue.png,a cat\n'
    assert [job.row for job in read_table(table(rows))] == [3, 4]


def test_all_faults_come_in_one_list(table):
    rows = """image,text,method,embedding_steps,seeds,etas,scale,model
red.png,a car,,,,,,
nowhere.png,a car,,,,,,
notes.txt,a car,,,,,,
red.png,,half,1.5,0 -1,0 much,3,no such model
red.png,a car,full,,0,,1,tiny
red.png,a cat,,,,99,,.
red.png,a cat,,,,,,,,one too many
"""
    with pytest.raises(Faults) as caught:
        read_table(table(rows))
    found = [
        ("row 3: image: there is no file", "nowhere.png"),
        ("row 4: image:", "notes.txt is not a picture"),
        ("row 5: text: the text is empty", ""),
        ("row 5: method: 'half' is unknown", "full or lora"),
        ("row 5: embedding_steps: '1.5' is not a whole number", ""),
        ("row 5: seeds: '-1' is not a whole number", ""),
        ("row 5: etas: 'much' is not a number within ±10", ""),
        ("row 5: scale: '3' is not a number from 0 to 2", ""),
        ("row 5: model: 'no such model' is not tiny, a folder, or the id", ""),
        ("row 6: it is the same edit as row 2", ""),
        ("row 7: model:", "is not a complete diffusers model"),
        ("row 7: etas: '99' is not a number within ±10", ""),
        ("row 8: it has 10 cells, the header has 8", ""),
    ]
    faults = sorted(caught.value.faults)
    assert len(faults) == len(found)
    for fault, (start, part) in zip(faults, sorted(found), strict=True):
        assert fault.startswith(start) and part in fault
    assert caught.value.verdict.endswith("jobs.csv has 13 faults, nothing was started")


@pytest.mark.parametrize(
    ("header", "faults"),
    [
        ("picture,text", ["the column 'image' is missing", "the column 'picture' is unknown: use image, text"]),
        ("image,text,text", ["the column 'text' is there twice"]),
        ("image,text,", ["the column '' is unknown"]),
    ],
)
def test_columns_that_are_wrong_are_all_named(table, header, faults):
    with pytest.raises(Faults) as caught:
        read_table(table(f"{header}\nred.png,a car\n"))
    assert len(caught.value.faults) == len(faults)
    assert all(found.startswith(fault) for found, fault in zip(caught.value.faults, faults, strict=True))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("image,text\n", "has no rows"),
        ('image,text\nred.png,"a car\n', "is not a CSV file"),
        ("image,text\nred.png,Stra\xdfe\n", "is not a CSV file in UTF-8"),
    ],
)
def test_a_file_that_is_not_a_table_is_one_sentence(table, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_table(table(content, "latin-1"))


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_table(tmp_path / "nothing.csv")


def test_an_empty_file_has_no_columns(table):
    with pytest.raises(Faults, match="the column 'image' is missing"):
        read_table(table(""))


def test_a_name_stands_for_settings_and_bytes_wherever_the_files_are(table, tmp_path):
    first = read_table(table("image,text\nred.png,a car\n"))[0].name
    (tmp_path / "copy.png").write_bytes((tmp_path / "red.png").read_bytes())
    rows = f"image,text,model\nblue.png,x,\ncopy.png,a car,{TINY}\n"
    assert read_table(table(rows))[1].name == first
    Image.new("RGB", (32, 32), "green").save(tmp_path / "red.png")
    assert read_table(table("image,text\nred.png,a car\n"))[0].name != first


def test_each_setting_changes_the_name(table):
    columns = "method,embedding_steps,unet_steps,seed,seeds,etas,scale"
    values = ["lora,,,,,,", ",1,,,,,", ",,1,,,,", ",,,1,,,", ",,,,1,,", ",,,,,1,", ",,,,,,0.5", ",,,,,,"]
    rows = "".join(f"red.png,a car,{value}\n" for value in values)
    assert len({job.name for job in read_table(table(f"image,text,{columns}\n{rows}"))}) == len(values)


def test_other_weights_under_the_same_name_are_another_edit(table, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    path = table("image,text,model\nred.png,a car,model\n")
    [before] = read_table(path)
    assert before.model == str(tmp_path / "model")
    weights = next((tmp_path / "model" / "unet").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert read_table(path)[0].name != before.name


def test_every_number_that_is_wrong_in_a_cell_is_named(table):
    with pytest.raises(Faults) as caught:
        read_table(
            table("image,text,seeds,etas,scale,seed\nred.png,a car,1 -2 x 3,nan inf 1,nan,9223372036854775808\n")
        )
    assert [fault.removeprefix("row 2: ").split(" is not ")[0] for fault in caught.value.faults] == [
        "seed: '9223372036854775808'",
        *("seeds: '-2'", "seeds: 'x'", "etas: 'nan'", "etas: 'inf'", "scale: 'nan'"),
    ]


def test_a_job_that_is_not_of_a_table_can_name_what_is_not_here():
    """As those of the benchmark, whose methods are not the table's."""
    job = Job("nowhere.png", "a car", method="sdedit", seeds=(0, 1), etas=(0.1, 0.7), picture="dev-3", weights="abc")
    assert (job.image, job.method, job.etas, job.embedding_steps) == ("nowhere.png", "sdedit", (0.1, 0.7), None)
    assert job.name != replace(job, weights="abd").name == Job(**asdict(job) | {"weights": "abd", "row": 7}).name


def test_a_hub_s_model_has_the_defaults_of_stable_diffusion(table):
    [job] = read_table(table("image,text,model\nred.png,a car,CompVis/stable-diffusion-v1-4\n"))
    assert job.embedding_steps == stage1_embedding.DEFAULTS["stable-diffusion"]["steps"]
    assert job.unet_steps == stage2_finetuning.DEFAULTS["full"]["stable-diffusion"]["steps"]


def test_minus_zero_is_the_same_eta(table):
    with pytest.raises(Faults, match="row 3: it is the same edit as row 2"):
        read_table(table("image,text,etas\nred.png,a cat,0\nred.png,a cat,-0\n"))
