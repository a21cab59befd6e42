"""What trainings keep beside their weights does not keep the weights from being read, and is not made."""

import sys
import types
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from norton_det.checkpoint.opened import open_weights
from norton_det.utils.errors import InputError

STATE = {"layer1.0.conv1.weight": torch.ones(2)}


def class_of(monkeypatch, module: str, name: str, *bases: type) -> type:
    """A class that pickles under that name of a module which is not installed."""
    for index in range(len(parts := module.split("."))):
        parent = ".".join(parts[: index + 1])
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    made = type(name, bases or (object,), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("module", "name", "kind"),
    [
        ("pytorch_lightning.utilities.parsing", "AttributeDict", dict),
        ("mmengine.config.config", "ConfigDict", dict),
        ("yacs.config", "CfgNode", dict),
        ("mmengine.logging.history_buffer", "HistoryBuffer", object),
        ("omegaconf.dictconfig", "DictConfig", object),
    ],
)
def test_objects_of_libraries_that_are_not_here(monkeypatch, tmp_path, module, name, kind, zipped):
    made = class_of(monkeypatch, module, name, kind)
    beside = made({"lr": 1, "inner": made(x=2)}) if kind is dict else made()
    beside.history = np.ones(3)
    torch.save({"model": STATE, "hyper_parameters": beside}, tmp_path / "w.ckpt", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    opened = open_weights(tmp_path / "w.ckpt")
    assert list(opened.state) == list(STATE)
    if kind is dict:
        assert dict(opened.fields["hyper_parameters"]) == {"lr": 1, "inner": {"x": 2}}


def test_paths_times_and_dicts_with_defaults(tmp_path):
    beside = {
        "path": Path("/data"),
        "took": timedelta(1),
        "counts": defaultdict(list, {"a": [1]}),
        "ns": types.SimpleNamespace(a=1),
    }
    torch.save({"model": STATE, **beside}, tmp_path / "w.pth")
    opened = open_weights(tmp_path / "w.pth")
    assert list(opened.state) == list(STATE) and opened.fields["counts"] == {"a": [1]}
    assert not isinstance(opened.fields["path"], Path)


def test_names_that_are_not_listed_are_refused(monkeypatch, tmp_path):
    made = class_of(monkeypatch, "mmengine.config.config", "Other")
    torch.save({"model": STATE, "x": made()}, tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=r"w\.pth: expected tensors only, got a file that asks for mmengine\.config\.con"
    ):
        open_weights(tmp_path / "w.pth")
