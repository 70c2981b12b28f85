# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Module names of the first release."""

import sys
from importlib import import_module

import pytest
from trl import GRPOConfig

from vgf_llm._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_old_module_names_say_where_they_stand_now(old):
    sys.modules.pop(old, None)
    with pytest.warns(FutureWarning, match=f"`{old}` is `{MOVED[old]}` now"):
        module = import_module(old)
    new = import_module(MOVED[old])
    name = next(name for name in dir(new) if name[0].isupper() or (name.islower() and name[0] != "_"))
    assert getattr(module, name) is getattr(new, name)
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


def test_the_settings_of_rounds_are_trls():
    sys.modules.pop("vgf_llm.trainer.rollout_config", None)
    with pytest.warns(FutureWarning):
        module = import_module("vgf_llm.trainer.rollout_config")
    assert module.RolloutConfig is GRPOConfig
