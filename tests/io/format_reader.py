#!/usr/bin/env python3
"""Reads datasets and checkpoints by io/FORMAT.md alone: nothing here comes from the program's sources.

    format_reader.py dataset DATA.h5      {"tokens", "documents", "vocabulary", "train", "sum", "first", "hashes", ...}
    format_reader.py checkpoint FOLDER    {"step", "tensors": {name: {"shape", "dtype", "norm", "mean"}}, "hashes", ...}

Prints one JSON object; an assertion that fails is a file that is not as FORMAT.md says, or a FORMAT.md that is wrong.
"hashes" says whether XXH3 hashes were checked: that takes the Python module xxhash, which the tests do not install.
Needs h5py and numpy (support/python_environment.sh).
"""

import json
import math
import pathlib
import re
import sys

import h5py
import numpy

try:
    import xxhash
except ImportError:
    xxhash = None

BLOCK = 16 << 20


def text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def u64(number):
    return int(number).to_bytes(8, "little")


def read_dataset(path):
    with h5py.File(path, "r") as file:
        assert text(file.attrs["format"]) == "longspan-dataset" and file.attrs["format_version"] == 1
        assert text(file.attrs["kind"]) == "tokens"
        stored, uuid = file["tokens"], text(file.attrs["dataset_uuid"])
        offsets, splits = file["doc_offsets"][:], file["splits"][:]
        hashes, tokenizer = file["block_xxh3"][:], file["tokenizer"][:].tobytes()
        vocabulary = int(stored.attrs["vocab_size"])
        assert stored.ndim == 1 and stored.dtype in (numpy.uint8, numpy.uint16, numpy.uint32) and stored.chunks is None
        # Without HDF5: the ids are one run of bytes.
        tokens = numpy.memmap(path, stored.dtype, "r", stored.id.get_offset(), stored.shape)
    assert offsets[0] == 0 and offsets[-1] == tokens.size and (numpy.diff(offsets.astype("i8")) >= 0).all()
    documents = offsets.size - 1
    assert splits.shape == (2, 2) and splits[0, 0] == 0 and splits[0, 1] == splits[1, 0] and splits[1, 1] == documents
    assert tokens.max() < vocabulary and hashes.size == math.ceil(tokens.nbytes / BLOCK)
    if xxhash:
        raw = tokens.tobytes()
        assert [xxhash.xxh3_64_intdigest(raw[i : i + BLOCK]) for i in range(0, len(raw), BLOCK)] == hashes.tolist()
        if uuid[14] == "8":
            name = f"u{8 * tokens.itemsize}".encode()
            parts = [u64(len(name)), name, u64(vocabulary), u64(len(tokenizer)), tokenizer, u64(offsets.size),
                     offsets.tobytes(), u64(splits[0, 1]), u64(hashes.size), hashes.tobytes()]
            digest = bytearray(xxhash.xxh3_128_digest(b"".join(parts)))
            digest[6], digest[8] = digest[6] & 0x0F | 0x80, digest[8] & 0x3F | 0x80
            assert digest.hex() == uuid.replace("-", "")
    return {"tokens": int(tokens.size), "documents": int(documents), "vocabulary": vocabulary,
            "train": int(splits[0, 1]), "uuid": uuid, "tokenizer": json.loads(tokenizer),
            "sum": int(tokens.sum(dtype=numpy.int64)), "first": tokens[:20].tolist(), "hashes": xxhash is not None}


TYPES = {"f32": "<f4", "f64": "<f8", "u8": "u1", "u16": "<u2", "u32": "<u4", "u64": "<u8", "i32": "<i4", "i64": "<i8",
         "bf16": "<u2"}


def manifest_hash(uuid, step, manifest, texts, losses):
    h = xxhash.xxh3_64()
    put = lambda b: (h.update(u64(len(b))), h.update(b))
    put(uuid.encode())
    h.update(u64(step))
    for column in COLUMNS:
        values = manifest[column]
        if isinstance(values, list):
            h.update(u64(len(values)))
            for value in values:
                put(value.encode())
        else:
            h.update(u64(values.size))
            h.update(values.tobytes())
    for value in texts:
        put(value)
    h.update(u64(losses.size))
    h.update(losses.astype("<f4").tobytes())
    return h.intdigest()


COLUMNS = ["shard_file", "shard_bytes", "tensor_name", "tensor_dtype", "tensor_dim_count", "tensor_dims", "block_tensor",
           "block_shard", "block_file_offset", "block_xxh3", "block_offset_dims", "block_shape_dims"]


def read_checkpoint(folder):
    folder = pathlib.Path(folder)
    with h5py.File(folder / "index.h5", "r") as index:
        attributes = {name: text(value) if isinstance(value, (bytes, str)) else int(value)
                      for name, value in index.attrs.items()}
        assert attributes["format"] == "longspan-checkpoint" and attributes["format_version"] == 1
        manifest = {}
        for name in COLUMNS:
            values = index["manifest"][name][:]
            manifest[name] = [text(v) for v in values] if values.dtype.kind in "SO" else values
        texts = [index["config"][:].tobytes(), index["tokenizer"][:].tobytes()]
        losses = index["loss_history"][:]
        stored = int(index["manifest/self_xxh3"][0])
    if xxhash:
        assert manifest_hash(attributes["checkpoint_uuid"], attributes["step"], manifest, texts, losses) == stored
    files = []
    for rank, (name, size) in enumerate(zip(manifest["shard_file"], manifest["shard_bytes"])):
        assert re.fullmatch(r"[^/.][^/]*", name) and (folder / name).stat().st_size == size
        with h5py.File(folder / name, "r") as shard:
            assert text(shard.attrs["format"]) == "longspan-checkpoint-shard"
            assert text(shard.attrs["checkpoint_uuid"]) == attributes["checkpoint_uuid"]
            assert shard.attrs["rank"] == rank and shard.attrs["world_size"] == attributes["world_size"]
        files.append(open(folder / name, "rb"))
    tensors, at = [], 0
    for name, dtype, count in zip(manifest["tensor_name"], manifest["tensor_dtype"], manifest["tensor_dim_count"]):
        shape = manifest["tensor_dims"][at : at + int(count)].astype("i8")
        at += int(count)
        tensors.append({"name": name, "dtype": dtype, "values": numpy.zeros(shape, TYPES[dtype]),
                        "times": numpy.zeros(shape, "u1"), "blocks": 0})
    assert at == manifest["tensor_dims"].size
    at = 0
    for number, shard, offset, expected in zip(*(manifest["block_" + c] for c in ("tensor", "shard", "file_offset", "xxh3"))):
        tensor = tensors[int(number)]
        dims = tensor["values"].ndim
        start, shape = (manifest[f"block_{c}_dims"][at : at + dims].astype("i8") for c in ("offset", "shape"))
        at += dims
        file = files[int(shard)]
        file.seek(int(offset))
        raw = file.read(int(numpy.prod(shape)) * tensor["values"].itemsize)
        if xxhash:
            assert xxhash.xxh3_64_intdigest(raw) == int(expected), tensor["name"]
        place = tuple(slice(a, a + n) for a, n in zip(start, shape))
        tensor["values"][place] = numpy.frombuffer(raw, tensor["values"].dtype).reshape(shape)
        tensor["times"][place] += 1
        tensor["blocks"] += 1
    out = {}
    for tensor in tensors:
        assert (tensor["times"] == 1).all(), tensor["name"]
        values = tensor["values"]
        if tensor["dtype"] == "bf16":  # the upper half of an f32
            values = (values.astype("u4") << 16).view("f4")
        values = values.astype("f8")
        out[tensor["name"]] = {"shape": list(values.shape), "dtype": tensor["dtype"], "blocks": tensor["blocks"],
                               "norm": float(numpy.sqrt((values**2).sum())), "mean": float(values.mean())}
    return {**{k: v for k, v in attributes.items() if k not in ("program_version", "hdf5_version")}, "tensors": out,
            "loss_history": losses.astype("f8").tolist(), "tokenizer": json.loads(texts[1]),
            "config": texts[0].decode(), "hashes": xxhash is not None}


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("dataset", "checkpoint"):
        sys.exit(__doc__)
    print(json.dumps((read_dataset if sys.argv[1] == "dataset" else read_checkpoint)(sys.argv[2]), indent=1))


if __name__ == "__main__":
    main()
