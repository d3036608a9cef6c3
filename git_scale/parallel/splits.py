"""Which part of which parameter a tensor-parallel rank holds: the table of rules, applied to a model's names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from git_scale.checkpoint.sharding import Split
from git_scale.config import ParallelConfig
from git_scale.errors import ConfigError
from git_scale.formatting import format_table
from git_scale.models.encoders import has_batch_norm
from git_scale.parallel.rules import Column, Row, Rule, Slice, Vocabulary, Way, replicated_linears, rules

Splits = dict[str, Split | None]


def splits_of(model: nn.Module, parallel: ParallelConfig) -> Splits:
    """Every parameter's name, aliases included -> how it is cut; None: whole on each rank of a group.

    The model may be on meta. Raises ConfigError, listing all problems: heads or widths that tp does not divide,
    modules that no rule names, with their sizes, and batch norms under sequence parallelism.
    """
    splits: Splits = {name: None for name, _ in model.named_parameters(remove_duplicate=False)}
    if parallel.tp == 1:
        return splits
    problems: list[str] = []
    for path, module, rule in ruled_modules(model, parallel):
        problems += _misfits(path, module, rule, parallel.tp)
        for child, way in rule.children.items():
            splits |= _splits_of_child(f"{path}.{child}", getattr(module, child), way)
    problems += _unruled(model, parallel)
    if parallel.sequence and has_batch_norm(model):
        problems.append(
            "parallel.sequence gives each rank of a group other pictures, of which batch norms would keep other"
            " statistics: set parallel.sequence=false"
        )
    if problems:
        more = [f"and {len(problems) - 5} more of the kind"] if len(problems) > 5 else []
        raise ConfigError(problems[:5] + more)
    return splits


def ruled_modules(model: nn.Module, parallel: ParallelConfig) -> Iterator[tuple[str, Any, Rule]]:
    """Path, module and rule of everything to be split."""
    inside = _inside(split_towers(model, parallel))
    for path, module in model.named_modules():
        rule = rules().get(type(module))  # not of a parent class: a subclass may compute something else
        if rule and module in inside:
            yield path, module, rule


def split_towers(model: Any, parallel: ParallelConfig) -> list[nn.Module]:
    """The modules that `parallel` divides over a group."""
    return [tower.split for name, tower in model.towers().items() if getattr(parallel, name)]


def _inside(towers: list[nn.Module]) -> set[nn.Module]:
    return {module for tower in towers for module in tower.modules()}


def tied_parameters(model: nn.Module) -> dict[str, str]:
    """Second name of a parameter -> its first."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    everything = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in everything if first[id(p)] != name}


def _splits_of_child(path: str, child: nn.Module | Tensor, way: Way) -> Splits:
    if isinstance(child, Tensor):
        assert isinstance(way, Slice)
        return {path: Split(way.dim)}
    names = [name for name, _ in child.named_parameters()]
    match way:
        case Column(parts):
            return {f"{path}.{name}": Split(0, parts) for name in names}
        case Row():
            return {f"{path}.{name}": Split(1) if name == "weight" else None for name in names}
        case Vocabulary():
            return {f"{path}.{name}": Split(0, padded=True) for name in names}
        case Slice():
            raise TypeError(f"{path} is a module: a Slice cuts a parameter")


def _misfits(path: str, module: Any, rule: Rule, tp: int) -> Iterator[str]:
    """Why this very module cannot be split by its rule."""
    if rule.heads and getattr(module, rule.heads) % tp:
        heads = getattr(module, rule.heads)
        yield f"parallel.tp={tp} does not divide the {heads} heads of {path}: take a divisor of {heads}"
    for name in rule.undropped:
        if getattr(module, name).p > 0:
            yield (
                f"{path} drops attention weights, which ranks cannot do each for themselves: set attn_drop_rate=0"
                " in model.encoder.options, or parallel.encoder=false"
            )
    for child, way in rule.children.items():
        layer = getattr(module, child)
        if isinstance(way, Column | Row) and not isinstance(layer, nn.Linear):
            yield f"{path}.{child} is no linear layer, as its rule expects: set parallel.encoder=false"
        elif isinstance(way, Column) and layer.out_features % (tp * way.parts):
            yield f"parallel.tp={tp} does not divide the {layer.out_features} outputs of {path}.{child}"
        elif isinstance(way, Row) and layer.in_features % tp:
            yield f"parallel.tp={tp} does not divide the {layer.in_features} inputs of {path}.{child}"


def _unruled(model: nn.Module, parallel: ParallelConfig) -> Iterator[str]:
    """Linear layers, and parameters within split modules, of which the tables say nothing."""
    ruled = {path: rule for path, _, rule in ruled_modules(model, parallel)}
    spoken_for = {
        f"{path}.{child}" for path, rule in ruled.items() for child in (*rule.children, *rule.whole)
    }
    spoken_for |= {
        f"{path}.{child}"
        for path, module in model.named_modules()
        for child in replicated_linears().get(type(module), ())
    }
    # What else stands between split layers (a norm of queries) would see this rank's share alone.
    inner = [f"{path}." for path, rule in ruled.items() if rule.heads or rule.own_dropout]
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
