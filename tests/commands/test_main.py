"""The one command line: every command by its name, as a script of a clone, and what it says of a wrong word."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest

from norton_det import criteria
from norton_det.commands import main as dispatcher
from norton_det.commands.main import COMMANDS, call, main, scripts_for_commands
from norton_det.utils import options as choices
from norton_det.utils.errors import InputError
from tests import REPOSITORY

PACKAGE = REPOSITORY / "norton_det"


def help_of(name: str, capsys: pytest.CaptureFixture, as_script: bool = False) -> str:
    with pytest.raises(SystemExit) as ended:
        if as_script:
            call(name, ["--help"], COMMANDS[name].script, as_script=True)
        else:
            main([*name.split(), "--help"])
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_commands_as_they_are_called(name, capsys):
    own = help_of(name, capsys)
    assert own.startswith(f"usage: norton-det {name} ") and "tools/" not in own and ".py" not in own
    assert re.search(rf"(norton-det|-m norton_det) {name}\s", own.split("examples:")[1])
    if script := COMMANDS[name].script:
        own = help_of(name, capsys, as_script=True)
        assert own.startswith(f"usage: {script} ") and "norton-det" not in own
        assert script in own.split("examples:")[1]
        assert f'tool("{name}")' in (REPOSITORY / script).read_text()


def test_every_command_has_its_modules():
    stems = {file.stem for file in (PACKAGE / "commands" / "options").glob("[a-z]*.py")}
    assert stems == {command.module for command in COMMANDS.values()}
    assert stems | {"main", "parser"} == {file.stem for file in (PACKAGE / "commands").glob("[a-z]*.py")}
    scripts = {command.script for command in COMMANDS.values()} - {None}
    thin = {path for path in REPOSITORY.glob("*/*.py") if "import tool\n" in path.read_text()}
    assert {str(path.relative_to(REPOSITORY)) for path in thin} == scripts


def test_help_of_a_command(capsys):
    """``help COMMAND`` is ``COMMAND --help``."""
    with pytest.raises(SystemExit) as ended:
        main(["help", "prepare", "coco"])
    assert not ended.value.code
    assert capsys.readouterr().out == help_of("prepare coco", capsys)
    assert main(["help", "prepare"]) == 0 and "  prepare coco " in capsys.readouterr().out
    with pytest.raises(InputError, match=r"got 'compres'; did you mean compress\?"):
        main(["help", "compres"])


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_overview(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert (f"  {name} " in out and command.text in out) == (" " not in name)
    assert "  prepare " in out
    assert all(len(line) < 100 for line in out.splitlines())


def test_a_group(capsys):
    assert main(["prepare", "--help"]) == 0
    assert "  prepare coco " in capsys.readouterr().out
    assert main(["prepare"]) == 2


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["compres"], r"expected a command of compress, .*, got 'compres'; did you mean compress\?"),
        (["evaluate_detector"], r"did you mean evaluate-detector\?"),
        (["xyzzy"], "got 'xyzzy'; see norton-det --help"),
        (["prepare", "vok"], r"prepare: expected a command of coco, .*, got 'vok'; did you mean voc\?"),
        (["prepare coco"], "got 'prepare coco'"),
    ],
)
def test_an_unknown_command_is_one_line(words, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        main(words)
    assert "\n" not in str(caught.value)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"norton_det \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_scripts_for_commands():
    text = "torchrun -m norton_det train; norton-det evaluate-detector; norton-det prepare coco; norton_det.zoo"
    assert scripts_for_commands(text) == (
        "torchrun tools/train_net.py; tools/evaluate_detector.py; python datasets/prepare_coco.py; norton_det.zoo"
    )


def process(*words: object, path: str = "") -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_help_and_wrong_options_need_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit(70)")
    for words in (
        ["--help"],
        ["train", "--help"],
        ["prepare", "generated", "--help"],
        ["benchmark", "--no-such-option"],
    ):
        done = process("-m", "norton_det", *words, path=str(tmp_path))
        assert done.returncode == (2 if words[-1] == "--no-such-option" else 0), done.stderr
    assert process("-m", "norton_det", "evaluate", "--weights", "x", "--data", "y", path=str(tmp_path)).returncode == 70


@pytest.mark.parametrize(
    ("module", "words", "pattern"),
    [
        ("detectron2", ["train", "--config", "x.yaml"], "expected detectron2 to be installed, found none; PyPI has no"),
        ("detectron2", ["compare", "--config", "x.yaml"], "expected detectron2 to be installed"),
        (
            "pytorch_grad_cam",
            ["grad-cam", str(REPOSITORY / "docs/images/page.jpg"), "--weights", "none.pth"],
            r"expected pytorch-grad-cam, found none .*pip install --no-deps grad-cam",
        ),
        ("scipy", ["benchmark-compression"], r"expected scipy to be installed, .*pip install scipy"),
    ],
)
def test_a_missing_package_is_one_line(tmp_path, module, words, pattern):
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('no', name='{module}')")
    done = process("-m", "norton_det", *words, path=str(tmp_path))
    assert done.returncode == 2 and re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    assert re.search(pattern, done.stderr)


def test_plots_of_results_need_no_detectron2(tmp_path):
    (tmp_path / "detectron2.py").write_text("raise ModuleNotFoundError('no', name='detectron2')")
    results = {"bbox": {"AP": 1.0}, "detector": {"name": "a", "engine": "b", "precision": "f32", "macs": 1, "ms": 1}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    words = ["-m", "norton_det", "visualize", "--plot", tmp_path, "--output", tmp_path / "plots"]
    done = process(*words, path=str(tmp_path))
    assert done.returncode == 0 and (tmp_path / "plots" / "bbox_macs.png").exists(), done.stderr


def test_a_fault_of_the_set_up_keeps_its_traceback(monkeypatch):
    def broken(_: object) -> None:
        raise ModuleNotFoundError("no", name="torch")

    monkeypatch.setattr(import_module("norton_det.commands.evaluate"), "main", broken)
    with pytest.raises(ModuleNotFoundError):
        main(["evaluate", "--weights", "x", "--data", "y"])


def test_what_can_be_chosen_is_what_there_is():
    from norton_det import tv
    from norton_det.deploy import benchmark

    assert choices.CRITERIA == tuple(criteria())
    assert {*choices.TORCH_FORMS, *choices.FILE_FORMS} == set(choices.FORMS) and set(benchmark.available_forms("cpu"))
    assert set(benchmark.available_forms("cpu")) <= set(choices.FORMS)
    for kind in choices.DETECTORS:
        assert hasattr(tv, f"{kind}rcnn_norton_resnet50_fpn")
    assert dispatcher.GROUPS.keys() == {name.partition(" ")[0] for name in COMMANDS if " " in name}
