"""Laws of the paths through networks: around their blocks, and from places and levels that must stay distinct."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffkit.network import Network

from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from .network import Conditions, inputs_of, shape_of, with_random_weights
from .network_structure import LAYERS, equal_rows, layer_inputs, reads_x, twin

START = 1e-4
"""A layer whose weights are smaller when the network is made is one that starts at 0."""
PERIODS = (1.0, 10.0, 50.0, 64.0, 100.0, 128.0, 200.0, 250.0, 256.0, 360.0, 400.0, 500.0, 512.0)
BASES = (3.0, 222.0, 487.0)
"""Values of c_noise that are compared with those one period later."""


@law(
    "network",
    statement="x passes around a layer that starts at 0, and around each layer of a block if it passes around some",
    source="He et al. 2016 (arXiv:1603.05027), eq. 1; Peebles & Xie 2023 (arXiv:2212.09748), sec. 3.2",
    tolerance=0.0,
)
def residual(case: Case, result: LawResult) -> None:
    """A block adds to its input, so it can be 0. If one line replaces the input, nothing of x is left behind it.

    Layers with weights near 0 in a new network are set to 0 together: each later layer must still read x. In blocks
    that repeat, one layer at a time is set to 0: if the output then depends on x for one layer and not for another, a
    part of the block has lost the path around it. Layers whose calls alternate are parts of one block.
    """
    network, inputs = with_random_weights(case), twin(case, with_texts=True)
    calls, _ = layer_inputs(network, *inputs)
    usual = reads_x(calls)
    first = [n for n, m in case.component.named_modules() if isinstance(m, LAYERS) and m.weight.abs().max() < START]
    with _without(network, first):
        lost = sorted(usual - reads_x(layer_inputs(network, *inputs)[0]))
    result.holds(not lost, f"with the layers that start at 0 at 0, {lost[:1]} does not read x", "x + the block")
    blocks: list[dict[bool, str]] = []
    end = -1
    for begin, again, name in _repeated(network, [name for name in calls if name in usual]):
        if begin > end:
            blocks.append({})
        end = max(end, again)
        with _without(network, [name]), torch.no_grad():
            y = network(*inputs[:2], **inputs[2])
        blocks[-1][equal_rows(y)] = name
    if not first and all(False not in found for found in blocks):
        raise NotApplicable(
            "no layer has a residual path around it; if the blocks should be residual, the path is missing"
        )
    for found in blocks:
        result.holds(len(found) == 1, f"x does not pass around {found.get(True)}, as it does around others", "x + ...")


@contextmanager
def _without(network: Network, names: Iterable[str]) -> Iterator[None]:
    """Set the parameters of some modules to 0."""
    kept = [(p, p.data) for name in names for p in network.get_submodule(name).parameters()]
    for parameter, value in kept:
        parameter.data = torch.zeros_like(value)
    try:
        yield
    finally:
        for parameter, value in kept:
            parameter.data = value


def _repeated(network: Network, names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return groups of layers whose names differ in numbers only, with weights of one shape.

    Args:
        network: the network.
        names: layers that read x, in the order of their calls.

    Returns:
        The places of the first and second call of each group and the name of the first, sorted.
    """
    groups: dict[tuple[str, torch.Size], list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        module = network.get_submodule(name)
        if isinstance(module, (*LAYERS, nn.MultiheadAttention)):
            weight = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight
            groups[re.sub(r"\d+", "*", name), weight.shape].append(place)
    return sorted((found[0], found[1], names[found[0]]) for found in groups.values() if len(found) > 1)


@law(
    "network",
    statement="two parts of an image cannot be exchanged: places that read each other are distinguished",
    source="Dosovitskiy et al. 2021 (arXiv:2010.11929), sec. 3.1",
    tolerance=0.0,
)
def positions(case: Case, result: LawResult) -> None:
    """If two patches have one position embedding, exchanging them in x exchanges them in the output, and no more."""
    shape = shape_of(case)
    if len(shape.size) != 2:
        raise NotApplicable("the data are not images")
    network = with_random_weights(case)
    x, c_noise, cond = inputs_of(case, 1)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(network(x, c_noise, **cond)[..., 0, 0].sum(), x)
    if not bool(slope[..., -1, -1].any()) and not bool(slope[..., 0, -1].any()):
        raise NotApplicable("the receptive field is smaller than the image")
    moves = list(_exchanges(*shape.size))
    many = {name: v.expand(len(moves) + 1, *v.shape[1:]) for name, v in cond.items()}
    x = x.detach()
    moved = torch.cat([x, *(x.flatten(2)[..., order].view_as(x) for _, order in moves)])
    with torch.no_grad():
        y, *others = network(moved, c_noise.expand(len(moved)), **many).split(1)
    for (text, order), other in zip(moves, others, strict=True):
        want = y.flatten(2)[..., order].view_as(y)
        gap = float((other - want).norm() / (want - y).norm().clamp(min=1e-30))
        result.holds(gap > 1e-4, f"{text} can be exchanged", "two positions")


def _exchanges(height: int, width: int) -> Iterator[tuple[str, Tensor]]:
    """Yield exchanges of two patches, rows or columns, as the order of the pixels afterwards.

    One is in a corner or beside it, the other is one of those that may have its position.
    """
    pixels = torch.arange(height * width).view(height, width)
    for side in (side for side in (1, 2, 4) if height % side == width % side == 0):
        rows, columns = height // side, width // side
        patches = [(i, j) for i in range(rows) for j in range(columns) if side > 1 or i == 0 or j == 0]
        pairs = [("patches", a, b) for a in ((0, 0), (0, 1)) for b in patches if b > a]
        pairs += [("rows of patches", (a, -1), (b, -1)) for a in (0, 1) for b in range(a + 1, rows)]
        pairs += [("columns of patches", (-1, a), (-1, b)) for a in (0, 1) for b in range(a + 1, columns)]
        for what, a, b in pairs:
            order = pixels.clone()
            one, other = (tuple(slice(None) if k < 0 else slice(k * side, (k + 1) * side) for k in p) for p in (a, b))
            order[one], order[other] = pixels[other], pixels[one]
            yield f"{what} {a} and {b} of {side} x {side} pixels", order.flatten()


@law(
    "network",
    statement="levels far apart give different outputs: c_noise has no period and is not saturated",
    source="Ho et al. 2020 (arXiv:2006.11239), appendix B",
    tolerance=0.0,
)
def distinct_levels(case: Case, result: LawResult) -> None:
    """A network cannot distinguish two levels with one embedding. Two levels one period apart must have different
    outputs.

    The periods are usual ones of embeddings, and those at which the input of the first layer that reads the level
    alone recurs. A difference counts if it is not far smaller than that of two usual levels.
    """
    network = with_random_weights(case)
    x, _, cond = inputs_of(case, 1)
    fraction = 0.0 if getattr(network, "integer_time", False) else 0.13
    periods = (*PERIODS, *_periods(network, x, cond))
    values = [(41.0 + fraction) * i for i in range(12)]
    for base in BASES:
        values += [base, *(base + period for period in periods)]
    many = {name: v.expand(len(values), *v.shape[1:]) for name, v in cond.items()}
    with torch.no_grad():
        y = network(x.expand(len(values), *x.shape[1:]), torch.tensor(values), **many).flatten(1)
    usual = float((y[:11] - y[1:12]).norm(dim=1).median())
    result.holds(usual > 0, "the outputs at 12 levels are equal", "12 outputs")
    gaps = torch.stack([(rows[1:] - rows[:1]).norm(dim=1) for rows in y[12:].chunk(3)]).amax(0)
    for period, gap in zip(periods, gaps.tolist(), strict=True):
        floor = 1e-3 * usual * min(1.0, period / 41.0)
        result.holds(gap > floor, f"c_noise and c_noise + {period:g} give one output", "two outputs")


class _Embedded(Exception):  # noqa: N818 - it ends a forward pass that is no longer needed
    """Carries the input of a layer."""


def _periods(network: Network, x: Tensor, cond: Conditions) -> list[float]:
    """Return the shifts of c_noise after which the input of the first layer that reads the level alone recurs."""

    def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].ndim == 2 and args[0].shape[1] > 1:
            raise _Embedded(args[0])

    def embedded(values: Tensor) -> Tensor:
        many = {name: v.expand(len(values), *v.shape[1:]) for name, v in cond.items()}
        try:
            network(x.expand(len(values), *x.shape[1:]), values, **many)
        except _Embedded as found:
            inputs: Tensor = found.args[0]
            return inputs.double()
        return torch.zeros(len(values), 0)

    def apart(shifts: Tensor) -> Tensor:
        starts = torch.tensor(BASES)
        rows = embedded(torch.cat([starts[:, None], starts[:, None] + shifts], 1).flatten())
        rows = rows.view(len(starts), 1 + len(shifts), -1)
        gaps: Tensor = (rows[:, 1:] - rows[:, :1]).norm(dim=2).amax(0)
        return gaps

    handles = [m.register_forward_pre_hook(record) for m in network.modules() if isinstance(m, nn.Linear)]
    step = 1.0 if getattr(network, "integer_time", False) else 0.25
    shifts = torch.arange(1.0, 520.0, step)
    try:
        with torch.no_grad():
            if not embedded(torch.tensor(BASES)).numel():
                return []
            gaps = apart(shifts)
            inner = (gaps[1:-1] < gaps[:-2]) & (gaps[1:-1] < gaps[2:]) & (gaps[1:-1] < 0.5 * gaps[0])
            found = shifts[1:-1][inner][gaps[1:-1][inner].argsort()[:4]].tolist()
            for width in (step, step / 50.0, step / 2500.0) if step < 1.0 else ():
                fine = [one + torch.linspace(-width, width, 101) for one in found]
                found = [float(one[apart(one).argmin()]) for one in fine]
    finally:
        for handle in handles:
            handle.remove()
    return found
