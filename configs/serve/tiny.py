# SPDX-License-Identifier: Apache-2.0
"""Answer chats and completions over HTTP, as OpenAI's interface does.

    python scripts/serve.py --config=configs/serve/tiny.py --workdir=runs/serve \\
        --config.model=runs/int8
    curl localhost:8000/v1/chat/completions -H "Content-Type: application/json" \\
        -d '{"model": "int8", "messages": [{"role": "user", "content": "Hello"}]}'

It listens on this machine only. For another address set the environment variable LLM_API_KEY and
--config.serve.host=0.0.0.0, behind a proxy that speaks TLS.

Hardware: any; the tiny model starts within 10 seconds on two CPU cores and gives about 500 tokens
a second. serve.port=0 takes a free port, which server.json in the workdir names.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = "runs/int8"  # what llm.load takes
    config.dtype = "float32"
    config.weights = "float"  # or "integers": a compressed model's, for less memory
    config.serve = ConfigDict(
        {
            "model_name": "",  # "" is the last part of config.model
            "host": "127.0.0.1",
            "port": 8000,
            "max_queue": 32,
            "max_body": 1_000_000,
            "max_headers": 16_384,
            "max_choices": 8,
            "max_tokens": 512,
            "retry_after": 1,
            "drain_seconds": 30.0,
        }
    )
    return config
