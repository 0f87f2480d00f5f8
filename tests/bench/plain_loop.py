"""The peer to reach: one file of plain PyTorch with every trick known for this model on a CPU.

Compiled blocks, fused projections, chunked cross-entropy, fused AdamW, fused attention, and an
allocator that keeps its memory. It shares no code with distllm. Prints the seconds of each step.

B: rows.  T: positions.  D: hidden size.  H: heads.  K: head size.  V: vocabulary.

usage: plain_loop.py SAMPLES.npy STEPS ROWS_PER_MICRO_BATCH THREADS
"""

import ctypes
import json
import sys
import time

import numpy as np

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
libc = ctypes.CDLL("libc.so.6")
libc.mallopt(M_MMAP_MAX, 0)
libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
libc.mallopt(M_TOP_PAD, 64 << 20)

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import LinearCrossEntropyOptions

HIDDEN, LAYERS, HEADS, VOCAB, MLP, SEQUENCES = 256, 8, 8, 8192, 704, 8


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat((-second, first), dim=-1) * sin_TK


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.gate_up = nn.Linear(HIDDEN, 2 * MLP, bias=False)
        self.down = nn.Linear(MLP, HIDDEN, bias=False)
        self.norm_1 = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.norm_2 = nn.RMSNorm(HIDDEN, eps=1e-5)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(self.norm_1(x_BTD)).view(B, T, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = rotate(q, cos_TK, sin_TK), rotate(k, cos_TK, sin_TK)
        o_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(o_BHTK.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.norm_2(x_BTD)).chunk(2, dim=-1)
        return x_BTD + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-5)
        size = HIDDEN // HEADS
        angles = torch.outer(torch.arange(length), 1e4 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        x_BTD = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos, self.sin)
        x_ND = self.norm(x_BTD).flatten(0, 1)
        return F.linear_cross_entropy(
            x_ND, self.embed.weight, targets_BT.flatten(), options=LinearCrossEntropyOptions()
        )


def main(path: str, steps: int, rows: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    samples = np.load(path, mmap_mode="r")
    model = Llama(samples.shape[1] - 1)
    for block in model.blocks:
        block.compile(fullgraph=True)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    seconds, losses = [], []
    for step in range(steps):
        started = time.perf_counter()
        ids = torch.from_numpy(samples[step * SEQUENCES : (step + 1) * SEQUENCES].astype(np.int64))
        total = 0.0
        for part in ids.split(rows):
            loss = model(part[:, :-1], part[:, 1:]) * (len(part) / SEQUENCES)
            loss.backward()
            total += float(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
        losses.append(total)
    print(json.dumps({"seconds": seconds, "losses": losses}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
