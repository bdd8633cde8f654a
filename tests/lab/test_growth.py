"""A batch that grows in the loop: what an update is, what is logged, what survives."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from optlab import controllers, lab, optimizers, schedules
from optlab.lab import (
    autolrs,
    batch_sizes,
    chains,
    cli,
    growth,
    search,
    train,
    workloads,
)
from tests.lab import toy

RUN = {"steps": 60, "eval_every": 12, "checkpoint_every": 15, "measure": False}
SETTINGS = {"max_batch_size": 32, "microbatch_size": 4, "test_every": 3}
# One object, so that runs share the compiled step.
ADAMW = search.steerable(optimizers.adamw, 0.1)
SCHEDULE = schedules.linear(0.05, total_steps=60)


def growing(**more):
    controller = controllers.batch_size(8, **{**SETTINGS, "threshold": 0.4, **more})
    return growth.Growth(controller, SCHEDULE)


def run(workload=toy.BATCH_NORM, out=None, how=None, tx=ADAMW, **more):
    """Trains; returns the result and all arrays of the model."""
    model = workload.make_model(0)
    how = growing() if how is None else how
    more = {**RUN, "progress": False, **more}
    result = train.train(workload, tx, out=out, model=model, growing=how, **more)
    return result, [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def same(a, b):
    """Tells whether two runs have the same losses and arrays, in every bit."""
    losses = [np.array(one.train_losses).tobytes() for one, _ in (a, b)]
    evaluations = [one.evaluations for one, _ in (a, b)]
    return (
        losses[0] == losses[1]
        and evaluations[0] == evaluations[1]
        and toy.same_bits(a[1], b[1])
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture(scope="module")
def undisturbed(folder):
    return run(out=folder, how=growing(lr_scaling="sqrt"))


def test_the_log_shows_how_batches_grow_and_rates_follow(folder, undisturbed):
    rows = toy.log_of(folder, "train")
    sizes = [row["batch_size"] for row in rows]
    steps = [row["step"] for row in rows]
    assert sizes[:3] == [8] * 3 and max(sizes) > 8
    assert sizes[:-1] == sorted(sizes[:-1])  # The last one takes what is left.
    assert sum(sizes) == 60 * 4
    assert steps == [0, *itertools.accumulate(size // 4 for size in sizes)][:-1]
    for row, step in zip(rows[:-1], steps, strict=False):
        wanted = SCHEDULE(step) * (row["batch_size"] / 8) ** 0.5
        np.testing.assert_allclose(row["learning_rate"], wanted, rtol=1e-5)
        np.testing.assert_allclose(
            row["squared_norm"], row["gradient_norm"] ** 2, rtol=1e-4
        )
        assert row["variance"] > 0 and row["variance_along"] is None
    # At the first update that has passed a multiple of 12.
    looks = [step for step, _ in undisturbed[0].evaluations]
    ends = [*steps[1:], 60]
    assert looks == [min(e for e in ends if e >= at) for at in (12, 24, 36, 48, 60)]
    said = growth.summary(folder)
    assert said.startswith(f"{len(sizes)} updates on 240 examples, in batches of 8 to")


def test_the_controller_saw_what_the_log_has(folder, undisturbed):
    controller = growing(lr_scaling="sqrt").controller
    now = controller.init()
    for row in toy.log_of(folder, "train")[:-1]:
        assert row["batch_size"] == now.batch_size
        now = controller.step(now, row["squared_norm"], row["variance"])


def test_an_update_of_microbatches_is_that_of_the_whole_batch():
    """At one size, with a loss of single examples: the loop without microbatches."""
    fixed = growth.Growth(
        controllers.batch_size(16, max_batch_size=16, microbatch_size=4), lambda s: 0.05
    )
    found, parts = run(toy.WORKLOAD, how=fixed, steps=20)
    model = toy.WORKLOAD.make_model(0)
    tx = optimizers.adamw(0.05)
    plain = train.train(toy.WORKLOAD, tx, model=model, **{**RUN, "steps": 5})
    np.testing.assert_allclose(found.train_losses[::4], plain.train_losses, rtol=1e-5)
    for one, other in zip(parts, toy.arrays(model), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("test", ["norm", "augmented"])
def test_one_program_serves_every_batch_size(test, tmp_path):
    traced = []

    def loss(model, batch):
        traced.append(1)
        return toy.loss(model, batch)

    workload = dataclasses.replace(toy.BATCH_NORM, loss=loss)
    run(workload, tmp_path, growing(test=test, threshold=0.1, nu=0.1, test_every=1))
    rows = toy.log_of(tmp_path, "train")
    assert {row["batch_size"] for row in rows} >= {8, 16, 32}
    # The gradient, the evaluation and, where it is needed, the slope along the mean.
    assert len(traced) == (2 if test == "norm" else 3)
    if test == "augmented":
        shares = [row["variance_along"] / row["variance"] for row in rows]
        assert all(0 < share < 1 for share in shares)


# In the first updates, within a window of three, near the end.
@pytest.mark.parametrize("moment", [0, 5, 14])
def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path, moment, undisturbed):
    how = growing(lr_scaling="sqrt")
    with pytest.raises(toy.Interrupted):
        run(toy.interrupt_at(moment), tmp_path, how)
    assert same(run(out=tmp_path, how=how), undisturbed)
    again = run(out=tmp_path, how=how)
    assert same(again, undisturbed) and again[0].resumed_from == 60


def test_a_lost_log_and_another_run_are_said(tmp_path):
    with pytest.raises(toy.Interrupted):
        run(toy.interrupt_at(9), tmp_path)
    with pytest.raises(lab.LabError, match="holds another run"):
        run(out=tmp_path, how=growing(debias=False))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(lab.LabError, match="lost the updates that led to step"):
        run(out=tmp_path)


@pytest.mark.parametrize(
    "kind", [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.slow)]
)
def test_on_a_mesh_the_losses_are_those_of_one_device(kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    one, other = (
        run(toy.WORKLOAD, how=growing(test="inner_product"), mesh=where, steps=24)[0]
        for where in (None, mesh)
    )
    np.testing.assert_allclose(one.train_losses, other.train_losses, rtol=1e-4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(lab.LabError, match="one microbatch has no variance"):
        run(how=growing(microbatch_size=8))
    with pytest.raises(lab.LabError, match=r"16 examples, .* no multiple of micro.*=6"):
        controller = controllers.batch_size(12, max_batch_size=12, microbatch_size=6)
        run(how=growth.Growth(controller, SCHEDULE))
    with pytest.raises(lab.LabError, match=r"search\.steerable"):
        run(tx=optimizers.adamw(0.1))
    with pytest.raises(lab.LabError, match="not both"):
        rates = controllers.autolrs(0.1, 1.0, total_steps=60, stage_steps=60)
        run(controller=rates)


def test_the_command_trains_with_growing_batches(capsys, tmp_path):
    argv = ["train", "--workload", "digits", "--size", "tiny", "--steps", "30"]
    argv += ["--chain", "adagrad+linear", "--out", str(tmp_path)]
    argv += ["--batch-size", "norm:microbatch_size=4,test_every=2,lr_scaling=linear"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert "batch size norm:initial=8,max_batch_size=64,microbatch_size=4" in said
    assert "updates on 240 examples, in batches of 8 to" in said
    rows = toy.log_of(tmp_path, "train")
    assert rows[0]["learning_rate"] == 0  # The schedule has a warm-up.
    assert max(row["learning_rate"] for row in rows) > 0.1  # at larger batches


def test_the_rate_of_a_rest_may_begin_at_zero():
    chain = chains.parse("scale:learning_rate=0.1,rest.learning_rate=0.02+linear")
    tx = autolrs.steerable(chain.explicit(20))
    params = {"bias": jnp.ones(3)}
    state = tx.init(params)
    for rate in (0.0, 0.1):
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        for _ in range(2):  # The schedule has a warm-up of one step, and falls.
            updates, state = tx.update(params, state, params)
        np.testing.assert_allclose(updates["bias"], -0.2 * rate, rtol=0.2, atol=1e-9)


def test_what_the_text_leaves_out_suits_the_workload():
    chain = chains.parse("adamw:learning_rate=0.1+cosine").explicit(100)
    digits = workloads.get("digits")
    plan = batch_sizes.plan("norm:lr_scaling=linear", chain, digits)
    sizes = ("initial", "microbatch_size", "max_batch_size", "learning_rate")
    assert [plan.settings[key] for key in sizes] == [16, 8, 512, 0.25]
    tx, how = plan.build()
    assert plan.microbatches == 8
    schedule = chain.build()[1]
    np.testing.assert_array_equal(
        how.schedule(np.arange(0, 80, 8)), schedule(np.arange(10))
    )
    assert tx.init(jnp.ones(2)).hyperparams["learning_rate"] == np.float32(0.1)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["norms"], "unknown test 'norms'; did you mean 'norm'?"),
        (["norm:eta=1"], "unknown key of norm 'eta'"),
        (["norm:test=augmented"], "the test comes first, without a key"),
        (["norm:learning_rate=1"], "the learning_rate is the chain's"),
        (["norm:microbatch_size=7"], "=7 does not divide the 64 examples"),
        (["norm:max_batch_size=100"], "=100 is no multiple of microbatch_size=8"),
        (["norm:lr_scaling=cubic"], "lr_scaling must be one of"),
        (["norm:threshold=0"], "threshold must be above 0 and finite, got 0"),
        (["norm", "--chain", "sophia+linear"], "sophia needs hessian_diag"),
        (["norm", "--schedule", "autolrs"], "--batch-size needs a schedule; autolrs"),
        (["norm", "--law", "x.json"], "--law is for batches of one size"),
    ],
)
def test_a_growth_that_makes_no_sense_is_refused(more, said, capsys, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("trained"))
    argv = ["train", "--workload", "digits", "--chain", "adamw+linear", "--steps", "40"]
    assert cli.main([*argv, "--batch-size", *more]) == 2
    assert said in capsys.readouterr().err


def test_an_optimizer_is_given_the_loss():
    chain = chains.parse("momo+linear").explicit(40)
    assert batch_sizes.plan("norm", chain, workloads.get("digits")).build()
