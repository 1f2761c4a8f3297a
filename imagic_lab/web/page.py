"""Put the live page together: `python -m imagic_lab.web.page OUT [MODEL]`, where MODEL is what `export` writes.

OUT gets the page of docs/live/, the packages that `npm ci` has installed there, and the model, compressed. The files
work on any host, below any path. OUT/imagic.html is the whole page in one file, which opens by double click and needs
no network. Without MODEL, the model is exported anew; packages that are missing are fetched.
"""

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from imagic_lab.classroom import maps
from imagic_lab.web.export import write_model
from imagic_lib.models import DATA, load_pipeline

LIVE = DATA.parent / "docs" / "live"
MODULES = LIVE / "node_modules"
PACKAGES = {
    "ort.mjs": "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "ort.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "tokenizers.mjs": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
}
MODEL = ("model.json", "tokenizer.json", "weights.bin", *(f"{name}.onnx" for name in
         ("text", "encode", "decode", "unet", "embedding", "tuning")))  # fmt: skip
TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".png": "image/png"}  # all others are compressed


def assets(model: Path) -> dict[str, bytes]:
    """Return everything that the page fetches, by name. Raises FileNotFoundError if a part is missing."""
    if not MODULES.is_dir():
        raise FileNotFoundError("the packages of the live page are missing: run `npm ci` in docs/live")
    if not (model / "model.json").is_file():
        raise FileNotFoundError(f"{model} holds no model: run `python -m imagic_lab.web.export {model}`")
    files = {name: LIVE / name for name in ("engine.js", "maths.js")}
    files |= {name: MODULES / path for name, path in PACKAGES.items()} | {name: model / name for name in MODEL}
    files |= {"drawings.png": model / "drawings.png"}
    contents = {name: path.read_bytes() for name, path in files.items()}
    return {name: x if Path(name).suffix in TYPES else gzip.compress(x, 9, mtime=0) for name, x in contents.items()}


def page_html(listed: dict, extra: str = "") -> str:
    """Return the page, with the map of the method and the list of its assets."""
    text = (LIVE / "index.html").read_text(encoding="utf-8")
    drawing = (Path(maps.__file__).with_name("map.svg")).read_text(encoding="utf-8").replace("$style", "")
    text = text.replace("<!-- map -->", re.sub(r"<!--.*?-->\s*", "", drawing, flags=re.DOTALL))
    listing = f'<script type="application/json" id="assets">{json.dumps(listed)}</script>'
    return text.replace("<!-- assets -->", extra + listing)


def build_page(out: Path, model: Path) -> None:
    """Empty `out`, and write the page and the single file into it."""
    parts = assets(model)
    shutil.rmtree(out, ignore_errors=True)
    (out / "assets").mkdir(parents=True)
    listed = {}
    for name, content in parts.items():
        file = Path("assets") / (name if Path(name).suffix in TYPES else f"{name}.gz")
        (out / file).write_bytes(content)
        listed[name] = {"url": file.as_posix(), "bytes": len(content)}
    (out / "index.html").write_text(page_html(listed), encoding="utf-8")
    for name in ("live.css", "page.js"):
        shutil.copy(LIVE / name, out / name)
    shutil.copy(MODULES / "coi-serviceworker" / "coi-serviceworker.min.js", out / "coi-serviceworker.js")
    (out / "imagic.html").write_text(single(parts), encoding="utf-8")


def single(parts: dict[str, bytes]) -> str:
    """Return the page with everything inside it: assets in base64, and styles and script instead of links to them."""
    listed = {name: {"type": TYPES.get(Path(name).suffix, ""), "bytes": len(x)} for name, x in parts.items()}
    inside = "".join(
        f'<script type="text/plain" data-asset="{name}">{base64.b64encode(x).decode()}</script>\n'
        for name, x in parts.items()
    )
    text = re.sub(r'<script src="coi-serviceworker.js"></script>\n', "", page_html(listed, inside))
    style = f"<style>{(LIVE / 'live.css').read_text(encoding='utf-8')}</style>"
    script = f'<script type="module">{(LIVE / "page.js").read_text(encoding="utf-8")}</script>'
    text = text.replace('<link rel="stylesheet" href="live.css">', style)
    return text.replace('<script type="module" src="page.js"></script>', script)


def main(arguments: Sequence[str]) -> None:
    out, model = map(Path, [*arguments, DATA.parent / "build" / "live-model"][:2])
    if not MODULES.is_dir():
        subprocess.run(["npm", "ci", "--prefix", LIVE, "--ignore-scripts", "--no-audit", "--no-fund"], check=True)
    if len(arguments) < 2:
        write_model(load_pipeline(), model)
    build_page(out, model)
    size = sum(file.stat().st_size for file in (out / "assets").iterdir())
    print(
        f"{out}: {size / 1e6:.1f} MB to download, or imagic.html of {(out / 'imagic.html').stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
