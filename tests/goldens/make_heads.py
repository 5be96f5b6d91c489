# SPDX-License-Identifier: Apache-2.0
"""Make tests/goldens/heads/*.npz: class logits of tiny Hugging Face classifiers.

Run with torch 2.x and transformers 5.x (neither is a dependency of the project):
    python tests/goldens/make_heads.py
    python tests/goldens/make_heads.py --exports FOLDER
The second form opens what the project exported to FOLDER/<case> and prints how far it is.
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

OUT = Path(__file__).parent / "heads"
CASES = {
    "llama_sequence": ("llama", "Sequence"),
    "gpt2_sequence": ("gpt2", "Sequence"),
    "bert_sequence": ("bert", "Sequence"),
    "bert_token": ("bert", "Token"),
    "llama_token": ("llama", "Token"),
}
LABELS = {"id2label": {0: "no", 1: "yes", 2: "unsure"}}


def logits_of(model: torch.nn.Module) -> np.ndarray:
    """Return class logits of the shared padded batch."""
    inputs = {"input_ids": hf_cases.tokens(), "attention_mask": hf_cases.mask()}
    tensors = {key: torch.tensor(value) for key, value in inputs.items()}
    return model.eval()(**tensors).logits.detach().numpy().astype(np.float32)


def auto(unit: str) -> type:
    """Return the class of a head."""
    return getattr(transformers, f"AutoModelFor{unit}Classification")


def make(name: str) -> None:
    """Write one case's golden file."""
    source, unit = CASES[name]
    raw = {**hf_cases.CASES[source], **LABELS, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    with tempfile.TemporaryDirectory() as folder:
        auto(unit).from_config(config).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        shapes = {key: array.shape for key, array in load_file(path).items()}
        arrays = {key: hf_cases.seeded(key, shape) for key, shape in shapes.items()}
        save_file(arrays, path, metadata={"format": "pt"})
        settings = json.loads((Path(folder) / "config.json").read_text())
        model = auto(unit).from_pretrained(folder, attn_implementation="eager")
        found = logits_of(model)
    about = {"config": settings, "shapes": shapes}
    np.savez_compressed(OUT / f"{name}.npz", logits=found, about=np.array(json.dumps(about)))
    print(name, found.shape, float(found.std()))


def reopen(folder: Path) -> None:
    """Compare exported classifiers with the originals."""
    for name, (_, unit) in CASES.items():
        model = auto(unit).from_pretrained(folder / name, attn_implementation="eager")
        with np.load(OUT / f"{name}.npz") as file:
            print(name, float(np.abs(logits_of(model) - file["logits"]).max()))


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    if sys.argv[1:2] == ["--exports"]:
        reopen(Path(sys.argv[2]))
    else:
        for case in CASES:
            make(case)
