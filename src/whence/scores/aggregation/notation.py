"""Pipelines as text, ``head:mean,layer:3,words``, and back.

.. code-block:: text

    pipeline  = operator { ("," | "|") operator }
    operator  = name [ (":" | "=") argument { ":" argument } ]
    argument  = value | name "=" value | nothing, for an open end
    value     = item { "+" item } | item "+"            several; 3+ is a list of one, a text in it quoted
    item      = number | first..stop | true | false | text | "text" | 'text'

The name is an operator's or an axis's. With an axis, ``layer:3``, ``layer:1+2`` and ``layer:"label"`` select,
``layer:0:5`` slices, and ``layer:mean`` reduces. A text that holds one of ``, | : = +`` or a quote, or looks like a
number, stands in quotes; a quote within is doubled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from whence.core.errors import InputError, unknown_name
from whence.scores.aggregation import AGGREGATORS
from whence.scores.aggregation.carrying import AXES
from whence.scores.reducers import REDUCERS

_NAME = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:[:=](.*))?", re.DOTALL)
_NAMED = re.compile(r"\s*([A-Za-z_]\w*)\s*=(.*)", re.DOTALL)
_INTEGER = re.compile(r"-?\d+")
_NUMBER = re.compile(r"-?(?:\d+\.\d*|\.?\d+)(?:[eE][+-]?\d+)?")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_BARE = re.compile(r"[^\s,|:=+'\"](?:[^,|:=+'\"]*[^\s,|:=+'\"])?")
_QUOTES = "'\""


@dataclass(frozen=True)
class Call:
    """An operator's name with its arguments, as they were written."""

    name: str
    values: tuple[Any, ...]
    named: Mapping[str, Any]


def parse(text: str) -> list[Call]:
    """The operators of a text, in order.

    Args:
        text: A pipeline in the notation of this module.

    Returns:
        One call per operator; none for a blank text.

    Raises:
        InputError: The text does not follow the notation.
        UnknownNameError: What an axis should be reduced by is no reducer.
    """
    return [_call(item) for item in _divided(text, ",|")] if text.strip() else []


def written(name: str, args: Mapping[str, Any]) -> str:
    """An operator as `parse` reads it.

    Args:
        name: Its name.
        args: Its arguments by name; of an operator that is not registered they are all written by name.

    Raises:
        InputError: An argument cannot be written, such as a function.
    """
    if name in ("reduce", "select", "slice") and args.get("axis") in AXES:
        return _axis_written(name, args)
    known = list(signature(AGGREGATORS[name]).parameters.values())[1:] if name in AGGREGATORS else []
    order = [parameter.name for parameter in known if parameter.kind is not Parameter.KEYWORD_ONLY]
    parts, left = [], dict(args)
    while order and order[0] in left:
        parts.append(_value_written(left.pop(order.pop(0))))
    parts += [f"{key}={_value_written(value)}" for key, value in left.items()]
    return ":".join([name, *parts])


def _axis_written(name: str, args: Mapping[str, Any]) -> str:
    axis = args["axis"]
    if name == "slice":
        bounds = ["" if args.get(end) is None else str(args[end]) for end in ("start", "stop")]
        return ":".join([axis, *bounds])
    if name == "select":
        return f"{axis}:{_value_written(args['index'], quoted=True)}"
    order = f":ord={_value_written(args['ord'])}" if "ord" in args else ""
    return f"{axis}:{_value_written(args['how'])}{order}"


def _call(item: str) -> Call:
    found = _NAME.fullmatch(item)
    if not found:
        raise InputError(f"{item.strip()!r} is no operator: one is a name, or a name with arguments, such as layer:3.")
    name, rest = found.groups()
    values: list[Any] = []
    raw: list[str] = []
    named: dict[str, Any] = {}
    for part in [] if rest is None else _divided(rest, ":"):
        if keyed := _NAMED.fullmatch(part):
            named[keyed[1]] = _value(keyed[2])
        elif named:
            raise InputError(f"{item.strip()!r}: arguments with a name come last.")
        else:
            raw.append(part.strip())
            values.append(_value(part))
    if name in AXES:
        return _axis_call(item.strip(), name, values, raw, named)
    return Call(name, tuple(values), named)


def _axis_call(item: str, axis: str, values: list[Any], raw: list[str], named: dict[str, Any]) -> Call:
    if not values:
        raise InputError(f"{item!r} does not say what to do with the axis, such as {axis}:mean or {axis}:0.")
    first = values[0]
    if len(values) > 1 and all(value is None or type(value) is int for value in values):
        return Call("slice", (axis, *values), named)
    if isinstance(first, str) and raw[0][0] not in _QUOTES:
        if first not in REDUCERS:
            hint = f'A label stands in quotes: {axis}:"{first}".'
            raise unknown_name("reducer", first, REDUCERS, hint)
        return Call("reduce", (axis, *values), named)
    if first is None:
        raise InputError(f"{item!r} does not say what to do with the axis, such as {axis}:mean or {axis}:0.")
    return Call("select", (axis, *values), named)


def _divided(text: str, separators: str) -> list[str]:
    """The parts of a text between separators that stand outside quotes."""
    parts, quote = [""], ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES:
            quote = char
        elif char in separators:
            parts.append("")
            continue
        parts[-1] += char
    if quote:
        raise InputError(f"{text!r} has a quote {quote} without its end.")
    return parts


def _value(text: str) -> Any:
    if not text.strip():
        return None
    items = _divided(text, "+")
    if len(items) == 1:
        return _item(items[0])
    if len(items) == 2 and not items[1].strip():
        one = items[0].strip()
        # A list of one needs a number or quotes, since the end of a pattern such as \s+ looks like one.
        if one and (one[0] in _QUOTES or not isinstance(_item(one), str)):
            return (_item(one),)
    if not all(item.strip() for item in items):
        raise InputError(f"{text.strip()!r} is no list; a text that holds + stands in quotes.")
    return tuple(_item(item) for item in items)


def _item(text: str) -> Any:
    text = text.strip()
    if text[0] in _QUOTES and text[-1] == text[0] and len(text) > 1:
        return text[1:-1].replace(text[0] * 2, text[0])
    if any(quote in text for quote in _QUOTES):
        raise InputError(f"{text!r}: quotes go around a whole text, and a quote within is doubled.")
    if found := _RANGE.fullmatch(text):
        return int(found[1]), int(found[2])
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    return {"true": True, "false": False}.get(text, text)


def _value_written(value: Any, *, quoted: bool = False) -> str:
    if isinstance(value, tuple) and value:
        items = [_item_written(item, quoted=quoted or len(value) == 1) for item in value]
        return "+".join(items) if len(items) > 1 else f"{items[0]}+"
    return "" if value is None else _item_written(value, quoted=quoted)


def _item_written(value: Any, *, quoted: bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value).replace("e+", "e")
    if _is_pair(value):
        return f"{value[0]}..{value[1]}"
    if not isinstance(value, str):
        raise InputError(f"{value!r} cannot be written as text; use the name of a registered function.")
    if not quoted and _BARE.fullmatch(value) and _item(value) == value:
        return value
    doubled = value.replace('"', '""')
    return f'"{doubled}"'


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(type(bound) is int for bound in value)
