"""The state of an optimizer as named tensors and JSON, and back: by parameter name, not by position, without pickle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from ..errors import CheckpointError
from .files import fault

Named = Iterable[tuple[str, Parameter]]


def flatten_optimizer(optimizer: Optimizer, named: Named) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors `<parameter>.<key>` (exp_avg, exp_avg_sq, step, ...) and, as JSON, groups and all other values.

    `named` are the parameters with their names, as of `Module.named_parameters`; it must cover every one that the
    optimizer has. Raises: ValueError where it does not.
    """
    names = {id(parameter): name for name, parameter in named}
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    groups = []
    for group in optimizer.param_groups:
        options = {key: _json(value) for key, value in group.items() if key != "params"}
        groups.append({"options": options, "parameters": [_name(names, parameter) for parameter in group["params"]]})
        for parameter in group["params"]:
            name = _name(names, parameter)
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}.{key}"] = value
                else:
                    scalars.setdefault(name, {})[key] = value
    return tensors, {"groups": groups, "scalars": scalars}


def restore_optimizer(
    optimizer: Optimizer, named: Named, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Put back what `flatten_optimizer` took, into an optimizer over the same named parameters.

    Raises: CheckpointError where groups, parameters, shapes or the types of options are others than the optimizer's
    own; the optimizer is then unchanged.
    """
    names = {id(parameter): name for name, parameter in named}
    groups, scalars = state.get("groups"), state.get("scalars")
    if not isinstance(groups, list) or not isinstance(scalars, dict) or len(groups) != len(optimizer.param_groups):
        raise fault(f"the optimizer has {len(optimizer.param_groups)} groups of parameters, the checkpoint others")
    shapes: dict[str, tuple[int, ...]] = {}
    indices: dict[str, int] = {}
    param_groups = []
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        own = [_name(names, parameter) for parameter in group["params"]]
        if not isinstance(saved, dict) or saved.get("parameters") != own:
            raise fault("the optimizer of the checkpoint has other parameters, or in another order")
        first = len(indices)
        indices.update({name: first + index for index, name in enumerate(own)})
        shapes.update({name: tuple(parameter.shape) for name, parameter in zip(own, group["params"], strict=True)})
        param_groups.append({**_options(group, saved.get("options")), "params": [indices[name] for name in own]})
    restored: dict[int, dict[str, Any]] = {}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition(".")
        if name not in shapes or (tensor.numel() != 1 and tuple(tensor.shape) != shapes[name]):
            raise fault(f"the optimizer has no state {full[:80]!r} of shape {tuple(tensor.shape)}")
        restored.setdefault(indices[name], {})[key] = tensor
    for name, values in scalars.items():
        if name not in indices or not isinstance(values, dict) or not all(map(_is_scalar, values.values())):
            raise fault(f"the optimizer has no state for {name[:80]!r}")
        restored.setdefault(indices[name], {}).update(values)
    optimizer.load_state_dict({"state": restored, "param_groups": param_groups})


def _name(names: Mapping[int, str], parameter: Parameter) -> str:
    if id(parameter) not in names:
        raise ValueError(f"the optimizer has a parameter of shape {tuple(parameter.shape)} that has no name")
    return names[id(parameter)]


def _json(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _options(group: Mapping[str, Any], saved: object) -> dict[str, Any]:
    """The options of a group with the saved values, each of the type that the optimizer itself has for it.

    Another version of torch may have more options or fewer: what was not saved keeps its default.
    """
    if not isinstance(saved, dict):
        raise fault("the optimizer of the checkpoint has no options")
    own = {key: value for key, value in group.items() if key != "params"}
    return {key: _like(value, saved[key], key) if key in saved else value for key, value in own.items()}


def _like(own: Any, saved: Any, key: str) -> Any:
    mismatch: CheckpointError = fault(f"the option {key} of the optimizer is no {type(own).__name__} in the checkpoint")
    if isinstance(own, tuple):
        if not isinstance(saved, list) or len(saved) != len(own):
            raise mismatch
        return tuple(_like(a, b, key) for a, b in zip(own, saved, strict=True))
    if isinstance(own, Tensor):
        if not isinstance(saved, int | float) or isinstance(saved, bool):
            raise mismatch
        return own.new_tensor(saved)
    same = type(own) is type(saved) or ({type(own), type(saved)} == {int, float})
    if not same and None not in (own, saved):
        raise mismatch
    if not _is_scalar(saved) and not isinstance(saved, str):
        raise mismatch
    return saved
