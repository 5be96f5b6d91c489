# SPDX-License-Identifier: Apache-2.0
"""Make tests/goldens/hf/*.npz: logits and gradients of tiny Hugging Face models.

Run with torch 2.x and transformers 5.x (neither is a dependency of the project):
    python tests/goldens/make_hf.py [case ...]
    python tests/goldens/make_hf.py --exports FOLDER
Each file holds the logits, the tensors' names and shapes, the loss gradients of three tensors, and
of every tensor the inner product of its gradient with a seeded direction; for encoder-decoders also
the greedy continuation. The second form opens what `parity.py FOLDER` exported and records how far
its logits are from the original's.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
import hf_cases

OUT = Path(__file__).parent / "hf"
FIGURES = Path(__file__).parent / "hf_parity.json"


def auto_class(kind: str) -> Any:
    """Return the class with the language-model head of a model_type."""
    classes = {
        **dict.fromkeys(("bert", "roberta", "distilbert"), transformers.AutoModelForMaskedLM),
        "t5": transformers.T5ForConditionalGeneration,
    }
    return classes.get(kind, transformers.AutoModelForCausalLM)


def build(name: str, folder: str) -> tuple[torch.nn.Module, dict[str, tuple[int, ...]]]:
    """Save a randomly initialised model, replace its weights by seeded ones, load it again."""
    raw = dict(hf_cases.CASES[name])
    kind = raw.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **raw)
    auto = auto_class(kind)
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


def gradients(
    model: torch.nn.Module, folder: str
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Save the gradients as if they were weights, so that names and layouts are the file's."""
    grads = {name: p.grad for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.zeros_like(p) if grads[name] is None else grads[name])
    model.save_pretrained(folder)
    found = load_file(Path(folder) / "model.safetensors")
    directions = {key: hf_cases.seeded("direction " + key, x.shape) for key, x in found.items()}
    dots = {key: float(np.vdot(x.astype(np.float64), directions[key])) for key, x in found.items()}
    return dots, {key: found[key] for key in hf_cases.chosen(list(found))}


def make_inputs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the padded batch that every case reads."""
    inputs = {
        "input_ids": torch.tensor(hf_cases.tokens()),
        "attention_mask": torch.tensor(hf_cases.mask()),
    }
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor(hf_cases.decoder_tokens())
    return inputs


def greedy(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[list[int]]:
    """Return the greedy continuation of each row, without the start token, never ending early."""
    made = model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=hf_cases.GENERATED,
        min_new_tokens=0,
        eos_token_id=-1,
        do_sample=False,
        use_cache=False,  # transformers sizes its cache by the encoder's layers
        num_beams=1,
    )
    return made[:, 1:].tolist()


def verify(folder: Path) -> None:
    """Open every exported folder and its original; record how far apart their logits are."""
    table = json.loads(FIGURES.read_text())
    for name, case in hf_cases.CASES.items():
        auto, logits = auto_class(case["model_type"]), []
        for place in (folder / "originals" / name, folder / name, folder / "sharded" / name):
            model = auto.from_pretrained(place, attn_implementation="eager", dtype=torch.float32)
            with torch.no_grad():
                logits.append(model.eval()(**make_inputs(model)).logits.numpy())
        real = hf_cases.loss_mask(model.config.is_encoder_decoder)
        with np.load(OUT / f"{name}.npz") as golden:
            assert np.abs(logits[0] - golden["logits"])[real].max() < 1e-5, name
        table[name]["export"], table[name]["sharded"] = (
            float(np.abs(ours - logits[0])[real].max()) for ours in logits[1:]
        )
        print(name, table[name]["export"], table[name]["sharded"])
    FIGURES.write_text(json.dumps(table, indent=1) + "\n")


def make(name: str) -> None:
    """Write one case's golden file."""
    with tempfile.TemporaryDirectory() as folder:
        model, shapes = build(name, folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        inputs = make_inputs(model)
        logits = model(**inputs).logits
        about = {"config": config, "shapes": shapes}
        if model.config.is_encoder_decoder:
            about["generated"] = greedy(model, inputs)
        (logits * torch.tensor(hf_cases.loss_weights())).sum().backward()
        about["gradients"], whole = gradients(model, folder)
    np.savez_compressed(
        OUT / f"{name}.npz",
        logits=logits.detach().numpy().astype(np.float32),
        about=np.array(json.dumps(about)),
        **{f"gradient {key}": x.astype(np.float32) for key, x in whole.items()},
    )
    print(name, float(logits.detach().std()), (OUT / f"{name}.npz").stat().st_size)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--exports"]:
        verify(Path(sys.argv[2]))
    else:
        OUT.mkdir(exist_ok=True)
        for case in sys.argv[1:] or hf_cases.CASES:
            make(case)
