import gc
import os

# Tests run several processes side by side; more threads than cores only slows them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

from tests.peers import define_missing_operators
from tests.probes import probes as probes

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
define_missing_operators()


def pytest_collection_finish():
    # What libraries made while they were imported never goes away; to look through it again and again takes seconds.
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(1234)
