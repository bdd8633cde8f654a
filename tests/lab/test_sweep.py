"""A sweep finds the best learning rate, one run after another or all at once."""

import json

import numpy as np
import pytest

from optlab import lab
from optlab.lab import chains, runs, sweep, train

TINY = {"size": "tiny"}
MUON = "muon:b1=0.9+wsd@5"
RATES = {"rates": (0.01, 0.1), "rest_rates": (0.003,)}


def losses(results):
    return [point["final_loss_by_seed"] for point in results["points"]]


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """A sequential sweep of two rates of Muon: its plan, folder and results."""
    planned = sweep.plan("digits", MUON, None, **RATES, **TINY)
    out = tmp_path_factory.mktemp("sweep")
    return planned, out, sweep.run(planned, out, command="optlab sweep")


def test_all_rates_at_once_give_the_losses_of_one_run_after_another(
    one_by_one, tmp_path
):
    planned = sweep.plan("digits", MUON, None, vmap=True, **RATES, **TINY)
    results = sweep.run(planned, tmp_path)
    np.testing.assert_allclose(losses(results), losses(one_by_one[2]), rtol=1e-5)
    assert losses(results)[0] != losses(results)[1]


def test_a_run_of_a_sweep_is_the_run_of_its_chain(one_by_one):
    planned, out, results = one_by_one
    point = results["points"][1]
    assert point["rates"] == {"learning_rate": 0.1, "rest.learning_rate": 0.003}
    chain = chains.parse(point["chain"])
    given = chain.optimizer.settings
    assert {key: given[key] for key in point["rates"]} == point["rates"]
    record = runs.read_json(out / runs.folder(chain, 0, planned.facts) / "result.json")
    assert point["final_loss_by_seed"] == [record["final_loss"]]


def test_sweep_json_holds_what_was_returned(one_by_one):
    _, out, results = one_by_one
    assert json.loads((out / "sweep.json").read_text()) == results
    assert results["command"] == "optlab sweep"
    assert results["versions"]["jax"]


def test_a_finished_sweep_is_read_back_not_run_again(one_by_one, monkeypatch):
    planned, out, results = one_by_one
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("trained again"))
    assert sweep.run(planned, out, command="optlab sweep") == results


@pytest.mark.parametrize("vmap", [False, True])
def test_a_rate_that_diverges_is_no_failure_of_the_sweep(vmap, tmp_path, monkeypatch):
    planned = sweep.plan(
        "digits", "sgd+constant@4", None, rates=(0.01, 1e30), vmap=vmap, **TINY
    )
    results = sweep.run(planned, tmp_path)
    assert losses(results)[1] == [None]
    assert results["points"][1]["final_loss"] == {"mean": None, "spread": None}
    assert results["best"]["rates"] == {"learning_rate": 0.01}
    # Neither rate is tried again.
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(sweep, "_train_vmapped", lambda *_: pytest.fail("again"))
    assert sweep.run(planned, tmp_path) == results


def test_another_failure_stops_the_sweep(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise lab.LabError("no space left")

    monkeypatch.setattr(train, "train", fail)
    planned = sweep.plan("digits", "sgd+constant@4", None, rates=(0.01,), **TINY)
    with pytest.raises(lab.LabError, match="no space left"):
        sweep.run(planned, tmp_path)
    assert not (tmp_path / "sweep.json").exists()


def test_the_best_rate_has_the_lowest_mean_and_tells_when_it_is_at_the_edge():
    planned = sweep.plan(
        "digits",
        MUON,
        None,
        rates=(0.1, 0.2, 0.4),
        rest_rates=(0.01, 0.02),
        seeds=2,
        **TINY,
    )
    assert planned.points[:3] == ((0.1, 0.01), (0.1, 0.02), (0.2, 0.01))
    by_seed = [[5.0, 5.0, 5.0, 1.0, 2.0, None], [5.0, 5.0, 5.0, 2.0, 0.5, 0.1]]
    results = sweep.summarise(planned, by_seed)
    best = results["best"]
    assert best["rates"] == {"learning_rate": 0.4, "rest.learning_rate": 0.01}
    assert best["final_loss"]["mean"] == 1.25
    assert results["at_edge"] == ["learning_rate", "rest.learning_rate"]
    by_seed[0][3] = 0.1
    results = sweep.summarise(planned, by_seed)
    assert results["best"]["rates"]["learning_rate"] == 0.2
    assert results["at_edge"] == ["rest.learning_rate"]


def test_a_sweep_in_which_every_rate_diverges_has_no_best():
    planned = sweep.plan("digits", MUON, None, **RATES, **TINY)
    results = sweep.summarise(planned, [[None, None]])
    assert results["best"] is None and results["at_edge"] == []


def test_without_rates_of_the_rest_its_own_is_kept():
    text = "muon:rest.learning_rate=0.5+wsd"
    planned = sweep.plan("digits", text, 9, rates=(0.1, 0.2))
    assert planned.points == ((0.1, 0.5), (0.2, 0.5))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workload": "digit"}, "did you mean 'digits'"),
        ({"rates": ()}, "at least one rate"),
        ({"seeds": 0}, "at least one seed"),
        ({"text": "adamw+cosine", "rest_rates": (0.1,)}, "adamw has no rest"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_when_planned(settings, said):
    given = {"workload": "digits", "text": "muon+wsd", "steps": 5, "rates": (0.1,)}
    with pytest.raises(ValueError, match=said):
        sweep.plan(**{**given, **settings})
