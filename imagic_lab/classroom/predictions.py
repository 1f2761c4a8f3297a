"""Predictions that are kept: `predict` asks before the result exists, `reveal` compares when it does."""

from __future__ import annotations

import html
from collections.abc import Sequence

import ipywidgets as widgets

from imagic_lab.classroom.course import note, recall

REVEALED: set[str] = set()  # the results that this kernel has shown
CSS = """<style>.imagic-options button{height:auto;min-height:2.4em;line-height:1.4;padding:.4em .8em;
white-space:normal;text-align:left;font-size:1rem}</style>"""


def predict(key: str, question: str, options: Sequence[str]) -> None:
    """Show the question with a button for each option. A click is kept, and can be changed until the result is there.

    key: such as "02.reader", the same as in `reveal`. Raises ValueError unless there are two options or more, all
    different. Without a click nothing is kept, and `reveal` shows the measurement alone.
    """
    options = list(options)
    if not len(options) == len(set(options)) >= 2:
        raise ValueError(f"predict({key!r}): give two options or more, each of them once, not {options}")
    note(key, question=question, options=options, points=recall().get(key, {}).get("points", 0))
    title = f"<b>Predict.</b> {html.escape(question)}"
    said, buttons = widgets.HTML(), [widgets.Button(description=option, tooltip=option) for option in options]

    def mark(_=None) -> None:
        known = recall()[key]
        for button in buttons:
            chosen = button.description == known.get("answer")
            button.button_style, button.icon = ("primary", "check") if chosen else ("", "")
            button.disabled = "measured" in known
            button.layout.width = "auto"

    def commit(button: widgets.Button) -> None:
        if key in REVEALED:
            said.value = "The result is already there. To predict first, restart the kernel and clear all outputs."
            return
        note(key, answer=button.description)
        said.value = "Kept. You can change it until you run the cell with the result."
        mark()

    for button in buttons:
        button.on_click(commit)
    mark()
    box = widgets.VBox([widgets.HTML(CSS + title), *buttons, said])
    box.add_class("imagic-options")
    show_widget(box, f"{title}<ul>{''.join(f'<li>{html.escape(option)}</li>' for option in options)}</ul>", question)


def show_widget(widget: widgets.Widget, code: str, text: str) -> None:
    """Display a widget, and HTML code, or a text, on pages where no kernel runs."""
    from IPython.display import display

    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    display({"application/vnd.jupyter.widget-view+json": view, "text/html": code, "text/plain": text}, raw=True)


def reveal(key: str, answer: str, measured: str = "") -> None:
    """Print what was measured, after what was predicted, with a point for a right prediction.

    answer: option that the measurement has shown to be right. measured: numbers behind it, as a text. Raises ValueError
    if `answer` is not an option of the prediction.
    """
    known = recall().get(key, {})
    if answer not in known.get("options", [answer]):
        raise ValueError(f"reveal({key!r}): “{answer}” is not one of the options {known['options']}")
    REVEALED.add(key)
    told = f"{answer} ({measured})" if measured else answer
    if "answer" not in known:
        print(f"measured: {told}")
        return
    right = known["answer"] == answer
    note(key, measured=told, points=int(right))
    print(f"you said: {known['answer']}\nmeasured: {told}")
    print("right, 1 point" if right else "no point: what did you overlook?")
