"""Entries made of several tokens: given spans, words, or what lies between the matches of a pattern.

Where no reducer is named, the features of a span are put together as the method would have done before it ran
(``info["join"]``): sums, but lengths as lengths. Its steps are summed if the method is additive, else averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, get_args

from whence.core.errors import InputError, unknown_name
from whence.core.grouping import CutMode, Span, by_text, compiled, cut
from whence.core.grouping import words as words_of
from whence.core.tokens import Token
from whence.scores.aggregation.carrying import join, located
from whence.scores.array import How, checked_spans
from whence.scores.attribution import Attribution

ON = ("step", "source", "prefix")
# How answers of tokens join into segments -> the reducer that does the same to lengths.
_JOINS = {"sum": "sum", "l1": "l1", "l2": "l2", "linf": "max"}


def usual(attribution: Attribution, axis: str) -> str:
    """The reducer that merges entries of an axis where none is named.

    Raises:
        InputError: Layers, heads and units have no usual one.
    """
    info = attribution.info
    if axis == "step":
        return "sum" if info.get("additive") else "mean"
    if axis != "token":
        raise InputError(f"say how entries of {axis} merge, such as how='mean'.")
    if (named := info.get("join")) in _JOINS:
        return _JOINS[named]
    return "sum" if info.get("additive") or info.get("signed") is not False else "l2"


def merge(attribution: Attribution, axis: str, spans: Any, how: How | None = None) -> Attribution:
    """Make every span of an axis one entry; entries outside all spans stay as they are.

    Args:
        attribution: What to merge.
        axis: ``step``, ``token``, ``source``, ``prefix`` (positions count within the side), ``layer``, ``head`` or
            ``unit``.
        spans: End-exclusive pairs ``(start, stop)``, ascending and disjoint; or one pair.
        how: A reducer's name or function; by default the method's own rule.

    Raises:
        InputError: No such axis, or spans that are empty, outside the axis or not ascending.
        UnknownNameError: No such reducer.
    """
    name, members = located(attribution, axis)
    pairs = [spans] if _is_pair(spans) else spans
    if not isinstance(pairs, Sequence) or not all(_is_pair(pair) for pair in pairs):
        raise InputError(f"spans are pairs (start, stop), not {spans!r}.")
    groups = [[members[k] for k in range(*span)] for span in checked_spans(pairs, len(members))]
    others = set(range(len(attribution.scores.axis(name)))) - {k for group in groups for k in group}
    chosen = usual(attribution, name) if how is None else how
    return join(attribution, name, sorted([*groups, *([k] for k in others)]), chosen, untouched=others)


def words(attribution: Attribution, on: str | Sequence[str] = ON, how: How | None = None) -> Attribution:
    """Make the tokens of every word one entry, by the rule of ``segments="word"``.

    A word keeps the blanks in front of it; a CJK character is a word; special tokens stay alone. Tokens that are no
    neighbours in their text, because others were taken out or a special token stands between them, are not put
    together.

    Args:
        attribution: What to merge.
        on: What to merge: ``step``, ``source``, ``prefix``, or several of them; by default all.
        how: A reducer's name or function for all of them; by default the method's own rule.

    Raises:
        UnknownNameError: ``on`` is none of these; or no such reducer.
    """
    return _by_text(attribution, words_of, on, how, across=False)


def split(
    attribution: Attribution,
    pattern: str,
    mode: CutMode = "single",
    on: str | Sequence[str] = ON,
    how: How | None = None,
) -> Attribution:
    """Make the tokens between the matches of a pattern one entry.

    The pattern is looked for in the exact text. A token that straddles a boundary belongs where its first character
    lies that is not white space. Empty matches cut nothing; without a match all is one entry.

    Args:
        attribution: What to merge.
        pattern: A regular expression.
        mode: A match is an entry of its own (``single``), begins the following one (``start``), or ends the one
            before it (``end``).
        on: As in `words`.
        how: As in `words`.

    Raises:
        InputError: The pattern is no regular expression.
        UnknownNameError: No such mode or side; or no such reducer.
    """
    if mode not in get_args(CutMode):
        raise unknown_name("mode of split", str(mode), get_args(CutMode))
    if not isinstance(pattern, str):
        raise InputError(f"split takes one regular expression, not {pattern!r}; one that holds + stands in quotes.")
    return _by_text(attribution, partial(cut, compiled(pattern, "split"), mode=mode), on, how, across=True)


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(isinstance(bound, int) for bound in value)


def _by_text(
    attribution: Attribution,
    find: Callable[[str], list[Span]],
    on: str | Sequence[str],
    how: How | None,
    *,
    across: bool,
) -> Attribution:
    """Tokens joined by spans of their text; ``across`` special tokens, which are not part of it, or not."""
    asked = tuple(on) if isinstance(on, Sequence) and not isinstance(on, str) else (on,)
    for one in asked:
        if one not in ON:
            raise unknown_name("side", str(one), ON)
    # Steps come first: a mean over steps and then features is what a method that averages over spans gives.
    if "step" in asked:
        groups = _groups(attribution.steps, find, across)
        attribution = join(attribution, "step", groups, usual(attribution, "step") if how is None else how)
    if sides := set(asked) - {"step"}:
        others = {k for k, token in enumerate(attribution.tokens) if token.side not in sides}
        groups = [group for group in _groups(attribution.tokens, find, across) if group[0] not in others]
        chosen = usual(attribution, "token") if how is None else how
        groups = sorted([*groups, *([k] for k in others)])
        attribution = join(attribution, "token", groups, chosen, untouched=others)
    return attribution


def _groups(tokens: Sequence[Token], find: Callable[[str], list[Span]], across: bool) -> list[list[int]]:
    """Groups by the text of each side, within stretches of neighbours."""
    apart = [_apart(*pair) or (not across and any(one.special for one in pair)) for pair in pairwise(tokens)]
    cuts = [0, *(k + 1 for k, cut_here in enumerate(apart) if cut_here), len(tokens)]
    return [[start + k for k in group] for start, stop in pairwise(cuts) for group in by_text(tokens[start:stop], find)]


def _apart(one: Token, following: Token) -> bool:
    """Whether something of the text is missing between two tokens, or they are out of order."""
    if one.side != following.side or one.stop is None or following.start is None:
        return False
    return following.start > one.stop or (one.start is not None and following.start < one.start)
