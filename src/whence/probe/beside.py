"""Rows that run beside every row: on the text that it is compared with, or under dropout.

These functions travel to remote places by their source (see `whence.models.programs` for the rules). ``beside`` in a
run (see `whence.probe.rows`) is None, or plain data:

``foil``   ``inputs`` of the other texts, ``query`` [example, step] of their partners of the steps, and ``maps``, per
           stream [example, position]: which position of the row holds the same variable, or -1
``noise``  ``passes``, ``seed``, and the ``leaves`` that lose values, each with its ``rate`` and ``grid``: the values at
           a position are numbers ("unit"), or there is one for every head and pair of positions ("pair")

A row is edited as if it ran alone; what it and the rows beside it share is edited in all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.core.random import stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor

_WORD = (1 << 63) - 1


def rows_beside(run: dict[str, Any]) -> int:
    """How many rows run beside each row."""
    beside = run["beside"]
    if beside is None:
        return 0
    return 1 if "maps" in beside else beside["passes"]


def called(run: dict[str, Any], examples: Int[Tensor, " row"]) -> dict[str, Any]:
    """Arguments of the forward for rows, and for those beside them: block after block."""
    beside, inputs = run["beside"], run["inputs"]
    own = {name: value[examples] for name, value in inputs.items()}
    if beside is None:
        return own
    other = [beside["inputs"]] if "maps" in beside else [inputs] * beside["passes"]
    return {name: torch.cat([value, *(one[name][examples] for one in other)]) for name, value in own.items()}


def noise_leaves(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The sites that lose values under dropout."""
    beside = run["beside"]
    return [] if beside is None or "maps" in beside else beside["leaves"]


def edited_rows(
    run: dict[str, Any],
    examples: Int[Tensor, " row"],
    leaf: dict[str, Any],
    edit: Callable[[dict[str, Any], Tensor], Tensor | None],
    value: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """The value of a leaf in the rows after their edit, and what is to be written for all that run.

    Args:
        run: The batch.
        examples: The example of each row.
        leaf: The leaf.
        edit: The edit of the rows.
        value: The value in all rows that run.

    Returns:
        The value of the rows themselves, and of all; None if nothing is to be written.
    """
    beside, count = run["beside"], len(examples)
    if beside is None:
        edited = edit(leaf, value)
        return (value, None) if edited is None else (edited, edited)
    own, others = value[:count], value[count:]
    if "rate" in leaf:
        blocks = [drop(run, examples, leaf, block, number) for number, block in enumerate(others.split(count))]
        return own, torch.cat([own, *blocks])
    edited = edit(leaf, own)
    if edited is None:
        return own, None
    if "maps" in beside:
        return edited, torch.cat([edited, follow(beside["maps"][leaf["stream"]][examples], edited, others)])
    if leaf["key"].rpartition(".")[2] == "embed":
        return edited, edited.repeat(1 + beside["passes"], *(1,) * (edited.dim() - 1))
    # Behind the first dropout every pass has values of its own.
    blocks = [edit(leaf, block) for block in others.split(count)]
    return edited, torch.cat([edited, *(block for block in blocks if block is not None)])


def follow(places: Int[Tensor, "row position"], edited: Tensor, other: Tensor) -> Tensor:
    """The rows of the other text, with what they share taken from the edited rows."""
    tail = (1,) * (edited.dim() - 2)
    where = places.to(edited.device).view(*places.shape, *tail)
    taken = edited.gather(1, where.clamp_min(0).expand(-1, -1, *edited.shape[2:]))
    return torch.where(where >= 0, taken, other)


def drop(
    run: dict[str, Any], examples: Int[Tensor, " row"], leaf: dict[str, Any], value: Tensor, number: int
) -> Tensor:
    """Values under one dropout mask, the same for every row and wherever in a padded batch its text stands."""
    seed = int(stream(run["beside"]["seed"], f"mc_dropout {leaf['key']}", number).integers(_WORD))
    ranks = [token_ranks(run, examples, leaf[name], value.device) for name in ("stream", "keys") if name in leaf]
    if leaf["grid"] == "pair":
        head = torch.arange(value.shape[1], device=value.device)[None, :, None, None]
        numbers = uniform(seed, [ranks[0][:, None, :, None], ranks[-1][:, None, None, :], head])
    else:
        unit = torch.arange(value.shape[2], device=value.device)[None, None]
        numbers = uniform(seed, [ranks[0][:, :, None], unit])
    return value * (numbers >= leaf["rate"]).to(value) / (1 - leaf["rate"])


def token_ranks(
    run: dict[str, Any], examples: Int[Tensor, " row"], which: int, device: Any
) -> Int[Tensor, "row position"]:
    """The number of each position's token in its text, counted from the first that is no padding."""
    names = [name for name in ("input_ids", "decoder_input_ids") if name in run["inputs"]]
    mask = run["inputs"].get(names[which].replace("input_ids", "attention_mask"))
    held = torch.ones_like(run["inputs"][names[which]]) if mask is None else mask
    return (held[examples].cumsum(1) - 1).clamp_min(0).to(device)


def uniform(seed: int, coordinates: list[Int[Tensor, "..."]]) -> Float[Tensor, "..."]:
    """Numbers in [0, 1) that depend on a seed and on coordinates alone, by the mixing function of SplitMix64.

    Steele, Lea and Flood 2014, with the additive constant once per coordinate.
    """
    found = coordinates[0] * 0 + seed
    for one in coordinates:
        found = mixed(found + one + 1)
    return (found >> 11).bitwise_and((1 << 53) - 1).double() / (1 << 53)


def mixed(word: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """One step of SplitMix64 on 64-bit words that wrap around."""
    # Python's unsigned constants as the signed words that torch has.
    word = word + (0x9E3779B97F4A7C15 - (1 << 64))
    word = (word ^ (word >> 30).bitwise_and((1 << 34) - 1)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    word = (word ^ (word >> 27).bitwise_and((1 << 37) - 1)) * (0x94D049BB133111EB - (1 << 64))
    return word ^ (word >> 31).bitwise_and((1 << 33) - 1)
