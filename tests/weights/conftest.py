from tests.undrawn import _undrawn as _undrawn
