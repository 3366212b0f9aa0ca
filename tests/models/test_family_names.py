"""No code outside of a family's file names the family or its classes: it asks the model, through the contract."""

import ast
import re
from pathlib import Path

import pytest

import vitrail
from vitrail.models import list_families
from vitrail.models.catalogue import is_foreign

SOURCE = Path(vitrail.__file__).parent
FAMILIES = {name: family for name, family in list_families().items() if not is_foreign(family)}
# Examples in help texts, the models of the demo, and the model of a recipe that names none.
PROSE = {
    "cli/demo.py": {"vit", "vivit", "vnt", "ViViT"},
    "cli/inspect.py": {"vit_tiny_patch16_224", "vit"},
    "cli/models.py": {"vit_small"},
    "cli/recipe_help.py": {"swin"},
    "config/schema.py": {"vit_tiny_patch16_224"},
}


def classes_of(family):
    """Classes that a family's file defines."""
    tree = ast.parse(Path(SOURCE / "models" / "families" / f"{family.name}.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


CLASSES = {name for family in FAMILIES.values() for name in classes_of(family)}
WORDS = re.compile(rf"\b({'|'.join(FAMILIES)})(_\w+)?\b", re.IGNORECASE)
LOWER = {name.lower() for name in CLASSES}


def named(text):
    """Family names and classes in the code of a file: identifiers, imports and texts, but no docstrings or comments."""
    # Also in prose: files without any need not be parsed.
    if not any(word in LOWER or WORDS.fullmatch(word) for word in set(re.findall(r"\w+", text.lower()))):
        return
    tree = ast.parse(text)
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            prose.add(id(node.body[0].value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from (match[0] for match in WORDS.finditer(node.value))
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in CLASSES or WORDS.fullmatch(name):
                yield name
        elif isinstance(node, ast.alias) and (node.name.rpartition(".")[2] in CLASSES | set(FAMILIES)):
            yield node.name


def files():
    return [p for p in SOURCE.rglob("*.py") if p.parent != SOURCE / "models" / "families"]


def test_no_file_names_a_family():
    found = {
        (path, name)
        for path in files()
        for name in named(path.read_text(encoding="utf-8"))
        if name not in PROSE.get(path.relative_to(SOURCE).as_posix(), ())
    }
    assert sorted(f"{path.relative_to(SOURCE)}: {name}" for path, name in found) == []


@pytest.mark.parametrize(
    "code",
    [
        "from vitrail.models.families.vit import ViT",
        "from vitrail.models.families import swin",
        "isinstance(model, MaxViT)",
        "raise ConfigError('use hvt')",
        'create_model("swin_tiny_patch4_window7_224")',
        "if family.name == 'vit': pass",
    ],
)
def test_the_check_itself_can_fail(code):
    assert list(named(code))


def test_prose_is_allowed():
    assert not list(named('"""As in Swin and ViT."""\nx = 1  # as in MaxViT\nviting = "invite"'))
