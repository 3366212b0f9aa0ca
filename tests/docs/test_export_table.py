"""The table of tested exports is the one that the recorded run of benchmarks/export_matrix.py gives."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.deploy.test_export_families import CASES
from vitrail.deploy.export.candidates import list_variants
from vitrail.models.registry import list_families

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def matrix():
    spec = importlib.util.spec_from_file_location("export_matrix", ROOT / "benchmarks" / "export_matrix.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_recorded_table(matrix):
    results = json.loads(matrix.RESULTS.read_text(encoding="utf-8"))
    assert matrix.BEGIN + matrix.table(results) + matrix.END in matrix.PAGE.read_text(encoding="utf-8")
    quantised = [own for name, own in results.items() if name.endswith("int8") and "failure" not in own]
    assert all(own["int8"] > 0 for own in quantised)


def test_a_run_has_all_families_and_variants(matrix):
    assert {CASES[case][0] for case in matrix.MODELS.values()} == list_families("image").keys()
    variants = {(engine, precision) for engine, own in matrix.PRECISIONS.items() for precision in own}
    assert variants == {(variant.engine, variant.precision) for variant in list_variants()}


def test_differences_and_failures_are_named(matrix):
    def result(size="fixed", precision="fp32", **found):
        return {matrix.key("swin", size, "openvino", precision): found}

    good = result(difference=3e-7, int8=0) | result(precision="int8", difference=0.1, int8=9)
    assert "| Swin | OpenVINO 3e-07 | - | OpenVINO 9 | - |" in matrix.table(good)
    bad = matrix.table(result(difference=2e-5, int8=0) | result("any", failure="lacks an operator"))
    assert "| Swin | - | - | - | - |" in bad
    assert "Not recorded: ViT, " in bad
    assert "- Swin, OpenVINO, fp32: differs by 2e-05" in bad
    assert "- Swin, OpenVINO, any size: lacks an operator" in bad
