"""`optlab plan` tells what a mesh must hold, and refuses what cannot be."""

import json
import resource
import time

import jax
import pytest
from jax.sharding import PartitionSpec as P

from optlab.lab import cli, decoders, plans

SMALL = "decoder:layers=2,d_model=64,heads=4,kv_heads=2,d_ff=128,vocab=256"


def planned(capsys, *arguments):
    assert cli.main(["plan", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("preset", "millions"), [("125M", 124), ("1B", 1236), ("8B", 8030)]
)
def test_presets_have_the_parameters_of_their_names(preset, millions):
    params = jax.tree.leaves(decoders.PRESETS[preset].params())
    assert round(sum(x.size for x in params) / 1e6) == millions


def test_layers_in_one_array_are_as_many_numbers():
    sizes = [
        sum(x.size for x in jax.tree.leaves(decoders.read(text).params()))
        for text in (SMALL, f"{SMALL},scanned=true")
    ]
    assert sizes[0] == sizes[1]


def test_tensor_parallelism_follows_roles_and_fsdp_takes_the_longest_axis_left():
    params = decoders.read("decoder:8B,layers=1").params()
    both = decoders.places(params, {"fsdp": 8, "tp": 4})
    layer = both["layer_0"]
    assert layer["attention"]["query"]["kernel"] == P("fsdp", "tp")
    assert layer["attention"]["out"]["kernel"] == P("tp", "fsdp")
    assert layer["mlp"]["down"]["kernel"] == P("tp", "fsdp")
    assert both["embed"]["embedding"] == P("tp", "fsdp")
    assert layer["mlp_norm"]["scale"] == P()
    alone = decoders.places(params, {"fsdp": 8})
    assert alone["layer_0"]["mlp"]["up"]["kernel"] == P(None, "fsdp")
    assert alone["layer_0"]["mlp"]["down"]["kernel"] == P("fsdp", None)
    stacked = decoders.read("decoder:8B,scanned=true").params()
    places = decoders.places(stacked, {"fsdp": 8, "tp": 4})
    assert places["layers"]["mlp"]["up"]["kernel"] == P(None, "fsdp", "tp")


def test_a_rule_goes_before_roles():
    params = decoders.read(SMALL).params()
    rules = [("layer_1/.*/up", P("tp")), ("up", P(None, "fsdp"))]
    found = decoders.places(params, {"fsdp": 2, "tp": 2}, rules)
    assert found["layer_0"]["mlp"]["up"]["kernel"] == P(None, "fsdp")
    assert found["layer_1"]["mlp"]["up"]["kernel"] == P("tp")


def test_json_has_memory_work_traffic_ways_and_routing(capsys):
    found = planned(capsys, "--model", SMALL, "--mesh", "fsdp=4,tp=2")
    assert (found["devices"], found["tokens"]) == (8, 2**19)
    memory = found["bytes_per_device"]
    assert memory["parameters"] == memory["gradients"]
    assert memory["temporaries"] > 0
    # Muon's momentum and Adam's two moments of the rest.
    routed = {
        group: sum(row["bytes"] for row in found["routing"] if row["group"] == group)
        for group in ("matrix", "rest")
    }
    assert memory["state: matrix momentum"] == routed["matrix"]
    assert memory["state: rest mu"] == memory["state: rest nu"] == routed["rest"]
    # Each of two layers: what of the parameters is multiplied, without the embedding.
    products = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 64 * 256
    assert found["flops_per_device"]["model"] == 6 * products * 2**19 / 8
    assert set(found["collectives"]) == {"all_to_all"}
    stacks = {tuple(way["stack"]) for way in found["ways"]}
    assert {(4, 64, 128), (2, 128, 64), (4, 64, 32)} <= stacks
    for way in found["ways"]:
        seconds = [one["seconds"] for one in way["ways"]]
        assert seconds == sorted(seconds)


def test_a_workload_is_planned_as_it_is_trained(capsys):
    arguments = ("--workload", "digits", "--size", "tiny", "--optimizer", "adamw")
    found = planned(capsys, *arguments, "--mesh", "data=4")
    alone = planned(capsys, *arguments)
    assert found["devices"] == 4
    assert found["bytes_per_device"] == alone["bytes_per_device"]
    assert found["collectives"] == {} and found["ways"] == []
    work = [plan["flops_per_device"]["model"] for plan in (found, alone)]
    assert work[0] == work[1] / 4


def test_the_text_says_what_dominates(capsys):
    arguments = ("--model", SMALL, "--mesh", "fsdp=8", "--optimizer", "soap:every=5")
    assert cli.main(["plan", *arguments, "--block-periodic", "4"]) == 0
    said = capsys.readouterr().out
    assert "most memory: " in said and "most time: " in said
    assert "block-periodic" in said and "2 x layer_*/mlp/up/kernel" in said


def test_planned_and_compiled_stand_side_by_side(capsys):
    arguments = ("--workload", "digits", "--size", "tiny", "--optimizer", "adamw")
    assert cli.main(["plan", *arguments, "--mesh", "fsdp=8", "--compile"]) == 0
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if "bytes of state" in line)
    assert abs(float(line.split()[-1].rstrip("%"))) < 1


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_eight_billion_parameters_on_256_devices_in_seconds_and_little_memory(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    on = plans.model("decoder:8B", "shakespeare", "fsdp=64,tp=4")
    found = plans.make(name, on)
    # Half a minute of the processor, and half a gigabyte: 32 would be the parameters.
    assert time.process_time() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024
    assert found.plan.parameters == 8_030_261_248
    assert sum(found.plan.collectives.counts.values()) <= 2 * len(found.choices)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizer", "muonn"], "unknown optimizer 'muonn'; did you mean 'muon'"),
        (["--optimizer", "muon:b9=1"], "unknown key of muon 'b9'"),
        (["--optimizer", "kfac"], "kfac needs layer_stats"),
        (["--workload", "shakespear"], "shakespear"),
        (["--model", "decoder:9B"], "unknown preset '9B'; did you mean '8B'"),
        (["--model", "resnet"], "model 'resnet': write decoder:PRESET"),
        (["--model", "decoder:8B,depth=3"], "unknown key 'depth'"),
        (["--model", "decoder:8B,layers=0"], "layers must be a whole number above 0"),
        (["--model", "decoder:8B,kv_heads=5"], "kv_heads=5 does not divide heads=32"),
        (["--model", "decoder:layers=2"], "d_model, heads, kv_heads, d_ff, vocab is"),
        (["--mesh", "pipe=2"], "write each of data, fsdp, tp"),
        (
            ["--model", "decoder:8B", "--mesh", "fsdp=7"],
            "leaf 'embed/embedding' of shape (128256, 4096): 128256",
        ),
        (
            ["--model", "decoder:8B", "--mesh", "fsdp=2", "--place", "up=tp"],
            "is placed over 'tp'; the mesh has fsdp",
        ),
        (["--place", "up"], "place 'up': write PATTERN=ENTRY"),
        (["--mesh", "fsdp=16", "--compile"], "16 devices are needed, there are 8"),
        (["--link-bytes-per-second", "0"], "link must be above 0"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(arguments, said, capsys):
    assert cli.main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
