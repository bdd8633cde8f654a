"""Planned beside compiled: bytes, FLOPs and traffic of an optimizer's step on a mesh.

    python benchmarks/plan.py

Small models are planned without a device and compiled for eight that the CPU stands in
for; nothing is run. A decoder of 8 billion parameters is planned alone, for 256
devices. Printed as Markdown.
"""

import argparse
import os
import resource
import time

# Before JAX starts: eight devices.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax

from optlab.lab import plans

OPTIMIZERS = ("adamw", "muon", "soap")
MESHES = ("fsdp=8", "fsdp=4,tp=2")
SIZES = "d_model=128,heads=4,kv_heads=2,d_ff=512,vocab=256"
MODELS = (
    f"decoder:layers=2,{SIZES}",
    f"decoder:layers=4,{SIZES}",
    f"decoder:layers=4,{SIZES},scanned=true",
)
LARGE = "decoder:8B", "fsdp=64,tp=4"


def small() -> None:
    """Prints a row for each small model."""
    for optimizer in OPTIMIZERS:
        for text in MODELS:
            for mesh in MESHES:
                on = plans.model(text, "", mesh)
                found = plans.make(optimizer, on, measure=True).compared()
                jax.clear_caches()
                layers = text.replace(f",{SIZES}", "")
                cells = [optimizer, layers, mesh]
                for planned, counted in found.values():
                    error = f" ({planned / counted - 1:+.1%})" if counted else ""
                    cells.append(f"{planned:,.0f} / {counted:,.0f}{error}")
                print(f"| {' | '.join(cells)} |", flush=True)


def large() -> None:
    """Prints what planning the large model takes."""
    print("\n| optimizer | seconds of processor | seconds | peak memory, MB |")
    print("| --- | --- | --- | --- |")
    for optimizer in OPTIMIZERS:
        wall, processor = time.perf_counter(), time.process_time()
        plans.make(optimizer, plans.model(LARGE[0], "", LARGE[1]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"| {optimizer} | {time.process_time() - processor:.1f}"
            f" | {time.perf_counter() - wall:.1f} | {peak:.0f} |",
            flush=True,
        )


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large-only", action="store_true")
    given = parser.parse_args()
    if not given.large_only:
        heads = "state", "temporaries", "FLOPs", "bytes sent"
        print(f"| optimizer | model | mesh | {' | '.join(heads)}, planned / compiled |")
        print(f"| {' | '.join(['---'] * 7)} |")
        small()
    large()


if __name__ == "__main__":
    main()
