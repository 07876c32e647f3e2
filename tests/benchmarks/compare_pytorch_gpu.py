#!/usr/bin/env python3
"""PyTorch's side of the figures that tests/gpu/run.sh measures on one GPU, as fast as PyTorch goes without own kernels.

    compare_pytorch_gpu.py train --config configs/gpu/gpt2-124m.ini [--set SECTION.KEY=VALUE]
    compare_pytorch_gpu.py attention --tokens 32768 --heads 64 --kv-heads 8 --head-size 128
    compare_pytorch_gpu.py memory

train: the model of a Longspan configuration with fp32 weights, autocast to bf16 and the fused AdamW. What stands before and
behind the attention of a block is compiled, so is the loss; attention is whichever of scaled_dot_product_attention's
backends is the fastest for the shape. With memory.keep = attention or block the compiled parts are computed again in the
backward pass and attention is not; beyond 131072 tokens they are taken in pieces. A micro-batch that does not fit is halved.
attention: forward and backward alone, causal, bf16; FLOPs as bench_gpu_kernels counts them, 4 and 10 per pair and channel.
memory: compiled pointwise operations and norms as a share of the copy bandwidth.
One JSON object on stdout. --device cpu and --eager are for trying the script out.
"""

import argparse
import contextlib
import gc
import json
import math
import pathlib
import statistics
import sys
import time
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import compare_pytorch  # noqa: E402
import pytorch_training  # noqa: E402

BACKENDS = {"cuDNN": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}
PIECE = 131072  # tokens between two attentions at a time
LOSS_PIECE = 16384  # tokens whose logits exist at a time


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call, device, least=0.2):
    """Of one call: the median of five rounds, each waited for."""
    call()
    synchronize(device)

    def timed(calls):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        return (time.perf_counter() - begin) / calls

    if device == "cpu":
        return timed(1)
    calls = max(1, min(1000, int(least / 5 / timed(1))))
    return statistics.median(timed(calls) for _ in range(5))


def allowed(name):
    """A context in which attention runs on one backend alone; None: this PyTorch has no such one."""
    backend = getattr(SDPBackend, BACKENDS[name], None)
    return sdpa_kernel(backend) if backend is not None else None


def measure_attention(device, batch, tokens, heads, kv_heads, size):
    """{backend: (forward seconds, backward seconds)} of those that serve the shape."""
    make = lambda h: torch.randn(batch, tokens, h, size, device=device, dtype=torch.bfloat16).transpose(1, 2)
    q, k, v = (make(h).requires_grad_() for h in (heads, kv_heads, kv_heads))
    dout = make(heads)
    results, refusals = {}, {}
    for name in BACKENDS:
        # The scores of all heads must fit, or this one is no candidate.
        if name == "math" and batch * heads * tokens * tokens * 4 > 8e9:
            continue
        context = allowed(name)
        if context is None:
            continue
        try:
            with context:
                forward = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
                out = forward()
                backward = lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
                with torch.no_grad():
                    ahead = seconds(forward, device)
                results[name] = (ahead, seconds(backward, device))
        except RuntimeError as error:
            refusals[name] = str(error).splitlines()[0]
    if not results:
        raise RuntimeError(f"no backend of scaled_dot_product_attention serves this shape: {refusals}")
    return results


def fastest(results):
    return min(results, key=lambda name: sum(results[name]))


def attention(arguments):
    results = measure_attention(arguments.device, 1, arguments.tokens, arguments.heads, arguments.kv_heads, arguments.head_size)
    pairs = arguments.tokens * (arguments.tokens + 1) / 2 * arguments.heads * arguments.head_size
    best_forward = min(results, key=lambda name: results[name][0])
    best_backward = min(results, key=lambda name: results[name][1])
    return {
        "forward_tflops": 4e-12 * pairs / results[best_forward][0], "forward_backend": best_forward,
        "backward_tflops": 10e-12 * pairs / results[best_backward][1], "backward_backend": best_backward,
    }  # fmt: skip


def memory(arguments):
    """The operations of bench_gpu_kernels that have a name in PyTorch, on the same fp32 arrays."""
    device, rows, width = arguments.device, arguments.rows, arguments.width
    compiled = (lambda f: f) if arguments.eager else (lambda f: torch.compile(f, dynamic=False))
    x, y = torch.randn(rows, width, device=device), torch.zeros(rows, width, device=device)
    wide, weight = torch.randn(rows, 2 * width, device=device), torch.randn(width, device=device)
    big = torch.zeros(1 << (28 if device == "cuda" else 16), device=device)
    copy_to = torch.empty_like(big)
    bandwidth = 8 * big.numel() / seconds(lambda: copy_to.copy_(big), device)
    array = 4 * x.numel()
    operations = {
        "add": (3, lambda: y.add_(x)),
        "gelu": (2, lambda: F.gelu(x, approximate="tanh")),
        "swiglu": (3, lambda: F.silu(wide[:, :width]) * wide[:, width:]),
        "norm": (2, lambda: F.rms_norm(x, (width,), weight, 1e-5)),
        "to bf16": (1.5, lambda: x.to(torch.bfloat16)),
        "sum of squares": (1, lambda: x.square().sum()),
    }
    with torch.no_grad():
        shares = {name: moved * array / seconds(compiled(call), device) / bandwidth
                  for name, (moved, call) in operations.items()}  # fmt: skip
    slowest = min(shares, key=shares.get)
    return {"copy_gb_per_second": 1e-9 * bandwidth, "shares": shares, "lowest_percent": 100 * shares[slowest], "lowest": slowest}


class Trainer:
    def __init__(self, request, keep_all, arguments):
        self.device, self.length, self.keep_all = arguments.device, request["sequence_length"], keep_all
        torch.manual_seed(1)
        with torch.device(self.device):
            self.model = pytorch_training.Model(request["model"], self.length)
        decayed = [p for p in self.model.parameters() if p.dim() == 2]
        others = [p for p in self.model.parameters() if p.dim() != 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
        # One graph serves all blocks: their weights are its inputs.
        compiled = (lambda f: f) if arguments.eager else (lambda f: torch.compile(f, dynamic=False))
        self.before = [compiled(block.before_attention) for block in self.model.blocks]
        self.after = [compiled(block.after_attention) for block in self.model.blocks]
        self.piece_of_loss = compiled(self.sum_of_losses)

    def sum_of_losses(self, x, targets):
        return F.cross_entropy(self.model.head(self.model.final_norm(x)).flatten(0, 1), targets.flatten(), reduction="sum")

    def run(self, part, *tensors):
        return part(*tensors) if self.keep_all else checkpoint(part, *tensors, use_reentrant=False)

    def loss(self, ids, targets):
        x = self.model.token(ids)
        if self.model.position is not None:
            x = x + self.model.position.weight
        x = x.to(torch.bfloat16)
        pieces = [slice(i, i + PIECE) for i in range(0, self.length, PIECE)]
        join = lambda parts: parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        for block, before, after in zip(self.model.blocks, self.before, self.after):
            rotations = [self.model.cos_sin and tuple(t[piece] for t in self.model.cos_sin) for piece in pieces]
            qkv = [self.run(before, x[:, piece], rotation) for piece, rotation in zip(pieces, rotations)]
            y = block.attention(*(join(parts) for parts in zip(*qkv)))
            x = join([self.run(after, x[:, piece], y[:, piece]) for piece in pieces])
        x, targets = x.flatten(0, 1)[None], targets.flatten()[None]
        if x.shape[1] <= 2 * LOSS_PIECE:
            return self.piece_of_loss(x, targets) / targets.numel()
        pieces = [slice(i, i + LOSS_PIECE) for i in range(0, x.shape[1], LOSS_PIECE)]
        sums = [checkpoint(self.piece_of_loss, x[:, p], targets[:, p], use_reentrant=False) for p in pieces]
        return torch.stack(sums).sum() / targets.numel()

    def step(self, batches):
        total = torch.zeros((), device=self.device)
        for batch in batches:
            with torch.autocast(self.device, dtype=torch.bfloat16):
                loss = self.loss(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) / len(batches)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item()


def train(arguments):
    settings = compare_pytorch.read_settings(arguments.config, dict(item.split("=", 1) for item in arguments.set))
    keep = settings.get("memory.keep", "all")
    settings |= {"memory.keep": "all", "model.precision": "fp32"}  # what it says of them is not true here
    request = compare_pytorch.resolve(settings)
    m, length = request["model"], request["sequence_length"]
    global_batch, micro = request["micro_batch"] * request["accumulation"], request["micro_batch"]
    steps = arguments.steps or int(settings["train.steps"])
    while True:
        try:
            # The longest sequences would take minutes to choose for, and their choice is that of 16384 tokens.
            shape = (micro, min(length, 16384), m["heads"], m["kv_heads"], m["head_size"])
            backend = fastest(measure_attention(arguments.device, *shape))
            trainer = Trainer(request, keep == "all", arguments)
            took, losses = [], []
            with allowed(backend):
                for _ in range(steps):
                    ids = torch.randint(m["vocabulary"], (global_batch, length + 1), device=arguments.device)
                    synchronize(arguments.device)
                    begin = time.perf_counter()
                    losses.append(trainer.step(ids.split(micro)))
                    synchronize(arguments.device)
                    took.append(time.perf_counter() - begin)
            break
        except torch.cuda.OutOfMemoryError:
            if micro % 2:
                raise
            micro //= 2
        trainer = None
        gc.collect()  # its compiled parts and it know each other
        torch.cuda.empty_cache()
    # Random ids and small weights: anything but the logarithm of the vocabulary is a model that is not computed.
    if not all(map(math.isfinite, losses)) or abs(losses[0] - math.log(m["vocabulary"])) > 0.5:
        sys.exit(f"the first loss is {losses[0]}, expected about {math.log(m['vocabulary']):.3f}")
    counted = took[min(arguments.skip, steps - 1) :]
    return {
        "tokens_per_second": global_batch * length / statistics.median(counted),
        "step_seconds": took, "losses": losses, "micro_batch": micro, "attention": backend,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if arguments.device == "cuda" else None,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    common.add_argument("--eager", action="store_true", help="compile nothing")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", parents=[common])
    one.add_argument("--config", required=True, type=pathlib.Path)
    one.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    one.add_argument("--steps", type=int, default=0, help="default: train.steps")
    one.add_argument("--skip", type=int, default=1, help="first steps that are not counted (default 1)")
    one.set_defaults(run=train)
    one = commands.add_parser("attention", parents=[common])
    for name, default in (("--tokens", 32768), ("--heads", 64), ("--kv-heads", 8), ("--head-size", 128)):
        one.add_argument(name, type=int, default=default)
    one.set_defaults(run=attention)
    one = commands.add_parser("memory", parents=[common])
    for name, default in (("--rows", 32768), ("--width", 4096)):
        one.add_argument(name, type=int, default=default)
    one.set_defaults(run=memory)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # why a backend was not taken
    if arguments.device == "cuda":
        if not torch.cuda.is_available():
            sys.exit("torch finds no GPU")
        torch.backends.cuda.matmul.allow_tf32 = True
    with contextlib.redirect_stdout(sys.stderr):
        result = arguments.run(arguments)
    print(json.dumps(result | {"version": f"PyTorch {torch.__version__}"}))


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:  # OutOfMemoryError is one
        sys.exit(str(error).splitlines()[0])
