# SPDX-License-Identifier: Apache-2.0
"""Measure a tiny model trained on installed documentation, beside chance and n-gram baselines.

    python scripts/eval.py --config=configs/eval/tiny.py --workdir=runs/eval \\
        --config.model=runs/dpo --config.corpus=runs/corpus --config.pretrain=runs/pretrain

Hardware: any CPU with two cores, about a minute. Expect bits per byte below those of the n-gram
counted on the same tokens, and "which function does this describe?" above its chance of 0.25.
"""

from ml_collections import ConfigDict, FieldReference


def get_config():
    config = ConfigDict()
    config.model = "runs/dpo"  # what llm.load takes: a workdir, a Hugging Face folder, a .gguf
    config.dtype = "float32"
    # The corpus whose validation split is scored, and the run whose tokens the n-grams count
    config.corpus = "runs/corpus"
    config.pretrain = "runs/pretrain"
    corpus: FieldReference = config.get_ref("corpus")
    held_out = {"documents": corpus, "split": "validation", "limit": 200}
    config.tasks = ConfigDict(
        {
            "held_out_text": {"kind": "perplexity", "batch_size": 32, **held_out},
            "which_function": {
                "kind": "which_function",
                "documents": corpus,
                "split": "validation",
                "n_options": 4,
                "limit": 200,
                "seed": 0,
                # As the documents have it; with chat=True: "What does `{call}` do?"
                "context": "{name}\n\n{signature}\n\n",
                "continuation": "{summary}",
                "vary": "context",
                "chat": False,
                "batch_size": 64,
            },
            "ngram_same_tokens": {
                "kind": "kneser_ney",
                "run": config.get_ref("pretrain"),
                "order": 5,
                **held_out,
            },
            "ngram_whole_corpus": {"kind": "kneser_ney", "train": corpus, "order": 5, **held_out},
            "samples": {
                "kind": "samples",
                "prompts": ("def open(", "Return the ", "The module "),
                "max_tokens": 48,
                "temperature": 0.0,
                "top_p": 1.0,
                "stop": (),
                "seed": 0,
            },
        }
    )
    config.report = ConfigDict({"console": True, "max_items": 50})
    return config
