"""A chain's text says which optimizer is built, with which schedule."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import catalog, inspection, kernels, optimizers, schedules
from optlab.lab import chains, parts, settings, tuned

PARAMS = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
GRADS = {"dense": {"kernel": jnp.arange(6.0).reshape(3, 2), "bias": jnp.ones(2)}}


def follow(tx: optax.GradientTransformation, steps: int) -> list:
    params, state, seen = PARAMS, tx.init(PARAMS), []
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


def assert_same(ours: list, theirs: list):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), ours, theirs)


def test_a_chain_is_the_optimizer_with_the_schedule_of_its_length():
    text = "adamw:learning_rate=0.01,b2=0.99+wsd:decay_steps=4,warmup_steps=2@9"
    tx, schedule = chains.parse(text).build()
    same = schedules.wsd(0.01, total_steps=9, decay_steps=4, warmup_steps=2)
    counts = jnp.arange(12)
    np.testing.assert_array_equal(schedule(counts), same(counts))
    assert_same(follow(tx, 9), follow(optimizers.adamw(same, b2=0.99), 9))


def test_the_rest_follows_the_same_schedule_with_a_peak_of_its_own():
    text = (
        "muon:learning_rate=0.02,rest=sgd,rest.learning_rate=0.5,rest.momentum=none"
        "+linear:warmup_steps=2@8"
    )
    tx, schedule = chains.parse(text).build()

    def rest(count):
        return 25 * schedule(count)

    same = optimizers.muon(schedule, rest=optimizers.sgd(rest))
    assert_same(follow(tx, 8), follow(same, 8))
    # The bias has gradient 1, so it has moved by the sum of the rest's rates.
    moved = 1 - follow(tx, 8)[-1]["dense"]["bias"][0]
    assert float(moved) == pytest.approx(0.5 * (0 + 0.5 + sum(range(1, 7)) / 6))


def test_the_rates_in_force_can_be_read_from_the_state_of_each_group():
    text = "muon:learning_rate=0.02,rest.learning_rate=0.004+linear:warmup_steps=0@4"
    tx, _ = chains.parse(text).build()
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    groups = inspection.hyperparams(state).values()
    rates = sorted(float(group["learning_rate"]) for group in groups)
    assert rates == pytest.approx([0.004, 0.02])


def test_functions_are_given_by_name():
    chain = chains.parse("muon:orthogonalize=polar_express+wsd:decay=linear@10")
    _, schedule = chain.build()
    rates = [float(schedule(t)) for t in (6, 8)]
    assert rates == pytest.approx([0.02, 0.01])
    given = settings.keywords(optimizers.muon, {"orthogonalize": "polar_express"})
    x = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(
        given["orthogonalize"](x), kernels.newton_schulz(x, "polar_express")
    )


def takes_a_peak(row: catalog.Row) -> bool:
    return next(iter(inspect.signature(row.build).parameters)) == "peak"


SCHEDULES = [row for row in catalog.rows("schedules") if takes_a_peak(row)]


# Those whose update needs more than a gradient are not run by a chain's text alone.
OPTIMIZERS = [row for row in catalog.rows("optimizers") if not row.needs]
PAIRS = [
    *((row.name, "linear") for row in OPTIMIZERS),
    *((name, row.name) for name in ("adamw", "muon") for row in SCHEDULES),
]


@pytest.mark.parametrize(("optimizer", "schedule"), PAIRS)
def test_rows_make_chains_that_move(optimizer, schedule):
    # The matrix of the test has two directions.
    more = ":rank=2" if optimizer == "natural_galore" else ""
    chain = chains.parse(f"{optimizer}{more}+{schedule}").explicit(6)
    tx, rate = chain.build()
    assert chains.parse(str(chain)) == chain
    assert float(rate(3)) > 0
    last = follow(tx, 4)[-1]
    # Some begin with steps of a millionth.
    for name in ("kernel", "bias"):
        assert not np.array_equal(last["dense"][name], PARAMS["dense"][name])


@pytest.mark.parametrize(
    ("text", "link", "order"),
    [
        ("clip_coordinates:fraction=0.5", optimizers.clip_coordinates(0.5), 1),
        (
            "normalize_and_project:every=2",
            optimizers.normalize_and_project(every=2),
            -1,
        ),
    ],
)
def test_the_name_of_a_link_stands_for_sgd_with_it_in_its_place(text, link, order):
    tx, rate = chains.parse(f"{text},learning_rate=0.3+linear").build(4)
    parts = [link, optimizers.sgd(rate, momentum=0.9)][::order]
    assert_same(follow(tx, 3), follow(optax.chain(*parts), 3))


def test_what_an_update_needs_is_given_or_refused_before_the_first_step():
    for row in catalog.rows("optimizers"):
        unmet = set(row.needs) - set(parts.SUPPLIED) - {"hessian_diag"}
        try:
            chains.parse(f"{row.name}+cosine")
        except chains.ChainError as error:
            assert unmet and f"{row.name} needs" in str(error)
            assert all(need in str(error) for need in unmet)
        else:
            assert not unmet


def test_the_remedy_for_an_argument_alone_is_the_lab_s_own_loop(monkeypatch):
    def build(learning_rate, preconditioner, *, b1=0.9):
        raise AssertionError("must not be built")

    row = dataclasses.replace(catalog.get("sgd"), build=build)
    monkeypatch.setattr(catalog, "rows", lambda room=None: (row,))
    with pytest.raises(ValueError, match=r"^sgd needs the argument preconditioner, wh"):
        parts.require_inputs(parts.Part("optimizers", "sgd", {}))


def test_a_text_without_lengths_warms_up_for_5_and_decays_for_40_percent():
    chain = chains.parse("adamw+wsd").explicit(200)
    assert chain.schedule.settings == {"warmup_steps": 10, "decay_steps": 80}
    chain = chains.parse("adamw+wsd:warmup_steps=3").explicit(1)
    assert chain.schedule.settings == {"warmup_steps": 3, "decay_steps": 1}


def test_a_schedule_keeps_its_own_warm_up_and_its_catalogue_s_proportions():
    own = chains.parse("adamw+one_cycle").explicit(200).schedule.settings
    assert "warmup_steps" not in own
    chain = chains.parse("adamw:learning_rate=0.5+exponential").explicit(200)
    row = catalog.get("exponential").defaults
    ratio = chain.schedule.settings["end_value"] / row["end_value"]
    assert ratio == pytest.approx(0.5 / row["peak"])


def test_several_whole_numbers_have_slashes_between():
    chain = chains.parse("sgd:learning_rate=1.0+step_decay:boundaries=3/6@9")
    assert chain.schedule.settings == {"boundaries": (3, 6)}
    _, rate = chain.build()
    assert [float(rate(t)) for t in (2, 3, 6)] == pytest.approx([1, 0.1, 0.01])
    assert chains.parse(str(chain)) == chain
    one = chains.parse("sgd+step_decay:boundaries=4/")
    assert one.schedule.settings == {"boundaries": (4,)}
    assert chains.parse(str(one)) == one
    left_out = chains.parse("sgd+step_decay").explicit(200).schedule.settings
    assert left_out["boundaries"] == (100, 150)


def test_schedules_made_of_other_things_than_a_peak_have_no_text():
    others = [row for row in catalog.rows("schedules") if not takes_a_peak(row)]
    assert others
    for row in others:
        with pytest.raises(chains.ChainError, match=f"optlab.schedules.{row.name}"):
            chains.parse(f"adamw+{row.name}")


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_the_shortest_runs_have_a_schedule(steps):
    for name in ("wsd", "cosine", "linear", "constant"):
        chains.parse(f"adamw+{name}").build(steps)


def test_the_number_of_steps_in_the_text_wins():
    chain = chains.parse("adamw+cosine@7")
    assert chain.explicit(100).steps == 7
    assert chains.parse("adamw+cosine").explicit(100).length == 100
    with pytest.raises(chains.ChainError, match="does not say"):
        _ = chains.parse("adamw+cosine").length


@pytest.mark.parametrize("steps", [None, 0, -3])
def test_a_run_has_at_least_one_step(steps):
    with pytest.raises(chains.ChainError, match="at least 1"):
        chains.parse("adamw+cosine").build(steps)


def test_numbers_may_have_exponents_with_a_plus_sign():
    chain = chains.parse("adamw:learning_rate=1e-3,eps=1.e+2+cosine")
    assert chain.optimizer.settings == {"learning_rate": 1e-3, "eps": 100.0}


def test_none_is_a_value_or_the_name_of_a_choice():
    chain = chains.parse("muon:scale=none,accumulator_dtype=none+wsd@4")
    chain.build()
    given = settings.keywords(optimizers.muon, chain.optimizer.settings)
    assert given == {"scale": "none", "accumulator_dtype": None}


def test_rates_may_be_traced():
    chain, traces = chains.parse("muon+wsd@4"), []

    @jax.jit
    def moved(rate, rest_rate):
        traces.append(rate)
        rates = {"learning_rate": rate, "rest.learning_rate": rest_rate}
        tx, _ = chain.replace(**rates).build()
        return follow(tx, 1)[0]

    for rate, rest_rate in ((0.02, 0.001), (0.1, 0.03)):
        text = f"muon:learning_rate={rate},rest.learning_rate={rest_rate}+wsd@4"
        same = follow(chains.parse(text).build()[0], 1)[0]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            moved(rate, rest_rate),
            same,
        )
    assert len(traces) == 1


@pytest.fixture
def recorded(monkeypatch):
    """Two recorded sweeps of one optimizer."""

    def row(schedule, rate, rest):
        rates = {"learning_rate": rate, "rest.learning_rate": rest}
        return tuned.Tuned("digits", "muon", schedule, 100, rates, 0.1, "optlab sweep")

    monkeypatch.setattr(tuned, "ROWS", (row("cosine", 0.03, 0.2), row("wsd", 0.5, 0.7)))


def rates(text, workload):
    given = chains.parse(text).explicit(10, workload).optimizer.settings
    return given["learning_rate"], given["rest.learning_rate"]


def test_a_rate_left_out_is_the_tuned_one(recorded):
    assert rates("muon+wsd", "digits") == (0.5, 0.7)
    assert rates("muon+cosine", "digits") == (0.03, 0.2)
    # No sweep with this schedule: the first one with another.
    assert rates("muon+linear", "digits") == (0.03, 0.2)
    assert rates("muon:learning_rate=1+wsd", "digits") == (1, 0.7)


def test_without_a_sweep_rates_come_from_the_catalogue(recorded):
    defaults = {name: catalog.get(name).defaults for name in ("muon", "adamw", "lion")}
    own = defaults["muon"]["learning_rate"]
    adamw, lion = (defaults[name]["learning_rate"] for name in ("adamw", "lion"))
    assert rates("muon+wsd", "shakespeare") == (own, adamw)
    # A rate tuned for AdamW as the rest is none for Lion.
    assert rates("muon:rest=lion+wsd", "digits") == (0.5, lion)


def test_the_recorded_rates_are_of_chains_and_workloads_that_exist():
    for row in tuned.ROWS:
        chain = chains.parse(f"{row.optimizer}+{row.schedule}")
        chain.replace(**row.rates).build(row.steps)
        assert row.command.startswith(f"optlab sweep --workload {row.workload} ")
        assert 0 < row.loss < 5


# What is wrong, and what the message must say.
WRONG = {
    "": "write an optimizer, '+' and a schedule",
    "adamw": "write an optimizer, '+' and a schedule",
    "adamw+": "write an optimizer, '+' and a schedule",
    "adamw+cosine+wsd": "write an optimizer, '+' and a schedule",
    "adam+cosine": "unknown optimizer 'adam'; did you mean 'radam' or 'adamw' or",
    "adamw+cosin": "unknown schedule 'cosin'; did you mean 'cosine'",
    "cosine+adamw": "unknown optimizer 'cosine'",
    "adamw:lerning_rate=1+cosine": "did you mean 'learning_rate'",
    "adamw:learning_rate=0+cosine": "above 0",
    "adamw:learning_rate=-1+cosine": "above 0",
    "adamw:learning_rate=true+cosine": "above 0",
    "adamw:learning_rate=nan+cosine": "finite",
    "adamw:learning_rate=1e999+cosine": "finite",
    "adamw:b1=x+cosine": "a number is wanted",
    "adamw:b1=none+cosine": "a number is wanted",
    "adamw:b1=1/2+cosine": "b1=1/2",
    "adamw:b1+cosine": "key=value",
    "adamw:+cosine": "key=value",
    "adamw:b1=0.9,b1=0.8+cosine": "given twice",
    "adamw:mask=x+cosine": "unknown key of adamw 'mask'",
    "fedhyper:bounds=3+cosine": "unknown key of fedhyper 'bounds'",
    "adamw+cosine@0": "at least 1",
    "adamw+cosine@-5": "at least 1",
    "adamw+cosine@ten": "at least 1",
    "adamw+cosine@1.5": "at least 1",
    "adamw+cosine@": "at least 1",
    "adamw+wsd:decay_steps=0.2": "whole number",
    "adamw+wsd:decay_steps=-2": "whole number",
    "adamw+wsd:decay_steps=3/4": "one value is wanted",
    "adamw+step_decay:boundaries=3": "whole numbers are wanted, with '/' between",
    "adamw+step_decay:boundaries=3/x": "whole numbers with '/' between",
    "adamw+wsd:decay=lineal": "did you mean 'linear'",
    "adamw+cosine:peak=3": "write 'adamw:learning_rate=3'",
    "adamw+cosine:total_steps=3": "@STEPS",
    "adamw:rest.b1=0.9+cosine": "unknown key of adamw 'rest.b1'",
    "muon:rest=adam+wsd": "did you mean 'radam' or 'adamw' or",
    "clip_coordinates:fracton=0.2+wsd": "did you mean 'fraction'",
    "qk_clip+cosine": "qk_clip needs attn_max_logit at each update",
    "muon:rest=none+wsd": "unknown optimizer 'none'",
    "muon:rest=muon+wsd": "cannot be the rest",
    "muon:rest=sophia+wsd": "sophia needs hessian_diag at each update, which the traini"
    "ng step does not give to a rest; build optlab.optimizers.sophia in Python and trai"
    "n in a loop of your own",
    "mkor+cosine": "mkor needs layer_stats at each update, which the training step does"
    " not give; build optlab.optimizers.mkor in Python and train in a loop of your own,"
    " where optlab.lab.capture makes layer_stats",
    "kfac:every=2+cosine": "kfac needs layer_stats at each update",
    "mkor_h:momentum=0.9+cosine": "not give, and the argument preconditioner, which tex"
    "t cannot give; build optlab.optimizers.mkor_h",
    "muon:rest.beta1=1+wsd": "unknown key of adamw 'beta1'; did you mean 'b1'",
    "muon:nesterov=3+wsd": "true or false",
    "muon:scale=3+wsd": "a name is wanted",
    "muon:views=x+wsd": "unknown key of muon 'views'",
    "muon:orthogonalize=polar+wsd": "did you mean 'polar_express'",
    "muon:accumulator_dtype=float23+wsd": "a dtype is one of",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_with_a_text_is_said_in_one_line(text):
    with pytest.raises(chains.ChainError) as caught:
        chains.parse(text)
    message = str(caught.value)
    assert WRONG[text] in message
    assert message.startswith(f"chain '{text}': ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adamw+wsd:decay_steps=500", "do not fit into total_steps=100"),
        ("adamw+cosine:end_value=5", "above the peak"),
        ("muon:scale=big+wsd", "scale must be"),
    ],
)
def test_what_an_optimizer_or_a_schedule_refuses_names_the_chain(text, said):
    with pytest.raises(chains.ChainError, match=said) as caught:
        chains.parse(text).build(100)
    assert str(caught.value).startswith(f"chain '{text}': ")
