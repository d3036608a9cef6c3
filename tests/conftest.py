from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the tiny run (git_scale.testing.tiny)."""
    # Here, because it needs webdataset and sentencepiece, which a GPU image may lack.
    from git_scale.testing.tiny import write_squares_data

    return write_squares_data(tmp_path_factory.mktemp("squares"))
