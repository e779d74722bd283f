"""The engine for fixed shapes: batches, errors, deadlines, cancelling, a full queue, and its end."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import numpy as np
import pytest

from deepseek.errors import RequestError
from deepseek.serve.tensor.datatypes import ModelSignature, TensorSpec
from deepseek.serve.tensor.engine import TensorEngine
from deepseek.serve.tensor.limits import TensorLimits
from deepseek.serve.tensor.requests import Cancelled

SIGNATURE = ModelSignature(
    (TensorSpec("x", "FP32", (-1, 2)),),
    (TensorSpec("y", "FP32", (-1, 1)),),
    axes={"x": ("batch", None)},
    output_axes={"y": ("batch", None)},
)


class Model:
    """Sums rows. A row that begins with NaN breaks the run it is in."""

    signature = SIGNATURE

    def __init__(self):
        self.sizes = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.began = threading.Event()

    def run(self, inputs):
        x = inputs["x"]
        self.sizes.append(len(x))
        self.began.set()
        self.may_run.wait(30)
        if np.isnan(x[:, 0]).any():
            raise ValueError("secret")
        return {"y": x.sum(1, keepdims=True)}

    def verify(self):
        pass


def rows(*values):
    return {"x": np.array([[value, 1] for value in values], np.float32)}


def test_what_waits_goes_together_and_is_answered_in_order():
    model = Model()
    engine = TensorEngine(model, TensorLimits(max_batch=4))
    answers = {}
    for index, values in enumerate([(1,), (2, 3), (4,), (5,)]):
        engine.submit(rows(*values), lambda answer, index=index: answers.__setitem__(index, answer))
    while engine.step():
        pass
    assert model.sizes == [4, 1]
    assert [answers[index]["y"].ravel().tolist() for index in range(4)] == [[2.0], [3.0, 4.0], [5.0], [6.0]]
    assert engine.stats()[:8] == (0, 0, 4, 0, 0, 0, 5, 2)


def test_a_request_larger_than_a_run_goes_in_pieces():
    model = Model()
    engine = TensorEngine(model, TensorLimits(max_batch=4))
    found = []
    engine.submit(rows(*range(10)), found.append)
    engine.step()
    assert model.sizes == [4, 4, 2]
    np.testing.assert_array_equal(found[0]["y"].ravel(), np.arange(10) + 1)


def test_one_bad_request_harms_only_itself():
    model = Model()
    engine = TensorEngine(model)
    found = {}
    for index, value in enumerate([1.0, float("nan"), 2.0]):
        engine.submit(rows(value), lambda answer, index=index: found.__setitem__(index, answer))
    engine.step()
    assert (found[0]["y"].item(), found[2]["y"].item()) == (2.0, 3.0)
    assert isinstance(found[1], ValueError)
    assert (engine.stats().finished, engine.stats().failed) == (2, 1)


def test_a_full_queue_refuses_with_429_and_a_wrong_request_with_400_at_once():
    engine = TensorEngine(Model(), TensorLimits(max_queue=2, max_rows=3))
    for _ in range(2):
        engine.submit(rows(1), print)
    for inputs, status in ((rows(1), 429), ({"x": np.zeros((1, 3), np.float32)}, 400), (rows(1, 2, 3, 4), 413)):
        with pytest.raises(RequestError) as caught:
            engine.submit(inputs, print)
        assert caught.value.status == status
    assert engine.stats().refused == 1
    assert engine.retry_after() >= 1


def test_when_overload_begins_those_who_wait_are_refused_and_an_idle_server_takes_the_next():
    now = [0.0]
    model = Model()
    model.seconds = {1: 1.0}
    engine = TensorEngine(model, TensorLimits(max_queue=1000), clock=lambda: now[0])
    found = []
    for _ in range(150):
        now[0] += 0.01
        try:
            engine.submit(rows(1), found.append)
        except RequestError as error:
            found.append(error)
    assert engine._admission.overloaded
    refused = [answer for answer in found if isinstance(answer, RequestError)]
    assert {answer.status for answer in refused} == {429}
    stats = engine.stats()
    assert (stats.waiting, stats.refused, len(refused)) == (1, 149, 149)
    assert engine.step()
    assert engine.stats().finished == 1


def test_the_gate_counts_whom_it_turns_away_and_opens_when_the_model_is_idle_again():
    now = [0.0]
    model = Model()
    model.seconds = {1: 1.0}
    engine = TensorEngine(model, TensorLimits(max_queue=1000), clock=lambda: now[0])
    engine.gate()
    found = []
    while not engine._admission.overloaded:
        now[0] += 0.01
        engine.submit(rows(1), found.append)
    engine._take(0, wait=False)
    before = engine.stats().refused
    for _ in range(500):
        now[0] += 0.0005
        with pytest.raises(RequestError, match="too many requests") as caught:
            engine.gate()
        assert caught.value.status == 429
        assert caught.value.retry_after >= 1
    assert engine.stats().refused == before + 500
    assert engine._admission.overloaded
    engine._running.clear()
    now[0] += 20.0
    engine.gate()
    assert engine.stats().refused == before + 500


def test_who_waited_beyond_the_deadline_gets_504_and_is_not_run():
    now = [0.0]
    model = Model()
    engine = TensorEngine(model, clock=lambda: now[0])
    found = []
    engine.submit(rows(1), found.append, deadline=5.0)
    engine.submit(rows(2), found.append)
    now[0] = 6.0
    engine.step()
    assert found[0].status == 504
    assert found[1]["y"].item() == 3.0
    assert model.sizes == [1]


def test_a_cancelled_request_leaves_the_queue():
    model = Model()
    engine = TensorEngine(model)
    found = []
    cancel = engine.submit(rows(1), found.append)
    cancel()
    cancel()
    assert not engine.step()
    assert [type(answer) for answer in found] == [Cancelled]
    assert (engine.stats().cancelled, engine.stats().waiting, model.sizes) == (1, 0, [])


def test_workers_answer_callers_on_an_event_loop():
    model = Model()
    engine = TensorEngine(model, TensorLimits(max_batch=8, instances=2))
    engine.start()

    async def ask():
        return await asyncio.gather(*[engine.infer(rows(value, value + 1)) for value in range(100)])

    answers = asyncio.run(ask())
    engine.close(5.0)
    assert [answer["y"].ravel().tolist() for answer in answers] == [[v + 1.0, v + 2.0] for v in range(100)]
    assert sum(model.sizes) == 200
    assert max(model.sizes) <= 8


def test_a_late_answer_is_504_while_the_run_goes_on():
    model = Model()
    model.may_run.clear()
    engine = TensorEngine(model)
    engine.start()

    async def ask():
        with pytest.raises(RequestError) as caught:
            await engine.infer(rows(1), deadline=time.monotonic() + 0.05)
        return caught.value.status

    assert asyncio.run(ask()) == 504
    model.may_run.set()
    engine.close(5.0)


def test_a_cancelled_call_frees_its_place():
    model = Model()
    model.may_run.clear()
    engine = TensorEngine(model, TensorLimits(max_batch=1))
    engine.start()

    async def ask():
        tasks = [asyncio.create_task(engine.infer(rows(value))) for value in range(3)]
        await asyncio.to_thread(model.began.wait, 10)
        tasks[2].cancel()
        await asyncio.gather(tasks[2], return_exceptions=True)
        waiting = engine.stats().waiting
        model.may_run.set()
        return waiting, [answer["y"].item() for answer in await asyncio.gather(*tasks[:2])]

    assert asyncio.run(ask()) == (1, [1.0, 2.0])
    engine.close(5.0)


def test_closing_lets_what_waits_finish_and_then_refuses():
    model = Model()
    engine = TensorEngine(model, TensorLimits(max_batch=1))
    found = []
    for value in range(5):
        engine.submit(rows(value), found.append)
    engine.start()
    engine.close(10.0)
    assert [answer["y"].item() for answer in found] == [1.0, 2.0, 3.0, 4.0, 5.0]
    with pytest.raises(RequestError) as caught:
        engine.submit(rows(1), print)
    assert caught.value.status == 503


def test_closing_at_once_fails_the_rest_with_503():
    model = Model()
    model.may_run.clear()
    engine = TensorEngine(model, TensorLimits(max_batch=1))
    found = []
    for value in range(3):
        engine.submit(rows(value), found.append)
    engine.start()
    assert model.began.wait(10)
    threading.Timer(0.1, model.may_run.set).start()
    engine.close()
    assert [getattr(answer, "status", None) for answer in found] == [503, 503, 503]


def test_a_short_run_is_done_where_it_arrives_and_a_long_one_is_not():
    model = Model()
    model.seconds = {1: 1e-5}
    engine = TensorEngine(model)
    engine.start()
    assert engine.run_now(rows(4))["y"].item() == 5.0
    assert engine.run_now(rows(*range(500))) is None
    with pytest.raises(RequestError):
        engine.run_now({"x": np.zeros((1, 3), np.float32)})
    assert engine.stats().finished == 1
    model.seconds = {1: 1e-2}
    slow = TensorEngine(model)
    assert slow.run_now(rows(4)) is None
    engine.close()


def test_the_rows_of_a_model_whose_rows_touch_each_other_run_alone():
    model = Model()
    model.signature = SIGNATURE._replace(batch_axis=False)
    engine = TensorEngine(model)
    for _ in range(3):
        engine.submit(rows(1, 2), lambda answer: None)
    while engine.step():
        pass
    assert model.sizes == [2, 2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_under_random_arrivals_errors_and_cancellations_everyone_gets_the_own_answer_once(seed):
    rng = random.Random(seed)
    engine = TensorEngine(Model(), TensorLimits(max_batch=rng.choice([1, 3, 8]), instances=rng.choice([1, 2])))
    engine.start()
    found, cancels, asked = {}, [], {}
    for index in range(200):
        values = [float(rng.randrange(100)) for _ in range(rng.randrange(1, 5))]
        if rng.random() < 0.1:
            values[0] = float("nan")
        asked[index] = values
        cancel = engine.submit(rows(*values), lambda answer, index=index: found.setdefault(index, []).append(answer))
        if rng.random() < 0.2:
            cancels.append(cancel)
        if cancels and rng.random() < 0.3:
            cancels.pop()()
        if rng.random() < 0.05:
            time.sleep(0.001)
    engine.close(20.0)
    assert sorted(found) == list(range(200))
    for index, answers in found.items():
        (answer,) = answers
        if isinstance(answer, Exception):
            assert isinstance(answer, Cancelled) or np.isnan(asked[index][0])
        else:
            assert answer["y"].ravel().tolist() == [value + 1 for value in asked[index]]
    stats = engine.stats()
    assert (stats.waiting, stats.active, stats.finished + stats.cancelled + stats.failed) == (0, 0, 200)
