#!/usr/bin/env python3
"""Opens a checkpoint as any HDF5 user would: h5py on index.h5, whole tensors by name through the virtual datasets.

    h5py_check.py CHECKPOINT            one line per tensor: name, shape, type, norm
    h5py_check.py CHECKPOINT --json     {"step": ..., "tensors": {name: {"shape", "dtype", "norm"}}, "problems": [...],
                                         "pieces": most blocks of one tensor in one shard}
    h5py_check.py CHECKPOINT --longspan PROGRAM    compares with `PROGRAM inspect --tensor 'NAME[SLICE]'` as well

Fails if the index is no checkpoint's, a tensor of its manifest is not there as a virtual dataset, has values that are
not finite (a missing shard turns into the fill value NaN), or differs from the shards put together by their offsets.
Needs h5py: support/python_environment.sh.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

import h5py
import numpy


def tensor_of(name):
    """Further blocks of a tensor in one shard are called NAME@1, NAME@2, ..."""
    return re.sub(r"@\d+$", "", name)


def blocks_of(shard):
    """Name -> dataset of every block of a tensor in a shard."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and "global_shape" in item.attrs:
            found[name] = item

    shard.visititems(visit)
    return found


def text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def from_shards(folder):
    """The same tensors, put together from the shards by their own offsets, with how often each element was written; and
    how many blocks of one tensor a shard has at most."""
    whole, pieces = {}, 0
    for path in sorted(folder.glob("shard-*.h5")):
        with h5py.File(path, "r") as shard, path.open("rb") as raw:
            for name, dataset in blocks_of(shard).items():
                pieces = max(pieces, 1 + int((re.search(r"@(\d+)$", name) or [0, 0])[1]))
                name = tensor_of(name)
                shape = tuple(int(n) for n in dataset.attrs["global_shape"])
                offset = tuple(int(n) for n in dataset.attrs["global_offset"])
                values, times = whole.setdefault(name, (numpy.zeros(shape, dataset.dtype), numpy.zeros(shape, numpy.int8)))
                block = tuple(slice(o, o + n) for o, n in zip(offset, dataset.shape))
                # The bytes as they lie in the file: what a reader without HDF5 sees.
                raw.seek(dataset.id.get_offset())
                bytes_ = raw.read(dataset.size * dataset.id.get_type().get_size())
                if len(bytes_) == dataset.size * dataset.dtype.itemsize:
                    values[block] = numpy.frombuffer(bytes_, dataset.dtype).reshape(dataset.shape)
                else:  # bf16, which numpy shows as f32
                    values[block] = dataset[...]
                times[block] += 1
    return whole, pieces


def problems_of(name, dataset, shards):
    values = dataset[...]
    if not dataset.is_virtual:
        yield "is not a virtual dataset"
    if not numpy.isfinite(values).all():
        yield f"{numpy.count_nonzero(~numpy.isfinite(values))} of {values.size} values are not finite: is a shard missing?"
    if name not in shards:
        yield "is in no shard"
        return
    whole, times = shards[name]
    if whole.shape != values.shape:
        yield f"has shape {values.shape}, in the shards {whole.shape}"
    elif (times != 1).any():
        yield f"{numpy.count_nonzero(times != 1)} elements are not in exactly one shard"
    elif not numpy.array_equal(whole, values):
        yield "differs from what the shards hold"


def slices_of(shape):
    """Some parts of a tensor: a place in the middle, its end, and everything if it is small."""
    middle = [(max(0, n // 2 - 2), min(n, n // 2 + 3)) for n in shape]
    yield ", ".join(f"{a}:{b}" for a, b in middle), tuple(slice(a, b) for a, b in middle)
    yield "-1", (-1,)
    yield "..., -3:", (Ellipsis, slice(-3, None))
    if numpy.prod(shape) <= 5000:
        yield "...", (Ellipsis,)


def problem_with_inspect(program, folder, name, dataset, turn):
    """Empty if `PROGRAM inspect --tensor` prints one part of the tensor as h5py sees it. A process each takes time: the
    tensors take the parts in turns."""
    slices = list(slices_of(dataset.shape))
    text, index = slices[turn % len(slices)]
    command = [program, "inspect", str(folder), "--tensor", f"{name}[{text}]", "--json"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["values"]
    expected = dataset[...][index]
    shown = numpy.array(shown, expected.dtype)
    if shown.shape != expected.shape or not numpy.array_equal(shown, expected):
        return f"[{text}] is not what inspect prints"
    return ""


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkpoint", type=pathlib.Path, help="the folder of one step")
    arguments.add_argument("--longspan", metavar="PROGRAM", help="compare with what its inspect prints")
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = arguments.parse_args()

    problems, report = [], {}
    path = arguments.checkpoint / "index.h5"
    if not path.is_file():
        sys.exit(f"{path} does not exist: name the folder of one step, such as runs/code/checkpoints/latest")
    with h5py.File(path, "r") as index:
        if "manifest/tensor_name" not in index:
            sys.exit(f"{path} is an HDF5 file, but no index of a checkpoint: it has no manifest")
        step = int(index.attrs["step"])
        shards, pieces = from_shards(arguments.checkpoint)
        tensors = {text(name): index[text(name)] for name in index["manifest/tensor_name"][...]}
        problems += [f"{name}: is in the shards, not in the index" for name in shards.keys() - tensors.keys()]
        for name, dataset in tensors.items():
            problems += [f"{name}: {problem}" for problem in problems_of(name, dataset, shards)]
            if arguments.longspan:
                problem = problem_with_inspect(arguments.longspan, arguments.checkpoint, name, dataset, len(report))
                problems += [f"{name}{problem}"] if problem else []
            norm = float(numpy.linalg.norm(dataset[...].astype(numpy.float64)))
            report[name] = {"shape": list(dataset.shape), "dtype": str(dataset.dtype), "norm": norm}
    if not any(name.startswith("model/") for name in report):
        problems.append("the index has no tensor of the model")

    if arguments.json:
        print(json.dumps({"step": step, "tensors": report, "problems": problems, "pieces": pieces}))
    else:
        for name, entry in report.items():
            print(f"{name:60} {str(entry['shape']):18} {entry['dtype']:8} norm {entry['norm']:.6g}")
        print(f"step {step}: {len(report)} tensors, {len(problems)} problems")
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
