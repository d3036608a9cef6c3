"""How long a start looks at a folder of 100,000 indexed shards, and what of it stays in memory.

    python tools/benchmark.py folder_start --json benchmarks/results/folder_start_cpu.json

Tiny shards of two samples in 100 folders, with the indexes of the shards beside them and, from the second start on,
the folder's own. Each start is a process of its own, which imports no torch. Takes minutes, and 1 GB below TMPDIR.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from git_scale.data import index
from git_scale.data.builders.writer import SampleToWrite, write_shards
from git_scale.data.folder_index import FILE

PER_FOLDER = 1000
START = """
import json, resource, sys, time
from git_scale.data.store import STORE_FORMATS, open_store
STORE_FORMATS["tar"]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
before, started = resident(), time.perf_counter()
store = open_store(sys.argv[1])
seconds = time.perf_counter() - started
(line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
peak = int(line.split()[1]) / 1024  # ru_maxrss would be that of the process that started this one
stays = resident() - before
print(json.dumps({"s": seconds, "peak MiB": peak, "MiB that stay": stays, "fingerprint": store.fingerprint}))
"""


def run(shards: int = 100_000) -> dict[str, Any]:
    """Figures of a start without the folder's index, which makes it, and of the two after that."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "shards"
        make_shards(folder, shards)
        first, *later = (start(folder) for _ in range(3))
        assert {found["fingerprint"] for found in later} == {first["fingerprint"]}
        size = (folder / FILE).stat().st_size / 2**20 if (folder / FILE).exists() else 0.0
    best = min(later, key=lambda found: found["s"])
    return {
        "shards": shards,
        "first start, s": round(first["s"], 2),
        "first start, peak MiB": round(first["peak MiB"], 1),
        "start with the folder's index, s": round(best["s"], 2),
        "start with the folder's index, peak MiB": round(best["peak MiB"], 1),
        "of these for the shards, MiB": round(best["MiB that stay"], 1),
        "folder's index, MiB": round(size, 1),
    }


def start(folder: Path) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, "-c", START, str(folder)], capture_output=True, text=True, check=True
    )
    return dict(json.loads(answer.stdout))


def make_shards(folder: Path, shards: int) -> None:
    """Copies of one shard, each with an index of which another content is said."""
    one = folder.parent / "one"
    write_shards((SampleToWrite(b"picture", "png", {"captions": ["text"]}) for _ in range(2)), one, 2)
    (shard,) = one.glob("*.tar")
    data, sidecar, found = shard.read_bytes(), index.sidecar_of(shard).read_bytes(), index.load(shard)
    content = found.summary.content if found else ""
    for number in range(shards):
        path = folder / f"{number // PER_FOLDER:03d}" / f"{number:06d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        index.sidecar_of(path).write_bytes(sidecar.replace(content.encode(), b"%016x" % (number + 1)))
