# SPDX-License-Identifier: Apache-2.0
"""Make tests/goldens/peft/*.npz: logits and adapter gradients of tiny models tuned with PEFT.

Run with torch 2.x, transformers 5.x and peft 0.21 (none is a dependency of the project):
    python tests/goldens/make_peft.py
Each file holds the logits, the same computed in 64 bits, those of the merged model, the adapter's
files, and per tensor the inner product of the loss gradient with a seeded direction.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
import hf_cases
import peft_cases

OUT = Path(__file__).parent / "peft"
FILE = "adapter_model.safetensors"


def base_model(name: str) -> tuple[torch.nn.Module, dict[str, tuple[int, ...]]]:
    """Return the base with seeded weights, and their shapes."""
    raw = dict(hf_cases.CASES[name])
    config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    auto = transformers.AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        auto.from_config(config).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        shapes = {key: array.shape for key, array in load_file(path).items()}
        arrays = {key: hf_cases.seeded(key, shape) for key, shape in shapes.items()}
        save_file(arrays, path, metadata={"format": "pt"})
        model = auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
        shapes = {key: list(shape) for key, shape in shapes.items()}
        return model, {"config": json.loads((Path(folder) / "config.json").read_text())} | {
            "shapes": shapes
        }


def adapted(base: torch.nn.Module, settings: dict, folder: str) -> torch.nn.Module:
    """Return the base with a seeded adapter, trainable."""
    fresh = peft.get_peft_model(base, peft.get_peft_config(dict(settings)))
    fresh.save_pretrained(folder)
    shapes = {key: array.shape for key, array in load_file(Path(folder) / FILE).items()}
    arrays = {
        key: hf_cases.seeded(peft_cases.seed_name(key), shape) for key, shape in shapes.items()
    }
    save_file(arrays, Path(folder) / FILE, metadata={"format": "pt"})
    state = {key: torch.tensor(array) for key, array in arrays.items()}
    peft.set_peft_model_state_dict(fresh, state)
    return fresh.eval()


def gradients(model: torch.nn.Module, folder: str) -> dict[str, float]:
    """Save the gradients as if they were weights, so that names and layouts are the file's."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
    model.save_pretrained(folder)
    found = load_file(Path(folder) / FILE)
    directions = {key: hf_cases.seeded("direction " + key, x.shape) for key, x in found.items()}
    return {key: float(np.vdot(x.astype(np.float64), directions[key])) for key, x in found.items()}


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """Let what transformers computes in float32 on purpose (norms, rotations) have 64 bits."""
    narrow, cast = torch.float32, torch.Tensor.float
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.Tensor.float = narrow, cast


def in_64_bits(name: str) -> np.ndarray:
    """Return the logits of a case without rounding to speak of."""
    source, settings = peft_cases.cases()[name]
    ids = torch.tensor(hf_cases.tokens())
    with tempfile.TemporaryDirectory() as folder:
        model = adapted(base_model(source)[0], settings, folder).double()
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            H = 2 * len(module.inv_freq)
            module.inv_freq = 1e4 ** -(torch.arange(0, H, 2, dtype=torch.float64) / H)
    with wide():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits[:, -hf_cases.T :].detach().numpy()


def make(name: str) -> None:
    """Write one case's golden file."""
    source, settings = peft_cases.cases()[name]
    ids = torch.tensor(hf_cases.tokens())
    mask = torch.ones_like(ids)
    merged = np.zeros(0, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        base, about = base_model(source)
        model = adapted(base, settings, folder)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -hf_cases.T :]
        (logits * torch.tensor(hf_cases.seeded("loss", tuple(logits.shape)))).sum().backward()
        if settings["peft_type"] == "LORA":
            base_again, _ = base_model(source)
            twin = adapted(base_again, settings, folder).merge_and_unload()
            merged = twin(input_ids=ids, attention_mask=mask).logits.detach().numpy()
        raw = json.loads((Path(folder) / "adapter_config.json").read_text())
        raw["base_model_name_or_path"] = None
        shapes = {k: list(v.shape) for k, v in load_file(Path(folder) / FILE).items()}
        dots = gradients(model, folder)
    about |= {"adapter": raw, "adapter_shapes": shapes, "gradients": dots}
    np.savez_compressed(
        OUT / f"{name}.npz",
        logits=logits.detach().numpy().astype(np.float32),
        truth=in_64_bits(name),
        merged=merged,
        about=np.array(json.dumps(about)),
    )
    print(name, float(logits.detach().std()), (OUT / f"{name}.npz").stat().st_size)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for case in sys.argv[1:] or peft_cases.cases():
        make(case)
