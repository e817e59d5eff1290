"""The compiled max-pool against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from rflw import InputError, build
from rflw.nn import blocks, pooling


@pytest.fixture
def eager(monkeypatch):
    """The functions as they are, so that what is tested is ours and not the compiler's."""
    monkeypatch.setattr(pooling, "_run", lambda function, *tensors: function(*tensors))


def both(x):
    """Values and gradients of our pool and PyTorch's, weighted so that every output counts differently."""
    weight = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x).to(x.dtype)
    for pool in (pooling.max_pool, blocks.max_pool):
        leaf = x.clone().requires_grad_()
        y = pool(leaf)
        (y * weight).sum().backward()
        yield y.detach(), leaf.grad


@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (1, 1, 1, 1), (1, 2, 2, 6), (1, 8, 5, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_pytorch(eager, shape, layout):
    generator = torch.Generator().manual_seed(0)
    for x in (
        torch.randn(shape, dtype=torch.float64, generator=generator),
        torch.randint(0, 3, shape, generator=generator).double(),  # mostly ties
    ):
        (ours, our_gradient), (theirs, their_gradient) = both(x.to(memory_format=layout))
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (2, 3, 1, 9), (2, 3, 7, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("form", pooling.FORMS)
def test_every_form_of_the_pools_is_the_pool(form, shape):
    # below zero, where padding with zeros would show
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) - 5
    x[0, 0, shape[2] // 3, shape[3] // 3] = -torch.inf
    assert torch.equal(pooling.FORMS[form](x), torch.nn.functional.max_pool2d(x, 5, 1, 2))


def test_what_is_not_a_number_stays_so(eager):
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = torch.nan
    assert torch.equal(pooling.max_pool(x).isnan(), F.max_pool2d(x, 5, 1, 2).isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_is_the_same(dtype):
    x = torch.randn(2, 16, 6, 10, generator=torch.Generator().manual_seed(2)).relu().to(dtype)
    (ours, our_gradient), (theirs, their_gradient) = both(x)
    assert torch.equal(ours, theirs)
    # at most 25 gradients are summed, in another order
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(our_gradient, their_gradient, rtol=4 * eps, atol=25 * eps)


@pytest.mark.parametrize(
    ("form", "pool"),
    [("lw", pooling.max_pool), ("lw-crp-pools", pooling.max_pool), ("lw-crp-convs", None)],
)
def test_all_pools_of_a_decoder_are_replaced(eager, form, pool):
    model = build(f"refinenet-{form}-mobilenet_v2", 5, None).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = model(x)
        pooling.compile_pools(model)
        assert {m.pool for m in model.modules() if isinstance(m, blocks.CRP)} == {pool}
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_without_a_compiler_it_says_so(monkeypatch):
    def fail(*_):
        raise RuntimeError("InvalidCxxCompiler")

    monkeypatch.setattr(pooling, "_run", fail)
    with pytest.raises(InputError, match=r"C\+\+ compiler"):
        pooling.compile_pools(build("refinenet-lw-mobilenet_v2", 5, None))
