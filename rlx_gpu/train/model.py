"""A byte-level GPT, small enough to train on two CPU cores in about a minute."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from .config import ModelConfig

BYTES = 256


class Block(nn.Module):
    """One pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, width] to the same shape; a position sees itself and those before it."""
        batch, time, width = x.shape
        joint = self.query_key_value(self.attention_norm(x)).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = joint.permute(2, 0, 3, 1, 4)
        # The fused CUDA backends add up gradients in no fixed order, which would make a resumed run differ.
        with sdpa_kernel(SDPBackend.MATH) if x.is_cuda else contextlib.nullcontext():
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, time, width))
        result: Tensor = x + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(x))))
        return result


class ByteGPT(nn.Module):
    """A GPT over bytes: learned positions, pre-norm blocks, and one matrix for both ends' embeddings.

    Args:
        config: the network's size.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.context = config.context
        self.bytes = nn.Embedding(BYTES, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        residual_writes = 2 * config.layers
        for name, parameter in self.named_parameters():
            if name == "bytes.weight":
                # Wider than the positions', so that from the start a byte says more than where it stands.
                nn.init.normal_(parameter, std=0.1)
            elif name == "positions.weight":
                nn.init.normal_(parameter, std=0.02)
            elif parameter.ndim == 2:
                # The residual stream adds up all of these, so each is scaled down to keep its variance at the start.
                scale = residual_writes**-0.5 if name.endswith(("attention_out.weight", "mlp_out.weight")) else 1.0
                nn.init.normal_(parameter, std=scale * parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, text: Tensor) -> Tensor:
        """Map bytes [batch, time] (int64, time at most the context) to next-byte logits [batch, time, 256]."""
        x = self.bytes(text) + self.positions.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.bytes.weight)

    def loss(self, text: Tensor) -> Tensor:
        """The mean cross-entropy (nats a byte) of predicting each byte of [batch, time + 1] from those before it."""
        return functional.cross_entropy(self(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())

    @torch.no_grad()
    def sample(self, prompt: bytes, length: int, seed: int, temperature: float = 0.8) -> bytes:
        """Continue `prompt` by `length` bytes drawn at `temperature`; the same seed draws the same text."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.frombuffer(bytearray(prompt), dtype=torch.uint8).long()[None].to(self.positions.weight.device)
        for _ in range(length):
            logits = self(text[:, -self.context :])[0, -1].float().cpu()
            drawn = torch.multinomial((logits / temperature).softmax(0), 1, generator=generator)
            text = torch.cat([text, drawn[None].to(text.device)], dim=1)
        return bytes(text[0].tolist())
