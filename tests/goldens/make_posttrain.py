# SPDX-License-Identifier: Apache-2.0
"""Make tests/goldens/posttrain_losses.npz: losses of TRL and their gradients, in float64.

Run with torch 2.x and trl 1.16 (neither is a dependency of the project):
    python tests/goldens/make_posttrain.py

TRL's own methods are called, with stand-ins for the trainer and for the model, which returns given
logits. Rows without an answer are taken out before: there TRL has no notion of padding rows, and
the project counts them for nothing.
"""

import functools
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

sys.path.insert(0, str(Path(__file__).parent))
import posttrain_cases as cases

# Case -> TRL's name of the loss in its DPO trainer.
DPO_LOSSES = {
    "dpo": "sigmoid",
    "robust": "robust",
    "hinge": "hinge",
    "exo": "exo_pair",
    "nca": "nca_pair",
    "bco": "bco_pair",
    "sppo": "sppo_hard",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
    "dpo_mean": "sigmoid_norm",
    "ipo": "ipo",
}


class Accelerator:
    """Stand in for accelerate's on one device."""

    device = torch.device("cpu")

    @staticmethod
    def gather_for_metrics(x: Any) -> Any:
        return x

    gather = gather_for_metrics

    @staticmethod
    def unwrap_model(x: Any) -> Any:
        return x


def trainer(**attributes: Any) -> Any:
    """Return a stand-in for a trainer with these attributes."""
    metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    common = {
        "accelerator": Accelerator(),
        "model": SimpleNamespace(training=True),
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "use_weighting": False,
        "_metrics": metrics,
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "is_encoder_decoder": False,
    }
    return SimpleNamespace(**{**common, **attributes})


def logps_of(logits: torch.Tensor, data: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return log-probabilities of the targets, 0 where they do not count: [rows, T]."""
    found = torch.log_softmax(logits, -1).gather(-1, data["targets"].long()[..., None])[..., 0]
    return found * data["weights"]


def outputs_of(logits: torch.Tensor, data: dict[str, torch.Tensor]) -> Any:
    """Return what TRL's fused head gives."""
    zeros = torch.zeros(logits.shape[:2], dtype=logits.dtype)
    return SimpleNamespace(
        log_probs=logps_of(logits, data), entropy=zeros, mean_logits=zeros, is_top1=zeros > 0
    )


def shifted(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ids and masks of sequences, which begin one token before the targets."""
    first = torch.zeros_like(data["targets"][:, :1])
    ids = torch.cat([first, data["targets"]], 1).long()
    mask = torch.cat([first, data["weights"].int()], 1)
    inside = torch.cat([data["inside"][:, :1], data["real"].int()], 1)
    return {"input_ids": ids, "completion_mask": mask, "attention_mask": inside}


def dpo(case: str, options: dict[str, Any], logits: torch.Tensor, data: Any) -> torch.Tensor:
    """Run DPOTrainer's loss."""
    with torch.no_grad():
        reference = logps_of(data["reference"], data).sum(1).chunk(2)
    fake = trainer(
        loss_types=[DPO_LOSSES[case]],
        loss_weights=[1.0],
        beta=options.get("beta", 0.4 if case == "ipo" else 0.1),
        label_smoothing=options.get("label_smoothing", 0.0),
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        args=SimpleNamespace(discopop_tau=0.05),
    )
    inputs = {
        **shifted(data),
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    return DPOTrainer._compute_loss(fake, lambda **_: outputs_of(logits, data), inputs, False)


def cpo_formula(options: dict[str, Any], kind: str, logits: torch.Tensor, data: Any) -> Any:
    """Run CPOTrainer's formula on log-ratios to the reference (cDPO, IPO of sums)."""
    with torch.no_grad():
        reference = logps_of(data["reference"], data).sum(1)
    ratios = (logps_of(logits, data).sum(1) - reference).chunk(2)
    fake = trainer(
        alpha=0.0,
        beta=options["beta"],
        loss_type=kind,
        label_smoothing=options.get("label_smoothing", 0.0),
    )
    return CPOTrainer.cpo_loss(fake, *ratios)[0].mean()


def concatenated(kind: Any, logits: torch.Tensor, data: Any, **attributes: Any) -> torch.Tensor:
    """Run the loss of CPOTrainer or ORPOTrainer."""
    rows = shifted(data)
    labels = torch.where(rows["completion_mask"] > 0, rows["input_ids"], -100)
    joined = {
        "concatenated_input_ids": rows["input_ids"],
        "concatenated_attention_mask": rows["attention_mask"],
        "concatenated_labels": labels.long(),
    }
    # TRL drops the last position's logits: there is nothing after it.
    last = torch.zeros_like(logits[:, :1])
    whole = SimpleNamespace(logits=torch.cat([logits, last], 1))
    fake = trainer(**attributes)
    fake.concatenated_inputs = lambda *_, **__: joined
    fake.pad_token_id = fake.padding_value = 0
    for name in ("get_batch_logps", "concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(kind, name):
            static = isinstance(kind.__dict__[name], staticmethod)
            method = getattr(kind, name)
            setattr(fake, name, method if static else method.__get__(fake))
    batch = {"chosen_labels": labels[: len(labels) // 2]}
    return kind.get_batch_loss_metrics(fake, lambda *_, **__: whole, batch)[0]


def kto(options: dict[str, Any], logits: torch.Tensor, data: Any) -> torch.Tensor:
    """Run KTOTrainer's loss; the other answers to a prompt have given log-probabilities."""
    fake = trainer(
        beta=options["beta"],
        desirable_weight=options.get("desirable_weight", 1.0),
        undesirable_weight=options.get("undesirable_weight", 1.0),
        loss_type="kto",
        calculate_KL=options.get("kl", True),
        precompute_ref_logps=True,
    )
    own = logps_of(logits, data).sum(1).detach()
    reference = logps_of(data["reference"], data).sum(1)
    order = data["kl_order"]
    fake._compute_kl_logps = lambda model, batch: own[order]
    inputs = {
        **shifted(data),
        "label": data["desirable"],
        "ref_logps": reference,
        "ref_KL_logps": reference[order],
    }
    return KTOTrainer._compute_loss(fake, lambda **_: outputs_of(logits, data), inputs, False)


def given(outputs: Any, **inputs: Any) -> Any:
    """Stand in for a model: return these outputs."""
    del inputs
    return outputs


def pairs(case: str, logits: torch.Tensor, data: Any) -> torch.Tensor:
    """Run the loss of one case of pairs."""
    options = cases.PAIRS[case][1]
    if case == "cdpo":
        return cpo_formula(options, "sigmoid", logits, data)
    if case == "ipo_sum":
        return cpo_formula(options, "ipo", logits, data)
    if case == "cpo":
        return concatenated(
            CPOTrainer,
            logits,
            data,
            alpha=0.0,
            beta=options["beta"],
            cpo_alpha=options["sft_weight"],
            loss_type="sigmoid",
            label_smoothing=0.0,
        )
    if case == "simpo":
        return concatenated(
            CPOTrainer,
            logits,
            data,
            alpha=0.0,
            beta=options["beta"],
            cpo_alpha=0.0,
            loss_type="simpo",
            simpo_gamma=options["gamma"],
            label_smoothing=0.0,
        )
    if case == "orpo":
        return concatenated(ORPOTrainer, logits, data, beta=options["beta"])
    return dpo(case, options, logits, data)


def measured(number: int, loss: Any, leaf: torch.Tensor, keep: Any, shape: Any) -> np.ndarray:
    """Return a loss, and its gradient's norm and projections, over all rows."""
    (gradient,) = torch.autograd.grad(loss, leaf)
    full = np.zeros(shape)
    full[keep] = gradient.numpy()
    return np.concatenate([[loss.item()], cases.project(number, full)])


def kept(raw: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Return the rows that have an answer, and their data in float64."""
    keep = np.flatnonzero(raw["weights"].any(1))
    data = {
        name: torch.tensor(raw[name][keep]).double()
        if raw[name].dtype == np.float32
        else torch.tensor(raw[name][keep])
        for name in ("logits", "reference", "targets", "weights", "inside", "real", "desirable")
    }
    places = {int(row): place for place, row in enumerate(keep)}
    data["kl_order"] = torch.tensor([places[int(i)] for i in np.roll(keep, 1)])
    return keep, data


def main() -> None:
    """Write the golden file."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for number in range(cases.BATCHES):
        raw = cases.batch(number)
        keep, data = kept(raw)
        for case in [*cases.PAIRS, *cases.SINGLES]:
            logits = data["logits"].clone().requires_grad_()
            if case in cases.PAIRS:
                loss = pairs(case, logits, data)
            else:
                loss = kto(cases.SINGLES[case], logits, data)
            found[case].append(measured(number, loss, logits, keep, raw["logits"].shape))
        for case, options in cases.REWARDS.items():
            scores = torch.tensor(raw["scores"]).double().requires_grad_()
            fake = trainer(args=SimpleNamespace(center_rewards_coefficient=options.get("centre")))
            inputs = {"attention_mask": torch.ones(2)}
            if options.get("margin"):
                inputs["margin"] = torch.tensor(raw["margins"]).double()
            outputs = SimpleNamespace(logits=scores.reshape(-1, 1))
            loss = RewardTrainer.compute_loss(fake, functools.partial(given, outputs), inputs)
            found[case].append(measured(number, loss, scores, ..., raw["scores"].shape))
        for case, options in cases.DIVERGENCES.items():
            logits = data["logits"].clone().requires_grad_()
            labels = torch.where(data["weights"] > 0, 0, -100)
            loss = GKDTrainer.generalized_jsd_loss(
                logits, data["reference"], labels, **options, reduction="sum"
            )
            found[case].append(measured(number, loss, logits, keep, raw["logits"].shape))
    place = Path(__file__).parent / cases.PATH
    np.savez_compressed(place, **{name: np.array(rows) for name, rows in found.items()})
    print({name: float(np.mean([r[0] for r in rows])) for name, rows in found.items()})


if __name__ == "__main__":
    main()
