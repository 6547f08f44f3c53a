"""Reads a thread from Postgres the way Python programs do: with LangGraph's own PostgresSaver and nothing of ours.

    interop.py setup DSN            LangGraph's own migrations (its tables, or nothing when they are there)
    interop.py read DSN THREAD_ID   prints one JSON object, or fails with what is wrong
    interop.py check DSN            prints what it finds in every thread of the database

What `read` prints:
    {"graphs": {"<namespace>": [checkpoint, …]},      oldest first; "" is the thread's own graph
     "stored_values": <n>, "encoded_otherwise": [...]}
    checkpoint = {"id", "parent", "step", "source", "parents", "updated_channels", "channels": {name: value},
                  "messages": [message, …], "writes": [{"task_id", "channel", "value"}]}
    message    = {"class", "id", "name", "content", "tool_calls", "tool_call_id", "status", "usage"}

What `check` prints, of a database with any number of threads:
    [{"thread_id", "error": text or null, "messages": [[class, text], …] of the newest checkpoint}, …]

`read` fails when the history of a graph is not one line, when ids do not grow, when a message is only half a message
(the decoder builds such objects in silence), or when a stored value has a class that strict mode does not allow.
`check` reports the same as `error`, without looking into older messages.
`encoded_otherwise` names stored values that Python would have written in other bytes.
"""

import json
import logging
import math
import os
import sys

os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"  # read at import: only LangGraph's own classes are built

import psycopg
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Interrupt


class Complaints(logging.Handler):
    """The decoder logs what it could not build instead of failing."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def message(found):
    type(found).model_validate(found.model_dump())  # raises where the decoder was content with half an object
    return {
        "class": type(found).__name__,
        "id": found.id,
        "name": found.name,
        "content": found.content,
        "tool_calls": getattr(found, "tool_calls", None),
        "tool_call_id": getattr(found, "tool_call_id", None),
        "status": getattr(found, "status", None),
        "usage": getattr(found, "usage_metadata", None),
    }


def plain(value):
    """A decoded value as JSON: messages as above, interrupts by their fields, any other object by its class."""
    if isinstance(value, BaseMessage):
        return message(value)
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return {"class": type(value).__name__, "items": sorted(map(str, value))}
    if isinstance(value, float) and not math.isfinite(value):
        return {"class": "float", "text": str(value)}  # JSON has no such number
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Interrupt):
        inside = {"value": plain(value.value), "response_schema": plain(value.response_schema)}
        return {"class": "Interrupt", "id": value.id, **inside}
    return {"class": type(value).__name__, "text": str(value)}


def check_history(namespace, checkpoints):
    before = None
    for checkpoint in checkpoints:
        place = f"graph {namespace!r}, checkpoint {checkpoint['id']}"
        assert checkpoint["parent"] == before, f"{place}: its parent is {checkpoint['parent']}, not {before}"
        assert before is None or checkpoint["id"] > before, f"{place}: its id is not above its parent's"
        before = checkpoint["id"]


def checkpoint_of(stored):
    values = stored.checkpoint["channel_values"]
    versions = stored.checkpoint["channel_versions"]
    assert stored.checkpoint["id"] == stored.config["configurable"]["checkpoint_id"]
    assert all(isinstance(version, str) for version in versions.values()), f"versions are texts: {versions}"
    parent = stored.parent_config
    return {
        "id": stored.config["configurable"]["checkpoint_id"],
        "parent": parent["configurable"]["checkpoint_id"] if parent else None,
        "step": stored.metadata["step"],
        "source": stored.metadata["source"],
        "parents": stored.metadata["parents"],
        "updated_channels": stored.checkpoint.get("updated_channels"),
        "channels": plain(values),
        "messages": [message(found) for found in values.get("messages", [])],
        "writes": [
            {"task_id": task_id, "channel": channel, "value": plain(value)}
            for task_id, channel, value in stored.pending_writes or []
        ],
    }


def encoded_otherwise(connection, thread_id):
    """How many values the thread has stored, and those that Python would have written in other bytes."""
    serde = JsonPlusSerializer()
    rows = connection.execute(
        "select 'blob ' || checkpoint_ns || '/' || channel || '/' || version, type, blob from checkpoint_blobs"
        " where thread_id = %(thread)s union all"
        " select 'write ' || checkpoint_ns || '/' || checkpoint_id || '/' || task_id || '/' || idx, type, blob"
        " from checkpoint_writes where thread_id = %(thread)s",
        {"thread": thread_id},
    ).fetchall()
    different = []
    for place, kind, blob in rows:
        if kind != "msgpack":
            assert kind in ("null", "empty", "bytes"), f"{place}: unexpected type {kind!r}"
            continue
        value = serde.loads_typed((kind, bytes(blob)))
        again = serde.dumps_typed(value)
        if isinstance(value, set):
            continue  # two Python processes write the items of a set in different orders, too
        if again != (kind, bytes(blob)):
            different.append({"place": place, "stored": bytes(blob).hex(), "python": again[1].hex()})
    return len(rows), different


def read(dsn, thread_id):
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    graphs = {}
    with PostgresSaver.from_conn_string(dsn) as saver:
        for stored in saver.list({"configurable": {"thread_id": thread_id}}):
            namespace = stored.config["configurable"].get("checkpoint_ns", "")
            graphs.setdefault(namespace, []).insert(0, checkpoint_of(stored))
        newest = saver.get_tuple({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}})
    assert newest is not None, f"thread {thread_id!r} has no checkpoint"
    for namespace, checkpoints in graphs.items():
        check_history(namespace, checkpoints)
    assert newest.checkpoint["id"] == graphs[""][-1]["id"], "the newest checkpoint ends the line"
    with psycopg.connect(dsn) as connection:
        stored_values, different = encoded_otherwise(connection, thread_id)
    assert not complaints.texts, f"the decoder complained: {complaints.texts}"
    return {"graphs": graphs, "stored_values": stored_values, "encoded_otherwise": different}


def check_thread(saver, thread_id):
    """Decodes every checkpoint of a thread, and looks into the messages of the newest."""
    lines = {}
    newest = None
    for stored in saver.list({"configurable": {"thread_id": thread_id}}):
        place = stored.config["configurable"]
        namespace = place.get("checkpoint_ns", "")
        parent = stored.parent_config
        parent = parent["configurable"]["checkpoint_id"] if parent else None
        lines.setdefault(namespace, []).insert(0, {"id": place["checkpoint_id"], "parent": parent})
        if namespace == "" and newest is None:
            newest = stored
    for namespace, checkpoints in lines.items():
        check_history(namespace, checkpoints)
    messages = newest.checkpoint["channel_values"].get("messages", []) if newest else []
    return [[found["class"], str(found["content"])] for found in map(message, messages)]


def check(dsn):
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    with psycopg.connect(dsn) as connection:
        threads = [row[0] for row in connection.execute("select distinct thread_id from checkpoints order by 1")]
    found = []
    with PostgresSaver.from_conn_string(dsn) as saver:
        for thread_id in threads:
            complaints.texts.clear()
            try:
                messages, error = check_thread(saver, thread_id), None
            except Exception as raised:  # whatever it is, the other threads are looked at, too
                messages, error = [], f"{type(raised).__name__}: {raised}"
            if error is None and complaints.texts:
                error = f"the decoder complained: {complaints.texts}"
            found.append({"thread_id": thread_id, "error": error, "messages": messages})
    return found


def main():
    command, dsn, *rest = sys.argv[1:]
    if command == "setup":
        with PostgresSaver.from_conn_string(dsn) as saver:
            saver.setup()
    elif command == "read":
        print(json.dumps(read(dsn, *rest)))
    elif command == "check":
        print(json.dumps(check(dsn)))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
