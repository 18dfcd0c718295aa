"""A local stand-in for Ecwid, and the tests of ecwid_batch that run against it.

    python3 test_ecwid_batch.py demo     the reference's example through the real client, explained
    python3 test_ecwid_batch.py serve    the stand-in alone, for experiments and your own tests
    python3 -m unittest                  the tests

In a test of your own, with this file copied beside it under a name of your choice:

    from ecwid_stand_in import StandIn

    with StandIn() as ecwid:
        client = ecwid.client()

The parts, in this order: the shop in memory, the batch engine, its HTTP face and its faults, demo
and serve, the tests. Standard library only.

Three kinds of time appear in the tests:

- Virtual: `virtual()` replaces time.sleep, time.monotonic and time.time by a clock that moves when
  somebody sleeps; an opener in the same process asks the engine directly. Hours pass in no time.
- Patched: over real HTTP, `Clock` moves for sleeps only, so that pauses cost nothing.
- Real: on loopback, with waits of at most 0.15 s, where threads, signals or processes matter.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import copy
import dataclasses
import decimal
import email.utils
import gzip
import heapq
import http.client
import http.server
import importlib.util
import inspect
import io
import itertools
import json
import logging
import math
import os
import pathlib
import pickle
import pydoc
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
import unittest
import urllib.error
import urllib.parse
import urllib.request
import urllib.response
import uuid
import zlib
from unittest import mock


def find_library():
    """Return the module ecwid_batch: beside this file, importable, or vendored and loaded."""
    try:
        from . import ecwid_batch as library

        return library
    except ImportError:
        pass
    try:
        import ecwid_batch as library

        return library
    except ImportError:
        pass
    for name, module in list(sys.modules.items()):
        if name.endswith(".ecwid_batch"):
            return module
    raise ImportError("import the package that ecwid_batch.py is vendored in before this module")


EXAMPLE = """[
  {"id": "000001", "path": "/orders?limit=1&email=ec.apps@lightspeedhq.com", "method": "GET",
   "body": ""},
  {"id": "000002", "path": "/profile", "method": "GET", "body": ""},
  {"id": "000003", "path": "/products", "method": "POST", "body": {
    "sku": "0012199", "quantity": 10, "name": "New Product", "price": 19.99,
    "compareToPrice": 24.99, "isShippingRequired": false, "categoryIds": [9691094], "weight": 10,
    "enabled": true, "description": "A <b>new</b> product description", "productClassId": 0}}
]"""  # of the reference, "Create batch request"


# --- The shop -------------------------------------------------------------------------------------


class Refusal(Exception):
    """An error answer of Ecwid: HTTP status, error code, message."""

    def answer(self):
        status, code, message = self.args
        body = {"errorMessage": message}
        if code:
            body["errorCode"] = code
        return status, body


class Shop:
    """Profile, products, orders, customers and categories of a store, in memory."""

    REQUIRED = {"products": "name", "orders": "email", "customers": "email", "categories": "name"}
    FILTERS = ("sku", "email", "enabled", "paymentStatus", "name")  # others are ignored

    def __init__(self, store_id):
        self.profile = {
            "generalInfo": {"storeId": store_id},
            "account": {"accountEmail": "owner@example.com"},
        }
        self.ids = itertools.count(1001)
        self.items = {kind: {} for kind in self.REQUIRED}
        email = "ec.apps@lightspeedhq.com"
        self.items["categories"][9691094] = {"id": 9691094, "name": "New"}
        self.items["orders"][1] = {"id": 1, "email": email, "total": 24.99, "paymentStatus": "PAID"}
        self.items["customers"][1] = {"id": 1, "email": email}
        self.items["products"][1] = {
            "id": 1,
            "sku": "0000001",
            "name": "Old Product",
            "price": 9.99,
            "enabled": True,
        }

    def answer(self, method, path, body):
        """Return HTTP status and JSON for one REST call."""
        try:
            return 200, self.result(method, path, body)
        except Refusal as refusal:
            return refusal.answer()

    def result(self, method, path, body):
        url = urllib.parse.urlsplit("/" + path.lstrip("/"))
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        segments = [urllib.parse.unquote_plus(part) for part in url.path.split("/")[1:]]
        if body is not None and body != "" and not isinstance(body, dict):
            raise Refusal(400, "WRONG_PARAMETER", "The body must be a JSON object")
        if segments == ["profile"]:
            return self.of_profile(method, body)
        kind, *rest = segments
        if kind not in self.items or len(rest) > 2:
            raise Refusal(404, "NOT_FOUND", f"Path {url.path} not found")
        if not rest:
            return self.of_collection(method, kind, query, body)
        item = self.items[kind].get(int(rest[0]) if rest[0].isdecimal() else None)
        if item is None:
            raise Refusal(404, "NOT_FOUND", f"{kind} {rest[0]} not found")
        if rest[1:] == ["image"] and kind == "products":
            return self.of_image(method, item, query)
        if rest[1:]:
            raise Refusal(404, "NOT_FOUND", f"Path {url.path} not found")
        return self.of_item(method, kind, item, body)

    def of_profile(self, method, body):
        if method == "PUT":
            self.profile.update(body or {})
            return {"updateCount": 1}
        if method == "GET":
            return self.profile
        raise Refusal(405, "METHOD_NOT_ALLOWED", "Method not allowed")

    def of_collection(self, method, kind, query, body):
        if method == "GET":
            return self.page(list(self.items[kind].values()), query)
        if method == "POST":
            return self.create(kind, body)
        raise Refusal(405, "METHOD_NOT_ALLOWED", "Method not allowed")

    def of_item(self, method, kind, item, body):
        if method == "GET":
            return item
        if method == "PUT":
            item.update(body or {})
            return {"updateCount": 1}
        if method == "DELETE":
            del self.items[kind][item["id"]]
            return {"deleteCount": 1}
        raise Refusal(405, "METHOD_NOT_ALLOWED", "Method not allowed")

    def of_image(self, method, item, query):
        if method != "POST" or not query.get("externalUrl"):
            raise Refusal(400, "WRONG_PARAMETER", "POST an image with externalUrl")
        item["imageUrl"] = query["externalUrl"]
        return {"id": next(self.ids)}

    def page(self, items, query):
        offset = self.number(query, "offset", 0)
        limit = min(self.number(query, "limit", 100), 100)
        for name in self.FILTERS:
            if name in query:
                wanted = query[name].split(",")
                items = [item for item in items if self.text(item.get(name)) in wanted]
        if "keyword" in query:
            word = query["keyword"].lower()
            items = [item for item in items if word in json.dumps(item).lower()]
        page = items[offset : offset + limit]
        return {
            "total": len(items),
            "count": len(page),
            "offset": offset,
            "limit": limit,
            "items": page,
        }

    @staticmethod
    def number(query, name, default):
        text = query.get(name, str(default))
        if not re.fullmatch("[0-9]{1,9}", text):
            raise Refusal(400, "WRONG_PARAMETER", f"Parameter {name} has a wrong value")
        return int(text)

    @staticmethod
    def text(value):
        return str(value).lower() if isinstance(value, bool) else str(value)

    def create(self, kind, body):
        required = self.REQUIRED[kind]
        if not body or not body.get(required):
            raise Refusal(400, "WRONG_PARAMETER", f"Field {required} is required")
        sku = body.get("sku")
        if sku and any(item.get("sku") == sku for item in self.items[kind].values()):
            raise Refusal(409, "SKU_ALREADY_EXISTS", f"SKU {sku} is already used")
        number = next(self.ids)
        self.items[kind][number] = {**body, "id": number}
        return {"id": number}


# --- The batch engine -----------------------------------------------------------------------------


class Job:
    """A batch at Ecwid. Nothing runs in the background: `advance` runs what should have run."""

    def __init__(self, ticket, calls, query, start):
        self.ticket, self.calls, self.start = ticket, calls, start
        self.width = 100 if query.get("allowParallelMode") == "true" else 1
        self.stops = query.get("stopOnFirstFailure") != "false"
        self.group = query.get("groupId")
        self.pending = collections.deque(range(len(calls)))
        self.running = []  # a heap of (time of the answer, number of the call, which try)
        self.rows = []
        self.unseen = 0  # requests that are done and have no row
        self.time = start  # up to when the job has been worked off
        self.done = False

    def advance(self, now, engine):
        """Work off what is due by `now`."""
        while not self.done:
            while self.pending and len(self.running) < self.width:
                number = self.pending.popleft()
                due = self.time + engine.latency_of(self.calls[number])
                heapq.heappush(self.running, (due, number, 1))
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
        line = http.client.responses.get(status, "")
        if status != 200:
            line = body.get("errorMessage", line)
        fields = {"httpBody": body, "httpStatusCode": status, "httpStatusLine": line}
        self.add_row(call, {"status": "COMPLETED" if status == 200 else "FAILED", **fields})
        if status != 200 and self.stops:
            for left in self.pending:
                self.add_row(self.calls[left], {"status": "NOT_EXECUTED"})
            self.pending.clear()

    def add_row(self, call, fields):
        row = {"id": call["id"]} if "id" in call else {}
        self.rows.append({**row, **fields})

    def cancel(self, shape):
        """Stop what has not run: it counts as COMPLETED, and never runs. Return whether any."""
        count = len(self.pending)
        for number in self.pending:
            if shape == "no row":
                self.unseen += 1
            elif shape == "code 0":
                self.add_row(self.calls[number], {"status": "COMPLETED", "httpStatusCode": 0})
            else:
                self.add_row(self.calls[number], {"status": "COMPLETED"})
        self.pending.clear()
        self.done = self.done or not self.running
        return count > 0

    @property
    def completed(self):
        return len(self.rows) + self.unseen

    @property
    def state(self):
        if self.done:
            return "COMPLETED"
        return "IN_PROGRESS" if self.completed else "QUEUED"

    def status(self, escaped, older):
        answer = {
            "status": self.state,
            "totalRequests": len(self.calls),
            "completedRequests": self.completed,
        }
        if escaped:
            answer["responses"] = [self.escaped(row) for row in self.rows]
        elif older:
            answer["responses"] = self.rows
        return answer

    @staticmethod
    def escaped(row):
        row = dict(row)
        if "httpBody" in row:
            row["escapedHttpBody"] = json.dumps(row.pop("httpBody"))
        return row


class Engine:
    """Ecwid without the HTTP: `handle` takes a request and returns an answer.

    latency         seconds that one wrapped call takes, or a function of the call that tells it
    time_scale      by which the 3 s between the tries of a failing call are multiplied
    rate_limit      calls a minute; None: no limit
    older           answer a status without escapedJson as the older reference has it, with rows
    cancelled_rows  how a cancelled request looks: "no row", "no code" or "code 0"
    shop            the shop; its `items` are dicts of dicts
    script          a function of the wrapped call (a dict with id, path, method and body) that
                    answers instead of the shop: (HTTP status, JSON), or None for the shop's answer
    ledger          every wrapped call that ran, in order: (ticket, call)
    requests        every request to the API itself: (method, path, query)
    """

    def __init__(
        self,
        *,
        latency=0.0,
        time_scale=0.0,
        rate_limit=600,
        older=False,
        cancelled_rows="no code",
    ):
        if cancelled_rows not in ("no row", "no code", "code 0"):
            raise ValueError("cancelled_rows must be 'no row', 'no code' or 'code 0'")
        self.store_id, self.token = 1003, f"secret_{uuid.uuid4().hex}"
        self.latency, self.time_scale, self.rate_limit = latency, time_scale, rate_limit
        self.older, self.cancelled_rows = older, cancelled_rows
        self.lock = threading.Lock()
        self.reset()

    def reset(self):
        """Forget everything but the options."""
        self.shop = Shop(self.store_id)
        self.script = None
        self.ledger, self.calls = [], []
        self.jobs, self.keys = {}, {}
        self.recent, self.blocked_until = collections.deque(), -math.inf
        self.early = 0  # calls during a block

    @property
    def requests(self):
        return [(method, path, query) for method, path, query, *_ in self.calls]

    def latency_of(self, call):
        return self.latency(call) if callable(self.latency) else self.latency

    def answer(self, ticket, call):
        """Return HTTP status and JSON for a wrapped call; an error of the script is a 500."""
        self.ledger.append((ticket, call))
        try:
            scripted = self.script(call) if self.script else None
            if scripted:
                return scripted
            body = call.get("body")
            if body and isinstance(body, str):
                body = json.loads(body)
            return self.shop.answer(call["method"], call["path"], body)
        except Exception as error:
            return 500, {
                "errorMessage": f"Internal error: {error!r}",
                "errorCode": "INTERNAL_ERROR",
            }

    def handle(self, method, target, headers, body):
        """Return (status, extra headers, JSON) for a request to `target`, behind /api/v3."""
        with self.lock:
            now = time.monotonic()
            self.advance(now)
            url = urllib.parse.urlsplit(target)
            query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
            _, store, path = [*url.path.split("/", 2), "", ""][:3]
            self.calls.append((method, f"/{path}", query, dict(headers), body))
            wait = self.limited(now)
            if wait > 0:
                refusal = Refusal(429, "RATE_LIMITED", "Too many requests")
                return 429, {"Retry-After": str(math.ceil(wait))}, refusal.answer()[1]
            try:
                self.check_access(headers, store)
                route = f"{path}?{url.query}" if url.query else path
                answer = self.routed(method, path, route, query, headers, body, now)
            except Refusal as refusal:
                status, answer = refusal.answer()
                return status, {}, answer
            return answer if isinstance(answer, tuple) else (200, {}, answer)

    def check_access(self, headers, store):
        if headers.get("Authorization") != f"Bearer {self.token}":
            raise Refusal(403, "INVALID_API_TOKEN", "Wrong token")
        if store != str(self.store_id):
            raise Refusal(404, "STORE_NOT_FOUND", f"Store {store} not found")

    def routed(self, method, path, route, query, headers, body, now):
        if (method, path) == ("POST", "batch"):
            return self.create(query, headers, body, now)
        if (method, path) == ("GET", "batch"):
            return self.find(query) if "status" in query else self.look(query)
        if (method, path) == ("DELETE", "batch"):
            return self.delete(query)
        if (method, path) == ("POST", "batch/cancel-group"):
            return self.cancel(query, headers, body, now)
        if path.partition("/")[0] == "batch":
            raise Refusal(405, "METHOD_NOT_ALLOWED", f"{method} /{path}")
        return self.direct(method, route, headers, body)

    def direct(self, method, route, headers, body):
        """Answer a REST call that is not wrapped in a batch."""
        if body:
            self.check_json(headers)
            try:
                body = json.loads(body)
            except ValueError:
                raise Refusal(400, "WRONG_PARAMETER", "No JSON") from None
        status, answer = self.shop.answer(method, route, body or None)
        return status, {}, answer

    @staticmethod
    def check_json(headers):
        if headers.get("Content-Type", "").partition(";")[0] != "application/json":
            raise Refusal(415, None, "Unsupported media type")

    def advance(self, now):
        """First come, first served: a job starts when the one before it is done."""
        free = -math.inf
        for job in self.jobs.values():
            if not job.done:
                if not job.running and not job.completed:
                    job.time = max(job.start, free)
                job.advance(now, self)
                if not job.done:
                    return
            free = max(free, job.time)

    def limited(self, now):
        """Return the seconds that the token is blocked for; a call in that time prolongs it."""
        while self.recent and self.recent[0] <= now - 60:
            self.recent.popleft()
        self.recent.append(now)
        if now < self.blocked_until:
            self.early += 1
            self.blocked_until += 1
        elif self.rate_limit and len(self.recent) > self.rate_limit:
            self.block(5)
        return max(0.0, self.blocked_until - now)

    def block(self, seconds):
        """Answer all calls with 429 for some seconds."""
        self.blocked_until = time.monotonic() + seconds

    def create(self, query, headers, body, now):
        self.check_json(headers)
        calls = self.checked_calls(body)
        key = query.get("deduplicationKey")
        if key is not None:
            try:
                uuid.UUID(key)
            except ValueError:
                raise Refusal(400, "WRONG_PARAMETER", "deduplicationKey is no UUID") from None
            ticket, made = self.keys.get(key, (None, 0))
            if ticket and now - made < 3600:
                return {"ticket": ticket}
        ticket = f"11kl{uuid.uuid4().hex[4:]}"  # as in the reference, not quite a UUID
        self.jobs[ticket] = Job(ticket, calls, query, now)
        if key is not None:
            self.keys[key] = ticket, now
        self.advance(now)
        return {"ticket": ticket}

    @staticmethod
    def checked_calls(body):
        problem = None
        try:
            calls = json.loads(body)
        except ValueError:
            calls, problem = [], "No JSON"
        if not problem and (not isinstance(calls, list) or not 1 <= len(calls) <= 500):
            calls, problem = [], "An array of 1 to 500 requests is expected"
        for number, call in enumerate(calls):
            for field in ("id", "path", "method"):
                value = call.get(field, "" if field == "id" else None) if call else None
                if not isinstance(value, str):
                    problem = problem or f"Path $[{number}].{field} contains bad value"
        if problem:
            text = f"Can't create batch. Batch request body is invalid. {problem}"
            raise Refusal(400, "WRONG_PARAMETER", text)
        return calls

    def find(self, query):
        if query["status"] not in ("QUEUED", "IN_PROGRESS", "COMPLETED"):
            raise Refusal(400, "WRONG_PARAMETER", "Parameter status has a wrong value")
        found = [job for job in self.jobs.values() if job.state == query["status"]]
        offset, limit = Shop.number(query, "offset", 0), Shop.number(query, "limit", 100)
        page = found[offset : offset + min(limit, 100)]
        items = [{"ticket": job.ticket, "status": job.state} for job in page]
        return items if self.older else {"items": items}

    def look(self, query):
        job = self.jobs.get(query.get("ticket"))
        if job is None:
            raise Refusal(404, "NOT_FOUND", "Batch not found")
        return job.status(query.get("escapedJson") == "true", self.older)

    def delete(self, query):
        job = self.jobs.pop(query.get("ticketId") or query.get("ticket"), None)
        if job:
            job.cancel(self.cancelled_rows)
        return {"deleteCount": int(job is not None)}

    def cancel(self, query, headers, body, now):
        form = headers.get("Content-Type", "").partition(";")[0]
        if form == "application/x-www-form-urlencoded":  # as the official client sends it
            query = {**query, **dict(urllib.parse.parse_qsl((body or b"").decode()))}
        group = query.get("groupId")
        if not group:
            raise Refusal(400, "WRONG_PARAMETER", "groupId is required")
        jobs = [job for job in self.jobs.values() if job.group == group]
        stopped = [job for job in jobs if job.cancel(self.cancelled_rows)]
        self.advance(now)
        return {"updateCount": int(bool(stopped))}


# --- The HTTP face, and its faults ----------------------------------------------------------------

FAULTS = {
    "refused": "the connection is reset before the request is read",
    "reset": "the connection is reset after the request is read",
    "reset after": "Ecwid acts on the request; then the connection is reset",
    "500": "an internal error; nothing is done",
    "500 after": "Ecwid acts on the request, and answers with an internal error",
    "503 busy": "503 with Retry-After: 2",
    "408 after": "Ecwid acts on the request, and answers that it took too long",
    "429": "429 without Retry-After",
    "429 soon": "429 with Retry-After: 3",
    "block": "Ecwid answers everything with 429 for 5 s, and each early call prolongs that by 1 s",
    "html 502": "a proxy's error page",
    "html 200": "a proxy's page with status 200",
    "html 200 after": "Ecwid acts on the request, and a proxy answers with a page",
    "empty after": "Ecwid acts on the request; the answer is empty",
    "cut off after": "Ecwid acts on the request; half of the answer comes",
    "cut gzip after": "Ecwid acts on the request; most of a compressed answer comes",
    "broken gzip after": "Ecwid acts on the request; the compressed answer is broken",
    "odd JSON after": "Ecwid acts on the request; the answer is JSON of another form",
    "redirect": "307 to another host",
    "lost rows": "the next answer with responses lacks the last of them",
    "repeated rows": "the next answer with responses has the first of them twice, contradictory",
    "odd counts": "the next answer with responses has counts that are not numbers",
}  # "after": Ecwid acts on the request, and only its answer suffers
ROW_FAULTS = ("lost rows", "repeated rows", "odd counts")
HTML = b"<html><body>A proxy speaking</body></html>"


class Faults(collections.deque):
    """The faults to come. Raises ValueError for one that does not exist."""

    @staticmethod
    def checked(fault):
        if fault is not None and not callable(fault) and fault not in FAULTS:
            raise ValueError(f"no fault {fault!r}; there are: {', '.join(map(repr, FAULTS))}")
        return fault

    def append(self, fault):
        super().append(self.checked(fault))

    def appendleft(self, fault):
        super().appendleft(self.checked(fault))

    def extend(self, faults):
        for fault in list(faults):
            self.append(fault)

    def __iadd__(self, faults):
        self.extend(faults)
        return self


class StandIn(Engine):
    """The engine on loopback, over real HTTP: `with StandIn() as ecwid:`.

    client()  returns an EcwidClient for it; options are those of EcwidClient
    environment
              what EcwidClient.from_env() reads, as a dict, for code that makes its own client
    faults    what is to go wrong, one item a request, oldest first: a name from FAULTS, None, or a
              function that is called with the http.server handler and answers the request itself

    The rest of its surface (shop, script, ledger, requests, latency, time_scale) is that of Engine.
    `reset()` makes it as new.
    """

    def __init__(self, port=0, **options):
        super().__init__(**options)
        handler = type("Handler", (Handler,), {"standin": self})
        self.server = Server(("127.0.0.1", port), handler)
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/api/v3"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def reset(self):
        super().reset()
        self._faults = Faults()

    @property
    def faults(self):
        return self._faults

    @faults.setter
    def faults(self, faults):
        self._faults = Faults()
        self._faults.extend(faults)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc_info):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def environment(self):
        """The environment that makes EcwidClient.from_env() a client of the stand-in."""
        return {
            "ECWID_BASE_URL": self.base_url,
            "ECWID_STORE_ID": str(self.store_id),
            "ECWID_TOKEN": self.token,
        }

    def client(self, **options):
        library = find_library()
        return library.EcwidClient(
            self.store_id, self.token, **{"base_url": self.base_url, **options}
        )


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 100

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):  # those: the client is gone
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    standin: StandIn

    def do_GET(self):
        fault = self.next_fault()
        if fault == "refused":
            self.reset()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if callable(fault):
            fault(self)
        elif fault is None:
            self.send(*self.engine_answer(body))
        elif fault in ROW_FAULTS:
            status, headers, answer = self.engine_answer(body)
            self.send(status, headers, with_odd_rows(fault, answer))
        else:
            answer = self.engine_answer(body) if "after" in fault else None
            self.fail(fault, answer)

    do_POST = do_PUT = do_DELETE = do_GET

    def next_fault(self):
        faults = self.standin.faults
        if not faults or (faults[0] in ROW_FAULTS and "escapedJson=true" not in self.path):
            return None
        return faults.popleft()

    def engine_answer(self, body):
        target = self.path
        if target.startswith("/api/v3/"):
            target = target[len("/api/v3") :]
        return self.standin.handle(self.command, target, self.headers, body)

    def fail(self, fault, answer):
        """Answer with a fault; `answer` is what Ecwid would have said, where it acted."""
        error = {"errorMessage": "Internal error", "errorCode": "INTERNAL_ERROR"}
        text = json.dumps(answer and answer[2]).encode()
        if fault.startswith("reset"):
            self.reset()
        elif fault == "block":
            self.standin.block(5)
            self.send(429, {"Retry-After": "5"}, {"errorCode": "RATE_LIMITED"})
        elif fault in ("500", "500 after"):
            self.send(500, {}, error)
        elif fault == "503 busy":
            self.send(503, {"Retry-After": "2"}, {"errorMessage": "Busy"})
        elif fault == "408 after":
            self.send(408, {}, {"errorMessage": "Timeout", "errorCode": "TIMEOUT"})
        elif fault in ("429", "429 soon"):
            headers = {"Retry-After": "3"} if "soon" in fault else {}
            self.send(429, headers, {"errorMessage": "Slow down", "errorCode": "RATE_LIMITED"})
        elif fault == "redirect":
            self.send(307, {"Location": "http://localhost:9/"}, {})
        elif fault.startswith("html"):
            self.raw(int(fault.split()[1]), {"Content-Type": "text/html"}, HTML)
        elif fault == "empty after":
            self.raw(200, {}, b"")
        elif fault == "odd JSON after":
            self.send(200, {}, ["odd"])
        elif fault == "cut off after":
            self.raw(200, {"Content-Length": str(len(text))}, text[: len(text) // 2])
        elif fault == "cut gzip after":
            self.raw(200, {"Content-Encoding": "gzip"}, gzip.compress(text)[:-12])
        elif fault == "broken gzip after":
            self.raw(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08 this is no gzip")

    def send(self, status, headers, answer):
        body = json.dumps(answer).encode()
        headers = {"Content-Type": "application/json;charset=UTF-8", **headers}
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        self.raw(status, headers, body)

    def raw(self, status, headers, body):
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "Connection": "close", **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def finish(self):
        with contextlib.suppress(OSError, ValueError):  # the client has gone, or `reset` came first
            super().finish()

    def log_message(self, *args):
        pass


def with_odd_rows(fault, answer):
    """Return a status with what a fault of its rows makes of it."""
    answer = dict(answer)
    rows = list(answer.get("responses", ()))
    if fault == "lost rows":
        rows = rows[:-1]
    elif fault == "repeated rows":
        rows += [{**row, "status": "FAILED", "httpStatusCode": 500} for row in rows[:1]]
    else:
        answer["totalRequests"] = "many"
    return {**answer, "responses": rows}


# --- demo and serve -------------------------------------------------------------------------------


def demo():
    """Run the reference's example through the real client, and show what happens."""
    with StandIn(latency=0.1) as ecwid:
        client = ecwid.client()
        batch = ecwid_batch.Batch.from_json(EXAMPLE, allow_parallel_mode=False)
        print(f"A stand-in for Ecwid is at {ecwid.base_url}, store {ecwid.store_id}.\n")
        print(f"POST /batch?{urllib.parse.urlencode(batch.query)}")
        for id, request in zip(batch.ids, batch):
            print(f"  {id}  {request.method:6} {request.path}")
        print("\nThe stand-in takes the batch, but its answer gets lost on the way:")
        ecwid.faults.append("reset after")
        logging.basicConfig(format="  %(message)s", stream=sys.stdout)
        ticket = client.submit(batch)
        print(f"The same bytes went out again, under the same key. Ticket {ticket}.\n")

        def show(status):
            counts = f"{status.completed_requests} of {status.total_requests}"
            print(f"  {status.status:11} {counts}", flush=True)

        status = client.wait(ticket, batch=batch, timeout=30, on_progress=show)
        print()
        for response in status:
            text = json.dumps(response.body)
            dots = "..." if len(text) > 60 else ""
            code = response.http_status_code
            print(f"  {response.id}  {response.status} {code}  {text[:60]}{dots}")
        submissions = sum(
            path == "/batch" for method, path, _ in ecwid.requests if method == "POST"
        )
        ran = [call["id"] for _, call in ecwid.ledger]
        print(f"\nThe stand-in's ledger: {submissions} submissions, {len(ecwid.jobs)} batch.")
        print(f"Calls that ran: {', '.join(ran)}. Nothing was lost, and nothing ran twice.")
        return 0 if len(status.succeeded) == 3 and ran == list(batch.ids) else 1


def serve(args):
    """Run the stand-in alone, until Ctrl-C."""
    try:
        standin = StandIn(port=args.port, latency=args.latency, time_scale=1.0)
        standin.faults.extend(args.fault)
    except (OSError, ValueError) as error:
        sys.exit(f"serve: {error}")
    with standin as ecwid:
        print("export", *(f"{name}={value}" for name, value in ecwid.environment.items()))
        print("# a stand-in for Ecwid listens there. Set this in another shell, then run")
        print("# ecwid_batch.py. Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    return 0


def main(argv=None):
    parser = argparse.ArgumentParser(description="A local stand-in for Ecwid.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="run the reference's example, and show what happens")
    server = commands.add_parser(
        "serve",
        help="run the stand-in alone",
        epilog="\n".join(f"{name!r}: {text}" for name, text in FAULTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    server.add_argument("--port", type=int, default=0, help="default: any free port")
    server.add_argument(
        "--latency", type=float, default=0.05, help="seconds a wrapped call takes (default: 0.05)"
    )
    server.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME",
        help="what is to go wrong with the first request, the second, ...; see below",
    )
    args = parser.parse_args(argv)
    return demo() if args.command == "demo" else serve(args)


ecwid_batch = None
with contextlib.suppress(ImportError):  # the stand-in alone does not need it before client()
    ecwid_batch = find_library()
if ecwid_batch is not None:
    ApiError = ecwid_batch.ApiError
    Batch = ecwid_batch.Batch
    BatchFailedError = ecwid_batch.BatchFailedError
    BatchRequest = ecwid_batch.BatchRequest
    BatchResponse = ecwid_batch.BatchResponse
    BatchStatus = ecwid_batch.BatchStatus
    BatchTimeoutError = ecwid_batch.BatchTimeoutError
    EcwidClient = ecwid_batch.EcwidClient
    EcwidError = ecwid_batch.EcwidError
    InvalidResponseError = ecwid_batch.InvalidResponseError
    RateLimitError = ecwid_batch.RateLimitError
    TransportError = ecwid_batch.TransportError


# --- Tests: what they stand on --------------------------------------------------------------------

HERE = pathlib.Path(__file__).resolve().parent
KEY = "8b0f3c5e-4f0e-4f0a-9d5e-0a6f1f8f7a11"
HOUR = 3600
CLEAN_ENV = {
    "PATH": os.environ.get("PATH", os.defpath),
    "LANG": "C",
    "PYTHONPATH": str(HERE),
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Clock:
    """Virtual time: time.sleep returns at once, and all clocks have moved on."""

    def __init__(self):
        self.now, self.sleeps, self.suspended = time.monotonic(), [], 0.0
        self.epoch = time.time() - self.now

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds

    def monotonic(self):
        return self.now

    def time(self):
        return self.epoch + self.now + self.suspended  # the monotonic clock stands still meanwhile

    def __enter__(self):
        self.patches = [
            mock.patch("time.sleep", self.sleep),
            mock.patch("time.monotonic", self.monotonic),
            mock.patch("time.time", self.time),
        ]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *exc_info):
        for patch in self.patches:
            patch.stop()


class Direct:
    """An opener that asks an engine in this process; each call takes some time of the clock.

    fault  a function that is called for each request, to raise an error, before Ecwid acts or
           after (then its argument is True)
    """

    def __init__(self, engine, clock, seconds=0.15):
        self.engine, self.clock, self.seconds = engine, clock, seconds
        self.fault = lambda after: None

    def open(self, request, timeout):
        self.clock.now += min(self.seconds, timeout)
        if self.seconds > timeout:
            raise socket.timeout("timed out")
        self.fault(False)
        headers = {name.title(): value for name, value in request.header_items()}
        target = request.selector[len("/api/v3") :]
        answer = self.engine.handle(request.get_method(), target, headers, request.data)
        self.fault(True)
        return opened(request.full_url, *answer)


def opened(url, status, headers, answer):
    """Return what an opener returns for an answer, or raise what it raises for an error."""
    message = http.client.HTTPMessage()
    for name, value in headers.items():
        message[name] = value
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    if status >= 400:
        raise urllib.error.HTTPError(url, status, "", message, io.BytesIO(body))
    return urllib.response.addinfourl(io.BytesIO(body), message, url, status)


@contextlib.contextmanager
def virtual(seconds=0.15, client_options=(), **options):
    """Yield an engine, a client that asks it directly, and the clock that both live by."""
    with Clock() as clock:
        engine = Engine(**{"rate_limit": None, **options})
        opener = Direct(engine, clock, seconds)
        client = EcwidClient(engine.store_id, engine.token, opener=opener, **dict(client_options))
        yield engine, client, clock


def creates(count, start=0):
    return [
        BatchRequest.post("/products", {"sku": f"sku-{n}", "name": "n"})
        for n in range(start, start + count)
    ]


def gets(count):
    return [BatchRequest.get("/profile", {"n": n}) for n in range(count)]


def ran(engine):
    """Return the SKUs that were created, in order."""
    return [call["body"]["sku"] for _, call in engine.ledger if call["method"] == "POST"]


def skus(count, start=0):
    return [f"sku-{n}" for n in range(start, start + count)]


def status_of(*rows, status="COMPLETED", total=None, completed=None):
    """Return a BatchStatus of rows in the API's field names."""
    return BatchStatus.from_dict(
        {
            "status": status,
            "totalRequests": len(rows) if total is None else total,
            "completedRequests": len(rows) if completed is None else completed,
            "responses": list(rows),
        }
    )


def row(id="000001", status="COMPLETED", code=200, **fields):
    return {"id": id, "status": status, "httpStatusCode": code, **fields}


class TestCase(unittest.TestCase):
    def setUp(self):
        logger = logging.getLogger("ecwid_batch")
        level, handlers, propagate = logger.level, list(logger.handlers), logger.propagate

        def restore():
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)

        self.addCleanup(restore)
        logger.setLevel(logging.CRITICAL)  # retries are many here, and expected
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background
            signal.signal(signal.SIGINT, signal.default_int_handler)

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

    def folder(self):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        return pathlib.Path(folder)

    def raises(self, kinds, words):
        """Like assertRaises, and the message has the words."""
        return self.assertRaisesRegex(kinds, re.escape(words))

    def fails(self, call, kind, words):
        """Check that a call raises an error with these words, and return it."""
        with self.assertRaises(kind) as caught:
            call()
        self.assertIn(words, str(caught.exception))
        return caught.exception


class WithStandIn(TestCase):
    """Tests that share one stand-in, which is as new for each of them."""

    @classmethod
    def setUpClass(cls):
        cls.ecwid = StandIn(rate_limit=None)
        cls.ecwid.__enter__()
        cls.addClassCleanup(cls.ecwid.__exit__)

    def setUp(self):
        super().setUp()
        self.ecwid.latency, self.ecwid.rate_limit = 0.0, None
        self.ecwid.older, self.ecwid.cancelled_rows = False, "no code"
        self.ecwid.reset()


# --- Tests: requests and batches ------------------------------------------------------------------


class Paths(TestCase):
    def test_params_are_percent_encoded(self):
        for params, query in (
            ({"test": "tèst"}, "?test=t%C3%A8st"),
            ({"url": "https://a.b?c=d"}, "?url=https%3A%2F%2Fa.b%3Fc%3Dd"),
            ({"keyword": "a b&c=d+e/f#g"}, "?keyword=a%20b%26c%3Dd%2Be%2Ff%23g"),
            ({"paymentStatus": ["PAID", "AWAITING"]}, "?paymentStatus=PAID,AWAITING"),
            ({"ids": (1, 2), "a": True, "b": False, "c": None}, "?ids=1,2&a=true&b=false"),
            ({"price": decimal.Decimal("1.10"), "n": 0, "e": ""}, "?price=1.10&n=0&e="),
            ({"word": "nan"}, "?word=nan"),
            ({"left": None}, ""),
            ({}, ""),
            (None, ""),
        ):
            with self.subTest(params=params):
                self.assertEqual(BatchRequest.get("/orders", params).path, "/orders" + query)
        self.assertEqual(BatchRequest.delete("/orders?a=1", {"b": 2}).path, "/orders?a=1&b=2")
        with self.raises(TypeError, "path must be a str such as '/products', not int"):
            BatchRequest.get(42, {"a": 1})

    def test_params_that_cannot_be_written_are_refused(self):
        for params, kind, words in (
            ({"a": {"b": 1}}, TypeError, "parameter a must be text"),
            ({"a": b"b"}, TypeError, "parameter a must be text"),
            ({"a": [None]}, TypeError, "parameter a must be text"),
            ({"a": [[1]]}, TypeError, "parameter a must be text"),
            ({1: "a"}, TypeError, "the name of a parameter must be a str"),
            ({"": 1}, ValueError, "the name of a parameter must not be empty"),
            ("limit=1", TypeError, "params must be a mapping such as {'limit': 1}"),
            ({"a": math.nan}, ValueError, "parameter a must be a number that can be written"),
            ({"a": -math.inf}, ValueError, "parameter a must be a number that can be written"),
            ({"a": decimal.Decimal("sNaN")}, ValueError, "a number that can be written"),
        ):
            with self.subTest(params=params), self.raises(kind, words):
                BatchRequest.get("/orders", params)

    def test_every_method_takes_what_it_needs(self):
        get = BatchRequest.get("/a", {"x": 1}, id="g")
        post = BatchRequest.post("/a", {"y": 2}, {"x": 1}, id="p")
        put = BatchRequest.put("/a", [3], {"x": 1}, id="u")
        delete = BatchRequest.delete("/a", {"x": 1}, id="d")
        found = [(r.method, r.path, r.body, r.id) for r in (get, post, put, delete)]
        self.assertEqual(found[0], ("GET", "/a?x=1", None, "g"))
        self.assertEqual(found[1], ("POST", "/a?x=1", {"y": 2}, "p"))
        self.assertEqual(found[2], ("PUT", "/a?x=1", [3], "u"))
        self.assertEqual(found[3], ("DELETE", "/a?x=1", None, "d"))

    def test_what_a_url_cannot_hold_is_encoded_and_what_is_encoded_stays(self):
        for path, sent in (
            ("/products/a b", "/products/a%20b"),
            ("/products?keyword=crème", "/products?keyword=cr%C3%A8me"),
            ("/products?keyword=a%20b%2Fc", "/products?keyword=a%20b%2Fc"),
            ("/products?keyword=100%", "/products?keyword=100%25"),
            ('/products?keyword=<"a|b">', "/products?keyword=%3C%22a%7Cb%22%3E"),
            ("/orders?a=1&paymentStatus=A,B", "/orders?a=1&paymentStatus=A,B"),
            ("/coupons/A+B?keyword=a+b", "/coupons/A%2BB?keyword=a+b"),
            ("/products?keyword=../x%0a", "/products?keyword=../x%0a"),
            ("/products/..a/b..", "/products/..a/b.."),
            ("/api/v4", "/api/v4"),
            ("/", "/"),
        ):
            with self.subTest(path=path):
                self.assertEqual(BatchRequest("GET", path).path, sent)
                self.assertEqual(BatchRequest("GET", sent).path, sent)

    def test_a_path_that_leads_elsewhere_is_refused_with_advice(self):
        begin, leave, control = "begin with one '/'", "without a '..' segment", "control characters"
        for path, advice in (
            ("orders", begin),
            ("", begin),
            ("?a=1", begin),
            ("https://app.ecwid.com/api/v3/1003/orders", begin),
            ("//example.com/orders", begin),
            ("/..", leave),
            ("/a/../b", leave),
            ("/a/%2e%2e/b", leave),
            ("/a/.%2E/b?x=1", leave),
            ("/a/%252e%252e/b", leave),
            ("/a/..%2fb", leave),
            ("/a/..\\b", leave),
            ("/a/..%5cb", leave),
            ("/a/..;x=1/b", leave),
            ("/a/..%3Fx", leave),
            ("/a/..%23", leave),
            ("/a/ ../b", leave),
            ("/..%00/b", control),
            ("/a%0ab", control),
            ("/a%250ab", control),
            ("/orders\n", control),
            ("/or\x00ders", control),
            ("/orders?a=\x7f", control),
            ("/orders?a=\ud800", "lone surrogates"),
            ("/orders#top", "write '#' as %23"),
            ("/api/v3/1003/orders", "must not repeat /api/v3/{storeId}"),
            ("/api/v3", "must not repeat /api/v3/{storeId}"),
            ("/%61pi/v3/1003/orders", "must not repeat /api/v3/{storeId}"),
            ("/%2525252525", "percent-encoded more than four times"),
        ):
            with self.subTest(path=path), self.raises(ValueError, advice):
                BatchRequest("GET", path)

    def test_a_long_path_is_checked_in_linear_time(self):
        def steps(path):
            with mock.patch("urllib.parse.unquote", side_effect=urllib.parse.unquote) as unquote:
                with contextlib.suppress(ValueError):
                    BatchRequest("GET", path)
            return unquote.call_count

        self.assertLessEqual(steps("/%" + "25" * 16_000), 5)
        self.assertLessEqual(steps("/%%" + "32%35" * 8_000), 5)

    def test_a_token_in_the_path_is_refused_and_not_shown(self):
        for query in ("token=secret_a", "a=1&%74oken=secret_a", "Access_Token=secret_a"):
            for path in (f"/orders?{query}", f"https://app.ecwid.com/orders?{query}"):
                with self.raises(ValueError, "must not hold a token") as caught:
                    BatchRequest("GET", path)
                self.assertNotIn("secret_a", str(caught.exception))
        with self.raises(ValueError, "must not have a fragment") as caught:
            BatchRequest("GET", "/orders#token=secret_a")
        self.assertNotIn("secret_a", str(caught.exception))

    def test_wrong_methods_paths_and_ids_are_refused(self):
        for arguments, kind, advice in (
            (("get", "/a"), ValueError, "GET, POST, PUT, DELETE"),
            (("PATCH", "/a"), ValueError, "GET, POST, PUT, DELETE"),
            ((None, "/a"), ValueError, "GET, POST, PUT, DELETE"),
            (("GET", None), TypeError, "path must be a str such as '/products'"),
            (("GET", b"/a"), TypeError, "path must be a str such as '/products'"),
            (("GET", "/a", None, 1), TypeError, "id must be a str"),
            (("GET", "/a", None, ""), ValueError, "id must not be empty"),
            (("GET", "/a", None, "\ud800"), ValueError, "id must not hold lone surrogates"),
        ):
            with self.subTest(arguments=arguments), self.raises(kind, advice):
                BatchRequest(*arguments)


class RequestsAreSnapshots(TestCase):
    def test_changing_and_reusing_a_body_changes_nothing(self):
        body = {"price": 1}
        one = BatchRequest.put("/products/1", body)
        body["price"] = 2
        two = BatchRequest.put("/products/1", body)
        batch = Batch([one, two])
        body["price"] = 3
        prices = [item["body"]["price"] for item in json.loads(batch.to_json())]
        self.assertEqual(prices, [1, 2])
        self.assertNotEqual(one, two)
        self.assertEqual(len({one, two, BatchRequest.put("/products/1", {"price": 1})}), 2)

    def test_a_request_cannot_change(self):
        with self.assertRaises(dataclasses.FrozenInstanceError):
            BatchRequest.get("/a").path = "/b"
        changed = dataclasses.replace(BatchRequest.put("/a", 1), body=2)
        self.assertIn(b'"body": 2', Batch([changed]).to_json())

    def test_a_body_that_json_cannot_hold_is_refused_where_it_is_given(self):
        deep, circular = [], []
        circular.append(circular)
        for _ in range(100_000):
            deep = [deep]
        for body, kind, words in (
            ({"a": {1}}, TypeError, "PUT /a: the body cannot be JSON: set is not a JSON type"),
            (b"x", TypeError, "put a URL into the externalUrl parameter"),
            ({"a": math.nan}, ValueError, "PUT /a: the body cannot be JSON"),
            ([math.inf], ValueError, "PUT /a: the body cannot be JSON"),
            ([decimal.Decimal("NaN")], ValueError, "NaN is not a JSON number"),
            (circular, ValueError, "PUT /a: the body cannot be JSON"),
            (deep, ValueError, "PUT /a: the body cannot be JSON"),
        ):
            with self.subTest(words=words), self.raises(kind, words):
                BatchRequest.put("/a", body)
        while deep:  # freed layer by layer, since some interpreters recurse
            deep = deep.pop()

    def test_the_encoder_of_another_python_writes_the_same(self):
        body = {"a": [1, 2.5, "ü", None, True, decimal.Decimal("1.10")], "b": {"c": ""}}
        texts = {BatchRequest.put("/a", body)._json}
        for replaced in (None, lambda: None):
            with mock.patch("json.encoder.c_make_encoder", replaced, create=True):
                encoder = ecwid_batch._make_encoder()
            with mock.patch("ecwid_batch._encode", encoder):
                texts.add(BatchRequest.put("/a", body)._json)
        self.assertEqual(len(texts), 1)
        self.assertIn('"\\u00fc", null, true, 1.10]', texts.pop())


class Batches(TestCase):
    def test_missing_ids_are_given_by_position_and_step_aside_for_the_callers(self):
        for ids, given in (
            ([None, None], ("000001", "000002")),
            (["a", None], ("a", "000002")),
            (["000002", None], ("000002", "000003")),
            (["000001", None, "000002"], ("000001", "000003", "000002")),
        ):
            with self.subTest(ids=ids):
                requests = [BatchRequest.get("/a", id=id) for id in ids]
                batch = Batch(iter(requests))
                self.assertEqual(batch.ids, given)
                self.assertEqual([item["id"] for item in json.loads(batch.to_json())], list(given))
                for mine, theirs in zip(requests, batch.requests):
                    self.assertIs(mine, theirs)

    def test_wrong_requests_are_refused(self):
        for requests, kind, words in (
            ([], ValueError, "1 to 500 requests, not none"),
            (gets(501), ValueError, "at most 500 requests; Batch.split and EcwidClient.stream"),
            ([BatchRequest.get("/a"), {"path": "/b"}], TypeError, "request 2 must be a BatchReq"),
            ([BatchRequest.get("/a", id="x")] * 2, ValueError, "request 2 (GET /a): the id 'x'"),
        ):
            with self.subTest(words=words), self.raises(kind, words):
                Batch(requests)
        self.assertEqual(len(Batch(gets(500))), 500)

    def test_wrong_options_are_refused(self):
        for options, kind, words in (
            ({"allow_parallel_mode": 1}, TypeError, "must be a bool or None, not 1"),
            ({"stop_on_first_failure": "no"}, TypeError, "must be a bool or None, not 'no'"),
            ({"deduplication_key": "x"}, ValueError, "deduplication_key must be a UUID such as"),
            ({"deduplication_key": ""}, ValueError, "deduplication_key must be a UUID such as"),
            ({"group_id": ""}, ValueError, "group_id must not be empty"),
            ({"group_id": 7}, TypeError, "group_id must be a str"),
            ({"group": "x"}, TypeError, "group"),
        ):
            for make in (
                lambda: Batch(gets(1), **options),
                lambda: Batch.split(gets(1), **options),
                lambda: Batch.from_json(EXAMPLE, **options),
                lambda: EcwidClient(1, "t").stream(gets(1), **options),
            ):
                with self.subTest(options=options), self.raises(kind, words):
                    make()

    def test_the_query_has_what_was_chosen_and_always_a_key(self):
        batch = Batch(
            gets(1),
            allow_parallel_mode=True,
            stop_on_first_failure=False,
            deduplication_key=KEY.upper(),
            group_id="night",
        )
        self.assertEqual(
            batch.query,
            {
                "allowParallelMode": "true",
                "stopOnFirstFailure": "false",
                "deduplicationKey": KEY,
                "groupId": "night",
            },
        )
        one, two = Batch(gets(1)), Batch(gets(1))
        self.assertEqual(list(one.query), ["deduplicationKey"])
        self.assertNotEqual(one.query, two.query)

    def test_bodies_are_sent_as_they_are(self):
        batch = Batch(
            [
                BatchRequest.get("/a"),
                BatchRequest("GET", "/a", ""),
                BatchRequest.put("/a", {"price": decimal.Decimal("19.90"), "ü": "\u2028"}),
            ]
        )
        self.assertEqual(
            batch.to_json().decode(),
            '[{"id": "000001", "path": "/a", "method": "GET"}, '
            '{"id": "000002", "path": "/a", "method": "GET", "body": ""}, '
            '{"id": "000003", "path": "/a", "method": "PUT", '
            '"body": {"price": 19.90, "\\u00fc": "\\u2028"}}]',
        )

    def test_the_references_example_reads_and_writes_as_it_is(self):
        for source in (EXAMPLE, EXAMPLE.encode(), b"\xef\xbb\xbf" + EXAMPLE.encode()):
            self.assertEqual(json.loads(Batch.from_json(source).to_json()), json.loads(EXAMPLE))
        parsed = Batch.from_json(json.loads(EXAMPLE), group_id="g", allow_parallel_mode=True)
        self.assertEqual(json.loads(parsed.to_json()), json.loads(EXAMPLE))
        self.assertEqual((parsed.group_id, parsed.allow_parallel_mode), ("g", True))

    def test_json_that_is_no_batch_is_refused_saying_where(self):
        for source, kind, words in (
            ("{", ValueError, "the batch is not JSON"),
            (b"\xff", ValueError, "the batch is not JSON"),
            ("[NaN]", ValueError, "the batch is not JSON: NaN is not JSON"),
            ("[" * 100_000, ValueError, "the batch is not JSON"),
            ("{}", TypeError, "must be a JSON array of requests, not dict"),
            ({}, TypeError, "must be a JSON array of requests, not dict"),
            (None, TypeError, "must be a JSON array of requests, not NoneType"),
            ("[]", ValueError, "1 to 500 requests, not none"),
            ("[1]", ValueError, "request 1: must be a JSON object with method and path"),
            ('[{"path": "/a"}]', ValueError, "request 1: must be a JSON object with method"),
            ('[{"path": "/a", "method": "GET", "x": 1}]', ValueError, "unknown field 'x'"),
            ('[{"path": 5, "method": "GET"}]', ValueError, "request 1: path must be a str"),
        ):
            with self.subTest(source=str(source)[:40]), self.raises(kind, words):
                Batch.from_json(source)

    def test_a_batch_can_be_pickled_compared_and_replaced(self):
        batch = Batch.from_json(EXAMPLE, group_id="g")
        again = pickle.loads(pickle.dumps(batch))
        self.assertEqual((again, again.to_json()), (batch, batch.to_json()))
        self.assertEqual(hash(again), hash(batch))
        replaced = dataclasses.replace(batch, group_id="h")
        self.assertEqual((replaced.group_id, replaced.ids), ("h", batch.ids))
        begun = batch._key_age()
        with mock.patch("time.monotonic", return_value=0.0):  # another host
            again = pickle.loads(pickle.dumps(batch))
            self.assertEqual(again._key_age().since, begun.since)
            self.assertLess(again._key_age().seconds(), 60)
        self.assertEqual(list(batch), list(batch.requests))

    def test_reprs_are_one_short_line(self):
        long = [BatchRequest.put("/products/" + "9" * 100, {"a": "b" * 1000})] * 500
        self.assertEqual(repr(Batch(gets(1))), "<Batch of 1: GET /profile?n=0>")
        self.assertLess(len(repr(Batch(long))), 200)
        self.assertTrue(repr(Batch(long)).startswith("<Batch of 500: PUT /products/999"))
        status = status_of(row(status="FAILED", code=404, httpStatusLine="x\n" * 200))
        self.assertEqual(repr(status), "<BatchStatus COMPLETED 1/1>")
        self.assertTrue(repr(status.responses[0]).startswith("<BatchResponse 000001 FAILED 404 x"))
        self.assertLess(len(repr(status.responses[0])), 130)
        self.assertNotIn("\n", repr(status.responses[0]))


class Splitting(TestCase):
    def test_batches_are_made_as_they_are_asked_for_and_ids_go_on(self):
        read = []
        batches = Batch.split((read.append(r) or r for r in gets(7)), batch_size=3, group_id="g")
        self.assertEqual(read, [])
        self.assertEqual(next(batches).ids, ("000001", "000002", "000003"))
        self.assertEqual(len(read), 3)
        rest = list(batches)
        self.assertEqual([batch.ids[0] for batch in rest], ["000004", "000007"])
        self.assertEqual(rest[-1].group_id, "g")
        self.assertEqual(list(Batch.split([])), [])
        self.assertEqual([len(batch) for batch in Batch.split(gets(501))], [500, 1])

    def test_keys_come_from_the_jobs_key_the_place_and_the_content(self):
        def keys(requests, key=KEY):
            batches = Batch.split(requests, batch_size=2, deduplication_key=key)
            return [batch.deduplication_key for batch in batches]

        same = gets(1) * 6
        self.assertEqual(len(set(keys(same))), 3)
        self.assertEqual(keys(same), keys(same))
        self.assertNotEqual(keys(same)[0], keys(same, str(uuid.uuid4()))[0])
        self.assertEqual(keys(gets(3))[0], keys(gets(2) + creates(1))[0])
        self.assertNotEqual(keys(gets(3))[1], keys(gets(2) + creates(1))[1])

    def test_errors_name_the_request_by_its_place_in_the_job(self):
        batches = Batch.split([*gets(4), "x"], batch_size=3)
        next(batches)
        with self.raises(TypeError, "request 5 must be a BatchRequest, not str"):
            next(batches)
        for size, kind in ((0, ValueError), (501, ValueError), ("5", TypeError), (True, TypeError)):
            with self.raises(kind, "batch_size must be"):
                Batch.split(gets(1), batch_size=size)
        with self.assertRaises(TypeError):
            Batch.split(None)


# --- Tests: responses and statuses ----------------------------------------------------------------


class Statuses(TestCase):
    def test_every_form_of_the_reference_is_read(self):
        for fields, body in (
            ({"escapedHttpBody": '{"id": 1}', "httpStatusCode": 200}, {"id": 1}),
            ({"httpBody": {"id": 1}, "httpStatusCode": 200}, {"id": 1}),
            ({"httpBody": {"id": 1}, "httpCode": 200}, {"id": 1}),
            ({"escapedHttpBody": "<html>", "httpStatusCode": 201}, "<html>"),
            ({"escapedHttpBody": "[" * 100_000, "httpStatusCode": 200}, "[" * 100_000),
            ({"httpStatusCode": 204}, None),
        ):
            with self.subTest(fields=str(fields)[:60]):
                (response,) = status_of({"id": "a", "status": "COMPLETED", **fields})
                self.assertEqual((response.body, response.ok), (body, True))
                self.assertEqual((response.error_message, response.error_code), (None, None))
        self.assertEqual(
            BatchStatus.from_dict(
                {"status": "QUEUED", "totalRequests": 3, "completedRequests": 0, "responses": None}
            ),
            BatchStatus(None, "QUEUED", 3, 0),
        )

    def test_a_body_is_parsed_when_first_looked_at_and_once(self):
        with mock.patch("ecwid_batch._decode", side_effect=json.loads) as decode:
            (response,) = status_of(row(escapedHttpBody="[1]"))
            self.assertEqual(decode.call_count, 0)
            self.assertIs(response.body, response.body)
            self.assertEqual(decode.call_count, 1)

    def test_an_error_has_message_and_code_from_wherever_they_are(self):
        for fields, message, code in (
            ({"escapedHttpBody": '{"errorMessage": "m", "errorCode": "C"}'}, "m", "C"),
            ({"httpBody": {"error_message": "m"}}, "m", None),
            ({"httpBody": {"errorMessage": 5, "errorCode": 5}, "httpStatusLine": "l"}, "l", None),
            ({"httpStatusLine": "line"}, "line", None),
            ({"escapedHttpBody": "junk"}, "failed without a reason", None),
            ({"escapedHttpBody": '{"errorMessage": "a\\n\\ud83d  b"}'}, "a b", None),
        ):
            with self.subTest(fields=fields):
                (response,) = status_of(row(status="FAILED", code=404, **fields))
                self.assertEqual((response.error_message, response.error_code), (message, code))
                response.error_message.encode("utf-8")

    def test_a_row_that_contradicts_itself_is_believed_for_the_worse(self):
        for fields, status in (
            (row(status="COMPLETED", code=500), "FAILED"),
            (row(status="COMPLETED", code=302), "FAILED"),
            (row(status="FAILED", code=201), "FAILED"),
            (row(status="NOT_EXECUTED", code=200), "UNKNOWN"),
            (row(status="NOT_EXECUTED", code=None), "NOT_EXECUTED"),
            (row(status="NOT_EXECUTED", code=500), "UNKNOWN"),
            (row(status="NOT_EXECUTED", code=424), "NOT_EXECUTED"),
            (row(status="NOT_EXECUTED", code=0), "NOT_EXECUTED"),
            (row(status="SKIPPED", code=None), "UNKNOWN"),
            (row(status="COMPLETED", code=None), "NOT_EXECUTED"),
            (row(status="COMPLETED", code=0, escapedHttpBody="null"), "NOT_EXECUTED"),
            (row(status="COMPLETED", code=None, escapedHttpBody=""), "NOT_EXECUTED"),
            (row(status="COMPLETED", code=None, httpBody={"id": 1}), "COMPLETED"),
        ):
            with self.subTest(fields=fields):
                status_ = status_of(fields)
                self.assertEqual(status_.responses[0].status, status)
                self.assertEqual(len(status_.failed), int(status in ("FAILED", "UNKNOWN")))
                self.assertEqual(len(status_.not_executed), int(status == "NOT_EXECUTED"))
                self.assertEqual(len(status_.succeeded), int(status == "COMPLETED"))

    def test_of_two_rows_for_one_request_the_worse_counts(self):
        ok, failed = row(), row(status="FAILED", code=404)
        for rows, status in (
            ((ok, ok), "COMPLETED"),
            ((ok, failed), "FAILED"),
            ((failed, ok), "FAILED"),
            ((ok, row(status="NOT_EXECUTED", code=None)), "UNKNOWN"),
            ((row(status="FAILED", code=429), ok), "UNKNOWN"),
            ((row(status="FAILED", code=429), row(status="NOT_EXECUTED", code=None)), "FAILED"),
        ):
            with self.subTest(rows=rows):
                (response,) = status_of(*rows, total=1, completed=1)
                self.assertEqual(response.status, status)
        self.assertEqual(len(status_of(row(id=None), row(id=None)).responses), 2)

    def test_retryable_is_what_may_help_and_cannot_harm(self):
        safe = {"GET", "PUT", "DELETE"}
        every = {"GET", "PUT", "DELETE", "POST"}
        for fields, methods in (
            (row(), set()),
            (row(status="FAILED", code=400), set()),
            (row(status="FAILED", code=404), set()),
            (row(status="FAILED", code=408), safe),
            (row(status="FAILED", code=429), every),
            (row(status="FAILED", code=500), safe),
            (row(status="FAILED", code=503), safe),
            (row(status="NOT_EXECUTED", code=None), every),
            (row(status="NOT_EXECUTED", code=200), safe),
        ):
            for method in every:
                with self.subTest(fields=fields, method=method):
                    batch = Batch([BatchRequest(method, "/a")])
                    (response,) = status_of(fields)._matched_to(batch)
                    self.assertEqual(response.retryable, method in methods)
            (alone,) = status_of(fields)
            self.assertEqual(alone.retryable, methods == every)
        adjusts = Batch([BatchRequest.put("/products/1/inventory?x=1", {"quantityDelta": -1})])
        (response,) = status_of(row(status="FAILED", code=500))._matched_to(adjusts)
        self.assertFalse(response.retryable)

    def test_it_goes_through_json_and_back(self):
        rows = [
            row("1", escapedHttpBody="{}", httpStatusLine="OK"),
            row("2", status="FAILED", code=404, httpBody={"errorMessage": "m"}),
            row("3", status="NOT_EXECUTED", code=None),
        ]
        status = dataclasses.replace(status_of(*rows, total=4, completed=4), ticket="T")
        data = json.loads(json.dumps(status.to_dict()))
        self.assertEqual(data["totalRequests"], 4)
        self.assertEqual(BatchStatus.from_dict(data), status)
        matched = status_of(row("000001"), total=2)._matched_to(Batch(gets(2)))
        again = BatchStatus.from_dict(json.loads(json.dumps(matched.to_dict())))
        self.assertEqual([r.status for r in again], ["COMPLETED", "UNKNOWN"])
        self.assertEqual(again["000002"].error_message, matched["000002"].error_message)

    def test_responses_are_found_by_id(self):
        status = status_of(row("a"), row("b"))
        self.assertEqual(status["b"].id, "b")
        self.assertIn("a", status)
        self.assertNotIn("c", status)
        with self.assertRaises(KeyError):
            status["c"]
        self.assertEqual([response.id for response in status], ["a", "b"])
        self.assertTrue(BatchStatus(None, "QUEUED", 0, 0))

    def test_raise_for_failures_raises_unless_all_are_known_to_have_succeeded(self):
        status_of(row("a"), row("b")).raise_for_failures()
        for status, words in (
            (
                status_of(row("a"), row("b", status="FAILED", code=404, httpStatusLine="no")),
                "of 2 requests, 1 failed; the first: request b: no",
            ),
            (
                status_of(row("a", status="NOT_EXECUTED", code=None)),
                "of 1 requests, 1 did not run; the first: request a: Ecwid did not run this",
            ),
            (status_of(row("a"), total=3), "of 3 requests, 2 without a response"),
            (BatchStatus("T", "COMPLETED", 3, 3), "of 3 requests, 3 without a response"),
            (BatchStatus("T", "QUEUED", 3, 0), "of 3 requests, 3 without a response"),
        ):
            with self.subTest(words=words):
                error = self.fails(status.raise_for_failures, BatchFailedError, words)
                self.assertIs(error.status, status)
                self.assertEqual(error.failed, status.failed)
                self.assertEqual(error.not_executed, status.not_executed)
                self.assertEqual(error.ticket, status.ticket)

    def test_what_the_api_does_not_promise_is_an_invalid_response(self):
        good = {"status": "COMPLETED", "totalRequests": 1, "completedRequests": 1}
        for data in (
            None,
            [],
            {},
            {"status": "COMPLETED"},
            {"status": "COMPLETED", "totalRequests": 1},
            {**good, "status": "DONE"},
            {**good, "status": ["x"]},
            {**good, "totalRequests": "1"},
            {**good, "totalRequests": True},
            {**good, "totalRequests": -1},
            {**good, "totalRequests": 10**400},
            {**good, "ticket": 5},
            {**good, "responses": {}},
            {**good, "responses": "x"},
            {**good, "responses": [None]},
            {**good, "responses": [{"id": "1"}]},
            {**good, "responses": [row(id=5)]},
            {**good, "responses": [row(status=5)]},
            {**good, "responses": [row(code="200")]},
            {**good, "responses": [row(code=True)]},
            {**good, "responses": [row(httpStatusLine=5)]},
            {**good, "responses": [row(escapedHttpBody={})]},
        ):
            with self.subTest(data=str(data)[:80]), self.assertRaises(InvalidResponseError):
                BatchStatus.from_dict(data)


class OneResponsePerRequest(TestCase):
    def setUp(self):
        super().setUp()
        self.batch = Batch(gets(3))

    def matched(self, *rows, **options):
        return status_of(*rows, **{"total": 3, **options})._matched_to(self.batch)

    def test_rows_in_any_order_find_their_requests(self):
        status = self.matched(row("000003"), row("000001"), row("000002"))
        self.assertEqual([r.id for r in status], list(self.batch.ids))
        self.assertEqual([r.request for r in status], list(self.batch))

    def test_a_missing_row_is_unknown_and_never_said_not_to_have_run(self):
        for rows in ((), (row("000002"),)):
            status = self.matched(*rows)
            self.assertEqual(len(status.responses), 3)
            self.assertEqual(len(status.failed), 3 - len(rows))
            self.assertEqual(status.not_executed, ())
            self.assertIn("it may have run", status["000003"].error_message)
            with self.assertRaises(BatchFailedError):
                status.raise_for_failures()

    def test_rows_without_ids_are_told_apart_by_their_order_where_that_is_sure(self):
        rows = [row(None, escapedHttpBody=str(n)) for n in range(3)]
        self.assertEqual([r.body for r in self.matched(*rows)], [0, 1, 2])
        self.assertEqual(len(self.matched(*rows[:2]).failed), 3)
        parallel = Batch(gets(3), allow_parallel_mode=True)
        self.assertEqual(len(status_of(*rows)._matched_to(parallel).failed), 3)

    def test_the_status_of_another_batch_is_not_taken_for_ours(self):
        for status in (
            status_of(row("000001"), row("x"), row("000003")),
            status_of(row("000001"), total=1),
            status_of(total=4),
        ):
            with self.raises(InvalidResponseError, "was the deduplication key used for another"):
                status._matched_to(self.batch)

    def test_without_the_batch_the_request_is_a_lookup_error_that_says_so(self):
        (response,) = status_of(row())
        with self.raises(LookupError, "pass batch= to wait()"):
            response.request


# --- Tests: errors --------------------------------------------------------------------------------


class Errors(TestCase):
    def test_pickling_and_copying_keep_everything(self):
        status = BatchStatus("T", "COMPLETED", 1, 1)
        errors = [
            EcwidError("m", tickets=("T",), deduplication_key=KEY, retry_after=1.5, temporary=True),
            ApiError("m", http_status=400, code="C", message="words", uncertain=True),
            RateLimitError("m", http_status=429, retry_after=3.0),
            TransportError("m", temporary=True),
            InvalidResponseError("m"),
            BatchTimeoutError("m", last_status=status),
            BatchFailedError("m", status),
        ]
        for error in errors:
            error.tickets = ("T", "U")
            for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
                with self.subTest(error=error):
                    self.assertIs(type(again), type(error))
                    self.assertEqual(vars(again), vars(error))
                    self.assertEqual(str(again), str(error))
                    self.assertIn("m [ticket T, U]", str(again))
                    self.assertEqual(again.ticket, "T")
        self.assertIsInstance(errors[5], TimeoutError)
        self.assertIsNone(EcwidError("m").ticket)


# --- Tests: clients -------------------------------------------------------------------------------


class Clients(TestCase):
    def test_wrong_arguments_are_refused(self):
        for store_id in (0, -1, "0", "", "1003x", "١", "1" * 5000, 1.0, True, None, " 1003"):
            with self.subTest(store_id=store_id), self.raises(ValueError, "store_id must be a po"):
                EcwidClient(store_id, "secret_x")
        for token in ("", "secret x", "secret\n", "sécret", None, b"secret", "\x7f"):
            with self.subTest(token=token), self.raises(ValueError, "token must be visible ASCII"):
                EcwidClient(1003, token)
        for options, kind in (
            ({"timeout": 0}, ValueError),
            ({"timeout": math.nan}, ValueError),
            ({"timeout": math.inf}, ValueError),
            ({"timeout": "60"}, TypeError),
            ({"timeout": True}, TypeError),
            ({"max_retry_time": -1}, ValueError),
            ({"max_retry_time": 3601}, ValueError),
            ({"max_retry_time": None}, TypeError),
            ({"max_retries": 1}, TypeError),
            ({"opener": 5}, TypeError),
        ):
            with self.subTest(options=options), self.assertRaises(kind):
                EcwidClient(1003, "secret_x", **options)

    def test_the_token_travels_by_https_only_but_to_loopback(self):
        for url in (
            "https://app.ecwid.com/api/v3",
            "https://example.com:8443/x/",
            "http://127.0.0.1:80/api/v3",
            "http://localhost/api/v3",
            "http://[::1]:8080/api/v3",
            "http://127.8.9.1",
        ):
            self.assertEqual(EcwidClient(1003, "t", base_url=url).base_url, url.rstrip("/"))
        for url in (
            "http://app.ecwid.com/api/v3",
            "http://127.0.0.1.example.com",
            "http://localhost@example.com",
            "http://127.0.0.1@example.com/",
            "http://example.com@127.0.0.1/",
            "https://user:password@example.com",
            "http://2130706433/",
            "ftp://127.0.0.1/",
            "file:///etc/passwd",
            "//127.0.0.1/",
            "127.0.0.1",
            "https://",
            "https:///api",
            "",
            None,
            5,
            b"https://example.com",
            "https://example.com/a b",
            "https://example.com/\n",
            "https://example.com?x=1",
            "https://example.com/#x",
            "https://example.com:port/",
            "https://example.com:99999/",
            "http://127.0.0.1\\@example.com/",
            "https://a..b/",
            "http://127.0.0.1\t.example.com/",
            "http://[::1]evil.example/",
            "https://%ff.example",
            "https://[::1",
        ):
            with self.subTest(url=url), self.raises(ValueError, "base_url must"):
                EcwidClient(1003, "t", base_url=url or "")

    def test_it_comes_from_the_environment(self):
        variables = {"ECWID_STORE_ID": "1003", "ECWID_TOKEN": "secret_x"}
        with mock.patch.dict(os.environ, variables):
            os.environ.pop("ECWID_BASE_URL", None)
            client = EcwidClient.from_env(timeout=5, max_retry_time=7)
            self.assertEqual((client.store_id, client.token), (1003, "secret_x"))
            self.assertEqual((client.timeout, client.max_retry_time), (5, 7))
            self.assertEqual(client.base_url, "https://app.ecwid.com/api/v3")
            os.environ["ECWID_BASE_URL"] = "http://127.0.0.1:1/api/v3"
            self.assertEqual(EcwidClient.from_env().base_url, "http://127.0.0.1:1/api/v3")
            self.assertEqual(EcwidClient.from_env(token="other", store_id=5).token, "other")
            with self.assertRaises(TypeError):
                EcwidClient.from_env(max_retries=1)
            os.environ["ECWID_TOKEN"] = ""
            with self.raises(ValueError, "set ECWID_TOKEN in the environment"):
                EcwidClient.from_env()
            del os.environ["ECWID_STORE_ID"]
            with self.raises(ValueError, "set ECWID_STORE_ID in the environment"):
                EcwidClient.from_env()

    def test_from_env_takes_what_the_constructor_takes(self):
        ours = inspect.signature(EcwidClient).parameters
        environments = inspect.signature(EcwidClient.from_env).parameters
        self.assertEqual(list(ours), list(environments))
        for name in ("timeout", "max_retry_time", "opener"):
            self.assertEqual(ours[name].default, environments[name].default)

    def test_a_used_client_can_be_pickled_and_copied(self):
        ecwid = self.standin()
        client = ecwid.client(timeout=9)
        client.submit(Batch(gets(1)))
        client._block(1e9)
        for again in (pickle.loads(pickle.dumps(client)), copy.copy(client), copy.deepcopy(client)):
            self.assertEqual(again.timeout, 9)
            again.submit(Batch(gets(1)))

    def test_wrong_arguments_of_methods_are_refused_before_anything_is_sent(self):
        with virtual() as (engine, client, _):
            for call, kind in (
                (lambda: client.status(""), ValueError),
                (lambda: client.status(5), TypeError),
                (lambda: client.wait(None), TypeError),
                (lambda: client.delete(""), ValueError),
                (lambda: client.cancel(""), ValueError),
                (lambda: client.cancel(7), TypeError),
                (lambda: client.cancel("g", ticket=""), ValueError),
                (lambda: client.find("DONE"), ValueError),
                (lambda: client.wait("T", timeout="5"), TypeError),
                (lambda: client.wait("T", timeout=math.nan), ValueError),
                (lambda: client.run(Batch(gets(1)), timeout=math.nan), ValueError),
                (lambda: client.stream([], retry=-1), ValueError),
                (lambda: client.stream([], retry=1.0), TypeError),
                (lambda: client.stream([], batch_size=0), ValueError),
                (lambda: client.stream([], timeout="1"), TypeError),
                (lambda: client.stream([], deduplication_key="x"), ValueError),
                (lambda: client.stream([], journal=5), TypeError),
                (lambda: client.stream(None), TypeError),
                (lambda: client.stream([], max_in_flight=2), TypeError),
                (lambda: client.run(gets(1)), TypeError),
                (lambda: client.submit(EXAMPLE), TypeError),
                (lambda: client.wait("T", batch=gets(1)), TypeError),
                (lambda: client.wait("T", on_progress=5), TypeError),
                (lambda: client.run(Batch(gets(1)), on_progress=5), TypeError),
                (lambda: client.stream(gets(1), on_progress=5), TypeError),
                (lambda: client.cancel("\ud800"), ValueError),
            ):
                with self.assertRaises(kind):
                    call()
            self.assertEqual(engine.requests, [])

    def test_clients_of_a_kind_share_one_opener_that_is_made_at_the_first_call(self):
        ecwid_batch._shared_opener.cache_clear()
        self.addCleanup(ecwid_batch._shared_opener.cache_clear)
        with mock.patch("ssl.create_default_context", return_value=None) as load:
            clients = [EcwidClient(1003, "t", base_url="https://localhost:1") for _ in range(10)]
            self.assertEqual(load.call_count, 0)
            openers = {id(ecwid_batch._opener_for(client.base_url)) for client in clients}
            self.assertEqual((load.call_count, len(openers)), (1, 1))
            with mock.patch.dict(os.environ, {"SSL_CERT_FILE": "/another"}):
                ecwid_batch._opener_for(clients[0].base_url)
            self.assertEqual(load.call_count, 2)

    def test_proxies_are_asked_for_all_hosts_but_loopback(self):
        def proxies(url):
            opener = ecwid_batch._opener_for(url)
            found = [h.proxies for h in opener.handlers if hasattr(h, "proxies")]
            return found[0] if found else {}

        with mock.patch.dict(os.environ, {"https_proxy": "http://p:1", "http_proxy": "http://p:1"}):
            self.assertEqual(proxies("http://127.0.0.1:1/api/v3"), {})
            self.assertEqual(proxies("https://localhost/api/v3"), {})
            self.assertEqual(proxies("https://example.com/")["https"], "http://p:1")
        with mock.patch.dict(os.environ, {}, clear=True):
            self.assertNotIn("https", proxies("https://example.com/"))


class TheWire(WithStandIn):
    def setUp(self):
        super().setUp()
        self.clock()

    def test_the_references_example_arrives_as_the_reference_has_it(self):
        batch = Batch.from_json(EXAMPLE, allow_parallel_mode=True)
        self.ecwid.client().submit(batch)
        ((method, path, query, headers, body),) = self.ecwid.calls
        self.assertEqual((method, path), ("POST", "/batch"))
        self.assertEqual(query, batch.query)
        self.assertEqual(json.loads(body), json.loads(EXAMPLE))
        self.assertEqual(headers["Authorization"], f"Bearer {self.ecwid.token}")
        self.assertEqual(headers["Content-Type"], "application/json")
        self.assertEqual(headers["Accept-Encoding"], "gzip")
        self.assertEqual(headers["User-Agent"], f"ecwid_batch/{ecwid_batch.__version__}")

    def test_run_returns_one_response_per_request_in_order(self):
        batch = Batch.from_json(EXAMPLE, stop_on_first_failure=False)
        for older in (False, True):
            self.ecwid.older = older
            status = self.ecwid.client().run(batch)
            self.assertEqual([r.request for r in status], list(batch))
            self.assertEqual([r.http_status_code for r in status], [200, 200, 200])
            self.assertEqual(status["000002"].body["generalInfo"], {"storeId": 1003})
            self.assertEqual((status.done, len(status.succeeded)), (True, 3))
            status.raise_for_failures()
        self.assertEqual(len(self.ecwid.ledger), 3)

    def test_a_failure_stops_the_batch_and_the_rest_did_not_run(self):
        batch = Batch([*creates(1), BatchRequest.get("/nowhere"), *creates(2, 1)])
        status = self.ecwid.client().run(batch)
        self.assertEqual(
            [r.status for r in status], ["COMPLETED", "FAILED", "NOT_EXECUTED", "NOT_EXECUTED"]
        )
        self.assertEqual(status["000002"].error_code, "NOT_FOUND")
        self.fails(status.raise_for_failures, BatchFailedError, "request 000002 (GET /nowhere)")

    def test_in_parallel_mode_responses_come_in_the_order_of_the_requests(self):
        delays = iter([0.05, 0.03, 0.01, 0.02])
        self.ecwid.latency = lambda call: next(delays)
        batch = Batch(creates(4), allow_parallel_mode=True)
        status = self.ecwid.client().run(batch)
        self.assertEqual([r.id for r in status], list(batch.ids))
        self.assertNotEqual(ran(self.ecwid), skus(4))

    def test_status_has_responses_only_where_they_are_asked_for(self):
        client = self.ecwid.client()
        ticket = client.submit(Batch(gets(2)))
        for older in (False, True):
            self.ecwid.older = older
            self.assertEqual(len(client.status(ticket).responses), 2)
            light = client.status(ticket, responses=False)
            self.assertEqual((light.responses, light.ticket, light.done), ((), ticket, True))

    def test_a_group_is_cancelled_and_what_had_run_stays(self):
        self.ecwid.latency = 5
        client = self.ecwid.client()
        for shape, statuses in (
            ("no code", {"NOT_EXECUTED"}),
            ("code 0", {"NOT_EXECUTED"}),
            ("no row", {"UNKNOWN"}),
        ):
            with self.subTest(shape=shape):
                self.ecwid.reset()
                self.ecwid.cancelled_rows = shape
                batch = Batch(creates(3), group_id="night")
                first, second = client.submit(Batch(creates(1))), client.submit(batch)
                self.assertEqual(client.cancel("night"), 1)
                self.assertEqual(client.cancel("night", ticket=second), 0)
                self.assertEqual(client.cancel("other"), 0)
                status = client.wait(second, batch=batch, timeout=5)
                self.assertEqual({r.status for r in status}, statuses)
                self.assertFalse(client.status(first).done)

    def test_a_batch_is_deleted_by_both_names_of_its_ticket(self):
        client = self.ecwid.client()
        ticket = client.submit(Batch(gets(1)))
        self.assertEqual((client.delete(ticket), client.delete(ticket)), (1, 0))
        self.assertEqual(self.ecwid.requests[-1][2], {"ticket": ticket, "ticketId": ticket})
        error = self.fails(lambda: client.status(ticket), ApiError, "check the store id, the tick")
        self.assertEqual((error.http_status, error.ticket), (404, ticket))

    def test_find_yields_all_tickets_once_whichever_way_the_pages_come(self):
        client = self.ecwid.client()
        tickets = [client.submit(Batch(gets(1))) for _ in range(5)]
        with mock.patch("ecwid_batch._PAGE_SIZE", 2):
            for older in (False, True):
                self.ecwid.older = older
                self.assertEqual(list(client.find("COMPLETED")), tickets)
            self.assertEqual(list(client.find("QUEUED")), [])
            pages = [{"items": [{"ticket": "a"}, {"ticket": "b"}]}] * 2  # ignores the offset
            with mock.patch.object(client, "_answer", side_effect=pages):
                self.assertEqual(list(client.find("QUEUED")), ["a", "b"])

    def test_error_answers_say_what_to_do(self):
        for status, words in (
            (401, "check the token"),
            (402, "check the plan of the store"),
            (403, "access scopes"),
            (404, "check the store id, the ticket and the base URL"),
            (407, "check the user and password of the proxy"),
            (415, "HTTP 415; C; no"),
        ):
            with self.subTest(status=status):
                self.ecwid.faults.append(
                    lambda handler, status=status: handler.send(
                        status, {}, {"errorMessage": "no", "errorCode": "C"}
                    )
                )
                error = self.fails(lambda: self.ecwid.client().status("T"), ApiError, words)
                self.assertEqual(
                    (error.http_status, error.code, error.message), (status, "C", "no")
                )
                self.assertTrue(str(error).startswith(f"GET {self.ecwid.base_url}/1003/batch: HT"))
                self.assertEqual((error.temporary, error.uncertain), (False, False))

    def test_one_client_serves_many_threads(self):
        client, found = self.ecwid.client(), []

        def work(number):
            batch = Batch(creates(3, 10 * number))
            found.append([r.request for r in client.run(batch)] == list(batch))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((found, len(self.ecwid.ledger)), ([True] * 8, 24))


# --- Tests: retries and the transport -------------------------------------------------------------


class OneRuleForRetries(TestCase):
    def test_an_outage_of_a_minute_and_a_half_ends_no_job(self):
        chance = random.Random(5)
        for seconds in (5, 20, 60, 90):
            for _ in range(4):
                with virtual(latency=18.0) as (engine, client, clock):
                    begun = clock.now + chance.uniform(0, 1700)
                    if _ == 0:
                        begun = clock.now  # during the submission

                    def fault(after, clock=clock, begun=begun, seconds=seconds):
                        if begun <= clock.now < begun + seconds:
                            raise ConnectionResetError("reset")

                    client.opener.fault = fault
                    batch = Batch(creates(100))
                    ticket = client.submit(batch)
                    for status in (client.run(batch), client.wait(ticket, batch=batch)):
                        self.assertEqual(len(status.succeeded), 100)
                    self.assertEqual(ran(engine), skus(100))

    def test_a_call_is_tried_again_for_max_retry_time_from_its_first_failure(self):
        for limit in (0, 10, 120, 3600):
            with virtual(client_options={"max_retry_time": limit}) as (engine, client, clock):
                client.opener.fault = mock.Mock(side_effect=ConnectionResetError("reset"))
                begun = clock.now + 0.15
                error = self.fails(lambda: client.submit(Batch(gets(1))), TransportError, "batch: ")
                self.assertLessEqual(clock.now - begun, limit + 0.15)
                self.assertGreaterEqual(clock.now - begun, min(limit, 3540) - 30.4)
                self.assertEqual((error.temporary, error.uncertain), (True, True))
                self.assertEqual(error.deduplication_key is None, limit == 3600)
                if limit == 0:
                    self.assertEqual(client.opener.fault.call_count, 1)

    def test_backoff_is_exponential_with_full_jitter(self):
        with mock.patch("random.uniform", side_effect=lambda low, high: (low, high)):
            pauses = [ecwid_batch._backoff(n) for n in (1, 2, 3, 6, 7, 8, 5000)]
        highest = [0.5, 1.0, 2.0, 16.0, 30.0, 30.0, 30.0]
        self.assertEqual(pauses, [(0, high) for high in highest])

    def test_what_is_final_is_raised_at_once(self):
        tunnel = "Tunnel connection failed: 407 Proxy Authentication Required"
        certificate = ssl.SSLCertVerificationError(1, "certificate verify failed")
        for fault, words in (
            (urllib.error.URLError(certificate), "SSLCertVerificationError"),
            (
                urllib.error.URLError(OSError(tunnel)),
                "407 Proxy Authentication Required; check the",
            ),
        ):
            with virtual() as (engine, client, clock):
                client.opener.fault = mock.Mock(side_effect=fault)
                error = self.fails(lambda: client.submit(Batch(gets(1))), TransportError, words)
                self.assertEqual(client.opener.fault.call_count, 1)
                self.assertEqual((error.temporary, error.uncertain), (False, False))
        for status in (300, 302, 307, 400, 401, 402, 403, 404, 405, 407, 409, 415, 422):
            with virtual() as (engine, client, clock):
                engine.handle = mock.Mock(return_value=(status, {}, {"errorMessage": "no"}))
                error = self.fails(
                    lambda: client.submit(Batch(gets(1))), EcwidError, f"HTTP {status}"
                )
                self.assertEqual((engine.handle.call_count, error.temporary), (1, False))

    def test_what_may_pass_is_tried_again(self):
        def answers(*given):
            return mock.Mock(side_effect=[*given, (200, {}, {"ticket": "T"})])

        html = (200, {}, HTML)
        for answer in (
            *((status, {}, {}) for status in (408, 429, 500, 502, 503, 504)),
            html,
            (200, {}, b""),
            (200, {}, b'{"ticket": "T'),
            (200, {}, {"ticket": 5}),
            (200, {}, ["odd"]),
            (200, {}, {"ticket": "\ud800"}),
        ):
            with self.subTest(answer=answer), virtual() as (engine, client, clock):
                engine.handle = answers(answer)
                self.assertEqual(client.submit(Batch(gets(1))), "T")
                self.assertEqual(engine.handle.call_count, 2)

    def test_it_is_known_whether_ecwid_may_have_acted(self):
        for fault, uncertain in (
            (socket.gaierror("unknown"), False),
            (urllib.error.URLError(ConnectionRefusedError("no")), False),
            (ConnectionResetError("reset"), True),
            (socket.timeout("timed out"), True),
            (OSError("Tunnel connection failed: 503 Busy"), False),
        ):
            with virtual(client_options={"max_retry_time": 0}) as (engine, client, clock):
                client.opener.fault = mock.Mock(side_effect=fault)
                error = self.fails(lambda: client.submit(Batch(gets(1))), TransportError, "")
                self.assertEqual((error.temporary, error.uncertain), (True, uncertain))
        with virtual() as (engine, client, clock):
            refused = (403, {}, {"errorMessage": "no"})
            engine.handle = mock.Mock(side_effect=[(500, {}, {}), refused])
            error = self.fails(lambda: client.submit(Batch(gets(1))), ApiError, "HTTP 403")
            self.assertTrue(error.uncertain)  # the first try may have been taken

    def test_retry_after_is_obeyed_to_the_letter(self):
        date = "Tue, 24 Nov 2026 08:00:00 GMT"
        later = "Tue, 24 Nov 2026 08:00:07 GMT"
        for status, headers, least, most in (
            (429, {"Retry-After": "3"}, 3, 3),
            (503, {"Retry-After": "3"}, 3, 3),
            (429, {"Retry-After": "0"}, 0.5, 0.5),
            (429, {}, 10, 10),
            (429, {"Retry-After": "soon"}, 10, 10),
            (429, {"Retry-After": "-5"}, 10, 10),
            (429, {"Retry-After": "inf"}, 10, 10),
            (503, {}, 0, 0.5),
            (429, {"Retry-After": later, "Date": date}, 7, 7),
            (503, {"Retry-After": date, "Date": later}, 0.5, 0.5),
            (503, {"Retry-After": "Mon, 99 Foo 2026 99:99:99 GMT"}, 0, 0.5),
        ):
            with self.subTest(status=status, headers=headers), virtual() as (engine, client, clock):
                refused = (status, headers, {})
                engine.handle = mock.Mock(side_effect=[refused, (200, {}, {"ticket": "T"})])
                client.submit(Batch(gets(1)))
                self.assertEqual(len(clock.sleeps), 1)
                self.assertGreaterEqual(clock.sleeps[0], least - 0.16)
                self.assertLessEqual(clock.sleeps[0], most)
        headers = {"Retry-After": email.utils.formatdate(time.time() + 100, usegmt=True)}
        self.assertAlmostEqual(ecwid_batch._retry_after(headers), 100, delta=5)

    def test_a_pause_that_does_not_fit_is_raised_at_once(self):
        for headers, timeout in (({"Retry-After": "121"}, None), ({"Retry-After": "20"}, 15)):
            for status, kind in ((429, RateLimitError), (503, ApiError)):
                with virtual() as (engine, client, clock):
                    engine.handle = mock.Mock(return_value=(status, headers, {}))
                    error = self.fails(
                        lambda: client.wait("T", timeout=timeout), kind, "; retry after "
                    )
                    self.assertEqual(error.retry_after, float(headers["Retry-After"]))
                    self.assertEqual((error.ticket, error.http_status), ("T", status))
                    self.assertEqual(engine.handle.call_count, 1)

    def test_a_429_holds_back_every_call_of_the_client(self):
        with virtual() as (engine, client, clock):
            engine.block(100)
            self.fails(lambda: client.wait("T", timeout=50), RateLimitError, "retry after 10")
            calls = len(engine.requests)
            error = self.fails(
                lambda: client.wait("T", timeout=60), RateLimitError, "not sent, since an earlier"
            )
            self.assertAlmostEqual(error.retry_after, 100, delta=1)
            self.assertEqual(len(engine.requests), calls)
            client.submit(Batch(gets(1)))
            self.assertEqual(engine.early, 1)  # the call that met the block

    def test_threads_that_share_a_client_make_no_early_call(self):
        ecwid = self.standin()
        client, wakes = ecwid.client(), []
        sleep = time.sleep
        with mock.patch("time.sleep", lambda seconds: (wakes.append(seconds), sleep(seconds / 40))):
            engine_time = time.monotonic
            with mock.patch("time.monotonic", lambda: engine_time() * 40):  # 5 s pass in 0.125 s
                ecwid.block(5)
                threads = [
                    threading.Thread(target=client.submit, args=(Batch(gets(1)),))
                    for _ in range(10)
                ]
                threads[0].start()
                while not wakes:
                    sleep(0.001)
                for thread in threads[1:]:
                    thread.start()
                for thread in threads:
                    thread.join()
        self.assertEqual(len(ecwid.jobs), 10)
        self.assertEqual(ecwid.early, 1)  # the call that met the block

    def test_a_retry_sends_the_same_bytes_under_the_same_key(self):
        self.clock()
        ecwid = self.standin()
        ecwid.faults += ["reset", "cut off after", "500 after", "html 200 after", "429 soon"]
        ecwid.client().submit(Batch(creates(3)))
        sent = [(query, body) for _, _, query, _, body in ecwid.calls]
        self.assertEqual((len(sent), len(set(map(repr, sent)))), (4, 1))
        self.assertEqual((len(ecwid.jobs), ran(ecwid)), (1, skus(3)))

    def test_no_submission_is_tried_when_its_key_may_be_forgotten(self):
        with virtual(client_options={"max_retry_time": 3600}) as (engine, client, clock):
            client.opener.fault = lambda after: after and self.fail_with(ConnectionResetError())
            begun = clock.now
            error = self.fails(
                lambda: client.submit(Batch(creates(1))), TransportError, "/1003/batch: "
            )
            self.assertLess(clock.now - begun, HOUR)
            self.assertIsNone(error.deduplication_key)
            self.assertEqual((len(engine.jobs), ran(engine)), (1, skus(1)))

    def test_a_suspended_laptop_runs_nothing_twice(self):
        with virtual() as (engine, client, clock):
            engine.keys.clear()

            def fault(after):
                if after and not clock.suspended:
                    raise ConnectionResetError("reset")

            def sleep(seconds):
                clock.suspended += 2 * HOUR  # while the client pauses
                engine.keys.clear()
                clock.now += seconds

            client.opener.fault = fault
            with mock.patch("time.sleep", sleep):
                error = self.fails(
                    lambda: client.submit(Batch(creates(1))), TransportError, "reset"
                )
            self.assertIsNone(error.deduplication_key)
            self.assertEqual(ran(engine), skus(1))

    def test_a_batch_that_is_submitted_again_does_not_begin_a_new_hour(self):
        options = {"max_retry_time": 3600}
        with virtual(client_options=options) as (engine, client, clock):
            batch = Batch(creates(1))
            client.submit(batch)
            clock.now += 3000
            client.opener.fault = mock.Mock(side_effect=ConnectionResetError("reset"))
            begun = clock.now
            error = self.fails(lambda: client.run(batch), TransportError, "/1003/batch: ")
            self.assertLess(clock.now - begun, 601)
            self.assertIsNone(error.deduplication_key)

    def test_an_exchange_that_connects_too_late_sends_nothing(self):
        ecwid = self.standin()
        late, gone = threading.Event(), threading.Event()
        real = socket.getaddrinfo

        def slow(*arguments, **options):
            late.wait(10)
            try:
                return real(*arguments, **options)
            finally:
                gone.set()

        client = ecwid.client(timeout=0.05, max_retry_time=0)
        threads = set(threading.enumerate())
        with mock.patch("socket.getaddrinfo", slow):
            self.fails(lambda: client.submit(Batch(gets(1))), TransportError, "no complete answer")
            late.set()
            gone.wait(10)
        for thread in set(threading.enumerate()) - threads:
            if thread.name == "ecwid_batch exchange":
                thread.join(10)
        self.assertEqual(ecwid.requests, [])

    def fail_with(self, error):
        raise error

    def test_a_clock_that_was_set_back_makes_no_key_look_young(self):
        age = ecwid_batch._Age(since=time.time() + HOUR)
        self.assertEqual(age.seconds_left(), 0)
        self.assertIsNone(age.key_if_safe(KEY))


class BadAnswers(WithStandIn):
    def call(self, fault, verb=lambda client: client.status("T"), **options):
        self.ecwid.faults = [fault] * 2
        client = self.ecwid.client(**{"max_retry_time": 0, **options})
        with self.assertRaises(EcwidError) as caught:
            verb(client)
        return caught.exception

    def test_every_fault_of_the_stand_in_is_an_error_that_names_the_call(self):
        invalid = {"html 200", "html 200 after", "empty after", "odd JSON after"}
        api = {"500", "500 after", "503 busy", "408 after", "429", "429 soon", "block", "html 502"}
        for fault in FAULTS:
            if fault in ROW_FAULTS:
                continue
            kind = TransportError
            if fault in invalid:
                kind = InvalidResponseError
            if fault in api:
                kind = RateLimitError if fault in ("429", "429 soon", "block") else ApiError
            with self.subTest(fault=fault):
                self.ecwid.reset()
                error = self.call(fault, lambda client: client.submit(Batch(gets(1))))
                self.assertIs(type(error), kind)
                self.assertTrue(str(error).startswith(f"POST {self.ecwid.base_url}/1003/batch: "))

    def test_what_the_api_does_not_promise(self):
        verbs = (
            lambda client: client.submit(Batch(gets(1))),
            lambda client: client.status("T"),
            lambda client: client.cancel("g"),
            lambda client: client.delete("T"),
            lambda client: next(client.find("QUEUED")),
        )
        client = self.ecwid.client(max_retry_time=0)
        for answer in (
            b"null",
            b"5",
            b'"text"',
            b"[null]",
            b'[{"ticket": 5}]',
            b"{",
            b"",
            HTML,
            b"[" * 200_000,
            b"\xff\xfe",
            b"NaN",
            b'{"ticket": ""}',
            b'{"ticket": 5}',
            b'{"items": 5}',
            b'{"updateCount": "1"}',
            b'{"deleteCount": true}',
            b'{"updateCount": -1}',
            b"9" * 5000,
            json.dumps("\ud800").encode(),
        ):
            given = ecwid_batch._Answer(200, {}, answer)
            for verb in verbs:
                with self.subTest(answer=answer[:40]):
                    with mock.patch("ecwid_batch._exchange", return_value=given):
                        error = self.fails(lambda verb=verb: verb(client), InvalidResponseError, "")
                    self.assertTrue(error.temporary)

    def test_an_answer_that_breaks_on_the_way(self):
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for garbage in (
            b"",
            b"garbage\r\n\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
            chunked + b"zz\r\n{}",
            chunked + b"9\r\n{}",
            b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000 + b": b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
            b"HTTP/1.1 103 Early Hints\r\n\r\n",
        ):
            with self.subTest(garbage=garbage[:60]):

                def answer(handler, garbage=garbage):
                    handler.wfile.write(garbage)
                    handler.close_connection = True

                self.assertIs(type(self.call(answer)), TransportError)

    def test_a_content_length_that_is_no_number_does_no_harm(self):
        for length in ("\xb2", "-1", "x"):
            self.ecwid.faults.append(
                lambda handler, length=length: handler.raw(
                    200, {"Content-Length": length}, b'{"updateCount": 1}'
                )
            )
            self.assertEqual(self.ecwid.client().cancel("g"), 1)

    def test_the_status_of_an_error_counts_even_if_its_body_is_broken(self):
        for head, body in (
            ("Content-Encoding: gzip\r\nContent-Length: 0", b""),
            ("Content-Length: 50", b"{"),
            ("Content-Encoding: gzip", b"junk"),
            ("Transfer-Encoding: chunked", b"zz\r\n"),
        ):
            for status, kind in ((429, RateLimitError), (403, ApiError), (302, TransportError)):
                lines = f"HTTP/1.1 {status} X\r\nRetry-After: 300\r\n{head}\r\n\r\n"

                def fault(handler, answer=lines.encode() + body):
                    handler.wfile.write(answer)
                    handler.close_connection = True

                with self.subTest(head=head, status=status):
                    error = self.call(fault)
                    self.assertIs(type(error), kind)
                    self.assertIn(f"HTTP {status}", str(error))
                    self.assertEqual(error.retry_after, None if status == 302 else 300)

    def test_what_follows_a_whole_gzip_answer_is_not_read(self):
        def endless(handler):
            headers = {"Content-Encoding": "gzip", "Content-Length": "999999999"}
            handler.raw(200, headers, gzip.compress(b'{"updateCount": 1}'))
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    handler.wfile.write(b"junk" * 1000)

        self.ecwid.faults.append(endless)
        self.assertEqual(self.ecwid.client().cancel("g"), 1)

    def test_whatever_a_callers_opener_does_is_an_error_of_ours(self):
        for behaviour in (
            {"return_value": None},
            {"return_value": object()},
            {"side_effect": LookupError("x")},
        ):
            opener = mock.Mock(open=mock.Mock(**behaviour))
            client = EcwidClient(1003, "secret_x", opener=opener, max_retry_time=0)
            self.fails(lambda client=client: client.status("T"), TransportError, "Error: ")
        without_body = urllib.error.HTTPError("http://x", 404, "no", None, None)
        opener = mock.Mock(open=mock.Mock(side_effect=without_body))
        with self.raises(ApiError, "HTTP 404; Not Found"):
            EcwidClient(1003, "t", opener=opener).status("T")

    def test_a_host_without_threads_sends_nothing(self):
        with mock.patch("threading.Thread.start", side_effect=RuntimeError("no more threads")):
            client = EcwidClient(1, "secret_x", max_retry_time=0)
            error = self.fails(lambda: client.status("T"), TransportError, "no more threads")
        self.assertEqual((error.temporary, error.uncertain), (True, False))

    def test_a_proxys_page_is_an_api_error_without_a_message(self):
        error = self.call("html 502")
        self.assertEqual((error.http_status, error.code, error.message), (502, None, None))
        self.assertIn("HTTP 502; Bad Gateway", str(error))

    def test_a_bomb_is_an_error_and_not_an_outage(self):
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        bomb = packer.compress(b" " * 2**24) + packer.flush()
        with mock.patch("ecwid_batch._MAX_ANSWER", 2**21):
            for headers, body in (({"Content-Encoding": "gzip"}, bomb), ({}, b" " * (2**21 + 1))):
                error = self.call(
                    lambda handler, headers=headers, body=body: handler.raw(200, headers, body),
                    max_retry_time=120,
                )
                self.assertIs(type(error), InvalidResponseError)
                self.assertIn("larger than 2,097,152 bytes; use a smaller batch_size", str(error))
                self.assertFalse(error.temporary)
            fine = gzip.compress(b'{"updateCount": 7}'.ljust(2**21))
            self.ecwid.faults = [
                lambda handler: handler.raw(200, {"Content-Encoding": "gzip"}, fine)
            ]
            self.assertEqual(self.ecwid.client().cancel("g"), 7)

    def test_a_connection_that_stays_open_does_not_hold_up_a_whole_answer(self):
        gone = threading.Event()
        self.addCleanup(gone.set)

        def answer(handler):
            handler.raw(200, {"Connection": "keep-alive"}, b'{"updateCount": 1}')
            handler.wfile.flush()
            gone.wait(20)

        self.ecwid.faults.append(answer)
        begun = time.monotonic()
        self.assertEqual(self.ecwid.client(timeout=10).cancel("g"), 1)
        self.assertLess(time.monotonic() - begun, 9)

    def test_an_exchange_is_bounded_from_its_beginning_to_the_last_byte(self):
        gone = threading.Event()
        self.addCleanup(gone.set)

        def drip(handler):
            with contextlib.suppress(OSError):
                while not gone.wait(0.02):
                    handler.wfile.write(b" ")

        def trickle_body(handler):
            handler.send_response(200)
            handler.end_headers()
            drip(handler)

        def trickle_headers(handler):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            drip(handler)

        for fault in (trickle_body, trickle_headers, lambda handler: gone.wait(20)):
            begun = time.monotonic()
            error = self.call(fault, timeout=0.1)
            self.assertIs(type(error), TransportError)
            self.assertRegex(str(error), "no complete answer within 0.1 s|timed out")
            self.assertLess(time.monotonic() - begun, 5)
            error = self.call(fault, lambda client: client.wait("T", timeout=0.1))
            self.assertIs(type(error), BatchTimeoutError)
            self.assertEqual(error.ticket, "T")
        with self.raises(TimeoutError, "timed out while the answer trickled"):
            list(ecwid_batch._chunks(io.BytesIO(b"x"), time.monotonic() - 1))


class TheTokenIsNeverSeen(TestCase):
    def redirects(self, status, opener=None):
        """Return the headers with which a redirect's target was reached."""
        listener, ecwid = self.standin(), self.standin()
        target = f"{listener.base_url}/1003/batch"
        ecwid.faults += [lambda handler: handler.raw(status, {"Location": target}, b"")] * 2
        client = ecwid.client(opener=opener, max_retry_time=0)
        for call in (lambda: client.submit(Batch(gets(1))), lambda: client.status("T")):
            words = "redirects are not followed" if opener is None else ""
            self.fails(call, EcwidError, words)
        return [call[3] for call in listener.calls]

    def test_no_redirect_is_followed(self):
        for status in (301, 302, 303, 307, 308):
            self.assertEqual(self.redirects(status), [])

    def test_a_callers_opener_that_follows_redirects_does_not_take_the_token_along(self):
        following = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        reached = self.redirects(302, following)
        self.assertEqual([headers.get("Authorization") for headers in reached], [None, None])

    def test_it_is_in_no_message_log_repr_or_traceback(self):
        self.clock()
        ecwid = self.standin()
        token, seen = ecwid.token, []
        logger = logging.getLogger("ecwid_batch")
        logger.setLevel(logging.DEBUG)
        handler = logging.StreamHandler(io.StringIO())
        logger.addHandler(handler)
        self.addCleanup(logger.removeHandler, handler)
        echo = {"errorMessage": f"Token {token} is\nwrong", "errorCode": f"BAD_{token}"}
        elsewhere = {"Location": f"http://127.0.0.1:1/{token}"}
        client = ecwid.client(max_retry_time=0)
        seen += [repr(client), str(client), repr([client])]
        for fault in (
            "500",
            "reset",
            "cut off after",
            lambda h: h.send(400, {}, echo),
            lambda h: h.send(500, {}, echo),
            lambda h: h.send(429, {"Retry-After": "999"}, echo),
            lambda h: h.raw(302, elsewhere, b""),
            lambda h: h.send(200, {}, {"ticket": [token]}),
            lambda h: h.raw(200, {}, token.encode()),
            lambda h: h.wfile.write(f"{token} {token}\r\n\r\n".encode()),
        ):
            client = ecwid.client(max_retry_time=0)
            ecwid.faults = [fault] * 2
            error = self.fails(lambda client=client: client.submit(Batch(gets(1))), EcwidError, "")
            seen += [str(error), repr(error), repr(vars(error))]
            seen += traceback.format_exception(type(error), error, error.__traceback__)
            full = traceback.TracebackException.from_exception(error, capture_locals=True)
            seen += full.format()
        ecwid.faults, ecwid.script = [], lambda call: (400, echo)
        status = client.run(Batch(gets(1)))
        seen += [repr(status.responses), status.responses[0].error_message]
        seen += [str(self.fails(status.raise_for_failures, BatchFailedError, "***"))]
        seen.append(handler.stream.getvalue())
        self.assertIn("POST /batch: 500", handler.stream.getvalue())
        for text in seen:
            self.assertNotIn(token, text)
        for arguments in ((1003, token + "\n"), (token, 1003)):
            with self.assertRaises(ValueError) as caught:
                EcwidClient(*arguments)
            self.assertNotIn(token, str(caught.exception))

    def test_not_even_with_http_clients_debugging(self):
        ecwid = self.standin()
        ecwid_batch._shared_opener.cache_clear()
        self.addCleanup(ecwid_batch._shared_opener.cache_clear)
        out = io.StringIO()
        with mock.patch("http.client.HTTPConnection.debuglevel", 1):
            with contextlib.redirect_stdout(out):
                ecwid.client().submit(Batch(gets(1)))
        self.assertNotIn(ecwid.token, out.getvalue())

    def test_the_password_of_a_proxy_is_masked_too(self):
        error = ecwid_batch._transport_error(ValueError("proxy URL: 'http:/user:secret@host'"))
        self.assertIn("'http:/***@host'", str(error))

    def test_a_client_that_was_not_made_has_a_repr(self):
        self.assertEqual(
            repr(object.__new__(EcwidClient)), "EcwidClient(store_id=None, base_url=None)"
        )

    def test_words_from_outside_are_one_short_line(self):
        shown = EcwidClient(1003, "secret_x")._clean("\x1b[31mred\r\n" + "x" * 1000 + " secret_x")
        self.assertTrue(shown.startswith("[31mred xxx"))
        self.assertEqual(len(shown), 300)


class Logs(TestCase):
    def test_each_exchange_is_logged_and_each_retry_is_a_warning(self):
        self.clock()
        ecwid = self.standin()
        ecwid.faults.append("503 busy")
        with self.assertLogs("ecwid_batch", "DEBUG") as logs:
            ecwid.client().submit(Batch(gets(1)))
        levels = [(record.levelname, record.getMessage()) for record in logs.records]
        self.assertEqual([level for level, _ in levels], ["DEBUG", "WARNING", "DEBUG"])
        self.assertRegex(levels[0][1], r"^POST /batch: 503, \d+ bytes, \d+ ms$")
        self.assertRegex(levels[1][1], r"HTTP 503; Busy.*; trying again in 2\.0 s$")
        self.assertRegex(levels[2][1], r"^POST /batch: 200, \d+ bytes, \d+ ms$")


# --- Tests: following -----------------------------------------------------------------------------


class Pace(TestCase):
    def follow(self, length, look=0.15):
        """Follow a batch of some seconds by the pure pace; return how late, and how many looks."""
        waited, looks = 0.0, 0
        while True:
            done = min(1.0, waited / length)
            remaining = waited / done - waited if done else math.inf
            waited += ecwid_batch._next_pause(waited, remaining) + look
            looks += 1
            if waited >= length:
                return waited - length, looks

    def test_the_end_of_an_even_batch_is_noticed_soon_with_few_looks(self):
        lengths = [0.3 * 1.01**n for n in range(900)]  # 0.3 s to 39 minutes
        for length in lengths:
            late, looks = self.follow(length)
            self.assertLess(late, max(0.6, 0.12 * length))
            self.assertLess(looks, 75)
        self.assertLess(
            sum(self.follow(length)[0] / max(length, 3) for length in lengths) / 900, 0.06
        )

    def test_uneven_batches_are_noticed_soon_too(self):
        chance = random.Random(3)
        overshoots, counts = [], []
        for _ in range(40):
            length = math.exp(chance.uniform(math.log(0.3), math.log(1800)))
            weights = [chance.expovariate(1) for _ in range(chance.randint(3, 100))]
            latencies = iter([length / sum(weights) * weight for weight in weights])
            with virtual(latency=lambda call, latencies=latencies: next(latencies)) as parts:
                engine, client, clock = parts
                begun = clock.now
                client.wait(client.submit(Batch(gets(len(weights)))))
                looks = [query for method, _, query in engine.requests if method == "GET"]
                overshoots.append((clock.now - begun - length - 0.45) / max(length, 3))
                counts.append(len(looks) - 1)
                self.assertEqual(sum("escapedJson" in query for query in looks), 1)
        self.assertLess(sum(overshoots) / 40, 0.1)
        self.assertLess(sum(counts) / 40, 25)
        self.assertLessEqual(max(counts), 80)

    def test_missing_rows_are_looked_at_once_more(self):
        with virtual() as (engine, client, clock):
            batch = Batch(gets(3))
            ticket = client.submit(batch)
            whole = engine.look({"ticket": ticket, "escapedJson": "true"})
            short = with_odd_rows("lost rows", whole)
            for answers, unknown in (([short, whole], 0), ([short, short, whole], 1)):
                given = iter([engine.look({"ticket": ticket}), *answers])
                clock.sleeps.clear()
                with mock.patch.object(engine, "look", side_effect=given):
                    status = client.wait(ticket, batch=batch)
                self.assertEqual(len(status.failed), unknown)
                self.assertIn(1, clock.sleeps)


class Deadlines(TestCase):
    def test_the_timeout_is_kept_and_says_how_far_the_batch_was(self):
        for timeout in (0.5, 1, 7.5, 60):
            with virtual(latency=20.0) as (engine, client, clock):
                batch = Batch(creates(2))
                ticket = client.submit(batch)
                for call in (
                    lambda: client.wait(ticket, timeout=timeout),
                    lambda: client.run(batch, timeout=timeout),
                ):
                    if timeout == 60:
                        continue
                    begun = clock.now
                    done = "0 of 2 done; the batch goes on at Ecwid: wait for its ticket again"
                    error = self.fails(call, BatchTimeoutError, done)
                    self.assertAlmostEqual(clock.now - begun, timeout)
                    self.assertEqual(error.ticket, ticket)
                    self.assertEqual(error.last_status.total_requests, 2)
                self.assertEqual(len(client.wait(ticket, timeout=60).succeeded), 2)

    def test_a_finished_batch_is_seen_even_with_a_short_timeout(self):
        with virtual(seconds=0.02) as (engine, client, clock):
            ticket = client.submit(Batch(gets(4)))
            self.assertEqual(len(client.wait(ticket, timeout=0.1).responses), 4)
        with virtual(latency=2.0) as (engine, client, clock):
            ticket = client.submit(Batch(gets(4)))
            self.assertEqual(len(client.wait(ticket, timeout=8.6).responses), 4)

    def test_a_look_that_took_long_does_not_make_the_deadline_come_earlier(self):
        for stall, timeout, length, first in ((60, 200, 150, True), (20, 60, 25, False)):
            with virtual(latency=length) as (engine, client, clock):
                ticket, begun = client.submit(Batch(gets(1))), clock.now
                stalls = [stall]

                def fault(after, begun=begun, stalls=stalls, first=first, clock=clock):
                    if stalls and not after and (first or clock.now - begun > 2):
                        clock.now += stalls.pop()

                client.opener.fault = fault
                self.assertTrue(client.wait(ticket, timeout=timeout).done)
                client.opener.fault = lambda after: None
                engine.latency, begun = 1e6, clock.now
                ticket = client.submit(Batch(gets(1)))
                stalls.append(stall)
                client.opener.fault = fault
                self.fails(
                    lambda: client.wait(ticket, timeout=timeout), BatchTimeoutError, "0 of 1"
                )
                self.assertGreaterEqual(clock.now - begun, timeout)
                self.assertLess(clock.now - begun, timeout + 1)

    def test_a_timeout_that_is_over_sends_nothing(self):
        with virtual() as (engine, client, clock):
            for timeout in (0, -5, -(10**400)):
                error = self.fails(
                    lambda: client.run(Batch(gets(1)), timeout=timeout),
                    BatchTimeoutError,
                    "not sent, since the timeout is over",
                )
                self.assertEqual((error.ticket, error.uncertain), (None, False))
                error = self.fails(
                    lambda: client.wait("T", timeout=timeout), BatchTimeoutError, "not sent"
                )
                self.assertEqual((error.ticket, error.last_status), ("T", None))
            self.assertEqual(engine.requests, [])

    def test_it_holds_while_tries_fail(self):
        for fault in (ConnectionResetError("reset"), socket.timeout("timed out")):
            for timeout in (0.4, 2, 5, 100):
                with virtual() as (engine, client, clock):
                    ticket = client.submit(Batch(gets(1)))
                    client.opener.fault = mock.Mock(side_effect=fault)
                    begun = clock.now
                    error = self.fails(
                        lambda: client.wait(ticket, timeout=timeout),
                        BatchTimeoutError,
                        f"the timeout is over; the last try: GET {client.base_url}/1003/batch: ",
                    )
                    self.assertEqual(error.ticket, ticket)
                    self.assertAlmostEqual(clock.now - begun, timeout, delta=0.15)

    def test_the_time_that_on_progress_takes_counts(self):
        with virtual(latency=10.0) as (engine, client, clock):
            ticket, begun = client.submit(Batch(gets(20))), clock.now
            with self.assertRaises(BatchTimeoutError):
                client.wait(ticket, timeout=30, on_progress=lambda status: clock.sleep(8))
            self.assertLess(clock.now - begun, 30 + 8)

    def test_an_error_of_on_progress_passes_unchanged(self):
        mine = EcwidError("mine")
        with virtual(latency=1.0) as (engine, client, clock):
            for call in (
                lambda show: client.run(Batch(gets(2)), on_progress=show),
                lambda show: list(client.stream(gets(2), on_progress=show)),
            ):
                with self.assertRaises(EcwidError) as caught:
                    call(mock.Mock(side_effect=mine))
                self.assertIs(caught.exception, mine)
                self.assertEqual((mine.args, mine.tickets), (("mine",), ()))

    def test_ctrl_c_during_an_exchange_does_not_wait_for_it(self):
        gone = threading.Event()
        self.addCleanup(gone.set)
        ecwid = self.standin()

        def interrupt(handler):
            os.kill(os.getpid(), signal.SIGINT)
            gone.wait(20)

        ecwid.faults.append(interrupt)
        begun = time.monotonic()
        with self.assertRaises(KeyboardInterrupt):
            ecwid.client().status("T")
        self.assertLess(time.monotonic() - begun, 10)

    def test_the_key_is_offered_for_as_long_as_it_is_safe(self):
        for latency, timeout, safe in ((1000, 3000, True), (4000, 3700, False)):
            with virtual(latency=latency) as (engine, client, clock):
                batch = Batch(creates(9))
                error = self.fails(
                    lambda: client.run(batch, timeout=timeout), BatchTimeoutError, "[ticket 11kl"
                )
                self.assertEqual(error.deduplication_key, batch.deduplication_key if safe else None)


# --- Tests: streams and the journal ---------------------------------------------------------------


def fails_at(*numbers, status=400):
    """Return a script by which the requests with these SKU numbers fail."""
    failing = [f"sku-{n}" for n in numbers]

    def script(call):
        if call.get("body") and call["body"].get("sku") in failing:
            return status, {"errorMessage": "scripted"}
        return None

    return script


class Streams(TestCase):
    def test_any_number_of_requests_come_back_in_order(self):
        for stops in (None, False):
            for count in (0, 1, 3, 10):
                with virtual(latency=0.01) as (engine, client, _):
                    requests = creates(count)
                    found = list(
                        client.stream(iter(requests), batch_size=3, stop_on_first_failure=stops)
                    )
                    self.assertEqual([r.request for r in found], requests)
                    self.assertEqual(
                        [r.id for r in found], [f"{n:06d}" for n in range(1, count + 1)]
                    )
                    self.assertTrue(all(r.ok for r in found))
                    self.assertEqual(ran(engine), skus(count))

    def test_two_batches_are_at_ecwid_where_failures_do_not_stop_the_job(self):
        with virtual(latency=1.0) as (engine, client, clock):
            stream = client.stream(creates(12), batch_size=3, stop_on_first_failure=False)
            next(stream)
            self.assertEqual(len(engine.jobs), 3)  # the first is done, two are there
            for _ in range(3):
                next(stream)
            self.assertEqual(len(engine.jobs), 4)
            begun = clock.now
            list(stream)
            self.assertLess(clock.now - begun, 8)
            idle = [
                b.start - a.time
                for a, b in zip(list(engine.jobs.values()), list(engine.jobs.values())[1:])
            ]
            self.assertTrue(all(gap <= 0 for gap in idle))

    def test_by_default_a_batch_waits_for_the_success_of_the_one_before(self):
        with virtual(latency=1.0) as (engine, client, _):
            stream = client.stream(creates(6), batch_size=3)
            next(stream)
            self.assertEqual(len(engine.jobs), 1)

    def test_requests_are_read_as_they_are_needed(self):
        read = []
        with virtual() as (engine, client, _):
            requests = (read.append(r) or r for r in creates(30))
            stream = client.stream(requests, batch_size=3, stop_on_first_failure=False)
            self.assertEqual(read, [])
            next(stream)
            self.assertEqual(len(read), 9)
            list(stream)

    def test_a_failure_stops_the_job_by_default(self):
        with virtual() as (engine, client, _):
            engine.script = fails_at(4)
            found = list(client.stream(creates(9), batch_size=3))
            statuses = [r.status for r in found]
            self.assertEqual(statuses[:4], ["COMPLETED"] * 4)
            self.assertEqual(statuses[4:], ["FAILED"] + ["NOT_EXECUTED"] * 4)
            self.assertEqual(found[5].error_message, "Ecwid did not run this request")
            self.assertEqual(
                found[8].error_message, "not submitted, since an earlier request failed"
            )
            self.assertEqual(found[8].http_status_line, found[8].error_message)
            self.assertEqual([r.id for r in found][-1], "000009")
            self.assertEqual(len(engine.jobs), 2)

    def test_a_lost_row_stops_the_job_too_since_it_may_have_failed(self):
        for stops, unsubmitted in ((None, 3), (False, 0)):
            with virtual() as (engine, client, _):
                look = engine.look

                def lossy(query, look=look, engine=engine):
                    answer = look(query)
                    first = query["ticket"] == list(engine.jobs)[0]
                    return with_odd_rows("lost rows", answer) if first else answer

                engine.look = lossy
                stream = client.stream(creates(6), batch_size=3, stop_on_first_failure=stops)
                found = list(stream)
                self.assertEqual(found[2].status, "UNKNOWN")
                left = [r for r in found if r.status == "NOT_EXECUTED"]
                self.assertEqual(len(left), unsubmitted)
                words = "an earlier request is not known to have succeeded"
                self.assertTrue(all(words in r.error_message for r in left))

    def test_nothing_is_submitted_after_a_cancel(self):
        for stops, shape, group in itertools.product(
            (None, False), ("no code", "code 0", "no row"), ("night",)
        ):
            with self.subTest(stops=stops, shape=shape):
                options = {"latency": 1.0, "cancelled_rows": shape}
                with virtual(**options) as (engine, client, clock):

                    def cancel(status, engine=engine, client=client):
                        if status.completed_requests == 1 and len(engine.jobs) <= 2:
                            client.cancel("night")

                    stream = client.stream(
                        creates(30),
                        batch_size=3,
                        stop_on_first_failure=stops,
                        group_id=group,
                        on_progress=cancel,
                        retry=2,
                    )
                    found = list(stream)
                    self.assertLessEqual(len(engine.jobs), 2)
                    self.assertEqual(len(found), 30)
                    self.assertEqual(found[-1].status, "NOT_EXECUTED")
                    self.assertTrue(found[-1].error_message.startswith("not submitted, since"))
                    self.assertLess(len(ran(engine)), 6)

    def test_what_is_worth_running_again_and_what_ends_a_job(self):
        ok, busy = row("1"), row("2", status="FAILED", code=429)
        wrong = row("2", status="FAILED", code=400)
        left = row("3", status="NOT_EXECUTED", code=None)
        cancelled = row("3", code=None)
        odd = row("2", status="ODD", code=None)
        failed, unknown = "an earlier request failed", "not known to have succeeded"
        for rows, stops, group, ids, reason in (
            ([ok], True, None, (), None),
            ([ok, busy, left], True, None, ("2", "3"), failed),
            ([ok, wrong, left], True, None, (), failed),
            ([ok, busy, cancelled], True, None, (), failed),
            ([ok, cancelled], True, "g", (), "the job was cancelled"),
            ([ok, odd, left], True, None, ("2", "3"), unknown),
            ([ok, odd, left], True, "g", (), unknown),
            ([ok, busy], False, None, ("2",), None),
            ([ok, busy, wrong], False, None, ("2",), None),
            ([ok, busy, cancelled], False, "g", (), "the job was cancelled"),
            ([ok, busy, left], False, None, (), "the job was cancelled"),
            ([ok, odd], False, None, ("2",), None),
            ([ok, odd], False, "g", (), "may have been cancelled"),
        ):
            with self.subTest(rows=rows, stops=stops, group=group):
                if rows[-1] is wrong and len(rows) > 2:
                    rows = [ok, busy, {**wrong, "id": "3"}]
                batch = Batch([BatchRequest.get("/a", id=one["id"]) for one in rows])
                responses = status_of(*rows)._matched_to(batch).responses
                options = ecwid_batch._Options(None, stops, group)
                self.assertEqual(ecwid_batch._repeatable_ids(responses, options), ids)
                found = ecwid_batch._stop_reason(responses, options)
                self.assertEqual(found is None, reason is None)
                self.assertIn(reason or "", found or "")

    def test_what_is_retryable_is_run_again_and_the_order_kept(self):
        for stops in (None, False):
            with virtual() as (engine, client, clock):
                met = set()

                def script(call, met=met):
                    if call["method"] == "GET" and call["path"].endswith(("2", "4")):
                        if call["path"] not in met:
                            met.add(call["path"])
                            return 429, {"errorMessage": "busy"}
                    return None

                engine.script = script
                requests = gets(6)
                stream = client.stream(requests, batch_size=6, retry=2, stop_on_first_failure=stops)
                found = list(stream)
                self.assertEqual([r.request for r in found], requests)
                self.assertTrue(all(r.ok for r in found), found)
                self.assertEqual(len(engine.jobs), 2 if stops is False else 3)
                paths = [call["path"] for _, call in engine.ledger]
                self.assertEqual(len(paths), 8)

    def test_a_post_that_may_have_run_is_not_run_again(self):
        for status in (408, 500):
            with virtual() as (engine, client, _):
                engine.script = fails_at(1, status=status)
                found = list(client.stream(creates(3), retry=3))
                self.assertEqual([r.status for r in found][1:], ["FAILED", "NOT_EXECUTED"])
                self.assertFalse(found[1].retryable)
                self.assertEqual(ran(engine), skus(2))

    def test_a_restart_with_retry_runs_what_an_earlier_stop_left(self):
        with virtual() as (engine, client, _):
            busy = [True]
            engine.script = lambda call: (503, {}) if busy and call["path"].endswith("=1") else None
            requests = gets(6)
            options = {"batch_size": 3, "deduplication_key": KEY}
            first = list(client.stream(requests, **options))
            self.assertEqual([r.status for r in first[1:]], ["FAILED"] + ["NOT_EXECUTED"] * 4)
            busy.clear()
            again = list(client.stream(requests, retry=1, **options))
            self.assertTrue(all(r.ok for r in again))
            paths = collections.Counter(call["path"] for _, call in engine.ledger)
            self.assertEqual(paths.pop("/profile?n=1"), 2)
            self.assertEqual(set(paths.values()), {1})

    def test_what_failed_is_the_input_of_the_next_job(self):
        with virtual() as (engine, client, _):
            engine.script = fails_at(0, 3, 7)
            options = {"batch_size": 3, "stop_on_first_failure": False}
            found = list(client.stream(creates(9), **options))
            again = [r.request for r in found if not r.ok]
            self.assertEqual(len(again), 3)
            engine.script = None
            self.assertTrue(all(r.ok for r in client.stream(again, **options)))
            failed = client.run(Batch(r.request for r in found if not r.ok)).failed
            self.assertEqual(len(failed), 1)  # SKU_ALREADY_EXISTS stops that batch

    def test_an_error_of_the_input_comes_after_the_responses_of_what_was_submitted(self):
        class Mine(Exception):
            pass

        def broken(count):
            yield from creates(count)
            raise Mine

        for stops in (None, False):
            for source, kind, count in (
                (broken(7), Mine, 6),
                (broken(0), Mine, 0),
                ([*creates(4), "x"], TypeError, 3),
                ([*creates(3), *[BatchRequest.get("/a", id="x")] * 2], ValueError, 3),
            ):
                with virtual() as (engine, client, _):
                    found = []
                    with self.assertRaises(kind):
                        for response in client.stream(
                            source, batch_size=3, stop_on_first_failure=stops
                        ):
                            found.append(response)
                    self.assertEqual((len(found), len(engine.ledger)), (count, count))
            source = broken(7)

    def test_responses_that_are_there_come_before_the_error_of_the_next_submission(self):
        for stops, count, tickets in ((None, 3, 0), (False, 3, 1)):
            with virtual(latency=0.5) as (engine, client, clock):
                create, left = engine.create, [1 if stops is None else 2]

                def refuse_later(*arguments, create=create, left=left):
                    left[0] -= 1
                    if left[0] < 0:
                        raise Refusal(403, "INSUFFICIENT_APP_SCOPE", "no")
                    return create(*arguments)

                engine.create = refuse_later
                found = []
                with self.raises(ApiError, "HTTP 403") as caught:
                    for response in client.stream(
                        creates(12), batch_size=3, stop_on_first_failure=stops
                    ):
                        found.append(response)
                self.assertEqual(len(found), count)
                self.assertEqual(len(caught.exception.tickets), tickets)
                self.assertIsNotNone(caught.exception.deduplication_key)

    def test_the_timeout_is_for_the_whole_job_and_the_error_says_how_to_go_on(self):
        with virtual(latency=1.0) as (engine, client, clock):
            begun = clock.now
            found = []
            with self.raises(BatchTimeoutError, "stream the same requests with dedup") as caught:
                for response in client.stream(
                    creates(60), batch_size=3, timeout=10, stop_on_first_failure=False
                ):
                    found.append(response)
            self.assertAlmostEqual(clock.now - begun, 10)
            self.assertIn(caught.exception.ticket, engine.jobs)
            key = caught.exception.deduplication_key
            again = list(
                client.stream(
                    creates(60), batch_size=3, deduplication_key=key, stop_on_first_failure=False
                )
            )
            self.assertEqual((len(again), ran(engine)), (60, skus(60)))

    def test_after_the_hour_the_error_offers_no_key_but_says_what_is_safe(self):
        with virtual(latency=1000.0) as (engine, client, _):
            found = []
            with self.assertRaises(BatchTimeoutError) as caught:
                for response in client.stream(creates(12), batch_size=3, timeout=6500):
                    found.append(response)
            self.assertIsNone(caught.exception.deduplication_key)
            self.assertIn(
                "it is too late to go on with the deduplication key", str(caught.exception)
            )
            self.assertIn("from request 10 on, as a new job", str(caught.exception))
            self.assertEqual(len(found), 6)

    def test_a_retry_does_not_make_the_job_forget_what_is_at_ecwid(self):
        with virtual(latency=1000.0) as (engine, client, _):
            engine.script = lambda call: (429, {}) if len(engine.ledger) == 1 else None
            with self.assertRaises(BatchTimeoutError) as caught:
                list(
                    client.stream(
                        creates(8),
                        batch_size=2,
                        timeout=4500,
                        retry=1,
                        stop_on_first_failure=False,
                    )
                )
            self.assertIn("from request 5 on, as a new job", str(caught.exception))

    def test_after_the_hour_a_submission_without_an_answer_is_named(self):
        with virtual(latency=1300.0) as (engine, client, clock):

            def fault(after):
                if after and len(engine.jobs) == 2:
                    raise ConnectionResetError("reset")

            client.opener.fault = fault
            with self.assertRaises(TransportError) as caught:
                list(client.stream(creates(9), batch_size=3))
            self.assertIn("from request 7 on, as a new job", str(caught.exception))
            self.assertIn("requests 4 to 6 may have run: look at the shop", str(caught.exception))

    def test_a_key_that_was_given_may_be_of_an_earlier_run(self):
        with virtual(latency=1000.0) as (engine, client, _):
            self.fails(
                lambda: list(client.stream(creates(3), timeout=500, deduplication_key=KEY)),
                BatchTimeoutError,
                "to go on, less than an hour after the job was first started, stream the same",
            )

    def test_leaving_early_logs_the_tickets_and_how_to_go_on(self):
        def leave(stream):
            stream.close()

        def interrupt(stream):
            with mock.patch("time.sleep", side_effect=KeyboardInterrupt):
                with self.assertRaises(KeyboardInterrupt):
                    list(stream)

        def fail(stream):
            with self.assertRaises(ZeroDivisionError):
                stream.throw(ZeroDivisionError())

        for end in (leave, interrupt, fail):
            with virtual(latency=1.0) as (engine, client, _):
                stream = client.stream(creates(12), batch_size=3, stop_on_first_failure=False)
                next(stream)
                with self.assertLogs("ecwid_batch", "WARNING") as logs:
                    end(stream)
                self.assertIn(", ".join(list(engine.jobs)[-2:]), logs.output[0])
                self.assertIn("deduplication_key=", logs.output[0])
                self.assertEqual(list(stream), [])
        with virtual() as (engine, client, _):
            stream = client.stream(creates(3))
            with self.assertRaises(AssertionError), self.assertLogs("ecwid_batch", "WARNING"):
                list(stream)

    def test_memory_is_flat(self):
        def peak(count):
            tracemalloc.start()
            with virtual() as (engine, client, _):
                canned = {"status": "COMPLETED", "totalRequests": 50, "completedRequests": 50}
                rows = [row(code=200, escapedHttpBody="{}") for _ in range(50)]

                def handle(method, target, headers, body):
                    if method == "POST":
                        first = json.loads(body)[0]["id"]
                        return 200, {}, {"ticket": first}
                    first = int(re.search(r"ticket=(\d+)", target)[1])
                    for n, one in enumerate(rows):
                        one["id"] = f"{first + n:06d}"
                    return 200, {}, {**canned, "responses": rows}

                engine.handle = handle
                stream = client.stream(
                    (BatchRequest.get(f"/products/{n}") for n in range(count)),
                    batch_size=50,
                    stop_on_first_failure=False,
                )
                self.assertEqual(sum(1 for _ in stream), count)
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return most

        try:
            import tracemalloc
        except ImportError:
            self.skipTest("this Python cannot trace memory")
        peak(200)
        self.assertLess(peak(4000), 1.3 * peak(1000) + 300_000)


class Killed(BaseException):
    """The process dies here."""


class Journals(TestCase):
    def setUp(self):
        super().setUp()
        self.path = self.folder() / "job.journal"

    def stream(self, client, requests, **options):
        options = {"batch_size": 3, "journal": self.path, "stop_on_first_failure": False, **options}
        return client.stream(requests, **options)

    def lines(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def test_it_is_readable_and_records_each_step_before_and_after(self):
        with virtual() as (engine, client, clock):
            with mock.patch("os.fsync", side_effect=os.fsync) as fsync:
                found = list(self.stream(client, creates(7), deduplication_key=KEY))
            self.assertEqual(len(found), 7)
            first, *rest = self.lines()
            self.assertEqual(
                first,
                {
                    "journal": "ecwid_batch 1",
                    "store": 1003,
                    "key": KEY,
                    "batchSize": 3,
                    "stopOnFirstFailure": False,
                },
            )
            self.assertEqual([line["batch"] for line in rest], [1, 1, 2, 2, 3, 3])
            self.assertEqual([line["size"] for line in rest[::2]], [3, 3, 1])
            self.assertEqual([line["ticket"] for line in rest[1::2]], list(engine.jobs))
            keys = [
                query["deduplicationKey"]
                for _, _, query in engine.requests
                if "deduplicationKey" in query
            ]
            self.assertEqual([line["key"] for line in rest[::2]], keys)
            self.assertRegex(rest[0]["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")
            self.assertEqual(fsync.call_count, 6)

    def test_the_same_call_goes_on_weeks_later_and_gives_all_responses_again(self):
        for stops in (None, False):
            with virtual(latency=0.1) as (engine, client, clock):
                path = self.folder() / "j"
                options = {"journal": str(path), "batch_size": 3, "stop_on_first_failure": stops}
                stream = client.stream(creates(20), **options)
                for _ in range(7):
                    next(stream)
                stream.close()
                clock.now += 21 * 24 * HOUR
                for _ in range(2):
                    found = list(client.stream(creates(20), **options))
                    self.assertEqual([r.request for r in found], creates(20))
                    self.assertTrue(all(r.ok for r in found))
                    self.assertEqual(ran(engine), skus(20))

    def test_a_job_of_another_input_key_or_size_is_refused_and_nothing_submitted(self):
        with virtual() as (engine, client, _):
            list(self.stream(client, creates(7)))
            before = self.path.read_bytes()
            calls = len(engine.ledger)
            mended = creates(7)
            mended[4] = BatchRequest.post("/products", {"sku": "mended", "name": "n"})
            for requests, options, kind, words in (
                (mended, {}, ValueError, "something in requests 4 to 6 differs from what"),
                (creates(8), {}, ValueError, "something in requests 7 to 8 differs from what"),
                (creates(6), {}, ValueError, "the input ends before request 7, but the journal"),
                (
                    creates(7),
                    {"deduplication_key": KEY},
                    ValueError,
                    "is of a job with deduplication_key=",
                ),
                (creates(7), {"batch_size": 4}, ValueError, "is of a job with batch_size=3, not 4"),
                (
                    creates(7),
                    {"stop_on_first_failure": None},
                    ValueError,
                    "stop_on_first_failure=False, not True",
                ),
            ):
                logger = logging.getLogger("ecwid_batch")
                with self.subTest(words=words), mock.patch.object(logger, "warning") as warning:
                    found = []
                    with self.raises(kind, words):
                        for response in self.stream(client, requests, **options):
                            found.append(response)
                    self.assertEqual(warning.call_count, 0)  # no advice to do the same again
                    if "4 to 6" in words:
                        self.assertEqual(len(found), 3)
                    self.assertEqual(len(engine.ledger), calls)
                    self.assertEqual(self.path.read_bytes(), before)
            other = EcwidClient(1004, "t", opener=client.opener)
            with self.raises(ValueError, "is of a job with store_id=1003, not 1004"):
                self.stream(other, creates(7))

    def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(self):
        client = EcwidClient(1003, "t")
        header = b'{"journal": "ecwid_batch 1", "store": 1003, "key": "%s", "batchSize": 3, ' % (
            KEY.encode()
        )
        header += b'"stopOnFirstFailure": false}\n'
        for content in (
            b"hello\n",
            b"hello",
            b"{}\n",
            b'{"journal": "ecwid_batch 2"}\n',
            b"[1]\n[2]\n",
            b"\xff\xfe\n\n",
            header + b"junk\n{}\n",
            header + b'{"batch": 1}\n',
            header + b'{"batch": 1, "attempt": 0, "ticket": "T"}\n',
            header + b'{"batch": 1, "attempt": 0, "refused": true}\n',
            header + b"[" * 100_000 + b"\n",
            header + b"junk\n",
            header + b'{"batch": 1, "attempt": 0, "key": "", "size": 1, "time": "noon"}\n',
        ):
            with self.subTest(content=content):
                self.path.write_bytes(content)
                with self.raises(ValueError, f"{self.path} is not a journal: see its line"):
                    self.stream(client, creates(1))
                self.assertEqual(self.path.read_bytes(), content)
        with self.raises(ValueError, "the journal must be a regular file"):
            self.stream(client, creates(1), journal=os.devnull)
        with self.assertRaises(OSError):
            self.stream(client, creates(1), journal=self.path.parent)

    def test_a_torn_last_line_is_ignored(self):
        with virtual(latency=0.1) as (engine, client, clock):
            list(self.stream(client, creates(4), deduplication_key=KEY))
            whole = self.path.read_bytes()
            last = whole.rindex(b"\n", 0, -1) + 1
            for end in (*range(last, len(whole), 7), len(whole) - 1):
                self.path.write_bytes(whole[:end])
                self.assertEqual(len(list(self.stream(client, creates(4)))), 4)
                self.assertEqual(self.path.read_bytes(), whole)
            for end in (0, 1, 9, 30, 60):
                self.path.write_bytes(whole[:end])
                list(self.stream(client, creates(4), deduplication_key=KEY))
                self.assertEqual(len(self.path.read_bytes()), len(whole))
            self.path.write_bytes(whole[:-1])  # whole, but for its end
            list(self.stream(client, creates(4)))
            self.assertEqual(self.path.read_bytes(), whole)
            self.assertEqual(ran(engine), skus(4))

    def test_a_record_that_somebody_has_changed_is_refused(self):
        with virtual() as (engine, client, clock):
            engine.script = lambda call: (429, {}) if len(engine.ledger) == 1 else None
            self.assertTrue(all(r.ok for r in self.stream(client, gets(3), retry=1)))
            text = self.path.read_text()
            for old, new, words in (
                ('"ids": ["000001"]', '"ids": ["zz"]', "something in requests 1 to 3 differs"),
                ('"ids": ["000001"]', '"ids": [5]', "is not a journal: see its line 4"),
                ('"ticket": "', '"ticket": 5, "x": "', "is not a journal: see its line 3"),
            ):
                self.assertIn(old, text)
                self.path.write_text(text.replace(old, new))
                with self.raises(ValueError, words):
                    list(self.stream(client, gets(3), retry=1))

    def test_a_second_process_is_refused_while_the_first_runs(self):
        with virtual() as (engine, client, _):
            stream = self.stream(client, creates(9))
            next(stream)
            calls = len(engine.requests)
            with self.raises(ValueError, f"{self.path} is in use"):
                self.stream(client, creates(9))
            self.assertEqual(len(engine.requests), calls)
            stream.close()
            self.assertEqual(len(list(self.stream(client, creates(9)))), 9)

    def test_a_ticket_that_ecwid_forgot_is_an_error_that_names_its_requests(self):
        with virtual() as (engine, client, _):
            stream = self.stream(client, creates(9))
            for _ in range(4):
                next(stream)
            stream.close()
            calls = len(engine.ledger)
            del engine.jobs[list(engine.jobs)[0]]
            error = self.fails(
                lambda: list(self.stream(client, creates(9))),
                ApiError,
                "Ecwid does not know the ticket of requests 1 to 3 any more: look at the shop",
            )
            self.assertEqual(error.http_status, 404)
            self.assertNotIn("to go on", str(error))
            self.assertEqual(len(engine.ledger), calls)

    def killed_before_the_ticket(self, client):
        """Run the job until the process dies in the submission of the second batch."""
        submit = client._submit
        calls = itertools.count(1)

        def dies(*arguments):
            ticket = submit(*arguments)
            if next(calls) == 2:
                raise Killed
            return ticket

        with mock.patch.object(client, "_submit", dies), self.assertRaises(Killed):
            list(self.stream(client, creates(9)))

    def test_what_was_being_submitted_is_submitted_again_while_the_hour_lasts(self):
        for wait, known in ((1, True), (3500, True), (3590, False), (3 * HOUR, False)):
            with self.subTest(wait=wait), virtual() as (engine, client, clock):
                self.path = self.folder() / "j"
                self.killed_before_the_ticket(client)
                clock.now += wait
                if known:
                    self.assertEqual(len(list(self.stream(client, creates(9)))), 9)
                    self.assertEqual(ran(engine), skus(9))
                    continue
                found = []
                with self.raises(EcwidError, "requests 4 to 6 may have run") as caught:
                    for response in self.stream(client, creates(9)):
                        found.append(response)
                self.assertEqual((len(found), ran(engine)), (3, skus(6)))
                self.assertIn("delete line 4 of the journal", str(caught.exception))
                self.assertTrue(caught.exception.uncertain)
                self.assertIsNone(caught.exception.deduplication_key)

    def test_the_line_of_what_did_not_run_can_be_deleted_to_go_on(self):
        with virtual() as (engine, client, clock):
            self.killed_before_the_ticket(client)
            engine.jobs.popitem()
            engine.ledger[:] = engine.ledger[:3]  # the shop shows that they did not run
            engine.shop = Shop(1003)
            clock.now += 3 * HOUR
            lines = self.path.read_text().splitlines(keepends=True)
            self.path.write_text("".join(lines[:3]))
            self.assertEqual(len(list(self.stream(client, creates(9)))), 9)
            self.assertEqual(ran(engine), skus(9))

    def test_a_lost_retry_names_its_requests_and_what_comes_after_all_that_was_submitted(self):
        with virtual(latency=1.0) as (engine, client, clock):
            engine.script = lambda call: (429, {}) if len(engine.ledger) == 2 else None
            submit, calls = client._submit, itertools.count(1)

            def dies(*arguments):
                ticket = submit(*arguments)
                if next(calls) == 3:
                    raise Killed
                return ticket

            with mock.patch.object(client, "_submit", dies), self.assertRaises(Killed):
                list(self.stream(client, creates(12), retry=1))
            self.assertEqual(self.lines()[-1]["ids"], ["000002"])
            clock.now += 3 * HOUR
            error = self.fails(
                lambda: list(self.stream(client, creates(12), retry=1)),
                EcwidError,
                "the requests 000002 of requests 1 to 3 may have run",
            )
            self.assertIn("from request 7 on, as a new job", str(error))
            self.assertNotIn("to go on, make", str(error))

    def test_a_submission_that_ecwid_refused_leaves_no_doubt(self):
        with virtual(client_options={"max_retry_time": 0}) as (engine, client, clock):
            with mock.patch.object(engine, "token", "another"):
                self.fails(lambda: list(self.stream(client, creates(4))), ApiError, "HTTP 403")
            client.opener.fault = mock.Mock(side_effect=ConnectionRefusedError("no"))
            self.fails(lambda: list(self.stream(client, creates(4))), TransportError, "no")
            client.opener.fault = lambda after: None
            self.assertEqual([line for line in self.lines() if line.get("refused")][0]["batch"], 1)
            clock.now += 3 * HOUR
            self.assertEqual(len(list(self.stream(client, creates(4)))), 4)
            self.assertEqual(ran(engine), skus(4))

    def test_what_was_run_again_is_recorded_and_not_run_a_third_time(self):
        with virtual() as (engine, client, clock):
            busy = {"/profile?n=1", "/profile?n=3"}

            def script(call):
                if call["path"] in busy:
                    busy.discard(call["path"])
                    return 429, {"errorMessage": "busy"}
                return None

            engine.script = script
            requests = gets(5)
            found = list(self.stream(client, requests, retry=2, batch_size=5))
            self.assertTrue(all(r.ok for r in found))
            retries = [line for line in self.lines() if line.get("attempt") == 1]
            self.assertEqual(retries[0]["ids"], ["000002", "000004"])
            calls = len(engine.ledger)
            clock.now += 3 * HOUR
            for retry in (2, 0):
                found = list(self.stream(client, requests, retry=retry, batch_size=5))
                self.assertTrue(all(r.ok for r in found))
                self.assertEqual(len(engine.ledger), calls)

    def test_what_was_submitted_behind_a_cancelled_batch_is_not_forgotten(self):
        with virtual(latency=1.0) as (engine, client, clock):
            options = {"group_id": "g"}

            def cancel(status):
                if status.completed_requests == 1 and len(engine.jobs) == 2:
                    first = engine.jobs[list(engine.jobs)[0]]
                    first.cancel("no code")

            runs = []
            for _ in range(2):
                stream = self.stream(client, creates(12), on_progress=cancel, **options)
                runs.append([(r.id, r.status) for r in stream])
                clock.now += 3 * HOUR
            self.assertEqual(runs[0], runs[1])
            self.assertEqual([s for _, s in runs[0]][3:6], ["COMPLETED"] * 3)
            self.assertEqual([s for _, s in runs[0]][6:], ["NOT_EXECUTED"] * 6)

    def test_a_disk_that_is_full_is_an_error_with_the_ticket(self):
        with virtual() as (engine, client, _):
            real = ecwid_batch._Journal._append

            def short_write(journal, line):
                journal._file = mock.Mock(wraps=journal._file, write=lambda data: 5)
                return real(journal, line)

            with mock.patch.object(ecwid_batch._Journal, "_append", short_write):
                self.fails(
                    lambda: list(self.stream(client, creates(9))),
                    EcwidError,
                    "the disk may be full",
                )
        for full_at, tickets in ((1, 0), (2, 1), (3, 1)):
            with virtual() as (engine, client, _):
                self.path = self.folder() / "j"
                effects = [None] * (full_at - 1) + [OSError(28, "No space left on device")]
                with mock.patch("os.fsync", side_effect=effects):
                    error = self.fails(
                        lambda: list(self.stream(client, creates(9))),
                        EcwidError,
                        f"cannot write the journal {self.path}: [Errno 28] No space left",
                    )
                self.assertEqual(len(error.tickets), tickets)
                self.assertEqual(len(engine.jobs), tickets)

    def test_an_error_says_to_go_on_with_the_journal(self):
        with virtual(latency=1000) as (engine, client, _):
            for timeout in (500, 5000):
                self.fails(
                    lambda: list(self.stream(client, creates(9), timeout=timeout)),
                    BatchTimeoutError,
                    "to go on, make the same call with the same journal",
                )


class Schedule:
    """One job under faults, kills and restarts, in virtual time: what a journal must survive."""

    FAULTS = ("reset", "timeout", "refused", "500", "429", "408", "html", "odd JSON", "cut off")

    def __init__(self, seed, folder):
        self.chance = random.Random(seed)
        self.path = folder / f"{seed}.journal"
        self.count = self.chance.randint(1, 21)
        self.stops = self.chance.choice([None, False])
        self.retry = self.chance.randint(0, 2)
        self.busy = set()
        if self.retry:
            self.busy = {f"sku-{n}" for n in range(self.count) if self.chance.random() < 0.1}
        self.rate = self.chance.choice([0, 0.05, 0.2])
        self.dying = False
        self.tear = False

    def script(self, call):
        """Answer some requests with 429, once: those did not run."""
        if call["body"]["sku"] in self.busy:
            self.busy.discard(call["body"]["sku"])
            self.engine.ledger.pop()
            return 429, {"errorMessage": "busy"}
        return None

    def fault(self, after):
        """Break an exchange, or begin to kill the process in it."""
        if self.kill_in == 0:
            self.dying = True
        self.kill_in -= 1
        if self.dying:
            raise ConnectionResetError("dying")
        if self.chance.random() >= self.rate:
            return
        kind = self.chance.choice(self.FAULTS)
        if kind == "timeout":
            self.clock.now += 60
            raise socket.timeout("timed out")
        if kind == "reset" or after and kind in ("refused", "429"):
            raise ConnectionResetError("reset")
        if kind == "refused":
            raise urllib.error.URLError(ConnectionRefusedError("refused"))
        if kind in ("500", "429", "408"):
            opened("http://x", int(kind), {}, {})
        bodies = {"html": HTML, "odd JSON": b'{"odd": 1}', "cut off": b'{"ticket": "1'}
        self.replaced = bodies[kind] if after else HTML
        raise http.client.BadStatusLine("odd")

    def monotonic(self):
        if self.dying and threading.current_thread() is threading.main_thread():
            raise Killed
        return self.clock.now

    def fsync(self, number):
        """Die while a record is being written, which may tear it."""
        if self.chance.random() < self.fsync_rate:
            self.tear = True
            raise Killed

    def start(self):
        """Start, or start again, the process; return its responses, or None if it was killed."""
        self.dying = self.tear = False
        self.kill_in = self.chance.choice([-1, -1, *range(12)])
        self.fsync_rate = self.chance.choice([0, 0, 0.1])
        stop_after = self.chance.choice([None, None, self.chance.randint(0, self.count)])
        found = []
        with mock.patch("time.monotonic", self.monotonic), mock.patch("os.fsync", self.fsync):
            stream = self.client.stream(
                creates(self.count),
                journal=self.path,
                batch_size=3,
                retry=self.retry,
                stop_on_first_failure=self.stops,
            )
            try:
                for response in stream:
                    found.append(response)
                    if len(found) == stop_after:
                        raise Killed
                return found
            except Killed:
                return None
            except EcwidError as error:
                if error.uncertain and "may have run" in str(error):
                    raise
                return None
            finally:
                self.dying = False
                stream.close()
                if self.tear and self.path.stat().st_size:
                    content = self.path.read_bytes()
                    last = content.rfind(b"\n", 0, -1) + 1
                    self.path.write_bytes(content[: self.chance.randint(last, len(content))])

    def run(self):
        """Start the process until it ends normally or says what is not known; return which."""
        with virtual(latency=0.5) as (self.engine, self.client, self.clock):
            self.engine.script = self.script
            self.client.opener.fault = self.fault
            for _ in range(300):
                try:
                    found = self.start()
                except EcwidError:
                    return "unknown"
                if found is not None:
                    return found
                pauses = [1, 60, 1800, 3500, 4000, 3 * 24 * HOUR]
                self.clock.now += self.chance.choice(pauses)
            return "never"


class ExactlyOnce(TestCase):
    JOBS = int(os.environ.get("ECWID_BATCH_JOBS", 100))

    def check(self, seed, folder):
        """Run one schedule and check it; return how it ended."""
        schedule = Schedule(seed, folder)
        end = schedule.run()
        counts = collections.Counter(ran(schedule.engine))
        self.assertEqual([sku for sku, count in counts.items() if count > 1], [], seed)
        self.assertNotEqual(end, "never", seed)
        if end == "unknown":
            return end
        self.assertEqual([r.request for r in end], creates(schedule.count), seed)
        left = [r.status for r in end if not r.ok]
        if left:  # more 429s than retries: whatever is not done is said not to have run
            self.assertTrue(all(r.retryable or r.ok for r in end), (seed, end))
            done = [r.request.body["sku"] for r in end if r.ok]
            self.assertEqual(sorted(counts), sorted(done), seed)
            return "stopped"
        self.assertEqual(sorted(counts), sorted(skus(schedule.count)), seed)
        return "done"

    def test_with_a_journal_whatever_happens(self):
        folder = self.folder()
        ends = collections.Counter(self.check(seed, folder) for seed in range(self.JOBS))
        if "ECWID_BATCH_JOBS" in os.environ:
            print(dict(ends))
        self.assertGreater(ends["done"], self.JOBS / 2)
        self.assertGreater(ends["unknown"], 0)

    def test_without_the_record_before_a_submission_it_would_not_hold(self):
        folder = self.folder()
        with mock.patch.object(ecwid_batch._Journal, "add_submission"):
            with mock.patch.object(ecwid_batch._Journal, "_add", self.lenient_add):
                with self.assertRaises(AssertionError):
                    for seed in range(self.JOBS):
                        self.check(seed, folder)

    @staticmethod
    def lenient_add(journal, number, line):
        """Read a journal that has tickets only."""
        if journal._header is None:
            journal._header = line
        elif "ticket" in line:
            pass

    def test_whatever_the_network_does_to_a_batch_over_real_http(self):
        self.clock()
        ecwid = self.standin()
        chance = random.Random(7)
        faults = [name for name in FAULTS if name not in ROW_FAULTS and name != "redirect"]
        for number in range(40):
            ecwid.faults = [chance.choice([None, *faults]) for _ in range(3)]
            requests = creates(3, 10 * number)
            status = ecwid.client().run(Batch(requests))
            self.assertEqual([r.request for r in status.succeeded], requests)
        self.assertEqual(len(ran(ecwid)), 120)
        self.assertEqual(len(set(ran(ecwid))), 120)

    @unittest.skipUnless(hasattr(signal, "SIGKILL"), "needs SIGKILL")
    def test_a_real_process_that_is_killed_again_and_again(self):
        ecwid = self.standin(latency=0.003)
        folder = self.folder()
        lines = [
            f'{{"method": "POST", "path": "/products", "body": {{"sku": "{sku}", "name": "n"}}}}'
            for sku in skus(40)
        ]
        (folder / "in.jsonl").write_text("\n".join(lines))
        environment = {
            **CLEAN_ENV,
            "ECWID_STORE_ID": "1003",
            "ECWID_TOKEN": ecwid.token,
            "ECWID_BASE_URL": ecwid.base_url,
        }
        command = [sys.executable, str(HERE / "ecwid_batch.py"), "run", "in.jsonl", "--journal"]
        command += ["job.journal", "--batch-size", "10", "--continue-on-failure", "-q"]
        chance = random.Random(11)
        kills = int(os.environ.get("ECWID_BATCH_KILLS", 1))
        for _ in range(kills):
            with open(folder / "out.jsonl", "wb") as out:
                with subprocess.Popen(command, cwd=folder, env=environment, stdout=out) as process:
                    time.sleep(0.15 + chance.uniform(0, 0.3))
                    process.kill()
        out = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60)
        self.assertEqual((out.returncode, out.stderr), (0, b""))
        found = [json.loads(line) for line in out.stdout.splitlines()]
        self.assertEqual([one["line"] for one in found], list(range(1, 41)))
        self.assertEqual(ran(ecwid), skus(40))


# --- Tests: the command line ----------------------------------------------------------------------


class OnTheCommandLine(WithStandIn):
    def setUp(self):
        super().setUp()
        self.here, self.virtual = self.folder(), None

    def environment(self, **changes):
        given = {
            **CLEAN_ENV,
            "ECWID_STORE_ID": "1003",
            "ECWID_TOKEN": self.ecwid.token,
            "ECWID_BASE_URL": self.ecwid.base_url,
            "http_proxy": "http://127.0.0.1:1",
            **changes,
        }
        return {name: value for name, value in given.items() if value is not None}

    def start(self, *arguments, **options):
        """Start the command line as a process."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, str(HERE / "ecwid_batch.py"), *arguments],
            env=self.environment(),
            cwd=self.here,
            **{**pipes, **options},
        )

    def call(self, *arguments, stdin="", env=None, stdout=None):
        """Run the command line in this process, in virtual time.

        Return its exit status, the lines of standard output, the text of standard error.
        """
        out, err = stdout or io.StringIO(), io.StringIO()
        given = io.BytesIO(stdin if isinstance(stdin, bytes) else stdin.encode())
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch("sys.stdin", io.TextIOWrapper(given)))
            self.virtual = self.virtual or self.clock()
            environment = self.environment(**(env or {}))
            stack.enter_context(mock.patch.dict(os.environ, environment, clear=True))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            try:
                code = ecwid_batch.main([str(argument) for argument in arguments])
            except SystemExit as end:  # of argparse
                code = end.code
        self.assertNotIn(self.ecwid.token, err.getvalue())
        self.assertNotIn("Traceback", err.getvalue())
        lines = [] if stdout else out.getvalue().splitlines()
        return code, lines, err.getvalue()

    def file(self, text, name="in.jsonl"):
        path = self.here / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def lines(self, requests):
        return "".join(f'{{"id": "{n}", {r._json}\n' for n, r in enumerate(requests, 1))


class CommandLine(OnTheCommandLine):
    def test_it_runs_as_a_file_as_a_module_and_from_standard_input(self):
        for command, stdin in (
            ([str(HERE / "ecwid_batch.py"), "run", str(self.file(EXAMPLE))], b""),
            (["-m", "ecwid_batch", "run", "-"], EXAMPLE.encode()),
        ):
            done = subprocess.run(
                [sys.executable, *command],
                env=self.environment(),
                input=stdin,
                capture_output=True,
                timeout=60,
                cwd=self.here,
            )
            rows = [json.loads(line) for line in done.stdout.splitlines()]
            self.assertEqual([one["line"] for one in rows], [1, 2, 3])
            self.assertIn(b"3 requests: ", done.stderr)
            self.assertEqual(b"Traceback" in done.stderr, False)

    def test_an_output_line_has_the_apis_field_names_and_the_line_of_the_input(self):
        text = (
            '\n{"method": "GET", "path": "/profile"}\n\n{"method": "PUT", "path": "/products/9"}\n'
        )
        code, out, err = self.call("run", self.file(text), "--continue-on-failure")
        first, second = (json.loads(line) for line in out)
        self.assertEqual(code, 1)
        self.assertEqual(
            list(first),
            [
                "line",
                "id",
                "method",
                "path",
                "status",
                "httpStatusCode",
                "httpStatusLine",
                "response",
            ],
        )
        self.assertEqual((first["line"], first["id"], first["status"]), (2, "000001", "COMPLETED"))
        self.assertEqual(first["response"]["generalInfo"], {"storeId": 1003})
        self.assertEqual((second["line"], second["path"]), (4, "/products/9"))
        self.assertEqual(second["httpStatusLine"], "products 9 not found")
        self.assertIn("2 requests: 1 succeeded, 1 failed;", err)
        self.assertIn(
            "the first that did not succeed: line 4, PUT /products/9, FAILED 404: products 9 not f",
            err,
        )
        self.assertIn("--failed FILE writes the requests that did not succeed", err)

    def test_the_output_is_always_json(self):
        texts = {"1e999": '{"a": 1e999, "b": 2}', "plain": '{"a": 1.5}'}
        for text in texts.values():
            row_ = {"status": "COMPLETED", "httpStatusCode": 200, "escapedHttpBody": text}
            (response,) = status_of({"id": "1", **row_})
            line = ecwid_batch._json_line({"response": response.body}, response)
            self.assertEqual(json.loads(line, parse_constant=self.fail)["response"]["a"] != 1, True)
        (response,) = status_of(
            {"id": "1", "status": "COMPLETED", "httpBody": math.inf, "httpStatusCode": 200}
        )
        self.assertEqual(
            ecwid_batch._json_line({"response": response.body}, response), '{"response": "inf"}'
        )

    def test_options_reach_ecwid(self):
        self.call(
            "run", "-", "--parallel", "--continue-on-failure", "--group", "night", "--batch-size",
            "2", "--deduplication-key", KEY, stdin=EXAMPLE,
        )  # fmt: skip
        queries = [query for method, path, query in self.ecwid.requests if method == "POST"]
        self.assertEqual(len(queries), 2)
        self.assertEqual(queries[0].pop("deduplicationKey")[14], "5")
        self.assertEqual(
            queries[0],
            {"allowParallelMode": "true", "stopOnFirstFailure": "false", "groupId": "night"},
        )

    def test_submit_wait_status_list_cancel_and_delete_take_many_tickets(self):
        source = self.file(self.lines(creates(4)))
        code, tickets, err = self.call("submit", source, "--batch-size", "2", "--group", "night")
        self.assertEqual((code, tickets, err), (0, list(self.ecwid.jobs), ""))
        code, out, err = self.call("wait", *tickets)
        rows = [json.loads(line) for line in out]
        self.assertEqual((code, [one["id"] for one in rows]), (0, ["1", "2", "3", "4"]))
        self.assertEqual([one["ticket"] for one in rows], [t for t in tickets for _ in range(2)])
        self.assertNotIn("line", rows[0])
        self.assertIn("4 requests: 4 succeeded;", err)
        code, out, _ = self.call("status", *tickets)
        self.assertEqual([json.loads(line)["ticket"] for line in out], tickets)
        self.assertNotIn("responses", json.loads(out[0]))
        code, out, _ = self.call("status", "--responses", tickets[0])
        self.assertEqual(len(json.loads(out[0])["responses"]), 2)
        code, out, _ = self.call("list", "COMPLETED")
        self.assertEqual(out, tickets)
        code, out, _ = self.call("cancel", "night", "--ticket", tickets[0])
        self.assertEqual(code, 0)
        self.assertEqual(out, ['{"group": "night", "updateCount": 0}'])
        code, out, _ = self.call("delete", *tickets)
        self.assertEqual([json.loads(line)["deleteCount"] for line in out], [1, 1])

    def test_a_ticket_that_is_not_known_does_not_keep_the_others_from_being_asked(self):
        _, (ticket,), _ = self.call("submit", self.file(EXAMPLE))
        for command in ("wait", "status"):
            code, out, err = self.call(command, "T", ticket)
            self.assertEqual((code, len(out)), (3, 3 if command == "wait" else 1))
            self.assertIn("HTTP 404", err)
            self.assertIn("[ticket T]", err)

    def test_commands_that_ask_one_thing_give_up_after_ten_seconds(self):
        self.ecwid.faults = ["500"] * 99
        begun = (self.virtual or self.clock()).now
        self.virtual = self.virtual or mock.Mock()
        for arguments in (("status", "T"), ("cancel", "g"), ("delete", "T"), ("list", "QUEUED")):
            code, _, err = self.call(*arguments, "-q")
            self.assertEqual(code, 3)
            self.assertIn("HTTP 500; INTERNAL_ERROR; Internal error", err)
        self.assertLess(time.monotonic() - begun, 4 * 10.5)

    def test_a_dry_run_needs_no_store_and_checks_all_of_the_input(self):
        none = {"ECWID_TOKEN": None, "ECWID_STORE_ID": None}
        source = self.file(self.lines(gets(7)))
        for command in ("run", "submit"):
            code, out, err = self.call(command, "--dry-run", source, "--batch-size", "3", env=none)
            self.assertEqual((code, err, len(out)), (0, "", 7))
            self.assertEqual(out[-1], "7 requests in 3 batches, nothing sent")
            self.assertTrue(out[0].startswith("POST /batch?deduplicationKey="))
            self.assertEqual(len(json.loads(out[1])), 3)
        code, out, err = self.call("run", "--dry-run", "-", stdin=EXAMPLE, env=none)
        self.assertEqual(out[-1], "3 requests in 1 batch, nothing sent")
        bad = self.file(self.lines(gets(7)) + "{\n")
        code, out, err = self.call("run", "--dry-run", bad, env=none)
        self.assertEqual(code, 2)
        self.assertIn("line 8 is not JSON", err)
        self.assertEqual(self.ecwid.requests, [])

    def test_wrong_usage_and_input_exit_with_2_say_what_to_do_and_send_nothing(self):
        good = self.file(EXAMPLE)
        get = '{"method": "GET", "path": "/a", "id": "x"}\n'
        for arguments, stdin, words in (
            (("run",), "", "required: FILE"),
            (("walk",), "", "invalid choice"),
            (("run", good, "--retry", "x"), "", "--retry: invalid int value"),
            (("run", good, "--retry", "-1"), "", "retry must be 0 or more, not -1"),
            (("run", good, "--batch-size", "0"), "", "batch_size must be from 1 to 500, not 0"),
            (("run", good, "--timeout", "nan"), "", "timeout must be"),
            (("run", good, "--deduplication-key", "x"), "", "deduplication_key must be a UUID"),
            (("run", good, "--token", "secret_x"), "", "unrecognized arguments: --token"),
            (("run", self.here / "nowhere"), "", "No such file or directory"),
            (("run", good, "--journal", good), "", "is not a journal: see its line 1"),
            (("run", good, "--failed", os.devnull), "", "--failed must be a regular file"),
            (("run", good, "--failed", ""), "", "--failed must be a regular file, not ''"),
            (
                ("run", good, "--failed", "x", "--journal", "./x"),
                "",
                "--failed must be another file than ./x",
            ),
            (("run", good, "--failed", good), "", "--failed must be another file than"),
            (("run", good, "--failed", "x", "--journal", "x.part"), "", "another file than x.part"),
            (("run", "-"), '[{"method": "GET"}]', "request 1: must be a JSON object with meth"),
            (("run", good, "--failed", self.here / "no" / "f"), "", "No such file or directory"),
            (("run", good, "--base-url", "http://example.com"), "", "must begin with https://"),
            (("run", good, "--token-file", good), "", "token must be visible ASCII"),
            (("run", good, "--token-file", self.file("", "empty")), "", "empty is empty"),
            (("list", "DONE"), "", "invalid choice: 'DONE'"),
            (("status", ""), "", "ticket must not be empty"),
            (("run", "-"), "", "the input holds no requests"),
            (("run", "-"), "[]", "the input holds no requests"),
            (("run", "-"), '{\n  "method": "GET"\n}', "line 1 is not JSON"),
            (("run", "-"), '{\n  "method": "GET"\n}', "`jq -c . FILE` writes it so"),
            (("run", "-"), "id,price\n1,2\n", "line 1 is not JSON"),
            (("run", "-"), "id,price\n1,2\n", "for CSV see the README"),
            (("run", "-"), f"[{get}]\n[{get}]\n", "`jq -c '.[]' FILE` makes lines of arrays"),
            (("run", "-"), f"{get}[{get[:-1]}]\n", "line 2 is a JSON array; `jq -c '.[]' FILE`"),
            (("run", "-"), get + "\n" + get, "line 3: the id 'x' is that of line 1"),
            (("run", "-"), '{"method": "GET"}', "line 1: must be a JSON object with method and"),
            (("run", "-"), "5", "line 1: must be a JSON object with method and path"),
            (("run", "-"), '{"method": "GET", "path": "a"}', "line 1: path must be relative"),
            (("run", "-"), b"\xff\n", "line 1 is not JSON"),
        ):
            with self.subTest(words=words):
                code, out, err = self.call(*arguments, stdin=stdin)
                self.assertEqual((code, out), (2, []), err)
                self.assertIn(words, err)
                self.assertNotIn("to go on", err)
                self.assertLess(max(map(len, err.splitlines()[-1:])), 330)
        self.assertEqual(self.ecwid.requests, [])
        for name, words in (("ECWID_STORE_ID", "set ECWID_STO"), ("ECWID_TOKEN", "set ECWID_TOK")):
            code, _, err = self.call("run", good, env={name: None})
            self.assertEqual((code, words in err), (2, True))

    def test_an_id_may_stand_in_another_batch_again(self):
        one, other = (
            '{"id": "x", "method": "GET", "path": "/a"}\n',
            '{"method": "GET", "path": "/"}\n',
        )
        for text, code in ((one + other + one, 0), (other + one + one, 0), (one + one + other, 2)):
            got, _, err = self.call("run", "--dry-run", "--batch-size", "2", "-", stdin=text)
            self.assertEqual((got, "the id 'x' is that of line 1" in err), (code, code == 2))

    def test_endless_input_is_refused_after_a_bound(self):
        class Zeros(io.RawIOBase):
            def readable(self):
                return True

            def readinto(self, buffer):
                buffer[:] = bytes(len(buffer))
                return len(buffer)

        with mock.patch("ecwid_batch._MAX_LINE", 1000), mock.patch("ecwid_batch._MAX_ARRAY", 1000):
            for content, words in (
                (io.BufferedReader(Zeros()), "line 1 is longer than 1,000 bytes"),
                (io.BytesIO(b"[" + b" " * 2000), "line 1 is longer than 1,000 bytes"),
                (io.BytesIO(b"[\n" + b" " * 2000), "an array may take 1,000 bytes; write one obj"),
            ):
                with self.raises(ValueError, words):
                    list(ecwid_batch._Input(content, 5).requests())
        if os.path.exists("/dev/zero"):
            code, _, err = self.call("run", "-", "--token-file", "/dev/zero", stdin=EXAMPLE)
            self.assertEqual((code, "token must be visible ASCII" in err), (2, True))

    def test_a_bad_line_stops_the_job_before_its_batch_and_the_mended_job_goes_on(self):
        lines = [f"{{{request._json}\n" for request in creates(9)]
        bad = self.file("".join([*lines[:7], "{\n", lines[8]]))
        good = "".join(lines)
        code, out, err = self.call("run", bad, "--batch-size", "3", "--journal", self.here / "j")
        self.assertEqual((code, len(out), ran(self.ecwid)), (2, 6, skus(6)))
        self.assertIn("line 8 is not JSON", err)
        self.assertIn("to go on, run the same command again", err)
        self.file(good)
        code, out, err = self.call("run", bad, "--batch-size", "3", "--journal", self.here / "j")
        self.assertEqual((code, len(out), ran(self.ecwid)), (0, 9, skus(9)), err)

    def test_failures_are_written_to_be_mended_and_run_as_a_new_job(self):
        self.ecwid.script = fails_at(2, 5)
        source, failed = self.file(self.lines(creates(8))), self.here / "failed.jsonl"
        arguments = ("--batch-size", "3", "--failed", failed)
        code, out, err = self.call("run", source, *arguments)
        self.assertEqual((code, len(out)), (1, 8))
        self.assertNotIn("--failed FILE", err)
        left = failed.read_text().splitlines()
        self.assertEqual([json.loads(line)["id"] for line in left], list("345678"))
        self.assertIn("8 requests: 2 succeeded, 1 failed, 5 did not run;", err)
        self.ecwid.script = None
        failed.write_text(failed.read_text().replace("sku-2", "mended"))
        mended, left = failed, self.here / "left.jsonl"
        code, out, err = self.call("run", mended, *arguments[:3], left)
        self.assertEqual((code, left.read_text()), (0, ""))
        counts = collections.Counter(ran(self.ecwid))
        self.assertEqual(counts, collections.Counter([*skus(8), "mended"]))
        self.assertEqual(sorted(os.listdir(self.here)), ["failed.jsonl", "in.jsonl", "left.jsonl"])

    def test_what_may_have_run_all_the_same_is_named(self):
        self.ecwid.script = fails_at(1, 3, status=500)
        source, failed = self.file("\n" + self.lines(creates(4))), self.here / "failed.jsonl"
        code, _, err = self.call("run", source, "--continue-on-failure", "--failed", failed)
        self.assertEqual(code, 1)
        self.assertIn("these may have run all the same: look at the shop", err)
        self.assertIn("line 1 (line 3 of the input), 2 (line 5 of the input)", err)
        self.ecwid.reset()
        self.ecwid.script = lambda call: (500, {})
        with mock.patch("ecwid_batch._NAMED_AT_MOST", 1):
            _, _, err = self.call("run", source, "--continue-on-failure", "--failed", failed)
        self.assertIn("line 1 (line 2 of the input) and 3 more", err)

    def test_a_job_that_did_not_end_leaves_the_file_of_failures_alone(self):
        failed = self.file("mine\n", "failed.jsonl")
        self.ecwid.latency = 1000
        source = self.file(self.lines(creates(3)))
        code, _, err = self.call("run", source, "--failed", failed, "--timeout", "5")
        self.assertEqual((code, failed.read_text()), (4, "mine\n"))
        self.assertEqual(sorted(os.listdir(self.here)), ["failed.jsonl", "in.jsonl"])

    def test_a_timeout_is_exit_4_and_says_how_to_go_on(self):
        self.ecwid.latency = 10
        source = self.file(self.lines(creates(9)))
        size = ("--batch-size", "3", "--timeout", "45")
        code, out, err = self.call("run", source, *size)
        self.assertEqual((code, len(out)), (4, 3))
        self.assertIn("of 3 done [ticket ", err)
        key = re.search(r"until \d\d:\d\d:\d\d, run the same command with --dedup\S+ (\S+);", err)[
            1
        ]
        code, out, err = self.call("run", source, *size, "--deduplication-key", key)
        self.assertEqual((code, len(out)), (4, 6))
        self.assertIn("to go on, less than an hour after the job was first started, run", err)
        code, out, err = self.call("run", source, *size[:2], "--deduplication-key", key)
        self.assertEqual((code, ran(self.ecwid)), (0, skus(9)), err)
        self.ecwid.faults = []
        code, out, err = self.call("wait", *self.ecwid.jobs, "--timeout", "0")
        self.assertEqual(code, 4)

    def test_after_the_hour_it_names_the_tickets_and_the_line_of_the_rest(self):
        self.ecwid.latency = 700
        source = self.file("\n" + self.lines(creates(9)))
        options = ("--batch-size", "3", "--timeout", "5000")
        code, out, err = self.call("run", source, *options)
        self.assertEqual((code, len(out)), (4, 6))
        ticket = list(self.ecwid.jobs)[-1]
        self.assertIn(f"[ticket {ticket}]", err)
        self.assertIn("run the rest, from line 11 on, as a new job", err)
        self.ecwid.reset()
        self.ecwid.latency = 700
        code, out, err = self.call("run", source, *options, "--continue-on-failure")
        self.assertIn("run the rest, from line 11 on, as a new job", err)

    def test_where_nothing_was_sent_nothing_is_said_about_going_on(self):
        source = self.file(EXAMPLE)
        for change, code in (
            ({"ECWID_TOKEN": "secret_wrong"}, 3),
            ({"ECWID_BASE_URL": "http://127.0.0.1:1/api/v3"}, 3),
        ):
            for options in ((), ("--journal", self.here / "j")):
                for command in ("run", "submit"):
                    if command == "submit" and options:
                        continue
                    got, _, err = self.call(command, source, *options, "-q", env=change)
                    self.assertEqual(
                        (got, "to go on" in err, "ticket" in err), (code, False, False), err
                    )

    def test_a_lost_answer_to_the_only_submission_says_how_to_go_on(self):
        interrupt = mock.patch.object(EcwidClient, "_submit", side_effect=KeyboardInterrupt)
        for command in ("run", "submit"):
            with interrupt:
                code, _, err = self.call(command, self.file(self.lines(creates(2))))
            self.assertEqual((code, "run the same command with --dedup" in err), (130, True))
        self.ecwid.faults = ["reset after"] * 99
        for command in ("run", "submit"):
            code, _, err = self.call(command, self.file(self.lines(creates(2))), "-q")
            self.assertEqual(
                (code, "run the same command with --deduplication-key" in err), (3, True)
            )

    def test_submit_says_from_which_line_on_the_rest_is(self):
        self.virtual = self.clock()
        submit = EcwidClient.submit
        tickets = []

        def slow(client, batch):
            if len(tickets) == 2:
                raise TransportError("mine")
            tickets.append(submit(client, batch))
            self.virtual.now += 3000
            return tickets[-1]

        with mock.patch.object(EcwidClient, "submit", slow):
            code, out, err = self.call(
                "submit", self.file(self.lines(creates(9))), "--batch-size", "3"
            )
        self.assertEqual((code, out), (3, tickets))
        self.assertIn("from line 7 on, as a new job", err)

    def test_the_mended_original_with_the_old_journal_is_refused_naming_the_lines(self):
        self.ecwid.script = fails_at(4)
        requests = creates(9)
        source = self.file("\n" + self.lines(requests))
        options = ("--batch-size", "3", "--journal", self.here / "j")
        self.assertEqual(self.call("run", source, *options)[0], 1)
        calls = len(self.ecwid.ledger)
        requests[4] = BatchRequest.post("/products", {"sku": "mended", "name": "n"})
        self.file("\n" + self.lines(requests))
        code, _, err = self.call("run", source, *options)
        self.assertEqual((code, len(self.ecwid.ledger)), (2, calls))
        self.assertIn("that is line 5 to line 7 of the input", err)

    def test_a_cancelled_group_and_missing_responses_are_exit_1_with_true_counts(self):
        self.ecwid.latency = 1.0
        client = self.ecwid.client()
        for shape, words in (
            ("no code", "6 requests: 2 succeeded, 4 did not run;"),
            ("no row", "6 requests: 2 succeeded, 4 without a response;"),
        ):
            self.ecwid.cancelled_rows = shape
            self.virtual = self.virtual or self.clock()
            ticket = client.submit(Batch(gets(6), group_id=f"g {shape}"))
            self.virtual.now += 1.5
            client.cancel(f"g {shape}")
            code, out, err = self.call("wait", ticket)
            self.assertEqual(code, 1)
            self.assertIn(words, err)

    def test_the_token_may_be_in_a_file(self):
        token = self.file(f"{self.ecwid.token}\n", "token")
        code, _, err = self.call(
            "run", "-", "--token-file", token, stdin=EXAMPLE, env={"ECWID_TOKEN": None}
        )
        self.assertEqual(code, 0, err)

    def test_quiet_and_verbose(self):
        self.ecwid.faults = ["reset"]
        code, out, err = self.call("run", "-", "-q", stdin=EXAMPLE)
        self.assertEqual((code, len(out), err), (0, 3, ""))
        self.ecwid.faults = ["reset"]
        code, out, err = self.call("run", "-", stdin=EXAMPLE)
        self.assertRegex(err, "^ecwid-batch: POST .* trying again in .* s\n3 requests: 2 succ")
        code, out, err = self.call("run", "-", "-v", stdin=EXAMPLE)
        self.assertIn("ecwid-batch: POST /batch: 200, ", err)

    def test_help_fits_80_columns_and_explains_each_option(self):
        commands = ("run", "submit", "wait", "status", "cancel", "delete", "list")
        for command in ((), *((name,) for name in commands)):
            code, out, err = self.call(*command, "--help", env={"COLUMNS": "80"})
            self.assertEqual((code, err), (0, ""))
            self.assertLessEqual(max(map(len, out)), 80)
            text = "\n".join(out)
            if command:
                self.assertIn(f"ecwid-batch {command[0]} ", text[text.index("example") :])
        code, out, err = self.call("--version")
        self.assertEqual((code, out), (0, [f"ecwid-batch {ecwid_batch.__version__}"]))
        parser = ecwid_batch._parser()
        for name, added in parser._subparsers._group_actions[0].choices.items():
            for action in added._actions:
                self.assertTrue(action.help, (name, action))


class Output(OnTheCommandLine):
    """Output that cannot be written, signals, terminals: mostly with real processes."""

    def shell(self, line, timeout=60):
        command = f"{shlex.quote(sys.executable)} {shlex.quote(str(HERE / 'ecwid_batch.py'))}"
        return subprocess.run(
            ["sh", "-c", line.replace("ecwid", command, 1)],
            env=self.environment(),
            capture_output=True,
            timeout=timeout,
            cwd=self.here,
        )

    @unittest.skipUnless(os.path.exists("/dev/full") and shutil.which("sh"), "needs /dev/full")
    def test_a_full_disk_is_exit_5_with_the_ticket(self):
        self.file(self.lines(gets(3)))
        done = self.ecwid.client().submit(Batch(gets(1)))
        full = {
            "ecwid run in.jsonl > /dev/full": "tickets at Ecwid: 11kl",
            "ecwid submit in.jsonl > /dev/full": "ticket at Ecwid: 11kl",
            f"ecwid status {done} > /dev/full": "",
            "ecwid run in.jsonl >&-": "",
            "ecwid run in.jsonl > /dev/full 2> /dev/full": "",
        }
        others = ["ecwid run in.jsonl 2> /dev/full", "ecwid run in.jsonl 2>&-", "ecwid run - <&-"]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            ends = dict(zip([*full, *others], pool.map(self.shell, [*full, *others])))
        for line, words in full.items():
            with self.subTest(line=line):
                err = ends[line].stderr.decode()
                self.assertEqual((ends[line].returncode, "Exception ignored" in err), (5, False))
                self.assertIn(words, err)
                for ticket in re.findall("11kl[0-9a-f]+", err):
                    self.assertIn(ticket, self.ecwid.jobs)
                if "2>" not in line:
                    self.assertIn("ecwid-batch: cannot write the output: ", err)
                if "&-" in line:
                    self.assertNotIn("to go on", err)
        for line, end in zip(others, ((0, 3), (0, 3), (2, 0))):
            out = ends[line]
            self.assertEqual((out.returncode, len(out.stdout.splitlines())), end, line)

    def test_a_reader_that_has_had_enough_ends_it_quietly(self):
        source = self.file(self.lines(gets(200)))
        process = self.start("run", source, "-q")
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        process.stdin.close()
        process.stderr.close()
        self.assertEqual((process.wait(60), err), (5, b""))

    def test_a_reader_that_leaves_while_batches_run_is_told_how_to_go_on(self):
        class Closed(io.StringIO):
            def write(self, text):
                raise BrokenPipeError(32, "Broken pipe")

        self.ecwid.latency = 1.0
        source = self.file(self.lines(creates(12)))
        code, _, err = self.call(
            "run", source, "--batch-size", "3", "--continue-on-failure", stdout=Closed()
        )
        self.assertEqual(code, 5)
        self.assertIn("tickets at Ecwid: ", err)
        self.assertNotIn("cannot write", err)

    def test_a_full_disk_under_the_file_of_failures_is_exit_5(self):
        self.ecwid.script = lambda call: (400, {"errorMessage": "no"})
        source = self.file(self.lines(creates(2)))
        with mock.patch("os.replace", side_effect=OSError(28, "No space left on device")):
            code, out, err = self.call("run", source, "--failed", self.here / "f")
        self.assertEqual((code, len(out)), (5, 2))
        self.assertIn("cannot write the output: ", err)
        self.assertEqual(os.listdir(self.here), ["in.jsonl"])

    def test_sigint_and_sigterm_end_it_and_the_job_goes_on(self):
        self.ecwid.latency = 0.004
        source = self.file(self.lines(creates(60)))
        options = ("--batch-size", "20", "--continue-on-failure", "--journal", "j", "-q")
        for number, code, words in (
            (signal.SIGTERM, 143, b"ecwid-batch: terminated\n"),
            (signal.SIGINT, 130, b"ecwid-batch: interrupted\n"),
        ):
            process = self.start("run", source, *options)
            process.stdout.readline()
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, code, err)
            self.assertTrue(err.startswith(words), err)
            self.assertIn(b"to go on, run the same command again", err)
            self.assertNotIn(b"Traceback", err)
        process = self.start("run", source, *options)
        out, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, len(out.splitlines()), err), (0, 60, b""))
        self.assertEqual(ran(self.ecwid), skus(60))

    def test_ctrl_c_before_anything_was_sent_says_nothing_about_going_on(self):
        with mock.patch.object(EcwidClient, "_submit", side_effect=KeyboardInterrupt):
            with mock.patch("ecwid_batch._Input.requests", side_effect=KeyboardInterrupt):
                for command in ("run", "submit"):
                    code, _, err = self.call(command, "-", stdin=EXAMPLE)
                    self.assertEqual((code, err), (130, "ecwid-batch: interrupted\n"))

    def test_progress_is_one_line_that_fits_the_terminal(self):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

            def fileno(self):
                return 2

        for widths, drawn in (
            (
                [80, 80],
                ["\r\x1b[J120/500 12.0/s 0:00:31 left", "\r\x1b[J120/500 6.0/s 0:01:03 left"],
            ),
            (
                [80, 20],
                ["\r\x1b[J120/500 12.0/s 0:00:31 left", "\x1b[1A\r\x1b[J120/500 6.0/s 0:01:"],
            ),
        ):
            err, sizes = Terminal(), iter(widths)
            with contextlib.redirect_stderr(err), Clock() as clock:
                with mock.patch("os.get_terminal_size", lambda _: mock.Mock(columns=next(sizes))):
                    progress = ecwid_batch._Progress(quiet=False)
                    progress.total = 500
                    for _ in range(2):
                        clock.now += 10
                        progress.show(120)
            self.assertEqual(err.getvalue(), "".join(drawn))
        err = Terminal()
        with contextlib.redirect_stderr(err):
            ecwid_batch._Progress(quiet=True).show(1)
            ecwid_batch._Progress(quiet=False).clear()
            ecwid_batch._StandardError().write("x")
            ecwid_batch._StandardError().flush()
        self.assertEqual(err.getvalue(), "\r\x1b[Jx\n")

    @unittest.skipUnless(importlib.util.find_spec("pty"), "needs terminals")
    def test_progress_is_drawn_on_a_terminal_only(self):
        import pty

        self.ecwid.latency = 0.004
        objects = [{"method": "GET", "path": "/profile"}] * 60
        for text in (self.lines(gets(60)), json.dumps(objects)):
            master, slave = pty.openpty()
            with self.start("run", self.file(text), stderr=slave) as process:
                os.close(slave)
                out, _ = process.communicate(timeout=60)
            drawn = b""
            with contextlib.suppress(OSError):
                while True:
                    chunk = os.read(master, 65536)
                    if not chunk:
                        break
                    drawn += chunk
            os.close(master)
            self.assertEqual(len(out.splitlines()), 60)
            self.assertRegex(drawn.decode(), r"\r\x1b\[J\d+(/60)? \d+\.\d/s")
            self.assertRegex(drawn.decode(), r"\r\x1b\[J60 requests: 60 succeeded; \d+\.\d s\r\n$")


# --- Tests: the stand-in, the README --------------------------------------------------------------


class TheStandIn(WithStandIn):
    def setUp(self):
        super().setUp()
        self.clock()

    def rest(self, method, path, body=None, token=None, **headers):
        """Return HTTP status and JSON of a direct call."""
        request = urllib.request.Request(
            f"{self.ecwid.base_url}/1003{path}",
            body if body is None or isinstance(body, bytes) else json.dumps(body).encode(),
            {
                "Authorization": f"Bearer {token or self.ecwid.token}",
                "Content-Type": "application/json",
                **headers,
            },
            method=method,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def rows(self, *requests, **options):
        status = self.ecwid.client().run(Batch(requests, **options))
        return [(response.http_status_code, response.body) for response in status]

    def test_batches_run_one_after_another_and_a_hundred_at_once_in_parallel(self):
        with virtual(latency=1.0) as (engine, client, clock):
            begun = clock.now
            first = client.submit(Batch(gets(3)))
            second = client.submit(Batch(gets(150), allow_parallel_mode=True))
            clock.now = begun + 2.5
            self.assertEqual(client.status(second, responses=False).status, "QUEUED")
            clock.now = begun + 3.9
            self.assertTrue(client.status(first, responses=False).done)
            clock.now = begun + 4.2
            self.assertEqual(client.status(second, responses=False).completed_requests, 100)
            clock.now = begun + 6
            self.assertTrue(client.status(second, responses=False).done)

    def test_a_5xx_is_tried_five_times_three_seconds_apart_if_failures_do_not_stop_it(self):
        with virtual(time_scale=1.0) as (engine, client, clock):
            engine.script = lambda call: (500, {})
            begun = clock.now
            client.run(Batch(gets(1), stop_on_first_failure=False))
            self.assertEqual(len(engine.ledger), 5)
            self.assertGreater(clock.now - begun, 12)
            client.run(Batch(gets(1)))
            self.assertEqual(len(engine.ledger), 6)

    def test_a_key_is_remembered_for_an_hour(self):
        with virtual() as (engine, client, clock):
            batch = Batch(gets(1))
            ticket = client.submit(batch)
            clock.now += 3590
            self.assertEqual(client.submit(batch), ticket)
            clock.now += 20
            self.assertNotEqual(client.submit(batch), ticket)

    def test_it_blocks_a_token_with_too_many_calls_and_early_calls_prolong_that(self):
        with virtual() as (engine, client, clock):
            engine.rate_limit = 3
            headers = {"Authorization": f"Bearer {engine.token}"}
            answers = [engine.handle("GET", "/1003/profile", headers, None) for _ in range(6)]
            self.assertEqual([a[0] for a in answers], [200, 200, 200, 429, 429, 429])
            self.assertEqual([a[1].get("Retry-After") for a in answers[3:]], ["5", "6", "7"])

    def test_a_wrong_parameter_is_a_400_row_and_odd_ones_are_ignored(self):
        for query, code, total in (
            ("limit=abc", 400, None),
            ("offset=-1", 400, None),
            ("limit=", 400, None),
            ("limit=1000", 200, 2),
            ("keyword=old", 200, 1),
            ("enabled=true", 200, 1),
            ("sku=0000001,x", 200, 1),
            ("responseFields=items(id)&sortBy=NAME_ASC&lang=en&createdFrom=1", 200, 2),
        ):
            with self.subTest(query=query):
                self.ecwid.shop.items["products"][2] = {"id": 2, "name": "x", "enabled": False}
                ((got, body),) = self.rows(BatchRequest.get(f"/products?{query}"))
                self.assertEqual((got, body.get("total")), (code, total))
        ((_, body),) = self.rows(BatchRequest.get("/products?limit=1000"))
        self.assertEqual(body["limit"], 100)

    def test_an_error_in_the_script_is_a_500_row(self):
        self.ecwid.script = lambda call: 1 / 0
        ((code, body),) = self.rows(BatchRequest.get("/profile"))
        self.assertEqual((code, body["errorCode"]), (500, "INTERNAL_ERROR"))

    def test_the_same_shop_answers_direct_calls(self):
        for kind in ("products", "orders", "customers", "categories"):
            status, made = self.rest("POST", f"/{kind}", {"name": "n", "email": "e@x"})
            self.assertEqual(status, 200)
            path = f"/{kind}/{made['id']}"
            self.assertEqual(self.rest("PUT", path, {"name": "m"}), (200, {"updateCount": 1}))
            self.assertEqual(self.rest("GET", path)[1]["name"], "m")
            ((code, body),) = self.rows(BatchRequest.get(path))
            self.assertEqual((code, body["name"]), (200, "m"))
            self.assertEqual(self.rest("DELETE", path), (200, {"deleteCount": 1}))
            self.assertEqual(self.rest("GET", path)[0], 404)
            self.assertEqual(self.rest("PATCHED" and "DELETE", f"/{kind}")[0], 405)
        self.assertEqual(self.rest("PUT", "/profile", {"a": 1})[0], 200)
        self.assertEqual(self.rest("GET", "/profile")[1]["a"], 1)
        self.assertEqual(self.rest("POST", "/profile", {})[0], 405)
        self.assertEqual(self.rest("GET", "/nothing")[0], 404)
        self.assertEqual(self.rest("GET", "/products/1/options")[0], 404)
        self.assertEqual(self.rest("POST", "/products/1", {})[0], 405)
        self.assertEqual(self.rest("POST", "/products", b"{")[0], 400)
        self.assertEqual(self.rest("POST", "/products", [1])[0], 400)
        self.assertEqual(self.rest("POST", "/products", {})[0], 400)
        self.assertEqual(self.rest("POST", "/products", {"name": "x", "sku": "0000001"})[0], 409)
        wrong = {"Content-Type": "text/plain"}
        self.assertEqual(self.rest("POST", "/products", {"name": "x"}, **wrong)[0], 415)
        self.assertEqual(self.rest("GET", "/profile", token="wrong")[0], 403)
        self.assertEqual(self.rest("PUT", "/batch", {})[0], 405)

    def test_an_image_comes_from_an_external_url(self):
        path = "/products/1/image"
        self.assertEqual(
            self.rows(BatchRequest.post(path, params={"externalUrl": "http://x"}))[0][0], 200
        )
        self.assertEqual(self.ecwid.shop.items["products"][1]["imageUrl"], "http://x")
        self.assertEqual(self.rows(BatchRequest.post(path))[0][0], 400)

    def test_a_path_without_its_first_slash_works(self):
        calls = [{"path": "profile", "method": "GET"}]
        status, answer = self.rest("POST", "/batch", calls)
        self.assertEqual(status, 200)
        status = self.ecwid.client().status(answer["ticket"])
        self.assertEqual([(r.id, r.ok) for r in status], [(None, True)])

    def test_a_group_is_cancelled_by_form_body_as_the_official_client_does(self):
        self.ecwid.latency = 100
        client = self.ecwid.client()
        client.submit(Batch(gets(1)))
        second = client.submit(Batch(gets(3), group_id="g h"))
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        self.assertEqual(self.rest("POST", "/batch/cancel-group", b"groupId=", **form)[0], 400)
        answer = self.rest("POST", "/batch/cancel-group", b"groupId=g+h", **form)
        self.assertEqual(answer, (200, {"updateCount": 1}))
        self.assertEqual(client.status(second).status, "COMPLETED")
        self.assertEqual(
            self.rest("POST", "/batch/cancel-group", b"groupId=g+h", **form)[1], {"updateCount": 0}
        )

    def test_it_checks_what_ecwid_checks(self):
        body = "Can't create batch. Batch request body is invalid. "
        for content, words in (
            (b"{", body + "No JSON"),
            ([], body + "An array of 1 to 500 requests is expected"),
            ([{}] * 501, body + "An array of 1 to 500 requests is expected"),
            ([{"id": 5, "path": "/a", "method": "GET"}], body + "Path $[0].id contains bad value"),
            ([{"path": "/a"}], body + "Path $[0].method contains bad value"),
        ):
            status, answer = self.rest("POST", "/batch", content)
            self.assertEqual((status, answer["errorMessage"]), (400, words))
        good = [{"path": "/a", "method": "GET"}]
        self.assertEqual(self.rest("POST", "/batch?deduplicationKey=x", good)[0], 400)
        self.assertEqual(self.rest("GET", "/batch?status=DONE")[0], 400)
        self.assertEqual(self.rest("GET", "/batch?ticket=T")[0], 404)
        with mock.patch.object(self.ecwid, "store_id", 7):
            self.assertEqual(self.rest("GET", "/profile")[0], 404)
        with self.assertRaises(ValueError):
            Engine(cancelled_rows="none")

    def test_a_misspelt_fault_is_an_error_where_it_is_set(self):
        for add in (
            lambda: self.ecwid.faults.append("rest"),
            lambda: self.ecwid.faults.appendleft("rest"),
            lambda: self.ecwid.faults.extend(["reset", "rest"]),
            lambda: setattr(self.ecwid, "faults", ["rest"]),
        ):
            with self.raises(ValueError, "no fault 'rest'; there are: 'refused', 'reset'"):
                add()
        self.ecwid.faults = []
        self.ecwid.faults += [None, "reset"]
        self.assertEqual(list(self.ecwid.faults), [None, "reset"])

    def test_faults_of_rows_wait_for_an_answer_with_responses(self):
        for fault, statuses in (
            ("lost rows", ["COMPLETED", "COMPLETED"]),  # believed at the second look only
            ("repeated rows", ["FAILED", "COMPLETED"]),
            ("odd counts", ["COMPLETED", "COMPLETED"]),
        ):
            self.ecwid.faults = [fault]
            status = self.ecwid.client().run(Batch(gets(2)))
            self.assertEqual([r.status for r in status], statuses)
            self.assertEqual(len(self.ecwid.faults), 0)

    def test_a_client_that_goes_away_leaves_no_traceback(self):
        def answer_nobody(handler):
            handler.wfile.flush()
            raise ConnectionResetError("the client is gone")

        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            self.ecwid.faults = [answer_nobody]
            with socket.create_connection(self.ecwid.server.server_address[:2]) as connection:
                connection.sendall(b"GET /api/v3/1003/batch?ticket=T HTTP/1.1\r\n\r\n")
                self.assertEqual(connection.recv(1), b"")
        self.assertEqual(err.getvalue(), "")

    def test_demo_shows_that_nothing_ran_twice(self):
        done = subprocess.run(
            [sys.executable, str(HERE / "test_ecwid_batch.py"), "demo"],
            env=CLEAN_ENV,
            capture_output=True,
            timeout=60,
        )
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertIn(b"The stand-in's ledger: 2 submissions, 1 batch.", done.stdout)
        self.assertIn(b"Calls that ran: 000001, 000002, 000003.", done.stdout)

    def test_serve_prints_the_environment_and_takes_faults(self):
        command = [sys.executable, str(HERE / "test_ecwid_batch.py"), "serve"]
        with subprocess.Popen(
            [*command, "--fault", "500"], env=CLEAN_ENV, stdout=subprocess.PIPE
        ) as process:
            line = process.stdout.readline().decode()
            variables = dict(word.split("=", 1) for word in line.split()[1:])
            with mock.patch.dict(os.environ, variables):
                client = EcwidClient.from_env(max_retry_time=0)
            with self.raises(ApiError, "HTTP 500"):
                client.submit(Batch(gets(1)))
            client.submit(Batch(gets(1)))
            process.send_signal(signal.SIGINT)
            process.stdout.read()
        self.assertEqual(process.returncode, 0)
        done = subprocess.run([*command, "--fault", "x"], env=CLEAN_ENV, capture_output=True)
        self.assertEqual((done.returncode, b"no fault 'x'" in done.stderr), (1, True))

    def test_it_finds_the_library_where_it_is_vendored(self):
        folder = self.folder()
        vendor = folder / "mypkg" / "_vendor"
        vendor.mkdir(parents=True)
        (folder / "mypkg" / "__init__.py").write_text("")
        (vendor / "__init__.py").write_text("")
        shutil.copy(HERE / "ecwid_batch.py", vendor)
        shutil.copy(HERE / "test_ecwid_batch.py", vendor / "ecwid_stand_in.py")
        shutil.copy(HERE / "test_ecwid_batch.py", folder / "elsewhere.py")
        run = (
            "with StandIn() as ecwid:\n"
            "    batch = ecwid_batch.Batch([ecwid_batch.BatchRequest.get('/profile')])\n"
            "    assert len(ecwid.client().run(batch).succeeded) == 1\n"
            "    print(type(ecwid.client()).__module__)\n"
        )
        for code in (
            "from mypkg._vendor.ecwid_stand_in import StandIn\n",
            "from elsewhere import StandIn\n",
        ):
            code += "from mypkg._vendor import ecwid_batch\n" + run
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=folder,
                env={**CLEAN_ENV, "PYTHONPATH": str(folder)},
                capture_output=True,
                timeout=60,
            )
            self.assertEqual(done.stdout.strip(), b"mypkg._vendor.ecwid_batch", done.stderr)


@unittest.skipUnless((HERE / "README.md").exists(), "the README is not here")
class Readme(TestCase):
    """Every block of the README runs, against the stand-in."""

    def setUp(self):
        super().setUp()
        self.text = (HERE / "README.md").read_text(encoding="utf-8")
        self.virtual, self.ecwid = self.clock(), self.standin(latency=0.01)
        self.environment = self.ecwid.environment

    def blocks(self, language):
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.M | re.S)

    def run_blocks(self, blocks, names):
        """Run blocks of Python in this environment; return what they print."""
        out = io.StringIO()
        with mock.patch.dict(os.environ, self.environment), contextlib.redirect_stdout(out):
            for block in blocks:
                exec(compile(block, "README.md", "exec"), names)
        return out.getvalue()

    def test_its_python_runs_in_order(self):
        blocks = [block for block in self.blocks("python") if "def handler" not in block]
        folder = str(self.folder())
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(folder)
        out = self.run_blocks(blocks, {})
        self.assertEqual(len(blocks), 6)
        self.assertIn("/products/1 200 {'updateCount': 1}", out)
        self.assertIn("/products/2 products 2 not found", out)
        self.assertEqual(os.listdir(folder), ["prices.journal"])

    def recipe(self, number):
        """Return the handler of a recipe, which stands alone, and what Lambda calls its context."""
        names = {}
        blocks = [block for block in self.blocks("python") if "def handler" in block]
        self.run_blocks(blocks[number : number + 1], names)
        context = mock.Mock()
        deadline = self.virtual.now + 120
        context.get_remaining_time_in_millis = lambda: 1000 * (deadline - self.virtual.now)
        return names["handler"], context

    def test_the_recipe_for_events_raises_until_the_batch_is_done(self):
        handler, context = self.recipe(0)
        self.ecwid.latency = 50
        event = {"id": KEY, "detail": {"prices": {"999": 1, "1": 5.5, "2": 7}}}
        with self.assertRaises(BatchTimeoutError):
            handler(event, context)
        handler, context = self.recipe(0)
        failed = [[f"/products/{n}", f"products {n} not found"] for n in ("999", "2")]
        for _ in range(2):
            self.assertEqual(handler(event, context), {"failed": failed})
        self.assertEqual(len(self.ecwid.ledger), 3)

    def test_the_recipe_for_step_functions_submits_once_and_looks(self):
        handler, context = self.recipe(1)
        event = {"batch": json.loads(EXAMPLE.replace("/profile", "/nowhere")), "key": KEY}
        looked = handler(event, context)
        self.assertEqual(handler(event, context), looked)
        self.assertEqual(looked["status"], "QUEUED")
        self.virtual.sleep(60)
        looked = handler(json.loads(json.dumps(looked)), context)
        self.assertEqual(looked["status"], "COMPLETED")
        self.assertIn(
            "of 3 requests, 1 failed, 1 did not run; the first: request 000002", looked["error"]
        )
        (machine,) = self.blocks("json")
        self.assertEqual(json.loads(machine)["StartAt"], "Key")

    def test_the_recipe_for_sqs_reports_what_is_to_come_again(self):
        handler, context = self.recipe(2)
        body = json.dumps([{"method": "POST", "path": "/products", "body": {"name": "x"}}])

        def record(id, body=body, age=0):
            first = str(int(1000 * (time.time() - age)))
            attributes = {"ApproximateFirstReceiveTimestamp": first}
            return {"messageId": id, "body": body, "attributes": attributes}

        def call(*records):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                answer = handler({"Records": list(records)}, context)
            return [item["itemIdentifier"] for item in answer["batchItemFailures"]]

        self.ecwid.faults = ["reset after"]
        self.assertEqual(
            call(record("a"), record("b", "[]"), record("a"), record("c", age=4000)), ["b", "c"]
        )
        self.assertEqual(len(self.ecwid.ledger), 1)
        self.ecwid.latency = 1000
        self.assertEqual(call(record("d"), record("e")), ["d", "e"])

    @unittest.skipUnless(
        all(map(shutil.which, ("bash", "sha256sum", "tail", "cat"))), "needs bash and coreutils"
    )
    def test_its_shell_commands_run(self):
        self.virtual.__exit__()  # in real time, since the commands are processes
        self.addCleanup(self.virtual.__enter__)
        self.ecwid.latency = 0.0
        folder = self.folder()
        shutil.copy(HERE / "ecwid_batch.py", folder)
        python = folder / "python3"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        path = f"{folder}{os.pathsep}{CLEAN_ENV['PATH']}"
        environment = {**CLEAN_ENV, **self.environment, "PATH": path}
        out = [
            subprocess.run(
                ["bash", "-euc", block],
                cwd=folder,
                env=environment,
                capture_output=True,
                timeout=60,
                check=True,
            ).stdout.decode()
            for block in self.blocks("sh")
        ]
        self.assertEqual(out[0], f"{ecwid_batch.__version__}\necwid_batch.py: OK\n")
        self.assertIn("2 requests in 1 batch, nothing sent", out[1])
        self.assertIn('"path": "/products/2"', out[1])
        self.assertIn('"totalRequests": 2, "completedRequests": 2', out[1])
        rows = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
        self.assertEqual([one["status"] for one in rows], ["COMPLETED", "FAILED"])

    def test_it_names_what_there_is(self):
        self.assertLessEqual(len(self.text.splitlines()), 300)
        for name in ecwid_batch.__all__:
            if name.endswith("Error"):
                self.assertIn(f"`{name}`", self.text)
        for thing, words in (
            (
                EcwidClient,
                ("run", "stream", "submit", "wait", "status", "cancel", "delete", "find"),
            ),
            (BatchResponse, ("request", "ok", "body", "retryable", "error_message", "error_code")),
            (BatchStatus, ("done", "succeeded", "failed", "not_executed", "raise_for_failures()")),
        ):
            for word in words:
                self.assertIn(f"`{word}`", self.text)
                self.assertTrue(
                    hasattr(thing, word.rstrip("()")) or word in ("error_message", "error_code")
                )
        client = inspect.signature(EcwidClient).parameters
        stream = inspect.signature(EcwidClient.stream).parameters
        self.assertIn(f"`timeout` ({client['timeout'].default:g} s", self.text)
        self.assertIn(f"`max_retry_time` ({client['max_retry_time'].default:g} s", self.text)
        self.assertIn(f"`batch_size` ({stream['batch_size'].default})", self.text)
        self.assertIn(f"`retry` ({stream['retry'].default}:", self.text)


class Documentation(TestCase):
    def test_everything_public_is_explained(self):
        for name in ecwid_batch.__all__:
            self.assertFalse(name.startswith("_"))
            thing = getattr(ecwid_batch, name)
            self.assertTrue(thing.__doc__, name)
            if not inspect.isclass(thing):
                continue
            for attribute in vars(thing):
                member = getattr(thing, attribute)
                if attribute.startswith("_") or not callable(member):
                    continue
                self.assertTrue(inspect.getdoc(member), (name, attribute))
                kinds = [p.kind for p in inspect.signature(member).parameters.values()]
                self.assertNotIn(inspect.Parameter.VAR_KEYWORD, kinds)

    def test_its_manual_page_begins_with_its_use_and_its_promises(self):
        text = pydoc.plain(pydoc.render_doc(ecwid_batch))
        self.assertIn("Every request gets exactly one response", text)
        self.assertIn("journal", pydoc.plain(pydoc.render_doc(EcwidClient.stream)))


if __name__ == "__main__":
    sys.exit(main())
