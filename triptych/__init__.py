"""Pre-train, fine-tune, evaluate and serve mPLUG, VLMo and FLAVA on your own image-text data.

Example:
    ```python
    import triptych

    model = triptych.load("runs/demo/pretrain/model")
    print(model.caption("image.jpg"))
    ```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.index.search import open_index
    from triptych.models.families import create_model, list_models
    from triptych.serving.engine import load
    from triptych.tasks.matrix import task_matrix

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "list_models", "load", "open_index", "task_matrix"]

_HOMES = {
    "load": "triptych.serving.engine",
    "open_index": "triptych.index.search",
    "create_model": "triptych.models.families",
    "list_models": "triptych.models.families",
    "task_matrix": "triptych.tasks.matrix",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then, so that `triptych --help` need not wait for torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'triptych' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
