"""CUDA graphs of frozen networks: launching their hundreds of kernels one by one takes a GPU's host longer than
running them takes the GPU, and a graph launches all at once.

A function is captured once for every shape and dtype of its inputs, then replayed on copies of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Function = Callable[..., Tensor]

GRAPHS = 8
"""Graphs that a function keeps, of the shapes that it was called with last."""

WARM_UP = 3
"""Calls before the capture, in which libraries make their handles, workspaces and choices; as many as in torch's own
`make_graphed_callables`."""


def graphed(function: Function, network: nn.Module) -> Function:
    """`function` as `Graphed` if the `network` that it runs is frozen, else as it is."""
    return function if any(p.requires_grad for p in network.parameters()) else Graphed(function)


class Graphed:
    """A function of tensors, run as CUDA graphs on a GPU and as it is elsewhere.

    function: takes tensors and Nones and returns one tensor; only its first argument may need a gradient. Whatever else
    it reads, such as weights, must keep its place in memory. It must not wait for the device, draw random numbers or do
    anything that depends on values of its inputs.

    The result is the caller's own. The backward pass runs the function again from its inputs: no activation has to
    survive from one replay to the next, so calls and backward passes may follow each other in any order. They must not
    run at the same time, on several streams. Graphs hold the memory of what happens in them as long as they live.
    """

    def __init__(self, function: Function):
        self._function = function
        self._forward = _Recordings(function)
        self._backward = _Recordings(partial(_vector_jacobian_product, function))

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        first = inputs[0]
        assert first is not None
        if first.device.type not in RECORDERS:
            return self._function(*inputs)
        if torch.is_grad_enabled() and first.requires_grad:
            result: Tensor = _Recomputed.apply(self._forward, self._backward, *inputs)  # type: ignore[no-untyped-call]
            return result
        return self._forward.of(*inputs)(*inputs)


@dataclass(frozen=True)
class Recording:
    """What a function did with `inputs`: `replay` does it again and leaves the result in `output`."""

    inputs: Sequence[Tensor | None]
    output: Tensor
    replay: Callable[[], Any]
    pool: Any
    """Where the memory of `output` and of what was in between comes from."""

    @torch.no_grad()
    def __call__(self, *inputs: Tensor | None) -> Tensor:
        for buffer, value in zip(self.inputs, inputs, strict=True):
            if buffer is not None and value is not None:
                buffer.copy_(value)
        self.replay()
        return self.output.clone()


def record_cuda(function: Function, inputs: Sequence[Tensor | None], pool: Any) -> Recording:
    """A CUDA graph of function(*inputs), whose memory comes from `pool`, or from a new pool if None."""
    device = next(value.device for value in inputs if value is not None)
    with torch.cuda.device(device):
        now, aside = torch.cuda.current_stream(), _side_stream(device)
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                function(*inputs)
        now.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=aside):
            output = function(*inputs)
    return Recording(inputs, output, graph.replay, graph.pool())


RECORDERS: dict[str, Callable[[Function, Sequence[Tensor | None], Any], Recording]] = {"cuda": record_cuda}
"""How calls are recorded, by type of device."""


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: libraries keep a workspace for every stream, and memory pools keep blocks for each."""
    return torch.cuda.Stream(device)


class _Recordings:
    """The latest recordings of a function, one for each shape, dtype and device of its inputs, in one memory pool.

    They may share it, since each result is copied before the next replay and nothing else outlives a replay.
    """

    def __init__(self, function: Function):
        self._function = function
        self._latest: dict[tuple[Any, ...], Recording] = {}

    @torch.no_grad()
    def of(self, *inputs: Tensor | None) -> Recording:
        """A recording for inputs like these."""
        signature = tuple(None if value is None else (value.shape, value.dtype, value.device) for value in inputs)
        recording = self._latest.pop(signature, None)
        if recording is None:
            buffers = [None if value is None else value.detach().clone() for value in inputs]
            pool = next((other.pool for other in self._latest.values()), None)
            recording = RECORDERS[inputs[0].device.type](self._function, buffers, pool)  # type: ignore[union-attr]
        self._latest[signature] = recording  # the last is the latest
        if len(self._latest) > GRAPHS:
            del self._latest[next(iter(self._latest))]
        return recording


class _Recomputed(torch.autograd.Function):
    """Forward and backward pass as one recording each."""

    @staticmethod
    def forward(ctx: Any, forward: _Recordings, backward: _Recordings, *inputs: Tensor | None) -> Tensor:
        output = forward.of(*inputs)(*inputs)
        ctx.save_for_backward(*inputs)
        ctx.backward_recording = backward.of(output, *inputs)  # here: the backward pass has a thread of its own
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        inputs = ctx.saved_tensors
        return None, None, ctx.backward_recording(gradient, *inputs), *(None for _ in inputs[1:])


def _vector_jacobian_product(function: Function, gradient: Tensor, first: Tensor, *rest: Tensor | None) -> Tensor:
    """The gradient of <gradient, function(first, *rest)> with respect to `first`."""
    with torch.enable_grad():
        first = first.detach().requires_grad_()
        return torch.autograd.grad(function(first, *rest), first, gradient)[0]
