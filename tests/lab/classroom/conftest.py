"""A course of its own for the tests: tables in a folder, and progress in a file that no reader has."""

import pytest

from imagic_lab.classroom import course, plots, predictions


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """The folder in which the tables alt.toml and exercises.toml are looked for."""
    monkeypatch.setattr(course, "NOTEBOOKS", tmp_path)
    monkeypatch.setenv("IMAGIC_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(predictions, "REVEALED", set())
    (tmp_path / "alt.toml").write_text('[02]\ndogs = "A dog that sits & a dog that jumps."\n', encoding="utf-8")
    return tmp_path


@pytest.fixture
def pages(tables, monkeypatch):
    """The HTML of what is shown, in this order."""
    shown = []
    monkeypatch.setattr(plots, "show_page", lambda code, text: shown.append(code))
    return shown
