# SPDX-License-Identifier: Apache-2.0
"""Make tests/goldens/posttrain_trajectories.npz: losses of 50 steps of TRL's SFT and DPO trainers.

Run with torch 2.x, transformers 5.x and trl 1.16 (none is a dependency of the project):
    python tests/goldens/make_trajectories.py

Both train a tiny Llama with seeded weights on the batches of `posttrain_cases`, in their order.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from datasets import Dataset
from safetensors.numpy import load_file, save_file
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

sys.path.insert(0, str(Path(__file__).parent))
import hf_cases
import posttrain_cases as cases


def seeded_model(folder: str) -> Any:
    """Return the tiny Llama; the folder stays, for TRL's reference is read from it again."""
    raw = dict(hf_cases.CASES["llama"])
    config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path = Path(folder) / "model.safetensors"
    arrays = {k: hf_cases.seeded(k, x.shape) for k, x in load_file(path).items()}
    save_file(arrays, path, metadata={"format": "pt"})
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )


def tokenizer() -> Any:
    """Return a tokenizer that the trainers can hold; nothing is encoded with it."""
    words = {f"t{i}": i for i in range(hf_cases.V)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="t3"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="t0", bos_token="t1", eos_token="t2", unk_token="t3"
    )


def settings(folder: str) -> dict[str, Any]:
    """Return the options that both trainers share."""
    o = cases.OPTIMIZER
    return {
        "output_dir": folder,
        "per_device_train_batch_size": cases.ROWS,
        "max_steps": cases.STEPS,
        "learning_rate": o["peak"],
        "lr_scheduler_type": "constant",
        "adam_beta1": o["b1"],
        "adam_beta2": o["b2"],
        "adam_epsilon": o["eps"],
        "weight_decay": o["weight_decay"],
        "max_grad_norm": o["clip"],
        "optim": "adamw_torch",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
    }


class Recorder:
    """Mixed into a trainer: rows are used as they are, in order, and every loss is kept."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), loss.item()]
        return loss


class SFT(Recorder, SFTTrainer):
    """TRL's supervised trainer."""


class DPO(Recorder, DPOTrainer):
    """TRL's preference trainer."""


def main() -> None:
    """Write the golden file."""
    count = cases.STEPS * cases.ROWS
    chats, pairs = [], []
    for number in range(count):
        prompt, good, bad = cases.pair(number)
        labels = [-100] * len(prompt) + good
        chats.append({"input_ids": prompt + good, "labels": labels})
        pairs.append({"prompt_ids": prompt, "chosen_ids": good, "rejected_ids": bad})
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        options = settings(folder)
        sft = SFT(
            seeded_model(folder),
            SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=Dataset.from_list(chats),
            processing_class=tokenizer(),
        )
        sft.train()
        found["sft"] = sft.losses
        dpo = DPO(
            seeded_model(folder),
            None,
            DPOConfig(**options, beta=cases.BETA),
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer(),
        )
        dpo.train()
        found["dpo"] = dpo.losses
    place = Path(__file__).parent / cases.TRAJECTORIES
    np.savez_compressed(place, **{name: np.array(x) for name, x in found.items()})
    print({name: (len(x), x[0], x[-1]) for name, x in found.items()})


if __name__ == "__main__":
    main()
