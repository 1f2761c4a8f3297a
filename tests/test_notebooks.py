"""What every notebook must have, checked without running it; `make test-notebooks` runs them.

A rule takes a notebook and yields what is wrong with it. Below, each rule is also shown a notebook that breaks it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from imagic_lab.classroom import build
from imagic_lab.classroom.course import table_of

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
ALTS = table_of("alt")
PATHS = sorted(FOLDER.glob("[0-9]*.ipynb"))

LONGEST_CELL = 25  # lines
LARGEST_FILE = 1_000_000  # bytes
EXERCISES = {"00": (0, 0)}  # how many a notebook has; else from 2 to 4
LIMITS = {"00": (500, 20)} | {f"0{n}": (1100, 20) for n in range(1, 7)}  # words, and cells of code without solutions;
LONGEST = 2100, 30  # else
PREDICTIONS = 6
ELSEWHERE = re.compile(r"(?<![\w.])/(?:home|root|work|tmp)\b|\bC:\\|[/\\]Users[/\\]")  # paths of one computer
RAW_FLOAT = re.compile(r"\d\.\d{4,}|\d[eE][-+]?\d")  # its last digits differ from processor to processor
KEY = re.compile(r"\d\d\.\w+\Z")
PIXELS = re.compile(r"data:[\w/+]+;base64,[\w+/=]+")  # a picture in HTML
CHECKED, SOLUTION = "nbval-check-output", "solution"
UNTESTED = {"raises-exception", "nbval-skip", "nbval-raises-exception", "nbval-ignore-output"}


class Notebook(NamedTuple):
    path: Path
    node: nbformat.NotebookNode

    def code(self, tag: str | None = None) -> list[nbformat.NotebookNode]:
        return [c for c in self.node.cells if c.cell_type == "code" and (tag is None or tag in tags(c))]

    def text(self) -> list[str]:
        return [c.source for c in self.node.cells if c.cell_type == "markdown"]


@cache
def read(path: Path) -> Notebook:
    return Notebook(path, nbformat.read(path, as_version=4))


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def printed(cell: nbformat.NotebookNode) -> str:
    """All text among a cell's outputs, pictures left out."""
    parts = [output.get("text", "") for output in cell.outputs]
    parts += [text for o in cell.outputs for kind, text in o.get("data", {}).items() if kind.startswith("text/")]
    return PIXELS.sub("", "\n".join(parts))


def printed_line(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def calls_that_print(source: str) -> list[ast.Call]:
    """The calls of `print`, and of `reveal`, which prints what was measured."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("print", "reveal")]


def is_constant(call: ast.Call) -> bool:
    """Does it print the same whatever was computed?"""
    return not any(isinstance(node, ast.Name) for argument in call.args for node in ast.walk(argument))


def checks_called(source: str) -> set[str]:
    return keys(source, "check")


def keys(source: str, *functions: str) -> set[str]:
    """The keys, such as "02.rebuilt", that code gives to these functions of the classroom."""
    found = set()
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        if getattr(call.func, "id", getattr(call.func, "attr", "")) in functions:
            found |= {str(a.value) for a in call.args if isinstance(a, ast.Constant) and KEY.match(str(a.value))}
    return found


# --- the rules


def valid(notebook: Notebook) -> Iterator[str]:
    try:
        nbformat.validate(notebook.node)
    except nbformat.ValidationError as error:
        yield f"it is no notebook of format 4: {str(error).splitlines()[0]}"


def executed_in_order(notebook: Notebook) -> Iterator[str]:
    counts = [cell.execution_count for cell in notebook.code()]
    if counts != list(range(1, len(counts) + 1)):
        yield f"its cells were not run once, from top to bottom: {counts}"


def has_its_parts(notebook: Notebook) -> Iterator[str]:
    first, number = notebook.node.cells[0].source, notebook.path.name[:2]
    if not re.match(rf"# {number} · \S", first):
        yield f"cell 0 has no title '# {number} · ...'"
    if not re.search("laptop|Without a GPU", first):
        yield "cell 0 doesn't say how long a laptop computes"
    if not re.search(r"^#+ Summary\b.*^[-*] |\*\*Next:\*\*", "\n".join(notebook.text()[-3:]), re.M | re.S):
        yield "neither a summary with bullets nor what comes next stands at the end"


def has_its_address(notebook: Notebook) -> Iterator[str]:
    if notebook.node.cells[0].source.count(build.badge(notebook.path.name)) != 1:
        yield "its badge is not what pyproject.toml asks for: run python -m imagic_lab.classroom.build --address"
    if [cell.source for cell in notebook.code("colab")] != [build.colab_cell()] or "colab" not in tags(
        notebook.code()[0]
    ):
        yield "its first code cell is not the Colab cell: run python -m imagic_lab.classroom.build --address"


def short_cells(notebook: Notebook) -> Iterator[str]:
    for cell in notebook.code():
        if (lines := len(cell.source.splitlines())) > LONGEST_CELL:
            yield f"a cell has {lines} lines: {cell.source.splitlines()[0]}"


def brief(notebook: Notebook) -> Iterator[str]:
    """So short that a lesson has time for it."""
    most = LIMITS.get(notebook.path.name[:2], LONGEST)
    texts = [c.source for c in notebook.node.cells if c.cell_type == "markdown" and "teacher" not in tags(c)]
    words = sum(len(text.split()) for text in texts)
    cells = len(notebook.code()) - len(notebook.code(SOLUTION))
    if words > most[0] or cells > most[1]:
        yield f"{words} words and {cells} cells of code, at most {most[0]} and {most[1]}"


def small(notebook: Notebook) -> Iterator[str]:
    if (size := len(nbformat.writes(notebook.node).encode())) > LARGEST_FILE:
        yield f"{size} bytes"


def of_no_computer(notebook: Notebook) -> Iterator[str]:
    for cell in notebook.node.cells:
        for place in (cell.source, printed(cell) if cell.cell_type == "code" else ""):
            if found := ELSEWHERE.search(place):
                yield f"a path of one computer: {place[found.start() :][:40]!r}"


def tidied(notebook: Notebook) -> Iterator[str]:
    if "widgets" in notebook.node.metadata:
        yield "widget state is stored"
    for cell in notebook.code():
        if odd := UNTESTED & set(tags(cell)):
            yield f"a cell is kept from the tests by {odd}"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"an error is stored: {output.ename}"
            if output.get("name") == "stderr":
                yield f"stderr is stored: {output.text[:40]!r}"
            if build.WIDGET in output.get("data", {}):
                yield "a widget is stored"


def checked_cells(notebook: Notebook) -> Iterator[str]:
    """nbval passes a cell that was never run, whatever it prints: there must be something to compare with.

    And a line that an experiment can't change compares nothing: it must be made of values, and show a number.
    """
    experiments = [cell for cell in notebook.code(CHECKED) if cell not in notebook.code(SOLUTION)]
    if len(experiments) < 2:
        yield "fewer than two experiments whose output is compared"
    for cell in notebook.code(CHECKED):
        name = cell.source.splitlines()[-1]
        if cell.execution_count is None or not printed_line(cell):
            yield f"a checked cell wants a count and something printed: {name}"
        if found := RAW_FLOAT.search(printed(cell)):
            yield f"a checked cell prints digits that differ between machines, {found.group()!r}: {name}"
    for cell in experiments:
        if not re.search(r"\d", printed_line(cell)) or all(map(is_constant, calls_that_print(cell.source))):
            yield f"a checked cell prints no number of its experiment: {cell.source.splitlines()[-1]}"


def described_pictures(notebook: Notebook) -> Iterator[str]:
    for cell in notebook.code():
        for output in cell.outputs:
            for kind in output.get("data", {}):
                if kind.startswith("image/") and len(output.metadata.get(kind, {}).get("alt", "").split()) < 3:
                    yield f"a picture without a sentence for who can't see it: {cell.source.splitlines()[-1]}"
            page = output.get("data", {}).get("text/html", "")
            if "<img" in page and not re.search(r"<img[^>]*\balt=.\S+ \S+ \S", page):
                yield f"HTML without a sentence for who can't see it: {cell.source.splitlines()[-1]}"
        if unknown := keys(cell.source, "show", "slide", "film") - {f"{n}.{k}" for n, row in ALTS.items() for k in row}:
            yield f"notebooks/alt.toml has no text for {unknown}"
    if re.search(r"!\[\s*\]\(|<img(?![^>]*alt=)", "\n".join(notebook.text())):
        yield "a picture in the text has no alt text"


def predictions(notebook: Notebook) -> Iterator[str]:
    """Asked in the text, or by `predict`, which is answered by `reveal` in a later cell with folded output."""
    asked = [key for cell in notebook.code() for key in sorted(keys(cell.source, "predict"))]
    order = [(key, kind) for c in notebook.code() for kind in ("predict", "reveal") for key in keys(c.source, kind)]
    for key in asked:
        if order.count((key, "reveal")) != 1 or order.index((key, "reveal")) < order.index((key, "predict")):
            yield f"{key} is not revealed, once, below its prediction"
    if len(asked) > PREDICTIONS or len(set(asked)) < len(asked):
        yield f"{len(asked)} predictions, at most {PREDICTIONS}, each with its own key"
    for cell in notebook.code():
        if keys(cell.source, "reveal") and not cell.metadata.get("jupyter", {}).get("outputs_hidden"):
            yield f"a result stands open: tag it `reveal` and build it: {cell.source.splitlines()[-1]}"
    if not asked:
        yield from asked_in_text(notebook)


def asked_in_text(notebook: Notebook) -> Iterator[str]:
    asked = [n for n, c in enumerate(notebook.node.cells) if c.cell_type == "markdown" and "**Predict" in c.source]
    if not asked:
        yield "no cell asks to predict"
    for n in asked:
        if [cell.cell_type for cell in notebook.node.cells[n + 1 : n + 2]] != ["code"]:
            yield f"no code follows the prediction: {notebook.node.cells[n].source[-60:]!r}"


def exercises(notebook: Notebook) -> Iterator[str]:
    """A stub that runs as it is, then, in the same order, the solution; both call the check."""
    solutions = notebook.code(SOLUTION)
    least, most = EXERCISES.get(notebook.path.name[:2], (2, 4))
    if not least <= len(solutions) <= most:
        yield f"{len(solutions)} solutions, not {least} to {most}"
    stubs = [c for c in notebook.code() if c not in solutions and checks_called(c.source)]
    if [checks_called(c.source) for c in stubs] != [checks_called(c.source) for c in solutions]:
        yield "exercises and solutions don't call the same checks"
    for stub in stubs:
        if not any(isinstance(node, ast.Constant) and node.value is ... for node in ast.walk(ast.parse(stub.source))):
            yield f"an exercise leaves no ... to fill in: {checks_called(stub.source)}"
        if "not attempted" not in printed(stub):
            yield f"an exercise as it stands should print 'not attempted yet': {checks_called(stub.source)}"
    for solution in solutions:
        if CHECKED not in tags(solution):
            yield f"a solution isn't compared, so a wrong one would pass: {checks_called(solution.source)}"
        if "right" not in printed(solution) or "not yet" in printed(solution):
            yield f"a solution isn't found right: {checks_called(solution.source) or solution.source[:40]}"
        if not solution.metadata.get("jupyter", {}).get("source_hidden"):
            yield f"a solution isn't folded: {checks_called(solution.source)}"


def links(notebook: Notebook) -> Iterator[str]:
    for text in notebook.text():
        for target in links_of(text):
            path, _, anchor = target.partition("#")
            file = (notebook.path.parent / path).resolve() if path else notebook.path
            if not file.is_relative_to(ROOT) or file.relative_to(ROOT).parts[:1] in [("runs",), ("out",), (".venv",)]:
                yield f"a link leads out of the repository: {target}"
            elif path and not file.exists():
                yield f"a link leads nowhere: {target}"
            elif anchor and slug(anchor) not in headings(notebook.text() if not path else texts_of(file)):
                yield f"there is no such heading: {target}"


RULES = [
    valid, executed_in_order, has_its_parts, has_its_address, short_cells, brief, small, of_no_computer,
    tidied, checked_cells, described_pictures, predictions, exercises, links,
]  # fmt: skip


def links_of(text: str) -> list[str]:
    """The targets of a text's relative links; brackets in code and in equations are none."""
    text = re.sub(r"(?s)```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$", "", text)
    targets = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:href|src)=\"([^\"]+)\"", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def texts_of(file: Path) -> list[str]:
    return read(file).text() if file.suffix == ".ipynb" else [file.read_text(encoding="utf-8")]


def headings(texts: list[str]) -> set[str]:
    return {slug(title) for text in texts for title in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)}


def slug(title: str) -> str:
    """A heading as an anchor; GitHub and Jupyter differ in case and punctuation, which is left out here."""
    return re.sub(r"[^\w]", "", title).lower()


def defined_in(notebook: Notebook) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    cells = [ast.walk(ast.parse(cell.source)) for cell in notebook.code()]
    return {node.name for nodes in cells for node in nodes if isinstance(node, kinds) and not is_method(node)}


def is_method(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and [a.arg for a in node.args.args][:1] == ["self"]


def defined_twice(notebooks: list[Notebook]) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}
    for notebook in notebooks:
        for name in defined_in(notebook):
            homes.setdefault(name, []).append(notebook.path.name)
    return {name: found for name, found in homes.items() if len(found) > 1}


# --- the notebooks keep them


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_keeps_the_rules(path, rule):
    assert not list(rule(read(path)))


def test_no_function_is_defined_in_two_notebooks():
    assert not defined_twice([read(path) for path in PATHS])


def test_the_readme_lists_every_notebook():
    listed = set(re.findall(r"\]\(notebooks/([^)#]+\.ipynb)\)", (ROOT / "README.md").read_text(encoding="utf-8")))
    there = {path.name for path in FOLDER.glob("*.ipynb")}
    assert there, "no notebook was found, so nothing was tested"
    assert (listed or there) == there


# --- and the rules notice what is wrong


def sound() -> Notebook:
    """A small notebook that keeps all rules."""
    count = iter(range(1, 100))

    def code(source, *cell_tags, text=None, picture=False):
        outputs = [new_output("stream", name="stdout", text=text)] if text else []
        if picture:
            alt = {"image/png": {"alt": "A dog on the grass."}}
            outputs = [new_output("display_data", {"image/png": "aGk="}, metadata=alt)]
        metadata = {"tags": list(cell_tags)} | ({"jupyter": {"source_hidden": True}} if SOLUTION in cell_tags else {})
        return new_code_cell(source, execution_count=next(count), outputs=outputs, metadata=metadata)

    name, stub, right = "99_made_up.ipynb", "not attempted yet: put", "right: so it is\n"
    cells = [
        new_markdown_cell(f"# 99 · Made up\n\n{build.badge(name)}\n\nA minute on a laptop."),
        new_markdown_cell("None is the text between."),
        code(build.colab_cell(), "colab"),
        new_markdown_cell("**Predict.** Is $E[x](y)$ one? See [below](#Summary), [more](../data/images/README.md)."),
        code("plots.show(figure)", picture=True),
        code("print(loss)", CHECKED, text="1\n"),
        code("print(f'{loss:.1f}')", CHECKED, text="0.5\n"),
        code('answer = ...\ncheck("99.one", answer)', text=stub),
        code('check("99.one", 1)', SOLUTION, CHECKED, text=right),
        code('def two():\n    return ...\n\n\ncheck("99.two", two)', text=stub),
        code('check("99.two", lambda: 2)', SOLUTION, CHECKED, text=right),
        new_markdown_cell("## Summary\n\n- It was made up."),
    ]
    return Notebook(FOLDER / name, new_notebook(cells=cells))


def output(kind="stream", **content):
    return lambda n: n.code()[-1].outputs.append(new_output(kind, **content))


def source(index: int, old: str, new: str):
    def damage(notebook):
        assert old in notebook.node.cells[index].source
        notebook.node.cells[index].source = notebook.node.cells[index].source.replace(old, new)

    return damage


def add(text: str):
    return lambda n: n.node.cells.insert(3, new_markdown_cell(text))


WIDGET_VIEW = {build.WIDGET: {"model_id": "a", "version_major": 2, "version_minor": 0}}
BROKEN = [
    (valid, lambda n: n.node.cells[4].update(outputs="none")),
    (executed_in_order, lambda n: n.node.cells[4].update(execution_count=None)),
    (executed_in_order, lambda n: n.node.cells[4].update(execution_count=7)),
    (has_its_parts, source(0, "# 99 ·", "# 98 ·")),
    (has_its_parts, source(0, "laptop", "computer")),
    (has_its_parts, source(-1, "- It", "It")),
    (has_its_address, source(0, "https://colab.research.google.com/)", "https://example.org/)")),
    (has_its_address, source(2, "import sys", "import sys, subprocess")),
    (has_its_address, lambda n: n.node.cells.pop(2)),
    (short_cells, source(4, "plots", "1\n" * LONGEST_CELL + "plots")),
    (brief, source(1, "text", 4200 * "text ")),
    (brief, lambda n: n.node.cells.extend([n.code()[0]] * 40)),
    (small, source(1, "text", "text" + LARGEST_FILE * " ")),
    (of_no_computer, source(4, "figure", "'/home/me/dog.png'")),
    (of_no_computer, source(1, "None", r"C:\dogs")),
    (of_no_computer, output(name="stdout", text="saved in /tmp/dog.png")),
    (of_no_computer, output("execute_result", data={"text/plain": "PosixPath('/Users/me/dog.png')"})),
    (tidied, lambda n: n.node.metadata.update(widgets={})),
    (tidied, lambda n: tags(n.code(CHECKED)[0]).append("nbval-skip")),
    (tidied, output("error", ename="ValueError", evalue="no", traceback=[])),
    (tidied, output(name="stderr", text="a warning")),
    (tidied, output("display_data", data=WIDGET_VIEW)),
    (checked_cells, lambda n: n.code(CHECKED)[0].update(metadata={})),
    (checked_cells, lambda n: n.code(CHECKED)[0].update(execution_count=None)),
    (checked_cells, lambda n: n.code(CHECKED)[0].update(outputs=[])),
    (checked_cells, lambda n: n.code(CHECKED)[0].update(outputs=n.node.cells[4].outputs)),
    (checked_cells, lambda n: n.code(CHECKED)[0].outputs[0].update(text="loss 0.12345")),
    (checked_cells, lambda n: n.code(CHECKED)[0].outputs[0].update(text="loss 1e-05")),
    (checked_cells, lambda n: n.code(CHECKED)[0].outputs[0].update(text="the loss fell: True")),
    (checked_cells, source(5, "print(loss)", "assert loss < 2\nprint('below 2')")),
    (checked_cells, source(5, "print(loss)", "loss")),
    (described_pictures, lambda n: n.node.cells[4].outputs[0].update(metadata={})),
    (described_pictures, source(4, "figure", "figure, '99.nothing'")),
    (described_pictures, output("display_data", data={"text/html": '<img alt="" src="data:image/png;base64,aGk=">'})),
    (described_pictures, add("![](../data/edits.jpg)")),
    (predictions, source(3, "**Predict", "**Guess")),
    (predictions, source(4, "plots.show(figure)", "predict('99.a', 'Which?', ['a', 'b'])")),
    (predictions, source(4, "plots.show(figure)", "reveal('99.a', 'b')\npredict('99.a', 'Which?', ['a', 'b'])")),
    (predictions, source(4, "plots.show(figure)", "\n".join(7 * ["predict('99.a', 'Which?', ['a', 'b'])"]))),
    (predictions, source(4, "plots.show(figure)", "reveal('99.a', 'b')")),
    (predictions, lambda n: n.node.cells.pop(4) and n.node.cells.insert(4, new_markdown_cell("So?"))),
    (exercises, lambda n: n.code(SOLUTION)[0].update(metadata={})),
    (exercises, lambda n: n.code(SOLUTION)[0].metadata.pop("jupyter")),
    (exercises, lambda n: tags(n.code(SOLUTION)[0]).remove(CHECKED)),
    (exercises, source(8, "99.one", "99.two")),
    (exercises, source(7, "= ...", "= None")),
    (exercises, lambda n: n.node.cells[7].outputs[0].update(text="not yet: think")),
    (exercises, lambda n: n.node.cells[8].outputs[0].update(text="not yet: think")),
    (links, add("[next](98_nowhere.ipynb)")),
    (links, add("[out](../../elsewhere.md)")),
    (links, add("[out](/etc/hosts)")),
    (links, add("[a heading](#Nowhere)")),
    (links, add("[a heading](../README.md#nowhere)")),
    (links, add('<img src="nowhere.png" alt="A dog">')),
]


def test_a_sound_notebook_keeps_all_rules():
    assert {rule.__name__: list(rule(sound())) for rule in RULES} == {rule.__name__: [] for rule in RULES}


@pytest.mark.parametrize("case", range(len(BROKEN)), ids=lambda case: f"{BROKEN[case][0].__name__}-{case}")
def test_a_rule_notices_what_is_wrong(case):
    rule, damage = BROKEN[case]
    notebook = sound()
    damage(notebook)
    assert list(rule(notebook))


def test_every_rule_is_shown_a_broken_notebook():
    assert {rule for rule, _ in BROKEN} == set(RULES)


def test_a_function_in_two_notebooks_is_noticed():
    other = sound()._replace(path=FOLDER / "98_other.ipynb")
    assert defined_twice([sound(), other]) == {"two": ["99_made_up.ipynb", "98_other.ipynb"]}
