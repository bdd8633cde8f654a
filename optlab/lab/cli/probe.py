"""`optlab probe`."""

import math
import pathlib
import types
from typing import Any

from absl import flags

from optlab.lab.cli import options

POSITIONAL = ("RUN",)

# What can be measured; the first three are the default.
WHAT = ("spectrum", "sharpness", "noise", "examples")

EXAMPLES = """\
optlab probe runs/train
    spectrum of the Hessian, sharpness beside 2 / rate, noise of the gradient
optlab probe runs/train --what spectrum --batches 32 --draws 8
    the spectrum alone, more exactly
optlab probe runs/train --what examples
    which examples' losses rose and fell between the two newest checkpoints

RUN is the folder of a run, with its checkpoints. The numbers go to
probe.json there, each picture to a file of its own, as probe_noise.png;
nothing else in it changes.
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    flags.DEFINE_list(
        "what",
        list(WHAT[:3]),
        f"What to measure, with commas between: {', '.join(WHAT)}.",
        flag_values=values,
    )
    counts = {
        "batches": (8, "Training batches that stand for the data."),
        "lanczos_steps": (32, "Hessian products for each spectrum."),
        "draws": (
            4,
            "Random vectors for the density; four times as many for the trace.",
        ),
        "top": (5, "Eigenvalues, or examples, to name."),
    }
    options.define_counts(values, counts)
    flags.DEFINE_integer(
        "seed", 0, "Seed of the random vectors.", lower_bound=0, flag_values=values
    )


def run(given: types.SimpleNamespace, command: str) -> None:
    """Probes a run, prints what comes out and draws it.

    Args:
      given: The value of each flag.
      command: The command line, for the record.
    """
    from optlab.lab import probing, runs, saved, settings

    asked = [name.strip() for name in given.what]
    for name in asked:
        if name not in WHAT:
            raise options.UsageError(f"--what: {settings.unknown('probe', name, WHAT)}")
    if not asked:
        raise options.UsageError(f"--what: name one or more of {', '.join(WHAT)}")
    found = saved.find(given.run)
    folder = pathlib.Path(given.run)
    prober = probing.Prober(
        found,
        probing.Settings(
            batches=given.batches,
            steps=given.lanczos_steps,
            draws=given.draws,
            top=given.top,
            seed=given.seed,
        ),
    )
    print(f"{given.run}: {found.workload.name}, {found.chain}")
    numbers: dict[str, Any] = {"command": command, "versions": runs.versions()}
    drawn = []
    tell = {
        "spectrum": _spectrum,
        "sharpness": _sharpness,
        "noise": _noise,
        "examples": _examples,
    }
    for name in dict.fromkeys(asked):
        picture = folder / f"probe_{name}.png"
        numbers[name] = tell[name](prober, picture, folder.resolve().name)
        drawn.append(picture.name)
    runs.write_json(folder / "probe.json", _finite(numbers))
    print(f"Written: {given.run}/probe.json, {', '.join(drawn)}")


def _spectrum(prober: Any, picture: pathlib.Path, title: str) -> dict[str, Any]:
    from optlab.lab import plots, report

    found = prober.spectrum()
    pairs = list(zip(found.values, found.residuals, strict=True))
    rows = [
        (f"eigenvalue {i}", f"{value:.5g}", f"± {residual:.1g}")
        for i, (value, residual) in enumerate(pairs, 1)
    ]
    low = found.nodes[:, 0].min()
    rows.append(("least node", f"{low:.5g}", ""))
    rows.append(("trace", f"{found.trace[0]:.5g}", f"± {found.trace[1]:.1g}"))
    report.show((f"Hessian at step {found.step}", "value", "error"), rows)
    plots.spectrum(found, picture, f"{title}: Hessian at step {found.step}")
    return {
        "step": found.step,
        "values": found.values.tolist(),
        "residuals": found.residuals.tolist(),
        "least_node": float(low),
        "trace": list(found.trace),
        "nodes": found.nodes.tolist(),
        "weights": found.weights.tolist(),
    }


def _sharpness(prober: Any, picture: pathlib.Path, title: str) -> list[dict[str, Any]]:
    from optlab.lab import plots, report

    found = prober.sharpness()
    columns = (
        *("step", "largest\neigenvalue", "along the\ngradient", "trace", "rate"),
        *("2 / rate", "eigenvalue\nx rate / 2"),
    )
    rows = [
        (
            str(row.step),
            f"{row.sharpness:.4g}",
            f"{row.along_gradient:.4g}",
            f"{row.trace[0]:.4g} ± {row.trace[1]:.2g}",
            *(_or_dash(x) for x in (row.rate, row.edge, row.sharpness / row.edge)),
        )
        for row in found
    ]
    report.show(columns, rows)
    print(
        "2 / rate is the edge of plain gradient descent; momentum and scaled steps have"
        " others, see probes.stability_threshold."
    )
    rates = prober.run.rates()
    plots.sharpness(found, rates, picture, f"{title}: sharpness along the run")
    return [row._asdict() for row in found]


def _noise(prober: Any, picture: pathlib.Path, title: str) -> dict[str, Any]:
    from optlab.lab import plots, report

    found = prober.noise()
    rows = [
        ("squared norm of the true gradient", f"{found.gradient_sq:.4g}"),
        ("variance of one example's gradient", f"{found.noise:.4g}"),
        ("noise scale, in examples", f"{found.noise_scale:.4g}"),
        ("batch of the run", str(found.batch)),
    ]
    report.show((f"Gradient noise at step {found.step}", "value"), rows)
    plots.noise(found, picture, f"{title}: gradient noise at step {found.step}")
    return found._asdict()


def _examples(prober: Any, picture: pathlib.Path, title: str) -> dict[str, Any]:
    from optlab.lab import plots, report

    found = prober.examples()
    first, last = found.steps
    rows = [
        (
            f"most {word}: {place}",
            f"{found.before[place]:.4g}",
            f"{found.after[place]:.4g}",
        )
        for word, places in (("up", found.risen), ("down", found.fallen))
        for place in places
    ]
    report.show(("example", f"loss at step {first}", f"loss at step {last}"), rows)
    plots.examples(found, picture, f"{title}: losses of examples")
    return {"steps": [first, last]} | {
        name: getattr(found, name).tolist()
        for name in ("before", "after", "risen", "fallen")
    }


def _or_dash(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity; they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
