import os
import platform
import subprocess

import pytest
import torch

import triptych
from triptych.core import machine

CPUINFO = "processor\t: 0\nmodel name\t: Fast CPU 9000\nflags\t\t: fpu avx2 avx512_bf16 sse\n"


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    return folder


def test_a_clean_checkout_gives_its_commit_and_a_changed_one_says_so(package):
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "first")
    commit = git(package, "rev-parse", "HEAD")
    (package / "untracked.txt").write_text("a run's output")
    assert machine.current_commit(package) == commit
    (package / "__init__.py").write_text("changed = True\n")
    assert machine.current_commit(package) == f"{commit}-dirty"


def test_a_package_inside_the_checkout_of_another_project_gives_the_version(package):
    (package.parent / "other.txt").write_text("")
    git(package.parent, "add", "other.txt")
    git(package.parent, "commit", "-q", "-m", "first")
    assert machine.current_commit(package) == triptych.__version__


def test_no_checkout_and_no_git_give_the_version(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.current_commit() == triptych.__version__


def test_the_machine_is_described(monkeypatch):
    monkeypatch.setattr(machine, "_read", lambda path: CPUINFO)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    facts = machine.describe_machine()
    assert facts["CPU"] == "Fast CPU 9000"
    assert facts["bf16"] == "avx512_bf16"
    assert facts["GPU"] == "none"
    assert facts["cores"] == str(len(os.sched_getaffinity(0)))
    assert facts["torch"] == torch.__version__
    assert facts["Python"] == platform.python_version()


@pytest.mark.parametrize(
    ("flags", "found"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False), ("", False)]
)
def test_what_the_processor_says_of_bf16(flags, found, monkeypatch):
    monkeypatch.setattr(machine, "_read", lambda path: f"flags : fpu {flags}\n")
    assert machine.cpu_has_bf16.__wrapped__() is found


def test_a_cpu_without_bf16_says_so(monkeypatch):
    monkeypatch.setattr(machine, "_read", lambda path: "flags : fpu avx2\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.describe_machine()["bf16"] == "no CPU instructions for it"
