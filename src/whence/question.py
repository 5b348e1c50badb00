"""What `attribute` was asked, checked once, before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whence.core.contract import AbstractMethod, Need
from whence.core.errors import InputError, TargetIndependentOfInput, UnsupportedError, unknown_name
from whence.methods import METHODS, resolve_method
from whence.models.model import Model
from whence.probe.baseline import is_several
from whence.probe.batch import Forced
from whence.probe.layers import find_layers
from whence.step_functions import StepFunction, resolve_step_function, share_options
from whence.text.contrast import Contrast, against_itself
from whence.text.encoded import Encoded

SIDES = ("source", "prefix")
MODES = ("auto", "reverse", "forward")
DERIVATIVES = ("exact", "finite")
KEEPS = ("auto", "special", "template", "none")


@dataclass(frozen=True)
class Question:
    """The arguments of `whence.attribute.attribute`, resolved: the method and step functions as objects.

    A method that explains no number of the output (`explains` is False) has a ``target`` all the same, which nobody
    measures. There is a contrast for every prompt, or None for every prompt.
    """

    model: Model
    method: AbstractMethod
    target: StepFunction
    step_scores: tuple[StepFunction, ...]
    contrasts: tuple[Contrast | None, ...]
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
    contrast: Sequence[Contrast | None],
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
        method_options: Options of the method, when it is given by name, and of step functions.
        method: See `whence.attribute.attribute`, as for all that follow.
        target: The step function.
        step_scores: Further step functions.
        contrast: What each prompt is compared with, see `whence.text.contrast.parse_contrasts`.
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
    asked_scores = (step_scores,) if isinstance(step_scores, str) else tuple(step_scores or ())
    asked_for = [one for one in (target, *asked_scores) if one is not None]
    own, functions = split_options(method, method_options, [resolve_step_function(one) for one in asked_for])
    made = resolve_method(method, own)
    if target is not None:
        target, *functions = functions
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
    deep = find_layers(model.architecture, layer).deep
    scores = functions or [resolve_step_function(one) for one in made.defaults.get("step_scores", ())]
    scores = tuple(with_parts(scores))
    explained = [function] if made.targets is None or made.targets else []
    alone = all(one is None for one in contrast)
    if alone and function.name in made.against_itself and not any("contrast" in one.needs for one in scores):
        contrast = [against_itself() for _ in contrast]
    check_contrast([*explained, *scores], contrast)
    if explained:
        check_target(function, contrast[0], deep)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is a whole number of at least 0, not {seed!r}.")
    return Question(
        model=model,
        method=made,
        target=function,
        step_scores=scores,
        contrasts=tuple(contrast),
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


def split_options(
    method: Any, options: Mapping[str, Any], functions: Sequence[StepFunction]
) -> tuple[dict[str, Any], list[StepFunction]]:
    """Give every option to the method, or to the step functions that know it.

    Args:
        method: The name of a method, or a method object.
        options: Options by name. One that both know is the method's.
        functions: The target and the step scores.

    Returns:
        The method's options, and the step functions with theirs.

    Raises:
        UnknownNameError: Neither has an option of that name.
    """
    fields: set[str] = set()
    if isinstance(method, str):
        fields = {field.name for field in dataclasses.fields(METHODS[method])}
    own = {name: value for name, value in options.items() if name in fields}
    bound, left = share_options(functions, {name: value for name, value in options.items() if name not in fields})
    if left and not isinstance(method, str):
        return {**own, **left}, bound
    for name in left:
        known = sorted(fields.union(*(one.known_options for one in functions))) or ["(it has none)"]
        whose = f" and {', '.join(one.name for one in functions)}" if functions else ""
        raise unknown_name(f"option of {method}{whose}:", name, known)
    return own, bound


def with_parts(functions: Sequence[StepFunction]) -> list[StepFunction]:
    """Step functions with those that their merge rules speak of, each once.

    Raises:
        InputError: One is asked for twice.
    """
    found = list(functions)
    labels = [one.label for one in functions]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise InputError(f"step_scores: {twice[0]} is asked for twice.")
    for one in functions:
        names = [] if isinstance(one.merge, str) else one.merge[1:]
        found += [resolve_step_function(name) for name in names if name not in [other.name for other in found]]
    return found


def check_contrast(functions: Sequence[StepFunction], contrasts: Sequence[Contrast | None]) -> None:
    """A contrast where something compares, and nothing that compares without one.

    Raises:
        InputError: There is one without the other, or the contrast says nothing to a step function.
    """
    needing = [one for one in functions if "contrast" in one.needs]
    missing = [k for k, one in enumerate(contrasts) if one is None]
    if needing and missing:
        which = "" if len(missing) == len(contrasts) else f" for prompt {missing[0]}"
        raise InputError(
            f"{needing[0].name} compares with something, and there is no contrast{which}. Give contrast=' another "
            "continuation', or contrast={'source': 'another input'}."
        )
    if not needing and len(missing) < len(contrasts):
        raise InputError(
            "nothing that was asked for compares, so contrast= would be ignored. Take a target (or step score) such as "
            "'contrast_prob_diff' or 'kl_divergence'."
        )
    for one in needing:
        if "other run" in one.needs and any(each is not None and each.evaluate == "main" for each in contrasts):
            raise InputError(
                f"{one.name} compares two distributions, and evaluate='main' has only one. Add evaluate='own' to the "
                "contrast, or give another source."
            )


def check_target(function: StepFunction, contrast: Contrast | None, deep: bool) -> None:
    """Whether a number can be explained with that contrast, at that layer.

    Raises:
        InputError: It can be reported, and never explained.
        TargetIndependentOfInput: It depends on the contrast alone, and that is a constant.
        UnsupportedError: What it needs beside a row has other values at a deeper site.
    """
    if not function.attributable:
        raise InputError(f"{function.name} can be a step score and no target: its value is not defined everywhere.")
    constant = contrast is not None and contrast.evaluate == "own" and contrast.grad == "main"
    if function.only_contrast and constant:
        raise TargetIndependentOfInput(
            f"{function.name} depends on the contrast's own run alone, which is a constant of this text: all scores "
            "would be 0. Attribute that text itself, or add grad='shared' to the contrast."
        )
    if not deep:
        return
    if "noisy" in function.needs:
        raise UnsupportedError(
            f"{function.name}: behind the first dropout every pass has values of its own, so layer= has no one site to "
            "ask about. Leave layer= out."
        )
    if contrast is not None and contrast.grad == "shared" and contrast.source is not None:
        raise UnsupportedError(
            "contrast: two inputs share words, and not what becomes of them inside the model. Leave layer= out, or "
            "take grad='main'."
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
