"""A throw-away NATS server, and as much of its protocol as it takes to make streams from NACK's objects."""
import contextlib
import json
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time

NANOSECONDS = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
PLAIN = {"retention", "storage", "discard", "subjects", "name"}
RENAMED = {"replicas": "num_replicas", "maxMsgSize": "max_msg_size", "maxBytes": "max_bytes", "durableName": "durable_name",
           "deliverPolicy": "deliver_policy", "ackPolicy": "ack_policy", "maxDeliver": "max_deliver",
           "maxAckPending": "max_ack_pending", "replayPolicy": "replay_policy"}
TIMES = {"maxAge": "max_age", "duplicateWindow": "duplicate_window", "ackWait": "ack_wait"}
# Only NACK's controller reads them.
IGNORED = {"preventDelete", "streamName"}


def configuration(spec):
    """The server's words for the fields of NACK; an unknown one is an error."""
    made = {}
    for field, value in spec.items():
        if field in PLAIN:
            made[field] = value
        elif field in RENAMED:
            made[RENAMED[field]] = value
        elif field in TIMES:
            number, unit = re.fullmatch(r"(\d+)([smh])", value).groups()
            made[TIMES[field]] = int(number) * NANOSECONDS[unit]
        elif field not in IGNORED:
            raise ValueError(f"no word for {field}")
    return made


class Client:
    """One connection; `ask` sends a request and gives the answer."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.reader = self.socket.makefile("rb")
        self.reader.readline()
        self.socket.sendall(b'CONNECT {"verbose":false}\r\nSUB answer 1\r\nPING\r\n')
        while self.reader.readline() != b"PONG\r\n":
            pass

    def ask(self, subject, body):
        payload = json.dumps(body).encode()
        self.socket.sendall(f"PUB {subject} answer {len(payload)}\r\n".encode() + payload + b"\r\n")
        while not (line := self.reader.readline()).startswith(b"MSG "):
            if line == b"PING\r\n":
                self.socket.sendall(b"PONG\r\n")
        answer = json.loads(self.reader.read(int(line.split()[-1])))
        self.reader.readline()
        if "error" in answer:
            raise ValueError(f"{subject}: {answer['error']}")
        return answer

    def close(self):
        self.reader.close()
        self.socket.close()


@contextlib.contextmanager
def server():
    """A server with JetStream on a free port; gives the port."""
    folder = tempfile.mkdtemp(prefix="agent-executor-broker-")
    program = shutil.which("nats-server", path="/usr/local/sbin:/usr/sbin:/sbin:" + "/usr/local/bin:/usr/bin:/bin")
    process = subprocess.Popen([program, "-js", "-sd", folder, "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", folder],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port_of(process, pathlib.Path(folder))
    finally:
        process.terminate()
        process.wait(timeout=30)
        shutil.rmtree(folder, True)


def port_of(process, folder):
    """The port that the server writes to a file once it listens."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        for path in folder.glob("*.ports"):
            with contextlib.suppress(ValueError, KeyError):
                return int(json.loads(path.read_text())["nats"][0].rpartition(":")[2])
        time.sleep(0.05)
    raise RuntimeError("nats-server did not start")


def apply(port, documents):
    """Makes the streams and consumers among `documents`, as NACK would."""
    client = Client(port)
    try:
        for document in documents:
            if document["kind"] == "Stream":
                made = configuration(document["spec"])
                client.ask(f"$JS.API.STREAM.CREATE.{made['name']}", made)
        for document in documents:
            if document["kind"] == "Consumer":
                stream, made = document["spec"]["streamName"], configuration(document["spec"])
                client.ask(f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{made['durable_name']}",
                           {"stream_name": stream, "config": made})
    finally:
        client.close()
