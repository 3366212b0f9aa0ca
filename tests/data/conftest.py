from tests.undrawn import _drawn as _drawn
from tests.undrawn import _undrawn as _undrawn
