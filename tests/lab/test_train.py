"""The loop: what it logs, where it goes on, and how it stops."""

import dataclasses
import io
import json
import math
import sys

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from optlab import lab, optimizers, schedules
from optlab.lab import chains, checkpoints, train, workloads
from tests.lab import toy

TX = optimizers.adamw(schedules.linear(0.1, total_steps=12))
RUN = {"steps": 12, "eval_every": 5, "checkpoint_every": 4, "measure": False}


class Interrupted(Exception):
    pass


def with_batch(act):
    """The toy workload; `act(step, batch)` sees each batch before it is used."""

    def batch(seed, step):
        drawn = toy.WORKLOAD.batch(seed, step)
        return act(step, drawn) or drawn

    return dataclasses.replace(toy.WORKLOAD, batch=batch)


def interrupt_at(step):
    def act(now, batch):
        if now == step:
            raise Interrupted

    return with_batch(act)


def run(workload=toy.WORKLOAD, tx=TX, **settings):
    """Trains; returns the result and the parameters."""
    model = workload.make_model(0)
    result = train.train(workload, tx, model=model, **{**RUN, **settings})
    return result, toy.arrays(model)


def log_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def undisturbed():
    return run()


def test_every_step_and_evaluation_is_logged(tmp_path, undisturbed):
    result, _ = run(out=tmp_path)
    rows = log_of(tmp_path)
    trained = [row for row in rows if row["kind"] == "train"]
    evaluated = [row for row in rows if row["kind"] == "eval"]
    assert [row["step"] for row in trained] == list(range(12))
    assert [row["step"] for row in evaluated] == [5, 10, 12]
    assert [row["loss"] for row in trained] == result.train_losses
    assert [(row["step"], row["loss"]) for row in evaluated] == result.evaluations
    assert evaluated[-1]["largest"] > math.sqrt(evaluated[-1]["loss"])
    rates = [row["learning_rate"] for row in trained]
    assert rates == pytest.approx([0.1 * (1 - step / 12) for step in range(12)])
    assert all(row["gradient_norm"] > 0 and row["update_norm"] > 0 for row in trained)
    # The parameters are more than one, so their absolute sum is the larger norm.
    assert all(row["gradient_l1_norm"] > row["gradient_norm"] for row in trained)
    assert trained[0]["tokens_per_second"] is None
    assert all(row["tokens_per_second"] > 0 for row in trained[1:])
    # Without a folder the numbers are the same.
    assert undisturbed[0].train_losses == result.train_losses
    assert undisturbed[0].evaluations == result.evaluations


def test_losses_are_those_of_a_plain_loop(undisturbed):
    model = toy.WORKLOAD.make_model(0)
    graphdef, params = train.nnx.split(model)
    state, losses = TX.init(params), []

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            return toy.loss(train.nnx.merge(graphdef, params), batch)[0]

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = TX.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for index in range(12):
        params, state, loss = step(params, state, toy.draw(0, index))
        losses.append(float(loss))
    result, arrays = undisturbed
    np.testing.assert_allclose(result.train_losses, losses, rtol=1e-5)
    for own, other in zip(arrays, jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-6)
    mean = np.mean(
        [
            toy.loss(train.nnx.merge(graphdef, params), batch)[0]
            for batch in toy.WORKLOAD.valid_batches()
        ]
    )
    assert result.final_loss == pytest.approx(float(mean), rel=1e-5)


def test_the_result_holds_sizes_and_times():
    result, _ = run(measure=True, steps=30)
    assert result.parameters == 5 * toy.WIDTH + toy.WIDTH + 1
    # Two moments in float32, and some counters.
    assert 8 < result.state_bytes_per_parameter < 9
    assert result.seconds_per_step > 0
    assert 0 < result.optimizer_share
    assert result.compile_seconds >= 0
    json.dumps(dataclasses.asdict(result))


def test_the_point_that_an_optimizer_reports_is_evaluated():
    tx, report = (
        optimizers.triple_momentum(0.05),
        optimizers.triple_momentum_eval_params,
    )
    there, trained = run(tx=tx, steps=3, eval_params=report)
    here, also = run(tx=tx, steps=3)
    jax.tree.map(np.testing.assert_array_equal, trained, also)
    # By hand: a plain loop, then the report.
    graphdef, params = nnx.split(toy.WORKLOAD.make_model(0))
    state = tx.init(params)

    def loss(params, batch):
        return toy.loss(nnx.merge(graphdef, params), batch)[0]

    for step in range(3):
        grads = jax.grad(loss)(params, toy.WORKLOAD.batch(0, step))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for result, point in ((here, params), (there, report(state, params))):
        want = np.mean([loss(point, batch) for batch in toy.WORKLOAD.valid_batches()])
        np.testing.assert_allclose(result.final_loss, want, rtol=1e-5)
    assert abs(there.final_loss / here.final_loss - 1) > 1e-3


def test_seeds_change_the_run_and_share_the_compiled_step():
    traced = []

    def loss(model, batch):
        traced.append(1)
        return toy.loss(model, batch)

    workload = dataclasses.replace(toy.WORKLOAD, loss=loss)
    results = [
        train.train(workload, TX, seed=seed, **RUN).train_losses for seed in (0, 1, 0)
    ]
    assert results[0] == results[2] != results[1]
    # Once for the step, once for the evaluation, in three runs of twelve steps.
    assert len(traced) == 2


@pytest.mark.parametrize("moment", [0, 3, 4, 5, 9, 11])
def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path, moment, undisturbed):
    with pytest.raises(Interrupted):
        run(interrupt_at(moment), out=tmp_path)
    result, arrays = run(out=tmp_path)
    assert result.resumed_from == ({0: None, 1: 4, 2: 8}[moment // 4])
    assert toy.same_bits(arrays, undisturbed[1])
    assert result.train_losses == undisturbed[0].train_losses
    assert result.evaluations == undisturbed[0].evaluations
    steps = [row["step"] for row in log_of(tmp_path) if row["kind"] == "train"]
    assert steps == list(range(12))


def test_keys_of_a_method_that_draws_go_on_where_they_were(tmp_path):
    tx, _ = chains.parse("adahessian:every=2,learning_rate=0.02+cosine").build(6)
    settings = {"tx": tx, "steps": 6}
    whole, arrays = run(**settings)
    assert whole.train_losses[-1] < whole.train_losses[0]
    with pytest.raises(Interrupted):
        run(interrupt_at(5), out=tmp_path, **settings)
    again, same = run(out=tmp_path, **settings)
    assert again.resumed_from == 4
    assert again.train_losses == whole.train_losses
    assert toy.same_bits(arrays, same)


def test_rows_behind_the_checkpoint_and_half_a_line_are_cut(tmp_path, undisturbed):
    with pytest.raises(Interrupted):
        run(interrupt_at(6), out=tmp_path)
    log = tmp_path / "metrics.jsonl"
    row = {"kind": "train", "step": 4, "loss": 99.0}
    log.write_text(log.read_text() + json.dumps(row) + '\n{"kind": "tr')
    result, _ = run(out=tmp_path)
    assert result.train_losses == undisturbed[0].train_losses


def test_a_finished_run_is_read_and_not_run_again(tmp_path):
    first, arrays = run(out=tmp_path, measure=True)
    again, same = run(interrupt_at(0), out=tmp_path, measure=True)
    assert again == dataclasses.replace(first, resumed_from=12)
    assert toy.same_bits(arrays, same)


def test_a_finished_run_without_its_log_is_evaluated_again(tmp_path):
    first, _ = run(out=tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    again, _ = run(out=tmp_path)
    assert again.final_loss == first.final_loss
    assert np.isnan(again.train_losses).all()


def test_the_last_checkpoints_are_kept(tmp_path):
    run(out=tmp_path, checkpoint_every=2, keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000010", "00000012"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"label": "other"}, "chain '' there, 'other' here"),
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"steps": 13}, "steps 12 there, 13 here"),
        ({"tx": optimizers.sgd(0.1)}, "state"),
        ({"workload": workloads.get("digits", size="tiny")}, "workload 'toy' there"),
        ({"resume": False}, "holds this run already"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path, changed, said):
    run(out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    settings = {"workload": toy.WORKLOAD, "tx": TX, **RUN, **changed}
    with pytest.raises(lab.LabError, match=said):
        train.train(out=tmp_path, **settings)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_folder_without_its_fingerprint_is_refused(tmp_path):
    run(out=tmp_path)
    (tmp_path / "fingerprint.json").unlink()
    with pytest.raises(lab.LabError, match="lost its fingerprint"):
        run(out=tmp_path)


def test_two_runs_at_once_in_a_folder_are_refused(tmp_path):
    with checkpoints.claim(tmp_path, {"run": 1}, resume=True):
        with pytest.raises(lab.LabError, match="another process"):
            run(out=tmp_path)
    with checkpoints.claim(tmp_path, {"run": 1}, resume=True):
        pass


def test_a_negative_seed_is_refused():
    with pytest.raises(lab.LabError, match="seed must be at least 0, got -1"):
        run(seed=-1)


@pytest.mark.parametrize("name", ["steps", "eval_every", "checkpoint_every", "keep"])
@pytest.mark.parametrize("number", [0, -3])
def test_numbers_below_one_are_refused(name, number):
    with pytest.raises(lab.LabError, match=f"{name} must be at least 1, got {number}"):
        run(**{name: number})


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    def spoil(step, batch):
        return {**batch, "y": batch["y"] * np.nan} if step == 7 else None

    model = toy.WORKLOAD.make_model(0)
    start = toy.arrays(model)
    for _ in range(2):  # The same command again ends the same way.
        with pytest.raises(lab.LabError, match=r"loss is nan at step 7; .* step 4 in"):
            train.train(with_batch(spoil), TX, out=tmp_path, model=model, **RUN)
        assert checkpoints_in(tmp_path) == [4]
    assert toy.same_bits(toy.arrays(model), start)
    rows = log_of(tmp_path)
    assert [row["step"] for row in rows if row["loss"] is None] == [7]
    result, _ = run(out=tmp_path)
    assert result.resumed_from == 4


def checkpoints_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_an_update_that_is_not_a_number_is_never_saved(tmp_path):
    def scale(count):
        return jax.numpy.where(count == 7, np.inf, 0.1)

    with pytest.raises(
        lab.LabError, match=r"update norm is .* at step 7; .* step 4 in"
    ):
        run(tx=optax.sgd(scale), out=tmp_path)
    assert checkpoints_in(tmp_path) == [4]
    with pytest.raises(lab.LabError, match="last good checkpoint: none"):
        run(tx=optax.sgd(scale))


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("divided", [False, True], ids=["replicated", "divided"])
def test_a_mesh_changes_where_and_not_what(tmp_path, axes, divided, undisturbed):
    def spec(path, leaf):
        whole = path != "up/kernel" or not divided
        return PartitionSpec() if whole else PartitionSpec(None, "data")

    mesh = jax.make_mesh((8,), ("data",), axis_types=(axes,))
    model = toy.WORKLOAD.make_model(0)
    settings = {**RUN, "mesh": mesh, "param_spec": spec, "out": tmp_path}
    with pytest.raises(Interrupted):
        train.train(interrupt_at(9), TX, **settings)
    result = train.train(toy.WORKLOAD, TX, model=model, **settings)
    assert result.resumed_from == 8
    np.testing.assert_allclose(
        result.train_losses, undisturbed[0].train_losses, rtol=1e-4
    )
    kernel = model.up.kernel[...]
    assert len(kernel.sharding.device_set) == 8
    assert kernel.sharding.is_fully_replicated != divided


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused():
    mesh = jax.make_mesh((3,), ("data",), devices=jax.devices()[:3])
    with pytest.raises(lab.LabError, match=r"16 examples.*3 devices.*'data'"):
        run(mesh=mesh)


def test_digits_are_learned():
    workload = workloads.get("digits")
    result = train.train(workload, optimizers.adamw(0.01), steps=80, measure=False)
    assert result.final_loss < 0.4 < 2.0 < result.train_losses[0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_shows_on_a_terminal_only(monkeypatch, capsys):
    run()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    for progress, seen in ((True, True), (False, False)):
        monkeypatch.setattr(sys, "stderr", Terminal())
        run(progress=progress, label="[1/6] my chain")
        text = sys.stderr.getvalue()
        assert all(
            (part in text) == seen for part in ("[1/6] my chain", "loss", "steps/s")
        )
