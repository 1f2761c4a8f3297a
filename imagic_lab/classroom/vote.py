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

from imagic_lab.classroom.plots import img, url_of, webp_of

LETTERS = "ABCDEFGH"
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th")

SIDE = 160  # pixels: six pictures fit side by side
TILE = (  # the style of a button that shows a picture, its letter below it
    ".{0}{{background:url({1}) top/{2}px {2}px no-repeat!important;width:{2}px!important;height:{3}px!important;"
    "padding:{2}px 0 0!important;line-height:30px;font-size:1rem;margin:0 6px 6px 0}}"
)


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

    ranks: for each answered question the place of each method, from 1.
    """
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


class BlindVote(widgets.VBox):
    """Rank the pictures of each question from best to worst by clicks on them; their methods are named at the end.

    measured: for each method its share of successes, to compare the vote with. seed: of the order of the pictures.
    Attributes: tiles (a button with a picture each), undo, names (buttons), ranks (for each answered question the place
    of each method) and result (the text at the end).
    """

    def __init__(self, questions: Sequence[Question], measured: Mapping[str, float], seed: int = 0):
        shuffled = random.Random(seed)
        self.questions, self.measured, self.ranks, self.clicked = questions, measured, [], []
        self.orders = [shuffled.sample(sorted(question.answers), len(question.answers)) for question in questions]
        self.style, self.task, self.before, self.result = (widgets.HTML() for _ in range(4))
        self.tiles = [clickable("", self.click) for _ in self.orders[0]]
        for k, tile in enumerate(self.tiles):
            tile.add_class(f"vote-{id(self)}-{k}")
        self.undo, self.names = clickable("undo", self.back), clickable("reveal the names", self.reveal)
        lines = {"flex_flow": "row wrap", "overflow": "visible"}  # no scrollbars
        rows = [widgets.Box(row, layout=lines) for row in ([self.before, *self.tiles], [self.undo, self.names])]
        super().__init__([self.style, self.task, *rows, self.result], layout={"overflow": "visible"})
        self.ask()

    def ask(self) -> None:
        """Show the question that is not answered yet, with the clicks that it has got so far."""
        number = len(self.ranks)
        question, order = self.questions[number], self.orders[number]
        place = f"<b>{number + 1} of {len(self.questions)}:</b> “{html.escape(question.text)}”."
        self.task.value = f"{place} Click the best picture, then the next best, to the last."
        shown = img(webp_of([question.picture]), "webp", "The input", f"width:{SIDE}px;display:block")
        self.before.value = f'<div style="text-align:center;font-size:1rem;line-height:30px">{shown}input</div>'
        rules = ""
        for k, name in enumerate(order):
            pixels = url_of(webp_of([question.answers[name]], lossless=True), "webp")
            rules += TILE.format(f"vote-{id(self)}-{k}", pixels, SIDE, SIDE + 30)
        self.style.value = f"<style>{rules}</style>"
        for tile, name, letter in zip(self.tiles, order, LETTERS, strict=False):
            tile.disabled = name in self.clicked
            tile.description = f"{letter}: {ORDINALS[self.clicked.index(name)]}" if tile.disabled else letter
        self.names.disabled, self.undo.disabled = not self.ranks, not self.ranks and not self.clicked

    def click(self, tile: widgets.Button) -> None:
        self.clicked.append(self.orders[len(self.ranks)][self.tiles.index(tile)])
        if len(self.clicked) == len(self.tiles):
            self.ranks.append({name: place for place, name in enumerate(self.clicked, 1)})
            self.clicked.clear()
        self.ask() if len(self.ranks) < len(self.questions) else self.finish()

    def back(self, _button=None) -> None:
        """Take back the last click, also that of the question before."""
        if not self.clicked:
            self.clicked.extend(self.ranks.pop())  # in the order of the clicks
        self.clicked.pop()
        self.ask()

    def reveal(self, _button=None) -> None:
        self.result.value = outcome_table(self.ranks, self.measured)

    def finish(self) -> None:
        self.undo.disabled = True
        for tile, name in zip(self.tiles, self.orders[-1], strict=True):  # the last pictures are still in sight
            tile.description, tile.disabled = name, True
        self.reveal()


def clickable(words: str, act: Callable[[widgets.Button], None]) -> widgets.Button:
    button = widgets.Button(description=words, layout={"width": "auto"})
    button.on_click(act)
    return button
