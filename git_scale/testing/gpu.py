"""The marker of tests that need a CUDA GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch

Test = TypeVar("Test", bound=Callable[..., Any])


def requires_gpu(test: Test) -> Test:
    """Marks a test `gpu` (`pytest -m gpu` selects those) and skips it where there is no CUDA GPU."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    return pytest.mark.gpu(skip(test))
