"""``--plugin FILE``: step functions, aggregators and methods of one's own, from a Python file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from whence.core.errors import InputError


def load_plugins(files: Iterable[Path]) -> None:
    """Run Python files, which register what they define with whence's decorators.

    Args:
        files: The files; each becomes a module of the name of the file.

    Raises:
        InputError: There is no such file, its name is that of a module that is loaded, or it raises an error.
    """
    for file in files:
        if not file.is_file():
            raise InputError(f"--plugin: there is no file {file}.")
        if file.suffix != ".py" or not file.stem.isidentifier():
            raise InputError(f"--plugin: {file.name} is no Python file whose name a module can have, such as mine.py.")
        if file.stem in sys.modules:
            raise InputError(f"--plugin: a module {file.stem!r} is loaded already; give {file.name} another name.")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # The source of what it defines is found through the table of modules, and so is what it imports of itself.
        sys.modules[file.stem] = module
        try:
            spec.loader.exec_module(module)
        except InputError as error:
            raise InputError(f"--plugin {file}: {error}") from error
        except Exception as error:
            raise InputError(f"--plugin {file}: {type(error).__name__}: {error}") from error
