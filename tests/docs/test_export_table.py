"""The table of tested exports lists what the tests of exports run, and nothing else."""

from pathlib import Path

from tests.deploy.test_export_families import CASES
from tests.deploy.test_export_quantize import QUANTISED
from tests.deploy.test_export_sizes import FIRST, OTHER_ENGINES

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
ROWS = {
    "ViT": "vit",
    "ViT with TokenLearner": "vit, TokenLearner",
    "ViT with TokenLearner and fuser": "vit, TokenFuser",
    "Swin": "swin",
    "Swin, padded windows": "swin, padded",
    "MaxViT": "maxvit",
    "HVT, one stream": "hvt, one stream",
    "HVT, two streams": "hvt",
    "HVT, windows": "hvt, windows",
    "HVT, concatenated streams": "hvt, concat",
}


def table():
    """Lines of the table."""
    header = ["model", "fp32, 1e-5", "int8", "any size, 1e-5"]
    lines = [header, ["---"] * len(header)]
    for label, name in ROWS.items():
        sizes = ["OpenVINO"] * (name in FIRST) + ["ONNX Runtime", "torch"] * (name in OTHER_ENGINES)
        eight = "OpenVINO, ONNX Runtime" if name in QUANTISED else "-"
        fp32 = "OpenVINO, ONNX Runtime, torch" if name in CASES else "-"
        lines.append([label, fp32, eight, ", ".join(sizes) or "-"])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def test_the_page_has_the_table():
    assert "\n".join(table()) in PAGE.read_text(encoding="utf-8")
