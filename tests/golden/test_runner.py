"""The runner itself: right numbers pass, and no planted fault gets through."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import catalog
from tests.golden import adapters, comparing, reading, running, settings

ROOT = pathlib.Path(__file__).parents[2]


def lion(init, grads, *, lr, betas, weight_decay):
    """The algorithm in float64; returns parameters after each step."""
    p, m, path = init.copy(), np.zeros_like(init), []
    for g in grads:
        update = np.sign(betas[0] * m + (1 - betas[0]) * g)
        p = p * (1 - lr * weight_decay) - lr * update
        m = betas[1] * m + (1 - betas[1]) * g
        path.append(p)
    return np.stack(path)


def muon(init, grads, *, lr, momentum, weight_decay):
    """K. Jordan's code in float64, for one (out, in) or (out, in, kh, kw) array."""
    a, b, c = 3.4445, -4.7750, 2.0315
    p, m, path = init.copy(), np.zeros_like(init), []
    for g in grads:
        m = momentum * m + (1 - momentum) * g
        x = (momentum * m + (1 - momentum) * g).reshape(len(g), -1)
        x = x / (np.linalg.norm(x) + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.reshape(g.shape) * max(1.0, g.shape[-2] / g.shape[-1]) ** 0.5
        p = p * (1 - lr * weight_decay) - lr * x
        path.append(p)
    return np.stack(path)


def write(root, name, optimizer, reference_class, shapes, *, seed, steps, **values):
    """Writes a case of the format of the reference data; returns its stem."""
    rng = np.random.default_rng(seed)
    flat = {}
    for key, shape in shapes.items():
        flat[f"init/{key}"] = rng.normal(size=shape)
        flat[f"grads/{key}"] = rng.normal(size=(steps, *shape))
        flat[f"params/{key}"] = optimizer(
            flat[f"init/{key}"], flat[f"grads/{key}"], **values
        )
    meta = {
        "reference_class": reference_class,
        "hyperparameters": values,
        "resolved_hyperparameters": values,
        "dtype": "float64",
        "steps": steps,
        "modifications": ["no cast to bfloat16"],
    }
    return save(root / name, meta, flat)


def save(stem, meta, flat):
    """Writes the two files of a case; `arrays` declares what the npz holds."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    declared = {
        key: {"shape": [*x.shape], "dtype": str(x.dtype)} for key, x in flat.items()
    }
    np.savez(f"{stem}.npz", **flat)
    pathlib.Path(f"{stem}.json").write_text(json.dumps({**meta, "arrays": declared}))
    return stem


def load(stem):
    """Reads the two files as they are."""
    with np.load(f"{stem}.npz") as stored:
        flat = dict(stored)
    return json.loads(pathlib.Path(f"{stem}.json").read_text()), flat


@pytest.fixture
def lion_case(tmp_path):
    return write(
        tmp_path,
        "lion/vector",
        lion,
        "lion_pytorch.Lion",
        {"vec": (5,)},
        seed=0,
        steps=4,
        lr=0.1,
        betas=(0.8, 0.9),
        weight_decay=0.2,
    )


def run_pytest(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_another_folder_runs_through_the_same_adapters_and_is_reported(tmp_path):
    write(
        tmp_path,
        "muon_kellerjordan/other_shapes",
        muon,
        "SingleDeviceMuon",
        {"wide": (3, 8), "tall": (9, 2), "conv": (4, 3, 2, 1)},
        seed=5,
        steps=7,
        lr=0.3,
        momentum=0.7,
        weight_decay=0.05,
    )
    shapes = {"mat": (2, 3), "vec": (4,), "scalar": ()}
    lion_values = {"lr": 0.02, "betas": (0.6, 0.95), "weight_decay": 0.4}
    named = {"seed": 6, "steps": 9, **lion_values}
    stem = write(tmp_path, "lion/other", lion, "lion_pytorch.Lion", shapes, **named)
    meta, flat = load(stem)
    flat["params/mat"][3] += 1e-6
    save(tmp_path / "lion/perturbed", meta, flat)
    save(tmp_path / "wizard/spell", {**meta, "reference_class": "Wizard"}, flat)

    done = run_pytest("tests/golden/test_golden.py", "--golden-dir", str(tmp_path))

    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 2 passed, 1 skipped" in done.stdout
    report = done.stdout.partition("golden cases")[2].splitlines()
    rows = {line.split()[0]: line.split() for line in report if line}
    assert rows["muon_kellerjordan"][1] == "1"
    assert float(rows["muon_kellerjordan"][2]) < 1e-12
    assert rows["lion"][1] == "2" and float(rows["lion"][2]) > 1e-7
    assert "FAILS in lion/perturbed" in done.stdout
    assert "1 no adapter yet: wizard" in done.stdout


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_without_cases_is_an_error(tmp_path, folder):
    done = run_pytest(
        "tests/golden/test_golden.py", "--golden-dir", str(tmp_path / folder)
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: no golden case (NAME/CASE.npz with NAME/CASE.json) in" in done.stderr


def test_the_transcription_of_lion_passes(lion_case):
    (measured,) = running.run(lion_case)
    assert measured.agrees and measured.error < 1e-13


def test_a_perturbed_number_is_found_and_located(lion_case):
    meta, flat = load(lion_case)
    flat["params/vec"][2, 0] += 1e-8
    save(lion_case, meta, flat)
    (measured,) = running.run(lion_case)
    assert not measured.agrees
    assert measured.what.startswith("'vec' after step 2 (first beyond tolerance: 'vec'")


def test_an_unknown_hyperparameter_is_refused(lion_case):
    meta, flat = load(lion_case)
    meta["resolved_hyperparameters"]["cautious"] = True
    save(lion_case, meta, flat)
    with pytest.raises(
        settings.UnknownSettingError,
        match="adapter lion_pytorch does not know cautious=True",
    ):
        running.run(lion_case)


def test_an_unknown_value_is_refused(lion_case):
    meta, flat = load(lion_case)
    meta["reference_class"] = "torch.optim.Muon"
    meta["resolved_hyperparameters"] = {"adjust_lr_fn": "match_l1"}
    meta["hyperparameters"] = {}
    save(lion_case, meta, flat)
    with pytest.raises(
        settings.UnknownSettingError, match="does not know adjust_lr_fn='match_l1'"
    ):
        running.run(lion_case)


def test_a_missing_hyperparameter_without_a_default_is_named(lion_case):
    meta, flat = load(lion_case)
    meta.update(reference_class="torch.optim.lr_scheduler.CosineAnnealingLR")
    meta.update(hyperparameters={}, resolved_hyperparameters={}, base_lr=1.0)
    save(lion_case, meta, flat)
    with pytest.raises(
        settings.UnknownSettingError, match="torch_cosine needs 'T_max'"
    ):
        running.run(lion_case)


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_half_a_case_is_found_and_fails(lion_case, suffix):
    pathlib.Path(f"{lion_case}.{suffix}").unlink()
    assert reading.stems(lion_case.parents[1]) == [lion_case]
    with pytest.raises(reading.FaultyCaseError, match=rf"vector\.{suffix} is missing"):
        running.run(lion_case)


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_an_unreadable_file_fails(lion_case, suffix):
    pathlib.Path(f"{lion_case}.{suffix}").write_bytes(b"PK\x03\x04 not this")
    with pytest.raises(reading.FaultyCaseError, match=r"is not json|cannot read"):
        running.run(lion_case)


def test_a_shape_that_does_not_fit_init_fails(lion_case):
    meta, flat = load(lion_case)
    flat["grads/vec"] = flat["grads/vec"][:, :1]
    save(lion_case, meta, flat)
    with pytest.raises(
        reading.FaultyCaseError, match=r"'grads/vec' has shape \(4, 1\)"
    ):
        running.run(lion_case)


def test_an_array_that_is_not_as_declared_fails(lion_case):
    _, flat = load(lion_case)
    np.savez(f"{lion_case}.npz", **{**flat, "init/vec": flat["init/vec"][:1]})
    with pytest.raises(reading.FaultyCaseError, match=r"\(1,\) in the npz"):
        running.run(lion_case)
    np.savez(f"{lion_case}.npz", **{**flat, "init/odd": flat["init/vec"]})
    with pytest.raises(reading.FaultyCaseError, match=r"has \['init/odd'\]"):
        running.run(lion_case)


def test_a_result_that_is_not_a_number_never_agrees(lion_case):
    case = reading.read(lion_case)
    with jax.enable_x64(True):
        (measured,) = comparing.Trajectory(optax.scale(jnp.nan)).measure(case)
    assert measured.error == float("inf") and not measured.agrees
    assert not comparing.Measurement("", float("nan"), 1.0).agrees


def test_a_curve_that_cannot_be_compared_anywhere_fails(tmp_path):
    meta = {
        "reference_class": "torch.optim.lr_scheduler.CosineAnnealingLR",
        "hyperparameters": {"T_max": 9},
        "base_lr": 1.0,
        "dtype": "float64",
    }
    stem = save(tmp_path / "schedule/short", meta, {"values": np.ones(1)})
    with pytest.raises(reading.FaultyCaseError, match="1 of 1 rates"):
        running.run(stem)


def test_64_bit_types_are_on_inside_a_case_only(lion_case, monkeypatch):
    inside = []
    monkeypatch.setattr(
        comparing.Trajectory,
        "measure",
        lambda self, case: inside.append(jnp.ones(()).dtype),
    )
    running.run(lion_case)
    assert inside == [jnp.float64] and jnp.ones(()).dtype == jnp.float32


def test_every_catalogued_name_that_has_cases_has_an_adapter():
    known = {row.name for row in catalog.rows()}
    for stem in reading.stems(reading.CASES):
        if stem.parent.name in known:
            name = reading.read(stem).meta["reference_class"]
            assert name in adapters.ADAPTERS, f"{reading.name(stem)}: {name}"
