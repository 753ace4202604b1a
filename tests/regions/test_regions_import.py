"""Importing a backend: quick, and torch's compiler whole where somebody asks for it afterwards."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import vbert.regions.backends.plain_cnn
assert "torchvision.ops.roi_align" in sys.modules
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
from torchvision.ops.roi_align import is_compile_supported
assert is_compile_supported("cpu") is True
import torch._dynamo
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
assert torch._dynamo.is_compiling() is False
"""


def test_a_backend_is_imported_without_torch_s_compiler() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=200)
