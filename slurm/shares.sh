#!/usr/bin/env bash
# Do the work of a data tool as the tasks of a job array, where there is Slurm alone (make, verify, stats or dedup):
#   job=$(sbatch --parsable --array=0-15 slurm/shares.sh verify /data/imagenet21k)
#   sbatch --dependency=afterany:$job slurm/shares.sh verify /data/imagenet21k
# The job behind the array brings the results together, after it has done what lost tasks have left undone. Preempted tasks are
# requeued, and resume.
#SBATCH --job-name=shares
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%j.log
source "${PIPELINE_HOME:-$SLURM_SUBMIT_DIR}/slurm/common.sh" || exit 2
shares "$@"
