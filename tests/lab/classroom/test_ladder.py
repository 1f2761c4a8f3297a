"""The checks of the exercises: equivalent answers are right, likely mistakes are named, nothing is a traceback."""

import numpy as np
import pytest
import torch
from PIL import Image

from imagic_lab.classroom import check, course
from imagic_lab.classroom.ladder import NAMES, agree, describe, evaluate

TABLE = '''
[02.size]
solution = "77 * 768"
mistakes = [["768", "One row."], ["77", "The rows."], ["77 + 768", "Plus."]]
praise = "77 rows."
hint = "Rows times numbers."

[02.stop_at]
calls = "[([0, 10, 20], [1.0, 0.5, 0.3], 0.9), ([0, 10, 20], [1.0, 0.5, 0.3], 0.5)]"
solution = """
def stop_at(steps, losses, share):
    goal = losses[0] - share * (losses[0] - min(losses))
    return next(step for step, loss in zip(steps, losses) if loss <= goal)
"""
mistakes = [["lambda steps, losses, share: steps[-1]", "The last."], ["lambda steps, losses, share: 0", "The first."],
            ["lambda steps, losses, share: min(losses)", "A loss."]]
praise = "Well."
hint = "Share of the progress."

[02.first]
calls = "[(['a', 'b'], 'b'), (['a'], 'b')]"
solution = "lambda words, word: words.index(word) if word in words else None"
mistakes = [["lambda words, word: 0", "Always 0."], ["lambda words, word: -1", "b"], ["lambda words, word: 5", "c"]]
praise = "Well."
hint = "None is an answer."

[02.parts]
solution = "{'b', 'c', 'd'}"
accept = ["'all but a'"]
mistakes = [["{'a', 'b'}", "Not a."], ["{'b', 'c'}", "One more."], ["{'c', 'd'}", "b, too."]]
praise = "Yes."
hint = "Which?"

[02.scaled]
given = { factor = "2.0" }
within = 0.1
seen = "lambda t: t - t.mean()"
calls = "[(torch.arange(4.0),)]"
solution = "lambda t: factor * t"
mistakes = [["lambda t: t", "Unscaled."], ["lambda t: -t", "Minus."], ["lambda t: t**2", "Square."]]
praise = "Yes."
hint = "Times."
'''


def faults_of(key: str, said) -> list[str]:
    """What is wrong with an exercise: its solution must be right, and each mistake must get its own sentence."""
    exercise, found = course.entry("exercises", key), []
    names = NAMES | {name: evaluate(text, NAMES) for name, text in exercise.get("given", {}).items()}
    given = {name: names[name] for name in exercise.get("given", {})}
    if len(exercise["mistakes"]) < 3:
        found.append(f"{key} names fewer than three mistakes")
    for text in [exercise["solution"], *exercise.get("accept", [])]:
        if f"right, 1 point: {exercise['praise']}" not in said(key, evaluate(text, names), **given):
            found.append(f"{key} finds its own solution wrong: {text}")
    for text, says in exercise["mistakes"]:
        if f"not yet: {says}\n" not in said(key, evaluate(text, names), **given):
            found.append(f"{key} does not say “{says}” to {text}")
    return found


@pytest.fixture
def said(tables, capsys):
    """Checks an answer, and returns what is printed."""
    (tables / "exercises.toml").write_text(TABLE, encoding="utf-8")

    def ask(key, answer, **given):
        check(key, answer, **given)
        return capsys.readouterr().out

    return ask


def test_the_exercises_of_all_notebooks_accept_their_solution_and_name_three_mistakes(said, monkeypatch):
    monkeypatch.setattr(course, "NOTEBOOKS", course.DATA.parent / "notebooks")
    keys = [f"{number}.{name}" for number, row in course.table_of("exercises").items() for name in row]
    assert not [fault for key in keys for fault in faults_of(key, said)]


def test_a_sound_exercise_has_no_faults_and_a_poor_one_has(said, tables):
    assert not [
        fault for name in ("size", "stop_at", "first", "parts", "scaled") for fault in faults_of(f"02.{name}", said)
    ]
    poor = TABLE.replace('["77 + 768", "Plus."]', '["78 * 768 - 768", "Plus."]').replace(
        "[\"{'c', 'd'}\", \"b, too.\"]", ""
    )
    (tables / "exercises.toml").write_text(poor, encoding="utf-8")
    assert faults_of("02.size", said) == ["02.size does not say “Plus.” to 78 * 768 - 768"]
    assert faults_of("02.parts", said) == ["02.parts names fewer than three mistakes"]


def test_an_answer_that_can_t_be_seen_is_a_hint_and_no_traceback(said, tables):
    table = """[02.drawn]
solution = "Image.new('RGB', (8, 8))"
seen = "lambda picture: picture.size"
mistakes = []
praise = "Yes."
hint = "A picture."
"""
    (tables / "exercises.toml").write_text(table, encoding="utf-8")
    assert "not yet: A picture." in said("02.drawn", [Image.new("RGB", (8, 8))])


@pytest.mark.parametrize(
    "answer", [59136, 59136.0, "59,136", " 59 136 ", "59136 numbers", torch.tensor(59136), [59136]]
)
def test_an_answer_can_be_written_in_many_ways(said, answer):
    assert "right, 1 point: 77 rows.\n" in said("02.size", answer)


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ("b,c,d", {"b", "c", "d"}),
        ("DCB", {"b", "c", "d"}),
        (["d", "c", "b"], {"b", "c", "d"}),
        ("{b, c, d}", {"b", "c", "d"}),
        ("True caption ", "true caption"),
        (["true  caption"], "true caption"),
        ("smaller lambda", "smaller λ"),
        ("“Smaller λ.”", "smaller λ"),
        ("−1", -1),
        ("-1", -1),
        ("0,5", 0.5),
        ("3.44, 1.59", [3.44, 1.59]),
        ((3.44, 1.59), [3.44, 1.59]),
        (torch.tensor([3.44, 1.59]), [3.44, 1.59]),
        (["a", 2], ("A", 2)),
        ("true", True),
        (np.float32(0.5), 0.5),
    ],
)
def test_the_same_in_other_words_agrees(found, right):
    assert agree(found, right)


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ("bc", {"b", "c", "d"}),
        ("a word", 5),
        (5, "a word"),
        ((1, 2, 3), [1, 2]),
        (torch.ones(2), 1.0),
        ("", {"b"}),
        (None, 0),
    ],
)
def test_something_else_does_not_agree(found, right):
    assert not agree(found, right)


def forgetful(steps, losses, share):
    steps.sort()


def failing(steps, losses, share):
    return steps[0] / 0


@pytest.mark.parametrize(
    ("key", "answer", "says"),
    [
        ("02.size", ..., "not attempted yet: replace the three dots"),
        ("02.size", None, "not attempted yet"),
        ("02.stop_at", lambda steps, losses, share: ..., "not attempted yet"),
        ("02.size", 77, "your answer: 77\nnot yet: The rows."),
        ("02.size", "seven", "your answer: “seven”\nnot yet: Rows times numbers."),
        ("02.size", failing, "not yet: this exercise asks for a value"),
        ("02.stop_at", 20, "not yet: this exercise asks for a function"),
        ("02.stop_at", forgetful, "not yet: your function returns None: is a `return` missing"),
        ("02.stop_at", failing, "not yet: your function stopped at `return steps[0] / 0` with ZeroDivisionError: "),
        ("02.stop_at", lambda steps: 1, "not yet: your function stopped with TypeError"),
        ("02.stop_at", lambda a, b, c: a[-1], "gave 20 for ((0, 10, 20), (1, 0.5, 0.3), 0.5)\nnot yet: The last."),
        ("02.stop_at", lambda a, b, c: a.pop() or 7, "not yet: The last."),
        ("02.first", lambda words, word: 1 if "b" in words else None, "right, 1 point"),
    ],
)  # fmt: skip
def test_a_check_prints_what_it_was_given_and_the_likely_mistake(said, key, answer, says):
    assert says in said(key, answer)


def test_values_of_the_notebook_are_used(said):
    assert "right" in said("02.scaled", lambda t: 3 * t, factor=3) and "not yet" in said("02.scaled", lambda t: 3 * t)


def test_a_point_is_never_lost_and_a_right_answer_stays(said):
    said("02.stop_at", failing)
    assert course.recall()["02.stop_at"] == {
        "question": "exercise", "answer": "def failing(steps, losses, share):\n    return steps[0] / 0\n", "points": 0
    }  # fmt: skip
    said("02.size", 59136)
    said("02.size", 7)
    assert course.recall()["02.size"] == {"question": "exercise", "answer": "59136", "points": 1}


def test_an_unknown_exercise_is_a_sentence(said):
    with pytest.raises(
        ValueError, match=r"“02.nothing” is not in notebooks/exercises.toml: add “nothing” under \[02\]"
    ):
        check("02.nothing", 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(1, 4, 16, 16), "a tensor of shape (1, 4, 16, 16)"),
        (torch.tensor(0.25), "0.25"),
        (np.array([1.0, 2.5]), "(1, 2.5)"),
        (1e-5, "1.00e-05"),
        ({"b", "a"}, "(“a”, “b”)"),
        (list(range(20)), "20 values"),
        (Image.new("RGB", (8, 8)), "a picture"),
        (len, "<built-in function len>"),
    ],
)
def test_an_answer_is_printed_in_short(value, text):
    assert describe(value) == text


def test_an_answer_without_a_source_is_kept_in_short(said):
    said("02.stop_at", max)
    assert course.recall()["02.stop_at"]["answer"] == "<built-in function max>"
