"""The registry of attribution methods: names to classes, listable without importing any of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from whence.core.contract import AbstractMethod
from whence.core.errors import InputError, unknown_name
from whence.core.registry import Registry

METHODS = Registry(
    "method",
    "whence.methods",
    {
        "alti": "whence.methods.internals.alti:ALTI",
        "alti_logit": "whence.methods.internals.alti_logit:ALTILogit",
        "attention": "whence.methods.internals.attention:Attention",
        "attention_rollout": "whence.methods.internals.attention_rollout:AttentionRollout",
        "contextcite": "whence.methods.perturbation.contextcite:ContextCite",
        "deeplift": "whence.methods.gradient.deeplift:DeepLift",
        "direct_logit": "whence.methods.internals.direct_logit:DirectLogit",
        "discretized_integrated_gradients": (
            "whence.methods.gradient.discretized_integrated_gradients:DiscretizedIntegratedGradients"
        ),
        "flashtrace": "whence.methods.internals.flashtrace:FlashTrace",
        "gradient_shap": "whence.methods.gradient.gradient_shap:GradientShap",
        "information_flow": "whence.methods.internals.information_flow:InformationFlow",
        "input_x_gradient": "whence.methods.gradient.input_x_gradient:InputXGradient",
        "integrated_gradients": "whence.methods.gradient.integrated_gradients:IntegratedGradients",
        "jacobian_scope": "whence.methods.gradient.jacobian_scope:JacobianScope",
        "kernel_shap": "whence.methods.perturbation.kernel_shap:KernelShap",
        "lime": "whence.methods.perturbation.lime:Lime",
        "loo_segments": "whence.methods.perturbation.loo_segments:LooSegments",
        "none": "whence.methods.none:NoAttribution",
        "occlusion": "whence.methods.perturbation.occlusion:Occlusion",
        "reagent": "whence.methods.perturbation.reagent:ReAGent",
        "saliency": "whence.methods.gradient.saliency:Saliency",
        "sequential_integrated_gradients": (
            "whence.methods.gradient.sequential_integrated_gradients:SequentialIntegratedGradients"
        ),
        "shapley_sampling": "whence.methods.perturbation.shapley_sampling:ShapleySampling",
        "smoothgrad": "whence.methods.gradient.smoothgrad:SmoothGrad",
        "squaregrad": "whence.methods.gradient.squaregrad:SquareGrad",
        "value_norms": "whence.methods.internals.value_norms:ValueNorms",
        "value_zeroing": "whence.methods.internals.value_zeroing:ValueZeroing",
        "vargrad": "whence.methods.gradient.vargrad:VarGrad",
    },
)


def resolve_method(method: Any, options: dict[str, Any]) -> AbstractMethod:
    """A method object from a name with options, or from an object.

    Args:
        method: The name of a method, or a method object such as ``IntegratedGradients(n_steps=100)``.
        options: Options of the method, when it is given by name.

    Returns:
        The method.

    Raises:
        UnknownNameError: No method, or no option of it, has that name.
        InputError: Options were given beside a method object, or a value is out of range.
    """
    if isinstance(method, AbstractMethod):
        if options:
            raise InputError(
                f"options {', '.join(sorted(options))} beside a method object: set them on the object itself."
            )
        return method
    if not isinstance(method, str):
        raise InputError(f"method is a name or a method object, not {method!r:.80}")
    found = METHODS[method]
    known = [field.name for field in dataclasses.fields(found)]
    for name in options:
        if name not in known:
            raise unknown_name(f"option of {method}:", name, known or ["(it has none)"])
    return found(**options)
