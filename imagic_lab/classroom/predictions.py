"""Predictions, which are kept: `predict` asks before there is a result, and `reveal` compares once there is one."""

from __future__ import annotations

import html
from collections.abc import Sequence

import ipywidgets as widgets

from imagic_lab.classroom.course import note, recall

REVEALED: set[str] = set()  # the results that this kernel has shown
CSS = """<style>.imagic-options button{height:auto;min-height:2.4em;line-height:1.4;padding:.4em .8em;
white-space:normal;text-align:left;font-size:1rem}</style>"""


def predict(key: str, question: str, options: Sequence[str]) -> None:
    """Show the question with a button for each option. A click is kept; it can be changed until the result is shown.

    key: such as "02.reader", the same as in `reveal`. Without a click nothing is kept, and `reveal` shows only the
    measurement. Raises ValueError unless there are two or more options, all different.
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
    """Display a widget; pages without a kernel show the HTML code or the text instead."""
    from IPython.display import display

    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    display({"application/vnd.jupyter.widget-view+json": view, "text/html": code, "text/plain": text}, raw=True)


def reveal(key: str, answer: str, measured: str = "") -> None:
    """Print the prediction and what was measured, with a point if the prediction is right.

    answer: the option that the measurement shows to be right. measured: numbers behind it, as a text. Raises
    ValueError if `answer` is not an option of the prediction.
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
