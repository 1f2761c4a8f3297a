"""What the notebooks of the course share: the tables `notebooks/*.toml`, and what a reader has answered so far.

Predictions, answers and points are kept in `out/progress.json`, so a restarted kernel still knows them; to start the
course again, delete that file. The environment variable IMAGIC_PROGRESS names another file; if it is empty, nothing is
read or written, and a run of a notebook depends on nothing but the notebook.
"""

from __future__ import annotations

import base64
import html
import json
import os
import sys
from pathlib import Path

from imagic_lib.models import DATA

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # JupyterLab brings it

NOTEBOOKS = DATA.parent / "notebooks"
MEMORY: dict[str, dict] = {}  # the progress, where no file keeps it
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Progress</title>
<style>body{{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse}}td,th{{border:1px solid #999;padding:.3em .6em;text-align:left;vertical-align:top}}
pre{{margin:0;white-space:pre-wrap}}</style>
<h1>Imagic, taught: {points} of {of} points</h1>
<table><tr><th>key</th><th>question</th><th>answer</th><th>measured</th><th>points</th></tr>{rows}</table></html>"""


def table(name: str) -> dict[str, dict]:
    """The table `notebooks/NAME.toml`: for each notebook ("02") its entries by name. Empty if there is no such file."""
    path = NOTEBOOKS / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def entry(name: str, key: str):
    """The entry `key`, such as "02.rebuilt", of a table. Raises ValueError, in one sentence, if it is not there."""
    number, _, rest = key.partition(".")
    found = table(name).get(number, {}).get(rest)
    if found is None:
        raise ValueError(f"“{key}” is not in notebooks/{name}.toml: add “{rest}” under [{number}] there")
    return found


def kept_in() -> Path | None:
    """The file that keeps the progress; None if nothing is kept."""
    path = os.environ.get("IMAGIC_PROGRESS", str(DATA.parent / "out" / "progress.json"))
    return Path(path) if path else None


def recall() -> dict[str, dict]:
    """What has been answered so far, by key. Raises ValueError if the file can't be read."""
    path = kept_in()
    if path is None or not path.is_file():
        return {} if path else MEMORY
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} can't be read ({error}): delete it to start with no points") from error


def keep(path: Path, text: str) -> None:
    """Write a file in one move: an interrupted write leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(text, encoding="utf-8")
    os.replace(path.with_suffix(".tmp"), path)


def note(key: str, **what) -> dict:
    """Add to what is known about a prediction or an exercise; returns all that is known about it."""
    progress, path = recall(), kept_in()
    progress[key] = progress.get(key, {}) | what
    if path:
        keep(path, json.dumps(progress, indent=1, ensure_ascii=False))
    return progress[key]


def page(progress: dict[str, dict]) -> str:
    """The progress as an HTML page to hand in: predictions, answers and points, and nothing about the person."""
    rows = ""
    for key, known in sorted(progress.items()):
        cells = key, known.get("question", ""), known.get("answer", ""), known.get("measured", ""), known["points"]
        rows += "<tr>" + "".join(f"<td><pre>{html.escape(str(cell))}</pre></td>" for cell in cells) + "</tr>\n"
    return PAGE.format(points=sum(known["points"] for known in progress.values()), of=len(progress), rows=rows)


def score(notebook: str) -> None:
    """Add up the points of a notebook, such as "02", and write `progress.html` next to `progress.json`, to hand in."""
    progress, path = recall(), kept_in()
    mine = {key: known for key, known in progress.items() if key.startswith(f"{notebook}.")}
    guesses = [known for known in mine.values() if "options" in known]
    exercises = [mine.get(f"{notebook}.{name}", {}).get("points", 0) for name in table("exercises").get(notebook, {})]
    right, made = sum(known["points"] for known in guesses), sum("answer" in known for known in guesses)
    print(f"predictions: {right} of {len(guesses)} right, {len(guesses) - made} not made")
    print(f"exercises: {sum(exercises)} of {len(exercises)} solved")
    print(f"points: {right + sum(exercises)} of {len(guesses) + len(exercises)}")
    if path:
        from IPython.display import HTML, display

        keep(path.with_suffix(".html"), page(progress))
        data = base64.b64encode(page(progress).encode()).decode()
        link = f'<a download="progress.html" href="data:text/html;base64,{data}">progress.html</a>'
        display(HTML(f"To hand in: {link} (all notebooks so far; no name in it)"))
