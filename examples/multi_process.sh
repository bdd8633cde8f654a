#!/bin/sh
# Trains on 8 simulated devices of 2 processes, which speak over loopback:
#
#     sh multi_process.sh [--steps 60]
#
# On a pod every host runs the same command, `train_on_a_mesh.py --distributed`; TPUs,
# Slurm, Open MPI and Kubernetes need none of the variables.
set -u
python=${PYTHON:-python3}
here=$(dirname "$0")
port=$("$python" -c 'import socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    print(probe.getsockname()[1])')

export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4
export JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES=2

JAX_PROCESS_ID=1 "$python" "$here/train_on_a_mesh.py" --distributed "$@" &
other=$!
trap 'kill "$other" 2>/dev/null' INT TERM
JAX_PROCESS_ID=0 "$python" "$here/train_on_a_mesh.py" --distributed "$@"
code=$?
wait "$other" || code=$?
exit "$code"
