"""Immutable score arrays with named, labelled axes. Knows nothing about models or methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import index as as_int
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.core.axes import SCORE_AXES
from whence.core.errors import InputError, NonFiniteScore, unknown_name
from whence.core.extras import require
from whence.scores.reducers import reduce_defined, resolve

if TYPE_CHECKING:
    import pandas
    import torch
    import xarray

WHOLE_AXES = frozenset({"layer", "head", "unit"})

How = str | Callable[..., Any]
Several = slice | Sequence[int] | Sequence[str] | np.ndarray | tuple[int | None, int | None]
Index = int | np.integer | str | Several


@dataclass(frozen=True)
class Axis:
    """One dimension of a score array: what it is, and what each entry is called.

    Attributes:
        name: ``"step"``, ``"token"``, ``"layer"``, ``"head"`` or ``"unit"``.
        labels: One text per entry; texts may repeat.
    """

    name: str
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.name not in SCORE_AXES:
            raise unknown_name("axis", self.name, SCORE_AXES)
        if isinstance(self.labels, str) or not all(isinstance(label, str) for label in self.labels):
            raise InputError(f"the labels of axis {self.name!r} must be a sequence of texts.")
        object.__setattr__(self, "labels", tuple(self.labels))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """A read-only float32 array plus one `Axis` per dimension.

    Axes keep the order step, token, layer, head, unit; any of them may be absent. NaN marks a cell that is
    not defined: a step cannot look at that token.

    Attributes:
        values: The numbers; a copy is made.
        axes: One axis per dimension of ``values``.

    Raises:
        InputError: Shape and axes differ, an axis repeats, or the order is wrong.
    """

    values: np.ndarray
    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        # A float64 that does not fit becomes infinite, which `Attribution` then refuses with a clear error.
        with np.errstate(over="ignore"):
            values = np.array(self.values, dtype=np.float32)
        axes = tuple(self.axes)
        if values.shape != tuple(len(axis) for axis in axes):
            named = ", ".join(f"{axis.name}={len(axis)}" for axis in axes)
            raise InputError(f"scores have shape {values.shape}, but axes say ({named})")
        names = tuple(axis.name for axis in axes)
        if names != tuple(name for name in SCORE_AXES if name in names):
            raise InputError(f"axes are {', '.join(names)}; each may come once, in the order {', '.join(SCORE_AXES)}")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "axes", axes)

    def __reduce__(self) -> tuple[type[Scores], tuple[np.ndarray, tuple[Axis, ...]]]:
        # Copying and unpickling build a new object, because numpy forgets that an array is read-only.
        return type(self), (self.values, self.axes)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{axis.name}={len(axis)}" for axis in self.axes)
        known = self.values[self.defined]
        if not known.size:
            return f"Scores({sizes or 'no axes'}; nothing defined)"
        share = "all" if known.size == self.values.size else f"{known.size / self.values.size:.0%}"
        return f"Scores({sizes or 'no axes'}; {share} defined, from {known.min():.4g} to {known.max():.4g})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes, in order."""
        return tuple(axis.name for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of entries along each axis."""
        return self.values.shape

    @property
    def defined(self) -> np.ndarray:
        """True where a score exists."""
        return np.asarray(~np.isnan(self.values))

    def index(self, name: str) -> int:
        """Number of the axis of that name."""
        if name not in self.names:
            raise InputError(f"no axis {name!r}; these scores have {', '.join(self.names) or 'no axes'}")
        return self.names.index(name)

    def axis(self, name: str) -> Axis:
        """The axis of that name."""
        return self.axes[self.index(name)]

    def reduce(self, axis: str, how: How, **options: Any) -> Scores:
        """Remove an axis by turning the scores along it into one.

        Along layers, heads and units a cell is entirely defined or entirely undefined. Along steps and
        tokens the defined scores are reduced; where there is none, the result is not defined.

        Args:
            axis: Name of the axis to remove.
            how: ``mean``, ``max``, ``min``, ``sum``, ``prod``, ``absmax`` (strongest, sign kept), ``l1``,
                ``l2``, ``lp`` (``ord=``), or a function that takes an array and ``axis=``.
            **options: Further keyword arguments of the reducer.

        Raises:
            InputError: No such axis, an option the reducer does not take, or a partly defined cell.
            UnknownNameError: No such reducer.
            NonFiniteScore: Defined scores gave NaN or infinity.
        """
        i = self.index(axis)
        values = self._reduced(self.values, axis, resolve(how, options))
        return Scores(values, self.axes[:i] + self.axes[i + 1 :])

    def select(self, axis: str, index: Index) -> Scores:
        """Keep some entries of an axis; a single one drops the axis.

        Args:
            axis: Name of the axis.
            index: A position or a label (drops the axis); a list of positions or labels; a slice; or a
                pair ``(start, stop)``, end-exclusive, None for an open end. Negative positions count from
                the end.

        Raises:
            InputError: A position outside the axis, one given twice, or a label that several entries have.
            UnknownNameError: A label that no entry has.
        """
        i, chosen = self.index(axis), self.axis(axis)
        if isinstance(index, str | int | np.integer):
            values = np.take(self.values, position_of(chosen, index), axis=i)
            return Scores(values, self.axes[:i] + self.axes[i + 1 :])
        keep = positions_of(chosen, index)
        kept = replace(chosen, labels=tuple(chosen.labels[k] for k in keep))
        values = np.take(self.values, np.array(keep, dtype=np.intp), axis=i)
        return Scores(values, (*self.axes[:i], kept, *self.axes[i + 1 :]))

    def merge(self, axis: str, spans: Sequence[tuple[int, int]], how: How, **options: Any) -> Scores:
        """Turn every span of an axis into one entry; entries outside all spans stay as they are.

        Args:
            axis: Name of the axis.
            spans: End-exclusive ``(start, stop)`` pairs, ascending and disjoint.
            how: As in `reduce`, and with the same rule for cells that are not defined.
            **options: Further keyword arguments of the reducer.

        Returns:
            Scores whose merged labels are joined: texts as they stand, layers, heads and units by ``+``.

        Raises:
            InputError: A span that is empty, outside the axis, or not after the one before.
        """
        i, old = self.index(axis), self.axis(axis)
        function = resolve(how, options)
        joint = "+" if axis in WHOLE_AXES else ""
        parts: list[np.ndarray] = []
        labels: list[str] = []
        end = 0
        for start, stop in [*checked_spans(spans, len(old)), (len(old), len(old))]:
            parts.append(np.take(self.values, range(end, start), axis=i))
            labels.extend(old.labels[end:start])
            end = stop
            if start < stop:
                member = self._reduced(np.take(self.values, range(start, stop), axis=i), axis, function)
                parts.append(np.expand_dims(member, i))
                labels.append(joint.join(old.labels[start:stop]))
        merged = replace(old, labels=tuple(labels))
        return Scores(np.concatenate(parts, axis=i), (*self.axes[:i], merged, *self.axes[i + 1 :]))

    def __sub__(self, other: Scores) -> Scores:
        """First minus second; both need the same axes, labels and defined cells."""
        if not isinstance(other, Scores):
            return NotImplemented
        if self.names != other.names or self.shape != other.shape:
            raise InputError(f"cannot subtract: {self!r} and {other!r} have different axes")
        for mine, theirs in zip(self.axes, other.axes, strict=True):
            for k, pair in enumerate(zip(mine.labels, theirs.labels, strict=True)):
                if pair[0] != pair[1]:
                    raise InputError(f"cannot subtract: {mine.name} {k} is {pair[0]!r} and {pair[1]!r}")
        if not np.array_equal(self.defined, other.defined):
            raise InputError("cannot subtract: some cells are defined in only one of the two scores")
        return replace(self, values=self.values - other.values)

    def absolute(self) -> Scores:
        """The magnitudes."""
        return replace(self, values=np.abs(self.values))

    def scale(self, factor: float) -> Scores:
        """Every score times a finite number."""
        if not np.isfinite(factor):
            raise NonFiniteScore(f"scores cannot be multiplied by {factor}.")
        return replace(self, values=self.values.astype(np.float64) * factor)

    def equals(self, other: Scores, atol: float = 0.0) -> bool:
        """Same axes, same labels, same defined cells, and values no further apart than ``atol``."""
        return self.axes == other.axes and np.allclose(self.values, other.values, rtol=0.0, atol=atol, equal_nan=True)

    def to_pandas(self) -> pandas.DataFrame:
        """A table of two axes, or the long form of any other number of axes.

        Two axes give one row per label of the first and one column per label of the second. Otherwise
        there is one row per cell, with the position (``token``) and the label (``token_label``) along
        every axis, and the ``score``.
        """
        pandas = require("pandas", "data")
        if len(self.axes) == 2:
            rows, columns = (pandas.Index(axis.labels, name=axis.name) for axis in self.axes)
            return pandas.DataFrame(self.values, index=rows, columns=columns)
        table: dict[str, Any] = {}
        for axis, positions in zip(self.axes, np.indices(self.shape), strict=True):
            table[axis.name] = positions.ravel()
            table[f"{axis.name}_label"] = [axis.labels[k] for k in positions.ravel()]
        return pandas.DataFrame({**table, "score": self.values.ravel()})

    def to_xarray(self) -> xarray.DataArray:
        """A labelled array whose dimensions and coordinates are the axes and their labels."""
        xarray = require("xarray", "data")
        coords = {axis.name: list(axis.labels) for axis in self.axes}
        return xarray.DataArray(self.values.copy(), dims=self.names, coords=coords, name="score")

    def torch(self) -> torch.Tensor:
        """A copy of the values as a float32 tensor."""
        import torch

        return torch.from_numpy(self.values.copy())

    def _reduced(self, values: np.ndarray, axis: str, function: Callable[..., Any]) -> np.ndarray:
        try:
            return reduce_defined(values, self.index(axis), function, whole=axis in WHOLE_AXES)
        except (InputError, NonFiniteScore) as error:
            raise type(error)(f"cannot reduce axis {axis!r}: {error}") from None


def position_of(axis: Axis, index: int | np.integer | str) -> int:
    """One entry of an axis, given by position or by label."""
    if isinstance(index, str):
        found = [k for k, label in enumerate(axis.labels) if label == index]
        if not found:
            raise unknown_name(f"{axis.name} label", index, set(axis.labels))
        if len(found) > 1:
            raise InputError(f"{axis.name} {index!r} stands at positions {found}; select by position")
        return found[0]
    if isinstance(index, bool | np.bool_):
        raise InputError(f"select takes positions, labels, slices or pairs, not {index!r}")
    position = as_int(index)
    if not -len(axis) <= position < len(axis):
        raise InputError(f"no {axis.name} {position}; there are {len(axis)}")
    return position % len(axis)


def positions_of(axis: Axis, index: Several) -> list[int]:
    """Several entries of an axis, each at most once."""
    if isinstance(index, slice):
        return list(range(len(axis))[index])
    if isinstance(index, tuple):
        return list(range(*_bounds(axis, index)))
    try:
        keep = [position_of(axis, item) for item in index]
    except TypeError:
        raise InputError(f"select takes positions, labels, slices or pairs, not {index!r}") from None
    if len(set(keep)) < len(keep):
        twice = next(k for k in keep if keep.count(k) > 1)
        raise InputError(f"{axis.name} {twice} is selected more than once")
    return keep


def _bounds(axis: Axis, pair: tuple[Any, ...]) -> tuple[int, int]:
    """A pair of bounds as two positions that exist; unlike a slice, it is never cut to size."""
    if len(pair) != 2 or not all(bound is None or isinstance(bound, int | np.integer) for bound in pair):
        raise InputError(f"a tuple means a pair (start, stop), not {pair!r}; pass a list to name entries")
    n = len(axis)
    start, stop = (0 if pair[0] is None else int(pair[0])), (n if pair[1] is None else int(pair[1]))
    start, stop = (bound + n if bound < 0 else bound for bound in (start, stop))
    if not 0 <= start <= stop <= n:
        raise InputError(f"bounds {pair!r} do not lie within the {n} entries of axis {axis.name!r}")
    return start, stop


def checked_spans(spans: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """The spans, if they are ascending, disjoint, not empty, and inside the axis."""
    end = 0
    checked = []
    for span in spans:
        start, stop = (as_int(bound) for bound in span)
        if not end <= start < stop <= size:
            raise InputError(
                f"span {(start, stop)} does not fit: spans are ascending, disjoint and not empty, "
                f"and this axis has {size} entries"
            )
        checked.append((start, stop))
        end = stop
    return checked
