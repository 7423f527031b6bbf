"""Which parameters of a model are hidden matrices, and the groups that Muon makes of named parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rlx_gpu
from rlx_gpu import optim


class Model(nn.Module):
    """What models have: embeddings, a tied head, norms, biases, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols = nn.Embedding(50, 16)
        self.inner = nn.Linear(16, 24)
        self.norm = nn.LayerNorm(24)
        self.down = nn.Linear(24, 16, bias=False)
        self.filters = nn.Conv1d(16, 16, 3)
        self.last = nn.Linear(16, 50)


def names(group: dict) -> list[str]:
    return [name for name, _ in group["params"]]


def test_a_module_tells_embeddings_and_heads_by_kind():
    hidden, rest = rlx_gpu.split_parameters(Model())
    assert names(hidden) == ["inner.weight", "down.weight", "filters.weight"]
    assert rest["matrix"] is False
    outer = ["symbols.weight", "inner.bias", "norm.weight", "norm.bias", "filters.bias", "last.weight", "last.bias"]
    assert names(rest) == outer


def test_a_tied_head_is_an_embedding():
    model = Model()
    model.last.weight = model.symbols.weight
    hidden, rest = rlx_gpu.split_parameters(model)
    assert "symbols.weight" in names(rest) and "last.weight" not in names(hidden)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "model.embed_tokens.weight",
        "embeddings.word_embeddings.weight",
        "vit.embeddings.patch_embeddings.projection.weight",
        "lm_head.weight",
        "classifier.weight",
        "score.weight",
        "tok_embeddings.weight",
        "pos_embed",
        "output.weight",
        "module.model.shared.weight",
        "generator.proj.weight",
        "heads.head.weight",
    ],
)
def test_names_tell_embeddings_and_heads(name):
    matrix = torch.ones(4, 4)
    (rest,) = rlx_gpu.split_parameters([(name, matrix)])
    assert rest["matrix"] is False


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.c_attn.weight",
        "model.layers.3.self_attn.q_proj.weight",
        "model.layers.3.mlp.down_proj.weight",
        "encoder.layer.1.attention.output.dense.weight",
        "blocks.2.mlp.experts.gate_up_proj",
        "layers.0.attention.heads_proj.weight",
        "blocks.0.multi_head_attention.q.weight",
        "blocks.0.head_mix.weight",
        "mixer.0.tokens_mlp.fc1.weight",
        "decoder.layers.0.output.weight",
        "layers.0.pos_proj.weight",
    ],
)
def test_names_tell_hidden_matrices(name):
    (hidden,) = rlx_gpu.split_parameters([(name, torch.ones(4, 4))])
    assert "matrix" not in hidden


def test_muon_splits_named_parameters_and_leaves_others_alone():
    model = nn.ModuleDict({"embed": nn.Embedding(50, 16), "inner": nn.Linear(16, 16), "head": nn.Linear(16, 50)})
    by_name = optim.Muon(model.named_parameters(), lr=0.02, fallback_lr_scale=0.1)
    assert [group["matrix"] for group in by_name.param_groups] == [True, False]
    assert by_name.param_groups[0]["param_names"] == ["inner.weight"]
    assert len(optim.Muon(model.parameters(), lr=0.02).param_groups) == 1
    inner, head = model["inner"].weight, model["head"].weight
    groups = [{"params": [inner]}, {"params": [head], "matrix": False, "lr": 0.1}]
    assert [group["matrix"] for group in optim.Muon(groups, lr=0.02).param_groups] == [True, False]


def test_a_scheduler_moves_the_fallbacks_lr_too():
    model = nn.Linear(4, 4)
    optimizer = optim.Muon(model, lr=0.1, fallback_lr_scale=0.5, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1**step)
    moved = []
    for _ in range(2):
        before = model.bias.detach().clone()
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        scheduler.step()
        moved.append((before - model.bias).detach().mean().item())
    assert moved == pytest.approx([0.05, 0.005], rel=1e-3)


@pytest.mark.parametrize("name", ["SOAP", "KronPSGD"])
def test_the_groups_serve_every_optimizer_of_matrices(name):
    model = Model()
    optimizer = getattr(optim, name)(rlx_gpu.split_parameters(model), lr=0.01)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert ("left_basis" in optimizer.state[model.inner.weight]) == (name == "SOAP")
    assert "left_basis" not in optimizer.state[model.symbols.weight]
    assert ("factor" in optimizer.state[model.symbols.weight]) == (name == "KronPSGD")


def test_muon_takes_a_module_and_warns_of_names_that_tell_nothing():
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 24), nn.Linear(24, 50))
    hidden, rest = optim.Muon(model, lr=0.1).param_groups
    assert hidden["param_names"] == ["1.weight"] and rest["matrix"] is False
    with pytest.warns(UserWarning, match="no parameter's name says"):
        optim.Muon(model.named_parameters(), lr=0.1)


@pytest.mark.parametrize("wrong", [list(Model().parameters()), dict(Model().named_parameters()), [("a", 1)]])
def test_what_is_no_named_parameter_is_refused(wrong):
    with pytest.raises(TypeError, match="a module or its named_parameters"):
        rlx_gpu.split_parameters(wrong)
