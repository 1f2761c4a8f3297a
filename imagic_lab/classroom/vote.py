"""A blind vote: which edit is the best? Each picture has a letter; the methods' names are revealed at the end."""

from __future__ import annotations

import html
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

import ipywidgets as widgets
from PIL import Image

from imagic_lab.classroom.widgets import captioned, png

LETTERS = "ABCDEFGH"
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th")


class Question(NamedTuple):
    """One edit, as several methods made it."""

    picture: Image.Image  # the input
    text: str
    answers: Mapping[str, Image.Image]  # by method


class Outcome(NamedTuple):
    """The outcome of a vote."""

    places: dict[str, float]  # the mean place of each method, 1 is the best
    agree: int  # pairs of methods that have the same order in the vote and in the measurement
    pairs: int  # pairs without a tie in either


def outcome(ranks: Sequence[Mapping[str, int]], measured: Mapping[str, float]) -> Outcome:
    """The mean places, and for how many pairs of methods the vote agrees with the measurement (more is better).

    ranks: for each question the place of each method, from 1. Raises ValueError if there are none.
    """
    if not ranks:
        raise ValueError("no question has been answered yet")
    places = {name: fmean(rank[name] for rank in ranks) for name in ranks[0]}
    signs = [(places[b] - places[a]) * (measured[a] - measured[b]) for a, b in combinations(places, 2)]
    return Outcome(places, sum(sign > 0 for sign in signs), sum(sign != 0 for sign in signs))


def outcome_table(ranks: Sequence[Mapping[str, int]], measured: Mapping[str, float]) -> str:
    """The outcome as a table and a sentence, in HTML."""
    found = outcome(ranks, measured)
    table = "<tr><th>method</th><th>your mean place</th><th>success by the reader</th></tr>"
    for name, place in sorted(found.places.items(), key=lambda item: item[1]):
        table += f"<tr><td>{html.escape(name)}</td><td>{place:.1f}</td><td>{100 * measured[name]:.0f} %</td></tr>"
    agreement = f"You and the reader put {found.agree} of {found.pairs} pairs of methods into the same order."
    return f"<table cellpadding='6'>{table}</table><p>{len(ranks)} answered. {agreement}</p>"


def check_questions(questions: Sequence[Question], measured: Mapping[str, float]) -> None:
    """Raises ValueError unless all questions compare the same two to eight methods, and all of these are measured."""
    if not questions:
        raise ValueError("the list of questions is empty: give at least one")
    if not 2 <= len(names := set(questions[0].answers)) <= len(LETTERS):
        raise ValueError(f"{len(names)} methods: a vote takes from 2 to {len(LETTERS)}")
    for question in questions:
        if set(question.answers) != names:
            raise ValueError(f"“{question.text}” has other methods than the first question: give all of them the same")
    if missing := names - set(measured):
        raise ValueError(f"no measurement of {', '.join(sorted(missing))}")


class BlindVote(widgets.VBox):
    """Rank the pictures of each question from best to worst by clicks; the methods' names are revealed at the end.

    measured: for each method its share of successes, to compare the vote with. seed: of the order of the pictures.
    Attributes: letters (the buttons), again, names (buttons), ranks (for each answered question the place of each
    method) and result (the text at the end). Raises ValueError for what `check_questions` refuses.
    """

    def __init__(self, questions: Sequence[Question], measured: Mapping[str, float], seed: int = 0):
        check_questions(questions, measured)
        shuffled = random.Random(seed)
        self.questions, self.measured, self.ranks, self.clicked = questions, measured, [], []
        self.orders = [shuffled.sample(sorted(question.answers), len(question.answers)) for question in questions]
        self.task, self.result, self.before = widgets.HTML(), widgets.HTML(), captioned(b"", "input")
        self.answers = [captioned(b"", "") for _ in self.orders[0]]
        for column in (self.before, *self.answers):
            column.children[0].layout.width = "170px"  # six pictures fit side by side
        self.letters = [clickable("", self.click) for _ in self.answers]
        self.again = clickable("order them again", self.ask)
        self.names = clickable("reveal the names", self.reveal)
        columns = [widgets.VBox(column) for column in zip(self.answers, self.letters, strict=True)]
        pictures, buttons = widgets.HBox([self.before, *columns]), widgets.HBox([self.again, self.names])
        super().__init__([self.task, pictures, buttons, self.result])
        self.ask()

    def ask(self, _button=None) -> None:
        """Show the next question, or the same one again."""
        self.clicked.clear()
        number = len(self.ranks)
        question, order = self.questions[number], self.orders[number]
        place = f"<b>{number + 1} of {len(self.questions)}:</b> “{html.escape(question.text)}”."
        self.task.value = f"{place} Click the best one, then the next best, to the last."
        self.before.children[0].value = png(question.picture)
        for answer, name, button, letter in zip(self.answers, order, self.letters, LETTERS, strict=False):
            answer.children[0].value = png(question.answers[name])
            button.description, button.disabled = letter, False
        self.names.disabled = not self.ranks

    def click(self, button: widgets.Button) -> None:
        button.description, button.disabled = f"{button.description}: {ORDINALS[len(self.clicked)]}", True
        self.clicked.append(self.orders[len(self.ranks)][self.letters.index(button)])
        if len(self.clicked) == len(self.letters):
            self.ranks.append({name: place for place, name in enumerate(self.clicked, 1)})
            self.ask() if len(self.ranks) < len(self.questions) else self.finish()

    def reveal(self, _button=None) -> None:
        self.result.value = outcome_table(self.ranks, self.measured)

    def finish(self) -> None:
        self.again.disabled = True
        for answer, name in zip(self.answers, self.orders[-1], strict=True):  # the last pictures are still in sight
            answer.children[1].value = html.escape(name)
        self.reveal()


def clickable(words: str, act: Callable[[widgets.Button], None]) -> widgets.Button:
    button = widgets.Button(description=words, layout={"width": "auto"})
    button.on_click(act)
    return button
