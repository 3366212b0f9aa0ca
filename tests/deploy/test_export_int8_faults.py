"""A real int8 file with one destroyed layer is refused, by the check of recorded outputs and by the gate."""

import json
import shutil

import numpy as np
import pytest

from tests.deploy.exporting import photographs, record, skip_without, train
from vitrail.cli.main import main
from vitrail.deploy.export.calibrate import Quantizer
from vitrail.engines.load import RECORD_FILE, digest, load_export, sealed
from vitrail.errors import RunError

pytestmark = [pytest.mark.slow, skip_without("openvino", "nncf")]
# 32 images without a miss show 91.1 %.
MODEL = "--model.name vit --model.patch_size 4 --model.embed_dim 32 --model.depth 1 --model.num_heads 2".split()
INT8 = "--format openvino --precision int8 --agreement 0.8 --max-drop 0.2 --budget 1s --threads 1 --include".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("int8_faults")
    pictures = photographs(root / "pictures", per_class=16)
    return train(pictures, root / "run", *MODEL, "--trainer.learning_rate", "3e-3", epochs=15)


@pytest.fixture(scope="module")
def written(run):
    out = run.parent / "out"
    assert main(["export", str(run), "--out", str(out), *INT8]) == 0
    return out


def weights(model):
    """Constants of int8 with the weights of a layer, in the order of the graph."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"
            and node.get_element_type().get_type_name() == "i8" and len(node.get_shape()) > 1]  # fmt: skip


def destroy(file, index):
    """Set the weights of one layer of a model file to zero."""
    import openvino

    model = openvino.Core().read_model(file)
    node = weights(model)[index]
    zero = openvino.opset13.constant(np.zeros(node.get_shape(), np.int8))
    for user in node.output(0).get_target_inputs():
        user.replace_source_output(zero.output(0))
    changed = file.with_name("changed.xml")
    openvino.save_model(model, changed, compress_to_fp16=False)
    del model, node
    for suffix in (".xml", ".bin"):
        shutil.move(changed.with_suffix(suffix), file.with_suffix(suffix))


def test_the_export_computes_in_int8_and_is_as_recorded(written, capsys):
    assert record(written)["precision"] == "int8"
    assert main(["export", "--check", str(written)]) == 0
    assert "as recorded" in capsys.readouterr().out


def layers(written):
    import openvino

    return len(weights(openvino.Core().read_model(written / "1" / "model.xml")))


def test_the_check_refuses_each_destroyed_layer(written, tmp_path, capsys):
    count = layers(written)
    assert count >= 5  # patch embedding, attention (2), MLP (2)
    for index in range(count):
        edited = shutil.copytree(written, tmp_path / str(index)) / "1"
        destroy(edited / "model.xml", index)
        with pytest.raises(RunError, match="is not the exported file"):
            load_export(edited)
        # Whoever edits the file may correct the digests too.
        made = record(edited.parent)
        made["files"] |= {name: digest(edited / name) for name in ("model.xml", "model.bin")}
        (edited / RECORD_FILE).write_text(json.dumps(sealed(made)))
        assert main(["export", "--check", str(edited)]) == 1
        assert "of its scale from the recorded one" in capsys.readouterr().err


def test_the_gate_refuses_a_destroyed_layer(run, tmp_path, monkeypatch, capsys):
    inner = Quantizer.__call__

    def quantize(self, source, target, *more):
        inner(self, source, target, *more)
        destroy(target, -1)

    monkeypatch.setattr(Quantizer, "__call__", quantize)
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *INT8]) == 1
    assert "no candidate may be written" in capsys.readouterr().err
    assert not (tmp_path / "out" / "1").exists()
