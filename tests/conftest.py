from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["tiny_models"]  # fixtures of tests/models and tests/inference


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes come first: they take minutes, and the seconds of the others even out the end."""
    starting = {item.path for item in items if item.get_closest_marker("distributed")}
    items.sort(key=lambda item: item.path not in starting)


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the tiny run (git_scale.testing.tiny)."""
    # Here, because it needs webdataset and sentencepiece, which a GPU image may lack.
    from git_scale.testing.tiny import write_squares_data

    return write_squares_data(tmp_path_factory.mktemp("squares"))
