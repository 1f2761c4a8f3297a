"""The house: how large its rooms may be, who may import whom, and how near the loop is to the reader."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import imagic_lib as imagic
from imagic_lab.numbers import house
from imagic_lib import stage1_embedding, stage2_finetuning

ROOT = Path(__file__).resolve().parent.parent


def test_the_house_is_in_order():
    counts = [(what, len(n) if isinstance(n, list) else n, bound) for what, n, bound in house.house_counts()]
    bounded = [row for row in counts if row[2] is not None]
    assert not [row for row in bounded if row[1] > row[2]] and len(bounded) == 12


def test_what_a_room_too_many_would_look_like_is_noticed():
    sources = {
        "a.one": "from a.two import f\nX = 1\ndef g(): f()",
        "a.two": "def f(): h()\ndef h():\n    from a.one import X",
        "a.three": "X = 2",
    }
    trees = {name: ast.parse(text) for name, text in sources.items()}
    assert house.import_cycles(trees) == [("a.one", "a.two")]
    assert house.defined_twice(trees) == [("X", ["a.one", "a.three"])]
    assert house.shortest_way(trees, "a.one.g", "a.two.h") == ["a.one.g", "a.two.f", "a.two.h"]


@pytest.mark.parametrize("stage", [stage1_embedding.optimize_embedding, stage2_finetuning.fine_tune])
def test_the_loop_of_a_stage_stands_in_the_stage(stage):
    code = inspect.getsource(stage)
    assert re.search(r"for step in training\.steps\(.*\):\n +step\(denoising_loss\(", code)


def test_every_name_that_the_readme_uses_is_there():
    used = re.findall(r"\bimagic\.(\w+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"load_pipeline", "fine_tune", "generate"} <= set(used)
    assert not [name for name in used if not hasattr(imagic, name)]
