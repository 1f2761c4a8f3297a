"""What came of a sweep: results.csv, errors.csv, report.html and a contact sheet. Written anew from the finished edits.

All of it is written job by job: ten thousand of them need no more memory than one.
"""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from imagic_lab.sweep.table import Job
from imagic_lab.sweep.work import FACTS, Setup, failed_before, read_json
from imagic_lib.folder import INPUT_FILE
from imagic_lib.training.checkpoints import write_atomically

RESULTS, ERRORS, REPORT, SHEET = "results.csv", "errors.csv", "report.html", "contact-sheet.png"
SETTINGS = ("image", "text", "model", "method", "embedding_steps", "unet_steps", "seed", "scale")
MEASURED = ("eta", "noise_seed", "file", "distance", "psnr")
EMBEDDED = 3000  # thumbnails inside report.html; more would make it slow, and are links to the pictures
THUMBNAIL = 128  # pixels
SHEET_ROWS, CELL = 40, 112  # edits on the contact sheet; pixels of a picture on it


def write_report(out: Path, jobs: list[Job], setup: Setup) -> tuple[int, int]:
    """Write all four files. Returns how many jobs are finished and how many failed in this run."""
    done = sum(setup.folder(job).exists() for job in jobs)
    failures = [(job, read_json(setup.error_file(job))) for job in jobs if failed_before(job, setup)]
    write_csv(out / RESULTS, ("job", "row", *SETTINGS, *MEASURED), result_rows(jobs, setup))
    rows = ([job.row, job.name, job.image, job.text, found["error"]] for job, found in failures)
    write_csv(out / ERRORS, ("row", "job", "image", "text", "error"), rows)
    write_text(out / REPORT, page(jobs, setup, failures))
    contact_sheet(out / SHEET, jobs, setup)
    return done, len(failures)


def finished(jobs: Iterable[Job], setup: Setup) -> Iterator[tuple[Job, dict]]:
    """The jobs that are done, each with what its folder says."""
    for job in jobs:
        if (path := setup.folder(job) / FACTS).is_file():
            yield job, read_json(path)


def result_rows(jobs: list[Job], setup: Setup) -> Iterator[list]:
    """A row for each picture."""
    for job, facts in finished(jobs, setup):
        for one in facts.get("pictures", []):
            file = f"edits/{job.name}/{one['file']}"
            measured = [one["eta"], one["seed"], file, one["distance"], one["psnr"]]
            yield [job.name, job.row, *(getattr(job, name) for name in SETTINGS), *measured]


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(chain([header], rows))

    write_atomically(path, write)


def write_text(path: Path, parts: Iterable[str]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(parts)

    write_atomically(path, write)


# -- report.html: one file, read without a network


STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 0 1.5rem 3rem; max-width: 84rem; }
header { position: sticky; top: 0; background: Canvas; padding: 1rem 0 .8rem; border-bottom: 1px solid var(--line);
  z-index: 1; }
h1 { font-size: 1.35rem; margin: 0 0 .6rem; }
form { display: flex; flex-wrap: wrap; gap: .6rem 1.4rem; align-items: baseline; }
input, select { font: inherit; padding: .2rem .45rem; }
input { width: 19rem; max-width: 80vw; }
section { border-bottom: 1px solid var(--line); padding: 1rem 0 .9rem; content-visibility: auto;
  contain-intrinsic-size: auto 15rem; }
h2 { font-size: 1.05rem; margin: 0; }
section p { margin: .1rem 0 .6rem; color: var(--quiet); font-size: .85rem; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; margin-bottom: .4rem; }
figure { margin: 0; width: 8rem; }
figure img { width: 8rem; height: 8rem; object-fit: cover; display: block; border-radius: 4px; background: #8882; }
figcaption { font-size: .78rem; color: var(--quiet); padding-top: .15rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; font-size: .9rem; }
td, th { border: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
[hidden] { display: none !important; }
"""
SCRIPT = """
const text = document.getElementById("text"), eta = document.getElementById("eta");
const shown = document.getElementById("shown"), edits = [...document.querySelectorAll("section[data-text]")];
function filter() {
  const words = text.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  for (const edit of edits) {
    const figures = [...edit.querySelectorAll("figure[data-eta]")];
    for (const one of figures) one.hidden = eta.value !== "" && one.dataset.eta !== eta.value;
    const fits = words.every(word => edit.dataset.text.includes(word));
    edit.hidden = !fits || (figures.length > 0 && figures.every(one => one.hidden));
    if (!edit.hidden) count += 1;
  }
  shown.textContent = `${count} of ${edits.length} edits`;
}
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
text.addEventListener("input", filter);
eta.addEventListener("change", filter);
filter();
"""


def page(jobs: list[Job], setup: Setup, failures: list[tuple[Job, dict]]) -> Iterator[str]:
    """The parts of report.html, one edit after the other."""
    etas = sorted({eta for job in jobs for eta in job.etas})
    embed = sum(len(job.etas) * len(job.seeds) + 1 for job in jobs) <= EMBEDDED
    yield f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Sweep</title>\n<style>{STYLE}</style>\n'
    yield '<meta name="viewport" content="width=device-width">\n<header>\n<h1>Sweep</h1>\n<form>\n'
    yield '<label>Text <input id="text" type="search" placeholder="words of the text"></label>\n'
    yield '<label>η <select id="eta"><option value="">all</option>'
    yield from (f'<option value="{eta:g}">{eta:g}</option>' for eta in etas)
    yield '</select></label>\n<output id="shown"></output>\n</form>\n</header>\n<main>\n'
    for job, facts in finished(jobs, setup):
        yield from section(job, facts, setup.folder(job), embed)
    yield "</main>\n"
    yield from error_table(failures)
    yield f"<script>{SCRIPT}</script>\n</html>\n"


def section(job: Job, facts: dict, folder: Path, embed: bool) -> Iterator[str]:
    """One edit: what it is, then a row of pictures for each seed, the input at its start."""
    about = [f"row {job.row}", Path(job.image).name, job.model, job.method]
    about += [f"{job.embedding_steps} + {job.unet_steps} steps", f"training seed {job.seed}", f"scale {job.scale:g}"]
    yield f'<section data-text="{html.escape(job.text.lower())}">\n<h2>{html.escape(job.text)}</h2>\n'
    yield f"<p>{html.escape(' · '.join(about + facts.get('notes', [])))}</p>\n"
    for seed in job.seeds:
        yield '<div class="row">\n'
        if (folder / INPUT_FILE).is_file():
            yield figure(folder / INPUT_FILE, "", "input", embed)
        for one in facts.get("pictures", []):
            if one["seed"] == seed:
                words = f"η {one['eta']:g} · seed {seed}<br>PSNR {one['psnr']:.1f} dB"
                yield figure(folder / one["file"], f' data-eta="{one["eta"]:g}"', words, embed)
        yield "</div>\n"
    yield "</section>\n"


def figure(path: Path, attribute: str, words: str, embed: bool) -> str:
    """A picture that links to its file. words: HTML."""
    link = f"edits/{path.parent.name}/{path.name}"
    source = thumbnail(path) if embed else link
    alt = html.escape(words.replace("<br>", ", "))
    picture = f'<a href="{link}"><img loading="lazy" alt="{alt}" src="{source}"></a>'
    return f"<figure{attribute}>{picture}<figcaption>{words}</figcaption></figure>\n"


def thumbnail(path: Path) -> str:
    """A picture as a small JPEG inside an address."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def error_table(failures: list[tuple[Job, dict]]) -> Iterator[str]:
    if failures:
        yield "<h1>Failed</h1>\n<table>\n<tr><th>row<th>picture<th>text<th>what was wrong\n"
    for job, found in failures:
        cells = (str(job.row), Path(job.image).name, job.text, found["error"])
        yield "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + "\n"
    if failures:
        yield "</table>\n"


# -- the contact sheet


def contact_sheet(path: Path, jobs: list[Job], setup: Setup) -> None:
    """The first edits, one a line: the input, and a picture for each η, at the first seed and with its η below."""
    found = list(islice(finished((job for job in jobs), setup), SHEET_ROWS))
    found = [(job, facts) for job, facts in found if facts.get("pictures")]
    if not found:
        path.unlink(missing_ok=True)  # of a sweep of other rows
        return
    head, foot, gap = 22, 18, 6
    columns = 1 + max(len(job.etas) for job, _ in found)
    height = head + CELL + foot + gap
    sheet = Image.new("RGB", (gap + columns * (CELL + gap), gap + len(found) * height), "white")
    draw, large, small = ImageDraw.Draw(sheet), font(14), font(11)
    for k, (job, facts) in enumerate(found):
        top, folder = gap + k * height, setup.folder(job)
        draw.text((gap, top), shortened(draw, job.text, large, sheet.width - 2 * gap), "black", large)
        row = [("input", INPUT_FILE)]
        row += [(f"η = {one['eta']:g}", one["file"]) for one in facts["pictures"] if one["seed"] == job.seeds[0]]
        for column, (words, name) in enumerate(row):
            left = gap + column * (CELL + gap)
            if (folder / name).is_file():
                with Image.open(folder / name) as picture:
                    sheet.paste(
                        picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS), (left, top + head)
                    )
            draw.text((left, top + head + CELL + 2), words, "#444444", small)
    write_atomically(path, lambda tmp: sheet.save(tmp, format="PNG"))


def font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which has the letter η."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def shortened(draw: ImageDraw.ImageDraw, text: str, face: ImageFont.FreeTypeFont, width: int) -> str:
    """One line of a text, cut where it would not fit. width: pixels."""
    text = " ".join(text.split())
    if draw.textlength(text, face) <= width:
        return text
    while text and draw.textlength(text + "…", face) > width:
        text = text[: -1 - len(text) // 20]
    return text + "…"
