"""The command line helps, checks before it works, and fails in one line."""

import json
import os
import pathlib
import subprocess
import sys
import types

import pytest
from absl import flags

from optlab import catalog, lab
from optlab.lab import cli, race, sweep, train, workloads
from optlab.lab.cli import options

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["--workload", "digits", "--size", "tiny"]


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def seed_flag(values):
    flags.DEFINE_integer("seed_no", 0, "A seed.", flag_values=values)


def fails(capsys, *argv: str) -> tuple[int, str]:
    """Runs a command that must fail; returns its exit code and the line it says."""
    code = cli.main(argv)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if not line.startswith("optlab: run ")]
    assert len(lines) == 1, said
    return code, lines[0]


def module_of(command: str) -> types.ModuleType:
    name = command.replace("-", "_")
    return cli.importlib.import_module(f"optlab.lab.cli.{name}")


def positional(command: str) -> tuple[str, ...]:
    """Returns the names of a command's arguments without a flag."""
    return getattr(module_of(command), "POSITIONAL", ())


def test_help_lists_the_commands(capsys):
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert cli.main(argv) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {command} " in out for command in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_of_a_command_has_its_flags_and_examples(command, capsys):
    assert cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert " ".join(["usage: optlab", command, *positional(command), "[FLAGS]"]) in out
    assert f"examples:\n  optlab {command}" in out
    assert "--traceback" in out
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_examples_of_a_command_have_flags_that_it_knows(command):
    module = module_of(command)
    joined = module.EXAMPLES.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.startswith("optlab ")]
    assert lines
    for line in lines:
        words = cli.shlex.split(line.partition(">")[0])
        assert words[:2] == ["optlab", command]
        own = options.flag_set(module.define)
        options.parse(command, own, words[2:], positional(command))


@pytest.mark.parametrize(
    ("names", "argv", "found"),
    [
        (("RUN",), "folder", {"run": "folder"}),
        (("RUN",), "--seed-no 3 folder", {"run": "folder", "seed_no": 3}),
        (("LAW", "CSV..."), "a --seed_no=3 b c", {"law": "a", "csv": ["b", "c"]}),
        (("CSV...",), "b", {"csv": ["b"], "seed_no": 0}),
        (("CSV...",), "b --help", {"help": True}),
        (("CSV...",), "--help", {"help": True}),
    ],
)
def test_arguments_without_a_flag_stand_anywhere(names, argv, found):
    given = options.parse("p", options.flag_set(seed_flag), argv.split(), names)
    assert vars(given) | found == vars(given)


@pytest.mark.parametrize(
    ("names", "argv", "said"),
    [
        (("RUN",), "", "RUN is missing"),
        (("LAW", "CSV..."), "a", "CSV is missing"),
        (("RUN",), "a b", "'b' is no flag"),
        ((), "a", "'a' is no flag"),
        (("RUN",), "--run a", "Unknown command line flag 'run'"),
    ],
)
def test_an_argument_too_few_or_too_many_is_named(names, argv, said):
    with pytest.raises(options.UsageError, match=said):
        options.parse("p", options.flag_set(seed_flag), argv.split(), names)


@pytest.mark.parametrize("command", ["race", "train", "sweep"])
def test_the_help_names_every_workload(command, capsys):
    assert cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in workloads.names())


def test_help_and_the_catalogue_come_without_loading_flax():
    heavy = "('flax', 'orbax', 'matplotlib', 'sklearn')"
    done = python(
        "-c",
        "import sys; from optlab.lab import cli; cli.main(['race', '--help']);"
        f"cli.main(['catalog']); print([m for m in {heavy} if m in sys.modules])",
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_module_is_the_command():
    done = python("-m", "optlab.lab.cli", "catalog", "--name", "mun")
    assert done.returncode == 2
    assert "did you mean muon" in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    done = python(
        "-c",
        "import sys; sys.modules['matplotlib'] = None; from optlab.lab import cli;"
        "sys.exit(cli.main(['race']))",
    )
    assert done.returncode == 1
    assert done.stderr == (
        "optlab: no package 'matplotlib'; pip install 'optlab-jax[lab]'\n"
    )


# Command lines that are wrong, and what must be said.
WRONG = {
    "rcae": "unknown command 'rcae'; did you mean 'race'?",
    "race --stepz 3": "Did you mean: steps",
    "race --steps": "Missing value for flag --steps",
    "race --steps 0": "not a positive integer",
    "race --steps -4": "not a positive integer",
    "race --steps ten": "'ten'",
    "race --seeds 0": "not a positive integer",
    "race --eval-every 0": "not a positive integer",
    "race --size huge": "<default|tiny|lecun>",
    "race digits": "'digits' is no flag",
    "race --workload digit": "unknown workload 'digit'; did you mean 'digits'",
    "race --chain adamww+cosine": "unknown optimizer 'adamww'; did you mean 'adamw'",
    "race --chain adamw+cosin": "unknown schedule 'cosin'; did you mean 'cosine'",
    "race --chain adamw:b3=1+cosine": "unknown key of adamw 'b3'",
    "race --chain adamw+cosine --chain adamw+cosine": "the same",
    "race --chain adamw+wsd:decay_steps=9 --steps 5": "do not fit",
    "train --steps 0": "not a positive integer",
    "train --chain muno+wsd": "did you mean 'muon'",
    "train --chain kfac+cosine": "kfac needs layer_stats at each update",
    "sweep --rates 1 --chain mkor_h+wsd": "mkor_h needs layer_stats at each update",
    "race --chain adamw+wsd --chain mkor+wsd": "mkor needs layer_stats at each update",
    "train --workload shakespear": "did you mean 'shakespeare'",
    "train --keep 0": "not a positive integer",
    "train --seed -1": "non-negative",
    "sweep": "--rates is missing",
    "sweep --rates 1,x": "--rates: 'x' is not a number above 0",
    "sweep --rates 0": "--rates: '0' is not a number above 0",
    "sweep --rates 1 --rest-rates inf": "--rest-rates: 'inf' is not a number above 0",
    "sweep --rates 1 --rest-rates 1": "adamw has no rest to sweep",
    "catalog --room schedule": "did you mean 'schedules'",
    "catalog --name mun": "did you mean muon",
    "catalog --markdown --name muon": "whole table",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line_is_refused_in_one_line(line, capsys, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("trained"))
    code, said = fails(capsys, *line.split())
    assert code == 2
    assert said.startswith("optlab") and WRONG[line] in said


def test_commands_do_not_share_flags(capsys):
    assert fails(capsys, "train", "--seeds", "2")[0] == 2
    assert fails(capsys, "race", "--rates", "2")[0] == 2
    assert cli.main(["race", "--help", "--steps", "7"]) == 0
    assert "Default: 7" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["race", "train", "sweep --rates 1"])
def test_a_folder_that_cannot_be_written_is_said_in_one_line(command, capsys):
    argv = [*command.split(), *TINY, "--out", "/dev/null/out"]
    code, said = fails(capsys, *argv)
    assert code == 1
    assert "cannot write" in said and "/dev/null/out" in said


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(capsys, tmp_path):
    chain = "sgd:learning_rate=1e30+constant@6"
    argv = [*TINY, "--chain", chain, "--out", str(tmp_path)]
    code, said = fails(capsys, "train", *argv)
    assert code == 1
    assert said.startswith("optlab train: ") and "last good checkpoint" in said


def test_training_again_reads_back_and_another_chain_is_refused(capsys, tmp_path):
    argv = ["train", *TINY, "--steps", "4", "--out", str(tmp_path), "--chain"]
    assert cli.main([*argv, "sgd+linear"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("sgd:") and "at step 4" in first
    log = (tmp_path / "metrics.jsonl").read_bytes()
    assert cli.main([*argv, "sgd+linear"]) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "metrics.jsonl").read_bytes() == log
    code, said = fails(capsys, *argv, "sgd:learning_rate=0.5+linear")
    assert code == 1 and "another run" in said


def test_a_race_prints_its_table_and_writes_its_files(capsys, tmp_path):
    argv = ["race", *TINY, "--steps", "4", "--seeds", "1", "--out", str(tmp_path)]
    argv += ["--chain", "sgd+linear", "--chain", "sgd:learning_rate=0.5+linear@2"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "race.json").read_text())
    assert results["command"] == cli.shlex.join(["optlab", *argv])
    for chain in results["chains"]:
        assert f"{chain['final_loss']['mean']:.3f}" in out
    assert "Written: " in out
    assert {path.name for path in tmp_path.iterdir()} >= {"race.png", "report.md"}


def test_a_sweep_prints_its_best_chain(capsys, tmp_path, monkeypatch):
    losses = iter([0.5, 0.25])
    monkeypatch.setattr(
        sweep.runs, "finish", lambda *_, **__: {"final_loss": next(losses)}
    )
    argv = ["--rates", "0.1,0.2", "--steps", "4", "--out", str(tmp_path)]
    assert cli.main(["sweep", *TINY, "--chain", "sgd+linear", *argv]) == 0
    out = capsys.readouterr().out
    assert "0.250" in out
    assert "Best: sgd:learning_rate=0.2,momentum=0.9+linear:warmup_steps=0@4" in out
    assert "edge" in out


def test_ctrl_c_is_one_line_and_exit_code_130(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(race, "run", interrupt)
    code, said = fails(capsys, "race", *TINY)
    assert code == 130 and "the same command continues" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lab.LabError("two\nlines"), "optlab race: two lines"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("odd"), "ValueError: odd (--traceback shows where)"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(error, said, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(race, "run", fail)
    code, line = fails(capsys, "race", *TINY)
    assert code == 1 and said in line
    assert cli.main(["race", *TINY, "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_failure_with_a_traceback():
    code = f"'{sys.executable}' -m optlab.lab.cli catalog --name muon | head -1"
    done = subprocess.run(
        code,
        shell=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "muon (optimizers, spectral)\n"
    assert done.stderr == ""


def test_the_catalogue_lists_every_row_or_those_of_a_room(capsys):
    assert cli.main(["catalog"]) == 0
    out = capsys.readouterr().out
    assert all(f" {row.name} " in out for row in catalog.rows())
    assert cli.main(["catalog", "--room", "schedules"]) == 0
    out = capsys.readouterr().out
    assert " wsd " in out and " muon " not in out
    assert cli.main(["catalog", "--markdown"]) == 0
    assert capsys.readouterr().out == catalog.markdown_table() + "\n"


@pytest.mark.parametrize("row", catalog.rows(), ids=lambda row: row.name)
def test_a_row_is_shown_with_its_paper_and_its_arguments(row, capsys):
    assert cli.main(["catalog", "--name", row.name]) == 0
    out = capsys.readouterr().out
    assert row.paper.title in out and row.paper.url in out
    parameters = cli.importlib.import_module("inspect").signature(row.build).parameters
    assert all(name in out for name in parameters)
    assert (f"A link; {row.name}+cosine trains" in out) == bool(row.link)
    assert " at 0x" not in out
