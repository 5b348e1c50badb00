"""`Model`: an nnsight model, its tokenizer, the names of its internals, and where it runs."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from whence.core.contract import Need
from whence.core.errors import InputError, UnsupportedError
from whence.models.components import Architecture
from whence.models.programs import embedding_rows, free_bytes, generate
from whence.models.quantised import rows_interact
from whence.models.remote import Remote
from whence.text.continuation import encode_generated
from whence.text.encoded import Encoded
from whence.text.prompt import encode_prompt, is_batch

if TYPE_CHECKING:
    from whence.models.components import Site
    from whence.scores import Attribution, Attributions

DEFAULT_NEW_TOKENS = 50


@dataclass(frozen=True, eq=False)
class Model:
    """What `whence.load` returns.

    It is an nnsight model whose internals have good names: inside ``with model.trace("..."):`` read and
    assign ``model.blocks[3].attn.pattern`` and the rest of ``model.sites()`` on every architecture.

    Attributes:
        nn: The nnsight model.
        tokenizer: The transformers tokenizer, or None.
        architecture: Names of the internals, and the architecture family.
        name: The name, path or class it was loaded from.
        place: Where it runs, such as ``"here"``.
        provides: What this place with this architecture can give to methods.
        lacks: Why the place does not provide the rest, and what to do about it.
        info: Provenance that goes into every result: revision, dtype, quantisation.
        remote: What runs programs, where the weights are not in this process.
    """

    nn: Any
    tokenizer: Any
    architecture: Architecture
    name: str
    place: str = "here"
    provides: frozenset[Need] = frozenset(Need)
    lacks: Mapping[Need, str] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    remote: Remote | None = None

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.nn._module.config

    @property
    def generation_config(self) -> Any:
        """The transformers generation configuration."""
        return self.nn._module.generation_config

    @property
    def encoder_decoder(self) -> bool:
        """Whether the model reads its source with an encoder of its own."""
        return self.architecture.encoder_decoder

    @property
    def device(self) -> Any:
        """Device of the input embeddings, where they are."""
        import torch

        if self.remote is not None:
            return torch.device(self.remote.facts["device"])
        return self.nn._module.get_input_embeddings().weight.device

    @property
    def dtype(self) -> Any:
        """Floating-point type the model computes in."""
        import torch

        if self.remote is not None:
            return getattr(torch, self.remote.facts["dtype"])
        return self.nn._module.dtype

    def free_bytes(self) -> int:
        """Bytes that are free where the model runs."""
        if self.remote is not None:
            return int(self.remote.facts["free"])
        return free_bytes(self.device)

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding matrix."""
        return int(self.nn._module.get_input_embeddings().weight.shape[0])

    @property
    def accepts(self) -> frozenset[str]:
        """Names of the arguments of the model's forward."""
        return frozenset(inspect.signature(type(self.nn._module).forward).parameters)

    @property
    def rows_interact(self) -> bool:
        """Whether a row's result depends on the other rows of its pass, so that each runs alone."""
        return rows_interact(self.config)

    @property
    def pad_id(self) -> int:
        """An id to fill batches with. Padding is masked everywhere, so any will do where none is named."""
        for found in (self.generation_config.pad_token_id, getattr(self.config, "pad_token_id", None)):
            if found is not None:
                return int(found)
        return 0

    @property
    def default_new_tokens(self) -> int:
        """How many tokens are generated when nobody says."""
        return DEFAULT_NEW_TOKENS

    def __repr__(self) -> str:
        layers = "+".join(str(n) for n in self.architecture.n_layers.values())
        return (
            f"Model({self.name!r}, family={self.config.model_type!r}, layers={layers}, "
            f"{self._precision()}place={self.place!r})"
        )

    def _precision(self) -> str:
        # What another place computes in is known only after a request.
        return "" if self.remote is not None else f"dtype={str(self.dtype).removeprefix('torch.')}, "

    def __reduce__(self) -> tuple[Any, ...]:
        # Inside a trace that runs elsewhere, where this class is unknown, a model is its nnsight model.
        return operator.getitem, ([self.nn], 0)

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that Model does not have: the nnsight model's (blocks, embed, lm_head ...).
        if name.startswith("__") or name == "nn":
            raise AttributeError(name)
        return getattr(self.nn, name)

    def __copy__(self) -> Model:
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        # nnsight's envoys of a copied module would still listen to the first one.
        raise UnsupportedError("a model cannot be copied with its weights; load it again.")

    def sites(self) -> tuple[Site, ...]:
        """Every internal value that can be read and edited by name, in the order of the forward pass."""
        return tuple(self.architecture.sites.values())

    def run(self, program: Callable[..., Any], **data: Any) -> Any:
        """Run a program where the model is, and bring its plain result here.

        Args:
            program: An undecorated module-level function ``program(model, **data)``.
            **data: Plain data and tensors for it.

        Returns:
            What the program returned.
        """
        import nnsight

        if self.remote is not None:
            return self.remote.run(program, data)
        model = self.nn
        with model.session():
            result = nnsight.save(program(model, **data))
        return result

    def encode(self, prompt: Any) -> Encoded:
        """Turn one prompt (text, chat messages or ids) into ids with their text."""
        return encode_prompt(self.tokenizer, prompt, self.vocab_size)

    def token_name(self, token_id: int) -> str:
        """What the tokenizer calls an id; the id itself where there is no tokenizer."""
        if self.tokenizer is None:
            return str(token_id)
        return str(self.tokenizer.convert_ids_to_tokens(token_id))

    def trace(self, prompt: Any, **options: Any) -> Any:
        """Open an nnsight trace on one prompt: ``with model.trace("Once") as tracer: ...``.

        Args:
            prompt: Text, chat messages or ids.
            **options: Passed to the model's forward, such as ``decoder_input_ids``.

        Returns:
            nnsight's tracer, to be used in a ``with`` statement.
        """
        import torch

        place: dict[str, Any] = {} if self.remote is None else {"backend": self.remote.backend()}
        ids = torch.tensor([self.encode(prompt).ids], device=None if place else self.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        if self.encoder_decoder and "decoder_input_ids" not in options:
            inputs["decoder_input_ids"] = torch.tensor([[self.decoder_start]], device=ids.device)
        return self.nn.trace(**{**inputs, **options}, **place)

    @property
    def decoder_start(self) -> int:
        """The id with which an encoder-decoder model's decoder begins.

        Raises:
            InputError: The checkpoint's configuration does not say.
        """
        for config in (self.generation_config, self.config):
            start = getattr(config, "decoder_start_token_id", None)
            if start is not None:
                return int(start)
        raise InputError(f"{self.name}: the checkpoint has no decoder_start_token_id; set model.generation_config's.")

    def generate(self, prompt: Any, *, seed: int = 0, **options: Any) -> Encoded | list[Encoded]:
        """Continue a prompt; greedily, unless options say otherwise.

        Args:
            prompt: One prompt, or a list of them.
            seed: Seed of torch's generator, for sampling.
            **options: Any option of transformers' ``generate``, such as ``max_new_tokens``.

        Returns:
            The continuation without the prompt, up to and with the end token; a list for a list.
        """
        prompts = list(prompt) if is_batch(prompt) else [prompt]
        encoded = [self.encode(p) for p in prompts]
        made = self.continue_prompts(encoded, options, seed)
        return made if is_batch(prompt) else made[0]

    def continue_prompts(
        self, prompts: Sequence[Encoded], options: Mapping[str, Any] | None, seed: int = 0
    ) -> list[Encoded]:
        """Generate the continuations of encoded prompts in one batch.

        Args:
            prompts: The prompts.
            options: Options of transformers' ``generate``.
            seed: Seed of torch's generator, for sampling.

        Returns:
            One continuation per prompt; ids as generated, up to and with the end token.

        Raises:
            InputError: An option asks for something that is not one continuation of ids, or nothing
                was generated.
        """
        import torch

        options = {"do_sample": False, "num_beams": 1, **(options or {})}
        if options.get("num_return_sequences", 1) != 1 or options.get("return_dict_in_generate"):
            raise InputError(
                "generate= makes one continuation of ids; leave out num_return_sequences and return_dict_in_generate."
            )
        config = self.generation_config
        if "max_new_tokens" in options:
            # The checkpoint's own limit would only be talked about in a warning.
            options.setdefault("max_length", None)
        elif "max_length" not in options and config.max_new_tokens is None and config.max_length is None:
            options["max_new_tokens"] = self.default_new_tokens
        eos = options.get("eos_token_id", config.eos_token_id)
        ends = set(eos if isinstance(eos, list | tuple) else [eos]) - {None}
        pad = options.setdefault("pad_token_id", self.pad_id)
        width = max(len(p) for p in prompts)
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(prompts):
            place = slice(0, len(one)) if self.encoder_decoder else slice(width - len(one), width)
            ids[row, place] = torch.tensor(one.ids)
            mask[row, place] = 1
        torch.manual_seed(seed)
        made = self.run(generate, inputs={"input_ids": ids, "attention_mask": mask}, options=options)
        skip = 1 if self.encoder_decoder else width
        continuations = []
        for one, row in zip(prompts, made[:, skip:].tolist(), strict=True):
            stop = next((k + 1 for k, token_id in enumerate(row) if token_id in ends), len(row))
            if stop == 0:
                raise InputError("the model generated nothing; raise max_new_tokens or max_length.")
            continuations.append(
                encode_generated(self.tokenizer, row[:stop], prompt=one, encoder_decoder=self.encoder_decoder)
            )
        return continuations

    def embedding_rows(self, ids: Sequence[int]) -> dict[str, dict[str, Any]]:
        """Embeddings of some ids, as the embedding module gives them, with statistics of all rows.

        Args:
            ids: The ids.

        Returns:
            For each stack: ``rows`` [id, unit], ``mean`` [unit], ``norms`` [id], ``median_norm``.
        """
        import torch

        paths = dict(self.architecture.paths["embed"])
        one = torch.tensor([[self.pad_id]])
        inputs = {"input_ids": one, "attention_mask": torch.ones_like(one)}
        inputs |= {"decoder_input_ids": one} if self.encoder_decoder else {}
        inputs = {name: value for name, value in inputs.items() if name in self.accepts}
        modules = {stack: self.nn._module.get_submodule(path) for stack, path in paths.items()}
        return self.run(
            embedding_rows,
            paths=paths,
            ids=torch.tensor(list(ids), dtype=torch.long),
            inputs=inputs,
            vocabulary={stack: int(module.weight.shape[0]) for stack, module in modules.items()},
        )

    def attribute(
        self,
        prompt: Any,
        continuation: Any = None,
        *,
        method: Any = "input_x_gradient",
        target: Any = None,
        step_scores: Sequence[Any] = (),
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

        Args:
            prompt: Text, chat messages, ids, or a list of these.
            continuation: The text to explain; None lets the model generate it.
            method: Name of a method, or a method object.
            target: The step function that is explained.
            step_scores: Step functions to report beside the scores.
            contrast: What step functions that compare are to compare with.
            steps: Which tokens to explain.
            segments: What a feature is.
            layer: Attribute to an intermediate layer instead of the input.
            baseline: What a feature is compared with.
            keep: Tokens that keep their true value in the baseline.
            sides: The source, the generated prefix, or both.
            mode: Derivatives in reverse or forward mode.
            derivative: Exact derivatives, or finite differences.
            seed: Seed of everything that samples.
            batch_size: Prompts per pass.
            progress: Show a progress bar for anything longer than a second.
            strict: Raise when an identity of the method does not hold.
            generate: Options of transformers' ``generate``.
            **method_options: Options of the method.

        Returns:
            The attribution, or one per prompt. `whence.attribute.attribute` says all about the arguments.
        """
        # The one call up the floors of this class: the facade that users expect on the model itself.
        return import_module("whence.attribute").attribute(
            self,
            prompt,
            continuation,
            method=method,
            target=target,
            step_scores=step_scores,
            contrast=contrast,
            steps=steps,
            segments=segments,
            layer=layer,
            baseline=baseline,
            keep=keep,
            sides=sides,
            mode=mode,
            derivative=derivative,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
            strict=strict,
            generate=generate,
            **method_options,
        )

    def estimate(self, prompt: Any, continuation: Any = None, **options: Any) -> Any:
        """Passes and peak memory of the same call to `attribute`, before running it."""
        return import_module("whence.attribute").estimate(self, prompt, continuation, **options)
