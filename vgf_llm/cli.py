# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The console script `vgf`: what a saved VGF model is made of, a response from it, and what other programs run.

vgf version
vgf train --model_name_or_path MODEL --dataset_name DATA --reward_funcs accuracy_reward --output_dir PATH
vgf info PATH
vgf generate PATH "How many legs have three cats?" --transport_steps 8 --num_particles 4
vgf demo PATH
vgf export PATH OUT
vgf serve PATH --port 8000
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vgf_llm import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vgf_llm.models import VGFModel

_MAX_NEW_TOKENS = 256  # transformers would stop after 20
_SAMPLING_OPTIONS: dict[str, tuple[type, str]] = {
    "max_new_tokens": (int, f"longest response, in tokens (default: {_MAX_NEW_TOKENS})"),
    "temperature": (float, "sampling temperature, applied after transport"),
    "top_p": (float, "nucleus, applied after transport"),
    "top_k": (int, "most likely tokens kept after transport"),
}
# Fields of TRL's DistillationConfig; those left out have the defaults of `vgf_llm.export.distil_budget`.
_DISTILLATION_OPTIONS: dict[str, tuple[type, str]] = {
    "max_steps": (int, "steps (default: 200; 0 only measures)"),
    "learning_rate": (float, "of the LoRA that learns it (default: 1e-4)"),
    "per_device_train_batch_size": (int, "prompts of a step (default: 16)"),
    "max_completion_length": (int, "longest response, in tokens (default: TRL's)"),
    "seed": (int, "seed (default: TRL's)"),
}
# What loading and generation raise on bad input; anything else is a bug, and its traceback is wanted.
_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError)
_TRAINING_DATA = ("value_buffer", "value_round")  # beside the model in a checkpoint
# Folders of a saved model and what their weights are.
_PARTS = {
    ".": "policy",
    "value": "value adapter (LoRA)",
    "value_model": "value model",
    "ref_model": "reference model",
    "sequence_value": "sequence value",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        0, or 1 after an error that was printed to stderr. A wrong command line exits with 2, as argparse does.

    Example:
        >>> main(["version"]) == 0
        vgf-llm ...
        True
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["train"]:  # its options are the fields of dataclasses, and its parser is TRL's
        return _run(lambda: _train(argv[1:]))
    args = _parser(generates="generate" in argv[:1]).parse_args(argv)
    return _run(lambda: args.run(args))


def _train(argv: list[str]) -> None:
    from vgf_llm.train import launch

    launch(argv)


def _run(command: Callable[[], None]) -> int:
    try:
        command()
    except KeyboardInterrupt:
        return 130
    except _EXPECTED as error:
        print(f"vgf: error: {error or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


def _parser(*, generates: bool) -> argparse.ArgumentParser:
    """The parser; `generate` has the options of transport only if it is the command, since they import transformers."""
    parser = argparse.ArgumentParser(prog="vgf", description="Saved VGF models: what they are, and what they say.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=lambda args: print(f"vgf-llm {__version__}"))

    commands.add_parser("train", help="train a value; `vgf train --help` lists its options")

    info = commands.add_parser("info", help="show what a saved model is made of")
    info.add_argument("path", help="folder that VGFModel.save_pretrained or VGFTrainer.save_model wrote")
    info.set_defaults(run=_info)

    serve = commands.add_parser("serve", help="serve a model with transport over an OpenAI-compatible endpoint (vLLM)")
    serve.add_argument("path", help="folder of a VGF model")
    serve.add_argument("engine", nargs=argparse.REMAINDER, help="options of vLLM's server, such as --port 8000")
    serve.set_defaults(run=_serve)

    export = commands.add_parser("export", help="write the model behind a log_ratio value as a plain model")
    export.add_argument("path", help="folder or hub id of a VGF model with a log_ratio value")
    export.add_argument("out", help="folder to write, new or empty; transformers and vLLM load it")
    export.add_argument("--budget", type=float, default=1.0, help="L * epsilon of the model (default: 1)")
    distil = export.add_argument_group("distillation to budgets other than 1")
    distil.add_argument("--prompts", help="JSON lines with a field `prompt`, or a hub dataset with that column")
    distil.add_argument("--reward_funcs", nargs="+", help="as of `vgf train`; the report has the mean reward too")
    _add_options(distil, _DISTILLATION_OPTIONS)
    _add_model_options(export, device=True)
    export.set_defaults(run=_export)

    demo = commands.add_parser("demo", help="open a page that answers prompts at budgets of your own (gradio)")
    demo.add_argument("path", help="folder or hub id of a VGF model")
    demo.add_argument("--prompt", default="", help="what stands in the page's box at first")
    server = demo.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address that it listens on (default: %(default)s)")
    server.add_argument("--port", type=int, help="port (default: the first free one from 7860 on)")
    server.add_argument("--share", action="store_true", help="make a public link, through servers of gradio")
    _add_sampling_options(demo)
    _add_prompt_options(demo.add_argument_group("prompt"))
    _add_model_options(demo, device=True)
    demo.set_defaults(run=_demo)

    generate = commands.add_parser("generate", help="answer a prompt")
    if generates:
        _add_generate_options(generate)
    return parser


def _add_generate_options(generate: argparse.ArgumentParser) -> None:
    from vgf_llm.generation.options import TRANSPORT_OPTIONS

    generate.add_argument("path", help="folder or hub id of a VGF model")
    generate.add_argument("prompt", help="the prompt; `-` reads it from standard input")
    transport = {name: (option.kind, option.text) for name, option in TRANSPORT_OPTIONS.items()}
    _add_options(generate.add_argument_group("transport, the model's own where left out"), transport)
    sampling = _add_sampling_options(generate)
    sampling.add_argument("--greedy", action="store_true", help="take the most likely token instead of sampling")
    sampling.add_argument("--seed", type=int, help="seed of the sampling; the same seed gives the same responses")
    output = generate.add_argument_group("input and output")
    _add_prompt_options(output)
    output.add_argument(
        "--answer_regex", type=_pattern, help="votes compare its last match (first group) instead of whole responses"
    )
    shown = output.add_mutually_exclusive_group()
    shown.add_argument("--all", action="store_true", help="print every particle with its value and its KL")
    shown.add_argument("--stream", action="store_true", help="print tokens as they come; one particle")
    _add_model_options(generate, device=True)
    generate.set_defaults(run=_generate)


def _add_sampling_options(command: argparse.ArgumentParser) -> Any:
    sampling = command.add_argument_group("sampling, the policy's generation_config where left out")
    _add_options(sampling, _SAMPLING_OPTIONS)
    return sampling


def _add_prompt_options(group: Any) -> None:
    group.add_argument("--raw", action="store_true", help="do not apply the tokenizer's chat template")
    group.add_argument("--system_prompt", help="first message of the chat")
    group.add_argument(
        "--chat_template_kwargs",
        type=_json_object,
        metavar="JSON",
        help="switches of the chat template, such as '{\"enable_thinking\": false}'",
    )


def _add_model_options(command: argparse.ArgumentParser, *, device: bool = False) -> None:
    model = command.add_argument_group("model")
    model.add_argument("--base_model", help="policy, for a folder without its weights")
    model.add_argument("--tokenizer", help="tokenizer, for a folder without one")
    model.add_argument("--dtype", default="auto", help="dtype of the weights (default: as saved)")
    model.add_argument("--trust_remote_code", action="store_true", help="run code that ships with the model")
    if device:
        model.add_argument("--device", help="where the model runs (default: cuda where there is one, else cpu)")


def _add_options(group: Any, options: dict[str, tuple[type, str]]) -> None:
    for name, (kind, text) in options.items():
        # No defaults here: None means that the saved model's own setting stands.
        how: dict[str, Any] = {"type": kind, "metavar": kind.__name__.upper()}
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        group.add_argument(f"--{name}", default=None, help=text.replace("%", "%%"), **how)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from error


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must be a JSON object, such as '{{\"enable_thinking\": false}}'")
    return found


# serve and info


def _serve(args: argparse.Namespace) -> None:
    from vgf_llm.serving.server import serve

    serve(args.path, args.engine)


def _info(args: argparse.Namespace) -> None:
    from vgf_llm.models import VGFModelConfig

    directory = Path(args.path)
    settings = asdict(VGFModelConfig.load(directory))
    transport = settings.pop("transport")
    budget = transport["transport_steps"] * transport["step_size"]
    del settings["files"]
    console = Console()
    console.print(
        _table(directory, ("setting", "value"), {**settings, "policy weights": _policy_weights(directory)}.items())
    )
    transport["transport_steps * step_size"] = f"{budget:g}"
    console.print(_table("transport defaults", ("setting", "value"), transport.items()))
    console.print(_table("weights", ("file", "part", "parameters", "size"), _weights(directory)))


def _policy_weights(directory: Path) -> str:
    if (directory / "adapter_config.json").is_file():
        return "a LoRA adapter in this folder"
    return "in this folder" if (directory / "config.json").is_file() else "not here, loaded from the base model"


def _weights(directory: Path) -> Iterator[tuple[str, ...]]:
    """File, part, parameters and size of all weights of a folder."""
    own = {"value_head.safetensors": "value head", "adapter_model.safetensors": "policy adapter (LoRA)"}
    for folder, part in _PARTS.items():
        for path in sorted((directory / folder).glob("*.safetensors")):
            if not path.name.startswith(_TRAINING_DATA):
                role = own.get(path.name, part) if folder == "." else part
                size = f"{path.stat().st_size / 1e6:.2f} MB"
                yield str(path.relative_to(directory)), role, f"{_count_parameters(path):,}", size


def _count_parameters(path: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:  # reads the header alone
            return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no iterator)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); it is truncated or foreign.") from error


def _table(title: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(title=escape(str(title)), title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index > 1 else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


# export


def _export(args: argparse.Namespace) -> None:
    from vgf_llm.models import VGFModelConfig
    from vgf_llm.models.merging import save_plain

    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"`out` {args.out!r} is there already and not an empty folder; name a new one.")
    # What is wrong in a folder is found before weights are read.
    found = VGFModelConfig.load(args.path).parametrization if Path(args.path).is_dir() else "log_ratio"
    if found != "log_ratio":
        raise ValueError(
            f"`path` {args.path!r} has a {found} value, and only a log_ratio value has a model behind it. Serve this "
            "one with `vgf serve`, or distil in training (`distill_coef > 0`)."
        )
    settings = _given(args, _DISTILLATION_OPTIONS)
    if args.prompts is None:
        if not 0 <= args.budget <= 1 or settings or args.reward_funcs:
            unused = [
                f"--{name}" for name in ("reward_funcs", *_DISTILLATION_OPTIONS) if getattr(args, name) is not None
            ]
            raise ValueError(
                f"`--budget` {args.budget:g}{''.join(f', `{name}`' for name in unused)}: distillation needs "
                "`--prompts`. Without them the budget is from 0 to 1, and no option of distillation has an effect."
            )
        args.device = args.device or "cpu"  # nothing runs
    model = _load_model(args)
    tokenizer = _load_tokenizer(args, model)
    what = "the model behind the value, which is transport at L * epsilon = 1"
    if args.prompts is not None:
        from vgf_llm.export import distil_budget, load_prompts
        from vgf_llm.train import load_reward_func

        rewards = [load_reward_func(name) for name in args.reward_funcs or ()] or None
        plain, *found = distil_budget(
            model, tokenizer, args.budget, load_prompts(args.prompts), reward_funcs=rewards, **settings
        )
        for name, distance in zip(("before", "after"), found, strict=True):
            reward = "" if distance.reward is None else f", mean reward {distance.reward:.3f}"
            print(f"{name} distillation: KL from transport {distance.kl:.4f} nats per token{reward}")
        what = f"transport at L * epsilon = {args.budget:g}, distilled"
    else:
        plain = model.merge_value(args.budget)
        if args.budget < 1:
            what = f"weights {args.budget:g} of the way to the model behind the value: near transport, not equal to it"
    save_plain(plain, tokenizer, out)
    print(
        f"{out}: {what}, in one forward per token. AutoModelForCausalLM and vLLM load it; other budgets need the VGF "
        "model."
    )


# generate


def _generate(args: argparse.Namespace) -> None:
    import torch
    from transformers import TextStreamer

    from vgf_llm.generation.options import TRANSPORT_FIELDS
    from vgf_llm.generation.prompts import unknown_tokens_note
    from vgf_llm.models import VGFModelConfig

    transport = _given(args, TRANSPORT_FIELDS)
    if Path(args.path).is_dir():  # settings are checked before weights are read
        replace(VGFModelConfig.load(args.path).transport, **transport)
    model = _load_model(args)
    tokenizer = _load_tokenizer(args, model)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    inputs = _encode(args, tokenizer, prompt).to(model.device)
    if note := unknown_tokens_note(tokenizer, inputs["input_ids"][0].tolist()):
        print(f"vgf: warning: {note}", file=sys.stderr)
    options = {**transport, **_sampling(args, model, tokenizer)}
    if args.seed is not None:
        torch.manual_seed(args.seed)
    output: Any = model.generate(
        inputs["input_ids"],
        inputs["attention_mask"],
        do_sample=not args.greedy,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if args.stream else None,
        return_dict_in_generate=args.all,
        answer_fn=_answer_fn(args.answer_regex, tokenizer),
        **options,
    )
    prompt_length = inputs["input_ids"].shape[1]
    if args.all:
        _print_particles(output, tokenizer, prompt_length)
    elif not args.stream:
        print("\n\n".join(tokenizer.batch_decode(output[:, prompt_length:], skip_special_tokens=True)))


def _given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _sampling(args: argparse.Namespace, model: "VGFModel", tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    options = {"max_new_tokens": _MAX_NEW_TOKENS, **_given(args, _SAMPLING_OPTIONS)}
    if model.generation_config.pad_token_id is None:
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        options["pad_token_id"] = eos if pad is None else pad
    return options


def _load_model(args: argparse.Namespace) -> "VGFModel":
    import torch

    from vgf_llm.models import VGFModel

    dtype = args.dtype if args.dtype == "auto" else getattr(torch, args.dtype, None)
    if dtype != "auto" and not isinstance(dtype, torch.dtype):
        raise ValueError(f"`--dtype` must be `auto` or a torch dtype such as float32 or bfloat16, got {args.dtype!r}.")
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"`--device` must be a torch device such as cpu or cuda:0, got {args.device!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`--device {args.device}`: torch sees no CUDA device here; leave it out to run on the CPU.")
    try:
        model = VGFModel.from_pretrained(
            args.path, base_model=args.base_model, dtype=dtype, trust_remote_code=args.trust_remote_code
        )
    except (ValueError, OSError) as error:
        if Path(args.path).is_dir():
            raise
        raise ValueError(
            f"`path` {args.path!r} is no folder on this machine, and the hub gave no model of that name: {error}"
        ) from error
    return model.to(device)


def _load_tokenizer(args: argparse.Namespace, model: "VGFModel") -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    # A folder holds a tokenizer when the trainer or the user saved one; else the base model's is the right one.
    saved = not Path(args.path).is_dir() or (Path(args.path) / "tokenizer_config.json").is_file()
    origin = args.tokenizer or (args.path if saved else args.base_model or model.vgf_config.base_model_name_or_path)
    if not origin:
        raise ValueError(f"{args.path} holds no tokenizer and names no base model; pass `--tokenizer`.")
    return AutoTokenizer.from_pretrained(origin, padding_side="left", trust_remote_code=args.trust_remote_code)


def _encode(args: argparse.Namespace, tokenizer: "PreTrainedTokenizerBase", prompt: str) -> Any:
    from jinja2 import TemplateError

    if not prompt:
        raise ValueError("`prompt` is empty; there is nothing to answer.")
    if args.raw or tokenizer.chat_template is None:
        for name in ("system_prompt", "chat_template_kwargs"):
            if getattr(args, name) is not None:
                raise ValueError(f"`--{name}` needs a tokenizer with a chat template, and no `--raw`.")
        return tokenizer(prompt, return_tensors="pt")
    system = [] if args.system_prompt is None else [{"role": "system", "content": args.system_prompt}]
    try:
        return tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": prompt}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **(args.chat_template_kwargs or {}),
        )
    except TemplateError as error:
        raise ValueError(f"The tokenizer's chat template refuses these messages: {error}") from error


def _answer_fn(
    pattern: re.Pattern[str] | None, tokenizer: "PreTrainedTokenizerBase"
) -> Callable[[list[int]], Hashable | None] | None:
    """The answer of a response as votes see it; None leaves them to whole responses."""
    if pattern is None:
        return None

    def answer(token_ids: list[int]) -> str | None:
        matches = list(pattern.finditer(tokenizer.decode(token_ids, skip_special_tokens=True)))
        return matches[-1].group(1 if pattern.groups else 0) if matches else None

    return answer


def _print_particles(output: Any, tokenizer: "PreTrainedTokenizerBase", prompt_length: int) -> None:
    texts = tokenizer.batch_decode(output.particle_sequences[0, :, prompt_length:], skip_special_tokens=True)
    # Without a selection every particle is in `sequences`, and `chosen` says nothing.
    chosen = int(output.chosen[0]) if len(output.sequences) == 1 else None
    for index, text in enumerate(texts):
        mark = ", chosen" if index == chosen else ""
        # Whole responses whose tokens were not decoded have no distribution to measure.
        kl = "" if output.kl is None else f", KL to the base {float(output.kl[0, index].sum()):.3f} nats"
        print(f"[{index}] value {float(output.values[0, index]):.3f}{kl}{mark}\n{text}\n")


# demo


def _demo(args: argparse.Namespace) -> None:
    from vgf_llm.demo import Comparison, build_page, import_gradio, launch

    import_gradio()  # whether it is there is known before weights are read
    model = _load_model(args)
    tokenizer = _load_tokenizer(args, model)
    comparison = Comparison(
        model,
        tokenizer,
        lambda prompt: _encode(args, tokenizer, prompt).to(model.device),
        **_sampling(args, model, tokenizer),
    )
    launch(
        build_page(comparison, Path(args.path).resolve().name, args.prompt),
        host=args.host,
        port=args.port,
        share=args.share,
    )


if __name__ == "__main__":
    sys.exit(main())
