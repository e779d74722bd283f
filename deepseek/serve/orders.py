"""What clients may change of the models that are served: one order after the other, and in all workers the same.

In one process an order is carried out at once. Under a supervisor it goes there first: the worker that was asked tries
it, and what fails there changes nothing anywhere; then all others do the same, and a worker that starts later does it
after its start. Not here: whether a client may (see `rest.kserve`), and how models are loaded (see `service`).
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from deepseek.errors import DeepSeekError, RequestError

if TYPE_CHECKING:
    from deepseek.serve.service import Service

_LOG = logging.getLogger("deepseek.serve")


class Order(NamedTuple):
    """One change."""

    what: Literal["load", "unload"]
    name: str
    version: str | None = None
    share: float | None = None
    """Of a load: the part of the requests that the version takes; None is all of them."""


class Orders:
    """The orders that clients give to one process."""

    def __init__(self, service: Service, pass_on: Callable[[Order, str], None] | None = None) -> None:
        """`pass_on` has an order carried out in all workers, and returns or raises when that is done."""
        self._pass_on = pass_on or functools.partial(carry_out, service)

    def give(self, order: Order, request_id: str) -> None:
        """Have an order carried out; it may take a while: call it in a thread.

        Raises RequestError: 404 for what is not there, 400 for what can't be served (then the one before goes on), 503
        where some workers followed and some did not.
        """
        if order.what == "unload" and order.share is not None:
            raise RequestError("a share is for loading", field="share", fix="leave it out")
        self._pass_on(order, request_id)


def carry_out(service: Service, order: Order, request_id: str) -> None:
    """Do it in this process. Raises RequestError; the log has the whole of what is wrong with a bundle."""
    try:
        if order.what == "load":
            service.load(order.name, version=order.version, share=order.share)
        else:
            service.unload(order.name, order.version)
    except RequestError:
        raise
    except DeepSeekError as error:
        _LOG.warning("request %s: %s", request_id, error)
        found = service.told(order.name, error)
        raise RequestError(f"the model '{order.name}' can't be {order.what}ed", found=found) from error


def told(error: RequestError) -> dict[str, Any]:
    """Return a refusal as plain values."""
    parts = {"found": error.found, "wanted": error.wanted, "fix": error.fix}
    texts = {name: None if value is None else str(value) for name, value in parts.items()}
    return {"problem": error.problem, "field": error.field, "status": error.status, **texts}


def refusal(values: Mapping[str, Any]) -> RequestError:
    """Return what `told` told."""
    rest = dict(values)
    return RequestError(rest.pop("problem"), **rest)


class Follower(Protocol):
    """A worker as the supervisor sees it."""

    heard_orders: list[dict[str, Any]]
    """What it has said of orders since the last look."""
    orders: Sequence[Sequence[Any]] | None
    """What it was told at its start; None once it knows the rest."""

    def send(self, message: Mapping[str, Any], /) -> None:
        """Send it a message."""
        ...


class _Question(NamedTuple):
    """An order as a worker asked for it."""

    asker: Follower
    ticket: int
    request_id: str
    order: Order


class _Round:
    """One order on its way."""

    def __init__(self, number: int, question: _Question) -> None:
        self.number = number
        self.asker, self.ticket, self.request_id, self.order = question
        self.waiting: list[Follower] = [self.asker]
        self.is_tried = False
        self.followed = 0
        self.problem: dict[str, Any] | None = None

    def send(self) -> None:
        for one in self.waiting:
            one.send({"order": [self.number, self.request_id, *self.order]})


class OrderBook:
    """The supervisor's side: what was ordered, and the order on its way."""

    def __init__(self) -> None:
        self.past: list[list[Any]] = []
        """What a worker that starts now has to do, in this sequence."""
        self._asked: deque[_Question] = deque()
        self._round: _Round | None = None
        self._count = 0

    def turn(self, followers: Sequence[Follower]) -> None:
        """Take what the workers said, and send what comes next. `followers` are those that are ready."""
        for one in followers:
            if one.orders is not None:
                for missed in [order for order in self.past if order not in one.orders]:
                    one.send({"order": [0, "-", *missed]})
                one.orders = None
            for message in one.heard_orders:
                if "ask" in message:
                    ticket, request_id, *order = message["ask"]
                    self._asked.append(_Question(one, ticket, request_id, Order(*order)))
                else:
                    self._hear(one, *message["did"])
            one.heard_orders.clear()
        if self._round is not None:
            self._go_on(self._round, followers)
        while self._round is None and self._asked:
            question = self._asked.popleft()
            if question.asker in followers:
                self._count += 1
                self._round = _Round(self._count, question)
                self._round.send()

    def _hear(self, one: Follower, number: int, problem: dict[str, Any] | None) -> None:
        round_ = self._round
        if round_ is None or number != round_.number or one not in round_.waiting:
            return
        round_.waiting.remove(one)
        round_.followed += problem is None
        round_.problem = round_.problem or problem

    def _go_on(self, round_: _Round, followers: Sequence[Follower]) -> None:
        """Send the order to the others once it was tried, and tell the end; one that died has followed."""
        round_.waiting = [one for one in round_.waiting if one in followers]
        if round_.waiting:
            return
        if not round_.is_tried and round_.followed:
            round_.is_tried = True
            self._keep(round_.order)
            round_.waiting = [one for one in followers if one is not round_.asker]
            round_.send()
            if round_.waiting:
                return
        problem = round_.problem
        if problem is not None and round_.is_tried:
            error = RequestError(
                f"{round_.followed} of {len(followers)} workers followed",
                status=503,
                found=problem["problem"],
                fix="try again; a worker that starts anew follows too",
            )
            problem = told(error)
        round_.asker.send({"ended": [round_.ticket, problem]})
        self._round = None

    def _keep(self, order: Order) -> None:
        """Note an order for workers to come; what it makes void is forgotten."""
        if order.share is None and (order.what == "load" or order.version is None):
            self.past = [one for one in self.past if one[1] != order.name]
        self.past = [one for one in self.past if one != [*order]] + [[*order]]
