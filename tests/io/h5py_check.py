#!/usr/bin/env python3
"""Opens a checkpoint as any HDF5 user would: h5py on index.h5, whole tensors by name through the virtual datasets.

    h5py_check.py CHECKPOINT            one line per tensor: name, shape, type, norm
    h5py_check.py CHECKPOINT --json     {"step": ..., "tensors": {name: {"shape", "dtype", "norm"}}, "problems": [...]}

Fails if the index is no checkpoint's, a tensor of its manifest is not there as a virtual dataset, has values that are
not finite (a missing shard turns into the fill value NaN), or differs from the shards put together by their offsets.
Needs h5py: support/python_environment.sh.
"""

import argparse
import json
import pathlib
import sys

import h5py
import numpy


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
    """The same tensors, put together from the shards by their own offsets, with how often each element was written."""
    whole = {}
    for path in sorted(folder.glob("shard-*.h5")):
        with h5py.File(path, "r") as shard:
            for name, dataset in blocks_of(shard).items():
                shape = tuple(int(n) for n in dataset.attrs["global_shape"])
                offset = tuple(int(n) for n in dataset.attrs["global_offset"])
                values, times = whole.setdefault(name, (numpy.zeros(shape, dataset.dtype), numpy.zeros(shape, numpy.int8)))
                block = tuple(slice(o, o + n) for o, n in zip(offset, dataset.shape))
                values[block] = dataset[...]
                times[block] += 1
    return whole


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


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkpoint", type=pathlib.Path, help="the folder of one step")
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
        shards = from_shards(arguments.checkpoint)
        tensors = {text(name): index[text(name)] for name in index["manifest/tensor_name"][...]}
        problems += [f"{name}: is in the shards, not in the index" for name in shards.keys() - tensors.keys()]
        for name, dataset in tensors.items():
            problems += [f"{name}: {problem}" for problem in problems_of(name, dataset, shards)]
            norm = float(numpy.linalg.norm(dataset[...].astype(numpy.float64)))
            report[name] = {"shape": list(dataset.shape), "dtype": str(dataset.dtype), "norm": norm}
    if not any(name.startswith("model/") for name in report):
        problems.append("the index has no tensor of the model")

    if arguments.json:
        print(json.dumps({"step": step, "tensors": report, "problems": problems}))
    else:
        for name, entry in report.items():
            print(f"{name:60} {str(entry['shape']):18} {entry['dtype']:8} norm {entry['norm']:.6g}")
        print(f"step {step}: {len(report)} tensors, {len(problems)} problems")
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
