"""Which token of a foil stands against each token of a text: at most one for each, so that steps can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from whence.core.errors import InputError, unknown_name
from whence.core.tokens import Token
from whence.text.alignment import Method, align
from whence.text.embedders import Embedder
from whence.text.encoded import whole_numbers
from whence.text.pairing import Fill, Pair, Partners, filled, increasing, one_to_one, plain_pairs

FILLS: tuple[str, ...] = get_args(Fill)

How = str | Path | Sequence[Pair] | Embedder | None


@dataclass(frozen=True)
class StepAlignment:
    """For every token of a text, the token of another text that stands against it.

    Attributes:
        partner: For each token of the first text the place of one of the second, or None.
        record: How the partners were found, as plain data: what `Alignment` has, or the rule ``"given"``; ``fill``,
            ``monotone``, and ``unpaired``: the places that had no partner before gaps were filled.
    """

    partner: Partners
    record: dict[str, Any]


def align_steps(
    main: Sequence[Token],
    foil: Sequence[Token],
    align: How = None,
    *,
    method: Method = "softmax",
    fill: Fill = "right",
    monotone: bool = False,
) -> StepAlignment:
    """Find the token of a foil that stands against each token of a text.

    Args:
        main: The tokens of the text.
        foil: The tokens of the other text.
        align: Pairs of places ``(main, foil)``; ``"auto"``, LaBSE if it is installed and in the cache of the hub;
            another embedder, or ``"lexical"``, as for `align`; or None. Without an embedder, tokens are paired as in a
            diff of the ids if half of them are shared, otherwise last with last.
        method: How an embedder's vectors are compared, as for `align`.
        fill: What tokens without a partner get: with ``"right"`` the one that is as far from the end (the first, if
            the foil is shorter), with ``"left"`` the one that is as far from the beginning (or the last), with
            ``"none"`` none.
        monotone: Keep only a longest series of partners that increase.

    Returns:
        At most one partner for each token. Of several aligned ones it is the first that no earlier token has, and
        if all are taken the first; of several given pairs, the first given.

    Raises:
        InputError: Pairs that are none, or outside the texts; or what `align` refuses.
        UnknownNameError: No such filling or embedder.
        ModelError: An encoder that was asked for, other than LaBSE, cannot be loaded.
        UnsupportedError: It needs the extra ``align``, which is not installed.
    """
    if fill not in FILLS:
        raise unknown_name("filling", str(fill), FILLS)
    pairs, record = _step_pairs(main, foil, align, method)
    partners = one_to_one(pairs, len(main))
    if monotone:
        partners = increasing(partners)
    unpaired = [place for place, partner in enumerate(partners) if partner is None]
    record = {**record, "fill": fill, "monotone": monotone, "unpaired": unpaired}
    return StepAlignment(filled(partners, len(foil), fill), record)


def _step_pairs(
    main: Sequence[Token], foil: Sequence[Token], how: How, method: Method
) -> tuple[Sequence[Pair], dict[str, Any]]:
    if how is None:
        one, other = [token.all_ids for token in main], [token.all_ids for token in foil]
        pairs, rule = plain_pairs(one, other)
        return pairs, {"rule": "identity" if one == other else rule, "warnings": []}
    if isinstance(how, str | Path) or callable(how):
        auto = how == "auto"
        found = align(main, foil, embedder="labse" if auto else how, method=method, download=not auto)
        return found.token_pairs, found.record
    return _given_pairs(how, len(main), len(foil))


def _given_pairs(given: Any, count: int, other: int) -> tuple[list[Pair], dict[str, Any]]:
    given = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(given, Sequence):
        raise InputError(
            "alignments are None, 'auto', 'lexical', an embedder or a list of pairs of places, "
            f"not {type(given).__name__}: {given!r:.80}"
        )
    partners: dict[int, int] = {}
    warnings: list[str] = []
    for one in given:
        pair = whole_numbers(one)
        if pair is None or len(pair) != 2:
            raise InputError(f"alignments: a pair is two places (main, foil), not {one!r:.80}")
        i, j = pair
        if not (0 <= i < count and 0 <= j < other):
            raise InputError(
                f"alignments: the pair ({i}, {j}) leaves the texts, of {count} and {other} tokens counted from 0."
            )
        if i in partners:
            warnings.append(f"token {i} was paired with {partners[i]} before; the pair ({i}, {j}) was not used")
        partners.setdefault(i, j)
    return sorted(partners.items()), {"rule": "given", "warnings": warnings}
