"""What of a model is split over a tensor-parallel group: the table of rules, applied to its modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from git_scale.checkpoint.sharding import Split
from git_scale.config import ParallelConfig
from git_scale.errors import ConfigError
from git_scale.formatting import format_table
from git_scale.models.encoders import has_batch_norm
from git_scale.parallel.rules import Cut, Rule, Splits, replicated_linears, rules


class SplitLayer(NamedTuple):
    """A child of a module that is split over a tensor-parallel group."""

    path: str
    """In the model."""
    child: str
    """Its name within the module."""
    cut: Cut


class SplitModule(NamedTuple):
    """A module that a rule names."""

    path: str
    module: Any
    rule: Rule

    @property
    def layers(self) -> list[SplitLayer]:
        return [SplitLayer(f"{self.path}.{child}", child, cut) for child, cut in self.rule.children.items()]

    def splits(self) -> Splits:
        """Of the parameters of its layers, by their names in the model."""
        return {
            f"{layer.path}.{name}".removesuffix("."): split
            for layer in self.layers
            for name, split in layer.cut.splits(getattr(self.module, layer.child)).items()
        }

    def misfits(self, tp: int) -> Iterator[str]:
        """Why this very module cannot be split by its rule."""
        rule = self.rule
        if rule.heads and getattr(self.module, rule.heads) % tp:
            heads = getattr(self.module, rule.heads)
            yield f"parallel.tp={tp} does not divide the {heads} heads of {self.path}: take a divisor of {heads}"
        for name in rule.undropped:
            if getattr(self.module, name).p > 0:
                yield (
                    f"{self.path} drops attention weights, which ranks cannot do each for themselves: set"
                    " attn_drop_rate=0 in model.encoder.options, or parallel.encoder=false"
                )
        for layer in self.layers:
            yield from layer.cut.misfits(layer.path, getattr(self.module, layer.child), tp)


def split_modules(model: nn.Module, parallel: ParallelConfig) -> list[SplitModule]:
    """All that is split: the one list that the run (tensor.py), the plan and the checkpoints go by."""
    inside = _inside(split_towers(model, parallel))
    return [
        SplitModule(
            path, module, rules()[type(module)]
        )  # not of a parent class: a subclass may compute otherwise
        for path, module in model.named_modules()
        if type(module) in rules() and module in inside
    ]


def splits_of(model: nn.Module, parallel: ParallelConfig) -> Splits:
    """Of every parameter, aliases included.

    The model may be on meta. Raises ConfigError, listing all problems: heads or widths that tp does not divide,
    modules that no rule names, with their sizes, and batch norms under sequence parallelism.
    """
    splits: Splits = {name: None for name, _ in model.named_parameters(remove_duplicate=False)}
    if parallel.tp == 1:
        return splits
    parts = split_modules(model, parallel)
    problems = [problem for part in parts for problem in part.misfits(parallel.tp)]
    problems += _unruled(model, parts, parallel)
    if parallel.sequence and has_batch_norm(model):
        problems.append(
            "parallel.sequence gives each rank of a group other images, of which batch norms would keep other"
            " statistics: set parallel.sequence=false"
        )
    if problems:
        more = [f"and {len(problems) - 5} more of the kind"] if len(problems) > 5 else []
        raise ConfigError(problems[:5] + more)
    for part in parts:
        splits |= part.splits()
    return splits


def split_towers(model: Any, parallel: ParallelConfig) -> list[nn.Module]:
    """The modules that `parallel` splits over a group."""
    return [tower.split for name, tower in model.towers().items() if getattr(parallel, name)]


def _inside(towers: list[nn.Module]) -> set[nn.Module]:
    return {module for tower in towers for module in tower.modules()}


def tied_parameters(model: nn.Module) -> dict[str, str]:
    """Second name of a parameter -> its first."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    everything = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in everything if first[id(p)] != name}


def tie_parameters(model: nn.Module, tied: dict[str, str]) -> None:
    """Ties again, in place, what `tied_parameters` found before the first of each were exchanged."""
    for name, first in tied.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, model.get_parameter(first))


def _unruled(model: nn.Module, parts: list[SplitModule], parallel: ParallelConfig) -> Iterator[str]:
    """Linear layers, and parameters within split modules, of which the tables say nothing."""
    spoken_for = {
        f"{part.path}.{child}" for part in parts for child in (*part.rule.children, *part.rule.whole)
    }
    spoken_for |= {
        f"{path}.{child}"
        for path, module in model.named_modules()
        for child in replicated_linears().get(type(module), ())
    }
    # What else stands between split layers (a norm of queries) would see this rank's share alone.
    inner = [f"{part.path}." for part in parts if part.rule.heads or part.rule.own_dropout]
    inside = _inside(split_towers(model, parallel))
    for path, module in model.named_modules():
        if path in spoken_for or module not in inside:
            continue
        size = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        within = any(path.startswith(prefix) for prefix in inner)
        if size and (isinstance(module, nn.Linear) or within):
            yield (
                f"no rule says how to split {path} ({type(module).__name__}, {size:,} parameters): add one in"
                " git_scale/parallel/rules.py, or set parallel.encoder=false to leave the image encoder whole"
            )


def describe_splits(model: nn.Module, parallel: ParallelConfig, splits: Splits) -> str:
    """A table of what is cut and how, and of what each rank of a group holds whole, with their sizes."""
    sizes: dict[tuple[str, str], list[int]] = {}
    for name, parameter in model.named_parameters():
        split = splits[name]
        tower, *parts = name.split(".")
        way = "whole on each rank" if split is None else _way_in_words(split, parts[-1])
        path = ".".join(part for part in [tower, *parts][-3:-1] if not part.isdigit())
        sizes.setdefault((f"{tower}: {path}", way), []).append(parameter.numel())
    rows = [
        (path, way, str(len(numels)), f"{sum(numels):,}", f"{_local_size(sum(numels), way, parallel.tp):,}")
        for (path, way), numels in sorted(sizes.items(), key=lambda item: (item[0][1], item[0][0]))
    ]
    return format_table(rows, ("module", "over the tp group", "tensors", "parameters", "per rank"))


def _way_in_words(split: Split, parameter: str) -> str:
    if split.padded:
        return "by vocabulary"
    if parameter not in ("weight", "bias"):  # a table of the module's own
        return f"along dimension {split.dim}"
    groups = f", {split.parts} groups" if split.parts > 1 else ""
    return ("by outputs" if split.dim == 0 else "by inputs") + groups


def _local_size(numel: int, way: str, tp: int) -> int:
    return numel if way.startswith("whole") else -(-numel // tp)
