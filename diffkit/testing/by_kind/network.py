"""Laws of networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from diffkit.network import Network, Shape

from ..case import Case
from ..law_registry import LawResult, NotApplicable, law


def shape_of(case: Case) -> Shape:
    """Return the shape that the network was built for."""
    shape: Shape = case.context["shape"]
    return shape


def with_random_weights(case: Case) -> Network:
    """Return a copy in evaluation mode with random weights: layers that start at zero would hide others."""
    network: Network = copy.deepcopy(case.component).eval()
    source = case.generator("weights")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source).to(parameter))
    return network


def _inputs(case: Case, count: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return x, c_noise and, if the network has classes, labels; the last label is the null class."""
    shape = shape_of(case)
    x = case.normal(count, shape.in_channels, *shape.size, dtype=dtype)
    c_noise = torch.tensor([3.0, 250.0, 700.0, 999.0])[:count]
    label = None if shape.classes is None else torch.tensor([1, 0, shape.classes, 2])[:count]
    return x, c_noise, label


def _call(network: Network, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
    """Return the output; the label is passed if it is not None."""
    y: Tensor = network(x, c_noise) if label is None else network(x, c_noise, label=label)
    return y


def parameters_of(network: Network) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the trainable parameters."""
    return ((name, p) for name, p in network.named_parameters() if p.requires_grad)


def _needs_parameters(case: Case) -> None:
    if not any(True for _ in parameters_of(case.component)):
        raise NotApplicable("the network has no parameters")


@law(
    "network",
    statement="x (B, C, *S) gives (B, C', *S), finite, of the type of the weights, for every B",
    source="the definition of Network",
    tolerance=0.0,
)
def shapes(case: Case, result: LawResult) -> None:
    """The parameterization decodes an output of this shape."""
    network, shape = with_random_weights(case), shape_of(case)
    for count in (1, 3):
        x, c_noise, label = _inputs(case, count)
        kept, kept_noise = x.clone(), c_noise.clone()
        with torch.no_grad():
            y = _call(network, x, c_noise, label)
        want = (count, shape.out_channels, *shape.size)
        result.holds(tuple(y.shape) == want, f"B = {count}: {tuple(y.shape)}", f"{want}")
        result.holds(y.dtype == torch.float32, f"B = {count}: {y.dtype}", "torch.float32")
        result.holds(bool(torch.isfinite(y).all()), f"B = {count}: values that are not finite", "finite")
        result.compare(x, kept, "x afterwards")
        result.compare(c_noise, kept_noise, "c_noise afterwards")


@law(
    "network",
    statement="in evaluation mode the output of an example depends on its own inputs only",
    source="tests/pains.md, 16",
    tolerance=1e-4,
)
def each_alone(case: Case, result: LawResult) -> None:
    """A network in evaluation mode has no batch statistics, no dropout and no hidden state."""
    network = with_random_weights(case)
    x, c_noise, label = _inputs(case)
    with torch.no_grad():
        whole = _call(network, x, c_noise, label)
        kept = whole.clone()
        result.compare(_call(network, x, c_noise, label), kept, "the same inputs again")
        for i in range(len(x)):
            row = slice(i, i + 1)
            alone = _call(network, x[row], c_noise[row], None if label is None else label[row])
            result.compare(alone, kept[row], f"example {i} alone")
        _call(network, -x, c_noise, label)
        result.compare(whole, kept, "the first output, after later calls")


@law(
    "network",
    statement="the gradient of the output reaches every parameter",
    source="the definition of training",
    tolerance=0.0,
)
def gradients(case: Case, result: LawResult) -> None:
    """A layer without gradient is not connected. Weights are moved away from zero first, as many layers start there."""
    _needs_parameters(case)
    network = with_random_weights(case).train()
    x, c_noise, label = _inputs(case)
    y = _call(network, x, c_noise, label)
    target = case.normal(*y.shape, stream="target", dtype=torch.float32)
    torch.autograd.backward((y * target).sum())
    for name, parameter in parameters_of(network):
        reached = parameter.grad is not None and bool((parameter.grad != 0).any())
        result.holds(reached, f"{name} {tuple(parameter.shape)} gets no gradient", "one")
        if parameter.grad is not None:
            result.holds(bool(torch.isfinite(parameter.grad).all()), f"{name}: gradient not finite", "finite")


@law(
    "network",
    statement="the output depends on the noise level, and on fractions of c_noise unless integer_time is set",
    source="the definition of Network",
    tolerance=0.0,
)
def level_used(case: Case, result: LawResult) -> None:
    """One network serves all levels, so it must distinguish them."""
    network = with_random_weights(case)
    x, c_noise, label = _inputs(case)
    with torch.no_grad():
        y = _call(network, x, c_noise, label)
        steps = (1.0,) if network.integer_time else (1.0, 0.5)
        for step in steps:
            moved = _call(network, x, c_noise - step, label)
            for i in range(len(x)):
                gap = float((moved[i] - y[i]).abs().max())
                result.holds(gap > 0, f"c_noise {c_noise[i]:.0f} less {step}: no change", "another output")


@law(
    "network",
    statement="the output depends on the label; the null class is one more label",
    source="Ho & Salimans 2022 (arXiv:2207.12598)",
    tolerance=0.0,
)
def label_used(case: Case, result: LawResult) -> None:
    """Classifier-free guidance compares a label with the null class."""
    classes = shape_of(case).classes
    if classes is None:
        raise NotApplicable("the network takes no labels")
    network = with_random_weights(case)
    x, c_noise, _ = _inputs(case, 1)
    with torch.no_grad():
        outputs = [_call(network, x, c_noise, torch.tensor([k])) for k in range(classes + 1)]
    for k in range(1, classes + 1):
        gap = float((outputs[k] - outputs[0]).abs().max())
        result.holds(gap > 0, f"label {k} gives the output of label 0", "another output")


@law(
    "network",
    statement="the network works with float64 and bfloat16 weights; outputs differ by rounding only",
    source="design.md, numerics",
    tolerance=0.15,
)
def types(case: Case, result: LawResult) -> None:
    """The network runs in the type of its weights; c_noise stays float32."""
    network = with_random_weights(case)
    x, c_noise, label = _inputs(case)
    with torch.no_grad():
        y = _call(network, x, c_noise, label)
        size = float(y.abs().max()) or 1.0
        wide = _call(copy.deepcopy(network).double(), x.double(), c_noise, label)
        result.holds(wide.dtype == torch.float64, f"float64 weights give {wide.dtype}", "torch.float64")
        result.note(100.0 * float((wide - y).abs().max()) / size, "float64 and float32 differ by more than 0.15 %")
        if any(True for _ in network.parameters()):
            half = _call(copy.deepcopy(network).bfloat16(), x.bfloat16(), c_noise, label)
            result.holds(half.dtype == torch.bfloat16, f"bfloat16 weights give {half.dtype}", "torch.bfloat16")
            result.note(float((half.float() - y).abs().mean()) / size, "bfloat16 and float32, mean difference")


@law(
    "network",
    statement="channels_last memory gives the same output",
    source="design.md, performance",
    tolerance=1e-4,
)
def channels_last(case: Case, result: LawResult) -> None:
    """The order of memory does not change the numbers."""
    network = with_random_weights(case)
    x, c_noise, label = _inputs(case)
    if x.ndim != 4:
        raise NotApplicable("the input is not images")
    with torch.no_grad():
        y = _call(network, x, c_noise, label)
        turned = copy.deepcopy(network)
        for tensor in (*turned.parameters(), *turned.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        got = _call(turned, x.contiguous(memory_format=torch.channels_last), c_noise, label)
    result.compare(got, y, "channels_last")


@law(
    "network",
    statement="parameters and buffers are the whole state: another instance that loads them has the same output",
    source="tests/pains.md, 6",
    tolerance=0.0,
)
def state(case: Case, result: LawResult) -> None:
    """Checkpoints contain parameters and buffers only."""
    _needs_parameters(case)
    network, other = with_random_weights(case), copy.deepcopy(case.component).eval()
    other.load_state_dict({name: value.clone() for name, value in network.state_dict().items()})
    x, c_noise, label = _inputs(case)
    with torch.no_grad():
        result.compare(_call(other, x, c_noise, label), _call(network, x, c_noise, label), "after load_state_dict")
