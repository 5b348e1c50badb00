"""Value zeroing: how far a layer's output moves when nobody gets the value of a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from whence.core.contract import AbstractMethod, Anatomy, Answer, Extra, Gap, Metric, Need, Probe, Zeroed, Zeroing
from whence.core.errors import InputError, UnsupportedError, unknown_name
from whence.methods.internals.choices import check_choice, heads_of_layer, part_of
from whence.methods.internals.identities import mixture, row_sums
from whence.methods.internals.rolling import composed

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

_METRICS = ("cosine", "euclidean", "relative")
_STATES = ("resid_post", "final_norm")
_FAMILIES = ("encoder", "decoder", "cross")


@dataclass(frozen=True)
class ValueZeroing(AbstractMethod):
    """How far the output of each block moves, at the position that predicts the step, without a token's value.

    ``A[t, j, l] = d(h[l, q(t)], h~[l, q(t)])``: block ``l`` gets its clean input, and ``h~`` is what it makes of it
    when the heads' weights of token ``j`` are 0, as if its value were zero. Unlike an attention weight it counts
    what the value holds, the residual stream and the MLP. The scores of a step sum to 1 over the features that are
    asked for (see `normalize`). It says nothing on how layers combine, unless `rollout` multiplies them, and
    nothing on the output.

    In encoder-decoder models tokens of the source are removed from cross attention and measured in the states of the
    decoder; the same inside the encoder is ``extras["encoder_self"]``, where the features of the source are its
    tokens (NaN elsewhere). All tokens of a segment are removed at once: its score is no sum.

    Source: Mohebbi et al. 2023.

    Attributes:
        metric: How states are compared: ``"cosine"`` (one minus the cosine), ``"euclidean"``, or ``"relative"``,
            the euclidean distance divided by the length of the clean state.
        normalize: Divide the scores of a step in a layer by their sum, source and prefix together.
        threshold: Distances up to this count as 0.
        heads: The heads that lose the value: None for all, a number, a slice, a list of numbers, or
            ``{layer: heads}``, where a layer that is not named loses nothing; ``{"encoder": ..., "decoder": ...,
            "cross": ...}`` for each kind of attention on its own, all heads where one is not named.
        state: What is compared: ``"resid_post"``, the output of every block; or ``"final_norm"``: of the last
            layer what the last norm makes of it, as in the hidden states of Transformers.
        rollout: Multiply the normalised scores over the layers, without a residual stream; the sum over the tokens
            of a segment is its score.
    """

    metric: Metric = "cosine"
    normalize: bool = True
    threshold: float = 0.0
    heads: Any = None
    state: Literal["resid_post", "final_norm"] = "resid_post"
    rollout: bool = False

    name: ClassVar[str] = "value_zeroing"
    title: ClassVar[str] = "how far a layer's output moves without a token's value"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.INTERNALS, Need.ATTENTION})
    cites: ClassVar[tuple[str, ...]] = ("mohebbi2023",)
    cost: ClassVar[str] = "(K + 1) F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    targets: ClassVar[frozenset[str] | None] = frozenset()
    view: ClassVar[Mapping[str, str]] = {"layer": "mean"}

    def __post_init__(self) -> None:
        if self.metric not in _METRICS:
            raise unknown_name("metric of value_zeroing:", str(self.metric), _METRICS)
        if self.state not in _STATES:
            raise unknown_name("state of value_zeroing:", str(self.state), _STATES)
        if not self.threshold >= 0:
            raise InputError(f"value_zeroing: threshold is a distance of at least 0, not {self.threshold!r}.")
        if self.rollout and not self.normalize:
            raise InputError("value_zeroing: rollout=True multiplies normalised scores; leave normalize=False out.")
        check_choice("heads", self.heads, _FAMILIES, by_layer=True)

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the distances of all layers and features."""
        anatomy = probe.anatomy
        if self.state == "final_norm" and not all(anatomy.has(stack, "ln_final") for stack in anatomy.layers):
            raise UnsupportedError(
                "value_zeroing: this model has no norm after its last block; leave state='final_norm' out."
            )
        heads = self._heads(anatomy)
        found = probe.zero(
            Zeroing(
                heads=heads,
                metric=self.metric,
                each="token" if self.rollout else "feature",
                everywhere=self.rollout,
                final_norm=self.state == "final_norm",
            )
        )
        if self.rollout:
            return self._rolled(probe, found)
        moved = self._shares(found.moved)
        extras = {}
        if found.encoder is not None:
            between = token_columns(self._shares(found.encoder), found.tokens)
            extras["encoder_self"] = Extra(between, 0, ("layer",), _labels(anatomy.layers["encoder"]))
        return Answer(
            column_means(probe, moved),
            axes=("layer",),
            labels=_labels(anatomy.layers["decoder"]),
            gaps=(mixture(found.mixture), self._unmoved(probe, moved, heads)),
            record=found.record,
            extras=extras,
        )

    def _heads(self, anatomy: Anatomy) -> dict[str, list[list[int]]]:
        """The heads of every layer, for each kind of attention that the model has."""
        found: dict[str, list[list[int]]] = {}
        for family in _FAMILIES if anatomy.encoder_decoder else ("decoder",):
            stack = "decoder" if family == "cross" else family
            count = anatomy.layers[stack]
            where = "cross attention" if family == "cross" else stack
            chosen = part_of(self.heads, family)
            found[family] = [heads_of_layer(chosen, k, count, anatomy.heads[stack], where) for k in range(count)]
        if not any(any(found[family]) for family in found if family != "encoder"):
            raise InputError(f"value_zeroing: heads={self.heads!r} names no head; leave it out for all.")
        return found

    def _shares(self, moved: Float[Tensor, "batch place feature layer"]) -> Float[Tensor, "batch place feature layer"]:
        """Distances after threshold and normalisation; what has nothing to share out stays 0."""
        moved = moved * (moved > self.threshold)
        if not self.normalize:
            return moved
        total = moved.sum(2, keepdim=True)
        return moved / total.where(total > 0, 1.0)

    def _unmoved(self, probe: Probe, moved: Float[Tensor, "batch step feature layer"], heads: dict[str, Any]) -> Gap:
        """The check that something moves at every step, in every layer where a head loses a value."""
        import torch

        layers = [any(heads[family][k] for family in heads if family != "encoder") for k in range(moved.shape[-1])]
        still = (moved.sum(2) == 0)[..., layers].to(probe.columns).mean(2)
        worst = torch.where(probe.columns > 0, still[:, None], 0.0).amax(-1)
        note = "share of the layers in which no removal moves the state by more than the threshold"
        return Gap("unmoved", worst, torch.ones_like(worst), None if self.threshold else 0.0, note)

    def _rolled(self, probe: Probe, found: Zeroed) -> Answer:
        """The product over the layers."""
        import torch

        first = sum(probe.widths[:-1])
        encoder, states = None, None
        if found.encoder is not None:
            for shares in self._shares(found.encoder)[:, :, :first].unbind(-1):
                encoder = composed(shares, encoder)
        for shares in self._shares(found.moved).unbind(-1):
            source = None if encoder is None else shares[..., :first] @ encoder
            states = composed(shares[..., first:], states, source)
        assert states is not None, "a stack has layers"
        scores = column_means(probe, states[torch.arange(len(states))[:, None], found.query])
        extras = {} if encoder is None else {"encoder_self": Extra(encoder, 0)}
        sums = row_sums((1 - scores.sum(2)).abs(), sinks=False)
        return Answer(scores, per="token", gaps=(mixture(found.mixture), sums), record=found.record, extras=extras)


def column_means(probe: Probe, steps: Float[Tensor, "batch step ..."]) -> Float[Tensor, "batch column ..."]:
    """The mean over the steps that each column spans."""
    import torch

    weights = probe.columns.to(steps)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1.0)
    return torch.einsum("bct,bt...->bc...", weights, steps)


def token_columns(
    shares: Float[Tensor, "batch position feature layer"], tokens: Int[Tensor, "batch feature"]
) -> Float[Tensor, "batch position key layer"]:
    """Scores of features as those of their tokens; NaN for the tokens of a feature that has several.

    Args:
        shares: Scores at all positions of the encoder, which come first on the token axis.
        tokens: The token that each feature is, or -1.

    Returns:
        Scores between the encoder's tokens.
    """
    width = shares.shape[1]
    found = shares.new_full((len(shares), width, width, shares.shape[3]), float("nan"))
    example, feature = ((tokens >= 0) & (tokens < width)).nonzero(as_tuple=True)
    found[example, :, tokens[example, feature]] = shares[example, :, feature]
    return found


def _labels(count: int) -> dict[str, tuple[str, ...]]:
    return {"layer": tuple(str(layer) for layer in range(count))}
