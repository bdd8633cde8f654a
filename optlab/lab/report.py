"""Numbers as people read them: tables, sentences, a report in Markdown."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.markup
import rich.table

# Columns of a race's table.
COLUMNS = (
    "chain",
    "steps",
    "final loss",
    "steps to\nbaseline",
    "ratio",
    "ms per\nstep",
    "optim.\nshare",
    "state B\nper param",
    "compile\ns",
)

# Width of tables that do not go to a terminal.
WIDTH = 110


def show(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True
) -> None:
    """Prints a table.

    Args:
      columns: Head of each column.
      rows: Cells of each row.
      numbers: Whether all columns but the first hold numbers.
    """
    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for index, column in enumerate(columns):
        right = numbers and index > 0
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(rich.markup.escape, row))
    width = None if sys.stdout.isatty() else WIDTH
    rich.console.Console(width=width).print(table)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes a table in Markdown; all columns but the first hold numbers.

    Args:
      columns: Head of each column.
      rows: Cells of each row.

    Returns:
      The table.
    """
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    head = [column.replace("\n", " ") for column in columns]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, form: str) -> str:
    """Writes a number.

    >>> number(0.416, "{:.0%}"), number(None, "{:.0%}")
    ('42%', '–')

    Args:
      value: The number; None if it was not measured.
      form: Format for it.

    Returns:
      The number in its form, or a dash.
    """
    return "–" if value is None else form.format(value)


def percent(ratio: float | None) -> str:
    """Writes a ratio to a tenth of a percent.

    >>> percent(0.4), percent(0.375), percent(None)
    ('40%', '37.5%', '–')

    Args:
      ratio: The ratio; None if there is none.

    Returns:
      The percentage, or a dash.
    """
    return "–" if ratio is None else f"{round(100 * ratio, 1):g}%"


def loss(summary: Mapping[str, float | None]) -> str:
    """Writes a mean loss with its spread over seeds.

    >>> loss({"mean": 2.3961, "spread": 0.0042}), loss({"mean": 2.3961, "spread": None})
    ('2.396 ± 0.004', '2.396')

    Args:
      summary: Mean and spread; a mean of None is a run that diverged.

    Returns:
      Mean and spread to a thousandth.
    """
    if summary["mean"] is None:
        return "diverged"
    tail = number(summary["spread"], " ± {:.3f}") if summary["spread"] else ""
    return f"{summary['mean']:.3f}{tail}"


def race_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Writes the rows of a race's table.

    Args:
      results: What race.json holds.

    Returns:
      Cells in the order of `COLUMNS`, a row for each chain.
    """
    return [
        (
            chain["label"],
            str(chain["steps"]),
            loss(chain["final_loss"]),
            number(chain["steps_to_baseline"], "{}"),
            percent(chain["step_ratio"]),
            number(chain["milliseconds_per_step"], "{:.1f}"),
            number(chain["optimizer_share"], "{:.0%}"),
            number(chain["state_bytes_per_parameter"], "{:.1f}"),
            number(chain["compile_seconds"], "{:.1f}"),
        )
        for chain in results["chains"]
    ]


def headlines(results: Mapping[str, Any]) -> list[str]:
    """Says for each chain but the baseline when it reached the baseline's final loss.

    Args:
      results: What race.json holds.

    Returns:
      A sentence for each chain.
    """
    baseline, *others = results["chains"]
    goal = f"{baseline['label']}'s final loss of {results['target']:.3f}"
    sentences = []
    for chain in others:
        seeds = [str(s or "never") for s in chain["steps_to_baseline_by_seed"]]
        by_seed = f" (by seed: {', '.join(seeds)})" if len(seeds) > 1 else ""
        step, ratio = chain["steps_to_baseline"], percent(chain["step_ratio"])
        if step is None:
            end = f"does not reach {goal} in {chain['steps']} steps{by_seed}."
        else:
            share = f"{ratio} of its {baseline['steps']} steps"
            end = f"reaches {goal} at step {step}, in {share}{by_seed}."
        sentences.append(f"{chain['label']} {end}")
    return sentences


def race(results: Mapping[str, Any]) -> str:
    """Writes the report of a race.

    Args:
      results: What race.json holds.

    Returns:
      Markdown; it shows race.png, which lies beside it.
    """
    seeds, machine = results["seeds"], results["machine"]
    chains = [f"- {c['label']}: `{c['chain']}`" for c in results["chains"]]
    spread = (
        "± is the sample standard deviation over the seeds; the band in the picture"
        " reaches from the lowest to the highest seed."
        if len(seeds) > 1
        else "One seed shows no spread."
    )
    versions = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
    return f"""# Race on {results["workload"]}

{" ".join(headlines(results))}

{markdown(COLUMNS, race_rows(results))}

![Validation loss and learning rate against the step](race.png)

The chains, with what their texts left out written down:

{chr(10).join(chains)}

## How it was measured

- Command: `{results["command"]}`
- Seeds {", ".join(map(str, seeds))}. For one seed every chain starts from the same
  parameters and sees the same data in the same order. {spread}
- Final loss: validation loss in nats after the last step. Steps to baseline: the first
  evaluation (one every {results["eval_every"]} steps and one at the end) at which the
  mean loss over the seeds is at or below the baseline's mean final loss,
  {results["target"]:.4f}. Ratio: these steps over the {results["chains"][0]["steps"]}
  steps of the baseline.
- Optimizer: the optimizer's share of a step's time. Compile: the longest of the runs.
  The machine: {machine["processors"]} processors, {machine["devices"]} device(s) of
  kind {machine["device"]}, {machine["system"]}. Times move with its load.
- Versions: {versions}.
"""
