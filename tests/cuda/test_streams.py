"""Streams on the CUDA engine, its kernels emulated, against the CPU engine."""

import pytest
import torch
from torch.testing import assert_close

import _cuda_emulated
import fastrnn

MODULES = [
    (fastrnn.RNN, {}),
    (fastrnn.RNN, {"nonlinearity": "relu", "bias": False}),
    (fastrnn.LSTM, {}),
    (fastrnn.LSTM, {"proj_size": 5}),
    (fastrnn.GRU, {"bias": False}),
    (fastrnn.GRU, {}),
]


def states(value):
    return value if isinstance(value, tuple) else (value,)


def on_cpu(module, x):
    """What the CPU engine finds in float64."""
    with torch.no_grad():
        y, final = module.double()(x.double())
    return y, states(final)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize(("cls", "options"), MODULES)
def test_steps_equal_the_sequence(cls, options, dtype, error, monkeypatch):
    for layers, batch, inputs, hidden in [(1, 1, 3, 9), (2, 3, 16, 40)]:
        module = cls(inputs, hidden, layers, **options).to(dtype)
        x = torch.randn(4, batch, inputs, dtype=dtype)
        expected, final = on_cpu(module, x)
        with monkeypatch.context() as patch:
            _cuda_emulated.install(patch)
            stream = module.to(dtype).stream(batch)
            got = torch.stack([stream.step(row) for row in x])
            assert_close(got.double(), expected, atol=error, rtol=error)
            for a, b in zip(states(stream.state), final, strict=True):
                assert_close(a.double(), b, atol=error, rtol=error)


def test_state_reset_save_and_load(monkeypatch):
    _cuda_emulated.install(monkeypatch)
    module = fastrnn.LSTM(4, 6, 2)
    x = torch.randn(5, 2, 4)
    stream, other = module.stream(2), module.stream(2)
    for row in x[:3]:
        stream.step(row)
    other.state = stream.state
    for row in x[3:]:
        assert torch.equal(stream.step(row), other.step(row))
    stream.reset()
    assert all(not part.any() for part in stream.state)
    assert torch.equal(stream.step(x[0]), module.stream(2).step(x[0]))


def test_the_weights_are_a_snapshot_until_refresh(monkeypatch):
    _cuda_emulated.install(monkeypatch)
    module = fastrnn.GRU(3, 5)
    x = torch.randn(1, 3)
    stream = module.stream()
    before = stream.step(x)
    with torch.no_grad():
        module.weight_ih_l0.mul_(2)
    stream.reset()
    assert torch.equal(stream.step(x), before)
    stream.refresh()
    stream.reset()
    assert torch.equal(stream.step(x), module.stream().step(x))
    assert not torch.equal(stream.step(x), before)


def test_what_is_the_cpu_engines_alone(monkeypatch):
    quantized = fastrnn.quantize.quantize_dynamic(fastrnn.GRU(3, 5))
    _cuda_emulated.install(monkeypatch)
    with pytest.raises(NotImplementedError, match="quantized"):
        quantized.stream()
    with pytest.raises(RuntimeError, match="input"):
        fastrnn.GRU(3, 5).stream().step(torch.zeros(1, 4))
