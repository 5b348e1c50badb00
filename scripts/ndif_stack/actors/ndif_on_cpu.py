"""NDIF's own actors on a machine without a GPU, put in place through NDIF's own settings.

Reading a request, running it, the sandbox, results and errors all stay NDIF's; only placement differs.
"""

from __future__ import annotations

from typing import Any

import ray
import torch
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.mixins.remotable import Remotable

if not torch.cuda.is_available():
    # NDIF calls this after every request, and a CPU build of torch raises.
    torch.cuda.synchronize = lambda device=None: None


class _CPUModelDeployment(SandboxModelDeployment):
    """Serve a model from the CPU, with ordinary keys in the sandbox and trusted ones without."""

    CACHEABLE = False  # parking a replica means moving its weights off a GPU

    def __init__(self, *args: Any, gpu_mem_bytes_by_id: dict[int, int] | None = None, **kwargs: Any) -> None:
        del gpu_mem_bytes_by_id  # the share of the pretended GPU
        super().__init__(*args, gpu_mem_bytes_by_id={}, **kwargs)

    def load_from_disk(self) -> HuggingFaceModel:
        model = HuggingFaceModel.from_model_key(self.model_key, dispatch=True, dtype=self.dtype_name, **self.kwargs)
        model._module.requires_grad_(False)
        return model


class _Controller(_ControllerActor):
    """The controller of ndif 0.1.2, made to agree with nnsight 0.8.1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # In the actor's own process, because Ray sends its class there by value.
        _accept_trust_remote_code()
        super().__init__(*args, **kwargs)


def _accept_trust_remote_code() -> None:
    """Let nnsight ignore an argument that NDIF still passes; nnsight 0.8.1 moved it into the model key."""
    for name in ("describe_checkpoint", "max_tp_size"):
        original = getattr(Remotable, name).__func__

        def method(
            cls: type, *args: Any, original: Any = original, trust_remote_code: bool = False, **kwargs: Any
        ) -> Any:
            del trust_remote_code
            return original(cls, *args, **kwargs)

        setattr(Remotable, name, classmethod(method))


@ray.remote(num_cpus=0, max_restarts=-1)
class CPUModelActor(_CPUModelDeployment):
    """What NDIF_DEFAULT_MODEL_ACTOR_CLASS names."""


@ray.remote(num_cpus=1, num_gpus=0, max_restarts=-1, resources={"head": 1})
class CPUControllerActor(_Controller):
    """What NDIF_CONTROLLER_IMPORT_PATH names."""
