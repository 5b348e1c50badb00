"""What the slow implementations of sampling methods share: references, noise and placement, in plain PyTorch.

Random numbers come from `whence.core.random`, by the key that the specification gives them; everything else is
written out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slow_reference import clean_embeddings, gradients, step_inputs
from whence.core.random import stream

Fixed = Callable[[int, int], bool]


def steps_of(hf: Any, prompt: list[int], continuation: list[int]) -> Iterator[tuple[int, int, dict[str, Tensor], list]]:
    """Every step with its token, what the model reads to predict it, and the clean embeddings of that."""
    for step, token in enumerate(continuation):
        inputs = step_inputs(hf, prompt, continuation, step)
        yield step, token, inputs, clean_embeddings(hf, inputs)


def kept_start(hf: Any) -> Fixed:
    """By default the start of a decoder beside an encoder is all that is fixed in a text of plain ids."""
    return lambda stream_number, place: hf.config.is_encoder_decoder and (stream_number, place) == (1, 0)


def lowered(clean: list[Tensor], vectors: list[Tensor], fixed: Fixed) -> list[Tensor]:
    """The input with every token that is not fixed at a reference."""
    low = [value.clone() for value in clean]
    for number, value in enumerate(low):
        for place in range(value.shape[1]):
            if not fixed(number, place):
                value[0, place] = vectors[number].to(value)
    return low


def noisy(clean: list[Tensor], item: str, sample: int, stdev: float, fixed: Fixed, seed: int = 0) -> list[Tensor]:
    """Noise for one draw: token after token, times the root mean square of each token's embedding."""
    made = []
    for number, value in enumerate(clean):
        generator = stream(seed, f"{item} noise {number}", sample)
        noise = torch.zeros_like(value)
        for place in range(value.shape[1]):
            drawn = torch.from_numpy(generator.standard_normal(value.shape[2]))
            size = value[0, place].double().square().mean().sqrt()
            if not fixed(number, place):
                noise[0, place] = (stdev * size * drawn).to(noise)
        made.append(noise)
    return made


def slope(hf: Any, inputs: dict[str, Tensor], points: list[Tensor], target: str, token: int) -> Tensor:
    """The gradient of all tokens of all streams, one after another [token, unit]."""
    return torch.cat(gradients(hf, inputs, points, target, token)[0])


def joined(values: list[Tensor]) -> Tensor:
    """All tokens of all streams, one after another [token, unit]."""
    return torch.cat([value[0] for value in values])


def placed(rows: list[Tensor], width: int) -> np.ndarray:
    """One row per step, NaN for tokens that a step does not read."""
    table = np.full((len(rows), width, *rows[0].shape[1:]), np.nan)
    for step, row in enumerate(rows):
        table[step, : len(row)] = row.numpy()
    return table


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected number, where NaN are the same."""
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    return float(np.nanmax(np.abs(found - expected)) / np.nanmax(np.abs(expected)))
