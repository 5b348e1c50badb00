"""Write checkpoints of tiny models, for servers that read them from a folder.

Usage: PYTHONPATH=tests python -m places.save_models DIR FAMILY [FAMILY...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_models import tiny_model, tiny_tokenizer


def main(folder: str, *families: str) -> None:
    for family in families:
        tiny_model(family).save_pretrained(Path(folder) / family)
        tiny_tokenizer(family).save_pretrained(Path(folder) / family)


if __name__ == "__main__":
    main(*sys.argv[1:])
