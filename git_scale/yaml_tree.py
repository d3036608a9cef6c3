"""YAML as it is written: text stays text whatever it looks like, and every key stands once.

PyYAML reads by the rules of YAML 1.1, in which `2024_01_05`, `0123`, `on` and `2024-01-05` are numbers, switches and
dates, and of two equal keys it takes the last without a word. Here the typed tree says what a value is to be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

NULLS = ("", "null", "Null", "NULL", "~")
MAX_VALUES = 10_000
"""Of a document, with its aliases written out: nine lines of nine aliases each are 387 million."""


def read_tree(text: str, wanted: Any) -> tuple[Any, list[str]]:
    """The value that `text` holds, where `wanted` is a section's class or the type of a value; and its problems.

    Raises yaml.YAMLError when it is no YAML, or more of it than a recipe can have.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        reader = _Reader(loader)
        return (None if node is None else reader.value(node, wanted, "")), reader.problems
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    finally:
        loader.dispose()


def read_text(text: str, is_optional: bool) -> Any:
    """The value of a text key behind `key=`: all of it, but quotes around the whole are YAML's, and a list or a
    mapping is one, for the tree to refuse. Raises yaml.YAMLError for a quote that does not end, NoValueError."""
    text = text.strip()
    if text[:1] in ("'", '"', "[", "{"):
        return read_tree(text, str)[0]
    if is_optional and text in NULLS:
        return None
    if text and text in NULLS:  # nothing at all is refused by the tree
        raise NoValueError
    return text


class NoValueError(ValueError):
    """Nothing where a text is needed: it would become a text like `null`, or a home."""

    def __init__(self) -> None:
        super().__init__("needs a value; a text that looks so stands in quotes")


def type_of(section: type[BaseModel], dotted: str) -> Any:
    """What the tree holds under a dotted key; Any for a key that it does not know, or within free values."""
    wanted: Any = section
    for name in dotted.split("."):
        wanted = _of_key(wanted, name)
    return wanted


def text_kind(wanted: Any) -> Literal["text", "optional", "other"]:
    """Whether a type is text, text or nothing, or something else."""
    wanted = _plain(wanted)
    if get_origin(wanted) in (Union, UnionType):
        kinds = {text_kind(option) for option in get_args(wanted) if option is not type(None)}
        return "optional" if kinds == {"text"} else "other"
    is_choice = get_origin(wanted) is Literal and all(isinstance(word, str) for word in get_args(wanted))
    return "text" if wanted is str or is_choice else "other"


def _plain(wanted: Any) -> Any:
    return get_args(wanted)[0] if get_origin(wanted) is Annotated else wanted


def _of_key(wanted: Any, name: str) -> Any:
    if isinstance(wanted, type) and issubclass(wanted, BaseModel) and name in wanted.model_fields:
        return wanted.model_fields[name].annotation
    if get_origin(_plain(wanted)) is dict:
        return get_args(_plain(wanted))[1]
    return _of_item(wanted) if name.isdigit() else Any


def _of_item(wanted: Any) -> Any:
    wanted = _plain(wanted)
    return get_args(wanted)[0] if get_origin(wanted) in (tuple, list) else Any


@dataclass
class _Reader:
    """Nodes of a document to values of their types."""

    loader: _Loader
    problems: list[str] = field(default_factory=list)
    _within: set[int] = field(default_factory=set)
    _values: int = 0

    def value(self, node: yaml.Node, wanted: Any, key: str) -> Any:
        self._count(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, text_kind(wanted), key)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise yaml.YAMLError(f"line {_line(node)}: {node.tag} is not taken")
        if id(node) in self._within:
            raise yaml.YAMLError(f"line {_line(node)}: an alias that holds itself")
        self._within.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, wanted, key)
            items = enumerate(node.value)
            return [self.value(item, _of_item(wanted), f"{key}[{number}]") for number, item in items]
        finally:
            self._within.remove(id(node))

    def _count(self, node: yaml.Node) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise yaml.YAMLError(f"line {_line(node)}: more than {MAX_VALUES:,} values, aliases written out")

    def _scalar(self, node: yaml.ScalarNode, kind: str, key: str) -> Any:
        is_null = node.tag == "tag:yaml.org,2002:null"
        if kind == "text" and is_null and node.value:  # nothing at all is refused by the tree
            self.problems.append(f"{key}={node.value}: {NoValueError()}")
        if kind == "other" or (kind == "optional" and is_null):
            try:
                return self.loader.construct_object(node)
            except ValueError:  # Python reads 4,300 digits at most
                raise yaml.YAMLError(
                    f"line {_line(node)}: {len(node.value)} digits, more than any number has"
                ) from None
        return node.value

    def _mapping(self, node: yaml.MappingNode, wanted: Any, key: str) -> dict[str, Any]:
        self._count(node)
        below: dict[str, Any] = {}
        tree: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {_line(name_node)}: a key is a word")
            name, line = name_node.value, _line(name_node)
            dotted = f"{key}.{name}" if key else name
            if name in lines:
                self.problems.append(
                    f"{dotted} is written twice, in lines {lines[name]} and {line}: leave one of them out"
                )
            lines[name] = line
            if name_node.tag == "tag:yaml.org,2002:merge":
                for part in self._merged(value_node):
                    below = {**self._mapping(part, wanted, key), **below}
            else:
                tree[name] = self.value(value_node, _of_key(wanted, name), dotted)
        return {**below, **tree}

    def _merged(self, node: yaml.Node) -> Iterator[yaml.MappingNode]:
        """The mappings behind `<<`, the strongest first."""
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(part, yaml.MappingNode) or id(part) in self._within:
                raise yaml.YAMLError(f"line {_line(node)}: << takes a mapping, or a list of them")
            yield part


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


class _Loader(yaml.SafeLoader):
    """Numbers as YAML 1.2 has them, and no dates: 1e-4 is a number, 010 is ten, 1:30 and 0x10 are words."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value.replace("_", ""))


for _tag, _pattern, _first in (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)
