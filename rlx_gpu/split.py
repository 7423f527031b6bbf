"""Which of a model's parameters are hidden matrices, and which are embeddings, heads, norms and biases."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch

# The names that models give to what turns tokens, pixels or positions into vectors, and vectors into logits.
_OUTER = re.compile(
    # words between dots and underscores
    r"(^|[._])(embed|embeds|embedding|embeddings|embedder|unembed|wte|wpe|positions?|positional|classifier|logits|"
    r"output_layer|lm_head)([._]|$)"
    # words between dots alone: with underscores they also name attention heads and mixers of tokens
    r"|(^|\.)(tok|tokens?|pos|head|score|(cls|mlm|prediction|classification|output)_head)(\.|$)"
    # a model's own layers: deeper ones of these names are hidden
    r"|^((model|module|transformer|_orig_mod)\.)*(output|shared|decoder|generator(\.proj)?|vocab_proj)\.weight$"
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

    Raises:
        TypeError: neither a module nor pairs of a name and a tensor.
    """
    if isinstance(model, torch.nn.Module):
        outer = _outer_parameters(model)
        model = model.named_parameters()
    else:
        outer = set()
    named: list[tuple[str, torch.Tensor]] = [*model]
    if not all(_is_named(item) for item in named):
        raise TypeError("split_parameters: expected a module or its named_parameters(), got items of another kind")
    hidden = [
        (name, param) for name, param in named if param.ndim > 1 and id(param) not in outer and not _OUTER.search(name)
    ]
    chosen = {id(param) for _, param in hidden}
    rest = [(name, param) for name, param in named if id(param) not in chosen]
    groups: list[dict[str, Any]] = [{"params": hidden}, {"params": rest, "matrix": False}]
    return [group for group in groups if group["params"]]


def split_named(params: Any) -> Any:
    """A module's parameters or named parameters split in two groups; anything else as it is.

    Names alone may not tell embeddings and heads: that none does is worth a warning.
    """
    if isinstance(params, torch.nn.Module):
        return split_parameters(params)
    if isinstance(params, torch.Tensor) or not isinstance(params, Iterable):
        return params
    listed = list(params)
    if not listed or not all(_is_named(item) for item in listed):
        return listed
    if not any(param.ndim > 1 and _OUTER.search(name) for name, param in listed):
        warnings.warn(
            "no parameter's name says that it is an embedding or a head, so every matrix is taken for a hidden one; "
            "pass rlx_gpu.split_parameters(model), which looks at the modules, or groups of your own with matrix=False",
            stacklevel=3,
        )
    return split_parameters(listed)


def _is_named(item: Any) -> bool:
    """Whether this is a name with its parameter."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and torch.is_tensor(item[1])


def _outer_parameters(model: torch.nn.Module) -> set[int]:
    """The identities of embeddings' weights and of the last linear layer that is as high as one."""
    embeddings = [m for m in model.modules() if isinstance(m, (torch.nn.Embedding, torch.nn.EmbeddingBag))]
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    heads = [m for m in linear[-1:] if m.out_features in {e.num_embeddings for e in embeddings}]
    return {id(module.weight) for module in (*embeddings, *heads)}
