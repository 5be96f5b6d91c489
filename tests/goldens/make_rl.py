# SPDX-License-Identifier: Apache-2.0
"""Store what TRL's own code computes for policy losses: python tests/goldens/make_rl.py NAMES…

Names are those of CASES (TRL 1.16) and "ppo", "ppo_advantages" (TRL 1.12, the last with PPO). Needs
torch and TRL. TRL's methods run on a stand-in for their trainer whose "model" is an array of
logits, so that nothing but the loss is under test; PPO's loss stands inside its training loop, of
which the lines are run as they are.
"""

import inspect
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.goldens import rl_cases

FOLDER = Path(__file__).parent / "rl"


class Fake(SimpleNamespace):
    """Whatever of a trainer nobody asked for."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Fake()

    def __call__(self, *args, **kwargs):
        return args[0] if args else self

    def __bool__(self):
        return False


def tensors(batch):
    return {k: torch.tensor(v) for k, v in batch.items()}


def logprobs(logits, tokens):
    chosen = torch.log_softmax(logits, -1)
    entropy = -(chosen.exp() * chosen).sum(-1)
    return torch.gather(chosen, -1, tokens[..., None])[..., 0], entropy


def trl_loss(case, batch):
    """Return TRL's loss of GRPO's or RLOO's trainer, and its gradient to the logits."""
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

    x = tensors(batch)
    logits = x["logits"].requires_grad_()
    rloo = case["loss"] == "rloo"
    options = case["options"]
    fake = Fake(
        loss_type=case["trl"],
        importance_sampling_level=case.get("trl_level", "token"),
        epsilon_low=options["clip_low"],
        epsilon_high=options["clip_high"],
        beta=case["coef"],
        args=Fake(
            delta=options.get("cap") or None,
            use_bias_correction_kl=False,
            steps_per_generation=1,
        ),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        max_completion_length=rl_cases.LENGTH,
        current_gradient_accumulation_steps=1,
        use_vllm=case.get("correction", False),
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        accelerator=Fake(num_processes=1, sync_gradients=False),
        entropy_coef=options.get("entropy", 0.0),
        _entropy_bonus_enabled=bool(options.get("entropy")),
        use_adaptive_entropy=False,
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *a, **k: (*logprobs(logits, x["tokens"]), None),
    )
    mask = x["mask"]
    inputs = {
        "prompt_ids": x["tokens"][:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": x["tokens"],
        "completion_mask": mask,
        "advantages": x["advantages"],
        "old_per_token_logps": x["old_logps"],
        "old_logps": (x["old_logps"] * mask).sum(1),
        "ref_per_token_logps": x["ref_logps"],
        "num_items_in_batch": x["share"].sum(),
        "importance_sampling_ratio": x["correction"],
    }
    trainer = RLOOTrainer if rloo else GRPOTrainer
    loss = trainer._compute_loss(fake, None, inputs)
    loss.backward()
    return loss.item(), logits.grad.numpy()


def lines_of(start, end):
    """Return the source of TRL's PPO loop from the first line with `start` to that with `end`."""
    from trl.experimental.ppo import ppo_trainer

    text = inspect.getsource(ppo_trainer.PPOTrainer.train)
    begin = text.rindex("\n", 0, text.index(start))
    finish = text.index(end, begin)
    return textwrap.dedent(text[begin : text.rindex("\n", 0, finish)]), ppo_trainer


def ppo_loss(case, batch):
    """Return the loss of TRL's PPO and its gradients to the logits and the values."""
    code, module = lines_of("new_logprobs = torch.masked_fill", "accelerator.backward(loss)")
    x = tensors(batch)
    logits, values = x["logits"].requires_grad_(), x["values"].requires_grad_()
    mask, both = x["mask"] > 0, x["value_mask"] > 0
    options = case["options"]
    scope = {
        **vars(module),
        "args": Fake(
            cliprange=options["clip_low"],
            cliprange_value=options["value_clip"],
            vf_coef=options["value_weight"],
        ),
        "new_logprobs": logprobs(logits, x["tokens"])[0],
        "padding_mask": ~mask,
        "padding_mask_p1": ~both,
        "micro_batch_inds": np.arange(len(mask)),
        "context_length": 1,
        "vpred_temp": torch.cat([values, values[:, :1]], 1)[..., None],
        "mb_values": torch.where(both, x["old_values"], 0),
        "mb_return": x["returns"],
        "mb_advantage": torch.where(mask, x["token_advantages"], 0),
        "mb_logprobs": torch.where(mask, x["old_logps"], module.INVALID_LOGPROB),
    }
    exec(code, scope)  # TRL's own lines
    scope["loss"].backward()
    return scope["loss"].item(), logits.grad.numpy(), values.grad.numpy()


def ppo_advantages(case, batch):
    """Return the advantages and returns of TRL's PPO loop."""
    code, module = lines_of("logprobs = torch.masked_fill(logprobs, padding_mask", "empty_cache()")
    assert "rewards[actual_start, actual_end] += scores" in code
    x = tensors(batch)
    response = torch.arange(rl_cases.LENGTH).repeat(len(x["mask"]), 1)
    lengths = x["mask"].sum(1).long() - 1
    scope = {
        **vars(module),
        "args": Fake(**case["trl_options"]),
        "logprobs": x["old_logps"],
        "ref_logprobs": x["ref_logps"],
        "values": x["old_values"],
        "scores": x["scores"],
        "responses": x["tokens"],
        "response_idxs": response,
        "sequence_lengths": lengths,
        "padding_mask": response > lengths[:, None],
    }
    exec(code, scope)  # TRL's own lines
    return scope["advantages"].numpy(), scope["returns"].numpy()


def make(name):
    stored = defaultdict(list)
    if name in rl_cases.ADVANTAGES:
        case = rl_cases.ADVANTAGES[name]
        for i in range(rl_cases.BATCHES):
            advantages, returns = ppo_advantages(case, rl_cases.batch(name, i, filled=True))
            stored["advantages"].append(advantages)
            stored["returns"].append(returns)
    else:
        case = rl_cases.CASES[name]
        for i in range(rl_cases.BATCHES):
            batch = rl_cases.batch(name, i)
            loss, *grads = ppo_loss(case, batch) if name == "ppo" else trl_loss(case, batch)
            stored["loss"].append(loss)
            for key, grad in zip(("logits", "values"), grads, strict=False):
                stored[f"d_{key}"].append(rl_cases.project(grad))
                if i < rl_cases.WHOLE:
                    stored[f"whole_{key}"].append(grad)
    FOLDER.mkdir(exist_ok=True)
    arrays = {k: np.asarray(v, np.float32) for k, v in stored.items()}
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    print(name, {k: v.shape for k, v in arrays.items()})


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    for name in sys.argv[1:] or [*rl_cases.CASES, *rl_cases.ADVANTAGES]:
        make(name)
