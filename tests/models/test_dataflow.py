"""The graph of a forward pass, against what the families compute."""

import pytest
import torch
from torch import nn

import vitrail
from vitrail.models import list_families
from vitrail.models.dataflow import OUTPUT, trace_dataflow
from vitrail.models.profile import count_parameters, example_inputs

TINY = {name: family.test_config for name, family in list_families("image").items()}


def _graph(name, settings, depth="blocks"):
    model = vitrail.create_model(name, **settings).eval()
    return model, trace_dataflow(model, example_inputs(model), depth)


@pytest.mark.fast_cases("vit-parts")
@pytest.mark.parametrize("depth", ["blocks", "parts"])
@pytest.mark.parametrize("family", TINY)
def test_everything_reaches_the_output(family, depth):
    model, graph = _graph(family, TINY[family], depth)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    assert graph.nodes[-1].name == OUTPUT
    assert graph.nodes[-1].shape == (model.num_classes,)
    reached = {OUTPUT}
    for edge in reversed(sorted(graph.edges, key=lambda e: names.index(e.target))):
        if edge.target in reached:
            reached.add(edge.source)
        assert names.index(edge.source) < names.index(edge.target)
    assert reached == set(names)
    assert sum(node.parameters for node in graph.nodes) == count_parameters(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_vit_is_a_chain_beside_its_tokens():
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2, "num_classes": 5}
    _, graph = _graph("vit", settings)
    assert [(e.source, e.target, e.shape) for e in graph.edges if e.source not in ("cls_token", "pos_embed")] == [
        ("image", "patch_embed", (3, 16, 16)),
        ("patch_embed", "blocks.0", (4, 4, 8)),
        ("blocks.0", "norm", (17, 8)),
        ("norm", "head", (17, 8)),
        ("head", OUTPUT, (5,)),
    ]
    assert {(e.source, e.target) for e in graph.edges if e.source in ("cls_token", "pos_embed")} == {
        ("cls_token", "blocks.0"), ("pos_embed", "blocks.0"),
    }  # fmt: skip
    (block,) = (node for node in graph.nodes if node.name == "blocks.0")
    assert (block.count, block.last, block.kind) == (3, "blocks.2", "Block")


def test_two_streams_meet_in_the_fusion():
    _, graph = _graph("hvt", {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depths": (1,), "num_heads": (2,),
                              "spectral_chans": 5, "spectral_embed_dim": 8, "num_classes": 2})  # fmt: skip
    fusion = [node.name for node in graph.nodes if "fusion" in node.name]
    streams = {e.source.split(".")[0] for e in graph.edges if e.target == fusion[0]}
    assert streams == {"rgb", "spectral"}


class _Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.first(x) + self.second(x)


def test_branches_inside_of_a_part_are_separate():
    model = vitrail.create_model("vit", img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=2)
    model.head = _Branches()
    graph = trace_dataflow(model.eval(), [torch.zeros(1, 3, 8, 8)], 5)
    assert {e.source for e in graph.edges if e.target == OUTPUT} == {"head.first", "head.second"}
