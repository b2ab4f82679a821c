"""Captured graphs: the bookkeeping, and (recorded on the CPU) that a replay computes what the call did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duplex.errors import AgentFullError, ConfigError
from duplex.thinker_talker.native.device.graph_recorder import RecordedGraphs
from duplex.thinker_talker.native.device.graphs import GraphError, GraphRunner, backend_for
from duplex.thinker_talker.native.device.placement import Move, Placement, batch_sizes, smallest_that_fits


class Notebook:
    """A backend that writes down what it was asked, and replays by calling."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def warm_up(self, call: Callable[[], None]) -> None:
        self.asked.append("warm up")
        call()

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        self.asked.append("capture")

        def replay() -> None:
            self.asked.append("replay")
            call()

        return replay


class Adder:
    """``total += given`` over the first n of four rows."""

    def __init__(self) -> None:
        self.given = torch.zeros(4, 2)
        self.total = torch.zeros(4, 2)
        self.sizes_called: list[int] = []

    def __call__(self, n: int) -> None:
        self.sizes_called.append(n)
        self.total[:n].add_(self.given[:n])

    def buffers(self) -> dict[str, torch.Tensor]:
        return {"given": self.given, "total": self.total}


def test_every_size_is_warmed_up_and_captured_the_largest_first() -> None:
    adder, backend = Adder(), Notebook()
    runner = GraphRunner("adder", adder, sizes=(1, 4, 2), buffers=adder.buffers, backend=backend)
    runner.warm_up_and_capture()
    assert adder.sizes_called == [4, 2, 1]
    assert backend.asked == ["warm up", "capture"] * 3
    assert runner.captured == (1, 2, 4)


def test_a_replay_runs_at_its_size_and_others_are_refused() -> None:
    adder, backend = Adder(), Notebook()
    runner = GraphRunner("adder", adder, sizes=(1, 2, 4), buffers=adder.buffers, backend=backend)
    runner.warm_up_and_capture()
    adder.given.fill_(1.0)
    runner.run(2)
    assert adder.total.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    with pytest.raises(GraphError, match=r"\(1, 2, 4\), not 3"):
        runner.run(3)


def test_without_a_backend_the_function_is_called() -> None:
    adder = Adder()
    runner = GraphRunner("adder", adder, sizes=(2, 4), buffers=adder.buffers)
    runner.warm_up_and_capture()
    adder.given.fill_(1.0)
    runner.run(2)
    assert runner.captured == ()
    assert adder.sizes_called == [4, 2, 2]
    assert backend_for(torch.device("cpu"), graphs=True) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: setattr(a, "given", a.given.clone()), "'given' has address"),
        (lambda a: setattr(a, "given", torch.zeros(5, 2)), r"'given' has shape \(5, 2\), captured with \(4, 2\)"),
        (lambda a: setattr(a, "total", a.total.double()), "'total' has dtype torch.float64, captured with"),
        (lambda a: setattr(a, "total", a.total.t().contiguous().t()), "'total' has stride"),
        (lambda a: setattr(a, "total", a.total.to("meta")), "'total' has device meta, captured with cpu"),
    ],
)
def test_a_buffer_that_is_no_longer_the_captured_one_is_named(change: Callable[[Adder], None], said: str) -> None:
    adder = Adder()
    runner = GraphRunner("adder", adder, sizes=(4,), buffers=adder.buffers, backend=RecordedGraphs())
    runner.warm_up_and_capture()
    runner.verify()
    adder.given.fill_(3.0)  # filled in place: fine
    runner.verify()
    change(adder)
    with pytest.raises(GraphError, match=said):
        runner.verify()


def test_a_buffer_that_is_gone_is_named() -> None:
    adder = Adder()
    buffers = adder.buffers()
    runner = GraphRunner("adder", adder, sizes=(4,), buffers=lambda: buffers, backend=RecordedGraphs())
    runner.warm_up_and_capture()
    del buffers["total"]
    with pytest.raises(GraphError, match=r"gone: \['total'\]"):
        runner.verify()


@pytest.mark.parametrize(
    "function",
    [
        lambda n: torch.arange(n).sum().item(),
        lambda n: (torch.arange(n) > 0).nonzero(),
        lambda n: torch.arange(n)[torch.arange(n) > 0],
        lambda n: bool((torch.arange(n) > 0).any()),
        lambda n: torch.arange(n) + torch.tensor([3]),
    ],
    ids=["item", "nonzero", "mask index", "branch", "from a list"],
)
def test_what_asks_the_host_cannot_be_captured(function: Callable[[int], None]) -> None:
    runner = GraphRunner("asker", function, sizes=(2,), buffers=dict, backend=RecordedGraphs())
    with pytest.raises(GraphError, match="asker cannot be captured at batch size 2"):
        runner.warm_up_and_capture()


def test_out_of_memory_at_a_capture_is_not_taken_for_a_synchronisation() -> None:
    class Full(Notebook):
        def capture(self, call: Callable[[], None]) -> Callable[[], None]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    runner = GraphRunner("adder", lambda n: None, sizes=(2,), buffers=dict, backend=Full())
    with pytest.raises(torch.OutOfMemoryError):
        runner.warm_up_and_capture()


def test_a_recorded_graph_computes_from_what_the_buffers_hold_now() -> None:
    weight, given, out = torch.randn(8, 8), torch.zeros(3, 8), torch.zeros(3, 8)

    def layer(n: int) -> None:
        hidden = torch.nn.functional.silu(given[:n] @ weight).reshape(n, 2, 4).transpose(1, 2).reshape(n, 8)
        hidden[:, :4] *= 2.0
        out[:n].copy_(torch.where(hidden > 0, hidden, hidden.exp()))

    runner = GraphRunner("layer", layer, sizes=(1, 3), buffers=lambda: {"given": given}, backend=RecordedGraphs())
    runner.warm_up_and_capture()
    for n in (1, 3, 3):
        given.normal_()
        runner.run(n)
        replayed = out.clone()
        layer(n)
        assert torch.equal(replayed[:n], out[:n])


def test_a_leave_moves_the_last_row_into_the_hole() -> None:
    placement = Placement(3)
    a, b, c = placement.join(), placement.join(), placement.join()
    with pytest.raises(AgentFullError, match="All 3 slots"):
        placement.join()
    assert placement.leave(a) == Move(source=2, target=0)
    assert placement.keys == (c, b)
    assert placement.leave(b) is None
    assert (placement.row(c), placement.key(0), a in placement) == (0, c, False)
    assert placement.join() not in (a, b, c)


@given(st.lists(st.integers(0, 7)))
def test_rows_stay_a_prefix_and_moves_keep_each_slot_its_contents(choices: list[int]) -> None:
    placement, rows, owners = Placement(5), [0] * 5, set[int]()
    for choice in choices:
        if choice < 4 and len(placement) < 5:
            key = placement.join()
            rows[placement.row(key)] = key
            owners.add(key)
        elif owners:
            key = sorted(owners)[choice % len(owners)]
            owners.remove(key)
            if (move := placement.leave(key)) is not None:
                rows[move.target] = rows[move.source]
        assert sorted(placement.keys) == sorted(owners)
        assert [placement.row(key) for key in placement.keys] == list(range(len(owners)))
        assert all(rows[placement.row(key)] == key for key in owners)


def test_batch_sizes_double_up_to_the_slots_there_are() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(6) == (1, 2, 4, 6)
    assert batch_sizes(64) == (1, 2, 4, 8, 16, 32, 64)
    assert [smallest_that_fits((1, 2, 4, 6), n) for n in range(7)] == [1, 1, 2, 4, 4, 6, 6]
    with pytest.raises(ValueError, match="7 rows do not fit"):
        smallest_that_fits((1, 2, 4, 6), 7)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        GraphRunner("none", lambda n: None, sizes=(0, 2), buffers=dict)
