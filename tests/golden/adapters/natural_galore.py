"""Natural GaLore's AdamW, with the recorded factors in the place of our bases."""

from optlab import optimizers
from tests.golden.adapters import galore, low_memory_adam
from tests.golden.comparing import Trajectory
from tests.golden.reading import Case
from tests.golden.settings import NotInOptlabError, Settings

# The reference subtracts two terms of size g / damping: a thousand gradients.
CANCELS = {"tolerance": 1e-6, "reason": "the reference cancels leading digits"}


def natural_galore(values: Settings, case: Case) -> Trajectory:
    settings = {
        "learning_rate": values.take("lr", 1e-3),
        "eps": values.take("eps", 1e-6),
        "weight_decay": values.take("weight_decay", 0.0),
    }
    settings["b1"], settings["b2"] = values.take("betas", (0.9, 0.999))
    for name in ("amsgrad", "maximize"):
        if values.take(name, False):
            raise NotInOptlabError(name)
    if not values.take("correct_bias", True):
        raise NotInOptlabError("Natural GaLore without bias correction")
    values.idle("no_deprecation_warning", because="it is about a warning")
    history = values.take("natural_history", 20)
    kind = values.take("proj_type", among=("galore", "natural_galore"))
    factors = case.under("extra/factor")
    bases = {
        name: (factors[f"{name}/1"], factors[f"{name}/0"])
        for name in case.init
        if f"{name}/0" in factors
    }
    shared = {
        "rest": low_memory_adam.adamw_afterwards(**settings),
        "rank": values.take("rank"),
        "every": values.take("update_proj_gap"),
        "scale": values.take("scale"),
        "basis": galore.recorded_basis(case.grads, bases),
        "views": galore.views(case),
        **settings,
    }
    if kind == "galore":  # its two-sided projection alone
        return Trajectory(optimizers.galore(side="both", **shared))
    return Trajectory(optimizers.natural_galore(history=history, **shared), **CANCELS)


ADAPTERS = {"SubSpaceAdamW with GaLoreProjectorTensor": natural_galore}
