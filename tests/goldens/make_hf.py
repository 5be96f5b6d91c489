# SPDX-License-Identifier: Apache-2.0
"""Make tests/goldens/hf/*.npz: logits and gradients of tiny Hugging Face models.

Run with torch 2.x and transformers 5.x (neither is a dependency of the project):
    python tests/goldens/make_hf.py [case ...]
Each file holds the logits, the tensors' names and shapes, and per tensor the inner product of the
loss gradient with a seeded direction.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
import hf_cases

OUT = Path(__file__).parent / "hf"


def build(name: str, folder: str) -> tuple[torch.nn.Module, dict[str, tuple[int, ...]]]:
    """Save a randomly initialised model, replace its weights by seeded ones, load it again."""
    raw = dict(hf_cases.CASES[name])
    kind = raw.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **raw)
    classes = {
        **dict.fromkeys(("bert", "roberta", "distilbert"), transformers.AutoModelForMaskedLM),
        "t5": transformers.T5ForConditionalGeneration,
    }
    auto = classes.get(kind, transformers.AutoModelForCausalLM)
    fresh = auto(config) if kind == "t5" else auto.from_config(config)
    fresh.save_pretrained(folder)
    path = Path(folder) / "model.safetensors"
    shapes = {key: array.shape for key, array in load_file(path).items()}
    if name == "t5_v1_1":
        shapes["lm_head.weight"] = shapes["shared.weight"]
    arrays = {key: hf_cases.seeded(key, shape) for key, shape in shapes.items()}
    save_file(arrays, path, metadata={"format": "pt"})
    model = auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    if name == "t5_v1_1":  # untied, as the published checkpoints are
        model.lm_head.weight = torch.nn.Parameter(torch.tensor(arrays["lm_head.weight"]))
    return model.eval(), shapes


def gradients(model: torch.nn.Module, folder: str) -> dict[str, float]:
    """Save the gradients as if they were weights, so that names and layouts are the file's."""
    grads = {name: p.grad for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.zeros_like(p) if grads[name] is None else grads[name])
    model.save_pretrained(folder)
    found = load_file(Path(folder) / "model.safetensors")
    directions = {key: hf_cases.seeded("direction " + key, x.shape) for key, x in found.items()}
    return {key: float(np.vdot(x.astype(np.float64), directions[key])) for key, x in found.items()}


def make(name: str) -> None:
    """Write one case's golden file."""
    with tempfile.TemporaryDirectory() as folder:
        model, shapes = build(name, folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        inputs = {
            "input_ids": torch.tensor(hf_cases.tokens()),
            "attention_mask": torch.tensor(hf_cases.mask()),
        }
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.tensor(hf_cases.decoder_tokens())
        logits = model(**inputs).logits
        (logits * torch.tensor(hf_cases.loss_weights())).sum().backward()
        dots = gradients(model, folder)
    np.savez_compressed(
        OUT / f"{name}.npz",
        logits=logits.detach().numpy().astype(np.float32),
        about=np.array(json.dumps({"config": config, "shapes": shapes, "gradients": dots})),
    )
    print(name, float(logits.detach().std()), (OUT / f"{name}.npz").stat().st_size)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for case in sys.argv[1:] or hf_cases.CASES:
        make(case)
