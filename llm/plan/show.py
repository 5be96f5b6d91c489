# SPDX-License-Identifier: Apache-2.0
"""A plan as text for people."""

from collections.abc import Mapping
from typing import Any


def table(found: Mapping[str, Any]) -> str:
    """Return a plan as aligned lines."""
    rows = [*_run(found), ("", ""), *_memory(found)]
    if found.get("roofline"):
        rows += [("", ""), *_speed(found)]
    if found.get("compiled"):
        rows += [("", ""), *_compiled(found)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}".rstrip() for name, text in rows]
    sizes = found["bytes_per_chip"]
    if found["fits"] is not None:
        verdict = "fits" if found["fits"] else "DOES NOT FIT"
        share = f"{sizes['total'] / sizes['hbm']:.0%} of the memory of a chip"
        known = "" if "error" in found.get("compiled", {}) else f": {share}"
        lines += ["", f"{verdict}{known} ({found['source']})"]
    if found.get("advice"):
        lines.append(f"{found['advice']}.")
    return "\n".join(lines)


def _run(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    mesh = ", ".join(f"{axis}={size}" for axis, size in found["mesh"].items()) or "one device"
    trained = found["n_trained"]
    model = f"{count(found['n_params'])} parameters"
    if trained != found["n_params"]:
        model += f", {count(trained)} of them trained"
    parts = ", ".join(f"{name} {count(n)}" for name, n in found["params_by_part"].items() if n)
    batch = f"{found['batch_size']} rows of {found['length']:,}"
    if found["microbatches"] > 1:
        batch += f" in {found['microbatches']} microbatches"
    return [
        ("machine", f"{found['topology']}, {found['n_chips']} chips, mesh {mesh}"),
        ("model", model),
        ("", parts),
        ("batch", f"{batch}: {count(found['tokens_per_step'])} tokens a step"),
        (
            "work",
            f"{count(found['flops_per_token'])}FLOP a token "
            f"(6N + 12LHQT: {count(found['flops_per_token_convention'])}FLOP)",
        ),
    ]


def _memory(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    sizes = found["bytes_per_chip"]
    rows = []
    for kind in ("arguments", "temp"):
        parts = found["memory"][kind] if found["source"] == "analytic" else {}
        inner = ", ".join(f"{name.replace('_', ' ')} {gigabytes(n)}" for name, n in parts.items())
        rows.append(
            (f"{kind} per chip", gigabytes(sizes[kind]) + (f"  ({inner})" if inner else ""))
        )
    limit = f" of {gigabytes(sizes['hbm'])}" if sizes["hbm"] else ""
    rows.append(("total per chip", gigabytes(sizes["total"]) + limit))
    if "analytic" in found:
        rows.append(("estimate was", gigabytes(found["analytic"]["total"])))
    return rows


def _speed(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    bound = found["roofline"]
    sides = ", ".join(
        f"{side} {seconds(bound[f'{side}_seconds'])}"
        for side in ("arithmetic", "memory", "network")
    )
    whole = bound["step_seconds"] * found["steps"]
    return [
        ("step at best", f"{seconds(bound['step_seconds'])}, bound by {bound['bound']} ({sides})"),
        ("speed at best", f"{count(bound['tokens_per_s'])} tokens/s, MFU {bound['mfu']:.0%}"),
        ("run at best", f"{found['steps']:,} steps in {seconds(whole)}"),
    ]


def _compiled(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    answer = found["compiled"]
    if "error" in answer:
        return [("the compiler says", answer["error"])]
    sent = ", ".join(f"{n} {name}" for name, n in answer["collectives"].items()) or "none"
    return [("collectives", sent), ("Pallas kernels", str(answer["kernels"]))]


def count(value: float) -> str:
    """Write a count with a suffix: 6.74 B."""
    for size, suffix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:.3g} "


def gigabytes(size: float) -> str:
    """Write bytes in GB (10^9), small ones in MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def seconds(value: float) -> str:
    """Write a duration."""
    if value < 1:
        return f"{1000 * value:.3g} ms"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"
