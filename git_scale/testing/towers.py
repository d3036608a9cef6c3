"""Tiny image encoders of each kind that the table of rules knows, whose heads divide among up to four ranks."""

from __future__ import annotations

from typing import Any

HEADS = 4

ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {
        "name": "vit_tiny_patch16_224",
        "options": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": HEADS, "init_values": 0.1},
    },
    "swin": {
        "name": "swin_tiny_patch4_window7_224",
        "options": {
            "window_size": 4,
            "embed_dim": 16,
            "depths": [1, 2],
            "num_heads": [4, 4],
            "drop_path_rate": 0,
        },
    },
    "davit": {
        "name": "davit_tiny",
        "options": {"depths": [1, 1], "embed_dims": [16, 32], "num_heads": [4, 4], "window_size": 4},
    },
}

RESNET: dict[str, Any] = {
    "name": "resnet18",
    "image_size": 32,
    "options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
}
"""With batch norms, which keep running statistics."""
