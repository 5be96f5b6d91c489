# SPDX-License-Identifier: Apache-2.0
"""The peer of time_to_loss.py: a small GPT in plain PyTorch, trained as nanoGPT's CPU recipe says.

Facts of that recipe (nanoGPT's README, "I only have a macbook", and its defaults): 4 layers,
4 heads, 128 wide, 64 characters, batch 12, 2,000 steps, no dropout, no biases, GELU, learned
positions, tied embeddings, AdamW (0.9, 0.99), decay 0.1 on matrices, clip 1.0, learning rate
1e-3 with 100 warm-up steps and a cosine to 1e-4, eager mode, loss read at every step.

    python benchmarks/peers/char_gpt.py TEXT SEED [STEPS]

Prints one JSON line: "seconds" since the process was started, evaluation left out, and "curve", the
loss over all non-overlapping blocks of the last tenth of the text after so many seconds.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

LAYERS, HEADS, WIDTH, LENGTH, BATCH = 4, 4, 128, 64, 12


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(B, T, 3, HEADS, D // HEADS).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                residual = "output" in name or "down" in name
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * LAYERS) if residual else 0.02)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.characters(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.characters.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rate(step: int, steps: int, peak: float = 1e-3, low: float = 1e-4, warmup: int = 100) -> float:
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(steps - warmup, 1)
    return low + 0.5 * (1 + math.cos(math.pi * done)) * (peak - low)


def validation_loss(model: Model, text: torch.Tensor) -> float:
    blocks = (len(text) - 1) // LENGTH
    tokens = text[: blocks * LENGTH].view(blocks, LENGTH)
    targets = text[1 : blocks * LENGTH + 1].view(blocks, LENGTH)
    with torch.no_grad():
        parts = [
            model(x, y).item() * len(x)
            for x, y in zip(tokens.split(128), targets.split(128), strict=True)
        ]
    return sum(parts) / blocks


def main(path: str, seed: int, steps: int = 2000) -> None:
    text = Path(path).read_text(encoding="utf-8")
    ids = {c: i for i, c in enumerate(sorted(set(text)))}
    data = np.array([ids[c] for c in text], np.int64)
    cut = int(0.9 * len(data))
    train, held_out = torch.from_numpy(data[:cut]), torch.from_numpy(data[cut:])
    torch.manual_seed(seed)
    model = Model(len(ids))
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    curve, evaluating = [], 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        starts = torch.randint(len(train) - LENGTH, (BATCH,))
        tokens = torch.stack([train[i : i + LENGTH] for i in starts])
        targets = torch.stack([train[i + 1 : i + 1 + LENGTH] for i in starts])
        loss = model(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            began = time.time()
            seconds = began - float(os.environ["STARTED"]) - evaluating
            curve.append((seconds, validation_loss(model, held_out)))
            evaluating += time.time() - began
    print(json.dumps({"seconds": curve[-1][0], "curve": curve}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:]))
