"""Step functions written out from their definitions, one step at a time on the untraced model, with autograd.

Nothing here is shared with whence but the ids and which token of the other text stands against which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slow_reference import clean_embeddings, embedding_modules, outputs_replaced, step_inputs

Value = Callable[[Tensor, int, Tensor, int], Tensor]


def softmax(z: Tensor) -> Tensor:
    e = torch.exp(z - z.detach().max())
    return e / e.sum()


def kl(p: Tensor, q: Tensor) -> Tensor:
    return sum((p[v] * (torch.log(p[v]) - torch.log(q[v])) for v in range(len(p)) if p[v] > 0), torch.zeros(()))


def cut(p: Tensor, q: Tensor, keep: set[int]) -> tuple[Tensor, Tensor]:
    places = sorted(keep)
    return p[places] / p[places].sum(), q[places] / q[places].sum()


def nucleus(p: Tensor, share: float) -> set[int]:
    chosen: set[int] = set()
    numbers = p.tolist()
    for v in sorted(range(len(p)), key=lambda v: -numbers[v]):
        if sum(numbers[u] for u in chosen) >= share:
            break
        chosen.add(v)
    return chosen


def best(p: Tensor, count: int) -> set[int]:
    return set(p.argsort(descending=True)[:count].tolist())


def kl_top(p: Tensor, q: Tensor, top_k: int, top_p: float) -> Tensor:
    keep: set[int] = set()
    for one in (p, q):
        keep |= (nucleus(one, top_p) & best(one, top_k)) if top_k else nucleus(one, top_p)
    return kl(*cut(p, q, keep))


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def others(z: Tensor, y: int) -> Tensor:
    return torch.cat([z[:y], z[y + 1 :]])


def smallest(p: Tensor, share: float) -> Tensor:
    return torch.tensor(float(len(nucleus(p, share))), dtype=p.dtype)


# name as typed -> f(logits, token, logits of the contrast, its token)
ALONE: dict[str, Value] = {
    "crossentropy": lambda z, y, c, k: -torch.log(softmax(z)[y]),
    "entropy": lambda z, y, c, k: -(softmax(z) * torch.log(softmax(z))).sum(),
    "entropy:base=2": lambda z, y, c, k: -(softmax(z) * torch.log2(softmax(z))).sum(),
    "log_odds": lambda z, y, c, k: torch.log(softmax(z)[y] / (1 - softmax(z)[y])),
    "logit": lambda z, y, c, k: z[y],
    "logprob": lambda z, y, c, k: torch.log(softmax(z)[y]),
    "margin": lambda z, y, c, k: z[y] - others(z, y).max(),
    "perplexity": lambda z, y, c, k: 1 / softmax(z)[y],
    "probability": lambda z, y, c, k: softmax(z)[y],
}
COUNTS: dict[str, Value] = {
    "rank": lambda z, y, c, k: 1.0 + sum((v > z[y]).to(z) for v in z),
    "top_p_size": lambda z, y, c, k: smallest(softmax(z), 0.9),
    "top_p_size:top_p=0.5": lambda z, y, c, k: smallest(softmax(z), 0.5),
}
PAIRED: dict[str, Value] = {
    "contrast_logits": lambda z, y, c, k: c[k],
    "contrast_logits_diff": lambda z, y, c, k: z[y] - c[k],
    "contrast_prob": lambda z, y, c, k: softmax(c)[k],
    "contrast_prob:log=true": lambda z, y, c, k: torch.log(softmax(c)[k]),
    "contrast_prob_diff": lambda z, y, c, k: softmax(z)[y] - softmax(c)[k],
    "contrast_prob_diff:log=true": lambda z, y, c, k: torch.log(softmax(z)[y] / softmax(c)[k]),
    "in_context_pvi": lambda z, y, c, k: torch.log(softmax(c)[k]) - torch.log(softmax(z)[y]),
    "pcxmi": lambda z, y, c, k: torch.log(softmax(c)[k]) - torch.log(softmax(z)[y]),
    'pcxmi:context="main",base=2': lambda z, y, c, k: torch.log2(softmax(z)[y]) - torch.log2(softmax(c)[k]),
}
TWO_RUNS: dict[str, Value] = {
    "jsd": lambda z, y, c, k: jensen_shannon(softmax(z), softmax(c)),
    "jsd:sqrt=true": lambda z, y, c, k: jensen_shannon(softmax(z), softmax(c)).sqrt(),
    "kl_divergence": lambda z, y, c, k: kl(softmax(z), softmax(c)),
    'kl_divergence:direction="contrast_to_main"': lambda z, y, c, k: kl(softmax(c), softmax(z)),
    "kl_divergence:top_k=5": lambda z, y, c, k: kl_top(softmax(z), softmax(c), 5, 1.1),
    "kl_divergence:top_p=0.6": lambda z, y, c, k: kl_top(softmax(z), softmax(c), 0, 0.6),
    "kl_divergence:top_k=4,top_p=0.8,base=2": lambda z, y, c, k: kl_top(softmax(z), softmax(c), 4, 0.8) / math.log(2),
}


@dataclass(frozen=True)
class Text:
    """What is read and what is said, as ids."""

    prompt: list[int]
    continuation: list[int]


def shared_places(model: Any, text: Text, other: Text, step: int, partner: int) -> list[list[tuple[int, int]]]:
    """Places of both texts with the same variable: equal beginnings and ends of prompts, equal beginnings after."""

    def front(a: Sequence[int], b: Sequence[int]) -> int:
        count = 0
        while count < min(len(a), len(b)) and a[count] == b[count]:
            count += 1
        return count

    a, b = text.prompt, other.prompt
    head = front(a, b)
    tail = front(a[head:][::-1], b[head:][::-1])
    pairs = [(k, k) for k in range(head)] + [(len(a) - 1 - k, len(b) - 1 - k) for k in range(tail)]
    said = front(text.continuation[:step], other.continuation[:partner])
    if model.config.is_encoder_decoder:
        return [pairs, [(k, k) for k in range(said + 1)]]
    return [pairs + [(len(a) + k, len(b) + k) for k in range(said)]]


def value_and_scores(
    model: Any,
    text: Text,
    step: int,
    value: Value,
    *,
    other: Text | None = None,
    partner: int | None = None,
    evaluate: str = "main",
    grad: str = "main",
) -> tuple[float, Tensor]:
    """A step function at one step, and input x gradient of every token read for it."""
    inputs = step_inputs(model, text.prompt, text.continuation, step)
    leaves = [one.clone().requires_grad_(True) for one in clean_embeddings(model, inputs)]
    modules = embedding_modules(model)

    def logits(given: dict[str, Tensor], rows: list[Tensor] | None) -> Tensor:
        if rows is None:
            return model(**given, use_cache=False).logits[0, -1]
        swaps = [(module, lambda _, row=row: row) for module, row in zip(modules, rows, strict=True)]
        with outputs_replaced(swaps):
            return model(**given, use_cache=False).logits[0, -1]

    z, token = logits(inputs, leaves), text.continuation[step]
    contrast, foil = z, token
    if other is not None:
        assert partner is not None
        foil = other.continuation[partner]
        if evaluate == "own":
            theirs = step_inputs(model, other.prompt, other.continuation, partner)
            if grad == "main":
                contrast = logits(theirs, None).detach()
            else:
                rows = [one.clone() for one in clean_embeddings(model, theirs)]
                for stream, pairs in enumerate(shared_places(model, text, other, step, partner)):
                    for mine, its in pairs:
                        rows[stream][0, its] = leaves[stream][0, mine]
                contrast = logits(theirs, rows)
    found = value(z, token, contrast, foil)
    if not found.requires_grad:
        return float(found), torch.zeros(sum(one.shape[1] for one in leaves), dtype=torch.float64)
    grads = torch.autograd.grad(found, leaves, allow_unused=True)
    parts = [
        (torch.zeros_like(leaf) if g is None else g * leaf.detach())[0].sum(-1)
        for leaf, g in zip(leaves, grads, strict=True)
    ]
    return float(found.detach()), torch.cat(parts)
