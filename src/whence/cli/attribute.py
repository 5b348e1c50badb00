"""``whence attribute``: the main job from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from whence.cli.errors import readable_errors
from whence.cli.options import AGGREGATE, PLUGIN
from whence.cli.plugins import load_plugins
from whence.core.named import parse_named, parse_options, parse_value

EXAMPLES = """Examples:

whence attribute "Once upon a time"

whence attribute "Once upon a time" --method integrated_gradients:n_steps=20 --target logprob

whence attribute "The manager said that she was tired." --model whence/en-it --segments word

whence attribute "The capital of France is" --continuation " Paris" --model gpt2 --save paris.json

whence attribute "Can you stop the dog from" --model gpt2 --continuation " barking" --contrast " crying" \\
    --target contrast_prob_diff

whence attribute "Once upon a time" --plugin my_functions.py --target my_function -o my_option=3

whence attribute "Once upon a time" --method attention --aggregate "layer:1,head:max,words"

whence attribute "First" "Second" --max-new-tokens 10 --json > both.json"""


def attribute(
    text: Annotated[list[str], typer.Argument(help="Prompts; '-' reads one prompt per line from standard input.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Bundled name, local folder or Hugging Face hub id.")
    ] = "whence/stories",
    method: Annotated[
        str, typer.Option(help="Method, with options after a colon: integrated_gradients:n_steps=20.")
    ] = "input_x_gradient",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="Option of the method or a step function, as name=value; repeatable."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Step function that is explained, with options as in kl_divergence:top_k=10; usually "
            "probability, of spans logprob."
        ),
    ] = None,
    step_score: Annotated[
        list[str] | None, typer.Option(help="Step function to report beside the scores; repeatable.")
    ] = None,
    continuation: Annotated[
        list[str] | None, typer.Option(help="Text to explain instead of generating; one for each prompt.")
    ] = None,
    contrast: Annotated[
        list[str] | None, typer.Option(help="Continuation to compare with; one for each prompt.")
    ] = None,
    contrast_source: Annotated[
        list[str] | None, typer.Option(help="Prompt (or source) to compare with; one for each prompt.")
    ] = None,
    align: Annotated[
        str | None, typer.Option(help="How the continuations are aligned: auto, lexical, or pairs as JSON.")
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="Where the other continuation is looked up: in the main run, or its own.")
    ] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help=PLUGIN)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to generate at most.")] = None,
    steps: Annotated[
        str | None, typer.Option(help="Steps to explain: a number, a range a:b, 'whole' (as one), 'prompt', 'all'.")
    ] = None,
    segments: Annotated[
        str | None, typer.Option(help="What a feature is: token (usually), word, sentence, line, paragraph.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Block number, site name (blocks.3.resid_post), or 'all'.")] = None,
    baseline: Annotated[
        str, typer.Option(help="What features are compared with: auto, mask, unk, pad, mean, zero, a token.")
    ] = "auto",
    mode: Annotated[str, typer.Option(help="Derivatives: auto, reverse or forward.")] = "auto",
    derivative: Annotated[str, typer.Option(help="exact, or finite where a place gives no gradients.")] = "exact",
    dtype: Annotated[
        str | None, typer.Option(help="float32, float64, bfloat16, float16, auto; quantised: nf4, fp4, int8.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0.")] = None,
    remote: Annotated[
        str | None, typer.Option(help="Where the model runs, if not here: ndif, a server's address, petals.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="NDIF_API_KEY", show_envvar=True, help="Key for the server.")
    ] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Address of a Petals swarm; repeatable.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a request elsewhere may take.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that samples.")] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Prompts per pass.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when a check does not hold.")] = False,
    aggregate: Annotated[list[str] | None, typer.Option(help=AGGREGATE)] = None,
    save: Annotated[Path | None, typer.Option(help="Write the raw result to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Attribute every generated token to the input and to the text generated before it."""
    with readable_errors():
        name, inline = parse_named(method)
        options = parse_options(option or [])
        for key in set(inline) & set(options):
            raise typer.BadParameter(f"the option {key} is given in --method and in --option.")
        options |= inline
        prompts = _prompts(text)
        if continuation is not None and max_new_tokens is not None:
            raise typer.BadParameter("--max-new-tokens generates, but --continuation gives the text already.")

        import whence

        load_plugins(plugin or [])
        # A mistake in it should not cost a run.
        operators = whence.Pipeline(*(aggregate or ()))
        # The key may be in the environment for other uses.
        place = {
            "remote": remote,
            "api_key": api_key if remote is not None else None,
            "peers": peer,
            "timeout": timeout,
        }
        loaded = whence.load(model, dtype=dtype, device=device, **place)
        single = len(prompts) == 1
        given: Any = None
        if continuation is not None:
            given = continuation[0] if single and len(continuation) == 1 else continuation
        out = loaded.attribute(
            prompts[0] if single else prompts,
            given,
            method=name,
            target=target,
            step_scores=tuple(step_score or ()),
            contrast=parse_contrast_options(contrast, contrast_source, align, evaluate, len(prompts)),
            steps=parse_steps(steps),
            segments=segments,
            layer=None if layer is None else parse_value(layer),
            baseline=parse_value(baseline),
            mode=mode,
            derivative=derivative,
            seed=seed,
            batch_size=batch_size,
            progress=not quiet,
            strict=strict,
            generate=None if max_new_tokens is None else {"max_new_tokens": max_new_tokens},
            **options,
        )
        if save is not None:
            out.save(save)
        out = out.aggregate(operators)
        if as_json:
            made = out.to_dict() if isinstance(out, whence.Attribution) else [one.to_dict() for one in out]
            typer.echo(json.dumps(made, ensure_ascii=False, allow_nan=False))
        elif not quiet:
            out.show()


def _prompts(text: list[str]) -> list[str]:
    prompts: list[str] = []
    for one in text:
        prompts += [line for line in sys.stdin.read().splitlines() if line.strip()] if one == "-" else [one]
    if not prompts:
        raise typer.BadParameter("standard input had no prompt.")
    return prompts


def parse_contrast_options(
    continuations: list[str] | None, sources: list[str] | None, align: str | None, evaluate: str | None, count: int
) -> Any:
    """The contrast of one prompt, or a list of one for each, as `attribute` takes it."""
    if continuations is None and sources is None:
        if align is not None or evaluate is not None:
            raise typer.BadParameter("--align and --evaluate say how to compare; give --contrast or --contrast-source.")
        return None
    for option, given in (("--contrast", continuations), ("--contrast-source", sources)):
        if given is not None and len(given) != count:
            raise typer.BadParameter(f"{option} is given {len(given)} times for {count} prompts; one for each.")
    both = zip(continuations or [None] * count, sources or [None] * count, strict=True)
    pairs = None if align is None else parse_value(align)
    made = [{"continuation": text, "source": source, "align": pairs, "evaluate": evaluate} for text, source in both]
    return made[0] if count == 1 else made


def parse_steps(text: str | None) -> Any:
    """``"3"``, ``"2:5"``, ``"whole"``, ``"prompt"`` or ``"all"`` as `attribute` takes it."""
    if text is None or text in ("generated", "whole", "prompt", "all"):
        return text
    first, colon, last = text.partition(":")
    try:
        if not colon:
            return int(first)
        return slice(int(first) if first else None, int(last) if last else None)
    except ValueError:
        raise typer.BadParameter(
            f"--steps is a number, a range a:b, 'whole', 'prompt' or 'all', not {text!r}."
        ) from None
