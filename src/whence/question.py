"""What `attribute` was asked, checked once, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whence.core.contract import AbstractMethod, Need
from whence.core.errors import InputError, UnsupportedError
from whence.methods import resolve_method
from whence.models.model import Model
from whence.probe.baseline import is_several
from whence.probe.batch import Forced
from whence.probe.layers import find_layers
from whence.step_functions import StepFunction, resolve_step_function
from whence.text.encoded import Encoded

SIDES = ("source", "prefix")
MODES = ("auto", "reverse", "forward")
DERIVATIVES = ("exact", "finite")
KEEPS = ("auto", "special", "template", "none")


@dataclass(frozen=True)
class Question:
    """The arguments of `whence.attribute.attribute`, resolved: the method and step functions as objects.

    A method that explains no number of the output (`explains` is False) has a ``target`` all the same, which nobody
    measures.
    """

    model: Model
    method: AbstractMethod
    target: StepFunction
    step_scores: tuple[StepFunction, ...]
    steps: Any
    segments: Any
    layer: Any
    baseline: Any
    keep: Any
    sides: tuple[str, ...]
    mode: str
    seed: int
    strict: bool
    generate: Mapping[str, Any]

    @property
    def explains(self) -> bool:
        """Whether the method explains the target."""
        return self.method.targets is None or bool(self.method.targets)


def ask(
    model: Model,
    method_options: dict[str, Any],
    *,
    method: Any,
    target: Any,
    step_scores: Any,
    contrast: Any,
    steps: Any,
    segments: Any,
    layer: Any,
    baseline: Any,
    keep: Any,
    sides: Any,
    mode: Any,
    derivative: Any,
    seed: Any,
    strict: bool,
    generate: Any,
) -> Question:
    """Check the arguments of `whence.attribute.attribute`.

    Args:
        model: The model.
        method_options: Options of the method, when it is given by name.
        method: See `whence.attribute.attribute`, as for all that follow.
        target: The step function.
        step_scores: Further step functions.
        contrast: Not in this version.
        steps: Which tokens to explain.
        segments: What a feature is.
        layer: Which layer.
        baseline: What features are compared with.
        keep: What keeps its true value.
        sides: Which sides.
        mode: Derivative mode.
        derivative: Exact derivatives, or finite differences.
        seed: The seed.
        strict: Raise when an identity fails.
        generate: Options of generation.

    Returns:
        The question.

    Raises:
        InputError: An option cannot be used, or would be ignored.
        UnknownNameError: A name that does not exist.
        UnsupportedError: The method needs what the model or place cannot give.
    """
    made = resolve_method(method, method_options)
    if derivative not in DERIVATIVES:
        raise InputError(f"derivative is one of {', '.join(DERIVATIVES)}, not {derivative!r}.")
    finite = derivative == "finite"
    if finite and (Need.GRADIENTS not in made.required or mode != "auto"):
        raise InputError(
            "derivative='finite' stands for the derivatives of a gradient method, in place of mode=; leave one out."
        )
    if Need.GRADIENTS in made.required and not made.directional and (finite or mode == "forward"):
        kind = "finite differences give" if finite else "forward mode gives"
        raise UnsupportedError(
            f"{made.name}, with these options, needs the whole gradient, and {kind} derivatives along directions. "
            "Leave the option out, or take input_x_gradient or integrated_gradients."
        )
    missing = made.required - model.provides - ({Need.GRADIENTS} if finite else set())
    if missing:
        reasons = [model.lacks[need] for need in missing if need in model.lacks]
        raise UnsupportedError(
            f"{made.name} needs {', '.join(sorted(need.value for need in missing))}, which {model.name} at place "
            f"{model.place!r} does not provide{': ' if reasons else ''}{'; '.join(reasons)}."
        )
    if contrast is not None:
        raise UnsupportedError("contrast: comparing with another continuation or input is not in this version.")
    if layer is not None and not made.layer:
        raise UnsupportedError(f"{made.name} is not asked at an intermediate site; leave layer={layer!r} out.")
    if model.encoder_decoder and not made.encoder_decoder:
        raise UnsupportedError(f"{made.name} works with decoder-only models, and {model.name} has an encoder.")
    steps = made.defaults.get("steps") if steps is None else steps
    segments = made.defaults.get("segments", "token") if segments is None else segments
    sides = made.defaults.get("sides", SIDES) if sides is None else sides
    function = _target(made, target, steps)
    if not made.replaces and not (isinstance(baseline, str) and baseline == "auto"):
        why = "compares with nothing" if made.auto_baseline is None else "replaces nothing with these options"
        raise InputError(f"{made.name} {why}, so baseline={baseline!r:.80} would be ignored; leave it out.")
    if is_several(baseline) and not made.several_baselines:
        raise InputError(
            f"{made.name} compares with one reference, and baseline={baseline!r:.80} is several. Take one of them, "
            "or a method that averages over references, such as gradient_shap."
        )
    if made.auto_baseline == "zero" and isinstance(baseline, str) and baseline in ("auto", "zero"):
        baseline = None
    chosen = (sides,) if isinstance(sides, str) else tuple(sides)
    if not chosen or not set(chosen) <= set(SIDES):
        raise InputError(f"sides is 'source', 'prefix' or both, not {sides!r}.")
    if mode not in MODES:
        raise InputError(f"mode is one of {', '.join(MODES)}, not {mode!r}.")
    if mode != "auto" and Need.GRADIENTS not in made.required:
        raise InputError(f"{made.name} takes no derivatives, so mode={mode!r} would be ignored; leave it out.")
    if isinstance(keep, str) and keep not in KEEPS:
        raise InputError(f"keep is one of {', '.join(KEEPS)}, or a list of positions, not {keep!r}.")
    if isinstance(step_scores, str):
        step_scores = (step_scores,)
    find_layers(model.architecture, layer)
    scores = tuple(resolve_step_function(one) for one in step_scores or made.defaults.get("step_scores", ()))
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is a whole number of at least 0, not {seed!r}.")
    return Question(
        model=model,
        method=made,
        target=function,
        step_scores=scores,
        steps=steps,
        segments=segments,
        layer=layer,
        baseline=baseline,
        keep=keep,
        sides=chosen,
        mode="finite" if finite else mode,
        seed=seed,
        strict=strict,
        generate=dict(generate or {}),
    )


def _target(method: AbstractMethod, target: Any, steps: Any) -> StepFunction:
    """The step function that is explained: what was asked for, or what is usual for the method and the steps.

    Raises:
        UnsupportedError: The method cannot explain it.
    """
    if target is None:
        usual = method.defaults.get("target", "logprob" if asks_for_spans(steps) else "probability")
        return resolve_step_function(usual)
    function = resolve_step_function(target)
    if method.targets is not None and function.name not in method.targets:
        takes = f"explains {' or '.join(sorted(method.targets))} only" if method.targets else "explains no such number"
        raise UnsupportedError(f"{method.name} {takes}, so target={function.name!r} cannot be its target.")
    if Need.GRADIENTS in method.required and not function.differentiable:
        raise UnsupportedError(
            f"{method.name} differentiates, but {function.name} has no gradient; take another target."
        )
    return function


def asks_for_spans(steps: Any) -> bool:
    """Whether steps are joined to spans."""
    if isinstance(steps, list):
        return any(asks_for_spans(one) for one in steps)
    return isinstance(steps, tuple) or (isinstance(steps, str) and steps == "whole")


def fixed_tokens(question: Question, sequence: Forced, prompt: Encoded) -> list[bool]:
    """Which tokens keep their true value in the baseline.

    Args:
        question: What was asked.
        sequence: The sequence.
        prompt: Its prompt.

    Returns:
        One flag per token of the token axis.

    Raises:
        InputError: A position outside the token axis.
    """
    keep = question.keep
    if keep == "auto":
        keep = "template" if "template" in prompt.segments else "special"
    if not isinstance(keep, str):
        places = list(keep)
        count = len(sequence.tokens)
        if any(not (isinstance(k, int) and -count <= k < count) for k in places):
            raise InputError(f"keep: positions go from 0 to {count - 1}, not {places!r}.")
        chosen = {k % count for k in places}
        flags = [k in chosen for k in range(count)]
    else:
        flags = [
            (keep != "none" and token.special) or (keep == "template" and token.segment == "template")
            for token in sequence.tokens
        ]
    return [kept or token.side not in question.sides for kept, token in zip(flags, sequence.tokens, strict=True)]
