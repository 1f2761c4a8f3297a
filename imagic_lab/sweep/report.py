"""Write the results of a sweep, results.csv, errors.csv and report.html, afresh from its folder.

They are written edit by edit, so that ten thousand need no more memory than one. The page's template is report.html.
"""

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import jinja2

from imagic_lab.sweep.table import Job
from imagic_lab.sweep.work import FACTS, Setup, public, read_results, settled_jobs
from imagic_lib.files import write_atomically
from imagic_lib.folder import INPUT_FILE

SETTINGS = ("name", "row", "image", "text", "model", "method", "embedding_steps", "unet_steps", "seed", "scale")


def write_report(out: Path, jobs: list[Job], setup: Setup) -> tuple[int, int]:
    """Write all three files. Returns how many jobs are done and how many have failed since this start."""
    done, failed = settled_jobs(jobs, setup)
    header = ("job", *SETTINGS[1:], "eta", "noise_seed", "file", "distance", "psnr")
    write_csv(out / "results.csv", header, result_rows(done, setup))
    errors = ([job.row, job.name, public(job.image), job.text, error] for job, error in failed)
    write_csv(out / "errors.csv", ("row", "job", "image", "text", "error"), errors)
    write_page(out / "report.html", done, failed, setup)
    return len(done), len(failed)


def facts_in(done: Iterable[Job], setup: Setup) -> Iterator[tuple[Job, dict]]:
    """Yield each job with the facts in its folder, reading them only when they are needed."""
    return ((job, {"pictures": []} | read_results(setup.folder(job) / FACTS)) for job in done)


def result_rows(done: Iterable[Job], setup: Setup) -> Iterator[list]:
    """Yield a row for each picture."""
    for job, facts in facts_in(done, setup):
        settings = [getattr(job, name) for name in SETTINGS]
        settings = [public(value) if isinstance(value, str) else value for value in settings]
        for one in facts["pictures"]:
            yield [*settings, one["eta"], one["seed"], f"edits/{job.name}/{one['file']}", one["distance"], one["psnr"]]


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    def plain(cell: object) -> object:
        """Return a text that no spreadsheet takes for a formula."""
        return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(map(plain, row) for row in chain([header], rows))

    write_atomically(path, write)


def write_page(path: Path, done: list[Job], failed: list[tuple[Job, str]], setup: Setup) -> None:
    """Write report.html, which needs no network. It links to the pictures in the folders of the edits."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(template)
    known = {"setup": setup, "public": public, "Path": Path, "input_file": INPUT_FILE, "failed": failed}
    etas = sorted({eta for job in done for eta in job.etas})
    parts = page.stream(edits=facts_in(done, setup), etas=etas, **known)
    write_atomically(path, lambda temporary: parts.dump(str(temporary), "utf-8", "backslashreplace"))
