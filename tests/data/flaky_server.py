"""A local HTTP server that knows byte ranges and fails some of its requests, for tests."""

import random
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FlakyServer:
    """Serves a folder.

    Attributes:
        url: Where.
        fails: Share of the requests that fail: with 503, a dropped connection, or half an answer.
        num_requests: How many came.
        num_failed: How many of them failed.
        is_down: Whether all fail.
        ranges: The (path, start, end) of each GET, the end exclusive.
    """

    def __init__(self, folder, fails, seed):
        self.folder, self.fails = folder, fails
        self.num_requests = self.num_failed = 0
        self.is_down, self.knows_ranges = False, True
        self.ranges = []
        self._chance, self._lock = random.Random(seed), threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _fate(self):
        with self._lock:
            self.num_requests += 1
            failed = self.is_down or self._chance.random() < self.fails
            self.num_failed += failed
            return self._chance.choice(["busy", "drop", "half"]) if failed else "fine"

    def _handler(outer):  # noqa: N805 - `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(with_body=False)

            def do_GET(self):
                self.answer(with_body=True)

            def answer(self, with_body):
                fate = outer._fate()
                if fate == "drop":
                    self.close_connection = True
                    return
                path = outer.folder / self.path.lstrip("/")
                if fate == "busy" or not path.is_file():
                    self.send_response(503 if fate == "busy" else 404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                data = path.read_bytes()
                start, end, status = 0, len(data), 200
                asked = self.headers.get("Range")
                if asked and outer.knows_ranges:
                    first, _, last = asked.removeprefix("bytes=").partition("-")
                    start, end, status = int(first), min(int(last) + 1, len(data)), 206
                self.send_response(status)
                self.send_header("Content-Length", str(end - start))
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("ETag", str(path.stat().st_mtime_ns))
                self.end_headers()
                if with_body:
                    outer.ranges.append((self.path, start, end))
                    cut = (start + end) // 2 if fate == "half" else end
                    self.wfile.write(data[start:cut])
                    self.close_connection = fate == "half"

            def log_message(self, *args):
                pass

        return Handler

    def start(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def flaky_server(folder, *, fails=0.0, seed=0):
    server = FlakyServer(folder, fails, seed)
    server.start()
    try:
        yield server
    finally:
        server.stop()
