"""What to put in the place of a token: samplers of other tokens, driven by given numbers in [0, 1).

The numbers are the only source of chance, so the same numbers give the same tokens on every machine. Numbers count
the tokens of an example, not the places of a padded batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whence.core.contract import Probe, Stage, Vocabulary
from whence.core.errors import InputError
from whence.methods.perturbation.next_token import draw_next, inverse

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

# From numbers [draw, token] to an id for every example, draw and place of the padded token axis.
Draw = Callable[["Tensor"], "Tensor"]


def numbered(words: Vocabulary, uniform: Float[Tensor, "draw token"]) -> Float[Tensor, "batch draw place"]:
    """The number that belongs to each place; places of padding have that of a neighbour."""
    place = (words.present.cumsum(1) - 1).clamp_min(0)
    return uniform[:, place].transpose(0, 1)


def within_classes(words: Vocabulary, classes: Int[Tensor, " id"], *, allow_same: bool) -> Draw:
    """A uniform draw among the ids of a token's class.

    Args:
        words: The tokens.
        classes: A class for every id; -1 where it is never drawn. A token of no class, or of a class with fewer
            than two members, is replaced by any id that has a class.
        allow_same: Whether a token may take its own place.

    Returns:
        The sampler.

    Raises:
        InputError: There are not two ids to choose from.
    """
    import torch

    everything = torch.nonzero(classes >= 0).flatten()
    if len(everything) < 2:
        raise InputError(
            f"the sampler has {len(everything)} tokens to draw from, and a replacement takes two; "
            "take sampler='uniform', or a tagger that tags more of the vocabulary."
        )
    sizes = torch.bincount(classes[everything])
    whole = len(sizes)
    sizes = torch.cat([sizes, torch.tensor([len(everything)])])
    starts = sizes[:-1].cumsum(0) - sizes[:-1]
    starts = torch.cat([starts, torch.tensor([len(everything)])])
    # The members of one class after another, then all of them once more.
    members = torch.cat([everything[classes[everything].argsort(stable=True)], everything])
    own = torch.where((classes >= 0) & (sizes[classes] >= 2), classes, whole)
    rank = torch.full_like(classes, -1)
    rank[members[: len(everything)]] = torch.arange(len(everything))
    rank[everything] -= starts[classes[everything]]
    alone = own[everything] == whole
    rank[everything[alone]] = torch.arange(len(everything))[alone]

    def draw(uniform: Float[Tensor, "draw token"]) -> Int[Tensor, "batch draw place"]:
        # Ids that not all stacks read, and special ones, are in no list, so nothing of it is left out for them.
        ids = words.ids.clamp_max(len(classes) - 1)
        group, place = own[ids], rank[ids]
        skip = (place >= 0) & (words.ids < len(classes)) & (not allow_same)
        count = (sizes[group] - skip.long())[:, None]
        found = (numbered(words, uniform) * count).long().minimum(count - 1)
        found = found + (skip[:, None] & (found >= place[:, None]))
        return members[starts[group][:, None] + found]

    return draw


def tagged(words: Vocabulary, tagger: Any) -> Int[Tensor, " id"]:
    """Classes from tags, such as parts of speech.

    Args:
        words: The tokens.
        tagger: A function from a token's characters to its tag, or one tag for every id.

    Returns:
        A class for every id; -1 where it is never drawn.

    Raises:
        InputError: The table has another length, or there is no text to call the function with.
    """
    import torch

    count = len(words.classes)
    usable = (words.classes >= 0).tolist()
    if callable(tagger):
        if not words.texts:
            raise InputError("tagger: the model has no tokenizer, so tokens have no text; give one tag for every id.")
        tags = [tagger(text) if use else None for text, use in zip(words.texts, usable, strict=True)]
    else:
        tags = tagger.tolist() if hasattr(tagger, "tolist") else list(tagger)
        if len(tags) != count:
            raise InputError(f"tagger: a table has one tag for each of the {count} ids of the model, not {len(tags)}.")
    numbers: dict[Any, int] = {}
    found = [numbers.setdefault(tag, len(numbers)) if use else -1 for tag, use in zip(tags, usable, strict=True)]
    return torch.tensor(found)


def expected_next(probe: Probe, words: Vocabulary, first: Draw, *, likeliest: bool, allow_same: bool) -> Draw:
    """A draw from what the model itself expects after the tokens before; one request for every call.

    Args:
        probe: The model.
        words: The tokens.
        first: The sampler of places with nothing before them to predict them: the first token, and the source of
            an encoder-decoder model.
        likeliest: Take the most probable token, whatever the numbers.
        allow_same: Whether a token may take its own place.

    Returns:
        The sampler.
    """
    import torch

    def draw(uniform: Float[Tensor, "draw token"]) -> Int[Tensor, "batch draw place"]:
        found = probe.fold(
            [Stage("next", {"logits": "logits"})],
            draw_next,
            {"uniform": uniform, "allowed": words.classes >= 0, "same": allow_same, "likeliest": likeliest},
        )["ids"]
        ids = first(uniform)
        last = ids[..., -found.shape[2] :]
        return torch.cat([ids[..., : -found.shape[2]], torch.where(found < 0, last, found)], dim=2)

    return draw


def proposed(
    words: Vocabulary, widths: Sequence[int], propose: Callable[..., Any], otherwise: Draw, *, allow_same: bool
) -> Draw:
    """A draw among the words that a function proposes for a gap, such as a masked language model.

    Args:
        words: The tokens.
        widths: Padded length of every stream.
        propose: ``propose(pieces, place)`` gets the texts of the tokens of a stream, which join to its text, and
            the index of the one that is masked. It returns words with their weights, or words. Those count that
            are one token of the explained model, and begin a word where the masked one does.
        otherwise: The sampler for places without such a proposal.
        allow_same: Whether a token may take its own place.

    Returns:
        The sampler.

    Raises:
        InputError: The model has no tokenizer, or a weight is no number of at least 0.
    """
    import torch

    if not words.texts:
        raise InputError("sampler='mlm' proposes words, and the model has no tokenizer to find them in.")
    usable = (words.classes >= 0).tolist()
    known = {(words.starts[k], words.texts[k]): k for k in reversed(range(len(usable))) if usable[k]}
    found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for row, tokens in _streams(words, widths):
        pieces = [_piece(words, int(words.ids[row, place])) for place in tokens]
        for index, place in enumerate(tokens):
            if words.feature[row, place] < 0:
                continue
            own = int(words.ids[row, place])
            weights = _weights(propose(list(pieces), index))
            chosen = {known.get((words.starts[own], word.strip())): weight for word, weight in weights.items()}
            kept = {k: weight for k, weight in chosen.items() if k is not None and (k != own or allow_same)}
            if kept:
                found[row, place] = (torch.tensor(list(kept)), torch.tensor(list(kept.values()), dtype=torch.float64))

    def draw(uniform: Float[Tensor, "draw token"]) -> Int[Tensor, "batch draw place"]:
        drawn, at = otherwise(uniform), numbered(words, uniform)
        for (row, place), (ids, weights) in found.items():
            drawn[row, :, place] = ids[inverse(weights, at[row, :, place])]
        return drawn

    return draw


def _streams(words: Vocabulary, widths: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """The places of the tokens of every stream, example by example."""
    for row, present in enumerate(words.present.tolist()):
        first = 0
        for width in widths:
            yield row, [place for place in range(first, first + width) if present[place]]
            first += width


def _piece(words: Vocabulary, token: int) -> str:
    """A token's text as it stands in a sentence."""
    text = words.texts[token]
    return f" {text}" if words.starts[token] and text.strip() else text


def _weights(offered: Any) -> dict[str, float]:
    """Proposed words with their weights, without those of weight 0."""
    weights = dict(offered) if isinstance(offered, Mapping) else dict.fromkeys(offered, 1.0)
    if not all(0 <= weight < float("inf") for weight in weights.values()):
        raise InputError(f"mlm: the weight of a word is a number of at least 0, not {weights!r:.80}.")
    return {word: float(weight) for word, weight in weights.items() if weight > 0}
