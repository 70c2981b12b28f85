# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The console script `vgf`.

Every command is a line of `COMMANDS`: what it does, examples, its options, its function. Options that several commands
have are written once. The parser has the options of the one command that runs, so that `vgf --help` imports no torch.
`train`, `recipe` and `lm-eval` hand their options to the parser of another program.
"""

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgf_llm import __version__, shipped
from vgf_llm.command_line import Parser, json_object, regular_expression

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
_RENAMED = {"info": "inspect"}
# A problem of the embedded task, which has two to four steps, that its base mostly gets wrong.
EMBEDDED_PROMPT = "Ann has 6 pens. Ben has 4 times as many. Ben loses 5 of them. How many pens does Ben have now?"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        0, or 1 after an error that was printed to stderr. A wrong command line exits with 2, as argparse does, and so
        does none, after the help.

    Example:
        >>> main(["version"]) == 0
        vgf-llm ...
        True
    """
    if argv is None:
        argv = sys.argv[1:]
        _set_progress_bars()
    command = COMMANDS.get(argv[0]) if argv else None
    if command is not None and command.hands_on:
        if command.examples and argv[1:2] in ([], ["-h"], ["--help"]):
            make_parser(argv[:1]).parse_args([argv[0], "--help"])
        return _run(lambda: command.run(list(argv[1:])))
    parser = make_parser(argv[:1])
    if not argv:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if argv[0] in _RENAMED:
        parser.error(f"`vgf {argv[0]}` is `vgf {_RENAMED[argv[0]]}` now.")
    args = parser.parse_args(argv)
    return _run(lambda: COMMANDS[args.command].run(args))


def make_parser(commands: Iterable[str]) -> Parser:
    """Returns the parser of `vgf`, which lists all commands and knows the options of those that are named."""
    parser = Parser(prog="vgf", description="Train, inspect, run and serve Value Gradient Flow models.")
    parser.add_argument("--version", action="version", version=f"vgf-llm {__version__}")
    parser.epilog = "`vgf COMMAND --help` has the options of a command, with examples."
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        known = name in commands
        parents: list[Any] = [command.parser()] if known and command.parser else []
        sub = subparsers.add_parser(
            name,
            help=command.text,
            description=f"{command.text[0].upper()}{command.text[1:]}.",
            examples=command.examples,
            parents=parents,
            add_help=not parents,  # theirs have it
        )
        if known and command.add_options:
            command.add_options(sub)
    return parser


def _set_progress_bars() -> None:
    """Progress bars follow a terminal's width and stay out of log files, whose lines come as they are written.

    The user's own variables win.
    """
    os.environ.setdefault("TQDM_DYNAMIC_NCOLS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("PYTHONUNBUFFERED", "1")  # of the processes that train


def _run(command: Callable[[], None]) -> int:
    try:
        command()
    except KeyboardInterrupt:
        return 130
    except subprocess.CalledProcessError as error:  # of `accelerate launch`
        print(f"vgf: error: a process ended with status {error.returncode}; its own message is above.", file=sys.stderr)
        return 1
    except _EXPECTED as error:
        print(f"vgf: error: {error or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


# options that commands share


def _add_answer_options(command: argparse.ArgumentParser) -> None:
    """Transport and sampling, with the device of the model, as `generate` and `chat` have them."""
    from vgf_llm.models.options import TRANSPORT_OPTIONS

    transport = {name: (option.kind, option.text) for name, option in TRANSPORT_OPTIONS.items()}
    _add_options(command.add_argument_group("transport, the model's own where left out"), transport)
    sampling = _add_sampling_options(command)
    sampling.add_argument("--greedy", action="store_true", help="take the most likely token instead of sampling")
    sampling.add_argument("--seed", type=int, help="seed of the sampling; the same seed gives the same responses")
    _add_model_options(command)


def _add_sampling_options(command: argparse.ArgumentParser) -> Any:
    sampling = command.add_argument_group("sampling, the policy's generation_config where left out")
    _add_options(sampling, _SAMPLING_OPTIONS)
    return sampling


def _add_prompt_options(group: Any, *, raw: bool = True) -> None:
    if raw:
        group.add_argument("--raw", action="store_true", help="do not apply the tokenizer's chat template")
    group.add_argument("--system_prompt", help="first message of the chat")
    group.add_argument(
        "--chat_template_kwargs",
        type=json_object,
        metavar="JSON",
        help="switches of the chat template, such as '{\"enable_thinking\": false}'",
    )


def _add_model_options(command: argparse.ArgumentParser) -> None:
    model = command.add_argument_group("model")
    model.add_argument("--base_model", help="policy, for a folder without its weights")
    model.add_argument("--tokenizer", help="tokenizer, for a folder without one")
    model.add_argument("--dtype", default="auto", help="dtype of the weights (default: as saved)")
    model.add_argument("--trust_remote_code", action="store_true", help="run code that ships with the model")
    model.add_argument("--device", help="where the model runs (default: cuda where there is one, else cpu)")


def _add_options(group: Any, options: dict[str, tuple[type, str]]) -> None:
    for name, (kind, text) in options.items():
        # No defaults here: None means that the saved model's own setting stands.
        how: dict[str, Any] = {"type": kind, "metavar": kind.__name__.upper()}
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        group.add_argument(f"--{name}", default=None, help=text.replace("%", "%%"), **how)


# what runs elsewhere: the trainer, the recipes, the evaluation, vLLM


def _train(argv: list[str]) -> None:
    from vgf_llm.train import launch

    shipped.add_to_path()  # `--reward_funcs reward_models.gsm8k_reward`
    launch(argv)


def _train_parser() -> argparse.ArgumentParser:
    from vgf_llm.train import make_parser as train_parser

    return train_parser()


def _add_recipe_options(recipe: argparse.ArgumentParser) -> None:
    scripts = shipped.recipes()
    recipe.usage = "vgf recipe [OPTIONS OF `accelerate launch`] NAME [OPTIONS OF THE RECIPE]\n       vgf recipe --path"
    recipe.add_argument("--path", action="store_true", help="print the folder of recipes, reward_models and eval")
    recipe.add_argument("name", metavar="NAME", choices=list(scripts), help=", ".join(scripts))
    recipe.add_argument("options", nargs="...", help="`vgf recipe NAME --help` lists them")


def _recipe(argv: list[str]) -> None:
    if argv == ["--path"]:
        print(shipped.root())
    else:
        shipped.launch(argv)


def _shipped_module(name: str) -> Any:
    shipped.add_to_path()
    return importlib.import_module(name)


def _lm_eval(argv: list[str]) -> None:
    sys.argv = ["vgf lm-eval", *argv]  # where the harness reads its options
    _shipped_module("eval.lm_eval_adapter").main()


def _add_serve_options(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("path", help="folder of a VGF model")
    serve.add_argument("engine", nargs=argparse.REMAINDER, help="options of vLLM's server, such as --port 8000")


def _serve(args: argparse.Namespace) -> None:
    from vgf_llm.serving.server import serve

    serve(args.path, args.engine)


def _add_completion_options(completion: argparse.ArgumentParser) -> None:
    import shtab

    completion.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="whose script is printed")


def _completion(args: argparse.Namespace) -> None:
    import shtab

    print(shtab.complete(make_parser(COMMANDS), args.shell))


# inspect


def _add_inspect_options(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("path", help="folder that VGFModel.save_pretrained or VGFTrainer.save_model wrote")


def _inspect(args: argparse.Namespace) -> None:
    from vgf_llm.inspection import inspect

    inspect(Path(args.path))


# export


def _add_export_options(export: argparse.ArgumentParser) -> None:
    export.add_argument("path", help="folder or hub id of a VGF model with a log_ratio value")
    export.add_argument("out", help="folder to write, new or empty; transformers and vLLM load it")
    export.add_argument("--budget", type=float, default=1.0, help="L * epsilon of the model (default: 1)")
    distil = export.add_argument_group("distillation to budgets other than 1")
    distil.add_argument("--prompts", help="JSON lines with a field `prompt`, or a hub dataset with that column")
    distil.add_argument("--reward_funcs", nargs="+", help="as of `vgf train`; the report has the mean reward too")
    _add_options(distil, _DISTILLATION_OPTIONS)
    _add_model_options(export)


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
        unused = "".join(f", `--{name}`" for name in _given(args, ["reward_funcs", *_DISTILLATION_OPTIONS]))
        if unused or not 0 <= args.budget <= 1:
            raise ValueError(
                f"`--budget` {args.budget:g}{unused}: distillation needs `--prompts`. Without them the budget is from "
                "0 to 1, and no option of distillation has an effect."
            )
        args.device = args.device or "cpu"  # nothing runs
    model, tokenizer = _load(args)
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


def _add_generate_options(generate: argparse.ArgumentParser) -> None:
    generate.add_argument("path", help="folder or hub id of a VGF model")
    generate.add_argument("prompt", help="the prompt; `-` reads it from standard input")
    output = generate.add_argument_group("input and output")
    _add_prompt_options(output)
    output.add_argument(
        "--answer_regex",
        type=regular_expression,
        help="votes compare its last match (first group) instead of whole responses",
    )
    shown = output.add_mutually_exclusive_group()
    shown.add_argument("--all", action="store_true", help="print every particle with its value and its KL")
    shown.add_argument("--stream", action="store_true", help="print tokens as they come; one particle")
    _add_answer_options(generate)


def _generate(args: argparse.Namespace) -> None:
    import torch
    from transformers import TextStreamer

    from vgf_llm.generation.prompts import unknown_tokens_note
    from vgf_llm.generation.selection import last_match

    transport = _transport(args)
    model, tokenizer = _load(args)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    inputs = _encode(args, tokenizer, prompt).to(model.device)
    if note := unknown_tokens_note(tokenizer, inputs["input_ids"][0].tolist()):
        print(f"vgf: warning: {note}", file=sys.stderr)
    if args.seed is not None:
        torch.manual_seed(args.seed)
    output: Any = model.generate(
        inputs["input_ids"],
        inputs["attention_mask"],
        do_sample=not args.greedy,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if args.stream else None,
        return_dict_in_generate=args.all,
        answer_fn=None if args.answer_regex is None else last_match(args.answer_regex, tokenizer),
        **transport,
        **_sampling(args, model, tokenizer),
    )
    prompt_length = inputs["input_ids"].shape[1]
    if args.all:
        _print_particles(output, tokenizer, prompt_length)
    elif not args.stream:
        print("\n\n".join(tokenizer.batch_decode(output[:, prompt_length:], skip_special_tokens=True)))


def _transport(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of transport that were given, checked before weights are read."""
    from vgf_llm.models import VGFModelConfig
    from vgf_llm.models.options import TRANSPORT_FIELDS

    given = _given(args, TRANSPORT_FIELDS)
    if Path(args.path).is_dir():
        replace(VGFModelConfig.load(args.path).transport, **given)
    return given


def _given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _sampling(args: argparse.Namespace, model: "VGFModel", tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    options = {"max_new_tokens": _MAX_NEW_TOKENS, **_given(args, _SAMPLING_OPTIONS)}
    if model.generation_config.pad_token_id is None:
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        options["pad_token_id"] = eos if pad is None else pad
    return options


def _load(args: argparse.Namespace) -> "tuple[VGFModel, PreTrainedTokenizerBase]":
    from vgf_llm.loading import load_model, load_tokenizer

    names = {"base_model": args.base_model, "trust_remote_code": args.trust_remote_code}
    model = load_model(args.path, dtype=args.dtype, device=args.device, **names)
    return model, load_tokenizer(args.path, model.vgf_config, tokenizer=args.tokenizer, **names)


def _encode(args: argparse.Namespace, tokenizer: "PreTrainedTokenizerBase", prompt: str) -> Any:
    from vgf_llm.generation.prompts import encode_prompt

    return encode_prompt(
        tokenizer, prompt, raw=args.raw, system_prompt=args.system_prompt, switches=args.chat_template_kwargs
    )


def _print_particles(output: Any, tokenizer: "PreTrainedTokenizerBase", prompt_length: int) -> None:
    texts = tokenizer.batch_decode(output.particle_sequences[0, :, prompt_length:], skip_special_tokens=True)
    # Without a selection every particle is in `sequences`, and `chosen` says nothing.
    chosen = int(output.chosen[0]) if len(output.sequences) == 1 else None
    for index, text in enumerate(texts):
        mark = ", chosen" if index == chosen else ""
        # Whole responses whose tokens were not decoded have no distribution to measure.
        kl = "" if output.kl is None else f", KL to the base {float(output.kl[0, index].sum()):.3f} nats"
        print(f"[{index}] value {float(output.values[0, index]):.3f}{kl}{mark}\n{text}\n")


# chat


def _add_chat_options(chat: argparse.ArgumentParser) -> None:
    chat.add_argument("path", help="folder or hub id of a VGF model whose tokenizer has a chat template")
    _add_prompt_options(chat.add_argument_group("conversation"), raw=False)
    _add_answer_options(chat)


def _chat(args: argparse.Namespace) -> None:
    import torch

    from vgf_llm.chat import Conversation, converse
    from vgf_llm.generation.prompts import encode_messages
    from vgf_llm.models.options import TRANSPORT_OPTIONS

    transport = _transport(args)
    model, tokenizer = _load(args)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"`vgf chat` needs a tokenizer with a chat template, and that of {args.path!r} has none. Name the chat "
            "model's by `--tokenizer`, or answer single prompts with `vgf generate`."
        )
    if args.seed is not None:
        torch.manual_seed(args.seed)
    converse(
        Conversation(
            model,
            tokenizer,
            lambda messages: encode_messages(tokenizer, messages, args.chat_template_kwargs).to(model.device),
            kinds={name: kind for name, (kind, _) in _SAMPLING_OPTIONS.items()}
            | {name: option.kind for name, option in TRANSPORT_OPTIONS.items()},
            system_prompt=args.system_prompt,
            do_sample=not args.greedy,
            **transport,
            **_sampling(args, model, tokenizer),
        )
    )


# demo


def _add_demo_options(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("path", nargs="?", help="folder or hub id of a VGF model")
    demo.add_argument(
        "--embedded",
        action="store_true",
        help="without a path: a small model of generated math, trained once (minutes on a CPU) and kept in ~/.cache",
    )
    demo.add_argument("--prompt", help="what stands in the page's box at first")
    server = demo.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address that it listens on (default: %(default)s)")
    server.add_argument("--port", type=int, help="port (default: the first free one from 7860 on)")
    server.add_argument("--share", action="store_true", help="make a public link, through servers of gradio")
    _add_sampling_options(demo)
    _add_prompt_options(demo.add_argument_group("prompt"))
    _add_model_options(demo)


def _demo(args: argparse.Namespace) -> None:
    if (args.path is None) != args.embedded:
        raise ValueError("`vgf demo` shows one model: pass the `path` of a saved one, or `--embedded` without a path.")
    from vgf_llm.demo import Comparison, build_page, check_address, import_gradio, launch

    import_gradio()  # what is missing or taken is known before anything is trained or read
    check_address(args.host, args.port)
    if args.embedded:
        args.path = str(shipped.embedded_model(__version__))
        args.prompt = args.prompt or EMBEDDED_PROMPT
    model, tokenizer = _load(args)
    comparison = Comparison(
        model,
        tokenizer,
        lambda prompt: _encode(args, tokenizer, prompt).to(model.device),
        **_sampling(args, model, tokenizer),
    )
    page = build_page(comparison, Path(args.path).resolve().name, args.prompt or "")
    launch(page, host=args.host, port=args.port, share=args.share)


# the commands


@dataclass(frozen=True)
class _Command:
    """One command.

    Attributes:
        text: What it does.
        run: Its function; takes the parsed options, or with `hands_on` the options as they were typed.
        examples: What may stand behind its name.
        add_options: Adds its options to its parser.
        parser: Makes a parser of another program whose options it has.
        hands_on: Whether another program parses the options.
    """

    text: str
    run: Callable[[Any], None]
    examples: tuple[str, ...] = ()
    add_options: Callable[[Any], None] | None = None
    parser: Callable[[], argparse.ArgumentParser] | None = None
    hands_on: bool = False


_EVALUATED = "outputs/gsm8k_embedded --task embedded_math --steps 0 1 2 4"
COMMANDS = {
    "train": _Command("train a value, in one process or several", _train, parser=_train_parser, hands_on=True),
    "recipe": _Command(
        "run a recipe that ships with the package, under accelerate launch",
        _recipe,
        (
            "gsm8k_vgf --seed 1",
            "gsm8k_vgf --config recipes/configs/gsm8k_qwen2.5_0.5b.yaml",
            "--num_processes 2 --cpu hh_vgf --dataset_name path/to/hh",
        ),
        _add_recipe_options,
        hands_on=True,
    ),
    "generate": _Command(
        "answer a prompt",
        _generate,
        (
            'my-value "How many legs have three cats?" --transport_steps 8',
            'my-value "PROBLEM" --num_particles 8 --selection majority --answer_regex "#### (.*)" --all',
            "my-value - --stream < prompt.txt",
        ),
        _add_generate_options,
    ),
    "chat": _Command(
        "talk to a model in the terminal, at a budget that can change between answers",
        _chat,
        ("my-value", 'my-value --transport_steps 16 --system_prompt "Answer in one sentence."'),
        _add_chat_options,
    ),
    "demo": _Command(
        "open a page that answers prompts at budgets of your own (gradio)",
        _demo,
        ("--embedded", "my-value --port 8000"),
        _add_demo_options,
    ),
    "inspect": _Command("show what a saved model is made of", _inspect, ("my-value",), _add_inspect_options),
    "eval": _Command(
        "measure a model beside its baselines and controls",
        lambda args: _shipped_module("eval.run").execute(args),
        (f"{_EVALUATED} --output_dir outputs/eval",),
        lambda command: _shipped_module("eval.run").add_arguments(command, positional=True),
    ),
    "tune-budget": _Command(
        "choose a model's budget on validation problems",
        lambda args: _shipped_module("eval.tune_budget").execute(args),
        (f"{_EVALUATED} --output_dir outputs/tuned --write",),
        lambda command: _shipped_module("eval.tune_budget").add_arguments(command, positional=True),
    ),
    "lm-eval": _Command(
        "run EleutherAI's lm-evaluation-harness, with `vgf` among its models",
        _lm_eval,
        ("run --model vgf --tasks gsm8k --model_args pretrained=my-value,transport_steps=8",),
        hands_on=True,
    ),
    "export": _Command(
        "write the model behind a log_ratio value as a plain model",
        _export,
        ("my-value plain-model", "my-value double --budget 2 --prompts prompts.jsonl"),
        _add_export_options,
    ),
    "serve": _Command(
        "serve a model with transport over an OpenAI-compatible endpoint (vLLM)",
        _serve,
        ("my-value --port 8000",),
        _add_serve_options,
    ),
    "completion": _Command(
        "print a script that completes commands and options in a shell",
        _completion,
        ("bash > ~/.local/share/bash-completion/completions/vgf",),
        _add_completion_options,
    ),
    "version": _Command("print the version", lambda args: print(f"vgf-llm {__version__}")),
}


if __name__ == "__main__":
    sys.exit(main())
