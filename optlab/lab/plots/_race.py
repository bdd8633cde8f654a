"""The picture of a race."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from optlab.lab import report
from optlab.lab.plots import _style
from optlab.lab.plots._style import COLOURS


def race(results: Mapping, path: str | os.PathLike) -> None:
    """Draws a race: validation losses with their bands, and the schedules.

    Args:
      results: What race.json holds.
      path: File to write, a PNG.
    """
    with _style.figure(path, (11.5, 5.2)) as figure:
        losses, rates = figure.subplots(1, 2, width_ratios=(1.75, 1))
        _style.title(figure, _title(results))
        _draw_losses(losses, results)
        _draw_schedules(rates, results)


def _draw_losses(axes: Axes, results: Mapping) -> None:
    chains, target = results["chains"], results["target"]
    colours = _style.colours(len(chains))
    axes.axhline(target, color=COLOURS[0], linewidth=1, linestyle=(0, (4, 3)))
    for chain, colour in zip(chains, colours, strict=True):
        steps, mean, low, high = zip(*chain["curve"], strict=True)
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, mean, color=colour, linewidth=2, label=_loss_label(chain))
        axes.plot(steps[-1], mean[-1], "o", color=colour, markersize=5)
    crossing = [
        (chain, colour)
        for chain, colour in zip(chains[1:], colours[1:], strict=True)
        if chain["steps_to_baseline"] is not None
    ]
    for height, (chain, colour) in enumerate(crossing):
        _mark_crossing(axes, chain, target, colour, height)
    low, high = _loss_range(chains)
    axes.set_ylim(low - 0.07 * (1 + len(crossing)) * (high - low), high)
    axes.set_xlim(0, max(chain["steps"] for chain in chains) * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.set_title(_loss_title(results), loc="left", fontsize=11, pad=10)
    axes.legend(frameon=False, loc="upper right")


def _loss_label(chain: Mapping) -> str:
    final = chain["final_loss"]
    spread = "" if final["spread"] is None else f" ± {final['spread']:.3f}"
    return f"{chain['label']}   {final['mean']:.3f}{spread} at step {chain['steps']}"


def _loss_title(results: Mapping) -> str:
    seeds = len(results["seeds"])
    if seeds == 1:
        return "Validation loss, one seed"
    return f"Validation loss, mean and range of {seeds} seeds"


def _mark_crossing(
    axes: Axes, chain: Mapping, target: float, colour: str, height: int
) -> None:
    step = chain["steps_to_baseline"]
    axes.plot([step, step], [0, target], color=colour, linewidth=1.2, linestyle=":")
    axes.annotate(
        f"step {step}, {report.percent(chain['step_ratio'])}",
        (step, 0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(5, 6 + 14 * height),
        textcoords="offset points",
        color=colour,
        fontweight="bold",
    )


def _loss_range(chains: Sequence[Mapping]) -> tuple[float, float]:
    """The part of the losses that tells chains apart; the first fall is left out."""
    lowest = min(row[2] for chain in chains for row in chain["curve"])
    highest = max(
        next(row[3] for row in chain["curve"] if row[0] >= 0.08 * chain["steps"])
        for chain in chains
    )
    return lowest, max(highest, lowest + 1e-3)


def _title(results: Mapping) -> str:
    baseline, *others = results["chains"]
    reached = [chain for chain in others if chain["steps_to_baseline"] is not None]
    if not reached:
        return f"Race on {results['workload']}"
    best = min(reached, key=lambda chain: chain["steps_to_baseline"])
    return (
        f"{results['workload']}: {best['label']} reaches the final loss of"
        f" {baseline['label']} in {report.percent(best['step_ratio'])} of its steps"
    )


def _draw_schedules(axes: Axes, results: Mapping) -> None:
    chains = results["chains"]
    for chain, colour in zip(chains, _style.colours(len(chains)), strict=True):
        steps, rates = zip(*chain["schedule"], strict=True)
        label = f"{chain['label']}   peak {chain['peak']:.3g}"
        factors = [rate / chain["peak"] for rate in rates]
        axes.plot(steps, factors, color=colour, linewidth=2, label=label)
    axes.set_xlim(0, max(chain["steps"] for chain in chains) * 1.03)
    axes.set_ylim(0, 1.32)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate / peak")
    axes.set_title("Schedules", loc="left", fontsize=11, pad=10)
    axes.legend(frameon=False, loc="upper right")
