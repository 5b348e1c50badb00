"""Inseq and Captum, called as their documentation says, on a model and a text that whence has as well."""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.bench_models import Text
from benchmarks.peer_rows import Row


class Inseq:
    """Inseq 0.7: one pass of the prefix for every explained token.

    Args:
        model: A transformers model.
        tokenizer: Its tokenizer.
        text: The text.
    """

    def __init__(self, model: Any, tokenizer: Any, text: Text) -> None:
        logging.getLogger("inseq").setLevel(logging.ERROR)
        self._model = import_module("inseq").load_model(model, "saliency", tokenizer=tokenizer)
        self._text = text
        self._both = model.config.is_encoder_decoder

    def run(self, row: Row, steps: int, points: int) -> tuple[np.ndarray, int]:
        """Scores of steps in the middle of the continuation, whose cost is that of the mean step.

        Args:
            row: What is asked.
            steps: How many steps.
            points: Points or samples.

        Returns:
            Scores [step, token, ...], and the first step.
        """
        if row.method == "reagent":
            _require_tagger()
        text, count = self._text, len(self._text.generated)
        first = (count - steps) // 2
        given = {**row.given, **({row.points: points} if row.points else {})}
        if self._both:
            prompt, forced, start, stop = text.prompt, text.continuation.strip(), first + 1, first + steps
        else:
            prompt, forced, start = text.prompt, text.prompt + text.continuation, len(text.source) + first
            stop = start + steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = self._model.attribute(
                prompt,
                forced,
                method=row.method,
                show_progress=False,
                attr_pos_start=start,
                attr_pos_end=stop,
                **given,
            )[0]
        values = out.source_attributions if self._both else out.target_attributions
        return np.moveaxis(values.double().numpy(), 1, 0), first


def _require_tagger() -> None:
    """Inseq's ReAGent wants a file of NLTK's, and would fetch it."""
    data = import_module("nltk").data
    try:
        data.find("taggers/averaged_perceptron_tagger_eng")
    except LookupError:
        raise RuntimeError("needs NLTK's averaged_perceptron_tagger_eng, which is not installed") from None


class Captum:
    """Captum's attribution of language models: perturbations, or gradients at the embeddings.

    Args:
        model: A transformers model.
        tokenizer: Its tokenizer.
        text: The text.
    """

    def __init__(self, model: Any, tokenizer: Any, text: Text) -> None:
        self._model, self._tokenizer, self._text = model, tokenizer, text

    def run(self, row: Row, steps: int, points: int) -> tuple[np.ndarray, int]:
        """Scores of the first steps of the continuation; arguments and result as those of `Inseq.run`."""
        captum = import_module("captum.attr")
        kind = getattr(captum, row.method)
        words = " ".join(self._text.continuation.split()[:steps])
        given = {**row.given, **({row.points: points} if row.points else {})}
        baseline = self._tokenizer.unk_token_id
        asked = captum.TextTokenInput(self._text.prompt, self._tokenizer, baselines=baseline)
        if row.method.startswith("Layer"):
            inner = kind(self._model, self._model.get_input_embeddings())
            outer: Any = captum.LLMGradientAttribution(inner, self._tokenizer)
        else:
            outer = captum.LLMAttribution(kind(self._model), self._tokenizer)
            # With Transformers 5 the cache of an earlier pass makes other scores from the second step on.
            given["use_cached_outputs"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = outer.attribute(asked, target=words, **given)
        # Its regressions are of the whole continuation only.
        values = found.seq_attr[None] if found.token_attr is None else found.token_attr
        return values.detach().double().cpu().numpy(), 0
