# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Every launch configuration is one that accelerate reads, and says what its name and its command say."""

import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "accelerate_configs"
# distributed type, processes, machines, ZeRO stage
EXPECTED = {
    "single_gpu": (DistributedType.NO, 1, 1, None),
    "multi_gpu": (DistributedType.MULTI_GPU, 8, 1, None),
    "zero1": (DistributedType.DEEPSPEED, 8, 1, 1),
    "zero2": (DistributedType.DEEPSPEED, 8, 1, 2),
    "zero3": (DistributedType.DEEPSPEED, 8, 1, 3),
    "zero3_offload": (DistributedType.DEEPSPEED, 8, 1, 3),
    "fsdp2": (DistributedType.FSDP, 8, 1, None),
    "two_nodes": (DistributedType.MULTI_GPU, 16, 2, None),
}


def command_of(name):
    """The launch command on top of a configuration, as a shell would split it."""
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    comments = [line.removeprefix("# ") for line in lines[: [line[:1] for line in lines].index("c")]]
    commands = [line for line in comments if line.startswith("accelerate launch ")]
    assert len(commands) == 1, comments
    return shlex.split(commands[0])


def test_every_configuration_is_listed():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    kind, processes, machines, stage = EXPECTED[name]
    assert isinstance(config, ClusterConfig)  # which refuses keys that it does not know
    assert config.distributed_type == kind
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert config.mixed_precision == "bf16"
    assert config.use_cpu is False
    assert (config.deepspeed_config or {}).get("zero_stage") == stage


@pytest.mark.parametrize("name", ["zero3", "zero3_offload"])
def test_zero3_shards_while_loading_and_saves_whole_weights(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml")).deepspeed_config
    assert config["zero3_init_flag"] is True
    assert config["zero3_save_16bit_model"] is True
    device = "cpu" if name == "zero3_offload" else "none"
    assert (config["offload_optimizer_device"], config["offload_param_device"]) == (device, device)


def test_fsdp_is_version_2_and_saves_whole_weights():
    config = load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config
    assert config["fsdp_version"] == 2
    assert config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    assert config["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"


@pytest.mark.parametrize("name", EXPECTED)
def test_the_command_on_top_launches_it(name):
    """Parsed by accelerate's own parser, with the defaults of the file that it names filled in."""
    words = command_of(name)
    assert words[:2] == ["accelerate", "launch"]
    args = launch_command_parser().parse_args(words[2:])
    assert args.config_file == f"recipes/accelerate_configs/{name}.yaml"
    assert args.training_script == "recipes/gsm8k_vgf.py"
    assert (ROOT / args.training_script).is_file()
    assert (ROOT / args.training_script_args[args.training_script_args.index("--config") + 1]).is_file()
    args.config_file = str(FOLDER / f"{name}.yaml")
    args, _, _ = _validate_launch_command(args)
    kind, processes, machines, stage = EXPECTED[name]
    assert (args.num_processes, args.num_machines, args.mixed_precision) == (processes, machines, "bf16")
    assert bool(args.use_deepspeed) == (kind == DistributedType.DEEPSPEED)
    assert bool(args.use_fsdp) == (kind == DistributedType.FSDP)
    assert bool(args.multi_gpu) == (kind == DistributedType.MULTI_GPU)
    if stage is not None:
        assert args.zero_stage == stage
    if name == "two_nodes":
        assert (args.machine_rank, args.main_process_ip, args.main_process_port) == (0, "10.0.0.1", 29500)


@pytest.mark.parametrize("name", EXPECTED)
def test_numbers_are_not_strings(name):
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert all(isinstance(content[key], int) for key in ("num_processes", "num_machines", "machine_rank"))
