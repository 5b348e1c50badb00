"""Edges of information flow in plain PyTorch, over the sums of `slow_parts`; loops over heads and tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from slow_parts import Attention, Terms, near


def block_terms(modules: list[Attention], i: int) -> list[Terms]:
    """The stream after a block's attention at position i: terms of self attention, and of cross attention.

    Both hold the same residual, biases and total: those of the last sum.
    """
    first = modules[0].summed(i)
    if len(modules) == 1:
        return [first]
    second = modules[1]
    crossed = second.added(i)
    total = first.total + crossed.total
    bias = first.bias + crossed.bias
    return [Terms(one.parts, first.residual, bias, total).through(second.sum_norm) for one in (first, crossed)]


def span_shares(sums: list[Terms], threshold: float) -> tuple[list[Tensor], Tensor]:
    """Shares of the keys of each module, summed over heads, and of the residual."""
    total = sums[0].total
    rest = near(sums[0].residual, total)
    edges = [
        torch.stack([torch.stack([near(vector, total) for vector in head]) for head in terms.parts]) for terms in sums
    ]
    for bound in (None, threshold):
        if bound is not None:
            rest, edges = rest * (rest >= bound), [edge * (edge >= bound) for edge in edges]
        whole = rest + sum(edge.sum() for edge in edges)
        rest, edges = rest / whole, [edge / whole for edge in edges]
    return [edge.sum(0) for edge in edges], rest


def edge_rows(modules: list[Attention], i: int, threshold: float) -> tuple[list[Tensor], Tensor]:
    """The edges into position i of one block."""
    return span_shares(block_terms(modules, i), threshold)


def flow_maps(found: list[Attention], widths: tuple[int, ...], threshold: float) -> dict[str, Tensor]:
    """Edges of all layers multiplied, MLPs on their position: the map of each stack."""
    eye = torch.eye(sum(widths)).double()
    now = {"encoder": eye[: widths[0]], "decoder": eye[-widths[-1] :]}
    for stack in ("encoder", "decoder"):
        layers = sorted({one.layer for one in found if one.stack == stack})
        for layer in layers:
            modules = [one for one in found if (one.stack, one.layer) == (stack, layer)]
            rows = []
            for i in range(modules[0].pattern.shape[1]):
                keys, rest = edge_rows(modules, i, threshold)
                row = keys[0] @ now[stack] + rest * now[stack][i]
                rows.append(row + keys[1] @ now["encoder"] if len(keys) > 1 else row)
            now[stack] = torch.stack(rows)
    return now
