"""Machine code of Inductor: equal to eager mode, without paths, refused on other processors and without a compiler."""

import json
import platform
import shutil
import sysconfig
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.deploy.exporting import needs_compiler
from vitrail.deploy.export.convert import convert
from vitrail.engines import inductor
from vitrail.engines.load import ENGINES, open_engine
from vitrail.errors import ConfigError, RunError


class Classifier(nn.Module):
    """Two outputs by name, as an export's graph."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, pixels):
        logits = self.head(self.norm(pixels.float() / 255))
        return {"logits": logits, "probabilities": logits.softmax(1)}


FACTS = {"inputs": [{"name": "image_resized"}]}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Classifier().eval()


def _package_uncompiled(program, package_path, inductor_configs):
    """Write the files of AOTInductor's package, with paths of this machine."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    paths = f"{cache_dir()} {sysconfig.get_path('purelib')}"
    made_for = json.dumps({"AOTI_MACHINE": platform.machine(), "AOTI_CPU_ISA": "AVX2"})
    files = {"a.wrapper.cpp": paths, "a.wrapper.so": paths, "a.wrapper_metadata.json": made_for}
    with zipfile.ZipFile(package_path, "w") as package:
        for name, content in files.items():
            package.writestr(f"{Path(package_path).stem}/data/aotinductor/model/{name}", content)


@pytest.fixture(scope="module", params=["uncompiled", pytest.param("compiled", marks=pytest.mark.slow)])
def folder(request, model, tmp_path_factory):
    """An export by Inductor, whose compiler takes ten seconds; uncompiled, the module itself runs."""
    example = torch.zeros(2, 8, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=0, max=64)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    made = tmp_path_factory.mktemp("inductor")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "uncompiled":
            patch.setattr("torch._inductor.aoti_compile_and_package", _package_uncompiled)
            patch.setattr("torch._inductor.aoti_load_package", lambda file: model)
            patch.setattr(torch.cpu, "_is_avx2_supported", lambda: True)
        convert(program, None, "inductor", made, FACTS)
        yield made


@needs_compiler
@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_package_equals_eager_mode(model, folder, count):
    engine = open_engine(folder, "inductor", "fp32", 1)
    pixels = np.random.default_rng(count).integers(0, 256, (count, 8), dtype=np.uint8)
    found = engine.run({"image_resized": pixels})
    with torch.no_grad():
        wanted = model(torch.from_numpy(pixels))
    assert [*found] == [*wanted]
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values.numpy(), rtol=0, atol=1e-6)
    assert engine.precision == "fp32"
    assert engine.operations() == {}


@needs_compiler
def test_the_package_holds_neither_sources_nor_paths(folder):
    assert [file.name for file in folder.iterdir()] == ["model.pt2"]
    with zipfile.ZipFile(folder / "model.pt2") as package:
        assert not [name for name in package.namelist() if name.endswith(".cpp")]
        content = b"".join(map(package.read, package.namelist()))
        assert json.loads(package.read(f"model/{inductor.RECORD}")) == FACTS
    for path in (sysconfig.get_path("purelib"), str(folder), "/torchinductor_"):
        assert path.encode() not in content


def _package(folder, **made_for):
    with zipfile.ZipFile(folder / "model.pt2", "w") as package:
        package.writestr(f"model/{inductor.RECORD}", json.dumps(FACTS))
        package.writestr("model/data/aotinductor/model/a.wrapper_metadata.json", json.dumps(made_for))


def test_machine_code_for_another_processor_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inductor, "platform", SimpleNamespace(machine=lambda: "x86_64"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    _package(tmp_path, AOTI_MACHINE="x86_64", AOTI_CPU_ISA="AVX512 AVX512_VNNI")
    with pytest.raises(ConfigError, match=r"lacks AVX512_VNNI; export again on this processor"):
        open_engine(tmp_path, "inductor", "fp32")
    _package(tmp_path, AOTI_MACHINE="aarch64", AOTI_CPU_ISA="ASIMD")
    with pytest.raises(ConfigError, match=r"lacks aarch64; export again"):
        open_engine(tmp_path, "inductor", "fp32")


def test_a_damaged_package_and_another_precision_are_refused(tmp_path):
    (tmp_path / ENGINES["inductor"]).write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"inductor cannot load model.pt2.*export again"):
        open_engine(tmp_path, "inductor", "fp32")
    with pytest.raises(ConfigError, match="precision bf16 is not supported by inductor"):
        open_engine(tmp_path, "inductor", "bf16")


def test_without_a_compiler_there_is_no_package(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    with pytest.raises(
        ConfigError, match=r"needs the C\+\+ compiler .*, which is not installed; use --format openvino"
    ):
        convert(None, None, "inductor", tmp_path, FACTS)
