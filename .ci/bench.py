#!/usr/bin/env python3
"""Print what ecwid_batch costs, as ratios to the floor measured in the same run.

import     import ecwid_batch, with bytecode, to import json, dataclasses, urllib.request
serialize  500 requests made, checked and written, to json.dumps of the same dicts
parse      a status of 500 responses and their bodies read, to json.loads of the same texts
stream     10,000 requests through an opener without a server, to their JSON both ways
"""

import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.response

HERE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

import ecwid_batch  # noqa: E402
from ecwid_batch import Batch, BatchRequest, BatchStatus, EcwidClient  # noqa: E402

BODIES = [
    {
        "sku": f"00121{number}",
        "quantity": 10,
        "name": "New Product",
        "price": 19.99,
        "enabled": True,
        "categoryIds": [9691094],
        "description": "A <b>new</b> product description",
    }
    for number in range(500)
]


def ratio(name, ours, floor, rounds, clock=time.perf_counter):
    """Print the median time of one function over that of another, taken in turn."""
    times = {ours: [], floor: []}
    for _ in range(rounds + 1):
        for function, taken in times.items():
            begun = clock()
            function()
            taken.append(clock() - begun)
    medians = [statistics.median(taken[1:]) for taken in times.values()]
    print(f"{name:10} {medians[0] / medians[1]:.2f}", flush=True)


def importing(names):
    """Return a function that imports modules in a new process, from bytecode."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "PYTHONPYCACHEPREFIX": os.path.join(tempfile.gettempdir(), "ecwid_batch_bench"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", f"import {names}"]
    return lambda: subprocess.run(command, env=environment, check=True)


def floor_of_serialize():
    return json.dumps(
        [
            {"id": f"{number:06d}", "path": "/products", "method": "POST", "body": body}
            for number, body in enumerate(BODIES)
        ]
    ).encode()


STATUS = json.dumps(
    {
        "status": "COMPLETED",
        "totalRequests": 500,
        "completedRequests": 500,
        "responses": [
            {
                "id": f"{number:06d}",
                "status": "COMPLETED",
                "httpStatusCode": 200,
                "httpStatusLine": "OK",
                "escapedHttpBody": json.dumps({"items": BODIES[number : number + 10]}),
            }
            for number in range(500)
        ],
    }
)


class Opener:
    """Answers like Ecwid, at once."""

    def open(self, request, timeout):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(request.full_url).query)
        answer = {"ticket": "T"}
        if request.data:
            self.ids = [item["id"] for item in json.loads(request.data)]
        else:
            count = len(self.ids)
            answer = {"status": "COMPLETED", "totalRequests": count, "completedRequests": count}
            if "escapedJson" in query:
                answer["responses"] = [
                    {
                        "id": id,
                        "status": "COMPLETED",
                        "httpStatusCode": 200,
                        "escapedHttpBody": "{}",
                    }
                    for id in self.ids
                ]
        body = io.BytesIO(json.dumps(answer).encode())
        return urllib.response.addinfourl(body, {}, request.full_url, 200)


def stream():
    client = EcwidClient(1003, "secret_token", opener=Opener())
    requests = (BatchRequest.put(f"/products/{n}", BODIES[n % 500]) for n in range(10_000))
    sleep, time.sleep = time.sleep, lambda seconds: None
    try:
        assert sum(response.ok for response in client.stream(requests)) == 10_000
    finally:
        time.sleep = sleep


def floor_of_stream():
    """What both sides do with JSON: the requests and the responses, written and read."""
    for first in range(0, 10_000, 500):
        items = [
            {"id": f"{n:06d}", "path": f"/products/{n}", "method": "PUT", "body": BODIES[n % 500]}
            for n in range(first, first + 500)
        ]
        sent = json.loads(json.dumps(items))
        rows = [
            {
                "id": item["id"],
                "status": "COMPLETED",
                "httpStatusCode": 200,
                "escapedHttpBody": "{}",
            }
            for item in sent
        ]
        json.loads(json.dumps({"status": "COMPLETED", "responses": rows}))


if __name__ == "__main__":
    print(f"ecwid_batch {ecwid_batch.__version__} on Python {sys.version.split()[0]}")
    ratio("import", importing("ecwid_batch"), importing("json, dataclasses, urllib.request"), 15)
    ratio(
        "serialize",
        lambda: Batch([BatchRequest.post("/products", body) for body in BODIES]).to_json(),
        floor_of_serialize,
        40,
    )
    ratio(
        "parse",
        lambda: [response.body for response in BatchStatus.from_dict(json.loads(STATUS))],
        lambda: [json.loads(r["escapedHttpBody"]) for r in json.loads(STATUS)["responses"]],
        15,
    )
    ratio("stream", stream, floor_of_stream, 5, time.process_time)
