"""What methods that sample share: their options, checked once, and noisy inputs."""

from __future__ import annotations

from whence.core.contract import Path
from whence.core.errors import InputError


def check_draws(n_samples: int, stdev: float, *, noiseless: bool) -> None:
    """Whether a method's number of draws and its noise are in range.

    Args:
        n_samples: Number of draws.
        stdev: Standard deviation of the noise.
        noiseless: Whether there may be no noise.

    Raises:
        InputError: They are not.
    """
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
        raise InputError(f"n_samples is a whole number of at least 1, not {n_samples!r}.")
    number = isinstance(stdev, int | float) and not isinstance(stdev, bool)
    if not number or stdev < 0 or stdev > 1 or (stdev == 0 and not noiseless):
        least = "from 0" if noiseless else "above 0"
        raise InputError(f"stdev is a number {least} up to 1 (of each token's root mean square), not {stdev!r}.")


def noisy_path(item: str, n_samples: int, stdev: float) -> Path:
    """The input with noise, drawn again and again.

    Args:
        item: Name of the random numbers.
        n_samples: Number of draws.
        stdev: Standard deviation of the noise.
    """
    return Path(
        points=[1.0] * n_samples,
        weights=[1 / n_samples] * n_samples,
        noise=stdev,
        carried=True,
        item=item,
        sampled=True,
    )
