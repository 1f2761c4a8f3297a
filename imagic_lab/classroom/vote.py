"""A blind vote: which edit is the best? The pictures bear letters, and the names of the methods are told at the end."""

from __future__ import annotations

import html
import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

import ipywidgets as widgets
from PIL import Image

from imagic_lab.classroom.widgets import png, shown

LETTERS = "ABCDEFGH"
WIDTH = "170px"  # of a picture: six of them stand side by side
NUMBERS = ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th")


class Question(NamedTuple):
    """One edit, and what several methods made of it."""

    picture: Image.Image  # the input
    text: str
    answers: Mapping[str, Image.Image]  # by method


class Outcome(NamedTuple):
    """What came out of a vote."""

    places: dict[str, float]  # by method: the mean of its places, 1 is the best
    agree: int  # pairs of methods that the vote and the measurement put into the same order
    pairs: int  # of those that neither of them holds equal


def outcome(ranks: Sequence[Mapping[str, int]], measured: Mapping[str, float]) -> Outcome:
    """Mean places, and how often the vote agrees with the measurement (more is better), pair by pair of methods.

    ranks: for each question the place of each method, from 1. Raises ValueError if there are none.
    """
    if not ranks:
        raise ValueError("no question is answered yet")
    places = {name: fmean(one[name] for one in ranks) for name in ranks[0]}
    signs = [(places[b] - places[a]) * (measured[a] - measured[b]) for a, b in combinations(places, 2)]
    return Outcome(places, sum(sign > 0 for sign in signs), sum(sign != 0 for sign in signs))


def told(found: Outcome, measured: Mapping[str, float], count: int) -> str:
    """The outcome as a table and a sentence, in HTML."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{place:.1f}</td><td>{100 * measured[name]:.0f} %</td></tr>"
        for name, place in sorted(found.places.items(), key=lambda item: item[1])
    )
    head = "<tr><th>method</th><th>your mean place</th><th>success by the reader</th></tr>"
    said = (
        f"{count} answered. You and the reader put {found.agree} of {found.pairs} pairs of methods into the same order."
    )
    return f"<table cellpadding='6'>{head}{rows}</table><p>{said}</p>"


def checked(questions: Sequence[Question], measured: Mapping[str, float]) -> None:
    """Raises ValueError unless all questions ask about the same methods, two to eight, and all of them are measured."""
    if not questions:
        raise ValueError("there is no question: give at least one")
    names = set(questions[0].answers)
    if not 2 <= len(names) <= len(LETTERS):
        raise ValueError(f"{len(names)} methods: a vote takes from 2 to {len(LETTERS)}")
    for question in questions:
        if set(question.answers) != names:
            raise ValueError(f"“{question.text}” has other methods than the first question: give all of them the same")
    if missing := names - set(measured):
        raise ValueError(f"nothing was measured of {', '.join(sorted(missing))}")


def blind_vote(questions: Sequence[Question], measured: Mapping[str, float], seed: int = 0) -> widgets.VBox:
    """Order the pictures of each question from the best to the worst, by clicks; at the end the names are told.

    measured: what the vote is compared with, by method; more is better, from 0 to 1. seed: of the order in which the
    pictures stand. The result has the attributes letters (the buttons), again, names (buttons), ranks (for each
    question that was answered, the place of each method) and told (the text at the end). Raises ValueError if the
    questions ask about different methods, or about one that was not measured.
    """
    checked(questions, measured)
    shuffled = random.Random(seed)
    orders = [shuffled.sample(sorted(question.answers), len(question.answers)) for question in questions]
    count, ranks, clicked = len(orders[0]), [], []
    wish, result = widgets.HTML(), widgets.HTML()
    before, *answers = [shown(b"", caption) for caption in ["input", *[""] * count]]
    for place in (before, *answers):
        place.children[0].layout.width = WIDTH
    letters = [widgets.Button(layout={"width": "auto"}) for _ in range(count)]
    again = widgets.Button(description="order them again")
    names = widgets.Button(description="tell the names", disabled=True)

    def ask() -> None:
        """Show the next question, or what came out if there is none left."""
        clicked.clear()
        if len(ranks) == len(questions):
            for button in (*letters, again):
                button.disabled = True
            for answer, name in zip(answers, orders[-1], strict=True):  # the last pictures are still in sight
                answer.children[1].value = html.escape(name)
            return tell()
        question, order = questions[len(ranks)], orders[len(ranks)]
        number = f"<b>{len(ranks) + 1} of {len(questions)}:</b>"
        wish.value = f"{number} “{html.escape(question.text)}”. Click the best one, then the next best, to the last."
        before.children[0].value = png(question.picture)
        for letter, button, answer, name in zip(LETTERS[:count], letters, answers, order, strict=True):
            answer.children[0].value = png(question.answers[name])
            button.description, button.disabled = letter, False
        names.disabled = not ranks

    def click(button: widgets.Button) -> None:
        k = letters.index(button)
        clicked.append(k)
        button.description, button.disabled = f"{LETTERS[k]}: {NUMBERS[len(clicked) - 1]}", True
        if len(clicked) == count:
            order = orders[len(ranks)]
            ranks.append({order[k]: place for place, k in enumerate(clicked, 1)})
            ask()

    def tell(_button=None) -> None:
        result.value = told(outcome(ranks, measured), measured, len(ranks))

    for button in letters:
        button.on_click(click)
    again.on_click(lambda _button: ask())
    names.on_click(tell)
    ask()
    columns = [widgets.VBox([answer, button]) for answer, button in zip(answers, letters, strict=True)]
    box = widgets.VBox([wish, widgets.HBox([before, *columns]), widgets.HBox([again, names]), result])
    box.letters, box.again, box.names, box.ranks, box.told = letters, again, names, ranks, result
    return box
