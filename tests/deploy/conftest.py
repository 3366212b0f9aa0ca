import pytest

from tests.deploy.exporting import make_run
from tests.undrawn import _drawn as _drawn
from tests.undrawn import _undrawn as _undrawn


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A small run that several modules export; their exports have folders of their own."""
    return make_run(tmp_path_factory.mktemp("run"))
