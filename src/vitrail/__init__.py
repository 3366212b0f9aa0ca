"""vitrail: build, train, compare, explain and ship vision transformers.

The public names are imported on first use, so that ``import vitrail`` and the command line stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vitrail.deploy.export import export
    from vitrail.engines.load import load_export
    from vitrail.models.family import register_family
    from vitrail.models.pretrained import from_pretrained, save_pretrained
    from vitrail.models.registry import create_model, list_models
    from vitrail.models.token_merging import merge_tokens
    from vitrail.weights.load import load_weights

# Public name -> the module that defines it.
_PUBLIC = {
    "create_model": "vitrail.models.registry",
    "export": "vitrail.deploy.export",
    "load_export": "vitrail.engines.load",
    "from_pretrained": "vitrail.models.pretrained",
    "list_models": "vitrail.models.registry",
    "load_weights": "vitrail.weights.load",
    "merge_tokens": "vitrail.models.token_merging",
    "register_family": "vitrail.models.family",
    "save_pretrained": "vitrail.models.pretrained",
}

__all__ = [
    "__version__",
    "create_model",
    "export",
    "from_pretrained",
    "list_models",
    "load_export",
    "load_weights",
    "merge_tokens",
    "register_family",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
