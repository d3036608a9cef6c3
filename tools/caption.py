"""Caption pictures with a trained checkpoint.

python tools/caption.py --checkpoint runs/demo photo.jpg another.png
python tools/caption.py --checkpoint runs/demo/checkpoints/step_00001000 --json *.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from git_scale.checkpoint.inference import load_captioner
from git_scale.data.images import decode
from git_scale.errors import UserError


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        captioner = load_captioner(args.checkpoint, device)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    unreadable = 0
    for path in args.images:
        try:
            caption = captioner.caption([decode(path.read_bytes())])[0]
        except (UserError, OSError) as error:  # one bad picture does not end the others' captions
            print(f"{path}: {error}", file=sys.stderr)
            unreadable += 1
            continue
        print(json.dumps({"image": str(path), "caption": caption}) if args.json else f"{path}: {caption}")
    return 2 if unreadable == len(args.images) else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint, or a run's folder")
    parser.add_argument("--json", action="store_true", help="one JSON object per picture")
    parser.add_argument("images", type=Path, nargs="+")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
