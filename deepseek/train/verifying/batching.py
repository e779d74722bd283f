"""Is one step of 1x8 micro-batches that of 2x4, 4x2 and 8x1? Where it is not: because of the model, or of the task?

A task whose loss is divided by the size of its micro-batch trains differently with each accumulation setting, and
fails. A model or a loss whose samples see each other (batch norm, a contrastive loss) can't be invariant: that is
explained, and the layer named.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepseek.tasks.task import to_device
from deepseek.train.verifying.case import Mode, VerifyCase, relative_difference, without_dropout
from deepseek.train.verifying.report import Finding
from deepseek.train.verifying.rows import join_rows, row_count, split_rows, take_rows

NAME = "accumulation"
LIMIT = 1e-4
"""Sums in float32 in another order differ by about 1e-6; a loss divided wrongly by 1e-2 or more."""
_ROWS = 8


def check_accumulation(case: VerifyCase) -> Finding:
    """Compare the gradients of one step for all ways to cut its rows, even and uneven ones."""
    whole = _rows(case)
    count = row_count(whole)
    if count < 2:
        return Finding(NAME, "skipped", "the batches have one row each, of shapes that do not fit together")
    mode, why = _repeatable_mode(case, whole)
    if mode is None:
        return Finding(NAME, "fail", "the same batch gives another gradient each time, in eval mode too")
    worst, where = _worst(case, whole, mode)
    if worst <= LIMIT:
        cuts = ", ".join(f"{count // size}x{size}" for size in _sizes(count))
        return Finding(NAME, "pass", f"{cuts} and uneven micro-batches give one gradient{why}", worst, LIMIT)
    if mode != "eval" and _worst(case, whole, "eval")[0] <= LIMIT:
        layer = first_layer_across_rows(case, whole)
        reason = layer or "the loss adds something of the whole micro-batch in training (a balance of experts?)"
        detail = f"depends on the batch: {reason}\nin eval mode all micro-batches give one gradient"
        return Finding(NAME, "explained", detail, worst, LIMIT)
    if _rows_interact(case, whole):
        detail = (
            "depends on the batch: the loss takes a micro-batch's samples together (contrastive, a mean of matches)"
        )
        if layer := first_layer_across_rows(case, whole):
            detail += f"; so does {layer}"
        detail += "\naccumulation is not the same as a larger batch here"
        return Finding(NAME, "explained", detail, worst, LIMIT)
    detail = (
        f"micro-batches of another size give another update (most at {where})\n"
        "is loss_sum a sum over the items that count() counts, not a mean?"
    )
    return Finding(NAME, "fail", detail, worst, LIMIT)


def _rows(case: VerifyCase) -> Any:
    """Return up to 8 rows of the data as one batch; where its shapes allow, with other numbers of targets in each."""
    batches = [batch for batch in case.batches if row_count(batch)]
    whole = batches[0] if batches else None
    for batch in batches[1:]:
        if row_count(whole) >= _ROWS:
            break
        try:
            whole = join_rows([whole, batch])
        except (RuntimeError, ValueError, KeyError):
            break
    count = min(row_count(whole), _ROWS)
    whole = take_rows(whole, range(1 << max(count.bit_length() - 1, 0))) if count else whole
    return _unequal_targets(whole)


def _unequal_targets(batch: Any) -> Any:
    """Return the batch with a growing number of labels left out in its rows, if it has labels at each position."""
    labels = batch.get("labels") if isinstance(batch, dict) else None
    if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.is_floating_point() or labels.shape[1] < 4:
        return batch
    labels = labels.clone()
    for row in range(1, labels.shape[0]):
        labels[row, : row * labels.shape[1] // (2 * labels.shape[0])] = -100
    return {**batch, "labels": labels}


def _sizes(count: int) -> list[int]:
    return [size for size in (count, count // 2, count // 4, count // 8) if size]


def _worst(case: VerifyCase, whole: Any, mode: Mode) -> tuple[float, str]:
    """Return the largest difference from the gradient of the whole batch, and its parameter."""
    count = row_count(whole)
    cuts = [[size] * (count // size) for size in _sizes(count)[1:]]
    cuts += [[count - 1, 1], [1, count - 1]] if count > 2 else []
    reference = case.gradient([whole], mode=mode)
    try:
        return max(relative_difference(reference, case.gradient(split_rows(whole, cut), mode=mode)) for cut in cuts)
    except ValueError:  # batch norm refuses a single row in training
        if mode == "eval":
            raise
        return float("inf"), "every layer"


def _repeatable_mode(case: VerifyCase, whole: Any) -> tuple[Mode | None, str]:
    """Return the mode closest to training in which random numbers change nothing (None: no mode), and its name."""
    modes: dict[Mode, str] = {
        "train": "",
        "without dropout": " (dropout off)",
        "eval": " (in eval mode: in training the model draws random numbers beside dropout)",
    }
    for mode, told in modes.items():
        first, second = (case.gradient([whole], mode=mode, seed=seed) for seed in (0, 1))
        if relative_difference(first, second)[0] <= LIMIT / 10:
            return mode, told
    return None, ""


def _rows_interact(case: VerifyCase, whole: Any) -> bool:
    """Return whether a row's share of the loss depends on what other rows hold, in eval mode.

    For a sum over rows, divided by anything that depends on their number alone, the mixed difference
    L(a, b) - L(c, b) - L(a, d) + L(c, d) is zero.
    """
    rows = [take_rows(whole, [row]) for row in range(row_count(whole))]
    counts = [case.task.count(row) for row in rows]
    alike = [row for row, number in zip(rows, counts, strict=True) if number == max(counts, key=counts.count)]
    if len(alike) < 4:
        return False
    a, b, c, d = alike[:4]
    model = case.fresh().to(case.device)
    with torch.no_grad():
        ab, cb, ad, cd = (
            float(case.loss_sum(model, join_rows(pair), mode="eval")) for pair in ((a, b), (c, b), (a, d), (c, d))
        )
    return abs(ab - cb - ad + cd) > 1e-4 * max(abs(ab), abs(cd), 1e-30)


def first_layer_across_rows(case: VerifyCase, whole: Any) -> str | None:
    """Return the first layer whose output for a row changes with the other rows of the batch, in words.

    None where there is none: then it is the loss itself.
    """
    half = take_rows(whole, range(row_count(whole) // 2))
    full_outputs, half_outputs = (_outputs(case, batch) for batch in (whole, half))
    for name, output in half_outputs.items():
        other = full_outputs.get(name)
        if other is None or other.dim() == 0 or other.shape[0] != 2 * output.shape[0]:
            continue
        gap = float((other[: output.shape[0]].double() - output.double()).norm())
        if gap > LIMIT * max(float(output.double().norm()), 1e-30):
            kind = type(case.model.get_submodule(name)).__name__
            alike = sum(type(module).__name__ == kind for module in case.model.modules())
            return f"{kind} at layer {name or 'the model itself'}" + (f" ({alike} of its kind)" if alike > 1 else "")
    return None


def _outputs(case: VerifyCase, batch: Any) -> dict[str, Tensor]:
    """Return what each layer without layers inside it gives for a batch, in the order of calls."""
    model = case.fresh().to(case.device).train()
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                outputs.setdefault(name, output.detach().clone())  # what follows may change it in place

        return hook

    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(keep(name))
    with torch.no_grad(), without_dropout():
        torch.manual_seed(0)
        case.task.loss_sum(model, to_device(batch, case.device))
    return outputs
