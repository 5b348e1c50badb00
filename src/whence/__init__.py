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
    from whence.core.errors import TargetIndependentOfInput as TargetIndependentOfInput
    from whence.core.errors import UnknownNameError as UnknownNameError
    from whence.core.errors import UnsupportedError as UnsupportedError
    from whence.core.errors import WhenceError as WhenceError
    from whence.methods import METHODS as METHODS
    from whence.methods.gradient.deeplift import DeepLift as DeepLift
    from whence.methods.gradient.discretized_integrated_gradients import (
        DiscretizedIntegratedGradients as DiscretizedIntegratedGradients,
    )
    from whence.methods.gradient.gradient_shap import GradientShap as GradientShap
    from whence.methods.gradient.input_x_gradient import InputXGradient as InputXGradient
    from whence.methods.gradient.integrated_gradients import IntegratedGradients as IntegratedGradients
    from whence.methods.gradient.jacobian_scope import JacobianScope as JacobianScope
    from whence.methods.gradient.saliency import Saliency as Saliency
    from whence.methods.gradient.sequential_integrated_gradients import (
        SequentialIntegratedGradients as SequentialIntegratedGradients,
    )
    from whence.methods.gradient.smoothgrad import SmoothGrad as SmoothGrad
    from whence.methods.gradient.squaregrad import SquareGrad as SquareGrad
    from whence.methods.gradient.vargrad import VarGrad as VarGrad
    from whence.methods.internals.alti import ALTI as ALTI
    from whence.methods.internals.alti_logit import ALTILogit as ALTILogit
    from whence.methods.internals.attention import Attention as Attention
    from whence.methods.internals.attention_rollout import AttentionRollout as AttentionRollout
    from whence.methods.internals.direct_logit import DirectLogit as DirectLogit
    from whence.methods.internals.flashtrace import FlashTrace as FlashTrace
    from whence.methods.internals.information_flow import InformationFlow as InformationFlow
    from whence.methods.internals.value_norms import ValueNorms as ValueNorms
    from whence.methods.internals.value_zeroing import ValueZeroing as ValueZeroing
    from whence.methods.perturbation.contextcite import ContextCite as ContextCite
    from whence.methods.perturbation.kernel_shap import KernelShap as KernelShap
    from whence.methods.perturbation.lime import Lime as Lime
    from whence.methods.perturbation.loo_segments import LooSegments as LooSegments
    from whence.methods.perturbation.occlusion import Occlusion as Occlusion
    from whence.methods.perturbation.reagent import ReAGent as ReAGent
    from whence.methods.perturbation.shapley_sampling import ShapleySampling as ShapleySampling
    from whence.models.loading import load as load
    from whence.models.model import Model as Model
    from whence.scores import AGGREGATORS as AGGREGATORS
    from whence.scores import Attribution as Attribution
    from whence.scores import Attributions as Attributions
    from whence.scores import Op as Op
    from whence.scores import Pipeline as Pipeline
    from whence.scores import Scores as Scores
    from whence.scores import aggregate as aggregate
    from whence.scores import aggregator as aggregator
    from whence.scores import load_attribution as load_attribution
    from whence.step_functions import STEP_FUNCTIONS as STEP_FUNCTIONS
    from whence.step_functions import StepFunction as StepFunction
    from whence.step_functions.custom import step_function as step_function
    from whence.text.alignment import Alignment as Alignment
    from whence.text.alignment import align as align
    from whence.text.embedders import load_embedder as load_embedder
    from whence.views.explain import explain as explain

# Where each public name lives; nothing of it is imported before it is used.
_HOME = {
    "AGGREGATORS": "scores",
    "ALTI": "methods.internals.alti",
    "METHODS": "methods",
    "STEP_FUNCTIONS": "step_functions",
    "ALTILogit": "methods.internals.alti_logit",
    "Alignment": "text.alignment",
    "Attention": "methods.internals.attention",
    "AttentionRollout": "methods.internals.attention_rollout",
    "Attribution": "scores",
    "Attributions": "scores",
    "CheckFailed": "core.errors",
    "ContextCite": "methods.perturbation.contextcite",
    "DeepLift": "methods.gradient.deeplift",
    "DirectLogit": "methods.internals.direct_logit",
    "DiscretizedIntegratedGradients": "methods.gradient.discretized_integrated_gradients",
    "FileFormatError": "core.errors",
    "FlashTrace": "methods.internals.flashtrace",
    "GradientShap": "methods.gradient.gradient_shap",
    "InformationFlow": "methods.internals.information_flow",
    "InputError": "core.errors",
    "InputXGradient": "methods.gradient.input_x_gradient",
    "IntegratedGradients": "methods.gradient.integrated_gradients",
    "JacobianScope": "methods.gradient.jacobian_scope",
    "KernelShap": "methods.perturbation.kernel_shap",
    "Lime": "methods.perturbation.lime",
    "LooSegments": "methods.perturbation.loo_segments",
    "Model": "models.model",
    "ModelError": "core.errors",
    "NonFiniteScore": "core.errors",
    "Occlusion": "methods.perturbation.occlusion",
    "Op": "scores",
    "Pipeline": "scores",
    "ReAGent": "methods.perturbation.reagent",
    "RemoteError": "core.errors",
    "Saliency": "methods.gradient.saliency",
    "Scores": "scores",
    "SequentialIntegratedGradients": "methods.gradient.sequential_integrated_gradients",
    "ShapleySampling": "methods.perturbation.shapley_sampling",
    "SmoothGrad": "methods.gradient.smoothgrad",
    "SquareGrad": "methods.gradient.squaregrad",
    "StepFunction": "step_functions",
    "SwarmError": "core.errors",
    "TargetIndependentOfInput": "core.errors",
    "UnknownNameError": "core.errors",
    "UnsupportedError": "core.errors",
    "ValueNorms": "methods.internals.value_norms",
    "ValueZeroing": "methods.internals.value_zeroing",
    "VarGrad": "methods.gradient.vargrad",
    "WhenceError": "core.errors",
    "aggregate": "scores",
    "aggregator": "scores",
    "align": "text.alignment",
    "explain": "views.explain",
    "load": "models.loading",
    "load_attribution": "scores",
    "load_embedder": "text.embedders",
    "step_function": "step_functions.custom",
}

__all__ = [
    "AGGREGATORS",
    "ALTI",
    "METHODS",
    "STEP_FUNCTIONS",
    "ALTILogit",
    "Alignment",
    "Attention",
    "AttentionRollout",
    "Attribution",
    "Attributions",
    "CheckFailed",
    "ContextCite",
    "DeepLift",
    "DirectLogit",
    "DiscretizedIntegratedGradients",
    "FileFormatError",
    "FlashTrace",
    "GradientShap",
    "InformationFlow",
    "InputError",
    "InputXGradient",
    "IntegratedGradients",
    "JacobianScope",
    "KernelShap",
    "Lime",
    "LooSegments",
    "Model",
    "ModelError",
    "NonFiniteScore",
    "Occlusion",
    "Op",
    "Pipeline",
    "ReAGent",
    "RemoteError",
    "Saliency",
    "Scores",
    "SequentialIntegratedGradients",
    "ShapleySampling",
    "SmoothGrad",
    "SquareGrad",
    "StepFunction",
    "SwarmError",
    "TargetIndependentOfInput",
    "UnknownNameError",
    "UnsupportedError",
    "ValueNorms",
    "ValueZeroing",
    "VarGrad",
    "WhenceError",
    "__version__",
    "aggregate",
    "aggregator",
    "align",
    "explain",
    "load",
    "load_attribution",
    "load_embedder",
    "step_function",
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
