# SPDX-License-Identifier: Apache-2.0
"""Adapters on the tiny models of `hf_cases`: settings and seeded weights; needs no torch."""

_LINEAR = {"llama": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]}
_LINEAR["gpt2"] = ["c_attn", "c_proj", "c_fc"]
_KINDS = {
    "lora": {"peft_type": "LORA", "r": 3, "lora_alpha": 5},
    "rslora": {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "use_rslora": True},
    "dora": {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "use_dora": True},
    "prefix": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3},
    "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
}


def cases() -> dict[str, tuple[str, dict]]:
    """Return {case: (case of hf_cases, settings of the adapter)}."""
    made = {}
    for base, linear in _LINEAR.items():
        for kind, settings in _KINDS.items():
            more = {"target_modules": linear} if settings["peft_type"] == "LORA" else {}
            if more and base == "gpt2":
                more["fan_in_fan_out"] = True
            made[f"{base}_{kind}"] = (base, {"task_type": "CAUSAL_LM", **settings, **more})
    return made


def seed_name(name: str) -> str:
    """Return the name under which `hf_cases.seeded` knows a tensor; magnitudes are near one."""
    return f"{name}.weight" if name.endswith("vector") else name
