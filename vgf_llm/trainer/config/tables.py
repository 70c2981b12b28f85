# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the settings of `VGFConfig` may be, and what takes the place of those that it does not use."""

from vgf_llm.functional._checks import Range

# The losses that each value can be trained by.
VALUE_LOSSES: dict[str, tuple[str, ...]] = {
    "log_ratio": ("likelihood", "pairwise", "bernoulli"),
    "bilinear": ("pairwise", "bernoulli", "regression"),
    "vocab": ("pairwise", "bernoulli", "regression"),
    "sequence": ("pairwise", "regression"),
}

CHOICES: dict[str, tuple[str | None, ...]] = {
    "value_parametrization": tuple(VALUE_LOSSES),
    "value_loss": ("auto", "likelihood", "pairwise", "bernoulli", "regression"),
    "value_pooling": ("mean", "last"),
    "rollout_policy": (None, "base", "value", "transport"),
    "prompt_selection": ("dataset", "unsolved"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers"),
    # "quantized" samples another distribution than the one that is scored.
    "cache_implementation": (
        None, "dynamic", "static", "sliding_window", "hybrid", "hybrid_chunked", "offloaded", "offloaded_static",
        "offloaded_hybrid", "offloaded_hybrid_chunked",
    ),
}  # fmt: skip

# Any other text is read as the path or hub id of a model.
VALUE_BACKBONES = ("lora", "copy", "policy")

_COUNT = Range(1, integer=True)
_OPTIONAL_COUNT = Range(1, integer=True, optional=True)
_PORT = Range(1, 65535, integer=True)

# Bounds above are far beyond what trains: weights overflow there within a step or two.
RANGES: dict[str, Range] = {
    # The value and its training.
    "value_head_hidden_size": Range(1, 2**17, integer=True, optional=True, hint="None gives a linear head."),
    "value_ensemble_size": Range(1, 1024, integer=True),
    "value_learning_rate": Range(0, 100, open_low=True, optional=True, hint="None takes `learning_rate`."),
    "replay_ratio": Range(0, 100, hint="0 trains on fresh completions alone."),
    "buffer_size": Range(0, integer=True),
    "value_holdout_ratio": Range(0, 1, open_high=True, hint="0 holds no prompts out."),
    "distill_coef": Range(0, 1000, hint="0 leaves the policy frozen."),
    # The rounds.
    "num_generations": Range(2, integer=True, hint="Values are learned by comparing completions of one prompt."),
    "num_generations_eval": _OPTIONAL_COUNT,
    "num_base_generations": Range(
        0, integer=True, optional=True, hint="None takes half where the value samples, 0 leaves all to the value."
    ),
    "rollout_fraction": Range(0, 1, open_low=True, hint="1 samples in every round."),
    "rollout_prefetch": Range(0, integer=True, hint="0 samples each round when it is due."),
    "max_rounds_without_reward": _COUNT,
    "generation_batch_size": _OPTIONAL_COUNT,
    "steps_per_generation": _OPTIONAL_COUNT,
    "num_iterations": _COUNT,
    "num_completions_to_print": Range(0, integer=True, optional=True, hint="None prints all."),
    # Sampling. vLLM raises lower temperatures to 0.01 as well: below it logits overflow.
    "max_completion_length": _COUNT,
    "temperature": Range(0.01),
    "top_p": Range(0, 1, open_low=True, hint="1 keeps all tokens."),
    "top_k": Range(0, integer=True, hint="0 keeps all tokens."),
    "min_p": Range(0, 1, optional=True),
    "repetition_penalty": Range(0.01, 100, hint="1 penalises nothing."),
    "vllm_server_port": _PORT,
    "vllm_group_port": _PORT,
    "vllm_server_timeout": Range(0),
    "vllm_gpu_memory_utilization": Range(0, 1, open_low=True),
    "vllm_max_model_length": _OPTIONAL_COUNT,
    "vllm_tensor_parallel_size": _COUNT,
    # The entropy bonus.
    **dict.fromkeys(("entropy_coef", "entropy_coef_min", "entropy_coef_max"), Range(-1000, 1000)),
    "entropy_coef_delta": Range(0, 1000),
    "entropy_target": Range(0),
    # transformers' own, where it has no check or an obscure one.
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "max_steps": Range(-1, integer=True, hint="-1 leaves the length to `num_train_epochs`."),
    "num_train_epochs": Range(0, 1e6, open_low=True),
    "learning_rate": Range(0, 100),
    "warmup_steps": Range(0, hint="A number below 1 is a share of the training."),
    "weight_decay": Range(0, 1000),
    "adam_beta1": Range(0, 1, open_high=True),
    "adam_beta2": Range(0, 1, open_high=True),
    "adam_epsilon": Range(0, open_low=True),
    "max_grad_norm": Range(0, optional=True, hint="0 clips nothing."),
    "logging_steps": Range(0, hint="A number below 1 is a share of the training."),
    "save_steps": Range(0, hint="A number below 1 is a share of the training."),
    "eval_steps": Range(0, optional=True, hint="A number below 1 is a share of the training."),
    "dataloader_num_workers": Range(0, 1024, integer=True),
    "seed": Range(0, 2**31 - 1, integer=True),
    "data_seed": Range(0, 2**31 - 1, integer=True, optional=True),
}

_RATIO = "the value's losses have no importance ratio"
_LOSS = "`value_loss` chooses the loss"
_REFERENCE = "the reference is the base model, and stays"

# Settings of TRL's GRPOConfig and RLOOConfig that have no meaning here, and why.
IGNORED: dict[str, str] = {
    "beta": "the transport budget takes its place: transport_steps * step_size = 1 / beta, set at generation time too",
    **dict.fromkeys(("epsilon", "epsilon_high", "delta", "importance_sampling_level"), _RATIO),
    **dict.fromkeys(("off_policy_mask_threshold", "use_bias_correction_kl"), _RATIO),
    **dict.fromkeys(("vllm_importance_sampling_correction", "vllm_importance_sampling_mode"), _RATIO),
    **dict.fromkeys(("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"), _RATIO),
    "vllm_importance_sampling_cap": _RATIO,
    **dict.fromkeys(("loss_type", "sapo_temperature_neg", "sapo_temperature_pos"), _LOSS),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), _LOSS),
    **dict.fromkeys(("scale_rewards", "normalize_advantages"), "rewards are fitted or compared as they are"),
    "reward_clip_range": "rewards are not clipped; clip them in the reward function",
    "multi_objective_aggregation": "the value learns the weighted sum of the rewards (`reward_weights`)",
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), _REFERENCE),
    "top_entropy_quantile": "the losses are of all tokens; `min_entropy` of `transport` leaves certain tokens alone",
    "router_aux_loss_coef": "the value's losses have no term for the load of experts",
    "cast_lm_head_to_fp32": "log-probabilities come from the model's own logits",
    "max_tool_calling_iterations": "no tools are called; a `rollout_func` can run an environment",
    "log_completions_hub_repo": "completions are logged to `report_to`",
}

_HEAD = "a head is no policy that has an entropy; `min_entropy` of `transport` leaves certain tokens alone"
# Settings of TRL's entropy bonus, and why values that are no policy ignore them.
ENTROPY: dict[str, str] = {
    **dict.fromkeys(("entropy_coef", "use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max"), _HEAD),
    **dict.fromkeys(("entropy_coef_delta", "entropy_target"), _HEAD),
}

# Keywords that are gone, and what to write instead.
REMOVED: dict[str, str] = {
    "value_lora_r": "give the trainer `peft_config=LoraConfig(r=...)`",
    "value_lora_alpha": "give the trainer `peft_config=LoraConfig(lora_alpha=...)`",
    "value_coef": "the value's loss has weight 1; `distill_coef` is relative to it",
    "winner_coef": "`value_loss='likelihood'` or 'pairwise' chooses between the two losses that it mixed",
    "td_lambda": "the targets are the outcomes",
    "expectile": "`value_loss='regression'` estimates the mean",
    "transport_metric": "the flow has one metric, Fisher's",
    "rollout_transport_steps": "`rollout_policy='transport'` samples the policy transported by `transport_steps`, "
    "'base' the base model",
    "max_prompt_length": "TRL has removed it; filter or shorten the prompts of the dataset",
    "warmup_ratio": "transformers has removed it; set `warmup_steps` to a number below 1",
}

# Keys of `generation_kwargs` that are settings of the configuration.
SAMPLING: dict[str, str] = {
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")},
    "max_new_tokens": "max_completion_length",
    "max_tokens": "max_completion_length",
}

# Settings of `generate` that neither losses nor vLLM know, at the values that leave a distribution alone.
NEUTRAL_SAMPLING: dict[str, float] = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "no_repeat_ngram_size": 0,
}

# Other keys whose value has to be the one given here, and why.
FIXED_SAMPLING: dict[str, tuple[object, str]] = {
    "do_sample": (True, "greedy completions of one prompt are all equal"),
    "num_return_sequences": (1, "`num_generations` says how many completions a prompt has"),
    "n": (1, "`num_generations` says how many completions a prompt has"),
    "num_beams": (1, "beam search does not sample"),
    "num_beam_groups": (1, "beam search does not sample"),
    "max_length": (None, "set `max_completion_length`"),
    **{
        name: (
            neutral,
            "the loss does not know it, so that the value would learn the sampler; `temperature`, `top_p`, `top_k`, "
            "`min_p` and `repetition_penalty` are known",
        )
        for name, neutral in NEUTRAL_SAMPLING.items()
    },
    **{
        name: (False, "the trainer reads token ids")
        for name in (
            "return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"
        )
    },
}  # fmt: skip
