#!/bin/bash
# A study on a SLURM cluster: sbatch examples/slurm.sh STUDY.yaml runs/NAME
# Task 0 of the array is the study, the others are its workers. All see the same folders by the same paths.
# A task that is preempted is queued again and goes on.
#SBATCH --job-name=evomerge
#SBATCH --array=0-8
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
set -eu
study=$1 out=$2
if [ "$SLURM_ARRAY_TASK_ID" -eq 0 ]; then
  exec evomerge run "$study" -o "$out" --queue "$out.queue"
fi
exec evomerge worker "$out.queue" --idle 3600
