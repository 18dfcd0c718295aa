"""Run batches of Ecwid REST calls: nothing lost, nothing run twice.

    from ecwid_batch import Batch, BatchRequest, EcwidClient

    client = EcwidClient.from_env()  # reads ECWID_STORE_ID and ECWID_TOKEN
    batch = Batch([
        BatchRequest.get("/orders", {"limit": 1, "email": "buyer@example.com"}),
        BatchRequest.put("/products/42", {"price": 19.99}),
    ])
    for response in client.run(batch):
        print(response.request.path, response.http_status_code, response.body)

Use `stream` for more than 500 requests or for hours of work. With a journal, the same call goes
on where a crash, a kill or a timeout ended it:

    for response in client.stream(requests, journal="prices.journal"):
        ...

The promises:

- Every request gets exactly one response, in the order of the requests. A request that Ecwid did
  not run gets one too, with the status NOT_EXECUTED. A request without a response from Ecwid gets
  the status UNKNOWN: it may have run.
- No request runs twice, unless you ask for it with `retry` or with stop_on_first_failure=False. A
  batch carries a deduplication key, so a submission whose answer was lost is repeated without harm
  while Ecwid remembers the key, one hour. With a journal nothing runs twice, however late; its
  responses can be had for as long as Ecwid keeps the batches.
- Invalid arguments raise ValueError or TypeError before anything is sent; an invalid request in a
  stream raises them before its batch is sent. A failed call raises an EcwidError, which carries
  what is needed to resume.
- The token is sent to Ecwid and to nobody else. No redirect is followed; no log, message or repr
  shows the token.

"Reference" in this file is Ecwid's REST API reference. For the command line, run
`python3 ecwid_batch.py --help`.
"""

from __future__ import annotations

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
import stat
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib

# `typing` is never imported, and argparse, decimal, ipaddress, logging, signal and uuid only where
# they are used: AWS Lambda pays for every import at a cold start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    import logging
    from typing import (
        IO,
        Any,
        Callable,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        NoReturn,
        Optional,
        TypeVar,
        Union,
    )

    T = TypeVar("T")
    Params = Optional[Mapping[str, Any]]
    OnProgress = Optional[Callable[["BatchStatus"], object]]
    FilePath = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]

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


# --- Checks and text, for all sections ------------------------------------------------------------


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    if re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{name} must not hold lone surrogates, which UTF-8 cannot hold")


def _check_number(
    name: str,
    value: float,
    kind: type | tuple[type, ...],
    low: float,
    high: float = math.inf,
) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        expected = "a whole number" if kind is int else "a number of seconds"
        raise TypeError(f"{name} must be {expected}, not {value!r}")
    if value != value:
        raise ValueError(f"{name} must be a number, not {value!r}")
    if not low <= value <= high:
        limits = f"{low} or more" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name} must be {limits}, not {value!r}")


def _one_line(text: str, limit: int = 300) -> str:
    """Return text from outside as one short line that is safe in a terminal, a log and UTF-8."""
    if text.isprintable() and len(text) <= limit:
        return text
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:limit]


# --- Requests and batches -------------------------------------------------------------------------

_MAX_REQUESTS = 500  # requests in one batch; reference: "Create batch request"
_METHODS = ("GET", "POST", "PUT", "DELETE")


@dataclasses.dataclass(frozen=True)
class BatchRequest:
    """One REST call of a batch, fixed from the moment it is made.

    method  "GET", "POST", "PUT" or "DELETE"
    path    path and query, relative to the store, such as "/orders?limit=1". Spaces and non-ASCII
            characters are percent-encoded; what is encoded already stays as it is
    body    anything that JSON can hold, or a Decimal; None sends no body. Binary data cannot be
            sent: put a URL into the `externalUrl` parameter of the call
    id      text that identifies the response; None lets the batch number the request

    The body is turned into JSON here, once: changing the object afterwards changes nothing, and
    two requests are equal if they have the same id and send the same text.

    Raises ValueError or TypeError, with advice, for arguments that cannot be sent.
    Reference: "Create batch request", Request JSON.
    """

    method: str
    path: str
    body: Any = dataclasses.field(default=None, compare=False)
    id: str | None = None
    _json: str = dataclasses.field(init=False, repr=False)  # all fields but the id

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ValueError(f"method must be one of {', '.join(_METHODS)}, not {self.method!r}")
        if self.id is not None:
            _check_text("id", self.id)
        path = _checked_path(self.path)
        if path is not self.path:
            object.__setattr__(self, "path", path)  # the way into a frozen dataclass
        object.__setattr__(self, "_json", _request_json(self.method, path, self.body))

    @classmethod
    def get(cls, path: str, params: Params = None, *, id: str | None = None) -> BatchRequest:
        """Return a GET request.

        params  mapping that is appended to the path as its query. None values are left out, a bool
                becomes "true" or "false", a list or tuple is joined with commas, and everything is
                percent-encoded
        """
        return cls("GET", _path_with_params(path, params), None, id)

    @classmethod
    def post(
        cls, path: str, body: Any = None, params: Params = None, *, id: str | None = None
    ) -> BatchRequest:
        """Return a POST request; `params` as for `get`."""
        return cls("POST", _path_with_params(path, params), body, id)

    @classmethod
    def put(
        cls, path: str, body: Any = None, params: Params = None, *, id: str | None = None
    ) -> BatchRequest:
        """Return a PUT request; `params` as for `get`."""
        return cls("PUT", _path_with_params(path, params), body, id)

    @classmethod
    def delete(cls, path: str, params: Params = None, *, id: str | None = None) -> BatchRequest:
        """Return a DELETE request; `params` as for `get`."""
        return cls("DELETE", _path_with_params(path, params), None, id)


_PLAIN_PATH = re.compile("(?!/api/)(?:/[A-Za-z0-9_-]+)+").fullmatch  # nothing to check or encode


def _checked_path(path: str) -> str:
    """Return the path as it is sent. Raises ValueError or TypeError if it must not be sent."""
    if not isinstance(path, str):
        raise TypeError(f"path must be a str such as '/products', not {type(path).__name__}")
    if _PLAIN_PATH(path):
        return path
    _check_path(path)
    return _quoted_path(path)


def _check_path(path: str) -> None:
    """Raise ValueError if the path could leave the store or holds what no path may hold."""
    route, _, query = path.partition("?")
    names = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    if {"token", "access_token"} & {name.lower() for name in names}:  # first: never shown below
        raise ValueError("path must not hold a token: the client sends its own")
    if "#" in path:
        raise ValueError("path must not have a fragment; write '#' as %23")
    shown = f"not {_one_line(path)!r}"
    if not path.startswith("/") or path.startswith("//"):
        raise ValueError(
            f"path must be relative to the store and begin with one '/', such as '/orders', {shown}"
        )
    if re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", path):
        raise ValueError(f"path must not hold control characters or lone surrogates, {shown}")
    segments = _segments(route)
    if ".." in segments:
        raise ValueError(f"path must stay inside the store, without a '..' segment, {shown}")
    if segments[1:3] == ["api", "v3"]:
        raise ValueError(
            "path must not repeat /api/v3/{storeId}, which Ecwid adds itself: begin with what "
            f"follows it, such as '/orders', {shown}"
        )


def _segments(route: str) -> list[str]:
    """Return the segments of a route as the most lenient server would read them.

    Such a server takes a backslash for a slash, and drops white space and what follows a semicolon,
    a question mark or a number sign.
    """
    segments = re.split(r"[/\\]", _decoded(route))
    return [re.split("[;?#]", segment)[0].strip() for segment in segments]


def _decoded(route: str) -> str:
    """Return a route with all its percent-encoding undone, as often as it was done.

    Raises ValueError for control characters, and for more layers than anybody needs.
    """
    for _ in range(5):
        decoded = urllib.parse.unquote(route)
        if re.search("[\x00-\x1f\x7f]", decoded):
            raise ValueError("path must not hold control characters, percent-encoded or not")
        if decoded == route:
            return decoded
        route = decoded
    raise ValueError("path is percent-encoded more than four times; encode it once")


def _quoted_path(path: str) -> str:
    """Return the path with everything percent-encoded that a URL cannot hold."""
    route, mark, query = path.partition("?")
    route = route.replace("+", "%2B")  # Ecwid decodes segments as a query, where + is a space
    text = re.sub("%(?![0-9A-Fa-f]{2})", "%25", route + mark + query)
    return urllib.parse.quote(text, safe="/?%:@!$&'()*+,;=")


def _path_with_params(path: str, params: Params) -> str:
    if params is None or not isinstance(path, str):  # the latter is refused by BatchRequest
        return path
    if not hasattr(params, "items"):
        kind = type(params).__name__
        raise TypeError(f"params must be a mapping such as {{'limit': 1}}, not {kind}")
    pairs = []
    for name, value in params.items():
        _check_text("the name of a parameter", name)
        if value is None:
            continue
        if not isinstance(value, (list, tuple)):
            value = [value]
        texts = [urllib.parse.quote(_param_text(name, item), safe="") for item in value]
        pairs.append(f"{urllib.parse.quote(name, safe='')}={','.join(texts)}")
    if not pairs:
        return path
    mark = "&" if "?" in path else "?"
    return path + mark + "&".join(pairs)


def _param_text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or (hasattr(value, "__iter__") and not isinstance(value, str)):
        raise TypeError(
            f"parameter {name} must be text, a number, a bool or a list of them, not {value!r}"
        )
    text = str(value)
    special = text.strip("+-").lower() in ("nan", "snan", "inf", "infinity")
    if special and not isinstance(value, str):
        raise ValueError(f"parameter {name} must be a number that can be written, not {text}")
    return text


_DECIMAL = os.urandom(
    16
).hex()  # marks a Decimal until its quotes are removed; random: in no caller's text


def _json_default(value: object) -> str:
    """Return the stand-in of a value that the json module does not know."""
    from decimal import Decimal

    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError(f"{value} is not a JSON number")
        return f"{_DECIMAL}{value}{_DECIMAL}"
    hint = ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        hint = "; put a URL into the externalUrl parameter of the call instead"
    raise TypeError(f"{type(value).__name__} is not a JSON type{hint}")


_quote = json.encoder.encode_basestring_ascii  # what the json module writes a str with


def _make_encoder() -> Callable[[Any], str]:
    """Return a function that writes a value as JSON.

    json.JSONEncoder prepares its C encoder anew for every call, which costs as much as a small
    body. Prepared once, it writes the same text.
    """
    try:
        write = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            None, _json_default, _quote, None, ": ", ", ", False, False, False
        )
    except (AttributeError, TypeError):  # PyPy has none; another Python may have another
        return json.JSONEncoder(allow_nan=False, default=_json_default).encode
    return lambda value: "".join(write(value, 0))


_encode = _make_encoder()


def _request_json(method: str, path: str, body: Any) -> str:
    """Return the JSON text of a request from its path on: the batch puts the id before it."""
    if body is None:
        return f'"path": "{path}", "method": "{method}"}}'
    try:
        text = _encode(body)
    except TypeError as error:
        raise TypeError(f"{method} {path}: the body cannot be JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{method} {path}: the body cannot be JSON: {error}") from None
    if _DECIMAL in text:
        text = text.replace(f'"{_DECIMAL}', "").replace(f'{_DECIMAL}"', "")
    return f'"path": "{path}", "method": "{method}", "body": {text}}}'


class _Options:
    """How Ecwid is to run a batch; the arguments are those of `Batch`."""

    def __init__(
        self,
        allow_parallel_mode: bool | None,
        stop_on_first_failure: bool | None,
        group_id: str | None,
    ) -> None:
        for value in (allow_parallel_mode, stop_on_first_failure):
            if value is not None and not isinstance(value, bool):
                raise TypeError(
                    "allow_parallel_mode and stop_on_first_failure must be a bool or None, "
                    f"not {value!r}"
                )
        if group_id is not None:
            _check_text("group_id", group_id)
        self.allow_parallel_mode = allow_parallel_mode
        self.stop_on_first_failure = stop_on_first_failure
        self.group_id = group_id

    @property
    def stops_on_failure(self) -> bool:
        """Whether the first failure ends the batch."""
        return self.stop_on_first_failure is not False


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Batch:
    """1 to 500 requests, and how Ecwid is to run them.

    requests               any iterable of BatchRequest
    allow_parallel_mode    True runs up to 100 requests at once. Ecwid's default is one at a time
    stop_on_first_failure  False goes on after a failed request; a request that meets a 5XX is then
                           tried 5 times, 3 s apart. Ecwid's default is to end the batch, and the
                           rest is NOT_EXECUTED
    deduplication_key      a UUID; None makes a new one. For one hour Ecwid treats batches with the
                           same key as one batch
    group_id               a name by which the batch can be cancelled

    None leaves an option to Ecwid. `ids` holds what is sent as the id of each request: its own, or
    its position from "000001" on.

    A Batch is one job: submitting the same object, or another with the same key, within the hour
    returns the results of the first submission, failures included; later it runs again. Make a new
    Batch to run the requests again.

    Raises ValueError or TypeError for what cannot be sent, naming the request.
    Reference: "Create batch request", Query params.
    """

    requests: tuple[BatchRequest, ...]
    allow_parallel_mode: bool | None
    stop_on_first_failure: bool | None
    deduplication_key: str
    group_id: str | None
    ids: tuple[str, ...] = dataclasses.field(init=False)

    def __init__(
        self,
        requests: Iterable[BatchRequest],
        *,
        allow_parallel_mode: bool | None = None,
        stop_on_first_failure: bool | None = None,
        deduplication_key: str | None = None,
        group_id: str | None = None,
    ) -> None:
        options = _Options(allow_parallel_mode, stop_on_first_failure, group_id)
        key = _checked_key(deduplication_key)
        found = tuple(itertools.islice(requests, _MAX_REQUESTS + 1))
        if not found:
            raise ValueError(f"a batch needs 1 to {_MAX_REQUESTS} requests, not none")
        if len(found) > _MAX_REQUESTS:
            raise ValueError(
                f"a batch takes at most {_MAX_REQUESTS} requests; Batch.split and "
                "EcwidClient.stream take any number"
            )
        self._fill(found, _ids(found, 1), options, key)

    def _fill(
        self,
        requests: tuple[BatchRequest, ...],
        ids: tuple[str, ...],
        options: _Options,
        key: str,
    ) -> None:
        set_field = functools.partial(object.__setattr__, self)
        set_field("requests", requests)
        set_field("ids", ids)
        set_field("allow_parallel_mode", options.allow_parallel_mode)
        set_field("stop_on_first_failure", options.stop_on_first_failure)
        set_field("deduplication_key", key)
        set_field("group_id", options.group_id)

    @classmethod
    def from_json(
        cls,
        source: str | bytes | list[Any],
        *,
        allow_parallel_mode: bool | None = None,
        stop_on_first_failure: bool | None = None,
        deduplication_key: str | None = None,
        group_id: str | None = None,
    ) -> Batch:
        """Return the batch that a JSON array describes, as text or already parsed.

        The array is that of the reference, "Create batch request", Request JSON. Raises ValueError
        that names the place of what is wrong, or TypeError for a source of another type.
        """
        items: Any = source
        if isinstance(source, (str, bytes)):
            items = _parse_json(source, "the batch")
        if not isinstance(items, list):
            kind = type(items).__name__
            raise TypeError(f"the batch must be a JSON array of requests, not {kind}")
        return cls(
            [_read_request(item, f"request {place}") for place, item in enumerate(items, 1)],
            allow_parallel_mode=allow_parallel_mode,
            stop_on_first_failure=stop_on_first_failure,
            deduplication_key=deduplication_key,
            group_id=group_id,
        )

    @classmethod
    def split(
        cls,
        requests: Iterable[BatchRequest],
        *,
        batch_size: int = _MAX_REQUESTS,
        allow_parallel_mode: bool | None = None,
        stop_on_first_failure: bool | None = None,
        deduplication_key: str | None = None,
        group_id: str | None = None,
    ) -> Iterator[Batch]:
        """Return an iterator of batches that reads the requests as they are needed.

        Missing ids are numbered through all batches. The key of each batch is derived from
        `deduplication_key`, the number of the batch and its content: the same requests in batches
        of the same size under the same key give the same keys, and no two batches share one.
        """
        options = _Options(allow_parallel_mode, stop_on_first_failure, group_id)
        return _split(requests, batch_size, options, _checked_key(deduplication_key))

    @property
    def query(self) -> dict[str, str]:
        """The query parameters that will be sent."""
        query = {"deduplicationKey": self.deduplication_key}
        if self.allow_parallel_mode is not None:
            query["allowParallelMode"] = str(self.allow_parallel_mode).lower()
        if self.stop_on_first_failure is not None:
            query["stopOnFirstFailure"] = str(self.stop_on_first_failure).lower()
        if self.group_id is not None:
            query["groupId"] = self.group_id
        return query

    def to_json(self) -> bytes:
        """Return the body that will be sent, a JSON array."""
        return _batch_json(self.ids, self.requests).encode("ascii")

    def _key_age(self) -> _Age:
        """Return the time since this object was first submitted; a new one after the hour."""
        age: _Age | None = vars(self).get("_age")
        if age is None or age.seconds() > _KEY_LIFETIME + _KEY_MARGIN:
            age = _Age()
            object.__setattr__(self, "_age", age)
        return age

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.requests)

    def __repr__(self) -> str:
        names = [f"{request.method} {request.path[:60]}" for request in self.requests]
        ends = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
        return f"<Batch of {len(self):,}: {ends}>"


def _batch_json(ids: tuple[str, ...], requests: tuple[BatchRequest, ...]) -> str:
    items = [f'{{"id": {_quote(id)}, {request._json}' for id, request in zip(ids, requests)]
    return f"[{', '.join(items)}]"


def _checked_key(key: str | None) -> str:
    """Return the deduplication key in its usual form, a new one for None."""
    import uuid

    if key is None:
        return str(uuid.uuid4())
    try:
        return str(uuid.UUID(str(key)))
    except ValueError:
        example = uuid.uuid4()
        raise ValueError(
            f"deduplication_key must be a UUID such as {example}, not {key!r}"
        ) from None


def _ids(requests: tuple[BatchRequest, ...], first: int) -> tuple[str, ...]:
    """Return the id of each request: its own, or its place in the job, counted from `first`.

    Raises TypeError for what is not a request, ValueError for an id that is repeated.
    """
    taken: set[str] = set()
    for place, request in enumerate(requests, first):
        if not isinstance(request, BatchRequest):
            kind = type(request).__name__
            raise TypeError(
                f"request {place} must be a BatchRequest, not {kind}; Batch.from_json reads JSON"
            )
        if request.id is None:
            continue
        if request.id in taken:
            raise ValueError(
                f"request {place} ({request.method} {request.path}): the id {request.id!r} is "
                "repeated, but only the id tells one response from another"
            )
        taken.add(request.id)
    if not taken:  # as in most batches: the fast way
        return tuple(f"{place:06d}" for place in range(first, first + len(requests)))
    ids = []
    for place, request in enumerate(requests, first):
        id = request.id or _free_id(place, taken)
        taken.add(id)
        ids.append(id)
    return tuple(ids)


def _free_id(place: int, taken: set[str]) -> str:
    id = f"{place:06d}"
    while id in taken:
        place += 1
        id = f"{place:06d}"
    return id


def _read_request(item: Any, where: str) -> BatchRequest:
    """Return the request that parsed JSON describes. Raises ValueError that names the place."""
    try:
        if not isinstance(item, dict) or not item.keys() >= {"method", "path"}:
            raise ValueError("must be a JSON object with method and path")
        for name in item.keys() - {"id", "path", "method", "body"}:
            raise ValueError(
                f"has an unknown field {name!r}; the fields are id, path, method and body"
            )
        return BatchRequest(**item)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _split(
    requests: Iterable[BatchRequest], batch_size: int, options: _Options, key: str
) -> Iterator[Batch]:
    _check_number("batch_size", batch_size, int, 1, _MAX_REQUESTS)
    source = iter(requests)

    def batches() -> Iterator[Batch]:
        for number in itertools.count(1):
            chunk = tuple(itertools.islice(source, batch_size))
            if not chunk:
                return
            ids = _ids(chunk, batch_size * (number - 1) + 1)
            yield _part_of_job(chunk, ids, options, key, str(number))

    return batches()


def _part_of_job(
    requests: tuple[BatchRequest, ...],
    ids: tuple[str, ...],
    options: _Options,
    job_key: str,
    place: str,
) -> Batch:
    """Return a batch of a job, with a key made of the job's key, its place and its content."""
    import uuid

    key = uuid.uuid5(uuid.UUID(job_key), f"{place}:{_batch_json(ids, requests)}")
    batch = object.__new__(Batch)
    batch._fill(requests, ids, options, str(key))
    return batch


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode  # json.loads without NaN


def _parse_json(text: str | bytes | bytearray, what: str) -> Any:
    """Return the value of a JSON text in UTF-8. Raises ValueError that says `what` is not JSON."""
    try:
        if not isinstance(text, str):
            text = text.decode("utf-8-sig")
        return _decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from None


# --- Responses and statuses -----------------------------------------------------------------------

_NO_RESPONSE = "Ecwid sent no response for this request; it may have run"
_CONTRADICTION = "Ecwid says both that this request ran and that it did not"
_NOT_RUN = "Ecwid did not run this request"
_CANCELLED = "cancelled before it ran"
_DEFAULT_MESSAGES = {
    "FAILED": "failed without a reason",
    "UNKNOWN": _NO_RESPONSE,
    "NOT_EXECUTED": _NOT_RUN,
}
_TEXT_OR_NONE = (str, type(None))


@dataclasses.dataclass(repr=False, unsafe_hash=True)  # frozen would double the time to make one
class BatchResponse:
    """The outcome of one request.

    id                that of the request
    status            "COMPLETED"; "FAILED" (the call was answered with an error); "NOT_EXECUTED"
                      (an earlier failure or a cancel came first); or "UNKNOWN" (Ecwid sent no
                      response for the request, which may have run)
    http_status_code  of the answer to the call, or None
    http_status_line  the reason for that code; for a failed request, the error message
    error_message     why the request failed or did not run; None if it succeeded
    error_code        Ecwid's code of the error, such as "WRONG_PARAMETER", or None

    Reference: "Get batch request status", Response JSON.
    """

    id: str | None
    status: str
    http_status_code: int | None = None
    http_status_line: str | None = None
    error_message: str | None = None
    error_code: str | None = None
    _http_body: Any = dataclasses.field(default=None, hash=False)
    _escaped_body: str | None = None
    _request: BatchRequest | None = None
    _cancelled: bool = False

    @property
    def request(self) -> BatchRequest:
        """The request. Raises LookupError where it is not known: after `wait` without a batch."""
        if self._request is None:
            raise LookupError("the request is not known here; pass batch= to wait()")
        return self._request

    @functools.cached_property
    def body(self) -> Any:
        """The JSON of the answer, parsed at first use; its text if it is not JSON; or None."""
        if self._escaped_body is None:
            return self._http_body
        return _json_or_text(self._escaped_body)

    @property
    def ok(self) -> bool:
        """Whether the request ran and succeeded."""
        return self.status == "COMPLETED"

    @property
    def retryable(self) -> bool:
        """Whether repeating the request may help and cannot do harm.

        That is so after 429 and for NOT_EXECUTED; and for a GET, PUT or DELETE, which may run
        twice, also after 408, 5XX and for UNKNOWN. A PUT that adjusts an inventory may not.
        """
        code = self.http_status_code or 0
        if self.status == "NOT_EXECUTED":
            return True
        if self.status == "FAILED" and code == 429:
            return True
        if self._request is None or not _may_run_twice(self._request):
            return False
        return self.status == "UNKNOWN" or (self.status == "FAILED" and _may_have_run(code))

    def _answering(self, id: str, request: BatchRequest) -> BatchResponse:
        """Return a copy that knows its request. (dataclasses.replace takes five times as long.)"""
        copy = object.__new__(BatchResponse)
        copy.__dict__.update(self.__dict__, id=id, _request=request)
        return copy

    def __repr__(self) -> str:
        words = [str(self.id), self.status]
        if self.http_status_code is not None:
            words.append(str(self.http_status_code))
        if self.error_message is not None:
            words.append(self.error_message)
        return _one_line(f"<BatchResponse {' '.join(words)}", 120) + ">"


def _may_run_twice(request: BatchRequest) -> bool:
    """Return whether running the request twice does what running it once does.

    "Adjust product inventory" is a PUT that adds a difference.
    """
    route = request.path.partition("?")[0]
    return request.method != "POST" and not route.rstrip("/").endswith("/inventory")


def _may_have_run(http_status: int) -> bool:
    """Return whether a call that was answered with this HTTP status may have run all the same."""
    return http_status == 408 or http_status >= 500


def _json_or_text(text: str) -> Any:
    try:
        return _decode(text)
    except (ValueError, RecursionError):
        return text


def _read_response(row: Any, clean: Callable[[str], str]) -> BatchResponse:
    """Return the response that a row of a batch status describes.

    clean  makes text from outside fit to be shown

    Raises InvalidResponseError if the row is not what the API promises.
    """
    if not isinstance(row, dict):
        raise _invalid("a response in the batch status is not a JSON object")
    id = row.get("id")
    line = row.get("httpStatusLine")
    escaped = row.get("escapedHttpBody")
    code = row.get("httpStatusCode", row.get("httpCode")) or None  # httpCode: older reference
    _check_row(id, line, escaped, code)
    if line:
        line = clean(line)
    response = BatchResponse(
        id,
        _believed_status(row.get("status"), code),
        code,
        line,
        _http_body=row.get("httpBody"),
        _escaped_body=escaped,
    )
    if not response.ok:
        return _with_error(response, row["status"], clean)
    if code or response.body not in (None, ""):
        return response
    return dataclasses.replace(  # "Cancel batch group": it counts as COMPLETED and never runs
        response,
        status="NOT_EXECUTED",
        http_status_line=_CANCELLED,
        error_message=_CANCELLED,
        _cancelled=True,
    )


def _check_row(id: object, line: object, escaped: object, code: object) -> None:
    for text in (id, line, escaped):
        if not isinstance(text, _TEXT_OR_NONE):
            raise _invalid("a response in the batch status has a field that is not text")
    if code is not None and type(code) is not int:
        raise _invalid("a response in the batch status has a status code that is not a number")


def _believed_status(status: object, code: int | None) -> str:
    """Return the status of a row; of a row that contradicts itself, the worse reading."""
    if not isinstance(status, str):
        raise _invalid("a response in the batch status has no status")
    if status not in ("COMPLETED", "FAILED", "NOT_EXECUTED"):
        return "UNKNOWN"
    if code is None:
        return status
    succeeded = 200 <= code < 300
    if status == "COMPLETED" and not succeeded:
        return "FAILED"
    if status == "NOT_EXECUTED" and (succeeded or _may_have_run(code)):
        return "UNKNOWN"
    return status


def _with_error(
    response: BatchResponse, row_status: str, clean: Callable[[str], str]
) -> BatchResponse:
    """Return the response with error_message and error_code, from wherever Ecwid put them.

    row_status  what the row says, which may contradict its code
    """
    message, code = _error_fields(response.body, clean)
    message = message or response.http_status_line
    if response.status == "UNKNOWN" and row_status == "NOT_EXECUTED":
        message = _CONTRADICTION
    elif response.status == "UNKNOWN" and row_status != "UNKNOWN":  # not one of Ecwid's three
        message = f"Ecwid gave this request a status that is not known: {clean(row_status)}"
    elif not message:
        message = _DEFAULT_MESSAGES[response.status]
    return dataclasses.replace(response, error_message=message, error_code=code)


def _error_fields(body: Any, clean: Callable[[str], str]) -> tuple[str | None, str | None]:
    """Return message and code of an error answer, or None for what it lacks."""
    if not isinstance(body, dict):
        return None, None
    message = body.get("errorMessage", body.get("error_message"))  # the latter: older reference
    code = body.get("errorCode")
    if not isinstance(message, str):
        message = None
    if not isinstance(code, str):
        code = None
    return message and clean(message), code and clean(code)


_STATUSES = ("QUEUED", "IN_PROGRESS", "COMPLETED")


@dataclasses.dataclass(frozen=True, repr=False)
class BatchStatus:
    """How far a batch is.

    ticket              that of the batch; None from `from_dict` if the data has none
    status              "QUEUED", "IN_PROGRESS" or "COMPLETED" (no more of its requests will run)
    total_requests      how many requests the batch has
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
    def from_dict(cls, data: dict[str, Any]) -> BatchStatus:
        """Return the status that an answer of the API, or the result of `to_dict`, describes.

        Raises InvalidResponseError if it is neither.
        """
        return _read_status(data, _one_line)

    def to_dict(self) -> dict[str, Any]:
        """Return the status in the API's field names; JSON can hold it, `from_dict` reads it."""
        fields: dict[str, Any] = {
            "ticket": self.ticket,
            "status": self.status,
            "totalRequests": self.total_requests,
            "completedRequests": self.completed_requests,
        }
        if self.responses:
            fields["responses"] = [_row(response) for response in self.responses]
        return fields

    @property
    def done(self) -> bool:
        """Whether the batch has finished: no more of its requests will run."""
        return self.status == "COMPLETED"

    @property
    def succeeded(self) -> tuple[BatchResponse, ...]:
        """The responses that are `ok`."""
        return tuple(response for response in self.responses if response.ok)

    @property
    def failed(self) -> tuple[BatchResponse, ...]:
        """The responses of requests that failed, or of which it is unknown whether they ran."""
        return tuple(
            response for response in self.responses if response.status in ("FAILED", "UNKNOWN")
        )

    @property
    def not_executed(self) -> tuple[BatchResponse, ...]:
        """The responses of requests that did not run."""
        return tuple(response for response in self.responses if response.status == "NOT_EXECUTED")

    def raise_for_failures(self) -> None:
        """Raise BatchFailedError unless every request of the batch is known to have succeeded."""
        counts = []
        if self.failed:
            counts.append(f"{len(self.failed):,} failed")
        if self.not_executed:
            counts.append(f"{len(self.not_executed):,} did not run")
        if self.total_requests > len(self.responses):
            counts.append(f"{self.total_requests - len(self.responses):,} without a response")
        if not counts:
            return
        message = f"of {self.total_requests:,} requests, {', '.join(counts)}"
        unsuccessful = self.failed + self.not_executed
        if unsuccessful:
            first = unsuccessful[0]
            message += f"; the first: {_name_of(first)}: {first.error_message}"
        raise BatchFailedError(message, self)

    def __getitem__(self, id: str) -> BatchResponse:
        for response in self.responses:
            if response.id == id:
                return response
        raise KeyError(id)

    def __contains__(self, id: object) -> bool:
        return any(response.id == id for response in self.responses)

    def __iter__(self) -> Iterator[BatchResponse]:
        return iter(self.responses)

    def __repr__(self) -> str:
        return f"<BatchStatus {self.status} {self.completed_requests}/{self.total_requests}>"

    def _matched_to(self, batch: Batch) -> BatchStatus:
        """Return the status with one response for each request of the batch, in their order.

        Raises InvalidResponseError if this is the status of another batch.
        """
        found = {response.id: response for response in self.responses if response.id is not None}
        unnamed = [response for response in self.responses if response.id is None]
        missing = [id for id in batch.ids if id not in found]
        if self.total_requests != len(batch) or not found.keys() <= set(batch.ids):
            raise InvalidResponseError(
                "the ticket belongs to a batch of other requests; was the deduplication key used "
                "for another batch before?"
            )
        if len(unnamed) == len(missing) and not batch.allow_parallel_mode:
            found.update(zip(missing, unnamed))  # they ran in the order of the requests
        lost = BatchResponse(None, "UNKNOWN", error_message=_NO_RESPONSE)
        responses = tuple(
            found.get(id, lost)._answering(id, request)
            for id, request in zip(batch.ids, batch.requests)
        )
        return dataclasses.replace(self, responses=responses)


def _read_status(data: Any, clean: Callable[[str], str]) -> BatchStatus:
    if not isinstance(data, dict) or data.get("status") not in _STATUSES:
        raise _invalid(f"a batch status must be an object with status {' or '.join(_STATUSES)}")
    ticket = data.get("ticket")
    if not isinstance(ticket, _TEXT_OR_NONE):
        raise _invalid("the ticket of a batch status must be text")
    rows = data.get("responses")
    if rows is None:
        rows = []
    if not isinstance(rows, list):
        raise _invalid("the responses of a batch status must be an array")
    return BatchStatus(
        ticket,
        data["status"],
        _read_count(data, "totalRequests"),
        _read_count(data, "completedRequests"),
        _without_repeats([_read_response(row, clean) for row in rows]),
    )


def _read_count(data: Any, name: str) -> int:
    """Return a count from an answer."""
    count = data.get(name) if isinstance(data, dict) else None
    if type(count) is not int or not 0 <= count < 2**31:
        raise _invalid(f"the answer has no {name}")
    return count


def _without_repeats(responses: list[BatchResponse]) -> tuple[BatchResponse, ...]:
    """Return the responses with one, the worse, for each id."""
    found: dict[object, BatchResponse] = {}
    for place, response in enumerate(responses):
        key = place if response.id is None else response.id
        other = found.get(key)
        if other is not None:
            response = _worse(other, response)
        found[key] = response
    return tuple(found.values())


def _worse(one: BatchResponse, other: BatchResponse) -> BatchResponse:
    """Return the worse of two responses to one request.

    If one says that the request ran and the other that it did not, nobody knows.
    """
    if _ran(one) != _ran(other):
        return BatchResponse(one.id, "UNKNOWN", error_message=_CONTRADICTION)
    if one.ok:
        return other
    return one


def _ran(response: BatchResponse) -> bool:
    return response.status != "NOT_EXECUTED" and response.http_status_code != 429


def _row(response: BatchResponse) -> dict[str, Any]:
    """Return a response in the API's field names."""
    row = {
        "id": response.id,
        "status": response.status,
        "httpStatusCode": response.http_status_code,
        "httpStatusLine": response.http_status_line,
        "httpBody": response._http_body,
        "escapedHttpBody": response._escaped_body,
    }
    return {name: value for name, value in row.items() if value is not None}


def _name_of(response: BatchResponse) -> str:
    """Return what a person needs to find the request of a response."""
    if response._request is None:
        return f"request {_one_line(str(response.id))}"
    request = response._request
    return f"request {_one_line(str(response.id))} ({request.method} {request.path})"


# --- Errors ---------------------------------------------------------------------------------------


class EcwidError(Exception):
    """Base class of all failures of a call. Carries, where known, what is needed to resume.

    tickets            of the batches that are at Ecwid, oldest first; `ticket` is the first
    deduplication_key  submit the same batch, or stream the same requests, under this key and
                       nothing runs twice. None once that is no longer safe: an hour after the call
                       began. (For a key of your own, count from its first use.)
    retry_after        seconds to wait before the next call, if Ecwid asked for a pause
    temporary          whether the same call may succeed later; such a call was tried again, for
                       up to `max_retry_time` seconds
    uncertain          whether Ecwid may have acted on the call all the same
    """

    def __init__(
        self,
        message: str = "",
        *,
        tickets: tuple[str, ...] = (),
        deduplication_key: str | None = None,
        retry_after: float | None = None,
        temporary: bool = False,
        uncertain: bool = False,
    ) -> None:
        super().__init__(message)
        self.tickets = tickets
        self.deduplication_key = deduplication_key
        self.retry_after = retry_after
        self.temporary = temporary
        self.uncertain = uncertain

    @property
    def ticket(self) -> str | None:
        """The first of the tickets, or None."""
        return self.tickets[0] if self.tickets else None

    def __str__(self) -> str:
        text = str(self.args[0])
        if self.tickets:
            text += f" [ticket {', '.join(self.tickets)}]"
        if self.deduplication_key:
            text += f" [deduplication key {self.deduplication_key}]"
        return text


class ApiError(EcwidError):
    """Ecwid answered with an error. Reference: "Errors".

    http_status  the HTTP status of the answer
    code         Ecwid's code, such as "WRONG_PARAMETER", or None
    message      Ecwid's words, or None
    """

    def __init__(
        self,
        text: str = "",
        *,
        http_status: int = 0,
        code: str | None = None,
        message: str | None = None,
        retry_after: float | None = None,
        temporary: bool = False,
        uncertain: bool = False,
    ) -> None:
        super().__init__(text, retry_after=retry_after, temporary=temporary, uncertain=uncertain)
        self.http_status = http_status
        self.code = code
        self.message = message


class RateLimitError(ApiError):
    """The token made more than 600 calls in a minute (429).

    A call before `retry_after` seconds have passed prolongs the block.
    """


class TransportError(EcwidError):
    """There is no usable answer: DNS, TLS, reset, timeout, cut off, a refused redirect."""


class InvalidResponseError(EcwidError):
    """The answer is not what the API promises."""


class BatchTimeoutError(EcwidError, TimeoutError):
    """The caller's timeout is over. What was submitted goes on at Ecwid.

    last_status  the last status that was seen, or None
    """

    def __init__(
        self,
        message: str = "",
        *,
        last_status: BatchStatus | None = None,
        uncertain: bool = False,
    ) -> None:
        super().__init__(message, temporary=True, uncertain=uncertain)
        self.last_status = last_status


class BatchFailedError(EcwidError):
    """Not every request is known to have succeeded; raised by `raise_for_failures`.

    status        the status of the batch
    failed        as those of the status
    not_executed  as those of the status
    """

    def __init__(self, message: str, status: BatchStatus) -> None:
        super().__init__(message)
        self.args = (message, status)  # what pickling passes to this constructor
        if status.ticket is not None:
            self.tickets = (status.ticket,)
        self.status = status
        self.failed = status.failed
        self.not_executed = status.not_executed


def _invalid(message: str) -> InvalidResponseError:
    """Return the error of an answer that is broken and may come whole next time."""
    return InvalidResponseError(message, temporary=True, uncertain=True)


# --- Transport: one exchange, without policy ------------------------------------------------------

_MAX_ANSWER = 256 * 1024 * 1024  # bytes, decompressed


class _Answer:
    """What came back from one exchange, whatever its HTTP status."""

    def __init__(self, status: int, headers: Any, body: bytes | bytearray) -> None:
        self.status = status
        self.headers = headers
        self.body = body


def _exchange(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request, seconds: float
) -> _Answer:
    """Send a request and return its answer, within `seconds`.

    Raises TransportError if there is no usable answer, InvalidResponseError if it is too large.

    urllib's timeout bounds each wait for the network, but neither their sum nor the look-up of a
    name. Only a thread of its own, which is abandoned when the time is over, bounds everything.
    """
    outcome: list[_Answer | EcwidError] = []
    thread = threading.Thread(
        target=lambda: outcome.append(_receive(opener, request, seconds)),
        name="ecwid_batch exchange",
        daemon=True,
    )
    try:
        thread.start()
    except RuntimeError as error:  # the system has no more threads
        raise TransportError(str(error), temporary=True) from None
    thread.join(seconds)
    if not outcome:
        raise TransportError(
            f"no complete answer within {seconds:.3g} s", temporary=True, uncertain=True
        )
    answer = outcome[0]
    if isinstance(answer, EcwidError):
        raise answer
    return answer


def _receive(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request, seconds: float
) -> _Answer | EcwidError:
    """Return the answer to a request, or the error that there was instead."""
    deadline = time.monotonic() + seconds
    try:
        return _read_answer(_open(opener, request, seconds), deadline)
    except EcwidError as error:
        return error
    except Exception as error:  # whatever urllib, http.client, zlib or a caller's opener raise
        return _transport_error(error)


def _open(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request, seconds: float
) -> Any:
    try:
        return opener.open(request, timeout=seconds)
    except urllib.error.HTTPError as error:  # a caller's opener raises error answers
        return error


def _read_answer(response: Any, deadline: float) -> _Answer:
    """Read an answer to its end and close it."""
    status = response.code
    headers = response.headers
    if headers is None:
        headers = {}
    if getattr(response, "fp", response) is None:  # an HTTPError without a body
        return _Answer(status, headers, b"")
    with response:
        try:
            return _Answer(status, headers, _read_body(response, headers, deadline))
        except Exception:
            if 200 <= status < 300:
                raise
            return _Answer(status, headers, b"")  # the status and Retry-After count all the same


def _read_body(response: Any, headers: Any, deadline: float) -> bytearray:
    """Return the whole body, decompressed."""
    chunks = _chunks(response, deadline)
    if headers.get("Content-Encoding", "").lower() == "gzip":
        chunks = _unzipped(chunks)
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > _MAX_ANSWER:
            raise InvalidResponseError(
                f"the answer is larger than {_MAX_ANSWER:,} bytes; use a smaller batch_size",
                uncertain=True,
            )
    return body


def _chunks(response: Any, deadline: float) -> Iterator[bytes]:
    """Yield the body as it arrives. Raises TransportError if it is cut off or late."""
    read = getattr(response, "read1", response.read)  # read() waits for all of a slow chunk
    length = getattr(response, "length", None)  # Content-Length, where there is a valid one
    received = 0
    while length is None or received < length:
        if time.monotonic() > deadline:  # ends the thread of a server that trickles
            raise TimeoutError("timed out while the answer trickled")
        chunk = read(65536)
        if not chunk:
            break
        received += len(chunk)
        yield chunk
    if length is not None and received < length:
        raise _cut_off(received)


def _unzipped(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress gzip. Raises TransportError if it is cut off; ignores what follows its end."""
    unzip = zlib.decompressobj(wbits=31)
    received = 0
    for chunk in chunks:
        received += len(chunk)
        yield unzip.decompress(chunk)
        if unzip.eof:
            return
    raise _cut_off(received)


def _cut_off(received: int) -> TransportError:
    return TransportError(
        f"the answer is cut off after {received:,} bytes", temporary=True, uncertain=True
    )


def _transport_error(error: Exception) -> TransportError:
    """Return the TransportError for whatever was raised during an exchange.

    It has no __cause__, which could quote the token.
    """
    cause: Any = getattr(error, "reason", None)
    if not isinstance(cause, Exception):
        cause = error
    message = f"{type(cause).__name__}: {re.sub('[^ /]*@', '***@', str(cause))}"  # a proxy's user
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TransportError(f"{message}; check SSL_CERT_FILE and the clock of this host")
    if isinstance(cause, (socket.gaierror, ConnectionRefusedError)):
        return TransportError(message, temporary=True)
    tunnel = re.match(r"Tunnel connection failed: (\d+)", str(cause))  # http.client's words
    if tunnel is not None:
        temporary = _is_temporary(int(tunnel[1]))
        return TransportError(f"{message}; check the proxy", temporary=temporary)
    return TransportError(message, temporary=True, uncertain=True)


def _is_temporary(http_status: int) -> bool:
    """Return whether the same call may succeed after an answer with this HTTP status."""
    return http_status == 429 or _may_have_run(http_status)


def _opener_for(base_url: str) -> urllib.request.OpenerDirector:
    """Return the opener for a URL, as the environment is now; loopback gets no proxy."""
    parts = urllib.parse.urlsplit(base_url)
    proxies: dict[str, str] = {}
    if not _is_loopback(parts.hostname):
        proxies = urllib.request.getproxies()
    try:
        return _shared_opener(
            parts.scheme,
            tuple(sorted(proxies.items())),
            os.environ.get("SSL_CERT_FILE"),
            os.environ.get("SSL_CERT_DIR"),
        )
    except OSError as error:
        raise TransportError(f"cannot set up TLS: {error}; check SSL_CERT_FILE") from None


@functools.lru_cache(maxsize=8)
def _shared_opener(
    scheme: str,
    proxies: tuple[tuple[str, str], ...],
    *ca_bundle: str | None,  # for the cache only
) -> urllib.request.OpenerDirector:
    """Return one opener for all clients of a kind: a CA bundle takes ten calls' time to load."""
    opener = urllib.request.OpenerDirector()  # without handlers for redirects and errors
    opener.add_handler(urllib.request.ProxyHandler(dict(proxies)))
    if scheme == "https":
        opener.add_handler(_HTTPSHandler(ssl.create_default_context()))
    else:
        opener.add_handler(_HTTPHandler(debuglevel=0))
    return opener


class _Age:
    """The time since a deduplication key was first sent, or since another moment.

    The larger of both clocks counts: the monotonic clock of a suspended machine stands still, and
    the wall clock may be set back.
    """

    def __init__(self, since: float | None = None) -> None:
        """since: the beginning, as time.time() gives it; None means now."""
        self._monotonic = time.monotonic()
        self.since = time.time() if since is None else since

    def __reduce__(self) -> tuple[type[_Age], tuple[float]]:
        return _Age, (self.since,)  # another host has another monotonic clock

    def seconds(self) -> float:
        return max(time.monotonic() - self._monotonic, time.time() - self.since)

    def seconds_left(self) -> float:
        """Return for how long it is still safe to submit under the key."""
        if time.time() < self.since - _KEY_MARGIN:  # a clock was set back: the age is not known
            return 0.0
        return _KEY_LIFETIME - _KEY_MARGIN - self.seconds()

    def key_if_safe(self, key: str) -> str | None:
        return key if self.seconds_left() > 0 else None


class _HTTPConnection(http.client.HTTPConnection):
    """A connection that sends nothing if it was made too late.

    The name look-up and the connection itself can take longer than the timeout, and the host can be
    suspended meanwhile. Nobody waits for the exchange any more then, and the deduplication key of a
    submission may have been forgotten.
    """

    def connect(self) -> None:
        age = _Age()
        super().connect()
        if self.timeout is not None and age.seconds() > self.timeout:
            self.close()
            raise TimeoutError("connected too late to send anything")


class _HTTPSConnection(_HTTPConnection, http.client.HTTPSConnection):
    """The same over TLS, whose handshake counts."""


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPConnection, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(debuglevel=0, context=context)  # 0, or http.client may print the token
        self._tls = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPSConnection, req, context=self._tls)


def _is_loopback(host: str | None) -> bool:
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _retry_after(headers: Any) -> float | None:
    """Return the header Retry-After in seconds, be it a number or a date; None without it."""
    text = headers.get("Retry-After") or ""
    until = _timestamp(text)
    if until is not None:
        now = _timestamp(headers.get("Date") or "")  # by the server's own clock, if it tells
        if now is None:
            now = time.time()
        return max(0.0, until - now)
    try:
        seconds = float(text)
    except ValueError:
        return None
    if not 0 <= seconds < math.inf:
        return None
    return seconds


def _timestamp(http_date: str) -> float | None:
    try:
        date = email.utils.parsedate_tz(http_date)
        return None if date is None else email.utils.mktime_tz(date)
    except (TypeError, ValueError, IndexError, OverflowError):  # depends on Python's version
        return None


# --- Client ---------------------------------------------------------------------------------------
#
# The way of a request:
#
#   BatchRequest           checks the path and makes its JSON text
#   Batch                  gives it an id and joins the texts
#   EcwidClient.submit     POSTs the batch:          _submit -> _call
#   EcwidClient.wait       polls until it is done:   _follow -> _status -> _call
#   _call                  tries until it succeeds:  _answer -> _request, _exchange -> urllib
#   BatchStatus            reads the answer, one BatchResponse a row
#   _matched_to            puts the responses into the order of the requests
#
# `run` is submit and wait. `stream` does the same for each batch of a job: see `_Job`.

_BACKOFF_FIRST = 0.5  # seconds; the longest first pause before another try
_BACKOFF_LAST = 30.0  # seconds; the longest pause that grows by doubling
_RATE_LIMIT_PAUSE = 10.0  # seconds after a 429 without Retry-After, as in the official client
_LONGEST_BLOCK = 86400.0  # seconds; a Retry-After beyond is taken for a mistake
_BASE_URL = "https://app.ecwid.com/api/v3"
_TIMEOUT = 60.0  # seconds for one exchange
_MAX_RETRY_TIME = 120.0  # seconds
_KEY_LIFETIME = 3600.0  # seconds; reference: "Create batch request", deduplicationKey
_KEY_MARGIN = 60.0  # seconds; a submission may be that long on its way
_PAGE_SIZE = 100  # tickets; reference: "Search batch requests", limit

_ADVICE = {
    401: "check the token",
    402: "check the plan of the store",
    403: "check the token, and that it has the access scopes of all requests in the batch",
    404: "check the store id, the ticket and the base URL",
    407: "check the user and password of the proxy",
}

_block_lock = threading.Lock()  # guards EcwidClient._blocked_until; a lock cannot be pickled


class EcwidClient:
    """The batch endpoints of one store.

    store_id        a positive integer, or its digits
    token           the access token, such as "secret_..."
    base_url        HTTPS, or HTTP to loopback, which never uses a proxy
    timeout         seconds for one exchange, from the name look-up to the last byte of the answer
    max_retry_time  seconds from its first failure for which a call is tried again, up to 3600.
                    Connection failures, broken answers, 408, 429 and 5XX are tried again, after
                    pauses that grow to 30 s, or as long as Retry-After says
    opener          a urllib.request.OpenerDirector to use instead of the built-in one, which takes
                    proxies and the CA bundle from the environment and follows no redirect

    Threads can share a client: a 429 holds all of them back. A client can be copied and pickled,
    unless its `opener` cannot; the pickle holds the token.

    Every method raises ValueError or TypeError for invalid arguments before anything is sent, and
    ApiError, RateLimitError, TransportError or InvalidResponseError if the call fails.
    """

    def __init__(
        self,
        store_id: int | str,
        token: str,
        *,
        base_url: str = _BASE_URL,
        timeout: float = _TIMEOUT,
        max_retry_time: float = _MAX_RETRY_TIME,
        opener: urllib.request.OpenerDirector | None = None,
    ) -> None:
        if isinstance(store_id, str) and re.fullmatch("[0-9]{1,18}", store_id):
            store_id = int(store_id)
        if isinstance(store_id, bool) or not isinstance(store_id, int) or store_id < 1:
            raise ValueError(
                "store_id must be a positive integer such as 1003"
            )  # not shown: a token?
        if not isinstance(token, str) or not re.fullmatch("[!-~]+", token):
            raise ValueError("token must be visible ASCII without spaces (it is not shown here)")
        if opener is not None and not hasattr(opener, "open"):
            raise TypeError("opener must be a urllib.request.OpenerDirector")
        _check_base_url(base_url)
        _check_number("timeout", timeout, (int, float), 0.001, 86400)
        _check_number("max_retry_time", max_retry_time, (int, float), 0, _KEY_LIFETIME)
        self.store_id = store_id
        self.token = token
        self.base_url = base_url.rstrip("/")
        self.timeout = timeout
        self.max_retry_time = max_retry_time
        self.opener = opener
        self._blocked_until = -math.inf  # of time.monotonic(): no call before

    @classmethod
    def from_env(
        cls,
        *,
        store_id: int | str | None = None,
        token: str | None = None,
        base_url: str | None = None,
        timeout: float = _TIMEOUT,
        max_retry_time: float = _MAX_RETRY_TIME,
        opener: urllib.request.OpenerDirector | None = None,
    ) -> EcwidClient:
        """Return a client for ECWID_STORE_ID, ECWID_TOKEN and ECWID_BASE_URL, which is optional.

        An argument takes precedence over its variable. Raises ValueError if one is missing.
        """
        if store_id is None:
            store_id = _variable("ECWID_STORE_ID")
        if token is None:
            token = _variable("ECWID_TOKEN")
        if base_url is None:
            base_url = os.environ.get("ECWID_BASE_URL")
        return cls(
            store_id,
            token,
            base_url=base_url or _BASE_URL,
            timeout=timeout,
            max_retry_time=max_retry_time,
            opener=opener,
        )

    def __repr__(self) -> str:
        fields = vars(self)  # which may be empty: in the traceback of a wrong argument
        return (
            f"EcwidClient(store_id={fields.get('store_id')}, base_url={fields.get('base_url')!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocked_until": -math.inf}  # monotonic time is this host's

    def submit(self, batch: Batch) -> str:
        """Submit a batch and return its ticket, a str that can be kept anywhere.

        Reference: "Create batch request".
        """
        _check_batch(batch)
        return self._submit(batch, math.inf, batch._key_age())

    def status(self, ticket: str, *, responses: bool = True) -> BatchStatus:
        """Return how far a batch is, with or without the responses so far.

        Reference: "Get batch request status".
        """
        try:
            return self._status(ticket, math.inf, responses=responses)
        except EcwidError as error:
            error.tickets = (ticket,)
            raise

    def wait(
        self,
        ticket: str,
        *,
        batch: Batch | None = None,
        timeout: float | None = None,
        on_progress: OnProgress = None,
    ) -> BatchStatus:
        """Wait until a submitted batch has finished; return its status with its responses.

        batch        the batch of the ticket: each of its requests then gets exactly one response,
                     in their order. Without it the responses are those that Ecwid sends, and their
                     `request` is not known
        timeout      seconds after which BatchTimeoutError is raised; None waits without an end. A
                     failure after which Ecwid asks for a longer pause is raised at once
        on_progress  function that is called with the status after every look at the batch
        """

        _check_text("ticket", ticket)
        _check_on_progress(on_progress)
        if batch is not None:
            _check_batch(batch)

        def resume(error: EcwidError) -> None:
            _add_ticket(error, ticket)

        return self._follow(ticket, batch, _deadline(timeout), on_progress, resume)

    def run(
        self, batch: Batch, *, timeout: float | None = None, on_progress: OnProgress = None
    ) -> BatchStatus:
        """Submit a batch and wait until it has finished; return its status.

        The status has exactly one response for each request, in their order. `timeout` and
        `on_progress` are those of `wait`. An error carries the ticket, and the deduplication key
        while using it is safe.
        """
        deadline = _deadline(timeout)
        _check_batch(batch)
        _check_on_progress(on_progress)
        age = batch._key_age()
        ticket = self._submit(batch, deadline, age)

        def resume(error: EcwidError) -> None:
            _add_ticket(error, ticket)
            error.deduplication_key = age.key_if_safe(batch.deduplication_key)

        return self._follow(ticket, batch, deadline, on_progress, resume)

    def stream(
        self,
        requests: Iterable[BatchRequest],
        *,
        journal: FilePath | None = None,
        batch_size: int = _MAX_REQUESTS,
        retry: int = 0,
        timeout: float | None = None,
        on_progress: OnProgress = None,
        allow_parallel_mode: bool | None = None,
        stop_on_first_failure: bool | None = None,
        deduplication_key: str | None = None,
        group_id: str | None = None,
    ) -> Generator[BatchResponse, None, None]:
        """Run any number of requests; yield one response for each, in their order.

        requests     any iterable, read as it is needed, so memory stays flat
        journal      path of a file that records the job. The same call with the same journal goes
                     on where an earlier one ended, however long ago: what was submitted is followed
                     and not submitted again, and all responses come again from the first on
        batch_size   requests in a batch, 1 to 500
        retry        how often what is `retryable` in a batch is run again, as a further batch
        timeout      seconds for the whole job
        on_progress  as for `wait`, for the oldest batch at Ecwid

        The other arguments are those of `Batch`. `deduplication_key` identifies the whole job: the
        same requests under the same key, within the hour, go on like those with a journal.

        With stop_on_first_failure (the default) a batch is submitted once all requests of the one
        before have succeeded; after a failure the rest is NOT_EXECUTED. With
        stop_on_first_failure=False, two batches are at Ecwid, one running and one queued. If one is
        cancelled, nothing more is submitted, and the rest is NOT_EXECUTED.

        An error carries the tickets of the batches whose responses are still to come. An error
        that `requests` or `on_progress` raises passes unchanged. Raises ValueError for a journal
        that is not one, belongs to another job or is in use, and OSError if it cannot be opened.
        The journal is locked from this call until the iterator ends; an iterator that is never
        started keeps it locked.
        """
        options = _Options(allow_parallel_mode, stop_on_first_failure, group_id)
        job = _Job(
            self,
            requests,
            options,
            journal=journal,
            batch_size=batch_size,
            retry=retry,
            deadline=_deadline(timeout),
            on_progress=on_progress,
            deduplication_key=deduplication_key,
        )
        return _watched(job)

    def cancel(self, group_id: str, *, ticket: str | None = None) -> int:
        """Stop the requests of a group that have not run yet; return Ecwid's updateCount.

        Reference: "Cancel batch group".
        """
        _check_text("group_id", group_id)
        query = {"groupId": group_id}
        if ticket is not None:
            _check_text("ticket", ticket)
            query["ticketId"] = ticket  # required by the reference, not by the official client
        return self._call(
            "POST", "/batch/cancel-group", query, lambda data: _read_count(data, "updateCount")
        )

    def delete(self, ticket: str) -> int:
        """Stop the requests of a batch that have not run, and forget it; return deleteCount.

        Reference: "Delete batch request".
        """
        _check_text("ticket", ticket)
        query = {"ticketId": ticket, "ticket": ticket}  # the newer reference's name, the older's
        try:
            return self._call(
                "DELETE", "/batch", query, lambda data: _read_count(data, "deleteCount")
            )
        except EcwidError as error:
            error.tickets = (ticket,)
            raise

    def find(self, status: str) -> Iterator[str]:
        """Return an iterator of the tickets of all batches that have the status.

        The tickets come in pages. A batch whose status changes between two pages may be left out.

        Reference: "Search batch requests".
        """
        if status not in _STATUSES:
            raise ValueError(f"status must be one of {', '.join(_STATUSES)}, not {status!r}")
        return self._find(status)

    def _find(self, status: str) -> Iterator[str]:
        seen: set[str] = set()
        offset = 0
        while True:
            query = {"status": status, "offset": str(offset), "limit": str(_PAGE_SIZE)}
            page = self._call("GET", "/batch", query, _read_tickets)
            new = [ticket for ticket in page if ticket not in seen]
            if not new:
                return
            yield from new
            seen.update(new)
            offset += len(page)

    # From here on a deadline is a time of time.monotonic(), math.inf for none.

    def _submit(self, batch: Batch, deadline: float, age: _Age) -> str:
        try:
            return self._call(
                "POST",
                "/batch",
                batch.query,
                _read_ticket,
                deadline=deadline,
                body=batch.to_json(),
                key_age=age,
            )
        except EcwidError as error:
            error.deduplication_key = age.key_if_safe(batch.deduplication_key)
            raise

    def _status(self, ticket: str, deadline: float, *, responses: bool) -> BatchStatus:
        _check_text("ticket", ticket)
        query = {"ticket": ticket}
        if responses:
            query["escapedJson"] = "true"
        status = self._call(
            "GET", "/batch", query, lambda data: _read_status(data, self._clean), deadline=deadline
        )
        rows = status.responses if responses else ()  # which the older reference sends anyway
        return dataclasses.replace(status, ticket=ticket, responses=rows)

    def _follow(
        self,
        ticket: str,
        batch: Batch | None,
        deadline: float,
        on_progress: OnProgress,
        resume: Callable[[EcwidError], None],
    ) -> BatchStatus:
        """Poll a batch until it is done, most often near its estimated end.

        resume  adds to an error what is needed to resume
        """
        begun = time.monotonic()
        idle_until = begun  # when nothing was completed yet
        fastest_look: float | None = None  # seconds
        remaining = math.inf  # seconds until the estimated end
        last: BatchStatus | None = None
        while True:
            now = time.monotonic()
            pause = _next_pause(now - begun, remaining)
            time.sleep(_fitting_pause(pause, deadline - now, fastest_look))
            asked = time.monotonic()
            try:
                last = self._status(ticket, deadline, responses=False)
                status = self._finished(last, batch, deadline) if last.done else last
            except EcwidError as error:
                _add_progress(error, last)
                resume(error)
                raise
            now = time.monotonic()
            took = now - asked
            fastest_look = took if fastest_look is None else min(fastest_look, took)
            if on_progress is not None:
                on_progress(status)
            if status.done:
                return status
            if status.completed_requests:
                left = status.total_requests / status.completed_requests - 1
                remaining = (now - idle_until) * max(left, 0)
            else:
                idle_until = now

    def _finished(self, light: BatchStatus, batch: Batch | None, deadline: float) -> BatchStatus:
        """Return the status of a batch that is done, with its responses."""
        ticket = str(light.ticket)
        status = self._status(ticket, deadline, responses=True)
        if len(status.responses) < status.completed_requests and time.monotonic() + 1 < deadline:
            time.sleep(1)  # ask once more before believing that rows are missing
            status = self._status(ticket, deadline, responses=True)
        if batch is None:
            return status
        return status._matched_to(batch)

    def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        read: Callable[[Any], T],
        *,
        deadline: float = math.inf,
        body: bytes | None = None,
        key_age: _Age | None = None,
    ) -> T:
        """Return what `read` makes of the JSON that answers a call.

        Every call goes through here: this is where errors get the name of the call, and where a
        call is tried again. `key_age` is that of the deduplication key of a submission.
        """
        name = f"{method} {self.base_url}/{self.store_id}{path}"
        retries = _Retries(name, self.max_retry_time, deadline, key_age)
        while True:
            seconds = retries.next_timeout(self.timeout)
            try:
                return read(self._answer(method, path, query, body, seconds))
            except EcwidError as error:
                error.args = (f"{name}: {error.args[0]}",)
                pause = retries.pause_after(error)
                _logger().warning("%s; trying again in %.1f s", error.args[0], pause)
            time.sleep(pause)

    def _answer(
        self, method: str, path: str, query: dict[str, str], body: bytes | None, seconds: float
    ) -> Any:
        """Send a call once and return the JSON of its answer."""
        blocked = self._blocked_until - time.monotonic()
        if blocked > 0:
            raise _rate_limited("not sent, since an earlier call met a 429", blocked)
        request = self._request(method, path, query, body)
        begun = time.monotonic()
        outcome = "no answer"
        try:
            # Not in the exchange's thread: a TLS context that is abandoned half made can crash.
            opener = self.opener or _opener_for(self.base_url)
            answer = _exchange(opener, request, seconds)
            outcome = f"{answer.status}, {len(answer.body)} bytes"
        except TransportError as error:  # which may quote the token
            error.args = (self._clean(str(error.args[0])),)
            raise
        finally:
            milliseconds = 1000 * (time.monotonic() - begun)
            _logger().debug("%s %s: %s, %.0f ms", method, path, outcome, milliseconds)
        if not 200 <= answer.status < 300:
            refusal = self._error_of(answer)
            if isinstance(refusal, RateLimitError):
                self._block(refusal.retry_after or 0.0)
            raise refusal
        try:
            return _parse_json(answer.body, "the answer")
        except ValueError as error:
            raise _invalid(str(error)) from None

    def _request(
        self, method: str, path: str, query: dict[str, str], body: bytes | None
    ) -> urllib.request.Request:
        url = f"{self.base_url}/{self.store_id}{path}"
        if query:
            url += f"?{_query_text(query)}"
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
        request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return request

    def _error_of(self, answer: _Answer) -> EcwidError:
        """Return the error for an answer whose HTTP status is not 2XX."""
        status = answer.status
        if status < 200:
            return TransportError(
                f"HTTP {status} without a final answer", temporary=True, uncertain=True
            )
        if status < 400:
            return TransportError(
                f"HTTP {status}: redirects are not followed, since they would take the token "
                "along; check base_url"
            )
        message, code = _error_fields(
            _json_or_text(answer.body.decode("utf-8", "replace")), self._clean
        )
        reason = message or http.client.responses.get(status)
        words = [f"HTTP {status}", code, reason, _ADVICE.get(status)]
        text = "; ".join(word for word in words if word)
        pause = _retry_after(answer.headers)
        if status == 429:
            if pause is None:
                pause = _RATE_LIMIT_PAUSE
            return _rate_limited(text, pause, code, message)
        if pause is not None:
            text += f"; retry after {pause:g} s"
        return ApiError(
            text,
            http_status=status,
            code=code,
            message=message,
            retry_after=pause,
            temporary=_is_temporary(status),
            uncertain=_may_have_run(status),
        )

    def _block(self, seconds: float) -> None:
        """Hold back every thread of this client."""
        until = time.monotonic() + min(seconds, _LONGEST_BLOCK)
        with _block_lock:
            self._blocked_until = max(self._blocked_until, until)

    def _clean(self, text: str) -> str:
        """Return text from outside as one short line, with the token masked."""
        return _one_line(text.replace(self.token, "***"))


def _query_text(query: dict[str, str]) -> str:
    return urllib.parse.urlencode(query, quote_via=urllib.parse.quote)


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"set {name} in the environment")
    return value


def _rate_limited(
    text: str, pause: float, code: str | None = None, message: str | None = None
) -> RateLimitError:
    return RateLimitError(
        f"{text}; retry after {pause:.3g} s",
        http_status=429,
        code=code,
        message=message,
        retry_after=pause,
        temporary=True,
    )


class _Retries:
    """The one rule for retries, applied to one call."""

    def __init__(
        self, name: str, max_retry_time: float, deadline: float, key_age: _Age | None
    ) -> None:
        self._name = name
        self._max_retry_time = max_retry_time
        self._deadline = deadline
        self._key_age = key_age
        self._attempt = 0
        self._give_up_at = math.inf  # counted from the first failure
        self._uncertain = False
        self._error: EcwidError | None = None

    def next_timeout(self, timeout: float) -> float:
        """Return the seconds that the next try may take. Raises an error if there is no other."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._timed_out()
        if self._key_age is not None:
            key_left = self._key_age.seconds_left()
            if key_left > 0:
                left = min(left, key_left)
            elif self._error is not None:  # else the caller submits an old batch again
                raise self._error
        return min(left, timeout)

    def pause_after(self, error: EcwidError) -> float:
        """Return the seconds to wait before the next try. Raises `error` if there is to be none."""
        now = time.monotonic()
        self._attempt += 1
        self._give_up_at = min(self._give_up_at, now + self._max_retry_time)
        self._uncertain = self._uncertain or error.uncertain
        self._error = error
        error.uncertain = self._uncertain
        if not error.temporary:
            raise error
        if now >= self._deadline:
            raise self._timed_out() from None
        left = self._deadline - now
        if error.retry_after is None:
            pause = min(_backoff(self._attempt), left)
        else:
            pause = max(error.retry_after, _BACKOFF_FIRST)
        if pause > min(left, self._give_up_at - now):
            raise error
        return pause

    def _timed_out(self) -> BatchTimeoutError:
        if self._error is None:
            return BatchTimeoutError(f"{self._name}: not sent, since the timeout is over")
        return BatchTimeoutError(
            f"the timeout is over; the last try: {self._error.args[0]}", uncertain=self._uncertain
        )


def _backoff(attempt: int) -> float:
    """Return a pause in seconds: exponential with full jitter."""
    return random.uniform(0, min(_BACKOFF_LAST, _BACKOFF_FIRST * 2 ** min(attempt - 1, 10)))


def _add_progress(error: EcwidError, last: BatchStatus | None) -> None:
    """Add to a timeout how far the batch was when it was last seen."""
    if isinstance(error, BatchTimeoutError) and last is not None:
        error.last_status = last
        counts = f"{last.completed_requests:,} of {last.total_requests:,}"
        error.args = (f"{error.args[0]}; {counts} done",)


def _add_ticket(error: EcwidError, ticket: str) -> None:
    error.tickets = (ticket,)
    if isinstance(error, BatchTimeoutError):
        error.args = (f"{error.args[0]}; the batch goes on at Ecwid: wait for its ticket again",)


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


_LOOKS_RESERVED = 2.5  # durations of a look: one more, the one with the responses, a margin


def _fitting_pause(pause: float, left: float, fastest_look: float | None) -> float:
    """Return the pause, cut so that the last look and its responses fit into what is left.

    All figures are seconds. If too little time is left, or no look was timed yet, the pause is at
    most a quarter of what is left, so that looks go on until the time is over.
    """
    latest = max(left / 4, 0.0)
    if fastest_look is not None:
        latest = max(latest, left - _LOOKS_RESERVED * fastest_look)
    return min(pause, latest)


def _check_batch(batch: object) -> None:
    if not isinstance(batch, Batch):
        raise TypeError(f"batch must be a Batch, not {type(batch).__name__}")


def _check_on_progress(on_progress: object) -> None:
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress must be a function, not {type(on_progress).__name__}")


def _deadline(timeout: float | None) -> float:
    if timeout is None:
        return math.inf
    _check_number("timeout", timeout, (int, float), -math.inf)  # 0 or less has expired already
    return time.monotonic() + max(-1e9, min(timeout, 1e9))


def _check_base_url(url: str) -> None:
    """Raise ValueError if the token must not be sent to this URL. The URL is never shown."""
    usable = isinstance(url, str) and re.fullmatch(r"https?://[!-~]+", url)
    if not usable or re.search(r"[\\@?#%]", url) or not _host(url):
        raise ValueError(
            "base_url must be like 'https://app.ecwid.com/api/v3', without user, query and fragment"
        )
    if url.startswith("http://") and not _is_loopback(_host(url)):
        raise ValueError("base_url must begin with https://: over http:// the token can be read")


def _host(url: str) -> str | None:
    """Return the host of a URL, or None if the URL is not valid."""
    try:
        parts = urllib.parse.urlsplit(url)
        if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(:\d+)?", parts.netloc):
            return None
        if parts.port == 0 or parts.hostname is None:
            return None
        parts.hostname.encode("idna")
        return parts.hostname
    except ValueError:
        return None


def _read_ticket(answer: Any) -> str:
    if isinstance(answer, dict):
        ticket = answer.get("ticket")
        if isinstance(ticket, str) and ticket and ticket.isprintable():
            return ticket
    raise _invalid("the answer has no ticket")


def _read_tickets(answer: Any) -> list[str]:
    """Return the tickets of a page, which the reference does not show."""
    if isinstance(answer, dict):
        answer = answer.get("items")
    if not isinstance(answer, list):
        raise _invalid("the answer has no list of tickets")
    return [_read_ticket(item) for item in answer]


def _logger() -> logging.Logger:
    import logging

    return logging.getLogger("ecwid_batch")


# --- Jobs: what stream() does ---------------------------------------------------------------------

_WINDOW = 2  # batches at Ecwid: one running, one queued

_AFTER_FAILURE = "not submitted, since an earlier request failed"
_AFTER_UNKNOWN = "not submitted, since an earlier request is not known to have succeeded"
_AFTER_CANCEL = "not submitted, since the job was cancelled"
_AFTER_MISSING = (
    "not submitted, since the job may have been cancelled: an earlier response is missing"
)


class _Submission:
    """A batch of a job, from just before its submission until its responses have been yielded."""

    def __init__(self, number: int, batch: Batch) -> None:
        self.number = number
        self.batch = batch
        self.tickets: list[str] = []  # that of the batch, then those of its retries
        self.finished = False


class _OtherInput(ValueError):
    """The input is not the one that the journal has.

    first, last  the places in the job of the requests that differ
    """

    def __init__(self, message: str, first: int, last: int) -> None:
        super().__init__(message)
        self.first = first
        self.last = last


class _Job:
    """One job: its batches in order, which of them are at Ecwid, and how to go on with it."""

    def __init__(
        self,
        client: EcwidClient,
        requests: Iterable[BatchRequest],
        options: _Options,
        *,
        journal: FilePath | None,
        batch_size: int,
        retry: int,
        deadline: float,
        on_progress: OnProgress,
        deduplication_key: str | None,
    ) -> None:
        _check_on_progress(on_progress)
        _check_number("retry", retry, int, 0)
        _check_number("batch_size", batch_size, int, 1, _MAX_REQUESTS)
        if deduplication_key is not None:
            deduplication_key = _checked_key(deduplication_key)
        self.client = client
        self.requests = iter(requests)
        self.options = options
        self.batch_size = batch_size
        self.retry = retry
        self.deadline = deadline
        self.on_progress = on_progress
        self.journal = _Journal(journal)
        self.key = self.journal.begin(
            {
                "journal": _JOURNAL,
                "store": client.store_id,
                "key": deduplication_key,
                "batchSize": batch_size,
                "stopOnFirstFailure": options.stops_on_failure,
            }
        )
        self.key_is_new = deduplication_key is None
        self.key_age: _Age | None = None  # since the first submission of the job
        self.submitted = 0  # requests that were, or may have been, submitted
        self.doubtful: _Submission | None = None  # whose submission got no answer
        self.undelivered: list[_Submission] = []
        self.stop_reason: str | None = None
        self.input_error: Exception | None = None
        self.failure: EcwidError | None = None  # that ended the job
        self.can_go_on = True  # by the same call
        self.ended = False

    @property
    def tickets(self) -> tuple[str, ...]:
        """Those of the batches whose responses have not been yielded, oldest first."""
        return tuple(ticket for submission in self.undelivered for ticket in submission.tickets)

    def responses(self) -> Iterator[BatchResponse]:
        """Yield the response of every request of the job."""
        batches = self._batches()
        try:
            if self.options.stops_on_failure:
                yield from self._one_after_another(batches)
            else:
                yield from self._sliding_window(batches)
            yield from self._not_submitted(batches)
            if self.input_error is not None:
                raise self.input_error
            self.ended = True
        finally:
            self.journal.close()

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches of the job; keep an error of the input until the job can raise it."""
        try:
            yield from _split(self.requests, self.batch_size, self.options, self.key)
        except Exception as error:
            self.input_error = error

    def _to_submit(self, batches: Iterator[Batch]) -> Iterator[_Submission]:
        """Yield the batches to submit, in order, until the input ends or the job is stopped.

        What the journal has is never left out: it was submitted by an earlier run.
        """
        for number in itertools.count(1):
            recorded = self.journal.has(number)
            if self.stop_reason is not None and not recorded:
                return
            batch = next(batches, None)
            if batch is None:
                if recorded and self.input_error is None:
                    self.can_go_on = False
                    place = self._place(number, 1)
                    self.input_error = _OtherInput(
                        f"the input ends before request {place:,}, but the journal "
                        f"{self.journal.path} goes on; use the input that the job began with",
                        place,
                        place,
                    )
                return
            yield _Submission(number, batch)

    def _one_after_another(self, batches: Iterator[Batch]) -> Iterator[BatchResponse]:
        """Submit a batch when all requests of the one before have succeeded."""
        for submission in self._to_submit(batches):
            self._submit(submission)
            responses = self._finish(submission)
            yield from self._deliver(submission, responses)

    def _sliding_window(self, batches: Iterator[Batch]) -> Iterator[BatchResponse]:
        """Keep two batches at Ecwid.

        When the window is full, finish the oldest; submit the next; only then yield the responses
        of the oldest, so that Ecwid has work while the caller works.
        """
        window: collections.deque[_Submission] = collections.deque()
        held_back: Iterator[BatchResponse] = iter(())  # the responses of the oldest, once finished
        failure: Exception | None = None
        for submission in self._to_submit(batches):
            failure = self._try_to_submit(submission)
            if failure is not None:  # to be raised once what is finished has been delivered
                break
            window.append(submission)
            yield from held_back
            held_back = iter(())
            if len(window) >= self._window_size(submission):
                oldest = window.popleft()
                responses = self._finish(oldest)
                held_back = self._deliver(oldest, responses)
        yield from held_back
        if failure is not None:
            raise self._with_tickets(failure)
        while window:
            oldest = window.popleft()
            responses = self._finish(oldest)
            yield from self._deliver(oldest, responses)

    def _window_size(self, submission: _Submission) -> int:
        """Return how many batches may be at Ecwid: what the journal has is finished one by one."""
        return 1 if self.journal.has(submission.number) else _WINDOW

    def _deliver(
        self, submission: _Submission, responses: tuple[BatchResponse, ...]
    ) -> Iterator[BatchResponse]:
        """Yield the responses of a batch, then forget the batch."""
        yield from responses
        self.undelivered.remove(submission)

    def _not_submitted(self, batches: Iterator[Batch]) -> Iterator[BatchResponse]:
        """Yield a response for every request that is left over when the job was stopped."""
        for batch in batches:
            for id, request in zip(batch.ids, batch.requests):
                yield BatchResponse(
                    id,
                    "NOT_EXECUTED",
                    http_status_line=self.stop_reason,
                    error_message=self.stop_reason,
                    _request=request,
                )

    def _submit(self, submission: _Submission) -> None:
        self.undelivered.append(submission)
        self._submit_part(submission, submission.batch, 0)

    def _try_to_submit(self, submission: _Submission) -> Exception | None:
        """Submit a batch; return the error that ends the job, if there is one."""
        try:
            self._submit(submission)
        except (EcwidError, _OtherInput) as error:
            return error
        return None

    def _with_tickets(self, failure: Exception) -> Exception:
        """Return an error with the tickets of the batches that are still to be delivered."""
        if isinstance(failure, EcwidError):
            failure.tickets = self.tickets
        return failure

    def _submit_part(self, submission: _Submission, batch: Batch, attempt: int) -> None:
        """Submit a batch, or a part of it that is run again, unless an earlier run has done so."""
        record = self.journal.record(submission.number, attempt)
        try:
            if record is None:
                self._submit_new(submission, batch, attempt)
            else:
                self._resume(submission, batch, attempt, record)
        except EcwidError as error:
            self._annotate(error)
            raise

    def _submit_new(self, submission: _Submission, batch: Batch, attempt: int) -> None:
        age = _Age()
        before = self.submitted
        self.journal.add_submission(submission.number, attempt, batch, age.since)
        self._note_submission(submission, age)
        self.doubtful = submission
        try:
            ticket = self.client._submit(batch, self.deadline, age)
        except EcwidError as error:
            if not error.uncertain:  # Ecwid did not take the batch
                self.submitted = before
                self.doubtful = None
                self.journal.add_refusal(submission.number, attempt)
            raise
        self.doubtful = None
        submission.tickets.append(ticket)
        self.journal.add_ticket(submission.number, attempt, ticket)

    def _resume(self, submission: _Submission, batch: Batch, attempt: int, record: _Record) -> None:
        """Take the ticket of a batch from the journal, or finish its submission.

        Raises _OtherInput if the journal's batch is another.
        """
        if record.key != batch.deduplication_key:
            raise self._other_input(submission)
        age = _Age(record.time)
        self._note_submission(submission, age)
        if record.ticket is not None:
            submission.tickets.append(record.ticket)
            return
        if age.seconds_left() <= 0:
            self.can_go_on = False
            raise self._lost(submission, batch, record)
        ticket = self.client._submit(batch, self.deadline, age)
        submission.tickets.append(ticket)
        self.journal.add_ticket(submission.number, attempt, ticket)

    def _note_submission(self, submission: _Submission, age: _Age) -> None:
        """Take note that the batch is, or may be, at Ecwid."""
        _, last = self.places(submission)
        self.submitted = max(self.submitted, last)
        self.key_age = self.key_age or age

    def _other_input(self, submission: _Submission) -> _OtherInput:
        self.can_go_on = False
        return _OtherInput(
            f"something in {self._range(submission)} differs from what the journal "
            f"{self.journal.path} has; use the input that the job began with, or a new journal",
            *self.places(submission),
        )

    def _lost(self, submission: _Submission, batch: Batch, record: _Record) -> EcwidError:
        """Return the error of a submission of which nobody knows whether Ecwid took it."""
        names = self._range(submission)
        if record.ids:
            names = f"the requests {', '.join(record.ids[:_NAMED_AT_MOST])} of {names}"
        rest = self._place(self.journal.last_batch, self.batch_size) + 1
        return EcwidError(
            f"{names} may have run: they were being submitted at {_iso(record.time)}, when the job "
            "ended, and Ecwid has forgotten their key. Look at the shop: if they did not run, "
            f"delete line {record.line} of the journal {self.journal.path} and go on; if they did, "
            f"wait for the other tickets in it, and run the rest, from request {rest:,} on, as a "
            "new job",
            uncertain=True,
        )

    def _finish(self, submission: _Submission) -> tuple[BatchResponse, ...]:
        """Follow a batch to its end, run again what is to be repeated; return all responses."""
        responses = self._outcome(submission, submission.batch)
        for attempt in itertools.count(1):
            ids = self._ids_to_repeat(submission.number, attempt, responses)
            if not ids:
                break
            time.sleep(min(_backoff(attempt), max(0.0, self.deadline - time.monotonic())))
            part = self._retry_batch(submission, attempt, ids)
            self._submit_part(submission, part, attempt)
            repeated = {response.id: response for response in self._outcome(submission, part)}
            responses = tuple(repeated.get(response.id, response) for response in responses)
        submission.finished = True
        if self.stop_reason is None:
            self.stop_reason = _stop_reason(responses, self.options)
        return responses

    def _outcome(self, submission: _Submission, batch: Batch) -> tuple[BatchResponse, ...]:
        """Follow a batch, or a part of it, to its end; return its responses."""
        return self.client._follow(
            submission.tickets[-1],
            batch,
            self.deadline,
            self.on_progress,
            functools.partial(self._annotate_look, submission),
        ).responses

    def _ids_to_repeat(
        self, number: int, attempt: int, responses: tuple[BatchResponse, ...]
    ) -> tuple[str, ...]:
        """Return the ids of the requests to run again: those of the journal, if it has them."""
        record = self.journal.record(number, attempt)
        if record is not None:
            return record.ids
        if attempt > self.retry:
            return ()
        return _repeatable_ids(responses, self.options)

    def _retry_batch(self, submission: _Submission, attempt: int, ids: tuple[str, ...]) -> Batch:
        """Return a batch of those requests of another that have the ids."""
        batch = submission.batch
        requests = dict(zip(batch.ids, batch.requests))
        if not requests.keys() >= set(ids):  # by a journal that somebody has changed
            raise self._other_input(submission)
        return _part_of_job(
            tuple(requests[id] for id in ids),
            ids,
            self.options,
            self.key,
            f"{submission.number} retry {attempt}",
        )

    def _place(self, number: int, position: int) -> int:
        """Return the place in the job of a request of a batch."""
        return self.batch_size * (number - 1) + position

    def places(self, submission: _Submission) -> tuple[int, int]:
        """Return the places in the job of the first and last request of a batch."""
        size = len(submission.batch)
        return self._place(submission.number, 1), self._place(submission.number, size)

    def _range(self, submission: _Submission) -> str:
        first, last = self.places(submission)
        return f"requests {first:,} to {last:,}"

    def _annotate_look(self, submission: _Submission, error: EcwidError) -> None:
        """Add to an error of waiting what is needed to go on with the job."""
        if isinstance(error, ApiError) and error.http_status == 404:
            self.can_go_on = False
            error.args = (
                f"{error.args[0]}; Ecwid does not know the ticket of "
                f"{self._range(submission)} any more: look at the shop",
            )
        self._annotate(error)

    def _annotate(self, error: EcwidError) -> None:
        """Add to an error on its way out what is needed to go on with the job."""
        error.tickets = self.tickets
        error.deduplication_key = None
        if self.key_age is None or self.key_age.seconds_left() > 0:
            error.deduplication_key = self.key
        self.failure = error

    def how_to_go_on(self) -> str:
        """Return what a caller is to do after an error or an interruption."""
        if self.journal.path is not None:
            return "to go on, make the same call with the same journal"
        again = f"stream the same requests with deduplication_key={self.key!r}"
        rest = f"request {self.submitted + 1:,}"
        doubt = "" if self.doubtful is None else self._range(self.doubtful)
        return _how_to_go_on(self.key_age, self.key_is_new, again, rest, doubt)


def _how_to_go_on(age: _Age | None, key_is_new: bool, again: str, rest: str, doubt: str) -> str:
    """Return how to go on with a job without a journal.

    age         the time since the first submission of this run
    key_is_new  whether the key was made for this run; else it may have been used before
    again       how to do the same again under the key
    rest        the first request that was not submitted
    doubt       the requests of a submission without an answer, or ""
    """
    if not key_is_new:
        return f"to go on, less than an hour after the job was first started, {again}"
    left = 0.0 if age is None else age.seconds_left()
    if left > 0:
        until = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
        return f"to go on, until {until}, {again}; what has run does not run again"
    if doubt:
        doubt = f"; {doubt} may have run: look at the shop, and run them too if they did not"
    return (
        "it is too late to go on with the deduplication key: wait for the tickets, and run the "
        f"rest, from {rest} on, as a new job{doubt}"
    )


def _watched(job: _Job) -> Generator[BatchResponse, None, None]:
    """Yield the responses of a job; log a warning if it is left before its end."""
    try:
        yield from job.responses()
    except EcwidError as error:
        own = error is job.failure  # and not one of the caller's own functions
        if own and job.submitted and job.can_go_on:
            error.args = (f"{error.args[0]}; {job.how_to_go_on()}",)
        raise
    finally:
        if job.submitted and not job.ended and job.can_go_on:
            tickets = ", ".join(job.tickets) or "none"
            _logger().warning(
                "the stream was left before its end; tickets at Ecwid: %s; %s",
                tickets,
                job.how_to_go_on(),
            )


def _stop_reason(responses: tuple[BatchResponse, ...], options: _Options) -> str | None:
    """Return why nothing more may be submitted after a batch with these responses, or None."""
    statuses = {response.status for response in responses}
    if options.stops_on_failure and "FAILED" in statuses:
        return _AFTER_FAILURE
    if options.stops_on_failure and "UNKNOWN" in statuses:
        return _AFTER_UNKNOWN
    if "NOT_EXECUTED" in statuses:
        return _AFTER_CANCEL
    if "UNKNOWN" in statuses and options.group_id is not None:  # only a group can be cancelled
        return _AFTER_MISSING
    return None


def _repeatable_ids(responses: tuple[BatchResponse, ...], options: _Options) -> tuple[str, ...]:
    """Return the ids of the requests of a batch that are worth running again.

    Nothing is run again after a cancel. Where a failure stops the batch, what it kept from running
    is run again too, but only if all failures can be repeated.
    """
    if _is_cancelled(responses, options):
        return ()
    failed = [response for response in responses if response.status in ("FAILED", "UNKNOWN")]
    repeatable = [response for response in failed if response.retryable]
    if options.stops_on_failure and len(repeatable) < len(failed):
        return ()
    if options.stops_on_failure and failed:
        repeatable = [response for response in responses if not response.ok]
    return tuple(str(response.id) for response in repeatable)


def _is_cancelled(responses: tuple[BatchResponse, ...], options: _Options) -> bool:
    """Return whether somebody has, or may have, cancelled the batch."""
    statuses = {response.status for response in responses}
    if any(response._cancelled for response in responses):
        return True
    if options.group_id is not None and "UNKNOWN" in statuses:  # only a group can be cancelled
        return True
    failed = "FAILED" in statuses or "UNKNOWN" in statuses
    stopped = options.stops_on_failure and failed  # which keeps the rest from running, too
    return "NOT_EXECUTED" in statuses and not stopped


# --- The journal ----------------------------------------------------------------------------------

_JOURNAL = "ecwid_batch 1"  # the format of the file
_HEADER_NAMES = {
    "journal": "format",
    "store": "store_id",
    "key": "deduplication_key",
    "batchSize": "batch_size",
    "stopOnFirstFailure": "stop_on_first_failure",
}
_JOURNAL_START = b'{"journal": "ecwid_batch'


class _Record:
    """A submission that the journal has.

    line  its line in the file
    ids   those of the requests of a retry
    time  a time of time.time()
    """

    def __init__(self, line: int, key: str, ids: tuple[str, ...], time: float) -> None:
        self.line = line
        self.key = key
        self.ids = ids
        self.time = time
        self.ticket: str | None = None


class _Journal:
    """The record of a job in a file that a person can read: one JSON object a line.

        {"journal": "ecwid_batch 1", "store": 1003, "key": "5f0a...", "batchSize": 500, ...}
        {"batch": 1, "attempt": 0, "size": 500, "key": "77c1...", "time": "2026-11-24T..."}
        {"batch": 1, "attempt": 0, "ticket": "11kl140a2-..."}

    The first line is the job. Before each submission comes a line with the number of the batch, its
    size, its deduplication key and the time; after it a line with the ticket, or with "refused" if
    Ecwid surely did not take the batch. Attempt 0 is the batch itself; what `retry` runs again is
    attempt 1, 2, ... with the "ids" of its requests. Each line is on the disk before the next step
    is taken. While the file is open, it is locked by the operating system. The hour of a key is
    measured by the clock of the host. A journal is for one job in one place: a copy of it that goes
    on as well runs the rest of the job twice.

    Without a path nothing is recorded.
    """

    def __init__(self, path: FilePath | None) -> None:
        self.path: str | None = None
        self._file: IO[bytes] | None = None
        self._records: dict[tuple[int, int], _Record] = {}
        self._header: dict[str, Any] | None = None
        self._pending = ""  # the first line, until there is a second
        if path is None:
            return
        self.path = os.fsdecode(path)
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            self._lock(self._file)
            self._read(self._file)
        except BaseException:
            self.close()
            raise

    @property
    def last_batch(self) -> int:
        """The highest number of a batch that an earlier run submitted."""
        return max(number for number, _ in self._records)

    def begin(self, job: dict[str, Any]) -> str:
        """Begin a new journal, or check that it is that of the same job; return the job's key.

        job  the first line; a key of None is any key

        Raises ValueError if it is the journal of another job.
        """
        if self._header is None:
            job["key"] = job["key"] or _checked_key(None)
            self._pending = json.dumps(job) + "\n"
            return str(job["key"])
        if job["key"] is None:
            job["key"] = self._header.get("key")
        try:
            for name, value in job.items():
                if self._header.get(name) != value:
                    raise ValueError(
                        f"the journal {self.path} is of a job with {_HEADER_NAMES[name]}="
                        f"{self._header.get(name)!r}, not {value!r}; give the options that the job "
                        "began with, or use another journal"
                    )
            return _checked_key(job["key"])
        except BaseException:
            self.close()
            raise

    def has(self, number: int) -> bool:
        """Return whether an earlier run submitted the batch, or was about to."""
        return (number, 0) in self._records

    def record(self, number: int, attempt: int) -> _Record | None:
        """Return what an earlier run wrote of a submission."""
        return self._records.get((number, attempt))

    def add_submission(self, number: int, attempt: int, batch: Batch, since: float) -> None:
        line: dict[str, Any] = {
            "batch": number,
            "attempt": attempt,
            "size": len(batch),
            "key": batch.deduplication_key,
            "time": _iso(since),
        }
        if attempt:
            line["ids"] = batch.ids
        self._append(line)

    def add_ticket(self, number: int, attempt: int, ticket: str) -> None:
        self._append({"batch": number, "attempt": attempt, "ticket": ticket})

    def add_refusal(self, number: int, attempt: int) -> None:
        self._append({"batch": number, "attempt": attempt, "refused": True})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            data = f"{self._pending}{json.dumps(line)}\n".encode("ascii")
            if self._file.write(data) != len(data):
                raise OSError("the disk may be full")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise EcwidError(f"cannot write the journal {self.path}: {error}") from None
        self._pending = ""

    def _lock(self, file: IO[bytes]) -> None:
        """Lock the file until it is closed. Raises ValueError if it is in use, or not a file."""
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"the journal must be a regular file, not {self.path}")
        try:
            if sys.platform == "win32":
                import msvcrt

                file.seek(2**30)  # beyond all records, which stay readable
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the latter on Windows
            raise ValueError(f"the journal {self.path} is in use") from None

    def _read(self, file: IO[bytes]) -> None:
        """Read all records; cut off a last line that a crash left incomplete."""
        file.seek(0)
        start = file.read(len(_JOURNAL_START))
        if not _JOURNAL_START.startswith(start):
            raise self._no_journal(1)
        lines = (start + file.read()).splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            torn = lines.pop()
            if _is_json(torn):  # whole, but for its end
                file.write(b"\n")
                lines.append(torn)
            else:
                file.truncate(sum(map(len, lines)))
        for number, line in enumerate(lines, 1):
            try:
                self._add(number, json.loads(line))
            except (KeyError, TypeError, ValueError, RecursionError):
                raise self._no_journal(number) from None

    def _no_journal(self, number: int) -> ValueError:
        return ValueError(f"{self.path} is not a journal: see its line {number}")

    def _add(self, number: int, line: dict[str, Any]) -> None:
        """Take in a line. Raises KeyError, TypeError or ValueError if it is not a journal's."""
        if self._header is None:
            if line["journal"] != _JOURNAL:
                raise ValueError
            self._header = line
            return
        place = (line["batch"], line["attempt"])
        if "ticket" in line:
            _check_text("ticket", line["ticket"])
            self._records[place].ticket = line["ticket"]
        elif "refused" in line:
            del self._records[place]
        else:
            moment = datetime.datetime.fromisoformat(line["time"]).timestamp()
            ids = tuple(line.get("ids", ()))
            for text in (line["key"], *ids):
                _check_text("a key or an id", text)
            self._records[place] = _Record(number, line["key"], ids, moment)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _iso(moment: float) -> str:
    """Return a time of time.time() as text, to the second."""
    utc = datetime.timezone.utc
    return datetime.datetime.fromtimestamp(int(moment), utc).isoformat()


# --- Command line ---------------------------------------------------------------------------------

_MAX_LINE = 16 * 1024 * 1024  # bytes of one line of FILE
_MAX_ARRAY = 256 * 1024 * 1024  # bytes of a JSON array in FILE
_MAX_TOKEN_FILE = 65536  # bytes
_ASK_RETRY_TIME = 10.0  # seconds of tries for each call of a command that only asks
_NAMED_AT_MOST = 20  # lines in one message

_HELP = """\
Run batches of Ecwid REST calls. The store and its token are read from the
environment: ECWID_STORE_ID, ECWID_TOKEN (or --token-file) and, for another
host than Ecwid's, ECWID_BASE_URL.

FILE holds one JSON object per line, any number of them, or one JSON array as
in Ecwid's reference. - is standard input.

  {"method": "PUT", "path": "/products/42", "body": {"price": 19.99}}
  {"method": "GET", "path": "/orders?limit=1"}
"""

_EXIT_STATUS = """\
exit status:
  0  all requests succeeded      3  the API or the network failed
  1  some request failed, is     4  timed out
     unknown or did not run      5  the output cannot be written
  2  wrong usage or input        130 interrupted, 143 terminated
"""

_RUN_EXAMPLES = """\
examples:
  ecwid-batch run prices.jsonl --journal prices.journal > responses.jsonl
  ecwid-batch run prices.jsonl --continue-on-failure --failed again.jsonl

After a crash, a kill or a timeout, run the same command with the same journal
again: it goes on where it was, and prints all responses from the first on.
"""


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        "ecwid-batch",
        description=_HELP,
        epilog=_EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ecwid-batch {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        function: Callable[[argparse.Namespace], int], name: str, text: str, epilog: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(function=function)
        return added

    run = command(
        _command_run, "run", "run all requests; print one JSON line per response", _RUN_EXAMPLES
    )
    _add_job_options(run)
    _add_run_options(run)
    submit = command(
        _command_submit,
        "submit",
        "submit all batches at once; print one ticket a line",
        "example:\n  ecwid-batch submit --group night prices.jsonl > tickets",
    )
    _add_job_options(submit)
    wait = command(
        _command_wait,
        "wait",
        "wait until batches have finished; print their responses",
        "example:\n  ecwid-batch wait --timeout 600 $(cat tickets)",
    )
    _add_tickets(wait)
    _add_timeout(wait)
    status = command(
        _command_status,
        "status",
        "print how far batches are, one JSON object each",
        "example:\n  ecwid-batch status --responses $(cat tickets)",
    )
    _add_tickets(status)
    status.add_argument("--responses", action="store_true", help="with the responses so far")
    cancel = command(
        _command_cancel,
        "cancel",
        "stop the requests of a group that have not run yet",
        "example:\n  ecwid-batch cancel night",
    )
    cancel.add_argument("group", metavar="GROUP", help="the ID that --group gave to the job")
    cancel.add_argument("--ticket", metavar="T", help="the ticket of a batch of the group")
    delete = command(
        _command_delete,
        "delete",
        "stop the requests of batches that have not run; forget the batches",
        "example:\n  ecwid-batch delete $(cat tickets)",
    )
    _add_tickets(delete)
    found = command(
        _command_list,
        "list",
        "print the tickets of all batches that have a status, one a line",
        "example:\n  ecwid-batch list IN_PROGRESS",
    )
    found.add_argument("status", metavar="STATUS", choices=_STATUSES, help=", ".join(_STATUSES))
    for added in (run, submit, wait, status, cancel, delete, found):
        _add_common_options(added)
    return parser


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("file", metavar="FILE", help="JSON lines or a JSON array; - is standard input")
    option(
        "--batch-size",
        metavar="N",
        type=int,
        default=_MAX_REQUESTS,
        help=f"requests in a batch, 1 to {_MAX_REQUESTS} (default: %(default)s)",
    )
    option("--parallel", action="store_true", help="run up to 100 requests of a batch at once")
    option(
        "--continue-on-failure",
        action="store_true",
        help="go on after a failed request instead of stopping there",
    )
    option("--group", metavar="ID", help="name the job, to be able to cancel it")
    option(
        "--deduplication-key",
        metavar="UUID",
        help="the key of a job to go on with, less than an hour after it began; or a key of your "
        "own for a new job",
    )
    option(
        "--dry-run",
        action="store_true",
        help="check all of FILE and print what would be sent; needs no store and no token",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option(
        "--journal",
        metavar="FILE",
        help="record the job in FILE; the same command with the same journal goes on with it",
    )
    option(
        "--failed",
        metavar="FILE",
        help="write the requests that failed, are unknown or did not run to FILE, to be mended "
        "and run as a new job",
    )
    option(
        "--retry",
        metavar="N",
        type=int,
        default=0,
        help="run what may safely be repeated up to N times more (default: %(default)s)",
    )
    _add_timeout(parser)


def _add_tickets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tickets", metavar="TICKET", nargs="+", help="as `submit` printed it")


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", metavar="S", type=float, help="exit with status 4 after S seconds"
    )


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--token-file", metavar="FILE", help="read the token from FILE, not from ECWID_TOKEN")
    option("--base-url", metavar="URL", help="instead of ECWID_BASE_URL or Ecwid's own")
    option("-q", "--quiet", action="store_true", help="no progress, no summary, no warnings")
    option("-v", "--verbose", action="store_true", help="log every exchange")


class _OutputError(Exception):
    """Standard output, or the file of --failed, cannot be written."""


def _print(text: str) -> None:
    """Write a line to standard output. Raises _OutputError if it cannot be written."""
    if sys.stdout is None:
        raise _OutputError("standard output is closed")
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        _silence(sys.stdout)
        raise _OutputError(str(error)) from error


def _say(text: str) -> None:
    """Write a line to standard error, in place of the progress."""
    if sys.stderr is not None and sys.stderr.isatty():
        text = f"\r\x1b[J{text}"
    _write_error(f"{text}\n")


def _write_error(text: str) -> None:
    """Write to standard error, if that is possible."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        _silence(sys.stderr)


def _silence(stream: IO[str]) -> None:
    """Send what a stream still holds to nowhere, or Python complains about it at its exit."""
    with contextlib.suppress(OSError, ValueError):
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def _error(text: str) -> None:
    _say(f"ecwid-batch: {text}")


class _StandardError:
    """A stream for logging that never fails."""

    def write(self, text: str) -> None:
        if text != "\n":  # the end of a line, which logging may write by itself
            _say(text.rstrip("\n"))

    def flush(self) -> None:
        pass


class _Progress:
    """One line on standard error, redrawn, if that is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.live = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self.total = 0  # requests of the job; 0 if not known
        self._begun = time.monotonic()
        self._drawn = 0  # characters

    def show(self, done: int) -> None:
        seconds = max(time.monotonic() - self._begun, 0.001)
        rate = done / seconds
        text = f"{done:,}"
        if self.total:
            text += f"/{self.total:,}"
        text += f" {rate:.1f}/s"
        if self.total and rate:
            left = max(0, self.total - done) / rate
            text += f" {datetime.timedelta(seconds=int(left))} left"
        self._draw(text)

    def clear(self) -> None:
        if self._drawn:
            self._draw("")

    def _draw(self, text: str) -> None:
        if not self.live:
            return
        width = 80
        with contextlib.suppress(OSError, ValueError):
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        up = max(0, self._drawn - 1) // width  # rows that the line took if the terminal shrank
        back = f"\x1b[{up}A" if up else ""
        text = text[: width - 1]
        _write_error(f"{back}\r\x1b[J{text}")
        self._drawn = len(text)


_COUNTED = {
    "COMPLETED": "succeeded",
    "FAILED": "failed",
    "UNKNOWN": "unknown",
    "NOT_EXECUTED": "did not run",
}


class _Report:
    """What a user sees of responses: a line for each, progress, a summary."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.progress = _Progress(quiet)
        self.counts = dict.fromkeys(_COUNTED.values(), 0)
        self.missing = 0  # responses that Ecwid did not send, of requests that are not known
        self.first_failure: str | None = None
        self._begun = time.monotonic()

    @property
    def answered(self) -> int:
        return sum(self.counts.values())

    def look(self, status: BatchStatus) -> None:
        """Show the progress; for `on_progress`."""
        self.progress.show(self.answered + status.completed_requests)

    def add(self, response: BatchResponse, fields: dict[str, Any], name: str) -> None:
        """Print a response.

        fields  what is known of its request, to begin the line with
        name    the request in words, should it be the first that failed
        """
        line = {
            **fields,
            "status": response.status,
            "httpStatusCode": response.http_status_code,
            "httpStatusLine": response.http_status_line,
            "response": response.body,
        }
        self.progress.clear()
        _print(_json_line(line, response))
        self.counts[_COUNTED[response.status]] += 1
        if not response.ok and self.first_failure is None:
            words = [name, response.status]
            if response.http_status_code:
                words.append(str(response.http_status_code))
            self.first_failure = f"{' '.join(words)}: {response.error_message}"

    def end(self) -> int:
        """Print the summary and return the exit status."""
        total = self.answered + self.missing
        succeeded = self.counts["succeeded"] == total
        if not self.quiet:
            counts = [f"{count:,} {what}" for what, count in self.counts.items() if count]
            if self.missing:
                counts.append(f"{self.missing:,} without a response")
            seconds = time.monotonic() - self._begun
            _say(f"{total:,} requests: {', '.join(counts) or 'none'}; {seconds:.1f} s")
        if self.first_failure is not None:
            _error(f"the first that did not succeed: {self.first_failure}")
        return 0 if succeeded else 1


def _json_line(line: dict[str, Any], response: BatchResponse) -> str:
    """Return the line as JSON. A number that JSON cannot hold, such as 1e999, stays text."""
    try:
        return json.dumps(line, allow_nan=False)
    except ValueError:
        text = response._escaped_body or json.dumps(str(response.body))
        return json.dumps({**line, "response": json.loads(text, parse_float=_finite)})


def _finite(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


class _Input:
    """The requests of FILE, read as they are needed, with the lines that they stand on."""

    def __init__(self, file: IO[bytes], batch_size: int) -> None:
        self.total = 0  # requests, where that is known in advance
        self.lines: collections.deque[int] = collections.deque()  # of requests not yet answered
        self._file = file
        self._batch_size = batch_size
        self.unit = "line"  # or "request", for the places of an array
        self._ids: dict[str, int] = {}  # of the batch that is being read, with their lines
        self._count = 0
        self._answered = 0
        self._last_line = 0  # that was read

    def requests(self) -> Iterator[BatchRequest]:
        """Yield the requests. Raises ValueError that names the line of what is wrong."""
        for line, item in self._items():
            request = _read_request(item, f"{self.unit} {line}")
            self._check_id(request.id, line)
            self._count += 1
            self._last_line = line
            self.lines.append(line)
            yield request
        if not self._count:
            raise ValueError("the input holds no requests")

    def next_line(self) -> int:
        """Return the line of the request whose response comes next."""
        self._answered += 1
        return self.lines.popleft()

    def skip(self, count: int) -> None:
        """Forget the lines of requests whose responses nobody waits for."""
        for _ in range(count):
            self.next_line()

    def line_of(self, place: int) -> int:
        """Return the line of a request that has not been answered, by its place in the job."""
        index = place - 1 - self._answered
        if 0 <= index < len(self.lines):
            return self.lines[index]
        return self._last_line + 1

    def count_requests(self) -> int:
        """Return how many requests FILE holds, or 0 if only reading it can tell."""
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            return 0
        start = self._file.tell()
        begins = [line.strip()[:1] for line in iter(self._read_line, b"")]
        self._file.seek(start)
        lines = [beginning for beginning in begins if beginning]
        if lines[:1] == [b"["]:
            return 0
        return len(lines)

    def _read_line(self) -> bytes:
        return self._file.readline(_MAX_LINE + 1)

    def _items(self) -> Iterator[tuple[int, Any]]:
        """Yield what stands on each line, or at each place of an array, as parsed JSON."""
        for number in itertools.count(1):
            text = self._read_line()
            if not text:
                return
            if len(text) > _MAX_LINE:
                raise ValueError(f"line {number} is longer than {_MAX_LINE:,} bytes")
            text = text.lstrip(b"\xef\xbb\xbf \t\r\n")  # a byte order mark, white space
            if text.startswith(b"[") and not self._count:
                yield from self._array(text)
                return
            if text:
                yield number, _parse_line(text, number)

    def _array(self, beginning: bytes) -> Iterator[tuple[int, Any]]:
        text = beginning + self._file.read(_MAX_ARRAY + 1)
        if len(text) > _MAX_ARRAY:
            raise ValueError(f"an array may take {_MAX_ARRAY:,} bytes; write one object per line")
        try:
            items = _parse_json(text, "the input")
        except ValueError as error:
            raise ValueError(
                f"{error}. FILE must hold one JSON array, or one JSON object per line; "
                "`jq -c '.[]' FILE` makes lines of arrays"
            ) from None
        self.total = len(items)
        self.unit = "request"
        yield from enumerate(items, 1)

    def _check_id(self, id: str | None, line: int) -> None:
        if self._count % self._batch_size == 0:
            self._ids.clear()
        if id is None:
            return
        if id in self._ids:
            raise ValueError(
                f"{self.unit} {line}: the id {id!r} is that of {self.unit} {self._ids[id]}; give "
                "every request an id of its own, or none"
            )
        self._ids[id] = line


def _parse_line(text: bytes, number: int) -> Any:
    try:
        item = _parse_json(text, f"line {number}")
    except ValueError as error:
        reason = re.sub(r": line \d+ column .*", "", str(error))  # it would count from this line
        hint = "for CSV see the README"
        if text.startswith(b"{"):
            hint = "one object must stand on one line: `jq -c . FILE` writes it so"
        raise ValueError(f"{reason}; {hint}") from None
    if isinstance(item, list):
        raise ValueError(
            f"line {number} is a JSON array; `jq -c '.[]' FILE` writes one object per line"
        )
    return item


class _Failed:
    """The file of --failed: written beside its place, and moved there when the job has ended."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._count = 0  # lines
        self._risky: list[str] = []  # lines of requests that may have run all the same
        self._risky_count = 0
        if path is None:
            return
        if not path or (os.path.exists(path) and not os.path.isfile(path)):
            raise ValueError(f"--failed must be a regular file, not {path!r}")
        self._target = os.path.realpath(path)
        self._temporary = _part_path(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
        self._file = open(os.open(self._temporary, flags, 0o600), "w", encoding="ascii")  # noqa: SIM115

    def add(self, response: BatchResponse, line: int) -> None:
        if self._path is None or response.ok:
            return
        request = response.request
        id = "" if request.id is None else f'"id": {_quote(request.id)}, '
        with self._writing():
            self._file.write(f"{{{id}{request._json}\n")
        self._count += 1
        code = response.http_status_code or 0
        unclear = response.status == "UNKNOWN" or _may_have_run(code)
        if unclear and not _may_run_twice(request):
            self._risky_count += 1
            if len(self._risky) < _NAMED_AT_MOST:
                self._risky.append(f"{self._count:,} (line {line:,} of the input)")

    def finish(self) -> None:
        """Put the file in its place, and name what may have run."""
        if self._path is None:
            return
        with self._writing():
            self._file.close()
            os.replace(self._temporary, self._target)
        if self._risky:
            more = self._risky_count - len(self._risky)
            lines = ", ".join(self._risky) + (f" and {more:,} more" if more else "")
            _error(
                "these may have run all the same: look at the shop before you run them again: "
                f"{self._path}, line {lines}"
            )

    def discard(self) -> None:
        """Leave the place as it is; after `finish` do nothing."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _OutputError(f"{self._path}: {error}") from error


def _command_run(args: argparse.Namespace) -> int:
    """Run all requests of FILE and print their responses."""
    if args.dry_run:
        return _dry_run(args)
    client = _client(args)
    with contextlib.ExitStack() as stack:
        _check_failed_path(args)
        source = _Input(stack.enter_context(_opened(args.file)), args.batch_size)
        failed = _Failed(args.failed)
        stack.callback(failed.discard)
        report = _Report(args.quiet)
        if report.progress.live:
            report.progress.total = source.count_requests()
        job = _Job(
            client,
            source.requests(),
            _options(args),
            journal=args.journal,
            batch_size=args.batch_size,
            retry=args.retry,
            deadline=_deadline(args.timeout),
            on_progress=report.look,
            deduplication_key=args.deduplication_key,
        )
        try:
            _report_job(job, source, report, failed)
        except (Exception, KeyboardInterrupt) as error:
            try:
                return _report_failure(error)
            finally:
                _explain_job(error, job, source, args)
    status = report.end()
    if status and args.failed is None and not args.quiet:
        _error("--failed FILE writes the requests that did not succeed, to be run again")
    return status


def _part_path(path: str) -> str:
    """Return the path of a file while it is being written."""
    return f"{os.path.realpath(path)}.part"


def _check_failed_path(args: argparse.Namespace) -> None:
    if not args.failed:
        return
    for path in (args.failed, _part_path(args.failed)):
        for other in (args.journal, args.file):
            if other is None or not _same_file(path, other):
                continue
            raise ValueError(f"--failed must be another file than {other}, which is still needed")


def _same_file(one: str, other: str) -> bool:
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def _report_job(job: _Job, source: _Input, report: _Report, failed: _Failed) -> None:
    """Print the responses of a job as they come; write the file of --failed at its end."""
    for response in job.responses():
        line = source.next_line()
        request = response.request
        if source.total:
            report.progress.total = source.total
        fields = {
            "line": line,
            "id": response.id,
            "method": request.method,
            "path": request.path,
        }
        report.add(response, fields, f"{source.unit} {line:,}, {request.method} {request.path},")
        failed.add(response, line)
    failed.finish()


def _is_quiet_end(error: BaseException, job: _Job) -> bool:
    """Return whether the reader of the output has had enough, and no batch runs any more."""
    finished = all(submission.finished for submission in job.undelivered)
    return isinstance(error.__cause__, BrokenPipeError) and finished


def _explain_job(error: BaseException, job: _Job, source: _Input, args: argparse.Namespace) -> None:
    """Say how to go on with a job of which something was, or may have been, submitted."""
    if isinstance(error, _OtherInput):
        first, last = source.line_of(error.first), source.line_of(error.last)
        if (first, last) != (error.first, error.last):
            _error(f"that is {source.unit} {first:,} to {source.unit} {last:,} of the input")
        return
    if not job.submitted or not job.can_go_on or _is_quiet_end(error, job):
        return
    if job.tickets and not isinstance(error, EcwidError):
        _error(f"tickets at Ecwid: {', '.join(job.tickets)}")
    if args.journal is not None:
        _error("to go on, run the same command again; what has run does not run again")
    else:
        doubtful = None
        if job.doubtful is not None:
            doubtful = job.places(job.doubtful)
        _error(
            _how_to_run_again(job.key, job.key_age, job.key_is_new, source, job.submitted, doubtful)
        )


def _how_to_run_again(
    key: str,
    age: _Age | None,
    key_is_new: bool,
    source: _Input,
    submitted: int,
    doubtful: tuple[int, int] | None,
) -> str:
    """Return how to go on with a command without a journal.

    submitted  how many requests were, or may have been, submitted
    doubtful   the places of the first and last request of a submission without an answer
    """
    again = f"run the same command with --deduplication-key {key}"
    rest = f"{source.unit} {source.line_of(submitted + 1):,}"
    doubt = ""
    if doubtful is not None:
        lines = [f"{source.line_of(place):,}" for place in doubtful]
        doubt = f"{source.unit}s {' to '.join(lines)}"
    return _how_to_go_on(age, key_is_new, again, rest, doubt)


def _command_submit(args: argparse.Namespace) -> int:
    """Submit all batches of FILE and print their tickets."""
    if args.dry_run:
        return _dry_run(args)
    client = _client(args)
    key = _checked_key(args.deduplication_key)
    age: _Age | None = None
    submitted = 0  # requests that are at Ecwid
    size = 0  # requests of a batch of which that is not known yet
    with _opened(args.file) as file:
        source = _Input(file, args.batch_size)
        batches = _split(source.requests(), args.batch_size, _options(args), key)
        try:
            for batch in batches:
                age = age or _Age()
                size = len(batch)
                ticket = client.submit(batch)
                submitted += size
                size = 0
                _print_ticket(ticket)
                source.skip(len(batch))
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, EcwidError) and not error.uncertain:
                size = 0
            try:
                return _report_failure(error)
            finally:
                if submitted or size:
                    is_new = args.deduplication_key is None
                    doubtful = (submitted + 1, submitted + size) if size else None
                    everything = submitted + size
                    _error(_how_to_run_again(key, age, is_new, source, everything, doubtful))
    return 0


def _print_ticket(ticket: str) -> None:
    try:
        _print(ticket)
    except _OutputError:
        _error(f"ticket at Ecwid: {ticket}")
        raise


def _dry_run(args: argparse.Namespace) -> int:
    """Check all of FILE and print what would be sent."""
    batches = 0
    requests = 0
    with _opened(args.file) as file:
        source = _Input(file, args.batch_size)
        for batch in _split(
            source.requests(), args.batch_size, _options(args), _checked_key(args.deduplication_key)
        ):
            source.skip(len(batch))
            batches += 1
            requests += len(batch)
            _print(f"POST /batch?{_query_text(batch.query)}")
            _print(batch.to_json().decode("ascii"))
    _print(f"{_count(requests, 'request')} in {_count(batches, 'batch')}, nothing sent")
    return 0


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith('h') else 's'}"


def _command_wait(args: argparse.Namespace) -> int:
    """Wait for batches and print their responses."""
    client = _client(args)
    deadline = _deadline(args.timeout)
    report = _Report(args.quiet)

    def wait(ticket: str) -> None:
        timeout = None
        if args.timeout is not None:
            timeout = deadline - time.monotonic()
        status = client.wait(ticket, timeout=timeout, on_progress=report.look)
        for response in status:
            fields = {"ticket": ticket, "id": response.id}
            report.add(response, fields, f"ticket {ticket}, {_name_of(response)},")
        report.missing += max(0, status.total_requests - len(status.responses))

    failure = _for_each(args.tickets, wait)
    if failure and not report.answered:
        return failure
    return report.end() or failure


def _command_status(args: argparse.Namespace) -> int:
    """Print how far batches are."""
    client = _client(args, _ASK_RETRY_TIME)

    def show(ticket: str) -> None:
        _print(json.dumps(client.status(ticket, responses=args.responses).to_dict()))

    return _for_each(args.tickets, show)


def _command_cancel(args: argparse.Namespace) -> int:
    """Cancel a group."""
    client = _client(args, _ASK_RETRY_TIME)
    count = client.cancel(args.group, ticket=args.ticket)
    _print(json.dumps({"group": args.group, "updateCount": count}))
    return 0


def _command_delete(args: argparse.Namespace) -> int:
    """Delete batches."""
    client = _client(args, _ASK_RETRY_TIME)

    def delete(ticket: str) -> None:
        _print(json.dumps({"ticket": ticket, "deleteCount": client.delete(ticket)}))

    return _for_each(args.tickets, delete)


def _command_list(args: argparse.Namespace) -> int:
    """Print the tickets of the batches that have a status."""
    client = _client(args, _ASK_RETRY_TIME)
    for ticket in client.find(args.status):
        _print(ticket)
    return 0


def _for_each(tickets: list[str], act: Callable[[str], None]) -> int:
    """Call a function with each ticket; return 0, or the exit status of the last error answer."""
    status = 0
    for ticket in tickets:
        try:
            act(ticket)
        except ApiError as error:  # such as a ticket that Ecwid does not know: try the others
            status = _report_failure(error)
    return status


def _client(args: argparse.Namespace, max_retry_time: float = _MAX_RETRY_TIME) -> EcwidClient:
    token = None
    if args.token_file is not None:
        with open(args.token_file, encoding="ascii", errors="replace") as file:
            token = file.read(_MAX_TOKEN_FILE).strip()
        if not token:
            raise ValueError(f"{args.token_file} is empty")
    return EcwidClient.from_env(token=token, base_url=args.base_url, max_retry_time=max_retry_time)


def _options(args: argparse.Namespace) -> _Options:
    return _Options(
        allow_parallel_mode=True if args.parallel else None,
        stop_on_first_failure=False if args.continue_on_failure else None,
        group_id=args.group,
    )


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Open FILE for reading; - is standard input."""
    if path != "-":
        with open(path, "rb") as file:
            yield file
    elif sys.stdin is None:
        raise ValueError("standard input is closed")
    else:
        yield sys.stdin.buffer


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def _terminate(*args: object) -> None:
    raise _Terminated


def _report_failure(error: BaseException) -> int:
    """Tell the user what went wrong; return the exit status. Raises the error if it is a bug."""
    if isinstance(error, _OutputError):
        if not isinstance(error.__cause__, BrokenPipeError):  # a reader that has had enough
            _error(f"cannot write the output: {error}")
        return 5
    if isinstance(error, _Terminated):
        _error("terminated")
        return 143
    if isinstance(error, KeyboardInterrupt):
        _error("interrupted")
        return 130
    if isinstance(error, EcwidError):
        text = error.args[0]
        if error.tickets:
            text = f"{text} [ticket {', '.join(error.tickets)}]"
        _error(text)
        return 4 if isinstance(error, BatchTimeoutError) else 3
    if isinstance(error, (OSError, ValueError)):
        _error(str(error))
        return 2
    raise error


@contextlib.contextmanager
def _process_set_up(args: argparse.Namespace) -> Iterator[None]:
    """Log to standard error, and take SIGTERM for a Ctrl-C; afterwards restore what was."""
    import logging
    import signal

    level = logging.WARNING
    if args.quiet:
        level = logging.ERROR
    if args.verbose:
        level = logging.DEBUG
    handler = logging.StreamHandler(_StandardError())
    handler.setFormatter(logging.Formatter("ecwid-batch: %(message)s"))
    logger = _logger()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    previous = None
    with contextlib.suppress(ValueError):  # not in the main thread: no signals there
        previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status, which `--help` explains.

    argv  the arguments; None takes those of the process
    """
    args = _parser().parse_args(argv)
    with _process_set_up(args):
        try:
            if sys.stdout is None:
                raise _OutputError("standard output is closed")
            return int(args.function(args))
        except (Exception, KeyboardInterrupt) as error:
            return _report_failure(error)


if __name__ == "__main__":
    sys.exit(main())
