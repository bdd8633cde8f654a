"""The pictures of probes: spectra, sharpness along a run, noise, single examples."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from optlab.lab.plots import _style

if TYPE_CHECKING:  # It loads Orbax, which pictures do without.
    from optlab.lab import probing

QUIET, LOUD, CALM, WARM = _style.COLOURS[:4]

# Below this part of its peak a density is not shown.
FLOOR = 1e-7


def spectrum(found: "probing.Spectrum", path: str | os.PathLike, title: str) -> None:
    """Draws the density of the eigenvalues, and the largest ones.

    Args:
      found: The spectrum.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
    """
    with _style.figure(path, (11.5, 4.8)) as figure:
        axes = figure.subplots()
        _style.title(figure, title)
        floor = FLOOR * found.density.max()
        shown = np.where(found.density > floor, found.density, np.nan)
        axes.fill_between(found.grid, floor, shown, color=CALM, alpha=0.25, linewidth=0)
        axes.semilogy(found.grid, shown, color=CALM, linewidth=1.4, label="density")
        foot = np.full(len(found.values), floor)
        label = f"the {len(found.values)} largest"
        axes.plot(
            found.values,
            foot,
            "^",
            color=LOUD,
            markersize=9,
            clip_on=False,
            label=label,
            zorder=4,
        )
        axes.axvline(0, color=_style.INK, linewidth=0.8)
        axes.set_ylim(floor, 3 * found.density.max())
        draws = f"{len(found.nodes)} random vectors, {found.nodes.shape[1]} steps each"
        _panel(axes, f"Density of the eigenvalues, {draws}", "eigenvalue", "density")
        _style.legend(axes)


def sharpness(
    rows: "Sequence[probing.Sharpness]",
    rates: dict[int, float],
    path: str | os.PathLike,
    title: str,
) -> None:
    """Draws sharpness and trace along a run, beside what its rate can stand.

    Args:
      rows: The checkpoints.
      rates: Learning rate of each update, by its step.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
    """
    steps = [row.step for row in rows]
    with _style.figure(path, (11.5, 4.8)) as figure:
        left, right = figure.subplots(1, 2)
        _style.title(figure, title)
        top = [row.sharpness for row in rows]
        left.plot(steps, top, "o-", color=LOUD, label="largest eigenvalue")
        along = [row.along_gradient for row in rows]
        left.plot(steps, along, "s-", color=WARM, label="along the gradient")
        sums, errors = zip(*(row.trace for row in rows), strict=True)
        right.errorbar(
            steps,
            sums,
            2 * np.array(errors),
            fmt="o-",
            color=CALM,
            capsize=4,
            label="trace, ± 2 standard errors",
        )
        known = {step + 1: 2 / rate for step, rate in rates.items() if rate > 0}
        for axes in (left, right):
            if known:
                line = (list(known), list(known.values()))
                axes.plot(*line, color=QUIET, linewidth=1.2, label="2 / learning rate")
            _settle(axes)
        _style.panel(left, "Curvature along directions", "curvature")
        _style.panel(right, "Trace of the Hessian", "curvature")
        for axes in (left, right):
            _legend(axes)


def noise(found: "probing.Noise", path: str | os.PathLike, title: str) -> None:
    """Draws how the squared norm of the gradient falls as batches grow.

    Args:
      found: The gradients' norms.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
    """
    sizes = np.array(found.sizes, float)
    grid = np.geomspace(sizes[0], sizes[-1], 200)
    with _style.figure(path, (9.5, 4.8)) as figure:
        axes = figure.subplots()
        _style.title(figure, title)
        axes.loglog(sizes, found.sq_norms, "o", color=LOUD, label="measured", zorder=3)
        line = found.gradient_sq + found.noise / grid
        axes.plot(grid, line, color=CALM, label="signal + noise / batch size")
        if found.gradient_sq > 0:
            axes.axhline(
                found.gradient_sq,
                color=CALM,
                linewidth=1,
                linestyle=(0, (4, 3)),
                label="signal: the true gradient",
            )
        _mark(axes, found.batch, "the run's batch", QUIET)
        if np.isfinite(found.noise_scale) and found.noise_scale > 0:
            _mark(axes, found.noise_scale, "noise scale", _style.INK)
        ticks = [*found.sizes][:: max(1, len(sizes) // 6)]
        axes.set_xticks(ticks, [str(size) for size in ticks])
        axes.minorticks_off()
        _count_plainly(axes)
        # Room below the signal for what is written there.
        lowest = found.gradient_sq if found.gradient_sq > 0 else min(found.sq_norms)
        axes.set_ylim(bottom=0.6 * lowest)
        _panel(
            axes, "Squared norm of a gradient", "examples in a batch", "squared norm"
        )
        _style.legend(axes)


def examples(found: "probing.Examples", path: str | os.PathLike, title: str) -> None:
    """Draws the loss of every example before and after, and how it changed.

    Args:
      found: The losses.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
    """
    change = found.after - found.before
    with _style.figure(path, (11.5, 4.8)) as figure:
        pairs, order = figure.subplots(1, 2)
        _style.title(figure, title)
        low = min(found.before.min(), found.after.min())
        high = max(found.before.max(), found.after.max())
        pairs.plot([low, high], [low, high], color=QUIET, linewidth=1)
        pairs.plot(found.before, found.after, ".", color=CALM, alpha=0.5, markersize=4)
        kinds: Any = (
            (found.risen, LOUD, "most up"),
            (found.fallen, WARM, "most down"),
        )
        for places, colour, label in kinds:
            style = {"color": colour, "markersize": 6, "label": label}
            pairs.plot(found.before[places], found.after[places], "o", **style)
        first, last = found.steps
        _panel(pairs, "Loss of each example", f"at step {first}", f"at step {last}")
        if low > 0:
            pairs.loglog()
        _legend(pairs)
        order.axhline(0, color=QUIET, linewidth=1)
        order.plot(np.sort(change), color=CALM, linewidth=2)
        rose = np.mean(change > 0)
        _panel(order, f"Change, sorted: {rose:.0%} rose", "examples", "change of loss")


def _panel(axes: Axes, text: str, across: str, up: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, pad=10)
    axes.set_xlabel(across)
    axes.set_ylabel(up)


def _legend(axes: Axes) -> None:
    """Names the lines where they leave room."""
    axes.legend(loc="best", facecolor="white", edgecolor="none", framealpha=1)


def _settle(axes: Axes) -> None:
    """Counts curvature in powers of ten where all of it is above zero."""
    lines = (line.get_ydata() for line in axes.get_lines())
    values = np.concatenate([np.asarray(line, float) for line in lines])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0:
        axes.set_yscale("log")
        _count_plainly(axes)
    axes.set_xlim(left=0)


def _count_plainly(axes: Axes) -> None:
    """Labels a scale of powers so that a narrow one has numbers too."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _mark(axes: Axes, at: float, text: str, colour: str) -> None:
    axes.axvline(at, color=colour, linewidth=1, linestyle=":")
    axes.annotate(
        f"{text}: {at:.3g}",
        (at, 0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(5, 6 if colour == QUIET else 20),
        textcoords="offset points",
        color=colour,
    )
