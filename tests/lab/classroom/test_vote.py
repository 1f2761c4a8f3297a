"""The blind vote: names are hidden until the end, places are counted correctly, invalid questions are refused."""

import re

import ipywidgets
from PIL import Image

from imagic_lab.classroom.plots import url_of, webp_of
from imagic_lab.classroom.vote import BlindVote, Question, outcome
from tests.common import widgets_in

MEASURED = {"Imagic": 0.8, "SDEdit": 0.5, "text": 0.1}
SHADES = {"Imagic": 40, "SDEdit": 120, "text": 200}


def question(text: str = "a cat", methods=tuple(SHADES)) -> Question:
    pictures = {name: Image.new("RGB", (8, 8), (SHADES.get(name, 0),) * 3) for name in methods}
    return Question(Image.new("RGB", (8, 8), "red"), text, pictures)


def texts(box: ipywidgets.VBox) -> str:
    """Everything that is written in it."""
    pages = [part.value for part in widgets_in(box) if isinstance(part, ipywidgets.HTML) and part is not box.style]
    written = [re.sub("<[^>]*>", "", page) for page in pages]
    return " ".join(written + [tile.description for tile in box.tiles])


def method_at(box: ipywidgets.VBox, k: int) -> str:
    """The method whose picture is on this button, found by its pixels."""
    [name] = [name for name in box.tiles[k]._dom_classes if name.startswith("vote-")]
    rule = box.style.value.split(f".{name}{{")[1].split("}")[0]
    return next(name for name, p in question().answers.items() if url_of(webp_of([p], lossless=True), "webp") in rule)


def cast(box: ipywidgets.VBox, order: list[str]) -> None:
    """Click the methods in this order."""
    places = {method_at(box, k): button for k, button in enumerate(box.tiles)}
    for name in order:
        places[name].click()


def test_the_names_are_revealed_only_at_the_end():
    box = BlindVote([question(), question("a dog")], MEASURED)
    assert not any(name in texts(box) for name in MEASURED)
    cast(box, ["Imagic", "SDEdit", "text"])
    assert not any(name in texts(box) for name in MEASURED)
    cast(box, ["Imagic", "SDEdit", "text"])
    assert all(name in texts(box) for name in MEASURED)
    assert all(button.disabled for button in box.tiles)


def test_at_the_end_the_last_pictures_get_their_names():
    box = BlindVote([question()], MEASURED)
    order = [method_at(box, k) for k in range(3)]
    cast(box, list(MEASURED))
    assert [tile.description for tile in box.tiles] == order


def test_the_place_of_a_picture_does_not_betray_its_method():
    box = BlindVote([question() for _ in range(12)], MEASURED, seed=3)
    first = []
    for _ in range(12):
        first.append(method_at(box, 0))
        cast(box, list(MEASURED))
    assert set(first) == set(MEASURED)


def test_a_seed_fixes_the_order():
    orders = [[method_at(BlindVote([question()], MEASURED, seed=seed), k) for k in range(3)] for seed in (5, 5)]
    assert orders[0] == orders[1]


def test_clicks_become_places_and_the_comparison_counts_pairs():
    box = BlindVote([question(), question("a dog")], MEASURED)
    cast(box, ["SDEdit", "Imagic", "text"])
    cast(box, ["SDEdit", "Imagic", "text"])
    assert box.ranks == [{"SDEdit": 1, "Imagic": 2, "text": 3}] * 2
    assert "2 of 3 pairs" in box.result.value and "2 answered" in box.result.value


def test_ties_are_not_counted():
    found = outcome([{"a": 1, "b": 2, "c": 3}, {"a": 2, "b": 1, "c": 3}], {"a": 0.5, "b": 0.9, "c": 0.5})
    assert found.places == {"a": 1.5, "b": 1.5, "c": 3.0}
    assert (found.agree, found.pairs) == (1, 1)  # b and c; a ties with b in the vote, and with c in the measurement


def test_clicks_can_be_undone_also_those_of_the_question_before():
    box = BlindVote([question(), question("a dog")], MEASURED)
    assert box.undo.disabled
    cast(box, ["Imagic", "text", "SDEdit"])
    box.tiles[0].click()
    assert box.tiles[0].disabled and "1st" in box.tiles[0].description
    box.undo.click()
    assert not box.tiles[0].disabled and box.tiles[0].description == "A" and "a dog" in box.task.value
    box.undo.click()
    assert "a cat" in box.task.value and box.ranks == [] and box.clicked == ["Imagic", "text"]
    cast(box, ["SDEdit"])
    assert box.ranks == [{"Imagic": 1, "text": 2, "SDEdit": 3}]


def test_the_names_can_be_revealed_early_but_not_before_an_answer():
    box = BlindVote([question(), question("a dog")], MEASURED)
    assert box.names.disabled
    cast(box, list(MEASURED))
    assert not box.names.disabled
    box.names.click()
    assert "Imagic" in box.result.value and "1 answered" in box.result.value


def test_names_and_texts_are_not_read_as_html():
    box = BlindVote([question("<b>bold</b>")], MEASURED)
    assert "<b>bold" not in texts(box) and "&lt;b&gt;bold" in texts(box)
