"""What every model template promises, held against each toy config in `tests/toys/`.

A template is added by its file, its line in the registry and a toy; nothing here names one. Parity with public
counterparts is in `tests/parity`, what is special to a template in `tests/unit`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek.config import Config, parse_yaml
from deepseek.errors import ModelError
from deepseek.models.factory import build, model_config, template_of
from deepseek.registry import MODEL_CONFIGS, MODELS, resolve

TOYS = {path.stem: path for path in sorted((Path(__file__).parent.parent / "toys").glob("*.yaml"))}
MOST_WEIGHTS = 150_000

every_toy = pytest.mark.parametrize("toy", TOYS)
Inputs = dict[str, Tensor]


# --- tools


@functools.cache
def config_of(toy: str) -> Config:
    return model_config(TOYS[toy])[1]


@functools.cache
def _built(toy: str) -> nn.Module:
    return seeded(lambda: build(config_of(toy)))


def fresh(toy: str) -> nn.Module:
    """Return a copy of the toy as its initialisation made it, in training mode."""
    return copy.deepcopy(_built(toy))


def noisy(toy: str) -> nn.Module:
    """Return a copy in which every weight has moved: layers that begin as zero say something too."""
    model = fresh(toy)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(11)
    return make()


def inputs_of(model: nn.Module, batch_size: int = 2) -> Inputs:
    example: Callable[[int], Inputs] = model.example_inputs  # type: ignore[assignment]
    return example(batch_size)


def outputs(found: Any) -> list[Tensor]:
    """Return all tensors of an answer, be it a tensor or a NamedTuple with more of them inside."""
    leaves = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
    assert leaves, f"the model returned no tensor but {type(found).__name__}"
    return leaves


def floating(found: Any) -> list[Tensor]:
    return [leaf for leaf in outputs(found) if leaf.is_floating_point()]


def learnable(found: Any) -> list[Tensor]:
    return [leaf for leaf in floating(found) if leaf.requires_grad]


def probe_loss(found: Any) -> Tensor:
    """Return a scalar that depends on every output with weights of its own."""
    generator = torch.Generator().manual_seed(2)
    return sum((torch.randn(leaf.shape, generator=generator) * leaf).sum() for leaf in learnable(found))  # type: ignore[return-value]


def assert_equal(ours: Any, other: Any, tolerance: float = 1e-5) -> None:
    left, right = outputs(ours), outputs(other)
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        torch.testing.assert_close(one, two, atol=tolerance, rtol=tolerance)


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# --- building


@every_toy
def test_yaml_and_config_class_build_the_same_model(toy: str) -> None:
    template, config = model_config(TOYS[toy])
    values = parse_yaml(TOYS[toy].read_text(encoding="utf-8"), toy).value
    assert isinstance(values, dict)
    config_class, model_class = resolve(MODEL_CONFIGS, template, "model"), resolve(MODELS, template, "model")
    assert values.pop("name") == template == template_of(config)
    from_class = seeded(lambda: model_class(config_class(**values)))  # type: ignore[operator]
    from_yaml = seeded(lambda: build(TOYS[toy]))
    assert type(from_yaml) is type(from_class) is model_class
    assert from_yaml.config == from_class.config == config
    again = config_class.from_source(parse_yaml(config.to_yaml()))  # type: ignore[attr-defined]
    assert again == config
    assert_same_state(from_yaml, from_class)
    assert sum(p.numel() for p in from_yaml.parameters()) <= MOST_WEIGHTS


def assert_same_state(one: nn.Module, two: nn.Module) -> None:
    left, right = one.state_dict(), two.state_dict()
    assert list(left) == list(right)
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"not equal: {different}"


@every_toy
def test_initialisation_follows_the_seed(toy: str) -> None:
    assert_same_state(fresh(toy), seeded(lambda: build(config_of(toy))))
    torch.manual_seed(12)
    other, state = build(config_of(toy)).state_dict(), fresh(toy).state_dict()
    assert any(not torch.equal(state[name], other[name]) for name in state)
    model = fresh(toy)
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values() if value.is_floating_point())


@every_toy
def test_builds_and_runs_without_memory(toy: str) -> None:
    with torch.device("meta"):
        model = build(config_of(toy))
    shapes = {name: value.shape for name, value in fresh(toy).state_dict().items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    assert all(value.is_meta for value in model.state_dict().values())
    real = fresh(toy).eval()
    inputs = inputs_of(real)
    with torch.no_grad():
        on_meta = model.eval()(**{name: value.to("meta") for name, value in inputs.items()})
        assert [leaf.shape for leaf in outputs(on_meta)] == [leaf.shape for leaf in outputs(real(**inputs))]


@every_toy
def test_state_dict_round_trip(toy: str) -> None:
    model = noisy(toy).eval()
    torch.manual_seed(99)
    other = build(config_of(toy)).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert_equal(model(**inputs_of(model)), other(**inputs_of(other)), tolerance=0)


# --- forward


@every_toy
def test_example_inputs_are_always_the_same(toy: str) -> None:
    model = fresh(toy)
    first, again = inputs_of(model, 3), inputs_of(model, 3)
    assert list(first) == list(again) and all(torch.equal(first[name], again[name]) for name in first)
    assert list(inputs_of(model, 1)) == list(first)


@every_toy
def test_forward_for_batches_of_one_and_three(toy: str) -> None:
    model = noisy(toy).eval()
    with torch.no_grad():
        one, three = (outputs(model(**inputs_of(model, size))) for size in (1, 3))
    assert len(one) == len(three)
    for single, triple in zip(one, three, strict=True):
        assert single.dim() == triple.dim()
        assert all(b in (a, 3 * a) for a, b in zip(single.shape, triple.shape, strict=True))
    assert any(single.shape != triple.shape for single, triple in zip(one, three, strict=True))
    assert all(bool(torch.isfinite(leaf).all()) for leaf in [*one, *three] if leaf.is_floating_point())


@every_toy
def test_rows_of_a_batch_do_not_see_each_other(toy: str) -> None:
    model = noisy(toy).eval()
    inputs = inputs_of(model, 3)
    rows = batch_dims(inputs_of(model, 1), inputs)
    last = {name: value if rows[name] is None else value.narrow(rows[name], 2, 1) for name, value in inputs.items()}
    with torch.no_grad():
        all_rows, alone = outputs(model(**inputs)), outputs(model(**last))
    for triple, single in zip(all_rows, alone, strict=True):
        dims = [dim for dim in range(single.dim()) if triple.shape[dim] == 3 * single.shape[dim]]
        if len(dims) == 1:
            own = triple.narrow(dims[0], 2 * single.shape[dims[0]], single.shape[dims[0]])
            torch.testing.assert_close(own, single, atol=1e-4, rtol=1e-4)


def batch_dims(one: Inputs, three: Inputs) -> dict[str, int | None]:
    """Return each input's batch dimension, None for an input without."""
    return {
        name: next((dim for dim, size in enumerate(three[name].shape) if size != value.shape[dim]), None)
        for name, value in one.items()
    }


@every_toy
def test_odd_sizes_work_or_are_refused_by_name(toy: str) -> None:
    """Texts may have any length below the longest; images that a template can't take are refused."""
    model = fresh(toy).eval()
    inputs = inputs_of(model)
    texts = {name: value for name, value in inputs.items() if name.endswith(("ids", "mask"))}
    images = {name: value for name, value in inputs.items() if value.dim() > 3 and name != "memory"}
    with torch.no_grad():
        for time in (1, 7) if texts else ():
            found = model(**{**inputs, **{name: value[:, :time] for name, value in texts.items()}})
            assert all(bool(torch.isfinite(leaf).all()) for leaf in floating(found)), f"{time} tokens"
        for name, value in images.items():
            try:
                found = model(**{**inputs, name: value[..., :-1, :-3]})
            except ModelError as error:
                assert name in str(error)
            else:
                assert all(bool(torch.isfinite(leaf).all()) for leaf in floating(found))


@every_toy
def test_bf16_forward(toy: str) -> None:
    model = noisy(toy).eval()
    inputs = inputs_of(model)
    with torch.no_grad():
        wide = model(**inputs)
        model.bfloat16()
        narrow = model(
            **{name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
        )
    for one, two in zip(outputs(wide), outputs(narrow), strict=True):
        assert one.shape == two.shape
        if one.is_floating_point():
            assert bool(torch.isfinite(two).all())
            assert two.dtype == torch.bfloat16 or not two.dim(), f"bf16 weights gave {two.dtype}"
            assert float((one - two.float()).norm()) <= 0.1 * float(one.norm()), "bf16 says something else"


# --- gradients


@every_toy
def test_every_parameter_gets_a_gradient(toy: str) -> None:
    for model in (fresh(toy), noisy(toy)):
        model.train()
        probe_loss(model(**inputs_of(model, 3))).backward()  # type: ignore[no-untyped-call]
        without = [name for name, gradient in gradients(model).items() if gradient is None]
        assert not without, f"no gradient: {without}"
        odd = [name for name, gradient in gradients(model).items() if not bool(torch.isfinite(gradient).all())]  # type: ignore[arg-type]
        assert not odd, f"NaN or infinite: {odd}"
    still = [name for name, gradient in gradients(model).items() if not gradient.count_nonzero()]  # type: ignore[union-attr]
    assert len(still) <= 0.1 * len(gradients(model)), f"zero: {still}"


@every_toy
def test_gradient_checkpointing_changes_memory_alone(toy: str) -> None:
    saved, found = {}, {}
    for enabled in (False, True):
        model = noisy(toy).train()
        model.config.gradient_checkpointing = enabled  # type: ignore[union-attr]
        inputs = inputs_of(model)
        torch.manual_seed(3)
        counter = _Saved(model)
        with torch.autograd.graph.saved_tensors_hooks(counter, lambda tensor: tensor):
            loss = probe_loss(model(**inputs))
        saved[enabled] = counter.total
        loss.backward()  # type: ignore[no-untyped-call]
        found[enabled] = gradients(model)
    for name, gradient in found[False].items():
        torch.testing.assert_close(found[True][name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    assert saved[True] < saved[False], f"bytes kept for the backward pass: {saved[True]} with, {saved[False]} without"


class _Saved:
    """Counts the bytes of what the forward pass keeps for the backward pass, weights aside, each memory once."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._kept: list[Tensor] = []  # alive, so that no address is used twice
        self._known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def __call__(self, tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self._known:
            self._known.add(address)
            self._kept.append(tensor)
            self.total += tensor.untyped_storage().nbytes()
        return tensor


@every_toy
def test_twenty_steps_learn_a_batch(toy: str) -> None:
    """The batch's targets are what a model of the same kind with other weights answers: any template can reach them."""
    teacher, model = noisy(toy).train(), fresh(toy).train()
    inputs = inputs_of(model, 3)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2 * parameter.std(correction=0).clamp(0.05, 1))
    targets = [leaf.detach() for leaf in learnable(teacher(**inputs))]
    scales = [target.square().mean().clamp_min(1e-6) for target in targets]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(21):
        found = learnable(model(**inputs))
        parts = [(a - b).square().mean() / s for a, b, s in zip(found, targets, scales, strict=True)]
        loss = torch.stack(parts).sum()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0], f"from {losses[0]:.4g} to {losses[-1]:.4g}"


# --- compilers


@every_toy
def test_compiles_without_graph_breaks(toy: str) -> None:
    model = noisy(toy).eval()
    inputs = inputs_of(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(**inputs), model(**inputs), tolerance=1e-4)


@every_toy
def test_exports(toy: str) -> None:
    model = noisy(toy).eval()
    inputs = inputs_of(model)
    program = torch.export.export(model, (), inputs)
    with torch.no_grad():
        assert_equal(program.module()(**inputs), model(**inputs), tolerance=1e-4)


# --- bad input


def wrong_inputs(inputs: Inputs, config: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (what is wrong, the input's name, the changed inputs), found from names, types and the longest text."""
    for name, value in inputs.items():
        for problem, wrong in wrong_values(name, value):
            yield problem, name, {name: wrong}
    ids, longest = inputs.get("input_ids"), getattr(config, "max_length", None)
    if ids is not None and longest is not None:
        copies = longest // ids.shape[1] + 1
        yield "length", "input_ids", {name: x.repeat(1, copies) for name, x in inputs.items() if x.shape == ids.shape}


def wrong_values(name: str, value: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield (what is wrong, the value) for one input."""
    yield "rank", value.unsqueeze(-1)
    yield "rank", value[0]
    yield "rank", value.flatten()[0]
    yield "type", value.tolist()
    if value.is_floating_point() and value.dim() > 1:
        yield "number format", (10 * value).long()
    if value.is_floating_point() and value.dim() > 3 and name != "memory":
        yield "channel count", value.repeat_interleave(2, dim=1)
    whole = not value.is_floating_point() and value.dtype != torch.bool
    if whole and name.endswith("ids"):
        yield "number format", value.float()
        yield "length", value[:, :0]
    if whole and not any(word in name for word in ("mask", "length", "document", "segment", "step")):
        past = value.clone()
        past.view(-1)[-1] = 10**6
        yield "vocabulary", past
        yield "vocabulary", -1 - value
    if "mask" in name:
        yield "mask shape", value[..., :-1]
        yield "mask shape", torch.cat([value, value])
        yield "number format", value.log()  # one to be added to scores: 0 and -inf


@every_toy
def test_bad_input_is_answered_by_its_name(toy: str) -> None:
    model = fresh(toy).eval()
    inputs = inputs_of(model)
    for problem, name, wrong in wrong_inputs(inputs, model.config):
        try:
            model(**{**inputs, **wrong})
        except ModelError as error:
            assert name in str(error), f"{problem} of {name}: the message does not name it: {error}"
            assert error.found is not None and error.wanted is not None, f"{problem} of {name}: {error}"
        except Exception as error:
            raise AssertionError(f"{problem} of {name}: {type(error).__name__} from deep inside: {error}") from error
        else:
            pytest.fail(f"{problem} of {name}: accepted, {wrong[name]}")


@every_toy
def test_inputs_that_belong_together_have_one_batch(toy: str) -> None:
    """One sample more in one input is refused by a name, or answered (CLIP's towers): never an error from inside."""
    model = fresh(toy).eval()
    inputs = inputs_of(model)
    with torch.no_grad():
        before = [leaf.shape for leaf in outputs(model(**inputs))]
        for name, batch in batch_dims(inputs_of(model, 1), inputs).items():
            more = torch.cat([inputs[name], inputs[name].narrow(batch or 0, 0, 1)], dim=batch or 0)
            try:
                found = model(**{**inputs, name: more})
            except ModelError as error:
                assert any(other in str(error) for other in inputs)
            else:
                assert [leaf.shape for leaf in outputs(found)] != before


@every_toy
def test_numbers_of_another_width_are_taken(toy: str) -> None:
    """NumPy's doubles, and bf16 from a loader, become the weights' number format: the answer stays the same."""
    model = noisy(toy).eval()
    inputs = inputs_of(model)
    with torch.no_grad():
        wanted = model(**inputs)
        for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.2)):
            other = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
            for one, two in zip(outputs(wanted), outputs(model(**other)), strict=True):
                assert one.shape == two.shape and one.dtype == two.dtype
                if one.is_floating_point():
                    assert float((one - two).norm()) <= tolerance * float(one.norm())


def test_every_template_has_a_toy() -> None:
    served = {model_config(path)[0] for path in TOYS.values()}
    assert not set(MODELS) - served, f"no toy config in tests/toys for {sorted(set(MODELS) - served)}"
