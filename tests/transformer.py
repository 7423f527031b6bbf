"""A transformer small enough to train on interpreted kernels, and what training it gives."""

from __future__ import annotations

import torch
from torch import nn

VOCABULARY, LENGTH, BATCH, WIDTH = 32, 8, 8, 32


class Block(nn.Module):
    """Causal attention and a perceptron, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, WIDTH, bias=False)
        self.down = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        query, key, value = self.qkv(self.norm(x)).view(BATCH, LENGTH, 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH))
        return x + self.down(nn.functional.gelu(self.up(nn.functional.layer_norm(x, (WIDTH,)))))


class Transformer(nn.Module):
    """Blocks between one tied embedding; with two, 13,000 parameters in 11 tensors."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(0.1 * torch.randn(VOCABULARY, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))

    def forward(self, tokens):
        return nn.functional.layer_norm(self.blocks(self.embedding[tokens]), (WIDTH,)) @ self.embedding.T


def make_transformer(blocks: int = 2, seed: int = 0) -> Transformer:
    """The same weights for the same seed."""
    torch.manual_seed(seed)
    return Transformer(blocks)


def batches(steps: int, seed: int = 1) -> list[torch.Tensor]:
    """Token sequences in which each token follows from the one before, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, VOCABULARY, (steps, BATCH, 1), generator=generator)
    noise = torch.randint(0, 3, (steps, BATCH, LENGTH), generator=generator)
    return list((start + 5 * torch.arange(LENGTH + 1)[None, None] + torch.cat([start * 0, noise], -1)) % VOCABULARY)


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the next token."""
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[torch.Tensor]) -> torch.Tensor:
    """Trains on each batch once; the losses before each step."""
    losses = []
    for tokens in data:
        optimizer.zero_grad()
        loss = loss_of(model, tokens)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)
