# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Anthropic's HH: helpful and harmless answers, one of the paper's two tasks, from the hub or a local folder.

First the reward model, then the recipe:

    accelerate launch reward_models/train.py --config reward_models/configs/hh_pythia_2.8b.yaml
    accelerate launch recipes/hh_vgf.py --config recipes/configs/hh_pythia_2.8b.yaml

A folder in `--dataset_name` holds a file for each split, such as `train.jsonl.gz`. Every field of `VGFConfig` and of
TRL's `ModelConfig` is an option; `--help` lists them.
"""

import sys
from pathlib import Path

from recipes.preferences import main

CONFIG = Path(__file__).parent / "configs" / "hh_pythia_2.8b.yaml"

if __name__ == "__main__":
    main(sys.argv[1:], CONFIG)
