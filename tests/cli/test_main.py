"""The dispatcher: verbs, exit codes, messages without tracebacks, and a quick start."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import triptych
from triptych.cli import main as main_module
from triptych.cli.main import VERBS, main
from triptych.core.errors import DataError
from triptych.core.files import write_json
from triptych.train.interrupts import TrainingInterrupted


@pytest.fixture
def verb_that(monkeypatch):
    """Return a function that makes the verb `models` do something."""

    def install(action):
        module = SimpleNamespace(run=action)
        monkeypatch.setattr(main_module.importlib, "import_module", lambda name: module)

    return install


def _raise(error):
    raise error


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    named = {" ".join(words[:n]) for words in lines for n in (1, 2)}
    assert set(VERBS) <= named


def test_no_argument_is_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: triptych VERB")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"triptych {triptych.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no verb 'trian'; did you mean 'train'?"),
        (["dat"], "there is no verb 'dat'; did you mean 'data'?"),
        (["--vershun"], "there is no option '--vershun': `triptych --help` lists the verbs"),
        (["data", "chek", "x"], "`triptych data` has no 'chek'; did you mean 'check'?"),
        (
            ["data", "zzz"],
            "`triptych data` has no 'zzz': choose one of check, list, scenes, shard, "
            "stats, tokenize-images",
        ),
    ],
)
def test_a_wrong_verb_names_the_nearest(capsys, arguments, message):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"triptych: error: {message}\n"


def test_a_family_of_verbs_is_listed(capsys):
    assert main(["data"]) == 0
    out = capsys.readouterr().out
    assert "data check" in out and "data scenes" in out and "caption" not in out


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_with_an_example(capsys, verb):
    assert main([*verb.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: triptych {verb}")
    assert f"  triptych {verb.split()[0]}" in out


def test_a_users_mistake_is_one_message(capsys, verb_that):
    verb_that(lambda arguments: _raise(DataError("a.jsonl: is empty")))
    assert main(["models"]) == 2
    assert capsys.readouterr() == ("", "triptych: error: a.jsonl: is empty\n")


def test_a_stopped_run_gives_the_signals_code(capsys, verb_that):
    stop = TrainingInterrupted(signal.SIGTERM, 7, Path("runs/x/checkpoints/step_7"))
    verb_that(lambda arguments: _raise(stop))
    assert main(["models"]) == 143
    err = capsys.readouterr().err
    assert "stopped after step 7; saved runs/x/checkpoints/step_7" in err
    assert "continue with `triptych train runs/x --resume`" in err


def test_ctrl_c_gives_130(capsys, verb_that):
    verb_that(lambda arguments: _raise(KeyboardInterrupt()))
    assert main(["models"]) == 130


def test_our_own_bugs_keep_their_traceback(verb_that):
    verb_that(lambda arguments: _raise(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def test_the_verb_gets_the_rest_and_gives_the_code(verb_that):
    seen = []

    def check(arguments):
        seen.append(arguments)
        return 1

    verb_that(check)
    assert main(["data", "check", "a", "--json", "b"]) == 1
    assert seen == [["a", "--json", "b"]]


def test_help_and_wrong_flags_do_not_wait_for_torch():
    code = (
        "import sys; from triptych.cli.main import main\n"
        "codes = [main(['--help']), main(['caption', '--help']), main(['match', '--jsn'])]\n"
        "assert codes == [0, 0, 2], codes\n"
        "heavy = {'torch', 'cv2', 'rich.progress', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_knows_its_public_names():
    assert set(triptych.__all__) <= set(dir(triptych))
    assert triptych.list_models()[0] == "mplug_tiny"
    assert triptych.create_model("mplug_tiny", vocab_size=40).config.text.vocab_size == 40
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        triptych.lod  # noqa: B018


@pytest.mark.parametrize(
    ("verb", "exit_code"),
    [(["models"], 1), (["train", "mplug.pretrain", "--help"], 141)],  # the first one is rich's way
)
def test_a_reader_who_leaves_gets_no_traceback(verb, exit_code):
    code = "import sys; from triptych.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *verb]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()  # as `head` does once it has its lines
        assert process.stderr.read() == ""
        assert process.wait() == exit_code


def test_an_interrupted_stage_goes_on_with_all_stages(verb_that, capsys, tmp_path):
    (tmp_path / "all" / "stages").mkdir(parents=True)
    (tmp_path / "all" / "stages" / "pretrain.yaml").write_text("")
    checkpoint = tmp_path / "all" / "vision" / "checkpoints" / "step_3"
    verb_that(lambda _: _raise(TrainingInterrupted(signal.SIGINT, 3, checkpoint)))
    assert main(["models"]) == 130
    assert f"continue with `triptych train {tmp_path / 'all'} --resume`" in capsys.readouterr().err


def test_the_package_runs_as_a_module():
    found = subprocess.run(
        [sys.executable, "-m", "triptych", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("triptych ")


def test_an_interrupted_part_of_a_demo_goes_on_with_the_demo(verb_that, capsys, tmp_path):
    settings = {"scale": "tiny", "seed": 0, "num_threads": None}
    write_json(tmp_path / "demo.json", {"settings": settings, "times_s": {}})
    checkpoint = tmp_path / "vqa" / "checkpoints" / "step_3"
    verb_that(lambda _: _raise(TrainingInterrupted(signal.SIGINT, 3, checkpoint)))
    assert main(["models"]) == 130
    command = f"triptych demo --scale tiny --seed 0 --out {tmp_path}"
    assert f"continue with `{command}`" in capsys.readouterr().err


def test_help_and_a_verb_shows_the_options_of_the_verb(capsys):
    assert main(["help", "data", "check"]) == 0
    assert "usage: triptych data check" in capsys.readouterr().out
    assert main(["help", "no_such_verb"]) == 2
    assert "there is no verb 'no_such_verb'" in capsys.readouterr().err
