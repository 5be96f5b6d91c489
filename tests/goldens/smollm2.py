# SPDX-License-Identifier: Apache-2.0
"""Make smollm2.json: what transformers makes of SmolLM2-135M-Instruct.Q4_1.gguf.

python tests/goldens/smollm2.py MODEL.gguf   (transformers 5.23, torch 2.13, tokenizers 0.23, gguf
0.19; about five minutes on one core; not needed by the tests)

The tokenizer is put together here from the file's tokens and merges with the pre-tokenizer that
SmolLM2 was published with (single digits, then GPT-2's rule): transformers itself reads GGUF files
without looking at that rule.
"""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import tokenizers
import torch
import transformers

HERE = Path(__file__).parent
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>")
BLOCK = 100  # strings that share a hash
TOKENS = 64
TEXTS = (
    "The capital of France is",
    "Once upon a time there was",
    "def fibonacci(n):\n",
    "In 1969, humans first",
    "Water boils at",
    "The mitochondria is the",
    "import numpy as np\n\n",
    "To be, or not to be,",
    "The three primary colours are",
    "A recipe for bread:\n1.",
    "Dear Sir or Madam,",
    "The theory of evolution says that",
    "Shakespeare wrote",
    "SELECT name FROM",
    "The speed of light is",
    "Photosynthesis is",
    "The largest planet in our solar system",
    "Once the war had ended,",
    "Q: What is 2 + 2?\nA:",
    "for i in range(10):\n    print(",
    "The Roman Empire",
    "Climate change is",
    "A haiku about rain:\n",
    "The derivative of x^2 is",
    "She opened the door and",
)
QUESTIONS = (
    "What is the capital of Japan?",
    "Write a haiku about the sea.",
    "Explain gravity to a child.",
    "Name three fruits.",
    "What is 12 times 3?",
    "Who wrote Hamlet?",
    "Translate 'good morning' to French.",
    "Give me a synonym for happy.",
    "Why is the sky blue?",
    "List the days of the week.",
    "What does the function len do in Python?",
    "Write one sentence about cats.",
    "How many legs does a spider have?",
    "What is machine learning?",
    "Tell me a short joke.",
    "What is the opposite of cold?",
    "Summarise: The cat sat on the mat because it was warm.",
    "Is the Earth flat?",
    "Write a Python function that adds two numbers.",
    "What is the largest ocean?",
    "How do I boil an egg?",
    "Who was Albert Einstein?",
    "What colour do you get from blue and yellow?",
    "Give me advice for learning to code.",
    "What is a prime number?",
)
CHATS = (
    [{"role": "user", "content": "Hi <|im_end|> there"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " 2+2? "},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Sure?\n"},
    ],
)
PASSAGE = (
    "A language model assigns a probability to every next token. In 2024 small models of about 135"
    " million parameters could already follow simple instructions; they answer questions, write "
    "short poems and explain code such as `sorted(items, key=len)`. Their answers are often wrong\n"
)


def strings() -> list[str]:
    """Return the 10,000 strings of the comparison."""
    spec = importlib.util.spec_from_file_location("strings", HERE / "strings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate(10_000, 0, SPECIAL)


def tokenizer(path: str) -> tokenizers.Tokenizer:
    """Build the tokenizer with the library alone; special tokens are not registered."""
    fields = gguf.GGUFReader(path).fields
    tokens = [
        bytes(fields["tokenizer.ggml.tokens"].parts[i]).decode()
        for i in fields["tokenizer.ggml.tokens"].data
    ]
    merges = [
        bytes(fields["tokenizer.ggml.merges"].parts[i]).decode()
        for i in fields["tokenizer.ggml.merges"].data
    ]
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {token: index for index, token in enumerate(tokens)},
            [tuple(merge.split(" ")) for merge in merges],
        )
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return model


def digest(blocks: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(blocks).encode()).hexdigest()[:12]


def main(path: str) -> None:
    torch.manual_seed(0)
    plain = tokenizer(path)
    folder, name = str(Path(path).parent), Path(path).name
    wrapped = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    encoded = [item.ids for item in plain.encode_batch(strings(), add_special_tokens=False)]
    blocks = [digest(encoded[i : i + BLOCK]) for i in range(0, len(encoded), BLOCK)]
    passage = plain.encode(PASSAGE).ids
    with torch.no_grad():
        logits = model(torch.tensor([passage])).logits[0].numpy()
    places = np.linspace(0, len(passage) - 1, 12).astype(int)
    columns = np.linspace(0, logits.shape[1] - 1, 32).astype(int)
    rows = [[round(float(logits[t, v]), 5) for v in columns] for t in places]
    prompts = []
    marked = tokenizers.Tokenizer.from_str(plain.to_str())
    marked.add_special_tokens([*SPECIAL])
    questions = [[{"role": "user", "content": question}] for question in QUESTIONS]
    for prompt in (*TEXTS, *questions):
        text = prompt
        if not isinstance(prompt, str):
            text = wrapped.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = marked.encode(text, add_special_tokens=False).ids
        with torch.no_grad():
            made = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=2,
                pad_token_id=2,
                output_logits=True,
                return_dict_in_generate=True,
            )
        best = [torch.topk(step[0], 2).values for step in made.logits]
        gap = min(float(pair[0] - pair[1]) for pair in best)
        new = made.sequences[0, len(ids) :].tolist()
        prompts.append({"prompt": prompt, "ids": ids, "greedy": new, "gap": round(gap, 6)})
        print(len(prompts), gap, flush=True)
    chats = [
        {
            "chat": chat,
            "prompt": more,
            "text": wrapped.apply_chat_template(chat, tokenize=False, add_generation_prompt=more),
        }
        for chat in CHATS
        for more in (False, True)
    ]
    golden = {
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "special": SPECIAL,
        "blocks": blocks,
        "passage": PASSAGE,
        "passage_ids": passage,
        "places": places.tolist(),
        "columns": columns.tolist(),
        "logits": rows,
        "prompts": prompts,
        "chats": chats,
    }
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")
    np.save("smollm2_logits.npy", logits)  # all of them, to look at; not committed


if __name__ == "__main__":
    main(sys.argv[1])
