# SPDX-License-Identifier: Apache-2.0
"""The peer of benchmarks/lora_sft.py: TRL's SFTTrainer with a PEFT adapter, on given rows.

    python benchmarks/peers/lora_sft.py FOLDER BATCH STEPS RATE

FOLDER holds base/ (a Hugging Face model), peft/ (the first adapters) and rows.npz. Prints one JSON
line: loss of the held-out rows before and after, the loss and the seconds of every step.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from peft import PeftModel
from trl import SFTConfig, SFTTrainer


def examples(data: dict[str, np.ndarray], start: int, end: int) -> Dataset:
    """Return rows as ids and labels; targets are one step ahead of tokens."""
    made = []
    for row in range(start, end):
        size = int(data["segments"][row].sum())
        counted = data["weights"][row, : size - 1] > 0
        labels = np.where(counted, data["targets"][row, : size - 1], -100)
        ids = data["tokens"][row, :size].tolist()
        made.append({"input_ids": ids, "labels": [-100, *labels.tolist()]})
    return Dataset.from_list(made)


class Trainer(SFTTrainer):
    """Take rows as they are, in order; keep the loss and the time of every step."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        if self.model.training:
            self.losses = [*getattr(self, "losses", []), loss.item()]
        return loss


class Clock(transformers.TrainerCallback):
    """Time each step, the update included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


@torch.no_grad()
def held_out(model: Any, data: dict[str, np.ndarray], start: int, batch: int) -> float:
    """Return the mean negative log-likelihood of the weighted targets."""
    model.eval()
    total = 0.0
    for row in range(start, len(data["tokens"]), batch):
        chosen = slice(row, row + batch)
        tokens, mask = (torch.tensor(data[k][chosen]).long() for k in ("tokens", "segments"))
        logps = torch.log_softmax(model(input_ids=tokens, attention_mask=mask).logits, -1)
        targets = torch.tensor(data["targets"][chosen]).long()
        each = logps.gather(-1, targets[..., None])[..., 0]
        total -= float((each * torch.tensor(data["weights"][chosen])).sum())
    model.train()
    return total / float(data["weights"][start:].sum())


def main(folder: Path, batch: int, steps: int, rate: float) -> None:
    """Train and print."""
    with np.load(folder / "rows.npz") as file:
        data = dict(file)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "base", dtype=torch.float32, attn_implementation="sdpa"
    )
    model = PeftModel.from_pretrained(base, folder / "peft", is_trainable=True)
    config = SFTConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type="constant",
        adam_beta2=0.999,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        pad_to_multiple_of=data["tokens"].shape[1],
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        disable_tqdm=True,
    )
    clock = Clock()
    trainer = Trainer(
        model,
        config,
        train_dataset=examples(data, 0, batch * steps),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder / "base"),
        callbacks=[clock],
    )
    before = held_out(trainer.model, data, batch * steps, batch)
    trainer.train()
    after = held_out(trainer.model, data, batch * steps, batch)
    found = {"before": before, "after": after, "losses": trainer.losses}
    print("\n" + json.dumps(found | {"seconds": clock.seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]), float(sys.argv[4]))
