"""`optlab fit`."""

import pathlib
import types

from absl import flags

from optlab.lab.cli import options

POSITIONAL = ("CURVE...",)

EXAMPLES = """\
optlab fit constant.csv cosine.csv --out law.json
    a law of two runs, one of which lets its learning rate fall
optlab fit runs/constant runs/cosine --window 10 --plot law.png
    the same of runs of `optlab train`, ten batches at a time, with a picture
optlab fit a.csv loss.csv,rate.csv --law annealing --warmup-steps 2000
    another law; two files of a run whose tool exports one number at a time

A curve is a CSV file with the columns step, lr and loss, an export of W&B,
two exports of TensorBoard, or the folder of a run.
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    flags.DEFINE_string(
        "law",
        None,
        "The law: progress (the default), annealing, multi_power or power.",
        flag_values=values,
    )
    options.define_losses(values)
    options.define_warmup(values)
    flags.DEFINE_string(
        "out", "law.json", "File for the fitted law.", flag_values=values
    )
    flags.DEFINE_string(
        "plot", None, "Picture of the fit: PNG, SVG or PDF.", flag_values=values
    )


def run(given: types.SimpleNamespace, command: str) -> None:
    """Fits the law, prints it and writes it.

    Args:
      given: The value of each flag.
      command: The command line; a law does not record it.
    """
    from optlab import laws
    from optlab.lab import curves, forecasts, plots, report, settings

    del command
    if given.plot:
        plots.check_path(given.plot)
    law = None
    if given.law is not None:
        if given.law not in laws.LAWS:
            raise options.UsageError(settings.unknown("law", given.law, laws.LAWS))
        law = laws.LAWS[given.law]()
    how = {
        "losses": given.losses,
        "window": given.window,
        "warmup_steps": given.warmup_steps,
    }
    found = [curves.read(source, **how) for source in given.curve]
    with forecasts.told():
        fitted = laws.fit(found, law)
        runs = [forecasts.compare(fitted, curve) for curve in found]
    print(f"The {fitted.law.name} law; intervals of 90 %")
    report.show(forecasts.PARAMETER_COLUMNS, forecasts.parameter_rows(fitted))
    report.show(
        ("curve", *forecasts.ERROR_COLUMNS), [forecasts.error_row(run) for run in runs]
    )
    forecasts.write_law(pathlib.Path(given.out), fitted)
    forecasts.warn(fitted.warnings)
    written = [given.out]
    if given.plot:
        plots.fit(runs, given.plot, f"The {fitted.law.name} law and its curves")
        written.append(given.plot)
    print(f"Written: {' and '.join(written)}")
