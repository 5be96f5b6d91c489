# SPDX-License-Identifier: Apache-2.0
"""Make chat.json with transformers: renderings, ids and assistant masks of chat templates.

python tests/goldens/chat.py      (transformers 5.23, tokenizers 0.23; not needed by the tests)
"""

import json
import tempfile
from pathlib import Path

import tokenizers
import transformers

SPECIAL = ["<pad>", "<bos>", "<eos>", "<|turn|>", "<|stop|>"]
TEXTS = [f"item {i}: the answer to {i} plus {i} is {2 * i}.\n  ok?\n" for i in range(200)]
TEMPLATES = {
    "plain": "{% for m in messages %}<|turn|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|stop|>{% endgeneration %}{% else %}{{ m['content'] }}"
    "<|stop|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}",
    "trimmed": """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- for m in messages %}
    {%- if m.role == 'system' %}
        {%- set ns.system = m.content | trim %}
        {%- continue %}
    {%- endif %}
    {%- if loop.first or (ns.system and loop.index0 == 1) %}
        {{- ns.system ~ '\\n' }}
    {%- endif %}
    {{- '<|turn|>' + (m.role | upper) + ': ' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{- (m.content | trim) + '<|stop|>' }}{% endgeneration %}
    {%- else %}
        {{- m.content | trim }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn|>ASSISTANT: ' }}
{%- endif %}
""",
    "json": """
{%- macro show(x, depth=1) %}{{ x | tojson }}{{ '!' * depth }}{% endmacro %}
{%- for m in messages %}
{%- if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('role') }}{% endif %}
<|turn|>{{ show({'r': m.role, 'c': m.content}, loop.index) }}
{% if m is mapping and m.role is string %}{{ m.content.split(' ')[-1] | default('') }}{% endif %}
{{ messages | map(attribute='role') | join(',') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% endfor -%}
""",
}
CHATS = [
    [{"role": "user", "content": "what is 7 plus 7?"}, {"role": "assistant", "content": "14."}],
    [
        {"role": "system", "content": " be brief  "},
        {"role": "user", "content": " the answer?\n"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "<b>\"é\" & 'ü'</b> ok?"},
        {"role": "assistant", "content": "the answer\nis ok"},
    ],
]


def tokenizer() -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TEXTS, trainer)
    return model


def main() -> None:
    model = tokenizer()
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/tokenizer.json")
        wrapped = transformers.PreTrainedTokenizerFast(
            tokenizer_file=f"{folder}/tokenizer.json", **config
        )
    cases = []
    for name, template in TEMPLATES.items():
        for chat in CHATS:
            for prompt in (False, True):
                text = wrapped.apply_chat_template(
                    chat, chat_template=template, add_generation_prompt=prompt, tokenize=False
                )
                case = {"template": name, "chat": chat, "prompt": prompt, "text": text}
                if "generation %}" in template:
                    found = wrapped.apply_chat_template(
                        chat,
                        chat_template=template,
                        add_generation_prompt=prompt,
                        tokenize=True,
                        return_dict=True,
                        return_assistant_tokens_mask=True,
                    )
                    case |= {"ids": found["input_ids"], "mask": found["assistant_masks"]}
                cases.append(case)
    strings = ["", " a  b", "plain\ttext\r\n", "é 漢 😀", "item 12: the answer"]
    golden = {
        "tokenizer": json.loads(model.to_str()),
        "config": config,
        "templates": TEMPLATES,
        "cases": cases,
        "strings": [[s, wrapped.encode(s, add_special_tokens=False)] for s in strings],
    }
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
