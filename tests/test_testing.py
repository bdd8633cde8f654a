"""`optlab.testing.check` on chains that are not in the catalogue."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optlab import catalog, links, testing

QUICK = ("state_layout_is_stable", "no_recompilation", "zero_gradient")


def my_params():
    random = np.random.default_rng(0)
    shapes = {"w": (8, 4), "b": (4,)}
    return {k: jnp.asarray(random.normal(size=s), "float32") for k, s in shapes.items()}


def my_chain(learning_rate=0.05, b1=0.9):
    return optax.chain(
        links.in_float32(optax.trace(b1)), links.scale_by_learning_rate(learning_rate)
    )


def test_a_chain_of_ones_own_keeps_every_promise_that_can_be_asked():
    report = testing.check(my_chain, my_params(), print=False)
    report.raise_for_failures()
    assert [outcome.name for outcome in report] == list(testing.PROMISES)
    assert {o.name: o.detail for o in report if o.status == "not applicable"} == {
        "stacked_equals_separate": (
            "needs parameters of its own; the chain may be tied to yours"
        ),
        "empty_leaves": "the parameters have no empty leaf",
        "follows_reference": "no reference given",
    }


def test_the_table_has_a_line_for_each_promise_with_aligned_columns(capsys):
    promises = [*QUICK, "donation", "inject_hyperparams"]
    report = testing.check(my_chain(), my_params(), promises=promises)
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    assert printed.splitlines() == [
        "state_layout_is_stable  pass            float32, bfloat16, float16, float64;"
        " plain and under lax.cond",
        "no_recompilation        pass            1 compilation, 4 steps",
        "zero_gradient           pass",
        "donation                pass            identical",
        "inject_hyperparams      not applicable  the chain is already built; pass a Row"
        " or a factory",
        "chain: 4 pass, 0 fail, 1 not applicable",
    ]


def test_failures_say_which_leaf_and_what_to_do():
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    promises = ["nonfinite_stays_in_its_leaf", "learning_rate_is_readable", *QUICK]
    report = testing.check(chain, my_params(), promises=promises, print=False)
    assert not report.passed
    assert {outcome.name: outcome.detail for outcome in report.failed} == {
        "nonfinite_stays_in_its_leaf": "nan in 'b' changes the update of 'w'",
        "learning_rate_is_readable": (
            "no rate in the state; end with links.scale_by_learning_rate"
        ),
    }
    with pytest.raises(AssertionError, match=r"nan in 'b' changes the update of 'w'"):
        report.raise_for_failures()


def test_an_exemption_is_reported_with_its_reason():
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    name = "nonfinite_stays_in_its_leaf"
    report = testing.check(
        chain,
        my_params(),
        promises=[name],
        exempt={name: "clips by the norm of all leaves"},
        print=False,
    )
    assert report[name].status == "not applicable"
    assert report[name].detail == "clips by the norm of all leaves"


def test_an_exception_in_the_chain_is_a_failure_of_each_promise_not_a_crash():
    def broken(updates, state, params=None):
        raise RuntimeError("no update\ntoday")

    chain = optax.GradientTransformation(lambda params: (), broken)
    report = testing.check(chain, my_params(), promises=QUICK, print=False)
    assert [o.detail for o in report.failed] == ["RuntimeError: no update today"] * 3


def test_extra_arguments_come_from_the_needs_of_the_row_or_from_the_caller():
    def update(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda u: -u * (1 + 0 * value), updates), state

    def build(learning_rate=1.0):
        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    row = catalog.Row(
        *("needy", build, "optimizers", "test"),
        catalog.Paper("A", "B", 2000, "https://example.org"),
        needs=("value",),
    )
    promises = [*QUICK, "unknown_extra_arguments"]
    assert testing.check(row, my_params(), promises=promises, print=False).passed
    without = testing.check(build, my_params(), promises=promises, print=False)
    assert "missing 1 required keyword-only argument: 'value'" in str(without)
    given = testing.check(
        build,
        my_params(),
        promises=promises,
        extra_args=lambda params, grads, loss: {"value": loss(params)},
        print=False,
    )
    assert given.passed


@pytest.mark.parametrize(
    "needs",
    [
        ("value", "grad", "value_fn", "logit_grad_l1"),
        ("key", "loss_fn", "hessian_diag", "layer_stats"),
    ],
)
def test_the_suite_can_supply_the_extra_arguments_of_the_house(needs):
    seen = {}

    def update(updates, state, params=None, **extra):
        seen.update(extra)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    row = catalog.get("sgd")
    needy = catalog.Row(
        "needy", lambda: tx, row.room, row.family, row.paper, needs=needs
    )
    testing.check(needy, my_params(), promises=QUICK[:1], print=False)
    assert set(seen) == set(needs)


def test_an_extra_argument_that_cannot_be_made_is_named():
    row = catalog.get("sgd")
    needy = catalog.Row(
        *("needy", row.build, row.room, row.family, row.paper),
        needs=("noise_pair",),
        defaults=row.defaults,
    )
    report = testing.check(needy, my_params(), promises=QUICK[:1], print=False)
    assert "cannot make the extra arguments ['noise_pair']" in str(report)


def test_a_promise_of_ones_own_can_be_asked():
    def no_momentum(subject):
        if jax.tree.leaves(subject.trajectory()[0].state):
            raise testing.Broken("it remembers")
        return "stateless"

    mine = testing.Promise("no_momentum", "The chain has no state.", no_momentum)
    plain = testing.check(optax.sgd(0.1), my_params(), promises=[mine], print=False)
    heavy = testing.check(my_chain, my_params(), promises=[mine], print=False)
    assert plain["no_momentum"].detail == "stateless"
    assert heavy["no_momentum"].detail == "it remembers"


def test_a_reference_decides_about_the_numbers():
    def descent(rate):
        def reference(params, grads):
            points = []
            for g in grads:
                params = jax.tree.map(lambda p, g: p - rate * g, params, g)
                points.append(params)
            return points

        return reference

    for rate, status in ((0.1, "pass"), (0.1001, "fail")):
        report = testing.check(
            optax.sgd(0.1),
            my_params(),
            promises=["follows_reference"],
            reference=descent(rate),
            print=False,
        )
        assert report["follows_reference"].status == status


def test_without_eight_devices_the_mesh_promises_say_what_to_set(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    report = testing.check(
        optax.sgd(0.1), my_params(), promises=["explicit_mesh"], print=False
    )
    assert report["explicit_mesh"].status == "not applicable"
    assert "set jax_num_cpu_devices" in report["explicit_mesh"].detail


@pytest.mark.parametrize(
    ("promise", "module", "package"),
    [
        ("resume_orbax", "orbax.checkpoint", "orbax-checkpoint"),
        ("resume_msgpack", "flax.serialization", "flax"),
    ],
)
def test_without_the_package_the_resume_promise_says_which(
    monkeypatch, promise, module, package
):
    monkeypatch.setitem(sys.modules, module, None)
    report = testing.check(my_chain, my_params(), promises=[promise], print=False)
    assert report[promise].status == "not applicable"
    assert report[promise].detail == f"needs {package}"


def test_parameters_that_flax_cannot_save_are_not_held_against_the_chain():
    params = nnx.state(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Param)
    promises = [*QUICK, "masked", "explicit_mesh", "resume_msgpack"]
    report = testing.check(my_chain, params, promises=promises, print=False)
    report.raise_for_failures()
    assert "cannot save these parameters" in report["resume_msgpack"].detail


def test_an_optax_factory_is_named_and_built_from_a_partial():
    factory = functools.partial(optax.sgd, learning_rate=0.1)
    promises = ["schedule_counts_from_zero", "schedule_equals_constant"]
    report = testing.check(factory, my_params(), promises=promises, print=False)
    assert report.subject == "sgd"
    assert report["schedule_counts_from_zero"].status == "pass"
    # Optax has no state for a constant and a counter for a schedule.
    assert "have other states" in report["schedule_equals_constant"].detail


def test_a_factory_without_a_value_for_an_argument_raises():
    with pytest.raises(TypeError, match=r"needs \['learning_rate'\].*partial"):
        testing.check(optax.sgd)


def test_what_is_no_chain_raises():
    with pytest.raises(TypeError, match="expected a GradientTransformation"):
        testing.check(3.0)


def test_an_unknown_promise_raises_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no promise 'speed'.*donation"):
        testing.check(optax.sgd(0.1), promises=["speed"])


def test_every_promise_says_what_it_claims():
    claims = [promise.claim for promise in testing.PROMISES.values()]
    assert all(claim.endswith(".") for claim in claims)
    assert len(set(claims)) == len(claims)


def test_a_report_without_the_promise_raises():
    with pytest.raises(KeyError, match="speed"):
        testing.Report("mine", ())["speed"]


def test_two_steps_share_one_compilation_in_a_subject():
    subject = testing.Subject(my_chain, my_params())
    for _ in range(2):
        report = testing.check(subject, promises=["no_recompilation"], print=False)
        assert report.passed
    assert subject.traces == 1
