"""docs/choose-a-sampler.md and its plot, from the numbers of sampler_error.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
Cell = tuple[float, str, list[float]]
Best = Mapping[str, Mapping[int, Cell]]

HEAD = """# Choose a sampler

<!-- written by benchmarks/sampler_error.py --write -->

| you want | take |
|---|---|
| the flow of an exact denoiser, 5 to 50 evaluations | `adams`, grid `angle` |
| a network that says eps, 10 to 20 evaluations | `adams` or `unipc` of order 2, grid `quadratic` |
| the same, about 5 evaluations | `dpmpp-2m` or `unipc` of order 2, grid `quadratic` |
| the law of the paper, noise in every step | `ancestral`, all steps |
| noise, in few steps | `dpmpp-2m` or `dpmpp-3m` with `eta: 1.0` |
| to invert, or interpolate | `ddim` |
| a path to read step by step | `heun` (`chart: flow` starts at pure noise) |

Samplers are parts of a recipe like any other, and a trained run takes any of them:
`diffkit sample RUN --sampler adams --steps 10`.

## How near they come

![Error against evaluations: adams of diffkit lies lowest throughout](assets/sampler-error.svg)

"""

METHOD = """
Everyone starts from the same x at the noisy end of DDPM's linear schedule, asks the exact denoiser of a mixture of
Gaussians, and is compared with where the probability flow ends. The number is the root of the mean squared distance,
as the geometric mean over three problems ({problems}).
Each sampler has, at each number of evaluations, its best grid and options: in the last column for 10. A method of two
evaluations a step takes as many whole steps as fit. `adams, as it comes` has no choice: order 3, chart `angle`, grid
`angle`.

## The others on our grid

About half of the gain is the grid. Given the levels of grid `angle`, most samplers of the other libraries do better
than on any of their own, and they agree with ours of the same method, as they must where the comparison is fair.

{theirs}
{trained}
## What this does not say

- The first tables are of exact denoisers of smooth laws in one and two dimensions. A network has errors of its own,
  which no sampler removes.
- The power of the grid, 1.75, was chosen on these mixtures and six others, up to ten dimensions. No method was tuned to
  one of them.
- The angle weighs data and noise as equals, which fits data of about unit variance.
- Stochastic samplers are not here: their error is one of laws, not of paths.

Made with {versions}, in float64 where the library allows:

```sh
python benchmarks/sampler_error.py --k-diffusion CHECKOUT --run RUN --write
```
"""


def write_page(
    best: Best,
    trained: Mapping[str, Mapping[str, Mapping[int, float]]],
    problems: Sequence[str],
    budgets: Sequence[int],
    versions: Mapping[str, str],
    *,
    with_k: bool,
) -> None:
    """Writes both files; without k-diffusion its rows are missing, without a trained run its section."""
    own = {name: row for name, row in best.items() if "grid angle" not in name}
    theirs = {name: row for name, row in best.items() if "grid angle" in name}
    told = ", ".join(f"{name} {version}" for name, version in versions.items()) + (", k-diffusion" if with_k else "")
    page = HEAD + table(own, budgets) + "\n"
    page += METHOD.format(
        problems=", ".join(problems),
        theirs=table(theirs, budgets),
        trained=TRAINED.format(ten=matrix(trained, 10), twenty=matrix(trained, 20)) if trained else "",
        versions=told,
    )
    (DOCS / "choose-a-sampler.md").write_text(page)
    (DOCS / "assets" / "sampler-error.svg").write_text(plot(own, budgets))


def table(best: Best, budgets: Sequence[int]) -> str:
    """One row for each sampler, by the error at 10 evaluations; the lowest of each column is bold."""
    least = {n: min(row[n][0] for row in best.values() if n in row) for n in budgets}
    lines = [
        "| sampler | " + " | ".join(f"{n}" for n in budgets) + " | at 10 |",
        "|---|" + "---:|" * len(budgets) + "---|",
    ]
    for name, row in sorted(best.items(), key=lambda item: item[1][10][0]):
        cells = [_number(row[n][0], row[n][0] == least[n]) if n in row else "" for n in budgets]
        lines.append(f"| {name.replace(', grid angle', '')} | {' | '.join(cells)} | {row[10][1]} |")
    return "\n".join(lines)


def matrix(trained: Mapping[str, Mapping[str, Mapping[int, float]]], nfe: int) -> str:
    """Samplers down, grids across; the lowest of all is bold."""
    grids = list(next(iter(trained.values())))
    least = min(row[grid][nfe] for row in trained.values() for grid in grids)
    lines = [f"| {nfe} evaluations | " + " | ".join(grids) + " |", "|---|" + "---:|" * len(grids)]
    for name, row in trained.items():
        cells = [_number(row[grid][nfe], row[grid][nfe] == least) for grid in grids]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float, bold: bool) -> str:
    told = f"{value:.2g}" if value >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")
    return f"**{told}**" if bold else told


TRAINED = """
## With a trained network

A small U-Net (recipe `digits-adams`, with 32 channels, one block a level and 500 steps; eps) on digits, with x0
clipped: the distance from where its own flow ends, from the same 64 starts. The order is another than above. Steps near
pure noise, where eps is divided by alpha, seem to count more; and `adams`, which extrapolates further than the others,
fails at 5 evaluations on other grids than `angle` (an error of 2.2 on `quadratic`, where `dpmpp-2m` has 0.05).

{ten}

{twenty}
"""

LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT = 76, 250, 58, 56, 860, 520
LINES = {
    "diffkit adams, as it comes": ("#1f4fb4", 3.5, "diffkit adams"),
    "diffkit unipc": ("#1f4fb4", 1.6, "diffkit unipc"),
    "diffkit dpmpp-2m": ("#6d93dd", 1.6, "diffkit dpmpp-2m"),
    "diffkit ddim": ("#6d93dd", 1.6, "diffkit ddim"),
    "diffusers UniPC": ("#c4551a", 1.6, "diffusers UniPC"),
    "diffusers DPMSolverMultistep": ("#dd8b4b", 1.6, "diffusers DPM-Solver++"),
    "diffusers DDIM": ("#dd8b4b", 1.6, "diffusers DDIM"),
    "diffusers Heun": ("#c4551a", 1.6, "diffusers Heun"),
    "k-diffusion dpmpp_3m_sde, eta 0": ("#2b7a5b", 1.6, "k-diffusion dpmpp_3m"),
    "k-diffusion dpmpp_2m": ("#5fae8d", 1.6, "k-diffusion dpmpp_2m"),
    "k-diffusion heun": ("#5fae8d", 1.6, "k-diffusion heun"),
}


def plot(best: Best, budgets: Sequence[int]) -> str:
    """An SVG with logarithmic axes; each line is named at its end."""
    shown = {name: best[name] for name in LINES if name in best}
    errors = [row[n][0] for row in shown.values() for n in budgets if n in row]
    low, high = math.floor(math.log10(min(errors))), math.ceil(math.log10(max(errors)))

    def across(n: float) -> float:
        share = math.log(n / budgets[0]) / math.log(budgets[-1] / budgets[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def down(error: float) -> float:
        return TOP + (high - math.log10(error)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="15" role="img" aria-labelledby="title">',
        '  <title id="title">Error of deterministic samplers against the number of evaluations</title>',
        f'  <rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        f'  <text x="{LEFT - 52}" y="30" fill="#222" font-size="16">error against the exact flow</text>',
    ]
    for power in range(low, high + 1):
        y = down(10.0**power)
        parts.append(f'  <path d="M{LEFT} {y:.1f} H{WIDTH - RIGHT}" stroke="#e3e3e3"/>')
        parts.append(
            f'  <text x="{LEFT - 10}" y="{y + 5:.1f}" fill="#444" text-anchor="end">10'
            f'<tspan dy="-6" font-size="11">{power}</tspan></text>'
        )
    for n in budgets:
        parts.append(
            f'  <text x="{across(n):.1f}" y="{HEIGHT - BOTTOM + 24}" fill="#444" text-anchor="middle">{n}</text>'
        )
    middle = 0.5 * (LEFT + WIDTH - RIGHT)
    parts.append(f'  <text x="{middle}" y="{HEIGHT - 10}" fill="#222" text-anchor="middle">evaluations</text>')
    ends = {name: down(row[budgets[-1]][0]) for name, row in shown.items()}
    places = _apart(ends, 19.0, TOP + 4.0, HEIGHT - BOTTOM + 4.0)
    for name, row in sorted(shown.items(), key=lambda item: LINES[item[0]][1]):
        colour, width, told = LINES[name]
        points = " ".join(f"{across(n):.1f},{down(row[n][0]):.1f}" for n in budgets if n in row)
        parts.append(f'  <polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        parts += [
            f'  <circle cx="{across(n):.1f}" cy="{down(row[n][0]):.1f}" r="{1.5 + width:.1f}" fill="{colour}"/>'
            for n in budgets
            if n in row
        ]
        x, y = WIDTH - RIGHT, places[name]
        weight = ' font-weight="bold"' if width > 2 else ""
        lead = f"M{x + 8} {ends[name]:.1f} L{x + 26} {y:.1f}"
        parts.append(f'  <path d="{lead}" stroke="{colour}" stroke-width="0.8" fill="none"/>')
        parts.append(f'  <text x="{x + 32}" y="{y + 5:.1f}" fill="{colour}"{weight}>{told}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _apart(ends: Mapping[str, float], gap: float, low: float, high: float) -> dict[str, float]:
    """The heights, moved as little as keeps them `gap` apart and within the plot."""
    order = sorted(ends, key=lambda name: ends[name])
    places = [max(ends[name], low) for name in order]
    for _ in range(200):
        for i in range(1, len(places)):
            short = gap - (places[i] - places[i - 1])
            if short > 0:
                places[i - 1] -= 0.5 * short
                places[i] += 0.5 * short
        places = [min(max(place, low), high) for place in places]
    return dict(zip(order, places))
