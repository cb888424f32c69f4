# einsum_gutenberg.py at 192 wide. The iterations that use the dense run's FLOPs depend on the width, so each width has
# a file of its own; the runs of all widths lie in one folder.
#
#   python compare.py config/compare/einsum_gutenberg_192.py --cluster=pool --jobs=8
#
# 3,443,136 parameters when dense, so 68.9M tokens: 1.4 passes over the 48.5M that there are; low_rank sees 2.6 passes.

include('einsum_gutenberg.py')

name = 'einsum_gutenberg'
sizes = dict(
    w192='--n_embd=192 --n_head=6 --max_iters=2102 --lr_decay_iters=2102 --warmup_iters=105 --eval_interval=700'
)
_structured = '--linear_layers=mlp+attn --linear_path=factored'
arms = dict(
    dense='',
    low_rank=f'--linear=low_rank {_structured} --max_iters=3809 --lr_decay_iters=3809 --warmup_iters=190',
)
