# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The mathematics of Value Gradient Flow as pure functions of plain tensors."""

from ._checks import Range, check_choice, value_checks
from ._masking import masked_log_softmax
from .budget import cap_kl, kl_divergence, mmd_bound, mmd_squared
from .flow import TransportResult, flow_direction, transport
from .kernels import kernel_matrix, median_bandwidth, rbf_kernel
from .losses import (
    bernoulli_value_loss,
    distillation_loss,
    masked_mean,
    pairwise_value_loss,
    regression_value_loss,
    success_likelihood_loss,
    within_prompt_accuracy,
)
from .sequence import pool_tokens, sequence_direction, sequence_step, straight_through_tokens
from .simplex import candidate_set, simplex_direction, simplex_flow
