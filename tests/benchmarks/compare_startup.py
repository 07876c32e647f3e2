#!/usr/bin/env python3
"""From the command to the first finished step: `longspan launch --ranks 1` against pytorch_training.py, the tiny model of
configs/tiny.ini in both. Alternating runs, medians."""

import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/benchmarks"))
import compare_pytorch  # noqa: E402


def longspan_seconds(longspan, folder, dataset, number):
    directory = folder / f"run{number}"
    begin = time.time()
    compare_pytorch.run([longspan, "launch", "--ranks", "1", "--config", ROOT / "configs/tiny.ini", "--data.path", dataset,
                         "--run.directory", directory, "--train.steps", "1", "--train.validate-every", "0",
                         "--checkpoint.every", "0"])  # fmt: skip
    # The line of step 1 is flushed when the step has finished; saving and leaving come after it.
    return (directory / "metrics.jsonl").stat().st_mtime - begin


def pytorch_seconds(request):
    begin = time.time()
    process = subprocess.Popen([sys.executable, ROOT / "tests/benchmarks/pytorch_training.py"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    process.stdin.write(json.dumps(request))
    process.stdin.close()
    for line in process.stdout:
        if line.startswith("first step"):
            seconds = time.time() - begin
            process.stdout.read()
            process.wait()
            return seconds
    sys.exit("PyTorch did not come to its first step")


def main():
    longspan = ROOT / "build/longspan"
    settings = compare_pytorch.read_settings(ROOT / "configs/tiny.ini", {})
    request = compare_pytorch.resolve(settings) | {
        "threads": 2, "steps": 1, "processes": 1, "variant": "eager", "announce_first_step": True, "measure_matmul": False,
    }  # fmt: skip
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(prefix="longspan-startup-") as name:
        folder = pathlib.Path(name)
        random.seed(1)
        (folder / "text.bin").write_bytes(random.randbytes(300_000))
        dataset = folder / "d.h5"
        compare_pytorch.run([longspan, "prepare", "--kind", "text", "--output", dataset, folder / "text.bin"])
        for number in range(5):
            ours.append(longspan_seconds(longspan, folder, dataset, number))
            theirs.append(pytorch_seconds(request))
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"Longspan {a:.3f} s, PyTorch eager {b:.3f} s: {a / b:.2f} x (medians of {len(ours)} alternating runs)")


if __name__ == "__main__":
    main()
