"""Groups of tokens in an export for images of any size."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from vitrail.explain.capture.groups import from_groups, to_groups
from vitrail.layers.tap import TokenLayout


class Partition(nn.Module):
    """Partition a map of any size into groups and back."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        layout = TokenLayout(self.kind, query_grid=tuple(x.shape[1:]), window=(2, 3))
        groups = to_groups(x.flatten(1), layout)
        return groups, from_groups(groups, layout)


@pytest.mark.slow  # tests/deploy/test_export_sizes.py exports for any size among the fast tests
@pytest.mark.parametrize("kind", ["window", "grid"])
def test_tokens_are_partitioned_in_a_program_for_any_size(kind):
    sizes = {0: Dim("batch", min=1, max=64), 1: 2 * Dim("rows", min=2, max=64), 2: 3 * Dim("columns", min=2, max=64)}
    program = export(Partition(kind), (torch.rand(2, 8, 15),), dynamic_shapes=(sizes,)).module()
    for shape in ((1, 4, 6), (3, 10, 12)):
        x = torch.rand(shape)
        groups, back = program(x)
        wanted, _ = Partition(kind)(x)
        assert torch.equal(groups, wanted)
        assert torch.equal(back, x.flatten(1))
