"""What a wrapper is put around: a transformation, or the wrapper says so by name."""

import optax
import pytest

from optlab import catalog, optimizers

BUILDS = {row.name: (row.build, row.defaults) for row in catalog.rows("wrappers")}
BUILDS["schedule_free"] = optimizers.schedule_free, {"learning_rate": 0.1}


@pytest.mark.parametrize("name", BUILDS)
def test_what_is_no_transformation_is_refused(name):
    build, settings = BUILDS[name]
    said = f"{name}: inner must be a transformation such as .* got <function adam at"
    with pytest.raises(TypeError, match=said):
        build(**{**settings, "inner": optax.adam})
