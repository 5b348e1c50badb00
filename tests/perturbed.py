"""Games in closed form, as a probe that a method can ask; and the untraced model with tokens replaced."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import torch

from slow_reference import embedding_modules, outputs_replaced, step_inputs, target_value


class GameProbe:
    """A probe whose target is a formula of which features are kept.

    Args:
        value: From kept features [row, feature], as floats, to values [row, column].
        features: Number of features.
        seen: How many of the first features each column sees; None is one column that sees all.
        fixed: Features that nothing removes.
        seed: The seed.
        columns: Weight of every step in every column; None is one step a column.
    """

    def __init__(self, value, features, seen=None, fixed=(), seed=0, columns=None):
        self.value, self.feature_count, self.seed = value, features, seed
        seen = [features] if seen is None else seen
        self.defined = (torch.arange(features) < torch.tensor(seen)[:, None])[None]
        self.outside = self.defined
        self.free = torch.tensor([[k not in fixed for k in range(features)]])
        self.columns = (torch.eye(len(seen)) if columns is None else columns)[None]
        self.streams = torch.zeros(1, features, dtype=torch.long)
        self.layer_labels, self.divergence = (), False
        self.here = self.value(torch.ones(1, features))
        self.asked: list[Any] = []

    def coarser(self, segments):
        """A partition is given as the number of each feature's part."""
        return torch.tensor([segments])

    def respond(self, examples, masks, *, removal="replace", layers=None, heads=None, rows=None):
        self.asked.append((examples, masks))
        return self.value((~(masks & self.free)).double())


def pairs(features, seed=0, link=lambda value: value):
    """The game of single effects and pairs: its two parts, and the formula."""
    numbers = np.random.default_rng(seed)
    a, b = numbers.normal(size=features), np.triu(numbers.normal(size=(features, features)), 1)

    def value(kept):
        kept = kept.double().numpy()
        return torch.from_numpy(link(kept @ a + np.einsum("ri,ij,rj->r", kept, b, kept)))[:, None]

    return a, b, value


def shapley(value, players):
    """Shapley values from the values of all subsets: ``value(set) -> numbers``; for each player its numbers."""
    count = len(players)
    found = []
    for player in players:
        others = [one for one in players if one != player]
        total = 0.0
        for size in range(count):
            for group in combinations(others, size):
                total = total + (value({*group, player}) - value(set(group))) / (count * comb(count - 1, size))
        found.append(total)
    return np.array(found)


def without(hf, prompt, continuation, gone, vectors, target="logprob"):
    """The target of every step with the embeddings of some tokens replaced, one step at a time on what it reads.

    Args:
        hf: The untraced model.
        prompt: Its ids.
        continuation: The explained ids.
        gone: Places of replaced tokens on the token axis (source, then what the decoder reads).
        vectors: What stands in their place, one per stream.
        target: The step function.
    """
    modules = embedding_modules(hf)

    def replaced(stream):
        first = len(prompt) if stream else 0

        def hook(value):
            flags = torch.tensor([first + k in gone for k in range(value.shape[1])])
            return torch.where(flags[:, None], vectors[stream].to(value), value)

        return hook

    found = []
    with torch.no_grad(), outputs_replaced([(module, replaced(k)) for k, module in enumerate(modules)]):
        for step, token in enumerate(continuation):
            logits = hf(**step_inputs(hf, prompt, continuation, step), use_cache=False).logits[0, -1]
            found.append(float(target_value(target, logits, token)))
    return np.array(found)


def mean_vectors(model):
    """The mean embedding of every stream."""
    return [rows["mean"].double() for rows in model.embedding_rows([]).values()]


def plain_game(hf, prompt, continuation, vectors, *, removal, span, sides, fixed=()):
    """The untraced model as a game of its tokens, by log-probability: one row a run, the whole text in each.

    Args:
        hf: The model.
        prompt: Its ids.
        continuation: The explained ids.
        vectors: What stands in the place of replaced tokens, one per stream.
        removal: ``"replace"`` or ``"delete"``.
        span: Whether the continuation is one column; else each step is.
        sides: The sides asked for.
        fixed: Tokens that nothing removes.
    """
    both = hf.config.is_encoder_decoder
    sources, steps = len(prompt), len(continuation)
    features = sources + steps - (not both)
    start = [hf.config.decoder_start_token_id] if both else []
    ends = hf.generation_config.bos_token_id, hf.generation_config.eos_token_id
    begin = next((one for one in ends if one is not None), 0)

    def logits_of(gone):
        # Only prompts are deleted here; where all of one is gone, the beginning of a text stands there.
        source = [token for k, token in enumerate(prompt) if k not in gone] or [begin]
        prefix = [*start, *continuation[:-1]]
        given = {"input_ids": torch.tensor([source if both else [*source, *prefix]])}
        if both:
            given["decoder_input_ids"] = torch.tensor([prefix])
        return hf(**given, use_cache=False).logits[0, -steps:]

    def swapped(flags, vector):
        return lambda value: torch.where(flags[:, None], value, vector.to(value))

    def value(kept):
        found = []
        modules = embedding_modules(hf)
        for row in kept.bool():
            gone, swaps = set(np.flatnonzero(~row.numpy())), []
            if removal == "replace":
                streams = row.split([sources, steps]) if both else [row]
                hooks = [swapped(*one) for one in zip(streams, vectors, strict=True)]
                gone, swaps = set(), list(zip(modules, hooks, strict=True))
            with torch.no_grad(), outputs_replaced(swaps):
                logprobs = logits_of(gone).float().log_softmax(-1)[torch.arange(steps), torch.tensor(continuation)]
            found.append(logprobs.sum(0, keepdim=True) if span else logprobs)
        return torch.stack(found)

    seen = [sources + k + both for k in range(steps)]
    columns = torch.ones(1, steps) if span else None
    game = GameProbe(value, features, seen[-1:] if span else seen, fixed, columns=columns)
    game.defined &= torch.tensor([("source" if k < sources else "prefix") in sides for k in range(features)])
    game.free &= game.defined.any(1)
    return game
