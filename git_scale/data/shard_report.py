"""What lies in the shards of a folder and is not used, or not as it may be meant: for a start and for a command."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from git_scale.data.index import ShardFacts, load
from git_scale.data.left_out import OTHER_SHARDS, Reasons

log = logging.getLogger(__name__)

MAX_NAMES = 200_000  # samples up to which a start compares names over shards: a tenth of a second
_OTHER_ARCHIVE = re.compile(r"\.(TAR|tar\.\w+|tgz|tbz2?|txz|zip|parquet)$")


def other_archives(folder: Path) -> str:
    """The archives of a folder that are not read, and what to do; empty for none."""
    found = sorted(path.name for path in folder.iterdir() if _OTHER_ARCHIVE.search(path.name))
    return f"{len(found)} other archives are not read (e.g. {found[0]}): unpack them to .tar" if found else ""


def shards_below(folder: Path) -> str:
    """How many shards lie in the folders of a folder, two levels deep, and what to do; empty for none."""
    found = sorted(
        path.relative_to(folder)
        for pattern in ("*/*.tar", "*/*/*.tar")
        for path in folder.glob(pattern)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        return ""
    remedy = f"give the folder {folder / found[0].parent}, or move them up"
    return f"{len(found)} *.tar in its folders are not read (e.g. {found[0]}): {remedy}"


def unread_of(folder: Path) -> list[str]:
    """What lies in a folder of shards and looks like data, and is not read."""
    return (
        [text for text in (shards_below(folder), other_archives(folder)) if text] if folder.is_dir() else []
    )


def left_out_of(facts: Mapping[Path, ShardFacts], max_names: float = MAX_NAMES) -> str:
    """Reasons, counts and shares over all shards; empty for nothing.

    Names are compared over the shards where there are at most `max_names` samples.
    """
    found = Reasons(item for shard in facts.values() for item in shard.summary.left_out)
    samples = sum(shard.samples for shard in facts.values())
    if len(facts) > 1 and samples <= max_names:
        _count_names_in_several(list(facts), found)
    return found.describe(samples, sum(shard.summary.members for shard in facts.values()))


def announce(folder: Path, facts: Mapping[Path, ShardFacts]) -> None:
    """Logs what is not used, which shards are the same, and what is not known of them."""
    if not log.isEnabledFor(logging.WARNING):
        return  # all ranks but one
    if left_out := left_out_of(facts):
        samples = sum(shard.samples for shard in facts.values())
        log.warning("%s: %d samples; not used, or not as it may be meant: %s", folder, samples, left_out)
    for unread in unread_of(folder):
        log.warning("%s: %s", folder, unread)
    for names in copies(facts):
        log.warning("%s: the same samples lie in %s", folder, " and ".join(names))
    if unknown := sum(not shard.summary.digests for shard in facts.values()):
        log.info(
            "%s: the indexes of %d of %d shards have no digests, so damage inside a picture may pass;"
            " tools/prepare_data.py index %s reads everything once and adds them",
            *(folder, unknown, len(facts), folder),
        )


def copies(facts: Mapping[Path, ShardFacts]) -> list[list[str]]:
    """Names of shards that hold the same, by group."""
    groups: dict[str, list[str]] = {}
    for path, shard in facts.items():
        groups.setdefault(shard.summary.content or path.name, []).append(path.name)
    return [names for names in groups.values() if len(names) > 1]


def _count_names_in_several(paths: list[Path], found: Reasons) -> None:
    seen = set[bytes]()
    for path in paths:
        index = load(path)
        names = set(index.table["key"][:-1].tolist()) if index else set()
        if again := seen & names:
            found.add(OTHER_SHARDS, f"{path.name}:{min(again).decode('utf-8', 'replace')}", len(again))
        seen |= names
