"""Every name that the notebooks use exists: here, and with the versions that Colab has (`make test-colab`)."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from imagic_lab.classroom import plots

PATHS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("[0-9]*.ipynb"))
MISSING = object()
ELSEWHERE = {"google.colab", "torchmetrics.image.lpip"}  # Colab's own, and the extra "metrics"


def code_of(path: Path) -> ast.Module:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ast.parse("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))


def imported(tree: ast.Module) -> Iterator[tuple[str, object]]:
    """The names that imports bind, each with its module, function or class, or MISSING; but for `ELSEWHERE`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                module = find(name.name)
                yield name.asname or name.name.split(".")[0], module if name.asname else find(name.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.module not in ELSEWHERE:
            for name in node.names:
                yield name.asname or name.name, attribute(find(node.module), name.name)


def find(module: str) -> object:
    try:
        return importlib.import_module(module)
    except ImportError:
        return MISSING


def attribute(of: object, name: str) -> object:
    if of is not MISSING and not hasattr(of, name) and isinstance(of, ModuleType):
        return find(f"{of.__name__}.{name}")
    return getattr(of, name, MISSING)


def missing(tree: ast.Module, known: dict[str, object]) -> list[str]:
    """What a notebook uses and isn't there: imports, attributes of what it imports or knows, keywords of calls."""
    names = dict(imported(tree))
    problems = [f"import of {name}" for name, found in names.items() if found is MISSING]
    rebound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names = {name: found for name, found in names.items() if name not in rebound} | known

    def value(node: ast.expr) -> object:
        """What an expression such as `plots.show` or `pipe.unet.config` stands for; None if that isn't known."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        of = value(node.value)
        followed = isinstance(of, ModuleType | type) or ast.unparse(node).split(".")[0] in known
        return attribute(of, node.attr) if of is not None and followed else None

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and value(node) is MISSING:
            problems.append(ast.unparse(node))
        if isinstance(node, ast.Call) and callable(function := value(node.func)) and function is not MISSING:
            taken = keywords(function)
            unknown = [k.arg for k in node.keywords if k.arg and taken is not None and k.arg not in taken]
            problems += [f"{ast.unparse(node.func)}({name}=)" for name in unknown]
    return sorted(set(problems))


def keywords(function) -> set[str] | None:
    """The keywords that a function takes; None if it takes any, or does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return None if any(p.kind == p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_name_that_a_notebook_uses_exists(path, pipe):
    assert not missing(code_of(path), {"pipe": pipe})


def test_there_are_notebooks():
    assert PATHS


def test_missing_names_are_found(pipe):
    tree = ast.parse(
        "import no_such_module\nimport matplotlib.figure\nimport imagic_lib as imagic\n"
        "from imagic_lib import no_such_name\nfrom imagic_lab.classroom import plots\n"
        "imagic.no_such_stage, imagic.DATA.anything\nplots.show(figure, key='a'), plots.show(figure, old='a')\n"
        "matplotlib.figure.Figure.no_such_method\npipe.unet.config.no_such_size, pipe.unet.config.sample_size\n"
        "pipe.encode_prompt(prompt='a', no_such_keyword=1)\n"
    )
    assert missing(tree, {"pipe": pipe}) == [
        "imagic.no_such_stage",
        "import of no_such_module",
        "import of no_such_name",
        "matplotlib.figure.Figure.no_such_method",
        "pipe.encode_prompt(no_such_keyword=)",
        "pipe.unet.config.no_such_size",
        "plots.show(old=)",
    ]


def test_a_shown_picture_carries_its_alt_text(monkeypatch):
    """Also with Colab's IPython 7, whose `Image` takes no `alt=`."""
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.show(Image.new("RGB", (8, 8)), "A black square.")
    data, metadata = DisplayFormatter().format(shown[0])
    assert "image/png" in data and metadata["image/png"] == {"alt": "A black square."}
