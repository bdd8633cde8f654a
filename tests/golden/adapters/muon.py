"""Muon of KellerJordan, torch.optim and Moonlight, with the Adam that goes with it.

All three take Newton-Schulz of a matrix that is (out, in); KellerJordan's reads (out,
in, kh, kw) as (out, in * kh * kw) and three axes as a stack of matrices.
"""

from typing import Any

import jax
import optax

from optlab import optimizers, trees
from tests.golden.adapters import newton_schulz
from tests.golden.comparing import FLOAT64, Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings

JORDAN = (3.4445, -4.7750, 2.0315)
# A bfloat16 Newton-Schulz is wrong by several per cent in each entry of each step, in
# the published code as in the kernel, and the two round at different places.
BFLOAT16 = 0.2


def _views(params: Any) -> Any:
    def view(x: jax.Array) -> trees.MatrixView | None:
        if x.ndim < 2:
            return None
        if x.ndim == 3:
            return trees.MatrixView((2,), (1,))
        return trees.MatrixView(tuple(range(1, x.ndim)), (0,))

    return jax.tree.map(view, params)


def _precision(case: Case) -> tuple[str | None, dict[str, Any]]:
    """Dtype of the products, and the tolerance that follows from it."""
    if any("bfloat16" in change for change in case.meta.get("modifications", ())):
        return None, {"tolerance": FLOAT64}
    return "bfloat16", {
        "tolerance": BFLOAT16,
        "reason": "bfloat16 Newton-Schulz as published; both round, differently",
    }


def _kellerjordan(
    values: Settings, case: Case, rest: optax.GradientTransformation | None
) -> Trajectory:
    dtype, precision = _precision(case)
    settings = {
        "learning_rate": values.take("lr", 0.02),
        "b1": values.take("momentum", 0.95),
        "weight_decay": values.take("weight_decay", 0),
        "orthogonalize": newton_schulz.added(JORDAN, 5, 1e-7, dtype),
        "views": _views,
    }

    return Trajectory(optimizers.muon(rest=rest, **settings), **precision)


def kellerjordan(values: Settings, case: Case) -> Trajectory:
    return _kellerjordan(values, case, rest=None)


def kellerjordan_aux_adam(values: Settings, case: Case) -> Trajectory:
    matrices, others = values.group("muon"), values.group("adam")
    b1, b2 = others.take("betas", (0.9, 0.95))
    rest = optimizers.adamw(
        others.take("lr", 3e-4),
        b1=b1,
        b2=b2,
        eps=others.take("eps", 1e-10),
        weight_decay=others.take("weight_decay", 0),
    )
    comparison = _kellerjordan(matrices, case, rest)
    matrices.finish()
    others.finish()
    return comparison


def torch_muon(values: Settings, case: Case) -> Trajectory:
    dtype, precision = _precision(case)
    scales = {None: "jordan", "original": "jordan", "match_rms_adamw": "moonlight"}
    tx = optimizers.muon(
        values.take("lr", 1e-3),
        b1=values.take("momentum", 0.95),
        nesterov=values.take("nesterov", True),
        weight_decay=values.take("weight_decay", 0.1),
        scale=scales[values.take("adjust_lr_fn", None, among=scales)],
        orthogonalize=newton_schulz.clamped(
            values.take("ns_coefficients", JORDAN),
            values.take("ns_steps", 5),
            values.take("eps", 1e-7),
            dtype,
        ),
        views=_views,
    )
    return Trajectory(tx, **precision)


def moonlight(values: Settings, case: Case) -> Trajectory:
    dtype, precision = _precision(case)
    learning_rate, decay = values.take("lr", 1e-3), values.take("wd", 0.1)
    b1, b2 = values.take("adamw_betas", (0.9, 0.95))
    eps = values.take("adamw_eps", 1e-8)
    for name in ("muon_params", "adamw_params"):
        values.idle(name, because="matrices and the rest are told apart by their axes")
    # Its Adam divides m by sqrt(v) + eps and corrects both biases afterwards, so seen
    # from Adam as it is written elsewhere eps shrinks from step to step.
    rest = optax.inject_hyperparams(optimizers.adamw)(
        learning_rate=learning_rate,
        b1=b1,
        b2=b2,
        eps=lambda count: eps / (1 - b2 ** (count.astype(float) + 1)) ** 0.5,
        weight_decay=decay,
    )
    tx = optimizers.muon(
        learning_rate,
        rest=rest,
        b1=values.take("momentum", 0.95),
        nesterov=values.take("nesterov", True),
        momentum="sum",
        weight_decay=decay,
        scale="moonlight",
        orthogonalize=newton_schulz.added(
            JORDAN, values.take("ns_steps", 5), 1e-7, dtype
        ),
        views=_views,
    )
    return Trajectory(tx, **precision)


ADAPTERS = {
    "SingleDeviceMuon": kellerjordan,
    "SingleDeviceMuonWithAuxAdam": kellerjordan_aux_adam,
    "torch.optim.Muon": torch_muon,
    "Muon in examples/toy_train.py": moonlight,
}
