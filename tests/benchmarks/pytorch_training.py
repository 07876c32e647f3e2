#!/usr/bin/env python3
"""Trains the model of a Longspan configuration in PyTorch on the CPU and reports how fast; compare_pytorch.py runs it.

Written to be as fast as PyTorch goes without own kernels: one product for query, key and value, one for gate and up,
scaled_dot_product_attention, the fused AdamW, gradients freed instead of zeroed. A sliding window is computed in blocks
of its own length, each against itself and the block before: what scaled_dot_product_attention does with a mask of the
whole sequence is several times slower. bf16 is autocast. More than one process: DistributedDataParallel over Gloo. Random token ids. One
JSON object on stdout: seconds of every step, the losses, and GFLOP/s of PyTorch's own fp32 matrix product.
"""

import argparse
import json
import math
import os
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Norm(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.epsilon, self.shape = m["norm_epsilon"], (m["width"],)
        self.weight = nn.Parameter(torch.ones(m["width"]))
        self.bias = nn.Parameter(torch.zeros(m["width"])) if m["norm"] == "layernorm" else None

    def forward(self, x):
        if self.bias is None:
            return F.rms_norm(x, self.shape, self.weight, self.epsilon)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.epsilon)


class Block(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.m = m
        query, kv = m["heads"] * m["head_size"], m["kv_heads"] * m["head_size"]
        self.attention_norm, self.mlp_norm = Norm(m), Norm(m)
        self.qkv = nn.Linear(m["width"], query + 2 * kv, bias=m["bias"])
        self.output = nn.Linear(query, m["width"], bias=m["bias"])
        self.up = nn.Linear(m["width"], m["mlp_width"] * (2 if m["mlp"] == "swiglu" else 1), bias=m["bias"])
        self.down = nn.Linear(m["mlp_width"], m["width"], bias=m["bias"])

    def before_attention(self, x, cos_sin):
        """q, k and v: [B, S, heads, K]."""
        B, S, _ = x.shape
        m = self.m
        parts = self.qkv(self.attention_norm(x)).view(B, S, -1, m["head_size"])
        q, k, v = parts.split([m["heads"], m["kv_heads"], m["kv_heads"]], dim=2)
        if cos_sin is not None:
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        return q, k, v

    def attention(self, q, k, v):
        m = self.m
        if 0 < m["window"] < q.shape[1]:
            return windowed_attention(q, k, v, m["window"])
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=m["kv_heads"] != m["heads"]
        )
        return y.transpose(1, 2)

    def after_attention(self, x, y):
        x = x + self.output(y.flatten(2))
        return x + self.mlp(self.mlp_norm(x))

    def mlp(self, x):
        x = self.up(x)
        if self.m["mlp"] == "swiglu":
            gate, up = x.chunk(2, dim=-1)
            return self.down(F.silu(gate) * up)
        return self.down(F.gelu(x, approximate="tanh"))

    def forward(self, x, cos_sin):
        return self.after_attention(x, self.attention(*self.before_attention(x, cos_sin)))


def windowed_attention(q_BSHK, k_BSGK, v_BSGK, window):
    """Causal, each query sees `window` keys, itself included; S is a multiple of the window."""
    B, S, H, K = q_BSHK.shape
    blocks = S // window

    def in_blocks(x):  # [B, blocks, heads, window, K]
        return x.view(B, blocks, window, -1, K).transpose(2, 3)

    def with_previous(x):
        x = in_blocks(x.repeat_interleave(H // x.shape[2], dim=2) if x.shape[2] != H else x)
        return torch.cat([F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1], x], dim=3)

    distance = torch.arange(window)[:, None] + window - torch.arange(2 * window)[None, :]
    seen = (distance >= 0) & (distance < window)
    first = seen & (torch.arange(2 * window) >= window)[None, :]  # nothing is before the first block
    mask = torch.stack([first] + [seen] * (blocks - 1))[None, :, None].expand(B, -1, H, -1, -1)
    flat = lambda x: x.reshape(B * blocks, *x.shape[2:])
    y = F.scaled_dot_product_attention(
        flat(in_blocks(q_BSHK)), flat(with_previous(k_BSGK)), flat(with_previous(v_BSGK)), attn_mask=flat(mask)
    )
    return y.view(B, blocks, H, window, K).transpose(2, 3).reshape(B, S, H, K)


def rotate(x_BSHK, cos_sin):
    cos, sin = cos_sin
    a, b = x_BSHK.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_BSHK.dtype)


class Model(nn.Module):
    def __init__(self, m, length):
        super().__init__()
        self.m = m
        self.token = nn.Embedding(m["vocabulary"], m["width"])
        self.position = nn.Embedding(length, m["width"]) if m["position"] == "learned" else None
        self.blocks = nn.ModuleList(Block(m) for _ in range(m["layers"]))
        self.final_norm = Norm(m)
        self.head = nn.Linear(m["width"], m["vocabulary"], bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        if m["tie_embeddings"]:
            self.head.weight = self.token.weight
        self.cos_sin = None
        if m["position"] == "rope":
            frequency = m["rope_theta"] ** (-torch.arange(0, m["head_size"], 2) / m["head_size"])
            angle = torch.outer(torch.arange(length), frequency)[:, None, :]
            self.cos_sin = (angle.cos(), angle.sin())

    def forward(self, ids, targets):
        x = self.token(ids)
        if self.position is not None:
            x = x + self.position.weight
        for block in self.blocks:
            x = block(x, self.cos_sin)
        return F.cross_entropy(self.head(self.final_norm(x)).flatten(0, 1), targets.flatten())


def measure_matmul():
    """GFLOP/s of the fp32 matrix product: the best of two shapes and several repetitions."""
    best = 0.0
    for rows, inner, columns in ((1024, 1024, 1024), (4096, 768, 3072)):
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        for _ in range(8):
            begin = time.perf_counter()
            torch.mm(a, b)
            best = max(best, 2e-9 * rows * inner * columns / (time.perf_counter() - begin))
    return best


def start_peers(request):
    """One process per rank; this one is the first. Each has its share of the threads."""
    processes = request.get("processes", 1)
    if processes == 1:
        return 0, []
    import subprocess

    rank = int(os.environ.get("RANK", "0"))
    peers = []
    if rank == 0:
        os.environ |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])}
        for peer in range(1, processes):
            one = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   env=os.environ | {"RANK": str(peer)}, text=True)  # fmt: skip
            one.stdin.write(json.dumps(request))
            one.stdin.close()
            peers.append(one)
        os.environ["RANK"] = "0"
    torch.distributed.init_process_group("gloo")
    return rank, peers


def main():
    request = json.loads(sys.stdin.read())
    rank, peers = start_peers(request)
    m, length, steps = request["model"], request["sequence_length"], request["steps"]
    micro, accumulation = request["micro_batch"], request["accumulation"]
    torch.set_num_threads(max(1, request["threads"] // request.get("processes", 1)))
    torch.manual_seed(1)
    matmul = measure_matmul() if request.get("measure_matmul", True) else 0.0

    model = Model(m, length)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    train = model
    if request.get("processes", 1) > 1:
        train = torch.nn.parallel.DistributedDataParallel(train)
    if request["variant"] == "compile":
        train = torch.compile(train, dynamic=False)
    torch.manual_seed(1 + rank)

    seconds, losses = [], []
    for _ in range(steps):
        batches = torch.randint(request["vocabulary"], (accumulation, micro, length + 1))
        begin = time.perf_counter()
        total = 0.0
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=m["precision"] == "bf16"):
                loss = train(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) / accumulation
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
        losses.append(total)
        if len(seconds) == 1 and request.get("announce_first_step"):
            print("first step", flush=True)
    # Random ids and small weights: anything but the logarithm of the vocabulary is a model that is not computed.
    if not all(math.isfinite(x) for x in losses) or abs(losses[0] - math.log(m["vocabulary"])) > 0.5:
        sys.exit(f"the first loss is {losses[0]}, expected about {math.log(m['vocabulary']):.3f}")
    result = {
        "step_seconds": seconds,
        "losses": losses,
        # Before and after: the machine may have been busy.
        "matmul_gflops": max(matmul, measure_matmul()) if matmul else 0.0,
        "parameters": sum(p.numel() for p in model.parameters()),
        "version": f"PyTorch {torch.__version__}",
    }
    print(json.dumps(result))
    if request.get("processes", 1) > 1:
        torch.distributed.destroy_process_group()
    sys.exit(max([peer.wait() for peer in peers], default=0))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
