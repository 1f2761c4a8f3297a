"""Put a measured table into a document, between its markers, so that no number is typed by hand."""

from __future__ import annotations

import re
from pathlib import Path

from imagic_lab.benchmark.benchmark import table  # noqa: F401 - the other scripts take it from here

README = Path(__file__).with_name("README.md")
ROOT = README.parent.parent.parent
CARD = ROOT / "data" / "tiny-sd" / "README.md"


def put(document: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- name --> and <!-- /name --> in the document, and print it."""
    print(text)
    old = document.read_text(encoding="utf-8")
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    new, count = re.subn(pattern, lambda m: m.group(1) + text.rstrip("\n") + "\n" + m.group(2), old, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{document} has no place for {name!r}: it needs <!-- {name} --> and <!-- /{name} -->")
    document.write_text(new, encoding="utf-8")
