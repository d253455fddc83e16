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
| a network that predicts eps, 10 to 20 evaluations | `adams` or `unipc` of order 2, grid `quadratic` |
| the same, about 5 evaluations | `dpmpp-2m` or `unipc` of order 2, grid `quadratic` |
| DDPM sampling as in the paper, with noise in every step | `ancestral`, all steps |
| noise, in few steps | `dpmpp-2m` or `dpmpp-3m` with `eta: 1.0` |
| inversion, or interpolation | `ddim` |
| a textbook method that is easy to follow | `heun` (`chart: flow` starts at pure noise) |

A sampler is a component of a recipe, and a trained run works with every sampler:
`diffkit sample RUN --sampler adams --steps 10`.

## Error against number of evaluations

![Error against evaluations: adams of diffkit has the least error throughout](assets/sampler-error.svg)

"""

METHOD = """
All samplers start from the same x at the noisy end of the linear schedule of DDPM and call the exact denoiser of a
mixture of Gaussians. Their result is compared with the end of the exact probability flow. The number is the root of the
mean squared distance, as the geometric mean over three problems ({problems}). For each number of evaluations, each
sampler uses its best grid and options; the last column shows them for 10 evaluations. A method with two evaluations in
each step takes as many whole steps as possible. `adams, as it comes` uses the defaults: order 3, chart `angle`, grid
`angle`.

## Samplers of other libraries on grid angle

About half of the gain comes from the grid. On the levels of grid `angle`, most samplers of the other libraries have
less error than on their own grids, and they agree with the samplers of diffkit that implement the same method.

{theirs}
{trained}
## Limits of this comparison

- The first tables use exact denoisers of smooth distributions in one and two dimensions. A network has errors of its
  own, which no sampler removes.
- The power of the grid, 1.75, was chosen on these mixtures and six others, up to ten dimensions. No method was tuned to
  a single mixture.
- The angle weights data and noise equally, which fits data of about unit variance.
- Stochastic samplers are not compared: their error is one of distributions, not of paths.

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
