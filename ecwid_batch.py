"""Run batches of Ecwid REST calls: nothing is lost, and nothing runs twice.

    from ecwid_batch import BatchRequest, EcwidClient

    client = EcwidClient()  # reads ECWID_STORE_ID and ECWID_TOKEN
    prices = {1: 9.95, 2: 5.50}
    requests = [BatchRequest.put(f"/products/{id}", {"price": p}) for id, p in prices.items()]
    for response in client.run(requests, stop_on_first_failure=False):
        if not response.ok:
            print(response.request.path, response.error_message)

`stream` does the same in flat memory, for any number of requests. With journal="prices.journal",
the same call goes on where a crash, a kill or a timeout ended it.

The promises:

- Every request gets exactly one response, in the order of the requests. A request that Ecwid did
  not run gets one with the status NOT_EXECUTED. If nobody can tell whether a request ran, the
  status is UNKNOWN.
- No request runs twice: within one call, whatever the network does; across calls, kills and weeks
  with a journal; and across calls that begin within half an hour under a deduplication key of your
  own, and come to each batch within the hour. With stop_on_first_failure=False, though, Ecwid
  itself tries a 5XX up to 5 times.
- Wrong arguments raise ValueError or TypeError before anything is sent. A call that fails raises
  an EcwidError that says what failed and carries what is needed to go on.
- The token reaches Ecwid and nobody else: no redirect is followed, and no log, message or repr
  shows the token.

"Reference" in this file is Ecwid's REST API reference. `python3 ecwid_batch.py --help` explains
the command line.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import email.utils
import functools
import gzip
import http.client
import io
import itertools
import json
import logging
import math
import os
import random
import re
import shutil
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import IO, Any, Callable, Optional, TypeVar, Union

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__version__ = "1.0.0"

__all__ = [
    "BatchRequest",
    "Batch",
    "BatchResponse",
    "BatchStatus",
    "EcwidError",
    "ApiError",
    "RateLimitError",
    "TransportError",
    "InvalidResponseError",
    "BatchTimeoutError",
    "BatchFailedError",
    "EcwidClient",
    "main",
]

_LOG = logging.getLogger("ecwid_batch")
_T = TypeVar("_T")
_Path = Union[str, "os.PathLike[str]"]
_Params = Optional["Mapping[str, Any]"]
_OnProgress = Optional[Callable[["BatchStatus"], object]]
_Clean = Callable[[str], str]  # shortens text from outside to one line and masks the token


# --- Requests and batches -------------------------------------------------------------------------

_MAX_REQUESTS = 500  # in one batch; reference: "Create batch request"
_METHODS = ("GET", "POST", "PUT", "DELETE")


def _text(name: str, value: object) -> str:
    """Return text as a plain str: a member of `class Status(str, Enum)` becomes its value."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}; write str(...)")
    if not value:
        raise ValueError(f"{name} must not be empty")
    value.encode()  # raises ValueError for a lone surrogate
    return str.__str__(value)


def _one_line(text: str, limit: int = 300) -> str:
    """Return text from outside as one short line that is safe in a terminal, a log and UTF-8."""
    if text.isprintable() and len(text) <= limit:
        return text
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:limit]


def _count(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 request" or "1,200 requests"."""
    if number != 1:
        noun += "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}"


def _json_default(value: object) -> object:
    """Return a Decimal as the JSON number that it is; refuse what is not JSON."""
    if isinstance(value, Decimal):
        number = json.loads(str(value))
        if Decimal(str(number)) != value:
            raise ValueError(f"a JSON number cannot hold all digits of Decimal('{value}')")
        return number
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError("bytes are not JSON; put a URL into the externalUrl parameter of the call")
    raise TypeError(f"{type(value).__name__} is not JSON")


_encode = json.JSONEncoder(allow_nan=False, default=_json_default).encode


class _SentBody:
    """The field `body` of a request: kept as the JSON text that is sent, read back from it.

    The text is in the request's `__dict__`, under the name "body". This class has `__set__`, so
    Python asks it first.
    """

    def __get__(self, request: BatchRequest | None, owner: object = None) -> Any:
        if request is None:
            return None  # the default of the field
        return json.loads(vars(request)["body"])

    def __set__(self, request: BatchRequest, body: object) -> None:
        vars(request)["body"] = _encode(body)


@dataclasses.dataclass(frozen=True, eq=False)
class BatchRequest:
    """One REST call of a batch.

    method  "GET", "POST", "PUT" or "DELETE"
    path    path and query, relative to the store, such as "/orders?limit=1". Spaces and non-ASCII
            characters are percent-encoded; what is encoded already stays as it is
    body    anything that JSON can hold, or a Decimal; None sends no body. Binary data cannot be
            sent: put a URL into the `externalUrl` parameter of the call
    id      text that identifies the response; None lets the batch number the request

    A request is a snapshot: the body becomes JSON here, so changing the object afterwards changes
    nothing. `request.body` parses what is sent, again at each access. Two requests are equal if
    they have the same id and send the same text.

    Raises ValueError or TypeError, with the way to write it instead, for what cannot be sent.
    Reference: "Create batch request", Request JSON.
    """

    method: str
    path: str
    body: Any = _SentBody()
    id: str | None = None

    def __post_init__(self) -> None:
        fields = vars(self)  # the way into a frozen dataclass
        fields["method"] = _text("method", self.method)
        fields["path"] = _checked_path(_text("path", self.path))
        if self.method not in _METHODS:
            raise ValueError(f"method must be one of {', '.join(_METHODS)}, not {self.method!r}")
        if self.id is not None:
            fields["id"] = _text("id", self.id)

    @classmethod
    def get(cls, path: str, params: _Params = None, *, id: str | None = None) -> BatchRequest:
        """Return a GET request.

        params  a mapping that is appended to the path as its query. The values are str, int, float,
                Decimal, bool ("true" or "false"), None (left out), or a list or tuple of them
                (joined with commas); everything is percent-encoded
        """
        return cls("GET", _with_params(path, params), None, id)

    @classmethod
    def post(
        cls, path: str, body: Any = None, params: _Params = None, *, id: str | None = None
    ) -> BatchRequest:
        """Return a POST request; `params` as for `get`."""
        return cls("POST", _with_params(path, params), body, id)

    @classmethod
    def put(
        cls, path: str, body: Any = None, params: _Params = None, *, id: str | None = None
    ) -> BatchRequest:
        """Return a PUT request; `params` as for `get`."""
        return cls("PUT", _with_params(path, params), body, id)

    @classmethod
    def delete(cls, path: str, params: _Params = None, *, id: str | None = None) -> BatchRequest:
        """Return a DELETE request; `params` as for `get`."""
        return cls("DELETE", _with_params(path, params), None, id)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BatchRequest):
            return NotImplemented
        return vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.method, self.path, vars(self)["body"], self.id))

    def _to_json(self, id: str) -> str:
        """Return the JSON text that a batch sends. The path needs no escapes: it is encoded."""
        text = f'"id": {_encode(id)}, "path": "{self.path}", "method": "{self.method}"'
        body = vars(self)["body"]
        if body != "null":
            text += f', "body": {body}'
        return f"{{{text}}}"


_PLAIN_PATH = re.compile("(?!/api/)(?:/[A-Za-z0-9_-]+)+").fullmatch  # nothing to check or encode


def _checked_path(path: str) -> str:
    """Return the path as it is sent. Raises ValueError, with advice, if it must not be sent."""
    if _PLAIN_PATH(path):
        return path
    route, mark, query = path.partition("?")
    names = {name.lower() for name, _ in urllib.parse.parse_qsl(query, keep_blank_values=True)}
    if names & {"token", "access_token"}:  # first, since the messages below show the path
        raise ValueError("path must not hold a token: the client sends its own")
    _check_route(route, path)
    route = route.replace("+", "%2B")  # Ecwid decodes segments as a query, where + is a space
    text = re.sub("%(?![0-9A-Fa-f]{2})", "%25", route + mark + query)
    return urllib.parse.quote(text, safe="/?%:@!$&'()*+,;=")


def _check_route(route: str, path: str) -> None:
    """Raise ValueError if the path could leave the store or is not what the caller means.

    route  what is left of the question mark
    """
    shown = f"not {_one_line(path)!r}"
    if not route.startswith("/") or route.startswith("//"):
        raise ValueError(
            f"path must be relative to the store and begin with one '/', such as '/orders', {shown}"
        )
    if "#" in path:
        raise ValueError(f"path must not have a fragment: write '#' as %23, {shown}")
    if re.search("[\x00-\x1f\x7f-\x9f]", urllib.parse.unquote(path)):
        raise ValueError(f"path must not hold control characters, percent-encoded or not, {shown}")
    segments = urllib.parse.unquote(route).split("/")[1:]
    if "." in segments or ".." in segments:
        raise ValueError(f"path must stay where it is, without a '.' or '..' segment, {shown}")
    if segments[:2] == ["api", "v3"]:
        raise ValueError(
            "path must not repeat /api/v3/{storeId}, which Ecwid adds itself: begin with what "
            f"follows it, such as '/orders', {shown}"
        )
    if not all(segment.strip() for segment in segments):
        raise ValueError(f"path must have no empty segment (is an id missing?), {shown}")


def _with_params(path: str, params: _Params) -> str:
    if params is None:
        return path
    if not isinstance(params, Mapping):
        kind = type(params).__name__
        raise TypeError(f"params must be a mapping such as {{'limit': 1}}, not {kind}")
    path = _text("path", path)
    pairs = []
    for name, value in params.items():
        if value is None:
            continue
        items = value if isinstance(value, (list, tuple)) else [value]
        texts = [urllib.parse.quote(_param_text(name, item), safe="") for item in items]
        name = urllib.parse.quote(_text("the name of a parameter", name), safe="")
        pairs.append(f"{name}={','.join(texts)}")
    if not pairs:
        return path
    mark = "&" if "?" in path else "?"
    return path + mark + "&".join(pairs)


def _param_text(name: object, value: object) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, float, Decimal)):
        return _encode(value)  # a bool is an int, and becomes true or false
    kind = type(value).__name__
    raise TypeError(f"parameter {name} must be text, a number, a bool or a list, not {kind}")


class Batch:
    """1 to 500 requests, and how Ecwid is to run them.

    requests               any iterable of BatchRequest
    allow_parallel_mode    True runs up to 100 requests at once, False one after another
    stop_on_first_failure  True ends the batch at the first failure, and the rest is NOT_EXECUTED.
                           False goes on; a request that meets a 5XX is then tried 5 times, 3 s
                           apart, by Ecwid
    deduplication_key      a UUID; None makes a new one
    group_id               a name by which the batch can be cancelled

    `requests` has the requests, `ids` what is sent as the id of each (its own, or its position from
    "000001" on), `query` the options as they are sent.

    A Batch is one job. For an hour Ecwid treats batches with the same key as one: submitting the
    same object again is safe, and returns the results of the first submission, failures included.
    Make a new Batch to run the requests again.

    Raises ValueError or TypeError for what cannot be sent, naming the request.
    Reference: "Create batch request", Query params.
    """

    def __init__(
        self,
        requests: Iterable[BatchRequest],
        *,
        allow_parallel_mode: bool = False,
        stop_on_first_failure: bool = True,
        deduplication_key: str | None = None,
        group_id: str | None = None,
        _first: int | None = None,
    ) -> None:
        """_first: the place in its job of the first request; the key is then derived from both."""
        options = _options(allow_parallel_mode, stop_on_first_failure, group_id)
        key = _checked_key(deduplication_key)
        self.requests = tuple(itertools.islice(requests, _MAX_REQUESTS + 1))
        if not self.requests:
            raise ValueError(f"a batch needs 1 to {_MAX_REQUESTS} requests, not none")
        if len(self.requests) > _MAX_REQUESTS:
            raise ValueError(f"a batch takes up to {_MAX_REQUESTS} requests; run takes any number")
        self.ids = _given_ids(self.requests, 1 if _first is None else _first)
        items = [request._to_json(id) for id, request in zip(self.ids, self.requests)]
        self._json = f"[{', '.join(items)}]"
        if _first is not None:
            key = str(uuid.uuid5(uuid.UUID(key), f"{_first} {_encode(options)} {self._json}"))
        self.deduplication_key = key
        self.query = {**options, "deduplicationKey": key}

    @classmethod
    def from_json(
        cls,
        source: str | bytes | list[Any],
        *,
        allow_parallel_mode: bool = False,
        stop_on_first_failure: bool = True,
        deduplication_key: str | None = None,
        group_id: str | None = None,
    ) -> Batch:
        """Return the batch that a JSON array describes, as text or already parsed.

        The array is that of the reference, "Create batch request", Request JSON. Raises ValueError
        that names the place of what is wrong.
        """
        items = _parse_json(source) if isinstance(source, (str, bytes)) else source
        if not isinstance(items, list):
            raise ValueError("the batch must be a JSON array of requests")
        return cls(
            [_read_request(item, f"request {place}") for place, item in enumerate(items, 1)],
            allow_parallel_mode=allow_parallel_mode,
            stop_on_first_failure=stop_on_first_failure,
            deduplication_key=deduplication_key,
            group_id=group_id,
        )

    def to_json(self) -> bytes:
        """Return the body that is sent, a JSON array."""
        return self._json.encode("ascii")

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.requests)

    def __repr__(self) -> str:
        first = self.requests[0]
        return f"<Batch of {len(self):,}: {first.method} {first.path[:60]} ...>"


def _options(
    allow_parallel_mode: bool, stop_on_first_failure: bool, group_id: str | None
) -> dict[str, str]:
    """Return the options of a batch as they are sent."""
    modes = {"allowParallelMode": allow_parallel_mode, "stopOnFirstFailure": stop_on_first_failure}
    for value in modes.values():
        if not isinstance(value, bool):
            names = "allow_parallel_mode and stop_on_first_failure"
            raise TypeError(f"{names} must be True or False, not {value!r}")
    query = {name: _encode(value) for name, value in modes.items()}
    if group_id is not None:
        query["groupId"] = _text("group_id", group_id)
    return query


def _checked_key(key: str | None) -> str:
    """Return the deduplication key in its usual form, a new one for None."""
    if key is None:
        return str(uuid.uuid4())
    key = _text("deduplication_key", key)
    try:
        return str(uuid.UUID(key))
    except ValueError:
        raise ValueError(
            f"deduplication_key must be a UUID, not {key!r}; "
            "str(uuid.uuid5(uuid.NAMESPACE_URL, text)) makes one of any text"
        ) from None


def _given_ids(requests: tuple[BatchRequest, ...], first: int) -> tuple[str, ...]:
    """Return the id of each request: its own, or its place in the job, counted from `first`."""
    places: dict[str, int] = {}
    for place, request in enumerate(requests, first):
        if not isinstance(request, BatchRequest):
            kind = type(request).__name__
            raise TypeError(f"request {place:,} must be a BatchRequest, not {kind}")
        id = request.id or f"{place:06d}"
        if id in places:
            raise ValueError(
                f"request {place:,} ({request.method} {request.path}): the id {id!r} is that of "
                f"request {places[id]:,}; give each an id of its own, or none"
            )
        places[id] = place
    return tuple(places)


def _read_request(item: Any, where: str) -> BatchRequest:
    """Return the request that parsed JSON describes. Raises ValueError that names the place."""
    known = {"method", "path", "body", "id"}
    if not isinstance(item, dict) or not {"method", "path"} <= item.keys() <= known:
        raise ValueError(f"{where} must be a JSON object with method, path and maybe body and id")
    try:
        return BatchRequest(**item)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON: write a number, or leave the field out")


def _parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text of the user. Raises ValueError for what JSON is not."""
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    return json.loads(text, parse_constant=_refuse_constant)


# --- Responses and statuses -----------------------------------------------------------------------

_STATUSES = ("QUEUED", "IN_PROGRESS", "COMPLETED")
_UNREADABLE = "Ecwid sent no response that can be read for this request; it may have run"
_DEFAULT_MESSAGES = {
    "FAILED": "failed without a reason",
    "NOT_EXECUTED": "not run, since an earlier request failed or the batch was cancelled",
}


@dataclasses.dataclass(repr=False)  # frozen would double the time that it takes to make one
class BatchResponse:
    """The outcome of one request.

    id                that of the request
    status            "COMPLETED"; "FAILED" (the call was answered with an error); "NOT_EXECUTED"
                      (the request did not run); or "UNKNOWN" (nobody can tell whether it ran)
    http_status_code  of the answer to the call, or None
    http_status_line  the reason for that code; for a failed request, the error message
    body              the parsed JSON of the answer; its text if it is not JSON; or None
    error_message     why the request failed, did not run or is unknown; None if it succeeded
    error_code        Ecwid's code of the error, such as "WRONG_PARAMETER", or None

    Reference: "Get batch request status", Response JSON.
    """

    id: str
    status: str
    http_status_code: int | None = None
    http_status_line: str | None = None
    body: Any = None
    error_message: str | None = None
    error_code: str | None = None
    _request: BatchRequest | None = None

    @property
    def request(self) -> BatchRequest:
        """The request. Raises LookupError where it is not known: after `wait` without a batch."""
        if self._request is None:
            raise LookupError("the request is not known here; pass batch= to wait()")
        return self._request

    @property
    def ok(self) -> bool:
        """Whether the request ran and succeeded."""
        return self.status == "COMPLETED"

    @property
    def retryable(self) -> bool:
        """Whether repeating the request may help and cannot do harm.

        That is so for NOT_EXECUTED, 429 and 449 (an import is in progress). It is so for a GET, PUT
        or DELETE also after 408, 5XX and for UNKNOWN: running twice does what running once does.
        "Adjust product inventory" is a PUT that adds a difference, and so not one of these.
        """
        if self.status == "NOT_EXECUTED":
            return True
        if self.status == "FAILED" and self.http_status_code in (429, 449):
            return True
        if self._request is None or not _may_run_twice(self._request):
            return False
        return self.status == "UNKNOWN" or _may_have_run(self.http_status_code)

    def __repr__(self) -> str:
        words = [self.id, self.status, self.http_status_code, self.error_message]
        text = " ".join(str(word) for word in words if word is not None)
        return f"<BatchResponse {_one_line(text, 120)}>"


@dataclasses.dataclass(frozen=True, repr=False)
class BatchStatus:
    """How far a batch, or a job of many batches, is.

    ticket              that of the batch; None from `run` and `from_dict`
    status              "QUEUED", "IN_PROGRESS" or "COMPLETED" (no more of its requests will run)
    total_requests      how many requests there are
    completed_requests  how many of them are done
    responses           the responses so far, where they were asked for

    Iteration, `in` and `status["000001"]` are about the responses.
    Reference: "Get batch request status", Response JSON.
    """

    ticket: str | None
    status: str
    total_requests: int
    completed_requests: int
    responses: tuple[BatchResponse, ...] = ()

    @classmethod
    def from_dict(cls, answer: dict[str, Any]) -> BatchStatus:
        """Return the status that an answer of the API, as parsed JSON, describes.

        Raises InvalidResponseError if it is not what the API promises.
        """
        return _read_status(answer, None, None, _one_line)

    @property
    def done(self) -> bool:
        """Whether no more of the requests will run."""
        return self.status == "COMPLETED"

    @property
    def succeeded(self) -> tuple[BatchResponse, ...]:
        """The responses that are `ok`."""
        return tuple(r for r in self.responses if r.ok)

    @property
    def failed(self) -> tuple[BatchResponse, ...]:
        """The responses of requests that failed, or of which it is unknown whether they ran."""
        return tuple(r for r in self.responses if r.status in ("FAILED", "UNKNOWN"))

    @property
    def not_executed(self) -> tuple[BatchResponse, ...]:
        """The responses of requests that did not run."""
        return tuple(r for r in self.responses if r.status == "NOT_EXECUTED")

    def raise_for_failures(self) -> None:
        """Raise BatchFailedError unless every request is known to have succeeded."""
        if len(self.succeeded) < self.total_requests:
            raise BatchFailedError(self)

    @functools.cached_property
    def _by_id(self) -> dict[str, BatchResponse]:
        return {response.id: response for response in self.responses}

    def __getitem__(self, id: str) -> BatchResponse:
        return self._by_id[id]

    def __contains__(self, id: object) -> bool:
        return id in self._by_id

    def __iter__(self) -> Iterator[BatchResponse]:
        return iter(self.responses)

    def __repr__(self) -> str:
        return f"<BatchStatus {self.status} {self.completed_requests:,}/{self.total_requests:,}>"


def _may_have_run(http_status: int | None) -> bool:
    """Return whether a call that was answered with this HTTP status may have run all the same."""
    return http_status is not None and (http_status == 408 or http_status >= 500)


def _may_run_twice(request: BatchRequest) -> bool:
    """Return whether running the request twice does what running it once does."""
    if request.method == "PUT":
        return not request.path.partition("?")[0].endswith("/inventory")
    return request.method != "POST"


def _field(data: Any, name: str, kind: type[_T]) -> _T | None:
    """Return a field of a JSON object, or None if there is none of the kind that is promised."""
    if isinstance(data, dict):
        value = data.get(name)
        if type(value) is kind:
            return value
    return None


def _read_progress(answer: Any, ticket: str | None) -> BatchStatus:
    """Return the status that an answer describes, without responses.

    Raises InvalidResponseError if the answer is no status.
    """
    status = _field(answer, "status", str)
    total = _field(answer, "totalRequests", int)
    completed = _field(answer, "completedRequests", int)
    if status not in _STATUSES or total is None or completed is None:
        raise _invalid("a batch status must have status, totalRequests and completedRequests")
    return BatchStatus(ticket, status, total, completed)


def _read_status(
    answer: Any, ticket: str | None, batch: Batch | None, clean: _Clean
) -> BatchStatus:
    """Return the status that an answer describes, with its responses.

    batch  that of the ticket: each of its requests then gets one response, in their order

    Raises InvalidResponseError if the answer is no status, or that of another batch.
    """
    status = _read_progress(answer, ticket)
    rows = _rows_by_id(_field(answer, "responses", list) or [])
    requests: dict[str, BatchRequest | None] = dict.fromkeys(rows)
    if batch is not None:
        if status.total_requests != len(batch):
            raise InvalidResponseError(
                f"the ticket belongs to another batch, of {status.total_requests:,} requests "
                f"instead of {len(batch):,}; was the deduplication key used before?"
            )
        requests = dict(zip(batch.ids, batch.requests))
    responses = tuple(
        _read_response(rows.get(id) or {}, id, request, clean) for id, request in requests.items()
    )
    return dataclasses.replace(status, responses=responses)


def _rows_by_id(rows: list[Any]) -> dict[str, dict[str, Any]]:
    """Return the rows that have an id; an empty one in place of two for the same id."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        id = _field(row, "id", str)
        if id in found:
            found[id] = {}
        elif id is not None:
            found[id] = row
    return found


def _read_response(
    row: dict[str, Any], id: str, request: BatchRequest | None, clean: _Clean
) -> BatchResponse:
    # httpCode, and error_message below, are in examples of the older reference; 0 is no code.
    code = _field(row, "httpStatusCode", int) or _field(row, "httpCode", int) or None
    line = _field(row, "httpStatusLine", str)
    if line is not None:
        line = clean(line)
    escaped = _field(row, "escapedHttpBody", str)
    body = row.get("httpBody") if escaped is None else _json_or_text(escaped)
    status, doubt = _outcome(row.get("status"), code)
    if status == "COMPLETED":
        return BatchResponse(id, status, code, line, body, None, None, request)
    message, error_code = _error_fields(body, clean)
    message = doubt or message or line or _DEFAULT_MESSAGES[status]
    return BatchResponse(id, status, code, line, body, message, error_code, request)


def _outcome(status: object, code: int | None) -> tuple[str, str | None]:
    """Return the status of a row that can be believed, and why it is in doubt if it is UNKNOWN."""
    success = code is not None and 200 <= code < 300
    if status == "COMPLETED":
        if code is None:
            return "UNKNOWN", "Ecwid says COMPLETED without a code: it ran, or it was cancelled"
        if not success:
            return "FAILED", None
        return "COMPLETED", None
    if status not in ("FAILED", "NOT_EXECUTED"):
        return "UNKNOWN", _UNREADABLE
    if success:
        return "UNKNOWN", f"Ecwid says {status}, but with code {code}, which says that it ran"
    return str(status), None


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _error_fields(body: Any, clean: _Clean) -> tuple[str | None, str | None]:
    """Return message and code of an error answer, or None for what it lacks."""
    message = _field(body, "errorMessage", str) or _field(body, "error_message", str)
    code = _field(body, "errorCode", str)
    return message and clean(message), code and clean(code)


# --- Errors ---------------------------------------------------------------------------------------


class EcwidError(Exception):
    """Base class of all failures of a call. Carries what is needed to go on.

    tickets      those of the batches at Ecwid whose responses are still to come, oldest first
    retry_after  seconds to wait before the next call, if Ecwid asked for a pause
    temporary    whether the same call may succeed later; it was tried again for `max_retry_time`
    uncertain    whether Ecwid may have acted on the call all the same
    last_status  how far the batch or the job was; from `run` with the responses so far; or None
    """

    def __init__(
        self,
        message: str,
        *,
        tickets: tuple[str, ...] = (),
        retry_after: float | None = None,
        temporary: bool = False,
        uncertain: bool = False,
        last_status: BatchStatus | None = None,
    ) -> None:
        super().__init__(message)
        self.tickets = tickets
        self.retry_after = retry_after
        self.temporary = temporary
        self.uncertain = uncertain
        self.last_status = last_status

    def __str__(self) -> str:
        text = str(self.args[0])
        if self.last_status is not None:
            done = self.last_status.completed_requests
            text += f", {done:,} of {self.last_status.total_requests:,} done"
        if self.tickets:
            text += f" [at Ecwid: ticket {', '.join(self.tickets)}]"
        return text


class ApiError(EcwidError):
    """Ecwid answered with an error. Reference: "Errors".

    http_status_code  that of the answer
    error_code        Ecwid's code, such as "WRONG_PARAMETER", or None
    error_message     Ecwid's words, or None
    """

    def __init__(
        self,
        message: str,
        *,
        http_status_code: int = 0,
        error_code: str | None = None,
        error_message: str | None = None,
        retry_after: float | None = None,
        temporary: bool = False,
        uncertain: bool = False,
    ) -> None:
        super().__init__(message, retry_after=retry_after, temporary=temporary, uncertain=uncertain)
        self.http_status_code = http_status_code
        self.error_code = error_code
        self.error_message = error_message


class RateLimitError(ApiError):
    """The token made more than 600 calls in a minute (429).

    A call before `retry_after` seconds have passed prolongs the block.
    """


class TransportError(EcwidError):
    """There is no usable answer: DNS, TLS, reset, timeout, cut off, a refused redirect."""


class InvalidResponseError(EcwidError):
    """The answer is not what the API promises."""


class BatchTimeoutError(EcwidError, TimeoutError):
    """The caller's timeout is over. What was submitted goes on at Ecwid."""


class BatchFailedError(EcwidError):
    """Not every request is known to have succeeded; raised by `raise_for_failures`.

    status, failed, not_executed  the status, and its responses of that name
    """

    def __init__(self, status: BatchStatus) -> None:
        super().__init__(_failure_text(status))
        self.status = status
        self.failed = status.failed
        self.not_executed = status.not_executed

    def __reduce__(self) -> tuple[type[BatchFailedError], tuple[BatchStatus]]:
        return BatchFailedError, (self.status,)


def _failure_text(status: BatchStatus) -> str:
    unsuccessful = status.failed + status.not_executed
    words = _outcomes(collections.Counter(response.status for response in unsuccessful))
    missing = status.total_requests - len(status.responses)
    if missing > 0:
        words.append(f"{missing:,} without a response")
    text = f"of {_count(status.total_requests, 'request')}, {', '.join(words)}"
    if not unsuccessful:
        return text
    first = unsuccessful[0]
    name = f"request {_one_line(first.id)}"
    if first._request is not None:
        name += f" ({first.request.method} {first.request.path})"
    return f"{text}; the first: {name}: {first.error_message}"


def _outcomes(counts: collections.Counter[str]) -> list[str]:
    """Return how many responses have each status, in words."""
    words = {
        "COMPLETED": "succeeded",
        "FAILED": "failed",
        "UNKNOWN": "unknown",
        "NOT_EXECUTED": "did not run",
    }
    return [f"{counts[status]:,} {word}" for status, word in words.items() if counts[status]]


def _invalid(message: str) -> InvalidResponseError:
    """Return the error of an answer that is broken and may come whole next time."""
    return InvalidResponseError(message, temporary=True, uncertain=True)


# --- One exchange ---------------------------------------------------------------------------------

_MAX_ANSWER = 256 * 1024 * 1024  # bytes, decompressed
_RATE_LIMIT_PAUSE = 10.0  # seconds after a 429 without Retry-After, as in the official client

_ADVICE = {
    401: "check the token",
    402: "check the plan of the store",
    403: "check the token, and that it has the access scopes of all requests in the batch",
    404: "check the store id, the ticket and the base URL",
}


@dataclasses.dataclass
class _Answer:
    """What came back from one exchange, whatever its HTTP status."""

    status: int
    headers: Any
    body: bytes


def _exchange(
    opener: urllib.request.OpenerDirector,
    request: urllib.request.Request,
    timeout: float,
    clean: _Clean,
) -> _Answer:
    """Send a request and return its answer.

    timeout  seconds for each wait for the network, and for the reading of the answer as a whole

    Raises TransportError if there is no usable answer, InvalidResponseError if it is too large.
    """
    origin = request.host
    try:
        try:
            response: Any = opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:  # so a caller's opener gives an error answer
            response = error
        with response:
            return _Answer(response.code, response.headers, _read_body(response, timeout))
    except (OSError, http.client.HTTPException, ValueError, EOFError, zlib.error) as error:
        proxy = None if request.host == origin else request.host
        raise _transport_error(error, proxy, clean) from None  # a cause could quote the token


def _read_body(response: Any, timeout: float) -> bytes:
    try:
        body = _received(response, time.monotonic() + timeout)
        if response.headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip"):
            with gzip.GzipFile(fileobj=io.BytesIO(body)) as unzipped:
                body = unzipped.read(_MAX_ANSWER + 1)
    except (OSError, http.client.HTTPException, EOFError, zlib.error):
        if 200 <= response.code < 300:
            raise
        return b""  # the status and Retry-After of an error count all the same
    if len(body) > _MAX_ANSWER:
        message = f"the answer is larger than {_MAX_ANSWER:,} bytes; use a smaller batch_size"
        raise InvalidResponseError(message, uncertain=True)
    return body


def _received(response: Any, deadline: float) -> bytes:
    """Return the bytes of an answer, at most one more than is allowed.

    An answer that was cut off needs no check: it is not JSON.
    """
    body = bytearray()
    while len(body) <= _MAX_ANSWER:
        chunk = response.read1(65536)  # read() would wait for all of a slow chunk
        if not chunk:
            break
        body += chunk
        if time.monotonic() > deadline:
            raise TimeoutError("timed out while the answer was read")
    return bytes(body)


def _transport_error(error: Exception, proxy: str | None, clean: _Clean) -> TransportError:
    """Return the TransportError for what was raised during an exchange.

    urllib raises URLError for what fails before the request is completely sent, and http.client
    InvalidURL or a ValueError for an address that is none: then nothing can have run.
    """
    unsent = isinstance(error, (urllib.error.URLError, http.client.InvalidURL, ValueError))
    cause: object = error
    if isinstance(error, urllib.error.URLError):
        cause = error.reason
    text = f"{type(cause).__name__}: {cause}"
    message = re.sub(r"[^\s/]+@", "***@", clean(text))  # the user and password of a proxy
    if proxy is not None:
        message += f"; check the proxy {clean(proxy)}"
    elif unsent:
        message += "; check the network and base_url"
    bundle = os.environ.get("SSL_CERT_FILE")
    if bundle and not os.path.exists(bundle):
        message += f"; SSL_CERT_FILE names {bundle}, which does not exist"
    elif isinstance(cause, ssl.SSLCertVerificationError):
        message += "; check SSL_CERT_FILE and the clock of this host"
    if not unsent:
        return TransportError(message, temporary=True, uncertain=True)
    return TransportError(message, temporary=_may_pass(cause))


def _may_pass(cause: object) -> bool:
    """Return whether waiting may help against what kept a request from being sent."""
    if not isinstance(cause, OSError):
        return False  # an address that is none
    if isinstance(cause, ssl.SSLCertVerificationError) or type(cause) is ssl.SSLError:
        return False  # not a certificate to trust, or no TLS at all
    refusal = re.match(r"Tunnel connection failed: (\d+)", str(cause))  # http.client's words
    return refusal is None or _is_temporary(int(refusal[1]))


def _is_temporary(http_status: int) -> bool:
    """Return whether the same call may succeed after an answer with this HTTP status."""
    return http_status == 429 or _may_have_run(http_status)


def _error_of(answer: _Answer, clean: _Clean) -> EcwidError:
    """Return the error for an answer whose HTTP status is not 2XX."""
    status = answer.status
    if status < 400:
        return TransportError(f"HTTP {status}: no redirect is followed; check base_url")
    body = _json_or_text(answer.body.decode("utf-8", "replace"))
    message, code = _error_fields(body, clean)
    reason = message or http.client.responses.get(status)
    pause = _retry_after(answer.headers)
    if status == 429 and pause is None:
        pause = _RATE_LIMIT_PAUSE
    words = [f"HTTP {status}", code, reason, _ADVICE.get(status)]
    if pause is not None:
        words.append(f"retry after {pause:g} s")
    kind = RateLimitError if status == 429 else ApiError
    return kind(
        "; ".join(word for word in words if word),
        http_status_code=status,
        error_code=code,
        error_message=message,
        retry_after=pause,
        temporary=_is_temporary(status),
        uncertain=_may_have_run(status),
    )


def _retry_after(headers: Any) -> float | None:
    """Return the header Retry-After in seconds, be it a number or a date; None without it."""
    text = headers.get("Retry-After") or ""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text.strip()):
        return float(text)
    try:
        date = email.utils.parsedate_to_datetime(text)
        return max(0.0, date.timestamp() - time.time())
    except (TypeError, ValueError, IndexError, OverflowError):  # which one, depends on the Python
        return None


_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1").fullmatch


def _opener_for(host: str) -> urllib.request.OpenerDirector:
    """Return the opener for a host, as the environment is now; loopback gets no proxy."""
    proxies = {} if _LOOPBACK(host) else urllib.request.getproxies()
    bundle = (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    return _shared_opener(tuple(proxies.items()), bundle)


@functools.lru_cache(maxsize=8)
def _shared_opener(
    proxies: tuple[tuple[str, str], ...], bundle: tuple[str | None, str | None]
) -> urllib.request.OpenerDirector:
    """Return one opener for all clients of a kind: loading a CA bundle takes as long as ten calls.

    The bundle is read by the ssl module; here it only tells one opener from another.
    """
    opener = urllib.request.OpenerDirector()  # without handlers for redirects and errors
    opener.add_handler(urllib.request.ProxyHandler(dict(proxies)))
    opener.add_handler(urllib.request.HTTPHandler(debuglevel=0))  # 0: prints no token
    context = ssl.create_default_context()
    opener.add_handler(urllib.request.HTTPSHandler(debuglevel=0, context=context))
    return opener


# --- The client -----------------------------------------------------------------------------------
#
# The way of a request:
#
#   BatchRequest           checks the path and makes the JSON text of the body
#   Batch                  gives it an id
#   EcwidClient.submit     POSTs the batch                _submit -> _call
#   EcwidClient.wait       polls until it is done         _follow -> _status -> _call
#   _call                  tries until it succeeds        _try -> _exchange -> urllib
#   _read_status           makes one BatchResponse for each request
#
# `stream` does the same for each batch of a job: see `_Job`. `run` is `stream`, collected.

_BASE_URL = "https://app.ecwid.com/api/v3"
_BACKOFF_FIRST = 0.5  # seconds; the longest first pause before another try
_BACKOFF_LAST = 30.0  # seconds; the longest pause that grows by doubling
_KEY_LIFETIME = 59 * 60.0  # seconds; the reference says an hour, and a submission takes its time
_PAGE_SIZE = 100  # tickets; reference: "Search batch requests", limit


class _Deadline:
    """The end of a caller's timeout, in seconds; None means that there is none."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._end = math.inf if timeout is None else time.monotonic() + timeout

    def left(self) -> float:
        return self._end - time.monotonic()

    def error(self, reason: str = "", **fields: Any) -> BatchTimeoutError:
        return BatchTimeoutError(f"{self._timeout:g} s are over{reason}", temporary=True, **fields)


_NEVER = _Deadline(None)


class EcwidClient:
    """The batch endpoints of one store.

    store_id        a positive integer, or its digits; None takes ECWID_STORE_ID
    token           the access token, such as "secret_..."; None takes ECWID_TOKEN
    base_url        HTTPS, or HTTP to loopback, which never uses a proxy; None takes
                    ECWID_BASE_URL, else Ecwid's own
    http_timeout    seconds for each wait for the network, and for the reading of an answer's body
    max_retry_time  seconds from its first failure for which a call is tried again, up to 3600.
                    Connection failures, broken answers, 408, 429 and 5XX are tried again, after
                    pauses that grow to 30 s, or as long as Retry-After says
    opener          a urllib.request.OpenerDirector to use instead of the built-in one, which takes
                    proxies and the CA bundle from the environment and follows no redirect

    Threads can share a client: a 429 holds all of them back. A client can be copied and pickled;
    the pickle holds the token.

    Every method raises ValueError or TypeError for wrong arguments before anything is sent, and
    ApiError, RateLimitError, TransportError or InvalidResponseError if the call fails.
    """

    def __init__(
        self,
        store_id: int | str | None = None,
        token: str | None = None,
        *,
        base_url: str | None = None,
        http_timeout: float = 60.0,
        max_retry_time: float = 120.0,
        opener: urllib.request.OpenerDirector | None = None,
    ) -> None:
        if store_id is None:
            store_id = os.environ.get("ECWID_STORE_ID", "")
        if token is None:
            token = os.environ.get("ECWID_TOKEN", "")
        if base_url is None:
            base_url = os.environ.get("ECWID_BASE_URL") or _BASE_URL
        if not re.fullmatch("[1-9][0-9]*", str(store_id)):  # not shown: it may be the token
            raise ValueError("set ECWID_STORE_ID, or store_id, to a positive integer")
        if not re.fullmatch("[!-~]+", token):  # a line end would be a header of its own
            raise ValueError("set ECWID_TOKEN, or token, to visible ASCII without spaces")
        if not 0 < http_timeout <= 3600:
            raise ValueError(f"http_timeout must be up to 3600 seconds, not {http_timeout!r}")
        if not 0 <= max_retry_time <= 3600:
            raise ValueError(f"max_retry_time must be 0 to 3600 seconds, not {max_retry_time!r}")
        self._host = _checked_host(base_url)
        self.store_id = int(store_id)
        self._token = token
        self.base_url = base_url.rstrip("/")
        self.http_timeout = http_timeout
        self.max_retry_time = max_retry_time
        self.opener = opener
        self._blocked_until = 0.0  # of time.time(): no call before

    def __repr__(self) -> str:
        return f"EcwidClient(store_id={self.store_id}, base_url={self.base_url!r})"

    def run(
        self,
        requests: Iterable[BatchRequest],
        *,
        journal: _Path | None = None,
        batch_size: int = _MAX_REQUESTS,
        timeout: float | None = None,
        on_progress: _OnProgress = None,
        allow_parallel_mode: bool = False,
        stop_on_first_failure: bool = True,
        deduplication_key: str | None = None,
        group_id: str | None = None,
    ) -> BatchStatus:
        """Run any number of requests; return a status with one response for each, in their order.

        The arguments are those of `stream`. All requests are read before any is sent, so an error
        of the input costs nothing. An EcwidError has the job so far in `last_status`, with the
        responses. The status is that of the whole job: its ticket is None.
        """
        options = _options(allow_parallel_mode, stop_on_first_failure, group_id)
        job = _Job(
            self, requests, options, journal, batch_size, timeout, on_progress, deduplication_key
        )
        for response in job.responses(read_all_first=True):
            job.collected.append(response)
        count = len(job.collected)
        return BatchStatus(None, "COMPLETED", count, count, tuple(job.collected))

    def stream(
        self,
        requests: Iterable[BatchRequest],
        *,
        journal: _Path | None = None,
        batch_size: int = _MAX_REQUESTS,
        timeout: float | None = None,
        on_progress: _OnProgress = None,
        allow_parallel_mode: bool = False,
        stop_on_first_failure: bool = True,
        deduplication_key: str | None = None,
        group_id: str | None = None,
    ) -> Generator[BatchResponse, None, None]:
        """Run any number of requests; yield one response for each, in their order.

        requests           any iterable of BatchRequest, read as it is needed: memory stays flat.
                           Nothing is sent before the first response is asked for
        journal            path of a file that records the job. The same call with the same journal
                           goes on where an earlier one ended, however long ago: what was submitted
                           is not submitted again, and all responses come again from the first on.
                           A journal is for one job
        batch_size         requests in a batch, 1 to 500
        timeout            seconds for the whole job; 0 or less submits nothing
        on_progress        a function that is called after each look at a batch, with its ticket and
                           status, and with the counts of the job: requests read so far, and done
        deduplication_key  a UUID for the whole job. The same call with the same key goes on, if it
                           begins within half an hour of the first and comes to each batch within an
                           hour of its first submission

        The other arguments are those of `Batch`. By default the first failure stops the job: a
        batch is submitted once the one before has finished without a failure. With
        stop_on_first_failure=False two batches are at Ecwid, one running and one queued, until
        the input ends or somebody cancels. What is UNKNOWN stops no job but one with a group, which
        may have been cancelled. The rest of a job that was stopped is NOT_EXECUTED.

        An error of `requests`, or requests that differ from those of the journal, is raised after
        the responses of what was submitted. What `requests` or `on_progress` raises passes through.
        Raises ValueError for a file that is no journal, is of another job or is in use, OSError
        for one that cannot be read, EcwidError for one that cannot be written, and
        BatchTimeoutError when the timeout is over.
        """
        options = _options(allow_parallel_mode, stop_on_first_failure, group_id)
        job = _Job(
            self, requests, options, journal, batch_size, timeout, on_progress, deduplication_key
        )
        return job.responses(read_all_first=False)

    def submit(self, batch: Batch) -> str:
        """Submit a batch and return its ticket, a str that can be kept anywhere.

        Submitting the same Batch again within the hour is safe: it returns the first ticket. Later
        it runs the requests again, since Ecwid has forgotten the batch's key.

        Reference: "Create batch request".
        """
        _check_batch(batch)
        return self._submit(batch, time.time(), _NEVER)

    def status(self, ticket: str, *, responses: bool = True) -> BatchStatus:
        """Return how far a batch is, with or without the responses so far.

        Reference: "Get batch request status".
        """
        return self._status(_text("ticket", ticket), None, _NEVER, responses=responses)

    def wait(
        self,
        ticket: str,
        *,
        batch: Batch | None = None,
        timeout: float | None = None,
        on_progress: _OnProgress = None,
    ) -> BatchStatus:
        """Wait until a submitted batch has finished; return its status with its responses.

        batch        the batch of the ticket: each of its requests then gets exactly one response,
                     in their order. Without it the responses are those that Ecwid sends, and their
                     `request` is not known
        timeout      seconds after which BatchTimeoutError is raised; 0 or less takes one look
        on_progress  a function that is called with the status after each look at the batch
        """
        if batch is not None:
            _check_batch(batch)
        _check_callable(on_progress)
        status = BatchStatus(ticket, "QUEUED", 0, 0)
        for status in self._follow(_text("ticket", ticket), batch, _Deadline(timeout)):
            if on_progress is not None:
                on_progress(status)
        return status

    def cancel(self, group_id: str, *, ticket: str | None = None) -> int:
        """Stop the requests of a group that have not run yet; return Ecwid's updateCount.

        Reference: "Cancel batch group".
        """
        query = {"groupId": _text("group_id", group_id)}
        if ticket is not None:
            query["ticketId"] = _text("ticket", ticket)  # required by the reference
        read = functools.partial(_read_count, "updateCount")
        return self._call("POST", "/batch/cancel-group", query, read)

    def delete(self, ticket: str) -> int:
        """Stop the requests of a batch that have not run, and forget it; return deleteCount.

        Reference: "Delete batch request".
        """
        ticket = _text("ticket", ticket)
        query = {"ticketId": ticket, "ticket": ticket}  # the newer reference's name, the older's
        return self._call("DELETE", "/batch", query, functools.partial(_read_count, "deleteCount"))

    def find(self, status: str) -> Iterator[str]:
        """Yield the tickets of all batches whose status is `status`.

        The tickets come in pages. A batch whose status changes between two pages may be left out.

        Reference: "Search batch requests".
        """
        if status not in _STATUSES:
            raise ValueError(f"status must be one of {', '.join(_STATUSES)}, not {status!r}")
        for offset in itertools.count(0, _PAGE_SIZE):
            query = {"status": _text("status", status), "offset": str(offset)}
            page = self._call("GET", "/batch", {**query, "limit": str(_PAGE_SIZE)}, _read_tickets)
            yield from page
            if len(page) < _PAGE_SIZE:
                return

    def _submit(self, batch: Batch, first_submitted: float, deadline: _Deadline) -> str:
        """Submit a batch whose key was first used at a time of time.time()."""
        body = batch.to_json()
        expiry = first_submitted + _KEY_LIFETIME
        return self._call("POST", "/batch", batch.query, _read_ticket, body, deadline, expiry)

    def _status(
        self, ticket: str, batch: Batch | None, deadline: _Deadline, *, responses: bool
    ) -> BatchStatus:
        query = {"ticket": ticket}
        if responses:
            query["escapedJson"] = "true"

        def read(answer: Any) -> BatchStatus:
            if not responses:  # which the older reference sends anyway
                return _read_progress(answer, ticket)
            return _read_status(answer, ticket, batch, self._clean)

        return self._call("GET", "/batch", query, read, deadline=deadline, tickets=(ticket,))

    def _follow(
        self, ticket: str, batch: Batch | None, deadline: _Deadline
    ) -> Iterator[BatchStatus]:
        """Yield a status after each look at a batch; at its end one with the responses.

        Raises BatchTimeoutError if the batch is not done when the time is over.
        """
        begun = time.monotonic()
        idle_until = begun  # when nothing was completed yet
        status: BatchStatus | None = None
        try:
            while True:
                status = self._status(ticket, batch, deadline, responses=False)
                if status.done:
                    break
                yield status
                now = time.monotonic()
                remaining = math.inf  # seconds until the estimated end
                if status.completed_requests:
                    ratio = status.total_requests / status.completed_requests
                    remaining = (now - idle_until) * (ratio - 1)
                else:
                    idle_until = now
                left = deadline.left()
                if left <= 0:
                    raise deadline.error(tickets=(ticket,))
                time.sleep(min(_next_pause(now - begun, remaining), left))
            final = self._finished(ticket, batch, deadline)
        except EcwidError as error:
            error.last_status = status
            raise
        yield final

    def _finished(self, ticket: str, batch: Batch | None, deadline: _Deadline) -> BatchStatus:
        """Return the status of a batch that is done, with its responses."""
        status = self._status(ticket, batch, deadline, responses=True)
        known = [response for response in status if response.status != "UNKNOWN"]
        if len(known) == status.total_requests or deadline.left() < 1:
            return status
        time.sleep(1)  # ask once more before believing that rows are missing
        try:
            return self._status(ticket, batch, deadline, responses=True)
        except EcwidError:
            return status

    def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        read: Callable[[Any], _T],
        body: bytes | None = None,
        deadline: _Deadline = _NEVER,
        expiry: float = math.inf,
        tickets: tuple[str, ...] = (),
    ) -> _T:
        """Return what `read` makes of the JSON that answers a call. Every call goes through here.

        deadline  the end of the caller's timeout, after which nothing is tried again
        expiry    a time of time.time(), after which Ecwid may have forgotten a submission's key
        tickets   those that an error is to carry

        This is the one rule for retries. It counts seconds from the first failure, since an outage
        lasts its time however often one asks.
        """
        name = f"{method} {self.base_url}/{self.store_id}{path}"
        uncertain = False
        give_up = math.inf  # of time.monotonic()
        tries = 0
        while True:
            tries += 1
            timeout = min(self.http_timeout, max(1.0, deadline.left()))
            try:
                return read(self._try(method, path, query, body, timeout))
            except EcwidError as caught:
                error = caught
            give_up = min(give_up, time.monotonic() + self.max_retry_time)
            error.uncertain = uncertain = uncertain or error.uncertain
            error.args = (f"{name}: {error.args[0]}",)  # here all is known
            error.tickets = tickets
            left = deadline.left()
            if error.temporary and left <= 0:
                reason = f"; the last try: {error.args[0]}"
                raise deadline.error(reason, tickets=tickets, uncertain=uncertain)
            pause = _pause_after(error, tries, left)
            if not error.temporary or pause > min(give_up - time.monotonic(), left):
                if tries > 1:
                    error.args = (f"{error.args[0]}; gave up after {tries} tries",)
                raise error
            _LOG.warning("%s; trying again in %.1f s", error.args[0], pause)
            time.sleep(pause)
            if time.time() >= expiry:  # now, not before: a laptop may have slept far longer
                raise error

    def _try(
        self, method: str, path: str, query: dict[str, str], body: bytes | None, timeout: float
    ) -> Any:
        """Send a call once and return the JSON of its answer."""
        blocked = self._blocked_until - time.time()
        if blocked > 0:
            raise RateLimitError(
                f"not sent, since an earlier call met a 429; retry after {blocked:.1f} s",
                http_status_code=429,
                retry_after=blocked,
                temporary=True,
            )
        request = self._request(method, path, query, body)
        opener = self.opener or _opener_for(self._host)
        _LOG.debug("%s %s", method, request.full_url)
        answer = _exchange(opener, request, timeout, self._clean)
        _LOG.debug("HTTP %d, %d bytes", answer.status, len(answer.body))
        if not 200 <= answer.status < 300:
            error = _error_of(answer, self._clean)
            if isinstance(error, RateLimitError) and error.retry_after is not None:
                until = time.time() + error.retry_after
                self._blocked_until = max(self._blocked_until, until)
            raise error
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise _invalid(f"the answer is not JSON: {error}") from None

    def _request(
        self, method: str, path: str, query: dict[str, str], body: bytes | None
    ) -> urllib.request.Request:
        url = f"{self.base_url}/{self.store_id}{path}?{urllib.parse.urlencode(query)}"
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "Cache-Control": "no-cache",
            "User-Agent": f"ecwid_batch/{__version__}",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(url, body, headers, method=method)
        # Unredirected: a caller's opener that follows redirects does not take the token along.
        request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        return request

    def _clean(self, text: str) -> str:
        """Return text from outside as one short line, with the token masked."""
        return _one_line(text.replace(self._token, "***"))


def _check_batch(batch: object) -> None:
    if not isinstance(batch, Batch):
        raise TypeError(f"batch must be a Batch, not {type(batch).__name__}")


def _check_callable(on_progress: object) -> None:
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress must be a function, not {type(on_progress).__name__}")


def _checked_host(base_url: str) -> str:
    """Return the host of a base URL. Raises ValueError if the token must not be sent there."""
    parts = urllib.parse.urlsplit(base_url)
    host, _ = parts.hostname, parts.port  # which raises ValueError if it is no number
    if not re.fullmatch(r"https?://[^\s?#@]+", base_url) or not host:
        raise ValueError(
            "base_url must be like https://app.ecwid.com/api/v3, without user or query"
        )
    if parts.scheme == "http" and not _LOOPBACK(host):
        raise ValueError("base_url must begin with https://: over http:// the token can be read")
    return host


def _pause_after(error: EcwidError, tries: int, left: float) -> float:
    """Return the seconds until the next try: as long as Ecwid asks for, or a growing random pause.

    left  seconds until the end of the caller's timeout, at which there is one last try
    """
    if error.retry_after is not None:
        return max(error.retry_after, _BACKOFF_FIRST)
    longest = min(_BACKOFF_LAST, _BACKOFF_FIRST * 2 ** min(tries - 1, 10))
    return min(random.uniform(0, longest), left)


def _next_pause(waited: float, remaining: float) -> float:
    """Return the seconds until the next look at a batch.

    waited     seconds waited so far
    remaining  estimated seconds until its end, math.inf if nothing is completed yet

    The next look is best at the estimated end; but not so soon that a long batch costs many calls,
    and not so late that a wrong estimate, or a short batch, is noticed late.
    """
    soonest = 0.25 + 0.05 * waited
    latest = min(0.25 + 0.6 * waited, 1.5 + 0.08 * waited)
    return min(max(remaining, soonest), latest)


def _read_ticket(answer: Any) -> str:
    ticket = _field(answer, "ticket", str)
    if not ticket or not ticket.isprintable():
        raise _invalid("the answer has no ticket")
    return ticket


def _read_tickets(answer: Any) -> list[str]:
    """Return the tickets of a page: a bare array, or an object that has it as `items`."""
    items = answer if isinstance(answer, list) else _field(answer, "items", list)
    if items is None:
        raise _invalid("the answer has no list of tickets")
    return [_read_ticket(item) for item in items]


def _read_count(name: str, answer: Any) -> int:
    count = _field(answer, name, int)
    if count is None:
        raise _invalid(f"the answer has no {name}")
    return count


# --- A job and its journal ------------------------------------------------------------------------

_INTERRUPTED = "this request was being submitted when the job was interrupted; it may have run"
_UNKNOWN_TICKET = "one whose submission may not have arrived"
_FORGOTTEN = "Ecwid does not know this request's ticket any more; it may have run"


@dataclasses.dataclass
class _Part:
    """A batch of a job, from number 1 on."""

    number: int
    batch: Batch
    record: _Record | None  # of its submission by an earlier call
    ticket: str | None = None  # None before it has come, and where it is lost for good


class _Job:
    """Any number of requests on their way through batches, in order."""

    def __init__(
        self,
        client: EcwidClient,
        requests: Iterable[BatchRequest],
        options: dict[str, str],
        journal: _Path | None,
        batch_size: int,
        timeout: float | None,
        on_progress: _OnProgress,
        deduplication_key: str | None,
    ) -> None:
        if isinstance(requests, Batch):
            raise TypeError(
                "run and stream take requests, not a Batch, which has options of its own: "
                "client.wait(client.submit(batch), batch=batch) runs a Batch"
            )
        if not 1 <= batch_size <= _MAX_REQUESTS:
            raise ValueError(f"batch_size must be 1 to {_MAX_REQUESTS}, not {batch_size!r}")
        if deduplication_key is not None:
            deduplication_key = _checked_key(deduplication_key)
        _check_callable(on_progress)
        self._client = client
        self._requests = iter(requests)
        self._options = options
        self._batch_size = batch_size
        self._deadline = _Deadline(timeout)
        self._on_progress = on_progress
        self._stops_on_failure = options["stopOnFirstFailure"] == "true"
        self._goes_on = journal is not None or deduplication_key is not None
        self._read = 0  # requests
        self._done = 0  # requests of batches that have finished
        self._window: collections.deque[_Part] = collections.deque()  # not all handed over yet
        self._submitted = False  # whether this call has submitted anything
        self.collected: list[BatchResponse] = []  # by `run`, for the error that ends the job
        self._journal = _Journal(journal, client, deduplication_key)
        self._stop = self._journal.stopped  # why nothing more is submitted, or None

    def responses(self, *, read_all_first: bool) -> Generator[BatchResponse, None, None]:
        """Yield the response of every request of the job.

        read_all_first  whether to submit nothing before all requests have been read
        """
        try:
            parts = self._parts()
            if read_all_first:
                parts = iter(list(parts))
            yield from self._in_order(parts)
            self._warn_if_nothing_was_submitted()
        finally:
            self._journal.close()
            if self._window:
                tickets = ", ".join(part.ticket or _UNKNOWN_TICKET for part in self._window)
                how = "client.wait(ticket) has the responses"
                if self._goes_on:
                    how = "the same call continues the job"
                _LOG.warning("the job was left; its batches go on at Ecwid: %s; %s", tickets, how)

    def _warn_if_nothing_was_submitted(self) -> None:
        if self._journal.records and not self._submitted:
            _LOG.warning(
                "nothing was submitted, since the journal %s has all of this job "
                "(another job needs another journal)",
                self._journal.path,
            )

    def _in_order(self, parts: Iterator[_Part]) -> Iterator[BatchResponse]:
        """Submit the next batch; when the window is full, finish the oldest and yield."""
        window_size = 1 if self._stops_on_failure else 2
        input_error: Exception | None = None
        while True:
            try:
                part = next(parts, None)
            except Exception as error:  # raised at the end, when what was submitted has finished
                input_error = error
                break
            if part is None:
                break
            if self._stop is not None and part.record is None:
                yield from self._finish_all()
                self._done += len(part.batch)
                yield from _same_for_all(part.batch, "NOT_EXECUTED", self._stop)
                continue
            self._take(part)
            if len(self._window) == window_size:
                yield from self._finish_oldest()
        yield from self._finish_all()
        if input_error is not None:
            raise input_error

    def _parts(self) -> Iterator[_Part]:
        """Yield the batches of the job. Raises ValueError if they are not those of the journal."""
        for number in itertools.count(1):
            requests = tuple(itertools.islice(self._requests, self._batch_size))
            record = self._journal.records.get(number)
            if not requests and record is None:
                return
            first = self._batch_size * (number - 1) + 1
            if not requests:
                raise self._differs(f"the input ends before request {first:,}")
            self._read += len(requests)
            batch = Batch(
                requests,
                allow_parallel_mode=self._options["allowParallelMode"] == "true",
                stop_on_first_failure=self._stops_on_failure,
                deduplication_key=self._journal.key,
                group_id=self._options.get("groupId"),
                _first=first,
            )
            if record is not None and record.key != batch.deduplication_key:
                names = f"request {first:,}"
                if len(batch) > 1:
                    names = f"requests {first:,} to {first + len(batch) - 1:,}"
                raise self._differs(f"something in {names}, or an option, has changed")
            yield _Part(number, batch, record)

    def _differs(self, what: str) -> ValueError:
        return ValueError(
            f"{what}, and the journal {self._journal.path} is of another job: go on with the "
            "requests and options that it began with, or remove the journal to give that job up "
            "(what it submitted may have run)"
        )

    def _take(self, part: _Part) -> None:
        """Put a batch into the window: submitted by an earlier call, or now."""
        record = part.record
        if record is not None:
            # A record from the future means that the clock was set back: its age is not known.
            is_safe = abs(time.time() - record.time) < _KEY_LIFETIME
            if record.ticket or not is_safe:
                part.ticket = record.ticket
                self._window.append(part)
                return
        try:
            self._submit(part)
        except EcwidError as error:
            self._take_along(error)
            raise

    def _submit(self, part: _Part) -> None:
        """Submit a batch, for the first time or, if there is a record, once more."""
        if self._deadline.left() <= 0:
            raise self._deadline.error()
        since = time.time() if part.record is None else part.record.time
        if part.record is None:
            self._journal.add_submission(part.number, part.batch, since)
        self._submitted = True
        self._window.append(part)  # from here on it may be at Ecwid
        try:
            part.ticket = self._client._submit(part.batch, since, self._deadline)
        except EcwidError as error:
            if part.record is None and not error.uncertain:
                self._window.pop()
                self._journal.add(part.number, refused=True)
            raise
        self._journal.add(part.number, ticket=part.ticket)

    def _take_along(self, error: EcwidError) -> None:
        """Move the tickets that are left from the window into an error that ends the job.

        A submission without a ticket stays in the window, for the warning that it may have arrived.
        """
        error.tickets = tuple(part.ticket for part in self._window if part.ticket)
        so_far = self._progress(error.last_status or BatchStatus(None, "QUEUED", 0, 0))
        error.last_status = dataclasses.replace(so_far, responses=tuple(self.collected))
        self._window = collections.deque(part for part in self._window if not part.ticket)

    def _progress(self, look: BatchStatus) -> BatchStatus:
        """Return a look at the oldest batch, with the counts of the job."""
        done = self._done + look.completed_requests
        return BatchStatus(look.ticket, look.status, self._read, done)

    def _finish_all(self) -> Iterator[BatchResponse]:
        while self._window:
            yield from self._finish_oldest()

    def _finish_oldest(self) -> Iterator[BatchResponse]:
        """Follow the oldest batch in the window to its end and yield its responses."""
        part = self._window[0]
        status = BatchStatus(part.ticket, "QUEUED", 0, 0)
        for status in self._looks(part):
            if self._on_progress is not None:
                self._on_progress(self._progress(status))
        self._done += len(part.batch)
        if self._stop is None:
            self._stop = self._reason_to_stop(status.responses)
            if self._stop is not None:
                self._journal.add(part.number, stopped=self._stop)
        yield from status.responses[:-1]
        try:
            yield status.responses[-1]
        except GeneratorExit:  # the caller has all responses: zip() asks for nothing after the last
            self._window.popleft()
            self._warn_if_nothing_was_submitted()
            raise
        self._window.popleft()

    def _looks(self, part: _Part) -> Iterator[BatchStatus]:
        """Yield a status after each look at a batch, the last with all responses.

        What the caller's on_progress raises never passes through here.
        """
        doubt = _INTERRUPTED
        if part.ticket is not None:
            try:
                yield from self._client._follow(part.ticket, part.batch, self._deadline)
                return
            except EcwidError as error:
                if part.record is None or not _is_forgotten(error):
                    self._take_along(error)
                    raise
            doubt = _FORGOTTEN
        responses = _same_for_all(part.batch, "UNKNOWN", doubt)
        yield BatchStatus(part.ticket, "COMPLETED", len(part.batch), len(part.batch), responses)

    def _reason_to_stop(self, responses: tuple[BatchResponse, ...]) -> str | None:
        """Return why nothing more may be submitted after these responses, or None.

        Where failures do not stop the job, a request that did not run says that somebody cancelled.
        So may one that is UNKNOWN, but only if it is in a group: others cannot be cancelled.
        """
        ending = ["NOT_EXECUTED"]
        if self._stops_on_failure:
            ending.append("FAILED")
        if "groupId" in self._options:
            ending.append("UNKNOWN")
        for response in responses:
            if response.status in ending:
                return f"not submitted, since request {response.id} is {response.status}"
        return None


def _same_for_all(batch: Batch, status: str, message: str) -> tuple[BatchResponse, ...]:
    return tuple(
        BatchResponse(id, status, error_message=message, _request=request)
        for id, request in zip(batch.ids, batch.requests)
    )


def _is_forgotten(error: EcwidError) -> bool:
    """Return whether Ecwid itself, and no proxy, says that it does not know a ticket."""
    if not isinstance(error, ApiError) or error.http_status_code != 404:
        return False
    return error.error_code is not None or error.error_message is not None


if sys.platform == "win32":
    _LOCK, _UNLOCK = msvcrt.LK_NBLCK, msvcrt.LK_UNLCK

    def _lock(file: IO[bytes], operation: int) -> None:
        place = file.tell()
        file.seek(2**30)  # beyond all records, which stay readable
        msvcrt.locking(file.fileno(), operation, 1)
        file.seek(place)
else:
    _LOCK, _UNLOCK = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN
    _lock = fcntl.flock

_JOURNAL = "ecwid_batch 1"  # the format of the file
_JOURNAL_START = b'{"journal": "ecwid_batch'


@dataclasses.dataclass
class _Record:
    """A submission that an earlier call made or began."""

    key: str
    time: float  # of time.time(), just before the submission
    ticket: str | None = None


class _Journal:
    """The record of a job in a file that a person can read: one JSON object a line.

        {"journal": "ecwid_batch 1", "url": "https://...", "store": 1003, "key": "5f0a..."}
        {"batch": 1, "size": 500, "key": "77c1...", "time": "2026-11-24T09:30:00+00:00"}
        {"batch": 1, "ticket": "11kl140a2-..."}

    The first line is the job. Before each submission comes a line with the number of the batch, its
    size, key and time; after it a line with the ticket, or with "refused" if Ecwid surely did not
    take the batch; and one with "stopped" if nothing more is to be submitted. Each line is on the
    disk before the next step is taken. The file is created with the first submission, and locked
    while a job uses it. Without a path nothing is recorded.

    key      that of the job
    records  the submissions of earlier calls, by the number of the batch
    stopped  why nothing more is submitted, or None
    """

    def __init__(self, path: _Path | None, client: EcwidClient, key: str | None) -> None:
        self.path = None if path is None else os.fspath(path)
        self.records: dict[int, _Record] = {}
        self.stopped: str | None = None
        self._file: IO[bytes] | None = None
        self._header: dict[str, Any] | None = None
        job = {"journal": _JOURNAL, "url": client.base_url, "store": client.store_id, "key": key}
        try:
            if self.path is not None and os.path.exists(self.path):
                self._file = self._open_locked(self.path, "r+b")
                self._read(self._file)
            if not self.records:  # all was refused: begin anew
                self._header = None
            self.key = self._key_of(job)
            if self._file is not None and self._header is None:
                self._file.truncate(0)
                self._file.seek(0)
        except BaseException:
            self.close()
            raise
        self._pending = "" if self._header else json.dumps({**job, "key": self.key}) + "\n"

    def add_submission(self, number: int, batch: Batch, moment: float) -> None:
        """Record that a batch is about to be submitted, at a time of time.time()."""
        when = datetime.datetime.fromtimestamp(int(moment), datetime.timezone.utc).isoformat()
        self.add(number, size=len(batch), key=batch.deduplication_key, time=when)

    def close(self) -> None:
        """Release the lock, whatever child processes have inherited of it."""
        if self._file is not None and not self._file.closed:
            _lock(self._file, _UNLOCK)
            self._file.close()

    def _open_locked(self, path: str, mode: str) -> IO[bytes]:
        """Return the file, locked. Raises ValueError if it is in use."""
        file: IO[bytes] = open(path, mode, buffering=0)  # noqa: SIM115
        try:
            _lock(file, _LOCK)
        except OSError as error:
            file.close()
            if not isinstance(error, (BlockingIOError, PermissionError)):  # Windows has the latter
                raise
            raise self._in_use() from None
        return file

    def _in_use(self) -> ValueError:
        return ValueError(
            f"the journal {self.path} is in use: by another process, or by a stream of this one "
            "that was not closed"
        )

    def add(self, number: int, **fields: Any) -> None:
        """Write a line of a batch to the disk."""
        if self.path is None:
            return
        try:
            if self._file is None:
                self._file = self._open_locked(self.path, "xb")
            line = json.dumps({"batch": number, **fields})
            data = f"{self._pending}{line}\n".encode("ascii")
            if self._file.write(data) != len(data):
                raise OSError("the disk may be full")
            os.fsync(self._file.fileno())
        except FileExistsError:  # another process began at the same time
            raise self._in_use() from None
        except OSError as error:
            raise EcwidError(f"cannot write the journal {self.path}: {error}") from None
        self._pending = ""

    def _read(self, file: IO[bytes]) -> None:
        """Read all lines; cut off a last one that a crash left incomplete."""
        start = file.read(len(_JOURNAL_START))
        if not _JOURNAL_START.startswith(start):
            raise ValueError(f"{self.path} is not a journal")
        *lines, torn = (start + file.read()).split(b"\n")
        if torn:
            file.truncate(file.tell() - len(torn))
            file.seek(0, os.SEEK_END)
        for number, line in enumerate(lines, 1):
            try:
                self._add(json.loads(line))
            except (KeyError, TypeError, ValueError, RecursionError):
                raise ValueError(f"{self.path} is not a journal: see its line {number}") from None

    def _add(self, line: dict[str, Any]) -> None:
        """Take in a line. Raises KeyError, TypeError or ValueError if it is not a journal's."""
        if self._header is None:
            self._header = {name: line[name] for name in ("journal", "url", "store", "key")}
        elif "ticket" in line:
            self.records[line["batch"]].ticket = line["ticket"]
        elif "stopped" in line:
            self.stopped = line["stopped"]
        elif "refused" in line:
            del self.records[line["batch"]]
        else:
            moment = datetime.datetime.fromisoformat(line["time"]).timestamp()
            self.records[line["batch"]] = _Record(line["key"], moment)

    def _key_of(self, job: dict[str, Any]) -> str:
        """Return the job's key. Raises ValueError if the file is the journal of another job."""
        if self._header is None:
            return _checked_key(job["key"])
        for name, value in job.items():
            recorded = self._header[name]
            if value is not None and value != recorded:
                raise ValueError(
                    f"the journal {self.path} is of another job, with the {name} {recorded!r} "
                    f"instead of {value!r}: give what it began with, or use another journal"
                )
        return _checked_key(self._header["key"])


# --- Command line ---------------------------------------------------------------------------------

_MAX_LINE = 16 * 1024 * 1024  # bytes of one line of FILE
_MAX_IN_MEMORY = 16 * 1024 * 1024  # bytes of requests that did not succeed

_DESCRIPTION = """\
Run batches of Ecwid REST calls. The store and its token are read from the
environment: ECWID_STORE_ID, ECWID_TOKEN (or --token-file) and, for another
host than Ecwid's, ECWID_BASE_URL.
"""

_EXIT_STATUS = """\
exit status:
  0  all requests succeeded      3  the API or the network failed
  1  some request failed, is     4  timed out
     unknown or did not run      5  the output cannot be written
  2  wrong usage or input        130 interrupted, 143 terminated
"""

_RUN_DESCRIPTION = """\
Run all requests of FILE: one JSON object per line, any number of them, or one
JSON array as in Ecwid's reference. - is standard input.

  {"method": "PUT", "path": "/products/42", "body": {"price": 19.99}}
  {"method": "GET", "path": "/orders?limit=1"}

A wrong line ends the job when it is reached: --dry-run checks all of FILE.
Each output line is a JSON object with line (of FILE, or the place in the
array), id, method, path, status, httpStatusCode, httpStatusLine, response.

While the job runs, FILE.journal lies beside FILE: after a crash, a kill, Ctrl-C
or a timeout the same command goes on, and prints all responses from the first
on. At the end the journal is gone, and what did not succeed is in FILE.failed,
as input: mend it there and run that. Standard input has neither unless named.
"""


class _InputError(ValueError):
    """FILE holds something that is no request."""


class _OutputError(Exception):
    """Standard output, or the file of --failed, cannot be written."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def _write(stream: IO[str], text: str) -> None:
    """Write at once. After an error nothing is left for Python to complain about at its exit."""
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        raise _OutputError(str(error)) from error


class _Screen(logging.Handler):
    """Standard error: messages, the library's too, and on a terminal one line of progress."""

    def __init__(self, quiet: bool) -> None:
        super().__init__()
        self.quiet = quiet
        self.live = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._drawn = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.say(self.format(record))

    def say(self, text: str) -> None:
        self.draw("")
        self._write(f"ecwid-batch: {text}\n")

    def draw(self, text: str) -> None:
        """Replace the line of progress; an empty text removes it."""
        if not self.live or text == self._drawn:
            return
        width = 80
        with contextlib.suppress(OSError, ValueError):
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        rows = max(0, len(self._drawn) - 1) // width  # not 0 if the window became narrower
        back = f"\x1b[{rows}A\r\x1b[J" if rows else "\r"
        blank = " " * min(len(self._drawn), width - 1)  # for terminals without control sequences
        self._drawn = text[: width - 1]
        self._write(f"{back}{blank}\r{self._drawn}")

    def _write(self, text: str) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(_OutputError):
                _write(sys.stderr, text)


class _Input:
    """The requests of FILE, read as they are needed.

    lines  of the requests that were read and not yet answered; of an array the places
    total  how many requests there are, 0 if that is not known
    """

    def __init__(self, file: IO[bytes], batch_size: int) -> None:
        self.lines: collections.deque[int] = collections.deque()
        self.total = 0
        self._file = file
        self._batch_size = batch_size

    def count(self) -> None:
        """Find out the total of a file with one object per line, for the progress."""
        if self._file.seekable():
            start = self._file.tell()
            self.total = sum(not line.isspace() for line in iter(self._read_line, b""))
            self._file.seek(start)

    def requests(self) -> Iterator[BatchRequest]:
        """Yield the requests. Raises _InputError that names the line of what is none."""
        ids: dict[str, str] = {}  # those of a batch, with their lines
        for count, (where, line, item) in enumerate(self._items()):
            try:
                request = _read_request(item, where)
            except ValueError as error:
                raise _InputError(str(error)) from None
            if count % self._batch_size == 0:
                ids.clear()
            id = request.id or f"{count + 1:06d}"  # as the library numbers it
            if id in ids:
                raise _InputError(
                    f"{where}: the id {id!r} is that of {ids[id]}; give every request an id of "
                    "its own, or none"
                )
            ids[id] = where
            self.lines.append(line)
            yield request

    def _read_line(self) -> bytes:
        return self._file.readline(_MAX_LINE + 1)

    def _items(self) -> Iterator[tuple[str, int, Any]]:
        """Yield where each object stands, the number of the line or place, and the object."""
        empty = True
        for number, text in enumerate(iter(self._read_line, b""), 1):
            text = text.lstrip(b"\xef\xbb\xbf \t\r\n")  # a byte order mark, white space
            if text.startswith(b"[") and empty:
                yield from self._array(b"\n" * (number - 1) + text)
                return
            if len(text) > _MAX_LINE:
                raise _InputError(f"line {number:,} is longer than {_MAX_LINE:,} bytes")
            if text:
                empty = False
                yield f"line {number:,}", number, _parse_line(text, number)

    def _array(self, text: bytes) -> Iterator[tuple[str, int, Any]]:
        try:
            items = _parse_json(text + self._file.read())
        except (ValueError, RecursionError) as error:
            raise _InputError(f"the array is not JSON: {error}") from None
        self.total = len(items)
        for place, item in enumerate(items, 1):
            yield f"request {place:,}", place, item


def _parse_line(text: bytes, number: int) -> Any:
    try:
        return _parse_json(text)
    except (ValueError, RecursionError) as error:
        hint = "FILE must hold one JSON object per line (for CSV see the README)"
        if text.startswith(b"{"):
            hint = "one object must stand on one line, or all of them in one JSON array"
        if isinstance(error, UnicodeDecodeError):
            hint = "save FILE as UTF-8 (in PowerShell with -Encoding utf8)"
        reason = getattr(error, "msg", error)  # json's words without its count of lines
        raise _InputError(f"line {number:,} is not JSON: {reason}; {hint}") from None


class _Report:
    """The responses: printed, counted, and kept aside where a request did not succeed.

    first  the first request that did not succeed, in words
    """

    def __init__(self, screen: _Screen, source: _Input, failures: IO[bytes]) -> None:
        self.first: str | None = None
        self._screen = screen
        self._source = source
        self._failures = failures
        self._counts: collections.Counter[str] = collections.Counter()
        self._doubts = 0  # that may have run, and cannot be repeated without a look at the shop
        self._begun = time.monotonic()

    def add(self, response: BatchResponse) -> None:
        request = response.request
        line = self._source.lines.popleft()
        fields = {
            "line": line,
            "id": response.id,
            "method": request.method,
            "path": request.path,
            "status": response.status,
            "httpStatusCode": response.http_status_code,
            "httpStatusLine": response.http_status_line or response.error_message,
            "response": response.body,
        }
        self._screen.draw("")
        _write(sys.stdout, json.dumps(fields) + "\n")
        self._counts[response.status] += 1
        if response.ok:
            return
        if self.first is None:
            name = f"line {line:,}, {request.method} {request.path}"
            self.first = f"{name}: {response.status}, {response.error_message}"
        doubtful = response.status == "UNKNOWN" or _may_have_run(response.http_status_code)
        if doubtful and not response.retryable:
            self._doubts += 1
        parts = {name: getattr(request, name) for name in ("id", "method", "path", "body")}
        text = json.dumps({name: value for name, value in parts.items() if value is not None})
        self._failures.write(f"{text}\n".encode("ascii"))

    def show(self, status: BatchStatus) -> None:
        """Show the progress."""
        done, total = status.completed_requests, self._source.total
        rate = done / max(time.monotonic() - self._begun, 0.001)
        words = [f"{done:,}"]
        failed = self._counts["FAILED"] + self._counts["UNKNOWN"]
        if failed:
            words.append(f"{failed:,} failed")
        words.append(f"{rate:.1f}/s")
        if total:
            words[0] += f"/{total:,}"
        if total and rate:
            words.append(f"{datetime.timedelta(seconds=int((total - done) / rate))} left")
        self._screen.draw(" ".join(words))

    def leave_failures(self, path: str | None) -> None:
        """Put what did not succeed into its place, as input. If all did, remove what is there."""
        if path is None:
            return
        try:
            if self.first is None:
                _remove(path)
                return
            self._failures.seek(0)
            with open(path, "wb") as file:
                shutil.copyfileobj(self._failures, file)
        except OSError as error:
            raise _OutputError(f"{path}: {error}") from error

    def end(self, failed: str | None) -> None:
        """Say what has become of the requests."""
        counts = _outcomes(self._counts)
        total = _count(sum(self._counts.values()), "request")
        seconds = time.monotonic() - self._begun
        if not self._screen.quiet:
            self._screen.say(f"{total}: {', '.join(counts) or 'nothing to do'}; {seconds:.1f} s")
        if self.first is None:
            return
        self._screen.say(f"the first that did not succeed: {self.first}")
        if self._doubts:
            doubts = _count(self._doubts, "request")
            self._screen.say(f"{doubts} of these may have run all the same: look at the shop first")
        if failed is not None:
            self._screen.say(f"what did not succeed is in {failed}: mend it there and run that")


def _run(args: Any, screen: _Screen) -> int:
    client = _client(args)
    journal, failed = _places(args)
    with _open_input(args.file) as file, tempfile.SpooledTemporaryFile(_MAX_IN_MEMORY) as failures:
        source = _Input(file, args.batch_size)
        report = _Report(screen, source, failures)
        if screen.live:
            source.count()
        try:
            _print_responses(client, args, journal, source, report)
            report.leave_failures(failed)
        except (Exception, KeyboardInterrupt) as error:
            exit_status = _report_error(error, screen)
            ours = isinstance(error, (EcwidError, KeyboardInterrupt, _InputError, _OutputError))
            if ours and journal is not None and os.path.exists(journal):
                mended = "mended, " if isinstance(error, _InputError) else ""
                screen.say(f"{mended}the same command goes on where this one ended")
            return exit_status
    if journal is not None and args.journal is None:
        _remove(journal)
    report.end(failed)
    return 0 if report.first is None else 1


def _print_responses(
    client: EcwidClient, args: Any, journal: str | None, source: _Input, report: _Report
) -> None:
    stream = client.stream(
        source.requests(),
        journal=journal,
        batch_size=args.batch_size,
        timeout=args.timeout,
        on_progress=report.show,
        allow_parallel_mode=args.parallel,
        stop_on_first_failure=not args.continue_on_failure,
        group_id=args.group,
    )
    with contextlib.closing(stream):
        for response in stream:
            try:
                report.add(response)
            except (Exception, KeyboardInterrupt) as error:
                stream.throw(error)  # so that it knows that this response was not handed over


def _places(args: Any) -> tuple[str | None, str | None]:
    """Return the paths of the journal and of the failures, or None for what is not to be left.

    Raises ValueError if one cannot be written there, or would overwrite something else.
    """
    journal, failed = args.journal, args.failed
    if os.path.isfile(args.file) and not args.file.startswith(("/dev/stdin", "/dev/fd/")):
        journal = journal or f"{args.file}.journal"
        failed = failed or f"{args.file}.failed"
    taken = {os.path.realpath(args.file): "FILE"}
    for option, path in (("--journal", journal), ("--failed", failed)):
        if path is not None:
            _check_place(option, path, taken)
    return journal, failed


def _check_place(option: str, path: str, taken: dict[str, str]) -> None:
    place = os.path.realpath(path)
    if place in taken:
        raise ValueError(f"{option} must be another file than {taken[place]}, {path}")
    taken[place] = option
    special = os.path.exists(place) and not os.path.isfile(place)  # such as /dev/null
    if special or not os.access(os.path.dirname(place), os.W_OK):
        raise ValueError(f"cannot write {path}: name another file with {option}")


def _dry_run(args: Any, screen: _Screen) -> int:
    with _open_input(args.file) as file:
        total = sum(1 for _ in _Input(file, args.batch_size).requests())
    batches = _count(-(-total // args.batch_size), "batch")
    _write(sys.stdout, f"{_count(total, 'request')} in {batches}, nothing sent\n")
    return 0


def _cancel(args: Any, screen: _Screen) -> int:
    count = _client(args, max_retry_time=10.0).cancel(args.group)
    _write(sys.stdout, json.dumps({"group": args.group, "updateCount": count}) + "\n")
    return 0


def _client(args: Any, **options: Any) -> EcwidClient:
    token = None
    if args.token_file is not None:
        with open(args.token_file, encoding="ascii", errors="replace") as file:
            token = file.read(65536).strip()
    return EcwidClient(token=token, base_url=args.base_url, **options)


def _open_input(path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Open FILE for reading; - is standard input."""
    if path != "-":
        return open(path, "rb")
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    return contextlib.nullcontext(sys.stdin.buffer)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _report_error(error: BaseException, screen: _Screen) -> int:
    """Say what went wrong; return the exit status. Raises the error if it is a bug."""
    if isinstance(error, _OutputError):
        if not isinstance(error.__cause__, BrokenPipeError):  # a reader that has had enough
            screen.say(f"cannot write the output: {error}")
        return 5
    if isinstance(error, _Terminated):
        screen.say("terminated")
        return 143
    if isinstance(error, KeyboardInterrupt):
        screen.say("interrupted")
        return 130
    if not isinstance(error, (EcwidError, OSError, ValueError)):
        raise error
    screen.say(str(error))
    if isinstance(error, BatchTimeoutError):
        return 4
    return 3 if isinstance(error, EcwidError) else 2


def _parser() -> Any:
    import argparse

    def batch_size(text: str) -> int:
        if not 1 <= int(text) <= _MAX_REQUESTS:
            raise argparse.ArgumentTypeError(f"must be 1 to {_MAX_REQUESTS}")
        return int(text)

    common = argparse.ArgumentParser(add_help=False)
    option = common.add_argument
    option("--token-file", metavar="FILE", help="read the token from FILE")
    option("--base-url", metavar="URL", help="instead of ECWID_BASE_URL or Ecwid's own")
    option("-q", "--quiet", action="store_true", help="no progress and no summary")
    option("-v", "--verbose", action="store_true", help="log every exchange")

    shape: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    shape["epilog"] = _EXIT_STATUS
    parser = argparse.ArgumentParser("ecwid-batch", description=_DESCRIPTION, **shape)
    parser.add_argument("--version", action="version", version=f"ecwid-batch {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    about = "stop the requests of a group that have not run yet"
    cancel = commands.add_parser("cancel", help=about, description=about, parents=[common], **shape)
    cancel.add_argument("group", metavar="GROUP", help="the ID that --group gave to the job")
    cancel.set_defaults(function=_cancel)

    about = "run all requests of a file; print one JSON line per response"
    run = commands.add_parser(
        "run", help=about, description=_RUN_DESCRIPTION, parents=[common], **shape
    )
    option = run.add_argument
    option("file", metavar="FILE", help="JSON lines or a JSON array; - is standard input")
    option(
        "--batch-size",
        metavar="N",
        type=batch_size,
        default=_MAX_REQUESTS,
        help=f"requests in a batch, 1 to {_MAX_REQUESTS} (default: %(default)s)",
    )
    option("--parallel", action="store_true", help="run up to 100 requests of a batch at once")
    option("--continue-on-failure", action="store_true", help="go on after a failed request")
    option("--group", metavar="ID", help="name the job, to be able to cancel it")
    option("--timeout", metavar="S", type=float, help="exit with status 4 after S seconds")
    option("--journal", metavar="FILE", help="instead of FILE.journal; is kept at the end")
    option("--failed", metavar="FILE", help="instead of FILE.failed; is replaced, or removed")
    option(
        "--dry-run",
        action="store_const",
        dest="function",
        const=_dry_run,
        help="check all of FILE, send nothing; needs no store",
    )
    run.set_defaults(function=_run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status, which `--help` explains.

    argv  the arguments; None takes those of the process
    """
    import signal

    def terminate(*args: object) -> None:
        raise _Terminated

    args = _parser().parse_args(argv)
    screen = _Screen(args.quiet)
    _LOG.addHandler(screen)
    if args.verbose:
        _LOG.setLevel(logging.DEBUG)
    try:
        with contextlib.suppress(ValueError):  # not in the main thread: no signals there
            signal.signal(signal.SIGTERM, terminate)
        if sys.stdout is None:
            raise _OutputError("standard output is closed")
        return int(args.function(args, screen))
    except (Exception, KeyboardInterrupt) as error:
        return _report_error(error, screen)
    finally:
        _LOG.removeHandler(screen)


if __name__ == "__main__":
    sys.exit(main())
