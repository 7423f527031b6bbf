"""Which of a model's parameters are hidden matrices, and which are embeddings, heads, norms and biases."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

# Parts of the names that models give to what turns tokens, pixels or positions into vectors, and vectors into logits.
_OUTER = re.compile(
    r"(^|[._])(embed|embeds|embedding|embeddings|embedder|wte|wpe|tok|pos|head|lm_head|classifier|score|logits|unembed|"
    r"output_layer|patch_embed|tokens?|positions?|positional)([._]|$)"
)


def split_parameters(model: torch.nn.Module | Iterable[tuple[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """Two param groups: the hidden matrices, and everything else with `matrix=False`, for the fallback.

    Everything else is what has fewer than two dimensions, what a `torch.nn.Embedding` holds, a matrix that such an
    embedding shares, and what is named as an embedding or a head (`wte`, `lm_head`, `classifier`, ...). In a module the
    last `torch.nn.Linear` is a head too if it is as high as an embedding (one logit for each token).

    Args:
        model: a module, or its named parameters. A module tells more than names do.

    Returns:
        Groups for any optimizer of matrices, with names; a group without parameters is left out.
    """
    if isinstance(model, torch.nn.Module):
        outer = _outer_parameters(model)
        model = model.named_parameters()
    else:
        outer = set()
    named: list[tuple[str, torch.Tensor]] = [*model]
    hidden = [
        (name, param) for name, param in named if param.ndim > 1 and id(param) not in outer and not _OUTER.search(name)
    ]
    chosen = {id(param) for _, param in hidden}
    rest = [(name, param) for name, param in named if id(param) not in chosen]
    groups: list[dict[str, Any]] = [{"params": hidden}, {"params": rest, "matrix": False}]
    return [group for group in groups if group["params"]]


def split_named(params: Any) -> Any:
    """Named parameters split in two groups; anything else as it is."""
    if isinstance(params, (torch.Tensor, torch.nn.Module)) or not isinstance(params, Iterable):
        return params
    listed = list(params)
    named = bool(listed) and all(isinstance(item, tuple) and len(item) == 2 for item in listed)
    return split_parameters(listed) if named else listed


def _outer_parameters(model: torch.nn.Module) -> set[int]:
    """The identities of embeddings' weights and of the last linear layer that is as high as one."""
    embeddings = [m for m in model.modules() if isinstance(m, (torch.nn.Embedding, torch.nn.EmbeddingBag))]
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    heads = [m for m in linear[-1:] if m.out_features in {e.num_embeddings for e in embeddings}]
    return {id(module.weight) for module in (*embeddings, *heads)}
