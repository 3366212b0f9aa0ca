import functools

import pytest
import yaml

from tests.undrawn import _drawn as _drawn
from tests.undrawn import _undrawn as _undrawn
from vitrail.evaluate import statistics

BASE = {
    "data": {"source": "digits", "batch_size": 64},
    "model": {"name": "vit", "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "trainer": {"max_epochs": 4},
}
SUITE = {
    "title": "Small and wide",
    "recipe": "base.yaml",
    "variants": {"plain": {}, "wide": {"model.embed_dim": 32}, "slow": {"trainer.learning_rate": 1e-4}},
    "seeds": 2,
}


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    for name in ("bootstrap_images", "bootstrap_runs_and_images", "sign_flip"):
        monkeypatch.setattr(statistics, name, functools.partial(getattr(statistics, name), repeats=199))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a recipe, in which the test works; gives a function that writes a suite."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def write(name="suite.yaml", **changes):
        content = {k: v for k, v in {**SUITE, **changes}.items() if v is not None}
        (tmp_path / name).write_text(yaml.safe_dump(content, sort_keys=False))
        return tmp_path / name

    return write
