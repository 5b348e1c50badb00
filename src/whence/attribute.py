"""The main job: a model, an input and a method in, an attribution of every generated token out."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from whence.answers import assemble
from whence.core.contract import AbstractMethod
from whence.core.errors import InputError
from whence.core.progress import Progress, progress_wanted
from whence.models.model import Model
from whence.probe.baseline import resolve_baselines
from whence.probe.batch import Batch, collate, force
from whence.probe.estimate import DryProbe, Estimate
from whence.probe.foil import Foil, find_foils, only_paired
from whence.probe.layers import find_layers
from whence.probe.measuring import measure_batch, sum_columns
from whence.probe.probe import ModelProbe
from whence.question import Question, ask, fixed_tokens
from whence.scores import Attribution, Attributions
from whence.step_functions import StepFunction
from whence.text.continuation import encode_continuation
from whence.text.contrast import Contrast, parse_contrasts
from whence.text.encoded import Encoded
from whence.text.prompt import is_batch
from whence.text.segments import segment_tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

DEFAULT_BATCH = 8


def attribute(
    model: Model,
    prompt: Any,
    continuation: Any = None,
    *,
    method: str | AbstractMethod = "input_x_gradient",
    target: str | StepFunction | None = None,
    step_scores: Sequence[str | StepFunction] = (),
    contrast: Any = None,
    steps: Any = None,
    segments: Any = None,
    layer: Any = None,
    baseline: Any = "auto",
    keep: Any = "auto",
    sides: Sequence[str] | None = None,
    mode: str = "auto",
    derivative: str = "exact",
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
    strict: bool = False,
    generate: Mapping[str, Any] | None = None,
    **method_options: Any,
) -> Attribution | Attributions:
    """Attribute every generated token to the input and to the text generated before it.

    The continuation is generated (or given), then the whole sequence is known and every step is answered in
    one teacher-forced pass.

    Args:
        model: What `whence.load` returned.
        prompt: Text, chat messages, ids, or a list of any of these (an `Attributions` comes back).
        continuation: The text to explain, as text or ids (a list for a list of prompts); None lets the model
            generate it. Text after a prompt begins with its own space: ``" because he was sick"``.
        method: Name of a method (``whence methods`` lists them) with its options as keyword arguments, or a
            method object.
        target: The step function that is explained: ``"probability"``, ``"logprob"``, ``"contrast_prob_diff"``, ...
            (``whence step-functions`` lists them), with options as in ``"kl_divergence:top_k=10"``. None is what is
            usual for the method, else the probability of single steps and the logprob of spans.
        step_scores: Step functions to report beside the scores.
        contrast: What step functions that compare are to compare with: another continuation (text or ids), or a mapping
            with any of ``continuation``, ``source`` (or ``prompt``), ``align``, ``evaluate`` and ``grad`` (see
            `whence.text.contrast.parse_contrast`); for a list of prompts a list of these.
        steps: Which tokens to explain. None: all of the continuation. An index, a slice or a list of these
            counts tokens of the continuation (negative from its end); a tuple ``(start, stop)`` is a span that
            is explained as one number, the sum of its steps; ``"whole"`` is the span of all of them. ``"prompt"``
            explains the prompt's own tokens
            and ``"all"`` both (decoder-only models); ``{"start": a, "stop": b}`` counts from the beginning of
            the whole text.
        segments: What a feature is: ``"token"``, ``"word"``, ``"sentence"``, ``"line"``, ``"paragraph"``,
            ``"message"``, ``{"split": regex}``, character spans of the prompt, or lists of positions. None is what
            is usual for the method, mostly ``"token"``.
        layer: Attribute to an intermediate layer instead of the input: the number of a block, the name of a
            site (``"blocks.3.resid_post"``; see `Model.sites`), a list of these, or ``"all"``.
        baseline: What a feature is compared with, for methods that compare: ``"auto"``, ``"mask"``,
            ``"unk"``, ``"pad"``, ``"mean"``, ``"zero"``, a token, ``"text:..."``, ids or a tensor; for methods
            that average over references also a list of these, or ``"vocab:100"`` (100 random words).
        keep: Tokens that keep their true value in the baseline: ``"special"``, ``"template"`` (special tokens
            and a chat template's scaffolding), ``"none"``, or positions. ``"auto"`` is ``"template"`` for a
            chat, else ``"special"``.
        sides: ``"source"`` (the prompt or encoder input), ``"prefix"`` (the generated text so far), or both; None
            is what is usual for the method, mostly both.
        mode: Derivatives in ``"reverse"`` or ``"forward"`` mode; ``"auto"`` takes the cheaper.
        derivative: ``"exact"``, or ``"finite"``: central differences, for a place that gives no gradients. They
            serve methods that multiply the gradient with a displacement (input x gradient, integrated
            gradients), with about three digits in float32.
        seed: Seed of everything that samples.
        batch_size: Prompts per pass; None takes up to 8.
        progress: Show a progress bar for anything longer than a second.
        strict: Raise when a method's identity does not hold, and run every check.
        generate: Options of transformers' ``generate``, such as ``dict(max_new_tokens=20)``.
        **method_options: Options of the method.

    Returns:
        The attribution, or one per prompt.

    Raises:
        InputError: The input or an option cannot be used; the message says what to do.
        UnknownNameError: No method, step function, site or option of that name; the nearest are listed.
        UnsupportedError: The method needs what this model or place cannot give.
        ModelError: No tokenizer for text, or weights that are not finite.
        NonFiniteScore: A score came out as NaN or infinite.
        CheckFailed: An identity failed, with ``strict``.

    Examples:
        >>> model = whence.load("whence/stories")
        >>> out = model.attribute("Once upon a time", method="integrated_gradients", n_steps=20)
        >>> out.show()
    """
    prompts, continuations, several = _inputs(model, prompt, continuation)
    question = ask(
        model,
        method_options,
        method=method,
        target=target,
        step_scores=step_scores,
        contrast=parse_contrasts(contrast, len(prompts), several),
        steps=steps,
        segments=segments,
        layer=layer,
        baseline=baseline,
        keep=keep,
        sides=sides,
        mode=mode,
        derivative=derivative,
        seed=seed,
        strict=strict,
        generate=generate,
    )
    size = batch_size if batch_size is not None else DEFAULT_BATCH
    if not isinstance(size, int) or size < 1:
        raise InputError(f"batch_size is a whole number of at least 1, not {batch_size!r}.")
    size = 1 if model.rows_interact else size
    done: list[Attribution] = []
    parts = range(0, len(prompts), size)
    # One bar at a time: over the batches where there are several, else over the passes of the one.
    with Progress("prompts", len(prompts), show=progress and len(parts) > 1) as bar:
        for first in parts:
            chunk = slice(first, first + size)
            with progress_wanted(progress and len(parts) == 1):
                done += _one_batch(question, prompts[chunk], continuations[chunk], question.contrasts[chunk])
            bar.advance(len(prompts[chunk]))
    return Attributions(tuple(done)) if several else done[0]


def estimate(model: Model, prompt: Any, continuation: Any = None, **options: Any) -> Estimate:
    """Passes and peak memory of a call to `attribute`, before running it.

    Args:
        model: The model.
        prompt: One prompt, as in `attribute`.
        continuation: The continuation; None stands for as many tokens as ``generate`` may make.
        **options: The other arguments of `attribute`.

    Returns:
        The estimate.
    """
    signature = inspect.signature(attribute).parameters
    asked = {
        name: options.pop(name, parameter.default)
        for name, parameter in signature.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name in ("batch_size", "progress"):
        del asked[name]
    asked["contrast"] = parse_contrasts(asked["contrast"], 1, several=False)
    question = ask(model, options, **asked)
    encoded = model.encode(prompt)
    if continuation is None and steps_need_text(question.steps):
        count = int(question.generate.get("max_new_tokens", model.default_new_tokens))
        continuation = [encoded.ids[-1]] * count
    texts = [_continue(model, continuation, encoded)]
    batch, foil = _compared(question, _collate(question, [encoded], texts), [encoded], texts, question.contrasts)
    probe = DryProbe(_probe(question, batch, [encoded], None, foil))
    question.method(probe)
    return probe.total()


def steps_need_text(steps: Any) -> bool:
    """Whether the steps lie in the continuation, so that there must be one."""
    return not (isinstance(steps, str) and steps == "prompt")


def _inputs(model: Model, prompt: Any, continuation: Any) -> tuple[list[Encoded], list[Any], bool]:
    several = is_batch(prompt)
    prompts = list(prompt) if several else [prompt]
    if not prompts:
        raise InputError("the prompt is empty. Give some text, chat messages or ids.")
    if not several:
        continuations = [continuation]
    elif continuation is None:
        continuations = [None] * len(prompts)
    elif isinstance(continuation, str) or not isinstance(continuation, Sequence):
        raise InputError("a list of prompts takes a list of continuations, one for each.")
    else:
        continuations = list(continuation)
    if len(continuations) != len(prompts):
        raise InputError(
            f"{len(prompts)} prompts but {len(continuations)} continuations; give one for each (None to generate)."
        )
    return [model.encode(one) for one in prompts], continuations, several


def _continue(model: Model, continuation: Any, prompt: Encoded) -> Encoded | None:
    if continuation is None:
        return None
    return encode_continuation(
        model.tokenizer,
        continuation,
        prompt=prompt,
        vocab_size=model.vocab_size,
        encoder_decoder=model.encoder_decoder,
    )


def _one_batch(
    question: Question, prompts: list[Encoded], given: list[Any], contrasts: Sequence[Contrast | None]
) -> list[Attribution]:
    model = question.model
    texts = [_continue(model, one, prompt) for one, prompt in zip(given, prompts, strict=True)]
    if steps_need_text(question.steps):
        missing = [k for k, text in enumerate(texts) if text is None]
        if missing:
            made = model.continue_prompts([prompts[k] for k in missing], question.generate, question.seed)
            for k, text in zip(missing, made, strict=True):
                texts[k] = text
        elif question.generate:
            raise InputError("generate= belongs to a generated continuation, but the continuation is given.")
    batch, foil = _compared(question, _collate(question, prompts, texts), prompts, texts, contrasts)
    target = [question.target] if question.explains else []
    asked = [*target, *question.step_scores]
    values = measure_batch(model, batch, asked, foil, question.seed)
    here = sum_columns(batch.columns, values[0]) if target else None
    probe = _probe(question, batch, prompts, here, foil)
    answer = question.method(probe)
    if foil is not None:
        values = [foil.without_unpaired(one, steps) for one, steps in zip(asked, values, strict=True)]
    return assemble(question, probe, answer, values[: len(target)], values[len(target) :], _info(question, probe), foil)


def _compared(
    question: Question,
    batch: Batch,
    prompts: list[Encoded],
    texts: Sequence[Encoded | None],
    contrasts: Sequence[Contrast | None],
) -> tuple[Batch, Foil | None]:
    """The batch beside what it is compared with."""
    given = [one for one in contrasts if one is not None]
    if not given:
        return batch, None
    batch, foil = find_foils(question.model, batch, prompts, texts, given)
    if question.explains and "contrast" in question.target.needs:
        batch = only_paired(batch, foil)
    return batch, foil


def _collate(question: Question, prompts: list[Encoded], texts: list[Encoded | None]) -> Batch:
    import torch

    model = question.model
    start = model.decoder_start if model.encoder_decoder else None
    name = "" if start is None else model.token_name(start)
    sequences = [force(p, t, start, question.steps, name) for p, t in zip(prompts, texts, strict=True)]
    if question.explains and any(one.spans for one in sequences) and not question.target.additive:
        raise InputError(
            f"a span is the sum of its steps, and {question.target.name} does not add up over steps. "
            "Take target='logprob' (the log-probability of the whole span) or 'logit'."
        )
    wide = torch.float64 if model.dtype == torch.float64 else torch.float32
    return collate(sequences, pad=model.pad_id, accepts=model.accepts, dtype=wide)


def _probe(
    question: Question,
    batch: Batch,
    prompts: list[Encoded],
    here: Float[Tensor, "example column"] | None,
    foil: Foil | None,
) -> ModelProbe:
    import torch

    model = question.model
    compares = question.method.auto_baseline is not None and question.baseline is not None
    replaces = compares and question.method.replaces
    changes = compares or question.method.perturbs
    return ModelProbe(
        model=model,
        batch=batch,
        target=question.target,
        layers=find_layers(model.architecture, question.layer),
        groups=tuple(segment_tokens(one.tokens, question.segments) for one in batch.sequences),
        fixed=tuple(
            fixed_tokens(question, one, prompt) if changes else [False] * len(one.tokens)
            for one, prompt in zip(batch.sequences, prompts, strict=True)
        ),
        asked=tuple([token.side in question.sides for token in one.tokens] for one in batch.sequences),
        here=torch.zeros(batch.columns.shape[:2]) if here is None else here,
        baselines=resolve_baselines(model, question.baseline, batch, question.seed) if replaces else (),
        mode=question.mode,
        thorough=question.strict,
        seed=question.seed,
        foil=foil if "contrast" in question.target.needs else None,
    )


def _info(question: Question, probe: ModelProbe) -> dict[str, Any]:
    model = question.model
    return {
        "model": model.name,
        "family": model.config.model_type,
        **model.info,
        "device": str(model.device),
        "place": model.place,
        "target": question.target.name if question.explains else None,
        "target_options": dict(question.target.options) if question.explains else {},
        "unit": question.target.unit if question.explains else None,
        "step_scores": [one.label for one in question.step_scores],
        "merges": {one.label: one.merge for one in question.step_scores},
        "segments": question.segments if isinstance(question.segments, str) else "given",
        "layer": question.layer,
        "baseline": [dict(one) for found in probe.baselines for one in found.record] or None,
        "keep": question.keep,
        "sides": list(question.sides),
        "mode": question.mode,
        "seed": question.seed,
        "generate": {key: _plain(value) for key, value in question.generate.items()},
        "versions": dict(_versions()),
    }


@cache
def _versions() -> Mapping[str, str]:
    """The versions that a result belongs to; finding them reads files, which takes longer than a small call."""
    packages = ("whence", "torch", "transformers", "nnsight")
    return {**{name: version(name) for name in packages}, "python": platform.python_version()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | type(None) | list | dict) else repr(value)
