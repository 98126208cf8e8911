"""Names of settings that exported files may use, as read off the sources of their tools.

| tool | version | where the names stand |
|---|---|---|
| axolotl | 0.19.0 | `axolotl/utils/schemas/{config,model,peft,training,datasets}.py` |
| LLaMA-Factory | 0.9.5 | `llamafactory/hparams/{model,data,finetuning}_args.py` |
| DeepSpeed | 0.19.8 | `deepspeed/runtime/{constants,lr_schedules,precision_config}.py`, `zero/` |
| torchtitan | 0.3.0 | `torchtitan/config/configs.py`, `components/optimizer`, `trainer.py` |

Names of accelerate and of transformers' `TrainingArguments` are asked of the installed packages.
"""

from __future__ import annotations

AXOLOTL = frozenset(
    {
        *("base_model", "trust_remote_code", "datasets", "val_set_size", "output_dir"),
        *("sequence_len", "sample_packing", "pad_to_sequence_len", "micro_batch_size"),
        *("gradient_accumulation_steps", "max_steps", "optimizer", "learning_rate"),
        *("lr_scheduler", "warmup_steps", "weight_decay", "max_grad_norm", "seed"),
        *("bf16", "fp16", "bfloat16", "float16", "tf32", "attn_implementation"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs", "selective_checkpointing"),
        *("activation_offloading", "chunked_cross_entropy", "chunked_cross_entropy_num_chunks"),
        *("dataloader_pin_memory", "adapter", "load_in_8bit", "load_in_4bit", "lora_r"),
        *("lora_alpha", "lora_dropout", "lora_target_linear", "lora_target_modules"),
        *("peft_use_dora", "path", "type", "field", "save"),
    }
)

LLAMA_FACTORY = frozenset(
    {
        *("stage", "model_name_or_path", "trust_remote_code", "dataset_dir", "dataset"),
        *("cutoff_len", "packing", "val_size", "pure_bf16", "disable_gradient_checkpointing"),
        *("use_reentrant_gc", "flash_attn", "finetuning_type", "lora_rank", "lora_alpha"),
        *("lora_dropout", "lora_target", "use_dora", "quantization_bit", "quantization_method"),
    }
)

DEEPSPEED = frozenset(
    {
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
        *("gradient_clipping", "optimizer", "scheduler", "type", "params"),
        *("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type"),
        *("total_num_steps", "zero_optimization", "stage", "offload_optimizer", "device"),
        *("bf16", "enabled", "torch_autocast", "dtype"),
        *("lr", "weight_decay"),  # of torch.optim's and DeepSpeed's optimizers alike
    }
)

TORCHTITAN = frozenset(
    {
        *("training", "local_batch_size", "global_batch_size", "seq_len", "steps", "max_norm"),
        *("dtype", "mixed_precision_param", "optimizer", "implementation", "lr_scheduler"),
        *("warmup_steps", "activation_checkpoint", "compile", "enable", "debug", "seed"),
        *("LRSchedulersContainer", "default_adamw", "FullAC", "SelectiveAC", "Config"),
        *("llama3_debugmodel", "qwen3_debugmodel", "betas", "weight_decay", "lr"),
    }
)
