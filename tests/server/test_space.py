"""The Space of docs/how-to/serve.md: its app.py, in a folder as a Space has it."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from tests.serving.tiny_folder import write_tiny_folder

from .asking import image_bytes

ROOT = Path(__file__).parents[2]
SPACE_HOST = "someone-images.hf.space"


def test_the_app_of_a_space_serves_the_page_behind_its_proxy(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
    app = re.search(r"```python [^\n]*test_space[^\n]*\n(.*?)```", text, re.DOTALL).group(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "app.py").write_text(app.replace("7860", port))
    assert app.count("7860") == 1
    write_tiny_folder(tmp_path / "model", "pretraining")
    (tmp_path / "photos" / "all").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "photos" / "all" / f"{number}.png").write_bytes(image_bytes(number))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "app.py"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("listening on "):
                break
        assert any("can be reached from other machines" in line for line in said), said
        # what the proxy of a Space adds to a request
        headers = {
            "Host": SPACE_HOST,
            "X-Forwarded-Host": SPACE_HOST,
            "X-Forwarded-Proto": "https",
        }
        page = httpx.get(f"http://127.0.0.1:{port}/", headers=headers, trust_env=False)
        assert page.status_code == 200
        assert f'"root":"https://{SPACE_HOST}"' in page.text
        assert "photos.index, 3 images" in page.text
    finally:
        process.kill()
        process.communicate()
