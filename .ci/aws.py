#!/usr/bin/env python3
"""Run the README's AWS recipes, exactly as they stand there, under AWS's own parts.

Each handler runs in a process of AWS's runtime client (awslambdaric) against a small Runtime API on
loopback. The queue is moto's SQS, and a poller behaves as Lambda's event source. Ecwid is the
stand-in; its ledger proves what the README claims.

Needs awslambdaric and moto[server,sqs].
"""

import collections
import contextlib
import http.server
import json
import logging
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid

HERE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

from test_ecwid_batch import StandIn  # noqa: E402

README = (HERE / "README.md").read_text(encoding="utf-8")
HANDLERS = [
    block
    for block in re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    if "def handler" in block
]


class RuntimeApi(http.server.BaseHTTPRequestHandler):
    """What a handler's process sees of Lambda. Reference: "Lambda runtime API"."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        id, event, deadline = self.server.function.events.get()
        body = json.dumps(event).encode()
        self.send_response(200)
        for name, value in {
            "Lambda-Runtime-Aws-Request-Id": id,
            "Lambda-Runtime-Deadline-Ms": str(int(1000 * deadline)),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-central-1:1:function:f",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.function.answers.put((self.path.rsplit("/", 1)[-1], json.loads(body or b"{}")))
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


class Function:
    """A Lambda function: a recipe of the README in AWS's runtime client."""

    def __init__(self, code, ecwid):
        self.folder = tempfile.mkdtemp()
        shutil.copy(HERE / "ecwid_batch.py", self.folder)
        pathlib.Path(self.folder, "recipe.py").write_text(code, encoding="utf-8")
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RuntimeApi)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *arguments: None  # its client is killed at times
        self.server.function = self
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.environment = {
            **os.environ,
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self.server.server_port}",
            "AWS_LAMBDA_FUNCTION_NAME": "ecwid-batch",
            "AWS_LAMBDA_FUNCTION_VERSION": "1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
            "LAMBDA_TASK_ROOT": self.folder,
            **ecwid.environment,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.process = None

    def start(self):
        self.events, self.answers = queue.Queue(), queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", "recipe.handler"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def invoke(self, event, timeout, promised=None):
        """Return whether the handler returned, and its result or error.

        timeout   seconds after which the process is killed
        promised  seconds that the handler is told to have
        """
        if self.process is None or self.process.poll() is not None:
            self.start()
        self.events.put((str(uuid.uuid4()), event, time.time() + (promised or timeout)))
        try:
            kind, answer = self.answers.get(timeout=timeout)
        except queue.Empty:
            self.process.kill()
            self.process.wait()
            return False, {"errorType": "Sandbox.Timedout", "errorMessage": "timed out"}
        return kind == "response", answer

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.server.shutdown()
        self.server.server_close()
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def function(number, **options):
    with StandIn(rate_limit=None, time_scale=0, **options) as ecwid:
        made = Function(HANDLERS[number], ecwid)
        try:
            yield made, ecwid
        finally:
            made.close()


def runs(ecwid):
    """Return how often each wrapped call ran."""
    return collections.Counter(json.dumps(call["body"], sort_keys=True) for _, call in ecwid.ledger)


def check(claim, true, seen):
    print(f"  {'ok ' if true else 'NOT'}  {claim}: {seen}", flush=True)
    if not true:
        sys.exit(f"the README claims what does not hold: {claim}")


def events():
    print("an event of 1,200 requests, killed twice by the function's timeout", flush=True)
    prices = {str(number): 5.5 for number in range(1, 1201)}
    event = {"id": str(uuid.uuid4()), "detail": {"prices": prices}}
    with function(0, latency=0.01) as (made, ecwid):
        ecwid.shop.stock(1200)
        ecwid.faults += ["reset after", None, "cut off after"]
        ends = [made.invoke(event, timeout=4, promised=60) for _ in range(2)]
        killed = [answer["errorType"] for _, answer in ends]
        check("two attempts are killed", killed == ["Sandbox.Timedout"] * 2, killed)
        some = len(ecwid.ledger)
        check("in the middle of the job", 0 < some < 1200, f"{some} of 1,200 have run")
        end = made.invoke(event, timeout=7)
        late = [made.invoke(event, timeout=30)]
        check("one that runs out of time raises", not end[0], end[1].get("errorType"))
        check("the next goes on to the end", late[0] == (True, None), late[0])
        check("each request ran once", len(ecwid.ledger) == 1200, len(ecwid.ledger))
        check("in three batches", len(ecwid.jobs) == 3, len(ecwid.jobs))
        event = {"id": str(uuid.uuid4()), "detail": {"prices": {"1": 2, "9999": 3}}}
        end = made.invoke(event, timeout=30)
        check("a failed request is raised", end[1]["errorType"] == "BatchFailedError", end[1])


def message_queue():
    print("SQS", flush=True)
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    client = boto3.client("sqs")
    failed_queue = client.create_queue(QueueName="failed")["QueueUrl"]
    os.environ["FAILED_QUEUE"] = failed_queue
    dead = client.create_queue(QueueName="dead")["QueueUrl"]
    arn = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
    policy = {"deadLetterTargetArn": arn["Attributes"]["QueueArn"], "maxReceiveCount": "3"}
    attributes = {"VisibilityTimeout": "0", "RedrivePolicy": json.dumps(policy)}
    url = client.create_queue(QueueName="work", Attributes=attributes)["QueueUrl"]
    with function(1, latency=0.002) as (made, ecwid):
        bodies = [
            [{"method": "POST", "path": "/products", "body": {"name": f"m{n}"}}] for n in range(3)
        ]
        many = [
            {"method": "POST", "path": "/products", "body": {"name": f"x{n}"} if n != 7 else {}}
            for n in range(500)
        ]
        for body in (*bodies, many):
            client.send_message(QueueUrl=url, MessageBody=json.dumps(body))
        client.send_message(QueueUrl=url, MessageBody="no batch")
        ecwid.faults += ["reset after", None, "500 after", "cut off after"]
        twice = True  # whether to deliver the first message again although it succeeded

        def poll():
            """Deliver a message, as the event source does; return whether there was one."""
            nonlocal twice
            found = client.receive_message(
                QueueUrl=url, MaxNumberOfMessages=1, AttributeNames=["All"]
            ).get("Messages", [])
            for message in found:
                record = {
                    "messageId": message["MessageId"],
                    "receiptHandle": message["ReceiptHandle"],
                    "body": message["Body"],
                    "attributes": message["Attributes"],
                }
                returned, answer = made.invoke({"Records": [record]}, timeout=30)
                if returned and not answer["batchItemFailures"] and not twice:
                    client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                twice = False
            return bool(found)

        rounds = 0
        while poll() and rounds < 30:
            rounds += 1
        seen = [bodies_of(client, dead), bodies_of(client, failed_queue)]
        check(
            "only what is no batch ends in the dead-letter queue", seen[0] == ["no batch"], seen[0]
        )
        failed = [json.loads(body)[0]["body"] for body in seen[1]]
        check("the one that failed is in the queue of those that failed", failed == [{}], failed)
        counts = runs(ecwid)
        check("each of the 503 ran once", sorted(counts.values()) == [1] * 503, len(counts))
    server.stop()


def bodies_of(client, url):
    messages = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
    return [message["Body"] for message in messages]


if __name__ == "__main__":
    assert len(HANDLERS) == 2
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ[name] = "testing"
    os.environ["AWS_DEFAULT_REGION"] = "eu-central-1"
    logging.disable(logging.CRITICAL)  # moto's server logs each request
    begun = time.monotonic()
    events()
    message_queue()
    print(f"all claims hold ({time.monotonic() - begun:.0f} s)")
