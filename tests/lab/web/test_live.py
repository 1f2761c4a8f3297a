"""The live page in Chromium, with a small random model: its numbers are Python's, and it can be used by everybody.

All tests share one export and one Chromium. They need the packages of docs/live (`npm ci` there), Debian's Chromium and
playwright, and are skipped without them.
"""

import copy
import functools
import http.server
import json
import re
import threading
from types import SimpleNamespace
from urllib.parse import unquote_plus

import numpy as np
import pytest
import torch
from PIL import Image

import imagic_lib as imagic
from imagic_lab.methods import METHODS
from imagic_lab.web import export
from imagic_lab.web import page as web
from imagic_lib.edit import run_edit
from imagic_lib.pictures import to_picture
from imagic_lib.training.loop import Run

PATIENCE = 120_000  # ms
TEXT, CAPTION = "a brown dog jumping on the grass", "a brown dog sitting on the grass"
STEPS = [3, 3]
AXE = web.MODULES / "axe-core" / "axe.min.js"
BOUND = 1e-3  # of the length of a vector; 1 of 255 in a picture
ASK = """async (asked) => {
    const assets = JSON.parse(document.getElementById("assets").textContent), found = [];
    for (const asset of Object.values(assets)) asset.url = new URL(asset.url, location.href).href;
    const worker = new Worker(assets["engine.js"].url);
    const next = (message) => new Promise((done, fail) => {
        worker.onmessage = ({ data }) => data.is === "error" ? fail(data.reason)
            : ["ready", "trained", "picture", "look"].includes(data.is) && done(data);
        worker.postMessage(message);
    });
    await next({ ask: "load", assets, threads: 1 });
    for (const message of asked) {
        if (message.pixels) message.pixels = Uint8ClampedArray.from(message.pixels);
        const answer = await next(message);
        for (const name of ["e_opt", "pixels"]) if (answer[name]) answer[name] = Array.from(answer[name]);
        found.push(answer);
    }
    worker.terminate();
    return found;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """As a static host answers, without the headers that threads need."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def small(pipe):
    """The small pipeline with weights that float16 holds exactly, as those of the embedded model are."""
    rounded = copy.deepcopy(pipe)
    for network in (rounded.text_encoder, rounded.vae, rounded.unet):
        network.half().float()
    return rounded


@pytest.fixture(scope="module")
def live(small, tmp_path_factory):
    """The page, built and served: its address and its folder, a folder below the host's root."""
    if not web.MODULES.is_dir():
        pytest.skip("the packages of the live page are missing: npm ci in docs/live")
    root = tmp_path_factory.mktemp("host")
    export.write_model(small, root / "model", say=lambda _: None)
    web.build_page(root / "some" / "path", root / "model")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_port}/some/path/", out=root / "some" / "path")
    server.shutdown()


def opened(browser, address: str, width: int = 1280, before: str = ""):
    """A new page at this address. Whatever it asks of another machine is kept in `page.outside`."""
    page = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True).new_page()
    page.set_default_timeout(PATIENCE)
    page.outside = []
    page.on("request", lambda r: re.match("http://127|file:|blob:|data:", r.url) or page.outside.append(r.url))
    if before:
        page.add_init_script(before)
    page.goto(address)
    return page


def ready(page) -> None:
    page.get_by_role("status").filter(has_text="Ready").wait_for()


def trained(page) -> None:
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_text("Move the sliders.").wait_for()
    page.wait_for_selector("body[data-picture]")


def pixels_of(page, canvas: str) -> list[int]:
    return page.evaluate("id => [...document.getElementById(id).getContext('2d').getImageData(0, 0, 128, 128).data]",
                         canvas)  # fmt: skip


# -- the numbers


def test_the_numbers_are_those_of_python(live, browser, small):
    image = imagic.load_image(Image.open(imagic.models.DATA / "images" / "dog-sitting.png"), small)
    input_pixels = np.asarray(to_picture(image).convert("RGBA")).flatten().tolist()
    tries = [("own", 1.0, 0.5), ("own", 0.0, 1.0), ("random", 0.7, 1.0)]
    asked = [{"ask": "train", "pixels": input_pixels, "text": TEXT, "seed": 5, "steps": STEPS, "probeEvery": 10}]
    asked += [
        {"ask": "draw", "id": k + 1, "noise": noise, "eta": eta, "lambda": scale, "seed": 3}
        for k, (noise, eta, scale) in enumerate(tries)
    ]
    untrained = {"ask": "draw", "text": TEXT, "seed": 3}
    asked.append(untrained | {"id": 8, "noise": "random"})
    asked.append(untrained | {"id": 9, "noise": "own", "caption": CAPTION, "pixels": input_pixels})
    page = opened(browser, live.address)
    ready(page)
    assert page.evaluate("crossOriginIsolated")  # so that there are threads, though the host sends no headers
    first, *drawn = page.evaluate(ASK, asked)
    edit = run_edit(small, image, TEXT, embedding_steps=STEPS[0], unet_steps=STEPS[1], seed=5, run=Run(bar=False))
    e_opt = torch.tensor(first["e_opt"]).reshape(edit.e_opt.shape)
    assert (e_opt - edit.e_opt).norm() < BOUND * edit.e_opt.norm()
    assert (edit.e_opt - edit.e_tgt).norm() > 100 * BOUND * edit.e_opt.norm()  # it did learn something
    for stage, history in ("embedding", edit.embedding_history), ("tuning", edit.unet_history):
        assert [step for step, _ in first["history"][stage]] == history.probe_step
        assert [loss for _, loss in first["history"][stage]] == pytest.approx(history.probe_loss, rel=BOUND)
    pictures = [edit.pictures([eta], [3], scale=scale, noise=noise)[0][0] for noise, eta, scale in tries]
    pictures += imagic.generate(small, edit.e_tgt, [3])
    pictures += METHODS["edit-friendly"].start(small, image, TEXT, CAPTION)(1, [3])
    for answer, picture in zip(drawn, pictures, strict=True):
        found = np.array(answer["pixels"], dtype=int).reshape(128, 128, 4)[..., :3]
        assert abs(found - np.asarray(picture, dtype=int)).max() <= 1
    assert not page.outside


# -- the page


@pytest.mark.parametrize("width", [1280, 390])
def test_an_edit_by_keyboard(live, browser, width):
    page = opened(browser, f"{live.address}?threads=1&steps=2,2", width)
    ready(page)
    page.get_by_role("button", name="Draw another by lot").press("Enter")
    before = pixels_of(page, "input")
    page.get_by_role("button", name="a brown dog sitting on the grass").press("Enter")
    assert pixels_of(page, "input") != before
    text = page.get_by_role("textbox", name="What should it show?")
    page.get_by_role("group", name="pose").get_by_role("button", name="standing").press("Enter")
    assert text.input_value() == "a brown dog standing on the grass"
    text.fill("a purple dog on the moon")
    page.get_by_text("The model never saw “purple”").wait_for()
    text.fill("a black dog sitting on the grass")
    text.press("Tab")
    train = page.get_by_role("button", name="Train", exact=True)
    train.press("Enter")
    page.get_by_role("button", name="Pause").press("Enter")
    page.get_by_text(re.compile("^Paused")).wait_for()
    page.get_by_role("button", name="Go on").press("Enter")
    page.get_by_text("Move the sliders.").wait_for()
    page.get_by_label(re.compile("^The probe loss (fell|went) from")).wait_for()
    sliders(page)
    compared(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    accessible(page)
    save_and_share(page, browser)
    assert not page.outside
    page.context.close()


def sliders(page) -> None:
    """η, λ, the noise and the steps each change the picture."""
    page.wait_for_selector("body[data-picture]")
    for move in (
        lambda: page.get_by_role("slider", name="η").press("Home"),
        lambda: page.get_by_role("slider", name="λ").press("End"),
        lambda: page.get_by_role("slider", name="seed").press("ArrowRight"),
        lambda: page.get_by_role("radio", name="random noise").check(),
    ):
        at = page.evaluate("document.body.dataset.picture")
        move()
        page.wait_for_function("at => document.body.dataset.picture !== at", arg=at)
    last = pixels_of(page, "picture")
    page.get_by_role("slider", name="denoising step").press("Home")
    page.get_by_text("what the UNet expects at step 1").wait_for()
    assert pixels_of(page, "picture") != last
    page.get_by_role("slider", name="denoising step").press("End")
    page.get_by_text(re.compile("random noise$")).wait_for()
    assert pixels_of(page, "picture") == last


def compared(page) -> None:
    """Four pictures in a row, each another one, each with a sentence; the last follows the sliders."""
    page.wait_for_selector("body[data-alone][data-inversion]")
    row = page.get_by_role("region", name="Compare")
    figures = [row.get_by_role("figure").nth(k) for k in range(row.get_by_role("figure").count())]
    read = "canvas => canvas.getContext('2d').getImageData(0, 0, 128, 128).data.join()"
    shown = [figure.get_by_role("img").evaluate(read) for figure in figures]
    assert len(set(shown)) == 4 and shown[-1] == ",".join(map(str, pixels_of(page, "picture")))
    said = [re.match("The input|The text alone|Inversion|Imagic", figure.inner_text().strip())[0] for figure in figures]
    assert said == ["The input", "The text alone", "Inversion", "Imagic"]


def accessible(page) -> None:
    """axe-core finds nothing, in both themes."""
    page.add_script_tag(path=AXE)
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        found = page.evaluate("axe.run().then(({ violations }) => violations.map((v) => [v.id, v.nodes[0].html]))")
        assert not found, (theme, found)


def save_and_share(page, browser) -> None:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the picture").press("Enter")
    assert download.value.suggested_filename == "a-black-dog-sitting-on-the-grass.png"
    with Image.open(download.value.path()) as picture:
        assert np.asarray(picture.convert("RGBA")).flatten().tolist() == pixels_of(page, "picture")
    page.get_by_role("button", name="Copy the address").press("Enter")
    assert "text=a black dog sitting on the grass&eta=0&lambda=1&seed=1&noise=random" in unquote_plus(page.url)
    other = opened(browser, page.url)
    ready(other)
    assert other.get_by_role("textbox").input_value() == "a black dog sitting on the grass"
    assert other.get_by_role("slider", name="λ").input_value() == "1"
    assert other.get_by_role("radio", name="random noise").is_checked()
    assert pixels_of(other, "input") == pixels_of(page, "input")
    other.context.close()


def test_the_single_file_works_by_double_click(live, browser):
    page = opened(browser, f"{(live.out / 'imagic.html').as_uri()}?steps=1,1")
    ready(page)
    trained(page)
    assert not page.outside and not page.get_by_role("link").count()
    page.context.close()


# -- what can go wrong


@pytest.mark.parametrize(
    "before, sentence",
    [
        ("delete self.WebAssembly", "needs WebAssembly: update it, or use another"),
        ("self.Worker = class { constructor() { throw new Error() } }", "blocks workers here"),
    ],
)
def test_a_browser_that_lacks_something_is_told_what_to_do(live, browser, before, sentence):
    page = opened(browser, live.address, before=before)
    page.get_by_role("alert").filter(has_text=sentence).wait_for()
    page.context.close()


def test_a_download_that_fails_can_be_repeated(live, browser):
    page = browser.new_context(service_workers="block").new_page()
    page.set_default_timeout(PATIENCE)
    page.route("**/weights.bin.gz", lambda route: route.abort())
    page.goto(live.address)
    page.get_by_role("alert").filter(has_text="could not be downloaded").wait_for()
    page.unroute("**/weights.bin.gz")
    page.get_by_role("button", name="Load again").click()
    ready(page)
    assert page.get_by_role("alert").count() == 0
    page.context.close()


def test_a_lost_worker_is_replaced(live, browser):
    keep = "const Given = Worker; Worker = class extends Given { constructor(...x) { super(...x); self.last = this } }"
    page = opened(browser, f"{live.address}?threads=1&steps=1,1", before=keep)
    ready(page)
    page.evaluate("last.onerror(new ErrorEvent('error'))")
    page.get_by_role("alert").filter(has_text="has stopped").wait_for()
    page.get_by_role("button", name="Load again").click()
    ready(page)
    assert page.get_by_role("button", name="Train", exact=True).is_enabled()
    page.context.close()


def test_a_finished_training_outlives_the_tab_and_an_unfinished_one_is_called_lost(live, browser):
    page = opened(browser, f"{live.address}?threads=1&steps=1,1")
    ready(page)
    trained(page)
    page.get_by_role("slider", name="seed").press("ArrowRight")
    page.get_by_text("seed 1, own noise").wait_for()
    page.wait_for_selector("body[data-alone][data-inversion]")
    before = pixels_of(page, "picture")
    page.reload()
    page.wait_for_selector("body[data-picture]")
    assert pixels_of(page, "picture") == before
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.get_by_role("button", name="Train again").click()
    page.get_by_role("button", name="Pause").click()
    page.reload()
    assert asked == ["beforeunload"]
    page.get_by_role("alert").filter(has_text="closed during the training").wait_for()
    page.context.close()


def test_the_words_of_the_page_are_those_of_the_model(live):
    facts = json.loads((live.out.parents[1] / "model" / "model.json").read_text())
    offered = " ".join(said for phrases in facts["phrases"].values() for said in phrases.values())
    assert {*offered.split()} <= {*facts["words"]}
