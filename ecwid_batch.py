"""Run batches of Ecwid REST calls: nothing lost, nothing run twice.

    from ecwid_batch import Batch, BatchRequest, EcwidClient

    client = EcwidClient.from_env()                      # ECWID_STORE_ID and ECWID_TOKEN
    status = client.run(Batch([
        BatchRequest.get("/orders", {"limit": 1, "email": "buyer@example.com"}),
        BatchRequest.put("/products/42", {"price": 19.99}),
    ]))
    for response in status:                              # one for every request, in their order
        print(response.request.path, response.http_status_code, response.body)

Any number of requests, from any iterable, in flat memory: `for response in client.stream(requests): ...`.

The promises:

- One response per request, in the order of the requests. What Ecwid did not run is one too: NOT_EXECUTED.
- Exactly once. A batch carries a deduplication key, so a submission whose outcome is unknown is sent again and still
  runs once. An error carries the key and the tickets: with them this program, or the next one, goes on.
- What the caller can see is wrong is a ValueError or TypeError before anything is sent; all else is an EcwidError.
- The token goes to Ecwid and nowhere else: to no redirect, log, message or repr.

"Reference" below is Ecwid's REST API reference. The command line: `python3 ecwid_batch.py --help`.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import dataclasses
import datetime
import email.utils
import functools
import http.client
import itertools
import json
import math
import os
import random
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib

TYPE_CHECKING = False  # at run time; importing typing would slow a cold start. uuid, logging and argparse can wait too
if TYPE_CHECKING:
    import argparse
    import logging
    from typing import IO, Any, Callable, Generator, Iterable, Iterator, Mapping, NoReturn, Optional, TypeVar

    T = TypeVar("T")
    Params = Optional[Mapping[str, Any]]
    OnProgress = Optional[Callable[["BatchStatus"], object]]

__version__ = "1.0.0"

__all__ = [
    "BatchRequest", "Batch", "BatchResponse", "BatchStatus", "EcwidError", "ApiError", "RateLimitError",
    "TransportError", "InvalidResponseError", "BatchTimeoutError", "BatchFailedError", "EcwidClient", "main",
]


# --- Requests and batches --------------------------------------------------------------------------------------------

_MAX_REQUESTS = 500  # of one batch; reference: "Create batch request"
_METHODS = ("GET", "POST", "PUT", "DELETE")
_PLAIN_PATH = re.compile("(?:/[A-Za-z0-9_-]+)+").fullmatch  # most paths: nothing in them to check or to encode


@dataclasses.dataclass(frozen=True)
class BatchRequest:
    """One REST call of a batch.

    method  "GET", "POST", "PUT" or "DELETE"
    path    relative to the store, with its query if there is one: "/orders?limit=1". Spaces and non-ASCII characters
            are percent-encoded; what is encoded already stays
    body    what JSON can hold, and Decimal; None sends no body. No binary data: a file or image goes as a URL in the
            externalUrl parameter of the call
    id      tells its response from the others; None: the batch gives one

    Of the `params` of `get`, `post`, `put` and `delete`, None is left out, a bool is "true" or "false", a list is
    joined with commas, all is percent-encoded.
    A wrong argument is a ValueError or TypeError that says how to write it. Reference: "Create batch request".
    """

    method: str
    path: str
    body: Any = None
    id: str | None = None

    def __init__(self, method: str, path: str, body: Any = None, id: str | None = None) -> None:
        if method not in _METHODS:
            raise ValueError(f"method must be one of {', '.join(_METHODS)}, not {method!r}")
        if not isinstance(path, str):
            raise TypeError(f"path must be a str such as '/products', not {type(path).__name__}")
        if not _PLAIN_PATH(path):
            path = _encoded_path(path)
        if id is not None:
            _check_text("id", id)
        fields = self.__dict__  # the way in past `frozen`
        fields["method"], fields["path"], fields["body"], fields["id"] = method, path, body, id

    @classmethod
    def get(cls, path: str, params: Params = None, *, id: str | None = None) -> BatchRequest:
        """A GET of `path`, with `params` as its query."""
        return cls("GET", _with_params(path, params), None, id)

    @classmethod
    def post(cls, path: str, body: Any = None, params: Params = None, *, id: str | None = None) -> BatchRequest:
        """A POST of `body` to `path`, with `params` as its query."""
        return cls("POST", _with_params(path, params), body, id)

    @classmethod
    def put(cls, path: str, body: Any = None, params: Params = None, *, id: str | None = None) -> BatchRequest:
        """A PUT of `body` to `path`, with `params` as its query."""
        return cls("PUT", _with_params(path, params), body, id)

    @classmethod
    def delete(cls, path: str, params: Params = None, *, id: str | None = None) -> BatchRequest:
        """A DELETE of `path`, with `params` as its query."""
        return cls("DELETE", _with_params(path, params), None, id)

    @classmethod
    def _from_json(cls, item: Any, where: str) -> BatchRequest:
        """The request that parsed JSON describes; `where` it stands goes into the error."""
        try:
            if not isinstance(item, dict) or not item.keys() >= {"method", "path"}:
                raise ValueError("must be an object with method and path")
            for name in item.keys() - {"id", "path", "method", "body"}:
                raise ValueError(f"has an unknown field {name!r}; the fields are id, path, method, body")
            return cls(**item)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None


def _encoded_path(path: str) -> str:
    """The path, percent-encoded; ValueError if it could lead out of the store or holds what a path must not."""
    route, _, query = path.partition("?")
    while route != (decoded := urllib.parse.unquote(route)):  # %2e%2e; %252e%252e, for a server that decodes twice
        route = decoded
    if {"token", "access_token"} & dict(urllib.parse.parse_qsl(query, keep_blank_values=True)).keys():
        raise ValueError("path must not hold a token: the client sends its own")  # nor does this message
    if not path.startswith("/") or path.startswith("//"):
        raise ValueError(f"path must be like '/orders', without https://.../api/v3/{{storeId}}, not {path!r}")
    if any(re.split("[;?#\0]", segment)[0].strip() == ".." for segment in re.split(r"[/\\]", route)):
        raise ValueError(f"path must stay inside the store, without a '..' segment, not {path!r}")
    if "#" in path:
        raise ValueError(f"path must not have a fragment (a '#' that is meant is written %23), not {path!r}")
    if re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", path):
        raise ValueError(f"path must not hold control characters or lone surrogates, not {path!r}; percent-encode them")
    return urllib.parse.quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", path), safe="/?%:@!$&'()*+,;=")


def _with_params(path: str, params: Params) -> str:
    if params is None:
        return path
    if not hasattr(params, "items"):
        raise TypeError(f"params must be a mapping such as {{'limit': 1}}, not {type(params).__name__}")
    pairs = []
    for name, value in params.items():
        _check_text("the name of a parameter", name)
        if value is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            texts = [urllib.parse.quote(_text(name, item), safe="") for item in values]
            pairs.append(f"{urllib.parse.quote(name, safe='')}={','.join(texts)}")
    return path + ("&" if "?" in path else "?") + "&".join(pairs) if pairs else path


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or hasattr(value, "__iter__") and not isinstance(value, str):
        raise TypeError(f"parameter {name} must be text, a number, a bool or a list of them, not {value!r}")
    return str(value)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must not be empty")


@dataclasses.dataclass(frozen=True)
class Batch:
    """1 to 500 requests, and how Ecwid shall run them.

    requests               any iterable of BatchRequest; a missing id is given by position, from "000001" on
    allow_parallel_mode    True: up to 100 at once. Ecwid's default: one after another
    stop_on_first_failure  False: go on after a failure; a request that met a 5XX is tried 5 times, 3 s apart.
                           Ecwid's default: the first failure ends the batch, the rest are NOT_EXECUTED
    deduplication_key      a UUID: for an hour, batches with one key are one batch. "new" makes one; None sends none:
                           then only a submission that surely did not run is tried again
    group_id               a name by which to cancel the batch

    None leaves an option to Ecwid. A batch is a snapshot: its JSON is made here, once. ValueError and TypeError name
    the request that is wrong. Reference: "Create batch request", Query params.
    """

    requests: tuple[BatchRequest, ...]
    allow_parallel_mode: bool | None
    stop_on_first_failure: bool | None
    deduplication_key: str | None
    group_id: str | None

    def __init__(
        self, requests: Iterable[BatchRequest], *, allow_parallel_mode: bool | None = None,
        stop_on_first_failure: bool | None = None, deduplication_key: str | None = "new", group_id: str | None = None,
    ) -> None:
        for flag in (allow_parallel_mode, stop_on_first_failure):
            if flag is not None and not isinstance(flag, bool):
                raise TypeError(f"allow_parallel_mode and stop_on_first_failure must be a bool or None, not {flag!r}")
        if group_id is not None:
            _check_text("group_id", group_id)
        named = _with_ids(tuple(itertools.islice(requests, _MAX_REQUESTS + 1)))
        vars(self).update(
            requests=named, allow_parallel_mode=allow_parallel_mode, stop_on_first_failure=stop_on_first_failure,
            deduplication_key=_checked_key(deduplication_key), group_id=group_id, _json=_serialized(named),
        )

    @classmethod
    def from_json(cls, text: str | bytes, **options: Any) -> Batch:
        """The batch of a JSON array as in the reference; `options` as of Batch. ValueError says where it is wrong."""
        items = _parsed(text, "the batch")
        if not isinstance(items, list):
            raise ValueError(f"the batch must be a JSON array of requests, not {type(items).__name__}")
        return cls([BatchRequest._from_json(item, f"request {n}") for n, item in enumerate(items, 1)], **options)

    @classmethod
    def split(cls, requests: Iterable[BatchRequest], **options: Any) -> Iterator[Batch]:
        """Batches of up to 500 from any iterable, read as they are asked for; `options` as of Batch.

        Each has a key of its own, made of `deduplication_key`, its position and its content (UUID 5): the same input
        under the same key gives the same batches again, and no two share one.
        """
        key = _checked_key(options.pop("deduplication_key", "new"))
        source = iter(requests)
        chunks = iter(lambda: list(itertools.islice(source, _MAX_REQUESTS)), [])
        return (cls._part(chunk, key, str(number), options) for number, chunk in enumerate(chunks, 1))

    @classmethod
    def _part(cls, requests: list[BatchRequest], base_key: str | None, place: str, options: dict[str, Any]) -> Batch:
        batch = cls(requests, deduplication_key=None, **options)
        if base_key is not None:
            import uuid

            key = uuid.uuid5(uuid.UUID(base_key), f"{place}:{batch.to_json().decode()}")
            vars(batch)["deduplication_key"] = str(key)
        return batch

    def _rerun(self, ids: set[str | None], attempt: int, options: dict[str, Any]) -> Batch:
        """A further batch of some of the requests, as they were when this one was made."""
        from decimal import Decimal

        rows = json.loads(self.to_json(), parse_float=Decimal)
        requests = [BatchRequest(**row) for row in rows if row["id"] in ids]
        return self._part(requests, self.deduplication_key, f"retry {attempt}", options)

    @property
    def query(self) -> dict[str, str]:
        """The query parameters that will be sent."""
        options = {
            "allowParallelMode": self.allow_parallel_mode, "stopOnFirstFailure": self.stop_on_first_failure,
            "deduplicationKey": self.deduplication_key, "groupId": self.group_id,
        }
        return {name: _text(name, value) for name, value in options.items() if value is not None}

    def to_json(self) -> bytes:
        """The body that will be sent: a JSON array."""
        json_array: bytes = vars(self)["_json"]
        return json_array

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.requests)


def _with_ids(requests: tuple[BatchRequest, ...]) -> tuple[BatchRequest, ...]:
    if not 1 <= len(requests) <= _MAX_REQUESTS:
        found = "more" if requests else "none"
        raise ValueError(f"a batch holds 1 to {_MAX_REQUESTS} requests, not {found}; Batch.split takes any number")
    taken = set()
    for position, request in enumerate(requests, 1):
        if not isinstance(request, BatchRequest):
            kind = type(request).__name__
            raise TypeError(f"request {position} must be a BatchRequest, not {kind}; Batch.from_json reads JSON")
        if request.id in taken:
            raise ValueError(f"request id {request.id!r} is repeated; only its id tells a response from the others")
        if request.id is not None:
            taken.add(request.id)
    named = []
    for position, request in enumerate(requests, 1):
        if request.id is None:
            while (id := f"{position:06d}") in taken:
                position += 1
            taken.add(id)
            fields, request = request.__dict__, object.__new__(BatchRequest)  # a copy, without the checks again
            request.__dict__.update(fields)
            request.__dict__["id"] = id
        named.append(request)
    return tuple(named)


def _checked_key(key: str | None) -> str | None:
    import uuid

    try:
        return None if key is None else str(uuid.uuid4() if key == "new" else uuid.UUID(str(key)))
    except ValueError:
        raise ValueError(f"deduplication_key must be a UUID such as {uuid.uuid4()}, not {key!r}") from None


_DECIMAL = f"decimal {os.urandom(16).hex()} "  # marks a Decimal till its quotes are off; nothing else begins like it


def _serialized(requests: tuple[BatchRequest, ...]) -> bytes:
    items = [vars(request) for request in requests]
    items = [item if item["body"] is not None else {k: item[k] for k in ("id", "path", "method")} for item in items]
    try:
        text = json.dumps(items, allow_nan=False, default=_json_default)
    except (TypeError, ValueError, RecursionError) as error:
        for request in requests if len(requests) > 1 else ():
            _serialized((request,))  # raises at the one that it is
        culprit, kind = requests[0], TypeError if isinstance(error, TypeError) else ValueError
        name = f"request {culprit.id} ({culprit.method} {culprit.path})"
        raise kind(f"{name}: its body cannot be JSON: {error}") from None
    return (re.sub(f'"{_DECIMAL}([^"]+)"', r"\1", text) if _DECIMAL in text else text).encode()


def _json_default(value: object) -> str:
    from decimal import Decimal

    if isinstance(value, Decimal):
        return f"{_DECIMAL}{value}" if value.is_finite() else _not_json(str(value))
    hint = "; name a URL in externalUrl instead" if isinstance(value, (bytes, bytearray, memoryview)) else ""
    raise TypeError(f"a {type(value).__name__} is not of JSON{hint}")


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not of JSON")


_decode = json.JSONDecoder(parse_constant=_not_json).decode  # json.loads, but for its NaN and Infinity


def _parsed(text: str | bytes, what: str) -> Any:
    """The value of a JSON text in UTF-8, or a ValueError that says what is none."""
    try:
        return _decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = re.sub(r": line 1 (column \d+) .*", r" at \1", str(error))
        raise ValueError(f"{what} is not JSON: {reason}") from None


# --- Responses and statuses ------------------------------------------------------------------------------------------

_STATUSES = ("QUEUED", "IN_PROGRESS", "COMPLETED")
_TEXT, _NUMBER = (str, type(None)), (int, type(None))
_LEFT_OUT = "Ecwid sent no response for this request"
_CANCELLED = "cancelled before it ran"
_NEVER_SENT = "not submitted, since an earlier request failed"


@dataclasses.dataclass(frozen=True)
class BatchResponse:
    """What became of one request.

    id                 as the request's
    status             "COMPLETED", "FAILED" (its HTTP status was not 200) or "NOT_EXECUTED"
    http_status_code   None where there is none
    http_status_line   the reason; of a failed request, its error message
    http_body, escaped_http_body   as Ecwid sends them, one or the other; `body` reads both
    request            the BatchRequest; always there from `run` and `stream`

    Reference: "Get batch request status", responses.
    """

    id: str | None
    status: str
    http_status_code: int | None = None
    http_status_line: str | None = None
    http_body: Any = None
    escaped_http_body: str | None = None
    request: BatchRequest | None = None

    @functools.cached_property
    def body(self) -> Any:
        """The answer's JSON, parsed when first looked at; its text if it is not JSON; None if there is none."""
        if self.escaped_http_body is None:
            return self.http_body
        try:
            return _decode(self.escaped_http_body)
        except (ValueError, RecursionError):
            return self.escaped_http_body

    @property
    def ok(self) -> bool:
        """Whether the request ran and succeeded."""
        return self.status == "COMPLETED"

    @property
    def error_message(self) -> str | None:
        """Why the request failed or did not run; None if it succeeded."""
        return None if self.ok else _error_fields(self.body)[0] or self.http_status_line or self.status

    @property
    def error_code(self) -> str | None:
        """Ecwid's code for it, such as "WRONG_PARAMETER", or None."""
        return None if self.ok else _error_fields(self.body)[1]

    @property
    def retryable(self) -> bool:
        """Whether asking again can help and cannot do harm: after a 408 or 429, after a 5XX of a GET, PUT or DELETE,
        and if it was not executed (but for a POST that Ecwid sent no response for: it may have run)."""
        harmless = self.request is not None and self.request.method != "POST"
        if self.status == "NOT_EXECUTED":
            return harmless or self.http_status_line != _LEFT_OUT
        code = self.http_status_code or 0
        return not self.ok and (code in (408, 429) or code >= 500 and harmless)

    @classmethod
    def _from_dict(cls, row: Any) -> BatchResponse:
        get = row.get if type(row) is dict else {}.get
        id, status, line, escaped = get("id"), get("status"), get("httpStatusLine"), get("escapedHttpBody")
        code = get("httpStatusCode", get("httpCode"))  # httpCode: so in an example of the older reference
        texts = type(id) in _TEXT and type(line) in _TEXT and type(escaped) in _TEXT
        if not texts or type(status) is not str or type(code) not in _NUMBER:
            raise InvalidResponseError("a response in the batch status is not of the promised form")
        if status == "COMPLETED" and code is None:
            status, line = "NOT_EXECUTED", _CANCELLED  # "Cancel batch group": it counts as COMPLETED and never runs
        return cls(id, status, code, line, get("httpBody"), escaped)

    def _to_dict(self) -> dict[str, Any]:
        row = {
            "id": self.id, "status": self.status, "httpStatusCode": self.http_status_code,
            "httpStatusLine": self.http_status_line, "httpBody": self.http_body,
            "escapedHttpBody": self.escaped_http_body,
        }
        return {name: value for name, value in row.items() if value is not None}


def _error_fields(body: Any) -> tuple[str | None, str | None]:
    """Message and code of an error answer; the older reference has error_message in an example."""
    fields = body if isinstance(body, dict) else {}
    message, code = fields.get("errorMessage", fields.get("error_message")), fields.get("errorCode")
    return message if isinstance(message, str) else None, code if isinstance(code, str) else None


@dataclasses.dataclass(frozen=True)
class BatchStatus:
    """How far a batch is: "QUEUED", "IN_PROGRESS" or "COMPLETED" (all that will run has run), and its responses, where
    they were asked for. Iteration, len() and status["000001"] (or KeyError) are about the responses.

    Reference: "Get batch request status".
    """

    ticket: str | None
    status: str
    total_requests: int = 0
    completed_requests: int = 0
    responses: tuple[BatchResponse, ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BatchStatus:
        """Read an answer of the API as it is, or what `to_dict` gave. InvalidResponseError if it is neither."""
        get = data.get if isinstance(data, dict) else {}.get
        ticket, rows, counts = get("ticket"), get("responses"), (get("totalRequests", 0), get("completedRequests", 0))
        right = get("status") in _STATUSES and type(ticket) in _TEXT and type(rows) in (list, type(None))
        if not right or any(type(count) is not int or not 0 <= count < 1 << 63 for count in counts):
            raise InvalidResponseError(f"no batch status: an object with a status of {', '.join(_STATUSES)} and counts")
        return cls(ticket, data["status"], *counts, tuple(map(BatchResponse._from_dict, rows or ())))

    def to_dict(self) -> dict[str, Any]:
        """The status in the API's own field names, with the ticket: JSON can hold it, `from_dict` reads it back."""
        fields: dict[str, Any] = {
            "ticket": self.ticket, "status": self.status,
            "totalRequests": self.total_requests, "completedRequests": self.completed_requests,
        }
        if self.responses:
            fields["responses"] = [response._to_dict() for response in self.responses]
        return fields

    @property
    def done(self) -> bool:
        """Whether all that will run has run."""
        return self.status == "COMPLETED"

    @property
    def succeeded(self) -> tuple[BatchResponse, ...]:
        """The responses that are `ok`."""
        return tuple(response for response in self.responses if response.ok)

    @property
    def failed(self) -> tuple[BatchResponse, ...]:
        """The responses of requests that ran and failed."""
        return tuple(response for response in self.responses if response.status not in ("COMPLETED", "NOT_EXECUTED"))

    @property
    def not_executed(self) -> tuple[BatchResponse, ...]:
        """The responses of requests that did not run."""
        return tuple(response for response in self.responses if response.status == "NOT_EXECUTED")

    def raise_for_failures(self) -> None:
        """Raise BatchFailedError unless every request succeeded."""
        bad = self.failed + self.not_executed
        if bad:
            name = f"{bad[0].id} ({bad[0].request.method} {bad[0].request.path})" if bad[0].request else bad[0].id
            counts = f"{len(self.failed)} of {len(self)} requests failed, {len(self.not_executed)} did not run"
            words = f"{counts}; the first, request {name}: {bad[0].error_message}"
            raise BatchFailedError(words, failed=bad, tickets=(self.ticket,) if self.ticket else ())

    def __getitem__(self, id: str) -> BatchResponse:
        for response in self.responses:
            if response.id == id:
                return response
        raise KeyError(id)

    def __iter__(self) -> Iterator[BatchResponse]:
        return iter(self.responses)

    def __len__(self) -> int:
        return len(self.responses)

    def _of(self, batch: Batch) -> BatchStatus:
        """This status with exactly one response for each request of the batch, in their order."""
        found = {response.id: response for response in self.responses}
        unnamed = [response for response in self.responses if response.id is None]
        missing = [request.id for request in batch if request.id not in found]
        if unnamed and len(unnamed) == len(missing) and not batch.allow_parallel_mode:
            found.update(zip(missing, unnamed))  # they ran one after another, so their order tells them apart
        found.pop(None, None)
        if self.total_requests not in (0, len(batch)) or found.keys() - {request.id for request in batch}:
            raise InvalidResponseError("the ticket is of another batch; was its deduplication key used before?")
        lost = BatchResponse(None, "NOT_EXECUTED", None, _LEFT_OUT)
        matched = ((found.get(request.id, lost), request) for request in batch)
        responses = (dataclasses.replace(response, id=request.id, request=request) for response, request in matched)
        return dataclasses.replace(self, responses=tuple(responses))

    def _worth_retrying(self, stops: bool) -> set[str | None]:
        """The ids of what `stream` runs again. Requests that did not run are among them only if a retryable failure
        stopped the batch: otherwise somebody cancelled it."""
        cancelled = any(response.http_status_line == _CANCELLED for response in self.responses)
        if not self.failed or cancelled or stops and not all(response.retryable for response in self.failed):
            return set()
        again = self.failed + self.not_executed if stops else self.failed
        return {response.id for response in again if response.retryable}


# --- Errors ----------------------------------------------------------------------------------------------------------

# What is known of a failed call: no use to repeat it; nobody knows if it ran; it did not run. The order matters: a call
# that can be repeated is tried again from _UNKNOWN on, any other one at _NOT_RUN only.
_FINAL, _UNKNOWN, _NOT_RUN = range(3)


class EcwidError(Exception):
    """A call to Ecwid that failed, with what it takes to go on, where that is known:

    tickets            of the batches that are at Ecwid, oldest first; `ticket`: the first of them
    deduplication_key  submit the same batch (stream the same requests) with it within the hour, and nothing runs twice
    retry_after        seconds to wait, if the answer asked for a pause
    """

    tickets: tuple[str, ...] = ()
    deduplication_key: str | None = None
    retry_after: float | None = None
    _outcome = _FINAL

    def __init__(self, *args: object, **facts: Any) -> None:
        super().__init__(*args)
        vars(self).update(facts)

    @property
    def ticket(self) -> str | None:
        """The first of the tickets, or None."""
        return self.tickets[0] if self.tickets else None

    def __str__(self) -> str:
        tickets = f" [ticket {', '.join(self.tickets)}]" if self.tickets else ""
        key = f" [deduplication key {self.deduplication_key}]" if self.deduplication_key else ""
        return f"{super().__str__()}{tickets}{key}"


class ApiError(EcwidError):
    """An error answer. `code` and `message` are Ecwid's, or None. Reference: "Errors"."""

    http_status: int = 0
    code: str | None = None
    message: str | None = None


class RateLimitError(ApiError):
    """429: the token made over 600 calls a minute. A call before `retry_after` has passed prolongs the block."""


class TransportError(EcwidError):
    """No usable answer: DNS, TLS, refused, reset, timed out, cut off, a redirect (none is followed)."""


class InvalidResponseError(EcwidError):
    """An answer that is not what the API promises."""


class BatchTimeoutError(EcwidError, TimeoutError):
    """The caller's timeout is over; what was submitted goes on at Ecwid. `last_status`: what was last seen, or None."""

    last_status: BatchStatus | None = None


class BatchFailedError(EcwidError):
    """From `raise_for_failures`. `failed`: the responses of the requests that failed or did not run."""

    failed: tuple[BatchResponse, ...] = ()


@contextlib.contextmanager
def _noting(**facts: Any) -> Iterator[None]:
    """Set these attributes of an error that passes; of a KeyboardInterrupt too, for the command line."""
    try:
        yield
    except (EcwidError, KeyboardInterrupt) as error:
        vars(error).update(facts)
        raise


# --- Client ----------------------------------------------------------------------------------------------------------

_BACKOFF_FIRST, _BACKOFF_CAP = 0.5, 30.0  # seconds
_RETRY_AFTER_CAP = 60.0  # seconds; a longer pause is the caller's to plan
_KEY_LIFETIME = 3600.0  # seconds that Ecwid remembers a deduplication key; reference: "Create batch request"
_MAX_ANSWER = 256 * 1024 * 1024  # bytes, decompressed
_ADVICE = {
    401: "check the token",
    402: "check the plan of the store",
    403: "check the token, and that it holds the access scopes of every request in the batch",
    404: "check the store id, the ticket and the base URL",
}


@dataclasses.dataclass(frozen=True)
class EcwidClient:
    """The batch endpoints of one store. It cannot change: one client serves any number of threads.

    store_id     a positive integer, or its digits
    token        the access token, "secret_..." or "public_..."
    base_url     HTTPS, or HTTP to loopback (where no proxy is asked)
    timeout      seconds for one exchange, from the name look-up to the last byte of the answer
    max_retries  how many more tries a call gets, after full-jitter exponential backoff from 0.5 s to 30 s. Retry-After
                 is obeyed; one of more than 60 s, or past the caller's own timeout, is raised
    opener       a urllib.request.OpenerDirector of your own; else urllib's handlers, with the proxies and the CA bundle
                 of the environment, but none for redirects

    What is wrong here or in an argument is a ValueError or TypeError; every method can raise ApiError, RateLimitError,
    TransportError and InvalidResponseError.
    """

    store_id: int
    token: str = dataclasses.field(repr=False)
    base_url: str
    timeout: float
    max_retries: int
    opener: urllib.request.OpenerDirector | None = dataclasses.field(repr=False)

    def __init__(
        self, store_id: int | str, token: str, *, base_url: str = "https://app.ecwid.com/api/v3", timeout: float = 60.0,
        max_retries: int = 4, opener: urllib.request.OpenerDirector | None = None,
    ) -> None:
        if isinstance(store_id, str) and re.fullmatch("[0-9]{1,18}", store_id):
            store_id = int(store_id)
        if isinstance(store_id, bool) or not isinstance(store_id, int) or store_id < 1:
            raise ValueError("store_id must be a positive integer such as 1003")  # not shown: it may be the token
        if not isinstance(token, str) or not re.fullmatch("[!-~]+", token):
            raise ValueError("token must be visible ASCII, without spaces or a newline (it is not shown here)")
        _check_number("timeout", timeout, (int, float), 0.001, 86400)
        _check_number("max_retries", max_retries, int, 0)
        vars(self).update(
            store_id=store_id, token=token, base_url=_checked_base_url(base_url), timeout=timeout,
            max_retries=max_retries, opener=opener,
        )

    @classmethod
    def from_env(cls, **options: Any) -> EcwidClient:
        """The client of ECWID_STORE_ID, ECWID_TOKEN and, if set, ECWID_BASE_URL; `options`, as of EcwidClient, win."""
        for option in ("store_id", "token", "base_url"):
            value = os.environ.get(f"ECWID_{option.upper()}")
            if value:
                options.setdefault(option, value)
        missing = [f"ECWID_{option.upper()}" for option in ("store_id", "token") if option not in options]
        if missing:
            raise ValueError(f"set {' and '.join(missing)} in the environment")
        return cls(**options)

    def submit(self, batch: Batch) -> str:
        """Submit a batch: its ticket, to be kept anywhere. Reference: "Create batch request"."""
        return self._submit(batch, math.inf)

    def status(self, ticket: str, *, responses: bool = True) -> BatchStatus:
        """How far a batch is, with or without the responses so far. Reference: "Get batch request status"."""
        with _noting(tickets=(ticket,)):
            return self._status(ticket, responses, math.inf)

    def wait(self, ticket: str, *, timeout: float | None = None, on_progress: OnProgress = None) -> BatchStatus:
        """Follow a submitted batch to its end: its status, with the responses as Ecwid sends them, `request` unset.

        timeout      seconds, after which, and no later, BatchTimeoutError is raised; None: as long as it takes
        on_progress  called with the status, without responses, at every look
        """
        return self._follow(ticket, _deadline(timeout), on_progress)

    def run(self, batch: Batch, *, timeout: float | None = None, on_progress: OnProgress = None) -> BatchStatus:
        """Submit a batch and follow it: a status with exactly one response for each request, in their order.

        `timeout` and `on_progress` as of `wait`. An error has the ticket and the deduplication key.
        """
        deadline = _deadline(timeout)
        ticket = self._submit(batch, deadline)
        with _noting(deduplication_key=batch.deduplication_key):
            return self._follow(ticket, deadline, on_progress)._of(batch)

    def stream(
        self, requests: Iterable[BatchRequest], *, retry: int = 0, max_in_flight: int = 2,
        timeout: float | None = None, on_progress: OnProgress = None, **batch_options: Any,
    ) -> Generator[BatchResponse, None, None]:
        """Run any number of requests, read as they are needed: their responses, one each, in their order.

        retry          how often what is `retryable` of a batch is run again, as a further batch
        max_in_flight  how many batches are at Ecwid at once. With stop_on_first_failure (the default) it is one: the
                       next is submitted when all of the one before has succeeded; after a failure none is, and the
                       rest of the responses are NOT_EXECUTED
        timeout        seconds for the whole job
        on_progress    as of `wait`, for the oldest batch at Ecwid
        batch_options  as of Batch. deduplication_key is the job's: the same requests under the same key find their
                       tickets again, for an hour, instead of running twice

        An error has the tickets and the job's key. One that `requests` raises is passed on as it is, after the
        responses of what was submitted before it.
        """
        _check_number("retry", retry, int, 0)
        _check_number("max_in_flight", max_in_flight, int, 1)
        key = _checked_key(batch_options.pop("deduplication_key", "new"))
        return self._stream(requests, retry, max_in_flight, _deadline(timeout), on_progress, key, batch_options)

    def cancel(self, group_id: str, *, ticket: str | None = None) -> int:
        """Stop what has not run of a group's batches: Ecwid's updateCount. Reference: "Cancel batch group"."""
        _check_text("group_id", group_id)
        query = {"groupId": group_id}
        if ticket is not None:
            query["ticketId"] = ticket  # required by the newer reference; the official client goes without
        return self._call("POST", "/batch/cancel-group", query, lambda answer: _field(answer, "updateCount", int))

    def delete(self, ticket: str) -> int:
        """Stop what has not run of a batch and forget it: Ecwid's deleteCount. Reference: "Delete batch request"."""
        _check_text("ticket", ticket)
        query = {"ticketId": ticket, "ticket": ticket}  # the newer reference's name, and the older one's
        with _noting(tickets=(ticket,)):
            return self._call("DELETE", "/batch", query, lambda answer: _field(answer, "deleteCount", int))

    def find(self, status: str, *, offset: int = 0, limit: int = 100) -> list[BatchStatus]:
        """The batches that have the status, at most 100 from `offset` on: tickets, without counts or responses."""
        if status not in _STATUSES:
            raise ValueError(f"status must be one of {', '.join(_STATUSES)}, not {status!r}")
        _check_number("offset", offset, int, 0)
        _check_number("limit", limit, int, 1, 100)

        def read(answer: Any) -> list[BatchStatus]:
            items = answer if isinstance(answer, list) else _field(answer, "items", list)  # the reference shows neither
            return [BatchStatus.from_dict(item) for item in items]

        return self._call("GET", "/batch", {"status": status, "offset": str(offset), "limit": str(limit)}, read)

    # From here on a deadline is a time of time.monotonic(), math.inf for none.

    def _submit(self, batch: Batch, deadline: float) -> str:
        if not isinstance(batch, Batch):
            kind = type(batch).__name__
            raise TypeError(f"batch must be a Batch, such as Batch([BatchRequest.get('/profile')]), not {kind}")
        deadline = min(deadline, time.monotonic() + _KEY_LIFETIME)  # a try after that could run it twice
        with _noting(deduplication_key=batch.deduplication_key):
            return self._call(
                "POST", "/batch", batch.query, lambda answer: _field(answer, "ticket", str), deadline,
                body=batch.to_json(), repeatable=batch.deduplication_key is not None,
            )

    def _status(self, ticket: str, responses: bool, deadline: float) -> BatchStatus:
        _check_text("ticket", ticket)
        query = {"ticket": ticket, "escapedJson": "true"} if responses else {"ticket": ticket}
        status = self._call("GET", "/batch", query, BatchStatus.from_dict, deadline)
        return dataclasses.replace(status, ticket=ticket)

    def _follow(self, ticket: str, deadline: float, on_progress: OnProgress) -> BatchStatus:
        """Look at the batch, sooner where its progress so far foretells its end and else ever more seldom, till it is
        done; then fetch the responses."""
        begun = now = idle = time.monotonic()  # idle: when nothing was completed yet
        left, cost, last = math.inf, 0.0, None  # seconds: to the foretold end; that a look takes
        try:
            while True:
                waited = now - begun
                pause = min(max(left, 0.25 + 0.05 * waited), 0.25 + 0.6 * waited, 1.5 + 0.08 * waited)
                pause = min(pause, deadline - now - 2.5 * cost)  # in time for a last look, and to fetch the responses
                if pause <= 0:
                    raise BatchTimeoutError("the timeout is over, but the batch is not done; wait for its ticket again")
                time.sleep(pause)
                looked = time.monotonic()
                last = self._status(ticket, False, deadline)
                now = time.monotonic()
                whole = self._status(ticket, True, deadline) if last.done else last
                if on_progress:
                    on_progress(last)
                if whole.done:
                    return whole
                cost, now = now - looked, time.monotonic()  # on_progress may have taken its time
                if last.completed_requests:
                    left = (now - idle) * (last.total_requests / last.completed_requests - 1)
                else:
                    idle = now
        except (EcwidError, KeyboardInterrupt) as error:
            vars(error).update(tickets=(ticket,), last_status=last)
            raise

    def _stream(
        self, requests: Iterable[BatchRequest], retry: int, room: int, deadline: float, on_progress: OnProgress,
        key: str | None, options: dict[str, Any],
    ) -> Generator[BatchResponse, None, None]:
        stops = options.get("stop_on_first_failure") is not False
        room = 1 if stops else room
        batches = Batch.split(requests, deduplication_key=key, **options)
        in_flight: collections.deque[tuple[Batch, str]] = collections.deque()  # in Ecwid's order: oldest first
        ready: Iterator[BatchResponse] = iter(())
        end: Exception | None = None  # of `batches`: StopIteration, or what the caller's iterable raised
        try:
            while True:
                while len(in_flight) < room:
                    try:
                        batch = next(batches)
                    except Exception as error:  # noqa: PERF203
                        room, end = 0, error
                    else:
                        in_flight.append((batch, self._submit(batch, deadline)))
                yield from ready  # only now, so that Ecwid has work while the caller works on these
                if not in_flight:
                    break
                batch, ticket = in_flight[0]
                status = self._follow(ticket, deadline, on_progress)._of(batch)
                for attempt in range(1, retry + 1):
                    again = status._worth_retrying(stops)
                    if not again:
                        break
                    part = batch._rerun(again, attempt, options)
                    _pause(_backoff(attempt), deadline)
                    in_flight[0] = part, self._submit(part, deadline)
                    rerun = self._follow(in_flight[0][1], deadline, on_progress)._of(part)
                    kept = (response for response in status if response.id not in again)
                    status = dataclasses.replace(status, responses=(*kept, *rerun))._of(batch)
                in_flight.popleft()
                ready = iter(status.responses)
                if stops and len(status.succeeded) < len(batch):
                    room = 0
        except (EcwidError, KeyboardInterrupt) as error:
            if isinstance(error, EcwidError):
                yield from ready  # what came before the submission that failed
            vars(error).update(tickets=tuple(ticket for _, ticket in in_flight), deduplication_key=key)
            raise
        for batch in batches:  # what a failure left over
            for request in batch:
                yield BatchResponse(request.id, "NOT_EXECUTED", None, _NEVER_SENT, request=request)
        if end and not isinstance(end, StopIteration):
            raise end

    def _call(
        self, method: str, path: str, query: dict[str, str], read: Callable[[Any], T], deadline: float = math.inf, *,
        body: bytes | None = None, repeatable: bool = True,
    ) -> T:
        """What `read` makes of the JSON that answers a call. Every call goes through here: it is tried again if it
        surely did not run and, where it is repeatable, if nobody knows."""
        attempt = 0
        while True:
            attempt += 1
            seconds = min(self.timeout, deadline - time.monotonic())
            if seconds <= 0:
                raise BatchTimeoutError(f"the timeout is over, {method} {path} was not sent")
            try:
                return read(self._exchange(self._request(method, path, query, body), seconds))
            except EcwidError as error:
                if error._outcome < (_UNKNOWN if repeatable else _NOT_RUN):
                    raise
                left, asked = deadline - time.monotonic(), error.retry_after or 0
                if left <= 0:
                    raise BatchTimeoutError(f"the timeout is over; last: {error}") from None
                if attempt > self.max_retries or asked > min(_RETRY_AFTER_CAP, left):
                    raise
                pause = max(_backoff(attempt), asked)
                _logger().warning("%s; trying again in %.1f s (%d of %d)", error, pause, attempt, self.max_retries)
                _pause(pause, deadline)

    def _request(self, method: str, path: str, query: dict[str, str], body: bytes | None) -> urllib.request.Request:
        url = f"{self.base_url}/{self.store_id}{path}"
        if query:
            url += "?" + urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
        headers = {
            "Accept": "application/json", "Accept-Encoding": "gzip", "Cache-Control": "no-cache",
            "User-Agent": f"ecwid_batch/{__version__}",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(url, body, headers, method=method)
        # Unredirected: urllib does not take it along, should the caller's own opener follow a redirect.
        request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return request

    def _exchange(self, request: urllib.request.Request, seconds: float) -> Any:
        """Send a request: the JSON of its answer, or an ApiError, TransportError, InvalidResponseError."""
        method, path = request.get_method(), request.selector.partition("?")[0]
        name = f"{method} {request.full_url.partition('?')[0]}"
        begun, outcome, size = time.monotonic(), "no answer", 0
        try:
            opener = self._opener  # made here: a TLS context half made in an abandoned thread crashes Python's exit
            status, headers, body = _within(seconds, lambda: _receive(opener, request, seconds))
            outcome, size = str(status), len(body)
        except EcwidError as error:
            error.args = (f"{name}: {self._shown(error.args[0])}",)
            raise
        finally:
            milliseconds = 1000 * (time.monotonic() - begun)
            _logger().debug("%s %s: %s, %.0f ms, %d bytes", method, path, outcome, milliseconds, size)
        if not 200 <= status < 300:
            raise self._refusal(name, status, headers, body)
        try:
            return _parsed(body, "the answer")
        except ValueError as error:
            raise InvalidResponseError(f"{name}: {error}", _outcome=_UNKNOWN) from None

    def _refusal(self, name: str, status: int, headers: Any, body: bytes) -> EcwidError:
        if status < 200:
            return TransportError(f"{name}: HTTP {status}, without a final answer", _outcome=_UNKNOWN)
        if 300 <= status < 400:
            advice = "no redirect is followed, since it would take the token along; check base_url"
            return TransportError(f"{name}: HTTP {status}; {advice}")
        answer = None
        with contextlib.suppress(ValueError):  # that it is not JSON: nothing, or a proxy's page
            answer = _parsed(body, "the answer")
        message, code = (text and self._shown(text) for text in _error_fields(answer))
        pause = _retry_after(headers)
        words = [f"{name}: HTTP {status}", code, message or http.client.responses.get(status), _ADVICE.get(status)]
        words += [f"not to be called again within {pause:g} s"] if pause else []
        return (RateLimitError if status == 429 else ApiError)(
            "; ".join(filter(None, words)), http_status=status, code=code, message=message, retry_after=pause,
            _outcome=_NOT_RUN if status == 429 else _UNKNOWN if status == 408 or status >= 500 else _FINAL,
        )

    def _shown(self, text: object) -> str:
        """Text from outside on one short line, with the token masked, should it be echoed."""
        words = "".join(c if c.isprintable() else " " for c in str(text).replace(self.token, "***"))
        return " ".join(words.split())[:300]

    @functools.cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        if self.opener is not None:
            return self.opener
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme == "https":
            tls = _tls_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
            transport: urllib.request.BaseHandler = urllib.request.HTTPSHandler(context=tls)
        else:
            transport = urllib.request.HTTPHandler()
        opener = urllib.request.OpenerDirector()  # without handlers of errors and redirects: each answer comes as it is
        opener.add_handler(transport)
        opener.add_handler(urllib.request.ProxyHandler({} if _is_loopback(parts.hostname) else None))
        return opener


@functools.lru_cache(maxsize=None)
def _tls_context(*ca_bundle: str | None) -> ssl.SSLContext:
    """One for all clients, since loading the CA bundle costs ten times a call; a new one if its place has changed."""
    return ssl.create_default_context()


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What work() returns or raises, if it does so in time. urllib's timeout bounds each wait for the network but not
    their sum, nor the look-up of a name: only another thread, abandoned when the time is up, bounds it all."""
    outcome: list[Any] = []
    done = _thread.allocate_lock()
    done.acquire()

    def target() -> None:
        try:
            outcome[:] = work(), None
        except BaseException as error:
            outcome[:] = None, error
        done.release()

    try:
        _thread.start_new_thread(target, ())  # threading's own bookkeeping would cost as much again
    except RuntimeError as refusal:  # too many threads
        raise TransportError(str(refusal), _outcome=_NOT_RUN) from None
    if not done.acquire(timeout=seconds):
        raise TransportError(f"no whole answer within {seconds:.3g} s", _outcome=_UNKNOWN)
    result: T
    result, error = outcome
    if error is not None:
        raise error
    return result


def _receive(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request, seconds: float
) -> tuple[int, Any, bytes]:
    """Open the request and read its answer to the end: HTTP status, headers, body."""
    ends = time.monotonic() + seconds
    try:
        try:
            response = opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as error:  # an answer too, from the caller's own opener
            response = error
            if error.fp is None:
                return error.code, error.headers or {}, b""
        with response:
            status, headers = getattr(response, "status", None) or response.getcode(), response.headers or {}
            try:
                return status, headers, _body(response, headers, ends)
            except Exception:
                if 200 <= status < 300:
                    raise
                return status, headers, b""  # the status of an error, and Retry-After, count without a whole body
    except EcwidError:
        raise
    except Exception as error:  # whatever urllib, http.client, zlib or the caller's opener raise
        reason = getattr(error, "reason", None)
        cause = reason if isinstance(reason, Exception) else error
        outcome = _NOT_RUN if isinstance(cause, (socket.gaierror, ConnectionRefusedError)) else _UNKNOWN
        outcome = _FINAL if isinstance(cause, ssl.SSLCertVerificationError) else outcome
        raise TransportError(f"{type(cause).__name__}: {cause}", _outcome=outcome) from None  # it may quote the token


def _body(response: Any, headers: Any, ends: float) -> bytes:
    """The whole body of an answer, decompressed."""
    body, size = bytearray(), 0
    unzip = zlib.decompressobj(31) if headers.get("Content-Encoding", "").lower() == "gzip" else None
    length = getattr(response, "length", None)  # the Content-Length, as http.client reads it
    whole = math.inf if length is None else length
    read = getattr(response, "read1", response.read)  # read would wait for a whole chunk, however slow
    while size < whole and not (unzip and unzip.eof):
        data = read(65536)
        if not data:
            break
        size += len(data)
        body += unzip.decompress(data, _MAX_ANSWER + 1 - len(body)) if unzip else data
        if len(body) > _MAX_ANSWER:
            raise InvalidResponseError(f"the answer is larger than {_MAX_ANSWER} bytes")
        if time.monotonic() > ends:
            raise TransportError("no whole answer in time", _outcome=_UNKNOWN)
    if not unzip.eof if unzip else size < whole < math.inf:
        raise TransportError(f"the answer is cut off after {size} bytes", _outcome=_UNKNOWN)
    return bytes(body)


def _retry_after(headers: Any) -> float | None:
    """Retry-After in seconds, be it seconds or an HTTP date; None if there is none that makes sense."""
    until, now = _http_date(headers.get("Retry-After")), _http_date(headers.get("Date"))
    if until is not None:
        seconds = until - (time.time() if now is None else now)  # by the server's own clock, if it tells
    else:
        try:
            seconds = float(headers.get("Retry-After") or "")
        except ValueError:
            return None
    return seconds if 0 <= seconds < math.inf else None


def _http_date(text: str | None) -> float | None:
    try:
        date = email.utils.parsedate_tz(text or "")
        return None if date is None else email.utils.mktime_tz(date)
    except (TypeError, ValueError, IndexError, OverflowError):  # of odd dates, differing by Python's version
        return None


def _backoff(attempt: int) -> float:
    return random.uniform(0, min(_BACKOFF_CAP, _BACKOFF_FIRST * 2 ** min(attempt - 1, 9)))


def _pause(seconds: float, deadline: float) -> None:
    if time.monotonic() + seconds >= deadline:
        raise BatchTimeoutError("the timeout leaves no time to try again")
    time.sleep(seconds)


def _deadline(timeout: float | None) -> float:
    if timeout is None:
        return math.inf
    _check_number("timeout", timeout, (int, float), -math.inf)  # 0 or less: the caller's own time is up
    return time.monotonic() + max(-1e9, min(timeout, 1e9))


def _check_number(name: str, value: float, kind: type | tuple[type, ...], low: float, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} must be {'a whole number' if kind is int else 'seconds'}, not {value!r}")
    if not low <= value <= high:
        limits = f"from {low} to {high}" if high < math.inf else f"{low} or more"
        raise ValueError(f"{name} must be {limits}, not {value!r}")


def _checked_base_url(url: str) -> str:
    host, authority = "", r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(:\d+)?"
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        parts = urllib.parse.urlsplit(url)
        if re.fullmatch(authority, parts.netloc) and parts.port != 0:
            host = (parts.hostname or "").encode("idna").decode()
    if not host or not re.fullmatch("[!-~]+", url) or re.search(r"[\\@?#%]", url):
        raise ValueError("base_url must be like 'https://app.ecwid.com/api/v3', without user, query and fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ValueError("base_url must begin with https://; over http:// anybody on the way could read the token")
    return url.rstrip("/")


def _is_loopback(host: str | None) -> bool:
    import ipaddress

    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _field(answer: Any, name: str, kind: type[T]) -> T:
    value: Any = answer.get(name) if isinstance(answer, dict) else None
    fits = type(value) is kind
    if not fits or kind is str and not (value and value.isprintable()) or kind is int and value < 0:
        raise InvalidResponseError(f"the answer has no {name}, or not of the promised kind")
    found: T = value
    return found


def _logger() -> logging.Logger:
    import logging

    return logging.getLogger("ecwid_batch")


# --- Command line ----------------------------------------------------------------------------------------------------

_HELP = """\
Run batches of Ecwid REST calls. The store and its token come from the environment: ECWID_STORE_ID, ECWID_TOKEN (or
--token-file) and, for another host than Ecwid's, ECWID_BASE_URL.

FILE holds a JSON array of requests as in Ecwid's reference, or one request a line, any number; - is standard input:
  {"method": "PUT", "path": "/products/42", "body": {"price": 19.99}}

Exit status: 0 all requests succeeded, 1 some failed or did not run, 2 wrong usage or input, 3 Ecwid or the network
failed, 4 timed out, 130 interrupted."""

_COMMANDS = {
    "run": ("submit, follow, print one JSON line per response", "ecwid-batch run --continue-on-failure prices.jsonl"),
    "submit": ("submit all batches at once, print the tickets, stop", "ecwid-batch submit --group night prices.jsonl"),
    "wait": ("follow a submitted batch to its end, print its responses", "ecwid-batch wait TICKET --timeout 600"),
    "status": ("print the progress of a batch, as JSON", "ecwid-batch status TICKET --responses"),
    "cancel": ("stop the requests of a group that have not run yet", "ecwid-batch cancel night"),
    "delete": ("stop the requests of a batch that have not run yet, forget it", "ecwid-batch delete TICKET"),
    "list": ("print the batches that have a status", "ecwid-batch list IN_PROGRESS"),
}


def _parser() -> argparse.ArgumentParser:
    import argparse

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("ecwid-batch", description=_HELP, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"ecwid-batch {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, example) in _COMMANDS.items():
        epilog = f"Example: {example}"
        command = commands.add_parser(name, help=text, description=text, epilog=epilog, allow_abbrev=False)
        option = command.add_argument
        if name in ("run", "submit"):
            option("input", metavar="FILE", help="a JSON array, or one JSON object per line; - for standard input")
            option("--parallel", action="store_true", help="run up to 100 requests of a batch at once")
            option("--continue-on-failure", action="store_true", help="do not stop at the first failed request")
            option("--group", metavar="ID", help="a name by which to cancel the job")
            option("--deduplication-key", metavar="UUID", default="new", help="of your own, or of a job to go on with")
            option("--dry-run", action="store_true", help="print the HTTP requests, the token masked; send nothing")
        if name in ("status", "wait", "delete"):
            option("ticket", metavar="TICKET")
        if name == "run":
            option("--retry", metavar="N", type=int, default=0, help="run what can safely be repeated N times more")
        if name in ("run", "wait"):
            option("--timeout", metavar="S", type=float, help="seconds to wait for the end; then exit status 4")
        if name == "status":
            option("--responses", action="store_true", help="with the responses so far")
        if name == "cancel":
            option("group", metavar="GROUP")
            option("--ticket", metavar="T", help="the ticket of one of the batches")
        if name == "list":
            option("status", metavar="STATUS", choices=_STATUSES, help=", ".join(_STATUSES))
        option("--token-file", metavar="FILE", help="read the token from a file instead of ECWID_TOKEN")
        option("--base-url", metavar="URL", help="instead of ECWID_BASE_URL or Ecwid's own")
        option("-q", "--quiet", action="store_true", help="no progress, no summary")
        option("-v", "--verbose", action="store_true", help="log every exchange")
    return parser


class _Report:
    """What a user sees of a job: responses on standard output; on standard error progress, if it is a terminal, a
    summary, and what went wrong."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.live = args, sys.stderr.isatty() and not args.quiet
        self.begun, self.total, self.sent = time.monotonic(), 0, False
        self.counts = {"succeeded": 0, "failed": 0, "did not run": 0}

    def progress(self, status: BatchStatus) -> None:
        self.sent = True
        done = sum(self.counts.values()) + status.completed_requests
        rate = done / max(time.monotonic() - self.begun, 0.001)
        of = f"/{self.total:,}" if self.total else ""
        left = f", {datetime.timedelta(seconds=max(0, self.total - done) // rate)} left" if of and rate else ""
        self.redraw(f"{done:,}{of} requests, {rate:.1f}/s{left}")

    def redraw(self, line: str = "") -> None:
        if self.live:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def response(self, response: BatchResponse) -> None:
        request = response.request
        line = {
            "id": response.id, "status": response.status, "http_status_code": response.http_status_code,
            "http_status_line": response.http_status_line, "method": request.method if request else None,
            "path": request.path if request else None, "body": response.body,
        }
        self.redraw()
        print(json.dumps(line), flush=True)
        self.counts[{"COMPLETED": "succeeded", "NOT_EXECUTED": "did not run"}.get(response.status, "failed")] += 1

    def end(self) -> int:
        total, seconds = sum(self.counts.values()), time.monotonic() - self.begun
        if not self.args.quiet:
            counts = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
            print(f"{total:,} request{'s' * (total != 1)}: {counts}; {seconds:.1f} s", file=sys.stderr)
        return 0 if self.counts["succeeded"] == total else 1

    def failure(self, error: BaseException) -> int:
        kinds = {BatchTimeoutError: 4, EcwidError: 3, KeyboardInterrupt: 130, BrokenPipeError: 130}
        code = next((code for kind, code in kinds.items() if isinstance(error, kind)), 2)
        tickets = ", ".join(getattr(error, "tickets", ()))
        self.redraw()
        words = error.args[0] if isinstance(error, EcwidError) else error
        if code == 130:
            words = "interrupted; what was submitted goes on at Ecwid"
        print(f"ecwid-batch: {words}{tickets and f' [ticket {tickets}]'}", file=sys.stderr)
        if "deduplication_key" in self.args and (self.sent or code != 2) and not self.args.dry_run:
            again = f"the same command with --deduplication-key {self.args.deduplication_key}"
            print(f"ecwid-batch: to go on, within the hour: {again}; what ran does not run again", file=sys.stderr)
        elif self.args.command == "wait" and code != 2 and not isinstance(error, ApiError):
            print(f"ecwid-batch: to go on: ecwid-batch wait {tickets or 'TICKET'}", file=sys.stderr)
        return code


def _requests(file: Iterable[bytes], report: _Report) -> Iterator[BatchRequest]:
    """The requests of a JSON array or of JSON lines, read as they are asked for. ValueError names the place."""
    found = False
    for number, line in enumerate(file, 1):
        text = line.lstrip(b"\xef\xbb\xbf \t\r\n")  # a byte order mark, white space
        if text.startswith(b"[") and not found:
            items = _parsed(b"".join([text, *file]), "the input")
            report.total = len(items)
            for position, item in enumerate(items, 1):
                yield BatchRequest._from_json(item, f"request {position}")
            found = bool(items)
        elif text:
            yield BatchRequest._from_json(_parsed(text, f"line {number}"), f"line {number}")
            found = True
    if not found:
        raise ValueError("the input holds no requests")


def _job(args: argparse.Namespace, client: EcwidClient, report: _Report, file: IO[bytes]) -> int:
    """run and submit, with or without --dry-run."""
    if report.live and file.seekable():
        report.total = sum(1 for line in file if line.strip())
        file.seek(0)
    requests = _requests(file, report)
    options = {
        "allow_parallel_mode": args.parallel or None, "deduplication_key": args.deduplication_key,
        "stop_on_first_failure": False if args.continue_on_failure else None, "group_id": args.group,
    }
    if args.command == "run" and not args.dry_run:
        options.update(retry=args.retry, timeout=args.timeout, on_progress=report.progress)
        responses = client.stream(requests, **options)
        try:
            for response in responses:
                report.response(response)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            responses.throw(error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt())  # for its tickets
        return report.end()
    for batch in Batch.split(requests, **options):
        if args.dry_run:
            request = client._request("POST", "/batch", batch.query, batch.to_json())
            headers = {**dict(request.header_items()), "Authorization": "Bearer ***"}
            lines = [f"POST {request.full_url}", *(f"{name.title()}: {value}" for name, value in headers.items())]
            print(*lines, "", batch.to_json().decode(), "", sep="\n")
        else:
            print(client.submit(batch), flush=True)
            report.sent = True
    return 0


def _command(args: argparse.Namespace, report: _Report) -> int:
    options = {"base_url": args.base_url} if args.base_url else {}
    if args.token_file:
        with open(args.token_file, encoding="utf-8") as file:
            options["token"] = file.read().strip()
    client = EcwidClient.from_env(**options)
    if args.command in ("run", "submit"):
        if args.input == "-":
            return _job(args, client, report, sys.stdin.buffer)
        with open(args.input, "rb") as file:
            return _job(args, client, report, file)
    if args.command == "wait":
        for response in client.wait(args.ticket, timeout=args.timeout, on_progress=report.progress):
            report.response(response)
        return report.end()
    if args.command == "status":
        print(json.dumps(client.status(args.ticket, responses=args.responses).to_dict()))
    elif args.command == "cancel":
        print(json.dumps({"updateCount": client.cancel(args.group, ticket=args.ticket)}))
    elif args.command == "delete":
        print(json.dumps({"deleteCount": client.delete(args.ticket)}))
    else:
        for offset in itertools.count(0, 100):
            page = client.find(args.status, offset=offset)
            for status in page:
                print(json.dumps({"ticket": status.ticket, "status": status.status}))
            if len(page) < 100:
                break
    sys.stdout.flush()
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line: returns the exit status that its --help explains."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    args = _parser().parse_args(argv)
    report = _Report(args)
    if args.verbose or args.quiet:
        import logging

        logging.basicConfig(format="%(message)s")
        _logger().setLevel(logging.DEBUG if args.verbose else logging.ERROR)
    try:
        if "deduplication_key" in args:
            args.deduplication_key = _checked_key(args.deduplication_key)
        return _command(args, report)
    except (EcwidError, OSError, TypeError, ValueError, KeyboardInterrupt) as error:
        if isinstance(error, (KeyboardInterrupt, BrokenPipeError)):
            with contextlib.suppress(OSError, ValueError):  # what a closed pipe did not take has nowhere to go
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return report.failure(error)


if __name__ == "__main__":
    sys.exit(main())
