"""Look into a built wheel: its size, what must be in it, and that it names no folder of the build machine."""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

LARGEST = 14_000_000
WANTED = (
    "whence/__init__.py",
    "whence/py.typed",
    "whence/models/bundled/checkpoints/stories/model.safetensors",
    "whence/models/bundled/checkpoints/stories/tokenizer.json",
    "whence/models/bundled/checkpoints/en-it/model.safetensors",
    "whence/models/bundled/checkpoints/en-it/tokenizer.json",
)


def problems(wheel: Path, forbidden: list[str]) -> list[str]:
    """What is wrong with a wheel.

    Args:
        wheel: The file.
        forbidden: Texts that no file in it may contain.

    Returns:
        One line per problem.
    """
    found = []
    size = wheel.stat().st_size
    if size >= LARGEST:
        found.append(f"{size:,} bytes; the limit is {LARGEST:,}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        found += [f"{name} is missing" for name in WANTED if name not in names]
        found += [f"{name} does not belong in it" for name in names if not name.startswith("whence")]
        for name in names:
            data = archive.read(name)
            found += [f"{name} contains {text!r}" for text in forbidden if text.encode() in data]
    return found


def main() -> int:
    """Check the wheel named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: python scripts/inspect_wheel.py dist/whence-0.1.0-py3-none-any.whl"
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--forbid", action="append", default=[], metavar="TEXT", help="text that must not be in it")
    given = parser.parse_args()
    found = problems(given.wheel, [text for text in given.forbid if text not in ("", "/")])
    sys.stdout.writelines(f"{given.wheel.name}: {line}\n" for line in found)
    if not found:
        sys.stdout.write(f"{given.wheel.name}: {given.wheel.stat().st_size:,} bytes, complete\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
