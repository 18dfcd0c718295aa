# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the ecwid_batch authors. One file of the project ecwid_batch, to be vendored.
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
  own. With stop_on_first_failure=False Ecwid itself tries a 5XX or a timeout up to 5 times.
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
import errno
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
import ssl
import stat
import sys
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

if sys.version_info < (3, 8):  # noqa: UP036
    raise ImportError("ecwid_batch needs Python 3.8 or later")

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
    if type(value) is str and value and value.isascii():
        return value
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}; write str(...)")
    if not value:
        raise ValueError(f"{name} must not be empty")
    value.encode()  # raises ValueError for a lone surrogate
    return str.__str__(value)


def _wrong_type(name: str, value: object, kind: type) -> TypeError:
    found = type(value).__name__
    if found == kind.__name__:
        found += f" of a second copy of the module, {type(value).__module__}"
    return TypeError(f"{name} must be a {kind.__name__}, not {found}")


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


_STR = frozenset((str,))
_SCALARS = frozenset((str, int, float, bool, type(None)))


def _check_keys(value: Any) -> None:
    """Raise ValueError if an object would have one name twice in JSON, as {1: ..., "1": ...}."""
    if isinstance(value, dict):
        if not _STR.issuperset(map(type, value)):
            names = json.loads(_encode(dict.fromkeys(value)))
            if len(names) < len(value):
                raise ValueError("two keys of the body are the same in JSON, such as 1 and '1'")
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for item in value:
        if type(item) not in _SCALARS:
            _check_keys(item)


class _SentBody:
    """The field `body` of a request: kept as the JSON text that is sent, and read back from it.

    A descriptor with `__set__` comes before the instance's `__dict__`, so the text can lie there,
    under the field's own name. The constructor of the dataclass sets the field once. After that
    the frozen dataclass refuses `request.body = ...`. Copies and pickles take the text along, and
    dataclasses.replace reads the parsed body and writes it again.
    """

    def __get__(self, request: BatchRequest | None, owner: object = None) -> Any:
        if request is None:
            return None  # the default of the field
        return json.loads(vars(request)["body"])

    def __set__(self, request: BatchRequest, body: object) -> None:
        try:
            vars(request)["body"] = _encode(body)
            _check_keys(body)
        except RecursionError:
            raise ValueError("the body is nested too deeply") from None


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


@dataclasses.dataclass(frozen=True)
class _Options:
    """How Ecwid is to run the requests of a batch."""

    allow_parallel_mode: bool
    stop_on_first_failure: bool
    group_id: str | None

    def __post_init__(self) -> None:
        for value in (self.allow_parallel_mode, self.stop_on_first_failure):
            if not isinstance(value, bool):
                names = "allow_parallel_mode and stop_on_first_failure"
                raise TypeError(f"{names} must be True or False, not {value!r}")
        if self.group_id is not None:
            vars(self)["group_id"] = _text("group_id", self.group_id)

    def query(self) -> dict[str, str]:
        query = {
            "allowParallelMode": _encode(self.allow_parallel_mode),
            "stopOnFirstFailure": _encode(self.stop_on_first_failure),
        }
        if self.group_id is not None:
            query["groupId"] = self.group_id
        return query


class Batch:
    """1 to 500 requests, and how Ecwid is to run them.

    requests               any iterable of BatchRequest
    allow_parallel_mode    True runs up to 100 requests at once, False one after another
    stop_on_first_failure  True ends the batch at the first failure, and the rest is NOT_EXECUTED.
                           False goes on; a request that meets a 5XX or a timeout is then tried 5
                           times, 3 s apart, by Ecwid
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
    ) -> None:
        options = _Options(allow_parallel_mode, stop_on_first_failure, group_id)
        self.deduplication_key = _checked_key(deduplication_key)
        self.query = {**options.query(), "deduplicationKey": self.deduplication_key}
        self.requests = tuple(itertools.islice(requests, _MAX_REQUESTS + 1))
        if not self.requests:
            raise ValueError(f"a batch needs 1 to {_MAX_REQUESTS} requests, not none")
        if len(self.requests) > _MAX_REQUESTS:
            raise ValueError(f"a batch takes up to {_MAX_REQUESTS} requests; run takes any number")
        self.ids = _given_ids(self.requests, 1)
        self._json = _json_array(self.requests, self.ids)
        self._has_own_key = deduplication_key is not None
        self._key_end = 0.0  # of time.time(), as long as Ecwid surely remembers a submission

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


class _BatchOfJob(Batch):
    """A batch of a job: its ids are places in the job, its key is derived from that of the job."""

    def __init__(
        self, requests: tuple[BatchRequest, ...], first: int, options: _Options, key: str
    ) -> None:
        """first: the place in the job of the first request; key: that of the job."""
        self.requests = requests
        self.ids = _given_ids(requests, first)
        self._json = _json_array(requests, self.ids)
        name = f"{first} {_encode(options.query())} {self._json}"
        self.deduplication_key = str(uuid.uuid5(uuid.UUID(key), name))
        self.query = {**options.query(), "deduplicationKey": self.deduplication_key}


def _json_array(requests: tuple[BatchRequest, ...], ids: tuple[str, ...]) -> str:
    items = [request._to_json(id) for id, request in zip(ids, requests)]
    return f"[{', '.join(items)}]"


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
            raise _wrong_type(f"request {place:,}", request, BatchRequest)
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
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


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

    id                that of the request; after `wait` without a batch what Ecwid sends, or ""
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
        "Adjust product inventory" is a PUT that adds a difference, and so not one of these. If
        failures do not stop the batch, Ecwid tells only the last of its own tries.
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
    _store: int | None = dataclasses.field(default=None, compare=False)  # for messages

    @classmethod
    def from_dict(cls, answer: dict[str, Any]) -> BatchStatus:
        """Return the status that an answer of the API, as parsed JSON, describes.

        Raises InvalidResponseError if it is not what the API promises.
        """
        return _read_status(answer, BatchStatus(None, "QUEUED", 0, 0), None, _one_line)

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
        if len(self.succeeded) < max(self.total_requests, len(self.responses)):
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
        counts = collections.Counter(response.status for response in self.responses)
        del counts["COMPLETED"]
        done = f"{self.status} {self.completed_requests:,}/{self.total_requests:,}"
        return f"<BatchStatus {', '.join([done, *_outcomes(counts)])}>"


def _may_have_run(http_status: int | None) -> bool:
    """Return whether a call that was answered with this HTTP status may have run all the same."""
    return http_status is not None and (http_status == 408 or http_status >= 500)


def _was_refused(response: BatchResponse) -> bool:
    """Return whether an answer says for sure that the request changed nothing."""
    code = response.http_status_code
    return response.status == "FAILED" and code in range(400, 500) and code != 408


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


def _http_code(row: Any) -> int | None:
    for name in ("httpStatusCode", "httpCode"):  # the latter in an example of the older reference
        code = _field(row, name, int)
        if code is not None and 100 <= code <= 999:  # 0 is no code
            return code
    return None


def _read_progress(answer: Any, before: BatchStatus) -> BatchStatus:
    """Return the status that an answer describes, without responses.

    before  what was known before, which has the ticket and the store

    Raises InvalidResponseError if the answer is no status.
    """
    status = _field(answer, "status", str)
    total = _field(answer, "totalRequests", int)
    completed = _field(answer, "completedRequests", int)
    if status not in _STATUSES or total is None or completed is None:
        raise _invalid("a batch status must have status, totalRequests and completedRequests")
    if not (0 <= total <= _MAX_REQUESTS and 0 <= completed <= _MAX_REQUESTS):
        raise _invalid(f"totalRequests and completedRequests must be 0 to {_MAX_REQUESTS}")
    return BatchStatus(before.ticket, status, total, completed, (), before._store)


def _read_status(
    answer: Any, before: BatchStatus, batch: Batch | None, clean: _Clean
) -> BatchStatus:
    """Return the status that an answer describes, with its responses.

    batch  that of the ticket: once it has finished, each of its requests gets one response, in
           their order. Without it the responses are the rows that Ecwid sends

    Raises InvalidResponseError if the answer is no status, or that of another batch.
    """
    status = _read_progress(answer, before)
    rows = answer.get("responses")
    if rows is None:
        rows = []
    if not isinstance(rows, list):
        raise _invalid("the responses of a batch must be an array")
    if batch is None:
        responses = [_read_response(row, clean(_row_id(row)), None, clean) for row in rows]
        return dataclasses.replace(status, responses=tuple(responses))
    if not status.done:
        return status
    if status.total_requests != len(batch):
        raise InvalidResponseError(
            f"the ticket belongs to another batch, of {status.total_requests:,} requests "
            f"instead of {len(batch):,}; was the deduplication key used before?"
        )
    by_id: dict[str, Any] = {}
    for row in rows:
        id = _row_id(row)
        by_id[id] = None if id in by_id else row  # two for one id: neither can be believed
    responses = [
        _read_response(by_id.get(id), id, request, clean)
        for id, request in zip(batch.ids, batch.requests)
    ]
    return dataclasses.replace(status, responses=tuple(responses))


def _row_id(row: Any) -> str:
    return _field(row, "id", str) or ""


def _read_response(row: Any, id: str, request: BatchRequest | None, clean: _Clean) -> BatchResponse:
    if not isinstance(row, dict):
        return BatchResponse(id, "UNKNOWN", error_message=_UNREADABLE, _request=request)
    code = _http_code(row)
    line = _field(row, "httpStatusLine", str)
    if line is not None:
        line = clean(line)
    escaped = _field(row, "escapedHttpBody", str)
    body = row.get("httpBody") if escaped is None else _json_or_text(escaped)
    status, doubt = _outcome(row.get("status"), code)
    if status == "COMPLETED":
        return BatchResponse(id, status, code, line, body, None, None, request)
    message, error_code = _error_fields(body, clean)
    message = doubt or message or line
    if message is None and code is not None:
        message = f"HTTP {code} {http.client.responses.get(code, '')}".rstrip()
    message = message or _DEFAULT_MESSAGES[status]
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
    if success or (status == "NOT_EXECUTED" and _may_have_run(code)):
        return "UNKNOWN", f"Ecwid says {status}, but with code {code}, as if it ran"
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
    uncertain    whether Ecwid may have acted on the last call to it all the same; what a job did
                 before that is in `last_status` and `tickets`
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
    if status._store is not None:
        text = f"store {status._store}: {text}"
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
_MAX_ERROR = 1024 * 1024  # bytes of an error's body that are read
_BLOCK = 65536  # bytes of an answer that are read at a time
_RATE_LIMIT_PAUSE = 10.0  # seconds after a 429 without Retry-After, as in the official client

_ADVICE = {
    401: "check the token",
    402: "check the plan of the store",
    403: "check the token, and that it has the access scopes of all requests in the batch",
    404: "check the store id, the ticket and the base URL",
    413: "use a smaller batch_size; with the same journal the job goes on",
}


class _Body(bytes):
    """The body of a request: bytes for a caller's own opener, and a file for http.client.

    http.client sends a file in blocks, so `http_timeout` is the time for a block, not for all. No
    block goes out after the end of the key: a submission must not arrive when Ecwid has forgotten
    it.
    """

    _file: io.BytesIO
    _left_of_key: Callable[[], float]

    def __new__(cls, data: bytes, left_of_key: Callable[[], float]) -> _Body:
        body = super().__new__(cls, data)
        body._file = io.BytesIO(data)
        body._left_of_key = left_of_key
        return body

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        if block and self._left_of_key() <= 0:
            raise TimeoutError("not sent in the hour for which Ecwid remembers the key")
        return block


_UNSENT = (urllib.error.URLError, http.client.InvalidURL, ValueError)  # see _exchange


def _exchange(
    own_opener: urllib.request.OpenerDirector | None,
    request: urllib.request.Request,
    timeout: float,
    clean: _Clean,
) -> tuple[int, Any, bytes | bytearray]:
    """Send a request; return HTTP status, headers and body of its answer, whatever the status.

    own_opener  the caller's own, or None
    timeout     seconds for each wait for the network

    Raises TransportError if there is no usable answer, InvalidResponseError if it is too large.
    The error is certain only if the request was not sent. urllib raises URLError for what fails
    before all of it is sent, and http.client InvalidURL or a ValueError for an address that is
    none. A caller's own opener may raise them for the second leg of a redirect that it followed.
    """
    host = request.host
    may_be_sent = own_opener is not None
    try:
        opener = own_opener or _opener_for(urllib.parse.urlsplit(request.full_url).hostname or "")
        try:
            response: Any = opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:  # so a caller's opener gives an error answer
            response = error
        may_be_sent = True
        with response:
            return response.code, response.headers, _read_body(response, timeout)
    except (OSError, http.client.HTTPException, ValueError, EOFError, zlib.error) as error:
        may_be_sent = may_be_sent or not isinstance(error, _UNSENT)
        proxy = None if request.host == host else request.host
        raise _transport_error(error, may_be_sent, proxy, clean) from None  # it could show a token


def _read_body(response: Any, timeout: float) -> bytes | bytearray:
    is_error = not 200 <= response.code < 300
    limit = _MAX_ERROR if is_error else _MAX_ANSWER
    try:
        body = _read_blocks(response.read1, limit, timeout)  # read() waits for a whole block
        if response.headers.get("Content-Encoding", "").strip().lower() in ("gzip", "x-gzip"):
            with gzip.GzipFile(fileobj=io.BytesIO(body)) as unzipped:
                body = _read_blocks(unzipped.read, limit, math.inf)
    except (OSError, http.client.HTTPException, EOFError, zlib.error):
        if is_error:
            return b""  # its status and Retry-After count all the same
        raise
    if len(body) > limit and not is_error:
        message = (
            f"the answer is larger than {limit:,} bytes; use a smaller batch_size in a new job"
        )
        raise InvalidResponseError(message, uncertain=True)
    return body


def _read_blocks(read: Callable[[int], bytes], limit: int, timeout: float) -> bytearray:
    """Return what `read` gives, up to a block more than `limit` bytes.

    Raises TimeoutError after `timeout` seconds and a second more for every 8 KiB that have come:
    what trickles is cut off, what flows is not. An answer that was cut off needs no check, since it
    is not JSON.
    """
    begun = time.monotonic()
    body = bytearray()
    while len(body) <= limit:
        block = read(_BLOCK)
        if not block:
            break
        body += block
        if time.monotonic() - begun > timeout + len(body) / 8192:
            raise TimeoutError("timed out while the answer was read")
    return body


def _transport_error(
    error: Exception, may_be_sent: bool, proxy: str | None, clean: _Clean
) -> TransportError:
    """Return the TransportError for what was raised during an exchange."""
    cause: object = error
    if isinstance(error, urllib.error.URLError):
        cause = error.reason
    text = f"{type(cause).__name__}: {cause}"
    message = re.sub(r"[^\s/]+@", "***@", clean(text))  # the user and password of a proxy
    if proxy is not None:
        message += f"; check the proxy {clean(proxy)}"
    elif not may_be_sent:
        message += "; check the network and base_url"
    bundle = os.environ.get("SSL_CERT_FILE")
    if bundle and not os.path.exists(bundle):
        message += f"; SSL_CERT_FILE names {bundle}, which does not exist"
    elif isinstance(cause, ssl.SSLCertVerificationError):
        message += "; check SSL_CERT_FILE and the clock of this host"
    temporary = _may_pass(cause) if isinstance(error, _UNSENT) else True
    return TransportError(message, temporary=temporary, uncertain=may_be_sent)


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


def _error_of(status: int, headers: Any, text: bytes | bytearray, clean: _Clean) -> EcwidError:
    """Return the error for an answer whose HTTP status is not 2XX."""
    if status < 200:
        words = f"HTTP {status}: an interim answer, and no other"
        return TransportError(words, temporary=True, uncertain=True)
    if status < 400:  # 303 says that the call was taken, and to look elsewhere
        words = f"HTTP {status}: no redirect is followed; check base_url"
        return TransportError(words, uncertain=status == 303)
    body = _json_or_text(text.decode("utf-8", "replace"))
    message, code = _error_fields(body, clean)
    reason = message or http.client.responses.get(status)
    pause = _retry_after(headers)
    if status == 429 and pause is None:
        pause = _RATE_LIMIT_PAUSE
    parts = [f"HTTP {status}", code, reason, _ADVICE.get(status)]
    if pause is not None:
        parts.append(f"retry after {pause:g} s")
    kind = RateLimitError if status == 429 else ApiError
    return kind(
        "; ".join(part for part in parts if part),
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
        if date.tzinfo is None:  # the old form of asctime, which is UTC, too
            date = date.replace(tzinfo=datetime.timezone.utc)
        return max(0.0, date.timestamp() - time.time())
    except (TypeError, ValueError, IndexError, OverflowError):  # which one, depends on the Python
        return None


_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1").fullmatch


def _opener_for(host: str) -> urllib.request.OpenerDirector:
    """Return the opener for a host, as the environment is now; loopback gets no proxy.

    Raises URLError if there can be none: for TLS that cannot be set up, or a proxy that urllib
    would speak to in the wrong way.
    """
    proxies = {} if _LOOPBACK(host) else urllib.request.getproxies()
    scheme, mark, _ = proxies.get("https", "").partition("://")
    if mark and scheme.lower() != "http" and not urllib.request.proxy_bypass(host):
        raise urllib.error.URLError(f"the proxy must be an http:// one, not {scheme}://")
    bundle = (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    try:
        return _shared_opener(tuple(proxies.items()), bundle)
    except OSError as error:  # such as an SSLKEYLOGFILE that cannot be written
        raise urllib.error.URLError(error) from None


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
#   EcwidClient.wait       polls until it is done         _looks -> _look -> _call
#   _call                  tries until it succeeds        _try -> _exchange -> urllib
#   _read_status           makes one BatchResponse for each request
#
# `stream` does the same for each batch of a job: see `_Job`. `run` is `stream`, collected.

_BASE_URL = "https://app.ecwid.com/api/v3"
_BACKOFF_FIRST = 0.5  # seconds; the longest first pause before another try
_BACKOFF_LAST = 30.0  # seconds; the longest pause that grows by doubling
_KEY_LIFETIME = 59 * 60.0  # seconds; the reference says an hour, and a submission takes its time
_HALF_HOUR = 30 * 60.0  # seconds in which calls with one key of the caller's own may begin
_PAGE_SIZE = 100  # tickets; reference: "Search batch requests", limit
_RANDOM = random.SystemRandom()  # clones of one snapshot would share the state of another


class _Task:
    """What a caller waits for: a call, or a batch; a `_Job` is one, too.

    It makes every error that ends a call complete, since it knows what goes on at Ecwid.

    timeout  seconds that he gives it, or None
    ticket   that of the batch, if there is one
    """

    def __init__(
        self, store_id: int, timeout: float | None = None, ticket: str | None = None
    ) -> None:
        if timeout is not None and math.isnan(timeout):
            raise ValueError("timeout must be a number of seconds, not nan")
        self.store_id = store_id
        self.last = BatchStatus(ticket, "QUEUED", 0, 0, (), store_id)  # the last look
        # Whether Ecwid may have acted on the last call. It stays True when the call succeeds: an
        # interruption just then, before the ticket is kept, must not say that nothing was sent.
        self.uncertain = False
        self._timeout = timeout
        self._end = math.inf if timeout is None else time.monotonic() + timeout

    def left(self) -> float:
        """Return the seconds until the end of the timeout."""
        return self._end - time.monotonic()

    def tickets(self) -> tuple[str, ...]:
        """Return the tickets of the batches whose responses are still to come."""
        return () if self.last.ticket is None else (self.last.ticket,)

    def so_far(self) -> BatchStatus | None:
        """Return how far it is, None before the first look."""
        return self.last if self.last.total_requests else None

    def settled_by(self, key_end: float) -> str:
        """Return what settles whether a submission has arrived, and until when."""
        return f"; it may have arrived: call again before {_utc(key_end)}, with the same Batch"

    def completed(self, error: EcwidError) -> EcwidError:
        """Return an error with what is needed to go on."""
        error.tickets = self.tickets()
        error.last_status = self.so_far()
        return error

    def ended(self, error: EcwidError, name: str, tries: int, key_end: float) -> EcwidError:
        """Return the error that ends a call, made of that of its last try."""
        message = f"{name}: {error.args[0]}"
        if tries > 1:
            message += f"; gave up after {tries} tries"
        if self.uncertain and key_end < math.inf:
            message += self.settled_by(key_end)
        if error.temporary and self.left() <= 0:
            timeout = self.timed_out(f"; the last try: {message}")
            timeout.uncertain = self.uncertain
            timeout.retry_after = error.retry_after
            return timeout
        error.args = (message,)
        error.uncertain = self.uncertain
        return self.completed(error)

    def timed_out(self, reason: str = "") -> EcwidError:
        message = f"store {self.store_id}: {max(self._timeout or 0, 0):g} s are over{reason}"
        return self.completed(BatchTimeoutError(message, temporary=True))


def _utc(moment: float) -> str:
    """Return a time of time.time() as people read it."""
    return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).strftime("%H:%M UTC")


class EcwidClient:
    """The batch endpoints of one store.

    store_id        a positive integer, or its digits
    token           the access token, such as "secret_..."; without both, ECWID_STORE_ID and
                    ECWID_TOKEN are taken
    base_url        HTTPS, or HTTP to loopback, which never uses a proxy; None takes
                    ECWID_BASE_URL, else Ecwid's own
    http_timeout    seconds for each wait for the network; an answer's body as a whole has as long,
                    and a second more for every 8 KiB. Headers that trickle in are not bounded
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
        if (store_id is None) != (token is None):
            raise ValueError("give both store_id and token, or neither: the environment has both")
        if store_id is None:
            store_id = os.environ.get("ECWID_STORE_ID", "").strip()
        if token is None:
            token = os.environ.get("ECWID_TOKEN", "").strip()
        if base_url is None:
            base_url = os.environ.get("ECWID_BASE_URL", "").strip() or _BASE_URL
        if not re.fullmatch("[1-9][0-9]*", str(store_id)):  # not shown: it may be the token
            raise ValueError("set ECWID_STORE_ID, or store_id, to a positive integer")
        if not 0 < http_timeout <= 3600:
            raise ValueError(f"http_timeout must be up to 3600 seconds, not {http_timeout!r}")
        if not 0 <= max_retry_time <= 3600:
            raise ValueError(f"max_retry_time must be 0 to 3600 seconds, not {max_retry_time!r}")
        _check_base_url(base_url)
        self.store_id = int(store_id)
        self._token = _checked_token(token, "ECWID_TOKEN, or token,")
        self.base_url = base_url.rstrip("/")
        self.http_timeout = http_timeout
        self.max_retry_time = max_retry_time
        self.opener = opener
        self._blocked_until = 0.0  # of time.monotonic(): no call before

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_blocked_until": 0.0}  # another process has another such clock

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
        of the input costs nothing, and an id of your own must be unique among all of them. An
        EcwidError that ends a job that has begun has it so far in `last_status`, with the
        responses. The status is that of the whole job: its ticket is None.
        """
        options = _Options(allow_parallel_mode, stop_on_first_failure, group_id)
        _refuse_batch(requests)
        requests = tuple(requests)
        _given_ids(requests, 1)
        job = _Job(
            self, requests, options, journal, batch_size, timeout, on_progress, deduplication_key
        )
        for response in job.responses():
            job.collected.append(response)
        return job.so_far()

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
        batch_size         requests in a batch, 1 to 500. What the journal has keeps its size
        timeout            seconds after which BatchTimeoutError is raised, by one look later; 0 or
                           less submits nothing
        on_progress        a function that is called with the status of the job after each look at
                           a batch. Its ticket is that of the batch; its counts are the requests
                           read so far, and done
        deduplication_key  a UUID for the whole job. The same call with the same key goes on, if it
                           begins within half an hour of the first, and has submitted each batch
                           within an hour of the first time

        The other arguments are those of `Batch`. By default the first request that is not known to
        have succeeded stops the job: a batch is submitted once the one before has succeeded. With
        stop_on_first_failure=False two batches are at Ecwid, one running and one queued, until the
        input ends or somebody cancels: then a request is NOT_EXECUTED, or UNKNOWN in a job with a
        group. The rest of a job that was stopped is NOT_EXECUTED.

        An error of `requests`, or requests that differ from those of the journal, is raised after
        the responses of what was submitted. What `requests` or `on_progress` raises passes through.
        Raises ValueError for a file that is no journal, or that of another job; OSError for one
        that cannot be read; EcwidError for one that is in use or cannot be written; and
        BatchTimeoutError when the timeout is over.
        """
        options = _Options(allow_parallel_mode, stop_on_first_failure, group_id)
        _refuse_batch(requests)
        job = _Job(
            self, requests, options, journal, batch_size, timeout, on_progress, deduplication_key
        )
        return job.responses()

    def submit(self, batch: Batch) -> str:
        """Submit a batch and return its ticket, a str that can be kept anywhere.

        Submitting the same Batch again within the hour is safe: it returns the first ticket. Later
        it runs the requests again, since Ecwid has forgotten the batch's key. Under a key of your
        own, which another process may use as well, that is so within half an hour of the first.

        Reference: "Create batch request".
        """
        _check_batch(batch)
        if time.time() >= batch._key_end:
            batch._key_end = time.time() + _KEY_LIFETIME
        key_end = batch._key_end
        if batch._has_own_key and time.time() < key_end - _HALF_HOUR:
            key_end -= _HALF_HOUR  # another process may have submitted it half an hour before
        return self._submit(batch, key_end, _Task(self.store_id))

    def status(self, ticket: str, *, responses: bool = True) -> BatchStatus:
        """Return how far a batch is, with or without the responses so far, as Ecwid sends them.

        Reference: "Get batch request status".
        """
        task = _Task(self.store_id, ticket=_text("ticket", ticket))
        return self._look(ticket, None, task, responses=responses)

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
                     in their order. Without it the responses are the rows that Ecwid sends: their
                     `request` is not known, an id may be empty or come twice
        timeout      seconds after which BatchTimeoutError is raised, by one look later; 0 or less
                     takes one look
        on_progress  a function that is called with the status after each look at the batch
        """
        if batch is not None:
            _check_batch(batch)
        _check_callable(on_progress)
        task = _Task(self.store_id, timeout, _text("ticket", ticket))
        for status in self._looks(ticket, batch, task):
            if on_progress is not None:
                on_progress(status)
        return task.last

    def cancel(self, group_id: str, *, ticket: str | None = None) -> int:
        """Stop the requests of a group that have not run yet; return Ecwid's updateCount.

        Reference: "Cancel batch group".
        """
        query = {"groupId": _text("group_id", group_id)}
        if ticket is not None:
            query["ticketId"] = _text("ticket", ticket)  # required by the reference
        read = functools.partial(_read_count, "updateCount")
        return self._call(_Task(self.store_id), "POST", "/batch/cancel-group", query, read)

    def delete(self, ticket: str) -> int:
        """Stop the requests of a batch that have not run, and forget it; return deleteCount.

        Reference: "Delete batch request".
        """
        ticket = _text("ticket", ticket)
        query = {"ticketId": ticket, "ticket": ticket}  # the newer reference's name, the older's
        read = functools.partial(_read_count, "deleteCount")
        return self._call(_Task(self.store_id), "DELETE", "/batch", query, read)

    def find(self, status: str) -> Iterator[str]:
        """Yield the tickets of all batches whose status is `status`.

        The tickets come in pages. A batch whose status changes between two pages may be left out.

        Reference: "Search batch requests".
        """
        if status not in _STATUSES:
            raise ValueError(f"status must be one of {', '.join(_STATUSES)}, not {status!r}")
        for offset in itertools.count(0, _PAGE_SIZE):
            query = {"status": str.__str__(status), "offset": str(offset), "limit": str(_PAGE_SIZE)}
            page = self._call(_Task(self.store_id), "GET", "/batch", query, _read_tickets)
            yield from page
            if len(page) < _PAGE_SIZE:
                return

    def _submit(self, batch: Batch, key_end: float, task: _Task) -> str:
        """Submit a batch whose key Ecwid surely remembers until a time of time.time()."""
        body = batch.to_json()
        return self._call(task, "POST", "/batch", batch.query, _read_ticket, body, key_end)

    def _look(
        self, ticket: str, batch: Batch | None, task: _Task, *, responses: bool
    ) -> BatchStatus:
        """Return how far a batch is, and let the task know."""
        query = {"ticket": ticket}
        if responses:
            query["escapedJson"] = "true"
        before = BatchStatus(ticket, "QUEUED", 0, 0, (), self.store_id)

        def read(answer: Any) -> BatchStatus:
            if not responses:  # which the older reference sends anyway
                return _read_progress(answer, before)
            return _read_status(answer, before, batch, self._clean)

        task.last = self._call(task, "GET", "/batch", query, read)
        return task.last

    def _looks(self, ticket: str, batch: Batch | None, task: _Task) -> Iterator[BatchStatus]:
        """Yield a status after each look at a batch, the last one with its responses.

        Raises BatchTimeoutError if the batch is not done when the time is over.
        """
        begun = time.monotonic()
        last_idle = begun  # the last moment at which nothing was completed
        while True:
            status = self._look(ticket, batch, task, responses=False)
            if status.done:
                status = self._with_responses(ticket, batch, task)
            yield status
            if status.done:
                return
            now = time.monotonic()
            remaining = math.inf  # seconds until the estimated end
            if status.completed_requests:
                ratio = status.total_requests / status.completed_requests
                remaining = (now - last_idle) * (ratio - 1)
            else:
                last_idle = now
            left = task.left()
            if left <= 0:
                raise task.timed_out()
            time.sleep(min(_next_pause(now - begun, remaining), left))

    def _with_responses(self, ticket: str, batch: Batch | None, task: _Task) -> BatchStatus:
        """Return the status of a batch with its responses; not done if a late replica says so."""
        status = self._look(ticket, batch, task, responses=True)
        unknown = _count_unknown(status)
        if not status.done or not unknown or task.left() < 1:
            return status
        time.sleep(1)  # ask once more before believing that rows are missing
        with contextlib.suppress(EcwidError):
            again = self._look(ticket, batch, task, responses=True)
            if not again.done or _count_unknown(again) < unknown:
                return again
        task.last = status
        return status

    def _call(
        self,
        task: _Task,
        method: str,
        path: str,
        query: dict[str, str],
        read: Callable[[Any], _T],
        body: bytes | None = None,
        key_end: float = math.inf,
    ) -> _T:
        """Return what `read` makes of the JSON that answers a call. Every call goes through here.

        task     what the caller waits for: nothing is tried again after the end of its timeout
        key_end  a time of time.time(), after which Ecwid may have forgotten a submission's key

        This is the one rule for retries. It counts seconds from the first failure, since an outage
        lasts its time however often one asks.
        """
        name = f"{method} {self.base_url}/{self.store_id}{path}"
        same_end = time.monotonic() + key_end - time.time()  # of time.monotonic()

        def left_of_key() -> float:
            """Return the seconds until then, though the clock was set back or the host slept."""
            return min(key_end - time.time(), same_end - time.monotonic())

        give_up = math.inf  # of time.monotonic()
        task.uncertain = False
        tries = 0
        while True:
            tries += 1
            timeout = min(self.http_timeout, max(1.0, task.left()), left_of_key())
            was_uncertain = task.uncertain
            task.uncertain = True  # if it is interrupted now
            try:
                return read(self._try(method, path, query, body, timeout, left_of_key))
            except EcwidError as caught:
                error = caught
            task.uncertain = was_uncertain or error.uncertain
            give_up = min(give_up, time.monotonic() + self.max_retry_time)
            most = min(give_up - time.monotonic(), left_of_key())
            pause = _pause_after(error, tries, task.left(), most)
            if pause is None:
                break
            _LOG.warning("%s: %s; trying again in %.1f s", name, error.args[0], pause)
            time.sleep(pause)
            if left_of_key() <= 0:  # a laptop may have slept for far longer
                break
        raise task.ended(error, name, tries, key_end)

    def _try(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: bytes | None,
        timeout: float,
        left_of_key: Callable[[], float],
    ) -> Any:
        """Send a call once and return the JSON of its answer."""
        blocked = self._blocked_until - time.monotonic()
        if blocked > 0:
            raise RateLimitError(
                f"not sent, since an earlier call met a 429; retry after {blocked:.1f} s",
                http_status_code=429,
                retry_after=blocked,
                temporary=True,
            )
        data = None if body is None else _Body(body, left_of_key)
        request = self._request(method, path, query, data)
        _LOG.debug("%s %s", method, request.full_url)
        status, headers, text = _exchange(self.opener, request, timeout, self._clean)
        _LOG.debug("HTTP %d, %d bytes", status, len(text))
        if not 200 <= status < 300:
            error = _error_of(status, headers, text, self._clean)
            if isinstance(error, RateLimitError) and error.retry_after is not None:
                until = time.monotonic() + error.retry_after
                self._blocked_until = max(self._blocked_until, until)
            raise error
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _invalid(f"the answer is not JSON: {error}") from None

    def _request(
        self, method: str, path: str, query: dict[str, str], body: _Body | None
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
            headers["Content-Length"] = str(len(body))  # http.client would send a file in chunks
        request = urllib.request.Request(url, body, headers, method=method)
        # Unredirected: a caller's opener that follows redirects does not take the token along.
        request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        return request

    def _clean(self, text: str) -> str:
        """Return text from outside as one short line, with the token masked."""
        return _one_line(text.replace(self._token, "***"))


def _check_batch(batch: object) -> None:
    if not isinstance(batch, Batch):
        raise _wrong_type("batch", batch, Batch)


def _refuse_batch(requests: object) -> None:
    if isinstance(requests, Batch):
        raise TypeError(
            "run and stream take requests, not a Batch, which has options of its own: "
            "client.wait(client.submit(batch), batch=batch) runs a Batch"
        )


def _check_callable(on_progress: object) -> None:
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress must be a function, not {type(on_progress).__name__}")


def _checked_token(token: str, name: str) -> str:
    """Return the token. Raises ValueError, which does not show it, if it can be none."""
    if not token:
        raise ValueError(f"{name} must be set: it is the access token of your Ecwid app")
    if not re.fullmatch("[!-~]+", token):  # a line end would be a header of its own
        raise ValueError(f"{name} must be visible ASCII without spaces")
    return token


def _check_base_url(base_url: str) -> None:
    """Raise ValueError if the token must not be sent to this URL."""
    parts = urllib.parse.urlsplit(base_url)
    host, _ = parts.hostname, parts.port  # which raises ValueError if it is no number
    if not re.fullmatch(r"https?://[^\s?#@]+", base_url) or not host:
        raise ValueError(
            "base_url must be like https://app.ecwid.com/api/v3, without user or query"
        )
    if parts.scheme == "http" and not _LOOPBACK(host):
        raise ValueError("base_url must begin with https://: over http:// the token can be read")


def _pause_after(error: EcwidError, tries: int, left: float, most: float) -> float | None:
    """Return the seconds until the next try, or None if there is to be none.

    left  seconds until the end of the caller's timeout, at which there is one last try
    most  seconds for which a pause may last

    The pause is random and grows by doubling. It is never shorter than Ecwid asks for.
    """
    if not error.temporary or left <= 0:
        return None
    longest = min(_BACKOFF_LAST, _BACKOFF_FIRST * 2 ** min(tries - 1, 10))
    pause = min(_RANDOM.uniform(0, longest), left)
    if error.retry_after is not None:
        pause = max(pause, error.retry_after)
    return pause if pause <= min(left, most) else None


def _next_pause(waited: float, remaining: float) -> float:
    """Return the seconds until the next look at a batch.

    waited     seconds waited so far
    remaining  estimated seconds until its end, math.inf if nothing is completed yet

    The next look is best at the estimated end; but not so soon that a long batch costs many calls,
    and not so late that a wrong estimate, or a short batch, is noticed late.
    """
    soonest = 0.25 + 0.05 * waited
    latest = min(0.25 + 0.6 * waited, 1.75 + 0.08 * waited)
    return min(max(remaining, soonest), latest)


def _count_unknown(status: BatchStatus) -> int:
    known = [response for response in status if response.status != "UNKNOWN"]
    return status.total_requests - len(known)


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
#
#   _Parts      cuts the requests into batches, as the journal has them
#   _Job        takes each part into its window, follows the oldest one to its end, hands it over
#   _Journal    has each step on the disk before the next one is taken
#
# A part is followed if it has a ticket. Else its responses are known when it is taken, or it is
# being submitted, and nobody knows yet whether it arrives.

_INTERRUPTED = "this request was being submitted when the job was interrupted; it may have run"
_FORGOTTEN = "Ecwid does not know this request's ticket any more; it may have run"


@dataclasses.dataclass
class _Part:
    """A batch of a job, from number 1 on.

    record     that of its submission by an earlier call, or None
    key_end    of time.time(): until then Ecwid surely remembers the key of the submission
    ticket     None before it has come
    responses  of a batch that is not followed
    """

    number: int
    batch: Batch
    record: _Record | None
    key_end: float = 0.0
    ticket: str | None = None
    responses: tuple[BatchResponse, ...] = ()

    def all_are(self, status: str, message: str) -> tuple[BatchResponse, ...]:
        """Return one response for each request, none of which is an answer of Ecwid's."""
        return tuple(
            BatchResponse(id, status, error_message=message, _request=request)
            for id, request in zip(self.batch.ids, self.batch.requests)
        )


class _Parts:
    """The requests of a job, cut into batches. What the journal has keeps its size.

    total    how many requests are known of
    is_read  whether there are no others
    error    what ended the input: an error of the iterable, or one of its requests
    """

    def __init__(
        self,
        requests: Iterable[BatchRequest],
        batch_size: int,
        options: _Options,
        journal: _Journal,
    ) -> None:
        self.options = options
        self.is_read = isinstance(requests, tuple)  # as `run` hands them over
        self.total = len(requests) if isinstance(requests, tuple) else 0
        self.error: Exception | None = None
        self._requests = iter(requests)
        self._batch_size = batch_size
        self._journal = journal
        self._number = 1  # of the next one
        self._first = 1  # place of its first request

    def next_is_recorded(self) -> bool:
        return self._number <= len(self._journal.records)

    def next(self) -> _Part | None:
        """Return the next batch; None at the end of the input, also if an error has ended it."""
        if self.error is not None:
            return None
        try:
            part = self._cut()
        except Exception as error:
            self.error = error
            return None
        if part is None:
            self.is_read = True
            return None
        self._number += 1
        self._first += len(part.batch)
        self.total = max(self.total, self._first - 1)
        return part

    def _cut(self) -> _Part | None:
        record = self._journal.records[self._number - 1] if self.next_is_recorded() else None
        size = self._batch_size if record is None else record.size
        requests = tuple(itertools.islice(self._requests, size))
        if record is not None and len(requests) < size:
            missing = self._first + len(requests)
            raise self._journal.differs(f"the input ends before request {missing:,}")
        if not requests:
            return None
        batch = _BatchOfJob(requests, self._first, self.options, self._journal.key)
        if record is not None and record.key != batch.deduplication_key:
            names = f"requests {self._first:,} to {self._first + size - 1:,}"
            raise self._journal.differs(f"something in {names}, or an option, has changed")
        return _Part(self._number, batch, record)


class _Job(_Task):
    """Any number of requests on their way through batches, in order.

    collected  the responses so far, kept by `run` for its result and for the error that ends it
    """

    def __init__(
        self,
        client: EcwidClient,
        requests: Iterable[BatchRequest],
        options: _Options,
        journal: _Path | None,
        batch_size: int,
        timeout: float | None,
        on_progress: _OnProgress,
        deduplication_key: str | None,
    ) -> None:
        if not 1 <= batch_size <= _MAX_REQUESTS:
            raise ValueError(f"batch_size must be 1 to {_MAX_REQUESTS}, not {batch_size!r}")
        _check_callable(on_progress)
        super().__init__(client.store_id, timeout)
        self.collected: list[BatchResponse] = []
        self._client = client
        self._on_progress = on_progress
        self._journal = _Journal(journal, client, deduplication_key)
        self._parts = _Parts(requests, batch_size, options, self._journal)
        self._window: collections.deque[_Part] = collections.deque()  # not all handed over yet
        self._done = 0  # requests of batches that have finished
        self._has_submitted = False
        self._last_error: EcwidError | None = None  # says itself what is at Ecwid

    def responses(self) -> Generator[BatchResponse, None, None]:
        """Yield the response of every request of the job."""
        with self._journal:
            try:
                while self._fill_window():
                    responses = self._finish(self._window[0])
                    yield from responses[:-1]
                    self._window.popleft()  # the caller of the last response has them all
                    yield responses[-1]
            except BaseException as error:
                if error is not self._last_error:
                    self._warn_of_leaving()
                raise
            if self._parts.error is not None:
                raise self._parts.error
            if self._journal.records and not self._has_submitted:
                more = "of this job (another job needs another journal)"
                if self._journal.stopped is not None:
                    more = f"that was submitted; the rest is {self._journal.stopped}"
                self._warn(
                    f"nothing was submitted, since the journal {self._journal.path} has all {more}"
                )

    def _fill_window(self) -> bool:
        """Take batches until the window is full or the input ends; return whether it has any.

        Two batches are at Ecwid, but one where the first failure is to stop the job. On the way
        through what the journal has there are always two, so that a submission that was interrupted
        is repeated, while its key is safe, before anything is waited for.
        """
        while True:
            size = 2
            if self._parts.options.stop_on_first_failure and not self._parts.next_is_recorded():
                size = 1
            if len(self._window) >= size:
                return True
            part = self._parts.next()
            if part is None:
                return bool(self._window)
            self._enter(part)

    def _enter(self, part: _Part) -> None:
        """Put a batch into the window: known, at Ecwid since an earlier call, or submitted now."""
        record = part.record
        if record is None and self._journal.stopped is not None:
            part.responses = part.all_are("NOT_EXECUTED", self._journal.stopped)
        elif record is not None and record.ticket is not None:
            part.ticket = record.ticket
        elif record is not None and not self._journal.can_be_repeated(record):
            part.responses = part.all_are("UNKNOWN", _INTERRUPTED)
        else:
            self._submit(part)
            return
        self._window.append(part)

    def _submit(self, part: _Part) -> None:
        """Submit a batch, for the first time or, if there is a record, once more."""
        if self.left() <= 0:
            raise self.timed_out()
        record = part.record
        if record is None:
            record = _Record.of_now(part.number, part.batch)
            self._write(record.line())
        part.key_end = self._journal.key_end(record)
        self._window.append(part)  # from here on it may be at Ecwid
        self._has_submitted = True
        try:
            part.ticket = self._client._submit(part.batch, part.key_end, self)
        except BaseException:
            if part.record is None and not self.uncertain:
                self._window.pop()  # it is surely not at Ecwid
                self._write(dataclasses.replace(record, refused=True).line())
            raise
        self._write(dataclasses.replace(record, ticket=part.ticket).line())

    def _finish(self, part: _Part) -> tuple[BatchResponse, ...]:
        """Return the responses of the oldest batch in the window, followed to its end."""
        if part.ticket is None:
            responses = part.responses
            self._count_done(part)
        else:
            responses = self._follow(part, part.ticket)
        is_old = part.record is not None and self._journal.has_ended
        if self._journal.stopped is None and not is_old:
            reason = self._reason_to_stop(responses)
            if reason is not None:
                self._write({"stopped": reason})
                self._journal.stopped = reason
        return responses

    def _follow(self, part: _Part, ticket: str) -> tuple[BatchResponse, ...]:
        """Return the responses of a batch that is at Ecwid, when it has finished."""
        responses: tuple[BatchResponse, ...] = ()
        try:
            for look in self._client._looks(ticket, part.batch, self):
                responses = look.responses
                if look.done:
                    self._count_done(part)
                if self._on_progress is not None:
                    self._on_progress(self._status(ticket, ()))
        except ApiError as error:
            if part.record is None or not part.record.is_forgotten(error):
                raise
            responses = part.all_are("UNKNOWN", _FORGOTTEN)
            self._count_done(part)
        return responses

    def _count_done(self, part: _Part) -> None:
        self._done += len(part.batch)
        self.last = BatchStatus(None, "QUEUED", 0, 0)  # of the next batch

    def _reason_to_stop(self, responses: tuple[BatchResponse, ...]) -> str | None:
        """Return why nothing more may be submitted after these responses, or None.

        Where failures do not stop the job, a request that did not run says that somebody cancelled.
        So may one that is UNKNOWN, but only if it is in a group: others cannot be cancelled.
        """
        ending = ["NOT_EXECUTED"]
        if self._parts.options.stop_on_first_failure:
            ending += ["FAILED", "UNKNOWN"]
        if self._parts.options.group_id is not None:
            ending.append("UNKNOWN")
        for response in responses:
            if response.status in ending:
                return f"not submitted, since request {response.id} is {response.status}"
        return None

    def _write(self, line: dict[str, Any]) -> None:
        """Write a line of the journal. Raises EcwidError if it cannot be written."""
        try:
            self._journal.write(line)
        except OSError as error:
            message = f"cannot write the journal {self._journal.path}: {error}"
            raise self.completed(EcwidError(message)) from None

    def tickets(self) -> tuple[str, ...]:
        return tuple(part.ticket for part in self._window if part.ticket is not None)

    def so_far(self) -> BatchStatus:
        return self._status(None, tuple(self.collected))

    def completed(self, error: EcwidError) -> EcwidError:
        self._last_error = super().completed(error)
        return error

    def settled_by(self, key_end: float) -> str:
        how = "look at the shop (with a journal the same call would settle it)"
        if self._journal.has_own_key:
            how = "call again within half an hour of the first call"
        if self._journal.path is not None:
            how = f"call again before {_utc(key_end)}, or its requests are UNKNOWN"
        return f"; it may have arrived: {how}"

    def _status(self, ticket: str | None, responses: tuple[BatchResponse, ...]) -> BatchStatus:
        """Return how far the job is."""
        total = self._parts.total
        done = self._done + self.last.completed_requests
        state = "IN_PROGRESS" if done else "QUEUED"
        if self._parts.is_read and self._done == total:
            state = "COMPLETED"
        return BatchStatus(ticket, state, total, done, responses, self.store_id)

    def _warn_of_leaving(self) -> None:
        """Say what goes on at Ecwid while responses of submitted requests are still to come."""
        words = []
        if self.tickets():
            words.append(f"its batches go on, or have ended, at Ecwid: {', '.join(self.tickets())}")
            if self._journal.path is not None:
                words.append("the same call continues the job")
            elif self._journal.has_own_key:
                words.append("the same call, within half an hour of the first, continues the job")
            else:
                words.append("client.wait(ticket) has the responses")
        words += [
            f"a batch was being submitted{self.settled_by(part.key_end)}"
            for part in self._window
            if part.ticket is None and not part.responses
        ]
        if words:
            self._warn(f"the job was left; {'; '.join(words)}")

    def _warn(self, message: str) -> None:
        _LOG.warning("store %s: %s", self.store_id, message)


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


def _open_journal(path: str) -> IO[bytes]:
    """Open the file of a journal, made if it is not there, and lock it.

    Raises EcwidError if it is in use, or on a disk without locks.
    """
    file: IO[bytes] = open(path, "a+b", buffering=0)  # noqa: SIM115
    try:
        _lock(file, _LOCK)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # else somebody removed it
            return file
        code = errno.EAGAIN
    except OSError as error:
        code = error.errno or 0
    file.close()
    if code not in (errno.EAGAIN, errno.EACCES, errno.ENOENT):
        reason = os.strerror(code)
        raise EcwidError(f"the journal {path} cannot be locked: {reason}; its disk has no locks")
    raise EcwidError(
        f"the journal {path} is in use: by another process, or by a stream of this one that was "
        "not closed",
        temporary=True,
    )


def _append(file: IO[bytes], data: bytes) -> None:
    """Write to the disk. Raises OSError if that cannot be done."""
    if file.write(data) != len(data):
        raise OSError("the disk may be full")
    os.fsync(file.fileno())


_ENDED = b'{"ended": true}\n'  # the last line when FILE.failed is in its place


def _has_ended(path: str | None) -> bool:
    """Return whether a journal says that its FILE.failed has been put in its place."""
    if path is None or not os.path.exists(path):
        return False
    with open(path, "rb") as file:
        return file.read().rstrip().endswith(_ENDED.rstrip())


def _mark_ended(file: IO[bytes]) -> None:
    """Say so, in a journal that has anything. Raises OSError if that cannot be done."""
    file.seek(0)
    text = file.read()
    if text and not text.endswith(_ENDED):
        line_end = b"" if text.endswith(b"\n") else b"\n"  # an editor has taken it away
        _append(file, line_end + _ENDED)


@dataclasses.dataclass(frozen=True)
class _Record:
    """What the journal has of a batch."""

    batch: int
    size: int
    key: str
    time: str  # of its first submission
    ticket: str | None = None
    refused: bool = False

    @classmethod
    def of_now(cls, number: int, batch: Batch) -> _Record:
        now = datetime.datetime.fromtimestamp(int(time.time()), datetime.timezone.utc)
        return cls(number, len(batch), batch.deduplication_key, now.isoformat())

    def key_end(self) -> float:
        """Return the time of time.time() up to which Ecwid surely remembers the key."""
        return datetime.datetime.fromisoformat(self.time).timestamp() + _KEY_LIFETIME

    def is_forgotten(self, error: ApiError) -> bool:
        """Return whether Ecwid itself, and no proxy or late replica, has forgotten the ticket."""
        words = error.error_code or error.error_message
        if error.http_status_code != 404 or words in (None, "STORE_NOT_FOUND"):
            return False
        return self.key_end() < time.time()

    def line(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value}


class _Journal:
    """The record of a job in a file that a person can read: one JSON object a line.

        {"journal": "ecwid_batch 1", "url": "https://...", "store": 1003, "key": "5f0a..."}
        {"batch": 1, "size": 500, "key": "77c1...", "time": "2026-11-24T09:30:00+00:00"}
        {"batch": 1, "size": 500, "key": "77c1...", "time": "...", "ticket": "11kl140a2-..."}

    The first line is the job. Before each submission comes a line with the number of the batch, its
    size, key and time; after it the same with the ticket, or with "refused" if Ecwid surely did not
    take the batch. {"stopped": "..."} says why nothing more is to be submitted; {"ended": true}
    that the command line has no more to do. Each line is on the disk before the next step is taken.
    The file is made with the first submission, and locked while a job uses it. Without a path
    nothing is recorded.

    key        that of the job; `has_own_key` says whether it is the caller's own
    records    those of earlier calls: batch 1, batch 2, ...
    stopped    why nothing more is submitted, or None
    has_ended  whether the command line had no more to do after the last record
    """

    def __init__(self, path: _Path | None, client: EcwidClient, key: str | None) -> None:
        self.path = None if path is None else os.fspath(path)
        self.key = _checked_key(key)
        self.has_own_key = key is not None
        self.records: list[_Record] = []
        self.stopped: str | None = None
        self.has_ended = False
        self._job = {"journal": _JOURNAL, "url": client.base_url, "store": client.store_id}
        if key is not None:
            self._job["key"] = self.key
        self._file: IO[bytes] | None = None
        self._unwritten = ""  # goes before the next line: the first line, or a missing line end

    def __enter__(self) -> _Journal:
        try:
            if self.path is not None and os.path.exists(self.path):
                self._file = _open_journal(self.path)
                self._read(self._file)
        except BaseException:
            self.__exit__()
            raise
        if not self.records:
            self._unwritten = json.dumps({**self._job, "key": self.key}) + "\n"
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Release the lock, whatever child processes have inherited of it."""
        if self._file is not None and not self._file.closed:
            _lock(self._file, _UNLOCK)
            self._file.close()

    def write(self, line: dict[str, Any]) -> None:
        """Write a line to the disk. Raises OSError if that cannot be done."""
        if self.path is None:
            return
        if self._file is None:
            self._file = _open_journal(self.path)
            if os.fstat(self._file.fileno()).st_size:
                raise OSError("another process began the same job")
        _append(self._file, f"{self._unwritten}{json.dumps(line)}\n".encode("ascii"))
        self._unwritten = ""

    def can_be_repeated(self, record: _Record) -> bool:
        """Return whether a submission that was interrupted can be made again under its key.

        If the job has gone on after it, its requests have been called UNKNOWN. A record from the
        future means that the clock was set back, and its age is not known.
        """
        if self.stopped is not None or record.batch < len(self.records):
            return False
        is_from_the_future = record.key_end() > time.time() + _KEY_LIFETIME
        return time.time() < self.key_end(record) and not is_from_the_future

    def key_end(self, record: _Record) -> float:
        """Return the time of time.time() up to which a submission can be made again.

        Under a key of the caller's own, another process may have made it half an hour before.
        """
        if self.has_own_key:
            return record.key_end() - _HALF_HOUR
        return record.key_end()

    def differs(self, what: str) -> ValueError:
        return ValueError(
            f"{what}, and the journal {self.path} is of another job: go on with the requests and "
            "options that it began with, or remove the journal to give that job up (what it "
            "submitted may have run)"
        )

    def _read(self, file: IO[bytes]) -> None:
        """Read all lines; cut off a last one that a crash left incomplete."""
        file.seek(0)
        start = file.read(len(_JOURNAL_START))
        if not _JOURNAL_START.startswith(start):
            raise ValueError(f"{self.path} is not a journal")
        text = start + file.read()
        *lines, last = text.split(b"\n")
        if last and isinstance(_json_or_text(last.decode("ascii", "replace")), dict):
            lines.append(last)  # complete, but for its line end
            self._unwritten = "\n"
        elif last:
            file.truncate(len(text) - len(last))
        header: dict[str, Any] = {}
        for number, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                if number == 1:
                    header = {name: fields[name] for name in ("journal", "url", "store", "key")}
                else:
                    self._add(fields)
            except (KeyError, TypeError, ValueError, RecursionError):
                raise ValueError(f"{self.path} is not a journal: see its line {number}") from None
        if self.records:
            self._check_job(header)
        else:
            file.truncate(0)  # nothing was submitted, or all was refused: begin anew

    def _add(self, fields: dict[str, Any]) -> None:
        """Take in a line. Raises an error if it is not a journal's."""
        if "ended" in fields:  # written by the command line
            self.has_ended = True
            return
        if "stopped" in fields:
            self.stopped = fields["stopped"]
            return
        record = _Record(**fields)
        record.key_end()  # raises ValueError for a time that is none
        place = record.batch - 1
        count = len(self.records)
        if not 1 <= record.size <= _MAX_REQUESTS or place < 0 or place not in (count - 1, count):
            raise ValueError
        self.records[place:] = [] if record.refused else [record]
        self.has_ended = False

    def _check_job(self, header: dict[str, Any]) -> None:
        """Take over the job's key. Raises ValueError if the file is the journal of another job."""
        for name, value in self._job.items():
            if value != header[name]:
                raise ValueError(
                    f"the journal {self.path} is of another job, with the {name} {header[name]!r} "
                    f"instead of {value!r}: give what it began with, or use another journal"
                )
        self.key = _checked_key(header["key"])


# --- Command line ---------------------------------------------------------------------------------

_MAX_LINE = 16 * 1024 * 1024  # bytes of one line of FILE
_MOST_NAMED = 10  # wrong lines of FILE

_DESCRIPTION = """\
Run batches of Ecwid REST calls. The store and its token are read from the
environment: ECWID_STORE_ID, ECWID_TOKEN (or --token-file) and, for another
host than Ecwid's, ECWID_BASE_URL.
"""

_EXIT_STATUS = """\
exit status:
  0  all requests succeeded      3  the API or the network failed, or another
  1  some request failed, is        process is at work on the same job
     unknown or did not run      4  timed out
     (cancel: nothing to stop)   5  the output cannot be written
  2  wrong usage or input
SIGINT (Ctrl-C) and SIGTERM end it as they end any command, after it has said
what goes on at Ecwid. On Windows the status is then 130 or 143, and Ctrl-C is
obeyed when the call to Ecwid that is under way has ended.
"""

_RUN_DESCRIPTION = """\
Run all requests of FILE: one JSON object per line, any number of them, or one
JSON array as in Ecwid's reference. - is standard input.

  {"method": "PUT", "path": "/products/42", "body": {"price": 19.99}}
  {"method": "GET", "path": "/orders?limit=1"}

All of FILE is checked before anything is sent (standard input as it is read).
Each output line is a JSON object with line (of FILE, or the place in the
array), id, method, path, status, httpStatusCode, httpStatusLine, response.

While the job runs, FILE.journal lies beside FILE: after a crash, a kill, Ctrl-C
or a timeout the same command, with the same options, goes on, and prints all
responses from the first on. At the end the journal is gone, and what did not
succeed is in FILE.failed, as input, each line with its "error": mend it there
and run that. A FILE that is named so, or has an "error" in each line, is run in
place: what succeeds is taken out of it, and it is gone when all has succeeded.
A line with "mayHaveRun" is refused until you have looked at the shop, and
removed it or that word. Standard input leaves neither file unless named.
"""


class _OutputError(Exception):
    """The output cannot be written; without words if its reader has had enough."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


_EXITS: dict[type[BaseException], int] = {  # the first that fits: some are kinds of others
    _Terminated: 143,
    KeyboardInterrupt: 130,
    _OutputError: 5,
    BatchTimeoutError: 4,
    EcwidError: 3,
    OSError: 2,
    ValueError: 2,
}


def _write(stream: Any, text: str) -> None:
    """Write all of a text.

    The process's own file or pipe is written past Python's buffers. Where they are switched off
    they drop the rest of a short write, and else they complain at the exit of what could not be
    written. A stream of a program that called `main` may be anything, such as a gzip file.
    """
    if not _is_own(stream) or stream.isatty():
        stream.write(text)
        stream.flush()
        return
    stream.flush()
    data = text.encode(stream.encoding, "backslashreplace")
    while data:
        data = data[os.write(stream.fileno(), data) :]


def _is_own(stream: object) -> bool:
    return stream in (sys.__stdout__, sys.__stderr__)


@contextlib.contextmanager
def _output(name: str) -> Iterator[None]:
    """Turn an OSError into an _OutputError that names what cannot be written."""
    try:
        yield
    except (OSError, ValueError) as error:
        code = getattr(error, "errno", None)
        if code == errno.EPIPE or (code == errno.EINVAL and sys.platform == "win32"):
            raise _OutputError from None
        raise _OutputError(f"cannot write {name}: {error}") from None


def _print(line: str) -> None:
    with _output("the output"):
        _write(sys.stdout, f"{line}\n")


class _Screen(logging.Handler):
    """Standard error: messages, the library's too, and on a terminal one line of progress.

    journal  by which an interrupted job goes on, or None
    """

    def __init__(self, quiet: bool) -> None:
        super().__init__()
        self.quiet = quiet
        self.journal: str | None = None
        self._is_live = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._drawn = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.say(self.format(record))

    def say(self, text: str) -> None:
        self.draw("")
        self._write(f"ecwid-batch: {text}\n")

    def draw(self, text: str) -> None:
        """Replace the line of progress; an empty text removes it."""
        if not self._is_live or text == self._drawn:
            return
        width = 80
        with contextlib.suppress(OSError):
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        self._drawn = text
        self._write(f"\r{' ' * (width - 1)}\r{text[: width - 1]}")

    def _write(self, text: str) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                _write(sys.stderr, text)


class _Input:
    """The requests of FILE.

    is_file       whether it can be read twice, and something can be left beside it
    lines         of the requests that were read and not yet answered; of an array the places
    total         how many requests there are, 0 if that is not known
    is_left_over  whether FILE was left by a job: by its name, or since each line has an "error"
    is_public     whether everybody may read it
    """

    def __init__(self, path: str, batch_size: int) -> None:
        self.is_file = os.path.isfile(path) and not re.match("-$|/dev/stdin$|/dev/fd/", path)
        self.lines: collections.deque[int] = collections.deque()
        self.total = 0
        self.is_left_over = False
        self.is_public = self.is_file and bool(os.stat(path).st_mode & stat.S_IROTH)
        self._path = path
        self._batch_size = batch_size
        self._state: tuple[int, ...] = ()  # of a file that has been checked

    def check(self) -> None:
        """Read and count all requests. Raises ValueError that names what is wrong."""
        left_over = wrong = 0
        named: list[str] = []
        with self._open() as file:
            self._state = _state_of(file)
            items = _items(file)
            while True:
                batch = list(itertools.islice(items, self._batch_size))
                if not batch:
                    break
                for problem in _problems(batch, self.total + 1):
                    wrong += 1
                    if wrong <= _MOST_NAMED:
                        named.append(problem)
                left_over += sum(isinstance(item, dict) and "error" in item for _, _, item in batch)
                self.total += len(batch)
        if wrong > len(named):
            named.append(f"and {_count(wrong - len(named), 'other')}")
        if wrong:
            raise ValueError(
                "\n  ".join([f"nothing was sent, since {self._path} is wrong:", *named])
            )
        self.is_left_over = self._path.endswith(".failed") or 0 < left_over == self.total

    def requests(self) -> Iterator[BatchRequest]:
        """Yield the requests. Raises ValueError for what is none, or if FILE has changed."""
        with self._open() as file:
            for number, where, item in _items(file):
                self._refuse_change(file)
                request = _request_of(item, where)
                self.lines.append(number)
                yield request
            self._refuse_change(file)

    def has_changed(self) -> bool:
        """Return whether FILE is not what was checked and run."""
        with self._open() as file:
            return self._state != _state_of(file)

    def _open(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        if self._path != "-":
            return open(self._path, "rb")
        if sys.stdin is None:
            raise ValueError("standard input is closed")
        return contextlib.nullcontext(sys.stdin.buffer)

    def _refuse_change(self, file: IO[bytes]) -> None:
        if self._state and self._state != _state_of(file):
            raise ValueError(f"{self._path} has changed while the job ran; no more was sent")


def _state_of(file: IO[bytes]) -> tuple[int, ...]:
    try:
        state = os.fstat(file.fileno())
    except OSError:  # standard input of a program that called `main`
        return ()
    return state.st_ino, state.st_size, state.st_mtime_ns


def _items(file: IO[bytes]) -> Iterator[tuple[int, str, Any]]:
    """Yield number and name of each line or place, and its JSON, or the error if it is none."""
    is_empty = True
    for number, text in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), b""), 1):
        text = text.lstrip(b"\xef\xbb\xbf \t\r\n")  # a byte order mark, white space
        if text.startswith(b"[") and is_empty:
            items = _parse_array(b"\n" * (number - 1) + text + file.read())
            yield from ((place, f"request {place:,}", item) for place, item in enumerate(items, 1))
            return
        if len(text) > _MAX_LINE:
            raise ValueError(f"line {number:,} is longer than {_MAX_LINE:,} bytes")
        if text:
            is_empty = False
            yield number, f"line {number:,}", _parse_line(text)


def _problems(batch: list[tuple[int, str, Any]], first: int) -> Iterator[str]:
    """Yield what is wrong with some items of FILE; `first` is the place of the first."""
    requests = []
    for _, where, item in batch:
        try:
            requests.append(_request_of(item, where))
        except ValueError as error:
            yield str(error)
    try:
        _given_ids(tuple(requests), first)
    except ValueError as error:
        yield str(error)


def _parse_array(text: bytes) -> list[Any]:
    try:
        return list(_parse_json(text))
    except ValueError as error:
        raise ValueError(f"the array is not JSON: {error}") from None


def _parse_line(text: bytes) -> Any:
    """Return the JSON of a line, or a ValueError that says what is wrong with it."""
    try:
        return _parse_json(text)
    except ValueError as error:
        hint = "FILE must hold one JSON object per line (for CSV see the README)"
        if text.startswith(b"{"):
            hint = "one object must stand on one line, or all of them in one JSON array"
        if isinstance(error, UnicodeDecodeError):
            hint = "save FILE as UTF-8 (in PowerShell with -Encoding utf8)"
        reason = getattr(error, "msg", error)  # json's words without its count of lines
        return ValueError(f"is not JSON: {reason}; {hint}")


def _request_of(item: Any, where: str) -> BatchRequest:
    """Return the request of a line, which may have what FILE.failed adds to it."""
    if isinstance(item, ValueError):
        raise ValueError(f"{where} {item}")
    if isinstance(item, dict):
        if item.get("mayHaveRun"):
            raise ValueError(
                f"{where} may have run: look at the shop; then remove the line, or its mayHaveRun"
            )
        item = {name: item[name] for name in item if name not in ("error", "mayHaveRun")}
    return _read_request(item, where)


class _Report:
    """The responses: printed and counted.

    first  the first request that did not succeed, in words
    """

    def __init__(self, screen: _Screen, source: _Input, left: _Left) -> None:
        self.first: str | None = None
        self._screen = screen
        self._source = source
        self._left = left
        self._counts: collections.Counter[str] = collections.Counter()
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
        try:
            text = json.dumps(fields, allow_nan=False)
        except ValueError:  # Ecwid's answer has NaN, which is no JSON: it is passed on as text
            text = json.dumps({**fields, "response": json.dumps(response.body)})
        self._screen.draw("")
        _print(text)
        self._counts[response.status] += 1
        if response.ok:
            return
        if self.first is None:
            name = f"line {line:,}, {request.method} {request.path}"
            self.first = f"{name}: {response.status}, {response.error_message}"
        self._left.add(response)

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

    def end(self) -> None:
        """Say what has become of the requests."""
        counts = _outcomes(self._counts)
        total = _count(sum(self._counts.values()), "request")
        seconds = time.monotonic() - self._begun
        if not self._screen.quiet:
            self._screen.say(f"{total}: {', '.join(counts) or 'nothing to do'}; {seconds:.1f} s")
        if self.first is not None:
            self._screen.say(f"the first that did not succeed: {self.first}")


class _Left:
    """What a job leaves beside FILE: a journal while it runs, FILE.failed when it has ended.

    journal  the path of the journal, or None
    failed   the path of FILE.failed, or None

    FILE.failed is begun at the first failure, when the job holds its journal, so that only one run
    of a command writes it. It is put in its place as a whole. If it is not, the same command will
    write it again.
    """

    def __init__(self, args: Any, source: _Input) -> None:
        """Raises ValueError for a place that cannot be written, or has something else."""
        self.journal: str | None = args.journal
        self.failed: str | None = args.failed
        if "" in (self.journal, self.failed):
            raise ValueError("--journal and --failed must name a file (is a variable not set?)")
        if source.is_left_over:
            if self.failed is not None:
                raise ValueError(f"{args.file} was left by a job and is run in place: no --failed")
            self.failed = os.path.realpath(args.file)  # not a link to it
        if source.is_file:
            self.journal = self.journal or f"{args.file}.journal"
            self.failed = self.failed or f"{args.file}.failed"
        self._keeps_journal = args.journal is not None
        self._source = source
        self._part = f"{self.failed}.part"
        if source.is_left_over:  # run FILE may be at work, too
            self._part = f"{self.failed}.rest"
        self._file: IO[bytes] | None = None
        self._check(args.file)

    def _check(self, file: str) -> None:
        paths = [path for path in (self.journal, self.failed) if path is not None]
        for path in paths:
            place = os.path.realpath(path)
            writable = os.access(os.path.dirname(place), os.W_OK)
            if os.path.exists(place):
                writable = writable and os.path.isfile(place) and os.access(place, os.W_OK)
            if not writable:
                raise ValueError(f"cannot write {path}: name another file by --journal or --failed")
        if not self._source.is_left_over:
            paths.append(file)
            self._refuse_interrupted()
        paths.append(self._part)
        if len(set(map(os.path.realpath, paths))) < len(paths):
            raise ValueError("FILE, --journal and --failed must be different files")

    def _refuse_interrupted(self) -> None:
        """Raise ValueError if FILE.failed is itself a job that has begun and not ended."""
        journal = f"{self.failed}.journal"
        if self.failed is None or _has_ended(journal):
            return
        if os.path.exists(journal) and os.path.getsize(journal):
            raise ValueError(
                f"{self.failed} is a job that has not ended: first finish it with run "
                f"{self.failed}, or remove {journal} to give it up"
            )

    def add(self, response: BatchResponse) -> None:
        """Write a request that did not succeed as a line of input that says why."""
        if self.failed is None:
            return
        request = response.request
        parts = {name: getattr(request, name) for name in ("id", "method", "path", "body")}
        line = {name: value for name, value in parts.items() if value is not None}
        line["error"] = response.error_message
        did_not_run = response.status == "NOT_EXECUTED" or _was_refused(response)
        if not did_not_run and not _may_run_twice(request):
            line["mayHaveRun"] = True
        with _output(self._part):
            if self._file is None:
                _remove(self._part)  # with its mode
                self._file = open(self._part, "wb", opener=self._open)  # noqa: SIM115
            self._file.write(json.dumps(line).encode("ascii") + b"\n")

    def _open(self, path: str, flags: int) -> int:
        """Open FILE.failed: nobody may read it who could not read FILE."""
        return os.open(path, flags, 0o644 if self._source.is_public else 0o600)

    def finish(self, screen: _Screen) -> None:
        """Put FILE.failed in its place, then end the journal."""
        if not _has_ended(self.journal):  # else what was in FILE.failed is somebody's work by now
            if not self._source.is_left_over:
                self._refuse_interrupted()
            elif self._source.has_changed():
                raise ValueError(
                    f"{self.failed} was changed while it was run: take out of it what has "
                    f"succeeded, as the output says, and remove {self.journal}"
                )
            self._put_in_place(screen)
        if self.journal is not None and os.path.exists(self.journal):
            self._end_journal(self.journal, screen)

    def _put_in_place(self, screen: _Screen) -> None:
        """Replace what is there; remove it if all succeeded."""
        if self.failed is None:
            return
        with _output(self.failed):
            if self._file is None:
                _remove(self._part)  # of a job that was killed
                _remove(self.failed)
                return
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            _patiently(os.replace, self._part, self.failed)
            self._file = None  # from here on the name is that of the next job
        screen.say(f"what did not succeed is in {self.failed}: mend it there and run that")

    def _end_journal(self, path: str, screen: _Screen) -> None:
        """Say in the journal that FILE.failed is in its place; then remove it, unless it is kept.

        One that cannot be removed is emptied: an empty one is new.
        """
        try:
            with contextlib.closing(_open_journal(path)) as file:
                if self._keeps_journal:
                    _mark_ended(file)
                    return
                try:
                    with contextlib.suppress(OSError):  # a full disk can still remove it
                        _mark_ended(file)
                    os.unlink(path)  # under the lock: later it may be that of the next job
                    return
                except OSError:  # on Windows, since it is open
                    file.truncate(0)
            _remove(path)
        except (OSError, EcwidError) as error:
            words = f"its journal is still there: remove {path}"
            if self._keeps_journal:
                words = f"{path} does not say so: the same command would write FILE.failed again"
            screen.say(f"the job has ended, but {words} ({error})")

    def close(self) -> None:
        """Remove what has not been put in its place."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            _remove(self._part)


def _run(args: Any, screen: _Screen) -> int:
    client = _client(args)
    source = _Input(args.file, args.batch_size)
    if source.is_file:
        source.check()
    with contextlib.closing(_Left(args, source)) as left:
        screen.journal = left.journal
        report = _Report(screen, source, left)
        _print_responses(client, args, source, report, left.journal)
        report.end()
        _ignore_signals()  # from here on the job has ended, whatever comes
        left.finish(screen)
    return 0 if report.first is None else 1


def _dry_run(args: Any, screen: _Screen) -> int:
    source = _Input(args.file, args.batch_size)
    source.check()
    batches = _count(-(-source.total // args.batch_size), "batch")
    _print(f"{_count(source.total, 'request')} in {batches}, nothing sent")
    return 0


def _print_responses(
    client: EcwidClient, args: Any, source: _Input, report: _Report, journal: str | None
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
            report.add(response)
    try:  # a full disk may tell only now; but on Windows a pipe would wait for its reader
        if _is_own(sys.stdout) and os.path.isfile(sys.stdout.fileno()):
            os.fsync(sys.stdout.fileno())
    except OSError as error:
        if error.errno in (errno.EDQUOT, errno.EIO, errno.ENOSPC):
            raise _OutputError(f"cannot write the output: {error}") from None


def _cancel(args: Any, screen: _Screen) -> int:
    count = _client(args).cancel(args.group)
    _print(json.dumps({"group": args.group, "updateCount": count}))
    if not count:
        screen.say(
            f"there was nothing to stop in the group {args.group} just then; a job that goes on to "
            "submit needs another cancel"
        )
    return 0 if count else 1


def _client(args: Any) -> EcwidClient:
    store_id = token = None
    if args.token_file is not None:
        with open(args.token_file, encoding="utf-8-sig", errors="replace") as file:
            token = _checked_token(file.read(65536).strip(), args.token_file)
        store_id = os.environ.get("ECWID_STORE_ID", "").strip()
    return EcwidClient(store_id, token, base_url=args.base_url, max_retry_time=args.max_retry_time)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        _patiently(os.unlink, path)


def _patiently(action: Callable[..., object], *paths: str) -> None:
    """Do something to a file, which Windows refuses while anybody, such as a scanner, has it."""
    pauses = [0.05, 0.1, 0.2, 0.4] if sys.platform == "win32" else []
    for pause in pauses:
        with contextlib.suppress(PermissionError):
            action(*paths)
            return
        time.sleep(pause)
    action(*paths)


def _ignore_signals() -> None:
    """Let no signal make a job that has ended look as if it had not."""
    import signal

    with contextlib.suppress(ValueError):  # not in the main thread: no signals there
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _parser() -> Any:
    import argparse

    def batch_size(text: str) -> int:
        if not 1 <= int(text) <= _MAX_REQUESTS:
            raise argparse.ArgumentTypeError(f"must be 1 to {_MAX_REQUESTS}")
        return int(text)

    shape: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser("ecwid-batch", description=_DESCRIPTION, **shape)
    parser.epilog = _EXIT_STATUS
    parser.add_argument("--version", action="version", version=f"ecwid-batch {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, about: str, more: str, max_retry_time: float) -> Any:
        text = more or about
        made = commands.add_parser(name, help=about, description=text, epilog=_EXIT_STATUS, **shape)
        made.set_defaults(function=function)
        option = made.add_argument
        option("--token-file", metavar="FILE", help="read the token from FILE")
        option("--base-url", metavar="URL", help="instead of ECWID_BASE_URL or Ecwid's own")
        about = "try a failing call again for S seconds, up to 3600 (default: %(default)g)"
        option("--max-retry-time", metavar="S", type=float, default=max_retry_time, help=about)
        option("-q", "--quiet", action="store_true", help="no progress and no summary")
        option("-v", "--verbose", action="store_true", help="log every exchange")
        return option

    about = "stop the requests of a group that have not run yet"
    option = command("cancel", _cancel, about, "", 10.0)
    option("group", metavar="GROUP", help="the ID that --group gave to the job")

    about = "run all requests of a file; print one JSON line per response"
    option = command("run", _run, about, _RUN_DESCRIPTION, 120.0)
    option("file", metavar="FILE", help="JSON lines or a JSON array; - is standard input")
    about = f"requests in a batch, 1 to {_MAX_REQUESTS} (default: %(default)s)"
    option("--batch-size", metavar="N", type=batch_size, default=_MAX_REQUESTS, help=about)
    option("--parallel", action="store_true", help="run up to 100 requests of a batch at once")
    option("--continue-on-failure", action="store_true", help="go on after a failed request")
    option("--group", metavar="ID", help="name the job, to be able to cancel it")
    option("--timeout", metavar="S", type=float, help="exit with status 4 after S seconds")
    option("--journal", metavar="FILE", help="instead of FILE.journal; is kept at the end")
    option("--failed", metavar="FILE", help="instead of FILE.failed; is replaced, or removed")
    about = "check FILE, send nothing; needs no store"
    option("--dry-run", action="store_const", dest="function", const=_dry_run, help=about)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status, which `--help` explains.

    argv  the arguments. None takes those of the process, which a signal then ends; else signals
          and logging are at the end as they were

    Raises SystemExit for --help, --version and wrong options, as argparse does.
    """
    import signal

    def terminate(*args: object) -> None:
        raise _Terminated

    args = _parser().parse_args(argv)
    screen = _Screen(args.quiet)
    level = _LOG.level
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _LOG.addHandler(screen)
    if args.verbose:
        _LOG.setLevel(logging.DEBUG)
    try:
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # there may be none
                os.set_blocking(stream.fileno(), True)
        with contextlib.suppress(ValueError):  # not in the main thread: no signals there
            signal.signal(signal.SIGTERM, terminate)
        status = _exit_status(args, screen)
    finally:
        _LOG.removeHandler(screen)
        _LOG.setLevel(level)
        if argv is not None:
            with contextlib.suppress(TypeError, ValueError):  # one that is not Python's
                for number, handler in handlers.items():
                    signal.signal(number, handler)
    if argv is None and status > 128 and sys.platform != "win32":
        signal.signal(status - 128, signal.SIG_DFL)
        os.kill(os.getpid(), status - 128)
    return status


def _exit_status(args: Any, screen: _Screen) -> int:
    """Run a command, say what went wrong and return the exit status. A bug shows its traceback."""
    try:
        if sys.stdout is None:
            raise _OutputError("standard output is closed")
        return int(args.function(args, screen))
    except tuple(_EXITS) as error:
        status = next(status for kind, status in _EXITS.items() if isinstance(error, kind))
        words = {130: "interrupted", 143: "terminated"}.get(status, str(error))
        is_elsewhere = isinstance(error, EcwidError) and error.last_status is None
    if words:
        screen.say(words)
    if is_elsewhere:
        return status  # a job of another process, which goes on
    if status != 2 and screen.journal is not None and os.path.exists(screen.journal):
        screen.say("the same command goes on with the job")
    return status


if __name__ == "__main__":
    sys.exit(main())
