"""The conformance suite: what every chain of this library keeps, and yours may.

`check` holds a transformation, a catalogue row or a factory against every promise in
`PROMISES` and prints a table. Give a row or a factory where you can: some promises
build the chain again, with traced hyperparameters, a schedule or another rate.
"""

import builtins
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax

from optlab import catalog
from optlab.testing import (
    _composition,
    _descent,
    _inputs,
    _mesh,
    _report,
    _resume,
    _state,
)
from optlab.testing._report import Broken, NotApplicable, Outcome, Report
from optlab.testing._subject import TOLERANCE, Point, Subject, default_params

__all__ = [
    "PROMISES",
    "Broken",
    "NotApplicable",
    "Outcome",
    "Point",
    "Promise",
    "Report",
    "Subject",
    "check",
    "default_params",
]


@dataclasses.dataclass(frozen=True)
class Promise:
    """One thing that a chain is held to.

    Attributes:
      name: Name in the table.
      claim: What is promised, one sentence.
      test: Function of a `Subject`; returns a word on what it saw, raises `Broken` or
        `NotApplicable`. Any other exception counts as broken too.
    """

    name: str
    claim: str
    test: Callable[[Subject], str]


def _promises(*tests: Callable[[Subject], str]) -> dict[str, Promise]:
    return {
        test.__name__: Promise(test.__name__, (test.__doc__ or "").strip(), test)
        for test in tests
    }


PROMISES: Mapping[str, Promise] = _promises(
    _state.init_on_abstract_parameters,
    _state.state_layout_is_stable,
    _state.no_recompilation,
    _state.updates_keep_their_dtype,
    _state.accumulators_are_float32,
    _state.hyperparameters_keep_precision,
    _state.no_static_settings_in_state,
    _state.count_saturates,
    _state.donation,
    _state.tree_map_params,
    _composition.unknown_extra_arguments,
    _composition.inject_hyperparams,
    _composition.chain,
    _composition.masked,
    _composition.partition,
    _composition.multi_steps,
    _composition.scan,
    _composition.vmap,
    _composition.stacked_equals_separate,
    _composition.schedule_equals_constant,
    _composition.schedule_counts_from_zero,
    _composition.learning_rate_is_readable,
    _inputs.zero_gradient,
    _inputs.tiny_and_huge_gradients,
    _inputs.half_precision_extremes,
    _inputs.nonfinite_stays_in_its_leaf,
    _inputs.empty_leaves,
    _mesh.explicit_mesh,
    _mesh.auto_mesh,
    _mesh.sends_no_more_for_more_layers,
    _resume.resume_orbax,
    _resume.resume_msgpack,
    _descent.descends_quadratic,
    _descent.descends_rosenbrock,
    _descent.follows_reference,
)


def check(
    tx_or_build: (
        Subject
        | catalog.Row
        | optax.GradientTransformation
        | Callable[..., optax.GradientTransformation]
    ),
    params: Any = None,
    *,
    row: catalog.Row | None = None,
    promises: Iterable[str | Promise] | None = None,
    extra_args: Callable[..., dict[str, Any]] | None = None,
    exempt: Mapping[str, str] | None = None,
    reference: Callable[[Any, list[Any]], list[Any]] | None = None,
    tolerance: float = TOLERANCE,
    print: bool = True,
) -> Report:
    """Holds a chain against every promise and prints a table of the outcomes.

    A promise that fails says which leaf, what came and, where it is known, what to do.
    One that cannot be asked is 'not applicable' and says why: the mesh promises need
    eight devices (`jax.config.update("jax_num_cpu_devices", 8)` before JAX starts),
    the resume promises need orbax-checkpoint and flax. Runs for seconds: small shapes.

    Args:
      tx_or_build: A `catalog.Row`, a factory whose arguments all have values (use
        `functools.partial`), a transformation, or a `Subject` made of one of these.
      params: Tree of floating arrays, small ones; None means `default_params()`, which
        has a leaf for every kind of parameter in a Flax model.
      row: Catalogue row that describes a chain which is not itself a row.
      promises: Names from `PROMISES`, or promises of your own; None means all.
      extra_args: Function (params, grads, loss) -> dict of the extra arguments that
        the chain needs. None means what `row.needs` names.
      exempt: Reasons by promise, for promises that the method cannot keep, beside
        those of the row. They are reported as not applicable.
      reference: Function (params, grads) -> list with the parameters after each
        gradient, in float64 NumPy arrays, for the promise `follows_reference`.
      tolerance: Allowed difference in float32, relative to the largest entry of a
        leaf, where the same numbers are computed in another order.
      print: Whether to print the table.

    Returns:
      The `Report`: `passed`, `failed`, one row a promise, `raise_for_failures()`.

    Raises:
      ValueError: If a promise is unknown.
      TypeError: If there is nothing to check.

    Example:
      >>> from optlab import catalog, testing
      >>> names = ["no_recompilation", "zero_gradient"]
      >>> report = testing.check(catalog.get("lion"), promises=names)
      no_recompilation  pass            1 compilation, 4 steps
      zero_gradient     pass
      lion: 2 pass, 0 fail, 0 not applicable

    Source:
      Written for this library; several promises are those of Optax's own tests, asked
      of matrices, stacks and convolutions as well.
    """
    if isinstance(tx_or_build, Subject):
        subject = tx_or_build
    else:
        subject = Subject(
            tx_or_build,
            params,
            row=row,
            extra_args=extra_args,
            exempt=exempt,
            reference=reference,
            tolerance=tolerance,
        )
    chosen = PROMISES.values() if promises is None else map(_find, promises)
    report = Report(subject.name, tuple(_run(p, subject) for p in list(chosen)))
    if print:
        builtins.print(report)
    return report


def _find(promise: str | Promise) -> Promise:
    if isinstance(promise, Promise):
        return promise
    if promise not in PROMISES:
        known = ", ".join(PROMISES)
        raise ValueError(f"testing.check: no promise {promise!r}; known: {known}")
    return PROMISES[promise]


def _run(promise: Promise, subject: Subject) -> Outcome:
    start = time.perf_counter()
    if promise.name in subject.exempt:
        status, detail = _report.NOT_APPLICABLE, subject.exempt[promise.name]
    else:
        status, detail = _ask(promise, subject)
    return Outcome(promise.name, status, detail, time.perf_counter() - start)


def _ask(promise: Promise, subject: Subject) -> tuple[str, str]:
    try:
        # Before anything else takes a step: the trajectory counts its compilations.
        subject.trajectory()
        return _report.PASS, promise.test(subject)
    except NotApplicable as reason:
        return _report.NOT_APPLICABLE, str(reason)
    except Broken as broken:
        return _report.FAIL, str(broken)
    except Exception as error:
        # Whatever a stranger's chain raises is an outcome, not an end of the table.
        text = " ".join(str(error).split())
        return _report.FAIL, f"{type(error).__name__}: {text}"
