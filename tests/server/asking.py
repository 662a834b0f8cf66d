"""What the tests of the server share: tiny models, an application, and a way to ask it."""

import asyncio
import base64
import io

import httpx
import numpy as np
from PIL import Image

from triptych.server.app import build_app
from triptych.server.settings import ServerSettings


def image_bytes(number=0, kind="PNG", size=(20, 16)):
    """Return an encoded image of random colours."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def in_base64(data):
    """Return bytes as JSON carries them."""
    return base64.b64encode(data).decode("ascii")


class Server:
    """An application that is asked without a network."""

    def __init__(self, engines, index=None, tokens=(), **settings):
        self.settings = ServerSettings(**settings)
        self.app = build_app(engines, index, self.settings, tokens)
        self.service = self.app.state.service

    def ask(self, method, path, **request):
        """Return the response to one request."""
        return asyncio.run(self.ask_async(method, path, **request))

    async def ask_async(self, method, path, **request):
        """The same within an event loop."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **request)

    def post(self, verb, **request):
        """Return the response to a question."""
        return self.ask("POST", f"/v1/{verb}", **request)

    def close(self):
        """Stop its threads."""
        assert self.service.close(30)


def detail(response, status):
    """Check a problem document, and return what it says."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told["status"] == status and told["type"] == "about:blank" and told["title"]
    return told["detail"]
