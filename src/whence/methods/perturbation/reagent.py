"""ReAGent: how the target changes when tokens are replaced by others like them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Gap, Need, Probe, Vocabulary
from whence.core.errors import InputError, unknown_name
from whence.core.random import stream
from whence.methods.perturbation.reagent_walks import StopRule, Walks, walk
from whence.methods.perturbation.replacements import Draw, expected_next, proposed, tagged, within_classes

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

_CHOICES = {
    "estimator": ("mean", "paper"),
    "sampler": ("class", "uniform", "pos", "lm", "mlm"),
    "lm_mode": ("sample", "argmax"),
    "link": ("auto", "logit", "identity"),
}
# Which options mean something for one choice only.
_BELONGS = {
    ("estimator", "mean"): ("n_rounds",),
    ("estimator", "paper"): (
        "n_probes", "max_rounds", "check_every", "stop_top_k", "keep_top_n", "keep_ratio", "invert_keep",
    ),
    ("sampler", "pos"): ("tagger",),
    ("sampler", "lm"): ("lm_mode",),
    ("sampler", "mlm"): ("mlm",),
}  # fmt: skip
# What rounding may add to a difference of probabilities.
_ROUNDING = 1e-5
_TINY = 1e-9


@dataclass(frozen=True)
class ReAGent(AbstractMethod):
    """How much less probable a token becomes when a feature is replaced, others being replaced at random as well.

    In every round each feature is replaced with probability r by tokens that a sampler draws; one row gives
    ``D = f(x) - f(x_replaced)`` for all steps. With ``g = 2 artanh(D)``, the change of the paper's importance:
    ``A[t, i] = E[g | i replaced] - E[g | i not replaced]``, the r-biased Banzhaf value of the game g: signed, with
    its standard error. ``estimator="paper"`` instead walks as the paper does, ``s_i += g`` where i is replaced and
    ``s_i -= g`` elsewhere, until the most important features alone bring the token back; scores are then the mean
    of ``softmax(s)`` over walks, and sum to 1; a round of a walk takes one row, and one more for every step that is
    checked. Either answers for replacements as its sampler draws them: what a
    class of tokens has in common, such as being a noun, it cannot find to matter.

    Source: Zhao and Shan 2024, algorithm 1.

    Attributes:
        estimator: ``"mean"``, or ``"paper"``.
        n_rounds: Rounds of ``"mean"``; in every round as many features are replaced as chance has it, and over all
            rounds every feature equally often.
        replacing_ratio: The probability r that a feature is replaced, between 0 and 1.
        sampler: Where other tokens come from. ``"class"``: uniform among those of the same lexical class (begin or
            piece of a word, case, script, digits, punctuation); ``"uniform"``: the whole vocabulary; ``"pos"``:
            among those with the same tag; ``"lm"``: what the model itself expects there; ``"mlm"``: what a function
            proposes. Special tokens are never drawn. Without a tokenizer ``"class"`` is ``"uniform"``.
        allow_same: Whether a token may be replaced by itself.
        tagger: For ``"pos"``: a function from a token's characters to its tag, or one tag for every id.
        lm_mode: For ``"lm"``: ``"sample"``, or ``"argmax"`` as the paper's code.
        mlm: For ``"mlm"``: ``mlm(pieces, place)`` returns words for a gap, with weights or without (see
            `whence.methods.perturbation.replacements.proposed`).
        link: What becomes of D: ``"logit"`` is ``2 artanh(D)``, for targets that differ by at most 1; ``"identity"``
            leaves it; ``"auto"`` is ``"logit"`` for a probability.
        n_probes: Walks of ``"paper"``, from random beginnings.
        max_rounds: Rounds after which a walk ends anyhow.
        check_every: Rounds between two checks whether a walk is to end.
        stop_top_k: A walk ends when the explained token is among so many most probable ones ...
        keep_top_n: ... with all but so many most important features replaced.
        keep_ratio: Instead, a share of the features that the step sees, rounded up.
        invert_keep: Replace these and leave the others.
    """

    estimator: Literal["mean", "paper"] = "mean"
    n_rounds: int = 256
    replacing_ratio: float = 0.3
    sampler: Literal["class", "uniform", "pos", "lm", "mlm"] = "class"
    allow_same: bool = False
    tagger: Callable[[str], Any] | Sequence[Any] | None = None
    lm_mode: Literal["sample", "argmax"] = "sample"
    mlm: Callable[[list[str], int], Mapping[str, float] | Sequence[str]] | None = None
    link: Literal["auto", "logit", "identity"] = "auto"
    n_probes: int = 16
    max_rounds: int = 3000
    check_every: int = 1
    stop_top_k: int = 3
    keep_top_n: int = 5
    keep_ratio: float | None = None
    invert_keep: bool = False

    name: ClassVar[str] = "reagent"
    title: ClassVar[str] = "change of the target when tokens are replaced by others like them"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ("zhao2024",)
    cost: ClassVar[str] = "(n + 2) F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = True
    perturbs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown_name(f"{name} of reagent:", str(getattr(self, name)), known)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for (choice, value), names in _BELONGS.items():
            for name in names:
                given, default = getattr(self, name), defaults[name]
                # A table of tags may be an array, which compares by its elements.
                changed = given is not None if default is None else given != default
                if getattr(self, choice) != value and changed:
                    raise InputError(f"reagent: {name} belongs to {choice}={value!r}; leave one of them out.")
        for name in ("n_rounds", "n_probes", "max_rounds", "check_every", "stop_top_k", "keep_top_n"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"reagent: {name} is a whole number of at least 1, not {value!r}.")
        if not 0 < self.replacing_ratio < 1:
            raise InputError(f"reagent: replacing_ratio is between 0 and 1, not {self.replacing_ratio!r}.")
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise InputError(f"reagent: keep_ratio is a share above 0 and at most 1, not {self.keep_ratio!r}.")
        if self.keep_ratio is not None and self.keep_top_n != defaults["keep_top_n"]:
            raise InputError("reagent: keep_ratio stands in place of keep_top_n; leave one of them out.")
        rarer = min(self.replacing_ratio, 1 - self.replacing_ratio)
        # 1 - 0.9 is a little less than 0.1.
        least = ceil(2 / rarer - _TINY)
        if self.estimator == "mean" and self.n_rounds < least:
            raise InputError(
                f"reagent: with replacing_ratio={self.replacing_ratio:g} and n_rounds={self.n_rounds} some means would "
                f"be over less than two rows; take at least n_rounds={least}."
            )
        for name, sampler in (("tagger", "pos"), ("mlm", "mlm")):
            if self.sampler == sampler and getattr(self, name) is None:
                raise InputError(f"reagent: sampler={sampler!r} needs {name}=.")

    def __call__(self, probe: Probe) -> Answer:
        """Replace features at random, and compare."""
        words = probe.vocabulary
        draw, record = self._sampler(probe, words)
        link = "logit" if self.link == "auto" and probe.unit == "probability" else self.link
        record |= {"link": "identity" if link == "auto" else link, "seed": probe.seed}
        change = _log_odds if link == "logit" else _unchanged
        if self.estimator == "mean":
            return self._means(probe, words, draw, change, record)
        rule = StopRule(self.stop_top_k, self.keep_top_n, self.keep_ratio, self.invert_keep)
        plan = Walks(self.n_probes, self.max_rounds, self.check_every, self.replacing_ratio, rule)
        return walk(probe, words, draw, change, plan, record)

    def _sampler(self, probe: Probe, words: Vocabulary) -> tuple[Draw, dict[str, Any]]:
        """The sampler, and what to note about it."""
        same = self.allow_same
        everything = words.classes.clamp_max(0)
        if self.sampler == "class" and not words.texts:
            note = "the model has no tokenizer, so there are no lexical classes"
            return within_classes(words, everything, allow_same=same), {"sampler": "uniform", "sampler_note": note}
        if self.sampler == "uniform":
            draw = within_classes(words, everything, allow_same=same)
        elif self.sampler == "pos":
            draw = within_classes(words, tagged(words, self.tagger), allow_same=same)
        elif self.sampler == "lm":
            first = within_classes(words, everything, allow_same=same)
            draw = expected_next(probe, words, first, likeliest=self.lm_mode == "argmax", allow_same=same)
        else:
            draw = within_classes(words, words.classes, allow_same=same)
            if self.mlm is not None:
                draw = proposed(words, probe.widths, self.mlm, draw, allow_same=same)
        return draw, {"sampler": self.sampler}

    def _means(
        self, probe: Probe, words: Vocabulary, draw: Draw, change: Callable[[Tensor], Tensor], record: dict[str, Any]
    ) -> Answer:
        """All rounds in one request, behind one row of the text as it is."""
        import numpy as np
        import torch

        count, places = words.ids.shape
        masks = balanced_masks(probe.seed, self.n_rounds, probe.feature_count, self.replacing_ratio)
        uniform = [stream(probe.seed, "reagent tokens", k).random(places) for k in range(self.n_rounds)]
        drawn = draw(torch.tensor(np.stack(uniform)))
        rows = torch.where(replaced_places(words, masks), drawn, words.ids[:, None])
        rows = torch.cat([words.ids[:, None], rows], dim=1)
        examples = torch.arange(count).repeat_interleave(rows.shape[1])
        found = probe.resample(examples, rows.flatten(0, 1)).view(count, rows.shape[1], -1)
        clean, low = found[:, 0], found[:, 1:]
        scores, error = difference_of_means(change((probe.here[:, None] - low).double()), masks)
        free = probe.free[:, None]
        scores = torch.where(free, scores, 0.0)
        scale = probe.here.abs().maximum(scores.abs().sum(-1).to(probe.here)).clamp_min(_TINY)
        gap = (clean.to(probe.here) - probe.here).abs()
        noop = Gap("no-op", gap, scale, "exact", "the text with its own tokens put in")
        return Answer(
            scores,
            error=torch.where(free, error, 0.0),
            gaps=(noop,),
            record={**record, "rounds": self.n_rounds, "rows": len(examples)},
        )


def balanced_masks(seed: int, rounds: int, features: int, ratio: float) -> Bool[Tensor, "round feature"]:
    """Which features are replaced in which round.

    Every round replaces each feature with probability ``ratio``, whatever the others; over all rounds a feature is
    replaced equally often, but for one round (Latin hypercube sampling). So no mean is without rows, and the
    means stay unbiased.

    Args:
        seed: The user's seed.
        rounds: How many rounds.
        features: How many features; the masks of the first ones do not depend on it.
        ratio: The probability.

    Returns:
        True where a feature is replaced.
    """
    import numpy as np
    import torch

    columns = []
    for feature in range(features):
        numbers = stream(seed, "reagent masks", feature)
        columns.append((numbers.permutation(rounds) + numbers.random(rounds)) / rounds < ratio)
    return torch.tensor(np.stack(columns, axis=1))


def replaced_places(words: Vocabulary, masks: Bool[Tensor, "round feature"]) -> Bool[Tensor, "batch round place"]:
    """The places of the padded token axis that belong to replaced features; fixed tokens stay."""
    chosen = masks[:, words.feature.clamp_min(0)] & (words.feature >= 0)
    return chosen.transpose(0, 1)


def difference_of_means(
    values: Float[Tensor, "batch round column"], masks: Bool[Tensor, "round feature"]
) -> tuple[Float[Tensor, "batch column feature"], Float[Tensor, "batch column feature"]]:
    """The mean over rounds with a feature replaced, less the mean over the others.

    Args:
        values: What every round came to.
        masks: Which features each round replaced; at least two rounds with, and two without each feature.

    Returns:
        The differences, and their standard errors (of two independent samples; balanced masks make them
        somewhat smaller).
    """
    import torch

    values = values - values.mean(1, keepdim=True)
    means, spreads = [], []
    for arm in (masks, ~masks):
        weight = arm.to(values)
        size = weight.sum(0)
        mean = torch.einsum("brc,rk->bck", values, weight) / size
        square = torch.einsum("brc,rk->bck", values**2, weight) / size
        means.append(mean)
        spreads.append((square - mean**2).clamp_min(0) / (size - 1))
    return means[0] - means[1], (spreads[0] + spreads[1]).sqrt()


def _unchanged(difference: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return difference


def _log_odds(difference: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``logit((1 + D) / 2)``, which is ``2 artanh(D)``; finite also where D is 1."""
    most = float(difference.abs().max())
    if most > 1 + _ROUNDING:
        raise InputError(
            f"reagent: the target changes by {most:.3g}, and link='logit' is for changes of at most 1, as those of "
            "a probability. Take link='identity'."
        )
    return 2 * difference.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
