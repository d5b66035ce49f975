"""The network of training.rs in PyTorch: tokens a second of training it.

    pip install torch
    python crates/training/benches/training_torch.py [steps] [threads]
"""

import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

VOCAB, WIDTH, LAYERS, HEADS, FFN = 256, 128, 5, 4, 344
BATCH, LENGTH = 16, 64


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return F.rms_norm(x, (WIDTH,), self.weight, 1e-5)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.before, self.after = Norm(), Norm()
        self.q, self.k, self.v, self.o = (linear(WIDTH, WIDTH) for _ in range(4))
        self.gate, self.up, self.down = linear(WIDTH, FFN), linear(WIDTH, FFN), linear(FFN, WIDTH)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        h = self.before(x)
        split = lambda y: y.view(b, t, HEADS, WIDTH // HEADS).transpose(1, 2)
        q, k = (rotate(split(linear(h)), cos, sin) for linear in (self.q, self.k))
        y = F.scaled_dot_product_attention(q, k, split(self.v(h)), is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, WIDTH))
        h = self.after(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(0.05 * torch.randn(VOCAB, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()
        half = WIDTH // HEADS // 2
        angles = torch.arange(LENGTH)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, ids):
        x = F.embedding(ids, self.table)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return F.linear(self.norm(x), self.table)


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 2)
    torch.manual_seed(1)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    texts = torch.randint(0, VOCAB, (256, LENGTH))
    seconds = []
    for step in range(steps + 3):
        started = time.perf_counter()
        ids = texts[torch.randint(0, 256, (BATCH,))]
        logits = model(ids)[:, :-1]
        loss = F.cross_entropy(logits.reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step >= 3:
            seconds.append(time.perf_counter() - started)
    seconds.sort()
    tokens = BATCH * LENGTH
    parameters = sum(p.numel() for p in model.parameters())
    best, median = seconds[0], seconds[len(seconds) // 2]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {parameters} parameters, {steps} steps")
    print(f"median {1e3 * median:8.1f} ms a step, {tokens / median:8.0f} tokens/s")
    print(f"best   {1e3 * best:8.1f} ms a step, {tokens / best:8.0f} tokens/s")
    assert math.isfinite(loss.item())


if __name__ == "__main__":
    main()
