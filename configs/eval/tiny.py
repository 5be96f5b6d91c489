# SPDX-License-Identifier: Apache-2.0
"""Measure a tiny model trained on installed documentation, beside chance and n-gram baselines.

    python scripts/eval.py --config=configs/eval/tiny.py --workdir=runs/eval \\
        --config.model=runs/dpo --config.corpus=runs/corpus --config.pretrain=runs/pretrain

Hardware: any CPU with two cores, about a minute. Expect bits per byte below those of the n-gram
counted on the same tokens, and "which function does this describe?" above its chance of 0.25 once
the model is tuned on such questions.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = "runs/dpo"  # what llm.load takes: a workdir, a Hugging Face folder, a .gguf
    config.dtype = "float32"
    # The corpus whose validation split is scored, and the run that learned from its documents
    config.corpus = "runs/corpus"
    config.pretrain = "runs/pretrain"
    pretrain = config.get_ref("pretrain")
    held_out = {"documents": config.get_ref("corpus"), "split": "validation", "limit": 200}
    perplexity = {"kind": "perplexity", "batch_size": 32, **held_out}
    ngram = {"kind": "kneser_ney", "order": 5, **held_out}
    which = {
        "kind": "which_function",
        "n_options": 4,
        "seed": 0,
        "continuation": "{summary}",
        "vary": "context",
        "batch_size": 64,
        **held_out,
    }
    config.tasks = ConfigDict(
        {
            "held_out_text": {**perplexity, "model": pretrain},
            "held_out_text_after_tuning": perplexity,
            "ngram_same_tokens": {**ngram, "run": pretrain},
            "ngram_whole_corpus": {**ngram, "train": config.get_ref("corpus")},
            "which_function": {
                **which,
                "context": "What does `{call}` do?",  # as in the questions of fine-tuning
                "chat": True,
            },
            "which_function_before_tuning": {
                **which,
                "model": pretrain,
                "context": "{name}\n\n{signature}\n\n",  # as in the documents
                "chat": False,
            },
            "samples": {
                "kind": "samples",
                "model": pretrain,
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
