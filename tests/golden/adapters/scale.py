"""SCALE of the authors' code, with the Adam that goes with it."""

from optlab import optimizers, trees
from tests.golden.adapters import low_memory_adam
from tests.golden.comparing import Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings


def scale(values: Settings, case: Case) -> Trajectory:
    for name in ("main_params", "secondary_params", "oned_params", "id_to_name"):
        values.idle(name, because="the case says which parameter has which role")
    values.idle("debug", because="it prints")
    learning_rate, decay = values.take("lr", 1e-4), values.take("wd", 0.0)
    roles = case.meta["parameter_roles"]
    # A matrix is (out, in) there: the norm runs over the last axis; over the first, the
    # vocabulary, of an embedding.
    fan_in = {"embed": 0, "main": 1, "last": 1}
    views = {
        name: trees.MatrixView((fan_in[role],), (1 - fan_in[role],))
        if role in fan_in
        else None
        for name, role in roles.items()
    }
    adam_rate = values.take("adam_lr", None)
    b1, b2 = values.take("adamw_betas", (0.9, 0.999))
    rest = low_memory_adam.adamw(
        learning_rate if adam_rate is None else adam_rate,
        b1=b1,
        b2=b2,
        eps=values.take("adamw_eps", 1e-8),
        weight_decay=decay,
    )
    heads = [name for name, role in roles.items() if role == "last"]
    tx = optimizers.scale(
        learning_rate,
        rest=rest,
        b1=values.take("momentum", 0.9),
        weight_decay=decay,
        head=f"^({'|'.join(heads)})$",
        views=views,
    )
    return Trajectory(tx)


ADAPTERS = {"SCALE": scale}
