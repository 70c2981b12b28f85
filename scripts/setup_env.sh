#!/usr/bin/env bash
# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
#
# Create a virtual environment and install this checkout into it, editable.
#   scripts/setup_env.sh [VENV=.venv] [EXTRAS=test]
# PYTHON chooses the interpreter (3.11 to 3.13). pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...) apply.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${1:-.venv}"
extras="${2:-test}"
python="${PYTHON:-python3}"
cpu_torch="torch==2.13.0"

if ! "$venv/bin/python" -c "" 2>/dev/null; then
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
        echo "setup_env: '$python' is $("$python" --version 2>&1); vgf-llm needs Python 3.11 to 3.13." >&2
        echo "setup_env: name one, for example: make env PYTHON=python3.13" >&2
        exit 1
    fi
    echo "setup_env: creating $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi

pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)

# Without a GPU the exact version comes first: the resolver would otherwise take the newest torch with its CUDA packages.
if ! "$venv/bin/python" -c "import torch" 2>/dev/null && ! nvidia-smi -L >/dev/null 2>&1; then
    echo "setup_env: no NVIDIA GPU, installing $cpu_torch"
    "${pip[@]}" "$cpu_torch"
fi

echo "setup_env: installing vgf-llm[$extras] (the first time takes minutes)"
"${pip[@]}" --editable ".[$extras]"
