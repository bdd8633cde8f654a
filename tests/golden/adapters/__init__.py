"""From a case's class and hyperparameters to optlab's counterpart.

An adapter is a function of the hyperparameters (`settings.Settings`: it must take or
declare idle every one) and the case; it returns what `comparing` measures. `ADAPTERS`
finds it by the json's `reference_class`. A file here covers one family.
"""

from tests.golden.adapters import lion, muon, newton_schulz, open_ended, schedules

ADAPTERS = {
    **lion.ADAPTERS,
    **muon.ADAPTERS,
    **newton_schulz.ADAPTERS,
    **schedules.ADAPTERS,
    **open_ended.ADAPTERS,
}
