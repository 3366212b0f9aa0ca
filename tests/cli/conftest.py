import functools

import pytest


@pytest.fixture(autouse=True, scope="package")
def _quick_rates():
    """Images a second from a few small passes: the verbs are tested here, not the clock."""
    from vitrail.evaluate import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "measure_efficiency", functools.partial(run.measure_efficiency, batch_size=4, seconds=0.0))
        yield
