"""A stream's steps are the sequence call, one at a time."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastrnn

MODULES = [
    (fastrnn.RNN, {}),
    (fastrnn.RNN, {"nonlinearity": "relu"}),
    (fastrnn.LSTM, {}),
    (fastrnn.LSTM, {"proj_size": 3}),
    (fastrnn.GRU, {}),
]


def states(value):
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("cls", "options"), MODULES)
def test_steps_equal_the_sequence_bitwise(cls, options, bias, dtype):
    for layers, batch, inputs, hidden in [(1, 1, 1, 5), (2, 1, 7, 33), (3, 5, 16, 64)]:
        module = cls(inputs, hidden, layers, bias=bias, dtype=dtype, **options).eval()
        x = torch.randn(9, batch, inputs, dtype=dtype)
        with torch.no_grad():
            expected, final = module(x)
        stream = module.stream(batch)
        got = torch.stack([stream.step(row) for row in x])
        assert torch.equal(got, expected)
        for a, b in zip(states(stream.state), states(final), strict=True):
            assert torch.equal(a, b)


def test_state_reset_save_and_load():
    module = fastrnn.LSTM(4, 6, 2)
    x = torch.randn(6, 2, 4)
    stream, other = module.stream(2), module.stream(2)
    for row in x[:3]:
        stream.step(row)
    other.state = stream.state
    for row in x[3:]:
        assert torch.equal(stream.step(row), other.step(row))
    stream.reset()
    assert all(not part.any() for part in stream.state)
    assert torch.equal(stream.step(x[0]), module.stream(2).step(x[0]))


def test_the_weights_are_a_snapshot_until_refresh():
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
    with torch.no_grad():
        assert torch.equal(stream.step(x), module(x[None])[0][0])


def test_inputs_of_every_layout():
    module = fastrnn.RNN(4, 3)
    x = torch.randn(4, 1)
    expected = module.stream().step(x.t().contiguous())
    assert torch.equal(module.stream().step(x.t()), expected)
    assert torch.equal(module.stream().step(x[:, 0]), expected[0])
    assert torch.equal(module.stream().step(torch.nn.Parameter(x.t().contiguous())), expected)
    assert not module.stream().step(x.t().requires_grad_()).requires_grad


class Wrapped(torch.Tensor):
    """A subclass that the layers take as it is."""


INPUTS = {
    "plain": lambda x: x,
    "a parameter": lambda x: torch.nn.Parameter(x),
    "of another tensor's middle": lambda x: torch.cat([x, x, x])[2:4],
    "negated": lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
    "scattered": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "transposed": lambda x: x.t().contiguous().t(),
    "a subclass": lambda x: x.as_subclass(Wrapped),
    "float64": lambda x: x.double(),
    "ints": lambda x: x.view(torch.int32),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "wide": lambda x: torch.cat([x, x], dim=1),
    "three sequences": lambda x: torch.cat([x, x[:1]]),
    "no batch": lambda x: x[0],
    "a list": lambda x: x.tolist(),
    "none": lambda x: None,
}


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
    reason="this torch has no table for DLPack",
)
@pytest.mark.parametrize("kind", INPUTS)
def test_a_step_in_the_compiled_module_alone(kind):
    """Results, errors and states are those of the way through Python."""
    module = fastrnn.LSTM(4, 3, 2)
    x = INPUTS[kind](torch.randn(2, 4))
    alone, checked = module.stream(2), module.stream(2)
    by_itself = alone._step_tensor
    plain = kind in {"plain", "of another tensor's middle", "a parameter"}
    assert (by_itself(x) is not None) == plain
    alone.reset()
    checked._step_tensor = None

    def outcome(stream):
        try:
            return stream.step(x)
        except Exception as error:
            return type(error), str(error)

    for _ in range(2):
        got, wanted = outcome(alone), outcome(checked)
        if isinstance(wanted, tuple):
            assert got == wanted
        else:
            assert (type(got), got.dtype, got.requires_grad) == (torch.Tensor, x.dtype, False)
            assert got.stride() == wanted.stride()
            assert torch.equal(got, wanted)
        for a, b in zip(alone.state, checked.state, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("alone", [True, False])
def test_a_step_where_new_tensors_have_no_memory(alone):
    stream, x = fastrnn.GRU(4, 3).stream(), torch.randn(1, 4)
    if not alone:
        stream._step_tensor = None
    stream.step(x)
    before = stream.state
    for allow in (False, True):
        with (
            FakeTensorMode(allow_non_fake_inputs=allow),
            pytest.raises(RuntimeError, match="GRU: a stream's output must have memory"),
        ):
            stream.step(x)
    assert torch.equal(stream.state, before)


@pytest.mark.parametrize("alone", [True, False])
def test_a_step_under_transforms(alone):
    """With an ordinary input there is nothing to transform."""
    stream, x = fastrnn.GRU(4, 3).stream(), torch.randn(1, 4)
    expected = fastrnn.Stream(stream._module).step(x)
    if not alone:
        stream._step_tensor = None

    def add(a):
        return stream.step(x) + a

    for transform in (torch.func.functionalize, torch.func.vmap):
        stream.reset()
        try:
            found = transform(add)(torch.zeros(1, 3))
        except RuntimeError as error:
            found = None
            message = str(error)
        if found is None:
            assert "must have memory" in message
        else:
            assert torch.equal(found.reshape(1, 3), expected)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastrnn.LSTM(2, 3, bidirectional=True).stream(), ValueError, "bidirectional"),
        (lambda: fastrnn.LSTM(2, 3).stream(0), ValueError, "batch_size"),
        (lambda: fastrnn.LSTM(2, 3).stream("1"), TypeError, "LSTM: batch_size must be an int"),
        (lambda: fastrnn.LSTM(2, 3).stream().step(torch.zeros(1, 4)), RuntimeError, "input"),
        (lambda: fastrnn.LSTM(2, 3).stream().step([[0.0, 0.0]]), TypeError, "LSTM: input"),
        (
            lambda: fastrnn.LSTM(2, 3).stream().step(freed(1, 2)),
            RuntimeError,
            "LSTM: input.*memory",
        ),
        (lambda: fastrnn.LSTM(2, 3).stream().step(freed(2)), RuntimeError, "must have memory"),
        (lambda: fastrnn.LSTM(2, 3).stream().step(torch.zeros(2, 2)), RuntimeError, "input"),
        (lambda: fastrnn.LSTM(2, 3).stream().step(torch.zeros(1, 2).double()), RuntimeError, "inp"),
    ],
)
def test_misuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


def freed(*shape):
    tensor = torch.zeros(shape)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("cls", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
@pytest.mark.parametrize(
    "value", [None, (), [1.0], "h0", (torch.zeros(1, 1, 3),) * 3, freed(1, 1, 3)]
)
def test_no_states_at_all(cls, value):
    stream = cls(2, 3).stream()
    stream.step(torch.ones(1, 2))
    before = states(stream.state)
    with pytest.raises((RuntimeError, TypeError), match=cls.__name__):
        stream.state = value
    assert all(torch.equal(a, b) for a, b in zip(states(stream.state), before, strict=True))


def test_wrong_states():
    stream = fastrnn.LSTM(2, 3).stream()
    with pytest.raises(RuntimeError, match="h0"):
        stream.state = (torch.zeros(1, 1, 2), torch.zeros(1, 1, 3))
    with pytest.raises((RuntimeError, TypeError), match="LSTM"):
        stream.state = torch.zeros(1, 1, 3)
