"""A small task with all that could make a resumed run differ: dropout, buffers, labels, learned times, workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.basics.lr_schedules import Constant
from diffkit.basics.optimizers import Adam
from diffkit.callback import Callback, TrainingStepInfo, TrainResult
from diffkit.data import Augmentation, Cond, Data, DataSpec, InMemorySplit, Part, Split
from diffkit.ddpm.objective import Simple
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear
from diffkit.denoiser import Model
from diffkit.network import Network
from diffkit.objective import Objective
from diffkit.optimizer import LRSchedule, Optimizer
from diffkit.runtime.progress import Progress
from diffkit.schedule import Schedule
from diffkit.storage.checkpoint import CheckpointStore
from diffkit.times import Times
from diffkit.train.config import EmaConfig, TrainConfig
from diffkit.train.state import TrainerState
from diffkit.train.tasks import TrainingProblem
from diffkit.train.trainer import Trainer

CLASSES = 3


class Net(Network):
    """An MLP on vectors of length 4 with dropout, a label, a frozen parameter, and buffers that change in training."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 16), nn.Linear(16, 4)
        self.label = nn.Embedding(CLASSES + 1, 16)
        self.dropout = nn.Dropout(dropout)
        self.frozen = nn.Parameter(torch.full((4,), 0.5), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        if self.training:
            self.seen.add_(len(x))
            self.mean.lerp_(x.detach().mean(0).to(self.mean.dtype), 0.1)
        h = self.first(torch.cat([x, c_noise[:, None] / 1000], 1)).tanh()
        if label is not None:
            h = h + self.label(label)
        return self.second(self.dropout(h)) * self.frozen  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Whole(Data):
    """`count` vectors of length 4 with labels, held in memory."""

    count: int = 23
    labels: bool = True

    @property
    def spec(self) -> DataSpec:
        return DataSpec(4, classes=CLASSES if self.labels else None)

    def split(self, part: Part) -> Split:
        generator = torch.Generator().manual_seed(len(part))
        x = torch.randn(self.count, 4, generator=generator)
        return InMemorySplit(x, {"label": torch.arange(self.count) % CLASSES} if self.labels else {})


class Rows(Split):
    """The same examples, one by one."""

    def __init__(self, whole: Split) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        return self.whole[index]


@dataclass(frozen=True)
class OneByOne(Whole):
    """The examples of `Whole` from a split that is not resident."""

    def split(self, part: Part) -> Split:
        return Rows(super().split(part))


class Importance(nn.Module, Times):
    """Times drawn in proportion to the losses seen: a history in buffers, and a parameter that is trained along."""

    history: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.register_buffer("history", torch.ones(steps))

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        edges = torch.cumsum(self.history / self.history.sum(), 0)
        return torch.searchsorted(edges, uniform).clamp(max=len(edges) - 1) + 1

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor | None:
        return 1.0 / (len(self.history) * self.history[t - 1] / self.history.sum())

    def update(self, t: Tensor, each: Tensor) -> None:
        self.history[t - 1] = 0.9 * self.history[t - 1] + 0.1 * each.float()


@dataclass(frozen=True)
class Jitter(Augmentation):
    """Shifts x by two of its uniform numbers."""

    def __call__(self, x: Tensor, uniform: Tensor, cond: Cond) -> tuple[Tensor, Cond]:
        return x + 0.1 * uniform.sum(1, keepdim=True), cond

    @property
    def draws(self) -> int:
        return 2


@dataclass
class Recorder(Callback):
    """Keeps what a training reports; `save` and `preview` run at checkpoints and previews."""

    records: list[dict[str, float]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    save: Callable[[int], None] = lambda step: None
    preview: Callable[[int, Model], None] = lambda step, model: None

    def on_step(self, info: TrainingStepInfo) -> None:
        if info.record is not None:
            self.records.append({"step": info.step, **info.record})

    def on_save(self, step: int) -> None:
        self.saved.append(step)
        self.save(step)

    def on_preview(self, step: int, model: Model) -> None:
        self.preview(step, model)


ADAM, WARMUP = Adam(), Constant(warmup=4)
CONFIG = TrainConfig(
    steps=12,
    batch_size=10,
    ema=(
        EmaConfig(decay=0.9, warmup=True),
        EmaConfig(name="power", power=6.94),
        EmaConfig(name="images", half_life=40.0),
    ),
    accumulate=3,
    log_every=5,
    checkpoint_every=0,
)


def task(
    data: Data | None = None,
    objective: Objective | None = None,
    *,
    seed: int = 3,
    dropout: float = 0.2,
    condition_dropout: float = 0.3,
    augment: tuple[Augmentation, ...] = (Jitter(),),
    steps: int = 50,
) -> TrainingProblem:
    """The task, its network always initialised alike."""
    torch.manual_seed(11)
    model = Model(Net(dropout), Eps(), Linear(steps))
    chosen = objective or Simple(times=Importance(steps))
    return TrainingProblem(
        model, chosen, data or Whole(), augment=augment, condition_dropout=condition_dropout, seed=seed
    )


def plain(**options: Any) -> TrainingProblem:
    """The task without anything random but times and noise."""
    return task(objective=Simple(), dropout=0.0, condition_dropout=0.0, augment=(), **options)


def trainer(
    given: TrainingProblem | None = None,
    optimizer: Optimizer = ADAM,
    lr_schedule: LRSchedule | None = WARMUP,
    **changes: Any,
) -> Trainer:
    """A trainer of the task with `CONFIG` changed."""
    return Trainer(given or task(), CONFIG.model_copy(update=changes), optimizer, lr_schedule)


def trained(
    given: TrainingProblem | None = None, *callbacks: Callback, progress: Progress | None = None, **changes: Any
) -> tuple[Trainer, TrainResult]:
    """A trainer after its run."""
    made = trainer(given, **changes)
    return made, made.run(callbacks, progress=progress)


def save(store: CheckpointStore, made: Trainer) -> None:
    """Save the trainer as a run does."""
    store.save(made.step, made.tensors(), made.state().to_json(), {})


def load(store: CheckpointStore, made: Trainer) -> list[str]:
    """Load the newest checkpoint as a run does."""
    found = store.load(made.expected_tensors(), state=made.expected_state(), must=True)
    assert found is not None
    return made.load(found.tensors, TrainerState.from_json(found.state))


def copied(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The tensors as they are now."""
    return {group: {name: value.clone() for name, value in named.items()} for group, named in tensors.items()}


def assert_same(a: Mapping[str, Mapping[str, Tensor]], b: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Every tensor equal bit for bit."""
    assert a.keys() == b.keys()
    for group in a:
        assert a[group].keys() == b[group].keys()
        for name in a[group]:
            assert torch.equal(a[group][name], b[group][name]), f"{group}: {name}"


def comparable(records: list[dict[str, float]]) -> list[dict[str, float]]:
    """Records without what is measured by the clock."""
    return [{n: v for n, v in record.items() if n not in ("images_per_second", "memory")} for record in records]
