# shellcheck shell=bash
# Sourced by the job scripts: the project, the site's settings, one srun task a rank, and what to do when the ranks have ended.
set -euo pipefail
export PIPELINE_HOME=${PIPELINE_HOME:-$SLURM_SUBMIT_DIR}
# shellcheck source=slurm/site.env
source "${SITE_ENV:-$PIPELINE_HOME/slurm/site.env}"
cd "$PIPELINE_HOME"

NODE_LOSS_WAIT_S=900 # three times Slurm's default SlurmdTimeout
PROBE_S=60
EXIT_INTERRUPTED=75 # of `python -m pipeline train`: told to stop, and saved

# A job's name may hold anything, a run folder's may not; two names that would become one are told apart by a checksum.
run_name() {
    local wanted=$1 name
    name=$(printf '%s' "$wanted" | LC_ALL=C tr -c 'A-Za-z0-9_.-' '_')
    [[ $name == [A-Za-z0-9]* ]] || name=run$name
    [ "$name" = "$wanted" ] || name+=-$(printf '%s' "$wanted" | cksum | cut -d ' ' -f 1)
    printf '%s' "$name"
}

# Software and network, as the site file says.
prepare_node() {
    local script
    if [ ${#SITE_MODULES[@]} -gt 0 ]; then
        set +u # the module systems' own functions read variables that need not be set
        for script in /etc/profile.d/{modules,lmod,z00_lmod}.sh; do
            # shellcheck disable=SC1090
            type module >/dev/null 2>&1 || [ ! -r "$script" ] || source "$script"
        done
        type module >/dev/null 2>&1 || {
            echo "SITE_MODULES is set, but there is no \`module\` command on $(hostname)" >&2
            exit 2
        }
        module load "${SITE_MODULES[@]}"
        set -u
    fi
    [ -z "$SITE_INTERFACE" ] || export NCCL_SOCKET_IFNAME=$SITE_INTERFACE GLOO_SOCKET_IFNAME=$SITE_INTERFACE
    [ -z "$SITE_VENV" ] || export PATH=$SITE_VENV/bin:$PATH
    # Since Slurm 22.05 srun does not take --cpus-per-task over from sbatch: each rank would get one core.
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
    export PYTHONUNBUFFERED=1
    mkdir -p "$SITE_RUNS"
    # The log under the run's name is that of its newest job.
    [ ! -e "slurm/logs/$SLURM_JOB_ID.log" ] || ln -sfn "$SLURM_JOB_ID.log" "slurm/logs/$1.log"
}

# pretrain CONFIG [section.key=value ...]: train as one rank a task, the evaluator as a job of its own beside it.
pretrain() {
    local config=$1 name code=0
    shift
    name=$(run_name "$SLURM_JOB_NAME")
    prepare_node "$name"
    submit_evaluator "$name"
    # A preempting Slurm may signal this shell too; it has to live until srun ends. (An empty command, not '': what is
    # ignored here would be ignored by srun and by every rank.)
    trap : TERM USR1
    # Not --kill-on-bad-exit: ranks that agree to stop, or on an error, end one after the other, and the first would have
    # the rest killed. One that dies alone is followed by the others after this wait.
    srun --kill-on-bad-exit=0 --wait="$SITE_RANK_WAIT_S" "${SITE_CONTAINER[@]}" \
        python -m pipeline train "$config" name="$name" output_dir="$SITE_RUNS" data.train="$SITE_DATA" \
        ${SITE_EVAL_SETS:+evaluation.datasets="$SITE_EVAL_SETS"} "$@" || code=$?
    end_job "$code" "$SITE_RUNS/$name"
}

# evaluate RUN_DIR [evaluation.key=value ...]: watch a run folder until the run is complete. It may be killed at any time.
evaluate() {
    local code=0
    prepare_node "$(run_name "$SLURM_JOB_NAME")"
    trap : TERM
    srun --ntasks=1 "${SITE_CONTAINER[@]}" python -m pipeline evaluate "$@" --watch || code=$?
    end_job "$code" "$1"
}

# end_job CODE RUN_DIR: back into the queue, or out. Slurm itself requeues after a node's failure and after a preemption
# that left no time, not after a time limit and not after a preempted job has ended by itself.
end_job() {
    local code=$1 run_dir=$2 checkpoint place tries
    case $code in
    0) exit 0 ;;
    2) exit "$code" ;; # a named error, which would come again
    "$EXIT_INTERRUPTED") requeue "$code" "stopped and saved" ;;
    esac
    await_slurm_if_a_node_is_gone
    # Broken off: a rank lost another or met a bug (1), hung (70), or was killed (128 and the signal's number). srun gives
    # the highest code of all ranks. Another try, but never for ever: so often from one checkpoint.
    mkdir -p "$run_dir/checkpoints"
    checkpoint=$(find "$run_dir/checkpoints" -maxdepth 1 -name 'step_*' | sort | tail -n 1)
    place="job $SLURM_JOB_ID from ${checkpoint:-the start}"
    echo "$place: exit code $code" >>"$run_dir/broken-off.log"
    tries=$(grep -cF "$place: " "$run_dir/broken-off.log")
    if [ "$tries" -gt "$SITE_RETRIES" ]; then
        echo "[job] broken off with exit code $code, after $SITE_RETRIES tries from ${checkpoint:-the start}: not requeued again" >&2
        exit "$code"
    fi
    requeue "$code" "broken off with exit code $code; try $tries of $SITE_RETRIES from ${checkpoint:-the start}"
}

# The ranks lose one whose node has died long before Slurm does (SlurmdTimeout), which then requeues the job by itself, on other
# nodes. Requeued by both it may never start again ("Invalid generic resource specification", Slurm 22.05): so leave it to Slurm.
await_slurm_if_a_node_is_gone() {
    timeout "$PROBE_S" srun --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \
        --cpus-per-task=1 --kill-on-bad-exit=1 true && return 0
    echo "[job] a node does not answer; Slurm requeues the job when it has noticed, for which it is given $NODE_LOSS_WAIT_S s" >&2
    sleep "$NODE_LOSS_WAIT_S"
}

# requeue CODE WHY: this job, which goes on with the same number, log and run folder.
requeue() {
    # A job that was cancelled, or that Slurm is about to requeue by itself, is no longer running.
    local state
    state=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *JobState=\([A-Z_]*\).*/\1/p') || true
    if [ "$state" = RUNNING ] && scontrol requeue "$SLURM_JOB_ID"; then
        echo "[job] $2; requeued (restart $((${SLURM_RESTART_COUNT:-0} + 1)))"
    else
        echo "[job] $2; not requeued from here (job state: ${state:-unknown}); sbatch the same line to go on" >&2
    fi
    exit "$1"
}

# submit_evaluator NAME: one evaluator at work and at most one waiting behind it (singleton): the next takes over where a
# time limit ends the first, and ends at once if there is nothing left to do. EVALUATE=0 leaves it out.
submit_evaluator() {
    local name=$1-eval partition=${SITE_EVAL_PARTITION:-$SITE_PARTITION} variable
    [ "${EVALUATE:-1}" -eq 1 ] || return 0
    if [ -z "$SITE_EVAL_SETS" ]; then
        echo "SITE_EVAL_SETS in the site file is empty: no evaluator is submitted" >&2
        return 0
    fi
    [ -z "$(squeue --me --noheader --states=PENDING --name="$name")" ] || return 0
    (
        # What this job was given (tasks a node, GPUs, ...) must not become the evaluator's.
        for variable in "${!SLURM_@}" "${!SRUN_@}" "${!SBATCH_@}"; do
            [ "$variable" = SLURM_CONF ] || unset "$variable"
        done
        RUN_DIR=$SITE_RUNS/$1 sbatch --job-name="$name" --dependency=singleton ${SITE_ACCOUNT:+--account="$SITE_ACCOUNT"} \
            ${partition:+--partition="$partition"} slurm/evaluate.sh
    ) || echo "could not submit the evaluator; start it by hand: RUN_DIR=$SITE_RUNS/$1 sbatch slurm/evaluate.sh" >&2
}
