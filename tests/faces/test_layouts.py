"""Memory orders that are handled: dense parameters in any order of dimensions, gradients of any strides."""

from __future__ import annotations

import pytest
import torch
from variants import BASE

import rlx_gpu

LAYOUTS = {
    "transposed": lambda: torch.randn(6, 4).T,
    "channels-last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "permuted": lambda: torch.randn(3, 4, 5).permute(2, 0, 1),
    "offset": lambda: torch.randn(1100)[3:1099],
    "single-row": lambda: torch.randn(1, 7).T,
    "empty": lambda: torch.randn(0, 3),
}
GRAD_LAYOUTS = {
    "like-the-parameter": lambda grad, param: grad,
    "contiguous": lambda grad, param: grad.contiguous(),
    "reversed": lambda grad, param: grad.permute(*range(grad.ndim)[::-1]).contiguous().permute(*range(grad.ndim)[::-1]),
    "gaps": lambda grad, param: torch.stack([grad, torch.full_like(grad, torch.nan)], -1)[..., 0],
    "expanded": lambda grad, param: torch.tensor(0.3).expand_as(grad),
}


@pytest.mark.parametrize("grad_layout", GRAD_LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_layouts_that_are_handled(name, layout, grad_layout, path):
    """Any dense order of a parameter and any strides of a gradient give what contiguous ones give, slots included."""
    param = LAYOUTS[layout]()
    twin = param.clone(memory_format=torch.contiguous_format)
    one, other = getattr(rlx_gpu, name)(**BASE), getattr(rlx_gpu, name)(**BASE)
    filler = torch.ones(3)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        plain = torch.randn(param.shape, generator=generator)
        grad = GRAD_LAYOUTS[grad_layout](torch.empty_like(param).copy_(plain), param)
        one.step_batch([("p", param.shape, param, grad), ("filler", (3,), filler, filler)])
        other.step("p", param.shape, twin, grad.clone(memory_format=torch.contiguous_format))
        one.end_iteration(), other.end_iteration()
    torch.testing.assert_close(param, twin, rtol=2e-6, atol=1e-7)
    left, right = one.state_dict(), other.state_dict()
    for key in right:
        if isinstance(right[key], torch.Tensor):
            torch.testing.assert_close(left[key], right[key], rtol=2e-6, atol=1e-7, msg=key)
