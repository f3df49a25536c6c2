"""Requests that docs/openapi.json allows, and some it does not, to the socket of a node as an ordinary user.

usage: fuzz.py DESCRIPTION SOCKET USER EXAMPLES ID-OF-ROOT ID-OF-ANOTHER PLACES

PLACES are paths that the user would like to reach. Every answer must be one that the description knows; the last line
tells how many of each status came. The seed is fixed: a failure comes again.
"""

import collections
import json
import os
import random
import socket
import sys
import time

import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

description, path, user, examples, of_root, of_another, *places = sys.argv[1:]


class Connection(HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        # The kernel tells the node who connects; the programs of the test may be where the user cannot read.
        os.setegid(int(user))
        os.seteuid(int(user))
        try:
            self.sock.connect(path)
        finally:
            os.seteuid(0)
            os.setegid(0)


class Pool(HTTPConnectionPool):
    ConnectionCls = Connection


class Adapter(HTTPAdapter):
    def get_connection_with_tls_context(self, *_, **__):
        return pool


CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
NAMES = [of_root, of_another, of_root + "-x", of_root + "-y", "vol-data", "mnt", "@lock", "@runs", "serve.sock", "x" * 65]
FIELDS = {
    "id": NAMES,
    "mountpoint": places + [place + "/" + name for place in places for name in (of_root, "x", of_root + "/output")],
    "backing": [[place] for place in places] + [["/var/tmp"], []],
    "inputs": [[place] for place in places] + [["s3://bucket/key"], ["s3://bucket/key=../../x"]],
    "output": places + ["s3://bucket/prefix/", "s3://bucket/"],
    "size": [1, 4096, "64M", "1E", 2**63, "0", -1],
    "memory": [1, "1M", "1E", 2**63],
    "mode": ["0700", "7777", "0000", "rwx"],
    "options": [["suid"], ["dev"], ["noexec"], ["allow_other"], ["nosuid,suid"], ["fsname=x"]],
    "owner": [{"uid": 0, "gid": 0}, {"uid": int(user), "gid": int(user)}, {"uid": 2**32 - 1, "gid": 0}],
}

# A slow machine makes fewer requests.
END = time.monotonic() + 40
pool = Pool("localhost", maxsize=1)
session = requests.Session()
session.mount("http://", Adapter())
statuses = collections.Counter()
load_all_checks()


def own_runs():
    return [run["id"] for run in session.get("http://localhost/v1/runs").json()["runs"]]


def spice(case, choose):
    """Puts what an attacker would choose into what was generated."""
    if "id" in (case.path_parameters or {}) and choose.random() < 0.8:
        case.path_parameters["id"] = choose.choice(NAMES + own_runs())
    if case.operation.path == "/v1/runs" and isinstance(case.body, dict):
        if choose.random() < 0.5:
            # Most of what is generated fails early; this gets as far as a mount.
            case.body = {"size": "64M", "memory": "1M"}
        for field, values in FIELDS.items():
            if choose.random() < 0.08:
                case.body[field] = choose.choice(values)


def attack(operation, mode):
    @seed(20_261_130)
    @settings(max_examples=int(examples), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), number=st.integers(0, 2**32))
    def one(case, number):
        if time.monotonic() > END:
            return
        spice(case, random.Random(number))
        if operation.method == "post" and operation.path == "/v1/runs":
            for run in own_runs()[2:]:
                # There must be room for more.
                session.delete(f"http://localhost/v1/runs/{run}?discard=true")
        answer = case.call(base_url="http://localhost", session=session)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)
        assert answer.status_code != 500, answer.text
        if answer.status_code >= 400:
            problem = answer.json()
            assert problem["status"] == answer.status_code and problem["detail"], problem
            asked = json.dumps([case.body, case.path_parameters], default=str)
            assert all(name in asked for name in (of_root, of_another) if name in problem["detail"]), problem

    one()


os.setgroups([])
with open(description) as file:
    schema = schemathesis.openapi.from_dict(json.load(file))
for result in schema.get_all_operations():
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        try:
            attack(result.ok(), mode)
        except Exception as error:
            if "Unsatisfiable" in type(error).__name__ or "NotApplicable" in type(error).__name__:
                continue  # there is nothing wrong to say without parameters
            print(f"{result.ok().label} {mode}:", file=sys.stderr)
            raise
print(json.dumps(statuses))
