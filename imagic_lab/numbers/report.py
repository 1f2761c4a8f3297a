"""Shared by all scripts: the command line, and a way to put a table into its document without typing it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

README = Path(__file__).with_name("README.md")
ROOT = README.parent.parent.parent
TINY_CARD = ROOT / "data" / "tiny-sd" / "README.md"


def command_line(description: str) -> argparse.ArgumentParser:
    """Return the options of a script. `--help` shows its docstring as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def put(document: Path, name: str, text: str) -> None:
    """Replace the part between <!-- name --> and <!-- /name --> in the document, and print the new one."""
    print(text)
    old = document.read_text(encoding="utf-8")
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    new, count = re.subn(pattern, lambda m: m.group(1) + text.rstrip("\n") + "\n" + m.group(2), old, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{document} has no place for {name!r}: it needs <!-- {name} --> and <!-- /{name} -->")
    document.write_text(new, encoding="utf-8")
