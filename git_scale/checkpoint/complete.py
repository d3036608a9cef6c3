"""Completes the folder of a training checkpoint whose tensors are written: small files, and last the manifest."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from git_scale.checkpoint import layout
from git_scale.checkpoint.folder import write_manifest
from git_scale.checkpoint.state import StateIndex
from git_scale.config import RunConfig
from git_scale.files import FileDigest, write_bytes


def complete_checkpoint(
    folder: Path,
    written: list[FileDigest],
    index: StateIndex,
    run: RunConfig,
    progress: layout.RunProgress,
    tokenizer: Path,
) -> None:
    """Writes everything but the tensors, of which `written` are the digests. Raises OSError."""
    small = {
        layout.STATE_INDEX: index.to_json().encode(),
        layout.CONFIG: run.to_yaml().encode(),
        layout.PROGRESS: json.dumps(asdict(progress), indent=1).encode(),
        tokenizer.name: tokenizer.read_bytes(),
    }
    digests = [replace(write_bytes(folder / name, content), name=name) for name, content in small.items()]
    write_manifest(folder, [*written, *digests])
