"""A stand-in of the hub: what huggingface_hub asks of its HTTP API to create, commit and fetch.

It keeps everything in memory. The token "writer" may write to repositories of "me", "reader" to
none, and nobody knows any other.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKENS = {"writer", "reader"}


class Hub:
    """The repositories, by id: whether they are private, and the commits of each branch."""

    def __init__(self):
        self.repos, self.objects, self.messages = {}, {}, []
        self.lock = threading.Lock()

    def create(self, name, private):
        self.repos[name] = {"private": private, "branches": {}, "commits": {}}
        self.commit(name, "main", {".gitattributes": b"*.safetensors filter=lfs"}, "first")

    def commit(self, name, branch, files, message):
        repo = self.repos[name]
        parts = [f"{path}:{hashlib.sha256(files[path]).hexdigest()}" for path in sorted(files)]
        oid = hashlib.sha1("\n".join([message, branch, *parts]).encode()).hexdigest()
        repo["commits"][oid] = files
        repo["branches"][branch] = oid
        self.messages.append(message)
        return oid

    def files(self, name, revision):
        repo = self.repos[name]
        oid = repo["branches"].get(revision, revision)
        return oid, repo["commits"].get(oid)


class RefusedError(Exception):
    def __init__(self, status, code):
        super().__init__(code)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks; its server has the hub."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def _answer(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        path = self.path.split("?")[0].replace("%2F", "/")
        try:
            with self.server.hub.lock:
                for pattern, act in ROUTES:
                    found = re.fullmatch(pattern, f"{self.command} {path}")
                    if found:
                        act(self, *found.groups())
                        return
            raise RefusedError(404, "EntryNotFound")
        except RefusedError as refused:
            self._send(refused.status, b'{"error": "no"}', {"X-Error-Code": refused.code})

    def _send(self, status, content, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _endpoint(self):
        return f"http://{self.headers['Host']}"

    def _may_write(self, name):
        if self.token not in TOKENS:
            raise RefusedError(401, "Unauthorized")
        if self.token != "writer" or not name.startswith("me/"):
            raise RefusedError(403, "Forbidden")

    def _found(self, name, revision="main"):
        known = self.server.hub.repos.get(name)
        if known is None or (known["private"] and self.token not in TOKENS):
            raise RefusedError(404 if self.token else 401, "RepoNotFound")
        oid, files = self.server.hub.files(name, revision)
        if files is None:
            raise RefusedError(404, "RevisionNotFound")
        return oid, files

    def create(self):
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        self._may_write(name)
        url = f"{self._endpoint()}/{name}"
        if name in self.server.hub.repos:
            self._send(409, json.dumps({"error": "it exists", "url": url}).encode())
            return
        self.server.hub.create(
            name, asked.get("visibility") == "private" or asked.get("private") is True
        )
        self._json({"url": url})

    def info(self, name, revision=None):
        oid, files = self._found(name, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        private = self.server.hub.repos[name]["private"]
        self._json({"id": name, "sha": oid, "private": private, "siblings": siblings})

    def tree(self, name, revision):
        _, files = self._found(name, revision)
        self._json(
            [
                {
                    "type": "file",
                    "path": path,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for path, data in files.items()
            ]
        )

    def branch(self, name, branch):
        self._may_write(name)
        _, files = self._found(name)
        if branch in self.server.hub.repos[name]["branches"]:
            raise RefusedError(409, "Conflict")
        self.server.hub.commit(name, branch, dict(files), "branch")
        self._json({})

    def check_card(self):
        self._json({"errors": [], "warnings": []})

    def preupload(self, name, _revision):
        self._may_write(name)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json({"files": modes})

    def batch(self, name):
        self._may_write(name)
        objects = [
            known | {"actions": {"upload": {"href": f"{self._endpoint()}/lfs/{known['oid']}"}}}
            for known in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.hub.objects[oid] = self.body
        self._send(200, b"")

    def commit(self, name, revision):
        self._may_write(name)
        files = dict(self._found(name, revision)[1])
        message = ""
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.hub.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        oid = self.server.hub.commit(name, revision, files, message)
        url = f"{self._endpoint()}/{name}/commit/{oid}"
        self._json({"success": True, "commitUrl": url, "commitOid": oid})

    def resolve(self, name, revision, path):
        oid, files = self._found(name, revision)
        if path not in files:
            raise RefusedError(404, "EntryNotFound")
        mark = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        self._send(200, files[path], {"X-Repo-Commit": oid, "ETag": mark})


NAME, REVISION = r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES = (
    ("POST /api/repos/create", Handler.create),
    ("POST /api/validate-yaml", Handler.check_card),
    (f"GET /api/models/{NAME}", Handler.info),
    (f"GET /api/models/{NAME}/revision/{REVISION}", Handler.info),
    (f"GET /api/models/{NAME}/tree/{REVISION}", Handler.tree),
    (f"POST /api/models/{NAME}/branch/{REVISION}", Handler.branch),
    (f"POST /api/models/{NAME}/preupload/{REVISION}", Handler.preupload),
    (f"POST /api/models/{NAME}/commit/{REVISION}", Handler.commit),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/(\w+)", Handler.upload),
    (f"(?:HEAD|GET) /{NAME}/resolve/{REVISION}/(.+)", Handler.resolve),
)


@contextmanager
def serve_hub():
    """Yield the hub and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = hub
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
