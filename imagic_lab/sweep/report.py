"""The results of a sweep: results.csv, errors.csv, report.html and a contact sheet, all written anew from its folder.

They are written edit by edit: ten thousand need no more memory than one. The page's template is report.html.
"""

import base64
import csv
import io
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from textwrap import shorten

import jinja2
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from imagic_lab.sweep.table import Job
from imagic_lab.sweep.work import FACTS, Setup, public, read_results, settled_jobs
from imagic_lib.files import check_regular, write_atomically
from imagic_lib.folder import INPUT_FILE

SETTINGS = ("name", "row", "image", "text", "model", "method", "embedding_steps", "unet_steps", "seed", "scale")
EMBEDDED = 3000  # thumbnails inside report.html; more would make it slow, so then the pictures are linked
THUMBNAIL = 128  # pixels
SHEET_ROWS, CELL, LINE, GAP = 40, 112, 20, 6  # edits on the contact sheet; its pictures, lines of text, gaps in pixels


def write_report(out: Path, jobs: list[Job], setup: Setup) -> tuple[int, int]:
    """Write all four files. Returns how many jobs are done and how many failed in this start."""
    done, failed = settled_jobs(jobs, setup)
    header = ("job", *SETTINGS[1:], "eta", "noise_seed", "file", "distance", "psnr")
    write_csv(out / "results.csv", header, result_rows(done, setup))
    errors = ([job.row, job.name, public(job.image), job.text, error] for job, error in failed)
    write_csv(out / "errors.csv", ("row", "job", "image", "text", "error"), errors)
    write_page(out / "report.html", done, failed, setup)
    write_contact_sheet(out / "contact-sheet.png", done, setup)
    return len(done), len(failed)


def facts_in(done: Iterable[Job], setup: Setup) -> Iterator[tuple[Job, dict]]:
    """Each job with the facts in its folder, which are read when they are needed."""
    return ((job, {"pictures": []} | read_results(setup.folder(job) / FACTS)) for job in done)


def result_rows(done: Iterable[Job], setup: Setup) -> Iterator[list]:
    """A row for each picture."""
    for job, facts in facts_in(done, setup):
        settings = [getattr(job, name) for name in SETTINGS]
        settings = [public(value) if isinstance(value, str) else value for value in settings]
        for one in facts["pictures"]:
            yield [*settings, one["eta"], one["seed"], f"edits/{job.name}/{one['file']}", one["distance"], one["psnr"]]


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    def plain(cell: object) -> object:
        """A text that a spreadsheet takes for no formula."""
        return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(map(plain, row) for row in chain([header], rows))

    write_atomically(path, write)


def write_page(path: Path, done: list[Job], failed: list[tuple[Job, str]], setup: Setup) -> None:
    """report.html: one file, which needs no network. Its thumbnails are inside, unless there are too many."""
    embed = sum(len(job.etas) * len(job.seeds) + 1 for job in done) <= EMBEDDED

    def source(job: Job, name: str) -> str:
        return thumbnail(setup.folder(job) / name) if embed else f"edits/{job.name}/{name}"

    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(template)
    known = {
        "setup": setup,
        "source": source,
        "public": public,
        "Path": Path,
        "input_file": INPUT_FILE,
        "failed": failed,
    }
    etas = sorted({eta for job in done for eta in job.etas})
    parts = page.stream(edits=facts_in(done, setup), etas=etas, **known)
    write_atomically(path, lambda temporary: parts.dump(str(temporary), "utf-8", "backslashreplace"))


def thumbnail(path: Path) -> str:
    """A picture as a small JPEG inside an address."""
    buffer, small = io.BytesIO(), picture_in(path)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def picture_in(path: Path) -> Image.Image:
    """A picture of an edit; a grey one in the place of a file that is gone, damaged, or a link to somewhere else."""
    try:
        check_regular(path)
        with Image.open(path, formats=("PNG",)) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return Image.new("RGB", (CELL, CELL), "grey")


def write_contact_sheet(path: Path, done: list[Job], setup: Setup) -> None:
    """The first edits, each with its text, the input, and a picture for each η at the first seed."""
    found = [(job, facts) for job, facts in facts_in(done[:SHEET_ROWS], setup) if facts["pictures"]]
    if not found:
        return path.unlink(missing_ok=True)  # of a sweep of other rows
    width, height = GAP + (1 + max(len(job.etas) for job, _ in found)) * (CELL + GAP), CELL + 2 * LINE + GAP
    sheet = Image.new("RGB", (width, GAP + len(found) * height), "white")
    draw, font = ImageDraw.Draw(sheet), findfont("DejaVu Sans")  # matplotlib's own, which has the letter η
    large, small = ImageFont.truetype(font, 14), ImageFont.truetype(font, 11)
    for top, (job, facts) in zip(range(GAP, sheet.height, height), found, strict=True):
        draw.text((GAP, top), shorten(job.text, width // 9, placeholder="…"), "black", large)
        cells = [(f"η = {one['eta']:g}", one["file"]) for one in facts["pictures"] if one["seed"] == job.seeds[0]]
        for left, (words, name) in zip(range(GAP, width, CELL + GAP), [("input", INPUT_FILE), *cells], strict=False):
            if (file := setup.folder(job) / name).is_file():
                sheet.paste(picture_in(file).resize((CELL, CELL)), (left, top + LINE))
            draw.text((left, top + LINE + CELL + 2), words, "#444444", small)
    write_atomically(path, lambda temporary: sheet.save(temporary, format="PNG"))
