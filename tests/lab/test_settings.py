"""Names of functions in a chain's text."""

import pytest

from optlab.lab import chains, settings

OF_A_SCHEDULE = {
    "decay": "wsd:warmup_steps=0,decay_steps=100,end_value=1e-5",
    "shape": "one_cycle:warmup_steps=0",
}


@pytest.mark.parametrize(
    ("key", "name"),
    [(key, n) for key in OF_A_SCHEDULE for n in settings.FUNCTIONS[key]],
)
def test_every_named_shape_is_a_decay_of_its_own(key, name):
    text = OF_A_SCHEDULE[key]

    def rates(chosen):
        chain = chains.parse(f"sgd:learning_rate=0.1+{text},{key}={chosen}@100")
        schedule = chain.build()[1]
        return [float(schedule(count)) for count in (0, 25, 50, 75, 100)]

    first, *inner, last = rates(name)
    assert first == pytest.approx(0.1)
    assert last < inner[-1] and inner == sorted(inner, reverse=True)
    others = [rates(other) for other in settings.FUNCTIONS[key] if other != name]
    assert [first, *inner, last] not in others


def test_a_decay_by_a_constant_factor_must_end_above_zero():
    with pytest.raises(chains.ChainError, match="end_value must be positive"):
        chains.parse("sgd+wsd:decay=exponential@100").build()
    with pytest.raises(chains.ChainError, match="unknown function 'exponential'"):
        chains.parse("sgd+one_cycle:shape=exponential@100")
