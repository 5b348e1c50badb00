"""From a method's answer, in padded tensors, to one `Attribution` per sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.core.contract import Answer, Extra, Gap, Need
from whence.core.errors import CheckFailed, NonFiniteScore
from whence.core.tokens import Token, join_tokens
from whence.probe.checks import EXACT
from whence.scores import Attribution, Axis, Check, Scores
from whence.scores.merges import merge_steps

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from whence.probe.foil import Foil
    from whence.probe.probe import ModelProbe
    from whence.question import Question

_MERGES = {
    "sum": lambda part: part.sum(1),
    "l1": lambda part: part.sum(1),
    "l2": lambda part: np.sqrt((part**2).sum(1)),
    "linf": lambda part: part.max(1),
}
_QUADRATURE = {8: 2e-2, 4: 2e-2, 2: 5e-2}
_SINGLE = {8: 1e-4, 4: 1e-4, 2: 2e-2}


def assemble(
    question: Question,
    probe: ModelProbe,
    answer: Answer,
    target: Sequence[Float[Tensor, "example step"]],
    step_scores: Sequence[Float[Tensor, "example step"]],
    info: dict[str, Any],
    foil: Foil | None = None,
) -> list[Attribution]:
    """Cut the padded answer into one result per sequence, with NaN where a step cannot look.

    Args:
        question: What was asked.
        probe: The probe that was asked.
        answer: What the method answered.
        target: The target on the clean input, per step; empty where none is explained.
        step_scores: The step scores that were asked for.
        info: Provenance that all results share.
        foil: What steps were compared with.

    Returns:
        One attribution per sequence.

    Raises:
        NonFiniteScore: A score that is defined is NaN or infinite.
        CheckFailed: A check failed and the question is strict.
    """
    known = probe.defined if answer.defined is None else probe.defined & answer.defined
    rows = range(len(probe.groups))
    return [_one(question, probe, answer, row, known, target, step_scores, info, foil) for row in rows]


def _one(
    question: Question,
    probe: ModelProbe,
    answer: Answer,
    row: int,
    known: Bool[Tensor, "example column feature"],
    target: Sequence[Float[Tensor, "example step"]],
    step_scores: Sequence[Float[Tensor, "example step"]],
    info: dict[str, Any],
    foil: Foil | None,
) -> Attribution:
    sequence = probe.batch.sequences[row]
    groups = probe.groups[row]
    columns = len(sequence.columns)
    contrast = None if foil is None else foil.record
    scores = _cut(probe, answer, row, answer.scores)
    entries = [_entry(sequence.tokens, group, probe.fixed[row]) for group in groups]
    defined = known[row, :columns, : len(groups)].numpy()
    if not np.isfinite(scores[defined]).all():
        raise NonFiniteScore(
            f"{question.method.name}: a score came out as NaN or infinite. Load the model in float32, or choose "
            "another target or baseline."
        )
    where = defined.reshape(*defined.shape, *(1,) * (scores.ndim - 2))
    scores = np.where(where, scores, np.nan)
    labels = {
        "step": tuple(token.text for token in sequence.labels),
        "token": tuple(token.text for token in entries),
    }
    axes = _axes(scores, ("token", *answer.axes), {**labels, **answer.labels})
    extras = {
        name: _column_extra(probe, answer, extra, row, labels, defined)
        if extra.stream is None
        else _stream_extra(probe, extra, extra.stream, row)
        for name, extra in answer.extras.items()
    }
    if answer.error is not None:
        spread = np.where(where, _cut(probe, answer, row, answer.error), np.nan)
        extras["standard_error"] = Scores(spread.astype(np.float32), axes)
    checks = _checks(question, answer.gaps, row, columns, probe.batch.valid)
    failed = [check for check in checks if check.passed is False]
    if failed and question.strict:
        raise CheckFailed(
            "; ".join(
                f"{check.name}: {check.value:.3g} is more than {check.tolerance:.3g} ({check.note})" for check in failed
            )
            + ". Try more points (n_steps), another baseline, or float64."
        )
    reported = _step_scores(question, probe, row, step_scores)
    return Attribution(
        scores=Scores(scores.astype(np.float32), axes),
        extras=extras,
        tokens=tuple(entries),
        steps=sequence.labels,
        step_scores=reported,
        checks=tuple(checks),
        info={
            **info,
            "contrast": None if contrast is None else contrast[row],
            "method": question.method.name,
            "method_options": _noted(dataclasses.asdict(question.method)),
            "default_view": {axis: question.method.view.get(axis, "mean") for axis in answer.axes},
            "additive": question.method.additive,
            "signed": question.method.signed,
            "join": answer.merge,
            "engine": {**answer.record, **{name: values[row] for name, values in answer.each.items()}},
            "hints": [
                hint for steps in target for hint in _hints(question, steps[row][: len(sequence.targets)].tolist())
            ],
        },
    )


def _noted(value: Any) -> Any:
    """An option as plain data: keys are texts, a slice as it is written, a function's name, an array's shape."""
    if isinstance(value, Mapping):
        return {str(name): _noted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_noted(item) for item in value]
    if isinstance(value, slice):
        return ":".join("" if end is None else str(end) for end in (value.start, value.stop, value.step))
    if hasattr(value, "shape"):
        return f"{type(value).__name__} {list(value.shape)}"
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else value


def _cut(probe: ModelProbe, answer: Answer, row: int, padded: Tensor) -> np.ndarray:
    """The part of a padded answer that belongs to one sequence, with tokens joined into features."""
    groups = probe.groups[row]
    scores = padded[row, : len(probe.batch.sequences[row].columns)].double().cpu().numpy()
    if answer.per == "feature":
        return scores[:, : len(groups)]
    scores = scores[:, probe.batch.slots[row].numpy()]
    if all(len(group) == 1 for group in groups):
        # Every merge leaves one score as it is.
        return scores[:, [group[0] for group in groups]]
    merge = _MERGES[answer.merge]
    return np.stack([merge(scores[:, group]) for group in groups], axis=1)


def _axes(values: np.ndarray, after: Sequence[str], labels: Mapping[str, Sequence[str]]) -> tuple[Axis, ...]:
    names = ("step", *after)
    return tuple(
        Axis(name, tuple(labels.get(name, ())) or tuple(str(k) for k in range(values.shape[place])))
        for place, name in enumerate(names)
    )


def _stream_extra(probe: ModelProbe, extra: Extra, stream: int, row: int) -> Scores:
    """Scores between the tokens of one stream."""
    batch = probe.batch
    first, last = batch.offsets[stream], batch.offsets[stream] + batch.widths[stream]
    inside = [(token, int(slot)) for token, slot in zip(batch.sequences[row].tokens, batch.slots[row], strict=True)]
    inside = [(token, slot - first) for token, slot in inside if first <= slot < last]
    places = [slot for _, slot in inside]
    values = extra.values[row].double().cpu().numpy()[places][:, places]
    texts = tuple(token.text for token, _ in inside)
    labels = {"step": texts, "token": texts, **extra.labels}
    return Scores(values.astype(np.float32), _axes(values, ("token", *extra.axes), labels))


def _column_extra(
    probe: ModelProbe, answer: Answer, extra: Extra, row: int, labels: Mapping[str, Sequence[str]], seen: np.ndarray
) -> Scores:
    """Further scores of every column; NaN where a column cannot look."""
    if extra.axes[:1] == ("token",):
        values = _cut(probe, answer, row, extra.values)
        values = np.where(seen.reshape(*seen.shape, *(1,) * (values.ndim - 2)), values, np.nan)
    else:
        values = extra.values[row, : len(seen)].double().cpu().numpy()
    return Scores(values.astype(np.float32), _axes(values, extra.axes, {**labels, **extra.labels}))


def _entry(tokens: Sequence[Token], group: Sequence[int], fixed: Sequence[bool]) -> Token:
    members = [tokens[k] for k in group]
    kept = all(fixed[k] for k in group)
    if len(members) == 1:
        return replace(members[0], fixed=kept)
    return join_tokens(members, "".join(token.text for token in members if not token.special), fixed=kept)


def _checks(
    question: Question, gaps: Sequence[Gap], row: int, columns: int, explained: Bool[Tensor, "example column"]
) -> list[Check]:
    # Products with quantised weights are no more exact than those of half precision.
    item = 2 if question.model.info.get("quantisation") else question.model.dtype.itemsize
    made = []
    for gap in gaps:
        shares = gap.gap[row, :columns].double() / gap.scale[row, :columns].double()
        ratio = shares[explained[row, :columns]].max()
        tolerance = _tolerance(gap, item)
        passed = None if tolerance is None else bool(ratio <= tolerance)
        made.append(Check(gap.name, float(ratio), tolerance, passed, gap.note))
    return made


def _tolerance(gap: Gap, item: int) -> float | None:
    if gap.tolerance == "exact":
        return EXACT[item]
    if gap.tolerance == "quadrature":
        return _QUADRATURE[item]
    if gap.tolerance == "single":
        return _SINGLE[item]
    return gap.tolerance


def _step_scores(
    question: Question, probe: ModelProbe, row: int, values: Sequence[Float[Tensor, "example step"]]
) -> dict[str, np.ndarray]:
    """What was asked for beside the scores; a span's value is merged from its steps."""
    columns, functions = probe.batch.sequences[row].columns, question.step_scores
    scores = {one.label: steps[row].double().numpy() for one, steps in zip(functions, values, strict=True)}
    return merge_steps(scores, {one.label: one.merge for one in functions}, columns)


def _hints(question: Question, values: Sequence[float]) -> list[str]:
    if Need.GRADIENTS not in question.method.required or question.target.name != "probability":
        return []
    flat = sum(value > 0.999 or value < 1e-6 for value in values)
    if not flat:
        return []
    hint = (
        f"{flat} of {len(values)} steps have a probability so close to 0 or 1 that its gradient is almost flat; "
        "target='logprob' or 'logit' tells more there."
    )
    return [hint]
