"""Chooses the next token of many sequences at once, each by its own settings.

The rules and their order are those of `deepseek.models.generation`: repetition penalty, constraint, temperature, top-k,
top-p. Two things differ in form. Tokens as likely as the last one that top-p keeps stay, as they do for top-k: so no
order among equals matters. And a token is the inverse of the distribution at one number between 0 and 1 that comes from
the sequence's own generator: so a seed gives the same text alone and in any batch.
Log-probabilities are those of the model: of its raw logits, before penalty, constraint and temperature (as vLLM's
`raw_logprobs`, its default).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.models.generation import SamplingConfig
from deepseek.serve.text.constraint import GrammarState, JsonConstraint
from deepseek.serve.text.plan import Sampled, Sampling, SequenceRun, TokenLogprob

_DRAWN = 64  # numbers drawn at once
_NEAR = 1024  # likeliest tokens whose sum top-p tries first


class Sampler:
    """Remembers of each sequence its random numbers, which tokens occurred, and where its grammar stands."""

    def __init__(self, vocab_size: int) -> None:
        """Tokens from `vocab_size` on are never chosen."""
        self._vocab_size = vocab_size
        self._draws: dict[int, Iterator[float]] = {}
        self._seen: dict[int, _Seen] = {}
        self._grammars: dict[int, GrammarState] = {}

    def sample(self, logits: Tensor, runs: Sequence[SequenceRun]) -> list[Sampled]:
        """Return the next token of each run, all of which have `sampling`; `logits`: (runs, vocab_size).

        A row whose logits are no numbers, or whose grammar allows nothing, has an error and no token.
        """
        raw = logits[:, : self._vocab_size].float()
        samplings = [cast(Sampling, run.sampling) for run in runs]
        configs = [sampling.config for sampling in samplings]
        scores = self._penalized(raw, runs, configs)
        scores, errors = self._constrained(scores, runs, samplings)
        tokens = self._chosen(scores, runs, configs)
        logprobs = _logprobs(raw, tokens, [sampling.logprobs for sampling in samplings])
        found = []
        for row, (run, token) in enumerate(zip(runs, tokens, strict=True)):
            error, finished = errors.get(row), False
            if error is None and token is None:
                error = ModelError("the model's logits are not numbers", fix="check its weights")
            elif error is None and run.sequence in self._grammars:
                finished = self._grammars[run.sequence].accept(cast(int, token))
            if error is not None:
                found.append(Sampled(run.sequence, None, None, error))
            else:
                found.append(Sampled(run.sequence, token, logprobs.get(row), None, finished))
        return found

    @property
    def remembered(self) -> int:
        """The number of sequences of which something is remembered."""
        return len(self._draws.keys() | self._seen.keys() | self._grammars.keys())

    def release(self, sequence: int) -> None:
        """Forget a sequence."""
        for remembered in (self._draws, self._seen, self._grammars):
            cast(dict[int, object], remembered).pop(sequence, None)

    def _penalized(self, raw: Tensor, runs: Sequence[SequenceRun], configs: Sequence[SamplingConfig]) -> Tensor:
        rows = [row for row, config in enumerate(configs) if config.repetition_penalty != 1]
        if not rows:
            return raw
        seen = [self._seen.setdefault(runs[row].sequence, _Seen()).ids(runs[row].history) for row in rows]
        counts = [len(ids) for ids in seen]
        ids = torch.from_numpy(np.concatenate(seen)).to(raw.device)
        row_of = torch.from_numpy(np.repeat(rows, counts)).to(raw.device)
        penalties = np.repeat([configs[row].repetition_penalty for row in rows], counts)
        penalty = torch.from_numpy(penalties).to(raw.device, raw.dtype)
        scores, old = raw.clone(), raw[row_of, ids]
        scores[row_of, ids] = torch.where(old > 0, old / penalty, old * penalty)
        return scores

    def _constrained(
        self, scores: Tensor, runs: Sequence[SequenceRun], samplings: Sequence[Sampling]
    ) -> tuple[Tensor, dict[int, Exception]]:
        rows = [row for row, sampling in enumerate(samplings) if sampling.constraint is not None]
        errors: dict[int, Exception] = {}
        if not rows:
            return scores, errors
        bits = np.zeros((len(rows), -(-self._vocab_size // 32)), dtype=np.int32)
        for place, row in enumerate(rows):
            sequence = runs[row].sequence
            if sequence not in self._grammars:
                self._grammars[sequence] = cast(JsonConstraint, samplings[row].constraint).start()
            error = self._grammars[sequence].fill(bits[place])
            if error is not None:
                errors[row] = error
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, : scores.shape[1]]
        forbidden = torch.from_numpy(allowed == 0).to(scores.device)
        index = torch.tensor(rows, device=scores.device)
        return scores.index_copy(0, index, scores[index].masked_fill(forbidden, -torch.inf)), errors

    def _chosen(
        self, scores: Tensor, runs: Sequence[SequenceRun], configs: Sequence[SamplingConfig]
    ) -> list[int | None]:
        drawn = [row for row, config in enumerate(configs) if not config.greedy]
        if not drawn:
            return _likeliest(scores)
        numbers = [self._draw(runs[row].sequence, configs[row].seed) for row in drawn]
        settings = [configs[row] for row in drawn]
        if len(drawn) == len(configs):
            return _drawn(scores, settings, numbers)
        tokens = _likeliest(scores)
        index = torch.tensor(drawn, device=scores.device)
        for row, token in zip(drawn, _drawn(scores.index_select(0, index), settings, numbers), strict=True):
            tokens[row] = token
        return tokens

    def _draw(self, sequence: int, seed: int | None) -> float:
        if sequence not in self._draws:
            self._draws[sequence] = _numbers(seed)
        return next(self._draws[sequence])


class _Seen:
    """The tokens that occurred in a history that only grows, each once."""

    def __init__(self) -> None:
        self._read = 0
        self._ids: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def ids(self, history: Sequence[int]) -> NDArray[np.int64]:
        fresh, self._read = history[self._read :], len(history)
        self._ids = np.union1d(self._ids, np.asarray(fresh, dtype=np.int64))
        return self._ids


def _numbers(seed: int | None) -> Iterator[float]:
    """Yield numbers of [0, 1), on every device the same for a seed."""
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    while True:
        yield from torch.rand(_DRAWN, generator=generator, dtype=torch.float64).tolist()


def _likeliest(scores: Tensor) -> list[int | None]:
    if scores.is_cpu:  # numpy's vectorised search takes a fifth of torch's time
        rows = scores.numpy()
        tokens = rows.argmax(-1).tolist()
        return [token if np.isfinite(row[token]) else None for row, token in zip(rows, tokens, strict=True)]
    best = scores.max(-1)
    finite = best.values.isfinite().tolist()
    return [token if good else None for token, good in zip(best.indices.tolist(), finite, strict=True)]


def _drawn(scores: Tensor, configs: Sequence[SamplingConfig], numbers: Sequence[float]) -> list[int | None]:
    """Return a token for each row, the one at which the summed probabilities pass the row's number."""
    values = [
        (config.temperature, config.top_k, config.top_p, number)
        for config, number in zip(configs, numbers, strict=True)
    ]
    settings = torch.tensor(values, dtype=torch.float64).to(scores.device)
    temperature, top_k, top_p, number = settings.unbind(1)
    scores = scores / temperature[:, None].to(scores.dtype)
    if any(config.top_k for config in configs):
        scores = keep_top_k(scores, top_k.long())
    probabilities = scores.softmax(-1)
    if any(config.top_p < 1 for config in configs):
        probabilities = keep_top_p(probabilities, top_p)
    summed = probabilities.cumsum(-1, dtype=torch.float64)
    total = summed[:, -1]
    # below the total even where the product rounds up to it: then the token found has a probability above 0
    target = torch.minimum(number * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(summed, target[:, None], right=True)[:, 0].tolist()
    return [token if good else None for token, good in zip(tokens, total.isfinite().tolist(), strict=True)]


def keep_top_k(scores: Tensor, k: Tensor) -> Tensor:
    """Set all but the k (rows,) largest scores of each row to -inf; 0 keeps all, ties with the k-th stay."""
    most = max(1, min(int(k.max()), scores.shape[1]))
    best = scores.topk(most, dim=-1).values
    limit = best.gather(1, (k.clamp(1, most) - 1)[:, None])
    return scores.masked_fill(scores < limit.masked_fill((k == 0)[:, None], -torch.inf), -torch.inf)


def keep_top_p(probabilities: Tensor, p: Tensor) -> Tensor:
    """Set to 0 what is outside the smallest set of likeliest tokens that reaches p (rows,); 1 keeps all.

    Tokens as likely as the least likely of the set stay.
    """
    ordered = _falling(probabilities)
    limit, reached = _least_kept(ordered[:, :_NEAR], p)
    if not bool((reached | (p == 1)).all()):
        limit, _ = _least_kept(ordered, p)
    return probabilities.masked_fill(probabilities < limit.masked_fill(p == 1, 0.0)[:, None], 0.0)


def _falling(x: Tensor) -> Tensor:
    if x.is_cpu:  # numpy's vectorised sort takes a hundredth of torch's time
        return torch.from_numpy(np.sort(x.numpy(), axis=-1)).flip(-1)
    return x.sort(dim=-1, descending=True).values


def _least_kept(ordered: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least probability kept of each row, falling, and whether the row goes on below it."""
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    kept = (before < p[:, None]).sum(-1).clamp(min=1)
    return ordered.gather(1, kept[:, None] - 1)[:, 0], kept < ordered.shape[1]


def _logprobs(raw: Tensor, tokens: Sequence[int | None], wanted: Sequence[int | None]) -> dict[int, TokenLogprob]:
    """Return by row what is to be told of its token."""
    rows = [(row, token, top) for row, (token, top) in enumerate(zip(tokens, wanted, strict=True))]
    told = [(row, token, top) for row, token, top in rows if token is not None and top is not None]
    if not told:
        return {}
    index = torch.tensor([(row, token) for row, token, _ in told], device=raw.device)
    logs = raw.index_select(0, index[:, 0]).log_softmax(-1)
    chosen = logs.gather(1, index[:, 1:])[:, 0].tolist()
    most = min(max(top for _, _, top in told), raw.shape[1])
    best = logs.topk(most, dim=-1)
    values, ids = best.values.tolist(), best.indices.tolist()
    return {
        row: TokenLogprob(token, chosen[place], tuple(zip(ids[place][:top], values[place][:top], strict=True)))
        for place, (row, token, top) in enumerate(told)
    }
