#!/usr/bin/env python3
"""Golden values: two tiny models in PyTorch, in double precision, written out operation by operation.

Writes gpt2_tiny.json (LayerNorm, GELU, learned positions, biases, tied embeddings) and llama_tiny.json (RMSNorm,
SwiGLU, rotary positions, grouped-query heads, untied) next to this file: configuration, tokens, targets, every weight,
and from them the logits, the mean loss and the gradient of every weight. Tests read them with support/golden.hpp.

    make_golden.py            writes both files
    make_golden.py --check    recomputes both and fails if they differ from what is stored

Weights are drawn in fp32, so they are exact in the file; logits and gradients are computed in fp64 and stored as fp32
(little-endian, base64), which costs a relative 6e-8. The forward pass below is compared with the same model made of
torch.nn.functional before anything is written.
"""

import argparse
import base64
import json
import math
import pathlib
import sys

import numpy
import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).resolve().parent
BATCH, LENGTH = 2, 24

MODELS = {
    "gpt2_tiny": {
        "layers": 2, "width": 32, "heads": 4, "kv-heads": 4, "head-size": 8, "mlp": "gelu", "mlp-width": 64,
        "norm": "layernorm", "norm-epsilon": 1e-5, "position": "learned", "rope-theta": 10000.0,
        "max-positions": LENGTH, "bias": True, "tie-embeddings": True, "vocabulary": 96, "seed": 1,
    },
    "llama_tiny": {
        "layers": 2, "width": 32, "heads": 4, "kv-heads": 2, "head-size": 8, "mlp": "swiglu", "mlp-width": 48,
        "norm": "rmsnorm", "norm-epsilon": 1e-5, "position": "rope", "rope-theta": 10000.0,
        "max-positions": LENGTH, "bias": False, "tie-embeddings": False, "vocabulary": 96, "seed": 2,
    },
}


def parameter_shapes(c):
    """Name -> shape, in the order of the forward pass."""
    shapes = {"embedding.token.weight": (c["vocabulary"], c["width"])}
    if c["position"] == "learned":
        shapes["embedding.position.weight"] = (c["max-positions"], c["width"])

    def linear(name, rows, columns):
        shapes[name + ".weight"] = (rows, columns)
        if c["bias"]:
            shapes[name + ".bias"] = (rows,)

    def norm(name):
        shapes[name + ".weight"] = (c["width"],)
        if c["norm"] == "layernorm":
            shapes[name + ".bias"] = (c["width"],)

    for i in range(c["layers"]):
        block = f"blocks.{i}."
        norm(block + "attention_norm")
        linear(block + "attention.query", c["heads"] * c["head-size"], c["width"])
        linear(block + "attention.key", c["kv-heads"] * c["head-size"], c["width"])
        linear(block + "attention.value", c["kv-heads"] * c["head-size"], c["width"])
        linear(block + "attention.output", c["width"], c["heads"] * c["head-size"])
        norm(block + "mlp_norm")
        if c["mlp"] == "swiglu":
            linear(block + "mlp.gate", c["mlp-width"], c["width"])
        linear(block + "mlp.up", c["mlp-width"], c["width"])
        linear(block + "mlp.down", c["width"], c["mlp-width"])
    norm("final_norm")
    if not c["tie-embeddings"]:
        shapes["output.weight"] = (c["vocabulary"], c["width"])
    return shapes


def draw_parameters(c, random):
    """Large enough that attention is not uniform and no gradient vanishes: a wrong scale anywhere must show."""
    parameters = {}
    for name, shape in parameter_shapes(c).items():
        values = random.standard_normal(shape)
        if name.endswith("norm.weight"):
            values = 1.0 + 0.3 * values
        elif name.endswith(".bias"):
            values = 0.3 * values
        elif name.startswith("embedding.") or name == "output.weight":
            values = 0.5 * values
        else:
            values = values * 1.5 / math.sqrt(shape[1])
        parameters[name] = torch.from_numpy(values.astype(numpy.float32)).double().requires_grad_()
    return parameters


def explicit_logits(c, p, tokens):
    """The model by its formulas: nothing but products, sums and elementary functions. tokens: [B, S]; returns [B, S, V]."""
    B, S = tokens.shape
    H, G, K = c["heads"], c["kv-heads"], c["head-size"]

    def norm(name, x):
        if c["norm"] == "layernorm":  # Ba et al. 2016; the variance is the biased one
            x = x - x.mean(-1, keepdim=True)
        rstd = (x * x).mean(-1, keepdim=True).add(c["norm-epsilon"]).rsqrt()
        y = x * rstd * p[name + ".weight"]
        return y + p[name + ".bias"] if c["norm"] == "layernorm" else y

    def linear(name, x):
        y = x @ p[name + ".weight"].T
        return y + p[name + ".bias"] if c["bias"] else y

    def rotate(x_BHSK):  # Su et al. 2021, half-split: (i, i + K/2) turn by position * theta^(-2i/K)
        frequency = c["rope-theta"] ** (-2.0 * torch.arange(K // 2, dtype=torch.float64) / K)
        angle = torch.arange(S, dtype=torch.float64)[:, None] * frequency
        a, b = x_BHSK[..., : K // 2], x_BHSK[..., K // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def attention(block, x):
        q = linear(block + "query", x).view(B, S, H, K).transpose(1, 2)
        k = linear(block + "key", x).view(B, S, G, K).transpose(1, 2)
        v = linear(block + "value", x).view(B, S, G, K).transpose(1, 2)
        if c["position"] == "rope":
            q, k = rotate(q), rotate(k)
        heads = []
        allowed = torch.arange(S)[None, :] <= torch.arange(S)[:, None]
        for h in range(H):
            g = h // (H // G)  # consecutive query heads share a key/value head
            scores = q[:, h] @ k[:, g].transpose(1, 2) / math.sqrt(K)
            scores = scores.masked_fill(~allowed, -math.inf)
            weights = (scores - scores.max(-1, keepdim=True).values).exp()
            heads.append(weights / weights.sum(-1, keepdim=True) @ v[:, g])
        return linear(block + "output", torch.cat(heads, -1))

    def mlp(block, x):
        up = linear(block + "up", x)
        if c["mlp"] == "swiglu":  # Shazeer 2020
            gate = linear(block + "gate", x)
            return linear(block + "down", gate / (1.0 + (-gate).exp()) * up)
        inner = math.sqrt(2.0 / math.pi) * (up + 0.044715 * up * up * up)
        return linear(block + "down", 0.5 * up * (1.0 + inner.tanh()))

    x = p["embedding.token.weight"][tokens]
    if c["position"] == "learned":
        x = x + p["embedding.position.weight"][:S]
    for i in range(c["layers"]):
        block = f"blocks.{i}."
        x = x + attention(block + "attention.", norm(block + "attention_norm", x))
        x = x + mlp(block + "mlp.", norm(block + "mlp_norm", x))
    output = p["embedding.token.weight" if c["tie-embeddings"] else "output.weight"]
    return norm("final_norm", x) @ output.T


def functional_logits(c, p, tokens):
    """The same model out of PyTorch's own operations."""
    B, S = tokens.shape
    H, G, K, W = c["heads"], c["kv-heads"], c["head-size"], c["width"]

    def norm(name, x):
        if c["norm"] == "layernorm":
            return F.layer_norm(x, (W,), p[name + ".weight"], p[name + ".bias"], c["norm-epsilon"])
        return F.rms_norm(x, (W,), p[name + ".weight"], c["norm-epsilon"])

    def linear(name, x):
        return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))

    def rotate(x):  # as complex numbers: (a + ib) e^(i angle)
        angle = torch.outer(torch.arange(S).double(), c["rope-theta"] ** (-torch.arange(0, K, 2).double() / K))
        turned = torch.complex(x[..., : K // 2], x[..., K // 2 :]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], -1)

    x = F.embedding(tokens, p["embedding.token.weight"])
    if c["position"] == "learned":
        x = x + F.embedding(torch.arange(S), p["embedding.position.weight"])
    for i in range(c["layers"]):
        block = f"blocks.{i}."
        h = norm(block + "attention_norm", x)
        q = linear(block + "attention.query", h).view(B, S, H, K).transpose(1, 2)
        k = linear(block + "attention.key", h).view(B, S, G, K).transpose(1, 2)
        v = linear(block + "attention.value", h).view(B, S, G, K).transpose(1, 2)
        if c["position"] == "rope":
            q, k = rotate(q), rotate(k)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=G != H)
        x = x + linear(block + "attention.output", o.transpose(1, 2).reshape(B, S, H * K))
        h = norm(block + "mlp_norm", x)
        up = linear(block + "mlp.up", h)
        if c["mlp"] == "swiglu":
            up = F.silu(linear(block + "mlp.gate", h)) * up
        else:
            up = F.gelu(up, approximate="tanh")
        x = x + linear(block + "mlp.down", up)
    output = p["embedding.token.weight" if c["tie-embeddings"] else "output.weight"]
    return F.linear(norm("final_norm", x), output)


def mean_loss(logits, targets):
    """Mean of -log softmax(logits)[target] over the targets that count (>= 0)."""
    valid = targets >= 0
    chosen = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (logits.logsumexp(-1) - chosen)[valid].sum() / valid.sum()


def check_equal(what, a, b):
    difference = (a - b).norm() / b.norm()
    if not difference < 1e-12:
        sys.exit(f"{what}: the explicit formulas and torch.nn.functional differ by a relative {difference:.3g}")


def encode(tensor):
    return base64.b64encode(tensor.detach().numpy().astype("<f4").tobytes()).decode()


def make(name):
    c = MODELS[name]
    random = numpy.random.Generator(numpy.random.PCG64(c["seed"]))
    parameters = draw_parameters(c, random)
    tokens = torch.from_numpy(random.integers(0, c["vocabulary"], (BATCH, LENGTH)))
    targets = torch.from_numpy(random.integers(0, c["vocabulary"], (BATCH, LENGTH)))
    targets[1, 5] = -1  # one target that does not count

    logits = explicit_logits(c, parameters, tokens)
    loss = mean_loss(logits, targets)
    gradients = torch.autograd.grad(loss, list(parameters.values()))

    other_logits = functional_logits(c, parameters, tokens)
    other_loss = F.cross_entropy(other_logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    check_equal(f"{name}: logits", logits, other_logits)
    check_equal(f"{name}: loss", loss, other_loss)
    others = torch.autograd.grad(other_loss, list(parameters.values()))
    for parameter, gradient, other in zip(parameters, gradients, others):
        # A key's bias moves every score of a row alike, and softmax forgets it: the gradient is 0 but for rounding.
        if parameter.endswith("attention.key.bias") and c["position"] != "rope":
            if not max(gradient.norm(), other.norm()) < 1e-14:
                sys.exit(f"{name}: the gradient of {parameter} should vanish, its norm is {gradient.norm():.3g}")
            gradient.zero_()
            continue
        check_equal(f"{name}: gradient of {parameter}", gradient, other)

    return {
        "encoding": "tensors are little-endian fp32 in row-major order, base64",
        "model": {key: value for key, value in c.items() if key != "seed"},
        "batch": BATCH,
        "sequence_length": LENGTH,
        "tokens": tokens.flatten().tolist(),
        "targets": targets.flatten().tolist(),
        "loss": loss.item(),
        "logits": encode(logits),
        "parameters": {
            parameter: {"shape": list(weight.shape), "weight": encode(weight), "gradient": encode(gradient)}
            for (parameter, weight), gradient in zip(parameters.items(), gradients)
        },
    }


def decode(text):
    return numpy.frombuffer(base64.b64decode(text), "<f4").astype(numpy.float64)


def check_stored(name, made):
    """Rounding may differ between processors in the last bits of fp64; one unit of fp32 is the most that can show."""
    stored = json.loads((HERE / f"{name}.json").read_text())
    for key in ("model", "batch", "sequence_length", "tokens", "targets"):
        if stored[key] != made[key]:
            sys.exit(f"{name}.json: '{key}' is not what the script makes: run make_golden.py and look at the difference")
    pairs = [("loss", numpy.array([stored["loss"]]), numpy.array([made["loss"]]))]
    pairs.append(("logits", decode(stored["logits"]), decode(made["logits"])))
    if list(stored["parameters"]) != list(made["parameters"]):
        sys.exit(f"{name}.json: the parameter names are not what the script makes: run make_golden.py")
    for parameter, entry in made["parameters"].items():
        for kind in ("weight", "gradient"):
            pairs.append((f"{kind} of {parameter}", decode(stored["parameters"][parameter][kind]), decode(entry[kind])))
    for what, a, b in pairs:
        if a.shape != b.shape or numpy.abs(a - b).max() > 1e-6 * numpy.abs(b).max() + 1e-14:
            sys.exit(f"{name}.json: {what} is not what the script computes: run make_golden.py and look at the difference")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="compare with the stored files, write nothing")
    check = arguments.parse_args().check
    for name in MODELS:
        made = make(name)
        path = HERE / f"{name}.json"
        if check:
            check_stored(name, made)
            print(f"{name}.json: as computed here, loss {made['loss']:.12f}")
            continue
        # One line per parameter: a change of one tensor is one line of a diff.
        text = json.dumps(made, separators=(",", ":")).replace('},"', '},\n"').replace('"parameters":{', '"parameters":{\n')
        path.write_text(text + "\n")
        print(f"{name}.json: {len(made['parameters'])} tensors, loss {made['loss']:.12f}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
