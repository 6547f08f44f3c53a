"""Tools for agents, answered over NATS: a micro service with an endpoint for each tool.

    pip install nats-py
    python examples/nats_tool_worker.py --server nats://localhost:4222

The executor must allow the subjects (NATS_TOOL_SUBJECTS=tools.>); graph-definitions/nats-tool.json uses them. Start the
worker as often as you like: its queue group gives each call to one of them.

A call is a request. Its payload is the arguments as a JSON object, its headers are

    Idempotency-Key        the same each time the same call is made
    Executor-Tool          the tool's name, as the model knows it
    Executor-Tool-Call-Id  the model's id of the call
    traceparent            the W3C trace context, where there is one

The payload of the reply is what the model reads. An error of the service (respond_error) is an error to the model.
"""

import argparse
import asyncio
import json
import signal

import nats
from nats import micro
from nats.micro.request import Request, ServiceError

QUEUE_GROUP = "stock"

# Where a real worker has a database. Answers by key are what makes a repeated call harmless.
stock = {"chair": 12, "table": 3}
answers: dict[str, bytes] = {}


async def look(request: Request) -> None:
    """Says how many pieces of an item there are."""
    item = arguments(request)["item"]
    if item not in stock:
        raise ServiceError("404", f"there is no {item}; there are {', '.join(stock)}")
    await request.respond(json.dumps({"item": item, "pieces": stock[item]}).encode())


async def book(request: Request) -> None:
    """Takes pieces of an item out of the stock, once for each key."""
    key = (request.headers or {}).get("Idempotency-Key", "")
    if key not in answers:
        wanted = arguments(request)
        item, pieces = wanted["item"], wanted["pieces"]
        if stock.get(item, 0) < pieces:
            raise ServiceError("409", f"there are only {stock.get(item, 0)} of {item}")
        stock[item] -= pieces
        answers[key] = f"{pieces} {item} booked, {stock[item]} left".encode()
    await request.respond(answers[key])


def arguments(request: Request) -> dict:
    print(json.dumps({"subject": request.subject, "headers": request.headers}), flush=True)
    return json.loads(request.data)


async def main() -> None:
    parser = argparse.ArgumentParser(description="Answers the tools of graph-definitions/nats-tool.json.")
    parser.add_argument("--server", default="nats://localhost:4222")
    connection = await nats.connect(parser.parse_args().server)
    service = await micro.add_service(connection, name="stock", version="1.0.0", queue_group=QUEUE_GROUP)
    for handler in (look, book):
        name = handler.__name__
        await service.add_endpoint(name=name, subject=f"tools.stock.{name}", handler=handler)
    await connection.flush()
    print("ready", flush=True)

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await service.stop()
    await connection.drain()


if __name__ == "__main__":
    asyncio.run(main())
