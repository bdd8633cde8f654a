"""From a case's class and hyperparameters to optlab's counterpart.

An adapter is a function of the hyperparameters (`settings.Settings`: it must take or
declare idle every one) and the case; it returns what `comparing` measures. `ADAPTERS`
finds it by the json's `reference_class`. A file here covers one family.
"""

from tests.golden.adapters import (
    adahessian,
    adaptive,
    frugal,
    galore,
    lion,
    mfac,
    mkor,
    muon,
    natural_galore,
    newton_schulz,
    open_ended,
    projected,
    psgd_kron,
    pytorch_optimizer_schedules,
    sam,
    scale,
    shampoo,
    soap,
    timm_schedules,
    torch_schedules,
    transformers_schedules,
    tuning_free,
)

ADAPTERS = {
    **adahessian.ADAPTERS,
    **adaptive.ADAPTERS,
    **lion.ADAPTERS,
    **mfac.ADAPTERS,
    **mkor.ADAPTERS,
    **muon.ADAPTERS,
    **newton_schulz.ADAPTERS,
    **psgd_kron.ADAPTERS,
    **pytorch_optimizer_schedules.ADAPTERS,
    **shampoo.ADAPTERS,
    **soap.ADAPTERS,
    **timm_schedules.ADAPTERS,
    **torch_schedules.ADAPTERS,
    **transformers_schedules.ADAPTERS,
    **open_ended.ADAPTERS,
    **projected.ADAPTERS,
    **frugal.ADAPTERS,
    **galore.ADAPTERS,
    **natural_galore.ADAPTERS,
    **tuning_free.ADAPTERS,
    **sam.ADAPTERS,
    **scale.ADAPTERS,
}
