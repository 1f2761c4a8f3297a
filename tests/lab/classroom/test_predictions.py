"""Predictions: kept before the result, compared with it, counted at the end; without a person only the measurement."""

import html
import json

import pytest

from imagic_lab.classroom import course, predict, predictions, reveal, score
from tests.common import widgets_in

OPTIONS = ["e_tgt", "e_opt"]


@pytest.fixture
def asked(tables, monkeypatch):
    """Asks for a prediction; returns its buttons by what stands on them."""
    shown = []
    monkeypatch.setattr(predictions, "show_widget", lambda widget, *instead: shown.append(widget))

    def ask(key="02.reader", question="Which one?"):
        predict(key, question, OPTIONS)
        return {part.description: part for part in widgets_in(shown[-1]) if hasattr(part, "click")}

    return ask


def test_without_a_person_the_measurement_alone_is_printed(asked, capsys):
    asked()
    reveal("02.reader", "e_opt", "probe loss 0.17")
    reveal("02.never_asked", "e_opt")
    assert capsys.readouterr().out == "measured: e_opt (probe loss 0.17)\nmeasured: e_opt\n"


@pytest.mark.parametrize(("said", "verdict"), [("e_opt", "right, 1 point"), ("e_tgt", "no point: ")])
def test_a_prediction_is_compared_with_the_measurement(asked, capsys, said, verdict):
    buttons = asked()
    buttons["e_opt" if said == "e_tgt" else "e_tgt"].click()  # minds can be changed
    buttons[said].click()
    assert [b for b in buttons if buttons[b].button_style] == [said]
    reveal("02.reader", "e_opt", "0.17")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"you said: {said}", "measured: e_opt (0.17)"] and lines[2].startswith(verdict)


def test_nobody_predicts_what_is_already_shown(asked, capsys):
    buttons = asked()
    reveal("02.reader", "e_opt")
    buttons["e_opt"].click()
    reveal("02.reader", "e_opt")
    assert capsys.readouterr().out == 2 * "measured: e_opt\n"


def test_after_a_restart_a_prediction_is_still_there_and_can_no_longer_be_changed(asked, monkeypatch, capsys):
    asked()["e_tgt"].click()
    monkeypatch.setattr(predictions, "REVEALED", set())
    reveal("02.reader", "e_opt")
    monkeypatch.setattr(predictions, "REVEALED", set())
    assert all(button.disabled for button in asked().values())
    reveal("02.reader", "e_opt")
    assert capsys.readouterr().out.count("you said: e_tgt") == 2


@pytest.mark.parametrize("options", [["one"], ["a", "a"], []])
def test_a_question_needs_two_different_options(tables, options):
    with pytest.raises(ValueError, match="two options or more"):
        predict("02.reader", "Which?", options)


def test_an_answer_that_was_not_offered_is_refused(asked):
    asked()
    with pytest.raises(ValueError, match="“the caption” is not one of the options"):
        reveal("02.reader", "the caption")


def test_a_page_without_a_kernel_shows_the_question_and_the_options(tables, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    predict("02.reader", "Is e < 1?", OPTIONS)
    [data] = shown
    assert data["text/html"] == "<b>Predict.</b> Is e &lt; 1?<ul><li>e_tgt</li><li>e_opt</li></ul>"
    assert "application/vnd.jupyter.widget-view+json" in data and data["text/plain"] == "Is e < 1?"


def test_the_score_adds_up_one_notebook_and_the_page_holds_all(asked, tables, capsys, monkeypatch):
    text = "solution = '1'\nmistakes = []\npraise = ''\nhint = ''\n"
    (tables / "exercises.toml").write_text(f"[02.a]\n{text}[02.b]\n{text}[03.a]\n{text}", encoding="utf-8")
    asked()["e_opt"].click()
    asked("02.other", "<b>?")
    asked("03.other")["e_tgt"].click()
    course.note("02.a", question="exercise", answer="1", points=1)
    reveal("02.reader", "e_opt")
    capsys.readouterr()
    monkeypatch.setattr("IPython.display.display", lambda link: print(link.data))
    score("02")
    *lines, link = capsys.readouterr().out.splitlines()
    assert lines == ["predictions: 1 of 2 right, 1 not made", "exercises: 1 of 2 solved", "points: 2 of 4"]
    page = (tables / "progress.html").read_text(encoding="utf-8")
    assert html.escape("<b>?") in page and "03.other" in page and "download" in link
    assert "Exercises solved: 1 of 1 that were tried. Predictions right: 1 of 3." in page


def test_without_a_file_nothing_is_kept_and_the_score_is_printed(tables, monkeypatch, capsys):
    monkeypatch.setenv("IMAGIC_PROGRESS", "")
    monkeypatch.setattr(course, "MEMORY", {})
    course.note("02.a", points=1)
    score("02")
    assert capsys.readouterr().out.splitlines()[-1] == "points: 0 of 0" and course.MEMORY
    assert not (tables / "progress.json").exists()


def test_progress_that_can_not_be_read_is_a_sentence_and_stays(tables):
    (tables / "progress.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"progress\.json can't be read .*: delete it"):
        course.note("02.a", points=1)
    assert (tables / "progress.json").read_text(encoding="utf-8") == "{"


def test_progress_holds_answers_and_points_alone(asked, tables):
    asked()["e_opt"].click()
    known = json.loads((tables / "progress.json").read_text(encoding="utf-8"))
    assert known == {"02.reader": {"question": "Which one?", "options": OPTIONS, "points": 0, "answer": "e_opt"}}


def test_a_repository_that_can_not_be_written_to_keeps_nothing_and_stops_nobody(tables, monkeypatch):
    monkeypatch.delenv("IMAGIC_PROGRESS")
    assert course.kept_in() == course.DATA.parent / "out" / "progress.json"
    monkeypatch.setattr(course.os, "access", lambda path, mode: False)
    assert course.kept_in() is None
