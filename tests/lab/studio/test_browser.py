"""The notebooks in JupyterLab, as a reader sees them: all cells run, the η slider moves the picture, the studio edits.

All tests share one JupyterLab, one Chromium and one studio. They need Debian's Chromium (apt-get install chromium) and
playwright, and are skipped without them.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = float(os.environ.get("BROWSER_PATIENCE", "600"))  # seconds for one notebook; a busy machine may need more
NOTEBOOKS = ("04_interpolation.ipynb", "06_everything.ipynb")
HASTE_IN_STUDIO = """desk.state.embedding_steps, desk.state.unet_steps, desk.state.sampling = 12, 12, {"steps": 2}
studio_state.suggests_by_itself, studio_state.GALLERY_ETAS = lambda studio: False, (0.0, 1.0)"""
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
STUDIO = "studio.ipynb"
STUDIO_CELLS = (
    "import imagic_lib as imagic\nfrom imagic_lab.studio import app as studio\n"
    "from imagic_lab.studio import state as studio_state",
    "desk = studio.studio(imagic.load_pipeline('tiny'), place='edits')",
    "" if os.environ.get("STUDIO_PICTURES") else HASTE_IN_STUDIO,
    "desk",
)
LOAD = 'pipe = imagic.load_pipeline("tiny")'
HASTE = """
from imagic_lab.toyworld.reader import Reader
from imagic_lib import stage1_embedding, stage2_finetuning, stage4_inference, suggestion
stage1_embedding.DEFAULTS["tiny"]["steps"] = stage2_finetuning.DEFAULTS["full"]["tiny"]["steps"] = 10
stage4_inference.DEFAULTS["tiny"]["steps"], suggestion.SAMPLING["steps"] = 4, 2
Reader.scene = lambda reader, picture: reader.glance(picture)[0]  # without the fit, which takes a second
"""  # nbval runs the notebooks unchanged; these tests are about the page, which looks the same after fewer steps
SETTINGS = {  # the page holds all cells, even those out of sight; no news from the network
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def answer_of(lab: SimpleNamespace, path: str):
    request = urllib.request.Request(f"{lab.address}/{path}", headers={"Authorization": f"token {lab.token}"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def ask(lab: SimpleNamespace, path: str) -> None:
    """POST a request to the server."""
    headers = {"Authorization": f"token {lab.token}"}
    urllib.request.urlopen(
        urllib.request.Request(f"{lab.address}/{path}", b"{}", headers, method="POST"), timeout=60
    ).close()


def fresh(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without its outputs and cell numbers (new numbers show which cells have run), and in haste."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = cell.source.replace(LOAD, HASTE + LOAD)
            cell.metadata.pop("jupyter", None)  # a folded cell hides its number
    return notebook


def fill(home: Path) -> None:
    """The library, copies of the notebooks, the notebook of the studio, and JupyterLab's settings."""
    for name in ("imagic_lib", "imagic_lab", "data"):
        (home / name).symlink_to(ROOT / name)
    (home / "notebooks").mkdir()
    for name in NOTEBOOKS:
        nbformat.write(fresh(nbformat.read(ROOT / "notebooks" / name, as_version=4)), home / "notebooks" / name)
    studio = new_notebook(cells=[new_code_cell(c or "pass") for c in STUDIO_CELLS], metadata={"kernelspec": KERNEL})
    nbformat.write(studio, home / "notebooks" / STUDIO)
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))


def start(home: Path) -> SimpleNamespace:
    """JupyterLab on a free port, in its own process group."""
    port, token = free_port(), "of-the-test"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--port-retries=0"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={home}", "--ServerApp.ip=127.0.0.1"]
    own = {f"JUPYTER_{name}_DIR": str(home / "jupyter" / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    environment = {**os.environ, **own, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(home)}
    with open(home / "log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
    return SimpleNamespace(address=f"http://127.0.0.1:{port}", token=token, home=home, process=process)


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """JupyterLab with the notebooks; shut down afterwards."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed, as on Colab")
    fill(home := tmp_path_factory.mktemp("lab"))
    started = start(home)
    try:
        wait_for_server(started)
        yield started
    finally:
        os.killpg(started.process.pid, signal.SIGTERM)  # the server and its kernels
        try:
            started.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(started.process.pid, signal.SIGKILL)


def wait_for_server(lab: SimpleNamespace) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert lab.process.poll() is None, (lab.home / "log.txt").read_text()
        try:
            answer_of(lab, "api/status")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError((lab.home / "log.txt").read_text())


def new_page(browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1600})
    page.set_default_timeout(PATIENCE * 1000)
    return page


@pytest.fixture
def page(browser, tmp_path):
    """A new page; a screenshot of its end is kept in `tmp_path`, even after a failure."""
    page = new_page(browser)
    yield page
    page.screenshot(path=tmp_path / "page.png")
    page.close()


@pytest.fixture(scope="session")
def studio_page(lab, browser):
    """The page with the studio. Each test leaves a studio that can begin another edit."""
    page = new_page(browser)
    open_studio(page, lab)
    yield page
    page.close()


@pytest.fixture
def studio(studio_page, tmp_path):
    yield studio_page
    studio_page.screenshot(path=tmp_path / "page.png")


def until(page, found, what: str):
    """Call `found()` until its answer is true, and return the answer."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE:g} seconds")
        page.wait_for_timeout(500)
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
    rest = 0  # successive looks at an idle kernel

    def all_done() -> bool:
        nonlocal rest
        assert failed.count() == 0, failed.first.inner_text()
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
        executed = sum(bool(re.search(r"\[\d+\]", prompt)) for prompt in prompts)
        rest = rest + 1 if idle(page, lab) and not any("*" in prompt for prompt in prompts) else 0
        if rest % 20 == 1 and executed < cells:
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        return executed == cells and rest > 1

    until(page, all_done, f"all {cells} cells have run")


SEEN = """area => [...area.querySelectorAll('img.widget-image')].map(img => {
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
    if (canvas.width) canvas.getContext('2d').drawImage(img, 0, 0);
    return canvas.toDataURL();
})"""


def changed(page, area, before: list[str]) -> list[str]:
    """The pixels of the pictures in an output, as soon as they differ from `before`."""
    until(page, lambda: area.evaluate(SEEN) != before, "the slider moved, the picture changes")
    return area.evaluate(SEEN)


def moved(page, area, handle, key: str) -> None:
    """Press a slider's key until its picture changes, because the page may replace the widget after the first time."""
    before = area.evaluate(SEEN)

    def changes() -> bool:
        handle.press(key)
        page.wait_for_timeout(1000)
        return area.evaluate(SEEN) != before

    until(page, changes, f"{key} on the slider changes the picture")


def check_slider(page) -> None:
    """On the first η slider of the page, the arrow keys and the mouse change the picture in its output."""
    slider = page.locator(".widget-hslider", has=page.get_by_text("η", exact=True)).first
    area, handle = page.locator(".jp-OutputArea-output", has=slider).first, slider.locator(".noUi-handle")
    slider.scroll_into_view_if_needed()
    handle.focus()
    handle.press("Home")
    page.wait_for_timeout(1000)
    seen = [area.evaluate(SEEN)]
    assert seen[0] and all(len(picture) > 100 for picture in seen[0])
    for _ in range(2):
        handle.press("ArrowRight")
        seen.append(changed(page, area, seen[-1]))
    track, knob = slider.locator(".noUi-target").bounding_box(), handle.bounding_box()
    page.mouse.move(knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2)
    page.mouse.down()
    page.mouse.move(track["x"] + track["width"] + 20, knob["y"] + knob["height"] / 2, steps=8)
    page.mouse.up()
    changed(page, area, seen[-1])
    page.wait_for_timeout(1000)
    seen.append(area.evaluate(SEEN))
    assert len({tuple(pictures) for pictures in seen}) == 4


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_all_cells_run_and_the_slider_moves_the_picture(lab, page, name):
    cells = [c for c in nbformat.read(lab.home / "notebooks" / name, as_version=4).cells if c.cell_type == "code"]
    open_notebook(page, lab, name)
    run_all(page, lab, len(cells))
    check_slider(page)


def photo() -> dict:
    """A wide photo, red on the left and blue on the right, as the browser uploads it."""
    picture, buffer = Image.new("RGB", (300, 200), "blue"), io.BytesIO()
    picture.paste("red", (0, 0, 150, 200))
    picture.save(buffer, format="JPEG")
    return {"name": "my photo.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()}


def press(area, words: str) -> None:
    """Click the button with these words; its icon is a part of its name, too."""
    area.get_by_role("button", name=re.compile(rf"{words}$")).click()


def look(page, area, name: str) -> None:
    """If STUDIO_PICTURES is set, save screenshots of the studio there, on a wide and on a narrow page."""
    folder = os.environ.get("STUDIO_PICTURES")
    for width in (800, 1280) if folder else ():
        page.set_viewport_size({"width": width, "height": 3000})
        page.wait_for_timeout(1500)
        area.screenshot(path=Path(folder) / f"{name}-{width}.png")


def open_studio(page, lab: SimpleNamespace):
    """Open the studio's notebook, and return its output."""
    open_notebook(page, lab, STUDIO)
    run_all(page, lab, len(STUDIO_CELLS))
    return studio_of(page)


def studio_of(page):
    return page.locator(".jp-OutputArea-output", has=page.get_by_role("button", name="Upload a photo")).last


def upload(page, area, file: dict) -> None:
    with page.expect_file_chooser() as chooser:
        area.get_by_role("button", name="Upload a photo").click()
    chooser.value.set_files([file])


def choose_picture_and_text(page, area) -> None:
    """A bad file, a photo with its crop, then a drawing with its caption, which is edited."""
    upload(page, area, {**photo(), "name": "text.png", "buffer": b"this is text"})
    area.get_by_text("✗ text.png is not a picture").wait_for()
    upload(page, area, photo())
    area.get_by_text("my photo.jpg: 300 x 200 pixels").wait_for()
    across = area.locator(".widget-hslider", has=page.get_by_text("left ↔ right")).locator(".noUi-handle")
    moved(page, area, across, "Home")
    look(page, area, "photo")
    area.locator("select").first.select_option("car-parked.png")
    text = area.locator("input[type=text]").first
    until(page, lambda: text.input_value() == "a yellow car parked on the grass", "the caption is the text")
    text.fill("a yellow car parked in the snow")
    text.press("Tab")
    area.get_by_text("7 tokens:").wait_for()


def run_stop_and_go_on(page, area) -> None:
    press(area, "Run")
    area.get_by_text("stage 1, the embedding: step").wait_for()
    press(area, "Stop")
    area.get_by_text("■ stopped").wait_for()
    look(page, area, "stopped")
    press(area, "Go on")
    area.get_by_text("stage 2, the UNet: step").wait_for()
    look(page, area, "running")
    area.get_by_text("✓ done").wait_for()


def choose_in_the_gallery(page, area) -> None:
    chosen = area.get_by_text("chosen: η").inner_text()
    tiles = area.locator(".widget-gridbox .widget-gridbox button")
    until(page, lambda: tiles.count() >= 4, "the gallery is there")
    tiles.first.click()
    until(page, lambda: area.get_by_text("chosen: η").inner_text() != chosen, "a click chooses a picture")
    assert area.get_by_text("chosen: η = 0, seed 0").count() == 1
    tiles.nth(tiles.count() // 2 - 1).click()  # the last picture in the first of two rows
    area.get_by_text("chosen: η = 1, seed 0").wait_for()
    wipe = area.locator(".widget-hslider", has=page.get_by_text("edited", exact=True)).locator(".noUi-handle")
    moved(page, area, wipe, "ArrowRight")
    for _ in range(4):  # to the middle
        wipe.press("ArrowRight")


def test_an_edit_in_the_studio_from_the_upload_to_the_zip(lab, studio):
    """Upload, crop, drawing, text, run, stop, go on, click in the gallery, wipe, zip."""
    area = studio_of(studio)
    choose_picture_and_text(studio, area)
    run_stop_and_go_on(studio, area)
    choose_in_the_gallery(studio, area)
    press(area, "whole folder as zip")
    area.get_by_text(re.compile(r"kept: .*a-yellow-car-parked-in-the-snow.*\.zip")).wait_for()
    assert area.get_by_text("✗").count() == 0
    [archive] = (lab.home / "notebooks" / "edits").glob("*.zip")
    assert archive.stat().st_size > 10**6
    look(studio, area, "done")


def test_a_killed_kernel_loses_nothing(lab, studio):
    """A new kernel finds the unfinished edit, and completes it."""
    area = studio_of(studio)
    area.locator("select").first.select_option("dog-sitting.png")
    press(area, "Run")
    area.get_by_text("stage 1, the embedding: step").wait_for()
    [kernel] = [session["kernel"]["id"] for session in answer_of(lab, "api/sessions") if session["name"] == STUDIO]
    ask(lab, f"api/kernels/{kernel}/restart")  # like Kernel > Restart, this kills the process
    area = open_studio(studio, lab)
    area.get_by_role("button", name="Open to go on").first.click()
    area.get_by_text("this edit is unfinished").wait_for()
    press(area, "Go on")
    area.get_by_text("✓ done").wait_for()
