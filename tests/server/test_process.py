"""`triptych serve` in a process of its own: signals, clients that leave, and slow ones."""

import http.client
import re
import signal
import socket
import threading
import time

import pytest

from benchmarks.speed.http_client import start
from triptych.cli.main import main
from triptych.server.run import _listen
from triptych.server.settings import ServerSettings

from .asking import image_bytes

WAIT_S = 120


class Process:
    """A server that listens."""

    def __init__(self, log, *words, **environment):
        self._log = log
        served = start(log, *map(str, words), OMP_NUM_THREADS="1", **environment)
        self.process, self.port = served.process, served.port

    def said(self):
        return self._log.read_text(encoding="utf-8")

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)

    def get(self, path):
        connection = self.connection()
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def ask(self, image, path="/v1/caption"):
        connection = self.connection()
        connection.request("POST", path, *form(image))
        response = connection.getresponse()
        status = response.status, response.read()
        connection.close()
        return status

    def metric(self, name):
        return float(re.search(rf"^{name} (\S+)$", self.get("/metrics")[1], re.MULTILINE)[1])

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)


def form(image):
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body += image + b"\r\n--b--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture(scope="module")
def running(folders, index_folder, tmp_path_factory):
    """Serve two models and an index; a request must arrive within two seconds."""
    log = tmp_path_factory.mktemp("served") / "log"
    words = (folders["pretraining"], f"qa={folders['vqa']}", "--index", index_folder)
    process = Process(log, *words, "--read-timeout-s", "2", "--queue", "4")
    yield process
    if process.process.poll() is None:
        assert process.stop() == 0, process.said()


def until(holds):
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_says_who_answers_what(running):
    said = running.said()
    assert "pretraining: caption, " in said and "qa: answer (" in said
    assert "search: 10 images" in said and "WARNING" not in said
    status, body = running.ask(image_bytes())
    assert status == 200 and b"caption" in body
    assert running.get("/readyz")[0] == 200


def test_slow_clients_do_not_keep_their_places(running):
    """Some send half a head, some half a body: all are sent away, others are answered."""
    body, headers = form(image_bytes())
    heads, bodies = [], []
    for number in range(3):
        for held, text in (
            (heads, "POST /v1/caption HTTP/1.1\r\nHost: localhost\r\n"),
            (
                bodies,
                f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                f"Content-Type: {headers['Content-Type']}\r\n\r\n--b",
            ),
        ):
            held.append(socket.create_connection(("127.0.0.1", running.port), timeout=WAIT_S))
            held[number].sendall(text.encode())
    until(lambda: running.metric("triptych_requests_in_server") == 3)
    assert running.ask(image_bytes())[0] == 200  # the fourth place
    assert all(b"408" in held.recv(4096).splitlines()[0] for held in bodies)
    assert all(held.recv(4096) == b"" for held in heads)
    assert running.metric("triptych_requests_in_server") == 0
    for held in (*heads, *bodies):
        held.close()


def test_clients_that_leave_free_their_places(running):
    body, headers = form(image_bytes())
    for _ in range(12):
        connection = running.connection()
        connection.request("POST", "/v1/caption", body, headers)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    until(lambda: running.metric("triptych_requests_in_server") == 0)
    assert running.metric("triptych_queue_length") == 0
    assert running.ask(image_bytes())[0] == 200


def test_past_the_queue_all_are_answered_or_refused(running):
    statuses = []

    def run():
        statuses.extend(running.ask(image_bytes())[0] for _ in range(10))

    threads = [threading.Thread(target=run) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(statuses) == 120 and set(statuses) <= {200, 503}
    assert statuses.count(200) >= 4


def test_sigterm_answers_what_runs_and_exits_0(running):
    """The last test of this server: requests that are there when the signal comes are answered."""
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(running.ask(image_bytes())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) + running.metric("triptych_requests_in_server") >= 4)
    assert running.stop() == 0
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [200] * 4
    assert "Traceback" not in running.said(), running.said()
    with pytest.raises(ConnectionRefusedError):
        running.get("/healthz")


def test_strangers_are_warned_of_and_a_port_that_is_taken_is_an_error(folders, capsys):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [
            "serve",
            str(folders["pretraining"]),
            "--host",
            "0.0.0.0",
            "--port",
            port,
            "--no-page",
        ]
        assert main(words) == 2
    said = capsys.readouterr().err
    assert "WARNING: 0.0.0.0 can be reached from other machines" in said
    assert f"cannot listen on 0.0.0.0:{port}" in said


def test_what_cannot_be_served_is_an_error(folders, tmp_path, capsys):
    for words, message in (
        ([], "name a model folder, or an index"),
        ([str(folders["vqa"]), str(folders["vqa"])], "are both called 'vqa'"),
        (["--index", str(tmp_path)], "holds no index"),
        ([str(tmp_path / "missing")], "missing"),
        ([str(folders["vqa"]), "--max-batch", "0"], "max_batch"),
    ):
        assert main(["serve", *words]) == 2
        assert message in capsys.readouterr().err


def test_answers_are_sent_at_once():
    """Without this, each answer waits 40 ms between its head and its body."""
    with (
        _listen(ServerSettings(port=0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
