"""Is the house as small and as simple as planned? Counts lines, parameters, calls and imports, each with its bound.

python -m imagic_lab.numbers.house     # seconds; the exit code is 1 if a bound is missed
"""

from __future__ import annotations

import ast
import subprocess
import sys

from imagic_lab.numbers.report import ROOT, command_line

Sources = dict[str, ast.Module]  # by module, such as "imagic_lib.edit"; a package has its folder's name
BOUNDED = {"imagic_lib.stage2_finetuning.fine_tune": 10, "imagic_lib.edit.run_edit": 9}  # parameters
WAY = "imagic_lib.edit.run_edit", "imagic_lib.diffusion.denoising_loss"  # from a whole edit to the equation
SCRIPT = "imagic_lab/studio/studio.js"
SITE = "imagic_lab.web", "imagic_lab.book"
SHARED_NAMES = {"main", "parser", "DEFAULTS", "__all__"}  # names that any module can have


def texts_of(folder: str) -> dict[str, str]:
    """Read the text of every module in a folder, from the files that git tracks or would add."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", f"{folder}/*.py"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    names = names or [str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")]  # a copy without git
    modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): ROOT / name for name in names}
    return {module: path.read_text(encoding="utf-8") for module, path in modules.items() if path.is_file()}


def functions_of(sources: Sources) -> dict[str, ast.FunctionDef]:
    """Return every function, method and inner function, by its name with its module."""
    nodes = ((module, node) for module, tree in sources.items() for node in ast.walk(tree))
    return {f"{module}.{node.name}": node for module, node in nodes if isinstance(node, ast.FunctionDef)}


def imports_of(tree: ast.Module) -> dict[str, str]:
    """Return all imports of a module, in functions too: local name -> full name. TYPE_CHECKING is false at run time."""
    found, tests = {}, [node for node in tree.body if isinstance(node, ast.If)]
    unused = [inner for node in tests if "TYPE_CHECKING" in ast.unparse(node.test) for inner in node.body]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in unused:
            before = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found |= {name.asname or name.name: before + name.name for name in node.names}
    return found


def calls_of(node: ast.AST) -> list[str]:
    """Return the calls in a function, except in its lambdas and inner functions, because they run somewhere else."""
    own = [n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
    return [ast.unparse(n.func) for n in own if isinstance(n, ast.Call)] + [call for n in own for call in calls_of(n)]


def shortest_way(sources: Sources, start: str, goal: str) -> list[str]:
    """Return the functions on the shortest path of calls from one to another, with both; empty if there is none."""
    functions, ways = functions_of(sources), {start: [start]}
    for name in (queue := [start]):  # it grows
        module = name.rpartition(".")[0]
        known = imports_of(sources[module]) if module in sources else {}
        for call in calls_of(functions.get(name, ast.Pass())):
            first, dot, rest = call.partition(".")
            if (called := known.get(first, f"{module}.{first}") + dot + rest) not in ways:
                ways[called] = [*ways[name], called]
                queue.append(called)
    return ways.get(goal, [])


def import_cycles(sources: Sources) -> list[tuple[str, ...]]:
    """Return groups of modules that import each other, directly or through others."""
    full = {module: set(imports_of(tree).values()) for module, tree in sources.items()}
    reach = {m: {n if n in sources else n.rpartition(".")[0] for n in names} & full.keys() for m, names in full.items()}
    for through in sources:
        for found in reach.values():
            found |= reach[through] if through in found else set()
    return sorted({tuple(b for b in sources if b in reach[a] and a in reach[b]) for a in sources if a in reach[a]})


def defined_twice(sources: Sources) -> list[tuple[str, list[str]]]:
    """Return public top-level names (functions, classes, constants) that several modules define, with the modules."""
    homes = {}
    for module, tree in sources.items():
        parts = [part for node in tree.body for target in getattr(node, "targets", []) for part in ast.walk(target)]
        for name in {getattr(part, "id", "_") for part in parts} | {getattr(node, "name", "_") for node in tree.body}:
            homes.setdefault(name, set()).add(module)
    return sorted((n, sorted(at)) for n, at in homes.items() if len(at) > 1 and n[0] != "_" and n not in SHARED_NAMES)


def house_counts() -> list[tuple[str, int | list, int | None]]:
    """Return (what is counted, the number or a list of what counts, the bound or None) for each count."""
    lib, lab, guide = texts_of("imagic_lib"), texts_of("imagic_lab"), (ROOT / "tests" / "README.md").read_text("utf-8")
    core, both = ({module: ast.parse(text) for module, text in some.items()} for some in (lib, lib | lab))
    site = [name for name in lab if name.startswith(SITE)]
    functions, rooms = functions_of(core), [lab[name] for name in lab if ".numbers" not in name and name not in site]
    given = {name: [node for node in ast.walk(functions[name].args) if isinstance(node, ast.arg)] for name in BOUNDED}
    imported = [name for tree in core.values() for name in imports_of(tree).values()]
    return [
        ("lines of imagic_lib", sum(len(text.splitlines()) for text in lib.values()), 2_800),
        ("lines of imagic_lab without numbers and site", sum(len(text.splitlines()) for text in rooms), 6_500),
        ("lines of what builds the site", sum(len(lab[name].splitlines()) for name in site), 760),
        ("lines of the studio", sum(len(t.splitlines()) for name, t in lab.items() if ".studio" in name), 800),
        ("lines of its JavaScript", len((ROOT / SCRIPT).read_text("utf-8").splitlines()), 250),
        ("lines of tests/README.md", len(guide.splitlines()), 60),
        ("longest function of imagic_lib", max(f.end_lineno - f.lineno + 1 for f in functions.values()), None),
        *((f"parameters of {name}", len(given[name]), bound) for name, bound in BOUNDED.items()),
        ("calls on the way to the equation", shortest_way(core, *WAY)[1:] or ["no way"] * 99, 3),
        ("imports of imagic_lab in imagic_lib", [name for name in imported if name.startswith("imagic_lab")], 0),
        ("import cycles", import_cycles(both), 0),
        ("functions and classes defined twice", [pair for pair in defined_twice(both) if not pair[0].isupper()], 0),
        ("constants defined twice", [pair for pair in defined_twice(both) if pair[0].isupper()], None),
    ]


def main() -> int:
    command_line(__doc__).parse_args()
    missed = 0
    for what, found, bound in house_counts():
        count, things = (len(found), found) if isinstance(found, list) else (found, [])
        missed += (wrong := bound is not None and count > bound)
        print(f"{'MISSED' if wrong else 'ok':7} {what}: {count}", f"(at most {bound})" * (bound is not None))
        print(*(f"        {thing}\n" for thing in things), end="", sep="")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
