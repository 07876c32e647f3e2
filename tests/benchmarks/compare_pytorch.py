#!/usr/bin/env python3
"""Longspan against PyTorch on this machine: the same model, batch, precision (fp32, or --set model.precision=bf16, for
PyTorch autocast) and number of threads.

The first round runs `longspan launch` and then each variant of PyTorch (eager and torch.compile, each with every memory
allocator that is installed), one after the other, so that a slow minute of the machine hits all of them; the further
rounds run Longspan and PyTorch's fastest variant. A step is forward, backward, clipping and AdamW on random tokens. The
first step of every run is left out; the table has the median of all others. With --ranks 2 both programs share the batch
between two processes (PyTorch: DistributedDataParallel over Gloo), each with its part of the threads.

    compare_pytorch.py --config configs/gpt2-124m.ini
    compare_pytorch.py --config tests/benchmarks/long.ini --set data.sequence-length=4096 --steps 4 --json
"""

import argparse
import json
import os
import pathlib
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEFAULTS = {  # of model/config.hpp, io/config.hpp, launcher/run_config.hpp
    "model.layers": "4", "model.width": "256", "model.heads": "4", "model.kv-heads": "0", "model.head-size": "0",
    "model.mlp": "swiglu", "model.mlp-width": "0", "model.norm": "rmsnorm", "model.norm-epsilon": "1e-5",
    "model.position": "rope", "model.rope-theta": "10000", "model.bias": "false", "model.tie-embeddings": "true",
    "model.vocabulary": "0", "model.precision": "fp32", "data.sequence-length": "1024", "train.micro-batch": "1", "train.global-batch": "0",
}  # fmt: skip
UNSUPPORTED = {"attention.mask": "causal", "memory.keep": "all"}


def read_settings(path, overrides):
    """The INI file and the overrides as {"section.key": "value"}."""
    settings, section = {}, ""
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("["):
            section = line.strip("[]") + "."
        elif line:
            key, _, value = line.partition("=")
            settings[section + key.strip()] = value.strip()
    settings.update(overrides)
    return settings


def resolve(settings):
    """The same work-it-out rules as Longspan's: what both programs are told."""
    for key, value in UNSUPPORTED.items():
        if settings.get(key, value) != value:
            print(f"note: {key}={settings[key]} holds for Longspan alone, PyTorch runs with {value}", file=sys.stderr)
    s = DEFAULTS | settings
    integer = lambda key: int(s[key])
    true = lambda key: s[key].lower() in ("true", "1", "yes", "on")
    m = {
        "layers": integer("model.layers"), "width": integer("model.width"), "heads": integer("model.heads"),
        "kv_heads": integer("model.kv-heads") or integer("model.heads"),
        "head_size": integer("model.head-size") or integer("model.width") // integer("model.heads"),
        "mlp": s["model.mlp"], "mlp_width": integer("model.mlp-width"), "norm": s["model.norm"],
        "norm_epsilon": float(s["model.norm-epsilon"]), "position": s["model.position"],
        "rope_theta": float(s["model.rope-theta"]), "bias": true("model.bias"),
        "tie_embeddings": true("model.tie-embeddings"), "vocabulary": integer("model.vocabulary"),
        "window": int(s.get("attention.window", "0")), "precision": s["model.precision"],
    }  # fmt: skip
    if m["window"] and integer("data.sequence-length") % m["window"]:
        sys.exit("data.sequence-length must be a multiple of attention.window for PyTorch's side")
    if m["position"] not in ("rope", "learned"):
        sys.exit(f"model.position={m['position']} has no PyTorch counterpart here: use rope or learned")
    if m["mlp_width"] == 0:
        m["mlp_width"] = 4 * m["width"] if m["mlp"] == "gelu" else -(-8 * m["width"] // 3 // 64) * 64
    vocabulary = m["vocabulary"] or 256  # of the ids; the model's own is padded when the file leaves it open
    m["vocabulary"] = m["vocabulary"] or -(-vocabulary // 64) * 64
    micro = integer("train.micro-batch")
    global_batch = integer("train.global-batch") or micro
    if global_batch % micro:
        sys.exit(f"train.global-batch={global_batch} is no multiple of train.micro-batch={micro}")
    return {
        "model": m, "sequence_length": integer("data.sequence-length"), "micro_batch": micro,
        "accumulation": global_batch // micro, "vocabulary": vocabulary,
    }  # fmt: skip


def model_flops(request):
    """Of one step: 6 per weight of a matrix and token, 12 per visible query-key pair and channel; as Longspan counts."""
    m, S = request["model"], request["sequence_length"]
    sequences = request["micro_batch"] * request["accumulation"]
    query, kv = m["heads"] * m["head_size"], m["kv_heads"] * m["head_size"]
    block = m["width"] * (2 * query + 2 * kv) + (2 if m["mlp"] == "gelu" else 3) * m["width"] * m["mlp_width"]
    weights = m["layers"] * block + m["vocabulary"] * m["width"]
    W = min(m["window"] or S, S)
    return sequences * (6 * weights * S + 12 * (W * (W + 1) // 2 + (S - W) * W) * query * m["layers"])


def run(command, text=None, environment=None):
    """Runs a command to its end; returns stdout and the peak resident bytes of it or its largest child."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as given:
        given.write((text or "").encode())
        given.seek(0)
        process = subprocess.Popen(command, stdin=given, stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if process.returncode != 0:
            tail = "\n".join((out.read() + err.read()).decode(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{' '.join(map(str, command[:4]))} ... ended with status {process.returncode}:\n{tail}")
        return out.read().decode(), usage.ru_maxrss * 1024


def make_dataset(longspan, folder, request, steps):
    vocabulary = request["vocabulary"]
    code, dtype = ("B", "u8") if vocabulary <= 1 << 8 else ("H", "u16") if vocabulary <= 1 << 16 else ("I", "u32")
    import array  # a few megabytes: no need of numpy here

    generator = random.Random(1)
    sequences = request["processes"] * request["micro_batch"] * request["accumulation"]
    tokens = (steps + 2) * sequences * request["sequence_length"] + 1
    ids = array.array(code, (generator.randrange(vocabulary) for _ in range(tokens)))
    if sys.byteorder == "big":
        ids.byteswap()
    raw, dataset = folder / "ids.bin", folder / "ids.h5"
    raw.write_bytes(ids.tobytes())
    run([longspan, "prepare", "--kind", "tokens", "--dtype", dtype, "--vocabulary", str(vocabulary),
         "--validation", "0", "--output", dataset, raw])  # fmt: skip
    return dataset


def run_longspan(longspan, folder, dataset, config, overrides, threads, steps, round_number, ranks):
    directory = folder / f"run{round_number}"
    command = [longspan, "launch", "--ranks", str(ranks), "--config", config]
    for key, value in overrides.items():
        command += [f"--{key}", value]
    command += ["--data.path", dataset, "--run.directory", directory, "--run.threads", str(max(1, threads // ranks)),
                "--train.steps",
                str(steps), "--train.validate-every", "0", "--checkpoint.every", "0", "--checkpoint.resume", "never",
                "--model.dropout", "0"]  # fmt: skip
    _, memory = run(command)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {
        "step_seconds": [line["step_seconds"] for line in lines],
        "losses": [line["loss"] for line in lines],
        "peak_memory_bytes": max(memory, max(line["peak_memory_bytes"] for line in lines)),
    }


def installed_allocators():
    """{name: library}; the C library's own is "malloc"."""
    found = {"malloc": None}
    for name, pattern in (("jemalloc", "libjemalloc.so*"), ("tcmalloc", "libtcmalloc*.so*")):
        for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/lib"):
            for library in sorted(pathlib.Path(folder).glob(pattern)):
                found.setdefault(name, library)
    return found


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_pytorch(request, allocator):
    environment = os.environ | ({"LD_PRELOAD": str(allocator)} if allocator else {})
    text, memory = run([sys.executable, ROOT / "tests/benchmarks/pytorch_training.py"],
                       json.dumps(request | {"port": free_port()}), environment)  # fmt: skip
    return json.loads(text.splitlines()[-1]) | {"peak_memory_bytes": memory}


def machine():
    name = platform.processor() or platform.machine()
    try:
        info = pathlib.Path("/proc/cpuinfo").read_text()
        name = next(line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {memory / 2**30:.0f} GiB memory"


def longspan_version(longspan):
    result = subprocess.run([longspan, "--version"], capture_output=True, text=True)
    return result.stdout.splitlines()[0].strip() if result.returncode == 0 and result.stdout else "Longspan"


def summarize(runs, request):
    steps = [seconds for one in runs for seconds in one["step_seconds"][1:]]
    median = statistics.median(steps)
    tokens = request["processes"] * request["micro_batch"] * request["accumulation"] * request["sequence_length"]
    return {
        "steps": len(steps),
        "step_seconds_median": median,
        "step_seconds_min": min(steps),
        "step_seconds_max": max(steps),
        "tokens_per_second": tokens / median,
        "model_gflops": 1e-9 * request["processes"] * model_flops(request) / median,
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in runs),
        "first_loss": runs[0]["losses"][0],
    }


def print_table(report):
    r = report["request"]
    m = r["model"]
    print(f"machine: {report['machine']}; load before the first run {report['load_before']:.2f}")
    print(f"programs: {', '.join(report['versions'])}; {r['processes']} processes, {report['threads']} threads in all, {m['precision']}")
    print(f"model: {report['config']}: {m['layers']} layers of width {m['width']}, {m['heads']} heads, vocabulary"
          f" {m['vocabulary']}; {r['processes']} x {r['micro_batch']} x {r['accumulation']} sequences of {r['sequence_length']} tokens a step"
          f"{', window ' + str(m['window']) if m['window'] else ''}")  # fmt: skip
    if report["matmul_gflops"]:
        print(f"fp32 matrix product of PyTorch (MKL): {report['matmul_gflops']:.0f} GFLOP/s")
    print(f"\n{'':28}{'tokens/s':>10}{'s/step':>9}{'min':>9}{'max':>9}{'steps':>7}{'GFLOP/s':>9}{'of product':>12}{'peak memory':>13}")
    for name, x in report["results"].items():
        share = f"{100 * x['model_gflops'] / report['matmul_gflops']:.0f} %" if report["matmul_gflops"] else "-"
        print(f"{name:28}{x['tokens_per_second']:>10.1f}{x['step_seconds_median']:>9.3f}{x['step_seconds_min']:>9.3f}"
              f"{x['step_seconds_max']:>9.3f}{x['steps']:>7}{x['model_gflops']:>9.0f}{share:>12}"
              f"{x['peak_memory_bytes'] / 2**30:>9.2f} GiB")  # fmt: skip
    for name, reason in report["failed"].items():
        print(f"{name:28}did not run: {reason.splitlines()[-1]}")
    if report["ratio"]:
        print(f"\nLongspan / the fastest PyTorch: {report['ratio']:.2f} x the tokens per second,"
              f" {report['memory_ratio']:.2f} x the peak memory of its largest process")  # fmt: skip


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=pathlib.Path, help="a Longspan configuration")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override, for both programs")
    parser.add_argument("--steps", type=int, default=5, help="steps of a run, the first one is not counted (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program (default 3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the batch (default 1)")
    parser.add_argument("--variants", default="eager,compile", help="of PyTorch (default eager,compile)")
    parser.add_argument("--allocators", help="of PyTorch (default: every one that is installed, of malloc,jemalloc,tcmalloc)")
    parser.add_argument("--longspan", type=pathlib.Path, default=ROOT / "build/longspan", help="default build/longspan")
    parser.add_argument("--only", choices=("longspan", "pytorch"), help="leave the other one out")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps {arguments.steps}: at least 2, the first is not counted")
    if any("=" not in item for item in arguments.set):
        parser.error("--set wants SECTION.KEY=VALUE")
    if arguments.only != "pytorch" and not os.access(arguments.longspan, os.X_OK):
        parser.error(f"{arguments.longspan} is not there: build it, name it with --longspan, or say --only pytorch")
    return arguments


def main():
    arguments = parse_arguments()
    overrides = dict(item.split("=", 1) for item in arguments.set)
    request = resolve(read_settings(arguments.config, overrides))
    request |= {"threads": arguments.threads, "steps": arguments.steps, "processes": arguments.ranks}
    if arguments.ranks > 1:
        overrides["train.global-batch"] = str(arguments.ranks * request["micro_batch"] * request["accumulation"])
    variants = [] if arguments.only == "longspan" else arguments.variants.split(",")
    if unknown := set(variants) - {"eager", "compile"}:
        sys.exit(f"--variants: {', '.join(sorted(unknown))} is not known, valid are eager and compile")
    allocators = installed_allocators()
    wanted = arguments.allocators.split(",") if arguments.allocators else list(allocators)
    if missing := set(wanted) - set(allocators):
        sys.exit(f"--allocators: {', '.join(sorted(missing))} is not here, installed are {', '.join(allocators)}")
    load = os.getloadavg()[0]

    runs, failed, versions = {}, {}, []
    if arguments.only != "pytorch":
        versions.append(longspan_version(arguments.longspan))
    with tempfile.TemporaryDirectory(prefix="longspan-compare-") as name:
        folder = pathlib.Path(name)
        if arguments.only != "pytorch":
            dataset = make_dataset(arguments.longspan, folder, request, arguments.steps)
        candidates = {f"PyTorch {variant}, {name}": (variant, library)
                      for variant in variants for name, library in allocators.items() if name in wanted}  # fmt: skip
        for number in range(arguments.rounds):
            todo = [("Longspan", None)] if arguments.only != "pytorch" else []
            todo += list(candidates.items())
            for label, variant in todo:
                if label in failed:
                    continue
                try:
                    if variant is None:
                        one = run_longspan(arguments.longspan, folder, dataset, arguments.config, overrides,
                                           arguments.threads, arguments.steps, number, arguments.ranks)  # fmt: skip
                    else:
                        one = run_pytorch(request | {"variant": variant[0]}, variant[1])
                except RuntimeError as error:
                    failed[label] = str(error)
                    print(f"{label}: {error}", file=sys.stderr)
                    continue
                runs.setdefault(label, []).append(one)
                print(f"round {number + 1} of {arguments.rounds}: {label}: "
                      f"{statistics.median(one['step_seconds'][1:]):.3f} s/step", file=sys.stderr)  # fmt: skip
            ran = [label for label in candidates if label in runs]
            if ran:
                fastest = min(ran, key=lambda label: statistics.median(runs[label][0]["step_seconds"][1:]))
                candidates = {fastest: candidates[fastest]}

    pytorch = [one for label, many in runs.items() if label.startswith("PyTorch") for one in many]
    versions += sorted({one["version"] for one in pytorch})
    results = {label: summarize(many, request) for label, many in runs.items()}
    best = max((x for label, x in results.items() if label.startswith("PyTorch")),
               key=lambda x: x["tokens_per_second"], default=None)  # fmt: skip
    ours = results.get("Longspan")
    report = {
        "machine": machine(),
        "load_before": load,
        "versions": versions,
        "config": arguments.config.name,
        "threads": arguments.threads,
        "request": request,
        "matmul_gflops": max((one["matmul_gflops"] for one in pytorch), default=None),
        "results": results,
        "failed": failed,
        "ratio": ours["tokens_per_second"] / best["tokens_per_second"] if best and ours else None,
        "memory_ratio": ours["peak_memory_bytes"] / best["peak_memory_bytes"] if best and ours else None,
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        print_table(report)
    sys.exit(1 if any("compile" not in label for label in failed) else 0)


if __name__ == "__main__":
    main()
