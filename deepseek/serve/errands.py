"""Orders as a worker carries them out: those of its own clients go to the supervisor first, those that come are done.

They are done on a thread of their own, one after the other. Not here: in which sequence (see `orders.OrderBook`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from deepseek.errors import RequestError
from deepseek.serve.orders import Order, carry_out, refusal, told

if TYPE_CHECKING:
    from deepseek.serve.service import Service


class Errands:
    """One worker's orders; all but `pass_on` is called in the event loop."""

    def __init__(self, say: Callable[[Mapping[str, Any]], object]) -> None:
        """`say` sends a message to the supervisor."""
        self._say = say
        self._thread = ThreadPoolExecutor(1, "deepseek-orders")
        self._tickets = itertools.count()
        self._open: dict[int, Future[dict[str, Any] | None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self) -> None:
        """Take orders from now on."""
        self._loop = asyncio.get_running_loop()

    def pass_on(self, order: Order, request_id: str) -> None:
        """Have all workers carry out an order; wait for it, in a thread that may wait. Raises RequestError."""
        if self._loop is None:
            raise RequestError("the worker is only starting", status=503, fix="try again in a moment")
        done: Future[dict[str, Any] | None] = Future()
        self._loop.call_soon_threadsafe(self._ask, order, request_id, done)
        problem = done.result()
        if problem is not None:
            raise refusal(problem)

    async def catch_up(self, service: Service, orders: Iterable[Sequence[Any]]) -> None:
        """Do what was ordered before this worker's start; what fails is logged."""
        for order in orders:
            await asyncio.wrap_future(self._thread.submit(_try, service, Order(*order), "-"))

    def hear(self, message: Mapping[str, Any], service: Service) -> None:
        """Take a message of the supervisor."""
        if "order" in message:
            number, request_id, *order = message["order"]
            done = self._thread.submit(_try, service, Order(*order), request_id)
            done.add_done_callback(lambda one: self._tell(number, one))
        elif "ended" in message:
            ticket, problem = message["ended"]
            self._open.pop(ticket).set_result(problem)

    def close(self) -> None:
        """Fail what waits: the worker or its supervisor ends."""
        self._thread.shutdown(wait=False)
        for done in self._open.values():
            done.set_result(told(RequestError("the server is stopping", status=503)))
        self._open.clear()

    def _ask(self, order: Order, request_id: str, done: Future[dict[str, Any] | None]) -> None:
        ticket = next(self._tickets)
        self._open[ticket] = done
        self._say({"ask": [ticket, request_id, *order]})

    def _tell(self, number: int, done: Future[dict[str, Any] | None]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._say, {"did": [number, done.result()]})


def _try(service: Service, order: Order, request_id: str) -> dict[str, Any] | None:
    """Carry an order out; return the refusal."""
    try:
        carry_out(service, order, request_id)
    except RequestError as error:
        return told(error)
    except Exception as error:  # the thread goes on
        return told(RequestError("the order failed", status=500, found=type(error).__name__))
    return None
