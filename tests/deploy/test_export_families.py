"""The graph of every family: logits and heatmap equal to the run's, in torch's program and in the engines."""

import json

import pytest
import torch

from tests.deploy.exporting import PACKAGES, skip_without
from tests.tiers import fast_first
from vitrail.deploy.export.convert import convert, trace
from vitrail.deploy.export.graph import ExportGraph
from vitrail.engines.load import ENGINES, open_engine
from vitrail.errors import ConfigError
from vitrail.explain import explain
from vitrail.explain.capture.groups import _cached_members
from vitrail.explain.methods.relevance import lacks_rollout
from vitrail.models.registry import create_model, list_families
from vitrail.runs.trained import ModelCard, StreamCard, TrainedModel

# Beyond each family's own: learned tokens with a fuser, padded and shifted windows, other poolings and fusions.
MORE = {
    "vit, class token": ("vit", {"class_token": True, "global_pool": "token"}),
    "vit, TokenLearner": ("vit", {"class_token": False, "global_pool": "avg",
                                  "token_learner": {"num_tokens": 3, "layer": 1}}),
    "vit, TokenFuser": ("vit", {"class_token": False, "global_pool": "avg",
                                "token_learner": {"num_tokens": 3, "layer": 1, "fuse": True}}),
    "swin, padded": ("swin", {"img_size": 36, "depths": (2,), "num_heads": (2,)}),
    "swin, padded after the shift": ("swin", {"img_size": 36, "depths": (2, 1), "mask_padding": False,
                                              "pad_after_shift": True}),
    "maxvit, small": ("maxvit", {"depths": (1, 1)}),
    "hvt, one stream": ("hvt", {"spectral_chans": 0}),
    "hvt, windows": ("hvt", {"attention": 4, "depths": (1,), "num_heads": (2,)}),
    "hvt, concat": ("hvt", {"fusion": "concat"}),
}  # fmt: skip
CASES = {name: (name, {}) for name in list_families()} | MORE | {"vnt, attributes": ("vnt", {"in_chans": 5})}
# Padded and shifted windows; ViT is in the tests of whole exports, of sizes and in int8.
FIRST = "swin, padded"
ORDER = sorted(CASES, key=lambda name: name != FIRST)
# The logits of these models in float32 are up to 3e-5 away from those in float64.
TOLERANCES = {"vn_pointnet": 5e-5, "vn_transformer": 5e-5}


def trained(family, settings):
    """A run's model with weights that make attention uneven; no training."""
    torch.manual_seed(0)
    model = create_model(family, **{**list_families()[family].test_config, **settings}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * scale * (0.1 if "pos_embed" in name else 1))
    streams = {
        stream.name: StreamCard(tuple(f"{stream.name}{i}" for i in range(stream.chans)), (0.4,) * stream.chans,
                                (0.3,) * stream.chans, stream.size)
        for stream in model.streams
    }  # fmt: skip
    card = ModelCard(family, {}, tuple("abcde"), streams)
    return TrainedModel(model, card.normalization(), card)


@pytest.fixture(scope="module")
def cases():
    """Name of a case -> its model, graph and traced program; traced once."""
    made = {}

    def get(name):
        if name not in made:
            _cached_members.cache_clear()
            model = trained(*CASES[name])
            include = ["embedding"] if lacks_rollout(model.model) else ["embedding", "heatmap"]
            graph = ExportGraph(model, dict.fromkeys(model.card.streams, torch.float32), {}, include)
            made[name] = model, graph, trace(graph)
        return made[name]

    return get


def images(model, count):
    generator = torch.Generator().manual_seed(count)
    return {stream.name: torch.rand(count, *stream.shape, generator=generator) for stream in model.model.streams}


def check(model, outputs, batch, include=("embedding", "heatmap")):
    """Outputs are those of the run: logits, embedding and a rollout for each stream, where it is included.

    The rollout of the run comes after the trace, which must leave no tensors without values behind in caches.
    """
    logits, embedding = model.classify(batch)
    wanted = {"logits": logits, "probabilities": logits.softmax(1), "embedding": embedding}
    if "heatmap" in include and not lacks_rollout(model.model):
        maps = {name: own.map for name, own in explain(model, batch, "rollout").items()}
        assert {type(own) for own in maps.values()} == {torch.Tensor}
        wanted |= {"heatmap_spectral" if name == "spectral" else "heatmap": own for name, own in maps.items()}
    assert set(outputs) == set(wanted)
    for name, values in wanted.items():
        found = torch.as_tensor(outputs[name])
        assert found.shape == values.shape, name
        assert float((found - values).abs().max() / values.abs().max()) < TOLERANCES.get(model.card.name, 1e-5), name


@pytest.mark.parametrize("name", fast_first(ORDER, 1))
def test_the_program_equals_the_run(cases, name):
    model, _, program = cases(name)
    for count in (1, 3):
        batch = images(model, count)
        with torch.no_grad():
            check(model, program.module()(*batch.values()), batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDER)
@pytest.mark.parametrize("engine", [pytest.param(name, marks=skip_without(name)) for name in ("openvino", "onnx")])
def test_the_engine_equals_the_run(cases, tmp_path, engine, name):
    model, graph, program = cases(name)
    facts = {"inputs": [entry.describe() for entry in graph.inputs]}
    convert(program, graph, engine, tmp_path, facts)
    loaded = open_engine(tmp_path, engine, "fp32", 1)
    for count in (1, 3):
        batch = images(model, count)
        check(model, loaded.run({entry.name: batch[entry.stream].numpy() for entry in graph.inputs}), batch)
    assert json.loads(json.dumps(facts)) == facts


def test_a_heatmap_that_cannot_be_computed_is_refused():
    model = trained("vit", {"global_pool": "max"})
    with pytest.raises(ConfigError, match="--include heatmap is not possible: global_pool='max'"):
        ExportGraph(model, {"image": torch.float32}, {}, ("heatmap",))


def test_packages_are_named_for_all_engines():
    assert PACKAGES.keys() == ENGINES.keys()
