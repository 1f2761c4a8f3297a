"""Build the site: notebooks, course and glossary as pages, slides, downloads and a search. This is `make site`.

python -m imagic_lab.book            # writes build/site/, static files that work below any path and without a network

Nothing is run, because the pages show the outputs stored in the notebooks. Templates, style and script are in
docs/book/. Formulas and slides need docs/book/node_modules (`npm ci --prefix docs/book`). Without it, formulas stay in
TeX, and the slides are a page to scroll. If there is a build/live/, the site includes the live page.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import sys
from pathlib import Path

import jinja2
import nbformat
from nbconvert.filters import Highlight2HTML, markdown2html

from imagic_lab.classroom.build import BADGE, NOTEBOOKS, ROOT
from imagic_lab.classroom.course import entry
from imagic_lab.classroom.editions import BUILD, LEFT_OUT, edition, hand_out
from imagic_lab.classroom.maps import the_map

BOOK, COURSE = ROOT / "docs" / "book", ROOT / "docs" / "course"
MODULES = BOOK / "node_modules"
VENDOR = ["mathjax/es5/tex-svg.js", "mathjax/LICENSE", *(f"reveal.js/{name}" for name in ("dist/reveal.js",
          "dist/reveal.css", "plugin/notes/notes.js", "LICENSE"))]  # fmt: skip
LESSON = ("README", "handout", "projects", "misconceptions", "discussion", "glossary")  # the course, in this order
HEADING = re.compile(r'<h([1-6]) id="[^"]*">(.*?)<a class="anchor-link".*?</a></h\1>', re.DOTALL)
LINK = re.compile(r'(<(?:a|img)\b[^>]*?\b(?:href|src)=")(?![a-z]+:|#)([^"#]*)', re.DOTALL)
KEY = re.compile(r'(?:predict|reveal)\(\s*"([^"]+)"')
IMPORTS = re.compile(r"(?:(?:import|from) .*\n|\n)*")  # at the top of a cell
QUESTION = re.compile(r"(?:(?:options = |predict\(|[ \])]).*\n|\n)*")  # code that only asks for a prediction
SILENT = re.compile(r"<(pre|details|style)\b.*?</\1>", re.DOTALL)  # left out of the search, which would find too much
FIGURE = re.compile(r"^\[(figure|map|predict|result) ([^\]]+)\]$", re.MULTILINE)


def slug(title: str) -> str:
    """Return the anchor of a heading as GitHub makes it, so that links between documents also work here."""
    return re.sub(r"[^\w\- ]", "", html.unescape(re.sub(r"<.*?>", "", title)).lower()).replace(" ", "-")


def markdown(text: str) -> str:
    code = HEADING.sub(lambda m: f'<h{m[1]} id="{slug(m[2])}">{m[2]}</h{m[1]}>', markdown2html(text))
    code = re.sub(r"<th[^>]*></th>", "<td></td>", code)  # the empty corner of a table is not a heading
    return code.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def page_of(source: Path) -> str:
    """Return the name of a document's page, such as 02_embedding.html, glossary.html or data-reader.html."""
    if source.parent in (NOTEBOOKS, COURSE):
        return ("course" if source.stem == "README" else source.stem) + ".html"
    parts = source.relative_to(ROOT).with_suffix("").parts
    return "-".join(part for part in parts if part != "README") + ".html"


def output_html(output: nbformat.NotebookNode) -> str:
    """Return one stored output as HTML."""
    if output.output_type == "stream":
        return f'<pre class="out">{html.escape(output.text.strip())}</pre>' if output.text.strip() else ""
    if "text/html" in output.data:
        return output.data["text/html"]
    if "text/markdown" in output.data:
        return markdown(output.data["text/markdown"])
    alt = output.metadata.get("image/png", {}).get("alt", "")
    return f'<img class="plot" alt="{html.escape(alt)}" src="data:image/png;base64,{output.data["image/png"]}">'


def merged_outputs(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return the outputs with consecutive prints merged into one, and without the stubs' "not attempted yet"."""
    kept = []
    for output in map(nbformat.from_dict, outputs):
        if output.output_type == "stream":
            output.text = re.sub(r"^not attempted yet: .*$", "", output.text, flags=re.MULTILINE)
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        kept.append(output)
    return kept


def shown_cells(notebook: nbformat.NotebookNode) -> list[dict]:
    """Return, for each cell, what the template shows: its tags, its Markdown or code as HTML, and its outputs."""
    colour, cells = Highlight2HTML(), []
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "markdown":
            cells.append({"tags": tags, "text": markdown(BADGE.sub("", cell.source))})
        elif "colab" not in tags and not cell.source.startswith("score("):
            shown = "".join(map(output_html, merged_outputs(cell.outputs)))
            imports = IMPORTS.match(cell.source + "\n")[0]
            code, key = cell.source[len(imports) :], KEY.search(cell.source)
            known = {
                "key": key and key[1],
                "asks": QUESTION.fullmatch(code + "\n"),
                "imports": imports and colour(imports),
            }
            cells.append({"tags": tags, "code": colour(code), "shown": shown, **known})
    return cells


def stored_figures(notebooks: dict[Path, nbformat.NotebookNode]) -> dict[str, str]:
    """Return the parts of stored outputs that documents can show: figures by their alternative text, predictions by
    "predict 02.reader", and measured results by "result 02.reader"."""
    found = {}
    for cell in (cell for notebook in notebooks.values() for cell in shown_cells(notebook) if "code" in cell):
        for kind in {"predict", "reveal"} & cell["tags"]:
            found[f"{kind} {cell['key']}".replace("reveal", "result")] = cell["shown"]
    for output in (o for n in notebooks.values() for c in n.cells for o in c.get("outputs", [])):
        if "text/html" in output.get("data", {}):
            found[output.data["text/plain"]] = output.data["text/html"]
    return found


class Site:
    """The pages written so far, the documents to which they link, and the index of the search."""

    def __init__(self, out: Path):
        self.out, self.index, self.titles, self.waiting = out, [], {}, []
        self.notebooks = {p: nbformat.read(p, as_version=4) for p in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))}
        self.found = stored_figures(self.notebooks)
        self.live, self.single = ((out / "live" / name).is_file() for name in ("index.html", "imagic.html"))
        self.vendor = MODULES.is_dir()
        self.jinja = jinja2.Environment(loader=jinja2.FileSystemLoader(BOOK), trim_blocks=True, lstrip_blocks=True)

    def linked(self, code: str, source: Path) -> str:
        """Return a document's HTML with links that lead to pages of the site, or to copies of files in files/."""

        def led(found: re.Match) -> str:
            target = Path(os.path.normpath(source.parent / html.unescape(found[2])))
            if not target.is_file():
                raise ValueError(f"{source.relative_to(ROOT)} links to {found[2]}, which is not there")
            if target in self.notebooks or target.suffix == ".md":
                self.waiting.append(target)
                return found[1] + page_of(target)
            copy = self.out / "files" / target.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, copy)
            return found[1] + copy.relative_to(self.out).as_posix()

        return LINK.sub(led, code)

    def document(self, text: str, source: Path) -> str:
        """Convert Markdown to HTML with links as in `linked`. `[figure 02.path]`, `[map stage 1]`, `[predict 02.best]`
        or `[result 02.best]`, alone on a line, is replaced by the stored output."""
        pieces = FIGURE.split(text)  # text, kind, key, text, …
        code = markdown(pieces[0])
        for kind, key, more in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
            code += self.figure(kind, key, source) + markdown(more)
        return self.linked(code, source)

    def figure(self, kind: str, key: str, source: Path) -> str:
        name = entry("alt", key) if kind == "figure" else f"{kind} {key}"
        code = the_map(key).html if kind == "map" else self.found.get(name)
        if code is None:
            raise ValueError(f"{source.relative_to(ROOT)} asks for “{kind} {key}”, and no notebook stores that")
        if kind == "predict":  # without the figures before the question
            code = code[code.rindex("<b>Predict.</b>") :]
        if kind == "result":
            code = re.search("measured: [^<\n]*", code)[0]
        return f'\n<div class="{kind}" data-key="{key}">{code}</div>\n'

    def write(self, name: str, template: str = "page.html", body: str = "", **more) -> None:
        """Write one page, and index its sections for the search."""
        parts = re.split(r'(<h[1-3] id="[^"]*">.*?</h[1-3]>)', SILENT.sub(" ", body), flags=re.DOTALL)
        pairs = zip(parts[1::2], parts[2::2], strict=True)
        sections = [(re.search(r'id="([^"]*)"', h)[1], read_aloud(h), read_aloud(t)) for h, t in pairs]
        title = sections[0][1] if sections else more.get("title", "Imagic, taught")
        self.index += [{"page": name, "in": title, "id": id, "title": h, "text": text} for id, h, text in sections]
        known = {"title": title, "name": name, "body": body, "site": self, "sections": sections[1:], **more}
        (self.out / name).write_text(self.jinja.get_template(template).render(known), encoding="utf-8")

    def chapter(self, source: Path, before: str, after: str) -> None:
        """Write the page of a notebook, and its two editions to download."""
        notebook = self.notebooks[source]
        colab = BADGE.search(notebook.cells[0].source)[0].rpartition("(")[2].rstrip(")")
        body = self.jinja.get_template("cells.html").render(cells=shown_cells(notebook))
        more = {"colab": colab, "notebook": source.name, "before": before, "after": after}
        self.write(page_of(source), body=self.linked(body, source), **more)
        for kind in LEFT_OUT:
            nbformat.write(edition(notebook, kind), self.out / "downloads" / kind / source.name)

    def slides(self) -> None:
        """Write the slides of docs/course/slides.md, separated by lines of ---, with speaker's notes below "Note:"."""
        source, slides = COURSE / "slides.md", []
        for part in source.read_text(encoding="utf-8").split("\n---\n"):
            shown, _, notes = part.partition("\nNote:")
            slides.append({"shown": self.document(shown, source), "notes": markdown(notes)})
        self.write("slides.html", "slides.html", title="Slides", slides=slides)


def read_aloud(code: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", code)).split())


def welcome() -> str:
    """Return the beginning of the README and its table of notebooks."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, _, rest = text.partition("\n## Start\n")
    table = rest.partition("\n## The course\n")[2].partition("\n\nEvery notebook")[0]
    return f"{begin}\n\n## The notebooks\n{table}"


def build_site(out: Path, live: Path) -> Site:
    """Empty the folder `out` and write the site into it. live: folder of the live page, if it was built."""
    shutil.rmtree(out, ignore_errors=True)
    for kind in LEFT_OUT:
        (out / "downloads" / kind).mkdir(parents=True)
    if live.is_dir():
        shutil.copytree(live, out / "live")
    site = Site(out)
    for name in VENDOR if site.vendor else []:
        (out / "vendor" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(MODULES / name, out / "vendor" / name)
    for name in ("book.css", "book.js"):
        shutil.copy(BOOK / name, out / name)
    sources = list(site.notebooks)
    site.titles = {page_of(p): read_aloud(markdown(site.notebooks[p].cells[0].source.split("\n")[0])) for p in sources}
    for source, before, after in zip(sources, ["", *site.titles], [*list(site.titles)[1:], ""], strict=False):
        site.chapter(source, before, after)
    site.slides()
    site.write("index.html", body=site.document(welcome(), ROOT / "README.md"), home=True)
    site.waiting += [COURSE / f"{name}.md" for name in LESSON]
    for source in site.waiting:  # writing a page can add more
        if source.suffix == ".md" and not (out / page_of(source)).exists():
            site.write(page_of(source), body=site.document(source.read_text(encoding="utf-8"), source))
    site.write("search.html", title="Search", search=True)
    (out / "search-index.js").write_text(f"const INDEX = {json.dumps(site.index, ensure_ascii=False)};", "utf-8")
    hand_out(out / "downloads" / "imagic-student.zip")
    shutil.make_archive(str(out / "downloads" / "imagic-teacher"), "zip", out / "downloads" / "teacher")
    return site


def main() -> None:
    site = build_site(BUILD / "site", BUILD / "live")
    print(f"{len(list(site.out.glob('*.html')))} pages in {site.out}")
    if not site.vendor:
        print("formulas stay in TeX and slides scroll until you run: npm ci --prefix docs/book", file=sys.stderr)
    if not site.live:
        print("the live page is missing: make build/live", file=sys.stderr)


if __name__ == "__main__":
    main()
