# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The mathematics of Value Gradient Flow as pure functions of plain tensors."""

from .budget import cap_kl, kl_divergence, mmd_bound, mmd_squared, relative_displacement, tokens_changed
from .flow import TransportResult, flow_direction, transport
from .kernels import kernel_matrix, median_bandwidth, rbf_kernel
from .losses import (
    bernoulli_value_loss,
    centre_by_prompt,
    distillation_loss,
    expectile_loss,
    masked_mean,
    pairwise_value_loss,
    regression_value_loss,
    success_likelihood_loss,
    td_lambda_targets,
    winner_likelihood_loss,
    within_prompt_accuracy,
)
from .sequence import langevin_scale, pool_tokens, sequence_direction, sequence_step, straight_through_tokens
from .simplex import candidate_set, simplex_direction, simplex_flow

__all__ = [
    "TransportResult",
    "bernoulli_value_loss",
    "candidate_set",
    "cap_kl",
    "centre_by_prompt",
    "distillation_loss",
    "expectile_loss",
    "flow_direction",
    "kernel_matrix",
    "kl_divergence",
    "langevin_scale",
    "masked_mean",
    "median_bandwidth",
    "mmd_bound",
    "mmd_squared",
    "pairwise_value_loss",
    "pool_tokens",
    "rbf_kernel",
    "regression_value_loss",
    "relative_displacement",
    "sequence_direction",
    "sequence_step",
    "simplex_direction",
    "simplex_flow",
    "straight_through_tokens",
    "success_likelihood_loss",
    "td_lambda_targets",
    "tokens_changed",
    "transport",
    "winner_likelihood_loss",
    "within_prompt_accuracy",
]
