"""imagic_lab/classroom/build.py: addresses, tidy outputs, and nothing lost when a notebook fails."""

from __future__ import annotations

import builtins
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from imagic_lab.classroom import build

OLD = "[![Open in Colab](https://example.org/old.svg)](https://example.org/old)"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that build.py takes for its own, with a pyproject.toml beside it."""
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('version = "2.3.4"\n[project.urls]\nRepository = "https://github.com/a-class/imagic"\n')
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(build, "PYPROJECT", pyproject)
    monkeypatch.setattr(build, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path / "notebooks"


def write(path, *sources: str):
    cells = [new_markdown_cell(f"# Made up\n\n{OLD}\n\nText."), new_code_cell("pass", metadata={"tags": ["colab"]})]
    cells += [
        new_code_cell(source, execution_count=8, outputs=[new_output("stream", name="stdout", text="old\n")])
        for source in sources
    ]
    nbformat.write(new_notebook(cells=cells), path)


def read(path):
    return nbformat.read(path, as_version=4).cells


def test_a_new_address_reaches_badge_and_colab_cell_and_nothing_is_run(folder):
    write(folder / "01_made_up.ipynb", "1 / 0")
    build.main(["--address"])
    badge, colab, code = read(folder / "01_made_up.ipynb")
    target = "https://colab.research.google.com/github/a-class/imagic/blob/v2.3.4/notebooks/01_made_up.ipynb"
    assert f"]({target})\n\nText." in badge.source and "example.org" not in badge.source
    assert '"https://github.com/a-class/imagic", "v2.3.4"' in colab.source
    assert code.execution_count == 8 and code.outputs[0].text == "old\n"

    build.PYPROJECT.write_text(build.PYPROJECT.read_text().replace("a-class", "b-class").replace("2.3.4", "3.0.0"))
    build.main(["--address"])
    badge, colab, _ = read(folder / "01_made_up.ipynb")
    assert target.replace("a-class", "b-class").replace("2.3.4", "3.0.0") in badge.source
    assert '"https://github.com/b-class/imagic", "v3.0.0"' in colab.source


@pytest.fixture
def on_colab(tmp_path, monkeypatch):
    """An empty folder on Colab, as far as the cell can see. Returns what happened; `asks(answers)` makes the cell."""
    empty, events, answers = tmp_path / "empty", [], []
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setattr(sys, "path", [])
    colab, there = ModuleType("google.colab"), tmp_path / "content"
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)

    def clone(command, **options):
        events.append(command)
        if command[-2] != "https://wrong":
            (there / "imagic_lib").mkdir(parents=True)

    def upload() -> dict:
        (empty / "imagic-main" / "imagic_lib").mkdir(parents=True)
        shutil.make_archive("imagic", "zip", empty, "imagic-main")
        shutil.rmtree(empty / "imagic-main")
        events.append("uploaded")
        return {"imagic.zip": b"..."}

    def cell(*given: str) -> str:
        answers.extend(given)
        monkeypatch.setattr(builtins, "input", lambda question: answers.pop(0))
        return build.colab_cell().replace("/content/imagic", str(there))

    colab.files = SimpleNamespace(upload=upload)
    monkeypatch.setattr(subprocess, "run", clone)
    return SimpleNamespace(events=events, cell=cell, there=there)


def test_on_colab_the_repository_is_cloned_at_its_tag(folder, on_colab):
    exec(on_colab.cell(), {})
    [command] = on_colab.events
    assert command[:3] == ["git", "clone", "-q"] and command[-4:-1] == ["--branch", "v2.3.4", build.address()[0]]
    assert sys.path == [str(on_colab.there)]


def test_without_an_address_the_cell_asks_until_the_library_is_there(folder, on_colab):
    """And does not clone from whoever owns the placeholder's name."""
    build.PYPROJECT.write_text(build.PYPROJECT.read_text().replace("a-class", "OWNER"))
    assert build.address() == (None, "v2.3.4") and "OWNER" not in build.colab_cell() + build.badge("01_made_up.ipynb")
    exec(on_colab.cell("https://wrong", " https://right "), {})
    assert [command[-2] for command in on_colab.events] == ["https://wrong", "https://right"]
    assert sys.path == [str(on_colab.there)]


def test_the_repository_s_zip_can_be_uploaded_and_is_found_again(folder, on_colab):
    build.PYPROJECT.write_text(build.PYPROJECT.read_text().replace("a-class", "OWNER"))
    exec(on_colab.cell(""), {})
    exec(on_colab.cell(), {})
    assert on_colab.events == ["uploaded"] and sys.path == [str(on_colab.there / "imagic-main")] * 2


def test_the_colab_cell_finds_the_library_above_and_says_so_if_it_is_not_there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(FileNotFoundError, match="open this notebook in its repository"):
        exec(build.colab_cell(), {})
    (folder.parent / "imagic_lib").mkdir()
    exec(build.colab_cell(), {})
    assert sys.path == [str(folder.parent)]


def test_notebooks_are_built_offline_and_on_the_cpu(folder):
    """Like this `make notebooks` on a machine with a GPU stores the numbers that the checks find."""
    write(
        folder / "01_made_up.ipynb",
        "import os\nprint(os.environ['HF_HUB_OFFLINE'], [os.environ['CUDA_VISIBLE_DEVICES']])",
    )
    (folder.parent / "imagic_lib").mkdir()
    build.main(["01"])
    assert read(folder / "01_made_up.ipynb")[2].outputs[0].text == "1 ['']\n"


def test_tidy_removes_outputs_that_no_reader_sees():
    output = [
        new_output("stream", name="stderr", text="100%|####|"),
        new_output("display_data", {build.WIDGET: {"model_id": "a"}, "text/plain": "Slider"}),
        new_output("display_data", {"image/png": "aGk="}, metadata={"image/png": {"alt": "A dog"}}),
        new_output("stream", name="stdout", text="done\n"),
        new_output("display_data", {build.WIDGET: {"model_id": "b"}, "text/html": "Which one?"}),
    ]
    cell = new_code_cell(
        "x", outputs=output, metadata={"tags": ["solution"], "execution": {"iopub.execute_input": "2026-01-01T00:00Z"}}
    )
    metadata = {"widgets": {"state": {}}, "language_info": {"name": "python", "version": "3.13"}}
    result = new_code_cell("y", metadata={"tags": ["reveal"]})
    notebook = new_notebook(cells=[cell, result], metadata=metadata)
    build.tidy(notebook)
    assert notebook.cells[0].outputs[:2] == output[2:4] and notebook.cells[0].outputs[2].data == {
        "text/html": "Which one?"
    }
    assert len(notebook.cells[0].outputs) == 3 and notebook.cells[1].metadata.jupyter == {"outputs_hidden": True}
    folded = {"jupyter": {"source_hidden": True}, "cellView": "form"}
    assert notebook.cells[0].metadata == {"tags": ["solution"], **folded}
    assert "widgets" not in notebook.metadata and "version" not in notebook.metadata.language_info


def test_the_studio_s_notebook_is_stored_as_it_is_built_one_folded_cell_with_a_title():
    path = build.ROOT / "notebooks" / "studio.ipynb"
    stored, built = (nbformat.read(path, as_version=4) for _ in range(2))
    built.cells[1].metadata = {"tags": ["colab", "folded"]}
    built.cells[1].source = built.cells[1].source.replace('"/content/imagic"', '"elsewhere"')
    build.put_address(built, path.name)
    build.tidy(built)
    assert built == stored and stored.cells[1].source.startswith("# @title ")
    assert stored.cells[1].metadata.jupyter.source_hidden and stored.cells[1].metadata.cellView == "form"


def test_a_notebook_that_runs_is_stored_and_one_that_fails_stays_as_it_was(folder):
    good, bad, other = (folder / f"0{n}_made_up.ipynb" for n in (1, 2, 3))
    widget = "import ipywidgets, sys\nprint(1, file=sys.stderr)\nprint(2)\nipywidgets.IntSlider()"
    write(good, "from pathlib import Path\nprint(Path.cwd().name)", widget)
    write(bad, "print('new')", "1 / 0")
    write(other, "print('new')")
    (folder.parent / "imagic_lib").mkdir()  # the Colab cell looks for it
    before = bad.read_bytes(), other.read_bytes()
    build.main(["01"])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        build.main(["02"])
    _, *cells = read(good)
    assert [cell.execution_count for cell in cells] == [1, 2, 3]
    assert [[output.text for output in cell.outputs] for cell in cells] == [[], ["notebooks\n"], ["2\n"]]
    assert (bad.read_bytes(), other.read_bytes()) == before
    assert sorted(folder.iterdir()) == [good, bad, other]


def test_a_write_that_breaks_off_leaves_the_old_file(folder, monkeypatch):
    path = folder / "01_made_up.ipynb"
    write(path)
    before = path.read_bytes()

    def broken(notebook, target):
        target.write_text("{")
        raise OSError("disk full")

    monkeypatch.setattr(nbformat, "write", broken)
    with pytest.raises(OSError, match="disk full"):
        build.main(["--address"])
    assert path.read_bytes() == before
