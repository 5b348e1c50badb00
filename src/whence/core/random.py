"""Random numbers that depend on what they are for, and on nothing else.

Every draw has a generator of its own, found by counting: by the user's seed, the name of what draws, and the number
of the row. So results do not depend on devices, places, chunks, or on how many steps are explained.
"""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, item: str, row: int = 0) -> np.random.Generator:
    """The random numbers of one row.

    Args:
        seed: The user's seed.
        item: What draws, such as the name of a method.
        row: Which of its rows.

    Returns:
        A generator; the same for the same arguments, on every machine.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(item.encode()), row])))
