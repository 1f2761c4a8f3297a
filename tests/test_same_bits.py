"""The new house computes the same bits as the old one, which is taken out of the history (commit 8bcede9)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OLD = "8bcede9"
SCRIPT = Path(__file__).with_name("same_bits.py")


def printed(root: Path, which: str, edits: Path) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), which, str(edits)]
    done = subprocess.run(command, env=environment, cwd=root, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if "=" in line]


def test_every_training_every_picture_and_every_folder_has_the_bits_of_the_old_code(tmp_path):
    archive = subprocess.run(["git", "archive", OLD], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.fail("the history is needed: clone without --depth")
    old = tmp_path / "old"
    old.mkdir()
    subprocess.run(["tar", "x", "-C", str(old)], input=archive.stdout, check=True)
    before, after = printed(old, "old", tmp_path / "edits"), printed(ROOT, "new", tmp_path / "edits")
    assert before == after and len(before) == 20
