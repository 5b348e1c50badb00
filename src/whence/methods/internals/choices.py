"""Which layers and heads: what users write, as lists of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from whence.core.errors import InputError, unknown_name


def check_choice(option: str, given: Any, parts: Sequence[str], *, by_layer: bool = False) -> None:
    """Refuse a choice that no model could satisfy.

    Args:
        option: The name of the option.
        given: None (all), a number, a slice, a list of numbers, or a mapping from a part to one of these.
        parts: The parts of a model that a mapping may name.
        by_layer: Whether a choice may also be a mapping from layers to choices.

    Raises:
        InputError: Another kind of value.
        UnknownNameError: A part of that name does not exist.
    """
    if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        for part, choice in given.items():
            if part not in parts:
                raise unknown_name(f"part of a model in {option}:", part, parts)
            _check_one(option, choice, by_layer)
    else:
        _check_one(option, given, by_layer)


def _check_one(option: str, given: Any, by_layer: bool) -> None:
    if by_layer and isinstance(given, Mapping):
        if not all(_whole(layer) for layer in given):
            raise InputError(f"{option}: the layers of a mapping are numbers, not {list(given)!r}.")
        for choice in given.values():
            _check_one(option, choice, False)
        return
    listed = isinstance(given, Sequence) and not isinstance(given, str) and all(_whole(one) for one in given)
    if not (given is None or isinstance(given, slice) or _whole(given) or listed):
        kinds = "a number, a slice, a list of numbers" + (", a mapping from layers to these" if by_layer else "")
        raise InputError(f"{option} is {kinds}, or a mapping from parts of the model to these, not {given!r}.")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def part_of(given: Any, part: str) -> Any:
    """The choice for one part of the model; a part that a mapping does not name has all."""
    named = isinstance(given, Mapping) and all(isinstance(key, str) for key in given)
    return given.get(part) if named else given


def numbers(option: str, given: Any, count: int, thing: str, where: str) -> list[int]:
    """A choice among numbered things.

    Args:
        option: The name of the option.
        given: None (all), a number (negative counts from the end), a slice, or a list of numbers.
        count: How many there are.
        thing: What they are, ``"layer"`` or ``"head"``.
        where: What has them.

    Returns:
        The numbers, in the order given.

    Raises:
        InputError: There is none of that number, one is named twice, or none is left.
    """
    if given is None or isinstance(given, slice):
        found = list(range(count))[given or slice(None)]
    else:
        found = [given] if isinstance(given, int) else list(given)
        for one in found:
            if not -count <= one < count:
                raise InputError(
                    f"{option}: there is no {thing} {one}; the {where} has {count} {thing}s (0 to {count - 1})."
                )
        found = [one % count for one in found]
    if not found or len(set(found)) != len(found):
        raise InputError(f"{option}={given!r} names {'one twice' if found else 'none'}; leave it out for all.")
    return found


def heads_of_layer(given: Any, layer: int, layers: int, count: int, where: str) -> list[int]:
    """The heads chosen in one layer; a layer that a mapping from layers does not name has none.

    Raises:
        InputError: There is no such layer or head.
    """
    if not isinstance(given, Mapping):
        return numbers("heads", given, count, "head", where)
    named = {numbers("heads", one, layers, "layer", where)[0]: choice for one, choice in given.items()}
    return numbers("heads", named[layer], count, "head", where) if layer in named else []
