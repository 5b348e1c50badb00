"""ReAGent as its paper has it: walks of the importance of features, until the most important ones are enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whence.core.contract import Answer, Gap, Probe, Vocabulary
from whence.core.random import stream
from whence.methods.perturbation.replacements import Draw

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

# Most rounds of one request: a walk that ends within a block has run the rest of it in vain.
_BLOCK = 8


@dataclass(frozen=True)
class StopRule:
    """When a walk ends: the explained token is among the most probable with other features replaced.

    Attributes:
        top: Among how many.
        count: How many of the most important features are kept.
        ratio: Instead, a share of those that the step sees, rounded up.
        invert: Replace these and leave the others.
    """

    top: int
    count: int
    ratio: float | None
    invert: bool

    def replaced(
        self, importance: Float[Tensor, "*case feature"], able: Bool[Tensor, "*case feature"]
    ) -> Bool[Tensor, "*case feature"]:
        """The features to replace for a check.

        Args:
            importance: The importance of every feature.
            able: Features that the step sees and that can change; the others are never replaced.

        Returns:
            True where a feature is replaced.
        """
        import torch

        order = importance.masked_fill(~able, float("-inf")).argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(dim=-1)
        count = torch.full_like(able.sum(-1, keepdim=True), self.count)
        if self.ratio is not None:
            count = (able.sum(-1, keepdim=True) * self.ratio).ceil().long()
        best = rank < count
        return able & (best if self.invert else ~best)


@dataclass(frozen=True)
class Walks:
    """What is asked of walks: how many, for how long, with which chance of replacing a feature, until when."""

    count: int
    rounds: int
    every: int
    ratio: float
    rule: StopRule


def walk(
    probe: Probe,
    words: Vocabulary,
    draw: Draw,
    change: Callable[[Tensor], Tensor],
    plan: Walks,
    record: dict[str, Any],
) -> Answer:
    """Walk until every walk of every column has ended, or has had all its rounds.

    No step of a walk depends on the checks, so rounds are run in blocks of growing size, their checks after them,
    and the first check that holds ends the walk as if it had been made at once.

    Args:
        probe: The model.
        words: The tokens.
        draw: The sampler.
        change: From differences of the target to steps of a walk.
        plan: What is asked of the walks.
        record: What is known of the sampler.

    Returns:
        The mean importance over the walks that ended, or over all where none did.
    """
    import numpy as np
    import torch

    count, columns, features = probe.defined.shape
    able = probe.defined & probe.free[:, None]
    begin = [stream(probe.seed, f"reagent start {k}").random(features) for k in range(plan.count)]
    state = torch.tensor(np.stack(begin))[:, None, None].repeat(1, count, columns, 1)
    waiting = (probe.columns.sum(-1) > 0).repeat(plan.count, 1, 1)
    ended = torch.zeros_like(waiting)
    done, block, rows = 0, 1, 0
    while bool(waiting.any()) and done < plan.rounds:
        rounds = list(range(done, min(done + block, plan.rounds)))
        pairs = waiting.any(-1).nonzero()
        path, used = _steps(probe, words, draw, change, plan, rounds, pairs)
        path = state[pairs[:, 0], pairs[:, 1], None] + path
        checked = [k for k, number in enumerate(rounds) if (number + 1) % plan.every == 0]
        held, asked = _checks(probe, words, draw, plan, [rounds[k] for k in checked], pairs, path[:, checked], waiting)
        rows += used + asked
        for number, (one, row) in enumerate(pairs.tolist()):
            for column in waiting[one, row].nonzero().flatten().tolist():
                first = held[number, :, column].nonzero().flatten().tolist()[:1]
                last = checked[first[0]] if first else -1
                state[one, row, column] = path[number, last, column]
                ended[one, row, column] = bool(first)
        waiting = waiting & ~ended
        done, block = rounds[-1] + 1, min(2 * block, _BLOCK)
    return _answer(state, ended, able, {**record, "rounds": done, "rows": rows})


def _steps(
    probe: Probe,
    words: Vocabulary,
    draw: Draw,
    change: Callable[[Tensor], Tensor],
    plan: Walks,
    rounds: list[int],
    pairs: Int[Tensor, "pair two"],
) -> tuple[Float[Tensor, "pair round column feature"], int]:
    """How far some rounds lead from where they begin, for pairs of walk and example; and the rows they took."""
    import numpy as np
    import torch

    drawn = _drawn(probe, words, draw, plan.count, rounds, "reagent tokens")
    features = probe.feature_count
    numbers = [
        [stream(probe.seed, f"reagent masks {one}", k).random(features) for k in rounds] for one in range(plan.count)
    ]
    masks = torch.tensor(np.array(numbers)) < plan.ratio
    one, row = pairs.T
    ids = torch.where(_places(words, masks[one], row), drawn[one, row], words.ids[row][:, None])
    examples = row.repeat_interleave(len(rounds))
    found = probe.resample(examples, ids.flatten(0, 1)).view(len(pairs), len(rounds), -1)
    moved = change((probe.here[row][:, None] - found).double())
    sign = torch.where(masks[one], 1.0, -1.0).double()
    return (moved[..., None] * sign[:, :, None]).cumsum(1), len(examples)


def _checks(
    probe: Probe,
    words: Vocabulary,
    draw: Draw,
    plan: Walks,
    rounds: list[int],
    pairs: Int[Tensor, "pair two"],
    importance: Float[Tensor, "pair round column feature"],
    waiting: Bool[Tensor, "walk batch column"],
) -> tuple[Bool[Tensor, "pair round column"], int]:
    """Whether walks may end after some rounds, for the columns that wait for it; and the rows it took."""
    import torch

    held = torch.zeros(importance.shape[:3], dtype=torch.bool)
    if not rounds:
        return held, 0
    drawn = _drawn(probe, words, draw, plan.count, rounds, "reagent checks")
    pair, column = waiting[pairs[:, 0], pairs[:, 1]].nonzero(as_tuple=True)
    one, row = pairs[pair].T
    able = (probe.defined & probe.free[:, None])[row, column]
    masks = plan.rule.replaced(importance[pair, :, column], able[:, None])
    ids = torch.where(_places(words, masks, row), drawn[one, row], words.ids[row][:, None])
    examples = row.repeat_interleave(len(rounds))
    found = probe.resample(examples, ids.flatten(0, 1), top=plan.rule.top).view(len(row), len(rounds), -1)
    steps = probe.columns.sum(-1)[row, column]
    held[pair, :, column] = found[torch.arange(len(row)), :, column] > (steps - 0.5)[:, None]
    return held, len(examples)


def _drawn(
    probe: Probe, words: Vocabulary, draw: Draw, walks: int, rounds: list[int], name: str
) -> Int[Tensor, "walk batch round place"]:
    """Tokens to put in, for every walk and round; each has numbers of its own."""
    import numpy as np
    import torch

    places = words.ids.shape[1]
    numbers = [stream(probe.seed, f"{name} {walk}", k).random(places) for walk in range(walks) for k in rounds]
    return draw(torch.tensor(np.stack(numbers))).unflatten(1, (walks, len(rounds))).transpose(0, 1)


def _places(
    words: Vocabulary, masks: Bool[Tensor, "case round feature"], row: Int[Tensor, " case"]
) -> Bool[Tensor, "case round place"]:
    """The places of replaced features, for cases that are each of an example; fixed tokens stay."""
    feature = words.feature[row][:, None].expand(-1, masks.shape[1], -1)
    return masks.gather(2, feature.clamp_min(0)) & (feature >= 0)


def _answer(
    state: Float[Tensor, "walk batch column feature"],
    ended: Bool[Tensor, "walk batch column"],
    able: Bool[Tensor, "batch column feature"],
    record: dict[str, Any],
) -> Answer:
    """The mean importance over the walks that ended; over all where none did, which a check tells."""
    import torch

    shares = state.masked_fill(~able, float("-inf")).softmax(-1)
    # A step that sees nothing that can change has no importance to share out.
    shares = torch.where(able, shares, 0.0)
    chosen = torch.where(ended.any(0), ended, True)[..., None].double()
    size = chosen.sum(0)
    scores = (shares * chosen).sum(0) / size
    error = None if len(state) == 1 else (shares.var(0) / size).sqrt()
    missing = (~ended).sum(0).double()
    gap = Gap(
        "convergence",
        missing,
        torch.full_like(missing, len(state)),
        1 - 0.5 / len(state),
        "share of walks that did not end by themselves; where it is 1 the scores are the mean of all walks",
    )
    return Answer(scores, error=error, gaps=(gap,), record=record)
