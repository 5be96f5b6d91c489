# SPDX-License-Identifier: Apache-2.0
"""Make chat.json with transformers: renderings, ids and assistant masks of chat templates.

python tests/goldens/chat.py      (transformers 5.23, tokenizers 0.23; not needed by the tests)
"""

import json
import tempfile
from pathlib import Path

import jinja2
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
    # In the manner of well-known families, written for this test.
    "headers": """{{- bos_token }}
{%- set loop_messages = messages %}
{%- if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}
{{- system + '<|eot_id|>' }}
{%- for message in loop_messages %}
    {%- if message.role == 'ipython' or 'tool_calls' in message %}
        {{- raise_exception('no tools here') }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] | trim + '<|stop|>' }}{% endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|stop|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
    "chatml_thinking": """
{%- if tools %}
    {{- '<|turn|>system\n# Tools\n' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
{%- elif messages[0].role == 'system' %}
    {{- '<|turn|>system\n' + messages[0].content + '<|stop|>\n' }}
{%- else %}
    {{- '<|turn|>system\nYou are a helpful assistant.<|stop|>\n' }}
{%- endif %}
{%- set ns = namespace(open=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.open and message.role == 'user' and message.content is string and not(
        message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.open = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|turn|>' + message.role + '\n' + content + '<|stop|>' + '\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|turn|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
            {{- content.lstrip('\n') }}
        {%- else %}
            {{- '<|turn|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|stop|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>' }}{%- endif %}
{%- endif %}
""",
    "alternating": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/assistant') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "instructions": """
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("unknown role") }}
    {%- endif %}
{%- endfor %}
""",
    "objects": """{% for m in messages %}{% for key, value in m.items() %}
{{- key ~ '=' ~ (value | tojson(indent=2)) }}{{ ', ' if not loop.last }}{% endfor %}
{{ loop.previtem.role if loop.previtem is defined else 'first' }}{{ loop.cycle('a', 'b') }}
{% endfor %}{{ messages | map(attribute='content') | map('length') | max }}
{{ (messages | first).role | title }}{{ messages[-1]['content'][:3] | replace('1', 'one') }}
{% filter upper %}done{% endfilter %}{# unseen #}{{ 'x' if bos_token else 'y' }}{{ none is none }}
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
    [
        {"role": "user", "content": "think"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n14"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\n14 it is"},
    ],
    [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}],
    [{"role": "assistant", "content": "I begin"}],
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


def render(wrapped, template: str, chat: list, prompt: bool) -> dict:
    """Return the text and its ids, with the assistant's mask where the template marks it."""
    options = {"chat_template": template, "add_generation_prompt": prompt}
    try:
        text = wrapped.apply_chat_template(chat, tokenize=False, **options)
    except jinja2.TemplateError:
        return {"refused": True}
    marked = "generation %}" in template
    found = wrapped.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=marked, **options
    )
    case = {"text": text, "ids": found["input_ids"]}
    return case | ({"mask": found["assistant_masks"]} if marked else {})


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
                cases.append(
                    {"template": name, "chat": chat, "prompt": prompt}
                    | render(wrapped, template, chat, prompt)
                )
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
