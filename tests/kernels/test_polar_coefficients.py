"""Polar coefficients: published digits, promised bands, what a table refuses."""

import itertools

import numpy as np
import pytest

from optlab import kernels

# The paper's list, without any margin for rounding.
PAPER = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787402, -1.267995827194594, 0.3768040894852514),
)
# The list of training codes that multiply the norm by 1.02.
SAFE = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
PAPER_CUSHION = 0.02407327424182761
JORDAN, YOU = (kernels.polar_table(name).rows for name in ("jordan", "youjiacheng"))


def paper_rows(steps):
    return kernels.polar_express_rows(steps=steps, safety=1, cushion=PAPER_CUSHION)


def divided(rows, by):
    return tuple((a / by, b / by**3, c / by**5) for a, b, c in rows)


def table(rows, **changes):
    fields = {"name": "t", "interval": (0.1, 1.0), "band": (0.0, 2.0), "source": "-"}
    return kernels.PolarTable(rows=rows, **{**fields, **changes})


def image(s, rows):
    for a, b, c in rows:
        s = a * s + b * s**3 + c * s**5
    return s


def test_generates_the_published_digits():
    np.testing.assert_allclose(paper_rows(6), PAPER, rtol=1e-12)
    np.testing.assert_allclose(kernels.polar_express_rows(), SAFE, rtol=1e-12)


def test_ends_in_the_newton_schulz_limit():
    np.testing.assert_allclose(paper_rows(10)[8:], [(1.875, -1.25, 0.375)] * 2)


def test_every_step_is_a_minimax_quintic():
    low, (row,) = 0.1, kernels.polar_express_rows(0.1, 1, safety=1, cushion=0)
    error = image(np.linspace(low, 1, 100_001), [row]) - 1
    turns = error[1:-1][np.diff(np.sign(np.diff(error))) != 0]
    ripple = np.concatenate([error[:1], turns, error[-1:]])
    # Equal and alternating at four points: nothing of its degree comes nearer to 1.
    signs = [-1, 1, -1, 1]
    np.testing.assert_allclose(ripple, np.abs(error).max() * np.array(signs), 1e-6)


@pytest.mark.parametrize("safety", [1, 1.001, 1.01, 1.02, 1.05])
def test_generates_finite_rows_over_the_whole_range_of_arguments(safety):
    for lower, cushion in itertools.product(
        (0.9, 0.5, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6), (0, 0.001, 0.02, 0.1, 0.5)
    ):
        rows = kernels.polar_express_rows(lower, 12, safety=safety, cushion=cushion)
        assert len(rows) == 12
        assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"lower": 0.0}, r"lower must be in \(0, 1\), got 0.0"),
        ({"lower": 1.0}, "got 1.0"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"safety": 0.99}, "safety=0.99"),
        ({"cushion": 1.0}, "cushion=1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        kernels.polar_express_rows(**arguments)


@pytest.mark.parametrize(
    ("name", "interval", "band"),
    [
        ("jordan", (0.01, 1.0), (0.6818, 1.1344)),
        ("youjiacheng", (0.01, 1.0), (0.9778, 1.0318)),
        ("polar_express", (0.003, 1 / 1.02), (0.8589, 1.1411)),
    ],
)
def test_named_tables_have_the_measured_bands(name, interval, band):
    chosen = kernels.polar_table(name)
    values = image(np.geomspace(*interval, 200_001), chosen.rows)
    np.testing.assert_allclose((values.min(), values.max()), band, atol=5e-5)
    assert chosen.band[0] <= values.min()
    assert values.max() <= chosen.band[1]
    assert chosen.source


def test_bounded_to_tells_where_a_table_runs_away():
    raw = table(paper_rows(5), interval=(0.003, 1.0))
    assert 1.0 <= raw.bounded_to < 1.001
    assert abs(image(1.005, raw.rows)) > 1e3
    safe = kernels.polar_table("polar_express")
    assert 1.02 <= safe.bounded_to < 1.03
    third = table(divided(paper_rows(5), 1.05))
    assert 1.05 <= third.bounded_to < 1.06
    assert kernels.polar_table("jordan").bounded_to == 1.25


def test_the_raw_list_is_refused_where_inputs_can_reach_one():
    with pytest.raises(ValueError, match="stays bounded only up to 1"):
        kernels.polar_table(paper_rows(5))
    raw = table(paper_rows(5), interval=(0.003, 1.0))
    assert not raw.survives_rounding
    with pytest.raises(ValueError, match=r"safety=1\.02"):
        kernels.polar_table(raw)


def test_margin_on_the_norm_or_in_the_rows_makes_it_acceptable():
    for safe in (
        table(paper_rows(5), norm_factor=1.02),
        table(divided(paper_rows(5), 1.05)),
        kernels.polar_express_rows(safety=1.02),
    ):
        assert kernels.polar_table(safe).survives_rounding


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"band": (0.7, 1.1)}, "outside its band"),
        ({"interval": (0.001, 1.0), "band": (0.6, 1.2)}, "outside its band"),
        ({"interval": (0.0, 1.0)}, "0 < low < high"),
        ({"interval": (1.0, 0.5)}, "0 < low < high"),
        ({"rows": ()}, "triples of finite numbers"),
        ({"rows": ((1.0, 2.0),)}, "triples of finite numbers"),
        ({"rows": ((1.0, float("inf"), 0.0),)}, "triples of finite numbers"),
        ({"rows": ((1e200, 1e200, 1e200),) * 5}, "outside its band"),
    ],
)
def test_a_table_that_breaks_its_promise_cannot_be_built(changes, said):
    jordan = kernels.polar_table("jordan")
    with pytest.raises(ValueError, match=said):
        table(**{"rows": jordan.rows, **changes})


def test_another_number_of_steps_promises_no_band():
    assert kernels.polar_table("jordan", 5).band == (0.6818, 1.1345)
    assert kernels.polar_table("jordan", 3).band == (-np.inf, np.inf)


THIRD = divided(paper_rows(5), 1.05)  # the paper's list, every step divided


@pytest.mark.parametrize(
    ("rows", "s", "want"),
    [
        (JORDAN[:1], 1.0, 0.7010),
        (JORDAN, 1.0, 0.6964364),
        (JORDAN, 1.005, 0.6918),
        (YOU, 1.0, 0.9783),
        # One step beyond 1, or 1.05, and the iteration runs away.
        (paper_rows(5), 1.001, 5.5e20),
        (paper_rows(5), 1.005, 3.3e60),
        (THIRD, 1.05, 0.8544),
        (THIRD, 1.06, 4.6e59),
    ],
)
def test_a_singular_value_ends_where_it_was_measured(rows, s, want):
    np.testing.assert_allclose(image(s, rows), want, rtol=6e-3 if want > 9 else 1e-4)


@pytest.mark.parametrize(
    ("rows", "low", "band"),
    [
        (JORDAN, 0.001, (None, 1.2024)),
        (paper_rows(5), 0.003, (0.8764, 1.1236)),
        (THIRD, 0.003, (0.8461, 1.1236)),
    ],
)
def test_lists_without_a_name_have_the_measured_bands(rows, low, band):
    values = image(np.geomspace(low, 1, 200_001), rows)
    for got, want in zip((values.min(), values.max()), band, strict=True):
        assert want is None or abs(got - want) < 5e-5


def test_jordan_s_slope_at_zero_and_its_reach():
    np.testing.assert_allclose(JORDAN[0][0] ** 5, 484.9, rtol=1e-4)
    values = image(np.linspace(1, 1.07, 1001), JORDAN)
    assert 0.5 < values.min() < values.max() < 1.2
