"""What a deliberate fault is, and the files that the faults edit."""

from __future__ import annotations

from dataclasses import dataclass

LEVEL, ESTIMATE, SCHEDULE = "diffkit/level.py", "diffkit/estimate.py", "diffkit/schedule.py"
TRANSITION, PARAMETERIZATION, DENOISER = "diffkit/transition.py", "diffkit/parameterization.py", "diffkit/denoiser.py"
SAMPLER, NOISE, GRID, TIMES = "diffkit/sampler.py", "diffkit/noise.py", "diffkit/grid.py", "diffkit/times.py"
OBJECTIVE, DATA = "diffkit/objective.py", "diffkit/data.py"
DDPM, BASICS = "diffkit/ddpm/", "diffkit/basics/"
DDIM = "plugins/diffkit-ddim/src/diffkit_ddim/"
SOLVER = "plugins/diffkit-dpmsolver/src/diffkit_dpmsolver/"
EDM = "plugins/diffkit-edm/src/diffkit_edm/"
P2 = "plugins/diffkit-p2/src/diffkit_p2/"
SCORE = "plugins/diffkit-score-sde/src/diffkit_score_sde/"
FLOW = "plugins/diffkit-flow/src/diffkit_flow/"
ZERO = "plugins/diffkit-zero-snr/src/diffkit_zero_snr/"
DIT, GUIDANCE = "plugins/diffkit-dit/src/diffkit_dit/", "plugins/diffkit-guidance/src/diffkit_guidance/"
IMPROVED = "plugins/diffkit-improved-ddpm/src/diffkit_improved_ddpm/"
VDM = "plugins/diffkit-vdm/src/diffkit_vdm/"
INVERSE = "plugins/diffkit-inverse/src/diffkit_inverse/"
LATENT = "plugins/diffkit-latent/src/diffkit_latent/"
SD = "plugins/diffkit-stable-diffusion/src/diffkit_stable_diffusion/"
TILES = "diffkit/tiles.py"


@dataclass(frozen=True)
class Fault:
    """One edit of `file`; `targets` are kind/name:law of registered components, which are tried in turn.

    Without `:law` all laws of the component are tried: so to add a fault, leave it out, and add the law that is found.
    Targets below tests/ and plugins/ are paths or node ids of pytest, for code that is no component.
    """

    name: str
    file: str
    old: str
    new: str
    targets: tuple[str, ...]

    @property
    def by_tests(self) -> bool:
        """Whether tests must notice, not laws."""
        return self.targets[0].startswith(("tests/", "plugins/"))

    @property
    def slow(self) -> bool:
        """Whether `make nightly` alone tries it: laws of young code, so that `make test` stays quick."""
        return self.file.startswith((DIT, GUIDANCE, INVERSE, LATENT, VDM, TILES))


def fault(name: str, file: str, old: str, new: str, *targets: str) -> Fault:
    return Fault(name, file, old, new, targets)
