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
        "deeplift": "whence.methods.gradient.deeplift:DeepLift",
        "input_x_gradient": "whence.methods.gradient.input_x_gradient:InputXGradient",
        "integrated_gradients": "whence.methods.gradient.integrated_gradients:IntegratedGradients",
        "saliency": "whence.methods.gradient.saliency:Saliency",
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
