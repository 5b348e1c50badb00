"""What a text is compared with: another continuation, another input, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whence.core.errors import InputError, unknown_name
from whence.text.encoded import whole_numbers

EVALUATE = ("main", "own")
GRAD = ("main", "shared")
# The names that these have in Inseq.
ALIASES = {
    "contrast_targets": "continuation",
    "contrast_sources": "source",
    "contrast_targets_alignments": "align",
    "prompt": "source",
}


@dataclass(frozen=True)
class Contrast:
    """A contrast as it was asked for, with what it left open filled in.

    Attributes:
        continuation: The other continuation, as text or ids; None: the same tokens.
        source: The other source, or prompt; None: the same.
        align: Which token of the other continuation each token is compared with: pairs of indices, ``"auto"``,
            ``"model"`` (the model's own embeddings), another embedder, ``"lexical"``, or None (see
            `whence.text.step_alignment.align_steps`).
        evaluate: The other token is looked up in the ``"main"`` run, or in the contrast's ``"own"``.
        grad: The contrast's own run is a constant (``"main"``), or what both runs read is one variable (``"shared"``).
    """

    continuation: Any = None
    source: Any = None
    align: Any = None
    evaluate: str = "main"
    grad: str = "main"


def against_itself() -> Contrast:
    """The unchanged run as a constant to compare changed runs with."""
    return Contrast(evaluate="own")


def parse_contrast(given: Any) -> Contrast:
    """Read a contrast.

    Args:
        given: Another continuation, as text or ids; or a mapping with any of ``continuation``, ``source`` (or
            ``prompt``), ``align``, ``evaluate`` and ``grad``. The names of Inseq are understood as well, and
            ``contrast_force_inputs=True`` is ``evaluate="own"``.

    Returns:
        The contrast. With another source ``evaluate`` is ``"own"`` and ``grad`` is ``"main"`` unless said otherwise;
        with another continuation alone ``"main"``, and if it is evaluated on its own, ``"shared"``.

    Raises:
        InputError: It says nothing to compare with, or contradicts itself.
        UnknownNameError: It has an entry of another name.
    """
    if isinstance(given, Contrast):
        return given
    if isinstance(given, str) or whole_numbers(given) is not None:
        given = {"continuation": given}
    if not isinstance(given, Mapping):
        raise InputError(
            "contrast is another continuation (text or ids), or a mapping such as {'source': 'another input'}, "
            f"not {given!r:.80}."
        )
    named: dict[str, Any] = {}
    for name, value in given.items():
        if name == "contrast_force_inputs":
            name, value = "evaluate", "own" if value else "main"
        name = ALIASES.get(name, name)
        if name not in Contrast.__dataclass_fields__:
            raise unknown_name("entry of contrast", str(name), Contrast.__dataclass_fields__)
        if name in named:
            raise InputError(f"contrast says twice what its {name} is.")
        named[name] = value
    continuation, source = named.get("continuation"), named.get("source")
    if continuation is None and source is None:
        raise InputError("contrast needs another continuation or another source; it has neither.")
    evaluate = named.get("evaluate") or ("main" if source is None else "own")
    grad = named.get("grad") or ("shared" if source is None and evaluate == "own" else "main")
    for name, value, known in (("evaluate", evaluate, EVALUATE), ("grad", grad, GRAD)):
        if value not in known:
            raise InputError(f"contrast: {name} is {' or '.join(known)}, not {value!r}.")
    if evaluate == "main" and source is not None:
        raise InputError(
            "contrast: with evaluate='main' the other source would never be read; leave one of the two out."
        )
    if evaluate == "main" and named.get("grad") == "shared":
        raise InputError("contrast: grad='shared' is about a run of the contrast's own; add evaluate='own'.")
    if continuation is None and named.get("align") is not None:
        raise InputError("contrast: align pairs the tokens of two continuations, but only one is given.")
    return Contrast(continuation, source, named.get("align"), evaluate, grad)


def parse_contrasts(given: Any, count: int, several: bool) -> list[Contrast | None]:
    """Read the contrasts of a call: of one prompt, or of a list of prompts one for each.

    Args:
        given: See `parse_contrast`; for a list of prompts a list of such (None for a prompt without one).
        count: How many prompts there are.
        several: Whether a list of prompts was given.

    Raises:
        InputError: There are more or fewer than prompts, or some prompts have none.
    """
    if given is None:
        return [None] * count
    if not several:
        return [parse_contrast(given)]
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence) or len(given) != count:
        raise InputError(f"a list of prompts takes a list of contrasts, one for each of the {count}.")
    return [parse_contrast(one) for one in given]
