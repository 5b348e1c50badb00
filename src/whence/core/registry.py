"""Name -> object tables: written out by hand, listable without importing anything, open to plug-ins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from whence.core.errors import InputError, unknown_name


class Registry(Mapping[str, Any]):
    """A table of ``name -> "module:attribute"``, imported on first use.

    Args:
        kind: What the entries are, in the singular; used in error messages.
        group: Entry-point group through which other packages add entries.
        table: The entries of whence itself.
    """

    def __init__(self, kind: str, group: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._table = dict(table)
        self._added: dict[str, Any] = {}

    def paths(self) -> dict[str, str]:
        """Every name and the place it is defined, own entries first, then plug-ins."""
        plugins = {entry.name: entry.value for entry in entry_points(group=self.group)}
        added = {name: f"{obj.__module__}:{obj.__qualname__}" for name, obj in self._added.items()}
        return {**plugins, **self._table, **added}

    def add(self, name: str, obj: Any, *, overwrite: bool = False) -> None:
        """Register an object under a name for the life of this process.

        Args:
            name: The name users will type.
            obj: The method class or step function.
            overwrite: Replace an entry of the same name instead of raising.

        Raises:
            InputError: The name is taken and ``overwrite`` is not set.
        """
        if name in self.paths() and not overwrite:
            raise InputError(f"{self.kind} {name!r} exists already; pass overwrite=True to replace it.")
        self._added[name] = obj

    def __getitem__(self, name: str) -> Any:
        if name in self._added:
            return self._added[name]
        # Looking for plug-ins reads the metadata of every installed package, and they never replace an own entry.
        paths = self._table if name in self._table else self.paths()
        if name not in paths:
            raise unknown_name(self.kind, name, paths)
        module, _, attribute = paths[name].partition(":")
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._table or name in self.paths()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.paths()))

    def __len__(self) -> int:
        return len(self.paths())
