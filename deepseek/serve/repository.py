"""Loading and unloading on a client's wish: one check of names for REST and gRPC, beside the event loop.

Not here: who may wish (see the adapters), in which processes it is done (see `orders`), and how versions follow each
other (see `service`).
"""

from __future__ import annotations

import asyncio

from deepseek.errors import RequestError
from deepseek.serve.orders import Order, Orders
from deepseek.serve.rest.schema import MODEL_NAME


async def fulfil(orders: Orders, order: Order, request_id: str) -> None:
    """Load or unload a model, in a thread. Raises RequestError: 404 for a name that can't be, and what `give` raises.

    The log has the whole of what is wrong with a bundle under `request_id`, with its path.
    """
    if not MODEL_NAME.fullmatch(order.name):
        raise RequestError("this model does not exist here", field="model", status=404)
    await asyncio.to_thread(orders.give, order, request_id)
