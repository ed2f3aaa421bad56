"""Runs gunicorn below svd: `PYTHON airdock_gunicorn.py APP ARGS...` is `gunicorn APP ARGS...` with four additions.

* the gate: a worker boots, probes its application in process, and accepts no connection before svd has committed;
* the counters: requests, errors and durations of every worker in memory shared with svd;
* the drain: after TERM, workers stop accepting at once and have the time that svd says;
* the report: what the master and its workers do, one JSON object a message.

gunicorn resolves its configuration itself; the hooks here are chained to the user's. What svd hands over comes in
environment variables, each optional, that are removed before anything of the user's is loaded:

    AIRDOCK_GATE         descriptor of an eventfd: readable for ever once the generation is committed, never read
    AIRDOCK_REPORT       descriptor of a SOCK_SEQPACKET or SOCK_DGRAM socket
    AIRDOCK_MASTER       a number that is in every report, so that svd knows which master of the generation it is of
    AIRDOCK_COUNTERS     descriptor of a memfd; its layout is below
    AIRDOCK_PROBE        {"path": "/", "host": "localhost", "headers": {}, "expect": [200] or "success", "timeout": 5}
    AIRDOCK_PROBE_TOKEN  requests whose header X-Airdock-Probe is this are not counted

Works with gunicorn 20.1 to 27 and Python 3.7 and later. One file, standard library only.
"""

import _socket
import errno
import json
import mmap
import os
import select
import signal
import sys
import time
import traceback

# Taken before anything can be monkey-patched: these work on real threads, whatever the worker class.
from _thread import allocate_lock, start_new_thread
from select import POLLIN, POLLOUT, poll as native_poll
from time import monotonic, monotonic_ns

# --- Layout of the counters, in 8-byte words of the machine's byte order (src/kinds/counters.rs reads it) ------------
#
# Pages of 512 words. Page 0 is the header and holds what ended workers have counted; every other page is the slot of
# one living worker. Only that worker writes its slot; only the master writes page 0, except for DRAIN_SECONDS and LEAVING.
# Times are microseconds of CLOCK_MONOTONIC.
PAGE = 512
MAGIC = 0x314B434F44524941  # "AIRDOCK1", written by svd
LAYOUT_VERSION = 1
# Page 0 only:
H_MAGIC, H_VERSION, H_DRAIN_SECONDS = 0, 1, 2
H_SEQUENCE = 3  # odd while the master adds an ended worker's numbers to this page
H_UNCOUNTED = 4  # workers that found no free slot
H_SLOW = 5  # 1: the words SLOW are counted; launchers before left them at 0
H_LEAVING = 6  # by svd: the pid of a worker whose place another one has taken already; 0: none
H_LETS_GO = 7  # 1: the launcher heeds LEAVING; launchers before left it at 0
# Slots only:
S_TAKEN, S_PID, S_STARTED = 0, 1, 2
# Both:
BEGUN, FINISHED, ERRORS, DURATION_US = 8, 9, 10, 11
DIED_OPEN = 12  # page 0 only: requests that were open when their worker died
# Finished requests by octaves of their duration: the first is [2^16, 2^17) us, the last everything from 2^26 us.
SLOW, SLOW_COUNT = 13, 11
# A ring of 5-second windows: number of the window (monotonic / 5 s + 1; 0: empty), requests finished, errors, sum of
# durations, and a histogram of 40 buckets of 32 bits, two a word, the even one in the low half. Bucket 0 is below
# 128 us; 1 + 2k is [128 * 2^k, 192 * 2^k), 2 + 2k the rest of that octave; 39 is everything from 2^26 us (67 s).
WINDOWS, WINDOW_COUNT, WINDOW_WORDS, WINDOW_US = 24, 13, 24, 5000000
W_NUMBER, W_FINISHED, W_ERRORS, W_DURATION_US, W_HISTOGRAM = 0, 1, 2, 3, 4
LAST_BUCKET = 39
SLOW_BUCKET = 19  # the first that counts in SLOW
# When each open request began; 0: free. Requests beyond that many are counted, but cannot be seen to be overdue.
OPEN, OPEN_COUNT = 336, 176

BODY_SHOWN = 300
BODY_READ = 1 << 20


def bucket_of(micros):
    """Histogram bucket of a duration."""
    bits = micros.bit_length()
    if bits <= 7:
        return 0
    return min(1 + 2 * (bits - 8) + ((micros >> (bits - 2)) & 1), LAST_BUCKET)


class Counters:
    """The master's side: hands out slots and keeps what ended workers have counted."""

    def __init__(self, fd):
        with mmap.mmap(fd, os.fstat(fd).st_size) as probe:
            size = len(probe)
        self.words = memoryview(mmap.mmap(fd, size)).cast("Q")
        os.close(fd)
        if self.words[H_MAGIC] != MAGIC or self.words[H_VERSION] != LAYOUT_VERSION:
            raise SystemExit("airdock: AIRDOCK_COUNTERS is of another version of svd than this launcher")
        self.words[H_SLOW] = 1
        self.words[H_LETS_GO] = 1
        self.slots = len(self.words) // PAGE - 1
        self.owners = {}
        self.ended = []
        self.folding = False

    def drain_seconds(self):
        return self.words[H_DRAIN_SECONDS]

    def let_go(self, arbiter, worker):
        """A worker that svd has told to leave: its place is not filled again."""
        if self.words[H_LEAVING] == worker.pid:
            self.words[H_LEAVING] = 0
            if arbiter.num_workers > 1:
                arbiter.num_workers -= 1

    def claim(self, worker):
        """Gives `worker`, about to be forked, a slot; None when all are taken."""
        for page in range(1, self.slots + 1):
            if not self.words[page * PAGE + S_TAKEN]:
                self.words[page * PAGE + S_TAKEN] = 1
                self.owners[page] = worker
                return page
        self.words[H_UNCOUNTED] += 1
        return None

    def fold(self, worker):
        """Adds the numbers of an ended worker to page 0, frees its slot, and returns how many requests were open.

        gunicorn 20 calls this from its SIGCHLD handler, so that it may interrupt itself.
        """
        page = getattr(worker, "airdock_page", None)
        if page is None or self.owners.get(page) is not worker:
            return 0
        del self.owners[page]
        base = page * PAGE
        left_open = max(0, self.words[base + BEGUN] - self.words[base + FINISHED])
        self.ended.append((base, left_open))
        if not self.folding:
            self.folding = True
            while self.ended:
                self._fold_page(*self.ended.pop())
            self.folding = False
        return left_open

    def fold_forgotten(self, living):
        """Folds workers that gunicorn dropped without its child_exit hook."""
        for worker in list(self.owners.values()):
            if isinstance(worker.pid, int) and worker.pid not in living:
                self.fold(worker)

    def _fold_page(self, base, left_open):
        words = self.words
        words[H_SEQUENCE] += 1
        for word in (BEGUN, FINISHED, ERRORS, DURATION_US, *range(SLOW, SLOW + SLOW_COUNT)):
            words[word] += words[base + word]
        words[DIED_OPEN] += left_open
        for ring in range(WINDOWS, WINDOWS + WINDOW_COUNT * WINDOW_WORDS, WINDOW_WORDS):
            theirs = base + ring
            if words[theirs] > words[ring]:
                words[ring:ring + WINDOW_WORDS] = words[theirs:theirs + WINDOW_WORDS]
            elif words[theirs] and words[theirs] == words[ring]:
                for word in range(1, WINDOW_WORDS):
                    words[ring + word] += words[theirs + word]
        words[base:base + PAGE] = memoryview(bytes(PAGE * 8)).cast("Q")
        words[H_SEQUENCE] += 1


class Meter:
    """A worker's side: counts its requests in its slot. Cheap, and right with threads."""

    ZEROS = memoryview(bytes(8 * (WINDOW_WORDS - 1))).cast("Q")

    def __init__(self, words, page):
        self.words = words[page * PAGE:(page + 1) * PAGE]
        self.lock = allocate_lock()
        self.free = list(range(OPEN + OPEN_COUNT - 1, OPEN - 1, -1))
        self.window = WINDOWS
        self.number = 0
        self.words[S_STARTED] = monotonic_ns() // 1000
        self.words[S_PID] = os.getpid()

    def begin(self):
        """Counts a request that begins; returns what finish() wants."""
        words = self.words
        now = monotonic_ns() // 1000
        with self.lock:
            words[BEGUN] += 1
            place = self.free.pop() if self.free else None
            if place is not None:
                words[place] = now
        return place, now

    def finish(self, mark, failed):
        place, began = mark
        words = self.words
        with self.lock:
            now = monotonic_ns() // 1000
            took = now - began
            number = now // WINDOW_US + 1
            if number != self.number:
                self.window = WINDOWS + number % WINDOW_COUNT * WINDOW_WORDS
                self.number = number
                words[self.window] = 0
                words[self.window + 1:self.window + WINDOW_WORDS] = self.ZEROS
                words[self.window] = number
            window = self.window
            words[FINISHED] += 1
            words[DURATION_US] += took
            words[window + W_FINISHED] += 1
            words[window + W_DURATION_US] += took
            if failed:
                words[ERRORS] += 1
                words[window + W_ERRORS] += 1
            bucket = bucket_of(took)
            words[window + W_HISTOGRAM + (bucket >> 1)] += 1 << 32 if bucket & 1 else 1
            if bucket >= SLOW_BUCKET:
                words[SLOW + ((bucket - SLOW_BUCKET) >> 1)] += 1
            if place is not None:
                words[place] = 0
                self.free.append(place)


class CountedAsgi:
    """An ASGI application whose requests are counted: those worker classes have no hooks that fit."""

    def __init__(self, app, meter, token):
        self.app, self.meter = app, meter
        self.own = (b"x-airdock-probe", token.encode()) if token else None

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or self.own is not None and self.own in map(tuple, scope["headers"]):
            return await self.app(scope, receive, send)
        status = 500  # what the server answers when the application does not

        async def noting_send(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        failed = True
        mark = self.meter.begin()
        try:
            await self.app(scope, receive, noting_send)
            failed = status >= 500
        except BaseException as e:
            failed = type(e).__name__ != "CancelledError"  # the client went away
            raise
        finally:
            self.meter.finish(mark, failed)


def answered_badly(resp, failure):
    """Whether a request that ended with this response and exception was the application's failure.

    gunicorn answers most exceptions with 500 only after post_request, so that the status is not there yet.
    """
    if isinstance(failure, StopIteration):  # gunicorn's "close this connection": after an exception it is the context
        failure = failure.__context__
    if failure is None:
        status = getattr(resp, "status", None)
        return status is not None and str(status)[:1] == "5"
    if type(failure).__module__ == "gunicorn.http.errors":
        # The client's fault (400 and the like), but for these.
        return type(failure).__name__ in ("ConfigurationProblem", "InvalidResponseHeader", "InvalidResponseHeaderName")
    if isinstance(failure, OSError):
        # The client went away when the exception comes from gunicorn's own reading and writing; anything that the
        # application raised ends in a connection closed without an answer.
        where, at = "", failure.__traceback__
        while at is not None:
            name = at.tb_frame.f_globals.get("__name__", "")
            where = name if name.startswith("gunicorn.") else where
            at = at.tb_next
        if where.startswith(("gunicorn.http", "gunicorn.util")):
            return False
    return True


class Report:
    """Messages to svd. They never block the server for long, and nothing fails when svd is away."""

    def __init__(self, fd, master):
        self.socket = _socket.socket(fileno=fd) if fd is not None else None
        self.master = {"master": int(master)} if master else {}

    def send(self, message, patience=0.2):
        if self.socket is None:
            return
        data = json.dumps(dict(message, **self.master)).encode()
        give_up = monotonic() + patience
        while True:
            try:
                self.socket.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
                return
            except OSError as e:
                left = give_up - monotonic()
                if e.errno not in (errno.EAGAIN, errno.ENOBUFS) or left <= 0:
                    return
            waiter = native_poll()
            waiter.register(self.socket.fileno(), POLLOUT)
            waiter.poll(max(1, min(left, 0.05) * 1000))

    def worker(self, state, **more):
        self.send(dict(more, event="worker", pid=os.getpid(), state=state), patience=2)


class Probe:
    """One request to the application, made inside a worker without a connection."""

    def __init__(self, settings, token):
        self.token = token
        self.path = settings.get("path") or "/"
        self.headers = dict(settings.get("headers") or {})
        self.headers.setdefault("Host", settings.get("host") or "localhost")
        self.headers.setdefault("User-Agent", "airdock-probe")
        self.expect = settings.get("expect") or "success"
        self.timeout = float(settings.get("timeout") or 5)

    def run(self, worker):
        """Returns None when the answer was as expected, else a reason and the beginning of the body."""
        asked = "GET " + self.path
        try:
            status, body = self._in_pool(worker) if hasattr(worker, "tpool") else self._ask(worker)
        except (Exception, SystemExit) as e:
            traceback.print_exc()
            return "%s raised %s" % (asked, describe(e)), b""
        return self._judge(status, body)

    async def run_asgi(self, worker, server):
        """The same, in the loop of an ASGI server whose application has started. Returns as run() does."""
        import asyncio

        try:
            status, body = await asyncio.wait_for(self._ask_asgi(worker, server), self.timeout + 1)
        except asyncio.TimeoutError:
            return "GET %s gave no answer within %g s" % (self.path, self.timeout), b""
        except (Exception, SystemExit) as e:
            traceback.print_exc()
            return "GET %s raised %s" % (self.path, describe(e)), b""
        return self._judge(status, body)

    def _judge(self, status, body):
        asked = "GET " + self.path
        try:
            code = int(status.split(" ", 1)[0])
        except (AttributeError, ValueError):
            return "%s was answered without a status" % asked, body
        if self.expect == "success":
            return None if 200 <= code < 400 else ("%s answered %s (expected 200 to 399)" % (asked, status), body)
        wanted = self.expect if isinstance(self.expect, list) else [self.expect]
        if code in wanted:
            return None
        return "%s answered %s (expected %s)" % (asked, status, " or ".join(map(str, wanted))), body

    def _in_pool(self, worker):
        """Where gthread runs requests: what is bound to the main thread must fail here as it would there."""
        from concurrent.futures import wait

        future = worker.tpool.submit(self._ask, worker)
        while not wait([future], timeout=0.25).done:
            pass  # a wait without a limit would keep Python's signal handlers from running
        return future.result()

    def _ask(self, worker):
        environ = self._environ(worker)
        answer = {"status": None}
        body = []

        def start_response(status, headers, exc_info=None):
            answer["status"] = status
            return body.append

        chunks = worker.wsgi(environ, start_response)
        try:
            for chunk in chunks:
                body.append(chunk)
                if sum(map(len, body)) > BODY_READ:
                    break
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        return answer["status"], b"".join(body)[:BODY_SHOWN]

    def _environ(self, worker):
        """The environment that gunicorn itself builds for this request on its first listener."""
        from gunicorn.http import wsgi
        from gunicorn.http.parser import RequestParser

        lines = ["GET %s HTTP/1.1" % self.path]
        lines += ["%s: %s" % header for header in self.headers.items()]
        raw = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        client, server = self._ends(worker)
        req = next(RequestParser(worker.cfg, iter([raw]), client))
        self.pair = _socket.socketpair()
        _, environ = wsgi.create(req, self.pair[0], client, server, worker.cfg)
        return environ

    def _ends(self, worker):
        """Client and server: as if from the proxy that is trusted, so that X-Forwarded-Proto means what it will mean."""
        trusted = [str(ip).split("/")[0] for ip in worker.cfg.forwarded_allow_ips or []]
        client = (trusted[0] if trusted and trusted[0] not in ("*", "") else "127.0.0.1", 0)
        return client, worker.sockets[0].getsockname() if worker.sockets else ("127.0.0.1", 80)

    async def _ask_asgi(self, worker, server):
        import asyncio

        asked, given_up = asyncio.Event(), asyncio.Event()
        answer, body = {"status": None}, []

        async def receive():
            if not asked.is_set():
                asked.set()
                return {"type": "http.request", "body": b"", "more_body": False}
            await given_up.wait()
            return {"type": "http.disconnect"}

        complete = asyncio.Event()

        async def send(message):
            if message["type"] == "http.response.start":
                answer["status"] = str(message["status"])
            elif message["type"] == "http.response.body":
                body.append(bytes(message.get("body", b"")))
                if not message.get("more_body", False) or sum(map(len, body)) > BODY_READ:
                    complete.set()

        call = asyncio.ensure_future(server.config.loaded_app(self._scope(worker, server), receive, send))
        waiting = asyncio.ensure_future(complete.wait())
        try:
            await asyncio.wait([call, waiting], return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                call.result()
            else:
                self.unfinished = call  # what it does after its answer goes on; a task that nobody holds may vanish
        finally:
            given_up.set()
            waiting.cancel()
            if not complete.is_set():
                call.cancel()
        return answer["status"], b"".join(body)[:BODY_SHOWN]

    def _scope(self, worker, server):
        """What uvicorn itself would tell the application of this request."""
        from urllib.parse import unquote

        client, address = self._ends(worker)
        path, _, query = self.path.partition("?")
        config = server.config
        root_path = getattr(config, "root_path", "")
        headers = list(self.headers.items()) + ([("X-Airdock-Probe", self.token)] if self.token else [])
        scope = {
            "type": "http", "asgi": {"version": getattr(config, "asgi_version", "3.0"), "spec_version": "2.3"},
            "http_version": "1.1", "method": "GET", "scheme": "http", "root_path": root_path,
            "path": root_path + unquote(path), "raw_path": (root_path + path).encode("latin-1"),
            "query_string": query.encode("latin-1"), "client": client,
            "server": tuple(address[:2]) if isinstance(address, tuple) else (address, None),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        }
        state = getattr(server.lifespan, "state", None)
        if state is not None:
            scope["state"] = state.copy()
        return scope


def describe(failure):
    text = str(failure).strip().split("\n")[-1] if str(failure).strip() else ""
    return ("%s: %s" % (type(failure).__name__, text) if text else type(failure).__name__)[:1000]


class Launcher:
    """What svd handed over, and the hooks that use it."""

    def __init__(self, environ):
        self.gate = take_descriptor(environ, "AIRDOCK_GATE")
        self.report = Report(take_descriptor(environ, "AIRDOCK_REPORT"), environ.pop("AIRDOCK_MASTER", None))
        counters = take_descriptor(environ, "AIRDOCK_COUNTERS")
        self.counters = Counters(counters) if counters is not None else None
        probe = environ.pop("AIRDOCK_PROBE", None)
        self.token = environ.pop("AIRDOCK_PROBE_TOKEN", None)
        self.probe = Probe(json.loads(probe), self.token) if probe else None
        self.inherited = "LISTEN_FDS" in environ
        self.load_failed = False

    # --- configuration ---

    def configure(self, cfg):
        """Called on each loaded configuration: at the start, and again when the master gets HUP."""
        forced = {"control_socket_disable": True, "reuse_port": False, "daemon": False, "pidfile": None}
        for name, value in forced.items():
            if name in cfg.settings and cfg.settings[name].get() != value:
                if name in ("daemon", "pidfile"):
                    print("airdock: gunicorn's setting %s is ignored, since svd keeps the process" % name,
                          file=sys.stderr)
                cfg.set(name, value)
        if self.inherited:
            # svd's sockets are used whatever the user binds; a descriptor in `bind` would be closed under gunicorn,
            # and an address that changes in a HUP would make it close the shared ones.
            cfg.set("bind", ["127.0.0.1:8000"])
        self.chain(cfg)

    def chain(self, cfg):
        """Puts this launcher's hooks around the user's."""
        user = {name: cfg.settings[name].get() for name in (
            "pre_fork", "post_fork", "post_worker_init", "child_exit", "nworkers_changed")}

        def nworkers_changed(arbiter, new, old):
            user["nworkers_changed"](arbiter, new, old)
            self.report_boot(arbiter, new)

        def pre_fork(arbiter, worker):
            user["pre_fork"](arbiter, worker)
            self.before_fork(arbiter, worker)

        def post_fork(arbiter, worker):
            page = getattr(worker, "airdock_page", None)
            if page is not None:
                self.count_requests(worker, Meter(self.counters.words, page))
            user["post_fork"](arbiter, worker)

        def post_worker_init(worker):
            user["post_worker_init"](worker)
            self.worker_booted(worker)

        def child_exit(arbiter, worker):
            left_open = self.counters.fold(worker) if self.counters is not None else 0
            if self.counters is not None:
                self.counters.let_go(arbiter, worker)
            self.report.send({"event": "exit", "pid": worker.pid, "open": left_open})
            user["child_exit"](arbiter, worker)

        for hook in (nworkers_changed, pre_fork, post_fork, post_worker_init, child_exit):
            cfg.set(hook.__name__, hook)

    def report_boot(self, arbiter, workers):
        import gunicorn

        cfg = arbiter.cfg
        self.report.send({
            "event": "boot", "pid": os.getpid(), "gunicorn": gunicorn.__version__, "workers": workers,
            "worker_class": cfg.worker_class_str, "timeout": cfg.timeout, "graceful_timeout": cfg.graceful_timeout,
            "counted": self.counters is not None and (has_hooks(cfg.worker_class) or is_asgi(cfg.worker_class)),
        }, patience=2)

    # --- in the master ---

    def before_fork(self, arbiter, worker):
        if self.counters is not None:
            self.counters.fold_forgotten(arbiter.WORKERS)
            worker.airdock_page = self.counters.claim(worker)
        original = worker.handle_exit

        def handle_exit(sig, frame):
            self.apply_drain(worker.cfg)
            original(sig, frame)

        worker.handle_exit = handle_exit

    def apply_drain(self, cfg):
        """The time for requests in flight that svd allows in this stop, instead of the user's graceful_timeout."""
        seconds = self.counters.drain_seconds() if self.counters is not None else 0
        if seconds > 0:
            cfg.set("graceful_timeout", seconds)

    # --- in a worker ---

    def count_requests(self, worker, meter):
        """In the worker alone, as hooks change how some worker classes work."""
        cfg, token = worker.cfg, self.token
        worker.airdock_meter = meter
        if not has_hooks(type(worker)):
            return
        user_pre_request = cfg.settings["pre_request"].get()
        user_post_request = cfg.settings["post_request"].get()

        def pre_request(worker, req):
            if token is None or ("X-AIRDOCK-PROBE", token) not in req.headers:
                req.airdock = meter.begin()
            user_pre_request(worker, req)

        def post_request(worker, req, environ, resp):
            mark = req.__dict__.pop("airdock", None)
            if mark is not None:
                meter.finish(mark, answered_badly(resp, sys.exc_info()[1]))
            user_post_request(worker, req, environ, resp)

        cfg.set("pre_request", pre_request)
        cfg.set("post_request", post_request)

    def worker_booted(self, worker):
        self.report.worker("booted")
        meter = getattr(worker, "airdock_meter", None)
        if meter is not None and is_asgi(type(worker)):
            for name in ("wsgi", "asgi"):  # UvicornWorker and gunicorn's own
                if hasattr(worker, name):
                    setattr(worker, name, CountedAsgi(getattr(worker, name), meter, self.token))
        if self.gate is None or not self.committed():
            if gate_in_loop(self, worker):
                return
            self.probe_application(worker)
            if self.gate is not None:
                self.wait_for_commit(worker)
        else:
            self.report.worker("ready")
        mend(worker)
        self.report.worker("serving")

    def committed(self):
        waiter = native_poll()
        waiter.register(self.gate, POLLIN)
        return any(events & POLLIN for _, events in waiter.poll(0))

    def probe_application(self, worker):
        if self.load_failed:
            return
        if self.probe is None or is_asgi(type(worker)):
            self.report.worker("ready", probed=False)
            return
        watch = ProbeWatch(self, worker, self.probe)
        failure = self.probe.run(worker)
        if not watch.end():
            return
        if failure is None:
            self.report.worker("ready")
        else:
            self.report.worker("failed", reason=failure[0], body=failure[1].decode("utf-8", "replace"))

    async def gate_started(self, worker, server):
        """In the loop of an ASGI server whose application has started and which does not accept yet. False: leave."""
        if self.probe is None:
            self.report.worker("ready", probed=False)
        else:
            watch = ProbeWatch(self, worker, self.probe)
            failure = await self.probe.run_asgi(worker, server)
            if watch.end():
                if failure is None:
                    self.report.worker("ready")
                else:
                    self.report.worker("failed", reason=failure[0], body=failure[1].decode("utf-8", "replace"))
        if self.gate is not None and not await self.wait_in_loop(worker, server):
            return False
        self.report.worker("serving")
        return True

    async def wait_in_loop(self, worker, server):
        """As wait_for_commit; whether the generation was committed."""
        import asyncio

        while not self.committed():
            if server.should_exit or not worker.alive or worker.ppid != os.getppid():
                return False
            worker.notify()
            await asyncio.sleep(0.02)
        return True

    def wait_for_commit(self, worker):
        """Returns when the generation is committed; leaves the process when the worker is to stop before that."""
        while not self.committed():
            if not worker.alive or worker.ppid != os.getppid():
                sys.exit(0)
            worker.notify()
            # gunicorn writes to this pipe on every signal: TERM is noticed at once. select is looked up here, so that
            # under gevent it is the patched one and the application's greenlets go on.
            fds = [self.gate] + list(worker.PIPE[:1])
            wait_readable(fds, 0.5)
            for fd in fds[1:]:
                drain_pipe(fd)


class ProbeWatch:
    """A real thread that keeps the heartbeat going while the application is probed, and reports it when it hangs."""

    def __init__(self, launcher, worker, probe):
        self.launcher, self.worker, self.probe = launcher, worker, probe
        self.done = allocate_lock()
        self.done.acquire()
        self.verdict = allocate_lock()
        start_new_thread(self.watch, ())

    def end(self):
        """Ends the watch; whether the verdict is still open (else the thread has reported the failure)."""
        self.done.release()
        return self.verdict.acquire(False)

    def watch(self):
        deadline = monotonic() + self.probe.timeout
        while not self.done.acquire(timeout=0.25):
            self.worker.tmp.notify()
            if not self.told_to_stop():
                if monotonic() >= deadline and self.verdict.acquire(False):
                    self.launcher.report.worker("failed", body="", reason="GET %s gave no answer within %g s" % (
                        self.probe.path, self.probe.timeout))
            elif not self.done.acquire(timeout=0.25):
                # Told to stop in the middle of a probe: the main thread may hang for ever.
                os._exit(0)
            else:
                return

    def told_to_stop(self):
        if not self.worker.alive or self.worker.ppid != os.getppid():
            return True
        if self.verdict.locked():
            # A main thread that hangs in a lock does not run the handler of TERM, but the signal is in this pipe.
            signals = drain_pipe(self.worker.PIPE[0])
            return any(sig in signals for sig in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT))
        return False


def is_asgi(worker_class):
    """Whether it calls its application by ASGI, whose lifespan has not begun when the hooks run."""
    return any(c.__name__ in ("ASGIWorker", "UvicornWorker") for c in worker_class.__mro__)


def gate_in_loop(launcher, worker):
    """Gates an ASGI worker between the start of its application and its first accept; whether it could be done.

    The application starts (its lifespan begins) in the server's own loop, long after gunicorn's hooks, and what it binds to
    that loop must not be used in another: so the probe goes there, too, and a lifespan that fails costs no request.
    """
    names = {c.__name__ for c in type(worker).__mro__}
    if "ASGIWorker" in names and all(hasattr(worker, name) for name in ("loop", "asgi", "_serve")):
        worker.loop = GatedLoop(launcher, worker)
        return True
    if "UvicornWorker" not in names:
        return False
    try:
        from uvicorn.server import Server
    except ImportError:
        return False
    original = Server.startup

    async def startup(server, sockets=None):
        lifespan = server.lifespan
        begin = lifespan.startup

        async def gated():
            await begin()
            if lifespan.should_exit or await launcher.gate_started(worker, server):
                return
            # Told to stop before the commit: nothing is accepted, and the application ends in order.
            await lifespan.shutdown()
            sys.exit(0)

        lifespan.startup = gated
        await original(server, sockets=sockets)

    Server.startup = startup
    return True


class GatedLoop:
    """The loop of gunicorn's own ASGI worker, until that is about to accept: its application has started then."""

    def __init__(self, launcher, worker):
        self._launcher, self._worker, self._loop = launcher, worker, worker.loop

    def __getattr__(self, name):
        return getattr(self._loop, name)

    async def create_server(self, *args, **kwargs):
        worker = self._worker
        worker.loop = self._loop
        if not await self._launcher.gate_started(worker, AsgiServer(worker)):
            # Told to stop before the commit: nothing is accepted, and the application ends in order.
            if getattr(worker, "lifespan", None):
                await worker.lifespan.shutdown()
            raise SystemExit(0)
        return await self._loop.create_server(*args, **kwargs)


class AsgiServer:
    """Of gunicorn's own ASGI worker, what a probe needs to know, by the names that uvicorn has."""

    should_exit = False
    asgi_version = "3.0"
    root_path = ""

    def __init__(self, worker):
        self.config = self.lifespan = self
        self.loaded_app, self.state = worker.asgi, worker.state


def has_hooks(worker_class):
    """Whether it runs the hooks around each request, as gunicorn's own WSGI workers do but for gevent_pywsgi."""
    names = {c.__name__ for c in worker_class.__mro__}
    return bool(names & {"SyncWorker", "ThreadWorker", "AsyncWorker"}) and not getattr(
        worker_class, "server_class", None)


def wait_readable(fds, seconds):
    if hasattr(select, "poll"):
        waiter = select.poll()
        for fd in fds:
            waiter.register(fd, POLLIN)
        waiter.poll(int(seconds * 1000))
    else:
        select.select(fds, [], [], seconds)


def drain_pipe(fd):
    """Empties a pipe that never blocks; returns up to 512 bytes of what was in it."""
    data = b""
    try:
        data = os.read(fd, 512)
        while len(os.read(fd, 512)) == 512:
            pass
    except OSError:
        pass
    return data


# --- Mending how workers stop ----------------------------------------------------------------------------------------


def mend(worker):
    names = {c.__name__ for c in type(worker).__mro__}
    if "AsyncWorker" in names:
        keep_listener_names(worker)
    if "GeventWorker" in names:
        wake_gevent(worker)
    elif "ThreadWorker" in names and all(hasattr(worker, name) for name in ("_keep", "_lock", "futures", "nr_conns")):
        LingeringThreads(worker)


class Listener:
    """A listening socket that still knows its name when it is closed."""

    def __init__(self, sock):
        self.sock = sock
        self.name = sock.getsockname()

    def __getattr__(self, attribute):
        return getattr(self.sock, attribute)

    def getsockname(self):
        return self.name


def keep_listener_names(worker):
    """AsyncWorker.handle asks the listener for its name, and drops the connection that came just before its close."""
    named = {id(sock): Listener(sock) for sock in worker.sockets}
    original = worker.handle

    def handle(listener, client, addr):
        original(named.get(id(listener), listener), client, addr)

    worker.handle = handle


def wake_gevent(worker):
    """GeventWorker.run looks at `alive` once a second and accepts until then: let TERM end that sleep."""
    import gevent
    from gevent.event import Event
    from gunicorn.workers import ggevent

    stopping = Event()

    class Gevent:
        """The module as gunicorn sees it, but for sleep()."""

        def __getattr__(self, name):
            return getattr(gevent, name)

        @staticmethod
        def sleep(seconds=0):
            if stopping.is_set():
                gevent.sleep(min(seconds, 0.05))
            else:
                stopping.wait(seconds)

    ggevent.gevent = Gevent()
    original = worker.handle_exit

    def handle_exit(sig, frame):
        original(sig, frame)
        stopping.set()

    worker.handle_exit = handle_exit
    signal.signal(signal.SIGTERM, handle_exit)
    signal.siginterrupt(signal.SIGTERM, False)


class LingeringThreads:
    """gthread before 27 drops connections when it stops: those accepted but not yet read, and those kept alive.

    On TERM it goes on with the connections that it has, for at most LINGER, without accepting others and answering
    with "Connection: close"; only then does its own way of stopping begin, which waits for requests in flight.
    """

    LINGER = 2.0

    def __init__(self, worker):
        self.worker = worker
        self.deadline = None
        self.asked = False
        self.original_exit = worker.handle_exit
        self.original_notify = worker.notify
        worker.handle_exit = self.handle_exit
        worker.notify = self.notify
        signal.signal(signal.SIGTERM, self.handle_exit)
        signal.siginterrupt(signal.SIGTERM, False)
        worker.poller.register(worker.PIPE[0], select_event_read(), self.on_signal)

    def handle_exit(self, sig, frame):
        # The signal has written to PIPE; the loop calls on_signal().
        self.asked = True

    def on_signal(self, pipe):
        drain_pipe(pipe)
        worker = self.worker
        if not self.asked or self.deadline is not None:
            return
        self.deadline = monotonic() + self.LINGER
        worker.max_keepalived = 0  # every answer from now on says "Connection: close"
        with worker._lock:
            for listener in worker.sockets:
                worker.poller.unregister(listener)

    def notify(self):
        """Called by the loop on every round."""
        self.original_notify()
        if self.deadline is not None and self.worker.alive:
            if self.worker.nr_conns <= 0 or monotonic() >= self.deadline:
                self.original_exit(signal.SIGTERM, None)
                os.write(self.worker.PIPE[1], b"x")


def select_event_read():
    import selectors

    return selectors.EVENT_READ


# --- The program -----------------------------------------------------------------------------------------------------


def take_descriptor(environ, name):
    """Removes the variable; returns its descriptor, which no program started by the application inherits."""
    value = environ.pop(name, None)
    if value is None:
        return None
    try:
        os.set_inheritable(int(value), False)
    except (ValueError, OSError) as e:
        raise SystemExit("airdock: %s=%s is no descriptor of this process: %s" % (name, value, e))
    return int(value)


def look_like_gunicorn():
    """argv and the import path as the `gunicorn` script beside this interpreter would have them."""
    scripts = os.path.dirname(sys.executable)
    here = os.path.dirname(os.path.abspath(sys.argv[0]))
    if sys.path and os.path.realpath(sys.path[0]) == os.path.realpath(here):
        sys.path[0] = scripts
    sys.argv[0] = os.path.join(scripts, "gunicorn")


def arbiter_class(base, launcher):
    from gunicorn.errors import HaltServer

    class Arbiter(base):
        airdock_stopping = False

        def stop(self, graceful=True):
            self.airdock_stopping = True
            if graceful:
                launcher.apply_drain(self.cfg)
            super().stop(graceful)

        def reap_workers(self):
            try:
                super().reap_workers()
            except HaltServer:
                # A second worker that could not boot, while the first one's failure is already ending everything:
                # letting it through would end the stop half-way, with a traceback that hides the application's.
                if not self.airdock_stopping:
                    raise

        def signal(self, sig, frame):
            if os.getpid() != self.pid and sig in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                # A worker that has just been forked still has the master's handlers, which would forget the signal.
                sys.exit(0)
            super().signal(sig, frame)

    return Arbiter


def main():
    launcher = Launcher(os.environ)
    look_like_gunicorn()
    try:
        import gunicorn.app.base
        from gunicorn.app.wsgiapp import WSGIApplication
    except ImportError as e:
        raise SystemExit("airdock: %s cannot import gunicorn: %s; install it there, or set `python` in the service's "
                         "file" % (sys.executable, e))
    gunicorn.app.base.Arbiter = arbiter_class(gunicorn.app.base.Arbiter, launcher)

    class Application(WSGIApplication):
        def load_config(self):
            super().load_config()
            launcher.configure(self.cfg)

        def load(self):
            try:
                return super().load()
            except BaseException as e:
                launcher.load_failed = True  # some worker classes go on, and answer every request with the error
                launcher.report.worker("failed", reason="cannot load the application: " + describe(e), body="")
                raise

    Application("%(prog)s [OPTIONS] [APP_MODULE]").run()


if __name__ == "__main__":
    main()
