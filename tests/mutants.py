"""Mutation tests: small faults are put into a module, one at a time, and the tests should notice each of them.

`make mutants` goes through the method, module by module, on one core, and takes some hours;
`make mutants MODULES="pictures stage3_interpolation"` takes these alone. Stopped and started again it goes on where it
was; survivors are tried again, and so is a function that has changed since. The tool is mutmut (mutmut.readthedocs.io).
Everything happens in copies under runs/mutants/. After each module its score is written into tests/README.md and its
survivors into runs/mutants/survivors.md. Tests marked `slow` are left out, so that scores are a little too low and
never too high. `cd runs/mutants/MODULE && python -m mutmut show NAME` shows a survivor.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from itertools import takewhile
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "runs" / "mutants"
README = ROOT / "tests" / "README.md"
SURVIVORS = HOME / "survivors.md"
MODULES = ["diffusion.py", "stage*.py", "edit.py", "storage.py", "files.py", "pictures.py", "unets.py",
           "training/[a-z]*.py", "planning/[a-z]*.py"]  # of imagic_lib  # fmt: skip
ALSO = {  # besides tests/test_MODULE*.py these tests are about a module
    "diffusion": ["test_stage*.py", "training/test_loop.py"],
    "stage": ["training/test_strategies.py"],
    "stage4": ["test_own_noise.py", "test_outside.py"],
    "edit": ["test_cli*.py", "test_folder*.py", "test_suggestion*.py"],
    "storage": ["test_edit.py", "test_folder.py", "test_strangers.py"],
    "files": ["training/test_*.py"],
    "unets": ["test_stage*.py", "training/test_strategies.py"],
    "training/": ["test_stage*.py", "training/test_*.py"],
}
MEMORY = 12 * 2**30  # bytes
AROUND = 25  # so many characters of a line are shown before and after a change
NOTICED = ("killed", "timeout", "segfault")  # whatever stops the tests is noticed
Score = tuple[int, int, list[str]]  # mutants, noticed, a line for each survivor
SETTINGS = """[mutmut]
source_paths=imagic_lib
only_mutate=imagic_lib/{module}.py
also_copy=
    imagic_lab
pytest_add_cli_args_test_selection=
{tests}
pytest_add_cli_args=
    -p
    no:cacheprovider
    --hypothesis-seed=0
    -m
    not slow
use_git_change_detection=false
timeout_constant=30
timeout_multiplier=4
"""


def modules() -> list[str]:
    """'stage1_embedding', ..., 'training/checkpoints', ...: what is given faults."""
    library = ROOT / "imagic_lib"
    return [str(p.relative_to(library).with_suffix("")) for pattern in MODULES for p in sorted(library.glob(pattern))]


def tests_of(module: str) -> list[str]:
    """The test files of a module, relative to the repository. Raises ValueError if there are none or no module."""
    if module not in modules():
        raise ValueError(f"no module {module!r} is given faults: choose among {', '.join(modules())}")
    parent, _, name = module.rpartition("/")
    patterns = [f"{parent}/test_{name}*.py".lstrip("/")]
    patterns += [pattern for start, more in ALSO.items() if module.startswith(start) for pattern in more]
    tests = ROOT / "tests"
    found = sorted({str(path.relative_to(ROOT)) for pattern in patterns for path in tests.glob(pattern)})
    if not found:
        raise ValueError(f"there are no tests of {module!r}: tests/{patterns[0]} is missing")
    return found


def undecorated(source: str) -> str:
    """The same module with `f = d(f)` after each function in place of `@d` above it: mutmut skips decorated ones."""
    lines = source.splitlines()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for node in sorted(functions, key=lambda node: -node.lineno):
        names = [ast.unparse(decorator) for decorator in node.decorator_list]
        if not names or names == ["classmethod"] or any(name.endswith(".setter") for name in names):
            continue
        wrapped = node.name
        for name in reversed(names):
            wrapped = f"{name}({wrapped})"
        lines.insert(node.end_lineno, f"{' ' * node.col_offset}{node.name} = {wrapped}")
        del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "\n".join(lines) + "\n"


def prepare(module: str) -> Path:
    """A folder with the library, its tests and mutmut's settings, up to date; what was found out before stays."""
    folder = HOME / module.replace("/", "-")
    for name in ("imagic_lib", "imagic_lab", "tests"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    target = folder / "imagic_lib" / f"{module}.py"
    target.write_text(undecorated(target.read_text(encoding="utf-8")), encoding="utf-8")
    tests = "\n".join(f"    {name}" for name in tests_of(module))
    with (folder / "tests" / "conftest.py").open("a", encoding="utf-8") as file:
        file.write("\n\nfrom tests import mutants\n\nmutants.hide_wrapper()\nmutants.own_lock()\n")
    (folder / "setup.cfg").write_text(SETTINGS.format(module=module, tests=tests), encoding="utf-8")
    for place in (folder, folder / "mutants"):
        place.mkdir(exist_ok=True)
        if not (place / "data").exists():
            (place / "data").symlink_to(ROOT / "data")
    return folder


def hide_wrapper() -> None:
    """So that warnings point at the caller's line: `models.warn_caller` passes over mutmut's wrapper, too."""
    importlib.import_module("mutmut.mutation.trampoline").__name__ = "imagic_lib.wrapper"


def own_lock() -> None:
    """Give progress bars a lock of this process. Theirs is shared by forked processes: one that is stopped while it
    draws a bar would keep all later ones waiting."""
    tqdm.set_lock(threading.RLock())


def spare_memory() -> None:
    """A fault that asks for more than `MEMORY` fails, and does not take the machine with it."""
    import resource  # not on Windows, where mutmut does not run either

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def mutmut(folder: Path, *arguments: str) -> str:
    """What `mutmut` says in that folder. Raises RuntimeError if it fails, for example because a test fails as it is."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-m", "mutmut", *arguments], cwd=folder, env=environment, text=True,
                          encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          preexec_fn=spare_memory)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"mutmut {' '.join(arguments)} failed in {folder}:\n{done.stdout[-3000:]}")
    return done.stdout


def results(folder: Path) -> dict[str, str]:
    """Each mutant that was tried, and what became of it: 'killed', 'survived', 'no tests', 'timeout', ..."""
    found = re.findall(r"^ +(\S+): (.+)$", mutmut(folder, "results", "--all", "true"), re.MULTILINE)
    return {name: state for name, state in found if state not in ("not checked", "skipped")}


def changes_in(folder: Path, names: set[str]) -> dict[str, str]:
    """What each of these mutants changes, in a line. One process for all: `mutmut show` takes seconds for each."""
    script = "import json, sys; from mutmut.mutation.diff_apply import get_diff_for_mutant as diff\n"
    script += "print(json.dumps({name: diff(name) for name in sys.argv[1:]}))"
    command = [sys.executable, "-c", script, *sorted(names)]
    done = subprocess.run(command, cwd=folder, text=True, encoding="utf-8", capture_output=True, check=True)
    return {name: change_of(diff) for name, diff in json.loads(done.stdout.splitlines()[-1]).items()}


def survivors(states: dict[str, str]) -> set[str]:
    """The mutants that no test noticed."""
    return {name for name, state in states.items() if state not in NOTICED}


def alike(a: str, b: str) -> int:
    """How many first characters are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def change_of(diff: str) -> str:
    """A survivor in one line, `old` → `new`, with what both have in common cut short."""
    lines = [line for line in diff.splitlines() if re.match(r"[-+](?![-+])", line)]
    old, new = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    start = max(0, alike(old, new) - AROUND)
    end = max(0, alike(old[start + AROUND :][::-1], new[start + AROUND :][::-1]) - AROUND)
    before, after = "…" * (start > 0), "…" * (end > 0)
    return " → ".join(f"`{before}{code[start : len(code) - end].strip()}{after}`" for code in (old, new))


def function_of(name: str) -> str:
    """'stage1.Class.function' of mutmut's 'imagic_lib.stage1.xǁClassǁfunction__mutmut_3'."""
    return (
        re.sub(r"__mutmut_\d+$", "", name)
        .removeprefix("imagic_lib.")
        .replace("xǁ", "")
        .replace("ǁ", ".")
        .replace(".x_", ".")
    )


def score(states: dict[str, str], changes: dict[str, str]) -> Score:
    """How many mutants a module has, how many were noticed, and the survivors. changes: what each of these changed."""
    left = [f"- {function_of(name)}: {changes[name]}" for name in states if name in survivors(states)]
    return len(states), len(states) - len(left), left


def scores_in(page: str, survivors: str) -> dict[str, Score]:
    """What `report` wrote earlier, module by module: a folder under runs/ may be gone by now."""
    rows = re.findall(r"^\| (\w\S*) \| (\d+) \| (\d+) \| \d+% \|$", page, re.MULTILINE)
    lines = {m: re.findall(rf"^- {m.replace('/', '.')}\..*$", survivors, re.MULTILINE) for m, *_ in rows}
    return {m: (int(count), int(noticed), lines[m]) for m, count, noticed in rows if m in modules()}


def report(scores: dict[str, Score]) -> str:
    """The scores as a Markdown table."""
    lines = ["| module | mutants | noticed | |", "|---|---|---|---|"]
    rows = [(module, count, noticed) for module, (count, noticed, _) in scores.items()]
    for module, count, noticed in [*rows, ("all", sum(r[1] for r in rows), sum(r[2] for r in rows))]:
        lines.append(f"| {module} | {count} | {noticed} | {noticed / max(1, count):.0%} |")
    return "\n".join(lines)


def write_report(scores: dict[str, Score]) -> None:
    """The table goes between the two marks in tests/README.md, the survivors into a file of their own."""
    page = README.read_text(encoding="utf-8")
    page = re.sub(r"(?s)(<!-- mutants -->\n).*(<!-- /mutants -->)", lambda m: f"{m[1]}{report(scores)}\n{m[2]}", page)
    README.write_text(page, encoding="utf-8")
    SURVIVORS.write_text("\n".join(line for _, _, left in scores.values() for line in left) + "\n", encoding="utf-8")


def main(chosen: list[str]) -> None:
    chosen = chosen or modules()
    for module in chosen:
        tests_of(module)  # a wrong name is found before hours are spent
    for module in chosen:
        print(f"{module} ...", flush=True)
        folder = prepare(module)
        before = results(folder) if list(folder.glob("mutants/**/*.meta")) else {}
        mutmut(folder, "run", "--max-children", "1")
        if again := survivors(results(folder)) & survivors(before):  # a new test may notice them
            mutmut(folder, "run", "--max-children", "1", *sorted(again))
        states = results(folder)
        listed = SURVIVORS.read_text(encoding="utf-8") if SURVIVORS.exists() else ""
        scores = scores_in(README.read_text(encoding="utf-8"), listed)
        scores[module] = score(states, changes_in(folder, survivors(states)))
        write_report({m: scores[m] for m in modules() if m in scores})


if __name__ == "__main__":
    main(sys.argv[1:])
