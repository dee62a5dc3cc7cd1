"""The Reservoir module: shapes, protocols, matrices, and what it says to wrong arguments."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from _reservoirs import reference
from fastrnn.reservoir import Population, Reservoir, RingReservoirs, matrices, spectrum
from fastrnn.reservoir._forecast import forecast
from fastrnn.reservoir._ops import gram_update, run_blocks


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def small(**options: Any) -> Reservoir:
    return Reservoir(2, 19, **({"density": 0.2, "dtype": torch.float64} | options))


def test_shapes() -> None:
    res = small(num_layers=2, bidirectional=True, batch_first=True)
    assert (res.input_size, res.hidden_size, res.output_size) == (2, 19, 76)
    x = drawn(3, 7, 2)
    y, h = res(x)
    assert y.shape == (3, 7, 76)
    assert h.shape == (4, 3, 19)
    assert y.is_contiguous() or res.num_layers > 1
    time_first = small(num_layers=2, bidirectional=True)
    assert torch.equal(time_first(x.transpose(0, 1))[0].transpose(0, 1), y)
    single, last = res(x[1])
    assert torch.equal(single, y[1])
    assert torch.equal(last, h[:, 1])
    again, _ = res(x[1], h[:, 1])
    assert torch.equal(again, res(x[1:2], h[:, 1:2])[0][0])


@pytest.mark.parametrize("sorted_lengths", [True, False])
def test_packed(sorted_lengths: bool) -> None:
    res = small(bidirectional=True)
    x, lengths = drawn(6, 4, 2), torch.tensor([6, 5, 5, 1] if sorted_lengths else [2, 6, 5, 5])
    h0 = drawn(2, 4, 19, seed=1)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=sorted_lengths)
    y, h = res(packed, h0)
    assert isinstance(y, PackedSequence)
    assert torch.equal(y.batch_sizes, packed.batch_sizes)
    dense, last = res(x, h0, lengths)
    assert torch.equal(pad_packed_sequence(y)[0], dense)
    assert torch.equal(h, last)


def test_feedback_and_state_are_explicit() -> None:
    res = small()
    x = drawn(5, 3, 2)
    assert torch.equal(res(x)[0], res(x)[0])


def test_sequential() -> None:
    class First(torch.nn.Module):
        def forward(self, result: tuple[Tensor, Tensor]) -> Tensor:
            return result[0]

    model = torch.nn.Sequential(small(), First(), torch.nn.Linear(19, 1).double())
    x = drawn(5, 3, 2).requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    assert not list(small().parameters())


def saved_and_loaded(res: torch.nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(res, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r)), saved_and_loaded]
)
def test_copies(through: Callable[[Reservoir], Reservoir]) -> None:
    res = small(es2n=True, num_layers=2, activation="sigmoid")
    x = drawn(5, 3, 2)
    assert torch.equal(through(res)(x)[0], res(x)[0])


@pytest.mark.parametrize("topology", ["sparse", "independent", "dense", "cycle", "small_world"])
def test_state_dict(topology: str) -> None:
    """Loading brings the whole reservoir over, whatever the other's matrix was like."""
    options: dict[str, Any] = {"topology": topology, "density": 0.05, "activation": "relu"}
    res = Reservoir(2, 40, seed=1, leak=0.7, dtype=torch.float64, **options)
    x = drawn(5, 3, 2)
    file = io.BytesIO()
    torch.save(res.state_dict(), file)
    file.seek(0)
    other = Reservoir(2, 40, density=0.3, dtype=torch.float64)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x)[0], res(x)[0])
    assert torch.equal(other.weight_hh, res.weight_hh)
    rounded = Reservoir(2, 40, dtype=torch.float32)
    rounded.load_state_dict(res.state_dict())
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded(x.float())[0].double(), res(x)[0], rtol=0, atol=1e-5)


def test_state_dict_of_other_sizes() -> None:
    for other, name in ((Reservoir(2, 20), "hidden_size"), (Reservoir(3, 19), "input_size")):
        with pytest.raises((ValueError, RuntimeError), match=rf"{name}|N = |size mismatch"):
            other.load_state_dict(small().state_dict())


def test_seeds() -> None:
    """Drawn numbers depend on the seed alone, and are these on every machine."""
    assert torch.equal(small(seed=4).weight_hh, small(seed=4).weight_hh)
    assert not torch.equal(small(seed=4).weight_hh, small(seed=5).weight_hh)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    res = small(seed=4, spectral_radius=None)
    assert torch.equal(torch.get_rng_state(), before)
    layer = res.layers[0]
    generator = torch.Generator().manual_seed(4)
    w = matrices.sparse(19, 0.2, generator).dense()
    w_ih = torch.rand(19, 2, dtype=torch.float64, generator=generator) * 2 - 1
    assert torch.equal(res.weight_hh, w)
    assert torch.equal(layer.weight_ih[0], w_ih)


@pytest.mark.parametrize("topology", ["sparse", "independent", "small_world", "dense"])
@pytest.mark.parametrize(("N", "density"), [(50, 0.1), (300, 0.01), (300, 0.5)])
def test_spectral_radius(topology: str, N: int, density: float) -> None:
    res = Reservoir(
        1, N, topology=topology, density=density, spectral_radius=1.3, dtype=torch.float64
    )
    found = torch.linalg.eigvals(res.weight_hh).abs().max()
    assert abs(float(found) - 1.3) < 1e-7


def test_spectral_radius_of_a_large_matrix() -> None:
    """A known spectrum: the cycle's is on the circle; with a Gaussian block it is the larger one's.

    20,000 units, where no dense method would do.
    """
    N = 20_000
    ring = matrices.cycle(N).scaled(0.5)
    extra = torch.tensor([0, 1])
    both = matrices.Entries(
        N,
        torch.cat([ring.rows[2:], extra]),
        torch.cat([ring.columns[2:], extra.flip(0)]),
        torch.cat([ring.values[2:], torch.tensor([4.0, 1.0], dtype=torch.float64)]),
    )
    assert abs(spectrum.spectral_radius(both) - 2) < 1e-6  # of [[0, 4], [1, 0]]
    generator = torch.Generator().manual_seed(0)
    drawn_matrix = matrices.sparse(600, 0.01, generator)
    exact = float(torch.linalg.eigvals(drawn_matrix.dense()).abs().max())
    assert abs(spectrum.spectral_radius(drawn_matrix) / exact - 1) < 1e-7


def test_sparse_matrices() -> None:
    for make in (matrices.sparse, matrices.independent):
        for N, density in ((5, 0.4), (100, 0.01), (100, 0.3), (333, 0.9)):
            matrix = make(N, density, torch.Generator().manual_seed(1))
            w = matrix.dense()
            degree = max(1, round(density * N))
            assert ((w != 0).sum(1) == degree).all()
            assert w.abs().max() < 1
    fed = (matrices.sparse(1600, 0.02, torch.Generator().manual_seed(1)).dense() != 0).sum(0)
    assert 28 < fed.double().mean() < 36
    assert fed.max() < 32 * 2.2  # as often read as any other, within chance
    assert fed.min() > 4


def test_structured_matrices() -> None:
    N = 12
    ring = matrices.cycle(N).dense()
    assert torch.equal(ring, torch.eye(N, dtype=torch.float64).roll(1, 0))
    line = matrices.delay_line(N).dense()
    assert torch.equal(line, torch.diag(torch.ones(N - 1, dtype=torch.float64), -1))
    jumps = matrices.cycle_with_jumps(N, jump_size=3, jump_weight=0.25).dense() - ring
    pairs = {(0, 3), (3, 6), (6, 9), (9, 0)}
    expected = torch.zeros(N, N, dtype=torch.float64)
    for a, b in pairs:
        expected[a, b] = expected[b, a] = 0.25
    assert torch.equal(jumps, expected)
    q = matrices.orthogonal_matrix(N, torch.Generator().manual_seed(0))
    torch.testing.assert_close(q @ q.T, torch.eye(N, dtype=torch.float64))
    near = matrices.small_world(N, 0.34, torch.Generator().manual_seed(0), rewiring=0.0)
    distance = (near.rows - near.columns) % N
    assert set(distance.tolist()) == {1, 2, 10, 11}
    rewired = matrices.small_world(400, 0.02, torch.Generator().manual_seed(0), rewiring=0.5)
    far = ((rewired.rows - rewired.columns) % 400 - 200).abs() < 195
    assert 0.4 < far.double().mean() < 0.6


@pytest.mark.parametrize("topology", ["cycle", "delay_line", "cycle_with_jumps", "sparse"])
def test_structure_is_stored_as_strips(topology: str) -> None:
    res = Reservoir(1, 100, topology=topology, spectral_radius=None)
    assert res.layers[0].recurrent.layout == "strips"
    assert res.layers[0].recurrent.columns.dtype == torch.int16
    if topology != "sparse":
        assert res.layers[0].recurrent.strips <= 3


def test_memory_of_a_linear_cycle() -> None:
    """An impulse goes round the ring, a unit a step, losing a tenth at each."""
    res = Reservoir(
        1, 10, topology="cycle", leak=1.0, bias=0.0, activation="identity", dtype=torch.float64
    )
    res.weight_ih.copy_(torch.eye(10, dtype=torch.float64)[:, :1])
    y, _ = res(torch.eye(12, dtype=torch.float64)[:, :1])
    expected = torch.stack([0.9**t * torch.eye(10, dtype=torch.float64)[t % 10] for t in range(12)])
    torch.testing.assert_close(y, expected)


def test_users_matrices() -> None:
    w = drawn(19, 19) * (drawn(19, 19, seed=1) > 1)
    forms: list[Any] = [w, w.numpy(), w.to_sparse(), w.float().double()]
    sparse = pytest.importorskip("scipy.sparse")
    forms += [sparse.csr_matrix(w.numpy()), sparse.coo_array(w.numpy())]
    for form in forms[:3] + forms[4:]:
        res = small(topology=form, spectral_radius=None)
        assert torch.equal(res.weight_hh, w), type(form)
        y, _ = res(drawn(5, 3, 2))
        torch.testing.assert_close(y, reference(res, drawn(5, 3, 2))[0])
    scaled = small(topology=w, spectral_radius=0.5)
    assert abs(float(torch.linalg.eigvals(scaled.weight_hh).abs().max()) - 0.5) < 1e-9


def test_echo_state_index() -> None:
    x = drawn(400, 2)
    assert small(spectral_radius=0.5, leak=1.0).echo_state_index(x, washout=200) < 1e-12
    wild = Reservoir(2, 100, density=0.2, spectral_radius=3.0, leak=1.0, input_scaling=0.01)
    assert wild.echo_state_index(x.float(), washout=200) > 0.1
    assert small().echo_state_index(x) == small().echo_state_index(x)
    assert small(bidirectional=True, num_layers=2).echo_state_index(x.reshape(200, 2, 2), 90) < 1e-3


def test_intrinsic_plasticity() -> None:
    """Activations come near to the wanted distribution, from far off, in every layer."""
    res = Reservoir(
        1, 60, density=0.1, leak=1.0, input_scaling=3.0, bias=1.5, num_layers=2, dtype=torch.float64
    )
    x = torch.rand(1500, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, _ = res(x)
    res.fit_intrinsic_plasticity(x, mean=0.1, std=0.2, learning_rate=2e-3, epochs=2)
    after, _ = res(x)
    for units in (slice(0, 60), slice(60, 120)):
        assert before[..., units].std() > 0.3 or before[..., units].mean() > 0.2
        assert abs(float(after[500:, :, units].mean()) - 0.1) < 0.03
        assert abs(float(after[500:, :, units].std()) - 0.2) < 0.06
    torch.testing.assert_close(after, reference(res, x)[0])


def test_ring() -> None:
    """Each group sees its patch of the ring, and runs as the reservoir that it is."""
    ring = RingReservoirs(12, 4, 2, 17, density=0.3, dtype=torch.float64, seed=5)
    x = drawn(6, 3, 12)
    y, h = ring(x)
    assert y.shape == (6, 3, 68)
    assert h.shape == (4, 1, 3, 17)
    for g in range(4):
        alone = Reservoir(7, 17, density=0.3, dtype=torch.float64, seed=5 + g)
        patch = x[..., [(3 * g - 2 + i) % 12 for i in range(7)]]
        torch.testing.assert_close(y[..., 17 * g : 17 * g + 17], alone(patch)[0])
    first = RingReservoirs(12, 4, 2, 17, density=0.3, dtype=torch.float64, batch_first=True, seed=5)
    assert torch.equal(first(x.transpose(0, 1))[0].transpose(0, 1), y)
    single, last = ring(x[:, 1], h[:, :, 1])
    assert torch.equal(single, ring(x[:, 1:2], h[:, :, 1:2])[0][:, 0])
    assert last.shape == (4, 1, 17)
    same = RingReservoirs(12, 4, 2, 17, density=0.3, shared_weights=True)
    constant, _ = same(torch.ones(5, 12))
    assert torch.equal(constant[:, :17], constant[:, 17:34])


def test_ring_forecast() -> None:
    """The ring's closed loop is stepping it on its own readout."""
    ring = RingReservoirs(6, 3, 1, 9, density=0.3, num_layers=2, dtype=torch.float64)
    weight, bias = drawn(6, 54) / 9, drawn(6, seed=1)
    x = drawn(4, 2, 6, seed=2)
    y, h = ring(x)
    out, last = forecast(ring, weight, bias, h, 5)
    s, state = y[-1], h
    for t in range(5):
        torch.testing.assert_close(out[t], s @ weight.T + bias)
        y, state = ring(out[t : t + 1], state)
        s = y[0]
    torch.testing.assert_close(last, state)
    single, _ = forecast(ring, weight, bias, h[:, :, 1], 5)
    torch.testing.assert_close(single, out[:, 1])


def test_meta() -> None:
    res = small(num_layers=2).to("meta")
    y, h = res(torch.empty(5, 3, 2, dtype=torch.float64, device="meta"))
    assert y.shape == (5, 3, 38)
    assert h.shape == (2, 3, 19)
    assert y.device.type == "meta"


def test_conversion() -> None:
    res = small()
    x = drawn(5, 3, 2)
    single = copy.deepcopy(res).float()
    torch.testing.assert_close(single(x.float())[0].double(), res(x)[0], rtol=0, atol=1e-5)


NILPOTENT = torch.triu(torch.ones(19, 19), 1)
BAD: list[tuple[str, Callable[[], Any]]] = [
    ("input_size", lambda: Reservoir(-1, 5)),
    ("hidden_size", lambda: Reservoir(1, 0)),
    ("hidden_size", lambda: Reservoir(1, 2.5)),  # type: ignore[arg-type]
    ("num_layers", lambda: small(num_layers=0)),
    ("feedback_size", lambda: small(feedback_size=-1)),
    ("spectral_radius", lambda: small(spectral_radius=-0.1)),
    ("spectral_radius", lambda: small(spectral_radius=math.nan)),
    ("spectral_radius.*nilpotent", lambda: small(topology="delay_line")),
    ("spectral_radius.*nilpotent", lambda: small(topology=NILPOTENT)),
    ("spectral_radius.*nilpotent", lambda: small(topology=torch.zeros(19, 19))),
    ("leak", lambda: small(leak=0)),
    ("leak", lambda: small(leak=1.5)),
    ("leak", lambda: small(leak=torch.full((19,), 2.0))),
    ("leak", lambda: small(leak=torch.full((18,), 0.5))),
    ("density", lambda: small(density=0)),
    ("density", lambda: small(density=1.1)),
    ("input_density", lambda: small(input_density=0)),
    ("topology", lambda: small(topology="web")),
    ("topology", lambda: small(topology=torch.ones(3, 4))),
    ("topology", lambda: small(topology=torch.full((19, 19), math.nan))),
    ("activation", lambda: small(activation="softplus")),
    ("bias", lambda: small(bias=-1.0)),
    ("bias", lambda: small(bias=torch.ones(3))),
    ("input_scaling", lambda: small(input_scaling=torch.ones(3))),
    ("input_scaling", lambda: small(input_scaling=math.inf)),
    ("noise", lambda: small(noise=-0.1)),
    ("dtype", lambda: small(dtype=torch.float16)),
    ("x", lambda: small()(drawn(5, 3, 4))),
    ("x", lambda: small()(drawn(5))),
    ("x", lambda: small()(np.zeros((5, 2)))),
    ("x.*dtype", lambda: small()(drawn(5, 3, 2, dtype=torch.float32))),
    ("h0", lambda: small()(drawn(5, 3, 2), drawn(1, 2, 19))),
    ("h0", lambda: small()(drawn(5, 2), drawn(1, 1, 19))),
    ("h0", lambda: small()(drawn(5, 2), drawn(1, 19, dtype=torch.float32))),
    ("lengths", lambda: small()(drawn(5, 3, 2), lengths=[5, 6, 1])),
    ("lengths", lambda: small()(drawn(5, 3, 2), lengths=[5, -1, 1])),
    ("lengths", lambda: small()(drawn(5, 3, 2), lengths=[5, 1])),
    ("lengths", lambda: small()(drawn(5, 3, 2), lengths=torch.ones(3))),
    ("feedback", lambda: small()(drawn(5, 3, 2), feedback=drawn(5, 3, 1))),
    ("feedback", lambda: small(feedback_size=1)(drawn(5, 3, 2))),
    ("feedback", lambda: small(feedback_size=1)(drawn(5, 3, 2), feedback=drawn(4, 3, 1))),
    ("washout", lambda: small().echo_state_index(drawn(5, 2))),
    ("washout", lambda: small(bidirectional=True).echo_state_index(drawn(5, 2), 3)),
    ("trials", lambda: small().echo_state_index(drawn(5, 2), 1, trials=0)),
    ("activation", lambda: small(activation="relu").fit_intrinsic_plasticity(drawn(5, 2))),
    ("std", lambda: small().fit_intrinsic_plasticity(drawn(5, 2), std=0)),
    ("mean", lambda: small().fit_intrinsic_plasticity(drawn(5, 2), mean=2)),
    ("reservoirs", lambda: Population([])),
    ("hidden_size", lambda: Population([small(), Reservoir(2, 18)])),
    ("noise", lambda: Population([small(), small(noise=0.1)])),
    ("x", lambda: Population([small()])(drawn(2, 5, 3, 2))),
    ("h0", lambda: Population([small()])(drawn(5, 3, 2), drawn(1, 3, 19))),
    ("feedback", lambda: Population([small()])(drawn(5, 3, 2), feedback=drawn(5, 3, 2))),
    ("input_size", lambda: RingReservoirs(10, 3, 1, 5)),
    ("overlap", lambda: RingReservoirs(9, 3, 4, 5)),
    ("bidirectional", lambda: RingReservoirs(9, 3, 1, 5, bidirectional=True)),
    ("jump_size", lambda: matrices.cycle_with_jumps(10, jump_size=10)),
    ("rewiring", lambda: matrices.small_world(10, 0.2, torch.Generator(), rewiring=2.0)),
    ("bidirectional", lambda: closed_loop(small(bidirectional=True), 2, 38)),
    ("readout_weight", lambda: closed_loop(small(), 2, 20)),
    ("readout_weight", lambda: closed_loop(small(), 3, 19)),
    ("readout_weight", lambda: closed_loop(small(feedback_size=1), 2, 19)),
    ("drivers", lambda: closed_loop(small(), 1, 19)),
    ("last_input", lambda: closed_loop(small(), 2, 21)),
    ("horizon", lambda: closed_loop(small(), 2, 19, horizon=-1)),
    ("state", lambda: closed_loop(small(num_layers=2), 2, 38)),
    ("gram", lambda: gram(gram=torch.zeros(4, 4, dtype=torch.float64))),
    ("cross", lambda: gram(cross=torch.zeros(5, 1))),
    ("states", lambda: gram(states=torch.zeros(5, 7).T)),
    ("sample_weight", lambda: gram(sample_weight=-torch.ones(7, dtype=torch.float64))),
    ("targets", lambda: gram(targets=torch.zeros(6, 1))),
    ("block_steps", lambda: list(run_blocks(small(), drawn(5, 2), block_steps=0))),
]


def closed_loop(res: Reservoir, O: int, width: int, horizon: int = 3) -> Any:
    slots = 1 + res.bidirectional
    return forecast(res, drawn(O, width), None, drawn(slots, 19), horizon)


def gram(**over: Tensor) -> None:
    given = {
        "states": torch.zeros(7, 5),
        "targets": torch.zeros(7, 1),
        "gram": torch.zeros(5, 5, dtype=torch.float64),
        "cross": torch.zeros(5, 1, dtype=torch.float64),
        "sums": torch.zeros(5, dtype=torch.float64),
    }
    gram_update(**(given | over))


@pytest.mark.parametrize(("name", "call"), BAD, ids=[name for name, _ in BAD])
def test_bad_input(name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=name):
        call()
