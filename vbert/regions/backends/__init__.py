"""Backends that run detectors: torchvision, detectron2, and bottom-up attention in PyTorch alone.

torchvision imports torch's compiler, some four seconds and hundreds of modules, for one question that it asks where a
gradient of RoIAlign is wanted deterministic on a GPU; and every process that looks at an image imports torchvision. A
stand-in asks the compiler then.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

COMPILER = ("torch._dynamo", "torch._dynamo.utils")


def _is_compile_supported(device: str) -> Any:
    return import_module(COMPILER[1]).is_compile_supported(device)


def _import_torchvision() -> None:
    import torch  # noqa: F401  its parts are imported whole, not within the stand-in

    if "torchvision" in sys.modules or any(name in sys.modules for name in COMPILER):
        return
    package, utils = map(ModuleType, COMPILER)
    package.__dict__.update(__path__=[], utils=utils)
    utils.__dict__.update(is_compile_supported=_is_compile_supported)
    sys.modules.update(zip(COMPILER, (package, utils), strict=True))
    try:
        with suppress(ImportError, AttributeError):  # another version may ask for more: then it is imported as usual
            import_module("torchvision.models.detection")
    finally:
        for name in COMPILER:
            del sys.modules[name]


_import_torchvision()
