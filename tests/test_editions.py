"""The two editions of the notebooks: what is in them, that the student's runs unfilled, and that no link breaks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from imagic_lab.classroom import build, course, editions
from tests.test_notebooks import FOLDER, PATHS, ROOT, links_of

START = """import os
import sys
os.environ["IMAGIC_PROGRESS"] = ""
sys.path.insert(0, {root!r})
from pathlib import Path
from imagic_lab.classroom import check, course, predict, reveal, score
course.NOTEBOOKS = Path({folder!r})"""
EXERCISE = """[99.twice]
calls = "[(2,), (5,)]"
solution = "lambda x: 2 * x"
mistakes = [["lambda x: x", "a"], ["lambda x: x**2", "b"], ["lambda x: 4", "c"]]
praise = "so it is"
hint = "add it to itself"
"""


def tagged(source: str, *tags: str, text: str = ""):
    outputs = [new_output("stream", name="stdout", text=text)] if text else []
    return new_code_cell(source, execution_count=1, outputs=outputs, metadata={"tags": list(tags)})


@pytest.fixture
def made_up(tmp_path):
    """A small notebook with every kind of cell."""
    (tmp_path / "exercises.toml").write_text(EXERCISE, encoding="utf-8")
    badge = build.badge("99_made_up.ipynb")
    cells = [
        new_markdown_cell(
            f"# 99 · Made up\n\n{badge}\n\nSee [the pictures](../data/images/README.md) and [01](01.ipynb)."
        ),
        tagged(START.format(root=str(ROOT), folder=str(tmp_path)), "colab"),
        new_markdown_cell("Minutes: 5.", metadata={"tags": ["teacher"]}),
        tagged("predict('99.a', 'Which?', ['one', 'two'])", "predict"),
        tagged("reveal('99.a', 'two', '2.0')", "reveal", text="measured: two (2.0)"),
        tagged("def twice(x):\n    return ...\n\n\ncheck('99.twice', twice)", "stub", text="not attempted yet"),
        tagged("def twice(x):\n    return 2 * x\n\n\ncheck('99.twice', twice)", "solution", text="right"),
        new_markdown_cell("Because 2 x is x + x.", metadata={"tags": ["solution"]}),
        tagged("score('99')"),
    ]
    return new_notebook(cells=cells)


def printed(notebook) -> str:
    return "".join(o.text for c in notebook.cells if c.cell_type == "code" for o in c.outputs if "text" in o)


def test_the_student_s_edition_holds_neither_solutions_nor_notes_nor_outputs(made_up):
    student, before = editions.edition(made_up, "student"), nbformat.writes(made_up)
    text = nbformat.writes(student)
    assert "2 * x" not in text and "x + x" not in text and "Minutes" not in text and len(student.cells) == 6
    assert printed(student) == "" and all(c.execution_count is None for c in student.cells if c.cell_type == "code")
    assert (
        student.cells[0].source
        == "# 99 · Made up\n\nSee [the pictures](../../data/images/README.md) and [01](01.ipynb)."
    )
    assert nbformat.writes(made_up) == before


def test_the_teacher_s_edition_holds_everything(made_up):
    teacher = editions.edition(made_up, "teacher")
    assert [c.source for c in teacher.cells[1:]] == [c.source for c in made_up.cells[1:]]
    assert "measured: two" in printed(teacher) and "badge" not in teacher.cells[0].source


def test_the_student_s_edition_runs_unfilled(made_up):
    student = editions.edition(made_up, "student")
    NotebookClient(student, timeout=60).execute()
    lines = printed(student).splitlines()
    assert (
        lines[0] == "measured: two (2.0)" and lines[1].startswith("not attempted yet") and lines[-1] == "points: 0 of 2"
    )


def test_the_solutions_of_the_teacher_s_edition_pass(made_up, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("IMAGIC_PROGRESS", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(course, "MEMORY", {})
    monkeypatch.setattr(course, "NOTEBOOKS", tmp_path)
    space = {}
    for cell in editions.edition(made_up, "teacher").cells:
        if cell.cell_type == "code":
            exec(cell.source, space)
    said = capsys.readouterr().out
    assert "right, 1 point: so it is" in said and said.endswith("points: 1 of 2\n")


@pytest.mark.parametrize("kind", editions.LEFT_OUT)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_notebook_has_both_editions_with_links_that_lead_somewhere(path, kind):
    mine = editions.edition(nbformat.read(path, as_version=4), kind)
    nbformat.validate(mine)
    texts = [cell.source for cell in mine.cells if cell.cell_type == "markdown"]
    for target in (target.partition("#")[0] for text in texts for target in links_of(text)):
        place = (FOLDER if "/" not in target else editions.BUILD / kind) / target
        assert place.resolve().exists(), f"a link leads nowhere: {target}"


def test_make_editions_replaces_the_old_ones(tmp_path, made_up, monkeypatch, capsys):
    monkeypatch.setattr(editions, "BUILD", tmp_path / "build")
    monkeypatch.setattr(editions, "NOTEBOOKS", tmp_path)
    nbformat.write(made_up, tmp_path / "99_made_up.ipynb")
    (tmp_path / "build" / "student").mkdir(parents=True)
    (tmp_path / "build" / "student" / "98_gone.ipynb").write_text("{}")
    editions.main()
    for kind in editions.LEFT_OUT:
        assert [path.name for path in (tmp_path / "build" / kind).iterdir()] == ["99_made_up.ipynb"]
    assert capsys.readouterr().out.startswith(
        "1 notebooks in build/student\n1 notebooks in build/teacher\nto hand out:"
    )


def test_the_zip_to_hand_out_has_what_the_notebooks_link_to_and_no_solutions(tmp_path):
    editions.hand_out(tmp_path / "course.zip")
    shutil.unpack_archive(tmp_path / "course.zip", tmp_path)
    top = tmp_path / "imagic"
    assert {path.name for path in (top / "notebooks").glob("*.ipynb")} == {path.name for path in FOLDER.glob("*.ipynb")}
    for path in sorted((top / "notebooks").glob("[0-9]*.ipynb")):
        mine = nbformat.read(path, as_version=4)
        assert not any({"solution", "teacher"} & set(cell.metadata.get("tags", [])) for cell in mine.cells)
        assert not any(cell.get("outputs") for cell in mine.cells)
        texts = [cell.source for cell in mine.cells if cell.cell_type == "markdown"]
        for target in (target.partition("#")[0] for text in texts for target in links_of(text)):
            assert (path.parent / target).exists(), f"{path.name} links to what is not in the zip: {target}"
    # the package in it is whole: it finds its model, its pictures and the exercises
    script = "import imagic_lib, imagic_lab.classroom as c; imagic_lib.load_pipeline('tiny'); print(c.__file__)"
    run = subprocess.run([sys.executable, "-c", script], cwd=top, capture_output=True, text=True, check=True)
    assert Path(run.stdout.split("\n")[0]).is_relative_to(top)
