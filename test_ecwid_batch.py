"""A local stand-in for Ecwid's batch endpoints, and the tests of ecwid_batch that run against it.

    python3 test_ecwid_batch.py demo     the reference's example through the real client, with what happens shown
    python3 test_ecwid_batch.py serve    the stand-in alone, for your own tests; prints the environment to set
    python3 -m unittest                  the tests

In a test of your own:

    from test_ecwid_batch import StandIn

    with StandIn() as ecwid:
        client = EcwidClient(ecwid.store_id, ecwid.token, base_url=ecwid.base_url)

The parts, in this order: the shop in memory, the batch engine, its HTTP face with the faults, demo and serve, the tests.
Standard library only.
"""

import argparse
import collections
import contextlib
import dataclasses
import decimal
import email.utils
import gc
import gzip
import heapq
import http.client
import http.server
import inspect
import io
import itertools
import json
import logging
import math
import os
import pathlib
import pickle
import random
import re
import shlex
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import tracemalloc
import unittest
import urllib.error
import urllib.parse
import urllib.request
import urllib.response
import uuid
import zlib
from unittest import mock

import ecwid_batch
from ecwid_batch import (
    ApiError,
    Batch,
    BatchFailedError,
    BatchRequest,
    BatchResponse,
    BatchStatus,
    BatchTimeoutError,
    EcwidClient,
    EcwidError,
    InvalidResponseError,
    RateLimitError,
    TransportError,
)

EXAMPLE = """[
  {"id": "000001", "path": "/orders?limit=1&email=ec.apps@lightspeedhq.com", "method": "GET", "body": ""},
  {"id": "000002", "path": "/profile", "method": "GET", "body": ""},
  {"id": "000003", "path": "/products", "method": "POST", "body": {
    "sku": "0012199", "quantity": 10, "name": "New Product", "price": 19.99, "compareToPrice": 24.99,
    "isShippingRequired": false, "categoryIds": [9691094], "weight": 10, "enabled": true,
    "description": "A <b>new</b> product description", "productClassId": 0}}
]"""  # of the reference, "Create batch request"


# --- The shop --------------------------------------------------------------------------------------------------------


class Shop:
    """Profile, products, orders, customers and categories of a store, in memory."""

    KINDS = ("products", "orders", "customers", "categories")
    REQUIRED = {"products": "name", "orders": "email", "customers": "email", "categories": "name"}

    def __init__(self, store_id):
        self.profile = {"generalInfo": {"storeId": store_id}, "account": {"accountEmail": "owner@example.com"}}
        self.ids = itertools.count(1001)
        self.items = {kind: {} for kind in self.KINDS}
        self.items["categories"][9691094] = {"id": 9691094, "name": "New"}
        self.items["orders"][1] = {"id": 1, "email": "ec.apps@lightspeedhq.com", "total": 24.99, "paymentStatus": "PAID"}
        self.items["customers"][1] = {"id": 1, "email": "ec.apps@lightspeedhq.com"}
        self.items["products"][1] = {"id": 1, "sku": "0000001", "name": "Old Product", "price": 9.99}

    def answer(self, method, path, body):
        """HTTP status and JSON of one REST call."""
        parts = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        kind, _, number = parts.path.strip("/").partition("/")
        if kind == "profile" and not number:
            if method == "PUT":
                self.profile.update(body or {})
                return 200, {"updateCount": 1}
            return (200, self.profile) if method == "GET" else self.error(405, "METHOD_NOT_ALLOWED", "Method not allowed")
        if kind not in self.KINDS:
            return self.error(404, "NOT_FOUND", f"Path {parts.path} not found")
        items = self.items[kind]
        if not number:
            if method == "GET":
                return 200, self.page(list(items.values()), query)
            if method == "POST":
                return self.create(kind, body)
            return self.error(405, "METHOD_NOT_ALLOWED", "Method not allowed")
        item = items.get(int(number) if number.isdigit() else None)
        if item is None:
            return self.error(404, "NOT_FOUND", f"{kind} {number} not found")
        if method == "PUT":
            item.update(body or {})
            return 200, {"updateCount": 1}
        if method == "DELETE":
            del items[item["id"]]
            return 200, {"deleteCount": 1}
        return (200, item) if method == "GET" else self.error(405, "METHOD_NOT_ALLOWED", "Method not allowed")

    def page(self, items, query):
        offset, limit = int(query.pop("offset", 0)), int(query.pop("limit", 100))
        for name, value in query.items():
            items = [item for item in items if str(item.get(name)) in value.split(",")]
        page = items[offset : offset + limit]
        return {"total": len(items), "count": len(page), "offset": offset, "limit": limit, "items": page}

    def create(self, kind, body):
        required = self.REQUIRED[kind]
        if not isinstance(body, dict) or not body.get(required):
            return self.error(400, "WRONG_PARAMETER", f"Field {required} is required")
        sku = body.get("sku")
        if sku and any(item.get("sku") == sku for item in self.items[kind].values()):
            return self.error(409, "SKU_ALREADY_EXISTS", f"SKU {sku} is already used")
        number = next(self.ids)
        self.items[kind][number] = {**body, "id": number}
        return 200, {"id": number}

    @staticmethod
    def error(status, code, message):
        return status, {"errorMessage": message, "errorCode": code}


# --- The batch engine ------------------------------------------------------------------------------------------------


class Job:
    """A batch at Ecwid. Nothing runs in the background: `advance` runs what should have run by now."""

    def __init__(self, ticket, calls, query, start):
        self.ticket, self.calls, self.start = ticket, calls, start
        self.width = 100 if query.get("allowParallelMode") == "true" else 1
        self.stops = query.get("stopOnFirstFailure") != "false"
        self.group = query.get("groupId")
        self.pending = collections.deque(range(len(calls)))
        self.running = []  # a heap of (time of the answer, number of the call, which try)
        self.rows = []
        self.time = start  # up to when the job has been worked off
        self.done = False

    def advance(self, now, engine):
        """Work off what is due by `now`."""
        while not self.done:
            while self.pending and len(self.running) < self.width:
                number = self.pending.popleft()
                heapq.heappush(self.running, (self.time + engine.latency_of(self.calls[number]), number, 1))
            if not self.running:
                self.done = True
            elif self.running[0][0] > now:
                return
            else:
                self.time, number, attempt = heapq.heappop(self.running)
                self.run(number, attempt, engine)

    def run(self, number, attempt, engine):
        call = self.calls[number]
        status, body = engine.answer(self.ticket, call)
        if (status >= 500 or status == 408) and not self.stops and attempt < 5:
            again = self.time + 3 * engine.time_scale + engine.latency_of(call)
            heapq.heappush(self.running, (again, number, attempt + 1))
            return
        line = http.client.responses.get(status, "") if status == 200 else body.get("errorMessage", "")
        self.row(call, "COMPLETED" if status == 200 else "FAILED", body, status, line)
        if status != 200 and self.stops:
            for number in self.pending:
                self.row(self.calls[number], "NOT_EXECUTED")
            self.pending.clear()

    def row(self, call, status, body=None, code=None, line=None):
        row = {"id": call["id"]} if "id" in call else {}
        row["status"] = status
        if code is not None:
            row.update(httpBody=body, httpStatusCode=code, httpStatusLine=line)
        self.rows.append(row)

    def cancel(self):
        """What has not run counts as COMPLETED, and never runs."""
        count = len(self.pending)
        for number in self.pending:
            self.row(self.calls[number], "COMPLETED")
        self.pending.clear()
        return int(count > 0)

    def status(self, escaped, older):
        state = "COMPLETED" if self.done else "IN_PROGRESS" if self.rows else "QUEUED"
        answer = {"status": state, "totalRequests": len(self.calls), "completedRequests": len(self.rows)}
        if escaped:
            answer["responses"] = [
                {("escapedHttpBody" if k == "httpBody" else k): (json.dumps(v) if k == "httpBody" else v) for k, v in row.items()}
                for row in self.rows
            ]
        elif older:
            answer["responses"] = self.rows
        return answer


class Engine:
    """Ecwid's batch endpoints without the HTTP: `handle` takes a request and gives an answer.

    latency     seconds that one wrapped call takes, or a function of the call (id, path, method, body) that tells it
    time_scale  by which the 3 s between the tries of a failing call are multiplied
    rate_limit  calls a minute; None: without a limit
    older       answer a status without escapedJson as the older reference has it, with responses
    ledger      every wrapped call that ran, in order: (ticket, call)
    script      put a function of the call here to answer instead of the shop: (HTTP status, JSON) or None for the shop's
    """

    def __init__(self, *, latency=0.0, time_scale=1.0, rate_limit=600, older=False):
        self.store_id, self.token = 1003, f"secret_{uuid.uuid4().hex}"
        self.shop = Shop(self.store_id)
        self.latency, self.time_scale, self.rate_limit, self.older = latency, time_scale, rate_limit, older
        self.ledger, self.script = [], None
        self.jobs, self.keys, self.calls = {}, {}, []
        self.recent, self.blocked_until = collections.deque(), 0.0
        self.lock = threading.Lock()

    @property
    def requests(self):
        """A client's view on the traffic: (method, path, query) of each call so far."""
        return [(method, path, query) for method, path, query, *_ in self.calls]

    def latency_of(self, call):
        return self.latency(call) if callable(self.latency) else self.latency

    def answer(self, ticket, call):
        self.ledger.append((ticket, call))
        scripted = self.script(call) if self.script else None
        body = call.get("body")
        return scripted or self.shop.answer(call["method"], call["path"], json.loads(body) if body and isinstance(body, str) else body)

    def handle(self, method, target, headers, body):
        """(status, extra headers, JSON) of a request to `target`, the path behind /api/v3 with its query."""
        with self.lock:
            now = time.monotonic()
            self.advance(now)
            url = urllib.parse.urlsplit(target)
            query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
            _, store, path = [*url.path.split("/", 2), "", ""][:3]
            self.calls.append((method, "/" + path, query, dict(headers), body))
            wait = self.limited(now)
            if wait:
                return 429, {"Retry-After": str(math.ceil(wait))}, Shop.error(429, "RATE_LIMITED", "Too many requests")[1]
            if headers.get("Authorization") != f"Bearer {self.token}":
                return self.error(403, "INVALID_API_TOKEN", "Wrong token")
            if store != str(self.store_id):
                return self.error(404, "STORE_NOT_FOUND", f"Store {store} not found")
            if (method, path) == ("POST", "batch"):
                return self.create(query, headers, body, now)
            if (method, path) == ("GET", "batch"):
                return self.look(query)
            if (method, path) == ("DELETE", "batch"):
                job = self.jobs.pop(query.get("ticketId") or query.get("ticket"), None)
                if job:
                    job.cancel()
                return 200, {}, {"deleteCount": int(job is not None)}
            if (method, path) == ("POST", "batch/cancel-group"):
                jobs = [job for job in self.jobs.values() if job.group == query.get("groupId")]
                count = sum(job.cancel() for job in jobs)
                self.advance(now)
                return 200, {}, {"updateCount": count}
            return self.error(405 if path == "batch" else 404, "METHOD_NOT_ALLOWED", f"{method} /{path}")

    def advance(self, now):
        """First come, first served: a job starts when the one before it is done."""
        free = -math.inf
        for job in self.jobs.values():
            if not job.done:
                if not job.running and not job.rows:
                    job.time = max(job.start, free)
                job.advance(now, self)
                if not job.done:
                    return
            free = job.time

    def limited(self, now):
        """Seconds that the token is blocked for; a call in that time prolongs it."""
        while self.recent and self.recent[0] <= now - 60:
            self.recent.popleft()
        self.recent.append(now)
        if self.rate_limit and (now < self.blocked_until or len(self.recent) > self.rate_limit):
            self.blocked_until = max(self.blocked_until + 1, now + 5)
        return max(0.0, self.blocked_until - now)

    def create(self, query, headers, body, now):
        if headers.get("Content-Type", "").partition(";")[0] != "application/json":
            return self.error(415, None, "Unsupported media type")
        problem = None
        try:
            calls = json.loads(body)
        except ValueError:
            calls, problem = None, "No JSON"
        if not isinstance(calls, list) or not 1 <= len(calls) <= 500:
            problem = problem or "An array of 1 to 500 requests is expected"
        for number, call in enumerate(() if problem else calls):
            for field in ("id", "path", "method"):
                if not isinstance(call, dict) or not isinstance(call.get(field, "" if field == "id" else None), str):
                    problem = problem or f"Path $[{number}].{field} contains bad value"
        if problem:
            return self.error(400, "WRONG_PARAMETER", f"Can't create batch. Batch request body is invalid. {problem}")
        key = query.get("deduplicationKey")
        if key is not None:
            try:
                uuid.UUID(key)
            except ValueError:
                return self.error(400, "WRONG_PARAMETER", "deduplicationKey is no UUID")
            ticket, made = self.keys.get(key, (None, 0))
            if ticket and now - made < 3600:
                return 200, {}, {"ticket": ticket}
        ticket = f"11kl{uuid.uuid4().hex[4:]}"  # as in the reference, not quite a UUID
        self.jobs[ticket] = Job(ticket, calls, query, now)
        if key is not None:
            self.keys[key] = ticket, now
        self.advance(now)
        return 200, {}, {"ticket": ticket}

    def look(self, query):
        if "status" in query:
            found = [{"ticket": job.ticket, "status": job.status(False, False)["status"]} for job in self.jobs.values()]
            found = [item for item in found if item["status"] == query["status"]]
            offset, limit = int(query.get("offset", 0)), min(100, int(query.get("limit", 100)))
            items = found[offset : offset + limit]
            return 200, {}, items if self.older else {"items": items}
        job = self.jobs.get(query.get("ticket"))
        if job is None:
            return self.error(404, "NOT_FOUND", "Batch not found")
        return 200, {}, job.status(query.get("escapedJson") == "true", self.older)

    @staticmethod
    def error(status, code, message):
        return status, {}, {"errorMessage": message, **({"errorCode": code} if code else {})}


# --- The HTTP face, and its faults -----------------------------------------------------------------------------------

FAULTS = (
    "reset", "reset after", "500", "500 after", "503 busy", "html 502", "html 200", "html 200 after", "empty after",
    "cut off after", "cut gzip after", "broken gzip after", "429", "429 soon", "408 after", "refused",
)  # "after": Ecwid acts on the request, and only its answer suffers
HTML = b"<html><body>A proxy speaking</body></html>"


class StandIn(Engine):
    """The engine on loopback, over real HTTP: `with StandIn() as ecwid:`, then `base_url`, `store_id` and `token`.

    faults  what shall go wrong, one item a request, oldest first: a name of FAULTS, None, or a function of the handler
            that answers the request itself
    """

    def __init__(self, port=0, **options):
        super().__init__(**options)
        self.faults = collections.deque()
        handler = type("Handler", (Handler,), {"standin": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/api/v3"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc_info):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def client(self, **options):
        return EcwidClient(self.store_id, self.token, **{"base_url": self.base_url, **options})


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    standin: StandIn

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.standin.faults.popleft() if self.standin.faults else None
        answer = None
        if fault is None or isinstance(fault, str) and "after" in fault:
            target = self.path[len("/api/v3") :] if self.path.startswith("/api/v3/") else self.path
            answer = self.standin.handle(self.command, target, self.headers, body)
        if callable(fault):
            fault(self)
        elif fault is None:
            self.send(*answer)
        elif fault.startswith("reset"):
            self.reset()
        elif fault.startswith("500"):
            self.send(500, {}, {"errorMessage": "Internal error", "errorCode": "INTERNAL_ERROR"})
        elif fault == "503 busy":
            self.send(503, {"Retry-After": "2"}, {"errorMessage": "Busy"})
        elif fault == "408 after":
            self.send(408, {}, {"errorMessage": "Timeout", "errorCode": "TIMEOUT"})
        elif fault.startswith("html"):
            self.raw(int(fault.split()[1]), {"Content-Type": "text/html"}, HTML)
        elif fault == "empty after":
            self.raw(200, {}, b"")
        elif fault.startswith("429"):
            self.send(429, {"Retry-After": "3"} if "soon" in fault else {}, {"errorMessage": "Slow down", "errorCode": "RATE_LIMITED"})
        elif fault == "cut off after":
            body = json.dumps(answer[2]).encode()
            self.raw(200, {"Content-Length": str(len(body))}, body[: len(body) // 2])
        elif fault == "cut gzip after":
            self.raw(200, {"Content-Encoding": "gzip"}, gzip.compress(json.dumps(answer[2]).encode())[:-12])
        elif fault == "broken gzip after":
            self.raw(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08 this is no gzip")
        else:
            raise AssertionError(fault)

    do_GET = do_PUT = do_DELETE = do_POST

    def send(self, status, headers, answer):
        body = json.dumps(answer).encode()
        headers = {"Content-Type": "application/json;charset=UTF-8", **headers}
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        self.raw(status, headers, body)

    def raw(self, status, headers, body):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def finish(self):
        with contextlib.suppress(OSError, ValueError):  # the client has gone, or `reset` has closed the connection
            super().finish()

    def log_message(self, *args):
        pass


# --- demo and serve --------------------------------------------------------------------------------------------------


def demo():
    """The reference's example through the real client, with what happens shown."""
    with StandIn(latency=0.4) as ecwid:
        client = ecwid.client()
        batch = Batch.from_json(EXAMPLE, allow_parallel_mode=False)
        print(f"A stand-in for Ecwid is at {ecwid.base_url}, store {ecwid.store_id}.\n")
        print(f"POST /batch?{urllib.parse.urlencode(batch.query)}")
        for request in batch:
            print(f"  {request.id}  {request.method:6} {request.path}")
        ticket = client.submit(batch)
        print(f"\nTicket {ticket}. Submitted once more, the same batch is still the same: {client.submit(batch) == ticket}.\n")

        def show(status):
            print(f"  {status.status:11} {status.completed_requests} of {status.total_requests}", flush=True)

        status = client.run(batch, timeout=30, on_progress=show)
        print()
        for response in status:
            text = json.dumps(response.body)
            print(f"  {response.id}  {response.status} {response.http_status_code}  {text[:80]}{'...' * (len(text) > 80)}")
        print(f"\n{len(status.succeeded)} of {len(status)} succeeded; Ecwid ran {len(ecwid.ledger)} calls, each once.")
        return 0 if len(status.succeeded) == len(status) == len(ecwid.ledger) else 1


def serve(port, latency):
    """The stand-in alone, until Ctrl-C."""
    try:
        standin = StandIn(port=port, latency=latency)
    except OSError as error:
        sys.exit(f"port {port}: {error}")
    with standin as ecwid:
        print(f"export ECWID_BASE_URL={ecwid.base_url} ECWID_STORE_ID={ecwid.store_id} ECWID_TOKEN={ecwid.token}")
        print("# a stand-in for Ecwid listens there; set this in another shell, then try ecwid_batch.py; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            ecwid.thread.join()
    return 0


# --- Tests: what they stand on ---------------------------------------------------------------------------------------

HERE = pathlib.Path(__file__).resolve().parent
UUID = "8b0f3c5e-4f0e-4f0a-9d5e-0a6f1f8f7a11"
CLEAN_ENV = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C", "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}


class Clock:
    """Virtual time: within it time.sleep returns at once, and time.monotonic has moved on."""

    def __init__(self):
        self.now, self.sleeps = time.monotonic(), []

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds

    def __enter__(self):
        self.patches = [mock.patch("time.sleep", self.sleep), mock.patch("time.monotonic", lambda: self.now)]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *exc_info):
        for patch in self.patches:
            patch.stop()


class Direct:
    """An opener that asks an engine in this process; each call takes some time of the clock."""

    def __init__(self, engine, clock, seconds=0.15):
        self.engine, self.clock, self.seconds = engine, clock, seconds

    def open(self, request, timeout):
        self.clock.now += min(self.seconds, timeout)
        if self.seconds > timeout:
            raise socket.timeout("timed out")
        headers = {name.title(): value for name, value in request.header_items()}
        status, extra, answer = self.engine.handle(request.get_method(), request.selector[len("/api/v3") :], headers, request.data)
        message = http.client.HTTPMessage()
        for name, value in extra.items():
            message[name] = value
        body = io.BytesIO(json.dumps(answer).encode())
        if status >= 400:
            raise urllib.error.HTTPError(request.full_url, status, "", message, body)
        return urllib.response.addinfourl(body, message, request.full_url, status)


@contextlib.contextmanager
def virtual(seconds=0.15, **options):
    """An engine, a client that asks it directly, and the clock that both live by."""
    with Clock() as clock:
        engine = Engine(rate_limit=None, **options)
        yield engine, EcwidClient(engine.store_id, engine.token, opener=Direct(engine, clock, seconds)), clock


def creates(count, start=0):
    return [BatchRequest.post("/products", {"sku": f"sku-{n}", "name": "n"}) for n in range(start, start + count)]


def calls_ran(engine):
    return [(call["method"], call["path"], json.dumps(call.get("body"))) for _, call in engine.ledger]


class TestCase(unittest.TestCase):
    def setUp(self):
        logging.getLogger("ecwid_batch").setLevel(logging.CRITICAL)  # retries are many here, and expected
        self.addCleanup(logging.getLogger("ecwid_batch").setLevel, logging.NOTSET)

    def standin(self, **options):
        standin = StandIn(**{"rate_limit": None, **options})
        standin.__enter__()
        self.addCleanup(standin.__exit__)
        return standin

    def clock(self):
        clock = Clock()
        clock.__enter__()
        self.addCleanup(clock.__exit__)
        return clock

    def raises(self, kinds, pattern):
        return self.assertRaisesRegex(kinds, pattern)


# --- Tests: requests and batches -------------------------------------------------------------------------------------


class Paths(TestCase):
    def test_params_are_percent_encoded(self):
        for params, query in (
            ({"test": "tèst"}, "?test=t%C3%A8st"),
            (
                {"baseUrl": "https://example.com?test=example", "test_2": "tést"},
                "?baseUrl=https%3A%2F%2Fexample.com%3Ftest%3Dexample&test_2=t%C3%A9st",
            ),
            ({"keyword": "a b&c=d+e/f#g"}, "?keyword=a%20b%26c%3Dd%2Be%2Ff%23g"),
            ({"paymentStatus": ["PAID", "AWAITING_PAYMENT"]}, "?paymentStatus=PAID,AWAITING_PAYMENT"),
            ({"ids": (1, 2), "enabled": True, "hidden": False, "left": None}, "?ids=1,2&enabled=true&hidden=false"),
            ({"price": decimal.Decimal("1.10"), "offset": 0, "empty": ""}, "?price=1.10&offset=0&empty="),
            ({"left": None}, ""),
            ({}, ""),
            (None, ""),
        ):
            with self.subTest(params=params):
                self.assertEqual(BatchRequest.get("/orders", params).path, "/orders" + query)

    def test_params_follow_a_query_that_is_there(self):
        self.assertEqual(BatchRequest.delete("/orders?a=1", {"b": 2}).path, "/orders?a=1&b=2")

    def test_params_of_no_use_are_refused(self):
        for params in ({"a": {"b": 1}}, {"a": b"b"}, {"a": {1}}, {1: "a"}, {"a": [None]}, {"a": [[1]]}):
            with self.subTest(params=params), self.raises(TypeError, "parameter|str"):
                BatchRequest.get("/orders", params)
        with self.raises(ValueError, "empty"):
            BatchRequest.get("/orders", {"": 1})
        with self.raises(TypeError, "params must be a mapping"):
            BatchRequest.get("/orders", "limit=1")

    def test_every_method_takes_what_it_needs(self):
        get, post = BatchRequest.get("/a", {"x": 1}, id="g"), BatchRequest.post("/a", {"y": 2}, {"x": 1}, id="p")
        put, delete = BatchRequest.put("/a", [3], {"x": 1}, id="u"), BatchRequest.delete("/a", {"x": 1}, id="d")
        self.assertEqual((get.method, get.path, get.body, get.id), ("GET", "/a?x=1", None, "g"))
        self.assertEqual((post.method, post.path, post.body, post.id), ("POST", "/a?x=1", {"y": 2}, "p"))
        self.assertEqual((put.method, put.path, put.body, put.id), ("PUT", "/a?x=1", [3], "u"))
        self.assertEqual((delete.method, delete.path, delete.body, delete.id), ("DELETE", "/a?x=1", None, "d"))

    def test_what_a_url_cannot_hold_is_encoded_and_what_is_encoded_stays(self):
        for path, sent in (
            ("/products/a b", "/products/a%20b"),
            ("/products?keyword=crème brûlée", "/products?keyword=cr%C3%A8me%20br%C3%BBl%C3%A9e"),
            ("/products?keyword=a%20b%2Fc", "/products?keyword=a%20b%2Fc"),
            ("/products?keyword=100%", "/products?keyword=100%25"),
            ('/products?keyword=<"a|b">', "/products?keyword=%3C%22a%7Cb%22%3E"),
            ("/orders?offset=100&paymentStatus=PAID,AWAITING_PAYMENT", "/orders?offset=100&paymentStatus=PAID,AWAITING_PAYMENT"),
            ("/products?keyword=../x", "/products?keyword=../x"),
            ("/products/..a/b..", "/products/..a/b.."),
            ("/", "/"),
        ):
            with self.subTest(path=path):
                self.assertEqual(BatchRequest("GET", path).path, sent)

    def test_a_path_that_leads_elsewhere_is_refused_and_told_how_to_be_written(self):
        for path, advice in (
            ("orders", "like '/orders'"),
            ("", "like '/orders'"),
            ("?a=1", "like '/orders'"),
            ("https://app.ecwid.com/api/v3/1003/orders", "without https"),
            ("//example.com/orders", "like '/orders'"),
            ("/..", "'..' segment"),
            ("/a/../b", "'..' segment"),
            ("/a/%2e%2e/b", "'..' segment"),
            ("/a/.%2E/b?x=1", "'..' segment"),
            ("/a/%252e%252e/b", "'..' segment"),
            ("/a/..%2fb", "'..' segment"),
            ("/a/..\\b", "'..' segment"),
            ("/a/..%5cb", "'..' segment"),
            ("/a/..;x=1/b", "'..' segment"),
            ("/a/..%3Fx", "'..' segment"),
            ("/a/..%23", "'..' segment"),
            ("/..%00/b", "'..' segment"),
            ("/orders#top", "%23"),
            ("/orders\n", "control"),
            ("/or\x00ders", "control"),
            ("/orders?a=\x7f", "control"),
            ("/orders?a=\ud800", "surrogate"),
        ):
            with self.subTest(path=path), self.raises(ValueError, re.escape(advice)):
                BatchRequest("GET", path)

    def test_a_token_in_the_path_is_refused_and_not_shown(self):
        for path in ("/orders?token=secret_abc", "/orders?a=1&%74oken=secret_abc", "/orders?access_token=secret_abc"):
            with self.raises(ValueError, "token") as caught:
                BatchRequest("GET", path)
            self.assertNotIn("secret_abc", str(caught.exception))

    def test_what_is_no_method_path_or_id_is_refused(self):
        for arguments, kind, advice in (
            (("get", "/a"), ValueError, "GET, POST, PUT, DELETE"),
            (("PATCH", "/a"), ValueError, "GET, POST, PUT, DELETE"),
            ((None, "/a"), ValueError, "GET, POST, PUT, DELETE"),
            (("GET", None), TypeError, "str"),
            (("GET", b"/a"), TypeError, "str"),
            (("GET", "/a", None, 1), TypeError, "id must be a str"),
            (("GET", "/a", None, ""), ValueError, "id must not be empty"),
        ):
            with self.subTest(arguments=arguments), self.raises(kind, advice):
                BatchRequest(*arguments)

    def test_a_request_cannot_change(self):
        with self.assertRaises(dataclasses.FrozenInstanceError):
            BatchRequest.get("/a").path = "/b"


class Batches(TestCase):
    def test_missing_ids_are_given_by_position(self):
        batch = Batch([BatchRequest.get("/a"), BatchRequest.get("/b", id="x"), BatchRequest.get("/c")])
        self.assertEqual([request.id for request in batch.requests], ["000001", "x", "000003"])

    def test_given_ids_step_aside_for_the_callers(self):
        batch = Batch([BatchRequest.get("/a"), BatchRequest.get("/b"), BatchRequest.get("/c", id="000001")])
        self.assertEqual([request.id for request in batch], ["000002", "000003", "000001"])
        self.assertEqual(len({request.id for request in batch}), 3)

    def test_a_repeated_id_is_refused_and_named(self):
        with self.raises(ValueError, "'x' is repeated"):
            Batch([BatchRequest.get("/a", id="x"), BatchRequest.get("/b", id="x")])

    def test_the_callers_requests_stay_as_they_are(self):
        request = BatchRequest.get("/a")
        Batch([request])
        self.assertIsNone(request.id)

    def test_it_holds_1_to_500(self):
        self.assertEqual(len(Batch(BatchRequest.get("/a") for _ in range(500))), 500)
        with self.raises(ValueError, "1 to 500.*none"):
            Batch([])
        endless = (BatchRequest.get("/a") for _ in itertools.count())
        with self.raises(ValueError, "1 to 500.*more.*split"):
            Batch(endless)

    def test_only_requests_go_into_it(self):
        for wrong in ({"method": "GET", "path": "/a"}, "GET /a", None):
            with self.subTest(wrong=wrong), self.raises(TypeError, "request 2 must be a BatchRequest.*from_json"):
                Batch([BatchRequest.get("/a"), wrong])
        with self.assertRaises(TypeError):
            Batch(BatchRequest.get("/a"))

    def test_the_query_has_what_was_chosen_and_nothing_else(self):
        request = [BatchRequest.get("/a")]
        self.assertEqual(Batch(request, deduplication_key=None).query, {})
        every = Batch(
            request, allow_parallel_mode=True, stop_on_first_failure=False, deduplication_key=UUID, group_id="night"
        )
        expected = {"allowParallelMode": "true", "stopOnFirstFailure": "false", "deduplicationKey": UUID, "groupId": "night"}
        self.assertEqual(every.query, expected)

    def test_by_default_a_batch_has_a_key_of_its_own(self):
        one, other = Batch([BatchRequest.get("/a")]), Batch([BatchRequest.get("/a")])
        self.assertEqual(str(uuid.UUID(one.deduplication_key)), one.deduplication_key)
        self.assertNotEqual(one.deduplication_key, other.deduplication_key)

    def test_wrong_options_are_refused(self):
        for options, kind in (
            ({"deduplication_key": "order-17"}, ValueError),
            ({"deduplication_key": ""}, ValueError),
            ({"deduplication_key": 17}, ValueError),
            ({"group_id": 17}, TypeError),
            ({"group_id": ""}, ValueError),
            ({"allow_parallel_mode": "true"}, TypeError),
            ({"allow_parallel_mode": 1}, TypeError),
            ({"stop_on_first_failure": 0}, TypeError),
            ({"stop_on_first_failur": False}, TypeError),
        ):
            with self.subTest(options=options), self.assertRaises(kind):
                Batch([BatchRequest.get("/a")], **options)

    def test_a_batch_is_a_snapshot(self):
        body = {"price": 1}
        batch = Batch([BatchRequest.put("/products/1", body)])
        body["price"] = 2
        self.assertEqual(json.loads(batch.to_json())[0]["body"], {"price": 1})
        self.assertIs(batch.to_json(), batch.to_json())
        with self.assertRaises(dataclasses.FrozenInstanceError):
            batch.group_id = "x"

    def test_no_body_is_left_out_and_an_empty_one_is_sent(self):
        rows = json.loads(Batch([BatchRequest.get("/a"), BatchRequest("GET", "/b", "")]).to_json())
        self.assertEqual(rows, [
            {"id": "000001", "method": "GET", "path": "/a"},
            {"id": "000002", "method": "GET", "path": "/b", "body": ""},
        ])

    def test_a_decimal_is_written_as_the_number_it_is(self):
        numbers = ["19.99", "1.10", "0.1000000000000000055511151231257827", "-0", "1E+30", "12345678901234567890.12"]
        text = Batch([BatchRequest.post("/a", [decimal.Decimal(number) for number in numbers])]).to_json().decode()
        self.assertIn("[" + ", ".join(numbers) + "]", text)
        self.assertEqual(json.loads(text)[0]["body"][0], 19.99)

    def test_a_body_that_json_cannot_hold_is_refused_naming_the_request(self):
        cycle, deep = [], []
        cycle.append(cycle)
        for _ in range(100_000):
            deep = [deep]
        for body, kind, advice in (
            (b"GIF89a", TypeError, "externalUrl"),
            ({"image": bytearray(1)}, TypeError, "externalUrl"),
            ({"price": math.nan}, ValueError, "."),
            ({"price": math.inf}, ValueError, "."),
            ({"price": decimal.Decimal("NaN")}, ValueError, "NaN"),
            ({"price": decimal.Decimal("-Infinity")}, ValueError, "Infinity"),
            ({"tags": {1, 2}}, TypeError, "set"),
            ({("a", "b"): 1}, TypeError, "keys"),
            (cycle, ValueError, "Circular"),
            (deep, ValueError, "recursion|nested"),
            (object(), TypeError, "object"),
        ):
            with self.subTest(kind=kind, advice=advice), self.raises(kind, rf"000002 \(POST /products\).*{advice}"):
                Batch([BatchRequest.get("/a"), BatchRequest.post("/products", body), BatchRequest.get("/c")])

    def test_the_references_example_reads_and_writes_as_it_is(self):
        for text in (EXAMPLE, EXAMPLE.encode(), b"\xef\xbb\xbf" + EXAMPLE.encode()):
            batch = Batch.from_json(text, allow_parallel_mode=True)
            self.assertEqual(json.loads(batch.to_json()), json.loads(EXAMPLE))
            self.assertEqual(batch.query["allowParallelMode"], "true")

    def test_json_that_is_no_batch_is_refused_saying_where(self):
        for text, advice in (
            ("", "not JSON"),
            ("[", "not JSON"),
            (b"\xff\xfe[\x00", "not JSON.*utf-8"),
            ("[" * 100_000, "nested|not JSON"),
            ("{}", "array.*dict"),
            ("null", "array"),
            ("[]", "1 to 500"),
            ("[1]", "request 1: must be an object with method and path"),
            ('[{"method": "GET", "path": "/a"}, {"method": "GET"}]', "request 2: must be an object with method and path"),
            ('[{"method": "GET", "path": "/a", "metod": 1}]', "unknown field 'metod'"),
            ('[{"method": "GET", "path": "a"}]', "request 1: path must be like"),
            ('[{"method": "GET", "path": "/a", "id": 7}]', "request 1: id must be a str"),
            ('[{"method": "POST", "path": "/a", "body": NaN}]', "NaN"),
        ):
            with self.subTest(text=text[:50]), self.raises(ValueError, advice):
                Batch.from_json(text)

    def test_a_batch_can_be_pickled_and_replaced(self):
        batch = Batch(creates(2), group_id="g")
        self.assertEqual(pickle.loads(pickle.dumps(batch)), batch)
        self.assertEqual(pickle.loads(pickle.dumps(batch)).to_json(), batch.to_json())
        self.assertEqual(dataclasses.replace(batch, group_id="h").deduplication_key, batch.deduplication_key)


class Splitting(TestCase):
    def test_batches_of_up_to_500_are_made_as_they_are_asked_for(self):
        read = []
        requests = (read.append(n) or BatchRequest.get(f"/products/{n}") for n in range(1201))
        batches = Batch.split(requests, group_id="g")
        self.assertEqual(len(read), 0)
        self.assertEqual(len(next(batches)), 500)
        self.assertEqual(len(read), 500)
        rest = list(batches)
        self.assertEqual([len(batch) for batch in rest], [500, 201])
        self.assertEqual(rest[1].group_id, "g")
        self.assertEqual(rest[1].requests[-1].path, "/products/1200")

    def test_nothing_gives_no_batch(self):
        self.assertEqual(list(Batch.split([])), [])

    def test_keys_come_from_the_base_key_the_position_and_the_content(self):
        def keys(requests, key=UUID):
            return [batch.deduplication_key for batch in Batch.split(requests, deduplication_key=key)]

        job = creates(1200)
        self.assertEqual(keys(job), keys(iter(job)))
        self.assertEqual([uuid.UUID(key).version for key in keys(job)], [5, 5, 5])
        self.assertEqual(len(set(keys(creates(500) + creates(500)))), 2)  # same content, another position
        self.assertEqual(len(set(keys(job) + keys(job[::-1]))), 6)  # another content, same position
        self.assertEqual(len(set(keys(job) + keys(job, str(uuid.uuid4())))), 6)
        self.assertEqual(keys(job, None), [None, None, None])
        self.assertNotEqual(*(next(Batch.split(job)).deduplication_key for _ in range(2)))

    def test_a_wrong_key_is_refused_at_once(self):
        with self.raises(ValueError, "UUID"):
            Batch.split([], deduplication_key="x")


# --- Tests: responses and statuses -----------------------------------------------------------------------------------


def status_of(*rows, total=None, **fields):
    count = len(rows) if total is None else total
    return BatchStatus.from_dict(
        {"status": "COMPLETED", "totalRequests": count, "completedRequests": count, "responses": list(rows), **fields}
    )


def row(id=None, status="COMPLETED", code=200, **fields):
    given = {"id": id, "status": status, "httpStatusCode": code, **fields}
    return {name: value for name, value in given.items() if value is not None}


class Statuses(TestCase):
    def test_it_reads_every_form_of_the_reference(self):
        for responses in (None, []):
            light = BatchStatus.from_dict(
                {"status": "QUEUED", "totalRequests": 3, "completedRequests": 0, "responses": responses}
            )
            self.assertEqual((light.status, light.total_requests, light.completed_requests), ("QUEUED", 3, 0))
            self.assertEqual((light.done, light.responses), (False, ()))
        whole = status_of(
            row("a", httpBody={"x": 1}, httpStatusLine="OK"),
            row("b", escapedHttpBody='{"y": 2.50}'),
            {"id": "c", "status": "FAILED", "httpCode": 404, "httpBody": {"error_message": "No such product"}},
            {"id": "d", "status": "NOT_EXECUTED"},
        )
        self.assertTrue(whole.done)
        self.assertEqual([response.body for response in whole], [{"x": 1}, {"y": 2.5}, {"error_message": "No such product"}, None])
        self.assertEqual([response.http_status_code for response in whole], [200, 200, 404, None])
        self.assertEqual([response.ok for response in whole], [True, True, False, False])
        self.assertEqual([response.id for response in whole.succeeded], ["a", "b"])
        self.assertEqual([response.id for response in whole.failed], ["c"])
        self.assertEqual([response.id for response in whole.not_executed], ["d"])
        self.assertEqual(whole["c"].error_message, "No such product")
        self.assertEqual(len(whole), 4)
        with self.assertRaises(KeyError):
            whole["e"]

    def test_an_error_has_message_and_code_from_wherever_they_are(self):
        body = json.dumps({"errorMessage": "Price is wrong", "errorCode": "WRONG_PARAMETER"})
        for fields, message, code in (
            ({"escapedHttpBody": body, "httpStatusLine": "Bad Request"}, "Price is wrong", "WRONG_PARAMETER"),
            ({"httpStatusLine": "Price is wrong"}, "Price is wrong", None),
            ({"escapedHttpBody": "[1]"}, "FAILED", None),
            ({"httpBody": {"errorMessage": 5, "errorCode": 6}}, "FAILED", None),
        ):
            response = status_of(row("a", "FAILED", 400, **fields))["a"]
            self.assertEqual((response.error_message, response.error_code), (message, code))
        fine = status_of(row("a", escapedHttpBody=body, httpStatusLine="OK"))["a"]
        self.assertEqual((fine.error_message, fine.error_code), (None, None))

    def test_a_body_that_is_not_json_stays_text(self):
        for text in ("", "plain", "NaN", "[" * 100_000, '{"a": Infinity}', "9" * 5000 if sys.version_info >= (3, 11) else "x"):
            self.assertEqual(status_of(row("a", escapedHttpBody=text))["a"].body, text)

    def test_a_body_is_parsed_when_first_looked_at_and_once(self):
        with mock.patch("ecwid_batch._decode", wraps=ecwid_batch._decode) as decode:
            response = status_of(row("a", escapedHttpBody='{"a": [1]}'))["a"]
            self.assertEqual(decode.call_count, 0)
            self.assertIs(response.body, response.body)
            self.assertEqual(decode.call_count, 1)

    def test_what_a_cancelled_group_left_counts_as_completed_but_did_not_run(self):
        response = status_of({"id": "a", "status": "COMPLETED"})["a"]
        self.assertEqual((response.status, response.ok), ("NOT_EXECUTED", False))

    def test_retryable_is_what_can_help_and_cannot_harm(self):
        codes = (200, 400, 404, 408, 409, 429, 500, 502, 503)
        for method, expected in (("GET", {408, 429, 500, 502, 503}), ("PUT", {408, 429, 500, 502, 503}),
                                 ("DELETE", {408, 429, 500, 502, 503}), ("POST", {408, 429})):
            request = BatchRequest(method, "/a")
            responses = [BatchResponse("a", "COMPLETED" if code == 200 else "FAILED", code, request=request) for code in codes]
            self.assertEqual({response.http_status_code for response in responses if response.retryable}, expected, method)
            self.assertTrue(BatchResponse("a", "NOT_EXECUTED", request=request).retryable)
            lost = BatchStatus("t", "COMPLETED", 1, 1)._of(Batch([request])).responses[0]
            self.assertEqual((lost.status, lost.retryable), ("NOT_EXECUTED", method != "POST"))
            again = BatchStatus.from_dict(BatchStatus("t", "COMPLETED", 1, 1, (lost,)).to_dict()).responses[0]
            self.assertFalse(again.retryable)  # what it was of is not known any more
        self.assertFalse(BatchResponse("a", "FAILED", 500).retryable)  # nobody knows of what
        self.assertFalse(BatchResponse("a", "FAILED", None, request=BatchRequest.get("/a")).retryable)

    def test_a_status_goes_through_json_and_back(self):
        for status in (
            status_of(row("a", httpBody={"x": 1}), row(None, "FAILED", 404, escapedHttpBody="{", httpStatusLine="no"), ticket="T"),
            BatchStatus("T", "IN_PROGRESS", 5, 2),
        ):
            again = BatchStatus.from_dict(json.loads(json.dumps(status.to_dict())))
            self.assertEqual(again, status)
            self.assertEqual([response.body for response in again], [response.body for response in status])
        self.assertEqual(
            BatchStatus("T", "QUEUED", 5, 0).to_dict(),
            {"ticket": "T", "status": "QUEUED", "totalRequests": 5, "completedRequests": 0},
        )

    def test_raise_for_failures_raises_for_failures_only(self):
        self.assertIsNone(status_of(row("a"), row("b")).raise_for_failures())
        status = status_of(row("a"), row("b", "FAILED", 404, httpStatusLine="No product"), row("c", "NOT_EXECUTED"), ticket="T")
        with self.raises(BatchFailedError, "1 of 3 requests failed, 1 did not run.*request b.*No product.*ticket T") as caught:
            status.raise_for_failures()
        self.assertEqual([response.id for response in caught.exception.failed], ["b", "c"])
        with self.raises(BatchFailedError, "0 of 1 requests failed, 1 did not run"):
            status_of(row("c", "NOT_EXECUTED")).raise_for_failures()
        with self.raises(BatchFailedError, r"the first, request a \(GET /x\): FAILED"):
            status_of(row("a", "FAILED", 500))._of(Batch([BatchRequest.get("/x", id="a")])).raise_for_failures()

    def test_what_the_api_does_not_promise_is_an_invalid_response(self):
        good = {"status": "COMPLETED", "totalRequests": 1, "completedRequests": 1, "responses": [row("a")]}
        BatchStatus.from_dict(good)
        for wrong in (
            {"status": None}, {"status": "DONE"}, {"status": ["COMPLETED"]}, {"totalRequests": "1"}, {"totalRequests": -1},
            {"totalRequests": 1.0}, {"completedRequests": None}, {"completedRequests": True}, {"responses": {}},
            {"responses": "a"}, {"responses": 0}, {"responses": [None]}, {"responses": ["a"]}, {"responses": [[]]}, {"ticket": 5},
            {"responses": [row(5)]}, {"responses": [{"id": "a"}]}, {"responses": [row("a", 5)]},
            {"responses": [row("a", code="200")]}, {"responses": [row("a", code=True)]},
            {"responses": [row("a", httpStatusLine=5)]}, {"responses": [row("a", escapedHttpBody={})]},
        ):
            with self.subTest(wrong=wrong), self.assertRaises(InvalidResponseError):
                BatchStatus.from_dict({**good, **wrong})
        for wrong in (None, [], "COMPLETED", 5, {}):
            with self.subTest(wrong=wrong), self.assertRaises(InvalidResponseError):
                BatchStatus.from_dict(wrong)


class OneResponsePerRequest(TestCase):
    batch = Batch([BatchRequest.get(f"/products/{n}", id=f"r{n}") for n in range(4)])

    def matched(self, *rows, batch=batch, **fields):
        return status_of(*rows, total=len(batch), **fields)._of(batch).responses

    def test_rows_in_any_order_find_their_requests(self):
        responses = self.matched(*(row(f"r{n}", httpBody=n) for n in (2, 0, 3, 1)))
        self.assertEqual([response.body for response in responses], [0, 1, 2, 3])
        self.assertEqual([response.request for response in responses], list(self.batch.requests))

    def test_a_lost_row_is_a_response_too(self):
        responses = self.matched(row("r3"), row("r0"))
        self.assertEqual([response.status for response in responses], ["COMPLETED", "NOT_EXECUTED", "NOT_EXECUTED", "COMPLETED"])
        self.assertEqual([response.request.id for response in responses], ["r0", "r1", "r2", "r3"])
        self.assertEqual([response.id for response in responses], ["r0", "r1", "r2", "r3"])
        self.assertIn("no response", responses[1].error_message)

    def test_rows_without_ids_are_told_apart_by_their_order_where_that_is_sure(self):
        responses = self.matched(row("r1", httpBody=1), row(httpBody=0), row(httpBody=2), row(httpBody=3))
        self.assertEqual([response.body for response in responses], [0, 1, 2, 3])
        self.assertEqual([response.id for response in responses], ["r0", "r1", "r2", "r3"])
        for batch, rows in (
            (dataclasses.replace(self.batch, allow_parallel_mode=True), [row(httpBody=n) for n in range(4)]),
            (self.batch, [row(httpBody=n) for n in range(3)]),
        ):
            self.assertEqual({response.status for response in self.matched(*rows, batch=batch)}, {"NOT_EXECUTED"})

    def test_the_status_of_another_batch_is_not_taken_for_ours(self):
        with self.raises(InvalidResponseError, "another batch.*deduplication key"):
            status_of(*(row(f"r{n}") for n in range(5)))._of(self.batch)
        with self.raises(InvalidResponseError, "another batch"):
            self.matched(row("r0"), row("r1"), row("r2"), row("000004"))


# --- Tests: the client -----------------------------------------------------------------------------------------------


class Clients(TestCase):
    def test_what_can_be_seen_to_be_wrong_is_refused(self):
        for store_id in (0, -1, "0", "", "1003x", "١", "1" * 5000, 1.0, True, None, " 1003"):
            with self.subTest(store_id=store_id), self.raises(ValueError, "store_id must be a positive integer"):
                EcwidClient(store_id, "secret_x")
        for token in ("", "secret x", "secret\n", "sécret", None, b"secret", "\x7f"):
            with self.subTest(token=token), self.raises(ValueError, "token must be visible ASCII"):
                EcwidClient(1003, token)
        for options, kind in (
            ({"timeout": 0}, ValueError), ({"timeout": -1}, ValueError), ({"timeout": math.nan}, ValueError),
            ({"timeout": math.inf}, ValueError), ({"timeout": "60"}, TypeError), ({"timeout": True}, TypeError),
            ({"max_retries": -1}, ValueError), ({"max_retries": 1.5}, TypeError), ({"max_retries": True}, TypeError),
        ):
            with self.subTest(options=options), self.assertRaises(kind):
                EcwidClient(1003, "secret_x", **options)

    def test_the_token_travels_by_https_only_but_to_loopback(self):
        for url in ("https://app.ecwid.com/api/v3", "https://example.com:8443/x/", "http://127.0.0.1:80/api/v3",
                    "http://localhost/api/v3", "http://[::1]:8080/api/v3", "http://127.8.9.1", "HTTPS://example.com"):
            self.assertEqual(EcwidClient(1003, "t", base_url=url).base_url, url.rstrip("/"))
        for url in ("http://app.ecwid.com/api/v3", "http://127.0.0.1.example.com", "http://localhost@example.com",
                    "http://localhost.example.com", "http://127.0.0.1@example.com/", "http://example.com@127.0.0.1/",
                    "https://user:password@example.com", "http://2130706433/", "ftp://127.0.0.1/", "file:///etc/passwd",
                    "//127.0.0.1/", "127.0.0.1", "https://", "https:///api", "", None, 5, b"https://example.com",
                    "https://example.com/a b", "https://example.com/\n", "https://example.com?x=1", "https://example.com/#x",
                    "https://example.com:port/", "https://example.com:99999/", "http://127.0.0.1\\@example.com/",
                    "https://a..b/", "http://127.0.0.1\t.example.com/", "http://[::1]evil.example/", "https://%ff.example",
                    "https://a%2e%2eb.example", "https://[::1"):
            with self.subTest(url=url), self.raises(ValueError, "base_url must"):
                EcwidClient(1003, "t", base_url=url)

    def test_it_comes_from_the_environment(self):
        with mock.patch.dict(os.environ, {"ECWID_STORE_ID": "1003", "ECWID_TOKEN": "secret_x"}):
            os.environ.pop("ECWID_BASE_URL", None)
            client = EcwidClient.from_env(timeout=5)
            self.assertEqual((client.store_id, client.token, client.timeout), (1003, "secret_x", 5))
            self.assertEqual(client.base_url, "https://app.ecwid.com/api/v3")
            os.environ["ECWID_BASE_URL"] = "http://127.0.0.1:1/api/v3"
            self.assertEqual(EcwidClient.from_env().base_url, "http://127.0.0.1:1/api/v3")
            self.assertEqual(EcwidClient.from_env(token="other").token, "other")
            os.environ["ECWID_TOKEN"] = ""
            with self.raises(ValueError, "set ECWID_TOKEN"):
                EcwidClient.from_env()

    def test_wrong_arguments_are_refused_before_anything_is_sent(self):
        standin = self.standin()
        client = standin.client()
        for call, kind in (
            (lambda: client.status(""), ValueError), (lambda: client.status(5), TypeError),
            (lambda: client.wait(None), TypeError), (lambda: client.delete(""), ValueError),
            (lambda: client.cancel(""), ValueError), (lambda: client.cancel(7), TypeError),
            (lambda: client.find("DONE"), ValueError), (lambda: client.find("QUEUED", offset=-1), ValueError),
            (lambda: client.find("QUEUED", limit=0), ValueError), (lambda: client.find("QUEUED", limit=101), ValueError),
            (lambda: client.wait("T", timeout="5"), TypeError), (lambda: client.wait("T", timeout=math.nan), ValueError),
            (lambda: client.run(Batch(creates(1)), timeout=math.nan), ValueError),
            (lambda: client.stream([], retry=-1), ValueError), (lambda: client.stream([], retry=1.0), TypeError),
            (lambda: client.stream([], max_in_flight=0), ValueError), (lambda: client.stream([], timeout="1"), TypeError),
            (lambda: client.stream([], deduplication_key="x"), ValueError),
            (lambda: list(client.stream(creates(1), allow_parallel_mode="yes")), TypeError),
            (lambda: client.run(creates(1)), TypeError), (lambda: client.submit(EXAMPLE), TypeError),
        ):
            with self.assertRaises(kind):
                call()
        self.assertEqual(standin.requests, [])

    def test_ten_clients_load_the_ca_bundle_once_and_only_when_they_call(self):
        ecwid_batch._tls_context.cache_clear()
        with mock.patch("ssl.create_default_context", return_value=None) as load:
            clients = [EcwidClient(1003, "t", base_url="https://localhost:1") for _ in range(10)]
            self.assertEqual(load.call_count, 0)
            openers = {id(client._opener) for client in clients for _ in range(2)}
            self.assertEqual((load.call_count, len(openers)), (1, 10))
            with mock.patch.dict(os.environ, {"SSL_CERT_FILE": "/another"}):
                self.assertIsNotNone(EcwidClient(1003, "t")._opener)
            self.assertEqual(load.call_count, 2)
        ecwid_batch._tls_context.cache_clear()


class TheWire(TestCase):
    def test_the_references_example_arrives_as_the_reference_has_it(self):
        standin = self.standin()
        ticket = standin.client().submit(Batch.from_json(EXAMPLE, allow_parallel_mode=True, deduplication_key=UUID))
        [(method, path, query, headers, body)] = standin.calls
        self.assertEqual((method, path), ("POST", "/batch"))
        self.assertEqual(query, {"allowParallelMode": "true", "deduplicationKey": UUID})
        self.assertEqual(json.loads(body), json.loads(EXAMPLE))
        self.assertEqual(headers["Authorization"], f"Bearer {standin.token}")
        self.assertEqual(headers["Content-Type"], "application/json")
        self.assertEqual(headers["Cache-Control"], "no-cache")
        self.assertEqual(headers["Accept-Encoding"], "gzip")
        self.assertIn(ticket, standin.jobs)

    def test_run_gives_one_response_per_request_in_order(self):
        for options in ({}, {"older": True}):
            standin = self.standin(**options)
            seen = []
            status = standin.client().run(Batch.from_json(EXAMPLE), timeout=60, on_progress=seen.append)
            self.assertEqual([response.id for response in status], ["000001", "000002", "000003"])
            self.assertEqual([response.request.path for response in status][1], "/profile")
            self.assertEqual([response.http_status_code for response in status], [200, 200, 200])
            self.assertEqual(status["000001"].body["items"][0]["email"], "ec.apps@lightspeedhq.com")
            self.assertEqual(status["000002"].body["generalInfo"], {"storeId": 1003})
            self.assertEqual(standin.shop.items["products"][status["000003"].body["id"]]["price"], 19.99)
            self.assertEqual((status.done, status.ticket), (True, next(iter(standin.jobs))))
            self.assertEqual(seen[-1].completed_requests, 3)
            self.assertEqual(len(standin.ledger), 3)

    def test_the_light_status_is_polled_and_the_responses_are_fetched_once(self):
        standin = self.standin(latency=0.2)
        standin.client().run(Batch(creates(3)))
        looks = [query for method, path, query in standin.requests if method == "GET"]
        self.assertGreater(len(looks), 2)
        self.assertEqual([set(query) for query in looks], [{"ticket"}] * (len(looks) - 1) + [{"ticket", "escapedJson"}])

    def test_in_parallel_mode_responses_still_come_in_the_order_of_the_requests(self):
        chance = random.Random(7)
        with virtual(latency=lambda call: chance.uniform(0.1, 2)) as (engine, client, clock):
            status = client.run(Batch(creates(300), allow_parallel_mode=True))
            self.assertNotEqual([call["id"] for _, call in engine.ledger], [response.id for response in status])
            self.assertEqual([response.request.body["sku"] for response in status], [f"sku-{n}" for n in range(300)])
            for response in status:
                self.assertEqual(engine.shop.items["products"][response.body["id"]]["sku"], response.request.body["sku"])

    def test_status_has_responses_unless_told_otherwise(self):
        standin = self.standin()
        client = standin.client()
        ticket = client.submit(Batch(creates(2)))
        self.assertEqual(len(client.status(ticket)), 2)
        self.assertEqual(len(client.status(ticket, responses=False)), 0)
        self.assertEqual(client.status(ticket, responses=False).completed_requests, 2)
        self.assertEqual([response.request for response in client.wait(ticket)], [None, None])

    def test_a_group_is_cancelled_and_what_had_run_stays(self):
        with virtual(latency=1.0) as (engine, client, clock):
            ticket = client.submit(Batch(creates(10), group_id="night"))
            client.submit(Batch(creates(3, 10), group_id="night"))
            clock.sleep(3.5)
            self.assertEqual(client.cancel("night", ticket=ticket), 2)
            self.assertEqual(engine.requests[-1], ("POST", "/batch/cancel-group", {"groupId": "night", "ticketId": ticket}))
            status = client.wait(ticket)
            self.assertEqual((len(status.succeeded), len(status.not_executed)), (4, 6))
            self.assertEqual(client.cancel("none"), 0)
            self.assertEqual(engine.requests[-1][2], {"groupId": "none"})

    def test_a_batch_is_deleted_by_both_names_of_its_ticket(self):
        standin = self.standin(latency=9.0)
        client = standin.client()
        ticket = client.submit(Batch(creates(3)))
        self.assertEqual(client.delete(ticket), 1)
        self.assertEqual(standin.requests[-1], ("DELETE", "/batch", {"ticket": ticket, "ticketId": ticket}))
        self.assertEqual(client.delete(ticket), 0)
        with self.raises(ApiError, f"404.*check the store id, the ticket.*{ticket}") as caught:
            client.status(ticket)
        self.assertEqual((caught.exception.http_status, caught.exception.ticket), (404, ticket))

    def test_batches_are_found_by_status_whichever_way_the_answer_comes(self):
        for older in (False, True):
            standin = self.standin(latency=9.0, older=older)
            client = standin.client()
            tickets = [client.submit(Batch(creates(1))) for _ in range(3)]
            found = client.find("QUEUED", offset=1, limit=1)
            self.assertEqual([(status.ticket, status.status) for status in found], [(tickets[1], "QUEUED")])
            self.assertEqual(standin.requests[-1][2], {"status": "QUEUED", "offset": "1", "limit": "1"})
            self.assertEqual(client.find("COMPLETED"), [])

    def test_error_answers_become_errors_that_say_what_to_do(self):
        standin = self.standin()
        for client, status, code, advice in (
            (standin.client(), 400, "WRONG_PARAMETER", r"invalid\. Path"),
            (EcwidClient(1003, "wrong", base_url=standin.base_url), 403, "INVALID_API_TOKEN", "check the token"),
            (EcwidClient(7, standin.token, base_url=standin.base_url), 404, "STORE_NOT_FOUND", "check the store id"),
        ):
            batch = Batch(creates(1))
            if status == 400:
                vars(batch)["_json"] = b'[{"id": 5}]'
            with self.raises(ApiError, f"POST .*batch: HTTP {status}; {code}.*{advice}") as caught:
                client.submit(batch)
            error = caught.exception
            self.assertEqual((error.http_status, error.code, error.retry_after), (status, code, None))
            self.assertEqual(error.deduplication_key, batch.deduplication_key)
        self.assertEqual(len(standin.requests), 3)  # each was sent once

    def test_proxies_of_the_environment_are_not_asked_for_loopback_but_for_the_rest(self):
        with mock.patch.dict(os.environ, {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}):
            self.assertEqual(len(self.standin().client().run(Batch(creates(1)))), 1)
            refused = mock.patch("socket.create_connection", side_effect=ConnectionRefusedError("no"))
            with refused as connect, self.assertRaises(TransportError):
                EcwidClient(1003, "t", base_url="https://example.invalid", max_retries=0).status("T")
            self.assertEqual(connect.call_args[0][0], ("127.0.0.1", 1))

    def test_one_client_serves_many_threads(self):
        standin = self.standin()
        client, found = standin.client(), {}

        def work(n):
            found[n] = client.run(Batch(creates(3, 3 * n)), timeout=60)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for n in range(8):
            self.assertEqual([response.request.body["sku"] for response in found[n]], [f"sku-{3 * n + k}" for k in range(3)])
        self.assertEqual(len(set(calls_ran(standin))), len(standin.ledger))



# --- Tests: exactly once, retries, bad answers, secrets --------------------------------------------------------------


class Flaky:
    """An opener that takes a fault "refused" from the stand-in's list itself: then it calls where nobody listens."""

    def __init__(self, standin):
        self.standin, self.opener = standin, urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.nobody = f"http://127.0.0.1:{unused.getsockname()[1]}/"

    def open(self, request, timeout):
        if self.standin.faults and self.standin.faults[0] == "refused":
            self.standin.faults.popleft()
            request = self.nobody
        return self.opener.open(request, timeout=timeout)


class ExactlyOnce(TestCase):
    SCHEDULES = int(os.environ.get("ECWID_BATCH_SCHEDULES", 120))

    def check(self, standin, responses, skus):
        """Each request ran exactly once by the ledger, and has one response, the right one."""
        self.assertEqual(sorted(call["body"]["sku"] for _, call in standin.ledger), sorted(skus))
        self.assertEqual([response.request.body["sku"] for response in responses], skus)
        for response in responses:
            self.assertEqual(standin.shop.items["products"][response.body["id"]]["sku"], response.request.body["sku"])

    def test_whatever_the_network_does(self):
        self.clock()
        standin = self.standin()
        client = standin.client(opener=Flaky(standin))
        for n in range(self.SCHEDULES):
            seed = f"{n}-{random.randrange(10**6)}"
            chance = random.Random(seed)
            faults = [chance.choice(FAULTS) if chance.random() < 0.6 else None for _ in range(chance.randint(1, 20))]
            standin.faults = collections.deque(faults)
            standin.ledger.clear()
            batch = Batch(creates(chance.randint(1, 5), start=n * 10), allow_parallel_mode=chance.choice([True, None]))
            with self.subTest(seed=seed, faults=faults):
                for _ in range(20):
                    try:
                        status = client.run(batch)
                        break
                    except EcwidError as error:  # tries ran out: the same batch goes on
                        self.assertEqual(error.deduplication_key, batch.deduplication_key)
                self.check(standin, status.responses, [request.body["sku"] for request in batch])

    def test_whatever_the_network_does_in_a_stream(self):
        self.clock()
        for seed in range(4):
            standin = self.standin()
            client = standin.client(opener=Flaky(standin))
            chance = random.Random(seed)
            for _ in range(30):
                standin.faults += [chance.choice(FAULTS)] + [None] * chance.randint(0, 2)
            requests, responses = creates(1100), None
            while responses is None:
                try:
                    responses = list(client.stream(requests, deduplication_key=UUID, stop_on_first_failure=[None, False][seed % 2]))
                except EcwidError as error:
                    self.assertEqual(error.deduplication_key, UUID)
            self.check(standin, responses, [request.body["sku"] for request in requests])

    def test_a_retry_sends_the_same_bytes_under_the_same_key(self):
        self.clock()
        standin = self.standin()
        standin.faults += ["reset after", "500", "cut off after"]
        body = {"sku": "sku-1", "name": "n"}
        batch = Batch([BatchRequest.post("/products", body)])
        standin.faults.append(lambda handler: (body.update(name="changed"), handler.reset()))
        ticket = standin.client().submit(batch)
        self.assertEqual(len(standin.jobs), 1)
        self.assertIn(ticket, standin.jobs)
        sent = {(call[2]["deduplicationKey"], call[4]) for call in standin.calls}
        self.assertEqual(sent, {(batch.deduplication_key, batch.to_json())})

    def test_without_a_key_only_what_surely_did_not_run_is_tried_again(self):
        clock = self.clock()
        for fault, kind, tries in (
            ("reset after", TransportError, 1), ("reset", TransportError, 1), ("cut off after", TransportError, 1),
            ("500 after", ApiError, 1), ("503 busy", ApiError, 1), ("408 after", ApiError, 1), ("html 502", ApiError, 1),
            ("html 200 after", InvalidResponseError, 1), ("empty after", InvalidResponseError, 1),
            ("refused", None, 2), ("429", None, 2), ("429 soon", None, 2),
        ):
            with self.subTest(fault=fault):
                standin = self.standin()
                standin.faults.append(fault)
                client, batch = standin.client(opener=Flaky(standin)), Batch(creates(1), deduplication_key=None)
                slept = len(clock.sleeps)
                if kind:
                    with self.assertRaises(kind) as caught:
                        client.submit(batch)
                    self.assertIsNone(caught.exception.deduplication_key)
                else:
                    client.submit(batch)
                self.assertEqual(len(clock.sleeps) - slept, tries - 1)
                self.assertLessEqual(len(standin.ledger), 1)

    def test_no_try_is_made_when_the_key_may_be_forgotten(self):
        with virtual() as (engine, client, clock):
            answer, stalls = client.opener.open, iter([True, True])

            def stall(request, timeout):
                response = answer(request, timeout=timeout)
                if next(stalls, False):
                    clock.now += timeout
                    raise socket.timeout("timed out")
                return response

            client.opener.open = stall
            patient, batch = dataclasses.replace(client, timeout=2000), Batch(creates(1))
            with self.raises(BatchTimeoutError, batch.deduplication_key):
                patient.submit(batch)
            clock.now += 10
            engine.advance(clock.now)
            self.assertEqual((len(engine.ledger), len(engine.jobs)), (1, 1))

    def test_without_a_thread_to_be_had_nothing_ran(self):
        clock = self.clock()
        standin = self.standin()
        full = mock.patch("_thread.start_new_thread", side_effect=RuntimeError("can't start new thread"))
        with full, self.raises(TransportError, "can't start new thread"):
            standin.client(max_retries=2).submit(Batch(creates(1), deduplication_key=None))
        self.assertEqual(len(clock.sleeps), 2)

    def test_a_name_that_cannot_be_looked_up_did_not_run(self):
        clock = self.clock()
        client = EcwidClient(1003, "t", base_url="https://ecwid.invalid", max_retries=2)
        unknown = mock.patch("socket.getaddrinfo", side_effect=socket.gaierror(-2, "unknown"))
        with unknown as look_up, self.raises(TransportError, "gaierror.*unknown"):
            client.submit(Batch(creates(1), deduplication_key=None))
        self.assertEqual((look_up.call_count, len(clock.sleeps)), (3, 2))


class Retries(TestCase):
    def test_a_call_gets_max_retries_more_tries(self):
        for retries in (0, 1, 4):
            clock = self.clock()
            standin = self.standin()
            standin.faults += ["500"] * 10
            with self.raises(ApiError, "HTTP 500; INTERNAL_ERROR; Internal error"):
                standin.client(max_retries=retries).status("T")
            self.assertEqual(10 - len(standin.faults), 1 + retries)
            self.assertEqual(len(clock.sleeps), retries)

    def test_backoff_is_full_jitter_from_half_a_second_to_thirty(self):
        with mock.patch("random.uniform", side_effect=lambda low, high: high) as uniform:
            self.assertEqual([ecwid_batch._backoff(n) for n in range(1, 10)], [0.5, 1, 2, 4, 8, 16, 30, 30, 30])
            self.assertEqual(ecwid_batch._backoff(5000), 30)
            self.assertEqual({call[0][0] for call in uniform.call_args_list}, {0})

    def test_4xx_is_not_tried_again(self):
        clock = self.clock()
        for status in (400, 401, 402, 403, 404, 405, 409, 415, 422):
            standin = self.standin()
            standin.faults.append(lambda handler, status=status: handler.send(status, {}, {"errorMessage": "no"}))
            with self.raises(ApiError, f"HTTP {status}; no"):
                standin.client().submit(Batch(creates(1)))
        self.assertEqual(clock.sleeps, [])

    def answer(self, *headers, status=429, timeout=None):
        """What comes of one answer with the given Retry-After: the error, or how long the client slept."""
        clock = self.clock()
        standin = self.standin()
        headers = dict(headers)

        def fault(handler):
            handler.date_time_string = lambda: headers.get("Date", "Tue, 24 Nov 2026 08:00:00 GMT")
            handler.send(status, {"Retry-After": headers["Retry-After"]}, {"errorMessage": "wait"})

        standin.faults.append(fault)
        try:
            standin.client().run(Batch(creates(1)), timeout=timeout)
        except EcwidError as error:
            self.assertEqual(clock.sleeps, [])
            return error
        return clock.sleeps[0]

    def test_retry_after_is_obeyed_to_the_letter(self):
        for status in (429, 503, 408):
            self.assertEqual(self.answer(("Retry-After", "7"), status=status), 7)
            self.assertEqual(self.answer(("Retry-After", "60"), status=status), 60)
        self.assertEqual(self.answer(("Retry-After", "2.5")), 2.5)
        with mock.patch("random.uniform", return_value=0.4):
            self.assertEqual(self.answer(("Retry-After", "0")), 0.4)
            self.assertEqual(self.answer(("Retry-After", "0.3")), 0.4)

    def test_retry_after_may_be_a_date_counted_from_the_servers_own(self):
        def date(seconds):
            return email.utils.formatdate(1_700_000_000 + seconds, usegmt=True)

        self.assertEqual(self.answer(("Date", date(0)), ("Retry-After", date(9))), 9)
        error = self.answer(("Date", date(0)), ("Retry-After", date(600)))
        self.assertEqual(error.retry_after, 600)
        with mock.patch("time.time", return_value=1_700_000_000):
            self.assertEqual(ecwid_batch._retry_after({"Retry-After": date(5)}), 5)
        self.assertLess(self.answer(("Date", date(0)), ("Retry-After", date(-9))), 0.5)

    def test_a_senseless_retry_after_does_no_harm(self):
        for value in ("soon", "-5", "nan", "inf", "-inf", "1e999", "", " ", "Mon, 99 Foo 2026 99:99:99 GMT", "5 5 5 5 5 5 5",
                      "Nov +9999:99 , GMT -99999999 24-Nov-2026 :"):
            self.assertIsNone(ecwid_batch._retry_after({"Retry-After": value}), value)
        self.assertLessEqual(self.answer(("Retry-After", "soon")), 0.5)

    def test_a_long_pause_is_raised_for_the_caller_to_come_back(self):
        for status, kind in ((429, RateLimitError), (503, ApiError)):
            for value, timeout in (("3600", None), ("61", None), ("30", 20)):
                error = self.answer(("Retry-After", value), status=status, timeout=timeout)
                self.assertIs(type(error), kind)
                self.assertEqual((error.retry_after, error.http_status, error.message), (float(value), status, "wait"))
                self.assertTrue(uuid.UUID(error.deduplication_key))

    def test_the_stand_in_blocks_who_does_not_wait(self):
        clock = self.clock()
        standin = self.standin(rate_limit=20)
        client = standin.client()
        for _ in range(25):
            with contextlib.suppress(EcwidError):
                client.find("QUEUED")
        waits = [sleep for sleep in clock.sleeps if sleep >= 5]
        self.assertTrue(waits)
        impatient = standin.client(max_retries=0)
        first = [self.blocked(impatient) for _ in range(12)]
        self.assertGreater(first[-1], first[0])

    def blocked(self, client):
        try:
            client.find("QUEUED")
            return 0
        except RateLimitError as error:
            return error.retry_after


class BadAnswers(TestCase):
    def call(self, fault, verb=lambda client: client.status("T"), **options):
        clock = self.clock()
        standin = self.standin()
        standin.faults += [fault] * 9
        with self.assertRaises(EcwidError) as caught:
            verb(standin.client(**options))
        self.assertTrue(all(sleep <= 30 for sleep in clock.sleeps))
        return caught.exception

    def test_a_200_that_is_not_what_the_api_promises(self):
        deep = b"[" * 200_000
        verbs = (
            lambda client: client.submit(Batch(creates(1))), lambda client: client.status("T"),
            lambda client: client.cancel("g"), lambda client: client.delete("T"), lambda client: client.find("QUEUED"),
        )
        for answer in (
            b"null", b"5", b'"text"', b"[null]", b'[{"ticket": 5}]', b"{", b"", HTML, deep, b"\xff\xfe", b"NaN", b'{"ticket": ""}',
            b'{"ticket": 5}', b'{"items": 5}', b'{"updateCount": "1"}', b'{"deleteCount": true}', b'{"updateCount": -1}',
            b'{"status": "COMPLETED", "totalRequests": "x"}', b"9" * 5000, b'{"status": [[]]}', json.dumps("\ud800").encode(),
        ):
            for verb in verbs:
                with self.subTest(answer=answer[:40]):
                    error = self.call(lambda handler: handler.raw(200, {}, answer), verb, max_retries=1)
                    self.assertIs(type(error), InvalidResponseError)

    def test_an_answer_that_breaks_on_the_way(self):
        for fault in ("reset", "cut off after", "cut gzip after", "broken gzip after"):
            with self.subTest(fault=fault):
                self.assertIs(type(self.call(fault, lambda client: client.submit(Batch(creates(1))))), TransportError)
        for garbage in (b"", b"garbage\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
                        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
                        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{}",
                        b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000 + b": b\r\n\r\n",
                        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"):
            with self.subTest(garbage=garbage[:60]):
                def answer(handler, garbage=garbage):
                    handler.wfile.write(garbage)
                    handler.close_connection = True

                self.assertIs(type(self.call(answer, max_retries=1)), TransportError)

    def test_a_content_length_that_is_no_number_does_no_harm(self):
        for length in ("\xb2", "-1", "x"):
            standin = self.standin()
            standin.faults.append(lambda handler: handler.raw(200, {"Content-Length": length}, b'{"updateCount": 1}'))
            self.assertEqual(standin.client().cancel("g"), 1)

    def test_the_status_of_an_error_counts_even_if_its_body_is_broken(self):
        for head, body in (("Content-Encoding: gzip\r\nContent-Length: 0", b""), ("Content-Length: 50", b"{"),
                           ("Content-Encoding: gzip", b"junk"), ("Transfer-Encoding: chunked", b"zz\r\n")):
            for status, kind in ((429, RateLimitError), (403, ApiError), (302, TransportError)):
                answer = f"HTTP/1.1 {status} X\r\nRetry-After: 300\r\n{head}\r\n\r\n".encode() + body

                def fault(handler, answer=answer):
                    handler.wfile.write(answer)
                    handler.close_connection = True

                with self.subTest(head=head, status=status):
                    error = self.call(fault)
                    self.assertIs(type(error), kind)
                    self.assertIn(f"HTTP {status}", str(error))
                    if status != 302:
                        self.assertEqual(error.retry_after, 300)

    def test_a_1xx_answer_is_no_answer(self):
        def early(handler):
            handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            handler.close_connection = True

        self.assertIs(type(self.call(early)), TransportError)

    def test_what_follows_a_whole_gzip_answer_is_not_read(self):
        def endless(handler):
            handler.raw(200, {"Content-Encoding": "gzip", "Content-Length": "999999999"}, gzip.compress(b'{"updateCount": 1}'))
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    handler.wfile.write(b"junk" * 1000)

        standin = self.standin()
        standin.faults.append(endless)
        self.assertEqual(standin.client().cancel("g"), 1)

    def test_whatever_a_callers_opener_does_is_a_transport_error(self):
        for behaviour in ({"return_value": None}, {"return_value": object()}, {"side_effect": LookupError("x")}):
            client = EcwidClient(1003, "secret_x", opener=mock.Mock(open=mock.Mock(**behaviour)), max_retries=0)
            with self.assertRaises(TransportError):
                client.status("T")

    def test_numbers_beyond_reason_and_tickets_that_no_url_can_hold(self):
        status = json.dumps({"status": "IN_PROGRESS", "totalRequests": 10**400, "completedRequests": 1}).encode()
        for answer, verb in ((status, lambda client: client.wait("T")), (b'{"ticket": "\\ud800"}', lambda client: client.run(Batch(creates(1))))):
            error = self.call(lambda handler: handler.raw(200, {}, answer), verb)
            self.assertIs(type(error), InvalidResponseError)

    def test_a_proxys_page_is_an_api_error_without_a_message(self):
        error = self.call("html 502")
        self.assertEqual((error.http_status, error.code, error.message), (502, None, None))
        self.assertIn("HTTP 502; Bad Gateway", str(error))

    def test_a_bomb_is_an_error_and_not_an_outage(self):
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        block = packer.compress(b" " * 2**20) + packer.flush(3)  # a full flush: the block can be repeated
        bomb = block + (packer.compress(b" " * 2**20) + packer.flush(3)) * 599
        with mock.patch("ecwid_batch._MAX_ANSWER", 2**21):
            tracemalloc.start()
            error = self.call(lambda handler: handler.raw(200, {"Content-Encoding": "gzip"}, bomb))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertIs(type(error), InvalidResponseError)
            self.assertIn("larger than 2097152 bytes", str(error))
            self.assertLess(peak, 2**24)
            self.assertIs(type(self.call(lambda handler: handler.raw(200, {}, b" " * (2**21 + 1)))), InvalidResponseError)
            fine = b'{"updateCount": 7}'.ljust(2**21)
            standin = self.standin()
            standin.faults.append(lambda handler: handler.raw(200, {"Content-Encoding": "gzip"}, gzip.compress(fine)))
            self.assertEqual(standin.client().cancel("g"), 7)

    def test_a_connection_that_stays_open_does_not_hold_up_a_whole_answer(self):
        def answer(handler):
            handler.raw(200, {"Connection": "keep-alive"}, b'{"updateCount": 1}')
            handler.wfile.flush()
            gone.wait(20)

        gone = threading.Event()
        self.addCleanup(gone.set)
        standin = self.standin()
        standin.faults.append(answer)
        begun = time.monotonic()
        self.assertEqual(standin.client(timeout=10).cancel("g"), 1)
        self.assertLess(time.monotonic() - begun, 9)

    def test_an_openers_error_without_a_body_is_an_answer_too(self):
        opener = mock.Mock()
        opener.open.side_effect = urllib.error.HTTPError("http://x", 404, "no", None, None)
        with self.raises(ApiError, "HTTP 404; Not Found"):
            EcwidClient(1003, "t", opener=opener).status("T")

    def test_a_certificate_that_does_not_fit_is_not_tried_again(self):
        opener = mock.Mock()
        opener.open.side_effect = urllib.error.URLError(ssl.SSLCertVerificationError(1, "certificate verify failed"))
        with self.raises(TransportError, "SSLCertVerificationError.*certificate verify failed"):
            EcwidClient(1003, "secret_x", opener=opener).submit(Batch(creates(1)))
        self.assertEqual(opener.open.call_count, 1)


class Secrets(TestCase):
    def redirects(self, status, opener=None):
        """Call a stand-in that redirects to a listener: how often and with what headers that was reached."""
        listener, standin = self.standin(), self.standin()
        target = listener.base_url + "/1003/batch"
        standin.faults += [lambda handler: handler.raw(status, {"Location": target}, b"")] * 2
        client = standin.client(opener=opener, max_retries=0)
        for call in (lambda: client.submit(Batch(creates(1))), lambda: client.status("T")):
            with self.assertRaises(EcwidError) as caught:
                call()
            if opener is None:
                self.assertIs(type(caught.exception), TransportError)
                self.assertIn("no redirect is followed", str(caught.exception))
        return [call[3] for call in listener.calls]

    def test_no_redirect_is_followed(self):
        for status in (300, 301, 302, 303, 307, 308, 399):
            self.assertEqual(self.redirects(status), [])

    def test_a_callers_opener_that_follows_redirects_does_not_take_the_token_along(self):
        following = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        reached = self.redirects(302, following)
        self.assertEqual(len(reached), 2)
        self.assertEqual([headers.get("Authorization") for headers in reached], [None, None])

    def test_the_token_is_nowhere_to_be_seen(self):
        self.clock()
        standin = self.standin()
        token, seen = standin.token, []
        logger = logging.getLogger("ecwid_batch")
        logger.setLevel(logging.DEBUG)
        handler = logging.StreamHandler(io.StringIO())
        logger.addHandler(handler)
        self.addCleanup(logger.removeHandler, handler)
        echo = {"errorMessage": f"Token {token} is\nwrong", "errorCode": f"BAD_{token}"}
        client = standin.client(max_retries=1)
        seen += [repr(client), str(client), repr(Batch(creates(1))), repr([client])]
        for fault in (
            "500", "reset", "cut off after", "html 502", "429", "html 200",
            lambda h: h.send(400, {}, echo), lambda h: h.send(500, {}, echo), lambda h: h.send(429, {"Retry-After": "999"}, echo),
            lambda h: h.raw(302, {"Location": f"http://127.0.0.1:1/{token}"}, b""), lambda h: h.send(200, {}, {"ticket": [token]}),
            lambda h: h.raw(200, {}, token.encode()), lambda h: h.wfile.write(f"{token} {token}\r\n\r\n".encode()),
        ):
            standin.faults.clear()
            standin.faults += [fault] * 2
            with self.assertRaises(EcwidError) as caught:
                client.submit(Batch(creates(1)))
            error = caught.exception
            seen += [str(error), repr(error), repr(vars(error))]
            seen += traceback.format_exception(type(error), error, error.__traceback__)
            seen += traceback.TracebackException.from_exception(error, capture_locals=True).format()
        seen.append(handler.stream.getvalue())
        self.assertIn("POST /api/v3/1003/batch: 500", handler.stream.getvalue())
        for text in seen:
            self.assertNotIn(token, text)
        for arguments in ((1003, token + "\n"), (token, 1003)):
            with self.assertRaises(ValueError) as caught:
                EcwidClient(*arguments)
            self.assertNotIn(token, str(caught.exception))

    def test_words_from_outside_are_one_short_line(self):
        shown = EcwidClient(1003, "secret_x")._shown("\x1b[31mred\r\n" + "x" * 1000 + " secret_x")
        self.assertTrue(shown.startswith("[31mred xxx"))
        self.assertEqual(len(shown), 300)


class Logs(TestCase):
    def test_each_exchange_is_logged_and_each_retry_is_a_warning(self):
        self.clock()
        standin = self.standin()
        standin.faults.append("503 busy")
        with self.assertLogs("ecwid_batch", "DEBUG") as logs:
            standin.client().submit(Batch(creates(1)))
        levels = [(record.levelname, record.getMessage()) for record in logs.records]
        self.assertEqual([level for level, _ in levels], ["DEBUG", "WARNING", "DEBUG"])
        self.assertRegex(levels[0][1], r"^POST /api/v3/1003/batch: 503, \d+ ms, \d+ bytes$")
        self.assertRegex(levels[1][1], r"HTTP 503; Busy.*; trying again in 2\.0 s \(1 of 4\)")
        self.assertRegex(levels[2][1], r"^POST /api/v3/1003/batch: 200, \d+ ms, \d+ bytes$")



# --- Tests: pace, deadlines, streams ---------------------------------------------------------------------------------


class Pace(TestCase):
    JOBS = int(os.environ.get("ECWID_BATCH_JOBS", 150))

    def job(self, chance):
        """Follow a random job: its length, how late its end was noticed, with how many looks; and by a fixed 2 s poll."""
        length, count = math.exp(chance.uniform(math.log(0.3), math.log(1800))), chance.randint(3, 500)
        queued = chance.choice([0, length * chance.uniform(0, 0.9)])
        uneven = chance.choice([lambda: 1, lambda: chance.expovariate(1), lambda: chance.lognormvariate(0, 1.5)])
        weights = [uneven() for _ in range(count)]
        latencies = iter([(length - queued) / sum(weights) * weight for weight in weights])
        with virtual() as (engine, client, clock):
            ticket = client.submit(Batch(creates(1)))  # its place is taken by the job, to be exact to the millisecond
            job = engine.jobs[ticket]
            job.__init__(ticket, [{"id": f"{n}", "method": "GET", "path": "/profile"} for n in range(count)], {}, clock.now + queued)
            engine.latency, begun = lambda call: next(latencies), clock.now
            client.wait(ticket)
            ends = max(job.time, begun + length)
            looks = [query for method, _, query in engine.requests if method == "GET"]
            late = clock.now - ends - 0.15  # fetching the responses is not part of noticing
            self.assertEqual(sum("escapedJson" in query for query in looks), 1)
        fixed_looks = math.ceil((length - 0.075) / 2.15) + 1
        fixed_late = (fixed_looks - 1) * 2.15 + 0.15 - length
        return length, late, len(looks) - 1, fixed_late, fixed_looks

    def test_the_end_is_noticed_soon_with_few_looks(self):
        chance = random.Random(3)
        jobs = [self.job(chance) for _ in range(self.JOBS)]
        overshoot = sum(late / max(length, 3) for length, late, *_ in jobs) / len(jobs)
        looks = [looks for _, _, looks, *_ in jobs]
        worse = [
            late > max(fixed_late, length / 10) + 1e-6 or looks > max(fixed_looks + 2, 6)
            for length, late, looks, fixed_late, fixed_looks in jobs
        ]
        if "ECWID_BATCH_JOBS" in os.environ:
            print(f"overshoot {overshoot:.3f}, looks {sum(looks) / len(looks):.1f} max {max(looks)}, worse {sum(worse)}/{len(jobs)}")
        self.assertLess(overshoot, 0.1)
        self.assertLess(sum(looks) / len(looks), 25)
        self.assertLessEqual(max(looks), 80)
        self.assertLess(sum(worse) / len(jobs), 0.08)

    def test_a_batch_that_is_done_is_noticed_at_once(self):
        with virtual() as (engine, client, clock):
            ticket = client.submit(Batch(creates(3)))
            begun = clock.now
            client.wait(ticket)
            self.assertLess(clock.now - begun, 0.6)
            self.assertEqual(len(engine.requests), 3)


class Deadlines(TestCase):
    def test_the_timeout_is_kept_and_leaves_what_to_go_on_with(self):
        for timeout in (0.05, 1, 7.5):
            with virtual(latency=2.0) as (engine, client, clock):
                batch = Batch(creates(20))
                ticket = client.submit(batch)
                for call in (lambda: client.wait(ticket, timeout=timeout), lambda: client.run(batch, timeout=timeout)):
                    begun = clock.now
                    with self.raises(BatchTimeoutError, f"wait for its ticket|timeout.*{ticket}" if timeout > 0.2 else ".") as caught:
                        call()
                    self.assertLessEqual(clock.now - begun, timeout + 1e-6)
                    self.assertGreaterEqual(clock.now - begun, timeout - 0.3)
                    self.assertIsInstance(caught.exception, TimeoutError)
                    if timeout > 0.2:
                        self.assertEqual(caught.exception.ticket, ticket)
                        self.assertEqual(caught.exception.last_status.total_requests, 20)
                self.assertEqual(caught.exception.deduplication_key, batch.deduplication_key)
                self.assertEqual(len(client.wait(ticket).succeeded), 20)

    def test_a_batch_that_ends_just_before_the_deadline_is_had(self):
        with virtual(latency=2.0) as (engine, client, clock):
            ticket = client.submit(Batch(creates(4)))
            self.assertEqual(len(client.wait(ticket, timeout=8.6)), 4)

    def test_a_timeout_that_is_over_sends_nothing(self):
        with virtual() as (engine, client, clock):
            for timeout in (0, -5):
                with self.assertRaises(BatchTimeoutError) as caught:
                    client.run(Batch(creates(1)), timeout=timeout)
                self.assertIsNone(caught.exception.ticket)
                with self.assertRaises(BatchTimeoutError) as caught:
                    client.wait("T", timeout=timeout)
                self.assertEqual((caught.exception.ticket, caught.exception.last_status), ("T", None))
            self.assertEqual(engine.requests, [])

    def test_it_holds_while_tries_fail(self):
        with virtual() as (engine, client, clock):
            ticket = client.submit(Batch(creates(1)))
            client.opener.open = mock.Mock(side_effect=ConnectionResetError("reset"))
            for timeout in (0.4, 2, 5):
                begun = clock.now
                with self.assertRaises((BatchTimeoutError, TransportError)) as caught:
                    client.wait(ticket, timeout=timeout)
                self.assertEqual(caught.exception.ticket, ticket)
                self.assertLessEqual(clock.now - begun, timeout)

    def test_a_try_that_the_deadline_cuts_is_a_timeout(self):
        with virtual() as (engine, client, clock):
            ticket = client.submit(Batch(creates(1)))

            def stall(request, timeout):
                clock.now += timeout
                raise socket.timeout("timed out")

            client.opener.open = stall
            for retries in (0, 4):
                with self.raises(BatchTimeoutError, "timed out") as caught:
                    dataclasses.replace(client, max_retries=retries).wait(ticket, timeout=5)
                self.assertEqual(caught.exception.ticket, ticket)
            with self.raises(BatchTimeoutError, "."):
                client.wait(ticket, timeout=-(10**400))

    def test_a_short_retry_after_fits_whatever_the_backoff_would_be(self):
        with mock.patch("random.uniform", return_value=20), virtual() as (engine, client, clock):
            engine.handle = lambda *args: (429, {"Retry-After": "1"}, {})
            with self.assertRaises(BatchTimeoutError):
                client.wait("T", timeout=10)

    def test_the_time_that_on_progress_takes_counts(self):
        with virtual(latency=10.0) as (engine, client, clock):
            ticket, begun = client.submit(Batch(creates(20))), clock.now
            with self.assertRaises(BatchTimeoutError):
                client.wait(ticket, timeout=30, on_progress=lambda status: clock.sleep(8))
            self.assertLess(clock.now - begun, 30 + 8)
            self.assertLess(max(clock.sleeps[-4:]), 8.001)

    def test_it_holds_on_a_slow_network(self):
        def trickle_body(handler):
            handler.send_response(200)
            handler.end_headers()
            drip(handler)

        def trickle_headers(handler):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            drip(handler)

        def drip(handler):
            with contextlib.suppress(OSError):
                while not gone.wait(0.02):
                    handler.wfile.write(b" ")

        def stall(handler):
            gone.wait(20)

        gone = threading.Event()
        self.addCleanup(gone.set)
        standin = self.standin()
        ticket = standin.client().submit(Batch(creates(1)))
        for fault in (trickle_body, trickle_headers, stall):
            for client, timeout, kind in (
                (standin.client(), 0.5, BatchTimeoutError), (standin.client(timeout=0.3, max_retries=0), None, TransportError)
            ):
                with self.subTest(fault=fault.__name__, kind=kind.__name__):
                    standin.faults.append(fault)
                    begun = time.monotonic()
                    with self.assertRaises(kind) as caught:
                        client.wait(ticket, timeout=timeout)
                    self.assertLess(time.monotonic() - begun, 5)
                    self.assertEqual(caught.exception.ticket, ticket)


class Streams(TestCase):
    def test_any_number_of_requests_come_back_in_order(self):
        with virtual(latency=0.01) as (engine, client, clock):
            responses = client.stream(iter(creates(1200)), stop_on_first_failure=False, group_id="g")
            skus = [response.request.body["sku"] for response in responses]
            self.assertEqual(skus, [f"sku-{n}" for n in range(1200)])
            self.assertEqual([len(job.calls) for job in engine.jobs.values()], [500, 500, 200])
            self.assertEqual({job.group for job in engine.jobs.values()}, {"g"})

    def test_no_requests_give_no_responses(self):
        with virtual() as (engine, client, clock):
            self.assertEqual(list(client.stream([])), [])
            self.assertEqual(engine.requests, [])

    def test_ecwid_is_kept_busy_where_failures_do_not_stop_it(self):
        with virtual(latency=0.01) as (engine, client, clock):
            self.assertEqual(sum(response.ok for response in client.stream(creates(5000), stop_on_first_failure=False)), 5000)
            jobs = list(engine.jobs.values())
            busy = 5000 * 0.01 / (jobs[-1].time - jobs[0].start)
            self.assertGreater(busy, 0.9)
            self.assertEqual(sum("escapedJson" in query for _, _, query in engine.requests), 10)

    def test_no_more_batches_are_at_ecwid_than_told(self):
        for most in (1, 2, 4):
            with virtual(latency=0.01) as (engine, client, clock):
                waiting = []

                def look(status):
                    waiting.append(sum(not job.done for job in engine.jobs.values()))

                list(client.stream(creates(3000), stop_on_first_failure=False, max_in_flight=most, on_progress=look))
                self.assertEqual(max(waiting), most)

    def test_a_failure_stops_the_job_by_default(self):
        with virtual(latency=0.01) as (engine, client, clock):
            requests = creates(2500)
            requests[700] = BatchRequest.get("/nowhere")
            responses = list(client.stream(iter(requests), deduplication_key=UUID))
            self.assertEqual([response.request.path for response in responses], [request.path for request in requests])
            self.assertEqual([response.status for response in responses], ["COMPLETED"] * 700 + ["FAILED"] + ["NOT_EXECUTED"] * 1799)
            self.assertEqual(len(engine.jobs), 2)
            self.assertEqual(len(engine.ledger), 701)
            self.assertTrue(responses[-1].retryable)
            self.assertIn("not submitted", responses[-1].error_message)

    def test_the_next_batch_waits_for_the_success_of_the_one_before(self):
        with virtual(latency=0.01) as (engine, client, clock):
            waiting = []
            look = lambda status: waiting.append(sum(not job.done for job in engine.jobs.values()))  # noqa: E731
            self.assertEqual(len(list(client.stream(creates(1500), on_progress=look))), 1500)
            self.assertEqual(max(waiting), 1)

    def test_requests_are_read_as_they_are_needed(self):
        for options in ({}, {"stop_on_first_failure": False}):
            with virtual() as (engine, client, clock):
                read = itertools.count()
                requests = (BatchRequest.get(f"/products/{next(read)}") for _ in range(100_000))
                responses = client.stream(requests, **options)
                self.assertEqual(next(read), 0)
                next(responses)
                self.assertLessEqual(next(read), 2000)
                responses.close()

    def test_memory_is_flat(self):
        def peak(count):
            with virtual() as (engine, client, clock):
                engine.handle = lambda *args, handle=engine.handle: forgetful(engine, handle(*args))
                gc.collect()
                tracemalloc.start()
                requests = (BatchRequest.put("/products/1", {"price": n}) for n in range(count))
                for _ in client.stream(requests, stop_on_first_failure=False):
                    pass
                _, most = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                return most

        def forgetful(engine, answer):
            engine.calls.clear()
            engine.ledger.clear()
            for ticket in [ticket for ticket, job in engine.jobs.items() if job.done][:-4]:
                del engine.jobs[ticket]
            return answer

        self.assertLess(peak(12_000), 1.08 * peak(4_000))

    def test_a_job_begun_again_finds_its_tickets(self):
        for options in ({}, {"stop_on_first_failure": False}):
            with virtual(latency=0.01) as (engine, client, clock):
                first = client.stream(iter(creates(1700)), deduplication_key=UUID, **options)
                before = [next(first).body for _ in range(600)]
                first.close()
                after = [response.body for response in client.stream(iter(creates(1700)), deduplication_key=UUID, **options)]
                self.assertEqual(len(after), 1700)
                self.assertEqual(after[:600], before)
                self.assertEqual(len(engine.ledger), 1700)
                self.assertEqual(len(set(calls_ran(engine))), 1700)
                other = list(client.stream(iter(creates(600)[::-1]), deduplication_key=UUID, stop_on_first_failure=False))
                self.assertEqual({response.error_code for response in other}, {"SKU_ALREADY_EXISTS"})  # it did run

    def test_what_is_retryable_is_run_again_and_the_order_kept(self):
        for options in ({}, {"stop_on_first_failure": False}):
            with virtual(latency=0.01) as (engine, client, clock):
                busy = collections.Counter()

                def script(call):
                    number = int(call["path"].rpartition("/")[2])
                    busy[number] += 1
                    return (429, {"errorMessage": "Slow down"}) if number % 400 == 7 and busy[number] <= 2 else (200, {"n": number})

                engine.script = script
                requests = [BatchRequest.put(f"/products/{n}", {}) for n in range(1100)]
                responses = list(client.stream(requests, retry=4, **options))
                self.assertEqual([response.body for response in responses], [{"n": n} for n in range(1100)])
                self.assertEqual([response.request.path for response in responses], [f"/products/{n}" for n in range(1100)])
                self.assertEqual({n: times for n, times in busy.items() if times > 1}, {7: 3, 407: 3, 807: 3})

    def test_a_post_that_met_a_5xx_is_not_run_again(self):
        with virtual() as (engine, client, clock):
            engine.script = lambda call: (500, {"errorMessage": "oops"})
            engine.time_scale = 0
            requests = [BatchRequest.post("/products", {"name": "a"}), BatchRequest.put("/products/1", {})]
            responses = list(client.stream(requests, retry=2, stop_on_first_failure=False))
            self.assertEqual([response.http_status_code for response in responses], [500, 500])
            self.assertEqual(collections.Counter(call["method"] for _, call in engine.ledger), {"POST": 5, "PUT": 15})

    def test_what_failed_for_good_stops_a_job_in_spite_of_retry(self):
        with virtual() as (engine, client, clock):
            requests = [BatchRequest.get("/profile"), BatchRequest.get("/nowhere"), *creates(600)]
            responses = list(client.stream(requests, retry=3))
            self.assertEqual([response.status for response in responses], ["COMPLETED", "FAILED"] + ["NOT_EXECUTED"] * 600)
            self.assertEqual((len(engine.jobs), len(engine.ledger)), (1, 2))

    def test_what_somebody_cancelled_is_not_run_again(self):
        for options in ({}, {"stop_on_first_failure": False}):
            with virtual(latency=1.0) as (engine, client, clock):
                cancel = lambda status: status.completed_requests and engine.jobs[status.ticket].cancel()  # noqa: E731
                responses = list(client.stream(creates(9), retry=3, on_progress=cancel, **options))
                self.assertEqual(len(responses), 9)
                self.assertEqual(len(engine.jobs), 1)
                self.assertEqual(sum(response.ok for response in responses), len(engine.ledger))
                self.assertIn("NOT_EXECUTED", [response.status for response in responses])

    def test_what_was_cancelled_before_a_failure_stopped_its_batch_is_not_run_again(self):
        with virtual(latency=1.0) as (engine, client, clock):
            engine.script = lambda call: (500, {"errorMessage": "oops"}) if call["path"] == "/a" else None

            def cancel(status):
                engine.jobs[status.ticket].cancel()

            responses = list(client.stream([BatchRequest.get("/a"), *creates(3)], retry=1, on_progress=cancel))
            self.assertEqual([response.status for response in responses], ["FAILED"] + ["NOT_EXECUTED"] * 3)
            self.assertEqual([call["path"] for _, call in engine.ledger], ["/a"])

    def test_only_failures_are_run_again_where_they_do_not_stop_the_batch(self):
        with virtual() as (engine, client, clock):
            answers = iter([(429, {}), (200, {}), (200, {}), (200, {})])
            engine.script = lambda call: next(answers)
            look = engine.look

            def lose(query):
                status, headers, answer = look(query)
                answer["responses"] = [row for row in answer.get("responses", ()) if row["id"] != "000002"]
                return status, headers, answer

            engine.look, requests = lose, [BatchRequest.get(f"/products/{n}") for n in range(3)]
            responses = list(client.stream(requests, retry=1, stop_on_first_failure=False))
            self.assertEqual([response.status for response in responses], ["COMPLETED", "NOT_EXECUTED", "COMPLETED"])
            self.assertEqual(len(engine.ledger), 4)

    def test_a_retry_sends_what_the_batch_was_made_of(self):
        with virtual() as (engine, client, clock):
            body = {"price": decimal.Decimal("1.10")}
            answers = iter([(429, {}), (200, {})])
            engine.script = lambda call: body.update(price=2) or next(answers)
            [response] = client.stream([BatchRequest.put("/products/1", body)], retry=1)
            self.assertTrue(response.ok)
            sent = [call[4] for call in engine.calls if call[0] == "POST"]
            self.assertEqual(sent[0], sent[1])
            self.assertIn(b"1.10", sent[1])

    def test_a_deleted_batch_and_a_lost_row_are_no_lost_request(self):
        with virtual() as (engine, client, clock):
            ticket = client.submit(batch := Batch(creates(5)))
            del engine.jobs[ticket].rows[1:3]
            status = client.run(batch)
            self.assertEqual([response.status for response in status], ["COMPLETED"] + ["NOT_EXECUTED"] * 2 + ["COMPLETED"] * 2)
            self.assertEqual([response.request for response in status], list(batch))

    def test_the_callers_own_error_comes_unchanged_after_the_responses_of_what_was_submitted(self):
        class Broken(Exception):
            pass

        def requests():
            yield from creates(1100)
            raise broken

        for broken, options in itertools.product((Broken("x"), EcwidError("x")), ({}, {"stop_on_first_failure": False})):
            with virtual(latency=0.01) as (engine, client, clock):
                responses = []
                with self.assertRaises(type(broken)) as caught:
                    for response in client.stream(requests(), **options):
                        responses.append(response)
                self.assertIs(caught.exception, broken)
                self.assertEqual(vars(broken), {})
                self.assertEqual((len(responses), len(engine.ledger)), (1000, 1000))

    def test_an_error_of_on_progress_comes_unchanged(self):
        def look(status):
            raise broken

        broken = LookupError("mine")
        with virtual() as (engine, client, clock):
            for call in (
                lambda: client.run(Batch(creates(1)), on_progress=look),
                lambda: list(client.stream(creates(1), on_progress=look)),
            ):
                with self.assertRaises(LookupError) as caught:
                    call()
                self.assertIs(caught.exception, broken)

    def test_an_error_has_the_tickets_and_the_key_to_go_on_with(self):
        with virtual(latency=1.0) as (engine, client, clock):
            with self.assertRaises(BatchTimeoutError) as caught:
                list(client.stream(creates(1500), timeout=30, stop_on_first_failure=False, deduplication_key=UUID))
            self.assertEqual(caught.exception.tickets, tuple(engine.jobs))
            self.assertEqual(len(caught.exception.tickets), 2)
            self.assertEqual(caught.exception.deduplication_key, UUID)
            self.assertIn(UUID, str(caught.exception))
            again = client.stream(creates(1500), stop_on_first_failure=False, deduplication_key=UUID)
            self.assertEqual(sum(response.ok for response in again), 1500)
            self.assertEqual(len(engine.ledger), 1500)

    def test_responses_that_are_there_come_before_the_error_of_the_next_submission(self):
        for options in ({}, {"stop_on_first_failure": False}):
            with virtual(latency=0.01) as (engine, client, clock):
                handle = engine.handle

                def refuse(method, *args):
                    if method == "POST" and len(engine.jobs) == 2:
                        return 429, {"Retry-After": "3600"}, {"errorMessage": "Slow down"}
                    return handle(method, *args)

                engine.handle = refuse
                responses = []
                with self.assertRaises(RateLimitError) as caught:
                    for response in client.stream(creates(2000), **options):
                        responses.append(response)
                self.assertEqual(len(responses), 500 if options else 1000)
                self.assertEqual(caught.exception.retry_after, 3600)
                self.assertEqual(caught.exception.tickets, tuple(engine.jobs)[1:] if options else ())

    def test_ctrl_c_leaves_at_once_and_tells_the_tickets(self):
        with virtual(latency=1.0) as (engine, client, clock):
            def sleep(seconds):
                raise KeyboardInterrupt

            responses = client.stream(creates(1500), stop_on_first_failure=False)
            with mock.patch("time.sleep", sleep), self.assertRaises(KeyboardInterrupt) as caught:
                next(responses)
            self.assertEqual(caught.exception.tickets, tuple(engine.jobs))
            self.assertEqual(len(engine.requests), 2)

    def test_ctrl_c_during_an_exchange_does_not_wait_for_it(self):
        gone = threading.Event()
        self.addCleanup(gone.set)
        standin = self.standin()
        standin.faults.append(lambda handler: (os.kill(os.getpid(), signal.SIGINT), gone.wait(20)))
        begun = time.monotonic()
        with self.assertRaises(KeyboardInterrupt):
            standin.client().status("T")
        self.assertLess(time.monotonic() - begun, 10)

    def test_closing_the_iterator_leaves_nothing_behind(self):
        threads = threading.active_count()
        with virtual(latency=1.0) as (engine, client, clock):
            responses = client.stream(creates(1500), stop_on_first_failure=False)
            next(responses)
            responses.close()
            calls = len(engine.requests)
            self.assertEqual(list(responses), [])
            self.assertEqual((len(engine.requests), threading.active_count()), (calls, threads))



# --- Tests: the command line -----------------------------------------------------------------------------------------


class CommandLine(TestCase):
    def setUp(self):
        super().setUp()
        self.ecwid, self.time = self.standin(), None
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def environment(self, **changes):
        given = {
            **CLEAN_ENV, "ECWID_STORE_ID": "1003", "ECWID_TOKEN": self.ecwid.token, "ECWID_BASE_URL": self.ecwid.base_url,
            "http_proxy": "http://127.0.0.1:1", **changes,
        }
        return {name: value for name, value in given.items() if value is not None}

    def start(self, *arguments, env=None, **options):
        command = [sys.executable, str(HERE / "ecwid_batch.py"), *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self.environment(**(env or {})), cwd=self.folder.name, **{**pipes, **options})

    def run_command(self, *arguments, stdin="", env=None):
        """Exit status, lines of standard output, text of standard error of a run in this process, in virtual time."""
        out, err = io.StringIO(), io.StringIO()
        given = io.BytesIO(stdin if isinstance(stdin, bytes) else stdin.encode())
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch("sys.stdin", io.TextIOWrapper(given)))
            self.time = self.time or self.clock()
            stack.enter_context(mock.patch.dict(os.environ, self.environment(**(env or {})), clear=True))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            try:
                code = ecwid_batch.main(list(arguments))
            except SystemExit as exit:  # of argparse
                code = exit.code
        self.assertNotIn(self.ecwid.token, out.getvalue() + err.getvalue())
        return code, out.getvalue().splitlines(), err.getvalue()

    def test_it_runs_as_a_file_and_as_a_module(self):
        for command in (["ecwid_batch.py"], ["-m", "ecwid_batch"]):
            out = subprocess.run(
                [sys.executable, *command, "run", "-v", "-"], input=EXAMPLE.encode(), env=self.environment(), cwd=HERE,
                capture_output=True, timeout=60,
            )
            self.assertEqual(out.returncode, 1 if "-m" in command else 0)  # the second time the SKU is there
            self.assertEqual(len(out.stdout.splitlines()), 3)
            self.assertRegex(out.stderr.decode(), r"(?m)^POST /api/v3/1003/batch: 200, \d+ ms, \d+ bytes$")

    def file(self, text, name="requests.jsonl"):
        path = pathlib.Path(self.folder.name, name)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    @staticmethod
    def lines(requests):
        return "".join(json.dumps({"method": r.method, "path": r.path, "body": r.body}) + "\n" for r in requests)

    def test_run_takes_the_references_array_and_lines_from_a_file_and_from_standard_input(self):
        for arguments, stdin in (
            ((self.file(EXAMPLE),), ""), (("-",), EXAMPLE), (("-",), "\ufeff \n" + EXAMPLE),
            (("-",), "\n".join(json.dumps(item) for item in json.loads(EXAMPLE)).replace("\n", "\n\n")),
        ):
            self.ecwid.shop.items["products"].clear()
            code, out, err = self.run_command("run", *arguments, stdin=stdin)
            self.assertEqual((code, len(out)), (0, 3), err)
            rows = [json.loads(line) for line in out]
            self.assertEqual([row["id"] for row in rows], ["000001", "000002", "000003"])
            self.assertEqual({row["status"] for row in rows}, {"COMPLETED"})
            self.assertEqual({row["http_status_code"] for row in rows}, {200})
            self.assertEqual((rows[1]["method"], rows[1]["path"]), ("GET", "/profile"))
            self.assertEqual(rows[1]["body"]["generalInfo"], {"storeId": 1003})
            self.assertRegex(err, r"^3 requests: 3 succeeded, 0 failed, 0 did not run; \d+\.\d s\n$")

    def test_failures_are_exit_status_1(self):
        requests = self.lines([BatchRequest.get("/nowhere"), *creates(2)])
        code, out, err = self.run_command("run", "-", stdin=requests)
        self.assertEqual((code, [json.loads(line)["status"] for line in out]), (1, ["FAILED", "NOT_EXECUTED", "NOT_EXECUTED"]))
        self.assertIn("3 requests: 0 succeeded, 1 failed, 2 did not run", err)
        code, out, err = self.run_command("run", "--continue-on-failure", "-q", "-", stdin=requests)
        self.assertEqual((code, [json.loads(line)["status"] for line in out], err), (1, ["FAILED", "COMPLETED", "COMPLETED"], ""))

    def test_options_reach_ecwid(self):
        requests = self.file(self.lines(creates(2)))
        code, _, err = self.run_command(
            "run", requests, "--parallel", "--continue-on-failure", "--group", "night", "--deduplication-key", UUID
        )
        query = self.ecwid.requests[0][2]
        self.assertEqual(query["deduplicationKey"], next(Batch.split(creates(2), deduplication_key=UUID)).deduplication_key)
        self.assertEqual((query["allowParallelMode"], query["stopOnFirstFailure"], query["groupId"]), ("true", "false", "night"))
        self.assertEqual(code, 0, err)

    def test_retry_runs_again_what_can_be(self):
        for arguments, expected in ((["--retry", "1"], 0), ([], 1)):
            answers = iter([(429, {}), (200, {})])
            self.ecwid.script = lambda call: next(answers)
            self.assertEqual(self.run_command("run", *arguments, "-", stdin=self.lines(creates(1)))[0], expected)

    def test_submit_status_wait_list_cancel_and_delete(self):
        self.ecwid.latency = 0.05
        code, tickets, err = self.run_command(
            "submit", "--group", "g", "--continue-on-failure", "-", stdin=self.lines([*creates(3), *[BatchRequest.get("/profile")] * 600])
        )
        self.assertEqual((code, tickets, err), (0, list(self.ecwid.jobs), ""))
        self.assertEqual([len(job.calls) for job in self.ecwid.jobs.values()], [500, 103])
        self.time.sleep(1)
        code, out, _ = self.run_command("list", "QUEUED")
        self.assertEqual((code, [json.loads(line)["ticket"] for line in out]), (0, tickets[1:]))
        self.assertEqual(self.run_command("cancel", "g", "--ticket", tickets[0]), (0, ['{"updateCount": 2}'], ""))
        self.assertEqual(self.run_command("delete", tickets[1]), (0, ['{"deleteCount": 1}'], ""))
        code, out, _ = self.run_command("wait", tickets[0], "--timeout", "20")
        self.assertEqual((code, len(out)), (1, 500))
        code, out, _ = self.run_command("status", tickets[0])
        self.assertEqual(json.loads(out[0]), {"ticket": tickets[0], "status": "COMPLETED", "totalRequests": 500, "completedRequests": 500})
        code, out, _ = self.run_command("status", tickets[0], "--responses")
        self.assertEqual(len(json.loads(out[0])["responses"]), 500)

    def test_list_goes_through_all_pages(self):
        self.time, self.ecwid.latency = self.clock(), 99.0
        tickets = [self.ecwid.client().submit(Batch(creates(1))) for _ in range(201)]
        code, out, _ = self.run_command("list", "QUEUED")
        self.assertEqual([json.loads(line)["ticket"] for line in out], tickets)

    def test_a_dry_run_prints_what_would_be_sent_and_sends_nothing(self):
        for command in ("run", "submit"):
            code, out, err = self.run_command(command, "--dry-run", "--parallel", "--deduplication-key", UUID, "-", stdin=EXAMPLE)
            self.assertEqual((code, err), (0, ""))
            key = next(Batch.split(Batch.from_json(EXAMPLE), deduplication_key=UUID)).deduplication_key
            self.assertEqual(out[0], f"POST {self.ecwid.base_url}/1003/batch?allowParallelMode=true&deduplicationKey={key}")
            self.assertIn("Authorization: Bearer ***", out)
            self.assertIn("Content-Type: application/json", out)
            self.assertEqual(json.loads(out[out.index("") + 1]), json.loads(EXAMPLE))
        self.assertEqual(self.ecwid.requests, [])

    def test_wrong_usage_and_input_is_exit_status_2_and_sends_nothing(self):
        good = self.file(self.lines(creates(1)), "good")
        for arguments, stdin, env, words in (
            ((), "", {}, "COMMAND"), (("walk",), "", {}, "invalid choice"), (("run",), "", {}, "FILE"),
            (("run", "--token", "x", good), "", {}, "unrecognized arguments"),
            (("list", "DONE"), "", {}, "invalid choice"),
            (("run", "missing.json"), "", {}, "No such file.*missing.json"), (("run", "."), "", {}, "directory"),
            (("run", "-"), "", {}, "holds no requests"), (("run", "-"), " \n\n", {}, "holds no requests"),
            (("run", "-"), "[]", {}, "holds no requests"), (("run", "-"), "{", {}, "line 1 is not JSON"),
            (("run", "-"), '{"method": "GET", "path": "/a"}\n\n{"method": "GET"}\n', {}, "line 3: must be an object with method and path"),
            (("run", "-"), '{"method": "GET", "path": "/a", "metod": 1}\n', {}, "line 1: has an unknown field 'metod'"),
            (("run", "-"), '[{"method": "GET", "path": "/a"}, 5]', {}, "request 2: must be an object"),
            (("submit", "-"), b"\x7fELF\xff\xfe\n\x00", {}, "line 1 is not JSON"),
            (("submit", "-"), b'{"method": "GET", "path": "/\xff"}', {}, "line 1 is not JSON"),
            (("run", good, "--deduplication-key", "x"), "", {}, "must be a UUID"),
            (("run", good, "--deduplication-key", ""), "", {}, "must be a UUID"),
            (("run", good, "--retry", "-1"), "", {}, "retry"), (("run", good, "--timeout", "nan"), "", {}, "timeout"),
            (("run", good, "--base-url", "http://example.com"), "", {}, "https"),
            (("run", good), "", {"ECWID_TOKEN": None}, "set ECWID_TOKEN"),
            (("run", good), "", {"ECWID_STORE_ID": None}, "set ECWID_STORE_ID"),
            (("run", good), "", {"ECWID_STORE_ID": "x"}, "positive integer"),
            (("run", good, "--token-file", "none"), "", {}, "No such file.*none"),
            (("run", good, "--token-file", self.file("a b", "bad")), "", {}, "token must be visible ASCII"),
            (("wait", ""), "", {}, "ticket must not be empty"),
        ):
            with self.subTest(arguments=arguments, stdin=stdin):
                code, out, err = self.run_command(*arguments, stdin=stdin, env=env)
                self.assertEqual((code, out), (2, []), err)
                self.assertRegex(err, words)
                self.assertNotIn("to go on", err)
                self.assertTrue(err.startswith("usage:") or err.count("\n") == 1, err)
        self.assertEqual(self.ecwid.requests, [])

    def test_a_bad_line_stops_its_batch_and_the_mended_job_goes_on(self):
        good = self.lines(creates(700))
        code, out, err = self.run_command("run", "-", stdin=good + "oops\n")
        self.assertEqual((code, len(out), len(self.ecwid.ledger)), (2, 500, 500))
        self.assertIn("line 701 is not JSON", err)
        key = re.search("--deduplication-key ([0-9a-f-]{36})", err)[1]
        code, out, err = self.run_command("run", "--deduplication-key", key, "-", stdin=good)
        self.assertEqual((code, len(out), len(self.ecwid.ledger)), (0, 700, 700), err)

    def test_ecwid_or_the_network_failing_is_exit_status_3_and_tells_how_to_go_on(self):
        good = self.file(self.lines(creates(2)))
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            nobody = f"http://127.0.0.1:{unused.getsockname()[1]}/api/v3"
        for arguments, env, words in (
            (("run", good), {"ECWID_TOKEN": "wrong"}, "HTTP 403; INVALID_API_TOKEN.*check the token"),
            (("run", good), {"ECWID_STORE_ID": "7"}, "HTTP 404; STORE_NOT_FOUND"),
            (("status", "T"), {}, r"HTTP 404.*check the store id, the ticket.*\[ticket T\]"),
        ):
            code, out, err = self.run_command(*arguments, env=env)
            self.assertEqual((code, out), (3, []))
            self.assertRegex(err, words)
            self.assertLessEqual(err.count("\n"), 2)
        code, _, err = self.run_command("run", good, env={"ECWID_BASE_URL": nobody})
        self.assertEqual(code, 3)
        self.assertRegex(err, "ConnectionRefusedError(?s:.*)--deduplication-key")
        self.ecwid.faults.append(lambda handler: handler.send(429, {"Retry-After": "999"}, {}))
        code, _, err = self.run_command("run", good)
        self.assertEqual(code, 3)
        self.assertRegex(err, "HTTP 429.*not to be called again within 999 s")
        key = re.search("--deduplication-key ([0-9a-f-]{36})", err)[1]
        self.assertEqual(self.run_command("run", good, "--deduplication-key", key)[0], 0)

    def test_a_timeout_is_exit_status_4_and_tells_how_to_go_on(self):
        self.ecwid.latency = 0.5
        good = self.file(self.lines(creates(4)))
        code, out, err = self.run_command("run", good, "--timeout", "0.6")
        ticket = next(iter(self.ecwid.jobs))
        self.assertEqual((code, out), (4, []))
        self.assertRegex(err, rf"timeout(?s:.*){ticket}(?s:.*)--deduplication-key")
        code, out, err = self.run_command("wait", ticket, "--timeout", "0.3")
        self.assertEqual((code, out), (4, []))
        self.assertIn(f"ecwid-batch wait {ticket}", err)
        code, out, err = self.run_command("wait", ticket)
        self.assertEqual((code, len(out)), (0, 4))

    def test_an_interrupted_run_goes_on_without_running_anything_twice(self):
        self.ecwid.latency = 0.002
        good = self.file(self.lines(creates(1200)))
        process = self.start("run", good, "--continue-on-failure")
        first = process.stdout.readline()
        self.assertEqual(json.loads(first)["id"], "000001")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, err)
        self.assertNotIn(b"Traceback", err)
        key = re.search("--deduplication-key ([0-9a-f-]{36})", err.decode())[1]
        for ticket in re.search(r"\[ticket ([^]]+)\]", err.decode())[1].split(", "):
            self.assertIn(ticket, self.ecwid.jobs)
        code, out, err = self.run_command("run", good, "--continue-on-failure", "--deduplication-key", key)
        self.assertEqual((code, len(out), len(self.ecwid.ledger)), (0, 1200, 1200), err)

    def test_a_closed_pipe_ends_it_quietly(self):
        process = self.start("run", self.file(self.lines([BatchRequest.get("/profile")] * 1000)))
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
        process.stdin.close()
        process.stderr.close()
        self.assertEqual(process.wait(60), 130)
        ticket = list(self.ecwid.jobs)[-1]
        self.assertRegex(err, rf"^ecwid-batch: interrupted; .* \[ticket {ticket}\]\necwid-batch: to go on, .*\n$")

    @unittest.skipUnless(shutil.which("sh"), "needs a shell")
    def test_closed_streams_and_pipes_are_no_trouble(self):
        good, command = self.file(EXAMPLE), f"{shlex.quote(sys.executable)} {shlex.quote(str(HERE / 'ecwid_batch.py'))}"
        for line, code, words in (
            (f"{command} list COMPLETED >&-", 0, ""), (f"{command} run {good} >&- 2>&-", 0, ""),
            (f"{command} run - <&-", 2, "ecwid-batch: the input holds no requests"),
            (f"{command} run --dry-run {good} | true; exit 0", 0, "(?!.*to go on)"),
        ):
            with self.subTest(line=line):
                out = subprocess.run(["sh", "-c", line], env=self.environment(), capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
                self.assertEqual((out.returncode, b"Traceback" in out.stderr), (code, False), out.stderr)
                self.assertRegex(out.stderr.decode(), f"(?s)^{words}")

    def test_the_token_may_be_in_a_file(self):
        token = self.file(self.ecwid.token + "\n", "token")
        code, _, err = self.run_command("run", "-", "--token-file", token, stdin=EXAMPLE, env={"ECWID_TOKEN": None})
        self.assertEqual(code, 0, err)

    def test_help_and_version(self):
        code, out, err = self.run_command("--version")
        self.assertEqual((code, out), (0, [f"ecwid-batch {ecwid_batch.__version__}"]))
        for command in ((), ("run",), ("submit",), ("wait",), ("status",), ("cancel",), ("delete",), ("list",)):
            code, out, err = self.run_command(*command, "--help")
            self.assertEqual((code, err), (0, ""))
            self.assertRegex("\n".join(out), "ecwid-batch" if not command else f"Example: ecwid-batch {command[0]} ")

    def test_progress_is_drawn_on_a_terminal_only(self):
        try:
            import pty
        except ImportError:
            self.skipTest("no terminals here")
        self.ecwid.latency = 0.004
        for name, text, total in (("a", self.lines(creates(250)), "/250"), ("b", json.dumps(
            [{"method": "GET", "path": "/profile"}] * 250), "/250")):
            master, slave = pty.openpty()
            with self.start("run", self.file(text, name), stderr=slave) as process:
                os.close(slave)
                out, _ = process.communicate(timeout=60)
            drawn = b""
            with contextlib.suppress(OSError):
                while chunk := os.read(master, 65536):
                    drawn += chunk
            os.close(master)
            self.assertEqual(len(out.splitlines()), 250)
            self.assertRegex(drawn.decode(), rf"\r\x1b\[K\d+{total} requests, \d+\.\d/s(, \d:\d\d:\d\d left)?")
            self.assertRegex(drawn.decode(), r"\r\x1b\[K250 requests: 250 succeeded, 0 failed, 0 did not run; \d+\.\d s\r\n$")


@unittest.skipUnless((HERE / "README.md").exists(), "the README is not here")
class Readme(TestCase):
    """Every block of the README runs, against the stand-in."""

    def blocks(self, language):
        return re.findall(rf"^```{language}\n(.*?)^```$", (HERE / "README.md").read_text(encoding="utf-8"), re.M | re.S)

    def test_its_python_runs_in_order(self):
        clock, ecwid = self.clock(), self.standin(latency=0.01)
        environment = {"ECWID_STORE_ID": "1003", "ECWID_TOKEN": ecwid.token, "ECWID_BASE_URL": ecwid.base_url}
        names, handlers, out = {}, [], io.StringIO()
        with mock.patch.dict(os.environ, environment), contextlib.redirect_stdout(out):
            for number, block in enumerate(self.blocks("python"), 1):
                names.pop("handler", None)
                exec(compile(block, f"README.md, block {number}", "exec"), names)
                if "handler" in names:
                    handlers.append(names["handler"])
            context = mock.Mock()
            context.get_remaining_time_in_millis.side_effect = lambda: 1000 * (deadline - clock.now)
            wait, look, queue = handlers
            deadline = clock.now + 10
            event = {"prices": {"999": 1, "1": 5.5}, "key": str(uuid.uuid4())}
            result = {"done": True, "failed": [["/products/999", "products 999 not found"]]}
            self.assertEqual([wait(event, context), wait(event, context)], [result, result])
            self.assertEqual(ecwid.shop.items["products"][1]["price"], 5.5)
            ecwid.latency, deadline = 5.0, clock.now + 4
            event = {"prices": {"1": 6}, "key": str(uuid.uuid4())}
            self.assertEqual(wait(event, context), {"done": False})
            self.assertLess(clock.now, deadline)
            deadline = clock.now + 60
            self.assertEqual(wait(event, context), {"done": True, "failed": []})
            start = {"batch": EXAMPLE.replace("/profile", "/nowhere"), "key": str(uuid.uuid4())}
            event = look(start, context)
            self.assertEqual(look(start, context), event)
            event = look(json.loads(json.dumps(event)), context)
            self.assertEqual(event["status"], "QUEUED")
            clock.sleep(60)
            event = look(json.loads(json.dumps(event)), context)
            self.assertEqual((event["status"], [id for id, _ in event["failed"]]), ("COMPLETED", ["000002", "000003"]))
            ecwid.latency, ran = 0.01, len(ecwid.ledger)
            message = {"messageId": "m1", "body": json.dumps([{"method": "POST", "path": "/products", "body": {"name": "x"}}])}
            ecwid.faults += ["reset after"] * 5
            self.assertEqual(queue({"Records": [message]}, context), {"batchItemFailures": [{"itemIdentifier": "m1"}]})
            wrong = {"messageId": "m2", "body": "[]"}
            self.assertEqual(queue({"Records": [message, wrong, message]}, context), {"batchItemFailures": []})
            self.assertEqual(len(ecwid.ledger), ran + 1)
        self.assertEqual(len(handlers), 3)
        self.assertIn("/products/1 200 {'updateCount': 1}", out.getvalue())

    @unittest.skipUnless(all(map(shutil.which, ("bash", "sha256sum", "xargs"))), "needs bash, sha256sum, xargs")
    def test_its_shell_commands_run(self):
        ecwid = self.standin()
        environment = {**CLEAN_ENV, "ECWID_STORE_ID": "1003", "ECWID_TOKEN": ecwid.token, "ECWID_BASE_URL": ecwid.base_url}
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(HERE / "ecwid_batch.py", folder)
            python = pathlib.Path(folder, "python3")
            python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
            python.chmod(0o755)
            environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
            out = [
                subprocess.run(["bash", "-euc", block], cwd=folder, env=environment, capture_output=True, timeout=60, check=True)
                for block in self.blocks("sh")
            ]
            vendored, commands = (result.stdout.decode() for result in out)
            self.assertEqual(vendored, f"{ecwid_batch.__version__}\necwid_batch.py: OK\n")
            self.assertIn("Authorization: Bearer ***", commands)
            self.assertRegex(commands, r'(?m)^2$')
            self.assertIn('"status": "COMPLETED", "totalRequests": 2, "completedRequests": 2', commands)
            rows = pathlib.Path(folder, "responses.jsonl").read_text().splitlines()
            self.assertEqual([json.loads(row)["path"] for row in rows], ["/products/1", "/products?limit=1"])

    def test_it_tells_the_defaults_and_the_limits_as_they_are(self):
        text = (HERE / "README.md").read_text(encoding="utf-8")
        self.assertLessEqual(len(text.splitlines()), 265)
        parameters = {
            **inspect.signature(EcwidClient).parameters, **inspect.signature(EcwidClient.stream).parameters,
        }
        for option in ("max_retries", "retry", "max_in_flight"):
            self.assertRegex(text, rf"{option}=\)` \| {parameters[option].default} \|")
        self.assertRegex(text, rf"EcwidClient\(timeout=\)` \| {inspect.signature(EcwidClient).parameters['timeout'].default:g} \|")
        for name in ecwid_batch.__all__:
            if name not in ("main", "BatchResponse", "BatchStatus"):
                self.assertRegex(text, rf"\b{name}\b")


class TheStandIn(TestCase):
    """What others rely on when they test against it."""

    def test_batches_run_one_after_another(self):
        with virtual(latency=1.0) as (engine, client, clock):
            first, second = client.submit(Batch(creates(3))), client.submit(Batch(creates(3, 3)))
            clock.sleep(2.5)
            self.assertEqual([client.status(ticket, responses=False).completed_requests for ticket in (first, second)], [2, 0])
            clock.sleep(1.5)
            self.assertEqual([client.status(ticket, responses=False).completed_requests for ticket in (first, second)], [3, 1])

    def test_parallel_mode_runs_a_hundred_at_once(self):
        with virtual(latency=1.0) as (engine, client, clock):
            status = client.run(Batch(creates(500), allow_parallel_mode=True))
            self.assertEqual(len(status.succeeded), 500)
            self.assertAlmostEqual(engine.jobs[status.ticket].time - engine.jobs[status.ticket].start, 5.0)

    def test_a_5xx_is_tried_five_times_three_seconds_apart_if_failures_do_not_stop_it(self):
        with virtual() as (engine, client, clock):
            engine.script = lambda call: (500, {"errorMessage": "oops"}) if "products" in call["path"] else None
            requests = [BatchRequest.get("/products"), BatchRequest.get("/profile")]
            status = client.run(Batch(requests, stop_on_first_failure=False))
            self.assertEqual([response.status for response in status], ["FAILED", "COMPLETED"])
            self.assertEqual((len(engine.ledger), engine.jobs[status.ticket].time - engine.jobs[status.ticket].start), (6, 12))
            status = client.run(Batch(requests))
            self.assertEqual([response.status for response in status], ["FAILED", "NOT_EXECUTED"])
            self.assertEqual(status["000001"].http_status_line, "oops")

    def test_a_key_is_remembered_for_an_hour(self):
        with virtual() as (engine, client, clock):
            batch = Batch([BatchRequest.get("/profile")])
            ticket = client.submit(batch)
            clock.sleep(3590)
            self.assertEqual(client.submit(batch), ticket)
            clock.sleep(20)
            self.assertNotEqual(client.submit(batch), ticket)

    def test_the_shop_answers_as_a_shop(self):
        standin = self.standin()
        requests = [
            BatchRequest.post("/products", {"name": "a", "sku": "s"}), BatchRequest.post("/products", {"name": "b", "sku": "s"}),
            BatchRequest.post("/customers", {}), BatchRequest.put("/products/1001", {"price": 2}), BatchRequest.get("/products/1001"),
            BatchRequest.get("/products", {"limit": 1, "offset": 1}), BatchRequest.delete("/products/1001"),
            BatchRequest.get("/products/1001"), BatchRequest.delete("/profile"), BatchRequest.put("/profile", {"x": 1}),
        ]
        status = standin.client().run(Batch(requests, stop_on_first_failure=False))
        self.assertEqual([response.http_status_code for response in status], [200, 409, 400, 200, 200, 200, 200, 404, 405, 200])
        self.assertEqual(status["000005"].body, {"name": "a", "sku": "s", "price": 2, "id": 1001})
        self.assertEqual(status["000006"].body["total"], 2)
        self.assertEqual(status["000002"].error_code, "SKU_ALREADY_EXISTS")
        self.assertEqual(status["000003"].error_message, "Field email is required")

    def test_it_checks_what_ecwid_checks(self):
        standin = self.standin()
        for body, headers, status, words in (
            (b"{", {}, 400, "invalid"), (b"[]", {}, 400, "1 to 500"), (b'[{"path": "/a"}]', {}, 400, r"\$\[0\]\.method"),
            (b'[{"path": "/a", "method": "GET", "id": 5}]', {}, 400, r"\$\[0\]\.id contains bad value"),
            (json.dumps([{"path": "/a", "method": "GET"}] * 501).encode(), {}, 400, "1 to 500"),
            (b'[{"path": "/a", "method": "GET"}]', {"Content-Type": "text/plain"}, 415, "media type"),
        ):
            headers = {"Authorization": f"Bearer {standin.token}", "Content-Type": "application/json", **headers}
            request = urllib.request.Request(f"{standin.base_url}/{standin.store_id}/batch", body, headers)
            with self.subTest(body=body[:50]), self.assertRaises(urllib.error.HTTPError) as caught:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
            with caught.exception as error:
                self.assertEqual(error.code, status)
                self.assertRegex(json.load(error)["errorMessage"], words)


if __name__ == "__main__":
    if sys.argv[1:2] == ["demo"]:
        sys.exit(demo())
    elif sys.argv[1:2] == ["serve"]:
        options = argparse.ArgumentParser("test_ecwid_batch.py serve", description=serve.__doc__)
        options.add_argument("--port", type=int, default=0, help="by default a free one")
        options.add_argument("--latency", type=float, default=0.1, help="seconds that one wrapped call takes (%(default)s)")
        sys.exit(serve(**vars(options.parse_args(sys.argv[2:]))))
    else:
        unittest.main()
