"""The house of DESIGN.md: a file imports only from floors below its own, never from a sibling's room."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "vitrail"

# From the ground up. weights lies below layers: layers such as TokenLearner declare how checkpoints map to them.
FLOORS = (
    ("errors", "extras", "files", "outputs", "machine", "durations", "bootstrap", "plugins", "config", "catalogue"),
    ("weights", "data"),
    ("layers",),
    ("models",),
    ("tasks", "explain", "runs"),
    ("bench",),
    ("train", "evaluate", "deploy"),
    ("figures",),
    ("analyze",),
    ("compare", "report"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def _room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def _imports(path):
    """All vitrail modules that a file imports, anywhere in it, with relative imports resolved."""
    module = ["vitrail", *path.relative_to(SOURCE).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "vitrail")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module[: -node.level], *([node.module] if node.module else [])])
            if base == "vitrail":
                yield from (f"vitrail.{alias.name}" for alias in node.names)
            elif base.startswith("vitrail."):
                yield base


def _violations(files):
    for path in files:
        relative = path.relative_to(SOURCE)
        own = relative.parts[0].removesuffix(".py")
        if own == "__init__":
            continue  # the public names: lazily imported from wherever they are defined
        for module in _imports(path):
            room = _room(module)
            if room in (None, own) or room not in FLOOR:
                if room is not None and room != own and room not in ("__version__",):
                    yield f"{relative} imports {module}, which is on no floor"
                continue
            if FLOOR[room] >= FLOOR[own] and room != own and FLOOR[own] > 0:
                yield f"{relative} (floor {FLOOR[own]}) imports {module} (floor {FLOOR[room]})"
            if FLOOR[own] == 0 and FLOOR[room] > 0:
                yield f"{relative} (ground floor) imports {module}"


def test_every_room_is_on_a_floor():
    rooms = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(FLOOR)


def test_imports_go_down():
    assert list(_violations(SOURCE.rglob("*.py"))) == []


def test_families_do_not_import_each_other():
    for path in (SOURCE / "models" / "families").glob("*.py"):
        others = [m for m in _imports(path) if m.startswith("vitrail.models.families")]
        assert others == [], path.name


def test_the_check_itself_can_fail(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    (tmp_path / "layers").mkdir()
    bad = tmp_path / "layers" / "bad.py"
    bad.write_text("def f():\n    from vitrail.models import create_model\n    from ..cli import main\n")
    assert len(list(_violations([bad]))) == 2


def test_no_figure_is_kept_by_pyplot():
    # pyplot keeps every figure until it is closed: a caller of `figures.confusion` would have to know that.
    users = [p for p in SOURCE.rglob("*.py") if "pyplot" in p.read_text(encoding="utf-8")]
    assert users == []
