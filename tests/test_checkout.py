"""The size of the checkout."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LARGEST = 8_000_000


def test_tracked_files_are_small():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.split("\0") if name and (ROOT / name).exists()}
    largest = sorted(sizes, key=sizes.get)[-5:]
    assert sum(sizes.values()) < LARGEST, f"the largest files are {', '.join(largest)}"
