"""The site: its links and anchors, what is folded, and how it behaves in a browser, on a laptop and on a phone.

It is built once, from the stored notebooks. What npm brings (formulas, slides, axe-core) is used if it is there; the
tests pass without it.
"""

from __future__ import annotations

import functools
import re
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from imagic_lab import book
from tests.lab.studio.test_browser import NAMELESS

ELSEWHERE = re.compile(r"https?:|//")
CHAPTERS = sorted(path.with_suffix(".html").name for path in book.NOTEBOOKS.glob("[0-9]*.ipynb"))
AXE = book.MODULES / "axe-core" / "axe.min.js"


class Page(HTMLParser):
    """What a page refers to, what can be referred to, and what can be read without unfolding anything."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.parts, self.ids, self.folds, self.open_text = [], [], [], 0, ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.ids += [known["id"]] if "id" in known else []
        self.folds += tag == "details"
        places = [known[name] for name in ("href", "src", "action") if name in known]
        (self.links if tag == "a" else self.parts).extend(places)

    def handle_endtag(self, tag):
        self.folds -= tag == "details"

    def handle_data(self, data):
        self.open_text += "" if self.folds else data


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, with a live page that stands in for the real one."""
    folder = tmp_path_factory.mktemp("somewhere")
    (folder / "live").mkdir()
    for name in ("index.html", "imagic.html"):
        (folder / "live" / name).write_text("<!doctype html><title>live</title>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "BUILD", folder)
        book.main()
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    return {path.name: Page(path) for path in sorted(site.glob("*.html"))}


def test_every_link_leads_to_a_file_and_an_anchor(site, pages):
    for name, page in pages.items():
        for link in [one for one in page.links + page.parts if not ELSEWHERE.match(one)]:
            place, _, anchor = link.partition("#")
            assert link.startswith("data:") or (site / (place or name)).is_file(), f"{name}: {link}"
            assert not anchor or unquote(anchor) in pages[place or name].ids, f"{name}: {link}"


def test_an_anchor_is_there_once(pages):
    assert not [name for name, page in pages.items() if len(page.ids) != len(set(page.ids))]


def test_nothing_but_links_to_click_leaves_the_site(site, pages):
    assert not [(name, part) for name, page in pages.items() for part in page.parts if ELSEWHERE.match(part)]
    assert not [path for path in (site / "book.css", site / "book.js") if re.search("https?:", path.read_text())]
    assert {link.split("/")[2] for page in pages.values() for link in page.links if ELSEWHERE.match(link)} <= {
        "arxiv.org", "colab.research.google.com", "github.com", "huggingface.co"}  # fmt: skip


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_its_neighbours_its_downloads_and_keeps_its_results_to_itself(pages, name):
    page, at, notebook = pages[name], CHAPTERS.index(name), name.replace(".html", ".ipynb")
    expected = {"live/index.html", f"downloads/student/{notebook}", f"downloads/teacher/{notebook}"}
    expected |= set(CHAPTERS[max(at - 1, 0) : at + 2])
    assert expected <= set(page.links) and any("colab.research.google.com" in link for link in page.links)
    assert "measured: " not in page.open_text and "right, 1 point" not in page.open_text
    assert "not attempted yet" not in page.open_text and "home, address, tag =" not in page.open_text


def test_a_slide_shows_the_stored_figure_and_the_notes_of_the_speaker(site):
    slides = (site / "slides.html").read_text(encoding="utf-8")
    assert slides.count("<section>") == slides.count('<aside class="notes">') > 20
    asked, answered = (re.findall(rf'class="{kind}" data-key="([^"]+)"', slides) for kind in ("predict", "result"))
    assert asked == answered and len(asked) > 5  # a question without its answer would leave the speaker alone
    assert sum(map(int, re.findall(r"● (\d+) minute", slides))) == 50
    assert 'data-key="00.cat"><div><input type="range"' in slides and "measured: none or one (0 of 8)" in slides


def test_without_npm_no_page_asks_for_what_npm_would_bring(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "MODULES", tmp_path / "not-there")
    made = book.build_site(tmp_path / "site", tmp_path / "no-live-page")
    assert not [path for path in made.out.glob("*.html") if re.search("vendor/|live/", path.read_text("utf-8"))]


def test_code_that_only_asks_and_imports_are_told_from_the_rest():
    asks = 'options = ["a", "b"]\npredict(\n    "02.x", "Which?",\n    options,\n)\n'
    assert book.QUESTION.fullmatch(asks) and not book.QUESTION.fullmatch("z = draw()\n" + asks)
    assert book.IMPORTS.match("import a\n\nfrom b import c\n\nx = 1\n")[0] == "import a\n\nfrom b import c\n\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[x](nowhere.md)", "slides.md links to nowhere.md, which is not there"),
        ("[result 02.nothing]", "slides.md asks for “result 02.nothing”, and no notebook stores that"),
        ("[figure 02.nothing]", "“02.nothing” is not in notebooks/alt.toml"),
    ],
)
def test_what_a_document_asks_for_in_vain_is_named(tmp_path, monkeypatch, text, sentence):
    monkeypatch.setattr(book, "NOTEBOOKS", tmp_path)  # none
    with pytest.raises(ValueError, match=re.escape(sentence)):
        book.Site(tmp_path).document(text, book.COURSE / "slides.md")


# -- in a browser


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def reader(site, browser):
    """(an empty page, the site's address below a path, what the page complained about or asked of others)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, trouble = f"http://127.0.0.1:{server.server_port}/site/", []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda said: trouble.append(said.text) if said.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else trouble.append(r.url))
    yield page, address, trouble
    page.close()
    server.shutdown()


def test_browser_every_page_fits_a_laptop_and_a_phone(reader, pages):
    page, address, trouble = reader
    for name in pages:
        page.goto(address + name)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        for width in (1280, 390, 320):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} at {width}"
        assert not page.locator("img:not([alt])").count(), name
        assert not NAMELESS.search(page.locator("body").aria_snapshot()), name
    assert trouble == []


@pytest.mark.parametrize("width", [1280, 390])
def test_browser_a_slider_a_prediction_and_a_film(reader, width):
    page, address, trouble = reader
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(address + CHAPTERS[0])
    slider = page.locator("input[type=range]").first
    seen = (
        "one => [...one.parentNode.querySelectorAll('figure')].map(f => f.querySelector('img:not([style*=none])').src)"
    )
    before = slider.evaluate(seen)
    slider.press("End")
    after = slider.evaluate(seen)
    assert before[0] == after[0] and before[1] != after[1] and before[2] == after[2]  # input, edit, ground truth
    page.get_by_label("this cat, but orange").check()
    page.locator(".result summary").first.click()
    page.get_by_text("You said: this cat, but orange. What did you overlook?").wait_for()
    page.get_by_text("Your predictions: 0 of 1 right, 0 still open.").wait_for()
    page.goto(address + CHAPTERS[2])
    page.get_by_role("button", name="Stop").first.click()
    assert page.locator(".film canvas").first.is_visible() and not page.locator(".film img").first.is_visible()
    assert trouble == []


def test_browser_the_search_finds_the_section(reader):
    page, address, trouble = reader
    page.goto(address + "index.html")
    page.get_by_role("searchbox").fill("blue collar")
    page.get_by_role("searchbox").press("Enter")
    page.get_by_role("link", name="02 · Stage 1: the embedding: Ask for a detail").click()
    page.wait_for_url("**/02_embedding.html#ask-for-a-detail")
    assert trouble == []


def test_browser_the_handout_is_one_page_of_paper(reader):
    page, address, _ = reader
    page.goto(address + "handout.html", wait_until="networkidle")
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4", print_background=True))) == 1


def test_browser_the_short_slides_are_those_of_50_minutes(reader):
    page, address, trouble = reader
    page.goto(address + "slides.html?short")
    notes = page.locator(".notes").all_text_contents()
    assert 15 < len(notes) < 25 and all("●" in note for note in notes)
    assert trouble == []


@pytest.mark.parametrize(("width", "name", "theme"), [
    (1280, "00_first_edit", "light"), (390, "10_lora", "dark"), (390, "index", "dark"), (1280, "slides", "light"),
    (390, "slides", "light"),
])  # fmt: skip
def test_browser_axe_has_no_complaint(reader, width, name, theme):
    page, address, _ = reader
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{address}{name}.html", wait_until="networkidle")
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    if AXE.is_file():
        page.evaluate(AXE.read_text(encoding="utf-8"))
        complaints = page.evaluate("axe.run().then(told => told.violations.map(one => [one.id, one.nodes[0].html]))")
    else:  # what axe would say first: names, alternative texts, one main heading
        complaints = NAMELESS.findall(page.locator("body").aria_snapshot())
        complaints += page.locator("img:not([alt])").all_inner_texts()
        complaints += [] if name == "slides" or page.locator("h1").count() == 1 else ["h1"]
    assert complaints == []
