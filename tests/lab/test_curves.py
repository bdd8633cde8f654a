"""Curves come out of files as they are; bad files are named with a remedy."""

import json
import math
import pathlib
import time

import numpy as np
import pytest

from optlab import lab, optimizers
from optlab.lab import curves, train
from tests.lab import toy

STEPS = [10, 20, 30, 40, 50, 60]
LOSSES = [3.0, 2.5, 2.25, 2.125, 2.0625, 2.03125]
RATES = [0.5, 0.5, 0.4, 0.3, 0.2, 0.1]


def table(*columns: tuple) -> str:
    """Returns a CSV file from pairs of a name and cells."""
    names, cells = zip(*columns, strict=True)
    lines = [names, *zip(*cells, strict=True)]
    return "".join(",".join(map(str, line)) + "\n" for line in lines)


PLAIN = table(("step", STEPS), ("lr", RATES), ("loss", LOSSES))


@pytest.fixture
def write(tmp_path):
    def save(text: str | bytes, name: str = "run.csv") -> pathlib.Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return save


def check(curve, steps=STEPS, losses=LOSSES):
    """Checks the samples, and the rates at those that have a next update."""
    assert curve.step.tolist() == list(steps)
    assert curve.loss.tolist() == list(losses)
    known = dict(zip(STEPS, RATES, strict=True))
    for step in steps[:-1]:
        assert curve.rate[step] == pytest.approx(known[step])


def test_a_plain_table_is_read_as_it_is(write):
    curve = curves.read(write(PLAIN, "cheap.csv"))
    check(curve)
    assert curve.name == "cheap"
    assert curve.rate[35] == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("step", "lr", "loss"),
    [
        ("step", "learning_rate", "train_loss"),
        (" Step", "LR", " Loss"),
        ("train/global_step", "train/learning_rate", "train/loss"),
        ("trainer/global_step", "lr-AdamW", "train_loss_step"),
        ("trainer/global_step", "lr-AdamW/pg1", "train/loss_step"),
        ("Step", "wise-owl-3 - train/lr", "wise-owl-3 - train/loss"),
        ("Step", "a - b - optim/lr", "a - b - train/loss"),
        ("iteration", "learning-rate", "lm loss"),
    ],
)
def test_the_names_of_other_tools_are_known(step, lr, loss, write):
    check(curves.read(write(table((step, STEPS), (loss, LOSSES), (lr, RATES)))))


def test_updates_come_before_calls_of_the_log_and_bounds_are_no_values(write):
    calls = range(len(STEPS))
    text = table(
        ("", calls),
        ("_step", calls),
        ("_timestamp", calls),
        ("train/loss", LOSSES),
        ("train/loss__MIN", LOSSES),
        ("train/loss__MAX", LOSSES),
        ("train/train_loss", [9.0] * len(STEPS)),
        ("train/learning_rate", RATES),
        ("train/global_step", STEPS),
    )
    check(curves.read(write(text)))


def test_rows_without_a_loss_or_a_rate_do_not_count(write):
    """Lightning's CSV logger puts the rate and the loss of a step on two lines."""
    lines = ["epoch,lr-AdamW,step,train_loss,val_loss"]
    for step, lr, loss in zip(STEPS, RATES, LOSSES, strict=True):
        lines += [f",{lr},{step},,", f"0,,{step},{loss},"]
    lines += [f"0,,{STEPS[-1]},,7.0", ""]
    check(curves.read(write("\n".join(lines))))


def test_every_rate_of_a_file_counts_also_between_losses(write):
    """A file may have the rate of every step and a loss now and then."""
    rates = [0.5 if step < 33 else 0.1 for step in range(61)]
    losses = [3 - step / 60 if step % 10 == 0 else "" for step in range(61)]
    text = table(("step", range(61)), ("lr", rates), ("loss", losses))
    curve = curves.read(write(text))
    assert curve.step.tolist() == list(range(0, 61, 10))
    assert curve.rate.tolist() == rates[:60]


def test_losses_are_averaged_in_windows(write):
    path = write(PLAIN)
    same = curves.read(path, window=1)
    check(same)
    steps = range(1, 24)
    text = table(
        ("step", steps), ("lr", [0.1] * 23), ("loss", [n % 2 + 1 for n in steps])
    )
    path = write(text)
    curve = curves.read(path, window=4, warmup_steps=0)
    assert curve.step.tolist() == [5, 9, 13, 17, 21]
    assert curve.loss.tolist() == [1.5] * 5
    assert curve.rate.tolist() == [0.1] * 23
    with pytest.raises(lab.LabError, match="23 losses in windows of 5 leave 4 means"):
        curves.read(path, window=5)
    with pytest.raises(lab.LabError, match="at least 1 loss, got 0"):
        curves.read(path, window=0)


def test_rates_logged_elsewhere_are_put_on_a_line(write):
    losses = write(table(("step", STEPS), ("loss", LOSSES)), "loss.csv")
    rates = write(table(("step", [5, 35, 65]), ("lr", [0.6, 0.3, 0.0])), "lr.csv")
    with pytest.raises(lab.LabError, match="3 samples"):
        curves.read(f"{losses},{rates}")
    line = table(("step", range(5, 70, 15)), ("lr", [0.6, 0.45, 0.3, 0.15, 0]))
    curve = curves.read(f"{losses},{write(line, 'lr.csv')}")
    assert curve.rate[10:60] == pytest.approx((65 - np.arange(10, 60)) / 100)


@pytest.mark.parametrize(
    "heads",
    [
        (["Wall time", "Step", "Value"], ["Wall time", "Step", "Value"]),
        (
            ["Relative Time (Wall)", "Step", "a - my/cross"],
            ["a - _step", "Step", "a - eta"],
        ),
    ],
)
def test_a_pair_of_exports_is_a_curve(heads, write):
    files = [
        write(table((head[0], range(6)), (head[1], STEPS), (head[2], values)), name)
        for head, values, name in zip(
            heads, (LOSSES, RATES), ("loss.csv", "lr.csv"), strict=True
        )
    ]
    check(curves.read(f"{files[0]},{files[1]}"))
    with pytest.raises(lab.LabError, match=r"loss\.csv, line 1.*LOSS\.csv,RATE\.csv"):
        curves.read(files[0])
    with pytest.raises(lab.LabError, match="losses comes first"):
        curves.read(
            f"{write(table(('step', STEPS), ('a', RATES)), 'a.csv')},{files[0]}"
        )


def test_a_comma_in_a_file_name_is_no_pair(write):
    check(curves.read(write(PLAIN, "a,b.csv")))


def test_evaluation_losses_are_read_on_request(write):
    evals = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    columns = (("step", STEPS), ("lr", RATES), ("loss", LOSSES), ("eval/loss", evals))
    path = write(table(*columns))
    check(curves.read(path))
    check(curves.read(path, losses="eval"), losses=evals)
    with pytest.raises(lab.LabError, match="no column with the eval loss"):
        curves.read(write(PLAIN), losses="eval")
    with pytest.raises(lab.LabError, match="'train' or 'eval', got 'valid'"):
        curves.read(path, losses="valid")


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(write):
    check(curves.read(write(b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode())))


def test_the_warm_up_ends_where_it_is_said(write):
    path = write(PLAIN)
    assert curves.read(path).rate[5] == pytest.approx(0.25)
    short = curves.read(path, warmup_steps=5)
    assert short.rate[[0, 4, 5, 9]] == pytest.approx([0, 0.4, 0.5, 0.5])
    # A longer one is in the samples.
    assert (curves.read(path, warmup_steps=25).rate == curves.read(path).rate).all()


def edited(line: int, text: str) -> str:
    lines = PLAIN.splitlines()
    lines[line - 1] = text
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (table(("step", STEPS), ("lr", [0] * 6), ("loss", LOSSES)), "every rate is 0"),
        ("", "line 1: no names of columns, as in step,lr,loss"),
        ("\n\n", "line 1: no names of columns"),
        ("step,lr,loss\n", "'loss' has 0 samples; a curve needs at least 5"),
        ("\n".join(PLAIN.splitlines()[:5]), "'loss' has 4 samples"),
        (
            PLAIN.replace("step", "when"),
            "no column with the step among: when, lr, loss",
        ),
        (PLAIN.replace("lr", "x"), "no column with the learning rate among: step, x"),
        (PLAIN.replace("lr", "x"), "name one 'lr', or give it as a file of its own"),
        (PLAIN.replace("loss", "x"), "no column with the train loss.*name one 'loss'"),
        (PLAIN.replace(",", ";"), "no column with the step among: step;lr;loss"),
        (PLAIN.replace("step,", ""), "line 2: 3 cells, but line 1 names 2 columns"),
        (edited(3, "20,0.5"), "line 3: 2 cells"),
        (edited(4, "30,0.4,two"), "line 4: 'loss' is 'two', no number"),
        (edited(4, ",0.4,2.25"), "line 4: 'step' is '', no number"),
        (edited(4, "30,0.4,nan"), "line 4: 'loss' is nan; leave out the rows"),
        (edited(4, "30,inf,2.25"), "line 4: 'lr' is inf"),
        (edited(4, "30,0.4,0"), "line 4: 'loss' is 0; laws describe losses above 0"),
        (edited(4, "30,0.4,-1"), "line 4: 'loss' is -1"),
        (edited(4, "30,-0.4,2.25"), "line 4: 'lr' is -0.4; a learning rate is 0 or"),
        (edited(4, "15,0.4,2.25"), "line 4: step 15 comes after step 20; sort"),
        (edited(4, "20,0.4,2.25"), "line 4: step 20 is there twice; keep one"),
        (edited(2, "-10,0.4,2.25"), "line 2: step -10 is no whole number from 0"),
        (edited(4, "30.5,0.4,2.25"), "line 4: step 30.5 is no whole number"),
        (edited(7, "5e11,0.4,2.25"), "line 7: step 500000000000 .* not tokens"),
        (edited(7, "nan,0.4,2.25"), "line 7: step nan is no whole number"),
        (edited(7, "60,0.4,2.25,8"), "line 7: 4 cells"),
        (b"\x00\xff\xfe\x9c\x00\x01", "no text; of a TensorBoard event file, download"),
        ("step,lr,loss\n" + "x" * 200_000, "no text"),
        (
            table(("Step", STEPS), ("a - loss", LOSSES), ("b - loss", LOSSES)),
            "line 1: 'a - loss' and 'b - loss' say the same; keep one column",
        ),
    ],
)
def test_a_bad_table_is_named_with_line_and_remedy(text, said, write):
    with pytest.raises(lab.LabError, match=said) as error:
        curves.read(write(text))
    assert str(error.value).count("run.csv") == 1 and "\n" not in str(error.value)


def test_rates_that_end_before_the_losses_are_refused(write):
    losses = write(table(("step", STEPS), ("loss", LOSSES)), "loss.csv")
    rates = write(table(("step", range(5)), ("lr", RATES[:5])), "lr.csv")
    with pytest.raises(lab.LabError, match=r"step 60 .* from step 0 to 4; export both"):
        curves.read(f"{losses},{rates}")
    rates = write(table(("step", range(30, 80, 10)), ("lr", RATES[:5])), "lr.csv")
    with pytest.raises(lab.LabError, match=r"line 2: step 10 .* from step 30 to 70"):
        curves.read(f"{losses},{rates}")


def test_missing_files_are_named(tmp_path, write):
    for name in ("no.csv", "no.jsonl", "a.csv,b.csv"):
        with pytest.raises(lab.LabError, match="No such file"):
            curves.read(tmp_path / name)
    with pytest.raises(lab.LabError, match=r"b\.csv: No such file"):
        curves.read(f"{write(PLAIN)},{tmp_path / 'b.csv'}")
    with pytest.raises(
        lab.LabError, match=r"no metrics\.jsonl; give the folder of one"
    ):
        curves.read(tmp_path)


def test_a_long_log_is_read_at_once(write):
    steps = np.arange(1, 100_001)
    text = table(("step", steps), ("lr", 1 / steps), ("loss", 2 + 1 / steps))
    path, begin = write(text), time.perf_counter()
    assert curves.read(path).step.size == 100_000
    assert time.perf_counter() - begin < 5


def test_a_run_of_the_lab_is_read_with_the_rate_of_every_update(tmp_path):
    folder = tmp_path / "short"
    tx = optimizers.adamw(lambda count: 0.01 / (1 + count))
    result = train.train(toy.WORKLOAD, tx, steps=8, eval_every=1, out=folder)
    for source in (folder, folder / "metrics.jsonl"):
        curve = curves.read(source)
        assert curve.name == "short" and curve.step.tolist() == list(range(8))
        assert curve.loss == pytest.approx(result.train_losses)
        assert curve.rate == pytest.approx(0.01 / np.arange(1, 9))
    evals = curves.read(folder, losses="eval")
    assert list(zip(evals.step, evals.loss, strict=True)) == result.evaluations
    assert evals.rate == pytest.approx(curve.rate)


def log(**changes: object) -> list[dict]:
    """Returns the rows of a log; changes are of its fourth row."""
    rows = [
        {"kind": "train", "step": step, "loss": 3 - step / 10, "learning_rate": 0.1}
        for step in range(8)
    ]
    rows[3] |= changes
    return rows


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_half_a_line_at_the_end_of_a_log_is_no_matter(write):
    path = write(lines(log()) + '{"kind": "tr', "metrics.jsonl")
    assert curves.read(path).step.size == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'loss' has 0 samples"),
        (lines(log()[:4]), "'loss' has 4 samples"),
        (lines(log(loss=None)), "line 4: 'loss' is nan"),
        (lines(log(loss="x")), "line 4: 'step' or 'loss' is no number"),
        (lines(log(loss=-2.0)), "line 4: 'loss' is -2"),
        (lines(log(step=9)), "line 5: step 4 comes after step 9"),
        (lines(log(learning_rate=-1.0)), "line 4: 'learning_rate' is -1"),
        (lines(log()[1:]), "line 1: the rate of update 0 is not in the log"),
        (lines([{**r, "learning_rate": None} for r in log()]), "no 'learning_rate'"),
        (lines([*log(), {"loss": 3}]), "line 9: no row of a log of the lab"),
        (lines([3, *log()]), "line 1: no row of a log of the lab"),
        ("{\n" + lines(log()), "line 1: no row of a log of the lab"),
        (b"\xff\xfe\x00", "no text"),
    ],
)
def test_a_bad_log_is_named_with_line_and_remedy(text, said, write):
    with pytest.raises(lab.LabError, match=said) as error:
        curves.read(write(text, "metrics.jsonl"))
    assert "metrics.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_a_loss_that_was_not_finite_is_null_in_a_log(write):
    rows = log(loss=math.nan)
    assert "NaN" in lines(rows)
    with pytest.raises(lab.LabError, match="line 4: 'loss' is nan"):
        curves.read(write(lines(rows), "metrics.jsonl"))
