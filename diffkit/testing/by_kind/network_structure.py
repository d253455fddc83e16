"""Laws of what is inside of networks: conditions, modulation, blocks, dropout, positions, options."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.network import MASK, Network

from ..case import Case, rebuilt
from ..law_registry import LawResult, NotApplicable, law
from ..options import options_used
from ..reference import SOURCE, reference_of
from .network import (
    arguments,
    fitting,
    inputs_of,
    needs_parameters,
    parameters_of,
    randomise,
    shape_of,
    with_random_weights,
)

SLOTS = (2, 3, 4, 6)
"""The numbers of equal parts that the output of a layer is tested for: scale and shift, or both with gates."""
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@law(
    "network",
    statement="every channel and place of x changes the output, and so does every condition that the network accepts",
    source="the definition of Network",
    tolerance=0.0,
)
def every_input(case: Case, result: LawResult) -> None:
    """An argument that no line reads trains a network that lacks it."""
    network = with_random_weights(case)
    x, c_noise, cond = inputs_of(case)
    x.requires_grad_()
    y = network(x, c_noise, **cond)
    (slope,) = torch.autograd.grad((y * case.normal(*y.shape, stream="target", dtype=y.dtype)).sum(), x)
    dead = int((slope.abs().sum(0) == 0).sum())
    result.holds(dead == 0, f"{dead} of {slope[0].numel()} numbers of x have no effect", "an effect of all")
    x = x.detach()
    for name in sorted((arguments(network).keys() | cond.keys()) - {"label"}):
        value = cond[name] if name in cond else fitting(case, network, name, (x, c_noise, cond))
        if value is None:
            continue
        other = value.logical_not() if value.dtype == torch.bool else value.flip(0) + 0.5
        with torch.no_grad():
            first, second = (network(x, c_noise, **{**cond, name: v}) for v in (value, other))
        result.holds(not torch.equal(first, second), f"other values of {name} give the same output", "another output")


@law(
    "network",
    statement="tokens whose mask is False have no effect, and the others have",
    source="Rombach et al. 2022 (arXiv:2112.10752), sec. 3.3",
    tolerance=1e-5,
    name="masked-tokens",
)
def masked_tokens(case: Case, result: LawResult) -> None:
    """Texts of a batch are padded to one length; the padding is not part of the text."""
    network = with_random_weights(case)
    x, c_noise, cond = inputs_of(case)
    masks = [name for name in cond if name.endswith(MASK)]
    if not masks:
        raise NotApplicable("the network takes no mask")
    for mask in masks:
        name = mask.removesuffix(MASK)
        with torch.no_grad():
            y = network(x, c_noise, **cond)
            for keep, text in ((cond[mask], "masked"), (~cond[mask], "read")):
                moved = torch.where(keep[..., None], cond[name], cond[name] + 1.0)
                other = network(x, c_noise, **{**cond, name: moved})
                if text == "masked":
                    result.compare(other, y, f"the output after masked tokens of {name} changed")
                else:
                    result.holds(not torch.equal(other, y), f"tokens of {name} have no effect", "an effect")


@law(
    "network",
    statement="the gradient reaches each of the equal parts that the output of a layer is split into",
    source="Peebles & Xie 2023 (arXiv:2212.09748), fig. 3",
    tolerance=0.0,
)
def parts(case: Case, result: LawResult) -> None:
    """If one gate is used twice and another never, a whole part of the rows of a layer has no gradient."""
    needs_parameters(case)
    network = with_random_weights(case).train()
    x, c_noise, cond = inputs_of(case)
    y = network(x, c_noise, **cond)
    torch.autograd.backward((y * case.normal(*y.shape, stream="target", dtype=y.dtype)).sum())
    for name, module in network.named_modules():
        grad = module.weight.grad if isinstance(module, LAYERS) else None
        for slots in SLOTS if grad is not None else ():
            assert grad is not None
            if len(grad) % slots == 0 and len(grad) // slots >= 4:
                dead = [i for i, part in enumerate(grad.chunk(slots)) if not bool(part.any())]
                result.holds(not dead, f"part {dead[:1]} of {slots} of {name} gets no gradient", "a gradient")
    if not result.checks:
        raise NotApplicable("the network has no layer of several parts")


@law(
    "network",
    statement="the two halves of the input channels of a layer differ",
    source="Vaswani et al. 2017 (arXiv:1706.03762), sec. 3.5",
    tolerance=0.0,
)
def distinct_halves(case: Case, result: LawResult) -> None:
    """A half that repeats the other adds nothing, as cos and cos in place of cos and sin."""
    network, (x, c_noise, cond) = with_random_weights(case), inputs_of(case)
    found, _ = layer_inputs(network, x, c_noise, dict(cond))
    for name, module in network.named_modules():
        if isinstance(module, LAYERS) and name in found:
            channels = found[name].movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
            first, second = channels[: len(channels) // 2], channels[len(channels) // 2 :]
            if len(first) > 1 and len(first) == len(second) and bool((first != first[:1]).any()):
                result.holds(
                    not torch.equal(first, second), f"both halves of the input of {name} are equal", "two halves"
                )
    if not result.checks:
        raise NotApplicable("the network has no layer with an even number of input channels")


@law(
    "network",
    statement="a scale that the noise level sets acts as 1 + scale: scale 0 does not remove x from a block",
    source="Dhariwal & Nichol 2021 (arXiv:2105.05233), sec. 4.3; Perez et al. 2018 (arXiv:1709.07871)",
    tolerance=0.0,
)
def scale_shift(case: Case, result: LawResult) -> None:
    """One part of each layer that reads the level but not x is set to 0, the other parts are random.

    Then the input of every layer that read x before must still depend on it, or be 0 (behind a closed gate).
    Texts are left out: attention to keys that are 0 is the same for every x.
    """
    network, inputs = with_random_weights(case), twin(case, with_texts=False)
    usual, _ = layer_inputs(network, *inputs)
    outside = usual.keys() - reads_x(usual)
    layers = [m for name, m in network.named_modules() if name in outside and isinstance(m, nn.Linear)]
    if not layers:
        raise NotApplicable("no linear layer reads the level alone")
    for slots in SLOTS:
        for slot in range(slots):
            with _without(layers, slots, slot):
                now, y = layer_inputs(network, *inputs)
            lost = [name for name in usual.keys() - outside if equal_rows(now[name]) and bool(now[name].any())]
            result.holds(not lost, f"with part {slot + 1} of {slots} = 0 {lost[:1]} does not read x", "1 + scale")
            result.holds(not equal_rows(y), f"with part {slot + 1} of {slots} = 0 no x reaches the output", "x + ...")


def twin(case: Case, *, with_texts: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the inputs of two examples that differ in x only."""
    x, c_noise, cond = inputs_of(case, 2)
    texts = {name + suffix for name in shape_of(case).conditions for suffix in ("", MASK)}
    rest = {name: v[:1].expand_as(v) for name, v in cond.items() if with_texts or name not in texts}
    return torch.cat([x[:1], -x[:1]]), c_noise[:1].expand(2), rest


def reads_x(inputs: dict[str, Tensor]) -> set[str]:
    """Return the names of the layers whose input depends on x, for the examples of `twin`."""
    return {name for name, pair in inputs.items() if not equal_rows(pair)}


def equal_rows(pair: Tensor) -> bool:
    """Return whether two examples with different x have the same input of a layer."""
    half = len(pair) // 2
    return len(pair) == 2 * half and torch.allclose(pair[:half], pair[half:], rtol=1e-6, atol=1e-7)


@contextmanager
def _without(layers: list[nn.Linear], slots: int, slot: int) -> Iterator[None]:
    """Set one part of the output of each layer to 0, if its size is a multiple of the number of parts."""

    def silence(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept = output.clone()
        kept.chunk(slots, -1)[slot].zero_()
        return kept

    handles = [one.register_forward_hook(silence) for one in layers if one.out_features % slots == 0]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_inputs(
    network: nn.Module, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Record what the layers of a network receive.

    Args:
        network: the network.
        x: the examples: (B, C, *S).
        c_noise: the noise levels: (B,).
        cond: the conditions, by name.

    Returns:
        The first input of each module with parameters of its own, at its last call, and the output.
    """
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
            if tensors and tensors[0].ndim > 1:
                found[name] = tensors[0].detach()

        return record

    owners = [(n, m) for n, m in network.named_modules() if n and any(True for _ in m.parameters(recurse=False))]
    handles = [module.register_forward_pre_hook(hook(name), with_kwargs=True) for name, module in owners]
    try:
        with torch.no_grad():
            y: Tensor = network(x, c_noise, **cond)
    finally:
        for handle in handles:
            handle.remove()
    return found, y


@law(
    "network",
    statement="in training mode dropout draws other masks at each call and for each example; in evaluation it is off",
    source="Srivastava et al. 2014 (JMLR 15)",
    tolerance=0.0,
)
def dropout(case: Case, result: LawResult) -> None:
    """A mask that is drawn once removes a part of the network for ever. Options named dropout are set to 0.5."""
    options: dict[str, Any] = dict.fromkeys(_dropout_options(case), 0.5)
    active = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in case.component.modules())
    if not options and not active:
        raise NotApplicable("the network has no dropout")
    network = rebuilt(case, **options) if options else copy.deepcopy(case.component)
    randomise(case, network)
    x, c_noise, cond = inputs_of(case, 2)
    same = torch.cat([x[:1], x[:1]]), c_noise[:1].expand(2), {n: v[:1].expand_as(v) for n, v in cond.items()}
    with torch.no_grad():
        network.train()
        first, second = (network(same[0], same[1], **same[2]) for _ in range(2))
        network.eval()
        off, again = (network(same[0], same[1], **same[2]) for _ in range(2))
    result.holds(not torch.allclose(first, off), "in training nothing is dropped", "an output without some units")
    result.holds(not torch.allclose(first, second), "two calls in training drop the same units", "other units")
    result.holds(not torch.allclose(first[0], first[1]), "two examples in training drop the same units", "other units")
    result.holds(torch.equal(off, again), "units are dropped in evaluation", "dropout off")


def _dropout_options(case: Case) -> list[str]:
    """Return the options that are probabilities of dropout."""
    if "example" in case.options:
        return []
    known = type(case.component).__init__.__annotations__
    return [name for name in known if name in ("dropout", "p_dropout", "dropout_rate", "drop_rate")]


@law(
    "network",
    statement="an output at a place depends on x at that place, compared with the other places",
    source="the definition of Network",
    tolerance=0.0,
)
def places(case: Case, result: LawResult) -> None:
    """Patches that are put back in another order, or with height and width exchanged, leave the place without x."""
    shape = shape_of(case)
    if len(shape.size) != 2:
        raise NotApplicable("the data are not images")
    network = with_random_weights(case)
    x, c_noise, cond = inputs_of(case, 1)
    height, width = shape.size
    shares = []
    for i, j in ((0, width - 1), (1, width // 2), (height - 2, 1), (height // 2, width - 2)):
        z = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(z, c_noise, **cond)[:, :, i, j].sum(), z)
        energy = slope[0].square().sum(0)
        near = energy[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].mean()
        shares.append(float(near / energy.mean()))
    share = sorted(shares)[1]
    result.holds(share > 0.2, f"the place has {share:.3g} of the mean influence", "more than 0.2")


@law(
    "network",
    statement="each number and choice among the options has an effect on the parameters, the layers or the output",
    source="the definition of an option",
    tolerance=0.0,
    name="options-used",
)
def used_options(case: Case, result: LawResult) -> None:
    """An option that no line reads does not do what its description states."""
    x, c_noise, cond = inputs_of(case)

    def observe(network: Network) -> list[Tensor]:
        values = [v.detach().clone() for v in network.state_dict().values()]
        randomise(case, network)
        layers = torch.frombuffer(bytearray(repr(network).encode()), dtype=torch.uint8)
        with torch.no_grad():
            return [*values, layers, network.train()(x, c_noise, **cond)]

    options_used(case, result, observe, switches=False)


@law(
    "network",
    statement="the number of parameters is that of the component's law_reference",
    source=SOURCE,
    tolerance=0.0,
)
def reference(case: Case, result: LawResult) -> None:
    """law_reference = ({"shape": ..., "parameters": ...},): sizes that a paper states, with their options."""
    if case.options not in ({}, getattr(case.component, "law_base", {})):
        raise NotApplicable("law_reference states the options")
    for row in reference_of(case):
        options = {name: value for name, value in row.items() if name != "parameters"}
        with torch.device("meta"):
            network = type(case.component)(**options)
        count = sum(p.numel() for _, p in parameters_of(network))
        result.holds(count == row["parameters"], f"{options}: {count:,} parameters", f"{row['parameters']:,}")
