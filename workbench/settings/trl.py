"""Coming from TRL 1.16: every name of its configs and trainers that is not a setting here, and what to do instead.

The configs are those of SFT, DPO, KTO, CPO, ORPO, GRPO and RLOO with all of transformers' TrainingArguments; the
trainers' own arguments are in it too. A name that is missing here is a setting of that name, or an argument of
`wb.sft`, `wb.dpo`, ... (`ARGUMENTS`).
"""

from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    """here   what to write instead; None: there is nothing to write
    why    the difference, in a line
    """

    here: str | None
    why: str


ARGUMENTS = {
    "policy": "wb.load(...), the first argument",
    "rows": "rows or a Task, the second argument",
    "out": "the run's folder",
    "eval_dataset": "held-out rows or a Task",
    "track": "copies of the numbers in W&B, TensorBoard or trackio",
}
"""arguments of `wb.sft`, `wb.dpo`, `wb.grpo`, ... beside the settings"""

_ONE = "a run has one process and one device"
_READ = "data is tokenised before the run and held in memory; there is no data loader"
_STORED = "every number of every step is stored, and the views choose what they show"
_VLLM = (
    "completions are sampled by the policy itself, in this process, in batches that rows leave as they are done;"
    " there is no server"
)
_HUB = "nothing is uploaded while a run goes on"
_KEPT = "snapshots are written by step, and any step can be restored"

SPELT: dict[str, Answer] = {
    # how long, how much
    "learning_rate": Answer("lr", "the same defaults, method by method"),
    "max_steps": Answer("steps", "a step is one committed unit; in GRPO a sampling with all its updates"),
    "num_train_epochs": Answer("steps", "rows times epochs over batch_size; a run is counted in steps"),
    "per_device_train_batch_size": Answer(
        "batch_size (in GRPO prompts_per_step and group_size), or micro_batch_size",
        "batch_size is what an update sees; micro_batch_size is what goes through the model at once",
    ),
    "gradient_accumulation_steps": Answer("micro_batch_size", "batch_size / micro_batch_size; never changes a result"),
    "per_device_eval_batch_size": Answer("micro_batch_size", "of training and evaluation alike"),
    "auto_find_batch_size": Answer(
        "micro_batch_size", "at None it is found, and less where memory runs out; wb.forecast tells what fits"
    ),
    "num_generations": Answer("group_size", "completions per prompt"),
    "generation_batch_size": Answer("prompts_per_step and group_size", "their product"),
    "max_completion_length": Answer("max_new_tokens", "the same"),
    "completion_length": Answer("max_new_tokens", "a name of older versions"),
    "warmup_ratio": Answer("warmup_steps", "below 1 it is a share of all steps, as in transformers 5"),
    "data_seed": Answer("seed", "one seed; every draw is keyed by what it is for"),
    "train_sampling_strategy": Answer(
        "shuffle_dataset", "'sequential' is shuffle_dataset=False; grouping by length would save no pads here"
    ),
    "activation_checkpointing": Answer("gradient_checkpointing", "off by default here, on in TRL; the same numbers"),
    # the model
    "model": Answer("the policy, as the first argument", "wb.load('...') takes a Hub id or a folder"),
    "model_init": Answer("wb.load", "load the model before the run"),
    "model_init_kwargs": Answer("the arguments of wb.load", "dtype, device, revision, quantize"),
    "quantization_config": Answer("wb.load(..., quantize='nf4')", "or 'int8', or a BitsAndBytesConfig"),
    "peft_config": Answer("policy.attach(config) before the run", "wb.LoRA(...) or any peft config"),
    "fp16": Answer("wb.load(..., dtype='float16')", "the model's own precision; no loss scaling"),
    "bf16_full_eval": Answer("bf16", "held-out losses are computed as the updates are"),
    "fp16_full_eval": Answer("wb.load(..., dtype='float16')", "evaluation is in the model's precision"),
    "use_cpu": Answer("wb.load(..., device='cpu')", "the run is where the model is"),
    "ref_model": Answer(
        "nothing: the reference is the policy as it was when the run began", "with adapters too, also trained ones"
    ),
    "precompute_ref_batch_size": Answer("micro_batch_size", "of the reference's passes too"),
    "processing_class": Answer("nothing: the policy brings its tokenizer", "policy.tokenizer"),
    "chat_template_path": Answer("policy.tokenizer.chat_template = ...", "before the run"),
    "chat_template_kwargs": Answer("the row column chat_template_kwargs", "row by row"),
    "eos_token": Answer("policy.tokenizer.eos_token = ...", "before the run"),
    "pad_token": Answer("nothing", "batches are scored without pad tokens; any id fills them up"),
    # the data
    "train_dataset": Answer("the rows or task, as the second argument", "a list, a Dataset, a DataFrame or a file"),
    "dataset_text_field": Answer("wb.rows(..., rename={'...': 'text'})", "columns are named once"),
    "formatting_func": Answer("wb.rows(...).map(function)", "or a column named text"),
    "reward_funcs": Answer("rewards of the Task", "wb.Task(rows, rewards=[...]); TRL's functions work unchanged"),
    "reward_weights": Answer("weights of the Task", "wb.Task(rows, rewards=[...], weights=[...])"),
    # the run
    "args": Answer("the settings themselves, as keyword arguments", "there is no config object"),
    "output_dir": Answer("out", "an existing folder is never overwritten: the run takes the next free name"),
    "run_name": Answer("out", "a run is named after its folder"),
    "eval_strategy": Answer("eval_steps", "with eval_dataset a run evaluates at step 0, every eval_steps, at the end"),
    "do_eval": Answer("eval_dataset", "given, it is evaluated"),
    "save_steps": Answer("snapshot_steps", "steps between two snapshots are restored by replay"),
    "save_strategy": Answer("snapshot_steps", _KEPT),
    "save_total_limit": Answer("snapshot_gb", "disk instead of a count"),
    "resume_from_checkpoint": Answer("wb.resume(folder)", "bit for bit; or run.rewind(step) within a session"),
    "load_best_model_at_end": Answer("run.rewind(step)", "with the step that run.metrics shows to be best"),
    "report_to": Answer("track='wandb'", "or 'tensorboard', 'trackio', a wb.Tracker, or several"),
    "callbacks": Answer("for step in run: ...", "the loop is yours: look, run.set(...), break"),
    "push_to_hub": Answer("run.push('name/repo')", "when you say so"),
    "hub_model_id": Answer("run.push('name/repo')", _HUB),
    "hub_private_repo": Answer("run.push('name/repo', private=True)", _HUB),
    "generation_kwargs": Answer(
        "stop_strings", "and temperature, top_p, top_k, min_p, repetition_penalty; there is no beam search"
    ),
    "generate_during_eval": Answer("eval_dataset=wb.Task(...)", "a Task is sampled and scored, rows give a loss"),
    "optim_args": Answer("adam_beta1, adam_beta2, adam_epsilon", "other optimisers run with transformers' defaults"),
    # sampler and trainer that disagree: there is no vLLM, but other precision or a quantised sampler
    "vllm_importance_sampling_correction": Answer("sampler_correction", "None is off; it names the mode too"),
    "vllm_importance_sampling_mode": Answer("sampler_correction", "the same four modes"),
    "vllm_importance_sampling_clip_max": Answer("sampler_correction_max", "the same"),
    "vllm_importance_sampling_clip_min": Answer("sampler_correction_min", "the same"),
    "vllm_importance_sampling_cap": Answer("sampler_correction_max", "TRL's older name of it"),
}
"""TRL's spelling -> what to write here"""

_WITHOUT = {
    # always so
    "gradient checkpointing is always without re-entry": (
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs"
    ),
    "loss and metrics are always those of all tokens of the update": "average_tokens_across_devices",
    "rows keep all their columns; rewards get them": "remove_unused_columns",
    "the labels are the tokens themselves": "label_names",
    "the run is evaluated at step 0 always, where there is an eval_dataset": "eval_on_start eval_delay",
    "calling wb.sft, wb.dpo or wb.grpo is training": "do_train do_predict",
    "evaluation gives numbers only, added up micro-batch by micro-batch": (
        "eval_accumulation_steps eval_do_concat_batches eval_use_gather_object batch_eval_metrics prediction_loss_only"
    ),
    "the metric num_tokens counts them": "include_num_input_tokens_seen",
    "every draw follows from the seed, and a run that is resumed or rewound goes on bit for bit": (
        "full_determinism ignore_data_skip restore_callback_states_from_checkpoint"
    ),
    "scoring never keeps a cache, and sampling always does where the model can": "use_cache cache_implementation",
    "lengths are counted from the tokens": "length_column_name",
    "rollouts are stored whole: run.rollouts(), run.browse()": (
        "log_completions log_completions_hub_repo log_unique_prompts num_completions_to_print log_multimodal"
    ),
    _STORED: "logging_steps logging_strategy logging_first_step logging_nan_inf_filter",
    _KEPT: "save_only_model enable_jit_checkpoint",
    "a snapshot holds what is trained and the optimiser; the best step is yours to choose": (
        "metric_for_best_model greater_is_better"
    ),
    "use Python's own logging and warnings": "log_level log_level_replica log_on_each_node debug",
    "run.run() shows a progress bar, `for step in run` none": "disable_tqdm",
    _READ: (
        "dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers"
        " dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor dataset_num_proc"
        " dataset_kwargs data_collator"
    ),
    "no batch is wider than its longest row, and pads are never scored": "pad_to_multiple_of padding_value",
    _HUB: "hub_always_push hub_revision hub_strategy",
    "the Hub's own login is used": "hub_token",
    "the tracker's own settings say where its numbers go": (
        "project trackio_bucket_id trackio_space_id trackio_static_space_id"
    ),
    "memory is foretold by wb.forecast and run.forecast(), not measured step by step": "skip_memory_metrics",
    # not here
    _ONE: (
        "accelerator_config ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters"
        " ddp_static_graph ddp_timeout deepspeed ds3_gather_for_generation fsdp fsdp_config local_rank"
        " parallelism_config save_on_each_node"
    ),
    _VLLM: (
        "use_vllm vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_group_port vllm_max_model_length vllm_mode"
        " vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout"
        " vllm_structured_outputs_regex vllm_tensor_parallel_size use_transformers_continuous_batching"
        " use_transformers_paged transformers_continuous_batching_config rollout_func"
    ),
    "logits are normalised in float32 always; the head's product has the precision of its weights, also with bf16": (
        "cast_lm_head_to_fp32"
    ),
    "logits are made a piece at a time in every run; no kernels of other projects replace the model's": (
        "use_liger_kernel liger_kernel_config"
    ),
    "models run as they are, without compilation; on CUDA the sampler captures its steps as graphs": (
        "torch_compile torch_compile_backend torch_compile_mode"
    ),
    "torch's global switches are yours: torch.backends.cuda.matmul.allow_tf32": "tf32",
    "memory is left to torch's allocator, which is emptied where memory ran out": "torch_empty_cache_steps",
    "code in a model's repository is never run": "trust_remote_code",
    "tasks are single turns: no tools and no environments": ("tools environment_factory max_tool_calling_iterations"),
    "rewards are functions; a reward model is one that you call in yours": "reward_processing_classes",
    "a loss of your own is a row of the table in `workbench.objectives`": "compute_loss_func",
    "metrics of your own are computed in the loop, or are rewards of a Task": (
        "compute_metrics preprocess_logits_for_metrics include_for_metrics"
    ),
    "optimisers are chosen by name: optim": "optimizers optimizer_cls_and_kwargs",
    "which tensors train is the adapter's matter: policy.attach(wb.LoRA(targets=...))": "optim_target_modules",
    "models are causal language models": "is_encoder_decoder",
    "the router's balance is not trained": "router_aux_loss_coef",
    "no noise is added to embeddings": "neftune_noise_alpha",
    "activations stay on the device; gradient_checkpointing spends less of it": "activation_offloading",
}
"""why there is no such setting -> TRL's names"""

ANSWERS: dict[str, Answer] = SPELT | {
    name: Answer(None, why) for why, names in _WITHOUT.items() for name in names.split()
}
"""all of TRL's names that are no settings here"""
TRL_NAMES = {name: answer.here for name, answer in SPELT.items()}
"""those of them with something to write instead"""


def say(name: str) -> str:
    """What to tell someone who gave TRL's `name`, as a sentence."""
    here, why = ANSWERS[name]
    return f"TRL's {name} is given here by: {here}." if here else f"TRL's {name} has no counterpart here: {why}."
