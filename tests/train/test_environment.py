"""The code that a run was made with: vitrail's own, and whether it was changed."""

import shutil
import subprocess

import pytest

from vitrail.train import environment

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


def _git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in the place of vitrail's own, in a folder that is not a repository yet."""
    package = tmp_path / "checkout" / "src" / "vitrail"
    (package / "train").mkdir(parents=True)
    for name in ("__init__.py", "losses.py", "train/environment.py"):
        (package / name).write_text("A = 1\n")
    monkeypatch.setattr(environment, "__file__", str(package / "train" / "environment.py"))
    for name in ("_code", "_checkout"):
        monkeypatch.setattr(environment, name, getattr(environment, name).__wrapped__)
    return package


def _described():
    described = environment.describe_environment(0)
    return {name: described[name] for name in ("code", "git_commit", "git_changes")}


def test_changed_code_is_recorded(package, tmp_path):
    _git(tmp_path / "checkout", "init")
    _git(tmp_path / "checkout", "add", "-A")
    _git(tmp_path / "checkout", "commit", "-m", "x")
    first = _described()
    assert first["git_commit"] == _git(tmp_path / "checkout", "rev-parse", "HEAD")
    assert first["git_changes"] == []
    (tmp_path / "checkout" / "notes.txt").write_text("of somebody")  # no code of vitrail
    assert _described() == first
    (package / "losses.py").write_text("A = 2\n")
    (package / "new one.py").write_text("B = 1\n")
    changed = _described()
    assert changed["git_commit"] == first["git_commit"]
    assert changed["git_changes"] == ["src/vitrail/losses.py", "src/vitrail/new one.py"]
    assert changed["code"] != first["code"]


def test_a_repository_that_vitrail_is_installed_in_is_not_its_own(package, tmp_path):
    project = tmp_path / "checkout"
    _git(project, "init")
    (project / ".gitignore").write_text("src\n")
    _git(project, "add", "-A")
    _git(project, "commit", "-m", "x")
    described = _described()
    assert (described["git_commit"], described["git_changes"]) == (None, None)
    before = described["code"]
    (package / "losses.py").write_text("A = 2\n")
    assert _described()["code"] != before
