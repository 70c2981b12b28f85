# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Grade-school math: learn a value from right and wrong answers, then see what the step budget buys.

Without arguments it runs on generated problems with a base model that ships with it, on a laptop, offline:

    accelerate launch recipes/gsm8k_vgf.py

On the harder of two embedded tasks, five to nine steps a problem:

    accelerate launch recipes/gsm8k_vgf.py --config recipes/configs/gsm8k_chains.yaml

On GSM8K, from the hub or from a folder with `train.jsonl` and `test.jsonl`:

    accelerate launch recipes/gsm8k_vgf.py --config recipes/configs/gsm8k_qwen2.5_0.5b.yaml
    accelerate launch recipes/gsm8k_vgf.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name path/to/gsm8k

Every field of `VGFConfig` and of TRL's `ModelConfig` is an option; `--help` lists them.
"""

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import is_matplotlib_available
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from eval import plots, report, scaling
from eval.methods import PlanOptions, abilities, check_methods, plan
from eval.metrics import paired_difference
from eval.sampling import Draw, sample
from eval.tasks import Task, template_switches
from recipes import embedded_chains, embedded_math
from recipes.data import load_math_dataset
from reward_models.answers import extract_answer
from reward_models.verifiable import gsm8k_reward, math_reward
from vgf_llm import PlotCallback, VGFConfig, VGFProgressCallback, VGFTrainer
from vgf_llm.models.merging import merging_obstacle
from vgf_llm.trainer.config import VGFParser

EMBEDDED = "embedded"
EMBEDDED_TASKS = {EMBEDDED: embedded_math, "embedded_chains": embedded_chains}
CONFIG_DIR = Path(__file__).parent / "configs"
EMBEDDED_CONFIG = CONFIG_DIR / "gsm8k_embedded.yaml"
REFERENCE = Path(__file__).parent / "embedded_math" / "reference.json"


@dataclass
class MathScriptArguments(ScriptArguments):
    """What to train and measure on, beside TRL's script arguments."""

    dataset_name: str | None = field(
        default=EMBEDDED,
        metadata={"help": "`embedded`, `embedded_chains`, a hub id such as `openai/gsm8k`, or a local folder."},
    )
    num_train_problems: int | None = field(default=None, metadata={"help": "Training problems; all if left out."})
    num_validation_problems: int = field(default=200, metadata={"help": "Problems that choose the budget L."})
    num_test_problems: int = field(default=500, metadata={"help": "Problems that the table is measured on."})
    budget_steps: list[int] = field(
        default_factory=lambda: [0, 1, 2, 4, 8, 16], metadata={"help": "Budgets L of the table."}
    )
    eval_particles: int = field(default=4, metadata={"help": "Particles N of the transported rows of the table."})
    eval_baseline_samples: int = field(default=8, metadata={"help": "Samples of the base's votes and best-of rows."})
    eval_rows: int = field(default=512, metadata={"help": "Responses that a process samples at a time in evaluation."})
    max_eval_responses: int = field(
        default=30000,
        metadata={"help": "Most responses that the table may take; problems beyond that are left out of it."},
    )
    reward: str = field(
        default="auto", metadata={"help": "`gsm8k` (exact numbers), `math` (math-verify), or `auto` by the golds."}
    )
    conversational: bool = field(default=False, metadata={"help": "Whether prompts are chat messages."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message of conversational prompts."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of a run without a GPU; all cores if left out."}
    )
    skip_evaluation: bool = field(default=False, metadata={"help": "Whether to stop after training."})


@dataclass(frozen=True)
class SideBySide:
    """One test problem with the greedy answers of the base and of the transported model.

    Attributes:
        prompt: The problem, as the model was asked.
        answers: Both answers.
        correct: The reward of each.
        place: Which of the problems that were tried it is.
        differ: On how many of them the answers differ.
        tried: How many problems were tried.
    """

    prompt: Any
    answers: tuple[str, str]
    correct: tuple[float, float]
    place: int
    differ: int
    tried: int


def parse(argv: list[str]) -> tuple[MathScriptArguments, VGFConfig, ModelConfig]:
    """Parses the command line; without a dataset, model or config of the user's, the embedded YAML comes first."""
    given = {argument.split("=")[0] for argument in argv if argument.startswith("--")}
    embedded = "embedded" in argv or not given & {"--config", "--dataset_name", "--model_name_or_path"}
    if embedded and "--config" not in given:
        argv = ["--config", str(EMBEDDED_CONFIG), *argv]
    parser = VGFParser((MathScriptArguments, VGFConfig, ModelConfig))
    return parser.parse_args_and_config(args=argv)


def load_problems(args: MathScriptArguments, seed: int) -> dict[str, Dataset]:
    """Returns the train, validation and test problems, with columns `prompt` and `answer`.

    Raises:
        ValueError: If the dataset is too small for the numbers asked for.
    """
    if args.dataset_name in EMBEDDED_TASKS:
        make_problems = EMBEDDED_TASKS[args.dataset_name].make_problems
        sizes = {
            "train": args.num_train_problems or 4000,
            "validation": args.num_validation_problems,
            "test": args.num_test_problems,
        }
        made = {split: make_problems(size, seed=seed, split=split) for split, size in sizes.items()}
        return {split: dataset.map(lambda row: {"prompt": row["question"] + "\n"}) for split, dataset in made.items()}
    load = partial(
        load_math_dataset,
        args.dataset_name,
        config_name=args.dataset_config,
        conversational=args.conversational,
        system_prompt=args.system_prompt,
    )
    train = load(args.dataset_train_split).shuffle(seed=seed)
    if len(train) <= args.num_validation_problems:
        raise ValueError(
            f"`num_validation_problems` is {args.num_validation_problems}, but {args.dataset_name!r} has "
            f"{len(train)} training problems, from which they are taken. Lower it."
        )
    validation = train.select(range(args.num_validation_problems))
    train = train.select(range(args.num_validation_problems, len(train)))
    if args.num_train_problems is not None:
        train = train.select(range(min(args.num_train_problems, len(train))))
    test = load(args.dataset_test_split).shuffle(seed=seed)
    return {
        "train": train,
        "validation": validation,
        "test": test.select(range(min(args.num_test_problems, len(test)))),
    }


def use_all_cores(num_threads: int | None) -> None:
    """Sets the threads of a single CPU process, which `accelerate launch` otherwise leaves with one."""
    if not torch.accelerator.is_available() and os.environ.get("WORLD_SIZE", "1") == "1":
        torch.set_num_threads(num_threads or os.cpu_count() or 1)


def choose_reward(name: str, answer: str) -> Any:
    """Returns the reward function `name`; `auto` takes exact numbers for golds in GSM8K's format."""
    functions = {"gsm8k": gsm8k_reward, "math": math_reward}
    if name == "auto":
        name = "gsm8k" if "####" in answer else "math"
    if name not in functions:
        raise ValueError(f"`reward` must be one of auto, {', '.join(functions)}; got {name!r}.")
    return functions[name]


def affordable(task: Task, per_problem: int, most: int, length: int, console: Console) -> Task:
    """Returns the task with as many of its problems as `most` responses allow, and says what it takes.

    Raises:
        ValueError: If `most` is too small for two problems.
    """
    count = min(len(task.problems), most // per_problem)
    if count < min(2, len(task.problems)):
        raise ValueError(
            f"`max_eval_responses` is {most}, but one problem takes {per_problem} responses. Raise it, or measure less "
            "by `budget_steps`, `eval_particles` and `eval_baseline_samples`."
        )
    left_out = len(task.problems) - count
    console.print(
        f"evaluation: {count} problems x {per_problem} responses = {count * per_problem}, of up to {length} tokens"
        + (f"; {left_out} problems are left out (`max_eval_responses` {most})" if left_out else "")
    )
    return task.select(range(count)) if left_out else task


def measure(
    trainer: VGFTrainer, problems: dict[str, Dataset], reward: Any, args: MathScriptArguments, console: Console
) -> tuple[scaling.Scaling, SideBySide | None]:
    """Measures every method on the test problems; validation problems choose L. Returns one problem's answers, too.

    Every process has to call it: the problems are shared out among them, and sharded weights are gathered by all.
    """
    model = trainer.vgf_model.eval()
    tokenizer = trainer.processing_class
    length = trainer.args.max_completion_length
    tasks = {
        split: Task(
            "math",
            problems[split],
            reward,
            answer_of=extract_answer,
            max_new_tokens=length,
            chat_template_kwargs=template_switches(trainer.args.chat_template_kwargs),
        )
        for split in ("validation", "test")
    }

    def bound(task: Task) -> Any:
        return partial(
            sample,
            model,
            tokenizer,
            task,
            batch_size=args.eval_rows,
            pad_token_id=tokenizer.pad_token_id,
            cache_implementation=trainer.args.cache_implementation,
            disable_compile=True,
            processes=PartialState(),
        )

    able = abilities(model, tasks["test"])
    options = PlanOptions(
        steps=sorted({0, *args.budget_steps}),
        num_particles=(1, args.eval_particles),
        temperatures=(0.7, 1.0),
        extra_counts=(args.eval_baseline_samples,),
    )
    transported = f"vgf_{able.spaces[0]}"
    seed = trainer.args.seed
    began, budgets = time.perf_counter(), plan([transported], able, options)
    tried = 2 * len(scaling.budget_methods(budgets))
    validation = affordable(tasks["validation"], tried, args.max_eval_responses, length, console)
    best = scaling.choose_steps(bound(validation), budgets, seed=seed, num_samples=2)
    seconds = (time.perf_counter() - began) / (tried * len(validation.problems))
    names = ("greedy", "temperature", "majority", "best_of_n", "best_of_m", "oracle", transported, "random_direction")
    methods = plan(check_methods(names, able), able, replace(options, control_steps=(best,)))
    # Greedy transport is one more decoding of every problem: at the chosen budget alone.
    methods = [m for m in methods if not m.family.endswith("greedy") or m.steps in (None, best)]
    each = scaling.responses_per_problem(methods)
    test = affordable(tasks["test"], each, args.max_eval_responses, length, console)
    console.print(f"estimate by the validation problems: {seconds * each * len(test.problems):.0f} s")
    result = scaling.measure(bound(test), methods, seeds=[seed])
    result.chosen_steps = best
    greedy = [method.draw for method in methods if method.family.endswith("greedy")]
    few = tasks["test"].select(range(min(8, len(test.problems))))
    return result, side_by_side(bound(few), few, *greedy, seed=seed) if len(greedy) == 2 else None


def side_by_side(sampler: scaling.Sampler, task: Task, base: Draw, transported: Draw, *, seed: int) -> SideBySide:
    """Answers the task's problems twice, and returns the first on which the answers differ, or the first of all."""
    drawn = [sampler(draw, num_samples=1, seed=seed, with_likelihood=False) for draw in (base, transported)]
    answers = [(one[0], other[0]) for one, other in zip(*(samples.responses for samples in drawn), strict=True)]
    differ = [place for place, (one, other) in enumerate(answers) if one != other]
    place = differ[0] if differ else 0
    first, second = (float(samples.gold[place, 0]) for samples in drawn)
    prompt = task.problems["prompt"][place]
    return SideBySide(prompt, answers[place], (first, second), place, len(differ), len(answers))


def show_side_by_side(shown: SideBySide, steps: int, folder: Path, *, raw: bool, console: Console) -> None:
    """Prints a problem with both answers, and the command that asks the saved model the same."""
    prompt = shown.prompt if isinstance(shown.prompt, str) else shown.prompt[-1]["content"]
    prompt = prompt if raw else prompt.rstrip()
    chosen = f"the first whose greedy answers differ; those of {shown.differ} of {shown.tried} problems do"
    if not shown.differ:
        chosen = f"whose greedy answers are alike, as are those of all {shown.tried} problems tried"
    console.print(f"\n[bold]Test problem {shown.place + 1}[/bold], {chosen}:")
    console.print(Text(prompt))
    table = Table()
    for title, correct in zip(("base, L=0", f"VGF, L={steps}"), shown.correct, strict=True):
        table.add_column(f"{title}: {'right' if correct == 1 else 'wrong'}", ratio=1)
    table.add_row(*map(Text, shown.answers))
    console.print(table)
    words = ["vgf", "generate", str(folder), prompt, "--greedy", "--transport_steps", str(steps)]
    console.print("ask it, with a problem of your own in the same words:")
    console.print(Text(shlex.join([*words, *(["--raw"] if raw else [])])), soft_wrap=True)


def summarize(result: Any, args: MathScriptArguments, console: Console) -> None:
    """Prints where single transported samples stand against every baseline, with paired standard errors."""
    n, best = args.eval_baseline_samples, result.chosen_steps
    ours = f"VGF, one particle, L={best}"
    console.print(f"\n[bold]One transported sample (L={best}, chosen on validation problems) against:[/bold]")
    for name in (
        "greedy",
        "sampled, T=0.7",
        f"majority@{n}",
        f"best-of-{n} by value",
        f"random direction, L={best}",
    ):
        found = paired_difference(result.scores[ours], result.scores[name])
        ratio = found.mean / max(found.standard_error, 1e-9)
        console.print(f"  {name:28s} {found.mean:+.3f} ± {found.standard_error:.3f}  ({ratio:+.1f} s.e.)")
    found = paired_difference(result.scores[f"random direction, L={best}"], result.scores["sampled, T=1"])
    console.print(f"  random direction against the base: {found.mean:+.3f} ± {found.standard_error:.3f}")
    if args.dataset_name == EMBEDDED:
        console.print("\n[bold]Trained before, 14,400 completions each[/bold] (docs/results.md; ± over problems):")
        for name, row in json.loads(REFERENCE.read_text(encoding="utf-8")).items():
            console.print(f"  {name}, mean of {row['seeds']} seeds:", soft_wrap=True)
            console.print("    " + ", ".join(f"{mode} {row[mode]}" for mode in ("greedy", "sampled", "majority@8")))
        console.print("  With rewards of 0 and 1 VGF exported is iterated SFT by construction; the two are level.")


def main(argv: list[str]) -> None:
    """Trains, saves, measures and plots."""
    began = time.perf_counter()
    args, training_args, model_args = parse(argv)
    use_all_cores(args.num_threads)
    console = Console(quiet=os.environ.get("RANK", "0") != "0")  # the first process speaks
    problems = load_problems(args, training_args.seed)
    reward = choose_reward(args.reward, problems["train"]["answer"][0])
    name = model_args.model_name_or_path
    if name is None and args.dataset_name in EMBEDDED_TASKS:
        name = str(EMBEDDED_TASKS[args.dataset_name].BASE_DIR)
    if name is None:
        raise ValueError("`--model_name_or_path` is missing: name the base model of this dataset.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    tokenizer = AutoTokenizer.from_pretrained(
        name, padding_side="left", trust_remote_code=training_args.trust_remote_code
    )
    trainer = VGFTrainer(
        model=name,
        reward_funcs=reward,
        args=training_args,
        train_dataset=problems["train"],
        eval_dataset=problems["validation"] if training_args.eval_strategy != "no" else None,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.add_callback(VGFProgressCallback(trainer))
    if is_matplotlib_available():
        trainer.add_callback(PlotCallback(trainer))
    resume = training_args.resume_from_checkpoint
    if resume in ("True", "true", "last"):
        resume = get_last_checkpoint(training_args.output_dir)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    result = example = None
    if not args.skip_evaluation:
        with trainer.generation_context():  # sharded weights are gathered once
            result, example = measure(trainer, problems, reward, args, console)
    if result is not None and trainer.accelerator.is_main_process:
        result_dir = Path(training_args.output_dir)
        meta = {"seed": training_args.seed, "model": Path(name).name, "dataset": args.dataset_name}
        accuracy = trainer.gate.accuracy
        report.save(result.rows, result_dir, {**meta, "within_prompt_accuracy": accuracy, "L": result.chosen_steps})
        count = len(next(iter(result.scores.values())))
        report.print_table(result.rows, f"{count} test problems, seed {training_args.seed}")
        summarize(result, args, console)
        n, best = args.eval_baseline_samples, result.chosen_steps
        written = ["model", "results.json", "results.md"]
        if is_matplotlib_available():
            names = ("greedy", f"majority@{n}", f"best-of-{n} by value", f"random direction, L={best}")
            plot = result_dir / "accuracy_over_budget.png"
            plots.plot_budget(result.curves, [result.row(name) for name in names], plot, "What the step budget buys")
            written.append(plot.name)
        console.print(f"\nwithin-prompt pair accuracy of the value on held-out prompts: {accuracy:.3f}")
        console.print(f"{', '.join(written)} are in {result_dir}")
        if merging_obstacle(trainer.vgf_model) is None:
            console.print(f"plain model, one forward per token: vgf export {result_dir} OUT", soft_wrap=True)
        if example is not None:
            # `vgf generate` asks in the tokenizer's chat template, which of the embedded base gives the prompt back.
            raw = (
                args.dataset_name not in EMBEDDED_TASKS
                and isinstance(example.prompt, str)
                and bool(tokenizer.chat_template)
            )
            show_side_by_side(example, best, result_dir, raw=raw, console=console)
        console.print(f"total: {time.perf_counter() - began:.0f} s on {torch.get_num_threads()} threads")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:  # Ctrl+C in a training of minutes needs no traceback
        sys.exit(130)
