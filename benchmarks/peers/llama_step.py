# SPDX-License-Identifier: Apache-2.0
"""The peer of train.py: Hugging Face's Llama under torch.compile, with PyTorch's fused AdamW.

    python benchmarks/peers/llama_step.py SIZES STEPS THREADS

SIZES is JSON: layers, width, heads, hidden, vocabulary, length, batch. Prints one JSON line:
"seconds" of every step after the compilation, "compile" seconds of the first three, and the losses.
"""

import json
import sys
import time

import torch
import transformers


def build(sizes: dict[str, int]) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["width"],
        intermediate_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["heads"],
        max_position_embeddings=sizes["length"],
        tie_word_embeddings=False,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config).train()


def main(sizes: dict[str, int], steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build(sizes)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    compiled = torch.compile(model)
    shape = (sizes["batch"], sizes["length"])
    batches = [torch.randint(sizes["vocabulary"], shape) for _ in range(4)]
    seconds, losses = [], []
    for step in range(3 + steps):
        tokens = batches[step % len(batches)]
        started = time.perf_counter()
        loss = compiled(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds[3:], "compile": sum(seconds[:3]), "losses": losses}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
