# Sourced by the job scripts: the project, the site's settings, one srun task a rank.
set -euo pipefail
PROJECT=${PROJECT:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}}
export PROJECT
# shellcheck source=slurm/site.env
source "$PROJECT/slurm/site.env"
[ -z "${SITE_MODULES:-}" ] || module load $SITE_MODULES
[ -z "${SITE_INTERFACE:-}" ] || export NCCL_SOCKET_IFNAME=$SITE_INTERFACE GLOO_SOCKET_IFNAME=$SITE_INTERFACE
# Since Slurm 22.05 srun does not take --cpus-per-task over from sbatch: each rank would get one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PATH="$SITE_VENV/bin:$PATH"
cd "$PROJECT"
# A job name may hold anything; a run folder may not.
RUN_NAME=$(printf '%s' "${SLURM_JOB_NAME:-run}" | tr -c 'A-Za-z0-9_.-' '_')
RUN_DIR="$SITE_RUNS/$RUN_NAME"
mkdir -p "$SITE_RUNS"

# pretrain CONFIG [section.key=value ...]: train as one rank a task, the evaluator as a job of its own beside it.
pretrain() {
    local config=$1; shift
    submit_evaluator
    # srun starts Python without a shell between, so its signals reach it. One dead rank ends the step.
    srun --kill-on-bad-exit=1 ${SITE_CONTAINER:-} \
        python -m pipeline train "$config" name="$RUN_NAME" output_dir="$SITE_RUNS" data.train="$SITE_DATA" \
        ${SITE_EVAL_SETS:+evaluation.datasets="$SITE_EVAL_SETS"} "$@"
}

# One evaluator at work and at most one waiting behind it (singleton): the next takes over where a time limit ends the
# first, and ends at once if there is nothing left to do. EVALUATE=0 leaves it out.
submit_evaluator() {
    [ "${EVALUATE:-1}" -eq 1 ] || return 0
    if [ -z "${SITE_EVAL_SETS:-}" ]; then
        echo "SITE_EVAL_SETS in slurm/site.env is empty: no evaluator is submitted" >&2
        return 0
    fi
    [ -z "$(squeue --me --noheader --states=PENDING --name="$RUN_NAME-eval")" ] || return 0
    local partition=${SITE_EVAL_PARTITION:-${SITE_PARTITION:-}}
    sbatch --job-name="$RUN_NAME-eval" --dependency=singleton \
        ${SITE_ACCOUNT:+--account="$SITE_ACCOUNT"} ${partition:+--partition="$partition"} \
        --export=ALL,RUN_DIR="$RUN_DIR" "$PROJECT/slurm/evaluate.sh" ||
        echo "could not submit the evaluator; start it by hand: RUN_DIR=$RUN_DIR sbatch slurm/evaluate.sh" >&2
}
