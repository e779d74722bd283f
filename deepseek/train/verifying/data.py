"""What the data and the settings say before a long run: order, leaks into validation, the schedule, the first loss."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.tasks.task import to_device
from deepseek.train.batches import BatchStream, as_stream
from deepseek.train.plan import Plan
from deepseek.train.verifying.case import VerifyCase
from deepseek.train.verifying.report import Finding
from deepseek.train.verifying.rows import leaves, row_count, row_digests, same

_MOST_BATCHES = 200


def check_order(case: VerifyCase) -> Finding:
    """Read the data twice, and again from a position on: a batch must follow from (seed, epoch, index) alone."""
    stream: BatchStream = as_stream(case.stream if case.stream is not None else case.batches, case.config.seed)
    length = len(stream)
    last = min(length, 4)
    places = sorted({1 % length, last - 1, length if length <= _MOST_BATCHES else last - 1})
    first = list(islice(stream.iterate(0), max(places) + 1))
    for place in places:
        again = next(stream.iterate(place))
        if not same(first[place], again):
            detail = f"batch {place} is another one when reading begins there: a resumed run would see other data"
            return Finding("data order", "fail", detail)
    if not all(same(a, b) for a, b in zip(first, stream.iterate(0), strict=False)):
        return Finding("data order", "fail", "reading the data twice gives other batches")
    told = f"batches at positions {', '.join(map(str, places))} are the same however they are reached"
    if length in places and length > 1 and same(first[0], first[length]):
        told += "\nevery epoch has the same order (a shuffled one often trains better)"
    return Finding("data order", "pass", told)


def check_leak(case: VerifyCase) -> Finding:
    """Count validation samples that are training samples too, among the first batches of both."""
    if case.validation is None:
        return Finding("train/val overlap", "skipped", "there is no validation data")
    train = as_stream(case.stream if case.stream is not None else case.batches, case.config.seed)
    seen = {digest for batch in _some(train) for digest in row_digests(batch)}
    digests = [digest for batch in _some(as_stream(case.validation, case.config.seed)) for digest in row_digests(batch)]
    both = sum(digest in seen for digest in digests)
    told = f"{both} of {len(digests)} validation samples are among {len(seen)} training samples"
    if both:
        return Finding("train/val overlap", "warning", told, both / max(1, len(digests)), 0.0)
    return Finding("train/val overlap", "pass", told, 0.0, 0.0)


def _some(stream: BatchStream) -> Any:
    return islice(stream.iterate(0), min(len(stream), _MOST_BATCHES))


def check_schedule(case: VerifyCase) -> Finding:
    """Print the learning rate along the run."""
    config = case.config
    length = len(as_stream(case.stream if case.stream is not None else case.batches, config.seed))
    steps = config.max_steps or max(1, (config.epochs or 1) * length // config.gradient_accumulation_steps)
    if config.max_steps and config.epochs:
        steps = min(steps, max(1, config.epochs * length // config.gradient_accumulation_steps))
    plan = Plan(config, steps, False, "")
    places = sorted({0, max(0, plan.warmup_steps - 1), steps // 4, steps // 2, 3 * steps // 4, steps - 1})
    rates = ", ".join(f"{place + 1}: {plan.rate(place, config.learning_rate):.3g}" for place in places)
    budget = " (the time budget sets the number of steps anew)" if config.time_budget is not None else ""
    return Finding("learning rate", "info", f"{config.schedule} over {steps} steps{budget}\nat step {rates}")


def check_first_loss(case: VerifyCase) -> Finding:
    """Hold the loss of the untrained model against guessing among as many classes as its last layer has."""
    model = case.fresh().to(case.device).eval()
    batch = to_device(case.batches[0], case.device)
    with torch.no_grad():
        loss = float(case.loss_sum(model, batch)) / max(1, case.task.count(batch))
    if not math.isfinite(loss):
        return Finding("first loss", "fail", f"the loss before training is {loss}")
    classes = _classes(model) if _has_class_labels(batch) else None
    if classes is None or classes < 2:
        return Finding("first loss", "info", f"{loss:.4g} before training")
    guess = math.log(classes)
    told = f"{loss:.4g} before training; guessing among {classes} classes is ln {classes} = {guess:.4g}"
    if loss > 2 * guess:
        return Finding("first loss", "warning", f"{told}\nthe last layer begins with weights too large")
    if loss < 0.5 * guess:
        return Finding("first loss", "info", f"{told}\nthe model is trained already, or sees its targets")
    return Finding("first loss", "info", told)


def _has_class_labels(batch: Any) -> bool:
    """Return whether the batch's targets are whole numbers, one or one a position."""
    if isinstance(batch, dict):
        labels = batch.get("labels", batch.get("targets"))
    else:
        labels = list(leaves(batch))[-1] if isinstance(batch, list | tuple) else None
    return isinstance(labels, Tensor) and labels.dtype == torch.int64 and row_count(batch) == labels.shape[0]


def _classes(model: nn.Module) -> int | None:
    """Return the outputs of the layer that ends the model: the one called a head, else the last linear one."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    heads = [module for name, module in layers if name.rpartition(".")[2] in {"lm_head", "head", "classifier", "fc"}]
    found = heads[-1] if heads else layers[-1][1] if layers else None
    return None if found is None else int(found.out_features)
