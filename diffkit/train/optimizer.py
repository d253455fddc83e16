"""The update of the weights: bound the gradient, refuse numbers that are not finite, step the optimizer.

On the CPU the host reads the norm of each gradient, so that a bad one ends the training before anything changes. On
other devices reading would stall the pipeline: there the optimizer skips the update by a flag on the device, and the
host reads that flag at log points and before each checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..errors import CheckpointError, DivergedError
from ..optimizer import LRSchedule, Optimizer
from ..runtime.distributed import Ranks
from ..strategy import is_sharded, local
from .tasks import Problem

INITIAL_SCALE, GROWTH_INTERVAL = 2.0**16, 2000
"""Loss scale of fp16: a gradient that overflows halves it, `GROWTH_INTERVAL` good ones in a row double it."""
MIN_SCALE = 2.0**-10
"""A loss scale below this bound means that gradients overflow at any scale."""
NEVER = 2**31 - 1


class Update:
    """Update `parameters` from their gradients with an optimizer.

    Args:
        optimizer: builds the torch optimizer.
        lr_schedule: factor on the learning rates of its groups; None means 1.
        parameters: the parameters that are trained, by name.
        clip: bound of the global norm of the gradient; None leaves gradients as they are.
        scaling: whether the loss is scaled, as fp16 requires.
        deferred: whether bad gradients are skipped on the device, see the module. An optimizer without the flag
            `_step_supports_amp_scaling` of torch (those with fused kernels have it) reads on the host at each step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_schedule: LRSchedule | None,
        parameters: Mapping[str, nn.Parameter],
        *,
        clip: float | None = None,
        scaling: bool = False,
        deferred: bool = False,
    ) -> None:
        self.parameters, self.lr_schedule, self.clip, self.scaling = dict(parameters), lr_schedule, clip, scaling
        self._all = list(self.parameters.values())
        kinds = [[p for p in self._all if is_sharded(p) is kind] for kind in (True, False)]
        self._kinds = [kind for kind in kinds if kind]  # torch computes with one kind of tensors at a time
        device = self._all[0].device if self._all else torch.device("cpu")
        self.optimizer = optimizer(list(self.parameters.items())) if self._all else None
        self._groups: list[dict[str, Any]] = self.optimizer.param_groups if self.optimizer else []
        self._initial = [_numbers(group) for group in self._groups]
        self._zero = torch.zeros((), device=device)
        self._first_bad = torch.zeros((), dtype=torch.long, device=device)
        self._scaler: GradScaler | None = None
        if (deferred or scaling) and self._all:
            scale, interval = (INITIAL_SCALE, GROWTH_INTERVAL) if scaling else (1.0, NEVER)
            self._scaler = GradScaler(device.type, init_scale=scale, growth_interval=interval)

    def factor(self, loss: Tensor, share: float) -> Tensor:
        """Return the factor of the loss before the backward pass: `share` times the loss scale, ().

        The factor is nan if `loss` is not finite or an earlier gradient was not: then the gradient is not finite
        either, on any process, and the update is refused or skipped.
        """
        good = torch.isfinite(loss.detach()) & (self._first_bad == 0)
        factor = torch.where(good, share, torch.nan)
        return factor if self._scaler is None else self._scaler.scale(factor)

    def lr(self, step: int, steps: int) -> float:
        """Return the learning rate of the first group for the update that follows `step` of `steps` updates."""
        factor = 1.0 if self.lr_schedule is None else self.lr_schedule(step, steps)
        return float(self._initial[0]["lr"] * factor) if self._initial else 0.0

    def __call__(self, step: int, steps: int) -> Tensor:
        """Update the weights and clear the gradients.

        Args:
            step: number of updates before this one.
            steps: number of updates of the whole training.

        Returns:
            The norm of the gradient before clipping, without loss scale: (), on the device.

        Raises:
            DivergedError: the norm is not finite and the host reads it; nothing has changed.
        """
        if self.optimizer is None:
            return self._zero
        factor = 1.0 if self.lr_schedule is None else self.lr_schedule(step, steps)
        for group, initial in zip(self._groups, self._initial, strict=True):
            group["lr"] = initial["lr"] * factor
        for parameter in self._all:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():  # fused kernels assume one layout
                parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
        norm = self._step(step) if self._scaler is None else self._step_deferred(step, self._scaler)
        for parameter in self._all:
            parameter.grad = None
        return norm

    def _step(self, step: int) -> Tensor:
        assert self.optimizer is not None
        norm = self._norm()
        value = float(norm)
        if not math.isfinite(value):
            raise diverged(step + 1)
        if self.clip is not None and value > self.clip:  # scaling by 1 would cost a pass over the gradients
            self._clip(norm)
        self.optimizer.step()
        return norm

    def _step_deferred(self, step: int, scaler: GradScaler) -> Tensor:
        assert self.optimizer is not None
        scaler.unscale_(self.optimizer)
        norm = self._norm()
        if self.clip is not None:
            self._clip(norm)
        scaler.step(self.optimizer)
        scaler.update()
        if not self.scaling:
            bad = (self._first_bad == 0) & ~torch.isfinite(norm)
            self._first_bad = torch.where(bad, step + 1, self._first_bad)
        return norm

    def _norm(self) -> Tensor:
        """Return the norm of the whole gradient, over all shards."""
        norms = []
        for parameters in self._kinds:
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
            norms.append(norm.full_tensor() if is_sharded(norm) else norm)  # type: ignore[attr-defined]
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))

    def _clip(self, norm: Tensor) -> None:
        assert self.clip is not None
        for parameters in self._kinds:
            clip_grads_with_norm_(parameters, self.clip, norm)

    def check(self, step: int) -> None:
        """Raise DivergedError if a gradient of the first `step` updates was not finite; waits for the device."""
        if self._scaler is None:
            return
        if first_bad := int(self._first_bad):
            raise diverged(first_bad)
        if self.scaling and self._scaler.get_scale() < MIN_SCALE:
            raise diverged(step)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the optimizer's state by `PARAMETER.KEY`; there are none before the first update."""
        return {name: value for name, value in self._state() if isinstance(value, Tensor)}

    def numbers(self) -> dict[str, float]:
        """Return the numbers in the state of the optimizer that are not tensors.

        Keys are `PARAMETER.KEY` for numbers in its state, `/group.INDEX.KEY` for numbers of its groups that it has
        changed, `/scale` and `/growth` for the loss scale.
        """
        found = {name: float(value) for name, value in self._state() if isinstance(value, int | float)}
        for index, (group, initial) in enumerate(zip(self._groups, self._initial, strict=True)):
            changed = {key: value for key, value in _numbers(group).items() if value != initial.get(key)}
            found |= {f"/group.{index}.{key}": float(value) for key, value in changed.items() if key != "lr"}
        if self.scaling and self._scaler is not None:
            state = self._scaler.state_dict()
            found |= {"/scale": float(state["scale"]), "/growth": float(state["_growth_tracker"])}
        return found

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Load the `tensors()` and `numbers()` of another update of the same parameters.

        Raises:
            CheckpointError: the state does not fit these parameters, for example from an earlier version of diffkit.
        """
        for name, value in tensors.items():
            parameter, key = self._owner(name)
            if value.shape == local(parameter).shape:  # fused kernels need the memory format of the parameter
                own = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
                local(own).copy_(value)
                self._state_of(parameter)[key] = own
            else:
                self._state_of(parameter)[key] = value.to(parameter.device, copy=True)
        for name, number in numbers.items():
            head, _, key = name.rpartition(".")
            if name in ("/scale", "/growth"):
                continue
            if head.startswith("/group."):
                group = self._groups[int(head.rpartition(".")[2])]
                group[key] = type(group.get(key, 0.0))(number)
            else:
                parameter, key = self._owner(name)
                self._state_of(parameter)[key] = int(number) if number.is_integer() else number
        if self._scaler is not None and "/scale" in numbers:
            scale = {"scale": numbers["/scale"], "_growth_tracker": int(numbers["/growth"])}
            self._scaler.load_state_dict({**self._scaler.state_dict(), **scale})

    def _state(self) -> Iterator[tuple[str, Any]]:
        for name, parameter in self.parameters.items():
            for key, value in self._state_of(parameter).items():
                yield f"{name}.{key}", value

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        assert self.optimizer is not None
        state: dict[str, Any] = self.optimizer.state[parameter]
        return state

    def _owner(self, name: str) -> tuple[nn.Parameter, str]:
        """Return the parameter and the key of an entry of the state."""
        owner, _, key = name.rpartition(".")
        if owner not in self.parameters:
            raise CheckpointError(
                "the optimizer state of this checkpoint does not fit this recipe: it was written by an earlier version "
                f"of diffkit or for another network ({name[:80]!r} belongs to no parameter)",
                code="DK604",
                fix="sample and report this run as before; to train it again start over with --resume never, or set "
                "train.init in another run",
            )
        return self.parameters[owner], key


class CriticUpdate:
    """The critics of a problem, and their update after that of the network in each step.

    Their parameters require a gradient in this update only, so that nothing else trains them. A critic whose loss
    has no gradient is left as it is: no momentum, no weight decay.

    Args:
        problem: has the critics, on the device of the training, and their loss.
        optimizer: builds the torch optimizer.
        lr_schedule: factor on the learning rates of its groups; None means 1.
        ranks: the processes of the run, over which gradients are averaged.
        **bounds: `clip` and `deferred` of `Update`.
    """

    def __init__(
        self, problem: Problem, optimizer: Optimizer, lr_schedule: LRSchedule | None, ranks: Ranks, **bounds: Any
    ) -> None:
        self.problem, self.ranks = problem, ranks
        named = {f"{at}/{n}": p for at, one in problem.critics.items() for n, p in one.named_parameters()}
        self.update = Update(optimizer, lr_schedule, {n: p for n, p in named.items() if p.requires_grad}, **bounds)
        self._examples: list[tuple[Any, Tensor, float]] = []
        self._train(False)

    def add(self, out: Any, x0: Tensor, share: float) -> None:
        """Take examples of the present step.

        Args:
            out: what the loss of these examples returned as `out`.
            x0: prepared examples, (B, C, *S).
            share: their share of the batch of this process.
        """
        self._examples.append((out, x0, share))

    def __call__(self, step: int, steps: int) -> dict[str, Tensor]:
        """Update the critics by the examples of the step, and forget the examples.

        Args:
            step: number of updates before this one.
            steps: number of updates of the whole training.

        Returns:
            The mean loss of each critic, `critic_NAME`: ().

        Raises:
            DivergedError: as `Update` does.
        """
        examples, self._examples = self._examples, []
        self._train(True)
        values: dict[str, Tensor] = {}
        learning: set[nn.Parameter] = set()
        for name, critic in self.problem.critics.items():
            losses = [(self.problem.critic_loss(name, out, x0, step).mean(), share) for out, x0, share in examples]
            if any(loss.requires_grad for loss, _ in losses):
                learning.update(critic.parameters())
            for loss, share in losses:
                if loss.requires_grad:
                    (loss * self.update.factor(loss, share)).backward()  # type: ignore[no-untyped-call]
            values[f"critic_{name}"] = torch.stack([loss.detach() * share for loss, share in losses]).sum()
        chosen = [one for one in self.update.parameters.values() if one in learning]
        for parameter in chosen if self.ranks.size > 1 else ():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.ranks.sum(gradient) / self.ranks.size
        if chosen:
            self.update(step, steps)
        self._train(False)
        return values

    def _train(self, trained: bool) -> None:
        for parameter in self.update.parameters.values():
            parameter.requires_grad_(trained)


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain numbers among the settings of a parameter group."""
    return {key: value for key, value in group.items() if isinstance(value, int | float)}


def diverged(step: int) -> DivergedError:
    """Return the error of a loss or gradient that is not finite at update number `step`."""
    return DivergedError(
        f"the loss or its gradient is not finite at step {step}; the weights are those of the step before",
        fix="lower train.optimizer.lr, lengthen train.lr_schedule.warmup, lower train.clip, or set "
        "train.precision: fp32",
        notes=["the checkpoints before this step are kept"],
    )
