"""Shampoo of facebookresearch/optimizers; torch-optimizer's is another method."""

import re
from typing import Any

import optax

from optlab import optimizers
from tests.golden.comparing import Trajectory
from tests.golden.reading import Case
from tests.golden.settings import NotInOptlabError, Settings, UnknownSettingError

# What the cases themselves hint at: roots by eigendecompositions.
ROOTS = {"tolerance": 1e-7, "reason": "eigendecompositions"}
GRAFTS = {"SGD": "sgd", "AdaGrad": "adagrad", "RMSprop": "rmsprop", "Adam": "adam"}


def _graft(written: str | None) -> dict[str, Any]:
    """Reads 'AdamPreconditionerConfig(epsilon=1e-08, beta2=0.99, ...)'."""
    if written is None:
        return {"graft": "none"}
    found = re.fullmatch(r"(\w+)PreconditionerConfig\((.*)\)", written)
    if found is None or found[1] not in GRAFTS:
        raise UnknownSettingError(f"adapter facebook does not know {written}")
    settings = dict(part.split("=") for part in found[2].split(", ") if part)
    if settings.pop("drop_weighting_factor_on_gsquare", "False") != "False":
        raise UnknownSettingError(f"adapter facebook does not know {written}")
    names = {"epsilon": "graft_eps", "beta2": "graft_b2"}
    return {
        "graft": GRAFTS[found[1]],
        **{names[name]: float(value) for name, value in settings.items()},
    }


def facebook(values: Settings, case: Case) -> Trajectory:
    b1, b2 = values.take("betas", (0.9, 1.0))
    values.take("beta3", -1.0, among=[-1.0, b1])
    values.take("iterate_averaging_config", None, among=[None])
    # Axes are not merged, and blocks are larger than any case.
    values.take("target_parameter_dimensionality", among=["inf"])
    for name in ("use_pin_memory", "shampoo_pt2_compile_config", "distributed_config"):
        values.idle(name, because="it says where and how the same sums are done")
    for name in ("shampoo_runtime_config", "concurrency_config"):
        values.idle(name, because="it says where and how the same sums are done")
    values.take("preconditioner_config", None, among=[None])
    exponents = values.take("inverse_exponent_override", {})

    def root_order(axes: int) -> float:
        exponent = exponents.get(str(axes), 1 / (2 * axes))
        if not isinstance(exponent, float):
            raise UnknownSettingError(f"adapter facebook does not know {exponents}")
        return 1 / exponent

    start = values.take("start_preconditioning_step", -1)
    decay = values.take("weight_decay", 0.0)
    form = values.take("weight_decay_type", "WeightDecayType.DECOUPLED")
    coupled = form == "WeightDecayType.L2"
    if not coupled and form != "WeightDecayType.DECOUPLED":
        raise UnknownSettingError(f"adapter facebook does not know {form}")
    tx = optimizers.shampoo(
        values.take("lr", 1e-2),
        b1=b1,
        b2=b2,
        eps=values.take("epsilon", 1e-12),
        weight_decay=0.0 if coupled else decay,
        every=values.take("precondition_frequency", 1),
        start=None if start == -1 else start,
        root_order=root_order,
        block_size=values.take("max_preconditioner_dim", 1024),
        bias_correction=values.take("use_bias_correction", True),
        views="axes",
        **_graft(values.take("grafting_config", None)),
    )
    if coupled:
        tx = optax.chain(optax.add_decayed_weights(decay), tx)
    return Trajectory(tx, **ROOTS)


def torch_optimizer(values: Settings, case: Case) -> Trajectory:
    raise NotInOptlabError(
        "torch-optimizer's Shampoo takes roots of order r, not 2 r, and statistics of"
        " the gradient that the other sides have already multiplied"
    )


ADAPTERS = {
    "DistributedShampoo with RootInvShampooPreconditionerConfig": facebook,
    "torch_optimizer.Shampoo": torch_optimizer,
}
