#!/usr/bin/env python3
"""What PyTorch offers for one sequence shared by two processes on CPUs: its own context parallelism over Gloo, on one
attention, compared with the attention of the whole sequence. Prints one line: that it works, with how large an error, or
what PyTorch says."""

import os
import socket
import subprocess
import sys

import torch
import torch.nn.functional as F


def attempt():
    from torch.distributed.device_mesh import init_device_mesh
    try:
        from torch.distributed.tensor.experimental import context_parallel
    except ImportError:  # where it is in earlier versions
        from torch.distributed.tensor.experimental._attention import context_parallel

    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(1)
    whole = [torch.randn(1, 2, 256, 64, requires_grad=True) for _ in range(3)]
    F.scaled_dot_product_attention(*whole, is_causal=True).sum().backward()
    mine = [x.detach().clone().requires_grad_() for x in whole]
    with context_parallel(mesh, buffers=[x.detach() for x in mine], buffer_seq_dims=[2] * 3):
        shares = [x.chunk(2, dim=2)[torch.distributed.get_rank()].detach().requires_grad_() for x in mine]
        F.scaled_dot_product_attention(*shares, is_causal=True).sum().backward()
    expected = whole[1].grad.chunk(2, dim=2)[torch.distributed.get_rank()]
    return ((shares[1].grad - expected).norm() / expected.norm()).item()


def main():
    rank = int(os.environ.get("RANK", "0"))
    peer = None
    if rank == 0:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        os.environ |= {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        peer = subprocess.Popen([sys.executable, __file__], env=os.environ | {"RANK": "1"},
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    torch.distributed.init_process_group("gloo")
    try:
        error = attempt()
        line = f"runs; gradient of the keys against the whole sequence: relative error {error:.1e}"
        if error > 1e-3:
            line += ": every process attended to its own part alone"
    except Exception as problem:  # whatever it is, it is the answer
        line = f"does not run: {type(problem).__name__}: {str(problem).splitlines()[0]}"
    if rank == 0:
        print(f"PyTorch {torch.__version__}, context parallelism on CPUs: {line}", flush=True)
        try:
            peer.wait(timeout=60)
        except subprocess.TimeoutExpired:
            peer.kill()
    os._exit(0)  # Gloo does not end well once a process has failed


if __name__ == "__main__":
    main()
