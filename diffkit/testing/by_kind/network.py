"""Laws of networks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from diffkit.network import CONCAT, MASK, Network, Shape

from ..case import Case, rebuilt
from ..law_registry import LawResult, NotApplicable, law

LOGARITHMS = (-1.4, 0.1, 0.9)
"""Values of c_noise = log(sigma / alpha) / 4."""
Conditions = Mapping[str, Tensor]
"""Conditions of a network by the names of the arguments of `forward`, one row per example."""


def shape_of(case: Case) -> Shape:
    """Return the shape that the network was built for, which an instance of `law_example` has as an attribute.

    Raises:
        NotApplicable: the shape is not known.
    """
    shape = case.context.get("shape", getattr(case.component, "shape", None))
    if not isinstance(shape, Shape):
        raise NotApplicable("law_example returns a network without the attribute `shape`")
    return shape


def with_random_weights(case: Case) -> Network:
    """Return a copy in evaluation mode with random weights: layers that start at zero would hide others."""
    network: Network = copy.deepcopy(case.component).eval()
    randomise(case, network)
    return network


def randomise(case: Case, network: nn.Module) -> None:
    """Add the same random numbers to the parameters of each instance of a network."""
    source = case.generator("weights")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source).to(parameter))


def arguments(network: nn.Module) -> dict[str, inspect.Parameter]:
    """Return the arguments of `forward` after x and c_noise, by name."""
    found = list(inspect.signature(network.forward).parameters.values())[2:]
    return {p.name: p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def takes_labels(case: Case) -> bool:
    """Return whether the network is built with classes and `forward` takes labels."""
    every = inspect.signature(case.component.forward).parameters.values()
    open_ended = any(p.kind is p.VAR_KEYWORD for p in every)
    return shape_of(case).classes is not None and (open_ended or "label" in arguments(case.component))


def fitting(case: Case, network: Network, name: str, inputs: tuple[Tensor, Tensor, Conditions]) -> Tensor | None:
    """Return random values that the network accepts for one argument; None if it accepts no shape that is tried.

    Args:
        case: the network.
        network: the instance to call.
        name: the argument.
        inputs: x, c_noise and the other conditions.

    Returns:
        (B, ...): the shape of x, one number or one vector per example, or three vectors per example.
    """
    x, c_noise, cond = inputs
    widths = {m.in_features for m in network.modules() if isinstance(m, nn.Linear)}
    shapes = [tuple(x.shape), (len(x),), *((len(x), n) for n in sorted(widths)), *((len(x), 3, n) for n in widths)]
    for shape in shapes[:12]:
        value = case.normal(*shape, stream=name, dtype=torch.float32)
        try:
            with torch.no_grad():
                network(x, c_noise, **{**cond, name: value})
        except Exception:  # noqa: BLE001 - a network may refuse a shape by any error
            continue
        return value
    return None


def inputs_of(case: Case, count: int = 3) -> tuple[Tensor, Tensor, Conditions]:
    """Return x, c_noise and the conditions of its shape: labels, the last of them the null class, texts of several
    lengths, vectors, and channels beside x.

    Raises:
        NotApplicable: `forward` requires a condition whose shape is none of those that laws try.
    """
    shape = shape_of(case)
    x = case.normal(count, shape.in_channels, *shape.size, dtype=torch.float32)
    c_noise = torch.tensor([3.0, 250.0, 700.0, 999.0])[:count]
    cond: dict[str, Tensor] = {}
    if takes_labels(case) and shape.classes is not None:
        cond["label"] = torch.tensor([1, 0, shape.classes, 2])[:count]
    for name, dimensions in shape.conditions.items():
        cond[name] = case.normal(count, *dimensions, stream=name, dtype=torch.float32)
        if name + MASK in arguments(case.component):
            cond[name + MASK] = torch.arange(dimensions[0]) < dimensions[0] - torch.arange(count)[:, None]
    if shape.extra_channels:
        cond[CONCAT] = case.normal(count, shape.extra_channels, *shape.size, stream=CONCAT, dtype=torch.float32)
    for name, argument in arguments(case.component).items():
        if argument.default is argument.empty and name not in cond:
            network = copy.deepcopy(case.component).eval()
            value = fitting(case, network, name, (x, c_noise, cond))
            if value is None:
                raise NotApplicable(f"forward requires `{name}`, and fits no shape that laws try")
            cond[name] = value
    return x, c_noise, cond


def parameters_of(network: Network) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the trainable parameters."""
    return ((name, p) for name, p in network.named_parameters() if p.requires_grad)


def needs_parameters(case: Case) -> None:
    """Raise NotApplicable if nothing is trained."""
    if not any(True for _ in parameters_of(case.component)):
        raise NotApplicable("the network has no parameters")


@law(
    "network",
    statement="x (B, C, *S) gives (B, C', *S), finite, in the dtype of the weights, for every B",
    source="the definition of Network",
    tolerance=0.0,
)
def shapes(case: Case, result: LawResult) -> None:
    """The parameterization decodes an output of this shape."""
    network, shape = with_random_weights(case), shape_of(case)
    for count in (1, 3):
        x, c_noise, cond = inputs_of(case, count)
        kept, kept_noise = x.clone(), c_noise.clone()
        with torch.no_grad():
            y = network(x, c_noise, **cond)
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
    x, c_noise, cond = inputs_of(case)
    with torch.no_grad():
        whole = network(x, c_noise, **cond)
        kept = whole.clone()
        result.compare(network(x, c_noise, **cond), kept, "the same inputs again")
        for i in range(len(x)):
            row = slice(i, i + 1)
            alone = network(x[row], c_noise[row], **{name: value[row] for name, value in cond.items()})
            result.compare(alone, kept[row], f"example {i} alone")
        network(-x, c_noise, **cond)
        result.compare(whole, kept, "the first output, after later calls")


@law(
    "network",
    statement="in training mode too the output of an example depends on its own inputs only",
    source="Ho et al. 2020 (arXiv:2006.11239), app. B",
    tolerance=1e-6,
)
def alone_in_training(case: Case, result: LawResult) -> None:
    """Examples of a batch have different levels, so statistics of the batch are those of no level."""
    network = with_random_weights(case).train()
    x, c_noise, cond = inputs_of(case)
    z = x.clone().requires_grad_()
    y = network(z, c_noise, **cond)
    if not y.requires_grad:
        raise NotApplicable("the output has no gradient")
    for i in range(len(x)):
        (slope,) = torch.autograd.grad(y[i].square().sum(), z, retain_graph=True)
        own = float(slope[i].abs().max())
        others = float(torch.cat([slope[:i], slope[i + 1 :]]).abs().max())
        result.note(
            others / max(own, 1e-12), f"the output of example {i} by another example: gradient {others:.3g}", "0"
        )


@law(
    "network",
    statement="the gradient of the output reaches every parameter",
    source="the definition of training",
    tolerance=0.0,
)
def gradients(case: Case, result: LawResult) -> None:
    """A layer without gradient is not connected. Weights are moved away from zero first, as many layers start there."""
    needs_parameters(case)
    network = with_random_weights(case).train()
    x, c_noise, cond = inputs_of(case)
    y = network(x, c_noise, **cond)
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
    x, c_noise, cond = inputs_of(case)
    with torch.no_grad():
        y = network(x, c_noise, **cond)
        steps = (1.0,) if getattr(network, "integer_time", False) else (1.0, 0.5, -0.25)
        for step in steps:
            moved = network(x, c_noise - step, **cond)
            for i in range(len(x)):
                gap = float((moved[i] - y[i]).abs().max())
                result.holds(gap > 0, f"c_noise {c_noise[i]:.0f} less {step}: no change", "another output")


@law(
    "network",
    statement="labels 0..K give K + 1 different outputs; no label means the null class K and not a class of the data",
    source="Ho & Salimans 2022 (arXiv:2207.12598); the definition of Shape",
    tolerance=0.0,
)
def label_used(case: Case, result: LawResult) -> None:
    """Classifier-free guidance compares a label with the null class, or with no label."""
    classes = shape_of(case).classes
    if classes is None or not takes_labels(case):
        raise NotApplicable("the network takes no labels")
    network = with_random_weights(case)
    x, c_noise, cond = inputs_of(case, 1)
    with torch.no_grad():
        outputs = [network(x, c_noise, **{**cond, "label": torch.tensor([k])}) for k in range(classes + 1)]
    for k in range(1, classes + 1):
        for j in range(k):
            result.holds(not torch.equal(outputs[k], outputs[j]), f"labels {k} and {j} give one output", "two outputs")
    label = arguments(network).get("label")
    if label is not None and label.default is None:
        with torch.no_grad():
            plain = network(x, c_noise, **{name: value for name, value in cond.items() if name != "label"})
        same = [k for k in range(classes) if torch.equal(plain, outputs[k])]
        result.holds(not same, f"no label gives the output of class {same[:1]}", f"that of the null class {classes}")


@law(
    "network",
    statement="the network works with float64 and bfloat16 weights; outputs differ by rounding only",
    source="design.md, numerics",
    tolerance=0.15,
)
def types(case: Case, result: LawResult) -> None:
    """The network runs in the dtype of its weights; c_noise stays float32, an index or log(sigma / alpha) / 4.

    A network that is made for one of both may lose digits on the other, so the smaller error counts.
    """
    network = with_random_weights(case)
    x, c_noise, cond = inputs_of(case)
    wide, half = copy.deepcopy(network).double(), copy.deepcopy(network).bfloat16()
    gaps = []
    with torch.no_grad():
        for numbers in (c_noise, torch.tensor(LOGARITHMS)):
            y = network(x, numbers, **cond)
            size = float(y.abs().max()) or 1.0
            double = wide(x.double(), numbers, **_cast(cond, torch.float64))
            result.holds(double.dtype == torch.float64, f"float64 weights give {double.dtype}", "torch.float64")
            gaps.append([100.0 * float((double - y).abs().max()) / size])
            if any(True for _ in network.parameters()):
                low = half(x.bfloat16(), numbers, **_cast(cond, torch.bfloat16))
                result.holds(low.dtype == torch.bfloat16, f"bfloat16 weights give {low.dtype}", "torch.bfloat16")
                gaps[-1].append(float((low.float() - y).abs().mean()) / size)
    texts = ("float64 and float32 differ by more than 0.15 %", "bfloat16 and float32, mean difference")
    for error, text in zip(min(gaps, key=max), texts, strict=False):
        result.note(error, text)


def _cast(cond: Conditions, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in cond.items()}


@law(
    "network",
    statement="channels_last memory gives the same output",
    source="design.md, performance",
    tolerance=1e-4,
)
def channels_last(case: Case, result: LawResult) -> None:
    """The order of memory does not change the numbers."""
    network = with_random_weights(case)
    x, c_noise, cond = inputs_of(case)
    if x.ndim != 4:
        raise NotApplicable("the input is not images")
    with torch.no_grad():
        y = network(x, c_noise, **cond)
        turned = copy.deepcopy(network)
        for tensor in (*turned.parameters(), *turned.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        got = turned(x.contiguous(memory_format=torch.channels_last), c_noise, **cond)
    result.compare(got, y, "channels_last")


@law(
    "network",
    statement="parameters and buffers are the whole state: another instance that loads them has the same output",
    source="tests/pains.md, 6",
    tolerance=0.0,
)
def state(case: Case, result: LawResult) -> None:
    """Checkpoints contain parameters and buffers only."""
    needs_parameters(case)
    network = with_random_weights(case)
    built = copy.deepcopy(case.component) if "example" in case.options else rebuilt(replace(case, seed=case.seed + 1))
    other = built.eval()
    other.load_state_dict({name: value.clone() for name, value in network.state_dict().items()})
    x, c_noise, cond = inputs_of(case)
    with torch.no_grad():
        result.compare(other(x, c_noise, **cond), network(x, c_noise, **cond), "after load_state_dict")
