"""Settings that must be in place before JAX's backends start.

Eight host devices serve the mesh tests; code that names no device still runs on the
first. Nothing else is turned on here: a test that needs 64-bit types enables them for
itself.
"""

import jax

jax.config.update("jax_num_cpu_devices", 8)
