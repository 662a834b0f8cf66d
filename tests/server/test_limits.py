"""Who may ask, how much, and how fast; and what hostile bodies and images meet."""

import asyncio
import builtins
import io
import json
import struct
import zlib

import httpx
import pytest
from PIL import Image

from triptych.core.errors import ConfigError
from triptych.server.settings import ServerSettings, read_tokens

from .asking import Server, detail, image_bytes, in_base64

IMAGE = image_bytes()
TOKEN, OTHER = "a-token-of-20-letters", "another-token-of-many"


@pytest.fixture(scope="module")
def small(engines):
    """Serve with low limits."""
    server = Server(
        engines, max_body_mib=0.1, max_items=3, max_megapixels=0.01, read_timeout_s=0.3, queue=2
    )
    yield server
    server.close()


@pytest.fixture(scope="module")
def guarded(engines):
    """Serve those who have a token, and pages of one origin."""
    server = Server(engines, tokens=(OTHER, TOKEN), cors_origins=("https://example.org",))
    yield server
    server.close()


def caption(image=IMAGE, **more):
    return {"items": [{"image": in_base64(image)}], **more}


def test_a_body_is_refused_by_what_its_head_says(small):
    body = json.dumps(caption(bytes(200_000)))
    told = detail(small.post("caption", content=body, headers={"content-type": "a/json"}), 413)
    assert "larger than the 0.1 MiB allowed" in told
    assert small.app.state.places.bytes == 0


class Wire:
    """What a server sees of a client that sends chunks, and may wait or leave between them."""

    def __init__(self, chunks, *, then="wait", headers=()):
        self.chunks, self.then, self.taken, self.sent = list(chunks), then, 0, []
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/caption",
            "raw_path": b"/v1/caption",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "server": ("127.0.0.1", 80),
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers],
        }

    async def receive(self):
        if self.taken < len(self.chunks):
            self.taken += 1
            return {"type": "http.request", "body": self.chunks[self.taken - 1], "more_body": True}
        if self.then == "leave":
            return {"type": "http.disconnect"}
        await asyncio.sleep(60)
        raise AssertionError("nobody stopped waiting")

    async def send(self, message):
        self.sent.append(message)

    def run(self, server):
        asyncio.run(server.app(self.scope, self.receive, self.send))
        return [message["status"] for message in self.sent if "status" in message]


def test_a_chunked_body_is_refused_while_it_arrives(small):
    wire = Wire([bytes(50_000)] * 100, headers=[(b"transfer-encoding", b"chunked")])
    assert wire.run(small) == [413]
    assert json.loads(wire.sent[-1]["body"])["status"] == 413
    assert small.app.state.places.bytes == small.app.state.places.requests == 0


def test_a_client_that_is_slow_or_leaves_frees_its_place(small):
    assert Wire([b"{"], headers=[(b"content-length", b"100")]).run(small) == [408]
    Wire([b"{"], then="leave", headers=[(b"content-length", b"100")]).run(small)
    assert small.app.state.places.bytes == small.app.state.places.requests == 0
    assert "the request did not arrive" not in small.ask("GET", "/metrics").text


def test_bodies_share_a_room(small):
    places = small.app.state.places
    places.take(small.settings.max_bodies - 10)
    try:
        refused = small.post("caption", json=caption())
        assert "are large: ask again later" in detail(refused, 503)
        assert refused.headers["retry-after"] == "1"
    finally:
        places.give_back(small.settings.max_bodies - 10)
    assert small.post("caption", json=caption()).status_code == 200


def test_past_the_queue_comes_503(small):
    async def ask():
        asked = [small.ask_async("POST", "/v1/caption", json=caption()) for _ in range(12)]
        return await asyncio.gather(*asked)

    responses = asyncio.run(ask())
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 2
    refused = next(response for response in responses if response.status_code == 503)
    assert refused.headers["retry-after"] == "1" and "ask again later" in detail(refused, 503)
    assert small.post("caption", json=caption()).status_code == 200


def test_items_images_and_pixels_are_limited(small):
    many = {"items": caption()["items"] * 4}
    assert "at most 3 items" in detail(small.post("caption", json=many), 422)
    assert "items: List" in detail(small.post("caption", files=[("image", IMAGE)] * 4), 422)
    large = image_bytes(size=(101, 100))
    assert "10,000 are allowed" in detail(small.post("caption", json=caption(large)), 422)
    three = {"items": [{"image": in_base64(image_bytes(n, size=(60, 60)))} for n in range(3)]}
    told = detail(small.post("caption", json=three), 422)
    assert told.startswith("items[2].image: the images of the request claim 10,800 pixels")
    same = {"items": [{"image": in_base64(image_bytes(0, size=(60, 60)))}] * 3}
    assert small.post("caption", json=same).status_code == 200  # one image is decoded once


def png(width, height, *chunks):
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", head), *chunks, (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def scans(number):
    buffer = io.BytesIO()
    Image.new("L", (64, 64)).save(buffer, "JPEG", progressive=True)
    jpeg = buffer.getvalue()
    last = jpeg.rfind(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * number + jpeg[-2:]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (png(30_000, 30_000, (b"IDAT", zlib.compress(bytes(1000)))), "900,000,000 pixels"),
        (png(2**31 - 1, 2**31 - 1), "pixels"),
        (scans(200), "scans, more than the 100"),
        (IMAGE[:100], "items[0].image: "),
        (b"", "no image in JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image in JPEG"),
        (b"#define x_width 9\n#define x_height 9\nstatic char x[] = {0};", "no image in JPEG"),
        (b"GIF89a\0\0\0\0\0\0\0", "items[0].image: "),
    ],
    ids=["bomb", "largest", "scans", "cut", "empty", "postscript", "xbm", "no pixel"],
)
def test_bombs_and_broken_images_are_refused(server, image, message, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # the server's own limit holds
    if image:
        assert message in detail(server.post("caption", json=caption(image)), 422)
    assert message in detail(server.post("caption", files={"image": image}), 422)


def test_one_broken_image_fails_its_own_request_alone(server):
    async def ask():
        images = [IMAGE, IMAGE[:-40], IMAGE]
        return await asyncio.gather(
            *(server.ask_async("POST", "/v1/caption", json=caption(image)) for image in images)
        )

    first, broken, last = asyncio.run(ask())
    assert first.json() == last.json() and first.status_code == 200
    assert "items[0].image: the file is cut short" in detail(broken, 422)


@pytest.mark.parametrize("name", ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/a.jpg"])
def test_no_path_and_no_url_is_opened(server, name, monkeypatch):
    def refuse(*arguments, **more):
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    told = detail(server.post("caption", json={"items": [{"image": name}]}), 422)
    assert "neither a path nor a URL is opened" in told
    form = server.post("caption", files={"image": (None, name)})
    assert "no image in" in detail(form, 422)


HEADERS = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"items":' + b"[" * 100_000, 400),
        (b'{"items":[{"a":' + b'{"a":' * 100_000, 400),
        (b"\xff\xfe{}", 400),
        (b"", 400),
        (b"null", 422),
        (b'{"items":[{"text":"\\ud800"}]}', 400),
        (b'{"items":[{"text":NaN}]}', 422),
        (b'{"items":[{"text":' + b"1" * 5000 + b"}]}", 400),
        (b'{"items":[{"text":"a"}],"model":"' + b"m" * 10_000 + b'"}', 422),
        (json.dumps({"items": [{"text": "a" * 20_000}]}).encode(), 422),
        (json.dumps({"items": [{"text": "\0\u200b\ufeff"}]}).encode(), 422),
    ],
)
def test_hostile_json_is_an_error_of_the_client(server, body, status):
    detail(server.post("embed_text", content=body, headers=HEADERS), status)


@pytest.mark.parametrize(
    "options",
    [
        '{"num_beams": 1e999}',
        '{"num_beams": NaN}',
        '{"num_beams": 1000000000}',
        '{"top_p": Infinity}',
        '{"temperature": -1}',
        '{"seed": -1}',
        '{"seed": ' + "9" * 5000 + "}",
        '{"prompt": "\\ud800"}',
        '{"prompt": ' + "[" * 50_000,
        '{"max_tokens": 10000}',
        '{"length_penalty": 1e308}',
        "[]",
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
)
def test_hostile_options_are_an_error_of_the_client(server, options):
    body = options if isinstance(options, bytes) else options.encode()
    response = server.post("caption", files={"image": IMAGE, "options": (None, body)})
    assert response.status_code in (400, 422), response.text
    detail(response, response.status_code)


def test_a_form_that_is_cut_short_or_broken_is_an_error(server):
    whole = httpx.Request("POST", "http://a", files={"image": IMAGE}, data={"options": "{}"})
    body, kind = whole.read(), {"content-type": whole.headers["content-type"]}
    for cut in (0, 10, len(body) // 2, len(body) - 8):
        detail(server.post("caption", content=body[:cut], headers=kind), 400)
    assert server.post("caption", content=body, headers=kind).status_code == 200
    for header in ("multipart/form-data", "multipart/form-data; boundary=" + "x" * 500):
        detail(server.post("caption", content=body, headers={"content-type": header}), 400)
    many = {f"text{number}": "a" for number in range(2000)}
    detail(server.post("embed_text", data=many, files={"a": b""}), 413)
    assert "there is no such field" in detail(server.post("caption", files={"x": IMAGE}), 422)


def test_a_failure_of_the_server_shows_no_traceback(server, monkeypatch, caplog):
    def fail(*arguments, **more):
        raise RuntimeError("a secret of /etc/triptych")

    monkeypatch.setattr(server.service.engines["pretraining"], "embed_texts", fail)
    told = detail(server.post("embed_text", json={"items": [{"text": "a"}]}), 500)
    assert told == "the server failed to answer; its log says why"
    assert "a secret" in caplog.text


def test_only_those_who_have_a_token_are_answered(guarded):
    assert guarded.ask("GET", "/healthz").status_code == 200
    assert guarded.ask("GET", "/readyz").status_code == 200
    for given in ({}, {"authorization": "Bearer nope"}, {"authorization": TOKEN},
                  {"authorization": "Basic !!"}, {"authorization": "Bearer "}):  # fmt: skip
        for path in ("/v1/models", "/metrics", "/openapi.json", "/"):
            refused = guarded.ask("GET", path, headers=given)
            assert "a token is needed" in detail(refused, 401)
            assert "Bearer realm" in refused.headers["www-authenticate"]
        assert guarded.post("caption", json=caption(), headers=given).status_code == 401
    for token in (TOKEN, OTHER):
        bearer = {"authorization": f"Bearer {token}"}
        assert guarded.post("caption", json=caption(), headers=bearer).status_code == 200
        assert guarded.ask("GET", "/v1/models", auth=("anybody", token)).status_code == 200


def test_pages_of_other_origins_may_ask_only_where_they_are_named(guarded, server):
    asks = {"origin": "https://example.org", "access-control-request-method": "POST"}
    allowed = guarded.ask("OPTIONS", "/v1/caption", headers=asks)
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    other = guarded.ask("OPTIONS", "/v1/caption", headers=asks | {"origin": "https://a.org"})
    assert "access-control-allow-origin" not in other.headers
    told = server.post("caption", json=caption(), headers={"origin": "https://example.org"})
    assert "access-control-allow-origin" not in told.headers


def test_a_loopback_server_is_not_asked_under_another_name(server, engines):
    for name in ("evil.example", "evil.example:8000", "localhost.evil.example"):
        refused = server.ask("GET", "/v1/models", headers={"host": name})
        assert "--host-names" in detail(refused, 421)
    for name in ("127.0.0.1:9", "[::1]:9", "LOCALHOST"):
        assert server.ask("GET", "/v1/models", headers={"host": name}).status_code == 200


def test_tokens_of_a_file_and_of_the_environment(tmp_path):
    file = tmp_path / "tokens.txt"
    file.write_text(f"# for the clients\n\n{TOKEN}\n")
    environment = {"TRIPTYCH_TOKENS": f" {OTHER} "}
    assert read_tokens(file, environment) == (OTHER, TOKEN)
    assert read_tokens(None, {}) == ()
    for text, message in (("# none\n", "hold a token"), ("short\n", "at least 16 letters")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message) as caught:
            read_tokens(file, {})
        assert "short" not in str(caught.value)  # no token in a log
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tokens(tmp_path / "missing", {})


def test_settings_are_checked():
    assert ServerSettings(host="::1").is_local and ServerSettings(host="127.8.0.1").is_local
    assert not ServerSettings(host="0.0.0.0").is_local
    assert not ServerSettings(host="example.org").is_local
    for wrong in ({"port": 70_000}, {"queue": 0}, {"max_body_mib": 0}, {"grace_s": -1},
                  {"cors_origins": ("example.org",)}):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ServerSettings(**wrong)
