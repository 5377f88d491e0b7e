"""TRL 1.16's names that are spelt differently here, and what to write instead."""

# TRL's spelling -> what to write here
TRL_NAMES = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "num_generations": "group_size",
    "max_completion_length": "max_new_tokens",
    "generation_batch_size": "prompts_per_step and group_size",
    "per_device_train_batch_size": "batch_size (in GRPO prompts_per_step and group_size), or micro_batch_size",
    "per_device_eval_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "output_dir": "out",
    "eval_strategy": "eval_steps",
    "save_steps": "snapshot_steps",
    "save_strategy": "snapshot_steps",
    "reward_funcs": "rewards of the Task",
    "reward_weights": "weights of the Task",
    "train_dataset": "the rows or task, as the second argument",
    "processing_class": "nothing: the policy brings its tokenizer",
    "peft_config": "policy.attach(config) before the run",
    "model_init_kwargs": "the arguments of wb.load",
    "ref_model": "nothing: the reference is the policy as it was when the run began",
    "args": "the settings themselves, as keyword arguments",
    "completion_length": "max_new_tokens",
    "warmup_ratio": "warmup_steps",
}
