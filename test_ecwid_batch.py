"""A local stand-in for Ecwid, and the tests of ecwid_batch that run against it.

    python3 test_ecwid_batch.py demo     the reference's example through the real client, explained
    python3 test_ecwid_batch.py serve    the stand-in alone, for experiments
    python3 test_ecwid_batch.py check    whether a live shop behaves as this project assumes
    python3 -m unittest                  the tests

In a test of your own, with this file copied beside it as ecwid_stand_in.py:

    from ecwid_stand_in import StandIn

    with StandIn() as ecwid:
        client = ecwid.client()

The parts, in this order: the shop in memory, the batch engine, its HTTP face and its faults, demo,
check and serve, the tests. Standard library only.

Nothing here waits: while a stand-in is open, the library's module `time` is a Clock, on which a
pause passes at once. Tests that need hours put a client with the opener Direct onto a Clock that
stands still otherwise.
"""

import argparse
import collections
import contextlib
import copy
import dataclasses
import datetime
import decimal
import email.utils
import enum
import errno
import functools
import gc
import gzip
import heapq
import http.client
import http.server
import importlib.util
import io
import itertools
import json
import logging
import math
import operator
import os
import pathlib
import pickle
import pydoc
import random
import re
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
import unittest
import urllib.error
import urllib.parse
import urllib.request
import urllib.response
import uuid
import warnings
from unittest import mock

__all__ = ["FAULTS", "KINDS", "StandIn"]


def find_library():
    """Return the module ecwid_batch: beside this file, importable, or vendored and loaded."""
    with contextlib.suppress(ImportError):
        from . import ecwid_batch as library

        return library
    with contextlib.suppress(ImportError):
        import ecwid_batch as library

        return library
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
        return status, {"errorMessage": message, "errorCode": code}


KINDS = {  # of things: the word for one, Ecwid's code if it is missing, the field that it needs
    "products": ("Product", "PRODUCT_NOT_FOUND", "name"),
    "orders": ("Order", "ORDER_NOT_FOUND", "email"),
    "customers": ("Customer", "CUSTOMER_NOT_FOUND", "email"),
    "categories": ("Category", "CATEGORIES_NOT_FOUND", "name"),
    "discount_coupons": ("Discount coupon", "DISCOUNT_COUPON_NOT_FOUND", "name"),
    "customer_groups": ("Customer group", "CUSTOMER_GROUP_NOT_FOUND", "name"),
    "classes": ("Product type", "PRODUCT_CLASS_NOT_FOUND", "name"),
    "combinations": ("Combination", "COMBINATION_NOT_FOUND", "options"),
}


def wrong(what):
    return Refusal(400, "WRONG_PARAMETER", what)


class Collection(dict):
    """The things of one kind, by their ids. `parts` has the variations of each product."""

    EQUAL = {"sku", "productId", "ids", "enabled", "paymentStatus", "fulfillmentStatus", "email"}
    EQUAL |= {"code", "parent", "customerGroup"}
    FIELDS = {"productId": "id", "ids": "id", "parent": "parentId"}
    FIELDS["customerGroup"] = "customerGroupId"
    TIMES = {"createdFrom", "createdTo", "updatedFrom", "updatedTo"}
    SORTED = {"ADDED_TIME": "createTimestamp", "UPDATED_TIME": "updateTimestamp"}
    ELSEWHERE = {"offset", "limit", "responseFields", "lang"}
    FILTERS = {
        "category": lambda item, text: text in map(str, item.get("categoryIds", ())),
        "inStock": lambda item, text: written(item.get("quantity", 1) > 0) == text,
        "keyword": lambda item, text: text.lower() in json.dumps(item).lower(),
    }

    def __init__(self, kind, ids, parts=None):
        super().__init__()
        self.kind, self.ids = kind, ids
        self.word, self.missing, self.required = KINDS[kind]
        self.parts = {} if parts is None else parts
        self.unique = {"discount_coupons": "code"}.get(kind, "sku")
        self.taken = {}  # by the unique field, the ids of the things that have it

    def __setitem__(self, id, item):
        super().__setitem__(id, item)
        self.taken[item.get(self.unique)] = id

    def find(self, text):
        """Return a thing by its id, or a coupon by its code, as it stands in a path."""
        id = int(text) if re.fullmatch("[0-9]{1,18}", text) else text
        if self.kind == "orders":
            id = f"XJ{id}H" if isinstance(id, int) else text  # an order's number, or its id
        if self.kind == "discount_coupons" and id not in self:
            id = self.taken.get(text)
        item = self.get(id)
        if item is None:
            raise Refusal(404, self.missing, f"{self.word} #{text} not found")
        return item

    def shown(self, item):
        """Return a thing as Ecwid shows it: a product with its variations."""
        parts = self.parts.get(item["id"])
        return {**item, "combinations": list(parts.values())} if parts else item

    def refuse_taken(self, body, id=None):
        value = body.get(self.unique)
        owner = self.taken.get(value)
        if value and owner not in (None, id) and self.get(owner, {}).get(self.unique) == value:
            code = {"sku": "SKU_ALREADY_EXISTS"}.get(self.unique, "CONSTRAINT_VIOLATION")
            raise Refusal(409, code, f"{self.unique} {value} is already used")

    def add(self, body):
        if not body.get(self.required):
            raise wrong(f"Field {self.required} is required")
        self.refuse_taken(body)
        now = int(time.time())
        number = next(number for number in self.ids if number not in self)
        item = {"enabled": True, "createTimestamp": now, "updateTimestamp": now, **body}
        if self.kind == "orders":
            item.update(id=f"XJ{number}H", orderNumber=number)
        else:
            item["id"] = number
        self[item["id"]] = item
        answer = {"id": number}
        if self.kind == "orders":
            answer["orderid"] = item["id"]
        if self.kind == "discount_coupons":
            answer["code"] = item.setdefault("code", f"CODE{number}")
            self[number] = item
        return answer

    def change(self, item, body):
        self.refuse_taken(body, item["id"])
        item.update({**body, "id": item["id"], "updateTimestamp": int(time.time())})
        self[item["id"]] = item
        return {"updateCount": 1}

    def skus(self, item):
        parts = self.parts.get(item["id"], {})
        return {thing.get("sku") for thing in (item, *parts.values())}

    def kept(self, found, name, text):
        """Return what a filter leaves of what was found; warn of one that is unknown."""
        wanted = set(text.split(","))
        if name == "sku":
            return [item for item in found if wanted & self.skus(item)]
        if name in self.EQUAL:
            field = self.FIELDS.get(name, name)
            return [item for item in found if written(item.get(field)) in wanted]
        if name in self.TIMES:
            return self.in_time(found, name, timestamp(name, text))
        if name in self.FILTERS:
            return [item for item in found if self.FILTERS[name](item, text)]
        if name == "sortBy":
            return self.in_order(found, text)
        if name not in self.ELSEWHERE:
            warnings.warn(f"the stand-in ignores the parameter {name!r}", stacklevel=2)
        return found

    @staticmethod
    def in_time(found, name, moment):
        field = f"{name[:6]}Timestamp"  # createTimestamp, updateTimestamp
        sign = 1 if name.endswith("From") else -1
        return [item for item in found if sign * (item.get(field, 0) - moment) >= 0]

    def in_order(self, found, text):
        word, _, direction = text.rpartition("_")
        field = self.SORTED.get(word, word.lower())
        key = lambda item: (isinstance(item.get(field), str), item.get(field) or 0)  # noqa: E731
        found = sorted(found, key=key)
        return found[::-1] if direction == "DESC" else found

    def search(self, query):
        """Return the page that a query asks for."""
        found = list(self.values())
        for name, text in query.items():
            found = self.kept(found, name, text)
        offset, limit = whole(query, "offset", 0), min(whole(query, "limit", 100), 100)
        page = [self.shown(item) for item in found[offset : offset + limit]]
        counts = {"total": len(found), "count": len(page), "offset": offset, "limit": limit}
        return {**counts, "items": page}


def written(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def whole(query, name, default):
    text = query.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text):
        raise wrong(f"Parameter {name} has a wrong value")
    return int(text)


def timestamp(name, text):
    if re.fullmatch("[0-9]{1,12}", text):
        return int(text)
    try:
        moment = datetime.datetime.fromisoformat(text[:19])
    except ValueError:
        raise wrong(f"Parameter {name} has a wrong value") from None
    return moment.replace(tzinfo=datetime.timezone.utc).timestamp()


def picked(value, fields):
    """Return what responseFields leaves of an answer; `fields` as `field_tree` returns them."""
    if isinstance(value, list):
        return [picked(item, fields) for item in value]
    if not isinstance(value, dict) or not fields:
        return value
    return {name: picked(value[name], fields[name]) for name in fields if name in value}


def field_tree(text):
    """Return 'total,items(id,sku)' as {'total': {}, 'items': {'id': {}, 'sku': {}}}."""
    tree = {}
    stack, last = [tree], None
    for token in re.findall(r"\w+|[()]", text):
        if token == "(" and last is not None:
            stack.append(stack[-1][last])
        elif token == ")" and len(stack) > 1:
            stack.pop()
        elif token not in "()":
            last = token
            stack[-1][token] = {}
    return tree


@dataclasses.dataclass
class Call:
    """A REST call on its way to a route: the collection that it is about, and the thing in it."""

    query: dict
    body: dict
    things: Collection = None
    item: dict = None


def adjust(shop, call):
    delta = call.body.get("quantityDelta")
    if type(delta) is not int:
        raise wrong("Field quantityDelta must be a number")
    call.item["quantity"] = call.item.get("quantity", 0) + delta
    warning = {"warning": "Product has negative stock."} if call.item["quantity"] < 0 else {}
    return {"updateCount": 1, **warning}


def add_image(part):
    def route(shop, call):
        url = call.query.get("externalUrl") or call.body.get("url")
        if not url:
            raise wrong("POST an image with externalUrl, or …/async with the field url")
        call.item.setdefault(f"{part}Urls", []).append(url)
        return {"id": next(shop.ids)}

    return route


def remove_images(part):
    return lambda shop, call: {"deleteCount": len(call.item.pop(f"{part}Urls", ()))}


def products_of(shop, call):
    numbers = call.body.get("productIds")
    if not isinstance(numbers, list):
        raise wrong("Field productIds must be an array")
    return [shop.items["products"].find(str(number)) for number in numbers]


def assign(shop, call):
    for product in products_of(shop, call):
        product["categoryIds"] = [*product.get("categoryIds", ()), call.item["id"]]
    return {"updateCount": 1}


def unassign(shop, call):
    for product in products_of(shop, call):
        kept = [id for id in product.get("categoryIds", ()) if id != call.item["id"]]
        product["categoryIds"] = kept
    return {"deleteCount": 1}


def sort(shop, call):
    numbers = call.body.get("sortedIds")
    if not isinstance(numbers, list):
        raise wrong("Field sortedIds must be an array")
    for place, number in enumerate(numbers):
        call.things.find(str(number))["orderBy"] = place
    return {"updateCount": len(numbers)}


def clear(shop, call):
    count = len(call.things)
    call.things.clear()
    return {"deleteCount": count}


def remove(shop, call):
    del call.things[call.item["id"]]
    return {"deleteCount": 1}


def bare(shop, call):
    return call.things.search({**call.query, "limit": "100"})["items"]


ROUTES = {  # KIND stands for the first word of a path that has no route of its own, * for an id
    "profile": {
        "GET": lambda shop, call: shop.profile,
        "PUT": lambda shop, call: shop.profile.update(call.body) or {"updateCount": 1},
    },
    "KIND": {
        "GET": lambda shop, call: call.things.search(call.query),
        "POST": lambda shop, call: call.things.add(call.body),
    },
    "KIND/*": {
        "GET": lambda shop, call: call.things.shown(call.item),
        "PUT": lambda shop, call: call.things.change(call.item, call.body),
        "DELETE": remove,
    },
    "classes": {"GET": bare, "POST": lambda shop, call: call.things.add(call.body)},
    "categories/sort": {"PUT": sort},
    "products/*/inventory": {"PUT": adjust},
    "products/*/combinations/*/inventory": {"PUT": adjust},
    "categories/*/assignProducts": {"POST": assign},
    "categories/*/unassignProducts": {"POST": unassign},
}
ROUTES["products"] = {**ROUTES["KIND"], "DELETE": clear}  # of no other kind all can be deleted
ROUTES["products/*/combinations"] = {**ROUTES["classes"], "DELETE": clear}
ROUTES["products/*/combinations/*"] = ROUTES["KIND/*"]
for part in ("products/*/image", "products/*/gallery", "categories/*/image"):
    name = part.rpartition("/")[2]
    ROUTES[part] = {"POST": add_image(name), "DELETE": remove_images(name)}
    ROUTES[f"{part}/async"] = {"POST": add_image(name)}


class Shop:
    """A small shop. `items` has a dict of dicts, by id, for each kind of thing."""

    def __init__(self, store_id):
        self.profile = {
            "generalInfo": {"storeId": store_id},
            "account": {"accountEmail": "owner@example.com"},
        }
        self.ids = itertools.count(1001)
        self.variations = {}  # by the id of the product
        self.items = {kind: Collection(kind, self.ids) for kind in KINDS if kind != "combinations"}
        self.items["products"].parts = self.variations
        email = "ec.apps@lightspeedhq.com"
        order = {"id": "XJ1H", "orderNumber": 1, "email": email, "total": 24.99}
        self.items["orders"]["XJ1H"] = {**order, "paymentStatus": "PAID"}
        self.items["categories"][9691094] = {"id": 9691094, "name": "New"}
        self.items["customers"][1] = {"id": 1, "email": email}
        self.stock(1)

    def stock(self, count):
        """Have products with the ids from 1 to `count`."""
        product = {"price": 9.99, "quantity": 10, "enabled": True, "categoryIds": [9691094]}
        product.update(createTimestamp=1767225600, updateTimestamp=1767225600)
        for number in range(1, count + 1):
            names = {"id": number, "sku": f"{number:07d}", "name": f"Product {number}"}
            self.items["products"][number] = {**names, **product}

    def answer(self, method, path, body):
        """Return HTTP status and JSON for one REST call."""
        url = urllib.parse.urlsplit("/" + path.lstrip("/"))
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        segments = [urllib.parse.unquote_plus(part) for part in url.path.split("/")[1:]]
        try:
            if body not in (None, "") and not isinstance(body, dict):
                raise wrong("The body must be a JSON object")
            found = self.routed(method, segments, Call(query, body or {}))
        except Refusal as refusal:
            return refusal.answer()
        status = 202 if (method, segments) == ("DELETE", ["products"]) else 200
        return status, picked(found, field_tree(query.get("responseFields", "")))

    def routed(self, method, segments, call):
        kind = segments[0]
        places = list(segments)
        for place in range(1, len(places), 2):
            if places[place] not in ("sort", "async"):
                places[place] = "*"
        names = ["/".join(places)]
        if kind in self.items:
            names.append("/".join(["KIND", *places[1:]]))
        route = next((ROUTES[name] for name in names if name in ROUTES), None)
        if route is None:
            text = f"the stand-in has no /{names[0]}; answer it with `script`"
            raise Refusal(404, "NOT_IN_THE_STAND_IN", text)
        if method not in route:
            raise Refusal(405, "METHOD_NOT_ALLOWED", "Method not allowed")
        call.things = self.items.get(kind)
        for place, word in enumerate(places):
            if word == "*":
                call.item = call.things.find(segments[place])
            elif word == "combinations":
                new = Collection("combinations", self.ids)
                call.things = self.variations.setdefault(call.item["id"], new)
        return route[method](self, call)


# --- The batch engine -----------------------------------------------------------------------------


class Clock:
    """Time for the library and the stand-in: a pause passes (nearly) at once, and has passed."""

    def __init__(self):
        self.skipped = 0.0
        self.lock = threading.Lock()

    def sleep(self, seconds):
        real = min(seconds, 0.002)
        time.sleep(real)
        with self.lock:
            self.skipped += seconds - real

    def monotonic(self):
        return time.monotonic() + self.skipped

    def time(self):
        return time.time() + self.skipped


CLOCK = Clock()  # that of all stand-ins that have none of their own


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
        fields = {"httpBody": body, "httpStatusCode": status, "httpStatusLine": line}
        if status == 200:
            self.add_row(call, {"status": "COMPLETED", **fields})
            return
        if isinstance(body, dict):
            fields["httpStatusLine"] = body.get("errorMessage", line)
        self.add_row(call, {"status": "FAILED", **fields})
        while self.stops and self.pending:
            self.add_row(self.calls[self.pending.popleft()], {"status": "NOT_EXECUTED"})

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
    def state(self):
        if self.done:
            return "COMPLETED"
        return "IN_PROGRESS" if self.rows or self.unseen else "QUEUED"

    def status(self, escaped, light_rows):
        answer = {
            "status": self.state,
            "totalRequests": len(self.calls),
            "completedRequests": len(self.rows) + self.unseen,
        }
        if escaped:
            answer["responses"] = [self.escaped(row) for row in self.rows]
        elif light_rows:
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
    time_scale      by which the 3 s between Ecwid's own tries of a failing call are multiplied
    rate_limit      calls a minute; None: no limit
    light_rows      whether a status without escapedJson has rows, with httpBody: Ecwid's own PHP
                    client reads them; the newer reference has none
    bare_find       whether a search for batches is answered with a bare array
    cancelled_rows  how a cancelled request looks: "no row", "no code" or "code 0"
    clock           what tells the time: an object with sleep, monotonic and time
    shop            the shop; its `items` are dicts of dicts
    script          a function of the wrapped call (a dict with id, path, method and body) that
                    answers instead of the shop: (HTTP status, JSON), or None for the shop's answer
    ledger          every wrapped call that ran, in order: (ticket, call)
    requests        every HTTP request: (method, path, query)
    """

    def __init__(
        self,
        *,
        latency=0.0,
        time_scale=1.0,
        rate_limit=600,
        light_rows=True,
        bare_find=False,
        cancelled_rows="no code",
        fault_rate=0.0,
        store_id=1003,
        token=None,
        clock=CLOCK,
    ):
        if cancelled_rows not in ("no row", "no code", "code 0"):
            raise ValueError("cancelled_rows must be 'no row', 'no code' or 'code 0'")
        self.store_id, self.token = store_id, token or f"secret_{uuid.uuid4().hex}"
        self.latency, self.time_scale, self.rate_limit = latency, time_scale, rate_limit
        self.light_rows, self.bare_find, self.cancelled_rows = light_rows, bare_find, cancelled_rows
        self.fault_rate, self.clock = fault_rate, clock
        self.lock = threading.Lock()
        self.reset()

    def reset(self):
        """Forget everything but the options."""
        self.shop = Shop(self.store_id)
        self.script, self.script_error = None, None
        self.ledger, self.requests = [], []
        self.jobs, self.keys = {}, {}
        self.recent, self.blocked_until = collections.deque(), -math.inf
        self.early = 0  # calls during a block

    @contextlib.contextmanager
    def told(self):
        """Keep what a user's own function raises: it is raised again when the stand-in closes."""
        try:
            yield
        except Exception as error:
            self.script_error = self.script_error or error

    def latency_of(self, call):
        seconds = self.latency
        if callable(seconds):
            seconds = 0.0
            with self.told():
                seconds = float(self.latency(call))
        return seconds

    def answer(self, ticket, call):
        """Return HTTP status and JSON for a wrapped call."""
        self.ledger.append((ticket, call))
        if self.script:
            scripted = (500, {"errorMessage": "the script failed", "errorCode": "INTERNAL_ERROR"})
            with self.told():
                scripted = self.scripted(call)
            if scripted is not None:
                return scripted
        body = call.get("body")
        if body and isinstance(body, str):
            try:
                body = json.loads(body)
            except ValueError:
                body = [body]  # which the shop refuses
        return self.shop.answer(call["method"], call["path"], body)

    def scripted(self, call):
        answer = self.script(call)
        if answer is not None:
            status, body = answer
            if not isinstance(status, int) or not 100 <= status <= 599:
                raise ValueError(f"a script returned {status!r}, which is no HTTP status")
            json.dumps(body)
        return answer

    def handle(self, method, target, headers, body):
        """Return (status, extra headers, JSON) for a request to `target`."""
        with self.lock:
            now = self.clock.monotonic()
            self.advance(now)
            url = urllib.parse.urlsplit(target)
            query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
            store, _, path = url.path[len("/api/v3/") :].partition("/")
            wait = self.limited(now)
            if wait > 0:
                refusal = Refusal(429, "RATE_LIMITED", "Too many requests")
                return 429, {"Retry-After": str(math.ceil(wait))}, refusal.answer()[1]
            try:
                if not url.path.startswith("/api/v3/"):
                    raise Refusal(404, "WRONG_URL", "Paths begin with /api/v3/{storeId}/")
                self.check_access(headers, store)
                query.update(self.form(headers, body))
                status, answer = self.routed(method, path, query, headers, body, now)
            except Refusal as refusal:
                status, answer = refusal.answer()
            return status, {}, answer

    def record(self, method, target):
        """Take note of an HTTP request, whatever becomes of it."""
        url = urllib.parse.urlsplit(target)
        path = "/" + "/".join(url.path.split("/")[4:])
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        self.requests.append((method, path, query))

    def check_access(self, headers, store):
        if headers.get("Authorization") != f"Bearer {self.token}":
            raise Refusal(403, "INVALID_API_TOKEN", "Wrong token")
        if store != str(self.store_id):
            raise Refusal(404, "STORE_NOT_FOUND", f"Store {store} not found")

    @staticmethod
    def form(headers, body):
        """Return the parameters of a form body, as the official client sends some."""
        kind = headers.get("Content-Type", "").partition(";")[0]
        if not body or kind != "application/x-www-form-urlencoded":
            return {}
        return dict(urllib.parse.parse_qsl(body.decode("utf-8", "replace")))

    @staticmethod
    def json_of(headers, body):
        kind = headers.get("Content-Type", "").partition(";")[0]
        if kind not in ("application/json", "text/json"):
            raise Refusal(415, "WRONG_CONTENT_TYPE", "application/json or text/json is expected")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise Refusal(400, "WRONG_PARAMETER", "The body is not JSON") from None

    def routed(self, method, path, query, headers, body, now):
        if (method, path) == ("POST", "batch"):
            return 200, self.create(query, headers, body, now)
        if (method, path) == ("GET", "batch"):
            return 200, self.find(query) if "status" in query else self.look(query)
        if (method, path) == ("DELETE", "batch"):
            return 200, self.delete(query)
        if (method, path) == ("POST", "batch/cancel-group"):
            return 200, self.cancel(query, now)
        if path.partition("/")[0] == "batch" or method not in ("GET", "POST", "PUT", "DELETE"):
            raise Refusal(405, "METHOD_NOT_ALLOWED", f"{method} /{path}")
        given = self.json_of(headers, body) if body and not self.form(headers, body) else None
        return self.shop.answer(method, f"{path}?{urllib.parse.urlencode(query)}", given)

    def advance(self, now):
        """First come, first served: a job starts when the one before it is done."""
        free = -math.inf
        for job in self.jobs.values():
            if not job.done:
                if not job.running and not job.rows and not job.unseen:
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
        self.blocked_until = self.clock.monotonic() + seconds

    def create(self, query, headers, body, now):
        calls = self.checked_calls(self.json_of(headers, body))
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
    def checked_calls(calls):
        problem = None
        if not isinstance(calls, list) or not 1 <= len(calls) <= 500:
            calls, problem = [], "An array of 1 to 500 requests is expected"
        for number, call in enumerate(calls):
            fields = call if isinstance(call, dict) else {}
            for field in ("id", "path", "method"):
                value = fields.get(field, "" if field == "id" else None)
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
        offset, limit = whole(query, "offset", 0), whole(query, "limit", 100)
        page = found[offset : offset + min(limit, 100)]
        items = [{"ticket": job.ticket, "status": job.state} for job in page]
        return items if self.bare_find else {"items": items}

    def look(self, query):
        job = self.jobs.get(query.get("ticket"))
        if job is None:
            raise Refusal(404, "BATCH_NOT_FOUND", "Batch not found")
        return job.status(query.get("escapedJson") == "true", self.light_rows)

    def delete(self, query):
        job = self.jobs.pop(query.get("ticketId") or query.get("ticket"), None)
        if job:
            job.cancel(self.cancelled_rows)
        return {"deleteCount": int(job is not None)}

    def cancel(self, query, now):
        group = query.get("groupId")
        if not group:
            raise Refusal(400, "WRONG_PARAMETER", "groupId is required")
        jobs = [job for job in self.jobs.values() if job.group == group]
        stopped = [job for job in jobs if job.cancel(self.cancelled_rows)]
        self.advance(now)
        return {"updateCount": int(bool(stopped))}


# --- The HTTP face, and its faults ----------------------------------------------------------------

ERROR = {"errorMessage": "Internal error", "errorCode": "INTERNAL_ERROR"}
SLOW = {"errorMessage": "Slow down", "errorCode": "RATE_LIMITED"}
HTML = b"<html><body>A proxy speaking</body></html>"
FAULTS = {  # what goes wrong, and the answer: HTTP status, headers, JSON or bytes
    "refused": ("the connection is reset before the request is read", None),
    "reset": ("the connection is reset after the request is read", None),
    "reset after": ("Ecwid acts; then the connection is reset", None),
    "500": ("an internal error; nothing is done", (500, {}, ERROR)),
    "500 after": ("Ecwid acts, and answers with an internal error", (500, {}, ERROR)),
    "503 busy": ("503 with Retry-After: 2", (503, {"Retry-After": "2"}, {"errorMessage": "Busy"})),
    "408 after": ("Ecwid acts, and answers that it took too long", (408, {}, ERROR)),
    "429": ("429 without Retry-After", (429, {}, SLOW)),
    "429 soon": ("429 with Retry-After: 3", (429, {"Retry-After": "3"}, SLOW)),
    "block": ("429 for 5 s, and 1 s more for each early call", (429, {"Retry-After": "5"}, SLOW)),
    "html 502": ("a proxy's error page", (502, {}, HTML)),
    "html 404": ("a proxy's page that says that there is nothing here", (404, {}, HTML)),
    "html 200": ("a proxy's page with status 200", (200, {}, HTML)),
    "html 200 after": ("Ecwid acts, and a proxy answers with a page", (200, {}, HTML)),
    "empty after": ("Ecwid acts; the answer is empty", (200, {}, b"")),
    "cut off after": ("Ecwid acts; half of the answer comes", None),
    "cut gzip after": ("Ecwid acts; most of a compressed answer comes", None),
    "broken gzip after": (
        "Ecwid acts; the compressed answer is broken",
        (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08 this is no gzip"),
    ),
    "odd JSON after": ("Ecwid acts; the answer is JSON of another form", (200, {}, ["odd"])),
    "redirect": ("307 to another host", (307, {"Location": "http://localhost:9/"}, {})),
    "lost rows": ("the next answer with responses lacks the last of them", None),
    "repeated rows": ("the next answer with responses contradicts itself", None),
    "odd counts": ("the next answer with responses has counts that are not numbers", None),
}  # "after": Ecwid acts on the request, and only its answer suffers
ROW_FAULTS = ("lost rows", "repeated rows", "odd counts")
TROUBLE = [fault for fault in FAULTS if fault not in (*ROW_FAULTS, "redirect", "html 404", "block")]


class Faults(collections.deque):
    """The faults to come. Raises ValueError for one that does not exist."""

    def append(self, fault):
        if fault is not None and not callable(fault) and fault not in FAULTS:
            raise ValueError(f"no fault {fault!r}; there are: {', '.join(map(repr, FAULTS))}")
        super().append(fault)

    def extend(self, faults):
        for fault in list(faults):
            self.append(fault)

    def __iadd__(self, faults):
        self.extend(faults)
        return self


OPEN = []  # the stand-ins that are open


class StandIn(Engine):
    """The engine on loopback, over real HTTP: `with StandIn() as ecwid:`.

    client()     returns an EcwidClient for it; options are those of EcwidClient
    environment  what makes EcwidClient() a client of it, as a dict, for code that makes its own
    faults       what is to go wrong, one item a request, oldest first: a name from FAULTS, None, or
                 a function that is called with the http.server handler and answers by itself

    The rest of its surface (shop, script, ledger, requests, latency, time_scale) is that of Engine.
    `reset()` makes it as new. While it is open, no pause of the library takes real time. Several
    can be open at once. At its end it raises what a script, a latency or a fault of your own
    raised, and what a script returned that is no answer.
    """

    def __init__(self, port=0, verbose=False, **options):
        super().__init__(**options)
        self.verbose = verbose  # whether each request is logged on standard error
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
        self.stack = contextlib.ExitStack()
        with contextlib.suppress(ImportError):  # then only other processes use the stand-in
            library = find_library()
            if library.time is not self.clock:  # that of the first of those that are open
                self.stack.enter_context(mock.patch.object(library, "time", self.clock))
        self.thread.start()
        OPEN.append(self)
        return self

    def __exit__(self, kind, *exc_info):
        OPEN.remove(self)
        if OPEN:  # one that is open still needs the clock
            OPEN[0].stack.push(self.stack.pop_all())
        self.stack.close()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        if self.script_error is not None and kind is None:
            raise self.script_error

    @property
    def environment(self):
        return {
            "ECWID_BASE_URL": self.base_url,
            "ECWID_STORE_ID": str(self.store_id),
            "ECWID_TOKEN": self.token,
        }

    def client(self, **options):
        return find_library().EcwidClient(
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
    disable_nagle_algorithm = True  # which delays the body of an answer by up to 40 ms
    standin: StandIn

    def do_GET(self):
        self.standin.record(self.command, self.path)
        fault = self.next_fault()
        if fault == "refused":
            self.reset()
            return
        length = self.headers.get("Content-Length", "0")
        body = self.rfile.read(int(length)) if length.isdecimal() else b""
        if callable(fault):
            with self.standin.told(), contextlib.suppress(ConnectionError):  # the client is gone
                fault(self)
        elif fault is None:
            self.send(*self.engine_answer(body))
        elif fault in ROW_FAULTS:
            status, headers, answer = self.engine_answer(body)
            self.send(status, headers, with_odd_rows(fault, answer))
        else:
            answer = self.engine_answer(body) if "after" in fault else None
            self.fail(fault, answer)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_GET

    def next_fault(self):
        faults = self.standin.faults
        if not faults and random.random() < self.standin.fault_rate:
            return random.choice(TROUBLE)
        if not faults or (faults[0] in ROW_FAULTS and "escapedJson=true" not in self.path):
            return None
        return faults.popleft()

    def engine_answer(self, body):
        return self.standin.handle(self.command, self.path, self.headers, body)

    def fail(self, fault, answer):
        """Answer with a fault; `answer` is what Ecwid would have said, where it acted."""
        if fault == "block":
            self.standin.block(5)
        text = json.dumps(answer and answer[2]).encode()
        spoilt = FAULTS[fault][1]
        if fault == "cut off after":
            self.raw(200, {"Content-Length": str(len(text))}, text[: len(text) // 2])
        elif fault == "cut gzip after":
            self.raw(200, {"Content-Encoding": "gzip"}, gzip.compress(text)[:-12])
        elif spoilt is None:
            self.reset()
        elif isinstance(spoilt[2], bytes):
            self.raw(*spoilt)
        else:
            self.send(*spoilt)

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

    def log_message(self, form, *values):
        if self.standin.verbose:
            super().log_message(form, *values)


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


# --- demo, check and serve ------------------------------------------------------------------------


def demo():
    """Run the reference's example through the real client, and show what happens."""
    library = find_library()
    with StandIn(latency=0.3) as ecwid:
        client = ecwid.client()
        batch = library.Batch.from_json(EXAMPLE)
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
        submissions = sum(request[:2] == ("POST", "/batch") for request in ecwid.requests)
        ran = [call["id"] for _, call in ecwid.ledger]
        print(f"\nThe stand-in's ledger: {submissions} submissions, {len(ecwid.jobs)} batch.")
        print(f"Calls that ran: {', '.join(ran)}. Nothing was lost, and nothing ran twice.")
        return 0 if len(status.succeeded) == 3 and ran == list(batch.ids) else 1


MISSING = "/products/999999999999"


class Check:
    """What this project assumes of Ecwid, asked of a live shop by GETs that change nothing."""

    def __init__(self, environment, pause=0.5):
        self.url = f"{environment['ECWID_BASE_URL']}/{environment['ECWID_STORE_ID']}"
        self.token, self.pause = environment["ECWID_TOKEN"], pause
        self.opener = urllib.request.build_opener()
        if urllib.parse.urlsplit(self.url).hostname in ("127.0.0.1", "localhost"):
            self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.library, self.differs, self.headers = find_library(), 0, set()

    def ask(self, method, path, query, body=None):
        """Return HTTP status and JSON of a call."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            response = self.opener.open(request, timeout=60)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            self.headers |= {name for name in response.headers if "limit" in name.lower()}
            text = response.read()
        with contextlib.suppress(ValueError):
            return response.code, json.loads(text)
        return response.code, text.decode("utf-8", "replace")[:100]

    def tell(self, assumption, expected, seen, fine):
        self.differs += not fine
        word = "as expected" if fine else "DIFFERS"
        text = f"{word:11}  {assumption}: expected {expected}; seen {json.dumps(seen)[:250]}"
        print(text.replace(self.token, "***"), flush=True)

    def submit(self, paths, **options):
        """Submit a batch of GETs; return its ticket and what the library makes of its end."""
        calls = [{"id": f"check {n}", "method": "GET", "path": p} for n, p in enumerate(paths)]
        query = {"allowParallelMode": "false", "stopOnFirstFailure": "true", **options}
        code, answer = self.ask("POST", "/batch", query, calls)
        ticket = answer.get("ticket") if isinstance(answer, dict) else None
        fine = code == 200 and isinstance(ticket, str) and ticket != ""
        if code in (401, 402, 403):
            sys.exit(f"check: HTTP {code}: check the token, its access scopes, and the plan")
        if not fine or "deduplicationKey" in options:
            self.tell("create", "200 and a ticket", [code, answer], fine)
        if not fine:
            sys.exit("there is no ticket, so nothing else can be asked")
        return ticket

    def look(self, ticket, **query):
        return self.ask("GET", "/batch", {"ticket": ticket, **query})[1]

    def end(self, ticket):
        """Return the answer with the rows of a batch that is done, and how the library reads it."""
        for _ in range(600):
            answer = self.look(ticket, escapedJson="true")
            try:
                status = self.library.BatchStatus.from_dict(answer)
            except self.library.EcwidError as error:
                self.tell("status", "status and two counts", answer, False)
                sys.exit(f"the library cannot read a status: {error}")
            if status.done:
                return answer, status
            time.sleep(self.pause)
        sys.exit("a batch does not end")

    def rows(self, name, paths, expected, **options):
        """Check how the library reads the rows of a batch."""
        ticket = self.submit(paths, **options)
        begun = time.monotonic()
        answer, status = self.end(ticket)
        seconds = time.monotonic() - begun
        by_id = {response.id: response for response in status}
        found = [getattr(by_id.get(f"check {n}"), "status", None) for n in range(len(paths))]
        rows = [self.without_data(row) for row in answer.get("responses") or []]
        seen = dict(collections.Counter(found)) if found == expected else rows
        self.tell(name, dict(collections.Counter(expected)), seen, found == expected)
        return ticket, rows, status, seconds

    @staticmethod
    def without_data(row):
        """Return a row without the body of a success, which has the data of the shop."""
        if not isinstance(row, dict) or row.get("status") == "FAILED":
            return row
        return {name: "..." if "Body" in name else value for name, value in row.items()}

    def run(self):
        self.one_batch(["/profile", MISSING, "/profile"])
        self.modes()
        code, found = self.ask("GET", "/batch", {"status": "COMPLETED", "offset": 0, "limit": 100})
        items = found.get("items") if isinstance(found, dict) else found
        fine = isinstance(items, list) and all(isinstance(one.get("ticket"), str) for one in items)
        self.tell("find", "an array, or items", [code, str(found)[:100]], bool(fine))
        self.cancel_and_delete()
        code, answer = self.ask("GET", "/batch", {"ticket": "no-such-ticket"})
        fine = isinstance(answer, dict) and bool({"errorMessage", "errorCode"} & set(answer))
        self.tell("an unknown ticket", "404 in Ecwid's own JSON", [code, answer], fine)
        self.tell("headers of a limit", "any", sorted(self.headers), True)
        return self.differs

    def one_batch(self, paths):
        key = str(uuid.uuid4())
        stop = ["COMPLETED", "FAILED", "NOT_EXECUTED"]
        ticket, rows, status, _ = self.rows("a failure stops", paths, stop, deduplicationKey=key)
        again = self.submit(paths, deduplicationKey=key)
        self.tell("the same key again", "the first ticket", again == ticket, again == ticket)
        light = self.look(ticket)
        names = sorted({name for row in light.get("responses") or [] for name in row})
        fine = {"status", "totalRequests", "completedRequests"} <= set(light)
        self.tell("a status without escapedJson", "no rows, or httpBody", names or "no rows", fine)
        ids = [row.get("id") for row in rows]
        fine = sorted(ids, key=str) == ["check 0", "check 1", "check 2"]
        self.tell("ids are echoed, in some order", "check 0 to check 2", ids, fine)
        bodies = [name for name in rows[0] if "Body" in name]
        fine = bodies in (["escapedHttpBody"], ["httpBody"]) and bool(status.responses[0].body)
        self.tell("with escapedJson the body is text", "escapedHttpBody", bodies, fine)
        failed = [one for one in status.failed if one.http_status_code == 404]
        fine = bool(failed and failed[0].error_message)
        self.tell("the row of a failure", "404 and a message", rows[1:2], fine)
        self.tell("the row of a call that did not run", "any", rows[2:], True)

    def modes(self):
        paths, on = ["/profile", MISSING, "/profile"], ["COMPLETED", "FAILED", "COMPLETED"]
        self.rows("without stopOnFirstFailure", paths, on, stopOnFirstFailure="false")
        many, fine = ["/profile"] * 20, ["COMPLETED"] * 20
        *_, seconds = self.rows("one after another", many, fine)
        self.rows("in parallel", many, fine, allowParallelMode="true")
        self.tell("a wrapped call", "any time", f"{seconds / 20:.2f} s", True)

    def cancel_and_delete(self):
        group = f"check-{uuid.uuid4().hex[:8]}"
        ticket = self.submit(["/profile"] * 300, groupId=group)
        code, answer = self.ask("POST", "/batch/cancel-group", {"groupId": group})
        fine = code == 200 and self.has_count(answer, "updateCount")
        self.tell("cancel", "200 and updateCount", [code, answer], fine)
        answer, status = self.end(ticket)
        rows = zip(answer.get("responses") or [], status)
        odd = [self.without_data(row) for row, response in rows if not response.ok]
        fine = not any(response.status == "FAILED" for response in status)
        self.tell("rows of cancelled calls", "none, or no code", odd[:1], fine)
        for name in ("delete", "delete again"):
            code, answer = self.ask("DELETE", "/batch", {"ticket": ticket, "ticketId": ticket})
            fine = code == 200 and self.has_count(answer, "deleteCount")
            fine = fine or (code == 404 and name == "delete again")
            self.tell(name, "deleteCount", [code, answer], fine)

    @staticmethod
    def has_count(answer, name):
        return isinstance(answer, dict) and type(answer.get(name)) is int


def check():
    """Ask a live shop whether it behaves as this project assumes; return 1 if something differs."""
    base = os.environ.get("ECWID_BASE_URL") or "https://app.ecwid.com/api/v3"
    names = ("ECWID_STORE_ID", "ECWID_TOKEN")
    if not all(os.environ.get(name) for name in names):
        sys.exit(f"check: set {' and '.join(names)}")
    print(f"This asks {base} about itself: a few batches that wrap GET /profile and GET")
    print(f"{MISSING}, up to 350 calls. One of them is cancelled and deleted. This changes nothing")
    print("in the shop.\n")
    asked = Check({**os.environ, "ECWID_BASE_URL": base.rstrip("/")})
    try:
        differs = asked.run()
    except OSError as error:
        sys.exit(f"check: {error}; check the network and ECWID_BASE_URL")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        asked.tell("all answers have the form of the reference", "that", repr(error), False)
        differs = asked.differs
    print(f"\n{differs or 'Nothing'} of this differs. Please paste all lines into an issue.")
    return 1 if differs else 0


def serve(args):
    """Run the stand-in alone, until Ctrl-C."""
    try:
        if args.products < 0 or not 0 <= args.fault_rate <= 1:
            raise ValueError("--products must be 0 or more, --fault-rate 0 to 1")
        options = {"store_id": args.store, "token": args.token, "fault_rate": args.fault_rate}
        Faults().extend(args.fault)  # refuses one that does not exist
        standin = StandIn(args.port, args.verbose, latency=args.latency, **options)
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"serve: {error}; if the port {args.port} is taken, --port 0 finds another")
    standin.faults = args.fault
    standin.shop.stock(args.products)
    with standin as ecwid:
        for name, value in ecwid.environment.items():
            powershell = f'$env:{name} = "{value}"'
            print(powershell if os.name == "nt" else f"export {name}={value}")
        products = f"products 1 to {args.products}" if args.products else "no products"
        print(f"# A stand-in for Ecwid with {products} listens there. Run these lines in another")
        print("# shell, then ecwid_batch.py. Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)
    return 0


def main(argv=None):
    parser = argparse.ArgumentParser(description="A local stand-in for Ecwid.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="run the reference's example, and show what happens")
    about = "ask the shop of ECWID_STORE_ID and ECWID_TOKEN whether it behaves as assumed"
    commands.add_parser("check", help=f"{about}; this changes nothing")
    server = commands.add_parser(
        "serve",
        help="run the stand-in alone",
        epilog="faults:\n" + "\n".join(f"  {name!r}: {text}" for name, (text, _) in FAULTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = server.add_argument
    option("--port", type=int, default=8003, help="0: any free port (default: %(default)s)")
    option("--store", type=int, default=1003, metavar="ID", help="(default: %(default)s)")
    option("--token", default="secret_stand_in", help="(default: %(default)s)")
    option("--products", type=int, default=1, metavar="N", help="have products 1 to N")
    about = "seconds a wrapped call takes (default: %(default)s)"
    option("--latency", type=float, default=0.05, metavar="S", help=about)
    about = "what is to go wrong with the first request, the second, ...; see below"
    option("--fault", action="append", default=[], metavar="NAME", help=about)
    about = "the part of all requests with which something goes wrong, 0 to 1"
    option("--fault-rate", type=float, default=0.0, metavar="P", help=about)
    option("-v", "--verbose", action="store_true", help="log each request on standard error")
    args = parser.parse_args(argv)
    commands = {"demo": demo, "check": check, "serve": lambda: serve(args)}
    return commands[args.command]()


ecwid_batch = None
with contextlib.suppress(ImportError):  # the stand-in alone does not need it before it opens
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
HOUR, DAY = 3600, 86400
WINDOWS = sys.platform == "win32"
CLEAN_ENV = {
    **{name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ},  # for sockets
    "PATH": os.environ.get("PATH", os.defpath),
    "LANG": "C",
    "PYTHONPATH": str(HERE),
    "PYTHONDONTWRITEBYTECODE": "1",
}


class StillClock(Clock):
    """Time that stands still but for pauses, exchanges and what a test adds to `now`."""

    def __init__(self):
        super().__init__()
        self.now, self.sleeps, self.suspended = 1000.0, [], 0.0
        self.epoch = 1_800_000_000.0

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds

    def monotonic(self):
        return self.now

    def time(self):
        return self.epoch + self.now + self.suspended  # the monotonic clock stands still meanwhile


class Direct:
    """An opener that asks an engine in this process; each call takes some time of the clock.

    fault  a function that is called for each request, before Ecwid acts or after (then its argument
           is True), to raise an error or return another answer
    """

    def __init__(self, engine, seconds=0.15):
        self.engine, self.clock, self.seconds = engine, engine.clock, seconds
        self.fault = lambda after: None

    def open(self, request, timeout):
        self.clock.now += min(self.seconds, timeout)
        if self.seconds > timeout:
            raise socket.timeout("timed out")
        self.engine.record(request.get_method(), request.full_url.partition("//x")[2])
        answer = self.fault(False)
        if answer is not None:
            return answer
        headers = {name.title(): value for name, value in request.header_items()}
        answer = self.engine.handle(request.get_method(), request.selector, headers, request.data)
        return self.fault(True) or opened(request.full_url, *answer)


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
    clock = StillClock()
    with mock.patch.object(ecwid_batch, "time", clock):
        engine = Engine(**{"rate_limit": None, "time_scale": 0, "clock": clock, **options})
        options = {"base_url": "https://x/api/v3", **dict(client_options)}
        client = EcwidClient(1003, engine.token, **options)
        client.network = network = Direct(engine, seconds)
        with mock.patch.object(ecwid_batch, "_opener_for", lambda host: network):
            yield engine, client, clock


def creates(count, start=0):
    return [
        BatchRequest.post("/products", {"sku": f"sku-{n}", "name": "n"})
        for n in range(start, start + count)
    ]


def gets(count):
    return [BatchRequest.get("/profile", {"lang": n}) for n in range(count)]


def ran(engine):
    """Return the SKUs that were created, in order."""
    return [call["body"]["sku"] for _, call in engine.ledger if call["method"] == "POST"]


def skus(count, start=0):
    return [f"sku-{n}" for n in range(start, start + count)]


def submissions(engine):
    return sum(request[:2] == ("POST", "/batch") for request in engine.requests)


def fails_at(*numbers, status=400):
    """Return a script that refuses the products with these numbers."""
    refused = {f"sku-{number}" for number in numbers}

    def script(call):
        if call["body"]["sku"] in refused:
            return status, {"errorMessage": "no", "errorCode": "NO"}
        return None

    return script


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
        level, handlers = logger.level, list(logger.handlers)

        def restore():
            logger.handlers[:] = handlers
            logger.setLevel(level)

        self.addCleanup(restore)
        logger.setLevel(logging.CRITICAL)  # retries are many here, and expected
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def folder(self):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        return pathlib.Path(folder)

    def at_once(self, commands, **options):
        """Run commands at the same time; return exit status, output and errors of each."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes = [subprocess.Popen(command, **{**pipes, **options}) for command in commands]
        ends = []
        for process in processes:
            out, err = process.communicate(timeout=60)
            ends.append((process.returncode, out, err.decode()))
        return ends

    def fails(self, call, kind, words=""):
        """Check that a call raises an error of just this kind with these words; return it."""
        with self.assertRaises(kind) as caught:
            call()
        self.assertIn(words, str(caught.exception))
        return caught.exception

    def refuses(self, call, *cases):
        """Check that a call refuses arguments; a case is the words of the error, and arguments."""
        for kind, words, *arguments in cases:
            with self.subTest(words=words, arguments=arguments):
                self.fails(lambda a=arguments: call(*a), kind, words)


class WithStandIn(TestCase):
    """Tests that share one stand-in, which is as new for each of them."""

    @classmethod
    def setUpClass(cls):
        cls.ecwid = StandIn(rate_limit=None)
        cls.ecwid.__enter__()
        cls.addClassCleanup(cls.ecwid.__exit__, None)

    def setUp(self):
        super().setUp()
        self.ecwid.latency, self.ecwid.rate_limit = 0.0, None
        self.ecwid.reset()


Number = enum.IntEnum("Number", "ONE")


class Colour(str, enum.Enum):
    RED = "red"
    POST = "POST"
    PATH = "/a/b"
    KEY = KEY


# --- Tests: requests and batches ------------------------------------------------------------------


class Requests(TestCase):
    def test_params_are_percent_encoded(self):
        crème = {"d": decimal.Decimal("19.90"), "é": "crème & co"}
        cases = (
            ({"limit": 1, "email": "a+b@example.com"}, "limit=1&email=a%2Bb%40example.com"),
            ({"a": True, "b": False, "c": None, "d": 1.5}, "a=true&b=false&d=1.5"),
            ({"paymentStatus": ["PAID", "A,B"], "x": ()}, "paymentStatus=PAID,A%2CB&x="),
            (crème, "d=19.9&%C3%A9=cr%C3%A8me%20%26%20co"),
            ({"s": Colour.RED, "t": [Colour.RED], "n": Number.ONE}, "s=red&t=red&n=1"),
        )
        for params, query in cases:
            with self.subTest(params=params):
                self.assertEqual(BatchRequest.get("/a", params).path, f"/a?{query}")
        self.assertEqual(BatchRequest.get("/a?b=1", {"c": 2}).path, "/a?b=1&c=2")
        self.assertEqual(BatchRequest.get("/a", {"c": None}).path, "/a")
        for make in (BatchRequest.post, BatchRequest.put, BatchRequest.delete):
            self.assertEqual(make("/a", params={"c": 2}).path, "/a?c=2")

    def test_params_that_cannot_be_written_are_refused_and_never_sent_as_a_repr(self):
        class Truth:  # such as numpy.bool_
            def __bool__(self):
                return True

        self.refuses(
            lambda params: BatchRequest.get("/a", params),
            (TypeError, "parameter a must be text, a number, a bool or a list", {"a": Truth()}),
            (TypeError, "not builtin_function", {"a": len}),
            (TypeError, "not dict", {"a": {"b": 1}}),
            (TypeError, "not NoneType", {"a": [None]}),
            (TypeError, "not bytes", {"a": b"x"}),
            (ValueError, "not JSON compliant", {"a": math.nan}),
            (TypeError, "the name of a parameter must be a str", {1: "x"}),
            (TypeError, "params must be a mapping such as {'limit': 1}, not str", "limit=1"),
        )

    def test_what_a_url_cannot_hold_is_encoded_and_what_is_encoded_stays(self):
        for path, sent in (
            ("/products/a b", "/products/a%20b"),
            ("/products?keyword=crème", "/products?keyword=cr%C3%A8me"),
            ("/products?keyword=a%20b%2Fc", "/products?keyword=a%20b%2Fc"),
            ("/products?keyword=100%", "/products?keyword=100%25"),
            ('/products?keyword=<"a|b\\">', "/products?keyword=%3C%22a%7Cb%5C%22%3E"),
            ("/orders?a=1&paymentStatus=A,B", "/orders?a=1&paymentStatus=A,B"),
            ("/coupons/A+B?keyword=a+b", "/coupons/A%2BB?keyword=a+b"),
            ("/products/..a/b..", "/products/..a/b.."),
            ("/products?next=/a/../b//", "/products?next=/a/../b//"),
            ("/api/v4", "/api/v4"),
        ):
            with self.subTest(path=path):
                self.assertEqual(BatchRequest("GET", path).path, sent)
                self.assertEqual(BatchRequest("GET", sent).path, sent)

    def test_a_path_that_is_not_what_the_caller_means_is_refused_with_advice(self):
        for advice, paths in {
            "begin with one '/'": ("orders", "?a=1", "https://x.com/api/v3/1/a", "//x.com/a"),
            "without a '.' or '..' segment": (
                "/..",
                "/a/.",
                "/a/../b",
                "/a/%2e%2E/b?x=1",
                "/a/..%2fb",
            ),
            "control characters": ("/a%0ab", "/a\n", "/or\x00ders", "/a?b=\x7f", "/a%c2%85"),
            "write '#' as %23": ("/orders#top",),
            "must not repeat /api/v3/{storeId}": ("/api/v3/1003/orders", "/%61pi/v3/1003/orders"),
            "(is an id missing?)": (f"/products/{''}", "/products//image", "/products/ ", "/"),
            "path must not be empty": ("",),
            "surrogates not allowed": ("/a\ud800",),
        }.items():
            for path in paths:
                with self.subTest(path=path):
                    self.fails(lambda path=path: BatchRequest("GET", path), ValueError, advice)

    def test_a_token_in_the_path_is_refused_and_not_shown(self):
        for query in ("token=secret_a", "a=1&%74oken=secret_a", "Access_Token=secret_a"):
            for path in (f"/orders?{query}", f"https://app.ecwid.com/orders?{query}#x"):
                error = self.fails(lambda path=path: BatchRequest("GET", path), ValueError, "token")
                self.assertNotIn("secret_a", str(error))

    def test_wrong_methods_and_ids_are_refused(self):
        self.refuses(
            BatchRequest,
            (ValueError, "GET, POST, PUT, DELETE", "get", "/a"),
            (TypeError, "method must be a str", None, "/a"),
            (TypeError, "path must be a str", "GET", None),
            (TypeError, "path must be a str", "GET", b"/a"),
            (TypeError, "id must be a str, not int; write str(...)", "GET", "/a", None, 1),
            (ValueError, "id must not be empty", "GET", "/a", None, ""),
        )

    def test_members_of_a_str_enum_are_sent_as_their_values(self):
        request = BatchRequest(Colour.POST, Colour.PATH, {Colour.RED: Colour.RED}, Colour.RED)
        batch = Batch([request], group_id=Colour.RED, deduplication_key=Colour.KEY)
        sent = b'[{"id": "red", "path": "/a/b", "method": "POST", "body": {"red": "red"}}]'
        self.assertEqual(batch.to_json(), sent)
        query = urllib.parse.urlencode(batch.query)
        self.assertTrue(query.endswith(f"&groupId=red&deduplicationKey={KEY}"))
        self.assertIn("POST /a/b", repr(batch))

    def test_a_request_is_a_snapshot_of_its_body(self):
        body = {"price": 1, "list": [1]}
        request = BatchRequest.put("/a", body)
        copies = [copy.deepcopy(request), pickle.loads(pickle.dumps(request))]
        body["price"] = 2
        body["list"].append(2)
        request.body["price"] = 3
        copies.append(dataclasses.replace(request, id=None))
        for one in (request, *copies):
            self.assertEqual(one.body, {"price": 1, "list": [1]})
            self.assertIn("'price': 1", repr(one))
            self.assertEqual(one, request)
            self.assertEqual(hash(one), hash(request))
            self.assertIn(b'"body": {"price": 1, "list": [1]}', Batch([one]).to_json())
        self.assertEqual(dataclasses.replace(request, id="x").body, request.body)
        self.assertNotEqual(dataclasses.replace(request, id="x"), request)
        self.assertNotEqual(request, "text")
        self.assertIsNone(BatchRequest.get("/a").body)
        with self.assertRaises(dataclasses.FrozenInstanceError):
            request.body = 1

    def test_a_decimal_is_the_number_that_it_is_or_refused(self):
        sent_as = {"19.90": "19.9", "1E+2": "100.0", "-0.5": "-0.5", "7": "7", "9" * 30: "9" * 30}
        for text, sent in sent_as.items():
            request = BatchRequest.put("/a", [decimal.Decimal(text)])
            self.assertIn(f'"body": [{sent}]', Batch([request]).to_json().decode())
        for text in ("0.12345678901234567890123", "1E+400", "NaN", "Infinity", "sNaN"):
            with self.subTest(text=text), self.assertRaises(ValueError):
                BatchRequest.put("/a", {"price": decimal.Decimal(text)})

    def test_a_body_that_json_cannot_hold_is_refused_where_it_is_given(self):
        circle, deep = [], []
        circle.append(circle)
        for _ in range(100_000):
            deep = [deep]
        self.refuses(
            lambda body: BatchRequest.post("/a", body),
            (ValueError, "JSON compliant", {"a": math.inf}),
            (ValueError, "Circular reference", circle),
            (TypeError, "externalUrl", b"image"),
            (TypeError, "set is not JSON", {1, 2}),
            (TypeError, "keys must be str", {(1, 2): 3}),
            (ValueError, "two keys of the body are the same", {1: "a", "1": "b"}),
            (ValueError, "two keys of the body are the same", [{"a": ({None: 1, "null": 2},)}]),
            (ValueError, "nested too deeply", deep),
        )
        self.assertEqual(BatchRequest.post("/a", {1: "a", "b": 2}).body, {"1": "a", "b": 2})


class Batches(TestCase):
    def test_the_references_example_reads_and_writes_as_it_is(self):
        marked = b"\xef\xbb\xbf" + EXAMPLE.encode()
        for source in (EXAMPLE, EXAMPLE.encode(), marked, json.loads(EXAMPLE)):
            self.assertEqual(json.loads(Batch.from_json(source).to_json()), json.loads(EXAMPLE))

    def test_json_that_is_no_batch_is_refused_saying_where(self):
        self.refuses(
            Batch.from_json,
            (ValueError, "Expecting property name", "{"),
            (ValueError, "must be a JSON array of requests", "{}"),
            (ValueError, "must be a JSON array of requests", 5),
            (ValueError, "a batch needs 1 to 500 requests", "[]"),
            (ValueError, "request 1 must be a JSON object with method, path", "[5]"),
            (ValueError, "a JSON object with method, path", [{"method": "GET"}]),
            (ValueError, "and maybe body and id", [{"method": "GET", "path": "/a", "url": 1}]),
            (ValueError, "request 1: path must be relative", [{"method": "GET", "path": "a"}]),
            (ValueError, "request 1: path must be a str", [{"method": "GET", "path": 5}]),
            (ValueError, "NaN is not JSON", '[{"method": "PUT", "path": "/a", "body": NaN}]'),
            (ValueError, "nested too deeply", "[" * 100_000),
        )

    def test_missing_ids_are_given_by_position_and_the_callers_objects_are_kept(self):
        requests = [*gets(1), BatchRequest.get("/a", id="mine"), *gets(1)]
        batch = Batch(iter(requests))
        self.assertEqual(batch.ids, ("000001", "mine", "000003"))
        self.assertTrue(all(one is other for one, other in zip(batch, requests)))
        self.assertEqual(len(batch), 3)

    def test_wrong_requests_and_options_are_refused(self):
        get, named = gets(1)[0], BatchRequest.get("/a", id="000002")
        taken = "request 2 (GET /a): the id '000002' is that of request 1"
        self.refuses(
            lambda requests, **options: Batch(requests, **options),
            (ValueError, "a batch needs 1 to 500 requests", []),
            (ValueError, "run takes any number", itertools.repeat(get)),
            (TypeError, "request 2 must be a BatchRequest, not dict", [get, {"method": "GET"}]),
            (ValueError, taken, [named, named]),
            (ValueError, "the id '000002' is that of request 1", [named, get]),
        )
        self.refuses(
            lambda name, value: Batch([get], **{name: value}),
            (TypeError, "must be True or False, not None", "allow_parallel_mode", None),
            (TypeError, "must be True or False, not 1", "stop_on_first_failure", 1),
            (TypeError, "group_id must be a str", "group_id", 5),
            (ValueError, "surrogates not allowed", "group_id", "caf\udce9"),
            (ValueError, "group_id must not be empty", "group_id", ""),
            (ValueError, "uuid5(uuid.NAMESPACE_URL, text)", "deduplication_key", "night"),
            (TypeError, "not UUID; write str(...)", "deduplication_key", uuid.UUID(KEY)),
        )

    def test_a_request_of_a_second_copy_of_the_module_is_refused_by_the_name_of_that_module(self):
        spec = importlib.util.spec_from_file_location("vendored.ecwid_batch", ecwid_batch.__file__)
        second = importlib.util.module_from_spec(spec)
        with mock.patch.dict(sys.modules, {"vendored.ecwid_batch": second}):
            spec.loader.exec_module(second)
        words = "not BatchRequest of a second copy of the module, vendored.ecwid_batch"
        self.fails(lambda: Batch([second.BatchRequest.get("/a")]), TypeError, words)
        words = "not Batch of a second copy of the module, vendored.ecwid_batch"
        batch = second.Batch([second.BatchRequest.get("/a")])
        self.fails(lambda: EcwidClient(1, "t").submit(batch), TypeError, words)

    def test_the_query_always_has_the_modes_and_a_key(self):
        modes = {"allowParallelMode": "false", "stopOnFirstFailure": "true"}
        for batch in (Batch.from_json(EXAMPLE), Batch(gets(1))):
            query = batch.query
            self.assertEqual(query, {**modes, "deduplicationKey": query["deduplicationKey"]})
        self.assertNotEqual(query["deduplicationKey"], Batch(gets(1)).deduplication_key)
        options = {"allow_parallel_mode": True, "stop_on_first_failure": False}
        batch = Batch(gets(1), deduplication_key=KEY.upper(), group_id="night", **options)
        modes = {"allowParallelMode": "true", "stopOnFirstFailure": "false"}
        self.assertEqual(batch.query, {**modes, "deduplicationKey": KEY, "groupId": "night"})

    def test_reprs_are_one_short_line(self):
        long = BatchRequest.get("/" + "a" * 5000)
        response = BatchResponse("x\n" * 500, "FAILED", 400, error_message="y" * 999)
        for thing in (Batch([long] * 500), response, status_of(row(), total=500)):
            self.assertLess(len(repr(thing)), 160)
            self.assertTrue(repr(thing).isprintable())


# --- Tests: responses, statuses, errors -----------------------------------------------------------


class Responses(TestCase):
    def test_every_form_of_the_reference_is_read(self):
        body = {"a": 1}
        for fields, expected in (
            ({"httpBody": body}, body),
            ({"escapedHttpBody": '{"a": 1}'}, body),
            ({"escapedHttpBody": "no JSON"}, "no JSON"),
            ({"escapedHttpBody": "[" * 100_000}, "[" * 100_000),
            ({"escapedHttpBody": None}, None),
            ({}, None),
        ):
            self.assertEqual(status_of(row(**fields)).responses[0].body, expected)
        old = {"id": "a", "status": "FAILED", "httpCode": 404, "httpStatusLine": "gone"}
        response = status_of(old)["a"]
        self.assertEqual((response.http_status_code, response.http_status_line), (404, "gone"))
        for rows in (None, []):
            answer = {"status": "QUEUED", "totalRequests": 3, "completedRequests": 0}
            status = BatchStatus.from_dict({**answer, "responses": rows})
            self.assertEqual((status.done, status.responses, status.ticket), (False, (), None))

    def test_an_error_has_message_and_code_from_wherever_they_are(self):
        for fields, message, code in (
            ({"httpBody": {"errorMessage": "m", "errorCode": "C"}}, "m", "C"),
            ({"httpBody": {"error_message": "m"}, "httpStatusLine": "l"}, "m", None),
            ({"httpBody": {"errorMessage": 5}, "httpStatusLine": "l"}, "l", None),
            ({"httpStatusLine": "l"}, "l", None),
            ({"httpStatusLine": "a\x1b[31m\nb"}, "a [31m b", None),
            ({}, "HTTP 400 Bad Request", None),
        ):
            response = status_of(row(status="FAILED", code=400, **fields)).responses[0]
            self.assertEqual((response.error_message, response.error_code), (message, code))
        good = status_of(row(httpBody={"errorMessage": "m"})).responses[0]
        self.assertIsNone(good.error_message)

    def test_a_row_that_cannot_be_believed_is_unknown_and_says_why(self):
        unread = "no response that can be read"
        for rows, status, words in (
            ([row(code=404)], "FAILED", ""),
            ([row(status="FAILED", code=202)], "UNKNOWN", "says FAILED, but with code 202"),
            ([row(status="NOT_EXECUTED", code=200)], "UNKNOWN", "says NOT_EXECUTED, but with code"),
            ([row(status="NOT_EXECUTED", code=500)], "UNKNOWN", "but with code 500, as if it ran"),
            ([row(status="NOT_EXECUTED", code=408)], "UNKNOWN", "but with code 408, as if it ran"),
            ([row(status="NOT_EXECUTED", code=400)], "NOT_EXECUTED", "HTTP 400 Bad Request"),
            ([row(status="NOT_EXECUTED", code=None)], "NOT_EXECUTED", "or the batch was cancelled"),
            ([row(code=None)], "UNKNOWN", "COMPLETED without a code"),
            ([row(code=0)], "UNKNOWN", "COMPLETED without a code"),
            ([row(code="200")], "UNKNOWN", "COMPLETED without a code"),
            ([row(status="PAUSED")], "UNKNOWN", unread),
            ([row(status=None)], "UNKNOWN", unread),
            ([row(status=["FAILED"])], "UNKNOWN", unread),
            ([row(), row()], "UNKNOWN", unread),
            ([row(), row(status="FAILED", code=500)], "UNKNOWN", unread),
            ([None, 5, {}, row(id=1), row(id="foreign")], "UNKNOWN", unread),
            ([row(httpStatusLine=503)], "COMPLETED", None),
            ([row(code=10**400)], "UNKNOWN", "COMPLETED without a code"),
        ):
            with self.subTest(rows=rows):
                batch = Batch(gets(2))
                answer = {"status": "COMPLETED", "totalRequests": 2, "completedRequests": 2}
                answer["responses"] = [*rows, row(id="000002")]
                found = ecwid_batch._read_status(answer, status_of(), batch, str)
                first, second = found.responses  # whatever the first is, the second is as it was
                self.assertEqual((first.status, second.status), (status, "COMPLETED"))
                self.assertIs(first.request, batch.requests[0])
                self.assertIn(words or "", first.error_message or "")

    def test_without_a_batch_the_responses_are_the_rows_as_ecwid_sends_them(self):
        rows = [{**row("a"), "id": None}, row("b"), row("b", "FAILED", 400), 5, row("", "NO", None)]
        del rows[0]["id"]
        found = status_of(*rows)
        self.assertEqual([r.id for r in found], ["", "b", "b", "", ""])
        states = ["COMPLETED", "COMPLETED", "FAILED", "UNKNOWN", "UNKNOWN"]
        self.assertEqual([r.status for r in found], states)

    def test_the_repr_of_a_status_counts_what_did_not_succeed(self):
        good, bad, odd = row("a"), row("b", "FAILED", 400), row("c", "PAUSED")
        for status, text in (
            (status_of(good, total=3), "<BatchStatus COMPLETED 1/3>"),
            (status_of(good, bad, odd), "<BatchStatus COMPLETED 3/3, 1 failed, 1 unknown>"),
            (
                status_of(row("a", "NOT_EXECUTED", None)),
                "<BatchStatus COMPLETED 1/1, 1 did not run>",
            ),
        ):
            self.assertEqual(repr(status), text)

    def test_retryable_is_what_may_help_and_cannot_harm(self):
        get, post = BatchRequest.get("/a"), BatchRequest.post("/a")
        put, delete = BatchRequest.put("/products/1"), BatchRequest.delete("/products/1")
        adjust = BatchRequest.put("/products/1/inventory?a=1", {"quantityDelta": -1})
        for status, code, safe, unsafe in (
            ("COMPLETED", 200, False, False),
            ("FAILED", 400, False, False),
            ("FAILED", 429, True, True),
            ("FAILED", 449, True, True),
            ("NOT_EXECUTED", None, True, True),
            ("FAILED", 408, True, False),
            ("FAILED", 500, True, False),
            ("UNKNOWN", None, True, False),
        ):
            for request in (get, put, delete, BatchRequest.get("/products/1/inventory")):
                response = BatchResponse("1", status, code, _request=request)
                self.assertEqual(response.retryable, safe, (status, code, request))
            for request in (post, adjust, None):
                response = BatchResponse("1", status, code, _request=request)
                self.assertEqual(response.retryable, unsafe, (status, code, request))

    def test_a_request_that_is_not_known_is_a_lookup_error_that_says_what_to_do(self):
        self.fails(lambda: status_of(row()).responses[0].request, LookupError, "pass batch=")

    def test_responses_are_found_by_id(self):
        status = status_of(row("a"), row("b", "FAILED", 400))
        self.assertEqual([status["a"].id, status["b"].id], ["a", "b"])
        self.assertTrue("a" in status and "c" not in status)
        self.assertEqual(list(status), list(status.responses))
        self.assertEqual(pickle.loads(pickle.dumps(status)), status)
        with self.assertRaises(KeyError):
            status["c"]

    def test_raise_for_failures_raises_unless_all_are_known_to_have_succeeded(self):
        status_of(row()).raise_for_failures()
        status_of().raise_for_failures()
        failed = row("b", "FAILED", 400, httpStatusLine="bad")
        odd = (row("a", "NOT_EXECUTED", None), row("b", "PAUSED"))
        for status, words in (
            (status_of(row("a"), failed), "of 2 requests, 1 failed; the first: request b: bad"),
            (status_of(*odd), "of 2 requests, 1 unknown, 1 did not run; the first: request b: "),
            (status_of(row(), total=3), "of 3 requests, 2 without a response"),
            (status_of(total=1), "of 1 request, 1 without a response"),
            (status_of(row("a"), row("a"), failed, total=2), "of 2 requests, 1 failed; the first"),
        ):
            error = self.fails(status.raise_for_failures, BatchFailedError, words)
            self.assertEqual(error.status, status)
            self.assertEqual(error.failed, status.failed)
            self.assertEqual(error.not_executed, status.not_executed)

    def test_what_the_api_does_not_promise_is_an_invalid_response(self):
        good = {"status": "COMPLETED", "totalRequests": 1, "completedRequests": 1}
        for answer in (
            None,
            [],
            "x",
            {},
            {**good, "status": "DONE"},
            {**good, "status": []},
            {"status": "COMPLETED"},
            {**good, "totalRequests": "1"},
            {**good, "completedRequests": True},
            {**good, "totalRequests": 10**400},
            {**good, "completedRequests": -1},
            {**good, "responses": {}},
            {**good, "responses": "x"},
        ):
            with self.subTest(answer=answer):
                error = self.fails(lambda a=answer: BatchStatus.from_dict(a), InvalidResponseError)
                self.assertTrue(error.temporary and error.uncertain)
        error = self.fails(
            lambda: ecwid_batch._read_status(good, status_of(), Batch(gets(2)), str),
            InvalidResponseError,
            "the ticket belongs to another batch, of 1 requests instead of 2",
        )
        self.assertFalse(error.temporary)


class Errors(TestCase):
    def test_pickling_and_copying_keep_everything(self):
        error = BatchTimeoutError("late", tickets=("T",), retry_after=3.0, uncertain=True)
        error.last_status = status_of(row(), total=2)
        api = ApiError("no", http_status_code=403, error_code="C", error_message="m")
        failed = BatchFailedError(status_of(row(status="FAILED", code=400)))
        for one in (error, api, failed, TransportError("x", temporary=True)):
            for same in (pickle.loads(pickle.dumps(one)), copy.copy(one)):
                self.assertEqual(type(same), type(one))
                self.assertEqual(str(same), str(one))
                self.assertEqual(vars(same), vars(one))
        self.assertEqual(str(error), "late, 1 of 2 done [at Ecwid: ticket T]")
        self.assertIsInstance(error, TimeoutError)


# --- Tests: the client and one exchange -----------------------------------------------------------


class Clients(TestCase):
    def test_wrong_arguments_are_refused(self):
        for arguments, options, kind, words in (
            ((0, "t"), {}, ValueError, "to a positive integer"),
            (("x", "t"), {}, ValueError, "to a positive integer"),
            ((True, "t"), {}, ValueError, "to a positive integer"),
            ((1, "t\n"), {}, ValueError, "visible ASCII without spaces"),
            ((1, ""), {}, ValueError, "ECWID_TOKEN, or token, must be set"),
            ((1, "t"), {"http_timeout": 0}, ValueError, "http_timeout"),
            ((1, "t"), {"http_timeout": math.nan}, ValueError, "http_timeout"),
            ((1, "t"), {"max_retry_time": 3601}, ValueError, "max_retry_time"),
            ((1, "t"), {"max_retry_time": "9"}, TypeError, ""),
            ((1, "t"), {"base_url": "app.ecwid.com"}, ValueError, "base_url must be like"),
            ((1, "t"), {"base_url": "ftp://x"}, ValueError, "base_url must be like"),
            ((1, "t"), {"base_url": "https://"}, ValueError, "base_url must be like"),
            ((1, "t"), {"base_url": "https://x:abc"}, ValueError, "ort"),
            ((1, "t"), {"base_url": "https://u:p@x/api"}, ValueError, "without user"),
            ((1, "t"), {"base_url": "https://x/api?a=1"}, ValueError, "without user or query"),
            ((1, "t"), {"base_url": "http://app.ecwid.com/api/v3"}, ValueError, "https://"),
            ((1, "t"), {"base_url": "http://127.evil.com"}, ValueError, "https://"),
            ((1, "t"), {"base_url": "http://localhost.evil.com"}, ValueError, "https://"),
            ((1, "t"), {"timout": 3}, TypeError, "timout"),
            ((1, None), {}, ValueError, "both store_id and token, or neither"),
            ((None, "t"), {}, ValueError, "both store_id and token, or neither"),
        ):
            with self.subTest(arguments=arguments, options=options):
                self.fails(lambda a=arguments, o=options: EcwidClient(*a, **o), kind, words)
        for url in ("https://x/v3/", "http://localhost:1", "http://127.0.0.9/x", "http://[::1]:8"):
            self.assertEqual(EcwidClient(1, "t", base_url=url).base_url, url.rstrip("/"))

    def test_what_is_not_given_comes_from_the_environment(self):
        given = {"ECWID_STORE_ID": "7 ", "ECWID_TOKEN": "secret_a "}  # as `set A=7 && ...` does it
        with mock.patch.dict(os.environ, given, clear=True):
            client = EcwidClient()
            self.assertEqual((client.store_id, client._token), (7, "secret_a"))
            self.assertEqual(client.base_url, "https://app.ecwid.com/api/v3")
            self.assertEqual(EcwidClient(8, "b").store_id, 8)
            os.environ["ECWID_BASE_URL"] = "http://localhost:8003/api/v3 "
            self.assertEqual(EcwidClient().base_url, "http://localhost:8003/api/v3")
            self.assertEqual(EcwidClient(base_url="https://x").base_url, "https://x")
            del os.environ["ECWID_TOKEN"]
            self.fails(EcwidClient, ValueError, "ECWID_TOKEN, or token, must be set")
            del os.environ["ECWID_STORE_ID"]
            self.fails(EcwidClient, ValueError, "set ECWID_STORE_ID")

    def test_a_used_client_can_be_pickled_and_copied(self):
        with StandIn() as ecwid:
            client = ecwid.client()
            client.submit(Batch(gets(1)))
            for same in (pickle.loads(pickle.dumps(client)), copy.deepcopy(client)):
                self.assertEqual(len(same.run(gets(2)).succeeded), 2)

    def test_wrong_arguments_of_methods_are_refused_before_anything_is_sent(self):
        class Never:
            def open(self, *args, **options):
                raise AssertionError("something was sent")

        def call(method, *arguments, **options):
            answer = getattr(client, method)(*arguments, **options)
            if method == "find":
                next(answer)

        client, one = EcwidClient(1, "t", opener=Never()), BatchRequest.get("/a", id="A")
        for kind, words, method, argument, options in (
            (TypeError, "client.wait(client.submit(batch)", "run", Batch(gets(1)), {}),
            (TypeError, "take requests, not a Batch", "stream", Batch(gets(1)), {}),
            (TypeError, "not iterable", "stream", one, {}),
            (ValueError, "batch_size must be 1 to 500", "stream", [], {"batch_size": 0}),
            (ValueError, "batch_size must be 1 to 500", "stream", [], {"batch_size": 501}),
            (ValueError, "must be a UUID", "stream", [], {"deduplication_key": "x"}),
            (TypeError, "group_id must be a str", "stream", [], {"group_id": 3}),
            (TypeError, "os.PathLike", "stream", [], {"journal": True}),
            (TypeError, "True or False", "stream", [], {"allow_parallel_mode": "no"}),
            (TypeError, "jurnal", "run", [], {"jurnal": "x"}),
            (TypeError, "on_progress must be a function", "run", [], {"on_progress": 3}),
            (ValueError, "a number of seconds, not nan", "stream", [], {"timeout": math.nan}),
            (TypeError, "must be real number, not str", "run", [], {"timeout": "9"}),
            (ValueError, "is that of request 1", "run", [one, one], {"batch_size": 1}),
            (ValueError, "a number of seconds, not nan", "wait", "T", {"timeout": math.nan}),
            (TypeError, "on_progress must be a function", "wait", "T", {"on_progress": 3}),
            (TypeError, "batch must be a Batch, not list", "wait", "T", {"batch": gets(1)}),
            (TypeError, "ticket must be a str", "wait", None, {}),
            (TypeError, "batch must be a Batch, not list", "submit", gets(1), {}),
            (ValueError, "ticket must not be empty", "status", "", {}),
            (TypeError, "ticket must be a str", "delete", 5, {}),
            (ValueError, "group_id must not be empty", "cancel", "", {}),
            (ValueError, "status must be one of", "find", "DONE", {}),
        ):
            with self.subTest(words=words, method=method):
                self.fails(lambda m=method, a=argument, o=options: call(m, a, **o), kind, words)

    def test_clients_of_a_kind_share_one_opener_and_loopback_gets_no_proxy(self):
        proxies = {"https_proxy": "http://u:p@10.0.0.1:3128", "http_proxy": "http://10.0.0.1:3128"}
        with mock.patch.dict(os.environ, proxies):
            far = ecwid_batch._opener_for("app.ecwid.com")
            self.assertIs(ecwid_batch._opener_for("other.example.com"), far)
            near = ecwid_batch._opener_for("localhost")
            self.assertIsNot(near, far)
            for opener, proxied in ((far, True), (near, False)):
                request = urllib.request.Request("https://app.ecwid.com/")
                for handler in opener.handlers:
                    self.assertFalse(getattr(handler, "_debuglevel", 0))  # which shows the token
                    if isinstance(handler, urllib.request.ProxyHandler) and handler.proxies:
                        handler.https_open(request)
                self.assertEqual(request.host == "10.0.0.1:3128", proxied)
            with mock.patch.dict(os.environ, {"SSL_CERT_FILE": "/other"}):
                self.assertIsNot(ecwid_batch._opener_for("app.ecwid.com"), far)


class TheWire(WithStandIn):
    def test_the_references_example_arrives_as_the_reference_has_it(self):
        seen = {}

        def look(handler):
            seen.update(handler.headers.items(), line=handler.requestline)
            handler.send(200, {}, {"ticket": "T"})

        self.ecwid.faults = [look]
        batch = Batch.from_json(EXAMPLE, allow_parallel_mode=True, deduplication_key=KEY)
        self.assertEqual(self.ecwid.client().submit(batch), "T")
        self.assertEqual(
            seen["line"],
            "POST /api/v3/1003/batch?allowParallelMode=true&stopOnFirstFailure=true"
            f"&deduplicationKey={KEY} HTTP/1.1",
        )
        self.assertEqual(seen["Authorization"], f"Bearer {self.ecwid.token}")
        self.assertEqual(seen["Content-Type"], "application/json")
        self.assertEqual(seen["Cache-Control"], "no-cache")
        self.assertEqual((seen["Accept-Encoding"], seen["Accept"]), ("gzip", "application/json"))
        self.assertRegex(seen["User-Agent"], "^ecwid_batch/[0-9.]+$")

    def test_submit_and_wait_return_one_response_per_request_in_order(self):
        for parallel in (False, True):
            self.ecwid.latency = lambda call: 1 / (1 + int(call["id"]))
            batch = Batch(gets(130), allow_parallel_mode=parallel)
            client, looks = self.ecwid.client(), []
            ticket = client.submit(batch)
            status = client.wait(ticket, batch=batch, on_progress=looks.append)
            self.assertEqual([r.request for r in status], list(batch))
            self.assertTrue(status.done and looks[-1] is status and len(looks) > 1)
            self.assertTrue(all(look.ticket == ticket for look in looks))
            again = client.wait(ticket)
            self.assertEqual(sorted(r.id for r in again), list(batch.ids))
            self.assertEqual(client.submit(batch), ticket)

    def test_a_failure_stops_the_batch_and_the_rest_did_not_run(self):
        self.ecwid.script = fails_at(1)
        batch = Batch(creates(3))
        client = self.ecwid.client()
        status = client.wait(client.submit(batch), batch=batch)
        self.assertEqual([r.status for r in status], ["COMPLETED", "FAILED", "NOT_EXECUTED"])
        self.assertEqual(
            (status.failed[0].error_message, status.failed[0].error_code), ("no", "NO")
        )
        words = "of 3 requests, 1 failed, 1 did not run; the first: request 000002 (POST /products)"
        error = self.fails(status.raise_for_failures, BatchFailedError, words)
        self.assertEqual(error.tickets, ())  # all its responses are here

    def test_status_has_responses_only_where_they_are_asked_for(self):
        client = self.ecwid.client()
        ticket = client.submit(Batch(gets(2)))
        for self.ecwid.light_rows in (False, True):
            self.assertEqual(len(client.status(ticket).responses), 2)
            self.assertEqual(client.status(ticket, responses=False).responses, ())

    def test_groups_are_cancelled_batches_deleted_and_found(self):
        self.ecwid.latency = 1000.0
        client = self.ecwid.client()
        tickets = [client.submit(Batch(gets(3), group_id="night")) for _ in range(230)]
        for self.ecwid.bare_find in (True, False):
            self.assertEqual(list(client.find("QUEUED")), tickets)
        self.assertEqual(client.cancel("day"), 0)
        self.assertEqual(client.cancel("night", ticket=tickets[0]), 1)
        self.assertEqual(self.ecwid.requests[-1][2], {"groupId": "night", "ticketId": tickets[0]})
        self.assertEqual(list(client.find("IN_PROGRESS")), tickets[:1])  # one call is running
        self.assertEqual(client.delete(tickets[1]), 1)
        self.assertEqual(self.ecwid.requests[-1][2], {"ticket": tickets[1], "ticketId": tickets[1]})
        self.assertEqual(client.delete(tickets[1]), 0)

    def test_error_answers_say_what_to_do(self):
        client = self.ecwid.client(max_retry_time=0)
        for status, words in (
            (401, "check the token"),
            (402, "check the plan of the store"),
            (403, "has the access scopes of all requests in the batch"),
            (404, "check the store id, the ticket and the base URL"),
            (415, "HTTP 415; CODE; the reason"),
        ):
            body = {"errorMessage": "the reason", "errorCode": "CODE"}
            self.ecwid.faults = [lambda h, s=status, b=body: h.send(s, {}, b)]
            error = self.fails(lambda: client.status("T"), ApiError, words)
            self.assertEqual(
                (error.http_status_code, error.error_code, error.error_message),
                (status, "CODE", "the reason"),
            )
            self.assertEqual((error.temporary, error.uncertain), (False, False))
            self.assertEqual(error.tickets, ("T",))
            self.assertTrue(str(error).startswith(f"GET {self.ecwid.base_url}/1003/batch: HTTP"))


class BadAnswers(WithStandIn):
    def call(self, fault, verb=lambda client: client.cancel("g"), **options):
        """Return the error of a call that meets a fault."""
        self.ecwid.faults = [fault]
        client = self.ecwid.client(**{"max_retry_time": 0, **options})
        return self.fails(lambda: verb(client), EcwidError)

    def test_every_fault_of_the_stand_in_is_an_error_that_names_the_call(self):
        invalid = {"html 200", "html 200 after", "empty after", "odd JSON after"}
        invalid |= {"cut off after"}
        limited = {"429", "429 soon", "block"}
        api = {"500", "500 after", "503 busy", "408 after", "html 502", "html 404"}
        sent = {"500", "503 busy", "html 502", "html 200", "reset"}
        for fault in FAULTS:
            if fault in ROW_FAULTS:
                continue
            kind = TransportError
            for names, other in (
                (invalid, InvalidResponseError),
                (limited, RateLimitError),
                (api, ApiError),
            ):
                kind = other if fault in names else kind
            with self.subTest(fault=fault):
                self.ecwid.reset()
                error = self.call(fault, lambda client: client.submit(Batch(gets(1))))
                self.assertIs(type(error), kind)
                self.assertTrue(str(error).startswith(f"POST {self.ecwid.base_url}/1003/batch: "))
                if "after" in fault or fault in sent:
                    self.assertTrue(error.uncertain)
                self.assertEqual(error.temporary, fault not in ("redirect", "html 404"))

    def test_what_the_api_does_not_promise(self):
        verbs = (
            lambda client: client.submit(Batch(gets(1))),
            lambda client: client.status("T"),
            lambda client: client.cancel("g"),
            lambda client: client.delete("T"),
            lambda client: next(client.find("QUEUED")),
        )
        client = EcwidClient(1, "t", max_retry_time=0)
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
            b'{"ticket": ""}',
            b'{"ticket": "a\\nb"}',
            b'{"items": 5}',
            b'{"updateCount": "1"}',
            b'{"deleteCount": true}',
            b"9" * 5000,
        ):
            given = 200, {}, answer
            for verb in verbs:
                with self.subTest(answer=answer[:40]):
                    with mock.patch("ecwid_batch._exchange", return_value=given):
                        error = self.fails(lambda verb=verb: verb(client), InvalidResponseError)
                    self.assertTrue(error.temporary and error.uncertain)

    def test_an_answer_that_breaks_on_the_way(self):
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for garbage in (
            b"",
            b"garbage\r\n\r\n",
            b"x" * 65_000 + b"\r\n\r\n",
            b"@" * 70_000,
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
            chunked + b"zz\r\n{}",
            chunked + b"9\r\n{}",
            b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000 + b": b\r\n\r\n",
        ):
            with self.subTest(garbage=garbage[:60]):

                def answer(handler, garbage=garbage):
                    handler.wfile.write(garbage)
                    handler.close_connection = True

                error = self.call(answer)
                self.assertIn(type(error), (TransportError, InvalidResponseError))
                self.assertTrue(error.temporary and error.uncertain)
                self.assertLess(len(str(error)), 500)

    def test_compressed_answers_of_every_form_are_read(self):
        text = b'{"updateCount": 1}'
        halves = gzip.compress(text[:9]) + gzip.compress(text[9:])
        whole = gzip.compress(text)
        codings = {"gzip": whole, "x-gzip": whole, "GZIP": halves, "gzip ": whole, "other": text}
        for coding, body in codings.items():
            self.ecwid.faults = [lambda h, c=coding, b=body: h.raw(200, {"Content-Encoding": c}, b)]
            self.assertEqual(self.ecwid.client().cancel("g"), 1)

    def test_too_large_an_answer_is_final(self):
        bomb = gzip.compress(b" " * 2**22)
        with mock.patch("ecwid_batch._MAX_ANSWER", 2**21):
            for headers, body in (({"Content-Encoding": "gzip"}, bomb), ({}, b" " * (2**21 + 1))):
                error = self.call(lambda h, x=headers, b=body: h.raw(200, x, b), max_retry_time=99)
                self.assertIs(type(error), InvalidResponseError)
                self.assertIn("larger than 2,097,152 bytes; use a smaller batch_size", str(error))
                self.assertEqual((error.temporary, error.uncertain), (False, True))

    def test_the_status_of_an_error_counts_even_if_its_body_is_broken_or_hangs(self):
        gone = threading.Event()
        self.addCleanup(gone.set)

        def hang(handler):
            handler.send_response(429)
            handler.send_header("Retry-After", "30")
            handler.send_header("Content-Length", "99")
            handler.end_headers()
            handler.wfile.flush()
            gone.wait(20)

        error = self.call(hang, http_timeout=0.2)
        self.assertEqual((type(error), error.retry_after), (RateLimitError, 30))
        packed = {"Content-Encoding": "gzip"}
        error = self.call(lambda handler: handler.raw(503, packed, b"no gzip"))
        self.assertEqual((type(error), error.http_status_code), (ApiError, 503))

    def test_a_connection_that_stays_open_does_not_hold_up_a_whole_answer(self):
        gone = threading.Event()
        self.addCleanup(gone.set)

        def answer(handler):
            handler.raw(200, {"Connection": "keep-alive"}, b'{"updateCount": 1}')
            handler.wfile.flush()
            gone.wait(20)

        self.ecwid.faults.append(answer)
        self.assertEqual(self.ecwid.client(http_timeout=5, max_retry_time=0).cancel("g"), 1)

    def test_a_silent_server_and_one_that_trickles_are_timeouts(self):
        gone = threading.Event()
        self.addCleanup(gone.set)

        def trickle(handler):
            handler.send_response(200)
            handler.end_headers()
            with contextlib.suppress(OSError):
                while not gone.wait(0.02):
                    handler.wfile.write(b" ")

        for fault in (trickle, lambda handler: gone.wait(20)):
            error = self.call(fault, http_timeout=0.15)
            self.assertIs(type(error), TransportError)
            self.assertIn("timed out", str(error))
            self.assertTrue(error.temporary and error.uncertain)

    def test_an_answer_that_flows_and_a_body_on_a_slow_line_may_take_longer_than_http_timeout(self):
        text = json.dumps({"updateCount": 1, "x": "y" * 40_000}).encode()

        def flow(handler):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(text)))
            handler.end_headers()
            for begin in range(0, len(text), 9000):
                time.sleep(0.06)
                handler.wfile.write(text[begin : begin + 9000])

        self.ecwid.faults = [flow]
        client = self.ecwid.client(http_timeout=0.2, max_retry_time=0)
        self.assertEqual(client.cancel("g"), 1)
        body = ecwid_batch._Body(b"x" * 20_000, lambda: math.inf)
        blocks = list(iter(lambda: body.read(8192), b""))
        self.assertEqual([len(block) for block in blocks], [8192, 8192, 3616])
        self.assertEqual(body, b"x" * 20_000)

    def test_no_block_of_a_submission_is_sent_after_the_end_of_its_key(self):
        late = ecwid_batch._Body(b"x", lambda: -1.0)
        self.fails(lambda: late.read(8192), TimeoutError, "not sent in the hour")
        left = iter([1.0])
        just = ecwid_batch._Body(b"x", lambda: next(left, -1.0))
        self.assertEqual(just.read(8192), b"x")
        self.assertEqual(just.read(8192), b"")  # all is sent: that it may arrive is not denied
        batch = Batch(gets(1))
        for remaining in (20.0, 2000.0):
            batch._key_end = ecwid_batch.time.time() + remaining
            with mock.patch("ecwid_batch._exchange", side_effect=TransportError("x")) as exchange:
                client = self.ecwid.client(http_timeout=600)
                self.fails(lambda c=client: c.submit(batch), TransportError)
            self.assertLessEqual(exchange.call_args[0][2], min(remaining, 600))

    @unittest.skipUnless(sys.platform == "linux", "needs the memory of a process as Linux tells it")
    def test_memory_is_in_proportion_to_the_answer(self):
        code = """
import resource
from test_ecwid_batch import StandIn
with StandIn() as ecwid:
    client = ecwid.client()
    client.cancel("g")
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, resource.RLIM_INFINITY))
    print([client.cancel("g") for _ in range(3)])
"""
        done = subprocess.run([sys.executable, "-c", code], env=CLEAN_ENV, capture_output=True)
        self.assertEqual((done.stdout, done.stderr), (b"[0, 0, 0]\n", b""))

    def test_what_fails_before_the_request_is_sent_is_certain_and_names_what_to_check(self):
        server, near, far = self.ecwid.base_url[7:-7], "http://127.0.0.1:1/a", "https://x.test/a"
        refused, network = "ConnectionRefusedError", "check the network and base_url"
        missing = "SSL_CERT_FILE names /no/such.pem, which does not exist"
        for url, proxy, bundle, temporary, name, advice in (
            (near, "", "", True, refused, network),
            (f"https://{server}/a", "", "", False, "SSLError", network),
            (far, '127.0.0.1:8"', "", False, "InvalidURL", 'the proxy 127.0.0.1:8"'),
            (far, "socks5://u:pw@127.0.0.1:1", "", False, "must be an http:// one", "not socks5"),
            (far, "HTTPS://u:pw@127.0.0.1:1", "", False, "must be an http:// one", "not HTTPS"),
            (far, "http://u:pw@127.0.0.1:1", "", True, refused, "check the proxy 127.0.0.1:1"),
            (far, "http:/u:pw@127.0.0.1:1", "", False, "ValueError", "***@127.0.0.1:1"),
            (far, f"http://{server}", "", True, "Tunnel connection", f"check the proxy {server}"),
            ("https://a..b/a", "", "", False, "label empty", network),
            (near, "", "/no/such.pem", True, refused, missing),
        ):
            environment = {"https_proxy": proxy, "no_proxy": "", "SSL_CERT_FILE": bundle}
            with self.subTest(url=url, proxy=proxy), mock.patch.dict(os.environ, environment):
                client = EcwidClient(1, "secret_x", base_url=url, max_retry_time=0)
                error = self.fails(lambda c=client: c.submit(Batch(gets(1))), TransportError, name)
                self.assertEqual((error.temporary, error.uncertain), (temporary, False))
                self.assertIn(advice, str(error))
                self.assertNotIn("pw", str(error))

    @unittest.skipIf(sys.implementation.name == "pypy", "which does not know SSLKEYLOGFILE")
    def test_what_hinders_the_setting_up_of_tls_is_certain(self):
        ecwid_batch._shared_opener.cache_clear()
        self.addCleanup(ecwid_batch._shared_opener.cache_clear)
        missing = str(self.folder() / "no" / "such" / "log")
        client = EcwidClient(1, "secret_x", base_url="https://x.test/a", max_retry_time=0)
        with mock.patch.dict(os.environ, {"SSLKEYLOGFILE": missing}):
            words = "FileNotFoundError: [Errno 2]"
            error = self.fails(lambda: client.submit(Batch(gets(1))), TransportError, words)
        self.assertFalse(error.uncertain)

    def test_what_fails_while_the_answer_is_read_is_uncertain(self):
        for error in (ValueError("x"), urllib.error.URLError("x"), EOFError("x")):
            with mock.patch("ecwid_batch._read_body", side_effect=error):
                found = self.call(None, lambda client: client.submit(Batch(gets(1))))
            self.assertTrue(found.uncertain)

    def test_whatever_a_callers_own_opener_raises_is_uncertain(self):
        for cause in (urllib.error.URLError(OSError("refused")), ValueError("x"), OSError("y")):
            opener = mock.Mock(open=mock.Mock(side_effect=cause))
            client = EcwidClient(1, "t", opener=opener, max_retry_time=0)
            error = self.fails(lambda c=client: c.submit(Batch(gets(1))), TransportError)
            self.assertTrue(error.uncertain)  # it may have followed a redirect

    def test_an_error_of_tls_says_whether_waiting_may_help(self):
        reason = urllib.error.URLError
        certificate = ssl.SSLCertVerificationError(1, "certificate verify failed")
        for cause, temporary, words in (
            (certificate, False, "check SSL_CERT_FILE and the clock of this host"),
            (ssl.SSLError(1, "wrong version number"), False, "wrong version number"),
            (ssl.SSLEOFError(8, "EOF occurred"), True, "EOF occurred"),
            (OSError(101, "Network is unreachable"), True, "unreachable"),
            (OSError("Tunnel connection failed: 407 Auth"), False, "407 Auth"),
            (OSError("Tunnel connection failed: 503 Busy"), True, "503 Busy"),
            ("unknown url type", False, "unknown url type"),
        ):
            for may_be_sent in (True, False):
                error = ecwid_batch._transport_error(reason(cause), may_be_sent, None, str)
                self.assertEqual((error.temporary, error.uncertain), (temporary, may_be_sent))
                self.assertIn(words, str(error))


# --- Tests: one rule for retries, the token -------------------------------------------------------


class Retries(TestCase):
    def outage(self, client, clock, seconds, begin=0.0):
        """Let all calls fail for some seconds from a moment on."""
        begin += clock.now

        def fault(after):
            if begin <= clock.now < begin + seconds:
                raise ConnectionResetError("reset")

        client.network.fault = fault

    def test_an_outage_of_a_minute_and_a_half_ends_no_job(self):
        chance = random.Random(5)
        for seconds in (5, 20, 60, 90):
            for begin in (0.0, *(chance.uniform(0, 1700) for _ in range(3))):
                with virtual(latency=18.0) as (engine, client, clock):
                    self.outage(client, clock, seconds, begin)
                    self.assertEqual(len(client.run(creates(100)).succeeded), 100)
                    self.assertEqual(ran(engine), skus(100))

    def test_a_call_is_tried_again_for_max_retry_time_from_its_first_failure(self):
        for limit in (0, 10, 120):
            with virtual(client_options={"max_retry_time": limit}) as (engine, client, clock):
                self.outage(client, clock, math.inf)
                begun = clock.now + 0.15
                error = self.fails(
                    lambda: client.submit(Batch(gets(1))), TransportError, "/batch: "
                )
                self.assertLessEqual(clock.now - begun, limit + 0.15)
                self.assertGreaterEqual(clock.now - begun, limit - 30.4)
                self.assertEqual((error.temporary, error.uncertain), (True, True))
                self.assertEqual("gave up after" in str(error), limit > 0)
                if limit == 0:
                    self.assertEqual(len(engine.requests), 1)

    def test_backoff_is_exponential_with_full_jitter(self):
        failure = TransportError("x", temporary=True)
        with mock.patch.object(ecwid_batch._RANDOM, "uniform", side_effect=lambda low, high: high):
            for tries, pause in ((1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30), (5000, 30)):
                self.assertEqual(ecwid_batch._pause_after(failure, tries, 99, 99), pause)
                self.assertEqual(ecwid_batch._pause_after(failure, tries, 0.1, 99), 0.1)
                self.assertIsNone(ecwid_batch._pause_after(failure, tries, 99, 0.4))
                self.assertIsNone(ecwid_batch._pause_after(failure, tries, 0, 99))
            failure.retry_after = 0.0
            self.assertEqual(ecwid_batch._pause_after(failure, 3, 99, 99), 2)

    def test_what_is_final_is_raised_at_once_and_what_may_pass_is_tried_again(self):
        for status, temporary, uncertain in (
            *((status, False, False) for status in (302, 307, 400, 401, 403, 404, 407, 409, 422)),
            (102, True, True),
            (103, True, True),
            (303, False, True),
            (429, True, False),
            (408, True, True),
            (500, True, True),
            (503, True, True),
        ):
            with self.subTest(status=status), virtual() as (engine, client, clock):
                engine.handle = mock.Mock(return_value=(status, {}, {"errorMessage": "no"}))
                error = self.fails(
                    lambda: client.submit(Batch(gets(1))), EcwidError, f"HTTP {status}"
                )
                self.assertEqual((error.temporary, error.uncertain), (temporary, uncertain))
                self.assertEqual(engine.handle.call_count > 1, temporary)
                self.assertEqual(isinstance(error, ApiError), status >= 400)

    def test_one_uncertain_try_makes_the_error_uncertain(self):
        with virtual() as (engine, client, clock):
            faults = iter([ConnectionResetError("reset")])
            refused = urllib.error.URLError(ConnectionRefusedError("refused"))
            client.network.fault = mock.Mock(
                side_effect=lambda after: self.throw(next(faults, refused))
            )
            error = self.fails(lambda: client.submit(Batch(gets(1))), TransportError, "refused")
            self.assertTrue(error.uncertain)

    @staticmethod
    def throw(error):
        raise error

    def test_retry_after_is_obeyed_to_the_letter(self):
        late = email.utils.formatdate(1_800_000_000 + 1000.15 + 20, usegmt=True)
        for header, pause in (
            ("3", 3),
            ("0", None),
            ("Mon, 26 Jan 2026 07:00:00 GMT", None),
            ("7.5", 7.5),
            (late, 20),
            (time.asctime(time.gmtime(1_800_000_000 + 1020)), 20),
            ("junk", None),
            ("-1", None),
            ("", None),
            ("9" * 50, None),
        ):
            for status in (429, 503):
                with virtual() as (engine, client, clock):
                    answers = iter([(status, {"Retry-After": header}, {})])
                    handle = engine.handle
                    engine.handle = lambda *a, h=handle, x=answers: next(x, None) or h(*a)
                    client.submit(Batch(gets(1)))
                    if pause is None and status == 429 and header[:1] not in ("0", "M"):
                        self.assertEqual(clock.sleeps, [10])
                    elif pause is None:
                        self.assertLessEqual(clock.sleeps[0], 0.5)
                    else:
                        self.assertAlmostEqual(clock.sleeps[0], pause, delta=1)

    def test_a_pause_that_does_not_fit_is_raised_at_once(self):
        for call, kind in (
            (lambda client: client.submit(Batch(gets(1))), RateLimitError),
            (lambda client: client.run(gets(1), timeout=100), RateLimitError),
        ):
            with virtual() as (engine, client, clock):
                engine.handle = mock.Mock(return_value=(429, {"Retry-After": "300"}, {}))
                error = self.fails(lambda c=call, k=client: c(k), kind, "retry after 300 s")
                self.assertEqual((error.retry_after, clock.sleeps), (300, []))
                error = self.fails(lambda: client.status("T"), RateLimitError, "not sent")
                self.assertAlmostEqual(error.retry_after, 300, delta=1)
                self.assertEqual(engine.handle.call_count, 1)

    def test_a_block_passes_whatever_the_clock_says_and_is_not_copied(self):
        with virtual() as (engine, client, clock):
            answers = iter([(429, {"Retry-After": "300"}, {})])
            handle = engine.handle
            engine.handle = lambda *call: next(answers, None) or handle(*call)
            client.max_retry_time = 0
            del client.network  # which cannot be pickled
            for _ in range(2):  # Ecwid's, and that of the client itself
                error = self.fails(lambda: client.status("T"), RateLimitError)
                self.assertEqual((error.http_status_code, round(error.retry_after)), (429, 300))
            for same in (pickle.loads(pickle.dumps(client)), copy.copy(client)):
                self.assertEqual(same.cancel("g"), 0)
            clock.suspended -= 2 * HOUR
            clock.now += 301
            self.assertEqual(client.cancel("g"), 0)

    def test_threads_that_share_a_client_make_no_early_call(self):
        with StandIn(rate_limit=None) as ecwid:
            client = ecwid.client(max_retry_time=0)
            ecwid.block(5)
            error = self.fails(lambda: client.status("T"), RateLimitError)
            self.assertGreater(error.retry_after, 4)
            client.max_retry_time = 120
            threads = [threading.Thread(target=client.run, args=(gets(1),)) for _ in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(ecwid.early, 1)  # the one that met the block
            self.assertEqual(len(ecwid.ledger), 10)

    def test_a_retry_sends_the_same_bytes_under_the_same_key(self):
        seen = []
        with StandIn() as ecwid:
            handle = ecwid.handle
            ecwid.handle = lambda *call: seen.append((call[1], call[3])) or handle(*call)
            ecwid.faults = ["cut off after", "500 after", "reset after"]
            ecwid.client().submit(Batch(creates(3)))
        self.assertEqual((len(seen), len(set(seen))), (4, 1))
        self.assertIn("deduplicationKey=", seen[0][0])

    def test_no_submission_is_tried_when_its_key_may_be_forgotten(self):
        for change in (0.0, 2 * HOUR, -600.0):  # the host slept in a pause; its clock was set back
            options = {"max_retry_time": 3600, "http_timeout": 60}
            with virtual(seconds=20, client_options=options) as (engine, client, clock):
                self.outage(client, clock, math.inf)
                sleep = clock.sleep

                def change_clock(seconds, clock=clock, sleep=sleep, change=change):
                    sleep(seconds)
                    clock.suspended = change

                clock.sleep = change_clock
                begun = clock.time()
                self.fails(lambda: client.submit(Batch(gets(1))), TransportError)
                self.assertEqual(len(engine.requests) == 1, change > 0)
                self.assertLess(clock.time() - begun - change, 3600)

    def test_each_exchange_is_logged_and_each_retry_is_a_warning(self):
        with StandIn() as ecwid:
            ecwid.faults = ["500"]
            with self.assertLogs("ecwid_batch", "DEBUG") as logs:
                ecwid.client().submit(Batch(gets(1)))
        call = r"DEBUG:.*POST http://127.0.0.1:\d+/api/v3/1003/batch\?allowParallelMode=false&.*"
        retry = r"WARNING:.*INTERNAL_ERROR.*; trying again in 0\.\d s"
        lines = (call, r"DEBUG:.*HTTP 500, \d+ bytes", retry, call, r"DEBUG:.*HTTP 200, \d+ bytes")
        for line, text in zip(lines, logs.output):
            self.assertRegex(text, line)


class TheToken(TestCase):
    def test_no_redirect_is_followed(self):
        class Following(urllib.request.OpenerDirector):
            pass

        with StandIn() as elsewhere, StandIn() as ecwid:
            for status in (301, 302, 303, 307, 308):
                target = {"Location": f"{elsewhere.base_url}/1003/batch?ticket=T"}
                ecwid.faults = [lambda h, s=status, t=target: h.raw(s, t, b"")] * 2
                error = self.fails(lambda: ecwid.client().status("T"), TransportError, "redirect")
                self.assertFalse(error.temporary)
                self.assertEqual(elsewhere.requests, [])
                seen = []
                elsewhere.faults = [lambda h: seen.append(h.headers) or h.send(200, {}, {})]
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                client = ecwid.client(opener=opener, max_retry_time=0)
                self.fails(lambda c=client: c.status("T"), EcwidError)
                self.assertTrue(all("Authorization" not in headers for headers in seen))
                elsewhere.reset()

    def test_it_is_in_no_message_log_or_repr(self):
        def answers(method, *arguments):
            return lambda handler: operator.attrgetter(method)(handler)(*arguments)

        logger = logging.getLogger("ecwid_batch")
        logger.setLevel(logging.DEBUG)
        handler = logging.StreamHandler(io.StringIO())
        logger.addHandler(handler)
        with StandIn() as ecwid:
            token = ecwid.token
            seen = [repr(ecwid.client()), str([ecwid.client()])]
            echo = {"errorMessage": f"Token {token} is\nwrong", "errorCode": f"BAD_{token}"}
            for fault in (
                "500",
                "reset",
                answers("send", 400, {}, echo),
                answers("send", 429, {"Retry-After": "999"}, echo),
                answers("raw", 302, {"Location": f"http://127.0.0.1:1/{token}"}, b""),
                answers("send", 200, {}, {"ticket": [token]}),
                answers("raw", 200, {}, token.encode()),
                answers("wfile.write", f"{token} {token}\r\n\r\n".encode()),
            ):
                ecwid.faults = [fault] * 20
                client = ecwid.client(max_retry_time=0.1)
                error = self.fails(lambda c=client: c.submit(Batch(gets(1))), EcwidError)
                seen += [str(error), repr(error), repr(vars(error)), repr(error.__cause__)]
            ecwid.faults, ecwid.script = [], lambda call: (400, echo)
            status = client.run(gets(1))
            seen += [repr(status.responses), status.responses[0].error_message]
            seen.append(str(self.fails(status.raise_for_failures, BatchFailedError, "***")))
            ecwid_batch._shared_opener.cache_clear()
            with mock.patch("http.client.HTTPConnection.debuglevel", 1):  # somebody debugs
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    ecwid.client().submit(Batch(gets(1)))
            ecwid_batch._shared_opener.cache_clear()
            seen += [handler.stream.getvalue(), out.getvalue()]
            for text in seen:
                self.assertNotIn(token, text)
            for arguments in ((1003, token + "\n"), (token, 1003)):
                error = self.fails(lambda a=arguments: EcwidClient(*a), ValueError)
                self.assertNotIn(token, str(error))

    def test_words_from_outside_are_one_short_line(self):
        shown = EcwidClient(1003, "secret_x")._clean(
            "\x1b[31mred\r\n\ud800" + "x" * 999 + "secret_x"
        )
        self.assertTrue(shown.startswith("[31mred xxx"))
        self.assertEqual(len(shown), 300)


# --- Tests: waiting -------------------------------------------------------------------------------


class Waiting(TestCase):
    def test_the_end_of_a_batch_is_noticed_soon_with_few_looks(self):
        late, looks = [], []
        for length in (0.3 * 1.05**n for n in range(180)):  # seconds, up to 33 minutes
            waited, count = 0.0, 0
            while waited < length:
                done = waited / length
                remaining = waited / done - waited if done else math.inf
                waited += ecwid_batch._next_pause(waited, remaining) + 0.15
                count += 1
            late.append((waited - length) / max(length, 3))
            looks.append(count)
        self.assertLess(max(late), 0.25)
        self.assertLess(sum(late) / len(late), 0.06)
        self.assertLess(max(looks), 75)

    def test_missing_rows_are_asked_for_once_more_a_second_later(self):
        def nothing(handler):
            status, headers, answer = handler.engine_answer(b"")
            handler.send(status, headers, {**answer, "responses": []})

        lost = ["lost rows"]
        for faults, unknown in (
            (lost, 0),
            (lost * 2, 1),
            (["repeated rows"] * 2, 1),
            ([*lost, nothing], 1),
            ([None, None, nothing, *lost], 1),
        ):
            with StandIn() as ecwid:
                ecwid.faults = faults
                client, batch = ecwid.client(), Batch(gets(3))
                status = client.wait(client.submit(batch), batch=batch)
                self.assertEqual([r.status for r in status].count("UNKNOWN"), unknown)
                self.assertEqual([r.request for r in status], list(batch))

    def test_a_batch_is_followed_until_the_answer_with_the_rows_says_that_it_is_done(self):
        with virtual() as (engine, client, clock):
            looks, look = [], engine.look

            def late(query):  # a replica that is behind
                answer = look(query)
                if "escapedJson" in query:
                    looks.append(query)
                if "escapedJson" not in query or len(looks) > 3:
                    return answer
                answer["responses"] = answer["responses"][:1]
                behind = {"status": "IN_PROGRESS"} if len(looks) > 1 else {"status": "QUEUED"}
                return {**answer, **behind, "totalRequests": 3 * (len(looks) > 1)}

            engine.look = late
            batch, seen = Batch(gets(3)), []
            status = client.wait(client.submit(batch), batch=batch, on_progress=seen.append)
            self.assertEqual((status.done, len(status.succeeded), len(looks)), (True, 3, 4))
            self.assertEqual([len(look.responses) for look in seen], [0, 0, 0, 3])

    def test_the_timeout_is_never_early_and_says_how_far_the_batch_was(self):
        for timeout in (0.05, 0.5, 7.5, 40):
            with virtual(latency=0.1) as (engine, client, clock):
                ticket = client.submit(Batch(gets(500)))
                begun = clock.now
                error = self.fails(
                    lambda t=timeout: client.wait(ticket, timeout=t), BatchTimeoutError
                )
                self.assertGreaterEqual(clock.now - begun, timeout)
                self.assertLessEqual(clock.now - begun, timeout + 0.31)
                done = error.last_status.completed_requests
                words = f"{timeout:g} s are over, {done} of 500 done [at Ecwid: ticket {ticket}]"
                self.assertEqual(str(error), f"store 1003: {words}")
                self.assertEqual((error.tickets, error.temporary), ((ticket,), True))

    def test_an_error_while_waiting_says_how_far_the_batch_was(self):
        for answers in ([None, 403], [None, None, 403]):
            with virtual(latency=0.1) as (engine, client, clock):
                batch, handle, given = Batch(gets(4)), engine.handle, iter(answers)
                ticket = client.submit(batch)
                clock.now += 0.5 if len(answers) == 2 else 0.2

                def refuse(*call, handle=handle, given=given):
                    code = next(given)
                    return (code, {}, {}) if code else handle(*call)

                engine.handle = refuse
                error = self.fails(lambda b=batch, t=ticket: client.wait(t, batch=b), ApiError)
                self.assertEqual(error.last_status.total_requests, 4)
                self.assertIn(" of 4 done [at Ecwid: ticket", str(error))

    def test_a_second_fetch_that_fails_does_not_hide_the_first(self):
        with StandIn() as ecwid:
            client, batch = ecwid.client(), Batch(gets(3))
            ticket = client.submit(batch)
            ecwid.faults = [None, "lost rows", "html 404"]
            status = client.wait(ticket, batch=batch)
            self.assertEqual([r.status for r in status], ["COMPLETED", "COMPLETED", "UNKNOWN"])

    def test_a_timeout_of_nothing_takes_one_look_and_one_that_is_done_is_seen(self):
        for timeout in (0, -5):
            with virtual() as (engine, client, clock):
                ticket = client.submit(Batch(gets(2)))
                self.assertEqual(len(client.wait(ticket, timeout=timeout).succeeded), 2)
                engine.latency = 9
                ticket = client.submit(Batch(gets(2)))
                self.fails(lambda t=ticket, s=timeout: client.wait(t, timeout=s), BatchTimeoutError)
                self.assertEqual(clock.sleeps, [])

    def test_the_timeout_holds_while_tries_fail(self):
        for seconds in (0.15, 60.0):  # an exchange that fails at once, and one that hangs
            with virtual(seconds=seconds) as (engine, client, clock):
                client.network.fault = mock.Mock(side_effect=ConnectionResetError("reset"))
                begun = clock.now
                error = self.fails(
                    lambda: client.wait("T", timeout=10), BatchTimeoutError, "10 s are over"
                )
                self.assertGreaterEqual(clock.now - begun, 10)
                self.assertLessEqual(clock.now - begun, 11.1)
                self.assertTrue(error.uncertain)
                self.assertRegex(
                    str(error), "10 s are over; the last try: GET https://x/.*(: reset|timed out)"
                )

    def test_what_on_progress_raises_passes_untouched(self):
        with StandIn(latency=1) as ecwid:
            forgotten = ApiError("no", http_status_code=404, error_code="C")
            for error in (ZeroDivisionError("x"), forgotten):
                callback = mock.Mock(side_effect=error)
                for call in (
                    lambda c, f: c.wait(c.submit(Batch(gets(1))), on_progress=f),
                    lambda c, f: c.run(gets(1), on_progress=f),
                    lambda c, f: list(c.stream(gets(1), on_progress=f)),
                ):
                    caught = self.fails(
                        lambda c=call, f=callback: c(ecwid.client(), f), type(error)
                    )
                    self.assertIs(caught, error)


# --- Tests: jobs ----------------------------------------------------------------------------------


class Jobs(TestCase):
    def test_any_number_of_requests_come_back_in_order(self):
        with StandIn(rate_limit=None) as ecwid:
            for count in (0, 1, 499, 500, 501, 1200):
                ecwid.reset()
                status = ecwid.client().run(creates(count))
                ids = [f"{place:06d}" for place in range(1, count + 1)]
                self.assertEqual([(r.request, r.id) for r in status], [*zip(creates(count), ids)])
                self.assertEqual((ran(ecwid), status.ticket), (skus(count), None))
                self.assertEqual((status.done, status.total_requests), (True, count))
                status.raise_for_failures()
                self.assertEqual([r.id for r in ecwid.client().stream(gets(count))], ids)
            ecwid.reset()
            looks = []
            ecwid.client().run(gets(1200), on_progress=looks.append)  # on_progress is about the job
            counts = [(s.completed_requests, s.total_requests, s.done) for s in looks]
            self.assertEqual(counts, [(500, 1200, False), (1000, 1200, False), (1200, 1200, True)])
            self.assertEqual([look.ticket for look in looks], list(ecwid.jobs))

    def test_two_batches_are_at_ecwid_where_failures_do_not_stop_the_job_else_one(self):
        for stops, most in ((True, 1), (False, 2)):
            with virtual(latency=0.01) as (engine, client, clock):
                seen = []
                engine.script = lambda call, e=engine, s=seen: s.append(
                    sum(not job.done for job in e.jobs.values())
                )
                options = {"stop_on_first_failure": stops, "batch_size": 50}
                self.assertEqual(len(list(client.stream(creates(300), **options))), 300)
                self.assertEqual(max(seen), most)

    def test_ecwid_is_kept_busy(self):
        with virtual(latency=0.05) as (engine, client, clock):
            begun = clock.now
            list(client.stream(creates(2500), stop_on_first_failure=False))
            self.assertLess(clock.now - begun, 1.06 * 125)
            self.assertEqual(sum("escapedJson" in query for _, _, query in engine.requests), 5)

    def test_a_stream_reads_as_it_goes_and_run_reads_all_before_it_sends_any(self):
        read = []

        def source():
            for request in creates(40):
                read.append(request)
                yield request
                if len(read) == 35:
                    raise LookupError("the database is gone")

        for call, first in (
            (lambda client: next(client.stream(source(), batch_size=10)), 10),
            (lambda client: client.run(source(), batch_size=10), 35),
        ):
            read.clear()
            with virtual() as (engine, client, clock):
                client.stream(source())
                self.assertEqual((read, engine.requests), ([], []))
                with contextlib.suppress(LookupError):
                    call(client)
                self.assertEqual(len(read), first)
                self.assertEqual(len(ran(engine)), 10 if first == 10 else 0)

    def test_an_error_of_the_input_comes_after_the_responses_of_what_was_submitted(self):
        for bad, kind in ((5, TypeError), (BatchRequest.get("/a", id="x"), ValueError)):
            with virtual() as (engine, client, clock):
                requests = [*creates(25), BatchRequest.get("/a", id="x"), bad]
                found = []
                stream = client.stream(requests, batch_size=10, stop_on_first_failure=False)
                self.fails(lambda s=stream, f=found: f.extend(s), kind, "request 27")
                self.assertEqual([r.request for r in found], creates(20))
                self.assertEqual(ran(engine), skus(20))

    def test_a_failure_stops_the_job_by_default_and_the_rest_did_not_run(self):
        with virtual() as (engine, client, clock):
            engine.script = fails_at(13)
            status = client.run(creates(40), batch_size=10)
            counts = collections.Counter(r.status for r in status)
            self.assertEqual(counts, {"COMPLETED": 13, "FAILED": 1, "NOT_EXECUTED": 26})
            self.assertEqual((status.done, status.completed_requests), (True, 40))
            self.assertEqual(ran(engine), skus(14))
            reason = "not submitted, since request 000014 is FAILED"
            self.assertEqual(status["000040"].error_message, reason)
            self.assertTrue(status["000040"].retryable)
            again = [r.request for r in status.not_executed]
            self.assertTrue(all(r.ok for r in client.run(again)))
            self.assertEqual(ran(engine), skus(14) + skus(26, 14))

    def test_what_ends_the_submitting(self):
        lost = {"responses": []}
        cancelled = {"responses": [row(f"{n:06d}", "NOT_EXECUTED", None) for n in range(1, 6)]}
        for answer, stops, group, ends in (
            (lost, True, None, True),
            (lost, True, "g", True),
            (lost, False, None, False),
            (lost, False, "g", True),
            (cancelled, False, None, True),
            (cancelled, True, None, True),
        ):
            with self.subTest(answer=answer, stops=stops, group=group):
                with virtual() as (engine, client, clock):
                    look = engine.look

                    def odd(query, look=look, answer=answer, engine=engine):
                        found = look(query)
                        first = query["ticket"] == next(iter(engine.jobs))
                        return {**found, **answer} if first and "responses" in found else found

                    engine.look = odd
                    status = client.run(
                        creates(15), batch_size=5, stop_on_first_failure=stops, group_id=group
                    )
                    window = 5 if stops else 10
                    self.assertEqual(len(ran(engine)), window if ends else 15)
                    self.assertEqual([r.request for r in status], creates(15))
                    self.assertEqual(
                        status.responses[14].status, "NOT_EXECUTED" if ends else "COMPLETED"
                    )

    def test_a_job_is_cancelled_by_its_group_in_every_shape_that_ecwid_may_give_it(self):
        for shape in ("no row", "no code", "code 0"):
            with self.subTest(shape=shape), virtual(latency=0.1, cancelled_rows=shape) as parts:
                engine, client, clock = parts
                cancel = iter([lambda look: client.cancel("night")])
                status = client.run(
                    creates(2000),
                    stop_on_first_failure=False,
                    group_id="night",
                    on_progress=lambda look, c=cancel: next(c, lambda look: None)(look),
                )
                counts = collections.Counter(r.status for r in status)
                self.assertEqual(counts["COMPLETED"], len(ran(engine)))
                self.assertEqual(counts["NOT_EXECUTED"], 1000)
                self.assertLess(len(ran(engine)), 100)

    def test_the_error_of_a_job_takes_the_tickets_and_run_the_responses_along(self):
        with virtual(latency=0.05) as (engine, client, clock):
            options = {"timeout": 110, "stop_on_first_failure": False}
            error = self.fails(lambda: client.run(creates(3000), **options), BatchTimeoutError)
            done = error.last_status.completed_requests
            self.assertEqual(len(error.last_status.responses), 2000)
            self.assertEqual((error.last_status.done, error.last_status.ticket), (False, None))
            self.assertIn(
                f"110 s are over, {done:,} of 3,000 done [at Ecwid: ticket 11kl", str(error)
            )
            self.assertEqual(len(error.tickets), 2)
            self.assertEqual(list(engine.jobs)[-2:], list(error.tickets))
        with virtual(latency=0.0025) as (engine, client, clock):
            error = self.fails(lambda: client.run(creates(3000), timeout=0.5), BatchTimeoutError)
            words = r"^store 1003: 0\.5 s are over, \d+ of 3,000 done \[at Ecwid: ticket"
            self.assertRegex(str(error), words)

    def test_an_error_between_two_batches_says_how_far_the_job_was(self):
        with virtual(client_options={"max_retry_time": 0}) as (engine, client, clock):

            def fault(after):
                if len(ran(engine)) == 10 and engine.requests[-1][0] == "POST" and not after:
                    raise ConnectionResetError("reset")

            client.network.fault = fault
            run = lambda: client.run(creates(30), batch_size=10)  # noqa: E731
            error = self.fails(run, TransportError, "ConnectionResetError: reset; it may have")
            self.assertIn(", 10 of 30 done", str(error))
            self.assertEqual(len(error.last_status.responses), 10)

    def test_what_settles_a_submission_that_may_have_arrived_is_told_and_until_when(self):
        path = str(self.folder() / "j")
        for options, words in (
            ({"journal": path}, r"call again before \d\d:\d\d UTC, or its requests are UNKNOWN"),
            ({"deduplication_key": KEY}, "call again within half an hour of the first call"),
            ({}, r"look at the shop \(with a journal the same call would settle it\)"),
        ):
            for fault in (ConnectionResetError("reset"), KeyboardInterrupt()):
                with virtual(client_options={"max_retry_time": 0}) as (engine, client, clock):
                    client.network.fault = mock.Mock(side_effect=fault, return_value=None)
                    with self.assertLogs("ecwid_batch", "WARNING") as logs:
                        ecwid_batch._LOG.warning("first")
                        with self.assertRaises((TransportError, KeyboardInterrupt)) as caught:
                            list(client.stream(creates(3), **options))
                if isinstance(fault, KeyboardInterrupt):
                    self.assertRegex(
                        logs.output[1],
                        f"left; a batch was being submitted; it may have arrived: {words}",
                    )
                else:
                    self.assertRegex(str(caught.exception), f"it may have arrived: {words}")
                    self.assertEqual(len(logs.output), 1)

    def test_the_same_batch_again_is_safe_until_the_time_that_its_error_names(self):
        for key, minutes in ((None, [59]), (KEY, [29, 59])):
            with virtual(client_options={"max_retry_time": 0}) as (engine, client, clock):
                batch = Batch(creates(1), deduplication_key=key)
                client.network.fault = mock.Mock(side_effect=ConnectionResetError("reset"))
                times = [ecwid_batch._utc(clock.time() + 60 * minute) for minute in minutes]
                told = []
                for _ in range(5):
                    error = self.fails(lambda c=client, b=batch: c.submit(b), TransportError)
                    told += re.findall(
                        r"it may have arrived: call again before (.* UTC)", str(error)
                    )
                    clock.now += 600
                self.assertEqual((len(told), sorted(set(told))), (5, times))

    def test_an_error_of_the_callers_own_is_not_changed(self):
        own = BatchTimeoutError("inner", last_status=status_of(row(), total=7))

        def source():
            yield from creates(3)
            raise own

        with virtual() as (engine, client, clock):
            error = self.fails(
                lambda: client.run(source()), BatchTimeoutError, "inner, 1 of 7 done"
            )
            self.assertIs(error, own)

    def test_a_timeout_of_nothing_submits_nothing(self):
        for timeout in (0, -1):
            with virtual() as (engine, client, clock):
                words = f"{max(timeout, 0)} s are over, 0 of 3 done"
                self.fails(
                    lambda t=timeout: client.run(gets(3), timeout=t), BatchTimeoutError, words
                )
                self.assertEqual(engine.requests, [])

    def test_leaving_a_stream_early_warns_with_the_tickets(self):
        def leave(stream):
            next(stream)
            stream.close()

        def break_off(stream):
            for _ in stream:
                raise ZeroDivisionError

        key = {"deduplication_key": KEY}
        for leaving, options, words in (
            (leave, {}, "client.wait(ticket) has the responses"),
            (leave, key, "the same call, within half an hour of the first, continues the job"),
            (break_off, {}, "client.wait(ticket) has the responses"),
        ):
            gc.collect()  # what other tests have left of PyPy's garbage
            with virtual() as (engine, client, clock):
                with self.assertLogs("ecwid_batch", "WARNING") as logs:
                    with contextlib.suppress(ZeroDivisionError):
                        stream = client.stream(creates(30), batch_size=10, **options)
                        leaving(stream)
                    del stream
                    gc.collect()  # PyPy's garbage, which holds the stream
                (text,) = logs.output
                self.assertIn(words, text)
                self.assertIn(next(iter(engine.jobs)), text)

    def test_warnings_timeouts_and_failures_name_the_store(self):
        with virtual(latency=1) as (engine, client, clock):
            engine.script = lambda call: (400, {})
            words = "store 1003: of 3 requests, 1 failed, 2 did not run"
            self.fails(client.run(creates(3)).raise_for_failures, BatchFailedError, words)
            status = client.wait(client.submit(Batch(gets(1))))
            self.fails(status.raise_for_failures, BatchFailedError, "store 1003: of 1 request")
            with self.assertLogs("ecwid_batch", "WARNING") as logs:
                stream = client.stream(gets(9), batch_size=5, stop_on_first_failure=False)
                next(stream)
                stream.close()
            self.assertIn("store 1003: the job was left; its batches go on", logs.output[0])
            engine.script = None

            def late(status):  # so that the timeout is over between two batches
                clock.sleep(60 if status.completed_requests == 5 else 0)

            for timeout, on_progress in ((0, None), (-1, None), (3, None), (60, late)):
                options = {"timeout": timeout, "on_progress": on_progress, "batch_size": 5}
                job = functools.partial(client.run, gets(9), **options)
                self.fails(job, BatchTimeoutError, f"store 1003: {max(timeout, 0)} s are over")

    def test_a_smaller_batch_size_goes_on_after_a_413(self):
        path = self.folder() / "j"
        for stops in (True, False):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            with virtual() as (engine, client, clock):
                handle = engine.handle

                def small(method, target, headers, body, handle=handle, engine=engine):
                    if method == "POST" and engine.jobs and len(json.loads(body)) > 4:
                        return 413, {}, {"errorMessage": "too large"}
                    return handle(method, target, headers, body)

                engine.handle = small
                options = {"journal": path, "stop_on_first_failure": stops}
                run = lambda size: client.run(creates(25), batch_size=size, **options)  # noqa: E731
                error = self.fails(lambda: run(10), ApiError, "use a smaller batch_size; with the")
                self.assertEqual(len(error.tickets), 0 if stops else 1)
                self.assertEqual(len(run(4).succeeded), 25)
                self.assertEqual(ran(engine), skus(25))

    def test_taking_all_responses_is_no_leaving(self):
        with virtual() as (engine, client, clock):
            with mock.patch.object(ecwid_batch._LOG, "warning") as warning:
                rows = list(zip(range(30), client.stream(creates(30), batch_size=10)))
                list(client.stream([]))
            self.assertEqual((len(rows), warning.call_count), (30, 0))

    def test_a_key_of_ones_own_is_safe_though_the_call_began_half_an_hour_after_the_first(self):
        def submit(client, timeout):
            client.submit(Batch(creates(1), deduplication_key=KEY))

        def run(client, timeout, journal=None):
            options = {"deduplication_key": KEY, "timeout": timeout, "journal": journal}
            client.run(creates(1), **options)

        new_journal = functools.partial(run, journal=self.folder() / "of another host")
        for first, second in ((run, run), (submit, submit), (run, new_journal)):
            options = {"max_retry_time": 3600}
            with virtual(client_options=options) as (engine, client, clock):
                client.network.fault = lambda after: opened("", 503, {}, {}) if after else None
                client.max_retry_time = 1
                self.fails(lambda f=first, c=client: f(c, 1), EcwidError)
                client.max_retry_time = 3600
                clock.now = 1000 + 29 * 60
                self.fails(lambda f=second, c=client: f(c, None), EcwidError)
                self.assertLess(clock.now, 1000 + HOUR)
                client.network.fault = lambda after: None
                clock.now = 1000 + 79 * 60
                if second is new_journal:  # the time that it told is over
                    before = len(engine.ledger)
                    second(client, None)
                    self.assertEqual(len(engine.ledger), before)

    def test_the_same_call_under_the_same_key_goes_on(self):
        with virtual(latency=0.05) as (engine, client, clock):
            options = {"deduplication_key": KEY, "stop_on_first_failure": False}
            for pause in (60, 1200, 0):
                with contextlib.suppress(BatchTimeoutError):
                    client.run(creates(1200), timeout=5, **options)
                clock.now += pause
            self.assertEqual(len(client.run(creates(1200), **options).succeeded), 1200)
            self.assertEqual(ran(engine), skus(1200))
            client.run(creates(1200), batch_size=400, **options)  # another job, by its batches
            self.assertEqual(len(ran(engine)), 2400)

    def test_keys_come_from_the_jobs_key_the_place_the_options_and_the_content(self):
        def keys(requests, key=KEY, size=2, parallel=False, group=None):
            options = ecwid_batch._Options(parallel, True, group)
            journal = ecwid_batch._Journal(None, EcwidClient(1, "t"), key)
            parts = ecwid_batch._Parts(requests, size, options, journal)
            return [part.batch.deduplication_key for part in iter(parts.next, None)]

        base = keys(gets(1) * 4)
        self.assertEqual(base, keys(gets(1) * 4))
        self.assertEqual(len(set(base)), 2)
        others = [
            keys(gets(1) * 4, str(uuid.uuid4())),
            keys(gets(1) * 4, size=3),
            keys(gets(1) * 4, group="g"),
            keys(gets(1) * 4, parallel=True),
            keys(creates(4)),
            keys([BatchRequest.get("/profile", {"lang": 0}, id=f"{n}") for n in range(4)]),
        ]
        for other in others:
            self.assertEqual(set(other) & set(base), set())

    @unittest.skipIf(WINDOWS, "which has no resource module")
    def test_memory_is_flat(self):
        code = """
import resource, sys
from test_ecwid_batch import BatchRequest, virtual

with virtual() as (engine, client, clock):
    engine.script = lambda call: (200, {})
    engine.record = lambda *args: None
    requests = (BatchRequest.get("/profile") for _ in range(int(sys.argv[1])))
    for n, _ in enumerate(client.stream(requests, stop_on_first_failure=False)):
        if n % 500 == 0:  # the stand-in forgets what has ended
            engine.ledger.clear()
            engine.keys.clear()
            for ticket in [ticket for ticket, job in engine.jobs.items() if job.done][:-2]:
                del engine.jobs[ticket]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
        commands = [[sys.executable, "-c", code, count] for count in ("5000", "14000")]
        peaks = []
        for _, out, err in self.at_once(commands, env=CLEAN_ENV):
            self.assertEqual(err, "")
            peaks.append(int(out))
        # In KiB. If the responses were kept, they would take three times that.
        self.assertLess(peaks[1] - peaks[0], 3000)


# --- Tests: the journal ---------------------------------------------------------------------------


class Killed(BaseException):
    """The process dies."""


class Journals(TestCase):
    def setUp(self):
        super().setUp()
        self.path = self.folder() / "job.journal"

    def stream(self, client, requests, **options):
        return client.stream(requests, **{"journal": self.path, "batch_size": 10, **options})

    def run_all(self, client, requests, **options):
        return list(self.stream(client, requests, **options))

    def lines(self):
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def kill(self, client, requests, after=None, **options):
        """Begin a job and let the process die after some responses, or in its first submission."""
        stream = self.stream(client, requests, **options)
        fault = client.network.fault
        if after is None:
            client.network.fault = mock.Mock(side_effect=Killed)
        with contextlib.suppress(Killed):
            for _ in zip(range(after or 1), stream):
                pass
        client.network.fault = fault
        stream.close()

    def test_it_is_readable_and_records_each_step_before_and_after(self):
        seen = []
        with virtual() as (engine, client, clock):
            client.network.fault = lambda after: seen.append(
                self.path.read_text("utf-8").count("\n")
            )
            self.run_all(client, creates(15))
        header, first, ticket, second, last = self.lines()
        job = {"journal": "ecwid_batch 1", "url": "https://x/api/v3", "store": 1003}
        self.assertEqual(header, {**job, "key": header["key"]})
        uuid.UUID(header["key"])
        self.assertEqual((first["batch"], first["size"], second["size"]), (1, 10, 5))
        self.assertRegex(first["time"], r"^2027-01-15T\d\d:\d\d:\d\d\+00:00$")
        self.assertEqual([ticket["ticket"], last["ticket"]], list(engine.jobs))
        self.assertEqual(seen[:2], [2, 2])  # the job and the submission, before anything is sent

    def test_the_same_call_goes_on_weeks_later_and_gives_all_responses_again(self):
        for options in ({}, {"deduplication_key": KEY}):
            for stops in (True, False):
                self.setUp()
                with virtual(latency=0.1) as (engine, client, clock):
                    modes = {"stop_on_first_failure": stops}
                    self.kill(client, creates(45), 23, **options, **modes)
                    clock.now += 21 * DAY
                    self.kill(client, creates(45), 31, **modes)
                    clock.now += 21 * DAY
                    found = self.run_all(client, creates(45), **modes)
                    self.assertEqual([r.request for r in found], creates(45))
                    self.assertEqual((ran(engine), all(r.ok for r in found)), (skus(45), True))

    def test_where_the_journal_has_all_a_warning_says_that_nothing_was_submitted(self):
        with virtual() as (engine, client, clock):
            self.run_all(client, creates(15))
            with self.assertLogs("ecwid_batch", "WARNING") as logs:
                self.assertEqual(len(self.run_all(client, creates(15))), 15)
                self.assertEqual(len(self.run_all(client, creates(25))), 25)  # and one batch more
            self.assertIn("store 1003: nothing was submitted, since the journal", logs.output[0])
            self.assertEqual((len(logs.output), submissions(engine)), (1, 3))

    def test_requests_or_options_that_differ_are_refused_and_nothing_is_submitted(self):
        other = {"base_url": "https://other/api/v3"}
        for requests, options, client_options, words, found in (
            (creates(30), {"stop_on_first_failure": False}, {}, "requests 1 to 10, or an", 0),
            (creates(30), {"allow_parallel_mode": True}, {}, "something in requests 1 to 10", 0),
            (creates(15), {"batch_size": 5}, {}, "the input ends before request 16", 10),
            (creates(30), {"group_id": "g"}, {}, "remove the journal to give that job up", 0),
            (creates(30), {"deduplication_key": KEY}, {}, "with the key", 0),
            (creates(30), {}, other, "with the url 'https://x/api/v3' instead of", 0),
            (creates(13) + creates(17, 900), {}, {}, "requests 11 to 20", 10),
            (creates(10), {}, {}, "the input ends before request 11", 10),
            (creates(0), {}, {}, "the input ends before request 1", 0),
            (creates(20) + creates(10, 900), {}, {}, None, 30),  # the rest was never sent
            (creates(20) + creates(15, 900), {"batch_size": 7}, {}, None, 35),
        ):
            self.setUp()
            with self.subTest(words=words), virtual() as (engine, client, clock):
                self.kill(client, creates(30), 15)
                before = submissions(engine)
                if client_options:
                    client = EcwidClient(1003, engine.token, **client_options)
                responses = []
                if words is None:
                    responses.extend(self.stream(client, requests, **options))
                else:
                    self.fails(
                        lambda c=client, r=requests, o=options, x=responses: x.extend(
                            self.stream(c, r, **o)
                        ),
                        ValueError,
                        words,
                    )
                    self.assertEqual(submissions(engine), before)
                self.assertEqual(len(responses), found)
                with self.assertRaises(ValueError):
                    client.run([*creates(9), *creates(1)], journal=self.path, batch_size=10)

    def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(self):
        header = (
            b'{"journal": "ecwid_batch 1", "url": "https://x/api/v3", "store": 1003, "key": "%s"}\n'
        )
        header %= KEY.encode()
        record = b'{"batch": 1, "size": 1, "key": "k", "time": "2027-01-15"}\n'
        for content, words in (
            (b"precious data", "is not a journal"),
            (b"id,price\n1,2\n", "is not a journal"),
            (b'{"journal": "ecwid_batch 9"}\n', "see its line 1"),
            (header.replace(b"batch 1", b"batch 9") + record, "with the journal 'ecwid_batch 9'"),
            (header + b"[]\n", "see its line 2"),
            (header + b"[" * 100_000 + b"\n", "see its line 2"),
            (header + b'{"batch": 1}\n', "see its line 2"),
            (header + b'{"batch": 1, "ticket": "T"}\n', "see its line 2"),
            (header + record.replace(b": 1,", b": 2,", 1), "see its line 2"),
            (header + record.replace(b": 1,", b": 0,", 1), "see its line 2"),
            (header + record.replace(b'size": 1', b'size": 501'), "see its line 2"),
            (header + record.replace(b"2027-01-15", b"yesterday"), "see its line 2"),
            (header + record + record.replace(b": 1,", b": 3,", 1), "see its line 3"),
            (header + b"\xff\n", "see its line 2"),
        ):
            with self.subTest(content=content), virtual() as (engine, client, clock):
                self.path.write_bytes(content)
                self.fails(lambda c=client: self.run_all(c, creates(1)), ValueError, words)
                self.assertEqual(self.path.read_bytes(), content)

    def test_a_torn_last_line_is_cut_off(self):
        with virtual() as (engine, client, clock):
            self.run_all(client, creates(15))
            whole = self.path.read_bytes()
            for length in range(len(whole), 0, -7):
                engine.reset()
                self.path.write_bytes(whole[:length])
                clock.now += DAY
                with contextlib.suppress(ValueError):
                    found = self.run_all(client, creates(15))
                    self.assertEqual(len(found), 15)
                for line in self.path.read_bytes().splitlines():
                    json.loads(line)

    def test_a_complete_last_line_counts_without_its_line_end(self):
        for pause, count in ((60, 15), (2 * HOUR, 5)):
            self.setUp()
            with virtual() as (engine, client, clock):
                self.kill(client, creates(5))
                self.path.write_bytes(self.path.read_bytes().rstrip(b"\n"))
                clock.now += pause
                states = {r.status for r in self.run_all(client, creates(5))}
                self.assertEqual(states, {"COMPLETED" if count == 15 else "UNKNOWN"})
                self.assertEqual(len(self.lines()), 3)

    def test_a_submission_from_the_future_is_not_repeated(self):
        for key, later, back in ((None, 70, 100), (None, 0, 20), (KEY, 0, 20)):
            self.setUp()
            with virtual() as (engine, client, clock):
                options = {"deduplication_key": key, "stop_on_first_failure": False}
                client.network.fault = lambda after: Retries.throw(Killed()) if after else None
                with contextlib.suppress(Killed):
                    self.run_all(client, creates(5), **options)
                client.network.fault = lambda after: None
                clock.now += 60 * later
                clock.suspended -= 60 * back
                states = {r.status for r in self.run_all(client, creates(5), **options)}
                self.assertEqual((states, ran(engine)), ({"UNKNOWN"}, skus(5)))

    def test_a_stream_that_nobody_reads_holds_no_lock(self):
        with virtual() as (engine, client, clock):
            unread = [self.stream(client, creates(5)) for _ in range(2)]
            self.run_all(client, creates(5))
            unread.append(self.stream(client, creates(5)))
            unread[0].close()
            self.assertEqual(len(self.run_all(client, creates(5))), 5)

    @unittest.skipIf(WINDOWS, "whose users may not make links")
    def test_a_link_leads_where_it_points(self):
        with virtual() as (engine, client, clock):
            target, link = self.path.with_name("target"), self.path.with_name("link")
            link.symlink_to(target)
            self.assertEqual(len(client.run(creates(5), journal=link).succeeded), 5)
            self.assertTrue(target.exists() and link.is_symlink())

    @unittest.skipIf(WINDOWS, "whose disks all have locks")
    def test_a_disk_without_locks_is_told_and_is_not_called_in_use(self):
        with virtual() as (engine, client, clock):
            for code in (errno.EPERM, errno.ENOLCK, errno.EOPNOTSUPP):
                with mock.patch.object(ecwid_batch, "_lock", side_effect=OSError(code, "")):
                    error = self.fails(lambda: self.run_all(client, creates(5)), EcwidError)
                self.assertIn(f"{self.path} cannot be locked: {os.strerror(code)}", str(error))
                self.assertEqual((error.temporary, engine.requests), (False, []))

    @unittest.skipIf(WINDOWS, "which removes no file that is open")
    def test_a_journal_that_is_removed_just_when_it_is_opened_is_in_use(self):
        self.path.write_bytes(b"")
        lock = ecwid_batch._lock

        def late(file, operation):
            lock(file, operation)
            if self.path.exists():
                self.path.unlink()

        with virtual() as (engine, client, clock):
            with mock.patch.object(ecwid_batch, "_lock", late):
                self.fails(lambda: self.run_all(client, creates(1)), EcwidError, "is in use")

    def test_nothing_is_left_where_nothing_was_submitted(self):
        with virtual() as (engine, client, clock):
            client.run([], journal=self.path)
            self.fails(lambda: client.run([5], journal=self.path), TypeError)
            self.fails(lambda: client.run(gets(1), journal=self.path, timeout=0), BatchTimeoutError)
            self.assertFalse(self.path.exists())

    def test_what_was_being_submitted_is_submitted_again_while_its_key_is_safe_else_unknown(self):
        pauses = ((60, True), (58 * 60, True), (60 * 60, False), (3 * DAY, False))
        for taken, (pause, safe), stops in itertools.product((True, False), pauses, (True, False)):
            with self.subTest(taken=taken, pause=pause, stops=stops):
                self.setUp()
                self.interrupted(taken, pause, safe, stops)

    def interrupted(self, taken, pause, safe, stops):
        """Kill a job at its first submission, taken by Ecwid or not; go on after a pause."""

        def die(after):
            if after == taken:
                raise Killed

        with virtual() as (engine, client, clock):
            options = {"stop_on_first_failure": stops}
            client.network.fault = die
            with contextlib.suppress(Killed):
                self.run_all(client, creates(25), **options)
            client.network.fault = lambda after: None
            clock.now += pause
            found = self.run_all(client, creates(25), **options)
            goes_on = safe or not stops
            expected = ["COMPLETED" if safe else "UNKNOWN"] * 10
            expected += ["COMPLETED" if goes_on else "NOT_EXECUTED"] * 15
            self.assertEqual([r.status for r in found], expected)
            expected = skus(10 * (safe or taken)) + skus(15 * goes_on, 10)
            self.assertEqual(sorted(ran(engine)), sorted(expected))
            if not safe:
                self.assertIn("when the job was interrupted", found[0].error_message)

    def test_an_interrupted_submission_is_repeated_before_anything_is_waited_for(self):
        with virtual(latency=0.001) as (engine, client, clock):
            options = {"stop_on_first_failure": False}
            self.kill(client, creates(600), 570, **options)
            records = self.lines()
            self.assertEqual(records[-1]["batch"], 58)
            text = self.path.read_text("utf-8").splitlines(keepends=True)
            self.path.write_text("".join(text[:-1]), "utf-8")  # the last ticket did not come
            clock.now += 600
            job = engine.jobs[records[-3]["ticket"]]
            job.done, job.rows, job.running = False, job.rows[:5], [(clock.now + 60, 6, 1)]
            last = engine.requests[:]
            self.run_all(client, creates(600), **options)
            after = engine.requests[len(last) :]
            first = next(n for n, request in enumerate(after) if request[0] == "POST")
            waited = [query for _, _, query in after[:first] if query.get("ticket") == job.ticket]
            self.assertEqual(waited, [])
            self.assertEqual(sorted(set(ran(engine))), sorted(skus(600)))

    def test_a_ticket_that_ecwid_forgot_gives_unknown_and_the_rest_runs(self):
        for stops in (False, True):
            self.setUp()
            with virtual() as (engine, client, clock):
                options = {"stop_on_first_failure": stops}
                self.kill(client, creates(35), 15, **options)
                clock.now += 7 * DAY
                first, look = next(iter(engine.jobs)), engine.look

                def forgets(query, first=first, look=look, code=None if stops else "GONE"):
                    if query["ticket"] == first:
                        raise Refusal(404, code, "Batch not found")
                    return look(query)

                engine.look = forgets
                found = self.run_all(client, creates(35), **options)
                self.assertEqual(
                    [r.status for r in found[:20]], ["UNKNOWN"] * 10 + ["COMPLETED"] * 10
                )
                self.assertIn("does not know this request's ticket", found[0].error_message)
                end = "NOT_EXECUTED" if stops else "COMPLETED"
                self.assertEqual([r.status for r in found[20:]], [end] * 15)
                self.assertEqual(ran(engine), skus(20 if stops else 35))

    def test_only_a_404_of_ecwid_about_a_ticket_of_an_earlier_call_makes_it_forgotten(self):
        def answer(code):
            return lambda handler: handler.send(404, {}, {"errorCode": code})

        for fault, times in (
            ("html 404", 2),  # of a proxy
            (answer("STORE_NOT_FOUND"), 2),
            (answer("BATCH_NOT_FOUND"), 2),  # soon after the submission: not yet known everywhere
        ):
            self.setUp()
            with StandIn() as ecwid:
                for faults in ([None, fault], [fault])[:times]:
                    ecwid.faults = faults
                    error = self.fails(
                        lambda e=ecwid: self.run_all(e.client(), creates(5)), ApiError
                    )
                    self.assertEqual((error.http_status_code, len(error.tickets)), (404, 1))
                self.assertTrue(all(r.ok for r in self.run_all(ecwid.client(), creates(5))))

    def test_a_job_that_was_stopped_stays_so_even_if_ecwid_has_forgotten_why(self):
        with virtual() as (engine, client, clock):
            engine.script = fails_at(13)
            self.run_all(client, creates(40))
            engine.jobs.clear()
            clock.now += 7 * DAY
            with self.assertLogs("ecwid_batch", "WARNING") as logs:
                states = [r.status for r in self.run_all(client, creates(40))]
            self.assertEqual(states, ["UNKNOWN"] * 20 + ["NOT_EXECUTED"] * 20)
            self.assertIn(
                "the rest is not submitted, since request 000014 is FAILED", logs.output[0]
            )
            self.assertEqual(ran(engine), skus(14))

    def test_a_submission_that_ecwid_surely_did_not_take_leaves_no_doubt(self):
        unreachable = urllib.error.URLError(OSError(101, "Network is unreachable"))
        for fault in (unreachable, Killed, None):
            self.setUp()
            with virtual() as (engine, client, clock):
                client.network.fault = mock.Mock(side_effect=fault, return_value=None)
                if fault is None:
                    client._token = "wrong"
                patch = contextlib.nullcontext()
                if fault is Killed:  # in a pause between tries that surely were not sent
                    client.network.fault = mock.Mock(side_effect=unreachable)
                    patch = mock.patch.object(clock, "sleep", side_effect=Killed)
                with patch, self.assertRaises((EcwidError, Killed)) as caught:
                    self.run_all(client, creates(15))
                self.assertFalse(getattr(caught.exception, "uncertain", False))
                self.assertEqual(
                    (self.lines()[-1]["batch"], self.lines()[-1]["refused"]), (1, True)
                )
                client.network.fault, client._token = lambda after: None, engine.token
                clock.now += 12 * HOUR
                for _ in range(2):
                    self.assertTrue(all(r.ok for r in self.run_all(client, creates(15))))
                self.assertEqual(ran(engine), skus(15))

    def test_a_repetition_that_fails_for_sure_leaves_the_doubt_of_the_first_submission(self):
        with virtual() as (engine, client, clock):
            client.network.fault = lambda after: Retries.throw(Killed()) if after else None
            with contextlib.suppress(Killed):
                self.run_all(client, creates(5))
            unreachable = urllib.error.URLError(OSError(101, "Network is unreachable"))
            client.network.fault = mock.Mock(side_effect=unreachable)
            self.fails(lambda: self.run_all(client, creates(5)), TransportError)
            client.network.fault = lambda after: None
            clock.now += 2 * HOUR
            self.assertEqual({r.status for r in self.run_all(client, creates(5))}, {"UNKNOWN"})
            self.assertEqual(ran(engine), skus(5))

    def test_one_in_use_names_both_who_may_hold_it(self):
        with virtual() as (engine, client, clock):
            stream = self.stream(client, creates(30))
            next(stream)
            words = "by another process, or by a stream of this one that was not closed"
            again = self.stream(client, creates(30))
            error = self.fails(lambda: next(again), EcwidError, words)
            self.assertTrue(error.temporary)
            stream.close()
            self.assertEqual(len(self.run_all(client, creates(30))), 30)
            self.assertEqual(ran(engine), skus(30))

    def test_of_two_that_begin_at_once_the_second_is_told_that_it_is_in_use(self):
        with virtual() as (engine, client, clock):
            streams = [self.stream(client, creates(30)) for _ in range(2)]
            next(streams[0])
            self.fails(lambda: next(streams[1]), EcwidError, "is in use: by another process, or")
            self.assertEqual(len(list(streams[0])), 29)
            self.assertEqual(ran(engine), skus(30))

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_the_lock_is_released_whatever_a_child_process_holds(self):
        with virtual() as (engine, client, clock):
            end, begin = os.pipe()
            for _ in zip(range(3), self.stream(client, creates(3))):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that threads of other tests may still end
                    child = os.fork()
                if not child:
                    os.close(begin)
                    os.read(end, 1)  # until the parent closes its side
                    os._exit(0)
            gc.collect()  # PyPy's garbage, which holds the stream
            try:
                self.assertEqual(len(self.run_all(client, creates(3))), 3)
            finally:
                os.close(begin)
                os.close(end)

    def test_a_disk_that_is_full_is_an_error_with_the_ticket(self):
        full = OSError(28, "No space left on device")
        for calls, refused, tickets, ledger, end in (
            ([full], (), 0, 0, 15),
            ([None, full], (), 1, 10, 15),
            ([None, None, full], (3,), 1, 4, 4),  # at the line that says why the job is stopped
        ):
            self.setUp()
            with virtual() as (engine, client, clock):
                engine.script = fails_at(*refused)
                with mock.patch("os.fsync", side_effect=calls):
                    words = "cannot write the journal"
                    error = self.fails(lambda: self.run_all(client, creates(15)), EcwidError, words)
                self.assertEqual((len(error.tickets), len(ran(engine))), (tickets, ledger))
                self.assertEqual(error.last_status.total_requests, 10)
                found = self.run_all(client, creates(15))
                self.assertEqual((len(found), ran(engine)), (15, skus(end)))

    @unittest.skipIf(sys.implementation.name == "pypy", "which finalizes nothing at its exit")
    def test_a_script_that_dies_with_the_stream_in_its_hands_prints_the_tickets(self):
        code = f"""
from test_ecwid_batch import StandIn, creates

ecwid = StandIn().__enter__()
stream = ecwid.client().stream(creates(30), journal={str(self.path)!r}, batch_size=10)
for response in stream:
    raise LookupError("a bug")
"""
        out = subprocess.run([sys.executable, "-c", code], env=CLEAN_ENV, capture_output=True)
        text = out.stderr.decode()
        self.assertIn("LookupError: a bug", text)
        self.assertRegex(
            text,
            "its batches go on, or have ended, at Ecwid: 11kl.*; the same call continues the job",
        )
        self.assertNotIn("Exception ignored", text)


class Schedule:
    """One job under faults, kills and restarts, in virtual time: what a journal must survive."""

    FAULTS = ("reset", "timeout", "refused", "500", "429", "408", "junk", "103", "303")

    def __init__(self, seed, folder):
        self.chance = random.Random(seed)
        self.path = folder / f"{seed}.journal"
        self.count = self.chance.randint(1, 21)
        self.stops = self.chance.choice([True, False])
        self.rate = self.chance.choice([0, 0.05, 0.2])
        self.begun = {}  # by key, when a submission was first recorded, by a clock that is right
        self.kill_in = -1  # exchanges
        self.tear = False

    def fault(self, after):
        """Break an exchange, or kill the process in it."""
        if self.kill_in == 0:
            raise Killed
        self.kill_in -= 1
        if self.chance.random() >= self.rate:
            return None
        kind = self.chance.choice(self.FAULTS)
        if kind in ("103", "303"):
            return opened("http://x", int(kind), {}, {})
        if kind == "timeout":
            self.clock.now += 60
            raise socket.timeout("timed out")
        if kind == "reset" or (after and kind in ("refused", "429")):
            raise ConnectionResetError("reset")
        if kind == "refused":
            raise urllib.error.URLError(ConnectionRefusedError("refused"))
        if kind in ("500", "429", "408"):
            opened("http://x", int(kind), {}, {})
        raise http.client.BadStatusLine("odd")

    def fsync(self, number):
        """Die while a line is being written, which may tear it."""
        record = json.loads(self.path.read_bytes().splitlines()[-1])
        self.begun.setdefault(record.get("key"), self.clock.now)
        if self.chance.random() < self.fsync_rate:
            self.tear = True
            raise Killed

    def step(self):
        """Set the clock, back or forth, unless a lost submission would then look young.

        That a step of the clock can do so is said in the README.
        """
        step = self.chance.choice([0, 0, self.chance.randint(-7200, 7200)])
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        last = json.loads([b"{}", *(line for line in lines if line.endswith(b"}"))][-1])
        if last.get("key") in self.begun and "time" in last and "ticket" not in last:
            moment = datetime.datetime.fromisoformat(last["time"]).timestamp()
            age = self.clock.now - self.begun[last["key"]]
            looks = self.clock.time() + step - moment
            if age > 3500 and 0 <= looks < 3540:
                step += age - looks
        self.clock.suspended += step

    def start(self):
        """Start, or start again, the process; return its responses, or None if it did not end."""
        self.tear = False
        self.kill_in = self.chance.choice([-1, -1, *range(12)])
        self.fsync_rate = self.chance.choice([0, 0, 0.1])
        stop_after = self.chance.choice([None, None, self.chance.randint(0, self.count)])
        found = []
        with mock.patch("os.fsync", self.fsync):
            size = self.chance.choice([3, 3, 2, 5])
            options = {"batch_size": size, "stop_on_first_failure": self.stops}
            stream = self.client.stream(creates(self.count), journal=self.path, **options)
            try:
                for response in stream:
                    found.append(response)
                    if len(found) == stop_after:
                        return None
                return found
            except (Killed, EcwidError):
                return None
            finally:
                stream.close()
                if self.tear and self.path.stat().st_size:
                    content = self.path.read_bytes()
                    last = content.rfind(b"\n", 0, -1) + 1
                    self.path.write_bytes(content[: self.chance.randint(last, len(content))])
                elif self.chance.random() < 0.1 and self.path.exists():
                    self.path.write_bytes(self.path.read_bytes().rstrip(b"\n"))

    def run(self):
        """Start the process until it ends; return the responses."""
        with virtual(latency=0.5) as (self.engine, self.client, self.clock):
            self.client.network.fault = self.fault
            self.clock.suspended = float(DAY)
            for _ in range(300):
                found = self.start()
                if found is not None:
                    return found
                self.clock.now += self.chance.choice([1, 60, 1800, 3500, 4000, 3 * DAY])
                self.step()
        raise AssertionError("the job does not end")


class ExactlyOnce(TestCase):
    JOBS = int(os.environ.get("ECWID_BATCH_JOBS", 100))

    def check(self, seed, folder):
        """Run one schedule and check it; return what became of its requests."""
        schedule = Schedule(seed, folder)
        found = schedule.run()
        counts = collections.Counter(ran(schedule.engine))
        self.assertEqual([sku for sku, count in counts.items() if count > 1], [], seed)  # doubled
        self.assertEqual([r.request for r in found], creates(schedule.count), seed)  # lost
        for response in found:  # untrue
            has_run = counts[response.request.body["sku"]] == 1
            if response.status != "UNKNOWN":
                self.assertEqual(has_run, response.status == "COMPLETED", (seed, response))
        return "UNKNOWN" if any(r.status == "UNKNOWN" for r in found) else "COMPLETED"

    def test_with_a_journal_whatever_happens(self):
        folder = self.folder()
        ends = collections.Counter(self.check(seed, folder) for seed in range(self.JOBS))
        if "ECWID_BATCH_JOBS" in os.environ:
            print(dict(ends))
        self.assertGreater(ends["COMPLETED"], self.JOBS / 2)
        self.assertGreater(ends["UNKNOWN"], 0)

    def test_without_the_record_before_a_submission_it_would_not_hold(self):
        write = ecwid_batch._Journal.write

        def write_late(journal, line):
            if len(line) != 4:
                write(journal, line)

        folder = self.folder()
        with mock.patch.object(ecwid_batch._Journal, "write", write_late):
            with self.assertRaises((AssertionError, ValueError)):
                for seed in range(self.JOBS):
                    self.check(seed, folder)

    def test_whatever_the_network_does_over_real_http(self):
        chance = random.Random(7)
        faults = [f for f in FAULTS if f not in (*ROW_FAULTS, "redirect", "html 404")]
        with StandIn(rate_limit=None) as ecwid:
            for number in range(40):
                ecwid.faults = [chance.choice([None, *faults]) for _ in range(3)]
                requests = creates(3, 10 * number)
                status = ecwid.client().run(requests)
                self.assertEqual([r.request for r in status.succeeded], requests)
            self.assertEqual((len(ran(ecwid)), len(set(ran(ecwid)))), (120, 120))

    def test_a_real_process_that_is_killed_again_and_again(self):
        folder = self.folder()
        lines = [
            json.dumps({"method": r.method, "path": r.path, "body": r.body}) for r in creates(40)
        ]
        (folder / "in.jsonl").write_text("\n".join(lines), "utf-8")
        command = [sys.executable, str(HERE / "ecwid_batch.py"), "run", "in.jsonl", "--batch-size"]
        command += ["10", "--continue-on-failure", "-q"]
        chance = random.Random(11)
        kills = int(os.environ.get("ECWID_BATCH_KILLS", 1))
        with StandIn(latency=0.01 * kills, rate_limit=None) as ecwid:
            options = {"cwd": folder, "env": {**CLEAN_ENV, **ecwid.environment}}
            for _ in range(kills):
                with subprocess.Popen(command, stdout=subprocess.DEVNULL, **options) as process:
                    time.sleep(0.15 + chance.uniform(0, 0.2))
                    process.kill()
                self.assertEqual(process.returncode, 1 if WINDOWS else -9)
            out = subprocess.run(command, capture_output=True, timeout=60, **options)
            self.assertEqual(out.returncode, 0, out.stderr)
            found = [json.loads(line) for line in out.stdout.splitlines()]
            self.assertEqual([one["line"] for one in found], list(range(1, 41)))
            self.assertEqual(ran(ecwid), skus(40))
        self.assertEqual(os.listdir(folder), ["in.jsonl"])


# --- Tests: the command line ----------------------------------------------------------------------


class OnTheCommandLine(WithStandIn):
    def setUp(self):
        super().setUp()
        self.here = self.folder()
        previous = signal.getsignal(signal.SIGTERM)
        self.addCleanup(signal.signal, signal.SIGTERM, previous)

    def environment(self, **changes):
        proxy = {"http_proxy": "http://127.0.0.1:1"}
        given = {**CLEAN_ENV, **self.ecwid.environment, **proxy, **changes}
        return {name: value for name, value in given.items() if value is not None}

    def start(self, *arguments, **options):
        """Start the command line as a process."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, str(HERE / "ecwid_batch.py"), *map(str, arguments)]
        given = {"env": self.environment(), "cwd": self.here, **pipes, **options}
        return subprocess.Popen(command, **given)

    def call(self, *arguments, stdin=b"", out=None, **environment):
        """Run the command line in this process.

        Return its exit status, the lines of standard output, the text of standard error.
        """
        out, err = out or io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
            )
            environment = self.environment(**environment)
            stack.enter_context(mock.patch.dict(os.environ, environment, clear=True))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            logging.getLogger("ecwid_batch").setLevel(logging.WARNING)
            before = os.getcwd()
            os.chdir(self.here)
            try:
                code = ecwid_batch.main([str(argument) for argument in arguments])
            except SystemExit as end:  # of argparse
                code = end.code
            finally:
                os.chdir(before)
        self.assertNotIn(self.ecwid.token, err.getvalue())
        self.assertNotIn("Traceback", err.getvalue())
        return code, out.getvalue().splitlines(), err.getvalue()

    def file(self, text, name="in.jsonl"):
        path = self.here / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    def requests(self, requests, name="in.jsonl"):
        items = [{"method": r.method, "path": r.path, "body": r.body} for r in requests]
        for item, request in zip(items, requests):
            if request.id:
                item["id"] = request.id
        return self.file("".join(f"{json.dumps(item)}\n" for item in items), name)

    def left(self):
        """Return what lies beside the input."""
        return sorted(set(os.listdir(self.here)) - {"in.jsonl"})


class CommandLine(OnTheCommandLine):
    def test_it_runs_as_a_file_as_a_module_and_from_standard_input(self):
        source = self.here / self.requests(gets(1))
        arguments = (
            [str(HERE / "ecwid_batch.py"), "run", shutil.copy(source, self.here / "copy")],
            ["-m", "ecwid_batch", "run", str(source)],
            ["-m", "ecwid_batch", "run", "-"],
        )
        commands = [[sys.executable, *rest] for rest in arguments]
        with open(source, "rb") as file:
            ends = self.at_once(commands, stdin=file, env=self.environment(), cwd=self.here)
        for code, out, err in ends:
            self.assertEqual((code, json.loads(out)["line"]), (0, 1), err)

    def test_an_output_line_has_the_apis_field_names_and_the_line_of_the_input(self):
        self.ecwid.script = (
            lambda call: (404, {"errorMessage": "gone"}) if call.get("id") == "b" else None
        )
        get = '{"method": "GET", "path": "/products/1?responseFields=id"%s}'
        text = "\n\n" + get % "" + "\n \n" + get % ', "id": "b"' + "\n" + get % ""
        code, out, err = self.call("run", self.file(b"\xef\xbb\xbf" + text.encode()))
        path = "/products/1?responseFields=id"
        names = (
            "line",
            "id",
            "method",
            "path",
            "status",
            "httpStatusCode",
            "httpStatusLine",
            "response",
        )
        reason = "not run, since an earlier request failed or the batch was cancelled"
        expected = (
            (3, "000001", "GET", path, "COMPLETED", 200, "OK", {"id": 1}),
            (5, "b", "GET", path, "FAILED", 404, "gone", {"errorMessage": "gone"}),
            (6, "000003", "GET", path, "NOT_EXECUTED", None, reason, None),
        )
        self.assertEqual(
            [json.loads(line) for line in out], [dict(zip(names, e)) for e in expected]
        )
        self.assertEqual(code, 1)
        self.assertRegex(err, "3 requests: 1 succeeded, 1 failed, 1 did not run; [0-9.]+ s")
        self.assertIn(f"the first that did not succeed: line 5, GET {path}: FAILED, gone", err)

    def test_an_array_is_read_wherever_it_begins(self):
        code, out, _ = self.call("run", self.file("\n \n" + EXAMPLE))
        self.assertEqual((code, [json.loads(line)["line"] for line in out]), (0, [1, 2, 3]))

    def test_options_reach_ecwid(self):
        options = ("--batch-size", "2", "--parallel", "--continue-on-failure", "--group", "night")
        get = '{"method": "GET", "path": "/profile", "id": "%s"}\n'
        # An id may come again in another batch.
        source = self.file(get % "a" + get % "b" + get % "a")
        code, out, _ = self.call("run", source, *options)
        queries = [query for method, _, query in self.ecwid.requests if method == "POST"]
        self.assertEqual((code, len(out), len(queries)), (0, 3, 2))
        del queries[0]["deduplicationKey"]
        expected = {"allowParallelMode": "true", "stopOnFirstFailure": "false", "groupId": "night"}
        self.assertEqual(queries[0], expected)

    def test_nothing_is_left_where_all_succeeded_and_each_night_runs_anew(self):
        self.file("an old one", "in.jsonl.failed")
        source = self.requests([BatchRequest.put("/products/1", {"price": 2})] * 3)
        for night in (1, 2, 3):
            code, out, err = self.call("run", source)
            self.assertEqual((code, len(out), self.left()), (0, 3, []))
            self.assertEqual(len(self.ecwid.ledger), 3 * night)

    def test_what_did_not_succeed_is_left_as_input_and_worked_off_in_place(self):
        self.ecwid.script = fails_at(3)
        requests = [*creates(6), BatchRequest.post("/products", {"sku": "é", "name": "n"}, id="x")]
        source = self.requests(requests)
        code, out, err = self.call("run", source)
        self.assertEqual((code, len(out), self.left()), (1, 7, ["in.jsonl.failed"]))
        self.assertIn("what did not succeed is in in.jsonl.failed: mend it there and run that", err)
        left = self.failed()
        self.assertEqual([item["body"]["sku"] for item in left], [*skus(3, 3), "é"])
        self.assertEqual([item.get("id") for item in left], [None, None, None, "x"])
        reason = "not run, since an earlier request failed or the batch was cancelled"
        self.assertEqual([item["error"] for item in left], ["no", reason, reason, reason])
        first = {"method": "POST", "path": "/products", "body": requests[3].body, "error": "no"}
        self.assertEqual(left[0], first)
        for item in left:  # mended, and known by its name
            del item["error"]
        self.file("\n".join(map(json.dumps, left)), "in.jsonl.failed")
        for _ in range(2):  # what still fails stays, and what succeeds is taken out
            code, out, err = self.call("run", "in.jsonl.failed", "--continue-on-failure")
            self.assertEqual((code, self.left()), (1, ["in.jsonl.failed"]))
            self.assertEqual([item["body"]["sku"] for item in self.failed()], ["sku-3"])
        self.ecwid.script = None
        self.assertEqual(self.call("run", "in.jsonl.failed")[0], 0)
        self.assertEqual(self.left(), [])
        self.assertEqual(ran(self.ecwid).count("sku-4"), 1)
        self.assertEqual(self.call("run", "in.jsonl.failed")[0], 2)  # it is gone

    @unittest.skipIf(WINDOWS, "where links need rights")
    def test_a_link_to_what_was_left_leads_where_it_points(self):
        self.file('{"method": "POST", "path": "/products", "error": "x"}\n' * 2, "left")
        (self.here / "link").symlink_to("left")
        self.ecwid.script = lambda call: (400, {}) if call["id"] == "000002" else (200, {})
        self.assertEqual(self.call("run", "link", "--continue-on-failure")[0], 1)
        self.assertEqual((self.left(), self.lines("left")), (["left", "link"], 1))
        self.ecwid.script = lambda call: (200, {})
        self.assertEqual(self.call("run", "link")[0], 0)
        self.assertFalse((self.here / "left").exists())

    def lines(self, name):
        return (self.here / name).read_bytes().count(b"\n")

    def test_what_is_edited_while_it_is_worked_off_is_kept_and_never_ends_with_0(self):
        source = self.file('{"method": "GET", "path": "/profile", "error": "x"}\n')
        edit = functools.partial(self.file, "edited")
        self.ecwid.script = lambda call: edit() and None
        code, out, err = self.call("run", source)
        self.assertEqual((code, len(out), self.left()), (2, 1, ["in.jsonl.journal"]))
        self.assertIn("in.jsonl was changed while it was run: take out of it what has succ", err)
        self.assertEqual((self.here / source).read_text("utf-8"), "edited")

    def failed(self):
        lines = (self.here / "in.jsonl.failed").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def test_what_may_have_run_is_marked_and_refused_until_somebody_has_looked(self):
        codes = {"sku-0": 408, "sku-1": 500, "sku-2": 303, "sku-3": 400, "a": 500, "b": 500}
        self.ecwid.script = lambda call: (codes[call["body"]["sku"]], {"errorMessage": "oh"})
        put = BatchRequest.put("/products/1", {"sku": "a"})
        adjust = BatchRequest.put("/products/1/inventory", {"sku": "b", "quantityDelta": -1})
        options = ("--continue-on-failure", "-q")
        self.assertEqual(
            self.call("run", self.requests([*creates(4), put, adjust]), *options)[0], 1
        )
        marks = [item.get("mayHaveRun") for item in self.failed()]
        self.assertEqual(marks, [True, True, True, None, None, True])
        before = len(self.ecwid.ledger)
        code, _, err = self.call("run", "in.jsonl.failed", *options)
        self.assertEqual((code, len(self.ecwid.ledger)), (2, before))
        self.assertIn("line 6 may have run: look at the shop; then remove the line, or its", err)
        sure = [item for item in self.failed() if "mayHaveRun" not in item]  # grep -v mayHaveRun
        self.ecwid.script = None
        self.file("\n".join(map(json.dumps, sure)), "in.jsonl.failed")
        self.assertEqual(self.call("run", "in.jsonl.failed", *options)[0], 0)
        self.ecwid.faults = ["lost rows"] * 2
        self.assertEqual(self.call("run", self.requests(creates(3, 50)), *options)[0], 1)
        self.assertEqual([item["mayHaveRun"] for item in self.failed()], [True])

    def test_a_failed_file_whose_own_job_was_interrupted_is_not_overwritten(self):
        self.requests(creates(3), "in.jsonl.failed")
        self.file('{"journal": ...', "in.jsonl.failed.journal")
        source = self.requests(creates(3, 10))
        code, _, err = self.call("run", source)
        self.assertEqual((code, self.ecwid.requests), (2, []))
        self.assertIn(
            "first finish it with run in.jsonl.failed, or remove in.jsonl.failed.jour", err
        )
        for number, text in enumerate(("", '{"journal": ...}\n{"ended": true}\n')):  # has ended
            self.file(text, "in.jsonl.failed.journal")
            source = self.requests(creates(3, 30 + 10 * number))
            self.assertEqual(self.call("run", source)[0], 0)
        # One that begins while this job runs is found before anything is overwritten.
        self.ecwid.script = fails_at(20)
        sync = os.fsync

        def begin(number):
            self.file('{"journal": ...', "in.jsonl.failed.journal")
            sync(number)

        with mock.patch("os.fsync", begin):
            code, _, err = self.call("run", self.requests(creates(3, 20)))
        self.assertEqual(code, 2, err)
        self.assertIn("in.jsonl.journal", self.left())

    def test_a_file_and_what_it_left_can_be_run_at_the_same_time(self):
        self.requests(creates(2), "in.jsonl.failed")
        self.ecwid.script = lambda call: (400, {"errorMessage": "no"})
        codes, add = [], ecwid_batch._Left.add

        def other(failures, response):
            add(failures, response)
            if not codes:
                with self.start("run", "in.jsonl.failed", "-q") as process:
                    codes.append(process.wait(60))

        options = ("--batch-size", "1", "--continue-on-failure")
        with mock.patch.object(ecwid_batch._Left, "add", other):
            code, _, err = self.call("run", self.requests(creates(3, 10)), *options)
        self.assertEqual((code, codes), (1, [1]), err)
        self.assertEqual([item["body"]["sku"] for item in self.failed()], skus(3, 10))
        self.assertEqual(self.left(), ["in.jsonl.failed"])

    def test_the_same_command_at_the_same_time_is_told_so_and_harms_nothing(self):
        self.ecwid.script = fails_at(0, 12)
        source, seen = self.requests(creates(20)), []
        show = ecwid_batch._Report.show

        def second(report, status):
            show(report, status)
            if status.completed_requests == 10:
                seen.append(self.run_it(source))

        with mock.patch.object(ecwid_batch._Report, "show", second):
            code, out, _ = self.run_it(source)
        self.assertEqual((code, len(out), self.left()), (1, 20, ["in.jsonl.failed"]))
        self.assertEqual([item["body"]["sku"] for item in self.failed()], ["sku-0", "sku-12"])
        self.assertEqual((seen[0][0], len(self.ecwid.ledger)), (3, 20))
        self.assertIn("in.jsonl.journal is in use", seen[0][2])
        self.assertNotIn("the same command", seen[0][2])  # which may be a new job then

    def run_it(self, source):
        return self.call("run", source, "--continue-on-failure", "--batch-size", "5")

    @unittest.skipUnless(os.name == "posix", "needs the rights of files")
    def test_nobody_may_read_a_failed_file_who_could_not_read_its_input(self):
        self.ecwid.script = fails_at(0)
        source = self.requests(creates(1))
        for mode, expected in ((0o600, 0o600), (0o640, 0o600), (0o644, 0o644)):
            (self.here / source).chmod(mode)
            before = os.umask(0o022)
            self.addCleanup(os.umask, before)
            self.call("run", source)
            found = (self.here / "in.jsonl.failed").stat().st_mode & 0o777
            self.assertEqual(found, expected)
            self.file("of a job that was killed", "in.jsonl.failed.part")
            (self.here / "in.jsonl.failed.part").chmod(0o644)
        self.ecwid.script = None
        self.assertEqual((self.call("run", source)[0], self.left()), (0, []))

    def test_an_interrupted_job_goes_on_with_the_same_command_and_its_own_input_only(self):
        self.ecwid.latency = 1.0
        source = self.requests(creates(40))
        options = ("--batch-size", "10", "--continue-on-failure")
        code, out, err = self.call("run", source, *options, "--timeout", "15")
        self.assertEqual((code, len(out), self.left()), (4, 10, ["in.jsonl.journal"]))
        self.assertRegex(err, r"15 s are over, 1\d of 30 done \[at Ecwid: ticket 11kl.*\]")
        self.assertIn("the same command goes on with the job", err)
        original = (self.here / source).read_text("utf-8")
        before = submissions(self.ecwid)
        self.requests(creates(40, 900))
        code, out, err = self.call("run", source, *options)
        self.assertEqual((code, out, submissions(self.ecwid)), (2, [], before))
        self.assertIn("in.jsonl.journal is of another job", err)
        self.assertIn("remove the journal to give that job up", err)
        self.assertNotIn("the same command goes on", err)
        self.file(original)
        code, out, err = self.call("run", source, *options)
        self.assertEqual((code, len(out), self.left()), (0, 40, []))
        self.assertEqual(ran(self.ecwid), skus(40))

    def test_all_of_a_file_is_checked_first_and_ten_wrong_lines_are_named(self):
        source = self.requests(creates(1200))
        lines = (self.here / source).read_text("utf-8").splitlines()
        lines[1100:1115] = ["{oops", *['{"method": "GET", "path": "a"}'] * 14]
        self.file("\n".join(lines))
        for more in ((), ("--dry-run",)):
            code, out, err = self.call("run", source, *more)
            self.assertEqual((code, out, self.ecwid.requests, self.left()), (2, [], [], []))
            self.assertIn(
                "nothing was sent, since in.jsonl is wrong:\n  line 1,101 is not JSON", err
            )
            self.assertIn("line 1,110: path must be relative to the store", err)
            self.assertNotIn("line 1,111", err)
            self.assertIn("\n  and 5 others\n", err)

    def test_standard_input_is_read_as_it_goes_and_a_wrong_line_ends_the_job_before_its_batch(self):
        lines = (
            (self.here / self.requests(creates(30))).read_text("utf-8").splitlines(keepends=True)
        )
        text = "".join([*lines[:16], "{oops\n", *lines[17:]]).encode()
        code, out, err = self.call("run", "-", "--batch-size", "10", stdin=text)
        self.assertEqual((code, len(out), ran(self.ecwid)), (2, 10, skus(10)))
        self.assertIn("line 17 is not JSON", err)

    def test_a_file_that_changes_while_it_is_read_never_ends_with_0(self):
        original = self.requests(creates(30))
        text = (self.here / original).read_bytes()
        shorter = b"".join(text.splitlines(keepends=True)[:17])
        first = b"".join(text.splitlines(keepends=True)[:10])
        for content in (text.replace(b"sku-2", b"sku-x"), shorter, first, text + text[:50]):
            self.ecwid.reset()
            self.file(text)
            os.utime(self.here / original, (1, 1))
            change = iter([lambda c=content: self.file(c)])
            self.ecwid.script = lambda call, c=change: next(c, lambda: None)() and None
            code, out, err = self.call("run", original, "--batch-size", "10")
            self.assertEqual((code, len(out), ran(self.ecwid)), (2, 10, skus(10)))
            self.assertIn("in.jsonl has changed while the job ran; no more was sent", err)
            (self.here / "in.jsonl.journal").unlink()

    @unittest.skipIf(WINDOWS, "which replaces no file that is open")
    def test_a_file_that_is_replaced_as_a_whole_is_run_as_it_was(self):
        source = self.requests(creates(20))
        self.requests(creates(20, 500), "new")
        replace = iter([lambda: os.replace(self.here / "new", self.here / source)])
        self.ecwid.script = lambda call: next(replace, lambda: None)() and None
        self.assertEqual(self.call("run", source, "--batch-size", "10")[0], 0)
        self.assertEqual(ran(self.ecwid), skus(20))

    def test_an_answer_that_is_no_json_makes_an_output_line_that_is(self):
        self.ecwid.script = lambda call: (200, {"a": math.nan})
        code, out, _ = self.call("run", self.requests(gets(1)))
        self.assertEqual(code, 0)
        line = json.loads(out[0], parse_constant=lambda constant: self.fail(constant))
        self.assertEqual(line["response"], '{"a": NaN}')

    def test_main_leaves_signals_and_logging_of_its_program_as_they_were(self):
        def handler(*args):
            pass

        before = signal.signal(signal.SIGTERM, handler)
        self.addCleanup(signal.signal, signal.SIGTERM, before)
        logger = logging.getLogger("ecwid_batch")
        self.call("run", self.requests(gets(1)), "-v")
        self.assertIs(signal.getsignal(signal.SIGTERM), handler)
        self.assertNotEqual(signal.getsignal(signal.SIGINT), signal.SIG_IGN)
        self.assertEqual((logger.level, logger.handlers), (logging.WARNING, []))

    def test_main_writes_to_whatever_its_program_has_made_standard_output(self):
        source = self.here / self.requests(gets(3))
        with mock.patch.dict(os.environ, self.environment()):
            path = self.here / "out.gz"
            with gzip.open(path, "wt", encoding="utf-8") as file, contextlib.redirect_stdout(file):
                self.assertEqual(ecwid_batch.main(["run", str(source), "-q"]), 0)
        with gzip.open(self.here / "out.gz") as file:
            self.assertEqual(len(file.readlines()), 3)

    def test_a_journal_that_cannot_be_removed_is_emptied_and_the_exit_status_is_the_jobs(self):
        source = self.requests(creates(3))
        unlink = os.unlink

        def held(path):
            if str(path).endswith(".journal"):
                raise PermissionError(13, "Permission denied")
            unlink(path)

        with mock.patch("ecwid_batch.os.unlink", held):
            for count in (3, 6):
                code, out, err = self.call("run", source)
                self.assertEqual((code, len(out)), (0 if count == 3 else 1, 3))
                self.assertIn("the job has ended, but its journal is still there: remove in.", err)
                self.assertEqual((self.here / "in.jsonl.journal").read_bytes(), b"")
                self.assertEqual(submissions(self.ecwid), count // 3)

    @unittest.skipIf(WINDOWS, "which removes no file that is open")
    def test_a_journal_that_can_be_removed_is_at_no_time_an_empty_one(self):
        sizes, unlink = [], os.unlink

        def look(path):
            sizes.append(os.path.getsize(path))
            unlink(path)

        with mock.patch("ecwid_batch.os.unlink", look):
            self.assertEqual(self.call("run", self.requests(creates(3)), "-q")[0], 0)
        self.assertGreater(sizes.pop(), 0)

    def test_no_signal_makes_a_job_that_has_ended_look_as_if_it_had_not(self):
        source = self.requests(creates(3))
        remove = ecwid_batch._Left._end_journal

        def interrupted(*args):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)
            remove(*args)

        with mock.patch("ecwid_batch._Left._end_journal", interrupted):
            code, out, _ = self.call("run", source)
        self.assertEqual((code, len(out), self.left()), (0, 3, []))

    def test_the_same_command_under_a_named_journal_does_not_bring_back_what_was_worked_off(self):
        self.ecwid.script = fails_at(1)
        command = ("run", self.requests(creates(3)), "--journal", "j", "--continue-on-failure")
        with mock.patch("os.replace", side_effect=OSError(28, "No space left on device")):
            self.assertEqual(self.call(*command)[0], 5)
        self.assertEqual(self.left(), ["j"])
        self.assertEqual(self.call(*command)[0], 1)  # it has not ended before FILE.failed is there
        self.assertEqual(self.left(), ["in.jsonl.failed", "j"])
        self.ecwid.script = None
        self.assertEqual(self.call("run", "in.jsonl.failed")[0], 0)
        code, out, err = self.call(*command)
        self.assertEqual((code, len(out), self.left()), (1, 3, ["j"]))
        self.assertNotIn("mend it there", err)
        self.assertEqual(sorted(ran(self.ecwid)), ["sku-0", "sku-1", "sku-1", "sku-2"])
        journal = (self.here / "j").read_text("utf-8")  # an editor takes its last line ends away
        for text in (journal.rstrip(), journal.rpartition('{"ended"')[0].rstrip()):
            self.file(text, "j")
            for _ in range(2):
                self.assertEqual((self.call(*command)[0], self.left()[-1]), (1, "j"))
        (self.here / "in.jsonl.failed").unlink()
        with open(self.here / "in.jsonl", "a", encoding="utf-8") as file:  # a journal goes on, too
            file.write('{"method": "POST", "path": "/products", "body": {"sku": "more"}}\n')
        self.assertEqual((self.call(*command)[0], len(self.failed())), (1, 2))

    def test_a_kill_before_the_removal_of_the_journal_brings_back_nothing_that_was_worked_off(self):
        self.ecwid.script = fails_at(1)
        source, unlink = self.requests(creates(3)), os.unlink

        def killed(path):
            if path.endswith(".journal"):
                raise Killed
            unlink(path)

        with mock.patch("os.unlink", killed), self.assertRaises(Killed):
            self.call("run", source, "--continue-on-failure")
        self.assertEqual(self.left(), ["in.jsonl.failed", "in.jsonl.journal"])
        self.ecwid.script = None
        self.assertEqual(self.call("run", "in.jsonl.failed")[0], 0)
        code, out, _ = self.call("run", source, "--continue-on-failure")
        self.assertEqual((code, len(out), self.left()), (1, 3, []))
        self.assertEqual(len(self.ecwid.ledger), 4)

    def test_what_ecwid_has_forgotten_since_writes_no_failed_file_under_a_named_journal(self):
        self.ecwid.script = fails_at(1)
        for options in (("--continue-on-failure", "--group", "g"), ()):
            self.ecwid.reset()
            command = ("run", self.requests(creates(3, 10)), "--journal", "j", *options)
            self.assertEqual(self.call(*command)[0], 0)
            for faults in (["lost rows"] * 2, []):  # of the answers, when all comes again
                self.ecwid.faults = faults
                self.assertEqual((self.call(*command)[0], self.left()), (int(bool(faults)), ["j"]))
            (self.here / "j").unlink()

    def test_a_full_disk_at_the_end_keeps_no_journal_that_can_be_removed(self):
        append = ecwid_batch._append

        def full(file, data):
            if b"ended" in data:
                raise OSError("the disk may be full")
            append(file, data)

        for options, left in (((), []), (("--journal", "j"), ["j"])):
            with mock.patch("ecwid_batch._append", full):
                code, _, err = self.call("run", self.requests(gets(2)), *options)
            self.assertEqual((code, self.left()), (0, left))
            self.assertEqual("j does not say so: the same command would" in err, bool(left), err)
            self.assertNotIn("remove", err)

    def test_an_empty_journal_stays_a_new_one_where_nothing_was_submitted(self):
        for source in ("", '{"method": "GET", "path": "/profile"}'):
            self.file("", "j")
            command = ("run", self.file(source), "--journal", "j", "-q")
            self.assertEqual([self.call(*command)[0] for _ in range(2)], [0, 0])
        self.assertEqual(len(self.ecwid.jobs), 1)

    def test_a_named_journal_is_kept_and_says_that_its_job_has_ended(self):
        source = self.requests(creates(3))
        for number in (1, 2):
            code, out, err = self.call("run", source, "--journal", "j", "--failed", "f")
            self.assertEqual((code, len(out), self.left()), (0, 3, ["j"]))
            self.assertEqual("nothing was submitted, since the journal j has" in err, number == 2)
        self.assertEqual(ran(self.ecwid), skus(3))

    def test_standard_input_leaves_nothing_unless_it_is_named(self):
        self.file("of somebody else", "None.journal")
        self.ecwid.script = fails_at(1)
        text = (self.here / self.requests(creates(3))).read_bytes()
        self.file("of somebody else", "-")
        code, out, _ = self.call("run", "-", stdin=text)
        self.assertEqual((code, len(out), self.left()), (1, 3, ["-", "None.journal"]))
        self.assertEqual(self.call("run", "-", "--failed", "f", "--journal", "j", stdin=text)[0], 1)
        self.assertEqual(self.left(), ["-", "None.journal", "f", "j"])

    def test_a_dry_run_needs_no_store_and_checks_all_of_the_input(self):
        nothing = {"ECWID_TOKEN": None, "ECWID_STORE_ID": None}
        totals = {1200: "1,200 requests in 3 batches", 1: "1 request in 1 batch"}
        for count, total in {**totals, 0: "0 requests in 0 batches"}.items():
            code, out, err = self.call("run", "--dry-run", self.requests(gets(count)), **nothing)
            self.assertEqual((code, out, err), (0, [f"{total}, nothing sent"], ""))
        code, out, err = self.call("run", "--dry-run", self.file("{}"), **nothing)
        self.assertEqual((code, out), (2, []))
        self.assertIn("line 1 must be a JSON object with method, path", err)
        self.assertEqual(self.left(), [])

    def test_a_file_without_requests_is_a_success(self):
        for text in ("", "\n \n", "[]"):
            code, out, err = self.call("run", self.file(text))
            self.assertEqual((code, out, self.left()), (0, [], []))
            self.assertIn("0 requests: nothing to do", err)

    def test_wrong_usage_and_input_exit_with_2_say_what_to_do_and_send_nothing(self):
        form = '{"method": "GET", "path": "/profile"%s}'
        get, named = form % "", form % ', "id": "a"'
        for text, arguments, words in (
            (json.dumps({"path": "/a"}, indent=2), (), "must stand on one line, or all of them"),
            ("id,price\n1,2", (), "line 1 is not JSON: Expecting value; FILE must hold one JSON"),
            (get.encode("utf-16"), (), "save FILE as UTF-8"),
            (get + "\n[1]", (), "line 2 must be a JSON object with method, path"),
            ("\n[\n{},\n]", (), "the array is not JSON: "),
            ("[5]", (), "request 1 must be a JSON object"),
            ('{"method": "PUT", "path": "/a", "body": NaN}', (), "NaN is not JSON: write a number"),
            (f"{named}\n{named}", (), "request 2 (GET /profile): the id 'a' is that of request 1"),
            (f"{get}\n{named}\n{named}", ("--batch-size", "2", "--base-url", "x"), "base_url must"),
            (form % ', "url": 1', (), "maybe body and id"),
            (form % ', "id": 7', (), "line 1: id must be a str"),
            (form % ', "mayHaveRun": true', (), "line 1 may have run: look at the shop; then"),
            ('{"method": "GET", "path": "a"}', (), "line 1: path must be relative"),
            (b'{"method": "GET", "path": "/\xff"}', (), "line 1 is not JSON: 'utf-8' codec"),
            ("[" * 99999, (), "is not JSON"),
            (get, ("--batch-size", "501"), "must be 1 to 500"),
            (get, ("--batch-size", "x"), "invalid"),
            (get, ("--jurnal", "x"), "unrecognized arguments: --jurnal"),
            (get, ("--group", ""), "group_id must not be empty"),
            (get, ("--failed", "in.jsonl"), "FILE, --journal and --failed must be different files"),
            (get, ("--journal", "j", "--failed", "j"), "must be different files"),
            (get, ("--journal", "in.jsonl"), "must be different files"),
            (get, ("--journal", "in.jsonl.failed.part"), "must be different files"),
            (get, ("--journal", ""), "must name a file (is a variable not set?)"),
            (get, ("--failed", ""), "must name a file (is a variable not set?)"),
            (get, ("--failed", "."), "cannot write .: name another file by --journal or --failed"),
            (get, ("--timeout", "nan"), "timeout must be a number of seconds, not nan"),
            (get, ("--max-retry-time", "nan"), "max_retry_time must be 0 to 3600 seconds"),
            (form % ', "error": "x"', ("--failed", "f"), "is run in place: no --failed"),
            (get, ("--journal", "no/such/j"), "name another file by --journal"),
            (get, ("--token-file", "missing"), "No such file or directory: 'missing'"),
            (get, ("--base-url", "http://app.ecwid.com"), "base_url must begin with https://"),
        ):
            with self.subTest(words=words):
                source = self.file(text)
                code, out, err = self.call("run", source, *arguments)
                self.assertEqual((code, out), (2, []), err)
                self.assertIn(words, err)
                self.assertEqual((self.ecwid.requests, self.left()), ([], []))
        for arguments, environment, words in (
            (("run", "missing"), {}, "No such file or directory: 'missing'"),
            (("run", "in.jsonl"), {"ECWID_TOKEN": None}, "ECWID_TOKEN, or token, must be set"),
            ((), {}, "COMMAND"),
        ):
            code, out, err = self.call(*arguments, **environment)
            self.assertEqual((code, out), (2, []))
            self.assertIn(words, err)

    @unittest.skipUnless(os.name == "posix", "needs a folder's rights")
    def test_a_folder_that_cannot_be_written_is_told_before_anything_is_sent(self):
        source = self.requests(gets(1))
        with mock.patch("os.access", return_value=False):
            code, out, err = self.call("run", source)
        self.assertEqual((code, out, self.ecwid.requests), (2, [], []))
        self.assertIn("cannot write in.jsonl.journal: name another file by --journal", err)

    def test_endless_input_is_refused_after_a_bound(self):
        with mock.patch("ecwid_batch._MAX_LINE", 1000):
            code, out, err = self.call("run", "-", stdin=b"\0" * 1001)
        self.assertEqual((code, out), (2, []))
        self.assertIn("line 1 is longer than 1,000 bytes", err)

    def test_each_way_to_fail_has_its_exit_status_and_says_what_to_check(self):
        source = self.requests(creates(2))
        for environment, options, code, words in (
            ({"ECWID_TOKEN": "wrong"}, (), 3, "INVALID_API_TOKEN; Wrong token; check the token"),
            ({"ECWID_BASE_URL": "http://127.0.0.1:1/api/v3"}, (), 3, "gave up after "),
            ({"ECWID_BASE_URL": self.ecwid.base_url[:-3]}, (), 3, "check the store id, the ticket"),
            ({}, ("--timeout", "0"), 4, "0 s are over, 0 of 2 done"),
        ):
            got, out, err = self.call("run", source, *options, **environment)
            self.assertEqual((got, out), (code, []), err)
            self.assertIn(words, err.splitlines()[-1 if code == 4 else -2])
            (self.here / "in.jsonl.journal").unlink() if self.left() else None
        self.assertEqual(self.ecwid.ledger, [])

    def test_a_cancelled_group_is_exit_1_with_true_counts(self):
        self.ecwid.latency = 0.05
        source = self.requests(creates(1500))
        cancel = iter(
            [lambda: self.ecwid.cancel({"groupId": "night"}, self.ecwid.clock.monotonic())]
        )
        show = ecwid_batch._Report.show

        def progress(report, status):
            next(cancel, lambda: None)()
            show(report, status)

        options = ("--continue-on-failure", "--group", "night")
        with mock.patch.object(ecwid_batch._Report, "show", progress):
            code, out, err = self.call("run", source, *options)
        count = len(ran(self.ecwid))
        self.assertEqual((code, len(out)), (1, 1500))
        self.assertIn(
            f"1,500 requests: {count:,} succeeded, {1000 - count:,} unknown, 500 did not run", err
        )

    def test_cancel_prints_the_count_and_gives_up_after_ten_seconds_unless_told_otherwise(self):
        self.ecwid.latency = 1000
        self.ecwid.client().submit(Batch(gets(3), group_id="night"))
        for count in (1, 0):
            code, out, err = self.call("cancel", "night")
            self.assertEqual(code, 1 - count)
            self.assertEqual(json.loads(out[0]), {"group": "night", "updateCount": count})
            self.assertEqual("there was nothing to stop in the group night" in err, not count)
        nowhere = {"ECWID_BASE_URL": "http://127.0.0.1:1/api/v3"}
        source = self.requests(gets(1))
        for arguments, least, most in (
            (("cancel", "night"), 0, 11),
            (("cancel", "night", "--max-retry-time", "300"), 200, 301),
            (("run", source, "--max-retry-time", "1000"), 900, 1001),
        ):
            begun = self.ecwid.clock.monotonic()
            self.assertEqual(self.call(*arguments, **nowhere)[0], 3)
            self.assertTrue(least <= self.ecwid.clock.monotonic() - begun < most)

    def test_the_token_may_be_in_a_file(self):
        source = self.requests(gets(1))
        for text, code, words in (
            (self.ecwid.token + "\n", 0, "1 succeeded"),
            ("\ufeff" + self.ecwid.token, 0, "1 succeeded"),  # as Notepad saves it
            (" \n", 2, "token must be set: it is the access token of your Ecwid app"),
            ("two words", 2, "token must be visible ASCII without spaces"),
        ):
            self.file(text, "token")
            got, _, err = self.call("run", source, "--token-file", "token", ECWID_TOKEN=None)
            self.assertEqual(got, code)
            self.assertIn(words, err)

    def test_quiet_and_verbose(self):
        source = self.requests(gets(1))
        self.assertEqual(self.call("run", source, "-q")[2], "")
        self.assertRegex(self.call("run", source, "-v")[2], r"HTTP 200, \d+ bytes")

    def test_help_fits_80_columns_and_explains_each_option(self):
        for arguments in (["--help"], ["run", "--help"], ["cancel", "--help"]):
            code, out, _ = self.call(*arguments, COLUMNS="80")
            self.assertEqual(code, 0)
            self.assertLessEqual(max(map(len, out)), 80)
            if "run" in arguments:
                words = "batch-size N|parallel|continue-on-failure|group ID|timeout S|journal FILE|"
                words += "failed FILE|dry-run|base-url URL|token-file FILE|quiet|verbose|"
                words += "max-retry-time S"
                for word in words.split("|"):
                    self.assertIn(f"--{word}", "\n".join(out))
                self.assertIn("with the same options, goes on, and prints all", " ".join(out))


class Output(OnTheCommandLine):
    """Output that cannot be written, signals, terminals: with real processes."""

    @unittest.skipUnless(os.path.exists("/dev/full") and shutil.which("sh"), "needs /dev/full")
    def test_a_full_disk_is_exit_5_with_the_tickets(self):
        cases = (
            ("run 0.jsonl > /dev/full", 5, "cannot write the output: [Errno 28]"),
            ("run 1.jsonl > /dev/full 2> /dev/full", 5, ""),
            ("run 2.jsonl >&-", 5, "standard output is closed"),
            ("run --dry-run 3.jsonl > /dev/full", 5, "cannot write the output"),
            ("run - > /dev/full < 4.jsonl", 5, "its batches go on, or have ended, at Ecwid: 11kl"),
            ("run - <&-", 2, "standard input is closed"),
            ("run 6.jsonl 2> /dev/full", 0, ""),
            ("run 7.jsonl 2>&-", 0, ""),
        )
        for number in range(len(cases)):
            self.requests(gets(3), f"{number}.jsonl")
        command = f"{sys.executable} {HERE / 'ecwid_batch.py'}"
        lines = [["sh", "-c", f"{command} {line}"] for line, _, _ in cases]
        ends = self.at_once(lines, env=self.environment(), cwd=self.here)
        for (line, expected, words), (code, out, err) in zip(cases, ends):
            with self.subTest(line=line):
                self.assertEqual((code, out.count(b"\n")), (expected, 0 if code else 3), err)
                self.assertIn(words, err)
                self.assertNotIn("Exception ignored", err)
                self.assertNotIn("Traceback", err)
        self.assertRegex(ends[0][2], "or have ended, at Ecwid: 11kl.*\n.*\n.*same command goes on")
        self.assertEqual(len(self.ecwid.jobs), 5)
        self.assertEqual([self.call("run", name)[0] for name in ("0.jsonl", "1.jsonl")], [0, 0])
        self.assertEqual(len(self.ecwid.jobs), 5)  # they went on with what was at Ecwid
        self.assertEqual(self.left(), [f"{number}.jsonl" for number in range(len(cases))])

    def test_a_disk_that_is_full_under_the_failures_or_at_the_last_line_is_exit_5(self):
        self.ecwid.script = lambda call: (400, {"errorMessage": "no"})
        full = OSError(28, "No space left on device")
        for place, words in (
            ("os.replace", "cannot write in.jsonl.failed: [Errno 28]"),
            ("ecwid_batch._Left._open", "cannot write in.jsonl.failed.part: [Errno 28]"),
        ):
            source = self.requests(creates(2))
            with mock.patch(place, side_effect=full):
                code, out, err = self.call("run", source)
            self.assertEqual(code, 5)
            self.assertIn(words, err)
            self.assertIn("the same command goes on", err)
            self.assertEqual(self.left(), ["in.jsonl.journal"])
            self.assertEqual(self.call("run", source)[0], 1)
            self.assertEqual(self.left(), ["in.jsonl.failed"])
            (self.here / "in.jsonl.failed").unlink()
        self.assertEqual(len(self.ecwid.ledger), 2)
        sync = os.fsync

        def late(number):  # as NFS tells it
            if number == file.fileno():
                raise full
            sync(number)

        class Disk(io.StringIO):
            encoding = "utf-8"

            def fileno(self):
                return file.fileno()

        with open(self.here / "out", "wb") as file, mock.patch("os.fsync", late):
            with mock.patch("sys.__stdout__", Disk()) as disk:
                self.assertEqual(self.call("run", source, out=disk)[0], 5)

    @unittest.skipUnless(hasattr(os, "set_blocking") and os.name == "posix", "needs such pipes")
    def test_output_is_complete_and_input_is_waited_for_where_pipes_do_not_block(self):
        self.ecwid.script = lambda call: (200, {"a": "x" * 30_000})
        lines = (self.here / self.requests(gets(6))).read_bytes().splitlines(keepends=True)
        for unbuffered in ("", "1"):
            read_input, write_input = os.pipe()
            read_output, write_output = os.pipe()
            os.set_blocking(read_input, False)
            os.set_blocking(write_output, False)
            environment = {**self.environment(), "PYTHONUNBUFFERED": unbuffered}
            pipes = {"stdin": read_input, "stdout": write_output, "env": environment}
            with self.start("run", "-", **pipes) as process:
                os.close(read_input)
                os.close(write_output)
                for line in lines:
                    time.sleep(0.02)
                    os.write(write_input, line)
                os.close(write_input)
                with open(read_output, "rb") as file:
                    found = [json.loads(line) for line in file]
            self.assertEqual((process.returncode, len(found)), (0, 6))

    def test_a_reader_that_has_had_enough_ends_it_with_the_tickets_and_no_more(self):
        process = self.start("run", self.requests(gets(2000)), "-q")
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
        process.stdin.close()
        process.stderr.close()
        self.assertEqual(process.wait(60), 5)
        self.assertRegex(
            err, r"\Aecwid-batch: store 1003: the job was left.*11kl.*\n.*same command.*\n\Z"
        )

    @unittest.skipIf(WINDOWS, "which sends no signals to a child")
    def test_sigint_and_sigterm_end_it_with_the_tickets_and_the_job_goes_on(self):
        self.ecwid.latency = 0.004
        source = self.requests(creates(60))
        options = ("--batch-size", "20", "--continue-on-failure", "-q")
        ends = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}
        for number, word in ends.items():
            process = self.start("run", source, *options)
            process.stdout.readline()
            process.send_signal(number)
            err = process.communicate(timeout=60)[1].decode()
            self.assertEqual(process.returncode, -number, err)  # so that a shell's loop stops
            self.assertIn(f"ecwid-batch: {word}\n", err)
            self.assertIn("its batches go on, or have ended, at Ecwid: 11kl", err)
            self.assertIn("the same command goes on with the job", err)
            self.assertNotIn("Traceback", err)
        process = self.start("run", source, *options)
        out, _ = process.communicate(timeout=60)  # it may say that there was nothing left to submit
        self.assertEqual((process.returncode, len(out.splitlines())), (0, 60))
        self.assertEqual((ran(self.ecwid), self.left()), (skus(60), []))

    def test_ctrl_c_in_a_program_or_on_windows_is_an_exit_status(self):
        source = self.requests(creates(30))
        for error, code in ((KeyboardInterrupt, 130), (ecwid_batch._Terminated, 143)):
            with mock.patch.object(ecwid_batch._Report, "show", side_effect=error):
                got, _, err = self.call("run", source, "--batch-size", "10")
            self.assertEqual(got, code)
            self.assertRegex(
                err,
                "batches go on, or have ended, at Ecwid: 11kl.*\n.*ed\n.*the same command goes on",
            )
        self.assertEqual(len(self.call("run", source)[1]), 30)
        self.assertEqual(ran(self.ecwid), skus(30))

    @unittest.skipIf(WINDOWS, "which sends no signals to a child")
    def test_without_a_journal_an_interruption_says_where_the_responses_are(self):
        self.ecwid.latency = 0.2
        text = (self.here / self.requests(creates(40))).read_bytes()
        process = self.start("run", "-", "--batch-size", "1", "--continue-on-failure")
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
        process.stdout.readline()
        time.sleep(0.1)  # then the next batch is at Ecwid
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1].decode()
        self.assertEqual(process.returncode, -signal.SIGINT)
        self.assertRegex(err, r"at Ecwid: 11kl.*; client.wait\(ticket\) has the responses")

    def test_progress_is_one_line_with_the_failures_that_fits_the_terminal(self):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

            def fileno(self):
                return 2

        source = ecwid_batch._Input("-", 500)
        source.lines.append(1)
        screen = mock.Mock()
        report = ecwid_batch._Report(screen, source, mock.Mock())
        with contextlib.redirect_stdout(io.StringIO()):
            report.add(BatchResponse("1", "FAILED", 400, _request=gets(1)[0]))
        self.ecwid.clock.skipped += 10
        for total, line in (
            (1200, r"120/1,200 1 failed 1[12].\d/s 0:01:3\d left"),
            (0, r"120 1 failed 1[12].\d/s"),
        ):
            source.total = total
            report.show(BatchStatus("T", "IN_PROGRESS", 500, 120))
            self.assertRegex(screen.draw.call_args[0][0], f"^{line}$")
        err = Terminal()
        with contextlib.redirect_stderr(err):
            with mock.patch("os.get_terminal_size", lambda _: mock.Mock(columns=20)):
                screen = ecwid_batch._Screen(quiet=False)
                screen.draw("x" * 36)
                screen.say("said")
        blank = f"\r{' ' * 19}\r"
        self.assertEqual(err.getvalue(), f"{blank}{'x' * 19}{blank}ecwid-batch: said\n")
        err = Terminal()
        with contextlib.redirect_stderr(err):
            ecwid_batch._Screen(quiet=True).draw("x")
        self.assertEqual(err.getvalue(), "")

    def test_progress_is_drawn_on_a_terminal_only(self):
        try:
            import pty
        except ImportError:
            self.skipTest("needs terminals")
        self.ecwid.latency = 0.004
        master, slave = pty.openpty()
        with self.start("run", self.requests(gets(60)), stderr=slave) as process:
            os.close(slave)
            out, _ = process.communicate(timeout=60)
        drawn = b""
        with contextlib.suppress(OSError):  # which ends it on Linux
            while chunk := os.read(master, 65536):
                drawn += chunk
        os.close(master)
        self.assertEqual(len(out.splitlines()), 60)
        self.assertRegex(drawn.decode(), r"\r\d+/60 \d+\.\d/s")
        self.assertRegex(drawn.decode(), r"ecwid-batch: 60 requests: 60 succeeded; \d+\.\d s\r\n$")


# --- Tests: the stand-in, the README --------------------------------------------------------------


class TheStandIn(WithStandIn):
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
                text = error.read()
                return error.code, json.loads(text) if text else None

    def rows(self, *requests):
        status = self.ecwid.client().run(requests, stop_on_first_failure=False)
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
            client.run(gets(1), stop_on_first_failure=False)
            self.assertEqual(len(engine.ledger), 5)
            self.assertGreater(clock.now - begun, 12)
            client.run(gets(1))
            self.assertEqual(len(engine.ledger), 6)

    def test_a_key_is_remembered_for_an_hour(self):
        with virtual() as (engine, client, clock):
            batch = Batch(gets(1))
            ticket = client.submit(batch)
            for seconds, same in ((3590, True), (20, False)):
                clock.now += seconds
                batch = Batch(gets(1), deduplication_key=batch.deduplication_key)
                self.assertEqual(client.submit(batch) == ticket, same)

    def test_it_blocks_a_token_with_too_many_calls_and_early_calls_prolong_that(self):
        with virtual() as (engine, client, clock):
            engine.rate_limit = 3
            headers = {"Authorization": f"Bearer {engine.token}"}
            call = ("GET", "/api/v3/1003/profile", headers, None)
            answers = [engine.handle(*call) for _ in range(6)]
            self.assertEqual([a[0] for a in answers], [200, 200, 200, 429, 429, 429])
            self.assertEqual([a[1].get("Retry-After") for a in answers[3:]], ["5", "6", "7"])

    def test_searches_know_the_filters_that_real_jobs_use(self):
        self.ecwid.shop.stock(3)
        self.ecwid.shop.items["products"][2].update(enabled=False, name="Crème", categoryIds=[7])
        self.ecwid.shop.items["products"][3].update(createTimestamp=1800000000, price=1)
        for query, ids in (
            ("", [1, 2, 3]),
            ("limit=2&lang=en", [1, 2]),
            ("offset=1&limit=1000", [2, 3]),
            ("keyword=product", [1, 3]),
            ("enabled=false", [2]),
            ("sku=0000001,0000003,x", [1, 3]),
            ("productId=2,3", [2, 3]),
            ("category=7", [2]),
            ("createdFrom=1800000000", [3]),
            ("createdFrom=2026-01-02", [3]),
            ("createdTo=2026-01-01%2010:00:00%20%2B0000", [1, 2]),
            ("updatedFrom=2030-01-01", []),
            ("sortBy=PRICE_ASC", [3, 1, 2]),
            ("sortBy=ADDED_TIME_DESC", [3, 2, 1]),
            ("limit=abc", None),
            ("offset=-1", None),
            ("createdFrom=x", None),
        ):
            with self.subTest(query=query):
                ((code, body),) = self.rows(
                    BatchRequest.get(f"/products?{query}" if query else "/products")
                )
                found = [item["id"] for item in body["items"]] if code == 200 else None
                self.assertEqual((code, found), (400 if ids is None else 200, ids))
        with self.assertWarnsRegex(UserWarning, "ignores the parameter 'colour'"):
            self.ecwid.shop.answer("GET", "/products?colour=red", None)

    def test_it_answers_as_ecwids_own_clients_and_real_jobs_met_it(self):
        combinations = "/products/1/combinations"
        for method, path, body, code, answer in (
            ("DELETE", "/orders", None, 405, ...),
            ("DELETE", "/customers", None, 405, ...),
            ("DELETE", "/categories", None, 405, ...),
            ("DELETE", "/discount_coupons", None, 405, ...),
            ("DELETE", "/customer_groups", None, 405, ...),
            ("POST", combinations, {"options": [1], "sku": "v", "quantity": 1}, 200, {"id": 1001}),
            ("GET", f"{combinations}?responseFields=sku", None, 200, [{"sku": "v"}]),
            ("GET", "/products/1?responseFields=combinations(id)", None, 200, ...),
            ("GET", "/products?sku=v&responseFields=items(id)", None, 200, {"items": [{"id": 1}]}),
            ("PUT", f"{combinations}/1001/inventory", {"quantityDelta": -2}, 200, ...),
            ("DELETE", combinations, None, 200, {"deleteCount": 1}),
            ("POST", "/products", {"name": "n", "sku": "s"}, 200, {"id": 1002}),
            ("PUT", "/products/1", {"sku": "s"}, 409, ...),
            ("PUT", "/products/1002", {"sku": "s"}, 200, ...),
            ("POST", "/orders", {"email": "e"}, 200, {"id": 1003, "orderid": "XJ1003H"}),
            ("GET", "/orders/XJ1003H?responseFields=id,orderNumber", None, 200, ...),
            ("GET", "/orders/1003", None, 200, ...),
            (
                "POST",
                "/discount_coupons",
                {"name": "n", "code": "X"},
                200,
                {"id": 1004, "code": "X"},
            ),
            ("POST", "/discount_coupons", {"name": "m", "code": "X"}, 409, ...),
            ("PUT", "/discount_coupons/X", {"name": "o"}, 200, ...),
            ("GET", "/discount_coupons/X?responseFields=name", None, 200, {"name": "o"}),
            ("DELETE", "/discount_coupons/X", None, 200, ...),
            ("GET", "/discount_coupons/X", None, 404, ...),
            ("POST", "/categories/9691094/assignProducts", {"productIds": [1, 1002]}, 200, ...),
            ("POST", "/categories/9691094/unassignProducts", {"productIds": [1]}, 200, ...),
            ("POST", "/categories/9691094/image/async", {"url": "http://x"}, 200, ...),
            ("DELETE", "/categories/9691094/image", None, 200, {"deleteCount": 1}),
            ("POST", "/products/1/gallery/async", {"url": "http://x"}, 200, ...),
            ("DELETE", "/products/1/gallery", None, 200, {"deleteCount": 1}),
            ("GET", "/classes", None, 200, []),
            ("PUT", "/categories/sort", {"sortedIds": [9691094]}, 200, {"updateCount": 1}),
            ("PUT", "/categories/sort", {}, 400, ...),
            ("GET", "/products?inStock=false&responseFields=total", None, 200, {"total": 0}),
            ("GET", "/products?ids=1,7&responseFields=total", None, 200, {"total": 1}),
            ("GET", "/categories?parent=5&responseFields=total", None, 200, {"total": 0}),
            ("GET", "/customers?customerGroup=5&responseFields=total", None, 200, {"total": 0}),
            ("DELETE", "/products", None, 202, {"deleteCount": 2}),
        ):
            with self.subTest(method=method, path=path):
                got, found = self.rest(method, path, body)
                self.assertEqual(got, code, found)
                self.assertTrue(answer in (..., found), found)

    def test_a_check_of_a_live_shop_finds_what_differs(self):
        for light_rows, bare_find in ((True, False), (False, False), (True, True)):
            with mock.patch.multiple(self.ecwid, light_rows=light_rows, bare_find=bare_find):
                self.checked(0, "Nothing of this differs")
        look = ("GET", "escapedJson=true")
        for method, path, change, words in (
            ("POST", "/batch?", {"ticket": 5}, "create"),
            (*look, {"totalRequests": "3"}, "status"),
            (*look, [{"id": "x"}], "ids are echoed"),
            (*look, [{"escapedHttpBody": 5}], "with"),
            (*look, [{"status": "DONE"}], "a failure"),
            ("GET", "status=", {"items": None}, "find"),
            ("POST", "cancel-group", {"updateCount": None}, "cancel"),
            ("DELETE", "/batch", {"deleteCount": "1"}, "delete"),
            ("GET", "no-such", {"errorMessage": "gone", "errorCode": None}, None),
            ("GET", "no-such", None, "an unknown ticket"),
        ):
            with self.subTest(path=path, change=change), self.bent(method, path, change):
                self.checked(int(words is not None), f"DIFFERS      {words}" if words else "")
        self.assertEqual({call["method"] for _, call in self.ecwid.ledger}, {"GET"})

    @staticmethod
    def bent(method, path, change):
        """Return a patch for answers: fields that differ, in each row for a list, or no object."""
        handle = Engine.handle

        def other(self, verb, target, headers, body):
            status, extra, answer = handle(self, verb, target, headers, body)
            if verb != method or path not in target:
                return status, extra, answer
            if isinstance(change, list):
                answer["responses"] = [{**row, **change[0]} for row in answer["responses"]]
                return status, extra, answer
            return status, extra, change and {**answer, **change}

        return mock.patch.object(Engine, "handle", other)

    def test_a_check_that_cannot_ask_says_why(self):
        for name, value, words in (
            ("ECWID_TOKEN", "another", "HTTP 403: check the token"),
            ("ECWID_BASE_URL", "http://127.0.0.1:1", "check the network and ECWID_BASE_URL"),
        ):
            with mock.patch.dict(os.environ, {**self.ecwid.environment, name: value}):
                with contextlib.redirect_stdout(io.StringIO()):
                    self.fails(check, SystemExit, words)

    def checked(self, code, words):
        self.ecwid.latency = 0.001
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, self.ecwid.environment))
            stack.enter_context(mock.patch.object(Check.__init__, "__defaults__", (0.001,)))
            out = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            try:
                found = check()
            except SystemExit:
                found = 1
        self.assertEqual(found, code, out.getvalue())
        self.assertIn(words, out.getvalue())
        self.assertNotIn(self.ecwid.token, out.getvalue())
        self.assertNotIn("owner@example.com", out.getvalue())

    def test_response_fields_make_answers_small(self):
        query = "/products?responseFields=count,items(id,sku)"
        expected = {"count": 1, "items": [{"id": 1, "sku": "0000001"}]}
        self.assertEqual(self.rows(BatchRequest.get(query)), [(200, expected)])

    def test_the_same_shop_answers_direct_calls_and_batches(self):
        for kind in KINDS:
            path = "/products/1/combinations" if kind == "combinations" else f"/{kind}"
            body = {"name": "n", "email": "e@x", "options": [1]}
            status, made = self.rest("POST", path, body)
            self.assertEqual(status, 200, kind)
            one = f"{path}/{made.get('orderid', made['id'])}"
            self.assertEqual(self.rest("PUT", one, {"name": "m"}), (200, {"updateCount": 1}))
            ((code, body),) = self.rows(BatchRequest.get(one))
            self.assertEqual((code, body["name"]), (200, "m"))
            self.assertEqual(self.rest("DELETE", one), (200, {"deleteCount": 1}))
            code, body = self.rest("GET", one)
            words = f"{KINDS[kind][0]} #{one.rpartition('/')[2]} not found"
            self.assertEqual(
                (code, body), (404, {"errorMessage": words, "errorCode": KINDS[kind][1]})
            )
        self.assertEqual(self.rest("PUT", "/profile", {"a": 1})[0], 200)
        self.assertEqual(self.rest("GET", "/profile")[1]["a"], 1)
        ((code, body),) = self.rows(BatchRequest.delete("/products"))
        self.assertEqual((code, body), (202, {"deleteCount": 1}))

    def test_stock_images_and_categories_change_what_they_should(self):
        rows = self.rows(
            BatchRequest.put("/products/1/inventory", {"quantityDelta": -3}),
            BatchRequest.post("/products/1/image", params={"externalUrl": "http://x"}),
            BatchRequest.post("/products/1/gallery", params={"externalUrl": "http://y"}),
            BatchRequest.post("/categories/9691094/assignProducts", {"productIds": [1]}),
            BatchRequest.put("/products/1/inventory", {"quantityDelta": "x"}),
            BatchRequest.post("/products/1/image"),
            BatchRequest.post("/categories/9691094/assignProducts", {"productIds": [77]}),
            BatchRequest.get("/products/1/image"),
            BatchRequest.get("/products/1/options"),
        )
        self.assertEqual([code for code, _ in rows], [200, 200, 200, 200, 400, 400, 404, 405, 404])
        lacks = "the stand-in has no /products/*/options; answer it with `script`"
        self.assertEqual(rows[-1][1]["errorMessage"], lacks)
        product = self.ecwid.shop.items["products"][1]
        self.assertEqual((product["quantity"], product["imageUrls"]), (7, ["http://x"]))
        self.assertEqual(product["categoryIds"], [9691094, 9691094])
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = self.rest("POST", "/products/1/image", b"externalUrl=http%3A%2F%2Fz", **form)
        self.assertEqual((answer[0], product["imageUrls"][-1]), (200, "http://z"))

    def test_silly_calls_are_refused_and_never_dropped(self):
        plain, text = {"Content-Type": "text/plain"}, {"Content-Type": "text/json"}
        for method, path, body, headers, code in (
            ("POST", "/products", b"{", {}, 400),
            ("POST", "/products", [1], {}, 400),
            ("POST", "/products", {}, {}, 400),
            ("POST", "/products", {"name": "x", "sku": "0000001"}, {}, 409),
            ("POST", "/products", {"name": "x"}, plain, 415),
            ("POST", "/products", {"name": "x"}, text, 200),
            ("POST", "/products/1", {}, {}, 405),
            ("POST", "/profile", {}, {}, 405),
            ("GET", "/nothing", None, {}, 404),
            ("GET", "/products/" + "9" * 30, None, {}, 404),
            ("GET", "/products/x", None, {}, 404),
            ("GET", "/products/1/combinations/1/x", None, {}, 404),
            ("PATCH", "/products/1", {}, {}, 405),
            ("OPTIONS", "/products", None, {}, 405),
            ("HEAD", "/products", None, {}, 405),
            ("PUT", "/batch", {}, {}, 405),
            ("GET", "/batch?status=DONE", None, {}, 400),
            ("GET", "/batch?ticket=T", None, {}, 404),
            ("POST", "/batch/cancel-group", b"", {}, 400),
            ("POST", "/batch?deduplicationKey=x", [{"path": "/a", "method": "GET"}], {}, 400),
        ):
            with self.subTest(method=method, path=path):
                self.assertEqual(self.rest(method, path, body, **headers)[0], code)
        self.assertEqual(self.rest("GET", "/profile", token="wrong")[0], 403)
        words = "Can't create batch. Batch request body is invalid. "
        for content, problem in (
            ([], "An array of 1 to 500 requests is expected"),
            ([{}] * 501, "An array of 1 to 500 requests is expected"),
            ([{"id": 5, "path": "/a", "method": "GET"}], "Path $[0].id contains bad value"),
            ([5], "Path $[0].path contains bad value"),
        ):
            status, answer = self.rest("POST", "/batch", content)
            self.assertEqual((status, answer["errorMessage"]), (400, words + problem))

    def test_a_path_without_its_first_slash_works(self):
        calls = [{"id": "a", "path": "profile", "method": "GET"}]
        status, answer = self.rest("POST", "/batch", calls)
        self.assertTrue(self.ecwid.client().status(answer["ticket"])["a"].ok)

    def test_a_group_is_cancelled_by_form_body_as_the_official_client_does(self):
        self.ecwid.latency = 100
        client = self.ecwid.client()
        client.submit(Batch(gets(1)))
        second = client.submit(Batch(gets(3), group_id="g h"))
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        for count in (1, 0):
            answer = self.rest("POST", "/batch/cancel-group", b"groupId=g+h", **form)
            self.assertEqual(answer, (200, {"updateCount": count}))
        self.assertEqual(client.status(second).status, "COMPLETED")

    def test_what_a_users_own_function_raises_or_returns_in_vain_fails_his_test(self):
        def fails(thing):
            raise ValueError("a function of one's own")

        for name, answer in (
            ("script", {"a": 1}),
            ("script", (200, {1, 2})),
            ("script", ("200", {})),
            ("script", (1000, {})),
            ("latency", "soon"),
            ("script", fails),
            ("latency", fails),
            ("faults", [fails]),
        ):
            function = mock.Mock(return_value=answer)
            if answer is fails or name == "faults":
                function = answer
            with self.subTest(name=name, answer=answer):
                with self.assertRaises((KeyError, TypeError, ValueError)), StandIn() as ecwid:
                    setattr(ecwid, name, function)
                    status = ecwid.client().run(gets(1))
                    self.assertEqual(len(status.failed), name == "script")

    def test_two_can_be_open_at_once_each_a_store_of_its_own_on_one_clock(self):
        before = ecwid_batch.time
        first, second = StandIn(latency=2.0, store_id=7), StandIn(latency=3.0)
        for ecwid in (first, second):
            ecwid.__enter__()
        for ecwid in (first, second):
            self.assertEqual(len(ecwid.client().run(gets(20)).succeeded), 20)
            self.assertLess(len(ecwid.requests), 40)
            ecwid.__exit__(None)
        self.assertEqual((first.store_id, second.store_id), (7, 1003))
        self.assertIs(ecwid_batch.time, before)

    def test_a_misspelt_fault_is_an_error_where_it_is_set(self):
        for add in (
            lambda: self.ecwid.faults.append("rest"),
            lambda: self.ecwid.faults.extend(["reset", "rest"]),
            lambda: setattr(self.ecwid, "faults", ["rest"]),
        ):
            self.fails(add, ValueError, "no fault 'rest'; there are: 'refused', 'reset'")
        self.fails(lambda: Engine(cancelled_rows="none"), ValueError, "'no row'")

    def test_requests_has_every_http_request_the_faulted_ones_too(self):
        self.ecwid.faults = ["refused", "500", "reset after"]
        self.ecwid.client().submit(Batch(gets(1), deduplication_key=KEY))
        self.assertEqual(len(self.ecwid.requests), 4)
        for method, path, query in self.ecwid.requests:
            self.assertEqual((method, path, query["deduplicationKey"]), ("POST", "/batch", KEY))

    def test_a_users_own_test_waits_for_nothing(self):
        begun = time.monotonic()
        with StandIn(latency=2.0) as ecwid:
            ecwid.faults = ["503 busy", "429", "block"]
            with mock.patch.dict(os.environ, ecwid.environment):
                status = EcwidClient().run(gets(30))
        self.assertEqual(len(status.succeeded), 30)
        self.assertLess(time.monotonic() - begun, 9)  # of some two minutes that they stand for

    def test_demo_shows_that_nothing_ran_twice(self):
        command = [sys.executable, str(HERE / "test_ecwid_batch.py"), "demo"]
        done = subprocess.run(command, env=CLEAN_ENV, capture_output=True, timeout=60)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertIn(b"The stand-in's ledger: 2 submissions, 1 batch.", done.stdout)
        self.assertIn(b"Calls that ran: 000001, 000002, 000003.", done.stdout)

    def test_serve_prints_the_environment_and_takes_products_and_faults(self):
        command = [sys.executable, str(HERE / "test_ecwid_batch.py"), "serve", "--port", "0"]
        command += ["--products", "20", "--fault", "500"]
        with subprocess.Popen(command, env=CLEAN_ENV, stdout=subprocess.PIPE) as process:
            text = "".join(process.stdout.readline().decode() for _ in range(3))
            given = dict(re.findall('(ECWID_[A-Z_]+) ?= ?"?([^"\\s]+)', text))
            with mock.patch.dict(os.environ, given):
                client = EcwidClient(max_retry_time=0)
            self.assertEqual(client._token, "secret_stand_in")
            self.fails(lambda: client.submit(Batch(gets(1))), ApiError, "HTTP 500")
            self.assertTrue(client.run([BatchRequest.get("/products/20")]).responses[0].ok)
            port = client.base_url.split(":")[2].partition("/")[0]
            self.fails(lambda: main(["serve", "--port", port]), SystemExit, f"if the port {port}")
            process.kill() if WINDOWS else process.send_signal(signal.SIGINT)
            process.stdout.read()
        self.assertEqual(process.returncode, 1 if WINDOWS else 0)
        wrong = ["serve", "--port", "0", "--fault", "x"]
        self.fails(lambda: main(wrong), SystemExit, "serve: no fault 'x'")

    def test_it_finds_the_library_where_it_is_vendored(self):
        folder = self.folder()
        vendor = folder / "mypkg" / "_vendor"
        vendor.mkdir(parents=True)
        (folder / "mypkg" / "__init__.py").write_text("", "utf-8")
        (vendor / "__init__.py").write_text("", "utf-8")
        shutil.copy(HERE / "ecwid_batch.py", vendor)
        shutil.copy(HERE / "test_ecwid_batch.py", vendor / "ecwid_stand_in.py")
        shutil.copy(HERE / "test_ecwid_batch.py", folder / "elsewhere.py")
        code = (
            "from mypkg._vendor import ecwid_batch\n"
            "from {} import StandIn\n"
            "with StandIn() as ecwid:\n"
            "    request = ecwid_batch.BatchRequest.get('/profile')\n"
            "    assert ecwid.client().run([request]).responses[0].ok\n"
            "    assert type(ecwid.client()) is ecwid_batch.EcwidClient\n"
        )
        modules = ("mypkg._vendor.ecwid_stand_in", "elsewhere")
        commands = [[sys.executable, "-c", code.format(module)] for module in modules]
        environment = {**CLEAN_ENV, "PYTHONPATH": str(folder)}
        for end in self.at_once(commands, cwd=folder, env=environment):
            self.assertEqual(end, (0, b"", ""))


@unittest.skipUnless((HERE / "README.md").exists(), "the README is not here")
class Readme(TestCase):
    def setUp(self):
        super().setUp()
        self.text = (HERE / "README.md").read_text(encoding="utf-8")
        self.ecwid = StandIn(rate_limit=None)
        self.ecwid.__enter__()
        self.addCleanup(self.ecwid.__exit__, None)
        self.ecwid.shop.stock(2)
        patch = mock.patch.dict(os.environ, {**self.ecwid.environment, "FAILED_QUEUE": "failed"})
        patch.start()
        self.addCleanup(patch.stop)

    def blocks(self, language):
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.M | re.S)

    def recipe(self, number):
        """Return a handler of the section on AWS Lambda, and the queue that it sends to."""
        sqs = mock.Mock()
        handlers = [block for block in self.blocks("python") if "def handler" in block]
        names = {}
        with mock.patch.dict(sys.modules, {"boto3": mock.Mock(client=lambda name: sqs)}):
            exec(handlers[number], names)
        out = contextlib.redirect_stdout(io.StringIO())
        out.__enter__()
        self.addCleanup(out.__exit__, None, None, None)
        return names["handler"], sqs

    @staticmethod
    def context(seconds):
        return mock.Mock(get_remaining_time_in_millis=lambda: 1000 * seconds)

    def run_blocks(self, names, *words):
        """Run the README's Python up to a block with these words."""
        with contextlib.redirect_stdout(io.StringIO()):
            for block in self.blocks("python"):
                if "def handler" not in block:
                    exec(block, names)
                if words and words[0] in block:
                    return

    def inside(self):
        """Return a folder of its own, which is the current one until the test ends."""
        folder, before = self.folder(), os.getcwd()
        os.chdir(folder)
        self.addCleanup(os.chdir, before)
        return folder

    def test_its_python_runs_in_order(self):
        folder = self.inside()
        (folder / "prices.csv").write_bytes(b'\xef\xbb\xbfid,price\r\n1,19.99\r\n2,"5,50"\r\n')
        self.run_blocks({})
        outcome = (folder / "outcome.csv").read_text("utf-8").splitlines()
        self.assertEqual(outcome, ["1,19.99,COMPLETED,", '2,"5,50",COMPLETED,'])
        products = self.ecwid.shop.items["products"]
        self.assertEqual((products[1]["price"], products[2]["price"]), (19.99, 5.5))
        self.assertEqual(sorted(p["name"] for p in products.values())[2:], ["b", "r"])
        self.assertEqual(sorted(os.listdir(folder)), ["outcome.csv", "prices.csv"])
        csv = next(block for block in self.blocks("python") if "import csv" in block)
        before = len(self.ecwid.requests)
        for line in (",3", "7", '7,"1,234"', "7,nan", "7,19,99"):
            text = f"id,price\n1,2\n{line}\n"
            (folder / "prices.csv").write_text(text, "utf-8")
            self.fails(lambda: exec(csv, {}), SystemExit, "prices.csv, row 3: ")
        self.assertEqual(len(self.ecwid.requests), before)
        (folder / "prices.csv").write_text("id,price\n1,2\n7,3\n", "utf-8")
        words = "of 2 requests, 1 failed; the first: request 000002 (PUT /products/7)"
        self.fails(lambda: exec(csv, {}), BatchFailedError, words)
        self.ecwid.faults = ["html 404"]  # an old outcome is not left for a new one
        self.fails(lambda: exec(csv, {}), ApiError, "HTTP 404")
        self.assertEqual((folder / "outcome.csv").read_text("utf-8"), "")

    def test_all_pages_of_a_search_are_read(self):
        self.ecwid.shop.stock(2345)
        (block,) = [block for block in self.blocks("python") if "def every" in block]
        names = {"client": self.ecwid.client(), "BatchRequest": BatchRequest}
        exec(block, names)
        self.assertEqual([p["id"] for p in names["products"]], list(range(1, 2346)))
        self.assertEqual(self.ecwid.shop.items["products"][1]["price"], 19.99)
        self.assertEqual(len(self.ecwid.ledger), 1 + 23 + 1)

    def test_a_plan_runs_once_wherever_the_script_dies(self):
        folder, names = self.inside(), {}
        (folder / "prices.csv").write_text("id,price\n1,2\n", "utf-8")
        self.run_blocks(names, "def every")
        (block,) = [block for block in self.blocks("python") if "def run_plan" in block]
        exec(block.partition("\nrun_plan(")[0], names)
        client, made = self.ecwid.client(), []

        def make():
            have = {product["sku"] for product in names["every"](client, "/products", "sku")}
            made.append([sku for sku in skus(30) if sku not in have])
            return [BatchRequest.post("/products", {"name": sku, "sku": sku}) for sku in made[-1]]

        def dies_at(step, times):
            """Return a patch of a function, which kills the script the first time or later."""
            left = iter(range(times))
            real = eval(step)

            def die(*args, **options):
                if next(left, None) is None:
                    raise Killed
                return real(*args, **options)

            return mock.patch(step, die)

        for step, times in (
            ("os.replace", 0),
            ("pathlib.Path.read_text", 0),
            ("ecwid_batch.EcwidClient._look", 1),
            ("pathlib.Path.unlink", 0),
            ("pathlib.Path.unlink", 1),
        ):
            with dies_at(step, times), self.assertRaises(Killed):
                names["run_plan"](client, "autumn", make)
        names["run_plan"](client, "autumn", make)
        self.assertEqual(sorted(ran(self.ecwid)), sorted(skus(30)))
        self.assertEqual(sorted(os.listdir(folder)), ["outcome.csv", "prices.csv"])

    def test_an_outage_of_one_of_many_stores_holds_up_nobody(self):
        folder, names = self.inside(), {}
        (block,) = [block for block in self.blocks("python") if "def sync_all" in block]
        exec(block, names)
        with contextlib.ExitStack() as stack:
            stores = [stack.enter_context(StandIn(store_id=n, latency=1)) for n in range(1, 8)]
            urls = {store.store_id: store.base_url for store in stores}
            make = functools.partial(gets, 3)
            jobs = [(store.store_id, store.token, make) for store in stores]
            stores[1].faults = ["reset after"]  # an outage that passes
            jobs[2] = (3, "another", make)
            jobs[3] = (4, None, make)
            jobs[6] = (7, jobs[6][1], lambda: {}["a bug"])
            jobs[4] = (5, jobs[4][1], list)  # nothing to do
            stores[5].script = lambda call: (400, {"errorMessage": "no"})

            def client(store_id, token, **options):
                self.assertEqual(options, {"max_retry_time": 20, "http_timeout": 20})
                base_url = urls[store_id]
                return EcwidClient(store_id, token, base_url=base_url, max_retry_time=0)

            names["EcwidClient"] = client
            found = dict(names["sync_all"](jobs))
            expected = {3: "HTTP 403", 4: "both store_id and", 6: "3 failed", 7: "a bug"}
            for store_id, words in expected.items():
                self.assertIn(words, str(found.pop(store_id)))
            self.assertEqual(found, {})
            ran = [len(store.ledger) for store in stores]
            self.assertEqual(ran, [3, 6, 0, 0, 0, 3, 0])  # 6: a PUT does no harm twice
        self.assertEqual(os.listdir(folder), [])

    def test_the_recipe_for_events_goes_on_until_the_job_is_done(self):
        handler, _ = self.recipe(0)
        self.ecwid.latency = 0.2
        event = {"id": KEY, "detail": {"prices": {str(n): 5.5 for n in range(1, 1201)}}}
        self.ecwid.shop.stock(1200)
        for seconds, kind in ((65, BatchTimeoutError), (65, BatchTimeoutError), (900, None)):
            if kind is None:
                handler(event, self.context(seconds))
            else:
                self.fails(lambda s=seconds: handler(event, self.context(s)), kind)
        self.assertEqual(len(self.ecwid.ledger), 1200)
        event = {"id": str(uuid.uuid4()), "detail": {"prices": {"1": 2, "9999": 3}}}
        error = self.fails(lambda: handler(event, self.context(60)), BatchFailedError)
        self.assertIn(
            "of 2 requests, 1 failed; the first: request 000002 (PUT /products/9999)", str(error)
        )

    def test_the_recipe_for_sqs_passes_on_what_failed_and_reports_what_is_to_come_again(self):
        handler, sqs = self.recipe(1)
        now = time.time()

        def record(id, body, age=0):
            first = {"ApproximateFirstReceiveTimestamp": str(int(1000 * (now - age)))}
            return {"messageId": id, "body": body, "attributes": first}

        calls = [
            {"method": "PUT", "path": f"/products/{n}", "body": {"price": 1}} for n in (9, 1, 2)
        ]
        records = [
            record("a", json.dumps(calls)),
            record("a", json.dumps(calls)),
            record("b", "no batch"),
            record("c", json.dumps(calls), age=1900),
        ]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            again = handler({"Records": records}, self.context(60))
        self.assertEqual(
            again, {"batchItemFailures": [{"itemIdentifier": "b"}, {"itemIdentifier": "c"}]}
        )
        self.assertIn("c received first over half an hour ago", out.getvalue())
        self.assertEqual(len(self.ecwid.ledger), 3)
        sent = json.loads(sqs.send_message.call_args[1]["MessageBody"])
        self.assertEqual([item["path"] for item in sent], ["/products/9"])

    @unittest.skipUnless(shutil.which("sh"), "needs a shell")
    def test_its_shell_commands_run(self):
        folder = self.folder()
        put = '{"method": "PUT", "path": "/products/1", "body": {"price": 7}}'
        (folder / "export").write_text(f"#!/bin/sh\necho '{put}'\n", "utf-8")
        (folder / "export").chmod(0o755)
        (folder / "nightly.jsonl.journal").write_text("of a night that was interrupted", "utf-8")
        (folder / "nightly.jsonl.failed.journal").write_text("of a repair that was", "utf-8")
        given = [f"export {name}={value}\n" for name, value in self.ecwid.environment.items()]
        (folder / "ecwid.env").write_text("".join(given), "utf-8")
        program = f"{sys.executable} {HERE / 'ecwid_batch.py'}"
        first, nightly, stock = self.blocks("sh")
        for shell in (first, nightly, stock, stock.replace("date +%s", "echo another night")):
            done = subprocess.run(
                ["sh", "-c", shell.replace("python3 ecwid_batch.py", program)],
                cwd=folder,
                env={**CLEAN_ENV, **(self.ecwid.environment if shell is first else {})},
                capture_output=True,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            if shell is first:
                self.assertIn(b"2 requests in 1 batch, nothing sent", done.stdout)
            else:  # so that cron sends nothing
                self.assertEqual((done.stdout, done.stderr), (b"", b""))
        self.assertEqual(self.ecwid.shop.items["products"][1]["price"], 7)
        left = ["done", "ecwid.env", "export", "nightly.jsonl", "nightly.out", "prices.jsonl"]
        self.assertEqual(sorted(os.listdir(folder)), [*left, "responses.jsonl", "stock.out"])
        self.assertEqual(len(os.listdir(folder / "done")), 4)

    def test_it_names_what_there_is_and_is_short(self):
        for name in set(ecwid_batch.__all__) - {"main", "BatchStatus", "BatchResponse"}:
            self.assertIn(name, self.text)
        for name in ("submit", "wait", "status", "cancel", "delete", "find", "run", "stream"):
            self.assertIn(f"client.{name}(", self.text)
        for command in ("python3 test_ecwid_batch.py demo", "python3 -m unittest"):
            self.assertIn(f"    {command}\n", self.text)
        self.assertLessEqual(self.text.count("\n"), 297)


class Documentation(TestCase):
    @unittest.skipIf(sys.flags.optimize > 1, "docstrings are left out")
    def test_everything_public_is_explained(self):
        for name in ecwid_batch.__all__:
            thing = getattr(ecwid_batch, name)
            self.assertTrue(thing.__doc__ and not thing.__doc__.startswith(name), name)
            for part, member in vars(thing).items():
                is_property = isinstance(member, property)
                member = getattr(member, "__func__", member)
                if not part.startswith("_") and (callable(member) or is_property):
                    self.assertTrue(member.__doc__, f"{name}.{part}")

    @unittest.skipIf(sys.flags.optimize > 1, "docstrings are left out")
    def test_its_manual_page_begins_with_its_use_and_its_promises(self):
        page = pydoc.plain(pydoc.render_doc(ecwid_batch))
        for words in ("client = EcwidClient()", "No request runs twice", "Run any number of"):
            self.assertTrue(words in page, words)


if __name__ == "__main__":
    sys.exit(main())
