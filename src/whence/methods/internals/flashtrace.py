"""FlashTrace: a span of steps traced as one, and through the reasoning before it back to the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Extra, Need, Probe
from whence.core.errors import InputError, unknown_name
from whence.core.tokens import Token
from whence.methods.internals.part_checks import flat_rows, rebuilding
from whence.methods.internals.stages import attention_stages
from whence.methods.internals.trace_fold import trace_fold

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

_MOST_HOPS = 5
_REGIONS = ("all", "source", "prefix")


@dataclass(frozen=True)
class FlashTrace(AbstractMethod):
    """What flows into a whole span of steps, and what flows into the reasoning that the span rests on.

    A trace adds up what attention brings to all positions of a span before it asks, as `information_flow` with
    ``compose="direct"`` does for one, how much of the sum each token carries: a span costs as much as a step. A hop
    takes the share that tokens generated before the span have in the trace for the weights of the steps that wrote
    them, traces these, and adds what it finds times the share that was passed on:
    ``A = v_0 + rho_0 v_1 + rho_0 rho_1 v_2 + ...`` on all tokens outside of the reasoning and the span, or those of
    `observe`; the others have 0. At least 0, without a unit. Each trace is in ``extras`` (``hop_0``, ...). A span's
    scores are not the sum of its steps'.

    Source: Pan et al. 2026.

    Attributes:
        hops: How many times what was found in the reasoning is traced again, from 0 to 5. With 0 there is no
            reasoning, and generated tokens keep their scores.
        reasoning: Which tokens of the continuation are passed on, as ``(start, stop)``; None is all before the span.
        observe: Which tokens have scores: ``"all"``, ``"source"``, ``"prefix"``, or ``(start, stop)`` among all tokens,
            the source's before the prefix's; reasoning and span too, as far as they are among these. None is all
            outside of the reasoning and the span.
        threshold: Edges with a smaller share are dropped, and the others share the whole among them.
        ignore_tokens: Texts of tokens that get nothing, such as ``(",", ".", "")``, compared without blanks around.
        normalize: Divide the scores of each column by their sum.
    """

    hops: int = 1
    reasoning: tuple[int, int] | None = None
    observe: Literal["all", "source", "prefix"] | tuple[int, int] | None = None
    threshold: float = 0.0
    ignore_tokens: tuple[str, ...] | None = None
    normalize: bool = False

    name: ClassVar[str] = "flashtrace"
    title: ClassVar[str] = "what flows into a span of steps, through the reasoning before it"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.INTERNALS, Need.ATTENTION})
    cites: ClassVar[tuple[str, ...]] = ("pan2026", "ferrando2024")
    cost: ClassVar[str] = "1F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    targets: ClassVar[frozenset[str] | None] = frozenset()
    defaults: ClassVar[Mapping[str, object]] = {}

    def __post_init__(self) -> None:
        if isinstance(self.hops, bool) or not isinstance(self.hops, int) or not 0 <= self.hops <= _MOST_HOPS:
            raise InputError(f"flashtrace: hops is a whole number from 0 to {_MOST_HOPS}, not {self.hops!r}.")
        if not 0 <= self.threshold < 1:
            raise InputError(f"flashtrace: threshold is a share, from 0 to below 1, not {self.threshold!r}.")
        if self.reasoning is not None:
            if not self.hops:
                raise InputError("flashtrace: without hops nothing is passed on, so reasoning= would be ignored.")
            _check_ends("reasoning", self.reasoning, "the tokens of the continuation")
        if isinstance(self.observe, str):
            if self.observe not in _REGIONS:
                raise unknown_name("region to observe:", self.observe, _REGIONS)
        elif self.observe is not None:
            _check_ends("observe", self.observe, "all tokens")
        if isinstance(self.ignore_tokens, str):
            raise InputError(f"flashtrace: ignore_tokens is a list of texts, not {self.ignore_tokens!r}.")

    def __call__(self, probe: Probe) -> Answer:
        """Trace where the vectors are."""
        texts = {text.strip() for text in self.ignore_tokens or ()}
        ignored = probe.places(lambda token: token.text.strip() in texts)
        options = {
            "hops": self.hops,
            "threshold": float(self.threshold),
            "widths": probe.widths,
            "reasoning": self._reasoning(probe),
            "ignored": ignored,
            "observed": self._observed(probe),
        }
        found = probe.fold(attention_stages(probe.anatomy), trace_fold, options)
        scores = found["scores"]
        if self.normalize:
            scores = scores / scores.sum(-1, keepdim=True).clamp_min(1e-30)
        extras = {f"hop_{hop}": Extra(found[f"hop_{hop}"], None, ("token",)) for hop in range(self.hops + 1)}
        gaps = (rebuilding(probe, found["rebuilding"]), flat_rows(probe, found))
        return Answer(scores, per="token", gaps=gaps, extras=extras)

    def _reasoning(self, probe: Probe) -> Bool[Tensor, "batch token"]:
        """The generated tokens that are passed on, as far as they precede a column."""
        generated = probe.places(_is_generated)
        # Nothing precedes what a decoder begins with, so no step wrote it.
        generated[:, sum(probe.widths[:-1])] = False
        if not self.hops:
            return generated & False
        if self.reasoning is None:
            return generated
        start, stop = self.reasoning
        number = generated.cumsum(-1) - 1
        return generated & (number >= start) & (number < stop)

    def _observed(self, probe: Probe) -> Bool[Tensor, "batch token"] | None:
        """The tokens that have scores; None where that depends on the column."""
        if self.observe is None:
            return None
        if isinstance(self.observe, str):
            return probe.places(lambda token: self.observe in ("all", token.side))
        start, stop = self.observe
        present = probe.places(lambda token: True)
        number = present.cumsum(-1) - 1
        chosen = present & (number >= start) & (number < stop)
        if not chosen.any(-1).all():
            counts = present.sum(-1)
            raise InputError(
                f"flashtrace: observe={self.observe!r} holds no token of a text of {int(counts.min())} tokens, so all "
                "its scores would be 0. Begin earlier."
            )
        return chosen


def _check_ends(option: str, given: Any, among: str) -> None:
    """Refuse what is no stretch of tokens.

    Raises:
        InputError: It is not ``(start, stop)``.
    """
    ends = tuple(given) if isinstance(given, list | tuple) else ()
    whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not whole or not 0 <= ends[0] < ends[1]:
        raise InputError(f"flashtrace: {option} is (start, stop) among {among}, not {given!r}.")


def _is_generated(token: Token) -> bool:
    return token.side == "prefix"
