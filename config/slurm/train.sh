#!/bin/bash
# Train on the GPUs of several nodes under Slurm. Run it from the repository's folder; all nodes have to see that folder,
# out_dir and the data:
#
#   sbatch config/slurm/train.sh config/gpt2_xl.py --parallel=fsdp --out_dir=out/xl
#   sbatch --nodes=4 --gpus-per-node=4 config/slurm/train.sh config/gpt2.py
#
# One torchrun a node; they meet at the first node. Where a process dies, all are started again, up to three times, and go on
# from the last checkpoint; so does a job that Slurm puts back into the queue.
#SBATCH --job-name=nanomorph
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
[ -f .venv/bin/activate ] && source .venv/bin/activate

# each start of the processes meets in a store of its own: what a dead one has left in a shared one would mislead the next
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec srun torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-8}" --max-restarts=3 \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first:29500" \
    train.py "$@"
