"""The studio and a notebook in JupyterLab, as a reader sees them, in Chromium.

All tests share one JupyterLab and one Chromium. They need Debian's Chromium (apt-get install chromium) and playwright,
and are skipped without them. The studio's journey is made twice, at the width of a laptop and at that of a phone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = float(os.environ.get("BROWSER_PATIENCE", "300"))  # seconds for one step; a busy machine may need more
AXE = ROOT / "docs" / "live" / "node_modules" / "axe-core" / "axe.min.js"
CLASSIC = find_spec("notebook") and not find_spec("jupyterlab")  # as on Colab, with ipywidgets 7
STUDIO, SLIDER = "studio.ipynb", "04_interpolation.ipynb"
HASTE = """
import time
from imagic_lab.studio import state
from imagic_lib import stage1_embedding, stage2_finetuning, stage4_inference
from imagic_lib.training import loop
from imagic_lib.suggestion import Suggestion
stage1_embedding.DEFAULTS["tiny"]["steps"], stage2_finetuning.DEFAULTS["full"]["tiny"]["steps"] = 4, STEPS
stage4_inference.DEFAULTS["tiny"]["steps"] = state.PREVIEW_STEPS = 2
state.GALLERY_ETAS = 0.0, 0.8, 1.0
state.suggestion.suggest = lambda edit, measure: Suggestion(1.0, 1.0, {(1.0, 1.0): 1.0})
def step(training, loss, take=loop.Training.step):
    while Path("hold").exists():
        time.sleep(0.1)
    take(training, loss)
loop.Training.step = step
"""  # nbval runs the notebooks unchanged; these tests are about the page, which looks the same after fewer steps
NEEDED = re.compile(r"sys\.path|load_pipeline|run_edit|@interact")  # the cells of SLIDER that its slider needs
SETTINGS = {  # the page holds all cells, even those out of sight; no news from the network
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/themes": {"theme": "JupyterLab Light"},
}


# -- JupyterLab, as `make lab` starts it


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def answer_of(lab: SimpleNamespace, path: str, method: str = "GET"):
    headers, data = {"Authorization": f"token {lab.token}"}, b"{}" if method == "POST" else None
    request = urllib.request.Request(f"{lab.address}/{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def fill(home: Path, haste: str) -> None:
    """The library, copies of two notebooks in haste (of one the cells to its slider), and JupyterLab's settings."""
    for name in ("imagic_lib", "imagic_lab", "data"):
        (home / name).symlink_to(ROOT / name)
    (home / "notebooks").mkdir()
    for name in (STUDIO, SLIDER):
        notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        notebook.cells = [cell for cell in notebook.cells if name == STUDIO or NEEDED.search(cell.source)]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
                cell.source = re.sub(r"^(.*load_pipeline)", haste + r"\1", cell.source, flags=re.MULTILINE)
        nbformat.write(notebook, home / "notebooks" / name)
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))


def start(home: Path, server: str = "jupyterlab") -> SimpleNamespace:
    """JupyterLab, or "notebook", on a free port, in its own process group, with trusted notebooks."""
    port, token = free_port(), "of-the-test"
    own = {f"JUPYTER_{name}_DIR": str(home / "jupyter" / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    environment = {**os.environ, **own, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(home)}
    trust = [sys.executable, "-m", "jupyter", "trust", *map(str, (home / "notebooks").glob("*.ipynb"))]
    subprocess.run(trust, env=environment, check=True, capture_output=True)
    command = [sys.executable, "-m", server, "--no-browser", "--allow-root", f"--port={port}", "--port-retries=0"]
    command += [f"--{'IdentityProvider' if server == 'jupyterlab' else 'NotebookApp'}.token={token}", "--ip=127.0.0.1"]
    with open(home / "log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
    lab = SimpleNamespace(address=f"http://127.0.0.1:{port}", token=token, home=home, process=process)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, (home / "log.txt").read_text()
        try:
            answer_of(lab, "api/status")
            return lab
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise TimeoutError((home / "log.txt").read_text())


def end(lab: SimpleNamespace) -> None:
    os.killpg(lab.process.pid, signal.SIGTERM)  # the server and its kernels
    try:
        lab.process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(lab.process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """JupyterLab with the notebooks; shut down afterwards."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed, as on Colab")
    fill(home := tmp_path_factory.mktemp("lab"), HASTE.replace("STEPS", "10"))
    started = start(home)
    yield started
    end(started)


# -- what a reader does


def new_page(browser, width: int, height: int = 900):
    page = browser.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
    page.set_default_timeout(PATIENCE * 1000)
    return page


def until(page, found, what: str):
    """Call `found()` until its answer is true, and return the answer."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE:g} seconds")
        page.wait_for_timeout(200)
    return answer


def idle(page, lab: SimpleNamespace) -> bool:
    """Do the server and the page agree that the kernel is connected and idle?"""
    status = page.evaluate("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status")
    try:
        kernels = answer_of(lab, "api/kernels")
    except urllib.error.HTTPError as error:
        if error.code < 500:
            raise
        return False  # the server fails to list a kernel that is just starting or ending
    connected = any(kernel["connections"] for kernel in kernels)
    return status == "idle" and connected and all(kernel["execution_state"] == "idle" for kernel in kernels)


def open_notebook(page, lab: SimpleNamespace, name: str) -> None:
    """Open the notebook in the single-document view, and wait for its kernel."""
    page.goto(f"{lab.address}/doc/tree/notebooks/{name}?token={lab.token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    until(page, lambda: idle(page, lab), "the kernel is ready")


def run_all(page, lab: SimpleNamespace, cells: int) -> None:
    """Run > Run All Cells, by mouse; returns when all code cells have a number and the kernel is idle.

    JupyterLab may connect twice to a new kernel, and the second connection drops the cells in the queue. So if the
    kernel stays idle for a while, the menu is used again.
    """
    failed = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
    prompts = ".jp-InputPrompt, .jp-OutputPrompt"  # a folded cell has the second one only
    numbered, waiting = (page.locator(prompts, has_text=re.compile(rf"\[{number}\]")) for number in (r"\d+", r"\*"))
    rest = 0  # successive looks at an idle kernel

    def all_done() -> bool:
        nonlocal rest
        assert failed.count() == 0, failed.first.inner_text()
        executed = page.locator(".jp-CodeCell", has=numbered).count()
        rest = rest + 1 if idle(page, lab) and not waiting.count() else 0
        if rest % 40 == 1 and executed < cells:
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        return executed == cells and rest > 1

    until(page, all_done, f"all {cells} cells have run")


def open_studio(page, lab: SimpleNamespace, name: str = STUDIO):
    """The studio in a notebook of this name, a copy of the shipped one with a kernel of its own."""
    if name != STUDIO:
        shutil.copy(lab.home / "notebooks" / STUDIO, lab.home / "notebooks" / name)
    open_notebook(page, lab, name)
    run_all(page, lab, 1)
    return studio_of(page)


def studio_of(page):
    page.locator(".imagic-studio").last.wait_for()
    return page.locator(".imagic-studio").last


def press(studio, words: str) -> None:
    studio.get_by_role("button", name=words, exact=True).click()


# -- the tests

SEEN = "area => [...area.querySelectorAll('img')].map(img => img.src)"
CENTRE = """node => {
    const [own, all] = [node, node.parentNode].map(one => one.getBoundingClientRect());
    return (own.left + own.width / 2 - all.left) / all.width;
}"""
NAMELESS = re.compile(r"^\s*- (button|textbox|slider|combobox|spinbutton|progressbar)(:| \[|$)", re.MULTILINE)
DROP = """async ([node, address]) => {
    const files = new DataTransfer(), huge = new Blob([new Uint8Array(51e6)]);
    const content = address ? await (await fetch(address)).blob() : huge;
    files.items.add(new File([content], 'big.jpg', { type: 'image/jpeg' }));
    node.dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true }));
    return content.size;
}"""


def test_the_slider_of_a_notebook_moves_the_picture(lab, browser):
    page = new_page(browser, 1280)
    cells = [c for c in nbformat.read(lab.home / "notebooks" / SLIDER, as_version=4).cells if c.cell_type == "code"]
    open_notebook(page, lab, SLIDER)
    run_all(page, lab, len(cells))
    slider = page.locator(".widget-hslider", has=page.get_by_text("η", exact=True)).first
    area, handle = page.locator(".jp-OutputArea-output", has=slider).first, slider.locator(".noUi-handle")
    seen = []
    for key in ("Home", "ArrowRight", "ArrowRight"):
        handle.press(key)
        until(page, lambda: area.evaluate(SEEN) not in [[], *seen], f"{key} moves the picture")
        seen.append(area.evaluate(SEEN))
    page.close()


def fits(page, studio) -> bool:
    """Is nothing of the studio cut off at the right, and has everything that can be used a name?"""
    return not NAMELESS.search(studio.aria_snapshot()) and studio.evaluate(
        "root => root.scrollWidth <= root.clientWidth"
    )


def accessible(page) -> None:
    """axe-core, where npm has fetched it, finds no serious fault."""
    if AXE.is_file():
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run([...document.querySelectorAll('.imagic-studio')].at(-1))")["violations"]
        assert not [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]


if CLASSIC:  # `make test-colab`

    @pytest.fixture
    def classic(browser, tmp_path):
        fill(tmp_path, HASTE.replace("STEPS", "10"))
        started = start(tmp_path, "notebook")
        yield started
        end(started)

    def test_an_edit_with_ipywidgets_7_in_the_classic_notebook(classic, browser):
        page = new_page(browser, 1280)
        page.goto(f"{classic.address}/notebooks/notebooks/{STUDIO}?token={classic.token}")
        page.locator("#kernel_indicator_icon.kernel_idle_icon").wait_for()
        page.get_by_role("link", name="Cell", exact=True).click()
        page.locator("#run_all_cells").click()
        studio = studio_of(page)
        studio.get_by_role("button", name="example: car parked").click()
        studio.get_by_role("button", name="night", exact=True).click()
        press(studio, "Run")
        studio.get_by_text("✓ done").wait_for()
        wipe_and_choose(page, studio)
        download_and_delete(page, studio)
        page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_an_edit_from_the_example_to_the_bin(lab, browser, width):
    page = new_page(browser, width)
    studio = open_studio(page, lab, f"wide-{width}.ipynb")
    studio.get_by_role("button", name="example: car parked").click()
    studio.get_by_role("button", name="night", exact=True).click()
    text = studio.get_by_role("textbox", name="the text")
    until(page, lambda: text.input_value() == "a yellow car parked at night", "a chip changes a word")
    press(studio, "Run")
    studio.get_by_text("stage 1, the embedding: step").wait_for()
    place = studio.get_by_role("button", name="Stop", exact=True).bounding_box()
    press(studio, "Stop")
    studio.get_by_text("■ stopped").wait_for()
    assert studio.get_by_role("button", name="Stop", exact=True).bounding_box() == place  # nothing moved
    press(studio, "Go on")
    studio.get_by_text("stage 2, the UNet: step").wait_for()
    page.keyboard.press("Control+s")
    page.wait_for_timeout(1000)
    page.reload()
    studio = studio_of(page)  # from a trusted notebook, with its training
    studio.get_by_text("✓ done").wait_for()
    assert fits(page, studio)
    accessible(page)
    wipe_and_choose(page, studio)
    download_and_delete(page, studio)
    page.close()


def wipe_and_choose(page, studio) -> None:
    """The result is the full edit; the handle uncovers the input, by mouse and by keyboard. A tile is chosen."""
    handle = studio.get_by_role("slider")
    handle.scroll_into_view_if_needed()
    assert handle.input_value() == "0"
    drag(page, studio.locator(".wipe"), (0.02, 0.5), (0.5, 0.5))
    assert 45 < int(handle.input_value()) < 55
    assert 0.4 < studio.locator(".handle").evaluate(CENTRE) < 0.6  # and the line between the pictures is there, too
    handle.press("Home")
    assert handle.input_value() == "0" and studio.locator(".handle").evaluate(CENTRE) < 0.1
    studio.get_by_role("button", name="η = 0.8, seed 1", exact=True).click()
    studio.get_by_text("η = 0.8, seed 1: “a yellow car parked at night”").wait_for()
    studio.get_by_role("spinbutton", name="new η").fill("0.5")
    studio.get_by_role("button", name="Draw", exact=True).first.click()
    new = studio.get_by_role("button", name="η = 0.5, seed 1", exact=True)
    until(page, lambda: new.is_enabled(), "the new pictures are there")
    new.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    studio.get_by_text("✓ done").wait_for()
    assert studio.get_by_role("button", name="η = 0.8, seed 1", exact=True).get_attribute("aria-pressed") == "true"


def download_and_delete(page, studio) -> None:
    with page.expect_download() as download:
        press(studio, "Download the picture")
    assert download.value.suggested_filename.endswith("-at-night-eta-0.8-seed-1.png")
    assert Image.open(download.value.path()).size == (128, 128)
    studio.get_by_role("button", name=re.compile("^delete .*at-night")).first.click()
    press(studio, "Undo the last deletion")
    studio.get_by_role("button", name=re.compile("^open .*at-night")).first.click()
    studio.get_by_role("button", name="η = 0.5, seed 0", exact=True).wait_for()
    studio.get_by_role("button", name=re.compile("^delete .*at-night")).first.click()
    studio.get_by_role("button", name=re.compile("^Empty the bin")).click()
    until(page, lambda: studio.get_by_role("article").count() == 0, "the bin is empty")


def test_a_second_notebook_shows_the_edit_that_another_trains_and_does_not_train_it(lab, browser):
    hold = lab.home / "notebooks" / "hold"  # trainings wait while there is such a file
    page, other = new_page(browser, 1280), new_page(browser, 1280)
    first = open_studio(page, lab, "first.ipynb")
    first.get_by_role("button", name="example: dog sitting").click()
    hold.touch()
    press(first, "Run")
    first.get_by_text("stage 1, the embedding").wait_for()
    second = open_studio(other, lab, "second.ipynb")
    second.get_by_text("another notebook is working on this edit").wait_for()
    assert second.get_by_role("textbox", name="the text").input_value() == "a brown dog jumping on the grass"
    assert second.get_by_role("button", name="Go on", exact=True).is_disabled()
    second.get_by_role("article").get_by_text("running").wait_for()
    press(first, "Stop")
    hold.unlink()
    second.get_by_text("this edit is unfinished").wait_for()
    press(second, "Go on")
    second.get_by_text("✓ done").wait_for()
    press(first, "Go on")  # which has seen nothing of that, and trains nothing
    first.get_by_role("button", name="η = 1, seed 1", exact=True).wait_for()
    assert [studio.get_by_role("article").count() for studio in (first, second)] == [1, 1]
    second.get_by_role("button", name=re.compile("^delete .*jumping")).click()
    second.get_by_role("button", name=re.compile("^Empty the bin")).click()
    until(other, lambda: second.get_by_role("article").count() == 0, "the bin is empty")
    page.close()
    other.close()


def drag(page, node, start: tuple[float, float], end: tuple[float, float], meanwhile=lambda: None) -> None:
    """From one place to another, as shares of the node's width and height. meanwhile: called before the release."""
    node.scroll_into_view_if_needed()
    box = node.bounding_box()
    (x, y), (u, v) = (
        (box["x"] + across * box["width"], box["y"] + down * box["height"]) for across, down in (start, end)
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(u, v, steps=4)
    meanwhile()
    page.mouse.up()


def test_a_photo_of_thirty_megabytes_is_dropped_and_cropped_and_a_new_kernel_is_noticed(lab, browser):
    page = new_page(browser, 1280)
    studio = open_studio(page, lab, "dropped.ipynb")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    noise = Image.merge("RGB", [Image.effect_noise((4000, 3000), 200) for _ in range(3)])
    noise.save(lab.home / "big.jpg", quality=98, subsampling=0, exif=exif)
    page.evaluate(DROP, [studio.element_handle(), ""])
    studio.get_by_text("✗ big.jpg, 51 MB: the studio takes up to 50 MB").wait_for()
    size = page.evaluate(DROP, [studio.element_handle(), f"{lab.address}/files/big.jpg?token={lab.token}"])
    assert 25e6 < size < 50e6
    studio.get_by_text("3000 × 4000 pixels: drag the square").wait_for()
    square = studio.get_by_role("group", name="the square to edit")
    before = square.bounding_box()
    square.press("ArrowUp")
    until(page, lambda: square.bounding_box()["y"] < before["y"], "the square moves")

    def hear() -> None:
        studio.get_by_role("button", name="dog", exact=True).evaluate("chip => chip.click()")
        until(page, studio.get_by_role("textbox", name="the text").input_value, "Python answers")

    drag(page, square, (0.5, 0.5), (0.5, 0.6), hear)  # and what Python says meanwhile does not move it back
    until(page, lambda: square.bounding_box()["y"] > before["y"], "the mouse moves it the other way")
    drag(page, square, (0.99, 0.99), (0.7, 0.7))
    until(page, lambda: square.bounding_box()["width"] < 0.8 * before["width"], "its corner makes it smaller")
    studio.get_by_text("can't hold this picture").wait_for()
    [kernel] = [one["kernel"]["id"] for one in answer_of(lab, "api/sessions") if one["name"] == "dropped.ipynb"]
    answer_of(lab, f"api/kernels/{kernel}/restart", "POST")
    press(studio, "Surprise me")
    studio.get_by_text("Was the kernel restarted?").wait_for()
    page.close()
