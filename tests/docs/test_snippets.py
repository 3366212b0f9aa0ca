"""The Python snippets of the documentation run, on small data that the test makes."""

import ast
import contextlib
import functools
import re

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import vitrail
from tests.docs.pages import PAGES, ROOT, Snippet, snippets
from vitrail.data.sources import opening
from vitrail.explain.methods.registry import METHODS
from vitrail.models import list_families
from vitrail.models.family import REGISTERED

WITH_PYTHON = [page for page in PAGES if snippets(page, "python")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the files that the pages name."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("healthy", "rust", "scab")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(16):
            pixels = rng.integers(0, 120, (36, 36, 3), dtype=np.uint8)
            pixels[..., number] += 80
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index:03d}.png")
    Image.fromarray(rng.integers(0, 255, (90, 70, 3), dtype=np.uint8)).save(tmp_path / "leaf.jpg")
    (tmp_path / "tiles").mkdir()
    for index in range(4):
        tile = rng.integers(0, 9000, (16, 16, 5), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "tiles" / f"tile_{index:03d}.tif", tile, photometric="minisblack")
    torch.save(vitrail.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "checkpoint.pth")
    monkeypatch.chdir(tmp_path)
    # What pages register ends with the page.
    list_families()  # those of this package register when they are first listed
    kept = [(table, dict(table)) for table in (REGISTERED, METHODS, opening.SOURCES, opening._REGISTERED)]
    # The pages show how models are compiled; the time that it takes belongs to the tests of the models.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, disable=True))
    torch.manual_seed(0)
    yield tmp_path
    for table, content in kept:
        table.clear()
        table.update(content)


@pytest.mark.fast_cases("docs/architectures/swin.md")
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_snippets_run(page, folder):
    names = {"__name__": "snippets"}
    for snippet in snippets(page, "python"):
        # Training runs in full, with two blocks in place of twelve.
        snippet = snippet._replace(text=snippet.text.replace('"patch_size": 8}', '"patch_size": 8, "depth": 2}'))
        run_snippet(snippet, names)


def run_snippet(snippet, names):
    """Run a snippet statement by statement, and compare the values and shapes that its comments state."""
    # Empty lines before it, so that a traceback has the page's own line numbers.
    tree = ast.parse("\n" * (snippet.line - 1) + snippet.text)
    lines = snippet.text.splitlines()
    for node in tree.body:
        shown = node.value if isinstance(node, ast.Expr) else None
        if isinstance(shown, ast.Call) and getattr(shown.func, "id", "") == "print":
            shown = shown.args[0]
        name = node.targets[0] if isinstance(node, ast.Assign) else None
        if shown is not None and shown is node.value:
            value = eval(compile(ast.Expression(shown), ROOT / snippet.page, "eval"), names)
        else:
            exec(compile(ast.Module([node], []), ROOT / snippet.page, "exec"), names)
            shown = shown or (name if isinstance(name, ast.Name) else None)
            value = None if shown is None else eval(ast.unparse(shown), names)
        stated = read_comment(lines[node.end_lineno - snippet.line].partition("  # ")[2])
        if stated is not None and value is not None:
            assert _plain(value, stated) == stated, f"{snippet.page}:{node.end_lineno} states {stated}"


def read_comment(comment):
    """The value that a comment begins with, ``(2, 3)`` or ``[96, 192]``; None for words."""
    for text in (comment, *re.findall(r"^(?:\([\d, ]+\)|\[.*?\]|\{.*?\})", comment)):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(text)
    return None


def _plain(value, stated):
    """A value as a comment states it: tensors as their shapes."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return tuple(value.shape)
    if isinstance(value, list | tuple) and all(isinstance(item, torch.Tensor) for item in value):
        return type(stated)(tuple(item.shape) for item in value)
    return value


def test_comments_are_compared():
    names = {"torch": torch}
    run_snippet(Snippet("README.md", 1, "x = torch.rand(2, 3)  # (2, 3), random\nlen(x)  # 2\n"), names)
    for text in ("torch.rand(2, 3)  # (3, 2)", "x = 2  # 3", "print([1])  # [2]"):
        with pytest.raises(AssertionError, match=r"README\.md:7"):
            run_snippet(Snippet("README.md", 7, text), names)
    assert read_comment("(B, N): tokens") is None


@pytest.mark.slow_cases("docs/architectures/swin.md")
@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, _, heading in re.findall(r"\]\(([^)#\s]*)(#([^)\s]*))?\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        if target.startswith("http"):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}, which does not exist"
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
            assert heading in [_anchor(title) for title in headings], f"{page} links to {target}#{heading}"


def _anchor(title):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^)#]+)\)", index))
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert pages - {"README.md"} <= linked | {page for page in pages if page.startswith("architectures/")}
    assert "](docs/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
