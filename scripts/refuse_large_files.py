"""Refuse files that are too large for the repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Check the files named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: python scripts/refuse_large_files.py README.md"
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--limit", type=int, default=500, metavar="KB", help="largest size in kilobytes (default: 500)")
    given = parser.parse_args()
    large = [file for file in given.files if file.is_file() and file.stat().st_size > 1000 * given.limit]
    for file in large:
        print(f"{file}: {file.stat().st_size:,} bytes, more than {given.limit} kB")
    return int(bool(large))


if __name__ == "__main__":
    sys.exit(main())
