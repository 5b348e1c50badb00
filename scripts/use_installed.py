"""Use an installed whence from Python: both bundled models, every method, and a file written and read back."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import whence


def main() -> None:
    """Attribute with both bundled models."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: python scripts/use_installed.py --not-from ."
    )
    parser.add_argument("--not-from", type=Path, help="fail if whence was imported from this folder")
    given = parser.parse_args()
    home = Path(whence.__file__).resolve()
    if given.not_from is not None and home.is_relative_to(given.not_from.resolve()):
        raise SystemExit(f"whence was imported from {home}, not from where it is installed")
    texts = {
        "whence/stories": ("Once upon a time", {"max_new_tokens": 8}),
        "whence/en-it": ("The manager said that she was tired.", None),
    }
    ran = set()
    for name, (text, generate) in texts.items():
        model = whence.load(name)
        for method in whence.METHODS:
            try:
                out = model.attribute(text, method=method, generate=generate)
            except whence.UnsupportedError as error:
                print(f"{name} {method}: {error}")
                continue
            ran.add(method)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "out.json"
                out.save(file)
                if not whence.load_attribution(file).equals(out):
                    raise SystemExit(f"{name}, {method}: the file does not give back what was saved")
            print(f"{name} {method}: {out!r}")
    if missing := set(whence.METHODS) - ran:
        raise SystemExit(f"with neither model: {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
