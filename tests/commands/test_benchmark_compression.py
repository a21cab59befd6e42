"""tools/benchmark_compression.py on a tiny sample: its figures hold together, and our error is no higher."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


def run_tool(repository: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "tools" / "benchmark_compression.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def weights(tmp_path: Path, generator: torch.Generator) -> Path:
    """Three layers under torchvision's names, one filter of zeros, beside tensors that do not count."""
    state = {f"layer1.{block}.conv2.weight": torch.randn(12, 6, 3, 3, generator=generator) for block in range(3)}
    state["layer1.0.conv2.weight"][3] = 0
    state |= {"conv1.weight": torch.ones(4, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(4, 4, 1, 1)}
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.half() for name, tensor in state.items()}, str(path))
    return path


def test_figures_hold_together(repository, weights, tmp_path):
    out = tmp_path / "figures.json"
    options = ["--filters", "2", "--pairs", "4", "--rounds", "1", "--threads", "1", "--layers", "2", "--json", str(out)]
    done = run_tool(repository, "--weights", str(weights), "--rank", "2", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert "1 threads, float64" in report["environment"] and report["rank"] == 2
    assert [row["layer"] for row in report["layers"]] == ["layer1.0.conv2", "layer1.1.conv2"]
    for row in report["layers"]:
        assert (row["filters"], row["inputs"], row["pairs"]) == (12, 6, 66)
        assert (row["sampled_filters"], row["sampled_pairs"]) == (2, 4)
        assert 0 < row["nmse"] <= row["tensorly_nmse"] + 1e-6 < 1
        assert row["angle_difference"] < 1e-6
    loops = report["loop_seconds"]
    assert loops["cp"] == pytest.approx(sum(row["tensorly_seconds"] for row in report["layers"]))
    assert loops["total"] == pytest.approx(loops["cp"] + loops["pabs"])
    assert report["speedup"] == pytest.approx(loops["total"] / report["seconds"]["total"])
    assert "speed-up" in done.stdout and "no layer" in done.stdout


def test_bad_input_is_one_line_and_status_2(repository, tmp_path):
    empty = tmp_path / "other.safetensors"
    save_file({"x": torch.ones(1)}, str(empty))
    done = run_tool(repository, "--weights", str(empty))
    assert (done.returncode, done.stdout) == (2, "")
    told = "expected ResNet-18, -34, -50, -101 or -152 weights, got unknown names (first: x); use one of these"
    assert done.stderr == f"error: {empty}: {told}\n"
