"""The peer to beat: the Hugging Face Trainer with DeepSpeed ZeRO-2, set up as its manual says.

The same shape, data order, batch, precision and optimizer as the other contestants; the fused torch
AdamW is handed to DeepSpeed, because its own CPU build takes minutes. Prints the seconds of each step.

usage: hf_trainer.py SAMPLES.npy STEPS ROWS_PER_MICRO_BATCH THREADS
"""

import json
import os
import sys
import tempfile
import time

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.update(MASTER_ADDR="127.0.0.1", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.setdefault("MASTER_PORT", "29555")

import deepspeed.ops
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

SEQUENCES = 8


class Samples(torch.utils.data.Dataset):
    def __init__(self, path: str) -> None:
        self.samples = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        ids = torch.from_numpy(self.samples[index].astype(np.int64))
        return {"input_ids": ids[:-1], "labels": ids[1:], "shift_labels": ids[1:]}


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_args, **_kwargs) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_args, **_kwargs) -> None:
        self.seconds.append(time.perf_counter() - self.started)


class FusedAdamWTrainer(Trainer):
    def create_optimizer(self, model=None):
        parameters = list(self.model.named_parameters())
        groups = [
            {"params": [p for _, p in parameters if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for _, p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
        return self.optimizer


def main(path: str, steps: int, rows: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=704, num_hidden_layers=8,
        num_attention_heads=8, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    settings = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 2**24, "allgather_bucket_size": 2**24},
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": SEQUENCES // rows,
        "gradient_clipping": 1.0,
        "zero_force_ds_cpu_optimizer": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=rows,
            gradient_accumulation_steps=SEQUENCES // rows, deepspeed=settings, use_cpu=True,
            max_grad_norm=1.0, logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True,
            dataloader_num_workers=0, lr_scheduler_type="constant",
        )  # fmt: skip
        clock = Clock()
        trainer = FusedAdamWTrainer(
            LlamaForCausalLM(shape), arguments, train_dataset=Samples(path), callbacks=[clock]
        )
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    print(json.dumps({"seconds": clock.seconds, "losses": losses}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
