"""Show an edited photo, made by notebook 07 with real weights, in the README and in the notebooks.

python -m imagic_lab.numbers.photo FOLDER     # as notebook 07 left it; no GPU and no weights are needed

It writes data/photo.jpg and fills every place between <!-- photo --> and <!-- /photo -->."""

import json
import re
from pathlib import Path

import nbformat
from PIL import Image

from imagic_lab.numbers.report import ROOT, command_line
from imagic_lib.folder import read_facts

SIDE, GAP, FACTS = 384, 8, "photo.json"
PLACE = re.compile(r"(<!-- photo -->).*?(<!-- /photo -->)", re.DOTALL)


def sheet(files: list[Path]) -> Image.Image:
    """Put pictures side by side."""
    row = Image.new("RGB", (len(files) * (SIDE + GAP) - GAP, SIDE), "white")
    for k, file in enumerate(files):
        row.paste(Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (k * (SIDE + GAP), 0))
    return row


def told(text: str, made: dict, figure: str) -> str:
    """Return the figure in Markdown and, below it, the text and the numbers of the run."""
    how = f"η = {made['eta']:g}, λ = {made['scale']:g}, seed {made['seed']}, {made['drawn']} seeds drawn"
    cost = f"{made['model']}, {made['minutes']:.0f} minutes on one {made['gpu']}, at most {made['peak_gib']:.1f} GiB"
    shown = f"A photo, the photo rebuilt at η = 0, and edited to “{text}”"
    return f"![{shown}]({figure})\n\n*{shown} ({how}). {cost}.*"


def fill(root: Path, text: str, made: dict) -> list[str]:
    """Fill the places below `root`. Returns the names of the documents that have one."""
    paths = [root / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]
    paths = [path for path in paths if "<!-- photo -->" in path.read_text(encoding="utf-8")]
    for path in paths:
        block = told(text, made, "data/photo.jpg" if path.suffix == ".md" else "../data/photo.jpg").replace("\\", "/")
        block, whole = rf"\1\n{block}\n\2", path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            notebook = nbformat.reads(whole, as_version=4)
            for cell in notebook.cells:
                cell.source = PLACE.sub(block, cell.source)
        path.write_text(nbformat.writes(notebook) if path.suffix == ".ipynb" else PLACE.sub(block, whole), "utf-8")
    return [path.name for path in paths]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    made = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    sheet([folder / name for name in ("input.png", *made["pictures"])]).save(ROOT / "data" / "photo.jpg", quality=90)
    print("filled:", *fill(ROOT, read_facts(folder)["text"], made))


if __name__ == "__main__":
    main()
