"""How each kind of module is split over the ranks of a tensor-parallel group: the table, and the kinds of cuts.

A rule belongs to a class and names its children, so that it fits every architecture built of that class (timm's
Attention and Mlp serve a dozen). What lies between split modules - norms, convolutions, embeddings of positions,
residual sums - sees the same numbers on every rank of a group, or other images on each, and stays whole on all of
them. docs/parallelism.md says how to add an architecture.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor, nn

from git_scale.checkpoint.sharding import Split
from git_scale.models.attention import split_heads
from git_scale.models.cross_attention import CrossLayer
from git_scale.models.decoder import TextDecoder, TextEmbedding
from git_scale.models.encoders import declare_torchvision_operators
from git_scale.models.git import GitModel
from git_scale.models.joint_attention import JointLayer

Splits = dict[str, Split | None]
"""Name of a parameter -> how it is split over a tensor-parallel group; None: whole on each rank."""


class Cut(ABC):
    """How a child of a module is split over the ranks of a tensor-parallel group."""

    @abstractmethod
    def splits(self, child: Any) -> Splits:
        """Of the child's parameters, by their names within it; "" where the child is a parameter."""

    def misfits(self, path: str, child: Any, tp: int) -> Iterator[str]:
        """Why the very child at `path` cannot be split over `tp` ranks."""
        yield from ()


@dataclass(frozen=True)
class ColumnParallel(Cut):
    """A linear layer whose outputs are split: each rank computes some heads, or some hidden units."""

    parts: int = 1
    """A fused query-key-value layer has 3: each rank takes its share of each."""

    def splits(self, child: nn.Linear) -> Splits:
        return {name: Split(0, self.parts) for name, _ in child.named_parameters()}

    def misfits(self, path: str, child: Any, tp: int) -> Iterator[str]:
        if not isinstance(child, nn.Linear):
            yield _no_linear(path)
        elif child.out_features % (tp * self.parts):
            yield f"parallel.tp={tp} does not divide the {child.out_features} outputs of {path}"


@dataclass(frozen=True)
class RowParallel(Cut):
    """A linear layer whose inputs are split: the ranks' products are summed, the bias is added once."""

    def splits(self, child: nn.Linear) -> Splits:
        return {name: Split(1) if name == "weight" else None for name, _ in child.named_parameters()}

    def misfits(self, path: str, child: Any, tp: int) -> Iterator[str]:
        if not isinstance(child, nn.Linear):
            yield _no_linear(path)
        elif child.in_features % tp:
            yield f"parallel.tp={tp} does not divide the {child.in_features} inputs of {path}"


@dataclass(frozen=True)
class VocabularyParallel(Cut):
    """A table with a row per word: each rank holds some words, padded to the same number on each."""

    def splits(self, child: nn.Module) -> Splits:
        return {name: Split(0, padded=True) for name, _ in child.named_parameters()}


@dataclass(frozen=True)
class SliceParallel(Cut):
    """A parameter of the module itself, split along a dimension."""

    dim: int

    def splits(self, child: Tensor) -> Splits:
        return {"": Split(self.dim)}

    def misfits(self, path: str, child: Any, tp: int) -> Iterator[str]:
        if not isinstance(child, Tensor):
            yield f"{path} is no parameter, as its rule expects: set parallel.encoder=false"


def _no_linear(path: str) -> str:
    return f"{path} is no linear layer, as its rule expects: set parallel.encoder=false"


@dataclass(frozen=True)
class Rule:
    """What a tensor-parallel rank does to a module of one class."""

    children: dict[str, Cut]
    heads: str | None = None
    """Attribute that counts the heads; becomes the number of this rank's."""
    own_dropout: tuple[str, ...] = ()
    """Children that drop split activations with probability `p`: each rank its own, where all other dropouts are the
    same on all ranks."""
    undropped: tuple[str, ...] = ()
    """Dropouts inside a fused attention, which cannot be given a random state of their own: must be 0."""
    whole: tuple[str, ...] = ()
    """Children on the residual stream, which stay as they are."""
    forward: Callable[..., Tensor] | None = None
    """Stands in for a forward that takes the width between the layers, or (under sequence parallelism) the number of
    images there, for the input's. Those of models/attention.py do not."""


@functools.cache
def rules() -> dict[type[nn.Module], Rule]:
    """The table."""
    declare_torchvision_operators()
    import timm.layers
    from timm.models import davit, swin_transformer

    column, row, vocabulary = ColumnParallel(), RowParallel(), VocabularyParallel()
    attention: dict[str, Cut] = {"qkv": ColumnParallel(parts=3), "proj": row}
    key_value = ColumnParallel(parts=2)
    layer: dict[str, Cut] = {"query": column, "key_value": key_value, "out": row, "fc1": column, "fc2": row}
    return {
        JointLayer: Rule(
            layer, heads="num_heads", own_dropout=("attention",), whole=("attention_norm", "ffn_norm")
        ),
        CrossLayer: Rule(
            layer | {"cross_query": column, "cross_key_value": key_value, "cross_out": row},
            heads="num_heads",
            own_dropout=("attention", "cross_attention"),
            whole=("attention_norm", "cross_norm", "ffn_norm"),
        ),
        TextEmbedding: Rule({"words": vocabulary}),
        TextDecoder: Rule({"head": vocabulary}),
        timm.layers.Attention: Rule(attention, heads="num_heads", undropped=("attn_drop",)),
        timm.layers.Mlp: Rule({"fc1": column, "fc2": row}, own_dropout=("drop1",)),
        swin_transformer.WindowAttention: Rule(
            attention | {"relative_position_bias_table": SliceParallel(dim=1)},
            heads="num_heads",
            undropped=("attn_drop",),
            forward=_biased_window_attention,
        ),
        davit.WindowAttention: Rule(attention, heads="num_heads"),
        davit.ChannelAttention: Rule(attention, heads="num_heads"),
        davit.ChannelAttentionV2: Rule(attention, heads="groups"),
    }


def add_rule(kind: type[nn.Module], rule: Rule) -> None:
    """A line of the table from outside the package. Raises ValueError for a class that has a rule."""
    if kind in rules():
        raise ValueError(f"{kind.__name__} has a rule already: subclass it")
    rules()[kind] = rule


@functools.cache
def replicated_linears() -> dict[type[nn.Module], tuple[str, ...]]:
    """Linear layers that stay whole on purpose: they stand on the residual stream and are few."""
    from timm.models import swin_transformer

    return {GitModel: ("projection.0",), swin_transformer.PatchMerging: ("reduction",)}


def make_local(module: Any, rule: Rule, tp: int) -> None:
    """What a module of split layers counts with becomes one rank's, in place."""
    if rule.heads is not None:
        setattr(module, rule.heads, getattr(module, rule.heads) // tp)
    if rule.forward is not None:
        module.forward = MethodType(rule.forward, module)


def _biased_window_attention(module: Any, x_BLC: Tensor, mask: Tensor | None = None) -> Tensor:
    """Swin's. `mask`: [W, L, L] of the W windows of an image, added to the scores of each image's."""
    query, key, value = split_heads(module.qkv(x_BLC), module.num_heads)
    scores = (query * module.scale) @ key.transpose(-2, -1) + module._get_rel_pos_bias()
    if mask is not None:
        scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    attended = scores.softmax(dim=-1) @ value
    return module.proj_drop(module.proj(attended.transpose(1, 2).flatten(2)))
