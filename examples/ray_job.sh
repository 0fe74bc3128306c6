#!/bin/bash
# A study on a Ray cluster that runs already: examples/ray_job.sh STUDY.yaml runs/NAME [WORKERS]
# RAY_API_SERVER_ADDRESS is the address of the cluster's dashboard, such as http://HEAD:8265. RAY_AUTH_MODE=token and the cluster's
# token (RAY_AUTH_TOKEN, or a file, RAY_AUTH_TOKEN_PATH) are set here as on its nodes.
# All nodes have evomerge, and see study, models, data and runs/ by the same paths as this machine.
# Type the same line again to go on after the job was lost.
set -eu
study=$(realpath -s "$1") out=$(realpath -ms "$2") workers=${3:-8}
exec ray job submit --no-wait -- evomerge run "$study" -o "$out" --workers "$workers"
