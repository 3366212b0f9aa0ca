"""The house of CONTRIBUTING.md: a file imports only from floors below its own, and no modules import in a circle."""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "vitrail"


def _floors():
    """Room -> floor, from the table of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text.split("## The house")[1].split("\n## ")[0], re.MULTILINE)
    floors = {
        room: int(floor) for floor, rooms in rows for room in re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", rooms))
    }
    return floors | {"__main__": floors["cli"] + 1}


FLOOR = _floors()


def _name(path):
    parts = ["vitrail", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _modules():
    return {_name(path): path for path in SOURCE.rglob("*.py")}


def _imports(path, modules):
    return _imports_of(path, frozenset(modules))


@functools.cache
def _imports_of(path, modules):
    return list(_find_imports(path, modules))


def _find_imports(path, modules):
    """All vitrail modules that a file imports, anywhere in it: lazily, relatively, or by ``import_module``."""
    package = _name(path) if path.name == "__init__.py" else _name(path).rpartition(".")[0]
    text = path.read_text(encoding="utf-8")
    for node in (ast.walk if "import_module" in text else _statements)(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "vitrail")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            if base.split(".")[0] == "vitrail":
                full = {f"{base}.{alias.name}" for alias in node.names}
                yield from (full & modules) if full <= modules else (full & modules) | {base}
        elif isinstance(node, ast.Call) and _called(node) == "import_module":
            named = next((c.value for c in ast.walk(node) if isinstance(c, ast.Constant)), None)
            if isinstance(named, str) and named.startswith("vitrail."):
                # A package whose modules are imported by name: all of them.
                yield from (m for m in modules if m == named or m.startswith(named.rstrip(".") + "."))


def _statements(node):
    """All statements below a node, in a third of the time that ``ast.walk`` takes for expressions too."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, name, ()):
            yield child
            yield from _statements(child)


def _called(call):
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _violations(modules):
    for name, path in modules.items():
        if name == "vitrail":
            continue  # the public names: lazily imported from wherever they are defined
        own = name.split(".")[1]
        for module in _imports(path, modules):
            room = module.split(".")[1] if module != "vitrail" else own  # the version
            if room not in FLOOR:
                yield f"{name} imports {module}, which is on no floor"
            elif room != own and FLOOR[room] >= FLOOR[own] > 0:
                yield f"{name} (floor {FLOOR[own]}) imports {module} (floor {FLOOR[room]})"
            elif FLOOR[own] == 0 and FLOOR[room] > 0:
                yield f"{name} (floor 0) imports {module}"


def _circles(modules):
    """Groups of modules that import each other in a circle (Tarjan's strongly connected components)."""
    graph = {name: set(_imports(path, modules)) & modules.keys() - {name, "vitrail"} for name, path in modules.items()}
    index, low, stack, circles = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            circle = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(circle) > 1:
                circles.append(sorted(circle))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return circles


def test_every_room_is_on_a_floor():
    rooms = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(FLOOR)


def test_imports_go_down():
    assert list(_violations(_modules())) == []


def test_no_modules_import_in_a_circle():
    assert _circles(_modules()) == []


def test_families_do_not_import_each_other():
    for name, path in (modules := _modules()).items():
        if name.startswith("vitrail.models.families."):
            others = [m for m in _imports(path, modules) if m.startswith("vitrail.models.families")]
            assert others == [], name


def test_the_check_itself_can_fail(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    files = {
        "layers/__init__.py": "",
        "layers/bad.py": "def f():\n    from vitrail.models import create_model\n    from ..cli import main\n",
        "layers/one.py": "def f():\n    from . import two\n",
        "layers/two.py": "import importlib\nimportlib.import_module(f'vitrail.layers.{1}')\n",
        "models/__init__.py": "",
        "cli/__init__.py": "",
        "cli/main.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [line.split(" imports ")[1][:14] for line in _violations(_modules())] == ["vitrail.models", "vitrail.cli.ma"]
    assert _circles(_modules()) == [["vitrail.layers.one", "vitrail.layers.two"]]


def test_no_figure_is_kept_by_pyplot():
    # pyplot keeps every figure until it is closed: a caller of `figures.confusion` would have to know that.
    users = [p for p in SOURCE.rglob("*.py") if "pyplot" in p.read_text(encoding="utf-8")]
    assert users == []
