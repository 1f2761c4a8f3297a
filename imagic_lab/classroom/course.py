"""The tables that all notebooks share, `notebooks/*.toml`, and the reader's answers so far.

Predictions, answers and points are kept in `out/progress.json`, so a restarted kernel still knows them. To start the
course again, delete that file. The environment variable IMAGIC_PROGRESS names another file. If it is empty, nothing is
read or written, so that a run depends only on the notebook.
"""

from __future__ import annotations

import base64
import html
import json
import os
import sys
from pathlib import Path
from string import Template

from imagic_lib.files import write_atomically
from imagic_lib.models import DATA

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # JupyterLab brings it

NOTEBOOKS = DATA.parent / "notebooks"
MEMORY: dict[str, dict] = {}  # the progress, if it is not kept in a file


def table_of(name: str) -> dict[str, dict]:
    """Read `notebooks/NAME.toml`: for each notebook ("02"), its entries by name. Empty if there is no such file."""
    path = NOTEBOOKS / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def entry(name: str, key: str):
    """Return the entry `key` of a table, such as "02.rebuilt". Raises ValueError, in one sentence, if it is missing."""
    number, _, rest = key.partition(".")
    found = table_of(name).get(number, {}).get(rest)
    if found is None:
        raise ValueError(f"“{key}” is not in notebooks/{name}.toml: add “{rest}” under [{number}] there")
    return found


def kept_in() -> Path | None:
    """Return the file that keeps the progress, or None if nothing is kept, as in a read-only repository."""
    usual = DATA.parent / "out" / "progress.json" if os.access(DATA.parent, os.W_OK) else ""
    path = os.environ.get("IMAGIC_PROGRESS", str(usual))
    return Path(path) if path else None


def recall() -> dict[str, dict]:
    """Return the progress so far, by prediction and exercise. Raises ValueError if its file can't be read."""
    path = kept_in()
    if path is None or not path.is_file():
        return {} if path else MEMORY
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} can't be read ({error}): delete it to start with no points") from error


def note(key: str, **what) -> dict:
    """Add facts about a prediction or an exercise. Returns everything that is known about it."""
    progress, path = recall(), kept_in()
    progress[key] = progress.get(key, {}) | what
    if path:
        text = json.dumps(progress, indent=1, ensure_ascii=False)
        write_atomically(path, lambda place: place.write_text(text, encoding="utf-8"))
    return progress[key]


def page(progress: dict[str, dict]) -> str:
    """Return the progress as an HTML page to hand in: predictions, answers and points, and nothing about the person."""
    rows, columns = "", ("question", "answer", "measured", "points")
    for key, known in sorted(progress.items()):
        cells = [key, *(known.get(column, "") for column in columns)]
        rows += "<tr>" + "".join(f"<td><pre>{html.escape(str(cell))}</pre></td>" for cell in cells) + "</tr>\n"
    guesses = [known["points"] for known in progress.values() if "options" in known]
    solved, tried = sum(known["points"] for known in progress.values()) - sum(guesses), len(progress) - len(guesses)
    template = Template(Path(__file__).with_name("progress.html").read_text(encoding="utf-8"))
    return template.substitute(solved=solved, tried=tried, right=sum(guesses), guesses=len(guesses), rows=rows)


def score(notebook: str) -> None:
    """Print the points of a notebook, such as "02", and write `progress.html`, to hand in, next to `progress.json`."""
    progress, path = recall(), kept_in()
    mine = {key: known for key, known in progress.items() if key.startswith(f"{notebook}.")}
    guesses = [known for known in mine.values() if "options" in known]
    exercises = [
        mine.get(f"{notebook}.{name}", {}).get("points", 0) for name in table_of("exercises").get(notebook, {})
    ]
    right, made = sum(known["points"] for known in guesses), sum("answer" in known for known in guesses)
    print(f"predictions: {right} of {len(guesses)} right, {len(guesses) - made} not made")
    print(f"exercises: {sum(exercises)} of {len(exercises)} solved")
    print(f"points: {right + sum(exercises)} of {len(guesses) + len(exercises)}")
    if path:
        from IPython.display import HTML, display

        write_atomically(path.with_suffix(".html"), lambda place: place.write_text(page(progress), encoding="utf-8"))
        data = base64.b64encode(page(progress).encode()).decode()
        link = f'<a download="progress.html" href="data:text/html;base64,{data}">progress.html</a>'
        display(HTML(f"To hand in: {link} (all notebooks so far; no name in it)"))
