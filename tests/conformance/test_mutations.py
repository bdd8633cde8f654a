"""The suite is not blind: each planted fault turns red the promises that it breaks."""

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import testing
from tests.conformance import faults
from tests.conformance.references import first_order

MESHES = ("explicit_mesh", "auto_mesh")
RESUMES = ("resume_orbax", "resume_msgpack")

# Each fault with promises that must name it.
CAUGHT_BY = {
    "wrong_sign": ("descends_quadratic", "descends_rosenbrock", "follows_reference"),
    "dropped_bias_correction": ("follows_reference",),
    "ignores_batch_axes": ("stacked_equals_separate",),
    "schedule_read_one_step_late": ("schedule_counts_from_zero",),
    "stale_count": ("schedule_counts_from_zero", "learning_rate_is_readable"),
    "counter_wraps_round": ("count_saturates",),
    "schedule_has_a_state_of_its_own": (
        "schedule_equals_constant",
        "learning_rate_is_readable",
    ),
    "one_buffer_twice": ("donation",),
    "parameters_as_state": ("donation",),
    "state_not_placed_like_parameters": MESHES,
    "gathers_the_update": (*MESHES, "sends_no_more_for_more_layers"),
    "state_in_half_precision": (
        "accumulators_are_float32",
        "hyperparameters_keep_precision",
    ),
    "hyperparameters_cast_to_parameters": ("hyperparameters_keep_precision",),
    "update_in_float32": ("updates_keep_their_dtype",),
    "dtype_of_the_state_drifts": ("state_layout_is_stable", "no_recompilation", "scan"),
    "state_grows": ("state_layout_is_stable", "no_recompilation", "multi_steps"),
    "setting_in_the_state": ("no_static_settings_in_state",),
    "recompiles_each_step": ("state_layout_is_stable", "no_recompilation"),
    "state_that_flax_cannot_save": ("resume_msgpack",),
    "refuses_extra_arguments": ("unknown_extra_arguments",),
    "branches_on_a_hyperparameter": ("inject_hyperparams",),
    "init_reads_values": ("init_on_abstract_parameters",),
    "init_needs_a_leaf": ("tree_map_params",),
    "scales_by_position": ("masked", "partition"),
    "counts_calls_on_the_host": ("chain", "scan", "vmap", *RESUMES),
    "nan_on_zero_gradient": ("zero_gradient",),
    "maximum_of_an_empty_leaf": ("empty_leaves",),
    "square_overflows": ("tiny_and_huge_gradients", "half_precision_extremes"),
    "nan_spreads_through_a_norm": ("nonfinite_stays_in_its_leaf",),
}


def small_params():
    shapes = {"bias": (8,), "empty": (0, 4), "kernel": (8, 8), "scale": ()}
    random = np.random.default_rng(0)
    return {k: jnp.asarray(random.normal(size=s), "float32") for k, s in shapes.items()}


def reference(params, grads):
    numbers = {"learning_rate": faults.RATE, "weight_decay": 0.0}
    betas = {"b1": faults.B1, "b2": faults.B2, "eps": faults.EPS}
    return first_order.adamw({**numbers, **betas})(params, grads)


def test_the_sound_chain_is_green():
    report = testing.check(faults.sound, reference=reference, print=False)
    report.raise_for_failures()
    assert {outcome.status for outcome in report} == {"pass"}


@pytest.mark.parametrize("fault", CAUGHT_BY)
def test_the_planted_fault_turns_the_suite_red(fault):
    caught_by = CAUGHT_BY[fault]
    # Stacked layers are compared on the suite's own parameters only.
    params = None if "stacked_equals_separate" in caught_by else small_params()
    report = testing.check(
        getattr(faults, fault),
        params,
        promises=caught_by,
        reference=reference,
        print=False,
    )
    assert [outcome.name for outcome in report.failed] == list(caught_by), str(report)


def test_every_promise_is_broken_by_some_fault():
    assert {name for names in CAUGHT_BY.values() for name in names} == set(
        testing.PROMISES
    )
