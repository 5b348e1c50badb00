"""The result of an attribution: scores, the tokens they belong to, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.core.errors import InputError, NonFiniteScore, unknown_name
from whence.core.tokens import Side, Token
from whence.scores.array import Scores
from whence.scores.plain import frozen, listed, plain
from whence.scores.reducers import REDUCERS

if TYPE_CHECKING:
    import pandas

# Innermost axis first: the length of a vector of units is taken before heads and layers are averaged.
DEFAULT_VIEW: Mapping[str, str] = MappingProxyType({"unit": "l2", "head": "mean", "layer": "mean"})


@dataclass(frozen=True)
class Check:
    """How far an identity of the method held in this run.

    Attributes:
        name: The identity, such as ``"completeness"``.
        value: The gap that was measured.
        tolerance: The largest gap that passes, or None.
        passed: Whether it held; None for a number that is only reported.
        note: What the number is compared with, or why it was skipped.
    """

    name: str
    value: float
    tolerance: float | None = None
    passed: bool | None = None
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))
        if self.tolerance is not None:
            object.__setattr__(self, "tolerance", float(self.tolerance))
        if self.passed is not None:
            object.__setattr__(self, "passed", bool(self.passed))


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """Scores of every token for every explained step, with their provenance. Immutable.

    Attributes:
        scores: Axes ``step``, ``token``, and possibly ``layer``, ``head``, ``unit``.
        tokens: The token axis: source tokens (or the prompt), then the generated prefix.
        steps: The explained tokens, one per entry of the step axis.
        step_scores: Further numbers per step by name, float32; NaN or infinity where the number is so.
        checks: Identities of the method and how far they held.
        info: Provenance as plain data: method, options, target, model, revision, dtype, place, versions,
            seed, baseline, default view, and the operators applied since (``ops``). Kept read-only: lists become
            tuples, and floats that JSON does not have become the texts ``"nan"``, ``"inf"``, ``"-inf"``.
        extras: Further scores by name: ``"standard_error"`` (axes of `scores`) where the method samples;
            ``"encoder_self"``, where the axis ``step`` holds source tokens as well; others that a method's
            docstring names, such as what `direct_logit` finds that belongs to no token.

    Raises:
        InputError: Axes, tokens and step scores do not fit together, or ``info`` is not plain data.
        NonFiniteScore: A score is infinite.
    """

    scores: Scores
    tokens: tuple[Token, ...]
    steps: tuple[Token, ...]
    step_scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tokens", "steps", "checks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_axes(self.scores, self.tokens, self.steps)
        by_name = {name: _per_step(name, row, len(self.steps)) for name, row in self.step_scores.items()}
        object.__setattr__(self, "step_scores", MappingProxyType(by_name))
        object.__setattr__(self, "info", frozen(self.info, "info"))
        object.__setattr__(self, "extras", MappingProxyType(dict(self.extras)))
        _check_view(self.info.get("default_view", {}))

    def __reduce__(self) -> tuple[type[Attribution], tuple[Any, ...]]:
        # Read-only views of dicts cannot be pickled, so plain ones travel and are wrapped again.
        parts = self.scores, self.tokens, self.steps, dict(self.step_scores), self.checks, plain(self.info)
        return type(self), (*parts, dict(self.extras))

    def __repr__(self) -> str:
        sources = len(self.source.axis("token"))
        extra = "".join(f" x {len(axis)} {axis.name}s" for axis in self.scores.axes[2:])
        asked = self.method or "unnamed method"
        if self.explains:
            asked += f" of {self.target or 'unnamed target'}"
        failed = ", ".join(check.name for check in self.checks if check.passed is False)
        return (
            f"Attribution({asked}: {len(self.steps)} steps x {len(self.tokens)} tokens{extra}, "
            f"{sources} of the tokens source; {f'UNVERIFIED: {failed}' if failed else 'no failed check'})"
        )

    @property
    def verified(self) -> bool:
        """No check failed."""
        return all(check.passed is not False for check in self.checks)

    @property
    def method(self) -> str:
        """Name of the method, or nothing."""
        return str(self.info.get("method") or "")

    @property
    def target(self) -> str:
        """Name of the explained number, or nothing."""
        return str(self.info.get("target") or "")

    @property
    def explains(self) -> bool:
        """Whether the scores are about a number of the output; some methods look at the inside of the model alone."""
        return "target" not in self.info or self.info["target"] is not None

    @property
    def source(self) -> Scores:
        """The scores of the source tokens (the prompt, or what the encoder read)."""
        return self._side("source")

    @property
    def prefix(self) -> Scores:
        """The scores of the tokens generated so far."""
        return self._side("prefix")

    @property
    def text(self) -> str:
        """The source text."""
        return "".join(token.text for token in self.tokens if token.side == "source")

    @property
    def generated(self) -> str:
        """The text of the explained steps."""
        return "".join(token.text for token in self.steps)

    @property
    def reductions(self) -> Mapping[str, str]:
        """What `view` does to the axes beyond step and token: axis -> reducer, in the order applied."""
        chosen = self.info.get("default_view", {})
        present = [axis for axis in DEFAULT_VIEW if axis in self.scores.names]
        return {axis: chosen.get(axis, DEFAULT_VIEW[axis]) for axis in present}

    def view(self) -> Scores:
        """Steps x tokens: every further axis reduced as ``info["default_view"]`` says.

        An axis it does not name is reduced by length over units, and by mean over heads and layers.
        """
        scores = self.scores
        for axis, how in self.reductions.items():
            scores = scores.reduce(axis, how)
        return scores

    def top(self, k: int = 5) -> list[list[tuple[Token, float]]]:
        """For each step, the ``k`` tokens with the highest score, highest first; earlier token on a tie."""
        if k < 1:
            raise InputError(f"top needs at least one token per step, not {k}.")
        found = []
        for row in self.view().values:
            # NaN sorts last; a stable sort keeps earlier tokens first among equals.
            order = np.argsort(-row, kind="stable")[:k]
            found.append([(self.tokens[i], float(row[i])) for i in order if not np.isnan(row[i])])
        return found

    def aggregate(self, *parts: Any) -> Attribution:
        """A new attribution, made by operators: ``out.aggregate("head:mean,layer:3,words")``.

        Args:
            *parts: What `whence.aggregate` takes: texts, `Op`, `Pipeline`, or mappings.

        Raises:
            UnknownNameError: An operator, reducer, label or step score does not exist; the nearest are listed.
            InputError: An operator does not fit, such as one for an axis that is not there.
        """
        # Operators make attributions, so they need this module.
        from whence.scores.aggregation.pipeline import aggregate

        return aggregate(self, *parts)

    def __sub__(self, other: Attribution) -> Attribution:
        """First minus second, with step scores; tokens that differ become ``"x -> y"``.

        Raises:
            InputError: The axes or the defined cells are not the same.
        """
        from whence.scores.aggregation.difference import difference

        return difference(self, other) if isinstance(other, Attribution) else NotImplemented

    def equals(self, other: Attribution, atol: float = 0.0) -> bool:
        """Same tokens, steps, checks and info; scores and step scores no further apart than ``atol``."""
        return (
            self.scores.equals(other.scores, atol)
            and (self.tokens, self.steps) == (other.tokens, other.steps)
            # Texts, because a check's value may be NaN, which differs from itself.
            and repr(self.checks) == repr(other.checks)
            and self.info == other.info
            and list(self.step_scores) == list(other.step_scores)
            and list(self.extras) == list(other.extras)
            and all(values.equals(other.extras[name], atol) for name, values in self.extras.items())
            and all(
                np.allclose(row, other.step_scores[name], rtol=0.0, atol=atol, equal_nan=True)
                for name, row in self.step_scores.items()
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data that JSON can hold; None where a score is not defined."""
        return {
            "axes": {axis.name: list(axis.labels) for axis in self.scores.axes},
            "scores": listed(self.scores.values),
            "tokens": [plain(vars(token)) for token in self.tokens],
            "steps": [plain(vars(token)) for token in self.steps],
            "step_scores": {name: listed(row) for name, row in self.step_scores.items()},
            "checks": [plain(vars(check)) for check in self.checks],
            "info": plain(self.info),
            "extras": {
                name: {"axes": {axis.name: list(axis.labels) for axis in one.axes}, "scores": listed(one.values)}
                for name, one in self.extras.items()
            },
        }

    def to_pandas(self) -> pandas.DataFrame:
        """The scores as `Scores.to_pandas` gives them: a table of steps x tokens, or the long form."""
        return self.scores.to_pandas()

    def show(self, **options: Any) -> None:
        """Print to the terminal; ``options`` are those of `whence.views.console.show`."""
        # Views stand above scores and may not be imported from here, so the call is bound when it is made.
        import_module("whence.views.console").show(self, **options)

    def save(self, path: str | PathLike[str]) -> None:
        """Write one JSON file, compressed when its name ends in ``.gz``; an existing file is replaced."""
        # Imported on use: this is where pydantic and safetensors come in, and it needs this module.
        from whence.scores.serialization import write

        write((self,), path)

    def _side(self, side: Side) -> Scores:
        return self.scores.select("token", [k for k, t in enumerate(self.tokens) if t.side == side])

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Attribution:
        """Read the attribution in a file.

        Raises:
            FileFormatError: The file is damaged, of a newer format, or holds several attributions.
        """
        from whence.scores.serialization import read_one

        return read_one(path)


def _check_axes(scores: Scores, tokens: Sequence[Token], steps: Sequence[Token]) -> None:
    if scores.names[:2] != ("step", "token"):
        raise InputError(f"an attribution needs the axes step and token; these scores have {scores.names}.")
    for name, entries in (("step", steps), ("token", tokens)):
        if len(entries) != len(scores.axis(name)):
            raise InputError(f"{len(entries)} {name}s, but the {name} axis has {len(scores.axis(name))}.")
    sides = [token.side for token in tokens]
    if sides != sorted(sides, key=("source", "prefix").index):
        raise InputError("source tokens come first on the token axis, then the generated prefix.")
    if np.isinf(scores.values).any():
        place = [int(k) for k in np.argwhere(np.isinf(scores.values))[0]]
        raise NonFiniteScore(f"the score at {dict(zip(scores.names, place, strict=True))} is infinite.")
    cells = scores.defined.reshape(*scores.shape[:2], -1) if scores.values.size else np.empty((0, 0, 1))
    if (partly := cells.any(axis=2) != cells.all(axis=2)).any():
        step, token = (int(k) for k in np.argwhere(partly)[0])
        raise InputError(f"step {step} sees token {token} in some layers, heads or units but not in all.")


def _check_view(view: Any) -> None:
    if not isinstance(view, Mapping):
        raise InputError(f"info['default_view'] maps axes to reducers; it is {view!r}.")
    for how in view.values():
        if how not in REDUCERS:
            raise unknown_name("reducer", str(how), REDUCERS)


def _per_step(name: str, row: Any, steps: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = np.array(row, dtype=np.float32)
    if values.shape != (steps,):
        raise InputError(f"step score {name!r} has shape {values.shape}; there are {steps} steps.")
    values.setflags(write=False)
    return values
