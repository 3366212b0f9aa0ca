"""Tiles of fields in five bands of 16 bits, and a table of their file, class and field with semicolons."""

from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

BANDS = ("blue", "green", "red", "red edge", "nir")
CLASSES = ("healthy", "stressed", "diseased")


def make_tiles(root: Path, tiles: int = 48, fields: int = 12, side: int = 32, seed: int = 0) -> list[str]:
    """Write ``root/tiles/*.tif`` and ``root/tiles.csv``; gives the settings that read them."""
    rng = np.random.default_rng(seed)
    (root / "tiles").mkdir(parents=True)
    y, x = np.mgrid[:side, :side].astype(float)
    angle, spacing = rng.uniform(0, np.pi, fields), rng.uniform(5, 9, fields)
    rows = []
    for i in range(tiles):
        field, label = i % fields, int(rng.integers(3))
        along = x * np.cos(angle[field]) + y * np.sin(angle[field])
        crop = np.cos(2 * np.pi * (along / spacing[field] + rng.uniform())).clip(-0.3)
        bands = [low + height * (1 - 0.3 * label) * crop + rng.normal(0, 0.08 * abs(height) + 40, crop.shape)
                 for low, height in ((600, 300), (900, 500), (800, -300), (1500, 1500), (2500, 4000))]  # fmt: skip
        name = f"tile_{i:03d}.tif"
        tifffile.imwrite(root / "tiles" / name, np.stack(bands).clip(0, 65535).astype(np.uint16))
        rows.append({"file": name, "class": CLASSES[label], "field": f"F{field:02d}"})
    pd.DataFrame(rows).to_csv(root / "tiles.csv", sep=";", index=False)
    return [
        "--data.source", "table", "--data.path", "tiles.csv", "--data.table.image_folder", "tiles",
        "--data.table.image_column", "file", "--data.table.label_column", "class", "--data.table.group_column",
        "field", "--data.bands.names", "[blue, green, red, red edge, nir]", "--data.scale", "10000",
    ]  # fmt: skip
