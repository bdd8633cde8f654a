"""Rules for another batch size: golden values, ranges, tracing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import optimizers, schedules

TUNED = {"learning_rate": 3e-4, "b1": 0.9, "b2": 0.999, "eps": 1e-8}


@pytest.mark.parametrize(("rule", "want"), [("linear", 1.2e-3), ("sqrt", 6e-4)])
def test_four_times_the_batch(rule, want):
    got = schedules.for_batch_size(3e-4, 1024, tuned_at=256, rule=rule)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    back = schedules.for_batch_size(got, 256, tuned_at=1024, rule=rule)
    np.testing.assert_allclose(back, 3e-4, rtol=1e-12)


@pytest.mark.parametrize("rule", ["linear", "sqrt"])
def test_a_schedule_is_scaled_in_value_not_in_steps(rule):
    tuned = schedules.cosine(3e-4, total_steps=10, warmup_steps=2)
    scaled = schedules.for_batch_size(tuned, 1024, tuned_at=256, rule=rule)
    factor = {"linear": 4, "sqrt": 2}[rule]
    steps = jnp.arange(12)
    np.testing.assert_allclose(scaled(steps), factor * tuned(steps), rtol=1e-6)
    assert optimizers.sgd(scaled).init(jnp.ones(1))


def test_the_hyperparameters_of_adam():
    got = schedules.adam_for_batch_size(TUNED, 1024, tuned_at=256)
    want = {"learning_rate": 6e-4, "b1": 0.6, "b2": 0.996, "eps": 5e-9}
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12)
    assert TUNED["b1"] == 0.9  # the tuned ones are left alone
    optimizers.adamw(**got).init(jnp.ones(2))


def test_rules_compose_and_the_same_batch_changes_nothing():
    once = schedules.adam_for_batch_size(TUNED, 1024, tuned_at=256)
    first = schedules.adam_for_batch_size(TUNED, 512, tuned_at=256)
    twice = schedules.adam_for_batch_size(first, 1024, tuned_at=512)
    same = schedules.adam_for_batch_size(TUNED, 256, tuned_at=256)
    for name, value in TUNED.items():
        np.testing.assert_allclose(once[name], twice[name], rtol=1e-12)
        np.testing.assert_allclose(same[name], value, rtol=1e-12)


def test_only_what_is_given_is_scaled():
    got = schedules.adam_for_batch_size({"b2": 0.999}, 128, tuned_at=256)
    assert got.keys() == {"b2"}
    np.testing.assert_allclose(got["b2"], 0.9995)


def test_traced_numbers_compile_once_and_leave_the_range_as_no_number():
    traces = []

    @jax.jit
    def scaled(values, batch_size):
        traces.append(1)
        return schedules.adam_for_batch_size(values, batch_size, tuned_at=256)

    for batch_size in (256, 1024):
        got = scaled(TUNED, batch_size)
        want = schedules.adam_for_batch_size(TUNED, batch_size, tuned_at=256)
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-6)
    beyond = scaled(TUNED, 4096)
    assert np.isnan(beyond["b1"]) and np.isfinite(beyond["b2"])
    assert len(traces) == 1


def test_a_traced_batch_size_scales_a_rate():
    rule = jax.jit(
        lambda b: schedules.for_batch_size(3e-4, b, tuned_at=256, rule="sqrt")
    )
    np.testing.assert_allclose(rule(1024), 6e-4, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [2560, 4096])
def test_a_decay_past_the_range_is_refused(batch_size):
    said = r"b1=0\.9 becomes .* at 1. times the batch size"
    with pytest.raises(ValueError, match=said):
        schedules.adam_for_batch_size(TUNED, batch_size, tuned_at=256)


@pytest.mark.parametrize("wrong", [0, -4, float("nan"), float("inf")])
def test_a_batch_size_that_is_not_positive_is_refused(wrong):
    for name, sizes in (("batch_size", (wrong, 256)), ("tuned_at", (256, wrong))):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            schedules.for_batch_size(0.1, sizes[0], tuned_at=sizes[1], rule="sqrt")
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            schedules.adam_for_batch_size(TUNED, sizes[0], tuned_at=sizes[1])


def test_unknown_rules_and_names_are_refused():
    with pytest.raises(ValueError, match=r"rule must be one of .* got 'cubic'"):
        schedules.for_batch_size(0.1, 2, tuned_at=1, rule="cubic")
    with pytest.raises(ValueError, match=r"no rule for \['momentum'\]"):
        schedules.adam_for_batch_size({"momentum": 0.9}, 2, tuned_at=1)


@pytest.mark.parametrize(
    ("eigenvalue", "sizes"),
    [
        (1.0, {16: 5.0, 64: 2.5, 256: 1.3906, 1024: 1.0977, 4096: 1.0244}),
        (10.0, {16: 10.625, 64: 10.156, 256: 10.039, 1024: 10.010, 4096: 10.002}),
    ],
)
def test_the_curvature_of_a_batch(eigenvalue, sizes):
    for size, want in sizes.items():
        got = schedules.curvature_of_batch(eigenvalue, size, noise=1e6**0.5 * 1e-2)
        np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize(
    ("eigenvalue", "measured", "off"),
    [(3, 3.33, 0.08), (1.5, 2.17, 0.08), (0.5, 2, 0.05)],
)
def test_a_spike_in_a_random_matrix_lies_where_the_law_says(eigenvalue, measured, off):
    random, size = np.random.default_rng(0), 400
    noise = random.normal(size=(size, size)) * (2 * size) ** -0.5
    spike = random.normal(size=size)
    spike *= np.sqrt(eigenvalue) / np.linalg.norm(spike)
    largest = np.linalg.eigvalsh(noise + noise.T + np.outer(spike, spike))[-1]
    law = schedules.curvature_of_batch(eigenvalue, 1, noise=1.0)
    assert abs(law - measured) < 0.005
    assert abs(largest - law) < off


def test_the_rate_follows_the_curvature_from_the_root_to_a_constant():
    rule = {"tuned_at": 16, "rule": "random_matrix", "eigenvalue": 1.0, "noise": 10.0}
    rates = [schedules.for_batch_size(0.1, size, **rule) for size in (16, 64, 10**9)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.5], rtol=1e-4)
    traced = jax.jit(lambda b: schedules.for_batch_size(0.1, b, **rule))
    np.testing.assert_allclose(traced(64), 0.2, rtol=1e-6)
    none = schedules.for_batch_size(0.1, 64, **{**rule, "noise": 0.0})
    np.testing.assert_allclose(none, 0.1, rtol=1e-12)


def test_the_random_matrix_wants_its_numbers_and_others_do_not():
    sizes = {"batch_size": 2, "tuned_at": 1}
    with pytest.raises(TypeError, match="'random_matrix' needs eigenvalue and noise"):
        schedules.for_batch_size(0.1, **sizes, rule="random_matrix", noise=1.0)
    with pytest.raises(ValueError, match="'sqrt' uses neither eigenvalue nor noise"):
        schedules.for_batch_size(0.1, **sizes, rule="sqrt", noise=1.0)
    with pytest.raises(ValueError, match=r"noise must be 0 or more, got -1\.0"):
        schedules.curvature_of_batch(1.0, 2, noise=-1.0)
    with pytest.raises(ValueError, match=r"eigenvalue must be positive, got 0\.0"):
        schedules.curvature_of_batch(0.0, 2, noise=1.0)
