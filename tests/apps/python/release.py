"""What the test applications of one release do: `release.json` beside this file, written by a test.

    {"name": "2", "import": "ok" | "raise" | "hang", "import_seconds": 0.5, "probe": "ok" | "fail" | "raise" | "hang",
     "lifespan": "ok" | "fail" (of the ASGI application), "slow_note": "a file that is made when /slow begins",
     "fail_share": 0.2 (of the requests for / are answered with 500), "fail_hosts": {"web-1": 0.2} (the same, there alone),
     "grown": 100 (MiB that a worker of it has from its beginning), "wait": 0.3 (seconds that a request for / takes)}
"""

import json
import os
import random
import socket
import time

try:
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "release.json")) as f:
        settings = json.load(f)
except FileNotFoundError:
    settings = {}

NAME = str(settings.get("name", "0"))

FAIL_SHARE = settings.get("fail_hosts", {}).get(socket.gethostname(), settings.get("fail_share", 0))

time.sleep(settings.get("import_seconds", 0))
if settings.get("import") == "raise":
    raise ImportError("release %s is broken" % NAME)
while settings.get("import") == "hang":
    time.sleep(3600)

# Touched, so that it is really there.
held = [b"x" * (settings.get("grown", 0) << 20)]


def body():
    return "release=%s pid=%d\n" % (NAME, os.getpid())


def health():
    """Status and body of /healthz."""
    probe = settings.get("probe", "ok")
    if probe == "raise":
        raise ValueError("the health check of release %s raises" % NAME)
    while probe == "hang":
        time.sleep(3600)
    return (500, "the database is down\n") if probe == "fail" else (200, "ok\n")


def answer(path, seconds):
    """Status and body of every page: / /healthz /slow?seconds=1.5 /error /raise /environ /grow (100 MiB larger for ever)."""
    if path == "/healthz":
        return health()
    if path == "/slow":
        if "slow_note" in settings:
            open(settings["slow_note"], "w").close()
        time.sleep(float(seconds or 1))
    if path == "/grow":
        held.append(b"x" * (100 << 20))
    if path == "/error":
        return 500, "asked to fail\n"
    if path == "/raise":
        raise ValueError("asked to raise")
    if path == "/environ":
        return 200, json.dumps(dict(os.environ, cwd=os.getcwd()), sort_keys=True) + "\n"
    time.sleep(settings.get("wait", 0))
    if random.random() < FAIL_SHARE:
        return 500, "one of those that fail\n"
    return 200, body()
