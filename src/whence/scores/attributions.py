"""Several results together, as a batch gives them and a file holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from typing import Any, overload

from whence.core.errors import InputError
from whence.scores.attribution import Attribution

# What must be the same in results that are put together.
SAME = (
    "model",
    "revision",
    "method",
    "method_options",
    "target",
    "target_options",
    "segments",
    "layer",
    "sides",
    "ops",
)


@dataclass(frozen=True, eq=False, repr=False)
class Attributions(Sequence[Attribution]):
    """Several attributions, in the order of the inputs. Immutable; behaves like a list.

    Attributes:
        items: The attributions.
    """

    items: tuple[Attribution, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        if not all(isinstance(item, Attribution) for item in self.items):
            raise InputError("Attributions holds Attribution objects only.")

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Attribution]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Attribution: ...

    @overload
    def __getitem__(self, index: slice) -> Attributions: ...

    def __getitem__(self, index: int | slice) -> Attribution | Attributions:
        return Attributions(self.items[index]) if isinstance(index, slice) else self.items[index]

    def __repr__(self) -> str:
        shown = [repr(item) for item in self.items[:3]] + ["..."] * (len(self) > 3)
        return f"Attributions({len(self)}: [{', '.join(shown)}])"

    @property
    def verified(self) -> bool:
        """No check of any attribution failed."""
        return all(item.verified for item in self.items)

    def __add__(self, other: Attributions) -> Attributions:
        """The attributions of both, if they come from the same question to the same model.

        Raises:
            InputError: They do not; the message says what differs.
        """
        if not isinstance(other, Attributions):
            return NotImplemented
        both = (*self.items, *other.items)
        for item in both[1:]:
            for key in SAME:
                if item.info.get(key) != both[0].info.get(key):
                    raise InputError(
                        f"these results do not belong together: {key} is {both[0].info.get(key)!r} in one and "
                        f"{item.info.get(key)!r} in another. A list holds any of them."
                    )
        return Attributions(both)

    def __radd__(self, other: Any) -> Attributions:
        """`sum` begins with 0."""
        return self if type(other) is int and other == 0 else NotImplemented

    def aggregate(self, *parts: Any) -> Attributions:
        """New attributions, each made by the same operators; see `Attribution.aggregate`."""
        from whence.scores.aggregation.pipeline import aggregate

        return aggregate(self, *parts)

    def show(self, **options: Any) -> None:
        """Print one after the other; ``options`` are those of `whence.views.console.show`."""
        import_module("whence.views.console").show(self, **options)

    def save(self, path: str | PathLike[str]) -> None:
        """Write all of them into one JSON file, compressed when its name ends in ``.gz``."""
        from whence.scores.serialization import write

        write(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Attributions:
        """Read every attribution in a file, be it one or many, whether whence or Inseq wrote it.

        Raises:
            FileFormatError: The file is damaged or of a newer format.
        """
        from whence.scores.serialization import read

        return read(path)


def load_attribution(path: str | PathLike[str]) -> Attribution:
    """Read the attribution in a file that `Attribution.save` or Inseq wrote.

    Args:
        path: Its name; compressed files are recognised by what is in them.

    Raises:
        InputError: There is no such file.
        FileFormatError: The file is damaged, of a newer format, or holds several attributions.
    """
    return Attribution.load(path)
