"""How long does a reader of the live page wait, and are its numbers Python's? Run it on an idle machine.

    python -m imagic_lab.numbers.live                 # about 5 minutes on 2 cores; writes tables of README.md
    python -m imagic_lab.numbers.live --steps 2 2     # so many of each stage, to try the script: writes nothing

It needs what `make test` installs, builds the page into build/live, and reads it in headless Chromium from a server
that sends no special headers.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table
from imagic_lab.numbers.report import README, ROOT, command_line, put
from imagic_lib.edit import run_edit

OUT, IMAGE = ROOT / "build" / "live", ROOT / "data" / "images" / "dog-sitting.png"
TEXT = "a brown dog jumping on the grass"
MOVE = """id => new Promise((done) => {  // seconds to the preview, and to the whole picture
    const slider = document.getElementById(id), began = Date.now(), since = () => (Date.now() - began) / 1e3;
    let rough; // the sentence below the picture changes with each
    new MutationObserver(() => (rough ??= since())).observe(document.getElementById("shown"), { childList: true });
    new MutationObserver(() => done([rough, since()])).observe(document.body, { attributeFilter: ["data-picture"] });
    slider.stepDown();
    slider.dispatchEvent(new Event("input"));
})"""
SHOWN = "[...document.getElementById('picture').getContext('2d').getImageData(0, 0, 128, 128).data]"
ERRORS = ["relative error", "page", "Python, two threads", "Python, noise of 1e-5 in its gradients"]
NOISE = 1e-5  # float32 has seven digits, of which a sum of thousands of terms keeps about five
KEPT = (
    "caches.match('assets/training').then(kept => kept.arrayBuffer()).then(all => [...new Float32Array(all, 0, 2e4)])"
)


class Host(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def visit(page, address: str) -> float:
    """Seconds until the page shows its first picture, that of the text alone."""
    page.goto("about:blank")
    began = time.monotonic()
    page.goto(address)
    page.wait_for_selector("body[data-alone]")
    return time.monotonic() - began


def used(page, address: str) -> tuple[list[str], np.ndarray, dict]:
    """(what a reader waits for, e_opt with what is kept beside it, pictures by η and λ)."""
    visit(page, address)
    waits = [f"{np.median([visit(page, address) for _ in range(5)]):.1f} s"]
    page.wait_for_selector("body[data-inversion]")
    began = time.monotonic()
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_text("Move the sliders.").wait_for()
    waits.append(f"{time.monotonic() - began:.0f} s")
    page.wait_for_selector("body[data-picture]")
    pictures = {(1.0, 0.5): page.evaluate(SHOWN)}
    moves = [np.median([page.evaluate(MOVE, name) for _ in range(5)], axis=0) for name in ("eta", "lambda")]
    waits += [f"η: {moves[0][k]:.1f} s, λ: {moves[1][k]:.1f} s" for k in (0, 1)]
    return waits, np.array(page.evaluate(KEPT)), pictures | {(0.75, 0.25): page.evaluate(SHOWN)}


@contextmanager
def noisy_gradients(share: float) -> Iterator[None]:
    """A context in which Gaussian noise, this share of a gradient's own size, is added to each gradient of a step."""
    generator = torch.Generator().manual_seed(0)

    def disturb(optimizer: torch.optim.Optimizer, *_) -> None:
        for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            noise = torch.randn(p.grad.shape, generator=generator)
            p.grad.add_(noise, alpha=share * float(p.grad.norm()) / p.grad.numel() ** 0.5)

    handle = register_optimizer_step_pre_hook(disturb)
    try:
        yield
    finally:
        handle.remove()


def errors(kept: np.ndarray, pictures: dict, steps: dict) -> list[list[str]]:
    """Relative errors of the page, of Python with two threads, and of Python with noise in its gradients, which shows
    how much the training enlarges an error. Python with one thread is taken for exact."""
    pipe, found = imagic.load_pipeline("tiny"), []
    image = imagic.load_image(IMAGE, pipe)
    for threads, noise in ((1, nullcontext()), (2, nullcontext()), (1, noisy_gradients(NOISE))):
        torch.set_num_threads(threads)
        with noise:
            edit = run_edit(pipe, image, TEXT, run=imagic.Run(bar=False), **steps)
        drawn = [edit.pictures([eta], scale=scale)[0][0].convert("RGBA") for eta, scale in pictures]
        found.append([edit.e_opt.numpy(), *(np.asarray(picture, dtype=float) for picture in drawn)])
    width, begin = (
        edit.e_opt.numel(),
        imagic.diffusion.encode_image(pipe, image).numel(),
    )  # kept are z, e_tgt, e_opt, θ*
    page = [kept[begin + width : begin + 2 * width], *map(np.array, pictures.values())]
    names = ["e_opt", *(f"the picture at η = {eta:g}, λ = {scale:g}" for eta, scale in pictures)]

    def off(found: np.ndarray, exact: np.ndarray) -> str:
        return f"{np.linalg.norm(found.ravel() - exact.ravel()) / np.linalg.norm(exact):.1e}"

    exact, *others = found
    return [
        [name, *(off(one, true) for one in ours)] for name, true, *ours in zip(names, exact, page, *others, strict=True)
    ]


def main() -> None:
    from playwright.sync_api import sync_playwright

    from imagic_lab.web import page as web

    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, nargs=2)
    steps = parser.parse_args().steps
    web.main([str(OUT)])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Host, directory=OUT))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    query = f"?steps={steps[0]},{steps[1]}" if steps else ""
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as profile:
        how = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox", "--disable-gpu"]}
        page = driver.chromium.launch_persistent_context(profile, **how).pages[0]
        page.set_default_timeout(600_000)
        waits, kept, pictures = used(page, f"http://127.0.0.1:{server.server_port}/{query}#drawing=0&text={TEXT}")
        page.context.close()
    names = ["page to first picture, warm cache", "a whole training", "a preview after a slider moved", "the picture"]
    rows = list(zip(names, waits, ["5 s", "60 s", "0.4 s", "1.8 s"], strict=True))
    bytes_sent = sum(file.stat().st_size for file in OUT.rglob("*.*") if file.name != "imagic.html")
    rows.append(["first visit downloads", f"{bytes_sent / 1e6:.1f} MB", "40 MB"])
    table = markdown_table(["what", f"measured, {os.cpu_count()} cores", "bar"], rows) + "\n\n"
    given = dict(zip(("embedding_steps", "unet_steps"), steps or (), strict=False))
    table += markdown_table(ERRORS, errors(kept, pictures, given))
    print(table) if steps else put(README, "live", table)


if __name__ == "__main__":
    main()
