"""The promises of `make test`: coverage has a threshold, and the last line says if a browser is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import last_line

ROOT = Path(__file__).resolve().parent.parent


def commands(goal: str) -> list[str]:
    """What `make goal` would run, also if this test is itself run by make."""
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    dry = ["make", "-n", "--no-print-directory", goal]
    done = subprocess.run(dry, cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_live_page_is_old_when_the_method_or_its_model_is_younger():
    told = subprocess.run(["make", "-npq", "build/live"], cwd=ROOT, capture_output=True, text=True).stdout
    [needed] = re.findall(r"^build/live: (.*)", told, re.MULTILINE)
    named = {"imagic_lib/stage2_finetuning.py", "imagic_lab/web/export.py", "docs/live/engine.js"}
    assert named <= {*needed.split()} and "data/tiny-sd/unet/" in needed


def test_too_little_coverage_fails():
    assert any("--cov " in line and "--cov-fail-under=97" in line for line in commands("test"))


@pytest.mark.parametrize("workers", [[], ["-p", "xdist", "-n", "2"]], ids=["one process", "two workers"])
def test_the_last_line_says_if_the_browser_is_missing(tmp_path, workers):
    """The same plugin as here, on a browser test that is skipped as on a machine without Chromium."""
    if workers:
        pytest.importorskip("xdist", reason="pytest-xdist is not installed, as on Colab")
    (tmp_path / "test_browser.py").write_text("import pytest\n\ndef test_page():\n    pytest.skip('no Chromium')\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.last_line", *workers, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("NOT TESTED: ") and last.endswith(" in a browser. no Chromium")


def test_every_run_has_the_plugin_that_says_it(request):
    assert any(isinstance(plugin, last_line.Browser) for plugin in request.config.pluginmanager.get_plugins())


def test_the_notebooks_and_all_tests_are_one_run_and_the_notebooks_begin():
    [run] = [line for line in commands("test") if "-m pytest" in line]
    assert " -p tests.notebook_run notebooks tests " in run and "--no-loadscope-reorder" in run
