"""`optlab plan`."""

import json
import types
from typing import TYPE_CHECKING

from absl import flags

from optlab.lab.cli import options

if TYPE_CHECKING:
    from optlab.lab import plans

EXAMPLES = """\
optlab plan --mesh fsdp=8,tp=4
    Muon and the model of shakespeare on 32 devices
optlab plan --optimizer soap:every=20 --model decoder:8B --mesh fsdp=64,tp=4
    a decoder of 8 billion parameters on 256 devices; nothing is allocated
optlab plan --model decoder:1B,layers=24,scanned=true --mesh fsdp=32 --json
    another one, all layers in one array; everything as JSON
optlab plan --model decoder:8B --mesh fsdp=8,tp=8 --place "out=-,fsdp+tp"
    another placement than by role
optlab plan --mesh fsdp=8 --compile
    planned beside counted in the compiled program; needs the devices, which
    XLA_FLAGS=--xla_force_host_platform_device_count=8 makes of one CPU
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    flags.DEFINE_string(
        "optimizer", "muon", "NAME[:key=value,...], as in a chain.", flag_values=values
    )
    options.define_workload(values)
    flags.DEFINE_string(
        "model",
        None,
        "Abstract decoder in place of the workload's model: decoder:125M, decoder:1B or"
        " decoder:8B, with ',key=value,...' to change it; keys are layers, d_model,"
        " heads, kv_heads, d_ff, vocab, tied and scanned.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "mesh",
        None,
        "NAME=SIZE,... with the names data (the parameters are replicated), fsdp and tp"
        " (they are divided), as in fsdp=64,tp=4; without it one device.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "place",
        [],
        "PATTERN=ENTRY,... places the parameters whose path holds the pattern: for each"
        " axis a mesh axis, several with '+' between, or '-'. The first that fits"
        " counts.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tokens",
        None,
        "Tokens, or images, of a step over all devices; by default those of the"
        " workload, or 524288.",
        lower_bound=1,
        flag_values=values,
    )
    _define_speeds(values)
    flags.DEFINE_boolean(
        "compile", False, "Compile the step too, and count there.", flag_values=values
    )
    flags.DEFINE_boolean("json", False, "Print JSON.", flag_values=values)


def _define_speeds(values: flags.FlagValues) -> None:
    speeds = {
        "flops_per_second": (1e14, "FLOPs of a device in a second."),
        "link_bytes_per_second": (5e10, "Bytes that a device sends in a second."),
        "latency_seconds": (2e-5, "Seconds of a collective beside its bytes."),
    }
    for name, (default, text) in speeds.items():
        flags.DEFINE_float(name, default, text, lower_bound=0.0, flag_values=values)
    flags.DEFINE_integer(
        "block_periodic",
        None,
        "Show the block-periodic way too, with whole matrices every so many steps; it"
        " is another method, muon_bp.",
        lower_bound=1,
        flag_values=values,
    )


def run(given: types.SimpleNamespace, command: str) -> None:
    """Prints the plan.

    Args:
      given: The value of each flag.
      command: The command line; nothing records it.
    """
    del command
    from optlab import sharding
    from optlab.lab import plans, runs

    with options.checked():
        if given.model is None:
            runs.check_workload(given.workload)
        on = plans.model(
            given.model,
            given.workload,
            given.mesh,
            size=given.size,
            tokens=given.tokens,
            rules=given.place,
        )
        report = plans.make(
            given.optimizer,
            on,
            hardware=sharding.Hardware(
                given.flops_per_second,
                given.link_bytes_per_second,
                given.latency_seconds,
            ),
            every=given.block_periodic,
            measure=given.compile,
        )
    if given.json:
        print(json.dumps(report.as_dict(), indent=2))
        return
    _show(report)


def _show(found: "plans.Report") -> None:
    from optlab.lab import report

    print(f"{found.optimizer}, {found.model.name}\n{found.plan}\n")
    _show_time(found)
    if found.choices:
        print("\nways of the stacks of equal matrices, the cheapest first:")
        for choice in found.choices:
            print(choice)
    print()
    report.show(
        ("parameters", "group", "spec", "bytes on a device"),
        [
            (f"{count} x {path} {shape}", group or "all", spec, f"{size:,}")
            for path, count, shape, group, spec, size in found.plan.routing()
        ],
        numbers=False,
    )


def _show_time(found: "plans.Report") -> None:
    seconds = found.seconds()
    model, tokens = found.model.flops, found.model.tokens
    print(f"model, forward and backward: {model / 1e9:.3f} GFLOP, 6 N a token,")
    print(f"  {tokens:,} tokens; the optimizer's work is {found.flops / model:.2%}")
    speeds = found.hardware
    print(
        f"at {speeds.flops:.3g} FLOP/s and {speeds.link:.3g} bytes/s a device,"
        f" {speeds.latency:.3g} s a collective:"
    )
    for name, value in seconds.items():
        print(f"  {name:32} {1e3 * value:12.3f} ms")
    memory = found.plan.memory
    print(
        f"most memory: {max(memory, key=memory.__getitem__)};"
        f" most time: {max(seconds, key=seconds.__getitem__)}"
    )
    if found.measured is not None:
        print("\nplanned and counted in the compiled program:")
        for name, (planned, counted) in found.compared().items():
            error = f"{planned / counted - 1:+.2%}" if counted else "-"
            print(f"  {name:32} {planned:18,.0f} {counted:18,.0f} {error:>9}")
