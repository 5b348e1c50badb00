"""whence: which parts of the input made the model generate this?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from whence.core.errors import CheckFailed as CheckFailed
    from whence.core.errors import FileFormatError as FileFormatError
    from whence.core.errors import InputError as InputError
    from whence.core.errors import ModelError as ModelError
    from whence.core.errors import NonFiniteScore as NonFiniteScore
    from whence.core.errors import RemoteError as RemoteError
    from whence.core.errors import SwarmError as SwarmError
    from whence.core.errors import UnknownNameError as UnknownNameError
    from whence.core.errors import UnsupportedError as UnsupportedError
    from whence.core.errors import WhenceError as WhenceError
    from whence.methods import METHODS as METHODS
    from whence.methods.gradient.deeplift import DeepLift as DeepLift
    from whence.methods.gradient.input_x_gradient import InputXGradient as InputXGradient
    from whence.methods.gradient.integrated_gradients import IntegratedGradients as IntegratedGradients
    from whence.methods.gradient.saliency import Saliency as Saliency
    from whence.models.loading import load as load
    from whence.models.model import Model as Model
    from whence.scores import Attribution as Attribution
    from whence.scores import Attributions as Attributions
    from whence.scores import Scores as Scores
    from whence.scores import load_attribution as load_attribution
    from whence.step_functions import STEP_FUNCTIONS as STEP_FUNCTIONS
    from whence.step_functions import StepFunction as StepFunction

# Where each public name lives; nothing of it is imported before it is used.
_HOME = {
    "METHODS": "methods",
    "STEP_FUNCTIONS": "step_functions",
    "Attribution": "scores",
    "Attributions": "scores",
    "CheckFailed": "core.errors",
    "DeepLift": "methods.gradient.deeplift",
    "FileFormatError": "core.errors",
    "InputError": "core.errors",
    "InputXGradient": "methods.gradient.input_x_gradient",
    "IntegratedGradients": "methods.gradient.integrated_gradients",
    "Model": "models.model",
    "ModelError": "core.errors",
    "NonFiniteScore": "core.errors",
    "RemoteError": "core.errors",
    "Saliency": "methods.gradient.saliency",
    "Scores": "scores",
    "StepFunction": "step_functions",
    "SwarmError": "core.errors",
    "UnknownNameError": "core.errors",
    "UnsupportedError": "core.errors",
    "WhenceError": "core.errors",
    "load": "models.loading",
    "load_attribution": "scores",
}

__all__ = [
    "METHODS",
    "STEP_FUNCTIONS",
    "Attribution",
    "Attributions",
    "CheckFailed",
    "DeepLift",
    "FileFormatError",
    "InputError",
    "InputXGradient",
    "IntegratedGradients",
    "Model",
    "ModelError",
    "NonFiniteScore",
    "RemoteError",
    "Saliency",
    "Scores",
    "StepFunction",
    "SwarmError",
    "UnknownNameError",
    "UnsupportedError",
    "WhenceError",
    "__version__",
    "load",
    "load_attribution",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("whence")
    elif name in _HOME:
        value = getattr(import_module(f"whence.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
